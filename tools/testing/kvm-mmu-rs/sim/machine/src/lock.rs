// SPDX-License-Identifier: GPL-2.0

//! Locks. Taking one and dropping one are steps.

use std::{
    cell::{
        Cell,
        RefCell, //
    },
    collections::VecDeque, //
};

use crate::{
    rcu,
    sched::{
        block,
        facts,
        fail,
        me,
        note,
        point_on,
        steps_of,
        wake, //
    }, //
};

/// The order in which a thread takes locks, as `Documentation/virt/kvm/locking.rst` has it.
const ORDER: [&str; 4] = [
    "(slots_lock)",
    "(slots_arch_lock)",
    "(mmu_lock)",
    "(tdp_mmu_pages_lock)",
];

/// The bit of [`Facts::locks`](crate::sched::Facts::locks) for the lock that `what` takes or drops.
fn bit(what: &str) -> u32 {
    let rank = ORDER.iter().position(|name| what.ends_with(name));

    1 << rank.unwrap_or_else(|| fail(format!("{what}: a lock without a place in the order")))
}

/// Fails if this thread holds a lock that comes after this one. That need not be a deadlock in this
/// schedule, but there is one in which it is.
fn keep_order(what: &str) {
    if facts().locks >= bit(what) {
        fail(format!("{what}: a lock that comes after it is held"));
    }
}

/// A fair rwlock: a thread that comes while another one is waiting queues behind it. This is the
/// kernel's `qrwlock` in task context.
///
/// A holder may take [`BOUND`] steps of its own, while others wait, before it lets go.
#[derive(Default)]
pub struct RwLock {
    readers: RefCell<Vec<usize>>,
    writer: Cell<Option<usize>>,
    queue: RefCell<VecDeque<usize>>,
    /// Each holder, and how many steps it had taken when somebody began to wait.
    waited_for: RefCell<Vec<(usize, u64)>>,
}

/// How long somebody may wait for one who holds the lock, in its steps: for a batch of the log to
/// be taken, and a table to be torn down.
const BOUND: u64 = 4096;

thread_local! {
    static LONGEST: Cell<u64> = const { Cell::new(0) };
}

/// The most steps of a holder that somebody has waited for, in all runs so far.
pub fn longest_wait() -> u64 {
    LONGEST.get()
}

impl RwLock {
    fn key(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Somebody who waits need wait for this thread no longer.
    fn lets_go(&self) {
        let me = me();
        let mut waited_for = self.waited_for.borrow_mut();

        if let Some(n) = waited_for.iter().position(|(id, _)| *id == me) {
            let steps = steps_of(me) - waited_for.swap_remove(n).1;
            LONGEST.set(LONGEST.get().max(steps));
            if steps > BOUND {
                fail(format!(
                    "holds mmu_lock for {steps} steps more, and somebody waits for it"
                ));
            }
        }
    }

    /// Nobody waits too long for this thread so far: it would give way here in C, which a model
    /// does not, or C does not have it give way, however long it takes.
    pub fn excuse(&self) {
        let me = me();

        for (id, since) in self.waited_for.borrow_mut().iter_mut() {
            if *id == me {
                *since = steps_of(me);
            }
        }
    }

    fn is_free(&self, write: bool) -> bool {
        self.writer.get().is_none() && (!write || self.readers.borrow().is_empty())
    }

    fn lock(&self, write: bool) {
        let what = if write {
            "write_lock(mmu_lock)"
        } else {
            "read_lock(mmu_lock)"
        };
        let me = me();

        point_on(self.key(), true);
        if self.writer.get() == Some(me) || self.readers.borrow().contains(&me) {
            fail(format!("{what}: this thread holds it"));
        }
        keep_order(what);
        if !self.queue.borrow().is_empty() || !self.is_free(write) {
            if self.queue.borrow().is_empty() {
                let readers = self.readers.borrow();
                let holders = readers.iter().copied().chain(self.writer.get());
                *self.waited_for.borrow_mut() = holders.map(|id| (id, steps_of(id))).collect();
            }
            self.queue.borrow_mut().push_back(me);
            while self.queue.borrow().front() != Some(&me) || !self.is_free(write) {
                block(self.key(), what);
            }
            self.queue.borrow_mut().pop_front();
            wake(self.key());
        }
        if write {
            self.writer.set(Some(me));
        } else {
            self.readers.borrow_mut().push(me);
        }
        facts().spinning += 1;
        facts().freed = 0;
        facts().locks |= bit(what);
        note(what, [0; 3]);
    }

    /// Takes the lock for read.
    pub fn read_lock(&self) {
        self.lock(false);
    }

    /// Takes the lock for write.
    pub fn write_lock(&self) {
        self.lock(true);
    }

    /// Drops the lock, held for read.
    pub fn read_unlock(&self) {
        self.assert_read_held();
        point_on(self.key(), true);
        note("read_unlock(mmu_lock)", [0; 3]);
        self.lets_go();
        let me = me();
        self.readers.borrow_mut().retain(|reader| *reader != me);
        facts().spinning -= 1;
        facts().locks &= !bit("read_unlock(mmu_lock)");
        wake(self.key());
    }

    /// Drops the lock, held for write.
    pub fn write_unlock(&self) {
        self.assert_write_held();
        point_on(self.key(), true);
        note("write_unlock(mmu_lock)", [0; 3]);
        self.lets_go();
        self.writer.set(None);
        facts().spinning -= 1;
        facts().locks &= !bit("write_unlock(mmu_lock)");
        wake(self.key());
    }

    /// Whether somebody waits. A step.
    #[inline]
    pub fn needs_break(&self) -> bool {
        point_on(self.key(), false);
        self.is_contended()
    }

    /// Whether somebody waits.
    #[inline]
    pub fn is_contended(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Fails unless this thread holds the lock for read.
    pub fn assert_read_held(&self) {
        if !self.readers.borrow().contains(&me()) {
            fail("mmu_lock is not held for read".into());
        }
    }

    /// Fails unless this thread holds the lock for write.
    pub fn assert_write_held(&self) {
        if self.writer.get() != Some(me()) {
            fail("mmu_lock is not held for write".into());
        }
    }

    /// Fails unless this thread holds the lock.
    pub fn assert_held(&self) {
        if self.writer.get() != Some(me()) {
            self.assert_read_held();
        }
    }
}

/// A lock of one holder.
#[derive(Default)]
pub struct Lock {
    holder: Cell<Option<usize>>,
}

impl Lock {
    fn key(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Takes it. `spinning`: the holder may not sleep.
    pub fn lock(&self, what: &'static str, spinning: bool) {
        point_on(self.key(), true);
        if self.holder.get() == Some(me()) {
            fail(format!("{what}: this thread holds it"));
        }
        keep_order(what);
        if !spinning {
            may_sleep(what);
        }
        while self.holder.get().is_some() {
            block(self.key(), what);
        }
        self.holder.set(Some(me()));
        facts().spinning += u32::from(spinning);
        facts().locks |= bit(what);
        note(what, [0; 3]);
    }

    /// Drops it.
    pub fn unlock(&self, what: &'static str, spinning: bool) {
        self.assert_held(what);
        point_on(self.key(), true);
        note(what, [0; 3]);
        self.holder.set(None);
        facts().spinning -= u32::from(spinning);
        facts().locks &= !bit(what);
        wake(self.key());
    }

    /// Whether this thread holds it.
    pub fn is_held(&self) -> bool {
        self.holder.get() == Some(me())
    }

    /// Fails unless this thread holds it.
    pub fn assert_held(&self, what: &'static str) {
        if !self.is_held() {
            fail(format!("{what}: this thread does not hold it"));
        }
    }
}

/// Fails if this thread may not sleep; `might_sleep()`.
pub fn may_sleep(what: &'static str) {
    if facts().spinning != 0 {
        fail(format!("{what} may sleep, and a spinning lock is held"));
    }
    if rcu::in_critical_section() {
        fail(format!(
            "{what} may sleep, in an RCU read-side critical section"
        ));
    }
}
