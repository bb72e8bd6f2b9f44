// SPDX-License-Identifier: GPL-2.0

//! The reverse map's words and chains against a model: a list is a multiset of addresses.

use std::collections::BTreeMap;

use kvm_mmu_rs::encoding::{
    add,
    count,
    free_all,
    remove,
    remove_at,
    Desc,
    Head,
    ListCursor,
    Store,
    Word,
    DESC_ENTRIES, //
};
use proptest::prelude::*;

/// Descriptors in an arena; a freed one is poisoned, and using it panics.
#[derive(Default)]
struct Arena {
    descs: Vec<Option<Desc<usize>>>,
}

impl Store for Arena {
    type Ref = usize;

    fn desc(&self, desc: usize) -> &Desc<usize> {
        self.descs[desc].as_ref().expect("use after free")
    }

    fn desc_mut(&mut self, desc: usize) -> &mut Desc<usize> {
        self.descs[desc].as_mut().expect("use after free")
    }

    fn free(&mut self, desc: usize) {
        self.descs[desc].take().expect("double free");
    }
}

impl Arena {
    fn alloc(&mut self) -> usize {
        self.descs.push(Some(Desc::EMPTY));
        self.descs.len() - 1
    }

    fn live(&self) -> usize {
        self.descs.iter().flatten().count()
    }
}

fn entries(store: &Arena, head: Head<usize>) -> Vec<u64> {
    let mut cursor = ListCursor::new(head);

    std::iter::from_fn(|| cursor.next(store)).collect()
}

fn sorted(mut v: Vec<u64>) -> Vec<u64> {
    v.sort_unstable();
    v
}

/// What must hold of every list, apart from what is in it.
fn check(store: &Arena, head: Head<usize>, model: &[u64]) {
    let found = entries(store, head);

    assert_eq!(sorted(found), sorted(model.to_vec()));
    assert_eq!(count(store, head) as usize, model.len());
    // Only the first descriptor is partly filled, and none is empty.
    let many = matches!(head, Head::Many(_));
    let descs = if many {
        model.len().div_ceil(DESC_ENTRIES)
    } else {
        0
    };
    assert_eq!(store.live(), descs);
    match model.len() {
        0 => assert_eq!(head, Head::EMPTY),
        1 => {}
        _ => assert!(many),
    }
}

fn address(n: u16) -> u64 {
    0xffff_8880_0000_0000 + u64::from(n) * 8
}

#[derive(Clone, Debug)]
enum Op {
    Add(u16),
    /// Removes one that is there, by its place in the model.
    Remove(prop::sample::Index),
    /// Removes one that may not be there.
    RemoveAny(u16),
    /// Removes those whose address has this remainder, in one pass.
    Retain(u64),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => any::<u16>().prop_map(Op::Add),
        5 => any::<prop::sample::Index>().prop_map(Op::Remove),
        1 => any::<u16>().prop_map(Op::RemoveAny),
        1 => (0u64..3).prop_map(Op::Retain),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #[test]
    fn a_list_is_a_multiset(ops in prop::collection::vec(op(), 0..400)) {
        let mut store = Arena::default();
        let mut head = Head::EMPTY;
        let mut model: Vec<u64> = Vec::new();

        for op in ops {
            match op {
                Op::Add(n) => {
                    head = add(&mut store, head, address(n), Arena::alloc);
                    model.push(address(n));
                }
                Op::Remove(at) => {
                    if model.is_empty() {
                        continue;
                    }
                    let entry = model.swap_remove(at.index(model.len()));

                    head = remove(&mut store, head, entry).expect("it is there");
                }
                Op::RemoveAny(n) => {
                    let there = model.iter().position(|e| *e == address(n));
                    let result = remove(&mut store, head, address(n));

                    prop_assert_eq!(result.is_some(), there.is_some());
                    if let (Some(new), Some(at)) = (result, there) {
                        head = new;
                        model.swap_remove(at);
                    }
                }
                Op::Retain(remainder) => {
                    let mut visits: BTreeMap<u64, usize> = BTreeMap::new();
                    let mut cursor = ListCursor::new(head);

                    while let Some(entry) = cursor.peek(&store) {
                        *visits.entry(entry).or_default() += 1;
                        if entry / 8 % 3 == remainder {
                            head = remove_at(&mut store, head, &mut cursor);
                        } else {
                            cursor.step();
                        }
                    }
                    // Each entry is visited exactly once.
                    let mut expected: BTreeMap<u64, usize> = BTreeMap::new();
                    for entry in &model {
                        *expected.entry(*entry).or_default() += 1;
                    }
                    prop_assert_eq!(visits, expected);
                    model.retain(|entry| entry / 8 % 3 != remainder);
                }
                Op::Clear => {
                    free_all(&mut store, head);
                    head = Head::EMPTY;
                    model.clear();
                }
            }
            check(&store, head, &model);
        }
    }

    #[test]
    fn a_cursor_goes_on_from_its_parts(len in 2u16..60, stop in 0usize..60) {
        let mut store = Arena::default();
        let mut head = Head::EMPTY;

        for n in 0..len {
            head = add(&mut store, head, address(n), Arena::alloc);
        }
        let all = entries(&store, head);
        let mut cursor = ListCursor::new(head);
        let mut seen = Vec::new();

        while let Some(entry) = cursor.next(&store) {
            seen.push(entry);
            if seen.len() == stop {
                let (desc, index) = cursor.parts();
                cursor = ListCursor::from_parts(desc, index);
            }
        }
        prop_assert_eq!(seen, all);
    }

    #[test]
    fn words_say_what_they_were_made_of(address in any::<u64>()) {
        let address = address & !7;

        for (word, head) in [
            (Word::one(address), Head::one(address)),
            (Word::many(address), Head::Many(address)),
        ] {
            if address == 0 {
                continue;
            }
            prop_assert_eq!(word.decode(), head);
            prop_assert!(!word.is_locked() && !word.is_empty());
            prop_assert!(word.locked().is_locked());
            prop_assert_eq!(word.locked().decode(), head);
            prop_assert_eq!(word.locked().unlocked(), word);
        }
    }
}

#[test]
fn the_encoding_is_upstreams() {
    assert_eq!(Word::EMPTY, Word(0));
    assert_eq!(Word::EMPTY.decode(), Head::EMPTY);
    assert_eq!(Word::many(0x1000), Word(0x1001));
    assert_eq!(Word::one(0x1008).locked(), Word(0x100a));
    assert_eq!(size_of::<Desc<Option<std::num::NonZeroU64>>>(), 136);
    assert_eq!(size_of::<Desc<std::num::NonZeroU64>>(), 128);
}

#[test]
fn an_entry_that_is_not_there_is_not_removed() {
    let mut store = Arena::default();

    assert_eq!(remove(&mut store, Head::EMPTY, 8), None);
    assert_eq!(remove(&mut store, Head::one(8), 16), None);
    let mut head = Head::EMPTY;
    for n in 0..40 {
        head = add(&mut store, head, address(n), Arena::alloc);
    }
    assert_eq!(remove(&mut store, head, address(40)), None);
    assert_eq!(count(&store, head), 40);
}
