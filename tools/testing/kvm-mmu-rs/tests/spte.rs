// SPDX-License-Identifier: GPL-2.0

//! Building leaves and taking them apart.

use kvm_mmu_rs::{
    formats,
    pure::{
        leaf::{
            self,
            AdMode,
            LeafSpec, //
        },
        spte,
        Entry,
        Gfn,
        Hpa,
        Index,
        Level,
        LogProtected,
        Masks,
        Pfn,
        Protect,
        Role,
        Settled,
        Spte,
        WriteBits, //
    }, //
};
use proptest::prelude::*;

/// A format together with an A/D mode that occurs in it.
fn format() -> impl Strategy<Value = (Masks, AdMode)> {
    prop_oneof![
        Just((formats::npt(), AdMode::Enabled)),
        Just((formats::ept(true), AdMode::Enabled)),
        Just((formats::ept(true), AdMode::WriteProtect)),
        Just((formats::ept(true), AdMode::Disabled)),
        Just((formats::ept(false), AdMode::Disabled)),
    ]
}

/// What is settled, for the leaves of a page with this A/D mode.
fn settled(bit: WriteBits, spec: &LeafSpec, masks: &Masks) -> Settled {
    let disabled = u32::from(spec.ad == AdMode::Disabled);

    Settled::new(bit, Role(disabled << 16), masks)
}

fn leaf_level() -> impl Strategy<Value = Level> {
    prop_oneof![
        Just(Level::Page4K),
        Just(Level::Page2M),
        Just(Level::Page1G)
    ]
}

prop_compose! {
    fn spec()(
        level in leaf_level(),
        pfn in 0u64..1 << 38,
        access in 0u32..16,
        host_writable: bool,
        prefetch: bool,
        nx_huge_pages: bool,
        encrypted: bool,
        memory_type in 0u64..16,
        (masks, ad) in format(),
    ) -> (LeafSpec, Masks) {
        // EPT has the memory type in the entry, NPT encryption.
        let ept = masks.nx == 0;
        let masks = Masks {
            me_value: if ept { 0 } else { 1 << 51 },
            ..masks
        };
        (
            LeafSpec {
                level,
                pfn: Pfn(pfn & !(level.pages() - 1)),
                // Only EPT can withhold R from what may be executed.
                access: if ept && access & leaf::ACC_WRITE == 0 && access & leaf::ACC_EXEC != 0 {
                    access
                } else {
                    access | leaf::ACC_READ
                },
                host_writable,
                ad,
                prefetch,
                nx_huge_pages,
                memory_type: if ept { memory_type << 3 } else { 0 },
                encrypted: encrypted && !ept,
            },
            masks,
        )
    }
}

fn build(spec: &LeafSpec, masks: &Masks) -> Spte {
    let (protected, may_write) = spec.protected(masks);
    spec.finish(protected, may_write, masks)
}

proptest! {
    #[test]
    fn a_leaf_is_that_of_frame_0_with_its_frame_filled_in((spec, masks) in spec()) {
        let common = LeafSpec {
            pfn: Pfn(0),
            memory_type: 0,
            encrypted: false,
            ..spec
        };

        prop_assert_eq!(
            leaf::for_frame(
                build(&common, &masks),
                spec.pfn,
                spec.memory_type,
                spec.encrypted,
                &masks,
            ),
            build(&spec, &masks)
        );
    }

    #[test]
    fn a_leaf_decodes_to_what_was_asked((spec, masks) in spec()) {
        let spte = build(&spec, &masks);

        // The encryption bit is one of the address bits.
        let frame = Masks { base_addr: masks.base_addr & !masks.me_value, ..masks };
        prop_assert_eq!(spte.decode(spec.level, &frame), Entry::Leaf(spec.pfn));
        prop_assert_eq!(spte.0 & masks.me_value != 0, spec.encrypted);
        if masks.nx == 0 {
            prop_assert_eq!(spte.0 & 0x78, spec.memory_type);
        }
        prop_assert_eq!(spte.is_large(), spec.level != Level::Page4K);
        prop_assert!(spte.write_state_is_valid(&masks));
        prop_assert_eq!(spte.ad_enabled(), spec.ad != AdMode::Disabled);
        prop_assert_eq!(spte.ad_need_write_protect(), spec.ad != AdMode::Enabled);
        prop_assert_eq!(spte.0 & masks.host_writable != 0, spec.host_writable);
    }

    #[test]
    fn a_leaf_grants_no_more_than_was_asked((spec, masks) in spec()) {
        let spte = build(&spec, &masks);
        let granted = leaf::granted_access(spte, &masks);

        prop_assert_eq!(granted & !spec.access, 0);
        if !spec.host_writable {
            prop_assert_eq!(granted & leaf::ACC_WRITE, 0);
        }
        if spec.nx_huge_pages && spec.level != Level::Page4K {
            prop_assert_eq!(granted & leaf::ACC_EXEC, 0);
        }
    }

    #[test]
    fn a_touched_leaf_grants_all_that_was_asked((mut spec, masks) in spec()) {
        spec.prefetch = false;
        spec.nx_huge_pages = false;
        spec.host_writable = true;

        prop_assert_eq!(leaf::granted_access(build(&spec, &masks), &masks), spec.access);
    }

    #[test]
    fn a_prefetched_leaf_is_old((mut spec, masks) in spec()) {
        spec.prefetch = true;
        prop_assert!(!build(&spec, &masks).is_accessed(&masks));
        spec.prefetch = false;
        prop_assert!(build(&spec, &masks).is_accessed(&masks));
    }

    #[test]
    fn access_tracking_saves_all_but_write((mut spec, masks) in spec()) {
        spec.prefetch = false;
        let before = build(&spec, &masks);
        // A leaf without any right is an access-tracked one already. Upstream's are, too.
        prop_assume!(leaf::granted_access(before, &masks) != 0);
        let tracked = before.mark_access_track(&masks);

        prop_assert_eq!(tracked.mark_access_track(&masks), tracked);
        prop_assert!(!tracked.is_accessed(&masks));
        prop_assert_eq!(tracked.pfn(&masks), before.pfn(&masks));
        if before.ad_enabled() {
            prop_assert_eq!(tracked.0, before.0 & !masks.accessed);
        } else {
            prop_assert!(tracked.is_access_tracked(&masks));
            prop_assert_eq!(tracked.0 & spte::EPT_RWX, 0);
            let restored = tracked.restore_access_track(&masks);
            prop_assert_eq!(restored.0, before.0 & !(spte::WRITABLE | masks.accessed));
        }
    }

    #[test]
    fn a_bit_that_changes_without_a_lock_makes_a_leaf_volatile((spec, masks) in spec()) {
        let spte = build(&spec, &masks);
        let fast_fault = !spte.is_writable() && spte.is_mmu_writable(&masks);
        let hardware_dirty = spte.is_writable() && spte.0 & masks.dirty == 0;
        let volatile = fast_fault || hardware_dirty || !spte.ad_enabled();

        prop_assert_eq!(spte.is_volatile(&masks), volatile);
        // Where the log takes D away, no settled leaf is volatile, and all others that are writable
        // are; where it takes W away, D makes no difference.
        let by_dirty = settled(WriteBits::dirty(&masks), &spec, &masks);
        let by_write = settled(WriteBits::W, &spec, &masks);
        prop_assert_eq!(by_dirty.matches(spte), spte.is_writable() && !volatile);
        prop_assert_eq!(by_write.matches(spte), by_dirty.matches(Spte(spte.0 | masks.dirty)));
        for settled in [by_dirty, by_write] {
            prop_assert!(!settled.matches(spte.without(spte::WRITABLE)));
            prop_assert!(!settled.matches(Spte::NONPRESENT));
            prop_assert!(!settled.matches(Spte::FROZEN));
        }
        prop_assert_eq!(spte.needs_atomic_update(spec.level, &masks), volatile);
        prop_assert!(spte.without(masks.dirty).is_volatile(&masks) || !spte.is_writable());
        prop_assert!(!Spte::NONPRESENT.needs_atomic_update(spec.level, &masks));
    }

    /// What is set in all of some leaves tells whether each is settled.
    #[test]
    fn leaves_are_settled_together_if_each_is(
        (spec, masks) in spec(),
        cleared in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u64>()], 1..9),
        by_dirty: bool,
    ) {
        let bit = if by_dirty { WriteBits::dirty(&masks) } else { WriteBits::W };
        let settled = settled(bit, &spec, &masks);
        let leaf = build(&spec, &masks);
        let sptes: Vec<Spte> = cleared.iter().map(|bits| leaf.without(*bits)).collect();
        let (all, some) = (Spte::all(&sptes), Spte::any(&sptes));

        let all_match = sptes.iter().all(|spte| settled.matches(*spte));
        prop_assert_eq!(settled.matches_all(&sptes), all_match);
        for spte in &sptes {
            prop_assert!(spte.has_all(all.0) && some.has_all(spte.0));
        }
    }

    /// So does that and what is set in any whether each is kept from being written by the log only.
    #[test]
    fn leaves_are_protected_together_if_each_is(
        (spec, masks) in spec(),
        flipped in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u64>()], 1..9),
    ) {
        let protected = LogProtected::new(&masks);
        let leaf = build(&spec, &masks).without(spte::WRITABLE);
        let sptes: Vec<Spte> = flipped.iter().map(|bits| Spte(leaf.0 ^ bits)).collect();

        prop_assert_eq!(
            protected.matches_all(&sptes),
            sptes.iter().all(|spte| protected.matches(*spte))
        );
        if protected.matches_none(&sptes) {
            prop_assert!(!sptes.iter().any(|spte| protected.matches(*spte)));
        }
        // Where all are alike there is nothing in between.
        prop_assert!(protected.matches_none(&sptes[..1]) || protected.matches(sptes[0]));
    }

    #[test]
    fn a_table_entry_points_to_its_table(
        pfn in 0u64..1 << 40, disabled: bool, (masks, _) in format(),
        level in prop_oneof![Just(Level::Page2M), Just(Level::Page1G), Just(Level::Page512G)],
    ) {
        let spte = leaf::table(Hpa(pfn << 12), disabled, &masks);

        prop_assert_eq!(spte.decode(level, &masks), Entry::Table(Pfn(pfn)));
        prop_assert_eq!(spte.child_table(level, &masks), Some(Hpa(pfn << 12)));
        prop_assert!(spte.is_writable());
    }

    #[test]
    fn an_mmio_entry_keeps_gfn_and_generation(
        gfn in 0u64..1 << 39, generation: u64, access in 0u32..16, (masks, _) in format(),
    ) {
        let value = formats::mmio_value(&masks);
        let spte = leaf::mmio(Gfn(gfn), access, generation, value, &masks);
        let low = spte.0 >> 3 & 0x7f;
        let high = spte.0 >> 52 & 0x7ff;

        prop_assert!(spte.is_mmio(value, &masks));
        prop_assert_eq!(spte.decode(Level::Page4K, &masks), Entry::NonPresent);
        prop_assert_eq!(spte.0 >> 12 & ((1 << 39) - 1), gfn);
        prop_assert_eq!(high << 7 | low, generation & leaf::MMIO_GEN);
    }

    #[test]
    fn l1tf_bits_of_an_mmio_gfn_are_moved_up(gfn in 0u64..1 << 34) {
        let masks = Masks { nonpresent_or_rsvd: 0x1f << 41, ..formats::npt() };
        let spte = leaf::mmio(Gfn(gfn), 0, 0, 1 << 51 | 1, &masks);
        let gpa = gfn << 12;

        prop_assert_eq!(spte.0 & masks.nonpresent_or_rsvd, masks.nonpresent_or_rsvd);
        prop_assert_eq!(spte.0 >> 5 & masks.nonpresent_or_rsvd, gpa & masks.nonpresent_or_rsvd);
    }

    /// For a leaf made under the mitigation as it is when splitting and when recovering, with the
    /// rights of the table's role. Whatever else it is: prefetched, access-tracked, encrypted. All
    /// but one: without A/D bits, a leaf that the mitigation left without any right cannot be told
    /// from an access-tracked one, and loses its A. Upstream's does, too.
    #[test]
    fn split_then_recover_is_the_identity(
        (mut spec, masks) in spec(), index in 0usize..512, huge_2m: bool,
    ) {
        spec.level = if huge_2m { Level::Page2M } else { Level::Page1G };
        spec.pfn = Pfn(spec.pfn.0 & !(spec.level.pages() - 1));
        let below = spec.level.down().unwrap();
        let huge = build(&spec, &masks);
        prop_assume!(spec.prefetch || !huge.is_access_tracked(&masks));
        let role = Role((spec.access & 0xf) << 8).at_level(below);
        let index = Index::new(index).unwrap();
        let small = leaf::split_child(huge, role, below, index, spec.nx_huge_pages, &masks);
        let pages = index.get() as u64 * below.pages();

        let frame = Masks { base_addr: masks.base_addr & !masks.me_value, ..masks };
        prop_assert_eq!(small.decode(below, &frame), Entry::Leaf(Pfn(spec.pfn.0 + pages)));
        prop_assert_eq!(leaf::recovered(small, spec.level, spec.nx_huge_pages, &masks), huge);
    }

    /// [`WriteBits`] are none of those that say where an entry points, whatever it is and however
    /// it is protected; and a split makes no tables, whatever it splits.
    #[test]
    fn what_no_change_for_the_log_can_make_of_an_entry(word: u64, how in 0usize..4) {
        for masks in [formats::npt(), formats::ept(true), formats::ept(false)] {
            let all = WriteBits::W
                .and(WriteBits::dirty(&masks))
                .and(WriteBits::mmu_writable(&masks));
            let bits = [
                Protect::Log.bits(Spte(word), &masks),
                Protect::Tracking.bits(Spte(word), &masks),
                Protect::ClearDirty.bits(Spte(word), &masks),
                all,
            ][how];

            prop_assert_eq!(bits.and(all), all);
            prop_assert_eq!(Spte(word).cleared(bits).0, word & !bits.raw());
            for level in [Level::Page4K, Level::Page2M, Level::Page1G] {
                let (old, new) = (Spte(word), Spte(word).cleared(bits));

                if old.is_present() {
                    prop_assert_eq!(old.decode(level, &masks), new.decode(level, &masks));
                }
                if let Some(below) = level.down() {
                    let role = Role(0).at_level(below);
                    let small = leaf::split_child(old, role, below, Index::FIRST, false, &masks);

                    prop_assert_eq!(small.child_table(below, &masks), None);
                }
            }
        }
    }

    #[test]
    fn children_differ_by_the_stride_only(
        (mut spec, masks) in spec(), index in 0usize..512, nx: bool,
    ) {
        spec.level = Level::Page2M;
        spec.pfn = Pfn(spec.pfn.0 & !511);
        let huge = build(&spec, &masks);
        let role = Role((spec.access & 0xf) << 8).at_level(Level::Page4K);
        let child = |i| {
            leaf::split_child(huge, role, Level::Page4K, Index::new(i).unwrap(), nx, &masks)
        };
        let offset = index as u64 * leaf::child_stride(Level::Page4K);

        prop_assert_eq!(leaf::child_stride(Level::Page4K), 4096);
        prop_assert_eq!(child(index).0, child(0).0 | offset);
    }

    #[test]
    fn a_small_page_regains_the_right_to_execute((mut spec, masks) in spec()) {
        spec.level = Level::Page2M;
        spec.pfn = Pfn(spec.pfn.0 & !511);
        spec.nx_huge_pages = true;
        spec.access = 15;
        spec.prefetch = false;
        let huge = build(&spec, &masks);
        let role = Role(0xf << 8).at_level(Level::Page4K);
        let small = leaf::split_child(huge, role, Level::Page4K, Index::FIRST, true, &masks);
        let again = leaf::recovered(small, Level::Page2M, true, &masks);

        prop_assert_eq!(leaf::granted_access(huge, &masks) & leaf::ACC_EXEC, 0);
        prop_assert_ne!(leaf::granted_access(small, &masks) & leaf::ACC_EXEC, 0);
        prop_assert_eq!(leaf::granted_access(again, &masks) & leaf::ACC_EXEC, 0);
    }

    #[test]
    fn only_the_log_is_undone_by_unprotecting((spec, masks) in spec(), tracked: bool) {
        let mut spte = build(&spec, &masks).without(spte::WRITABLE | masks.dirty);
        if tracked {
            spte = spte.mark_access_track(&masks);
        }
        let after = leaf::unprotected(spte, &masks);

        prop_assert!(after.write_state_is_valid(&masks));
        if spte.is_mmu_writable(&masks) && !spte.is_access_tracked(&masks) {
            prop_assert_eq!(after.0, spte.0 | spte::WRITABLE | masks.dirty);
        } else {
            prop_assert_eq!(after, spte);
        }
    }
}

#[test]
fn special_values_are_what_hardware_ignores() {
    for masks in [formats::npt(), formats::ept(true), formats::ept(false)] {
        for level in [Level::Page4K, Level::Page2M, Level::Page1G, Level::Page512G] {
            assert_eq!(Spte::NONPRESENT.decode(level, &masks), Entry::NonPresent);
            assert_eq!(Spte::FROZEN.decode(level, &masks), Entry::Frozen);
        }
        assert_eq!(
            Spte::FROZEN.0 & (spte::EPT_RWX | spte::EPT_USER_EXECUTABLE),
            0
        );
        assert_eq!(Spte::FROZEN.0 & masks.base_addr, 0, "L1TF");
        assert!(!Spte::FROZEN.is_mmio(formats::mmio_value(&masks), &masks));
        assert!(!Spte::NONPRESENT.is_mmio(formats::mmio_value(&masks), &masks));
    }
}

#[test]
fn four_of_eight_write_states_are_valid() {
    for masks in [formats::npt(), formats::ept(true), formats::ept(false)] {
        let (host, mmu, w) = (masks.host_writable, masks.mmu_writable, spte::WRITABLE);
        let valid = [0, host, host | mmu, host | mmu | w];

        for choice in 0..8 {
            let state = [host, mmu, w]
                .into_iter()
                .enumerate()
                .filter(|(i, _)| choice >> i & 1 == 1)
                .fold(0, |all, (_, bit)| all | bit);
            assert_eq!(
                Spte(spte::MMU_PRESENT | state).write_state_is_valid(&masks),
                valid.contains(&state),
                "{state:#x}"
            );
        }
    }
}

#[test]
fn losing_mmu_writable_needs_a_flush() {
    let masks = formats::npt();
    let writable = Spte(masks.mmu_writable | masks.host_writable | spte::WRITABLE);

    assert!(writable.change_needs_flush(Spte(masks.host_writable), &masks));
    assert!(!writable.change_needs_flush(writable.without(spte::WRITABLE), &masks));
    assert!(!Spte(0).change_needs_flush(writable, &masks));
}
