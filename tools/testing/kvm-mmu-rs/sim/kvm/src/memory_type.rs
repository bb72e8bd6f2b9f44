// SPDX-License-Identifier: GPL-2.0

//! What an SPTE says of the memory that it maps, beyond the frame: memory types on Intel,
//! encryption on AMD, and whether it is MMIO of the host.

use machine::fail;

use crate::{
    bindings::*,
    model::{
        field,
        pages, //
    }, //
};

/// `VMX_EPT_MT_MASK`.
const MASK: u64 = 7 << 3;
const WRITE_BACK: u64 = 6 << 3;
/// The frames of a 2 MiB, or of a 1 GiB where the host has pages of that size, are of the same
/// kind.
const BLOCK: u64 = pages(if cfg!(feature = "small") { 3 } else { 2 });

/// Whether tables have the format of Intel.
pub(crate) fn is_ept() -> bool {
    // SAFETY: The format is constant while there is a VM.
    unsafe { shadow_nx_mask == 0 }
}

/// Whether a frame is MMIO of the host; `kvm_is_mmio_pfn()`.
pub fn is_mmio(pfn: u64) -> bool {
    pfn / BLOCK % 4 == 1
}

/// The bits of a leaf that say the memory's type; `vmx_get_mt_mask()`.
pub(crate) fn of(is_mmio: bool) -> u64 {
    if is_mmio || !is_ept() {
        0
    } else {
        WRITE_BACK
    }
}

/// Fails unless a leaf says what the frame `pfn`, its first, is.
pub fn check(kvm: *mut kvm, spte: u64, pfn: u64) {
    // SAFETY: The format is constant while there is a VM.
    let encryption = unsafe { shadow_me_value };
    let is_mmio = is_mmio(pfn);
    let encrypted = if is_mmio { 0 } else { encryption };

    if is_ept() {
        if spte & MASK != of(is_mmio) {
            fail(format!(
                "{spte:#x} has another memory type than frame {pfn:#x}"
            ));
        }
        return;
    }
    if spte & encryption != encrypted {
        fail(format!(
            "{spte:#x} is encrypted, or is not, as frame {pfn:#x}"
        ));
    }
    if is_mmio && !*field!(kvm, has_host_mmio) {
        fail(format!(
            "frame {pfn:#x} is MMIO of the host, and nobody has noted that"
        ));
    }
}
