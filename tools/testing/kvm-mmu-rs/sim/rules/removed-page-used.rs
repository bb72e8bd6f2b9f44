// SPDX-License-Identifier: GPL-2.0
// Rule: A page that was retired is not used.
// Error: E0382

use crate::{
    page::RemovedSp,
    sys::Vm, //
};

fn program(vm: Vm<'_>, removed: RemovedSp) {
    removed.as_sp().role();
    removed.retire_alone(vm);
    removed.as_sp().role(); //~ FAILS
    (); //~ TWIN
}
