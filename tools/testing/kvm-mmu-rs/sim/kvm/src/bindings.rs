// SPDX-License-Identifier: GPL-2.0

//! What the generated bindings hold in the kernel: C's declarations, of both sides.
#![allow(
    non_upper_case_globals,
    clippy::missing_safety_doc,
    clippy::too_many_arguments
)]

use core::ffi::{
    c_int,
    c_uint, //
};

use kernel::ffi::c_ulong;

pub use crate::{
    helpers::*,
    model::fault::*,
    model::flush::*,
    model::memory::*,
    types::*, //
};

/// `spte.c`: the format in use.
pub static mut shadow_host_writable_mask: u64 = 0;
pub static mut shadow_mmu_writable_mask: u64 = 0;
pub static mut shadow_nx_mask: u64 = 0;
pub static mut shadow_user_mask: u64 = 0;
pub static mut shadow_xs_mask: u64 = 0;
pub static mut shadow_xu_mask: u64 = 0;
pub static mut shadow_accessed_mask: u64 = 0;
pub static mut shadow_dirty_mask: u64 = 0;
pub static mut shadow_present_mask: u64 = 0;
pub static mut shadow_me_value: u64 = 0;
pub static mut shadow_acc_track_mask: u64 = 0;
pub static mut shadow_mmio_mask: u64 = 0;
pub static mut shadow_mmio_access_mask: u64 = 0;
pub static mut shadow_nonpresent_or_rsvd_mask: u64 = 0;
pub static mut kvm_ad_enabled: bool = false;
pub static mut enable_mmio_caching: bool = true;
pub static mut tdp_mmu_enabled: bool = true;
/// `kvm.eager_page_split`.
pub static mut eager_page_split: bool = true;

// What the MMU's crate defines.
#[allow(
    improper_ctypes,
    reason = "both sides are Rust; C's layout is of no matter"
)]
extern "C" {
    pub fn kvm_tdp_mmu_refresh_masks();
    pub fn kvm_mmu_init_tdp_mmu(kvm: *mut kvm);
    pub fn kvm_mmu_uninit_tdp_mmu(kvm: *mut kvm);
    pub fn kvm_tdp_mmu_alloc_root(vcpu: *mut kvm_vcpu, mirror: bool);
    pub fn kvm_tdp_mmu_put_root(kvm: *mut kvm, root: *mut kvm_mmu_page);
    pub fn kvm_tdp_mmu_invalidate_roots(kvm: *mut kvm, types: kvm_tdp_mmu_root_types);
    pub fn kvm_tdp_mmu_zap_invalidated_roots(kvm: *mut kvm, shared: bool);
    pub fn kvm_tdp_mmu_zap_all(kvm: *mut kvm);
    pub fn kvm_tdp_mmu_zap_leafs(kvm: *mut kvm, start: gfn_t, end: gfn_t, flush: bool) -> bool;
    pub fn kvm_tdp_mmu_zap_possible_nx_huge_page(kvm: *mut kvm, sp: *mut kvm_mmu_page) -> bool;
    pub fn kvm_tdp_mmu_unmap_gfn_range(
        kvm: *mut kvm,
        range: *mut kvm_gfn_range,
        flush: bool,
    ) -> bool;
    pub fn kvm_tdp_mmu_map(vcpu: *mut kvm_vcpu, fault: *mut kvm_page_fault) -> c_int;
    pub fn kvm_rs_prefault(vcpu: *mut kvm_vcpu, gfn: gfn_t, nr_pages: u64) -> u64;
    pub fn kvm_rs_fault_around(vcpu: *mut kvm_vcpu, fault: *mut kvm_page_fault, pages: c_uint);
    pub fn kvm_tdp_mmu_age_gfn_range(kvm: *mut kvm, range: *mut kvm_gfn_range) -> bool;
    pub fn kvm_tdp_mmu_test_age_gfn(kvm: *mut kvm, range: *mut kvm_gfn_range) -> bool;
    pub fn kvm_tdp_mmu_wrprot_slot(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        min_level: c_int,
    ) -> bool;
    pub fn kvm_tdp_mmu_clear_dirty_slot(kvm: *mut kvm, slot: *const kvm_memory_slot);
    pub fn kvm_tdp_mmu_clear_dirty_pt_masked(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: gfn_t,
        mask: c_ulong,
        wrprot: bool,
    );
    pub fn kvm_tdp_mmu_write_protect_gfn(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: gfn_t,
        min_level: c_int,
    ) -> bool;
    pub fn kvm_tdp_mmu_try_split_huge_pages(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        start: gfn_t,
        end: gfn_t,
        target_level: c_int,
        shared: bool,
    );
    pub fn kvm_tdp_mmu_first_to_zap(kvm: *mut kvm, sp: *mut kvm_mmu_page) -> *mut kvm_mmu_page;
    pub fn kvm_rs_start_dirty_log(kvm: *mut kvm, slot: *const kvm_memory_slot) -> bool;
    pub fn kvm_rs_forget_dirty_bits(kvm: *mut kvm, slot: *const kvm_memory_slot);
    pub fn kvm_rs_get_dirty_log(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        buffer: *mut c_ulong,
    ) -> c_int;
    pub fn kvm_rs_clear_dirty_log(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        first_page: u64,
        words: c_ulong,
        buffer: *mut c_ulong,
    ) -> c_int;
    pub fn kvm_rs_clear_dirty_range(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        first_page: u64,
        words: c_ulong,
        buffer: *mut c_ulong,
        accounted: bool,
    ) -> c_int;
    pub fn kvm_rs_harvest_dirty_log(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        buffer: *mut c_ulong,
    ) -> c_int;
    pub fn kvm_tdp_mmu_recover_huge_pages(kvm: *mut kvm, slot: *const kvm_memory_slot);
    pub fn kvm_rs_split_range(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        start: gfn_t,
        end: gfn_t,
        target_level: c_int,
    ) -> c_int;
    pub fn kvm_rs_recover_range(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        start: gfn_t,
        end: gfn_t,
    ) -> c_int;
    pub fn kvm_tdp_mmu_get_walk(
        vcpu: *mut kvm_vcpu,
        addr: u64,
        sptes: *mut u64,
        root_level: *mut c_int,
    ) -> c_int;
    pub fn kvm_tdp_mmu_fast_pf_get_last_sptep(
        vcpu: *mut kvm_vcpu,
        gfn: gfn_t,
        spte: *mut u64,
    ) -> *mut u64;
    pub fn spte_needs_atomic_update(spte: u64) -> bool;
    pub fn make_spte(
        vcpu: *mut kvm_vcpu,
        sp: *mut kvm_mmu_page,
        slot: *const kvm_memory_slot,
        pte_access: c_uint,
        gfn: gfn_t,
        pfn: kvm_pfn_t,
        old_spte: u64,
        prefetch: bool,
        synchronizing: bool,
        host_writable: bool,
        new_spte: *mut u64,
    ) -> bool;
    pub fn make_small_spte(
        kvm: *mut kvm,
        huge_spte: u64,
        role: kvm_mmu_page_role,
        index: c_int,
    ) -> u64;
    pub fn make_huge_spte(kvm: *mut kvm, small_spte: u64, huge_level: c_int) -> u64;
    pub fn make_nonleaf_spte(child_pt: *mut u64, ad_disabled: bool) -> u64;
    pub fn make_mmio_spte(vcpu: *mut kvm_vcpu, gfn: u64, access: c_uint) -> u64;
    pub fn mark_spte_for_access_track(spte: u64) -> u64;

    pub fn kvm_rs_pte_list_add(
        kvm: *mut kvm,
        cache: *mut kvm_mmu_memory_cache,
        spte: *mut u64,
        head: *mut kvm_rmap_head,
    ) -> c_int;
    pub fn kvm_rs_pte_list_remove(kvm: *mut kvm, spte: *mut u64, head: *mut kvm_rmap_head);
    pub fn pte_list_count(head: *mut kvm_rmap_head) -> c_uint;
    pub fn kvm_rs_rmap_first(head: *mut kvm_rmap_head, iter: *mut rmap_iterator) -> *mut u64;
    pub fn kvm_rs_rmap_next(iter: *mut rmap_iterator) -> *mut u64;
    pub fn kvm_rs_rmap_add(
        kvm: *mut kvm,
        cache: *mut kvm_mmu_memory_cache,
        slot: *const kvm_memory_slot,
        spte: *mut u64,
        gfn: gfn_t,
        access: c_uint,
    );
    pub fn kvm_rs_rmap_remove(kvm: *mut kvm, spte: *mut u64);
    pub fn kvm_rs_rmap_protect_masked(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        gfn: gfn_t,
        mask: c_ulong,
        clear_dirty: bool,
    );
    pub fn kvm_rs_rmap_write_protect_slot(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        min_level: c_int,
    );
    pub fn kvm_rs_rmap_clear_dirty_slot(kvm: *mut kvm, slot: *const kvm_memory_slot);
    pub fn kvm_rs_rmap_write_protect_gfn(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        gfn: gfn_t,
        min_level: c_int,
    ) -> bool;
    pub fn kvm_rs_rmap_zap_range(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        start: gfn_t,
        end: gfn_t,
        can_yield: bool,
        flush: bool,
    ) -> bool;
    pub fn kvm_rs_rmap_split(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        start: gfn_t,
        end: gfn_t,
        target_level: c_int,
    );
    pub fn kvm_rs_rmap_zap_collapsible(kvm: *mut kvm, slot: *const kvm_memory_slot);
    pub fn kvm_rs_rmap_age(range: *mut kvm_gfn_range, test_only: bool) -> bool;
}
