// SPDX-License-Identifier: GPL-2.0
// Rule: mmu_lock is not dropped while there is a list that may be changed.
// Error: E0499

use crate::{
    rmap::{
        List,
        Rmap, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    }, //
};

fn program<'l>(lock: &mut Exclusive<'l>, list: List<'_>) {
    let rmap = Rmap::new(lock, list);
    lock.cond_resched(); //~ FAILS
    rmap.lock(); //~ TWIN
    rmap.sptes().count();
}
