// SPDX-License-Identifier: GPL-2.0

//! What is asked of single bits, frames and ranges, against what the words say.

use kvm_mmu_rs::{
    formats,
    pure::{
        leaf,
        protect,
        spte,
        Gfn,
        GfnRange,
        Hpa,
        Level,
        LogProtected,
        Masks,
        Pfn,
        Protect,
        Role,
        Spte, //
    }, //
};
use proptest::prelude::*;

/// `SPTE_MMU_PRESENT_MASK`, `PT_WRITABLE_MASK` and `PT_PAGE_SIZE_MASK`.
const PRESENT: u64 = 1 << 11;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;

/// The values of bits, one by one.
fn each(word: u64) -> impl Iterator<Item = bool> {
    (0..64).map(move |n| word >> n & 1 == 1)
}

fn all_masks() -> [Masks; 3] {
    [formats::npt(), formats::ept(true), formats::ept(false)]
}

proptest! {
    #[test]
    fn sets_of_bits_are_sets(a: u64, b: u64, bits: u64) {
        let (one, other) = (Spte(a), Spte(b));
        let pairs = || each(a).zip(each(bits));

        prop_assert_eq!(one.has_any(bits), pairs().any(|(is, asked)| is && asked));
        prop_assert_eq!(one.has_all(bits), pairs().all(|(is, asked)| is || !asked));
        prop_assert!(one.has_all(a & bits) && one.has_all(0) && !one.has_any(0));
        prop_assert_eq!(one.raw(), a);
        for (n, (is, will)) in each(a).zip(each(b)).enumerate() {
            let asked = bits >> n & 1 == 1;

            prop_assert_eq!(one.without(bits).0 >> n & 1 == 1, is && !asked);
            prop_assert_eq!(one.with_from(other, bits).0 >> n & 1 == 1, is || (will && asked));
        }
    }

    #[test]
    fn an_offset_moves_the_frame_only(leaf: u64, pages in 0u64..512) {
        for masks in all_masks() {
            let first = Spte(leaf & !(511 << 12));
            let there = first.at_offset(pages << 12);

            prop_assert_eq!(there.pfn(&masks).0, first.pfn(&masks).0 + pages);
            prop_assert_eq!(there.0 & !(511 << 12), first.0);
        }
    }

    #[test]
    fn a_word_says_what_an_entry_is(word: u64) {
        for masks in all_masks() {
            let entry = Spte(word);

            prop_assert_eq!(entry.is_present(), word & PRESENT != 0);
            prop_assert_eq!(entry.is_writable(), word & WRITABLE != 0);
            prop_assert_eq!(entry.is_large(), word & HUGE != 0);
            prop_assert_eq!(entry.is_dirty(&masks), word & masks.dirty != 0);
            prop_assert_eq!(entry.is_accessed(&masks), word & masks.accessed != 0);
            for level in Level::LEAVES {
                let last = level == Level::Page4K || word & HUGE != 0;
                prop_assert_eq!(entry.is_leaf(level), last);
            }
        }
    }

    /// What only the log has write-protected: present, with A/D bits, MMU-writable, and without W.
    #[test]
    fn what_the_log_has_protected(word: u64, with: u8) {
        for masks in all_masks() {
            // Random words hardly ever have all of it.
            let mut word = word;
            for (n, mask) in [PRESENT, masks.mmu_writable].into_iter().enumerate() {
                word |= if with >> n & 1 == 1 { mask } else { 0 };
            }
            let tracks_dirty = masks.dirty != 0 && word >> 60 & 1 == 0;
            let is_protected = word & PRESENT != 0
                && word & masks.mmu_writable != 0
                && word & WRITABLE == 0;

            let protected = LogProtected::new(&masks);
            prop_assert_eq!(protected.matches(Spte(word)), tracks_dirty && is_protected);
            prop_assert_eq!(protected.writable(Spte(word)).0, match masks.dirty {
                0 => word,
                dirty => word | WRITABLE | dirty,
            });
        }
    }

    /// EPT saves R and X, bits 0, 2 and 10, in bits 52, 54 and 62.
    #[test]
    fn where_access_tracking_saves(word: u64) {
        let taken = [52, 54, 62].iter().any(|bit| word >> bit & 1 == 1);

        prop_assert_eq!(Spte(word).acc_track_bits_free(), !taken);
    }

    /// Bit 63 of an EPT entry suppresses #VE. Without it a misconfigured entry causes none either.
    #[test]
    fn where_a_ve_is_possible(word: u64) {
        let entry = Spte(word);
        let suppressed = word >> 63 == 1;
        let misconfigured = word & 7 == 6;

        prop_assert!(!entry.is_ve_possible(&formats::npt()));
        for has_ad in [false, true] {
            let is = entry.is_ve_possible(&formats::ept(has_ad));
            prop_assert_eq!(is, !suppressed && !misconfigured);
        }
    }

    #[test]
    fn frames_are_numbers(a in 0u64..1 << 52, b in 0u64..1 << 52) {
        let later = a.max(b);

        prop_assert_eq!(Gfn(a).raw(), a);
        prop_assert_eq!(Pfn(a).raw(), a);
        prop_assert_eq!(Hpa(a).raw(), a);
        prop_assert_eq!(Pfn(a).hpa(), Hpa(a * 4096));
        prop_assert_eq!(Gfn(a).saturating_since(Gfn(b)), later - b);
        prop_assert_eq!(Gfn(later).since(Gfn(b)), later - b);
        prop_assert_eq!(Gfn(a).add(b), Gfn(a + b));
    }

    #[test]
    fn ranges_are_half_open(start in 0u64..1 << 20, len in 0u64..600, gfn in 0u64..1 << 21) {
        let range = GfnRange::new(Gfn(start), Gfn(start + len));

        prop_assert_eq!(range.is_empty(), len == 0);
        prop_assert_eq!(range.pages(), len);
        prop_assert_eq!(range.frames().count() as u64, len);
        prop_assert!(range.frames().all(|gfn| range.contains(gfn)));
        prop_assert_eq!(range.contains(Gfn(gfn)), gfn >= start && gfn < start + len);
        prop_assert!(!range.contains(range.end));
        if len != 0 {
            prop_assert_eq!(range.last(), Gfn(start + len - 1));
        }
        prop_assert_eq!(GfnRange::single(Gfn(gfn)), GfnRange::new(Gfn(gfn), Gfn(gfn + 1)));
    }

    /// An alias is a bit above all frames, or 0.
    #[test]
    fn an_alias_is_added_to_frames_below_it(shift in 20u32..40, gfn in 0u64..1 << 41) {
        let alias = 1 << shift;

        prop_assert_eq!(Gfn(gfn).is_below_alias(alias), gfn < alias);
        prop_assert!(Gfn(gfn).is_below_alias(0));
        prop_assert_eq!(Gfn(gfn).with_alias(0), Gfn(gfn));
        prop_assert_eq!(Gfn(gfn % alias).with_alias(alias), Gfn(gfn % alias + alias));
        // Twice is once.
        prop_assert_eq!(Gfn(gfn % alias + alias).with_alias(alias), Gfn(gfn % alias + alias));
    }
}

#[test]
fn a_range_without_frames_is_empty() {
    assert!(GfnRange::new(Gfn(5), Gfn(5)).is_empty());
    assert!(GfnRange::new(Gfn(5), Gfn(4)).is_empty());
    assert!(!GfnRange::single(Gfn(5)).is_empty());
}

#[test]
fn an_alias_begins_where_the_frames_end() {
    assert!(!Gfn(1 << 30).is_below_alias(1 << 30));
    assert!(Gfn((1 << 30) - 1).is_below_alias(1 << 30));
}

#[test]
fn more_flags_of_a_role_are_single_bits() {
    for bit in 0..32 {
        let role = Role(1 << bit);

        assert_eq!(role.raw(), 1 << bit);
        assert_eq!(role.direct(), bit == 7);
        assert_eq!(role.passthrough(), bit == 18);
        // What is above is all for address spaces.
        assert_eq!(role.as_id(), u16::from(bit >= 24));
    }
}

proptest! {
    /// To set a flag, or to grant a right, that is there already changes nothing.
    #[test]
    fn what_is_set_stays_set(word: u32, leaf: u64) {
        let role = Role(word);

        prop_assert!(role.as_invalid().invalid() && role.as_mirror().mirror());
        prop_assert_eq!(role.as_invalid().as_invalid(), role.as_invalid());
        prop_assert_eq!(role.as_mirror().as_mirror(), role.as_mirror());
        for masks in all_masks() {
            let writable = LogProtected::new(&masks).writable(Spte(leaf));
            let unprotected = leaf::unprotected(Spte(leaf), &masks);

            prop_assert_eq!(LogProtected::new(&masks).writable(writable), writable);
            prop_assert_eq!(leaf::unprotected(unprotected, &masks), unprotected);
            prop_assert_eq!(unprotected.0 & !leaf & !(WRITABLE | masks.dirty), 0);
        }
    }
}

proptest! {
    /// A protected leaf has lost W, or D where the CPU logs what sets it; and, if writes are
    /// tracked, what a fast page fault takes for the permission to set W again.
    #[test]
    fn protection_takes_away_one_right(leaf: u64, ad_type in 0u64..3) {
        for masks in all_masks() {
            let leaf = leaf & !(3 << 60) | ad_type << 60;
            let protected = |how| protect::protected(Spte(leaf), how, &masks).0;

            prop_assert_eq!(protected(Protect::Log), leaf & !WRITABLE);
            prop_assert_eq!(protected(Protect::Tracking), leaf & !WRITABLE & !masks.mmu_writable);
            // The other types have no D bit, or one that does not count.
            let lost = if ad_type == 0 { masks.dirty } else { WRITABLE };
            prop_assert_eq!(protected(Protect::ClearDirty), leaf & !lost);
        }
    }
}

#[test]
fn the_log_of_the_cpu_decides_how_to_protect() {
    assert!(matches!(Protect::for_log(true), Protect::ClearDirty));
    assert!(matches!(Protect::for_log(false), Protect::Log));
}

#[test]
fn a_frozen_entry_is_one_value() {
    assert!(Spte::FROZEN.is_frozen() && !Spte::NONPRESENT.is_frozen());
    for bit in 0..64 {
        assert!(!Spte(Spte::FROZEN.0 ^ 1 << bit).is_frozen());
    }
}

#[test]
fn rights_are_those_of_c() {
    let rights = [
        leaf::ACC_READ,
        leaf::ACC_WRITE,
        leaf::ACC_USER,
        leaf::ACC_EXEC,
    ];

    assert_eq!(rights, [1, 2, 4, 8]);
    assert_eq!(
        [spte::MMU_PRESENT, spte::WRITABLE, spte::PAGE_SIZE],
        [PRESENT, WRITABLE, HUGE]
    );
}
