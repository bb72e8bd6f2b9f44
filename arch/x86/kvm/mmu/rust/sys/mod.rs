// SPDX-License-Identifier: GPL-2.0

//! The rest of KVM, as seen from the MMU: safe handles on C's objects.
//!
//! A handle is a pointer with a lifetime: an export makes it from a C argument, and it can't
//! outlive the call. Fields that C may change concurrently are read by marked accesses.

#![expect(unsafe_code)]

/// Getters of a handle. Each reads a field of the C object, and may convert it.
///
/// Only for fields that nobody else changes while the handle exists: by the type invariant of the
/// handle the object exists, and its fields are constant or belong to this thread. Other fields
/// have methods of their own, which say why they may be read.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident -> $type:ty = $($field:ident).+ $(, $convert:expr)?;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(self) -> $type {
            // SAFETY: By the type invariant the object exists, and nobody changes the field.
            let value = unsafe { (*self.as_ptr()).$($field).+ };

            $(let value = $convert(value);)?
            value
        }
    )*};
}

mod dirty_bitmap;
mod fault;
mod format;
mod host_pages;
mod memslot;
mod sp;
pub(crate) mod stats;
pub(crate) mod trace;
mod vcpu;
mod vm;

pub(crate) use dirty_bitmap::{
    DirtyBitmap,
    Wanted, //
};
pub(crate) use fault::Fault;
pub(crate) use format::{
    refresh_masks,
    with_masks, //
};
pub(crate) use host_pages::HostPages;
pub(crate) use memslot::{
    Memslot,
    NotifierRange,
    SlotGfn,
    SlotRange,
    Unlogged, //
};
pub(crate) use sp::Sp;
pub(crate) use vcpu::Vcpu;

pub(crate) use crate::{
    support::task::fatal_signal_pending,
    vm::Vm, //
};

use crate::{
    bindings,
    pure::{
        Gfn,
        Pfn, //
    }, //
};

/// The first frame that no guest can have, where a walk over a whole root ends. KVM creates neither
/// memslots nor MMIO SPTEs beyond the host's MAXPHYADDR.
#[inline]
pub(crate) fn max_gfn_exclusive() -> Gfn {
    // SAFETY: A read of constants that are set before a VM exists.
    Gfn(unsafe { bindings::kvm_rs_max_gfn() }).add(1)
}

/// What becomes of an allocation if there is no memory, in a cgroup or at all, and none can be
/// reclaimed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The OOM killer looks for a task to kill; the allocation fails if there is none.
    Kill,
    /// The allocation fails.
    Fail,
}

/// A NUMA node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(i16);

impl Node {
    /// Any node; `NUMA_NO_NODE`.
    pub(crate) const ANY: Node = Node(-1);

    /// The node of a frame; [`Node::ANY`] if the frame is not memory.
    #[inline]
    pub(crate) fn of(pfn: Pfn) -> Self {
        // SAFETY: Looks the frame up, whether it exists or not.
        let nid = unsafe { bindings::kvm_rs_pfn_to_nid(pfn.raw()) };

        // There are at most 1024 nodes.
        i16::try_from(nid).map_or(Node::ANY, Node)
    }

    /// C's number for it.
    #[inline]
    pub(crate) fn raw(self) -> i32 {
        self.0.into()
    }
}

/// Whether the frame is host MMIO rather than memory. Expensive: looks at the memory map and the
/// PAT.
pub(crate) fn is_host_mmio(pfn: Pfn) -> bool {
    // SAFETY: Looks the frame up, whether it exists or not.
    unsafe { bindings::kvm_rs_is_host_mmio_pfn(pfn.raw()) }
}
