// SPDX-License-Identifier: GPL-2.0

//! Shadow pages: the life of a page table and its header.
//!
//! A page is *owned* ([`OwnedSp`]) from its allocation until an SPTE points to it; dropping it then
//! frees it. What its table holds at first is undefined where a split fills it ([`BlankSp`]). Linked, it belongs to the tree, and is seen as [`Sp`]. Whoever unlinks it tears it
//! down ([`RemovedSp`]), and RCU frees it. A transition takes the old state and gives the new one,
//! so that a page can neither be freed twice nor be forgotten.

#![expect(unsafe_code)]

use core::{marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};

use kernel::{
    bindings::{call_rcu, callback_head},
    sync::atomic::{atomic_load, atomic_store, ordering::Relaxed},
};

use crate::{
    bindings,
    pte::{Sptep, Table, View},
    pure::{Gfn, GfnRange, Hpa, Index, Level, Role, Spte},
    sync::{Exclusive, PagesLock, SlotsLock, Unlocked},
    sys::{trace, Node, Vcpu, Vm},
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
        // INVARIANT: by this function's safety requirement.
        Sp(sp, PhantomData)
    }

    /// The page that a table address belongs to.
    ///
    /// # Safety
    ///
    /// `hpa` must lie in the table of a shadow page that is not freed before `'a` ends.
    #[inline]
    pub(crate) unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: the frame is a shadow page's table, so it has a `struct page`.
        let sp = unsafe { bindings::kvm_rs_hpa_to_sp(hpa.0) };
        // SAFETY: `OwnedSp::init` stored the header there.
        let ptr = unsafe { NonNull::new_unchecked(sp) };
        // INVARIANT: by this function's safety requirement.
        Sp(ptr, PhantomData)
    }

    /// The page of the table that `sptep` points into; `sptep_to_sp()`.
    #[inline]
    pub(crate) fn of_sptep(sptep: Sptep<'a>) -> Self {
        // SAFETY: an SPTE is part of a table that is valid for `'a`; header and table are freed
        // together.
        unsafe { Sp::from_hpa(sptep.hpa()) }
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm_mmu_page {
        self.0.as_ptr()
    }

    /// What the page is used for. Marked, because a root is invalidated while aging reads its role.
    #[inline]
    pub(crate) fn role(self) -> Role {
        // SAFETY: the field is valid and aligned; its only writer uses a marked access.
        Role(unsafe { atomic_load(self.role_word(), Relaxed) })
    }

    /// The role, as a word.
    #[inline]
    fn role_word(self) -> *mut u32 {
        // SAFETY: the page exists; the address of a field.
        let role = unsafe { &raw mut (*self.as_ptr()).role };
        // CAST: all members of the union share its address, and the word is one of them.
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

    /// The first frame that the table covers.
    #[inline]
    pub(crate) fn gfn(self) -> Gfn {
        // SAFETY: the page exists; the field is constant once it is linked.
        Gfn(unsafe { (*self.as_ptr()).gfn })
    }

    /// The address of the table.
    #[inline]
    fn spt(self) -> *mut u64 {
        // SAFETY: the page exists; the field is constant.
        unsafe { (*self.as_ptr()).spt }
    }

    /// The table.
    #[inline]
    pub(crate) fn table(self) -> Table<'a> {
        // The role of a page that nothing points to yet may have no level. Then no entry leads on.
        let level = self.role().level().unwrap_or(Level::Page4K);
        // SAFETY: a shadow page always has a table.
        let ptr = unsafe { NonNull::new_unchecked(self.spt()) };
        // SAFETY: the table lives as long as its header, whose role says what it is.
        unsafe { Table::from_raw(ptr, level) }
    }

    /// The host physical address of the table.
    #[inline]
    pub(crate) fn hpa(self) -> Hpa {
        // SAFETY: an address computation on an address in the direct map, where tables live.
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
        // SAFETY: the page exists; the field is constant once it is linked.
        let ptep = NonNull::new(unsafe { *(*self.as_ptr()).__bindgen_anon_4.ptep })?;
        // SAFETY: a parent is freed after its children, because tearing it down unlinks them first
        // and their grace periods start before its own.
        let sptep = unsafe { Sptep::from_raw(ptep) };
        // SAFETY: `OwnedSp::link` links a page where its header says, one level below.
        Some(unsafe { View::new(sptep, level, self.gfn()) })
    }

    /// Whether the page belongs to the TDP MMU rather than to the shadow MMU.
    #[inline]
    pub(crate) fn is_tdp_mmu_page(self) -> bool {
        // SAFETY: the page exists; the field is constant.
        unsafe { (*self.as_ptr()).tdp_mmu_page }
    }

    /// Marks a root as invalid: no vCPU may load it any more.
    pub(crate) fn mark_invalid(self, _lock: &Exclusive<'_>) {
        let role = self.role().as_invalid();
        // SAFETY: the field is valid and aligned; readers use marked accesses.
        unsafe { atomic_store(self.role_word(), role.0, Relaxed) };
    }

    /// Whether the root waits to be zapped by the flow that invalidated it.
    #[inline]
    pub(crate) fn is_scheduled_to_zap(self, _slots: &SlotsLock<'_>) -> bool {
        // SAFETY: the page exists; `slots_lock` serializes all accesses.
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
        // SAFETY: the page exists; `slots_lock` serializes all accesses.
        unsafe {
            (*self.as_ptr())
                .__bindgen_anon_1
                .tdp_mmu_scheduled_root_to_zap = flag
        };
    }

    /// Whether a huge page is not used in place of this table for the NX mitigation. Exact under
    /// `tdp_mmu_pages_lock`, otherwise a hint.
    #[inline]
    pub(crate) fn nx_huge_page_disallowed(self) -> bool {
        // SAFETY: the page exists; the address of a field.
        let flag = unsafe { &raw mut (*self.as_ptr()).nx_huge_page_disallowed };
        // SAFETY: the field is valid; it changes under `tdp_mmu_pages_lock`, by marked accesses.
        unsafe { atomic_load(flag, Relaxed) }
    }

    /// Lists the page as one whose zapping would allow an NX huge page, unless somebody has torn
    /// it down already.
    pub(crate) fn track_nx_huge_page(self, lock: &PagesLock<'_>) {
        if self.nx_huge_page_disallowed() {
            // SAFETY: both exist, and the lock that guards the list is held.
            unsafe {
                bindings::track_possible_nx_huge_page(
                    lock.vm().as_ptr(),
                    self.as_ptr(),
                    bindings::kvm_mmu_type_KVM_TDP_MMU,
                )
            }
        }
    }

    /// Undoes [`Sp::track_nx_huge_page`], and makes sure that it does not come later.
    fn untrack_nx_huge_page(self, lock: &PagesLock<'_>) {
        // SAFETY: the page exists; the address of a field.
        let flag = unsafe { &raw mut (*self.as_ptr()).nx_huge_page_disallowed };
        // SAFETY: the field is valid; readers use marked accesses.
        unsafe { atomic_store(flag, false, Relaxed) };
        // SAFETY: both exist, and the lock that guards the list is held.
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
    fn account(self, vm: Vm<'_>, nr: i32) {
        // SAFETY: both exist.
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
}

/// A shadow page that nothing points to: dropping it frees it.
///
/// # Invariants
///
/// The header and the table exist, and belong to this value alone. The table holds SPTEs.
pub(crate) struct OwnedSp(NonNull<bindings::kvm_mmu_page>);

impl OwnedSp {
    /// Takes a page of empty SPTEs from the vCPU's caches, which do not sleep and cannot fail.
    pub(crate) fn from_vcpu(vcpu: Vcpu<'_>) -> Self {
        let sp = vcpu.alloc_header();
        // SAFETY: the caches were topped up, and never return null.
        let ptr = unsafe { NonNull::new_unchecked(sp) };
        // SAFETY: the header is ours.
        unsafe { (*sp).spt = vcpu.alloc_table() };
        // INVARIANT: header and table were just allocated.
        OwnedSp(ptr)
    }

    /// Adds a page for the external (TDX) table that the page will mirror.
    pub(crate) fn add_external_table(&mut self, vcpu: Vcpu<'_>) {
        let table = ManuallyDrop::new(vcpu.alloc_external_table());
        // SAFETY: the header is ours.
        unsafe { (*self.0.as_ptr()).__bindgen_anon_3.external_spt = table };
    }

    /// Makes the page a root.
    pub(crate) fn init_root(&mut self, role: Role) {
        self.init(core::ptr::null_mut(), Gfn(0), role);
    }

    /// Makes the page the child-to-be of the entry at `view`.
    pub(crate) fn init_child(&mut self, view: &View<'_>) {
        // An entry that gets a child is above the last level.
        let level = view.level().down().unwrap_or(Level::Page4K);

        self.init(
            view.sptep().as_ptr(),
            view.gfn(),
            view.sp().role().at_level(level),
        );
    }

    fn init(&mut self, ptep: *mut u64, gfn: Gfn, role: Role) {
        let sp = self.0.as_ptr();

        // SAFETY: header and table are ours.
        unsafe { bindings::kvm_rs_bind_sp(sp) };
        // SAFETY: the header is ours.
        unsafe { self.as_sp().role_word().write(role.0) };
        // SAFETY: the header is ours.
        unsafe { (*sp).gfn = gfn.0 };
        // SAFETY: the header is ours.
        unsafe { (*sp).__bindgen_anon_4.ptep = ManuallyDrop::new(ptep) };
        // SAFETY: the header is ours.
        unsafe { (*sp).tdp_mmu_page = true };

        trace::get_page(self.as_sp());
    }

    /// Notes whether the page stands for a huge page that the NX mitigation forbids.
    pub(crate) fn set_nx_huge_page_disallowed(&mut self, disallowed: bool) {
        // SAFETY: the header is ours.
        unsafe { (*self.0.as_ptr()).nx_huge_page_disallowed = disallowed };
    }

    /// Forgets what the table holds, to use the page for another split.
    #[inline]
    pub(crate) fn into_blank(self) -> BlankSp {
        BlankSp(self)
    }

    /// The page, to look at.
    #[inline]
    pub(crate) fn as_sp(&self) -> Sp<'_> {
        // INVARIANT: the page exists at least while it is borrowed.
        Sp(self.0, PhantomData)
    }

    /// Gives the page up to the tree, or to the list of roots.
    ///
    /// # Safety
    ///
    /// Something must point to the page now that keeps it alive for `'a`.
    #[inline]
    pub(crate) unsafe fn into_linked<'a>(self) -> Sp<'a> {
        let ptr = self.0;

        core::mem::forget(self);
        // INVARIANT: by this function's safety requirement.
        Sp(ptr, PhantomData)
    }
}

/// An [`OwnedSp`] whose table is not initialised.
pub(crate) struct BlankSp(OwnedSp);

impl BlankSp {
    /// Allocates a page, preferably on `node`, charged to the caller's memcg. `None` if there is no
    /// memory.
    pub(crate) fn alloc(_unlocked: &Unlocked, node: Node) -> Option<Self> {
        // SAFETY: may sleep, as `mmu_lock` is not held.
        let sp = NonNull::new(unsafe { bindings::kvm_rs_alloc_header() })?;
        // SAFETY: may sleep, as `mmu_lock` is not held.
        let spt = unsafe { bindings::kvm_rs_alloc_table(node.raw()) };

        if spt.is_null() {
            // SAFETY: just allocated.
            unsafe { bindings::kvm_rs_free_header(sp.as_ptr()) };
            return None;
        }
        // SAFETY: the header is ours.
        unsafe { (*sp.as_ptr()).spt = spt };
        // INVARIANT: header and table were just allocated; the table is filled before anybody but
        // `drop` gets at it.
        Some(BlankSp(OwnedSp(sp)))
    }

    /// Fills the whole table with leaves that differ only in their address, which grows by
    /// `stride` bytes from that of `first`. No atomics: nobody else can see it yet.
    #[inline]
    pub(crate) fn fill(self, first: Spte, stride: u64) -> OwnedSp {
        let table = self.0.as_sp().spt();
        let mut offset = 0u64;

        for index in Index::all() {
            // SAFETY: the index is within the table by its invariant.
            let sptep = unsafe { table.add(index.get()) };
            // SAFETY: the table is ours.
            unsafe { sptep.write(first.0 | offset) };
            offset = offset.wrapping_add(stride);
        }
        // INVARIANT: now the table holds SPTEs.
        self.0
    }
}

impl Drop for OwnedSp {
    fn drop(&mut self) {
        // SAFETY: the header is ours.
        let external = unsafe { *(*self.0.as_ptr()).__bindgen_anon_3.external_spt };
        // SAFETY: nothing points to the external page, which is null if there is none.
        unsafe { bindings::kvm_rs_free_table(external) };
        // SAFETY: by the type invariant.
        unsafe { free(self.0) };
    }
}

/// A shadow page that its last pointer was just removed from; it must be retired.
///
/// # Invariants
///
/// This value is the only one in charge of the page. Readers that found it before may still look
/// into it, until a grace period has passed.
#[must_use = "an unlinked page leaks unless it is retired"]
pub(crate) struct RemovedSp(NonNull<bindings::kvm_mmu_page>);

impl RemovedSp {
    /// Takes charge of the page of the table at `table`.
    ///
    /// # Safety
    ///
    /// The caller must have removed the only pointer to that table.
    #[inline]
    pub(crate) unsafe fn from_table(table: Hpa) -> Self {
        // SAFETY: a table that was linked is that of a shadow page.
        let sp = unsafe { Sp::from_hpa(table) };
        // INVARIANT: by this function's safety requirement.
        RemovedSp(sp.0)
    }

    /// Takes charge of a root that was removed from the list of roots.
    ///
    /// # Safety
    ///
    /// The caller must have dropped the last reference and removed the root from the list.
    #[inline]
    pub(crate) unsafe fn from_root(root: Sp<'_>) -> Self {
        // INVARIANT: by this function's safety requirement.
        RemovedSp(root.0)
    }

    /// The page, to look at and to tear down.
    #[inline]
    pub(crate) fn as_sp(&self) -> Sp<'_> {
        // INVARIANT: the page exists at least until it is retired, which takes `self`.
        Sp(self.0, PhantomData)
    }

    /// Uncharges the page, and takes it off the list of possible NX huge pages.
    pub(crate) fn unaccount(&self, vm: Vm<'_>) {
        let sp = self.as_sp();

        sp.account(vm, -1);
        if sp.nx_huge_page_disallowed() {
            sp.untrack_nx_huge_page(&PagesLock::new(vm));
        }
    }

    /// Hands a mirror page's external table back to the vendor code.
    pub(crate) fn free_external_table(&self, vm: Vm<'_>) {
        // SAFETY: both exist; the vendor has the callback, because it has mirror pages.
        unsafe { bindings::kvm_rs_free_external_spt(vm.as_ptr(), self.0.as_ptr()) }
    }

    /// Frees the page once all readers are gone.
    pub(crate) fn retire(self) {
        // SAFETY: the page exists; the address of a field.
        let head = unsafe { &raw mut (*self.0.as_ptr()).callback_head };
        // SAFETY: the head is used once, by the type invariant, and `free_rcu` matches it.
        unsafe { call_rcu(head, Some(free_rcu)) };
    }
}

/// Frees a retired page, after a grace period.
///
/// # Safety
///
/// `head` must be that of a page that [`RemovedSp::retire`] retired.
unsafe extern "C" fn free_rcu(head: *mut callback_head) {
    // SAFETY: by this function's safety requirement, `head` is part of a page header.
    let sp = unsafe { kernel::container_of!(head, bindings::kvm_mmu_page, callback_head) };
    // SAFETY: the page exists until it is freed below.
    let external = unsafe { *(*sp).__bindgen_anon_3.external_spt };

    // The vendor code has taken the external table when the page was torn down.
    warn_on_once!(!external.is_null());

    // SAFETY: not null, as it holds `head`.
    let ptr = unsafe { NonNull::new_unchecked(sp) };
    // SAFETY: the page was unlinked before the grace period, so no one can reach it.
    unsafe { free(ptr) };
}

/// Frees a header and its table.
///
/// # Safety
///
/// Nobody else may be able to reach the page.
unsafe fn free(sp: NonNull<bindings::kvm_mmu_page>) {
    // SAFETY: the header exists.
    let spt = unsafe { (*sp.as_ptr()).spt };
    // SAFETY: by this function's safety requirement.
    unsafe { bindings::kvm_rs_free_table(spt.cast()) };
    // SAFETY: by this function's safety requirement.
    unsafe { bindings::kvm_rs_free_header(sp.as_ptr()) };
}
