// SPDX-License-Identifier: GPL-2.0

//! Aging shadow pages: has the guest accessed a range lately?
//!
//! Called by MMU notifiers without `mmu_lock`. The lock bit of a list keeps its entries in place,
//! but the SPTEs may be zapped concurrently.

use crate::{
    change::mark_old,
    pure::{
        Age,
        Level, //
    },
    rmap::Lists,
    sys::SlotRange, //
};

/// Whether one of `pages` was accessed since it was last aged.
///
/// Upstream steps by the page size from the start of the range, which may be in the middle of a
/// page, and so may miss the last one. Here every page that holds a frame of the range is checked.
pub(crate) fn age(pages: SlotRange<'_>, what: Age) -> bool {
    let masks = pages.slot().masks();
    let mut young = false;

    for level in &Level::LEAVES {
        for list in Lists::of(pages, *level) {
            let Some(list) = list.read() else {
                continue;
            };

            for sptep in list.sptes() {
                let old = sptep.read();

                if !old.is_present() || !old.is_accessed(masks) {
                    continue;
                }
                if what == Age::Test {
                    return true;
                }
                young = true;
                // If another CPU has changed the SPTE, it is zapped, or in use and young.
                let _ = mark_old(sptep, old, masks);
            }
        }
    }
    young
}
