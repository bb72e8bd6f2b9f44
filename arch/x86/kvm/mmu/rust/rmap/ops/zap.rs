// SPDX-License-Identifier: GPL-2.0

//! Zapping the leaves that map a range of guest frames.

use crate::{
    pure::{GfnRange, Level, Masks},
    rmap::{shadow, Rmap, RmapWalk},
    sync::{Exclusive, MmuLock},
    sys::{Memslot, Vm},
    tlb::Flush,
};

/// Zaps all leaves in a list, and empties it; `kvm_zap_all_rmap_sptes()`.
#[inline]
pub(crate) fn zap_list(rmap: &mut Rmap<'_>, vm: Vm<'_>, level: Level, masks: &Masks) {
    let mut zapped = 0i32;

    rmap.clear(|lock, sptep| {
        zapped = zapped.wrapping_add(i32::from(shadow::zap(lock, sptep, masks)))
    });
    vm.add_leaves(level, zapped.wrapping_neg());
}

/// Zaps the leaves that map frames of `range` in `slot`, including huge ones. Yields if `may_yield`, after
/// flushing.
pub(crate) fn zap_range(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    range: GfnRange,
    may_yield: bool,
    flush: &mut Flush,
) {
    let vm = lock.vm();
    let masks = vm.masks();
    let mut walk = RmapWalk::new(lock, slot, Level::Page4K, Level::MAX_LEAF, range);

    if !may_yield {
        walk = walk.without_yield();
    }
    while let Some(mut step) = walk.next(Some(flush)) {
        let level = step.level;

        zap_list(&mut step.rmap(), vm, level, masks);
        flush.note();
    }
}
