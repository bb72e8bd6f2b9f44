// SPDX-License-Identifier: GPL-2.0

//! Atomics, locks and RCU.

/// Atomic accesses: one scheduling point each, before it. All are sequentially consistent here; the
/// litmus tests are about their order.
pub mod atomic {
    use machine::mem::{
        self,
        Word, //
    };

    /// Orderings.
    pub mod ordering {
        pub struct Full;
        pub struct Acquire;
        pub struct Release;
        pub struct Relaxed;
    }

    /// A word that others may access at the same time.
    #[repr(transparent)]
    pub struct Atomic<T: Word>(core::cell::UnsafeCell<T>);

    impl<T: Word> Atomic<T> {
        /// Wraps the word at `ptr`.
        ///
        /// # Safety
        ///
        /// It must exist during `'a`.
        pub unsafe fn from_ptr<'a>(ptr: *mut T) -> &'a Self {
            // SAFETY: By this function's safety requirement.
            unsafe { &*ptr.cast() }
        }

        /// The word.
        pub fn as_ptr(&self) -> *mut T {
            self.0.get()
        }

        /// Reads.
        #[inline]
        pub fn load<O>(&self, _: O) -> T {
            mem::load(self.0.get())
        }

        /// Writes.
        #[inline]
        pub fn store<O>(&self, value: T, _: O) {
            mem::store(self.0.get(), value);
        }

        /// Exchanges.
        #[inline]
        pub fn xchg<O>(&self, value: T, _: O) -> T {
            mem::update("xchg", self.0.get(), |_| Some(value)).0
        }

        /// Compares and exchanges.
        #[inline]
        pub fn cmpxchg<O>(&self, old: T, new: T, _: O) -> Result<T, T> {
            let (was, done) =
                mem::update("cmpxchg", self.0.get(), |now| (now == old).then_some(new));

            if done {
                Ok(was)
            } else {
                Err(was)
            }
        }
    }

    /// Reads the word at `ptr`.
    ///
    /// # Safety
    ///
    /// It must exist.
    #[inline]
    pub unsafe fn atomic_load<T: Word, O>(ptr: *mut T, _: O) -> T {
        mem::load(ptr)
    }

    /// Writes the word at `ptr`.
    ///
    /// # Safety
    ///
    /// It must exist.
    #[inline]
    pub unsafe fn atomic_store<T: Word, O>(ptr: *mut T, value: T, _: O) {
        mem::store(ptr, value);
    }
}

/// Locks. The only one that the MMU takes this way is `tdp_mmu_pages_lock`.
pub mod lock {
    use core::marker::PhantomData;

    use crate::bindings::spinlock_t;

    const LOCK: &str = "spin_lock(tdp_mmu_pages_lock)";
    const UNLOCK: &str = "spin_unlock(tdp_mmu_pages_lock)";

    /// Spinlocks.
    pub mod spinlock {
        /// A `spinlock_t`.
        pub struct SpinLockBackend;
        /// A lock of that kind.
        pub type SpinLock<T> = super::Lock<T, SpinLockBackend>;
    }

    /// A lock that C has initialised.
    #[repr(transparent)]
    pub struct Lock<T, B>(spinlock_t, PhantomData<(T, B)>);

    /// A lock, held.
    pub struct Guard<'a, T, B>(&'a Lock<T, B>, crate::types::NotThreadSafe);

    impl<T, B> Lock<T, B> {
        /// Wraps C's lock.
        ///
        /// # Safety
        ///
        /// It must exist during `'a`.
        pub unsafe fn from_raw<'a>(ptr: *mut spinlock_t) -> &'a Self {
            // SAFETY: By this function's safety requirement.
            unsafe { &*ptr.cast() }
        }

        /// Takes it.
        pub fn lock(&self) -> Guard<'_, T, B> {
            self.0.lock(LOCK, true);
            Guard(self, crate::types::NotThreadSafe)
        }
    }

    impl<T, B> Drop for Guard<'_, T, B> {
        fn drop(&mut self) {
            self.0 .0.unlock(UNLOCK, true);
        }
    }
}

/// Read-copy-update.
pub mod rcu {
    use machine::rcu;

    /// A read-side critical section.
    pub struct Guard(crate::types::NotThreadSafe);

    /// Begins one.
    #[inline]
    pub fn read_lock() -> Guard {
        rcu::read_lock();
        Guard(crate::types::NotThreadSafe)
    }

    impl Drop for Guard {
        #[inline]
        fn drop(&mut self) {
            rcu::read_unlock();
        }
    }

    /// Waits until all callbacks have run.
    pub fn rcu_barrier() {
        rcu::barrier();
    }
}
