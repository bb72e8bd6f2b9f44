// SPDX-License-Identifier: GPL-2.0

//! The shadow MMU's pages and SPTEs, as far as the reverse map needs them.
//!
//! A shadow page either shadows a guest page table, and then records what each of its SPTEs
//! translates to; or it is *direct*, and maps consecutive frames with the same rights. All changes
//! here are under `mmu_lock` held for write, where only hardware, the fast page fault and aging may
//! interfere; what these can change makes a leaf volatile.

#![expect(unsafe_code)]

use core::ptr::NonNull;

use crate::{
    bindings,
    page::Sp,
    pte::PtePtr,
    pure::{
        addr::{ENTRIES, PAGE_SHIFT},
        Gfn, Index, Masks, Spte,
    },
    sys::{Memslot, Vm},
};

/// The `ACC_*` bits in a recorded translation.
const ACCESS: u64 = 0xf;

/// The index of a slot in its table.
#[inline]
pub(crate) fn index_of(slot: PtePtr<'_>) -> Index {
    let index = slot.as_ptr().addr() / size_of::<u64>() % ENTRIES;

    Index::new(index).unwrap_or(Index::FIRST)
}

impl<'a> Sp<'a> {
    /// What the SPTE at `index` translates to was recorded here; null if the page is direct.
    #[inline]
    fn translations(self) -> *mut u64 {
        // SAFETY: the page exists; the field is constant once it is linked.
        unsafe { (*self.as_ptr()).shadowed_translation }
    }

    /// The recorded translation at `index`, if the page has such.
    #[inline]
    fn translation(self, index: Index) -> Option<NonNull<u64>> {
        let first = NonNull::new(self.translations())?;

        // SAFETY: the array has an element for each entry of the table.
        Some(unsafe { first.add(index.get()) })
    }

    /// The guest frame that the SPTE at `index` maps; `kvm_mmu_page_get_gfn()`. `mmu_lock` is held.
    #[inline]
    pub(crate) fn gfn_at(self, index: Index) -> Gfn {
        let role = self.role();

        if role.passthrough() {
            return self.gfn();
        }
        if let Some(translation) = self.translation(index) {
            // SAFETY: valid as long as the page; `mmu_lock` is held.
            return Gfn(unsafe { translation.read() } >> PAGE_SHIFT);
        }
        let pages = role.level().map_or(0, |level| level.pages());
        self.gfn().add((index.get() as u64).wrapping_mul(pages))
    }

    /// The guest's access rights (`ACC_*`) to what the SPTE at `index` maps;
    /// `kvm_mmu_page_get_access()`. `mmu_lock` is held.
    #[inline]
    pub(crate) fn access_at(self, index: Index) -> u32 {
        match self.translation(index) {
            // SAFETY: valid as long as the page; `mmu_lock` is held.
            Some(translation) => (unsafe { translation.read() } & ACCESS) as u32,
            None => self.role().access(),
        }
    }

    /// Records what the SPTE at `index` translates to; a page that records nothing must agree.
    /// `kvm_mmu_page_set_translation()`. `mmu_lock` is held for write.
    #[inline]
    pub(crate) fn set_translation(self, index: Index, gfn: Gfn, access: u32) {
        if let Some(translation) = self.translation(index) {
            // SAFETY: valid as long as the page; `mmu_lock` is held for write.
            unsafe { translation.write(gfn.0 << PAGE_SHIFT | u64::from(access)) };
            return;
        }
        warn_once!(access != self.access_at(index));
        warn_once!(gfn != self.gfn_at(index));
    }

    /// Whether the page may be out of date with the guest page table that it shadows. `mmu_lock` is
    /// held for write.
    #[inline]
    pub(crate) fn is_unsync(self) -> bool {
        // SAFETY: the page exists; the field changes under `mmu_lock` held for write, or for read
        // while a leaf page's is set, which is not asked for here.
        unsafe { (*self.as_ptr()).unsync }
    }

    /// The memslot that holds `gfn`, in the address space that the page belongs to.
    #[inline]
    pub(crate) fn memslot(self, vm: Vm<'a>, gfn: Gfn) -> Option<Memslot<'a>> {
        // SAFETY: both exist. Memslots are freed after all their leaves are zapped, which takes
        // `mmu_lock` for write.
        let slot = unsafe { bindings::kvm_rs_slot_of_sp(vm.as_ptr(), self.as_ptr(), gfn.0) };

        if slot.is_null() {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { Memslot::from_raw(slot) })
    }
}

/// Writes a present leaf in place of another, atomically if the old one is volatile, and returns
/// what was replaced. `mmu_lock` is held for write.
#[inline]
pub(crate) fn replace(slot: PtePtr<'_>, old: Spte, new: Spte, masks: &Masks) -> Spte {
    prove!(new.is_ve_possible(masks));

    if old.is_volatile(masks) {
        slot.swap(new)
    } else {
        slot.write(new);
        old
    }
}

/// Changes a present leaf, which goes on mapping the same frame; `mmu_spte_update()`. Returns
/// whether that leaves stale TLB entries that matter.
#[inline]
pub(crate) fn update(slot: PtePtr<'_>, old: Spte, new: Spte, masks: &Masks) -> bool {
    warn_once!(!new.write_state_is_valid(masks));

    let old = replace(slot, old, new, masks);
    warn_once!(!old.is_present() || old.pfn(masks) != new.pfn(masks));

    old.change_needs_flush(new, masks)
}

/// Zaps a leaf; `mmu_spte_clear_track_bits()`. Returns whether it was present; the caller accounts
/// for it, and takes it out of its list.
#[inline]
pub(crate) fn zap(slot: PtePtr<'_>, masks: &Masks) -> bool {
    let old = slot.read();

    if !old.is_present() {
        slot.write(Spte::NONPRESENT);
        return false;
    }
    replace(slot, old, Spte::NONPRESENT, masks).is_present()
}
