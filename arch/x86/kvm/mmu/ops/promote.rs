// SPDX-License-Identifier: GPL-2.0

//! Promoting small pages to huge ones, in place, when dirty logging ends.
//!
//! The huge leaf replaces the table in one exchange. The memory stays mapped at every moment, so no
//! vCPU faults on its way back to full speed; zapping instead would make each of them fault on
//! each page. A page that only the log kept from being written becomes writable at once.

use crate::{
    change::lost_errno,
    page::Sp,
    pte::Table,
    pure::{leaf::unprotected, spte::MMU_PRESENT, Entry, Index, Level, Masks, Spte},
    root::{Roots, Selection},
    sync::{MmuLock, Shared},
    sys::{
        fatal_signal_pending,
        stats::{self, Event},
        trace, Memslot,
    },
    walk::{Flush, Walk},
};

use super::spte::make_huge;

/// Promotes all that can be promoted in `slot`, in all valid roots.
pub(crate) fn recover_huge_pages(lock: &mut Shared<'_>, slot: Memslot<'_>) {
    let masks = lock.vm().masks();
    let mut roots = Roots::new(lock.vm(), Selection::valid(slot.as_id()));

    while let Some(root) = roots.next(lock) {
        recover_root(lock, **root, slot, masks);
    }
}

/// Promotes in one root.
fn recover_root(lock: &mut Shared<'_>, root: Sp<'_>, slot: Memslot<'_>, masks: &Masks) {
    // A huge page in a logged slot would lose writes.
    if warn_once!(slot.dirty_track_enabled()) {
        return;
    }

    let vm = lock.vm();
    let range = slot.range();
    let mut flush = Flush::new(false);
    let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

    while let Some(mut step) = walk.next_flushing(&mut flush) {
        // Small pages are as good for a VM that dies.
        if fatal_signal_pending() {
            break;
        }

        let level = step.view.level;
        let gfn = step.view.gfn;

        // Tables only: a leaf that could be larger has been replaced together with its table.
        let Entry::Table(_) = step.view.entry(masks) else {
            continue;
        };
        // A page that begins before the slot is only partly the slot's, and asking C for its
        // level would look beyond the slot's arrays. One that ends after it has no level above
        // 4 KiB there.
        if level > Level::MAX_LEAF || !range.contains(gfn) {
            continue;
        }
        if vm.max_mapping_level(slot, gfn) < Some(level) {
            continue;
        }

        let Some(survey) = step
            .view
            .slot
            .child(level, masks)
            .and_then(|table| survey(table, level, masks))
        else {
            continue;
        };

        let mut huge = make_huge(vm, survey.first, level, masks);
        if survey.all_mmu_writable {
            huge = unprotected(huge, masks);
        }
        match step.set(huge, masks) {
            Ok(()) => {
                stats::count(vm, Event::Promotion);
                trace::promote_huge_page(gfn, huge, level, 0);
                flush.note();
            }
            Err(_) => {
                trace::promote_huge_page(gfn, huge, level, lost_errno());
                walk.revisit();
            }
        }
    }

    // Before the walk ends, and with it the RCU critical section: CPUs may have cached entries of
    // the tables that are about to be freed.
    if flush.defer() {
        vm.flush_tlbs_memslot(slot);
    }
    drop(walk);
}

/// What the leaves below an entry have in common.
struct Survey {
    /// The first leaf.
    first: Spte,
    /// None of the leaves is protected for anything but dirty logging.
    all_mmu_writable: bool,
}

/// Looks at the leaves below an entry of `parent_level` that points to `table`. `None` if there is
/// none.
///
/// The first leaf shows the rights and the frame of the huge page to be: the host maps the whole
/// huge page by one folio, and everything else that a leaf says is the same all over a slot, but
/// for the bits that logging and aging change. Upstream copies it as it is. Then a page that was
/// write-protected for logging, and not written since, costs a fault on the next write, once the log
/// is long gone. MMU-writable bits are only ever cleared under `mmu_lock` held for write, so if they
/// are set in all leaves now, they are when the huge leaf goes in.
fn survey(table: Table<'_>, parent_level: Level, masks: &Masks) -> Option<Survey> {
    match parent_level.down()? {
        Level::Page4K => {
            survey_full(table, masks).or_else(|| survey_table(table, Level::Page4K, masks))
        }
        level => survey_table(table, level, masks),
    }
}

/// As [`survey`], for the usual table: of the last level, full, and with nothing protected for
/// anything but dirty logging. `None` if it is not of that kind.
fn survey_full(table: Table<'_>, masks: &Masks) -> Option<Survey> {
    let expected = MMU_PRESENT | masks.mmu_writable;
    let first = table.slot(Index::FIRST).read();
    let common = Index::all().fold(first.0, |bits, index| bits & table.slot(index).read().0);

    (common & expected == expected).then_some(Survey {
        first,
        all_mmu_writable: true,
    })
}

/// As [`survey`], where the table is of `level`.
fn survey_table(table: Table<'_>, level: Level, masks: &Masks) -> Option<Survey> {
    let mut result: Option<Survey> = None;

    for index in Index::all() {
        let slot = table.slot(index);
        let spte = slot.read();

        let found = match spte.decode(level, masks) {
            Entry::Leaf(_) => Survey {
                first: spte,
                all_mmu_writable: spte.is_mmu_writable(masks),
            },
            Entry::Table(_) => {
                let below = slot
                    .child(level, masks)
                    .and_then(|table| survey(table, level, masks));

                match below {
                    Some(below) => below,
                    None => continue,
                }
            }
            Entry::NonPresent | Entry::Frozen => continue,
        };

        match &mut result {
            None => result = Some(found),
            Some(result) => result.all_mmu_writable &= found.all_mmu_writable,
        }
    }
    result
}
