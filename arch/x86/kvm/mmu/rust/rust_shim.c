// SPDX-License-Identifier: GPL-2.0
/*
 * What has to be C: what needs static storage (lock classes, the module parameter
 * that names the MMU), what the hooks in C call, what goes through memslots, and
 * assertions on constants that bindgen cannot express.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"
#include "mmu/page_track.h"

#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <asm/kvm_rust_mmu.h>

static char *mmu_engine = "rust";
module_param(mmu_engine, charp, 0444);
MODULE_PARM_DESC(mmu_engine, "The implementation of the TDP MMU in this build (read-only)");

/* Called for each VM, whether it will use the TDP MMU or not, before its MMU. */
void kvm_rs_create_vm(void)
{
	static DEFINE_MUTEX(lock);

	guard(mutex)(&lock);
	kvm_tdp_mmu_refresh_masks();
}

void kvm_rs_init_vm(struct kvm *kvm)
{
	INIT_LIST_HEAD(&kvm->arch.tdp_mmu_roots);
	spin_lock_init(&kvm->arch.tdp_mmu_pages_lock);
}

/*
 * Starts to log @slot. Returns false, having done nothing, without a TDP MMU; C's
 * two steps then are what there is to do.
 *
 * Upstream splits shadow pages, splits in the TDP MMU, protects shadow pages, and
 * protects in the TDP MMU, with mmu_lock dropped in between. Here all that concerns
 * shadow pages comes first, and the TDP MMU does both in one walk; the head of
 * ops/dirty_log/enable.rs says why that is the same.
 */
bool kvm_rs_start_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	bool split = READ_ONCE(eager_page_split);

	if (!tdp_mmu_enabled)
		return false;

	if (kvm_memslots_have_rmaps(kvm)) {
		write_lock(&kvm->mmu_lock);
		kvm_rs_rmap_start_dirty_log(kvm, slot, split);
		write_unlock(&kvm->mmu_lock);
	}

	read_lock(&kvm->mmu_lock);
	kvm_tdp_mmu_start_dirty_log(kvm, slot, split);
	read_unlock(&kvm->mmu_lock);

	/* As in C, outside of mmu_lock, and in any case. */
	kvm_flush_remote_tlbs_memslot(kvm, slot);
	return true;
}

/*
 * Takes all bits of @slot's dirty bitmap into @buffer, for KVM_GET_DIRTY_LOG in
 * legacy mode. @slot cannot be in the mode that begins with all bits set, which
 * goes with manual protection. Returns 0, or -EINTR and all bits are back.
 */
int kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			 unsigned long *buffer)
{
	unsigned long words = DIV_ROUND_UP(slot->npages, BITS_PER_LONG);

	return kvm_tdp_mmu_reap_dirty_log(kvm, slot, 0, words, buffer, false, false, false);
}

/*
 * Clears the bits of @slot's dirty bitmap that are set in @words words of
 * @buffer, which stand for the pages from @first_page on, for
 * KVM_CLEAR_DIRTY_LOG. Overwrites @buffer. Returns 0, or -EINTR and only the bits
 * of a first part of the range are clear.
 */
int kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   u64 first_page, unsigned long words, unsigned long *buffer)
{
	return kvm_tdp_mmu_reap_dirty_log(kvm, slot, first_page / BITS_PER_LONG, words,
					  buffer, true,
					  kvm_dirty_log_manual_protect_and_init_set(kvm),
					  READ_ONCE(eager_page_split));
}

/*
 * Whether the other address space (SMM, or not) allows a page of @level at @gfn, which
 * is in @slot. A frame of which writes are tracked there forbids it, as it does in its
 * own address space; see kvm_gfn_is_lpage_allowed(). slots_lock or kvm->srcu is held,
 * and mmu_lock.
 */
bool kvm_rs_other_slots_allow(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn,
			      int level)
{
	gfn_t end = gfn + KVM_PAGES_PER_HPAGE(level), base, at;
	struct kvm_memslot_iter iter;

	if (kvm_arch_nr_memslot_as_ids(kvm) == 1 || !kvm_page_track_write_tracking_enabled(kvm))
		return true;

	kvm_for_each_memslot_in_gfn_range(&iter, __kvm_memslots(kvm, slot->as_id ^ 1), gfn, end) {
		base = iter.slot->base_gfn;
		at = gfn_to_index(max(gfn, base), base, level);
		if (iter.slot->arch.lpage_info[level - PG_LEVEL_2M][at].disallow_lpage)
			return false;
	}
	return true;
}

/* pure/spte.rs */
static_assert(SHADOW_NONPRESENT_VALUE == 1ULL << 63);
static_assert(FROZEN_SPTE == (1ULL << 63 | 0x1a0));
static_assert(SPTE_MMU_PRESENT_MASK == 1 << 11);
static_assert(PT_PRESENT_MASK == 1 << 0);
static_assert(PT_WRITABLE_MASK == 1 << 1);
static_assert(PT_PAGE_SIZE_MASK == 1 << 7);
static_assert(VMX_EPT_READABLE_MASK == 1 && VMX_EPT_RWX_MASK == 7);
static_assert(VMX_EPT_EXECUTABLE_MASK == 1 << 2);
static_assert(VMX_EPT_USER_EXECUTABLE_MASK == 1 << 10);
static_assert(VMX_EPT_SUPPRESS_VE_BIT == 1ULL << 63);
static_assert(VMX_EPT_MISCONFIG_WX_VALUE == 6);
static_assert(SPTE_TDP_AD_MASK == (3ULL << 60));
static_assert(SPTE_TDP_AD_ENABLED == 0);
static_assert(SPTE_TDP_AD_DISABLED == (1ULL << 60));
static_assert(SPTE_TDP_AD_WRPROT_ONLY == (2ULL << 60));
static_assert(SHADOW_ACC_TRACK_SAVED_BITS_MASK == (1 << 0 | 1 << 2 | 1 << 10));
static_assert(SHADOW_ACC_TRACK_SAVED_BITS_SHIFT == 52);

/* pure/leaf.rs */
static_assert(ACC_READ_MASK == 1 && ACC_WRITE_MASK == 2 && ACC_USER_MASK == 4 &&
	      ACC_USER_EXEC_MASK == 4 && ACC_EXEC_MASK == 8);
static_assert(MMIO_SPTE_GEN_LOW_MASK == 0x3f8 && MMIO_SPTE_GEN_LOW_SHIFT == 3);
static_assert(MMIO_SPTE_GEN_HIGH_MASK == (0x7ffULL << 52) && MMIO_SPTE_GEN_HIGH_SHIFT == 45);
static_assert(MMIO_SPTE_GEN_MASK == (1 << 18) - 1);
static_assert(SHADOW_NONPRESENT_OR_RSVD_MASK_LEN == 5);

/* pure/addr.rs */
static_assert(PAGE_SHIFT == 12 && SPTE_LEVEL_BITS == 9 && SPTE_ENT_PER_PAGE == 512);
static_assert(PG_LEVEL_4K == 1 && PG_LEVEL_2M == 2 && PG_LEVEL_1G == 3);
static_assert(KVM_MAX_HUGEPAGE_LEVEL == 3 && PT64_ROOT_MAX_LEVEL == 5);

/* enum kvm_rs_event */
#define ASSERT_EVENT(event, name)						\
	static_assert(offsetof(struct kvm_rs_vm_stat, mmu_events[event]) ==	\
		      offsetof(struct kvm_rs_vm_stat, name))
ASSERT_EVENT(KVM_RS_EAGER_SPLIT, mmu_eager_splits);
ASSERT_EVENT(KVM_RS_FAULT_SPLIT, mmu_fault_splits);
ASSERT_EVENT(KVM_RS_PROMOTION, mmu_promotions);
ASSERT_EVENT(KVM_RS_SPLIT_NO_MEMORY, mmu_split_no_memory);
ASSERT_EVENT(KVM_RS_SPLIT_NO_BUDGET, mmu_split_no_budget);
ASSERT_EVENT(KVM_RS_SPLIT_LOST_RACE, mmu_split_lost_race);
ASSERT_EVENT(KVM_RS_YIELD, mmu_yields);
