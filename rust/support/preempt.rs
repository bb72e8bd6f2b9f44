// SPDX-License-Identifier: GPL-2.0

//! Preemption; for `kernel::preempt`.
//!
//! C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)

use kernel::types::NotThreadSafe;

use crate::bindings;

/// Preemption is disabled for as long as the value exists. Guards nest.
///
/// # Invariants
///
/// Owns one level of this thread's preemption count.
#[must_use = "preemption is enabled again when the guard is dropped"]
pub(crate) struct PreemptGuard(NotThreadSafe);

impl PreemptGuard {
    /// Disables preemption.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: Always safe to call; `drop` undoes it.
        unsafe { bindings::rust_support_preempt_disable() };
        // INVARIANT: The level that was just added.
        PreemptGuard(NotThreadSafe)
    }
}

impl Drop for PreemptGuard {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the value has not left the thread that made it.
        unsafe { bindings::rust_support_preempt_enable() };
    }
}

/// Has lockdep complain if preemption is enabled.
#[inline]
pub(crate) fn assert_disabled() {
    // SAFETY: Always safe to call.
    unsafe { bindings::rust_support_assert_preemption_disabled() };
}
