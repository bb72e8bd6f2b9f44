// SPDX-License-Identifier: GPL-2.0

//! The reverse map: from a guest frame to the SPTEs that map it, and from a shadow page to the
//! SPTEs that point to it. It is for the shadow MMU only; the TDP MMU finds its SPTEs by walking.
//!
//! # Locking
//!
//! A list changes under `mmu_lock` held for write *and* its own lock bit. C may therefore iterate
//! with `mmu_lock` held for read. Rust has two ways to read a list while it is stable:
//!
//! - [`Rmap`], with `mmu_lock` held for write. It borrows the lock's token exclusively: while it
//!   exists the lock is not dropped, and it is the only handle that changes lists. A loop over a
//!   list ([`Rmap::sptes`]) in turn borrows the handle, so removing an entry in the middle of a
//!   loop does not compile; [`Rmap::retain`] is for that.
//! - [`LockedList`], with only the lock bit held. It can't change the list. The SPTEs may be zapped
//!   concurrently, but their tables are not freed, because they leave the list first.
//!
//! [`encoding`] has the encoding of lists and the algorithms on them, without memory or locks, and
//! is tested on the host. [`ops`] has the operations that go through the lists.

mod change;
mod desc;
mod encoding;
mod iter;
mod list;
mod memslot;
pub(crate) mod ops;
pub(crate) mod shadow;
mod split_cache;
mod walk;

pub(crate) use change::{
    Found,
    Rmap, //
};
pub(crate) use desc::DescCache;
pub(crate) use iter::{
    count,
    first,
    next,
    RmapIterator, //
};
pub(crate) use list::List;
pub(crate) use memslot::{
    Lists,
    SlotRmaps, //
};
pub(crate) use split_cache::ShadowSplitCaches;
pub(crate) use walk::RmapWalk;
