// SPDX-License-Identifier: GPL-2.0

//! The vCPU.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::{
    bindings,
    pure::{
        Gfn,
        Hpa,
        Level,
        Role,
        Spte, //
    },
    sync::{
        Holder,
        Lock,
        Shared, //
    },
    sys::{
        Memslot,
        Vm, //
    }, //
};

/// A vCPU, on whose thread the MMU runs.
///
/// # Invariants
///
/// Points to a vCPU that exists for `'a`, is loaded on this thread, and has an MMU.
#[derive(Clone, Copy)]
pub(crate) struct Vcpu<'a>(NonNull<bindings::kvm_vcpu>, PhantomData<&'a ()>);

impl<'a> Vcpu<'a> {
    /// Wraps C's pointer.
    ///
    /// # Safety
    ///
    /// `vcpu` must satisfy the type invariant.
    #[inline]
    pub(crate) unsafe fn from_raw(vcpu: *mut bindings::kvm_vcpu) -> Self {
        // SAFETY: A pointer to a vCPU is not null.
        let ptr = unsafe { NonNull::new_unchecked(vcpu) };
        // INVARIANT: By this function's safety requirement.
        Vcpu(ptr, PhantomData)
    }

    /// C's pointer.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm_vcpu {
        self.0.as_ptr()
    }

    /// The VM.
    #[inline]
    pub(crate) fn vm(self) -> Vm<'a> {
        // SAFETY: The vCPU exists; the field is constant.
        let kvm = unsafe { (*self.as_ptr()).kvm };
        // SAFETY: A VM outlives its vCPUs.
        unsafe { Vm::from_raw(kvm) }
    }

    /// Takes `mmu_lock` for read and runs `f`, which does not yield, under it. Wait and hold are
    /// accounted like those of a fault.
    #[inline]
    pub(crate) fn with_shared<R>(self, f: impl FnOnce(&mut Shared<'a>) -> R) -> R {
        // SAFETY: The vCPU exists and is loaded on this thread, and its VM's lock exists.
        unsafe { bindings::kvm_rs_vcpu_read_lock(self.as_ptr()) };
        let lock = Lock::new(self.vm(), Holder::Caller);
        // SAFETY: Just taken, and dropped only after the proof is gone.
        let result = f(&mut unsafe { Shared::assume_held(lock) });
        // SAFETY: Taken above.
        unsafe { bindings::kvm_rs_vcpu_read_unlock(self.as_ptr()) };
        result
    }

    /// Notes that the fault that is being handled splits a huge page, for the statistics.
    #[inline]
    pub(crate) fn note_fault_split(self) {
        // SAFETY: The vCPU exists, and is loaded on this thread, which alone writes the field.
        unsafe { bindings::kvm_rs_note_fault_split(self.as_ptr()) }
    }

    #[inline]
    fn mmu(self) -> *mut bindings::kvm_mmu {
        // SAFETY: The vCPU exists, and only its own thread changes which MMU is in use.
        unsafe { (*self.as_ptr()).arch.mmu }
    }

    /// The role of the root that the vCPU needs.
    #[inline]
    pub(crate) fn root_role(self) -> Role {
        // SAFETY: By the type invariant there is an MMU.
        let role = unsafe { &raw const (*self.mmu()).root_role };
        // CAST: All members of the union share its address, and the word is one of them.
        // SAFETY: The field is valid; only this thread changes it.
        Role(unsafe { role.cast::<u32>().read() })
    }

    /// The physical address of the loaded direct root.
    #[inline]
    pub(crate) fn root(self) -> Hpa {
        // SAFETY: By the type invariant there is an MMU.
        Hpa(unsafe { (*self.mmu()).root.hpa })
    }

    /// The physical address of the loaded mirror root.
    #[inline]
    pub(crate) fn mirror_root(self) -> Hpa {
        // SAFETY: By the type invariant there is an MMU.
        Hpa(unsafe { (*self.mmu()).mirror_root_hpa })
    }

    /// Makes `root` the direct root that the vCPU uses from its next entry on.
    pub(crate) fn set_root(self, root: Hpa) {
        let mmu = self.mmu();
        // SAFETY: By the type invariant there is an MMU, and this is the thread that may change it.
        unsafe { (*mmu).root.hpa = root.raw() };
        // SAFETY: As above.
        unsafe { (*mmu).root.pgd = 0 };
    }

    /// Makes `root` the mirror root of the vCPU.
    pub(crate) fn set_mirror_root(self, root: Hpa) {
        // SAFETY: By the type invariant there is an MMU, and this is the thread that may change it.
        unsafe { (*self.mmu()).mirror_root_hpa = root.raw() };
    }

    /// The `ACC_*` combinations that an access with page-fault error code `pfec` may not have.
    #[inline]
    pub(crate) fn denied_access(self, pfec: u64) -> u16 {
        // Bits 1 (write), 2 (user) and 4 (fetch); the others do not index the table.
        let index = ((pfec & 0x16) >> 1) as usize;
        // SAFETY: By the type invariant there is an MMU.
        let permissions = unsafe { (*self.mmu()).fmt.permissions };

        permissions.get(index).copied().unwrap_or(u16::MAX)
    }

    /// Whether the vendor has memory-type bits in SPTEs.
    #[inline]
    pub(crate) fn has_memory_types(self) -> bool {
        // SAFETY: Reads a constant of the loaded vendor module.
        unsafe { bindings::kvm_rs_has_mt_mask() }
    }

    /// The memory-type bits that the vendor wants for a page, in place. `is_mmio` is whether its
    /// frame is MMIO of the host.
    #[inline]
    pub(crate) fn memory_type(self, gfn: Gfn, is_mmio: bool) -> u64 {
        if !self.has_memory_types() {
            return 0;
        }
        // SAFETY: The vendor has the callback, and the vCPU is loaded.
        unsafe { bindings::kvm_rs_mt_mask(self.as_ptr(), gfn.raw(), is_mmio) }
    }

    /// The memslot that holds `gfn` in the vCPU's address space. It exists as long as the vCPU
    /// thread holds `kvm->srcu`, and so for `'a`.
    pub(crate) fn memslot(self, gfn: Gfn) -> Option<Memslot<'a>> {
        // SAFETY: The vCPU thread holds `kvm->srcu`, so the memslots exist.
        let slot = unsafe { bindings::kvm_vcpu_gfn_to_memslot(self.as_ptr(), gfn.raw()) };

        // SAFETY: Not null, and the vCPU thread holds `kvm->srcu`, so the slot exists.
        (!slot.is_null()).then(|| unsafe { Memslot::from_raw(slot) })
    }

    /// The generation of the vCPU's memslots, for MMIO SPTEs.
    #[inline]
    pub(crate) fn memslots_generation(self) -> u64 {
        // SAFETY: The vCPU thread holds `kvm->srcu`, so the memslots exist.
        unsafe { bindings::kvm_rs_memslots_generation(self.as_ptr()) }
    }

    /// Whether mapping host MMIO has to be recorded, for the mitigation that clears CPU buffers on
    /// entry to guests that can reach MMIO, and has not been yet.
    #[inline]
    pub(crate) fn needs_host_mmio_tracking(self) -> bool {
        // SAFETY: The vCPU is loaded and has a root.
        unsafe { bindings::kvm_rs_needs_host_mmio_tracking(self.as_ptr()) }
    }

    /// Records that the vCPU's root maps host MMIO.
    pub(crate) fn track_host_mmio(self) {
        // SAFETY: The vCPU is loaded and has a root.
        unsafe { bindings::kvm_rs_track_host_mmio(self.as_ptr()) }
    }

    /// Whether the entry sets bits that are reserved in the MMU's format.
    #[inline]
    pub(crate) fn is_reserved(self, spte: Spte, level: Level) -> bool {
        // SAFETY: By the type invariant there is an MMU.
        unsafe { bindings::kvm_rs_is_rsvd_spte(self.as_ptr(), spte.raw(), level.raw()) }
    }

    /// The bits that the MMU's format reserves in such an entry. Others may be wrong as well: on
    /// EPT some combinations of rights, and memory types, are.
    #[cold]
    pub(crate) fn reserved_bits(self, spte: Spte, level: Level) -> u64 {
        // SAFETY: By the type invariant there is an MMU, and its format has an element for every
        // level.
        unsafe { bindings::kvm_rs_rsvd_bits(self.as_ptr(), spte.raw(), level.raw()) }
    }

    /// Counts an MMIO SPTE.
    #[inline]
    pub(crate) fn count_mmio_spte(self) {
        // SAFETY: The vCPU exists, and its own thread is the only writer of its statistics.
        unsafe { (*self.as_ptr()).stat.pf_mmio_spte_created += 1 };
    }

    /// Takes a zeroed page header from the vCPU's cache.
    #[inline]
    pub(crate) fn alloc_header(self) -> *mut bindings::kvm_mmu_page {
        // SAFETY: The vCPU exists; the address of a field.
        let cache = unsafe { &raw mut (*self.as_ptr()).arch.mmu_page_header_cache };
        // SAFETY: The cache was topped up before the fault took mmu_lock, and C falls back to an
        // atomic allocation, or a BUG, rather than returning null.
        unsafe { bindings::kvm_mmu_memory_cache_alloc(cache) }.cast()
    }

    /// Takes a table of empty SPTEs from the vCPU's cache.
    #[inline]
    pub(crate) fn alloc_table(self) -> *mut u64 {
        // SAFETY: The vCPU exists; the address of a field.
        let cache = unsafe { &raw mut (*self.as_ptr()).arch.mmu_shadow_page_cache };
        // SAFETY: As in `alloc_header`.
        unsafe { bindings::kvm_mmu_memory_cache_alloc(cache) }.cast()
    }

    /// Takes a page for an external (TDX) table from the vCPU's cache.
    #[inline]
    pub(crate) fn alloc_external_table(self) -> *mut core::ffi::c_void {
        // SAFETY: The vCPU exists; the address of a field.
        let cache = unsafe { &raw mut (*self.as_ptr()).arch.mmu_external_spt_cache };
        // SAFETY: As in `alloc_header`.
        unsafe { bindings::kvm_mmu_memory_cache_alloc(cache) }
    }
}
