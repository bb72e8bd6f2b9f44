// SPDX-License-Identifier: GPL-2.0

//! The C functions of the reverse map that this crate replaces; see `rust_rmap.h`.
//!
//! The rules at the head of `exports.rs` apply here as well. `mmu_lock` is held for write unless
//! stated otherwise.

#![expect(unsafe_code)]
#![expect(
    clippy::missing_safety_doc,
    reason = "the requirements are the same for all, and are listed above"
)]

use core::ptr::{
    self,
    NonNull, //
};

use kernel::ffi::{
    c_int,
    c_uint,
    c_ulong, //
};

use crate::{
    bindings,
    exports::level,
    pte::Sptep,
    pure::{
        Age,
        Gfn,
        GfnRange,
        Level,
        Protect, //
    },
    rmap::{
        self,
        ops::{
            age,
            collapse,
            link,
            protect,
            split,
            zap, //
        },
        DescCache,
        List,
        Rmap,
        RmapIterator,
        ShadowSplitCaches, //
    },
    sync::{
        Exclusive,
        SlotsLock, //
    },
    sys::{
        Memslot,
        NotifierRange,
        SlotRange,
        Vm, //
    },
    tlb::Flush, //
};

/// Gives C what an iteration has found.
fn write_cursor(iter: *mut RmapIterator, found: Option<(Sptep<'_>, RmapIterator)>) -> *mut u64 {
    let Some((sptep, at)) = found else {
        return ptr::null_mut();
    };

    // SAFETY: C passes a valid pointer.
    unsafe { iter.write(at) };
    sptep.as_ptr()
}

export! {
    /// Adds an SPTE to a list. Returns how many there were before.
    fn kvm_rs_pte_list_add(
        kvm: *mut bindings::kvm,
        cache: *mut bindings::kvm_mmu_memory_cache,
        spte: *mut u64,
        head: *mut bindings::kvm_rmap_head,
    ) -> c_int {
        let mut lock = held!(Exclusive, wrap!(Vm, kvm));
        let count = Rmap::new(&mut lock, wrap_non_null!(List, head)).add(
            &mut wrap_non_null!(DescCache, cache),
            wrap_non_null!(Sptep, spte),
        );

        count as c_int
    }

    /// Removes an SPTE from a list.
    fn kvm_rs_pte_list_remove(
        kvm: *mut bindings::kvm,
        spte: *mut u64,
        head: *mut bindings::kvm_rmap_head,
    ) {
        let mut lock = held!(Exclusive, wrap!(Vm, kvm));

        Rmap::new(&mut lock, wrap_non_null!(List, head)).remove(wrap_non_null!(Sptep, spte));
    }

    /// The length of a list of leaves.
    fn pte_list_count(head: *mut bindings::kvm_rmap_head) -> c_uint {
        let list = wrap_non_null!(List, head);
        // SAFETY: C's only caller, in debugfs, holds `mmu_lock` for write.
        unsafe { rmap::count(list) }
    }

    /// The first SPTE of a list, or null. `iter` then is behind it. `mmu_lock` is held, for read at
    /// least: `kvm_mmu_mark_parents_unsync()` comes here in faults of the TDP MMU.
    fn kvm_rs_rmap_first(head: *mut bindings::kvm_rmap_head, iter: *mut RmapIterator) -> *mut u64 {
        let list = wrap_non_null!(List, head);
        // SAFETY: C holds `mmu_lock`, and lists change only where it is held for write. A holder
        // for write does not change the list before it is done with what it gets here.
        write_cursor(iter, unsafe { rmap::first(list) })
    }

    /// The next SPTE of a list, or null. The list has not changed since the one before, as
    /// `mmu_lock` has been held, for read at least.
    fn kvm_rs_rmap_next(iter: *mut RmapIterator) -> *mut u64 {
        // SAFETY: C passes what `kvm_rs_rmap_first()` has written.
        let at = unsafe { iter.read() };
        // SAFETY: C has held `mmu_lock` since, for read at least, and does not change the list
        // until it is done with what it gets here.
        write_cursor(iter, unsafe { rmap::next(at) })
    }

    /// Adds a new leaf to the list of its frame, and accounts for it.
    fn kvm_rs_rmap_add(
        kvm: *mut bindings::kvm,
        cache: *mut bindings::kvm_mmu_memory_cache,
        slot: *const bindings::kvm_memory_slot,
        spte: *mut u64,
        gfn: bindings::gfn_t,
        access: c_uint,
    ) {
        link::add(
            &mut held!(Exclusive, wrap!(Vm, kvm)),
            &mut wrap_non_null!(DescCache, cache),
            wrap!(Memslot, slot),
            wrap_non_null!(Sptep, spte),
            Gfn(gfn),
            access,
        );
    }

    /// Removes a zapped leaf from the list of its frame.
    fn kvm_rs_rmap_remove(kvm: *mut bindings::kvm, spte: *mut u64) {
        link::remove(
            &mut held!(Exclusive, wrap!(Vm, kvm)),
            wrap_non_null!(Sptep, spte),
        );
    }

    /// Clears the dirty state of up to 64 pages, or write-protects them.
    fn kvm_rs_rmap_protect_masked(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        gfn: bindings::gfn_t,
        mask: c_ulong,
        clear_dirty: bool,
    ) {
        protect::protect_masked(
            &mut held!(Exclusive, wrap!(Vm, kvm)),
            wrap!(Memslot, slot),
            Gfn(gfn),
            mask as u64,
            Protect::for_log(clear_dirty),
        );
    }

    /// Write-protects a slot for the dirty log.
    fn kvm_rs_rmap_write_protect_slot(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        min_level: c_int,
    ) {
        let vm = wrap!(Vm, kvm);

        if let Some(min_level) = level(vm, min_level) {
            protect::protect_slot(
                &mut held!(Exclusive, vm),
                wrap!(Memslot, slot),
                min_level,
                Level::MAX_LEAF,
                Protect::Log,
            );
        }
    }

    /// Clears the dirty state of a slot. Shadow pages log 4 KiB pages only.
    fn kvm_rs_rmap_clear_dirty_slot(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
    ) {
        protect::protect_slot(
            &mut held!(Exclusive, wrap!(Vm, kvm)),
            wrap!(Memslot, slot),
            Level::Page4K,
            Level::Page4K,
            Protect::ClearDirty,
        );
    }

    /// Write-protects a frame for page tracking. Returns whether a flush is due.
    fn kvm_rs_rmap_write_protect_gfn(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        gfn: bindings::gfn_t,
        min_level: c_int,
    ) -> bool {
        let vm = wrap!(Vm, kvm);

        level(vm, min_level).is_some_and(|min_level| {
            protect::protect_gfn(
                &mut held!(Exclusive, vm),
                wrap!(Memslot, slot),
                Gfn(gfn),
                min_level,
                Protect::Tracking,
            )
        })
    }

    /// Zaps a range. Returns whether a flush is due.
    fn kvm_rs_rmap_zap_range(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
        can_yield: bool,
        flush: bool,
    ) -> bool {
        let range = GfnRange::new(Gfn(start), Gfn(end));
        let mut flush = Flush::new(flush);

        zap::zap_range(
            &mut held!(Exclusive, wrap!(Vm, kvm)),
            SlotRange::new(wrap!(Memslot, slot), range),
            can_yield,
            &mut flush,
        );
        flush.defer()
    }

    /// Splits huge pages. `slots_lock` is held.
    fn kvm_rs_rmap_split(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
        target_level: c_int,
    ) {
        let vm = wrap!(Vm, kvm);
        let range = GfnRange::new(Gfn(start), Gfn(end));
        let mut slots = held!(SlotsLock, vm);
        let mut caches = ShadowSplitCaches::new(&mut slots);

        if let Some(target) = level(vm, target_level) {
            let mut lock = held!(Exclusive, vm);

            split::split(
                &mut lock,
                SlotRange::new(wrap!(Memslot, slot), range),
                target,
                None,
                &mut caches,
            );
        }
    }

    /// Zaps what huge pages can replace.
    fn kvm_rs_rmap_zap_collapsible(
        kvm: *mut bindings::kvm,
        slot: *const bindings::kvm_memory_slot,
    ) {
        collapse::zap_collapsible(&mut held!(Exclusive, wrap!(Vm, kvm)), wrap!(Memslot, slot));
    }

    /// Ages a range, or asks for its age. No lock is held.
    fn kvm_rs_rmap_age(range: *mut bindings::kvm_gfn_range, test_only: bool) -> bool {
        let range = wrap!(NotifierRange, range);
        let what = if test_only {
            Age::Test
        } else {
            Age::TestAndClear
        };

        age::age(range.pages(), what)
    }
}
