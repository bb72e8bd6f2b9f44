// SPDX-License-Identifier: GPL-2.0

//! A page fault of the guest.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::{
    bindings,
    pte::View,
    pure::{
        Gfn,
        Level,
        Pfn, //
    },
    sync::Shared,
    sys::{
        Memslot,
        Vcpu, //
    }, //
};

/// A page fault in progress: `struct kvm_page_fault`, a local variable of the vCPU thread.
///
/// # Invariants
///
/// Points to a fault that exists for `'a` and that only this thread accesses.
#[derive(Clone, Copy)]
pub(crate) struct Fault<'a>(NonNull<bindings::kvm_page_fault>, PhantomData<&'a ()>);

/// C's number for a level, as a fault has it.
#[inline]
fn level(raw: u8) -> Option<Level> {
    Level::from_raw(raw.into())
}

impl<'a> Fault<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `fault` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(fault: *mut bindings::kvm_page_fault) -> Self {
        // SAFETY: A pointer to a fault is not null.
        let ptr = unsafe { NonNull::new_unchecked(fault) };
        // INVARIANT: By this function's safety requirement.
        Fault(ptr, PhantomData)
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm_page_fault {
        self.0.as_ptr()
    }

    getters! {
        /// The faulting guest physical address, in bytes.
        addr -> u64 = addr;
        /// The page-fault error code.
        error_code -> u64 = error_code;
        /// The vCPU has not touched the page yet.
        prefetch -> bool = prefetch;
        /// A page was mapped, but did not allow the access.
        present -> bool = present;
        /// The guest tried to write.
        write -> bool = write;
        /// The host allows writes to the frame.
        map_writable -> bool = map_writable;
        /// The NX huge page mitigation applies to this fault.
        nx_huge_page_workaround_enabled -> bool = nx_huge_page_workaround_enabled;
        /// A huge page is forbidden for the NX huge page mitigation.
        huge_page_disallowed -> bool = huge_page_disallowed;
        /// The faulting guest frame.
        gfn -> Gfn = gfn, Gfn;
        /// The host frame to map.
        pfn -> Pfn = pfn, Pfn;
        /// The level to map at.
        goal_level -> Option<Level> = goal_level, level;
        /// The level that the host's mapping would allow.
        req_level -> Option<Level> = req_level, level;
    }

    /// The memslot of the frame; `None` for MMIO.
    #[inline]
    pub(crate) fn slot(self) -> Option<Memslot<'a>> {
        // SAFETY: By the type invariant.
        let slot = unsafe { (*self.0.as_ptr()).slot };

        if slot.is_null() {
            None
        } else {
            // SAFETY: Not null, and the vCPU thread holds `kvm->srcu`, so the slot exists.
            Some(unsafe { Memslot::from_raw(slot) })
        }
    }

    /// Sets the goal level from the host's mapping and the slot.
    pub(crate) fn adjust_for_host(self, _lock: &Shared<'_>, vcpu: Vcpu<'_>) {
        // SAFETY: The vCPU and its fault exist, and `mmu_lock` is held.
        unsafe { bindings::kvm_mmu_hugepage_adjust(vcpu.as_ptr(), self.as_ptr()) }
    }

    /// Maps a page of the next smaller size than the goal level's, which is above 4 KiB.
    ///
    /// As C does in `disallowed_hugepage_adjust()`: the frame was that of the larger page.
    pub(crate) fn lower_goal(self) {
        let Some(level) = self.goal_level() else {
            return;
        };
        let Some(below) = level.down() else {
            return;
        };
        let offset = self.gfn().round_down(below).offset_in(level);

        // SAFETY: By the type invariant, no other thread accesses the fault.
        unsafe { (*self.0.as_ptr()).pfn |= offset };
        // SAFETY: As above.
        unsafe { (*self.0.as_ptr()).goal_level = below as u8 };
    }

    /// Lowers the goal level if there is a table that is used instead of a huge page because of the
    /// NX mitigation.
    pub(crate) fn adjust_for_nx(self, view: &View<'_>) {
        let level = view.level().raw();
        // SAFETY: The fault exists; and so does the table that the entry, seen at this level,
        // points to, if it does.
        unsafe { bindings::disallowed_hugepage_adjust(self.as_ptr(), view.spte().raw(), level) }
    }
}
