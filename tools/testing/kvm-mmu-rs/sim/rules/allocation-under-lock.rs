// SPDX-License-Identifier: GPL-2.0
// Rule: A page table is allocated where mmu_lock is not held.
// Error: E0308

use crate::{
    page::{
        BlankSp,
        Headers, //
    },
    sync::{
        MmuLock,
        Shared, //
    },
    sys::{
        Node,
        Shortage, //
    }, //
};

fn program(lock: &mut Shared<'_>, headers: &mut Headers, node: Node, how: Shortage) {
    BlankSp::alloc(lock, headers, node, how); //~ FAILS
    lock.unlocked(|unlocked| BlankSp::alloc(unlocked, headers, node, how)); //~ TWIN
}
