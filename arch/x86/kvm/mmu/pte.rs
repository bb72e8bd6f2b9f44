// SPDX-License-Identifier: GPL-2.0

//! The slot of an SPTE in a live page table.
//!
//! A slot is never a reference: while the table is linked, other CPUs change it, and hardware sets
//! its accessed and dirty bits. All access goes through single-copy-atomic operations, of which
//! there are few. [`crate::change`] decides which of them a change needs.

#![expect(unsafe_code)]

use core::{marker::PhantomData, ptr::NonNull};

use kernel::sync::atomic::{
    ordering::{Full, Relaxed, Release},
    Atomic,
};

use crate::{
    bindings,
    pure::{addr::ENTRIES, Hpa, Index, Level, Masks, Spte},
};

/// A page table that may be read during `'r`.
///
/// # Invariants
///
/// Points to a page of [`ENTRIES`] SPTEs that is not freed before `'r` ends: an RCU read-side
/// critical section, or exclusive ownership, lasts as long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table<'r>(NonNull<u64>, PhantomData<&'r ()>);

impl<'r> Table<'r> {
    /// Wraps the table at `ptr`.
    ///
    /// # Safety
    ///
    /// `ptr` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<u64>) -> Self {
        // INVARIANT: by this function's safety requirement.
        Table(ptr, PhantomData)
    }

    /// Wraps the table at the host physical address `hpa`.
    ///
    /// # Safety
    ///
    /// As for [`Table::from_raw`]. The address must come from a present non-leaf SPTE, or from a
    /// root, so that it is that of a kernel page in the direct map.
    #[inline]
    pub(crate) unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: an address computation with no requirement of its own.
        let va = unsafe { bindings::kvm_rs_va(hpa.0) };
        // SAFETY: the direct map does not contain the null page.
        let ptr = unsafe { NonNull::new_unchecked(va) };
        // INVARIANT: by this function's safety requirement.
        Table(ptr, PhantomData)
    }

    /// The slot at `index`.
    #[inline]
    pub(crate) fn slot(self, index: Index) -> PtePtr<'r> {
        const { assert!(ENTRIES * size_of::<u64>() == 4096) };
        // SAFETY: `index` is below `ENTRIES` by its invariant, so the result stays in the page.
        let ptr = unsafe { self.0.add(index.get()) };
        // INVARIANT: part of a table that is valid for `'r`.
        PtePtr(ptr, PhantomData)
    }

    /// The address, for comparing and for C.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut u64 {
        self.0.as_ptr()
    }
}

/// The slot of one SPTE in a table that may be read during `'r`.
///
/// # Invariants
///
/// As for [`Table`], of which it is an element; aligned to 8 bytes.
#[derive(Clone, Copy)]
pub(crate) struct PtePtr<'r>(NonNull<u64>, PhantomData<&'r ()>);

impl<'r> PtePtr<'r> {
    /// Wraps the slot at `ptr`.
    ///
    /// # Safety
    ///
    /// `ptr` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<u64>) -> Self {
        // INVARIANT: by this function's safety requirement.
        PtePtr(ptr, PhantomData)
    }

    #[inline]
    fn atomic(&self) -> &Atomic<u64> {
        // SAFETY: by the type invariant the slot is valid and aligned while `self` is. Everybody
        // accesses it by marked accesses; hardware's A/D updates are atomic as well.
        unsafe { Atomic::from_ptr(self.0.as_ptr()) }
    }

    /// Reads the entry; `READ_ONCE()`.
    #[inline]
    pub(crate) fn read(&self) -> Spte {
        Spte(self.atomic().load(Relaxed))
    }

    /// Reads the entry and, if it points to a table, gives that table.
    ///
    /// The result may be used as long as the slot: whoever unlinks a table frees it after a grace
    /// period, and `'r` lies in one read-side critical section (or the slot's own table, and with it
    /// everything below, belongs to this thread alone).
    #[inline]
    pub(crate) fn child(&self, level: Level, masks: &Masks) -> Option<Table<'r>> {
        let hpa = self.read().child_table(level, masks)?;

        // SAFETY: the entry was linked after `'r` began, or is ours; see above.
        Some(unsafe { Table::from_hpa(hpa) })
    }

    /// Overwrites the entry. Loses whatever another CPU or hardware has just set.
    ///
    /// A release, so that a table that the entry points to is seen with its contents by those who
    /// follow the pointer without a lock. On x86 it costs nothing and only restrains the compiler.
    #[inline]
    pub(crate) fn write(&self, new: Spte) {
        self.atomic().store(new.0, Release);
    }

    /// Replaces the entry and returns what was there.
    #[inline]
    pub(crate) fn swap(&self, new: Spte) -> Spte {
        Spte(self.atomic().xchg(new.0, Full))
    }

    /// Replaces the entry if it still is `old`, and otherwise returns what it is.
    #[inline]
    pub(crate) fn compare_exchange(&self, old: Spte, new: Spte) -> Result<(), Spte> {
        match self.atomic().cmpxchg(old.0, new.0, Full) {
            Ok(_) => Ok(()),
            Err(now) => Err(Spte(now)),
        }
    }

    /// Clears bits of the entry and returns what was there.
    #[inline]
    pub(crate) fn fetch_clear(&self, bits: u64) -> Spte {
        // SAFETY: by the type invariant the slot is valid and aligned.
        Spte(unsafe { bindings::kvm_rs_fetch_and(self.0.as_ptr(), !bits) })
    }

    /// The address, for C and for tracepoints.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u64 {
        self.0.as_ptr()
    }

    /// The host physical address of the slot.
    #[inline]
    pub(crate) fn hpa(&self) -> Hpa {
        // SAFETY: an address computation on an address in the direct map, where tables live.
        Hpa(unsafe { bindings::kvm_rs_pa(self.0.as_ptr()) })
    }
}
