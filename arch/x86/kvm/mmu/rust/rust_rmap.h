/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The reverse map, as the C of the shadow MMU sees it: the functions that
 * exports_rmap.rs has, under the names that mmu.c knows.
 *
 * mmu_lock is held for write unless stated otherwise.
 */
#ifndef __KVM_X86_MMU_RUST_RMAP_H
#define __KVM_X86_MMU_RUST_RMAP_H

#include <linux/kvm_host.h>

#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"

/* mmu.c (hook): what has static storage there. */
extern struct kmem_cache *pte_list_desc_cache;

/* mmu.c (hook): shadow pages for a split. slots_lock is held. */
bool kvm_rs_shadow_pages_left(struct kvm *kvm);
struct kvm_mmu_page *kvm_rs_get_split_sp(struct kvm *kvm, u64 *huge_sptep, gfn_t gfn,
					 unsigned int access);
void kvm_rs_link_sp(struct kvm *kvm, u64 *sptep, struct kvm_mmu_page *sp, bool flush);

/* A place in a list, opaque to C. */
struct rmap_iterator {
	void *desc;
	u32 index;
};

int kvm_rs_pte_list_add(struct kvm *kvm, struct kvm_mmu_memory_cache *cache,
			u64 *spte, struct kvm_rmap_head *head);
void kvm_rs_pte_list_remove(struct kvm *kvm, u64 *spte, struct kvm_rmap_head *head);
u64 *kvm_rs_rmap_first(struct kvm_rmap_head *head, struct rmap_iterator *iter);
u64 *kvm_rs_rmap_next(struct rmap_iterator *iter);
void kvm_rs_rmap_add(struct kvm *kvm, struct kvm_mmu_memory_cache *cache,
		     const struct kvm_memory_slot *slot, u64 *spte, gfn_t gfn,
		     unsigned int access);
void kvm_rs_rmap_remove(struct kvm *kvm, u64 *spte);
void kvm_rs_rmap_protect_masked(struct kvm *kvm, const struct kvm_memory_slot *slot,
				gfn_t gfn, unsigned long mask, bool clear_dirty);
/* These two yield; the caller flushes. */
void kvm_rs_rmap_write_protect_slot(struct kvm *kvm, const struct kvm_memory_slot *slot,
				    int min_level);
void kvm_rs_rmap_clear_dirty_slot(struct kvm *kvm, const struct kvm_memory_slot *slot);
bool kvm_rs_rmap_write_protect_gfn(struct kvm *kvm, const struct kvm_memory_slot *slot,
				   gfn_t gfn, int min_level);
bool kvm_rs_rmap_zap_range(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   gfn_t start, gfn_t end, bool can_yield, bool flush);
void kvm_rs_rmap_zap_collapsible(struct kvm *kvm, const struct kvm_memory_slot *slot);
/* Yields, and drops the lock to allocate; slots_lock is held. */
void kvm_rs_rmap_split(struct kvm *kvm, const struct kvm_memory_slot *slot,
		       gfn_t start, gfn_t end, int target_level);
/* No lock is held. */
bool kvm_rs_rmap_age(struct kvm_gfn_range *range, bool test_only);

#ifndef __BINDGEN__
static inline int pte_list_add(struct kvm *kvm, struct kvm_mmu_memory_cache *cache,
			       u64 *spte, struct kvm_rmap_head *head)
{
	return kvm_rs_pte_list_add(kvm, cache, spte, head);
}

static inline void pte_list_remove(struct kvm *kvm, u64 *spte, struct kvm_rmap_head *head)
{
	kvm_rs_pte_list_remove(kvm, spte, head);
}

static inline void rmap_remove(struct kvm *kvm, u64 *spte)
{
	kvm_rs_rmap_remove(kvm, spte);
}

static inline void rmap_add(struct kvm_vcpu *vcpu, const struct kvm_memory_slot *slot,
			    u64 *spte, gfn_t gfn, unsigned int access)
{
	kvm_rs_rmap_add(vcpu->kvm, &vcpu->arch.mmu_pte_list_desc_cache, slot, spte, gfn, access);
}

static inline u64 *rmap_get_first(struct kvm_rmap_head *head, struct rmap_iterator *iter)
{
	return kvm_rs_rmap_first(head, iter);
}

static inline u64 *rmap_get_next(struct rmap_iterator *iter)
{
	return kvm_rs_rmap_next(iter);
}

static inline void kvm_mmu_write_protect_pt_masked(struct kvm *kvm, struct kvm_memory_slot *slot,
						   gfn_t gfn_offset, unsigned long mask)
{
	gfn_t gfn = slot->base_gfn + gfn_offset;

	if (tdp_mmu_enabled)
		kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, gfn, mask, true);
	if (kvm_memslots_have_rmaps(kvm))
		kvm_rs_rmap_protect_masked(kvm, slot, gfn, mask, false);
}

static inline void kvm_mmu_clear_dirty_pt_masked(struct kvm *kvm, struct kvm_memory_slot *slot,
						 gfn_t gfn_offset, unsigned long mask)
{
	gfn_t gfn = slot->base_gfn + gfn_offset;

	if (tdp_mmu_enabled)
		kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, gfn, mask, false);
	if (kvm_memslots_have_rmaps(kvm))
		kvm_rs_rmap_protect_masked(kvm, slot, gfn, mask, true);
}

static inline bool __kvm_rmap_zap_gfn_range(struct kvm *kvm, const struct kvm_memory_slot *slot,
					    gfn_t start, gfn_t end, bool can_yield, bool flush)
{
	return kvm_rs_rmap_zap_range(kvm, slot, start, end, can_yield, flush);
}

static inline bool kvm_rmap_age_gfn_range(struct kvm *kvm, struct kvm_gfn_range *range,
					  bool test_only)
{
	return kvm_rs_rmap_age(range, test_only);
}

static inline void kvm_shadow_mmu_try_split_huge_pages(struct kvm *kvm,
						       const struct kvm_memory_slot *slot,
						       gfn_t start, gfn_t end, int target_level)
{
	kvm_rs_rmap_split(kvm, slot, start, end, target_level);
}

static inline void kvm_rmap_zap_collapsible_sptes(struct kvm *kvm,
						  const struct kvm_memory_slot *slot)
{
	kvm_rs_rmap_zap_collapsible(kvm, slot);
}
#endif /* !__BINDGEN__ */

#endif /* __KVM_X86_MMU_RUST_RMAP_H */
