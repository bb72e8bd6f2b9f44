// SPDX-License-Identifier: GPL-2.0

//! Proof that a `rwlock_t` of C's is held, as a value; for `kernel::sync`.
//!
//! The lock belongs to a C object, and often C has taken it already. So the proof does not drop the
//! lock; it says in which mode the lock is held, and that it stays held while the proof is
//! borrowed.
//!
//! C header: [`include/linux/rwlock.h`](srctree/include/linux/rwlock.h)

use core::marker::PhantomData;

use kernel::{
    bindings::rwlock_t,
    types::NotThreadSafe, //
};

use super::rcu::{
    Batch,
    RcuFree, //
};
use crate::bindings;

/// A handle on an object that has a `rwlock_t`.
///
/// # Safety
///
/// `rwlock` must return the address of an initialised lock, the same each time, which exists as
/// long as the handle.
pub(crate) unsafe trait RwLocked: Copy {
    /// The lock.
    fn rwlock(self) -> *mut rwlock_t;
}

/// Data of one holder of the lock of a `T`, which nobody else sees.
pub(crate) trait HolderData<T>: Default {
    /// Called when the lock is about to be dropped, or the proof that it is held.
    fn settle(&self, object: T);
}

impl<T> HolderData<T> for () {
    #[inline]
    fn settle(&self, _object: T) {}
}

/// A way to hold a `rwlock_t`.
///
/// # Safety
///
/// When `lock` and `cond_resched` return, the calling thread must hold the lock in this mode, until
/// it calls `unlock`.
pub(crate) unsafe trait Mode {
    /// Takes the lock.
    ///
    /// # Safety
    ///
    /// The lock must exist and be initialised, here and below.
    unsafe fn lock(lock: *mut rwlock_t);

    /// Drops the lock.
    ///
    /// # Safety
    ///
    /// This thread must hold it in this mode.
    unsafe fn unlock(lock: *mut rwlock_t);

    /// Has lockdep complain if this thread does not hold the lock in this mode.
    ///
    /// # Safety
    ///
    /// As for [`Mode::lock`].
    unsafe fn assert_held(lock: *mut rwlock_t);

    /// Drops the lock and retakes it, if somebody waits for it or the scheduler wants the CPU.
    ///
    /// # Safety
    ///
    /// As for [`Mode::unlock`].
    unsafe fn cond_resched(lock: *mut rwlock_t);
}

macro_rules! mode {
    ($(#[$doc:meta])* $name:ident $lock:ident $unlock:ident $assert:ident $resched:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;

        // SAFETY: The operations of C's rwlock for this mode.
        unsafe impl Mode for $name {
            /// # Safety
            ///
            /// As for [`Mode::lock`].
            #[inline]
            unsafe fn lock(lock: *mut rwlock_t) {
                // SAFETY: By this function's safety requirement.
                unsafe { bindings::$lock(lock) }
            }

            /// # Safety
            ///
            /// As for [`Mode::unlock`].
            #[inline]
            unsafe fn unlock(lock: *mut rwlock_t) {
                // SAFETY: By this function's safety requirement.
                unsafe { bindings::$unlock(lock) }
            }

            /// # Safety
            ///
            /// As for [`Mode::assert_held`].
            #[inline]
            unsafe fn assert_held(lock: *mut rwlock_t) {
                // SAFETY: By this function's safety requirement.
                unsafe { bindings::$assert(lock) }
            }

            /// # Safety
            ///
            /// As for [`Mode::cond_resched`].
            #[inline]
            unsafe fn cond_resched(lock: *mut rwlock_t) {
                // SAFETY: By this function's safety requirement.
                unsafe { bindings::$resched(lock) }
            }
        }
    };
}

mode! {
    /// Held for read, together with others.
    Read rust_support_read_lock rust_support_read_unlock
        rust_support_assert_read_held rust_support_cond_resched_read
}
mode! {
    /// Held for write, alone.
    Write rust_support_write_lock rust_support_write_unlock
        rust_support_assert_write_held rust_support_cond_resched_write
}

/// Proof that this thread holds the lock of an object, and data of this holder.
///
/// # Invariants
///
/// This thread holds the lock in this mode for as long as the value exists, except while
/// [`Held::run_unlocked`] or [`Held::cond_resched_rwlock`] borrows it; or no other thread can take
/// the lock, and the value is not borrowed exclusively before it is dropped.
pub(crate) struct Held<T: RwLocked, M, O: HolderData<T> = ()>(
    T,
    Batch,
    O,
    PhantomData<M>,
    NotThreadSafe,
);

/// Proof that this thread does not hold the lock that a [`Held`] was for, so that it may sleep.
pub(crate) struct Unlocked(NotThreadSafe);

impl<T: RwLocked, M: Mode, O: HolderData<T>> Held<T, M, O> {
    /// Makes the proof where C has taken the lock. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must hold the lock in this mode until the proof is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(object: T) -> Self {
        // SAFETY: By the contract of `RwLocked`.
        unsafe { M::assert_held(object.rwlock()) };
        // INVARIANT: By this function's safety requirement.
        Held(
            object,
            Batch::new(),
            O::default(),
            PhantomData,
            NotThreadSafe,
        )
    }

    /// The object whose lock is held.
    #[inline]
    pub(crate) fn object(&self) -> T {
        self.0
    }

    /// The data of this holder.
    #[inline]
    pub(crate) fn data(&self) -> &O {
        &self.2
    }

    /// Frees an object after a grace period, which begins when the lock is dropped or the proof is
    /// gone, or earlier.
    #[inline]
    pub(crate) fn free_later(&self, object: impl RcuFree) {
        self.1.add(object);
    }

    /// Drops the lock and retakes it, if somebody waits for it or the scheduler wants the CPU. Must
    /// not be called in atomic context or in an RCU read-side critical section (a bug that
    /// `CONFIG_DEBUG_ATOMIC_SLEEP` reports).
    ///
    /// To account for holds, wrap this and [`Held::run_unlocked`] in a trait. Its methods need
    /// other names, because a method of the type itself takes precedence.
    #[inline]
    pub(crate) fn cond_resched_rwlock(&mut self) {
        self.2.settle(self.0);
        self.1.submit();
        // SAFETY: Held by the type invariant, as the value is borrowed exclusively; and that shows
        // that nothing relies on the lock being held.
        unsafe { M::cond_resched(self.0.rwlock()) }
    }

    /// Runs `f` without the lock.
    #[inline]
    pub(crate) fn run_unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        self.2.settle(self.0);
        self.1.submit();
        // SAFETY: Held by the type invariant, as the value is borrowed exclusively; and that shows
        // that nothing relies on the lock being held.
        unsafe { M::unlock(self.0.rwlock()) };
        let result = f(&Unlocked(NotThreadSafe));
        // SAFETY: By the contract of `RwLocked`.
        unsafe { M::lock(self.0.rwlock()) };
        result
    }
}

impl<T: RwLocked, O: HolderData<T>> Held<T, Write, O> {
    /// Runs `f` with the proof for an object that nobody else can reach, whose lock C does not
    /// take. As `f` only borrows the proof, it cannot have a lock dropped that is not held.
    ///
    /// # Safety
    ///
    /// No other thread may be able to take the lock until `f` returns.
    #[inline]
    pub(crate) unsafe fn with_unreachable<R>(object: T, f: impl FnOnce(&Self) -> R) -> R {
        // INVARIANT: By this function's safety requirement; and `f` gets a shared borrow.
        f(&Held(
            object,
            Batch::new(),
            O::default(),
            PhantomData,
            NotThreadSafe,
        ))
    }
}

impl<T: RwLocked, M, O: HolderData<T>> Drop for Held<T, M, O> {
    #[inline]
    fn drop(&mut self) {
        self.2.settle(self.0);
    }
}

/// Whether somebody waits for the lock of `object`, or the scheduler wants the CPU.
#[inline]
pub(crate) fn need_break<T: RwLocked>(object: T) -> bool {
    // SAFETY: By the contract of `RwLocked`.
    unsafe { bindings::rust_support_need_break(object.rwlock()) }
}
