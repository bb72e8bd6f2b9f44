// SPDX-License-Identifier: GPL-2.0

//! Write protection and dirty bits, for the dirty log and for page tracking.
//!
//! A write is noticed by a fault on a write-protected leaf; by hardware (PML), which logs each page
//! whose D bit it sets; or by the D bit itself, which GET looks for. That determines which bit to
//! clear.

use crate::{
    pure::{
        dirty::WORD_PAGES,
        protect::{
            protected,
            Protect, //
        },
        Entry,
        Gfn,
        GfnRange,
        Level,
        Masks,
        Role,
        WriteBits, //
    },
    root::{
        stable_roots,
        Roots,
        Selection, //
    },
    sync::{
        Exclusive,
        MmuLock,
        Shared, //
    },
    sys::{
        Memslot,
        Sp,
        Vm, //
    },
    walk::{
        Descent,
        ShortWalk,
        Walk, //
    }, //
};

/// Write-protects the leaves of at least `min_level` in `slot`, in all valid roots. Returns whether
/// any changed, so that TLBs have to be flushed.
pub(crate) fn write_protect_slot(
    lock: &mut Shared<'_>,
    slot: Memslot<'_>,
    min_level: Level,
) -> bool {
    let vm = lock.vm();
    let masks = vm.masks();
    let mut changed = false;

    if min_level > Level::MAX_LEAF {
        vm.bugged();
        return false;
    }

    let mut roots = Roots::new(vm, Selection::valid(slot.as_id()));
    while let Some(root) = roots.next(lock) {
        changed |= clear_in_root(lock, root, min_level, slot.range(), WriteBits::W, masks);
    }
    changed
}

/// Clears the dirty state (D or W) of all leaves of `slot`, in all valid roots.
pub(crate) fn clear_dirty_slot(lock: &mut Shared<'_>, slot: Memslot<'_>) {
    let vm = lock.vm();
    let masks = vm.masks();
    let mut roots = Roots::new(vm, Selection::valid(slot.as_id()));

    while let Some(root) = roots.next(lock) {
        let bit = dirty_bit(vm, root.role(), masks);

        clear_in_root(lock, root, Level::Page4K, slot.range(), bit, masks);
    }
}

/// Clears `bit` in the leaves of `range`, and returns whether it was set in any.
fn clear_in_root(
    lock: &mut Shared<'_>,
    root: Sp<'_>,
    min_level: Level,
    range: GfnRange,
    bit: WriteBits,
    masks: &Masks,
) -> bool {
    let mut changed = false;
    let mut walk = Walk::new(lock, root, min_level, range, masks);

    while let Some(mut step) = walk.next() {
        let Entry::Leaf(_) = step.view.entry(masks) else {
            continue;
        };
        let spte = step.view.spte();

        kvm_mmu_warn_on!(bit == WriteBits::dirty(masks) && spte.ad_need_write_protect());
        if !spte.has_any(bit.raw()) {
            continue;
        }
        match step.set(spte.cleared(bit), masks) {
            Ok(()) => changed = true,
            Err(_) => walk.revisit(),
        }
    }
    changed
}

/// The bit whose clearing makes the next write to a 4 KiB page noticed. D bits do that only if the
/// CPU has a log for them, or GET looks for them. While the VM goes over from faults to D bits, it
/// is W, and D is not to be set either.
#[inline]
pub(in crate::ops) fn bit_to_clear(vm: Vm<'_>, role: Role, masks: &Masks) -> WriteBits {
    if vm.has_cpu_dirty_log() {
        dirty_bit(vm, role, masks)
    } else if vm.logs_by_dirty_bits() {
        match vm.is_switching_dirty_log() {
            true => WriteBits::W.and(WriteBits::dirty(masks)),
            false => WriteBits::dirty(masks),
        }
    } else {
        WriteBits::W
    }
}

/// The bit whose clearing makes the next write to a page of a tree with this role noticed.
///
/// All pages of a tree have the role of the root, except for the level.
fn dirty_bit(vm: Vm<'_>, role: Role, masks: &Masks) -> WriteBits {
    if vm.ad_need_write_protect(role) || !masks.ad_enabled {
        WriteBits::W
    } else {
        WriteBits::dirty(masks)
    }
}

/// Clears the dirty state (D or W, or W in any case if `write_protect`) of the 4 KiB pages whose
/// bits are set in `mask`, of which bit 0 is `first`. All of them are in `slot`.
pub(crate) fn clear_dirty_masked(
    lock: &Exclusive<'_>,
    slot: Memslot<'_>,
    first: Gfn,
    mask: u64,
    write_protect: bool,
) {
    let masks = lock.vm().masks();

    for root in stable_roots(lock, Selection::valid(slot.as_id())) {
        let bit = if write_protect {
            WriteBits::W
        } else {
            dirty_bit(lock.vm(), root.role(), masks)
        };

        clear_masked_in_root(lock, root, first, mask, bit, masks);
    }
}

fn clear_masked_in_root(
    lock: &Exclusive<'_>,
    root: Sp<'_>,
    first: Gfn,
    mask: u64,
    bit: WriteBits,
    masks: &Masks,
) {
    let as_id = root.role().as_id();
    let skipped = u64::from(mask.trailing_zeros());
    let range = GfnRange::new(first.add(skipped), first.add(WORD_PAGES));
    let mut left = mask;
    let mut walk = ShortWalk::new(lock, root, Level::Page4K, range, masks);

    while left != 0 {
        let Some(mut step) = walk.next() else { break };
        let Entry::Leaf(_) = step.view.entry(masks) else {
            continue;
        };
        kvm_mmu_warn_on!(
            bit == WriteBits::dirty(masks) && step.view.spte().ad_need_write_protect()
        );

        if step.view.level() > Level::Page4K {
            continue;
        }
        let page = 1u64.wrapping_shl(step.view.gfn().since(first) as u32);
        if left & page == 0 {
            continue;
        }
        left &= !page;

        if step.view.spte().has_any(bit.raw()) {
            step.clear_bits(bit, as_id, masks);
        }
    }
}

/// Protects the leaf of at least `min_level` that maps `gfn`, in all valid roots. Returns whether a
/// flush is due: for the log at the end, otherwise before the lock is dropped.
pub(crate) fn protect_gfn(
    lock: &Exclusive<'_>,
    slot: Memslot<'_>,
    gfn: Gfn,
    min_level: Level,
    how: Protect,
) -> bool {
    let masks = lock.vm().masks();
    let mut changed = false;

    if min_level > Level::MAX_LEAF {
        lock.vm().bugged();
        return false;
    }

    for root in stable_roots(lock, Selection::valid(slot.as_id())) {
        let mut walk = Descent::new(lock, root, min_level, gfn, masks);

        while let Some(mut step) = walk.next() {
            let Entry::Leaf(_) = step.view.entry(masks) else {
                continue;
            };
            let spte = step.view.spte();
            let new = protected(spte, how, masks);

            if new == spte {
                break;
            }
            if lock.vm().logs_by_dirty_bits() {
                // The CPU may just have set D, and then D is all that tells of its write.
                step.clear_bits(how.bits(spte, masks), root.role().as_id(), masks);
            } else {
                step.write(new, masks);
            }
            changed = true;
        }
    }
    changed
}
