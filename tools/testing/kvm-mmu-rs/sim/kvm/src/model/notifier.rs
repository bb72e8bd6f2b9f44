// SPDX-License-Identifier: GPL-2.0

//! MMU notifiers.

use machine::{
    chance,
    note,
    sched, //
};

use super::{
    field,
    flush::kvm_flush_remote_tlbs,
    slots::{
        srcu_read_lock,
        srcu_read_unlock, //
    }, //
};
use crate::bindings::*;

/// Models `kvm_mmu_notifier_invalidate_range_start()`: nobody reaches the frames of these pages
/// when it returns.
pub fn invalidate_range_start(kvm: *mut kvm, start: u64, end: u64) {
    note("invalidate_range_start", [start, end, 0]);
    *field!(kvm, mn_active_invalidate_count) += 1;
    let srcu = srcu_read_lock(kvm);

    field!(kvm, mmu_lock).write_lock();
    begin(kvm, start, end);
    // The OOM killer's reaper cannot wait.
    let may_block = !chance(4);
    unmap(
        kvm,
        start,
        end,
        kvm_gfn_range_filter_KVM_FILTER_SHARED,
        may_block,
    );
    if !may_block {
        // It gives way to nobody, however many tables there are.
        field!(kvm, mmu_lock).excuse();
    }
    field!(kvm, mmu_lock).write_unlock();
    srcu_read_unlock(kvm, srcu);
}

/// Models `kvm_mmu_invalidate_start()`, and the first `kvm_mmu_invalidate_range_add()`.
pub(super) fn begin(kvm: *mut kvm, start: u64, end: u64) {
    sched::point_on((&raw const *field!(kvm, mmu_invalidate_seq)) as usize, true);
    if *field!(kvm, mmu_invalidate_in_progress) == 0 {
        *field!(kvm, mmu_invalidate_range) = (start, end);
    } else {
        add(kvm, start, end);
    }
    *field!(kvm, mmu_invalidate_in_progress) += 1;
}

/// Models `kvm_mmu_invalidate_range_add()`, for a range that is not the first.
pub(super) fn add(kvm: *mut kvm, start: u64, end: u64) {
    let range = field!(kvm, mmu_invalidate_range);

    range.0 = range.0.min(start);
    range.1 = range.1.max(end);
}

/// Models `kvm_mmu_invalidate_end()`.
pub(super) fn end(kvm: *mut kvm) {
    sched::point_on((&raw const *field!(kvm, mmu_invalidate_seq)) as usize, true);
    *field!(kvm, mmu_invalidate_seq) += 1;
    *field!(kvm, mmu_invalidate_in_progress) -= 1;
    note("kvm_mmu_invalidate_end()", [0; 3]);
}

/// Models `kvm_unmap_gfn_range()` for each slot, and the flush for all of them.
pub(super) fn unmap(
    kvm: *mut kvm,
    start: u64,
    end: u64,
    filter: kvm_gfn_range_filter,
    may_block: bool,
) {
    let mut flush = false;

    for_each_range(kvm, start, end, |range| {
        *field!(range, attr_filter) = filter;
        *field!(range, may_block) = may_block;
        if *field!(kvm, arch.have_rmaps) {
            let slot = *field!(range, slot);
            let (start, end) = (*field!(range, start), *field!(range, end));
            // SAFETY: All exist, and the lock is held.
            flush = unsafe { kvm_rs_rmap_zap_range(kvm, slot, start, end, may_block, flush) };
        }
        // SAFETY: All exist, and the lock is held.
        flush |= unsafe { kvm_tdp_mmu_unmap_gfn_range(kvm, range, flush) };
    });
    if flush {
        // SAFETY: The VM exists.
        unsafe { kvm_flush_remote_tlbs(kvm) };
    }
}

/// Models `kvm_mmu_notifier_invalidate_range_end()`.
pub fn invalidate_range_end(kvm: *mut kvm) {
    let srcu = srcu_read_lock(kvm);

    field!(kvm, mmu_lock).write_lock();
    end(kvm);
    field!(kvm, mmu_lock).write_unlock();
    srcu_read_unlock(kvm, srcu);
    *field!(kvm, mn_active_invalidate_count) -= 1;
    sched::wake(super::slots::MN_KEY);
}

/// Models `kvm_mmu_notifier_clear_young()`, which takes no lock.
pub fn clear_young(kvm: *mut kvm, start: u64, end: u64) -> bool {
    let srcu = srcu_read_lock(kvm);
    let mut young = false;

    for_each_range(kvm, start, end, |range| {
        if *field!(kvm, arch.have_rmaps) {
            // SAFETY: All exist.
            young |= unsafe { kvm_rs_rmap_age(range, false) };
        }
        // SAFETY: All exist.
        young |= unsafe { kvm_tdp_mmu_age_gfn_range(kvm, range) };
    });
    srcu_read_unlock(kvm, srcu);
    young
}

/// Models `kvm_mmu_notifier_test_young()`.
pub fn test_young(kvm: *mut kvm, gfn: u64) -> bool {
    let srcu = srcu_read_lock(kvm);
    let mut young = false;

    for_each_range(kvm, gfn, gfn + 1, |range| {
        if *field!(kvm, arch.have_rmaps) {
            // SAFETY: All exist.
            young |= unsafe { kvm_rs_rmap_age(range, true) };
        }
        // SAFETY: All exist.
        young |= unsafe { kvm_tdp_mmu_test_age_gfn(kvm, range) };
    });
    srcu_read_unlock(kvm, srcu);
    young
}

/// The loop of `kvm_handle_hva_range()`: both address spaces have the memory.
fn for_each_range(kvm: *mut kvm, start: u64, end: u64, mut f: impl FnMut(*mut kvm_gfn_range)) {
    for slot in *field!(kvm, memslots) {
        // Also a slot that is not to be used: who has found it before may still map it.
        if slot.is_null() {
            continue;
        }
        let base = *field!(slot, base_gfn);
        let mut range = kvm_gfn_range {
            slot,
            start: start.max(base),
            end: end.min(base + *field!(slot, npages) as u64),
            attr_filter: kvm_gfn_range_filter_KVM_FILTER_SHARED,
            may_block: true,
        };
        if range.start < range.end {
            f(&mut range);
        }
    }
}
