// SPDX-License-Identifier: GPL-2.0
// Rule: Nothing passes for a lock that is held unless it says so with unsafe.
// Error: E0200

use crate::{
    support::rcu::RcuFree,
    sync::{
        MmuLock,
        Unlocked, //
    },
    sys::Vm,
    tally::Tally, //
};

struct Pretender<'l>(Vm<'l>, Tally);

impl<'l> MmuLock<'l> for Pretender<'l> { //~ FAILS
impl<'l> Pretender<'l> { //~ TWIN
    fn vm(&self) -> Vm<'l> {
        self.0
    }

    fn free_later(&self, _object: impl RcuFree) {}

    fn tally(&self) -> &Tally {
        &self.1
    }

    fn cond_resched(&mut self) {}

    fn unlocked<R>(&mut self, _f: impl FnOnce(&Unlocked) -> R) -> R {
        loop {}
    }
}
