// SPDX-License-Identifier: GPL-2.0

//! The rest of KVM, as seen from the MMU: safe handles on C's objects.
//!
//! A handle is a pointer with a lifetime: an export makes it from a C argument, and may not let it
//! outlive the call. All fields that C may change at the same time are read by marked accesses.

#![expect(unsafe_code)]

mod fault;
mod memslot;
pub(crate) mod trace;
mod vcpu;
mod vm;

pub(crate) use fault::Fault;
pub(crate) use memslot::{Memslot, NotifierRange};
pub(crate) use vcpu::Vcpu;
pub(crate) use vm::Vm;

use crate::{
    bindings,
    pure::{Gfn, Masks, Pfn},
};

/// A snapshot of the SPTE format; see [`Masks`].
#[inline(always)]
pub(crate) fn masks() -> Masks {
    macro_rules! global {
        ($name:ident) => {{
            // SAFETY: C writes the mask globals while a vendor module loads, when no VM exists.
            // The MMU runs on behalf of a VM, so there is no writer now.
            unsafe { bindings::$name }
        }};
    }

    Masks {
        host_writable: global!(shadow_host_writable_mask),
        mmu_writable: global!(shadow_mmu_writable_mask),
        nx: global!(shadow_nx_mask),
        user: global!(shadow_user_mask),
        xs: global!(shadow_xs_mask),
        xu: global!(shadow_xu_mask),
        accessed: global!(shadow_accessed_mask),
        dirty: global!(shadow_dirty_mask),
        present: global!(shadow_present_mask),
        me_value: global!(shadow_me_value),
        acc_track: global!(shadow_acc_track_mask),
        mmio_mask: global!(shadow_mmio_mask),
        mmio_access: global!(shadow_mmio_access_mask),
        nonpresent_or_rsvd: global!(shadow_nonpresent_or_rsvd_mask),
        // SAFETY: a read of boot-time constants.
        base_addr: unsafe { bindings::kvm_rs_base_addr_mask() },
        ad_enabled: global!(kvm_ad_enabled),
        mmio_caching: global!(enable_mmio_caching),
    }
}

/// The first frame that no guest can have: the walk of a whole root ends here. KVM creates neither
/// memslots nor MMIO SPTEs beyond the host's MAXPHYADDR.
#[inline]
pub(crate) fn max_gfn_exclusive() -> Gfn {
    // SAFETY: a read of constants that are set before a VM exists.
    Gfn(unsafe { bindings::kvm_rs_max_gfn() }).add(1)
}

/// Whether the frame is host MMIO rather than memory. Costly: asks the memory map and the PAT.
pub(crate) fn is_host_mmio(pfn: Pfn) -> bool {
    // SAFETY: looks the frame up, whether it exists or not.
    unsafe { bindings::kvm_rs_is_host_mmio_pfn(pfn.0) }
}

/// Tells the CPU that this is a busy-wait loop.
#[inline]
pub(crate) fn cpu_relax() {
    // SAFETY: has no effect on memory.
    unsafe { bindings::kvm_rs_cpu_relax() }
}
