// SPDX-License-Identifier: GPL-2.0

//! Aging: has the guest accessed a range lately?
//!
//! Called by MMU notifiers that must not wait, so it only holds the RCU read lock. It reads SPTEs
//! that change concurrently, and clears accessed state by a compare-and-exchange that it doesn't
//! retry. Everything that it changes is therefore treated as volatile
//! ([`crate::pure::Spte::is_volatile`]), or may be lost. There is no TLB flush: a stale translation
//! only delays setting the A bit again.

use kernel::sync::rcu;

use crate::{
    pte::View,
    pure::{
        Age,
        Entry,
        Masks, //
    },
    root::{
        rcu_roots,
        RootTypes,
        Selection, //
    },
    sys::{
        NotifierRange,
        Vm, //
    },
    walk::{
        Descent,
        ShortWalk, //
    }, //
};

/// Whether a page of `range` was accessed since it was last aged.
pub(crate) fn age(vm: Vm<'_>, range: NotifierRange<'_>, what: Age) -> bool {
    let masks = vm.masks();
    // Valid roots only, which is why nothing may be unmapped this way.
    let selection = Selection {
        types: RootTypes::of_notifier(vm, range),
        as_id: Some(range.slot().as_id()),
    };
    let pages = range.range();
    let guard = rcu::read_lock();
    let mut young = false;

    for root in rcu_roots(vm, &guard, selection) {
        // Reclaim ages one page at a time, and a descent is cheaper than a walk.
        if pages.pages() == 1 {
            let mut path = Descent::lockless(vm, &guard, root, pages.start, masks);

            while let Some(view) = path.next() {
                young |= age_leaf(&view, &guard, what, masks);
            }
        } else {
            let mut walk = ShortWalk::lockless(vm, &guard, root, pages, masks);

            while let Some(view) = walk.next() {
                young |= age_leaf(&view, &guard, what, masks);
                if young && what == Age::Test {
                    break;
                }
            }
        }
        if young && what == Age::Test {
            break;
        }
    }
    young
}

/// Whether the entry is a leaf that was accessed. Ages it, unless it is only to be tested.
#[inline]
fn age_leaf(view: &View<'_>, guard: &rcu::Guard, what: Age, masks: &Masks) -> bool {
    let Entry::Leaf(_) = view.entry(masks) else {
        return false;
    };
    if !view.spte().is_accessed(masks) {
        return false;
    }
    if what == Age::TestAndClear {
        view.mark_old(guard, masks);
    }
    true
}
