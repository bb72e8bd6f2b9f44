// SPDX-License-Identifier: GPL-2.0

//! Zapping the leaves that map a range of guest frames.

use crate::{
    pure::Level,
    rmap::{
        Rmap,
        RmapWalk, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        SlotRange,
        Vm, //
    },
    tlb::Flush, //
};

/// Zaps all leaves in a list, and empties it; `kvm_zap_all_rmap_sptes()`.
#[inline]
pub(crate) fn zap_list(rmap: &mut Rmap<'_>, vm: Vm<'_>, level: Level) {
    vm.add_leaves(level, rmap.clear().wrapping_neg());
}

/// Zaps the leaves that map frames of `pages`, including huge ones. Yields if `may_yield`, after
/// flushing.
///
/// From large to small: whoever splits a huge leaf meanwhile, for the dirty log, adds leaves at a
/// level that is still to be walked. (A fault that would map the range by a larger page finds that
/// it is being invalidated.) Upstream goes from small to large, and may leave such leaves behind; a
/// nested guest then uses frames that belong to somebody else.
pub(crate) fn zap_range(
    lock: &mut Exclusive<'_>,
    pages: SlotRange<'_>,
    may_yield: bool,
    flush: &mut Flush,
) {
    let vm = lock.vm();

    for level in Level::LEAVES.into_iter().rev() {
        let mut walk = RmapWalk::new(lock, pages, level, level);

        if !may_yield {
            walk = walk.without_yield();
        }
        while let Some(mut step) = walk.next(Some(flush)) {
            zap_list(&mut step.rmap(), vm, level);
            flush.note();
        }
    }
}
