// SPDX-License-Identifier: GPL-2.0
// Rule: An SPTE in a live table is read by an atomic access: there is no reference to it.
// Error: E0614

use crate::{
    pte::Sptep,
    pure::Spte, //
};

fn program(sptep: Sptep<'_>) -> Spte {
    let spte = *sptep; //~ FAILS
    let spte = sptep.read(); //~ TWIN
    spte
}
