// SPDX-License-Identifier: GPL-2.0
// Rule: An entry that was seen is not used after mmu_lock was dropped.
// Error: E0499

use crate::{
    sync::Shared,
    walk::Walk, //
};

fn program<'l>(walk: &mut Walk<'_, 'l, Shared<'l>>) {
    let Some(step) = walk.next() else { return };
    let view = step.view;
    walk.unlocked(|_| ()); //~ FAILS
    view.gfn(); //~ TWIN
    view.spte();
}
