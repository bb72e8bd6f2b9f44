// SPDX-License-Identifier: GPL-2.0

//! The shadow page table entry as a value: its bits, and what they mean.
//!
//! An SPTE is *MMU-present* if it maps memory or a table; hardware may or may not be able to use
//! it at the moment. All decisions go by the MMU-present bit. A leaf's write access is governed by
//! three bits, in one of four states:
//!
//! | host-writable | MMU-writable | W | the leaf is                                        |
//! |---------------|--------------|---|----------------------------------------------------|
//! | 1             | 1            | 1 | writable                                           |
//! | 1             | 1            | 0 | protected for dirty logging or access tracking     |
//! | 1             | 0            | 0 | protected because it is a shadowed guest page table |
//! | 0             | 0            | 0 | read-only memory of the host                       |
//!
//! Only the second state may be made writable without `mmu_lock` (the fast page fault).

use super::{
    addr::{
        Hpa,
        Level,
        Pfn,
        PAGE_SHIFT, //
    },
    masks::Masks,
    role::Role, //
};

/// A shadow page table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Spte(pub u64);

/// Present (x86 formats), readable (EPT); `ACC_READ_MASK`.
pub const PRESENT: u64 = 1 << 0;
/// Writable, in all formats; `ACC_WRITE_MASK`.
pub const WRITABLE: u64 = 1 << 1;
/// A leaf above the last level.
pub const PAGE_SIZE: u64 = 1 << 7;
/// MMU-present; a bit that all hardware formats ignore.
pub const MMU_PRESENT: u64 = 1 << 11;

/// EPT: executable in supervisor mode.
pub const EPT_EXECUTABLE: u64 = 1 << 2;
/// EPT: executable in user mode.
pub const EPT_USER_EXECUTABLE: u64 = 1 << 10;
/// EPT: read, write, execute.
pub const EPT_RWX: u64 = PRESENT | WRITABLE | EPT_EXECUTABLE;
/// EPT: no #VE for this entry.
pub const EPT_SUPPRESS_VE: u64 = 1 << 63;
/// EPT: write and execute without read, the misconfiguration that marks MMIO.
pub const EPT_MISCONFIG_WX: u64 = WRITABLE | EPT_EXECUTABLE;

const AD_MASK: u64 = 3 << 60;
const AD_ENABLED: u64 = 0;
/// The entry has no A/D bits.
pub const AD_DISABLED: u64 = 1 << 60;
/// The entry has A/D bits, but dirty logging must write-protect.
pub const AD_WRPROT_ONLY: u64 = 2 << 60;

/// The R and X bits that access tracking moves out of the hardware's sight (and W never needs to
/// be saved, because the page is dirty-tracked as well).
pub const ACC_TRACK_SAVED: u64 = PRESENT | EPT_EXECUTABLE | EPT_USER_EXECUTABLE;
/// Where [`ACC_TRACK_SAVED`] moves to.
pub const ACC_TRACK_SHIFT: u32 = 52;

/// What an SPTE decodes to at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Maps nothing: empty, or a cached MMIO access.
    NonPresent,
    /// Claimed by a thread in the middle of a change that takes several steps.
    Frozen,
    /// Points to the next lower table, which lives in this host frame.
    Table(Pfn),
    /// Maps this host frame, and those after it as the level says.
    Leaf(Pfn),
}

/// Some of the bits that tell whether and how a page may be written: W, MMU-writable, and D.
/// Whatever of them is cleared, an entry points where it did, and is as present as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteBits(u64);

impl WriteBits {
    /// W.
    pub const W: WriteBits = WriteBits(WRITABLE);

    /// D, in the format that `masks` describes; none if that has no D.
    #[inline]
    pub const fn dirty(masks: &Masks) -> Self {
        WriteBits(masks.dirty)
    }

    /// MMU-writable, in the format that `masks` describes.
    #[inline]
    pub const fn mmu_writable(masks: &Masks) -> Self {
        WriteBits(masks.mmu_writable)
    }

    /// These and those of `other`.
    #[inline]
    pub const fn and(self, other: WriteBits) -> Self {
        WriteBits(self.0 | other.0)
    }

    /// The bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// Identifies *settled* leaves by one comparison: present and writable, and with D set if it is D
/// that the dirty log clears (PML). Neither a fault nor the CPU will set another bit there that
/// matters to the log.
///
/// If the log clears W, D is not read, so a leaf is settled even if the CPU may set its D at any
/// moment. It is volatile nonetheless ([`Spte::is_volatile`]), because C decides by D how to change
/// it.
#[derive(Clone, Copy)]
pub struct Settled {
    mask: u64,
    value: u64,
    bit: WriteBits,
}

impl Settled {
    /// For a log that takes `bit`, W or D, away from the leaves of pages with this role, in the
    /// format that `masks` describes.
    #[inline]
    pub const fn new(bit: WriteBits, role: Role, masks: &Masks) -> Self {
        if masks.dirty == 0 || role.ad_disabled() {
            // Without A/D bits, aging takes rights away, and faults give them back: match nothing.
            return Settled {
                mask: 0,
                value: 1,
                bit,
            };
        }

        let value = MMU_PRESENT | WRITABLE | bit.raw();

        Settled {
            mask: value,
            value,
            bit,
        }
    }

    /// The leaf without the bit that the log takes away.
    #[inline]
    pub const fn cleared(self, spte: Spte) -> Spte {
        spte.cleared(self.bit)
    }

    /// Whether `spte`, which is a leaf if it is present, is settled.
    #[inline]
    pub const fn matches(self, spte: Spte) -> bool {
        spte.0 & self.mask == self.value
    }

    /// Whether all of `sptes` are settled: no bit need be clear in them, so it is enough to look at
    /// those that are set in all.
    #[inline(always)]
    pub fn matches_all(self, sptes: &[Spte]) -> bool {
        self.matches(Spte::all(sptes))
    }
}

/// Tells by one comparison which leaves nothing but a dirty log keeps from being written: present,
/// with A/D bits, MMU-writable, and without W.
#[derive(Clone, Copy)]
pub struct LogProtected {
    mask: u64,
    value: u64,
    grant: u64,
}

impl LogProtected {
    /// For the format that `masks` describes.
    #[inline]
    pub const fn new(masks: &Masks) -> Self {
        if masks.dirty == 0 {
            // Without A/D bits, what access tracking has taken away is saved elsewhere: match
            // nothing.
            return LogProtected {
                mask: 0,
                value: 1,
                grant: 0,
            };
        }

        let value = MMU_PRESENT | masks.mmu_writable;

        LogProtected {
            mask: value | WRITABLE | AD_DISABLED,
            value,
            grant: WRITABLE | masks.dirty,
        }
    }

    /// Whether `spte`, which is a leaf if it is present, is one of them.
    #[inline]
    pub const fn matches(self, spte: Spte) -> bool {
        spte.0 & self.mask == self.value
    }

    /// Whether all of `sptes` are: each bit that has to be set is set in all, and no bit that has
    /// to be clear is set in any.
    #[inline(always)]
    pub fn matches_all(self, sptes: &[Spte]) -> bool {
        // Where nothing matches, `value` is not within `mask`.
        let set = self.mask & self.value;

        Spte::all(sptes).0 & set == self.value && Spte::any(sptes).0 & (self.mask & !set) == 0
    }

    /// Whether it can be told at once that none of `sptes` is: a bit that has to be set is set in
    /// none, or one that has to be clear is set in all.
    #[inline(always)]
    pub fn matches_none(self, sptes: &[Spte]) -> bool {
        let set = self.mask & self.value;

        Spte::any(sptes).0 & set != self.value || Spte::all(sptes).0 & (self.mask & !set) != 0
    }

    /// Such a leaf with write access, and with D, which the CPU then need not set.
    #[inline]
    pub const fn writable(self, spte: Spte) -> Spte {
        Spte(spte.0 | self.grant)
    }
}

impl Spte {
    /// The value of an empty entry. Bit 63 suppresses #VE where EPT has it, and is ignored in a
    /// non-present entry elsewhere; `SHADOW_NONPRESENT_VALUE`.
    pub const NONPRESENT: Spte = Spte(EPT_SUPPRESS_VE);

    /// The value of a frozen entry: not present for any hardware, no frame bits (L1TF);
    /// `FROZEN_SPTE`.
    pub const FROZEN: Spte = Spte(EPT_SUPPRESS_VE | 0x1a0);

    /// The entry as a plain word.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether any of `bits` is set.
    #[inline]
    pub const fn has_any(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has_all(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The bits that are set in all of some SPTEs.
    #[inline(always)]
    pub fn all(sptes: &[Spte]) -> Spte {
        sptes
            .iter()
            .fold(Spte(u64::MAX), |all, spte| Spte(all.0 & spte.0))
    }

    /// The bits that are set in any of some SPTEs.
    #[inline(always)]
    pub fn any(sptes: &[Spte]) -> Spte {
        sptes.iter().fold(Spte(0), |any, spte| Spte(any.0 | spte.0))
    }

    /// The entry with those of `bits` set that are set in `other`.
    #[inline]
    pub const fn with_from(self, other: Spte, bits: u64) -> Spte {
        Spte(self.0 | (other.0 & bits))
    }

    /// A leaf like this one, for the frame `offset` bytes further on. This leaf's address has none
    /// of the bits of `offset`, so to add is the same as to or, and a loop over a table gets by
    /// with one addition for each entry.
    #[inline]
    pub const fn at_offset(self, offset: u64) -> Spte {
        Spte(self.0.wrapping_add(offset))
    }

    /// Interprets the entry at `level`.
    #[inline]
    pub const fn decode(self, level: Level, masks: &Masks) -> Entry {
        if self.is_present() {
            if self.is_leaf(level) {
                Entry::Leaf(self.pfn(masks))
            } else {
                Entry::Table(self.pfn(masks))
            }
        } else if self.is_frozen() {
            Entry::Frozen
        } else {
            Entry::NonPresent
        }
    }

    /// Whether the entry is MMU-present.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & MMU_PRESENT != 0
    }

    /// Whether another thread has claimed the entry.
    #[inline]
    pub const fn is_frozen(self) -> bool {
        self.0 == Self::FROZEN.0
    }

    /// Whether the page-size bit is set; `is_large_pte()`.
    #[inline]
    pub const fn is_large(self) -> bool {
        self.0 & PAGE_SIZE != 0
    }

    /// Whether an MMU-present entry is a leaf at `level`; `is_last_spte()`.
    #[inline]
    pub const fn is_leaf(self, level: Level) -> bool {
        matches!(level, Level::Page4K) || self.is_large()
    }

    /// Whether hardware may write through the entry now.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// Whether a fast page fault may make the entry writable.
    #[inline]
    pub const fn is_mmu_writable(self, masks: &Masks) -> bool {
        self.0 & masks.mmu_writable != 0
    }

    /// Whether the accessed bit is set. With A/D bits disabled the format reuses the mask as
    /// software state, exactly as C does.
    #[inline]
    pub const fn is_accessed(self, masks: &Masks) -> bool {
        self.0 & masks.accessed != 0
    }

    /// Whether a leaf has its D bit set.
    #[inline]
    pub const fn is_dirty(self, masks: &Masks) -> bool {
        self.0 & masks.dirty != 0
    }

    /// Whether an MMU-present entry has A/D bits.
    #[inline]
    pub const fn ad_enabled(self) -> bool {
        self.0 & AD_MASK != AD_DISABLED
    }

    /// Whether dirty logging has to write-protect an MMU-present entry, because its dirty bit
    /// does not exist or is not to be relied on.
    #[inline]
    pub const fn ad_need_write_protect(self) -> bool {
        self.0 & AD_MASK != AD_ENABLED
    }

    /// Whether access tracking has made an MMU-present entry inaccessible.
    #[inline]
    pub const fn is_access_tracked(self, masks: &Masks) -> bool {
        !self.ad_enabled() && self.0 & masks.acc_track == 0
    }

    /// Whether the entry caches an MMIO access of a VM whose MMIO value is `vm_mmio_value`.
    #[inline]
    pub const fn is_mmio(self, vm_mmio_value: u64, masks: &Masks) -> bool {
        masks.mmio_caching && self.0 & masks.mmio_mask == vm_mmio_value
    }

    /// The frame that an MMU-present entry points to.
    #[inline]
    pub const fn pfn(self, masks: &Masks) -> Pfn {
        Pfn((self.0 & masks.base_addr) >> PAGE_SHIFT)
    }

    /// The address of the table that a non-leaf entry points to, if it is one.
    #[inline]
    pub const fn child_table(self, level: Level, masks: &Masks) -> Option<Hpa> {
        match self.decode(level, masks) {
            Entry::Table(pfn) => Some(pfn.hpa()),
            _ => None,
        }
    }

    /// The entry with `bits` cleared.
    #[inline]
    pub const fn without(self, bits: u64) -> Spte {
        Spte(self.0 & !bits)
    }

    /// The entry with `bits` cleared: it points where it did.
    #[inline]
    pub const fn cleared(self, bits: WriteBits) -> Spte {
        self.without(bits.0)
    }

    /// Whether an MMU-present leaf has bits that can change without `mmu_lock` and must not be
    /// lost, so that it has to be updated by an atomic read-modify-write.
    ///
    /// These are W, which a fast page fault sets; the access state of entries without A/D bits,
    /// which aging and the fast page fault change; and D, which the CPU sets. The A bit may be
    /// lost, because aging tolerates false answers. Corresponds to `spte_needs_atomic_update()`.
    #[inline]
    pub const fn is_volatile(self, masks: &Masks) -> bool {
        if !self.is_writable() && self.is_mmu_writable(masks) {
            return true;
        }
        !self.ad_enabled() || (self.is_writable() && self.0 & masks.dirty == 0)
    }

    /// As [`Spte::is_volatile`], for any entry at `level`.
    #[inline]
    pub const fn needs_atomic_update(self, level: Level, masks: &Masks) -> bool {
        self.is_present() && self.is_leaf(level) && self.is_volatile(masks)
    }

    /// Whether a leaf is in one of the four states in the table at the top of this file;
    /// `check_spte_writable_invariants()`.
    #[inline]
    pub const fn write_state_is_valid(self, masks: &Masks) -> bool {
        if self.is_mmu_writable(masks) {
            self.0 & masks.host_writable != 0
        } else {
            !self.is_writable()
        }
    }

    /// Whether replacing the leaf `self` by the leaf `new` leaves stale TLB entries that matter.
    /// That is only the case if write-tracking revokes a permission: dirty logging flushes for what
    /// it reaps, and aging tolerates stale entries. See the comment on
    /// `leaf_spte_change_needs_tlb_flush()` in C.
    #[inline]
    pub const fn change_needs_flush(self, new: Spte, masks: &Masks) -> bool {
        self.is_mmu_writable(masks) && !new.is_mmu_writable(masks)
    }

    /// Whether hardware could raise a #VE in the guest for this entry, which KVM never wants.
    #[inline]
    pub const fn is_ve_possible(self, masks: &Masks) -> bool {
        masks.present & EPT_SUPPRESS_VE != 0
            && self.0 & EPT_SUPPRESS_VE == 0
            && self.0 & EPT_RWX != EPT_MISCONFIG_WX
    }

    /// Whether the bits that access tracking saves the permissions in are free.
    #[inline]
    pub const fn acc_track_bits_free(self) -> bool {
        self.0 & (ACC_TRACK_SAVED << ACC_TRACK_SHIFT) == 0
    }

    /// The entry marked as not accessed: with A cleared or, if there is no A bit, inaccessible with
    /// the permissions saved. Corresponds to `mark_spte_for_access_track()`.
    #[inline]
    pub const fn mark_access_track(self, masks: &Masks) -> Spte {
        if self.ad_enabled() {
            return self.without(masks.accessed);
        }
        if self.is_access_tracked(masks) {
            return self;
        }
        let saved = (self.0 & ACC_TRACK_SAVED) << ACC_TRACK_SHIFT;
        Spte((self.0 | saved) & !(masks.acc_track | masks.accessed))
    }

    /// Undoes [`Spte::mark_access_track`] on an access-tracked entry (except for W and A);
    /// `restore_acc_track_spte()`.
    #[inline]
    pub const fn restore_access_track(self, masks: &Masks) -> Spte {
        let saved = (self.0 >> ACC_TRACK_SHIFT) & ACC_TRACK_SAVED;
        let cleared = self.0 & !masks.acc_track & !(ACC_TRACK_SAVED << ACC_TRACK_SHIFT);
        Spte(cleared | saved)
    }
}
