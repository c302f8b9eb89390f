use super::*;
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::key::PublicKey;

mod crashes;
mod table;

const ZERO: Slot = Slot::Zero;
const ONE: Slot = Slot::One;
const SETTINGS: Settings = Settings::DEFAULT;
const QUIET: Duration = SETTINGS.quiet;
const DEADLINE: Duration = SETTINGS.deadline;

fn public(slot: Slot, epoch: u64) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[0] = u8::try_from(slot.index()).unwrap();
    bytes[1..9].copy_from_slice(&epoch.to_le_bytes());
    PublicKey::from_bytes(bytes)
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A peer that talks on a slot and answers there.
fn on(peer: &NodeName, slot: Slot) -> PeerFacts<'_> {
    PeerFacts {
        name: peer,
        smaller: *peer < name("m"),
        drained: None,
        target: slot,
        sending: Some(slot),
        answered: Some((slot, Duration::ZERO)),
        handshake_age: [None; 2],
        doubted_for: None,
        unheard_for: None,
    }
}

/// What a test's machine looks at: node `m`, epochs 1 and 2, nothing drained.
struct Facts {
    node: NodeName,
    slots: [SlotFacts; 2],
    announced: Option<Announcement>,
    synced: bool,
    request: Option<&'static str>,
    successor: bool,
}

impl Facts {
    fn new() -> Self {
        let slot = |slot: Slot, epoch| SlotFacts {
            epoch: Epoch(epoch),
            public: public(slot, epoch),
            made: Some(1_000_000),
            staged: None,
            device: Some(public(slot, epoch)),
            quiet_for: QUIET,
        };
        let mut facts = Self {
            node: name("m"),
            slots: [slot(ZERO, 1), slot(ONE, 2)],
            announced: None,
            synced: true,
            request: None,
            successor: false,
        };
        facts.accept(None);
        facts
    }

    /// The API shows the present keys and this drain.
    fn accept(&mut self, drained: Option<Slot>) {
        let slot = |slot: Slot| SlotAnnouncement {
            epoch: self.slots[slot.index()].epoch,
            public_key: self.slots[slot.index()].public,
            port: 1,
            draining: drained == Some(slot),
        };
        self.announced = Some(Announcement {
            slots: Slot::ALL.map(slot),
            endpoints: vec![],
            kem: None,
            kem_required: false,
            host_traffic: false,
        });
    }

    /// The slot has a new key, in file and device.
    fn replace(&mut self, slot: Slot) {
        let epoch = self.slots.iter().map(|slot| slot.epoch.0).max().unwrap() + 1;
        let new = public(slot, epoch);
        let facts = &mut self.slots[slot.index()];
        (facts.epoch, facts.public, facts.device, facts.staged) = (Epoch(epoch), new, Some(new), None);
    }

    fn step(&self, machine: &Machine, peers: &[PeerFacts<'_>], uptime: Duration) -> Step {
        self.step_by(&SETTINGS, machine, peers, uptime)
    }

    fn step_by(
        &self,
        settings: &Settings,
        machine: &Machine,
        peers: &[PeerFacts<'_>],
        uptime: Duration,
    ) -> Step {
        let observed = Observed {
            node: &self.node,
            slots: self.slots,
            announced: self.announced.as_ref(),
            synced: self.synced,
            peers,
            request: self.request,
            successor: self.successor,
        };
        machine.step(settings, &observed, Now { uptime, unix: 2_000_000 })
    }

    /// A step of which only the machine matters.
    fn go(&self, machine: &Machine, peers: &[PeerFacts<'_>], uptime: Duration) -> Machine {
        self.step(machine, peers, uptime).next
    }

    /// Both keys replaced, with nobody in the way.
    fn whole_rotation(&mut self, mut machine: Machine) -> Machine {
        for slot in ORDER {
            assert_eq!(machine.draining(), Some(slot));
            self.accept(Some(slot));
            machine = self.go(&machine, &[], Duration::ZERO);
            machine = self.go(&machine, &[], QUIET);
            self.replace(slot);
            machine = self.go(&machine, &[], QUIET);
        }
        self.accept(machine.draining());
        machine
    }
}

fn words(effects: &[Effect]) -> Vec<&'static str> {
    let word = |effect: &Effect| match effect {
        Effect::Persist => "persist",
        Effect::Overdue(_) => "overdue",
        Effect::Stage { .. } => "stage",
        Effect::Install { .. } => "install",
        Effect::Commit { .. } => "commit",
        Effect::Ask { .. } => "ask",
        Effect::Destroyed(_) => "destroyed",
    };
    effects.iter().map(word).collect()
}

fn served(machine: &Machine) -> Option<&str> {
    machine.state().done.as_ref().map(Request::as_str)
}

#[test]
fn a_request_is_done_once() {
    let mut facts = Facts::new();
    assert_eq!(facts.go(&Machine::default(), &[], QUIET), Machine::default());
    facts.request = Some("monday");
    let machine = facts.go(&Machine::default(), &[], QUIET);
    let machine = facts.whole_rotation(machine);
    assert_eq!((served(&machine), machine.draining()), (Some("monday"), None));
    assert_eq!(facts.slots.map(|slot| slot.epoch.0), [4, 3]);
    let restarted = Machine::resume(State::decode(&machine.state().encode()).unwrap());
    assert_eq!(facts.step(&restarted, &[], QUIET).effects, []);
    facts.request = Some("tuesday");
    assert_eq!(facts.go(&restarted, &[], QUIET).draining(), Some(ONE));
}

#[test]
fn a_request_during_a_rotation_is_done_after_it_even_if_withdrawn() {
    let mut facts = Facts::new();
    facts.request = Some("monday");
    let machine = facts.go(&Machine::default(), &[], QUIET);
    facts.request = Some("tuesday");
    let step = facts.step(&machine, &[], QUIET);
    assert_eq!(words(&step.effects), ["persist"]);
    facts.request = None;
    let machine = facts.whole_rotation(step.next);
    assert_eq!(served(&machine), Some("monday"));
    let machine = facts.go(&machine, &[], QUIET);
    let machine = facts.whole_rotation(machine);
    assert_eq!((served(&machine), facts.slots.map(|slot| slot.epoch.0)), (Some("tuesday"), [6, 5]));
    assert_eq!(facts.go(&machine, &[], QUIET), machine);
}

#[test]
fn a_schedule_begins_in_the_last_quarter_of_the_period_and_never_after_it() {
    let period = Duration::from_secs(86_400);
    let settings = Settings { period, ..SETTINGS };
    let mut dues = Vec::new();
    for index in 0..400 {
        let mut facts = Facts::new();
        facts.node = name(&format!("node-{index}"));
        // The older key counts.
        facts.slots[0].made = Some(1_500_000);
        let observed = |facts: &Facts| {
            let observed = Observed {
                node: &facts.node,
                slots: facts.slots,
                announced: facts.announced.as_ref(),
                synced: true,
                peers: &[],
                request: None,
                successor: false,
            };
            let due = due(&settings, &observed, Now { uptime: QUIET, unix: 1_500_000 });
            let at = |unix| {
                Machine::default().step(&settings, &observed, Now { uptime: QUIET, unix }).next.draining()
            };
            (due, due.map(|due| [at(due - 1), at(due)]))
        };
        let (due, begins) = observed(&facts);
        assert_eq!(begins, Some([None, Some(ONE)]));
        dues.push(due.unwrap() - 1_000_000);
        facts.slots[1].made = None;
        assert!(observed(&facts).0 > due, "an unknown age begins nothing");
    }
    dues.sort_unstable();
    assert!(dues[0] >= 64_800 && dues[399] <= 86_400, "{} to {}", dues[0], dues[399]);
    // Spread: no hundredth of the quarter has more than twenty of the four hundred.
    assert!(dues.windows(21).all(|window| window[20] - window[0] > 216), "{dues:?}");
}

#[test]
fn a_tunnel_that_waits_for_the_devices_begins_a_rotation_and_one_that_has_them_none() {
    let mut facts = Facts::new();
    facts.successor = true;
    let machine = facts.go(&Machine::default(), &[], QUIET);
    let cause = |machine: &Machine| machine.state().rotation.as_ref().map(|rotation| rotation.cause.clone());
    assert_eq!(cause(&machine), Some(Cause::Tunnel));
    assert_eq!(State::decode(&machine.state().encode()).unwrap(), *machine.state());
    // It has the devices before the second key is replaced.
    facts.successor = false;
    let machine = facts.whole_rotation(machine);
    assert_eq!(cause(&machine), None);
    assert_eq!(facts.go(&machine, &[], QUIET), machine);
}

#[test]
fn without_a_period_age_begins_nothing() {
    let facts = Facts::new();
    assert_eq!(facts.step(&Machine::default(), &[], QUIET).effects, []);
}

#[test]
fn nothing_happens_while_the_api_has_not_accepted_the_drain() {
    let mut facts = Facts::new();
    facts.request = Some("now");
    let machine = facts.go(&Machine::default(), &[], Duration::ZERO);
    let (late, peer) = (DEADLINE * 100, name("a"));
    let machine = facts.go(&machine, &[on(&peer, ZERO)], late);
    assert_eq!(facts.step(&machine, &[on(&peer, ZERO)], late * 2).effects, [], "no deadline runs");
    facts.accept(Some(ONE));
    let machine = facts.go(&machine, &[on(&peer, ZERO)], late * 2);
    assert_eq!(facts.step(&machine, &[on(&peer, ZERO)], late * 2 + QUIET / 2).effects, []);
    let step = facts.step(&machine, &[on(&peer, ZERO)], late * 2 + QUIET);
    assert_eq!(words(&step.effects), ["persist", "stage", "install", "commit"]);
    // Somebody overwrote the annotation: all begins anew.
    facts.accept(None);
    let machine = facts.go(&machine, &[on(&peer, ZERO)], late * 2 + QUIET);
    facts.accept(Some(ONE));
    let machine = facts.go(&machine, &[on(&peer, ZERO)], late * 3);
    assert_eq!(facts.step(&machine, &[on(&peer, ZERO)], late * 3 + QUIET / 2).effects, []);
}

/// A machine that drains a slot, accepted at time zero.
fn draining(facts: &mut Facts, slot: Slot) -> Machine {
    facts.request = Some("now");
    let mut machine = facts.go(&Machine::default(), &[], Duration::ZERO);
    if slot == ZERO {
        facts.accept(Some(ONE));
        facts.replace(ONE);
        machine = facts.go(&machine, &[], Duration::ZERO);
    }
    facts.accept(Some(slot));
    facts.go(&machine, &[], Duration::ZERO)
}

#[test]
fn at_the_deadline_the_key_goes_and_who_was_left_is_named() {
    let mut facts = Facts::new();
    let machine = draining(&mut facts, ZERO);
    let (gone, stays, deaf) = (name("gone"), name("stays"), name("deaf"));
    let stuck = PeerFacts { sending: Some(ZERO), target: ONE, ..on(&stays, ZERO) };
    let silent = PeerFacts { answered: None, ..on(&deaf, ONE) };
    // It answered when it was last asked.
    let left = PeerFacts { answered: Some((ONE, ASK_EVERY - Duration::from_secs(1))), ..on(&gone, ONE) };
    let peers = [left, stuck, silent];
    let step = facts.step(&machine, &peers, DEADLINE - Duration::from_secs(1));
    assert_eq!(step.effects, [Effect::Ask { peers: vec![deaf.clone()] }]);
    let step = facts.step(&machine, &peers, DEADLINE);
    assert_eq!(words(&step.effects), ["persist", "overdue", "stage", "install", "commit"]);
    let Effect::Overdue(overdue) = &step.effects[1] else { panic!("{:?}", step.effects) };
    assert_eq!(
        overdue.to_string(),
        "node m: hawser0: its key is replaced at the deadline though not everybody left it: \
         deaf (it does not answer), stays (no handshake on the other slot); look at mesh-agent there, and whether UDP \
         passes to hawser1; the pair talks again when both agents know both keys"
    );
    // Its report outlives a crash between the two.
    facts.replace(ZERO);
    let step = facts.step(&Machine::resume(step.next.state().clone()), &peers, Duration::ZERO);
    let Effect::Destroyed(record) = &step.effects[0] else { panic!("{:?}", step.effects) };
    assert_eq!(record.verdict.as_ref().map(|verdict| verdict.overdue.len()), Some(2));
    assert_eq!((record.old.epoch, record.new.epoch), (Epoch(1), Epoch(4)));
}

#[test]
fn a_tunnel_that_waits_gets_no_slot_that_is_in_use_and_costs_it_no_key() {
    let mut facts = Facts::new();
    facts.successor = true;
    let machine = facts.go(&Machine::default(), &[], QUIET);
    facts.accept(Some(ONE));
    let machine = facts.go(&machine, &[], Duration::ZERO);
    let stays = name("stays");
    let peers = [PeerFacts { sending: Some(ONE), target: ZERO, ..on(&stays, ONE) }];
    let step = facts.step(&machine, &peers, DEADLINE + QUIET);
    assert_eq!(words(&step.effects), ["persist", "overdue"]);
    let Effect::Overdue(overdue) = &step.effects[1] else { panic!("{:?}", step.effects) };
    assert_eq!(
        overdue.to_string(),
        "node m: hawser1: the mesh-tunnel that waits does not get it, since not everybody left it by the deadline: stays (no \
         handshake on the other slot); look at mesh-agent there, and whether UDP passes to hawser0; keys stay as they are, and \
         it is tried again"
    );
    assert_eq!(*step.next.state(), State::default());
}

/// A peer that drained the other slot when it died, while our routes still led into this one.
fn dead(peer: &NodeName, slot: Slot) -> PeerFacts<'_> {
    PeerFacts {
        drained: Some(slot.other()),
        target: slot,
        answered: None,
        doubted_for: Some(SETTINGS.gone + UNHEARD),
        unheard_for: Some(UNHEARD),
        ..on(peer, slot)
    }
}

#[test]
fn who_is_dead_by_the_apis_word_and_by_our_own_ears_is_not_waited_for() {
    let mut facts = Facts::new();
    let (peer, lives) = (name("dead"), name("lives"));
    let machine = draining(&mut facts, ZERO);
    let all = [dead(&peer, ZERO), on(&lives, ONE)];
    let step = facts.step(&machine, &all, QUIET);
    assert_eq!(words(&step.effects), ["persist", "stage", "install", "commit"]);
    let Some(Rotation { stage: Stage::Draining { verdict: Some(verdict), .. }, .. }) =
        &step.next.state().rotation
    else {
        panic!("{:?}", step.next)
    };
    assert!(!verdict.in_use() && verdict.gone == [peer.clone()].into(), "{verdict:?}");
    assert_eq!(State::decode(&step.next.state().encode()).unwrap(), *step.next.state());
    // It does not make up for anybody else.
    let step = facts.step(&machine, &[dead(&peer, ZERO), on(&lives, ZERO)], QUIET);
    assert_eq!(step.effects, [Effect::Ask { peers: vec![peer.clone()] }]);
    // Nor is it named at a deadline.
    let stuck = PeerFacts { target: ONE, ..on(&lives, ZERO) };
    let step = facts.step(&machine, &[dead(&peer, ZERO), stuck], DEADLINE);
    let Effect::Overdue(overdue) = &step.effects[1] else { panic!("{:?}", step.effects) };
    assert_eq!(overdue.verdict.overdue, [(lives, Laggard::Unconfirmed)].into());
}

#[test]
fn either_word_alone_makes_nobody_gone() {
    let mut facts = Facts::new();
    let peer = name("z");
    let machine = draining(&mut facts, ZERO);
    let (dead, short) = (dead(&peer, ZERO), Duration::from_secs(1));
    let waits = |settings: &Settings, peer: PeerFacts<'_>, asks: bool| {
        let step = facts.step_by(settings, &machine, &[peer], DEADLINE - short);
        let asked: &[Effect] = if asks { &[Effect::Ask { peers: vec![peer.name.clone()] }] } else { &[] };
        assert_eq!(step.effects, asked, "{peer:?}");
    };
    // A kubelet that has stopped, on a node that goes on: it is asked even by the slot that is to be left.
    waits(&SETTINGS, PeerFacts { unheard_for: None, ..dead }, true);
    waits(&SETTINGS, PeerFacts { unheard_for: Some(UNHEARD - short), ..dead }, true);
    waits(&SETTINGS, PeerFacts { unheard_for: None, answered: Some((ZERO, Duration::ZERO)), ..dead }, false);
    // A node that answers nothing, of which the API says that it lives.
    waits(&SETTINGS, PeerFacts { doubted_for: None, ..dead }, false);
    waits(&SETTINGS, PeerFacts { doubted_for: Some(SETTINGS.gone - short), ..dead }, false);
    // It has been silent for long when doubt begins: on the slot without a route nothing was tried yet.
    let long = Some(SETTINGS.gone);
    waits(&SETTINGS, PeerFacts { doubted_for: long, unheard_for: long, ..dead }, true);
    waits(&SETTINGS, PeerFacts { doubted_for: long.map(|gone| gone + UNHEARD - short), ..dead }, true);
    // The administrator believes no Node's word, or nobody is asked.
    waits(&Settings { gone: Duration::ZERO, ..SETTINGS }, dead, false);
    waits(&Settings { proof: Proof::Silence, ..SETTINGS }, dead, false);
}

#[test]
fn a_tunnel_that_waits_gets_the_slots_though_a_peer_is_dead() {
    let mut facts = Facts::new();
    facts.successor = true;
    let peer = name("z");
    // Even one that drained the other slot.
    let machine = facts.go(&Machine::default(), &[dead(&peer, ONE)], QUIET);
    assert_eq!(machine.draining(), Some(ONE));
    facts.accept(Some(ONE));
    let machine = facts.go(&machine, &[dead(&peer, ONE)], Duration::ZERO);
    let step = facts.step(&machine, &[dead(&peer, ONE)], QUIET);
    assert_eq!(words(&step.effects), ["persist", "stage", "install", "commit"]);
}

/// Peers answer at once, whenever they are asked; the steps of this node are so far apart. How long it takes.
fn drained_after(pace: Duration, deaf: Option<usize>) -> Option<Duration> {
    let mut facts = Facts::new();
    let mut machine = draining(&mut facts, ZERO);
    let names = ["a", "b", "c"].map(name);
    let mut answered = [None; 3];
    let mut uptime = Duration::ZERO;
    while uptime < DEADLINE {
        let peers: Vec<_> = names
            .iter()
            .zip(answered)
            .map(|(peer, at)| PeerFacts { answered: at.map(|at| (ONE, uptime - at)), ..on(peer, ONE) })
            .collect();
        let step = facts.step(&machine, &peers, uptime);
        if words(&step.effects).contains(&"stage") {
            return Some(uptime);
        }
        for effect in &step.effects {
            let Effect::Ask { peers } = effect else { continue };
            for (at, _) in
                names.iter().enumerate().filter(|(at, name)| deaf != Some(*at) && peers.contains(name))
            {
                answered[at] = Some(uptime);
            }
        }
        machine = step.next;
        uptime += pace;
    }
    None
}

#[test]
fn a_node_whose_steps_are_slow_is_done_by_answers_to_its_last_question_and_never_by_older_ones() {
    for millis in [500, 2_500, 2_999, 3_001, 5_000, 12_000, 30_000] {
        let pace = Duration::from_millis(millis);
        let took = drained_after(pace, None);
        assert!(took.is_some_and(|took| took <= QUIET + 3 * pace), "{pace:?}: {took:?}");
        assert_eq!(drained_after(pace, Some(1)), None, "{pace:?}");
    }
    assert_eq!(drained_after(Duration::from_secs(31), None), None, "much may have happened since");
}

#[test]
fn a_report_names_few_and_counts_the_rest() {
    let overdue =
        (0..300).map(|peer| (name(&format!("{}{peer}", "n".repeat(80))), Laggard::Silent)).collect();
    let verdict = Verdict { overdue, noisy: true, ..Verdict::default() };
    let text = Overdue { node: name("m"), slot: ZERO, verdict, kept: false }.to_string();
    assert!(text.contains(" and 292 more; ") && text.len() < 1024 + 400, "{} bytes: {text}", text.len());
}

#[test]
fn the_deadline_waits_for_a_greater_names_drain_but_not_for_ever() {
    let mut facts = Facts::new();
    let machine = draining(&mut facts, ONE);
    let peer = name("z");
    let yielding = PeerFacts { target: ONE, drained: Some(ZERO), ..on(&peer, ONE) };
    let machine = facts.go(&machine, &[yielding], DEADLINE * 3);
    assert_eq!(machine.draining(), Some(ONE));
    let stuck = PeerFacts { target: ZERO, ..on(&peer, ONE) };
    assert_eq!(facts.step(&machine, &[stuck], DEADLINE * 4 - Duration::from_secs(1)).effects, []);
    let step = facts.step(&machine, &[stuck], DEADLINE * 4);
    assert_eq!(words(&step.effects), ["persist", "overdue", "stage", "install", "commit"]);
    let step = facts.step(&machine, &[yielding], DEADLINE * 6);
    assert_eq!(words(&step.effects), ["persist", "overdue", "stage", "install", "commit"]);
}

#[test]
fn a_smaller_names_drain_is_waited_for_but_not_for_ever() {
    let mut facts = Facts::new();
    facts.request = Some("now");
    let (smaller, greater) = (name("a"), name("z"));
    let drains = |peer| PeerFacts { drained: Some(ZERO), ..on(peer, ONE) };
    assert_eq!(facts.go(&Machine::default(), &[drains(&greater)], QUIET).draining(), Some(ONE));
    let machine = facts.go(&Machine::default(), &[drains(&smaller)], Duration::ZERO);
    assert_eq!(machine.draining(), None);
    let last = DEADLINE * 2 - Duration::from_secs(1);
    assert_eq!(facts.step(&machine, &[drains(&smaller)], last).effects, []);
    assert_eq!(facts.step(&machine, &[dead(&smaller, ONE)], last).effects, [], "it may go on with it");
    assert_eq!(facts.go(&machine, &[on(&smaller, ZERO)], last).draining(), Some(ONE));
    assert_eq!(facts.go(&machine, &[drains(&smaller)], DEADLINE * 2).draining(), Some(ONE));
}

#[test]
fn a_key_that_was_made_in_the_future_is_replaced_at_once_and_the_next_one_is_not() {
    let settings = Settings { period: Duration::from_secs(604_800), ..SETTINGS };
    let mut facts = Facts::new();
    let begins = |facts: &Facts, unix| {
        let observed = Observed {
            node: &facts.node,
            slots: facts.slots,
            announced: facts.announced.as_ref(),
            synced: true,
            peers: &[],
            request: None,
            successor: false,
        };
        [Duration::ZERO, schedule::SET].map(|uptime| {
            Machine::default().step(&settings, &observed, Now { uptime, unix }).next.draining().is_some()
        })
    };
    let now = 1_500_000;
    for (made, expect) in [
        ([now, now], false),
        ([now, now + 300], false),
        ([now, now + 301], true),
        ([now + 5_000_000; 2], true),
    ] {
        facts.slots[0].made = Some(made[0]);
        facts.slots[1].made = Some(made[1]);
        assert_eq!(begins(&facts, now), [false, expect], "{made:?}");
    }
}

#[test]
fn of_two_clusters_the_smaller_node_is_the_one_that_all_call_so() {
    // The same name, or one that the other begins with: as this cluster calls it, it is the greater.
    for foreign in ["m@east", "a@east", "m-1@east"] {
        let mut facts = Facts::new();
        facts.request = Some("now");
        let foreign = NodeName::read(foreign).unwrap();
        let drains = |smaller| PeerFacts { smaller, drained: Some(ZERO), ..on(&foreign, ONE) };
        assert_eq!(facts.go(&Machine::default(), &[drains(true)], QUIET).draining(), None, "{foreign}");
        assert_eq!(facts.go(&Machine::default(), &[drains(false)], QUIET).draining(), Some(ONE), "{foreign}");
    }
}

#[test]
fn a_peer_that_comes_has_to_move_too_and_one_that_leaves_is_not_waited_for() {
    let mut facts = Facts::new();
    let machine = draining(&mut facts, ZERO);
    let (old, new) = (name("old"), name("new"));
    let comes = PeerFacts { sending: None, answered: None, target: ONE, ..on(&new, ONE) };
    assert_eq!(words(&facts.step(&machine, &[on(&old, ONE), comes], QUIET).effects), [] as [&str; 0]);
    assert_eq!(facts.step(&machine, &[on(&old, ONE)], QUIET).effects.len(), 4);
    let stays = PeerFacts { target: ONE, ..on(&old, ZERO) };
    assert_eq!(facts.step(&machine, &[stays], QUIET).effects, []);
    assert_eq!(facts.step(&machine, &[], QUIET).effects.len(), 4);
}

#[test]
fn a_device_that_runs_the_staged_key_is_followed_in_any_state() {
    let mut facts = Facts::new();
    facts.slots[1].staged = Some(public(ONE, 3));
    facts.slots[1].device = Some(public(ONE, 3));
    let mut machines = vec![Machine::default()];
    let mut other = Facts::new();
    machines.push(draining(&mut other, ONE));
    machines.push(draining(&mut Facts::new(), ZERO));
    for machine in machines {
        let step = facts.step(&machine, &[], QUIET);
        assert_eq!((step.effects, step.next), (vec![Effect::Commit { slot: ONE }], machine));
    }
}

#[test]
fn a_key_that_was_replaced_by_hand_counts_and_is_recorded_without_a_verdict() {
    let mut facts = Facts::new();
    let machine = draining(&mut facts, ONE);
    facts.replace(ONE);
    facts.slots[1].device = Some(public(ONE, 2));
    assert_eq!(facts.step(&machine, &[], QUIET).effects, [], "the device still has the old one");
    facts.slots[1].device = None;
    let step = facts.step(&machine, &[], QUIET);
    let Effect::Destroyed(record) = &step.effects[0] else { panic!("{:?}", step.effects) };
    assert_eq!(
        (record.verdict.clone(), step.next.draining()),
        (None, None),
        "zero waits for the device of one"
    );
}

#[test]
fn the_document_is_small_and_exact() {
    let mut facts = Facts::new();
    let machine = draining(&mut facts, ONE);
    let (stays, text) = (name("stays"), "monday");
    facts.request = Some(text);
    let stuck = PeerFacts { target: ZERO, ..on(&stays, ONE) };
    let state = facts.step(&machine, &[stuck], DEADLINE).next.state().clone();
    let document = state.encode();
    expect_test::expect![[r#"{"v":1,"state":{"rotation":{"cause":{"request":"now"},"slot":"one","stage":{"draining":{"old":{"epoch":2,"fingerprint":"SHA256:9bEug12NZRL0eKpedSLKeFS6Xrk+6XFQmHIzv8S2nzg"},"verdict":{"overdue":{"stays":"unconfirmed"}}}}},"pending":"monday"}}"#]].assert_eq(&document);
    assert_eq!(State::decode(&document).unwrap(), state);
    assert_eq!(State::decode(r#"{"v":1,"state":{}}"#).unwrap(), State::default());
    assert!(matches!(State::decode(r#"{"v":2,"state":{"more":1}}"#), Err(StateError::Format(2))));
    for bad in ["", "{}", r#"{"v":1,"state":{"more":1}}"#, &document.replace("SHA256:", "MD5:")] {
        assert!(matches!(State::decode(bad), Err(StateError::Malformed(_))), "{bad}");
    }
}

#[test]
fn a_fingerprint_is_what_openssl_says() {
    // printf %032d 0 | tr 0 '\0' | openssl dgst -sha256 -binary | base64
    let key = PublicKey::from_bytes([0; 32]);
    assert_eq!(Fingerprint::of(&key).to_string(), "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU");
}

#[test]
fn a_long_request_is_cut_between_characters() {
    let text = "ü".repeat(100);
    assert_eq!(Request::of(Some(&text)).unwrap().as_str().len(), REQUEST_MAX);
    assert_eq!(Request::of(Some("")), None);
}
