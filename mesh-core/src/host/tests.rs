use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::diff::{Endpoints, Mode, Observed, ObservedDevice, Op, diff};
use crate::name::NodeName;
use crate::numbers::{TABLE_NODES, TABLE_PODS};
use crate::pair::Link;
use crate::plan::{Desired, plan};
use crate::psk::SlotPsk;
use crate::slot::Slot;
use crate::view::{AnnouncementFact, ClusterView, PairFacts};

/// Every combination of facts, judged in other words than [`path`] has.
#[test]
fn every_combination_of_facts_has_the_path_that_was_promised() {
    let mut seen = BTreeMap::new();
    for bits in 0..32_u32 {
        let bit = |n: u32| bits >> n & 1 == 1;
        for announced in [None, Some(false), Some(true)] {
            let facts = HostFacts {
                wanted: bit(0),
                announced,
                closed: bit(1),
                able: bit(2),
                confirmed: bit(3),
                dead: bit(4),
            };
            // A confirmed handshake is one that is not dead.
            if facts.confirmed && facts.dead {
                continue;
            }
            let found = path(facts);
            *seen.entry(found).or_insert(0) += 1;
            let both = facts.wanted && announced == Some(true);
            let somebody_says_no = !facts.wanted || announced == Some(false);
            assert!(!somebody_says_no || found == HostPath::Plain, "against somebody's will: {facts:?}");
            assert!(found.closed() || !facts.closed || somebody_says_no, "opened by accident: {facts:?}");
            assert!(!found.routed() || both && facts.able, "not accepted there: {facts:?}");
            assert!(!found.closed() || facts.closed || facts.confirmed, "closed before it worked: {facts:?}");
            assert_eq!(found == HostPath::Tunnel, found.routed() && !facts.dead, "{facts:?}");
            assert_eq!(found == HostPath::Waiting, both && !found.closed(), "{facts:?}");
        }
    }
    assert_eq!(seen.len(), 5, "every path occurs: {seen:?}");
}

/// One of two nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Side {
    wanted: bool,
    /// What the API shows of it; an annotation may be lost or spoilt.
    shown: Option<bool>,
    /// What the other side's agent has read of that.
    read: Option<bool>,
    /// The kernel: whether a route leads into the slot, and whether what is beneath refuses.
    routed: bool,
    closed: bool,
    /// It takes host traffic out of the slot: allowed IPs are there before anybody sends (`psk_model` holds that).
    accepts: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    sides: [Side; 2],
    session: bool,
}

impl World {
    /// One turn of a side's agent, as the real function chooses.
    fn turn(&mut self, me: usize) {
        let (own, other) = (self.sides[me], self.sides[1 - me]);
        let before = own;
        let found = path(HostFacts {
            wanted: own.wanted,
            announced: other.read,
            closed: own.closed || own.routed,
            able: other.accepts,
            confirmed: self.session,
            dead: !self.session,
        });
        let side = &mut self.sides[me];
        (side.routed, side.closed) = (found.routed(), found.closed());
        let agree = own.wanted && other.read == Some(true);
        assert!(!side.routed || other.accepts, "sent into a slot that does not accept: {self:?}");
        assert!(before.routed || !self.sides[me].routed || self.session || before.closed, "lost: {self:?}");
        let opened = (before.closed || before.routed) && !self.sides[me].closed;
        assert!(!opened || !own.wanted || other.read == Some(false), "opened: {self:?}");
        assert!(
            !agree || !self.session || !other.accepts || self.sides[me].routed,
            "left in clear: {self:?}"
        );
    }

    fn next(self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut next = self;
            change(&mut next);
            all.push(next);
        };
        add(&|w| w.session = !w.session);
        for me in 0..2 {
            add(&|w| w.turn(me));
            add(&|w| w.sides[me].wanted = !w.sides[me].wanted);
            add(&|w| w.sides[me].shown = Some(w.sides[me].wanted));
            add(&|w| w.sides[me].shown = None);
            add(&|w| w.sides[me].read = w.sides[me].shown);
            // Who stops accepting has a new key: the other side learns of it before it sends (`psk_model`), and turns.
            add(&|w| {
                w.sides[me].accepts = !w.sides[me].accepts;
                if !w.sides[me].accepts {
                    w.turn(1 - me);
                }
            });
        }
        all
    }
}

#[test]
fn whatever_two_nodes_want_and_in_which_order_they_learn_of_it_no_packet_goes_where_nobody_takes_it() {
    let mut seen = BTreeSet::from([World::default()]);
    let mut queue: VecDeque<World> = seen.iter().copied().collect();
    while let Some(world) = queue.pop_front() {
        for next in world.next() {
            if seen.insert(next) {
                queue.push_back(next);
            }
        }
    }
    assert!(seen.len() > 10_000, "{} states", seen.len());
    let settled = |world: &World| world.sides.iter().all(|side| side.wanted && side.routed);
    assert!(seen.iter().any(settled), "they get there");
}

/// A packet of this node.
#[derive(Clone, Copy, Debug)]
struct Packet {
    source: IpAddr,
    to: IpAddr,
    mark: u32,
    ports: Option<[u16; 2]>,
    origin: Origin,
}

/// Where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Itself,
    Outside,
    Tunnel(Slot),
}

/// Where a packet goes by these rules and routes, as the kernel does it; none: by the main table.
fn way<'a>(rules: &BTreeSet<Rule>, routes: &'a BTreeSet<Route>, packet: &Packet) -> Option<&'a Target> {
    let inside = |net: Option<IpNet>, address: IpAddr| net.is_none_or(|net| net.contains(&address));
    let matches = |rule: &Rule| {
        let port = match (rule.tcp, packet.ports) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(Port::Source(port)), Some([source, _])) => port == source,
            (Some(Port::Destination(port)), Some([_, to])) => port == to,
        };
        let family = Family::of(packet.to);
        let mark = rule.unmarked.is_none_or(|mask| packet.mark & mask == 0);
        rule.family == family
            && inside(rule.from, packet.source)
            && inside(rule.to, packet.to)
            && mark
            && rule.icmp.is_none()
            && (!rule.local || packet.origin == Origin::Itself)
            && rule.slot.is_none_or(|slot| packet.origin == Origin::Tunnel(slot))
            && port
    };
    let mut from = 0;
    for rule in rules {
        if rule.priority < from || !matches(rule) {
            continue;
        }
        match rule.action {
            Action::Nothing => {}
            // Without its target a rule does nothing.
            Action::Goto(priority) => {
                if rules.iter().any(|end| end.priority == priority && end.family == rule.family) {
                    from = priority;
                }
            }
            Action::Table(table) => {
                let here =
                    routes.iter().filter(|route| route.table == table && route.prefix.contains(&packet.to));
                let best = here.min_by_key(|route| (u8::MAX - route.prefix.prefix_len(), route.metric()));
                if let Some(best) = best {
                    return Some(&best.target);
                }
            }
        }
    }
    None
}

fn into_slot(target: Option<&Target>) -> bool {
    matches!(target, Some(Target::Device { device, .. }) if device.starts_with("hawser"))
}

/// How a pair of this node with another one is.
#[derive(Clone, Copy, Debug)]
struct Peer {
    announced: Option<bool>,
    confirmed: bool,
    withheld: bool,
}

fn peer() -> impl Strategy<Value = Peer> {
    let announced = prop::sample::select(vec![None, Some(false), Some(true), Some(true)]);
    (announced, any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(announced, confirmed, withheld)| Peer {
        announced,
        confirmed,
        withheld,
    })
}

/// Node `a` with peers `b` and `c`.
fn view(on: bool, marked: bool, peers: [Peer; 2]) -> ClusterView {
    let lines = [
        "a 10.1.1.0/24,fd01:0:0:1::/64 192.0.2.1,2001:db8::1",
        "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2,2001:db8::2",
        "c 10.1.3.0/24,fd01:0:0:3::/64 192.0.2.3,2001:db8::3",
    ];
    let mut view = crate::plan::tests::world(&lines);
    view.settings.host_traffic = HostTraffic { on, require: false, exempt_tcp: EXEMPT_TCP.into() };
    view.local.host =
        HostState { marked, others: ["2001:db8::77".parse().unwrap()].into(), ..Default::default() };
    for (name, peer) in ["b", "c"].into_iter().zip(peers) {
        let name: NodeName = name.parse().unwrap();
        let fact = &mut view.nodes.get_mut(&name).unwrap().announcement;
        match (peer.announced, &mut *fact) {
            (Some(on), AnnouncementFact::Valid(announcement)) => announcement.host_traffic = on,
            _ => *fact = AnnouncementFact::Missing,
        }
        let link = Link {
            keys_for: Some(Duration::from_secs(100)),
            handshake_age: peer.confirmed.then_some(Duration::from_secs(1)),
            unanswered_for: None,
            ready: true,
        };
        let psk = [SlotPsk { withheld: peer.withheld, confined: peer.withheld, ..SlotPsk::default() }; 2];
        view.pairs.insert(name, PairFacts { links: [link; 2], psk, ..PairFacts::default() });
    }
    view
}

/// Takes over what the kernel shows.
fn look(view: &mut ClusterView, observed: &Observed) {
    let hosts = observed.routes.iter().filter(|route| route.table == TABLE_HOSTS);
    view.local.host.closed = hosts.map(|route| route.prefix.addr()).collect();
}

fn step(observed: &mut Observed, op: &Op) {
    match op {
        Op::PutRoute(route) => {
            let key = |route: &Route| (route.table, route.prefix, route.metric());
            observed.routes.retain(|old| key(old) != key(route));
            observed.routes.insert(route.clone());
        }
        Op::RemoveRoute(route) => {
            observed.routes.remove(route);
        }
        Op::PutRule(rule) => {
            observed.rules.insert(rule.clone());
        }
        Op::RemoveRule(rule) => {
            observed.rules.remove(rule);
        }
        Op::PutMesh(_)
        | Op::RemoveMesh(_)
        | Op::Configure { .. }
        | Op::RaiseLink { .. }
        | Op::PutPeer { .. }
        | Op::RemovePeer { .. } => {}
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What this node sends to a peer's addresses, from its own and from an unbound socket.
fn packets() -> Vec<Packet> {
    let pairs = [
        ("192.0.2.1", "192.0.2.2"),
        ("0.0.0.0", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::2"),
        ("::", "2001:db8::2"),
        ("192.0.2.1", "192.0.2.3"),
        ("2001:db8::1", "2001:db8::3"),
    ];
    let packet = |(source, to)| Packet {
        source: ip(source),
        to: ip(to),
        mark: 0,
        ports: Some([40_000, 80]),
        origin: Origin::Itself,
    };
    pairs.into_iter().map(packet).collect()
}

fn desired_for(desired: &Desired, to: IpAddr) -> &HostPath {
    let name = if [ip("192.0.2.2"), ip("2001:db8::2")].contains(&to) { "b" } else { "c" };
    &desired.host_paths[&name.parse().unwrap()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Through changes of configuration, announcements and sessions, and after every single step of each turn.
    #[test]
    fn no_step_of_any_turn_opens_what_is_closed_refuses_what_is_open_or_takes_wireguard_into_itself(
        turns in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.8), [peer(), peer()]), 1..6),
    ) {
        let links = ["hawser0", "hawser1", "eth0"].map(str::to_owned).into();
        let devices = Slot::ALL.into_iter().map(|slot| (slot, ObservedDevice::default())).collect();
        let mut observed = Observed { links, devices, ..Observed::default() };
        let mut remembered = Remembered::default();
        for (on, marked, peers) in turns {
            let mut view = view(on, marked, peers);
            look(&mut view, &observed);
            view.local.host.remembered = remembered.clone();
            let (desired, _) = plan(&view);
            keep(&mut view, &desired);
            let before = observed.clone();
            for op in diff(&desired, &observed, &Endpoints::new(), Mode::Full) {
                step(&mut observed, &op);
                for packet in packets() {
                    let now = way(&observed.rules, &observed.routes, &packet);
                    let then = way(&before.rules, &before.routes, &packet);
                    let path = *desired_for(&desired, packet.to);
                    if then.is_some() && path.closed() {
                        prop_assert!(now.is_some(), "{op:?} opened {packet:?}");
                    }
                    if then != Some(&Target::Unreachable) && path != HostPath::Cut {
                        prop_assert!(now != Some(&Target::Unreachable), "{op:?} refused {packet:?}");
                    }
                    for mark in [MARK_WIREGUARD, u32::MAX] {
                        let wireguard = Packet { mark, ports: None, ..packet };
                        prop_assert!(way(&observed.rules, &observed.routes, &wireguard).is_none(), "{op:?}: {wireguard:?}");
                    }
                }
            }
            for packet in packets() {
                let path = *desired_for(&desired, packet.to);
                let found = way(&observed.rules, &observed.routes, &packet);
                // A way to whom nobody talks, so that the kernel goes on to hear them.
                let led = path.routed() || (path == HostPath::Cut && marked);
                prop_assert_eq!(into_slot(found), led, "{:?} {:?}", packet, path);
                prop_assert_eq!(found.is_none(), !path.closed(), "{:?} {:?}", packet, path);
                for port in EXEMPT_TCP {
                    for ports in [[port, 40_000], [40_000, port]] {
                        let exempt = Packet { ports: Some(ports), ..packet };
                        prop_assert!(way(&observed.rules, &observed.routes, &exempt).is_none(), "{exempt:?}");
                    }
                }
            }
            // What it passes on goes the same way if it has come by that, and else none of ours.
            for packet in packets() {
                let led = into_slot(way(&observed.rules, &observed.routes, &packet));
                let outside = Packet { source: ip(if packet.to.is_ipv4() { "198.51.100.9" } else { "2001:db8:9::9" }), ..packet };
                let outside = Packet { origin: Origin::Outside, ..outside };
                prop_assert!(way(&observed.rules, &observed.routes, &outside).is_none(), "{outside:?}");
                for slot in Slot::ALL {
                    let out = Packet { origin: Origin::Tunnel(slot), ..outside };
                    prop_assert_eq!(into_slot(way(&observed.rules, &observed.routes, &out)), led, "{:?}", out);
                }
            }
            // Who is not an InternalIP is left alone; what goes to pods is not exempt by a port.
            let other = |source: &str, to: &str| Packet { source: ip(source), to: ip(to), mark: 0, ports: None, origin: Origin::Itself };
            for packet in [other("192.0.2.77", "192.0.2.2"), other("2001:db8::77", "2001:db8::2")] {
                prop_assert!(way(&observed.rules, &observed.routes, &packet).is_none());
            }
            let to_pod = Packet { ports: Some([40_000, 6443]), ..other("192.0.2.1", "10.1.2.9") };
            prop_assert!(way(&observed.rules, &observed.routes, &to_pod).is_some());
            look(&mut view, &observed);
            let (settled, _) = plan(&view);
            prop_assert!(diff(&settled, &observed, &Endpoints::new(), Mode::Full).iter().all(|op| {
                !matches!(op, Op::PutRoute(_) | Op::RemoveRoute(_) | Op::PutRule(_) | Op::RemoveRule(_))
            }), "a second turn changes nothing");
            keep(&mut view, &settled);
            remembered = view.local.host.remembered.clone();
            let refused: BTreeSet<IpAddr> = settled.closed_hosts.clone();
            let closed = packets().into_iter().filter(|packet| desired_for(&settled, packet.to).closed());
            prop_assert_eq!(refused, closed.map(|packet| packet.to).collect());
        }
    }
}

/// What is kept of this plan, an hour before anything is forgotten.
fn keep(view: &mut ClusterView, desired: &Desired) {
    let present = view.nodes.keys().cloned().collect();
    let facts = Closings { closed: &desired.closed_by_node, present: &present, synced: view.synced, now: 0 };
    view.local.host.remembered.update(facts);
}

const SPEAKS: Peer = Peer { announced: Some(true), confirmed: true, withheld: false };

/// A node whose pairs with `b` and `c` have been in the tunnel.
fn closed_view() -> (ClusterView, Observed) {
    let mut view = view(true, true, [SPEAKS; 2]);
    let links = ["hawser0", "hawser1", "eth0"].map(str::to_owned).into();
    let mut observed = Observed { links, ..Observed::default() };
    for _ in 0..2 {
        look(&mut view, &observed);
        let (desired, _) = plan(&view);
        keep(&mut view, &desired);
        for op in diff(&desired, &observed, &Endpoints::new(), Mode::Full) {
            step(&mut observed, &op);
        }
    }
    look(&mut view, &observed);
    (view, observed)
}

/// Takes something away.
type Loss = fn(&mut ClusterView);

fn own(view: &mut ClusterView) -> &mut crate::view::NodeFacts {
    let own = view.local.name.clone();
    view.nodes.get_mut(&own).unwrap()
}

fn other(view: &mut ClusterView) -> &mut crate::view::NodeFacts {
    view.nodes.get_mut(&"b".parse().unwrap()).unwrap()
}

/// What may be lost or spoilt without anybody having said that traffic is to be in plaintext again.
const LOSSES: [(&str, Loss); 9] = [
    ("nothing", |_| {}),
    ("the announcement", |view| other(view).announcement = AnnouncementFact::Missing),
    ("the peer's addresses", |view| other(view).internal_ips.clear()),
    ("the peer's Node", |view| drop(view.nodes.remove(&"b".parse().unwrap()))),
    ("this node's addresses", |view| own(view).internal_ips.clear()),
    ("this node's own Node", |view| {
        let own = view.local.name.clone();
        view.nodes.remove(&own);
    }),
    ("all Nodes", |view| {
        view.nodes.clear();
        view.synced = false;
    }),
    ("the tunnel", |view| {
        for facts in view.pairs.values_mut() {
            facts.links = [Link::default(); 2];
        }
    }),
    ("the peer's address, which an older Node claims that wants no such thing", |view| {
        let address = other(view).internal_ips.clone();
        let like = view.nodes[&"c".parse().unwrap()].clone();
        let mut thief = crate::view::NodeFacts {
            created: i64::MIN,
            internal_ips: address,
            pod_cidrs: Vec::new(),
            ..like
        };
        let AnnouncementFact::Valid(announcement) = &mut thief.announcement else {
            panic!("an announcement")
        };
        announcement.host_traffic = false;
        for slot in &mut announcement.slots {
            slot.public_key = crate::key::PublicKey::from_bytes([slot.public_key.as_bytes()[0] ^ 0x55; 32]);
        }
        view.nodes.insert("d".parse().unwrap(), thief);
    }),
];

#[test]
fn whatever_is_lost_after_a_boot_or_not_what_was_closed_stays_closed_in_routes_and_firewall_at_once() {
    for (first, lose) in LOSSES {
        for (second, lose_more) in LOSSES {
            for flushed in [false, true] {
                let (mut view, mut observed) = closed_view();
                lose(&mut view);
                if view.nodes.contains_key(&"b".parse().unwrap()) && view.nodes.contains_key(&view.local.name)
                {
                    lose_more(&mut view);
                }
                // Who has the address of a Node that is gone speaks for itself.
                if first.contains("older Node") && second == "the peer's Node" {
                    continue;
                }
                if flushed {
                    observed.routes.clear();
                    observed.rules.clear();
                }
                let what = format!("{first}, {second}, {flushed}");
                look(&mut view, &observed);
                // Others do not see this node's addresses meanwhile; it knows them.
                view.local.host.others.clear();
                let (desired, problems) = plan(&view);
                let mode = if view.synced { Mode::Full } else { Mode::AddOnly };
                for op in diff(&desired, &observed, &Endpoints::new(), mode) {
                    step(&mut observed, &op);
                    for packet in packets().into_iter().filter(|_| !flushed) {
                        assert!(way(&observed.rules, &observed.routes, &packet).is_some(), "{what}: {op:?}");
                    }
                }
                for packet in packets() {
                    let found = way(&observed.rules, &observed.routes, &packet);
                    assert!(found.is_some(), "{what}: {packet:?}");
                    assert!(desired.closed_hosts.contains(&packet.to), "{what}: {packet:?}");
                }
                for address in ["192.0.2.1", "2001:db8::1"] {
                    assert!(desired.host_sources.contains(&ip(address)), "{what}: {address}");
                }
                let before = view.local.host.remembered.clone();
                keep(&mut view, &desired);
                let all = |remembered: &Remembered| {
                    remembered.all().map(|(node, address)| (node.clone(), address)).collect::<BTreeSet<_>>()
                };
                assert_eq!(all(&before), all(&view.local.host.remembered), "{what}");
                let two_ways = |route: &Route| {
                    let same = |other: &&Route| {
                        (other.table, other.prefix, other.metric())
                            == (route.table, route.prefix, route.metric())
                    };
                    desired.routes.iter().filter(same).count() > 1
                };
                assert!(!desired.routes.iter().any(two_ways), "{what}: {:?}", desired.routes);
                let held = problems.iter().any(|problem| problem.code() == "HostAddressHeld");
                let away = !view.nodes.contains_key(&"b".parse().unwrap())
                    || other(&mut view).internal_ips.is_empty()
                    || view.nodes.contains_key(&"d".parse().unwrap());
                assert_eq!(held, away && view.synced, "{what}: {problems:?}");
            }
        }
    }
}

#[test]
fn what_is_remembered_is_open_by_somebodys_word_and_a_node_has_its_new_addresses_closed_with_the_old_ones() {
    let (view, _) = closed_view();
    let b: NodeName = "b".parse().unwrap();
    let is_open = |view: &ClusterView| {
        let (desired, _) = plan(view);
        let routed = desired
            .routes
            .iter()
            .any(|route| route.table == TABLE_HOSTS && route.prefix.addr() == ip("192.0.2.2"));
        assert_eq!(routed, desired.closed_hosts.contains(&ip("192.0.2.2")));
        !routed
    };
    assert!(!is_open(&view));
    let mut off = view.clone();
    off.settings.host_traffic.on = false;
    assert!(is_open(&off));
    let (desired, _) = plan(&off);
    keep(&mut off, &desired);
    assert_eq!(off.local.host.remembered, Remembered::default());
    let mut theirs = view.clone();
    let AnnouncementFact::Valid(announcement) = &mut other(&mut theirs).announcement else { panic!("valid") };
    announcement.host_traffic = false;
    assert!(is_open(&theirs));
    let (desired, _) = plan(&theirs);
    keep(&mut theirs, &desired);
    assert!(!theirs.local.host.remembered.knows(&b));

    let mut moved = view.clone();
    other(&mut moved).internal_ips = vec![ip("192.0.2.9")];
    let (desired, problems) = plan(&moved);
    for address in ["192.0.2.2", "192.0.2.9", "2001:db8::2"] {
        assert!(desired.closed_hosts.contains(&ip(address)), "{address}: {desired:?}");
    }
    let into = |address: &str| {
        let to = |route: &&Route| route.table == TABLE_HOSTS && route.prefix.addr() == ip(address);
        desired.routes.iter().filter(to).min_by_key(|route| route.metric()).map(|route| route.target.clone())
    };
    assert!(into_slot(into("192.0.2.9").as_ref()));
    let held = problems.iter().filter(|problem| problem.code() == "HostAddressHeld").count();
    assert_eq!(held, 2, "{problems:?}");
    // Another one has the address that it gave up, and says nothing of it: it is that one's.
    let mut next = moved.clone();
    let taker = crate::view::NodeFacts { internal_ips: vec![ip("192.0.2.2")], ..other(&mut next).clone() };
    next.nodes.insert("d".parse().unwrap(), taker);
    next.local.host.closed.clear();
    other(&mut next).announcement = AnnouncementFact::Missing;
    assert!(is_open(&next));
}

#[test]
fn rules_are_there_before_the_first_list_of_nodes_and_the_api_server_is_reached_meanwhile() {
    let (mut view, _) = closed_view();
    view.synced = false;
    view.nodes.clear();
    let rules = plan(&view).0.rules;
    assert!(rules.iter().any(|rule| rule.priority == RULE_HOSTS));
    assert!(rules.iter().any(|rule| rule.priority == RULE_EXEMPT));
    // A node that remembers nothing waits for nobody.
    view.local.host = HostState { marked: true, ..HostState::default() };
    let (desired, _) = plan(&view);
    assert!(!desired.rules.iter().any(|rule| rule.priority == RULE_HOSTS));
    assert_eq!(desired.closed_hosts, BTreeSet::new());
}

#[test]
fn what_pods_send_to_nodes_does_not_depend_on_host_traffic() {
    let peer = Peer { announced: Some(true), confirmed: true, withheld: false };
    let of_pods = |on: bool| {
        let (desired, _) = plan(&view(on, true, [peer; 2]));
        let routes =
            desired.routes.into_iter().filter(|route| [TABLE_PODS, TABLE_NODES].contains(&route.table));
        let rules = desired.rules.into_iter().filter(|rule| rule.priority < RULE_EXEMPT);
        (routes.collect::<Vec<_>>(), rules.collect::<Vec<_>>())
    };
    assert_eq!(of_pods(false), of_pods(true));
}
