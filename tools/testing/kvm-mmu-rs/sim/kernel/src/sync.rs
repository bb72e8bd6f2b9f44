// SPDX-License-Identifier: GPL-2.0

//! Atomics and RCU.

/// Atomic accesses: one scheduling point each, before it. All are sequentially consistent here; the
/// litmus tests are about their order.
pub mod atomic {
    use machine::mem::{self, Word};

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
            // SAFETY: by this function's safety requirement.
            unsafe { &*ptr.cast() }
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
