// SPDX-License-Identifier: GPL-2.0

//! Looking up a translation without a lock.

use core::mem::MaybeUninit;

use kernel::sync::rcu;

use crate::{
    pte::{
        Sptep,
        View, //
    },
    pure::{
        Gfn,
        Index,
        Level,
        Spte, //
    },
    sys::{
        Sp,
        Vm, //
    },
    walk::Descent, //
};

/// Visits the entries on the path to `gfn`, from the root down. The last one is the leaf, or the
/// entry that is not present. There is none if `gfn` is beyond the reach of the root.
fn for_each_on_path<'g>(
    vm: Vm<'g>,
    guard: &'g rcu::Guard,
    root: Sp<'g>,
    gfn: Gfn,
    mut visit: impl FnMut(&View<'g>),
) {
    let masks = vm.masks();
    let mut walk = Descent::lockless(vm, guard, root, gfn, masks);

    while let Some(view) = walk.next() {
        visit(&view);
    }
}

/// The last entry on the path to `gfn`, and its value.
///
/// If `gfn` is beyond the reach of the root, there is no such entry. C expects one nonetheless,
/// because a root always has entries, and ignores it unless it is present. So return the first, as
/// not present.
pub(crate) fn last_on_path<'g>(
    vm: Vm<'g>,
    guard: &'g rcu::Guard,
    root: Sp<'g>,
    gfn: Gfn,
) -> (Sptep<'g>, Spte) {
    let mut last = (root.table().sptep(Index::FIRST), Spte::NONPRESENT);

    for_each_on_path(vm, guard, root, gfn, |view| {
        last = (view.sptep(), view.spte())
    });
    last
}

/// Records the path to `gfn` in `sptes`, indexed by level, and returns the lowest level reached;
/// `None` if `gfn` is beyond the reach of the root.
pub(crate) fn record_path<'g>(
    vm: Vm<'g>,
    guard: &'g rcu::Guard,
    root: Sp<'g>,
    gfn: Gfn,
    sptes: &mut [MaybeUninit<u64>],
) -> Option<Level> {
    let mut lowest = None;

    for_each_on_path(vm, guard, root, gfn, |view| {
        if let Some(place) = sptes.get_mut(view.level() as usize) {
            place.write(view.spte().raw());
            lowest = Some(view.level());
        }
    });
    lowest
}
