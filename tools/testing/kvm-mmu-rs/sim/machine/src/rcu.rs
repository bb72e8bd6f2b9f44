// SPDX-License-Identifier: GPL-2.0

//! RCU. A callback runs as soon as all who were in a read-side critical section have left it: the
//! earliest moment at which it may.

use std::cell::{
    Cell,
    UnsafeCell, //
};

use crate::sched::{
    block,
    facts,
    fail,
    me,
    note,
    parties_where,
    wake, //
};

struct Pending {
    readers: Vec<usize>,
    callback: Box<dyn FnOnce()>,
}

struct Global(UnsafeCell<Vec<Pending>>);
// SAFETY: One OS thread runs the simulation.
unsafe impl Sync for Global {}
static GLOBAL: Global = Global(UnsafeCell::new(Vec::new()));

fn pending() -> &'static mut Vec<Pending> {
    // SAFETY: One OS thread; nobody keeps the reference over a switch.
    unsafe { &mut *GLOBAL.0.get() }
}

/// Begins a run.
pub fn begin() {
    pending().clear();
    IN_CALLBACK.set(false);
}

/// Enters a read-side critical section.
#[inline]
pub fn read_lock() {
    facts().rcu += 1;
}

/// Leaves one.
pub fn read_unlock() {
    let facts = facts();

    if facts.rcu == 0 {
        fail("rcu_read_unlock() outside of a critical section".into());
    }
    facts.rcu -= 1;
    if facts.rcu == 0 && !pending().is_empty() {
        let me = me();
        for p in pending().iter_mut() {
            p.readers.retain(|reader| *reader != me);
        }
        run_ready();
    }
}

/// Whether this thread is in one.
#[inline]
pub fn in_critical_section() -> bool {
    facts().rcu != 0
}

/// Calls `callback` after a grace period.
pub fn call(callback: Box<dyn FnOnce()>) {
    note("call_rcu()", [0; 3]);
    pending().push(Pending {
        readers: parties_where(|facts| facts.rcu != 0),
        callback,
    });
    run_ready();
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether a callback runs, on the stack of whoever was there: in the kernel it is a softirq.
pub fn in_callback() -> bool {
    IN_CALLBACK.get()
}

fn run_ready() {
    while let Some(n) = pending().iter().position(|p| p.readers.is_empty()) {
        let nested = IN_CALLBACK.replace(true);

        (pending().remove(n).callback)();
        IN_CALLBACK.set(nested);
    }
    if pending().is_empty() {
        wake(KEY);
    }
}

const KEY: usize = usize::MAX - 1;

/// Waits until all callbacks have run.
pub fn barrier() {
    if in_critical_section() {
        fail("rcu_barrier() in a critical section".into());
    }
    while !pending().is_empty() {
        block(KEY, "a grace period");
    }
}
