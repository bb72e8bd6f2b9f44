// SPDX-License-Identifier: GPL-2.0

//! Memory: caches, mapping levels, the dirty bitmap, the lists that pages are in.

use core::ffi::{
    c_int,
    c_void, //
};

use machine::{
    chance,
    fail,
    lock::may_sleep,
    mem,
    note,
    sched::facts, //
};

use super::{
    field,
    pages,
    FRAME,
    HUGE_PAGES,
    LARGE,
    MMU_PRESENT, //
};
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
        let table = new_table() as usize;
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

/// A table of entries that are not present.
fn new_table() -> *mut u64 {
    let table = mem::alloc_table(0);

    for n in 0..HUGE_PAGES as usize {
        // SAFETY: The table has as many entries, and is ours.
        unsafe { table.add(n).write(NONPRESENT) };
    }
    table
}

/// Fills a cache of descriptors, each of which is as large as a header here.
pub(super) fn topup_desc_cache(cache: *mut kvm_mmu_memory_cache, capacity: usize) {
    may_sleep("kvm_mmu_topup_memory_cache()");
    while field!(cache, objects).len() < capacity {
        field!(cache, objects).push(mem::alloc_header() as usize);
    }
    *field!(cache, nobjs) = field!(cache, objects).len() as i32;
}

/// Models `mmu_free_vm_memory_caches()`: the VM's caches for splits.
pub fn free_split_caches(kvm: *mut kvm) {
    for table in core::mem::take(&mut field!(kvm, arch.split_shadow_page_cache).objects) {
        mem::free_table(table as *mut u64);
    }
    let headers = core::mem::take(&mut field!(kvm, arch.split_page_header_cache).objects);
    let descs = core::mem::take(&mut field!(kvm, arch.split_desc_cache).objects);
    for header in headers.into_iter().chain(descs) {
        mem::free_header(header as *mut u8);
    }
    *field!(kvm, arch.split_shadow_page_cache.nobjs) = 0;
    *field!(kvm, arch.split_page_header_cache.nobjs) = 0;
    *field!(kvm, arch.split_desc_cache.nobjs) = 0;
}

/// Models `mmu_free_memory_caches()`.
pub fn free_memory_caches(vcpu: *mut kvm_vcpu) {
    for desc in core::mem::take(&mut field!(vcpu, arch.mmu_pte_list_desc_cache).objects) {
        mem::free_header(desc as *mut u8);
    }
    for table in core::mem::take(&mut field!(vcpu, arch.mmu_shadow_page_cache).objects) {
        mem::free_table(table as *mut u64);
    }
    for header in core::mem::take(&mut field!(vcpu, arch.mmu_page_header_cache).objects) {
        mem::free_header(header as *mut u8);
    }
}

/// Models `kvm_mmu_memory_cache_alloc()`; an empty cache fails the run, as it warns.
///
/// # Safety
///
/// `cache` must point to a cache of this thread.
pub unsafe fn kvm_mmu_memory_cache_alloc(cache: *mut kvm_mmu_memory_cache) -> *mut c_void {
    match field!(cache, objects).pop() {
        Some(object) => {
            *field!(cache, nobjs) -= 1;
            object as *mut c_void
        }
        None => fail("the vCPU's memory cache is empty".into()),
    }
}

/// Models it for the cache of descriptors.
///
/// # Safety
///
/// `cache` must point to a cache that this thread may fill.
pub unsafe fn __kvm_mmu_topup_memory_cache(
    cache: *mut kvm_mmu_memory_cache,
    capacity: c_int,
    min: c_int,
) -> c_int {
    if chance(super::vm().map_or(0, |kvm| field!(kvm, odds).no_memory)) {
        facts().no_memory = true;
        return -12;
    }
    topup_desc_cache(cache, capacity as usize);
    let _ = min;
    0
}

/// Models it for the caches of headers and of tables for splits.
///
/// # Safety
///
/// `cache` must point to one of these caches of the VM of the run.
pub unsafe fn kvm_mmu_topup_memory_cache(cache: *mut kvm_mmu_memory_cache, min: c_int) -> c_int {
    if chance(super::vm().map_or(0, |kvm| field!(kvm, odds).no_memory)) {
        facts().no_memory = true;
        return -12;
    }
    let kvm = super::vm().expect("a VM has caches");
    let headers: *mut kvm_mmu_memory_cache = field!(kvm, arch.split_page_header_cache);
    while field!(cache, objects).len() < min as usize {
        let object = if cache == headers {
            mem::alloc_header() as usize
        } else {
            new_table() as usize
        };
        field!(cache, objects).push(object);
    }
    *field!(cache, nobjs) = field!(cache, objects).len() as i32;
    0
}

/// Models `mmu_try_to_unsync_pages()`, where no page of the shadow MMU is ever out of date.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `slot` to a memslot that `slots_lock` or `kvm->srcu`
/// keeps.
pub unsafe fn mmu_try_to_unsync_pages(
    kvm: *mut kvm,
    slot: *const kvm_memory_slot,
    gfn: gfn_t,
    _synchronizing: bool,
    _prefetch: bool,
) -> c_int {
    const EPERM: c_int = 1;
    // SAFETY: The caller passes a memslot that exists.
    let as_id = unsafe { (*slot).as_id };

    if super::track::is_tracked(kvm, as_id, gfn) {
        return -EPERM;
    }
    0
}

/// Models `kvm_mmu_max_mapping_level()`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `slot` to a memslot that `slots_lock` or `kvm->srcu`
/// keeps. This thread must hold `mmu_lock`.
pub unsafe fn kvm_mmu_max_mapping_level(
    kvm: *mut kvm,
    fault: *mut kvm_page_fault,
    slot: *const kvm_memory_slot,
    gfn: gfn_t,
) -> c_int {
    field!(kvm, mmu_lock).assert_held();
    let is_private = if fault.is_null() {
        super::gmem::is_private(kvm, gfn)
    } else {
        *field!(fault, is_private)
    };
    // SAFETY: The slot exists.
    let (base, npages) = unsafe { ((*slot).base_gfn, (*slot).npages as u64) };

    if gfn < base || gfn >= base + npages {
        fail(format!(
            "asks for the level of gfn {gfn:#x}, which is not in the slot"
        ));
    }
    // `disallow_lpage`
    let allows = |level: u32| {
        let start = gfn - gfn % pages(level);

        // A huge page may not reach beyond the slot.
        start >= base
            && start + pages(level) <= base + npages
            // SAFETY: The slot exists.
            && !super::track::disallows_huge(kvm, unsafe { (*slot).as_id }, gfn, level)
            // SAFETY: The slot exists.
            && !unsafe { super::split::is_kept(slot, gfn, level) }
            && !field!(kvm, host).is_mixed(gfn, level)
    };
    let allowed = [3, 2].into_iter().find(|level| allows(*level)).unwrap_or(1);
    if allowed == 1 {
        return 1;
    }
    // `kvm_gmem_max_mapping_level()`
    if is_private && fault.is_null() {
        fail(format!(
            "WARN: guest_memfd is asked for the size of gfn {gfn:#x}, and there is no fault"
        ));
    }
    if is_private {
        return allowed.min((*field!(fault, max_level)).into()) as c_int;
    }
    // `host_pfn_mapping_level()`
    machine::sched::point_on(super::HOST, false);
    let level = field!(kvm, host).level(gfn).min(allowed as u8);
    note("host maps by level", [gfn, level.into(), 0]);
    level.into()
}

/// Models `kvm_mmu_hugepage_adjust()`.
///
/// # Safety
///
/// `vcpu` must point to a vCPU of the VM of the run, and `fault` to a fault that only this thread
/// accesses, with a memslot, or none, that `kvm->srcu` keeps. This thread must hold `mmu_lock`.
pub unsafe fn kvm_mmu_hugepage_adjust(vcpu: *mut kvm_vcpu, fault: *mut kvm_page_fault) {
    let kvm = *field!(vcpu, kvm);
    // SAFETY: Only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    f.huge_page_disallowed = f.exec && f.nx_huge_page_workaround_enabled;
    if f.max_level == 1 || f.slot.is_null() {
        return;
    }
    if *field!(f.slot, flags) & KVM_MEM_LOG_DIRTY_PAGES != 0 {
        return;
    }
    // SAFETY: The fault's slot exists.
    let level = unsafe { kvm_mmu_max_mapping_level(kvm, fault, f.slot, f.gfn) } as u8;
    // SAFETY: Only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    f.req_level = level;
    if level == 1 || f.huge_page_disallowed {
        return;
    }
    f.goal_level = level;
    let mask = pages(level.into()) - 1;
    if f.gfn & mask != f.pfn & mask {
        fail("VM_BUG_ON() in kvm_mmu_hugepage_adjust(): the frames are not aligned".into());
    }
    f.pfn &= !mask;
}

/// Models `disallowed_hugepage_adjust()`.
///
/// # Safety
///
/// `fault` must point to a fault that only this thread accesses. If `spte` points to a table, this
/// thread must be in an RCU critical section since it has read it.
pub unsafe fn disallowed_hugepage_adjust(fault: *mut kvm_page_fault, spte: u64, cur_level: c_int) {
    // SAFETY: Only this thread accesses the fault.
    let f = unsafe { &mut *fault };

    if cur_level > 1
        && cur_level == i32::from(f.goal_level)
        && spte & MMU_PRESENT != 0
        && spte & LARGE == 0
    {
        // SAFETY: The entry points to a table.
        let sp = unsafe { crate::helpers::kvm_rs_hpa_to_sp(spte & FRAME) };
        if *field!(sp, nx_huge_page_disallowed) {
            let mask = HUGE_PAGES.pow(cur_level as u32 - 1) - HUGE_PAGES.pow(cur_level as u32 - 2);
            f.pfn |= f.gfn & mask;
            f.goal_level -= 1;
        }
    }
}

/// Models `mark_page_dirty_in_slot()`, with a bitmap.
///
/// # Safety
///
/// `kvm` must point to the VM of the run. `slot` must be null, or point to a memslot that
/// `slots_lock` or `kvm->srcu` keeps.
pub unsafe fn mark_page_dirty_in_slot(kvm: *mut kvm, slot: *const kvm_memory_slot, gfn: gfn_t) {
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
    if bitmap.is_null() {
        // `kvm_dirty_ring_push()`
        machine::sched::point_on(super::RING, true);
        let slots = *field!(kvm, memslots);
        let at = slots.iter().position(|other| *other == slot);
        field!(kvm, ring).extend(at.map(|at| (at, gfn)));
        note("mark dirty", [gfn, 0, 0]);
        return;
    }
    // SAFETY: The bitmap has a bit for each page.
    let word = unsafe { bitmap.add(n / 64) };
    mem::update("set bit", word.cast::<u64>(), |old| {
        Some(old | 1 << (n % 64))
    });
    note("mark dirty", [gfn, 0, 0]);
}

/// Models `track_possible_nx_huge_page()`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `sp` to the header of one of its pages. This thread
/// must hold `tdp_mmu_pages_lock`.
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
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `sp` to the header of one of its pages. This thread
/// must hold `tdp_mmu_pages_lock`.
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
            // SAFETY: As above.
            unsafe { *at = *field!(root, next) };
            return;
        }
        at = field!(sp, next);
    }
}
