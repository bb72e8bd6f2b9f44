// SPDX-License-Identifier: GPL-2.0

//! Making small pages writable when dirty logging ends.
//!
//! If the host maps the memory by small pages, there is no huge page to recover, and each 4 KiB
//! leaf stays write-protected, as the log has left it. Upstream leaves it to the guest's next write
//! to each page, which faults: 800,000 faults for a small guest whose migration was cancelled. Here
//! W is set in all leaves of a table in one step, with `mmu_lock` held for read, by plain stores.
//!
//! # Why a plain store may grant a right
//!
//! It grants what a fast page fault would grant on the next write, according to the same bits
//! ([`LogProtected`]): the host and KVM allow writes (MMU-writable), and only the log cleared W. A
//! fast page fault holds no lock, so it needs an exchange: a leaf that was zapped meanwhile must
//! not come back. Here `mmu_lock` is held, and nothing that matters can happen between the load and
//! the store. Eight leaves are loaded before the first of them is stored:
//!
//! - The **log** has ended: the slot was published as not logged, so writes need not be noticed. It
//!   may begin again, but nobody protects a page before this has ended ([`Unlogged`]). A fault that
//!   has seen the slot logged may still be running if userspace recovers pages just as the log
//!   ends: its leaves are no less than ours, or a later fault replaces them.
//! - **Notifiers**, **write-tracking**, and everything that removes single leaves or clears
//!   MMU-writable hold the lock for write: none of them runs between our load and our store. So no
//!   leaf comes back that was zapped, and no frame becomes writable that is tracked
//!   (`tdp-unprotect-zapped.litmus` shows what would happen otherwise).
//! - A **fast page fault** (no lock) and a **fault** (read lock) make the leaf writable by an
//!   exchange. It fails if we were faster; otherwise our store writes the same again
//!   (`tdp-unprotect.litmus`). If a fault has granted something else as well, our store reverts
//!   that, and the guest faults again.
//! - **Aging** (no lock) and the **CPU** clear or set A by locked updates. Either may be lost,
//!   which aging tolerates. The CPU sets no D, as W is clear. Without A/D bits aging clears
//!   permissions and saves them elsewhere, so such leaves are left to the next fault.
//! - **NX recovery** or **another recovery** (read lock) may unlink the table, and freeze its
//!   entries. Our store may then put a leaf where a frozen entry was, in a table that only those
//!   that are in it already can reach. Freezing has seen the leaf, and has counted it as removed; a
//!   fault that meets ours replaces a leaf by a leaf, which counts nothing. Until the flush, a CPU
//!   may use the table by a cached upper-level entry. It writes to a page that is the guest's,
//!   because neither drops the lock before the flush, so no notifier has run. If our store comes
//!   after that flush, no CPU can reach the table any more.
//! - **Roots** are zapped under `mmu_lock` held for write, or once they are invalid, and then
//!   nobody gets here.

use crate::{
    pte::{
        SmallSptep,
        SmallTable, //
    },
    pure::{
        GfnRange,
        Index,
        Level,
        LogProtected,
        Role, //
    },
    sync::{
        MmuLock,
        Shared, //
    },
    sys::{
        trace,
        Unlogged, //
    }, //
};

/// Makes the pages of `range` in `table` writable again that only the log kept from being written.
/// They are pages of the slot that is not logged. `role` is that of the tree's root. Returns
/// whether there was any; the flush that is due then only spares faults on what CPUs have cached.
// A function of its own, so that its loop has all registers.
#[inline(never)]
pub(super) fn unprotect_pages(
    lock: &Shared<'_>,
    unlogged: Unlogged<'_>,
    table: SmallTable<'_>,
    range: GfnRange,
    role: Role,
) -> bool {
    let protected = LogProtected::new(lock.vm().masks());
    let mut any = false;

    table.check_start(range);
    kvm_mmu_warn_on!(range != range.intersection(unlogged.slot().range()));
    if trace::spte_changed_enabled() {
        return unprotect_traced(lock, unlogged, table, range, role, protected);
    }
    let mut pages = table.pages(range);

    while let Some(group) = pages.next_group() {
        // All of them, where nothing was written; none, where everything was.
        any |= group
            .unprotect(lock, unlogged, protected)
            .unwrap_or_else(|| unprotect_each(lock, unlogged, group.spteps(), protected));
    }
    any | unprotect_each(lock, unlogged, pages, protected)
}

/// The same, one by one.
#[inline(never)]
fn unprotect_each<'t>(
    lock: &Shared<'_>,
    unlogged: Unlogged<'_>,
    sptes: impl IntoIterator<Item = SmallSptep<'t>>,
    protected: LogProtected,
) -> bool {
    let mut any = false;

    for sptep in sptes {
        any |= sptep.unprotect(lock, unlogged, protected);
    }
    any
}

/// The same, by exchanges, so that each change can be traced exactly. If an exchange fails, the
/// page is left to a fault.
#[cold]
fn unprotect_traced(
    lock: &Shared<'_>,
    unlogged: Unlogged<'_>,
    table: SmallTable<'_>,
    range: GfnRange,
    role: Role,
    protected: LogProtected,
) -> bool {
    let mut any = false;

    for gfn in range.frames() {
        let sptep = table.sptep(Index::of(gfn, Level::Page4K));

        if let Some((old, new)) = sptep.try_unprotect(lock, unlogged, protected) {
            trace::spte_changed(role.as_id(), gfn, Level::Page4K, old, new);
            any = true;
        }
    }
    any
}
