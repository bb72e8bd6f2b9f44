// SPDX-License-Identifier: GPL-2.0

//! Dirty logging by the D bits of leaves: `kvm.dirty_log=dirty_bits`.
//!
//! If the CPU has no log of writes (PML), KVM write-protects a page when it takes the page's bit
//! out of the log, and the next write faults. In this mode the leaf stays writable and only loses
//! its D bit, which the next write sets without a fault. `KVM_GET_DIRTY_LOG` looks for D bits and
//! sets the bits of these pages in the bitmap; `KVM_CLEAR_DIRTY_LOG` clears D.
//!
//! The mode is chosen per VM, when one of its memslots begins to be logged, and is kept until none
//! is logged (`kvm_rs_prepare_dirty_log()`). A page is *in the log* if its bit is set in the
//! bitmap, or if D is set in a leaf that maps it, in any valid root of the slot's address space.
//!
//! # Rules
//!
//! - **R1** D is cleared in a leaf that stays only under `slots_lock`, and the TLBs of all vCPUs
//!   are flushed afterwards, before `slots_lock` is dropped.
//! - **R2** D is cleared only for a page that CLEAR was asked to clear; for a page whose bit is
//!   then set in the bitmap (GET in legacy mode); or when logging of the slot begins.
//! - **R3** Whoever removes a leaf with D set in a logged slot sets the page's bit before
//!   `mmu_lock` is dropped ([`crate::change`]). If `mmu_lock` is held for read only, `slots_lock`
//!   is held as well.
//! - **R4** A leaf above 4 KiB in a logged slot is not writable, or the bits of all its pages are
//!   set. So D of such a leaf means nothing.
//! - **R5** GET and CLEAR look at D before they look at the bitmap.
//!
//! # No write is lost
//!
//! *If a write completes after an ioctl that took the page out of the log has returned, the page is
//! in the log.* The ioctl cleared D before a flush that had completed when it returned (R1). A
//! write after that needs a translation that the CPU read after D was cleared. Before the write is
//! visible, the CPU sets D in the leaf by a locked update; if the leaf has changed since the CPU
//! read it, the CPU walks again. So D is set in a leaf that is present. It stays set until someone
//! takes the page out of the log again (R1, R2), or removes the leaf and sets the bit (R3). A write
//! between the clearing of D and the end of the flush may leave no trace, but it completes before
//! the ioctl returns, and userspace copies the page after that.
//!
//! D must not be cleared *after* the flush: vCPU 0 sets D; vCPU 1 reads the leaf and caches that D
//! is set; D is cleared; vCPU 1 writes without setting D again, and the write is lost.
//!
//! *GET finds all that was written before it began.* With the vCPUs stopped that is all there is.
//! Against each of its peers:
//!
//! - A **notifier**, and everything else that zaps with `mmu_lock` held for write, runs before or
//!   after GET looks at the leaf. If before, the bit is set (R3), and GET reads the bitmap later
//!   (R5). If after, GET has seen D.
//! - **Zapping invalid roots** and **recovery when a log ends** hold `slots_lock`, as GET does.
//!   When it is dropped, nothing is left below an invalid root; `KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`
//!   has made all vCPUs leave the guest before the first leaf was removed, so no vCPU sets D there
//!   any more.
//! - **Recovery that userspace asks for** ([`crate::ops::ahead`]) does not hold it. It replaces or
//!   removes a table only if all of it lies in one slot that is not logged, within an SRCU section
//!   that keeps it so.
//! - **NX recovery** zaps tables under the read lock without `slots_lock`, so C begins with none in
//!   a VM that is logged by D bits. Its check of the slot is not enough: it looks at the slot of
//!   the table's first page only, and a table may outlive the slot that it was made for. If D bits
//!   are chosen after C has asked, that recovery ends before GET can run: `slots_lock` is held from
//!   the choice on until `synchronize_srcu()` has waited for the readers of `kvm->srcu`, of which
//!   it is one.
//! - A **fault** in a logged slot maps 4 KiB, and so never replaces a table. If it installs a
//!   writable leaf, D is set in it, and the fault sets the page's bit afterwards, as in the other
//!   modes; so a page that was mapped for a read is reported as in C. If it replaces a leaf by a
//!   leaf, D stays.
//! - A **split** clears D in the small pages (R4). They are writable only if their bits are set, if
//!   logging begins, or if CLEAR was asked to clear them.
//! - A **prefetch** installs leaves with D clear.
//! - A **fast page fault** makes a leaf writable that was write-protected when logging began, and
//!   then sets the page's bit.
//! - **Aging** changes A by compare-and-exchange. **Write-tracking** clears W by a locked
//!   update, which keeps D.
//!
//! Clearing D is a plain store where nothing that matters can change in between; see
//! [`super::leaves`]. If D is set and the CPU caches that just before the store, the flush
//! removes it.
//!
//! # The start of logging
//!
//! D may be set since long ago. If logging begins with an empty bitmap, enabling clears D in all
//! leaves. Until it is done, leaves that are zapped are not entered into the bitmap (`starting`),
//! as their D bits may be old. If logging begins with all bits set, CLEAR clears D of the pages it
//! is asked to clear, *whether their bits are set or not*.
//!
//! # From faults to D bits
//!
//! A VM may have a slot that is logged by faults, as a display's always is. It goes over to D bits
//! when another slot begins to be logged. In the first one a leaf is writable only if its page's
//! bit is set, or is going to be by the fault that has made it writable. The next write to any
//! other page faults, and sets its bit. So the log is complete as it is. But D may be set in a leaf
//! since before its page's bit was taken, and would be reported. [`forget`] clears D in
//! write-protected leaves, when all faults have ended that could still split a huge page so that D
//! is set in its parts. Until then (`switching`), leaves that are zapped are not entered into the
//! bitmap, and write-tracking may leave a D that is taken for an old one. So nobody may make a leaf
//! writable without setting its page's bit: a prefetch clears W as well as D.
//!
//! # The summary
//!
//! Reading 512 leaves in which nothing was written is wasted time. The entry at level 2 MiB that
//! points to their table has a [`Summary`]:
//!
//! - *open*: A is set. Tables start like that.
//! - *draining*: A is clear. A holder of `slots_lock` that is going to flush cleared it.
//! - *closed*: A is clear, and a software bit is set. GET skips the table.
//!
//! - **S1** A is cleared only under `slots_lock`, together with the software bit, and the TLBs are
//!   flushed before `slots_lock` is dropped.
//! - **S2** GET sets the software bit after it has looked at all leaves of the table, by a
//!   compare-and-exchange on the value it read before, and only if A was cleared by an *earlier*
//!   holder of `slots_lock`. The holder that clears A does not visit the table again, except for
//!   another part of it.
//! - **S3** A table that maps pages outside of the slot is never closed.
//!
//! *In a closed table, D is set only in leaves of pages whose bits are set.* When the table was
//! closed, A was clear, and a flush had completed since it was cleared (S1, S2). The CPU sets A by
//! a locked update before it caches the entry or uses it, so no CPU has used the entry since that
//! flush. All D bits in the table were set before the flush, and GET saw them. As long as A is
//! clear no CPU sets another one. The only other source of D is a fault that installs a writable
//! leaf; it sets the page's bit as well, and its vCPU sets A before it uses the leaf. GET in legacy
//! mode clears bits, so it does not skip a closed table if one of its pages has its bit set. Zaps
//! never skip a table, and CLEAR only skips one if no page of it was requested.
//!
//! The summary stays when logging ends. Code that changes an entry that points to a table has to
//! expect that the CPU sets A at the same time ([`crate::ops::zap`]).
//!
//! Clearing W instead of A would keep regions closed that are only read, but the first write to
//! each closed region would fault. That was tried, and costs more: such a fault takes 1,333
//! instructions and an exit; reading the leaves of a table takes 1,000 if none has D set, and 2,500
//! if 1 % have.
//!
//! # Shadow pages
//!
//! Nested guests may start while the VM is logged. Leaves of shadow pages are write-protected, and
//! set the page's bit when they become writable, as in the other modes. GET in manual mode only
//! looks at the TDP MMU; CLEAR, and GET in legacy mode, process both with `mmu_lock` held for
//! write.

use kernel::error::{
    code::EINTR,
    Result, //
};

use super::leaves::Leaves;
use crate::{
    change::{
        LogLocks,
        Update, //
    },
    pte::{
        SmallTable,
        Table,
        View,
        GROUP, //
    },
    pure::{
        dirty::{
            parts,
            WordPart, //
        },
        spte::MMU_PRESENT,
        summary::Summary,
        Entry,
        GfnRange,
        Level,
        Masks,
        Spte,
        WriteBits, //
    },
    root::{
        Roots,
        Selection, //
    },
    sync::{
        with_shared,
        Holder,
        SlotsLock, //
    },
    sys::{
        fatal_signal_pending,
        stats::{
            self,
            Event, //
        },
        trace,
        DirtyBitmap,
        Memslot,
        Vm, //
    },
    walk::{
        Step,
        Walk, //
    }, //
};

/// The D bits of a tree, as the holder of `slots_lock` sees them.
pub(super) struct DirtyBits<'m> {
    slots: &'m SlotsLock<'m>,
    masks: &'m Masks,
}

impl<'m> DirtyBits<'m> {
    /// For a tree whose entries have this format.
    pub(super) fn new(slots: &'m SlotsLock<'m>, masks: &'m Masks) -> Self {
        DirtyBits { slots, masks }
    }

    /// Sets the bits of the pages of `within` that `table` maps with D set. D stays set, for a
    /// later CLEAR. Returns the number of these pages.
    // A function of its own, so that its loop has all registers.
    #[inline(never)]
    pub(super) fn harvest(
        &self,
        table: SmallTable<'_>,
        within: GfnRange,
        log: &DirtyBitmap<'_>,
    ) -> u64 {
        let mut pages: u64 = 0;
        let mut rest = within;

        while let Some(part) = self.next_part(table, &mut rest, log) {
            if log.current(part.word) & part.bits != part.bits {
                let written = self.written(table, part.range());

                pages = pages.wrapping_add(log.enter(&part, written));
            }
        }
        pages
    }

    /// The same, but clears D. The caller flushes before it drops `slots_lock`.
    #[inline(never)]
    pub(super) fn harvest_clearing(
        &self,
        leaves: &Leaves<'_>,
        within: GfnRange,
        log: &DirtyBitmap<'_>,
    ) -> u64 {
        let mut pages: u64 = 0;
        let mut rest = within;

        while let Some(part) = self.next_part(leaves.table(), &mut rest, log) {
            let written = leaves.clear_range(part.range());

            pages = pages.wrapping_add(log.enter(&part, written));
        }
        pages
    }

    /// The first part of a word of the bitmap whose pages are in `rest` and may have D set. `rest`
    /// is then what comes after it. Most of what is looked at has no D set, and is left out at
    /// little more than the cost of reading it.
    #[inline(always)]
    fn next_part(
        &self,
        table: SmallTable<'_>,
        rest: &mut GfnRange,
        log: &DirtyBitmap<'_>,
    ) -> Option<WordPart> {
        table.check_start(*rest);
        rest.start = table.find(*rest, self.masks.dirty)?;
        let part = parts(log.gfn(0), *rest).next()?;

        rest.start = part.range().end;
        Some(part)
    }

    /// Which of the pages of `range`, 64 at most, `table` maps with D set. Bit 0 stands for the
    /// first.
    #[inline(always)]
    fn written(&self, table: SmallTable<'_>, range: GfnRange) -> u64 {
        let dirty = self.masks.dirty;
        let is_dirty = |spte: &Spte| spte.has_all(MMU_PRESENT | dirty);
        let mut pages = table.pages(range);
        let mut written: u64 = 0;
        let mut at: u32 = 0;

        while let Some(group) = pages.next_group() {
            let now = group.read();

            // An MMIO SPTE may look like a leaf with D set, and is sorted out here.
            if Spte::any(&now).has_any(dirty) {
                let mut bits = u64::MAX >> (u64::BITS - GROUP as u32);

                if !is_dirty(&Spte::all(&now)) {
                    bits = now
                        .iter()
                        .rfold(0, |bits, spte| bits << 1 | u64::from(is_dirty(spte)));
                }
                written |= bits.wrapping_shl(at);
            }
            at = at.wrapping_add(GROUP as u32);
        }
        for sptep in pages {
            written |= u64::from(is_dirty(&sptep.read())).wrapping_shl(at);
            at = at.wrapping_add(1);
        }
        written
    }

    /// Whether the table that an entry points to can be skipped.
    #[inline]
    pub(super) fn is_closed(&self, view: &View<'_>) -> bool {
        Summary::of(view.spte(), self.masks) == Summary::Closed
    }

    /// Whether GET finds nothing below an entry of level 2 MiB: nothing is mapped there, or its
    /// table is closed. A huge leaf that looks like a closed table has no D bit that counts.
    #[inline(always)]
    fn has_nothing(&self, spte: Spte) -> bool {
        !spte.is_present() || Summary::of(spte, self.masks) == Summary::Closed
    }

    /// Whether an entry of level 2 MiB points to a table that CLEAR may make drain.
    #[inline(always)]
    pub(super) fn is_open_table(&self, spte: Spte) -> bool {
        spte.is_present() && Summary::of(spte, self.masks) == Summary::Open
    }

    /// Closes the table that an entry points to, if it was draining before the leaves of `within`
    /// were looked at, which have to be all, and still is.
    #[inline]
    pub(super) fn close<'l, M: Update<'l>>(&self, step: &mut Step<'_, M>, within: GfnRange) {
        let view = &step.view;

        if Summary::of(view.spte(), self.masks) == Summary::Draining && within == view.range() {
            step.try_close(self.slots, self.masks);
        }
    }

    /// Makes the table that an entry points to drain, if it is open. The caller flushes before it
    /// drops `slots_lock`, and does not close the table.
    #[inline]
    pub(super) fn drain<'l, M: Update<'l>>(&self, step: &mut Step<'_, M>) {
        let view = &step.view;
        let is_table = matches!(view.entry(self.masks), Entry::Table(_));

        if is_table && Summary::of(view.spte(), self.masks) == Summary::Open {
            step.try_drain(self.slots, self.masks);
        }
    }
}

/// Sets the bits of all pages of `slot` that were written, for GET in manual mode. D stays set.
/// Takes `mmu_lock` for read.
///
/// Errors: `EINTR` if a fatal signal is pending. The log is intact then.
pub(crate) fn harvest(slots: &SlotsLock<'_>, slot: Memslot<'_>, log: &DirtyBitmap<'_>) -> Result {
    let vm = slots.vm();
    let masks = vm.masks();

    with_shared(vm, Holder::Get, |lock| {
        let mut roots = Roots::new(vm, Selection::valid(slot.as_id()));

        while let Some(root) = roots.next(lock) {
            let bits = DirtyBits::new(slots, masks);
            let mut walk = Walk::new(lock, root, Level::Page2M, slot.range(), masks);
            let mut counts = Counts::default();
            let mut interrupted = false;

            while let Some(mut step) = walk.next() {
                let view = step.view;
                let Entry::Table(_) = view.entry(masks) else {
                    continue;
                };
                if view.level() != Level::Page2M {
                    continue;
                }
                if bits.is_closed(&view) {
                    // Most are, in a large VM: an entry that is skipped costs an eighth of a step.
                    walk.skip_while(slot.range().end, |spte| bits.has_nothing(spte));
                    continue;
                }
                if fatal_signal_pending() {
                    interrupted = true;
                    break;
                }
                if let Some(table) = view.child(masks).and_then(Table::small) {
                    let within = view.range().intersection(slot.range());

                    counts.add(bits.harvest(table, within, log));
                    bits.close(&mut step, within);
                }
            }
            drop(walk);
            counts.tell(vm, slot.as_id(), slot.range());
            if interrupted {
                return Err(EINTR);
            }
        }
        Ok(())
    })
}

/// Clears D in the write-protected leaves of `slot`, which was logged by faults, when the VM goes
/// over to D bits: these pages were written before their bits were taken. Takes `mmu_lock` for
/// read.
///
/// As long as W is clear, no CPU sets D, and none writes by what it has cached, so there is nothing
/// to flush. Leaves that are writable keep D: the bits of their pages are set, or will be by the
/// fault that has made the page writable.
pub(crate) fn forget(slots: &SlotsLock<'_>, slot: Memslot<'_>) {
    let vm = slots.vm();
    let masks = vm.masks();

    with_shared(vm, Holder::Enable, |lock| {
        let mut roots = Roots::new(vm, Selection::valid(slot.as_id()));

        while let Some(root) = roots.next(lock) {
            let mut walk = Walk::new(lock, root, Level::Page2M, slot.range(), masks);

            while let Some(step) = walk.next() {
                let view = step.view;
                let Entry::Table(_) = view.entry(masks) else {
                    continue;
                };
                if view.level() != Level::Page2M {
                    continue;
                }
                if let Some(table) = view.child(masks).and_then(Table::small) {
                    let within = view.range().intersection(slot.range());
                    let locks = LogLocks::new(step.lock, slots);

                    forget_in_table(locks, table, within, slot.as_id(), masks);
                }
            }
        }
    })
}

/// Clears D in the write-protected leaves of `table` that map pages of `within`.
fn forget_in_table(
    locks: LogLocks<'_>,
    table: SmallTable<'_>,
    within: GfnRange,
    as_id: u16,
    masks: &Masks,
) {
    let is_old = |spte: Spte| spte.is_present() && !spte.is_writable() && spte.is_dirty(masks);

    table.check_start(within);
    for (gfn, sptep) in within.frames().zip(table.pages(within)) {
        let mut old = sptep.read();

        while is_old(old) {
            match sptep.try_clear(locks, old, WriteBits::dirty(masks)) {
                Ok(()) => {
                    let new = old.cleared(WriteBits::dirty(masks));

                    trace::spte_changed(as_id, gfn, Level::Page4K, old, new);
                    break;
                }
                Err(now) => old = now,
            }
        }
    }
}

/// What the statistics say of a walk.
#[derive(Default)]
pub(super) struct Counts {
    tables: u64,
    /// Those of them with nothing new in them.
    clean: u64,
    pages: u64,
}

impl Counts {
    /// Adds a table with `pages` pages that were written.
    #[inline]
    pub(super) fn add(&mut self, pages: u64) {
        self.tables = self.tables.wrapping_add(1);
        self.clean = self.clean.wrapping_add((pages == 0).into());
        self.pages = self.pages.wrapping_add(pages);
    }

    /// Counts all that in the VM's statistics, and traces it. `range` is what was walked.
    pub(super) fn tell(&self, vm: Vm<'_>, as_id: u16, range: GfnRange) {
        stats::count_many(vm, Event::DirtyTable, self.tables);
        stats::count_many(vm, Event::DirtyCleanTable, self.clean);
        stats::count_many(vm, Event::DirtyPage, self.pages);
        trace::harvest_dirty_bits(as_id, range, self.tables, self.pages);
    }
}
