// SPDX-License-Identifier: GPL-2.0

//! Those who run at the same time: vCPUs, userspace, and the peers.

use std::ops::Range;

use kvm_c::{
    bindings::*,
    host::Host,
    model::{
        fault::{
            back_off,
            mmio_page_fault,
            page_fault,
            prefault,
            Handled, //
        },
        gmem,
        notifier,
        nx,
        pages,
        roots,
        settings,
        shadow,
        slots,
        split::{
            self,
            Request, //
        },
        track,
        HOST,
        HUGE_PAGES, //
    }, //
};
use machine::{
    chance,
    choose,
    fail,
    note,
    point,
    sched::{
        self,
        facts, //
    }, //
};

use crate::{
    hw::{
        Access,
        Cpu, //
    },
    reaped,
    world::{
        kvm,
        ranges,
        root_role,
        slot_flags,
        world,
        Piece,
        PAUSE_KEY,
        PIECES_KEY, //
    }, //
};

/// How many pages are prefaulted at once, at most.
const SOME_PAGES: u64 = 8;
/// Whether the host has pages of 1 GiB: where tables have 512 entries, no memory is that large.
pub const GIANTS: bool = cfg!(feature = "small");

fn touch(gfn: u64) {
    let w = world();

    w.touched[(gfn - w.plan.base_gfn) as usize] = sched::now();
}

fn hot() -> u64 {
    let hot = &world().plan.hot;

    hot[choose(hot.len() as u64) as usize]
}

/// What the guest does next.
#[derive(Clone, Copy)]
struct Next {
    gfn: u64,
    access: Access,
    /// Where L2 has the page; L1 has it at one place.
    alias: u64,
}

impl Next {
    /// The address on a CPU, in frames.
    fn at(self, cpu: &Cpu) -> u64 {
        if cpu.nested {
            self.gfn + self.alias * shadow::ALIAS
        } else {
            self.gfn
        }
    }
}

/// Why a vCPU leaves the guest.
enum Exit {
    Kicked,
    Fault(u64),
    Done,
}

/// A field of the vCPU.
macro_rules! vcpu {
    ($vcpu:expr, $($field:tt)+) => {{
        #[allow(unused_unsafe, reason = "may stand within another")]
        // SAFETY: The vCPU exists as long as its thread; one OS thread.
        let field = unsafe { &mut (*$vcpu).$($field)+ };
        field
    }};
}

/// A vCPU's thread: `vcpu_run()` and `vcpu_enter_guest()`.
pub fn vcpu(n: usize) {
    let vcpu = world().vcpus[n];
    let mut cpu = Cpu::new(world().plan.format);
    let mut left = world().plan.accesses;
    let mut next: Option<Next> = None;
    // An SMI has ended L2, and RSM will go back to it.
    let mut interrupted = false;

    cpu.no_executable_huge = world().plan.nx_huge_pages;
    cpu.nested = *vcpu!(vcpu, nested);
    sched::facts().vcpu = n + 1;
    let mut srcu = slots::srcu_read_lock(kvm());
    let mut phase = world().phase;
    loop {
        if left == 0 {
            slots::srcu_read_unlock(kvm(), srcu);
            if !wait_for_next(&mut phase) {
                break;
            }
            left = world().plan.accesses;
            srcu = slots::srcu_read_lock(kvm());
        }
        point();
        if world().pause {
            slots::srcu_read_unlock(kvm(), srcu);
            stop();
            srcu = slots::srcu_read_lock(kvm());
        }
        if world().plan.smm && chance(8) {
            switch_smm(vcpu, &mut cpu, &mut interrupted);
        }
        if world().plan.nested && !*vcpu!(vcpu, smm) && chance(8) {
            switch_nested(vcpu, &mut cpu);
        }
        if world().plan.guest_mode && !*vcpu!(vcpu, smm) && chance(world().plan.rests.min(8)) {
            switch_guest_mode(vcpu, &mut cpu);
        }
        if world().plan.prefault && !cpu.nested && chance(8) {
            let gfn = hot();
            world().in_flight[n] = Some(gfn);
            if enter(vcpu, &mut cpu) {
                prefault(vcpu, gfn, 1 + choose(SOME_PAGES));
            }
            touch(gfn);
            world().in_flight[n] = next.map(|next| next.gfn);
        }
        if !enter(vcpu, &mut cpu) {
            srcu = try_again(srcu);
            continue;
        }

        // `vcpu_enter_guest()`
        sched::point_on(vcpu as usize, true);
        *vcpu!(vcpu, mode) = IN_GUEST_MODE;
        sched::point_on(vcpu as usize, false);
        if *vcpu!(vcpu, requests) != 0 || *vcpu!(vcpu, ipi) || world().pause {
            leave(vcpu);
            continue;
        }
        slots::srcu_read_unlock(kvm(), srcu);
        cpu.root = vcpu!(*vcpu!(vcpu, arch.mmu), root.hpa).to_owned();
        let exit = guest(n, vcpu, &mut cpu, &mut next, &mut left);
        leave(vcpu);
        srcu = slots::srcu_read_lock(kvm());

        // `vmx_flush_pml_buffer()`
        for gfn in core::mem::take(&mut cpu.log) {
            let slot = slots::of(kvm(), usize::from(*vcpu!(vcpu, smm)), gfn);
            // SAFETY: Both exist: `kvm->srcu` is held.
            unsafe { mark_page_dirty_in_slot(kvm(), slot, gfn) };
            touch(gfn);
        }
        if let (Exit::Fault(code), Some(Next { gfn, .. })) = (exit, next) {
            if code & PFERR_RSVD != 0 && mmio_page_fault(vcpu, gfn) {
                // Userspace emulates the access; nothing is there.
                next = None;
                left -= 1;
                continue;
            }
            if code & PFERR_WRITE != 0 && !kvm().host.lookup(gfn).1 {
                break_cow(gfn);
            }
            let code = code & !PFERR_RSVD;
            let handled = if cpu.nested {
                let at = next.map_or(gfn, |next| next.at(&cpu));
                shadow::page_fault(vcpu, at, code)
            } else {
                page_fault(vcpu, gfn, code)
            };
            match handled {
                Handled::Enter => {}
                Handled::Emulate => {
                    next = None;
                    left -= 1;
                }
                Handled::WriteProtected => {
                    sched::point_on(contents(gfn), true);
                    if track::emulate_write(kvm(), u16::from(*vcpu!(vcpu, smm)), gfn) {
                        next = None;
                        left -= 1;
                    } else {
                        srcu = try_again(srcu);
                    }
                }
                Handled::Retry | Handled::NoMemory => srcu = try_again(srcu),
            }
            touch(gfn);
        }
    }
    world().running -= 1;
    sched::wake(PAUSE_KEY);
}

/// The vCPU has got nowhere: others may run first.
fn try_again(srcu: u64) -> u64 {
    slots::srcu_read_unlock(kvm(), srcu);
    back_off();
    slots::srcu_read_lock(kvm())
}

/// Waits in userspace until the thread that migrates is further than `phase`. False: it has ended.
fn wait_for_next(phase: &mut Option<u64>) -> bool {
    world().paused += 1;
    sched::wake(PAUSE_KEY);
    while world().phase.is_some() && world().phase == *phase {
        sched::block(PAUSE_KEY, "userspace to go on");
    }
    world().paused -= 1;
    *phase = world().phase;
    phase.is_some()
}

/// Userspace is a step further.
fn next_phase() {
    if let Some(phase) = &mut world().phase {
        *phase += 1;
        sched::wake(PAUSE_KEY);
    }
}

/// A thread in `KVM_PRE_FAULT_MEMORY`, with a vCPU of its own that never runs the guest: who stops
/// the vCPUs does not wait for it.
pub fn prefaulter() {
    let vcpu = world().vcpus[world().plan.vcpus];
    let mut cpu = Cpu::new(world().plan.format);

    for _ in 0..world().plan.prefaults {
        idle();
        let srcu = slots::srcu_read_lock(kvm());
        if !enter(vcpu, &mut cpu) || prefault(vcpu, hot(), 1 + choose(SOME_PAGES)) != Handled::Enter
        {
            back_off();
        }
        slots::srcu_read_unlock(kvm(), srcu);
        point();
    }
}

/// A fault of vCPU 0 before anything begins: maps the page.
#[cfg(feature = "small")]
pub fn touch_alone(gfn: u64, code: u64) {
    let vcpu = world().vcpus[0];
    let mut cpu = Cpu::new(world().plan.format);
    let srcu = slots::srcu_read_lock(kvm());

    let fault = if *vcpu!(vcpu, nested) {
        shadow::page_fault
    } else {
        page_fault
    };
    if !enter(vcpu, &mut cpu) || fault(vcpu, gfn, code) != Handled::Enter {
        fail("a fault fails that nobody disturbs".into());
    }
    touch(gfn);
    slots::srcu_read_unlock(kvm(), srcu);
}

/// vCPU 0 accesses a page, or has it and some after it prefaulted, where nobody else is there.
/// Returns its address space, unless it runs L2, or there is no memory.
pub fn map_alone(gfn: u64, ahead: Option<u64>) -> Option<usize> {
    let vcpu = world().vcpus[0];
    let mut cpu = Cpu::new(world().plan.format);

    if *vcpu!(vcpu, nested) {
        return None;
    }
    let srcu = slots::srcu_read_lock(kvm());
    let mut handled = Handled::NoMemory;
    if enter(vcpu, &mut cpu) {
        handled = match ahead {
            Some(npages) => prefault(vcpu, gfn, npages),
            None => page_fault(vcpu, gfn, 0),
        };
    }
    slots::srcu_read_unlock(kvm(), srcu);
    (handled == Handled::Enter).then_some((*vcpu!(vcpu, smm)).into())
}

/// Does what is requested, and sees to a root; `kvm_mmu_reload()`. False: no memory.
fn enter(vcpu: *mut kvm_vcpu, cpu: &mut Cpu) -> bool {
    sched::point_on(vcpu as usize, true);
    let requests = core::mem::take(vcpu!(vcpu, requests));

    if requests & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS != 0 {
        roots::free_obsolete(vcpu);
    }
    if requests & KVM_REQ_TLB_FLUSH != 0 {
        cpu.flush();
    }
    if *vcpu!(*vcpu!(vcpu, arch.mmu), root.hpa) == INVALID_PAGE {
        if !roots::load(vcpu) {
            return false;
        }
        cpu.flush();
    }
    true
}

/// Leaves the guest: interrupts are taken now.
fn leave(vcpu: *mut kvm_vcpu) {
    sched::point_on(vcpu as usize, true);
    *vcpu!(vcpu, mode) = OUTSIDE_GUEST_MODE;
    if core::mem::take(vcpu!(vcpu, ipi)) {
        note("takes the IPI", [0; 3]);
        sched::wake(vcpu as usize);
    }
}

/// Waits in userspace until the vCPUs may run again.
fn stop() {
    note("stops", [0; 3]);
    world().paused += 1;
    sched::wake(PAUSE_KEY);
    while world().pause {
        sched::block(PAUSE_KEY, "to be let go");
    }
    world().paused -= 1;
}

/// An SMI or RSM: another role, another root. SMM is L1's. An SMI ends L2 first, and RSM goes back
/// to it if there was one; meanwhile VMRUN is refused. `svm_enter_smm()`, `svm_leave_smm()`,
/// `nested_svm_vmrun()`. `interrupted`: the SMI has ended L2.
fn switch_smm(vcpu: *mut kvm_vcpu, cpu: &mut Cpu, interrupted: &mut bool) {
    let smm = !*vcpu!(vcpu, smm);
    let format = world().plan.format;

    if smm && cpu.nested {
        switch_nested(vcpu, cpu);
        *interrupted = true;
    }
    // That this was L2, the vCPU remembers itself.
    let guest_mode = *vcpu!(vcpu, guest_mode) && !smm;
    cpu.guest_mode = guest_mode;
    // As `kvm_mmu_reset_context()` unloads; the next root is loaded with a flush.
    roots::free(vcpu);
    *vcpu!(vcpu, smm) = smm;
    let mmu = *vcpu!(vcpu, arch.mmu);
    *vcpu!(mmu, root_role.word) = core::mem::ManuallyDrop::new(root_role(format, smm, guest_mode));
    if !smm && core::mem::take(interrupted) {
        switch_nested(vcpu, cpu);
    }
}

/// A vCPU that has not run yet will begin in L2.
#[cfg(feature = "small")]
pub fn enter_nested(n: usize) {
    switch_nested(world().vcpus[n], &mut Cpu::new(world().plan.format));
}

/// The vCPU enters or leaves L2.
fn switch_nested(vcpu: *mut kvm_vcpu, cpu: &mut Cpu) {
    let nested = !cpu.nested;
    let own = root_role(world().plan.format, *vcpu!(vcpu, smm), false);

    roots::free(vcpu);
    *vcpu!(vcpu, nested) = nested;
    cpu.nested = nested;
    let mmu = *vcpu!(vcpu, arch.mmu);
    let role = if nested { shadow::root_role(own) } else { own };
    *vcpu!(mmu, root_role.word) = core::mem::ManuallyDrop::new(role);
}

/// The vCPU enters or leaves an L2 for which L1 has no page tables: the root has another role, and
/// maps the same. `kvm_calc_tdp_mmu_root_page_role()`.
fn switch_guest_mode(vcpu: *mut kvm_vcpu, cpu: &mut Cpu) {
    roots::free(vcpu);
    cpu.guest_mode = !cpu.guest_mode;
    *vcpu!(vcpu, guest_mode) = cpu.guest_mode;
    let mmu = *vcpu!(vcpu, arch.mmu);
    let role = root_role(world().plan.format, false, cpu.guest_mode);
    *vcpu!(mmu, root_role.word) = core::mem::ManuallyDrop::new(role);
}

/// The guest runs.
fn guest(
    n: usize,
    vcpu: *mut kvm_vcpu,
    cpu: &mut Cpu,
    next: &mut Option<Next>,
    left: &mut u64,
) -> Exit {
    loop {
        sched::point_on(vcpu as usize, false);
        if *vcpu!(vcpu, ipi) || world().pause || chance(world().plan.rests) {
            return Exit::Kicked;
        }
        let now = *next.get_or_insert_with(|| {
            let access = match choose(8) {
                _ if world().plan.only_writes => Access::Write,
                0..=3 => Access::Write,
                4 if world().plan.nx_huge_pages => Access::Fetch,
                _ => Access::Read,
            };
            Next {
                gfn: hot(),
                access,
                alias: choose(world().plan.aliases),
            }
        });
        let Next { gfn, access, .. } = now;

        world().in_flight[n] = Some(gfn);
        match cpu.translate(now.at(cpu), access) {
            Err(code) => return Exit::Fault(code),
            Ok(pfn) => {
                sched::point_on(contents(gfn), access == Access::Write);
                if access == Access::Write {
                    check_untracked(vcpu, gfn);
                    let write = kvm().host.write(pfn, gfn);
                    note("guest writes", [gfn, pfn, write]);
                } else {
                    kvm().host.read(pfn, gfn);
                    note("guest reads", [gfn, pfn, 0]);
                }
                touch(gfn);
                world().in_flight[n] = None;
                *next = None;
                *left -= 1;
                if *left == 0 {
                    return Exit::Done;
                }
            }
        }
    }
}

/// No CPU writes directly what is tracked.
fn check_untracked(vcpu: *mut kvm_vcpu, gfn: u64) {
    if world()
        .tracked
        .contains(&(u16::from(*vcpu!(vcpu, smm)), gfn))
    {
        fail(format!(
            "the guest writes gfn {gfn:#x}, and KVM tracks its writes"
        ));
    }
}

/// A device shadows tables of the guest's.
pub fn tracker() {
    for _ in 0..world().plan.trackings {
        idle();
        let as_id = u16::from(world().plan.smm && chance(2));
        let gfn = hot();

        track::add(kvm(), as_id, gfn);
        world().tracked.push((as_id, gfn));
        idle();
        world().tracked.retain(|page| *page != (as_id, gfn));
        track::remove(kvm(), as_id, gfn);
    }
}

/// From the return of this on the frames of a range may go to others.
pub fn invalidate(start: u64, end: u64) {
    notifier::invalidate_range_start(kvm(), start, end);
    // If another has made a huge page around the page meanwhile, no frame of that goes away, and it
    // may be mapped: a fault elsewhere in it is not one in this range.
    if has_all_of(start, end, start) {
        crate::world::check_unmapped(start, end);
    }
}

/// Whether a range has all of the host's page, small or huge, that holds `gfn`, as far as that is
/// the guest's.
fn has_all_of(start: u64, end: u64, gfn: u64) -> bool {
    let (base, npages) = (world().plan.base_gfn, world().plan.npages);
    let size = pages(kvm().host.level(gfn).into());
    let first = gfn - gfn % size;

    start <= first.max(base) && end >= (first + size).min(base + npages)
}

/// The host makes the page writable on behalf of a write: in place, if nobody else has it, or by a
/// copy in another frame.
fn break_cow(gfn: u64) {
    point();
    if chance(2) {
        kvm().host.set_writable(gfn, true);
        return;
    }
    invalidate(gfn, gfn + 1);
    sched::point_on(HOST, true);
    // Under the lock of the host's page table: another may have been faster, or may have moved it.
    if !kvm().host.lookup(gfn).1 {
        kvm().host.replace_page(gfn);
    }
    notifier::invalidate_range_end(kvm());
}

/// Userspace: migrates the VM, again and again, and then cancels.
pub fn userspace() {
    for _ in 0..world().plan.migrations {
        if world().plan.moves {
            let all = 0..kvm().memslots.len();
            let there: Vec<_> = all.filter(|at| !kvm().memslots[*at].is_null()).collect();
            let at = there[choose(there.len() as u64) as usize];
            let (base, npages) = ranges(&world().plan)[at % SLOTS];

            slots::delete(kvm(), at, chance(2));
            point();
            slots::create(
                kvm(),
                at,
                base,
                npages as usize,
                slot_flags(&world().plan, at),
            );
        }
        migrate();
        next_phase();
    }
    world().phase = None;
    sched::wake(PAUSE_KEY);
    world().pieces = None;
    sched::wake(PIECES_KEY);
}

/// The places of the memslots that can be logged.
fn memslots() -> Vec<usize> {
    let places = 0..kvm().memslots.len();
    let can_be_logged = |at: &usize| {
        let slot = kvm().memslots[*at];

        // SAFETY: A slot that is in its place exists.
        !slot.is_null() && unsafe { (*slot).flags & KVM_MEM_GUEST_MEMFD == 0 }
    };

    places.filter(can_be_logged).collect()
}

/// Whether a page is migrated: all are but those of a memslot that cannot be logged.
fn is_migrated(gfn: u64) -> bool {
    !world().plan.private || gfn >= world().plan.base_gfn + world().plan.boundary
}

/// Clears the log of a memslot before anything is copied.
fn discard_log(at: usize) {
    let log = slots::get_dirty_log(kvm(), at);

    if let (Some(log), true) = (log, kvm().manual_dirty_log_protect) {
        slots::clear_dirty_log(kvm(), at, 0, &log);
    }
}

fn migrate() {
    let mut since = sched::now();

    for (n, at) in memslots().into_iter().enumerate() {
        if n == 1 && world().plan.dirty_bits_late {
            next_phase();
            discard_log(memslots()[0]);
            copy_all(0..world().plan.boundary);
        }
        slots::set_log(kvm(), at, true);
    }
    next_phase();
    if world().plan.dirty_bits_late {
        copy_all(world().plan.boundary..world().plan.npages);
    } else if !world().plan.initially_all_set {
        copy_all(0..world().plan.npages);
    }
    for _ in 0..choose(world().plan.passes) {
        if world().plan.relocates {
            relocate();
        }
        since = pass(since);
        next_phase();
    }

    // The stop.
    world().pause = true;
    note("stops the vCPUs", [0; 3]);
    while world().paused < world().running {
        sched::block(PAUSE_KEY, "the vCPUs to stop");
    }
    pass(since);
    let w = world();
    for gfn in (w.plan.base_gfn..w.plan.base_gfn + w.plan.npages).filter(|gfn| is_migrated(*gfn)) {
        let (here, there) = (
            kvm().host.version(gfn),
            w.copied[(gfn - w.plan.base_gfn) as usize],
        );
        if here != there {
            fail(format!(
                "gfn {gfn:#x} has write {here}, and the destination write {there}: the log has missed it"
            ));
        }
    }
    // Userspace may end the log before it lets the vCPUs go, or afterwards.
    let ends_first = chance(2);
    if !ends_first {
        let_go();
    }
    for at in memslots() {
        slots::set_log(kvm(), at, false);
    }
    // A fatal signal ends that early. While the tracepoint is on, who loses a race leaves the page
    // to a fault.
    let plan = &world().plan;
    let wins = !plan.traced || (ends_first && plan.agings == 0);
    if kvm().odds.signal == 0 && wins && plan.settings == 0 {
        crate::world::check_writable();
    }
    if ends_first {
        let_go();
    }
    // What the last pass has left there says nothing.
    kvm().ring.clear();
}

/// The vCPUs may run again.
fn let_go() {
    world().pause = false;
    note("lets the vCPUs go", [0; 3]);
    sched::wake(PAUSE_KEY);
}

/// A slot goes where nobody uses it, and comes back.
fn relocate() {
    const AWAY: u64 = 1 << 17;
    let at = memslots()[choose(memslots().len() as u64) as usize];
    let base = ranges(&world().plan)[at % SLOTS].0;

    slots::relocate(kvm(), at, base + AWAY, chance(2));
    point();
    slots::relocate(kvm(), at, base, chance(2));
}

/// What stands for the contents of a page, as a word that is accessed.
fn contents(gfn: u64) -> usize {
    1 << 62 | gfn as usize
}

/// Copies a page to the destination. A step, if the guest uses it.
pub fn copy(gfn: u64) {
    if world().plan.hot.contains(&gfn) {
        sched::point_on(contents(gfn), false);
        note("copies", [gfn, 0, 0]);
    }
    let version = kvm().host.version(gfn);
    let w = world();

    w.copied[(gfn - w.plan.base_gfn) as usize] = version;
}

/// Copies some pages, counted from the first.
fn copy_all(pages: Range<u64>) {
    note("copies all", [0; 3]);
    for gfn in pages.map(|page| world().plan.base_gfn + page) {
        if is_migrated(gfn) {
            copy(gfn);
        }
    }
}

/// One pass over the log: GET, CLEAR if that is not in it, copy. Returns when it began to take
/// bits. `since`: the same of the pass before.
pub fn pass(since: u64) -> u64 {
    let began = sched::now();

    if kvm().use_ring {
        let harvested = slots::harvest_rings(kvm());
        slots::reset_rings(kvm(), &harvested);
        for (_, gfn) in harvested {
            if !may_report(gfn, since) {
                fail(format!(
                    "gfn {gfn:#x} is in a ring, and nobody has touched it"
                ));
            }
            copy(gfn);
        }
        return began;
    }
    if world().plan.clearers != 0 {
        spread_some();
        if world().plan.unseen {
            finish_pieces();
        }
    }
    for at in memslots() {
        let Some(log) = get(at) else { return since };
        let (base, npages) = ranges(&world().plan)[at % SLOTS];
        let exact = !world().plan.initially_all_set && world().plan.clearers == 0;
        let spread = kvm().manual_dirty_log_protect && world().plan.clearers != 0;

        if spread {
            spread_log(at, &log);
        } else if kvm().manual_dirty_log_protect {
            clear(at, &log);
        }
        for (n, word) in log.iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let gfn = base + n as u64 * 64 + bit;
                if n as u64 * 64 + bit >= npages {
                    fail(format!(
                        "the log has a bit for gfn {gfn:#x}, beyond the slot"
                    ));
                }
                if at % SLOTS == SLOTS - 1 {
                    // Nobody reaches these pages.
                    if exact {
                        fail(format!("gfn {gfn:#x} is reported, which no root reaches"));
                    }
                    continue;
                }
                if exact && !may_report(gfn, since) {
                    fail(format!(
                        "gfn {gfn:#x} is reported, and nobody has touched it"
                    ));
                }
                // Otherwise by who has cleared it.
                if !spread {
                    copy(gfn);
                }
            }
        }
    }
    // What is left is for later, while slots move and the next pass begins; but not at the stop.
    if world().plan.clearers != 0 && (world().pause || chance(2)) {
        finish_pieces();
    }
    began
}

/// Hands parts of a log to whoever clears: together they are all of it. Some are handed out twice,
/// and some overlap.
fn spread_log(at: usize, log: &[u64]) {
    let mut first = 0;

    while first < log.len() {
        let len = (1 + choose(8) as usize).min(log.len() - first);

        spread(at, first, &log[first..first + len]);
        if chance(4) {
            let more = first.saturating_sub(choose(3) as usize);

            spread(at, more, &log[more..first + len]);
        }
        first += len;
    }
}

/// Hands out words of the log that nobody has looked at, where the guest writes.
fn spread_some() {
    for at in memslots() {
        let (base, npages) = ranges(&world().plan)[at % SLOTS];
        let gfn = hot();

        if at % SLOTS != SLOTS - 1 && (base..base + npages).contains(&gfn) && chance(2) {
            let page = gfn - base;
            let mut bits = vec![1 << (page % 64)];

            // Or a run of words, with another page in one of them.
            let other = hot().wrapping_sub(base);
            let words = (other / 64).wrapping_sub(page / 64);
            if other < npages && (1..16).contains(&words) {
                bits.resize(words as usize + 1, 0);
                bits[words as usize] |= 1 << (other % 64);
            }
            spread(at, page as usize / 64, &bits);
        }
    }
}

fn spread(at: usize, first: usize, bits: &[u64]) {
    let bits = bits.to_vec();
    let pieces = world().pieces.as_mut().expect("userspace has not ended");

    pieces.push(Piece { at, first, bits });
    sched::wake(PIECES_KEY);
}

/// Clears and copies as the others do, until all is done.
fn finish_pieces() {
    while do_piece() {}
    while world().clearing != 0 {
        sched::block(PIECES_KEY, "the others to clear");
    }
}

/// Takes one of the pieces, clears it, and copies its pages. False: there is none.
fn do_piece() -> bool {
    let pieces = world().pieces.as_mut();
    let Some(pieces) = pieces.filter(|pieces| !pieces.is_empty()) else {
        return false;
    };
    let Piece { at, first, bits } = pieces.swap_remove(choose(pieces.len() as u64) as usize);
    let base = ranges(&world().plan)[at % SLOTS].0 + first as u64 * 64;

    world().clearing += 1;
    while !slots::clear_dirty_log(kvm(), at, first, &bits) {}
    for (n, word) in bits.iter().enumerate() {
        for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
            let gfn = base + n as u64 * 64 + bit;

            // Nobody reaches the pages of the last slot.
            if at % SLOTS != SLOTS - 1 {
                copy(gfn);
            }
        }
    }
    world().clearing -= 1;
    sched::wake(PIECES_KEY);
    true
}

/// Userspace's other threads: they clear and copy parts of a log, and look at it.
pub fn clearer() {
    while world().pieces.is_some() {
        if !do_piece() {
            sched::block(PIECES_KEY, "something to clear");
        } else if kvm().manual_dirty_log_protect && chance(2) {
            let places = memslots();
            let at = places[choose(places.len() as u64) as usize];

            slots::get_if_logged(kvm(), at);
        }
    }
}

/// Whether a bit that was set after `since` may be set.
fn may_report(gfn: u64, since: u64) -> bool {
    let w = world();

    w.touched[(gfn - w.plan.base_gfn) as usize] >= since || w.in_flight.contains(&Some(gfn))
}

/// GET, until nothing interrupts it.
fn get(at: usize) -> Option<Vec<u64>> {
    loop {
        let before = sched::total();

        if let Some(log) = slots::get_dirty_log(kvm(), at) {
            reaped::check(before, |gfn| has_bit(at, 0, &log, gfn));
            return Some(log);
        }
    }
}

/// Whether the bit of a frame is set in words of a memslot's log, from word `first` on.
fn has_bit(at: usize, first: usize, bits: &[u64], gfn: u64) -> bool {
    // SAFETY: Nobody else changes memslots while this thread looks at the log of one.
    let base = unsafe { (*kvm().memslots[at]).base_gfn };
    let page = gfn.wrapping_sub(base).wrapping_sub(first as u64 * 64);

    bits.get(page as usize / 64)
        .is_some_and(|word| word >> (page % 64) & 1 != 0)
}

/// CLEAR of all of a log, in some pieces, each until nothing interrupts it.
fn clear(at: usize, log: &[u64]) {
    let chunk = match choose(3) {
        0 => 1,
        1 => (HUGE_PAGES as usize / 64).max(1),
        _ => log.len(),
    };

    for (n, bits) in log.chunks(chunk).enumerate() {
        if bits.iter().all(|word| *word == 0) {
            continue;
        }
        let before = sched::total();

        while !slots::clear_dirty_log(kvm(), at, n * chunk, bits) {}
        reaped::check(before, |gfn| has_bit(at, n * chunk, bits, gfn));
    }
}

/// A peer has nothing to do for a while; without that, most have done all before the log is on.
fn idle() {
    if !sched::tries_all() {
        for _ in 0..choose(1 << choose(8)) {
            point();
        }
    }
}

/// The host moves memory about.
pub fn invalidator() {
    for _ in 0..world().plan.invalidations {
        idle();
        let gfn = hot();
        let region = Host::region(gfn);
        let (base, npages) = (world().plan.base_gfn, world().plan.npages);
        let level = u32::from(kvm().host.level(gfn));
        // All of the memory, the 2 MiB or 1 GiB around, or the page, if the host maps it by such.
        let level = match choose(4) {
            0 => 4,
            1 => level,
            2 if GIANTS => 3,
            _ => level.max(2),
        };
        let first = gfn - gfn % pages(level);
        let (start, end) = match level {
            4 => (base, base + npages),
            _ => (first, first + pages(level)),
        };

        invalidate(start, end);
        // From here on under the lock of the host's page table.
        sched::point_on(HOST, true);
        // Another may have made a huge page of its surroundings meanwhile, of which this was not
        // told.
        if has_all_of(start, end, gfn) {
            let giant = gfn - gfn % pages(3);
            match choose(if world().plan.read_only { 4 } else { 3 }) {
                // A page moves.
                0 => kvm().host.replace_page(gfn),
                1 if GIANTS && level >= 3 => kvm().host.replace_giant(giant),
                n @ 1..=2 => {
                    if level > 1 {
                        kvm().host.replace_region(region, n == 1);
                    }
                }
                // It is shared, to be copied on a write; a page alone has rights of its own.
                _ => {
                    kvm().host.replace_page(gfn);
                    kvm().host.set_writable(gfn, false);
                }
            }
        }
        notifier::invalidate_range_end(kvm());
        point();
    }
}

/// Userspace changes attributes of pages, and empties pages of guest_memfd.
pub fn attributes() {
    for _ in 0..world().plan.attributes {
        idle();
        let gfn = hot();

        if world().plan.private {
            change_private(gfn);
        } else {
            slots::set_attributes(kvm(), (gfn, gfn + 1), true);
            point();
            if chance(2) {
                slots::set_attributes(kvm(), (gfn, gfn + 1), false);
            }
        }
    }
}

/// Changes attributes of the page, or of the 2 MiB around it, as far as they are of the memslot
/// that has guest_memfd; or empties the page.
fn change_private(gfn: u64) {
    let (base, npages) = ranges(&world().plan)[0];

    if !(base..base + npages).contains(&gfn) {
        return;
    }
    if chance(4) {
        return gmem::punch_hole(kvm(), gfn);
    }
    let region = Host::region(gfn);
    let range = if chance(2) {
        (gfn, gfn + 1)
    } else {
        (region.max(base), (region + HUGE_PAGES).min(base + npages))
    };

    slots::set_attributes(kvm(), range, choose(3) != 0);
}

/// The host looks which pages are in use.
pub fn ager() {
    for _ in 0..world().plan.agings {
        idle();
        let gfn = hot();

        if chance(4) {
            notifier::test_young(kvm(), gfn);
        } else if chance(2) {
            notifier::clear_young(kvm(), gfn, gfn + 1);
        } else {
            let region = Host::region(gfn);
            notifier::clear_young(kvm(), region, region + HUGE_PAGES);
        }
    }
}

/// Userspace splits ahead, keeps it so, and recovers.
pub fn splitter() {
    for _ in 0..world().plan.splits {
        idle();
        let as_id = usize::from(world().plan.smm && chance(2));
        let request = match choose(4) {
            0 => Request::Split,
            1..=2 => Request::Keep,
            _ => Request::Recover,
        };

        facts().killable = true;
        split::split_step(kvm(), as_id, hot(), request);
        facts().killable = false;
        facts().killed = false;
        crate::world::check_small();
    }
}

/// NX recovery.
pub fn recoverer() {
    for _ in 0..world().plan.recoveries {
        idle();
        nx::recover(kvm(), 1 + choose(2) as usize);
        point();
    }
}

/// Root changes parameters of KVM's, and traces for a while.
pub fn root() {
    for _ in 0..world().plan.settings {
        idle();
        match choose(4) {
            0 => settings::eager_page_split(chance(2)),
            1 => settings::trace(kvm(), chance(2)),
            2 => settings::fault_around(kvm(), choose(64) as u32),
            _ => settings::nx_huge_pages(kvm(), world().plan.nx_huge_pages || chance(2)),
        }
    }
}

/// Zaps everything, fast.
pub fn zapper() {
    for _ in 0..world().plan.zaps {
        idle();
        kvm().slots_lock.lock("mutex_lock(slots_lock)", false);
        roots::zap_all_fast(kvm());
        kvm().slots_lock.unlock("mutex_unlock(slots_lock)", false);
    }
}
