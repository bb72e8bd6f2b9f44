// SPDX-License-Identifier: GPL-2.0

//! Holds of `mmu_lock`, as `rust_lock_stats.c` accounts for them with `kvm.mmu_lock_stats=Y`.
//!
//! A hold begins and ends with the lock taken, it ends as what it began, there is none within
//! another, and the lock is not dropped in the middle of one: what somebody else does meanwhile
//! would be accounted to it.

use machine::{
    fail,
    sched::facts, //
};

use crate::types::{
    kvm_mmu_holder_KVM_MMU_FAULT as FAULT,
    kvm_mmu_holder_KVM_MMU_OTHER as OTHER, //
};
/// The lock is taken. `OTHER` is not accounted.
pub fn begin(holder: u32, write: bool) {
    let facts = facts();

    if facts.hold.is_some() || facts.paused.is_some() {
        fail(format!(
            "hold {holder} begins in {:?}, paused {:?}",
            facts.hold, facts.paused
        ));
    }
    facts.hold = (holder < OTHER).then_some((holder, write));
}

/// The lock will be dropped.
pub fn end(holder: u32, write: bool) {
    let hold = facts().hold.take();

    if hold != (holder < OTHER).then_some((holder, write)) || facts().paused.is_some() {
        fail(format!("hold {holder}, write {write}, ends as {hold:?}"));
    }
}

/// The lock for write will be dropped, whatever it was for.
pub fn end_write() {
    if matches!(facts().hold.take(), Some((_, false))) || facts().paused.is_some() {
        fail("a hold for read, or one that is paused, ends as one for write".into());
    }
}

/// The lock will be dropped and taken again. Returns what [`resume`] is to be called with, or 0.
/// What C has taken the lock for is not known here.
pub fn pause(holder: Option<u32>, write: bool) -> u32 {
    let hold = facts().hold;
    let wanted = match holder {
        Some(holder) => (holder < FAULT).then_some((holder, false)),
        None => hold,
    };

    if hold != wanted || hold.is_some_and(|(_, of)| of != write) {
        fail(format!("{holder:?}, write {write}, is paused in {hold:?}"));
    }
    let Some((holder, _)) = hold.filter(|&(holder, _)| holder < FAULT) else {
        return 0;
    };
    facts().paused = facts().hold.take();
    (holder + 1) << 1 | u32::from(write)
}

/// The lock has been taken again.
pub fn resume(paused: u32) {
    let hold = ((paused >> 1).wrapping_sub(1), paused & 1 != 0);

    if facts().paused.take() != Some(hold) || facts().hold.is_some() {
        fail(format!("a hold goes on that was not paused: {hold:?}"));
    }
    facts().hold = Some(hold);
}

/// The lock is dropped now.
pub fn dropped() {
    if let Some(hold) = facts().hold {
        fail(format!(
            "mmu_lock is dropped in the middle of hold {hold:?}"
        ));
    }
}
