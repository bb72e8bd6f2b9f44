// SPDX-License-Identifier: GPL-2.0

//! Zapping: removing mappings, by range, by root, and of tables that stand for NX huge pages.

use crate::{
    change::{
        zap_pages,
        Update, //
    },
    pte::{
        Table,
        View, //
    },
    pure::{
        Entry,
        GfnRange,
        Level,
        Masks,
        Spte, //
    },
    root::{
        self,
        Root,
        RootTypes,
        Roots,
        Selection, //
    },
    sync::{
        with_exclusive,
        with_shared,
        Exclusive,
        Holder,
        MmuLock,
        Shared,
        SlotsLock, //
    },
    sys::{
        max_gfn_exclusive,
        trace,
        NotifierRange,
        Sp, //
    },
    tlb::Flush,
    walk::{
        Step,
        Walk, //
    }, //
};

/// Zaps the leaves of `range` in one root. Tables stay.
///
/// The 4 KiB pages of a table are zapped in one step ([`zap_pages`]), except in mirrors, and if
/// each change is traced. Yields only if `can_yield` (an MMU notifier must not always).
fn zap_leafs_in_root(
    lock: &mut Exclusive<'_>,
    root: Sp<'_>,
    range: GfnRange,
    can_yield: bool,
    flush: &mut Flush,
    masks: &Masks,
) {
    let range = GfnRange::new(range.start, range.end.min(max_gfn_exclusive()));
    // vCPUs flush when they load a root, so nobody can use stale entries of an invalid one.
    let needs_flush = !root.role().invalid();
    let by_one = root.role().mirror() || trace::spte_changed_enabled();
    let min_level = if by_one { Level::Page4K } else { Level::Page2M };
    let mut walk = Walk::new(lock, root, min_level, range, masks);

    loop {
        let step = if can_yield {
            walk.next_flushing(flush)
        } else {
            walk.next_without_yield()
        };
        let Some(mut step) = step else { break };
        let view = step.view;
        let zapped = match view.entry(masks) {
            Entry::Leaf(_) => {
                step.write(Spte::NONPRESENT, masks);
                true
            }
            Entry::Table(_) if view.level() == min_level => {
                if view.range().end < range.end {
                    view.prefetch_next(masks);
                }
                view.child(masks)
                    .and_then(Table::small)
                    .is_some_and(|table| {
                        zap_pages(step.lock, table, view.range().intersection(range))
                    })
            }
            Entry::Table(_) | Entry::NonPresent | Entry::Frozen => false,
        };

        if zapped && needs_flush {
            flush.note();
        }
    }
}

/// Zaps the leaves of `range` in all valid roots.
pub(crate) fn zap_leafs(lock: &mut Exclusive<'_>, range: GfnRange, flush: &mut Flush) {
    let masks = lock.vm().masks();
    let selection = Selection {
        types: RootTypes::VALID,
        as_id: None,
    };
    let mut roots = Roots::new(lock.vm(), selection);

    while let Some(root) = roots.next(lock) {
        zap_leafs_in_root(lock, root, range, true, flush, masks);
    }
}

/// Zaps the range of an MMU notifier, including in invalid roots: they still map its pages, and
/// must not once the notifier returns.
pub(crate) fn unmap(lock: &mut Exclusive<'_>, range: NotifierRange<'_>, flush: &mut Flush) {
    let vm = lock.vm();
    let masks = vm.masks();
    let selection = Selection {
        types: RootTypes::of_notifier(vm, range).or_invalid(),
        as_id: Some(range.slot().as_id()),
    };
    let mut roots = Roots::new(vm, selection);

    while let Some(root) = roots.next(lock) {
        zap_leafs_in_root(lock, root, range.range(), range.may_block(), flush, masks);
    }
}

/// Zaps everything, because the VM or its memory goes away. No flush is needed, as no vCPU will run
/// again.
pub(crate) fn zap_all(lock: &mut Exclusive<'_>) {
    let masks = lock.vm().masks();
    let selection = Selection {
        types: RootTypes::DIRECT_OR_INVALID,
        as_id: None,
    };
    let mut roots = Roots::new(lock.vm(), selection);

    // Also a root that somebody else is zapping: that thread has yielded, and this one may not
    // return before all is gone.
    while let Some(root) = roots.next(lock) {
        zap_root(lock, root, masks);
    }
}

/// Zaps the roots that were invalidated and not zapped since, and puts the TDP MMU's references
/// to them. Takes `mmu_lock` itself, for read if `shared`.
///
/// No flush: a vCPU flushes locally when it loads a new root, and when it moves to another CPU.
pub(crate) fn zap_invalidated_roots(slots: &SlotsLock<'_>, shared: bool) {
    if shared {
        with_shared(slots.vm(), Holder::Zap, |lock| zap_scheduled(lock, slots));
    } else {
        with_exclusive(slots.vm(), Holder::Zap, |lock| zap_scheduled(lock, slots));
    }
}

fn zap_scheduled<'l, M: Update<'l>>(lock: &mut M, slots: &SlotsLock<'l>) {
    let vm = lock.vm();
    let masks = vm.masks();

    slots.check_vm(lock);
    let selection = Selection {
        types: RootTypes::ALL,
        as_id: None,
    };
    let mut roots = Roots::new(vm, selection);

    while let Some(root) = roots.next(lock) {
        let Some(scheduled) = Root::take_scheduled(slots, root) else {
            continue;
        };

        if !root.role().invalid() {
            vm.bugged();
        }
        zap_root(lock, root, masks);
        // Only now: while it is being zapped, notifiers have to find it in the list.
        drop(scheduled);
    }
}

/// Zaps all of one root.
///
/// In several passes, from small to large: tearing down a table happens in one go, and a table
/// with everything below it can be a terabyte of mappings. After the pass at one level, the tables
/// of the next have little left to do. Upstream begins with the 4 KiB entries, one by one; but the
/// table of 512 of them is so cheap to tear down that nobody has to wait for that. With
/// CONFIG_KVM_PROVE_MMU only the passes from 1 GiB on are done, as a fault may do that replaces a
/// full 1 GiB table by a huge page.
fn zap_root<'l, M: Update<'l>>(lock: &mut M, root: Sp<'_>, masks: &Masks) {
    // Unreachable for notifiers, its pages could be used after they were freed.
    warn_on_once!(!root::is_live(root));

    if cfg!(not(CONFIG_KVM_PROVE_MMU)) {
        zap_level(lock, root, Level::Page2M, masks);
    }
    zap_level(lock, root, Level::Page1G, masks);
    if let Some(level) = root.role().level() {
        zap_level(lock, root, level, masks);
    }
}

/// Zaps all entries of one level, with what is below them.
fn zap_level<'l, M: Update<'l>>(lock: &mut M, root: Sp<'_>, level: Level, masks: &Masks) {
    let mut walk = Walk::whole(lock, root, level, masks);

    while let Some(mut step) = walk.next() {
        if !step.view.spte().is_present() || step.view.level() > level {
            continue;
        }
        if step.set(Spte::NONPRESENT, masks).is_err() {
            walk.revisit();
        }
    }
}

/// Which table to zap first, so that a huge page can take the place of that of `sp`: one that is
/// below it, if there is any. It may hold 512 full ones, and to tear down more than one is too much
/// for a step.
pub(crate) fn first_to_zap<'a>(lock: &Shared<'_>, sp: Sp<'a>) -> Sp<'a> {
    sp.table()
        .first_child(lock.vm().masks())
        .map_or(sp, Sp::of_table)
}

/// Zaps the table of `sp`, so that a huge page can take its place. Returns false if somebody else
/// has changed the entry that pointed to it. The caller flushes, inside of an RCU critical section.
/// C asks before whether the VM is logged by D bits ([`super::dirty_log::dirty_bits`] says why).
pub(crate) fn zap_possible_nx_huge_page(lock: &Shared<'_>, sp: Sp<'_>) -> bool {
    let masks = lock.vm().masks();

    if warn_on_once!(!sp.is_tdp_mmu_page()) {
        return false;
    }
    // A root has no parent, and never stands for a huge page.
    let Some(view) = sp.parent() else {
        warn_on_once!(true);
        return false;
    };
    // Present is not enough: the entry may hold a leaf by now, or another table.
    if !points_to(&view, sp, masks) {
        return false;
    }

    let mut step = Step { view, lock };
    if step.set(Spte::NONPRESENT, masks).is_ok() {
        return true;
    }
    // The CPU may have set A, which logging by D bits has cleared. Nobody clears it before this
    // SRCU section ends. Otherwise an entry that points to a table only changes if the table is
    // zapped or replaced.
    if !points_to(&step.view, sp, masks) {
        return false;
    }
    warn_on_once!(step.view.spte() != view.spte().with_from(step.view.spte(), masks.accessed));
    if step.set(Spte::NONPRESENT, masks).is_ok() {
        return true;
    }
    warn_on_once!(points_to(&step.view, sp, masks));
    false
}

/// Whether the entry, as last seen, points to the table of `sp`.
fn points_to(view: &View<'_>, sp: Sp<'_>, masks: &Masks) -> bool {
    view.spte().child_table(view.level(), masks) == Some(sp.hpa())
}
