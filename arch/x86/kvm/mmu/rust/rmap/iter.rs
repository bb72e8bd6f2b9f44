// SPDX-License-Identifier: GPL-2.0

//! Iterating over lists for C.

#![expect(unsafe_code)]

use core::ptr::{
    self,
    NonNull, //
};

use super::{
    desc::{
        decode,
        DescPtr,
        Descs, //
    },
    encoding::{
        self,
        Cell,
        ListCursor, //
    },
    list::{
        sptep_at,
        List,
        Sptes, //
    },
    shadow, //
};
use crate::{
    bindings,
    pte::Sptep,
    sys::Sp, //
};

/// C's view of a place in a list.
pub(crate) use bindings::rmap_iterator as RmapIterator;

/// The length of a list of leaves, for C; `pte_list_count()`. It is for debugfs, so this is where
/// `CONFIG_KVM_PROVE_MMU=y` checks the list: all its leaves are present, and map the same frame.
///
/// # Safety
///
/// `mmu_lock` must be held for write.
pub(crate) unsafe fn count(list: List<'_>) -> u32 {
    let word = list.load().unlocked();
    // SAFETY: By this function's safety requirement.
    let count = encoding::count(&Descs, unsafe { decode(word) });

    if cfg!(CONFIG_KVM_PROVE_MMU) {
        let mut found = 0u32;
        let mut first = None;

        // SAFETY: By this function's safety requirement.
        for sptep in unsafe { Sptes::new(word) } {
            let sp = Sp::of_sptep(sptep);
            let level = sp.role().level();
            // SAFETY: By this function's safety requirement.
            let gfn = unsafe { sp.gfn_at_locked(shadow::index_of(sptep)) };
            let place = (level, level.map(|level| gfn.round_down(level)));

            found = found.wrapping_add(1);
            kvm_mmu_warn_on!(!sptep.read().is_present());
            kvm_mmu_warn_on!(*first.get_or_insert(place) != place);
        }
        kvm_mmu_warn_on!(found != count);
    }
    count
}

/// The first entry of a list, and the place behind it, for C.
///
/// # Safety
///
/// The list must not change during `'s`.
pub(crate) unsafe fn first<'s>(list: List<'s>) -> Option<(Sptep<'s>, RmapIterator)> {
    // SAFETY: By this function's safety requirement.
    let head = unsafe { decode(list.load().unlocked()) };
    // SAFETY: By this function's safety requirement.
    unsafe { step(ListCursor::new(head)) }
}

/// The entry at a place, and the place behind it, for C.
///
/// # Safety
///
/// `at` must come from [`first`] or from here, and the list must not have changed since, and not
/// change during `'s`.
pub(crate) unsafe fn next<'s>(at: RmapIterator) -> Option<(Sptep<'s>, RmapIterator)> {
    // INVARIANT: The list does not change.
    let desc = NonNull::new(at.desc.cast()).map(DescPtr);
    // SAFETY: By this function's safety requirement.
    unsafe { step(ListCursor::from_parts(desc, at.index as usize)) }
}

/// The entry at a cursor, and the place behind it, for C.
///
/// # Safety
///
/// The list must not change during `'s`.
unsafe fn step<'s>(mut cursor: ListCursor<DescPtr>) -> Option<(Sptep<'s>, RmapIterator)> {
    let entry = cursor.next(&Descs)?;
    let (desc, index) = cursor.parts();
    let at = RmapIterator {
        desc: desc.map_or(ptr::null_mut(), |d| d.as_ptr().cast()),
        index: index as u32,
    };

    // SAFETY: By this function's safety requirement.
    Some((unsafe { sptep_at(entry) }, at))
}
