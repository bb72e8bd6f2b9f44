// SPDX-License-Identifier: GPL-2.0

//! The SPTE format in use: a snapshot of C's mask globals.
//!
//! Vendor code sets the globals while its module loads, before there is any VM, and they don't
//! change as long as there is one. So the snapshot is taken whenever a VM is created.

use core::cell::UnsafeCell;

use crate::{
    bindings,
    pure::Masks,
    sys::{
        Memslot,
        Vm, //
    }, //
};

struct Snapshot(UnsafeCell<Masks>);

impl Snapshot {
    fn as_ptr(&self) -> *mut Masks {
        self.0.get()
    }
}

// SAFETY: Written only as `refresh_masks` describes, which is never while it may be read.
unsafe impl Sync for Snapshot {}

static SNAPSHOT: Snapshot = Snapshot(UnsafeCell::new(Masks::NONE));

/// Reads C's globals.
fn globals() -> Masks {
    macro_rules! global {
        ($name:ident) => {{
            // SAFETY: C writes the mask globals while a vendor module loads, when no VM exists.
            // The caller is creating a VM or acts for one, so nobody writes them now.
            unsafe { bindings::$name }
        }};
    }

    Masks {
        host_writable: global!(shadow_host_writable_mask),
        mmu_writable: global!(shadow_mmu_writable_mask),
        nx: global!(shadow_nx_mask),
        user: global!(shadow_user_mask),
        xs: global!(shadow_xs_mask),
        xu: global!(shadow_xu_mask),
        accessed: global!(shadow_accessed_mask),
        dirty: global!(shadow_dirty_mask),
        present: global!(shadow_present_mask),
        me_value: global!(shadow_me_value),
        acc_track: global!(shadow_acc_track_mask),
        mmio_mask: global!(shadow_mmio_mask),
        mmio_access: global!(shadow_mmio_access_mask),
        nonpresent_or_rsvd: global!(shadow_nonpresent_or_rsvd_mask),
        // SAFETY: A read of boot-time constants.
        base_addr: unsafe { bindings::kvm_rs_base_addr_mask() },
        ad_enabled: global!(kvm_ad_enabled),
        mmio_caching: global!(enable_mmio_caching),
    }
}

/// Takes the snapshot. Called for each new VM, before anybody else can reach it.
///
/// # Safety
///
/// No other thread may be in this function.
pub(crate) unsafe fn refresh_masks() {
    let now = globals();
    // SAFETY: Nobody writes it concurrently, by this function's safety requirement.
    let last = unsafe { *SNAPSHOT.as_ptr() };

    // VMs may be reading the snapshot, but then it doesn't change.
    if last != now {
        // SAFETY: As the globals have changed, a vendor module was loaded since the last VM was
        // created; it cannot be unloaded before the last VM is gone. So nobody reads it.
        unsafe { *SNAPSHOT.as_ptr() = now };
    }
}

/// Runs `f` with the format, for calls from C that don't say for which VM. Avoids a copy, which
/// would be 140 bytes.
///
/// # Safety
///
/// A VM must exist during the call.
#[inline(always)]
pub(crate) unsafe fn with_masks<R>(f: impl FnOnce(&Masks) -> R) -> R {
    // SAFETY: By this function's safety requirement, so nobody writes the snapshot.
    f(unsafe { &*SNAPSHOT.as_ptr() })
}

impl<'a> Memslot<'a> {
    /// The format of the SPTEs of the VM that the memslot belongs to.
    #[inline(always)]
    pub(crate) fn masks(self) -> &'a Masks {
        // SAFETY: A memslot exists no longer than its VM, so nobody writes the snapshot during
        // `'a`.
        unsafe { &*SNAPSHOT.as_ptr() }
    }
}

impl<'a> Vm<'a> {
    /// The format of the VM's SPTEs. It cannot change while the VM exists.
    #[inline(always)]
    pub(crate) fn masks(self) -> &'a Masks {
        // SAFETY: The VM exists for `'a`, so nobody writes the snapshot.
        unsafe { &*SNAPSHOT.as_ptr() }
    }
}
