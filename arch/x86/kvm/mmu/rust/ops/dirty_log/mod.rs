// SPDX-License-Identifier: GPL-2.0

//! Dirty logging of a memslot: enabling it, reaping the log, and recovering huge pages when it ends.

pub(crate) mod enable;
pub(crate) mod protect;
pub(crate) mod reap;
pub(crate) mod recover;
