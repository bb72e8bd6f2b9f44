// SPDX-License-Identifier: GPL-2.0

//! Enabling the dirty log of a memslot that shadow pages map.
//!
//! # Flushes
//!
//! In upstream's split the small leaves keep W and D of the huge one, and a later walk clears them.
//! Here they are born without, and `mmu_lock` may be dropped while CPUs still have the huge leaf
//! cached, writable and dirty. As after upstream's walk, which gives way as well, nobody mistakes a
//! leaf without W for one that nobody can write by:
//!
//! - who takes write access away for good (page tracking, syncing) flushes if the leaf was
//!   *MMU-writable* ([`Spte::change_needs_flush`](crate::pure::Spte::change_needs_flush)), and that
//!   bit is kept;
//! - who zaps a leaf flushes, whatever rights it had;
//! - who reaps the log relies on W and D, but holds `slots_lock`, which is held here until the caller
//!   has flushed. So does `KVM_CLEAR_DIRTY_LOG`, which may split as well.

use super::{protect::protect_slot, split};
use crate::{pure::Level, pure::Protect, rmap::ShadowSplitCaches, sync::Exclusive, sys::Memslot};

/// Makes every write to `slot` through shadow pages noticed, from the caller's TLB flush on; and
/// splits its huge pages to 4 KiB, if there are `caches` to split with. `how` is what is done to
/// 4 KiB leaves.
///
/// New leaves are born protected. What was small before, and what stays huge, is protected by a
/// second walk: it has to look at each list anyway, as a frame may have several leaves.
pub(crate) fn enable(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    caches: Option<&mut ShadowSplitCaches<'_>>,
    how: Protect,
) {
    if let Some(caches) = caches {
        split::split(lock, slot, slot.range(), Level::Page4K, Some(how), caches);
    }

    protect_slot(lock, slot, Level::Page4K, Level::Page4K, how);
    // D bits say nothing of which part of a huge page was written.
    protect_slot(lock, slot, Level::Page2M, Level::MAX_LEAF, Protect::Log);
}
