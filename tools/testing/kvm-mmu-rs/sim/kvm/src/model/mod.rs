// SPDX-License-Identifier: GPL-2.0

//! The C around the MMU that is modelled rather than run. Each function names the C that it models;
//! `models.list` has their checksums, and `make check` fails when one has changed.

#![allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "pointers are to what the run has made, and that stays where it is until the run ends"
)]

pub mod fault;
pub mod flush;
pub mod gmem;
pub mod memory;
pub mod notifier;
pub mod nx;
pub mod roots;
pub mod settings;
pub mod shadow;
pub mod slots;
pub mod split;
pub mod tables;
pub mod track;

use std::cell::Cell;

use crate::types::kvm;

/// An SPTE's bits for the frame, or for the table that it points to.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// `SPTE_MMU_PRESENT_MASK`.
pub const MMU_PRESENT: u64 = 1 << 11;
/// `PT_WRITABLE_MASK`.
pub const WRITABLE: u64 = 1 << 1;
/// `PT_PAGE_SIZE_MASK`.
pub const LARGE: u64 = 1 << 7;
/// Pages of a huge page.
pub const HUGE_PAGES: u64 = if cfg!(feature = "small") { 8 } else { 512 };
/// `kvm_mmu_max_gfn()`: low, so that walks over whole roots are short.
pub const MAX_GFN: u64 = if cfg!(feature = "small") {
    511
} else {
    (1 << 21) - 1
};
/// Stands for the host's page tables, as a word that is accessed.
pub const HOST: usize = 2;
/// Stands for the dirty rings, as a word that is accessed.
pub const RING: usize = 3;
/// The level of the roots.
pub const ROOT_LEVEL: u32 = if cfg!(feature = "small") { 3 } else { 4 };

/// Pages that an entry of `level` maps.
pub const fn pages(level: u32) -> u64 {
    HUGE_PAGES.pow(level - 1)
}

thread_local! {
    static VM: Cell<*mut kvm> = const { Cell::new(core::ptr::null_mut()) };
}

/// Says which VM the run has.
pub fn set_vm(vm: *mut kvm) {
    VM.set(vm);
}

/// The VM, if there is one yet.
pub fn vm() -> Option<*mut kvm> {
    let vm = VM.get();

    (!vm.is_null()).then_some(vm)
}

/// A field of a structure that exists.
macro_rules! field {
    ($ptr:expr, $($field:tt)+) => {{
        #[allow(unused_unsafe, reason = "may stand within another")]
        // SAFETY: The simulation passes what exists; one OS thread, and nobody keeps the
        // reference over a step.
        let field = unsafe { &mut (*$ptr).$($field)+ };
        field
    }};
}
pub(crate) use field;
