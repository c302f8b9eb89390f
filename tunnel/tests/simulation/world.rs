//! The network between the machines, what goes wrong in it, and what must hold whatever goes wrong.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::node::{Known, Node, Out, knocks, packet};
use crate::random::Random;

pub(crate) const NODES: usize = 3;
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
/// As seldom as the engine may be called.
const TICK: Duration = millis(250);
/// One way, while nothing goes wrong.
const LATENCY: Duration = millis(20);
/// Datagrams that an eavesdropper keeps of each link, to replay.
const RECORDED: usize = 64;
/// Troubles that are told when an invariant breaks.
const REMEMBERED: usize = 25;

/// When a pair must talk again. From section 6 of the WireGuard paper: who hears nothing for KEEPALIVE_TIMEOUT and
/// REKEY_TIMEOUT (10 and 5 s) begins a handshake; one under way is repeated after REKEY_TIMEOUT, and once more if the
/// first is answered with a cookie. The rest is ticks and latency, and up to 3 s until the first packet of a calm.
pub(crate) const HEALED: Duration = secs(10 + 5 + 5 + 5 + 3 + 2);

/// In what is ordered by it: when, what kind, of whom, the how many-th.
type Turn = (Duration, u8, usize, u64);

#[derive(Debug)]
enum Event {
    Tick(usize),
    Arrive {
        to: usize,
        at: SocketAddr,
        from: SocketAddr,
        datagram: Vec<u8>,
    },
    /// A host has something to say; the number is the phase in which that was arranged.
    Talk {
        from: usize,
        to: usize,
        phase: u64,
    },
    Psk {
        of: usize,
        peer: usize,
        psk: u8,
    },
    Trouble {
        phase: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    Silent,
    Steady(Duration),
    /// Sessions end between two words.
    Rare(Duration),
    Bursts(Duration),
}

struct Link {
    random: Random,
    count: u64,
    blocked: bool,
    recorded: VecDeque<Vec<u8>>,
    talk: Talk,
}

struct Sent {
    from: usize,
    to: usize,
    at: Duration,
    arrived: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// All in a thousand.
    loss: usize,
    twice: usize,
    late: usize,
}

/// What may go wrong in a world; each seed has its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Weather,
    Partition,
    Roaming,
    Clock,
    Restart,
    Psk,
    Flood,
    Replay,
    Sleep,
}

const KINDS: [Kind; 9] = [
    Kind::Weather,
    Kind::Partition,
    Kind::Roaming,
    Kind::Clock,
    Kind::Restart,
    Kind::Psk,
    Kind::Flood,
    Kind::Replay,
    Kind::Sleep,
];

pub(crate) struct World {
    seed: u64,
    random: Random,
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    links: Vec<Link>,
    agenda: BTreeMap<Turn, Event>,
    sent: Vec<Sent>,
    psks: BTreeMap<(usize, usize), u8>,
    weather: Weather,
    stormy: bool,
    phase: u64,
    kinds: Vec<Kind>,
    told: VecDeque<String>,
    addresses: u32,
    roamed: Vec<bool>,
    /// The furthest that a node's wall clock has ever been ahead: timestamps of a handshake may not go back.
    furthest: Vec<i64>,
    /// Whose clock was set back since: a new process of it cannot begin a handshake with one that has seen a later timestamp
    /// (section 5.1 of the paper).
    late: Vec<bool>,
    strangers: Vec<Vec<Vec<u8>>>,
    /// Sums of what happened, whatever its order within a moment: equal for equal seeds.
    pub(crate) digest: u64,
    pub(crate) troubles: u64,
}

fn link(from: usize, to: usize) -> usize {
    from * NODES + to
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1000);
        let kinds: Vec<Kind> = KINDS.into_iter().filter(|_| random.per_mille(650)).collect();
        let mut world = Self {
            seed,
            random,
            now: Duration::ZERO,
            nodes: Vec::new(),
            links: (0..NODES * NODES)
                .map(|n| Link {
                    random: Random::new(seed, n),
                    count: 0,
                    blocked: false,
                    recorded: VecDeque::new(),
                    talk: Talk::Silent,
                })
                .collect(),
            agenda: BTreeMap::new(),
            sent: Vec::new(),
            psks: BTreeMap::new(),
            weather: Weather::default(),
            stormy: false,
            phase: 0,
            kinds: if kinds.is_empty() { KINDS.to_vec() } else { kinds },
            told: VecDeque::new(),
            addresses: 0,
            roamed: vec![false; NODES],
            furthest: vec![0; NODES],
            late: vec![false; NODES],
            strangers: Vec::new(),
            digest: 0,
            troubles: 0,
        };
        for n in 0..NODES {
            let address = world.new_address();
            world.nodes.push(Node::new(n, address));
            world.agenda.insert((millis(37 * n as u64), 0, n, 0), Event::Tick(n));
        }
        for n in 0..NODES {
            world.start(n);
            world.strangers.push(knocks(n));
        }
        world
    }

    fn new_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        let [_, b, c, d] = self.addresses.to_be_bytes();
        SocketAddr::from(([198, 18 + b, c, d], 51880))
    }

    fn known_to(&self, n: usize) -> Vec<Known> {
        let others = (0..NODES).filter(|peer| *peer != n);
        others
            .map(|node| Known {
                node,
                address: self.nodes[node].address,
                psk: self.psks.get(&(n, node)).copied().unwrap_or(0),
            })
            .collect()
    }

    fn start(&mut self, n: usize) {
        let known = self.known_to(n);
        self.late[n] = self.nodes[n].wall_error < self.furthest[n];
        self.nodes[n].start(self.now, &known);
    }

    fn tell(&mut self, what: String) {
        self.told.truncate(REMEMBERED - 1);
        self.told.push_front(format!("{:>10.3} s: {what}", self.now.as_secs_f64()));
    }

    /// Ends the test.
    pub(crate) fn fail(&self, what: &str) -> ! {
        let told: Vec<_> = self.told.iter().rev().cloned().collect();
        panic!(
            "seed {} after {:.3} s: {what}\nkinds {:?}\n{}",
            self.seed,
            self.now.as_secs_f64(),
            self.kinds,
            told.join("\n")
        );
    }

    /// Lets time pass until this moment.
    fn run_until(&mut self, end: Duration) {
        while let Some(first) = self.agenda.first_entry() {
            if first.key().0 > end {
                break;
            }
            let ((at, ..), event) = first.remove_entry();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(n) => {
                if self.nodes[n].asleep_since.is_none() {
                    let out = self.nodes[n].tick(self.now);
                    if out.datagrams.len() > 2 * (NODES - 1) {
                        self.fail("a turn of the timers sends more than two datagrams for each peer");
                    }
                    self.carry(n, out);
                }
                self.agenda.insert((self.now + TICK, 0, n, 0), Event::Tick(n));
            }
            Event::Arrive { to, at, from, datagram } => {
                if self.nodes[to].address == at && self.nodes[to].asleep_since.is_none() {
                    let out = self.nodes[to].receive(self.now, &datagram, from);
                    self.carry(to, out);
                }
            }
            Event::Talk { from, to, phase } if phase == self.phase => self.talk(from, to),
            Event::Psk { of, peer, psk } => {
                self.psks.insert((of, peer), psk);
                self.nodes[of].set_psk(self.now, peer, psk);
                self.tell(format!("node {of} has pre-shared key {psk} for node {peer}"));
            }
            Event::Trouble { phase } if phase == self.phase => self.trouble(),
            Event::Talk { .. } | Event::Trouble { .. } => {}
        }
    }

    fn talk(&mut self, from: usize, to: usize) {
        let link = &mut self.links[link(from, to)];
        let (count, next) = match link.talk {
            Talk::Silent => return,
            Talk::Steady(every) | Talk::Rare(every) => (1, link.random.between(every / 2, every)),
            Talk::Bursts(every) => (1 + link.random.below(20), every),
        };
        for _ in 0..count {
            self.say(from, to);
        }
        self.arrange(next, from, to);
    }

    fn arrange(&mut self, after: Duration, from: usize, to: usize) {
        let turn = (self.now + after, 2, link(from, to), self.phase);
        self.agenda.insert(turn, Event::Talk { from, to, phase: self.phase });
    }

    /// A host sends one packet.
    fn say(&mut self, from: usize, to: usize) {
        if self.nodes[from].asleep_since.is_some() {
            return;
        }
        let serial = self.sent.len();
        self.sent.push(Sent { from, to, at: self.now, arrived: false });
        let out = self.nodes[from].transmit(self.now, &packet(from, to, serial));
        self.carry(from, out);
    }

    /// Takes what a node's engine handed out.
    fn carry(&mut self, n: usize, out: Out) {
        for packet in out.packets {
            self.check_delivery(n, &packet);
        }
        for (to, datagram) in out.datagrams {
            let Some(target) = self.nodes.iter().position(|node| node.address == to) else { continue };
            let from = self.nodes[n].address;
            let storm = self.stormy.then_some(self.weather);
            let link_number = link(n, target);
            let link = &mut self.links[link_number];
            self.digest = self.digest.wrapping_add(datagram.len() as u64 * self.now.as_secs());
            let mut copies = 1;
            if let Some(weather) = storm {
                link.recorded.truncate(RECORDED - 1);
                link.recorded.push_front(datagram.clone());
                if link.blocked || link.random.per_mille(weather.loss) {
                    continue;
                }
                copies += usize::from(link.random.per_mille(weather.twice));
            }
            for _ in 0..copies {
                let delay = match storm {
                    None => LATENCY,
                    Some(w) if link.random.per_mille(w.late) => link.random.between(millis(100), secs(100)),
                    Some(_) => link.random.between(millis(1), millis(80)),
                };
                link.count += 1;
                let event = Event::Arrive { to: target, at: to, from, datagram: datagram.clone() };
                self.agenda.insert((self.now + delay, 1, link_number, link.count), event);
            }
        }
    }

    /// Nothing arrives that was not sent, nor at another, nor altered, nor twice.
    fn check_delivery(&mut self, n: usize, got: &[u8]) {
        let serial = got.get(20..28).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        let serial = serial.and_then(|s| usize::try_from(s).ok());
        let Some((serial, sent)) = serial.and_then(|s| Some((s, self.sent.get_mut(s)?))) else {
            self.fail("a packet was delivered that nobody sent");
        };
        if sent.to != n || got != packet(sent.from, sent.to, serial) {
            self.fail(&format!("packet {serial} was delivered to a stranger, or altered"));
        }
        if std::mem::replace(&mut sent.arrived, true) {
            self.fail(&format!("packet {serial} was delivered twice"));
        }
        self.digest = self.digest.wrapping_add(serial as u64 * u64::from(self.now.subsec_nanos()));
    }

    /// Everything may go wrong for so long.
    pub(crate) fn storm(&mut self, length: Duration) {
        self.phase += 1;
        self.stormy = true;
        self.roamed.fill(false);
        for (from, to) in pairs() {
            let talk = self.draw_talk(false);
            self.begin(from, to, talk);
        }
        self.agenda.insert((self.now, 3, 0, self.phase), Event::Trouble { phase: self.phase });
        self.run_until(self.now + length);
    }

    /// Of what was sent from one to another since a pair must be healed, nothing is lost. Where one of them cannot begin a
    /// handshake, sessions end before the other begins one: then (`late`) no loss lasts longer than healing does.
    fn check_calm(&self, sent: &[Sent], (from, to): (usize, usize), healed: Duration, late: bool) {
        // One that waits for a handshake has two ways there and one back before it.
        let due = |s: &&Sent| s.at >= healed && s.at + 4 * LATENCY + TICK < self.now;
        let mut since = None;
        for s in sent.iter().filter(|s| (s.from, s.to) == (from, to)).filter(due) {
            if s.arrived {
                since = None;
            } else if !late || s.at - *since.get_or_insert(s.at) > HEALED {
                self.fail(&format!(
                    "lost in a calm, though healed at {healed:?}: from {from} to {to} at {:?}",
                    s.at
                ));
            }
        }
    }

    fn draw_talk(&mut self, must: bool) -> Talk {
        let random = &mut self.random;
        match random.below(if must { 3 } else { 4 }) {
            0 => Talk::Steady(random.between(millis(300), secs(8))),
            1 => Talk::Rare(random.between(secs(60), secs(400))),
            2 => Talk::Bursts(random.between(secs(3), secs(30))),
            _ => Talk::Silent,
        }
    }

    fn begin(&mut self, from: usize, to: usize, talk: Talk) {
        self.links[link(from, to)].talk = talk;
        let first = self.random.between(Duration::ZERO, secs(3));
        self.arrange(first, from, to);
    }

    fn trouble(&mut self) {
        self.troubles += 1;
        let kind = self.kinds[self.random.below(self.kinds.len())];
        let n = self.random.below(NODES);
        let other = (n + 1 + self.random.below(NODES - 1)) % NODES;
        self.tell(format!("{kind:?} of node {n}, perhaps with {other}"));
        match kind {
            Kind::Weather => {
                let random = &mut self.random;
                let extreme = random.per_mille(150);
                let loss = random.below(if extreme { 1001 } else { 300 });
                self.weather = Weather { loss, twice: random.below(300), late: random.below(100) };
            }
            Kind::Partition => {
                let blocked = self.random.per_mille(600);
                self.links[link(n, other)].blocked = blocked;
                if self.random.per_mille(500) {
                    self.links[link(other, n)].blocked = blocked;
                }
            }
            Kind::Roaming => {
                self.roamed[n] = true;
                self.nodes[n].address = self.new_address();
            }
            Kind::Clock => {
                let error = i64::try_from(self.random.below(7200)).expect("small") - 3600;
                // Of two whose clocks were set back neither may be able to begin a handshake, once somebody has replayed their
                // older ones to new processes: the paper has no remedy, and there is none here.
                let other_late = (0..NODES).any(|other| other != n && self.late[other]);
                self.nodes[n].wall_error = if other_late { error.max(self.furthest[n]) } else { error };
                self.late[n] |= self.nodes[n].wall_error < self.furthest[n];
                self.furthest[n] = self.furthest[n].max(self.nodes[n].wall_error);
            }
            Kind::Restart => self.start(n),
            Kind::Psk => {
                let psk = u8::try_from(self.random.below(256)).expect("below 256");
                let later = match self.random.below(3) {
                    0 => Duration::ZERO,
                    _ => self.random.between(Duration::ZERO, secs(60)),
                };
                for (of, peer, after) in [(n, other, Duration::ZERO), (other, n, later)] {
                    let turn = (self.now + after, 4, link(of, peer), self.troubles);
                    self.agenda.insert(turn, Event::Psk { of, peer, psk });
                }
            }
            Kind::Flood => self.flood(n),
            Kind::Replay => self.replay(n, other),
            Kind::Sleep => match self.nodes[n].asleep_since {
                None => self.nodes[n].asleep_since = Some(self.now),
                Some(_) => self.nodes[n].wake(self.now),
            },
        }
        let next = self.random.between(millis(200), secs(20));
        self.agenda.insert((self.now + next, 3, 0, self.phase), Event::Trouble { phase: self.phase });
    }

    /// Initiations of strangers, from everywhere, faster than they are answered without a cookie.
    fn flood(&mut self, at: usize) {
        let (to, spread) = (self.nodes[at].address, self.random.below(250));
        for n in 0..150 + self.random.below(150) {
            let datagram = self.strangers[at][n % self.strangers[at].len()].clone();
            let from = SocketAddr::from(([203, 0, 113, u8::try_from(n % (spread + 1)).expect("small")], 9));
            let after = self.random.between(Duration::ZERO, secs(3));
            let turn = (self.now + after, 5, at, self.troubles << 16 | n as u64);
            self.agenda.insert(turn, Event::Arrive { to: at, at: to, from, datagram });
        }
    }

    /// What was recorded of a link comes again, from its sender's address or the eavesdropper's.
    fn replay(&mut self, from: usize, to: usize) {
        let recorded: Vec<_> = self.links[link(from, to)].recorded.iter().cloned().collect();
        let honest = self.nodes[from].address;
        let at = self.nodes[to].address;
        // What never came is not a replay, and its receiver believes the address that it comes from.
        self.roamed[from] = true;
        for (n, datagram) in recorded.into_iter().enumerate() {
            let elsewhere = self.random.per_mille(500);
            let from = if elsewhere { SocketAddr::from(([203, 0, 113, 255], 9)) } else { honest };
            let after = self.random.between(Duration::ZERO, secs(5));
            let turn = (self.now + after, 6, to, self.troubles << 16 | n as u64);
            self.agenda.insert(turn, Event::Arrive { to, at, from, datagram });
        }
    }

    /// Nothing goes wrong any more: within [`HEALED`] every pair talks that has something to say, and from then on no
    /// packet is lost, and handshakes are few.
    pub(crate) fn calm(&mut self, length: Duration) {
        self.phase += 1;
        self.stormy = false;
        self.weather = Weather::default();
        let start = self.now;
        // What is late is lost, and a key that one side has, the other gets.
        let pending = std::mem::take(&mut self.agenda);
        for (turn, event) in pending {
            match event {
                Event::Psk { .. } => self.handle(event),
                Event::Arrive { .. } => {}
                Event::Tick(_) | Event::Talk { .. } | Event::Trouble { .. } => {
                    self.agenda.insert(turn, event);
                }
            }
        }
        // Of several changes the last may not be the same on both sides.
        for (a, b) in pairs().filter(|(a, b)| a < b) {
            let of = |w: &Self, n, peer| w.psks.get(&(n, peer)).copied().unwrap_or(0);
            if of(self, a, b) != of(self, b, a) {
                self.handle(Event::Psk { of: b, peer: a, psk: of(self, a, b) });
            }
        }
        self.links.iter_mut().for_each(|link| link.blocked = false);
        (0..NODES).for_each(|n| self.nodes[n].wake(start));
        // An agent puts endpoints right where nobody could find the other any more: two that have moved at once, and one
        // that cannot begin a handshake.
        let lost = |w: &Self| {
            let roamed = || (0..NODES).filter(|n| w.roamed[*n]);
            roamed().count() > 1 || roamed().any(|n| w.late[n])
        };
        let told = self.random.per_mille(300) || lost(self);
        if told {
            for (n, peer) in pairs() {
                self.nodes[n].set_endpoint(start, peer, self.nodes[peer].address);
            }
        }
        self.tell(format!("calm; endpoints are told anew: {told}"));
        for (a, b) in pairs().filter(|(a, b)| a < b) {
            // Where one cannot begin a handshake, both have to speak, and often; one that has moved must speak to be found.
            let late = self.late[a] || self.late[b];
            let quiet = match self.random.below(3) {
                0 if !late && (told || !self.roamed[a]) => Some(a),
                1 if !late && (told || !self.roamed[b]) => Some(b),
                _ => None,
            };
            for (from, to) in [(a, b), (b, a)] {
                let talk = match self.draw_talk(true) {
                    _ if quiet == Some(from) => Talk::Silent,
                    Talk::Rare(_) | Talk::Bursts(_) if late => Talk::Steady(secs(5)),
                    talk @ (Talk::Silent | Talk::Steady(_) | Talk::Rare(_) | Talk::Bursts(_)) => talk,
                };
                self.tell(format!("{from} to {to}: {talk:?}"));
                self.begin(from, to, talk);
            }
        }
        let (first, healed) = (self.sent.len(), start + HEALED);
        self.run_until(healed);
        let before = self.handshakes();
        for (from, to) in pairs() {
            if self.links[link(from, to)].talk != Talk::Silent {
                self.say(from, to);
            }
        }
        self.run_until(start + length.max(HEALED + secs(1)));
        for (from, to) in pairs() {
            // One who seldom speaks may do so in a session's last moment, which the other, whose 180 s began earlier, has had behind it.
            let rare = matches!(self.links[link(from, to)].talk, Talk::Rare(_));
            let late = rare || self.late[from] || self.late[to];
            self.check_calm(&self.sent[first..], (from, to), healed, late);
        }
        // Who has sent and heard nothing for 15 s begins one: one from each side in so many seconds at most, and both count it.
        let made = self.handshakes() - before;
        if made > 2 * pairs().count() as u64 * (length.as_secs() / 15 + 2) {
            self.fail(&format!("{made} handshakes in a calm of {length:?}"));
        }
    }

    pub(crate) fn sum(&self, counter: tunnel::counters::Counter) -> u64 {
        self.nodes.iter().map(|n| n.engine.counters().get(counter)).sum()
    }

    fn handshakes(&self) -> u64 {
        self.sum(tunnel::counters::Counter::HandshakeDone)
    }

    pub(crate) fn packets(&self) -> (usize, usize) {
        (self.sent.len(), self.sent.iter().filter(|s| s.arrived).count())
    }

    pub(crate) fn pick(&mut self, least: Duration, most: Duration) -> Duration {
        self.random.between(least, most)
    }
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b)
}
