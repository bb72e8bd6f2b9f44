// SPDX-License-Identifier: GPL-2.0

//! The shadow MMU's pages and SPTEs, as far as the reverse map needs them.
//!
//! A shadow page either shadows a guest page table, and records the translation of each of its
//! SPTEs, or it is *direct*, and maps consecutive frames with the same rights. All changes here are
//! made with `mmu_lock` held for write, so only hardware, the fast page fault and aging can
//! interfere. The bits that they may change make a leaf volatile.

#![expect(unsafe_code)]

use core::ptr::NonNull;

use crate::{
    bindings,
    pte::{
        check_write_state,
        Seen,
        Sptep,
        Table, //
    },
    pure::{
        addr::{
            ENTRIES,
            PAGE_SHIFT, //
        },
        Gfn,
        Index,
        Masks,
        Spte,
        WriteBits, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        Memslot,
        SlotGfn,
        Sp, //
    }, //
};

/// The `ACC_*` bits in a recorded translation.
const ACCESS: u64 = 0xf;

/// The index of an entry in its table.
#[inline]
pub(crate) fn index_of(sptep: Sptep<'_>) -> Index {
    let index = sptep.as_ptr().addr() / size_of::<u64>() % ENTRIES;

    Index::new(index).unwrap_or(Index::FIRST)
}

impl<'a> Sp<'a> {
    /// The recorded translations, one for each SPTE; null if the page is direct.
    #[inline]
    fn translations(self) -> *mut u64 {
        // SAFETY: The page exists; the field is constant once it is linked.
        unsafe { (*self.as_ptr()).shadowed_translation }
    }

    /// The recorded translation of the SPTE at `index`, if the page records any.
    #[inline]
    fn translation(self, index: Index) -> Option<NonNull<u64>> {
        let first = NonNull::new(self.translations())?;

        // SAFETY: The array has an element for each entry of the table.
        Some(unsafe { first.add(index.get()) })
    }

    /// The guest frame that the SPTE at `index` maps; `kvm_mmu_page_get_gfn()`.
    #[inline]
    pub(crate) fn gfn_at(self, _lock: &Exclusive<'_>, index: Index) -> Gfn {
        // SAFETY: The token shows it.
        unsafe { self.gfn_at_locked(index) }
    }

    /// As [`Sp::gfn_at`], where C holds the lock of a VM that it does not name.
    ///
    /// # Safety
    ///
    /// `mmu_lock` must be held for write.
    #[inline]
    pub(crate) unsafe fn gfn_at_locked(self, index: Index) -> Gfn {
        let role = self.role();

        if role.passthrough() {
            return self.gfn();
        }
        if let Some(translation) = self.translation(index) {
            // SAFETY: Valid as long as the page; `mmu_lock` is held, by this function's safety
            // requirement.
            return Gfn(unsafe { translation.read() } >> PAGE_SHIFT);
        }
        let pages = role.level().map_or(0, |level| level.pages());
        self.gfn().add((index.get() as u64).wrapping_mul(pages))
    }

    /// The guest's access rights (`ACC_*`) to what the SPTE at `index` maps;
    /// `kvm_mmu_page_get_access()`.
    #[inline]
    pub(crate) fn access_at(self, _lock: &Exclusive<'_>, index: Index) -> u32 {
        match self.translation(index) {
            // SAFETY: Valid as long as the page; `mmu_lock` is held.
            Some(translation) => (unsafe { translation.read() } & ACCESS) as u32,
            None => self.role().access(),
        }
    }

    /// Records the translation of the SPTE at `index`. If the page is direct, warns unless it
    /// agrees; `kvm_mmu_page_set_translation()`.
    #[inline]
    pub(crate) fn set_translation(self, lock: &Exclusive<'_>, index: Index, gfn: Gfn, access: u32) {
        if let Some(translation) = self.translation(index) {
            // SAFETY: Valid as long as the page; `mmu_lock` is held for write.
            unsafe { translation.write(gfn.raw() << PAGE_SHIFT | u64::from(access)) };
            return;
        }
        warn_on_once!(access != self.access_at(lock, index));
        warn_on_once!(gfn != self.gfn_at(lock, index));
    }

    /// Whether the page may be out of date with the guest page table that it shadows.
    #[inline]
    pub(crate) fn is_unsync(self, _lock: &Exclusive<'_>) -> bool {
        // SAFETY: The page exists; the field changes under `mmu_lock` only.
        unsafe { (*self.as_ptr()).unsync }
    }

    /// The memslot that holds `gfn`, in the address space that the page belongs to.
    #[inline]
    pub(crate) fn memslot<'l>(self, lock: &Exclusive<'l>, gfn: Gfn) -> Option<Memslot<'l>> {
        let vm = lock.vm();
        // SAFETY: Both exist. Memslots are freed after all their leaves are zapped, which takes
        // `mmu_lock` for write.
        let slot = unsafe { bindings::kvm_rs_slot_of_sp(vm.as_ptr(), self.as_ptr(), gfn.raw()) };

        if slot.is_null() {
            return None;
        }
        // SAFETY: As above.
        Some(unsafe { Memslot::from_raw(slot) })
    }
}

/// Clears bits of a present leaf, atomically if it is volatile, and returns what was replaced.
#[inline]
pub(crate) fn clear(_lock: &Exclusive<'_>, leaf: Seen<'_>, bits: WriteBits, masks: &Masks) -> Spte {
    let old = leaf.spte();
    let new = old.cleared(bits);

    kvm_mmu_warn_on!(new.is_ve_possible(masks));

    if old.is_volatile(masks) {
        // SAFETY: `mmu_lock` is held for write. The entry points where it did, as nobody else
        // changes that.
        unsafe { leaf.sptep().swap(new) }
    } else {
        // SAFETY: As above.
        unsafe { leaf.sptep().write(new) };
        old
    }
}

/// As [`clear`]; `mmu_spte_update()`. Returns whether that leaves stale TLB entries that matter.
#[inline]
pub(crate) fn update(lock: &Exclusive<'_>, leaf: Seen<'_>, bits: WriteBits, masks: &Masks) -> bool {
    let new = leaf.spte().cleared(bits);

    check_write_state(new, masks);

    let old = clear(lock, leaf, bits, masks);
    warn_on_once!(!old.is_present() || old.pfn(masks) != new.pfn(masks));

    old.change_needs_flush(new, masks)
}

/// Clears W, whatever the entry has become since it was read. Returns whether it was set.
#[inline]
pub(crate) fn clear_writable(_lock: &Exclusive<'_>, sptep: Sptep<'_>) -> bool {
    // SAFETY: `mmu_lock` is held for write.
    unsafe { sptep.fetch_clear(WriteBits::W) }.is_writable()
}

/// Puts a leaf into the entry at `index` of `table`. The caller accounts for it and adds it to its
/// list. Anything but a leaf is a bug, which ends the VM.
#[inline]
pub(crate) fn set_leaf(lock: &Exclusive<'_>, table: Table<'_>, index: Index, leaf: Spte) {
    if !leaf.is_leaf(table.level()) {
        lock.vm().bugged();
        return;
    }
    // SAFETY: `mmu_lock` is held for write. The value points to no table.
    unsafe { table.sptep(index).write(leaf) };
}

/// Zaps a leaf; `mmu_spte_clear_track_bits()`. Returns whether it was present. The caller accounts
/// for it and removes it from its list.
///
/// A plain store is enough even if the leaf is volatile: with `mmu_lock` held for write nobody else
/// makes it present or not present, and bits that a fast page fault, aging or the CPU sets in it at
/// that moment don't matter once it is zapped. See [`crate::change::zap_pages`].
#[inline]
pub(crate) fn zap(_lock: &Exclusive<'_>, sptep: Sptep<'_>) -> bool {
    let present = sptep.read().is_present();

    // SAFETY: `mmu_lock` is held for write. The value is not present.
    unsafe { sptep.write(Spte::NONPRESENT) };
    present
}

/// Unsyncs the shadow pages of `gfn`, if possible, so that it may be mapped writable. Returns false
/// if the page has to stay write-protected, or if `gfn` is not in `slot`. Corresponds to
/// `mmu_try_to_unsync_pages()`.
#[inline]
pub(crate) fn try_to_unsync<'l>(
    lock: &impl MmuLock<'l>,
    page: SlotGfn<'_>,
    synchronizing: bool,
    prefetch: bool,
) -> bool {
    let vm = lock.vm();

    // SAFETY: The VM and its slot exist, the frame is in the slot, and `mmu_lock` is held.
    0 == unsafe {
        bindings::mmu_try_to_unsync_pages(
            vm.as_ptr(),
            page.slot().as_ptr(),
            page.gfn().raw(),
            synchronizing,
            prefetch,
        )
    }
}

/// Whether the VM may have more shadow pages, with some to spare for its faults.
#[inline]
pub(crate) fn has_pages_left(lock: &Exclusive<'_>) -> bool {
    // SAFETY: The VM exists, and `mmu_lock` is held.
    unsafe { bindings::kvm_rs_shadow_pages_left(lock.vm().as_ptr()) }
}

/// Updates the statistics' maximum length of a list of the reverse map.
#[inline]
pub(crate) fn note_rmap_count(lock: &Exclusive<'_>, count: u32) {
    let count = u64::from(count);
    // SAFETY: The VM exists; the address of a field.
    let max = unsafe { &raw mut (*lock.vm().as_ptr()).stat.max_mmu_rmap_size };

    // SAFETY: The field is valid, and changes under `mmu_lock` held for write only.
    if count > unsafe { max.read() } {
        // SAFETY: As above.
        unsafe { max.write(count) };
    }
}
