// SPDX-License-Identifier: GPL-2.0

//! Private memory, of `guest_memfd`, in a VM whose private and shared memory one root maps
//! (`KVM_X86_SW_PROTECTED_VM`).

use machine::{
    lock::may_sleep,
    note,
    sched, //
};

use super::{
    field,
    notifier,
    slots,
    HOST, //
};
use crate::bindings::*;

/// Models `kvm_mem_is_private()`.
pub(crate) fn is_private(kvm: *mut kvm, gfn: u64) -> bool {
    *field!(kvm, has_private_mem) && {
        sched::point_on(HOST, false);
        field!(kvm, host).is_private(gfn)
    }
}

/// Models `kvm_mmu_faultin_pfn_gmem()` and `kvm_gmem_get_pfn()`. False: the memslot has no
/// guest_memfd, and userspace is told of it.
pub(super) fn faultin_pfn(kvm: *mut kvm, fault: &mut kvm_page_fault) -> bool {
    if *field!(fault.slot, flags) & KVM_MEM_GUEST_MEMFD == 0 {
        return false;
    }
    sched::point_on(HOST, true);
    fault.pfn = field!(kvm, host).gmem_pfn(fault.gfn);
    fault.map_writable = true;
    // `kvm_max_level_for_order()`
    fault.max_level = 1;
    note("guest_memfd has", [fault.gfn, fault.pfn, 1]);
    true
}

/// Models `kvm_gmem_punch_hole()` for one page: it is empty afterwards.
pub fn punch_hole(kvm: *mut kvm, gfn: u64) {
    may_sleep("kvm_gmem_punch_hole()");
    note("kvm_gmem_punch_hole()", [gfn, 0, 0]);
    // `bindings` of the file: nobody changes slots meanwhile.
    let srcu = slots::srcu_read_lock(kvm);

    field!(kvm, mmu_lock).write_lock();
    notifier::begin(kvm, gfn, gfn + 1);
    notifier::unmap(
        kvm,
        gfn,
        gfn + 1,
        kvm_gfn_range_filter_KVM_FILTER_PRIVATE,
        true,
    );
    field!(kvm, mmu_lock).write_unlock();

    // `truncate_inode_pages_range()`
    sched::point_on(HOST, true);
    field!(kvm, host).punch_hole(gfn);

    field!(kvm, mmu_lock).write_lock();
    notifier::end(kvm);
    field!(kvm, mmu_lock).write_unlock();
    slots::srcu_read_unlock(kvm, srcu);
}
