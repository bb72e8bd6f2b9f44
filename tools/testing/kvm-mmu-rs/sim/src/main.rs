// SPDX-License-Identifier: GPL-2.0

//! The simulation, linked with the MMU. Apart, so that another MMU is soon linked.

// For its C symbols.
use kvm_rust_mmu as _;

fn main() {
    kvm_mmu_sim::main();
}
