// SPDX-License-Identifier: GPL-2.0

//! The pure core of the TDP MMU, built on the host so that it can be tested here.
//!
//! The source is the kernel's: see `arch/x86/kvm/mmu/rust/`.

#[path = "../../../../arch/x86/kvm/mmu/rust/pure/mod.rs"]
pub mod pure;

/// The encoding of the reverse map's lists.
#[path = "../../../../arch/x86/kvm/mmu/rust/rmap/encoding.rs"]
pub mod encoding;

pub mod formats;
