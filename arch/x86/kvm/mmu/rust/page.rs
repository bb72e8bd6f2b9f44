// SPDX-License-Identifier: GPL-2.0

//! Shadow pages: the life of a page table and its header.
//!
//! A page is *owned* ([`OwnedSp`]) from its allocation until an SPTE points to it; until then,
//! dropping it frees it. The table of a page for a split is not initialised at first ([`BlankSp`]).
//! A linked page belongs to the tree, and is seen as an [`Sp`]. The thread that unlinks it tears it
//! down ([`RemovedSp`]), and RCU frees it. Each transition consumes the old state and returns the
//! new one, so that a page can neither be freed twice nor leak.

#![expect(unsafe_code)]

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    bindings::callback_head,
    sync::rcu::rcu_barrier, //
};

use crate::{
    bindings,
    pte::View,
    pure::{
        leaf,
        Gfn,
        Hpa,
        Index,
        Level,
        Role,
        Spte, //
    },
    support::rcu::{
        call_rcu,
        Batch,
        RcuFree, //
    },
    sync::{
        MmuLock,
        PagesLock,
        Unlocked, //
    },
    sys::{
        trace,
        Node,
        Shortage,
        Sp,
        Vcpu,
        Vm, //
    }, //
};

/// A shadow page that nothing points to: dropping it frees it.
///
/// # Invariants
///
/// The header and the table exist, and belong to this value alone. The table holds SPTEs.
pub(crate) struct OwnedSp(NonNull<bindings::kvm_mmu_page>);

impl OwnedSp {
    /// Takes a page of empty SPTEs from the vCPU's caches, which do not sleep and cannot fail.
    pub(crate) fn from_vcpu(vcpu: Vcpu<'_>) -> Self {
        // SAFETY: The caches were topped up, and never return null.
        let header = unsafe { NonNull::new_unchecked(vcpu.alloc_header()) };
        // INVARIANT: The header was just allocated; the table is allocated by the next line.
        let mut page = OwnedSp(header);

        page.header().spt = vcpu.alloc_table();
        page
    }

    /// The header, to fill in.
    #[inline]
    fn header(&mut self) -> &mut bindings::kvm_mmu_page {
        // SAFETY: By the type invariant the header exists, and belongs to this value alone; it was
        // zeroed when it was allocated, but for a word that says where it is.
        unsafe { self.0.as_mut() }
    }

    /// Adds a page for the external (TDX) table that the page will mirror.
    pub(crate) fn add_external_table(&mut self, vcpu: Vcpu<'_>) {
        let table = vcpu.alloc_external_table();

        self.header().__bindgen_anon_3.external_spt = ManuallyDrop::new(table);
    }

    /// Makes the page a root.
    pub(crate) fn init_root(&mut self, role: Role) {
        self.init(core::ptr::null_mut(), Gfn(0), role);
    }

    /// Prepares the page to be linked as the child of the entry at `view`, which is one above
    /// `level`.
    pub(crate) fn init_child(&mut self, view: &View<'_>, level: Level) {
        self.init(
            view.sptep().as_ptr(),
            view.gfn(),
            view.sp().role().at_level(level),
        );
    }

    fn init(&mut self, ptep: *mut u64, gfn: Gfn, role: Role) {
        // SAFETY: Header and table are ours.
        unsafe { bindings::kvm_rs_bind_sp(self.0.as_ptr()) };
        // SAFETY: The header is ours.
        unsafe { self.as_sp().role_word().write(role.raw()) };

        let header = self.header();

        header.gfn = gfn.raw();
        header.__bindgen_anon_4.ptep = ManuallyDrop::new(ptep);
        header.tdp_mmu_page = true;

        trace::get_page(self.as_sp());
    }

    /// Records whether the page is used instead of a huge page that the NX mitigation forbids.
    pub(crate) fn set_nx_huge_page_disallowed(&mut self, disallowed: bool) {
        self.header().nx_huge_page_disallowed = disallowed;
    }

    /// Forgets the contents of the table, so that the page can be used for another split.
    #[inline]
    pub(crate) fn into_blank(self) -> BlankSp {
        self.set_full(false);
        BlankSp(self)
    }

    /// Says whether the table is full; see [`Sp::is_full`].
    #[inline]
    fn set_full(&self, full: bool) {
        // SAFETY: The header is ours.
        unsafe { self.as_sp().full_word().write(full.into()) }
    }

    /// The page, to look at.
    #[inline]
    pub(crate) fn as_sp(&self) -> Sp<'_> {
        // SAFETY: The page exists at least while it is borrowed.
        unsafe { Sp::from_raw(self.0) }
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
        // SAFETY: By this function's safety requirement.
        unsafe { Sp::from_raw(ptr) }
    }
}

/// Headers for tables that are allocated one after the other.
///
/// Where many are needed they lie in one page, which is freed when the last of them is. Where few
/// are, that would be a waste, and each is an object of C's cache; `KVM_RS_NEIGHBOURS` names the
/// word of a header that says where it is. A header that is freed is not used again before its page
/// is, so a page may stay for the sake of one of them, as the slab allocator's do.
///
/// # Invariants
///
/// The first `len` of `spare` are headers that belong to this value alone. They are zeroed, but for
/// that word.
pub(crate) struct Headers {
    spare: [*mut bindings::kvm_mmu_page; Headers::MAX],
    len: usize,
    /// For how many more tables, as far as the caller knows; 0 if there was no page.
    wanted: usize,
}

impl Headers {
    /// The most in a page.
    const MAX: usize = bindings::KVM_RS_HEADERS as usize;

    /// The fewest that a page is worth. Each then has half a kilobyte, an eighth of its table.
    const MIN: usize = 8;

    /// Headers for `wanted` tables; none is allocated yet.
    pub(crate) fn new(wanted: usize) -> Self {
        // INVARIANT: There is none.
        Headers {
            spare: [core::ptr::null_mut(); Headers::MAX],
            len: 0,
            wanted,
        }
    }

    /// A header, zeroed but for the word that says where it is, and charged to the caller's memcg.
    /// It belongs to the caller. `None` if there is no memory.
    fn take(
        &mut self,
        _unlocked: &Unlocked,
        may_fail: bool,
    ) -> Option<NonNull<bindings::kvm_mmu_page>> {
        let nr = self.wanted.min(Headers::MAX);

        if self.len == 0 && nr >= Headers::MIN {
            // SAFETY: There is room for as many. May sleep, as `mmu_lock` is not held.
            if unsafe { bindings::kvm_rs_alloc_headers(self.spare.as_mut_ptr(), nr as i32) } {
                // INVARIANT: They were just allocated.
                self.len = nr;
            } else {
                self.wanted = 0;
            }
        }
        self.wanted = self.wanted.saturating_sub(1);
        if let Some(last) = self.len.checked_sub(1) {
            // INVARIANT: The last one is the caller's now.
            self.len = last;
            return NonNull::new(*self.spare.get(last)?);
        }
        // SAFETY: May sleep, as `mmu_lock` is not held.
        NonNull::new(unsafe { bindings::kvm_rs_alloc_header(may_fail) })
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        for header in self.spare.iter().take(self.len) {
            // SAFETY: By the type invariant.
            unsafe { bindings::kvm_rs_free_header(*header) };
        }
    }
}

/// An [`OwnedSp`] whose table is not initialised.
pub(crate) struct BlankSp(OwnedSp);

impl BlankSp {
    /// Allocates a page, preferably on `node`, charged to the caller's memcg. `None` if there is no
    /// memory.
    pub(crate) fn alloc(
        unlocked: &Unlocked,
        headers: &mut Headers,
        node: Node,
        shortage: Shortage,
    ) -> Option<Self> {
        let may_fail = shortage == Shortage::Fail;
        let header = headers.take(unlocked, may_fail)?;
        // SAFETY: May sleep, as `mmu_lock` is not held.
        let spt = unsafe { bindings::kvm_rs_alloc_table(node.raw(), may_fail) };

        if spt.is_null() {
            // SAFETY: Just allocated.
            unsafe { bindings::kvm_rs_free_header(header.as_ptr()) };
            return None;
        }
        // INVARIANT: Header and table were just allocated; the table is filled before anything
        // except `drop` uses it.
        let mut page = OwnedSp(header);

        page.header().spt = spt;
        Some(BlankSp(page))
    }

    /// Fills the whole table with leaves of `level` that differ only in their address, from that of
    /// `first` on. No atomics: nobody else can see it yet.
    ///
    /// A table of 4 KiB pages is full then. One of 2 MiB pages is not: faults replace its leaves by
    /// tables, which have to be torn down one by one.
    ///
    /// # Safety
    ///
    /// If `first` is present, it must be a leaf at `level`. The page must be linked as a table of
    /// that level, or not at all.
    #[inline]
    pub(crate) unsafe fn fill(self, first: Spte, level: Level) -> OwnedSp {
        let stride = leaf::child_stride(level);
        let table = self.0.as_sp().spt();
        let mut offset = 0u64;

        for index in Index::all() {
            // SAFETY: The index is within the table by its invariant.
            let sptep = unsafe { table.add(index.get()) };
            // SAFETY: The table is ours.
            unsafe { sptep.write(first.at_offset(offset).raw()) };
            offset = offset.wrapping_add(stride);
        }
        self.0.set_full(level == Level::Page4K);
        // INVARIANT: Now the table holds SPTEs, none of which points to a table, by the safety
        // requirement.
        self.0
    }
}

impl Drop for OwnedSp {
    fn drop(&mut self) {
        // SAFETY: The header is ours.
        let external = unsafe { *(*self.0.as_ptr()).__bindgen_anon_3.external_spt };
        // SAFETY: Nothing points to the external page, which is null if there is none.
        unsafe { bindings::kvm_rs_free_table(external) };
        // SAFETY: By the type invariant.
        unsafe { free(self.0) };
    }
}

/// A shadow page that was just unlinked, and has to be retired.
///
/// # Invariants
///
/// This value alone is responsible for the page. Readers that found the page before may still
/// access it until a grace period has passed.
#[must_use = "an unlinked page leaks unless it is retired"]
pub(crate) struct RemovedSp(NonNull<bindings::kvm_mmu_page>);

impl RemovedSp {
    /// Takes over the page of the table at `table`.
    ///
    /// # Safety
    ///
    /// The caller must have removed the only pointer to that table.
    #[inline]
    pub(crate) unsafe fn from_table(table: Hpa) -> Self {
        // SAFETY: A table that was linked is that of a shadow page.
        let sp = unsafe { Sp::from_hpa(table) };
        // INVARIANT: By this function's safety requirement.
        RemovedSp(sp.as_non_null())
    }

    /// Takes over a root that was removed from the list of roots.
    ///
    /// # Safety
    ///
    /// The caller must have dropped the last reference and removed the root from the list.
    #[inline]
    pub(crate) unsafe fn from_root(root: Sp<'_>) -> Self {
        // INVARIANT: By this function's safety requirement.
        RemovedSp(root.as_non_null())
    }

    /// The page, to look at and to tear down.
    #[inline]
    pub(crate) fn as_sp(&self) -> Sp<'_> {
        // SAFETY: The page exists at least until it is retired, which takes `self`.
        unsafe { Sp::from_raw(self.0) }
    }

    /// Uncharges the page, and takes it off the list of possible NX huge pages.
    pub(crate) fn unaccount(&self, vm: Vm<'_>) {
        let sp = self.as_sp();

        sp.account(vm, -1);
        if sp.nx_huge_page_disallowed() {
            sp.untrack_nx_huge_page(&PagesLock::new(vm));
        }
    }

    /// If the page is a mirror, hands its external table back to the vendor code.
    pub(crate) fn free_external_table(&self, vm: Vm<'_>) {
        if self.as_sp().role().mirror() {
            // SAFETY: Both exist; the vendor has the callback, because it has mirror pages.
            unsafe { bindings::kvm_rs_free_external_spt(vm.as_ptr(), self.0.as_ptr()) }
        }
    }

    /// Frees the page once all readers are gone, together with others that are retired under the
    /// same lock.
    #[inline]
    pub(crate) fn retire<'l>(self, lock: &impl MmuLock<'l>) {
        self.set_owner(lock.vm());
        lock.tally().count_unused(lock.vm());
        lock.free_later(self);
    }

    /// Frees a root once all readers are gone. Its last reference may be dropped without a lock.
    pub(crate) fn retire_alone(self, vm: Vm<'_>) {
        self.set_owner(vm);
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_add_unused_tables(vm.as_ptr(), 1) };
        call_rcu(self);
    }

    /// Notes whose page it is, for C, which counts the pages of each VM that it frees. The VM is
    /// there until then: its destruction waits for them (`kvm_mmu_uninit_tdp_mmu()`).
    #[inline]
    fn set_owner(&self, vm: Vm<'_>) {
        // SAFETY: The page exists; the address of a field.
        let bitmap = unsafe { &raw mut (*self.0.as_ptr()).unsync_child_bitmap };
        // CAST: An array of `unsigned long`, which is as large as a pointer.
        let words = bitmap.cast::<*mut bindings::kvm>();
        // SAFETY: It has 512 bits, that is eight words.
        let owner = unsafe { words.add(bindings::KVM_RS_OWNER as usize) };

        // SAFETY: Part of the page. Before a page of the TDP MMU is freed, nobody uses that word.
        unsafe { owner.write(vm.as_ptr()) };
    }
}

// SAFETY: Head and link are part of the page, which by the type invariant nobody else frees. Nobody
// uses the head for anything else, nor the link once the page was unlinked. A header and a table
// may be freed on any CPU.
unsafe impl RcuFree for RemovedSp {
    #[inline]
    fn into_head(self) -> NonNull<callback_head> {
        // SAFETY: The page exists; the address of a field.
        let head = unsafe { &raw mut (*self.0.as_ptr()).callback_head };
        // SAFETY: Part of the page, so not null.
        unsafe { NonNull::new_unchecked(head) }
    }

    /// # Safety
    ///
    /// As for [`RcuFree::link`].
    #[inline]
    unsafe fn link(head: NonNull<callback_head>) -> *mut *mut callback_head {
        // SAFETY: By this function's safety requirement, `head` is part of a page header.
        let sp = unsafe { of_head(head) };
        // SAFETY: The page exists; the address of a field, which pages of the TDP MMU do not use,
        // except for its first word ([`Sp::full_word`]), its third (`KVM_RS_NEIGHBOURS`) and its
        // fourth (`KVM_RS_OWNER`).
        let bitmap = unsafe { &raw mut (*sp).unsync_child_bitmap };
        // CAST: An array of `unsigned long`, which is as large as a pointer.
        let words = bitmap.cast::<*mut callback_head>();

        // SAFETY: It has 512 bits, that is eight words.
        unsafe { words.add(1) }
    }

    /// # Safety
    ///
    /// As for [`RcuFree::free`].
    unsafe fn free(heads: &[NonNull<callback_head>]) {
        let mut pages = [core::ptr::null_mut(); Batch::MAX];
        let len = heads.len().min(pages.len());
        let mut external = 0;

        for (head, place) in heads.iter().zip(pages.iter_mut()) {
            // SAFETY: By this function's safety requirement, `head` is part of a page header.
            *place = unsafe { of_head(*head) };
            // SAFETY: The page exists until it is freed below.
            external |= unsafe { *(**place).__bindgen_anon_3.external_spt }.addr();
        }
        // The vendor code took the external tables when the pages were torn down. One check for all
        // of them costs less than one for each.
        warn_on_once!(external != 0);
        // SAFETY: There is at least one and at most `Batch::MAX`, by this function's safety
        // requirement. They were unlinked before the grace period, so no one can reach them, and
        // none was passed before.
        unsafe { bindings::kvm_rs_free_pages(pages.as_mut_ptr(), len as i32) };
    }
}

// The third word or later ones: the first is `Sp::full_word`, and the second `RcuFree::link`.
const _: () = assert!(bindings::KVM_RS_NEIGHBOURS >= 2 && bindings::KVM_RS_NEIGHBOURS < 8);
const _: () = assert!(bindings::KVM_RS_OWNER > bindings::KVM_RS_NEIGHBOURS);
const _: () = assert!(bindings::KVM_RS_OWNER < 8);

// The most that C takes at once.
const _: () = assert!(Batch::MAX <= bindings::KVM_RS_FREE_PAGES as usize);

/// Waits until the tables of `vm` are free that were unlinked before, if so many wait that there
/// should not be more. To be called before tables are allocated that a VMM can have unlinked again
/// at once, so that it cannot have tables wait without limit (`rust_free.c`).
///
/// May sleep for as long as a grace period takes, and until a kworker has freed what waits.
pub(crate) fn limit_unused(vm: Vm<'_>, _unlocked: &Unlocked) {
    if unused_tables(vm) > i64::from(bindings::KVM_RS_MOST_UNUSED) {
        // SAFETY: May sleep, as `mmu_lock` is not held.
        unsafe { wait_for_unused() };
    }
}

/// Waits until all tables are free that were unlinked before. Those of other VMs, too.
///
/// # Safety
///
/// The caller may sleep.
#[cold]
pub(crate) unsafe fn wait_for_unused() {
    // Hurries also callbacks that RCU has put off (CONFIG_RCU_LAZY).
    rcu_barrier();
    // SAFETY: By this function's safety requirement; and all callbacks have run.
    unsafe { bindings::kvm_rs_wait_for_free() };
}

/// How many tables of `vm` were unlinked, and are not free yet.
#[inline]
pub(crate) fn unused_tables(vm: Vm<'_>) -> i64 {
    // SAFETY: The VM exists; the helper reads a counter by a marked access.
    unsafe { bindings::kvm_rs_unused_tables(vm.as_ptr()) }
}

/// The header that `head` is part of.
///
/// # Safety
///
/// `head` must be part of the header of a page.
#[inline]
unsafe fn of_head(head: NonNull<callback_head>) -> *mut bindings::kvm_mmu_page {
    // SAFETY: By this function's safety requirement.
    unsafe { kernel::container_of!(head.as_ptr(), bindings::kvm_mmu_page, callback_head) }
}

/// Frees a header and its table.
///
/// # Safety
///
/// Nobody else may be able to reach the page.
unsafe fn free(sp: NonNull<bindings::kvm_mmu_page>) {
    // SAFETY: The header exists.
    let spt = unsafe { (*sp.as_ptr()).spt };
    // SAFETY: By this function's safety requirement.
    unsafe { bindings::kvm_rs_free_table(spt.cast()) };
    // SAFETY: By this function's safety requirement.
    unsafe { bindings::kvm_rs_free_header(sp.as_ptr()) };
}
