// SPDX-License-Identifier: GPL-2.0

//! The operations of the TDP MMU, one algorithm per file.

pub(crate) mod age;
pub(crate) mod ahead;
pub(crate) mod dirty_log;
pub(crate) mod lookup;
pub(crate) mod map;
pub(crate) mod prefault;
pub(crate) mod roots;
pub(crate) mod split;
pub(crate) mod spte;
pub(crate) mod zap;
