// SPDX-License-Identifier: GPL-2.0

//! Write protection and dirty bits of shadow pages, for the dirty log and for page tracking.

use crate::{
    pte::{
        Seen,
        Sptep, //
    },
    pure::{
        Gfn,
        GfnRange,
        Level,
        Masks,
        Protect,
        WriteBits, //
    },
    rmap::{
        shadow,
        Rmap,
        RmapWalk,
        SlotRmaps, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        Memslot,
        SlotRange, //
    }, //
};

/// Protects a present leaf. Returns whether a TLB flush is needed for more than the log; callers
/// that protect for the log flush in any case.
#[inline(always)]
fn protect(lock: &Exclusive<'_>, sptep: Sptep<'_>, how: Protect, masks: &Masks) -> bool {
    let leaf = Seen::new(sptep);
    let old = leaf.spte();

    if warn_on_once!(!old.is_present()) {
        return false;
    }

    let bits = how.bits(old, masks);
    match how {
        Protect::Log => {
            if old.is_writable() {
                shadow::clear(lock, leaf, bits, masks);
            }
            false
        }
        Protect::ClearDirty if bits == WriteBits::W => shadow::clear_writable(lock, sptep),
        Protect::Tracking | Protect::ClearDirty => {
            kvm_mmu_warn_on!(how == Protect::ClearDirty && !old.ad_enabled());
            old.has_any(bits.raw()) && shadow::update(lock, leaf, bits, masks)
        }
    }
}

/// Protects all leaves in a list. Returns whether a TLB flush is due.
#[inline(always)]
fn protect_list(rmap: &Rmap<'_>, how: Protect, masks: &Masks) -> bool {
    let mut flush = false;

    for sptep in rmap.sptes() {
        flush |= protect(rmap.lock(), sptep, how, masks);
    }
    flush
}

/// Protects the 4 KiB leaves that map the frames whose bits are set in `mask`, of which bit 0 is
/// `first`. All of them are in `slot`. The caller flushes.
pub(crate) fn protect_masked(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    first: Gfn,
    mask: u64,
    how: Protect,
) {
    let masks = lock.vm().masks();
    let Some(lists) = SlotRmaps::new(slot, Level::Page4K) else {
        return;
    };
    let first = lists.index_of(first);
    let mut left = mask;

    while left != 0 {
        let index = first.wrapping_add(left.trailing_zeros() as usize);

        left &= left.wrapping_sub(1);
        if let Some(list) = lists.get(index) {
            protect_list(&Rmap::new(lock, list), how, masks);
        }
    }
}

/// Protects the leaves of `first` to `last` level in a slot. The caller flushes in any case.
pub(crate) fn protect_slot(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    first: Level,
    last: Level,
    how: Protect,
) {
    let masks = lock.vm().masks();
    let mut walk = RmapWalk::new(lock, SlotRange::whole(slot), first, last);

    while let Some(mut step) = walk.next(None) {
        protect_list(&step.rmap(), how, masks);
    }
}

/// Protects the leaves of at least `min_level` that map `gfn`. Returns whether a TLB flush is due,
/// in addition to the one that the log needs in any case.
pub(crate) fn protect_gfn(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    gfn: Gfn,
    min_level: Level,
    how: Protect,
) -> bool {
    let masks = lock.vm().masks();
    let page = SlotRange::new(slot, GfnRange::single(gfn));
    let mut walk = RmapWalk::new(lock, page, min_level, Level::MAX_LEAF).without_yield();
    let mut flush = false;

    while let Some(mut step) = walk.next(None) {
        flush |= protect_list(&step.rmap(), how, masks);
    }
    flush
}
