//! One pair at random: what the model of `psk_model.rs` has, without its bounds, and afterwards calm.
#![allow(clippy::unwrap_used, reason = "a test")]

mod pair;

use keyring::psk::Mode;
use mesh_core::slot::Slot;
use proptest::prelude::*;

use pair::{Cut, Mail, Pair};

#[derive(Clone, Debug)]
enum Step {
    Turn(usize, Option<Slot>, Cut),
    Ask(Slot, Option<prop::sample::Index>, Cut),
    /// One of the messages that were ever said to this side.
    Deliver(usize, prop::sample::Index, Cut),
    Shake(usize, Slot, bool),
    Crash(usize),
    Reboot(usize),
    Replace(usize, Slot),
    Learn(usize, Slot),
    Lose(usize, Slot),
}

fn step(faults: u32) -> impl Strategy<Value = Step> {
    let side = || 0_usize..2;
    let slot = || prop::sample::select(&Slot::ALL[..]);
    let cut = move || prop_oneof![30 => Just(None), faults => (1_usize..8).prop_map(Some)];
    prop_oneof![
        20 => (side(), prop::option::of(slot()), cut()).prop_map(|(side, due, cut)| Step::Turn(side, due, cut)),
        5 => (slot(), any::<Option<prop::sample::Index>>(), cut())
            .prop_map(|(slot, round, cut)| Step::Ask(slot, round, cut)),
        60 => (side(), any::<prop::sample::Index>(), cut())
            .prop_map(|(side, index, cut)| Step::Deliver(side, index, cut)),
        20 => (side(), slot(), any::<bool>()).prop_map(|(side, slot, both)| Step::Shake(side, slot, both)),
        faults => side().prop_map(Step::Crash),
        faults => side().prop_map(Step::Reboot),
        faults => (side(), slot()).prop_map(|(side, slot)| Step::Replace(side, slot)),
        faults => (side(), slot()).prop_map(|(side, slot)| Step::Lose(side, slot)),
        10 => (side(), slot()).prop_map(|(side, slot)| Step::Learn(side, slot)),
    ]
}

/// Does a step, if it can happen. `Lose` happens only where the other slot goes on.
fn apply(pair: &mut Pair, step: &Step, losses: bool) {
    match step {
        Step::Turn(side, due, cut) => drop(pair.turn(*side, &due.map_or(Mail::Nothing, Mail::Due), *cut)),
        Step::Ask(slot, round, cut) => {
            let rounds = usize::from(pair.toy.rounds);
            let round =
                round.filter(|_| rounds > 0).map(|round| u8::try_from(round.index(rounds) + 1).unwrap());
            pair.ask(*slot, round, *cut);
        }
        Step::Deliver(side, index, cut) if !pair.said[*side].is_empty() => {
            let said = pair.said[*side].iter().nth(index.index(pair.said[*side].len())).unwrap().clone();
            pair.turn(*side, &Mail::Letter(said.0), *cut);
        }
        Step::Shake(side, slot, both) if pair.unshaken(*slot) => pair.shake(*side, *slot, *both),
        Step::Crash(side) => pair.crash(*side),
        Step::Reboot(side) => pair.reboot(*side),
        Step::Replace(side, slot) => pair.replace(*side, *slot),
        Step::Learn(side, slot) if pair.lags(*side, *slot) => pair.learn(*side, *slot),
        Step::Lose(side, slot) if losses && pair.works(slot.other()) => pair.lose(*side, *slot),
        Step::Deliver(..) | Step::Shake(..) | Step::Learn(..) | Step::Lose(..) => {}
    }
}

fn modes() -> impl Strategy<Value = Mode> {
    prop::sample::select(&[Mode::Prefer, Mode::Require][..])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn whatever_happens_a_pair_keeps_a_channel_and_then_agrees(
        mode in modes(),
        steps in prop::collection::vec(step(2), 0..200),
    ) {
        let mut pair = Pair::new(mode);
        for step in steps {
            apply(&mut pair, &step, false);
            prop_assert!(pair.has_channel(), "no channel after {step:?}: {pair:#?}");
            prop_assert!(pair.agreed_is_equal(), "two keys after {step:?}: {pair:#?}");
            prop_assert!(pair.proved_works(), "not proved after {step:?}: {pair:#?}");
            prop_assert!(pair.active_is_untouched(), "touched by {step:?}: {pair:#?}");
            prop_assert!(pair.disk_is_record(), "disk after {step:?}: {pair:#?}");
            prop_assert!(pair.pods_are_taken(), "not taken after {step:?}: {pair:#?}");
        }
        pair.calm();
        prop_assert!(pair.done(), "{pair:#?}");
    }

    #[test]
    fn a_lost_record_is_agreed_anew_or_reported(
        mode in modes(),
        steps in prop::collection::vec(step(2), 0..200),
    ) {
        let mut pair = Pair::new(mode);
        for step in steps {
            apply(&mut pair, &step, true);
        }
        pair.calm();
        prop_assert!(pair.done() || pair.reports(), "{pair:#?}");
        prop_assert!(pair.agreed_is_equal(), "{pair:#?}");
    }
}

#[test]
fn both_at_once_agree_on_both_slots_and_talk_on_the_preferred_one() {
    for mode in [Mode::Prefer, Mode::Require] {
        let mut pair = Pair::new(mode);
        pair.calm();
        assert!(pair.done(), "{pair:#?}");
        assert_eq!(pair.sides.each_ref().map(|side| side.route), [Some(pair::PREFERRED); 2]);
        assert_eq!((pair.toy.rounds, pair.toy.keys), (2, 2), "one offer and one key for each slot");
    }
}

#[test]
fn without_a_common_will_nothing_is_agreed_and_the_pair_keeps_its_channel() {
    for modes in [[Mode::Off, Mode::Require], [Mode::Prefer, Mode::Off], [Mode::Off, Mode::Off]] {
        let mut pair = Pair::new(Mode::Prefer);
        for (side, mode) in modes.into_iter().enumerate() {
            pair.set_mode(side, mode);
        }
        pair.calm();
        assert_eq!(pair.toy.keys, 0, "{modes:?}");
        assert!(Slot::ALL.iter().all(|slot| pair.works(*slot)), "{modes:?}");
    }
}
