// SPDX-License-Identifier: GPL-2.0

//! Walking the reverse map of a memslot, level by level, and yielding on the way.
//!
//! The walk may yield before each list, as [`crate::walk`] does, and then hands out that list even
//! if the lock is contended again. A steady stream of waiters, or two walks that keep interrupting
//! each other, can't keep it in place. It also yields in long stretches of empty lists, which
//! upstream skips without yielding.
//!
//! What the walk hands out borrows it, and so can't be used after the lock is dropped. The lists
//! are part of the memslot and stay where they are, but their contents may change during a yield.

use crate::{
    pte::Sptep,
    pure::Level,
    rmap::{
        Found,
        List,
        Lists,
        Rmap, //
    },
    sync::{
        need_break,
        Exclusive,
        MmuLock,
        Unlocked, //
    },
    sys::{
        stats::{
            self,
            Event, //
        },
        SlotRange, //
    },
    tlb::Flush, //
};

/// How many empty lists may be skipped before checking whether to yield: two pages of them.
const BATCH: u32 = 1024;

/// The list that a walk is at.
pub(crate) struct RmapStep<'s, 'l> {
    lock: &'s mut Exclusive<'l>,
    list: List<'s>,
    /// The level of the leaves in the list.
    pub(crate) level: Level,
}

impl<'l> RmapStep<'_, 'l> {
    /// The list.
    #[inline]
    pub(crate) fn rmap(&mut self) -> Rmap<'_> {
        Rmap::new(self.lock, self.list)
    }

    /// The first SPTE in the list for which `wanted` is true, for a change that affects other lists
    /// as well.
    #[inline]
    pub(crate) fn find(
        &mut self,
        wanted: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool,
    ) -> Option<Found<'_, 'l>> {
        Found::first(self.lock, self.list, wanted)
    }

    /// Runs `f` with `mmu_lock` dropped. The list may have changed afterwards.
    pub(crate) fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        self.lock.unlocked(f)
    }

    /// Yields if necessary. The list may have changed afterwards.
    pub(crate) fn cond_resched(&mut self) {
        if need_break(self.lock.vm()) {
            stats::count(self.lock.vm(), Event::Yield);
            self.lock.cond_resched();
        }
    }
}

/// A walk over the lists of the pages that hold frames of a range, for some levels.
pub(crate) struct RmapWalk<'w, 'l> {
    lock: &'w mut Exclusive<'l>,
    pages: SlotRange<'w>,
    level: Level,
    /// The level to walk after this.
    next_level: Option<Level>,
    last: Level,
    /// What is left of the level.
    lists: Option<Lists<'w>>,
    /// How many empty lists were skipped since the walk last could have yielded.
    passed: u32,
    may_yield: bool,
}

impl<'w, 'l> RmapWalk<'w, 'l> {
    /// Starts a walk over the levels `first` to `last`, for the frames of `pages`.
    pub(crate) fn new(
        lock: &'w mut Exclusive<'l>,
        pages: SlotRange<'w>,
        first: Level,
        last: Level,
    ) -> Self {
        RmapWalk {
            lock,
            pages,
            level: first,
            next_level: Some(first),
            last,
            lists: None,
            passed: 0,
            may_yield: true,
        }
    }

    /// The same walk, but without yielding.
    pub(crate) fn without_yield(mut self) -> Self {
        self.may_yield = false;
        self
    }

    /// Goes to the next level; false at the end.
    #[cold]
    fn enter(&mut self) -> bool {
        let Some(level) = self.next_level.filter(|level| *level <= self.last) else {
            return false;
        };

        self.level = level;
        self.next_level = level.up();
        self.lists = Some(Lists::of(self.pages, level));
        true
    }

    /// The next list that is not empty. Yields first if necessary, after doing the pending flush,
    /// if any.
    #[inline(always)]
    pub(crate) fn next(&mut self, mut flush: Option<&mut Flush>) -> Option<RmapStep<'_, 'l>> {
        loop {
            let Some(list) = self.lists.as_mut().and_then(Iterator::next) else {
                if !self.enter() {
                    return None;
                }
                continue;
            };

            let empty = list.is_empty();
            if empty {
                self.passed = self.passed.wrapping_add(1);
                if self.passed < BATCH {
                    continue;
                }
            }
            if self.may_yield && need_break(self.lock.vm()) {
                self.cond_resched(flush.as_deref_mut());
            }
            if empty {
                // Entries that were added during the yield don't matter: the walk would have missed
                // them just as well if it had come by a moment earlier.
                self.passed = 0;
                continue;
            }
            // If the list was emptied during the yield, there is nothing to do.
            return Some(RmapStep {
                lock: self.lock,
                list,
                level: self.level,
            });
        }
    }

    /// Does the pending flush, and yields.
    #[cold]
    fn cond_resched(&mut self, flush: Option<&mut Flush>) {
        if let Some(flush) = flush {
            flush.now(self.lock.vm());
        }
        stats::count(self.lock.vm(), Event::Yield);
        self.lock.cond_resched();
    }
}
