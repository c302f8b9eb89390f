//! Random clusters, one event after another: small enough that everything meets everything.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use crate::name::NodeName;
use crate::policy::compile::Compiler;
use crate::policy::model::*;

/// What is told to a compiler.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Pod(ObjectName, Option<PodFacts>),
    Namespace(String, Option<NamespaceFacts>),
    Node(NodeName, Option<NodePolicyFacts>),
    Network(ObjectName, Option<NetworkPolicySpec>),
    Cluster(String, Option<ClusterNetworkPolicySpec>),
    Subjects(BTreeSet<ObjectName>),
    Forget(IpAddr),
    Commit,
}

/// Everything that stands after some events, told at once.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) facts: PolicyFacts,
    pub(super) subjects: BTreeSet<ObjectName>,
}

pub(super) fn guarded() -> Vec<IpNet> {
    ["10.0.0.0/28", "fd00::/124"].map(|text| text.parse().unwrap()).to_vec()
}

/// Addresses of every kind: pods', nodes', free ones inside and outside of guarded prefixes and of blocks.
pub(super) fn addresses() -> Vec<IpAddr> {
    let texts = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.9",
        "10.0.0.15",
        "10.0.1.1",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.9",
        "8.8.8.8",
        "fd00::1",
        "fd00::2",
        "fd00::9",
        "2001:db8::1",
        "2001:db8::9",
    ];
    texts.map(|text| text.parse().unwrap()).to_vec()
}

/// (protocol, port): borders of the ranges below, and protocols without ports.
pub(super) fn ports() -> Vec<(u8, Option<u16>)> {
    let mut all = vec![(1, None), (58, None), (47, None)];
    for protocol in Protocol::ALL {
        for port in [1, 79, 80, 81, 82, 90, 91, 443, 1023, 1024, 8080, 65535] {
            all.push((protocol.number(), Some(port)));
        }
    }
    all
}

pub(super) fn pod_names() -> Vec<ObjectName> {
    let mut all = Vec::new();
    for namespace in ["x", "y", "z"] {
        for name in ["a", "b", "c"] {
            all.push(ObjectName { namespace: namespace.into(), name: name.into() });
        }
    }
    all
}

impl World {
    pub(super) fn note(&mut self, event: &Event) {
        fn set<K: Ord + Clone, V: Clone>(
            map: &mut std::collections::BTreeMap<K, V>,
            key: &K,
            value: &Option<V>,
        ) {
            match value {
                Some(value) => drop(map.insert(key.clone(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        match event {
            Event::Pod(name, facts) => set(&mut self.facts.pods, name, facts),
            Event::Namespace(name, facts) => set(&mut self.facts.namespaces, name, facts),
            Event::Node(name, facts) => set(&mut self.facts.nodes, name, facts),
            Event::Network(name, spec) => set(&mut self.facts.network_policies, name, spec),
            Event::Cluster(name, spec) => set(&mut self.facts.cluster_policies, name, spec),
            Event::Subjects(subjects) => self.subjects = subjects.clone(),
            Event::Forget(_) | Event::Commit => {}
        }
    }

    pub(super) fn compile(&self) -> Compiler {
        let mut compiler = Compiler::new(guarded());
        let facts = self.facts.clone();
        compiler.set_subjects(self.subjects.clone());
        facts
            .cluster_policies
            .into_iter()
            .for_each(|(name, spec)| compiler.set_cluster_policy(name, Some(spec)));
        facts
            .network_policies
            .into_iter()
            .for_each(|(name, spec)| compiler.set_network_policy(name, Some(spec)));
        facts.nodes.into_iter().for_each(|(name, facts)| compiler.set_node(name, Some(facts)));
        facts.pods.into_iter().for_each(|(name, facts)| compiler.set_pod(name, Some(facts)));
        facts.namespaces.into_iter().for_each(|(name, facts)| compiler.set_namespace(name, Some(facts)));
        compiler.commit();
        compiler
    }
}

pub(super) fn tell(compiler: &mut Compiler, event: &Event) {
    match event.clone() {
        Event::Pod(name, facts) => compiler.set_pod(name, facts),
        Event::Namespace(name, facts) => compiler.set_namespace(name, facts),
        Event::Node(name, facts) => compiler.set_node(name, facts),
        Event::Network(name, spec) => compiler.set_network_policy(name, spec),
        Event::Cluster(name, spec) => compiler.set_cluster_policy(name, spec),
        Event::Subjects(subjects) => compiler.set_subjects(subjects),
        Event::Forget(address) => compiler.forget(address),
        Event::Commit => {}
    }
}

fn text(all: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(all).prop_map(str::to_owned)
}

fn labels() -> impl Strategy<Value = Labels> + Clone {
    proptest::collection::btree_map(text(&["k", "l"]), text(&["1", "2"]), 0..3)
}

fn selector() -> impl Strategy<Value = LabelSelector> + Clone {
    let operator = select(&["In", "NotIn", "Exists", "DoesNotExist", "Near"][..]);
    let values = vec(text(&["1", "2"]), 0..3);
    let requirement = (text(&["k", "l"]), operator, values).prop_map(|(key, operator, values)| {
        let bare = operator.contains("xist");
        Requirement { key, operator: operator.to_owned(), values: if bare { Vec::new() } else { values } }
    });
    (labels(), prop_oneof![3 => Just(Vec::new()), 2 => vec(requirement, 1..3)])
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn namespaced() -> impl Strategy<Value = NamespacedPods> + Clone {
    (selector(), selector())
        .prop_map(|(namespace_selector, pod_selector)| NamespacedPods { namespace_selector, pod_selector })
}

const CIDRS: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.0/31",
    "8.8.8.8/32",
    "::/0",
    "fd00::/126",
    "2001:db8::/32",
    "::ffff:0:0/96",
    "::ffff:10.0.0.0/126",
    "10.0.0.0/33",
];

fn block() -> impl Strategy<Value = IpBlock> + Clone {
    (text(CIDRS), vec(text(CIDRS), 0..2)).prop_map(|(cidr, except)| IpBlock { cidr, except })
}

fn policy_peer() -> impl Strategy<Value = PolicyPeer> + Clone {
    prop_oneof![
        3 => (of(selector()), of(selector())).prop_map(|(pod_selector, namespace_selector)| PolicyPeer {
            pod_selector,
            namespace_selector,
            ip_block: None
        }),
        2 => block().prop_map(|block| PolicyPeer { ip_block: Some(block), ..PolicyPeer::default() }),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> + Clone {
    let number = select(&[80_i64, 81, 443, 1024, 8080, 0][..]);
    let port = prop_oneof![
        4 => number.prop_map(PortRef::Number),
        2 => text(&["web", "dns"]).prop_map(PortRef::Name),
    ];
    let protocol = of(text(&["TCP", "UDP", "SCTP", "ICMP"]));
    let end = prop_oneof![3 => Just(None), 1 => select(&[79_i64, 90, 65_535, 70_000][..]).prop_map(Some)];
    (protocol, of(port), end).prop_map(|(protocol, port, end_port)| PolicyPort { protocol, port, end_port })
}

fn network_policy() -> impl Strategy<Value = NetworkPolicySpec> {
    let rule = || (of(vec(policy_peer(), 0..3)), of(vec(policy_port(), 0..3)));
    let ingress = rule().prop_map(|(from, ports)| IngressRule { from, ports });
    let egress = rule().prop_map(|(to, ports)| EgressRule { to, ports });
    let types = of(vec(text(&["Ingress", "Egress", "Both"]), 0..3));
    (selector(), types, of(vec(ingress, 0..3)), of(vec(egress, 0..3))).prop_map(
        |(pod_selector, policy_types, ingress, egress)| NetworkPolicySpec {
            pod_selector,
            policy_types,
            ingress,
            egress,
        },
    )
}

fn cluster_peer() -> impl Strategy<Value = ClusterPeer> + Clone {
    prop_oneof![
        4 => selector().prop_map(|s| ClusterPeer { namespaces: Some(s), ..ClusterPeer::default() }),
        4 => namespaced().prop_map(|p| ClusterPeer { pods: Some(p), ..ClusterPeer::default() }),
        3 => vec(text(CIDRS), 0..3).prop_map(|n| ClusterPeer { networks: Some(n), ..ClusterPeer::default() }),
        2 => selector().prop_map(|s| ClusterPeer { nodes: Some(s), ..ClusterPeer::default() }),
        1 => Just(ClusterPeer { domain_names: Some(vec!["example.org".into()]), ..ClusterPeer::default() }),
    ]
}

fn cluster_protocol() -> impl Strategy<Value = ClusterProtocol> + Clone {
    let number = select(&[80_i64, 443, 8080, 0][..]);
    let range = select(&[(80_i64, 90_i64), (1, 65_535), (1_024, 8_080), (90, 80)][..]);
    let port = prop_oneof![
        3 => number.prop_map(|n| ClusterPort { number: Some(n), range: None }),
        2 => range.prop_map(|(start, end)| ClusterPort { number: None, range: Some(PortRange { start, end }) }),
    ];
    let ports = of(port).prop_map(|destination_port| ClusterProtocolPorts { destination_port });
    let name = text(&["web", "dns"]);
    prop_oneof![
        3 => ports.clone().prop_map(|p| ClusterProtocol { tcp: Some(p), ..ClusterProtocol::default() }),
        2 => ports.clone().prop_map(|p| ClusterProtocol { udp: Some(p), ..ClusterProtocol::default() }),
        1 => ports.prop_map(|p| ClusterProtocol { sctp: Some(p), ..ClusterProtocol::default() }),
        2 => name.prop_map(|n| ClusterProtocol { destination_named_port: Some(n), ..ClusterProtocol::default() }),
    ]
}

fn cluster_rule() -> impl Strategy<Value = ClusterRule> + Clone {
    let action = prop_oneof![12 => text(&["Accept", "Deny", "Pass"]), 1 => Just("Log".to_owned())];
    let protocols = prop_oneof![2 => Just(None), 3 => vec(cluster_protocol(), 0..3).prop_map(Some)];
    let peers = vec(cluster_peer(), 0..3);
    (action, peers.clone(), peers, protocols).prop_map(|(action, from, to, protocols)| ClusterRule {
        name: String::new(),
        action,
        from,
        to,
        protocols,
    })
}

fn cluster_policy() -> impl Strategy<Value = ClusterNetworkPolicySpec> {
    let subject = prop_oneof![
        3 => selector().prop_map(|s| ClusterSubject { namespaces: Some(s), pods: None }),
        3 => namespaced().prop_map(|p| ClusterSubject { namespaces: None, pods: Some(p) }),
        1 => Just(ClusterSubject::default()),
    ];
    (
        text(&["Admin", "Baseline", "Other"]),
        0_i64..3,
        subject,
        vec(cluster_rule(), 0..3),
        vec(cluster_rule(), 0..3),
    )
        .prop_map(|(tier, priority, subject, ingress, egress)| ClusterNetworkPolicySpec {
            tier,
            priority,
            subject,
            ingress,
            egress,
        })
}

fn pod() -> impl Strategy<Value = PodFacts> {
    let ips = btree_set(select(addresses()), 0..3);
    let named = (text(&["web", "dns"]), select(&Protocol::ALL[..]), select(&[80_u16, 81, 443, 8080][..]))
        .prop_map(|(name, protocol, port)| NamedPort { name, protocol, port });
    (labels(), ips, btree_set(named, 0..3)).prop_map(|(labels, ips, ports)| PodFacts { labels, ips, ports })
}

fn object() -> impl Strategy<Value = ObjectName> {
    select(pod_names())
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let node = (labels(), btree_set(select(addresses()), 0..2))
        .prop_map(|(labels, ips)| NodePolicyFacts { labels, ips });
    let node_name = text(&["n1", "n2"]).prop_map(|name| name.parse::<NodeName>().unwrap());
    let namespace = (labels(), any::<bool>()).prop_map(|(labels, audit)| NamespaceFacts { labels, audit });
    let mostly = |strategy: BoxedStrategy<PodFacts>| proptest::option::weighted(0.8, strategy);
    prop_oneof![
        8 => (object(), mostly(pod().boxed())).prop_map(|(name, facts)| Event::Pod(name, facts)),
        4 => (text(&["x", "y", "z"]), proptest::option::weighted(0.9, namespace))
            .prop_map(|(name, facts)| Event::Namespace(name, facts)),
        2 => (node_name, proptest::option::weighted(0.8, node)).prop_map(|(name, facts)| Event::Node(name, facts)),
        5 => (object(), proptest::option::weighted(0.8, network_policy()))
            .prop_map(|(name, spec)| Event::Network(name, spec)),
        4 => (text(&["c1", "c2", "c3"]), proptest::option::weighted(0.8, cluster_policy()))
            .prop_map(|(name, spec)| Event::Cluster(name, spec)),
        2 => btree_set(object(), 0..7).prop_map(Event::Subjects),
        1 => select(addresses()).prop_map(Event::Forget),
        6 => Just(Event::Commit),
    ]
}

/// A cluster to begin with, and what happens then.
pub(super) fn events() -> impl Strategy<Value = Vec<Event>> {
    let names = [("x", "1"), ("y", "2"), ("z", "2")];
    let namespaces = names.map(|(name, value)| {
        let labels = Labels::from([("k".to_owned(), value.to_owned())]);
        Event::Namespace(name.to_owned(), Some(NamespaceFacts { labels, audit: false }))
    });
    let subjects = Event::Subjects(pod_names().into_iter().step_by(2).collect());
    let begin: Vec<_> = namespaces.into_iter().chain([subjects]).collect();
    vec(event(), 1..60).prop_map(move |events| begin.iter().cloned().chain(events).collect())
}
