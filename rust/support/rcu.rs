// SPDX-License-Identifier: GPL-2.0

//! Freeing objects after a grace period; for `kernel::sync::rcu`.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use core::ptr::NonNull;

use kernel::bindings::{self, callback_head};

/// An object that RCU can free, because it has a `struct rcu_head`.
///
/// # Safety
///
/// - `into_head` must give up the object and return a head that is part of it, stays valid until `free`
///   is called, and that nobody else uses.
/// - The object may be freed on any CPU.
pub(crate) unsafe trait RcuFree: Sized {
    /// Gives the object up, in exchange for its head.
    fn into_head(self) -> NonNull<callback_head>;

    /// Frees the object. Called in softirq context, so it must not sleep.
    ///
    /// # Safety
    ///
    /// `head` must come from `into_head`, and a grace period must have passed since. Called once.
    unsafe fn free(head: NonNull<callback_head>);
}

/// Frees an object after a grace period: when all who are in a read-side critical section now have left
/// it.
#[inline]
pub(crate) fn call_rcu<T: RcuFree>(object: T) {
    let head = object.into_head();

    // SAFETY: by the contract of `RcuFree` the head is valid until `free` is called, which `callback`
    // does.
    unsafe { bindings::call_rcu(head.as_ptr(), Some(callback::<T>)) };
}

/// # Safety
///
/// For `call_rcu()` only, which calls it once and after a grace period, with the head that it was given.
unsafe extern "C" fn callback<T: RcuFree>(head: *mut callback_head) {
    // SAFETY: `into_head` returned it as one that is not null.
    let head = unsafe { NonNull::new_unchecked(head) };

    // SAFETY: by this function's safety requirement.
    unsafe { T::free(head) }
}
