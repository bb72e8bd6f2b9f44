// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_SPLIT_HUGE_PAGES: checks the arguments, finds the memslots, and has ops/ahead.rs split or
 * recover a gigabyte at a time. Which pages have to stay small is in lpage_info.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"

#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <asm/kvm_mmu_lock.h>
#include <asm/kvm_rust_mmu.h>
#include <asm/kvm_split.h>

#define KVM_SPLIT_ALL	(KVM_SPLIT_CAN_SPLIT | KVM_SPLIT_CAN_KEEP |		\
			 KVM_SPLIT_CAN_RECOVER | KVM_SPLIT_CAN_SET_CHUNK)

#define PAGES_2M	KVM_PAGES_PER_HPAGE(PG_LEVEL_2M)
#define PAGES_1G	KVM_PAGES_PER_HPAGE(PG_LEVEL_1G)

static_assert(sizeof(struct kvm_split_huge_pages) == 64);

static struct kvm_lpage_info *lpage_info(const struct kvm_memory_slot *slot, gfn_t gfn, int level)
{
	return &slot->arch.lpage_info[level - PG_LEVEL_2M][gfn_to_index(gfn, slot->base_gfn,
									level)];
}

/*
 * Limits the pages that map frames of @slot from @start up to @end, which are in one gigabyte,
 * to @level. mmu_lock is held for write so that all readers are gone that have not seen the
 * limit; those that take it afterwards see it.
 */
static void keep_small(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start, gfn_t end,
		       int level)
{
	int kept = level == PG_LEVEL_4K ? KVM_RS_LPAGE_KEPT : KVM_RS_LPAGE_KEPT_2M;
	struct kvm_lpage_info *info, *last = lpage_info(slot, end - 1, PG_LEVEL_2M);

	kvm_mmu_write_lock(kvm, KVM_MMU_OTHER);
	for (info = lpage_info(slot, start, PG_LEVEL_2M); info <= last; info++)
		info->disallow_lpage |= kept;
	lpage_info(slot, start, PG_LEVEL_1G)->disallow_lpage |= KVM_RS_LPAGE_KEPT;
	kvm_mmu_write_unlock(kvm);
}

/* The opposite. The gigabyte may be one page again if none of its parts is kept. */
static void need_not_be_small(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
			      gfn_t end)
{
	gfn_t first = max(gfn_round_for_level(start, PG_LEVEL_1G), slot->base_gfn);
	gfn_t last = min(gfn_round_for_level(start, PG_LEVEL_1G) + PAGES_1G,
			 slot->base_gfn + slot->npages) - 1;
	const int any = KVM_RS_LPAGE_KEPT | KVM_RS_LPAGE_KEPT_2M;
	struct kvm_lpage_info *info, *end_info;
	int kept = 0;

	kvm_mmu_write_lock(kvm, KVM_MMU_OTHER);
	end_info = lpage_info(slot, end - 1, PG_LEVEL_2M);
	for (info = lpage_info(slot, start, PG_LEVEL_2M); info <= end_info; info++)
		info->disallow_lpage &= ~any;

	end_info = lpage_info(slot, last, PG_LEVEL_2M);
	for (info = lpage_info(slot, first, PG_LEVEL_2M); info <= end_info; info++)
		kept |= info->disallow_lpage & any;
	if (!kept)
		lpage_info(slot, start, PG_LEVEL_1G)->disallow_lpage &= ~KVM_RS_LPAGE_KEPT;
	kvm_mmu_write_unlock(kvm);
}

/* Does one memslot's frames from @start up to @end, which are in one gigabyte. */
static int split_in_slot(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
			 gfn_t end, const struct kvm_split_huge_pages *request)
{
	int level = request->page_size == PAGE_SIZE ? PG_LEVEL_4K : PG_LEVEL_2M;

	/* Being deleted or moved: soon it is not there, or somewhere else. */
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;

	if (request->flags & KVM_SPLIT_FLAG_RECOVER) {
		if (kvm_slot_dirty_track_enabled(slot))
			return -EBUSY;
		need_not_be_small(kvm, slot, start, end);
		return kvm_rs_recover_range(kvm, slot, start, end);
	}
	if (request->flags & KVM_SPLIT_FLAG_KEEP)
		keep_small(kvm, slot, start, end, level);
	return kvm_rs_split_range(kvm, slot, start, end, level);
}

/*
 * Does the next part of @request, and advances it: a gigabyte of a memslot at most, and *@budget
 * bytes. Holes cost nothing. Whoever changes memslots waits until this returns.
 */
static int split_step(struct kvm *kvm, struct kvm_split_huge_pages *request, u64 *budget)
{
	gfn_t start = gpa_to_gfn(request->gpa), end = start + (request->size >> PAGE_SHIFT), to;
	struct kvm_memslot_iter iter;
	int r;

	guard(srcu)(&kvm->srcu);

	kvm_memslot_iter_start(&iter, __kvm_memslots(kvm, request->address_space), start);
	if (!kvm_memslot_iter_is_valid(&iter, end)) {
		to = end;
	} else if (iter.slot->base_gfn > start) {
		/* An error in the slot is not one of the hole before it. */
		to = iter.slot->base_gfn;
	} else {
		to = min(end, iter.slot->base_gfn + iter.slot->npages);
		to = min(to, ALIGN(start + 1, PAGES_1G));
		if (request->budget)
			to = min(to, ALIGN(start + max(*budget >> PAGE_SHIFT, 1), PAGES_2M));

		r = split_in_slot(kvm, iter.slot, start, to, request);
		if (r)
			return r;
		*budget -= min(*budget, gfn_to_gpa(to - start));
	}

	request->size -= gfn_to_gpa(to - start);
	request->gpa += gfn_to_gpa(to - start);
	return 0;
}

static int check_request(struct kvm *kvm, const struct kvm_split_huge_pages *request)
{
	bool recover = request->flags & KVM_SPLIT_FLAG_RECOVER;

	if (request->flags & ~(KVM_SPLIT_FLAG_KEEP | KVM_SPLIT_FLAG_RECOVER) ||
	    request->padding || request->reserved[0] || request->reserved[1])
		return -EINVAL;

	if (recover ? request->page_size || request->flags & KVM_SPLIT_FLAG_KEEP :
		      request->page_size != PAGE_SIZE &&
		      request->page_size != KVM_HPAGE_SIZE(PG_LEVEL_2M))
		return -EINVAL;

	if (request->address_space >= kvm_arch_nr_memslot_as_ids(kvm))
		return -EINVAL;

	if (!PAGE_ALIGNED(request->gpa) || !PAGE_ALIGNED(request->size) ||
	    request->gpa + request->size <= request->gpa)
		return -EINVAL;

	return 0;
}

int kvm_rs_split_huge_pages(struct kvm *kvm, void __user *argp)
{
	struct kvm_split_huge_pages request;
	u64 budget, size;
	int r;

	if (!tdp_mmu_enabled)
		return -ENOTTY;
	if (copy_from_user(&request, argp, sizeof(request)))
		return -EFAULT;

	r = check_request(kvm, &request);
	if (r)
		return r;

	budget = request.budget;
	size = request.size;
	do {
		if (signal_pending(current)) {
			r = -EINTR;
			break;
		}
		r = split_step(kvm, &request, &budget);
		cond_resched();
	} while (!r && request.size && (budget || !request.budget));

	if (copy_to_user(argp, &request, sizeof(request)))
		return -EFAULT;

	/* As with KVM_PRE_FAULT_MEMORY, an error counts if nothing was done. */
	return request.size == size ? r : 0;
}

int kvm_rs_split_extension(struct kvm *kvm, u32 cap)
{
	u64 chunk;

	if (!tdp_mmu_enabled)
		return 0;
	if (cap == KVM_CAP_SPLIT_HUGE_PAGES)
		return KVM_SPLIT_ALL;

	chunk = kvm ? READ_ONCE(kvm->rs_dirty_log.eager_split_chunk) : 0;
	if (!chunk)
		return READ_ONCE(eager_page_split) ? KVM_RS_MAX_SPLIT_CHUNK : 0;
	return chunk == KVM_RS_NO_EAGER_SPLIT ? 0 : chunk;
}

int kvm_rs_set_eager_split_chunk(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	u64 chunk = cap->args[0];

	if (!tdp_mmu_enabled || chunk > KVM_RS_MAX_SPLIT_CHUNK ||
	    !IS_ALIGNED(chunk, KVM_HPAGE_SIZE(PG_LEVEL_2M)) ||
	    cap->args[1] || cap->args[2] || cap->args[3])
		return -EINVAL;

	WRITE_ONCE(kvm->rs_dirty_log.eager_split_chunk, chunk ?: KVM_RS_NO_EAGER_SPLIT);
	return 0;
}
