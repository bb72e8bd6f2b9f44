// SPDX-License-Identifier: GPL-2.0

//! TLB flushes that may be due.

use crate::sys::Vm;

/// A TLB flush that may be due.
///
/// Code that changes SPTEs such that stale TLB entries matter notes it here. The walk flushes
/// before it yields, and the owner decides what becomes of a flush that is still pending at the
/// end.
#[must_use = "a pending TLB flush must be done, or handed to whoever will do it"]
pub(crate) struct Flush {
    pending: bool,
}

impl Flush {
    /// Starts with a flush that the caller may have pending.
    pub(crate) fn new(pending: bool) -> Self {
        Flush { pending }
    }

    /// Notes that a flush is due.
    #[inline]
    pub(crate) fn note(&mut self) {
        self.pending = true;
    }

    /// Flushes all TLBs now, if due.
    pub(crate) fn now(&mut self, vm: Vm<'_>) {
        if core::mem::take(&mut self.pending) {
            vm.flush_tlbs();
        }
    }

    /// Hands the flush over: returns true if it is still due, and the caller must do it.
    pub(crate) fn defer(self) -> bool {
        self.pending
    }
}
