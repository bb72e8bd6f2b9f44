// SPDX-License-Identifier: GPL-2.0
// Rule: For the log nothing is cleared in an SPTE that says where it points.
// Error: E0308

use crate::{
    pure::{
        spte::PAGE_SIZE,
        WriteBits, //
    },
    sync::Shared,
    walk::Step, //
};

fn program<'l>(step: &mut Step<'_, Shared<'l>>) {
    let _ = step.try_clear_bits(PAGE_SIZE, 0); //~ FAILS
    let _ = step.try_clear_bits(WriteBits::W, 0); //~ TWIN
}
