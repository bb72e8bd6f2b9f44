// SPDX-License-Identifier: GPL-2.0

//! Bitwise operations of atomics; for `kernel::sync::atomic`.
//!
//! C header: [`include/linux/atomic.h`](srctree/include/linux/atomic.h)

use kernel::{
    bindings,
    sync::atomic::Atomic, //
};

/// Bitwise read-modify-write operations. All are fully ordered, as in C those without a suffix are.
pub(crate) trait AtomicBits<T> {
    /// Clears the bits that are not in `mask`, and returns what was there before.
    fn fetch_and(&self, mask: T) -> T;

    /// Sets the bits of `mask`, and returns what was there before.
    fn fetch_or(&self, mask: T) -> T;
}

impl AtomicBits<u64> for Atomic<u64> {
    #[inline]
    fn fetch_and(&self, mask: u64) -> u64 {
        // CAST: `atomic64_t` has the layout of an `s64`, and `u64` and `s64` have the same bits.
        // SAFETY: `as_ptr()` is valid and aligned.
        unsafe { bindings::atomic64_fetch_and(mask as i64, self.as_ptr().cast()) as u64 }
    }

    #[inline]
    fn fetch_or(&self, mask: u64) -> u64 {
        // CAST: As above.
        // SAFETY: As above.
        unsafe { bindings::atomic64_fetch_or(mask as i64, self.as_ptr().cast()) as u64 }
    }
}
