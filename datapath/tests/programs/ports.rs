//! Conversations that translation would make one: each has a source port of its own at their backend.

use std::collections::{BTreeMap, BTreeSet};

use datapath::abi;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::services::{shares, spread};
use crate::support::bench::{Bench, both, one};
use crate::support::names::Family;
use crate::support::read;
use crate::support::text::packet;

/// What a packet of a pod has become, in words: `tcp a:1 > b:8080 syn`. It was delivered, or the test fails.
fn sent(bench: &mut Bench, words: &str) -> String {
    let from = words.split([' ', ':']).nth(1).expect("PROTOCOL SOURCE:PORT").to_owned();
    let done = bench.send(&from, &packet(words, bench.family));
    assert!(["to b", "to c", "tunnel"].contains(&done.outcome.as_str()), "{words}: {}", done.outcome);
    read::frame(&done.frame).unwrap_or_else(|error| panic!("{words}: {error}")).text
}

/// The source port of a packet in words.
fn source_port(text: &str) -> u16 {
    let source = text.split(' ').nth(1).and_then(|end| end.split_once(':')).expect("PROTOCOL SOURCE:PORT");
    source.1.parse().expect("a port")
}

/// The source port with which a packet of a pod arrives.
fn port_of(bench: &mut Bench, words: &str) -> u16 {
    source_port(&sent(bench, words))
}

#[test]
fn conversations_of_one_port_to_one_backend_do_not_meet() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080\nservice svc2:80/tcp = b:8080");
        bench.play("a | tcp a:1024 > b:8080 syn | to b");
        let one = port_of(bench, "tcp a:1024 > svc:80 syn");
        let two = port_of(bench, "tcp a:1024 > svc2:80 syn");
        assert_eq!(BTreeSet::from([1024, one, two]).len(), 3, "{one} {two}");
        bench.play(&format!(
            "
            counted translated 2, port-moved 2
            b | tcp b:8080 > a:1024 syn,ack  | to a
            b | tcp b:8080 > a:{one} syn,ack | to a | tcp svc:80 > a:1024 syn,ack
            b | tcp b:8080 > a:{two} syn,ack | to a | tcp svc2:80 > a:1024 syn,ack
            a | tcp a:1024 > b:8080 ack      | to b
            a | tcp a:1024 > svc:80 ack      | to b | tcp a:{one} > b:8080 ack
            a | tcp a:1024 > svc2:80 ack     | to b | tcp a:{two} > b:8080 ack
            counted translated 0, port-moved 0
            "
        ));
    });
}

/// A resolver that asks a service and its only backend, or a database with a headless service beside the other.
#[test]
fn what_is_said_to_a_backend_itself_does_not_meet_what_a_service_brought_there() {
    both(|bench| {
        for (protocol, first, more) in [("udp", "", ""), ("tcp", " syn", " ack")] {
            for (backend, way, back) in [("b", "to b", "b"), ("x", "tunnel", "slot")] {
                bench.reset(bench.family);
                bench.play(&format!(
                    "
                    service svc:80/{protocol} = {backend}:8080
                    a | {protocol} a:2000 > svc:80{first} | {way} | {protocol} a:2000 > {backend}:8080{first}
                    counted port-moved 0
                    "
                ));
                let own = port_of(bench, &format!("{protocol} a:2000 > {backend}:8080{first}"));
                assert_ne!(own, 2000);
                bench.play(&format!(
                    "
                    counted translated 0, port-moved 1
                    {back} | {protocol} {backend}:8080 > a:{own} | to a | {protocol} {backend}:8080 > a:2000
                    {back} | {protocol} {backend}:8080 > a:2000  | to a | {protocol} svc:80 > a:2000
                    a | {protocol} a:2000 > {backend}:8080{more} | {way} | {protocol} a:{own} > {backend}:8080{more}
                    a | {protocol} a:2000 > svc:80{more}         | {way} | {protocol} a:2000 > {backend}:8080{more}
                    "
                ));
                // The port that it was given may be the client's own for another conversation.
                let third = port_of(bench, &format!("{protocol} a:{own} > {backend}:8080{first}"));
                assert!(![own, 2000].contains(&third), "{third}");
                // The one that was in the way is over; who was given a port keeps it.
                bench.play(&format!(
                    "
                    age 10000 {protocol} a:2000 > {backend}:8080
                    a | {protocol} a:2000 > {backend}:8080{more} | {way} | {protocol} a:{own} > {backend}:8080{more}
                    {back} | {protocol} {backend}:8080 > a:{own} | to a | {protocol} {backend}:8080 > a:2000
                    "
                ));
            }
        }
    });
}

#[test]
fn a_client_comes_to_the_backend_that_its_port_means_though_another_flow_is_there() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080 c:8080");
        let meant = spread(bench, "tcp", "svc:80", 1100..1130);
        bench.reset(bench.family);
        bench.play("service svc:80/tcp = b:8080 c:8080");
        // All of these first: a port that is made up for a connection to the service may be one of them.
        for (port, backend) in &meant {
            bench.play(&format!("a | tcp a:{port} > {backend}:8080 syn | to {backend}"));
        }
        for (port, backend) in meant {
            let arrived = sent(bench, &format!("tcp a:{port} > svc:80 syn"));
            assert!(arrived.contains(&format!("> {backend}:8080")), "{arrived}, and {backend} was meant");
            assert_ne!(source_port(&arrived), port);
        }
    });
}

#[test]
fn a_client_with_affinity_stays_with_its_backend_though_another_flow_is_there() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080 c:8080 affinity 100");
        let chosen = shares(&spread(bench, "udp", "svc:80", 1..2)).keys().next().expect("one").to_string();
        for port in 100..120 {
            bench.play(&format!("a | udp a:{port} > {chosen}:8080 | to {chosen}"));
            let arrived = sent(bench, &format!("udp a:{port} > svc:80"));
            assert!(arrived.contains(&format!("> {chosen}:8080")), "{arrived}");
        }
        let later = spread(bench, "udp", "svc:80", 200..220);
        assert_eq!(shares(&later).keys().collect::<Vec<_>>(), [&chosen.as_str()]);
    });
}

#[test]
fn a_syn_that_is_sent_again_keeps_the_port_that_it_was_given() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080\na | tcp a:3000 > b:8080 syn | to b");
        let given = port_of(bench, "tcp a:3000 > svc:80 syn");
        for _ in 0..5 {
            assert_eq!(port_of(bench, "tcp a:3000 > svc:80 syn"), given);
        }
        // Also when its first answer was lost and the other one has ended.
        bench.play("a | tcp a:3000 > b:8080 rst | to b");
        assert_eq!(port_of(bench, "tcp a:3000 > svc:80 ack"), given);
    });
}

#[test]
fn a_collision_ends_with_the_flow_that_was_there() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080
            a | tcp a:1 > b:8080 syn   | to b
            a | tcp a:1 > b:8080 rst   | to b
            a | tcp a:1 > svc:80 syn   | to b | tcp a:1 > b:8080 syn
            b | tcp b:8080 > a:1 ack   | to a | tcp svc:80 > a:1 ack
            a | tcp a:2 > b:8080 syn   | to b
            age 61 tcp a:2 > b:8080
            a | tcp a:2 > svc:80 syn   | to b | tcp a:2 > b:8080 syn
            counted port-moved 0
            ",
        );
    });
}

/// For NFS and the like a port below 1024 says that root speaks.
#[test]
fn a_privileged_port_is_replaced_by_a_privileged_one() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080");
        for (port, range) in [(1, 512..1024), (1023, 512..1024), (1024, 1024..65535), (65535, 1024..65535)] {
            bench.play(&format!("a | udp a:{port} > b:8080 | to b"));
            let given = port_of(bench, &format!("udp a:{port} > svc:80"));
            assert!(range.contains(&given) && given != port, "{port}: {given}");
        }
    });
}

#[test]
fn where_every_port_is_taken_a_flow_is_dropped_and_said_so() {
    one(Family::V4, |bench| {
        bench.play("service svc:80/udp = b:8080");
        for port in (1..2).chain(512..1024) {
            bench.play(&format!("a | udp a:{port} > b:8080 | to b"));
        }
        bench.play(
            "
            a | udp a:1 > svc:80   | drop collision
            age 31 udp a:700 > b:8080
            ",
        );
        // A few draws of a port for each packet: some packet finds the only one.
        let words = packet("udp a:1 > svc:80", bench.family);
        let tries = (0..5000).find(|_| bench.send("a", &words).outcome == "to b");
        assert!(tries.is_some());
        bench.play(
            "
            a | udp a:1 > svc:80    | to b | udp a:700 > b:8080
            b | udp b:8080 > a:700  | to a | udp svc:80 > a:1
            a | udp a:700 > b:8080  | drop collision
            ",
        );
    });
}

/// Its checksum covers them.
#[test]
fn sctp_keeps_its_port_and_goes_to_another_backend_or_nowhere() {
    both(|bench| {
        bench.play("service svc:9/sctp = b:9 c:9\nservice svc2:9/sctp = b:9");
        let mut moved = 0;
        for port in 1..30 {
            bench.play(&format!("a | sctp a:{port} > b:9 | to b"));
            let done = bench.send("a", &packet(&format!("sctp a:{port} > svc:9"), bench.family));
            // Each try is another draw; with two backends some flows find none in four.
            assert!(["to c", "drop collision"].contains(&done.outcome.as_str()), "{}", done.outcome);
            moved += u32::from(done.outcome == "to c");
            bench.play(&format!("a | sctp a:{port} > svc2:9 | drop collision"));
        }
        assert!(moved > 20, "{moved}");
        bench.play(
            "
            a | sctp a:100 > svc2:9 | to b | sctp a:100 > b:9
            a | sctp a:100 > b:9    | drop collision
            counted port-moved 0
            ",
        );
    });
}

#[test]
fn errors_and_pieces_of_a_flow_with_another_port_find_its_client() {
    both(|bench| {
        for (protocol, first) in [("udp", ""), ("tcp", " syn")] {
            bench.play(&format!(
                "
                service svc:80/{protocol} = b:8080
                service svc2:80/{protocol} = x:8080
                a | {protocol} a:1500 > b:8080{first} | to b
                a | {protocol} a:1500 > x:8080{first} | tunnel
                "
            ));
            let near = port_of(bench, &format!("{protocol} a:1500 > svc:80{first}"));
            let far = port_of(bench, &format!("{protocol} a:1500 > svc2:80{first}"));
            for kind in ["unreachable", "toobig"] {
                bench.play(&format!(
                    "
                    b    | {kind} b > a about {{ {protocol} a:{near} > b:8080 }} | to a | {kind} b > a about {{ {protocol} a:1500 > svc:80 }}
                    slot | {kind} n2 > a about {{ {protocol} a:{far} > x:8080 }} quoted 8 | to a | {kind} n2 > a about {{ {protocol} a:1500 > svc2:80 }}
                    slot | {kind} n2 > a about {{ {protocol} a:1500 > x:8080 }} | to a
                    "
                ));
            }
        }
        let near = port_of(bench, "udp a:1500 > svc:80 first 7");
        bench.play(&format!(
            "
            a | udp a:1500 > svc:80 later 7       | to b | udp a:{near} > b:8080 later 7
            b | udp b:8080 > a:{near} first 8     | to a | udp svc:80 > a:1500 first 8
            b | udp b:8080 > a:{near} later 8     | to a | udp svc:80 > a:1500 later 8
            "
        ));
    });
}

/// Who is not known yet is not held for a second look, which could not know the port.
#[test]
fn policy_sees_the_same_whatever_the_port() {
    both(|bench| {
        bench.play(
            "
            service svc:80/udp = b:8080
            service svc2:80/udp = c:8080
            a | udp a:1500 > svc:80  | to b | udp a:1500 > b:8080
            a | udp a:1500 > svc2:80 | to c | udp a:1500 > c:8080
            policy b: in deny
            a | udp a:1500 > b:8080  | drop policy-ingress
            holding
            policy a: out deny
            forget c
            a | udp a:1500 > c:8080  | drop unknown-egress
            ",
        );
    });
}

/// A server that streams to a client that only listens, and one that answers late.
#[test]
fn a_datagrams_conversation_keeps_its_port_while_either_side_speaks() {
    both(|bench| {
        for (target, port, obstacle) in [("svc:80", 2000, "b:8080"), ("b:8080", 3000, "svc:80")] {
            bench.play("service svc:80/udp = b:8080");
            assert_eq!(port_of(bench, &format!("udp a:{port} > {obstacle}")), port);
            let given = port_of(bench, &format!("udp a:{port} > {target}"));
            assert_ne!(given, port);
            // Not answered for longer than another flow would be remembered.
            bench.play(&format!("age 100 udp a:{given} > b:8080"));
            bench.play(&format!("b | udp b:8080 > a:{given} | to a | udp {target} > a:{port}"));
            // The client is silent, and the obstacle is over.
            bench.play(&format!("age 10000 udp a:{port} > b:8080"));
            let (key, said) = bench.said(&format!("udp a:{port} > {target}")).expect("remembered");
            bench.kernel.put("flows", key, abi::Flow { until: 1, ..said });
            bench.play(&format!("b | udp b:8080 > a:{given} | to a | udp {target} > a:{port}"));
            assert_eq!(port_of(bench, &format!("udp a:{port} > {target}")), given);
        }
    });
}

#[test]
fn a_backend_that_speaks_first_after_a_silence_does_not_lead_another_conversation_to_it() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080\na | udp a:2000 > svc:80 | to b | udp a:2000 > b:8080");
        let given = port_of(bench, "udp a:2000 > b:8080");
        bench.play(&format!(
            "
            age 31 udp a:2000 > b:8080
            b | udp b:8080 > a:2000 | to a
            a | udp a:2000 > b:8080 | to b | udp a:{given} > b:8080
            b | udp b:8080 > a:{given} | to a | udp b:8080 > a:2000
            "
        ));
    });
}

#[test]
fn a_later_connection_with_its_own_port_keeps_it_when_conntrack_loses_it() {
    both(|bench| {
        bench.play(
            "service svc:80/tcp = b:8080\na | tcp a:2000 > svc:80 syn | to b | tcp a:2000 > b:8080 syn",
        );
        let given = port_of(bench, "tcp a:2000 > b:8080 syn");
        bench.play(&format!(
            "
            a | tcp a:2000 > svc:80 rst      | to b | tcp a:2000 > b:8080 rst
            a | tcp a:2000 > b:8080 rst      | to b | tcp a:{given} > b:8080 rst
            a | tcp a:2000 > b:8080 syn      | to b
            b | tcp b:8080 > a:2000 syn,ack  | to a
            age 10000 tcp a:2000 > b:8080
            a | tcp a:2000 > b:8080 ack      | to b
            "
        ));
    });
}

#[test]
fn in_the_middle_of_a_connection_no_port_is_given() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080
            a | tcp a:2000 > svc:80 syn | to b | tcp a:2000 > b:8080 syn
            a | tcp a:2000 > b:8080 ack | drop collision
            a | tcp a:2000 > b:8080 rst | drop collision
            a | tcp a:2000 > svc:80 ack | to b | tcp a:2000 > b:8080 ack
            counted port-moved 0
            ",
        );
        assert_eq!(bench.said("tcp a:2000 > b:8080"), None);
    });
}

/// The backend would take it for a word about the other one.
#[test]
fn an_error_about_an_answer_does_not_reach_the_other_conversation() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080\na | udp a:2000 > svc:80 | to b | udp a:2000 > b:8080");
        let given = port_of(bench, "udp a:2000 > b:8080");
        bench.play(&format!(
            "
            b | udp b:8080 > a:{given} | to a | udp b:8080 > a:2000
            a | unreachable a > b about {{ udp b:8080 > a:2000 }} | drop icmp-unrelated
            "
        ));
    });
}

/// A pod's step in the game below.
#[derive(Clone, Debug)]
enum Step {
    /// Words number so-and-so: the first of a conversation, or one more.
    Say(usize),
    /// The same SYN or datagram again.
    Begin(usize),
    Answer(usize),
    End(usize),
    /// Long silence: the flow is forgotten, and perhaps what the words meant.
    Silence(usize, bool),
}

/// What a pod may say: protocol, own port, destination, and where that leads.
const WORDS: [(&str, u16, &str, &[&str]); 12] = [
    ("tcp", 2001, "b:8080", &["b:8080"]),
    ("tcp", 2001, "svc:80", &["b:8080"]),
    ("tcp", 2001, "svc2:80", &["b:8080", "c:8080"]),
    ("tcp", 2001, "c:8080", &["c:8080"]),
    ("tcp", 2002, "b:8080", &["b:8080"]),
    ("tcp", 2002, "svc2:80", &["b:8080", "c:8080"]),
    ("udp", 2001, "b:8080", &["b:8080"]),
    ("udp", 2001, "svc:80", &["b:8080"]),
    ("udp", 2001, "svc2:80", &["b:8080", "c:8080"]),
    ("udp", 2001, "c:8080", &["c:8080"]),
    ("udp", 2002, "c:8080", &["c:8080"]),
    ("udp", 2002, "svc2:80", &["b:8080", "c:8080"]),
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let words = || 0..WORDS.len();
    let step = prop_oneof![
        6 => words().prop_map(Step::Say),
        2 => words().prop_map(Step::Begin),
        4 => words().prop_map(Step::Answer),
        1 => words().prop_map(Step::End),
        2 => (words(), select(vec![false, true])).prop_map(|(words, all)| Step::Silence(words, all)),
    ];
    vec(step, 1..60)
}

/// Conversations that live, and the port and backend that each has on the wire.
#[derive(Default)]
struct Game {
    live: BTreeMap<usize, (u16, String)>,
}

impl Game {
    fn play(&mut self, bench: &mut Bench, step: &Step) {
        match *step {
            Step::Say(number) | Step::Begin(number) => {
                self.say(bench, number, matches!(step, Step::Begin(_)))
            }
            Step::Answer(number) => {
                let (protocol, port, target, _) = WORDS[number];
                if let Some((wire, backend)) = self.live.get(&number) {
                    let (from, _) = backend.split_once(':').expect("POD:PORT");
                    let flags = if protocol == "tcp" { " ack" } else { "" };
                    bench.play(&format!(
                        "{from} | {protocol} {backend} > a:{wire}{flags} | to a | {protocol} {target} > a:{port}{flags}"
                    ));
                }
            }
            Step::End(number) => {
                let (protocol, port, target, _) = WORDS[number];
                if protocol == "tcp" && self.live.contains_key(&number) {
                    sent(bench, &format!("tcp a:{port} > {target} rst"));
                    self.live.remove(&number);
                }
            }
            Step::Silence(number, all) => {
                let (protocol, port, target, _) = WORDS[number];
                if let Some((wire, backend)) = self.live.remove(&number) {
                    bench.play(&format!("age 10000 {protocol} a:{wire} > {backend}"));
                    if let Some((key, said)) = bench.said(&format!("{protocol} a:{port} > {target}"))
                        && all
                    {
                        bench.kernel.put("flows", key, abi::Flow { until: 1, ..said });
                    }
                }
            }
        }
    }

    fn say(&mut self, bench: &mut Bench, number: usize, begin: bool) {
        let (protocol, port, target, backends) = WORDS[number];
        let known = self.live.get(&number).cloned();
        let flags = match (protocol, begin || known.is_none()) {
            ("udp", _) => "",
            (_, true) => " syn",
            (_, false) => " ack",
        };
        let arrived = sent(bench, &format!("{protocol} a:{port} > {target}{flags}"));
        let to = arrived.split(' ').nth(3).expect("SOURCE > DESTINATION").to_owned();
        let wire = (source_port(&arrived), to);
        assert!(backends.contains(&wire.1.as_str()), "{arrived}");
        match known {
            Some(known) => assert_eq!(wire, known, "it goes on as it began"),
            None => {
                let same =
                    |(other, taken): (&usize, &(u16, String))| WORDS[*other].0 == protocol && *taken == wire;
                assert!(!self.live.iter().any(same), "{arrived} is another's: {:?}", self.live);
                self.live.insert(number, wire);
            }
        }
    }
}

#[test]
fn in_no_game_do_two_conversations_meet() {
    for family in [Family::V4, Family::V6] {
        one(family, |bench| {
            // Not a parallel test's runner: the bench is one, and reset for each game.
            let bench = std::cell::RefCell::new(bench);
            let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
            let played = TestRunner::new(config).run(&steps(), |steps| {
                let bench = &mut **bench.borrow_mut();
                bench.reset(family);
                for protocol in ["tcp", "udp"] {
                    bench.play(&format!("service svc:80/{protocol} = b:8080"));
                    bench.play(&format!("service svc2:80/{protocol} = b:8080 c:8080"));
                }
                let mut game = Game::default();
                steps.iter().for_each(|step| game.play(bench, step));
                Ok(())
            });
            if let Err(error) = played {
                panic!("{family:?}: {error}");
            }
        });
    }
}
