// SPDX-License-Identifier: GPL-2.0
// Rule: A plain store to an SPTE takes mmu_lock held for write.
// Error: E0599

use crate::{
    pure::{
        Masks,
        Spte, //
    },
    sync::{
        Exclusive,
        Shared, //
    },
    walk::Step, //
};

fn program<'l>(
    shared: &mut Step<'_, Shared<'l>>,
    exclusive: &mut Step<'_, Exclusive<'l>>,
    masks: &Masks,
) {
    shared.write(Spte::NONPRESENT, masks); //~ FAILS
    exclusive.write(Spte::NONPRESENT, masks); //~ TWIN
}
