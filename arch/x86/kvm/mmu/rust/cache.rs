// SPDX-License-Identifier: GPL-2.0

//! A cache of page tables for splitting, which is filled while `mmu_lock` is dropped.
//!
//! Upstream drops the lock for each table that it needs, and restarts from the root. Here one drop
//! of the lock provides as many tables as the cache holds. Tables are allocated one by one, because
//! the bulk page allocator doesn't charge the memcg; that is a twentieth of the cost of a split.
//! Their headers come from a page that is charged as a whole ([`Headers`]). If a VMM has pages
//! split and recovered so fast that many tables wait to be freed, it waits here ([`limit_unused`]).
//!
//! A table is allocated on the NUMA node of the memory that it will map, rather than on the node of
//! the thread that splits, because the CPUs that walk it are most likely close to its pages.

use crate::{
    page::{
        limit_unused,
        BlankSp,
        Headers, //
    },
    sync::{
        MmuLock,
        Unlocked, //
    },
    sys::{
        fatal_signal_pending,
        Node,
        Shortage,
        Vm, //
    }, //
};

/// How many tables a cache holds at most: enough to make dropping the lock cheap, and no more than
/// 256 KiB.
const CAPACITY: usize = 64;

/// Tables that nothing points to yet. [`TdpSplitCache::free`], or dropping the cache, frees those
/// that are left.
///
/// # Invariants
///
/// The first `len` places are taken, the others are not.
pub(crate) struct TdpSplitCache {
    pages: [Option<BlankSp>; CAPACITY],
    /// The node that each was requested for. It may be on another node if that one had no memory.
    nodes: [Node; CAPACITY],
    len: usize,
    /// How many places are used, at least one.
    limit: usize,
    shortage: Shortage,
}

impl TdpSplitCache {
    /// An empty cache for splitting in `vm`, which may be told how many tables to allocate at a
    /// time.
    pub(crate) fn new(vm: Vm<'_>, shortage: Shortage) -> Self {
        let limit = vm.eager_split().unwrap_or(CAPACITY);

        // INVARIANT: No place is taken.
        TdpSplitCache {
            pages: [const { None }; CAPACITY],
            nodes: [Node::ANY; CAPACITY],
            len: 0,
            limit: limit.clamp(1, CAPACITY),
            shortage,
        }
    }

    /// Frees what is left, with `mmu_lock` dropped, so that nobody has to wait while up to 64
    /// tables are freed.
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

        // INVARIANT: The last of the places that are taken moves to the one that is freed.
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
            // INVARIANT: The next place is taken now.
            self.len += 1;
        }
    }

    /// Allocates up to `want` tables of `vm` for `node`, as far as there is room. If the tables of
    /// other nodes leave no room, half of those are freed. If too many tables of the VM wait to be
    /// freed, waits for them first. Stops early if the current task is being killed and nobody
    /// needs the tables ([`Shortage::Fail`]). Returns whether there is any table for `node`.
    ///
    /// Only ioctls get here: a fault that splits has its table from the vCPU's caches.
    pub(crate) fn fill(&mut self, vm: Vm<'_>, unlocked: &Unlocked, want: u64, node: Node) -> bool {
        limit_unused(vm, unlocked);
        if self.len >= self.limit {
            // INVARIANT: The places from there on are freed.
            self.len = self.limit / 2;
            for place in self.pages.iter_mut().skip(self.len) {
                *place = None;
            }
        }

        let room = self.limit - self.len;
        let want = usize::try_from(want).map_or(room, |want| want.min(room));
        let mut headers = Headers::new(want);

        for n in 0..want {
            // Each may take long, where there is hardly any memory.
            if self.shortage == Shortage::Fail && fatal_signal_pending() {
                return n != 0;
            }
            let Some(page) = BlankSp::alloc(unlocked, &mut headers, node, self.shortage) else {
                return n != 0;
            };
            self.put(page, node);
        }
        true
    }
}
