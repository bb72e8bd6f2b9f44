// SPDX-License-Identifier: GPL-2.0

//! Descriptors: the memory of lists with more than one entry.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

use super::encoding::{
    Desc,
    Head,
    Store,
    Word, //
};
use crate::bindings;

/// A descriptor of a list.
///
/// # Invariants
///
/// Points to a descriptor of a list that does not change while the value is in use.
#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
pub(super) struct DescPtr(pub(super) NonNull<Desc<DescPtr>>);

impl DescPtr {
    /// The pointer.
    #[inline]
    pub(super) fn as_ptr(self) -> *mut Desc<DescPtr> {
        self.0.as_ptr()
    }
}

// C has the cache of descriptors and asserts their layout.
const _: () = assert!(size_of::<Desc<DescPtr>>() == 128 && align_of::<Desc<DescPtr>>() == 8);

/// The descriptors of one list, for as long as it is locked in one way or the other.
pub(super) struct Descs;

impl Store for Descs {
    type Ref = DescPtr;

    #[inline]
    fn desc(&self, desc: DescPtr) -> &Desc<DescPtr> {
        // SAFETY: By the invariant of `DescPtr`. A descriptor is only changed through a `&mut
        // Descs` of its list, which only `Rmap` makes, with the lock bit held.
        unsafe { &*desc.as_ptr() }
    }

    #[inline]
    fn desc_mut(&mut self, desc: DescPtr) -> &mut Desc<DescPtr> {
        // SAFETY: As above.
        unsafe { &mut *desc.as_ptr() }
    }

    #[inline]
    fn free(&mut self, desc: DescPtr) {
        // SAFETY: The descriptor is from that cache, and in no list any more.
        unsafe { bindings::kvm_rs_free_desc(desc.as_ptr().cast()) }
    }
}

/// A supply of descriptors that never sleeps: one of C's memory caches.
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
        // INVARIANT: By this function's safety requirement.
        DescCache(cache, PhantomData)
    }

    /// Takes out a descriptor. The cache was topped up before `mmu_lock` was taken; otherwise C
    /// warns and allocates atomically.
    #[inline]
    pub(super) fn take(&mut self) -> DescPtr {
        // SAFETY: By the type invariant.
        let desc = unsafe { bindings::kvm_mmu_memory_cache_alloc(self.0.as_ptr()) };
        // SAFETY: C never returns null.
        let desc = unsafe { NonNull::new_unchecked(desc.cast()) };
        // INVARIANT: Zeroed, which is `Desc::EMPTY`; it is the caller's.
        DescPtr(desc)
    }
}

/// The head that a word encodes.
///
/// # Safety
///
/// The word must be that of a list which does not change while the result is in use.
#[inline]
pub(super) unsafe fn decode(word: Word) -> Head<DescPtr> {
    match word.decode() {
        Head::AtMostOne(entry) => Head::AtMostOne(entry),
        Head::Many(address) => {
            let desc = ptr::with_exposed_provenance_mut(address as usize);
            // SAFETY: `encode` made the word of a pointer that is not null.
            let desc = unsafe { NonNull::new_unchecked(desc) };
            // INVARIANT: By this function's safety requirement.
            Head::Many(DescPtr(desc))
        }
    }
}

/// The word of a list with this head.
#[inline]
pub(super) fn encode(head: Head<DescPtr>) -> Word {
    match head {
        Head::AtMostOne(None) => Word::EMPTY,
        Head::AtMostOne(Some(entry)) => Word::one(entry.get()),
        Head::Many(desc) => Word::many(desc.as_ptr().expose_provenance() as u64),
    }
}
