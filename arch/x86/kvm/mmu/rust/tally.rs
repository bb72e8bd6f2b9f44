// SPDX-License-Identifier: GPL-2.0

//! Statistics that a holder of `mmu_lock` puts off: leaves of each level, splits, recovered pages,
//! and tables that wait to be freed.
//!
//! Threads that split or recover huge pages in different parts of a VM share no page table, and
//! take `mmu_lock` once for many of them. If each thread added to the counters of the VM for each
//! table, the cache lines of the counters would go back and forth between the CPUs, and a second
//! thread would save nothing. So each holder adds up for itself, and adds the sums to the VM's
//! counters after [`MOST`] changes, and when it drops the lock.
//!
//! Only readers in userspace notice: a counter may lack the last changes of each thread that holds
//! the lock. If one thread removes what another has just added, and settles first, a counter is too
//! low until the other settles. It wraps if it was 0. Of these counters KVM reads only that of
//! tables that wait. Tables are taken off it only after a grace period, which a holder of the lock
//! keeps from ending, so it never wraps.

#![expect(unsafe_code)]

use core::cell::Cell;

use crate::{
    bindings,
    pure::{
        addr::ENTRIES,
        Level, //
    },
    vm::Vm, //
};

/// How many changes a holder puts off at most. To split a huge page is three: leaves of two levels,
/// and the event. To recover one is four, with the table that has to be freed. So this is at least
/// 64 tables that are split or recovered. To zap a table is two, so it is 128 of those.
const MOST: u32 = 4 * 64;

// The leaves of all of them fit an `int`.
const _: () = assert!(MOST as usize * ENTRIES <= i32::MAX as usize);

/// What a holder of `mmu_lock` has done, and has not added to the statistics of the VM yet.
#[derive(Default)]
pub(crate) struct Tally {
    /// Leaves that were added, by level.
    leaves: [Cell<i32>; Level::LEAVES.len()],
    /// Huge pages that were split before anybody wrote to them.
    splits: Cell<u32>,
    /// Huge pages that were recovered.
    promotions: Cell<u32>,
    /// Tables that were unlinked, and have to be freed.
    unused: Cell<u32>,
    /// How many times something was added to one of these.
    changes: Cell<u32>,
}

impl Tally {
    /// Whether everything is in the statistics of the VM.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.get() == 0
    }

    /// Notes `count` more leaves of `level`, fewer if it is negative; at most 512. Tables of other
    /// levels have none.
    #[inline]
    pub(crate) fn add_leaves(&self, vm: Vm<'_>, level: Level, count: i32) {
        let Some(leaves) = self.leaves.get((level.raw() as usize).wrapping_sub(1)) else {
            return;
        };

        leaves.set(leaves.get().wrapping_add(count));
        self.changed(vm);
    }

    /// Notes a huge page that was split before anybody wrote to it.
    #[inline]
    pub(crate) fn count_split(&self, vm: Vm<'_>) {
        self.splits.set(self.splits.get().wrapping_add(1));
        self.changed(vm);
    }

    /// Notes a huge page that was recovered.
    #[inline]
    pub(crate) fn count_promotion(&self, vm: Vm<'_>) {
        self.promotions.set(self.promotions.get().wrapping_add(1));
        self.changed(vm);
    }

    /// Notes a table that was unlinked, and will be freed after a grace period.
    #[inline]
    pub(crate) fn count_unused(&self, vm: Vm<'_>) {
        self.unused.set(self.unused.get().wrapping_add(1));
        self.changed(vm);
    }

    #[inline]
    fn changed(&self, vm: Vm<'_>) {
        let changes = self.changes.get().wrapping_add(1);

        self.changes.set(changes);
        if changes >= MOST {
            self.add_to(vm);
        }
    }

    /// Adds everything to the statistics of the VM, whose lock is about to be dropped.
    #[inline]
    pub(crate) fn settle(&self, vm: Vm<'_>) {
        if !self.is_empty() {
            self.add_to(vm);
        }
    }

    #[cold]
    fn add_to(&self, vm: Vm<'_>) {
        self.changes.set(0);
        for (level, leaves) in Level::LEAVES.into_iter().zip(&self.leaves) {
            let count = leaves.take();

            if count != 0 {
                // SAFETY: The VM exists, and `pages[]` has an element for every level that has
                // leaves.
                unsafe { bindings::kvm_rs_update_page_stats(vm.as_ptr(), level.raw(), count) }
            }
        }
        // A fault that maps a page has none of these.
        if (self.splits.get() | self.promotions.get() | self.unused.get()) != 0 {
            self.add_tables_to(vm);
        }
    }

    /// Adds to the statistics of the VM what happened to its tables.
    #[cold]
    fn add_tables_to(&self, vm: Vm<'_>) {
        for (event, number) in [
            (bindings::kvm_rs_event_KVM_RS_EAGER_SPLIT, &self.splits),
            (bindings::kvm_rs_event_KVM_RS_PROMOTION, &self.promotions),
        ] {
            let count = number.take();

            if count != 0 {
                // SAFETY: The VM exists.
                unsafe { bindings::kvm_rs_count_events(vm.as_ptr(), event, count.into()) }
            }
        }
        let unused = self.unused.take();

        if unused != 0 {
            // SAFETY: The VM exists.
            unsafe { bindings::kvm_rs_add_unused_tables(vm.as_ptr(), unused) }
        }
    }
}
