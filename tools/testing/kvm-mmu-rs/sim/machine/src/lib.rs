// SPDX-License-Identifier: GPL-2.0

//! The machine that the simulation runs on: parties that take turns, one step at a time; memory for
//! page tables that knows what was freed; locks and RCU.
//!
//! One OS thread runs all of it, so there is no data race, and a run is a function of its seed.
//! Each access that others can see is one step, and steps are sequentially consistent: what x86 may
//! reorder (a store after a later load of another word) is not seen here, but by the litmus tests.

pub mod every;
pub mod lock;
pub mod mem;
pub mod rcu;
pub mod rng;
pub mod sched;

pub use sched::{
    chance,
    choose,
    fail,
    note,
    point, //
};
