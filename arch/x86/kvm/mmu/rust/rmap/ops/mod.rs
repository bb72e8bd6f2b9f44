// SPDX-License-Identifier: GPL-2.0

//! The operations on shadow pages that go through the reverse map, one algorithm per file.
//!
//! The shadow MMU has a leaf for each place where the guest maps a frame (or, for nested guests,
//! where L1 maps it for L2), so an operation on a frame goes through its list.

pub(crate) mod age;
pub(crate) mod collapse;
pub(crate) mod enable;
pub(crate) mod link;
pub(crate) mod protect;
pub(crate) mod split;
pub(crate) mod zap;
