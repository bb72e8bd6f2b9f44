// SPDX-License-Identifier: GPL-2.0

//! A vCPU's roots.

use machine::{
    mem,
    note,
    sched::facts, //
};

use super::{
    field,
    flush::make_all_cpus_request,
    memory::topup_memory_caches, //
};
use crate::bindings::*;

const INVALID: u32 = 1 << 12;

/// The role word of the page at a root.
fn role(sp: *mut kvm_mmu_page) -> u32 {
    let word: *mut u32 = (&raw mut *field!(sp, role)).cast();

    mem::load(word)
}

/// Whether the root is valid no more; `is_obsolete_root()`.
pub fn is_obsolete(root: u64) -> bool {
    if root == INVALID_PAGE {
        return false;
    }
    // SAFETY: The vCPU has a reference to its root.
    role(unsafe { kvm_rs_root_to_sp(root) }) & INVALID != 0
}

/// Models `kvm_mmu_load()` for a direct root, but for the flush of the CPU's TLB, which is the
/// caller's. False: there is no memory.
pub fn load(vcpu: *mut kvm_vcpu) -> bool {
    if *field!(vcpu, nested) {
        return super::shadow::load(vcpu);
    }
    if !topup_memory_caches(vcpu) {
        return false;
    }
    // SAFETY: The vCPU exists.
    unsafe { kvm_tdp_mmu_alloc_root(vcpu, false) };
    note(
        "loads root",
        [field!(*field!(vcpu, arch.mmu), root.hpa).to_owned(), 0, 0],
    );
    true
}

/// Models `kvm_mmu_free_roots()` for the current root.
pub fn free(vcpu: *mut kvm_vcpu) {
    let kvm = *field!(vcpu, kvm);
    let mmu = *field!(vcpu, arch.mmu);
    let root = *field!(mmu, root.hpa);

    if root == INVALID_PAGE {
        return;
    }
    // SAFETY: The vCPU has a reference to its root.
    let sp = unsafe { kvm_rs_root_to_sp(root) };
    if super::shadow::is_shadow(sp) {
        field!(kvm, mmu_lock).write_lock();
        super::shadow::put_root(kvm, sp);
        *field!(mmu, root.hpa) = INVALID_PAGE;
        field!(kvm, mmu_lock).write_unlock();
        return;
    }
    field!(kvm, mmu_lock).read_lock();
    // SAFETY: The vCPU gives its reference up.
    unsafe { kvm_tdp_mmu_put_root(kvm, sp) };
    *field!(mmu, root.hpa) = INVALID_PAGE;
    field!(kvm, mmu_lock).read_unlock();
}

/// Models `kvm_mmu_free_obsolete_roots()`.
pub fn free_obsolete(vcpu: *mut kvm_vcpu) {
    if is_obsolete(*field!(*field!(vcpu, arch.mmu), root.hpa)) {
        free(vcpu);
    }
}

/// Models `kvm_mmu_zap_all_fast()`, the two halves of it. `slots_lock` is held.
pub fn zap_all_fast(kvm: *mut kvm) {
    field!(kvm, slots_lock).assert_held("slots_lock");
    super::slots::wait_for_clears(kvm);
    note("kvm_mmu_zap_all_fast()", [0; 3]);
    field!(kvm, mmu_lock).write_lock();
    // SAFETY: The VM exists, and the lock is held.
    unsafe {
        kvm_tdp_mmu_invalidate_roots(
            kvm,
            kvm_tdp_mmu_root_types_KVM_DIRECT_ROOTS | kvm_tdp_mmu_root_types_KVM_MIRROR_ROOTS,
        );
    }
    make_all_cpus_request(kvm, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS);
    super::shadow::zap_all(kvm);
    field!(kvm, mmu_lock).write_unlock();
    facts().zaps_roots = true;
    // SAFETY: The VM exists.
    unsafe { kvm_tdp_mmu_zap_invalidated_roots(kvm, true) };
    facts().zaps_roots = false;
}
