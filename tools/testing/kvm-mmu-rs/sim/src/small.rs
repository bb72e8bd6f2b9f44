// SPDX-License-Identifier: GPL-2.0

//! Every schedule of small worlds: tables of 8 entries, two parties, one protocol each.
//!
//! What is left to chance elsewhere is left out here: the CPU uses what it has cached, nothing fails,
//! and the scheduler does not want the CPU. A step is an access of a word that others access too.

use kvm_c::{
    bindings::*,
    host::Host,
    model::{notifier, nx, slots, HOST, HUGE_PAGES},
};
use machine::{every, fail, sched};

use crate::{
    hw::Format,
    parties,
    world::{self, kvm, world, Plan},
};

/// More steps than a run takes.
const LIMIT: u64 = 100_000;

/// A protocol, with what is there before and who plays against a vCPU that writes to a page.
struct Small {
    name: &'static str,
    /// The host maps the memory by huge pages.
    huge: bool,
    /// The log is on, with all bits set or none.
    log: Option<bool>,
    /// The page, or the huge page, is mapped before the two meet.
    mapped: bool,
    nx: bool,
    /// The vCPU runs L2, which shadow pages map.
    nested: bool,
    peer: fn(),
    /// The log must know what was written.
    check_log: bool,
    /// Log by D bits.
    dirty_bits: bool,
}

const PAGE: u64 = HUGE_PAGES + 3;

fn reap() {
    parties::pass(0);
}

const ALL: &[Small] = &[
    Small {
        name: "reap against fault",
        huge: false,
        log: Some(false),
        mapped: false,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: false,
    },
    Small {
        name: "reap against fast page fault",
        huge: false,
        log: Some(false),
        mapped: true,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: false,
    },
    Small {
        name: "split against fault",
        huge: true,
        log: Some(true),
        mapped: true,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: false,
    },
    Small {
        name: "start of the log against fault",
        huge: true,
        log: None,
        mapped: true,
        nx: false,
        nested: false,
        peer: || {
            slots::set_log(kvm(), 0, true);
            parties::copy(PAGE);
        },
        check_log: true,
        dirty_bits: false,
    },
    Small {
        name: "promotion against fault",
        huge: true,
        log: None,
        mapped: false,
        nx: false,
        nested: false,
        peer: || {
            let slot = kvm().memslots[0];
            kvm().slots_lock.lock("mutex_lock(slots_lock)", false);
            kvm().mmu_lock.read_lock();
            // SAFETY: both exist, and the locks are held.
            unsafe { kvm_tdp_mmu_recover_huge_pages(kvm(), slot) };
            kvm().mmu_lock.read_unlock();
            kvm().slots_lock.unlock("mutex_unlock(slots_lock)", false);
        },
        check_log: false,
        dirty_bits: false,
    },
    Small {
        name: "NX recovery against fault",
        huge: true,
        log: None,
        mapped: false,
        nx: true,
        nested: false,
        peer: || nx::recover(kvm(), 1),
        check_log: false,
        dirty_bits: false,
    },
    Small {
        name: "zap against walker",
        huge: false,
        log: None,
        mapped: true,
        nx: false,
        nested: false,
        peer: || {
            let start = Host::region(PAGE);

            parties::invalidate(start, start + HUGE_PAGES);
            sched::point_on(HOST, true);
            kvm().host.replace_page(PAGE);
            notifier::invalidate_range_end(kvm());
        },
        check_log: false,
        dirty_bits: false,
    },
    Small {
        name: "lock bit against aging",
        huge: false,
        log: None,
        mapped: false,
        nx: false,
        nested: true,
        peer: || {
            notifier::clear_young(kvm(), PAGE, PAGE + 1);
            notifier::test_young(kvm(), PAGE);
        },
        check_log: false,
        dirty_bits: false,
    },
    Small {
        name: "zap against walker in L2",
        huge: false,
        log: None,
        mapped: true,
        nx: false,
        nested: true,
        peer: || {
            let start = Host::region(PAGE);

            parties::invalidate(start, start + HUGE_PAGES);
            sched::point_on(HOST, true);
            kvm().host.replace_page(PAGE);
            notifier::invalidate_range_end(kvm());
        },
        check_log: false,
        dirty_bits: false,
    },
    Small {
        name: "D bits: reap against fault",
        huge: false,
        log: Some(false),
        mapped: false,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: true,
    },
    Small {
        name: "D bits: reap against write",
        huge: false,
        log: Some(false),
        mapped: true,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: true,
    },
    Small {
        name: "D bits: split against write",
        huge: true,
        log: Some(true),
        mapped: true,
        nx: false,
        nested: false,
        peer: reap,
        check_log: true,
        dirty_bits: true,
    },
    Small {
        name: "D bits: start of the log against write",
        huge: true,
        log: None,
        mapped: true,
        nx: false,
        nested: false,
        peer: || {
            slots::set_log(kvm(), 0, true);
            parties::copy(PAGE);
        },
        check_log: true,
        dirty_bits: true,
    },
    Small {
        name: "D bits: zap against write",
        huge: false,
        log: Some(false),
        mapped: true,
        nx: false,
        nested: false,
        peer: || {
            let start = Host::region(PAGE);

            parties::invalidate(start, start + HUGE_PAGES);
            notifier::invalidate_range_end(kvm());
        },
        check_log: true,
        dirty_bits: true,
    },
];

fn plan(small: &Small, format: Format) -> Plan {
    Plan {
        format,
        base_gfn: HUGE_PAGES,
        npages: HUGE_PAGES,
        boundary: 0,
        far: false,
        ring: false,
        huge: u64::from(small.huge),
        hot: vec![PAGE],
        vcpus: 1,
        accesses: 1,
        phased: false,
        manual: small.log == Some(true),
        initially_all_set: small.log == Some(true),
        eager: true,
        nx_huge_pages: small.nx,
        smm: false,
        nested: small.nested,
        late: false,
        aliases: 1,
        prefault: false,
        prefaults: 0,
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
        trackings: 0,
        read_only: false,
        only_writes: true,
        passes: 0,
        dirty_bits: small.dirty_bits,
    }
}

/// Runs a party alone.
fn alone(body: fn()) {
    sched::spawn("before".into(), body);
    sched::run();
}

fn run(small: &'static Small, format: Format) {
    sched::begin_every(LIMIT);
    world::begin(plan(small, format));
    if small.nested {
        parties::enter_nested(0);
    }

    if small.nx || (small.huge && small.log.is_none() && !small.mapped) {
        // Small pages where a huge one could be: by the log, or by an executable page.
        if small.nx {
            alone(|| parties::touch_alone(PAGE + 1, PFERR_FETCH));
        } else {
            alone(|| {
                slots::set_log(kvm(), 0, true);
                parties::touch_alone(PAGE + 1, PFERR_WRITE);
                // The log ends, and nobody has promoted yet.
                // SAFETY: the slot exists; nobody else is there.
                unsafe { (*kvm().memslots[0]).flags = 0 };
            });
        }
    }
    if small.log == Some(true) {
        // The huge page is mapped while there is no log.
        alone(|| parties::touch_alone(PAGE, PFERR_WRITE));
        alone(|| slots::set_log(kvm(), 0, true));
    } else if small.log == Some(false) {
        alone(|| slots::set_log(kvm(), 0, true));
    }
    if small.mapped && small.log != Some(true) {
        alone(|| parties::touch_alone(PAGE, PFERR_WRITE));
        if small.log == Some(false) {
            alone(|| {
                parties::pass(0);
            });
        }
    }

    sched::spawn("vCPU".into(), || parties::vcpu(0));
    sched::spawn("peer".into(), small.peer);
    sched::run();

    if small.check_log {
        alone(|| {
            parties::pass(0);
            let w = world();
            let there = w.copied[(PAGE - w.plan.base_gfn) as usize];
            let here = kvm().host.version(PAGE);
            if here != there {
                fail(format!(
                    "write {here} is not in the log, the copy has write {there}"
                ));
            }
        });
    }
    world::check_quiet();
    alone(|| world::end(false));
}

/// All of them; says how many schedules there are.
pub fn main() {
    let mut all = 0;

    println!("every schedule, tables of {HUGE_PAGES} entries:");
    for small in ALL {
        for format in Format::ALL {
            let start = crate::cpu_time();
            let count = every::search(|| run(small, format));
            all += count.schedules;

            println!(
                "{:<32} {:<8} {:>9} schedules, {:>9} more that are the same as one of them, {:.1} s",
                small.name,
                format!("{format:?}"),
                count.schedules,
                count.redundant,
                (crate::cpu_time() - start).as_secs_f64()
            );
        }
    }
    println!("{all} schedules in all");
}
