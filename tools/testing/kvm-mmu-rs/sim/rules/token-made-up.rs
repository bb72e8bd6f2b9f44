// SPDX-License-Identifier: GPL-2.0
// Rule: Nobody but sync.rs says that mmu_lock is held.
// Error: E0423

use kernel::types::NotThreadSafe;

use crate::{
    sync::{
        with_shared,
        Holder,
        Shared, //
    },
    sys::Vm, //
};

fn program(vm: Vm<'_>) {
    let lock = Shared(vm, NotThreadSafe); //~ FAILS
    let lock = with_shared(vm, Holder::Get, |_| NotThreadSafe); //~ TWIN
}
