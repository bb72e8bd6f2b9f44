// SPDX-License-Identifier: GPL-2.0

//! The walk visits what a recursive model visits, in the same order, also when it restarts.

use std::collections::BTreeSet;

use kvm_mmu_rs::pure::{
    addr::ENTRIES,
    position::Position,
    Gfn,
    GfnRange,
    Index,
    Level, //
};
use proptest::prelude::*;

/// A tree: the entries that point to a table, named by level and first frame.
type Tables = BTreeSet<(Level, u64)>;

/// All entries that a pre-order walk of `range` visits: those that the root has, and no others.
/// Recursion, and no arithmetic on positions.
fn model(tables: &Tables, root: Level, min: Level, range: GfnRange) -> Vec<(Level, u64)> {
    fn visit(
        tables: &Tables,
        level: Level,
        base: u64,
        min: Level,
        range: GfnRange,
        out: &mut Vec<(Level, u64)>,
    ) {
        for i in 0..ENTRIES as u64 {
            let first = base + i * level.pages();
            // The walk begins at the entry that holds the start, and ends before the first one
            // that begins at or after the end.
            if first + level.pages() <= range.start.0 || first >= range.end.0 {
                continue;
            }
            out.push((level, first));
            if level > min && tables.contains(&(level, first)) {
                visit(tables, level.down().unwrap(), first, min, range, out);
            }
        }
    }

    let mut out = Vec::new();
    visit(tables, root, 0, min, range, &mut out);
    out
}

/// What `walk.rs` does with a position; `restart` says before which visits to go back to the root.
fn walk(
    tables: &Tables,
    root: Level,
    min: Level,
    range: GfnRange,
    alias: u64,
    mut restart: impl FnMut(&Position) -> bool,
) -> Vec<(Level, u64)> {
    let mut out = Vec::new();
    let Some(mut position) = Position::start(root, min, range.start, alias) else {
        // Nothing else of what `case` makes is refused.
        assert!(!root.reach().contains(range.start));
        return out;
    };
    // After a restart: how far the walk had come, until it is further.
    let mut returning = None;

    loop {
        if position.gfn() >= range.end {
            return out;
        }
        if position.has_progressed() && restart(&position) {
            returning = Some((position.gfn(), position.level()));
            position.restart();
            assert!(!position.has_progressed());
            assert_eq!(position.level(), root);
            continue;
        }
        if let Some((gfn, level)) = returning {
            // Only the path to where the walk was: each entry holds that place.
            assert_eq!(position.gfn(), gfn.round_down(position.level()));
            if position.level() == level {
                returning = None;
            }
        }
        out.push((position.level(), position.gfn().0));
        assert!(out.len() < 100_000, "the walk does not end");
        assert_eq!(
            position.index(),
            Index::of(Gfn(position.gfn().0 | alias), position.level())
        );

        let table = tables.contains(&(position.level(), position.gfn().0));
        if table && position.descend() {
            continue;
        }
        while !position.advance() {
            if !position.ascend() {
                return out;
            }
        }
    }
}

/// Trees whose tables lie near the range, so that the walk meets them.
fn case() -> impl Strategy<Value = (Tables, Level, Level, GfnRange)> {
    let min = prop_oneof![
        Just(Level::Page4K),
        Just(Level::Page2M),
        Just(Level::Page1G),
        Just(Level::Page512G)
    ];

    let root = prop_oneof![Just(Level::Page512G), Just(Level::Page256T)];
    // Around a border of entries of each level, and around the end of the roots' reach, also.
    let base = prop_oneof![
        Just(0),
        Just(Level::Page2M.pages() * 512 * 3),
        Just(Level::Page512G.pages() * 7),
        Just(Level::Page512G.pages() * 512),
        Just(Level::Page256T.pages() * 512),
    ];
    // Often across that border.
    let offset = prop_oneof![0u64..1 << 21, 0u64..1 << 12];

    (
        root,
        min,
        base,
        offset,
        1u64..3000,
        proptest::collection::vec((0u64..1 << 21, 1usize..5), 0..24),
    )
        .prop_map(|(root, min, base, offset, len, seeds)| {
            let start = (base + offset).saturating_sub(1 << 11);
            let range = GfnRange::new(Gfn(start), Gfn(start + len));
            let mut tables = Tables::new();
            for (offset, depth) in seeds {
                let gfn = Gfn(start + offset % (2 * len));
                let mut level = root;
                for _ in 0..depth {
                    tables.insert((level, gfn.round_down(level).0));
                    match level.down() {
                        Some(below) => level = below,
                        None => break,
                    }
                }
            }
            (tables, root, min, range)
        })
}

proptest! {
    #[test]
    fn visits_what_the_model_visits((tables, root, min, range) in case()) {
        prop_assert_eq!(
            walk(&tables, root, min, range, 0, |_| false),
            model(&tables, root, min, range)
        );
    }

    #[test]
    fn an_alias_changes_indices_only((tables, root, min, range) in case()) {
        let alias = 1 << 47;

        prop_assert_eq!(
            walk(&tables, root, min, range, alias, |_| false),
            model(&tables, root, min, range)
        );
    }

    /// A restart visits the path to where it was again, and nothing else twice; and nothing is left
    /// out.
    #[test]
    fn restarts_lose_nothing((tables, root, min, range) in case(), every in 1usize..7) {
        let mut count = 0;
        let visited = walk(&tables, root, min, range, 0, |_| {
            count += 1;
            count % every == 0
        });
        let expected = model(&tables, root, min, range);
        let bottom = |all: &[(Level, u64)]| -> Vec<_> {
            all.iter()
                .copied()
                .filter(|entry| entry.0 == min || !tables.contains(entry))
                .collect()
        };

        prop_assert_eq!(bottom(&visited), bottom(&expected));
        let all: BTreeSet<_> = visited.into_iter().collect();
        prop_assert_eq!(all, expected.into_iter().collect::<BTreeSet<_>>());
    }

    /// However often somebody wants the lock, the walk ends.
    #[test]
    fn always_makes_progress((tables, root, min, range) in case()) {
        let limit = 6 * model(&tables, root, min, range).len() + 6;
        let visited = walk(&tables, root, min, range, 0, |_| true);

        prop_assert!(visited.len() <= limit, "{} visits, limit {}", visited.len(), limit);
    }

    #[test]
    fn levels_and_indices_agree(gfn in 0u64..1 << 45) {
        let mut rebuilt = 0;
        for raw in 1..=5 {
            let level = Level::from_raw(raw).unwrap();

            prop_assert_eq!(level.raw(), raw as i32);
            prop_assert!(Gfn(gfn).round_down(level).is_aligned(level));
            rebuilt |= (Index::of(Gfn(gfn), level).get() as u64) << level.pages_shift();
        }
        prop_assert_eq!(rebuilt, gfn);
    }
}

#[test]
fn a_walk_does_not_leave_its_root() {
    let end = Level::Page512G.pages() * 512;
    let mut position = Position::start(Level::Page512G, Level::Page1G, Gfn(end - 1), 0).unwrap();

    assert!(position.index().is_last());
    assert!(position.descend());
    assert!(!position.may_descend() && !position.descend());
    assert_eq!(position.level(), Level::Page1G);
    assert!(position.index().is_last() && !position.advance());
    assert!(position.ascend());
    let at_root = position;
    assert!(!position.advance() && !position.ascend());
    assert_eq!(position, at_root);
}

#[test]
fn a_root_maps_what_it_reaches() {
    for root in [Level::Page1G, Level::Page512G, Level::Page256T] {
        let end = root.pages() * ENTRIES as u64;
        let start = |gfn| Position::start(root, Level::Page4K, Gfn(gfn), 0);

        assert_eq!(root.reach(), GfnRange::new(Gfn(0), Gfn(end)));
        assert!(start(0).unwrap().index() == Index::FIRST);
        assert!(start(end - 1).unwrap().index().is_last());
        for beyond in [
            end,
            end + 1,
            end + root.pages(),
            2 * end,
            end << 9,
            u64::MAX >> 12,
        ] {
            assert!(start(beyond).is_none(), "{root:?} {beyond:#x}");
        }
    }
    // Four levels translate 48 bits, five 57.
    assert_eq!(Level::Page512G.reach().end.0 << 12, 1 << 48);
    assert_eq!(Level::Page256T.reach().end.0 << 12, 1 << 57);
}

#[test]
fn invalid_walks_are_refused() {
    let start = |root, min, gfn, alias| Position::start(root, min, Gfn(gfn), alias);

    assert!(start(Level::Page2M, Level::Page1G, 0, 0).is_none());
    assert!(start(Level::Page1G, Level::Page1G, 0, 0).is_some());
    assert!(start(Level::Page512G, Level::Page4K, 1 << 35, 1 << 35).is_none());
    assert!(start(Level::Page512G, Level::Page4K, (1 << 35) - 1, 1 << 35).is_some());
    assert!(Level::from_raw(0).is_none() && Level::from_raw(6).is_none());
    assert!(Level::Page4K.down().is_none() && Level::Page256T.up().is_none());
    assert!(Index::new(ENTRIES).is_none());
}

proptest! {
    /// Stepping over some entries of a table is stepping over one after the other, up to the last.
    #[test]
    fn steps_over_several_entries(start in 0u64..1 << 36, count in 0usize..1100) {
        let mut many = Position::start(Level::Page256T, Level::Page2M, Gfn(start), 0).unwrap();
        while many.descend() {}
        let (mut one, mut last) = (many, many);

        prop_assert_eq!(many.after(), std::iter::from_fn(|| last.advance().then_some(())).count());
        many.advance_by(count);
        for _ in 0..count {
            one.advance();
        }
        prop_assert_eq!(many, one);
    }

    /// A walk that seeks a frame stands on its entry, in the lowest table on the path that has one,
    /// and goes down to it from there.
    #[test]
    fn seeking_finds_the_entry(
        start in 0u64..1 << 36,
        ahead in prop_oneof![0u64..600, 0u64..1 << 19, 0u64..1 << 36],
    ) {
        let root = Level::Page512G;
        let min = Level::Page4K;
        let gfn = Gfn(start + ahead);
        let mut position = Position::start(root, min, Gfn(start), 0).unwrap();
        while position.descend() {}

        let found = position.seek(gfn);
        prop_assert_eq!(found, root.reach().contains(gfn));
        if !found {
            // It has not moved.
            prop_assert_eq!((position.level(), position.gfn()), (min, Gfn(start)));
            return Ok(());
        }
        let level = position.level();
        prop_assert_eq!(position.gfn(), gfn.round_down(level));
        prop_assert_eq!(position.index(), Index::of(gfn, level));
        let same_table = |level: Level| level.up().is_none_or(|above| {
            level == root || Gfn(start).round_down(above) == gfn.round_down(above)
        });
        prop_assert!(same_table(level));
        if let Some(below) = level.down() {
            prop_assert!(!same_table(below));
        }
        prop_assert_eq!(position.has_progressed(), ahead != 0);

        while position.descend() {}
        prop_assert_eq!((position.level(), position.gfn()), (min, gfn));
    }

    /// Below a root with alias bits there are no frames that have one of them.
    #[test]
    fn seeking_ends_at_the_alias(gfn in 0u64..1 << 36) {
        let alias = 1 << 35;
        let mut position = Position::start(Level::Page512G, Level::Page4K, Gfn(0), alias).unwrap();
        let found = gfn < alias;

        prop_assert_eq!(position.seek(Gfn(gfn)), found);
        let stands_on = if found { Gfn(gfn) } else { Gfn(0) };
        prop_assert_eq!(position.gfn(), stands_on.round_down(Level::Page512G));
    }

    /// What lies behind is not sought.
    #[test]
    fn seeking_never_goes_back(start in 1u64..1 << 36, back in 1u64..1 << 36) {
        let mut position = Position::start(Level::Page512G, Level::Page2M, Gfn(start), 0).unwrap();
        while position.descend() {}
        let before = position;

        prop_assert!(position.seek(Gfn(start.saturating_sub(back))));
        prop_assert_eq!(position, before);
    }
}
