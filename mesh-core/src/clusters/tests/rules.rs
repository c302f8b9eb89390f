use expect_test::expect;

use super::super::rules::{AcceptedNode, Borders, Claims};
use super::*;

type World<'a> = Vec<(ClusterName, ClusterState)>;

fn world(nodes: &[(&str, &str, Arc<RemoteNode>)]) -> World<'static> {
    let mut world: BTreeMap<ClusterName, ClusterState> = BTreeMap::new();
    for (of, name, node) in nodes {
        let state = world.entry(cluster(of)).or_default();
        state.apply(Change::Put(Object::Node(Arc::new(name.parse().unwrap()), Arc::clone(node))));
    }
    world.into_iter().collect()
}

fn judge(own: &OwnCluster, peers: &[ClusterPeer], world: &World<'_>) -> (Claims, Vec<String>) {
    let (borders, refused) = Borders::judge(own, peers);
    let (claims, refused_nodes) =
        Claims::judge(own, &borders, world.iter().map(|(name, state)| (name, state)));
    (claims, refused.iter().chain(&refused_nodes).map(ToString::to_string).collect())
}

fn check(peers: &[ClusterPeer], world: &World<'_>) -> String {
    let (claims, refusals) = judge(&own(), peers, world);
    let accepted = claims.iter().map(|(cluster, name, node)| {
        format!("{cluster}/{name} {:?} at {:?}", node.pod_cidrs, node.announcement.endpoints)
    });
    refusals.into_iter().chain(accepted).map(|line| line + "\n").collect()
}

#[test]
fn a_peer_reaches_as_far_as_nobody_else_does() {
    let peers = [
        peer("young", 9, &["10.3.0.0/17", "10.4.0.0/16"]),
        peer("old", 1, &["10.3.0.0/16", "10.1.128.0/17", "192.0.0.0/8"]),
        peer("here", 0, &["10.9.0.0/16"]),
        peer("young", 10, &["10.8.0.0/16"]),
    ];
    let (borders, refusals) = Borders::judge(&own(), &peers);
    let lines: String = refusals.iter().map(|refusal| format!("{}: {refusal}\n", refusal.reason())).collect();
    expect![[r#"
        PeerIsOurself: ClusterPeer here: metadata.name here is the name of this cluster itself; nothing of it is believed; delete it, or give one of the two clusters another clusterName
        PeerCidrOurs: ClusterPeer old: spec.podCIDRs 10.1.128.0/17 overlaps pod CIDR 10.1.0.0/16 of this cluster; refused; correct it, or give one of the clusters other pod CIDRs
        PeerCidrOfNode: ClusterPeer old: spec.podCIDRs 192.0.0.0/8 contains 192.0.2.1, an address of node n1 of this cluster; the CIDR is kept and guarded, and nobody talks to the node there; correct one of the two
        PeerCidrTwice: ClusterPeer young: spec.podCIDRs 10.3.0.0/17 overlaps 10.3.0.0/16 of ClusterPeer old; refused here, kept there (older); correct one of the two
        PeerTwice: ClusterPeer young: metadata.name young is that of another ClusterPeer, which is kept (older); delete this one
    "#]]
    .assert_eq(&lines);
    let guarded: Vec<String> = borders.guarded().map(|(name, cidr)| format!("{name} {cidr}")).collect();
    assert_eq!(guarded, ["old 10.3.0.0/16", "old 192.0.0.0/8", "young 10.4.0.0/16"]);
    assert!(borders.speaks(&cluster("old"), &cluster("old")).is_ok());
    let texts = [
        borders.speaks(&cluster("old"), &cluster("young")).unwrap_err(),
        borders.speaks(&cluster("nobody"), &cluster("nobody")).unwrap_err(),
        borders.known(&cluster("here")).unwrap_err(),
    ];
    let texts: Vec<&str> = texts.iter().map(|refusal| refusal.reason()).collect();
    assert_eq!(texts, ["ForeignCluster", "ClusterUnknown", "ClusterUnknown"]);
}

#[test]
fn a_node_is_believed_inside_the_border_of_its_cluster() {
    let peers = [peer("east", 1, &["10.2.0.0/16"]), peer("west", 2, &["10.3.0.0/16"])];
    let nodes = [
        ("east", "n1", node([1, 2], 5, &["10.2.1.0/24"], &["198.51.100.1"])),
        // Another cluster's, ours, one too small, one that an older node has.
        ("east", "n2", node([3, 4], 6, &["10.3.1.0/24", "10.1.1.0/24", "10.2.9.0/31", "10.2.1.128/25"], &[])),
        // Keys: an older node's, ours, that of an older cluster.
        ("east", "n3", node([2, 5], 7, &["10.2.3.0/24"], &[])),
        ("east", "n4", node([6, 200], 7, &["10.2.4.0/24"], &[])),
        ("west", "n1", node([1, 7], 0, &["10.3.1.0/24"], &[])),
        // Endpoints: pods of each kind, one of our nodes, loopback; one is good.
        (
            "west",
            "n2",
            node(
                [8, 9],
                0,
                &["10.3.2.0/24"],
                &["10.2.0.9", "10.1.0.9", "192.0.2.1", "127.0.0.1", "198.51.100.7"],
            ),
        ),
        ("nobody", "n1", node([10, 11], 0, &["10.4.0.0/24"], &[])),
    ];
    expect![[r#"
        cluster nobody: no ClusterPeer nobody is here; nothing of it is believed; make one: hawser clustermesh join
        node n2 of cluster east: spec.podCIDRs 10.3.1.0/24 is outside what ClusterPeer east allows (10.2.0.0/16); refused; add it to spec.podCIDRs if it is right
        node n2 of cluster east: spec.podCIDRs 10.1.1.0/24 is outside what ClusterPeer east allows (10.2.0.0/16); refused; add it to spec.podCIDRs if it is right
        node n2 of cluster east: spec.podCIDRs 10.2.9.0/31 has no room for the mesh address and a pod; refused; give it /30 or /126 at least
        node n2 of cluster east: spec.podCIDRs 10.2.1.128/25 overlaps 10.2.1.0/24 of node n1 of the same cluster; refused here, kept there (older); correct it in cluster east
        node n3 of cluster east: announces key AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= for hawser0, which is also a key of node n1 of cluster east (older); refused here, kept there; delete the key file of hawser0 on the node and restart its agent
        node n4 of cluster east: announces key yMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMg= for hawser1, which is also a key of node n1 of this cluster; refused here, kept there; delete the key file of hawser1 on the node and restart its agent
        node n1 of cluster west: announces key AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE= for hawser0, which is also a key of node n1 of cluster east (older); refused here, kept there; delete the key file of hawser0 on the node and restart its agent
        node n2 of cluster west: announces the endpoint 10.2.0.9, inside the pod CIDR 10.2.0.0/16 of east; not called there; correct annotation hawser.dev/endpoint of the node
        node n2 of cluster west: announces the endpoint 10.1.0.9, inside the pod CIDR 10.1.0.0/16 of here; not called there; correct annotation hawser.dev/endpoint of the node
        node n2 of cluster west: announces the endpoint 192.0.2.1, an address of node n1 of this cluster; not called there; correct annotation hawser.dev/endpoint of the node
        node n2 of cluster west: announces the endpoint 127.0.0.1, where no other host can be reached; not called there; correct annotation hawser.dev/endpoint of the node
        east/n1 [10.2.1.0/24] at [198.51.100.1]
        east/n2 [] at []
        west/n2 [10.3.2.0/24] at [198.51.100.7]
    "#]]
    .assert_eq(&check(&peers, &world(&nodes)));
}

#[test]
fn an_endpoint_is_believed_inside_the_cidr_of_its_node_and_a_backend_inside_that_of_its_cluster() {
    let peers = [peer("east", 1, &["10.2.0.0/16"])];
    let mut world = world(&[
        ("east", "n1", node([1, 2], 5, &["10.2.1.0/24"], &[])),
        ("east", "n2", node([3, 4], 6, &["10.3.1.0/24"], &[])),
    ]);
    let state = &mut world[0].1;
    state.apply(Change::Put(Object::LabelSet(LabelSetId(1), Arc::default())));
    state.apply(Change::Put(Object::Service(object_name("web"), service(0))));
    let (borders, _) = Borders::judge(&own(), &peers);
    let east = cluster("east");
    let (claims, _) = Claims::judge(&own(), &borders, world.iter().map(|(name, state)| (name, state)));
    let state = &world[0].1;
    let endpoint = |address: &str, node: &str, labels| {
        let endpoint = RemoteEndpoint { node: Arc::new(node.parse().unwrap()), labels: LabelSetId(labels) };
        claims.endpoint(&east, state, ip(address), &endpoint).map_err(|refusal| refusal.reason())
    };
    assert_eq!(endpoint("10.2.1.7", "n1", 1), Ok(()));
    assert_eq!(endpoint("10.2.2.7", "n1", 1), Err("EndpointOutside"));
    assert_eq!(endpoint("10.3.1.7", "n2", 1), Err("EndpointWithoutNode"));
    assert_eq!(endpoint("10.2.1.7", "n3", 1), Err("EndpointWithoutNode"));
    assert_eq!(endpoint("10.2.1.7", "n1", 2), Err("EndpointWithoutLabels"));
    let backend = |address: &str, service: &str| {
        borders.backend(&east, state, &object_name(service), ip(address)).map_err(|refusal| refusal.reason())
    };
    assert_eq!(backend("10.2.200.7", "web"), Ok(()));
    assert_eq!(backend("198.51.100.1", "web"), Err("BackendOutside"));
    assert_eq!(backend("10.1.0.7", "web"), Err("BackendOutside"));
    assert_eq!(backend("10.2.200.7", "db"), Err("BackendWithoutService"));
    // Nobody gets to what is on no accepted node.
    let reached = |address: &str| {
        claims.backend(&east, &object_name("web"), ip(address)).map_err(|refusal| refusal.reason())
    };
    assert_eq!(reached("10.2.1.7"), Ok(()));
    assert_eq!(reached("10.2.200.7"), Err("BackendWithoutNode"));
    assert_eq!(reached("10.3.1.7"), Err("BackendWithoutNode"));
}

/// A peer or node at random, from an alphabet in which everything collides.
fn random_peers() -> impl Strategy<Value = Vec<ClusterPeer>> {
    let cidr = prop_oneof![
        (1u8..5).prop_map(|b| format!("10.{b}.0.0/16")),
        (1u8..5).prop_map(|b| format!("10.{b}.128.0/17")),
        Just("192.0.2.0/24".to_owned()),
        Just("10.0.0.0/8".to_owned()),
    ];
    let one = (prop_oneof!["[abc]", Just("here".to_owned())], 0i64..3, proptest::collection::vec(cidr, 0..4));
    proptest::collection::vec(one, 0..5).prop_map(|peers| {
        let peer = |(name, created, cidrs): (String, i64, Vec<String>)| {
            peer(&name, created, &cidrs.iter().map(String::as_str).collect::<Vec<_>>())
        };
        peers.into_iter().map(peer).collect()
    })
}

type RandomNode = (String, String, Arc<RemoteNode>);

fn random_node() -> impl Strategy<Value = RandomNode> {
    let cidr = prop_oneof![
        (1u8..5, 0u8..3).prop_map(|(b, c)| format!("10.{b}.{c}.0/24")),
        (1u8..5, 0u8..3).prop_map(|(b, c)| format!("10.{b}.{c}.0/25")),
        (1u8..5).prop_map(|b| format!("10.{b}.128.0/20")),
    ];
    let keys = (0u8..10, 0u8..10).prop_map(|(a, b)| [a, if a == b { 200 } else { b }]);
    let endpoint = prop_oneof![
        Just("192.0.2.1".to_owned()),
        Just("198.51.100.1".to_owned()),
        (1u8..5).prop_map(|b| format!("10.{b}.0.1")),
    ];
    let lists = (proptest::collection::vec(cidr, 0..3), proptest::collection::vec(endpoint, 0..3));
    ("[abc]", "n[0-3]", keys, 0i64..3, lists).prop_map(|(of, name, keys, created, (cidrs, endpoints))| {
        let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        (of, name, node(keys, created, &cidrs, &endpoints))
    })
}

fn as_world(nodes: &[RandomNode]) -> World<'static> {
    let nodes: Vec<(&str, &str, Arc<RemoteNode>)> =
        nodes.iter().map(|(of, name, node)| (of.as_str(), name.as_str(), Arc::clone(node))).collect();
    world(&nodes)
}

fn accepted(claims: &Claims) -> BTreeMap<(ClusterName, NodeName), AcceptedNode> {
    claims.iter().map(|(cluster, name, node)| ((cluster.clone(), name.clone()), node.clone())).collect()
}

proptest! {
    #[test]
    fn no_order_of_facts_matters(peers in random_peers(), nodes in proptest::collection::vec(random_node(), 0..12)) {
        let world = as_world(&nodes);
        let (claims, mut refusals) = judge(&own(), &peers, &world);
        let (mut back, mut other_world) = (peers.clone(), world.clone());
        back.reverse();
        other_world.reverse();
        let (other, mut other_refusals) = judge(&own(), &back, &other_world);
        refusals.sort();
        other_refusals.sort();
        prop_assert_eq!(claims, other);
        prop_assert_eq!(refusals, other_refusals);
    }

    #[test]
    fn what_is_accepted_collides_with_nothing(peers in random_peers(), nodes in proptest::collection::vec(random_node(), 0..12)) {
        let (borders, _) = Borders::judge(&own(), &peers);
        let guarded: Vec<(ClusterName, IpNet)> =
            borders.guarded().map(|(name, cidr)| (name.clone(), cidr)).collect();
        for (i, (name, cidr)) in guarded.iter().enumerate() {
            prop_assert!(*name != own().name);
            prop_assert!(own().pod_cidrs.iter().all(|ours| !ours.contains(cidr) && !cidr.contains(ours)));
            for (other_name, other) in &guarded[..i] {
                let apart = !other.contains(cidr) && !cidr.contains(other);
                prop_assert!(apart || name == other_name);
            }
        }
        let (claims, _) = judge(&own(), &peers, &as_world(&nodes));
        let (mut keys, mut cidrs) = (BTreeSet::from([key(200)]), Vec::new());
        for (cluster, _, node) in claims.iter() {
            let of_node: BTreeSet<PublicKey> = node.announcement.slots.iter().map(|slot| slot.public_key).collect();
            prop_assert!(of_node.is_disjoint(&keys));
            keys.extend(of_node);
            for cidr in &node.pod_cidrs {
                let inside = |(name, border): &(ClusterName, IpNet)| name == cluster && border.contains(cidr);
                prop_assert!(guarded.iter().any(inside), "{} of {}", cidr, cluster);
                for other in &cidrs {
                    prop_assert!(!IpNet::contains(other, cidr) && !cidr.contains(other));
                }
                cidrs.push(*cidr);
            }
            for address in &node.announcement.endpoints {
                let pods = own().pod_cidrs.into_iter().chain(guarded.iter().map(|(_, cidr)| *cidr));
                prop_assert!(pods.into_iter().all(|cidr| !cidr.contains(address)), "{}", address);
                prop_assert!(!own().addresses.contains_key(address));
            }
        }
    }

    #[test]
    fn a_younger_cluster_takes_nothing_from_anybody(
        peers in random_peers(),
        nodes in proptest::collection::vec(random_node(), 0..10),
        cidrs in proptest::collection::vec(prop_oneof![Just("10.2.0.0/16"), Just("10.0.0.0/8"), Just("10.7.0.0/16")], 1..3),
        said in proptest::collection::vec(random_node(), 1..6),
    ) {
        let (before, _) = judge(&own(), &peers, &as_world(&nodes));
        let mut with = peers.clone();
        with.push(peer("zz", 100, &cidrs));
        let mut all = nodes.clone();
        all.extend(said.into_iter().map(|(_, name, node)| ("zz".to_owned(), name, node)));
        let (after, _) = judge(&own(), &with, &as_world(&all));
        let mut after = accepted(&after);
        after.retain(|(cluster, _), _| cluster.as_str() != "zz");
        // Endpoints alone may go: the newcomer's pods could be where a node is called, and that its administrator said.
        for ((cluster, name), node) in accepted(&before) {
            let now = after.remove(&(cluster, name));
            let now = now.expect("still accepted");
            prop_assert_eq!(&now.pod_cidrs, &node.pod_cidrs);
            prop_assert_eq!(now.announcement.slots, node.announcement.slots);
        }
        prop_assert!(after.is_empty());
    }

    #[test]
    fn without_its_cluster_peer_a_cluster_is_nothing(nodes in proptest::collection::vec(random_node(), 0..12)) {
        let (claims, refusals) = judge(&own(), &[], &as_world(&nodes));
        prop_assert!(claims.iter().next().is_none());
        prop_assert_eq!(refusals.is_empty(), nodes.is_empty());
    }
}
