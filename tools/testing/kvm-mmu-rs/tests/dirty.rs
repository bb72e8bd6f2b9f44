// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of the dirty bitmap against a model that knows single bits only, and the summary
//! of D bits.

use std::collections::BTreeSet;

use kvm_mmu_rs::{
    formats,
    pure::{
        dirty::{
            bits_of,
            frames,
            parts,
            words,
            WORD_PAGES, //
        },
        leaf,
        summary::Summary,
        Entry,
        Gfn,
        GfnRange,
        Hpa,
        Index,
        Level,
        Spte, //
    }, //
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

    /// The words of a range, and what each has of it, are the parts.
    #[test]
    fn words_and_bits_are_the_parts(
        first in 0u64..1 << 52, start in -70i64..2000, len in 0u64..2000,
    ) {
        let start = first.saturating_add_signed(start);
        let range = GfnRange::new(Gfn(start), Gfn(start + len));
        let found: Vec<_> = words(Gfn(first), range)
            .map(|word| (word, bits_of(Gfn(first + word as u64 * WORD_PAGES), range)))
            .filter(|(_, bits)| *bits != 0)
            .collect();
        let model: Vec<_> = parts(Gfn(first), range).map(|part| (part.word, part.bits)).collect();

        prop_assert_eq!(found, model);
    }

    /// Also if the range begins after the word, or ends before it.
    #[test]
    fn a_word_has_the_bits_of_its_frames(
        first in 1u64 << 10..1 << 52, start in -200i64..200, len in 0u64..200,
    ) {
        let start = first.saturating_add_signed(start);
        let range = GfnRange::new(Gfn(start), Gfn(start + len));
        let bits = bits_of(Gfn(first), range);

        for n in 0..WORD_PAGES {
            prop_assert_eq!(bits >> n & 1 == 1, range.contains(Gfn(first + n)));
        }
    }

    /// The indices of the pages of a range, up to the end of the table of the first.
    #[test]
    fn pages_have_their_indices(start in 0u64..1 << 40, len in 0u64..1200) {
        let range = GfnRange::new(Gfn(start), Gfn(start + len));
        let table = Gfn(start).round_down(Level::Page2M);
        let model: Vec<_> = (start..start + len)
            .map(Gfn)
            .filter(|gfn| gfn.round_down(Level::Page2M) == table)
            .map(|gfn| Index::of(gfn, Level::Page4K).get())
            .collect();

        prop_assert_eq!(Index::of_pages(range).collect::<Vec<_>>(), model);
    }

    /// The range of a part has the frames of its bits, and `of_pages` gives their entries.
    #[test]
    fn a_part_is_a_range(first in 0u64..1 << 52, start in 0u64..2000, len in 1u64..2000) {
        let range = GfnRange::new(Gfn(first + start), Gfn(first + start + len));

        for part in parts(Gfn(first), range) {
            let gfns: Vec<_> = frames(part.first, part.bits).collect();
            let within = part.range();

            prop_assert_eq!(within.start, gfns[0]);
            prop_assert_eq!(within.pages(), gfns.len() as u64);
            let model: Vec<_> = gfns
                .iter()
                .take_while(|gfn| gfn.0 / 512 == gfns[0].0 / 512)
                .map(|gfn| (gfn.0 % 512) as usize)
                .collect();
            prop_assert_eq!(
                Index::of_pages(within).collect::<Vec<_>>(),
                model
            );
        }
    }

    /// A table starts open, drains and is closed, and is open again once the CPU has set A. The
    /// entry points to the same table all the time.
    #[test]
    fn summary_states(table in 1u64..1 << 30, ept: bool) {
        let masks = if ept { formats::ept(true) } else { formats::npt() };
        let fresh = leaf::table(Hpa(table << 12), false, &masks);
        let draining = Summary::draining(fresh, &masks);
        let closed = Summary::closed(draining, &masks);
        let touched = |entry: Spte| Spte(entry.0 | masks.accessed);

        prop_assert_eq!(Summary::of(fresh, &masks), Summary::Open);
        prop_assert_eq!(Summary::of(draining, &masks), Summary::Draining);
        prop_assert_eq!(Summary::of(closed, &masks), Summary::Closed);
        prop_assert_eq!(Summary::of(touched(draining), &masks), Summary::Open);
        prop_assert_eq!(Summary::of(touched(closed), &masks), Summary::Open);
        // Once it was closed it has to drain again.
        let again = Summary::draining(touched(closed), &masks);
        prop_assert_eq!(Summary::of(again, &masks), Summary::Draining);
        for entry in [fresh, draining, closed, touched(closed), again] {
            prop_assert_eq!(
                entry.decode(Level::Page2M, &masks),
                fresh.decode(Level::Page2M, &masks)
            );
            prop_assert!(matches!(entry.decode(Level::Page2M, &masks), Entry::Table(_)));
        }
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
    fn intersection_holds_what_both_hold(
        a in 0u64..100, b in 0u64..100, c in 0u64..100, d in 0u64..100,
    ) {
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
