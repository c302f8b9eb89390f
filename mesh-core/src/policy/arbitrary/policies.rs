//! Policies of both kinds, of all shapes.

use proptest::prelude::*;

use super::objects::{PORT_NAMES, PORTS, block, rarely, selector};
use crate::policy::model::{
    ClusterNetworkPolicySpec, ClusterPeer, ClusterPort, ClusterProtocol, ClusterProtocolPorts, ClusterRule,
    ClusterSubject, EgressRule, IngressRule, IpBlock, NamespacedPods, NetworkPolicySpec, PolicyPeer,
    PolicyPort, PortRange, PortRef,
};

/// Absent, empty or some: all three mean something.
fn list<T: std::fmt::Debug + Clone>(
    item: impl Strategy<Value = T> + 'static,
    most: usize,
) -> impl Strategy<Value = Option<Vec<T>>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Vec::new())),
        7 => prop::collection::vec(item, 1..=most).prop_map(Some),
    ]
}

/// `spec` of a NetworkPolicy.
pub fn network_policy() -> impl Strategy<Value = NetworkPolicySpec> {
    let types = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Vec::new())),
        6 => prop::sample::subsequence(vec!["Ingress", "Egress"], 1..=2)
            .prop_map(|all| Some(all.into_iter().map(str::to_owned).collect())),
        1 => Just(Some(vec!["Ingres".to_owned()])),
    ];
    let ingress = (list(peer(), 3), list(port(), 3)).prop_map(|(from, ports)| IngressRule { from, ports });
    let egress = (list(peer(), 3), list(port(), 3)).prop_map(|(to, ports)| EgressRule { to, ports });
    (selector(), types, list(ingress, 3), list(egress, 3)).prop_map(
        |(pod_selector, policy_types, ingress, egress)| NetworkPolicySpec {
            pod_selector,
            policy_types,
            ingress,
            egress,
        },
    )
}

fn ip_block() -> impl Strategy<Value = IpBlock> {
    (block(), prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(block(), 1..=2)])
        .prop_map(|(cidr, except)| IpBlock { cidr, except })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let pods = selector().prop_map(|s| PolicyPeer { pod_selector: Some(s), ..PolicyPeer::default() });
    let namespaces =
        selector().prop_map(|s| PolicyPeer { namespace_selector: Some(s), ..PolicyPeer::default() });
    let both = (selector(), selector()).prop_map(|(pods, namespaces)| PolicyPeer {
        pod_selector: Some(pods),
        namespace_selector: Some(namespaces),
        ip_block: None,
    });
    let blocks = ip_block().prop_map(|b| PolicyPeer { ip_block: Some(b), ..PolicyPeer::default() });
    let malformed = (prop::option::of(selector()), prop::option::of(selector()), ip_block()).prop_map(
        |(pod_selector, namespace_selector, block)| {
            let beside = pod_selector.is_some() || namespace_selector.is_some();
            PolicyPeer { pod_selector, namespace_selector, ip_block: beside.then_some(block) }
        },
    );
    rarely(prop_oneof![2 => pods, 2 => namespaces, 1 => both, 3 => blocks], malformed)
}

fn number() -> impl Strategy<Value = i64> {
    rarely(prop::sample::select(&PORTS[..]).prop_map(i64::from), prop::sample::select(vec![0_i64, -1, 65536]))
}

fn port_name() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => prop::sample::select(&PORT_NAMES[..]).prop_map(str::to_owned),
        1 => prop::sample::select(&["nobody", "80"][..]).prop_map(str::to_owned),
    ]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let protocol = prop_oneof![
        4 => Just(None),
        10 => prop::sample::select(&["TCP", "UDP", "SCTP"][..]).prop_map(|p| Some(p.to_owned())),
        1 => prop::sample::select(&["ICMP", "tcp", ""][..]).prop_map(|p| Some(p.to_owned())),
    ];
    let named = port_name().prop_map(|name| (Some(PortRef::Name(name)), None));
    let one = number().prop_map(|n| (Some(PortRef::Number(n)), None));
    // One in a few is the wrong way round, which is malformed.
    let range = (number(), number()).prop_map(|(a, b)| (Some(PortRef::Number(a)), Some(b)));
    let ordered = (number(), number()).prop_map(|(a, b)| (Some(PortRef::Number(a.min(b))), Some(a.max(b))));
    let odd =
        (prop::option::of(port_name()), number()).prop_map(|(n, end)| (n.map(PortRef::Name), Some(end)));
    let ports = prop_oneof![
        2 => Just((None, None)),
        4 => one,
        3 => named,
        4 => ordered,
        1 => range,
    ];
    (protocol, rarely(ports, odd)).prop_map(|(protocol, (port, end_port))| PolicyPort {
        protocol,
        port,
        end_port,
    })
}

/// `spec` of a ClusterNetworkPolicy.
pub fn cluster_policy() -> impl Strategy<Value = ClusterNetworkPolicySpec> {
    let tier = rarely(prop::sample::select(vec!["Admin", "Baseline"]), Just("Other"));
    let ingress = prop::collection::vec(rule(true), 0..=3);
    let egress = prop::collection::vec(rule(false), 0..=3);
    (tier, 0..=2_i64, subject(), ingress, egress).prop_map(|(tier, priority, subject, ingress, egress)| {
        ClusterNetworkPolicySpec { tier: tier.to_owned(), priority, subject, ingress, egress }
    })
}

fn namespaced_pods() -> impl Strategy<Value = NamespacedPods> {
    (selector(), selector())
        .prop_map(|(namespace_selector, pod_selector)| NamespacedPods { namespace_selector, pod_selector })
}

fn subject() -> impl Strategy<Value = ClusterSubject> {
    let namespaces = selector().prop_map(|s| ClusterSubject { namespaces: Some(s), pods: None });
    let pods = namespaced_pods().prop_map(|p| ClusterSubject { namespaces: None, pods: Some(p) });
    let both = (selector(), namespaced_pods())
        .prop_map(|(s, p)| ClusterSubject { namespaces: Some(s), pods: Some(p) });
    rarely(prop_oneof![namespaces, pods], prop_oneof![Just(ClusterSubject::default()), both])
}

fn rule(ingress: bool) -> impl Strategy<Value = ClusterRule> {
    let action = rarely(prop::sample::select(vec!["Accept", "Deny", "Deny", "Pass"]), Just("accept"));
    let peers = prop_oneof![
        1 => Just(Vec::new()),
        30 => prop::collection::vec(cluster_peer(ingress), 1..=3),
    ];
    let protocols = prop_oneof![
        30 => Just(None),
        1 => Just(Some(Vec::new())),
        40 => prop::collection::vec(cluster_protocol(), 1..=3).prop_map(Some),
    ];
    (action, peers, protocols).prop_map(move |(action, peers, protocols)| {
        let (from, to) = if ingress { (peers, Vec::new()) } else { (Vec::new(), peers) };
        ClusterRule { name: String::new(), action: action.to_owned(), from, to, protocols }
    })
}

fn cluster_peer(ingress: bool) -> impl Strategy<Value = ClusterPeer> {
    let namespaces = selector().prop_map(|s| ClusterPeer { namespaces: Some(s), ..ClusterPeer::default() });
    let pods = namespaced_pods().prop_map(|p| ClusterPeer { pods: Some(p), ..ClusterPeer::default() });
    let networks = prop::collection::vec(block(), 1..=2)
        .prop_map(|n| ClusterPeer { networks: Some(n), ..ClusterPeer::default() });
    let nodes = selector().prop_map(|s| ClusterPeer { nodes: Some(s), ..ClusterPeer::default() });
    let odd = prop_oneof![
        Just(ClusterPeer::default()),
        Just(ClusterPeer { domain_names: Some(vec!["example.com".to_owned()]), ..ClusterPeer::default() }),
        Just(ClusterPeer { networks: Some(Vec::new()), ..ClusterPeer::default() }),
        (selector(), selector()).prop_map(|(a, b)| ClusterPeer {
            namespaces: Some(a),
            nodes: Some(b),
            ..ClusterPeer::default()
        }),
    ];
    // Networks and nodes are malformed at ingress.
    let outside = if ingress { 0 } else { 20 };
    prop_oneof![
        20 => namespaces,
        20 => pods,
        outside + 1 => networks,
        outside / 2 + 1 => nodes,
        1 => odd,
    ]
}

fn cluster_protocol() -> impl Strategy<Value = ClusterProtocol> {
    let which =
        (prop::sample::select(&[0, 1, 2][..]), cluster_ports()).prop_map(|(which, ports)| match which {
            0 => ClusterProtocol { tcp: Some(ports), ..ClusterProtocol::default() },
            1 => ClusterProtocol { udp: Some(ports), ..ClusterProtocol::default() },
            _ => ClusterProtocol { sctp: Some(ports), ..ClusterProtocol::default() },
        });
    let named = port_name().prop_map(|name| ClusterProtocol {
        destination_named_port: Some(name),
        ..ClusterProtocol::default()
    });
    let odd = prop_oneof![
        Just(ClusterProtocol::default()),
        Just(ClusterProtocol { destination_named_port: Some(String::new()), ..ClusterProtocol::default() }),
        (cluster_ports(), cluster_ports()).prop_map(|(a, b)| ClusterProtocol {
            tcp: Some(a),
            udp: Some(b),
            ..ClusterProtocol::default()
        }),
    ];
    prop_oneof![60 => which, 20 => named, 1 => odd]
}

fn cluster_ports() -> impl Strategy<Value = ClusterProtocolPorts> {
    let one = number().prop_map(|n| ClusterPort { number: Some(n), range: None });
    let range = prop::sample::subsequence(PORTS.to_vec(), 2).prop_map(|ends| ClusterPort {
        number: None,
        range: Some(PortRange { start: i64::from(ends[0]), end: i64::from(ends[1]) }),
    });
    let odd = prop_oneof![
        Just(ClusterPort::default()),
        (number(), number()).prop_map(|(a, b)| ClusterPort {
            number: None,
            range: Some(PortRange { start: a.max(b), end: a.min(b) })
        }),
        number().prop_map(|n| ClusterPort { number: Some(n), range: Some(PortRange { start: 1, end: 2 }) }),
    ];
    let ports = prop_oneof![60 => one, 60 => range, 1 => odd];
    prop_oneof![1 => Just(None), 4 => ports.prop_map(Some)]
        .prop_map(|destination_port| ClusterProtocolPorts { destination_port })
}
