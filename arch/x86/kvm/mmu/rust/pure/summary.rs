// SPDX-License-Identifier: GPL-2.0

//! What an entry that points to a table of 4 KiB leaves tells about the D bits in the table.
//!
//! The CPU sets A in an entry before it uses or caches it, that is before it sets D in a leaf
//! below. The protocol is in `ops/dirty_log/dirty_bits.rs`. The software bit is the one that means
//! host-writable in a leaf; it is unused in entries that point to tables.

use super::{
    masks::Masks,
    spte::Spte, //
};

/// A summary of the D bits in a table of 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Summary {
    /// A is set: CPUs may set D at any time.
    Open,
    /// A is clear: CPUs that have not cached the entry set A before they set D.
    Draining,
    /// The bits of all pages whose leaves have D set are set in the bitmap, as long as A is clear.
    Closed,
}

impl Summary {
    /// The summary in an entry that points to a table.
    #[inline]
    pub const fn of(entry: Spte, masks: &Masks) -> Self {
        if entry.0 & masks.accessed != 0 {
            Summary::Open
        } else if entry.0 & masks.host_writable == 0 {
            Summary::Draining
        } else {
            Summary::Closed
        }
    }

    /// The entry with the table draining.
    #[inline]
    pub const fn draining(entry: Spte, masks: &Masks) -> Spte {
        entry.without(masks.accessed | masks.host_writable)
    }

    /// The entry of a draining table with the table closed.
    #[inline]
    pub const fn closed(entry: Spte, masks: &Masks) -> Spte {
        Spte(entry.0 | masks.host_writable)
    }
}
