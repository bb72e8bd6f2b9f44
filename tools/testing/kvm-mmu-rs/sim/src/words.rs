// SPDX-License-Identifier: GPL-2.0

//! A step in KVM's words.

use kvm_c::{
    bindings::*,
    model::HUGE_PAGES, //
};
use machine::{
    mem,
    sched::Step, //
};

/// A step in KVM's words.
pub fn describe(step: &Step) -> String {
    let [a, b, c] = step.args;

    match step.what {
        "load" => format!("reads {}: {}", place(a), value(a, b)),
        "store" | "xchg" | "cmpxchg" | "fetch_and" | "fetch_or" | "CPU: sets A, D" | "set bit" => {
            format!(
                "{} {}: {} -> {}",
                step.what,
                place(a),
                value(a, b),
                value(a, c)
            )
        }
        "cmpxchg, lost" => format!("cmpxchg {}: lost, it is {}", place(a), value(a, b)),
        "alloc table" | "free table" | "adds root" | "removes root" => {
            format!("{}: {}", step.what, place(a))
        }
        "gets root" | "puts root" => format!("{}: {}, count {b}", step.what, place(a)),
        "make request" | "send IPI" => format!("{} to vCPU {a} ({b:#x})", step.what),
        "page fault" => format!("page fault at gfn {a:#x}, error code {b:#x}"),
        "kvm_tdp_mmu_map()" => format!("kvm_tdp_mmu_map(): gfn {a:#x}, level {b}, returns {c}"),
        "CPU: walked" => format!("CPU: walked to gfn {a:#x}: frame {b:#x}, level {c}"),
        "CPU: TLB hit" | "host maps" | "guest writes" | "guest reads" => {
            format!("{}: gfn {a:#x}, frame {b:#x} ({c})", step.what)
        }
        "copies" | "mark dirty" | "prefault" => format!("{} gfn {a:#x}", step.what),
        what if [a, b, c] == [0; 3] || what == "sleeps" => what.into(),
        what => format!("{what} {a:#x} {b:#x} {c:#x}"),
    }
}

/// A word that is accessed.
fn place(addr: u64) -> String {
    let sp = mem::private(addr as usize) as *mut kvm_mmu_page;

    if sp.is_null() {
        return format!("{addr:#x}");
    }
    // Headers are poisoned when they are freed; their memory stays.
    // SAFETY: Within the memory for headers.
    let (role, gfn) = unsafe { (*(*sp).role.word, (*sp).gfn) };
    let level = role & 0xf;
    if !(1..=5).contains(&level) || gfn > 1 << 40 {
        return format!("an SPTE of a freed table ({addr:#x})");
    }
    let index = addr / 8 % HUGE_PAGES;
    let first = gfn + index * HUGE_PAGES.pow(level - 1);
    format!("SPTE[level {level}, gfn {first:#x}]")
}

/// The value of a word: an SPTE, if it is in a table.
fn value(addr: u64, value: u64) -> String {
    if mem::private(addr as usize) == 0 {
        return format!("{value:#x}");
    }
    if value == 1 << 63 {
        return "none".into();
    }
    if value == 1 << 63 | 0x1a0 {
        return "frozen".into();
    }
    format!("{value:#x}")
}
