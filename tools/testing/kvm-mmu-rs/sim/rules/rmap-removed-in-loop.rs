// SPDX-License-Identifier: GPL-2.0
// Rule: An entry is not removed from a list of the reverse map inside of a loop over it.
// Error: E0502

use crate::rmap::Rmap;

fn program(mut rmap: Rmap<'_>) {
    for sptep in rmap.sptes() {
        rmap.remove(sptep); //~ FAILS
        sptep.read(); //~ TWIN
    }
}
