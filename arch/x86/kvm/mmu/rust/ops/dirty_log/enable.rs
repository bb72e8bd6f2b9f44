// SPDX-License-Identifier: GPL-2.0

//! Enabling the dirty log of a memslot, in one walk.
//!
//! Upstream splits all huge pages of the slot, and then walks it again to clear W (or D, with PML) in
//! each of the small ones by an atomic exchange. Nothing requires that order: a table can be built with
//! its leaves already protected while it is still private, without atomics. Pages that are small
//! already are protected on the way, and those that can't be split for lack of memory are
//! write-protected at their own level, and split by the first write.
//!
//! Splitting a large slot takes long, so it stops if a fatal signal is pending. The remaining huge
//! pages are only write-protected. The slot is logged all the same, because other processes may share
//! the VM with the thread that is being killed.
//!
//! # Shadow pages
//!
//! Nested guests may map the slot through shadow pages as well. Upstream splits shadow pages, splits in
//! the TDP MMU, protects shadow pages, and protects in the TDP MMU, and drops `mmu_lock` between these
//! steps. Here the shadow pages are split and protected first, with `mmu_lock` held for write, and then
//! the TDP MMU does both in one walk. The order does not matter, and no write is missed in between,
//! because
//!
//! - the two sets of SPTEs are disjoint: shadow pages are found through the reverse map, which has no
//!   SPTE of the TDP MMU, and a walk from the TDP MMU's roots never reaches a shadow page. Neither MMU
//!   derives an SPTE from one of the other; both make theirs in faults, from the host's mapping and the
//!   slot;
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

use super::protect::bit_to_clear;
use crate::{
    cache::TdpSplitCache,
    ops::split::{self, refill, HugeLeaf},
    pure::{spte::WRITABLE, Entry, Level, Masks, Protect},
    rmap::{ops as rmap, ShadowSplitCaches},
    root::{Roots, Selection},
    sync::{with_exclusive, with_shared, MmuLock, Shared, SlotsLock},
    sys::{eager_page_split, fatal_signal_pending, stats::Event, Memslot, Node, Sp},
    walk::Walk,
};

/// Makes sure that every write to `slot` is noticed from now on, and splits its huge pages to 4 KiB if
/// `eager_page_split` is set. Takes `mmu_lock`, and flushes the TLBs.
pub(crate) fn enable(slots: &mut SlotsLock<'_>, slot: Memslot<'_>) {
    let vm = slots.vm();
    let split = eager_page_split();

    if vm.memslots_have_rmaps() {
        let mut caches = split.then(|| ShadowSplitCaches::new(slots));
        let how = Protect::for_log(vm.has_cpu_dirty_log());

        with_exclusive(vm, |lock| {
            rmap::enable::enable(lock, slot, caches.as_mut(), how)
        });
    }
    with_shared(vm, |lock| enable_in_tdp_mmu(lock, slot, split));

    // As in C, flush outside of mmu_lock, and unconditionally.
    vm.flush_tlbs_memslot(slot);
}

/// Protects the slot in all valid roots, and splits its huge pages if `split`.
fn enable_in_tdp_mmu(lock: &mut Shared<'_>, slot: Memslot<'_>, split: bool) {
    let masks = lock.vm().masks();
    let mut roots = Roots::new(lock.vm(), Selection::valid(slot.as_id()));
    let mut cache = TdpSplitCache::new();

    while let Some(root) = roots.next(lock) {
        enable_in_root(lock, root, slot, split, &mut cache, masks);
    }
    cache.free(lock);
}

fn enable_in_root(
    lock: &mut Shared<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    mut split: bool,
    cache: &mut TdpSplitCache,
    masks: &Masks,
) {
    let vm = lock.vm();
    let bit = bit_to_clear(vm, root.role(), masks);
    let range = slot.range();
    let mut walk = Walk::new(lock, root, Level::Page4K, range, masks);

    while let Some(mut step) = walk.next() {
        let Entry::Leaf(pfn) = step.view.entry(masks) else {
            continue;
        };
        let view = step.view;
        let (spte, level) = (view.spte(), view.level());
        let huge = level > Level::Page4K;

        if huge && split {
            let node = Node::of(pfn);
            let Some(page) = cache.take(node) else {
                let huge = HugeLeaf::of(&view, node);

                split = !fatal_signal_pending()
                    && refill(&mut walk, cache, &huge, range.end, Level::Page2M);
                walk.revisit();
                continue;
            };

            match split::split_as(page, &mut step, spte.without(bit), Event::EagerSplit, masks) {
                // If the new leaves are 4 KiB, they are protected already.
                Ok(_) if level == Level::Page2M => walk.skip_table(),
                Ok(_) => {}
                Err(page) => {
                    cache.put(page.into_blank(), node);
                    walk.revisit();
                }
            }
            continue;
        }

        // D bits don't tell which part of a huge page was written.
        let clear = if huge { bit | WRITABLE } else { bit };
        if !spte.has_any(clear) {
            continue;
        }
        if step.set(spte.without(clear), masks).is_err() {
            walk.revisit();
        }
    }
}
