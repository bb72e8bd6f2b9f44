// SPDX-License-Identifier: GPL-2.0

//! Proof that a lock is held, as a value.
//!
//! # The locking protocol
//!
//! `kvm->mmu_lock` is a fair rwlock. A holder of the **write** lock ([`Exclusive`]) has the page
//! tables to itself, except for hardware, the fast page fault and aging, none of which takes the
//! lock. Those three change only bits that make a leaf volatile
//! ([`Spte::is_volatile`](crate::pure::Spte::is_volatile)). A holder of the **read** lock
//! ([`Shared`]) has peers, so a change of an SPTE is a compare-and-exchange, and only the winner
//! does the bookkeeping. (Where dirty logging stores plainly, [`crate::ops::dirty_log`] says why
//! that is enough.) C passes a `bool shared`; here the mode is a type, and a function that is only
//! sound in one mode says so in its signature.
//!
//! Page tables are freed by RCU. Under either mode a table may only be accessed in an RCU read-side
//! critical section. A zap under the read lock therefore doesn't have to wait for readers, and the
//! TLB flush may follow the unlinking: a flow that unlinks tables flushes *before* it leaves its
//! critical section.
//!
//! A change that takes several steps under the read lock (tearing down a subtree, updating an
//! external TDX table) freezes the entries first. Nobody else touches a frozen entry; they retry
//! instead.
//!
//! `slots_lock` is a mutex that is taken before `mmu_lock`. Enabling, disabling and reaping the
//! dirty log of a memslot all require it ([`SlotsLock`]), so they never run concurrently. The
//! exception is `KVM_CLEAR_DIRTY_LOG`: it takes `slots_lock` to claim a range of a memslot's log
//! ([`ClearRange`]) and drops it again, so that several threads clear different ranges at the same
//! time. Whoever needs the whole log, or changes memslots, waits under `slots_lock` until there is
//! no such range, which also keeps new ones from being claimed (`rust_clear_log.c`).
//!
//! `tdp_mmu_pages_lock` nests inside `mmu_lock`. It protects the list of roots against other
//! holders of the read lock, and the list of possible NX huge pages. Memory is allocated with
//! GFP_KERNEL only while `mmu_lock` is dropped, which [`Unlocked`] proves.
//!
//! Nobody holds the lock for long: [`crate::walk`] yields whenever the lock is contended.

#![expect(unsafe_code)]

use core::marker::PhantomData;

use kernel::{
    bindings::{
        rwlock_t,
        spinlock_t, //
    },
    sync::lock::{
        self,
        spinlock::{
            SpinLock,
            SpinLockBackend, //
        },
        Guard, //
    },
    types::NotThreadSafe, //
};

use crate::{
    bindings,
    support::{
        rcu::RcuFree,
        rwlock::{
            self,
            Held,
            HolderData,
            Mode,
            Read,
            RwLocked,
            Write, //
        }, //
    },
    tally::Tally,
    vm::Vm, //
};

pub(crate) use crate::{
    holder::Holder,
    support::rwlock::Unlocked, //
};

// SAFETY: `mmu_lock` is part of the VM, and is initialised before anybody gets a handle on it.
unsafe impl RwLocked for Vm<'_> {
    #[inline]
    fn rwlock(self) -> *mut rwlock_t {
        // SAFETY: The VM exists; the address of a field.
        unsafe { &raw mut (*self.as_ptr()).mmu_lock }
    }
}

/// `mmu_lock` of a VM, and what it is held for, which is accounted with `kvm.mmu_lock_stats=Y`.
#[derive(Clone, Copy)]
pub(crate) struct Lock<'l> {
    vm: Vm<'l>,
    holder: Holder,
}

impl<'l> Lock<'l> {
    /// The lock, for `holder`.
    #[inline]
    pub(crate) fn new(vm: Vm<'l>, holder: Holder) -> Self {
        Lock { vm, holder }
    }
}

// SAFETY: `mmu_lock` is that of the VM.
unsafe impl RwLocked for Lock<'_> {
    #[inline]
    fn rwlock(self) -> *mut rwlock_t {
        self.vm.rwlock()
    }
}

impl HolderData<Lock<'_>> for Tally {
    #[inline]
    fn settle(&self, lock: Lock<'_>) {
        Tally::settle(self, lock.vm);
    }
}

/// `mmu_lock` is held for read.
pub(crate) type Shared<'l> = Held<Lock<'l>, Read, Tally>;

/// `mmu_lock` is held for write.
pub(crate) type Exclusive<'l> = Held<Lock<'l>, Write, Tally>;

/// A way to hold `mmu_lock` that is accounted.
pub(crate) trait Accounted: Mode {
    /// Ends the hold, for the statistics. Returns what [`resume`] needs.
    fn pause(lock: Lock<'_>) -> u32;
}

impl Accounted for Read {
    #[inline]
    fn pause(lock: Lock<'_>) -> u32 {
        // SAFETY: The VM exists; statistics only.
        unsafe { bindings::kvm_rs_pause_read(lock.vm.as_ptr(), lock.holder.raw()) }
    }
}

impl Accounted for Write {
    #[inline]
    fn pause(lock: Lock<'_>) -> u32 {
        // SAFETY: The VM exists; statistics only.
        unsafe { bindings::kvm_rs_pause_write(lock.vm.as_ptr()) }
    }
}

/// Goes on with the hold that was paused, if it is accounted.
#[inline]
fn resume(lock: Lock<'_>, paused: u32) {
    if paused != 0 {
        // SAFETY: The VM exists; statistics only.
        unsafe { bindings::kvm_rs_resume_hold(lock.vm.as_ptr(), paused) }
    }
}

/// A mode in which `mmu_lock` is held.
///
/// # Safety
///
/// While a value exists, the calling thread must hold `mmu_lock` of `vm()`, for read or for write,
/// except in [`MmuLock::cond_resched`] and [`MmuLock::unlocked`]; or no other thread may be able to
/// take it.
pub(crate) unsafe trait MmuLock<'l> {
    /// The VM whose lock it is, always the same.
    fn vm(&self) -> Vm<'l>;

    /// Frees an object after a grace period, which begins at the latest when the lock is dropped,
    /// or C's caller, who has taken it, goes on.
    fn free_later(&self, object: impl RcuFree);

    /// The statistics that this holder puts off.
    fn tally(&self) -> &Tally;

    /// Drops the lock and retakes it, if somebody waits for it or the scheduler wants the CPU. Must
    /// not be called in atomic context or in an RCU read-side critical section (a bug that
    /// `CONFIG_DEBUG_ATOMIC_SLEEP` reports).
    fn cond_resched(&mut self);

    /// Runs `f` without the lock.
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R;
}

// SAFETY: By the invariant of `Held`; the object, and with it the VM, never changes.
unsafe impl<'l, M: Accounted> MmuLock<'l> for Held<Lock<'l>, M, Tally> {
    #[inline]
    fn vm(&self) -> Vm<'l> {
        self.object().vm
    }

    #[inline]
    fn free_later(&self, object: impl RcuFree) {
        Held::free_later(self, object);
    }

    #[inline]
    fn tally(&self) -> &Tally {
        self.data()
    }

    #[inline]
    fn cond_resched(&mut self) {
        let lock = self.object();

        // A hold that is not dropped goes on. What comes after this is for the next time.
        if !need_break(lock.vm) {
            return;
        }
        let paused = M::pause(lock);
        Held::cond_resched_rwlock(self);
        resume(lock, paused);
    }

    #[inline]
    fn unlocked<R>(&mut self, f: impl FnOnce(&Unlocked) -> R) -> R {
        let paused = M::pause(self.object());
        let result = Held::run_unlocked(self, f);

        resume(self.object(), paused);
        result
    }
}

/// Takes `mmu_lock` for read and runs `f` under it.
#[inline]
pub(crate) fn with_shared<'l, R>(
    vm: Vm<'l>,
    holder: Holder,
    f: impl FnOnce(&mut Shared<'l>) -> R,
) -> R {
    // SAFETY: The VM exists, and its lock with it.
    unsafe { bindings::kvm_rs_read_lock(vm.as_ptr(), holder.raw()) };
    // SAFETY: Just taken, and dropped only after the proof is gone.
    let result = f(&mut unsafe { Shared::assume_held(Lock::new(vm, holder)) });
    // SAFETY: Taken above, for the same holder.
    unsafe { bindings::kvm_rs_read_unlock(vm.as_ptr(), holder.raw()) };
    result
}

/// Takes `mmu_lock` for write and runs `f` under it.
#[inline]
pub(crate) fn with_exclusive<'l, R>(
    vm: Vm<'l>,
    holder: Holder,
    f: impl FnOnce(&mut Exclusive<'l>) -> R,
) -> R {
    // SAFETY: The VM exists, and its lock with it.
    unsafe { bindings::kvm_rs_write_lock(vm.as_ptr(), holder.raw()) };
    // SAFETY: Just taken, and dropped only after the proof is gone.
    let result = f(&mut unsafe { Exclusive::assume_held(Lock::new(vm, holder)) });
    // SAFETY: Taken above.
    unsafe { bindings::kvm_rs_write_unlock(vm.as_ptr()) };
    result
}

/// Whether somebody waits for `mmu_lock`, or the scheduler wants the CPU.
#[inline]
pub(crate) fn need_break(vm: Vm<'_>) -> bool {
    rwlock::need_break(vm)
}

/// The only one to clear W or D for the dirty log in some leaves.
///
/// # Safety
///
/// While a value exists, nobody else may clear or set W or D for the dirty log in the leaves that
/// its holder works on.
pub(crate) unsafe trait LogOwner {
    /// Warns if `mmu_lock` is held of another VM (a bug), with `CONFIG_KVM_PROVE_MMU=y`.
    fn check_vm<'m>(&self, lock: &impl MmuLock<'m>);
}

/// `slots_lock` is held, and nobody has a [`ClearRange`]: nobody else enables, disables or reaps a
/// dirty log, uses the VM's caches for splitting, or schedules roots to be zapped.
///
/// # Invariants
///
/// The calling thread holds `slots_lock` of the VM for as long as the value exists, and has waited
/// for those that cleared a range when it took the lock; or nobody else can reach the VM.
pub(crate) struct SlotsLock<'l>(Vm<'l>, NotThreadSafe);

impl<'l> SlotsLock<'l> {
    /// Makes the token where C has taken the lock. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must hold `slots_lock` until the token is gone, and must have called
    /// `kvm_rs_wait_for_clears()` since it took the lock.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_assert_slots_locked(vm.as_ptr()) };
        // INVARIANT: By this function's safety requirement.
        SlotsLock(vm, NotThreadSafe)
    }

    /// Makes the token for a VM that nobody else can reach, and for which C does not take the lock.
    ///
    /// # Safety
    ///
    /// No other thread may be able to take `slots_lock`, or to claim a range of a log, until the
    /// token is gone.
    #[inline]
    pub(crate) unsafe fn assume_unreachable(vm: Vm<'l>) -> Self {
        // INVARIANT: By this function's safety requirement.
        SlotsLock(vm, NotThreadSafe)
    }

    /// The VM whose lock it is.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.0
    }

    /// Warns if the other lock that is held is that of another VM (a bug), with
    /// `CONFIG_KVM_PROVE_MMU=y`.
    #[inline]
    pub(crate) fn check_vm<'m>(&self, lock: &impl MmuLock<'m>) {
        kvm_mmu_warn_on!(self.vm() != lock.vm());
    }
}

// SAFETY: By the type's invariant nobody else enables, disables or reaps a log.
unsafe impl LogOwner for SlotsLock<'_> {
    #[inline]
    fn check_vm<'m>(&self, lock: &impl MmuLock<'m>) {
        SlotsLock::check_vm(self, lock);
    }
}

/// A range of a memslot's log is this thread's to clear, without `slots_lock`: nobody else enables,
/// disables or reaps the log of that range, and memslots stay as they are. Others may clear other
/// ranges.
///
/// # Invariants
///
/// The calling thread has claimed the range (`begin_clear()`) for as long as the value exists.
pub(crate) struct ClearRange<'l>(Vm<'l>, NotThreadSafe);

impl<'l> ClearRange<'l> {
    /// Makes the token where C has claimed a range. Lockdep checks that it has claimed one.
    ///
    /// # Safety
    ///
    /// The calling thread must have claimed the range in which the token is used, until the token
    /// is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_assert_clearing(vm.as_ptr()) };
        // INVARIANT: By this function's safety requirement.
        ClearRange(vm, NotThreadSafe)
    }

    /// The VM whose log it is.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'l> {
        self.0
    }
}

// SAFETY: By the type's invariant nobody else enables, disables or reaps the log of the range.
unsafe impl LogOwner for ClearRange<'_> {
    #[inline]
    fn check_vm<'m>(&self, lock: &impl MmuLock<'m>) {
        kvm_mmu_warn_on!(self.vm() != lock.vm());
    }
}

/// A reaper of a log, and why nobody else reaps the same pages.
pub(crate) enum Reaper<'a, 'l> {
    /// The only reaper of the VM.
    Only(&'a mut SlotsLock<'l>),
    /// One of several that clear a range each.
    OneOf {
        range: ClearRange<'l>,
        /// Whether it is the one of them whose holds of `mmu_lock` are accounted.
        accounted: bool,
    },
}

impl<'l> Reaper<'_, 'l> {
    /// The VM whose log it is.
    pub(crate) fn vm(&self) -> Vm<'l> {
        match self {
            Reaper::Only(slots) => slots.vm(),
            Reaper::OneOf { range, .. } => range.vm(),
        }
    }
}

// SAFETY: It holds one of the two tokens, which are owners.
unsafe impl LogOwner for Reaper<'_, '_> {
    #[inline]
    fn check_vm<'m>(&self, lock: &impl MmuLock<'m>) {
        match self {
            Reaper::Only(slots) => LogOwner::check_vm(*slots, lock),
            Reaper::OneOf { range, .. } => range.check_vm(lock),
        }
    }
}

/// `kvm->srcu` is held for read: memslots that are looked up now stay, and whoever replaces one
/// waits, after the new one is published, until this is gone.
///
/// # Invariants
///
/// The calling thread is in a read-side critical section of the VM's `srcu` for as long as the
/// value exists.
pub(crate) struct Srcu<'l>(PhantomData<Vm<'l>>, NotThreadSafe);

impl<'l> Srcu<'l> {
    /// Makes the token where C has entered the section. Lockdep checks the claim.
    ///
    /// # Safety
    ///
    /// The calling thread must be in a read-side critical section of `vm`'s `srcu` until the token
    /// is gone.
    #[inline]
    pub(crate) unsafe fn assume_held(vm: Vm<'l>) -> Self {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_assert_srcu_held(vm.as_ptr()) };
        // INVARIANT: By this function's safety requirement.
        Srcu(PhantomData, NotThreadSafe)
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
        // SAFETY: The VM exists; the address of a field.
        let lock: *mut spinlock_t = unsafe { &raw mut (*vm.as_ptr()).arch.tdp_mmu_pages_lock };
        // SAFETY: Part of the VM, and initialised with its MMU (`kvm_rs_init_vm()`).
        let lock: &'l SpinLock<()> = unsafe { lock::Lock::from_raw(lock) };

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
