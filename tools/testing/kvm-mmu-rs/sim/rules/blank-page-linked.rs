// SPDX-License-Identifier: GPL-2.0
// Rule: A table is filled before it is linked.
// Error: E0599

use crate::{
    page::BlankSp,
    pure::{
        Masks,
        Spte, //
    },
    sync::Shared,
    walk::Step, //
};

fn program<'l>(page: BlankSp, step: &mut Step<'_, Shared<'l>>, masks: &Masks, like: Spte) {
    let _ = page.link(step, masks); //~ FAILS
    let _ = page.link_split(step, like, masks); //~ TWIN
}
