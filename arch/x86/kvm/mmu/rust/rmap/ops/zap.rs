// SPDX-License-Identifier: GPL-2.0

//! Zapping the leaves that map a range of guest frames.

use crate::{
    pure::{GfnRange, Level},
    rmap::{Rmap, RmapWalk},
    sync::{Exclusive, MmuLock},
    sys::{Memslot, Vm},
    tlb::Flush,
};

/// Zaps all leaves in a list, and empties it; `kvm_zap_all_rmap_sptes()`.
#[inline]
pub(crate) fn zap_list(rmap: &mut Rmap<'_>, vm: Vm<'_>, level: Level) {
    vm.add_leaves(level, rmap.clear().wrapping_neg());
}

/// Zaps the leaves that map frames of `range` in `slot`, including huge ones. Yields if
/// `may_yield`, after flushing.
///
/// From large to small: whoever splits a huge leaf meanwhile, for the dirty log, adds leaves at a
/// level that is still to be walked. (A fault that would map the range by a larger page finds that
/// it is being invalidated.) Upstream goes from small to large, and may leave such leaves behind; a
/// nested guest then uses frames that belong to somebody else.
pub(crate) fn zap_range(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    range: GfnRange,
    may_yield: bool,
    flush: &mut Flush,
) {
    let vm = lock.vm();

    for level in Level::LEAVES.into_iter().rev() {
        let mut walk = RmapWalk::new(lock, slot, level, level, range);

        if !may_yield {
            walk = walk.without_yield();
        }
        while let Some(mut step) = walk.next(Some(flush)) {
            zap_list(&mut step.rmap(), vm, level);
            flush.note();
        }
    }
}
