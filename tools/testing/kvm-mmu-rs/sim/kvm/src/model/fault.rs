// SPDX-License-Identifier: GPL-2.0

//! Page faults.

use kernel::bindings::page;
use machine::{
    mem,
    note,
    rcu,
    sched::{
        self,
        facts, //
    }, //
};

use super::{
    field,
    memory::{
        mark_page_dirty_in_slot,
        topup_memory_caches, //
    },
    roots::is_obsolete,
    track,
    LARGE,
    MMU_PRESENT,
    WRITABLE, //
};
use crate::{
    bindings::*,
    told, //
};

const PRESENT: u64 = 1 << 0;
/// `ACC_*` that access tracking saves, and where.
const ACC_TRACK_SAVED: u64 = 1 << 0 | 1 << 2 | 1 << 10;
const AD_MASK: u64 = 3 << 60;
const AD_DISABLED: u64 = 1 << 60;

/// Bits of an error code.
pub const PFERR_PRESENT: u64 = 1 << 0;
pub const PFERR_WRITE: u64 = 1 << 1;
pub const PFERR_RSVD: u64 = 1 << 3;
pub const PFERR_FETCH: u64 = 1 << 4;

/// How handling ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// Enter the guest again.
    Enter,
    /// Nothing was decided: try again.
    Retry,
    /// There is no memory; userspace tries again.
    NoMemory,
    /// No memslot holds the frame: userspace does what the access asks for.
    Emulate,
    /// Writes to the page are tracked: KVM writes it for the guest; `RET_PF_WRITE_PROTECTED`.
    WriteProtected,
}

/// A fault at `gfn`.
pub(super) fn new(
    kvm: *mut kvm,
    slot: *mut kvm_memory_slot,
    gfn: u64,
    code: u64,
) -> kvm_page_fault {
    kvm_page_fault {
        addr: gfn << 12,
        error_code: code,
        prefetch: false,
        exec: code & PFERR_FETCH != 0,
        write: code & PFERR_WRITE != 0,
        present: code & PFERR_PRESENT != 0,
        // `kvm_mmu_page_fault()`
        is_private: super::gmem::is_private(kvm, gfn),
        nx_huge_page_workaround_enabled: *field!(kvm, nx_huge_pages),
        huge_page_disallowed: false,
        max_level: 3,
        req_level: 1,
        goal_level: 1,
        gfn,
        slot,
        mmu_seq: 0,
        pfn: 0,
        map_writable: false,
    }
}

/// Models `kvm_tdp_page_fault()` and `kvm_tdp_mmu_page_fault()`. `kvm->srcu` is held.
pub fn page_fault(vcpu: *mut kvm_vcpu, gfn: u64, code: u64) -> Handled {
    let kvm = *field!(vcpu, kvm);
    let slot = super::slots::of(kvm, usize::from(*field!(vcpu, smm)), gfn);
    let mut fault = new(kvm, slot, gfn, code);

    note("page fault", [gfn, code, 0]);
    if handle_page_track(vcpu, &fault) {
        return Handled::WriteProtected;
    }
    if fast_page_fault(vcpu, &fault) {
        return Handled::Enter;
    }
    if !topup_memory_caches(vcpu) {
        return Handled::NoMemory;
    }
    slow(vcpu, &mut fault)
}

/// Models `handle_mmio_page_fault()`: true if an entry says that no memslot holds the frame, and is
/// not from before the last change of the memslots.
pub fn mmio_page_fault(vcpu: *mut kvm_vcpu, gfn: u64) -> bool {
    /// `MMIO_SPTE_GEN_*`
    const LOW: u64 = 0x7f << 3;
    const HIGH: u64 = 0x7ff << 52;
    let kvm = *field!(vcpu, kvm);
    let mut sptes = [0; 6];
    let mut root_level = 0;

    rcu::read_lock();
    let array = sptes.as_mut_ptr();
    // SAFETY: The vCPU has a root, and the array is as long as it must be.
    let leaf = unsafe { kvm_tdp_mmu_get_walk(vcpu, gfn << 12, array, &mut root_level) };
    rcu::read_unlock();
    if leaf < 0 {
        machine::fail(format!(
            "a walk for gfn {gfn:#x} does not find the root's entry"
        ));
    }
    let spte = sptes[leaf as usize];
    // SAFETY: A constant while there is a VM.
    let mask = unsafe { shadow_mmio_mask };
    if spte & mask != *field!(kvm, arch.shadow_mmio_value) {
        return false;
    }
    let generation = (spte & LOW) >> 3 | (spte & HIGH) >> 45;
    generation == *field!(kvm, generation) & ((1 << 18) - 1)
}

/// Models `kvm_arch_vcpu_pre_fault_memory()` for a range of `npages` pages.
pub fn prefault(vcpu: *mut kvm_vcpu, gfn: u64, npages: u64) -> Handled {
    let (handled, level) = prefault_one(vcpu, gfn);

    if handled == Handled::Enter && level == 1 {
        // SAFETY: All exist: `kvm->srcu` is held.
        let more = unsafe { kvm_rs_prefault(vcpu, gfn + 1, npages - 1) };
        note("kvm_rs_prefault()", [gfn + 1, npages - 1, more]);
        if more > npages - 1 {
            machine::fail(format!(
                "kvm_rs_prefault() maps {more} pages of {}",
                npages - 1
            ));
        }
    }
    handled
}

/// Models `kvm_tdp_page_prefault()`. Returns the level as well.
fn prefault_one(vcpu: *mut kvm_vcpu, gfn: u64) -> (Handled, u8) {
    let kvm = *field!(vcpu, kvm);
    let slot = super::slots::of(kvm, usize::from(*field!(vcpu, smm)), gfn);
    let mut fault = new(kvm, slot, gfn, 0);

    note("prefault", [gfn, 0, 0]);
    if slot.is_null() {
        return (Handled::Emulate, 1);
    }
    fault.prefetch = true;
    if fast_page_fault(vcpu, &fault) {
        return (Handled::Enter, fault.goal_level);
    }
    if !topup_memory_caches(vcpu) {
        return (Handled::NoMemory, 1);
    }
    (slow(vcpu, &mut fault), fault.goal_level)
}

/// Models `kvm_prefetch_pages()`: the pages from `gfn` on that the host maps writable, each as it
/// is mapped when its turn comes.
///
/// # Safety
///
/// `slot` must point to a memslot, and `pages` to `nr_pages` elements.
pub unsafe fn kvm_prefetch_pages(
    slot: *mut kvm_memory_slot,
    gfn: gfn_t,
    pages: *mut *mut page,
    nr_pages: i32,
) -> i32 {
    let kvm = super::vm().expect("there is a VM");
    let left = *field!(slot, npages) as u64 - (gfn - *field!(slot, base_gfn));

    if *field!(slot, flags) & KVM_MEMSLOT_INVALID != 0 {
        return -1;
    }
    if left < nr_pages as u64 {
        return 0;
    }
    for n in 0..nr_pages {
        sched::point_on(super::HOST, false);
        let (pfn, writable) = field!(kvm, host).lookup_shared(gfn + n as u64);
        if !writable {
            return n;
        }
        note("host maps", [gfn + n as u64, pfn, 1]);
        field!(kvm, host).get_page();
        // SAFETY: The array has that many elements.
        unsafe { pages.add(n as usize).write(pfn as *mut page) };
    }
    nr_pages
}

/// Models `kvm_vcpu_gfn_to_memslot()`.
///
/// # Safety
///
/// `vcpu` must point to a vCPU of the run.
pub unsafe fn kvm_vcpu_gfn_to_memslot(vcpu: *mut kvm_vcpu, gfn: gfn_t) -> *mut kvm_memory_slot {
    super::slots::of(*field!(vcpu, kvm), usize::from(*field!(vcpu, smm)), gfn)
}

/// The part of `kvm_tdp_mmu_page_fault()` that takes `mmu_lock`.
fn slow(vcpu: *mut kvm_vcpu, fault: &mut kvm_page_fault) -> Handled {
    let kvm = *field!(vcpu, kvm);

    if !faultin_pfn(kvm, fault) {
        return Handled::Retry;
    }
    field!(kvm, mmu_lock).read_lock();
    let mut result = RET_PF_RETRY as i32;
    if !is_page_fault_stale(vcpu, fault) {
        let before = sched::total();
        told::before_torn_down(kvm);
        facts().faults = !fault.prefetch;
        // SAFETY: All exist, the caches are filled, and the lock is held.
        result = unsafe { kvm_tdp_mmu_map(vcpu, fault) };
        facts().faults = false;
        note(
            "kvm_tdp_mmu_map()",
            [fault.gfn, fault.goal_level.into(), result as u64],
        );
        told::check_torn_down(kvm, "a fault");
        check_replaced(fault, before);
    }
    field!(kvm, mmu_lock).read_unlock();
    let around = *field!(kvm, fault_around);
    if around > 1 && result == RET_PF_FIXED as i32 {
        // SAFETY: All exist: `kvm->srcu` is held.
        unsafe { kvm_rs_fault_around(vcpu, fault, around) };
        note("kvm_rs_fault_around()", [fault.gfn, around.into(), 0]);
    }
    match result as u32 {
        RET_PF_EMULATE if fault.slot.is_null() => Handled::Emulate,
        RET_PF_FIXED | RET_PF_SPURIOUS => Handled::Enter,
        RET_PF_RETRY => Handled::Retry,
        RET_PF_WRITE_PROTECTED => Handled::WriteProtected,
        other => machine::fail(format!("kvm_tdp_mmu_map() returns {other}")),
    }
}

/// Models `kvm_mmu_faultin_pfn()`, with a slot: the frame as the host maps it now. False: a
/// notifier is about.
pub(super) fn faultin_pfn(kvm: *mut kvm, fault: &mut kvm_page_fault) -> bool {
    sched::point_on(
        (&raw const *field!(kvm, mmu_invalidate_seq)) as usize,
        false,
    );
    fault.mmu_seq = *field!(kvm, mmu_invalidate_seq);
    if fault.is_private != super::gmem::is_private(kvm, fault.gfn) {
        // Userspace is told of it, and lets the vCPU go on.
        return false;
    }
    if fault.slot.is_null() {
        // `kvm_handle_noslot_fault()`
        fault.pfn = KVM_PFN_NOSLOT;
        fault.map_writable = false;
        return true;
    }
    if *field!(fault.slot, flags) & KVM_MEMSLOT_INVALID != 0 {
        return false;
    }
    if retry_gfn(kvm, fault) {
        return false;
    }
    if fault.is_private {
        return super::gmem::faultin_pfn(kvm, fault) && !retry_gfn(kvm, fault);
    }
    sched::point_on(super::HOST, false);
    let (pfn, writable) = field!(kvm, host).lookup_shared(fault.gfn);
    fault.pfn = pfn;
    fault.map_writable = writable;
    note("host maps", [fault.gfn, pfn, u64::from(fault.map_writable)]);
    if fault.write && !writable {
        // The caller resolves it: the host copies the page.
        return false;
    }
    !retry_gfn(kvm, fault)
}

/// `mmu_invalidate_retry_gfn_unsafe()` and `mmu_invalidate_retry_gfn()`.
fn retry_gfn(kvm: *mut kvm, fault: &kvm_page_fault) -> bool {
    sched::point_on(
        (&raw const *field!(kvm, mmu_invalidate_seq)) as usize,
        false,
    );
    if *field!(kvm, mmu_invalidate_in_progress) != 0 {
        let (start, end) = *field!(kvm, mmu_invalidate_range);
        if (start..end).contains(&fault.gfn) {
            return true;
        }
    }
    *field!(kvm, mmu_invalidate_seq) != fault.mmu_seq
}

/// Models `is_page_fault_stale()`.
pub(super) fn is_page_fault_stale(vcpu: *mut kvm_vcpu, fault: &kvm_page_fault) -> bool {
    let root = *field!(*field!(vcpu, arch.mmu), root.hpa);

    is_obsolete(root) || (!fault.slot.is_null() && retry_gfn(*field!(vcpu, kvm), fault))
}

/// Whether an SPTE denies the access; `spte_permission_fault()`.
fn denied(spte: u64, fault: &kvm_page_fault) -> bool {
    // SAFETY: Constants while there is a VM.
    let (nx, xs, present) = unsafe { (shadow_nx_mask, shadow_xs_mask, PRESENT) };
    let executable = if nx != 0 {
        spte & nx == 0
    } else {
        spte & xs != 0
    };

    spte & present == 0 || (fault.write && spte & WRITABLE == 0) || (fault.exec && !executable)
}

/// Fails if this thread has replaced a leaf that allowed the access by another, since so many steps
/// were recorded: such a fault is spurious.
fn check_replaced(fault: &kvm_page_fault, before: u64) {
    let me = sched::me();

    sched::since(before, |step| {
        let [addr, old, new] = step.args;
        let sp = mem::private(addr as usize) as *mut kvm_mmu_page;

        if step.party != me || step.what != "cmpxchg" || sp.is_null() {
            return false;
        }
        let level = *field!(sp, role.word).to_owned() & 0xf;
        let is_leaf = |spte| spte & MMU_PRESENT != 0 && (level == 1 || spte & LARGE != 0);
        if is_leaf(old) && is_leaf(new) && (fault.prefetch || !denied(old, fault)) {
            machine::fail(format!(
                "a fault at gfn {:#x} replaces {old:#x}, which allows the access",
                fault.gfn
            ));
        }
        false
    });
}

/// Models `page_fault_handle_page_track()`.
pub(super) fn handle_page_track(vcpu: *mut kvm_vcpu, fault: &kvm_page_fault) -> bool {
    fault.present
        && fault.write
        && !fault.slot.is_null()
        && track::is_tracked(*field!(vcpu, kvm), *field!(fault.slot, as_id), fault.gfn)
}

/// Models `page_fault_can_be_fast()`.
fn can_be_fast(kvm: *mut kvm, fault: &kvm_page_fault) -> bool {
    if fault.is_private != super::gmem::is_private(kvm, fault.gfn) {
        return false;
    }
    if !fault.present {
        // SAFETY: A constant while there is a VM.
        return unsafe { !kvm_ad_enabled };
    }
    fault.write
}

/// Models `fast_page_fault()`. True: nothing else is to be done.
fn fast_page_fault(vcpu: *mut kvm_vcpu, fault: &kvm_page_fault) -> bool {
    let kvm = *field!(vcpu, kvm);

    if fault.slot.is_null() || !can_be_fast(kvm, fault) {
        return false;
    }
    let mut done = false;

    rcu::read_lock();
    for _ in 0..5 {
        let mut spte = 0;
        // SAFETY: All exist, and RCU is held.
        let sptep = unsafe { kvm_tdp_mmu_fast_pf_get_last_sptep(vcpu, fault.gfn, &mut spte) };
        if sptep.is_null() {
            machine::fail(format!(
                "a walk for gfn {:#x} does not find the root's entry",
                fault.gfn
            ));
        }
        if spte & MMU_PRESENT == 0 {
            break;
        }
        // SAFETY: A slot of a table that RCU keeps.
        let sp = mem::private(sptep as usize) as *mut kvm_mmu_page;
        let level = *field!(sp, role.word).to_owned() & 0xf;
        if level != 1 && spte & LARGE == 0 {
            break;
        }
        if !denied(spte, fault) {
            note("fast page fault: spurious", [fault.gfn, 0, 0]);
            done = true;
            break;
        }

        let mut new = spte;
        // SAFETY: Constants while there is a VM.
        unsafe {
            let tracked = spte & AD_MASK == AD_DISABLED && spte & shadow_acc_track_mask == 0;
            if !kvm_ad_enabled && tracked {
                // `restore_acc_track_spte()`
                let saved = (spte >> 52) & ACC_TRACK_SAVED;
                new = spte & !shadow_acc_track_mask & !(ACC_TRACK_SAVED << 52);
                new |= saved | shadow_accessed_mask;
            }
            if fault.write && spte & shadow_mmu_writable_mask != 0 {
                new |= WRITABLE;
                if level > 1 && *field!(fault.slot, flags) & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    break;
                }
            }
        }
        if new == spte || denied(new, fault) {
            break;
        }
        // `fast_pf_fix_direct_spte()`
        if mem::update("cmpxchg", sptep, |now| (now == spte).then_some(new)).1 {
            if new & WRITABLE != 0 && spte & WRITABLE == 0 {
                // SAFETY: All exist.
                unsafe { mark_page_dirty_in_slot(kvm, fault.slot, fault.gfn) };
            }
            done = true;
            break;
        }
    }
    rcu::read_unlock();
    done
}

/// How often a vCPU tries again where all schedules are tried. Then it waits for the other party to
/// end: to fail once more, between two other steps of it, is nothing new.
const TRIES: u32 = 2;

/// The vCPU tries again: others may run first.
pub fn back_off() {
    facts().retries += 1;
    if sched::tries_all() && facts().retries > TRIES {
        sched::join_others();
    } else {
        sched::spin();
    }
}
