// SPDX-License-Identifier: GPL-2.0

//! Enabling the dirty log of a memslot that shadow pages map.
//!
//! # Flushes
//!
//! In upstream's split the small leaves keep W and D of the huge one, and a later walk clears them.
//! Here they are created write-protected or clean, and `mmu_lock` may be dropped while CPUs still
//! have the huge leaf cached, writable and dirty. Upstream's second walk yields in the same state.
//! Nobody takes a leaf without W for one that can't be written:
//!
//! - revoking write access for good (page tracking, syncing) flushes if the leaf was *MMU-writable*
//!   ([`Spte::change_needs_flush`](crate::pure::Spte::change_needs_flush)), and that bit is kept;
//! - zapping a leaf flushes whatever rights it had;
//! - reaping the log relies on W and D, but requires `slots_lock`, which is held here until the
//!   caller has flushed. That includes `KVM_CLEAR_DIRTY_LOG`, which may split as well.

use super::{
    protect::protect_slot,
    split, //
};
use crate::{
    pure::{
        Level,
        Protect, //
    },
    rmap::ShadowSplitCaches,
    sync::Exclusive,
    sys::{
        Memslot,
        SlotRange, //
    }, //
};

/// Makes sure that every write to `slot` through shadow pages is noticed once the caller has
/// flushed the TLBs, and splits its huge pages to 4 KiB if there are `caches`. `how` says how 4 KiB
/// leaves are protected.
///
/// New leaves are created protected. A second walk protects the leaves that were small before or
/// stay huge. It can't be avoided, as a frame may have several leaves.
pub(crate) fn enable(
    lock: &mut Exclusive<'_>,
    slot: Memslot<'_>,
    caches: Option<&mut ShadowSplitCaches<'_>>,
    how: Protect,
) {
    if let Some(caches) = caches {
        let pages = SlotRange::whole(slot);

        split::split(lock, pages, Level::Page4K, Some(how), caches);
    }

    protect_slot(lock, slot, Level::Page4K, Level::Page4K, how);
    // D bits don't tell which part of a huge page was written.
    protect_slot(lock, slot, Level::Page2M, Level::MAX_LEAF, Protect::Log);
}
