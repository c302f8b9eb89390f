use std::net::IpAddr;

use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{ClusterPeerSpec, LabelSet, LabelSetId, RemoteEndpoint};
use mesh_core::key::PublicKey;
use proptest::prelude::*;

use super::*;

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn own(addresses: &[&str]) -> OwnCluster {
    let addresses = addresses.iter().map(|at| (at.parse().unwrap(), "m1".parse().unwrap())).collect();
    OwnCluster {
        name: cluster("here"),
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        keys: BTreeMap::new(),
        addresses,
    }
}

fn peer(name: &str, created: i64, cidr: &str) -> ClusterPeer {
    let spec = ClusterPeerSpec { pod_cidrs: vec![cidr.to_owned()], ..ClusterPeerSpec::default() };
    ClusterPeer::parse(name, created, &spec).0.unwrap()
}

fn node(name: u8, key: u8, created: i64, cidr: &str) -> Object {
    let slot = |number: u8, port| SlotAnnouncement {
        epoch: Epoch(u64::from(number)),
        public_key: PublicKey::from_bytes([number; 32]),
        port,
        draining: false,
    };
    let announcement = Announcement {
        slots: [slot(2 * key + 9, 51880), slot(2 * key + 10, 51881)],
        endpoints: Vec::new(),
        kem: None,
        kem_required: false,
        host_traffic: false,
    };
    let node = RemoteNode {
        uid: "u".into(),
        created,
        pod_cidrs: vec![cidr.parse().unwrap()],
        announcement,
        signed: None,
    };
    Object::Node(Arc::new(format!("n{name}").parse().unwrap()), Arc::new(node))
}

fn endpoint(net: u8, host: u8, node: u8, labels: u64) -> Object {
    let node = Arc::new(format!("n{node}").parse().unwrap());
    Object::Endpoint(IpAddr::from([10, 2, net, host]), RemoteEndpoint { node, labels: LabelSetId(labels) })
}

fn labels(id: u64) -> Object {
    Object::LabelSet(LabelSetId(id), Arc::new(LabelSet::default()))
}

fn change() -> impl Strategy<Value = Change> {
    let cidrs = prop::sample::select(vec!["10.2.0.0/24", "10.2.1.0/24", "10.2.0.0/23", "10.3.0.0/24"]);
    let object = prop_oneof![
        (0u8..2, 0u8..3, 0i64..2, cidrs)
            .prop_map(|(name, key, created, cidr)| node(name, key, created, cidr)),
        (0u8..2, 0u8..3, 0u8..2, 0u64..2)
            .prop_map(|(net, host, node, labels)| endpoint(net, host, node, labels)),
        (0u64..2).prop_map(labels),
    ];
    (object, any::<bool>()).prop_map(
        |(object, delete)| {
            if delete { Change::Delete(object.key()) } else { Change::Put(object) }
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    /// By east or not; what; and whether it is judged at once.
    Told(bool, Vec<Change>, bool),
    Rules(usize),
}

fn rules(number: usize) -> (OwnCluster, Vec<ClusterPeer>) {
    match number {
        0 => (own(&[]), vec![peer("east", 1, "10.2.0.0/16"), peer("west", 2, "10.3.0.0/16")]),
        1 => (own(&[]), vec![peer("east", 3, "10.2.0.0/16"), peer("west", 2, "10.2.0.0/15")]),
        2 => (own(&["10.2.9.9"]), vec![peer("east", 1, "10.2.0.0/16"), peer("west", 2, "10.3.0.0/16")]),
        _ => (own(&[]), vec![peer("east", 1, "10.2.0.0/16"), peer("west", 1, "10.3.0.0/16")]),
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), prop::collection::vec(change(), 0..4), any::<bool>())
            .prop_map(|(east, changes, at_once)| Step::Told(east, changes, at_once)),
        1 => (0usize..4).prop_map(Step::Rules),
    ]
}

proptest! {
    /// One change after the other leads to what is believed of the same facts at once, and what was told adds up to it.
    #[test]
    fn the_way_does_not_matter(steps in prop::collection::vec(step(), 0..25)) {
        let names = [cluster("east"), cluster("west")];
        let (first, peers) = rules(0);
        let mut judge = Judge::new(first, peers);
        let mut said = [ClusterState::default(), ClusterState::default()];
        let mut heard: BTreeMap<ClusterName, (At, ClusterState)> = BTreeMap::new();
        let (mut sequence, mut last) = (0, 0);
        for step in steps.into_iter().map(Some).chain([None]) {
            let moves = match step {
                None => judge.settle().moves,
                Some(Step::Told(east, changes, at_once)) => {
                    sequence += 1;
                    for change in &changes {
                        said[usize::from(!east)].apply(change.clone());
                    }
                    judge.hear(&names[usize::from(!east)], Version { incarnation: 1, sequence }, changes);
                    if at_once { judge.settle().moves } else { Vec::new() }
                }
                Some(Step::Rules(number)) => {
                    last = number;
                    let (own, peers) = rules(number);
                    judge.rules(own, peers)
                }
            };
            for made in moves {
                let (at, state) = heard.entry(made.cluster).or_default();
                prop_assert!(*at != made.at || made.changes.is_empty(), "{:?} without another version or view", made.changes);
                *at = made.at;
                for change in made.changes {
                    prop_assert!(state.apply(change), "touches what is equal");
                }
            }
        }
        let (own, peers) = rules(last);
        let mut at_once = Judge::new(own, peers);
        for (name, said) in names.iter().zip(&said) {
            at_once.told(name, Version { incarnation: 1, sequence }, ClusterState::default().changes_to(said));
        }
        // The rules themselves, asked about each fact.
        let (own, peers) = rules(last);
        let (borders, _) = Borders::judge(&own, &peers);
        let (claims, _) = Claims::judge(&own, &borders, names.iter().zip(&said));
        for (name, said) in names.iter().zip(&said) {
            let Some(believed) = judge.believed(name) else { continue };
            for (address, endpoint) in &said.endpoints {
                let right = claims.endpoint(name, said, *address, endpoint).is_ok();
                prop_assert_eq!(believed.endpoints.contains_key(address), right, "{} of {}", address, name);
            }
            for node in said.nodes.keys() {
                let accepted = claims.of(name, node).map(|node| &node.pod_cidrs);
                prop_assert_eq!(believed.nodes.get(node).map(|node| &node.pod_cidrs), accepted);
            }
        }
        // Clusters that said nothing are not known to the first.
        for name in names.iter().filter(|name| judge.believed(name).is_some()) {
            prop_assert_eq!(judge.believed(name), at_once.believed(name));
            let wrong = |judge: &Judge| judge.disbelieved(name).cloned().collect::<BTreeSet<_>>();
            prop_assert_eq!(wrong(&judge), wrong(&at_once));
            if let Some((at, state)) = heard.get(name) {
                prop_assert_eq!(Some(state), judge.believed(name));
                prop_assert_eq!(at.view, at_once.parties[name].at().view);
            }
        }
    }
}

#[test]
fn what_is_outside_is_left_out_by_itself_and_comes_back_with_the_rules() {
    let (here, peers) = rules(0);
    let mut judge = Judge::new(here, peers);
    let version = Version { incarnation: 1, sequence: 1 };
    let put = |objects: &[Object]| objects.iter().cloned().map(Change::Put).collect::<Vec<_>>();
    let said =
        put(&[labels(1), node(1, 0, 0, "10.3.0.0/24"), node(2, 1, 0, "10.2.0.0/24"), endpoint(0, 7, 2, 1)]);
    let moves = judge.told(&cluster("east"), version, said);
    assert_eq!(moves.len(), 1);
    let believed = judge.believed(&cluster("east")).unwrap();
    assert_eq!((believed.nodes.len(), believed.endpoints.len()), (2, 1));
    let texts: Vec<String> = judge.disbelieved(&cluster("east")).map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "node n1 of cluster east: spec.podCIDRs 10.3.0.0/24 is outside what ClusterPeer east allows (10.2.0.0/16); refused; add it to spec.podCIDRs if it is right"
        ]
    );
    let wider = vec![peer("east", 1, "10.2.0.0/15")];
    let moves = judge.rules(own(&[]), wider);
    assert_eq!((moves.len(), moves[0].at), (1, version.into()));
    assert_eq!(judge.disbelieved(&cluster("east")).count(), 0);
    assert!(judge.told(&cluster("north"), version, put(&[labels(1)])).is_empty(), "no peer");
}

#[test]
fn a_node_with_a_key_that_nobody_can_own_is_left_out_until_it_has_another() {
    let (here, peers) = rules(0);
    let mut judge = Judge::new(here, peers);
    let Object::Node(name, good) = node(1, 0, 0, "10.2.0.0/24") else { panic!("a node") };
    let mut bad = RemoteNode::clone(&good);
    bad.announcement.slots[1].public_key = PublicKey::from_bytes([0; 32]);
    for (sequence, node, wrong) in [(1, Arc::new(bad), 1), (2, good, 0)] {
        let put = Change::Put(Object::Node(Arc::clone(&name), node));
        judge.told(&cluster("east"), Version { incarnation: 1, sequence }, vec![put]);
        let reasons: Vec<_> = judge.disbelieved(&cluster("east")).map(Disbelief::reason).collect();
        assert_eq!(reasons, vec!["NodeAnnouncement"; wrong]);
        assert_eq!(judge.believed(&cluster("east")).unwrap().nodes.len(), 1 - wrong);
    }
}

#[test]
fn of_what_is_judged_together_each_cluster_has_the_part_that_it_caused() {
    let (own, peers) = rules(0);
    let mut judge = Judge::new(own, peers);
    let version = |sequence| Version { incarnation: 1, sequence };
    let parts = |judge: &mut Judge| -> Vec<(String, usize)> {
        judge.settle().looked_at.into_iter().map(|(cluster, part)| (cluster.to_string(), part)).collect()
    };
    let part = |cluster: &str, part: usize| (cluster.to_owned(), part);
    // A hundred pods whose labels nobody told: each set that comes may be theirs.
    let pods = (0..100).map(|host| Change::Put(endpoint(0, host, 0, 1)));
    judge.hear(&cluster("east"), version(1), pods.collect());
    judge.hear(&cluster("west"), version(1), vec![Change::Put(labels(1))]);
    assert_eq!(parts(&mut judge), [part("east", 100), part("west", 1)]);
    judge.hear(&cluster("east"), version(2), vec![Change::Put(labels(2))]);
    judge.hear(&cluster("west"), version(2), vec![Change::Put(labels(2))]);
    assert_eq!(parts(&mut judge), [part("east", 101), part("west", 1)]);
    // A node costs a look at all nodes.
    judge.hear(&cluster("west"), version(3), vec![Change::Put(node(0, 0, 1, "10.3.0.0/24"))]);
    assert_eq!(parts(&mut judge), [part("west", 3 + 1)]);
    assert_eq!(parts(&mut judge), []);
}
