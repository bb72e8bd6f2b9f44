// SPDX-License-Identifier: GPL-2.0

//! All schedules of a small world, by depth-first search: each is run from the start.
//!
//! Schedules that differ only in the order of steps that commute are the same to everybody. Sleep
//! sets (Godefroid) leave all but one of them out: once a party's next step has been tried first,
//! it is not tried again before somebody takes a step that does not commute with it.
//!
//! Where that is still too many, the number of preemptions is bounded (Musuvathi and Qadeer): all
//! schedules are run in which at most so many times a party is stopped that could have gone on.
//! Sleep sets are not used then, as they may leave out a schedule within the bound for one beyond
//! it.

use std::cell::RefCell;

use crate::sched::Op;

enum Node {
    /// Who takes the next step.
    Step {
        enabled: Vec<(usize, Op)>,
        /// Those who need not be tried.
        sleep: Vec<(usize, Op)>,
        chosen: usize,
    },
    /// What happens of `n` things.
    Choice { n: u64, chosen: u64 },
}

#[derive(Default)]
struct Search {
    nodes: Vec<Node>,
    depth: usize,
    bound: Option<usize>,
    /// Who took the last step, and how often a party was stopped so far that could have gone on.
    last: usize,
    preemptions: usize,
    /// All that is left of this run is known: it is brought to its end, and does not count.
    redundant: bool,
}

thread_local! {
    static SEARCH: RefCell<Search> = RefCell::default();
}

/// How many runs there were.
#[derive(Default, Clone, Copy, Debug)]
pub struct Count {
    /// Schedules; without a bound no two of them are the same.
    pub schedules: u64,
    /// Runs that turned out to be the same as another.
    pub redundant: u64,
}

/// Calls `run` for every schedule, or for those with at most `bound` preemptions.
pub fn search(bound: Option<usize>, mut run: impl FnMut()) -> Count {
    let mut count = Count::default();

    SEARCH.with_borrow_mut(|search| {
        *search = Search {
            bound,
            ..Search::default()
        };
    });
    loop {
        SEARCH.with_borrow_mut(|search| {
            search.depth = 0;
            search.last = usize::MAX;
            search.preemptions = 0;
            search.redundant = false;
        });
        run();
        let more = SEARCH.with_borrow_mut(|search| {
            if search.redundant {
                count.redundant += 1;
            } else {
                count.schedules += 1;
            }
            search.backtrack()
        });
        if !more {
            return count;
        }
    }
}

impl Search {
    /// Goes back to the last decision that can be made in another way.
    fn backtrack(&mut self) -> bool {
        while let Some(node) = self.nodes.last_mut() {
            match node {
                Node::Step {
                    enabled,
                    sleep,
                    chosen,
                } => {
                    let tried = enabled.iter().find(|(id, _)| id == chosen).copied();
                    sleep.extend(tried);
                    if let Some(id) = first_awake(enabled, sleep) {
                        *chosen = id;
                        return true;
                    }
                }
                Node::Choice { n, chosen } => {
                    if *chosen + 1 < *n {
                        *chosen += 1;
                        return true;
                    }
                }
            }
            self.nodes.pop();
        }
        false
    }

    /// Leaves those in `enabled` that the bound allows, first who took the last step.
    fn restrict(&self, enabled: &mut Vec<(usize, Op)>) {
        let Some(bound) = self.bound else { return };

        if let Some(n) = enabled.iter().position(|(id, _)| *id == self.last) {
            enabled[..=n].rotate_right(1);
            if self.preemptions >= bound {
                enabled.truncate(1);
            }
        }
    }

    /// `chosen` takes the next step; `could`: who took the last one could go on.
    fn step(&mut self, chosen: usize, could: bool) {
        self.preemptions += usize::from(could && chosen != self.last);
        self.last = chosen;
        self.depth += 1;
    }

    /// Who sleeps after the decisions so far.
    fn sleepers(&self) -> Vec<(usize, Op)> {
        if self.bound.is_some() {
            return Vec::new();
        }
        let last = self.nodes[..self.depth]
            .iter()
            .rev()
            .find_map(|node| match node {
                Node::Step {
                    enabled,
                    sleep,
                    chosen,
                } => Some((enabled, sleep, chosen)),
                Node::Choice { .. } => None,
            });
        let Some((enabled, sleep, chosen)) = last else {
            return Vec::new();
        };
        let Some((_, op)) = enabled.iter().find(|(id, _)| id == chosen) else {
            return Vec::new();
        };

        sleep
            .iter()
            .filter(|(id, other)| id != chosen && op.commutes(*other))
            .copied()
            .collect()
    }
}

fn first_awake(enabled: &[(usize, Op)], sleep: &[(usize, Op)]) -> Option<usize> {
    let mut awake = enabled
        .iter()
        .filter(|(id, _)| !sleep.iter().any(|(other, _)| other == id));

    awake.next().map(|(id, _)| *id)
}

/// Decides who takes the next step, of those who can.
pub(crate) fn decide(mut enabled: Vec<(usize, Op)>) -> usize {
    SEARCH.with_borrow_mut(|search| {
        let first = enabled[0].0;
        let could = enabled.iter().any(|(id, _)| *id == search.last);

        search.restrict(&mut enabled);
        if search.redundant {
            return first;
        }
        if let Some(node) = search.nodes.get(search.depth) {
            let Node::Step { chosen, .. } = node else {
                panic!("the run is not a function of its decisions");
            };
            let chosen = *chosen;
            assert!(enabled.iter().any(|(id, _)| *id == chosen), "as above");
            search.step(chosen, could);
            return chosen;
        }
        let sleep = search.sleepers();
        let Some(chosen) = first_awake(&enabled, &sleep) else {
            search.redundant = true;
            return first;
        };
        search.nodes.push(Node::Step {
            enabled,
            sleep,
            chosen,
        });
        search.step(chosen, could);
        chosen
    })
}

/// Decides which of `n` things happens.
pub(crate) fn choose(n: u64) -> u64 {
    SEARCH.with_borrow_mut(|search| {
        if search.redundant {
            return 0;
        }
        if let Some(node) = search.nodes.get(search.depth) {
            let Node::Choice { chosen, .. } = node else {
                panic!("the run is not a function of its decisions");
            };
            let chosen = *chosen;
            search.depth += 1;
            return chosen;
        }
        search.nodes.push(Node::Choice { n, chosen: 0 });
        search.depth += 1;
        0
    })
}
