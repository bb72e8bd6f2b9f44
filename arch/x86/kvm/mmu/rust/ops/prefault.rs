// SPDX-License-Identifier: GPL-2.0

//! Mapping many 4 KiB pages at once that the guest has not touched yet; for `KVM_PRE_FAULT_MEMORY`,
//! and around the fault of a vCPU, if `kvm.fault_around_pages` asks for that.
//!
//! C maps the range one fault at a time. Each fault looks up one host page, takes `mmu_lock`, and
//! walks down from the root. Here C still maps the first page of each 2 MiB that way, and that
//! fault settles the rest: which page size to use, whether a table is needed, and what errno the
//! caller gets. If it has mapped 4 KiB, the neighbours are mapped by table: up to
//! [`HostPages::MAX`] host pages are looked up together, without sleeping, and one walk under one
//! hold of `mmu_lock` puts them into their entries.
//!
//! Only the simple case is handled. The first page that is anything else (a hole, a page that the
//! host has not mapped, or maps read-only, a read-only memslot, memory of guest_memfd) ends the
//! batch, and C takes it up with the next fault. So errno and the returned range are those of the
//! single faults.
//!
//! Around the fault of a vCPU it is the same: the fault has mapped 4 KiB, and nobody asks what
//! became of the neighbours. Their A bits stay clear, and in a logged memslot the first write to
//! each is noticed. The table is read before host pages are looked up, so that a guest that has its
//! neighbours mapped already does not pay for them with each fault. That is only a hint: entries
//! are read again when they are changed.
//!
//! # The protocol
//!
//! The invalidation sequence is read before the host pages are looked up. With `mmu_lock` held for
//! read, nothing is mapped if the sequence has changed, or an invalidation is in progress. Entries
//! change from not present to a leaf by an exchange that fails if somebody else was faster. The
//! peers, one by one:
//!
//! - A **notifier** takes the write lock to raise the count of invalidations in progress before it
//!   looks for leaves, and again to raise the sequence after it is done. If it has begun before we
//!   take the lock, we see the count or the new sequence, and map nothing. Otherwise it finds our
//!   leaves. The reference on a host page keeps the frame from being reused until then. A change of
//!   **memory attributes** does the same.
//! - A **fault** (read lock) may install the same leaf first. Then our exchange fails, and the
//!   batch ends. It cannot have mapped another frame, as the sequence is the same for both. Where a
//!   leaf exists, we leave it.
//! - **Tearing down** the table (read lock: recovery, NX recovery, zapping of roots, a fault that
//!   installs a huge page) freezes each entry that is not present, and the batch ends at the first
//!   of these. A leaf that we install before that is found and counted when its entry is frozen. A
//!   full table has no entry that we could use, and cannot get one under the read lock
//!   ([`crate::change`]). The RCU read lock keeps the table from being freed.
//! - A root that was **invalidated** is seen to be invalid, because that happens under the write
//!   lock. To map there would do no harm, but the vCPU would not find the pages.
//! - **Enabling, reaping and disabling the log** store plainly, but only to present leaves. Ours
//!   are made like those whose bit the log has just taken: the first write is noticed. Whether the
//!   slot is logged, its flags tell: before the walk that enables or disables the log begins,
//!   `synchronize_srcu()` has waited for us, as `kvm->srcu` is held from before the lookup of the
//!   slot until after the batch. For the same reason no slot is **deleted or moved** under us, and
//!   a VM that **goes over to D bits** does not look for old ones before the batch is done
//!   ([`crate::ops::dirty_log::dirty_bits`]).
//! - A **fast page fault** and **aging** (no lock) change present leaves only. The **CPU** does not
//!   see an entry before it is a whole leaf. No TLB has anything to flush.
//! - **Write-tracking** and shadow pages begin under the write lock; [`PrefetchLeaves`] looks at
//!   them under the read lock, for each page.
//! - Without the lock between two faults, the **host may have mapped 2 MiB** since C decided on 4
//!   KiB. That raises the sequence, and if it happened before we read that, we map 4 KiB of a huge
//!   page, which is correct, and what a fault with a smaller goal does.

use kernel::sync::rcu;

use crate::{
    change::map_pages,
    ops::spte::PrefetchLeaves,
    pte::{
        SmallTable,
        Table, //
    },
    pure::{
        Gfn,
        GfnRange,
        Level,
        Masks, //
    },
    sync::{
        MmuLock,
        Shared,
        Srcu, //
    },
    sys::{
        HostPages,
        Memslot,
        Sp,
        Vcpu,
        Vm, //
    },
    walk::Descent, //
};

/// Maps what it can of `range` without a gap, as far as the table reaches that holds `range.start`.
/// The frame before that was just mapped by a 4 KiB page. Returns the number of frames that are
/// mapped now, whoever has mapped them.
///
/// For `KVM_PRE_FAULT_MEMORY`. Takes `mmu_lock`, for at most [`HostPages::MAX`] pages at a time.
/// Does not sleep for I/O.
pub(crate) fn prefault(vcpu: Vcpu<'_>, _srcu: &Srcu<'_>, root: Sp<'_>, range: GfnRange) -> u64 {
    map_run(
        vcpu,
        root,
        range.intersection(same_table(range.start)),
        &mut HostPages::new(),
    )
}

/// Maps what it can of the aligned `pages` frames around `gfn`, in its memslot, which a fault of
/// the vCPU has just mapped by a 4 KiB page. `pages` is rounded down to a power of two, and is
/// [`HostPages::MAX`] at most. Frames that are mapped already end those before `gfn`, and those
/// after it.
///
/// Looks up host pages twice at most: what cannot be mapped ends the frames before `gfn`, and those
/// after it. Takes `mmu_lock`, twice at most. Does not sleep for I/O. Gives up when a notifier is
/// in the way, as it would be in the way of the second lookup too.
pub(crate) fn around(
    vcpu: Vcpu<'_>,
    _srcu: &Srcu<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    gfn: Gfn,
    pages: u64,
) {
    if !is_simple(vcpu.vm()) || !slot.is_plain() {
        return;
    }
    let window = window(gfn, pages).intersection(slot.range());
    let missing = missing_around(vcpu.vm(), root, window, gfn);
    let after = GfnRange::new(gfn.add(1), missing.end);
    // Both sides are looked up together, and the page of the fault with them.
    let all = if missing.start == gfn { after } else { missing };
    let mut host = HostPages::new();

    if all.is_empty() {
        return;
    }
    let Some(mapped) = map_batch(vcpu, root, slot, all, &mut host) else {
        return;
    };

    if all.start.add(mapped) <= gfn && !after.is_empty() {
        map_batch(vcpu, root, slot, after, &mut host);
    }
}

/// Whether the VM's pages are mapped by table at all.
fn is_simple(vm: Vm<'_>) -> bool {
    // Whether a page is private has to be asked for each, and mirrors take a different path.
    vm.uses_tdp_mmu() && !vm.has_private_mem()
}

/// The frames of `window` next to `gfn` whose entries are not present, without a gap on either
/// side, and `gfn` itself. All of `window` is in one table. Takes no lock: others may change the
/// entries at any time.
fn missing_around(vm: Vm<'_>, root: Sp<'_>, window: GfnRange, gfn: Gfn) -> GfnRange {
    let masks = vm.masks();
    let guard = rcu::read_lock();
    let Some(table) = small_table(vm, &guard, root, gfn, masks) else {
        return GfnRange::single(gfn);
    };
    let mut missing = window;

    table.check_start(window);
    for (at, sptep) in window.frames().zip(table.pages(window)) {
        if at == gfn || !sptep.read().is_present() {
            continue;
        }
        if at > gfn {
            missing.end = at;
            break;
        }
        missing.start = at.add(1);
    }
    missing
}

/// The frames that [`around`] may map; all of them are in one table.
fn window(gfn: Gfn, pages: u64) -> GfnRange {
    // A table has more entries than that.
    let pages = pages.clamp(1, HostPages::MAX as u64);
    let pages = 1u64.wrapping_shl((u64::BITS - 1).wrapping_sub(pages.leading_zeros()));
    let start = Gfn(gfn.raw() & pages.wrapping_neg());

    GfnRange::new(start, start.add(pages))
}

/// Maps what it can of `range` without a gap; all of it is in one table of 4 KiB pages. Returns the
/// number of frames that are mapped now.
fn map_run(vcpu: Vcpu<'_>, root: Sp<'_>, range: GfnRange, pages: &mut HostPages) -> u64 {
    let mut next = range.start;

    if !is_simple(vcpu.vm()) {
        return 0;
    }
    while next < range.end {
        let Some(slot) = vcpu.memslot(next).filter(|slot| slot.is_plain()) else {
            break;
        };
        let wanted = GfnRange::new(next, range.end).intersection(slot.range());
        let mapped = map_batch(vcpu, root, slot, wanted, pages).unwrap_or(0);

        next = next.add(mapped);
        if mapped < wanted.pages().min(HostPages::MAX as u64) {
            break;
        }
    }
    next.since(range.start)
}

/// Maps what it can of `range` without a gap, [`HostPages::MAX`] pages at most; all of it is in
/// `slot`, and in one table of 4 KiB pages. Returns the number of frames that are mapped now;
/// `None` if nothing was tried, because of an invalidation that is in progress, or has ended since
/// the host pages were looked up.
fn map_batch(
    vcpu: Vcpu<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    range: GfnRange,
    pages: &mut HostPages,
) -> Option<u64> {
    let sequence = vcpu.vm().invalidation_sequence();

    pages.look_up(slot, range);
    let found = GfnRange::new(range.start, range.start.add(pages.len() as u64));

    if found.is_empty() {
        return Some(0);
    }
    vcpu.with_shared(|lock| {
        let mapped = sequence
            .is_current(lock)
            .then(|| map_found(vcpu, lock, root, slot, pages, found));

        pages.release(lock, mapped.unwrap_or(0) as usize);
        mapped
    })
}

/// The frames of the table of 4 KiB pages that holds the frame before `gfn`.
fn same_table(gfn: Gfn) -> GfnRange {
    let first = Gfn(gfn.raw().saturating_sub(1)).round_down(Level::Page2M);

    GfnRange::new(first, first.add(Level::Page2M.pages()))
}

/// Maps host pages to the frames of `found`. Returns how many of the frames are mapped, from the
/// first on.
fn map_found(
    vcpu: Vcpu<'_>,
    lock: &Shared<'_>,
    root: Sp<'_>,
    slot: Memslot<'_>,
    pages: &HostPages,
    found: GfnRange,
) -> u64 {
    let vm = lock.vm();
    let masks = vm.masks();
    let guard = rcu::read_lock();

    if root.role().invalid() {
        return 0;
    }
    let Some(table) = small_table(vm, &guard, root, found.start, masks) else {
        return 0;
    };
    let leaves = PrefetchLeaves::new(lock, vcpu, slot, Sp::of_table(table.table()), masks);

    map_pages(lock, table, found, |gfn| {
        let pfn = pages.pfn(gfn.since(found.start) as usize)?;

        leaves.leaf(gfn, pfn)
    })
}

/// The table of 4 KiB pages that holds the entry of `gfn`, if there is one.
fn small_table<'g>(
    vm: Vm<'_>,
    guard: &'g rcu::Guard,
    root: Sp<'g>,
    gfn: Gfn,
    masks: &'g Masks,
) -> Option<SmallTable<'g>> {
    let mut walk = Descent::lockless(vm, guard, root, gfn, masks);

    while let Some(view) = walk.next() {
        if view.level() == Level::Page2M {
            return view.child(masks).and_then(Table::small);
        }
    }
    None
}
