// SPDX-License-Identifier: GPL-2.0

//! The roots of a VM: counted references, and the three ways to iterate over them.
//!
//! A VM has one valid direct root for each role in use (SMM or not, L1 or L2 with TDP), mirror
//! roots if it is a TDX guest, and any number of invalid roots that are still referenced. The TDP
//! MMU itself holds a reference to each valid root until it is invalidated. A vCPU that has loaded
//! a root holds another, and so does a walk that may yield.

#![expect(unsafe_code)]

use core::ptr::NonNull;

use kernel::sync::rcu;

use crate::{
    bindings,
    page::{
        OwnedSp,
        RemovedSp, //
    },
    pure::{
        Hpa,
        Role, //
    },
    sync::{
        Exclusive,
        MmuLock,
        PagesLock,
        SlotsLock, //
    },
    sys::{
        NotifierRange,
        Sp,
        Vm, //
    }, //
};

/// A set of kinds of roots; `enum kvm_tdp_mmu_root_types`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootTypes {
    direct: bool,
    mirror: bool,
    invalid: bool,
}

impl RootTypes {
    /// All valid roots.
    pub(crate) const VALID: RootTypes = RootTypes {
        direct: true,
        mirror: true,
        invalid: false,
    };
    /// All roots.
    pub(crate) const ALL: RootTypes = RootTypes::VALID.or_invalid();
    /// All valid direct roots.
    pub(crate) const DIRECT: RootTypes = RootTypes {
        direct: true,
        mirror: false,
        invalid: false,
    };
    /// All direct roots, including invalid ones.
    pub(crate) const DIRECT_OR_INVALID: RootTypes = RootTypes {
        direct: true,
        mirror: false,
        invalid: true,
    };

    /// Converts C's set.
    pub(crate) fn from_raw(raw: bindings::kvm_tdp_mmu_root_types) -> Self {
        RootTypes {
            direct: raw & bindings::kvm_tdp_mmu_root_types_KVM_DIRECT_ROOTS != 0,
            mirror: raw & bindings::kvm_tdp_mmu_root_types_KVM_MIRROR_ROOTS != 0,
            invalid: raw & bindings::kvm_tdp_mmu_root_types_KVM_INVALID_ROOTS != 0,
        }
    }

    /// The valid roots that can map the range of a notifier.
    pub(crate) fn of_notifier(vm: Vm<'_>, range: NotifierRange<'_>) -> Self {
        if !vm.has_mirrored_tdp() {
            return RootTypes {
                direct: true,
                mirror: false,
                invalid: false,
            };
        }

        let types = RootTypes {
            direct: range.affects_shared(),
            mirror: range.affects_private(),
            invalid: false,
        };
        warn_on_once!(!types.direct && !types.mirror);
        types
    }

    /// The same kinds, including invalid roots.
    pub(crate) const fn or_invalid(self) -> Self {
        RootTypes {
            invalid: true,
            ..self
        }
    }

    /// The same kinds, valid roots only.
    pub(crate) const fn only_valid(self) -> Self {
        RootTypes {
            invalid: false,
            ..self
        }
    }

    /// Whether invalid roots are in the set.
    pub(crate) const fn has_invalid(self) -> bool {
        self.invalid
    }

    /// Whether a root with this role is in the set.
    pub(crate) fn matches(self, role: Role) -> bool {
        if warn_on_once!(!self.direct && !self.mirror) {
            return false;
        }
        if role.invalid() && !self.invalid {
            return false;
        }
        if role.mirror() {
            self.mirror
        } else {
            self.direct
        }
    }
}

/// Which roots to visit: those of some kinds, perhaps of one address space only.
#[derive(Clone, Copy)]
pub(crate) struct Selection {
    /// The kinds.
    pub(crate) types: RootTypes,
    /// The address space, if only one is meant.
    pub(crate) as_id: Option<u16>,
}

impl Selection {
    /// The valid roots of an address space.
    pub(crate) fn valid(as_id: u16) -> Self {
        Selection {
            types: RootTypes::VALID,
            as_id: Some(as_id),
        }
    }

    /// The valid direct roots of an address space.
    pub(crate) fn valid_direct(as_id: u16) -> Self {
        Selection {
            types: RootTypes::DIRECT,
            as_id: Some(as_id),
        }
    }

    fn matches(self, role: Role) -> bool {
        self.types.matches(role) && self.as_id.is_none_or(|id| id == role.as_id())
    }
}

/// A counted reference to a root, which keeps it in the list of roots.
///
/// # Invariants
///
/// Holds one count of the root.
pub(crate) struct Root<'vm> {
    vm: Vm<'vm>,
    sp: Sp<'vm>,
}

impl<'vm> Root<'vm> {
    /// Takes a reference, unless the last one is gone already.
    #[inline]
    fn try_get(vm: Vm<'vm>, sp: Sp<'vm>) -> Option<Self> {
        // SAFETY: The page exists.
        if unsafe { bindings::kvm_rs_root_tryget(sp.as_ptr()) } {
            // INVARIANT: Just counted.
            Some(Root { vm, sp })
        } else {
            None
        }
    }

    /// Takes over a reference that C holds.
    ///
    /// # Safety
    ///
    /// The caller must own one count of the root.
    pub(crate) unsafe fn from_counted(vm: Vm<'vm>, sp: Sp<'vm>) -> Self {
        // INVARIANT: By this function's safety requirement.
        Root { vm, sp }
    }

    /// The reference that the TDP MMU itself has held since the root was created.
    ///
    /// Taking a root off the schedule of roots to zap inherits that reference: a root is scheduled
    /// exactly once, when it is invalidated.
    pub(crate) fn take_scheduled(slots: &SlotsLock<'vm>, sp: Sp<'vm>) -> Option<Self> {
        if !sp.is_scheduled_to_zap(slots) {
            return None;
        }
        sp.set_scheduled_to_zap(slots, false);
        // INVARIANT: The count comes with the schedule's entry.
        Some(Root { vm: slots.vm(), sp })
    }

    /// Marks a valid root as invalid and schedules it to be zapped. The TDP MMU's own reference
    /// goes to the schedule.
    ///
    /// As `mmu_lock` is held for write, nobody is walking the root as a valid one.
    pub(crate) fn invalidate(lock: &Exclusive<'_>, slots: &SlotsLock<'_>, sp: Sp<'_>) {
        slots.check_vm(lock);
        if !sp.role().invalid() {
            sp.set_scheduled_to_zap(slots, true);
            sp.mark_invalid(lock);
        }
    }

    /// Puts a new root in the list, with two references: one that the TDP MMU keeps until the root
    /// is invalidated, and the one returned.
    pub(crate) fn publish(page: OwnedSp, lock: &PagesLock<'vm>) -> Self {
        let vm = lock.vm();

        // SAFETY: The page is ours.
        unsafe { bindings::kvm_rs_root_set_count(page.as_sp().as_ptr(), 2) };
        // SAFETY: The lock that guards additions to the list is held; the page is in no list.
        unsafe { bindings::kvm_rs_roots_add(vm.as_ptr(), page.as_sp().as_ptr()) };
        // SAFETY: The list and the count keep the page alive.
        let sp = unsafe { page.into_linked() };
        // INVARIANT: The count was set to two, of which this is one.
        Root { vm, sp }
    }

    /// The root's page, for as long as the reference is held.
    #[inline]
    fn sp(&self) -> Sp<'_> {
        self.sp
    }

    /// Gives the reference to C, for a vCPU to hold, and returns the address of the table.
    pub(crate) fn into_vcpu(self) -> Hpa {
        let hpa = self.sp.hpa();

        core::mem::forget(self);
        hpa
    }
}

impl Drop for Root<'_> {
    /// Puts the reference; the last one removes and frees the root; `kvm_tdp_mmu_put_root()`.
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a count to drop.
        if !unsafe { bindings::kvm_rs_root_put(self.sp.as_ptr()) } {
            return;
        }

        // The TDP MMU holds a reference until it invalidates the root.
        if !self.sp.is_tdp_mmu_page() || !self.sp.role().invalid() {
            self.vm.bugged();
        }

        let lock = PagesLock::new(self.vm);
        // SAFETY: The lock that guards the list is held; a root with a count is in the list.
        unsafe { bindings::kvm_rs_roots_del(self.sp.as_ptr()) };
        drop(lock);
        // SAFETY: The last reference is gone, and so is the list's pointer.
        unsafe { RemovedSp::from_root(self.sp) }.retire_alone(self.vm);
    }
}

/// The next page in the list of roots.
///
/// # Safety
///
/// `prev` must be in the list, and for the life `'a` the list must be protected: by an RCU
/// read-side critical section, by `tdp_mmu_pages_lock`, or by `mmu_lock` held for write.
#[inline]
unsafe fn list_next<'a>(vm: Vm<'_>, prev: Option<Sp<'_>>) -> Option<Sp<'a>> {
    let prev = prev.map_or(core::ptr::null_mut(), |sp| sp.as_ptr());
    // SAFETY: By this function's safety requirement.
    let next = unsafe { bindings::kvm_rs_roots_next(vm.as_ptr(), prev) };

    // SAFETY: Whatever is in the list exists while the list is protected.
    NonNull::new(next).map(|sp| unsafe { Sp::from_raw(sp) })
}

/// An iteration over roots during which `mmu_lock` may be dropped: it holds a reference to the
/// current root, and puts it only after it has a reference to the next one.
pub(crate) struct Roots<'vm> {
    vm: Vm<'vm>,
    selection: Selection,
    current: Option<Root<'vm>>,
}

impl<'vm> Roots<'vm> {
    /// Starts a walk.
    pub(crate) fn new(vm: Vm<'vm>, selection: Selection) -> Self {
        Roots {
            vm,
            selection,
            current: None,
        }
    }

    /// Moves to the next root, which exists until the next call. Roles are stable while `mmu_lock`
    /// is held, which the argument proves.
    #[inline]
    pub(crate) fn next(&mut self, _held: &impl MmuLock<'vm>) -> Option<Sp<'_>> {
        let next = {
            let _guard = rcu::read_lock();
            let mut prev = self.current.as_ref().map(Root::sp);

            loop {
                // SAFETY: The guard protects the list; `prev` is either counted, or was found
                // under this guard.
                let sp = unsafe { list_next(self.vm, prev) };
                let Some(sp) = sp else { break None };

                if self.selection.matches(sp.role()) {
                    if let Some(root) = Root::try_get(self.vm, sp) {
                        break Some(root);
                    }
                }
                prev = Some(sp);
            }
        };

        self.current = next;
        self.current.as_ref().map(Root::sp)
    }

    /// Ends the iteration, and keeps the reference to the current root.
    pub(crate) fn into_current(self) -> Option<Root<'vm>> {
        self.current
    }
}

/// The roots, while `mmu_lock` held for write keeps the list stable, and nothing yields.
pub(crate) fn stable_roots<'a>(
    lock: &'a Exclusive<'_>,
    selection: Selection,
) -> impl Iterator<Item = Sp<'a>> {
    let vm = lock.vm();
    let mut prev = None;

    core::iter::from_fn(move || loop {
        // SAFETY: `mmu_lock` is held for write for `'a`.
        let sp = unsafe { list_next(vm, prev) }?;

        prev = Some(sp);
        if selection.matches(sp.role()) {
            return Some(sp);
        }
    })
}

/// The roots, while only RCU protects the list. Their roles and SPTEs may change at any time.
pub(crate) fn rcu_roots<'a>(
    vm: Vm<'a>,
    _guard: &'a rcu::Guard,
    selection: Selection,
) -> impl Iterator<Item = Sp<'a>> {
    let mut prev = None;

    core::iter::from_fn(move || loop {
        // SAFETY: The guard is held for `'a`.
        let sp = unsafe { list_next(vm, prev) }?;

        prev = Some(sp);
        if selection.matches(sp.role()) {
            return Some(sp);
        }
    })
}

/// A reference to the root with exactly this role, looked up under the lock that guards additions.
pub(crate) fn find_locked<'vm>(lock: &PagesLock<'vm>, role: Role) -> Option<Root<'vm>> {
    let mut prev = None;

    loop {
        // SAFETY: `tdp_mmu_pages_lock` is held, and all changes of the list take it.
        let sp = unsafe { list_next(lock.vm(), prev) }?;

        if sp.role() == role {
            // A valid root can't lose its last reference while mmu_lock is held.
            let root = Root::try_get(lock.vm(), sp);
            if !warn_on_once!(root.is_none()) {
                return root;
            }
        }
        prev = Some(sp);
    }
}

/// Whether no root is left.
pub(crate) fn list_is_empty(vm: Vm<'_>) -> bool {
    // SAFETY: The VM exists.
    unsafe { bindings::kvm_rs_roots_empty(vm.as_ptr()) }
}

/// Whether somebody holds a reference to the root.
pub(crate) fn is_live(root: Sp<'_>) -> bool {
    // SAFETY: The page exists.
    unsafe { bindings::kvm_rs_root_is_live(root.as_ptr()) }
}

/// The root that a vCPU has loaded at `hpa`, which is whatever C has put there; `None` for the
/// dummy root.
///
/// # Safety
///
/// `hpa` must be a root that is loaded on this thread's vCPU, so that it exists for `'a`.
pub(crate) unsafe fn loaded<'a>(hpa: Hpa) -> Option<Sp<'a>> {
    // SAFETY: By this function's safety requirement.
    let sp = unsafe { bindings::kvm_rs_root_to_sp(hpa.raw()) };

    // SAFETY: By this function's safety requirement.
    NonNull::new(sp).map(|sp| unsafe { Sp::from_raw(sp) })
}
