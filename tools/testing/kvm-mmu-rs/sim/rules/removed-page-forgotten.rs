// SPDX-License-Identifier: GPL-2.0
// Rule: A page that was unlinked is retired.
// Error: unused_must_use

#![deny(unused_must_use)]

use crate::{
    page::RemovedSp,
    sys::Vm, //
};

fn program(vm: Vm<'_>, unlink: fn() -> RemovedSp) {
    unlink(); //~ FAILS
    unlink().retire_alone(vm); //~ TWIN
}
