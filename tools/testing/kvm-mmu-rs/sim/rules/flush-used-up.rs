// SPDX-License-Identifier: GPL-2.0
// Rule: A flush that was handed on is not noted any more.
// Error: E0382

use crate::tlb::Flush;

fn program(mut flush: Flush) -> bool {
    let due = flush.defer();
    flush.note(); //~ FAILS
    let _ = due; //~ TWIN
    due
}
