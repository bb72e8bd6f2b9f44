// SPDX-License-Identifier: GPL-2.0

//! The shadow MMU, for a nested guest. L1 maps L2's memory one to one, by pages of 2 MiB, and
//! perhaps several times ([`ALIAS`]): so a page of the last level is direct, and has a parent for
//! each time, and those above shadow L1's tables. All changes are made with `mmu_lock` held for
//! write.

use machine::{
    fail,
    mem,
    note, //
};

use super::{
    fault::{
        self,
        Handled, //
    },
    field,
    flush::{
        kvm_flush_remote_tlbs,
        kvm_flush_remote_tlbs_range, //
    },
    memory::{
        topup_desc_cache,
        topup_memory_caches, //
    },
    pages,
    slots,
    FRAME,
    HUGE_PAGES,
    LARGE,
    MMU_PRESENT,
    ROOT_LEVEL, //
};
use crate::bindings::*;

const NONPRESENT: u64 = 1 << 63;

const LEVEL: u32 = 0xf;
const DIRECT: u32 = 1 << 7;
const ACC_ALL: u32 = 0xf;
const INVALID: u32 = 1 << 12;
const GUEST_MODE: u32 = 1 << 17;

/// L2 uses each page at several addresses, so many frames apart: L1 maps all of its memory anew for
/// each.
pub const ALIAS: u64 = HUGE_PAGES.pow(2);

fn role(sp: *mut kvm_mmu_page) -> u32 {
    *field!(sp, role.word).to_owned()
}

/// The role of the page of `level` below, or beside, one with this role.
fn role_at(role: u32, level: u32) -> u32 {
    let direct = if level == 1 { DIRECT } else { 0 };

    role & !(LEVEL | DIRECT) | level | direct
}

/// The role of the root of a nested guest, from that of the vCPU's own.
pub fn root_role(own: u32) -> u32 {
    role_at(own, ROOT_LEVEL) | GUEST_MODE
}

/// Models `kvm_mmu_find_shadow_page()`.
fn find(kvm: *mut kvm, gfn: u64, wanted: u32) -> Option<*mut kvm_mmu_page> {
    let pages = field!(kvm, active_mmu_pages).iter();

    let mut found = pages.filter(|sp| role(**sp) == wanted && *field!(**sp, gfn) == gfn);
    found.next().copied()
}

/// Models `kvm_mmu_alloc_shadow_page()`.
fn new_page(
    kvm: *mut kvm,
    header: *mut kvm_mmu_page,
    table: *mut u64,
    gfn: u64,
    role: u32,
) -> *mut kvm_mmu_page {
    *field!(header, spt) = table;
    *field!(header, gfn) = gfn;
    *field!(header, role.word) = core::mem::ManuallyDrop::new(role);
    if role & DIRECT == 0 {
        let translations = mem::alloc_words(HUGE_PAGES as usize);
        *field!(header, shadowed_translation) = translations.cast();
    }
    mem::set_private(table, header as usize);
    field!(kvm, active_mmu_pages).push(header);
    header
}

/// The page for `gfn` with this role: one that is there, or a new one from the vCPU's caches;
/// `kvm_mmu_get_shadow_page()`.
fn get_page(vcpu: *mut kvm_vcpu, gfn: u64, role: u32) -> *mut kvm_mmu_page {
    let kvm = *field!(vcpu, kvm);

    find(kvm, gfn, role).unwrap_or_else(|| {
        let header = take(field!(vcpu, arch.mmu_page_header_cache));
        let table = take(field!(vcpu, arch.mmu_shadow_page_cache));
        new_page(kvm, header.cast(), table.cast(), gfn, role)
    })
}

fn take(cache: *mut kvm_mmu_memory_cache) -> *mut core::ffi::c_void {
    // SAFETY: The cache exists, and is this thread's, or guarded by `slots_lock`.
    unsafe { super::memory::kvm_mmu_memory_cache_alloc(cache) }
}

/// Takes the leaf at `sptep` away; `drop_spte()`. Returns whether there was one.
fn drop_leaf(kvm: *mut kvm, sptep: *mut u64, level: u32) -> bool {
    let (old, _) = mem::update("xchg", sptep, |_| Some(NONPRESENT));

    if old & MMU_PRESENT == 0 {
        return false;
    }
    field!(kvm, stat.pages)[level as usize - 1] -= 1;
    // SAFETY: All exist, and the lock is held.
    unsafe { kvm_rs_rmap_remove(kvm, sptep) };
    true
}

/// Takes the pointer at `sptep` to a table away; `drop_parent_pte()`.
fn drop_parent(kvm: *mut kvm, sptep: *mut u64, child: *mut kvm_mmu_page) {
    // SAFETY: All exist, and the lock is held.
    unsafe { kvm_rs_pte_list_remove(kvm, sptep, field!(child, parent_ptes)) };
    mem::store(sptep, NONPRESENT);
}

/// Models `__link_shadow_page()`.
fn link(
    kvm: *mut kvm,
    cache: *mut kvm_mmu_memory_cache,
    sptep: *mut u64,
    sp: *mut kvm_mmu_page,
    flush: bool,
) {
    let level = (role(sp) & LEVEL) + 1;

    if mem::load(sptep) & MMU_PRESENT != 0 && drop_leaf(kvm, sptep, level) && flush {
        // SAFETY: The VM exists.
        unsafe { kvm_flush_remote_tlbs_range(kvm, *field!(sp, gfn), pages(level)) };
    }
    // SAFETY: A function of its arguments.
    let spte = unsafe { make_nonleaf_spte(*field!(sp, spt), !kvm_ad_enabled) };
    mem::store(sptep, spte);
    // SAFETY: All exist, and the lock is held.
    unsafe { kvm_rs_pte_list_add(kvm, cache, sptep, field!(sp, parent_ptes)) };
}

/// Models `kvm_mmu_load()` for the root of a nested guest: `mmu_alloc_shadow_roots()`. False: there
/// is no memory.
pub fn load(vcpu: *mut kvm_vcpu) -> bool {
    let kvm = *field!(vcpu, kvm);
    let mmu = *field!(vcpu, arch.mmu);
    let wanted = *field!(mmu, root_role.word).to_owned();

    if wanted & GUEST_MODE == 0 || *field!(vcpu, smm) {
        fail("the simulation itself: L2 runs with a root of L1, or in SMM".into());
    }
    if !topup_memory_caches(vcpu) {
        return false;
    }
    slots::first_shadow_root(kvm);
    field!(kvm, mmu_lock).write_lock();
    let root = get_page(vcpu, 0, wanted);
    *field!(root, root_count) += 1;
    *field!(mmu, root.hpa) = mem::pa(*field!(root, spt));
    note("loads nested root", [*field!(mmu, root.hpa), 0, 0]);
    field!(kvm, mmu_lock).write_unlock();
    true
}

/// Whether a page is one of the shadow MMU's.
pub fn is_shadow(sp: *mut kvm_mmu_page) -> bool {
    !*field!(sp, tdp_mmu_page)
}

/// Models `mmu_free_root_page()`, for one of the shadow MMU's. `mmu_lock` is held for write.
pub fn put_root(kvm: *mut kvm, root: *mut kvm_mmu_page) {
    *field!(root, root_count) -= 1;
    if *field!(root, root_count) == 0 && role(root) & INVALID != 0 {
        free_page(root);
    }
    let _ = kvm;
}

fn free_page(sp: *mut kvm_mmu_page) {
    mem::free_table(*field!(sp, spt));
    mem::free_header(sp.cast());
}

/// Models `FNAME(page_fault)()` and `FNAME(fetch)()` for a fault of the nested guest. `kvm->srcu`
/// is held. `at`: where L2 has the page, in frames.
pub fn page_fault(vcpu: *mut kvm_vcpu, at: u64, code: u64) -> Handled {
    let kvm = *field!(vcpu, kvm);
    let gfn = at % ALIAS;
    let slot = slots::of(kvm, usize::from(*field!(vcpu, smm)), gfn);

    note("page fault of L2", [gfn, code, at / ALIAS]);
    if slot.is_null() {
        return Handled::Emulate;
    }
    if !topup_memory_caches(vcpu) {
        return Handled::NoMemory;
    }
    topup_desc_cache(field!(vcpu, arch.mmu_pte_list_desc_cache), 4);
    let mut fault = fault::new(kvm, slot, gfn, code);
    if fault::handle_page_track(vcpu, &fault) {
        return Handled::WriteProtected;
    }
    if !fault::faultin_pfn(kvm, &mut fault) {
        return Handled::Retry;
    }
    field!(kvm, mmu_lock).write_lock();
    let handled = if fault::is_page_fault_stale(vcpu, &fault) {
        Handled::Retry
    } else if fetch(vcpu, &mut fault, at) && fault.write {
        Handled::WriteProtected
    } else {
        Handled::Enter
    };
    field!(kvm, mmu_lock).write_unlock();
    handled
}

/// Returns whether the leaf had to be write-protected.
fn fetch(vcpu: *mut kvm_vcpu, fault: &mut kvm_page_fault, at: u64) -> bool {
    let kvm = *field!(vcpu, kvm);
    let descs: *mut kvm_mmu_memory_cache = field!(vcpu, arch.mmu_pte_list_desc_cache);
    // SAFETY: The vCPU and its fault exist, and the lock is held.
    unsafe { super::memory::kvm_mmu_hugepage_adjust(vcpu, fault) };

    // SAFETY: The vCPU has a reference to its root.
    let mut sp = unsafe { kvm_rs_root_to_sp(*field!(*field!(vcpu, arch.mmu), root.hpa)) };
    let goal = u32::from(fault.goal_level);
    loop {
        let level = role(sp) & LEVEL;
        let index = at / pages(level) % HUGE_PAGES;
        // SAFETY: Within the table.
        let sptep = unsafe { (*field!(sp, spt)).add(index as usize) };
        if level == goal {
            return set_spte(vcpu, sp, sptep, fault);
        }
        let spte = mem::load(sptep);
        sp = if spte & MMU_PRESENT == 0 || spte & LARGE != 0 {
            // A direct page is that of its frames; the others are L1's tables, which are apart.
            let first = if level == 2 { fault.gfn } else { at };
            let first = first - first % pages(level);
            let child = get_page(vcpu, first, role_at(role(sp), level - 1));
            link(kvm, descs, sptep, child, true);
            child
        } else {
            // SAFETY: The entry points to a table.
            unsafe { kvm_rs_hpa_to_sp(spte & FRAME) }
        };
    }
}

/// Models `mmu_set_spte()`. Returns whether the leaf had to be write-protected.
fn set_spte(
    vcpu: *mut kvm_vcpu,
    sp: *mut kvm_mmu_page,
    sptep: *mut u64,
    fault: &kvm_page_fault,
) -> bool {
    let kvm = *field!(vcpu, kvm);
    let level = role(sp) & LEVEL;
    let gfn = fault.gfn - fault.gfn % pages(level);
    let old = mem::load(sptep);
    let (mut flush, mut was_rmapped) = (false, false);

    if old & MMU_PRESENT != 0 {
        if level > 1 && old & LARGE == 0 {
            // SAFETY: The entry points to a table.
            drop_parent(kvm, sptep, unsafe { kvm_rs_hpa_to_sp(old & FRAME) });
            flush = true;
        } else if (old & FRAME) >> 12 != fault.pfn {
            drop_leaf(kvm, sptep, level);
            flush = true;
        } else {
            was_rmapped = true;
        }
    }
    let old = mem::load(sptep);
    let mut new = 0;
    // SAFETY: All exist, and the lock is held.
    let protected = unsafe {
        make_spte(
            vcpu,
            sp,
            fault.slot,
            ACC_ALL,
            gfn,
            fault.pfn,
            old,
            false,
            false,
            fault.map_writable,
            &mut new,
        )
    };
    if old != new {
        mem::update("xchg", sptep, |_| Some(new));
    }
    if flush {
        // SAFETY: The VM exists.
        unsafe { kvm_flush_remote_tlbs_range(kvm, gfn, pages(level)) };
    }
    if !was_rmapped {
        let descs: *mut kvm_mmu_memory_cache = field!(vcpu, arch.mmu_pte_list_desc_cache);
        // SAFETY: All exist, and the lock is held.
        unsafe { kvm_rs_rmap_add(kvm, descs, fault.slot, sptep, gfn, ACC_ALL) };
        // A frame has far fewer than 1000 leaves here.
        // SAFETY: Within the table; the lock is held.
        if unsafe { sptep.read() } & MMU_PRESENT == 0 {
            fail(format!(
                "the list of gfn {gfn:#x} is emptied, and is not long"
            ));
        }
    }
    protected
}

/// Models `kvm_zap_obsolete_pages()`, and `kvm_mmu_zap_all()` as far as it is about shadow pages:
/// zaps all of them, flushes, and frees those that no vCPU has loaded. `mmu_lock` is held for
/// write.
pub fn zap_all(kvm: *mut kvm) {
    let active = core::mem::take(field!(kvm, active_mmu_pages));

    if active.is_empty() {
        return;
    }
    for sp in &active {
        let (sp, level) = (*sp, role(*sp) & LEVEL);
        // `kvm_mmu_page_unlink_children()`
        for n in 0..HUGE_PAGES {
            // SAFETY: Within the table.
            let sptep = unsafe { (*field!(sp, spt)).add(n as usize) };
            // SAFETY: Nobody else changes what is not present.
            let spte = unsafe { sptep.read() };
            if spte & MMU_PRESENT == 0 {
                continue;
            }
            if level == 1 || spte & LARGE != 0 {
                drop_leaf(kvm, sptep, level);
            } else {
                // SAFETY: The entry points to a table.
                drop_parent(kvm, sptep, unsafe { kvm_rs_hpa_to_sp(spte & FRAME) });
            }
        }
        // C looks every few pages whether somebody waits.
        field!(kvm, mmu_lock).excuse();
    }
    // SAFETY: The VM exists.
    unsafe { kvm_flush_remote_tlbs(kvm) };
    for sp in active {
        if field!(sp, parent_ptes).val != 0 {
            fail("a shadow page has a parent whose page was zapped".into());
        }
        if *field!(sp, root_count) == 0 {
            free_page(sp);
        } else {
            let invalid = role(sp) | INVALID;
            *field!(sp, role.word) = core::mem::ManuallyDrop::new(invalid);
        }
    }
}

/// `rust_helpers.c`: the page for a split, from the VM's caches, or one that is there.
pub(crate) fn get_split_page(
    kvm: *mut kvm,
    huge_sptep: *mut u64,
    gfn: u64,
    access: u32,
) -> *mut kvm_mmu_page {
    if access != ACC_ALL {
        fail(format!(
            "L1 grants all rights to gfn {gfn:#x}, and {access:#x} is recorded"
        ));
    }
    let parent = mem::private(huge_sptep as usize) as *mut kvm_mmu_page;
    let level = (role(parent) & LEVEL) - 1;
    let first = gfn - gfn % pages(level + 1);
    let role = role_at(role(parent), level) | DIRECT;

    find(kvm, first, role).unwrap_or_else(|| {
        let header = take(field!(kvm, arch.split_page_header_cache));
        let table = take(field!(kvm, arch.split_shadow_page_cache));
        new_page(kvm, header.cast(), table.cast(), first, role)
    })
}

/// `rust_helpers.c`: links the page of a split.
pub(crate) fn link_split_page(kvm: *mut kvm, sptep: *mut u64, sp: *mut kvm_mmu_page, flush: bool) {
    let descs: *mut kvm_mmu_memory_cache = field!(kvm, arch.split_desc_cache);

    link(kvm, descs, sptep, sp, flush);
}

/// The leaves of shadow pages: level, first frame, SPTE.
pub fn leaves(kvm: *mut kvm) -> Vec<(u32, u64, u64)> {
    let mut leaves = Vec::new();

    for sp in field!(kvm, active_mmu_pages).iter() {
        let level = role(*sp) & LEVEL;
        for n in 0..HUGE_PAGES {
            // SAFETY: Within the table.
            let spte = unsafe { (*field!(*sp, spt)).add(n as usize).read() };
            if spte & MMU_PRESENT != 0 && (level == 1 || spte & LARGE != 0) {
                let at = *field!(*sp, gfn) + n * pages(level);
                leaves.push((level, at % ALIAS, spte));
            }
        }
    }
    leaves
}

/// Fails if a leaf of L2 is small that may be huge: all of the slot's were zapped, and `mmu_lock`
/// has been held for write since.
pub(super) fn check_collapsed(kvm: *mut kvm, slot: *mut kvm_memory_slot) {
    let (base, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);

    for sp in field!(kvm, active_mmu_pages).clone() {
        let first = *field!(sp, gfn);
        let is_small = role(sp) & (LEVEL | DIRECT) == 1 | DIRECT;

        if !is_small || usize::from(role(sp) >> 24 != 0) != usize::from(*field!(slot, as_id)) {
            continue;
        }
        let leaves = (first..first + HUGE_PAGES).filter(|gfn| {
            // SAFETY: Within the table.
            let spte = unsafe { (*field!(sp, spt)).add((gfn - first) as usize).read() };
            spte & MMU_PRESENT != 0 && (base..base + npages).contains(gfn)
        });
        if leaves.count() == 0 || !(base..base + npages).contains(&first) {
            continue;
        }
        let fault = core::ptr::null_mut();
        // SAFETY: All exist, and the lock is held.
        if unsafe { super::memory::kvm_mmu_max_mapping_level(kvm, fault, slot, first) } > 1 {
            fail(format!(
                "L2 has gfn {first:#x} by small pages, and the log has ended"
            ));
        }
    }
}

/// How many leaves the lists of the reverse map have. Where nothing moves any more.
pub fn listed(kvm: *mut kvm) -> usize {
    let mut count = 0;

    for slot in field!(kvm, memslots).iter().filter(|slot| !slot.is_null()) {
        for level in 1..=3 {
            let heads = field!(*slot, arch.rmap)[level as usize - 1];
            if heads.is_null() {
                continue;
            }
            for n in 0..slots::lists(*slot, level) {
                // SAFETY: There are as many heads, and nobody else is there.
                count += unsafe { pte_list_count(heads.add(n)) } as usize;
            }
        }
    }
    count
}
