// SPDX-License-Identifier: GPL-2.0
// Rule: A walk under which entries are zapped knows of the flush before it yields.
// Error: E0061

use crate::{
    sync::Exclusive,
    tlb::Flush,
    walk::Walk, //
};

fn program<'l>(walk: &mut Walk<'_, 'l, Exclusive<'l>>, flush: &mut Flush) {
    walk.next_flushing(); //~ FAILS
    walk.next_flushing(flush); //~ TWIN
}
