// SPDX-License-Identifier: GPL-2.0
// Rule: A walk without mmu_lock ends before its RCU critical section.
// Error: E0505

use kernel::sync::rcu;

use crate::{
    pure::{
        Gfn,
        Masks, //
    },
    sys::{
        Sp,
        Vm, //
    },
    walk::Descent, //
};

fn program(vm: Vm<'_>, root: Sp<'_>, gfn: Gfn, masks: &Masks) {
    let guard = rcu::read_lock();
    let mut walk = Descent::lockless(vm, &guard, root, gfn, masks);
    drop(guard); //~ FAILS
    walk.next(); //~ TWIN
    walk.next();
}
