//! Every state that a small cluster can reach while it rotates: its agents run the code of this repository, the
//! network and the API do whatever they may (`world.rs` says what that is).

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; the number of states is to be seen"
)]

mod agreement;
#[path = "../pair/mod.rs"]
mod pair;
mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};

use keyring::rotation::Proof;
use mesh_core::psk::Mode;
use mesh_core::slot::Slot;
use stateright::{Checker, Model, Property};

use self::agreement::Agreement;
use self::world::{Rules, World};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// An agent has a turn.
    Turn(usize),
    /// An agent has a turn when the deadline has passed.
    Late(usize),
    /// An agent crashes in the middle of a turn, after so many things done.
    Crash(usize, usize),
    /// An agent starts.
    Start(usize),
    /// Somebody asks for a rotation.
    Ask(usize),
    /// The API accepts what an agent announces.
    Publish(usize),
    /// An announcement comes to a node: the next one, or all that are under way at once.
    Deliver { to: usize, of: usize, all: bool },
    /// A handshake, begun by the first; `both`: its first packet arrives, too.
    Shake { from: usize, to: usize, slot: Slot, both: bool },
    /// A node goes away; `off`: without power.
    Leave { me: usize, off: bool },
    /// A node comes back.
    Return(usize),
    /// A letter about a slot's pre-shared key comes; the agent crashes after so many things done.
    Read { to: usize, from: usize, slot: Slot, fuel: Option<usize> },
}

struct Cluster {
    rules: Rules,
    /// States from which a run without faults ends well, by hash.
    ends: Arc<Mutex<HashSet<u64>>>,
}

/// Rounds in which a cluster left in peace must have ended; a rotation takes about ten, with pre-shared keys about twenty.
const ROUNDS: usize = 100;

impl Cluster {
    fn new(rules: Rules) -> Self {
        Self { rules, ends: Arc::default() }
    }

    /// Both keys of all that were asked are new, everybody knows, and every pair is back on slot zero.
    fn ended(&self, world: &World) -> bool {
        let node = |me: usize| {
            let node = &world.nodes[me];
            let asked = self.rules.rotates[me];
            // Every key before the last two is gone, and there is a record of it.
            let gone = (1..=2 * asked).fold(0, |mask, epoch| mask | 1 << epoch);
            node.up
                && node.machine.state().rotation.is_none()
                && world.done(me) == asked
                && node.keys.iter().all(|epoch| *epoch > 2 * asked)
                && node.records == gone
                && world.api[me] == node.wanted
        };
        (0..world.nodes.len()).all(node)
            && world.pairs().all(|(a, b)| {
                world.nodes[a].peers[b].view == world.api[b]
                    && world.nodes[a].peers[b].route == Some(Slot::Zero)
                    && world.fits(a, b, Slot::Zero)
                    && world.fits(a, b, Slot::One)
                    && world.nodes[a].peers[b].agreement.as_deref().is_none_or(Agreement::is_open)
            })
    }

    /// A cluster that has agreed on its pre-shared keys, before anybody is asked for a rotation.
    fn agreed(rules: &Rules) -> World {
        let calm = Self::new(Rules { rotates: vec![0; rules.rotates.len()], ..rules.clone() });
        let mut world = World::new(&calm.rules);
        for _ in 0..ROUNDS {
            if calm.ended(&world) {
                break;
            }
            calm.peace(&mut world);
        }
        assert!(calm.ended(&world), "{world:#?}");
        world.toy = pair::Toy::default();
        for (node, asked) in world.nodes.iter_mut().zip(&rules.rotates) {
            node.asked = if rules.any_time { 0 } else { (*asked).min(1) };
        }
        world
    }

    /// One round without faults: everybody is back.
    fn peace(&self, world: &mut World) {
        for node in &mut world.nodes {
            node.away = false;
        }
        self.calm(world);
    }

    /// One round in which nothing more goes wrong: who is away stays away.
    fn calm(&self, world: &mut World) {
        for me in 0..world.nodes.len() {
            if !world.nodes[me].up && !world.nodes[me].away {
                world.start(&self.rules, me);
            }
        }
        for (to, of) in world.pairs().filter(|(to, _)| !world.nodes[*to].away).collect::<Vec<_>>() {
            world.deliver(to, of, true);
        }
        for me in 0..world.nodes.len() {
            if world.can_ask(&self.rules, me) {
                world.nodes[me].asked += 1;
            }
            if !world.nodes[me].up {
                continue;
            }
            world.turn(&self.rules, me, false, None);
            if !world.nodes[me].away && world.api[me] != world.nodes[me].wanted {
                world.publish(me);
            }
        }
        for (from, to) in world.pairs() {
            for slot in Slot::ALL {
                if world.can_shake(from, to, slot) {
                    world.shake(from, to, slot, true);
                }
            }
        }
        for (to, from) in world.pairs() {
            for slot in Slot::ALL {
                if world.can_read(to, from, slot) {
                    world.read(&self.rules, (to, from, slot), None);
                }
            }
        }
    }

    /// Whoever is not away has done what it was asked for.
    fn rest_ended(&self, world: &World) -> bool {
        let rest = world.nodes.iter().enumerate().filter(|(_, node)| !node.away);
        rest.into_iter().all(|(me, node)| {
            node.up && node.machine.state().rotation.is_none() && world.done(me) == self.rules.rotates[me]
        })
    }

    /// Those that are left come to the end of their rotations without those that are away, and without a deadline; but for
    /// those that went away amid their own rotation: who is asked for it later waits as if they were there.
    fn ends_without(&self, world: &World) -> bool {
        let drains = |me: usize| world.api[me].is_some_and(|said| said.drained.is_some());
        let away: Vec<usize> = (0..world.nodes.len()).filter(|me| world.nodes[*me].away).collect();
        if away.is_empty() || away.into_iter().any(drains) {
            return true;
        }
        let mut world = world.clone();
        for _ in 0..ROUNDS {
            if self.rest_ended(&world) {
                return true;
            }
            self.calm(&mut world);
        }
        false
    }

    fn can_end(&self, world: &World) -> bool {
        let mut world = world.clone();
        let mut path = Vec::new();
        for _ in 0..ROUNDS {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            path.push(hasher.finish());
            let mut ends = self.ends.lock().unwrap();
            if self.ended(&world) || path.last().is_some_and(|last| ends.contains(last)) {
                ends.extend(path);
                return true;
            }
            drop(ends);
            self.peace(&mut world);
        }
        false
    }
}

/// Whatever slot a pair uses at this moment, the other side accepts what comes by it. After a deadline was taken, its
/// node's pairs are excused.
fn talks(world: &World) -> bool {
    world.pairs().all(|(a, b)| {
        let (x, y) = (&world.nodes[a], &world.nodes[b]);
        !x.peers[b].met || x.late || y.late || world.accepted(a, b)
    })
}

/// A pair always has a slot on which both could talk.
fn common(world: &World) -> bool {
    world.pairs().all(|(a, b)| {
        let (x, y) = (&world.nodes[a], &world.nodes[b]);
        !x.peers[b].met || x.late || y.late || Slot::ALL.into_iter().any(|slot| world.fits(a, b, slot))
    })
}

/// Where pods' packets go they are taken, and where the administrator insists on it, in sessions with an agreed key alone.
fn taken(rules: &Rules, world: &World) -> bool {
    world.pairs().all(|(a, b)| {
        let (here, there) = (&world.nodes[a].peers[b], &world.nodes[b].peers[a]);
        let (Some(mine), Some(theirs), Some(slot)) = (&here.agreement, &there.agreement, here.route) else {
            return true;
        };
        let s = slot.index();
        let insists = rules.psk == Some(Mode::Require);
        mine.withheld[s] || !world.fits(a, b, slot) || (!theirs.confined[s] && (!insists || mine.keyed(slot)))
    })
}

/// A pair whose pods talked is never set back to its agents' exchange. After a deadline it is excused.
fn reached(world: &World) -> bool {
    world.pairs().all(|(a, b)| {
        let (x, y) = (&world.nodes[a], &world.nodes[b]);
        let (Some(mine), Some(slot)) = (&x.peers[b].agreement, x.peers[b].route) else { return true };
        x.late || y.late || !mine.reached || !mine.withheld[slot.index()]
    })
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![if self.rules.psk.is_some() { Self::agreed(&self.rules) } else { World::new(&self.rules) }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (me, node) in world.nodes.iter().enumerate() {
            if self.rules.any_time && world.can_ask(&self.rules, me) {
                actions.push(Action::Ask(me));
            }
            if node.away {
                actions.push(Action::Return(me));
            } else if world.leaves > 0 {
                actions.extend([true, false].map(|off| Action::Leave { me, off }));
            }
            if !node.up {
                // Without the API it does nothing.
                if !node.away {
                    actions.push(Action::Start(me));
                }
                continue;
            }
            actions.push(Action::Turn(me));
            if self.rules.deadlines && world.drains(me) {
                actions.push(Action::Late(me));
            }
            if node.wanted.is_some() && world.api[me] != node.wanted && !node.away {
                actions.push(Action::Publish(me));
            }
            if world.crashes > 0 {
                let crashes = |fuel: &usize| world.clone().turn(&self.rules, me, false, Some(*fuel));
                // Before anything was done it crashes in any case.
                actions.push(Action::Crash(me, 0));
                actions.extend((1..).take_while(crashes).map(|fuel| Action::Crash(me, fuel)));
            }
        }
        for (to, of) in world.pairs() {
            match world.nodes[to].peers[of].queue.len() {
                0 => {}
                _ if world.nodes[to].away => {}
                1 => actions.push(Action::Deliver { to, of, all: true }),
                _ => actions.extend([true, false].map(|all| Action::Deliver { to, of, all })),
            }
            for slot in Slot::ALL {
                if world.can_shake(to, of, slot) {
                    actions.extend([true, false].map(|both| Action::Shake { from: to, to: of, slot, both }));
                }
                if world.can_read(to, of, slot) {
                    let read = |fuel| Action::Read { to, from: of, slot, fuel };
                    actions.push(read(None));
                    if world.crashes > 0 {
                        let dies =
                            |fuel: &usize| world.clone().read(&self.rules, (to, of, slot), Some(*fuel));
                        actions.extend((0..).take_while(dies).map(|fuel| read(Some(fuel))));
                    }
                }
            }
        }
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.toy.rounds <= self.rules.offers && world.toy.keys <= self.rules.offers
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Turn(me) => {
                next.turn(&self.rules, me, false, None);
            }
            Action::Late(me) => {
                next.turn(&self.rules, me, true, None);
            }
            Action::Crash(me, fuel) => {
                next.crashes -= 1;
                if fuel == 0 {
                    next.crash(me);
                } else {
                    next.turn(&self.rules, me, false, Some(fuel));
                }
            }
            Action::Start(me) => next.start(&self.rules, me),
            Action::Leave { me, off } => next.leave(me, off),
            Action::Return(me) => next.nodes[me].away = false,
            Action::Ask(me) => next.nodes[me].asked += 1,
            Action::Publish(me) => next.publish(me),
            Action::Deliver { to, of, all } => next.deliver(to, of, all),
            Action::Shake { from, to, slot, both } => next.shake(from, to, slot, both),
            Action::Read { to, from, slot, fuel } => {
                next.crashes -= u8::from(fuel.is_some());
                next.read(&self.rules, (to, from, slot), fuel);
            }
        }
        next.meet();
        if !self.rules.any_time {
            for me in (0..next.nodes.len()).filter(|me| next.can_ask(&self.rules, *me)).collect::<Vec<_>>() {
                next.nodes[me].asked += 1;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is sent now is accepted", |_, world| talks(world)),
            Property::always("a common slot", |_, world| common(world)),
            Property::always("left in peace it ends rotated", Self::can_end),
            Property::always("nobody waits for who is away", Self::ends_without),
            Property::always("what pods send is taken", |model: &Self, world| taken(&model.rules, world)),
            Property::always("pods that could be reached still can be", |_, world| reached(world)),
            Property::sometimes("it ends", Self::ended),
        ]
    }
}

/// Checks every state, and prints how many there were.
fn check(name: &str, rules: Rules) {
    let began = std::time::Instant::now();
    let checker = Cluster::new(rules).checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    for (property, path) in checker.discoveries() {
        if property != "it ends" {
            for (world, action) in path.clone().into_vec() {
                println!("{}\n    {action:?}", world.summary());
            }
            panic!("{name}: not so: {property}\n{:#?}", path.last_state());
        }
    }
    checker.assert_properties();
}

#[test]
fn two_nodes_rotate_at_once_with_an_agent_that_crashes_anywhere() {
    check("two nodes, both rotate, two crashes", Rules { crashes: 2, ..Rules::new(2) });
}

#[test]
fn one_of_three_nodes_rotates_with_an_agent_that_crashes_anywhere() {
    for me in 0..3 {
        let rotates = (0..3).map(|node| u8::from(node == me)).collect();
        check(
            &format!("three nodes, {me} rotates, one crash"),
            Rules { crashes: 1, rotates, ..Rules::new(3) },
        );
    }
}

#[test]
fn two_of_three_nodes_rotate_at_once() {
    let rules = Rules { rotates: vec![1, 1, 0], ..Rules::new(3) };
    check("three nodes, two rotate", rules);
}

#[test]
fn one_of_two_nodes_rotates_with_agents_that_crash_anywhere() {
    let rules = Rules { crashes: 2, rotates: vec![1, 0], ..Rules::new(2) };
    check("two nodes, the smaller rotates, two crashes", rules);
    let rules = Rules { crashes: 2, rotates: vec![0, 1], ..Rules::new(2) };
    check("two nodes, the greater rotates, two crashes", rules);
}

#[test]
fn after_a_deadline_every_pair_finds_together_again() {
    check("two nodes, both rotate, deadlines", Rules { deadlines: true, ..Rules::new(2) });
}

#[test]
fn a_node_rotates_twice_while_another_has_not_heard_of_the_first() {
    for rotates in [vec![2, 1], vec![1, 2]] {
        check(&format!("two nodes, {rotates:?} rotations"), Rules { rotates, ..Rules::new(2) });
    }
}

#[test]
fn a_rotation_may_begin_at_any_point_of_another() {
    let rules = Rules { any_time: true, crashes: 1, ..Rules::new(2) };
    check("two nodes, both rotate, asked at any time, one crash", rules);
}

#[test]
fn after_a_deadline_and_a_crash_every_pair_finds_together_again() {
    let rules = Rules { deadlines: true, crashes: 1, rotates: vec![1, 0], ..Rules::new(2) };
    check("two nodes, one rotates, deadlines, one crash", rules);
}

/// A node goes away in the middle of anything and comes back at any time, by power or by cable, while nobody hears of any
/// kubelet: who is away is not waited for, and who is there loses nothing, whatever the API says of it. One rotation at a time: a pair
/// without any session in which both drain at once, and hear of it later than the quiet time, loses packets with or without this. And
/// no crash besides: an answer is no proof of a session here, as it is in a kernel, and an agent that starts looks for one.
#[test]
fn a_node_goes_away_and_comes_back_at_any_point_of_a_rotation() {
    for rotates in [vec![1, 0], vec![0, 1]] {
        let rules = Rules { leaves: 1, rotates: rotates.clone(), ..Rules::new(2) };
        check(&format!("two nodes, {rotates:?} rotations, one goes away"), rules);
    }
}

#[test]
fn one_of_three_nodes_goes_away_while_another_rotates() {
    for me in 0..3 {
        let rotates = (0..3).map(|node| u8::from(node == me)).collect();
        check(
            &format!("three nodes, {me} rotates, one goes away"),
            Rules { leaves: 1, rotates, ..Rules::new(3) },
        );
    }
}

#[test]
fn silence_is_proof_where_every_pair_talks() {
    check("two nodes, both rotate, silence", Rules { chatty: true, proof: Proof::Silence, ..Rules::new(2) });
}

#[test]
fn silence_is_no_proof_where_a_pair_may_be_idle() {
    let rules = Rules { proof: Proof::Silence, ..Rules::new(2) };
    let checker = Cluster::new(rules).checker().spawn_bfs().join();
    let path = checker.discovery("what is sent now is accepted").unwrap();
    println!("silence alone is refuted by {:?}", path.into_actions());
}

#[test]
fn a_node_joins_while_another_rotates() {
    let rules = Rules { rotates: vec![1, 0], joined: vec![true, false], ..Rules::new(2) };
    check("two nodes, one joins", rules);
}

/// Rotation beside the agreement on pre-shared keys.
#[test]
fn nodes_with_pre_shared_keys_rotate_with_agents_that_crash_anywhere() {
    for mode in [Mode::Prefer, Mode::Require] {
        let rules = || Rules::agreeing(2, mode);
        for rotates in [vec![1, 0], vec![0, 1]] {
            check(
                &format!("{mode}, {rotates:?} rotations, two crashes"),
                Rules { rotates, crashes: 2, ..rules() },
            );
        }
        check(&format!("{mode}, both rotate"), Rules { offers: 6, ..rules() });
        // Where keys are required, pods of a node that comes back to a new one wait for its pre-shared key, as after a deadline.
        if mode == Mode::Prefer {
            check(
                &format!("{mode}, one rotates, one goes away"),
                Rules { rotates: vec![1, 0], leaves: 1, ..rules() },
            );
        }
        check(
            &format!("{mode}, one rotates, a deadline"),
            Rules { rotates: vec![1, 0], deadlines: true, ..rules() },
        );
    }
}

/// A node that comes while another drains a slot has its pods reached before the drain ends, whoever holds that up.
#[test]
fn the_pods_of_a_newcomer_do_not_wait_for_the_end_of_a_rotation() {
    for mode in [Mode::Prefer, Mode::Require] {
        for (rotates, joined) in [(vec![1, 0], vec![true, false]), (vec![0, 1], vec![false, true])] {
            let cluster = Cluster::new(Rules { rotates, joined: joined.clone(), ..Rules::agreeing(2, mode) });
            let mut world = World::new(&cluster.rules);
            let old = joined.iter().position(|joined| *joined).unwrap();
            // It drains, and what would tell it that the slot is silent never comes.
            world.held = true;
            for _ in 0..4 {
                world.turn(&cluster.rules, old, false, None);
                if world.api[old] != world.nodes[old].wanted {
                    world.publish(old);
                }
            }
            assert!(world.nodes[old].machine.draining().is_some(), "{}", world.summary());
            for _ in 0..ROUNDS {
                cluster.peace(&mut world);
                world.meet();
            }
            assert!(world.nodes[old].machine.draining().is_some(), "{}", world.summary());
            for (a, b) in world.pairs() {
                let peer = &world.nodes[a].peers[b];
                let (agreement, slot) = (peer.agreement.as_ref().unwrap(), peer.route.unwrap());
                assert!(!agreement.withheld[slot.index()], "{mode}: {}", world.summary());
                assert!(agreement.keyed(slot), "{mode}: {}", world.summary());
            }
        }
    }
}

/// Minutes: run with `--ignored`.
#[test]
#[ignore = "takes minutes; the smaller bounds above run always"]
fn nodes_with_pre_shared_keys_rotate_within_wider_bounds() {
    for mode in [Mode::Prefer, Mode::Require] {
        let rules = || Rules::agreeing(2, mode);
        check(&format!("{mode}, both rotate, one crash"), Rules { crashes: 1, offers: 6, ..rules() });
        check(
            &format!("{mode}, both rotate, asked at any time, one crash"),
            Rules { any_time: true, crashes: 1, offers: 6, ..rules() },
        );
        for rotates in [vec![2, 1], vec![1, 2]] {
            check(&format!("{mode}, {rotates:?} rotations"), Rules { rotates, offers: 8, ..rules() });
        }
        check(
            &format!("{mode}, three nodes, one rotates"),
            Rules { rotates: vec![0, 1, 0], ..Rules::agreeing(3, mode) },
        );
    }
}
