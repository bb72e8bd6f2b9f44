// SPDX-License-Identifier: GPL-2.0

//! A list, and reading it under its lock bit.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    processor::cpu_relax,
    sync::atomic::{
        ordering::{
            Acquire,
            Relaxed,
            Release, //
        },
        Atomic, //
    }, //
};

use super::{
    desc::{
        decode,
        DescPtr,
        Descs, //
    },
    encoding::{
        lock_from,
        unlock,
        Cell,
        ListCursor,
        Word, //
    }, //
};
use crate::{
    bindings,
    pte::Sptep,
    support::preempt::{
        self,
        PreemptGuard, //
    }, //
};

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
        // INVARIANT: By this function's safety requirement.
        List(head, PhantomData)
    }

    #[inline]
    fn atomic(&self) -> &Atomic<u64> {
        // CAST: The head is one `atomic_long_t`, that is 64 bits.
        // SAFETY: By the type invariant; all accesses to the word are marked.
        unsafe { Atomic::from_ptr(self.0.as_ptr().cast()) }
    }

    /// Whether the list is empty, at the moment.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.load().is_empty()
    }

    /// Locks the list for reading without `mmu_lock`; `kvm_rmap_lock_readonly()`. `None` if the
    /// list is empty.
    #[inline]
    pub(crate) fn read(self) -> Option<LockedList<'a>> {
        let word = self.load();
        if word.is_empty() {
            return None;
        }

        let preempt = PreemptGuard::new();
        let word = lock_from(&self, word);

        if word.is_empty() {
            return None;
        }
        // INVARIANT: Just locked.
        Some(LockedList {
            list: self,
            word,
            _preempt: preempt,
        })
    }
}

impl Cell for List<'_> {
    #[inline]
    fn load(&self) -> Word {
        Word(self.atomic().load(Relaxed))
    }

    #[inline]
    fn try_acquire(&self, old: Word, new: Word) -> Result<(), Word> {
        // A waiter could otherwise keep the holder off the CPU.
        preempt::assert_disabled();
        match self.atomic().cmpxchg(old.raw(), new.raw(), Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(Word(now)),
        }
    }

    #[inline]
    fn release(&self, new: Word) {
        self.atomic().store(new.raw(), Release);
    }

    #[inline]
    fn relax(&self) {
        cpu_relax();
    }
}

/// The pointer to the SPTE at an address that is in a list.
///
/// # Safety
///
/// The address must be in a list that does not change during `'s`: an SPTE is removed from its
/// lists before its table is freed.
#[inline]
pub(super) unsafe fn sptep_at<'s>(entry: u64) -> Sptep<'s> {
    let ptr = ptr::with_exposed_provenance_mut(entry as usize);
    // SAFETY: Lists have no null entries.
    let ptr = unsafe { NonNull::new_unchecked(ptr) };
    // SAFETY: By this function's safety requirement.
    unsafe { Sptep::from_raw(ptr) }
}

/// The address of an SPTE, as lists have it.
#[inline]
pub(super) fn address_of(sptep: Sptep<'_>) -> u64 {
    sptep.as_ptr().expose_provenance() as u64
}

/// A list that is locked for reading by its lock bit only.
///
/// # Invariants
///
/// This thread has set the list's lock bit; `word` is the word that was there before.
pub(crate) struct LockedList<'a> {
    list: List<'a>,
    word: Word,
    /// Dropped after the lock bit.
    _preempt: PreemptGuard,
}

impl LockedList<'_> {
    /// The SPTEs in the list. They may be zapped concurrently.
    #[inline]
    pub(crate) fn sptes(&self) -> Sptes<'_> {
        // SAFETY: By the type invariant the list does not change while it is borrowed.
        unsafe { Sptes::new(self.word) }
    }
}

impl Drop for LockedList<'_> {
    #[inline]
    fn drop(&mut self) {
        kvm_mmu_warn_on!(self.list.load().unlocked() != self.word);
        unlock(&self.list, self.word);
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
    /// The SPTEs of the list with this word.
    ///
    /// # Safety
    ///
    /// The list must satisfy the type invariant.
    #[inline]
    pub(super) unsafe fn new(word: Word) -> Self {
        // SAFETY: By this function's safety requirement.
        let head = unsafe { decode(word) };
        // INVARIANT: By this function's safety requirement.
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

        // SAFETY: By the type invariant.
        Some(unsafe { sptep_at(entry) })
    }
}
