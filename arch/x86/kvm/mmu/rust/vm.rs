// SPDX-License-Identifier: GPL-2.0

//! The handle on a VM. Its methods are in [`crate::sys`], but locks need the handle below that.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::bindings;

/// A VM: `struct kvm`.
///
/// # Invariants
///
/// Points to a VM that exists for `'a`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vm<'a>(NonNull<bindings::kvm>, PhantomData<&'a ()>);

impl<'a> Vm<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `kvm` must point to a VM that exists for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(kvm: *mut bindings::kvm) -> Self {
        // SAFETY: A pointer to a VM is not null.
        let ptr = unsafe { NonNull::new_unchecked(kvm) };
        // INVARIANT: By this function's safety requirement.
        Vm(ptr, PhantomData)
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm {
        self.0.as_ptr()
    }
}
