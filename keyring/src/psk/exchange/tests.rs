//! The machine with the real cryptography; faults are in `tests/psk_model.rs` and `tests/psk_random.rs`.

use super::*;
use crate::private::RandomError;
use crate::psk::{KemKey, MlKem, Random};
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::psk::End;
use zeroize::Zeroizing;

/// Bytes that differ and repeat with the seed.
struct Counter(u8);

impl Random for Counter {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RandomError> {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(1);
            *byte = self.0;
        }
        Ok(())
    }
}

const AGREE: Conditions = Conditions { now: Duration::ZERO, agree: true, idle: true, drained: false };

fn at(seconds: u64) -> Conditions {
    Conditions { now: Duration::from_secs(seconds), ..AGREE }
}

fn id(node: &str) -> NodeId {
    NodeId { node: node.parse().unwrap(), cluster: "east".parse().unwrap() }
}

fn context(epoch: u64) -> Arc<Context> {
    let end =
        |node, key, epoch| End { id: id(node), key: PublicKey::from_bytes([key; 32]), epoch: Epoch(epoch) };
    Arc::new(Context::new(Slot::One, end("n1", 1, epoch), end("n2", 2, 9)).unwrap())
}

struct Node {
    machine: Exchange,
    kem: KemKey,
    announced: [u8; 32],
    random: Counter,
}

impl Node {
    fn give(&mut self, input: Input, conditions: Conditions) -> Vec<Effect> {
        let Self { machine, kem, announced, random } = self;
        machine.handle(input, conditions, &mut MlKem { own: kem, announced: Some(*announced), random })
    }

    fn hear(&mut self, message: &Message) -> Vec<Effect> {
        self.give(Input::Message(message.clone()), AGREE)
    }
}

/// Initiator and responder, each knowing the hash of the other's ML-KEM key.
fn nodes() -> (Node, Node) {
    let kems = [1, 2].map(|seed| KemKey::from_seed(&Zeroizing::new([seed; 64])));
    let hashes = kems.each_ref().map(KemKey::hash);
    let [a, b] = kems;
    let node = |name, kem, announced, seed| {
        let (machine, effects) =
            <Exchange>::start::<EncapsulationKey>(context(7), &id(name), None, Duration::ZERO).unwrap();
        assert!(effects.is_empty());
        Node { machine, kem, announced, random: Counter(seed) }
    };
    (node("n1", a, hashes[1], 1), node("n2", b, hashes[0], 2))
}

/// A word for each effect.
fn words(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match effect {
        Effect::Persist(Record { confirmed, seen, peer_seen, .. }) => {
            format!("persist {}{}{}", u8::from(*confirmed), u8::from(*seen), u8::from(*peer_seen))
        }
        Effect::Install { peer, .. } => format!("install {}", peer.node),
        Effect::Remove { peer, .. } => format!("remove {}", peer.node),
        Effect::Send(message) => {
            format!("send {}", format!("{message:?}").split([' ', '{']).next().unwrap_or_default())
        }
        Effect::Problem(problem) => format!("problem: {problem}"),
    };
    effects.iter().map(word).collect()
}

/// The only message among effects.
fn sent(effects: &[Effect]) -> Message {
    let mut messages = effects.iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(message.clone()),
        Effect::Persist(_) | Effect::Install { .. } | Effect::Remove { .. } | Effect::Problem(_) => None,
    });
    let message = messages.next().unwrap();
    assert!(messages.next().is_none());
    message
}

#[test]
fn two_nodes_agree_and_open_the_slot() {
    let (mut a, mut b) = nodes();
    let offer = a.give(Input::Tick, AGREE);
    assert_eq!(words(&offer), ["send Offer"]);
    let answer = b.hear(&sent(&offer));
    assert_eq!(words(&answer), ["send Answer"]);
    assert_eq!(b.machine.standing(), Standing::Answered);
    let confirm = a.hear(&sent(&answer));
    assert_eq!(words(&confirm), ["persist 000", "install n2", "send Confirm"]);
    let confirmed = b.hear(&sent(&confirm));
    assert_eq!(words(&confirmed), ["persist 100", "install n1", "send Confirmed"]);
    assert_eq!(words(&a.hear(&sent(&confirmed))), ["persist 100"]);
    let [x, y] = [&a, &b].map(|node| node.machine.record().unwrap());
    assert!(x.id == y.id && x.psk.expose() == y.psk.expose());
    assert_eq!([a.machine.standing(), b.machine.standing()], [Standing::Unproven; 2]);

    let on = Some(x.id);
    let seen = a.give(Input::Handshake { on }, AGREE);
    assert_eq!(words(&seen), ["persist 110", "send Confirm"]);
    assert_eq!(words(&b.hear(&sent(&seen))), ["persist 101", "send Confirmed"]);
    assert_eq!(words(&b.give(Input::Handshake { on }, AGREE)), ["persist 111"]);
    let again = a.give(Input::Tick, at(1));
    let told = b.hear(&sent(&again));
    assert_eq!(words(&told), ["send Confirmed"]);
    assert_eq!(words(&a.hear(&sent(&told))), ["persist 111"]);
    assert_eq!([a.machine.standing(), b.machine.standing()], [Standing::Open; 2]);
    assert_eq!(a.machine.due(at(9999)), None);
}

#[test]
fn a_changed_answer_is_not_installed_and_is_reported() {
    let (mut a, mut b) = nodes();
    let offer = a.give(Input::Tick, AGREE);
    let Message::Answer { context, round, ciphertext, tag } = sent(&b.hear(&sent(&offer))) else { panic!() };
    let mut bytes = *ciphertext.as_bytes();
    bytes[7] ^= 1;
    let ciphertext = Ciphertext::from_bytes(&bytes);
    let effects = a.hear(&Message::Answer { context, round, ciphertext, tag });
    assert_eq!(
        words(&effects),
        [
            "problem: node n2 of cluster east: its proof of the pre-shared key of hawser1 does not fit, so it is not installed; agreed anew. If this stays, restart the agents of both nodes"
        ]
    );
    assert!(a.machine.record().is_none());
    assert_eq!(words(&a.give(Input::Tick, at(1))), ["send Offer"], "with a new round");
}

#[test]
fn a_key_that_is_not_announced_is_refused_and_reported() {
    let (mut a, mut b) = nodes();
    b.announced = [0; 32];
    let refused = b.hear(&sent(&a.give(Input::Tick, AGREE)));
    assert!(matches!(sent(&refused), Message::Refused { reason: Refusal::Key, .. }));
    assert!(words(&refused)[1].contains("another hash than the announced kem"), "{:?}", words(&refused));
    a.hear(&sent(&refused));
    let overdue = a.machine.overdue(at(300), Duration::from_secs(300)).unwrap().to_string();
    assert!(overdue.contains("n2") && overdue.contains("it does not accept the ML-KEM key"), "{overdue}");
}

#[test]
fn a_message_about_other_keys_changes_nothing_and_is_answered_with_the_own() {
    let (mut a, mut b) = nodes();
    let (later, _) =
        <Exchange>::start::<EncapsulationKey>(context(8), &id("n1"), None, Duration::ZERO).unwrap();
    a.machine = later;
    let refused = sent(&b.hear(&sent(&a.give(Input::Tick, AGREE))));
    assert_eq!(refused, Message::Refused { context: context(7), reason: Refusal::OtherContext });
    assert_eq!(b.machine.standing(), Standing::Untried);
    assert_eq!(words(&a.hear(&refused)), [""; 0]);
}

#[test]
fn who_drains_the_slot_does_not_say_that_it_has_seen_a_handshake_there() {
    let seen = |effects: &[Effect]| {
        matches!(sent(effects), Message::Confirm { seen: true, .. } | Message::Confirmed { seen: true, .. })
    };
    for drained in [true, false] {
        let draining = Conditions { drained, ..AGREE };
        let (mut a, mut b) = nodes();
        let answer = b.hear(&sent(&a.give(Input::Tick, AGREE)));
        let confirm = sent(&a.hear(&sent(&answer)));
        b.hear(&confirm);
        let on = a.machine.record().map(|record| record.id);
        let confirm = a.give(Input::Handshake { on }, draining);
        assert_eq!(seen(&confirm), !drained, "the initiator, {drained}");
        b.give(Input::Handshake { on }, draining);
        let confirmed = b.give(Input::Message(sent(&confirm)), draining);
        assert_eq!(seen(&confirmed), !drained, "the responder, {drained}");
        a.hear(&sent(&confirmed));
        let open = if drained { Standing::Proven } else { Standing::Open };
        assert_eq!([a.machine.standing(), b.machine.standing()], [open; 2]);
        // Afterwards they say it.
        let later = at(70);
        let asks = b.give(Input::Tick, later);
        if drained {
            let confirm = a.give(Input::Message(sent(&asks)), later);
            let confirmed = b.give(Input::Message(sent(&confirm)), later);
            a.give(Input::Message(sent(&confirmed)), later);
        }
        assert_eq!([a.machine.standing(), b.machine.standing()], [Standing::Open; 2]);
    }
}

#[test]
fn a_record_of_other_keys_is_removed_at_the_start_and_one_of_these_is_installed() {
    let (mut a, mut b) = nodes();
    let answer = b.hear(&sent(&a.give(Input::Tick, AGREE)));
    a.hear(&sent(&answer));
    let record = || a.machine.record().cloned();
    let (_, effects) = Exchange::start(context(8), &id("n1"), record(), Duration::ZERO).unwrap();
    assert_eq!(words(&effects), ["remove n2"]);
    let (_, effects) = Exchange::start(context(7), &id("n1"), record(), Duration::ZERO).unwrap();
    assert_eq!(words(&effects), ["install n2"]);
    let stranger = <Exchange>::start::<EncapsulationKey>(context(7), &id("n3"), record(), Duration::ZERO);
    assert_eq!(stranger.map(|_| ()), Err(NotOurs(id("n3"))));
}

#[test]
fn an_offer_is_repeated_with_delays_that_double_up_to_a_minute() {
    let (mut a, _) = nodes();
    let mut now = Duration::ZERO;
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let conditions = Conditions { now, ..AGREE };
        assert_eq!(words(&a.give(Input::Tick, conditions)), ["send Offer"]);
        assert_eq!(words(&a.give(Input::Tick, conditions)), [""; 0], "not before it is due");
        let due = a.machine.due(conditions).unwrap();
        gaps.push((due - now).as_secs_f64().round());
        now = due;
    }
    assert_eq!(gaps, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]);
    a.machine.hurry(now);
    assert_eq!(a.machine.due(Conditions { now, ..AGREE }), Some(now));
}

#[test]
fn a_handshake_of_before_the_installation_proves_nothing() {
    let (mut a, mut b) = nodes();
    let answer = b.hear(&sent(&a.give(Input::Tick, AGREE)));
    a.hear(&sent(&answer));
    for on in [None, Some(PskId([0; 16]))] {
        assert_eq!(words(&a.give(Input::Handshake { on }, AGREE)), [""; 0]);
        assert_eq!(a.machine.standing(), Standing::Unproven);
    }
}
