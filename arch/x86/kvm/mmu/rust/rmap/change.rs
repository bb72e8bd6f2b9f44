// SPDX-License-Identifier: GPL-2.0

//! Changing lists, under `mmu_lock` held for write.

#![expect(unsafe_code)]

use super::{
    desc::{
        decode,
        encode,
        DescCache,
        DescPtr,
        Descs, //
    },
    encoding::{
        self,
        Cell,
        Head,
        ListCursor,
        Word, //
    },
    list::{
        address_of,
        sptep_at,
        List,
        Sptes, //
    },
    shadow, //
};
use crate::{
    pte::Sptep,
    sync::{
        Exclusive,
        MmuLock, //
    }, //
};

/// A list under `mmu_lock` held for write, which may be changed.
///
/// # Invariants
///
/// `lock` was borrowed exclusively for `'a`: it is not dropped before, and no other `Rmap` of the
/// VM exists.
pub(crate) struct Rmap<'a> {
    list: List<'a>,
    lock: &'a Exclusive<'a>,
}

impl<'a> Rmap<'a> {
    /// A handle on `list`, a list of the VM whose lock is held.
    #[inline]
    pub(crate) fn new(lock: &'a mut Exclusive<'_>, list: List<'a>) -> Self {
        // INVARIANT: The token is borrowed exclusively for `'a`.
        Rmap { list, lock }
    }

    /// The lock that is held.
    #[inline]
    pub(crate) fn lock(&self) -> &Exclusive<'a> {
        self.lock
    }

    /// The word without the lock bit, which a reader may have set.
    #[inline]
    fn word(&self) -> Word {
        self.list.load().unlocked()
    }

    #[inline]
    fn head(&self) -> Head<DescPtr> {
        // SAFETY: By the type invariant, only `self` changes the list.
        unsafe { decode(self.word()) }
    }

    /// The SPTEs in the list.
    #[inline]
    pub(crate) fn sptes(&self) -> Sptes<'_> {
        // SAFETY: Only `self` changes the list, and it is borrowed.
        unsafe { Sptes::new(self.word()) }
    }

    /// Changes the list under its lock bit.
    #[inline(always)]
    fn change(&mut self, change: impl FnOnce(&mut Descs, Head<DescPtr>) -> Head<DescPtr>) {
        let word = encoding::lock(&self.list);
        // SAFETY: The list is locked, or empty.
        let head = unsafe { decode(word) };
        let new = change(&mut Descs, head);

        encoding::unlock(&self.list, encode(new));
    }

    /// Adds an SPTE, and returns how many there were before; `pte_list_add()`.
    #[inline]
    pub(crate) fn add(&mut self, cache: &mut DescCache<'_>, sptep: Sptep<'_>) -> u32 {
        let mut count = 0;

        self.change(|descs, head| {
            count = encoding::count(descs, head);
            encoding::add(descs, head, address_of(sptep), |_| cache.take())
        });
        count
    }

    /// Removes an SPTE, which must be in the list; `pte_list_remove()`.
    #[inline]
    pub(crate) fn remove(&mut self, sptep: Sptep<'_>) {
        let mut found = true;

        self.change(|descs, head| {
            encoding::remove(descs, head, address_of(sptep)).unwrap_or_else(|| {
                found = false;
                head
            })
        });
        if !found {
            self.lock.vm().data_corruption();
        }
    }

    /// Zaps and removes the SPTEs for which `keep` returns false. Returns how many of them were
    /// present.
    ///
    /// The lock bit is only held for each removal, as `keep` may take long.
    pub(crate) fn retain(
        &mut self,
        mut keep: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool,
    ) -> i32 {
        let lock = self.lock;
        let mut cursor = ListCursor::new(self.head());
        let mut zapped: i32 = 0;

        while let Some(entry) = cursor.peek(&Descs) {
            // SAFETY: The entry is in the list, which does not change before it is removed below.
            let sptep = unsafe { sptep_at(entry) };

            if keep(lock, sptep) {
                cursor.step();
            } else {
                zapped = zapped.wrapping_add(i32::from(shadow::zap(lock, sptep)));
                self.change(|descs, head| encoding::remove_at(descs, head, &mut cursor));
            }
        }
        zapped
    }

    /// Zaps all SPTEs in the list, with the lock bit held, and empties it. Returns how many were
    /// present.
    pub(crate) fn clear(&mut self) -> i32 {
        let lock = self.lock;
        let mut zapped: i32 = 0;

        self.change(|descs, head| {
            let mut cursor = ListCursor::new(head);

            while let Some(entry) = cursor.next(descs) {
                // SAFETY: The entry is in the list, which is locked.
                let sptep = unsafe { sptep_at(entry) };

                zapped = zapped.wrapping_add(i32::from(shadow::zap(lock, sptep)));
            }
            encoding::free_all(descs, head);
            Head::EMPTY
        });
        zapped
    }
}

/// An SPTE in a list, with the right to change lists.
///
/// # Invariants
///
/// `mmu_lock` is held for write during `'a`, and nobody else changes lists; the SPTE's table is not
/// freed before `'a` ends.
pub(crate) struct Found<'a, 'l> {
    sptep: Sptep<'a>,
    lock: &'a mut Exclusive<'l>,
}

impl<'a, 'l> Found<'a, 'l> {
    /// The first SPTE in `list` for which `wanted` is true.
    pub(crate) fn first(
        lock: &'a mut Exclusive<'l>,
        list: List<'_>,
        mut wanted: impl FnMut(&Exclusive<'_>, Sptep<'_>) -> bool,
    ) -> Option<Self> {
        // SAFETY: The lock is held for write, so the list does not change before the result exists.
        let mut sptes: Sptes<'a> = unsafe { Sptes::new(list.load().unlocked()) };
        let sptep = sptes.find(|sptep| wanted(lock, *sptep))?;

        // INVARIANT: The lock is borrowed for `'a`, so it is not dropped, and changing lists frees
        // no tables.
        Some(Found { sptep, lock })
    }

    /// The SPTE.
    #[inline]
    pub(crate) fn sptep(&self) -> Sptep<'a> {
        self.sptep
    }

    /// The lock that is held.
    #[inline]
    pub(crate) fn lock(&self) -> &Exclusive<'l> {
        self.lock
    }

    /// Another list, or the same, to change.
    #[inline]
    pub(crate) fn rmap<'s>(&'s mut self, list: List<'s>) -> Rmap<'s> {
        Rmap::new(self.lock, list)
    }
}
