// SPDX-License-Identifier: GPL-2.0

//! Splitting huge pages, on a fault and eagerly.
//!
//! When dirty logging begins, huge pages have to be split, or the first write to each of them would
//! make a vCPU do so. Eager splitting moves that work to the thread that enables logging. It is
//! best effort: a page that can't be split for lack of memory stays huge, is write-protected in any
//! case, and is split by the first write.
//!
//! Userspace may also have huge pages split ahead of the log: [`super::ahead`].

use kernel::error::{
    code::{
        EINTR,
        ENOMEM, //
    },
    Result, //
};

use crate::{
    cache::TdpSplitCache,
    change::{
        lost_errno,
        Update, //
    },
    page::BlankSp,
    pte::View,
    pure::{
        addr::ENTRIES,
        Entry,
        Gfn,
        GfnRange,
        Level,
        Masks,
        Spte, //
    },
    root::{
        Roots,
        Selection, //
    },
    sys::{
        fatal_signal_pending,
        stats::{
            self,
            Event, //
        },
        trace,
        Memslot,
        Node,
        Shortage,
        Sp, //
    },
    walk::{
        Step,
        Walk, //
    }, //
};

/// Replaces the huge leaf at `step` by the table of `page`, which maps the same memory with the
/// same rights, and counts that as `event`. Returns the page if somebody else changed the entry
/// first.
///
/// The caller has matched the entry as a leaf.
pub(crate) fn split<'s, 'l, M: Update<'l>>(
    page: BlankSp,
    step: &mut Step<'s, M>,
    event: Event,
    masks: &Masks,
) -> Result<Sp<'s>, BlankSp> {
    let huge = step.view.spte();
    // D of a huge page does not tell which page was written; see `dirty_log::dirty_bits`.
    let like = if step.lock.vm().logs_by_dirty_bits() {
        huge.without(masks.dirty)
    } else {
        huge
    };

    split_as(page, step, like, event, masks)
}

/// As [`split`], but the small leaves are made from the huge leaf `like`, which may have fewer
/// rights than the one that is replaced.
pub(crate) fn split_as<'s, 'l, M: Update<'l>>(
    page: BlankSp,
    step: &mut Step<'s, M>,
    like: Spte,
    event: Event,
    masks: &Masks,
) -> Result<Sp<'s>, BlankSp> {
    let vm = step.lock.vm();
    let view = step.view;
    // A huge leaf is above the last level.
    let level = view.level().down().unwrap_or(Level::Page4K);

    let result = page.link_split(step, like, masks);
    let errno = match result {
        Ok(_) => {
            // Linking has accounted for the huge leaf that is gone.
            step.lock.tally().add_leaves(vm, level, ENTRIES as i32);
            match event {
                Event::EagerSplit => step.lock.tally().count_split(vm),
                event => stats::count(vm, event),
            }
            0
        }
        Err(_) => {
            stats::count(vm, Event::SplitLostRace);
            lost_errno()
        }
    };

    trace::split_huge_page(view.gfn(), view.spte(), view.level(), errno);
    result
}

/// The huge leaf that a walk is at when it runs out of tables to split with.
pub(in crate::ops) struct HugeLeaf {
    gfn: Gfn,
    spte: Spte,
    level: Level,
    node: Node,
}

impl HugeLeaf {
    /// Copies what is needed from a view, which doesn't survive the refill. `node` is the node of
    /// the page.
    pub(in crate::ops) fn of(view: &View<'_>, node: Node) -> Self {
        HugeLeaf {
            gfn: view.gfn(),
            spte: view.spte(),
            level: view.level(),
            node,
        }
    }
}

/// Fills `cache`, with `mmu_lock` dropped, for as many pages of `size` as may be left before `end`.
/// The walk restarts from the root. Returns false, and traces it, if there is no memory and `huge`
/// has to stay huge.
fn refill<'l, M: Update<'l>>(
    walk: &mut Walk<'_, 'l, M>,
    cache: &mut TdpSplitCache,
    huge: &HugeLeaf,
    end: Gfn,
    size: Level,
) -> bool {
    let want = end.since(huge.gfn).div_ceil(size.pages());
    let vm = walk.vm();
    let filled = walk.unlocked(|unlocked| cache.fill(vm, unlocked, want, huge.node));

    if !filled {
        stats::count(vm, Event::SplitNoMemory);
        trace::split_huge_page(huge.gfn, huge.spte, huge.level, ENOMEM.to_errno());
    }
    filled
}

/// As [`refill`], for splits to 4 KiB that the dirty log can do without: not if the current task is
/// being killed. The walk visits the entry again in any case.
pub(in crate::ops) fn refill_unless_killed<'l, M: Update<'l>>(
    walk: &mut Walk<'_, 'l, M>,
    cache: &mut TdpSplitCache,
    huge: &HugeLeaf,
    end: Gfn,
) -> bool {
    let filled = !fatal_signal_pending() && refill(walk, cache, huge, end, Level::Page2M);

    walk.revisit();
    filled
}

/// Splits the huge pages of `range` in `slot` down to `target`, in all valid roots, as far as there
/// is memory.
pub(crate) fn try_split_huge_pages<'l, M: Update<'l>>(
    lock: &mut M,
    slot: Memslot<'_>,
    range: GfnRange,
    target: Level,
) {
    // CLEAR_DIRTY_LOG calls this for every 64 pages, and usually there is nothing to split.
    let mut cache = None;
    let roots = Selection::valid(slot.as_id());
    let _ = split_huge_pages(lock, roots, range, target, &mut cache);

    if let Some(cache) = cache {
        cache.free(lock);
    }
}

/// Splits the huge pages of `range` down to `target`, in the roots of `selection`, with tables from
/// `cache`, which is made if it is needed. Fails with `ENOMEM` in the first root for which there is
/// no memory, and with `EINTR` instead of allocating more if the current task is being killed; then
/// some of the pages are split.
///
/// If nobody holds `slots_lock`, roots may become invalid whenever the walk yields. What is left of
/// them is not split.
pub(in crate::ops) fn split_huge_pages<'l, M: Update<'l>>(
    lock: &mut M,
    selection: Selection,
    range: GfnRange,
    target: Level,
    cache: &mut Option<TdpSplitCache>,
) -> Result {
    let masks = lock.vm().masks();
    let mut roots = Roots::new(lock.vm(), selection);

    while let Some(root) = roots.next(lock) {
        split_root(lock, root, range, target, cache, masks)?;
    }
    Ok(())
}

/// Splits in one root.
///
/// The walk visits an entry before those below it, so a 1 GiB page is split to 2 MiB first, and
/// then each of these. Tables are allocated with the lock dropped, and then the walk restarts.
fn split_root<'l, M: Update<'l>>(
    lock: &mut M,
    root: Sp<'_>,
    range: GfnRange,
    target: Level,
    cache: &mut Option<TdpSplitCache>,
    masks: &Masks,
) -> Result {
    let Some(min_level) = target.up() else {
        return Ok(());
    };
    let vm = lock.vm();
    let mut walk = Walk::new(lock, root, min_level, range, masks);

    while let Some(mut step) = walk.next() {
        if root.role().invalid() {
            break;
        }
        let Entry::Leaf(pfn) = step.view.entry(masks) else {
            continue;
        };
        let node = Node::of(pfn);
        let cache = cache.get_or_insert_with(|| TdpSplitCache::new(vm, Shortage::Kill));
        let Some(page) = cache.take(node) else {
            let huge = HugeLeaf::of(&step.view, node);

            if fatal_signal_pending() {
                return Err(EINTR);
            }
            if !refill(&mut walk, cache, &huge, range.end, min_level) {
                return Err(if fatal_signal_pending() {
                    EINTR
                } else {
                    ENOMEM
                });
            }
            continue;
        };

        if let Err(page) = split(page, &mut step, Event::EagerSplit, masks) {
            cache.put(page, node);
            walk.revisit();
        }
    }
    Ok(())
}
