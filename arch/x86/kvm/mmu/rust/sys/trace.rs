// SPDX-License-Identifier: GPL-2.0

//! The MMU's tracepoints, which are C's, in the same places.
//!
//! The static branch is in the helpers, so that a disabled tracepoint costs a no-op.

use crate::{
    bindings,
    pte::Sptep,
    pure::{
        Gfn,
        GfnRange,
        Level,
        Spte, //
    },
    sys::{
        Fault,
        Sp, //
    }, //
};

/// A shadow page has been created.
#[inline]
pub(crate) fn get_page(sp: Sp<'_>) {
    // SAFETY: The page exists.
    unsafe { bindings::kvm_rs_trace_get_page(sp.as_ptr()) }
}

/// A shadow page is about to be torn down.
#[inline]
pub(crate) fn prepare_zap_page(sp: Sp<'_>) {
    // SAFETY: The page exists.
    unsafe { bindings::kvm_rs_trace_prepare_zap_page(sp.as_ptr()) }
}

/// Whether the tracepoint of changed SPTEs is enabled.
#[inline]
pub(crate) fn spte_changed_enabled() -> bool {
    // SAFETY: Reads a static branch.
    unsafe { bindings::kvm_rs_trace_spte_changed_enabled() }
}

/// An SPTE has changed.
#[inline]
pub(crate) fn spte_changed(as_id: u16, gfn: Gfn, level: Level, old: Spte, new: Spte) {
    // SAFETY: Takes values only.
    unsafe {
        bindings::kvm_rs_trace_spte_changed(
            as_id.into(),
            gfn.raw(),
            level.raw(),
            old.raw(),
            new.raw(),
        )
    }
}

/// A huge page has been split, or splitting it failed with `errno`.
#[inline]
pub(crate) fn split_huge_page(gfn: Gfn, huge: Spte, level: Level, errno: i32) {
    // SAFETY: Takes values only.
    unsafe { bindings::kvm_rs_trace_split(gfn.raw(), huge.raw(), level.raw(), errno) }
}

/// A huge page has been recovered, or recovering it failed with `errno`.
#[inline]
pub(crate) fn promote_huge_page(gfn: Gfn, huge: Spte, level: Level, errno: i32) {
    // SAFETY: Takes values only.
    unsafe { bindings::kvm_rs_trace_promote(gfn.raw(), huge.raw(), level.raw(), errno) }
}

/// GET has looked for D bits in `tables` page tables of a range, and found those of `pages` pages.
#[inline]
pub(crate) fn harvest_dirty_bits(as_id: u16, range: GfnRange, tables: u64, pages: u64) {
    // SAFETY: Takes values only.
    unsafe {
        bindings::kvm_rs_trace_harvest(
            as_id.into(),
            range.start.raw(),
            range.end.raw(),
            tables,
            pages,
        )
    }
}

/// An MMIO SPTE has been installed.
#[inline]
pub(crate) fn mark_mmio_spte(sptep: Sptep<'_>, gfn: Gfn, spte: Spte) {
    // SAFETY: The SPTE can be read.
    unsafe { bindings::kvm_rs_trace_mark_mmio(sptep.as_ptr(), gfn.raw(), spte.raw()) }
}

/// A fault has installed a leaf.
#[inline]
pub(crate) fn set_spte(level: Level, gfn: Gfn, sptep: Sptep<'_>) {
    // SAFETY: The SPTE can be read.
    unsafe { bindings::kvm_rs_trace_set_spte(level.raw(), gfn.raw(), sptep.as_ptr()) }
}

/// A fault is about to be resolved.
#[inline]
pub(crate) fn spte_requested(fault: Fault<'_>, access: u32) {
    // SAFETY: The fault exists.
    unsafe { bindings::kvm_rs_trace_spte_requested(fault.as_ptr(), access as u8) }
}
