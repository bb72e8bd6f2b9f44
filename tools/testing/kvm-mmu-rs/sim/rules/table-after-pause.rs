// SPDX-License-Identifier: GPL-2.0
// Rule: A table that was found is not read after the RCU critical section of its walk.
// Error: E0499

use crate::{
    pte::Table,
    pure::Masks,
    sync::Shared,
    walk::Walk, //
};

fn program<'l>(walk: &mut Walk<'_, 'l, Shared<'l>>, masks: &Masks) {
    let Some(step) = walk.next() else { return };
    let table: Option<Table<'_>> = step.view.child(masks);
    walk.unlocked(|_| ()); //~ FAILS
    step.view.gfn(); //~ TWIN
    table.map(Table::level);
}
