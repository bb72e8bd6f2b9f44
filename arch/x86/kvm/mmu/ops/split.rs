// SPDX-License-Identifier: GPL-2.0

//! Splitting huge pages, on a fault and eagerly.
//!
//! When dirty logging begins, huge pages have to become small ones, or each first write to one
//! would stop a vCPU to do it. Eager splitting moves that work to the thread that switches logging
//! on. It is best effort: what cannot be split for lack of memory stays huge, is write-protected
//! later in any case, and splits on the first write.

use kernel::error::{code::ENOMEM, Result};

use crate::{
    change::{lost_errno, Update},
    page::{OwnedSp, Sp},
    pure::{addr::ENTRIES, leaf, Entry, GfnRange, Level, Masks},
    root::{Roots, Selection},
    sys::{masks, trace, Memslot},
    walk::{Step, View, Walk},
};

/// Makes `page` the child-to-be of the entry at `view`.
pub(crate) fn init_child(page: &mut OwnedSp, view: &View<'_>) {
    let role = view.sp().role();
    // An entry that gets a child is above the last level.
    let level = view.level.down().unwrap_or(Level::Page4K);

    page.init(Some(view.slot), view.gfn, role.at_level(level));
}

/// Replaces the huge leaf that `step` stands on by the table of `page`, which maps the same memory
/// with the same rights. Gives the page back if somebody else changed the entry first.
///
/// The caller has matched the entry as a leaf, and has called [`init_child`] with its view.
pub(crate) fn split<'s, 'l, M: Update<'l>>(
    mut page: OwnedSp,
    step: &mut Step<'s, M>,
    masks: &Masks,
) -> Result<Sp<'s>, OwnedSp> {
    let vm = step.lock.vm();
    let huge = step.view.spte;
    let role = page.as_sp().role();
    let nx_huge_pages = vm.nx_huge_pages();
    let Some(level) = role.level() else {
        return Err(page);
    };

    page.fill(|index| leaf::split_child(huge, role, level, index, nx_huge_pages, masks));

    let result = page.link(step, masks);
    let errno = match result {
        Ok(_) => {
            // Linking has accounted for the huge leaf that went.
            vm.add_leaves(level, ENTRIES as i32);
            0
        }
        Err(_) => lost_errno(),
    };

    trace::split_huge_page(step.view.gfn, huge, step.view.level, errno);
    result
}

/// Splits the huge pages of `range` in `slot` down to `target`, in all valid roots. Stops at the
/// first root for which there is no memory.
pub(crate) fn try_split_huge_pages<'l, M: Update<'l>>(
    lock: &mut M,
    slot: Memslot<'_>,
    range: GfnRange,
    target: Level,
) {
    let masks = &masks();
    let mut roots = Roots::new(lock.vm(), Selection::valid(slot.as_id()));

    while let Some(root) = roots.next(lock) {
        if split_root(lock, **root, range, target, masks).is_err() {
            return;
        }
    }
}

/// Splits in one root.
///
/// The walk meets an entry before those below it, so a 1 GiB page is split to 2 MiB first, and then
/// each of these. A table is allocated with the lock dropped, and the walk starts again; one that
/// is left over is used for the next page, and freed at the end.
fn split_root<'l, M: Update<'l>>(
    lock: &mut M,
    root: Sp<'_>,
    range: GfnRange,
    target: Level,
    masks: &Masks,
) -> Result {
    let Some(min_level) = target.up() else {
        return Ok(());
    };
    let mut spare: Option<OwnedSp> = None;
    let mut walk = Walk::new(lock, root, min_level, range, masks);

    while let Some(mut step) = walk.next() {
        let Entry::Leaf(_) = step.view.entry(masks) else {
            continue;
        };

        let Some(mut page) = spare.take() else {
            let View {
                gfn, spte, level, ..
            } = step.view;

            spare = walk.unlocked(OwnedSp::alloc);
            if spare.is_none() {
                trace::split_huge_page(gfn, spte, level, ENOMEM.to_errno());
                return Err(ENOMEM);
            }
            continue;
        };

        init_child(&mut page, &step.view);
        if let Err(page) = split(page, &mut step, masks) {
            spare = Some(page);
            walk.revisit();
        }
    }
    Ok(())
}
