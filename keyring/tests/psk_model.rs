//! Every reachable state of one pair with two slots, its agents running the `keyring::psk::Pact` and `mesh_core::pair` themselves: messages
//! lost, repeated and reordered at will, agents killed between any two effects, nodes rebooted, keys replaced while
//! an exchange goes on, announcements seen late.
#![allow(clippy::print_stdout, reason = "how large the model is")]

mod pair;

use std::time::Instant;

use keyring::psk::Mode;
use mesh_core::slot::Slot;
use stateright::{Checker as _, Model, Property};

use pair::{Cut, Mail, Pair};

/// How much of the unbounded happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    crashes: u8,
    reboots: u8,
    replacements: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    pair: Pair,
    left: Budget,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Turn(usize, Mail, Cut),
    Ask(Slot, Option<u8>, Cut),
    Shake(usize, Slot, bool),
    Crash(usize),
    Reboot(usize),
    Replace(usize, Slot),
    Learn(usize, Slot),
}

struct World {
    modes: [Mode; 2],
    budget: Budget,
    /// Offers and keys made.
    rounds: u8,
    keys: u8,
}

impl World {
    /// The state after a step, and how many effects it had.
    fn apply(state: &State, step: &Step) -> (State, usize) {
        let mut next = state.clone();
        let pair = &mut next.pair;
        let mut effects = 0;
        match step {
            Step::Turn(side, mail, cut) => effects = pair.turn(*side, mail, *cut),
            Step::Ask(slot, round, cut) => effects = pair.ask(*slot, *round, *cut),
            Step::Shake(side, slot, both) => pair.shake(*side, *slot, *both),
            Step::Crash(side) => pair.crash(*side),
            Step::Reboot(side) => pair.reboot(*side),
            Step::Replace(side, slot) => pair.replace(*side, *slot),
            Step::Learn(side, slot) => pair.learn(*side, *slot),
        }
        match step {
            Step::Turn(_, _, Some(_)) | Step::Ask(.., Some(_)) | Step::Crash(_) => next.left.crashes -= 1,
            Step::Reboot(_) => next.left.reboots -= 1,
            Step::Replace(..) => next.left.replacements -= 1,
            Step::Turn(..) | Step::Ask(..) | Step::Shake(..) | Step::Learn(..) => {}
        }
        (next, effects)
    }

    /// A step carried out wholly, and cut off before each of its effects but the first (before the first is a crash).
    fn with_cuts(state: &State, steps: &mut Vec<Step>, step: impl Fn(Cut) -> Step) {
        steps.push(step(None));
        if state.left.crashes > 0 {
            let (_, effects) = Self::apply(state, &step(None));
            steps.extend((1..effects).map(|cut| step(Some(cut))));
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State { pair: Pair::of(self.modes), left: self.budget }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for slot in Slot::ALL {
            Self::with_cuts(state, steps, |cut| Step::Ask(slot, None, cut));
            if let Some(Some(round)) = state.pair.asks(slot) {
                Self::with_cuts(state, steps, |cut| Step::Ask(slot, Some(round), cut));
            }
        }
        for side in 0..2 {
            Self::with_cuts(state, steps, |cut| Step::Turn(side, Mail::Nothing, cut));
            for slot in Slot::ALL {
                Self::with_cuts(state, steps, |cut| Step::Turn(side, Mail::Due(slot), cut));
                if state.pair.unshaken(slot) {
                    steps.extend([true, false].map(|both| Step::Shake(side, slot, both)));
                }
                if state.left.replacements > 0 {
                    steps.push(Step::Replace(side, slot));
                }
                if state.pair.lags(side, slot) {
                    steps.push(Step::Learn(side, slot));
                }
            }
            for said in &state.pair.said[side] {
                let mail = || Mail::Letter(said.0.clone());
                Self::with_cuts(state, steps, |cut| Step::Turn(side, mail(), cut));
            }
            if state.left.crashes > 0 {
                steps.push(Step::Crash(side));
            }
            if state.left.reboots > 0 {
                steps.push(Step::Reboot(side));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        Some(Self::apply(state, &step).0)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.pair.toy.rounds <= self.rounds && state.pair.toy.keys <= self.keys
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a pair that knows its keys has a common working slot", |_, state: &State| {
                state.pair.has_channel()
            }),
            Property::always("two agreed sides hold the same key", |_, state: &State| {
                state.pair.agreed_is_equal()
            }),
            Property::always("what is proved works", |_, state: &State| state.pair.proved_works()),
            Property::always("disk and memory say the same", |_, state: &State| state.pair.disk_is_record()),
            Property::always(
                "what pods send is taken, and never without a key that one insists on",
                |_, state: &State| state.pair.pods_are_taken(),
            ),
            Property::always("the slot on which a side sends is left alone", |_, state: &State| {
                state.pair.active_is_untouched()
            }),
            Property::sometimes("both slots are agreed and proved", |_, state: &State| state.pair.done()),
        ]
    }
}

fn check(world: World) {
    let ([a, b], budget) = (world.modes, world.budget);
    let started = Instant::now();
    let checker = world.checker().threads(1).spawn_bfs().join();
    println!(
        "{a} and {b}, {budget:?}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f32()
    );
    checker.assert_properties();
}

/// Budgets that together stay under a minute on one core, with the most offers and keys made.
const BUDGETS: [(Budget, u8); 5] = [
    (Budget { crashes: 1, reboots: 0, replacements: 0 }, 3),
    (Budget { crashes: 0, reboots: 1, replacements: 0 }, 3),
    (Budget { crashes: 1, reboots: 1, replacements: 0 }, 2),
    (Budget { crashes: 0, reboots: 0, replacements: 1 }, 3),
    (Budget { crashes: 1, reboots: 0, replacements: 1 }, 2),
];

#[test]
fn a_pair_that_prefers_always_has_a_channel_and_one_key() {
    for (budget, bound) in BUDGETS {
        check(World { modes: [Mode::Prefer; 2], budget, rounds: bound, keys: bound });
    }
}

#[test]
fn a_pair_that_requires_always_has_a_channel_and_one_key() {
    for (budget, bound) in BUDGETS {
        check(World { modes: [Mode::Require; 2], budget, rounds: bound, keys: bound });
    }
}

#[test]
fn a_pair_of_which_one_requires_always_has_a_channel_and_one_key() {
    for modes in [[Mode::Prefer, Mode::Require], [Mode::Require, Mode::Prefer]] {
        // As where both require, once both know it: what is before that needs no replaced key.
        for (budget, bound) in BUDGETS.into_iter().filter(|(budget, _)| budget.replacements == 0) {
            check(World { modes, budget, rounds: bound, keys: bound });
        }
    }
}
