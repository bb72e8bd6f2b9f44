// SPDX-License-Identifier: GPL-2.0

//! Requests to vCPUs, and TLB flushes.

use machine::{
    note,
    sched, //
};

use super::field;
use crate::types::*;

/// Models `kvm_make_all_cpus_request()` with `KVM_REQUEST_WAIT`: sets the request, and waits for
/// those who are in the guest to leave it.
pub fn make_all_cpus_request(kvm: *mut kvm, request: u64) {
    let vcpus = field!(kvm, vcpus).clone();
    let mut kicked = Vec::new();

    for (n, vcpu) in vcpus.iter().enumerate() {
        sched::point_on(*vcpu as usize, true);
        note("make request", [n as u64, request, 0]);
        *field!(*vcpu, requests) |= request;
        sched::point_on(*vcpu as usize, true);
        if *field!(*vcpu, mode) != OUTSIDE_GUEST_MODE {
            note("send IPI", [n as u64, 0, 0]);
            *field!(*vcpu, ipi) = true;
            kicked.push(*vcpu);
        }
    }
    for vcpu in kicked {
        while *field!(vcpu, ipi) {
            sched::block(vcpu as usize, "the IPI");
        }
    }
}

/// Models `kvm_flush_remote_tlbs()`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_flush_remote_tlbs(kvm: *mut kvm) {
    note("flush TLBs", [0; 3]);
    make_all_cpus_request(kvm, KVM_REQ_TLB_FLUSH);
    note("flushed TLBs", [0; 3]);
}

/// Models `kvm_flush_remote_tlbs_range()`, without support of the hypervisor below.
///
/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_flush_remote_tlbs_range(kvm: *mut kvm, _gfn: u64, _nr_pages: u64) {
    // SAFETY: As for this function.
    unsafe { kvm_flush_remote_tlbs(kvm) }
}

/// Models `kvm_flush_remote_tlbs_memslot()`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run and `slot` must point to a memslot.
pub unsafe fn kvm_flush_remote_tlbs_memslot(kvm: *mut kvm, slot: *const kvm_memory_slot) {
    field!(kvm, slots_lock).assert_held("slots_lock");
    // SAFETY: As for this function.
    unsafe { kvm_flush_remote_tlbs_range(kvm, (*slot).base_gfn, (*slot).npages as u64) }
}
