// SPDX-License-Identifier: GPL-2.0
// Rule: What a walk has handed out is not used after the walk has gone on: it may have yielded.
// Error: E0499

use crate::{
    sync::Shared,
    walk::Walk, //
};

fn program<'l>(walk: &mut Walk<'_, 'l, Shared<'l>>) {
    let Some(step) = walk.next() else { return };
    walk.next(); //~ FAILS
    step.view.gfn(); //~ TWIN
    step.view.spte();
}
