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

use kernel::{
    bindings::{rwlock_t, spinlock_t},
    sync::lock::{
        spinlock::{SpinLock, SpinLockBackend},
        Guard, Lock,
    },
    types::NotThreadSafe,
};

use crate::{
    bindings,
    support::rwlock::{self, Held, Mode, Read, RwLocked, Write},
    vm::Vm,
};

pub(crate) use crate::support::rwlock::Unlocked;

// SAFETY: `mmu_lock` is part of the VM, and is initialised before anybody gets a handle on it.
unsafe impl RwLocked for Vm<'_> {
    #[inline]
    fn rwlock(self) -> *mut rwlock_t {
        // SAFETY: the VM exists; the address of a field.
        unsafe { &raw mut (*self.as_ptr()).mmu_lock }
    }
}

/// `mmu_lock` is held for read.
pub(crate) type Shared<'l> = Held<Vm<'l>, Read>;

/// `mmu_lock` is held for write.
pub(crate) type Exclusive<'l> = Held<Vm<'l>, Write>;

/// A mode in which `mmu_lock` is held.
pub(crate) trait MmuLock<'l> {
    /// The VM whose lock it is.
    fn vm(&self) -> Vm<'l>;

    /// Drops the lock and retakes it, if somebody waits for it or the scheduler wants the CPU.
    fn cond_resched(&mut self);

    /// Runs `f` without the lock.
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R;
}

impl<'l, M: Mode> MmuLock<'l> for Held<Vm<'l>, M> {
    #[inline]
    fn vm(&self) -> Vm<'l> {
        self.object()
    }

    #[inline]
    fn cond_resched(&mut self) {
        Held::cond_resched(self);
    }

    #[inline]
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        Held::unlocked(self, f)
    }
}

/// Takes `mmu_lock` for read and runs `f` under it.
#[inline]
pub(crate) fn with_shared<'l, R>(vm: Vm<'l>, f: impl FnOnce(&mut Shared<'l>) -> R) -> R {
    Held::with(vm, f)
}

/// Takes `mmu_lock` for write and runs `f` under it.
#[inline]
pub(crate) fn with_exclusive<'l, R>(vm: Vm<'l>, f: impl FnOnce(&mut Exclusive<'l>) -> R) -> R {
    Held::with(vm, f)
}

/// Whether somebody waits for `mmu_lock`, or the scheduler wants the CPU.
#[inline]
pub(crate) fn need_break(vm: Vm<'_>) -> bool {
    rwlock::need_break(vm)
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
pub(crate) struct PagesLock<'l> {
    vm: Vm<'l>,
    _guard: Guard<'l, (), SpinLockBackend>,
}

impl<'l> PagesLock<'l> {
    /// Takes the lock.
    #[inline]
    pub(crate) fn new(vm: Vm<'l>) -> Self {
        // SAFETY: the VM exists; the address of a field.
        let lock: *mut spinlock_t = unsafe { &raw mut (*vm.as_ptr()).arch.tdp_mmu_pages_lock };
        // SAFETY: part of the VM, and initialised with its MMU (`kvm_rs_init_vm()`).
        let lock: &'l SpinLock<()> = unsafe { Lock::from_raw(lock) };

        PagesLock {
            vm,
            _guard: lock.lock(),
        }
    }

    /// The VM whose lock it is.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.vm
    }
}
