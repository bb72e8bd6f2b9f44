// SPDX-License-Identifier: GPL-2.0

//! The TDP MMU of KVM on x86: the engine behind EPT and NPT page tables.
//!
//! See `Documentation/virt/kvm/x86/rust-mmu.rst` for the design, and for the table of layers that
//! `make check` compares with the imports: a file uses the files below it only.

#![crate_name = "kvm_rust_mmu"]
#![deny(unsafe_code)]
#![warn(unreachable_pub)]

const __LOG_PREFIX: &[u8] = b"kvm\0";

/// Warns, the first time that the condition is true, and returns it.
macro_rules! warn_on_once {
    ($cond:expr) => {{
        let cond: bool = $cond;

        if cond {
            #[allow(unsafe_code)]
            #[cold]
            fn warn() {
                ::kernel::warn_flags!(
                    file!(),
                    ::kernel::bindings::BUGFLAG_ONCE
                        | ::kernel::bug::bugflag_taint(::kernel::bindings::TAINT_WARN)
                );
            }
            warn();
        }
        cond
    }};
}

/// As [`warn_on_once`], after a line that says more; `WARN_ONCE()`. What is printed is evaluated
/// only then.
macro_rules! warn_once {
    ($cond:expr, $($text:tt)+) => {{
        let cond: bool = $cond;

        if cond {
            // What it needs is moved, that is copied, so that the caller has it in registers.
            #[allow(unsafe_code)]
            let say = move || ::kernel::pr_warn_once!($($text)+);
            crate::out_of_line(say);
        }
        warn_on_once!(cond)
    }};
}

/// As [`warn_on_once`], in kernels that prove the MMU only; `KVM_MMU_WARN_ON()`.
macro_rules! kvm_mmu_warn_on {
    ($cond:expr) => {
        if cfg!(CONFIG_KVM_PROVE_MMU) {
            warn_on_once!($cond);
        }
    };
}

/// Runs `f`, which is hardly ever needed.
#[cold]
#[inline(never)]
fn out_of_line(f: impl FnOnce()) {
    f();
}

mod bindings;
mod cache;
mod change;
#[macro_use]
mod exports;
mod exports_rmap;
mod holder;
#[cfg(CONFIG_KVM_RUST_MMU_KUNIT_TEST)]
mod kunit;
mod ops;
mod page;
mod pte;
mod pure;
mod rmap;
mod root;
#[path = "../../../../../rust/support/mod.rs"]
mod support;
mod sync;
mod sys;
mod tally;
mod tlb;
mod vm;
mod walk;
