// SPDX-License-Identifier: GPL-2.0

//! A memslot's dirty bitmap, as an ioctl reaps it.

use core::{
    ops::Range,
    slice::{
        self,
        ChunksExact, //
    }, //
};

use kernel::sync::atomic::{
    ordering::{
        Full,
        Relaxed, //
    },
    Atomic, //
};

use crate::{
    pure::{
        dirty::{
            bits_of,
            parts,
            words,
            WordPart,
            TABLE_WORDS,
            WORD_PAGES, //
        },
        Gfn,
        GfnRange,
        Level, //
    },
    support::atomic::AtomicBits,
    sys::Memslot, //
};

/// The words that are looked at together, as most are clean: a cache line, and the pages of a huge
/// page.
const GROUP: usize = 8;

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
/// it is in the second half of the bitmap's allocation, which `slots_lock` guards; of that, a
/// `KVM_CLEAR_DIRTY_LOG` that has claimed a range has the same words as of the bitmap.
pub(crate) struct DirtyBitmap<'a> {
    bitmap: &'a [Atomic<u64>],
    /// As many words.
    buffer: &'a mut [u64],
    first: Gfn,
    wanted: Wanted,
}

impl<'a> DirtyBitmap<'a> {
    /// The words from `first_word` on, as many as the buffer has.
    ///
    /// # Safety
    ///
    /// `slot` must have a dirty bitmap, with at least `first_word + buffer.len()` words, for `'a`;
    /// and `buffer` must be none of these words.
    pub(crate) unsafe fn new(
        slot: Memslot<'a>,
        first_word: usize,
        buffer: &'a mut [u64],
        wanted: Wanted,
    ) -> Self {
        // SAFETY: The slot exists; the field is constant.
        let words = unsafe { (*slot.as_ptr()).dirty_bitmap };
        // SAFETY: By this function's safety requirement.
        let first = unsafe { words.add(first_word) };
        // CAST: `unsigned long` is a `u64` on x86-64, and an `Atomic<u64>` has its layout.
        let first = first.cast::<Atomic<u64>>();
        // SAFETY: By this function's safety requirement there are as many words, which exist for
        // `'a` and have no other reference. All writes to the bitmap are atomic.
        let bitmap = unsafe { slice::from_raw_parts(first, buffer.len()) };
        let pages = (first_word as u64).wrapping_mul(WORD_PAGES);

        DirtyBitmap {
            bitmap,
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

    /// The bits that are set in `word` of the bitmap at the moment.
    #[inline]
    pub(crate) fn current(&self, word: usize) -> u64 {
        self.bitmap.get(word).map_or(0, |bits| bits.load(Relaxed))
    }

    /// Whether a bit of a frame of `range` is set in the bitmap at the moment.
    #[inline]
    pub(crate) fn any_current(&self, range: GfnRange) -> bool {
        parts(self.first, range).any(|part| self.current(part.word) & part.bits != 0)
    }

    /// Sets bits of a part of a word in the bitmap; bit 0 of `written` stands for its first frame.
    /// Returns their number.
    #[inline]
    pub(crate) fn enter(&self, part: &WordPart, written: u64) -> u64 {
        if let (Some(word), true) = (self.bitmap.get(part.word), written != 0) {
            word.fetch_or(written.wrapping_shl(part.bits.trailing_zeros()));
        }
        written.count_ones().into()
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

    /// The first frame from `from` on, and before word `end`, whose bit was taken.
    #[inline]
    pub(crate) fn next_taken(&self, from: Gfn, end: usize) -> Option<Gfn> {
        let at = from.saturating_since(self.first);
        let mut word = (at / WORD_PAGES) as usize;
        let taken = self.buffer.get(..end)?;
        let mut bits = taken.get(word)? & (u64::MAX << (at % WORD_PAGES));

        while bits == 0 {
            word = word.wrapping_add(1);
            word = word.wrapping_add(clean_groups(taken.get(word..)?));
            bits = *taken.get(word)?;
        }
        Some(self.gfn(word).add(bits.trailing_zeros().into()))
    }

    /// The bits that were taken of the frames of `range`: the words of one table of 4 KiB pages,
    /// then those of the next, as far as all of a table is in `range`. Nothing if `range` does not
    /// start with a table, or if a word has the bits of two.
    #[inline]
    pub(crate) fn of_tables(&self, range: GfnRange) -> ChunksExact<'_, u64> {
        let fits = WORD_PAGES.wrapping_mul(TABLE_WORDS as u64) == Level::Page2M.pages()
            && range.start.is_aligned(Level::Page2M)
            && range.start >= self.first
            && range.start.since(self.first) % WORD_PAGES == 0;
        let start = (range.start.since(self.first) / WORD_PAGES) as usize;
        let end = start.wrapping_add((range.pages() / WORD_PAGES) as usize);
        let words = self.buffer.get(start..end).filter(|_| fits);

        words.unwrap_or(&[]).chunks_exact(TABLE_WORDS)
    }

    /// Calls `f` for each word that has bits that were taken of frames of `range`, with the frame
    /// of its bit 0 and those bits.
    #[inline(always)]
    pub(crate) fn for_each_taken(&self, range: GfnRange, mut f: impl FnMut(Gfn, u64)) {
        let words = words(self.first, range);
        let Some(taken) = self.buffer.get(words.clone()) else {
            return;
        };

        let mut first = self.gfn(words.start);

        for bits in taken {
            if *bits != 0 {
                // Only the first and the last word may have bits of other frames.
                let whole = first >= range.start && first.add(WORD_PAGES) <= range.end;
                let bits = if whole {
                    *bits
                } else {
                    bits & bits_of(first, range)
                };

                if bits != 0 {
                    f(first, bits);
                }
            }
            first = first.add(WORD_PAGES);
        }
    }

    /// Whether any bit of some words is wanted, before they are taken.
    pub(crate) fn is_any_wanted(&self, words: Range<usize>) -> bool {
        self.wanted == Wanted::All
            || self
                .buffer
                .get(words)
                .is_some_and(|words| words.iter().fold(0, |any, word| any | word) != 0)
    }

    /// Moves the wanted bits of some words from the bitmap to the buffer, which is zero there or
    /// names the wanted bits. Returns whether there were any.
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
        let (Some(bitmap), Some(buffer)) =
            (self.bitmap.get(words.clone()), self.buffer.get_mut(words))
        else {
            return;
        };

        for (bits, taken) in bitmap.iter().zip(buffer) {
            if *taken != 0 {
                bits.fetch_or(*taken);
                *taken = 0;
            }
        }
    }

    /// Calls `f` for some words: with the word of the bitmap and that of the buffer, for which it
    /// may return another. Returns whether any of those that it returned has a bit set. Leaves out
    /// groups in which nothing is wanted.
    #[inline(always)]
    fn update(
        &mut self,
        words: Range<usize>,
        f: impl Fn(&Atomic<u64>, u64) -> Option<u64>,
    ) -> bool {
        let all = self.wanted == Wanted::All;
        let (Some(bitmap), Some(buffer)) =
            (self.bitmap.get(words.clone()), self.buffer.get_mut(words))
        else {
            return false;
        };
        let whole = (buffer.len() / GROUP).wrapping_mul(GROUP);
        let (Some((bitmap, last_bits)), Some((buffer, last_places))) = (
            bitmap.split_at_checked(whole),
            buffer.split_at_mut_checked(whole),
        ) else {
            return false;
        };
        let mut any = update_each(last_bits, last_places, &f);

        for (bits, places) in bitmap
            .chunks_exact(GROUP)
            .zip(buffer.chunks_exact_mut(GROUP))
        {
            let wanted = if all {
                bits.iter().fold(0, |any, bits| any | bits.load(Relaxed))
            } else {
                places.iter().fold(0, |any, request| any | request)
            };

            if wanted != 0 {
                any |= update_each(bits, places, &f);
            }
        }
        any != 0
    }
}

/// Calls `f` for each of some words. Returns the bits that are set in any of those that it
/// returned.
#[inline(always)]
fn update_each(
    bitmap: &[Atomic<u64>],
    buffer: &mut [u64],
    f: impl Fn(&Atomic<u64>, u64) -> Option<u64>,
) -> u64 {
    let mut any = 0;

    for (bits, place) in bitmap.iter().zip(buffer) {
        if let Some(new) = f(bits, *place) {
            *place = new;
            any |= new;
        }
    }
    any
}

/// How many words come before the first group that has a bit set, or is not whole.
#[inline]
fn clean_groups(words: &[u64]) -> usize {
    words
        .chunks_exact(GROUP)
        .take_while(|group| group.iter().fold(0, |any, bits| any | bits) == 0)
        .count()
        .wrapping_mul(GROUP)
}
