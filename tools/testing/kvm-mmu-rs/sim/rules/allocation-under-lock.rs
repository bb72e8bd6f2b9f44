// SPDX-License-Identifier: GPL-2.0
// Rule: A page table is allocated where mmu_lock is not held.
// Error: E0308

use crate::{
    page::BlankSp,
    sync::{
        MmuLock,
        Shared, //
    },
    sys::{
        Node,
        Shortage, //
    }, //
};

fn program(lock: &mut Shared<'_>, node: Node) {
    BlankSp::alloc(lock, node, Shortage::Kill); //~ FAILS
    lock.unlocked(|unlocked| BlankSp::alloc(unlocked, node, Shortage::Kill)); //~ TWIN
}
