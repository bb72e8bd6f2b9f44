// SPDX-License-Identifier: GPL-2.0

//! The dirty bitmap's arithmetic: which bits of which words stand for which guest frames.

use core::{
    num::NonZero,
    ops::Range, //
};

use super::addr::{
    Gfn,
    GfnRange, //
};

/// Pages in a word of the bitmap.
pub const WORD_PAGES: u64 = u64::BITS as u64;

/// Words that the pages of a table have, if the table starts with the first page of a word.
pub const TABLE_WORDS: usize = 8;

/// A part of a word of the bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WordPart {
    /// The index of the word.
    pub word: usize,
    /// The frame of its bit 0.
    pub first: Gfn,
    /// The bits meant.
    pub bits: u64,
}

impl WordPart {
    /// The frames of the bits, which are contiguous.
    #[inline]
    pub fn range(&self) -> GfnRange {
        let end = u64::BITS.wrapping_sub(self.bits.leading_zeros());

        GfnRange::new(
            self.first.add(self.bits.trailing_zeros().into()),
            self.first.add(end.into()),
        )
    }
}

/// The parts of the words that stand for the frames of `range`, in order, where bit 0 of word 0 is
/// frame `first`. A frame before `first` has no bit, and is left out.
#[inline]
pub fn parts(first: Gfn, range: GfnRange) -> impl Iterator<Item = WordPart> {
    let end = range.end.0.saturating_sub(first.0);
    let mut at = range.start.0.saturating_sub(first.0);

    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let word = at / WORD_PAGES;
        let low = at % WORD_PAGES;
        let left = end.wrapping_sub(word.wrapping_mul(WORD_PAGES));
        let mut bits = u64::MAX << low;

        if left < WORD_PAGES {
            bits &= !(u64::MAX << left);
        }
        at = word.wrapping_add(1).wrapping_mul(WORD_PAGES);
        Some(WordPart {
            word: word as usize,
            first: first.add(word.wrapping_mul(WORD_PAGES)),
            bits,
        })
    })
}

/// The words that have a bit of a frame of `range`, where bit 0 of word 0 is frame `first`.
#[inline]
pub fn words(first: Gfn, range: GfnRange) -> Range<usize> {
    let start = range.start.0.saturating_sub(first.0) / WORD_PAGES;
    let end = range.end.0.saturating_sub(first.0).div_ceil(WORD_PAGES);

    start as usize..end as usize
}

/// The bits of a word, of which bit 0 is frame `first`, that stand for frames of `range`.
#[inline(always)]
pub fn bits_of(first: Gfn, range: GfnRange) -> u64 {
    let low = range.start.0.saturating_sub(first.0);
    let end = range.end.0.saturating_sub(first.0);

    if low >= end || low >= WORD_PAGES {
        return 0;
    }
    let bits = u64::MAX << low;
    if end >= WORD_PAGES {
        bits
    } else {
        bits & !(u64::MAX << end)
    }
}

/// The numbers of the bits that are set in `bits`.
#[inline]
pub fn set_bits(mut bits: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        // Of a `NonZero` it takes one instruction.
        let bit = NonZero::new(bits)?.trailing_zeros();

        bits &= bits.wrapping_sub(1);
        Some(bit)
    })
}

/// The frames whose bits are set in `bits`, of which bit 0 is `first`.
#[inline]
pub fn frames(first: Gfn, bits: u64) -> impl Iterator<Item = Gfn> {
    set_bits(bits).map(move |bit| first.add(bit.into()))
}
