// SPDX-License-Identifier: GPL-2.0

//! What is done to shadow pages by way of the reverse map: one algorithm a file.
//!
//! Leaves of the shadow MMU map a guest frame once for each place where the guest has mapped it (or,
//! nested, where L1 has mapped it for L2), so whatever concerns a frame goes through its list.

pub(crate) mod age;
pub(crate) mod collapse;
pub(crate) mod enable;
pub(crate) mod link;
pub(crate) mod protect;
pub(crate) mod split;
pub(crate) mod zap;
