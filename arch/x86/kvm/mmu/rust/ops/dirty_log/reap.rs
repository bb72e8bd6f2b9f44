// SPDX-License-Identifier: GPL-2.0

//! Reaping the dirty log: what `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG` do to a memslot.
//!
//! Bits are taken out of the bitmap, and then their pages are protected again, so that the next
//! write to each is noticed. Upstream does that for one word of 64 pages at a time, holds
//! `mmu_lock` for write from the first word to the last, and descends from the root at least once
//! for each. Here `mmu_lock` is held for *read*, and a walk covers up to 256 MiB, visits each table
//! once, and yields.
//!
//! # Why the read lock is enough
//!
//! The rule is: *if a page may be written without being noticed, its bit is set, or will be by
//! somebody who already runs*. Reaping first takes the bit, by an exchange that orders everything,
//! and then clears W (or D) in whatever maps the page: by an exchange if the entry may change in
//! ways that count, and otherwise by a plain store ([`super::leaves`] says why that is enough).
//! Against each of its peers:
//!
//! - A **fast page fault** (no lock) sets W by an exchange, and *then* the bit. If its exchange
//!   comes before our change, we clear its W, and at worst a bit stays set for a page that is
//!   protected. If it comes after, so does its bit, after we took ours.
//! - A **fault** (read lock) installs a writable leaf by an exchange, and then sets the bit, in
//!   this order ([`crate::ops::map`]); the same argument holds. Upstream sets the bit before, which
//!   only the write lock makes right: we could take the bit in between, see no leaf, and miss the
//!   page. Between the leaf and its bit another vCPU may write the page. Both bits and bytes are
//!   right once the vCPU that faults is out of the kernel, and before the last copy is made all
//!   vCPUs are stopped. Nobody stops a thread that **prefetches** (`KVM_PRE_FAULT_MEMORY`). It
//!   installs a leaf that needs no bit, as the first write to it is noticed.
//! - A **split** (read lock, by a fault or by us) replaces a huge leaf by a table whose leaves have
//!   the same rights. Both we and it do that by an exchange on the huge leaf, and the loser looks
//!   again.
//! - **NX recovery** and **the zapping of roots** (read lock) unlink tables, and freeze their
//!   entries or not. An entry that is not present maps nothing; a leaf that takes its place later
//!   is a fault's. An entry of an unlinked table matters to nobody any more.
//! - **Aging** (no lock) clears A bits by an exchange; ours then fails, and is repeated, or our
//!   store undoes it: the page seems young once more.
//! - The **CPU** sets A and D by locked updates, so exchanges see them. We store plainly only where
//!   there is no D left to set that the log goes by. Under PML a D that is set after our change is
//!   logged.
//! - A **notifier**, and everything that concerns shadow pages, holds the lock for write: it runs
//!   before or after one of our critical sections. Shadow pages may be created while we yield;
//!   creating one sets the bits of what it maps writable. So it is enough to look for them each
//!   time *before* taking bits in the same critical section, and to continue with the write lock if
//!   there are any.
//! - **Another reaper** has other pages: see below.
//!
//! A CPU may use a cached writable translation until the flush at the end. Such a write is one that
//! happened before the ioctl returned, and userspace copies the page after that.
//!
//! # CLEAR by several threads
//!
//! `KVM_CLEAR_DIRTY_LOG` holds `slots_lock` only until it has claimed its range of a memslot's log
//! (`begin_clear()` in `rust_clear_log.c`). A range consists of whole words of the bitmap, because
//! `first_page` is a multiple of 64, and the last word of a slot is one range's. So what belongs to
//! one thread alone are its bits, the leaves of these pages, and its words of the bitmap's second
//! half, which it uses as its buffer. Against each of its peers:
//!
//! - **CLEAR of other pages** runs at the same time. Both split a huge page by an exchange, and the
//!   loser looks again. In a table that both have pages in, each changes only its own leaves
//!   ([`super::leaves`]). Each flushes for what it took, before its ioctl returns, and does not
//!   rely on the flush of the other: it flushes if it took any bit, whether it found a leaf to
//!   change or not. So it does not matter if the other has write-protected a huge page
//!   (`HugePages::Protect`) and has not flushed yet. `kvm_flush_remote_tlbs_memslot()` wants
//!   `slots_lock`, which is not held, because it flushes for operations that rely on each other's
//!   flush.
//! - **CLEAR of some of the same pages** waits, without `slots_lock`, until the first one has
//!   ended. Otherwise it could find the bit of a page clear that the other has taken and not
//!   protected yet, and return; and the two would overwrite each other's buffer.
//! - **GET in manual mode** copies the bitmap under `slots_lock`, and waits for nobody. It sees the
//!   bits that were taken as clear, although their pages may not be protected yet; the thread that
//!   took them copies these pages after its CLEAR has returned. A VMM that copies in one thread
//!   what another has cleared has to wait for that.
//! - **GET in legacy mode**, and all who **change memslots** (to enable or disable the log, to
//!   delete or move a slot, to make one) wait, with `slots_lock` held, until no range is claimed
//!   (`kvm_rs_wait_for_clears()`); none is claimed before they drop `slots_lock`. So nobody frees
//!   the slot or its bitmap, and nobody enables, disables, recovers or moves anything meanwhile.
//!   **Zapping all roots** because the NX mitigation is switched waits as well, so the roots that
//!   are walked stay valid.
//! - **D bits**: CLEAR keeps `slots_lock`. GET closes a table only if the CPU's A bit was cleared,
//!   and flushed, by an *earlier* holder ([`super::dirty_bits`]), and a CLEAR beside it would not
//!   be one.
//! - **Shadow pages** share caches for splitting, which `slots_lock` guards. Where there may be
//!   any, CLEAR keeps it, too. The first one may come in the middle of a CLEAR. The CLEAR then ends
//!   with `EAGAIN`, with all that it took protected and flushed, and begins again, with
//!   `slots_lock` held. It also takes the bits that were set since, which is right, because it has
//!   not returned yet. That happens once at most: shadow pages' lists stay.
//! - **`KVM_SET_MEMORY_ATTRIBUTES`**, **ioeventfds** and others that take `slots_lock` for
//!   something else don't wait. The first one zaps like a notifier, with `mmu_lock` held for write.
//! - The **dirty ring** has no bitmap to clear.
//!
//! # Interruption
//!
//! A fatal signal ends the ioctl between two batches, with `-EINTR`, and within a batch the
//! splitting: huge pages are then write-protected only. `KVM_CLEAR_DIRTY_LOG` has then cleared and
//! protected the first part of the range, and left the bits of the rest set; `KVM_GET_DIRTY_LOG`
//! puts back what it took. Either way every bit that is clear stands for a page whose next write is
//! noticed.

use core::ops::Range;

use kernel::error::{
    code::{
        EAGAIN,
        EINTR, //
    },
    Result, //
};

use super::{
    dirty_bits::{
        Counts,
        DirtyBits, //
    },
    leaves::{
        LeafBits,
        Leaves, //
    },
    protect, //
};
use crate::{
    cache::TdpSplitCache,
    ops::split::{
        self,
        refill_unless_killed,
        HugeLeaf, //
    },
    pte::Table,
    pure::{
        dirty::WORD_PAGES,
        Entry,
        Gfn,
        GfnRange,
        Index,
        Level,
        Masks,
        Protect,
        WriteBits, //
    },
    rmap::{
        ops as rmap,
        ShadowSplitCaches, //
    },
    root::{
        stable_roots,
        Roots,
        Selection, //
    },
    sync::{
        need_break,
        with_exclusive,
        with_shared,
        Exclusive,
        Holder,
        MmuLock,
        Reaper,
        Shared, //
    },
    sys::{
        fatal_signal_pending,
        stats::Event,
        DirtyBitmap,
        Memslot,
        Node,
        Shortage,
        SlotRange,
        Sp,
        Vm,
        Wanted, //
    },
    walk::{
        ShortWalk,
        Step,
        Walk, //
    }, //
};

/// How many words are taken before their pages are protected: those of 256 MiB. There is no yield
/// while they are taken, so that must not take long.
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
        match (vm.dirty_log_initially_set(), vm.eager_split()) {
            (false, _) => HugePages::Protected,
            (true, None) => HugePages::Protect,
            (true, Some(_)) => HugePages::Split,
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

impl Reaper<'_, '_> {
    /// What it holds `mmu_lock` for. The statistics of `mmu_lock` have room for one of several
    /// reapers.
    fn holder(&self, wanted: Wanted) -> Holder {
        match (self, wanted) {
            (_, Wanted::All) => Holder::Get,
            (Reaper::Only(_), Wanted::Requested) => Holder::Clear,
            (Reaper::OneOf { accounted, .. }, _) if *accounted => Holder::Clear,
            (Reaper::OneOf { .. }, _) => Holder::Caller,
        }
    }
}

/// One `KVM_GET_DIRTY_LOG` or `KVM_CLEAR_DIRTY_LOG`.
pub(crate) struct Reap<'a, 'l> {
    reaper: Reaper<'a, 'l>,
    slot: Memslot<'a>,
    log: DirtyBitmap<'a>,
    huge: HugePages,
    /// The log is in the D bits as well ([`super::dirty_bits`]). Then the reaper is the only one.
    by_dirty_bits: bool,
    /// Whether any bit was taken, so that the TLBs have to be flushed.
    flush: bool,
}

impl<'a, 'l> Reap<'a, 'l> {
    /// Reaps the words of `log`, which is that of `slot`.
    pub(crate) fn new(
        reaper: Reaper<'a, 'l>,
        slot: Memslot<'a>,
        log: DirtyBitmap<'a>,
        huge: HugePages,
    ) -> Self {
        let by_dirty_bits = matches!(reaper, Reaper::Only(_)) && reaper.vm().logs_by_dirty_bits();

        Reap {
            reaper,
            slot,
            log,
            huge,
            by_dirty_bits,
            flush: false,
        }
    }

    /// Takes the wanted bits, and makes the next write to each of their pages noticed. Takes
    /// `mmu_lock`, and flushes the TLBs.
    ///
    /// Errors: `EINTR` after a fatal signal, `EAGAIN` if it is one of several and shadow pages
    /// came; see above.
    pub(crate) fn run(mut self) -> Result {
        let vm = self.reaper.vm();
        let mut progress = Progress::Shadowed(0);
        // What is left of it is freed at the end, where no lock is held.
        let mut cache = None;

        if vm.uses_tdp_mmu() {
            let holder = self.reaper.holder(self.log.wanted());

            progress = with_shared(vm, holder, |lock| self.shared(lock, &mut cache));
        }
        let only = matches!(self.reaper, Reaper::Only(_));
        if let (Progress::Shadowed(from), true) = (&progress, only) {
            let from = *from;

            progress = with_exclusive(vm, Holder::Rmap, |lock| self.exclusive(lock, from));
        }

        let result = match progress {
            Progress::Interrupted(at) => {
                if self.log.wanted() == Wanted::All {
                    self.log.put_back(0..at);
                }
                Err(EINTR)
            }
            Progress::Shadowed(_) => Err(EAGAIN),
            Progress::Done => Ok(()),
        };
        if self.flush {
            vm.flush_tlbs_range(self.slot.range());
        }
        result
    }

    /// With a TDP MMU, and as long as there are no shadow pages.
    fn shared(&mut self, lock: &mut Shared<'_>, cache: &mut Option<TdpSplitCache>) -> Progress {
        for from in (0..self.log.len()).step_by(BATCH) {
            lock.cond_resched();
            if fatal_signal_pending() {
                return Progress::Interrupted(from);
            }
            if Vm::has_shadow_pages(lock) {
                return Progress::Shadowed(from);
            }

            let batch = from..self.log.len().min(from.wrapping_add(BATCH));
            // D bits come before the bitmap; see `dirty_bits`.
            if !self.by_dirty_bits {
                if !self.log.take(batch.clone()) {
                    continue;
                }
                self.flush = true;
            } else if !self.log.is_any_wanted(batch.clone()) {
                continue;
            }

            let mut roots = Roots::new(lock.vm(), Selection::valid(self.slot.as_id()));
            while let Some(root) = roots.next(lock) {
                if self.by_dirty_bits {
                    self.flush |= self.clean_in_root(lock, root, batch.clone(), cache);
                } else {
                    self.protect_in_root(lock, root, batch.clone(), cache);
                }
            }
            drop(roots);
            if self.by_dirty_bits {
                // The walk may have yielded. The first shadow page may have come then, with a
                // writable leaf and its page's bit set, which must not be taken without looking at
                // the leaf.
                if Vm::has_shadow_pages(lock) {
                    return Progress::Shadowed(from);
                }
                self.flush |= self.log.take(batch);
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
        let vm = lock.vm();
        let masks = vm.masks();
        let bits = LeafBits::new(vm, root.role(), masks);
        let log = &self.log;
        let end = self.slot.range().end.min(log.gfn(batch.end));
        let pages = GfnRange::new(log.gfn(batch.start), end);
        let Some(first) = log.next_taken(pages.start, batch.end) else {
            return;
        };
        let range = GfnRange::new(first, end);
        let mut huge = self.huge;
        let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

        // From one page whose bit was taken to the next: most logs are sparse.
        while let Some(mut step) = walk.next() {
            let view = step.view;
            let within = view.range().intersection(range);
            let mut from = view.range().end;

            match view.entry(masks) {
                Entry::Table(_) if view.level() > Level::Page2M => continue,
                Entry::Table(_) => from = self.protect_tables(&step, &bits, pages, masks),
                Entry::Leaf(pfn) if huge == HugePages::Split && log.any_taken(within) => {
                    let cache = cache.get_or_insert_with(|| TdpSplitCache::new(vm, Shortage::Kill));
                    let node = Node::of(pfn);
                    let Some(page) = cache.take(node) else {
                        let leaf = HugeLeaf::of(&view, node);

                        if !refill_unless_killed(&mut walk, cache, &leaf, range.end) {
                            huge = HugePages::Protect;
                        }
                        continue;
                    };

                    // The leaves are created protected, if all of the pages are to be.
                    let whole = view.level() == Level::Page2M
                        && within == view.range()
                        && log.all_taken(within);
                    let like = if whole {
                        view.spte().cleared(bits.bit())
                    } else {
                        view.spte()
                    };

                    match split::split_as(page, &mut step, like, Event::EagerSplit, masks) {
                        Ok(_) if whole => {}
                        // Now it is a table.
                        Ok(_) => {
                            walk.revisit();
                            continue;
                        }
                        Err(page) => {
                            cache.put(page, node);
                            walk.revisit();
                            continue;
                        }
                    }
                }
                Entry::Leaf(_) if huge == HugePages::Protect && log.any_taken(within) => {
                    let clear = bits.bit().and(WriteBits::W);

                    if view.spte().has_any(clear.raw())
                        && step.try_clear_bits(clear, bits.as_id()).is_err()
                    {
                        walk.revisit();
                        continue;
                    }
                }
                Entry::Leaf(_) | Entry::NonPresent | Entry::Frozen => {}
            }

            match log.next_taken(from, batch.end) {
                Some(next) => walk.seek(next),
                None => break,
            }
        }
    }

    /// Protects the pages of a batch, `pages`, that the table maps that an entry points to, and
    /// goes on with the entries after that, in the same table. A step of the walk takes longer than
    /// what is done in a table with a few dirty pages. Ends at an entry that points to no table,
    /// and where the walk has to yield. Returns the frame from where on pages are left to the walk.
    // A function of its own, so that its loops have all registers to themselves.
    #[inline(never)]
    fn protect_tables(
        &self,
        step: &Step<'_, Shared<'_>>,
        bits: &LeafBits<'_>,
        pages: GfnRange,
        masks: &Masks,
    ) -> Gfn {
        let (view, lock) = (&step.view, step.lock);
        let first = view.gfn();
        // Alias bits of a TDX root, which frames don't have, are above those of the index.
        let parent = view.sp().table();
        let small = |gfn| parent.small_child(Index::of(gfn, Level::Page2M), masks);
        let parent_end = first.round_down(Level::Page1G).add(Level::Page1G.pages());
        let rest = GfnRange::new(first, parent_end).intersection(pages);
        let mut tables = self.log.of_tables(rest);
        let mut gfn = first;

        while let Some(taken) = tables.next() {
            let is_clean = taken.iter().fold(0, |any, bits| any | bits) == 0;

            if let (false, Ok(taken)) = (is_clean, taken.try_into()) {
                if gfn != first && need_break(lock.vm()) {
                    return gfn;
                }
                // Where few pages are dirty, most of what is loaded would not be used.
                if tables.clone().next().and_then(<[u64]>::first) == Some(&u64::MAX) {
                    if let Some(next) = small(gfn.add(Level::Page2M.pages())) {
                        next.table().prefetch_entries();
                    }
                }
                if let Some(table) = small(gfn) {
                    let leaves = bits.of_table(lock, &self.reaper, table);

                    leaves.clear_words(gfn, taken);
                } else if gfn != first {
                    return gfn;
                }
            }
            gfn = gfn.add(Level::Page2M.pages());
        }
        if gfn != first {
            return gfn;
        }

        // Words with the bits of two tables, or a table that is not wholly in the batch.
        if let Some(table) = view.child(masks).and_then(Table::small) {
            let leaves = bits.of_table(lock, &self.reaper, table);

            self.clear_taken(&leaves, view.range().intersection(pages));
        }
        view.range().end
    }

    /// Clears the D bits of the pages of a batch in one root. Returns whether D was cleared, or a
    /// huge page changed.
    fn clean_in_root(
        &self,
        lock: &mut Shared<'_>,
        root: Sp<'_>,
        batch: Range<usize>,
        cache: &mut Option<TdpSplitCache>,
    ) -> bool {
        let vm = lock.vm();
        let masks = vm.masks();
        let log = &self.log;
        let end = self.slot.range().end.min(log.gfn(batch.end));
        let range = GfnRange::new(log.gfn(batch.start), end);
        let bits = LeafBits::new(vm, root.role(), masks);
        let Some(dirty) = self.dirty_bits(masks) else {
            return false;
        };
        let mut counts = Counts::default();
        let mut changed = false;
        let mut huge = self.huge;
        // The first page, from where the walk is on, that is requested.
        let mut next = range.start;
        let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

        while let Some(mut step) = walk.next() {
            let view = step.view;
            let within = view.range().intersection(range);

            match view.entry(masks) {
                Entry::Table(_) if view.level() == Level::Page2M => {
                    let all = log.wanted() == Wanted::All;

                    if all && dirty.is_closed(&view) && !log.any_current(within) {
                        continue;
                    }
                    let Some(table) = view.child(masks).and_then(Table::small) else {
                        continue;
                    };
                    let leaves = bits.of_table(step.lock, &self.reaper, table);

                    if all {
                        view.prefetch_next(masks);
                    }
                    changed |= self.take_dirty_bits(&leaves, within, &dirty, &mut counts);
                    if all {
                        dirty.close(&mut step, within);
                    }
                    // There will be a flush in any case.
                    if changed {
                        dirty.drain(&mut step);
                    }
                    if !all {
                        let end = view.range().end;

                        if next < end {
                            next = log.next_taken(end, batch.end).unwrap_or(range.end);
                        }
                        walk.skip_while(next, |spte| !dirty.is_open_table(spte));
                    }
                }
                Entry::Leaf(pfn) if huge == HugePages::Split && log.any_taken(within) => {
                    let cache = cache.get_or_insert_with(|| TdpSplitCache::new(vm, Shortage::Kill));
                    let node = Node::of(pfn);
                    let Some(page) = cache.take(node) else {
                        let leaf = HugeLeaf::of(&view, node);

                        if !refill_unless_killed(&mut walk, cache, &leaf, range.end) {
                            huge = HugePages::Protect;
                        }
                        continue;
                    };

                    // D of the pages that are not requested does not matter: their bits are set.
                    let like = view.spte().cleared(WriteBits::dirty(masks));

                    changed = true;
                    match split::split_as(page, &mut step, like, Event::EagerSplit, masks) {
                        Ok(_) if view.level() == Level::Page2M => dirty.drain(&mut step.again()),
                        Ok(_) => {}
                        Err(page) => {
                            cache.put(page, node);
                            walk.revisit();
                        }
                    }
                }
                Entry::Leaf(_) if huge == HugePages::Protect && log.any_taken(within) => {
                    let clear = WriteBits::W.and(WriteBits::dirty(masks));

                    changed = true;
                    if view.spte().has_any(clear.raw())
                        && step.set(view.spte().cleared(clear), masks).is_err()
                    {
                        walk.revisit();
                    }
                }
                _ => {}
            }
        }
        drop(walk);
        if log.wanted() == Wanted::All {
            counts.tell(vm, self.slot.as_id(), range);
        }
        changed
    }

    /// The D bits of a tree, if they are the log's: then `slots_lock` is held.
    fn dirty_bits<'m>(&'m self, masks: &'m Masks) -> Option<DirtyBits<'m>> {
        match &self.reaper {
            Reaper::Only(slots) => Some(DirtyBits::new(slots, masks)),
            Reaper::OneOf { .. } => None,
        }
    }

    /// Clears the D bits of the pages of `within`: all of them and sets the pages' bits in the
    /// bitmap, or those that are requested. Returns whether there were any.
    fn take_dirty_bits(
        &self,
        leaves: &Leaves<'_>,
        within: GfnRange,
        dirty: &DirtyBits<'_>,
        counts: &mut Counts,
    ) -> bool {
        match self.log.wanted() {
            Wanted::All => {
                let pages = dirty.harvest_clearing(leaves, within, &self.log);

                counts.add(pages);
                pages != 0
            }
            Wanted::Requested => self.clear_taken(leaves, within),
        }
    }

    /// Clears the D bits of the pages of some words, if there are shadow pages. Returns whether
    /// there were any.
    fn take_dirty_bits_of_words(&self, lock: &Exclusive<'_>, words: Range<usize>) -> bool {
        let vm = lock.vm();
        let masks = vm.masks();
        let mut counts = Counts::default();
        let mut changed = false;
        let end = self.slot.range().end.min(self.log.gfn(words.end));
        let range = GfnRange::new(self.log.gfn(words.start), end);

        let Some(dirty) = self.dirty_bits(masks) else {
            return false;
        };

        for root in stable_roots(lock, Selection::valid(self.slot.as_id())) {
            let bits = LeafBits::new(vm, root.role(), masks);
            let mut walk = ShortWalk::new(lock, root, Level::Page2M, range, masks);

            while let Some(step) = walk.next() {
                let view = step.view;

                match (view.entry(masks), view.child(masks).and_then(Table::small)) {
                    (Entry::Table(_), Some(table)) if view.level() == Level::Page2M => {
                        let within = view.range().intersection(range);
                        let leaves = bits.of_table(step.lock, &self.reaper, table);

                        changed |= self.take_dirty_bits(&leaves, within, &dirty, &mut counts);
                    }
                    _ => {}
                }
            }
        }
        if self.log.wanted() == Wanted::All {
            counts.tell(vm, self.slot.as_id(), range);
        }
        changed
    }

    /// Clears W or D of the pages of `within` whose bits are in the buffer: taken, or yet to be
    /// taken. Returns whether it was set in any.
    // A function of its own, so that its loops have all registers to themselves.
    #[inline(never)]
    fn clear_taken(&self, leaves: &Leaves<'_>, within: GfnRange) -> bool {
        let mut any = false;

        self.log.for_each_taken(within, |first, taken| {
            any |= leaves.clear_word(first, taken)
        });
        any
    }

    /// With shadow pages the reverse map needs the write lock. It is yielded after every 2 MiB.
    fn exclusive(&mut self, lock: &mut Exclusive<'_>, from: usize) -> Progress {
        let mut next = from;

        while next < self.log.len() {
            let words = next..self.end_of_huge_page(next);

            next = words.end;
            if self.by_dirty_bits {
                self.flush |= self.take_dirty_bits_of_words(lock, words.clone());
            }
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
            if let (HugePages::Split, true, Reaper::Only(slots)) =
                (self.huge, tdp, &mut self.reaper)
            {
                let whole = first.is_aligned(Level::Page2M)
                    && range.pages() == Level::Page2M.pages()
                    && log.all_taken(range);

                // The leaves of a whole huge page are created protected.
                rmap::split::split(
                    lock,
                    SlotRange::new(slot, range),
                    Level::Page4K,
                    whole.then_some(how),
                    &mut ShadowSplitCaches::new(slots),
                );
                split::try_split_huge_pages(lock, slot, range, Level::Page4K);
            }

            // What could not be split, and what must not be. For the log only: to take MMU-writable
            // away, as upstream does, would have to be flushed before anybody gets the lock. No
            // fast page fault makes a huge page of a logged slot writable.
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

            if tdp && !self.by_dirty_bits {
                protect::clear_dirty_masked(lock, slot, first, mask, how == Protect::Log);
            }
            rmap::protect::protect_masked(lock, slot, first, mask, how);
        }
    }
}
