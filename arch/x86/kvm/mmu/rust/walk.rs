// SPDX-License-Identifier: GPL-2.0

//! Walking a page-table tree, and yielding on the way.
//!
//! # The protocol
//!
//! A walk visits, in pre-order, the entries that cover a range of guest frames (see
//! [`crate::pure::position`]). The root can only map frames within its reach
//! ([`Level::reach`](crate::pure::Level::reach)): a walk that starts beyond it is empty, and one
//! that runs past it ends there. The walk holds the RCU read lock throughout, so every table on its
//! path stays readable, even if another thread unlinks it. The entry is re-read before descending,
//! so that the walk doesn't enter a table that is no longer linked *here*.
//!
//! Before each entry the walk may **yield**: if `mmu_lock` is contended or the CPU should be
//! rescheduled, it leaves the RCU critical section, drops `mmu_lock`, retakes both, and restarts
//! from the root towards the frame it was at, because the tables on its path may be gone. It only
//! yields if it has made progress since it last started. Otherwise two walks that keep interrupting
//! each other, or a steady stream of waiters, could keep it in place forever.
//!
//! C returns "yielded" to the caller, which must then skip to the next iteration and must not use
//! what it got before. Here [`Walk::next`] hides the yield: it takes `&mut self`, and everything
//! that it hands out borrows the walk. Nothing survives a yield, and using a stale entry is a
//! borrow error. That is also why a walk is not an [`Iterator`].

use core::marker::PhantomData;

use kernel::sync::rcu;

use crate::{
    pte::{
        Table,
        View, //
    },
    pure::{
        position::Position,
        Gfn,
        GfnRange,
        Index,
        Level,
        Masks,
        Spte, //
    },
    sync::{
        need_break,
        MmuLock,
        Unlocked, //
    },
    sys::{
        stats::{
            self,
            Event,
            Hold, //
        },
        Sp,
        Vm, //
    },
    tlb::Flush, //
};

/// The levels that a tree can have.
const LEVELS: usize = Level::Page256T as usize;

/// What the cursor does when it is asked to move.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Motion {
    /// Visit the current entry (again).
    Stay,
    /// Step to the next entry.
    Step,
    /// Nothing is left.
    Ended,
}

/// The path to an entry, and how to get to the next.
struct TreeCursor<'r> {
    position: Position,
    /// The tables on the path; those below the current level are stale.
    path: [Table<'r>; LEVELS],
    end: Gfn,
    motion: Motion,
}

impl<'r> TreeCursor<'r> {
    /// A cursor at the root. `None` if the range starts beyond the reach of the root. Also `None`,
    /// with a warning, if the arguments are invalid (a bug in the caller).
    fn new(root: Sp<'r>, min_level: Level, range: GfnRange, alias: u64) -> Option<Self> {
        if !root.reach().contains(range.start) {
            return None;
        }

        let position = root
            .role()
            .level()
            .and_then(|level| Position::start(level, min_level, range.start, alias));

        if warn_on_once!(position.is_none()) {
            return None;
        }
        Some(TreeCursor {
            position: position?,
            path: [root.table(); LEVELS],
            end: range.end,
            motion: Motion::Stay,
        })
    }

    /// The table of the current entry.
    #[inline]
    fn table(&self) -> Table<'r> {
        // A level is at most `LEVELS`. The fallback is never taken, and is cheaper than a panic.
        let depth = self.position.level() as usize - 1;

        *self.path.get(depth).unwrap_or(&self.path[0])
    }

    /// Moves to the next entry, and reads it.
    #[inline(always)]
    fn next(&mut self, masks: &Masks) -> Option<View<'r>> {
        match self.motion {
            Motion::Ended => return None,
            Motion::Stay => self.motion = Motion::Step,
            Motion::Step => {
                if !self.descend(masks) {
                    while !self.position.advance() {
                        if !self.position.ascend() {
                            self.motion = Motion::Ended;
                            return None;
                        }
                    }
                }
            }
        }

        if self.position.gfn() >= self.end {
            self.motion = Motion::Ended;
            return None;
        }

        Some(
            self.table()
                .view(self.position.index(), self.position.gfn()),
        )
    }

    /// Steps into the table that the current entry points to, if it does.
    #[inline]
    fn descend(&mut self, masks: &Masks) -> bool {
        if !self.position.may_descend() {
            return false;
        }

        // Re-read the entry: the table may have been unlinked from here.
        let Some(table) = self.table().child(self.position.index(), masks) else {
            return false;
        };
        if !self.position.descend() {
            return false;
        }

        let depth = self.position.level() as usize - 1;
        if let Some(step) = self.path.get_mut(depth) {
            *step = table;
        }
        true
    }

    /// Goes on to the entry that covers `gfn`; see [`Position::seek`].
    #[inline]
    fn seek(&mut self, gfn: Gfn) {
        if self.motion != Motion::Ended {
            self.motion = if self.position.seek(gfn) {
                Motion::Stay
            } else {
                Motion::Ended
            };
        }
    }

    /// Steps over the entries after the current one, in its table, that `skip` holds for, up to the
    /// one that covers `until`.
    #[inline]
    fn skip_while(&mut self, until: Gfn, mut skip: impl FnMut(Spte) -> bool) {
        let gfn = self.position.gfn().add(self.position.level().pages());
        let most = until.saturating_since(gfn) / self.position.level().pages();

        if self.motion == Motion::Step && !self.position.may_descend() {
            let after = self.table().after(self.position.index());
            let count = after
                .take(most as usize)
                .take_while(|sptep| skip(sptep.read()))
                .count();

            self.position.advance_by(count);
        }
    }

    /// Goes back to the root.
    fn restart(&mut self) {
        if self.motion != Motion::Ended {
            self.position.restart();
            self.motion = Motion::Stay;
        }
    }
}

/// A walk under `mmu_lock`, held in mode `M`, that yields.
pub(crate) struct Walk<'w, 'l, M: MmuLock<'l>> {
    /// `None` if there is nothing to walk.
    cursor: Option<TreeCursor<'w>>,
    /// `None` only inside [`Walk::pause`].
    guard: Option<rcu::Guard>,
    lock: &'w mut M,
    vm: Vm<'l>,
    hold: Hold<'l>,
    masks: &'w Masks,
}

impl<'w, 'l, M: MmuLock<'l>> Walk<'w, 'l, M> {
    /// Starts a walk over the entries of `root`'s tree that cover `range`, down to `min_level`.
    ///
    /// The root exists for `'w`, that is until the walk ends: [`crate::root::Roots`] holds a
    /// reference to it, as each root that it hands out shows by its lifetime.
    pub(crate) fn new(
        lock: &'w mut M,
        root: Sp<'w>,
        min_level: Level,
        range: GfnRange,
        masks: &'w Masks,
    ) -> Self {
        let vm = lock.vm();

        Walk::with_alias(
            lock,
            root,
            min_level,
            range,
            vm.alias_bits(root.role()),
            masks,
        )
    }

    /// As [`Walk::new`], over the whole tree.
    pub(crate) fn whole(lock: &'w mut M, root: Sp<'w>, min_level: Level, masks: &'w Masks) -> Self {
        let range = GfnRange::new(Gfn(0), crate::sys::max_gfn_exclusive());

        Walk::with_alias(lock, root, min_level, range, 0, masks)
    }

    fn with_alias(
        lock: &'w mut M,
        root: Sp<'w>,
        min_level: Level,
        range: GfnRange,
        alias: u64,
        masks: &'w Masks,
    ) -> Self {
        let vm = lock.vm();
        let guard = rcu::read_lock();

        Walk {
            cursor: TreeCursor::new(root, min_level, range, alias),
            guard: Some(guard),
            lock,
            vm,
            hold: Hold::begin(vm),
            masks,
        }
    }

    /// The next entry. Yields first if necessary. For walks that don't leave stale TLB entries that
    /// would have to be flushed before the lock is dropped.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<Step<'_, M>> {
        let mut view = self.cursor.as_mut()?.next(self.masks)?;

        if self.need_break() {
            stats::count(self.vm, Event::Yield);
            self.pause(|lock| lock.cond_resched());
            view = self.cursor.as_mut()?.next(self.masks)?;
        }
        Some(self.step(view))
    }

    /// The next entry. Yields first if necessary, after doing the pending flush.
    #[inline(always)]
    pub(crate) fn next_flushing(&mut self, flush: &mut Flush) -> Option<Step<'_, M>> {
        let mut view = self.cursor.as_mut()?.next(self.masks)?;

        if self.need_break() {
            flush.now(self.vm);
            stats::count(self.vm, Event::Yield);
            self.pause(|lock| lock.cond_resched());
            view = self.cursor.as_mut()?.next(self.masks)?;
        }
        Some(self.step(view))
    }

    /// The next entry, without yielding.
    #[inline(always)]
    pub(crate) fn next_without_yield(&mut self) -> Option<Step<'_, M>> {
        let view = self.cursor.as_mut()?.next(self.masks)?;

        Some(self.step(view))
    }

    #[inline]
    fn step<'s>(&'s self, view: View<'s>) -> Step<'s, M> {
        Step {
            view,
            lock: self.lock,
        }
    }

    /// The VM whose tables are walked.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.vm
    }

    /// Makes the next step revisit the current entry, with its new value.
    #[inline]
    pub(crate) fn revisit(&mut self) {
        if let Some(cursor) = self.cursor.as_mut() {
            cursor.motion = Motion::Stay;
        }
    }

    /// Makes the next step visit the entry that covers `gfn`, and leave out what comes before it.
    /// It is the one in the lowest table on the path; from there the walk goes down towards `gfn`.
    #[inline]
    pub(crate) fn seek(&mut self, gfn: Gfn) {
        if let Some(cursor) = self.cursor.as_mut() {
            cursor.seek(gfn);
        }
    }

    /// Makes the next step leave out the entries that follow in the same table, as long as `skip`
    /// holds for them, up to the one that covers `until`. Does nothing above the lowest level of
    /// the walk.
    #[inline(always)]
    pub(crate) fn skip_while(&mut self, until: Gfn, skip: impl FnMut(Spte) -> bool) {
        if let Some(cursor) = self.cursor.as_mut() {
            cursor.skip_while(until, skip);
        }
    }

    /// Whether the walk should yield, and has made progress since it last started, so that yielding
    /// can't keep it in place.
    #[inline]
    pub(crate) fn need_break(&self) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| cursor.position.has_progressed())
            && need_break(self.vm)
    }

    /// Runs `f` with `mmu_lock` dropped, and restarts from the root.
    pub(crate) fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        self.pause(|lock| lock.unlocked(f))
    }

    /// Leaves the RCU critical section to run `f`, and goes back to the root.
    // Always inlined, as in a walk that calls it the compiler makes the loop a quarter larger.
    #[inline(always)]
    fn pause<R>(&mut self, f: impl FnOnce(&mut M) -> R) -> R {
        self.guard = None;
        let lock = &mut *self.lock;
        let result = self.hold.interrupt(|| f(lock));

        self.guard = Some(rcu::read_lock());
        if let Some(cursor) = self.cursor.as_mut() {
            cursor.restart();
        }
        result
    }
}

/// The entry that a walk is at, and the lock that allows it to be changed ([`crate::change`]).
pub(crate) struct Step<'s, M> {
    /// The entry.
    pub(crate) view: View<'s>,
    /// The lock that is held.
    pub(crate) lock: &'s M,
}

/// The entries that cover one frame, from the root down: a walk over a single frame, without what
/// only other walks need. Faults depend on it being cheap.
struct Path<'r> {
    /// The table of the current entry.
    table: Table<'r>,
    /// Whether that entry has been visited.
    visited: bool,
    min_level: Level,
    gfn: Gfn,
    alias: u64,
}

impl<'r> Path<'r> {
    /// The path to `gfn`, down to `min_level`. `None` if `gfn` is beyond the reach of the root.
    /// Also `None`, with a warning, if the arguments are invalid (a bug in the caller).
    #[inline(always)]
    fn new(root: Sp<'r>, min_level: Level, gfn: Gfn, alias: u64) -> Option<Self> {
        if !root.reach().contains(gfn) {
            return None;
        }

        let level = root.role().level();
        let possible = gfn.is_below_alias(alias) && level >= Some(min_level);

        if warn_on_once!(!possible) {
            return None;
        }
        Some(Path {
            table: root.table(),
            visited: false,
            min_level,
            gfn,
            alias,
        })
    }

    /// Steps down to the next entry, and reads it. The current entry is re-read first: its table
    /// may have been unlinked, or linked, since it was visited.
    #[inline(always)]
    fn next(&mut self, masks: &Masks) -> Option<View<'r>> {
        if self.visited {
            if self.table.level() <= self.min_level {
                return None;
            }
            self.table = self.table.child(self.index(), masks)?;
        }
        self.visited = true;

        let gfn = self.gfn.round_down(self.table.level());
        Some(self.table.view(self.index(), gfn))
    }

    /// The index of the current entry.
    #[inline]
    fn index(&self) -> Index {
        Index::of(self.gfn.with_alias(self.alias), self.table.level())
    }
}

/// What keeps the tables readable during a walk that never yields, and what may be done with an
/// entry.
pub(crate) trait Access<'w> {
    /// What the walk hands out for an entry.
    type Item<'s>
    where
        Self: 's;

    /// Makes it.
    fn item<'s>(&'s self, view: View<'w>) -> Self::Item<'s>;
}

/// `mmu_lock` is held in mode `M`, and the walk holds the RCU read lock: entries may be changed.
pub(crate) struct Locked<'w, M> {
    lock: &'w M,
    _guard: rcu::Guard,
}

impl<'w, M> Locked<'w, M> {
    #[inline]
    fn new(lock: &'w M) -> Self {
        Locked {
            lock,
            _guard: rcu::read_lock(),
        }
    }
}

impl<'w, M> Access<'w> for Locked<'w, M> {
    type Item<'s>
        = Step<'s, M>
    where
        Self: 's;

    #[inline(always)]
    fn item<'s>(&'s self, view: View<'w>) -> Step<'s, M> {
        Step {
            view,
            lock: self.lock,
        }
    }
}

/// Only the RCU read lock is held, by the caller, for `'g`: entries may be read, and aged
/// ([`View::mark_old`]).
pub(crate) struct Lockless<'g>(PhantomData<&'g rcu::Guard>);

impl<'g> Access<'g> for Lockless<'g> {
    type Item<'s>
        = View<'g>
    where
        Self: 's;

    #[inline(always)]
    fn item<'s>(&'s self, view: View<'g>) -> View<'g> {
        view
    }
}

/// A walk down to one frame. It never yields.
pub(crate) struct Descent<'w, A> {
    path: Option<Path<'w>>,
    masks: &'w Masks,
    access: A,
}

impl<'w, M> Descent<'w, Locked<'w, M>> {
    /// Starts a walk to `gfn`, down to `min_level`, under `mmu_lock`.
    #[inline]
    pub(crate) fn new<'l>(
        lock: &'w M,
        root: Sp<'w>,
        min_level: Level,
        gfn: Gfn,
        masks: &'w Masks,
    ) -> Self
    where
        M: MmuLock<'l>,
    {
        let access = Locked::new(lock);
        let alias = lock.vm().alias_bits(root.role());

        Descent {
            path: Path::new(root, min_level, gfn, alias),
            masks,
            access,
        }
    }
}

impl<'g> Descent<'g, Lockless<'g>> {
    /// Starts a walk to `gfn`, down to 4 KiB, without a lock.
    #[inline]
    pub(crate) fn lockless(
        vm: Vm<'_>,
        _guard: &'g rcu::Guard,
        root: Sp<'g>,
        gfn: Gfn,
        masks: &'g Masks,
    ) -> Self {
        Descent {
            path: Path::new(root, Level::Page4K, gfn, vm.alias_bits(root.role())),
            masks,
            access: Lockless(PhantomData),
        }
    }
}

impl<'w, A: Access<'w>> Descent<'w, A> {
    /// The next entry.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<A::Item<'_>> {
        let view = self.path.as_mut()?.next(self.masks)?;

        Some(self.access.item(view))
    }
}

/// A walk over a few entries. It never yields.
pub(crate) struct ShortWalk<'w, A> {
    cursor: Option<TreeCursor<'w>>,
    masks: &'w Masks,
    access: A,
}

impl<'w, M> ShortWalk<'w, Locked<'w, M>> {
    /// Starts a walk under `mmu_lock`, as [`Walk::new`] does.
    pub(crate) fn new<'l>(
        lock: &'w M,
        root: Sp<'w>,
        min_level: Level,
        range: GfnRange,
        masks: &'w Masks,
    ) -> Self
    where
        M: MmuLock<'l>,
    {
        let access = Locked::new(lock);
        let alias = lock.vm().alias_bits(root.role());

        ShortWalk {
            cursor: TreeCursor::new(root, min_level, range, alias),
            masks,
            access,
        }
    }
}

impl<'g> ShortWalk<'g, Lockless<'g>> {
    /// Starts a walk over the entries of `root`'s tree that cover `range`, down to 4 KiB, without a
    /// lock.
    pub(crate) fn lockless(
        vm: Vm<'_>,
        _guard: &'g rcu::Guard,
        root: Sp<'g>,
        range: GfnRange,
        masks: &'g Masks,
    ) -> Self {
        ShortWalk {
            cursor: TreeCursor::new(root, Level::Page4K, range, vm.alias_bits(root.role())),
            masks,
            access: Lockless(PhantomData),
        }
    }
}

impl<'w, A: Access<'w>> ShortWalk<'w, A> {
    /// The next entry.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<A::Item<'_>> {
        let view = self.cursor.as_mut()?.next(self.masks)?;

        Some(self.access.item(view))
    }
}
