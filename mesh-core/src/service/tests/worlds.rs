//! Small worlds in which everything collides.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::object;
use super::oracle::World;
use crate::name::NodeName;
use crate::policy::model::{ObjectName, Protocol};
use crate::service::model::{
    ClientIpConfig, Conditions, EndpointFacts, EndpointSliceFacts, Hint, Hints, HostPortFacts,
    LoadBalancerIngress, LoadBalancerStatus, Meta, OwnNode, ServiceFacts, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig, SlicePort,
};

#[derive(Clone, Debug)]
pub(super) enum Change {
    Node(OwnNode),
    Addresses(NodeName, BTreeSet<IpAddr>),
    Service(ObjectName, Option<Box<ServiceFacts>>),
    Slice(ObjectName, Option<EndpointSliceFacts>),
    HostPorts(BTreeSet<HostPortFacts>),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Change(Change),
    Commit,
    Quiesce,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const CLUSTER_IPS: [&str; 6] =
    ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00:96::1", "fd00:96::2", "fd00:96::3"];
const OUTSIDE: [&str; 6] =
    ["198.51.100.1", "198.51.100.2", "10.96.0.1", "192.0.2.1", "2001:db8:1::1", "not an address"];
const NODES: [&str; 4] = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"];
const PORTS: [u16; 5] = [80, 81, 8080, 30_080, 30_081];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Every address, port and protocol that the worlds know.
pub(super) fn everything_said() -> Vec<(IpAddr, u16, Protocol)> {
    let texts: BTreeSet<&str> = [CLUSTER_IPS.as_slice(), &OUTSIDE, &NODES].concat().into_iter().collect();
    let mut all = Vec::new();
    for addr in texts.iter().filter_map(|text| text.parse().ok()) {
        for port in PORTS {
            all.extend(Protocol::ALL.map(|protocol| (addr, port, protocol)));
        }
    }
    all
}

fn text(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(of).prop_map(str::to_owned)
}

fn texts(of: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<String>> {
    subsequence(of, 0..=most).prop_shuffle().prop_map(|all| all.into_iter().map(str::to_owned).collect())
}

pub(super) fn own_node() -> impl Strategy<Value = OwnNode> {
    (any::<bool>(), proptest::option::of(select(&["z1", "z2"][..])), subsequence(&NODES[..], 0..=3)).prop_map(
        |(named, zone, addresses)| OwnNode {
            name: named.then(|| "n1".parse().unwrap()),
            zone: zone.map(str::to_owned),
            addresses: addresses.into_iter().map(ip).collect(),
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        },
    )
}

/// A world with nodes and nothing else.
pub(super) fn nodes() -> impl Strategy<Value = World> {
    own_node().prop_map(|own| World {
        own,
        nodes: NODES.iter().map(|text| ip(text)).collect(),
        ..World::default()
    })
}

fn port() -> impl Strategy<Value = ServicePort> {
    let number = prop_oneof![20 => select(vec![80_i64, 81, 8080]), 1 => Just(0), 1 => Just(65_616)];
    let node_port = select(vec![0_i64, 30_080, 30_081, 80, 8080]);
    let protocol =
        prop_oneof![10 => text(&PROTOCOLS), 1 => Just("QUIC".to_owned()), 1 => Just(String::new())];
    (text(&["p", "q"]), protocol, number, node_port)
        .prop_map(|(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port })
}

fn ranges() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        4 => Just(Vec::new()),
        3 => texts(&["10.0.0.0/8", "10.1.0.0/25", "192.0.2.0/24", " fd00::/8", "fd00:2::/64", "not a range"], 2),
    ]
}

prop_compose! {
    fn spec()(
        kind in text(&["ClusterIP", "", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"]),
        cluster_ips in prop_oneof![
            8 => texts(&CLUSTER_IPS, 2),
            1 => Just(vec!["None".to_owned()]),
            1 => Just(vec!["10.96.0.300".to_owned(), "fd00:96::1".to_owned()]),
        ],
        external_ips in texts(&OUTSIDE, 2),
        ports in proptest::collection::vec(port(), 0..4),
        affinity in text(&["None", "", "ClientIP", "Sticky"]),
        timeout_seconds in proptest::option::of(select(vec![5_i64, 0, 86_401])),
        internal in text(&["Cluster", "Local", ""]),
        external in text(&["Cluster", "Local", ""]),
        load_balancer_source_ranges in ranges(),
    ) -> ServiceSpec {
        ServiceSpec {
            kind,
            cluster_ip: cluster_ips.first().cloned().unwrap_or_default(),
            cluster_ips,
            external_ips,
            ports,
            session_affinity: affinity,
            session_affinity_config: SessionAffinityConfig { client_ip: ClientIpConfig { timeout_seconds } },
            internal_traffic_policy: internal,
            external_traffic_policy: external,
            traffic_distribution: "PreferClose".to_owned(),
            load_balancer_source_ranges,
        }
    }
}

fn labels() -> impl Strategy<Value = Meta> {
    let label = prop_oneof![
        12 => Just(None),
        1 => Just(Some("service.kubernetes.io/service-proxy-name")),
        1 => Just(Some("service.kubernetes.io/headless")),
    ];
    label
        .prop_map(|label| Meta { labels: label.map(|l| (l.to_owned(), String::new())).into_iter().collect() })
}

fn service() -> impl Strategy<Value = ServiceFacts> {
    let ingress = (text(&OUTSIDE), text(&["", "VIP", "Proxy"]));
    let ingress = proptest::collection::vec(ingress, 0..2);
    (labels(), spec(), ingress).prop_map(|(metadata, spec, ingress)| {
        let ingress = ingress.into_iter().map(|(ip, ip_mode)| LoadBalancerIngress { ip, ip_mode });
        let status = ServiceStatus { load_balancer: LoadBalancerStatus { ingress: ingress.collect() } };
        ServiceFacts { metadata, spec, status }
    })
}

fn hints() -> impl Strategy<Value = Hints> {
    let hint = |of: &'static [&'static str]| {
        let name = |names: Vec<String>| names.into_iter().map(|name| Hint { name }).collect::<Vec<_>>();
        prop_oneof![2 => texts(of, 2), 1 => Just(Vec::new())].prop_map(name)
    };
    prop_oneof![
        2 => Just(Hints::default()),
        1 => (hint(&["z1", "z2"]), hint(&["n1", "n2"])).prop_map(|(for_zones, for_nodes)| Hints { for_zones, for_nodes }),
    ]
}

fn endpoint(v4: bool) -> impl Strategy<Value = EndpointFacts> {
    let address = if v4 {
        text(&["10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2", "127.0.0.1", "fd00:1::1", ""])
    } else {
        text(&["fd00:1::1", "fd00:1::2", "fd00:2::1", "fe80::1", "10.1.0.1", "::ffff:10.1.0.1", "fd00:2::2"])
    };
    let flag = || select(vec![None, Some(true), Some(false)]);
    let conditions = prop_oneof![
        2 => Just(Conditions::default()),
        3 => (flag(), flag(), flag())
            .prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating }),
    ];
    let node = proptest::option::of(text(&["n1", "n2"]));
    (address, conditions, node, hints()).prop_map(|(address, conditions, node_name, hints)| EndpointFacts {
        addresses: vec![address, "10.9.9.9".to_owned()],
        conditions,
        node_name,
        zone: None,
        hints,
    })
}

fn slice_port() -> impl Strategy<Value = SlicePort> {
    (text(&["p", "q"]), text(&PROTOCOLS), proptest::option::of(select(vec![80_i64, 8080, 0, 70_000])))
        .prop_map(|(name, protocol, port)| SlicePort { name, protocol, port })
}

fn slice() -> impl Strategy<Value = EndpointSliceFacts> {
    select(&["IPv4", "IPv4", "IPv6", "FQDN"][..]).prop_flat_map(|address_type| {
        let ports = proptest::collection::vec(slice_port(), 0..3);
        let endpoints = proptest::collection::vec(endpoint(address_type != "IPv6"), 0..5);
        let remote = prop::bool::weighted(0.3);
        let all = (labels(), text(&NAMES), remote, ports, endpoints);
        all.prop_map(|(mut metadata, service, remote, ports, endpoints)| {
            metadata.labels.insert("kubernetes.io/service-name".to_owned(), service);
            if remote {
                metadata.labels.insert("hawser.dev/remote".to_owned(), String::new());
            }
            EndpointSliceFacts { metadata, address_type: address_type.to_owned(), ports, endpoints }
        })
    })
}

fn host_ports() -> impl Strategy<Value = BTreeSet<HostPortFacts>> {
    let host_ip = select(vec![
        None,
        Some("0.0.0.0"),
        Some("::"),
        Some("192.0.2.1"),
        Some("2001:db8::1"),
        Some("127.0.0.1"),
    ]);
    let pod_ips = subsequence(vec!["10.1.0.7", "fd00:1::7"], 1..=2);
    let numbers = (select(vec![80_u16, 81]), select(vec![80_u16, 8080]));
    let one = (text(&["a", "p"]), select(Protocol::ALL.to_vec()), numbers, host_ip, pod_ips).prop_map(
        |(pod, protocol, (host_port, container_port), host_ip, pod_ips)| HostPortFacts {
            pod: object(&pod),
            protocol,
            host_port,
            host_ip: host_ip.map(ip),
            pod_ips: pod_ips.into_iter().map(ip).collect(),
            container_port,
        },
    );
    proptest::collection::vec(one, 0..3).prop_map(|all| {
        // Two hostPorts of one pod at one address are refused by the API server.
        let mut seen = BTreeSet::new();
        all.into_iter().filter(|f| seen.insert((f.pod.clone(), f.protocol, f.host_port))).collect()
    })
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let name = || select(&NAMES[..]).prop_map(object);
    prop_oneof![
        6 => (name(), proptest::option::weighted(0.85, service().prop_map(Box::new))).prop_map(|(n, s)| Change::Service(n, s)),
        8 => (name(), proptest::option::weighted(0.85, slice())).prop_map(|(n, s)| Change::Slice(n, s)),
        1 => own_node().prop_map(Change::Node),
        3 => (select(&["n1", "n2", "n3"][..]), subsequence(&NODES[..], 0..=3))
            .prop_map(|(node, all)| Change::Addresses(node.parse().unwrap(), all.into_iter().map(ip).collect())),
        2 => host_ports().prop_map(Change::HostPorts),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        17 => change().prop_map(Step::Change),
        4 => Just(Step::Commit),
        2 => Just(Step::Quiesce),
    ]
}
