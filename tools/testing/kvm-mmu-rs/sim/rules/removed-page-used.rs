// SPDX-License-Identifier: GPL-2.0
// Rule: A page that was retired is not used.
// Error: E0382

use crate::page::RemovedSp;

fn program(removed: RemovedSp) {
    removed.as_sp().role();
    removed.retire_alone();
    removed.as_sp().role(); //~ FAILS
    (); //~ TWIN
}
