// SPDX-License-Identifier: GPL-2.0

//! The reverse map: from a guest frame to the SPTEs that map it, and from a shadow page to the
//! SPTEs that point to it. For the shadow MMU only; the TDP MMU finds its SPTEs by walking.
//!
//! # Who may do what
//!
//! A list changes under `mmu_lock` held for write *and* its own lock bit. C may therefore iterate with
//! `mmu_lock` held for read. Rust has two ways to look at a list in peace:
//!
//! - [`Rmap`], with `mmu_lock` held for write. It borrows the lock's token exclusively: while it
//!   exists nobody drops the lock, and it is the only handle that changes lists. A loop over a list
//!   ([`Rmap::sptes`]) in turn borrows the handle, so that removing an entry in the middle of it does
//!   not compile; [`Rmap::retain`] is for that.
//! - [`LockedList`], with the lock bit held and nothing else. It cannot change the list. The SPTEs in
//!   it may be zapped meanwhile, but their tables are not freed: for that the list would have to
//!   change first.
//!
//! `pure/rmap.rs` has the encoding and the algorithms; here are the memory and the locks.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
};

use kernel::sync::atomic::{
    ordering::{Acquire, Relaxed, Release},
    Atomic,
};

use crate::{
    bindings,
    page::Sp,
    pte::Sptep,
    pure::{
        rmap::{self, Cell, Desc, Head, ListCursor, Store, Word},
        Gfn, GfnRange, Level,
    },
    shadow,
    sync::{Exclusive, MmuLock},
    sys::{cpu_relax, Memslot},
};

/// A descriptor of a list.
///
/// # Invariants
///
/// Points to a descriptor of a list that does not change while the value is in use.
#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
struct DescPtr(NonNull<Desc<DescPtr>>);

// C has the cache of descriptors and asserts their layout.
const _: () = assert!(size_of::<Desc<DescPtr>>() == 128 && align_of::<Desc<DescPtr>>() == 8);

/// The descriptors of one list, for as long as it is locked in one way or the other.
struct Descs;

impl Store for Descs {
    type Ref = DescPtr;

    #[inline]
    fn desc(&self, desc: DescPtr) -> &Desc<DescPtr> {
        // SAFETY: by the invariant of `DescPtr`. Whoever changes a descriptor has a `&mut Descs` of
        // its list, which `Rmap` alone makes, and holds the lock bit.
        unsafe { desc.0.as_ref() }
    }

    #[inline]
    fn desc_mut(&mut self, mut desc: DescPtr) -> &mut Desc<DescPtr> {
        // SAFETY: as above.
        unsafe { desc.0.as_mut() }
    }

    #[inline]
    fn free(&mut self, desc: DescPtr) {
        // SAFETY: the descriptor is from that cache, and in no list any more.
        unsafe { bindings::kvm_rs_free_desc(desc.0.as_ptr().cast()) }
    }
}

/// Descriptors to take out where nothing may sleep: one of C's memory caches.
///
/// # Invariants
///
/// Points to a cache of zeroed descriptors, which this thread alone uses during `'c`.
pub(crate) struct DescCache<'c>(
    NonNull<bindings::kvm_mmu_memory_cache>,
    PhantomData<&'c mut ()>,
);

impl DescCache<'_> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `cache` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(cache: NonNull<bindings::kvm_mmu_memory_cache>) -> Self {
        // INVARIANT: by this function's safety requirement.
        DescCache(cache, PhantomData)
    }

    /// Takes a descriptor out. It was topped up before `mmu_lock` was taken; if it was not, C warns
    /// and allocates atomically.
    #[inline]
    fn take(&mut self) -> DescPtr {
        // SAFETY: by the type invariant.
        let desc = unsafe { bindings::kvm_mmu_memory_cache_alloc(self.0.as_ptr()) };
        // SAFETY: C never returns null.
        let desc = unsafe { NonNull::new_unchecked(desc.cast()) };
        // INVARIANT: zeroed, which is `Desc::EMPTY`; it is the caller's.
        DescPtr(desc)
    }
}

/// The head of a list: `struct kvm_rmap_head`.
///
/// # Invariants
///
/// Points to the head of a list that exists for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct List<'a>(NonNull<bindings::kvm_rmap_head>, PhantomData<&'a ()>);

impl<'a> List<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `head` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(head: NonNull<bindings::kvm_rmap_head>) -> Self {
        // INVARIANT: by this function's safety requirement.
        List(head, PhantomData)
    }

    #[inline]
    fn atomic(&self) -> &Atomic<u64> {
        // CAST: the head is one `atomic_long_t`, that is 64 bits.
        // SAFETY: by the type invariant; everybody accesses the word by marked accesses.
        unsafe { Atomic::from_ptr(self.0.as_ptr().cast()) }
    }

    /// Whether the list is empty, at the moment.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.load().is_empty()
    }

    /// Locks the list for reading, where `mmu_lock` is not held; `kvm_rmap_lock_readonly()`. `None`
    /// if it is empty.
    #[inline]
    pub(crate) fn read(self) -> Option<LockedList<'a>> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: paired with `kvm_rs_preempt_enable()` below, or in `LockedList::drop`.
        unsafe { bindings::kvm_rs_preempt_disable() };
        let word = rmap::lock(&self);

        if word.is_empty() {
            // SAFETY: disabled above.
            unsafe { bindings::kvm_rs_preempt_enable() };
            return None;
        }
        // INVARIANT: locked, and preemption is disabled.
        Some(LockedList { list: self, word })
    }
}

impl Cell for List<'_> {
    #[inline]
    fn load(&self) -> Word {
        Word(self.atomic().load(Relaxed))
    }

    #[inline]
    fn try_acquire(&self, old: Word, new: Word) -> Result<(), Word> {
        // Or who waits might keep the holder off the CPU.
        // SAFETY: looks at this CPU only.
        unsafe { bindings::kvm_rs_assert_preemption_disabled() };
        match self.atomic().cmpxchg(old.0, new.0, Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(Word(now)),
        }
    }

    #[inline]
    fn release(&self, new: Word) {
        self.atomic().store(new.0, Release);
    }

    #[inline]
    fn relax(&self) {
        cpu_relax();
    }
}

/// The head that a word encodes.
///
/// # Safety
///
/// The word must be that of a list which does not change while the result is in use.
#[inline]
unsafe fn decode(word: Word) -> Head<DescPtr> {
    match word.decode() {
        Head::Empty => Head::Empty,
        Head::One(entry) => Head::One(entry),
        Head::Many(address) => {
            let desc = ptr::with_exposed_provenance_mut(address as usize);
            // SAFETY: `encode` made the word of a pointer that is not null.
            let desc = unsafe { NonNull::new_unchecked(desc) };
            // INVARIANT: by this function's safety requirement.
            Head::Many(DescPtr(desc))
        }
    }
}

/// The word of a list with this head.
#[inline]
fn encode(head: Head<DescPtr>) -> Word {
    match head {
        Head::Empty => Word::EMPTY,
        Head::One(entry) => Word::one(entry),
        Head::Many(desc) => Word::many(desc.0.as_ptr().expose_provenance() as u64),
    }
}

/// The pointer to the SPTE at an address that is in a list.
///
/// # Safety
///
/// The address must be in a list that does not change during `'s`: an SPTE is removed from its
/// lists before its table is freed.
#[inline]
unsafe fn sptep_at<'s>(entry: u64) -> Sptep<'s> {
    let ptr = ptr::with_exposed_provenance_mut(entry as usize);
    // SAFETY: lists have no null entries.
    let ptr = unsafe { NonNull::new_unchecked(ptr) };
    // SAFETY: by this function's safety requirement.
    unsafe { Sptep::from_raw(ptr) }
}

/// The address of an SPTE, as lists have it.
#[inline]
fn address_of(sptep: Sptep<'_>) -> u64 {
    sptep.as_ptr().expose_provenance() as u64
}

/// A list that is locked for reading, by its lock bit alone.
///
/// # Invariants
///
/// This thread has set the list's lock bit and has disabled preemption; `word` is the word that was
/// there before.
pub(crate) struct LockedList<'a> {
    list: List<'a>,
    word: Word,
}

impl LockedList<'_> {
    /// The SPTEs in the list. They may be zapped while one looks at them.
    #[inline]
    pub(crate) fn sptes(&self) -> Sptes<'_> {
        // SAFETY: by the type invariant the list does not change while it is borrowed.
        unsafe { Sptes::new(self.word) }
    }
}

impl Drop for LockedList<'_> {
    #[inline]
    fn drop(&mut self) {
        kvm_mmu_warn_on!(self.list.load().unlocked() != self.word);
        rmap::unlock(&self.list, self.word);
        // SAFETY: by the type invariant.
        unsafe { bindings::kvm_rs_preempt_enable() };
    }
}

/// The SPTEs of a list, as an iterator.
///
/// # Invariants
///
/// The list does not change during `'s`.
pub(crate) struct Sptes<'s> {
    cursor: ListCursor<DescPtr>,
    list: PhantomData<&'s ()>,
}

impl Sptes<'_> {
    /// # Safety
    ///
    /// `word` must satisfy the type invariant.
    #[inline]
    unsafe fn new(word: Word) -> Self {
        // SAFETY: by this function's safety requirement.
        let head = unsafe { decode(word) };
        // INVARIANT: by this function's safety requirement.
        Sptes {
            cursor: ListCursor::new(head),
            list: PhantomData,
        }
    }
}

impl<'s> Iterator for Sptes<'s> {
    type Item = Sptep<'s>;

    #[inline]
    fn next(&mut self) -> Option<Sptep<'s>> {
        let entry = self.cursor.next(&Descs)?;

        // SAFETY: by the type invariant.
        Some(unsafe { sptep_at(entry) })
    }
}

/// A list under `mmu_lock` held for write, which may be changed.
///
/// # Invariants
///
/// `lock` was borrowed exclusively for `'a`: it is not dropped before, and no other `Rmap` of the VM
/// exists.
pub(crate) struct Rmap<'a> {
    list: List<'a>,
    lock: &'a Exclusive<'a>,
}

impl<'a> Rmap<'a> {
    /// A handle on `list`, a list of the VM whose lock is held.
    #[inline]
    pub(crate) fn new(lock: &'a mut Exclusive<'_>, list: List<'a>) -> Self {
        // INVARIANT: the token is borrowed exclusively for `'a`.
        Rmap { list, lock }
    }

    /// The lock that is held.
    #[inline]
    pub(crate) fn lock(&self) -> &Exclusive<'a> {
        self.lock
    }

    /// The word without the lock bit, which a reader may have set.
    #[inline]
    fn word(&self) -> Word {
        self.list.load().unlocked()
    }

    #[inline]
    fn head(&self) -> Head<DescPtr> {
        // SAFETY: by the type invariant, only `self` changes the list.
        unsafe { decode(self.word()) }
    }

    /// The SPTEs in the list.
    #[inline]
    pub(crate) fn sptes(&self) -> Sptes<'_> {
        // SAFETY: only `self` changes the list, and it is borrowed.
        unsafe { Sptes::new(self.word()) }
    }

    /// Changes the list under its lock bit.
    #[inline(always)]
    fn change(&mut self, change: impl FnOnce(&mut Descs, Head<DescPtr>) -> Head<DescPtr>) {
        let word = rmap::lock(&self.list);
        // SAFETY: the list is locked, or empty.
        let head = unsafe { decode(word) };
        let new = change(&mut Descs, head);

        rmap::unlock(&self.list, encode(new));
    }

    /// Adds an SPTE, and returns how many there were before; `pte_list_add()`.
    #[inline]
    pub(crate) fn add(&mut self, cache: &mut DescCache<'_>, sptep: Sptep<'_>) -> u32 {
        let mut count = 0;

        self.change(|descs, head| {
            count = rmap::count(descs, head);
            rmap::add(descs, head, address_of(sptep), |_| cache.take())
        });
        count
    }

    /// Removes an SPTE, which must be in the list; `pte_list_remove()`.
    #[inline]
    pub(crate) fn remove(&mut self, sptep: Sptep<'_>) {
        let mut found = true;

        self.change(|descs, head| {
            rmap::remove(descs, head, address_of(sptep)).unwrap_or_else(|| {
                found = false;
                head
            })
        });
        if !found {
            self.lock.vm().data_corruption();
        }
    }

    /// Removes the SPTEs for which `keep` is false. It has zapped them.
    ///
    /// The lock bit is held for each removal only, as `keep` may take its time.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool) {
        let lock = self.lock;
        let mut cursor = ListCursor::new(self.head());

        while let Some(entry) = cursor.peek(&Descs) {
            // SAFETY: the entry is in the list, which does not change before it is removed below.
            if keep(lock, unsafe { sptep_at(entry) }) {
                cursor.step();
            } else {
                self.change(|descs, head| rmap::remove_at(descs, head, &mut cursor));
            }
        }
    }

    /// Empties the list. `zap` is called for each SPTE, with the lock bit held, and must zap it.
    pub(crate) fn clear(&mut self, mut zap: impl FnMut(&Exclusive<'_>, Sptep<'_>)) {
        let lock = self.lock;

        self.change(|descs, head| {
            let mut cursor = ListCursor::new(head);

            while let Some(entry) = cursor.next(descs) {
                // SAFETY: the entry is in the list, which is locked.
                zap(lock, unsafe { sptep_at(entry) });
            }
            rmap::free_all(descs, head);
            Head::Empty
        });
    }
}

/// An SPTE in a list, with the right to change lists.
///
/// # Invariants
///
/// `mmu_lock` is held for write during `'a`, and nobody else changes lists; the SPTE's table is not
/// freed before `'a` ends.
pub(crate) struct Found<'a, 'l> {
    sptep: Sptep<'a>,
    lock: &'a mut Exclusive<'l>,
}

impl<'a, 'l> Found<'a, 'l> {
    /// The first SPTE in `list` for which `wanted` is true.
    pub(crate) fn first(
        lock: &'a mut Exclusive<'l>,
        list: List<'_>,
        mut wanted: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool,
    ) -> Option<Self> {
        // SAFETY: the lock is held for write, so the list does not change before the result exists.
        let mut sptes: Sptes<'a> = unsafe { Sptes::new(list.load().unlocked()) };
        let sptep = sptes.find(|sptep| wanted(lock, *sptep))?;

        // INVARIANT: the lock is borrowed for `'a`, so it is not dropped; who changes lists here
        // frees no tables.
        Some(Found { sptep, lock })
    }

    /// The SPTE.
    #[inline]
    pub(crate) fn sptep(&self) -> Sptep<'a> {
        self.sptep
    }

    /// The lock that is held.
    #[inline]
    pub(crate) fn lock(&self) -> &Exclusive<'l> {
        self.lock
    }

    /// Another list, or the same, to change.
    #[inline]
    pub(crate) fn rmap<'s>(&'s mut self, list: List<'s>) -> Rmap<'s> {
        Rmap::new(self.lock, list)
    }
}

/// C's view of a place in a list.
pub(crate) use bindings::rmap_iterator as RmapIterator;

/// The length of a list of leaves, for C; `pte_list_count()`. It is for debugfs, so this is where
/// `CONFIG_KVM_PROVE_MMU=y` checks the list: all its leaves are present, and map the same frame.
///
/// # Safety
///
/// `mmu_lock` must be held for write.
pub(crate) unsafe fn count(list: List<'_>) -> u32 {
    let word = list.load().unlocked();
    // SAFETY: by this function's safety requirement.
    let count = rmap::count(&Descs, unsafe { decode(word) });

    if cfg!(CONFIG_KVM_PROVE_MMU) {
        let mut found = 0u32;
        let mut first = None;

        // SAFETY: by this function's safety requirement.
        for sptep in unsafe { Sptes::new(word) } {
            let sp = Sp::of_sptep(sptep);
            let level = sp.role().level();
            // SAFETY: by this function's safety requirement.
            let gfn = unsafe { sp.gfn_at_locked(shadow::index_of(sptep)) };
            let place = (level, level.map(|level| gfn.round_down(level)));

            found = found.wrapping_add(1);
            kvm_mmu_warn_on!(!sptep.read().is_present());
            kvm_mmu_warn_on!(*first.get_or_insert(place) != place);
        }
        kvm_mmu_warn_on!(found != count);
    }
    count
}

/// The first entry of a list, and the place behind it, for C.
///
/// # Safety
///
/// The list must not change during `'s`.
pub(crate) unsafe fn first<'s>(list: List<'s>) -> Option<(Sptep<'s>, RmapIterator)> {
    // SAFETY: by this function's safety requirement.
    let head = unsafe { decode(list.load().unlocked()) };
    // SAFETY: by this function's safety requirement.
    unsafe { step(ListCursor::new(head)) }
}

/// The entry at a place, and the place behind it, for C.
///
/// # Safety
///
/// `at` must come from [`first`] or from here, and the list must not have changed since, and not
/// change during `'s`.
pub(crate) unsafe fn next<'s>(at: RmapIterator) -> Option<(Sptep<'s>, RmapIterator)> {
    // INVARIANT: the list does not change.
    let desc = NonNull::new(at.desc.cast()).map(DescPtr);
    // SAFETY: by this function's safety requirement.
    unsafe { step(ListCursor::from_parts(desc, at.index as usize)) }
}

/// The entry at a cursor, and the place behind it, for C.
///
/// # Safety
///
/// The list must not change during `'s`.
unsafe fn step<'s>(mut cursor: ListCursor<DescPtr>) -> Option<(Sptep<'s>, RmapIterator)> {
    let entry = cursor.next(&Descs)?;
    let (desc, index) = cursor.parts();
    let at = RmapIterator {
        desc: desc.map_or(ptr::null_mut(), |d| d.0.as_ptr().cast()),
        index: index as u32,
    };

    // SAFETY: by this function's safety requirement.
    Some((unsafe { sptep_at(entry) }, at))
}

/// The lists of one level of a memslot, one for each page of that size that the slot touches.
///
/// # Invariants
///
/// `heads` points to `len` heads of lists that exist for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct SlotRmaps<'a> {
    heads: NonNull<bindings::kvm_rmap_head>,
    len: usize,
    /// The number of the first page, in pages of the level.
    first: u64,
    shift: u32,
    slot: PhantomData<&'a ()>,
}

impl<'a> SlotRmaps<'a> {
    /// The lists of `slot` for leaves of `level`; `None` if there are no leaves at that level, or no
    /// shadow MMU.
    #[inline]
    pub(crate) fn new(slot: Memslot<'a>, level: Level) -> Option<Self> {
        let index = level as usize - 1;
        if level > Level::MAX_LEAF {
            return None;
        }
        // SAFETY: the slot exists; the arrays are allocated before there are shadow pages.
        let heads = NonNull::new(unsafe { (*slot.as_ptr()).arch.rmap[index] })?;
        let range = slot.range();
        let shift = level.pages_shift();
        let first = range.start.0 >> shift;
        let last = range.end.0.wrapping_sub(1) >> shift;

        // INVARIANT: C has allocated one head for each page that the slot touches.
        Some(SlotRmaps {
            heads,
            len: last.wrapping_sub(first).wrapping_add(1) as usize,
            first,
            shift,
            slot: PhantomData,
        })
    }

    /// The index of the list of the page that holds `gfn`.
    #[inline]
    pub(crate) fn index_of(&self, gfn: Gfn) -> usize {
        (gfn.0 >> self.shift).wrapping_sub(self.first) as usize
    }

    /// The indices of the lists of the pages that hold frames of `range`, which is not empty.
    #[inline]
    fn indices_of(&self, range: GfnRange) -> core::ops::Range<usize> {
        let last = Gfn(range.end.0.wrapping_sub(1));

        self.index_of(range.start)..self.index_of(last).wrapping_add(1)
    }

    /// The list at `index`, if there is one.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<List<'a>> {
        if index >= self.len {
            return None;
        }
        // SAFETY: less than `len`, so within the array by the type invariant.
        let head = unsafe { self.heads.add(index) };
        // INVARIANT: it is an element of that array.
        Some(List(head, PhantomData))
    }

    /// The lists of the pages that hold frames of `range`, in their order.
    #[inline]
    pub(crate) fn lists(&self, range: GfnRange) -> Lists<'a> {
        let indices = self.indices_of(range);
        let end = indices.end.min(self.len);
        let start = indices.start.min(end);

        // INVARIANT: the lists from `start` to `end` exist.
        Lists {
            // SAFETY: not more than `len`, so within the array by the type invariant.
            next: unsafe { self.heads.add(start) },
            left: end.wrapping_sub(start),
            slot: PhantomData,
        }
    }

    /// The list of the page that holds `gfn`, if that is in the slot.
    #[inline]
    pub(crate) fn of(&self, gfn: Gfn) -> Option<List<'a>> {
        self.get(self.index_of(gfn))
    }
}

/// Consecutive lists of a memslot, as an iterator.
///
/// # Invariants
///
/// `left` heads of lists exist from `next` on, for `'a`.
pub(crate) struct Lists<'a> {
    next: NonNull<bindings::kvm_rmap_head>,
    left: usize,
    slot: PhantomData<&'a ()>,
}

impl<'a> Iterator for Lists<'a> {
    type Item = List<'a>;

    #[inline]
    fn next(&mut self) -> Option<List<'a>> {
        self.left = self.left.checked_sub(1)?;

        // INVARIANT: it is one of the heads that exist.
        let list = List(self.next, PhantomData);
        // SAFETY: within the array, or at its end.
        self.next = unsafe { self.next.add(1) };
        Some(list)
    }
}
