// SPDX-License-Identifier: GPL-2.0

//! C's declarations that the MMU takes from the kernel crate.
#![allow(non_camel_case_types, non_snake_case)]

use machine::{
    mem,
    rcu, //
};

pub use machine::lock::{
    Lock as spinlock_t,
    RwLock as rwlock_t, //
};

/// `atomic64_t`.
pub type atomic64_t = u64;

pub const BUGFLAG_ONCE: u32 = 1 << 1;
pub const TAINT_WARN: u32 = 9;

/// `struct rcu_head`.
#[repr(C)]
pub struct callback_head {
    pub next: *mut callback_head,
    pub func: Option<unsafe extern "C" fn(*mut callback_head)>,
}

/// Ends the run.
///
/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn BUG() -> ! {
    machine::fail("BUG()".into())
}

/// Calls `func` when all who are in a read-side critical section now have left it.
///
/// # Safety
///
/// `head` must exist until then.
pub unsafe fn call_rcu(
    head: *mut callback_head,
    func: Option<unsafe extern "C" fn(*mut callback_head)>,
) {
    let func = func.expect("call_rcu() without a function");

    rcu::call(Box::new(move || {
        // SAFETY: The caller has promised that `head` exists.
        unsafe { func(head) }
    }));
}

/// Clears the bits that are not in `mask`.
///
/// # Safety
///
/// The word must exist.
pub unsafe fn atomic64_fetch_and(mask: i64, word: *mut atomic64_t) -> i64 {
    mem::update("fetch_and", word, |old| Some(old & mask as u64)).0 as i64
}

/// Sets the bits of `mask`.
///
/// # Safety
///
/// The word must exist.
pub unsafe fn atomic64_fetch_or(mask: i64, word: *mut atomic64_t) -> i64 {
    mem::update("fetch_or", word, |old| Some(old | mask as u64)).0 as i64
}

/// A page of the host, as one that was looked up; only its address is used.
#[repr(C)]
pub struct page {
    _opaque: [u8; 0],
}
