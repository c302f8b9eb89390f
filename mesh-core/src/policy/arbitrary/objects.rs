//! Labels, selectors, addresses, pods and nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::numbers::LABEL_CLUSTER;
use crate::policy::fixture::NAMESPACE_NAME;
use crate::policy::model::{
    LabelSelector, Labels, NamedPort, NamespaceFacts, NodePolicyFacts, PodFacts, Protocol, Requirement,
};

/// Pod CIDRs of random clusters.
pub(super) const GUARDED: [&str; 2] = ["10.1.0.0/16", "fd01::/32"];

const KEYS: [&str; 3] = ["k", "l", "m"];
const VALUES: [&str; 2] = ["0", "1"];
/// Names of ports.
pub(super) const PORT_NAMES: [&str; 3] = ["web", "dns", "sig"];
/// Ports at the ends of what has ends.
pub(super) const PORTS: [u16; 9] = [1, 53, 80, 81, 1023, 1024, 8080, 65534, 65535];

/// Once in fifty, what is wrong.
pub(super) fn rarely<T: std::fmt::Debug + Clone>(
    good: impl Strategy<Value = T> + 'static,
    bad: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![49 => good, 1 => bad]
}

/// Labels of anything.
pub fn labels() -> impl Strategy<Value = Labels> {
    let one = (prop::sample::select(&KEYS[..]), prop::sample::select(&VALUES[..]));
    prop::collection::vec(one, 0..=3)
        .prop_map(|all| all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// A selector, sometimes malformed.
pub fn selector() -> impl Strategy<Value = LabelSelector> {
    let few_labels = prop_oneof![2 => Just(Labels::new()), 3 => labels()];
    let expressions = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(requirement(), 1..=2),
    ];
    (few_labels, expressions)
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let names = (
        Just(NAMESPACE_NAME),
        prop::collection::btree_set(prop::sample::select(&super::NAMESPACES[..]), 1..=2),
    );
    let clusters = (
        Just(LABEL_CLUSTER),
        prop::collection::btree_set(prop::sample::select(&["west", "east"][..]), 1..=2),
    );
    let plain = (
        prop::sample::select(&KEYS[..]),
        prop::collection::btree_set(prop::sample::select(&VALUES[..]), 1..=2),
    );
    let with_values = (prop_oneof![3 => plain, 1 => names, 2 => clusters], prop::bool::ANY).prop_map(
        |((key, values), is_in)| Requirement {
            key: key.to_owned(),
            operator: if is_in { "In" } else { "NotIn" }.to_owned(),
            values: values.into_iter().map(str::to_owned).collect(),
        },
    );
    let keys = prop_oneof![6 => prop::sample::select(&KEYS[..]), 1 => Just(LABEL_CLUSTER)];
    let without = (keys, prop::bool::ANY).prop_map(|(key, exists)| Requirement {
        key: key.to_owned(),
        operator: if exists { "Exists" } else { "DoesNotExist" }.to_owned(),
        values: Vec::new(),
    });
    let malformed =
        prop::sample::select(vec![("In", 0), ("NotIn", 0), ("Exists", 1), ("DoesNotExist", 1), ("Gt", 1)])
            .prop_map(|(operator, values)| Requirement {
                key: KEYS[0].to_owned(),
                operator: operator.to_owned(),
                values: vec![VALUES[0].to_owned(); values],
            });
    rarely(prop_oneof![2 => with_values, 1 => without], malformed)
}

/// An address that somebody might have: a pod, a node, or nobody of the cluster.
pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![6 => pod_address(), 2 => node_address(), 1 => world_address()]
}

fn pod_address() -> impl Strategy<Value = IpAddr> {
    (prop::bool::weighted(0.6), 0..=1_u8, 1..=12_u8).prop_map(|(ipv4, node, host)| {
        if ipv4 {
            IpAddr::from(Ipv4Addr::new(10, 1, node, host))
        } else {
            IpAddr::from(Ipv6Addr::new(0xfd01, 0, 0, u16::from(node), 0, 0, 0, u16::from(host)))
        }
    })
}

fn node_address() -> impl Strategy<Value = IpAddr> {
    (prop::bool::weighted(0.6), 1..=4_u8).prop_map(|(ipv4, host)| {
        if ipv4 {
            IpAddr::from(Ipv4Addr::new(192, 0, 2, host))
        } else {
            IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(host)))
        }
    })
}

fn world_address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&["203.0.113.7", "203.0.113.200", "8.8.8.8", "2001:db8::7", "2001:db8:ffff::1"][..])
        .prop_map(|text| text.parse().expect("these are addresses"))
}

/// A block around an address, which cuts through whatever is near; sometimes no CIDR at all.
pub fn block() -> impl Strategy<Value = String> {
    let bits = prop::sample::select(&[0_u8, 1, 2, 3, 4, 5, 8, 16, 24, 32][..]);
    let good = (address(), bits, prop::bool::weighted(0.9)).prop_map(|(address, host_bits, truncate)| {
        let length = if address.is_ipv4() { 32 - host_bits } else { 128 - 4 * host_bits };
        let net = ipnet::IpNet::new(address, length).expect("no longer than an address");
        if truncate { net.trunc().to_string() } else { net.to_string() }
    });
    let bad = prop::sample::select(
        &["10.1.0.0/33", "10.1.0.1", "", "10.1.0.0/x", "fd01::/129", "010.1.0.0/16"][..],
    );
    // Addresses of IPv4 in IPv6's clothes are IPv6, and nobody has them.
    let mapped = Just("::ffff:10.1.0.0/112".to_owned());
    prop_oneof![60 => good, 1 => bad.prop_map(str::to_owned), 1 => mapped]
}

/// A namespace; its name is added by [`named_namespace`].
pub fn namespace() -> impl Strategy<Value = NamespaceFacts> {
    (labels(), prop::bool::weighted(0.1)).prop_map(|(labels, audit)| NamespaceFacts { labels, audit })
}

pub(super) fn named_namespace(name: &str, mut facts: NamespaceFacts) -> NamespaceFacts {
    let (own, cluster) = name.split_once('@').unwrap_or((name, "west"));
    facts.labels.insert(NAMESPACE_NAME.to_owned(), own.to_owned());
    facts.labels.insert(LABEL_CLUSTER.to_owned(), cluster.to_owned());
    facts
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&Protocol::ALL[..])
}

/// A pod with at most one address of each family.
pub fn pod() -> impl Strategy<Value = PodFacts> {
    let port = (prop::sample::select(&PORT_NAMES[..]), protocol(), prop::sample::select(&PORTS[..]))
        .prop_map(|(name, protocol, port)| NamedPort { name: name.to_owned(), protocol, port });
    // Hardly ever an address that no pod should have.
    let one = prop_oneof![30 => pod_address(), 1 => address()];
    (labels(), prop::collection::vec(one, 0..=2), prop::collection::btree_set(port, 0..=3)).prop_map(
        |(labels, mut ips, ports)| {
            if let [first, second] = ips.as_slice()
                && first.is_ipv4() == second.is_ipv4()
            {
                ips.truncate(1);
            }
            PodFacts { labels, ips: ips.into_iter().collect(), ports }
        },
    )
}

/// A node with InternalIPs and perhaps a mesh address.
pub fn node() -> impl Strategy<Value = NodePolicyFacts> {
    let one = prop_oneof![12 => node_address(), 1 => pod_address()];
    (labels(), prop::collection::btree_set(one, 0..=3))
        .prop_map(|(labels, ips)| NodePolicyFacts { labels, ips })
}
