// SPDX-License-Identifier: GPL-2.0

//! Reaping the dirty log: what `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG` do to a memslot.
//!
//! Bits are taken out of the bitmap, and then their pages are protected again, so that the next write to
//! each is noticed. Upstream does that for one word of 64 pages at a time, holds `mmu_lock` for write
//! from the first word to the last, and descends from the root at least once for each. Here `mmu_lock`
//! is held for *read*, and a walk covers up to 256 MiB, visits each table once, and yields.
//!
//! # Why the read lock is enough
//!
//! The rule is: *if a page may be written without being noticed, its bit is set, or will be by
//! somebody who already runs*. Reaping first takes the bit, by an exchange that orders everything, and
//! then clears W (or D) in whatever maps the page: by an exchange if the entry may change in ways that
//! count, and otherwise by a plain store ([`LeafBits::clear`] says why that is enough). Against each
//! of its peers:
//!
//! - A **fast page fault** (no lock) sets W by an exchange, and *then* the bit. If its exchange
//!   comes before our change, we clear its W, and at worst a bit stays set for a page that is
//!   protected. If it comes after, so does its bit, after we took ours.
//! - A **fault** (read lock) installs a writable leaf by an exchange, and then sets the bit, in this
//!   order ([`crate::ops::map`]); the same argument holds. Upstream sets the bit before, which only
//!   the write lock makes right: we could take the bit in between, see no leaf, and miss the page.
//!   Between the leaf and its bit another vCPU may write the page. Both bits and bytes are right once
//!   the vCPU that faults is out of the kernel, and who makes the last copy has stopped all vCPUs.
//!   Nobody stops a thread that **prefetches** (`KVM_PRE_FAULT_MEMORY`). It installs a leaf that needs
//!   no bit, as the first write to it is noticed.
//! - A **split** (read lock, by a fault or by us) replaces a huge leaf by a table whose leaves have
//!   the same rights. Both we and it do that by an exchange on the huge leaf: who loses looks again.
//! - **NX recovery** and **root invalidation** (read lock) unlink tables and freeze their entries.
//!   An entry that is not present maps nothing; a leaf that takes its place later is a fault's. An
//!   entry of an unlinked table matters to nobody any more.
//! - **Aging** (no lock) clears A bits by an exchange; ours then fails, and is repeated, or our
//!   store undoes it: the page seems young once more.
//! - The **CPU** sets A and D by locked updates, so exchanges see them. We store plainly only where
//!   there is no D left to set. Under PML a D that is set after our change is logged.
//! - A **notifier**, and everything that concerns shadow pages, holds the lock for write: it runs
//!   before or after one of our critical sections. Shadow pages may be created while we yield; creating
//!   one sets the bits of what it maps writable. So it is enough to look for them each time *before*
//!   taking bits in the same critical section, and to continue with the write lock if there are any.
//! - A **parallel reaper** of the slot does not exist: `slots_lock` is held. It would do no harm:
//!   each bit has one taker.
//!
//! A CPU may use a cached writable translation until the flush at the end. Such a write is one that
//! happened before the ioctl returned, and userspace copies the page after that.
//!
//! # Interruption
//!
//! A fatal signal ends the ioctl between two batches, with `-EINTR`, and within a batch the splitting:
//! huge pages are then write-protected only. `KVM_CLEAR_DIRTY_LOG` has then
//! cleared and protected the first part of the range, and left the bits of the rest set;
//! `KVM_GET_DIRTY_LOG` puts back what it took. Either way every bit that is clear stands for a page
//! whose next write is noticed.

use core::ops::Range;

use kernel::error::{code::EINTR, Result};

use super::protect::{self, bit_to_clear};
use crate::{
    cache::TdpSplitCache,
    ops::split::{self, refill, HugeLeaf},
    pte::Table,
    pure::{
        dirty::{frames, parts, WORD_PAGES},
        spte::WRITABLE,
        Entry, Gfn, GfnRange, Index, Level, Masks, Protect, Role, Settled,
    },
    rmap::{ops as rmap, ShadowSplitCaches},
    root::{Roots, Selection},
    sync::{with_exclusive, with_shared, Exclusive, MmuLock, Shared, SlotsLock},
    sys::{
        eager_page_split, fatal_signal_pending, stats::Event, trace, DirtyBitmap, Memslot, Node,
        Sp, Vm, Wanted,
    },
    walk::Walk,
};

/// How many words are taken before their pages are protected: those of 256 MiB. There is no yield while
/// they are taken, so that must not take long.
const BATCH: usize = 1024;

/// How huge pages are treated whose bits are taken. They are writable only where logging has begun
/// with all bits set (`KVM_DIRTY_LOG_INITIALLY_SET`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// There is none that is writable.
    Protected,
    /// Write-protect, so that the first write splits.
    Protect,
    /// Split; where that fails, write-protect.
    Split,
}

impl HugePages {
    /// How `KVM_CLEAR_DIRTY_LOG` treats those of a VM.
    pub(crate) fn of(vm: Vm<'_>) -> Self {
        match (vm.dirty_log_initially_set(), eager_page_split()) {
            (false, _) => HugePages::Protected,
            (true, false) => HugePages::Protect,
            (true, true) => HugePages::Split,
        }
    }
}

/// How far a part of the work got.
enum Progress {
    /// All words are done.
    Done,
    /// A fatal signal came before this word.
    Interrupted(usize),
    /// The VM has shadow pages now, and from this word on they have to be seen to as well.
    Shadowed(usize),
}

/// One `KVM_GET_DIRTY_LOG` or `KVM_CLEAR_DIRTY_LOG`.
pub(crate) struct Reap<'a, 'l> {
    /// The only reaper holds it.
    slots: &'a mut SlotsLock<'l>,
    slot: Memslot<'a>,
    log: DirtyBitmap<'a>,
    huge: HugePages,
    /// Whether any bit was taken, so that the TLBs have to be flushed.
    flush: bool,
}

impl<'a, 'l> Reap<'a, 'l> {
    /// Reaps the words of `log`, which is that of `slot`.
    pub(crate) fn new(
        slots: &'a mut SlotsLock<'l>,
        slot: Memslot<'a>,
        log: DirtyBitmap<'a>,
        huge: HugePages,
    ) -> Self {
        Reap {
            slots,
            slot,
            log,
            huge,
            flush: false,
        }
    }

    /// Takes the wanted bits, and makes the next write to each of their pages noticed. Takes
    /// `mmu_lock`, and flushes the TLBs.
    ///
    /// Errors: `EINTR` after a fatal signal; see above.
    pub(crate) fn run(mut self) -> Result {
        let vm = self.slots.vm();
        let mut progress = Progress::Shadowed(0);
        // What is left of it is freed at the end, where no lock is held.
        let mut cache = None;

        if vm.uses_tdp_mmu() {
            progress = with_shared(vm, |lock| self.shared(lock, &mut cache));
        }
        if let Progress::Shadowed(from) = progress {
            progress = with_exclusive(vm, |lock| self.exclusive(lock, from));
        }

        let interrupted = match progress {
            Progress::Interrupted(at) => {
                if self.log.wanted() == Wanted::All {
                    self.log.put_back(0..at);
                }
                true
            }
            Progress::Done | Progress::Shadowed(_) => false,
        };
        if self.flush {
            vm.flush_tlbs_memslot(self.slot);
        }
        if interrupted {
            return Err(EINTR);
        }
        Ok(())
    }

    /// With a TDP MMU, and as long as there are no shadow pages.
    fn shared(&mut self, lock: &mut Shared<'_>, cache: &mut Option<TdpSplitCache>) -> Progress {
        for from in (0..self.log.len()).step_by(BATCH) {
            lock.cond_resched();
            if fatal_signal_pending() {
                return Progress::Interrupted(from);
            }
            if lock.vm().has_shadow_pages(lock) {
                return Progress::Shadowed(from);
            }

            let batch = from..self.log.len().min(from.wrapping_add(BATCH));
            if !self.log.take(batch.clone()) {
                continue;
            }
            self.flush = true;

            let mut roots = Roots::new(lock.vm(), Selection::valid(self.slot.as_id()));
            while let Some(root) = roots.next(lock) {
                self.protect_in_root(lock, root, batch.clone(), cache);
            }
        }
        Progress::Done
    }

    /// Protects the pages of a batch in one root.
    fn protect_in_root(
        &self,
        lock: &mut Shared<'_>,
        root: Sp<'_>,
        batch: Range<usize>,
        cache: &mut Option<TdpSplitCache>,
    ) {
        let masks = lock.vm().masks();
        let bits = LeafBits::new(lock.vm(), root.role(), masks);
        let log = &self.log;
        let end = self.slot.range().end.min(log.gfn(batch.end));
        let range = GfnRange::new(log.gfn(batch.start), end);
        let mut huge = self.huge;
        let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

        while let Some(mut step) = walk.next() {
            let view = step.view;
            let within = view.range().intersection(range);

            match view.entry(masks) {
                Entry::Table(_) if view.level() == Level::Page2M => {
                    if let Some(table) = view.child(masks) {
                        self.protect_pages(step.lock, table, within, &bits);
                    }
                }
                Entry::Leaf(pfn) if huge == HugePages::Split && log.any_taken(within) => {
                    let cache = cache.get_or_insert_with(TdpSplitCache::new);
                    let node = Node::of(pfn);
                    let Some(page) = cache.take(node) else {
                        let leaf = HugeLeaf::of(&view, node);

                        if fatal_signal_pending()
                            || !refill(&mut walk, cache, &leaf, range.end, Level::Page2M)
                        {
                            huge = HugePages::Protect;
                            walk.revisit();
                        }
                        continue;
                    };

                    // The leaves are created protected, if all of the pages are to be.
                    let whole = view.level() == Level::Page2M
                        && within == view.range()
                        && log.all_taken(within);
                    let like = if whole {
                        view.spte().without(bits.clear)
                    } else {
                        view.spte()
                    };

                    match split::split_as(page, &mut step, like, Event::EagerSplit, masks) {
                        Ok(_) if whole => walk.skip_table(),
                        // Now it is a table.
                        Ok(_) => walk.revisit(),
                        Err(page) => {
                            cache.put(page.into_blank(), node);
                            walk.revisit();
                        }
                    }
                }
                Entry::Leaf(_) if huge == HugePages::Protect && log.any_taken(within) => {
                    let clear = bits.clear | WRITABLE;

                    if view.spte().has_any(clear)
                        && step.set(view.spte().without(clear), masks).is_err()
                    {
                        walk.revisit();
                    }
                }
                _ => {}
            }
        }
    }

    /// Protects the leaves of `table` that map the pages of `within` whose bits were taken.
    // A function of its own, so that the loop has all registers to itself.
    #[inline(never)]
    fn protect_pages(
        &self,
        lock: &Shared<'_>,
        table: Table<'_>,
        within: GfnRange,
        bits: &LeafBits<'_>,
    ) {
        let log = &self.log;

        for part in parts(log.gfn(0), within) {
            for gfn in frames(part.first, log.taken(part.word) & part.bits) {
                bits.clear(lock, self.slots, table, gfn);
            }
        }
    }

    /// With shadow pages the reverse map needs the write lock. It is yielded after every 2 MiB.
    fn exclusive(&mut self, lock: &mut Exclusive<'_>, from: usize) -> Progress {
        let mut next = from;

        while next < self.log.len() {
            let words = next..self.end_of_huge_page(next);

            next = words.end;
            if self.log.take(words.clone()) {
                self.flush = true;
                self.protect_words(lock, words);
            }
            lock.cond_resched();
            if fatal_signal_pending() {
                return Progress::Interrupted(next);
            }
        }
        Progress::Done
    }

    /// The first word after `word` that begins in another 2 MiB page, or the number of words.
    fn end_of_huge_page(&self, word: usize) -> usize {
        let offset = self.log.gfn(word).offset_in(Level::Page2M);
        let left = Level::Page2M.pages().wrapping_sub(offset);
        // Where the slot begins in the middle of 64 frames, the last word goes a bit further.
        let words = left.div_ceil(WORD_PAGES) as usize;

        self.log.len().min(word.wrapping_add(words))
    }

    /// Protects the pages whose bits were taken from `words`, in all page tables;
    /// `kvm_arch_mmu_enable_log_dirty_pt_masked()`. They touch two huge pages at most.
    fn protect_words(&mut self, lock: &mut Exclusive<'_>, words: Range<usize>) {
        let vm = lock.vm();
        let (slot, log) = (self.slot, &self.log);
        let tdp = vm.uses_tdp_mmu();
        let how = Protect::for_log(vm.has_cpu_dirty_log());
        let mut some = words.filter(|word| log.taken(*word) != 0);
        let Some(first_word) = some.next() else {
            return;
        };
        let last_word = some.clone().next_back().unwrap_or(first_word);

        if self.huge != HugePages::Protected {
            let skipped = log.taken(first_word).trailing_zeros();
            let unused = log.taken(last_word).leading_zeros();
            let first = log.gfn(first_word).add(skipped.into());
            let end = log
                .gfn(last_word)
                .add(WORD_PAGES.wrapping_sub(unused.into()));
            let range = GfnRange::new(first, end);
            let last = range.last();

            // Upstream does not split without a TDP MMU.
            if self.huge == HugePages::Split && tdp {
                let whole = first.is_aligned(Level::Page2M)
                    && range.pages() == Level::Page2M.pages()
                    && log.all_taken(range);

                // The leaves of a whole huge page are created protected.
                rmap::split::split(
                    lock,
                    slot,
                    range,
                    Level::Page4K,
                    whole.then_some(how),
                    &mut ShadowSplitCaches::new(self.slots),
                );
                split::try_split_huge_pages(lock, slot, range, Level::Page4K);
            }

            // What could not be split, and what must not be. For the log only: to take MMU-writable
            // away, as upstream does, would have to be flushed before anybody gets the lock. No fast
            // page fault makes a huge page of a logged slot writable.
            let other = first.round_down(Level::Page2M) != last.round_down(Level::Page2M);
            for gfn in [Some(first), other.then_some(last)].into_iter().flatten() {
                rmap::protect::protect_gfn(lock, slot, gfn, Level::Page2M, Protect::Log);
                if tdp {
                    protect::protect_gfn(lock, slot, gfn, Level::Page2M, Protect::Log);
                }
            }
        }

        for word in [first_word].into_iter().chain(some) {
            let (first, mask) = (log.gfn(word), log.taken(word));

            if tdp {
                protect::clear_dirty_masked(lock, slot, first, mask, how == Protect::Log);
            }
            rmap::protect::protect_masked(lock, slot, first, mask, how);
        }
    }
}

/// What clearing a page's bit in the log clears in the leaves of a tree.
struct LeafBits<'m> {
    as_id: u16,
    /// W or D.
    clear: u64,
    settled: Settled,
    masks: &'m Masks,
}

impl<'m> LeafBits<'m> {
    /// For the tree of a root with this role.
    fn new(vm: Vm<'_>, role: Role, masks: &'m Masks) -> Self {
        LeafBits {
            as_id: role.as_id(),
            clear: bit_to_clear(vm, role, masks),
            settled: Settled::new(masks),
            masks,
        }
    }

    /// Clears bits of the 4 KiB leaf that maps `gfn` in `table`, if there is one, without bookkeeping but
    /// for the trace: for bits whose loss nobody counts (W and D, when the dirty log has them). Everybody
    /// who reaps a dirty log holds `slots_lock`, so there is only one.
    ///
    /// Where nothing can be lost, a plain store does it, as in upstream's `tdp_mmu_clear_spte_bits()`,
    /// although the lock is held for read only. In a settled entry (`settled` is that of `masks`) W and D
    /// are set, so no fault finds anything to do there (`tdp-reap-settled.litmus`); and between the load
    /// and the store
    ///
    /// - nobody else takes W or D away: reapers, and those who begin or end logging, hold `slots_lock`,
    ///   and write-tracking holds `mmu_lock` for write;
    /// - the CPU may set A, or aging clear it: that is lost or undone, which aging tolerates;
    /// - the table may be unlinked, and the entry frozen: 4 KiB leaves are zapped under the read lock
    ///   only with their table. The store then leaves a leaf in a table that nobody can reach any more
    ///   but those who are in it already. For the CPUs it is the translation that they had, less a
    ///   permission, until the flush by whoever unlinked the table. What a walker makes of it dies with
    ///   the table, at the end of its RCU critical section; and the leaf's statistics are settled by
    ///   what the freezing saw. The page itself outlives that, as its notifier waits for our lock.
    ///
    /// Otherwise the exchange is repeated until it succeeds, or there is nothing to clear.
    #[inline(always)]
    fn clear(&self, _lock: &Shared<'_>, _slots: &SlotsLock<'_>, table: Table<'_>, gfn: Gfn) {
        let sptep = table.sptep(Index::of(gfn, Level::Page4K));
        let bits = self.clear;
        let mut old = sptep.read();

        if self.settled.matches(old) {
            let new = old.without(bits);

            kvm_mmu_warn_on!(bits == self.masks.dirty && old.ad_need_write_protect());
            sptep.write(new);
            trace::spte_changed(self.as_id, gfn, Level::Page4K, old, new);
            return;
        }
        while old.is_present() && old.has_any(bits) {
            let new = old.without(bits);

            kvm_mmu_warn_on!(bits == self.masks.dirty && old.ad_need_write_protect());
            match sptep.compare_exchange(old, new) {
                Ok(()) => {
                    trace::spte_changed(self.as_id, gfn, Level::Page4K, old, new);
                    break;
                }
                Err(now) => old = now,
            }
        }
    }
}
