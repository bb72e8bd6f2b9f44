// SPDX-License-Identifier: GPL-2.0

//! Looking a translation up without a lock.

use core::mem::MaybeUninit;

use kernel::sync::rcu;

use crate::{
    page::Sp,
    pure::{Gfn, Level},
    sys::Vm,
    walk::{LocklessDescent, View},
};

/// Visits the entries on the path to `gfn`, from the root down. The last one is the leaf, or the
/// entry that is not present.
pub(crate) fn for_each_on_path<'g>(
    vm: Vm<'_>,
    guard: &'g rcu::Guard,
    root: Sp<'g>,
    gfn: Gfn,
    mut visit: impl FnMut(&View<'_>),
) {
    let masks = vm.masks();
    let mut walk = LocklessDescent::new(vm, guard, root, gfn, masks);

    while let Some(view) = walk.next() {
        visit(&view);
    }
}

/// Records the path to `gfn` in `sptes`, indexed by level, and returns the lowest level reached.
pub(crate) fn record_path(
    vm: Vm<'_>,
    guard: &rcu::Guard,
    root: Sp<'_>,
    gfn: Gfn,
    sptes: &mut [MaybeUninit<u64>],
) -> Option<Level> {
    let mut lowest = None;

    for_each_on_path(vm, guard, root, gfn, |view| {
        if let Some(slot) = sptes.get_mut(view.level as usize) {
            slot.write(view.spte.0);
            lowest = Some(view.level);
        }
    });
    lowest
}
