// SPDX-License-Identifier: GPL-2.0

//! The whole of the Rust MMU under a scheduler that decides every interleaving.
//!
//! `kvm-mmu-sim [--minutes N] [--scenario NAME] [--seed SEED]`, or with tables of 8 entries, where
//! all schedules are run: `kvm-mmu-sim [--world NAME] [--format NAME] [--preemptions N]`

mod hw;
mod parties;
mod quiet;
mod reaped;
mod scenario;
#[cfg(feature = "small")]
mod small;
mod words;
mod world;

use std::{
    process::exit,
    sync::atomic::{
        AtomicU64,
        AtomicUsize,
        Ordering::Relaxed, //
    },
    time::{
        Duration,
        SystemTime,
        UNIX_EPOCH, //
    }, //
};

use machine::{
    choose,
    sched, //
};
use scenario::Scenario;

/// A run that takes more steps does not end.
const LIMIT: u64 = 3_000_000;

static SCENARIO: AtomicUsize = AtomicUsize::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
/// Schedules so far, with that which runs.
static RUNS: AtomicU64 = AtomicU64::new(0);

fn usage(why: &str) -> ! {
    let names: Vec<_> = scenario::ALL.iter().map(|s| s.name).collect();

    eprintln!(
        "error: {why}; usage: kvm-mmu-sim [--minutes N] [--scenario NAME] [--seed SEED | --from SEED]"
    );
    eprintln!("scenarios: {}", names.join(" "));
    exit(2)
}

/// The time that this process has had a CPU: on a busy machine a minute is longer.
fn cpu_time() -> Duration {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    let mut time = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };

    // SAFETY: It is libc's function, and the structure as it is on 64-bit Linux.
    unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.seconds as u64, time.nanoseconds as u32)
}

/// One run. Returns the number of its steps.
fn run(scenario: &Scenario, seed: u64) -> u64 {
    SEED.store(seed, Relaxed);
    RUNS.fetch_add(1, Relaxed);
    sched::begin(seed, LIMIT);
    let plan = scenario.plan(seed);
    world::begin(plan.clone());

    for n in 0..plan.vcpus {
        sched::spawn(format!("vCPU {n}"), move || parties::vcpu(n));
    }
    let peers: [(&str, u64, fn()); 11] = [
        ("attributes", plan.attributes, parties::attributes),
        ("userspace", plan.migrations, parties::userspace),
        ("prefault", plan.prefaults, parties::prefaulter),
        ("notifier", plan.invalidations, parties::invalidator),
        ("aging", plan.agings, parties::ager),
        ("NX", plan.recoveries, parties::recoverer),
        ("zap", plan.zaps, parties::zapper),
        ("track", plan.trackings, parties::tracker),
        ("splitter", plan.splits, parties::splitter),
        ("clearer", plan.clearers, parties::clearer),
        ("root", plan.settings, parties::root),
    ];
    for (name, times, body) in peers {
        let parties = match name {
            "notifier" => plan.notifiers,
            "splitter" => plan.splitters,
            "clearer" => plan.clearers,
            _ => 1,
        };
        for _ in 0..if times != 0 { parties } else { 0 } {
            sched::spawn(name.into(), body);
        }
    }
    let steps = sched::run();
    sched::spawn("quiet".into(), quiet::check);
    sched::run();
    world::check_quiet();

    // Its end is a party of its own: it may have to wait for RCU.
    sched::spawn("end".into(), || world::end(choose(2) == 0));
    sched::run();
    steps
}

fn headline() -> String {
    let name = scenario::ALL[SCENARIO.load(Relaxed)].name;
    let seed = SEED.load(Relaxed);

    format!(
        "replay: make sim SCENARIO={name} SEED={seed:#x}\n  schedule {} of this run, {:.1} s of a CPU",
        RUNS.load(Relaxed),
        cpu_time().as_secs_f64()
    )
}

/// The seed that an option names.
fn seed_of(value: &str) -> u64 {
    let digits = value.strip_prefix("0x");
    let number = digits.map_or_else(|| value.parse(), |d| u64::from_str_radix(d, 16));

    number.unwrap_or_else(|_| usage(&format!("'{value}' is no seed")))
}

/// The program. The schedules are those of the seeds from `--from` on, or from one that the clock
/// gives.
pub fn main() {
    let mut seed = None;
    let mut from = None;
    let mut minutes = 2.0;
    let mut only = None;
    #[cfg(feature = "small")]
    let mut wanted = small::Wanted::ALL;
    let mut args = std::env::args().skip(1);

    while let Some(arg) = args.next() {
        let Some(value) = args.next() else {
            usage(&format!("'{arg}' needs a value"));
        };
        match arg.as_str() {
            "--seed" => seed = Some(seed_of(&value)),
            "--from" => from = Some(seed_of(&value)),
            "--minutes" => match value.parse() {
                Ok(n) if n > 0.0 => minutes = n,
                _ => usage(&format!("'{value}' is no number of minutes")),
            },
            "--scenario" => match scenario::find(&value) {
                Some(scenario) => only = Some(scenario),
                None => usage(&format!("there is no scenario '{value}'")),
            },
            #[cfg(feature = "small")]
            _ => {
                if let Err(why) = wanted.set(&arg, &value) {
                    usage(&why);
                }
            }
            #[cfg(not(feature = "small"))]
            _ => usage(&format!("unknown option '{arg}'")),
        }
    }

    sched::set_words(words::describe, headline);
    std::panic::set_hook(Box::new(|info| sched::fail(format!("panic: {info}"))));

    #[cfg(feature = "small")]
    if seed.is_none() && only.is_none() {
        return small::main(&wanted);
    }
    if let Some(seed) = seed {
        let scenario = only.unwrap_or_else(|| usage("a seed is one of a scenario: say which"));
        set_scenario(scenario);
        let steps = run(scenario, seed);
        println!(
            "scenario {}, seed {seed:#x}: {steps} steps, nothing found",
            scenario.name
        );
        println!("{:#?}", scenario.plan(seed));
        return;
    }

    let all: Vec<&Scenario> = only.map_or_else(|| scenario::ALL.iter().collect(), |s| vec![s]);
    let slice = Duration::from_secs_f64(minutes * 60.0 / all.len() as f64);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let first = from.unwrap_or_else(|| clock.map_or(0, |t| t.as_nanos() as u64) << 16);

    for scenario in all {
        set_scenario(scenario);
        let start = cpu_time();
        let mut next = first;
        let (mut runs, mut steps, mut shown) = (0u64, 0u64, start);

        while cpu_time() - start < slice {
            steps += run(scenario, next);
            runs += 1;
            next = next.wrapping_add(1);
            if cpu_time() - shown > Duration::from_secs(10) {
                shown = cpu_time();
                report(scenario, runs, steps, shown - start, "...");
            }
        }
        report(scenario, runs, steps, cpu_time() - start, "ok");
    }
    println!(
        "nobody has waited for more than {} steps of one who held mmu_lock",
        machine::lock::longest_wait()
    );
}

fn set_scenario(scenario: &Scenario) {
    let index = scenario::ALL.iter().position(|s| s.name == scenario.name);

    SCENARIO.store(index.unwrap_or(0), Relaxed);
}

fn report(scenario: &Scenario, runs: u64, steps: u64, time: Duration, state: &str) {
    let seconds = time.as_secs_f64();

    println!(
        "{:<12} {:>9} schedules, {:>7.0} a second, {:>7.0} steps each: {state:<4} ({})",
        scenario.name,
        runs,
        runs as f64 / seconds,
        steps as f64 / runs.max(1) as f64,
        scenario.what
    );
}
