// SPDX-License-Identifier: GPL-2.0

//! Recovering huge pages, in place, when dirty logging ends, or when userspace asks for it
//! ([`super::super::ahead`]).
//!
//! The huge leaf replaces the table in one exchange. The memory stays mapped all the time, so no
//! vCPU faults; zapping instead would make the vCPUs fault on each page. A page that was only
//! write-protected for the log becomes writable at once.
//!
//! Tearing down a table may take an exchange for each of its entries, and can't be interrupted by a
//! yield. To tear down only one table at a time, recovery goes from small to large: first 2 MiB
//! pages replace their tables, and then 1 GiB pages replace tables with no other tables below them.
//!
//! Pages that stay small become writable as they are ([`super::unprotect`]), and so do huge pages
//! that were not split: nobody should fault because of a log that has ended.

use super::unprotect::unprotect_pages;
use crate::{
    change::lost_errno,
    ops::spte::make_huge,
    pte::{
        Table,
        View, //
    },
    pure::{
        leaf::unprotected,
        Entry,
        Gfn,
        GfnRange,
        Index,
        Level,
        Masks,
        Spte, //
    },
    root::{
        Roots,
        Selection, //
    },
    sync::{
        MmuLock,
        Shared,
        SlotsLock, //
    },
    sys::{
        fatal_signal_pending,
        trace,
        Memslot,
        Sp,
        Unlogged,
        Vm, //
    },
    tlb::Flush,
    walk::{
        Step,
        Walk, //
    }, //
};

/// Recovers the huge pages of a slot whose log has ended, and makes the pages writable that stay as
/// they are.
pub(crate) fn recover_huge_pages(lock: &mut Shared<'_>, slots: &SlotsLock<'_>, slot: Memslot<'_>) {
    slots.check_vm(lock);
    // A huge page in a logged slot would lose writes.
    let Some(unlogged) = Unlogged::under_slots_lock(slot, slots) else {
        warn_on_once!(true);
        return;
    };

    let roots = Selection::valid(slot.as_id());

    recover_range(lock, unlogged, roots, slot.range());
}

/// Recovers the huge pages of the slot that overlap `range`, in the roots of `selection`, and makes
/// the pages of `range` writable that stay as they are, as far as they are the slot's. Stops early
/// if the current task is being killed.
///
/// If nobody holds `slots_lock`, roots may become invalid whenever the walk yields. They are left
/// as they are.
pub(in crate::ops) fn recover_range(
    lock: &mut Shared<'_>,
    unlogged: Unlogged<'_>,
    selection: Selection,
    range: GfnRange,
) {
    let range = unlogged.slot().range().intersection(range);
    let masks = lock.vm().masks();
    let mut roots = Roots::new(lock.vm(), selection);

    while let Some(root) = roots.next(lock) {
        for to in [Level::Page2M, Level::Page1G] {
            recover_level(lock, unlogged, root, range, to, masks);
        }
    }
}

/// What became of a table that a huge page might replace.
enum Outcome {
    /// It is gone: replaced by a huge page, or zapped because it was empty.
    Gone,
    /// Somebody else changed the entry first.
    Lost,
    /// It stays.
    Stays,
}

/// Recovers pages of level `to` in one root, where nothing smaller than the level below is left.
fn recover_level(
    lock: &mut Shared<'_>,
    unlogged: Unlogged<'_>,
    root: Sp<'_>,
    range: GfnRange,
    to: Level,
    masks: &Masks,
) {
    let vm = lock.vm();
    let role = root.role();
    let mut flush = Flush::new(false);
    let mut walk = Walk::new(lock, root, to, range, masks);
    // Where a table stays, what comes next most likely stays, too.
    let mut stays = false;

    while let Some(mut step) = walk.next_flushing(&mut flush) {
        // Don't bother recovering huge pages for a dying VM, or in a root that is being zapped.
        if fatal_signal_pending() || root.role().invalid() {
            break;
        }
        let view = step.view;

        if view.level() != to {
            continue;
        }
        match view.entry(masks) {
            // A leaf that could be larger has been replaced together with its table.
            Entry::Leaf(_) if !view.spte().is_writable() && !role.mirror() => {
                let new = unprotected(view.spte(), masks);

                if new == view.spte() {
                    continue;
                }
                match step.set(new, masks) {
                    Ok(()) => flush.note(),
                    Err(_) => walk.revisit(),
                }
            }
            Entry::Table(_) => {
                let Some(table) = view.child(masks) else {
                    continue;
                };
                if !stays {
                    prefetch(&view, masks);
                }
                let outcome = recover(&mut step, table, unlogged, masks);

                stays = matches!(outcome, Outcome::Stays);
                match outcome {
                    Outcome::Gone => flush.note(),
                    Outcome::Lost => walk.revisit(),
                    Outcome::Stays if to == Level::Page2M && !role.mirror() => {
                        let within = view.range().intersection(range);

                        if table.small().is_some_and(|table| {
                            unprotect_pages(step.lock, unlogged, table, within, role)
                        }) {
                            flush.note();
                        }
                    }
                    Outcome::Stays => {}
                }
            }
            Entry::Leaf(_) | Entry::NonPresent | Entry::Frozen => {}
        }
    }

    // Before the walk ends, and with it the RCU critical section: CPUs may have cached entries of
    // the tables that are about to be freed.
    if flush.defer() {
        let (first, last) = (range.start.round_down(to), range.last().round_down(to));

        vm.flush_tlbs_range(GfnRange::new(first, last.add(to.pages())));
    }
    drop(walk);
}

/// Has the CPU load what recovery reads of the tables that the next two entries point to. Recovery
/// finds the table, its `struct page`, and its header one after the other, and would wait for each.
/// So load the header of the next table, and the first two of the one after that.
#[inline(always)]
fn prefetch(view: &View<'_>, masks: &Masks) {
    let [next, second] = view.tables_ahead(masks);

    if let Some(table) = second {
        table.prefetch();
    }
    if let Some(table) = next {
        Sp::of_table(table).prefetch();
    }
}

/// Replaces `table`, to which the entry of `step` points, by a huge leaf if that is allowed.
fn recover(
    step: &mut Step<'_, Shared<'_>>,
    table: Table<'_>,
    unlogged: Unlogged<'_>,
    masks: &Masks,
) -> Outcome {
    let (vm, slot) = (step.lock.vm(), unlogged.slot());
    let (gfn, level) = (step.view.gfn(), step.view.level());

    // A page that begins before the slot is only partly the slot's. One that ends after it has no
    // level above 4 KiB there.
    if !slot.range().contains(gfn) {
        return Outcome::Stays;
    }
    // The host is asked about a frame that is mapped. Others may be private by now, and then it
    // has no answer; if the host maps all of the page at once, any frame of it will do.
    let Some((mapped, first)) = first_leaf(table, gfn, masks) else {
        // An empty table is of no use, and would be in the way of a 1 GiB page. Another slot, which
        // may be logged, has no part in it: GET does not expect a table to go away.
        let useless = level == Level::Page2M
            && step.view.range().end <= slot.range().end
            && !step.view.sp().role().mirror();

        return if useless && step.set(Spte::NONPRESENT, masks).is_ok() {
            Outcome::Gone
        } else {
            Outcome::Stays
        };
    };
    // Memory of guest_memfd is never logged, so it gets here only if userspace asks; and it has no
    // huge pages.
    if !unlogged.is_under_slots_lock() && Vm::is_guest_memfd(step.lock, slot, mapped) {
        return Outcome::Stays;
    }
    if Vm::max_mapping_level(step.lock, slot, mapped) < Some(level)
        || !Vm::other_slots_allow(step.lock, slot, gfn, level)
    {
        return Outcome::Stays;
    }
    // A notifier, or a change of attributes, may have zapped a part of the page, and have given
    // way. A huge page would map that part again. The notifier would zap all of it when it goes on,
    // but not what somebody has split off before; and attributes forbid huge pages only after the
    // pages were zapped. Faults wait until that is done, and recovery leaves the page as it is.
    // Where no leaf of the table is missing, nobody has zapped anything yet. That matters: the
    // range that is in progress spans all notifiers that are, and much that none of them zaps.
    if !Sp::of_table(table).is_full(step.lock) && Vm::is_invalidating(step.lock, step.view.range())
    {
        return Outcome::Stays;
    }
    // If a table was added since, somebody wants small pages there.
    if table.first_child(masks).is_some() {
        return Outcome::Stays;
    }

    let huge = unprotected(make_huge(vm, first, level, masks), masks);
    match step.set(huge, masks) {
        Ok(()) => {
            step.lock.tally().count_promotion(vm);
            trace::promote_huge_page(gfn, huge, level, 0);
            Outcome::Gone
        }
        Err(_) => {
            trace::promote_huge_page(gfn, huge, level, lost_errno());
            Outcome::Lost
        }
    }
}

/// The first leaf in `table`, which begins at `gfn`, or in the tables below it; and the first frame
/// that it maps.
///
/// It shows the rights and the frame of the huge page to be. The host maps the whole huge page by
/// one entry, so if this leaf is MMU-writable, each page below may be, also one whose leaf is not,
/// or that has none: the host grants rights by the huge page, and to take one back its notifier
/// zaps all of these leaves; and a frame that is write-tracked, in either address space, forbids a
/// huge page ([`Vm::max_mapping_level`], [`Vm::other_slots_allow`]). MMU-writable is only ever
/// cleared under `mmu_lock` held for write, so the leaf still is when the huge one goes in.
/// Everything else in a leaf is the same for the whole slot, except for the bits that logging and
/// aging change.
///
/// Upstream copies the leaf as it is. Then a page that was write-protected for logging, and not
/// written since, costs a fault on the next write, once the log is long gone; the fast page fault
/// makes the huge page writable then, because of the same bits of that leaf.
fn first_leaf(table: Table<'_>, gfn: Gfn, masks: &Masks) -> Option<(Gfn, Spte)> {
    let pages = table.level().pages();

    Index::all().find_map(|index| {
        let gfn = gfn.add((index.get() as u64).wrapping_mul(pages));
        let spte = table.sptep(index).read();

        match spte.decode(table.level(), masks) {
            Entry::Leaf(_) => Some((gfn, spte)),
            Entry::Table(_) => first_leaf(table.child(index, masks)?, gfn, masks),
            Entry::NonPresent | Entry::Frozen => None,
        }
    })
}
