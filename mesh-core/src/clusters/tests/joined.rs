use proptest::prelude::*;

use super::super::joined::{Disputed, Here, Joined, MAX_NODES, disputed};
use super::*;
use crate::view::{AnnouncementFact, EndpointFact, NodeFacts};

fn state(nodes: impl IntoIterator<Item = (String, Arc<RemoteNode>)>) -> ClusterState {
    let mut state = ClusterState::default();
    for (name, node) in nodes {
        state.apply(Change::Put(Object::Node(Arc::new(name.parse().unwrap()), node)));
    }
    state
}

#[test]
fn an_agent_has_the_nodes_that_are_accepted_under_names_of_their_own() {
    let east = state([
        ("n1".to_owned(), node([1, 2], 5, &["10.2.1.0/24", "10.1.9.0/24"], &["198.51.100.1", "192.0.2.1"])),
        ("n2".to_owned(), node([200, 4], 5, &["10.2.2.0/24"], &["198.51.100.2"])),
    ]);
    let peers = [peer("east", 1, &["10.2.0.0/16"]), peer("west", 2, &["10.2.128.0/17", "10.3.0.0/16"])];
    let (joined, _, refusals) =
        Joined::judge(&own(), None, &BTreeSet::new(), &peers, [(&cluster("east"), &east)]);
    let names: Vec<&str> = joined.nodes.keys().map(NodeName::as_str).collect();
    assert_eq!(names, ["n1@east"]);
    let n1 = &joined.nodes[&NodeName::read("n1@east").unwrap()];
    assert_eq!((&n1.pod_cidrs, n1.created), (&vec![net("10.2.1.0/24")], 5));
    assert!(n1.internal_ips.is_empty() && n1.endpoint == EndpointFact::Absent);
    assert_eq!(n1.announced().unwrap().endpoints, [ip("198.51.100.1")]);
    assert_eq!(joined.cidrs[&cluster("east")], [net("10.2.0.0/16")]);
    assert_eq!(joined.cidrs[&cluster("west")], [net("10.3.0.0/16")], "guarded before anything is told of it");
    let mut reasons: Vec<&str> = refusals.iter().map(|refusal| refusal.reason()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["NodeCidrOutside", "NodeEndpointOurs", "NodeKeyTwice", "PeerCidrTwice"]);
}

#[test]
fn a_cluster_peer_does_not_cut_off_the_node_of_an_agent_that_is_older() {
    let here = |created, address| Here { node: "n1".parse().unwrap(), created, addresses: vec![ip(address)] };
    let peers = [peer("east", 5, &["192.0.0.0/8", "10.2.0.0/16"])];
    let judge = |here: Option<&Here>, guarded: &[&str]| {
        let guarded = &guarded.iter().map(|text| net(text)).collect();
        let (joined, _, refusals) = Joined::judge(&own(), here, guarded, &peers, []);
        let refusals: Vec<&str> = refusals.iter().map(|refusal| refusal.reason()).collect();
        (joined.cidrs[&cluster("east")].clone(), refusals)
    };
    let mine = "192.0.2.1";
    assert_eq!(judge(Some(&here(4, mine)), &[]), (vec![net("10.2.0.0/16")], vec!["PeerCidrOfOlderNode"]));
    // A node that comes later does not unguard pods that are there,
    let both = vec![net("192.0.0.0/8"), net("10.2.0.0/16")];
    assert_eq!(judge(Some(&here(5, mine)), &[]), (both.clone(), vec!["PeerCidrOfNode"]));
    assert_eq!(judge(None, &[]), (both.clone(), vec!["PeerCidrOfNode"]));
    // nor does an address that comes later,
    assert_eq!(judge(Some(&here(4, mine)), &["192.0.0.0/8"]), (both.clone(), vec!["PeerCidrOfNode"]));
    // nor one that only an annotation names.
    assert_eq!(judge(Some(&here(4, "198.51.100.9")), &[]), (both, vec!["PeerCidrOfNode"]));
}

#[test]
fn a_node_reaches_into_a_cluster_as_far_as_its_peers_go() {
    let east = state([("n1".to_owned(), node([1, 2], 5, &["10.2.1.0/24"], &["198.51.100.1"]))]);
    let peers = [peer("east", 1, &["10.2.0.0/16"]), peer("west", 2, &["10.3.0.0/16"])];
    let (joined, ..) = Joined::judge(&own(), None, &BTreeSet::new(), &peers, [(&cluster("east"), &east)]);
    let reach = joined.reach();
    let contains = |name: &str, address: &str| reach[&cluster(name)].peers.contain(ip(address));
    assert_eq!(reach[&cluster("east")].cidrs, [net("10.2.0.0/16")]);
    assert!(contains("east", "10.2.1.7") && !contains("east", "10.2.2.7") && !contains("east", "fd00::1"));
    assert!(!contains("west", "10.3.0.1"));
}

#[test]
fn beyond_the_limit_the_oldest_stay_and_the_others_are_named() {
    let many = MAX_NODES + 3;
    let east = state((0..many).map(|i| {
        let mut bytes = [9; 32];
        bytes[..8].copy_from_slice(&u64::try_from(i).unwrap().to_le_bytes());
        let cidr = format!("10.{}.{}.{}/28", 2 + i / 4096, i / 16 % 256, i % 16 * 16);
        let age = i64::try_from(many - i).unwrap();
        let mut one = RemoteNode::clone(&node([1, 2], age, &[&cidr], &["198.51.100.1"]));
        for (n, slot) in one.announcement.slots.iter_mut().enumerate() {
            bytes[31] = u8::from(n == 1);
            slot.public_key = PublicKey::from_bytes(bytes);
        }
        (format!("n{i}"), Arc::new(one))
    }));
    let (joined, _, refusals) = Joined::judge(
        &own(),
        None,
        &BTreeSet::new(),
        &[peer("east", 1, &["10.2.0.0/15"])],
        [(&cluster("east"), &east)],
    );
    assert_eq!(joined.nodes.len(), MAX_NODES);
    let texts: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0].contains("node n2 of cluster east: beyond the 4096 nodes"), "{texts:?}");
}

#[test]
fn keys_and_addresses_of_own_nodes_are_taken_whoever_gave_them() {
    let facts = NodeFacts {
        internal_ips: vec![ip("192.0.2.1")],
        endpoint: EndpointFact::Addresses(vec![ip("203.0.113.1")]),
        announcement: AnnouncementFact::Valid(node([1, 2], 5, &[], &[]).announcement.clone()),
        ..NodeFacts::default()
    };
    let name: NodeName = "n1".parse().unwrap();
    let own = OwnCluster::of(cluster("here"), vec![], [(&name, &facts)]);
    assert_eq!(own.keys.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
    assert_eq!(own.addresses.keys().copied().collect::<Vec<_>>(), [ip("192.0.2.1"), ip("203.0.113.1")]);
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let net = (prop_oneof![Just("10.2.0.0"), Just("10.3.0.0"), Just("fd00::")], 0_u8..16, 0_u8..=4);
    let net = net.prop_map(|(base, host, length)| {
        let (width, bits) = if base.contains(':') { (128, 124) } else { (32, 28) };
        let mut octets: Vec<u8> = match base.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        *octets.last_mut().unwrap() = host;
        let address = match <[u8; 4]>::try_from(octets.clone()) {
            Ok(four) => IpAddr::from(four),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()),
        };
        IpNet::new(address, (bits + length).min(width)).unwrap()
    });
    prop::collection::vec(net, 0..3)
}

proptest! {
    /// By addresses, one by one: what was guarded and is still named stays so, and nothing else comes to it.
    #[test]
    fn what_a_cluster_has_lost_stays_guarded_as_long_as_its_cluster_peer_names_it(
        own in nets(), was in prop::array::uniform2(nets()), lost in prop::array::uniform2(nets()),
        named in prop::array::uniform2(nets()), unread in any::<[bool; 2]>(), now in nets(),
    ) {
        let names = [cluster("east"), cluster("north")];
        let by_name = |of: &[Vec<IpNet>; 2]| -> Disputed { names.iter().cloned().zip(of.iter().cloned()).collect() };
        let peers: Vec<ClusterPeer> = names.iter().zip(&named).map(|(name, cidrs)| ClusterPeer {
            pod_cidrs: cidrs.clone(), ..peer(name.as_str(), 1, &[])
        }).collect();
        let unread_names = names.iter().zip(unread).filter(|(_, unread)| *unread).map(|(name, _)| name.clone()).collect();
        let accepted = Joined { cidrs: [(names[0].clone(), now.clone())].into(), ..Joined::default() };
        let after = disputed(&own, (&by_name(&was), &by_name(&lost)), (&peers, &unread_names), &accepted);
        let has = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
        for base in ["10.2.0.", "10.3.0.", "fd00::"] {
            for host in 0..16 {
                let host = if base.contains(':') { format!("{host:x}") } else { host.to_string() };
                let address = ip(&format!("{base}{host}"));
                let held = has(&own, address) || has(&now, address);
                let of = |n: usize| (has(&was[n], address) || has(&lost[n], address)) && (unread[n] || has(&named[n], address));
                let guarded = after.values().any(|nets| has(nets, address));
                prop_assert_eq!(held || guarded, held || of(0) || of(1), "{} {:?}", address, after);
            }
        }
        // Nobody's pods are cut off by a route of a longer prefix.
        let holders = || own.iter().chain(&now);
        prop_assert!(!after.values().flatten().any(|net| holders().any(|held| held.contains(net))), "{:?}", after);
    }
}
