// SPDX-License-Identifier: GPL-2.0
// Rule: A value gets into an SPTE by a function that checks it, under a lock.
// Error: E0133

use crate::{
    pte::Sptep,
    pure::{
        Masks,
        Spte, //
    },
    sync::Exclusive,
    walk::Step, //
};

fn program<'l>(sptep: Sptep<'_>, step: &mut Step<'_, Exclusive<'l>>, masks: &Masks) {
    sptep.write(Spte::NONPRESENT); //~ FAILS
    step.write(Spte::NONPRESENT, masks); //~ TWIN
}
