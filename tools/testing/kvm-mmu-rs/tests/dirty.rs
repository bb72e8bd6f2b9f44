// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of the dirty bitmap against a model that knows single bits only.

use std::collections::BTreeSet;

use kvm_mmu_rs::pure::{
    dirty::{frames, parts, WORD_PAGES},
    Gfn, GfnRange, Index, Level,
};
use proptest::prelude::*;

proptest! {
    /// Every frame of the range has exactly one bit, at the place where a bitmap has it.
    #[test]
    fn parts_cover_the_range(first in 0u64..1 << 52, start in -70i64..2000, len in 0u64..2000) {
        let start = first.saturating_add_signed(start);
        let range = GfnRange::new(Gfn(start), Gfn(start + len));
        let mut found = Vec::new();

        for part in parts(Gfn(first), range) {
            prop_assert_eq!(part.first, Gfn(first + part.word as u64 * WORD_PAGES));
            prop_assert!(part.bits != 0);
            for gfn in frames(part.first, part.bits) {
                found.push((part.word, gfn.0));
            }
        }

        let model: Vec<_> = (start.max(first)..(start + len).max(first))
            .map(|gfn| (((gfn - first) / WORD_PAGES) as usize, gfn))
            .collect();
        prop_assert_eq!(found, model);
    }

    /// A range that ends before it starts, as an empty intersection does, has no parts.
    #[test]
    fn an_empty_range_has_no_parts(first in 0u64..1 << 40, start: u32, end: u32) {
        prop_assume!(end <= start);
        let range = GfnRange::new(Gfn(first + u64::from(start)), Gfn(first + u64::from(end)));

        prop_assert_eq!(parts(Gfn(first), range).count(), 0);
    }

    #[test]
    fn frames_are_the_set_bits(first: u64, bits: u64) {
        let model: Vec<_> = (0..64)
            .filter(|n| bits >> n & 1 != 0)
            .map(|n| Gfn(first.wrapping_add(n)))
            .collect();

        prop_assert_eq!(frames(Gfn(first), bits).collect::<Vec<_>>(), model);
    }

    #[test]
    fn intersection_holds_what_both_hold(a in 0u64..100, b in 0u64..100, c in 0u64..100, d in 0u64..100) {
        let (x, y) = (GfnRange::new(Gfn(a), Gfn(b)), GfnRange::new(Gfn(c), Gfn(d)));
        let both = x.intersection(y);

        for gfn in (0..100).map(Gfn) {
            prop_assert_eq!(both.contains(gfn), x.contains(gfn) && y.contains(gfn));
        }
    }
}

/// The words of a table of 4 KiB pages name each of its entries once.
#[test]
fn a_table_has_eight_words() {
    let range = GfnRange::new(Gfn(512), Gfn(1024));
    let words: Vec<_> = parts(Gfn(0), range).collect();
    let entries: BTreeSet<_> = words
        .iter()
        .flat_map(|part| frames(part.first, part.bits))
        .map(|gfn| Index::of(gfn, Level::Page4K))
        .collect();

    assert_eq!(words.len(), 8);
    assert_eq!(entries.len(), 512);
}

/// The groups of indices are all indices, in order.
#[test]
fn groups_are_all_indices() {
    assert!(Index::groups().flatten().eq(Index::all()));
}
