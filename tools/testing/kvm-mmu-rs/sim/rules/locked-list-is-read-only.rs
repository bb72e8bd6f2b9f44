// SPDX-License-Identifier: GPL-2.0
// Rule: Who holds only the lock bit of a list reads it, and does not change it.
// Error: E0599

use crate::{
    pte::Sptep,
    rmap::List, //
};

fn program(list: List<'_>, sptep: Sptep<'_>) {
    let Some(list) = list.read() else { return };
    list.remove(sptep); //~ FAILS
    list.sptes(); //~ TWIN
}
