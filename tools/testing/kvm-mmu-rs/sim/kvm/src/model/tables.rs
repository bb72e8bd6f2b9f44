// SPDX-License-Identifier: GPL-2.0

//! What the tables of the TDP MMU hold now, for those who check it. Takes no step.

use machine::mem;

use super::{
    field,
    pages,
    FRAME,
    HUGE_PAGES,
    LARGE,
    MMU_PRESENT, //
};
use crate::types::kvm;

const INVALID: u32 = 1 << 12;

/// A leaf.
#[derive(Clone, Copy)]
pub struct Leaf {
    pub as_id: usize,
    pub level: u32,
    /// The first frame.
    pub gfn: u64,
    pub spte: u64,
}

impl Leaf {
    /// Whether it maps a frame from `start` on, before `end`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.gfn < end && self.gfn + pages(self.level) > start
    }
}

/// A table below a root.
pub struct Table {
    pub as_id: usize,
    /// That of its entries.
    pub level: u32,
    /// The first frame.
    pub gfn: u64,
    pub is_empty: bool,
}

/// What there is below the valid roots.
#[derive(Default)]
struct Found {
    leaves: Vec<Leaf>,
    tables: Vec<Table>,
}

/// The leaves of all valid roots.
pub fn leaves(kvm: *mut kvm) -> Vec<Leaf> {
    find(kvm).leaves
}

/// The tables of all valid roots.
pub fn tables(kvm: *mut kvm) -> Vec<Table> {
    find(kvm).tables
}

fn find(kvm: *mut kvm) -> Found {
    let mut all = Found::default();
    let mut root = *field!(kvm, arch.tdp_mmu_roots);

    while !root.is_null() {
        let role = *field!(root, role.word).to_owned();

        if role & INVALID == 0 {
            let as_id = (role >> 24 != 0).into();

            collect(*field!(root, spt), role & 0xf, 0, as_id, &mut all);
        }
        root = *field!(root, next);
    }
    all
}

fn collect(table: *mut u64, level: u32, first: u64, as_id: usize, all: &mut Found) {
    // SAFETY: Within a table that is linked.
    let entry = |table: *mut u64, n: u64| unsafe { table.add(n as usize).read() };

    for n in 0..HUGE_PAGES {
        let spte = entry(table, n);
        let gfn = first + n * pages(level);

        if spte & MMU_PRESENT == 0 {
            continue;
        }
        if level == 1 || spte & LARGE != 0 {
            all.leaves.push(Leaf {
                as_id,
                level,
                gfn,
                spte,
            });
        } else {
            let below = mem::va(spte & FRAME);

            all.tables.push(Table {
                as_id,
                level: level - 1,
                gfn,
                is_empty: (0..HUGE_PAGES).all(|n| entry(below, n) & MMU_PRESENT == 0),
            });
            collect(below, level - 1, gfn, as_id, all);
        }
    }
}
