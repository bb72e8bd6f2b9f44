// SPDX-License-Identifier: GPL-2.0

//! What makes the next write to a page noticed.

use super::{
    masks::Masks,
    spte::{
        Spte,
        WriteBits, //
    }, //
};

/// What makes the next write to a page noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// For the dirty log: a fast page fault may undo it.
    Log,
    /// For a shadowed guest page table: nobody may undo it without unsyncing the shadow page.
    Tracking,
    /// For the dirty log of a CPU that logs writes itself: clears D, or W where D is not to be
    /// relied on.
    ClearDirty,
}

impl Protect {
    /// What makes the next write to a 4 KiB page be in the log, where the CPU logs writes or not.
    pub fn for_log(cpu_logs: bool) -> Self {
        if cpu_logs {
            Protect::ClearDirty
        } else {
            Protect::Log
        }
    }

    /// The bits that are to be cleared in a present leaf.
    #[inline]
    pub fn bits(self, leaf: Spte, masks: &Masks) -> WriteBits {
        match self {
            Protect::Log => WriteBits::W,
            Protect::Tracking => WriteBits::W.and(WriteBits::mmu_writable(masks)),
            Protect::ClearDirty if leaf.ad_need_write_protect() => WriteBits::W,
            Protect::ClearDirty => WriteBits::dirty(masks),
        }
    }
}

/// A present leaf, protected.
#[inline]
pub fn protected(leaf: Spte, how: Protect, masks: &Masks) -> Spte {
    leaf.cleared(how.bits(leaf, masks))
}
