// SPDX-License-Identifier: GPL-2.0
// Rule: The proof that mmu_lock is not held ends when it is taken again.
// Error: E0521

use crate::{
    page::BlankSp,
    sync::{
        MmuLock,
        Shared,
        Unlocked, //
    },
    sys::{
        Node,
        Shortage, //
    }, //
};

fn program<'l>(lock: &mut Shared<'l>, node: Node) {
    let mut kept: Option<&Unlocked> = None;
    lock.unlocked(|unlocked| kept = Some(unlocked)); //~ FAILS
    lock.unlocked(|unlocked| drop(BlankSp::alloc(unlocked, node, Shortage::Kill))); //~ TWIN
    kept.map(|unlocked| BlankSp::alloc(unlocked, node, Shortage::Kill));
}
