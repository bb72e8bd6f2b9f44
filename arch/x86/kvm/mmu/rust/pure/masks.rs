// SPDX-License-Identifier: GPL-2.0

//! The vendor's SPTE format, as a value.

/// A snapshot of the `shadow_*` masks that describe the SPTE format in use.
///
/// C's vendor code sets the globals while a vendor module loads, that is before any VM exists, so
/// a snapshot never goes stale during the life of a VM. Passing it as a parameter keeps everything
/// that interprets an SPTE a pure function. A field is 0 where the format has no such bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Masks {
    /// Set while the host allows the page to be written.
    pub host_writable: u64,
    /// Clear while KVM write-protects the page for its own page-table shadowing.
    pub mmu_writable: u64,
    /// No-execute (NPT); excludes `xs` and `xu`.
    pub nx: u64,
    /// User access (NPT).
    pub user: u64,
    /// Execute in supervisor mode, or at all (EPT).
    pub xs: u64,
    /// Execute in user mode (EPT with mode-based execute control).
    pub xu: u64,
    /// Accessed.
    pub accessed: u64,
    /// Dirty.
    pub dirty: u64,
    /// Bits that every present SPTE carries besides the access bits.
    pub present: u64,
    /// The memory-encryption bits to set for encrypted host memory.
    pub me_value: u64,
    /// Bits cleared to make an SPTE of an A/D-disabled MMU fault on access.
    pub acc_track: u64,
    /// Distinguishes MMIO SPTEs, together with the per-VM value.
    pub mmio_mask: u64,
    /// The access bits that an MMIO SPTE caches.
    pub mmio_access: u64,
    /// Must be set in non-present SPTEs with a frame number, against L1TF.
    pub nonpresent_or_rsvd: u64,
    /// The physical address bits of an SPTE.
    pub base_addr: u64,
    /// Hardware A/D bits exist and KVM uses them for non-nested MMUs.
    pub ad_enabled: bool,
    /// MMIO SPTEs are in use (`kvm.mmio_caching`).
    pub mmio_caching: bool,
}

impl Masks {
    /// A format without any bits: what there is before a vendor module is loaded.
    pub const NONE: Masks = Masks {
        host_writable: 0,
        mmu_writable: 0,
        nx: 0,
        user: 0,
        xs: 0,
        xu: 0,
        accessed: 0,
        dirty: 0,
        present: 0,
        me_value: 0,
        acc_track: 0,
        mmio_mask: 0,
        mmio_access: 0,
        nonpresent_or_rsvd: 0,
        base_addr: 0,
        ad_enabled: false,
        mmio_caching: false,
    };
}
