// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate does not have yet.
//!
//! Nothing here knows who uses it. The files are compiled into the crate that needs them, by
//! `#[path]`, and not into `kernel`: everything is inlined there, and vmlinux gets no new symbol,
//! so that a module which uses it can be loaded into a kernel that was built without it. The head
//! of each file says where in `kernel` it belongs.
//!
//! The crate that includes it has the declarations of `helpers.h` in its `bindings`, and compiles
//! `helpers.c` as it compiles helpers of its own. With KUnit tests it also has those of `tests.h`,
//! and compiles `tests.c`.

#![expect(unsafe_code)]

pub(crate) mod atomic;
pub(crate) mod preempt;
pub(crate) mod rcu;
pub(crate) mod rwlock;
pub(crate) mod task;

#[cfg(CONFIG_KVM_RUST_MMU_KUNIT_TEST)]
mod tests;
