// SPDX-License-Identifier: GPL-2.0

//! KVM's C, for the MMU's crate and for the parties of the simulation.
//!
//! - [`bindings`]: what bindgen makes of C's headers in the kernel: structures, with the fields
//!   that the MMU or a model looks at, and the functions of either side;
//! - [`helpers`]: `rust_helpers.c`, on the simulated machine;
//! - [`holds`]: what `rust_lock_stats.c` accounts for, checked;
//! - [`host`]: the host's memory: which frame a guest frame lies in, and whose it is;
//! - [`memory_type`]: what an SPTE says of the memory that it maps, beyond the frame;
//! - [`model`]: the C around the MMU that is modelled rather than run;
//! - [`told`]: what the MMU tells by tracepoints and statistics, checked.

pub mod bindings;
pub mod helpers;
pub mod holds;
pub mod host;
pub mod memory_type;
pub mod model;
pub mod told;
pub mod types;
