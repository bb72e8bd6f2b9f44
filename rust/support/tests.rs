// SPDX-License-Identifier: GPL-2.0

//! KUnit tests.

use core::ptr::NonNull;

use kernel::{
    alloc::{
        flags::GFP_KERNEL,
        KBox, //
    },
    bindings::{
        callback_head,
        rwlock_t, //
    },
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        rcu::rcu_barrier, //
    }, //
};

use super::{
    atomic::AtomicBits,
    preempt::PreemptGuard,
    rcu,
    rwlock::{
        Held,
        HolderData,
        Mode,
        Read,
        RwLocked,
        Write, //
    },
    task, //
};
use crate::bindings;

/// How many objects were freed, and the sum of what they held.
static FREED: Atomic<u64> = Atomic::new(0);
static SUM: Atomic<u64> = Atomic::new(0);

#[repr(C)]
struct Object {
    value: u64,
    next: *mut callback_head,
    head: callback_head,
}

struct Owned(KBox<Object>);

// SAFETY: The head is part of the object, which `free` alone frees; an allocation is of no CPU.
unsafe impl rcu::RcuFree for Owned {
    fn into_head(self) -> NonNull<callback_head> {
        let object = KBox::into_raw(self.0);
        // SAFETY: The object exists; the address of a field.
        let head = unsafe { &raw mut (*object).head };

        // SAFETY: Part of an allocation, so not null.
        unsafe { NonNull::new_unchecked(head) }
    }

    /// # Safety
    ///
    /// As for [`RcuFree::link`].
    unsafe fn link(head: NonNull<callback_head>) -> *mut *mut callback_head {
        // SAFETY: By this function's safety requirement, `head` is part of an object.
        let object = unsafe { kernel::container_of!(head.as_ptr(), Object, head) };

        // SAFETY: The object exists; the address of a field.
        unsafe { &raw mut (*object).next }
    }

    /// # Safety
    ///
    /// As for [`RcuFree::free`].
    unsafe fn free(heads: &[NonNull<callback_head>]) {
        for head in heads {
            // SAFETY: By this function's safety requirement, `head` is part of an object.
            let object = unsafe { kernel::container_of!(head.as_ptr(), Object, head) };
            // SAFETY: It comes from `into_raw`, and nobody else has it.
            let object = unsafe { KBox::from_raw(object) };

            FREED.add(1u64, Relaxed);
            SUM.add(object.value, Relaxed);
        }
    }
}

/// A handle on the lock of `tests.c`.
#[derive(Clone, Copy)]
struct TestLock;

// SAFETY: The lock is static and initialised.
unsafe impl RwLocked for TestLock {
    fn rwlock(self) -> *mut rwlock_t {
        // SAFETY: Always safe to call.
        unsafe { bindings::rust_support_test_rwlock() }
    }
}

impl TestLock {
    /// Whether nobody holds it.
    fn is_free(self) -> bool {
        // SAFETY: Always safe to call.
        unsafe { bindings::rust_support_test_rwlock_is_free() }
    }
}

/// How often data of a holder was settled while the lock was held.
static SETTLED: Atomic<u64> = Atomic::new(0);

#[derive(Default)]
struct CountSettled;

impl HolderData<TestLock> for CountSettled {
    fn settle(&self, lock: TestLock) {
        SETTLED.add(u64::from(!lock.is_free()), Relaxed);
    }
}

/// [`SETTLED`] after `run_unlocked()`, after `cond_resched_rwlock()`, and when the proof is gone.
fn settled<M: Mode>() -> [u64; 3] {
    SETTLED.store(0, Relaxed);
    // SAFETY: The lock is initialised.
    unsafe { M::lock(TestLock.rwlock()) };
    // SAFETY: It was just taken, and is dropped after the proof.
    let mut held = unsafe { Held::<_, M, CountSettled>::assume_held(TestLock) };

    held.run_unlocked(|_| ());
    let unlocked = SETTLED.load(Relaxed);

    held.cond_resched_rwlock();
    let rescheduled = SETTLED.load(Relaxed);

    drop(held);
    // SAFETY: It was taken above.
    unsafe { M::unlock(TestLock.rwlock()) };
    [unlocked, rescheduled, SETTLED.load(Relaxed)]
}

/// Whether the lock is free before it is taken; then with the proof that it is held, inside and
/// after `run_unlocked()`, and after `cond_resched_rwlock()`; and once it is dropped.
fn when_free<M: Mode>() -> [bool; 6] {
    let before = TestLock.is_free();

    // SAFETY: The lock is initialised.
    unsafe { M::lock(TestLock.rwlock()) };
    // SAFETY: It was just taken, and is dropped after the proof.
    let mut held = unsafe { Held::<_, M>::assume_held(TestLock) };
    let taken = TestLock.is_free();
    let inside = held.run_unlocked(|_| TestLock.is_free());
    let retaken = TestLock.is_free();

    held.cond_resched_rwlock();
    let rescheduled = TestLock.is_free();

    drop(held);
    // SAFETY: It was taken above.
    unsafe { M::unlock(TestLock.rwlock()) };
    [
        before,
        taken,
        inside,
        retaken,
        rescheduled,
        TestLock.is_free(),
    ]
}

#[kunit_tests(rust_support)]
mod suite {
    use super::*;

    #[test]
    fn bitwise_operations_return_what_was_there() {
        let word = Atomic::new(0x8000_0000_0000_00ffu64);

        assert_eq!(word.fetch_and(!0x0f), 0x8000_0000_0000_00ff);
        assert_eq!(word.load(Relaxed), 0x8000_0000_0000_00f0);
        assert_eq!(word.fetch_or(0x0100), 0x8000_0000_0000_00f0);
        assert_eq!(word.load(Relaxed), 0x8000_0000_0000_01f0);
    }

    #[test]
    fn objects_are_freed_once_and_by_the_end_of_rcu_barrier() -> Result {
        let batch = rcu::Batch::new();

        FREED.store(0, Relaxed);
        SUM.store(0, Relaxed);
        for value in 1..=100u64 {
            let head = callback_head {
                next: core::ptr::null_mut(),
                func: None,
            };

            let next = core::ptr::null_mut();
            let object = Owned(KBox::new(Object { value, next, head }, GFP_KERNEL)?);

            // Some alone, and the others together.
            if value % 10 == 0 {
                rcu::call_rcu(object);
            } else {
                batch.add(object);
            }
        }
        drop(batch);
        rcu_barrier();
        assert_eq!(FREED.load(Relaxed), 100);
        assert_eq!(SUM.load(Relaxed), 5050);
        Ok(())
    }

    #[test]
    fn a_held_rwlock_is_free_only_in_run_unlocked() {
        let expected = [true, false, true, false, false, true];

        assert_eq!(when_free::<Read>(), expected);
        assert_eq!(when_free::<Write>(), expected);
    }

    #[test]
    fn data_of_a_holder_is_settled_before_the_lock_is_dropped() {
        assert_eq!(settled::<Read>(), [1, 2, 3]);
        assert_eq!(settled::<Write>(), [1, 2, 3]);
    }

    #[test]
    fn a_task_that_is_not_killed_has_no_fatal_signal() {
        assert!(!task::fatal_signal_pending());
    }

    #[test]
    fn preemption_guards_nest() {
        let outer = PreemptGuard::new();

        drop(PreemptGuard::new());
        // Still disabled, or lockdep complains.
        super::super::preempt::assert_disabled();
        drop(outer);
    }
}
