// SPDX-License-Identifier: GPL-2.0

//! What the TDP MMU does: one algorithm a file.

pub(crate) mod age;
pub(crate) mod dirty_log;
pub(crate) mod lookup;
pub(crate) mod map;
pub(crate) mod roots;
pub(crate) mod split;
pub(crate) mod spte;
pub(crate) mod zap;
