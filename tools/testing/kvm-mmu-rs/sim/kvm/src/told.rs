// SPDX-License-Identifier: GPL-2.0

//! What the MMU tells: tracepoints, events that it counts, and tables that it tears down.
//!
//! What it says of an entry has to be what it did: its own steps tell.

use core::mem::ManuallyDrop;

use machine::{
    fail,
    mem,
    note,
    sched::{
        self,
        facts,
        Step, //
    }, //
};

use crate::{
    model::{
        field,
        pages,
        shadow,
        FRAME,
        HUGE_PAGES,
        LARGE,
        MMU_PRESENT,
        WRITABLE, //
    },
    types::*, //
};

/// The page that the entry of a step is in; null if the word is no entry.
fn page_of(step: &Step) -> *mut kvm_mmu_page {
    mem::private(step.args[0] as usize) as *mut kvm_mmu_page
}

/// Whether a step is one on the entry of `level` for `gfn`.
fn is_at(step: &Step, gfn: u64, level: u32) -> bool {
    let sp = page_of(step);

    if sp.is_null() || *field!(sp, role.word).to_owned() & 0xf != level {
        return false;
    }
    let index = step.args[0] / 8 % HUGE_PAGES;
    let first = *field!(sp, gfn) + index * pages(level);
    // L2 has its memory at several addresses, and is told of by the frames of L1.
    first == gfn || (shadow::is_shadow(sp) && first % shadow::ALIAS == gfn)
}

/// Whether a step has changed a word.
fn has_changed(step: &Step) -> bool {
    matches!(
        step.what,
        "store" | "xchg" | "cmpxchg" | "fetch_and" | "fetch_or"
    )
}

/// The last step of this thread that is wanted, as far as they are kept.
fn last(wanted: impl Fn(&Step) -> bool) -> Option<Step> {
    let mut found = None;

    sched::back(|step| {
        let is_it = wanted(step);

        if is_it {
            found = Some(*step);
        }
        is_it
    });
    found
}

/// The last change that this thread has made to the entry of `level` for `gfn`.
fn last_change(gfn: u64, level: i32) -> Option<Step> {
    last(|step| has_changed(step) && is_at(step, gfn, level as u32))
}

/// Fails unless the last change that this thread has made to an entry is the one that it tells.
pub(crate) fn spte_changed(as_id: i32, gfn: u64, level: i32, old: u64, new: u64) {
    let Some(step) = last_change(gfn, level) else {
        fail(format!(
            "traces a change of gfn {gfn:#x}, level {level}, that it has not made"
        ));
    };
    let sp = page_of(&step);
    let own = i32::from(*field!(sp, role.word).to_owned() >> 24 != 0);

    // What aging has done between the load and a plain store is lost, and not known.
    let is_exact = step.what != "store";

    if step.args[2] != new || (is_exact && step.args[1] != old) {
        fail(format!(
            "traces {old:#x} -> {new:#x} at gfn {gfn:#x}, level {level}, and has changed {:#x} -> {:#x}",
            step.args[1], step.args[2]
        ));
    }
    if own != as_id {
        fail(format!(
            "traces a change of gfn {gfn:#x} in address space {as_id}, and the table is of {own}"
        ));
    }
}

/// Fails unless the leaf that a fault has just made says that the page was accessed.
pub(crate) fn set_spte(sptep: *mut u64) {
    // SAFETY: The format is constant while there is a VM.
    let accessed = unsafe { crate::bindings::shadow_accessed_mask };
    let is_it = |step: &Step| has_changed(step) && step.args[0] == sptep as u64;

    if !facts().faults {
        return;
    }
    // Not before this fault.
    let step = last(|step| is_it(step) || step.what == "page fault").filter(is_it);

    if let Some(step) = step.filter(|step| step.args[2] & accessed == 0) {
        fail(format!(
            "a fault makes a leaf that is not accessed: {:x}",
            step.args[2]
        ));
    }
}

/// Fails unless the first entry of the table that has just replaced a huge page maps what
/// make_small_spte() makes of that, but for bits that others change.
pub(crate) fn split(gfn: u64, huge: u64, level: i32) {
    let new = last_change(gfn, level).map(|step| step.args[2]);
    let Some(new) = new.filter(|new| mem::is_live_table(new & FRAME)) else {
        return;
    };
    let table = mem::va(new & FRAME);
    let sp = mem::private(table as usize) as *mut kvm_mmu_page;
    let role = kvm_mmu_page_role {
        word: ManuallyDrop::new(*field!(sp, role.word).to_owned()),
    };
    let kvm = crate::model::vm().expect("there is a VM");
    // SAFETY: The VM exists.
    let small = unsafe { crate::bindings::make_small_spte(kvm, huge, role, 0) };
    // SAFETY: Within the table.
    let first = unsafe { table.read() };

    // Somebody else may have split it by now.
    let is_leaf = level == 2 || first & LARGE != 0;

    if first & MMU_PRESENT != 0 && is_leaf && (first ^ small) & FRAME != 0 {
        fail(format!(
            "{huge:#x} is split to {first:#x}, and make_small_spte() says {small:#x}"
        ));
    }
}

/// Fails unless `err` says whether this thread has replaced the entry of `level` for `gfn`.
pub(crate) fn replaced(what: &str, gfn: u64, level: i32, err: i32) {
    const EBUSY: i32 = -16;
    let is_lost = |step: &Step| step.what == "cmpxchg, lost";
    let step = last(|step| (is_lost(step) || has_changed(step)) && is_at(step, gfn, level as u32));
    let won = step.map(|step| !is_lost(&step));

    if (err == 0 && won != Some(true)) || (err == EBUSY && won != Some(false)) {
        fail(format!(
            "traces {what} of gfn {gfn:#x}, level {level}, with errno {err}, and has done it: {won:?}"
        ));
    }
}

/// Fails if GET tells of less than it has set in the log since it last told, or of frames that are
/// in no memslot.
pub(crate) fn harvested(as_id: i32, first: u64, end: u64, tables: u64, pages: u64) {
    const TOLD: &str = "traces GET";
    let mut new = 0;

    sched::back(|step| {
        if step.what == "fetch_or" && page_of(step).is_null() {
            new += (step.args[2] & !step.args[1]).count_ones();
        }
        step.what == TOLD || step.what == "KVM_GET_DIRTY_LOG"
    });
    note(TOLD, [first, end, pages]);
    if pages < new.into() || (pages != 0 && tables == 0) {
        fail(format!(
            "traces GET of {pages} pages in {tables} tables, and has set {new} bits"
        ));
    }
    let kvm = crate::model::vm().expect("there is a VM");
    let last = crate::model::slots::of(kvm, as_id as usize, end - 1);

    if last.is_null() || crate::model::slots::of(kvm, as_id as usize, first) != last {
        fail(format!(
            "traces GET for gfn {first:#x} to {end:#x} of address space {as_id}, which is no part of a memslot"
        ));
    }
}

/// A walk has visited the entry that this thread has just read. Fails if GET visits a closed table
/// right after another: it steps over those.
pub(crate) fn visited() {
    // SAFETY: The format is constant while there is a VM.
    let (accessed, closed) = unsafe {
        (
            crate::bindings::shadow_accessed_mask,
            crate::bindings::shadow_host_writable_mask,
        )
    };

    if !facts().harvests {
        return;
    }
    let Some(step) = last(|_| true).filter(|step| step.what == "load" && !page_of(step).is_null())
    else {
        return;
    };
    let (addr, spte) = (step.args[0] as usize, step.args[1]);
    let is_table = spte & (MMU_PRESENT | LARGE) == MMU_PRESENT;
    // SAFETY: The page of a table that is walked exists.
    let level = unsafe { *(*page_of(&step)).role.word } & 0xf;

    if level != 2 || !is_table || spte & (accessed | closed) != closed {
        facts().closed = 0;
        return;
    }
    if facts().closed == addr - 8 && addr % mem::PAGE != 0 {
        fail("GET visits one closed table after another".into());
    }
    facts().closed = addr;
}

/// Fails if this thread has made a leaf writable since so many steps were recorded, and has not
/// flushed after that. It would be right, but a CPU that has cached the leaf would fault.
pub(crate) fn flushed(since: u64) {
    let me = sched::me();
    let mut due = None;

    sched::since(since, |step| {
        if step.party != me {
            return false;
        }
        let [addr, old, new] = step.args;
        let becomes_writable = new & !old & WRITABLE != 0 && old & new & MMU_PRESENT != 0;

        if step.what == "flushed TLBs" {
            due = None;
        } else if has_changed(step) && becomes_writable && !page_of(step).is_null() {
            due = Some(addr);
        }
        false
    });
    if let Some(addr) = due {
        fail(format!(
            "the leaf at {addr:#x} has become writable, and CPUs are not told"
        ));
    }
}

/// Fails unless there was a reason for an event of which one can be told.
pub(crate) fn counted(event: kvm_rs_event) {
    let reason = if event == kvm_rs_event_KVM_RS_SPLIT_NO_MEMORY {
        &mut facts().no_memory
    } else if event == kvm_rs_event_KVM_RS_SPLIT_NO_BUDGET {
        &mut facts().no_budget
    } else {
        return;
    };

    if !core::mem::take(reason) {
        fail(format!("counts event {event}, and there was no reason"));
    }
}

/// A table is torn down. Where roots are zapped, those below an upper one are gone by then: there
/// may be a million, and nobody gives way in between.
pub(crate) fn torn_down(sp: *mut kvm_mmu_page) {
    let level = *field!(sp, role.word).to_owned() & 0xf;

    facts().torn_down += 1;
    if !facts().zaps_roots || level < if cfg!(feature = "prove") { 3 } else { 2 } {
        return;
    }
    for n in 0..HUGE_PAGES {
        // SAFETY: Within the table, which exists.
        let spte = unsafe { (*field!(sp, spt)).add(n as usize).read() };

        if spte & MMU_PRESENT != 0 && spte & LARGE == 0 {
            fail(format!(
                "a table of level {level} is torn down with another below it"
            ));
        }
    }
}

/// This thread is about to look at which tables to tear down in one step.
pub(crate) fn before_torn_down(kvm: *mut kvm) {
    facts().torn_down = 0;
    facts().linked = *field!(kvm, stat.linked);
}

/// Fails if this thread has torn down more tables in one step than it may: one, or those that
/// others have linked since it has looked. What a vCPU has linked it may not have counted yet.
pub(crate) fn check_torn_down(kvm: *mut kvm, what: &str) {
    let others = *field!(kvm, stat.linked) - facts().linked;
    let most = field!(kvm, vcpus).len() as u64 + others;

    if u64::from(facts().torn_down) > most {
        fail(format!(
            "{what} tears down {} tables in one step",
            facts().torn_down
        ));
    }
}
