// SPDX-License-Identifier: GPL-2.0

//! Write tracking, as for a device that shadows the guest's page tables: writes to a page are
//! emulated.

use machine::{
    note,
    sched, //
};

use super::{
    field,
    flush::kvm_flush_remote_tlbs,
    pages,
    slots,
    HOST, //
};
use crate::bindings::*;

/// Models `kvm_gfn_is_write_tracked()`.
pub fn is_tracked(kvm: *mut kvm, as_id: u16, gfn: u64) -> bool {
    field!(kvm, tracked).contains(&(as_id, gfn))
}

/// Whether one of the pages that an entry of `level` maps around one is tracked:
/// `kvm_mmu_gfn_disallow_lpage()`.
pub(crate) fn disallows_huge(kvm: *mut kvm, as_id: u16, gfn: u64, level: u32) -> bool {
    let mut tracked = field!(kvm, tracked).iter();

    tracked.any(|(id, other)| *id == as_id && other / pages(level) == gfn / pages(level))
}

/// Models `kvm_write_track_add_gfn()`: no CPU writes the page directly when it returns.
pub fn add(kvm: *mut kvm, as_id: u16, gfn: u64) {
    note("kvm_write_track_add_gfn()", [gfn, as_id.into(), 0]);
    let srcu = slots::srcu_read_lock(kvm);
    let slot = slots::of(kvm, as_id.into(), gfn);

    field!(kvm, mmu_lock).write_lock();
    field!(kvm, tracked).push((as_id, gfn));
    // `kvm_mmu_slot_gfn_write_protect()`
    let mut flush = false;
    if *field!(kvm, arch.have_rmaps) {
        // SAFETY: All exist, and the lock is held.
        flush |= unsafe { kvm_rs_rmap_write_protect_gfn(kvm, slot, gfn, 1) };
    }
    // SAFETY: All exist, and the lock is held.
    flush |= unsafe { kvm_tdp_mmu_write_protect_gfn(kvm, slot, gfn, 1) };
    if flush {
        // SAFETY: The VM exists.
        unsafe { kvm_flush_remote_tlbs(kvm) };
    }
    field!(kvm, mmu_lock).write_unlock();
    slots::srcu_read_unlock(kvm, srcu);
}

/// Models `kvm_write_track_remove_gfn()`.
pub fn remove(kvm: *mut kvm, as_id: u16, gfn: u64) {
    note("kvm_write_track_remove_gfn()", [gfn, as_id.into(), 0]);
    let srcu = slots::srcu_read_lock(kvm);

    field!(kvm, mmu_lock).write_lock();
    field!(kvm, tracked).retain(|page| *page != (as_id, gfn));
    field!(kvm, mmu_lock).write_unlock();
    slots::srcu_read_unlock(kvm, srcu);
}

/// KVM writes a page on behalf of the guest: `kvm_vcpu_write_guest()`. `kvm->srcu` is held. False:
/// the host has to copy the page first.
pub fn emulate_write(kvm: *mut kvm, as_id: u16, gfn: u64) -> bool {
    let slot = slots::of(kvm, as_id.into(), gfn);

    sched::point_on(HOST, true);
    let (pfn, writable) = field!(kvm, host).lookup(gfn);
    if !writable {
        return false;
    }
    let write = field!(kvm, host).write(pfn, gfn);
    note("KVM writes for the guest", [gfn, pfn, write]);
    // SAFETY: All exist: `kvm->srcu` is held.
    unsafe { mark_page_dirty_in_slot(kvm, slot, gfn) };
    true
}
