// SPDX-License-Identifier: GPL-2.0

//! The memory for splitting huge pages of the shadow MMU, allocated while `mmu_lock` is dropped.
//!
//! A split takes a page header, a page table, a descriptor for each frame that already has another
//! leaf, and one more if the new page gets a second parent. How many it will be is not known in
//! advance, so a split only begins with enough for the worst case ([`DESC_MIN`]). Most guests don't
//! alias frames, so hardly any descriptor is ever used, and the cache is filled once.
//!
//! The caches belong to the VM and stay filled between calls, because `KVM_CLEAR_DIRTY_LOG` comes
//! in small pieces. They are charged to the memcg of the thread that fills them, and freed when
//! dirty logging of a slot ends, or with the VM.

#![expect(unsafe_code)]

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::error::{
    to_result,
    Result, //
};

use crate::{
    bindings,
    pte::Sptep,
    pure::{
        addr::ENTRIES,
        Gfn, //
    },
    rmap::DescCache,
    sync::{
        Exclusive,
        SlotsLock,
        Unlocked, //
    },
    sys::{
        Sp,
        Vm, //
    }, //
};

/// How many descriptors a split may need: one for each leaf, and one for the parents of the page.
const DESC_MIN: i32 = ENTRIES as i32 + 1;

/// How many descriptors to allocate: enough for several splits of pages with a few aliases.
const DESC_CAPACITY: i32 = DESC_MIN + bindings::KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE as i32;

/// The VM's caches for splitting.
///
/// # Invariants
///
/// `slots_lock` of the VM, which guards them, is held during `'v`.
pub(crate) struct ShadowSplitCaches<'v>(Vm<'v>, PhantomData<&'v mut ()>);

impl<'v> ShadowSplitCaches<'v> {
    /// The caches of the VM whose lock is held.
    pub(crate) fn new(lock: &'v mut SlotsLock<'_>) -> Self {
        // INVARIANT: The token is borrowed exclusively for `'v`.
        ShadowSplitCaches(lock.vm(), PhantomData)
    }

    /// The VM whose they are.
    #[inline]
    pub(crate) fn vm(&self) -> Vm<'v> {
        self.0
    }

    fn descs(&self) -> *mut bindings::kvm_mmu_memory_cache {
        // SAFETY: The VM exists; the address of a field.
        unsafe { &raw mut (*self.0.as_ptr()).arch.split_desc_cache }
    }

    fn headers(&self) -> *mut bindings::kvm_mmu_memory_cache {
        // SAFETY: The VM exists; the address of a field.
        unsafe { &raw mut (*self.0.as_ptr()).arch.split_page_header_cache }
    }

    fn tables(&self) -> *mut bindings::kvm_mmu_memory_cache {
        // SAFETY: The VM exists; the address of a field.
        unsafe { &raw mut (*self.0.as_ptr()).arch.split_shadow_page_cache }
    }

    /// Whether there is enough for one split in the worst case.
    pub(crate) fn is_ready(&self) -> bool {
        let has = |cache: *mut bindings::kvm_mmu_memory_cache, min: i32| {
            // SAFETY: The cache exists, and `slots_lock` is held.
            unsafe { (*cache).nobjs >= min }
        };

        has(self.descs(), DESC_MIN) && has(self.headers(), 1) && has(self.tables(), 1)
    }

    /// Makes [`ShadowSplitCaches::is_ready`] true, or fails. What was allocated stays in the
    /// caches.
    pub(crate) fn top_up(&mut self, _unlocked: &Unlocked) -> Result {
        // SAFETY: May sleep, as `mmu_lock` is not held; `slots_lock` is.
        to_result(unsafe {
            bindings::__kvm_mmu_topup_memory_cache(self.descs(), DESC_CAPACITY, DESC_MIN)
        })?;
        // SAFETY: As above.
        to_result(unsafe { bindings::kvm_mmu_topup_memory_cache(self.headers(), 1) })?;
        // SAFETY: As above.
        to_result(unsafe { bindings::kvm_mmu_topup_memory_cache(self.tables(), 1) })
    }

    /// The cache of descriptors.
    #[inline]
    pub(crate) fn desc_cache(&mut self) -> DescCache<'_> {
        // SAFETY: The address of a field is not null.
        let cache = unsafe { NonNull::new_unchecked(self.descs()) };
        // SAFETY: It is a cache of zeroed descriptors, and guarded by `slots_lock`.
        unsafe { DescCache::from_raw(cache) }
    }

    /// A direct page that can replace the huge leaf at `huge`, which maps `gfn` with `access`: a
    /// new one, or an existing one, if the frames are mapped in the same way elsewhere.
    pub(crate) fn page_for<'s>(
        &mut self,
        _lock: &Exclusive<'_>,
        huge: Sptep<'s>,
        gfn: Gfn,
        access: u32,
    ) -> Sp<'s> {
        // SAFETY: The VM and the leaf exist, and the locks are held; the caches are filled, or C
        // warns and allocates atomically.
        let sp = unsafe {
            bindings::kvm_rs_get_split_sp(self.0.as_ptr(), huge.as_ptr(), gfn.raw(), access)
        };
        // SAFETY: C never returns null.
        let sp = unsafe { NonNull::new_unchecked(sp) };
        // SAFETY: Shadow pages are freed under `mmu_lock` held for write, by flows that zap; as
        // long as `huge` is valid there is none. C may have zapped a page that is out of date with
        // the guest page table at `gfn`: it is of the last level, so `huge` is not in it, and the
        // result is direct.
        unsafe { Sp::from_raw(sp) }
    }

    /// Replaces the huge leaf at `huge` by the table of `sp`, removes the leaf from its list, and
    /// flushes if `flush`.
    pub(crate) fn link(&mut self, _lock: &Exclusive<'_>, huge: Sptep<'_>, sp: Sp<'_>, flush: bool) {
        // SAFETY: All exist, and the locks are held.
        unsafe { bindings::kvm_rs_link_sp(self.0.as_ptr(), huge.as_ptr(), sp.as_ptr(), flush) }
    }
}
