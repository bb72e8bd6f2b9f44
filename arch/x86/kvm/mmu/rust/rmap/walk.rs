// SPDX-License-Identifier: GPL-2.0

//! Walking the reverse map of a memslot, level by level, and giving way to others.
//!
//! Before each list the walk may give way, as [`crate::walk`] does, and then it hands out that list
//! whoever waits: so a waiter that is always there, or two walks that get in each other's way, cannot
//! hold it in place. Long stretches of empty lists are no exception; upstream passes them without a
//! look at who waits.
//!
//! What the walk hands out borrows it, and so ends before the lock is dropped. Lists are part of the
//! memslot, and stay where they are; what is in them may be another after a pause.

use crate::{
    pte::Sptep,
    pure::{GfnRange, Level},
    rmap::{Found, List, Lists, Rmap, SlotRmaps},
    sync::{need_break, Exclusive, MmuLock, Unlocked},
    sys::{
        stats::{self, Event},
        Memslot,
    },
    tlb::Flush,
};

/// How many empty lists may be passed between two looks at who waits: two pages of them.
const BATCH: u32 = 1024;

/// A list that a walk stands on.
pub(crate) struct RmapStep<'s, 'l> {
    lock: &'s mut Exclusive<'l>,
    list: List<'s>,
    /// The level of the leaves in the list.
    pub(crate) level: Level,
}

impl<'l> RmapStep<'_, 'l> {
    /// The list, to look at and to change.
    #[inline]
    pub(crate) fn rmap(&mut self) -> Rmap<'_> {
        Rmap::new(self.lock, self.list)
    }

    /// The first SPTE in the list for which `wanted` is true, for a change that concerns other
    /// lists as well.
    #[inline]
    pub(crate) fn find(
        &mut self,
        wanted: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool,
    ) -> Option<Found<'_, 'l>> {
        Found::first(self.lock, self.list, wanted)
    }

    /// Runs `f` without `mmu_lock`. The list may be another afterwards.
    pub(crate) fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        self.lock.unlocked(f)
    }

    /// Gives way if somebody waits. The list may be another afterwards.
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
    slot: Memslot<'w>,
    range: GfnRange,
    level: Level,
    /// The level to walk after this.
    next_level: Option<Level>,
    last: Level,
    /// What is left of the level.
    lists: Option<Lists<'w>>,
    /// How many empty lists were passed since there was a chance to give way.
    passed: u32,
    may_yield: bool,
}

impl<'w, 'l> RmapWalk<'w, 'l> {
    /// Starts a walk over the levels `first` to `last`, and the frames of `range` in `slot`.
    pub(crate) fn new(
        lock: &'w mut Exclusive<'l>,
        slot: Memslot<'w>,
        first: Level,
        last: Level,
        range: GfnRange,
    ) -> Self {
        let some = !range.is_empty();

        RmapWalk {
            lock,
            slot,
            range,
            level: first,
            next_level: some.then_some(first),
            last,
            lists: None,
            passed: 0,
            may_yield: true,
        }
    }

    /// The same walk, but it never gives way.
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
        self.lists = SlotRmaps::new(self.slot, level).map(|lists| lists.lists(self.range));
        true
    }

    /// The next list that is not empty. Gives way first, if it should, and before that does the
    /// flush, if there is one.
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
                // Whatever was added meanwhile is no concern of this walk: it would not have found
                // it either, had it come a moment earlier.
                self.passed = 0;
                continue;
            }
            // If it was emptied meanwhile, there is nothing to do in it.
            return Some(RmapStep {
                lock: self.lock,
                list,
                level: self.level,
            });
        }
    }

    /// Does the flush, and lets others have the lock.
    #[cold]
    fn cond_resched(&mut self, flush: Option<&mut Flush>) {
        if let Some(flush) = flush {
            flush.now(self.lock.vm());
        }
        stats::count(self.lock.vm(), Event::Yield);
        self.lock.cond_resched();
    }
}
