// SPDX-License-Identifier: GPL-2.0

//! Enabling the dirty log of a memslot, in one walk.
//!
//! Upstream splits all huge pages of the slot, and then walks it again to clear W (or D, with PML)
//! in each of the small ones by an atomic exchange. Nothing requires that order: a table can be
//! built with its leaves already protected while it is still private, without atomics. Pages that
//! are small already are protected on the way, a table at a time ([`super::leaves`] explains why
//! most of them need no atomics either), and those that can't be split for lack of memory are
//! write-protected at their own level, and split by the first write.
//!
//! Splitting a large slot takes long, so it stops if a fatal signal is pending. The remaining huge
//! pages are only write-protected. The slot is logged all the same, because other processes may
//! share the VM with the thread that is being killed.
//!
//! # Shadow pages
//!
//! Nested guests may map the slot through shadow pages as well. Upstream splits shadow pages,
//! splits in the TDP MMU, protects shadow pages, and protects in the TDP MMU, and drops `mmu_lock`
//! between these steps. Here the shadow pages are split and protected first, with `mmu_lock` held
//! for write, and then the TDP MMU does both in one walk. The order does not matter, and no write
//! is missed in between, because
//!
//! - the two sets of SPTEs are disjoint: shadow pages are found through the reverse map, which has
//!   no SPTE of the TDP MMU, and a walk from the TDP MMU's roots never reaches a shadow page.
//!   Neither MMU derives an SPTE from one of the other; both make theirs in faults, from the host's
//!   mapping and the slot;
//! - the slot was published as logged, and all faults that saw the old one have completed
//!   (`synchronize_srcu()`), before either MMU is processed. So an SPTE that was made since then is
//!   small, and is either protected or in the log;
//! - the flush at the end covers what CPUs have cached of either.
//!
//! Write-tracking of a frame, because L1 has a page table there, clears W *and* MMU-writable in its
//! SPTEs. Neither step sets them again: a split copies both bits of the huge page.
//!
//! CPUs may have cached writable translations until the flush at the end, exactly as with upstream:
//! the log need not be exact before the ioctl returns.

use super::{
    dirty_bits::DirtyBits,
    leaves::{
        LeafBits,
        Leaves, //
    }, //
};
use crate::{
    cache::TdpSplitCache,
    ops::split::{
        self,
        refill_unless_killed,
        HugeLeaf, //
    },
    pte::Table,
    pure::{
        Entry,
        GfnRange,
        Level,
        Masks,
        Protect,
        WriteBits, //
    },
    rmap::{
        ops as rmap,
        ShadowSplitCaches, //
    },
    root::{
        Roots,
        Selection, //
    },
    sync::{
        with_exclusive,
        with_shared,
        Holder,
        MmuLock,
        Shared,
        SlotsLock, //
    },
    sys::{
        stats::Event,
        Memslot,
        Node,
        Shortage,
        Sp,
        Vm, //
    },
    walk::Walk, //
};

/// Makes sure that every write to `slot` is noticed from now on, and splits its huge pages to 4 KiB
/// if eager splitting is on for the VM. Takes `mmu_lock`, and flushes the TLBs.
pub(crate) fn enable(slots: &mut SlotsLock<'_>, slot: Memslot<'_>) {
    let vm = slots.vm();
    let split = vm.eager_split().is_some();

    if vm.memslots_have_rmaps() {
        let mut caches = split.then(|| ShadowSplitCaches::new(slots));
        let how = Protect::for_log(vm.has_cpu_dirty_log());

        with_exclusive(vm, Holder::Rmap, |lock| {
            rmap::enable::enable(lock, slot, caches.as_mut(), how)
        });
    }
    with_shared(vm, Holder::Enable, |lock| {
        enable_in_tdp_mmu(lock, slots, slot, split)
    });
    // Before the flush; see `dirty_bits`.
    Vm::dirty_log_started(slots);

    // As in C, flush outside of mmu_lock, and unconditionally.
    vm.flush_tlbs_memslot(slot);
}

/// Protects the slot in all valid roots, and splits its huge pages if `split`.
fn enable_in_tdp_mmu(lock: &mut Shared<'_>, slots: &SlotsLock<'_>, slot: Memslot<'_>, split: bool) {
    let masks = lock.vm().masks();
    let mut roots = Roots::new(lock.vm(), Selection::valid(slot.as_id()));
    let mut cache = TdpSplitCache::new(lock.vm(), Shortage::Kill);

    while let Some(root) = roots.next(lock) {
        enable_in_root(lock, slots, root, slot, split, &mut cache, masks);
    }
    cache.free(lock);
}

fn enable_in_root(
    lock: &mut Shared<'_>,
    slots: &SlotsLock<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    mut split: bool,
    cache: &mut TdpSplitCache,
    masks: &Masks,
) {
    let vm = lock.vm();
    let bits = LeafBits::new(vm, root.role(), masks);
    let range = slot.range();
    let dirty = vm
        .logs_by_dirty_bits()
        .then(|| DirtyBits::new(slots, masks));
    let mut walk = Walk::new(lock, root, Level::Page2M, range, masks);

    while let Some(mut step) = walk.next() {
        let view = step.view;
        let pfn = match view.entry(masks) {
            Entry::Leaf(pfn) => pfn,
            Entry::Table(_) if view.level() == Level::Page2M => {
                if let Some(table) = view.child(masks).and_then(Table::small) {
                    let within = view.range().intersection(range);

                    if within.end < range.end {
                        view.prefetch_next(masks);
                    }
                    protect_table(&bits.of_table(step.lock, slots, table), within);
                    if let Some(dirty) = &dirty {
                        dirty.drain(&mut step);
                    }
                }
                continue;
            }
            Entry::Table(_) | Entry::NonPresent | Entry::Frozen => continue,
        };
        let spte = view.spte();

        if split {
            let node = Node::of(pfn);
            let Some(page) = cache.take(node) else {
                let huge = HugeLeaf::of(&view, node);

                split = refill_unless_killed(&mut walk, cache, &huge, range.end);
                continue;
            };

            let like = spte.cleared(bits.bit());

            match split::split_as(page, &mut step, like, Event::EagerSplit, masks) {
                // 4 KiB leaves are protected already; the walk continues in a table of 2 MiB
                // leaves.
                Ok(_) => {
                    if let (Some(dirty), Level::Page2M) = (&dirty, view.level()) {
                        dirty.drain(&mut step.again());
                    }
                }
                Err(page) => {
                    cache.put(page, node);
                    walk.revisit();
                }
            }
            continue;
        }

        // D bits don't tell which part of a huge page was written.
        let clear = bits.bit().and(WriteBits::W);
        if !spte.has_any(clear.raw()) {
            continue;
        }
        if step.try_clear_bits(clear, bits.as_id()).is_err() {
            walk.revisit();
        }
    }
}

/// Protects the 4 KiB pages of `range`, all of which are in one table.
// A function of its own, so that its loop has all registers.
#[inline(never)]
fn protect_table(leaves: &Leaves<'_>, range: GfnRange) {
    leaves.clear_range(range);
}
