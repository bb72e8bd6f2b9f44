// SPDX-License-Identifier: GPL-2.0

//! Proof that a lock is held, as a value.
//!
//! # The locking protocol
//!
//! `kvm->mmu_lock` is a fair rwlock. Who holds it for **write** ([`Exclusive`]) is alone with the
//! page tables, but for hardware, for the fast page fault and for aging, which all hold nothing;
//! these three change only bits that a volatile leaf declares
//! ([`Spte::is_volatile`](crate::pure::Spte::is_volatile)). Who holds it for **read** ([`Shared`])
//! has peers: every change of an SPTE is then a compare-and-exchange, and only its winner does the
//! bookkeeping. C passes a `bool shared`; here the mode is a type, and a function that is sound in
//! one mode only says so in its signature.
//!
//! Page tables are freed by RCU. Whoever looks into one is in an RCU read-side critical section,
//! under either mode, so that a zap under the read lock need not wait for readers, and a TLB flush
//! may come after the unlinking: a flow that unlinks tables flushes *before* it leaves the critical
//! section.
//!
//! A multi-step change under the read lock (tearing a subtree down, or updating an external TDX
//! table) claims entries by the frozen value. Others never touch a frozen entry: they retry.
//!
//! `slots_lock` is a mutex, outside of `mmu_lock`. Those who begin or end the logging of a memslot, or
//! reap its log, hold it ([`SlotsLock`]), so each of them is the only one.
//!
//! `tdp_mmu_pages_lock` nests inside `mmu_lock`; it guards the list of roots against other holders
//! of the read lock, and the tracking of NX huge pages. Memory is allocated with GFP_KERNEL only
//! where `mmu_lock` is not held, which [`Unlocked`] proves.
//!
//! Nobody keeps the lock for long: [`crate::walk`] gives way whenever somebody waits for it.

#![expect(unsafe_code)]

use kernel::types::NotThreadSafe;

use crate::{bindings, vm::Vm};

/// `mmu_lock` is held for read.
///
/// # Invariants
///
/// The lock of the VM is held for read by this thread for as long as the value exists, except while
/// [`MmuLock::unlocked`] or [`MmuLock::cond_resched`] has it borrowed.
pub(crate) struct Shared<'l>(Vm<'l>, NotThreadSafe);

/// `mmu_lock` is held for write.
///
/// # Invariants
///
/// As for [`Shared`], for write.
pub(crate) struct Exclusive<'l>(Vm<'l>, NotThreadSafe);

/// Proof that this thread does not hold `mmu_lock`, and so may sleep.
pub(crate) struct Unlocked(NotThreadSafe);

/// A mode in which `mmu_lock` is held.
pub(crate) trait MmuLock<'l> {
    /// The VM whose lock it is.
    fn vm(&self) -> Vm<'l>;

    /// Drops the lock and retakes it, if somebody waits for it or the scheduler wants the CPU.
    fn cond_resched(&mut self);

    /// Runs `f` without the lock.
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R;
}

impl<'l> Shared<'l> {
    /// Makes the token where C has taken the lock. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must hold `mmu_lock` for read until the token is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: the VM exists.
        unsafe { bindings::kvm_rs_assert_read_held(vm.as_ptr()) };
        // INVARIANT: by this function's safety requirement.
        Shared(vm, NotThreadSafe)
    }
}

impl<'l> Exclusive<'l> {
    /// Makes the token where C has taken the lock. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must hold `mmu_lock` for write until the token is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: the VM exists.
        unsafe { bindings::kvm_rs_assert_write_held(vm.as_ptr()) };
        // INVARIANT: by this function's safety requirement.
        Exclusive(vm, NotThreadSafe)
    }

    /// Makes the token for a VM that nobody else can reach, whose lock C does not take.
    ///
    /// # Safety
    ///
    /// No other thread may be able to take the VM's `mmu_lock` until the token is gone. In
    /// particular the VM has no users left, or no vCPU yet.
    #[inline]
    pub(crate) unsafe fn assume_unreachable(vm: Vm<'l>) -> Self {
        // INVARIANT: a lock that nobody else can take is as good as held.
        Exclusive(vm, NotThreadSafe)
    }
}

impl<'l> MmuLock<'l> for Shared<'l> {
    #[inline]
    fn vm(&self) -> Vm<'l> {
        self.0
    }

    #[inline]
    fn cond_resched(&mut self) {
        // SAFETY: by the type invariant the lock is held for read; the exclusive borrow shows that
        // nothing relies on it meanwhile.
        unsafe { bindings::kvm_rs_cond_resched_read(self.0.as_ptr()) }
    }

    #[inline]
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        // SAFETY: by the type invariant the lock is held for read; the exclusive borrow shows that
        // nothing relies on it meanwhile.
        unsafe { bindings::kvm_rs_read_unlock(self.0.as_ptr()) };
        let result = f(&Unlocked(NotThreadSafe));
        // SAFETY: the lock was just dropped.
        unsafe { bindings::kvm_rs_read_lock(self.0.as_ptr()) };
        result
    }
}

impl<'l> MmuLock<'l> for Exclusive<'l> {
    #[inline]
    fn vm(&self) -> Vm<'l> {
        self.0
    }

    #[inline]
    fn cond_resched(&mut self) {
        // SAFETY: by the type invariant the lock is held for write; the exclusive borrow shows
        // that nothing relies on it meanwhile.
        unsafe { bindings::kvm_rs_cond_resched_write(self.0.as_ptr()) }
    }

    #[inline]
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        // SAFETY: by the type invariant the lock is held for write; the exclusive borrow shows
        // that nothing relies on it meanwhile.
        unsafe { bindings::kvm_rs_write_unlock(self.0.as_ptr()) };
        let result = f(&Unlocked(NotThreadSafe));
        // SAFETY: the lock was just dropped.
        unsafe { bindings::kvm_rs_write_lock(self.0.as_ptr()) };
        result
    }
}

/// Takes `mmu_lock` for read and runs `f` under it.
#[inline]
pub(crate) fn with_shared<'l, R>(vm: Vm<'l>, f: impl FnOnce(&mut Shared<'l>) -> R) -> R {
    // SAFETY: the VM exists, and no caller holds the lock.
    unsafe { bindings::kvm_rs_read_lock(vm.as_ptr()) };
    // SAFETY: just taken, and dropped only after the token is gone.
    let result = f(&mut unsafe { Shared::assume_held(vm) });
    // SAFETY: taken above.
    unsafe { bindings::kvm_rs_read_unlock(vm.as_ptr()) };
    result
}

/// Takes `mmu_lock` for write and runs `f` under it.
#[inline]
pub(crate) fn with_exclusive<'l, R>(vm: Vm<'l>, f: impl FnOnce(&mut Exclusive<'l>) -> R) -> R {
    // SAFETY: the VM exists, and no caller holds the lock.
    unsafe { bindings::kvm_rs_write_lock(vm.as_ptr()) };
    // SAFETY: just taken, and dropped only after the token is gone.
    let result = f(&mut unsafe { Exclusive::assume_held(vm) });
    // SAFETY: taken above.
    unsafe { bindings::kvm_rs_write_unlock(vm.as_ptr()) };
    result
}

/// Whether somebody waits for `mmu_lock`, or the scheduler wants the CPU.
#[inline]
pub(crate) fn need_break(vm: Vm<'_>) -> bool {
    // SAFETY: the VM exists; the helper reads the state of the lock and of this thread.
    unsafe { bindings::kvm_rs_need_break(vm.as_ptr()) }
}

/// `slots_lock` is held: nobody else begins or ends the logging of a memslot, reaps a dirty log, uses
/// the VM's caches for splitting, or schedules roots to be zapped.
///
/// # Invariants
///
/// The calling thread holds `slots_lock` of the VM for as long as the value exists, or nobody else
/// can reach the VM.
pub(crate) struct SlotsLock<'l>(Vm<'l>, NotThreadSafe);

impl<'l> SlotsLock<'l> {
    /// Makes the token where C has taken the lock. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must hold `slots_lock` until the token is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: the VM exists.
        unsafe { bindings::kvm_rs_assert_slots_locked(vm.as_ptr()) };
        // INVARIANT: by this function's safety requirement.
        SlotsLock(vm, NotThreadSafe)
    }

    /// Makes the token for a VM that nobody else can reach, whose lock C does not take.
    ///
    /// # Safety
    ///
    /// As for [`Exclusive::assume_unreachable`], for `slots_lock`.
    #[inline]
    pub(crate) unsafe fn assume_unreachable(vm: Vm<'l>) -> Self {
        // INVARIANT: by this function's safety requirement.
        SlotsLock(vm, NotThreadSafe)
    }

    /// The VM whose lock it is.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.0
    }
}

/// `tdp_mmu_pages_lock`, held.
pub(crate) struct PagesLock<'l>(Vm<'l>, NotThreadSafe);

impl<'l> PagesLock<'l> {
    /// Takes the lock.
    #[inline]
    pub(crate) fn new(vm: Vm<'l>) -> Self {
        // SAFETY: the VM exists.
        unsafe { bindings::kvm_rs_pages_lock(vm.as_ptr()) };
        PagesLock(vm, NotThreadSafe)
    }

    /// The VM whose lock it is.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.0
    }
}

impl Drop for PagesLock<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken in `new`.
        unsafe { bindings::kvm_rs_pages_unlock(self.0.as_ptr()) }
    }
}
