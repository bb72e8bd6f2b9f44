// SPDX-License-Identifier: GPL-2.0

//! The scheduler: parties are coroutines, and a seed decides which of them takes each step.
//!
//! shuttle would switch coroutines, and ask its scheduler, at each step. Most decisions of a good
//! schedule are to go on, which here is a counter that is decremented; and a step has operands, so
//! that a failure can be told in KVM's words.

use std::cell::UnsafeCell;

use corosensei::{
    stack::DefaultStack,
    Coroutine,
    CoroutineResult,
    Yielder, //
};

use crate::rng::Rng;

/// Bytes of a party's stack.
const STACK: usize = 256 << 10;
/// How many steps of the past are kept.
const HISTORY: usize = 1 << 14;
/// How many steps of each party a failure shows.
const SHOWN: usize = 14;

/// What a party did.
#[derive(Clone, Copy)]
pub struct Step {
    /// When.
    pub at: u64,
    /// Who.
    pub party: usize,
    /// What.
    pub what: &'static str,
    /// Its operands.
    pub args: [u64; 3],
}

/// How the next party is chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Policy {
    /// Switch every so many steps, to anybody.
    Walk { mean: u64 },
    /// Priorities: the highest that can runs, and at a few steps the one that runs gets the lowest
    /// (PCT, Burckhardt et al.). Finds bugs that need few but exact switches.
    Priorities { changes: u64, within: u64 },
    /// All of them, one after the other; see [`crate::every`].
    Every,
}

/// The step that a party is about to take, as far as others can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// The word that it accesses; 0: none.
    pub word: usize,
    /// Whether it may change it.
    pub write: bool,
}

impl Op {
    /// Whether it makes no difference which of two steps comes first.
    pub fn commutes(self, other: Op) -> bool {
        self.word == 0 || self.word != other.word || !(self.write || other.write)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Runnable,
    Blocked(usize),
    Done,
}

struct Party {
    name: String,
    /// `None` while it runs.
    coroutine: Option<Coroutine<(), (), ()>>,
    yielder: *const Yielder<(), ()>,
    state: State,
    /// What it waits for, in words.
    waits: &'static str,
    priority: i64,
    next: Op,
    /// It has found that it must wait, and nobody else has taken a step since.
    spins: bool,
    /// Its own steps, before it got the turn that it has.
    steps: u64,
    facts: Facts,
}

/// What the simulated kernel knows of a thread.
#[derive(Default)]
pub struct Facts {
    /// Read-side critical sections of RCU that it is in.
    pub rcu: u32,
    /// Spinning locks that it holds; it may not sleep then.
    pub spinning: u32,
    /// What its hold of `mmu_lock` is accounted to, and whether it is for write.
    pub hold: Option<(u32, bool)>,
    /// The same of a hold that it goes on with when it has taken the lock again.
    pub paused: Option<(u32, bool)>,
    /// All locks that it holds, a bit each; see [`crate::lock`].
    pub locks: u32,
    /// Tables that it has freed itself since it took `mmu_lock`.
    pub freed: u32,
    /// Tables that it may allocate for splits, however many wait to be freed.
    pub allowance: u32,
    /// Tables that it has unlinked in the step of the MMU's that is looked at.
    pub torn_down: u32,
    /// How many tables had been linked, by whomever, when that step began.
    pub linked: u64,
    /// It maps what a guest has accessed.
    pub faults: bool,
    /// It looks for D bits, and clears none; and the last entry that it has visited then, if that
    /// points to a closed table.
    pub harvests: bool,
    pub closed: usize,
    /// It zaps roots that are invalid.
    pub zaps_roots: bool,
    /// An allocation has failed, or it was told that there may be no more shadow pages, and it has
    /// not counted that yet.
    pub no_memory: bool,
    pub no_budget: bool,
    /// The scheduler wants the CPU.
    pub need_resched: bool,
    /// A fatal signal may come.
    pub killable: bool,
    /// A fatal signal is pending.
    pub killed: bool,
    /// How often it has tried something in vain.
    pub retries: u32,
    /// The number of the vCPU that runs on it, plus one.
    pub vcpu: usize,
}

struct Sched {
    parties: Vec<Party>,
    stacks: Vec<DefaultStack>,
    current: usize,
    /// The step in which it got its turn.
    turn: u64,
    running: bool,
    steps: u64,
    limit: u64,
    /// Steps until the next decision.
    countdown: u64,
    policy: Policy,
    /// [`Policy::Priorities`]: the step of the next change, and how many are left.
    change_at: u64,
    changes: u64,
    lowest: i64,
    rng: Rng,
    history: Vec<Step>,
    total: u64,
    outside: Facts,
    describe: fn(&Step) -> String,
    headline: fn() -> String,
}

struct Global(UnsafeCell<Option<Sched>>);
// SAFETY: One OS thread runs the simulation.
unsafe impl Sync for Global {}
static GLOBAL: Global = Global(UnsafeCell::new(None));

#[inline]
fn sched() -> &'static mut Sched {
    // SAFETY: One OS thread; nobody keeps the reference over a switch, as each function gets it
    // anew.
    let sched = unsafe { &mut *GLOBAL.0.get() };

    sched.get_or_insert_with(|| Sched {
        parties: Vec::new(),
        stacks: Vec::new(),
        current: 0,
        turn: 0,
        running: false,
        steps: 0,
        limit: u64::MAX,
        countdown: 0,
        policy: Policy::Walk { mean: 1 },
        change_at: 0,
        changes: 0,
        lowest: 0,
        rng: Rng::new(0),
        history: Vec::with_capacity(HISTORY),
        total: 0,
        outside: Facts::default(),
        describe: |step| step.what.into(),
        headline: String::new,
    })
}

/// Says how to put steps into words, and what a failure's first line is.
pub fn set_words(describe: fn(&Step) -> String, headline: fn() -> String) {
    sched().describe = describe;
    sched().headline = headline;
}

/// Begins a run: its decisions follow from `seed`. It fails if it takes more than `limit` steps.
pub fn begin(seed: u64, limit: u64) {
    let s = sched();

    s.rng = Rng::new(seed);
    s.steps = 0;
    s.limit = limit;
    s.history.clear();
    s.total = 0;
    s.parties.clear();
    s.current = 0;
    s.turn = 0;
    s.running = false;
    s.outside = Facts::default();
    s.lowest = 0;
    s.policy = match s.rng.below(8) {
        n @ 0..=4 => Policy::Walk { mean: 1 << (2 * n) },
        _ => Policy::Priorities {
            changes: 1 + s.rng.below(4),
            within: 1 << (7 + s.rng.below(8)),
        },
    };
    s.changes = match s.policy {
        Policy::Priorities { changes, .. } => changes,
        Policy::Walk { .. } | Policy::Every => 0,
    };
    s.countdown = 0;
    plan_change();
}

/// Begins a run of which [`crate::every`] makes the decisions.
pub fn begin_every(limit: u64) {
    begin(0, limit);
    sched().policy = Policy::Every;
}

/// Chooses the step of the next change of priorities.
fn plan_change() {
    let s = sched();

    s.change_at = u64::MAX;
    if let Policy::Priorities { within, .. } = s.policy {
        if s.changes > 0 {
            s.changes -= 1;
            s.change_at = s.steps + 1 + s.rng.below(within);
        }
    }
}

/// Adds a party, before the run or in it.
pub fn spawn(name: String, body: impl FnOnce() + 'static) -> usize {
    let s = sched();
    let id = s.parties.len();
    let stack = s
        .stacks
        .pop()
        .unwrap_or_else(|| DefaultStack::new(STACK).expect("no memory for a party's stack"));
    let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
        sched().parties[id].yielder = yielder;
        body();
    });
    let priority = s.rng.below(1 << 20) as i64;

    s.parties.push(Party {
        name,
        coroutine: Some(coroutine),
        yielder: core::ptr::null(),
        state: State::Runnable,
        waits: "",
        priority,
        next: Op {
            word: 0,
            write: false,
        },
        spins: false,
        steps: 0,
        facts: Facts::default(),
    });
    id
}

/// Runs all parties to their ends, and returns the number of steps that they took.
pub fn run() -> u64 {
    sched().running = true;
    decide();
    loop {
        let s = sched();
        let id = s.current;
        let mut coroutine = s.parties[id].coroutine.take().expect("it does not run");

        match coroutine.resume(()) {
            CoroutineResult::Yield(()) => sched().parties[id].coroutine = Some(coroutine),
            CoroutineResult::Return(()) => {
                let s = sched();
                s.parties[id].state = State::Done;
                s.stacks.push(coroutine.into_stack());
                if s.parties.iter().all(|p| p.state == State::Done) {
                    s.running = false;
                    s.outside = Facts::default();
                    return s.steps;
                }
                wake(DONE);
                decide();
            }
        }
    }
}

/// Whether all schedules are tried.
pub fn tries_all() -> bool {
    sched().policy == Policy::Every
}

/// The key of those who wait for a party to end.
const DONE: usize = usize::MAX;

/// Waits until the parties have ended.
pub fn join(parties: &[usize]) {
    while parties
        .iter()
        .any(|id| sched().parties[*id].state != State::Done)
    {
        block(DONE, "the others to end");
    }
}

/// Waits until all other parties have ended.
pub fn join_others() {
    let me = me();
    let others: Vec<usize> = (0..sched().parties.len()).filter(|id| *id != me).collect();

    join(&others);
}

/// Chooses who takes the next step, and for how long.
fn decide() {
    let s = sched();

    if let Some(party) = s.parties.get_mut(s.current) {
        party.steps += s.steps - s.turn;
    }
    s.turn = s.steps;
    if s.steps > s.limit {
        fail(format!("does not end: {} steps taken", s.steps));
    }
    let runnable = s
        .parties
        .iter()
        .filter(|p| p.state == State::Runnable)
        .count();
    if runnable == 0 {
        let waits: Vec<_> = s
            .parties
            .iter()
            .filter(|p| p.state != State::Done)
            .map(|p| format!("{} waits for {}", p.name, p.waits))
            .collect();
        fail(format!("deadlock: {}", waits.join(", ")));
    }
    let nth = |s: &Sched, n: u64| {
        let mut runnable =
            (0..s.parties.len()).filter(|id| s.parties[*id].state == State::Runnable);
        runnable.nth(n as usize).expect("counted above")
    };

    match s.policy {
        Policy::Walk { mean } => {
            let n = s.rng.below(runnable as u64);
            s.current = nth(s, n);
            s.countdown = s.rng.below(2 * mean);
        }
        Policy::Priorities { .. } => {
            let ids = 0..s.parties.len();
            s.current = ids
                .filter(|id| s.parties[*id].state == State::Runnable)
                .max_by_key(|id| s.parties[*id].priority)
                .expect("counted above");
            s.countdown = s.change_at.saturating_sub(s.steps).min(1 << 16);
        }
        Policy::Every => {
            // To look again before anybody else has done something would change nothing.
            let moves = |p: &Party| p.state == State::Runnable && !p.spins;
            let some = s.parties.iter().any(moves);
            let parties = s.parties.iter().enumerate();
            let enabled = parties
                .filter(|(_, p)| moves(p) || (!some && p.state == State::Runnable))
                .map(|(id, p)| (id, p.next));

            let chosen = crate::every::decide(enabled.collect());
            for (id, party) in s.parties.iter_mut().enumerate() {
                party.spins &= id == chosen;
            }
            s.current = chosen;
            s.countdown = 0;
        }
    }
}

/// Gives the step to whom [`decide`] chooses.
#[cold]
fn switch() {
    let s = sched();
    let me = s.current;

    if s.steps >= s.change_at {
        demote(me);
        plan_change();
    }
    decide();
    if sched().current != me {
        suspend(me);
    }
}

fn demote(party: usize) {
    let s = sched();

    s.lowest -= 1;
    s.parties[party].priority = s.lowest;
}

fn suspend(me: usize) {
    let yielder = sched().parties[me].yielder;
    // SAFETY: The coroutine of the party runs, so its yielder exists.
    unsafe { (*yielder).suspend(()) };
}

/// A scheduling point of a step that concerns nobody but those who wait for time to pass. Where all
/// schedules are tried, it is none.
#[inline]
pub fn point() {
    if sched().policy != Policy::Every {
        point_on(0, false);
    }
}

/// A scheduling point: somebody else may take any number of steps now, before this party accesses
/// the word at `word`.
#[inline]
pub fn point_on(word: usize, write: bool) {
    let s = sched();

    if !s.running {
        return;
    }
    if s.policy == Policy::Every {
        s.parties[s.current].next = Op { word, write };
    }
    s.steps += 1;
    if s.countdown > 0 {
        s.countdown -= 1;
        return;
    }
    switch();
}

/// A step of a loop that waits for somebody else: it gives way.
pub fn spin() {
    let s = sched();

    if !s.running {
        fail("waits, and nobody else is there".into());
    }
    s.steps += 1;
    s.parties[s.current].spins = true;
    demote(s.current);
    switch();
}

/// Sleeps until [`wake`] is called for `key`.
pub fn block(key: usize, waits: &'static str) {
    let s = sched();

    if !s.running {
        fail(format!("waits for {waits}, and nobody else is there"));
    }
    s.steps += 1;
    let me = s.current;
    s.parties[me].state = State::Blocked(key);
    s.parties[me].waits = waits;
    note("sleeps", [key as u64, 0, 0]);
    switch();
}

/// Wakes who sleeps for `key`.
pub fn wake(key: usize) {
    let s = sched();

    for party in &mut s.parties {
        if party.state == State::Blocked(key) {
            party.state = State::Runnable;
            if let Policy::Priorities { .. } = s.policy {
                // It may be more important than who runs.
                s.countdown = 0;
            }
        }
    }
}

/// The party that runs.
#[inline]
pub fn me() -> usize {
    sched().current
}

/// The name of a party.
pub fn name(party: usize) -> String {
    sched()
        .parties
        .get(party)
        .map_or("setup".into(), |p| p.name.clone())
}

/// The steps taken so far.
#[inline]
pub fn now() -> u64 {
    sched().steps
}

/// How many steps a party has taken itself.
pub fn steps_of(party: usize) -> u64 {
    let s = sched();
    let turn = if party == s.current {
        s.steps - s.turn
    } else {
        0
    };

    s.parties.get(party).map_or(0, |p| p.steps) + turn
}

/// What the kernel knows of this thread.
#[inline]
pub fn facts() -> &'static mut Facts {
    let s = sched();

    if s.running {
        &mut s.parties[s.current].facts
    } else {
        &mut s.outside
    }
}

/// Those for whom `f` is true, of all parties.
pub fn parties_where(f: impl Fn(&Facts) -> bool) -> Vec<usize> {
    let parties = sched().parties.iter().enumerate();

    parties
        .filter(|(_, p)| f(&p.facts))
        .map(|(id, _)| id)
        .collect()
}

/// A number below `n`.
#[inline]
pub fn choose(n: u64) -> u64 {
    if sched().policy == Policy::Every {
        return crate::every::choose(n);
    }
    sched().rng.below(n)
}

/// True once in `n` times; never if `n` is 0.
#[inline]
pub fn chance(n: u64) -> bool {
    // Where all schedules are tried, chance is left out.
    n != 0 && sched().policy != Policy::Every && choose(n) == 0
}

/// Records what was done.
#[inline]
pub fn note(what: &'static str, args: [u64; 3]) {
    let s = sched();
    let step = Step {
        at: s.steps,
        party: if s.running { s.current } else { usize::MAX },
        what,
        args,
    };

    if s.history.len() < HISTORY {
        s.history.push(step);
    } else {
        s.history[s.total as usize % HISTORY] = step;
    }
    s.total += 1;
}

/// How many steps were recorded so far.
pub fn total() -> u64 {
    sched().total
}

/// Looks at the steps recorded since there were `total`, as far as they are kept, until `stop` is
/// true.
pub fn since(total: u64, mut stop: impl FnMut(&Step) -> bool) {
    let s = sched();
    let kept = s.total.saturating_sub(s.history.len() as u64);

    for n in total.max(kept)..s.total {
        if stop(&s.history[n as usize % HISTORY]) {
            return;
        }
    }
}

/// Looks at the steps of the party that runs, from the last one back, as far as they are kept,
/// until `stop` is true.
pub fn back(mut stop: impl FnMut(&Step) -> bool) {
    let s = sched();
    let kept = s.total.saturating_sub(s.history.len() as u64);

    for n in (kept..s.total).rev() {
        let step = &s.history[n as usize % HISTORY];

        if step.party == s.current && stop(step) {
            return;
        }
    }
}

/// The run has failed: tells why, and what was done last, and ends the process.
#[cold]
pub fn fail(why: String) -> ! {
    let s = sched();
    let who = if s.running {
        s.parties[s.current].name.clone()
    } else {
        "setup".into()
    };
    let mut shown: Vec<&Step> = Vec::new();

    let start = s.total as usize % HISTORY.max(1);
    let (new, old) = if s.history.len() < HISTORY {
        (&s.history[..], &s.history[..0])
    } else {
        (&s.history[..start], &s.history[start..])
    };
    let recent: Vec<&Step> = old.iter().chain(new).collect();
    for id in (0..s.parties.len()).chain([usize::MAX]) {
        let own = recent.iter().rev().filter(|step| step.party == id);
        shown.extend(own.take(SHOWN));
    }
    shown.sort_by_key(|step| step.at);

    println!("FAILED: {why}");
    println!("  by {who}, in step {}; {}", s.steps, (s.headline)());
    println!(
        "  policy {:?}; the last {SHOWN} steps of each party:",
        s.policy
    );
    for step in shown {
        let name = s.parties.get(step.party).map_or("setup", |p| &p.name);
        println!("  {:>8}  {name:<10} {}", step.at, (s.describe)(step));
    }
    std::process::exit(1)
}
