// SPDX-License-Identifier: GPL-2.0

//! Those who run at the same time: vCPUs, userspace, and the peers.

use kvm_c::{
    bindings::*,
    host::Host,
    model::{
        fault::{back_off, page_fault, prefault, Handled},
        notifier, nx, roots, slots, HOST, HUGE_PAGES,
    },
};
use machine::{chance, choose, fail, note, point, sched};

use crate::{
    hw::{Access, Cpu},
    world::{kvm, root_role, world, PAUSE_KEY},
};

fn touch(gfn: u64) {
    let w = world();

    w.touched[(gfn - w.plan.base_gfn) as usize] = sched::now();
}

fn hot() -> u64 {
    let hot = &world().plan.hot;

    hot[choose(hot.len() as u64) as usize]
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
        // SAFETY: the vCPU exists as long as its thread; one OS thread.
        let field = unsafe { &mut (*$vcpu).$($field)+ };
        field
    }};
}

/// A vCPU's thread: `vcpu_run()` and `vcpu_enter_guest()`.
pub fn vcpu(n: usize) {
    let vcpu = world().vcpus[n];
    let mut cpu = Cpu::new(world().plan.format);
    let mut left = world().plan.accesses;
    let mut next: Option<(u64, Access)> = None;

    cpu.no_executable_huge = world().plan.nx_huge_pages;
    sched::facts().vcpu = n + 1;
    let mut srcu = slots::srcu_read_lock(kvm());
    while left > 0 {
        point();
        if world().pause {
            slots::srcu_read_unlock(kvm(), srcu);
            stop();
            srcu = slots::srcu_read_lock(kvm());
        }
        if world().plan.smm && chance(8) {
            switch_smm(vcpu);
        }
        if world().plan.prefault && chance(8) {
            let gfn = hot();
            world().in_flight[n] = Some(gfn);
            if enter(vcpu, &mut cpu) {
                prefault(vcpu, gfn);
            }
            touch(gfn);
            world().in_flight[n] = next.map(|(gfn, _)| gfn);
        }
        if !enter(vcpu, &mut cpu) {
            back_off();
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
            let slot = kvm().memslots[usize::from(*vcpu!(vcpu, smm))];
            // SAFETY: both exist: `kvm->srcu` is held.
            unsafe { mark_page_dirty_in_slot(kvm(), slot, gfn) };
            touch(gfn);
        }
        if let (Exit::Fault(code), Some((gfn, _))) = (exit, next) {
            if code & PFERR_WRITE != 0 && !kvm().host.lookup(gfn).1 {
                break_cow(gfn);
            }
            if page_fault(vcpu, gfn, code) != Handled::Enter {
                back_off();
            }
            touch(gfn);
        }
    }
    slots::srcu_read_unlock(kvm(), srcu);
    world().running -= 1;
    sched::wake(PAUSE_KEY);
}

/// A fault of vCPU 0 before anything begins: maps the page.
#[cfg(feature = "small")]
pub fn touch_alone(gfn: u64, code: u64) {
    let vcpu = world().vcpus[0];
    let mut cpu = Cpu::new(world().plan.format);
    let srcu = slots::srcu_read_lock(kvm());

    if !enter(vcpu, &mut cpu) || page_fault(vcpu, gfn, code) != Handled::Enter {
        fail("a fault fails that nobody disturbs".into());
    }
    touch(gfn);
    slots::srcu_read_unlock(kvm(), srcu);
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

/// The guest enters or leaves SMM: another role, another root.
fn switch_smm(vcpu: *mut kvm_vcpu) {
    let smm = !*vcpu!(vcpu, smm);
    let format = world().plan.format;

    // As `kvm_mmu_reset_context()` unloads; the next root is loaded with a flush.
    roots::free(vcpu);
    *vcpu!(vcpu, smm) = smm;
    let mmu = *vcpu!(vcpu, arch.mmu);
    *vcpu!(mmu, root_role.word) = core::mem::ManuallyDrop::new(root_role(format, smm));
}

/// The guest runs.
fn guest(
    n: usize,
    vcpu: *mut kvm_vcpu,
    cpu: &mut Cpu,
    next: &mut Option<(u64, Access)>,
    left: &mut u64,
) -> Exit {
    loop {
        sched::point_on(vcpu as usize, false);
        if *vcpu!(vcpu, ipi) || world().pause || chance(32) {
            return Exit::Kicked;
        }
        let (gfn, access) = *next.get_or_insert_with(|| {
            let access = match choose(8) {
                _ if world().plan.only_writes => Access::Write,
                0..=3 => Access::Write,
                4 if world().plan.nx_huge_pages => Access::Fetch,
                _ => Access::Read,
            };
            (hot(), access)
        });

        world().in_flight[n] = Some(gfn);
        match cpu.translate(gfn, access) {
            Err(code) => return Exit::Fault(code),
            Ok(pfn) => {
                sched::point_on(contents(gfn), access == Access::Write);
                if access == Access::Write {
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

/// From the return of this on the frames of a range may go to others.
pub fn invalidate(start: u64, end: u64) {
    notifier::invalidate_range_start(kvm(), start, end);
    crate::world::check_unmapped(start, end);
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
    kvm().host.replace_page(gfn);
    kvm().host.set_writable(gfn, true);
    notifier::invalidate_range_end(kvm());
}

/// Userspace: migrates the VM, again and again, and then cancels.
pub fn userspace() {
    for _ in 0..world().plan.migrations {
        migrate();
    }
}

fn address_spaces() -> usize {
    1 + usize::from(world().plan.smm)
}

fn migrate() {
    let mut since = sched::now();

    for as_id in 0..address_spaces() {
        slots::set_log(kvm(), as_id, true);
    }
    if !world().plan.initially_all_set {
        copy_all();
    }
    for _ in 0..choose(3) {
        since = pass(since);
    }

    // The stop.
    world().pause = true;
    note("stops the vCPUs", [0; 3]);
    while world().paused < world().running {
        sched::block(PAUSE_KEY, "the vCPUs to stop");
    }
    pass(since);
    let w = world();
    for gfn in w.plan.base_gfn..w.plan.base_gfn + w.plan.npages {
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
    w.pause = false;
    note("lets the vCPUs go", [0; 3]);
    sched::wake(PAUSE_KEY);

    for as_id in 0..address_spaces() {
        slots::set_log(kvm(), as_id, false);
    }
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

fn copy_all() {
    let (base, npages) = (world().plan.base_gfn, world().plan.npages);

    note("copies all", [0; 3]);
    for gfn in base..base + npages {
        copy(gfn);
    }
}

/// One pass over the log: GET, CLEAR if that is not in it, copy. Returns when it began to take bits.
/// `since`: the same of the pass before.
pub fn pass(since: u64) -> u64 {
    let began = sched::now();

    for as_id in 0..address_spaces() {
        let Some(log) = get(as_id) else { return since };
        let (base, exact) = (world().plan.base_gfn, !world().plan.initially_all_set);

        if kvm().manual_dirty_log_protect {
            clear(as_id, &log);
        }
        for (n, word) in log.iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let gfn = base + n as u64 * 64 + bit;
                if exact && !may_report(gfn, since) {
                    fail(format!(
                        "gfn {gfn:#x} is reported, and nobody has touched it"
                    ));
                }
                copy(gfn);
            }
        }
    }
    began
}

/// Whether a bit that was set after `since` may be set.
fn may_report(gfn: u64, since: u64) -> bool {
    let w = world();

    w.touched[(gfn - w.plan.base_gfn) as usize] >= since || w.in_flight.contains(&Some(gfn))
}

/// GET, until nothing interrupts it.
fn get(as_id: usize) -> Option<Vec<u64>> {
    loop {
        if let Some(log) = slots::get_dirty_log(kvm(), as_id) {
            return Some(log);
        }
    }
}

/// CLEAR of all of a log, in some pieces, each until nothing interrupts it.
fn clear(as_id: usize, log: &[u64]) {
    let chunk = match choose(3) {
        0 => 1,
        1 => (HUGE_PAGES as usize / 64).max(1),
        _ => log.len(),
    };

    for (n, bits) in log.chunks(chunk).enumerate() {
        if bits.iter().all(|word| *word == 0) {
            continue;
        }
        while !slots::clear_dirty_log(kvm(), as_id, n * chunk, bits) {}
    }
}

/// The host moves memory about.
pub fn invalidator() {
    for _ in 0..world().plan.invalidations {
        let gfn = hot();
        let region = Host::region(gfn);

        match choose(if world().plan.read_only { 4 } else { 3 }) {
            // A page moves; a huge page of the host is split for that before.
            0 => {
                invalidate(region, region + HUGE_PAGES);
                sched::point_on(HOST, true);
                kvm().host.replace_page(gfn);
                notifier::invalidate_range_end(kvm());
            }
            n @ 1..=2 => {
                invalidate(region, region + HUGE_PAGES);
                sched::point_on(HOST, true);
                kvm().host.replace_region(region, n == 1);
                notifier::invalidate_range_end(kvm());
            }
            // It is shared, to be copied on a write.
            _ => {
                invalidate(region, region + HUGE_PAGES);
                sched::point_on(HOST, true);
                // A page alone has rights of its own.
                kvm().host.replace_page(gfn);
                kvm().host.set_writable(gfn, false);
                notifier::invalidate_range_end(kvm());
            }
        }
        point();
    }
}

/// The host looks which pages are in use.
pub fn ager() {
    for _ in 0..world().plan.agings {
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

/// NX recovery.
pub fn recoverer() {
    for _ in 0..world().plan.recoveries {
        nx::recover(kvm(), 1 + choose(2) as usize);
        point();
    }
}

/// Zaps everything, fast.
pub fn zapper() {
    for _ in 0..world().plan.zaps {
        kvm().slots_lock.lock("mutex_lock(slots_lock)", false);
        roots::zap_all_fast(kvm());
        kvm().slots_lock.unlock("mutex_unlock(slots_lock)", false);
    }
}
