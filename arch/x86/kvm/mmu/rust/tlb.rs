// SPDX-License-Identifier: GPL-2.0

//! TLB flushes that may be due.

use crate::sys::Vm;

/// A TLB flush that may be due.
///
/// Whoever changes SPTEs so that stale TLB entries matter notes it here; the walk flushes before it
/// gives way, and the owner has to say what becomes of the rest.
#[must_use = "a pending TLB flush must be done, or handed to whoever will do it"]
pub(crate) struct Flush {
    pending: bool,
}

impl Flush {
    /// Starts with what a caller has pending.
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

    /// Ends the flush; true if it is still due, which the caller must see to.
    pub(crate) fn defer(self) -> bool {
        self.pending
    }
}
