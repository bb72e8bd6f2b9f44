// SPDX-License-Identifier: GPL-2.0

//! The functional core of the TDP MMU: values and decisions, no effects.
//!
//! Everything below this module depends on `core` only and holds no unsafe code, so the same
//! source files build into the kernel and into the host crate `tools/testing/kvm-mmu-rs`, where
//! they are tested against independent models.
//!
//! Arithmetic on guest frame numbers wraps on purpose: a guest can influence them, and must not be
//! able to make the host panic.

#![forbid(unsafe_code)]
// Public items are the host crate's interface; in the kernel nothing is outside of this crate.
#![allow(unreachable_pub)]

pub mod addr;
pub mod age;
pub mod dirty;
pub mod leaf;
pub mod masks;
pub mod position;
pub mod protect;
pub mod role;
pub mod spte;
pub mod summary;
pub mod transition;

pub use addr::{
    Gfn,
    GfnRange,
    Hpa,
    Index,
    Level,
    Pfn, //
};
pub use age::Age;
pub use masks::Masks;
pub use protect::Protect;
pub use role::Role;
pub use spte::{
    Entry,
    LogProtected,
    Settled,
    Spte,
    WriteBits, //
};
