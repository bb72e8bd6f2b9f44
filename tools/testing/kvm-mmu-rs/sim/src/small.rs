// SPDX-License-Identifier: GPL-2.0

//! Every schedule of small worlds: tables of 8 entries, two parties, one protocol each.
//!
//! What is left to chance elsewhere is left out here: the CPU uses what it has cached, nothing
//! fails, and the scheduler does not want the CPU. A step is an access of a word that others access
//! too.

use kvm_c::{
    bindings::*,
    host::Host,
    model::{
        notifier,
        nx,
        slots,
        HOST,
        HUGE_PAGES, //
    }, //
};
use machine::{
    every,
    fail,
    sched, //
};

use crate::{
    hw::Format,
    parties,
    world::{
        self,
        kvm,
        world,
        Plan, //
    }, //
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
    /// Too many schedules: a party that could go on is stopped a few times only.
    bounded: bool,
}

const PLAIN: Small = Small {
    name: "",
    huge: false,
    log: None,
    mapped: false,
    nx: false,
    nested: false,
    peer: || {},
    check_log: false,
    dirty_bits: false,
    bounded: false,
};

const PAGE: u64 = HUGE_PAGES + 3;

fn reap() {
    parties::pass(0);
}

fn start_log() {
    slots::set_log(kvm(), 0, true);
    parties::copy(PAGE);
}

/// The host takes the frame of the page away.
fn replace_page() {
    let start = Host::region(PAGE);

    parties::invalidate(start, start + HUGE_PAGES);
    sched::point_on(HOST, true);
    kvm().host.replace_page(PAGE);
    notifier::invalidate_range_end(kvm());
}

const ALL: &[Small] = &[
    Small {
        name: "reap against fault",
        log: Some(false),
        peer: reap,
        check_log: true,
        ..PLAIN
    },
    Small {
        name: "reap against fast page fault",
        log: Some(false),
        mapped: true,
        peer: reap,
        check_log: true,
        ..PLAIN
    },
    Small {
        name: "split against fault",
        huge: true,
        log: Some(true),
        mapped: true,
        peer: reap,
        check_log: true,
        ..PLAIN
    },
    Small {
        name: "start of the log against fault",
        huge: true,
        mapped: true,
        peer: start_log,
        check_log: true,
        bounded: true,
        ..PLAIN
    },
    Small {
        name: "recovery against fault",
        huge: true,
        peer: || {
            let slot = kvm().memslots[0];
            kvm().slots_lock.lock("mutex_lock(slots_lock)", false);
            kvm().mmu_lock.read_lock();
            // SAFETY: Both exist, and the locks are held.
            unsafe { kvm_tdp_mmu_recover_huge_pages(kvm(), slot) };
            kvm().mmu_lock.read_unlock();
            kvm().slots_lock.unlock("mutex_unlock(slots_lock)", false);
        },
        bounded: true,
        ..PLAIN
    },
    Small {
        name: "NX recovery against fault",
        huge: true,
        nx: true,
        peer: || nx::recover(kvm(), 1),
        bounded: true,
        ..PLAIN
    },
    Small {
        name: "zap against walker",
        mapped: true,
        peer: replace_page,
        ..PLAIN
    },
    Small {
        name: "lock bit against aging",
        nested: true,
        peer: || {
            notifier::clear_young(kvm(), PAGE, PAGE + 1);
            notifier::test_young(kvm(), PAGE);
        },
        ..PLAIN
    },
    Small {
        name: "zap against walker in L2",
        mapped: true,
        nested: true,
        peer: replace_page,
        ..PLAIN
    },
    Small {
        name: "D bits: reap against fault",
        log: Some(false),
        peer: reap,
        check_log: true,
        dirty_bits: true,
        ..PLAIN
    },
    Small {
        name: "D bits: reap against write",
        log: Some(false),
        mapped: true,
        peer: reap,
        check_log: true,
        dirty_bits: true,
        ..PLAIN
    },
    Small {
        name: "D bits: split against write",
        huge: true,
        log: Some(true),
        mapped: true,
        peer: reap,
        check_log: true,
        dirty_bits: true,
        ..PLAIN
    },
    Small {
        name: "D bits: start of the log against write",
        huge: true,
        mapped: true,
        peer: start_log,
        check_log: true,
        dirty_bits: true,
        ..PLAIN
    },
    Small {
        name: "D bits: zap against write",
        log: Some(false),
        mapped: true,
        peer: || {
            let start = Host::region(PAGE);

            parties::invalidate(start, start + HUGE_PAGES);
            notifier::invalidate_range_end(kvm());
        },
        check_log: true,
        dirty_bits: true,
        ..PLAIN
    },
];

impl Small {
    /// D bits are used for logging where the CPU sets them, and does not log writes itself.
    fn is_possible(&self, format: Format) -> bool {
        !self.dirty_bits || (format.has_ad() && format != Format::EptPml)
    }
}

fn plan(small: &Small, format: Format) -> Plan {
    Plan {
        huge: u64::from(small.huge),
        hot: vec![PAGE],
        accesses: 1,
        manual: small.log == Some(true),
        initially_all_set: small.log == Some(true),
        nx_huge_pages: small.nx,
        nested: small.nested,
        only_writes: true,
        dirty_bits: small.dirty_bits,
        ..Plan::new(format, HUGE_PAGES, HUGE_PAGES)
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
                // SAFETY: The slot exists; nobody else is there.
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

/// What is asked for.
pub struct Wanted {
    /// This world only.
    world: Option<String>,
    /// In this format only.
    format: Option<Format>,
    /// How often a party is stopped that could go on, in worlds that have too many schedules.
    preemptions: usize,
}

impl Wanted {
    /// Everything, with two preemptions.
    pub const ALL: Wanted = Wanted {
        world: None,
        format: None,
        preemptions: 2,
    };

    /// Takes an option of the command line. Fails with the reason.
    pub fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "--world" if ALL.iter().any(|small| small.name == value) => {
                self.world = Some(value.into());
            }
            "--world" => return Err(format!("there is no small world '{value}'")),
            "--format" => {
                let mut all = Format::ALL.into_iter();
                let format = all.find(|format| format!("{format:?}") == value);
                self.format = Some(format.ok_or(format!("there is no format '{value}'"))?);
            }
            "--preemptions" => {
                let number = value.parse().ok();
                self.preemptions = number.ok_or(format!("'{value}' is no number"))?;
            }
            _ => return Err(format!("unknown option '{option}'")),
        }
        Ok(())
    }
}

/// Runs every schedule of what is wanted; says how many there are.
pub fn main(wanted: &Wanted) {
    let mut all = 0;
    let is_wanted = |small: &Small| {
        let mut world = wanted.world.iter();
        world.all(|name| name == small.name)
    };

    println!("every schedule, tables of {HUGE_PAGES} entries:");
    for small in ALL.iter().filter(|small| is_wanted(small)) {
        for format in Format::ALL {
            if !small.is_possible(format) || wanted.format.is_some_and(|only| only != format) {
                continue;
            }
            let start = crate::cpu_time();
            let bound = small.bounded.then_some(wanted.preemptions);
            let count = every::search(bound, || run(small, format));
            let what = match bound {
                Some(n) => format!("with {n} preemptions at most"),
                None => format!(
                    "and {} more that are the same as one of them",
                    count.redundant
                ),
            };
            all += count.schedules;

            println!(
                "{:<38} {:<8} {:>8} schedules, {what}, {:.1} s",
                small.name,
                format!("{format:?}"),
                count.schedules,
                (crate::cpu_time() - start).as_secs_f64()
            );
        }
    }
    println!("{all} schedules in all");
}
