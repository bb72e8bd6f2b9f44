// SPDX-License-Identifier: GPL-2.0
// Rule: Roots are taken off the schedule of roots to zap with slots_lock held.
// Error: E0308

use crate::{
    root::Root,
    sync::{
        PagesLock,
        SlotsLock, //
    },
    sys::Sp, //
};

fn program<'vm>(sp: Sp<'vm>, pages: &PagesLock<'vm>, slots: &SlotsLock<'vm>) {
    Root::take_scheduled(pages, sp); //~ FAILS
    Root::take_scheduled(slots, sp); //~ TWIN
}
