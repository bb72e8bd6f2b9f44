// SPDX-License-Identifier: GPL-2.0

//! `Transition::classify` against a model that is written the other way round: it asks one question
//! of the two values at a time, and knows nothing of `Entry`.

use kvm_mmu_rs::{
    formats,
    pure::{
        spte,
        transition::{
            Effects,
            Transition, //
        },
        Hpa,
        Level,
        Masks,
        Spte, //
    }, //
};
use proptest::prelude::*;

fn present(v: Spte) -> bool {
    v.0 >> 11 & 1 == 1
}

fn leaf(v: Spte, level: Level) -> bool {
    present(v) && (level == Level::Page4K || v.0 >> 7 & 1 == 1)
}

fn frame(v: Spte) -> u64 {
    v.0 << 12 >> 24
}

fn model(old: Spte, new: Spte, level: Level, mmio: u64, masks: &Masks) -> Transition {
    if leaf(old, level) && leaf(new, level) && frame(old) != frame(new) {
        return Transition::Corrupt;
    }
    if old == new {
        return Transition::Unchanged;
    }
    if !present(old) && !present(new) {
        let is_mmio = |v: Spte| masks.mmio_caching && v.0 & masks.mmio_mask == mmio;
        return Transition::NonPresent {
            expected: is_mmio(old) || is_mmio(new) || new.0 == 1 << 63 | 0x1a0,
        };
    }

    let was_table = present(old) && !leaf(old, level);
    let is_table = present(new) && !leaf(new, level);
    let moved = was_table && is_table && frame(old) != frame(new);
    let writable = new.0 & spte::WRITABLE != 0;
    let mmu = new.0 & masks.mmu_writable != 0;
    let host = new.0 & masks.host_writable != 0;

    Transition::Present(Effects {
        leaves: leaf(new, level) as i8 - leaf(old, level) as i8,
        removed: (was_table && (!is_table || moved)).then_some(Hpa(frame(old) << 12)),
        table_moved: moved,
        bad_write_state: leaf(new, level) && ((mmu && !host) || (writable && !mmu)),
        written: level == Level::Page4K
            && present(old)
            && !present(new)
            && old.0 & masks.dirty != 0,
    })
}

/// Few frames and many special values, so that all combinations occur.
fn value(masks: Masks) -> impl Strategy<Value = Spte> {
    let mmio = formats::mmio_value(&masks);
    let bits = [
        spte::MMU_PRESENT,
        spte::PAGE_SIZE,
        spte::WRITABLE,
        masks.mmu_writable,
        masks.host_writable,
        masks.dirty,
    ];

    prop_oneof![
        1 => Just(Spte::NONPRESENT),
        1 => Just(Spte::FROZEN),
        1 => (0u64..4).prop_map(move |gfn| Spte(mmio | gfn << 12)),
        6 => (any::<u8>(), 1u64..3).prop_map(move |(choice, pfn)| {
            let chosen = bits
                .iter()
                .enumerate()
                .filter(|(i, _)| choice >> i & 1 == 1)
                .fold(0, |all, (_, bit)| all | bit);
            Spte(chosen | masks.present | pfn << 12)
        }),
    ]
}

fn case() -> impl Strategy<Value = (Masks, Spte, Spte, Level)> {
    let masks = prop_oneof![
        Just(formats::npt()),
        Just(formats::ept(true)),
        Just(formats::ept(false))
    ];
    let level = prop_oneof![
        Just(Level::Page4K),
        Just(Level::Page2M),
        Just(Level::Page1G),
        Just(Level::Page512G)
    ];

    (masks, level)
        .prop_flat_map(|(masks, level)| (Just(masks), value(masks), value(masks), Just(level)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn agrees_with_the_model((masks, old, new, level) in case()) {
        let mmio = formats::mmio_value(&masks);

        prop_assert_eq!(
            Transition::classify(old, new, level, mmio, &masks),
            model(old, new, level, mmio, &masks)
        );
    }

    /// To go somewhere and back leaves the statistics as they were.
    #[test]
    fn leaves_balance((masks, a, b, level) in case()) {
        let mmio = formats::mmio_value(&masks);
        let leaves = |from, to| match Transition::classify(from, to, level, mmio, &masks) {
            Transition::Present(effects) => effects.leaves,
            _ => 0,
        };

        prop_assert_eq!(leaves(a, b), -leaves(b, a));
    }
}
