// SPDX-License-Identifier: GPL-2.0

//! Memory: caches, mapping levels, the dirty bitmap, the lists that pages are in.
#![allow(clippy::missing_safety_doc)]

use core::ffi::{c_int, c_void};

use machine::{chance, fail, lock::may_sleep, mem, note};

use super::{field, HUGE_PAGES};
use crate::types::*;

/// What a table of the vCPU's cache is full of: `SHADOW_NONPRESENT_VALUE`.
const NONPRESENT: u64 = 1 << 63;
/// `PT64_ROOT_MAX_LEVEL`.
const ENOUGH: usize = 5;

/// Models `mmu_topup_memory_caches()`. False: there is no memory.
pub fn topup_memory_caches(vcpu: *mut kvm_vcpu) -> bool {
    let kvm = *field!(vcpu, kvm);

    may_sleep("mmu_topup_memory_caches()");
    while field!(vcpu, arch.mmu_shadow_page_cache).objects.len() < ENOUGH {
        if chance(field!(kvm, odds).no_memory * 4) {
            return false;
        }
        let table = mem::alloc_table(0);
        for n in 0..HUGE_PAGES as usize {
            // SAFETY: the table has as many entries, and is ours.
            unsafe { table.add(n).write(NONPRESENT) };
        }
        let table = table as usize;
        field!(vcpu, arch.mmu_shadow_page_cache).objects.push(table);
    }
    while field!(vcpu, arch.mmu_page_header_cache).objects.len() < ENOUGH {
        let header = mem::alloc_header() as usize;
        field!(vcpu, arch.mmu_page_header_cache)
            .objects
            .push(header);
    }
    true
}

/// Models `mmu_free_memory_caches()`.
pub fn free_memory_caches(vcpu: *mut kvm_vcpu) {
    for table in core::mem::take(&mut field!(vcpu, arch.mmu_shadow_page_cache).objects) {
        mem::free_table(table as *mut u64);
    }
    for header in core::mem::take(&mut field!(vcpu, arch.mmu_page_header_cache).objects) {
        mem::free_header(header as *mut u8);
    }
}

/// Models `kvm_mmu_memory_cache_alloc()`; an empty cache fails the run, as it warns.
pub unsafe fn kvm_mmu_memory_cache_alloc(cache: *mut kvm_mmu_memory_cache) -> *mut c_void {
    match field!(cache, objects).pop() {
        Some(object) => object as *mut c_void,
        None => fail("the vCPU's memory cache is empty".into()),
    }
}

pub unsafe fn __kvm_mmu_topup_memory_cache(
    _cache: *mut kvm_mmu_memory_cache,
    _capacity: c_int,
    _min: c_int,
) -> c_int {
    fail("no VM has shadow pages".into())
}

pub unsafe fn kvm_mmu_topup_memory_cache(_cache: *mut kvm_mmu_memory_cache, _min: c_int) -> c_int {
    fail("no VM has shadow pages".into())
}

pub unsafe fn mmu_try_to_unsync_pages(
    _kvm: *mut kvm,
    _slot: *const kvm_memory_slot,
    _gfn: gfn_t,
    _synchronizing: bool,
    _prefetch: bool,
) -> c_int {
    0
}

/// Models `kvm_mmu_max_mapping_level()`, without private memory and attributes.
pub unsafe fn kvm_mmu_max_mapping_level(
    kvm: *mut kvm,
    _fault: *mut kvm_page_fault,
    slot: *const kvm_memory_slot,
    gfn: gfn_t,
) -> c_int {
    field!(kvm, mmu_lock).assert_held();
    let start = gfn - gfn % HUGE_PAGES;
    // SAFETY: the slot exists.
    let (base, npages) = unsafe { ((*slot).base_gfn, (*slot).npages as u64) };

    if gfn < base || gfn >= base + npages {
        fail(format!(
            "asks for the level of gfn {gfn:#x}, which is not in the slot"
        ));
    }
    // `disallow_lpage`: a huge page may not reach beyond the slot.
    if start < base || start + HUGE_PAGES > base + npages {
        return 1;
    }
    machine::sched::point_on(super::HOST, false);
    let level = field!(kvm, host).level(gfn);
    note("host maps by level", [gfn, level.into(), 0]);
    level.into()
}

/// Models `kvm_mmu_hugepage_adjust()`.
pub unsafe fn kvm_mmu_hugepage_adjust(vcpu: *mut kvm_vcpu, fault: *mut kvm_page_fault) {
    let kvm = *field!(vcpu, kvm);
    // SAFETY: only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    f.huge_page_disallowed = f.exec && f.nx_huge_page_workaround_enabled;
    if f.max_level == 1 || f.slot.is_null() {
        return;
    }
    if *field!(f.slot, flags) & KVM_MEM_LOG_DIRTY_PAGES != 0 {
        return;
    }
    // SAFETY: the fault's slot exists.
    let level = unsafe { kvm_mmu_max_mapping_level(kvm, fault, f.slot, f.gfn) } as u8;
    // SAFETY: only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    f.req_level = level;
    if level == 1 || f.huge_page_disallowed {
        return;
    }
    f.goal_level = level;
    let mask = HUGE_PAGES - 1;
    if f.gfn & mask != f.pfn & mask {
        fail("VM_BUG_ON() in kvm_mmu_hugepage_adjust(): the frames are not aligned".into());
    }
    f.pfn &= !mask;
}

/// Models `disallowed_hugepage_adjust()`.
pub unsafe fn disallowed_hugepage_adjust(fault: *mut kvm_page_fault, spte: u64, cur_level: c_int) {
    const MMU_PRESENT: u64 = 1 << 11;
    const LARGE: u64 = 1 << 7;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    // SAFETY: only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    if cur_level > 1
        && cur_level == i32::from(f.goal_level)
        && spte & MMU_PRESENT != 0
        && spte & LARGE == 0
    {
        // SAFETY: the entry points to a table.
        let sp = unsafe { crate::helpers::kvm_rs_hpa_to_sp(spte & FRAME) };
        if *field!(sp, nx_huge_page_disallowed) {
            let mask = HUGE_PAGES.pow(cur_level as u32 - 1) - HUGE_PAGES.pow(cur_level as u32 - 2);
            f.pfn |= f.gfn & mask;
            f.goal_level -= 1;
        }
    }
}

/// Models `mark_page_dirty_in_slot()`, with a bitmap.
pub unsafe fn mark_page_dirty_in_slot(_kvm: *mut kvm, slot: *const kvm_memory_slot, gfn: gfn_t) {
    let slot = slot.cast_mut();

    if slot.is_null() || *field!(slot, flags) & KVM_MEM_LOG_DIRTY_PAGES == 0 {
        return;
    }
    let n = gfn.wrapping_sub(*field!(slot, base_gfn)) as usize;
    if n >= *field!(slot, npages) {
        fail(format!(
            "marks gfn {gfn:#x} dirty, which is not in the slot"
        ));
    }
    let bitmap = *field!(slot, dirty_bitmap);
    // SAFETY: the bitmap has a bit for each page.
    let word = unsafe { bitmap.add(n / 64) };
    mem::update("set bit", word.cast::<u64>(), |old| {
        Some(old | 1 << (n % 64))
    });
    note("mark dirty", [gfn, 0, 0]);
}

/// Models `track_possible_nx_huge_page()`.
pub unsafe fn track_possible_nx_huge_page(
    kvm: *mut kvm,
    sp: *mut kvm_mmu_page,
    _mmu_type: kvm_mmu_type,
) {
    field!(kvm, arch.tdp_mmu_pages_lock).assert_held("possible_nx_huge_pages");
    mem::check(sp as usize, "track NX huge page");
    if !*field!(sp, on_nx_list) {
        *field!(sp, on_nx_list) = true;
        field!(kvm, arch.possible_nx_huge_pages).push(sp);
    }
}

/// Models `untrack_possible_nx_huge_page()`.
pub unsafe fn untrack_possible_nx_huge_page(
    kvm: *mut kvm,
    sp: *mut kvm_mmu_page,
    _mmu_type: kvm_mmu_type,
) {
    field!(kvm, arch.tdp_mmu_pages_lock).assert_held("possible_nx_huge_pages");
    mem::check(sp as usize, "untrack NX huge page");
    if *field!(sp, on_nx_list) {
        *field!(sp, on_nx_list) = false;
        field!(kvm, arch.possible_nx_huge_pages).retain(|other| *other != sp);
    }
}

/// `list_del_rcu()` of a root.
pub(crate) fn remove_root(root: *mut kvm_mmu_page) {
    let kvm = super::vm().expect("a VM has roots");
    field!(kvm, arch.tdp_mmu_pages_lock).assert_held("list of roots");
    let mut at: *mut *mut kvm_mmu_page = field!(kvm, arch.tdp_mmu_roots);

    loop {
        // SAFETY: `at` is the head, or part of a page in the list.
        let sp = unsafe { *at };
        if sp.is_null() {
            fail("removes a root that is not in the list".into());
        }
        if sp == root {
            // SAFETY: as above.
            unsafe { *at = *field!(root, next) };
            return;
        }
        at = field!(sp, next);
    }
}
