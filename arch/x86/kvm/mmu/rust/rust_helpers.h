/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust MMU needs of KVM that C offers only as macros, inline functions
 * or static calls. sys/ wraps each of these once.
 */
#ifndef __KVM_X86_MMU_RUST_HELPERS_H
#define __KVM_X86_MMU_RUST_HELPERS_H

#include <linux/kvm_host.h>

struct kvm_mmu_page;
struct kvm_page_fault;

/* The most headers that kvm_rs_alloc_headers() allocates: as many as a page has room for. */
#define KVM_RS_HEADERS		22

/*
 * The word of sp->unsync_child_bitmap that tells where a header of the TDP MMU is: not 0 if it
 * has neighbours in a page, 0 if it is an object of mmu_page_header_cache. Word 0 is
 * Sp::full_word(), and word 1 RemovedSp::link().
 */
#define KVM_RS_NEIGHBOURS	2

/* The word that tells whose it was, when it is freed: struct kvm *. */
#define KVM_RS_OWNER		3

/* rust_shim.c: out of line, because C calls it, or it needs static storage. */
void kvm_rs_create_vm(void);
void kvm_rs_init_vm(struct kvm *kvm);
bool kvm_rs_other_slots_allow(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn,
			      int level);
void kvm_rs_release_pages(struct page **pages, int used, int nr);

/* kvm.fault_around_pages: how many pages a fault of 4 KiB may map; 0 or 1: its own */
extern unsigned int kvm_rs_fault_around_pages;

/* rust_free.c. As many pages are passed at a time at most. */
#define KVM_RS_FREE_PAGES	16

/* So many tables of a VM may wait to be freed when more are allocated for splits: 128 MiB. */
#define KVM_RS_MOST_UNUSED	32768

void kvm_rs_init_free(void);
void kvm_rs_free_pages(struct kvm_mmu_page **pages, int nr);
void kvm_rs_wait_for_free(void);

/* rust_clear_log.c */
void kvm_rs_init_dirty_log(struct kvm *kvm);
bool kvm_rs_is_clearing(struct kvm *kvm);

/* rust_dirty_log.c */
void kvm_rs_prepare_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *old,
			      const struct kvm_memory_slot *new, enum kvm_mr_change change);
void kvm_rs_carry_dirty(struct kvm *kvm, int as_id, gfn_t first, const u64 *written, int words);

/* rust_lock_stats.c */
void kvm_rs_choose_clock(void);
unsigned int kvm_rs_timed_pause_read(struct kvm *kvm, unsigned int holder);
unsigned int kvm_rs_timed_pause_write(struct kvm *kvm);
void kvm_rs_resume_hold(struct kvm *kvm, unsigned int paused);

/* exports.rs: what C does not have. */
void kvm_tdp_mmu_refresh_masks(void);
struct kvm_mmu_page *kvm_tdp_mmu_first_to_zap(struct kvm *kvm, struct kvm_mmu_page *sp);
void kvm_rs_forget_dirty_bits(struct kvm *kvm, const struct kvm_memory_slot *slot);
bool kvm_rs_start_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot);
int kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			 unsigned long *buffer);
int kvm_rs_harvest_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			     unsigned long *buffer);
int kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   u64 first_page, unsigned long words, unsigned long *buffer);
int kvm_rs_clear_dirty_range(struct kvm *kvm, const struct kvm_memory_slot *slot,
			     u64 first_page, unsigned long words, unsigned long *buffer,
			     bool accounted);
u64 kvm_rs_prefault(struct kvm_vcpu *vcpu, gfn_t gfn, u64 nr_pages);
void kvm_rs_fault_around(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault,
			 unsigned int pages);

/* Maps pages around the one that @fault has mapped, if userspace wants that. */
static inline void kvm_rs_map_around(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault)
{
	unsigned int pages = READ_ONCE(kvm_rs_fault_around_pages);

	if (unlikely(pages > 1))
		kvm_rs_fault_around(vcpu, fault, pages);
}

int kvm_rs_split_range(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
		       gfn_t end, int target_level);
int kvm_rs_recover_range(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
			 gfn_t end);

/* spte.c (hook): C's host-MMIO predicates. */
bool kvm_rs_is_host_mmio_pfn(kvm_pfn_t pfn);
void kvm_rs_track_host_mmio(struct kvm_vcpu *vcpu);

/* rust_helpers.c: inlined into the crate, see Makefile.rust. */

/* the list of roots */
bool kvm_rs_roots_empty(struct kvm *kvm);
struct kvm_mmu_page *kvm_rs_roots_next(struct kvm *kvm, struct kvm_mmu_page *prev);
void kvm_rs_roots_add(struct kvm *kvm, struct kvm_mmu_page *root);
void kvm_rs_roots_del(struct kvm_mmu_page *root);
bool kvm_rs_root_tryget(struct kvm_mmu_page *root);
bool kvm_rs_root_put(struct kvm_mmu_page *root);
void kvm_rs_root_set_count(struct kvm_mmu_page *root, int count);
bool kvm_rs_root_is_live(struct kvm_mmu_page *root);

/* memory and shadow pages */
u64 *kvm_rs_va(hpa_t hpa);
hpa_t kvm_rs_pa(u64 *spt);
int kvm_rs_pfn_to_nid(kvm_pfn_t pfn);
void kvm_rs_prefetch_entries(u64 *spt);
void kvm_rs_prefetch_table(u64 *spt);
void kvm_rs_prefetch_sp(struct kvm_mmu_page *sp);
struct kvm_mmu_page *kvm_rs_hpa_to_sp(hpa_t hpa);
struct kvm_mmu_page *kvm_rs_root_to_sp(hpa_t hpa);
void kvm_rs_bind_sp(struct kvm_mmu_page *sp);
struct kvm_mmu_page *kvm_rs_alloc_header(bool may_fail);
bool kvm_rs_alloc_headers(struct kvm_mmu_page **headers, int nr);
u64 *kvm_rs_alloc_table(int nid, bool may_fail);
void kvm_rs_free_header(struct kvm_mmu_page *sp);
void kvm_rs_free_table(void *spt);
kvm_pfn_t kvm_rs_page_to_pfn(struct page *page);
void kvm_rs_account_table(struct kvm *kvm, u64 *spt, int nr);
void kvm_rs_add_unused_tables(struct kvm *kvm, unsigned int nr);
s64 kvm_rs_unused_tables(struct kvm *kvm);
#ifdef CONFIG_KVM_PROVE_MMU
bool kvm_rs_has_tables(struct kvm *kvm);
#endif
u64 kvm_rs_base_addr_mask(void);

/* the VM */
bool kvm_rs_has_shadow_pages(struct kvm *kvm);
bool kvm_rs_tracks_writes(struct kvm *kvm);
bool kvm_rs_memslots_have_rmaps(struct kvm *kvm);
bool kvm_rs_dirty_log_initially_set(struct kvm *kvm);
bool kvm_rs_eager_page_split(void);
u64 kvm_rs_eager_split_chunk(struct kvm *kvm);
void kvm_rs_assert_srcu_held(struct kvm *kvm);
bool kvm_rs_is_guest_memfd(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn);
bool kvm_rs_is_invalidating(struct kvm *kvm, gfn_t start, gfn_t end);
void kvm_rs_update_page_stats(struct kvm *kvm, int level, int count);
bool kvm_rs_nx_huge_pages(struct kvm *kvm);
bool kvm_rs_has_mirrored_tdp(struct kvm *kvm);
bool kvm_rs_is_addr_direct(struct kvm *kvm, gpa_t gpa);
gfn_t kvm_rs_max_gfn(void);
void kvm_rs_vm_bugged(struct kvm *kvm);
int kvm_rs_set_external_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte,
			     u64 new_spte, int level);
void kvm_rs_free_external_spt(struct kvm *kvm, struct kvm_mmu_page *sp);
bool kvm_rs_has_private_mem(struct kvm *kvm);
unsigned long kvm_rs_invalidate_seq(struct kvm *kvm);
bool kvm_rs_invalidate_retry(struct kvm *kvm, unsigned long seq);
bool kvm_rs_slot_is_plain(const struct kvm_memory_slot *slot);
bool kvm_rs_slot_dirty_track_enabled(const struct kvm_memory_slot *slot);
bool kvm_rs_logs_by_dirty_bits(struct kvm *kvm);
bool kvm_rs_is_switching_dirty_log(struct kvm *kvm);
void kvm_rs_dirty_log_started(struct kvm *kvm);

/* statistics, in the order of kvm_rs_vm_stat.mmu_events */
enum kvm_rs_event {
	KVM_RS_EAGER_SPLIT,
	KVM_RS_FAULT_SPLIT,
	KVM_RS_PROMOTION,
	KVM_RS_SPLIT_NO_MEMORY,
	KVM_RS_SPLIT_NO_BUDGET,
	KVM_RS_SPLIT_LOST_RACE,
	KVM_RS_YIELD,
	KVM_RS_DIRTY_TABLE,
	KVM_RS_DIRTY_CLEAN_TABLE,
	KVM_RS_DIRTY_PAGE,
	KVM_RS_DIRTY_CARRY,
};

void kvm_rs_count_events(struct kvm *kvm, enum kvm_rs_event event, u64 n);
u64 kvm_rs_clock(void);

/* mmu_lock, and who holds it: enum kvm_mmu_holder */
void kvm_rs_read_lock(struct kvm *kvm, unsigned int holder);
void kvm_rs_read_unlock(struct kvm *kvm, unsigned int holder);
void kvm_rs_write_lock(struct kvm *kvm, unsigned int holder);
void kvm_rs_write_unlock(struct kvm *kvm);
void kvm_rs_vcpu_read_lock(struct kvm_vcpu *vcpu);
void kvm_rs_vcpu_read_unlock(struct kvm_vcpu *vcpu);
unsigned int kvm_rs_pause_read(struct kvm *kvm, unsigned int holder);
unsigned int kvm_rs_pause_write(struct kvm *kvm);
void kvm_rs_note_fault_split(struct kvm_vcpu *vcpu);

/* the vCPU */
bool kvm_rs_has_mt_mask(void);
u64 kvm_rs_mt_mask(struct kvm_vcpu *vcpu, gfn_t gfn, bool is_mmio);
u64 kvm_rs_memslots_generation(struct kvm_vcpu *vcpu);
bool kvm_rs_needs_host_mmio_tracking(struct kvm_vcpu *vcpu);
bool kvm_rs_is_rsvd_spte(struct kvm_vcpu *vcpu, u64 spte, int level);
u64 kvm_rs_rsvd_bits(struct kvm_vcpu *vcpu, u64 spte, int level);

/* the reverse map */
void kvm_rs_free_desc(void *desc);
void kvm_rs_assert_slots_locked(struct kvm *kvm);
void kvm_rs_assert_clearing(struct kvm *kvm);
#ifdef CONFIG_BUG_ON_DATA_CORRUPTION
__noreturn
#endif
void kvm_rs_vm_data_corruption(struct kvm *kvm);
struct kvm_memory_slot *kvm_rs_slot_of_sp(struct kvm *kvm, struct kvm_mmu_page *sp, gfn_t gfn);

/* tracepoints */
void kvm_rs_trace_get_page(struct kvm_mmu_page *sp);
void kvm_rs_trace_prepare_zap_page(struct kvm_mmu_page *sp);
bool kvm_rs_trace_spte_changed_enabled(void);
void kvm_rs_trace_spte_changed(int as_id, gfn_t gfn, int level, u64 old_spte, u64 new_spte);
void kvm_rs_trace_split(gfn_t gfn, u64 spte, int level, int err);
void kvm_rs_trace_promote(gfn_t gfn, u64 spte, int level, int err);
void kvm_rs_trace_harvest(int as_id, gfn_t first, gfn_t end, u64 tables, u64 pages);
void kvm_rs_trace_mark_mmio(u64 *sptep, gfn_t gfn, u64 spte);
void kvm_rs_trace_set_spte(int level, gfn_t gfn, u64 *sptep);
void kvm_rs_trace_spte_requested(struct kvm_page_fault *fault, u8 access);

#endif /* __KVM_X86_MMU_RUST_HELPERS_H */
