// SPDX-License-Identifier: GPL-2.0
// Rule: A page that was linked belongs to the tree, and is not freed by its maker.
// Error: E0382

use crate::{
    page::OwnedSp,
    pure::Masks,
    sync::Shared,
    walk::Step, //
};

fn program<'l>(page: OwnedSp, step: &mut Step<'_, Shared<'l>>, masks: &Masks) {
    let linked = page.link(step, masks);
    drop(page); //~ FAILS
    drop(linked); //~ TWIN
}
