// SPDX-License-Identifier: GPL-2.0

//! Levels, frames, indices, ranges and roles, against the numbers of the hardware and of KVM.

use kvm_mmu_rs::{
    formats,
    pure::{
        addr::{
            ENTRIES,
            PAGE_SHIFT, //
        },
        leaf,
        Gfn,
        GfnRange,
        Hpa,
        Index,
        Level,
        Pfn,
        Role, //
    }, //
};
use proptest::prelude::*;

/// Each level, C's number for it, and the bytes that one of its entries covers.
const LEVELS: [(Level, i32, u64); 5] = [
    (Level::Page4K, 1, 4 << 10),
    (Level::Page2M, 2, 2 << 20),
    (Level::Page1G, 3, 1 << 30),
    (Level::Page512G, 4, 512 << 30),
    (Level::Page256T, 5, 256 << 40),
];

#[test]
fn levels_have_the_sizes_of_the_hardware() {
    assert_eq!(ENTRIES, 512);
    for (i, (level, raw, bytes)) in LEVELS.into_iter().enumerate() {
        assert_eq!(level.raw(), raw);
        assert_eq!(Level::from_raw(raw as u32), Some(level));
        assert_eq!(level.pages() << PAGE_SHIFT, bytes);
        assert_eq!(1 << level.pages_shift(), level.pages());
        assert_eq!(level.up(), LEVELS.get(i + 1).map(|above| above.0));
        assert_eq!(level.down(), i.checked_sub(1).map(|below| LEVELS[below].0));
    }
    assert_eq!(Level::MAX_LEAF, Level::Page1G);
}

#[test]
fn indices_end_at_511() {
    assert_eq!(Index::new(511).map(Index::get), Some(511));
    assert_eq!(Index::new(512), None);
    assert_eq!(Index::FIRST.get(), 0);
    let all: Vec<_> = Index::all().collect();
    assert_eq!(all.len(), 512);
    assert!(all.iter().enumerate().all(|(i, index)| index.get() == i));
    assert!(all
        .iter()
        .all(|index| index.is_last() == (index.get() == 511)));
}

proptest! {
    #[test]
    fn an_index_is_nine_bits_of_the_address(address in 0u64..1 << 57) {
        let gfn = Gfn(address >> 12);

        for (level, _, bytes) in LEVELS {
            prop_assert_eq!(Index::of(gfn, level).get() as u64, address / bytes % 512);
            prop_assert_eq!(gfn.round_down(level).0 << 12, address / bytes * bytes);
            prop_assert_eq!(gfn.is_aligned(level), gfn.0 << 12 == address / bytes * bytes);
            prop_assert_eq!(gfn.offset_in(level) << 12, (address % bytes) & !0xfff);
            prop_assert_eq!(gfn.page_number(level.pages_shift()), address / bytes);
            prop_assert_eq!(gfn.since(gfn.round_down(level)), gfn.offset_in(level));
        }
        prop_assert_eq!(gfn.add(3).0, gfn.0 + 3);
        prop_assert_eq!(Pfn(gfn.0).hpa(), Hpa(address & !4095));
    }

    #[test]
    fn a_range_holds_its_start_and_not_its_end(start in 1u64..1 << 40, len in 1u64..1000) {
        let range = GfnRange::new(Gfn(start), Gfn(start + len));

        prop_assert!(!range.contains(Gfn(start - 1)));
        prop_assert!(range.contains(Gfn(start)));
        prop_assert!(range.contains(Gfn(start + len / 2)));
        prop_assert!(range.contains(Gfn(start + len - 1)));
        prop_assert!(!range.contains(Gfn(start + len)));
        prop_assert_eq!(GfnRange::single(Gfn(start)), GfnRange::new(Gfn(start), Gfn(start + 1)));
    }

    /// A flag is its bit and no other.
    #[test]
    fn role_flags_look_at_one_bit(word: u32) {
        for (flag, bit) in [
            (Role::invalid as fn(Role) -> bool, 12),
            (Role::ad_disabled, 16),
            (Role::guest_mode, 17),
            (Role::mirror, 19),
        ] {
            prop_assert_eq!(flag(Role(word)), word >> bit & 1 == 1, "bit {}", bit);
        }
        prop_assert_eq!(Role(word).access(), word >> 8 & 15);
        prop_assert_eq!(Role(word).level().map_or(0, |level| level.raw()), match word & 15 {
            raw @ 1..=5 => raw as i32,
            _ => 0,
        });
        prop_assert_eq!(Role(word & 0xff_ffff).as_id(), 0);
        prop_assert_eq!(Role(word | 1 << 24).as_id(), 1);
    }

    /// That the C compiler puts the fields there is for KUnit to see; here, that changing one of
    /// them disturbs no other.
    #[test]
    fn role_fields_are_independent(word: u32) {
        let role = Role(word);

        for (level, ..) in LEVELS {
            let moved = role.at_level(level);
            prop_assert_eq!(moved.level(), Some(level));
            prop_assert_eq!(moved.0 & !0xf, word & !0xf);
        }
        prop_assert!(role.access() < 16);
        for (changed, is_set, field) in [
            (role.as_mirror(), Role::mirror as fn(Role) -> bool, "mirror"),
            (role.as_invalid(), Role::invalid, "invalid"),
        ] {
            prop_assert!(is_set(changed), "{}", field);
            prop_assert!((changed.0 ^ word).count_ones() <= 1, "{}", field);
            prop_assert_eq!(changed.0 & word, word, "{}", field);
        }
    }
}

#[test]
fn a_table_entry_lets_through_what_the_leaves_decide() {
    let address = 0x1_2345_6000;

    // Present, W and U; A, if it has A/D bits.
    let npt = formats::npt();
    assert_eq!(leaf::table(Hpa(address), false, &npt).0, address | 0x827);
    assert_eq!(
        leaf::table(Hpa(address), true, &npt).0,
        address | 0x807 | 1 << 60
    );
    let encrypting = kvm_mmu_rs::pure::Masks {
        me_value: 1 << 51,
        ..npt
    };
    assert_eq!(
        leaf::table(Hpa(address), false, &encrypting).0,
        address | 0x827 | 1 << 51
    );

    // R, W, X and X for user mode; A; no #VE.
    let ept = formats::ept(true);
    assert_eq!(
        leaf::table(Hpa(address), false, &ept).0,
        address | 1 << 63 | 0xd07
    );
}
