// SPDX-License-Identifier: GPL-2.0

// In the kernel bindgen makes this file from C.
pub use kvm_c::bindings::*;
