//! Two machines, and a network that carries initiations and nothing else for a while.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tunnel::counters::Counter;

use crate::node::{Known, Node, Out, packet};
use crate::world::HEALED;

const LATENCY: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(250);
const SECOND: Duration = Duration::from_secs(1);

struct Duel {
    now: Duration,
    nodes: [Node; 2],
    wire: BTreeMap<(Duration, u64), (usize, Vec<u8>)>,
    carried: u64,
    sent: usize,
    /// Serial numbers of what hosts got.
    got: Vec<u64>,
    /// Whether a datagram of this type is carried.
    carries: fn(u8) -> bool,
    /// Who has nothing to say.
    silent: Option<usize>,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + u8::try_from(n).unwrap()], 51880))
}

impl Duel {
    fn new() -> Self {
        let mut duel = Self {
            now: SECOND,
            nodes: [0, 1].map(|n| Node::new(n, address(n))),
            wire: BTreeMap::new(),
            carried: 0,
            sent: 0,
            got: Vec::new(),
            carries: |_| true,
            silent: None,
        };
        (0..2).for_each(|n| duel.start(n));
        duel
    }

    fn start(&mut self, n: usize) {
        let peer = Known { node: 1 - n, address: address(1 - n), psk: 0 };
        self.nodes[n].start(self.now, &[peer]);
    }

    fn carry(&mut self, from: usize, out: Out) {
        for packet in out.packets {
            self.got.push(u64::from_be_bytes(*packet[20..].first_chunk().unwrap()));
        }
        for (to, datagram) in out.datagrams {
            assert_eq!(to, address(1 - from));
            if (self.carries)(datagram[0]) {
                self.carried += 1;
                self.wire.insert((self.now + LATENCY, self.carried), (1 - from, datagram));
            }
        }
    }

    fn say(&mut self, from: usize) -> u64 {
        let serial = self.sent;
        self.sent += 1;
        let out = self.nodes[from].transmit(self.now, &packet(from, 1 - from, serial));
        self.carry(from, out);
        serial as u64
    }

    /// Lets time pass, in which both have something to say every second.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = self.now + TICK;
            while let Some(first) = self.wire.first_entry().filter(|first| first.key().0 <= next) {
                let ((at, _), (to, datagram)) = first.remove_entry();
                self.now = at;
                let out = self.nodes[to].receive(at, &datagram, address(1 - to));
                self.carry(to, out);
            }
            self.now = next;
            for n in 0..2 {
                let out = self.nodes[n].tick(next);
                self.carry(n, out);
                if next.subsec_nanos() == 0 && self.silent != Some(n) {
                    self.say(n);
                }
            }
        }
    }
}

#[test]
fn who_began_a_session_renews_it_though_it_answers_what_somebody_recorded() {
    for silent in [None, Some(0), Some(1)] {
        let mut duel = Duel::new();
        // An initiation that never came, for somebody to keep.
        duel.carries = |_| false;
        let first = packet(1, 0, 1000);
        let recorded = duel.nodes[1].transmit(duel.now, &first).datagrams.remove(0).1;
        duel.now += SECOND;
        duel.start(1);
        duel.carries = |_| true;
        duel.say(0);
        duel.pass(SECOND);
        duel.silent = silent;
        duel.wire.insert((duel.now + LATENCY, 0), (0, recorded));
        duel.pass(100 * SECOND);
        let handshakes = |duel: &Duel| duel.nodes[0].engine.counters().get(Counter::HandshakeDone);
        assert_eq!(handshakes(&duel), 1);
        let answers = duel.nodes[0].engine.counters().get(Counter::ResponseSent);
        assert_eq!(answers, 1, "the recorded one");
        // Section 6.2 of the paper: after 120 s where it sends, after 165 s where it only receives.
        duel.pass(if silent == Some(0) { 70 * SECOND } else { 25 * SECOND });
        assert_eq!(handshakes(&duel), 2, "{silent:?} is silent");
    }
}

#[test]
fn however_long_all_but_initiations_was_lost_both_talk_again_when_it_is_over() {
    for (seconds, restarted) in (0..180).step_by(4).flat_map(|s| [None, Some(0), Some(1)].map(|n| (s, n))) {
        let mut duel = Duel::new();
        duel.pass(3 * SECOND);
        if let Some(n) = restarted {
            // Its handshake is answered, and then its own words are lost: the other holds on to the session before.
            duel.start(n);
            duel.carries = |kind| kind != 4;
            duel.pass(2 * SECOND);
        }
        duel.carries = |kind| kind == 1;
        duel.pass(seconds * SECOND);
        duel.carries = |_| true;
        duel.pass(HEALED);
        let last = [duel.say(0), duel.say(1)];
        duel.pass(SECOND);
        for serial in last {
            assert!(
                duel.got.contains(&serial),
                "{serial} of {last:?} is lost: {seconds} s of silence, {restarted:?} began anew"
            );
        }
    }
}
