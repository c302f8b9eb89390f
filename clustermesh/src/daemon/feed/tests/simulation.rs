//! Three clusters, full mesh, each with an agent, in virtual time: messages are lost and delayed, streams cut, leaders restarted;
//! a leader is cut off from its API server, serves on with what it knew, and another is elected; one cluster is cut off from the
//! others for longer than a lease. The reference is what each cluster is; in the end everybody has it, though leaders that are
//! cut off still serve.

use mesh_core::mcs::Leases;

use super::*;
use crate::daemon::peers::presence::{Presence, Sign};
use crate::follow::course::{Course, End};
use crate::mcs::LEASE;
use crate::session::SessionError;

/// Seeds; a failing one is named and replays.
const SEEDS: u64 = 100;
const STEPS: usize = 400;
const NAMES: [&str; 3] = ["east", "north", "west"];
/// Messages that a line holds.
const LINE: usize = 3;
/// Addresses of a cluster.
const PLACES: usize = 2;
/// Milliseconds: after so much silence a stream is over, between two beats, and of one round without faults.
const SILENCE: u64 = 12_000;
const BEAT: u64 = 3000;
const ROUND: u64 = 300;

pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(u64::try_from(limit).unwrap())).unwrap()
    }

    fn byte(&mut self, limit: u8) -> u8 {
        u8::try_from(self.below(limit.into())).unwrap()
    }
}

struct Stream {
    /// Who serves it.
    place: usize,
    incarnation: u64,
    feed: Feed,
    wire: VecDeque<FollowResponse>,
    begun: u64,
    spoke: u64,
}

impl Stream {
    /// How it ended that said nothing any more.
    fn silent(&self) -> End {
        End::Silent(std::time::Duration::from_millis(self.spoke - self.begun))
    }
}

/// Who follows whom, and how far it is.
struct Line {
    session: Session,
    course: Course,
    /// None: it is cut.
    stream: Option<Stream>,
    /// What its owner was told.
    heard: BTreeMap<ClusterName, ClusterState>,
    /// Who is there, as a controller of services counts it.
    leases: Leases,
}

impl Line {
    fn new(scope: Scope) -> Self {
        let (session, course) = (Session::new(scope), Course::new());
        Self { session, course, stream: None, heard: BTreeMap::new(), leases: Leases::new(LEASE) }
    }

    /// At the next address of a server, if anybody serves there whom it may follow.
    fn connect(&mut self, reach: Reach, server: &Member, now: u64) {
        let place = self.course.begin(PLACES).unwrap();
        let known = self.session.begin();
        let served = server.places[place].as_ref().filter(|leader| leader.clusters.admit(&known).is_ok());
        match served {
            Some(Leader { incarnation, .. }) => {
                let (incarnation, feed) = (*incarnation, Feed::new(reach, known));
                let wire = VecDeque::new();
                self.stream = Some(Stream { place, incarnation, feed, wire, begun: now, spoke: now });
            }
            None => self.end(|_| End::Failed(std::time::Duration::ZERO)),
        }
    }

    fn end(&mut self, why: impl FnOnce(&Stream) -> End) {
        let nothing = std::time::Duration::ZERO;
        let end = self.stream.take().map_or(End::Failed(nothing), |stream| why(&stream));
        self.course.ended(end, PLACES, 0);
    }

    fn cut(&mut self, now: u64) {
        self.end(|stream| End::Failed(std::time::Duration::from_millis(now - stream.begun)));
    }

    /// The server sends, if the line has room, and the follower receives.
    fn turn(&mut self, reach: Reach, server: &Member, now: u64) -> Vec<Told> {
        let Some(stream) = &mut self.stream else {
            self.connect(reach, server, now);
            return Vec::new();
        };
        let leader = server.places[stream.place].as_ref();
        let Some(leader) = leader.filter(|leader| leader.incarnation == stream.incarnation) else {
            self.cut(now);
            return Vec::new();
        };
        if stream.wire.len() < LINE {
            stream.wire.extend(stream.feed.next(&leader.clusters, Millis(now)));
        }
        let Some(message) = stream.wire.pop_front() else {
            if now - stream.spoke > SILENCE {
                self.end(Stream::silent);
            }
            return Vec::new();
        };
        stream.spoke = now;
        let outcome = match self.session.hear(message) {
            Ok(outcome) => outcome,
            Err(SessionError::WentBack { cluster, .. }) => panic!("{cluster} went back"),
            // A message was lost.
            Err(_) => {
                self.cut(now);
                return Vec::new();
            }
        };
        assert_eq!(outcome.left_out, []);
        for told in &outcome.told {
            match told {
                Told::Changed { cluster, changes, .. } => {
                    let state = self.heard.entry(cluster.clone()).or_default();
                    for change in changes {
                        assert!(state.apply(change.clone()), "{change:?} touches what is equal");
                    }
                    self.leases.complete(cluster, Millis(now));
                    self.course.heard();
                }
                Told::Heard { cluster } => {
                    self.leases.complete(cluster, Millis(now));
                    self.course.heard();
                }
                Told::Gone { cluster } => panic!("{cluster} is gone"),
                Told::Complete => {}
            }
        }
        if outcome.cut_off {
            let (place, incarnation) = (self.course.ask(PLACES, false).unwrap(), stream.incarnation);
            if server.places[place].as_ref().is_some_and(|leader| leader.incarnation > incarnation) {
                self.end(|_| End::Later);
            }
        }
        outcome.told
    }

    /// Whom it counts as silent.
    fn silent(&self, now: u64) -> Vec<String> {
        let names = NAMES.map(cluster);
        self.leases.silent(&names, Millis(now)).iter().map(ToString::to_string).collect()
    }
}

struct Leader {
    incarnation: u64,
    /// It hears of its cluster no more.
    cut_off: bool,
    clusters: Clusters,
    lines: BTreeMap<usize, Line>,
    presence: Presence,
    beat: u64,
}

struct Member {
    truth: ClusterState,
    incarnation: u64,
    places: [Option<Leader>; PLACES],
    agent: Line,
}

impl Member {
    /// A new leader at a place: it knows what its API server says, and nothing of others.
    fn lead(&mut self, me: usize, place: usize, now: u64) {
        self.incarnation += 1;
        let mut clusters = Clusters::new(cluster(NAMES[me]), Millis(now));
        let others = (0..NAMES.len()).filter(|other| *other != me);
        let names: Vec<ClusterName> = others.clone().map(|other| cluster(NAMES[other])).collect();
        clusters.join(&names, Millis(now));
        let truth = ClusterState::default().changes_to(&self.truth);
        clusters.changed(&cluster(NAMES[me]), at(self.incarnation, 0), truth);
        let lines = others.map(|other| (other, Line::new(Scope::One(cluster(NAMES[other]))))).collect();
        let (incarnation, presence) = (self.incarnation, Presence::new());
        self.places[place] =
            Some(Leader { incarnation, cut_off: false, clusters, lines, presence, beat: now });
    }

    /// Where the leader is that sees its API server.
    fn present(&self) -> usize {
        self.places.iter().position(|one| one.as_ref().is_some_and(|leader| !leader.cut_off)).unwrap()
    }

    fn change(&mut self, chance: &mut Chance) {
        let object = object(chance.byte(KINDS), chance.byte(8), chance.byte(3));
        let change = if chance.below(3) == 0 { Change::Delete(object.key()) } else { Change::Put(object) };
        self.truth.apply(change.clone());
        let place = self.present();
        self.places[place].as_mut().unwrap().clusters.advance(vec![change]);
    }

    fn beat(&mut self, me: usize, now: u64) {
        for leader in self.places.iter_mut().flatten().filter(|leader| leader.beat <= now) {
            leader.clusters.stand(leader.cut_off);
            leader.clusters.heard(&cluster(NAMES[me]));
            leader.beat = now + BEAT;
        }
    }

    fn listen(&mut self, now: u64) {
        let mut agent = std::mem::replace(&mut self.agent, Line::new(Scope::All));
        agent.turn(Reach::All, self, now);
        self.agent = agent;
    }
}

struct World {
    members: Vec<Member>,
    now: u64,
    /// A cluster that nobody else reaches, and that reaches nobody.
    alone: Option<usize>,
}

impl World {
    fn new() -> Self {
        let member = |me: usize| {
            let (truth, agent) = (ClusterState::default(), Line::new(Scope::All));
            let mut member = Member { truth, incarnation: 0, places: [None, None], agent };
            member.lead(me, 0, 0);
            member
        };
        Self { members: (0..NAMES.len()).map(member).collect(), now: 0, alone: None }
    }

    /// A leader of `me` hears another cluster.
    fn turn(&mut self, me: usize, place: usize, other: usize) {
        let now = self.now;
        let Some(mut line) = self.members[me].places[place].as_mut().and_then(|one| one.lines.remove(&other))
        else {
            return;
        };
        let told = if self.alone.is_some_and(|alone| alone == me || alone == other) {
            if line.stream.as_ref().is_some_and(|stream| now - stream.spoke > SILENCE) {
                line.end(Stream::silent);
            }
            Vec::new()
        } else {
            line.turn(Reach::Own, &self.members[other], now)
        };
        let leader = self.members[me].places[place].as_mut().unwrap();
        leader.lines.insert(other, line);
        for told in told {
            let (of, sign) = match told {
                Told::Changed { cluster, version, changes } => {
                    leader.clusters.changed(&cluster, version.into(), changes);
                    (cluster, Sign::Changed)
                }
                Told::Heard { cluster } => (cluster, Sign::Bookmark),
                Told::Gone { .. } | Told::Complete => continue,
            };
            if leader.presence.sign(&of, sign, Millis(now)) {
                leader.clusters.heard(&of);
            }
        }
    }

    /// Something happens, mostly something bad.
    fn step(&mut self, chance: &mut Chance) {
        self.now += chance.below(2 * ROUND);
        let now = self.now;
        self.members.iter_mut().enumerate().for_each(|(me, member)| member.beat(me, now));
        let me = chance.index(NAMES.len());
        let other = (me + 1 + chance.index(NAMES.len() - 1)) % NAMES.len();
        let place = chance.index(PLACES);
        let member = &mut self.members[me];
        let line = |member: &mut Member, cut: &dyn Fn(&mut Line)| {
            member.places[place].as_mut().and_then(|one| one.lines.get_mut(&other)).into_iter().for_each(cut);
        };
        match chance.below(80) {
            0..=23 => member.change(chance),
            24..=51 => self.turn(me, place, other),
            52..=65 => member.listen(now),
            66..=68 => line(member, &|line| line.cut(now)),
            69..=70 => member.agent.cut(now),
            // A message is lost.
            71..=72 => line(member, &|line| {
                drop(line.stream.as_mut().and_then(|stream| stream.wire.pop_front()));
            }),
            73..=74 => {
                self.alone = if self.alone.is_some() { None } else { Some(me) };
            }
            // Another leads, and the former one may not know it.
            75 | 76 => {
                let present = member.present();
                if let Some(leader) = &mut member.places[present] {
                    leader.cut_off = true;
                }
                member.lead(me, (present + 1) % PLACES, now);
            }
            // One that was cut off knows it now.
            77 => {
                let present = member.present();
                member.places[(present + 1) % PLACES] = None;
            }
            78 => {
                let present = member.present();
                member.lead(me, present, now);
            }
            _ => {}
        }
    }

    /// Nothing bad happens for so many milliseconds but that a cluster is alone.
    fn rounds(&mut self, duration: u64, mut each: impl FnMut(&mut Self)) {
        let end = self.now + duration;
        while self.now < end {
            self.now += ROUND;
            let now = self.now;
            for me in 0..NAMES.len() {
                self.members[me].beat(me, now);
                for (place, other) in
                    (0..PLACES).flat_map(|place| (0..NAMES.len()).map(move |other| (place, other)))
                {
                    self.turn(me, place, other);
                }
                self.members[me].listen(now);
            }
            each(self);
        }
    }
}

#[test]
fn every_change_is_in_all_clusters_and_agents_after_the_heal() {
    let (mut leaders, mut returned) = (0, 0);
    for seed in 0..SEEDS {
        let (mut world, mut chance) = (World::new(), Chance(seed));
        (0..STEPS).for_each(|_| world.step(&mut chance));

        // One is alone for longer than a lease and what a mirror adds, and everything goes on.
        let alone = chance.index(NAMES.len());
        world.alone = Some(alone);
        world.rounds(LEASE + 15_000, |world| {
            let me = chance.index(NAMES.len());
            world.members[me].change(&mut chance);
        });
        for (me, member) in world.members.iter().enumerate() {
            let wanted: Vec<&str> = (0..NAMES.len())
                .filter(|other| (*other == alone) != (me == alone))
                .map(|other| NAMES[other])
                .collect();
            assert_eq!(
                member.agent.silent(world.now),
                wanted,
                "seed {seed}: {} without {}",
                NAMES[me],
                NAMES[alone]
            );
        }

        world.alone = None;
        world.rounds(LEASE, |_| {});
        for (me, member) in world.members.iter().enumerate() {
            leaders += member.places.iter().flatten().count();
            returned += usize::from(me != alone);
            assert_eq!(member.agent.silent(world.now), [""; 0], "seed {seed}: of {}", NAMES[me]);
            for (other, name) in NAMES.iter().enumerate() {
                let (name, wanted) = (cluster(name), &world.members[other].truth);
                let place = format!("seed {seed}: {} of {name}", NAMES[me]);
                for leader in member.places.iter().flatten().filter(|leader| !leader.cut_off || me != other) {
                    assert_eq!(leader.clusters.store(&name).unwrap().state(), wanted, "{place}");
                }
                assert_eq!(member.agent.session.state(&name).unwrap().1, wanted, "{place}, agent");
                assert_eq!(member.agent.heard.get(&name), Some(wanted), "{place}, told");
            }
        }
    }
    assert!(
        returned > 0 && leaders > 4 * NAMES.len() * usize::try_from(SEEDS).unwrap() / 3,
        "{leaders} leaders"
    );
}
