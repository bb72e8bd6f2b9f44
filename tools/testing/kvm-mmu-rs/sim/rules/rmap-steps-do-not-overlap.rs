// SPDX-License-Identifier: GPL-2.0
// Rule: What a walk over the reverse map hands out ends before the walk goes on.
// Error: E0499

use crate::rmap::RmapWalk;

fn program(walk: &mut RmapWalk<'_, '_>) {
    let Some(mut step) = walk.next(None) else {
        return;
    };
    walk.next(None); //~ FAILS
    step.rmap().sptes().count(); //~ TWIN
    step.rmap();
}
