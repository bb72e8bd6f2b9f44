// SPDX-License-Identifier: GPL-2.0

//! A supply of page tables for splitting, filled where `mmu_lock` is not held.
//!
//! Upstream drops the lock for each table that it needs, and walks from the root again. Here one
//! pause pays for as many tables as the cache holds. Each is allocated by itself, because the bulk
//! allocator of pages does not charge a memcg; that is a twentieth of the cost of a split.
//!
//! A table is allocated on the NUMA node of the memory that it will map, rather than on that of the
//! thread that splits: the CPUs that walk it are most likely near its pages.

use crate::{
    page::BlankSp,
    sync::{MmuLock, Unlocked},
    sys::Node,
};

/// How many tables a cache holds at most: enough that the pauses cost nothing, few enough that
/// nobody misses the 256 KiB.
const CAPACITY: usize = 64;

/// Tables that nothing points to yet. Those that are left are freed by [`TdpSplitCache::free`], or when the
/// cache is dropped.
///
/// # Invariants
///
/// The first `len` places are taken, the others are not.
pub(crate) struct TdpSplitCache {
    pages: [Option<BlankSp>; CAPACITY],
    /// The node that each was asked for. It may lie on another, if that one has no memory.
    nodes: [Node; CAPACITY],
    len: usize,
}

impl TdpSplitCache {
    /// An empty cache.
    pub(crate) fn new() -> Self {
        // INVARIANT: no place is taken.
        TdpSplitCache {
            pages: [const { None }; CAPACITY],
            nodes: [Node::ANY; CAPACITY],
            len: 0,
        }
    }

    /// Frees what is left, with `mmu_lock` dropped: that may be 64 tables, and nobody should have to
    /// wait for it.
    pub(crate) fn free<'l>(self, lock: &mut impl MmuLock<'l>) {
        if self.len != 0 {
            lock.unlocked(|_| drop(self));
        }
    }

    /// Takes out a table that was allocated for `node`.
    #[inline]
    pub(crate) fn take(&mut self, node: Node) -> Option<BlankSp> {
        let taken = self.nodes.get(..self.len)?;
        let place = taken.iter().rposition(|&n| n == node)?;
        let last = self.len.checked_sub(1)?;

        // INVARIANT: the last of the places that are taken moves to the one that is freed.
        self.pages.swap(place, last);
        self.nodes.swap(place, last);
        self.len = last;
        self.pages.get_mut(last)?.take()
    }

    /// Puts in a table that was allocated for `node`. One that does not fit is freed.
    #[inline]
    pub(crate) fn put(&mut self, page: BlankSp, node: Node) {
        if let (Some(place), Some(of)) =
            (self.pages.get_mut(self.len), self.nodes.get_mut(self.len))
        {
            *place = Some(page);
            *of = node;
            // INVARIANT: the next place is taken now.
            self.len += 1;
        }
    }

    /// Allocates up to `want` tables for `node`, as many as there is room for. If other nodes'
    /// tables leave none, half of those go. Returns whether there are any for `node`: if there is no
    /// memory, that is what the caller has to know.
    pub(crate) fn fill(&mut self, unlocked: &Unlocked, want: u64, node: Node) -> bool {
        if self.len == CAPACITY {
            // INVARIANT: the places from there on are freed.
            self.len = CAPACITY / 2;
            for place in self.pages.iter_mut().skip(self.len) {
                *place = None;
            }
        }

        let room = CAPACITY - self.len;
        let want = usize::try_from(want).map_or(room, |want| want.min(room));

        for n in 0..want {
            let Some(page) = BlankSp::alloc(unlocked, node) else {
                return n != 0;
            };
            self.put(page, node);
        }
        true
    }
}
