// SPDX-License-Identifier: GPL-2.0
// Rule: A TLB flush that may be due is done, or handed on.
// Error: unused_must_use

#![deny(unused_must_use)]

use crate::{
    sys::Vm,
    tlb::Flush, //
};

fn program(vm: Vm<'_>, pending: bool) {
    Flush::new(pending); //~ FAILS
    Flush::new(pending).now(vm); //~ TWIN
}
