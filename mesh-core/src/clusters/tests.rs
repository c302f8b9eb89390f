use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;

use super::model::*;
use super::object::*;
use super::peer::{ClusterPeer, ClusterPeerSpec};
use super::rules::OwnCluster;
use super::{ClusterName, Mirrors, Stamped, Version};
use crate::announcement::{Announcement, Epoch, SlotAnnouncement};
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::policy::model::{Labels, ObjectName};

mod joined;
mod manifest;
mod peers;
mod rules;

fn cluster(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

/// `n1 age 5 keys 1,2 cidrs 10.2.1.0/24 at 192.0.2.1`
fn node(keys: [u8; 2], created: i64, cidrs: &[&str], endpoints: &[&str]) -> Arc<RemoteNode> {
    let slot = |number: u8, port| SlotAnnouncement {
        epoch: Epoch(u64::from(number)),
        public_key: key(number),
        port,
        draining: false,
    };
    Arc::new(RemoteNode {
        uid: format!("uid-{created}"),
        created,
        pod_cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
        announcement: Announcement {
            slots: [slot(keys[0], 51880), slot(keys[1], 51881)],
            endpoints: endpoints.iter().map(|address| ip(address)).collect(),
            kem: None,
            kem_required: false,
            host_traffic: false,
        },
        signed: None,
    })
}

fn own() -> OwnCluster {
    OwnCluster {
        name: cluster("here"),
        pod_cidrs: vec![net("10.1.0.0/16"), net("fd01::/48")],
        keys: BTreeMap::from([(key(200), "n1".parse().unwrap())]),
        addresses: BTreeMap::from([(ip("192.0.2.1"), "n1".parse().unwrap())]),
    }
}

fn peer(name: &str, created: i64, cidrs: &[&str]) -> ClusterPeer {
    let spec = ClusterPeerSpec {
        pod_cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        addresses: vec!["192.0.2.9:51893".to_owned()],
        trust_bundle: "-----BEGIN CERTIFICATE-----\n".to_owned(),
    };
    let (peer, refusals) = ClusterPeer::parse(name, created, &spec);
    assert_eq!(refusals, []);
    peer.unwrap()
}

fn object_name(name: &str) -> Arc<ObjectName> {
    Arc::new(ObjectName { namespace: "shop".to_owned(), name: name.to_owned() })
}

fn service(created: i64) -> Arc<ExportedService> {
    Arc::new(ExportedService {
        created,
        kind: ServiceKind::ClusterSetIp,
        ports: vec![],
        families: vec![],
        affinity: Affinity::None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        labels: Labels::new(),
        annotations: Labels::new(),
    })
}

fn backend(ready: bool) -> Arc<Backend> {
    let ports = BTreeSet::new();
    Arc::new(Backend {
        ready,
        serving: ready,
        terminating: !ready,
        hostname: None,
        node: None,
        zone: None,
        ports,
    })
}

/// Changes from a small alphabet, so that they meet each other.
fn change() -> impl Strategy<Value = Change> {
    let small = 0u8..4;
    (0u8..6, small.clone(), small, any::<bool>()).prop_map(|(kind, which, value, delete)| {
        let name: Arc<NodeName> = Arc::new(format!("n{which}").parse().unwrap());
        let address = IpAddr::from([10, 2, which, value]);
        let object = match kind {
            0 => Object::LabelSet(
                LabelSetId(which.into()),
                Arc::new(LabelSet { namespace: format!("ns{value}"), ..LabelSet::default() }),
            ),
            1 => {
                let labels = Labels::from([("value".to_owned(), value.to_string())]);
                Object::Namespace(format!("ns{which}").into(), Arc::new(labels))
            }
            2 => Object::Node(name, node([which * 2, which * 2 + 1], value.into(), &["10.2.0.0/24"], &[])),
            3 => Object::Endpoint(address, RemoteEndpoint { node: name, labels: LabelSetId(value.into()) }),
            4 => Object::Service(object_name(&format!("s{which}")), service(value.into())),
            _ => Object::Backend(object_name(&format!("s{which}")), address, backend(value > 1)),
        };
        if delete { Change::Delete(object.key()) } else { Change::Put(object) }
    })
}

fn state(changes: Vec<Change>) -> ClusterState {
    let mut state = ClusterState::default();
    for change in changes {
        state.apply(change);
    }
    state
}

fn states() -> impl Strategy<Value = ClusterState> {
    proptest::collection::vec(change(), 0..40).prop_map(state)
}

proptest! {
    #[test]
    fn the_changes_from_one_state_to_another_lead_there_and_touch_nothing_that_is_equal(a in states(), b in states()) {
        let changes = a.changes_to(&b);
        let mut reached = a.clone();
        for change in &changes {
            let key = change.key();
            prop_assert_ne!(a.get(&key), b.get(&key), "{} was touched", key);
            prop_assert!(reached.apply(change.clone()), "{} changed nothing", key);
        }
        prop_assert_eq!(&reached, &b);
        prop_assert!(b.changes_to(&reached).is_empty());
        prop_assert_eq!(b.keys().count(), b.len());
    }

    #[test]
    fn an_object_is_what_was_put_last(changes in proptest::collection::vec(change(), 0..40)) {
        let mut last = BTreeMap::new();
        let mut state = ClusterState::default();
        for change in changes {
            let wanted = match &change {
                Change::Put(object) => Some(object.clone()),
                Change::Delete(_) => None,
            };
            let changed = state.apply(change.clone());
            prop_assert_eq!(changed, last.insert(change.key(), wanted.clone()).flatten() != wanted);
        }
        for (key, wanted) in &last {
            prop_assert_eq!(&state.get(key), wanted);
        }
        prop_assert_eq!(state.len(), last.values().flatten().count());
    }
}

/// Views of three clusters: of each a history, and everybody has seen some moment of it.
fn views() -> impl Strategy<Value = [Mirrors; 3]> {
    let history = proptest::collection::vec((change(), any::<bool>()), 1..12);
    let seen = proptest::collection::vec(
        (0usize..3, proptest::array::uniform3(any::<proptest::sample::Index>())),
        3,
    );
    (proptest::array::uniform3(history), seen).prop_map(|(histories, seen)| {
        let mut moments = Vec::new();
        for history in histories {
            let (mut version, mut state) = (Version { incarnation: 1, sequence: 0 }, ClusterState::default());
            let mut of_one = Vec::new();
            for (change, restart) in history {
                state.apply(change);
                version = if restart {
                    Version { incarnation: version.incarnation + 1, sequence: 0 }
                } else {
                    Version { sequence: version.sequence + 1, ..version }
                };
                of_one.push(Stamped { version, state: Arc::new(state.clone()) });
            }
            moments.push(of_one);
        }
        let mut views = [Mirrors::new(), Mirrors::new(), Mirrors::new()];
        for (view, (skipped, indices)) in views.iter_mut().zip(&seen) {
            for (number, of_one) in moments.iter().enumerate().filter(|(number, _)| number != skipped) {
                view.offer(cluster(&format!("c{number}")), indices[number].get(of_one).clone());
            }
        }
        views
    })
}

fn merged(a: &Mirrors, b: &Mirrors) -> Mirrors {
    let mut both = a.clone();
    both.merge(b.clone());
    both
}

proptest! {
    #[test]
    fn merging_is_associative_commutative_and_idempotent(views in views()) {
        let [a, b, c] = &views;
        prop_assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)));
        prop_assert_eq!(merged(a, b), merged(b, a));
        prop_assert_eq!(&merged(a, a), a);
        // Nothing goes back.
        for (cluster, stamped) in a.iter().chain(b.iter()) {
            prop_assert!(merged(a, b).get(cluster).unwrap().version >= stamped.version);
        }
    }
}

#[test]
fn pods_of_a_node_share_its_name() {
    let name = || Arc::new("n1".parse::<NodeName>().unwrap());
    let pod = |last: u8| {
        let endpoint = RemoteEndpoint { node: name(), labels: LabelSetId(1) };
        Change::Put(Object::Endpoint(IpAddr::from([10, 2, 0, last]), endpoint))
    };
    let node = Change::Put(Object::Node(name(), node([1, 2], 0, &[], &[])));
    let state = state(vec![node, pod(2), pod(3)]);
    let first = &state.endpoints[&ip("10.2.0.2")].node;
    assert!(Arc::ptr_eq(first, &state.endpoints[&ip("10.2.0.3")].node));
}
