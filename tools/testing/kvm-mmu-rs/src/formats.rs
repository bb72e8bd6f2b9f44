// SPDX-License-Identifier: GPL-2.0

//! The SPTE formats that vendor code sets up, for tests. Written from what the hardware manuals say
//! of NPT and EPT entries and from what KVM makes of their software bits.

use crate::pure::Masks;

const PHYSICAL: u64 = 0x000f_ffff_ffff_f000;

/// AMD: NPT entries are those of x86-64 paging.
pub fn npt() -> Masks {
    Masks {
        host_writable: 1 << 9,
        mmu_writable: 1 << 10,
        nx: 1 << 63,
        user: 1 << 2,
        xs: 0,
        xu: 0,
        accessed: 1 << 5,
        dirty: 1 << 6,
        present: 1 << 0,
        me_value: 0,
        acc_track: 0,
        mmio_mask: 1 << 51 | 1,
        mmio_access: 0b110,
        nonpresent_or_rsvd: 0,
        base_addr: PHYSICAL,
        ad_enabled: true,
        mmio_caching: true,
    }
}

/// Intel: EPT entries, of a CPU with A/D bits or without.
pub fn ept(has_ad: bool) -> Masks {
    Masks {
        host_writable: 1 << 53,
        mmu_writable: 1 << 55,
        nx: 0,
        user: 0,
        xs: 1 << 2,
        xu: 1 << 10,
        accessed: 1 << 8,
        dirty: 1 << 9,
        present: 1 << 63,
        me_value: 0,
        acc_track: 0b111 | 1 << 10,
        mmio_mask: 0b111 | 1 << 63,
        mmio_access: 0,
        nonpresent_or_rsvd: 0,
        base_addr: PHYSICAL,
        ad_enabled: has_ad,
        mmio_caching: true,
    }
}

/// The value of `shadow_mmio_value` in each format.
pub fn mmio_value(masks: &Masks) -> u64 {
    if masks.nx != 0 {
        1 << 51 | 1
    } else {
        0b110
    }
}
