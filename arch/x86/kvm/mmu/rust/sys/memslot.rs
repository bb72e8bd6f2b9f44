// SPDX-License-Identifier: GPL-2.0

//! Memslots, and the ranges of MMU notifiers.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::{
    bindings,
    pure::{
        Gfn,
        GfnRange, //
    },
    sync::{
        SlotsLock,
        Srcu, //
    },
    sys::Vm, //
};

/// A memslot: `struct kvm_memory_slot`.
///
/// # Invariants
///
/// Points to a memslot that exists for `'a`. Its fields are constant; to change a memslot, KVM
/// replaces it.
#[derive(Clone, Copy)]
pub(crate) struct Memslot<'a>(NonNull<bindings::kvm_memory_slot>, PhantomData<&'a ()>);

impl Memslot<'_> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `slot` must point to a memslot that exists for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(slot: *const bindings::kvm_memory_slot) -> Self {
        // SAFETY: A pointer to a memslot is not null.
        let ptr = unsafe { NonNull::new_unchecked(slot.cast_mut()) };
        // INVARIANT: By this function's safety requirement.
        Memslot(ptr, PhantomData)
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *const bindings::kvm_memory_slot {
        self.0.as_ptr()
    }

    getters! {
        /// The address space that the slot belongs to (1 for SMM).
        as_id -> u16 = as_id;
        /// The first guest frame of the slot.
        base_gfn -> Gfn = base_gfn, Gfn;
        /// The number of guest frames in the slot.
        npages -> usize = npages;
    }

    /// The guest frames of the slot.
    #[inline]
    pub(crate) fn range(self) -> GfnRange {
        GfnRange::new(self.base_gfn(), self.base_gfn().add(self.npages() as u64))
    }

    /// Whether writes to the slot are logged.
    #[inline]
    pub(crate) fn dirty_track_enabled(self) -> bool {
        // SAFETY: The slot exists; its flags are constant.
        unsafe { bindings::kvm_rs_slot_dirty_track_enabled(self.as_ptr()) }
    }

    /// Whether the slot's pages are those that userspace has mapped, and no rule of their own
    /// decides about mapping them. The APIC access page and memory of guest_memfd are not plain.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        // SAFETY: The slot exists; what is read is constant.
        unsafe { bindings::kvm_rs_slot_is_plain(self.as_ptr()) }
    }
}

/// A guest frame, and the memslot that holds it.
///
/// # Invariants
///
/// `gfn` is one of the frames of `slot`.
#[derive(Clone, Copy)]
pub(crate) struct SlotGfn<'a> {
    slot: Memslot<'a>,
    gfn: Gfn,
}

impl<'a> SlotGfn<'a> {
    /// `gfn` in `slot`; `None` if it is not there.
    #[inline]
    pub(crate) fn new(slot: Memslot<'a>, gfn: Gfn) -> Option<Self> {
        // INVARIANT: Just checked.
        slot.range().contains(gfn).then_some(SlotGfn { slot, gfn })
    }

    /// The same where C says that `gfn` is in `slot`.
    ///
    /// # Safety
    ///
    /// `gfn` must be one of the frames of `slot`.
    #[inline]
    pub(crate) unsafe fn new_unchecked(slot: Memslot<'a>, gfn: Gfn) -> Self {
        kvm_mmu_warn_on!(!slot.range().contains(gfn));
        // INVARIANT: By this function's safety requirement.
        SlotGfn { slot, gfn }
    }

    /// The memslot.
    #[inline]
    pub(crate) fn slot(self) -> Memslot<'a> {
        self.slot
    }

    /// The frame.
    #[inline]
    pub(crate) fn gfn(self) -> Gfn {
        self.gfn
    }

    /// Marks the frame as dirty in the log.
    pub(crate) fn mark_dirty(self, vm: Vm<'_>) {
        // SAFETY: The VM and its slot exist, and by the type invariant the frame is in the slot.
        unsafe {
            bindings::mark_page_dirty_in_slot(vm.as_ptr(), self.slot.as_ptr(), self.gfn.raw())
        }
    }
}

/// A memslot, and proof that writes to it are not logged, and that no page of it is protected for a
/// log as long as the value exists.
///
/// # Invariants
///
/// `slot` is published as not logged, or it was when it was looked up. Whoever enables its log
/// holds `slots_lock`, and between publishing it as logged and protecting the first page waits for
/// the readers of `kvm->srcu`. One of the two keeps that from happening for `'p`.
#[derive(Clone, Copy)]
pub(crate) struct Unlogged<'p> {
    slot: Memslot<'p>,
    slots_locked: bool,
}

impl<'p> Unlogged<'p> {
    /// For a slot that is not logged, while `slots_lock` keeps it as it is.
    pub(crate) fn under_slots_lock(slot: Memslot<'p>, _slots: &'p SlotsLock<'_>) -> Option<Self> {
        // INVARIANT: Nobody else has `slots_lock`.
        Unlogged::new(slot, true)
    }

    fn new(slot: Memslot<'p>, slots_locked: bool) -> Option<Self> {
        (!slot.dirty_track_enabled()).then_some(Unlogged { slot, slots_locked })
    }

    /// The memslot.
    #[inline]
    pub(crate) fn slot(self) -> Memslot<'p> {
        self.slot
    }

    /// Whether it is `slots_lock` that is held, so that nobody changes attributes of the memory
    /// (`KVM_SET_MEMORY_ATTRIBUTES`) either.
    #[inline]
    pub(crate) fn is_under_slots_lock(self) -> bool {
        self.slots_locked
    }

    /// For a slot that is not logged, in the SRCU section in which it was looked up: without
    /// `slots_lock`, it need not exist in any other, so that `'p` is part of this one.
    pub(crate) fn in_srcu(slot: Memslot<'p>, _srcu: &'p Srcu<'_>) -> Option<Self> {
        // INVARIANT: Whoever replaces the slot waits for the end of the section.
        Unlogged::new(slot, false)
    }
}

/// Consecutive guest frames, and the memslot that holds them.
///
/// # Invariants
///
/// All frames of `range` are frames of `slot`.
#[derive(Clone, Copy)]
pub(crate) struct SlotRange<'a> {
    slot: Memslot<'a>,
    range: GfnRange,
}

impl<'a> SlotRange<'a> {
    /// The frames of `range` that are in `slot`.
    #[inline]
    pub(crate) fn new(slot: Memslot<'a>, range: GfnRange) -> Self {
        // INVARIANT: Frames that are not in the slot are left out.
        SlotRange {
            slot,
            range: slot.range().intersection(range),
        }
    }

    /// All frames of `slot`.
    #[inline]
    pub(crate) fn whole(slot: Memslot<'a>) -> Self {
        // INVARIANT: They are its frames.
        SlotRange {
            slot,
            range: slot.range(),
        }
    }

    /// The memslot.
    #[inline]
    pub(crate) fn slot(self) -> Memslot<'a> {
        self.slot
    }

    /// The frames.
    #[inline]
    pub(crate) fn range(self) -> GfnRange {
        self.range
    }
}

/// The range of an MMU notifier: `struct kvm_gfn_range`.
///
/// # Invariants
///
/// Points to a range that exists for `'a` and does not change, of a memslot that exists as long and
/// holds all frames of the range.
#[derive(Clone, Copy)]
pub(crate) struct NotifierRange<'a>(NonNull<bindings::kvm_gfn_range>, PhantomData<&'a ()>);

impl<'a> NotifierRange<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `range` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(range: *mut bindings::kvm_gfn_range) -> Self {
        // SAFETY: A pointer to a range is not null.
        let ptr = unsafe { NonNull::new_unchecked(range) };
        // INVARIANT: By this function's safety requirement.
        NotifierRange(ptr, PhantomData)
    }

    /// C's pointer.
    #[inline]
    fn as_ptr(self) -> *const bindings::kvm_gfn_range {
        self.0.as_ptr()
    }

    getters! {
        /// The first guest frame.
        start -> Gfn = start, Gfn;
        /// The first guest frame after the range.
        end -> Gfn = end, Gfn;
        /// Whether the handler may sleep.
        may_block -> bool = may_block;
        /// Whether private or shared mappings are affected, as bits.
        filter -> bindings::kvm_gfn_range_filter = attr_filter;
    }

    /// The guest frames.
    #[inline]
    pub(crate) fn range(self) -> GfnRange {
        GfnRange::new(self.start(), self.end())
    }

    /// The memslot that the frames belong to.
    #[inline]
    pub(crate) fn slot(self) -> Memslot<'a> {
        // SAFETY: By the type invariant.
        let slot = unsafe { (*self.as_ptr()).slot };
        // SAFETY: By the type invariant, the slot exists for `'a`.
        unsafe { Memslot::from_raw(slot) }
    }

    /// The guest frames, and the memslot that holds them.
    #[inline]
    pub(crate) fn pages(self) -> SlotRange<'a> {
        // INVARIANT: By the type invariant.
        SlotRange {
            slot: self.slot(),
            range: self.range(),
        }
    }

    /// Whether private mappings are affected.
    #[inline]
    pub(crate) fn affects_private(self) -> bool {
        self.filter() & bindings::kvm_gfn_range_filter_KVM_FILTER_PRIVATE != 0
    }

    /// Whether shared mappings are affected.
    #[inline]
    pub(crate) fn affects_shared(self) -> bool {
        self.filter() & bindings::kvm_gfn_range_filter_KVM_FILTER_SHARED != 0
    }
}
