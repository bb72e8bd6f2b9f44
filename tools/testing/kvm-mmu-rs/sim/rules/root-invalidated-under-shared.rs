// SPDX-License-Identifier: GPL-2.0
// Rule: A root is marked invalid with mmu_lock held for write.
// Error: E0308

use crate::{
    sync::{
        Exclusive,
        Shared, //
    },
    sys::Sp, //
};

fn program(root: Sp<'_>, shared: &Shared<'_>, exclusive: &Exclusive<'_>) {
    root.mark_invalid(shared); //~ FAILS
    root.mark_invalid(exclusive); //~ TWIN
}
