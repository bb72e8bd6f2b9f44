// SPDX-License-Identifier: GPL-2.0

//! What `mmu_lock` is held for, which `rust_lock_stats.c` accounts for.

use crate::bindings;

/// What `mmu_lock` is held for (`enum kvm_mmu_holder`).
#[derive(Clone, Copy)]
pub(crate) enum Holder {
    /// Dirty logging is enabled. `slots_lock` is held, as for the next three; but `Clear` may also
    /// be one of several that each have a [`ClearRange`](crate::sync::ClearRange).
    Enable,
    /// `KVM_CLEAR_DIRTY_LOG`.
    Clear,
    /// `KVM_GET_DIRTY_LOG`.
    Get,
    /// Dirty logging is disabled.
    Disable,
    /// Dirty logging walks the reverse map, under the write lock.
    Rmap,
    /// Roots are zapped. `slots_lock` is held, or `mmu_lock` for write.
    Zap,
    /// The holder is not accounted, or it is C that took the lock, for write, and has said what
    /// for.
    Caller,
}

impl Holder {
    /// C's number.
    #[inline]
    pub(crate) fn raw(self) -> u32 {
        match self {
            Holder::Enable => bindings::kvm_mmu_holder_KVM_MMU_ENABLE,
            Holder::Clear => bindings::kvm_mmu_holder_KVM_MMU_CLEAR,
            Holder::Get => bindings::kvm_mmu_holder_KVM_MMU_GET,
            Holder::Disable => bindings::kvm_mmu_holder_KVM_MMU_DISABLE,
            Holder::Rmap => bindings::kvm_mmu_holder_KVM_MMU_RMAP,
            Holder::Zap => bindings::kvm_mmu_holder_KVM_MMU_ZAP,
            Holder::Caller => bindings::kvm_mmu_holder_KVM_MMU_OTHER,
        }
    }
}
