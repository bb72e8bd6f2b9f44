// SPDX-License-Identifier: GPL-2.0

//! What the log's ioctls may protect: pages whose bits they have taken. Any other page would cost
//! the guest a fault. And they split only huge pages that have such a page, where these may be
//! writable: the log began with all bits set.

use kvm_c::{
    bindings::*,
    model::{
        pages,
        shadow,
        FRAME,
        HUGE_PAGES,
        LARGE,
        MMU_PRESENT,
        WRITABLE, //
    }, //
};
use machine::{
    fail,
    mem,
    sched::{
        self,
        Step, //
    }, //
};

use crate::world::{
    kvm,
    world, //
};

/// Fails if this thread has, since so many steps were recorded, write-protected a page that is not
/// `allowed`, or split a huge one in vain.
pub fn check(since: u64, allowed: impl Fn(u64) -> bool) {
    let me = sched::me();

    // The huge leaf that the shadow MMU has dropped last, before it links a table: its entry, and
    // it.
    let mut dropped = (0, 0);

    sched::since(since, |step| {
        if step.party == me && matches!(step.what, "store" | "xchg" | "cmpxchg" | "fetch_and") {
            let [addr, old, new] = step.args;
            let mut step = *step;

            if addr == dropped.0 && old & MMU_PRESENT == 0 && world().plan.aliases == 1 {
                step.args[1] = dropped.1;
            }
            dropped = if new & MMU_PRESENT == 0 {
                (addr, old)
            } else {
                (0, 0)
            };
            check_step(&step, &allowed);
        }
        false
    });
}

/// The same of one step, if it has changed a leaf that was writable.
fn check_step(step: &Step, allowed: &impl Fn(u64) -> bool) {
    let [addr, old, new] = step.args;
    let sp = mem::private(addr as usize) as *mut kvm_mmu_page;

    if sp.is_null() || old & (MMU_PRESENT | WRITABLE) != MMU_PRESENT | WRITABLE {
        return;
    }
    // SAFETY: Within the memory for headers. That of a freed table is poisoned, and has no level.
    let (role, first, is_shadow) = unsafe { (*(*sp).role.word, (*sp).gfn, !(*sp).tdp_mmu_page) };
    let level = role & 0xf;
    let gfn = if (1..=5).contains(&level) {
        first.wrapping_add(addr / 8 % HUGE_PAGES * pages(level))
    } else {
        return;
    };
    let gfn = if is_shadow { gfn % shadow::ALIAS } else { gfn };

    let is_leaf = |spte: u64| level == 1 || spte & LARGE != 0;

    if !is_leaf(old) || new & MMU_PRESENT == 0 {
        return;
    }
    if !is_leaf(new) {
        let any = (gfn..gfn + pages(level)).any(allowed);

        if !any || !kvm().initially_all_set {
            fail(format!("gfn {gfn:#x} is split for the log, in vain"));
        }
        if level == 2 {
            check_split(new & FRAME, gfn, allowed);
        }
    } else if new & WRITABLE == 0 {
        must_be((gfn..gfn + pages(level)).any(allowed), gfn);
    }
}

/// The same of the pages of a huge page that was split, unless somebody else may have protected
/// them since.
fn check_split(table: u64, first: u64, allowed: &impl Fn(u64) -> bool) {
    let plan = &world().plan;
    // SAFETY: The format is constant while there is a VM.
    let mmu_writable = unsafe { shadow_mmu_writable_mask };
    let others = kvm().rs_dirty_log.dirty_bits
        || plan.trackings != 0
        || plan.clearers != 0
        || plan.settings != 0
        || plan.fault_around != 0
        || plan.prefaults != 0
        || plan.prefault
        // Aging takes rights then.
        || !plan.format.has_ad();

    if others || !mem::is_live_table(table) {
        return;
    }
    for n in 0..HUGE_PAGES {
        // SAFETY: Within the table, which is not freed.
        let spte = unsafe { mem::va(table).add(n as usize).read() };
        let is_protected = spte & MMU_PRESENT != 0 && spte & WRITABLE == 0;

        if is_protected && spte & mmu_writable != 0 {
            must_be(allowed(first + n), first + n);
        }
    }
}

fn must_be(allowed: bool, gfn: u64) {
    if !allowed {
        fail(format!(
            "gfn {gfn:#x} is write-protected, and its bit was not taken"
        ));
    }
}
