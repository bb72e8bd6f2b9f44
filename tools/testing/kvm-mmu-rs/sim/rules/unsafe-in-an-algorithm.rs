// SPDX-License-Identifier: GPL-2.0
// Rule: Algorithms have no unsafe code.
// Error: unsafe_code

use crate::{
    page::RemovedSp,
    sys::{
        Sp,
        Vm, //
    }, //
};

fn program(vm: Vm<'_>, root: Sp<'_>, make: fn(Sp<'_>) -> RemovedSp) {
    let removed = unsafe { RemovedSp::from_root(root) }; //~ FAILS
    let removed = make(root); //~ TWIN
    removed.retire_alone(vm);
}
