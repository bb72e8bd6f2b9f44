// SPDX-License-Identifier: GPL-2.0
// Rule: A list of the reverse map is changed with mmu_lock held for write.
// Error: E0308

use crate::{
    rmap::{
        List,
        Rmap, //
    },
    sync::{
        Exclusive,
        Shared, //
    }, //
};

fn program(shared: &mut Shared<'_>, exclusive: &mut Exclusive<'_>, list: List<'_>) {
    Rmap::new(shared, list); //~ FAILS
    Rmap::new(exclusive, list); //~ TWIN
}
