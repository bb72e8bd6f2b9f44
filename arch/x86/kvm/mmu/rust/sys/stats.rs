// SPDX-License-Identifier: GPL-2.0

//! Statistics of a VM, which userspace reads through `KVM_GET_STATS_FD` or in debugfs.
//!
//! No reader compares them with the tables, so a change and its count are not ordered.
//! [`crate::tally`] adds up what each split and each recovered page changes, and counts recovered
//! pages.

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

use crate::{
    bindings,
    sys::Vm, //
};

/// What is counted.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    /// A huge page was split before anybody wrote to it.
    EagerSplit,
    /// A fault of a vCPU split a huge page.
    FaultSplit,
    /// A huge page stays huge for lack of memory. Those that follow in the walk stay huge, too, and
    /// are not counted.
    SplitNoMemory,
    /// A huge page stays huge because the VM is at its limit of shadow pages.
    SplitNoBudget,
    /// Somebody else changed the entry first. The split is retried if there is still something to
    /// split.
    SplitLostRace,
    /// A walk dropped `mmu_lock` because it was contended, or because the CPU was needed.
    Yield,
    /// GET read the leaves of a table to find D bits.
    DirtyTable,
    /// It found none there.
    DirtyCleanTable,
    /// GET found D set in a leaf.
    DirtyPage,
}

/// Counts an event. Any thread may, under any lock.
#[inline]
pub(crate) fn count(vm: Vm<'_>, event: Event) {
    count_many(vm, event, 1);
}

/// Counts `n` events.
#[inline]
pub(crate) fn count_many(vm: Vm<'_>, event: Event, n: u64) {
    let event = match event {
        Event::EagerSplit => bindings::kvm_rs_event_KVM_RS_EAGER_SPLIT,
        Event::FaultSplit => bindings::kvm_rs_event_KVM_RS_FAULT_SPLIT,
        Event::SplitNoMemory => bindings::kvm_rs_event_KVM_RS_SPLIT_NO_MEMORY,
        Event::SplitNoBudget => bindings::kvm_rs_event_KVM_RS_SPLIT_NO_BUDGET,
        Event::SplitLostRace => bindings::kvm_rs_event_KVM_RS_SPLIT_LOST_RACE,
        Event::Yield => bindings::kvm_rs_event_KVM_RS_YIELD,
        Event::DirtyTable => bindings::kvm_rs_event_KVM_RS_DIRTY_TABLE,
        Event::DirtyCleanTable => bindings::kvm_rs_event_KVM_RS_DIRTY_CLEAN_TABLE,
        Event::DirtyPage => bindings::kvm_rs_event_KVM_RS_DIRTY_PAGE,
    };
    // SAFETY: The VM exists.
    unsafe { bindings::kvm_rs_count_events(vm.as_ptr(), event, n) }
}

/// The time for which a walk holds `mmu_lock`.
pub(crate) struct Hold<'a> {
    vm: Vm<'a>,
    /// When it began, in nanoseconds.
    since: u64,
}

impl<'a> Hold<'a> {
    /// Begins now.
    #[inline]
    pub(crate) fn begin(vm: Vm<'a>) -> Self {
        Hold { vm, since: clock() }
    }

    /// Ends, and begins anew once `f` has run.
    #[inline]
    pub(crate) fn interrupt<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.note();
        let result = f();

        self.since = clock();
        result
    }

    /// Updates the maximum.
    #[inline]
    fn note(&self) {
        let ns = clock().wrapping_sub(self.since);
        // SAFETY: The VM exists; the address of a field.
        let max = unsafe { &raw mut (*self.vm.as_ptr()).rs_stat.mmu_max_hold_ns };
        // SAFETY: The field is valid and aligned, and the MMU accesses it here only. For userspace
        // C reads and clears it by a plain access to the whole word, as it does all statistics.
        let max = unsafe { Atomic::from_ptr(max) };
        let longest = max.load(Relaxed);

        if ns > longest {
            raise(max, longest, ns);
        }
    }
}

/// Makes `max`, which was `longest`, no less than `ns`. Several holders of the lock for read may do
/// so at the same time.
#[cold]
#[inline(never)]
fn raise(max: &Atomic<u64>, mut longest: u64, ns: u64) {
    while ns > longest {
        match max.cmpxchg(longest, ns, Relaxed) {
            Ok(_) => break,
            Err(now) => longest = now,
        }
    }
}

impl Drop for Hold<'_> {
    #[inline]
    fn drop(&mut self) {
        self.note();
    }
}

/// The time of this CPU, in nanoseconds. The caller holds a lock, so it isn't migrated.
#[inline]
fn clock() -> u64 {
    // SAFETY: Reads the clock.
    unsafe { bindings::kvm_rs_clock() }
}
