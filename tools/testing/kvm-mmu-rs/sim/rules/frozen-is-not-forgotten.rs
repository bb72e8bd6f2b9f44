// SPDX-License-Identifier: GPL-2.0
// Rule: Who looks at what an entry is cannot forget that it may be frozen.
// Error: E0005

use crate::pure::{
    Entry::{
        Frozen,
        Leaf,
        NonPresent,
        Table, //
    },
    Level,
    Masks,
    Spte, //
};

fn program(spte: Spte, level: Level, masks: &Masks) {
    let (NonPresent | Table(_) | Leaf(_)) = spte.decode(level, masks); //~ FAILS
    let (NonPresent | Frozen | Table(_) | Leaf(_)) = spte.decode(level, masks); //~ TWIN
}
