// SPDX-License-Identifier: GPL-2.0

//! The lists of a memslot.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use super::list::List;
use crate::{
    bindings,
    pure::{
        Gfn,
        Level, //
    },
    sys::{
        Memslot,
        SlotRange, //
    }, //
};

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
    /// The lists of `slot` for leaves of `level`; `None` if there are no leaves at that level, or
    /// no shadow MMU.
    #[inline]
    pub(crate) fn new(slot: Memslot<'a>, level: Level) -> Option<Self> {
        let heads = Self::heads(slot, level)?;
        let range = slot.range();
        let shift = level.pages_shift();
        let first = range.start.page_number(shift);
        let last = range.last().page_number(shift);

        // INVARIANT: C has allocated one head for each page that the slot touches.
        Some(SlotRmaps {
            heads,
            len: last.wrapping_sub(first).wrapping_add(1) as usize,
            first,
            shift,
            slot: PhantomData,
        })
    }

    /// The heads of the lists for leaves of `level`, one for each page that the slot touches, if
    /// there are any.
    #[inline]
    fn heads(slot: Memslot<'a>, level: Level) -> Option<NonNull<bindings::kvm_rmap_head>> {
        let index = level as usize - 1;
        if level > Level::MAX_LEAF {
            return None;
        }
        // SAFETY: The slot exists; the arrays are allocated before there are shadow pages.
        NonNull::new(unsafe { (*slot.as_ptr()).arch.rmap[index] })
    }

    /// The index of the list of the page that holds `gfn`.
    #[inline]
    pub(crate) fn index_of(&self, gfn: Gfn) -> usize {
        gfn.page_number(self.shift).wrapping_sub(self.first) as usize
    }

    /// The list at `index`, if there is one.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<List<'a>> {
        if index >= self.len {
            return None;
        }
        // SAFETY: Less than `len`, so within the array by the type invariant.
        let head = unsafe { self.heads.add(index) };
        // SAFETY: It is an element of that array.
        Some(unsafe { List::from_raw(head) })
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

impl<'a> Lists<'a> {
    /// The lists for leaves of `level` of the pages that hold some of `pages`, in their order.
    /// There are none if `pages` has no frame, if there are no leaves at that level, or no shadow
    /// MMU.
    #[inline]
    pub(crate) fn of(pages: SlotRange<'a>, level: Level) -> Self {
        let range = pages.range();
        let shift = level.pages_shift();
        let first = pages.slot().base_gfn().page_number(shift);
        let start = range.start.page_number(shift);
        let (heads, left) = match SlotRmaps::heads(pages.slot(), level) {
            Some(heads) if !range.is_empty() => {
                let end = range.last().page_number(shift).wrapping_add(1);
                // SAFETY: All frames of the range are in the slot, by the type invariant, and C has
                // allocated one head for each page that the slot touches.
                let heads = unsafe { heads.add(start.wrapping_sub(first) as usize) };

                (heads, end.wrapping_sub(start) as usize)
            }
            _ => (NonNull::dangling(), 0),
        };

        // INVARIANT: As above.
        Lists {
            next: heads,
            left,
            slot: PhantomData,
        }
    }
}

impl<'a> Iterator for Lists<'a> {
    type Item = List<'a>;

    #[inline]
    fn next(&mut self) -> Option<List<'a>> {
        self.left = self.left.checked_sub(1)?;

        // SAFETY: It is one of the heads that exist.
        let list = unsafe { List::from_raw(self.next) };
        // SAFETY: Within the array, or at its end.
        self.next = unsafe { self.next.add(1) };
        Some(list)
    }
}
