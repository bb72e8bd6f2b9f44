// SPDX-License-Identifier: GPL-2.0

//! NX recovery.

use machine::{
    fail,
    mem,
    note,
    point,
    rcu,
    sched, //
};

use super::{
    field,
    flush::kvm_flush_remote_tlbs,
    slots::{
        srcu_read_lock,
        srcu_read_unlock, //
    },
    FRAME,
    HUGE_PAGES,
    MMU_PRESENT, //
};
use crate::{
    bindings::*,
    told, //
};

/// Fails unless the first entry that this thread has replaced since `before` pointed to the table
/// of `sp`: recovery zaps that table, and nothing that has taken its place.
fn check_zapped(sp: *mut kvm_mmu_page, before: u64) {
    let me = sched::me();
    let table = mem::pa(*field!(sp, spt));

    sched::since(before, |step| {
        let mine = step.party == me && step.what == "cmpxchg";
        if mine && step.args[1] & FRAME != table {
            fail(format!(
                "NX recovery zaps {:#x}, which does not point to the table that it has chosen",
                step.args[1]
            ));
        }
        mine
    });
}

/// Fails if the entry above the table of `sp`, which recovery has not zapped, points to it.
fn check_kept(sp: *mut kvm_mmu_page) {
    let parent = *field!(sp, __bindgen_anon_4.ptep).to_owned();

    if parent.is_null() {
        return;
    }
    mem::check(parent as usize, "the entry above a table");
    // SAFETY: Checked; one OS thread.
    let spte = unsafe { parent.read() };
    if spte & MMU_PRESENT != 0 && spte & FRAME == mem::pa(*field!(sp, spt)) {
        fail("NX recovery has chosen a table, and leaves it".into());
    }
}

/// Models `kvm_mmu_sp_dirty_logging_enabled()`.
fn is_logged(kvm: *mut kvm, sp: *mut kvm_mmu_page) -> bool {
    let role = *field!(sp, role.word).to_owned();
    let slot = super::slots::of(kvm, usize::from(role >> 24 != 0), *field!(sp, gfn));

    point();
    !slot.is_null() && *field!(slot, flags) & KVM_MEM_LOG_DIRTY_PAGES != 0
}

/// Models `kvm_recover_nx_huge_pages()` for the TDP MMU: zaps up to `to_zap` tables.
pub fn recover(kvm: *mut kvm, to_zap: usize) {
    let srcu = srcu_read_lock(kvm);
    let mut flush = false;
    let mut to_zap = to_zap;
    let mut to_zap_below = to_zap * HUGE_PAGES as usize;

    note("kvm_recover_nx_huge_pages()", [0; 3]);
    field!(kvm, mmu_lock).read_lock();
    rcu::read_lock();
    while to_zap > 0 {
        field!(kvm, arch.tdp_mmu_pages_lock).lock("spin_lock(tdp_mmu_pages_lock)", true);
        let Some(sp) = field!(kvm, arch.possible_nx_huge_pages).first().copied() else {
            field!(kvm, arch.tdp_mmu_pages_lock).unlock("spin_unlock(tdp_mmu_pages_lock)", true);
            break;
        };
        if !*field!(sp, nx_huge_page_disallowed) {
            fail("WARN_ON_ONCE(!sp->nx_huge_page_disallowed)".into());
        }
        told::before_torn_down(kvm);
        // The hook.
        if *field!(kvm, rs_dirty_log.dirty_bits) {
            field!(kvm, arch.tdp_mmu_pages_lock).unlock("spin_unlock(tdp_mmu_pages_lock)", true);
            break;
        }
        let is_logged = is_logged(kvm, sp);
        let looks_below = to_zap_below > 0 && !is_logged;
        let sp = if looks_below {
            // SAFETY: Both exist, and RCU is held.
            let first = unsafe { kvm_tdp_mmu_first_to_zap(kvm, sp) };
            if first != sp {
                to_zap_below -= 1;
                to_zap += 1;
            }
            first
        } else {
            sp
        };
        // `unaccount_nx_huge_page()`
        *field!(sp, nx_huge_page_disallowed) = false;
        // SAFETY: Both exist, and the lock is held.
        unsafe { untrack_possible_nx_huge_page(kvm, sp, kvm_mmu_type_KVM_TDP_MMU) };
        field!(kvm, arch.tdp_mmu_pages_lock).unlock("spin_unlock(tdp_mmu_pages_lock)", true);

        if !is_logged {
            let before = sched::total();
            // SAFETY: Both exist: RCU is held since the page was in the list.
            let zapped = unsafe { kvm_tdp_mmu_zap_possible_nx_huge_page(kvm, sp) };
            if zapped {
                check_zapped(sp, before);
                // Once too many were below, nobody looks any more.
                if looks_below {
                    told::check_torn_down(kvm, "NX recovery");
                }
            } else {
                check_kept(sp);
            }
            flush |= zapped;
        }
        to_zap -= 1;
        // SAFETY: The VM exists.
        if unsafe { rust_support_need_break(field!(kvm, mmu_lock)) } {
            if flush {
                // SAFETY: The VM exists.
                unsafe { kvm_flush_remote_tlbs(kvm) };
            }
            flush = false;
            rcu::read_unlock();
            // SAFETY: The lock is held.
            unsafe { rust_support_cond_resched_read(field!(kvm, mmu_lock)) };
            rcu::read_lock();
        }
    }
    if flush {
        // SAFETY: The VM exists.
        unsafe { kvm_flush_remote_tlbs(kvm) };
    }
    rcu::read_unlock();
    field!(kvm, mmu_lock).read_unlock();
    srcu_read_unlock(kvm, srcu);
}
