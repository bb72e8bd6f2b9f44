// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_CLEAR_DIRTY_LOG by several threads. Each claims a range of a memslot's log, and clears it
 * without slots_lock. Whoever needs the whole log, or changes memslots, takes slots_lock, so that
 * no other range is claimed, and waits for those that are. So this wait is below slots_lock, and
 * above mmap_lock and mmu_lock: a thread that has claimed a range must not wait for slots_lock.
 * ops/dirty_log/reap.rs says why ranges may be cleared side by side.
 */

#include "rust_bindings.h"

#include <linux/lockdep.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <asm/kvm_rust_mmu.h>

/* A KVM_CLEAR_DIRTY_LOG. In the list of the VM's clears while its range is claimed. */
struct clear_range {
	struct list_head node;
	struct kvm_clear_dirty_log request;
	/* May be gone if neither the range is claimed nor slots_lock held. */
	struct kvm_memory_slot *slot;
	/* In words of the bitmap. */
	unsigned long first;
	unsigned long end;
	bool accounted;
};

void kvm_rs_init_dirty_log(struct kvm *kvm)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;
	static struct lock_class_key key __maybe_unused;

	spin_lock_init(&log->clears_lock);
	INIT_LIST_HEAD(&log->clears);
	init_waitqueue_head(&log->clears_wait);
	lockdep_init_map(&log->clears_map, "kvm->rs_dirty_log.clears", &key, 0);
}

/* Whether a range of @kvm is being cleared that is not apart from @range; NULL: any range. */
static bool is_cleared(struct kvm *kvm, const struct clear_range *range)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;
	struct clear_range *other;

	/* If there is none any more, what they did is visible. */
	guard(spinlock)(&log->clears_lock);
	list_for_each_entry(other, &log->clears, node) {
		if (!range || (other->slot == range->slot && other->first < range->end &&
			       range->first < other->end))
			return true;
	}
	return false;
}

bool kvm_rs_is_clearing(struct kvm *kvm)
{
	return tdp_mmu_enabled && is_cleared(kvm, NULL);
}

/* Waits until no range is being cleared. slots_lock is held: until it is dropped, none will be. */
void kvm_rs_wait_for_clears(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);

	if (!tdp_mmu_enabled)
		return;
	lock_map_acquire(&kvm->rs_dirty_log.clears_map);
	wait_event(kvm->rs_dirty_log.clears_wait, !is_cleared(kvm, NULL));
	lock_map_release(&kvm->rs_dirty_log.clears_map);
}

/*
 * Claims @range, if nobody clears a part of it. slots_lock is held, and may be dropped then:
 * whoever changes memslots waits for @range.
 */
static bool begin_clear(struct kvm *kvm, struct clear_range *range)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;

	lockdep_assert_held(&kvm->slots_lock);
	if (is_cleared(kvm, range))
		return false;

	lock_map_acquire_read(&log->clears_map);
	guard(spinlock)(&log->clears_lock);
	range->accounted = !log->clear_accounted;
	log->clear_accounted = true;
	list_add(&range->node, &log->clears);
	return true;
}

static void end_clear(struct kvm *kvm, struct clear_range *range)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;

	scoped_guard(spinlock, &log->clears_lock) {
		if (range->accounted)
			log->clear_accounted = false;
		list_del(&range->node);
	}
	lock_map_release(&log->clears_map);
	wake_up_all(&log->clears_wait);
}

/*
 * The @check of kvm_rs_clear_log() calls this with what it has found.
 */
int kvm_rs_clear_found(struct kvm_clear_dirty_log *request, struct kvm_memory_slot *slot,
		       unsigned long words)
{
	struct clear_range *range = container_of(request, struct clear_range, request);

	range->slot = slot;
	range->first = request->first_page / BITS_PER_LONG;
	range->end = range->first + words;
	return 0;
}

/* Clears @range, which is claimed, or for which slots_lock is held. */
static int clear_range(struct kvm *kvm, struct clear_range *range, bool claimed)
{
	const struct kvm_clear_dirty_log *request = &range->request;
	unsigned long words = range->end - range->first;
	/* Those that belong to the words that are cleared, so each thread has its own. */
	unsigned long *buffer = kvm_second_dirty_bitmap(range->slot) + range->first;

	if (copy_from_user(buffer, request->dirty_bitmap, words * sizeof(*buffer)))
		return -EFAULT;
	if (!claimed)
		return kvm_rs_clear_dirty_log(kvm, range->slot, request->first_page, words,
					      buffer);
	return kvm_rs_clear_dirty_range(kvm, range->slot, request->first_page, words, buffer,
					range->accounted);
}

/*
 * KVM_CLEAR_DIRTY_LOG. @check looks up the slot, with slots_lock held, checks the request against
 * it, and calls kvm_rs_clear_found(). It may do so more than once, so an error is possible after
 * some of the bits were cleared, if the slot or the user's bitmap is gone by then.
 */
int kvm_rs_clear_log(struct kvm *kvm, const struct kvm_clear_dirty_log *request,
		     int (*check)(struct kvm *kvm, struct kvm_clear_dirty_log *request))
{
	struct clear_range range = { .request = *request };
	int r;

	for (;;) {
		mutex_lock(&kvm->slots_lock);
		r = check(kvm, &range.request);
		/* reap.rs says what needs slots_lock. */
		if (!r && (kvm_memslots_have_rmaps(kvm) || kvm->rs_dirty_log.dirty_bits)) {
			kvm_rs_wait_for_clears(kvm);
			r = clear_range(kvm, &range, false);
		} else if (!r && begin_clear(kvm, &range)) {
			mutex_unlock(&kvm->slots_lock);
			r = clear_range(kvm, &range, true);
			end_clear(kvm, &range);
			/* Shadow pages came. Where there are any, there are lists for them. */
			if (r == -EAGAIN && !WARN_ON_ONCE(!kvm_memslots_have_rmaps(kvm)))
				continue;
			return r;
		} else if (!r) {
			/* Don't make others wait that clear something else. */
			mutex_unlock(&kvm->slots_lock);
			if (wait_event_killable(kvm->rs_dirty_log.clears_wait,
						!is_cleared(kvm, &range)))
				return -EINTR;
			continue;
		}
		mutex_unlock(&kvm->slots_lock);
		return r;
	}
}
