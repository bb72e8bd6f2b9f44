// SPDX-License-Identifier: GPL-2.0

//! Clearing W or D in the 4 KiB leaves of a table for the dirty log, many at a time.
//!
//! Upstream holds `mmu_lock` for write when it clears W or D in single leaves, and uses an exchange
//! for each leaf when it does so for a whole slot under the read lock. Here the lock is held for
//! read, and a plain store is used if nothing can be lost. There is no bookkeeping except for the
//! trace: W and D are not accounted.
//!
//! # Why a plain store is enough
//!
//! It is used for *settled* leaves only ([`Settled`]): those with W and, if the log clears D (PML,
//! or [`super::dirty_bits`]), with D. Eight leaves are loaded before the first of them is stored.
//! The rule of the log is: *if a page may be written without being noticed, its bit is set, or will
//! be set by somebody who is already running* ([`super::reap`]). Between our load and our store:
//!
//! - A **fast page fault** (no lock) has nothing to do, as W is set. It sees W clear only after our
//!   store, and then sets W by an exchange, and the bit after that. `tdp-reap-settled.litmus` is
//!   the case with D set, `tdp-reap-writable.litmus` that with D not set yet.
//! - The **CPU** sets A and D by locked updates, and our store may lose either. If A is lost, the
//!   page seems old, which aging tolerates. If D is lost and the log clears W, nobody reads it: KVM
//!   marks a folio dirty when it makes the leaf, D of a leaf that is zapped is not looked at, and
//!   the log goes by W. The CPU simply sets D again. If the log clears D itself, a settled leaf has
//!   D set, so the CPU has none left to set (`tdp-reap-unsettled.litmus` shows what would happen
//!   otherwise). It may write by what it has cached, with D set, until the flush; that is before
//!   the ioctl returns, and userspace copies the page after that.
//! - **Aging** (no lock) clears A by an exchange. The exchange fails, or our store reverts it and
//!   the page seems young. Aging never uses a plain store (`tdp-reap-age-store.litmus`). Without
//!   A/D bits it clears permissions, which faults restore; so a leaf without A/D bits is never
//!   settled.
//! - A **fault** (read lock) sees that the leaf is present and allows the write. If the leaf denies
//!   something else (an instruction fetch while the NX mitigation is being switched), the fault
//!   replaces it by an exchange, with the same frame, and sets the bit. Our store reverts that, and
//!   the guest faults again.
//! - Apart from these nobody clears or sets W or D in the same leaf: **reaping**, **enabling and
//!   disabling** the log exclude each other, and two **CLEARs** at the same time have claimed
//!   different pages ([`LogOwner`]). They may meet in a table, but eight leaves are stored at once
//!   only where all of a word's 64 pages are wanted, and a range consists of whole words.
//!   **Recovery** that userspace asks for leaves logged slots alone; **write-tracking** and
//!   **notifiers** hold `mmu_lock` for write.
//! - **NX recovery** and **zapping** (read lock) may unlink the table, and freeze its entries or
//!   leave them as they are ([`crate::change`]). Under the read lock 4 KiB leaves are only zapped
//!   with their table. Our store then leaves a leaf in a table that nobody can reach any more,
//!   except those who are in it already. For the CPUs it is the translation that they had, with a
//!   permission less, until whoever unlinked the table flushes. Whatever a walker makes of it is
//!   gone with the table at the end of its RCU critical section, and the statistics were updated
//!   from what was there when the table was torn down. The page itself is not freed before, because
//!   its notifier waits for our lock.
//!
//! Any other leaf is changed by exchanges, until one succeeds or there is nothing left to clear.

use super::protect::bit_to_clear;
use crate::{
    change::LogLocks,
    pte::{
        SmallGroup,
        SmallSptep,
        SmallTable,
        GROUP, //
    },
    pure::{
        dirty::{
            frames,
            set_bits,
            TABLE_WORDS,
            WORD_PAGES, //
        },
        Gfn,
        GfnRange,
        Index,
        Level,
        Masks,
        Role,
        Settled,
        Spte,
        WriteBits, //
    },
    sync::{
        LogOwner,
        MmuLock, //
    },
    sys::{
        trace,
        Vm, //
    }, //
};

/// What reaping the log clears in the leaves of a tree.
#[derive(Clone, Copy)]
pub(super) struct LeafBits<'m> {
    as_id: u16,
    /// W or D.
    bit: WriteBits,
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
            settled: Settled::new(bit, role, masks),
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
    pub(super) fn bit(&self) -> WriteBits {
        self.bit
    }

    /// The leaves of `table`, which belongs to the tree.
    #[inline]
    pub(super) fn of_table<'t, 'l>(
        &'t self,
        lock: &'t impl MmuLock<'l>,
        owner: &'t impl LogOwner,
        table: SmallTable<'t>,
    ) -> Leaves<'t> {
        Leaves {
            bits: self,
            table,
            traced: trace::spte_changed_enabled(),
            locks: LogLocks::new(lock, owner),
        }
    }

    /// Warns if D is to be cleared where W has to be (a bug), with `CONFIG_KVM_PROVE_MMU=y`.
    #[inline(always)]
    fn check(self, old: Spte) {
        kvm_mmu_warn_on!(self.bit == WriteBits::dirty(self.masks) && old.ad_need_write_protect());
    }

    /// Clears the bit in a leaf. Returns whether it was set.
    #[inline(always)]
    fn clear(self, locks: LogLocks<'_>, sptep: SmallSptep<'_>) -> bool {
        match sptep.clear_settled(locks, self.settled) {
            Ok(old) => {
                self.check(old);
                true
            }
            Err(old) => old.has_any(self.bit.raw()) && self.exchange(locks, sptep, old).is_some(),
        }
    }

    /// Clears the bit in the leaves of a table whose bits are set in `wanted`, up to a word that is
    /// all ones. Returns which that is.
    // Eight in a row, as LLVM does not unroll such a loop: most words have no bit or a few.
    #[inline(always)]
    fn clear_words(
        self,
        locks: LogLocks<'_>,
        table: SmallTable<'_>,
        wanted: &[u64; TABLE_WORDS],
    ) -> Result<(), usize> {
        let [a, b, c, d, e, f, g, h] = wanted;

        self.clear_word(locks, table, 0, *a)?;
        self.clear_word(locks, table, 1, *b)?;
        self.clear_word(locks, table, 2, *c)?;
        self.clear_word(locks, table, 3, *d)?;
        self.clear_word(locks, table, 4, *e)?;
        self.clear_word(locks, table, 5, *f)?;
        self.clear_word(locks, table, 6, *g)?;
        self.clear_word(locks, table, 7, *h)
    }

    /// The same for one of its words. Does nothing and returns the word if `wanted` is all ones.
    #[inline(always)]
    fn clear_word(
        self,
        locks: LogLocks<'_>,
        table: SmallTable<'_>,
        word: usize,
        wanted: u64,
    ) -> Result<(), usize> {
        let part = table.part(word);

        match wanted {
            0 => {}
            u64::MAX => return Err(word),
            _ => {
                for bit in set_bits(wanted) {
                    self.clear(locks, part.sptep(bit));
                }
            }
        }
        Ok(())
    }

    /// As [`LeafBits::clear_words`] from `word` on, which is all ones, as those that follow are
    /// likely to be.
    // A function of its own, so that its loops have all registers to themselves.
    #[inline(never)]
    fn clear_words_from(
        &self,
        locks: LogLocks<'_>,
        table: SmallTable<'_>,
        word: usize,
        wanted: &[u64; TABLE_WORDS],
    ) {
        let bits = *self;

        for (word, wanted) in wanted.iter().enumerate().skip(word) {
            if bits.clear_word(locks, table, word, *wanted).is_err() {
                let mut pages = table.part(word).pages();

                while let Some(group) = pages.next_group() {
                    bits.clear_group(locks, group);
                }
            }
        }
    }

    /// Clears the bit in eight leaves. Returns in which it was set; bit 0 stands for the first.
    #[inline(always)]
    fn clear_group(self, locks: LogLocks<'_>, group: SmallGroup<'_>) -> u64 {
        match group.clear_settled(locks, self.settled) {
            Ok(old) => {
                old.into_iter().for_each(|old| self.check(old));
                u64::MAX >> (u64::BITS - GROUP as u32)
            }
            Err(now) if Spte::any(&now).has_any(self.bit.raw()) => self.clear_each(locks, group),
            Err(_) => 0,
        }
    }

    /// The same, one by one.
    #[inline(never)]
    fn clear_each(self, locks: LogLocks<'_>, group: SmallGroup<'_>) -> u64 {
        let mut cleared: u64 = 0;

        for (n, sptep) in group.spteps().into_iter().enumerate() {
            cleared |= u64::from(self.clear(locks, sptep)).wrapping_shl(n as u32);
        }
        cleared
    }

    /// Clears the bit in a leaf that was `old` just now, however often it changes meanwhile.
    /// Returns what was replaced, or `None` if there was nothing to clear.
    #[cold]
    #[inline(never)]
    fn exchange(self, locks: LogLocks<'_>, sptep: SmallSptep<'_>, mut old: Spte) -> Option<Spte> {
        while old.is_present() && old.has_any(self.bit.raw()) {
            self.check(old);
            match sptep.try_clear(locks, old, self.bit) {
                Ok(()) => return Some(old),
                Err(now) => old = now,
            }
        }
        None
    }
}

/// The leaves of one table, while `mmu_lock` is held, and those that are changed are the holder's
/// ([`LogOwner`]).
#[derive(Clone, Copy)]
pub(super) struct Leaves<'t> {
    bits: &'t LeafBits<'t>,
    table: SmallTable<'t>,
    /// Whether each change has to be traced.
    traced: bool,
    locks: LogLocks<'t>,
}

impl<'t> Leaves<'t> {
    /// The table that they are in.
    #[inline]
    pub(super) fn table(&self) -> SmallTable<'t> {
        self.table
    }

    /// Clears the bit in the pages of `range`, all of which are in the table. Returns in which it
    /// was set: bit 0 stands for the first, and for the 65th, if there are more than 64.
    #[inline(always)]
    pub(super) fn clear_range(&self, range: GfnRange) -> u64 {
        // In registers, as far as the loop is concerned.
        let (bits, locks) = (*self.bits, self.locks);
        let mut cleared: u64 = 0;
        let mut at: u32 = 0;
        let mut pages = self.table.pages(range);

        self.table.check_start(range);
        if self.traced {
            return self.clear_traced(range);
        }
        while let Some(group) = pages.next_group() {
            cleared |= bits.clear_group(locks, group).wrapping_shl(at);
            at = at.wrapping_add(GROUP as u32);
        }
        for sptep in pages {
            cleared |= u64::from(bits.clear(locks, sptep)).wrapping_shl(at);
            at = at.wrapping_add(1);
        }
        cleared
    }

    /// Clears the bit in the pages whose bits are set in `wanted`, of which bit 0 is `first`. All
    /// of them are in the table. Returns whether it was set in any.
    #[inline(always)]
    pub(super) fn clear_word(&self, first: Gfn, wanted: u64) -> bool {
        let (bits, table) = (*self.bits, self.table);
        let mut any = false;

        if wanted == u64::MAX {
            return self.clear_range(GfnRange::new(first, first.add(WORD_PAGES))) != 0;
        }
        if self.traced {
            return self.clear_word_traced(first, wanted);
        }
        for gfn in frames(first, wanted) {
            table.check_start(GfnRange::single(gfn));
            any |= bits.clear(self.locks, table.sptep(Index::of(gfn, Level::Page4K)));
        }
        any
    }

    /// Clears the bit in the pages of the table whose bits are set in `wanted`, of which bit 0 of
    /// word 0 is the first page of the table, `first`.
    #[inline(always)]
    pub(super) fn clear_words(self, first: Gfn, wanted: &[u64; TABLE_WORDS]) {
        let Leaves {
            bits,
            table,
            traced,
            locks,
        } = self;

        table.check_start(GfnRange::single(first));
        if traced {
            return Leaves::clear_words_traced(bits, table, locks, first, wanted);
        }
        if let Err(word) = bits.clear_words(locks, table, wanted) {
            bits.clear_words_from(locks, table, word, wanted);
        }
    }

    /// The same, so that each change can be traced exactly.
    // Not of `self`, which would have to be in memory then.
    #[cold]
    #[inline(never)]
    fn clear_words_traced(
        bits: &LeafBits<'_>,
        table: SmallTable<'_>,
        locks: LogLocks<'_>,
        first: Gfn,
        wanted: &[u64; TABLE_WORDS],
    ) {
        let leaves = Leaves {
            bits,
            table,
            traced: true,
            locks,
        };
        let mut first = first;

        for wanted in wanted {
            leaves.clear_word_traced(first, *wanted);
            first = first.add(WORD_PAGES);
        }
    }

    /// The same as [`Leaves::clear_word`], so that each change can be traced exactly.
    #[cold]
    #[inline(never)]
    fn clear_word_traced(&self, first: Gfn, wanted: u64) -> bool {
        let mut any = false;

        for gfn in frames(first, wanted) {
            self.table.check_start(GfnRange::single(gfn));
            any |= self.clear_traced(GfnRange::single(gfn)) != 0;
        }
        any
    }

    /// The same as [`Leaves::clear_range`] one by one, so that each change can be traced exactly.
    #[cold]
    #[inline(never)]
    fn clear_traced(&self, range: GfnRange) -> u64 {
        let bits = self.bits;
        let mut cleared: u64 = 0;

        for (at, gfn) in range.frames().enumerate() {
            let sptep = self.table.sptep(Index::of(gfn, Level::Page4K));

            if let Some(old) = bits.exchange(self.locks, sptep, sptep.read()) {
                cleared |= 1u64.wrapping_shl(at as u32);
                trace::spte_changed(bits.as_id, gfn, Level::Page4K, old, old.cleared(bits.bit));
            }
        }
        cleared
    }
}
