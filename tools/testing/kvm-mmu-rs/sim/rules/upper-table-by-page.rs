// SPDX-License-Identifier: GPL-2.0
// Rule: Only in a table of 4 KiB pages are entries stored without looking at what they are.
// Error: E0308

use crate::{
    change::zap_pages,
    pte::Table,
    pure::GfnRange,
    sync::Exclusive, //
};

fn program(lock: &Exclusive<'_>, table: Table<'_>, range: GfnRange) {
    zap_pages(lock, table, range); //~ FAILS
    table.small().map(|table| zap_pages(lock, table, range)); //~ TWIN
}
