use super::*;
use crate::numbers::TABLE_PODS;
use crate::plan::TABLE_MAIN;
use crate::plan::tests::{world, world_strategy};
use crate::psk::SlotPsk;
use proptest::prelude::*;

/// The kernel and the devices, as far as the operations need them: what an operation does to what is observed.
fn apply(observed: &mut Observed, ops: &[Op], desired: &Desired) {
    for op in ops {
        match op {
            Op::PutRoute(route) => {
                let key = |r: &Route| (r.table, r.prefix, r.metric());
                observed.routes.retain(|r| key(r) != key(route));
                observed.routes.insert(route.clone());
            }
            Op::RemoveRoute(route) => assert!(observed.routes.remove(route), "{route:?} was not there"),
            Op::PutRule(rule) => assert!(observed.rules.insert(rule.clone())),
            Op::RemoveRule(rule) => assert!(observed.rules.remove(rule)),
            Op::PutMesh(address) => assert!(observed.mesh.insert(*address)),
            Op::RemoveMesh(address) => assert!(observed.mesh.remove(address)),
            Op::Configure { slot, port } => {
                let device = observed.devices.get_mut(slot).unwrap();
                device.port = *port;
                device.public_key = Some(desired.devices[slot].public_key);
            }
            Op::RaiseLink { slot, mtu } => {
                let device = observed.devices.get_mut(slot).unwrap();
                (device.mtu, device.up) = (*mtu, true);
            }
            Op::PutPeer { slot, key, peer, anew } => {
                let device = observed.devices.get_mut(slot).unwrap();
                let old = device.peers.get(key).map(|have| have.psk);
                assert_eq!(*anew, old.is_some_and(|old| old != peer.psk), "{op:?}");
                for (other, have) in &mut device.peers {
                    if other != key {
                        have.allowed.retain(|net| !peer.allowed.contains(net));
                    }
                }
                let have = device.peers.entry(*key).or_default();
                have.allowed = peer.allowed.clone();
                have.keepalive = peer.keepalive;
                have.psk = peer.psk;
                have.endpoint = peer.endpoint.or(have.endpoint);
            }
            Op::RemovePeer { slot, key } => {
                assert!(observed.devices.get_mut(slot).unwrap().peers.remove(key).is_some());
            }
        }
    }
}

fn empty() -> Observed {
    let devices = Slot::ALL.into_iter().map(|slot| (slot, ObservedDevice::default())).collect();
    let links = ["hawser0", "hawser1", "hw0123456789abc", "eth0"].map(str::to_owned).into();
    Observed { devices, links, ..Observed::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn from_any_state_one_round_reaches_the_plan_and_a_second_does_nothing(
        before in world_strategy(), after in world_strategy(),
    ) {
        let mut observed = empty();
        for view in [before, after] {
            let (desired, _) = crate::plan::plan(&view);
            let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
            apply(&mut observed, &ops, &desired);
            let left = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
            prop_assert_eq!(left, vec![]);
            for (slot, device) in &desired.devices {
                for (key, peer) in &device.peers {
                    prop_assert_eq!(&observed.devices[slot].peers[key].allowed, &peer.allowed);
                }
            }
        }
    }

    #[test]
    fn before_the_first_snapshot_nothing_is_taken_away(before in world_strategy(), after in world_strategy()) {
        let mut observed = empty();
        let (desired, _) = crate::plan::plan(&before);
        let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
        apply(&mut observed, &ops, &desired);
        let had = observed.clone();
        let (desired, _) = crate::plan::plan(&after);
        let ops = diff(&desired, &observed, &Endpoints::new(), Mode::AddOnly);
        let removal = |op: &&Op| matches!(op,
            Op::RemoveRoute(_) | Op::RemoveRule(_) | Op::RemoveMesh(_) | Op::RemovePeer { .. });
        prop_assert!(!ops.iter().any(|op| removal(&op)));
        apply(&mut observed, &ops, &desired);
        prop_assert!(had.rules.is_subset(&observed.rules) && had.mesh.is_subset(&observed.mesh));
    }

    /// After every single step, a packet to a pod prefix goes into a slot, to a pod's veth, or nowhere.
    #[test]
    fn no_prefix_of_an_operations_list_opens_the_uplink(before in world_strategy(), after in world_strategy()) {
        let mut observed = empty();
        for view in [before, after] {
            let (desired, _) = crate::plan::plan(&view);
            let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
            let mut closed = false;
            for op in ops {
                apply(&mut observed, std::slice::from_ref(&op), &desired);
                let guarded = view.settings.pod_cidrs.iter().all(|cidr| observed.routes.contains(
                    &Route { table: TABLE_MAIN, prefix: *cidr, target: Target::Unreachable }));
                prop_assert!(guarded || !closed, "{:?} opened it", op);
                closed |= guarded;
                if matches!(op, Op::PutPeer { .. }) { prop_assert!(guarded); }
            }
        }
    }
}

/// How far the pre-shared key of a slot is: nothing but agents, pods' packets are taken, they are sent too.
fn stages() -> impl Strategy<Value = [SlotPsk; 2]> {
    let stage = |stage: u8| SlotPsk { confined: stage == 0, withheld: stage < 2, ..SlotPsk::default() };
    (0_u8..3, 0_u8..3).prop_map(move |(zero, one)| [stage(zero), stage(one)])
}

/// A world of three nodes, and how this one talks with the other two: by which slot, and how far both are.
fn talking(pairs: &[(bool, [SlotPsk; 2]); 2]) -> crate::view::ClusterView {
    let mut view = world(&[
        "a 10.1.1.0/24,fd01:0:0:1::/64 192.0.2.1,2001:db8::1",
        "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2,2001:db8::2",
        "c 10.1.3.0/24,fd01:0:0:3::/64 192.0.2.3,2001:db8::3",
    ]);
    view.settings.host_traffic.on = true;
    view.local.host.marked = true;
    for (name, (one, psk)) in ["b", "c"].into_iter().zip(*pairs) {
        let name: crate::name::NodeName = name.parse().unwrap();
        let crate::view::AnnouncementFact::Valid(theirs) =
            &mut view.nodes.get_mut(&name).unwrap().announcement
        else {
            panic!("an announcement")
        };
        theirs.host_traffic = true;
        let link = crate::pair::Link {
            keys_for: Some(Duration::from_secs(100)),
            handshake_age: Some(Duration::from_secs(1)),
            unanswered_for: None,
            ready: true,
        };
        let instead = Some(if one { Slot::One } else { Slot::Zero });
        let facts = crate::view::PairFacts { links: [link; 2], psk, instead, ..Default::default() };
        view.pairs.insert(name, facts);
    }
    view
}

/// Routes into slots whose device has no peer for what is led there.
fn lost(observed: &Observed) -> BTreeSet<(u32, IpNet)> {
    let takes = |device: &str, prefix: &IpNet| {
        let slot = Slot::ALL.into_iter().find(|slot| slot.device() == device)?;
        let mut peers = observed.devices[&slot].peers.values();
        Some(peers.any(|peer| peer.allowed.iter().any(|net| net.contains(prefix))))
    };
    let mut lost = BTreeSet::new();
    for route in &observed.routes {
        let Target::Device { device, .. } = &route.target else { continue };
        if takes(device, &route.prefix) == Some(false) {
            lost.insert((route.table, route.prefix));
        }
    }
    lost
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn after_every_step_a_slot_has_a_peer_for_whatever_is_led_there_and_still_will_be(
        turns in prop::collection::vec([(any::<bool>(), stages()), (any::<bool>(), stages())], 1..6),
    ) {
        let mut observed = empty();
        for pairs in turns {
            let (desired, _) = crate::plan::plan(&talking(&pairs));
            let led: BTreeSet<_> = desired.routes.iter()
                .filter(|route| route.target != Target::Unreachable)
                .map(|route| (route.table, route.prefix))
                .collect();
            // Into a slot that refuses it, on purpose: host traffic of a pair that is cut.
            let mut meant = observed.clone();
            let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
            apply(&mut meant, &ops, &desired);
            let refused = &lost(&meant) | &lost(&observed);
            for op in ops {
                apply(&mut observed, std::slice::from_ref(&op), &desired);
                let now = &(&lost(&observed) & &led) - &refused;
                prop_assert!(now.is_empty(), "{op:?} loses {now:?}");
            }
        }
    }
}

/// Routes that share places and devices.
fn routes() -> impl Strategy<Value = BTreeSet<Route>> {
    let route = (any::<bool>(), 0_u8..3, 0_usize..4).prop_map(|(pods, number, target)| {
        let devices = ["hawser0", "hawser1", "hw0123456789abc"];
        let into = |device: &&str| Target::Device { device: (*device).to_owned(), source: None };
        Route {
            table: if pods { TABLE_PODS } else { TABLE_HOSTS },
            prefix: format!("10.1.{number}.0/24").parse().unwrap(),
            target: devices.get(target).map_or(Target::Unreachable, into),
        }
    });
    prop::collection::btree_set(route, 0..12)
}

/// What [`removals`] takes of routes, in its order, by comparing each with all.
fn removed_one_by_one(desired: &Desired, observed: &Observed) -> Vec<Route> {
    let same_place =
        |a: &Route, b: &Route| a.table == b.table && a.prefix == b.prefix && a.metric() == b.metric();
    let possible = |route: &Route| match &route.target {
        Target::Device { device, .. } => observed.links.contains(device),
        Target::Unreachable => true,
    };
    let mut removed = [Vec::new(), Vec::new(), Vec::new()];
    for old in observed.routes.iter().filter(|old| !desired.routes.contains(*old)) {
        let instead: Vec<&Route> = desired.routes.iter().filter(|new| same_place(new, old)).collect();
        let place = if instead.is_empty() {
            usize::from(old.table == TABLE_HOSTS && old.target != Target::Unreachable)
        } else {
            2
        };
        if !instead.into_iter().any(possible) {
            removed[place].push(old.clone());
        }
    }
    removed.concat()
}

proptest! {
    #[test]
    fn routes_go_as_by_comparing_each_with_all(
        wanted in routes(), present in routes(), is_missing in any::<bool>(),
    ) {
        let (mut desired, _) = crate::plan::plan(&world(&["a 10.1.1.0/24 192.0.2.1"]));
        desired.routes = wanted;
        let mut observed = Observed { routes: present, ..empty() };
        if is_missing {
            observed.links.remove("hawser1");
        }
        let mut ops = Vec::new();
        removals(&desired, &observed, &mut ops);
        let route = |op: Op| if let Op::RemoveRoute(route) = op { Some(route) } else { None };
        let removed: Vec<Route> = ops.into_iter().filter_map(route).collect();
        prop_assert_eq!(removed, removed_one_by_one(&desired, &observed));
    }
}

fn peer(endpoint: &str) -> DesiredPeer {
    DesiredPeer {
        node: "n2".parse().unwrap(),
        endpoint: Some(endpoint.parse().unwrap()),
        allowed: BTreeSet::new(),
        keepalive: None,
        psk: None,
    }
}

#[test]
fn another_pre_shared_key_makes_the_entry_anew_and_the_same_one_changes_nothing() {
    let mut view = world(&["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2"]);
    let mut observed = empty();
    let mut renewed = |ids: [Option<u8>; 2]| -> Vec<Slot> {
        let psk = ids.map(|id| SlotPsk { id: id.map(|id| PskId([id; 16])), ..SlotPsk::default() });
        view.pairs.insert("b".parse().unwrap(), crate::view::PairFacts { psk, ..Default::default() });
        let (desired, _) = crate::plan::plan(&view);
        let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
        apply(&mut observed, &ops, &desired);
        assert_eq!(diff(&desired, &observed, &Endpoints::new(), Mode::Full), []);
        let anew = |op: &Op| if let Op::PutPeer { slot, anew: true, .. } = op { Some(*slot) } else { None };
        ops.iter().filter_map(anew).collect()
    };
    assert_eq!(renewed([None, Some(1)]), [], "there was no entry");
    assert_eq!(renewed([Some(2), Some(1)]), [Slot::Zero]);
    assert_eq!(renewed([Some(2), Some(3)]), [Slot::One]);
    assert_eq!(renewed([None, Some(3)]), [Slot::Zero], "without one");
    assert_eq!(renewed([None, Some(3)]), []);
}

#[test]
fn a_roamed_endpoint_is_left_alone_while_its_session_lives() {
    let check = |announced: &str, before: Option<&str>, present: Option<&str>, age: Option<u64>| {
        let have = ObservedPeer {
            endpoint: present.map(|p| p.parse().unwrap()),
            handshake_age: age.map(Duration::from_secs),
            ..ObservedPeer::default()
        };
        let before: Option<SocketAddr> = before.map(|b| b.parse().unwrap());
        endpoint_to_set(&peer(announced), &have, before.as_ref()).is_some()
    };
    let (a, b) = ("192.0.2.1:51880", "192.0.2.9:4000");
    assert!(check(a, None, None, None), "none yet");
    assert!(!check(a, Some(a), Some(a), Some(10)), "as announced");
    assert!(!check(a, Some(a), Some(b), Some(10)), "roamed, alive");
    assert!(!check(a, None, Some(b), Some(10)), "roamed, alive, we restarted");
    assert!(check(a, Some(a), Some(b), Some(181)), "roamed, dead");
    assert!(check(a, Some(a), Some(b), None), "roamed, never alive");
    assert!(check(a, Some(b), Some(b), Some(10)), "announced anew");
}

#[test]
fn a_route_to_a_device_that_is_missing_waits() {
    let (desired, _) = crate::plan::plan(&world(&["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2"]));
    let mut observed = empty();
    observed.links.remove("hawser0");
    observed.devices.remove(&Slot::Zero);
    let ops = diff(&desired, &observed, &Endpoints::new(), Mode::Full);
    assert!(!ops.iter().any(|op| matches!(op, Op::PutRoute(Route { target: Target::Device { .. }, .. }))));
    assert!(ops.iter().any(|op| matches!(op, Op::PutPeer { slot: Slot::One, .. })));
}

#[test]
fn before_the_first_snapshot_the_mtu_of_a_device_in_use_is_not_guessed() {
    let (desired, _) = crate::plan::plan(&world(&["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2"]));
    let mut observed = empty();
    for (slot, device) in &mut observed.devices {
        let want = &desired.devices[slot];
        (device.public_key, device.port) = (Some(want.public_key), want.port);
        // As a former life set it on an uplink with jumbo frames, of which nothing is known yet.
        (device.mtu, device.up) = (desired.mtu + 7500, *slot == Slot::Zero);
    }
    let raised = |mode| -> Vec<Slot> {
        let ops = diff(&desired, &observed, &Endpoints::new(), mode);
        ops.iter()
            .filter_map(|op| if let Op::RaiseLink { slot, .. } = op { Some(*slot) } else { None })
            .collect()
    };
    assert_eq!(raised(Mode::AddOnly), [Slot::One], "only the one that is down");
    assert_eq!(raised(Mode::Full), Slot::ALL);
}
