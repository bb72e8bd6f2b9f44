// SPDX-License-Identifier: GPL-2.0
// Rule: The proof that mmu_lock is not held ends when it is taken again.
// Error: E0521

use crate::{
    page::{
        BlankSp,
        Headers, //
    },
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

fn program<'l>(lock: &mut Shared<'l>, headers: &mut Headers, node: Node, how: Shortage) {
    let mut kept: Option<&Unlocked> = None;
    lock.unlocked(|unlocked| kept = Some(unlocked)); //~ FAILS
    lock.unlocked(|unlocked| drop(BlankSp::alloc(unlocked, headers, node, how))); //~ TWIN
    kept.map(|unlocked| BlankSp::alloc(unlocked, headers, node, how));
}
