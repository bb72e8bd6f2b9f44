// SPDX-License-Identifier: GPL-2.0

//! A memslot's dirty bitmap, as an ioctl reaps it.

use core::{ops::Range, ptr::NonNull};

use kernel::sync::atomic::{
    ordering::{Full, Relaxed},
    Atomic,
};

use crate::{
    pure::{
        dirty::{parts, WORD_PAGES},
        Gfn, GfnRange,
    },
    support::atomic::AtomicBits,
    sys::Memslot,
};

/// What an ioctl wants of the bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All that are set; `KVM_GET_DIRTY_LOG`.
    All,
    /// Those that the buffer names; `KVM_CLEAR_DIRTY_LOG`.
    Requested,
}

/// A run of words of a dirty bitmap, with a buffer of as many words for the bits that are taken.
///
/// vCPUs set bits at any time, so the bitmap is accessed atomically. The buffer is the ioctl's own:
/// it is the second half of the bitmap's allocation, which `slots_lock` guards.
///
/// # Invariants
///
/// `bitmap` points to `buffer.len()` words of the bitmap of a slot that exists for `'a`.
pub(crate) struct DirtyBitmap<'a> {
    bitmap: NonNull<u64>,
    buffer: &'a mut [u64],
    first: Gfn,
    wanted: Wanted,
}

impl<'a> DirtyBitmap<'a> {
    /// The words from `first_word` on, as many as the buffer has.
    ///
    /// # Safety
    ///
    /// `slot` must have a dirty bitmap, with at least `first_word + buffer.len()` words.
    pub(crate) unsafe fn new(
        slot: Memslot<'a>,
        first_word: usize,
        buffer: &'a mut [u64],
        wanted: Wanted,
    ) -> Self {
        // SAFETY: the slot exists; the field is constant.
        let words = unsafe { (*slot.as_ptr()).dirty_bitmap };
        // SAFETY: by this function's safety requirement.
        let first = unsafe { words.add(first_word) };
        // SAFETY: part of an allocation, so not null.
        let bitmap = unsafe { NonNull::new_unchecked(first) };
        let pages = (first_word as u64).wrapping_mul(WORD_PAGES);

        // INVARIANT: by this function's safety requirement.
        DirtyBitmap {
            // CAST: `unsigned long` is a `u64` on x86-64.
            bitmap: bitmap.cast(),
            buffer,
            first: slot.range().start.add(pages),
            wanted,
        }
    }

    /// What is wanted.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The number of words.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The frame of bit 0 of `word`.
    #[inline]
    pub(crate) fn gfn(&self, word: usize) -> Gfn {
        self.first.add((word as u64).wrapping_mul(WORD_PAGES))
    }

    /// The bits that were taken from `word`.
    #[inline]
    pub(crate) fn taken(&self, word: usize) -> u64 {
        self.buffer.get(word).copied().unwrap_or(0)
    }

    /// Whether a bit of a frame of `range` was taken.
    #[inline]
    pub(crate) fn any_taken(&self, range: GfnRange) -> bool {
        parts(self.first, range).any(|part| self.taken(part.word) & part.bits != 0)
    }

    /// Whether the bits of all frames of `range` were taken.
    #[inline]
    pub(crate) fn all_taken(&self, range: GfnRange) -> bool {
        parts(self.first, range).all(|part| self.taken(part.word) & part.bits == part.bits)
    }

    /// Moves the wanted bits of some words from the bitmap to the buffer, which is zero there or names
    /// the wanted bits. Returns whether there were any.
    pub(crate) fn take(&mut self, words: Range<usize>) -> bool {
        // Most words are clean: don't steal their cache lines from the CPUs that write them.
        match self.wanted {
            Wanted::All => self.update(words, |bits, _| match bits.load(Relaxed) {
                0 => None,
                _ => Some(bits.xchg(0, Full)),
            }),
            Wanted::Requested => self.update(words, |bits, request| match request {
                0 => None,
                u64::MAX => Some(bits.xchg(0, Full)),
                _ => Some(request & bits.fetch_and(!request)),
            }),
        }
    }

    /// Puts the bits that were taken from some words back.
    pub(crate) fn put_back(&mut self, words: Range<usize>) {
        self.update(words, |bits, taken| match taken {
            0 => None,
            _ => {
                bits.fetch_or(taken);
                Some(0)
            }
        });
    }

    /// Calls `f` for some words: with the word of the bitmap and that of the buffer, for which it may
    /// return another. Returns whether any of those that it returned has a bit set.
    #[inline(always)]
    fn update(
        &mut self,
        words: Range<usize>,
        f: impl Fn(&Atomic<u64>, u64) -> Option<u64>,
    ) -> bool {
        let start = words.start;
        let mut any = 0;
        let Some(places) = self.buffer.get_mut(words) else {
            return false;
        };

        for (n, place) in places.iter_mut().enumerate() {
            // SAFETY: the buffer has this word, so the bitmap has it, by the type invariant.
            let ptr = unsafe { self.bitmap.as_ptr().add(start.wrapping_add(n)) };
            // SAFETY: valid and aligned; all accesses of the bitmap are atomic.
            let bits = unsafe { Atomic::from_ptr(ptr) };

            if let Some(new) = f(bits, *place) {
                *place = new;
                any |= new;
            }
        }
        any != 0
    }
}
