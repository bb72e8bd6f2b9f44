// SPDX-License-Identifier: GPL-2.0

//! Pages of the host that are looked up together.

use core::mem::MaybeUninit;

use kernel::bindings::page;

use crate::{
    bindings,
    pure::{
        GfnRange,
        Pfn, //
    },
    sync::Shared,
    sys::Memslot, //
};

/// References to the host pages of consecutive frames of a memslot, which the host maps writable.
///
/// # Invariants
///
/// The first `len` elements of `pages`, at most [`HostPages::MAX`], point to host pages, and this
/// value owns a reference to each.
pub(crate) struct HostPages {
    pages: [MaybeUninit<*mut page>; HostPages::MAX],
    len: usize,
}

impl HostPages {
    /// The most pages that are looked up together. They lie on the stack, where each takes 8 bytes.
    /// With 128, the pages of a table take four lookups.
    pub(crate) const MAX: usize = 128;

    /// No pages.
    #[inline]
    pub(crate) fn new() -> Self {
        // INVARIANT: No element is meant.
        HostPages {
            pages: [const { MaybeUninit::uninit() }; HostPages::MAX],
            len: 0,
        }
    }

    /// Looks up the pages of `range` in order, as many as fit, up to the first that is not in the
    /// slot, or is not mapped writable now. Drops what was looked up before. Finds nothing if the
    /// slot is read-only, or is being deleted. Doesn't sleep.
    pub(crate) fn look_up(&mut self, slot: Memslot<'_>, range: GfnRange) {
        let within = range.intersection(slot.range());

        self.put(0);
        if within.is_empty() || within.start != range.start {
            return;
        }
        let wanted = within.pages().min(HostPages::MAX as u64);
        // SAFETY: The slot exists, and holds that many frames from there on; the array has as many
        // elements.
        let found = unsafe {
            bindings::kvm_prefetch_pages(
                slot.as_ptr().cast_mut(),
                within.start.raw(),
                self.as_mut_ptr(),
                wanted as i32,
            )
        };

        // INVARIANT: C has stored as many pages as it says, with a reference to each, or returns an
        // error.
        self.len = usize::try_from(found).unwrap_or(0);
    }

    /// The number of pages.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The frame of the page at `index`; `None` if there are not as many pages.
    #[inline]
    pub(crate) fn pfn(&self, index: usize) -> Option<Pfn> {
        let page = self.pages.get(index).filter(|_| index < self.len)?;
        // SAFETY: By the type invariant the first `len` elements have a value.
        let page = unsafe { page.assume_init() };

        // SAFETY: By the type invariant the page exists.
        Some(Pfn(unsafe { bindings::kvm_rs_page_to_pfn(page) }))
    }

    /// Drops the references. The first `used` pages are mapped now, and may be written through
    /// their leaves without further notice, so they are marked dirty. `mmu_lock` has been held
    /// since they were mapped, so that no notifier has run that would have the owner of a page
    /// write it back, or reuse it.
    pub(crate) fn release(&mut self, _lock: &Shared<'_>, used: usize) {
        self.put(used);
    }

    /// Drops the references, after marking the first `used` pages dirty, for which `mmu_lock` is
    /// held.
    fn put(&mut self, used: usize) {
        // INVARIANT: C drops all references.
        let len = core::mem::take(&mut self.len);
        let used = used.min(len);
        // SAFETY: By the type invariant, which held until now for `len` pages. `used` is at most
        // that.
        unsafe { bindings::kvm_rs_release_pages(self.as_mut_ptr(), used as i32, len as i32) }
    }

    #[inline]
    fn as_mut_ptr(&mut self) -> *mut *mut page {
        // CAST: `MaybeUninit` has the layout of what it may hold.
        self.pages.as_mut_ptr().cast()
    }
}

impl Drop for HostPages {
    fn drop(&mut self) {
        self.put(0);
    }
}
