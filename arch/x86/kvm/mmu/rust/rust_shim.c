// SPDX-License-Identifier: GPL-2.0
/*
 * What has to be C: what needs static storage (lock classes, the module parameter
 * that names the MMU), what iterates over memslots or pages, and assertions on constants
 * that bindgen cannot express.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"
#include "mmu/page_track.h"

#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/sysfs.h>
#include <asm/kvm_rust_mmu.h>

/* A parameter that its mode makes read-only could still be set when the module is loaded. */
static int mmu_engine_set(const char *value, const struct kernel_param *kp)
{
	pr_err("mmu_engine only says that the MMU is in Rust; it cannot be set\n");
	return -EPERM;
}

static int mmu_engine_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "rust\n");
}

static const struct kernel_param_ops mmu_engine_ops = {
	.set = mmu_engine_set,
	.get = mmu_engine_get,
};

module_param_cb(mmu_engine, &mmu_engine_ops, NULL, 0444);
MODULE_PARM_DESC(mmu_engine, "The implementation of the TDP MMU in this build (read-only)");

unsigned int kvm_rs_fault_around_pages __read_mostly;
module_param_named(fault_around_pages, kvm_rs_fault_around_pages, uint, 0644);
MODULE_PARM_DESC(fault_around_pages,
		 "How many 4 KiB pages around a fault are mapped with it, a power of two, up to 128 (0: none)");

/* Called for each VM, whether it will use the TDP MMU or not, before its MMU. */
void kvm_rs_create_vm(void)
{
	static DEFINE_MUTEX(lock);

	guard(mutex)(&lock);
	kvm_tdp_mmu_refresh_masks();
	kvm_rs_choose_clock();
	kvm_rs_init_free();
}

void kvm_rs_init_vm(struct kvm *kvm)
{
	INIT_LIST_HEAD(&kvm->arch.tdp_mmu_roots);
	spin_lock_init(&kvm->arch.tdp_mmu_pages_lock);
	kvm_rs_init_dirty_log(kvm);
}

/*
 * Whether the other address space (SMM, or not) allows a page of @level at @gfn, which
 * is in @slot. If writes to a frame of it are tracked there, it is forbidden, as in that
 * address space, and as patches/upstream/0002 has C do (kvm_gfn_is_lpage_allowed()). Pages
 * that have to stay small there don't matter here. slots_lock or kvm->srcu is held, and
 * mmu_lock.
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
		if (iter.slot->arch.lpage_info[level - PG_LEVEL_2M][at].disallow_lpage &
		    ~(KVM_RS_LPAGE_KEPT | KVM_RS_LPAGE_KEPT_2M))
			return false;
	}
	return true;
}

/*
 * Drops references to pages. The first @used may be written from now on, through SPTEs that
 * were made of them, and mmu_lock is still held if there are any: see
 * kvm_release_faultin_page(). The lookup has marked all of them referenced. They are not
 * marked accessed on top of that, as nobody has accessed them; when somebody does, aging
 * finds A in the SPTE. Neighbours are often of one folio.
 */
void kvm_rs_release_pages(struct page **pages, int used, int nr)
{
	int i, next, end;

	for (i = 0; i < nr; i = next) {
		struct folio *folio = page_folio(pages[i]);

		end = i < used ? used : nr;
		for (next = i + 1; next < end && page_folio(pages[next]) == folio; next++)
			;
		/* The flags of a reserved page are its owner's; see kvm_is_ad_tracked_page(). */
		if (i < used && !folio_test_dirty(folio) && !PageReserved(pages[i]))
			folio_set_dirty(folio);
		folio_put_refs(folio, next - i);
	}
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
ASSERT_EVENT(KVM_RS_DIRTY_TABLE, mmu_dirty_tables);
ASSERT_EVENT(KVM_RS_DIRTY_CLEAN_TABLE, mmu_dirty_clean_tables);
ASSERT_EVENT(KVM_RS_DIRTY_PAGE, mmu_dirty_pages);
ASSERT_EVENT(KVM_RS_DIRTY_CARRY, mmu_dirty_carried);
