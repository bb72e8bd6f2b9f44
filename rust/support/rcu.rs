// SPDX-License-Identifier: GPL-2.0

//! Freeing objects after a grace period; for `kernel::sync::rcu`.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use core::{
    cell::Cell,
    ptr::NonNull, //
};

use kernel::bindings::{
    self,
    callback_head, //
};

/// An object that RCU can free, because it has a `struct rcu_head`.
///
/// # Safety
///
/// - `into_head` must give up the object and return a head that is part of it, stays valid until
///   `free` is called, and that nobody else uses.
/// - `link` must return the address of a word of the object that is as valid, and that nobody else
///   uses after `into_head`. It is not part of the head, which RCU uses.
/// - The object may be freed on any CPU.
pub(crate) unsafe trait RcuFree: Sized {
    /// Gives the object up, in exchange for its head.
    fn into_head(self) -> NonNull<callback_head>;

    /// Where the object has the address of the next one of its [`Batch`].
    ///
    /// # Safety
    ///
    /// `head` must come from `into_head`, and the object must not be freed yet.
    unsafe fn link(head: NonNull<callback_head>) -> *mut *mut callback_head;

    /// Frees objects, or has somebody do it. Called in softirq context, so it must not sleep, and
    /// should not take long: RCU does not let anybody else have the CPU between ten calls.
    ///
    /// # Safety
    ///
    /// There must be at least one and at most [`Batch::MAX`] heads. They must come from
    /// `into_head`, and a grace period must have passed since. Called once for each.
    unsafe fn free(heads: &[NonNull<callback_head>]);
}

/// Objects that are given up one after the other, and freed together after one grace period, which
/// begins when the last of them has been added. That costs less than a callback for each, and no
/// callback gets more than [`Batch::MAX`].
pub(crate) struct Batch(Cell<Option<Chain>>);

/// # Invariants
///
/// `first` and those that it is linked with, `len` objects in all, were given up and not yet passed
/// to RCU. `callback` is the one of their type.
#[derive(Clone, Copy)]
struct Chain {
    first: NonNull<callback_head>,
    len: usize,
    callback: unsafe extern "C" fn(*mut callback_head),
}

impl Batch {
    /// The most objects that are freed together. With more of them each would cost hardly less.
    pub(crate) const MAX: usize = 16;

    /// No objects.
    #[inline]
    pub(crate) const fn new() -> Self {
        Batch(Cell::new(None))
    }

    /// Frees an object after a grace period, with those that come before or after it.
    #[inline]
    pub(crate) fn add<T: RcuFree>(&self, object: T) {
        let callback: unsafe extern "C" fn(*mut callback_head) = callback::<T>;

        // Objects of another type are freed in another way.
        if self
            .0
            .get()
            .is_some_and(|chain| !core::ptr::fn_addr_eq(chain.callback, callback))
        {
            self.submit();
        }

        let rest = self.0.get();
        let len = rest.map_or(0, |rest| rest.len).wrapping_add(1);
        let first = object.into_head();
        // SAFETY: The head comes from `into_head`.
        let link = unsafe { T::link(first) };

        // SAFETY: By the contract of `RcuFree` the word is valid, and nobody else uses it.
        unsafe { link.write(rest.map_or(core::ptr::null_mut(), |rest| rest.first.as_ptr())) };
        // INVARIANT: The object was just given up, and is linked with the others.
        self.0.set(Some(Chain {
            first,
            len,
            callback,
        }));
        if len == Batch::MAX {
            self.submit();
        }
    }

    /// Begins the grace period.
    #[inline]
    pub(crate) fn submit(&self) {
        if let Some(chain) = self.0.take() {
            // SAFETY: By the type invariant, and the contract of `RcuFree`, the head is valid until
            // `callback` frees its object, and was not passed to RCU yet.
            unsafe { bindings::call_rcu(chain.first.as_ptr(), Some(chain.callback)) };
        }
    }
}

impl Drop for Batch {
    #[inline]
    fn drop(&mut self) {
        self.submit();
    }
}

/// Frees an object after a grace period: when all who are in a read-side critical section now have
/// left it.
#[inline]
pub(crate) fn call_rcu<T: RcuFree>(object: T) {
    Batch::new().add(object);
}

/// # Safety
///
/// For `call_rcu()` only, which calls it once and after a grace period, with the head that it was
/// given, that of the first object of a chain.
unsafe extern "C" fn callback<T: RcuFree>(head: *mut callback_head) {
    // SAFETY: `into_head` returned it as one that is not null.
    let first = unsafe { NonNull::new_unchecked(head) };
    let mut heads = [first; Batch::MAX];
    let mut len = 0;
    let mut next = Some(first);

    while let (Some(head), Some(place)) = (next, heads.get_mut(len)) {
        *place = head;
        len = len.wrapping_add(1);
        // SAFETY: The head comes from `into_head`, and its object is not freed yet.
        let link = unsafe { T::link(head) };
        // SAFETY: `Batch::add` has linked the object.
        next = NonNull::new(unsafe { link.read() });
    }
    // SAFETY: By this function's safety requirement. `Batch::add` has linked `Batch::MAX` at most,
    // and `first` is one. A grace period has passed for all, because none is added to a chain after
    // it was passed to RCU.
    unsafe { T::free(heads.get(..len).unwrap_or(&[])) }
}
