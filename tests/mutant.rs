// SPDX-License-Identifier: GPL-2.0

//! Which of the bugs that switch.py has put into this crate is switched on: that of the number in
//! the environment variable MUTANT, and none without it.

extern crate std;

use core::sync::atomic::{
    AtomicU32,
    Ordering::Relaxed, //
};

/// Nobody has looked yet.
const UNKNOWN: u32 = u32::MAX;

static WHICH: AtomicU32 = AtomicU32::new(UNKNOWN);

/// The number of the bug; 0 for none, and in what the compiler evaluates.
#[inline]
pub(crate) const fn which() -> u32 {
    core::intrinsics::const_eval_select((), compiling, running)
}

const fn compiling() -> u32 {
    0
}

#[inline]
fn running() -> u32 {
    match WHICH.load(Relaxed) {
        UNKNOWN => look(),
        number => number,
    }
}

#[cold]
fn look() -> u32 {
    let number = std::env::var("MUTANT").map_or(0, |n| n.parse().expect("MUTANT is no number"));

    WHICH.store(number, Relaxed);
    number
}
