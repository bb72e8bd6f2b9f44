// SPDX-License-Identifier: GPL-2.0

//! The world of one run: a VM with its vCPUs, and what everybody must find true.

use std::cell::UnsafeCell;

use kvm_c::{
    bindings::*,
    host::Host,
    memory_type,
    model::{
        self,
        slots,
        FRAME,
        LARGE,
        MMU_PRESENT, //
    }, //
};
use machine::{
    fail,
    mem,
    sched, //
};

use crate::hw::Format;

/// What a run is made of; all of it follows from the seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub format: Format,
    pub base_gfn: u64,
    pub npages: u64,
    /// Where the second memslot begins, in pages; 0: there is one.
    pub boundary: u64,
    /// There is a memslot that no root reaches.
    pub far: bool,
    /// The log is a ring.
    pub ring: bool,
    /// Which of the slot's huge pages the host maps as such, a bit each.
    pub huge: u64,
    /// The same of the 1 GiB pages of which the slot has a part. There are none unless tables have
    /// 8 entries.
    pub giant: u64,
    /// The pages that the guest uses.
    pub hot: Vec<u64>,
    pub vcpus: usize,
    /// Accesses of each vCPU.
    pub accesses: u64,
    /// As many again whenever userspace has got a step further; otherwise a vCPU may be done before
    /// the log is on.
    pub phased: bool,
    pub manual: bool,
    pub initially_all_set: bool,
    pub eager: bool,
    pub nx_huge_pages: bool,
    pub smm: bool,
    /// vCPUs also run a nested guest.
    pub nested: bool,
    /// It begins after everybody else.
    pub late: bool,
    /// vCPUs also run a nested guest without nested paging: by tables of the TDP MMU with another
    /// role.
    pub guest_mode: bool,
    /// At how many addresses it has each page.
    pub aliases: u64,
    pub prefault: bool,
    /// How often a thread prefaults that nobody stops when the vCPUs are stopped.
    pub prefaults: u64,
    /// How many pages a fault may map; 0: its own.
    pub fault_around: u32,
    pub odds: Odds,
    /// How often each peer acts.
    pub migrations: u64,
    pub invalidations: u64,
    /// How many notifiers run at the same time.
    pub notifiers: u64,
    pub agings: u64,
    pub recoveries: u64,
    pub zaps: u64,
    /// Slots are deleted and made again, between migrations.
    pub moves: bool,
    /// Slots go elsewhere and come back, while they are logged.
    pub relocates: bool,
    pub attributes: u64,
    /// The first memslot has private memory, and cannot be logged.
    pub private: bool,
    /// How often writes to a page are tracked for a while.
    pub trackings: u64,
    pub read_only: bool,
    /// How often each of `splitters` splits ahead or recovers.
    pub splits: u64,
    pub splitters: u64,
    /// How many threads clear parts of a log beside userspace's first.
    pub clearers: u64,
    /// Pages that they clear before GET has reported them are cleared when GET begins.
    pub unseen: bool,
    /// A vCPU leaves the guest for nothing once in so many accesses.
    pub rests: u64,
    /// All accesses are writes.
    pub only_writes: bool,
    /// At most so many passes over the log, less one, come before the stop of a migration.
    pub passes: u64,
    /// Log by D bits, if the format has D bits and no PML.
    pub dirty_bits: bool,
    /// But log the first memslot by faults for a while.
    pub dirty_bits_late: bool,
    /// On AMD: the guest's memory is encrypted.
    pub encrypted: bool,
    /// A log begins by C's steps, without the hook.
    pub starts_as_c: bool,
    /// The tracepoint for changes of SPTEs is on.
    pub traced: bool,
    /// How often root changes a parameter of KVM's, or turns that tracepoint on or off.
    pub settings: u64,
}

impl Plan {
    /// A VM with one vCPU that does nothing, and nobody else.
    pub fn new(format: Format, base_gfn: u64, npages: u64) -> Self {
        Plan {
            format,
            base_gfn,
            npages,
            boundary: 0,
            far: false,
            ring: false,
            huge: 0,
            giant: 0,
            hot: Vec::new(),
            vcpus: 1,
            accesses: 0,
            phased: false,
            manual: false,
            initially_all_set: false,
            eager: true,
            nx_huge_pages: false,
            smm: false,
            nested: false,
            late: false,
            guest_mode: false,
            aliases: 1,
            prefault: false,
            prefaults: 0,
            fault_around: 0,
            odds: Odds::default(),
            migrations: 0,
            invalidations: 0,
            notifiers: 1,
            agings: 0,
            recoveries: 0,
            zaps: 0,
            moves: false,
            relocates: false,
            attributes: 0,
            private: false,
            trackings: 0,
            read_only: false,
            splits: 0,
            splitters: 1,
            clearers: 0,
            unseen: false,
            rests: 32,
            only_writes: false,
            passes: 0,
            dirty_bits: false,
            dirty_bits_late: false,
            encrypted: false,
            starts_as_c: false,
            traced: false,
            settings: 0,
        }
    }
}

/// A part of a memslot's log that a thread is to clear, and whose pages it is to copy then.
pub struct Piece {
    /// The place of the memslot.
    pub at: usize,
    /// The first word.
    pub first: usize,
    pub bits: Vec<u64>,
}

/// The VM, and what the oracle knows.
pub struct World {
    pub plan: Plan,
    pub kvm: *mut kvm,
    pub vcpus: Vec<*mut kvm_vcpu>,
    mmus: Vec<*mut kvm_mmu>,
    /// vCPUs shall stop; how many have, and how many are there.
    pub pause: bool,
    pub paused: usize,
    pub running: usize,
    /// How far userspace is; `None`: it has ended.
    pub phase: Option<u64>,
    /// When an access of each page, or a fault, last ended, in steps.
    pub touched: Vec<u64>,
    /// The page that each vCPU is about to access.
    pub in_flight: Vec<Option<u64>>,
    /// The destination's memory.
    pub copied: Vec<u64>,
    /// What is to be cleared and copied by whoever comes first; `None`: userspace has ended.
    pub pieces: Option<Vec<Piece>>,
    /// How many of them are being worked on.
    pub clearing: usize,
    /// The pages, with their address spaces, that no CPU may write directly.
    pub tracked: Vec<(u16, u64)>,
}

struct Global(UnsafeCell<Option<World>>);
// SAFETY: One OS thread runs the simulation.
unsafe impl Sync for Global {}
static GLOBAL: Global = Global(UnsafeCell::new(None));

/// The world. Nobody keeps the reference over a step.
pub fn world() -> &'static mut World {
    // SAFETY: One OS thread; see above.
    let world = unsafe { &mut *GLOBAL.0.get() };

    world.as_mut().expect("a run has begun")
}

/// The VM of the world.
pub fn kvm() -> &'static mut kvm {
    // SAFETY: The VM exists; one OS thread, and nobody keeps the reference over a step.
    unsafe { &mut *world().kvm }
}

/// Whoever waits for vCPUs to stop, or to be let go.
pub const PAUSE_KEY: usize = usize::MAX - 4;
/// Whoever waits for pieces of a log, or until they are done.
pub const PIECES_KEY: usize = usize::MAX - 5;

const DIRECT: u32 = 1 << 7;
const ACC_ALL: u32 = 0xf << 8;
const AD_DISABLED: u32 = 1 << 16;
const SMM: u32 = 1 << 24;
const GUEST_MODE: u32 = 1 << 17;
const INVALID: u32 = 1 << 12;
const FROZEN: u64 = 1 << 63 | 0x1a0;

/// The role of a vCPU's root.
pub fn root_role(format: Format, smm: bool, guest_mode: bool) -> u32 {
    let mut role = model::ROOT_LEVEL | DIRECT | ACC_ALL;

    if !format.has_ad() {
        role |= AD_DISABLED;
    }
    if smm {
        role |= SMM;
    }
    if guest_mode {
        role |= GUEST_MODE;
    }
    role
}

/// The first frame that no root reaches.
const FAR: u64 = model::HUGE_PAGES.pow(model::ROOT_LEVEL);

/// The first frame and the number of pages of each memslot; no pages: it is not there.
pub fn ranges(plan: &Plan) -> [(u64, u64); SLOTS] {
    let first = if plan.boundary == 0 {
        plan.npages
    } else {
        plan.boundary
    };

    [
        (plan.base_gfn, first),
        (plan.base_gfn + first, plan.npages - first),
        (FAR + plan.base_gfn, if plan.far { plan.npages } else { 0 }),
    ]
}

/// The flags of a memslot that is not logged, by its place.
pub fn slot_flags(plan: &Plan, at: usize) -> u32 {
    if plan.private && at == 0 {
        KVM_MEM_GUEST_MEMFD
    } else {
        0
    }
}

/// What an access with an error code may not find; indexed by its bits 1 (W), 2 (U) and 4 (F).
fn permissions() -> [u16; 16] {
    core::array::from_fn(|index| {
        let mut denied = 0;
        for access in 0..16 {
            let read = access & 1 != 0;
            let write = index & 1 == 0 || access & 2 != 0;
            let fetch = index & 8 == 0 || access & 8 != 0;
            denied |= u16::from(!(read && write && fetch)) << access;
        }
        denied
    })
}

/// Makes the world of a run.
pub fn begin(plan: Plan) {
    mem::begin();
    machine::rcu::begin();
    plan.format.install(plan.encrypted);
    // SAFETY: There is no VM now; one OS thread.
    unsafe { eager_page_split = plan.eager };

    let (base, npages) = (plan.base_gfn, plan.npages);
    let mut memslots = [core::ptr::null_mut(); 2 * SLOTS];
    for as_id in 0..1 + usize::from(plan.smm) {
        for (n, (base, npages)) in ranges(&plan).into_iter().enumerate() {
            if npages != 0 {
                let slot = slots::new_slot(as_id as u16, base, npages as usize);
                if plan.nested && !plan.late {
                    slots::alloc_rmaps(slot);
                }
                // SAFETY: Just made; one OS thread.
                unsafe { (*slot).flags = slot_flags(&plan, n) };
                memslots[as_id * SLOTS + n] = slot;
            }
        }
    }
    let vm = mem::alloc_rest(kvm {
        arch: kvm_arch {
            shadow_mmio_value: plan.format.mmio_value(),
            gfn_direct_bits: 0,
            cpu_dirty_log_size: if plan.format == Format::EptPml {
                512
            } else {
                0
            },
            tdp_mmu_roots: core::ptr::null_mut(),
            tdp_mmu_pages_lock: Default::default(),
            possible_nx_huge_pages: Vec::new(),
            have_rmaps: plan.nested && !plan.late,
            split_desc_cache: Default::default(),
            split_page_header_cache: Default::default(),
            split_shadow_page_cache: Default::default(),
        },
        stat: Default::default(),
        rs_stat: Default::default(),
        rs_dirty_log: kvm_rs_dirty_log {
            starting: core::ptr::null_mut(),
            switching: false,
            dirty_bits: false,
            eager_split_chunk: 0,
            clears: Vec::new(),
        },
        wants_dirty_bits: plan.dirty_bits,
        dirty_bits_late: plan.dirty_bits_late,
        has_host_mmio: false,
        starts_as_c: plan.starts_as_c,
        traced: plan.traced,
        nr_memslots_dirty_logging: 0,
        mmu_lock: Default::default(),
        slots_lock: Default::default(),
        slots_arch_lock: Default::default(),
        active_mmu_pages: Vec::new(),
        users_count: 1,
        vcpus: Vec::new(),
        nx_huge_pages: plan.nx_huge_pages,
        fault_around: plan.fault_around,
        manual_dirty_log_protect: plan.manual,
        initially_all_set: plan.initially_all_set,
        memslots,
        max_gfn: if plan.far {
            FAR * 2 - 1
        } else {
            model::MAX_GFN
        },
        use_ring: plan.ring,
        ring: Vec::new(),
        tracked: Vec::new(),
        tracks_writes: plan.trackings != 0,
        has_private_mem: plan.private,
        generation: 0,
        mmu_invalidate_seq: 0,
        mmu_invalidate_in_progress: 0,
        mmu_invalidate_range: (0, 0),
        mn_active_invalidate_count: 0,
        srcu: Vec::new(),
        srcu_entries: 0,
        vm_bugged: false,
        host: Host::new(
            base,
            npages,
            |n| plan.huge >> (n % 64) & 1 != 0,
            |n| plan.giant >> (n % 64) & 1 != 0,
        ),
        odds: plan.odds,
    });
    model::set_vm(vm);
    // SAFETY: The VM exists, and nobody else is there.
    unsafe {
        kvm_tdp_mmu_refresh_masks();
        kvm_mmu_init_tdp_mmu(vm);
    }

    let mut world = World {
        kvm: vm,
        vcpus: Vec::new(),
        mmus: Vec::new(),
        pause: false,
        paused: 0,
        running: plan.vcpus,
        phase: (plan.phased && plan.migrations != 0).then_some(0),
        touched: vec![0; npages as usize],
        in_flight: vec![None; plan.vcpus],
        copied: vec![0; npages as usize],
        pieces: Some(Vec::new()),
        clearing: 0,
        tracked: Vec::new(),
        plan,
    };
    // The last one is that of the thread that only prefaults.
    for _ in 0..world.plan.vcpus + usize::from(world.plan.prefaults != 0) {
        let mmu = mem::alloc_rest(kvm_mmu {
            root_role: kvm_mmu_page_role {
                word: core::mem::ManuallyDrop::new(root_role(world.plan.format, false, false)),
            },
            root: kvm_mmu_root_info {
                hpa: INVALID_PAGE,
                pgd: 0,
            },
            mirror_root_hpa: INVALID_PAGE,
            fmt: kvm_mmu_format {
                permissions: permissions(),
            },
        });
        world.mmus.push(mmu);
        world.vcpus.push(mem::alloc_rest(kvm_vcpu {
            kvm: vm,
            arch: kvm_vcpu_arch {
                mmu,
                mmu_page_header_cache: Default::default(),
                mmu_shadow_page_cache: Default::default(),
                mmu_external_spt_cache: Default::default(),
                mmu_pte_list_desc_cache: Default::default(),
            },
            stat: Default::default(),
            mode: OUTSIDE_GUEST_MODE,
            requests: 0,
            ipi: false,
            smm: false,
            nested: false,
            guest_mode: false,
        }));
    }
    // SAFETY: The VM exists.
    unsafe { (*vm).vcpus = world.vcpus.clone() };
    // SAFETY: One OS thread.
    unsafe { *GLOBAL.0.get() = Some(world) };
}

/// What the tables below one hold.
#[derive(Default, PartialEq, Eq, Debug)]
struct Census {
    leaves: [i64; 3],
    tables: i64,
}

/// Counts, where nothing moves any more.
fn count(table: u64, level: u32, gfn: u64, census: &mut Census) {
    let words = mem::va(table);

    if !mem::is_live_table(table) {
        fail("a table that was freed is linked".into());
    }
    for n in 0..model::HUGE_PAGES {
        // SAFETY: Within the table, which exists.
        let entry = unsafe { words.add(n as usize).read() };
        let first = gfn + n * model::HUGE_PAGES.pow(level - 1);

        if entry == FROZEN {
            fail(format!(
                "an entry of level {level} at gfn {first:#x} stays frozen"
            ));
        }
        if entry & MMU_PRESENT == 0 {
            continue;
        }
        if level == 1 || entry & LARGE != 0 {
            census.leaves[level as usize - 1] += 1;
            check_leaf(entry, level, first);
        } else {
            census.tables += 1;
            count(entry & FRAME, level - 1, first, census);
        }
    }
}

/// What a leaf maps is the guest's.
fn check_leaf(entry: u64, level: u32, gfn: u64) {
    memory_type::check(kvm(), entry, (entry & FRAME) >> 12);
    if level > 1 && kvm().host.is_mixed(gfn, level) {
        fail(format!(
            "gfn {gfn:#x} is mapped by a huge page, and its pages have several attributes"
        ));
    }
    for n in 0..model::HUGE_PAGES.pow(level - 1) {
        let (pfn, _) = kvm().host.lookup(gfn + n);

        if pfn != ((entry & FRAME) >> 12) + n {
            fail(format!(
                "gfn {:#x} is mapped to {:#x}, and the host has it in {pfn:#x}",
                gfn + n,
                ((entry & FRAME) >> 12) + n
            ));
        }
    }
}

/// Fails if an SPTE maps a page of a range: a notifier has returned, and its frames go away.
pub fn check_unmapped(start: u64, end: u64) {
    for (level, gfn, _) in model::shadow::leaves(world().kvm) {
        if gfn < end && gfn + model::HUGE_PAGES.pow(level - 1) > start {
            fail(format!(
                "the notifier for gfn {start:#x} to {end:#x} has returned, and L2 has {gfn:#x} at level {level}"
            ));
        }
    }
    let mut root = kvm().arch.tdp_mmu_roots;

    while !root.is_null() {
        // SAFETY: The list's pages exist.
        let (spt, role, next) = unsafe { ((*root).spt, *(*root).role.word, (*root).next) };

        check_table_unmapped(mem::pa(spt), role & 0xf, 0, start..end);
        root = next;
    }
}

fn check_table_unmapped(table: u64, level: u32, gfn: u64, range: core::ops::Range<u64>) {
    let pages = model::HUGE_PAGES.pow(level - 1);

    for n in 0..model::HUGE_PAGES {
        let first = gfn + n * pages;
        if first + pages <= range.start || first >= range.end {
            continue;
        }
        // SAFETY: Within a table that is linked.
        let entry = unsafe { mem::va(table).add(n as usize).read() };
        if entry & MMU_PRESENT == 0 {
            continue;
        }
        if level == 1 || entry & LARGE != 0 {
            fail(format!(
                "the notifier for gfn {:#x} to {:#x} has returned, and {first:#x} is mapped at level {level}",
                range.start, range.end
            ));
        }
        check_table_unmapped(entry & FRAME, level - 1, first, range.clone());
    }
}

/// Fails if a huge page is mapped that userspace wants to stay small, and that was split.
pub fn check_small() {
    let mut root = kvm().arch.tdp_mmu_roots;

    while !root.is_null() {
        // SAFETY: The list's pages exist.
        let (spt, role, next) = unsafe { ((*root).spt, *(*root).role.word, (*root).next) };

        if role & INVALID == 0 {
            let as_id = usize::from(role & SMM != 0);
            check_table_small(mem::pa(spt), role & 0xf, 0, as_id);
        }
        root = next;
    }
}

fn check_table_small(table: u64, level: u32, gfn: u64, as_id: usize) {
    for n in 0..model::HUGE_PAGES {
        // SAFETY: Within a table that is linked.
        let entry = unsafe { mem::va(table).add(n as usize).read() };
        let first = gfn + n * model::HUGE_PAGES.pow(level - 1);

        if entry & MMU_PRESENT == 0 || level == 1 {
            continue;
        }
        if entry & LARGE == 0 {
            check_table_small(entry & FRAME, level - 1, first, as_id);
            continue;
        }
        let pages = model::HUGE_PAGES.pow(level - 1);
        let parts = (first..first + pages).step_by(model::HUGE_PAGES as usize);
        // The slot may begin in the middle.
        for gfn in parts.flat_map(|part| [part, part + model::HUGE_PAGES - 1]) {
            if model::split::must_be_small(world().kvm, as_id, gfn, level) {
                fail(format!(
                    "gfn {first:#x} is mapped by a huge page, and is to stay small"
                ));
            }
        }
    }
}

/// Fails if a leaf is write-protected for a log that has ended, and no slot is logged now. Without
/// A/D bits a fault makes it writable.
pub fn check_writable() {
    let mut root = kvm().arch.tdp_mmu_roots;

    // A vCPU that has seen the log may split a page after userspace has passed it, and the parts
    // are protected, too, until they are written. Where tables have 8 entries, that is not so rare.
    if model::HUGE_PAGES < 512 {
        return;
    }

    while !root.is_null() {
        // SAFETY: The list's pages exist.
        let (spt, role, next) = unsafe { ((*root).spt, *(*root).role.word, (*root).next) };

        if role & (INVALID | AD_DISABLED) == 0 {
            check_table_writable(mem::pa(spt), role & 0xf, 0);
        }
        root = next;
    }
}

fn check_table_writable(table: u64, level: u32, gfn: u64) {
    // SAFETY: The format is constant while there is a VM.
    let mmu_writable = unsafe { shadow_mmu_writable_mask };

    for n in 0..model::HUGE_PAGES {
        // SAFETY: Within a table that is linked.
        let entry = unsafe { mem::va(table).add(n as usize).read() };
        let first = gfn + n * model::HUGE_PAGES.pow(level - 1);

        if entry & MMU_PRESENT == 0 {
            continue;
        }
        if level > 1 && entry & LARGE == 0 {
            check_table_writable(entry & FRAME, level - 1, first);
        } else if entry & mmu_writable != 0 && entry & 2 == 0 {
            fail(format!(
                "the log has ended, and gfn {first:#x} stays write-protected at level {level}"
            ));
        }
    }
}

/// Checks what must hold when all is quiet.
pub fn check_quiet() {
    check_small();
    let mut census = Census::default();
    let mut root = kvm().arch.tdp_mmu_roots;
    let mut valid = Vec::new();

    while !root.is_null() {
        // SAFETY: The list's pages exist.
        let (spt, role, next) = unsafe { ((*root).spt, *(*root).role.word, (*root).next) };
        let mut own = Census::default();

        count(mem::pa(spt), role & 0xf, 0, &mut own);
        if role & INVALID != 0 && own != Census::default() {
            fail("an invalid root, whose zapping has ended, maps something".into());
        }
        if role & INVALID == 0 {
            if valid.contains(&role) {
                fail("two valid roots have the same role".into());
            }
            valid.push(role);
        }
        census.tables += own.tables;
        for n in 0..3 {
            census.leaves[n] += own.leaves[n];
        }
        root = next;
    }
    let shadow = model::shadow::leaves(world().kvm);
    let listed = model::shadow::listed(world().kvm);
    if listed != shadow.len() {
        fail(format!(
            "the reverse map has {listed} leaves, and shadow pages have {}",
            shadow.len()
        ));
    }
    for (level, gfn, entry) in shadow {
        census.leaves[level as usize - 1] += 1;
        check_leaf(entry, level, gfn);
    }
    let stat = &kvm().stat;
    if stat.pages != census.leaves {
        fail(format!(
            "pages_4k, pages_2m, pages_1g are {:?}, and there are {:?}",
            stat.pages, census.leaves
        ));
    }
    if stat.tables != census.tables {
        fail(format!(
            "{} tables are accounted, and there are {}",
            stat.tables, census.tables
        ));
    }
    if kvm().host.references() != 0 {
        fail("references to the host's pages are not dropped".into());
    }
    if !kvm().srcu.is_empty() || kvm().mmu_invalidate_in_progress != 0 {
        fail("the simulation itself has lost count".into());
    }
}

/// The VM dies: nothing may be left.
pub fn end(zap_all: bool) {
    let w = world();

    for vcpu in &w.vcpus {
        model::roots::free(*vcpu);
        model::memory::free_memory_caches(*vcpu);
    }
    let vm = w.kvm;
    kvm().mmu_lock.write_lock();
    model::shadow::zap_all(vm);
    kvm().mmu_lock.write_unlock();
    model::memory::free_split_caches(vm);
    if zap_all {
        // `kvm_mmu_zap_all()`
        kvm().mmu_lock.write_lock();
        // SAFETY: The VM exists, and the lock is held.
        unsafe { kvm_tdp_mmu_zap_all(vm) };
        kvm().mmu_lock.write_unlock();
    }
    kvm().users_count = 0;
    // SAFETY: The VM exists, and nobody else is there.
    unsafe { kvm_mmu_uninit_tdp_mmu(vm) };

    let stat = &kvm().stat;
    if stat.pages != [0; 3] || stat.tables != 0 {
        fail(format!(
            "the VM is gone, and {:?} leaves and {} tables are accounted",
            stat.pages, stat.tables
        ));
    }
    if !kvm().arch.possible_nx_huge_pages.is_empty() {
        fail("the VM is gone, and a page is in the list of possible NX huge pages".into());
    }
    if mem::live() != (0, 0) {
        let (tables, headers) = mem::live();
        fail(format!(
            "the VM is gone, and {tables} tables and {headers} headers leak"
        ));
    }
    for slot in kvm().memslots {
        if !slot.is_null() {
            slots::free_slot(slot);
        }
    }
    for (vcpu, mmu) in w.vcpus.drain(..).zip(w.mmus.drain(..)) {
        // SAFETY: `begin` made them, and nobody uses them any more.
        unsafe { (vcpu.drop_in_place(), mmu.drop_in_place()) };
    }
    // SAFETY: As above.
    unsafe { vm.drop_in_place() };
    model::set_vm(core::ptr::null_mut());
    let _ = sched::now();
}
