// SPDX-License-Identifier: GPL-2.0

//! A supply of page tables for splitting, filled where `mmu_lock` is not held.
//!
//! Upstream drops the lock for each table that it needs, and walks from the root again. Here one
//! pause pays for as many tables as the cache holds.

use crate::{page::OwnedSp, sync::Unlocked};

/// How many tables a cache holds at most: enough that the pauses cost nothing, few enough that
/// nobody misses the 256 KiB.
const CAPACITY: usize = 64;

/// Tables that nothing points to yet. Those that are left are freed when the cache is dropped.
pub(crate) struct SplitCache {
    pages: [Option<OwnedSp>; CAPACITY],
    len: usize,
}

impl SplitCache {
    /// An empty cache.
    pub(crate) fn new() -> Self {
        SplitCache {
            pages: [const { None }; CAPACITY],
            len: 0,
        }
    }

    /// Takes a table out.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<OwnedSp> {
        let last = self.len.checked_sub(1)?;

        self.len = last;
        self.pages.get_mut(last)?.take()
    }

    /// Puts a table (back) in. One that does not fit is freed.
    #[inline]
    pub(crate) fn put(&mut self, page: OwnedSp) {
        if let Some(place) = self.pages.get_mut(self.len) {
            *place = Some(page);
            self.len += 1;
        }
    }

    /// Allocates until the cache holds `want` tables, or is full. Returns whether it holds any: if
    /// there is no memory, that is what the caller has to know.
    pub(crate) fn fill(&mut self, unlocked: &Unlocked, want: u64) -> bool {
        let want = usize::try_from(want).unwrap_or(CAPACITY).min(CAPACITY);

        while self.len < want {
            let Some(page) = OwnedSp::alloc(unlocked) else {
                break;
            };
            self.put(page);
        }
        self.len != 0
    }
}
