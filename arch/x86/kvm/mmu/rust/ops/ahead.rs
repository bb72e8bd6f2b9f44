// SPDX-License-Identifier: GPL-2.0

//! Splitting huge pages ahead of the dirty log, and recovering them, when userspace wants it;
//! `KVM_SPLIT_HUGE_PAGES`.
//!
//! Eager splitting begins when logging does, in one thread, and the migration waits for it. A VMM
//! may split before that instead, at its own pace and in as many threads as it likes, so that
//! enabling the log finds small pages. C ([`rust_split.c`]) checks the arguments, and calls this
//! for a gigabyte of a memslot at a time, with `kvm->srcu` held and `mmu_lock` not. If the pages
//! have to stay small, it has noted that in the memslot's `lpage_info` before, with `mmu_lock` held
//! for write. Every fault that takes the lock later looks there, and so does recovery.
//!
//! # Why this may run beside everything else
//!
//! A split here is the split of a fault, by a thread that isn't a vCPU: `mmu_lock` is held for
//! read, the table maps the same frames with the same rights as the leaf that it replaces, and goes
//! in by a compare-and-exchange with the leaf that it was made from. Code that tolerates faults
//! tolerates this. `slots_lock` is not held. SRCU takes its place: the memslot was looked up in the
//! section, and does not change within it.
//!
//! - **Another splitter**, or a **fault**: one of them wins the exchange and counts the split. The
//!   loser finds a table, and puts its own back. So ranges may overlap, and each page is split, and
//!   counted, once.
//! - A **fault** that maps a page: one that began before the pages had to stay small has ended,
//!   because it held `mmu_lock` for read from its decision to the installed leaf; this walk comes
//!   later and sees the leaf. One that begins afterwards maps small pages.
//! - **Notifiers** and **write-tracking** hold `mmu_lock` for write, so they come before or after
//!   an entry.
//! - **Enabling the log** of the same slot publishes it, waits for this section, and only then
//!   protects. A section that begins later may split a huge page beside it. Either the table goes
//!   in first with writable leaves, and enabling loses its exchange, looks again, and protects
//!   them; or enabling is first, and the split loses. To **GET and CLEAR** it is like the split of
//!   a fault.
//! - **Recovery when the log ends** leaves pages alone that have to stay small. It may recover
//!   others just after they were split, or before; nothing was promised for them.
//! - **NX recovery** zaps only tables that stand for a huge page that is not executable, and those
//!   made here do not. If it unlinks the table that the walk is in, the entries there are frozen
//!   first, and an exchange fails, or was earlier, and then the new table goes with the one above
//!   it.
//! - **Deleting or moving** the slot publishes it as invalid, waits for this section, and zaps
//!   then. The next section finds the slot invalid, or none. That pages have to stay small is
//!   forgotten with the slot's `lpage_info`.
//! - A **fast zap** marks roots invalid with `mmu_lock` held for write, and zaps them with the lock
//!   held for read. The walk looks at the root whenever it has the lock, and leaves an invalid one
//!   alone, as a fault does. The reference to the root keeps it from being freed.
//! - **Teardown** of the VM comes after the last ioctl, which holds a reference to it.
//!
//! # Recovery
//!
//! Recovery at the end of a log ([`super::dirty_log::recover`]) requires that nobody protects pages
//! of the slot at the same time, for which it holds `slots_lock`. Here the SRCU section keeps a log
//! from being enabled ([`Unlogged`]). Two recoveries may meet, one of them perhaps at the end of a
//! log: one wins the exchange, tears down the table and counts it, and the other looks again and
//! finds a leaf.
//!
//! **Attributes** of memory (`KVM_SET_MEMORY_ATTRIBUTES`) change under `slots_lock`, in two steps,
//! and `mmu_lock` is dropped between them: pages are zapped, and later huge pages that contain them
//! are forbidden. A fault sees that something is being invalidated, and waits. Recovery under
//! `slots_lock` can't run at that time; here it checks for the same as a fault, and leaves such
//! pages small (found by the simulation).
//!
//! # What is not done
//!
//! Shadow pages of nested guests are neither split nor recovered here. Those that are made later
//! obey `lpage_info`. Mirror roots (TDX) and guest_memfd have no huge pages; KVM must not even ask
//! guest_memfd for the size of one outside of a fault.
//!
//! [`rust_split.c`]: srctree/arch/x86/kvm/mmu/rust/rust_split.c

use kernel::error::{
    code::EBUSY,
    Result, //
};

use crate::{
    cache::TdpSplitCache,
    ops::{
        dirty_log::recover::recover_range,
        split::split_huge_pages, //
    },
    pure::{
        GfnRange,
        Level, //
    },
    root::Selection,
    sync::{
        with_shared,
        Holder,
        Srcu, //
    },
    sys::{
        Memslot,
        Shortage,
        Unlogged,
        Vm, //
    }, //
};

/// Splits the huge pages of `slot` that overlap `range`, which is within one gigabyte, down to
/// `target`. Takes `mmu_lock`, and drops it to allocate. Fails with `ENOMEM`, or with `EINTR` if
/// the current task is being killed; then some of the pages are split.
pub(crate) fn split(
    vm: Vm<'_>,
    _srcu: &Srcu<'_>,
    slot: Memslot<'_>,
    range: GfnRange,
    target: Level,
) -> Result {
    let roots = Selection::valid_direct(slot.as_id());

    // Nobody needs the split so much that a task should be killed for its tables.
    let mut cache = Some(TdpSplitCache::new(vm, Shortage::Fail));

    // Several threads may be here at once: not accounted, and those who wait for one of them count
    // that as a wait for a fault. What is left in the cache is freed without the lock.
    with_shared(vm, Holder::Caller, |lock| {
        split_huge_pages(lock, roots, range, target, &mut cache)
    })
}

/// Recovers the huge pages that overlap `range`, where `slot`'s `lpage_info` and the host allow it.
/// Takes `mmu_lock`, and flushes the TLBs. Fails with `EBUSY` if the slot is logged.
pub(crate) fn recover(vm: Vm<'_>, srcu: &Srcu<'_>, slot: Memslot<'_>, range: GfnRange) -> Result {
    let unlogged = Unlogged::in_srcu(slot, srcu).ok_or(EBUSY)?;
    let roots = Selection::valid_direct(slot.as_id());

    with_shared(vm, Holder::Caller, |lock| {
        recover_range(lock, unlogged, roots, range)
    });
    Ok(())
}
