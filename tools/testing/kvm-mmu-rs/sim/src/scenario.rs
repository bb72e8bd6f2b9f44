// SPDX-License-Identifier: GPL-2.0

//! What runs against what.

#[cfg(feature = "small")]
use kvm_c::model::pages;
use kvm_c::{
    bindings::{
        Odds,
        KVM_RS_FREE_PAGES, //
    },
    model::HUGE_PAGES, //
};
use machine::rng::Rng;

use crate::{
    hw::Format,
    world::Plan, //
};

/// The pages whose bits are taken in one go.
const BATCH_PAGES: u64 = 64 * 1024;

/// The tables that are freed together, at most.
const BATCH_TABLES: u64 = KVM_RS_FREE_PAGES as u64;

/// A kind of run; the seed decides the rest.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    adjust: fn(&mut Plan, &mut Rng),
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "faults",
        what: "vCPUs that fault, and nothing else",
        adjust: |plan, _| {
            plan.migrations = 0;
            plan.vcpus = 3;
        },
    },
    Scenario {
        name: "notify",
        what: "vCPUs, and two notifiers at the same time",
        adjust: |plan, rng| {
            plan.migrations = 0;
            plan.vcpus = 2;
            plan.accesses *= 4;
            plan.notifiers = 2;
            plan.invalidations = 2 + rng.below(6);
        },
    },
    Scenario {
        name: "log",
        what: "vCPUs against a userspace that logs and migrates",
        adjust: |_, _| {},
    },
    Scenario {
        name: "log-age",
        what: "the same, with aging",
        adjust: |plan, rng| plan.agings = 2 + rng.below(6),
    },
    Scenario {
        name: "log-notify",
        what: "the same, with a host that moves memory",
        adjust: |plan, rng| plan.invalidations = 1 + rng.below(4),
    },
    Scenario {
        name: "log-zap",
        what: "the same, with all roots invalidated and zapped",
        adjust: |plan, rng| plan.zaps = 1 + rng.below(3),
    },
    Scenario {
        name: "nx",
        what: "executable small pages, recovery, and the log",
        adjust: |plan, rng| {
            plan.nx_huge_pages = true;
            plan.recoveries = 2 + rng.below(4);
            plan.migrations = rng.below(2);
            // Userspace may replace a table while a fault is about to list it.
            plan.splits = [0, 8][rng.below(2) as usize];
        },
    },
    Scenario {
        name: "smm",
        what: "two address spaces, each with roots and a log of its own",
        adjust: |plan, rng| {
            plan.smm = true;
            plan.zaps = rng.below(2);
        },
    },
    Scenario {
        name: "prefault",
        what: "vCPUs that prefault as well, against the log",
        adjust: |plan, rng| {
            plan.prefault = true;
            plan.prefaults = rng.below(8);
            plan.agings = rng.below(3);
            plan.invalidations = rng.below(4);
            // Neighbours of the others, which are mapped together with them.
            let near = 1 + rng.below(4);
            let end = plan.base_gfn + plan.npages;
            let some = plan.hot.iter().map(|gfn| gfn + near);
            plan.hot = some
                .filter(|gfn| *gfn < end)
                .chain(plan.hot.clone())
                .collect();
        },
    },
    Scenario {
        name: "fault-around",
        what: "vCPUs whose faults map neighbours as well, against the log and notifiers",
        adjust: |plan, rng| {
            plan.fault_around = 2 << rng.below(7);
            plan.vcpus = 2;
            plan.agings = rng.below(3);
            plan.invalidations = rng.below(4);
            plan.trackings = rng.below(2);
            plan.prefaults = rng.below(2);
            if rng.below(3) == 0 {
                // A memslot may end among the neighbours.
                plan.boundary = 1 + rng.below(plan.npages - 1);
                plan.hot.push(plan.base_gfn + plan.boundary);
            }
            let end = plan.base_gfn + plan.npages;
            let near = 1 + rng.below(plan.fault_around.into());
            let some = plan.hot.iter().map(|gfn| gfn ^ near);
            plan.hot = some
                .filter(|gfn| (plan.base_gfn..end).contains(gfn))
                .chain(plan.hot.clone())
                .collect();
        },
    },
    Scenario {
        name: "slots",
        what: "neighbouring slots, one that no root reaches, deletion, attributes",
        adjust: |plan, rng| {
            if rng.below(2) == 0 {
                plan.boundary = 1 + rng.below(plan.npages - 1);
                if rng.below(2) == 0 {
                    // The neighbours share a huge page, and meet in the middle of it.
                    plan.hot = (0..4)
                        .map(|_| plan.base_gfn + plan.boundary - 4 + rng.below(8))
                        .filter(|gfn| (0..plan.npages).contains(&gfn.wrapping_sub(plan.base_gfn)))
                        .collect();
                    plan.hot.push(plan.base_gfn + plan.boundary);
                }
            }
            plan.far = rng.below(2) == 0;
            plan.moves = rng.below(4) == 0;
            plan.attributes = rng.below(3);
        },
    },
    Scenario {
        name: "nested",
        what: "a nested guest, by shadow pages that come and go, and the log",
        adjust: |plan, rng| {
            plan.nested = true;
            plan.zaps = rng.below(3);
            if rng.below(2) == 0 {
                // Few pages, and everybody is at them.
                plan.hot.truncate(1);
                plan.accesses = 32;
                plan.agings = 8 + rng.below(24);
            } else {
                plan.agings = 1 + rng.below(6);
            }
            plan.invalidations = rng.below(3);
            plan.aliases = [1, 1, 2, 5][rng.below(4) as usize];
            if rng.below(4) == 0 {
                plan.log_to_ring();
            }
        },
    },
    Scenario {
        name: "moves",
        what: "slots that are moved elsewhere and back while they are logged",
        adjust: |plan, rng| {
            // Without PML: KVM drops what a CPU has logged of a slot that is away, as it finds no
            // slot then.
            plan.format = [Format::Npt, Format::EptAd, Format::Ept][rng.below(3) as usize];
            plan.relocates = true;
            plan.dirty_bits = rng.below(2) == 0;
            plan.passes = 1 + rng.below(4);
            plan.nested = rng.below(4) == 0;
            plan.zaps = rng.below(2);
            if rng.below(3) == 0 {
                plan.divide(rng);
            }
        },
    },
    Scenario {
        name: "track",
        what: "pages whose writes are tracked, and emulated, for a while",
        adjust: |plan, rng| {
            plan.trackings = 1 + rng.below(6);
            plan.prefault = rng.below(3) == 0;
            plan.prefaults = rng.below(4);
            plan.nested = rng.below(3) == 0;
            plan.aliases = 1 + rng.below(2);
            plan.smm = rng.below(4) == 0;
            plan.dirty_bits = rng.below(3) == 0;
            plan.agings = rng.below(3);
            plan.invalidations = rng.below(2);
            plan.nx_huge_pages = rng.below(4) == 0;
            plan.recoveries = rng.below(2);
            plan.read_only = rng.below(4) == 0;
            if rng.below(4) == 0 {
                // Few writes, by D bits: nothing makes up for one that is lost.
                plan.log_by_dirty_bits(rng);
                plan.shrink(1 + rng.below(2), rng);
                plan.accesses = 1 + rng.below(4);
                plan.only_writes = true;
                plan.nested = false;
                plan.smm = false;
            }
        },
    },
    Scenario {
        name: "nested-late",
        what: "the first VMRUN while a log by faults, by D bits or by PML goes on",
        adjust: |plan, rng| {
            plan.nested = true;
            plan.late = true;
            plan.dirty_bits = rng.below(2) == 0;
            plan.aliases = 1 + rng.below(2);
            plan.passes = 1 + rng.below(4);
            plan.relocates = plan.format != Format::EptPml && rng.below(4) == 0;
            plan.agings = rng.below(3);
            plan.invalidations = rng.below(3);
            plan.zaps = rng.below(2);
        },
    },
    Scenario {
        name: "nested-smm",
        what:
            "a nested guest, and SMIs that end it: two address spaces with lists of the reverse map",
        adjust: |plan, rng| {
            plan.nested = true;
            plan.smm = true;
            plan.zaps = rng.below(2);
            plan.agings = rng.below(6);
            plan.invalidations = rng.below(3);
            if rng.below(4) == 0 {
                plan.log_to_ring();
            }
        },
    },
    Scenario {
        name: "ring",
        what: "the log is a ring",
        adjust: |plan, rng| {
            plan.log_to_ring();
            plan.agings = rng.below(3);
            plan.nx_huge_pages = rng.below(4) == 0;
            plan.recoveries = rng.below(2);
        },
    },
    Scenario {
        name: "many-tables",
        what: "more tables are torn down in one hold of mmu_lock than are freed together",
        adjust: |plan, rng| {
            plan.npages = (BATCH_TABLES + 1 + rng.below(4)) * HUGE_PAGES;
            plan.huge = u64::MAX;
            plan.hot = (0..plan.npages / HUGE_PAGES)
                .map(|n| plan.base_gfn + n * HUGE_PAGES + rng.below(HUGE_PAGES))
                .collect();
            plan.accesses = 64 + rng.below(256);
            plan.manual = false;
            plan.initially_all_set = false;
            plan.passes = 1;
            plan.migrations = 1;
            plan.phased = true;
            plan.zaps = rng.below(2);
            plan.splits = rng.below(3);
        },
    },
    Scenario {
        name: "signals",
        what: "a log of more than one batch, and fatal signals between them",
        adjust: |plan, rng| {
            plan.npages = BATCH_PAGES + HUGE_PAGES;
            plan.hot = (0..1 + rng.below(3))
                .map(|_| plan.base_gfn + rng.below(plan.npages))
                .collect();
            plan.manual = rng.below(4) == 0;
            plan.initially_all_set = false;
            plan.odds.signal = 2 + rng.below(3);
            plan.odds.no_memory = 0;
            plan.migrations = 1;
        },
    },
    Scenario {
        name: "clears",
        what: "several threads that clear one log, GET beside it, and slots and roots that change",
        adjust: |plan, rng| {
            plan.clearers = 1 + rng.below(2);
            plan.manual |= rng.below(4) != 0;
            plan.initially_all_set &= plan.manual;
            plan.passes = 4;
            plan.phased = true;
            plan.invite(rng);
            plan.dirty_bits = rng.below(4) == 0;
            plan.relocates = plan.format != Format::EptPml && rng.below(4) == 0;
            // Neighbours: their words, and often their tables, are not the same thread's.
            for gfn in plan.hot.clone() {
                let near = gfn ^ 64;

                if (plan.base_gfn..plan.base_gfn + plan.npages).contains(&near) {
                    plan.hot.push(near);
                }
            }
            if rng.below(4) == 0 {
                plan.divide(rng);
            }
            if rng.below(4) == 0 {
                // The first shadow page comes in the middle.
                plan.nested = true;
                plan.late = rng.below(2) == 0;
                plan.prefault = false;
                plan.attributes = 0;
            }
        },
    },
    Scenario {
        name: "dirty-bits",
        what: "everybody, with logging by D bits",
        adjust: |plan, rng| {
            plan.log_by_dirty_bits(rng);
            plan.invite(rng);
            plan.read_only = rng.below(4) == 0;
            if rng.below(3) == 0 {
                plan.divide(rng);
            }
            plan.traced = rng.below(4) == 0;
        },
    },
    Scenario {
        name: "dirty-bits-late",
        what: "logging by faults, and by D bits since another memslot is logged",
        adjust: |plan, rng| {
            plan.log_by_dirty_bits(rng);
            plan.dirty_bits_late = true;
            plan.initially_all_set = false;
            plan.divide(rng);
            plan.invite(rng);
            plan.zaps = 0;
            plan.smm = false;
            plan.attributes = 0;
            plan.prefault = rng.below(2) == 0;
            plan.prefaults = rng.below(12);
            plan.notifiers = 1 + rng.below(3);
            if rng.below(2) == 0 {
                // All happens in the memslot that is logged by faults at first.
                let range = (plan.base_gfn, plan.boundary);
                plan.hot = (0..2).map(|_| range.0 + rng.below(range.1)).collect();
            }
        },
    },
    Scenario {
        name: "dirty-bits-idle",
        what: "few accesses in many passes over the log, by D bits",
        adjust: |plan, rng| {
            plan.log_by_dirty_bits(rng);
            plan.shrink(2, rng);
            plan.accesses = 3 + rng.below(6);
            plan.only_writes = rng.below(2) == 0;
            plan.passes = 6;
            if rng.below(3) == 0 {
                // Two tables, one after the other, and both get closed.
                plan.npages = 3 * HUGE_PAGES;
                for (n, gfn) in plan.hot.iter_mut().enumerate() {
                    *gfn += (n as u64 + 1) * HUGE_PAGES;
                }
                plan.manual |= rng.below(4) != 0;
            }
        },
    },
    Scenario {
        name: "dirty-bits-notify",
        what: "few writes, by D bits, against a host that moves memory",
        adjust: |plan, rng| {
            plan.log_by_dirty_bits(rng);
            plan.shrink(1 + rng.below(2), rng);
            plan.huge = 0;
            plan.accesses = 1 + rng.below(4);
            plan.only_writes = true;
            plan.passes = 1 + rng.below(2);
            plan.notifiers = 1;
            plan.invalidations = 1 + rng.below(12);
        },
    },
    Scenario {
        name: "dirty-bits-unseen",
        what: "pages are cleared, by D bits, that GET has not reported",
        adjust: |plan, rng| {
            plan.log_by_dirty_bits(rng);
            plan.manual = true;
            plan.initially_all_set = false;
            plan.vcpus = 1;
            plan.odds = Odds::default();
            plan.base_gfn = HUGE_PAGES;
            plan.npages = 2 * HUGE_PAGES;
            // In two tables, or one page.
            let middle = plan.base_gfn + HUGE_PAGES;
            plan.hot = vec![middle - 1 - rng.below(64), middle + rng.below(64)];
            plan.hot.truncate(1 + rng.below(2) as usize);
            // Few, as the next write that is noticed makes up for one that is lost.
            plan.accesses = 2 + rng.below(3);
            plan.rests = 2;
            plan.only_writes = true;
            plan.migrations = 1;
            plan.passes = 4;
            plan.phased = true;
            plan.clearers = 1;
            plan.unseen = rng.below(4) != 0;
            match rng.below(3) {
                // Two roots of the same address space.
                0..=1 => plan.guest_mode = true,
                _ => {
                    plan.nested = true;
                    plan.late = true;
                }
            }
        },
    },
    Scenario {
        name: "ahead",
        what: "userspace splits ahead and recovers, against faults, notifiers, zaps and the log",
        adjust: |plan, rng| {
            plan.splits = 2 + rng.below(6);
            plan.invite(rng);
            plan.migrations = rng.below(3);
            plan.dirty_bits = rng.below(4) == 0;
            plan.moves = rng.below(4) == 0;
            if rng.below(4) == 0 {
                plan.divide(rng);
            }
        },
    },
    #[cfg(feature = "small")]
    Scenario {
        name: "giant",
        what: "everybody, where tables have 8 entries, and the host also has pages of 1 GiB",
        adjust: |plan, rng| {
            let mut odd = |n: u64| if rng.below(4) == 0 { rng.below(n) } else { 0 };
            plan.base_gfn = pages(3) + odd(pages(3));
            plan.npages = pages(3) + odd(2 * pages(3));
            plan.giant = rng.bits();
            plan.hot = (0..1 + rng.below(5))
                .map(|_| plan.base_gfn + rng.below(plan.npages))
                .collect();
            plan.vcpus = 1 + rng.below(3) as usize;
            plan.migrations = rng.below(3);
            plan.splits = rng.below(2) * rng.below(7);
            plan.invite(rng);
            plan.nx_huge_pages = rng.below(2) == 0;
            plan.recoveries = rng.below(6);
            plan.prefaults = rng.below(3);
            plan.fault_around = [0, 0, 4, 16][rng.below(4) as usize];
            plan.trackings = rng.below(2) * rng.below(3);
            plan.dirty_bits = rng.below(3) == 0;
            plan.clearers = plan.migrations * rng.below(2);
            plan.read_only = rng.below(4) == 0;
            plan.moves = plan.trackings == 0 && rng.below(6) == 0;
            plan.passes = 1 + rng.below(4);
            if rng.below(4) == 0 {
                plan.divide(rng);
            }
            if rng.below(6) == 0 {
                plan.log_to_ring();
                plan.dirty_bits = false;
                plan.clearers = 0;
            }
        },
    },
    Scenario {
        name: "private",
        what: "pages of guest_memfd that get private and shared, beside a memslot that is logged",
        adjust: |plan, rng| {
            plan.private = true;
            plan.base_gfn = HUGE_PAGES;
            plan.npages = 2 * HUGE_PAGES;
            plan.boundary = HUGE_PAGES;
            if rng.below(4) == 0 {
                plan.divide(rng);
            }
            // Most of it happens in the first memslot.
            plan.hot = (0..1 + rng.below(3))
                .map(|_| plan.base_gfn + rng.below(plan.boundary))
                .collect();
            plan.hot.extend(plan.hot.first().map(|gfn| gfn ^ 1));
            plan.hot.push(plan.base_gfn + rng.below(plan.npages));
            plan.hot
                .retain(|gfn| (plan.base_gfn..plan.base_gfn + plan.npages).contains(gfn));
            plan.invite(rng);
            plan.smm = false;
            plan.attributes = 2 + rng.below(8);
            plan.splits = [0, 8][rng.below(2) as usize];
            plan.prefaults = rng.below(4);
            plan.fault_around = [0, 4, 16][rng.below(3) as usize];
            plan.migrations = rng.below(2);
            plan.dirty_bits = rng.below(3) == 0;
            plan.clearers = plan.migrations * rng.below(2);
            plan.moves = rng.below(6) == 0;
        },
    },
    Scenario {
        name: "all",
        what: "everybody at once",
        adjust: |plan, rng| {
            plan.splits = rng.below(3);
            plan.agings = 1 + rng.below(4);
            plan.invalidations = 1 + rng.below(3);
            plan.zaps = rng.below(3);
            plan.nx_huge_pages = rng.below(2) == 0;
            plan.recoveries = 1 + rng.below(3);
            plan.smm = rng.below(4) == 0;
            plan.prefault = rng.below(2) == 0;
            plan.prefaults = rng.below(3);
            plan.read_only = rng.below(2) == 0;
        },
    },
];

/// The scenario of a name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

impl Plan {
    /// Most peers, each in some runs.
    fn invite(&mut self, rng: &mut Rng) {
        self.agings = rng.below(4);
        self.invalidations = rng.below(4);
        self.zaps = rng.below(3);
        self.nx_huge_pages = rng.below(4) == 0;
        self.recoveries = rng.below(3);
        self.smm = rng.below(4) == 0;
        self.prefault = rng.below(4) == 0;
        self.attributes = rng.below(2);
    }

    /// The memory is that of two slots, which may share a table.
    fn divide(&mut self, rng: &mut Rng) {
        self.boundary = 1 + rng.below(self.npages - 1);
    }

    /// D bits are the log, in a format that can.
    fn log_by_dirty_bits(&mut self, rng: &mut Rng) {
        self.dirty_bits = true;
        self.format = Format::ALL[rng.below(2) as usize];
    }

    /// One table, of which one vCPU uses so many pages while one migration goes on; nothing fails.
    fn shrink(&mut self, pages: u64, rng: &mut Rng) {
        self.base_gfn = HUGE_PAGES;
        self.npages = HUGE_PAGES;
        self.hot = (0..pages)
            .map(|_| HUGE_PAGES + rng.below(HUGE_PAGES))
            .collect();
        self.odds = Odds::default();
        self.vcpus = 1;
        self.migrations = 1;
    }

    /// The log is a ring, which has neither manual protection nor bits that are set initially.
    fn log_to_ring(&mut self) {
        self.ring = true;
        self.manual = false;
        self.initially_all_set = false;
    }
}

impl Scenario {
    /// What the run of a seed is made of.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut rng = Rng::new(seed ^ 0x706c_616e);
        let regions = 1 + rng.below(2);
        // Mostly aligned; sometimes the slot begins in the middle of a huge page.
        let base_gfn = HUGE_PAGES + if rng.below(4) == 0 { HUGE_PAGES / 2 } else { 0 };
        let npages = regions * HUGE_PAGES;
        let hot = (0..1 + rng.below(5))
            .map(|_| base_gfn + rng.below(npages))
            .collect();
        let mut odd = |n: u64| if rng.below(2) == 0 { 0 } else { n };
        let odds = Odds {
            no_memory: odd(8),
            resched: odd(16),
            signal: odd(8),
        };
        // Few accesses, so that what one has missed is not made up for by the next; or many.
        let many = 2 << rng.below(5);
        let manual = rng.below(2) == 0;
        let mut plan = Plan {
            huge: rng.bits(),
            hot,
            vcpus: 1 + rng.below(2) as usize,
            accesses: 1 + rng.below(many),
            phased: rng.below(2) == 0,
            manual,
            initially_all_set: manual && rng.below(2) == 0,
            eager: rng.below(4) != 0,
            odds,
            migrations: 1 + rng.below(2),
            notifiers: 1 + rng.below(2),
            splitters: 1 + rng.below(2),
            passes: 3,
            traced: rng.below(8) == 0,
            ..Plan::new(Format::ALL[rng.below(4) as usize], base_gfn, npages)
        };

        (self.adjust)(&mut plan, &mut rng);
        if rng.below(4) == 0 {
            plan.settings = 1 + rng.below(6);
        }
        plan.guest_mode |= !plan.nested && rng.below(6) == 0;
        plan.encrypted = rng.below(2) == 0;
        plan.starts_as_c = !plan.dirty_bits && rng.below(8) == 0;
        plan
    }
}
