// SPDX-License-Identifier: GPL-2.0

//! C's structures, with the fields that the MMU or a model looks at.
#![allow(non_camel_case_types, non_upper_case_globals, missing_docs)]

use core::{
    ffi::c_void,
    mem::ManuallyDrop, //
};

use kernel::bindings::{
    callback_head,
    rwlock_t, //
};
use machine::lock::Lock;

use crate::host::Host;

pub type gfn_t = u64;
pub type gpa_t = u64;
pub type hpa_t = u64;
pub type kvm_pfn_t = u64;

pub type kvm_tdp_mmu_root_types = u32;
pub const kvm_tdp_mmu_root_types_KVM_INVALID_ROOTS: u32 = 1;
pub const kvm_tdp_mmu_root_types_KVM_DIRECT_ROOTS: u32 = 2;
pub const kvm_tdp_mmu_root_types_KVM_MIRROR_ROOTS: u32 = 4;

pub type kvm_mmu_type = u32;
pub const kvm_mmu_type_KVM_TDP_MMU: u32 = 1;

pub type kvm_gfn_range_filter = u32;
pub const kvm_gfn_range_filter_KVM_FILTER_SHARED: u32 = 1;
pub const kvm_gfn_range_filter_KVM_FILTER_PRIVATE: u32 = 2;

pub type kvm_rs_event = u32;
pub const kvm_rs_event_KVM_RS_EAGER_SPLIT: u32 = 0;
pub const kvm_rs_event_KVM_RS_FAULT_SPLIT: u32 = 1;
pub const kvm_rs_event_KVM_RS_PROMOTION: u32 = 2;
pub const kvm_rs_event_KVM_RS_SPLIT_NO_MEMORY: u32 = 3;
pub const kvm_rs_event_KVM_RS_SPLIT_NO_BUDGET: u32 = 4;
pub const kvm_rs_event_KVM_RS_SPLIT_LOST_RACE: u32 = 5;
pub const kvm_rs_event_KVM_RS_YIELD: u32 = 6;
pub const kvm_rs_event_KVM_RS_DIRTY_TABLE: u32 = 7;
pub const kvm_rs_event_KVM_RS_DIRTY_CLEAN_TABLE: u32 = 8;
pub const kvm_rs_event_KVM_RS_DIRTY_PAGE: u32 = 9;
pub const kvm_rs_event_KVM_RS_DIRTY_CARRY: u32 = 10;

pub const kvm_mmu_holder_KVM_MMU_ENABLE: u32 = 0;
pub const kvm_mmu_holder_KVM_MMU_CLEAR: u32 = 1;
pub const kvm_mmu_holder_KVM_MMU_GET: u32 = 2;
pub const kvm_mmu_holder_KVM_MMU_DISABLE: u32 = 3;
pub const kvm_mmu_holder_KVM_MMU_RMAP: u32 = 4;
pub const kvm_mmu_holder_KVM_MMU_ZAP: u32 = 6;
pub const kvm_mmu_holder_KVM_MMU_FAULT: u32 = 8;
pub const kvm_mmu_holder_KVM_MMU_OTHER: u32 = 9;

pub const RET_PF_CONTINUE: u32 = 0;
pub const RET_PF_RETRY: u32 = 1;
pub const RET_PF_EMULATE: u32 = 2;
pub const RET_PF_WRITE_PROTECTED: u32 = 3;
pub const RET_PF_INVALID: u32 = 4;
pub const RET_PF_FIXED: u32 = 5;
pub const RET_PF_SPURIOUS: u32 = 6;

pub const KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE: u32 = 40;

pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;
pub const KVM_MEMSLOT_INVALID: u32 = 1 << 16;

/// How many memslots an address space has. The first two are neighbours; no root reaches the third.
pub const SLOTS: usize = 3;

/// `KVM_PFN_NOSLOT`.
pub const KVM_PFN_NOSLOT: u64 = 1 << 63;

/// `vcpu->mode`.
pub const OUTSIDE_GUEST_MODE: u32 = 0;
pub const IN_GUEST_MODE: u32 = 1;

/// `vcpu->requests`.
pub const KVM_REQ_TLB_FLUSH: u64 = 1 << 0;
pub const KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: u64 = 1 << 1;

/// `INVALID_PAGE`.
pub const INVALID_PAGE: u64 = u64::MAX;

#[repr(C)]
pub union kvm_mmu_page_role {
    pub word: ManuallyDrop<u32>,
}

#[repr(C)]
pub union kvm_mmu_page_root {
    pub tdp_mmu_scheduled_root_to_zap: ManuallyDrop<bool>,
}

#[repr(C)]
pub union kvm_mmu_page_external {
    pub external_spt: ManuallyDrop<*mut c_void>,
}

#[repr(C)]
pub union kvm_mmu_page_parent {
    pub ptep: ManuallyDrop<*mut u64>,
}

#[repr(C)]
pub struct kvm_mmu_page {
    /// The list of roots.
    pub next: *mut kvm_mmu_page,
    /// The list of possible NX huge pages has it.
    pub on_nx_list: bool,
    pub tdp_mmu_page: bool,
    pub unsync: bool,
    pub __bindgen_anon_1: kvm_mmu_page_root,
    pub nx_huge_page_disallowed: bool,
    pub role: kvm_mmu_page_role,
    pub gfn: gfn_t,
    pub spt: *mut u64,
    pub shadowed_translation: *mut u64,
    pub tdp_mmu_root_count: u32,
    /// The shadow MMU's: how many vCPUs have it loaded, and the entries that point to it.
    pub root_count: u32,
    pub parent_ptes: kvm_rmap_head,
    pub __bindgen_anon_3: kvm_mmu_page_external,
    pub __bindgen_anon_4: kvm_mmu_page_parent,
    pub unsync_child_bitmap: [usize; 8],
    pub callback_head: callback_head,
}
const _: () = assert!(size_of::<kvm_mmu_page>() <= machine::mem::HEADER);

#[repr(C)]
#[derive(Default)]
pub struct kvm_mmu_memory_cache {
    pub nobjs: i32,
    pub objects: Vec<usize>,
}

#[repr(C)]
pub struct kvm_arch {
    pub shadow_mmio_value: u64,
    pub gfn_direct_bits: gfn_t,
    pub cpu_dirty_log_size: i32,
    pub tdp_mmu_roots: *mut kvm_mmu_page,
    pub tdp_mmu_pages_lock: Lock,
    pub possible_nx_huge_pages: Vec<*mut kvm_mmu_page>,
    /// `kvm_memslots_have_rmaps()`
    pub have_rmaps: bool,
    pub split_desc_cache: kvm_mmu_memory_cache,
    pub split_page_header_cache: kvm_mmu_memory_cache,
    pub split_shadow_page_cache: kvm_mmu_memory_cache,
}

#[repr(C)]
#[derive(Default)]
pub struct kvm_vm_stat {
    /// By level - 1.
    pub pages: [i64; 3],
    pub max_mmu_rmap_size: u64,
    /// Tables that are linked; what `kvm_account_pgtable_pages()` adds up.
    pub tables: i64,
    /// Tables that have been linked since the run began.
    pub linked: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct kvm_rs_stat {
    pub mmu_events: [u64; 11],
    /// Also what [`crate::helpers::kvm_rs_unused_tables`] tells.
    pub mmu_unused_tables: i64,
    pub mmu_max_hold_ns: u64,
}

#[repr(C)]
pub struct kvm_rs_dirty_log {
    pub starting: *mut kvm_memory_slot,
    pub switching: bool,
    pub dirty_bits: bool,
    pub eager_split_chunk: u64,
    /// The ranges of logs that are being cleared without `slots_lock`.
    pub clears: Vec<clear_range>,
}

/// A range of a memslot's log that a thread is clearing, in words.
pub struct clear_range {
    pub who: usize,
    pub slot: *mut kvm_memory_slot,
    pub words: core::ops::Range<usize>,
    pub accounted: bool,
}

#[repr(C)]
pub struct kvm {
    pub arch: kvm_arch,
    pub stat: kvm_vm_stat,
    pub rs_stat: kvm_rs_stat,
    pub rs_dirty_log: kvm_rs_dirty_log,
    /// `kvm.dirty_log=dirty_bits`.
    pub wants_dirty_bits: bool,
    /// Only once a memslot is logged already.
    pub dirty_bits_late: bool,
    /// Somebody may access MMIO of the host: `kvm->arch.has_mapped_host_mmio`.
    pub has_host_mmio: bool,
    /// A log begins by the steps of C's that `kvm_rs_start_dirty_log()` stands for.
    pub starts_as_c: bool,
    /// The tracepoint for changes of SPTEs is on.
    pub traced: bool,
    pub nr_memslots_dirty_logging: u32,
    pub mmu_lock: rwlock_t,
    pub slots_lock: Lock,
    pub slots_arch_lock: Lock,
    pub active_mmu_pages: Vec<*mut kvm_mmu_page>,
    pub users_count: u32,
    pub vcpus: Vec<*mut kvm_vcpu>,
    pub nx_huge_pages: bool,
    /// `kvm.fault_around_pages`.
    pub fault_around: u32,
    pub manual_dirty_log_protect: bool,
    pub initially_all_set: bool,
    /// The memslots: [`SLOTS`] of each address space, of which some are null.
    pub memslots: [*mut kvm_memory_slot; 2 * SLOTS],
    /// `kvm_mmu_max_gfn()`.
    pub max_gfn: gfn_t,
    /// `KVM_CAP_DIRTY_LOG_RING`: what is written is in a ring rather than in bitmaps.
    pub use_ring: bool,
    /// The entries of all rings that userspace has not harvested: place of the slot, and frame.
    pub ring: Vec<(usize, gfn_t)>,
    /// `gfn_write_track` of all slots: the address space and the frame of each page that is
    /// tracked.
    pub tracked: Vec<(u16, gfn_t)>,
    /// A device may track writes: `kvm->arch.external_write_tracking_enabled`.
    pub tracks_writes: bool,
    /// The guest may have private memory: `kvm->arch.has_private_mem`, of a
    /// `KVM_X86_SW_PROTECTED_VM`.
    pub has_private_mem: bool,
    pub generation: u64,
    pub mmu_invalidate_seq: u64,
    pub mmu_invalidate_in_progress: i64,
    pub mmu_invalidate_range: (gfn_t, gfn_t),
    pub mn_active_invalidate_count: u64,
    /// Readers of `srcu`, by party, and how often each has entered.
    pub srcu: Vec<(usize, u64)>,
    pub srcu_entries: u64,
    pub vm_bugged: bool,
    /// The host's memory.
    pub host: Host,
    /// How often things fail, and the scheduler wants the CPU: once in so many times; 0: never.
    pub odds: Odds,
}

/// See [`kvm::odds`].
#[derive(Clone, Copy, Default, Debug)]
pub struct Odds {
    pub no_memory: u64,
    pub resched: u64,
    pub signal: u64,
}

#[repr(C)]
pub struct kvm_mmu_root_info {
    pub hpa: hpa_t,
    pub pgd: u64,
}

#[repr(C)]
pub struct kvm_mmu_format {
    pub permissions: [u16; 16],
}

#[repr(C)]
pub struct kvm_mmu {
    pub root_role: kvm_mmu_page_role,
    pub root: kvm_mmu_root_info,
    pub mirror_root_hpa: hpa_t,
    pub fmt: kvm_mmu_format,
}

#[repr(C)]
pub struct kvm_vcpu_arch {
    pub mmu: *mut kvm_mmu,
    pub mmu_page_header_cache: kvm_mmu_memory_cache,
    pub mmu_shadow_page_cache: kvm_mmu_memory_cache,
    pub mmu_external_spt_cache: kvm_mmu_memory_cache,
    pub mmu_pte_list_desc_cache: kvm_mmu_memory_cache,
}

#[repr(C)]
#[derive(Default)]
pub struct kvm_vcpu_stat {
    pub pf_mmio_spte_created: u64,
}

#[repr(C)]
pub struct kvm_vcpu {
    pub kvm: *mut kvm,
    pub arch: kvm_vcpu_arch,
    pub stat: kvm_vcpu_stat,
    pub mode: u32,
    pub requests: u64,
    /// An IPI is on its way to the CPU.
    pub ipi: bool,
    /// In SMM, that is in the other address space.
    pub smm: bool,
    /// Runs a nested guest.
    pub nested: bool,
    /// Runs one for which L1 has no page tables: L2 uses those of L1, in a role of its own.
    pub guest_mode: bool,
}

#[repr(C)]
pub struct kvm_page_fault {
    pub addr: gpa_t,
    pub error_code: u64,
    pub prefetch: bool,
    pub exec: bool,
    pub write: bool,
    pub present: bool,
    pub is_private: bool,
    pub nx_huge_page_workaround_enabled: bool,
    pub huge_page_disallowed: bool,
    pub max_level: u8,
    pub req_level: u8,
    pub goal_level: u8,
    pub gfn: gfn_t,
    pub slot: *mut kvm_memory_slot,
    pub mmu_seq: u64,
    pub pfn: kvm_pfn_t,
    pub map_writable: bool,
}

#[repr(C)]
pub struct kvm_rmap_head {
    pub val: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_arch_memory_slot {
    pub rmap: [*mut kvm_rmap_head; 3],
    /// What stands for `KVM_RS_LPAGE_KEPT` and `KVM_RS_LPAGE_KEPT_2M`: see `model::split`.
    pub kept: [*mut usize; 2],
}

#[repr(C)]
pub struct kvm_memory_slot {
    pub base_gfn: gfn_t,
    pub npages: usize,
    pub dirty_bitmap: *mut usize,
    pub arch: kvm_arch_memory_slot,
    pub flags: u32,
    pub as_id: u16,
}

#[repr(C)]
pub struct kvm_gfn_range {
    pub slot: *mut kvm_memory_slot,
    pub start: gfn_t,
    pub end: gfn_t,
    pub attr_filter: kvm_gfn_range_filter,
    pub may_block: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct rmap_iterator {
    pub desc: *mut c_void,
    pub index: u32,
}
