// SPDX-License-Identifier: GPL-2.0

//! What root may change while VMs run: parameters of KVM's, and whether SPTE changes are traced.

use core::sync::atomic::{
    AtomicU64,
    Ordering::Relaxed, //
};

use machine::{
    note,
    point, //
};

use super::{
    field,
    roots, //
};
use crate::bindings::*;

static EAGER_CHANGES: AtomicU64 = AtomicU64::new(0);

/// How often [`eager_page_split`] was called.
pub(super) fn eager_changes() -> u64 {
    EAGER_CHANGES.load(Relaxed)
}

/// `kvm.eager_page_split`.
pub fn eager_page_split(on: bool) {
    point();
    EAGER_CHANGES.fetch_add(1, Relaxed);
    note("eager_page_split", [on.into(), 0, 0]);
    // SAFETY: One OS thread.
    unsafe { crate::bindings::eager_page_split = on };
}

/// `kvm.fault_around_pages`.
pub fn fault_around(kvm: *mut kvm, pages: u32) {
    point();
    note("fault_around_pages", [pages.into(), 0, 0]);
    *field!(kvm, fault_around) = pages;
}

/// The tracepoint `kvm_tdp_mmu_spte_changed`.
pub fn trace(kvm: *mut kvm, on: bool) {
    point();
    note("traces SPTE changes", [on.into(), 0, 0]);
    *field!(kvm, traced) = on;
}

/// Models `set_nx_huge_pages()`.
pub fn nx_huge_pages(kvm: *mut kvm, on: bool) {
    point();
    let old = *field!(kvm, nx_huge_pages);

    note("nx_huge_pages", [on.into(), 0, 0]);
    *field!(kvm, nx_huge_pages) = on;
    if on != old {
        field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
        roots::zap_all_fast(kvm);
        field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
    }
}
