// SPDX-License-Identifier: GPL-2.0

//! Adding leaves of the shadow MMU to the reverse map, and removing them.

use crate::{
    pte::Sptep,
    pure::{
        Gfn,
        GfnRange,
        Level, //
    },
    rmap::{
        shadow,
        DescCache,
        List,
        Rmap,
        SlotRmaps, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        Memslot,
        Sp,
        Vm, //
    }, //
};

/// A list that is longer than this is emptied, because iterating over it costs more than the
/// faults; `RMAP_RECYCLE_THRESHOLD`.
pub(super) const TOO_LONG: u32 = 1000;

/// The list for leaves of `level` that map `gfn`, or `None`, with the VM marked as broken, if `gfn`
/// is not in the slot.
#[inline]
fn list_of<'a>(
    lock: &Exclusive<'_>,
    slot: Option<Memslot<'a>>,
    gfn: Gfn,
    level: Level,
) -> Option<List<'a>> {
    let list = slot
        .and_then(|slot| SlotRmaps::new(slot, level))
        .and_then(|lists| lists.of(gfn));

    if list.is_none() {
        lock.vm().bugged();
    }
    list
}

/// Accounts for a leaf that was just installed at `sptep`, and adds it to the list of `gfn`, which
/// is in `slot`; `__rmap_add()`. `access` are the guest's rights (`ACC_*`).
#[inline]
pub(crate) fn add(
    lock: &mut Exclusive<'_>,
    cache: &mut DescCache<'_>,
    slot: Memslot<'_>,
    sptep: Sptep<'_>,
    gfn: Gfn,
    access: u32,
) {
    let vm = lock.vm();
    let sp = Sp::of_sptep(sptep);
    let Some(level) = sp.role().level() else {
        vm.bugged();
        return;
    };

    sp.set_translation(lock, shadow::index_of(sptep), gfn, access);
    vm.add_leaves(level, 1);

    let Some(list) = list_of(lock, Some(slot), gfn, level) else {
        return;
    };
    let mut rmap = Rmap::new(lock, list);
    let count = rmap.add(cache, sptep);

    shadow::note_rmap_count(rmap.lock(), count);
    if count > TOO_LONG {
        recycle(&mut rmap, vm, gfn, level);
    }
}

/// Zaps all leaves of a list, that of `gfn`, which has become too long.
#[cold]
pub(super) fn recycle(rmap: &mut Rmap<'_>, vm: Vm<'_>, gfn: Gfn, level: Level) {
    let start = gfn.round_down(level);

    super::zap::zap_list(rmap, vm, level);
    vm.flush_tlbs_range(GfnRange::new(start, start.add(level.pages())));
}

/// Removes a leaf that was just zapped from its list; `rmap_remove()`.
#[inline]
pub(crate) fn remove(lock: &mut Exclusive<'_>, sptep: Sptep<'_>) {
    let vm = lock.vm();
    let sp = Sp::of_sptep(sptep);
    let gfn = sp.gfn_at(lock, shadow::index_of(sptep));
    let Some(level) = sp.role().level() else {
        vm.bugged();
        return;
    };

    // There is no vCPU here, so take the address space from the page.
    if let Some(list) = list_of(lock, sp.memslot(lock, gfn), gfn, level) {
        Rmap::new(lock, list).remove(sptep);
    }
}
