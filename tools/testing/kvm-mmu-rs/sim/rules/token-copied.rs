// SPDX-License-Identifier: GPL-2.0
// Rule: There is one token for a lock that is held.
// Error: E0507

use crate::sync::{
    MmuLock,
    Shared, //
};

fn program<'l>(lock: &mut Shared<'l>) {
    let copy = *lock; //~ FAILS
    let copy = lock.vm(); //~ TWIN
}
