// SPDX-License-Identifier: GPL-2.0
// Rule: Algorithms have no unsafe code.
// Error: unsafe_code

use crate::page::RemovedSp;

fn program(root: crate::sys::Sp<'_>, make: fn(crate::sys::Sp<'_>) -> RemovedSp) {
    let removed = unsafe { RemovedSp::from_root(root) }; //~ FAILS
    let removed = make(root); //~ TWIN
    removed.retire_alone();
}
