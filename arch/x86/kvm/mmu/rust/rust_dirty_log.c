// SPDX-License-Identifier: GPL-2.0
/*
 * How writes to memslots are logged: the module parameter, the choice for each VM, what D bits need
 * of C, and KVM_GET_DIRTY_LOG.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"

#include <linux/lockdep.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>
#include <asm/kvm_rust_mmu.h>

static const char * const dirty_log_names[] = {
	[KVM_X86_DIRTY_LOG_DEFAULT] = "auto",
	[KVM_X86_DIRTY_LOG_WRITE_PROTECT] = "write_protect",
	[KVM_X86_DIRTY_LOG_DIRTY_BITS] = "dirty_bits",
};

static int dirty_log = KVM_X86_DIRTY_LOG_DEFAULT;

static int dirty_log_set(const char *value, const struct kernel_param *kp)
{
	int mode = sysfs_match_string(dirty_log_names, value);

	if (mode < 0)
		return mode;
	WRITE_ONCE(dirty_log, mode);
	return 0;
}

static int dirty_log_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", dirty_log_names[READ_ONCE(dirty_log)]);
}

static const struct kernel_param_ops dirty_log_ops = {
	.set = dirty_log_set,
	.get = dirty_log_get,
};

module_param_cb(dirty_log, &dirty_log_ops, NULL, 0644);
MODULE_PARM_DESC(dirty_log,
		 "How writes are found without PML: auto (write_protect), write_protect, dirty_bits");

/*
 * What KVM_CHECK_EXTENSION says of KVM_CAP_X86_DIRTY_LOG_MODE: a mask of modes. With PML the
 * CPU logs writes itself, and there is no choice; only a VM knows whether it uses PML. KVM has
 * no D bits of mirror roots (TDX).
 */
int kvm_rs_dirty_log_modes(struct kvm *kvm)
{
	int modes = BIT(KVM_X86_DIRTY_LOG_DEFAULT);

	if (kvm && kvm->arch.cpu_dirty_log_size)
		return modes;
	modes |= BIT(KVM_X86_DIRTY_LOG_WRITE_PROTECT);
	if (tdp_mmu_enabled && kvm_ad_enabled && !(kvm && kvm_has_mirrored_tdp(kvm)))
		modes |= BIT(KVM_X86_DIRTY_LOG_DIRTY_BITS);
	return modes;
}

/* Takes effect when the next memslot begins to be logged, as a change of kvm.dirty_log does. */
int kvm_rs_set_dirty_log_mode(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	u64 mode = cap->args[0];

	if (mode >= ARRAY_SIZE(dirty_log_names) || !(kvm_rs_dirty_log_modes(kvm) & BIT(mode)) ||
	    cap->args[1] || cap->args[2] || cap->args[3])
		return -EINVAL;
	WRITE_ONCE(kvm->rs_dirty_log.mode, mode);
	return 0;
}

/* Shadow pages must not exist yet; those that are created later are write-protected. */
static bool chooses_dirty_bits(struct kvm *kvm)
{
	int mode = READ_ONCE(kvm->rs_dirty_log.mode);

	if (mode == KVM_X86_DIRTY_LOG_DEFAULT)
		mode = READ_ONCE(dirty_log);
	return mode == KVM_X86_DIRTY_LOG_DIRTY_BITS &&
	       kvm_rs_dirty_log_modes(kvm) & BIT(KVM_X86_DIRTY_LOG_DIRTY_BITS) &&
	       !kvm->dirty_ring_size && !kvm_memslots_have_rmaps(kvm);
}

/*
 * KVM_GET_DIRTY_LOG of @slot, which is logged: copies the bitmap to userspace, and takes its bits
 * unless KVM_CLEAR_DIRTY_LOG is to do that. slots_lock is held. Returns 0, -EINTR or -EFAULT.
 */
int kvm_rs_get_log(struct kvm *kvm, const struct kvm_dirty_log *log, struct kvm_memory_slot *slot)
{
	unsigned long *bitmap = slot->dirty_bitmap, *buffer = kvm_second_dirty_bitmap(slot);
	unsigned long bytes = kvm_dirty_bitmap_bytes(slot);
	int r = 0;

	if (!kvm->manual_dirty_log_protect) {
		/* Their buffers are in there, and their bits are not to be taken. */
		kvm_rs_wait_for_clears(kvm);
		memset(buffer, 0, bytes);
		r = kvm_rs_get_dirty_log(kvm, slot, buffer);
		bitmap = buffer;
	} else if (kvm->rs_dirty_log.dirty_bits) {
		kvm_rs_wait_for_clears(kvm);
		r = kvm_rs_harvest_dirty_log(kvm, slot, buffer);
	}
	if (r)
		return r;
	return copy_to_user(log->dirty_bitmap, bitmap, bytes) ? -EFAULT : 0;
}

/* Clears D where it does not stand for a write since the page's bit was taken. */
static void forget_dirty_bits(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int as_id, bkt;

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(kvm); as_id++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, as_id)) {
			if (slot->dirty_bitmap)
				kvm_rs_forget_dirty_bits(kvm, slot);
		}
	}
}

/*
 * Called before @new replaces @old; either may be NULL. Chooses how the VM is logged if @new
 * begins to be logged. slots_lock is held.
 *
 * From faults to D bits it can go while other slots are logged; see dirty_bits.rs. From D bits
 * to faults it can't go, as leaves of other slots are writable.
 */
void kvm_rs_prepare_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *old,
			      const struct kvm_memory_slot *new, enum kvm_mr_change change)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;
	bool is_first = !atomic_read(&kvm->nr_memslots_dirty_logging);
	bool was_logged = old && old->flags & KVM_MEM_LOG_DIRTY_PAGES;

	if (was_logged || !new || !(new->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return;

	if (is_first) {
		WRITE_ONCE(log->dirty_bits, chooses_dirty_bits(kvm));
	} else if (!log->dirty_bits && change == KVM_MR_FLAGS_ONLY && chooses_dirty_bits(kvm)) {
		/* Other changes may fail yet. */
		WRITE_ONCE(log->switching, true);
		/* Pairs with kvm_rs_logs_by_dirty_bits(): if that sees it, it sees switching. */
		smp_store_release(&log->dirty_bits, true);
	}

	/* kvm_mmu_slot_apply_flags() will call kvm_rs_start_dirty_log(), which resets it. */
	if (log->dirty_bits && change == KVM_MR_FLAGS_ONLY && !(new->flags & KVM_MEM_READONLY) &&
	    !kvm_dirty_log_manual_protect_and_init_set(kvm))
		WRITE_ONCE(log->starting, new);
}

/*
 * Called after the slot was replaced, and with it the number of logged slots, or after that has
 * failed. slots_lock is held.
 *
 * All faults have ended that have not seen a change of dirty_bits: synchronize_srcu() has
 * waited for them.
 */
void kvm_rs_commit_dirty_log(struct kvm *kvm)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;

	if (log->switching) {
		forget_dirty_bits(kvm);
		WRITE_ONCE(log->switching, false);
	}
	if (!atomic_read(&kvm->nr_memslots_dirty_logging))
		WRITE_ONCE(log->dirty_bits, false);
}

/*
 * Sets the bits of pages in the dirty bitmaps of an address space. @written has @words words;
 * its bit 0 stands for @first. mark_page_dirty_in_slot() does not work here, because a
 * notifier may run on a thread that has loaded a vCPU of another VM.
 *
 * The D bits of a slot that is just being enabled are ignored, because they may be old. Writes
 * before the ioctl returns don't have to be in the log. The same goes for all slots while the
 * VM goes over from faults to D bits.
 *
 * Between the removal of the leaf and this, neither D nor the bit tells of the write. So GET,
 * which holds slots_lock and mmu_lock for read, must not run meanwhile.
 */
void kvm_rs_carry_dirty(struct kvm *kvm, int as_id, gfn_t first, const u64 *written, int words)
{
	const struct kvm_memory_slot *slot = NULL;
	unsigned long bit, nbits = words * BITS_PER_LONG;
	bool __maybe_unused is_news = false;
	u64 carried = 0;
	gfn_t gfn;

	if (READ_ONCE(kvm->rs_dirty_log.switching))
		return;

	guard(srcu)(&kvm->srcu);

	for_each_set_bit(bit, (const unsigned long *)written, nbits) {
		gfn = first + bit;
		if (!slot || gfn < slot->base_gfn || gfn - slot->base_gfn >= slot->npages)
			slot = __gfn_to_memslot(__kvm_memslots(kvm, as_id), gfn);
		if (!slot || !slot->dirty_bitmap ||
		    slot == READ_ONCE(kvm->rs_dirty_log.starting))
			continue;
		if (!test_and_set_bit_le(gfn - slot->base_gfn, slot->dirty_bitmap))
			is_news = true;
		carried++;
	}
	lockdep_assert_once(!is_news || lockdep_is_held_type(&kvm->mmu_lock, 0) ||
			    lockdep_is_held(&kvm->slots_lock));
	if (carried)
		atomic64_add(carried, &kvm->rs_stat.mmu_events[KVM_RS_DIRTY_CARRY]);
}
