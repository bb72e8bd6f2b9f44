// SPDX-License-Identifier: GPL-2.0

//! Protecting the 4 KiB leaves of a table for the dirty log, many at a time.
//!
//! Upstream holds `mmu_lock` for write when it clears W or D in single leaves, and uses an exchange for each
//! leaf when it does so for a whole slot under the read lock. Here the lock is held for read, and a plain
//! store is used if nothing can be lost. There is no bookkeeping except for the trace: W and D are not
//! accounted.
//!
//! # Why a plain store is enough
//!
//! It is used for *settled* leaves only ([`Settled`]): those with W and, if the log clears D (PML), with D.
//! The rule of the log is: *if a page may be written without being noticed, its bit is set, or will be set
//! by somebody who is already running* ([`super::reap`]). Between our load and our store:
//!
//! - A **fast page fault** (no lock) has nothing to do, as W is set. It sees W clear only after our store,
//!   and then sets W by an exchange, and the bit after that. `tdp-reap-settled.litmus` is the case with D
//!   set, `tdp-reap-writable.litmus` that with D not set yet.
//! - The **CPU** sets A and D by locked updates, and our store may lose either. If A is lost, the page seems
//!   old, which aging tolerates. If D is lost and the log clears W, nobody reads it: KVM marks a folio dirty
//!   when it makes the leaf, D of a leaf that is zapped is not looked at, and the log goes by W. The CPU
//!   simply sets D again. If the log clears D itself, a settled leaf has D set, so the CPU has none left to
//!   set (`tdp-reap-unsettled.litmus` shows what would happen otherwise).
//! - **Aging** (no lock) clears A by an exchange. The exchange fails, or our store reverts it and the page
//!   seems young. Aging never uses a plain store (`tdp-reap-age-store.litmus`). Without A/D bits it clears
//!   permissions, which faults restore; so a leaf without A/D bits is never settled.
//! - A **fault** (read lock) sees that the leaf is present and allows the write. If the leaf denies something
//!   else (an instruction fetch while the NX mitigation is being switched), the fault replaces it by an
//!   exchange, with the same frame, and sets the bit. Our store reverts that, and the guest faults again.
//! - Apart from these nobody clears or sets W or D: **reaping**, **enabling and disabling** the log hold `slots_lock`;
//!   **write-tracking** and **notifiers** hold `mmu_lock` for write.
//! - **NX recovery** and **zapping** (read lock) may unlink the table, and freeze its entries or leave them
//!   as they are ([`crate::change`]). Under the read lock 4 KiB leaves are only zapped with their table. Our
//!   store then leaves a leaf in a table that nobody can reach any more, except those who are in it already.
//!   For the CPUs it is the translation that they had, with a permission less, until whoever unlinked the
//!   table flushes. Whatever a walker makes of it is gone with the table at the end of its RCU critical
//!   section, and the statistics were updated from what was there when the table was torn down. The page
//!   itself is not freed before, because its notifier waits for our lock.
//!
//! Any other leaf is changed by exchanges, until one succeeds or there is nothing left to clear.

use core::marker::PhantomData;

use super::protect::bit_to_clear;
use crate::{
    pte::{Sptep, Table},
    pure::{
        dirty::{frames, WORD_PAGES},
        Gfn, GfnRange, Index, Level, Masks, Role, Settled, Spte,
    },
    sync::{Shared, SlotsLock},
    sys::{trace, Vm},
};

/// What protecting a page for the log clears in the leaves of a tree.
#[derive(Clone, Copy)]
pub(super) struct LeafBits<'m> {
    as_id: u16,
    /// W or D.
    bit: u64,
    settled: Settled,
    masks: &'m Masks,
}

impl<'m> LeafBits<'m> {
    /// For the tree of a root with this role.
    pub(super) fn new(vm: Vm<'_>, role: Role, masks: &'m Masks) -> Self {
        let bit = bit_to_clear(vm, role, masks);

        LeafBits {
            as_id: role.as_id(),
            bit,
            settled: Settled::new(bit, masks),
            masks,
        }
    }

    /// The address space of the tree.
    #[inline]
    pub(super) fn as_id(&self) -> u16 {
        self.as_id
    }

    /// The bit that is cleared: W or D.
    #[inline]
    pub(super) fn bit(&self) -> u64 {
        self.bit
    }

    /// The leaves of `table`, which has 4 KiB pages and belongs to the tree.
    #[inline]
    pub(super) fn of_table<'t>(
        &'t self,
        _lock: &'t Shared<'_>,
        _slots: &'t SlotsLock<'_>,
        table: Table<'t>,
    ) -> Leaves<'t> {
        Leaves {
            bits: *self,
            table,
            traced: trace::spte_changed_enabled(),
            held: PhantomData,
        }
    }

    /// Clears the bit in a leaf.
    #[inline(always)]
    fn clear(self, sptep: Sptep<'_>) {
        let old = sptep.read();

        if self.settled.matches(old) {
            kvm_mmu_warn_on!(self.bit == self.masks.dirty && old.ad_need_write_protect());
            sptep.write(old.without(self.bit));
        } else {
            self.exchange(sptep, old);
        }
    }

    /// Clears the bit in a leaf that was `old` just now, however often it changes meanwhile. Returns what was
    /// replaced, or `None` if there was nothing to clear.
    #[cold]
    #[inline(never)]
    fn exchange(self, sptep: Sptep<'_>, mut old: Spte) -> Option<Spte> {
        while old.is_present() && old.has_any(self.bit) {
            kvm_mmu_warn_on!(self.bit == self.masks.dirty && old.ad_need_write_protect());
            match sptep.compare_exchange(old, old.without(self.bit)) {
                Ok(()) => return Some(old),
                Err(now) => old = now,
            }
        }
        None
    }
}

/// The leaves of one table, while `mmu_lock` is held for read, and `slots_lock`.
pub(super) struct Leaves<'t> {
    bits: LeafBits<'t>,
    table: Table<'t>,
    /// Whether each change has to be traced.
    traced: bool,
    held: PhantomData<&'t ()>,
}

impl Leaves<'_> {
    /// Protects the pages of `range`, all of which are in the table.
    #[inline(always)]
    pub(super) fn protect_range(&self, range: GfnRange) {
        // In registers, as far as the loop is concerned.
        let (bits, table) = (self.bits, self.table);

        if self.traced {
            return self.protect_traced(range);
        }
        table.for_each_page(range, |sptep| bits.clear(sptep));
    }

    /// Protects the pages whose bits are set in `taken`, of which bit 0 is `first`. All of them are in the
    /// table.
    #[inline(always)]
    pub(super) fn protect_word(&self, first: Gfn, taken: u64) {
        let (bits, table) = (self.bits, self.table);

        if taken == u64::MAX {
            return self.protect_range(GfnRange::new(first, first.add(WORD_PAGES)));
        }
        if self.traced {
            return frames(first, taken).for_each(|gfn| self.protect_traced(GfnRange::single(gfn)));
        }
        for gfn in frames(first, taken) {
            bits.clear(table.sptep(Index::of(gfn, Level::Page4K)));
        }
    }

    /// Protects one by one, so that each change can be traced exactly.
    #[cold]
    #[inline(never)]
    fn protect_traced(&self, range: GfnRange) {
        let bits = self.bits;

        for gfn in range.frames() {
            let sptep = self.table.sptep(Index::of(gfn, Level::Page4K));

            if let Some(old) = bits.exchange(sptep, sptep.read()) {
                trace::spte_changed(bits.as_id, gfn, Level::Page4K, old, old.without(bits.bit));
            }
        }
    }
}
