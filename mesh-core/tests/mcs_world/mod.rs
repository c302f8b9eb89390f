//! Small cluster sets in which everything collides, for the tests of services of several clusters.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::mcs::{
    DerivedState, DnsLabel, Endpoint, Endpoints, Export, ExportedPort, ExportedService, Exports, Facts,
    InternalTrafficPolicy, Own, PortName, PortNumber, PortNumbers, ServiceKind, SessionAffinity,
    derived_name,
};
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use mesh_core::psk::ClusterName;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub(crate) const CLUSTERS: [&str; 4] = ["east", "north", "south", "west"];

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().expect("as written")
}

pub(crate) fn label(text: &str) -> DnsLabel {
    text.parse().expect("as written")
}

pub(crate) fn object(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn port_name() -> impl Strategy<Value = PortName> {
    option::weighted(0.8, select(vec!["http", "dns", "unnamed"]).prop_map(label))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp])
}

fn port() -> impl Strategy<Value = ExportedPort> {
    (
        port_name(),
        protocol(),
        option::weighted(0.2, Just("kubernetes.io/h2c".to_owned())),
        select(vec![53, 80, 81]),
    )
        .prop_map(|(name, protocol, app_protocol, port)| ExportedPort {
            name,
            protocol,
            app_protocol,
            port,
        })
}

/// As an API server would take them.
fn ports() -> impl Strategy<Value = Vec<ExportedPort>> {
    vec(port(), 0..4).prop_map(|all| {
        let mut kept: Vec<ExportedPort> = Vec::new();
        for port in all {
            let same =
                |o: &ExportedPort| o.name == port.name || (o.protocol, o.port) == (port.protocol, port.port);
            if !kept.iter().any(same) {
                kept.push(port);
            }
        }
        if kept.len() > 1 {
            kept.retain(|port| port.name.is_some());
        }
        kept
    })
}

fn families() -> impl Strategy<Value = Vec<Family>> {
    select(vec![
        vec![Family::V4],
        vec![Family::V6],
        vec![Family::V4, Family::V6],
        vec![Family::V6, Family::V4],
    ])
}

prop_compose! {
    fn service()(
        kind in select(vec![
            ServiceKind::ClusterIp, ServiceKind::ClusterIp, ServiceKind::ClusterIp, ServiceKind::NodePort,
            ServiceKind::LoadBalancer, ServiceKind::ExternalName, ServiceKind::Derived,
        ]),
        headless in prop::bool::weighted(0.3),
        ports in ports(),
        session_affinity in select(vec![
            SessionAffinity::None, SessionAffinity::None, SessionAffinity::ClientIp(10), SessionAffinity::ClientIp(20),
        ]),
        internal_traffic_policy in select(vec![InternalTrafficPolicy::Cluster, InternalTrafficPolicy::Local]),
        traffic_distribution in option::of(select(vec!["PreferClose", "PreferSameNode"]).prop_map(str::to_owned)),
        families in families(),
    ) -> ExportedService {
        ExportedService {
            kind, headless, ports, session_affinity, internal_traffic_policy, traffic_distribution, families,
        }
    }
}

prop_compose! {
    pub(crate) fn endpoint()(
        (ready, serving, terminating) in select(vec![
            (true, true, false), (true, true, false), (false, true, true), (false, false, true), (false, false, false),
        ]),
        hostname in option::of(select(vec!["web-0", "web-1"]).prop_map(label)),
        node in option::weighted(0.8, select(vec!["n1", "n2"]).prop_map(str::to_owned)),
        zone in option::weighted(0.8, select(vec!["z1", "z2"]).prop_map(str::to_owned)),
    ) -> Endpoint {
        Endpoint { ready, serving, terminating, hostname, node, zone }
    }
}

/// Mostly with every name, or next to no endpoint would be behind any port.
fn numbers() -> impl Strategy<Value = PortNumbers> {
    let number = || {
        (protocol(), select(vec![8080, 9090])).prop_map(|(protocol, number)| PortNumber { protocol, number })
    };
    let all = select(vec![8080, 9090]).prop_map(|number| {
        let names = [None, Some("http"), Some("dns"), Some("unnamed")];
        names.map(|name| (name.map(label), PortNumber { protocol: Protocol::Tcp, number })).into()
    });
    prop_oneof![3 => all, 1 => btree_map(port_name(), number(), 0..3)]
}

/// Addresses of a cluster: its own, and some that no host has.
fn address(cluster: usize) -> impl Strategy<Value = IpAddr> {
    (1..6_u8, prop::bool::weighted(0.4)).prop_map(move |(host, v6)| {
        let text =
            if v6 { format!("fd00:{}::{host}", cluster + 1) } else { format!("10.{}.0.{host}", cluster + 1) };
        text.parse().expect("as written")
    })
}

fn endpoints(cluster: usize) -> impl Strategy<Value = Endpoints> {
    btree_map(numbers(), btree_map(address(cluster), endpoint(), 0..5), 0..3)
}

fn labels(keys: &'static [&'static str]) -> impl Strategy<Value = BTreeMap<String, String>> {
    subsequence(keys, 0..2)
        .prop_map(|keys| keys.into_iter().map(|k| (k.to_owned(), "v".to_owned())).collect())
}

prop_compose! {
    fn export(cluster: usize)(
        created in 1_000..1_003_i64,
        labels in labels(&["team", "hawser.dev/x", "not a key"]),
        annotations in labels(&["note", "hawser.dev/y"]),
        service in option::weighted(0.95, service()),
        endpoints in endpoints(cluster),
    ) -> Export {
        Export { uid: format!("uid-{cluster}"), generation: 3, created, labels, annotations, service, endpoints }
    }
}

/// Exports of one name.
pub(crate) fn exports() -> impl Strategy<Value = Exports> {
    let some = |index: usize| option::weighted(0.7, export(index));
    (some(0), some(1), some(2), some(3)).prop_map(|(a, b, c, d)| {
        let all = [a, b, c, d].into_iter().enumerate();
        all.filter_map(|(index, export)| Some((cluster(CLUSTERS[index]), export?))).collect()
    })
}

pub(crate) fn own() -> impl Strategy<Value = Own> {
    let families = select(vec![vec![Family::V4], vec![Family::V6], vec![Family::V4, Family::V6]]);
    (select(&CLUSTERS[..]), families, any::<bool>(), subsequence(&CLUSTERS[..], 0..2)).prop_map(
        |(name, families, serving, silent)| Own {
            cluster: cluster(name),
            families: families.into_iter().collect(),
            serving,
            silent: silent.into_iter().filter(|s| *s != name).map(cluster).collect(),
        },
    )
}

fn derived(name: &'static str) -> impl Strategy<Value = Option<DerivedState>> {
    let ips = select(vec![vec![], vec!["10.96.0.9"], vec!["fd00:96::9"], vec!["10.96.0.9", "fd00:96::9"]]);
    let of = select(vec![Some(name), Some(name), Some("other"), None]);
    option::of((ips, of).prop_map(|(ips, of)| DerivedState {
        of: of.map(str::to_owned),
        cluster_ips: ips.into_iter().map(|ip| ip.parse().expect("as written")).collect(),
    }))
}

prop_compose! {
    pub(crate) fn facts()(
        own in own(),
        namespaces in subsequence(vec!["shop", "bank"], 1..=2),
        web in exports(),
        api in exports(),
        bank in exports(),
        derived in derived("web"),
    ) -> Facts {
        let exports = BTreeMap::from([
            (object("shop", "web"), web), (object("shop", "api"), api), (object("bank", "web"), bank),
        ]);
        let namespaces: BTreeSet<String> = namespaces.into_iter().map(str::to_owned).collect();
        let derived = derived.map(|state| (object("shop", &derived_name("web")), state));
        Facts { own, namespaces, exports, derived: derived.into_iter().collect() }
    }
}

/// An export with one endpoint and one TCP port; an empty name is none.
pub(crate) fn one_port(of: ClusterName, name: &str, port: u16) -> (ClusterName, Export) {
    let name: PortName = name.parse().ok();
    let endpoint = Endpoint {
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: Some("n1".to_owned()),
        zone: Some("z1".to_owned()),
    };
    let service = ExportedService {
        kind: ServiceKind::ClusterIp,
        headless: false,
        ports: vec![ExportedPort { name: name.clone(), protocol: Protocol::Tcp, app_protocol: None, port }],
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: None,
        families: vec![Family::V4, Family::V6],
    };
    let numbers = BTreeMap::from([(name, PortNumber { protocol: Protocol::Tcp, number: 8080 })]);
    let members = BTreeMap::from([("10.1.0.1".parse().expect("as written"), endpoint)]);
    let export = Export {
        uid: "u".to_owned(),
        generation: 1,
        created: 1_000,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        service: Some(service),
        endpoints: BTreeMap::from([(numbers, members)]),
    };
    (of, export)
}

/// A cluster set with one service, seen from `west`.
pub(crate) fn facts_of(name: &ObjectName, exports: impl IntoIterator<Item = (ClusterName, Export)>) -> Facts {
    Facts {
        own: Own {
            cluster: cluster("west"),
            families: Family::BOTH.into(),
            serving: true,
            silent: BTreeSet::new(),
        },
        namespaces: BTreeSet::from([name.namespace.clone()]),
        exports: BTreeMap::from([(name.clone(), exports.into_iter().collect())]),
        derived: BTreeMap::new(),
    }
}
