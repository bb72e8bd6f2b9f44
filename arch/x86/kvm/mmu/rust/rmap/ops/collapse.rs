// SPDX-License-Identifier: GPL-2.0

//! Zapping small leaves that can be huge once dirty logging ends.
//!
//! Small leaves of direct pages are zapped if the host's mapping allows a huge page; the next fault
//! installs it.

use crate::{
    pure::{
        Gfn,
        Level, //
    },
    rmap::RmapWalk,
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        Memslot,
        SlotRange,
        Sp,
        Vm, //
    },
    tlb::Flush, //
};

/// Zaps the leaves in `slot` that huge ones can replace; `kvm_rmap_zap_collapsible_sptes()`.
pub(crate) fn zap_collapsible(lock: &mut Exclusive<'_>, slot: Memslot<'_>) {
    let vm = lock.vm();
    let mut flush = Flush::new(false);
    let last = Level::MAX_LEAF.down().unwrap_or(Level::Page4K);
    // Looking up the host's mapping is expensive, and the result is the same for all entries of a
    // page. A stale result does no harm, because zapping is always allowed.
    let mut known: Option<(Gfn, Option<Level>)> = None;
    let mut walk = RmapWalk::new(lock, SlotRange::whole(slot), Level::Page4K, last);

    while let Some(mut step) = walk.next(Some(&mut flush)) {
        let level = step.level;
        let zapped = step.rmap().retain(|lock, sptep| {
            let sp = Sp::of_sptep(sptep);

            // The size of a page that shadows a guest page table is the guest's choice.
            if !sp.role().direct() {
                return true;
            }
            let max = match known {
                Some((gfn, max)) if gfn == sp.gfn() => max,
                _ => {
                    let max = Vm::max_mapping_level(lock, slot, sp.gfn());

                    known = Some((sp.gfn(), max));
                    max
                }
            };
            // A direct page may begin before the slot; then there is no level, as no huge page
            // fits.
            if max.is_none_or(|max| max <= level) {
                return true;
            }
            flush.note();
            false
        });
        if zapped != 0 {
            vm.add_leaves(level, zapped.wrapping_neg());
        }
    }

    if flush.defer() {
        vm.flush_tlbs_memslot(slot);
    }
}
