// SPDX-License-Identifier: GPL-2.0

//! The reverse map's encoding: the word of a list, its lock bit, and the chain of descriptors.
//!
//! A list holds the addresses of SPTEs: those that map one guest frame, or those that point to one
//! shadow page. It is one word, because most lists have one entry or none:
//!
//! | word                | the list has                          |
//! |---------------------|---------------------------------------|
//! | 0                   | no entry                              |
//! | an address          | one entry, the SPTE at that address   |
//! | an address, bit 0   | entries in a chain of descriptors     |
//! | not 0, bit 1        | the same, and somebody has locked it  |
//!
//! A descriptor holds up to [`DESC_ENTRIES`] addresses. Only the first of a chain may be partly
//! filled, and none is empty: a new one goes to the front when the first is full, and a removed
//! entry is replaced by the last one of the first descriptor. So the length of a chain is known
//! from its first descriptor.
//!
//! The algorithms here do not know what a pointer to a descriptor is ([`Store`]), nor how a word is
//! accessed ([`Cell`]). The host tests run the same code on an arena, and on loom's atomics.

#![forbid(unsafe_code)]
// Public items are the host crate's interface; in the kernel nothing is outside of this crate.
#![allow(unreachable_pub)]

use core::num::NonZeroU64;

/// How many SPTEs a descriptor holds, `PTE_LIST_EXT`: it fills two cache lines.
pub const DESC_ENTRIES: usize = 14;

/// Set if the word points to a descriptor.
const MANY: u64 = 1 << 0;
/// Set while somebody holds the list's lock.
const LOCKED: u64 = 1 << 1;

/// The word of a list.
///
/// # Invariants
///
/// An empty list is never locked: there is nothing to keep stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Word(pub u64);

/// What a word says, its lock apart. `R` refers to a descriptor.
///
/// There are two variants, which one bit of the word tells apart. With a third, for the empty list,
/// the compiler computes which one it is before it branches: eight instructions in each change of a
/// list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head<R> {
    /// The list has one entry, the SPTE at this address, or none.
    AtMostOne(Option<NonZeroU64>),
    /// The list has the entries of the chain that starts with this descriptor.
    Many(R),
}

impl<R> Head<R> {
    /// The head of an empty list.
    pub const EMPTY: Self = Head::AtMostOne(None);

    /// The head of a list with one entry, the SPTE at `address`, which is not 0.
    #[inline]
    pub const fn one(address: u64) -> Self {
        Head::AtMostOne(NonZeroU64::new(address))
    }
}

impl Word {
    /// The word of an empty list.
    pub const EMPTY: Word = Word(0);

    /// The word as a plain number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The word of a list with one entry, the SPTE at `address`, which is aligned to 8 bytes.
    #[inline]
    pub const fn one(address: u64) -> Self {
        Word(address)
    }

    /// The word of a list whose first descriptor is at `address`, which is aligned to 8 bytes.
    #[inline]
    pub const fn many(address: u64) -> Self {
        Word(address | MANY)
    }

    /// What the word says. A descriptor is given by its address.
    #[inline]
    pub const fn decode(self) -> Head<u64> {
        if self.0 & MANY == 0 {
            Head::AtMostOne(NonZeroU64::new(self.0 & !LOCKED))
        } else {
            Head::Many(self.0 & !(MANY | LOCKED))
        }
    }

    /// Whether the list has no entry.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether somebody holds the list's lock.
    #[inline]
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// The word with the lock held.
    #[inline]
    pub const fn locked(self) -> Self {
        Word(self.0 | LOCKED)
    }

    /// The word with the lock free.
    #[inline]
    pub const fn unlocked(self) -> Self {
        Word(self.0 & !LOCKED)
    }
}

/// A place that holds a [`Word`], shared between threads.
pub trait Cell {
    /// Reads the word. Relaxed.
    fn load(&self) -> Word;

    /// Replaces `old` by `new`, or returns the current word. An acquire on success.
    fn try_acquire(&self, old: Word, new: Word) -> Result<(), Word>;

    /// Overwrites the word. A release.
    fn release(&self, new: Word);

    /// Waits a moment.
    fn relax(&self);
}

/// Locks the list, and returns its word without the lock bit; [`Word::EMPTY`], and no lock, if the
/// list is empty.
///
/// An empty list need not be locked. Only the holder of `mmu_lock` for write can add to it, and
/// readers without `mmu_lock` have nothing to read.
///
/// The lock keeps a chain stable for readers that don't hold `mmu_lock`. It doesn't keep the SPTEs
/// from changing. Preemption must be disabled, as the lock is a spinlock.
#[inline]
pub fn lock(cell: &impl Cell) -> Word {
    lock_from(cell, cell.load())
}

/// As [`lock`], if `word` was read before.
#[inline]
pub fn lock_from(cell: &impl Cell, mut word: Word) -> Word {
    // Check after waiting, too: the holder may have emptied the list.
    while !word.is_empty() {
        if word.is_locked() {
            // Spin on reads, so as not to steal the cache line from the holder.
            cell.relax();
            word = cell.load();
            continue;
        }
        match cell.try_acquire(word, word.locked()) {
            Ok(()) => break,
            Err(now) => word = now,
        }
    }
    word
}

/// Unlocks the list and gives it a new word.
///
/// The caller holds the lock, or the list was empty and the caller holds `mmu_lock` for write. A
/// reader without `mmu_lock` must give back the word that [`lock`] returned.
#[inline]
pub fn unlock(cell: &impl Cell, word: Word) {
    cell.release(word.unlocked());
}

/// Some of the entries of a list; `struct pte_list_desc`, in its layout.
#[derive(Debug)]
#[repr(C)]
pub struct Desc<R> {
    /// The next descriptor, which is full.
    more: Option<R>,
    /// How many entries this descriptor has.
    len: u32,
    /// How many entries those after it have.
    tail: u32,
    entries: [u64; DESC_ENTRIES],
}

impl<R> Desc<R> {
    /// A descriptor without entries. All its bytes are zero, if those of `None` are.
    #[allow(
        dead_code,
        reason = "the kernel's descriptors are zeroed when they are allocated"
    )]
    pub const EMPTY: Self = Desc {
        more: None,
        len: 0,
        tail: 0,
        entries: [0; DESC_ENTRIES],
    };

    /// The entries in use.
    #[inline]
    pub fn entries(&self) -> &[u64] {
        // No more than there are, so that there is nothing left to check.
        let len = (self.len as usize).min(DESC_ENTRIES);

        self.entries.get(..len).unwrap_or_default()
    }

    /// The length of the list that starts here.
    #[inline]
    pub const fn count(&self) -> u32 {
        self.len.wrapping_add(self.tail)
    }

    /// Adds an entry, unless the descriptor is full.
    #[inline]
    fn push(&mut self, entry: u64) -> bool {
        let Some(place) = self.entries.get_mut(self.len as usize) else {
            return false;
        };
        *place = entry;
        self.len = self.len.wrapping_add(1);
        true
    }

    /// Takes the last entry out.
    #[inline]
    fn pop(&mut self) -> Option<u64> {
        let last = self.len.checked_sub(1)?;
        let entry = self.entries.get(last as usize).copied();

        self.len = last;
        entry
    }

    /// Overwrites the entry at `index`.
    #[inline]
    fn set(&mut self, index: usize, entry: u64) {
        if let Some(place) = self.entries.get_mut(index) {
            *place = entry;
        }
    }
}

/// Where the descriptors of a list live.
pub trait Store {
    /// Refers to a descriptor.
    type Ref: Copy + PartialEq;

    /// The descriptor, to look at.
    fn desc(&self, desc: Self::Ref) -> &Desc<Self::Ref>;

    /// The descriptor, to change.
    fn desc_mut(&mut self, desc: Self::Ref) -> &mut Desc<Self::Ref>;

    /// Frees a descriptor that is in no list any more.
    fn free(&mut self, desc: Self::Ref);
}

/// A place in a list: the first entries are those of the first descriptor.
#[derive(Clone, Copy, Debug)]
pub struct ListCursor<R> {
    /// What comes next: an entry of the word itself, or of a descriptor.
    at: Head<R>,
    /// The index in that descriptor.
    index: usize,
}

impl<R: Copy> ListCursor<R> {
    /// Before the first entry.
    #[inline]
    pub const fn new(head: Head<R>) -> Self {
        ListCursor { at: head, index: 0 }
    }

    /// Continues in a descriptor, or at the end; see [`ListCursor::parts`].
    #[inline]
    pub fn from_parts(desc: Option<R>, index: usize) -> Self {
        ListCursor {
            at: desc.map_or(Head::EMPTY, Head::Many),
            index,
        }
    }

    /// The descriptor and the index in it that come next. A list without a descriptor is at its end
    /// once its entry was taken.
    #[inline]
    pub fn parts(&self) -> (Option<R>, usize) {
        match self.at {
            Head::Many(desc) => (Some(desc), self.index),
            Head::AtMostOne(_) => (None, 0),
        }
    }

    /// The entry here, and moves to the next.
    #[inline]
    pub fn next<S: Store<Ref = R>>(&mut self, store: &S) -> Option<u64> {
        let entry = self.peek(store)?;

        self.step();
        Some(entry)
    }

    /// The entry here, if there is one; otherwise the cursor is at the end.
    #[inline]
    pub fn peek<S: Store<Ref = R>>(&mut self, store: &S) -> Option<u64> {
        match self.at {
            Head::AtMostOne(entry) => entry.map(NonZeroU64::get),
            Head::Many(desc) => {
                let desc = store.desc(desc);

                if let Some(entry) = desc.entries().get(self.index) {
                    return Some(*entry);
                }
                // No descriptor is empty, so one step is enough.
                let more = desc.more?;

                *self = ListCursor::new(Head::Many(more));
                store.desc(more).entries().first().copied()
            }
        }
    }

    /// Moves past the entry here.
    #[inline]
    pub fn step(&mut self) {
        match self.at {
            Head::Many(_) => self.index = self.index.wrapping_add(1),
            Head::AtMostOne(_) => self.at = Head::EMPTY,
        }
    }
}

/// The length of a list; `pte_list_count()`.
#[inline]
pub fn count<S: Store>(store: &S, head: Head<S::Ref>) -> u32 {
    match head {
        Head::AtMostOne(entry) => u32::from(entry.is_some()),
        Head::Many(desc) => store.desc(desc).count(),
    }
}

/// Adds an entry and returns the new head; `pte_list_add()`. `alloc` gives a new descriptor, which
/// is [`Desc::EMPTY`].
#[inline]
pub fn add<S: Store>(
    store: &mut S,
    head: Head<S::Ref>,
    entry: u64,
    alloc: impl FnOnce(&mut S) -> S::Ref,
) -> Head<S::Ref> {
    match head {
        Head::AtMostOne(None) => Head::one(entry),
        Head::AtMostOne(Some(other)) => {
            let first = alloc(store);
            let desc = store.desc_mut(first);

            desc.push(other.get());
            desc.push(entry);
            Head::Many(first)
        }
        Head::Many(first) => {
            let desc = store.desc_mut(first);

            if desc.push(entry) {
                return head;
            }
            let tail = desc.count();
            let front = alloc(store);
            let desc = store.desc_mut(front);

            desc.more = Some(first);
            desc.tail = tail;
            desc.push(entry);
            Head::Many(front)
        }
    }
}

/// Removes an entry and returns the new head, or `None` if it is not in the list;
/// `pte_list_remove()`.
#[inline]
pub fn remove<S: Store>(store: &mut S, head: Head<S::Ref>, entry: u64) -> Option<Head<S::Ref>> {
    match head {
        Head::AtMostOne(only) => (only == NonZeroU64::new(entry)).then_some(Head::EMPTY),
        Head::Many(first) => {
            let mut desc = first;

            loop {
                let this = store.desc(desc);

                if let Some(index) = this.entries().iter().position(|e| *e == entry) {
                    return Some(remove_from(store, first, desc, index));
                }
                desc = this.more?;
            }
        }
    }
}

/// Removes the entry that [`ListCursor::peek`] just returned, and returns the new head. The cursor
/// continues with the entries that it hasn't visited yet, although removal moves entries around.
#[inline]
pub fn remove_at<S: Store>(
    store: &mut S,
    head: Head<S::Ref>,
    cursor: &mut ListCursor<S::Ref>,
) -> Head<S::Ref> {
    let (Head::Many(first), Head::Many(desc)) = (head, cursor.at) else {
        cursor.at = Head::EMPTY;
        return Head::EMPTY;
    };
    let new = remove_from(store, first, desc, cursor.index);

    if desc != first {
        // The entry that was moved here is from the first descriptor, which was visited already.
        cursor.step();
    } else if new != Head::Many(first) {
        // The descriptor is gone.
        *cursor = ListCursor::new(new);
    }
    new
}

/// Fills the place of the entry at `index` of `desc` with the last entry of the first descriptor.
#[inline]
fn remove_from<S: Store>(store: &mut S, first: S::Ref, desc: S::Ref, index: usize) -> Head<S::Ref> {
    if let Some(last) = store.desc_mut(first).pop() {
        // Where the entry is the last one itself, this writes to what is no longer in use.
        store.desc_mut(desc).set(index, last);
    }

    let first_desc = store.desc(first);
    if first_desc.len != 0 {
        return Head::Many(first);
    }
    let more = first_desc.more;

    store.free(first);
    more.map_or(Head::EMPTY, Head::Many)
}

/// Frees the descriptors of a list that has been emptied.
#[inline]
pub fn free_all<S: Store>(store: &mut S, head: Head<S::Ref>) {
    let mut next = match head {
        Head::Many(first) => Some(first),
        _ => None,
    };

    while let Some(desc) = next {
        next = store.desc(desc).more;
        store.free(desc);
    }
}
