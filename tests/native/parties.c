// SPDX-License-Identifier: GPL-2.0
/*
 * What mmu.c and kvm_main.c do for a fault and for an MMU notifier, for a VM without
 * shadow pages, private memory and access tracking. Compiled once for each MMU, as
 * their struct kvm differ, by the name of the MMU's functions.
 */
#include <linux/kvm_host.h>

#ifdef CONFIG_KVM_RUST_MMU
#define MMU(name)	r_##name
#else
#define MMU(name)	c_##name
#endif

/* spte.h has it as a variable, of which each MMU has its own. */
#define shadow_mmu_writable_mask	MMU(shadow_mmu_writable_mask)

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"

#include "native.h"
#include "vm.h"

typeof(kvm_tdp_mmu_map) c_kvm_tdp_mmu_map, r_kvm_tdp_mmu_map;
typeof(kvm_tdp_mmu_fast_pf_get_last_sptep) c_kvm_tdp_mmu_fast_pf_get_last_sptep,
	r_kvm_tdp_mmu_fast_pf_get_last_sptep;
typeof(kvm_tdp_mmu_unmap_gfn_range) c_kvm_tdp_mmu_unmap_gfn_range,
	r_kvm_tdp_mmu_unmap_gfn_range;

/* fast_page_fault(): a write to a present page. */
static bool fault_fast(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault)
{
	bool fixed = false;
	u64 spte, *sptep;

	kvm_tdp_mmu_walk_lockless_begin();
	sptep = MMU(kvm_tdp_mmu_fast_pf_get_last_sptep)(vcpu, fault->gfn, &spte);
	while (is_shadow_present_pte(spte)) {
		int level = sptep_to_sp(sptep)->role.level;

		if (!is_last_spte(spte, level) || !is_mmu_writable_spte(spte))
			break;
		/* Somebody else was faster. */
		fixed = is_writable_pte(spte);
		if (fixed)
			break;
		/* It has to be split. */
		if (level > PG_LEVEL_4K && kvm_slot_dirty_track_enabled(fault->slot))
			break;
		fixed = try_cmpxchg64(sptep, &spte, spte | PT_WRITABLE_MASK);
		if (fixed) {
			mark_page_dirty_in_slot(vcpu->kvm, fault->slot, fault->gfn);
			break;
		}
	}
	kvm_tdp_mmu_walk_lockless_end();
	return fixed;
}

/* kvm_tdp_mmu_page_fault(), once. Whether it worked is for the guest to see. */
int MMU(party_fault)(struct vm *vm, struct kvm_vcpu *vcpu, gfn_t gfn, bool present)
{
	struct kvm_page_fault fault = {
		.addr = gfn << PAGE_SHIFT,
		.error_code = PFERR_WRITE_MASK | (present ? PFERR_PRESENT_MASK : 0),
		.write = true,
		.present = present,
		.is_tdp = true,
		.max_level = KVM_MAX_HUGEPAGE_LEVEL,
		.req_level = PG_LEVEL_4K,
		.goal_level = PG_LEVEL_4K,
		.gfn = gfn,
		/* Pairs with set_flags(). */
		.slot = smp_load_acquire(&vm->slot),
		.map_writable = true,
	};
	struct kvm *kvm = vm->kvm;

	if (present && fault_fast(vcpu, &fault))
		return NATIVE_FAST_FAULT;

	kernel_topup(vcpu);

	/* kvm_mmu_faultin_pfn() */
	fault.mmu_seq = READ_ONCE(kvm->mmu_invalidate_seq);
	/* Before the host's page; pairs with the end of a notifier. */
	smp_rmb();
	if (mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, gfn))
		return NATIVE_SLOW_FAULT;
	fault.pfn = FIRST_PFN + (gfn - FIRST_GFN);

	read_lock(&kvm->mmu_lock);
	if (!mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, gfn))
		MMU(kvm_tdp_mmu_map)(vcpu, &fault);
	read_unlock(&kvm->mmu_lock);
	return NATIVE_SLOW_FAULT;
}

static void begin(struct kvm *kvm, gfn_t start, gfn_t end)
{
	if (!kvm->mmu_invalidate_in_progress++) {
		kvm->mmu_invalidate_range_start = start;
		kvm->mmu_invalidate_range_end = end;
	} else {
		kvm->mmu_invalidate_range_start = min(kvm->mmu_invalidate_range_start, start);
		kvm->mmu_invalidate_range_end = max(kvm->mmu_invalidate_range_end, end);
	}
}

/* kvm_mmu_notifier_invalidate_range_start() and _end(). An empty range is in no slot. */
void MMU(party_notifier)(struct vm *vm, gfn_t start, gfn_t end)
{
	struct kvm *kvm = vm->kvm;
	struct kvm_gfn_range range = {
		/* Pairs with set_flags(). */
		.slot = smp_load_acquire(&vm->slot),
		.start = start,
		.end = end,
		.attr_filter = KVM_FILTER_SHARED,
		.may_block = true,
	};

	spin_lock(&kvm->mn_invalidate_lock);
	kvm->mn_active_invalidate_count++;
	spin_unlock(&kvm->mn_invalidate_lock);

	if (start < end) {
		write_lock(&kvm->mmu_lock);
		begin(kvm, start, end);
		if (MMU(kvm_tdp_mmu_unmap_gfn_range)(kvm, &range, false))
			kvm_flush_remote_tlbs(kvm);
		write_unlock(&kvm->mmu_lock);

		write_lock(&kvm->mmu_lock);
		kvm->mmu_invalidate_seq++;
		/* Pairs with party_fault(), as in kvm_mmu_invalidate_end(). */
		smp_wmb();
		kvm->mmu_invalidate_in_progress--;
		write_unlock(&kvm->mmu_lock);
	}

	spin_lock(&kvm->mn_invalidate_lock);
	kvm->mn_active_invalidate_count--;
	spin_unlock(&kvm->mn_invalidate_lock);
}
