// SPDX-License-Identifier: GPL-2.0
// Rule: A lock is held by the thread that has taken it.
// Error: E0277

use crate::{
    sync::Shared,
    sys::Vm, //
};

fn to_another<T: Send>(_: T) {}
fn to_myself<T>(_: T) {}

fn program(lock: Shared<'_>) {
    to_another(lock); //~ FAILS
    to_myself(lock); //~ TWIN
}
