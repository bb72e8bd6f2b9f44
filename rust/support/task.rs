// SPDX-License-Identifier: GPL-2.0

//! Signals of the current task; for `kernel::task`.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::bindings;

/// Whether the current task is being killed.
#[inline]
pub(crate) fn fatal_signal_pending() -> bool {
    // SAFETY: Reads the state of the current task.
    unsafe { bindings::rust_support_fatal_signal_pending() }
}
