// SPDX-License-Identifier: GPL-2.0

//! Live page tables, pointers to SPTEs, and snapshots of entries.
//!
//! A pointer to an SPTE never becomes a reference: while the table is linked, other CPUs change the
//! SPTE, and hardware sets its accessed and dirty bits. All accesses are single-copy atomic, and
//! there are only a few kinds. [`crate::change`] decides which of them a change needs.
//!
//! # Changing an SPTE
//!
//! A walk trusts what it finds in a table, so whatever changes an SPTE here is unsafe, and has the
//! same two requirements:
//!
//! - **The place** is the caller's to change: `mmu_lock` of the table's VM is held, or nobody else
//!   can reach the table, or the table was just unlinked by the caller. Without any of that, an
//!   exchange may only change the bits that aging changes.
//! - **The value** keeps the invariant of [`Table`]: if it is present, and not a leaf at the
//!   table's level, it points to a table of the next lower level, which RCU frees once the entry
//!   doesn't point to it any more. No entry of a [`SmallTable`] points to a table, so there every
//!   value does.
//!
//! A plain [`Sptep::write`] has a third, if `mmu_lock` is only held for read and others can reach
//! the entry:
//!
//! - **What is lost**: others may store between the load of the old value and the write, and then
//!   that store is undone. The caller shows that nobody does, or that it does not matter.
//!
//! [`crate::change`] has a safe function for each change that is made. They prove the place by a
//! lock's token, and the value by how they make it. Which frame a leaf maps is not a matter of
//! these invariants: it is C's fault that says it, or a leaf that is there already, and
//! [`crate::pure::transition`] refuses a change of it.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};

use kernel::sync::atomic::{
    ordering::{
        Full,
        Relaxed,
        Release, //
    },
    Atomic, //
};

use crate::{
    bindings,
    pure::{
        addr::ENTRIES,
        dirty::TABLE_WORDS,
        Entry,
        Gfn,
        GfnRange,
        Hpa,
        Index,
        Level,
        Masks,
        Spte,
        WriteBits, //
    },
    support::atomic::AtomicBits, //
};

/// A page table that may be read during `'r`.
///
/// # Invariants
///
/// - Points to a page of [`ENTRIES`] SPTEs that is not freed before `'r` ends, because an RCU
///   read-side critical section or exclusive ownership lasts that long.
/// - The SPTEs belong to a table of `level`: one that is not a leaf points to a table of the next
///   lower level. At 4 KiB there are only leaves.
#[derive(Clone, Copy)]
pub(crate) struct Table<'r> {
    ptr: NonNull<u64>,
    level: Level,
    life: PhantomData<&'r ()>,
}

impl<'r> Table<'r> {
    /// Wraps the table at `ptr`.
    ///
    /// # Safety
    ///
    /// `ptr` and `level` must satisfy the type invariants.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<u64>, level: Level) -> Self {
        // INVARIANT: By this function's safety requirement.
        Table {
            ptr,
            level,
            life: PhantomData,
        }
    }

    /// Wraps the table at the host physical address `hpa`.
    ///
    /// # Safety
    ///
    /// As for [`Table::from_raw`]. The address must come from a present non-leaf SPTE, i.e. it must
    /// be the address of a kernel page in the direct map.
    #[inline]
    unsafe fn from_hpa(hpa: Hpa, level: Level) -> Self {
        // SAFETY: An address computation with no requirement of its own.
        let va = unsafe { bindings::kvm_rs_va(hpa.raw()) };
        // SAFETY: The direct map does not contain the null page.
        let ptr = unsafe { NonNull::new_unchecked(va) };
        // SAFETY: By this function's safety requirement.
        unsafe { Table::from_raw(ptr, level) }
    }

    /// The level of the table.
    #[inline]
    pub(crate) fn level(self) -> Level {
        self.level
    }

    /// Has the CPU load the first entries, which are going to be changed, and does not wait for
    /// them. The CPU goes on by itself from there, but does not begin with a page.
    #[inline]
    pub(crate) fn prefetch_entries(self) {
        // SAFETY: A hint to the CPU, which may be about any address.
        unsafe { bindings::kvm_rs_prefetch_entries(self.ptr.as_ptr()) }
    }

    /// Has the CPU load the first entry, and the `struct page` that tells the table's header, and
    /// does not wait for them.
    #[inline]
    pub(crate) fn prefetch(self) {
        // SAFETY: A table is in the direct map, so it has a `struct page`; the rest is a hint to
        // the CPU.
        unsafe { bindings::kvm_rs_prefetch_table(self.ptr.as_ptr()) }
    }

    /// The pointer to the SPTE at `index`.
    #[inline]
    pub(crate) fn sptep(self, index: Index) -> Sptep<'r> {
        const {
            let whole = ENTRIES * size_of::<u64>() == 4096;
            assert!(whole || cfg!(CONFIG_KVM_RUST_MMU_SMALL_TABLES));
        };
        // SAFETY: `index` is below `ENTRIES` by its invariant, so the result stays in the page.
        let ptr = unsafe { self.ptr.add(index.get()) };
        // INVARIANT: Part of a table that is valid for `'r`.
        Sptep(ptr, PhantomData)
    }

    /// The entry at `index`, as it is now. `gfn` is the first frame that it covers.
    #[inline]
    pub(crate) fn view(self, index: Index, gfn: Gfn) -> View<'r> {
        let sptep = self.sptep(index);

        // INVARIANT: The SPTE is in this table, and was just read.
        View {
            sptep,
            spte: sptep.read(),
            gfn,
            level: self.level,
        }
    }

    /// The table, if it has 4 KiB pages.
    #[inline(always)]
    pub(crate) fn small(self) -> Option<SmallTable<'r>> {
        // INVARIANT: It is of that level.
        (self.level == Level::Page4K).then_some(SmallTable(self))
    }

    /// The SPTEs that come after that at `index`.
    #[inline]
    pub(crate) fn after(self, index: Index) -> Pages<'r> {
        let next = index.get().wrapping_add(1);

        // INVARIANT: Those are in the table, if there are any.
        Pages {
            // SAFETY: `index` is below `ENTRIES`, so the result is in the page, or at its end.
            next: unsafe { self.ptr.add(next) },
            left: ENTRIES.wrapping_sub(next),
            life: PhantomData,
        }
    }

    /// The first table that an entry points to.
    pub(crate) fn first_child(self, masks: &Masks) -> Option<Table<'r>> {
        // The entries of the last level are leaves.
        if self.level == Level::Page4K {
            return None;
        }
        Index::all().find_map(|index| self.child(index, masks))
    }

    /// Reads the entry at `index` and returns the table that it points to, if any.
    #[inline]
    pub(crate) fn child(self, index: Index, masks: &Masks) -> Option<Table<'r>> {
        // SAFETY: The SPTE is in a table of that level.
        unsafe { self.sptep(index).child(self.level, masks) }
    }

    /// The same, if it is a table of 4 KiB pages.
    #[inline]
    pub(crate) fn small_child(self, index: Index, masks: &Masks) -> Option<SmallTable<'r>> {
        // The compiler then knows the level.
        if self.level != Level::Page2M {
            return None;
        }
        self.child(index, masks)?.small()
    }
}

/// A [`Table`] of 4 KiB pages: each entry that is present is a leaf.
///
/// # Invariants
///
/// The level of the table is that of 4 KiB pages.
#[derive(Clone, Copy)]
pub(crate) struct SmallTable<'r>(Table<'r>);

impl<'r> SmallTable<'r> {
    /// The table, of whatever level.
    #[inline]
    pub(crate) fn table(self) -> Table<'r> {
        self.0
    }

    /// The pointer to the SPTE at `index`.
    #[inline]
    pub(crate) fn sptep(self, index: Index) -> SmallSptep<'r> {
        // INVARIANT: The table has 4 KiB pages.
        SmallSptep(self.0.sptep(index))
    }

    /// The SPTEs of a part of the table, modulo [`TABLE_WORDS`].
    #[inline(always)]
    pub(crate) fn part(self, part: usize) -> SmallPart<'r> {
        let start = (part % TABLE_WORDS).wrapping_mul(PART);
        // SAFETY: The table has `TABLE_WORDS` parts, so the result stays in the page.
        let ptr = unsafe { self.0.ptr.add(start) };

        // INVARIANT: The part is in the table, which has 4 KiB pages.
        SmallPart(ptr, PhantomData)
    }

    /// The SPTEs of the frames of `range`, in order. What is beyond the table is left out. If the
    /// range starts in another table (a bug that `check_start()` finds), they are those of other
    /// frames.
    #[inline(always)]
    pub(crate) fn pages(self, range: GfnRange) -> SmallPages<'r> {
        let Range { start, end } = Index::of_pages(range);
        // SAFETY: `start` is below `ENTRIES`, so the result stays in the page.
        let next = unsafe { self.0.ptr.add(start) };

        // INVARIANT: `end` is at most `ENTRIES`, so all of them are in the table, which has 4 KiB
        // pages.
        SmallPages(Pages {
            next,
            left: end.wrapping_sub(start),
            life: PhantomData,
        })
    }

    /// Where to look for SPTEs that have any of `bits` set: a frame of `range` before which none
    /// has. `None` if none of the range has. The range is taken as [`SmallTable::pages`] takes it.
    // A function of its own, so that its loop has all registers.
    #[inline(never)]
    pub(crate) fn find(self, range: GfnRange, bits: u64) -> Option<Gfn> {
        let SmallPages(mut pages) = self.pages(range);
        let end = range.start.add(pages.left as u64);
        let mut left = pages.left;

        // To read that many in a row costs little more than their loads.
        while left >= 4 * GROUP {
            let groups: [_; 4] = core::array::from_fn(|_| pages.next_group());
            let any = groups
                .into_iter()
                .flatten()
                .fold(0, |any, group| any | Spte::any(&group.read()).raw());

            if any & bits != 0 {
                break;
            }
            left = pages.left;
        }
        // Those that are left over may have the bits or not.
        (left != 0).then(|| Gfn(end.raw().wrapping_sub(left as u64)))
    }

    /// Calls `f` for the SPTE of each frame of `range`, as [`SmallTable::pages`] has them.
    ///
    /// Eight calls in a row, as LLVM does not unroll such a loop by itself: that takes a quarter
    /// off the cost of a loop over all of a table.
    #[inline(always)]
    pub(crate) fn for_each_page(self, range: GfnRange, mut f: impl FnMut(SmallSptep<'r>)) {
        let mut pages = self.pages(range);

        while let Some(group) = pages.next_group() {
            let [a, b, c, d, e, g, h, i] = group.spteps();

            f(a);
            f(b);
            f(c);
            f(d);
            f(e);
            f(g);
            f(h);
            f(i);
        }
        pages.for_each(f);
    }
}

/// SPTEs of a [`SmallTable`] in a row, one after the other or [`GROUP`] at a time.
///
/// # Invariants
///
/// They are in a table of 4 KiB pages.
pub(crate) struct SmallPages<'r>(Pages<'r>);

impl<'r> SmallPages<'r> {
    /// The next [`GROUP`] SPTEs; `None` if fewer are left.
    #[inline(always)]
    pub(crate) fn next_group(&mut self) -> Option<SmallGroup<'r>> {
        // INVARIANT: By the type invariant.
        self.0.next_group().map(SmallGroup)
    }
}

impl<'r> Iterator for SmallPages<'r> {
    type Item = SmallSptep<'r>;

    #[inline(always)]
    fn next(&mut self) -> Option<SmallSptep<'r>> {
        // INVARIANT: By the type invariant.
        self.0.next().map(SmallSptep)
    }
}

/// How many SPTEs a [`SmallPart`] has: as many as a word of a dirty bitmap has bits, but where
/// tables are smaller than that.
const PART: usize = ENTRIES / TABLE_WORDS;

const _: () = assert!(PART * TABLE_WORDS == ENTRIES);

/// The SPTEs of a [`SmallTable`] whose pages have the bits of one word of a dirty bitmap, if the
/// table starts with the first page of a word.
///
/// # Invariants
///
/// Points to [`PART`] SPTEs of a table of 4 KiB pages that may be read during `'r`.
#[derive(Clone, Copy)]
pub(crate) struct SmallPart<'r>(NonNull<u64>, PhantomData<&'r ()>);

impl<'r> SmallPart<'r> {
    /// The pointer to one of them, modulo their number.
    #[inline(always)]
    pub(crate) fn sptep(self, bit: u32) -> SmallSptep<'r> {
        // SAFETY: By the type invariant, the result is in the table.
        let ptr = unsafe { self.0.add(bit as usize % PART) };

        // INVARIANT: Part of a table of 4 KiB pages that is valid for `'r`.
        SmallSptep(Sptep(ptr, PhantomData))
    }

    /// All of them, in order.
    #[inline(always)]
    pub(crate) fn pages(self) -> SmallPages<'r> {
        // INVARIANT: By the type invariant.
        SmallPages(Pages {
            next: self.0,
            left: PART,
            life: PhantomData,
        })
    }
}

/// [`GROUP`] SPTEs of a [`SmallTable`] in a row.
///
/// # Invariants
///
/// They are in a table of 4 KiB pages.
#[derive(Clone, Copy)]
pub(crate) struct SmallGroup<'r>(Group<'r>);

impl<'r> SmallGroup<'r> {
    /// The pointers to them, in order.
    #[inline(always)]
    pub(crate) fn spteps(self) -> [SmallSptep<'r>; GROUP] {
        // INVARIANT: By the type invariant.
        self.0.spteps().map(SmallSptep)
    }

    /// Reads them, one after the other.
    #[inline(always)]
    pub(crate) fn read(self) -> [Spte; GROUP] {
        self.0.read()
    }

    /// Overwrites them, one after the other; see [`Sptep::write`].
    ///
    /// # Safety
    ///
    /// As to the place and to what is lost, see [the head of this file](self).
    #[inline(always)]
    pub(crate) unsafe fn write(self, new: [Spte; GROUP]) {
        for (sptep, new) in self.spteps().into_iter().zip(new) {
            // SAFETY: The place, and what is lost, by this function's safety requirement. No entry
            // of the table points to a table.
            unsafe { sptep.sptep().write(new) };
        }
    }
}

/// A pointer to an SPTE in a [`SmallTable`].
///
/// # Invariants
///
/// It is in a table of 4 KiB pages.
#[derive(Clone, Copy)]
pub(crate) struct SmallSptep<'r>(Sptep<'r>);

impl<'r> SmallSptep<'r> {
    /// The pointer, to a table of whatever level.
    #[inline(always)]
    pub(crate) fn sptep(self) -> Sptep<'r> {
        self.0
    }

    /// Reads the entry; `READ_ONCE()`.
    #[inline(always)]
    pub(crate) fn read(self) -> Spte {
        self.0.read()
    }
}

/// SPTEs in a row, one after the other or [`GROUP`] at a time.
///
/// # Invariants
///
/// The `left` SPTEs from `next` on are part of a [`Table`] that may be read during `'r`.
pub(crate) struct Pages<'r> {
    next: NonNull<u64>,
    left: usize,
    life: PhantomData<&'r ()>,
}

impl<'r> Pages<'r> {
    /// The next [`GROUP`] SPTEs; `None` if fewer are left.
    #[inline(always)]
    pub(crate) fn next_group(&mut self) -> Option<Group<'r>> {
        if self.left < GROUP {
            return None;
        }
        // INVARIANT: As many are left.
        let group = Group(self.next, PhantomData);

        // SAFETY: As many are left, so the result is in the table, or at its end.
        self.next = unsafe { self.next.add(GROUP) };
        // INVARIANT: Those that are handed out are left out.
        self.left = self.left.wrapping_sub(GROUP);
        Some(group)
    }
}

impl<'r> Iterator for Pages<'r> {
    type Item = Sptep<'r>;

    #[inline(always)]
    fn next(&mut self) -> Option<Sptep<'r>> {
        if self.left == 0 {
            return None;
        }
        // INVARIANT: One is left.
        let sptep = Sptep(self.next, PhantomData);

        // SAFETY: One is left, so the result is in the table, or at its end.
        self.next = unsafe { self.next.add(1) };
        // INVARIANT: The one that is handed out is left out.
        self.left = self.left.wrapping_sub(1);
        Some(sptep)
    }
}

/// How many SPTEs fit into the registers of a loop.
pub(crate) const GROUP: usize = 8;

/// [`GROUP`] SPTEs in a row.
///
/// # Invariants
///
/// Points to as many SPTEs of a [`Table`] that may be read during `'r`.
#[derive(Clone, Copy)]
pub(crate) struct Group<'r>(NonNull<u64>, PhantomData<&'r ()>);

impl<'r> Group<'r> {
    /// The pointers to them, in order.
    #[inline(always)]
    pub(crate) fn spteps(self) -> [Sptep<'r>; GROUP] {
        let sptep = |n| {
            // SAFETY: `n` is below `GROUP` in all calls below, so the result is in the table.
            let ptr = unsafe { self.0.add(n) };
            // INVARIANT: Part of a table that is valid for `'r`.
            Sptep(ptr, PhantomData)
        };

        [
            sptep(0),
            sptep(1),
            sptep(2),
            sptep(3),
            sptep(4),
            sptep(5),
            sptep(6),
            sptep(7),
        ]
    }

    /// Reads them, one after the other.
    #[inline(always)]
    pub(crate) fn read(self) -> [Spte; GROUP] {
        self.spteps().map(|sptep| sptep.read())
    }
}

/// An entry of a live table, and the value that was last seen in it.
///
/// # Invariants
///
/// `sptep` points into a [`Table`] of `level` that may be read during `'w`; `spte` is a value that
/// the entry has had since `'w` began.
#[derive(Clone, Copy)]
pub(crate) struct View<'w> {
    sptep: Sptep<'w>,
    spte: Spte,
    gfn: Gfn,
    level: Level,
}

impl<'w> View<'w> {
    /// Looks at the entry at `sptep`. `gfn` is the first frame that it covers.
    ///
    /// # Safety
    ///
    /// `sptep` must point into a table of `level`.
    #[inline]
    pub(crate) unsafe fn new(sptep: Sptep<'w>, level: Level, gfn: Gfn) -> Self {
        // INVARIANT: By this function's safety requirement; the SPTE was just read.
        View {
            sptep,
            spte: sptep.read(),
            gfn,
            level,
        }
    }

    /// The entry as it is now.
    #[inline]
    pub(crate) fn again(&self) -> Self {
        // INVARIANT: The SPTE was just read.
        View {
            spte: self.sptep.read(),
            ..*self
        }
    }

    /// Where the entry is.
    #[inline]
    pub(crate) fn sptep(&self) -> Sptep<'w> {
        self.sptep
    }

    /// Its value when it was last looked at. Others may have changed it since.
    #[inline]
    pub(crate) fn spte(&self) -> Spte {
        self.spte
    }

    /// The first guest frame that it covers.
    #[inline]
    pub(crate) fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The level of its table.
    #[inline]
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// What the entry was when last looked at.
    #[inline]
    pub(crate) fn entry(&self, masks: &Masks) -> Entry {
        self.spte.decode(self.level, masks)
    }

    /// The frames that the entry covers.
    #[inline]
    pub(crate) fn range(&self) -> GfnRange {
        GfnRange::new(self.gfn, self.gfn.add(self.level.pages()))
    }

    /// Re-reads the entry and returns the table that it points to, if any.
    #[inline]
    pub(crate) fn child(&self, masks: &Masks) -> Option<Table<'w>> {
        // SAFETY: By the type invariant, the SPTE is in a table of that level.
        unsafe { self.sptep.child(self.level, masks) }
    }

    /// Overwrites the entry; see [`Sptep::write`]. The view keeps the old value.
    ///
    /// # Safety
    ///
    /// As to the place, to the value and to what is lost, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn write(&self, new: Spte) {
        // SAFETY: By this function's safety requirement.
        unsafe { self.sptep.write(new) };
    }

    /// Exchanges the entry. The view then has the value that was replaced.
    ///
    /// # Safety
    ///
    /// As to the place and to the value, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn swap(&mut self, new: Spte) {
        // SAFETY: By this function's safety requirement.
        let old = unsafe { self.sptep.swap(new) };

        // INVARIANT: The entry had that value just now.
        self.spte = old;
    }

    /// Replaces the entry if it still has the value of the view; otherwise the view gets the
    /// current value. Returns whether the entry was replaced.
    ///
    /// # Safety
    ///
    /// As to the place and to the value, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn compare_exchange(&mut self, new: Spte) -> bool {
        // SAFETY: By this function's safety requirement.
        match unsafe { self.sptep.compare_exchange(self.spte, new) } {
            Ok(()) => true,
            Err(now) => {
                // INVARIANT: The entry had that value just now.
                self.spte = now;
                false
            }
        }
    }

    /// Clears bits of the entry. The view then has the value from before.
    ///
    /// # Safety
    ///
    /// The place must be the caller's to change, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn fetch_clear(&mut self, bits: WriteBits) {
        // SAFETY: By this function's safety requirement.
        let old = unsafe { self.sptep.fetch_clear(bits) };

        // INVARIANT: The entry had that value just now.
        self.spte = old;
    }
}

/// A pointer to an SPTE in a table that may be read during `'r`; C's `tdp_ptep_t`.
///
/// # Invariants
///
/// As for [`Table`], of which it is an element; aligned to 8 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Sptep<'r>(NonNull<u64>, PhantomData<&'r ()>);

impl<'r> Sptep<'r> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<u64>) -> Self {
        // INVARIANT: By this function's safety requirement.
        Sptep(ptr, PhantomData)
    }

    #[inline]
    fn atomic(&self) -> &Atomic<u64> {
        // SAFETY: By the type invariant the SPTE is valid and aligned as long as `self`. All
        // accesses to it are marked, and hardware's A/D updates are atomic as well.
        unsafe { Atomic::from_ptr(self.0.as_ptr()) }
    }

    /// Reads the entry; `READ_ONCE()`.
    #[inline]
    pub(crate) fn read(&self) -> Spte {
        Spte(self.atomic().load(Relaxed))
    }

    /// Reads the entry and returns the table that it points to, if any.
    ///
    /// The result is valid as long as the SPTE: a table that is unlinked is freed after a grace
    /// period, and `'r` lies within one read-side critical section (or this thread owns the SPTE's
    /// table, and thus everything below it).
    ///
    /// # Safety
    ///
    /// The SPTE must be in a table of `level`.
    #[inline]
    unsafe fn child(&self, level: Level, masks: &Masks) -> Option<Table<'r>> {
        let hpa = self.read().child_table(level, masks)?;
        let below = level.down()?;

        // SAFETY: The entry was linked after `'r` began, or is ours; see above. It is no leaf, so
        // the table is of the next lower level.
        Some(unsafe { Table::from_hpa(hpa, below) })
    }

    /// Overwrites the entry. Loses whatever another CPU or hardware has just set.
    ///
    /// This is a store-release, so that lockless readers who follow the entry to a table see the
    /// table's contents. On x86 it is free, and only restrains the compiler.
    ///
    /// # Safety
    ///
    /// As to the place, to the value and to what is lost, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn write(&self, new: Spte) {
        self.atomic().store(new.raw(), Release);
    }

    /// Replaces the entry and returns what was there.
    ///
    /// # Safety
    ///
    /// As to the place and to the value, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn swap(&self, new: Spte) -> Spte {
        Spte(self.atomic().xchg(new.raw(), Full))
    }

    /// Replaces the entry if it still is `old`, and otherwise returns its current value.
    ///
    /// # Safety
    ///
    /// As to the place and to the value, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn compare_exchange(&self, old: Spte, new: Spte) -> Result<(), Spte> {
        match self.atomic().cmpxchg(old.raw(), new.raw(), Full) {
            Ok(_) => Ok(()),
            Err(now) => Err(Spte(now)),
        }
    }

    /// Clears bits of the entry and returns what was there. None of them says where an entry
    /// points.
    ///
    /// # Safety
    ///
    /// The place must be the caller's to change, see [the head of this file](self).
    #[inline]
    pub(crate) unsafe fn fetch_clear(&self, bits: WriteBits) -> Spte {
        Spte(self.atomic().fetch_and(!bits.raw()))
    }

    /// The address, for C and for tracepoints.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u64 {
        self.0.as_ptr()
    }

    /// The host physical address of the SPTE.
    #[inline]
    pub(crate) fn hpa(&self) -> Hpa {
        // SAFETY: An address computation on an address in the direct map, where tables live.
        Hpa(unsafe { bindings::kvm_rs_pa(self.0.as_ptr()) })
    }
}

/// A leaf marked for access tracking. Warns if a leaf without A/D bits would lose state.
/// Corresponds to `mark_spte_for_access_track()`.
pub(crate) fn mark_access_track(leaf: Spte, masks: &Masks) -> Spte {
    if !leaf.ad_enabled() && !leaf.is_access_tracked(masks) {
        check_write_state(leaf, masks);
        warn_once!(
            !leaf.acc_track_bits_free(),
            "Access Tracking saved bit locations are not zero: {:#x}\n",
            leaf.raw()
        );
    }
    leaf.mark_access_track(masks)
}

/// Warns if the write state of a leaf is not valid; `check_spte_writable_invariants()`.
#[inline]
pub(crate) fn check_write_state(leaf: Spte, masks: &Masks) {
    if !leaf.write_state_is_valid(masks) {
        warn_of_write_state(leaf, masks);
    }
}

/// Warns of a leaf whose write state is not valid.
#[cold]
fn warn_of_write_state(leaf: Spte, masks: &Masks) {
    let mmu_writable = leaf.has_any(masks.mmu_writable);

    warn_once!(
        mmu_writable,
        "MMU-writable SPTE is not Host-writable: {:#x}\n",
        leaf.raw()
    );
    warn_once!(
        !mmu_writable,
        "Writable SPTE is not MMU-writable: {:#x}\n",
        leaf.raw()
    );
}

/// An SPTE, and the value that was just read from it.
///
/// # Invariants
///
/// The entry has had that value at some time since `'r` began. If `mmu_lock` is held for write
/// during `'r`, as it is where the reverse map is changed, the entry still has its target, and is
/// present or not as it was. The CPU, aging and a fast page fault may have changed A, D, W and what
/// access tracking saves.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'r> {
    sptep: Sptep<'r>,
    spte: Spte,
}

impl<'r> Seen<'r> {
    /// Reads the entry.
    #[inline(always)]
    pub(crate) fn new(sptep: Sptep<'r>) -> Self {
        // INVARIANT: It was just read.
        Seen {
            sptep,
            spte: sptep.read(),
        }
    }

    /// Where the entry is.
    #[inline]
    pub(crate) fn sptep(&self) -> Sptep<'r> {
        self.sptep
    }

    /// What it was.
    #[inline]
    pub(crate) fn spte(&self) -> Spte {
        self.spte
    }
}
