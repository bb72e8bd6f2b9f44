// SPDX-License-Identifier: GPL-2.0
// Rule: A walk that yields is not an iterator, which would hand out what survives a yield.
// Error: E0277

use crate::{
    sync::Shared,
    walk::Walk, //
};

fn program<'l>(mut walk: Walk<'_, 'l, Shared<'l>>) {
    for step in walk { //~ FAILS
    while let Some(step) = walk.next() { //~ TWIN
        step.view.spte();
    }
}
