// SPDX-License-Identifier: GPL-2.0

//! Memslots: the log on and off, the log's ioctls, SRCU.

use machine::{
    chance,
    lock::may_sleep,
    note, point,
    sched::{self, facts, me},
};

use super::field;
use crate::bindings::*;

pub(super) const MN_KEY: usize = usize::MAX - 2;
/// The words of the largest bitmap.
const MAX_WORDS: usize = 64;
const SRCU_KEY: usize = usize::MAX - 3;

/// Models `srcu_read_lock(&kvm->srcu)`.
pub fn srcu_read_lock(kvm: *mut kvm) -> u64 {
    point();
    let entry = field!(kvm, srcu_entries);
    *entry += 1;
    let entry = *entry;
    field!(kvm, srcu).push((me(), entry));
    entry
}

/// Models `srcu_read_unlock(&kvm->srcu)`.
pub fn srcu_read_unlock(kvm: *mut kvm, entry: u64) {
    point();
    field!(kvm, srcu).retain(|(_, other)| *other != entry);
    sched::wake(SRCU_KEY);
}

/// Models `synchronize_srcu_expedited(&kvm->srcu)`.
pub fn synchronize_srcu(kvm: *mut kvm) {
    let last = *field!(kvm, srcu_entries);

    while field!(kvm, srcu).iter().any(|(_, entry)| *entry <= last) {
        sched::block(SRCU_KEY, "readers of kvm->srcu");
    }
    note("synchronize_srcu()", [0; 3]);
}

/// A memslot.
pub fn new_slot(as_id: u16, base_gfn: u64, npages: usize) -> *mut kvm_memory_slot {
    machine::mem::alloc_rest(kvm_memory_slot {
        base_gfn,
        npages,
        dirty_bitmap: core::ptr::null_mut(),
        arch: kvm_arch_memory_slot {
            rmap: [core::ptr::null_mut(); 3],
        },
        flags: 0,
        as_id,
    })
}

/// The words of a slot's bitmap.
pub fn words(slot: *mut kvm_memory_slot) -> usize {
    field!(slot, npages).div_ceil(64)
}

/// Frees a memslot: whoever still uses it finds nonsense.
pub fn free_slot(slot: *mut kvm_memory_slot) {
    // SAFETY: `new_slot` made it; its memory stays until the run ends.
    unsafe { slot.write_bytes(0x6b, 1) };
}

/// Models `kvm_swap_active_memslots()`: installs a slot, and waits for those who use the old one.
fn swap(kvm: *mut kvm, as_id: usize, new: *mut kvm_memory_slot) {
    while *field!(kvm, mn_active_invalidate_count) != 0 {
        sched::block(MN_KEY, "notifiers to end");
    }
    point();
    note("installs memslot", [as_id as u64, 0, 0]);
    field!(kvm, memslots)[as_id] = new;
    *field!(kvm, generation) += 1;
    synchronize_srcu(kvm);
}

/// Models `KVM_SET_USER_MEMORY_REGION` where it changes `KVM_MEM_LOG_DIRTY_PAGES`, with
/// `kvm_mmu_slot_apply_flags()`.
pub fn set_log(kvm: *mut kvm, as_id: usize, on: bool) {
    may_sleep("KVM_SET_USER_MEMORY_REGION");
    note(
        if on {
            "enables the log"
        } else {
            "disables the log"
        },
        [as_id as u64, 0, 0],
    );
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);

    let old = field!(kvm, memslots)[as_id];
    let new = new_slot(as_id as u16, *field!(old, base_gfn), *field!(old, npages));
    if on {
        assert!(words(new) <= MAX_WORDS);
        // The second half is for the ioctls.
        let bits = machine::mem::alloc_rest([0usize; 2 * MAX_WORDS]);

        if *field!(kvm, initially_all_set) {
            for n in 0..*field!(new, npages) {
                // SAFETY: just allocated.
                unsafe { (*bits)[n / 64] |= 1 << (n % 64) };
            }
        }
        *field!(new, dirty_bitmap) = bits.cast();
        *field!(new, flags) |= KVM_MEM_LOG_DIRTY_PAGES;
    }
    swap(kvm, as_id, new);

    if !on {
        field!(kvm, mmu_lock).read_lock();
        // SAFETY: all exist, and the lock is held.
        unsafe { kvm_tdp_mmu_recover_huge_pages(kvm, new) };
        field!(kvm, mmu_lock).read_unlock();
    } else if !*field!(kvm, initially_all_set) {
        // SAFETY: all exist, and `slots_lock` is held.
        let done = unsafe { kvm_rs_start_dirty_log(kvm, new) };
        assert!(done, "there is a TDP MMU");
    }
    free_slot(old);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// A fatal signal may come now. Another process that shares the VM goes on, so in the end it is as
/// if the thread came back.
fn signal(kvm: *mut kvm) {
    facts().killed = chance(field!(kvm, odds).signal);
}

/// Models `KVM_GET_DIRTY_LOG`: `kvm_get_dirty_log_protect()`. `None`: interrupted.
pub fn get_dirty_log(kvm: *mut kvm, as_id: usize) -> Option<Vec<u64>> {
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    let slot = field!(kvm, memslots)[as_id];
    let words = words(slot);
    let bitmap = *field!(slot, dirty_bitmap);
    let mut log = Vec::with_capacity(words);
    let mut result = 0;

    note("KVM_GET_DIRTY_LOG", [as_id as u64, 0, 0]);
    if *field!(kvm, manual_dirty_log_protect) {
        for n in 0..words {
            // SAFETY: the bitmap has that many words.
            log.push(machine::mem::load(unsafe { bitmap.add(n) }.cast::<u64>()));
        }
    } else {
        // SAFETY: the second half is for the ioctl.
        let buffer = unsafe { bitmap.add(words) };
        // SAFETY: as above.
        unsafe { buffer.write_bytes(0, words) };
        signal(kvm);
        // SAFETY: all exist, and `slots_lock` is held.
        result = unsafe { kvm_rs_get_dirty_log(kvm, slot, buffer) };
        facts().killed = false;
        for n in 0..words {
            // SAFETY: as above.
            log.push(unsafe { buffer.add(n).read() } as u64);
        }
    }
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
    (result == 0).then_some(log)
}

/// Models `KVM_CLEAR_DIRTY_LOG`: `kvm_clear_dirty_log_protect()`, for the words from `first` on.
/// False: interrupted.
pub fn clear_dirty_log(kvm: *mut kvm, as_id: usize, first: usize, bits: &[u64]) -> bool {
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    let slot = field!(kvm, memslots)[as_id];
    // SAFETY: the second half is for the ioctl.
    let buffer = unsafe { (*field!(slot, dirty_bitmap)).add(words(slot)) };

    note(
        "KVM_CLEAR_DIRTY_LOG",
        [as_id as u64, first as u64, bits.len() as u64],
    );
    for (n, word) in bits.iter().enumerate() {
        // SAFETY: as above.
        unsafe { buffer.add(n).write(*word as usize) };
    }
    signal(kvm);
    // SAFETY: all exist, and `slots_lock` is held.
    let result =
        unsafe { kvm_rs_clear_dirty_log(kvm, slot, first as u64 * 64, bits.len(), buffer) };
    facts().killed = false;
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
    result == 0
}
