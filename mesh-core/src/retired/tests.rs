use proptest::prelude::*;

use super::*;
use crate::announcement::SlotAnnouncement;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// The `number`th key that somebody made: 0 the node itself, others are not.
fn key(who: u8, number: u64) -> PublicKey {
    let mut bytes = [who; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

fn announcement(keys: [(u64, PublicKey); 2]) -> Announcement {
    let slots = keys.map(|(epoch, public_key)| SlotAnnouncement {
        epoch: Epoch(epoch),
        public_key,
        port: 51880,
        draining: false,
    });
    Announcement { slots, endpoints: Vec::new(), kem: None, kem_required: false, host_traffic: false }
}

/// The node's own keys of these numbers.
fn own(numbers: [u64; 2]) -> Announcement {
    announcement(numbers.map(|number| (number, key(0, number))))
}

/// What node `a` takes for the announcement of node `b`, and of which slots it refused what the API has.
fn taken(
    retired: &mut Retired,
    created: i64,
    announced: &Announcement,
    agreed: [Option<PskId>; 2],
) -> (Announcement, Vec<Slot>) {
    let fact = AnnouncementFact::Valid(announced.clone());
    let facts = NodeFacts { created, announcement: fact, ..NodeFacts::default() };
    let mut nodes = BTreeMap::from([(name("b"), facts)]);
    let slot = |problem: Problem| {
        if matches!(problem, Problem::EpochFell { .. }) {
            return None;
        }
        let Problem::EpochWentBack { slot, .. } = problem else { panic!("{problem}") };
        Some(slot)
    };
    let (problems, _) = retired.review(&name("a"), &mut nodes, |_, slot| agreed[slot.index()], true);
    let refused = problems.into_iter().filter_map(slot).collect();
    (nodes[&name("b")].announced().expect("an announcement").clone(), refused)
}

fn psk(number: u64) -> PskId {
    PskId(u128::from(number).to_be_bytes())
}

/// Announced, and each key's pre-shared key seen at work, one announcement after the other.
fn known(announcements: &[Announcement]) -> (Retired, [Option<PskId>; 2]) {
    let (mut retired, mut agreed, mut number) = (Retired::default(), [None, None], 0);
    let mut had: Option<&Announcement> = None;
    for announced in announcements {
        assert_eq!(taken(&mut retired, 5, announced, agreed), (announced.clone(), Vec::new()));
        for slot in Slot::ALL {
            let key = announced.slot(slot).public_key;
            if had.is_none_or(|had| had.slot(slot).public_key != key) {
                number += 1;
                agreed[slot.index()] = Some(psk(number));
            }
            retired.at_work(&name("b"), slot, key, agreed[slot.index()].expect("agreed"));
        }
        had = Some(announced);
    }
    (retired, agreed)
}

const NONE: &[Slot] = &[];

#[test]
fn a_replaced_key_is_refused_slot_by_slot_and_what_was_taken_last_stays() {
    use Slot::{One, Zero};
    // Both slots were rotated once: 1 and 2 became 4 and 3.
    let story = [own([1, 2]), own([1, 3]), own([4, 3])];
    let cases: [([u64; 2], &[Slot], [u64; 2]); 6] = [
        ([4, 3], NONE, [4, 3]),
        ([1, 2], &[Zero, One], [4, 3]),
        ([1, 3], &[Zero], [4, 3]),
        ([4, 2], &[One], [4, 3]),
        ([4, 5], NONE, [4, 5]),
        // Its disk was restored, and it rotates: the new key is taken beside the one that stays.
        ([1, 5], &[Zero], [4, 5]),
    ];
    for (announced, refused, stay) in cases {
        let (mut retired, agreed) = known(&story);
        let found = taken(&mut retired, 5, &own(announced), agreed);
        assert_eq!(found, (own(stay), refused.to_vec()), "{announced:?}");
        let (mut retired, agreed) = known(&story);
        // A Node that was made anew begins anew.
        assert_eq!(taken(&mut retired, 6, &own(announced), agreed), (own(announced), NONE.to_vec()));
    }
}

#[test]
fn a_greater_number_does_not_bring_a_replaced_key_back() {
    let (mut retired, agreed) = known(&[own([1, 2]), own([1, 3])]);
    let back = announcement([(1, key(0, 1)), (u64::MAX, key(0, 2))]);
    assert_eq!(taken(&mut retired, 5, &back, agreed), (own([1, 3]), vec![Slot::One]));
}

#[test]
fn two_keys_that_change_at_once_retire_nothing() {
    // A lost disk, or somebody's false announcement, whose keys work well together.
    let false_keys = announcement([(8, key(1, 1)), (9, key(1, 2))]);
    for between in [own([8, 9]), false_keys] {
        let (mut retired, agreed) = known(&[own([1, 2]), between]);
        assert_eq!(taken(&mut retired, 5, &own([1, 2]), agreed), (own([1, 2]), NONE.to_vec()));
    }
}

#[test]
fn an_agent_that_starts_again_remembers_and_takes_nothing_that_was_replaced() {
    let (retired, agreed) = known(&[own([1, 2]), own([1, 3])]);
    let text = serde_json::to_string(&retired).expect("serializes");
    let mut again: Retired = serde_json::from_str(&text).expect("its own text");
    assert_eq!(taken(&mut again, 5, &own([1, 2]), agreed), (own([1, 3]), vec![Slot::One]));
    assert_eq!(taken(&mut again, 5, &own([1, 3]), agreed), (own([1, 3]), NONE.to_vec()));
}

#[test]
fn a_node_that_is_gone_from_the_complete_list_is_forgotten_and_from_another_one_not() {
    let (mut retired, agreed) = known(&[own([1, 2]), own([1, 3])]);
    retired.review(&name("a"), &mut BTreeMap::new(), |_, _| None, false);
    assert_eq!(taken(&mut retired, 5, &own([1, 2]), agreed).1, [Slot::One]);
    retired.review(&name("a"), &mut BTreeMap::new(), |_, _| None, true);
    assert_eq!(taken(&mut retired, 5, &own([1, 2]), agreed).1, NONE);
}

#[test]
fn a_number_that_does_not_grow_is_reported_until_the_next_key_whose_number_does() {
    // Nothing of pre-shared keys: nobody's word for anything.
    type Told = (Slot, u64);
    let steps: [([u64; 2], &[Told]); 7] = [
        ([1, 2], &[]),
        ([1, 3], &[]),
        ([4, 3], &[]),
        // A disk was lost, or a backup restored.
        ([1, 2], &[(Slot::Zero, 4), (Slot::One, 3)]),
        ([1, 2], &[(Slot::Zero, 4), (Slot::One, 3)]),
        ([1, 3], &[(Slot::Zero, 4)]),
        ([4, 3], &[]),
    ];
    let mut retired = Retired::default();
    for (place, (numbers, told)) in steps.into_iter().enumerate() {
        let fact = AnnouncementFact::Valid(own(numbers));
        let facts = NodeFacts { created: 5, announcement: fact, ..NodeFacts::default() };
        let mut nodes = BTreeMap::from([(name("b"), facts)]);
        let (problems, _) = retired.review(&name("a"), &mut nodes, |_, _| None, true);
        let fell = |problem: &Problem| {
            let Problem::EpochFell { slot, before, .. } = problem else { panic!("{problem}") };
            (*slot, before.0)
        };
        assert_eq!(problems.iter().map(fell).collect::<Vec<_>>(), told, "step {place}: {numbers:?}");
        assert_eq!(nodes[&name("b")].announced(), Some(&own(numbers)), "it is taken");
    }
    // The same number for another key does not grow either.
    let mut nodes = BTreeMap::from([(
        name("b"),
        NodeFacts {
            created: 5,
            announcement: AnnouncementFact::Valid(announcement([(4, key(1, 4)), (3, key(0, 3))])),
            ..NodeFacts::default()
        },
    )]);
    assert_eq!(retired.review(&name("a"), &mut nodes, |_, _| None, true).0.len(), 1);
}

/// Who has the private half of a key of the game below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Node,
    Forger,
    Nobody,
}

/// The node rotates as it does, and destroys what it replaces; somebody writes whatever announcement they like, has keys of
/// their own, and answers for the node where those lead. Whoever stole a key of the node is the node until its peers have seen the
/// successor at work, and later is refused.
#[derive(Debug, Default)]
struct Game {
    retired: Retired,
    /// The node's own, by slot.
    present: [u64; 2],
    made: u64,
    /// What the API has.
    announced: Option<Announcement>,
    /// What the agent takes.
    taken: Option<Announcement>,
    /// For which key a pre-shared key was agreed last and with whom, by slot: the record on the disk.
    agreed: [Option<(PublicKey, PskId, Holder)>; 2],
    agreements: u64,
}

#[derive(Clone, Debug)]
enum Move {
    /// The node replaces the key of a slot, if the present ones are in use.
    Rotate(bool),
    /// It writes its own announcement.
    Restore,
    /// Somebody writes another: for each slot a key of the node by age, or one of their own.
    Write([(bool, u64); 2]),
    /// A pair agrees on a key for one slot, over the other one.
    Agree(bool),
    /// A handshake shows it at work.
    Work(bool),
    /// The agent starts again.
    Restart,
}

fn slot(first: bool) -> Slot {
    if first { Slot::Zero } else { Slot::One }
}

impl Game {
    fn new() -> Self {
        let mut game = Self { present: [1, 2], made: 2, ..Self::default() };
        game.write(own([1, 2]));
        game
    }

    fn holder(&self, key_of: PublicKey) -> Holder {
        if self.present.iter().any(|number| key(0, *number) == key_of) {
            Holder::Node
        } else if (0..4).any(|number| key(1, number) == key_of) {
            Holder::Forger
        } else {
            Holder::Nobody
        }
    }

    fn write(&mut self, announced: Announcement) -> Vec<Slot> {
        let agreed = self.agreed.map(|agreed| agreed.map(|(_, psk, _)| psk));
        let (took, refused) = taken(&mut self.retired, 5, &announced, agreed);
        (self.announced, self.taken) = (Some(announced), Some(took));
        refused
    }

    fn take(&self, slot: Slot) -> PublicKey {
        self.taken.as_ref().expect("from the first move").slot(slot).public_key
    }

    fn play(&mut self, step: &Move) {
        match step {
            Move::Rotate(first) => {
                // Its agent waits for peers that have its keys, and replaces one after the other.
                if self.taken == Some(own(self.present)) {
                    self.made += 1;
                    self.present[slot(*first).index()] = self.made;
                    self.write(own(self.present));
                }
            }
            Move::Restore => {
                let refused = self.write(own(self.present));
                assert_eq!(refused, NONE, "the node's own keys {:?}", self.present);
            }
            Move::Write(words) => {
                let slots = words.map(|(false_one, number)| {
                    let number = if false_one { number % 4 } else { self.made - number % self.made };
                    (number * 7 % 5, key(u8::from(false_one), number))
                });
                self.write(announcement(slots));
            }
            Move::Agree(first) => {
                let (about, over) = (slot(*first), slot(!*first));
                // Whoever answers on one slot agrees about keys of their own: the node to its present ones, a forger to any.
                let with = self.holder(self.take(over));
                let agree = match with {
                    Holder::Node => self.take(about) == key(0, self.present[about.index()]),
                    Holder::Forger => true,
                    Holder::Nobody => false,
                };
                if agree {
                    self.agreements += 1;
                    self.agreed[about.index()] = Some((self.take(about), psk(self.agreements), with));
                }
            }
            Move::Work(first) => {
                let (at, ours) = (slot(*first), self.take(slot(*first)));
                // Who has the private half has to have what was agreed as well.
                if let Some((of, psk, with)) = self.agreed[at.index()]
                    && of == ours
                    && self.holder(ours) == with
                {
                    self.retired.at_work(&name("b"), at, ours, psk);
                }
            }
            Move::Restart => {
                let text = serde_json::to_string(&self.retired).expect("serializes");
                self.retired = serde_json::from_str(&text).expect("its own text");
            }
        }
    }
}

fn step() -> impl Strategy<Value = Move> {
    prop_oneof![
        2 => any::<bool>().prop_map(Move::Rotate),
        2 => Just(Move::Restore),
        3 => any::<[(bool, u64); 2]>().prop_map(Move::Write),
        5 => any::<bool>().prop_map(Move::Agree),
        5 => any::<bool>().prop_map(Move::Work),
        1 => Just(Move::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever somebody writes, and whatever they make work: the node's own announcement is never refused ([`Move::Restore`]).
    #[test]
    fn nobody_locks_a_node_out(steps in proptest::collection::vec(step(), 1..60)) {
        let mut game = Game::new();
        for step in &steps {
            game.play(step);
        }
        game.play(&Move::Restore);
    }

    /// Once both keys of a node were seen at work and it has replaced one, as it does, that one is never in use again.
    #[test]
    fn what_was_replaced_before_our_eyes_does_not_come_back(
        first in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut game = Game::new();
        let all = [true, false].map(|first| [Move::Agree(first), Move::Work(first)]);
        all.iter().flatten().for_each(|step| game.play(step));
        let replaced = key(0, game.present[slot(first).index()]);
        for step in [Move::Rotate(first), Move::Agree(first), Move::Work(first)] {
            game.play(&step);
        }
        for step in &steps {
            game.play(step);
            for slot in Slot::ALL {
                prop_assert_ne!(game.take(slot), replaced);
            }
        }
    }
}

/// A forger gets an old agreement about a false key and a fresh one about a true key side by side: they are not of one hand.
#[test]
fn what_was_agreed_before_two_keys_stood_side_by_side_says_nothing_of_them() {
    let mut game = Game::new();
    let false_ones = |other: u64| Move::Write([(true, 0), (true, other)]);
    for step in [
        false_ones(1),
        Move::Agree(true),
        Move::Restore,
        Move::Agree(false),
        Move::Write([(true, 0), (false, 0)]),
        Move::Work(false),
        Move::Work(true),
        false_ones(2),
        Move::Agree(false),
        Move::Work(false),
        Move::Restore,
    ] {
        game.play(&step);
    }
}
