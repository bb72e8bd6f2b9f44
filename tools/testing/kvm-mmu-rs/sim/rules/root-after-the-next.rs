// SPDX-License-Identifier: GPL-2.0
// Rule: A root that a walk stands on is not used after the walk has gone on: its count is gone.
// Error: E0499

use crate::{
    root::Roots,
    sync::Shared, //
};

fn program<'vm>(roots: &mut Roots<'vm>, lock: &Shared<'vm>) {
    let Some(root) = roots.next(lock) else { return };
    roots.next(lock); //~ FAILS
    root.gfn(); //~ TWIN
    root.role();
}
