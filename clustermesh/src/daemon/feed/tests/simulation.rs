//! Three clusters, full mesh, each with an agent, in virtual time: messages are lost and delayed, streams cut, leaders
//! restarted. The reference is what each cluster is; in the end everybody has it.

use super::*;
use crate::session::SessionError;

/// Seeds; a failing one is named and replays.
const SEEDS: u64 = 100;
const STEPS: usize = 400;
const NAMES: [&str; 3] = ["east", "north", "west"];
/// Messages that a line holds.
const LINE: usize = 3;

struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(u64::try_from(limit).unwrap())).unwrap()
    }
}

/// Who follows whom, and how far it is.
struct Line {
    session: Session,
    /// None: it is cut.
    stream: Option<(Feed, VecDeque<FollowResponse>)>,
    /// What its owner was told.
    heard: BTreeMap<ClusterName, ClusterState>,
    snapshots: usize,
}

impl Line {
    fn new(scope: Scope) -> Self {
        Self { session: Session::new(scope), stream: None, heard: BTreeMap::new(), snapshots: 0 }
    }

    fn connect(&mut self, reach: Reach) {
        self.stream = Some((Feed::new(reach, self.session.begin()), VecDeque::new()));
    }

    /// The server sends, if the line has room.
    fn send(&mut self, clusters: &Clusters, now: u64) {
        let Some((feed, wire)) = self.stream.as_mut().filter(|(_, wire)| wire.len() < LINE) else { return };
        let message = feed.next(clusters, Millis(now));
        self.snapshots += usize::from(message.as_ref().is_some_and(proto::clustermesh::begins_snapshot));
        wire.extend(message);
    }

    /// The follower receives.
    fn receive(&mut self) -> Vec<Told> {
        let Some(message) = self.stream.as_mut().and_then(|(_, wire)| wire.pop_front()) else {
            return Vec::new();
        };
        match self.session.hear(message) {
            Ok(outcome) => {
                assert_eq!(outcome.left_out, []);
                for told in &outcome.told {
                    match told {
                        Told::Changed { cluster, changes, .. } => {
                            let state = self.heard.entry(cluster.clone()).or_default();
                            for change in changes {
                                assert!(state.apply(change.clone()), "{change:?} touches what is equal");
                            }
                        }
                        Told::Gone { cluster } => panic!("{cluster} is gone"),
                        Told::Heard { .. } | Told::Complete => {}
                    }
                }
                outcome.told
            }
            Err(SessionError::WentBack { cluster, .. }) => panic!("{cluster} went back"),
            // A message was lost.
            Err(_) => {
                self.stream = None;
                Vec::new()
            }
        }
    }
}

struct Member {
    truth: ClusterState,
    incarnation: u64,
    clusters: Clusters,
    lines: BTreeMap<usize, Line>,
    agent: Line,
}

impl Member {
    /// A new leader: it knows what its API server says, and nothing of others.
    fn lead(
        me: usize,
        truth: &ClusterState,
        incarnation: u64,
        now: u64,
    ) -> (Clusters, BTreeMap<usize, Line>) {
        let mut clusters = Clusters::new(cluster(NAMES[me]), Millis(now));
        let others = (0..NAMES.len()).filter(|other| *other != me);
        let names: Vec<ClusterName> = others.clone().map(|other| cluster(NAMES[other])).collect();
        clusters.join(&names, Millis(now));
        clusters.changed(&cluster(NAMES[me]), at(incarnation, 0), ClusterState::default().changes_to(truth));
        let lines = others.map(|other| (other, Line::new(Scope::One(cluster(NAMES[other])))));
        (clusters, lines.collect())
    }
}

fn world() -> Vec<Member> {
    let member = |me: usize| {
        let truth = ClusterState::default();
        let (clusters, lines) = Member::lead(me, &truth, 1, 0);
        Member { truth, incarnation: 1, clusters, lines, agent: Line::new(Scope::All) }
    };
    (0..NAMES.len()).map(member).collect()
}

/// What a line brought is mirrored.
fn mirror(member: &mut Member, told: Vec<Told>) {
    for told in told {
        match told {
            Told::Changed { cluster, version, changes } => {
                member.clusters.changed(&cluster, version.into(), changes);
            }
            Told::Heard { cluster } => drop(member.clusters.heard(&cluster)),
            Told::Gone { .. } | Told::Complete => {}
        }
    }
}

fn turn(world: &mut [Member], me: usize, other: usize, now: u64) {
    let mut line = world[me].lines.remove(&other).unwrap();
    line.send(&world[other].clusters, now);
    let told = line.receive();
    mirror(&mut world[me], told);
    world[me].lines.insert(other, line);
}

fn step(world: &mut [Member], chance: &mut Chance, now: u64) {
    let me = chance.index(world.len());
    let other = (me + 1 + chance.index(world.len() - 1)) % world.len();
    let member = &mut world[me];
    match chance.below(40) {
        0..=11 => {
            let (host, labels) = (u8::try_from(chance.below(8)).unwrap(), chance.below(3));
            let change =
                if labels == 0 { Change::Delete(endpoint(host, 0).key()) } else { put(host, labels) };
            member.truth.apply(change.clone());
            member.clusters.advance(vec![change]);
        }
        12..=25 => turn(world, me, other, now),
        26..=32 => {
            member.agent.send(&member.clusters, now);
            member.agent.receive();
        }
        33 => member.lines.get_mut(&other).unwrap().stream = None,
        34 => member.agent.stream = None,
        // A message is lost.
        35 => {
            if let Some((_, wire)) = &mut member.lines.get_mut(&other).unwrap().stream {
                wire.pop_front();
            }
        }
        36 | 37 => member.lines.get_mut(&other).unwrap().connect(Reach::Own),
        38 => member.agent.connect(Reach::All),
        _ => {
            if chance.below(3) == 0 {
                member.incarnation += 1;
                let (clusters, lines) = Member::lead(me, &member.truth, member.incarnation, now);
                (member.clusters, member.lines) = (clusters, lines);
                // Who followed it is cut.
                member.agent.stream = None;
                for follower in world.iter_mut() {
                    if let Some(line) = follower.lines.get_mut(&me) {
                        line.stream = None;
                    }
                }
            }
        }
    }
}

#[test]
fn every_change_is_in_all_clusters_and_agents_after_the_heal() {
    for seed in 0..SEEDS {
        let (mut world, mut chance) = (world(), Chance(seed));
        for now in 0..STEPS {
            step(&mut world, &mut chance, u64::try_from(now).unwrap());
        }
        // All lines are whole again.
        for member in &mut world {
            for line in member.lines.values_mut() {
                line.connect(Reach::Own);
            }
            member.agent.connect(Reach::All);
        }
        for now in STEPS..STEPS + 300 {
            let now = u64::try_from(now).unwrap();
            for me in 0..world.len() {
                for other in (0..world.len()).filter(|other| *other != me) {
                    turn(&mut world, me, other, now);
                }
                let member = &mut world[me];
                member.agent.send(&member.clusters, now);
                member.agent.receive();
            }
        }
        for (me, member) in world.iter().enumerate() {
            for (other, name) in NAMES.iter().enumerate() {
                let (name, wanted) = (cluster(name), &world[other].truth);
                let place = format!("seed {seed}: {} of {name}", NAMES[me]);
                assert_eq!(member.clusters.store(&name).unwrap().state(), wanted, "{place}");
                assert_eq!(member.agent.session.state(&name).unwrap().1, wanted, "{place}, agent");
                assert_eq!(member.agent.heard.get(&name), Some(wanted), "{place}, told");
            }
        }
    }
}
