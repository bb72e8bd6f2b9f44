// SPDX-License-Identifier: GPL-2.0

//! Shadow pages, as they are found in the tree.

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::sync::atomic::{
    atomic_load,
    atomic_store,
    ordering::Relaxed, //
};

use crate::{
    bindings,
    pte::{
        Sptep,
        Table,
        View, //
    },
    pure::{
        Gfn,
        GfnRange,
        Hpa,
        Index,
        Level,
        Masks,
        Role, //
    },
    sync::{
        Exclusive,
        MmuLock,
        PagesLock,
        SlotsLock, //
    },
    sys::Vm, //
};

/// A shadow page that exists for `'a`: `struct kvm_mmu_page`.
///
/// # Invariants
///
/// Points to the header of a shadow page; header and table are not freed before `'a` ends.
#[derive(Clone, Copy)]
pub(crate) struct Sp<'a>(NonNull<bindings::kvm_mmu_page>, PhantomData<&'a ()>);

impl<'a> Sp<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `sp` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(sp: NonNull<bindings::kvm_mmu_page>) -> Self {
        // INVARIANT: By this function's safety requirement.
        Sp(sp, PhantomData)
    }

    /// The page that a table address belongs to.
    ///
    /// # Safety
    ///
    /// `hpa` must lie in the table of a shadow page that is not freed before `'a` ends.
    #[inline]
    pub(crate) unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: The frame is a shadow page's table, so it has a `struct page`.
        let sp = unsafe { bindings::kvm_rs_hpa_to_sp(hpa.raw()) };
        // SAFETY: `OwnedSp::init` stored the header there.
        let ptr = unsafe { NonNull::new_unchecked(sp) };
        // INVARIANT: By this function's safety requirement.
        Sp(ptr, PhantomData)
    }

    /// The page of the table that `sptep` points into; `sptep_to_sp()`.
    #[inline]
    pub(crate) fn of_sptep(sptep: Sptep<'a>) -> Self {
        // SAFETY: An SPTE is part of a table that is valid for `'a`; header and table are freed
        // together.
        unsafe { Sp::from_hpa(sptep.hpa()) }
    }

    /// The page of `table`.
    #[inline]
    pub(crate) fn of_table(table: Table<'a>) -> Self {
        Sp::of_sptep(table.sptep(Index::FIRST))
    }

    /// C's pointer, which is not null.
    #[inline]
    pub(crate) fn as_non_null(self) -> NonNull<bindings::kvm_mmu_page> {
        self.0
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm_mmu_page {
        self.0.as_ptr()
    }

    /// What the page is used for. Marked, because a root is invalidated while aging reads its role.
    #[inline]
    pub(crate) fn role(self) -> Role {
        // SAFETY: The field is valid and aligned. Once others can find the page, it changes only by
        // the marked store of `mark_invalid` or, for shadow pages, with `mmu_lock` held for write.
        Role(unsafe { atomic_load(self.role_word(), Relaxed) })
    }

    /// The role, as a word.
    #[inline]
    pub(crate) fn role_word(self) -> *mut u32 {
        // SAFETY: The page exists; the address of a field.
        let role = unsafe { &raw mut (*self.as_ptr()).role };
        // CAST: All members of the union share its address, and the word is one of them.
        role.cast()
    }

    /// The frames that the page can map if it is a root; none, with a warning, if its role has no
    /// level (a bug).
    #[inline]
    pub(crate) fn reach(self) -> GfnRange {
        let level = self.role().level();

        warn_on_once!(level.is_none());
        level.map_or(GfnRange::new(Gfn(0), Gfn(0)), Level::reach)
    }

    // Set before anything points to the page, and constant then.
    getters! {
        /// The first frame that the table covers.
        gfn -> Gfn = gfn, Gfn;
        /// The address of the table.
        spt -> *mut u64 = spt;
        /// Whether the page belongs to the TDP MMU rather than to the shadow MMU.
        is_tdp_mmu_page -> bool = tdp_mmu_page;
    }

    /// The table.
    #[inline]
    pub(crate) fn table(self) -> Table<'a> {
        // The role of a page that isn't linked yet may have no level. Then none of its entries is
        // followed.
        let level = self.role().level().unwrap_or(Level::Page4K);
        // SAFETY: A shadow page always has a table.
        let ptr = unsafe { NonNull::new_unchecked(self.spt()) };
        // SAFETY: The table lives as long as its header, whose role says what it is.
        unsafe { Table::from_raw(ptr, level) }
    }

    /// The host physical address of the table.
    #[inline]
    pub(crate) fn hpa(self) -> Hpa {
        // SAFETY: An address computation on an address in the direct map, where tables live.
        Hpa(unsafe { bindings::kvm_rs_pa(self.spt()) })
    }

    /// The entry that points to this page, if it is the TDP MMU's; `None` for a root.
    #[inline]
    pub(crate) fn parent(self) -> Option<View<'a>> {
        // The shadow MMU has a list there.
        if !self.is_tdp_mmu_page() {
            return None;
        }
        let level = self.role().level().and_then(Level::up)?;
        // SAFETY: The page exists; the field is constant once it is linked.
        let ptep = NonNull::new(unsafe { *(*self.as_ptr()).__bindgen_anon_4.ptep })?;
        // SAFETY: The page was found before it was torn down, in a critical section that lasts for
        // `'a`. Its parent is torn down later, so the parent's grace period starts later and waits
        // for that section.
        let sptep = unsafe { Sptep::from_raw(ptep) };
        // SAFETY: `OwnedSp::link` links a page where its header says, one level below.
        Some(unsafe { View::new(sptep, level, self.gfn()) })
    }

    /// Whether the table is *full*: all of its leaves were present when it was linked, and none was
    /// removed since. Single leaves are only removed with `mmu_lock` held for write, so a full
    /// table stays full while the lock is held for read.
    #[inline]
    pub(crate) fn is_full<'l>(self, _lock: &impl MmuLock<'l>) -> bool {
        // SAFETY: The field is valid; it is written before the page is linked, or with `mmu_lock`
        // held for write, and the lock is held.
        unsafe { *self.full_word() != 0 }
    }

    /// Records that a leaf of the table was removed, so that it is not full any more.
    #[inline]
    pub(crate) fn clear_full(self, _lock: &Exclusive<'_>) {
        // SAFETY: The field is valid; `mmu_lock` is held for write.
        unsafe { self.full_word().write(0) }
    }

    /// The word that is not 0 if the table is full. It is the first word of the bitmap of unsync
    /// children, which is not traced, and which only the shadow MMU uses for what its name says. It
    /// is 0 in a new page. The second word links pages that are freed together, the third says
    /// where the header is (`KVM_RS_NEIGHBOURS`), and the fourth, when the page is freed, which VM
    /// it belonged to (`KVM_RS_OWNER`).
    #[inline]
    pub(crate) fn full_word(self) -> *mut u64 {
        // SAFETY: The page exists; the address of a field.
        let bitmap = unsafe { &raw mut (*self.as_ptr()).unsync_child_bitmap };
        // CAST: An array of `unsigned long`, which has 64 bits.
        bitmap.cast()
    }

    /// Has the CPU load the fields that tearing the page down uses, and does not wait for them.
    #[inline]
    pub(crate) fn prefetch(self) {
        // SAFETY: A hint to the CPU, which may be about any address.
        unsafe { bindings::kvm_rs_prefetch_sp(self.as_ptr()) }
    }

    /// Marks a root as invalid: no vCPU may load it any more.
    pub(crate) fn mark_invalid(self, _lock: &Exclusive<'_>) {
        let role = self.role().as_invalid();
        // SAFETY: The field is valid and aligned; readers use marked accesses.
        unsafe { atomic_store(self.role_word(), role.raw(), Relaxed) };
    }

    /// Whether the root is scheduled to be zapped by the flow that invalidated it.
    #[inline]
    pub(crate) fn is_scheduled_to_zap(self, _slots: &SlotsLock<'_>) -> bool {
        // SAFETY: The page exists; `slots_lock` serializes all accesses.
        unsafe {
            *(*self.as_ptr())
                .__bindgen_anon_1
                .tdp_mmu_scheduled_root_to_zap
        }
    }

    /// Sets what [`Sp::is_scheduled_to_zap`] returns.
    #[inline]
    pub(crate) fn set_scheduled_to_zap(self, _slots: &SlotsLock<'_>, scheduled: bool) {
        let flag = ManuallyDrop::new(scheduled);
        // SAFETY: The page exists; `slots_lock` serializes all accesses.
        unsafe {
            (*self.as_ptr())
                .__bindgen_anon_1
                .tdp_mmu_scheduled_root_to_zap = flag
        };
    }

    /// Whether the table is used instead of a huge page because of the NX mitigation. Exact under
    /// `tdp_mmu_pages_lock`, otherwise a hint.
    #[inline]
    pub(crate) fn nx_huge_page_disallowed(self) -> bool {
        // SAFETY: The page exists; the address of a field.
        let flag = unsafe { &raw mut (*self.as_ptr()).nx_huge_page_disallowed };
        // SAFETY: The field is valid; it changes under `tdp_mmu_pages_lock`, by marked accesses.
        unsafe { atomic_load(flag, Relaxed) }
    }

    /// Lists the page as one that NX recovery may zap, unless it has already been torn down.
    pub(crate) fn track_nx_huge_page(self, lock: &PagesLock<'_>) {
        if self.nx_huge_page_disallowed() {
            // SAFETY: Both exist, and the lock that guards the list is held.
            unsafe {
                bindings::track_possible_nx_huge_page(
                    lock.vm().as_ptr(),
                    self.as_ptr(),
                    bindings::kvm_mmu_type_KVM_TDP_MMU,
                )
            }
        }
    }

    /// Undoes [`Sp::track_nx_huge_page`], and keeps it from happening later.
    pub(crate) fn untrack_nx_huge_page(self, lock: &PagesLock<'_>) {
        // SAFETY: The page exists; the address of a field.
        let flag = unsafe { &raw mut (*self.as_ptr()).nx_huge_page_disallowed };
        // SAFETY: The field is valid; readers use marked accesses.
        unsafe { atomic_store(flag, false, Relaxed) };
        // SAFETY: Both exist, and the lock that guards the list is held.
        unsafe {
            bindings::untrack_possible_nx_huge_page(
                lock.vm().as_ptr(),
                self.as_ptr(),
                bindings::kvm_mmu_type_KVM_TDP_MMU,
            )
        }
    }

    /// Charges (`1`) or uncharges (`-1`) the table to the page-table statistics.
    #[inline]
    pub(crate) fn account(self, vm: Vm<'_>, nr: i32) {
        // SAFETY: Both exist.
        unsafe { bindings::kvm_rs_account_table(vm.as_ptr(), self.spt(), nr) }
    }

    /// Accounts a page that was just linked.
    #[inline]
    pub(crate) fn account_linked(self, vm: Vm<'_>) {
        self.account(vm, 1);
    }
}

impl<'w> View<'w> {
    /// The page of the table that holds the entry.
    #[inline]
    pub(crate) fn sp(&self) -> Sp<'w> {
        Sp::of_sptep(self.sptep())
    }

    /// The tables that the entries after this one point to now, for those that are in the same
    /// table, and point to one. Only for levels below the alias bits of a TDX root, which a [`Gfn`]
    /// does not have.
    #[inline]
    pub(crate) fn tables_ahead<const N: usize>(&self, masks: &Masks) -> [Option<Table<'w>>; N] {
        let parent = self.sp().table();
        let next = Index::of(self.gfn(), self.level()).get().wrapping_add(1);

        core::array::from_fn(|n| parent.child(Index::new(next.wrapping_add(n))?, masks))
    }

    /// Has the CPU load the beginning of the table that the next entry points to, if it does, for a
    /// walk that is going to change all of that.
    #[inline]
    pub(crate) fn prefetch_next(&self, masks: &Masks) {
        if let [Some(table)] = self.tables_ahead(masks) {
            table.prefetch_entries();
        }
    }
}
