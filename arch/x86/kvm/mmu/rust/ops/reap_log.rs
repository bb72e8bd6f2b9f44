// SPDX-License-Identifier: GPL-2.0

//! Reaping the dirty log: what `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG` do to a memslot.
//!
//! Bits are taken out of the bitmap, and then the pages that they stand for are protected again, so
//! that the next write to each is noticed. Upstream does that a word of 64 pages at a time, with
//! `mmu_lock` held for write from the first word to the last, and goes down from the root once or
//! more for each. Here `mmu_lock` is held for *read*, a walk covers up to 256 MiB, visits each table
//! once, and gives way to whoever waits.
//!
//! # Why the read lock is enough
//!
//! The rule is: *if a page may be written without being noticed, its bit is set, or will be by
//! somebody who already runs*. Reaping first takes the bit, by an exchange that orders everything, and
//! then clears W (or D) in whatever maps the page: by an exchange if the entry may change in ways that
//! count, and otherwise by a plain store ([`clear_leaf_bits`] says why that is enough). Against each
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
//!   before or after a hold of ours. Shadow pages may come into being while we give way; whoever
//!   makes one sets the bits of what it maps writable. So it suffices to look for them each time,
//!   *before* taking bits under the same hold of the lock, and to go on with the write lock if there
//!   are any.
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

use crate::{
    cache::TdpSplitCache,
    change::clear_leaf_bits,
    ops::{
        dirty_log::{self, bit_to_clear},
        split::{self, refill, HugeLeaf},
    },
    pte::Table,
    pure::{
        dirty::{frames, parts, WORD_PAGES},
        spte::WRITABLE,
        Entry, Gfn, GfnRange, Level, Masks, Protect, Settled,
    },
    rmap::{ops as rmap, ShadowSplitCaches},
    root::{Roots, Selection},
    sync::{with_exclusive, with_shared, Exclusive, MmuLock, Shared, SlotsLock},
    sys::{fatal_signal_pending, stats::Event, DirtyBitmap, Memslot, Node, Sp, Wanted},
    walk::Walk,
};

/// How many words are taken before their pages are protected: those of 256 MiB. Taking them is one
/// step for whoever waits for the lock, so it must be short.
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

/// How far a part of the work got.
enum Progress {
    /// All words are done.
    Done,
    /// A fatal signal came before this word.
    Interrupted(usize),
    /// The VM has shadow pages now, and from this word on they have to be seen to as well.
    Shadowed(usize),
}

/// Takes the wanted bits, and makes the next write to each of their pages noticed. Takes
/// `mmu_lock`, and flushes the TLBs.
///
/// Errors: `EINTR` after a fatal signal; see above.
pub(crate) fn reap(
    slots: &mut SlotsLock<'_>,
    slot: Memslot<'_>,
    log: &mut DirtyBitmap<'_>,
    huge: HugePages,
) -> Result {
    let vm = slots.vm();
    let mut flush = false;
    let mut progress = Progress::Shadowed(0);
    // What is left of it is freed at the end, where no lock is held.
    let mut cache = None;

    if vm.uses_tdp_mmu() {
        progress = with_shared(vm, |lock| {
            shared(lock, slots, slot, log, &mut cache, huge, &mut flush)
        });
    }
    if let Progress::Shadowed(from) = progress {
        progress = with_exclusive(vm, |lock| {
            let mut caches = ShadowSplitCaches::new(slots);

            exclusive(lock, slot, log, &mut caches, from, huge, &mut flush)
        });
    }

    let interrupted = match progress {
        Progress::Interrupted(at) => {
            if log.wanted() == Wanted::All {
                log.put_back(0..at);
            }
            true
        }
        Progress::Done | Progress::Shadowed(_) => false,
    };
    if flush {
        vm.flush_tlbs_memslot(slot);
    }
    if interrupted {
        return Err(EINTR);
    }
    Ok(())
}

/// With shadow pages: the reverse map needs the lock for write. It is given way after each 2 MiB.
fn exclusive(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    log: &mut DirtyBitmap<'_>,
    caches: &mut ShadowSplitCaches<'_>,
    from: usize,
    huge: HugePages,
    flush: &mut bool,
) -> Progress {
    let mut next = from;

    while next < log.len() {
        let words = next..end_of_huge_page(log, next);

        next = words.end;
        if log.take(words.clone()) {
            *flush = true;
            protect_words(lock, slot, log, caches, words, huge);
        }
        lock.cond_resched();
        if fatal_signal_pending() {
            return Progress::Interrupted(next);
        }
    }
    Progress::Done
}

/// The first word after `word` that begins in another 2 MiB page, or the number of words.
fn end_of_huge_page(log: &DirtyBitmap<'_>, word: usize) -> usize {
    let pages = Level::Page2M.pages();
    let left = pages.wrapping_sub(log.gfn(word).0 % pages);
    // Where the slot begins in the middle of 64 frames, the last word goes a bit further.
    let words = left.div_ceil(WORD_PAGES) as usize;

    log.len().min(word.wrapping_add(words))
}

/// Protects the pages whose bits were taken from `words`, in all page tables;
/// `kvm_arch_mmu_enable_log_dirty_pt_masked()`. They touch two huge pages at most.
fn protect_words(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    log: &DirtyBitmap<'_>,
    caches: &mut ShadowSplitCaches<'_>,
    words: Range<usize>,
    huge: HugePages,
) {
    let vm = lock.vm();
    let tdp = vm.uses_tdp_mmu();
    let how = Protect::for_log(vm.has_cpu_dirty_log());
    let mut some = words.filter(|word| log.taken(*word) != 0);
    let Some(first_word) = some.next() else {
        return;
    };
    let last_word = some.clone().next_back().unwrap_or(first_word);

    if huge != HugePages::Protected {
        let skipped = log.taken(first_word).trailing_zeros();
        let unused = log.taken(last_word).leading_zeros();
        let first = log.gfn(first_word).add(skipped.into());
        let end = log
            .gfn(last_word)
            .add(WORD_PAGES.wrapping_sub(unused.into()));
        let last = Gfn(end.0.wrapping_sub(1));
        let range = GfnRange::new(first, end);

        // Upstream does not split without a TDP MMU.
        if huge == HugePages::Split && tdp {
            let whole = first.is_aligned(Level::Page2M)
                && end.0.wrapping_sub(first.0) == Level::Page2M.pages()
                && log.all_taken(range);

            // A whole huge page has its leaves born protected.
            rmap::split::split(
                lock,
                slot,
                range,
                Level::Page4K,
                whole.then_some(how),
                caches,
            );
            split::try_split_huge_pages(lock, slot, range, Level::Page4K);
        }

        // What could not be split, and what must not be. For the log only: to take MMU-writable away,
        // as upstream does, would have to be flushed before anybody gets the lock. No fast page fault
        // makes a huge page of a logged slot writable.
        let other = first.round_down(Level::Page2M) != last.round_down(Level::Page2M);
        for gfn in [Some(first), other.then_some(last)].into_iter().flatten() {
            rmap::protect::protect_gfn(lock, slot, gfn, Level::Page2M, Protect::Log);
            if tdp {
                dirty_log::protect_gfn(lock, slot, gfn, Level::Page2M, Protect::Log);
            }
        }
    }

    for word in [first_word].into_iter().chain(some) {
        let (first, mask) = (log.gfn(word), log.taken(word));

        if tdp {
            dirty_log::clear_dirty_masked(lock, slot, first, mask, how == Protect::Log);
        }
        rmap::protect::protect_masked(lock, slot, first, mask, how);
    }
}

/// With a TDP MMU, and as long as there are no shadow pages.
fn shared(
    lock: &mut Shared<'_>,
    slots: &SlotsLock<'_>,
    slot: Memslot<'_>,
    log: &mut DirtyBitmap<'_>,
    cache: &mut Option<TdpSplitCache>,
    huge: HugePages,
    flush: &mut bool,
) -> Progress {
    let masks = lock.vm().masks();

    for from in (0..log.len()).step_by(BATCH) {
        lock.cond_resched();
        if fatal_signal_pending() {
            return Progress::Interrupted(from);
        }
        if lock.vm().has_shadow_pages(lock) {
            return Progress::Shadowed(from);
        }

        let batch = from..log.len().min(from.wrapping_add(BATCH));
        if !log.take(batch.clone()) {
            continue;
        }
        *flush = true;

        let mut roots = Roots::new(lock.vm(), Selection::valid(slot.as_id()));
        while let Some(root) = roots.next(lock) {
            protect_in_root(
                lock,
                slots,
                root,
                slot,
                log,
                batch.clone(),
                huge,
                cache,
                masks,
            );
        }
    }
    Progress::Done
}

/// Protects the pages of a batch in one root.
#[expect(clippy::too_many_arguments)]
fn protect_in_root(
    lock: &mut Shared<'_>,
    slots: &SlotsLock<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    log: &DirtyBitmap<'_>,
    batch: Range<usize>,
    mut huge: HugePages,
    cache: &mut Option<TdpSplitCache>,
    masks: &Masks,
) {
    let bit = bit_to_clear(lock.vm(), root.role(), masks);
    let end = slot.range().end.0.min(log.gfn(batch.end).0);
    let range = GfnRange::new(log.gfn(batch.start), Gfn(end));
    let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

    while let Some(mut step) = walk.next() {
        let view = step.view;
        let within = view.range().intersection(range);

        match view.entry(masks) {
            Entry::Table(_) if view.level() == Level::Page2M => {
                if let Some(table) = view.child(masks) {
                    protect_pages(step.lock, slots, table, view.sp(), within, log, bit, masks);
                }
            }
            Entry::Leaf(pfn) if huge != HugePages::Protected && log.any_taken(within) => {
                if huge == HugePages::Split {
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

                    // Born protected, if all of its pages are to be.
                    let whole = view.level() == Level::Page2M
                        && within == view.range()
                        && log.all_taken(within);
                    let like = if whole {
                        view.spte().without(bit)
                    } else {
                        view.spte()
                    };

                    match split::split_as(page, &mut step, like, Event::EagerSplit, masks) {
                        Ok(_) if whole => walk.skip_table(),
                        Ok(_) => {
                            // Now it is a table.
                            walk.revisit();
                        }
                        Err(page) => {
                            cache.put(page.into_blank(), node);
                            walk.revisit();
                        }
                    }
                } else {
                    let clear = bit | WRITABLE;

                    if view.spte().0 & clear != 0
                        && step.set(view.spte().without(clear), masks).is_err()
                    {
                        walk.revisit();
                    }
                }
            }
            _ => {}
        }
    }
}

/// Clears `bit` in the leaves of `table` that map the pages of `within` whose bits were taken.
// A function of its own, so that its loop has all registers.
#[inline(never)]
#[expect(clippy::too_many_arguments)]
fn protect_pages(
    lock: &Shared<'_>,
    slots: &SlotsLock<'_>,
    table: Table<'_>,
    parent: Sp<'_>,
    within: GfnRange,
    log: &DirtyBitmap<'_>,
    bit: u64,
    masks: &Masks,
) {
    let as_id = parent.role().as_id();
    let settled = Settled::new(masks);

    for part in parts(log.gfn(0), within) {
        for gfn in frames(part.first, log.taken(part.word) & part.bits) {
            clear_leaf_bits(lock, slots, table, gfn, as_id, bit, settled, masks);
        }
    }
}
