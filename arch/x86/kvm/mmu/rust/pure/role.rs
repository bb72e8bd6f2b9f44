// SPDX-License-Identifier: GPL-2.0

//! The role of a shadow page.

use super::addr::Level;

/// What a shadow page is used for: `union kvm_mmu_page_role`, as its word.
///
/// bindgen cannot express the C bit-field as constants; a KUnit test compares each accessor here
/// with the C compiler's idea of the layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Role(pub u32);

impl Role {
    const LEVEL_MASK: u32 = 0xf;
    const DIRECT: u32 = 1 << 7;
    const ACCESS_SHIFT: u32 = 8;
    const ACCESS_MASK: u32 = 0xf;
    const INVALID: u32 = 1 << 12;
    const AD_DISABLED: u32 = 1 << 16;
    const GUEST_MODE: u32 = 1 << 17;
    const PASSTHROUGH: u32 = 1 << 18;
    const MIRROR: u32 = 1 << 19;
    const SMM_SHIFT: u32 = 24;

    /// The role as C's word.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The level of the page table, or `None` if the word holds no valid level (never so for a
    /// page of the TDP MMU).
    #[inline]
    pub const fn level(self) -> Option<Level> {
        Level::from_raw(self.0 & Self::LEVEL_MASK)
    }

    /// The access rights (`ACC_*`) that the page's entries may grant.
    #[inline]
    pub const fn access(self) -> u32 {
        (self.0 >> Self::ACCESS_SHIFT) & Self::ACCESS_MASK
    }

    /// The page shadows no guest page table: it maps consecutive frames.
    #[inline]
    pub const fn direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }

    /// The page adds a level above the guest's own; all its entries stand for its one frame.
    #[inline]
    pub const fn passthrough(self) -> bool {
        self.0 & Self::PASSTHROUGH != 0
    }

    /// The root has been invalidated; it must not be loaded by a vCPU any more.
    #[inline]
    pub const fn invalid(self) -> bool {
        self.0 & Self::INVALID != 0
    }

    /// The entries have no A/D bits.
    #[inline]
    pub const fn ad_disabled(self) -> bool {
        self.0 & Self::AD_DISABLED != 0
    }

    /// The page maps an L2 guest.
    #[inline]
    pub const fn guest_mode(self) -> bool {
        self.0 & Self::GUEST_MODE != 0
    }

    /// The page mirrors an external (TDX) page table.
    #[inline]
    pub const fn mirror(self) -> bool {
        self.0 & Self::MIRROR != 0
    }

    /// The address space: 1 for SMM, otherwise 0.
    #[inline]
    pub const fn as_id(self) -> u16 {
        (self.0 >> Self::SMM_SHIFT != 0) as u16
    }

    /// The same role with the mirror bit set.
    #[inline]
    pub const fn as_mirror(self) -> Role {
        Role(self.0 | Self::MIRROR)
    }

    /// The same role with the invalid bit set.
    #[inline]
    pub const fn as_invalid(self) -> Role {
        Role(self.0 | Self::INVALID)
    }

    /// The role of a child: all the same but one level down.
    #[inline]
    pub const fn at_level(self, level: Level) -> Role {
        Role(self.0 & !Self::LEVEL_MASK | level as u32)
    }
}
