// SPDX-License-Identifier: GPL-2.0
// Rule: The list of possible NX huge pages changes under tdp_mmu_pages_lock.
// Error: E0308

use crate::{
    sync::{
        MmuLock,
        PagesLock,
        Shared, //
    },
    sys::Sp, //
};

fn program(sp: Sp<'_>, lock: &Shared<'_>) {
    sp.track_nx_huge_page(lock); //~ FAILS
    sp.track_nx_huge_page(&PagesLock::new(lock.vm())); //~ TWIN
}
