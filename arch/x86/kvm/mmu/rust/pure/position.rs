// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of a pre-order walk: where a cursor stands, and where it goes next.
//!
//! The walk visits every entry that covers a frame of interest, and an entry before those of the
//! table that it points to. The caller finds out whether there is such a table; a position only
//! knows numbers. Corresponds to the integer half of C's `tdp_iter`.

use super::addr::{
    Gfn,
    Index,
    Level,
    ENTRIES, //
};

/// A position in a page-table tree.
///
/// # Invariants
///
/// `min_level <= level <= root_level`, and `gfn` is aligned to `level`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    root_level: Level,
    min_level: Level,
    level: Level,
    gfn: Gfn,
    /// Bits to add to a gfn before indexing: the shared alias of a TDX guest's memory.
    alias: u64,
    /// The frame that the walk is heading for. It only ever grows, even across a restart, so it
    /// measures progress.
    target: Gfn,
    /// The target when the walk last (re)started.
    restarted_at: Gfn,
}

impl Position {
    /// The position at the root of a walk that begins at frame `start` and goes down to
    /// `min_level` at most.
    ///
    /// `None` if the root cannot map `start`, because it is beyond the reach of its level
    /// ([`Level::reach`]) or not below the alias bits, or if the levels are in the wrong order. A
    /// walk that goes on beyond the reach ends at the last entry of the root.
    #[inline]
    pub fn start(root_level: Level, min_level: Level, start: Gfn, alias: u64) -> Option<Position> {
        if min_level > root_level || !start.is_below_alias(alias) {
            return None;
        }
        if !root_level.reach().contains(start) {
            return None;
        }
        // INVARIANT: `level` is `root_level`, not below `min_level`; the gfn is rounded to it.
        Some(Position {
            root_level,
            min_level,
            level: root_level,
            gfn: start.round_down(root_level),
            alias,
            target: start,
            restarted_at: start,
        })
    }

    /// Goes back to the root, and continues towards the same target.
    #[inline]
    pub fn restart(&mut self) {
        self.restarted_at = self.target;
        self.level = self.root_level;
        // INVARIANT: Rounded to the level.
        self.gfn = self.target.round_down(self.level);
    }

    /// Whether the walk has made progress since it last (re)started, so that restarts can't keep it
    /// in place.
    #[inline]
    pub fn has_progressed(&self) -> bool {
        self.target != self.restarted_at
    }

    /// The level of the table that the position is in.
    #[inline]
    pub fn level(&self) -> Level {
        self.level
    }

    /// The first frame that the current entry covers, alias bits excluded.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The index of the current entry in its table.
    #[inline]
    pub fn index(&self) -> Index {
        Index::of(self.gfn.with_alias(self.alias), self.level)
    }

    /// Whether a table below the current entry is of interest.
    #[inline]
    pub fn may_descend(&self) -> bool {
        self.level > self.min_level
    }

    /// Steps into the table that the current entry points to. Returns false, and stays, at the
    /// lowest level of interest.
    #[inline]
    pub fn descend(&mut self) -> bool {
        match self.level.down() {
            Some(below) if self.may_descend() => {
                // INVARIANT: `level > min_level` before; the gfn is rounded to the new level.
                self.level = below;
                self.gfn = self.target.round_down(below);
                true
            }
            _ => false,
        }
    }

    /// Steps to the next entry of the same table. Returns false, and stays, at the last one.
    #[inline]
    pub fn advance(&mut self) -> bool {
        if self.index().is_last() {
            return false;
        }
        // INVARIANT: One entry on, the gfn is still aligned.
        self.gfn = self.gfn.add(self.level.pages());
        self.target = self.gfn;
        true
    }

    /// How many entries come after the current one in its table.
    #[inline]
    pub fn after(&self) -> usize {
        (ENTRIES - 1).wrapping_sub(self.index().get())
    }

    /// Steps over `count` entries of the same table, as [`Position::advance`] does; at most to the
    /// last one.
    #[inline]
    pub fn advance_by(&mut self, count: usize) {
        let count = count.min(self.after()) as u64;

        if count != 0 {
            // INVARIANT: Some entries on, the gfn is still aligned.
            self.gfn = self.gfn.add(self.level.pages().wrapping_mul(count));
            self.target = self.gfn;
        }
    }

    /// Steps forward to the entry that covers `gfn`, in the lowest table of the path that has one,
    /// and leaves out what lies between. A frame before the target stands for the target: a walk
    /// never goes back. Returns false, and stays, if the root cannot map the frame.
    #[inline]
    pub fn seek(&mut self, gfn: Gfn) -> bool {
        let gfn = gfn.max(self.target);
        let mut level = self.level;

        if !self.root_level.reach().contains(gfn) || (self.alias != 0 && gfn.0 >= self.alias) {
            return false;
        }
        while let Some(above) = level.up() {
            if level >= self.root_level || self.gfn.round_down(above) == gfn.round_down(above) {
                break;
            }
            level = above;
        }
        // INVARIANT: The level is between the last one and the root's; the gfn is rounded to it.
        self.level = level;
        self.gfn = gfn.round_down(level);
        self.target = gfn;
        true
    }

    /// Steps up to the entry that points to the current table. Returns false, and stays, at the
    /// root.
    #[inline]
    pub fn ascend(&mut self) -> bool {
        match self.level.up() {
            Some(above) if self.level < self.root_level => {
                // INVARIANT: `level < root_level` before; the gfn is rounded to the new level.
                self.level = above;
                self.gfn = self.gfn.round_down(above);
                true
            }
            _ => false,
        }
    }
}
