// SPDX-License-Identifier: GPL-2.0

//! What a change of one SPTE implies: the heart of the TDP MMU's bookkeeping.
//!
//! [`Transition::classify`] names the effects of replacing one value by another;
//! `change.rs` carries them out. Nothing here looks at memory, so that every case can be tested
//! on the host. Corresponds to the decisions in C's `__handle_changed_spte()`.

use super::{
    addr::{
        Hpa,
        Level, //
    },
    masks::Masks,
    spte::{
        Entry,
        Spte, //
    }, //
};

/// The effects of changing an SPTE from one value to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// The values are the same.
    Unchanged,

    /// A leaf would be replaced by a leaf that maps another frame, without being non-present and
    /// flushed in between. A notifier was missed or lost a race. Going on could give a guest access
    /// to another guest's memory, so the host must stop.
    Corrupt,

    /// Neither value maps anything. Trace it; there is nothing to account.
    NonPresent {
        /// One of the values is MMIO, or the entry is being frozen: the only such changes that
        /// KVM makes. Warn otherwise.
        expected: bool,
    },

    /// At least one value is present.
    Present(Effects),
}

/// The effects of a change to or from a present SPTE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effects {
    /// The change in the number of leaves of the entry's level: -1, 0 or 1.
    pub leaves: i8,

    /// The table that was reachable through the old value only, and has to be torn down.
    pub removed: Option<Hpa>,

    /// A table was replaced by another table. Tables never move, so warn, and tear down the old
    /// one.
    pub table_moved: bool,

    /// The new leaf is in none of the valid write states of [`Spte`]: warn.
    pub bad_write_state: bool,

    /// A 4 KiB leaf with D set is removed. If the slot is logged by D bits, the page's bit has to
    /// be set in the log. D of a larger leaf means nothing: it is not writable while its slot is
    /// logged, or the bits of all its pages are set.
    pub written: bool,
}

impl Transition {
    /// Classifies the change of an entry at `level` from `old` to `new`.
    ///
    /// `vm_mmio_value` is the VM's `shadow_mmio_value`.
    #[inline(always)]
    pub fn classify(
        old: Spte,
        new: Spte,
        level: Level,
        vm_mmio_value: u64,
        masks: &Masks,
    ) -> Transition {
        if old == new {
            return Transition::Unchanged;
        }

        let mut effects = Effects {
            leaves: 0,
            removed: None,
            table_moved: false,
            bad_write_state: false,
            written: false,
        };

        let from = old.decode(level, masks);
        let to = new.decode(level, masks);

        match (from, to) {
            (Entry::NonPresent | Entry::Frozen, Entry::NonPresent | Entry::Frozen) => {
                return Transition::NonPresent {
                    expected: old.is_mmio(vm_mmio_value, masks)
                        || new.is_mmio(vm_mmio_value, masks)
                        || new.is_frozen(),
                };
            }
            (Entry::Leaf(a), Entry::Leaf(b)) if a != b => return Transition::Corrupt,
            (Entry::Leaf(_), Entry::Leaf(_)) => {}
            (Entry::Leaf(_), _) => {
                effects.leaves = -1;
                effects.written = matches!(level, Level::Page4K) && old.is_dirty(masks);
            }
            (Entry::Table(child), Entry::Leaf(_)) => {
                effects.leaves = 1;
                effects.removed = Some(child.hpa());
            }
            (Entry::Table(a), Entry::Table(b)) if a == b => {}
            (Entry::Table(child), Entry::Table(_)) => {
                effects.table_moved = true;
                effects.removed = Some(child.hpa());
            }
            (Entry::Table(child), Entry::NonPresent | Entry::Frozen) => {
                effects.removed = Some(child.hpa());
            }
            (Entry::NonPresent | Entry::Frozen, Entry::Leaf(_)) => effects.leaves = 1,
            (Entry::NonPresent | Entry::Frozen, Entry::Table(_)) => {}
        }

        if matches!(to, Entry::Leaf(_)) {
            effects.bad_write_state = !new.write_state_is_valid(masks);
        }
        Transition::Present(effects)
    }
}
