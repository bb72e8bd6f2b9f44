// SPDX-License-Identifier: GPL-2.0

//! Aging: has the guest accessed a range lately?
//!
//! Called by MMU notifiers that must not wait, so it holds no lock but RCU's. It reads SPTEs that
//! others change, and clears accessed state by an exchange that it does not repeat. Everything that
//! it changes therefore counts as volatile ([`crate::pure::Spte::is_volatile`]), or tolerates being
//! lost. No TLB flush: a stale "accessed" only delays the news.

use kernel::sync::rcu;

use crate::{
    pure::{Age, Entry},
    root::{rcu_roots, RootTypes, Selection},
    sys::{NotifierRange, Vm},
    walk::LocklessWalk,
};

/// Whether a page of `range` was accessed since it was last made old.
pub(crate) fn age(vm: Vm<'_>, range: NotifierRange<'_>, what: Age) -> bool {
    let masks = vm.masks();
    // Valid roots only; which is why nothing may be unmapped this way.
    let selection = Selection {
        types: RootTypes::of_notifier(vm, range),
        as_id: Some(range.slot().as_id()),
    };
    let guard = rcu::read_lock();
    let mut young = false;

    for root in rcu_roots(vm, &guard, selection) {
        let mut walk = LocklessWalk::new(vm, &guard, root, range.range(), masks);

        while let Some(view) = walk.next() {
            let Entry::Leaf(_) = view.entry(masks) else {
                continue;
            };
            if !view.spte().is_accessed(masks) {
                continue;
            }
            if what == Age::Test {
                return true;
            }
            young = true;
            view.mark_old(&guard, masks);
        }
    }
    young
}
