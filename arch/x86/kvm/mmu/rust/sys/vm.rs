// SPDX-License-Identifier: GPL-2.0

//! What the MMU asks of a VM, and does to it.

use kernel::{
    error::{
        to_result,
        Result, //
    },
    ffi::c_ulong, //
};

use crate::{
    bindings,
    pure::{
        addr::{
            ENTRIES,
            PAGE_SHIFT, //
        },
        Gfn,
        GfnRange,
        Level,
        Role,
        Spte, //
    },
    sync::{
        MmuLock,
        SlotsLock, //
    },
    sys::Memslot,
    vm::Vm, //
};

/// `KVM_RS_NO_EAGER_SPLIT`.
const NO_EAGER_SPLIT: u64 = u64::MAX;

/// How far the invalidations by MMU notifiers had come when host pages were looked up;
/// `mmu_invalidate_seq`.
pub(crate) struct InvalidationSequence<'a>(Vm<'a>, c_ulong);

impl InvalidationSequence<'_> {
    /// Whether no invalidation has ended since, and none is in progress, so that what was looked up
    /// may be mapped until the lock is dropped; the opposite of `mmu_invalidate_retry()`.
    #[inline]
    pub(crate) fn is_current<'l>(&self, lock: &impl MmuLock<'l>) -> bool {
        kvm_mmu_warn_on!(self.0 != lock.vm());
        // SAFETY: The VM exists, and its `mmu_lock` is held.
        !unsafe { bindings::kvm_rs_invalidate_retry(self.0.as_ptr(), self.1) }
    }
}

impl<'a> Vm<'a> {
    // Set before there is a vCPU, and constant then.
    getters! {
        /// The value that, under the MMIO mask, distinguishes this VM's MMIO SPTEs.
        mmio_value -> u64 = arch.shadow_mmio_value;
        /// The bits that turn a private gfn into its shared alias (TDX), or 0.
        direct_bits -> u64 = arch.gfn_direct_bits;
        /// The number of entries in the vCPUs' hardware dirty logs (PML), or 0.
        cpu_dirty_log_size -> i32 = arch.cpu_dirty_log_size;
    }

    /// The alias bits that apply to the tree of a root with this role: mirror roots map private
    /// memory at its natural gfn. Corresponds to `kvm_gfn_root_bits()`.
    #[inline]
    pub(crate) fn alias_bits(self, root: Role) -> u64 {
        if root.mirror() {
            0
        } else {
            self.direct_bits()
        }
    }

    /// Whether the vCPUs have a hardware dirty log (PML).
    #[inline]
    pub(crate) fn has_cpu_dirty_log(self) -> bool {
        self.cpu_dirty_log_size() != 0
    }

    /// Whether this VM is logged by D bits ([`crate::ops::dirty_log::dirty_bits`]). Set before a
    /// logged memslot is published, and cleared when none is logged any more.
    #[inline]
    pub(crate) fn logs_by_dirty_bits(self) -> bool {
        // SAFETY: The VM exists; the helper reads a flag by a marked access.
        unsafe { bindings::kvm_rs_logs_by_dirty_bits(self.as_ptr()) }
    }

    /// Whether this VM is about to be logged by D bits, and was logged by faults. D says nothing
    /// yet. To be asked after [`Vm::logs_by_dirty_bits`].
    #[inline]
    pub(crate) fn is_switching_dirty_log(self) -> bool {
        // SAFETY: The VM exists; the helper reads a flag by a marked access.
        unsafe { bindings::kvm_rs_is_switching_dirty_log(self.as_ptr()) }
    }

    /// Sets the bits of written pages in the dirty logs of an address space. Bit 0 of `written`
    /// stands for `first`. Pages outside of logged memslots are ignored, and so are those of a
    /// memslot that is just being enabled. May be called under any lock.
    pub(crate) fn carry_dirty(self, as_id: u16, first: Gfn, written: &[u64]) {
        if written.iter().all(|word| *word == 0) {
            return;
        }
        // SAFETY: The VM exists, and `written` has that many words.
        unsafe {
            bindings::kvm_rs_carry_dirty(
                self.as_ptr(),
                as_id.into(),
                first.raw(),
                written.as_ptr(),
                written.len() as i32,
            )
        }
    }

    /// Notes that the D bits of the memslot that is being enabled count as writes from now on.
    pub(crate) fn dirty_log_started(slots: &SlotsLock<'a>) {
        // SAFETY: The VM exists; the helper sets a field by a marked access.
        unsafe { bindings::kvm_rs_dirty_log_started(slots.vm().as_ptr()) }
    }

    /// Whether pages of this role log writes by write protection although they have A/D bits: under
    /// PML the logged addresses of an L2 guest would be L2's, not L1's. Corresponds to
    /// `kvm_mmu_page_ad_need_write_protect()`.
    #[inline]
    pub(crate) fn ad_need_write_protect(self, role: Role) -> bool {
        role.guest_mode() && self.has_cpu_dirty_log()
    }

    /// Whether executable huge pages are forbidden at the moment (`kvm.nx_huge_pages`, unless the
    /// VM has opted out).
    #[inline]
    pub(crate) fn nx_huge_pages(self) -> bool {
        // SAFETY: The VM exists; the helper reads the parameter by a marked access.
        unsafe { bindings::kvm_rs_nx_huge_pages(self.as_ptr()) }
    }

    /// Whether the VM has mirror roots (TDX).
    #[inline]
    pub(crate) fn has_mirrored_tdp(self) -> bool {
        // SAFETY: The VM exists; its type is constant.
        unsafe { bindings::kvm_rs_has_mirrored_tdp(self.as_ptr()) }
    }

    /// Whether the guest may have private memory, so that each page has attributes of its own.
    #[inline]
    pub(crate) fn has_private_mem(self) -> bool {
        // SAFETY: The VM exists; its type is constant.
        unsafe { bindings::kvm_rs_has_private_mem(self.as_ptr()) }
    }

    /// Notes how far invalidations by MMU notifiers have come, before host pages are looked up.
    #[inline]
    pub(crate) fn invalidation_sequence(self) -> InvalidationSequence<'a> {
        // SAFETY: The VM exists; the helper reads a field by a marked access, and what is read
        // later is ordered after that.
        InvalidationSequence(self, unsafe {
            bindings::kvm_rs_invalidate_seq(self.as_ptr())
        })
    }

    /// Whether the guest physical byte address `gpa` belongs to a direct root.
    #[inline]
    pub(crate) fn is_addr_direct(self, gpa: u64) -> bool {
        // SAFETY: The VM exists; the helper reads constant fields.
        unsafe { bindings::kvm_rs_is_addr_direct(self.as_ptr(), gpa) }
    }

    /// Whether the VM's own memory is mapped by the TDP MMU. Nothing of the TDP MMU may be used
    /// where it is not. The same for all VMs, and constant while there are any.
    #[inline]
    pub(crate) fn uses_tdp_mmu(self) -> bool {
        // SAFETY: Written only while the vendor module is loaded, before there is a VM.
        unsafe { bindings::tdp_mmu_enabled }
    }

    /// Whether there are shadow pages, which rmaps find and which may map memory as well; or may
    /// be, because there is no TDP MMU.
    ///
    /// They come and go under `mmu_lock` held for write, so if there is none, there will be none
    /// before the lock is dropped. (`kvm_memslots_have_rmaps()` says whether there ever was one.) A
    /// root that was zapped and is still loaded does not count: nothing is below it.
    #[inline]
    pub(crate) fn has_shadow_pages(lock: &impl MmuLock<'a>) -> bool {
        // SAFETY: The VM exists, and its `mmu_lock` is held.
        unsafe { bindings::kvm_rs_has_shadow_pages(lock.vm().as_ptr()) }
    }

    /// Whether writes to frames may be tracked, because they hold page tables that are shadowed. No
    /// frame begins to be tracked, or to be shadowed, before the lock is dropped, which takes it
    /// for write.
    #[inline]
    pub(crate) fn tracks_writes(lock: &impl MmuLock<'a>) -> bool {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_tracks_writes(lock.vm().as_ptr()) }
    }

    /// Whether the memslots have reverse maps, so that shadow pages may map them. Once they have,
    /// they keep them.
    #[inline]
    pub(crate) fn memslots_have_rmaps(self) -> bool {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_memslots_have_rmaps(self.as_ptr()) }
    }

    /// Whether dirty logging begins with all bits set, and huge pages left as they are
    /// (`KVM_DIRTY_LOG_INITIALLY_SET`). Userspace may change it at any time.
    #[inline]
    pub(crate) fn dirty_log_initially_set(self) -> bool {
        // SAFETY: The VM exists. The field is a word of flags that `KVM_ENABLE_CAP` sets without a
        // lock; C reads it without a lock as well, and either value will do.
        unsafe { bindings::kvm_rs_dirty_log_initially_set(self.as_ptr()) }
    }

    /// How many tables may be allocated at a time to split huge pages when logging begins, rather
    /// than by the first write; `None` if they are not to be split. What userspace has set for this
    /// VM (`KVM_CAP_EAGER_SPLIT_CHUNK_SIZE`) overrides `kvm.eager_page_split`. Either may change at
    /// any time.
    #[inline]
    pub(crate) fn eager_split(self) -> Option<usize> {
        // SAFETY: The VM exists; the helper reads the field by a marked access.
        match unsafe { bindings::kvm_rs_eager_split_chunk(self.as_ptr()) } {
            0 => {
                // SAFETY: A marked read of the module's parameter.
                unsafe { bindings::kvm_rs_eager_page_split() }.then_some(usize::MAX)
            }
            NO_EAGER_SPLIT => None,
            chunk => Some((chunk >> PAGE_SHIFT) as usize / ENTRIES),
        }
    }

    /// Adds `count` leaves of `level` to the page statistics.
    #[inline]
    pub(crate) fn add_leaves(self, level: Level, count: i32) {
        if level > Level::MAX_LEAF {
            return;
        }
        // SAFETY: The VM exists, and `pages[]` has an element for every level that has leaves.
        unsafe { bindings::kvm_rs_update_page_stats(self.as_ptr(), level.raw(), count) }
    }

    /// Whether tables of the TDP MMU exist.
    #[cfg(CONFIG_KVM_PROVE_MMU)]
    pub(crate) fn has_tables(self) -> bool {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_has_tables(self.as_ptr()) }
    }

    /// Marks the VM as broken by a bug of KVM: warns, and no vCPU will run again.
    #[cold]
    pub(crate) fn bugged(self) {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_vm_bugged(self.as_ptr()) }
    }

    /// As [`Vm::bugged`], for data that KVM itself has corrupted: the host may be set up to stop.
    #[cold]
    pub(crate) fn data_corruption(self) {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_rs_vm_data_corruption(self.as_ptr()) }
    }

    /// Flushes the TLBs of all vCPUs, for all guest addresses.
    pub(crate) fn flush_tlbs(self) {
        // SAFETY: The VM exists.
        unsafe { bindings::kvm_flush_remote_tlbs(self.as_ptr()) }
    }

    /// Flushes the TLBs of all vCPUs for `range`, or for more.
    pub(crate) fn flush_tlbs_range(self, range: GfnRange) {
        // SAFETY: The VM exists.
        unsafe {
            bindings::kvm_flush_remote_tlbs_range(self.as_ptr(), range.start.raw(), range.pages())
        }
    }

    /// Flushes the TLBs of all vCPUs for a memslot.
    pub(crate) fn flush_tlbs_memslot(self, slot: Memslot<'_>) {
        // SAFETY: Both the VM and its memslot exist.
        unsafe { bindings::kvm_flush_remote_tlbs_memslot(self.as_ptr(), slot.as_ptr()) }
    }

    /// Whether the other address space (SMM, or not) allows a page of `level` at `gfn`. It does not
    /// where writes to a frame are tracked there: a page table of L1's that KVM shadows is not to
    /// be written unnoticed through either. Upstream does not ask; `patches/upstream/0002` has C do
    /// so (`kvm_gfn_is_lpage_allowed()`).
    #[inline]
    pub(crate) fn other_slots_allow(
        lock: &impl MmuLock<'a>,
        slot: Memslot<'_>,
        gfn: Gfn,
        level: Level,
    ) -> bool {
        if level == Level::Page4K {
            return true;
        }
        // A memslot says nothing of larger pages, as there are none.
        if level > Level::MAX_LEAF {
            return false;
        }
        if !Self::tracks_writes(lock) {
            return true;
        }
        let vm = lock.vm();

        // SAFETY: Both exist, and whoever has a slot keeps the memslots from being freed.
        // `mmu_lock` is held, so no tracking begins.
        unsafe {
            bindings::kvm_rs_other_slots_allow(vm.as_ptr(), slot.as_ptr(), gfn.raw(), level.raw())
        }
    }

    /// The largest page that the host's mapping, the slot and the guest's attributes allow at
    /// `gfn`; `None` if that is not in the slot.
    pub(crate) fn max_mapping_level(
        lock: &impl MmuLock<'a>,
        slot: Memslot<'_>,
        gfn: Gfn,
    ) -> Option<Level> {
        if !slot.range().contains(gfn) {
            return None;
        }
        // SAFETY: Both exist, `gfn` is in the slot, and `mmu_lock` is held; without a fault, C
        // looks up the frame itself.
        let level = unsafe {
            bindings::kvm_mmu_max_mapping_level(
                lock.vm().as_ptr(),
                core::ptr::null_mut(),
                slot.as_ptr(),
                gfn.raw(),
            )
        };

        u32::try_from(level).ok().and_then(Level::from_raw)
    }

    /// Whether what maps `gfn`, a frame of `slot`, is guest_memfd, which KVM asks for the size of a
    /// page only in a fault.
    pub(crate) fn is_guest_memfd(lock: &impl MmuLock<'a>, slot: Memslot<'_>, gfn: Gfn) -> bool {
        // SAFETY: Both exist, and `mmu_lock` is held, under which attributes may be looked up.
        unsafe { bindings::kvm_rs_is_guest_memfd(lock.vm().as_ptr(), slot.as_ptr(), gfn.raw()) }
    }

    /// Whether the host's mapping or the attributes of a frame of `range` are just being changed,
    /// as far as a fault would have to wait for that; `mmu_invalidate_retry_gfn()`, for what was
    /// looked up under the lock.
    pub(crate) fn is_invalidating(lock: &impl MmuLock<'a>, range: GfnRange) -> bool {
        // SAFETY: The VM exists, and its `mmu_lock` is held, without which the fields do not
        // change.
        unsafe {
            bindings::kvm_rs_is_invalidating(lock.vm().as_ptr(), range.start.raw(), range.end.raw())
        }
    }

    /// Propagates a change of a mirror SPTE to the external (TDX) page table.
    ///
    /// # Safety
    ///
    /// The entry must be that of a mirror root's tree, and the caller's to change.
    pub(crate) unsafe fn set_external_spte(
        self,
        gfn: Gfn,
        old: Spte,
        new: Spte,
        level: Level,
    ) -> Result {
        // SAFETY: The VM exists, and has a vendor callback, because it has mirror roots, by this
        // function's safety requirement.
        to_result(unsafe {
            bindings::kvm_rs_set_external_spte(
                self.as_ptr(),
                gfn.raw(),
                old.raw(),
                new.raw(),
                level.raw(),
            )
        })
    }
}
