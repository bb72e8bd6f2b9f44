// SPDX-License-Identifier: GPL-2.0

//! The C functions that this crate replaces.
//!
//! Each one makes handles and tokens from C's pointers and locks, calls one operation, and converts
//! the result. The prototypes in `tdp_mmu.h` and `spte.h` define the arguments. Pointers that C
//! passes are valid during the call, and locks are held as C's callers hold them. If the caller has
//! to hold a lock, the token has lockdep check it.

#![expect(unsafe_code)]
#![expect(
    clippy::missing_safety_doc,
    reason = "the requirements are the same for all, and are listed above"
)]

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    error::{
        code::EINVAL,
        Result, //
    },
    ffi::c_int,
    ffi::c_uint,
    ffi::c_ulong,
    sync::rcu, //
};

use crate::{
    bindings,
    ops::{
        age::age,
        ahead,
        dirty_log::{
            dirty_bits,
            enable,
            protect,
            reap::{
                HugePages,
                Reap, //
            },
            recover, //
        },
        lookup,
        map::{
            self,
            RetPf, //
        },
        prefault,
        roots,
        split,
        spte::{
            self,
            LeafRequest, //
        },
        zap, //
    },
    page,
    pte,
    pure::{
        dirty::WORD_PAGES,
        leaf,
        Age,
        Gfn,
        GfnRange,
        Hpa,
        Level,
        Pfn,
        Protect,
        Role,
        Spte, //
    },
    root::{
        self,
        Root,
        RootTypes, //
    },
    sync::{
        ClearRange,
        Exclusive,
        Holder,
        Lock,
        Reaper,
        Shared,
        SlotsLock,
        Srcu, //
    },
    sys::{
        self,
        with_masks,
        DirtyBitmap,
        Fault,
        Memslot,
        NotifierRange,
        SlotGfn,
        Sp,
        Vcpu,
        Vm,
        Wanted, //
    },
    tlb::Flush, //
};

/// Wraps a pointer that C passed as an argument.
macro_rules! wrap {
    ($type:ident, $ptr:expr) => {{
        let ptr = $ptr;
        // SAFETY: C passes a valid pointer, for the duration of the call.
        unsafe { $type::from_raw(ptr) }
    }};
}

/// As [`wrap`], for types that are made of a pointer that is known not to be null.
macro_rules! wrap_non_null {
    ($type:ident, $ptr:expr) => {{
        let ptr = $ptr;
        // SAFETY: C passes a valid pointer.
        let ptr = unsafe { NonNull::new_unchecked(ptr) };
        wrap!($type, ptr)
    }};
}

/// Defines functions for C to call. Fails to compile if C declares one of them in another way.
///
/// rustfmt does not look into a macro; `make check` shows it the contents as a module.
///
/// # Safety
///
/// Only C may call them. It passes pointers to what exists, and holds the locks that each names.
macro_rules! export {
    ($(
        $(#[$attr:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attr])*
        #[no_mangle]
        unsafe extern "C" fn $name($($arg: $type),*) $(-> $result)? $body

        const _: () = {
            let _ = if true { bindings::$name } else { $name };
        };
    )*};
}

/// Makes the token for a lock that C's caller holds. If it is `mmu_lock` held for read, and may be
/// yielded, the holder is what the statistics account it to.
macro_rules! held {
    (SlotsLock, $vm:expr) => {
        held!(@of SlotsLock, $vm)
    };
    (Srcu, $vm:expr) => {
        held!(@of Srcu, $vm)
    };
    (ClearRange, $vm:expr) => {
        held!(@of ClearRange, $vm)
    };
    (@of $type:ident, $object:expr) => {{
        let object = $object;
        // SAFETY: The prototype says so, lockdep checks it, and the token ends with the call.
        unsafe { $type::assume_held(object) }
    }};
    ($type:ident, $vm:expr) => {
        held!($type, $vm, Caller)
    };
    ($type:ident, $vm:expr, $holder:ident) => {
        held!(@of $type, crate::sync::Lock::new($vm, crate::sync::Holder::$holder))
    };
}

/// The elements of the array that [`kvm_tdp_mmu_get_walk`] fills: one for each level, from 1 on.
const WALK_LEN: usize = Level::Page256T as usize + 1;

/// The level that C passes. `None`, for one that cannot be, is a bug in the caller, and ends the
/// VM.
pub(crate) fn level(vm: Vm<'_>, raw: c_int) -> Option<Level> {
    let level = u32::try_from(raw).ok().and_then(Level::from_raw);

    if level.is_none() {
        vm.bugged();
    }
    level
}

fn word(role: bindings::kvm_mmu_page_role) -> Role {
    // SAFETY: Every bit pattern is a valid word.
    Role(unsafe { *role.word })
}

/// Makes the part of a memslot's dirty bitmap that an ioctl reaps, and its buffer, from what C
/// passes.
///
/// # Safety
///
/// The slot must have a bitmap of at least `first_word + words` words, and `buffer` must have
/// `words` words that nobody else accesses for `'a`.
unsafe fn dirty_bitmap<'a>(
    slot: Memslot<'a>,
    first_word: usize,
    words: usize,
    buffer: *mut c_ulong,
    wanted: Wanted,
) -> DirtyBitmap<'a> {
    // CAST: `unsigned long` has 64 bits.
    // SAFETY: By this function's safety requirement.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u64>(), words) };

    // SAFETY: By this function's safety requirement.
    unsafe { DirtyBitmap::new(slot, first_word, buffer, wanted) }
}

/// Reaps `log` for C. Returns 0, or a negative error.
fn reap(
    kvm: *mut bindings::kvm,
    slot: Memslot<'_>,
    log: DirtyBitmap<'_>,
    huge: HugePages,
) -> c_int {
    let mut slots = held!(SlotsLock, wrap!(Vm, kvm));

    errno(Reap::new(Reaper::Only(&mut slots), slot, log, huge).run())
}

/// Harvests D bits for C. Returns 0, or a negative error. A function of its own, because most VMs
/// have none.
#[inline(never)]
fn harvest(kvm: *mut bindings::kvm, slot: Memslot<'_>, buffer: *mut c_ulong) -> c_int {
    let words = slot.range().pages().div_ceil(WORD_PAGES);
    // SAFETY: The slot is logged, so it has a bitmap. The buffer is the second half of its
    // allocation, as long as the bitmap, which nobody else uses while `slots_lock` is held and no
    // range is claimed.
    let log = unsafe { dirty_bitmap(slot, 0, words as usize, buffer, Wanted::All) };

    errno(dirty_bits::harvest(
        &held!(SlotsLock, wrap!(Vm, kvm)),
        slot,
        &log,
    ))
}

/// What C returns for a result: 0, or a negative error.
fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

export! {
    /// Takes note of the SPTE format for a VM that is being created. The caller serializes.
    fn kvm_tdp_mmu_refresh_masks() {
        // SAFETY: The shim holds its mutex.
        unsafe { sys::refresh_masks() }
    }

    /// Initializes the TDP MMU of a VM.
    fn kvm_mmu_init_tdp_mmu(kvm: *mut bindings::kvm) {
        // SAFETY: C passes a VM that is being created.
        unsafe { bindings::kvm_rs_init_vm(kvm) }
    }

    /// Frees all roots of a VM that is being destroyed, and waits until their memory is free.
    fn kvm_mmu_uninit_tdp_mmu(kvm: *mut bindings::kvm) {
        let vm = wrap!(Vm, kvm);
        // SAFETY: The VM has no users left, or its creation failed.
        let slots = unsafe { SlotsLock::assume_unreachable(vm) };
        let invalidate = |lock: &Exclusive<'_>| roots::invalidate(lock, &slots, RootTypes::VALID);

        // SAFETY: As nobody else has the VM, nobody can take `mmu_lock` before `invalidate`
        // returns.
        unsafe { Exclusive::with_unreachable(Lock::new(vm, Holder::Caller), invalidate) };
        zap::zap_invalidated_roots(&slots, false);

        #[cfg(CONFIG_KVM_PROVE_MMU)]
        warn_on_once!(vm.has_tables());
        warn_on_once!(!root::list_is_empty(vm));

        // Callbacks of the last roots may just have been queued.
        // SAFETY: May sleep, as no lock is held.
        unsafe { page::wait_for_unused() };
        warn_on_once!(page::unused_tables(vm) != 0);
    }

    /// Gives the vCPU a root: a mirror root if `mirror`, otherwise a direct one.
    fn kvm_tdp_mmu_alloc_root(vcpu: *mut bindings::kvm_vcpu, mirror: bool) {
        let vcpu = wrap!(Vcpu, vcpu);
        let role = vcpu.root_role();

        if mirror {
            vcpu.set_mirror_root(roots::get_or_create(vcpu, role.as_mirror()).into_vcpu());
        } else {
            vcpu.set_root(roots::get_or_create(vcpu, role).into_vcpu());
        }
    }

    /// Puts a reference to a root.
    fn kvm_tdp_mmu_put_root(kvm: *mut bindings::kvm, root: *mut bindings::kvm_mmu_page) {
        let vm = wrap!(Vm, kvm);
        let sp = wrap_non_null!(Sp, root);

        // SAFETY: The caller gives up its reference.
        drop(unsafe { Root::from_counted(vm, sp) });
    }

    /// Invalidates the roots of some kinds. `slots_lock` is held, and `mmu_lock` for write.
    fn kvm_tdp_mmu_invalidate_roots(
        kvm: *mut bindings::kvm,
        types: bindings::kvm_tdp_mmu_root_types,
    ) {
        let vm = wrap!(Vm, kvm);
        let slots = held!(SlotsLock, vm);
        let lock = held!(Exclusive, vm);

        roots::invalidate(&lock, &slots, RootTypes::from_raw(types));
    }

    /// Zaps the roots that were invalidated. `slots_lock` is held; takes `mmu_lock`.
    fn kvm_tdp_mmu_zap_invalidated_roots(kvm: *mut bindings::kvm, shared: bool) {
        zap::zap_invalidated_roots(&held!(SlotsLock, wrap!(Vm, kvm)), shared);
    }

    /// Zaps everything. `mmu_lock` is held for write.
    fn kvm_tdp_mmu_zap_all(kvm: *mut bindings::kvm) {
        zap::zap_all(&mut held!(Exclusive, wrap!(Vm, kvm)));
    }

    /// Zaps the leaves of a range in all valid roots. `mmu_lock` is held for write. Returns whether
    /// a TLB flush is due.
    fn kvm_tdp_mmu_zap_leafs(
        kvm: *mut bindings::kvm,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
        flush: bool,
    ) -> bool {
        let range = GfnRange::new(Gfn(start), Gfn(end));
        let mut flush = Flush::new(flush);

        zap::zap_leafs(&mut held!(Exclusive, wrap!(Vm, kvm)), range, &mut flush);
        flush.defer()
    }

    /// Zaps a table that is used instead of a huge page because of the NX mitigation, in a VM that
    /// is not logged by D bits. `mmu_lock` is held for read, and RCU; and `kvm->srcu` since that
    /// was asked.
    fn kvm_tdp_mmu_zap_possible_nx_huge_page(
        kvm: *mut bindings::kvm,
        sp: *mut bindings::kvm_mmu_page,
    ) -> bool {
        let lock = held!(Shared, wrap!(Vm, kvm));

        zap::zap_possible_nx_huge_page(&lock, wrap_non_null!(Sp, sp))
    }

    /// The table that NX recovery is to zap before that of `sp`, or `sp`, if there is none. The
    /// caller takes it off the list of possible NX huge pages, if it is there.
    /// `mmu_lock` is held for read, and RCU, and what is returned may be used as long.
    fn kvm_tdp_mmu_first_to_zap(
        kvm: *mut bindings::kvm,
        sp: *mut bindings::kvm_mmu_page,
    ) -> *mut bindings::kvm_mmu_page {
        let lock = held!(Shared, wrap!(Vm, kvm));

        zap::first_to_zap(&lock, wrap_non_null!(Sp, sp)).as_ptr()
    }

    /// Zaps a range for an MMU notifier. `mmu_lock` is held for write. Returns whether a flush is
    /// due.
    fn kvm_tdp_mmu_unmap_gfn_range(
        kvm: *mut bindings::kvm,
        range: *mut bindings::kvm_gfn_range,
        flush: bool,
    ) -> bool {
        let range = wrap!(NotifierRange, range);
        let mut flush = Flush::new(flush);

        zap::unmap(&mut held!(Exclusive, wrap!(Vm, kvm)), range, &mut flush);
        flush.defer()
    }

    /// Handles a fault. `mmu_lock` is held for read.
    fn kvm_tdp_mmu_map(
        vcpu: *mut bindings::kvm_vcpu,
        fault: *mut bindings::kvm_page_fault,
    ) -> c_int {
        let vcpu = wrap!(Vcpu, vcpu);
        let fault = wrap!(Fault, fault);
        let vm = vcpu.vm();
        let root = if vm.is_addr_direct(fault.addr()) {
            vcpu.root()
        } else {
            vcpu.mirror_root()
        };

        // SAFETY: The vCPU has loaded the root, and holds a reference to it.
        let outcome = match unsafe { root::loaded(root) } {
            Some(root) => map::map(vcpu, fault, &held!(Shared, vm), root),
            None => {
                warn_on_once!(true);
                RetPf::Retry
            }
        };

        let code = match outcome {
            RetPf::Retry => bindings::RET_PF_RETRY,
            RetPf::Emulate => bindings::RET_PF_EMULATE,
            RetPf::WriteProtected => bindings::RET_PF_WRITE_PROTECTED,
            RetPf::Fixed => bindings::RET_PF_FIXED,
            RetPf::Spurious => bindings::RET_PF_SPURIOUS,
        };
        code as c_int
    }

    /// Maps up to `nr_pages` pages from `gfn` on that the guest has not touched yet, while that is
    /// simple. The page before was just mapped by 4 KiB, for `KVM_PRE_FAULT_MEMORY`. Returns how
    /// many are mapped now. No lock is held, but `kvm->srcu`.
    fn kvm_rs_prefault(vcpu: *mut bindings::kvm_vcpu, gfn: bindings::gfn_t, nr_pages: u64) -> u64 {
        let vcpu = wrap!(Vcpu, vcpu);
        let srcu = held!(Srcu, vcpu.vm());
        let range = GfnRange::new(Gfn(gfn), Gfn(gfn).add(nr_pages));

        // SAFETY: The vCPU has loaded the root, and holds a reference to it.
        unsafe { root::loaded(vcpu.root()) }
            .map_or(0, |root| prefault::prefault(vcpu, &srcu, root, range))
    }

    /// Maps some of the `pages` pages around the one that `fault` has mapped, if there was none,
    /// and it is one of 4 KiB. No lock is held, but `kvm->srcu`.
    fn kvm_rs_fault_around(
        vcpu: *mut bindings::kvm_vcpu,
        fault: *mut bindings::kvm_page_fault,
        pages: c_uint,
    ) {
        let (vcpu, fault) = (wrap!(Vcpu, vcpu), wrap!(Fault, fault));

        // A page that was mapped, and did not allow the access, says nothing of its neighbours.
        if fault.prefetch() || fault.present() || fault.goal_level() != Some(Level::Page4K) {
            return;
        }
        let srcu = held!(Srcu, vcpu.vm());
        // SAFETY: The vCPU has loaded the root, and holds a reference to it.
        let root = unsafe { root::loaded(vcpu.root()) };

        if let (Some(root), Some(slot)) = (root, fault.slot()) {
            prefault::around(vcpu, &srcu, root, slot, fault.gfn(), pages.into());
        }
    }

    /// Makes a range old, and returns whether it was young. No lock is held.
    fn kvm_tdp_mmu_age_gfn_range(
        kvm: *mut bindings::kvm,
        range: *mut bindings::kvm_gfn_range,
    ) -> bool {
        age(
            wrap!(Vm, kvm),
            wrap!(NotifierRange, range),
            Age::TestAndClear,
        )
    }

    /// Whether a range is young. No lock is held.
    fn kvm_tdp_mmu_test_age_gfn(
        kvm: *mut bindings::kvm,
        range: *mut bindings::kvm_gfn_range,
    ) -> bool {
        age(wrap!(Vm, kvm), wrap!(NotifierRange, range), Age::Test)
    }

    /// Write-protects a slot. `mmu_lock` is held for read. Returns whether a flush is due.
    fn kvm_tdp_mmu_wrprot_slot(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        min_level: c_int,
    ) -> bool {
        let vm = wrap!(Vm, kvm);
        let mut lock = held!(Shared, vm);

        level(vm, min_level).is_some_and(|min_level| {
            protect::write_protect_slot(&mut lock, wrap!(Memslot, slot), min_level)
        })
    }

    /// Clears the dirty state of a slot. `mmu_lock` is held for read.
    fn kvm_tdp_mmu_clear_dirty_slot(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
    ) {
        protect::clear_dirty_slot(&mut held!(Shared, wrap!(Vm, kvm)), wrap!(Memslot, slot));
    }

    /// Clears the dirty state of up to 64 pages. `mmu_lock` is held for write.
    fn kvm_tdp_mmu_clear_dirty_pt_masked(
        kvm: *mut bindings::kvm,
        slot: *mut bindings::kvm_memory_slot,
        gfn: bindings::gfn_t,
        mask: c_ulong,
        wrprot: bool,
    ) {
        protect::clear_dirty_masked(
            &held!(Exclusive, wrap!(Vm, kvm)),
            wrap!(Memslot, slot),
            Gfn(gfn),
            mask as u64,
            wrprot,
        );
    }

    /// Write-protects a frame for page tracking. `mmu_lock` is held for write. Returns whether a
    /// flush is due.
    fn kvm_tdp_mmu_write_protect_gfn(
        kvm: *mut bindings::kvm,
        slot: *mut bindings::kvm_memory_slot,
        gfn: bindings::gfn_t,
        min_level: c_int,
    ) -> bool {
        let vm = wrap!(Vm, kvm);
        let lock = held!(Exclusive, vm);

        level(vm, min_level).is_some_and(|min_level| {
            protect::protect_gfn(
                &lock,
                wrap!(Memslot, slot),
                Gfn(gfn),
                min_level,
                Protect::Tracking,
            )
        })
    }

    /// Splits huge pages. `mmu_lock` is held, for read if `shared`; it is dropped to allocate.
    fn kvm_tdp_mmu_try_split_huge_pages(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
        target_level: c_int,
        shared: bool,
    ) {
        let vm = wrap!(Vm, kvm);
        let slot = wrap!(Memslot, slot);
        let range = GfnRange::new(Gfn(start), Gfn(end));
        let Some(target) = level(vm, target_level) else {
            return;
        };

        if shared {
            split::try_split_huge_pages(&mut held!(Shared, vm), slot, range, target);
        } else {
            split::try_split_huge_pages(&mut held!(Exclusive, vm), slot, range, target);
        }
    }

    /// Starts to log a memslot, splitting its huge pages if `eager_page_split` is set, unless
    /// logging begins with all bits set. `slots_lock` is held; takes `mmu_lock` and flushes.
    /// Returns false, having done nothing, if there is no TDP MMU.
    fn kvm_rs_start_dirty_log(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
    ) -> bool {
        let vm = wrap!(Vm, kvm);

        if !vm.uses_tdp_mmu() {
            return false;
        }
        let mut slots = held!(SlotsLock, vm);

        if vm.dirty_log_initially_set() {
            // Userspace sets that without `slots_lock`. If it was not set in
            // `kvm_rs_prepare_dirty_log()`, D bits are ignored until now.
            Vm::dirty_log_started(&slots);
        } else {
            enable::enable(&mut slots, wrap!(Memslot, slot));
        }
        true
    }

    /// Takes all bits of a memslot's dirty bitmap into `buffer`, which is zeroed and as long as the
    /// bitmap, and protects their pages again; `KVM_GET_DIRTY_LOG` in legacy mode. `slots_lock` is
    /// held; takes `mmu_lock` and flushes. Returns 0, or `-EINTR` with all bits back in the bitmap.
    fn kvm_rs_get_dirty_log(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        buffer: *mut c_ulong,
    ) -> c_int {
        let slot = wrap!(Memslot, slot);
        let words = slot.range().pages().div_ceil(WORD_PAGES);
        // SAFETY: The slot is logged, so it has a bitmap. The buffer is the second half of its
        // allocation, as long as the bitmap, which nobody else uses while `slots_lock` is held and
        // no range is claimed.
        let log = unsafe { dirty_bitmap(slot, 0, words as usize, buffer, Wanted::All) };

        // Manual protection, which initially-all-set goes with, is not legacy mode.
        reap(kvm, slot, log, HugePages::Protected)
    }

    /// Sets the bits of the pages of a memslot whose leaves have D set, if the VM is logged by D
    /// bits; `KVM_GET_DIRTY_LOG` in manual mode. `buffer` is the second half of the bitmap.
    /// `slots_lock` is held; takes `mmu_lock`. Returns 0, or `-EINTR`.
    fn kvm_rs_harvest_dirty_log(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        buffer: *mut c_ulong,
    ) -> c_int {
        if !wrap!(Vm, kvm).logs_by_dirty_bits() {
            return 0;
        }
        harvest(kvm, wrap!(Memslot, slot), buffer)
    }

    /// Clears old D bits of a memslot that was logged by faults, when the VM goes over to D bits.
    /// `slots_lock` is held; takes `mmu_lock`.
    fn kvm_rs_forget_dirty_bits(kvm: *mut bindings::kvm, slot: *const bindings::kvm_memory_slot) {
        let vm = wrap!(Vm, kvm);

        dirty_bits::forget(&held!(SlotsLock, vm), wrap!(Memslot, slot));
    }

    /// Clears the bits of a memslot's dirty bitmap that are set in `buffer`, which has `words`
    /// words, from `first_page` on, and protects their pages again; `KVM_CLEAR_DIRTY_LOG`.
    /// Overwrites `buffer`. `slots_lock` is held; takes `mmu_lock` and flushes. Returns 0, or
    /// `-EINTR` with only the bits of the first part of the range cleared.
    fn kvm_rs_clear_dirty_log(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        first_page: u64,
        words: c_ulong,
        buffer: *mut c_ulong,
    ) -> c_int {
        let slot = wrap!(Memslot, slot);
        let first_word = (first_page / WORD_PAGES) as usize;
        // SAFETY: C has checked the range against the slot, which has a bitmap. The buffer is the
        // same range of the second half of it, which is this thread's while `slots_lock` is held
        // and no range is claimed.
        let log = unsafe { dirty_bitmap(slot, first_word, words, buffer, Wanted::Requested) };

        reap(kvm, slot, log, HugePages::of(wrap!(Vm, kvm)))
    }

    /// The same for one of several threads, which has claimed these words of the memslot's log with
    /// `begin_clear()`, and does not hold `slots_lock`. `accounted` says whether the
    /// statistics of `mmu_lock` count it. Also returns `-EAGAIN` if shadow pages came; then the
    /// bits of the last part of the range are left set.
    fn kvm_rs_clear_dirty_range(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        first_page: u64,
        words: c_ulong,
        buffer: *mut c_ulong,
        accounted: bool,
    ) -> c_int {
        let vm = wrap!(Vm, kvm);
        let range = held!(ClearRange, vm);
        let slot = wrap!(Memslot, slot);
        let first_word = (first_page / WORD_PAGES) as usize;
        // SAFETY: C has checked the range against the slot, which has a bitmap. The buffer is the
        // same range of the second half of it, which is this thread's while the range is claimed.
        let log = unsafe { dirty_bitmap(slot, first_word, words, buffer, Wanted::Requested) };
        let reaper = Reaper::OneOf { range, accounted };

        errno(Reap::new(reaper, slot, log, HugePages::of(vm)).run())
    }

    /// Recovers huge pages in a memslot, and makes the pages writable that stay as they are.
    /// `slots_lock` is held, and `mmu_lock` for read.
    fn kvm_tdp_mmu_recover_huge_pages(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
    ) {
        let vm = wrap!(Vm, kvm);
        let slots = held!(SlotsLock, vm);

        recover::recover_huge_pages(
            &mut held!(Shared, vm, Disable),
            &slots,
            wrap!(Memslot, slot),
        );
    }

    /// Splits the huge pages of part of a memslot, before it is logged. `kvm->srcu` is held, and
    /// the memslot was looked up under it; takes `mmu_lock`. Returns 0, `-ENOMEM` or `-EINTR`.
    fn kvm_rs_split_range(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
        target_level: c_int,
    ) -> c_int {
        let vm = wrap!(Vm, kvm);
        let srcu = held!(Srcu, vm);
        let range = GfnRange::new(Gfn(start), Gfn(end));
        let target = level(vm, target_level).ok_or(EINVAL);

        errno(
            target.and_then(|target| ahead::split(vm, &srcu, wrap!(Memslot, slot), range, target)),
        )
    }

    /// Recovers the huge pages of part of a memslot. `kvm->srcu` is held, and the memslot was
    /// looked up under it; takes `mmu_lock` and flushes. Returns 0, or `-EBUSY` if the memslot is
    /// logged.
    fn kvm_rs_recover_range(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
    ) -> c_int {
        let vm = wrap!(Vm, kvm);
        let srcu = held!(Srcu, vm);
        let range = GfnRange::new(Gfn(start), Gfn(end));

        errno(ahead::recover(vm, &srcu, wrap!(Memslot, slot), range))
    }

    /// Records the SPTEs on the path to a byte address in `sptes`, an array of at least six
    /// elements that is indexed by level. Returns the lowest level reached, or -1. RCU is held.
    fn kvm_tdp_mmu_get_walk(
        vcpu: *mut bindings::kvm_vcpu,
        addr: u64,
        sptes: *mut u64,
        root_level: *mut c_int,
    ) -> c_int {
        let vcpu = wrap!(Vcpu, vcpu);
        let guard = rcu::read_lock();
        let gfn = Gfn(addr >> crate::pure::addr::PAGE_SHIFT);
        let role_level = vcpu.root_role().level().map_or(0, Level::raw);

        // SAFETY: C passes a valid pointer.
        unsafe { root_level.write(role_level) };
        // SAFETY: C passes an array of that many elements; none of them needs to have a value.
        let sptes = unsafe { &mut *sptes.cast::<[MaybeUninit<u64>; WALK_LEN]>() };
        // SAFETY: The vCPU has loaded the root, and holds a reference to it.
        let Some(root) = (unsafe { root::loaded(vcpu.root()) }) else {
            return -1;
        };

        lookup::record_path(vcpu.vm(), &guard, root, gfn, sptes).map_or(-1, Level::raw)
    }

    /// The slot of the last SPTE on the path to `gfn`, and its value. RCU is held, and the slot may
    /// be used as long. Mirror roots have no fast page fault.
    fn kvm_tdp_mmu_fast_pf_get_last_sptep(
        vcpu: *mut bindings::kvm_vcpu,
        gfn: bindings::gfn_t,
        spte: *mut u64,
    ) -> *mut u64 {
        let vcpu = wrap!(Vcpu, vcpu);
        let guard = rcu::read_lock();

        // SAFETY: The vCPU has loaded the root, and holds a reference to it.
        let Some(root) = (unsafe { root::loaded(vcpu.root()) }) else {
            return core::ptr::null_mut();
        };
        let (sptep, value) = lookup::last_on_path(vcpu.vm(), &guard, root, Gfn(gfn));

        // SAFETY: C passes a valid pointer.
        unsafe { spte.write(value.raw()) };
        sptep.as_ptr()
    }

    /// Whether a present SPTE has to be updated atomically.
    fn spte_needs_atomic_update(spte: u64) -> bool {
        // SAFETY: The SPTE is that of a VM.
        unsafe { with_masks(|masks| Spte(spte).is_volatile(masks)) }
    }

    /// Makes a leaf for the shadow MMU. `mmu_lock` is held for write. Returns whether it was
    /// write-protected for shadow paging.
    fn make_spte(
        vcpu: *mut bindings::kvm_vcpu,
        sp: *mut bindings::kvm_mmu_page,
        slot: *const bindings::kvm_memory_slot,
        pte_access: c_uint,
        gfn: bindings::gfn_t,
        pfn: bindings::kvm_pfn_t,
        old_spte: u64,
        prefetch: bool,
        synchronizing: bool,
        host_writable: bool,
        new_spte: *mut u64,
    ) -> bool {
        let slot = wrap!(Memslot, slot);
        let request = LeafRequest {
            // SAFETY: C has looked the memslot up by the frame, and maps no page that is not all in
            // it.
            page: unsafe { SlotGfn::new_unchecked(slot, Gfn(gfn)) },
            access: pte_access,
            pfn: Pfn(pfn),
            old: Spte(old_spte),
            prefetch,
            synchronizing,
            host_writable,
        };
        let (vcpu, sp) = (wrap!(Vcpu, vcpu), wrap_non_null!(Sp, sp));
        let lock = held!(Exclusive, vcpu.vm());
        let (spte, write_protected) = spte::make_leaf(&lock, vcpu, sp, &request, vcpu.vm().masks());

        // Before the leaf is installed, as in C, which only the write lock makes right.
        spte::log_writable(vcpu.vm(), request.page, spte);

        // SAFETY: C passes a valid pointer.
        unsafe { new_spte.write(spte.raw()) };
        write_protected
    }

    /// Makes a leaf of a table that replaces a huge one.
    fn make_small_spte(
        kvm: *mut bindings::kvm,
        huge_spte: u64,
        role: bindings::kvm_mmu_page_role,
        index: c_int,
    ) -> u64 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let vm = wrap!(Vm, kvm);

        spte::make_small(vm, Spte(huge_spte), word(role), index, vm.masks()).raw()
    }

    /// Makes the huge leaf that replaces a table.
    fn make_huge_spte(kvm: *mut bindings::kvm, small_spte: u64, huge_level: c_int) -> u64 {
        let vm = wrap!(Vm, kvm);
        let level = level(vm, huge_level).unwrap_or(Level::Page4K);

        spte::make_huge(vm, Spte(small_spte), level, vm.masks()).raw()
    }

    /// Makes an entry that points to a table.
    fn make_nonleaf_spte(child_pt: *mut u64, ad_disabled: bool) -> u64 {
        // SAFETY: An address computation on an address in the direct map, where tables live.
        let hpa = Hpa(unsafe { bindings::kvm_rs_pa(child_pt) });

        // SAFETY: The table is that of a VM.
        unsafe { with_masks(|masks| leaf::table(hpa, ad_disabled, masks)) }.raw()
    }

    /// Makes an entry that caches MMIO.
    fn make_mmio_spte(vcpu: *mut bindings::kvm_vcpu, gfn: u64, access: c_uint) -> u64 {
        let vcpu = wrap!(Vcpu, vcpu);

        spte::make_mmio(vcpu, Gfn(gfn), access, vcpu.vm().masks()).raw()
    }

    /// Takes the accessed state away from a leaf.
    fn mark_spte_for_access_track(spte: u64) -> u64 {
        // SAFETY: The SPTE is that of a VM.
        unsafe { with_masks(|masks| pte::mark_access_track(Spte(spte), masks)) }.raw()
    }
}
