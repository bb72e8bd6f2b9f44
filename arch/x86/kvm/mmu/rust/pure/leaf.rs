// SPDX-License-Identifier: GPL-2.0

//! Building SPTEs: leaves, the leaves of a split, the leaf of a recovered huge page, tables, MMIO.

use super::{
    addr::{
        Gfn,
        Hpa,
        Index,
        Level,
        Pfn,
        PAGE_SHIFT, //
    },
    masks::Masks,
    role::Role,
    spte::{
        self,
        Spte, //
    }, //
};

/// `ACC_READ_MASK`.
pub const ACC_READ: u32 = 1 << 0;
/// `ACC_WRITE_MASK`.
pub const ACC_WRITE: u32 = 1 << 1;
/// `ACC_USER_MASK` (x86 formats) and `ACC_USER_EXEC_MASK` (EPT) share a bit.
pub const ACC_USER: u32 = 1 << 2;
/// `ACC_EXEC_MASK`.
pub const ACC_EXEC: u32 = 1 << 3;

/// Generation bits 0..=6 of an MMIO SPTE are bits 3..=9.
const MMIO_GEN_LOW: u64 = 0x3f8;
const MMIO_GEN_LOW_SHIFT: u32 = 3;
/// Generation bits 7..=17 of an MMIO SPTE are bits 52..=62.
const MMIO_GEN_HIGH: u64 = 0x7ff << 52;
const MMIO_GEN_HIGH_SHIFT: u32 = 45;
/// The part of a memslot generation that MMIO SPTEs hold.
pub const MMIO_GEN: u64 = (1 << 18) - 1;
/// `SHADOW_NONPRESENT_OR_RSVD_MASK_LEN`.
const L1TF_SHIFT: u32 = 5;

/// How the A/D state of new leaves is tracked. The values are the bits of an SPTE that say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum AdMode {
    /// Hardware A/D bits.
    Enabled = 0,
    /// No A/D bits.
    Disabled = spte::AD_DISABLED,
    /// A/D bits exist, but writes are found by write protection (L2 under PML).
    WriteProtect = spte::AD_WRPROT_ONLY,
}

/// What a new leaf is made of, except for whether it may be writable at once.
#[derive(Clone, Copy, Debug)]
pub struct LeafSpec {
    /// The level of the table that the leaf goes into.
    pub level: Level,
    /// The frame to map.
    pub pfn: Pfn,
    /// What the guest may do (`ACC_*`).
    pub access: u32,
    /// The host allows writes.
    pub host_writable: bool,
    /// A/D tracking of the page table.
    pub ad: AdMode,
    /// Leave the page unaccessed: the guest hasn't touched it yet.
    pub prefetch: bool,
    /// The iTLB-multihit mitigation forbids executable huge pages.
    pub nx_huge_pages: bool,
    /// Memory-type bits, in place.
    pub memory_type: u64,
    /// Set the memory-encryption bits.
    pub encrypted: bool,
}

impl LeafSpec {
    /// The access rights that remain under the NX huge page mitigation.
    #[inline(always)]
    const fn allowed_access(&self, masks: &Masks) -> u32 {
        if self.nx_huge_pages && !matches!(self.level, Level::Page4K) {
            without_exec(self.access, masks)
        } else {
            self.access
        }
    }

    /// The leaf without write access, and whether the guest and the host would allow it.
    /// [`LeafSpec::finish`] completes it.
    #[inline(always)]
    pub const fn protected(&self, masks: &Masks) -> (Spte, bool) {
        let access = self.allowed_access(masks);
        let mut bits = spte::MMU_PRESENT | masks.present | self.memory_type | self.ad as u64;

        if !self.prefetch {
            bits |= masks.accessed;
        }
        if access & ACC_READ != 0 {
            bits |= spte::PRESENT;
        }
        if masks.nx != 0 {
            if access & ACC_EXEC == 0 {
                bits |= masks.nx;
            }
            if access & ACC_USER != 0 {
                bits |= masks.user;
            }
        } else {
            if access & ACC_EXEC != 0 {
                bits |= masks.xs;
            }
            if access & ACC_USER != 0 {
                bits |= masks.xu;
            }
        }
        if !matches!(self.level, Level::Page4K) {
            bits |= spte::PAGE_SIZE;
        }
        if self.host_writable {
            bits |= masks.host_writable;
        }
        if self.encrypted {
            bits |= masks.me_value;
        }
        bits |= self.pfn.0 << PAGE_SHIFT;

        (Spte(bits), self.host_writable && access & ACC_WRITE != 0)
    }

    /// Completes what [`LeafSpec::protected`] returned.
    #[inline]
    pub const fn finish(&self, protected: Spte, writable: bool, masks: &Masks) -> Spte {
        let spte = if writable {
            Spte(protected.0 | spte::WRITABLE | masks.mmu_writable | masks.dirty)
        } else {
            protected
        };

        if self.prefetch {
            spte.mark_access_track(masks)
        } else {
            spte
        }
    }
}

/// The access rights without those to execute.
// Not inlined: the compiler would do it for each leaf, and then drop the result for most.
#[cold]
#[inline(never)]
const fn without_exec(access: u32, masks: &Masks) -> u32 {
    if masks.xu != 0 {
        access & !(ACC_EXEC | ACC_USER)
    } else {
        access & !ACC_EXEC
    }
}

/// A leaf like `leaf` that maps the frame `pfn`, with the frame's memory type and encryption.
/// `leaf` was made from a [`LeafSpec`] with frame 0 and neither of these.
#[inline]
pub const fn for_frame(
    leaf: Spte,
    pfn: Pfn,
    memory_type: u64,
    encrypted: bool,
    masks: &Masks,
) -> Spte {
    let encryption = if encrypted { masks.me_value } else { 0 };

    Spte(leaf.0 | pfn.0 << PAGE_SHIFT | memory_type | encryption)
}

/// Grants or revokes execute rights of a leaf, also of an access-tracked one.
#[inline]
const fn change_executable(spte: Spte, access: u32, masks: &Masks) -> Spte {
    let set = if masks.nx != 0 {
        if access & ACC_EXEC != 0 {
            0
        } else {
            masks.nx
        }
    } else {
        (if access & ACC_EXEC != 0 { masks.xs } else { 0 })
            | (if access & ACC_USER != 0 { masks.xu } else { 0 })
    };
    let clear = set ^ (masks.nx | masks.xs | masks.xu);
    let tracked = spte.is_access_tracked(masks);
    let plain = if tracked {
        spte.restore_access_track(masks)
    } else {
        spte
    };
    let changed = Spte((plain.0 | set) & !clear);

    if tracked {
        changed.mark_access_track(masks)
    } else {
        changed
    }
}

/// The leaf at `index` of the table that replaces the huge leaf `huge`; `make_small_spte()`.
/// Whatever `huge` is, the result does not point to a table at `level`.
///
/// `role` is the role of the new table. A 4 KiB leaf regains the execute rights that the NX huge
/// page mitigation took from the huge one.
#[inline]
pub const fn split_child(
    huge: Spte,
    role: Role,
    level: Level,
    index: Index,
    nx_huge_pages: bool,
    masks: &Masks,
) -> Spte {
    let child = Spte(huge.0 | (index.get() as u64).wrapping_mul(child_stride(level)));

    match level {
        Level::Page4K => {
            let small = child.without(spte::PAGE_SIZE);
            if nx_huge_pages {
                change_executable(small, role.access(), masks)
            } else {
                small
            }
        }
        _ => Spte(child.0 | spte::PAGE_SIZE),
    }
}

/// How many bytes apart the addresses of two neighbours in a table of `level` are. All leaves that
/// [`split_child`] makes of one huge leaf are the first one, with a multiple of this ored in.
#[inline]
pub const fn child_stride(level: Level) -> u64 {
    level.pages().wrapping_shl(PAGE_SHIFT)
}

/// The huge leaf of `level` that replaces a table; `small` is a leaf below that table, at any
/// level; `make_huge_spte()`.
///
/// Only correct if the whole huge page is mapped contiguously with equal rights, which the caller
/// knows from the host's mapping. The leaf is not executable if the NX huge page mitigation is
/// enabled.
#[inline]
pub const fn recovered(small: Spte, level: Level, nx_huge_pages: bool, masks: &Masks) -> Spte {
    let offset_in_page = ((level.pages() << PAGE_SHIFT) - 1) & !((1 << PAGE_SHIFT) - 1);
    let huge = Spte(small.0 | spte::PAGE_SIZE).without(offset_in_page);

    if nx_huge_pages {
        change_executable(huge, 0, masks)
    } else {
        huge
    }
}

/// The leaf with write access, if it was only protected for dirty logging, which has ended;
/// otherwise the leaf as it is.
///
/// That is what a fast page fault would make of the leaf on the first write. An access-tracked leaf
/// is left alone, because W without R is not a valid EPT entry.
#[inline]
pub const fn unprotected(leaf: Spte, masks: &Masks) -> Spte {
    if leaf.is_mmu_writable(masks) && !leaf.is_access_tracked(masks) {
        Spte(leaf.0 | spte::WRITABLE | masks.dirty)
    } else {
        leaf
    }
}

/// An entry that points to the table at `table`; `make_nonleaf_spte()`.
#[inline]
pub const fn table(table: Hpa, ad_disabled: bool, masks: &Masks) -> Spte {
    let bits = spte::MMU_PRESENT
        | table.0
        | masks.present
        | spte::WRITABLE
        | spte::PRESENT
        | masks.user
        | masks.xs
        | masks.xu
        | masks.me_value;

    Spte(
        bits | if ad_disabled {
            spte::AD_DISABLED
        } else {
            masks.accessed
        },
    )
}

/// An entry that caches that `gfn` is MMIO as of memslot generation `generation`;
/// `make_mmio_spte()`.
///
/// The frame bits that L1TF needs inverted move up, so that the gfn can be recovered.
#[inline]
pub const fn mmio(gfn: Gfn, access: u32, generation: u64, vm_value: u64, masks: &Masks) -> Spte {
    let gen = generation & MMIO_GEN;
    let gen_bits = ((gen << MMIO_GEN_LOW_SHIFT) & MMIO_GEN_LOW)
        | ((gen << MMIO_GEN_HIGH_SHIFT) & MMIO_GEN_HIGH);
    let gpa = gfn.0 << PAGE_SHIFT;

    Spte(
        gen_bits
            | vm_value
            | (access as u64 & masks.mmio_access)
            | gpa
            | masks.nonpresent_or_rsvd
            | ((gpa & masks.nonpresent_or_rsvd) << L1TF_SHIFT),
    )
}

/// The `ACC_*` rights that hardware takes from `spte`, as the index into a permission bitmap.
#[inline]
pub const fn granted_access(spte: Spte, masks: &Masks) -> u32 {
    let mut access = (spte.0 & (spte::PRESENT | spte::WRITABLE)) as u32;

    if masks.nx != 0 {
        if spte.0 & masks.user != 0 {
            access |= ACC_USER;
        }
        if spte.0 & masks.nx == 0 {
            access |= ACC_EXEC;
        }
    } else {
        if spte.0 & masks.xs != 0 {
            access |= ACC_EXEC;
        }
        if spte.0 & masks.xu != 0 {
            access |= ACC_USER;
        }
    }
    access
}
