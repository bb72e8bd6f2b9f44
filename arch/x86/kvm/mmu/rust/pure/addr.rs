// SPDX-License-Identifier: GPL-2.0

//! Addresses, levels and ranges.

use core::ops::Range;

/// log2 of the bytes in a base page.
pub const PAGE_SHIFT: u32 = 12;

/// log2 of the entries in a page table. The simulation tries every schedule with smaller ones.
pub const LEVEL_BITS: u32 = if cfg!(CONFIG_KVM_RUST_MMU_SMALL_TABLES) {
    3
} else {
    9
};

/// Entries in a page table.
pub const ENTRIES: usize = 1 << LEVEL_BITS;

/// A guest frame number: a guest physical address in units of 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Gfn(pub u64);

/// A host page frame number: a host physical address in units of 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Pfn(pub u64);

/// A host physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Hpa(pub u64);

impl Gfn {
    /// C's number for the frame.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Rounds down to the first frame of the page of `level` that holds this frame.
    #[inline]
    pub const fn round_down(self, level: Level) -> Self {
        Gfn(self.0 & level.pages().wrapping_neg())
    }

    /// The frame `pages` after this one.
    #[inline]
    pub const fn add(self, pages: u64) -> Self {
        Gfn(self.0.wrapping_add(pages))
    }

    /// How many frames come between `first` and this one, which is not before it.
    #[inline]
    pub const fn since(self, first: Gfn) -> u64 {
        self.0.wrapping_sub(first.0)
    }

    /// As [`Gfn::since`], but 0 if this frame is before `first`.
    #[inline]
    pub const fn saturating_since(self, first: Gfn) -> u64 {
        self.0.saturating_sub(first.0)
    }

    /// The offset of this frame in the page of `level` that holds it, in 4 KiB pages.
    #[inline]
    pub const fn offset_in(self, level: Level) -> u64 {
        self.0 & level.pages().wrapping_sub(1)
    }

    /// The number of the page of `1 << shift` frames that holds this frame, counted from frame 0;
    /// see [`Level::pages_shift`].
    #[inline]
    pub const fn page_number(self, shift: u32) -> u64 {
        self.0 >> shift
    }

    /// Whether `alias`, the bits that a tree's root adds to each frame before indexing (0 for
    /// none), can be added to this frame.
    #[inline]
    pub const fn is_below_alias(self, alias: u64) -> bool {
        alias == 0 || self.0 < alias
    }

    /// This frame under `alias`, to index with.
    #[inline]
    pub const fn with_alias(self, alias: u64) -> Self {
        Gfn(self.0 | alias)
    }

    /// Whether this is the first frame of a page of `level`.
    #[inline]
    pub const fn is_aligned(self, level: Level) -> bool {
        self.offset_in(level) == 0
    }
}

impl Pfn {
    /// C's number for the frame.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The byte address of the frame.
    #[inline]
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }
}

impl Hpa {
    /// The address as a plain number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// A half-open range of guest frames, `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GfnRange {
    /// The first frame of the range.
    pub start: Gfn,
    /// The first frame after the range.
    pub end: Gfn,
}

impl GfnRange {
    /// The range `[start, end)`.
    #[inline]
    pub const fn new(start: Gfn, end: Gfn) -> Self {
        GfnRange { start, end }
    }

    /// The range that holds `gfn` only.
    #[inline]
    pub const fn single(gfn: Gfn) -> Self {
        GfnRange::new(gfn, gfn.add(1))
    }

    /// The number of frames in the range, which does not end before it starts.
    #[inline]
    pub const fn pages(&self) -> u64 {
        self.end.0.wrapping_sub(self.start.0)
    }

    /// The last frame of the range, which is not empty.
    #[inline]
    pub const fn last(&self) -> Gfn {
        Gfn(self.end.0.wrapping_sub(1))
    }

    /// Whether no frame lies in the range.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.start.0 >= self.end.0
    }

    /// Whether `gfn` lies in the range.
    #[inline]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end.0
    }

    /// The frames of the range, in order.
    #[inline]
    pub fn frames(&self) -> impl Iterator<Item = Gfn> {
        (self.start.0..self.end.0).map(Gfn)
    }

    /// The frames that are in both ranges; a range that ends before it starts if there is none.
    #[inline]
    pub fn intersection(&self, other: GfnRange) -> GfnRange {
        GfnRange::new(self.start.max(other.start), self.end.min(other.end))
    }
}

/// The level of a page table, equally the size of the page that one of its leaf entries maps.
///
/// Corresponds to `enum pg_level`; the values are the ones that C uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// A table of 4 KiB pages, the last level.
    Page4K = 1,
    /// A table whose leaves map 2 MiB.
    Page2M = 2,
    /// A table whose leaves map 1 GiB.
    Page1G = 3,
    /// A table whose entries each cover 512 GiB; never a leaf. The root of 4-level paging.
    Page512G = 4,
    /// A table whose entries each cover 256 TiB; never a leaf. The root of 5-level paging.
    Page256T = 5,
}

impl Level {
    /// The highest level that can hold leaves, `KVM_MAX_HUGEPAGE_LEVEL`.
    pub const MAX_LEAF: Level = Level::Page1G;

    /// The levels that can hold leaves, the lowest first.
    pub const LEAVES: [Level; 3] = [Level::Page4K, Level::Page2M, Level::Page1G];

    /// Converts C's number for a level; `None` if there is no such level.
    #[inline]
    pub const fn from_raw(raw: u32) -> Option<Level> {
        match raw {
            1 => Some(Level::Page4K),
            2 => Some(Level::Page2M),
            3 => Some(Level::Page1G),
            4 => Some(Level::Page512G),
            5 => Some(Level::Page256T),
            _ => None,
        }
    }

    /// C's number for this level.
    #[inline]
    pub const fn raw(self) -> i32 {
        self as i32
    }

    /// The level below, or `None` at 4 KiB.
    #[inline]
    pub const fn down(self) -> Option<Level> {
        Level::from_raw((self as u32).wrapping_sub(1))
    }

    /// The level above, or `None` at the highest.
    #[inline]
    pub const fn up(self) -> Option<Level> {
        Level::from_raw((self as u32).wrapping_add(1))
    }

    /// log2 of [`Level::pages`].
    #[inline]
    pub const fn pages_shift(self) -> u32 {
        (self as u32).wrapping_sub(1).wrapping_mul(LEVEL_BITS)
    }

    /// How many 4 KiB pages one entry of a table of this level covers.
    #[inline]
    pub const fn pages(self) -> u64 {
        1u64.wrapping_shl(self.pages_shift())
    }

    /// The guest frames that a root of this level can map: what its entries cover, counted from
    /// frame 0.
    ///
    /// Memslots are bounded by the host's MAXPHYADDR, which may be larger: 52 bits, where four
    /// levels translate 48. [`Index::of`] knows of nine bits a level only, so a walk asks for this
    /// first.
    #[inline]
    pub const fn reach(self) -> GfnRange {
        GfnRange::new(Gfn(0), Gfn(self.pages().wrapping_shl(LEVEL_BITS)))
    }
}

/// The index of an entry in its page table.
///
/// # Invariants
///
/// The value is less than [`ENTRIES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Index(u16);

impl Index {
    /// The first entry.
    pub const FIRST: Index = Index(0);

    /// The entry of a table of `level` that covers `gfn`.
    #[inline]
    pub const fn of(gfn: Gfn, level: Level) -> Index {
        // INVARIANT: Masked to the bits of an index.
        Index((gfn.0.wrapping_shr(level.pages_shift()) & (ENTRIES as u64 - 1)) as u16)
    }

    /// Converts a plain number; `None` if it is no index.
    #[inline]
    pub const fn new(index: usize) -> Option<Index> {
        if index < ENTRIES {
            // INVARIANT: Just checked.
            Some(Index(index as u16))
        } else {
            None
        }
    }

    /// The plain number, less than [`ENTRIES`].
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// Whether this is the last entry of the table.
    #[inline]
    pub const fn is_last(self) -> bool {
        self.0 as usize == ENTRIES - 1
    }

    /// All indices of a table, in order and in groups of eight, for a loop that should be unrolled.
    #[inline]
    pub fn groups() -> impl Iterator<Item = [Index; 8]> {
        // INVARIANT: The groups of eight end at `ENTRIES`.
        (0..ENTRIES as u16 / 8)
            .map(|group| core::array::from_fn(|n| Index(group.wrapping_mul(8) | n as u16)))
    }

    /// The indices, as plain numbers, that the frames of `range` have in a table of 4 KiB pages.
    /// They end with the table of the first frame, so none is [`ENTRIES`] or more.
    #[inline(always)]
    pub fn of_pages(range: GfnRange) -> Range<usize> {
        let start = Index::of(range.start, Level::Page4K).get();

        if range.is_empty() {
            return start..start;
        }
        let room = ENTRIES.wrapping_sub(start);

        start..start.wrapping_add(room.min(range.pages() as usize))
    }

    /// All indices of a table, in order.
    #[inline]
    pub fn all() -> impl Iterator<Item = Index> {
        // INVARIANT: The range ends before `ENTRIES`.
        (0..ENTRIES as u16).map(Index)
    }
}
