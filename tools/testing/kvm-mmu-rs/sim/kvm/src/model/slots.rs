// SPDX-License-Identifier: GPL-2.0

//! Memslots: the log on and off, the log's ioctls, SRCU.

use core::ops::Range;

use machine::{
    fail,
    lock::may_sleep,
    note,
    point,
    sched::{
        self,
        facts,
        me, //
    }, //
};

use super::field;
use crate::{
    bindings::*,
    holds,
    told, //
};

pub(super) const MN_KEY: usize = usize::MAX - 2;
const SRCU_KEY: usize = usize::MAX - 3;
const CLEARS_KEY: usize = usize::MAX - 6;

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

/// Whether this thread is in a section of `kvm->srcu`.
pub fn srcu_is_held(kvm: *mut kvm) -> bool {
    field!(kvm, srcu).iter().any(|(who, _)| *who == me())
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
            kept: [(); 2]
                .map(|()| machine::mem::alloc_words(npages / super::HUGE_PAGES as usize + 2)),
        },
        flags: 0,
        as_id,
    })
}

/// How many lists of the reverse map a slot has for leaves of `level`.
pub fn lists(slot: *mut kvm_memory_slot, level: u32) -> usize {
    let pages = super::HUGE_PAGES.pow(level - 1);
    let (base, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);

    ((base + npages - 1) / pages - base / pages + 1) as usize
}

/// Models `memslot_rmap_alloc()`.
pub fn alloc_rmaps(slot: *mut kvm_memory_slot) {
    for level in 1..=3 {
        let heads = machine::mem::alloc_words(lists(slot, level));
        field!(slot, arch.rmap)[level as usize - 1] = heads.cast();
    }
}

/// The words of a slot's bitmap.
pub fn words(slot: *mut kvm_memory_slot) -> usize {
    field!(slot, npages).div_ceil(64)
}

/// The frames of a memslot.
pub fn frames(slot: *mut kvm_memory_slot) -> Range<u64> {
    let base = *field!(slot, base_gfn);

    base..base + *field!(slot, npages) as u64
}

/// Frees a memslot: whoever still uses it finds nonsense.
pub fn free_slot(slot: *mut kvm_memory_slot) {
    // SAFETY: `new_slot` made it; its memory stays until the run ends.
    unsafe { slot.write_bytes(0x6b, 1) };
}

/// The memslot of an address space that holds a frame, or null; `__gfn_to_memslot()`.
pub fn of(kvm: *mut kvm, as_id: usize, gfn: u64) -> *mut kvm_memory_slot {
    let slots = field!(kvm, memslots)[as_id * SLOTS..][..SLOTS].iter();
    let holds = |slot: &*mut kvm_memory_slot| !slot.is_null() && frames(*slot).contains(&gfn);

    let found = slots.copied().find(holds);
    found.unwrap_or(core::ptr::null_mut())
}

/// Models `kvm_rs_is_clearing()`.
pub fn is_clearing(kvm: *mut kvm) -> bool {
    !field!(kvm, rs_dirty_log.clears).is_empty()
}

/// Models `kvm_rs_wait_for_clears()`.
pub fn wait_for_clears(kvm: *mut kvm) {
    field!(kvm, slots_lock).assert_held("slots_lock");
    while is_clearing(kvm) {
        sched::block(CLEARS_KEY, "threads that clear");
    }
}

/// Models `is_cleared()`, for a range.
fn is_cleared(kvm: *mut kvm, range: &clear_range) -> bool {
    field!(kvm, rs_dirty_log.clears).iter().any(|other| {
        other.slot == range.slot
            && other.words.start < range.words.end
            && range.words.start < other.words.end
    })
}

/// Models `begin_clear()`, if nobody clears a part of the range. Returns whether it is accounted.
fn begin_clear(kvm: *mut kvm, range: clear_range) -> bool {
    let clears = field!(kvm, rs_dirty_log.clears);
    let accounted = !clears.iter().any(|range| range.accounted);

    clears.push(clear_range { accounted, ..range });
    accounted
}

/// Fails unless a thread that has claimed a range takes `mmu_lock` for what its range says: the
/// statistics have room for one CLEAR.
pub(crate) fn check_holder(kvm: *mut kvm, holder: u32) {
    let mut clears = field!(kvm, rs_dirty_log.clears).iter();
    let wanted = |range: &clear_range| match range.accounted {
        true => kvm_mmu_holder_KVM_MMU_CLEAR,
        false => kvm_mmu_holder_KVM_MMU_OTHER,
    };

    if let Some(range) = clears.find(|range| range.who == me()) {
        if holder != wanted(range) {
            fail(format!(
                "CLEAR takes mmu_lock as holder {holder}, not as {}",
                wanted(range)
            ));
        }
    }
}

/// Models `end_clear()`.
fn end_clear(kvm: *mut kvm) {
    field!(kvm, rs_dirty_log.clears).retain(|range| range.who != me());
    sched::wake(CLEARS_KEY);
}

fn lock_arch(kvm: *mut kvm) {
    field!(kvm, slots_arch_lock).lock("mutex_lock(slots_arch_lock)", false);
}

/// Models `mmu_first_shadow_root_alloc()`: from now on all slots have lists of the reverse map.
pub(super) fn first_shadow_root(kvm: *mut kvm) {
    point();
    if *field!(kvm, arch.have_rmaps) {
        return;
    }
    lock_arch(kvm);
    if !*field!(kvm, arch.have_rmaps) {
        for slot in *field!(kvm, memslots) {
            if !slot.is_null() && field!(slot, arch.rmap)[0].is_null() {
                alloc_rmaps(slot);
            }
            point();
        }
        note("has lists of the reverse map", [0; 3]);
        *field!(kvm, arch.have_rmaps) = true;
    }
    field!(kvm, slots_arch_lock).unlock("mutex_unlock(slots_arch_lock)", false);
}

/// Models `kvm_swap_active_memslots()`: installs a slot, and waits for those who use the old one.
/// Drops `slots_arch_lock`, which its caller has taken.
fn swap(kvm: *mut kvm, at: usize, new: *mut kvm_memory_slot) {
    while *field!(kvm, mn_active_invalidate_count) != 0 {
        sched::block(MN_KEY, "notifiers to end");
    }
    point();
    note(
        "installs memslot",
        [at as u64, u64::from(!new.is_null()), 0],
    );
    field!(kvm, memslots)[at] = new;
    field!(kvm, slots_arch_lock).unlock("mutex_unlock(slots_arch_lock)", false);
    synchronize_srcu(kvm);
    // Only now: who has looked for a slot before makes MMIO entries of the old generation.
    *field!(kvm, generation) += 1;
}

/// Models `KVM_SET_USER_MEMORY_REGION` where it changes `KVM_MEM_LOG_DIRTY_PAGES`, with
/// `kvm_mmu_slot_apply_flags()`. `at`: the place of the slot in `kvm->memslots`, here and below.
pub fn set_log(kvm: *mut kvm, at: usize, on: bool) {
    may_sleep("KVM_SET_USER_MEMORY_REGION");
    note(
        if on {
            "enables the log"
        } else {
            "disables the log"
        },
        [at as u64, 0, 0],
    );
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    wait_for_clears(kvm);
    lock_arch(kvm);

    let old = field!(kvm, memslots)[at];
    let new = new_slot(
        *field!(old, as_id),
        *field!(old, base_gfn),
        *field!(old, npages),
    );
    *field!(new, arch) = *field!(old, arch);
    if on && *field!(kvm, use_ring) {
        *field!(new, flags) |= KVM_MEM_LOG_DIRTY_PAGES;
    } else if on {
        // The second half is for the ioctls.
        let bits = machine::mem::alloc_words(2 * words(new));

        if *field!(kvm, initially_all_set) {
            let npages = *field!(new, npages);
            for n in 0..words(new) {
                let last = if n + 1 < words(new) || npages % 64 == 0 {
                    usize::MAX
                } else {
                    (1 << (npages % 64)) - 1
                };
                // SAFETY: Just allocated, with as many words.
                unsafe { bits.add(n).write(last) };
            }
        }
        *field!(new, dirty_bitmap) = bits;
        *field!(new, flags) |= KVM_MEM_LOG_DIRTY_PAGES;
    }
    if on {
        prepare(kvm, new);
    }
    swap(kvm, at, new);
    let logged = field!(kvm, nr_memslots_dirty_logging);
    *logged = if on { *logged + 1 } else { *logged - 1 };
    if *field!(kvm, rs_dirty_log.switching) {
        // A grace period takes long. Others get far meanwhile.
        for _ in 0..sched::choose(1 << sched::choose(8)) {
            sched::spin();
        }
        // `forget_dirty_bits()`
        for slot in field!(kvm, memslots).iter().filter(|slot| !slot.is_null()) {
            if !field!(*slot, dirty_bitmap).is_null() {
                // SAFETY: All exist, and `slots_lock` is held.
                unsafe { kvm_rs_forget_dirty_bits(kvm, *slot) };
            }
        }
        sched::point_on(
            (&raw const *field!(kvm, rs_dirty_log.switching)) as usize,
            true,
        );
        *field!(kvm, rs_dirty_log.switching) = false;
    }
    if *logged == 0 {
        // `kvm_rs_commit_dirty_log()`
        sched::point_on(
            (&raw const *field!(kvm, rs_dirty_log.dirty_bits)) as usize,
            true,
        );
        *field!(kvm, rs_dirty_log.dirty_bits) = false;
    }

    if !on {
        // `kvm_mmu_recover_huge_pages()`, `mmu_free_vm_memory_caches()`
        if *field!(kvm, arch.have_rmaps) {
            field!(kvm, mmu_lock).write_lock();
            let yields = field!(kvm, rs_stat.mmu_events)[kvm_rs_event_KVM_RS_YIELD as usize];
            // SAFETY: All exist, and the lock is held.
            unsafe { kvm_rs_rmap_zap_collapsible(kvm, new) };
            if yields == field!(kvm, rs_stat.mmu_events)[kvm_rs_event_KVM_RS_YIELD as usize] {
                super::shadow::check_collapsed(kvm, new);
            }
            field!(kvm, mmu_lock).write_unlock();
            super::memory::free_split_caches(kvm);
        }
        field!(kvm, mmu_lock).read_lock();
        holds::begin(kvm_mmu_holder_KVM_MMU_DISABLE, false);
        let before = sched::total();
        // SAFETY: All exist, and the lock is held.
        unsafe { kvm_tdp_mmu_recover_huge_pages(kvm, new) };
        told::flushed(before);
        holds::end(kvm_mmu_holder_KVM_MMU_DISABLE, false);
        field!(kvm, mmu_lock).read_unlock();
    } else {
        let splitting = Splitting::now(kvm);

        if *field!(kvm, starts_as_c) {
            start_as_c(kvm, new);
        } else {
            // SAFETY: All exist, and `slots_lock` is held.
            let done = killable(|| unsafe { kvm_rs_start_dirty_log(kvm, new) });
            assert!(done, "there is a TDP MMU");
        }
        if !*field!(kvm, initially_all_set) {
            splitting.check(kvm, new, |_| true);
        }
    }
    free_slot(old);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models what `kvm_mmu_slot_apply_flags()` does where `kvm_rs_start_dirty_log()` does nothing:
/// `kvm_mmu_slot_try_split_huge_pages()`, `kvm_mmu_slot_leaf_clear_dirty()` and
/// `kvm_mmu_slot_remove_write_access()`.
fn start_as_c(kvm: *mut kvm, slot: *mut kvm_memory_slot) {
    let (start, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);
    let pml = *field!(kvm, arch.cpu_dirty_log_size) != 0;
    let have_rmaps = *field!(kvm, arch.have_rmaps);
    let level = if pml { 2 } else { 1 };

    if *field!(kvm, initially_all_set) {
        return;
    }
    point();
    // SAFETY: One OS thread.
    if unsafe { eager_page_split } {
        if have_rmaps {
            field!(kvm, mmu_lock).write_lock();
            // SAFETY: All exist, and the locks are held.
            unsafe { kvm_rs_rmap_split(kvm, slot, start, start + npages, 1) };
            field!(kvm, mmu_lock).write_unlock();
        }
        field!(kvm, mmu_lock).read_lock();
        // SAFETY: All exist, and the locks are held.
        unsafe { kvm_tdp_mmu_try_split_huge_pages(kvm, slot, start, start + npages, 1, true) };
        field!(kvm, mmu_lock).read_unlock();
    }
    if pml {
        if have_rmaps {
            field!(kvm, mmu_lock).write_lock();
            // SAFETY: All exist, and the lock is held.
            unsafe { kvm_rs_rmap_clear_dirty_slot(kvm, slot) };
            field!(kvm, mmu_lock).write_unlock();
        }
        field!(kvm, mmu_lock).read_lock();
        // SAFETY: All exist, and the lock is held.
        unsafe { kvm_tdp_mmu_clear_dirty_slot(kvm, slot) };
        field!(kvm, mmu_lock).read_unlock();
    }
    if have_rmaps {
        field!(kvm, mmu_lock).write_lock();
        // SAFETY: All exist, and the lock is held.
        unsafe { kvm_rs_rmap_write_protect_slot(kvm, slot, level) };
        field!(kvm, mmu_lock).write_unlock();
    }
    field!(kvm, mmu_lock).read_lock();
    // SAFETY: All exist, and the lock is held.
    unsafe { kvm_tdp_mmu_wrprot_slot(kvm, slot, level) };
    field!(kvm, mmu_lock).read_unlock();
    // SAFETY: Both exist.
    unsafe { super::flush::kvm_flush_remote_tlbs_memslot(kvm, slot) };
}

/// Whether huge pages are to be split, and what has been in the way of that so far.
#[derive(PartialEq)]
struct Splitting {
    eager: bool,
    changes: u64,
    refusals: [u64; 2],
}

impl Splitting {
    fn now(kvm: *mut kvm) -> Self {
        let events = field!(kvm, rs_stat.mmu_events);

        Splitting {
            // SAFETY: One OS thread.
            eager: unsafe { eager_page_split },
            changes: super::settings::eager_changes(),
            refusals: [
                events[kvm_rs_event_KVM_RS_SPLIT_NO_MEMORY as usize],
                events[kvm_rs_event_KVM_RS_SPLIT_NO_BUDGET as usize],
            ],
        }
    }

    /// Fails if a huge page is mapped that has one of the `wanted` frames of the slot, although all
    /// were to be split since, and nothing was in the way. The slot is logged, so that no fault
    /// maps a huge page.
    fn check(self, kvm: *mut kvm, slot: *mut kvm_memory_slot, mut wanted: impl FnMut(u64) -> bool) {
        if !self.eager || self != Splitting::now(kvm) || field!(kvm, odds).signal != 0 {
            return;
        }
        let as_id = usize::from(*field!(slot, as_id));
        let (base, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);
        let tdp = super::tables::leaves(kvm).into_iter();
        let tdp = tdp.filter(|leaf| leaf.as_id == as_id);
        let mut all: Vec<_> = tdp.map(|leaf| (leaf.level, leaf.gfn)).collect();

        // Shadow pages are those of both address spaces.
        if !field!(kvm, active_mmu_pages).is_empty() && field!(kvm, memslots)[SLOTS].is_null() {
            let shadow = super::shadow::leaves(kvm).into_iter();
            all.extend(shadow.map(|(level, gfn, _)| (level, gfn)));
        }
        for (level, gfn) in all {
            let mut frames = gfn.max(base)..(gfn + super::pages(level)).min(base + npages);

            if level > 1 && frames.any(&mut wanted) {
                fail(format!(
                    "gfn {gfn:#x} is mapped by a huge page, and was to be split"
                ));
            }
        }
    }
}

/// Models `kvm_invalidate_memslot()` and `kvm_arch_flush_shadow_memslot()`: puts a copy of the slot
/// that is not to be used in its place, and zaps what maps it. Returns the copy, and the slot.
/// `all`: with `KVM_X86_QUIRK_SLOT_ZAP_ALL`.
fn invalidate(kvm: *mut kvm, at: usize, all: bool) -> (*mut kvm_memory_slot, *mut kvm_memory_slot) {
    lock_arch(kvm);
    let old = field!(kvm, memslots)[at];
    let (start, npages) = (*field!(old, base_gfn), *field!(old, npages));
    let invalid = new_slot(*field!(old, as_id), start, npages);
    *field!(invalid, flags) = *field!(old, flags) | KVM_MEMSLOT_INVALID;
    *field!(invalid, dirty_bitmap) = *field!(old, dirty_bitmap);
    *field!(invalid, arch) = *field!(old, arch);
    swap(kvm, at, invalid);

    if all {
        super::roots::zap_all_fast(kvm);
    } else {
        let mut range = kvm_gfn_range {
            slot: invalid,
            start,
            end: start + npages as u64,
            attr_filter: kvm_gfn_range_filter_KVM_FILTER_SHARED
                | kvm_gfn_range_filter_KVM_FILTER_PRIVATE,
            may_block: true,
        };

        field!(kvm, mmu_lock).write_lock();
        let mut flush = false;
        if *field!(kvm, arch.have_rmaps) {
            let (start, end) = (range.start, range.end);
            // SAFETY: All exist, and the lock is held.
            flush = unsafe { kvm_rs_rmap_zap_range(kvm, invalid, start, end, true, false) };
        }
        // SAFETY: All exist, and the lock is held.
        if unsafe { kvm_tdp_mmu_unmap_gfn_range(kvm, &mut range, flush) } {
            // SAFETY: The VM exists.
            unsafe { super::flush::kvm_flush_remote_tlbs(kvm) };
        }
        field!(kvm, mmu_lock).write_unlock();
    }
    // Until then the first root of the shadow MMU may have brought lists.
    lock_arch(kvm);
    (invalid, old)
}

/// Models `KVM_SET_USER_MEMORY_REGION` where it deletes a slot, with `kvm_delete_memslot()`. `all`:
/// with `KVM_X86_QUIRK_SLOT_ZAP_ALL`.
pub fn delete(kvm: *mut kvm, at: usize, all: bool) {
    may_sleep("KVM_SET_USER_MEMORY_REGION");
    note("deletes the slot", [at as u64, 0, 0]);
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    wait_for_clears(kvm);
    let (invalid, old) = invalidate(kvm, at, all);

    swap(kvm, at, core::ptr::null_mut());
    free_slot(old);
    free_slot(invalid);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models `KVM_SET_USER_MEMORY_REGION` where it moves a slot, with `kvm_move_memslot()`. The log
/// goes on: the bitmap is that of the slot, wherever it lies. `all`: with
/// `KVM_X86_QUIRK_SLOT_ZAP_ALL`.
pub fn relocate(kvm: *mut kvm, at: usize, base_gfn: u64, all: bool) {
    may_sleep("KVM_SET_USER_MEMORY_REGION");
    note("moves the slot", [at as u64, base_gfn, 0]);
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    wait_for_clears(kvm);
    let (invalid, old) = invalidate(kvm, at, all);
    let new = new_slot(*field!(old, as_id), base_gfn, *field!(old, npages));

    *field!(new, flags) = *field!(old, flags);
    *field!(new, dirty_bitmap) = *field!(old, dirty_bitmap);
    if *field!(kvm, arch.have_rmaps) {
        alloc_rmaps(new);
    }
    swap(kvm, at, new);
    free_slot(old);
    free_slot(invalid);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models `KVM_SET_USER_MEMORY_REGION` where it makes a slot.
pub fn create(kvm: *mut kvm, at: usize, base_gfn: u64, npages: usize, flags: u32) {
    note("creates the slot", [at as u64, 0, 0]);
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    wait_for_clears(kvm);
    lock_arch(kvm);
    let new = new_slot((at / SLOTS) as u16, base_gfn, npages);
    *field!(new, flags) = flags;
    if *field!(kvm, arch.have_rmaps) {
        alloc_rmaps(new);
    }
    swap(kvm, at, new);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Takes the entries out of the rings; what userspace does before it calls [`reset_rings`].
pub fn harvest_rings(kvm: *mut kvm) -> Vec<(usize, u64)> {
    sched::point_on(super::RING, true);
    core::mem::take(field!(kvm, ring))
}

/// Models `KVM_RESET_DIRTY_RINGS`: `kvm_dirty_ring_reset()`, `kvm_reset_dirty_gfn()` and
/// `kvm_arch_mmu_enable_log_dirty_pt_masked()`.
pub fn reset_rings(kvm: *mut kvm, harvested: &[(usize, u64)]) {
    may_sleep("KVM_RESET_DIRTY_RINGS");
    note("KVM_RESET_DIRTY_RINGS", [harvested.len() as u64, 0, 0]);
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    let mut left = harvested;

    while let Some((at, first)) = left.first().copied() {
        // As many as are of the same slot, and not far from the first.
        let near = |(other, gfn): &&(usize, u64)| *other == at && (first..first + 64).contains(gfn);
        let some = left.iter().take_while(near).count();
        let mask = left[..some]
            .iter()
            .fold(0, |mask, (_, gfn)| mask | 1 << (gfn - first));
        let slot = field!(kvm, memslots)[at];

        left = &left[some..];
        field!(kvm, mmu_lock).write_lock();
        let wrprot = *field!(kvm, arch.cpu_dirty_log_size) == 0;
        // SAFETY: All exist, and the locks are held.
        unsafe { kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, first, mask, wrprot) };
        if *field!(kvm, arch.have_rmaps) {
            // SAFETY: All exist, and the locks are held.
            unsafe { kvm_rs_rmap_protect_masked(kvm, slot, first, mask, !wrprot) };
        }
        field!(kvm, mmu_lock).write_unlock();
    }
    if !harvested.is_empty() {
        // SAFETY: The VM exists.
        unsafe { super::flush::kvm_flush_remote_tlbs(kvm) };
    }
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models `KVM_SET_MEMORY_ATTRIBUTES` for a range: `kvm_vm_set_mem_attributes()`, with
/// `kvm_arch_pre_set_memory_attributes()` and `kvm_arch_post_set_memory_attributes()`. In a VM that
/// has no private memory, a page whose attribute differs is mapped like the others, but its
/// surroundings must not be mapped by a huge page.
pub fn set_attributes(kvm: *mut kvm, (start, end): (u64, u64), differs: bool) {
    may_sleep("KVM_SET_MEMORY_ATTRIBUTES");
    note("KVM_SET_MEMORY_ATTRIBUTES", [start, end, differs.into()]);
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    field!(kvm, mmu_lock).write_lock();
    super::notifier::begin(kvm, start, end);
    // Of all address spaces.
    for slot in *field!(kvm, memslots) {
        if slot.is_null() {
            continue;
        }
        let (base, npages) = (*field!(slot, base_gfn), *field!(slot, npages) as u64);
        let (first, last) = (start.max(base), end.min(base + npages));
        if first >= last {
            continue;
        }
        for level in 2..=3 {
            for gfn in [first, last - 1] {
                let (head, pages) = (gfn - gfn % super::pages(level), super::pages(level));
                let part = head < first || head + pages > last;
                let fits = head >= base && head + pages <= base + npages;

                if part && fits && !field!(kvm, host).is_mixed(gfn, level) {
                    super::notifier::add(kvm, head, head + pages);
                }
            }
        }
    }
    let filter = if differs {
        kvm_gfn_range_filter_KVM_FILTER_SHARED
    } else {
        kvm_gfn_range_filter_KVM_FILTER_PRIVATE
    };
    super::notifier::unmap(kvm, start, end, filter, true);
    field!(kvm, mmu_lock).write_unlock();
    for gfn in start..end {
        if gfn == start || gfn % 64 == 0 {
            sched::point_on(super::HOST, true);
        }
        if *field!(kvm, has_private_mem) {
            field!(kvm, host).set_private(gfn, differs);
        }
    }
    point();
    field!(kvm, mmu_lock).write_lock();
    for gfn in start..end {
        field!(kvm, host).set_mixed(gfn, differs);
    }
    super::notifier::end(kvm);
    field!(kvm, mmu_lock).write_unlock();
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models `kvm_rs_prepare_dirty_log()` for a slot that begins to be logged.
fn prepare(kvm: *mut kvm, new: *mut kvm_memory_slot) {
    // SAFETY: Constant while there is a VM.
    let can = unsafe { kvm_ad_enabled }
        && *field!(kvm, arch.cpu_dirty_log_size) == 0
        && !*field!(kvm, use_ring)
        && !*field!(kvm, arch.have_rmaps);

    let is_first = *field!(kvm, nr_memslots_dirty_logging) == 0;
    let wants = *field!(kvm, wants_dirty_bits) && !(is_first && *field!(kvm, dirty_bits_late));

    if is_first || !*field!(kvm, rs_dirty_log.dirty_bits) {
        sched::point_on(
            (&raw const *field!(kvm, rs_dirty_log.switching)) as usize,
            true,
        );
        *field!(kvm, rs_dirty_log.switching) = can && wants && !is_first;
        sched::point_on(
            (&raw const *field!(kvm, rs_dirty_log.dirty_bits)) as usize,
            true,
        );
        *field!(kvm, rs_dirty_log.dirty_bits) = can && wants;
    }
    if *field!(kvm, rs_dirty_log.dirty_bits) && !*field!(kvm, initially_all_set) {
        *field!(kvm, rs_dirty_log.starting) = new;
    }
}

/// Runs `ioctl`, in which a fatal signal may come. Another process that shares the VM goes on, so
/// in the end it is as if the thread came back.
fn killable<R>(ioctl: impl FnOnce() -> R) -> R {
    facts().killable = true;
    let result = ioctl();
    facts().killable = false;
    facts().killed = false;
    result
}

/// Models `KVM_GET_DIRTY_LOG`: `kvm_get_dirty_log_protect()`. `None`: interrupted.
pub fn get_dirty_log(kvm: *mut kvm, at: usize) -> Option<Vec<u64>> {
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    let log = get(kvm, at);
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
    log
}

/// The same from a thread that does not know whether the slot is there, and logged.
pub fn get_if_logged(kvm: *mut kvm, at: usize) {
    field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
    let slot = field!(kvm, memslots)[at];

    if !slot.is_null() && !field!(slot, dirty_bitmap).is_null() {
        get(kvm, at);
    }
    field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
}

/// Models `kvm_rs_get_log()`. `slots_lock` is held.
fn get(kvm: *mut kvm, at: usize) -> Option<Vec<u64>> {
    let slot = field!(kvm, memslots)[at];
    let words = words(slot);
    let bitmap = *field!(slot, dirty_bitmap);
    let mut log = Vec::with_capacity(words);
    let mut result = 0;

    note("KVM_GET_DIRTY_LOG", [at as u64, 0, 0]);
    if *field!(kvm, manual_dirty_log_protect) {
        if *field!(kvm, rs_dirty_log.dirty_bits) {
            facts().harvests = true;
            facts().closed = 0;
            result = killable(|| {
                // SAFETY: All exist, and `slots_lock` is held; the second half is for the ioctl.
                unsafe { kvm_rs_harvest_dirty_log(kvm, slot, bitmap.add(words)) }
            });
            facts().harvests = false;
        }
        for n in 0..words {
            // SAFETY: The bitmap has that many words.
            log.push(machine::mem::load(unsafe { bitmap.add(n) }.cast::<u64>()));
        }
    } else {
        wait_for_clears(kvm);
        // SAFETY: The second half is for the ioctl.
        let buffer = unsafe { bitmap.add(words) };
        // SAFETY: As above.
        unsafe { buffer.write_bytes(0, words) };
        result = killable(|| {
            // SAFETY: All exist, and `slots_lock` is held.
            unsafe { kvm_rs_get_dirty_log(kvm, slot, buffer) }
        });
        for n in 0..words {
            // SAFETY: As above.
            log.push(unsafe { buffer.add(n).read() } as u64);
        }
    }
    (result == 0).then_some(log)
}

/// Models `KVM_CLEAR_DIRTY_LOG`: `kvm_rs_clear_log()` and `kvm_clear_dirty_log_protect()`, for the
/// words from `first` on. False: interrupted, or the user's bitmap could not be read.
pub fn clear_dirty_log(kvm: *mut kvm, at: usize, first: usize, bits: &[u64]) -> bool {
    note(
        "KVM_CLEAR_DIRTY_LOG",
        [at as u64, first as u64, bits.len() as u64],
    );
    loop {
        field!(kvm, slots_lock).lock("mutex_lock(slots_lock)", false);
        let slot = field!(kvm, memslots)[at];
        let words = first..first + bits.len();
        let range = clear_range {
            who: me(),
            slot,
            words,
            accounted: false,
        };

        if *field!(kvm, arch.have_rmaps) || *field!(kvm, rs_dirty_log.dirty_bits) {
            wait_for_clears(kvm);
            let result = clear_range(kvm, &range, bits, false);
            field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
            return result == 0;
        }
        if is_cleared(kvm, &range) {
            field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
            while is_cleared(kvm, &range) {
                sched::block(CLEARS_KEY, "a thread that clears the same");
            }
            continue;
        }
        let accounted = begin_clear(
            kvm,
            clear_range {
                words: range.words.clone(),
                ..range
            },
        );
        field!(kvm, slots_lock).unlock("mutex_unlock(slots_lock)", false);
        let result = clear_range(kvm, &clear_range { accounted, ..range }, bits, true);
        end_clear(kvm);
        if result == EAGAIN {
            assert!(*field!(kvm, arch.have_rmaps), "there are shadow pages");
            continue;
        }
        return result == 0;
    }
}

const EAGAIN: i32 = -11;
const EFAULT: i32 = -14;

/// Models `clear_range()`. `claimed`: rather than that `slots_lock` is held.
fn clear_range(kvm: *mut kvm, range: &clear_range, bits: &[u64], claimed: bool) -> i32 {
    let (slot, first) = (range.slot, range.words.start);
    // SAFETY: The second half is for the ioctls: each has the words that belong to those it clears.
    let buffer = unsafe { (*field!(slot, dirty_bitmap)).add(words(slot) + first) };

    for (n, word) in bits.iter().enumerate() {
        // SAFETY: As above.
        unsafe { buffer.add(n).write(*word as usize) };
    }
    // The user's memory may have to be waited for, or may be gone.
    point();
    if !sched::tries_all() && sched::chance(32) {
        return EFAULT;
    }
    let first_page = first as u64 * 64;
    let splitting = Splitting::now(kvm);
    // Nobody else takes these bits.
    let taken: Vec<u64> = bits
        .iter()
        .enumerate()
        // SAFETY: Within the bitmap.
        .map(|(n, word)| {
            *word & unsafe { (*field!(slot, dirty_bitmap)).add(first + n).read() } as u64
        })
        .collect();
    let result = killable(|| {
        if claimed {
            let accounted = range.accounted;
            // SAFETY: All exist, and the range is claimed.
            unsafe {
                kvm_rs_clear_dirty_range(kvm, slot, first_page, bits.len(), buffer, accounted)
            }
        } else {
            // SAFETY: All exist, and `slots_lock` is held.
            unsafe { kvm_rs_clear_dirty_log(kvm, slot, first_page, bits.len(), buffer) }
        }
    });
    if result == 0 && *field!(kvm, initially_all_set) {
        splitting.check(kvm, slot, |gfn| {
            let page = (gfn - *field!(slot, base_gfn)).wrapping_sub(first_page);

            taken
                .get(page as usize / 64)
                .is_some_and(|word| word >> (page % 64) & 1 != 0)
        });
    }
    result
}
