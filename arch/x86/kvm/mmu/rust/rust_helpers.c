// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of rust_helpers.h, in its order. One line of C behind each: whatever
 * takes a decision is Rust.
 */
#include "rust_bindings.h"
#include "rust_header.h"
#include "mmu/mmutrace.h"
#include "mmu/page_track.h"

#include <linux/rculist.h>
#include <linux/sched/clock.h>
#include <asm/kvm_mmu_lock.h>

#ifdef KVM_RS_INLINE_HELPERS
/* See rust/helpers/helpers.c: overrides LLVM's cross-language inlining checks. */
#define __kvm_rs __always_inline
#else
#define __kvm_rs
#endif

#define __rust_support __kvm_rs
#include "../../../../../rust/support/helpers.c"

__kvm_rs bool kvm_rs_roots_empty(struct kvm *kvm)
{
	return list_empty(&kvm->arch.tdp_mmu_roots);
}

__kvm_rs struct kvm_mmu_page *kvm_rs_roots_next(struct kvm *kvm, struct kvm_mmu_page *prev)
{
	struct list_head *head = &kvm->arch.tdp_mmu_roots;

	return list_next_or_null_rcu(head, prev ? &prev->link : head,
				     struct kvm_mmu_page, link);
}

__kvm_rs void kvm_rs_roots_add(struct kvm *kvm, struct kvm_mmu_page *root)
{
	list_add_rcu(&root->link, &kvm->arch.tdp_mmu_roots);
}

__kvm_rs void kvm_rs_roots_del(struct kvm_mmu_page *root)
{
	list_del_rcu(&root->link);
}

__kvm_rs bool kvm_rs_root_tryget(struct kvm_mmu_page *root)
{
	return kvm_tdp_mmu_get_root(root);
}

__kvm_rs bool kvm_rs_root_put(struct kvm_mmu_page *root)
{
	return refcount_dec_and_test(&root->tdp_mmu_root_count);
}

__kvm_rs void kvm_rs_root_set_count(struct kvm_mmu_page *root, int count)
{
	refcount_set(&root->tdp_mmu_root_count, count);
}

__kvm_rs bool kvm_rs_root_is_live(struct kvm_mmu_page *root)
{
	return refcount_read(&root->tdp_mmu_root_count);
}

__kvm_rs u64 *kvm_rs_va(hpa_t hpa)
{
	return __va(hpa);
}

__kvm_rs hpa_t kvm_rs_pa(u64 *spt)
{
	return __pa(spt);
}

__kvm_rs int kvm_rs_pfn_to_nid(kvm_pfn_t pfn)
{
	return pfn_valid(pfn) ? page_to_nid(pfn_to_page(pfn)) : NUMA_NO_NODE;
}

__kvm_rs void kvm_rs_prefetch_entries(u64 *spt)
{
	prefetchw(spt);
	prefetchw(spt + 8);
	prefetchw(spt + 16);
	prefetchw(spt + 24);
}

__kvm_rs void kvm_rs_prefetch_table(u64 *spt)
{
	prefetch(spt);
	prefetch(virt_to_page(spt));
}

__kvm_rs void kvm_rs_prefetch_sp(struct kvm_mmu_page *sp)
{
	prefetch(&sp->role);
	prefetchw(sp->unsync_child_bitmap);
}

__kvm_rs struct kvm_mmu_page *kvm_rs_hpa_to_sp(hpa_t hpa)
{
	return to_shadow_page(hpa);
}

__kvm_rs struct kvm_mmu_page *kvm_rs_root_to_sp(hpa_t hpa)
{
	return root_to_sp(hpa);
}

__kvm_rs void kvm_rs_bind_sp(struct kvm_mmu_page *sp)
{
	INIT_LIST_HEAD(&sp->possible_nx_huge_page_link);
	set_page_private(virt_to_page(sp->spt), (unsigned long)sp);
}

/*
 * Where the limit of a memory cgroup is reached, GFP_KERNEL_ACCOUNT has the OOM killer look for
 * a task. @may_fail: rather not; __GFP_RETRY_MAYFAIL still reclaims what it can.
 */
static __always_inline gfp_t gfp_for_table(bool may_fail)
{
	return may_fail ? GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN :
			  GFP_KERNEL_ACCOUNT;
}

__kvm_rs struct kvm_mmu_page *kvm_rs_alloc_header(bool may_fail)
{
	return kmem_cache_zalloc(mmu_page_header_cache, gfp_for_table(may_fail));
}

/*
 * Headers for @nr tables, KVM_RS_HEADERS at most, all in one page. Each holds a reference on the
 * page. A memory cgroup is charged for the page as a whole; for objects of a slab cache it is
 * charged and uncharged one by one, which is a quarter of what freeing a table takes. If there is
 * no such page at hand, the caller takes headers of the slab cache. With KASAN it always does, as
 * KASAN sees that an object is used after it was freed, but not a part of a page.
 */
__kvm_rs bool kvm_rs_alloc_headers(struct kvm_mmu_page **headers, int nr)
{
	struct kvm_mmu_page *sp;
	struct page *page;
	int i;

	BUILD_BUG_ON(KVM_RS_HEADERS * sizeof(*sp) > PAGE_SIZE);
	if (IS_ENABLED(CONFIG_KASAN))
		return false;
	page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);
	if (!page)
		return false;

	sp = page_address(page);
	for (i = 0; i < nr; i++) {
		memset(&sp[i], 0, sizeof(*sp));
		sp[i].unsync_child_bitmap[KVM_RS_NEIGHBOURS] = 1;
		headers[i] = &sp[i];
	}
	page_ref_add(page, nr - 1);
	return true;
}

__kvm_rs u64 *kvm_rs_alloc_table(int nid, bool may_fail)
{
	struct page *page = alloc_pages_node(nid, gfp_for_table(may_fail), 0);

	return page ? page_address(page) : NULL;
}

__kvm_rs void kvm_rs_free_header(struct kvm_mmu_page *sp)
{
	if (!kvm_rs_free_neighbour(sp))
		kmem_cache_free(mmu_page_header_cache, sp);
}

__kvm_rs void kvm_rs_free_table(void *spt)
{
	free_page((unsigned long)spt);
}

__kvm_rs kvm_pfn_t kvm_rs_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

__kvm_rs void kvm_rs_account_table(struct kvm *kvm, u64 *spt, int nr)
{
	kvm_account_pgtable_pages(spt, nr);
#ifdef CONFIG_KVM_PROVE_MMU
	atomic64_add(nr, &kvm->arch.tdp_mmu_pages);
#endif
}

__kvm_rs void kvm_rs_add_unused_tables(struct kvm *kvm, unsigned int nr)
{
	atomic64_add(nr, &kvm->rs_stat.mmu_unused_tables);
}

__kvm_rs s64 kvm_rs_unused_tables(struct kvm *kvm)
{
	return atomic64_read(&kvm->rs_stat.mmu_unused_tables);
}

#ifdef CONFIG_KVM_PROVE_MMU
__kvm_rs bool kvm_rs_has_tables(struct kvm *kvm)
{
	return atomic64_read(&kvm->arch.tdp_mmu_pages);
}
#endif

__kvm_rs u64 kvm_rs_base_addr_mask(void)
{
	return SPTE_BASE_ADDR_MASK;
}

__kvm_rs bool kvm_rs_has_shadow_pages(struct kvm *kvm)
{
	return !tdp_mmu_enabled || !list_empty(&kvm->arch.active_mmu_pages);
}

__kvm_rs bool kvm_rs_tracks_writes(struct kvm *kvm)
{
	return kvm_page_track_write_tracking_enabled(kvm);
}

__kvm_rs bool kvm_rs_memslots_have_rmaps(struct kvm *kvm)
{
	return kvm_memslots_have_rmaps(kvm);
}

__kvm_rs bool kvm_rs_dirty_log_initially_set(struct kvm *kvm)
{
	return kvm_dirty_log_manual_protect_and_init_set(kvm);
}

__kvm_rs bool kvm_rs_eager_page_split(void)
{
	return READ_ONCE(eager_page_split);
}

__kvm_rs u64 kvm_rs_eager_split_chunk(struct kvm *kvm)
{
	return READ_ONCE(kvm->rs_dirty_log.eager_split_chunk);
}

__kvm_rs void kvm_rs_assert_srcu_held(struct kvm *kvm)
{
	RCU_LOCKDEP_WARN(!srcu_read_lock_held(&kvm->srcu), "kvm->srcu is not held");
}

__kvm_rs bool kvm_rs_is_guest_memfd(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return kvm_memslot_is_gmem_only(slot) || kvm_mem_is_private(kvm, gfn);
}

__kvm_rs bool kvm_rs_is_invalidating(struct kvm *kvm, gfn_t start, gfn_t end)
{
	return kvm->mmu_invalidate_in_progress && start < kvm->mmu_invalidate_range_end &&
	       end > kvm->mmu_invalidate_range_start;
}

__kvm_rs void kvm_rs_update_page_stats(struct kvm *kvm, int level, int count)
{
	kvm_update_page_stats(kvm, level, count);
}

__kvm_rs bool kvm_rs_nx_huge_pages(struct kvm *kvm)
{
	return is_nx_huge_page_enabled(kvm);
}

__kvm_rs bool kvm_rs_has_mirrored_tdp(struct kvm *kvm)
{
	return kvm_has_mirrored_tdp(kvm);
}

__kvm_rs bool kvm_rs_is_addr_direct(struct kvm *kvm, gpa_t gpa)
{
	return kvm_is_addr_direct(kvm, gpa);
}

__kvm_rs gfn_t kvm_rs_max_gfn(void)
{
	return kvm_mmu_max_gfn();
}

__kvm_rs void kvm_rs_vm_bugged(struct kvm *kvm)
{
	KVM_BUG_ON(true, kvm);
}

__kvm_rs int kvm_rs_set_external_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte,
				      u64 new_spte, int level)
{
	return kvm_x86_call(set_external_spte)(kvm, gfn, old_spte, new_spte, level);
}

__kvm_rs void kvm_rs_free_external_spt(struct kvm *kvm, struct kvm_mmu_page *sp)
{
	kvm_x86_call(free_external_spt)(kvm, sp);
}

__kvm_rs bool kvm_rs_has_private_mem(struct kvm *kvm)
{
	return kvm_arch_has_private_mem(kvm);
}

__kvm_rs unsigned long kvm_rs_invalidate_seq(struct kvm *kvm)
{
	unsigned long seq = READ_ONCE(kvm->mmu_invalidate_seq);

	/* Pairs with the barrier in kvm_mmu_invalidate_end(), as in kvm_mmu_faultin_pfn(). */
	smp_rmb();
	return seq;
}

__kvm_rs bool kvm_rs_invalidate_retry(struct kvm *kvm, unsigned long seq)
{
	return mmu_invalidate_retry(kvm, seq);
}

__kvm_rs bool kvm_rs_slot_is_plain(const struct kvm_memory_slot *slot)
{
	return slot->id != APIC_ACCESS_PAGE_PRIVATE_MEMSLOT && !kvm_slot_has_gmem(slot);
}

__kvm_rs bool kvm_rs_slot_dirty_track_enabled(const struct kvm_memory_slot *slot)
{
	return kvm_slot_dirty_track_enabled(slot);
}

__kvm_rs bool kvm_rs_logs_by_dirty_bits(struct kvm *kvm)
{
	/* Pairs with kvm_rs_prepare_dirty_log(): whoever sees it set sees switching, too. */
	return smp_load_acquire(&kvm->rs_dirty_log.dirty_bits) && !kvm->dirty_ring_size;
}

__kvm_rs bool kvm_rs_is_switching_dirty_log(struct kvm *kvm)
{
	return READ_ONCE(kvm->rs_dirty_log.switching);
}

__kvm_rs void kvm_rs_dirty_log_started(struct kvm *kvm)
{
	WRITE_ONCE(kvm->rs_dirty_log.starting, NULL);
}

__kvm_rs void kvm_rs_count_events(struct kvm *kvm, enum kvm_rs_event event, u64 n)
{
	atomic64_add(n, &kvm->rs_stat.mmu_events[event]);
}

__kvm_rs u64 kvm_rs_clock(void)
{
	return local_clock();
}

__kvm_rs void kvm_rs_read_lock(struct kvm *kvm, unsigned int holder)
{
	kvm_mmu_read_lock(kvm, holder);
}

__kvm_rs void kvm_rs_read_unlock(struct kvm *kvm, unsigned int holder)
{
	kvm_mmu_read_unlock(kvm, holder);
}

__kvm_rs void kvm_rs_write_lock(struct kvm *kvm, unsigned int holder)
{
	kvm_mmu_write_lock(kvm, holder);
}

__kvm_rs void kvm_rs_write_unlock(struct kvm *kvm)
{
	kvm_mmu_write_unlock(kvm);
}

__kvm_rs void kvm_rs_vcpu_read_lock(struct kvm_vcpu *vcpu)
{
	kvm_mmu_fault_read_lock(vcpu);
}

__kvm_rs void kvm_rs_vcpu_read_unlock(struct kvm_vcpu *vcpu)
{
	kvm_mmu_fault_read_unlock(vcpu);
}

__kvm_rs unsigned int kvm_rs_pause_read(struct kvm *kvm, unsigned int holder)
{
	if (static_branch_unlikely(&kvm_mmu_lock_stats))
		return kvm_rs_timed_pause_read(kvm, holder);
	return 0;
}

__kvm_rs unsigned int kvm_rs_pause_write(struct kvm *kvm)
{
	if (static_branch_unlikely(&kvm_mmu_lock_stats))
		return kvm_rs_timed_pause_write(kvm);
	return 0;
}

__kvm_rs void kvm_rs_note_fault_split(struct kvm_vcpu *vcpu)
{
	vcpu->rs_fault.split = true;
}

__kvm_rs bool kvm_rs_has_mt_mask(void)
{
	return kvm_x86_ops.get_mt_mask;
}

__kvm_rs u64 kvm_rs_mt_mask(struct kvm_vcpu *vcpu, gfn_t gfn, bool is_mmio)
{
	return kvm_x86_call(get_mt_mask)(vcpu, gfn, is_mmio);
}

__kvm_rs u64 kvm_rs_memslots_generation(struct kvm_vcpu *vcpu)
{
	return kvm_vcpu_memslots(vcpu)->generation;
}

__kvm_rs bool kvm_rs_needs_host_mmio_tracking(struct kvm_vcpu *vcpu)
{
	return cpu_feature_enabled(X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO) &&
	       !kvm_vcpu_can_access_host_mmio(vcpu);
}

__kvm_rs bool kvm_rs_is_rsvd_spte(struct kvm_vcpu *vcpu, u64 spte, int level)
{
	return is_rsvd_spte(&vcpu->arch.mmu->fmt, spte, level);
}

__kvm_rs u64 kvm_rs_rsvd_bits(struct kvm_vcpu *vcpu, u64 spte, int level)
{
	return get_rsvd_bits(&vcpu->arch.mmu->fmt, spte, level);
}

__kvm_rs void kvm_rs_free_desc(void *desc)
{
	kmem_cache_free(pte_list_desc_cache, desc);
}

__kvm_rs void kvm_rs_assert_slots_locked(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);
	KVM_MMU_WARN_ON(kvm_rs_is_clearing(kvm));
}

__kvm_rs void kvm_rs_assert_clearing(struct kvm *kvm)
{
	lockdep_assert(lock_is_held(&kvm->rs_dirty_log.clears_map));
}

__kvm_rs void kvm_rs_vm_data_corruption(struct kvm *kvm)
{
	KVM_BUG_ON_DATA_CORRUPTION(true, kvm);
}

__kvm_rs struct kvm_memory_slot *kvm_rs_slot_of_sp(struct kvm *kvm, struct kvm_mmu_page *sp,
						   gfn_t gfn)
{
	return __gfn_to_memslot(kvm_memslots_for_spte_role(kvm, sp->role), gfn);
}

__kvm_rs void kvm_rs_trace_get_page(struct kvm_mmu_page *sp)
{
	trace_kvm_mmu_get_page(sp, true);
}

__kvm_rs void kvm_rs_trace_prepare_zap_page(struct kvm_mmu_page *sp)
{
	trace_kvm_mmu_prepare_zap_page(sp);
}

__kvm_rs bool kvm_rs_trace_spte_changed_enabled(void)
{
	return trace_kvm_tdp_mmu_spte_changed_enabled();
}

__kvm_rs void kvm_rs_trace_spte_changed(int as_id, gfn_t gfn, int level, u64 old_spte, u64 new_spte)
{
	trace_kvm_tdp_mmu_spte_changed(as_id, gfn, level, old_spte, new_spte);
}

__kvm_rs void kvm_rs_trace_split(gfn_t gfn, u64 spte, int level, int err)
{
	trace_kvm_mmu_split_huge_page(gfn, spte, level, err);
}

__kvm_rs void kvm_rs_trace_promote(gfn_t gfn, u64 spte, int level, int err)
{
	trace_kvm_mmu_promote_huge_page(gfn, spte, level, err);
}

__kvm_rs void kvm_rs_trace_harvest(int as_id, gfn_t first, gfn_t end, u64 tables, u64 pages)
{
	trace_kvm_mmu_harvest_dirty_bits(as_id, first, end, tables, pages);
}

__kvm_rs void kvm_rs_trace_mark_mmio(u64 *sptep, gfn_t gfn, u64 spte)
{
	trace_mark_mmio_spte(sptep, gfn, spte);
}

__kvm_rs void kvm_rs_trace_set_spte(int level, gfn_t gfn, u64 *sptep)
{
	trace_kvm_mmu_set_spte(level, gfn, sptep);
}

__kvm_rs void kvm_rs_trace_spte_requested(struct kvm_page_fault *fault, u8 access)
{
	trace_kvm_mmu_spte_requested(fault, access);
}
