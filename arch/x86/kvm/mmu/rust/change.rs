// SPDX-License-Identifier: GPL-2.0

//! Changing an SPTE: the write, and the bookkeeping that follows from it.
//!
//! [`Transition::classify`] decides what a change implies, and this file carries it out, once. The
//! two modes of `mmu_lock` differ in how the value gets into the SPTE:
//!
//! - Under [`Shared`], by compare-and-exchange. The loser learns the value that beat it, and has
//!   changed nothing.
//! - Under [`Exclusive`], by a plain store, or by an exchange if the old value is volatile, so that
//!   a bit that is set concurrently by hardware or without the lock isn't lost.
//!
//! # Tearing a table down
//!
//! A table that has just been unlinked is still visible to those who read the parent entry before.
//! Under [`Shared`] they may even install an entry in it: a fault that is on its way down already
//! has a pointer into the table. So each entry is exchanged for the frozen value, which nobody
//! overwrites, and the value that the exchange returns is accounted. A fault that comes later sees
//! a frozen entry, fails, and is retried from the root. Under [`Exclusive`] there are no such
//! faults; only the CPU may still use the old translation until the flush, and set a D bit.
//!
//! # Full tables
//!
//! Freezing serves to find out how many leaves are removed: a fault may install one in an entry
//! that is not present (`freeze_leaves`). A *full* table of 4 KiB pages has no such entry
//! ([`Sp::is_full`]): a split has made it with 512 leaves, and under the read lock none of them is
//! removed except with the table. So 512 are accounted, and the entries are left as they are. The
//! following may still see the unlinked table:
//!
//! - A **fault** (read lock) that is on its way down finds each leaf present. Either the leaf
//!   allows the access, or the fault replaces it by a leaf of the same frame, which changes no
//!   count. In both cases the guest retries. It can't install a table, as there is no level below.
//!   If it made the leaf writable, it sets the page's bit in the log: at worst a bit is set for a
//!   page that was not written. The frame is still the host's, because its notifier waits for the
//!   lock, which the fault has held since before the table was unlinked.
//! - A **fast page fault** and **aging** (no lock) change bits that nobody reads any more. Neither
//!   makes an entry present or not present. They may run even after the frame was freed and reused:
//!   no CPU can reach this table then.
//! - The **CPU** may use the table through an upper-level entry that it has cached, until the
//!   flush. It then uses the translation that it had, or one with W that the fast page fault above
//!   has set. That is allowed until a notifier has run, and the bit in the log is set after it.
//!   Flows that unlink tables flush before they drop `mmu_lock`, and so before a notifier or
//!   write-tracking can take it. Roots that are zapped without a flush are invalid, and no vCPU
//!   runs on them. And reaping the log flushes before the ioctl returns; after that no CPU can
//!   reach a table that was unlinked before.
//! - **Enabling, reaping and disabling the log** (read lock, `slots_lock`) may store into it, which
//!   is harmless ([`crate::ops::dirty_log`]).
//! - **NX recovery** compares the entry that pointed to the table, and gives up.
//! - **Notifiers**, and everything else that removes single leaves, hold the lock for write: either
//!   they run before the table is unlinked, and clear the flag, or they don't find the table.
//!
//! Mirrors, upper levels, tables that have lost a leaf, tables of a VM that is logged by D bits,
//! and changes that are traced are frozen as before.
//!
//! # D bits of leaves that go away
//!
//! If the dirty log is in the D bits, whoever removes a leaf with D set also sets the page's bit in
//! the log, before `mmu_lock` is dropped. That happens here; see
//! [`crate::ops::dirty_log::dirty_bits`].

#![expect(unsafe_code)]

use core::marker::PhantomData;

use kernel::{
    error::code::EBUSY,
    prelude::*,
    processor::cpu_relax,
    sync::rcu, //
};

use crate::{
    page::{
        BlankSp,
        OwnedSp,
        RemovedSp, //
    },
    pte::{
        mark_access_track,
        SmallGroup,
        SmallSptep,
        SmallTable,
        Sptep,
        View,
        GROUP, //
    },
    pure::{
        addr::ENTRIES,
        dirty::WORD_PAGES,
        leaf,
        summary::Summary,
        transition::Transition,
        Gfn,
        GfnRange,
        Hpa,
        Index,
        Level,
        LogProtected,
        Masks,
        Role,
        Settled,
        Spte,
        WriteBits, //
    },
    sync::{
        Exclusive,
        LogOwner,
        MmuLock,
        Shared,
        SlotsLock, //
    },
    sys::{
        trace,
        Sp,
        Unlogged,
        Vm, //
    },
    walk::Step, //
};

/// Another CPU changed the entry first, or the external table refused the change. Retry.
#[derive(Debug)]
pub(crate) struct Lost;

/// A mode of `mmu_lock`, which determines how SPTEs are changed.
pub(crate) trait Update<'l>: MmuLock<'l> + Sized {
    /// Changes the entry from the value in `view` to `new`, and does the bookkeeping.
    ///
    /// Afterwards the view has the value that was replaced or, on failure, the current value.
    ///
    /// # Safety
    ///
    /// If `new` is present and not a leaf at the entry's level, it must point to a table of the
    /// next lower level, which is freed by RCU once the entry no longer points to it.
    unsafe fn update(&self, view: &mut View<'_>, new: Spte, masks: &Masks) -> Result<(), Lost>;

    /// Freezes an entry of a table that is being torn down, and returns what it was; `None` if
    /// nothing has to be accounted.
    ///
    /// # Safety
    ///
    /// The caller must have unlinked the table, and must tear down what the entry pointed to.
    unsafe fn freeze(&self, sptep: Sptep<'_>, level: Level, masks: &Masks) -> Option<Spte>;
}

impl<'l> Update<'l> for Shared<'l> {
    /// # Safety
    ///
    /// As for [`Update::update`].
    #[inline]
    unsafe fn update(&self, view: &mut View<'_>, new: Spte, masks: &Masks) -> Result<(), Lost> {
        let role = view.sp().role();
        let mirror = role.mirror();

        // A frozen entry belongs to somebody else, and no entry must be left frozen.
        warn_on_once!(view.spte().is_frozen());
        kvm_mmu_warn_on!(new.is_frozen());
        // Full tables, and plain stores for the dirty log, rely on this never happening.
        kvm_mmu_warn_on!(
            view.level() == Level::Page4K
                && view.spte().is_present()
                && !new.is_present()
                && !mirror
        );

        // A mirror entry stays frozen while the external table is being updated, so that nobody can
        // install a child in a table that the external side doesn't have yet.
        let first = if mirror { Spte::FROZEN } else { new };
        kvm_mmu_warn_on!(first.is_ve_possible(masks));
        // SAFETY: `mmu_lock` is held. The frozen value is not present, and `new` points to a table
        // only as this function requires.
        if !unsafe { view.compare_exchange(first) } {
            return Err(Lost);
        }

        let result = commit(self, role, view, new, masks);

        if mirror {
            // Unfreeze, with the old value if the external table could not be updated.
            let last = if result.is_ok() { new } else { view.spte() };
            // SAFETY: `mmu_lock` is held, and the entry is frozen by us, so that others store only
            // the same value again, until they don't find it any more (`wait_for_thaw`). The old
            // value was in it before, and what it points to was not torn down, as the change has
            // failed; for `new` as above.
            unsafe { view.write(last) };
        } else if result.is_err() {
            // Only external tables can fail.
            self.vm().bugged();
        }
        result.map_err(|_| Lost)
    }

    /// # Safety
    ///
    /// As for [`Update::freeze`].
    #[inline]
    unsafe fn freeze(&self, sptep: Sptep<'_>, _level: Level, _masks: &Masks) -> Option<Spte> {
        // SAFETY: The table was just unlinked by the caller. The frozen value is not present.
        let old = unsafe { sptep.swap(Spte::FROZEN) };

        if old.is_present() {
            Some(old)
        } else {
            // SAFETY: The table was just unlinked by the caller.
            Some(unsafe { wait_for_thaw(sptep, old) })
        }
    }
}

impl<'l> Update<'l> for Exclusive<'l> {
    /// # Safety
    ///
    /// As for [`Update::update`].
    #[inline]
    unsafe fn update(&self, view: &mut View<'_>, new: Spte, masks: &Masks) -> Result<(), Lost> {
        // With the lock held for write there is no reason to freeze an entry.
        warn_on_once!(view.spte().is_frozen() || new.is_frozen());
        kvm_mmu_warn_on!(new.is_ve_possible(masks));

        if view.spte().needs_atomic_update(view.level(), masks) {
            // SAFETY: `mmu_lock` is held for write. `new` points to a table only as this function
            // requires.
            unsafe { view.swap(new) };
        } else {
            // SAFETY: As above.
            unsafe { view.write(new) };
        }
        if view.level() == Level::Page4K && !new.is_present() {
            view.sp().clear_full(self);
        }
        if commit(self, view.sp().role(), view, new, masks).is_err() {
            // This can't be undone, and the vendor code promises that it doesn't fail.
            self.vm().bugged();
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Update::freeze`].
    #[inline]
    unsafe fn freeze(&self, sptep: Sptep<'_>, level: Level, masks: &Masks) -> Option<Spte> {
        // An entry that isn't present maps nothing, and can't become present. MMIO entries are
        // invalidated by the memslot generation, not by being unreachable.
        let old = sptep.read();
        if !old.is_present() {
            return None;
        }

        // Atomic if volatile: until the TLBs are flushed, the CPU may still set the D bit through a
        // cached upper-level entry, and a fast page fault may have made the leaf writable since it
        // was read. Frozen rather than empty only so that one `commit` serves both modes.
        if old.needs_atomic_update(level, masks) {
            // SAFETY: The table was just unlinked by the caller. The frozen value is not present.
            return Some(unsafe { sptep.swap(Spte::FROZEN) });
        }
        // SAFETY: As above.
        unsafe { sptep.write(Spte::FROZEN) };
        Some(old)
    }
}

/// Waits for an entry that was already frozen when it was frozen here, and returns its last value.
/// It was frozen by a fault in the middle of a change that ends with a plain store, which would
/// undo the freezing.
///
/// # Safety
///
/// The caller must have unlinked the table.
#[cold]
unsafe fn wait_for_thaw(sptep: Sptep<'_>, mut old: Spte) -> Spte {
    while old.is_frozen() {
        cpu_relax();
        // SAFETY: The table was unlinked by the caller. The frozen value is not present.
        old = unsafe { sptep.swap(Spte::FROZEN) };
    }
    old
}

/// What the bookkeeping of all entries of a table has in common.
struct Place<'a> {
    vm: Vm<'a>,
    level: Level,
    as_id: u16,
    mirror: bool,
    mmio_value: u64,
}

impl<'a> Place<'a> {
    #[inline]
    fn new(vm: Vm<'a>, level: Level, role: Role) -> Self {
        Place {
            vm,
            level,
            as_id: role.as_id(),
            mirror: role.mirror(),
            mmio_value: vm.mmio_value(),
        }
    }

    /// Does the bookkeeping for a change of the entry at `gfn`, except for the page statistics: it
    /// returns the change in the number of leaves, so that the caller can add them up.
    ///
    /// Fails only if the entry is a mirror and the external table refuses the change. Pages are not
    /// marked dirty here, but where an entry becomes writable.
    #[inline(always)]
    fn apply<'l, M: Update<'l>>(
        &self,
        lock: &M,
        gfn: Gfn,
        old: Spte,
        new: Spte,
        masks: &Masks,
    ) -> Result<i32> {
        let mut leaves = 0;

        match Transition::classify(old, new, self.level, self.mmio_value, masks) {
            Transition::Unchanged => return Ok(0),
            Transition::Corrupt => die("leaf changes its frame", self, gfn, old, new),
            Transition::NonPresent { expected } => {
                if warn_on_once!(!expected) {
                    report(
                        "unexpected change of a non-present SPTE",
                        self,
                        gfn,
                        old,
                        new,
                    );
                }
            }
            Transition::Present(effects) => {
                warn_on_once!(effects.bad_write_state);
                warn_on_once!(effects.table_moved);

                if let Some(table) = effects.removed {
                    // The vendor code is told when the external table is freed.
                    // SAFETY: The entry that pointed to the table was just replaced, by us.
                    tear_down(lock, unsafe { RemovedSp::from_table(table) }, masks);
                } else if self.mirror {
                    // SAFETY: The page is a mirror. Its entry was frozen by us, or `mmu_lock` is
                    // held for write.
                    unsafe { self.vm.set_external_spte(gfn, old, new, self.level) }?;
                }
                if effects.written && self.vm.logs_by_dirty_bits() {
                    carry_one(self, gfn);
                }
                leaves = effects.leaves.into();
            }
        }

        trace::spte_changed(self.as_id, gfn, self.level, old, new);
        Ok(leaves)
    }
}

/// Sets the bit of a page in the dirty log, because its leaf goes away.
#[cold]
fn carry_one(place: &Place<'_>, gfn: Gfn) {
    place.vm.carry_dirty(place.as_id, gfn, &[1]);
}

/// Does all the bookkeeping of the change of one entry.
#[inline]
fn commit<'l, M: Update<'l>>(
    lock: &M,
    role: Role,
    view: &View<'_>,
    new: Spte,
    masks: &Masks,
) -> Result {
    let vm = lock.vm();

    warn_on_once!(!view.gfn().is_aligned(view.level()));

    let place = Place::new(vm, view.level(), role);
    let leaves = place.apply(lock, view.gfn(), view.spte(), new, masks)?;
    if leaves != 0 {
        // A fault changes one leaf, and has nothing to add it up with.
        if lock.tally().is_empty() {
            vm.add_leaves(view.level(), leaves);
        } else {
            lock.tally().add_leaves(vm, view.level(), leaves);
        }
    }
    Ok(())
}

/// Tears down a table that is no longer linked, and everything below it.
///
/// Only freezing has to be atomic for each entry, because faults race with it. No reader compares
/// the statistics with the tables, so leaves are added up per table, and put off
/// ([`crate::tally`]): an atomic addition for each of 512 would be a large part of the cost of
/// recovering a huge page.
///
/// Recursion ends after four levels.
fn tear_down<'l, M: Update<'l>>(lock: &M, removed: RemovedSp, masks: &Masks) {
    let vm = lock.vm();
    let sp = removed.as_sp();
    let role = sp.role();

    trace::prepare_zap_page(sp);
    removed.unaccount(vm);

    // Every page of the TDP MMU has a level, and a child's is lower than its parent's.
    if let Some(level) = role.level() {
        // Nearly all tables are of the last level and not mirrors. There is next to nothing to do
        // for their entries, unless the tracepoint is enabled.
        let leaves = if level != Level::Page4K || role.mirror() || trace::spte_changed_enabled() {
            freeze_all(lock, &Place::new(vm, level, role), &removed, masks)
        } else if vm.logs_by_dirty_bits() {
            freeze_written_leaves(lock, &removed, masks)
        } else if sp.is_full(lock) {
            kvm_mmu_warn_on!(!Index::all().all(|index| sp
                .table()
                .sptep(index)
                .read()
                .is_present()));
            -(ENTRIES as i32)
        } else {
            freeze_leaves(lock, &removed, masks)
        };

        if leaves != 0 {
            lock.tally().add_leaves(vm, level, leaves);
        }
    }

    if role.mirror() {
        removed.free_external_table(vm);
    }
    removed.retire(lock);
}

/// Freezes all entries of a table of 4 KiB pages that is not a mirror, and returns the change in
/// the number of leaves. [`Place::apply`] would do nothing else for them, except to trace the
/// change.
fn freeze_leaves<'l, M: Update<'l>>(lock: &M, removed: &RemovedSp, masks: &Masks) -> i32 {
    let table = removed.as_sp().table();
    let mut absent: i32 = 0;

    for group in Index::groups() {
        for index in group {
            // SAFETY: The page was unlinked, and its entries are leaves.
            let old = unsafe { lock.freeze(table.sptep(index), Level::Page4K, masks) };

            if !old.is_some_and(Spte::is_present) {
                absent = absent.wrapping_add(1);
            }
        }
    }
    absent.wrapping_sub(ENTRIES as i32)
}

/// As [`freeze_leaves`], in a VM that is logged by D bits: sets the bits of the pages whose leaves
/// have D set, for the whole table at once.
fn freeze_written_leaves<'l, M: Update<'l>>(lock: &M, removed: &RemovedSp, masks: &Masks) -> i32 {
    let sp = removed.as_sp();
    let table = sp.table();
    let mut absent: i32 = 0;
    let mut written = [0; ENTRIES.div_ceil(WORD_PAGES as usize)];

    for index in Index::all() {
        // SAFETY: The page was unlinked, and its entries are leaves.
        match unsafe { lock.freeze(table.sptep(index), Level::Page4K, masks) } {
            Some(old) if old.is_present() => {
                let bit = u64::from(old.is_dirty(masks));

                if let Some(word) = written.get_mut(index.get() / WORD_PAGES as usize) {
                    *word |= bit.wrapping_shl(index.get() as u32);
                }
            }
            _ => absent = absent.wrapping_add(1),
        }
    }
    lock.vm().carry_dirty(sp.role().as_id(), sp.gfn(), &written);
    absent.wrapping_sub(ENTRIES as i32)
}

/// Freezes all entries of a table, does their bookkeeping, and returns the change in the number of
/// leaves.
fn freeze_all<'l, M: Update<'l>>(
    lock: &M,
    place: &Place<'_>,
    removed: &RemovedSp,
    masks: &Masks,
) -> i32 {
    let sp = removed.as_sp();
    let table = sp.table();
    let mut gfn = sp.gfn();
    let mut leaves: i32 = 0;

    for index in Index::all() {
        // SAFETY: The page was unlinked, and `apply` tears down what is below it.
        if let Some(old) = unsafe { lock.freeze(table.sptep(index), place.level, masks) } {
            match place.apply(lock, gfn, old, Spte::FROZEN, masks) {
                Ok(change) => leaves = leaves.wrapping_add(change),
                // Removing a mapping cannot be refused.
                Err(_) => place.vm.bugged(),
            }
        }
        gfn = gfn.add(place.level.pages());
    }
    leaves
}

/// Logs a change that must not happen.
#[cold]
fn report(what: &str, place: &Place<'_>, gfn: Gfn, old: Spte, new: Spte) {
    pr_err!(
        "{}: as_id {} gfn {:#x} {:#x} -> {:#x} level {}\n",
        what,
        place.as_id,
        gfn.raw(),
        old.raw(),
        new.raw(),
        place.level.raw()
    );
}

/// Stops the host, because a present leaf was about to map another frame: going on would corrupt
/// guest data.
#[cold]
fn die(what: &str, place: &Place<'_>, gfn: Gfn, old: Spte, new: Spte) -> ! {
    report(what, place, gfn, old, new);
    // SAFETY: Never returns.
    unsafe { kernel::bindings::BUG() }
}

/// Zaps the leaves of `table` that map frames of `range`, which starts in it. What is beyond the
/// table is left out. It must not be a mirror's (a bug in the caller). Returns whether there was
/// any leaf. Changes are not traced.
///
/// With `mmu_lock` held for write, nobody else makes an entry present or not present, so what is
/// counted is what is zapped. Plain stores are enough even if the leaves are volatile, because
/// nobody misses what they may lose:
///
/// - A **fast page fault** (no lock) makes a leaf writable by an exchange, which fails after our
///   store. If it comes between our load and our store, the page's bit is set in the log, and the
///   page is unmapped.
/// - **Aging** (no lock) clears A by an exchange as well. Whether an unmapped page was young
///   doesn't matter.
/// - The **CPU** sets A and D by locked updates. D of a leaf that is zapped is not looked at,
///   unless the VM is logged by D bits: its folio was marked dirty when the leaf was made. Until
///   the caller flushes, the CPU may use what it has cached.
///
/// (`tdp-zap-store.litmus`; `tdp-zap-unlocked.litmus` shows what the write lock is needed for.)
// A function of its own, so that its loop has all registers.
#[inline(never)]
pub(crate) fn zap_pages(lock: &Exclusive<'_>, table: SmallTable<'_>, range: GfnRange) -> bool {
    let sp = Sp::of_table(table.table());
    let mut leaves: i32 = 0;

    kvm_mmu_warn_on!(sp.role().mirror());
    table.check_start(range);
    if lock.vm().logs_by_dirty_bits() {
        leaves = zap_written_pages(lock, table, range);
    } else {
        table.for_each_page(range, |sptep| {
            if sptep.read().is_present() {
                // SAFETY: `mmu_lock` is held for write. The value is not present.
                unsafe { sptep.sptep().write(Spte::NONPRESENT) };
                leaves = leaves.wrapping_sub(1);
            }
        });
    }
    if leaves == 0 {
        return false;
    }
    sp.clear_full(lock);
    lock.vm().add_leaves(Level::Page4K, leaves);
    true
}

/// As [`zap_pages`], in a VM that is logged by D bits: sets the bits of the pages whose leaves have
/// D set, for the whole table at once. Returns the change in the number of leaves.
///
/// The CPU may set D in a leaf that is writable and has D clear until the leaf is gone, so that one
/// is zapped by an exchange. If D is set, nobody clears it: that takes `mmu_lock`.
#[inline(never)]
fn zap_written_pages(lock: &Exclusive<'_>, table: SmallTable<'_>, range: GfnRange) -> i32 {
    let vm = lock.vm();
    let masks = vm.masks();
    let as_id = Sp::of_table(table.table()).role().as_id();
    let mut leaves: i32 = 0;
    let mut written = [0; ENTRIES.div_ceil(WORD_PAGES as usize)];

    for (at, sptep) in table.pages(range).enumerate() {
        let mut old = sptep.read();

        if !old.is_present() {
            continue;
        }
        if old.is_volatile(masks) {
            // SAFETY: `mmu_lock` is held for write. The value is not present.
            old = unsafe { sptep.sptep().swap(Spte::NONPRESENT) };
        } else {
            // SAFETY: As above.
            unsafe { sptep.sptep().write(Spte::NONPRESENT) };
        }
        leaves = leaves.wrapping_sub(1);
        if let Some(word) = written.get_mut(at / WORD_PAGES as usize) {
            *word |= u64::from(old.is_dirty(masks)).wrapping_shl(at as u32);
        }
    }
    vm.carry_dirty(as_id, range.start, &written);
    leaves
}

/// Maps the frames of `range`, which starts in `table`, in order, by the leaves that `leaf` makes
/// for them where none is present. What is beyond `table` is left out. It must not be a mirror's (a
/// bug in the caller). An entry that has a leaf is left as it is. Ends where `leaf` makes none, and
/// at an entry that is frozen, or that somebody else has changed meanwhile. Returns the number of
/// frames that are mapped now, from the first on.
///
/// The statistics are updated for all together: first all are added, and in the end those are taken
/// back that were not mapped. The other way round, this could make the count drop below zero
/// if the table is torn down meanwhile.
#[inline(always)]
pub(crate) fn map_pages(
    lock: &Shared<'_>,
    table: SmallTable<'_>,
    range: GfnRange,
    mut leaf: impl FnMut(Gfn) -> Option<Spte>,
) -> u64 {
    let vm = lock.vm();
    let role = Sp::of_table(table.table()).role();
    let as_id = role.as_id();
    // A table has 512 entries.
    let pages = Index::of_pages(range).len();
    let range = GfnRange::new(range.start, range.start.add(pages as u64));
    let mut left = pages as i32;
    let mut end = range.start;

    kvm_mmu_warn_on!(role.mirror());
    table.check_start(range);
    vm.add_leaves(Level::Page4K, left);

    for gfn in range.frames() {
        let sptep = table.sptep(Index::of(gfn, Level::Page4K));
        let old = sptep.read();

        if !old.is_present() {
            if old.is_frozen() {
                break;
            }
            let Some(new) = leaf(gfn) else {
                break;
            };
            // SAFETY: `mmu_lock` is held. No entry of the table points to a table.
            if unsafe { sptep.sptep().compare_exchange(old, new) }.is_err() {
                break;
            }
            trace::spte_changed(as_id, gfn, Level::Page4K, old, new);
            trace::set_spte(Level::Page4K, gfn, sptep.sptep());
            left = left.wrapping_sub(1);
        }
        end = gfn.add(1);
    }
    if left != 0 {
        vm.add_leaves(Level::Page4K, left.wrapping_neg());
    }
    end.since(range.start)
}

impl<'l, M: Update<'l>> Step<'_, M> {
    /// Changes the entry, unless somebody else changed it first; then the view has the new value.
    ///
    /// `new` is a leaf or not present. Anything else is a bug, which ends the VM: walks trust that
    /// an entry points to a table, and only [`OwnedSp::link`] makes it point to one.
    #[inline]
    pub(crate) fn set(&mut self, new: Spte, masks: &Masks) -> Result<(), Lost> {
        if new.is_present() && !new.is_leaf(self.view.level()) {
            self.lock.vm().bugged();
            return Ok(());
        }
        // SAFETY: `new` points to no table.
        unsafe { self.lock.update(&mut self.view, new, masks) }
    }

    /// The entry as it is now.
    #[inline]
    pub(crate) fn again(&self) -> Self {
        Step {
            view: self.view.again(),
            lock: self.lock,
        }
    }

    /// The level of a table that the entry can point to. `None` for an entry of 4 KiB, which is a
    /// bug in the caller, and ends the VM.
    #[inline]
    fn child_level(&self) -> Option<Level> {
        let level = self.view.level().down();

        if level.is_none() {
            self.lock.vm().bugged();
        }
        level
    }

    /// Makes the table that the entry points to drain, for [`crate::ops::dirty_log::dirty_bits`],
    /// unless somebody else changed the entry first; then the view has the new value.
    #[inline]
    pub(crate) fn try_drain(&mut self, slots: &SlotsLock<'_>, masks: &Masks) {
        let new = Summary::draining(self.view.spte(), masks);

        slots.check_vm(self.lock);
        // SAFETY: `mmu_lock` is held. The summary is A and a software bit: the entry points where
        // it did.
        unsafe { self.view.compare_exchange(new) };
    }

    /// Closes that table, unless somebody else changed the entry first.
    #[inline]
    pub(crate) fn try_close(&mut self, slots: &SlotsLock<'_>, masks: &Masks) {
        let new = Summary::closed(self.view.spte(), masks);

        slots.check_vm(self.lock);
        // SAFETY: As in `try_drain`.
        unsafe { self.view.compare_exchange(new) };
    }
}

impl Step<'_, Shared<'_>> {
    /// Clears bits of a leaf, with no bookkeeping except for the trace: these bits are not
    /// accounted. Fails if somebody else was faster; then the view has the new value.
    #[inline]
    pub(crate) fn try_clear_bits(&mut self, bits: WriteBits, as_id: u16) -> Result<(), Lost> {
        let view = &mut self.view;
        let (old, new) = (view.spte(), view.spte().cleared(bits));

        // SAFETY: `mmu_lock` is held. The entry points where it did.
        if !unsafe { view.compare_exchange(new) } {
            return Err(Lost);
        }
        trace::spte_changed(as_id, view.gfn(), view.level(), old, new);
        Ok(())
    }
}

impl<'l> Step<'_, Exclusive<'l>> {
    /// Changes the entry. Can't fail, as nobody else changes it.
    #[inline]
    pub(crate) fn write(&mut self, new: Spte, masks: &Masks) {
        let result = self.set(new, masks);

        warn_on_once!(result.is_err());
    }

    /// Clears bits of a leaf, with no bookkeeping except for the trace: these bits are not
    /// accounted.
    #[inline]
    pub(crate) fn clear_bits(&mut self, bits: WriteBits, as_id: u16, masks: &Masks) {
        let view = &mut self.view;

        if view.spte().needs_atomic_update(view.level(), masks) {
            // SAFETY: `mmu_lock` is held for write.
            unsafe { view.fetch_clear(bits) };
        } else {
            // SAFETY: `mmu_lock` is held for write. The entry points where it did, as nobody else
            // changes that.
            unsafe { view.write(view.spte().cleared(bits)) };
        }
        let old = view.spte();
        trace::spte_changed(as_id, view.gfn(), view.level(), old, old.cleared(bits));
    }
}

impl View<'_> {
    /// Marks a leaf as not accessed, without any lock and without retrying: if the entry changes at
    /// the same moment, it is either zapped or the page was used, and then it is young.
    #[inline]
    pub(crate) fn mark_old(&self, _guard: &rcu::Guard, masks: &Masks) {
        let role = self.sp().role();

        // Aging is not supported for external tables.
        if warn_on_once!(role.mirror()) {
            return;
        }

        let old = self.spte();
        if let Some(new) = mark_old(self.sptep(), old, masks) {
            trace::spte_changed(role.as_id(), self.gfn(), self.level(), old, new);
        }
    }
}

/// Marks a leaf that was `old` as not accessed, without `mmu_lock`, and returns the new value;
/// `None` if somebody else changed the entry first.
#[inline]
pub(crate) fn mark_old(sptep: Sptep<'_>, old: Spte, masks: &Masks) -> Option<Spte> {
    let new = mark_access_track(old, masks);

    // SAFETY: An exchange, of the bits that aging changes. None of them says where an entry points.
    unsafe { sptep.compare_exchange(old, new) }
        .is_ok()
        .then_some(new)
}

/// `mmu_lock` is held, and nobody else clears W or D for the dirty log in the leaves that are
/// changed ([`LogOwner`]): what it takes to do that in 4 KiB leaves, also by plain stores.
/// `ops/dirty_log/leaves.rs` says why it is enough.
#[derive(Clone, Copy)]
pub(crate) struct LogLocks<'t>(PhantomData<&'t ()>);

impl<'t> LogLocks<'t> {
    /// Both are those of one VM.
    #[inline]
    pub(crate) fn new<'l>(lock: &'t impl MmuLock<'l>, owner: &'t impl LogOwner) -> Self {
        owner.check_vm(lock);
        LogLocks(PhantomData)
    }
}

impl SmallTable<'_> {
    /// Warns if `range` starts in another table (a bug), with `CONFIG_KVM_PROVE_MMU=y`: what takes
    /// a range finds its entries by the low bits of the first frame. An empty range may start
    /// anywhere.
    #[inline(always)]
    pub(crate) fn check_start(self, range: GfnRange) {
        kvm_mmu_warn_on!(
            !range.is_empty()
                && range.start.round_down(Level::Page2M) != Sp::of_table(self.table()).gfn()
        );
    }
}

impl SmallSptep<'_> {
    /// Clears the log's bit by a plain store, if the leaf is settled. Returns what was read, as an
    /// error if it is not settled.
    #[inline(always)]
    pub(crate) fn clear_settled(
        self,
        _locks: LogLocks<'_>,
        settled: Settled,
    ) -> Result<Spte, Spte> {
        let old = self.read();

        if !settled.matches(old) {
            return Err(old);
        }
        // SAFETY: `mmu_lock` is held. No entry of the table points to a table. What others store to
        // a settled leaf meanwhile may be lost: the head of `ops/dirty_log/leaves.rs` shows it for
        // each of them.
        unsafe { self.sptep().write(settled.cleared(old)) };
        Ok(old)
    }

    /// Clears `bits` in a leaf that was `old`, unless somebody else changed it first; then returns
    /// what it is.
    #[inline(always)]
    pub(crate) fn try_clear(
        self,
        _locks: LogLocks<'_>,
        old: Spte,
        bits: WriteBits,
    ) -> Result<(), Spte> {
        // SAFETY: `mmu_lock` is held. No entry of the table points to a table.
        unsafe { self.sptep().compare_exchange(old, old.cleared(bits)) }
    }

    /// Makes a leaf writable by a plain store if only the log has protected it.
    /// `ops/dirty_log/unprotect.rs` says why that is enough. Returns whether it was.
    #[inline(always)]
    pub(crate) fn unprotect(
        self,
        _lock: &Shared<'_>,
        _unlogged: Unlogged<'_>,
        protected: LogProtected,
    ) -> bool {
        let old = self.read();

        if !protected.matches(old) {
            return false;
        }
        // SAFETY: `mmu_lock` is held. No entry of the table points to a table. What others store to
        // such a leaf meanwhile may be lost: the head of `ops/dirty_log/unprotect.rs` shows it for
        // each of them.
        unsafe { self.sptep().write(protected.writable(old)) };
        true
    }

    /// The same by an exchange. Returns the old and the new value if the leaf was changed.
    #[inline]
    pub(crate) fn try_unprotect(
        self,
        _lock: &Shared<'_>,
        _unlogged: Unlogged<'_>,
        protected: LogProtected,
    ) -> Option<(Spte, Spte)> {
        let old = self.read();
        let new = protected.writable(old);

        if !protected.matches(old) {
            return None;
        }
        // SAFETY: `mmu_lock` is held. No entry of the table points to a table.
        unsafe { self.sptep().compare_exchange(old, new) }.ok()?;
        Some((old, new))
    }
}

impl SmallGroup<'_> {
    /// Clears the log's bit in all leaves by plain stores, if all of them are settled. Returns what
    /// was read, as an error if they are not.
    #[inline(always)]
    pub(crate) fn clear_settled(
        self,
        _locks: LogLocks<'_>,
        settled: Settled,
    ) -> Result<[Spte; GROUP], [Spte; GROUP]> {
        let now = self.read();

        if !settled.matches_all(&now) {
            return Err(now);
        }
        // SAFETY: `mmu_lock` is held. What others store to settled leaves meanwhile may be lost:
        // see the head of `ops/dirty_log/leaves.rs`, which has eight leaves loaded before the first
        // is stored.
        unsafe { self.write(now.map(|old| settled.cleared(old))) };
        Ok(now)
    }

    /// Makes all leaves writable by plain stores, if only the log has protected each of them.
    /// Returns whether it has, or `None` if they have to be looked at one by one.
    #[inline(always)]
    pub(crate) fn unprotect(
        self,
        _lock: &Shared<'_>,
        _unlogged: Unlogged<'_>,
        protected: LogProtected,
    ) -> Option<bool> {
        let now = self.read();

        // Check first whether all match: that case takes longest.
        if !protected.matches_all(&now) {
            return protected.matches_none(&now).then_some(false);
        }
        // SAFETY: `mmu_lock` is held. What others store to such leaves meanwhile may be lost: see
        // the head of `ops/dirty_log/unprotect.rs`, which has eight leaves loaded before the first
        // is stored.
        unsafe { self.write(now.map(|old| protected.writable(old))) };
        Some(true)
    }
}

impl OwnedSp {
    /// Links the page: makes it the child of the entry, and the entry point to it. Returns the page
    /// if somebody else changed the entry first.
    ///
    /// No flush is needed if the entry was a huge leaf: until the CPUs see the new table they use
    /// the old translation, which is the same.
    pub(crate) fn link<'s, 'l, M: Update<'l>>(
        mut self,
        step: &mut Step<'s, M>,
        masks: &Masks,
    ) -> Result<Sp<'s>, OwnedSp> {
        let Some(level) = step.child_level() else {
            return Err(self);
        };

        self.init_child(&step.view, level);

        let table: Hpa = self.as_sp().hpa();
        let spte = leaf::table(table, !masks.ad_enabled, masks);

        // SAFETY: The table is ours, of the level below the entry's, and RCU frees it when it was
        // unlinked.
        match unsafe { step.lock.update(&mut step.view, spte, masks) } {
            Ok(()) => {
                // SAFETY: The entry points to the page now. If somebody unlinks it at once, the RCU
                // read lock of the walk that `step` belongs to keeps it from being freed.
                let sp = unsafe { self.into_linked() };
                sp.account_linked(step.lock.vm());
                Ok(sp)
            }
            Err(Lost) => Err(self),
        }
    }
}

impl BlankSp {
    /// Fills the page with leaves that map what the huge leaf `like` maps, and links it as
    /// [`OwnedSp::link`] does. Corresponds to the loop of `tdp_mmu_split_huge_page()`.
    #[inline]
    pub(crate) fn link_split<'s, 'l, M: Update<'l>>(
        self,
        step: &mut Step<'s, M>,
        like: Spte,
        masks: &Masks,
    ) -> Result<Sp<'s>, BlankSp> {
        let Some(level) = step.child_level() else {
            return Err(self);
        };
        let role = step.view.sp().role().at_level(level);
        let nx_huge_pages = step.lock.vm().nx_huge_pages();
        let first = leaf::split_child(like, role, level, Index::FIRST, nx_huge_pages, masks);
        // SAFETY: `split_child` makes leaves of `level` only. The page is linked below an entry
        // that is one above that, and is blank again if that fails.
        let page = unsafe { self.fill(first, level) };

        page.link(step, masks).map_err(OwnedSp::into_blank)
    }
}

/// The errno of a lost race, for C and for tracepoints.
pub(crate) fn lost_errno() -> i32 {
    EBUSY.to_errno()
}
