// SPDX-License-Identifier: GPL-2.0

//! Making SPTEs on behalf of a vCPU: collects from KVM what the constructors in `pure/` need.

use crate::{
    ops::dirty_log::protect::bit_to_clear,
    pure::{
        leaf::{
            self,
            AdMode,
            LeafSpec, //
        },
        Gfn,
        Level,
        Masks,
        Pfn,
        Role,
        Spte, //
    },
    rmap::shadow,
    sync::{
        MmuLock,
        Shared, //
    },
    sys::{
        self,
        Memslot,
        SlotGfn,
        Sp,
        Vcpu,
        Vm, //
    }, //
};

/// A request for a leaf that maps guest memory.
#[derive(Clone, Copy)]
pub(crate) struct LeafRequest<'a> {
    /// The guest frame, and its memslot.
    pub(crate) page: SlotGfn<'a>,
    /// What the guest may do (`ACC_*`).
    pub(crate) access: u32,
    /// The host frame.
    pub(crate) pfn: Pfn,
    /// The entry that the leaf will replace.
    pub(crate) old: Spte,
    /// The guest hasn't accessed the page yet.
    pub(crate) prefetch: bool,
    /// A shadow page is being synchronized with the guest's page table.
    pub(crate) synchronizing: bool,
    /// The host allows writes.
    pub(crate) host_writable: bool,
}

/// Makes a leaf for an entry of `sp`, which may be a shadow MMU's page as well; `make_spte()`.
///
/// Returns the leaf, and whether it had to be write-protected although a write is allowed, because
/// the frame holds a guest page table that is being shadowed. Unsyncs shadow pages of the frame, if
/// the leaf is writable. The caller that installs the leaf calls [`log_writable`].
///
/// Inlined, so that the request isn't written to memory and read back on each fault.
#[inline(always)]
pub(crate) fn make_leaf<'l>(
    lock: &impl MmuLock<'l>,
    vcpu: Vcpu<'_>,
    sp: Sp<'_>,
    request: &LeafRequest<'_>,
    masks: &Masks,
) -> (Spte, bool) {
    let vm = vcpu.vm();
    let role = sp.role();

    kvm_mmu_warn_on!(vm != lock.vm());
    // The shadow MMU may pass PAE pages, which have the same levels 1 to 3.
    let Some(level) = role.level() else {
        warn_on_once!(true);
        return (Spte::NONPRESENT, false);
    };

    warn_on_once!(u64::from(request.access) | masks.present == Spte::NONPRESENT.raw());

    // It comes first, while there is little to keep in registers meanwhile.
    let memory = HostMmio::of(vcpu, masks).look_up(vcpu, request.page.gfn(), request.pfn, masks);

    if memory.is_tracked {
        vcpu.track_host_mmio();
    }

    // What takes a decision comes last, next to where it is used.
    let spec = LeafSpec {
        level,
        pfn: request.pfn,
        access: request.access,
        host_writable: request.host_writable,
        prefetch: request.prefetch && !request.synchronizing,
        memory_type: memory.memory_type,
        encrypted: memory.encrypted,
        nx_huge_pages: vm.nx_huge_pages(),
        ad: ad_mode(vm, role),
    };

    let (protected, may_write) = spec.protected(masks);
    // If the old leaf is writable, its shadow pages are unsync already: KVM never changes the frame
    // of a leaf without zapping it first. An SPTE that isn't present is no leaf, whatever its bits
    // are: a stale MMIO SPTE tells nothing about the frame. Upstream doesn't check.
    let was_writable =
        request.old.is_present() && request.old.is_leaf(level) && request.old.is_writable();
    let writable = may_write
        && (was_writable
            || shadow::try_to_unsync(lock, request.page, request.synchronizing, request.prefetch));
    let spte = spec.finish(protected, writable, masks);

    warn_once!(
        vcpu.is_reserved(spte, level),
        "spte = {:#x}, level = {}, rsvd bits = {:#x}\n",
        spte.raw(),
        level.raw(),
        vcpu.reserved_bits(spte, level)
    );

    (spte, may_write && !writable)
}

/// What a leaf needs to know of its frame.
struct Memory {
    /// Memory-type bits, in place.
    memory_type: u64,
    /// Set the memory-encryption bits.
    encrypted: bool,
    /// That the frame is mapped has to be recorded, because it is MMIO of the host.
    is_tracked: bool,
}

/// Which of these depend on whether a frame is MMIO of the host, which is expensive to determine.
#[derive(Clone, Copy)]
struct HostMmio {
    /// MMIO is recorded.
    tracked: bool,
    /// That, or anything else.
    matters: bool,
}

impl HostMmio {
    /// For leaves of a format with these masks.
    #[inline(always)]
    fn of(vcpu: Vcpu<'_>, masks: &Masks) -> Self {
        let tracked = vcpu.needs_host_mmio_tracking();

        HostMmio {
            tracked,
            matters: vcpu.has_memory_types() || masks.me_value != 0 || tracked,
        }
    }

    /// What there is to know of `pfn`, mapped at `gfn`. Asks for MMIO at most once.
    #[inline(always)]
    fn look_up(self, vcpu: Vcpu<'_>, gfn: Gfn, pfn: Pfn, masks: &Masks) -> Memory {
        if !self.matters {
            return Memory {
                memory_type: 0,
                encrypted: false,
                is_tracked: false,
            };
        }

        let is_mmio = sys::is_host_mmio(pfn);

        Memory {
            memory_type: vcpu.memory_type(gfn, is_mmio),
            encrypted: masks.me_value != 0 && !is_mmio,
            is_tracked: self.tracked && is_mmio,
        }
    }
}

/// Makes leaves for pages that nobody accesses now, for one table of 4 KiB pages and one memslot.
/// They are those of [`make_leaf`] and [`without_access`], but what they have in common is made
/// once.
pub(crate) struct PrefetchLeaves<'a> {
    /// What is decided once stays right as long as this is held.
    lock: &'a Shared<'a>,
    vcpu: Vcpu<'a>,
    slot: Memslot<'a>,
    masks: &'a Masks,
    /// The leaf without the frame, if it may be writable.
    writable: Spte,
    /// The same if it must not be.
    protected: Spte,
    /// Whether the guest may write at all.
    may_write: bool,
    /// Whether writes to a frame may be tracked, because it may hold a page table that is shadowed.
    tracks_writes: bool,
    host_mmio: HostMmio,
}

impl<'a> PrefetchLeaves<'a> {
    /// For the table of `sp`, and pages that the host maps writable.
    pub(crate) fn new(
        lock: &'a Shared<'a>,
        vcpu: Vcpu<'a>,
        slot: Memslot<'a>,
        sp: Sp<'_>,
        masks: &'a Masks,
    ) -> Self {
        let vm = lock.vm();
        let role = sp.role();
        let spec = LeafSpec {
            level: Level::Page4K,
            pfn: Pfn(0),
            access: role.access(),
            host_writable: true,
            ad: ad_mode(vm, role),
            prefetch: true,
            nx_huge_pages: false,
            memory_type: 0,
            encrypted: false,
        };
        let (protected, may_write) = spec.protected(masks);
        let leaf = |writable| {
            without_access(
                vm,
                slot,
                role,
                spec.finish(protected, writable, masks),
                masks,
            )
        };

        PrefetchLeaves {
            lock,
            vcpu,
            slot,
            masks,
            writable: leaf(true),
            protected: leaf(false),
            may_write,
            tracks_writes: Vm::tracks_writes(lock),
            host_mmio: HostMmio::of(vcpu, masks),
        }
    }

    /// The leaf that maps `pfn` at `gfn`, whose entry is not present. `None` if that takes a fault
    /// of its own, because the page is host MMIO, which has to be recorded.
    #[inline(always)]
    pub(crate) fn leaf(&self, gfn: Gfn, pfn: Pfn) -> Option<Spte> {
        let memory = self.host_mmio.look_up(self.vcpu, gfn, pfn, self.masks);

        if memory.is_tracked {
            return None;
        }
        let writable = self.may_write
            && (!self.tracks_writes
                || SlotGfn::new(self.slot, gfn)
                    .is_some_and(|page| shadow::try_to_unsync(self.lock, page, false, true)));
        let leaf = leaf::for_frame(
            if writable {
                self.writable
            } else {
                self.protected
            },
            pfn,
            memory.memory_type,
            memory.encrypted,
            self.masks,
        );

        kvm_mmu_warn_on!(self.vcpu.is_reserved(leaf, Level::Page4K));
        Some(leaf)
    }
}

/// The leaf for a page that nobody accesses now. In a logged memslot it is as the log leaves one
/// whose bit it has taken: the first write is noticed, there is no bit to set, and no moment
/// between the leaf and its bit.
#[inline]
pub(crate) fn without_access(
    vm: Vm<'_>,
    slot: Memslot<'_>,
    role: Role,
    leaf: Spte,
    masks: &Masks,
) -> Spte {
    if slot.dirty_track_enabled() {
        leaf.cleared(bit_to_clear(vm, role, masks))
    } else {
        leaf
    }
}

/// Sets the bit of `page` in the dirty log if `leaf` is writable, because the first write won't be
/// noticed.
///
/// If `mmu_lock` is held for read, this has to come *after* the leaf is installed, because the log
/// may be reaped concurrently ([`crate::ops::dirty_log::reap`]). It needs no lock, as the fast page
/// fault shows.
#[inline]
pub(crate) fn log_writable(vm: Vm<'_>, page: SlotGfn<'_>, leaf: Spte) {
    // Access tracking may have cleared W.
    if leaf.is_writable() && page.slot().dirty_track_enabled() {
        // Huge pages of a logged slot are never mapped writable.
        warn_on_once!(leaf.is_large());
        page.mark_dirty(vm);
    }
}

/// How pages of this role track accesses and writes.
#[inline(always)]
fn ad_mode(vm: Vm<'_>, role: Role) -> AdMode {
    if role.ad_disabled() {
        AdMode::Disabled
    } else if vm.ad_need_write_protect(role) {
        AdMode::WriteProtect
    } else {
        AdMode::Enabled
    }
}

/// Makes an entry that caches that `gfn` is MMIO; `make_mmio_spte()`.
pub(crate) fn make_mmio(vcpu: Vcpu<'_>, gfn: Gfn, access: u32, masks: &Masks) -> Spte {
    leaf::mmio(
        gfn,
        access,
        vcpu.memslots_generation(),
        vcpu.vm().mmio_value(),
        masks,
    )
}

/// The leaf at `index` of the table that replaces `huge`; `make_small_spte()`.
pub(crate) fn make_small(vm: Vm<'_>, huge: Spte, role: Role, index: usize, masks: &Masks) -> Spte {
    let (Some(level), Some(index)) = (role.level(), crate::pure::Index::new(index)) else {
        vm.bugged();
        return Spte::NONPRESENT;
    };

    if !huge.is_present() || !huge.is_large() {
        vm.bugged();
    }
    leaf::split_child(huge, role, level, index, vm.nx_huge_pages(), masks)
}

/// The huge leaf of `level` that replaces a table with the leaf `small`; `make_huge_spte()`.
pub(crate) fn make_huge(vm: Vm<'_>, small: Spte, level: Level, masks: &Masks) -> Spte {
    if !small.is_present() || level == Level::Page4K {
        vm.bugged();
    }
    leaf::recovered(small, level, vm.nx_huge_pages(), masks)
}
