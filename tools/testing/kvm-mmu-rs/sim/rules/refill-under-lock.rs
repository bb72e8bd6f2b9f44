// SPDX-License-Identifier: GPL-2.0
// Rule: The supply of tables for splits is filled where mmu_lock is not held.
// Error: E0308

use crate::{
    cache::TdpSplitCache,
    sync::{
        MmuLock,
        Shared, //
    },
    sys::{
        Node,
        Vm, //
    }, //
};

fn program(vm: Vm<'_>, lock: &mut Shared<'_>, cache: &mut TdpSplitCache) {
    cache.fill(vm, lock, 1, Node::ANY); //~ FAILS
    lock.unlocked(|unlocked| cache.fill(vm, unlocked, 1, Node::ANY)); //~ TWIN
}
