// SPDX-License-Identifier: GPL-2.0

//! Dirty logging of a memslot: enabling it, reaping the log, and what becomes of the pages when it
//! ends.

pub(crate) mod dirty_bits;
pub(crate) mod enable;
mod leaves;
pub(crate) mod protect;
pub(crate) mod reap;
pub(crate) mod recover;
mod unprotect;
