// SPDX-License-Identifier: GPL-2.0

//! `KVM_SPLIT_HUGE_PAGES`: models `rust_split.c`.

use machine::{
    choose,
    lock::may_sleep,
    note,
    point,
    sched, //
};

use super::{
    field,
    pages,
    slots,
    HUGE_PAGES, //
};
use crate::bindings::*;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Split to 4 KiB, or to 2 MiB.
    Split,
    /// The same, and keep it so.
    Keep,
    /// Recover.
    Recover,
}

/// Where the word of the huge page is that holds `gfn`, of those who want no page larger than
/// `level`. It is 0 if nobody does. Otherwise it tells who has said so last, and in bit 0 whether
/// that one is done with splitting.
///
/// # Safety
///
/// `slot` must point to a memslot.
unsafe fn word(slot: *const kvm_memory_slot, gfn: u64, level: u32) -> *mut usize {
    let base = *field!(slot.cast_mut(), base_gfn);
    let index = gfn / HUGE_PAGES - base / HUGE_PAGES;
    let words = field!(slot.cast_mut(), arch.kept)[level as usize - 1];

    // SAFETY: A slot has a word for each huge page of which it has a part.
    unsafe { words.add(index as usize) }
}

/// Whether nobody may map the huge page of `level` that holds `gfn`: one of 1 GiB, if a part of it
/// is kept.
///
/// # Safety
///
/// `slot` must point to a memslot that has all of that huge page.
pub unsafe fn is_kept(slot: *const kvm_memory_slot, gfn: u64, level: u32) -> bool {
    let start = gfn - gfn % pages(level);
    let mut parts = (start..start + pages(level)).step_by(HUGE_PAGES as usize);
    let is_set = |gfn, max| {
        // SAFETY: By this function's safety requirement.
        let word = unsafe { word(slot, gfn, max) };

        sched::point_on(word as usize, false);
        // SAFETY: The word exists.
        unsafe { *word != 0 }
    };

    parts.any(|gfn| (1..level).any(|max| is_set(gfn, max)))
}

/// Models `keep_small()` and `need_not_be_small()`: `value` for each of `levels`.
fn set(
    kvm: *mut kvm,
    slot: *mut kvm_memory_slot,
    range: (u64, u64),
    levels: core::ops::Range<u32>,
    value: usize,
) {
    field!(kvm, mmu_lock).write_lock();
    for gfn in (range.0..range.1).step_by(HUGE_PAGES as usize) {
        for level in levels.clone() {
            // SAFETY: `kvm->srcu` is held, so the slot exists.
            let word = unsafe { word(slot, gfn, level) };

            sched::point_on(word as usize, true);
            // SAFETY: The word exists.
            unsafe { *word = value };
        }
    }
    field!(kvm, mmu_lock).write_unlock();
}

/// Models `split_step()` for the huge page that holds `gfn`. Returns an error number, or 0.
pub fn split_step(kvm: *mut kvm, as_id: usize, gfn: u64, request: Request) -> i32 {
    may_sleep("KVM_SPLIT_HUGE_PAGES");
    note("KVM_SPLIT_HUGE_PAGES", [gfn, request as u64, 0]);
    let srcu = slots::srcu_read_lock(kvm);
    let result = in_slot(kvm, as_id, gfn, request, srcu);

    slots::srcu_read_unlock(kvm, srcu);
    result
}

/// Models `split_in_slot()`.
fn in_slot(kvm: *mut kvm, as_id: usize, gfn: u64, request: Request, srcu: u64) -> i32 {
    const EAGAIN: i32 = -11;
    const EBUSY: i32 = -16;
    point();
    let slot = slots::of(kvm, as_id, gfn);
    if slot.is_null() {
        return 0;
    }
    if *field!(slot, flags) & KVM_MEMSLOT_INVALID != 0 {
        return EAGAIN;
    }
    let (base, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);
    let region = crate::host::Host::region(gfn);
    let range = (region.max(base), (region + HUGE_PAGES).min(base + npages));

    // Where there are pages of 1 GiB, also to 2 MiB.
    let to = if request != Request::Recover && cfg!(feature = "small") {
        1 + choose(2) as u32
    } else {
        1
    };

    match request {
        Request::Recover if *field!(slot, flags) & KVM_MEM_LOG_DIRTY_PAGES != 0 => return EBUSY,
        Request::Recover => {
            set(kvm, slot, range, 1..3, 0);
            // SAFETY: All exist, and `kvm->srcu` is held.
            return unsafe { kvm_rs_recover_range(kvm, slot, range.0, range.1) };
        }
        Request::Keep => set(kvm, slot, range, to..to + 1, srcu as usize * 2),
        Request::Split => {}
    }
    // SAFETY: All exist, and `kvm->srcu` is held.
    let result = unsafe { kvm_rs_split_range(kvm, slot, range.0, range.1, to as i32) };

    if request == Request::Keep && result == 0 {
        // SAFETY: `kvm->srcu` is held.
        let word = unsafe { word(slot, range.0, to) };

        // Somebody else may have said something else meanwhile.
        // SAFETY: The word exists; one OS thread.
        unsafe {
            if *word == srcu as usize * 2 {
                *word |= 1;
            }
        }
    }
    result
}

/// Whether nobody may map a page of `level` around the huge page that holds `gfn`: it is to stay
/// smaller, and was split.
pub fn must_be_small(kvm: *mut kvm, as_id: usize, gfn: u64, level: u32) -> bool {
    let slot = slots::of(kvm, as_id, gfn);
    // SAFETY: A slot that is found exists.
    let is_done = |max| unsafe { *word(slot, gfn, max) & 1 != 0 };

    !slot.is_null() && (1..level).any(is_done)
}
