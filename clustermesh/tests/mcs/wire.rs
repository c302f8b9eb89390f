//! What clusters tell of exports, there and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use clustermesh::mcs::wire::{self, MAX_BACKENDS, WireRefusal};
use mesh_core::clusters::{
    Affinity, Backend, BackendPort, ClusterName, ExportedService, ServiceKind, ServicePort, TrafficPolicy,
};
use mesh_core::mcs::{Export, SessionAffinity};
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn east() -> ClusterName {
    "east".parse().unwrap()
}

fn web() -> ObjectName {
    ObjectName { namespace: "shop".into(), name: "web".into() }
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(Protocol::ALL.to_vec())
}

fn word(words: &[&str]) -> impl Strategy<Value = Option<String>> + use<> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    option::of(select(words))
}

prop_compose! {
    fn port()(
        name in word(&["http", "dns"]), protocol in protocol(), port in 1..4_u16,
        app_protocol in word(&["kubernetes.io/h2c"]),
    ) -> ServicePort {
        ServicePort { name: name.unwrap_or_default(), protocol, port, app_protocol }
    }
}

prop_compose! {
    pub(crate) fn service()(
        created in 0..3_i64,
        kind in select(vec![ServiceKind::ClusterSetIp, ServiceKind::ClusterSetIp, ServiceKind::Headless]),
        ports in vec(port(), 1..4),
        families in select(vec![vec![Family::V4], vec![Family::V6], vec![Family::V6, Family::V4]]),
        affinity in select(vec![Affinity::None, Affinity::ClientIp { seconds: 1 }, Affinity::ClientIp { seconds: 86_400 }]),
        internal_traffic_policy in select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]),
        traffic_distribution in word(&["PreferClose", "example.org/near"]),
        labels in btree_map("[a-c]", "[x-z]", 0..3),
        annotations in btree_map("[a-c]", ".{0,9}", 0..3),
    ) -> ExportedService {
        ExportedService {
            created, kind, ports, families, affinity, internal_traffic_policy, traffic_distribution, labels, annotations,
        }
    }
}

prop_compose! {
    fn backend_port()(name in word(&["http", "dns"]), protocol in protocol(), port in 1..4_u16) -> BackendPort {
        BackendPort { name: name.unwrap_or_default(), protocol, port }
    }
}

prop_compose! {
    pub(crate) fn backend()(
        (ready, serving, terminating) in select(vec![(true, true, false), (false, true, true), (false, false, false)]),
        hostname in word(&["web-0", "web-1"]),
        node in word(&["n1", "n2"]),
        zone in word(&["z1", "z2"]),
        ports in btree_set(backend_port(), 0..5),
    ) -> Backend {
        let node = node.map(|node| node.parse().unwrap());
        Backend { ready, serving, terminating, hostname, node, zone, ports }
    }
}

pub(crate) fn address(cluster: u8, host: u8, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:{cluster}::{host}") } else { format!("10.{cluster}.0.{host}") };
    text.parse().unwrap()
}

proptest! {
    #[test]
    fn a_service_that_is_told_is_read_as_it_was_meant(told in service()) {
        let export = wire::export(&east(), &web(), &told).unwrap();
        prop_assert_eq!(wire::tell_service(&export), Some(told));
    }

    #[test]
    fn backends_that_are_told_are_read_as_they_were_meant(
        told in btree_map((1..9_u8, any::<bool>()).prop_map(|(host, v6)| address(1, host, v6)), backend(), 0..6),
    ) {
        let mut refusals = Vec::new();
        let read = wire::endpoints(&east(), &web(), told.iter().map(|(at, one)| (*at, one)), &mut refusals);
        prop_assert_eq!(refusals, vec![]);
        let everywhere = ["10.0.0.0/8", "fd00::/16"].map(|cidr| cidr.parse().unwrap());
        let (again, outside) = wire::tell_backends(&read, &everywhere);
        prop_assert!(outside.is_empty());
        let again: BTreeMap<IpAddr, Backend> = again.into_iter().map(|(at, one)| (at, (*one).clone())).collect();
        prop_assert_eq!(again, told);
    }

    /// What is outside the pod CIDRs is told to nobody, whatever slices say.
    #[test]
    fn only_pods_are_told(
        told in btree_map((1..9_u8, 1..3_u8).prop_map(|(host, net)| address(net, host, false)), backend(), 0..6),
    ) {
        let read = wire::endpoints(&east(), &web(), told.iter().map(|(at, one)| (*at, one)), &mut Vec::new());
        let (kept, outside) = wire::tell_backends(&read, &["10.1.0.0/16".parse().unwrap()]);
        let all: BTreeSet<IpAddr> = kept.keys().copied().chain(outside.iter().copied()).collect();
        prop_assert_eq!(all, told.keys().copied().collect::<BTreeSet<_>>());
        prop_assert!(kept.keys().all(|at| at.to_string().starts_with("10.1.")));
    }
}

fn plain() -> ExportedService {
    ExportedService {
        created: 1,
        kind: ServiceKind::ClusterSetIp,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            app_protocol: None,
        }],
        families: vec![Family::V4],
        affinity: Affinity::None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

#[test]
fn what_no_api_server_would_take_is_refused_by_field() {
    fn check(field: &str, break_it: impl Fn(&mut ExportedService)) {
        let mut told = plain();
        break_it(&mut told);
        let refusal = *wire::export(&east(), &web(), &told).unwrap_err();
        let WireRefusal::Service { field: named, .. } = &refusal else { panic!("{refusal}") };
        assert_eq!(*named, field, "{refusal}");
        let text = refusal.to_string();
        assert!(text.contains("shop/web") && text.contains("east") && text.contains("wanted"), "{text}");
        assert!(text.len() < 400, "{text}");
    }
    check("affinity.seconds", |told| told.affinity = Affinity::ClientIp { seconds: 0 });
    check("affinity.seconds", |told| told.affinity = Affinity::ClientIp { seconds: 86_401 });
    check("trafficDistribution", |told| told.traffic_distribution = Some("x".repeat(318)));
    check("trafficDistribution", |told| told.traffic_distribution = Some(String::new()));
    check("labels", |told| drop(told.labels.insert("k".into(), "v".repeat(16 * 1024))));
    check("annotations", |told| drop(told.annotations.insert("k".into(), "v".repeat(256 * 1024))));
    check("ports", |told| told.ports = vec![told.ports[0].clone(); 100]);
    check("ports[].name", |told| told.ports[0].name = "Not A Label".into());
    check("ports[].port", |told| told.ports[0].port = 0);
    check("ports[].appProtocol", |told| told.ports[0].app_protocol = Some("x".repeat(318)));
    check("families", |told| told.families = vec![Family::V4, Family::V4]);
    check("families", |told| told.families.clear());
    let longest = |told: ExportedService| wire::export(&east(), &web(), &told).is_ok();
    assert!(longest(ExportedService { traffic_distribution: Some("x".repeat(317)), ..plain() }));
    let affinity = Affinity::ClientIp { seconds: 86_400 };
    let export: Export = wire::export(&east(), &web(), &ExportedService { affinity, ..plain() }).unwrap();
    assert_eq!(export.service.unwrap().session_affinity, SessionAffinity::ClientIp(86_400));
}

#[test]
fn a_backend_goes_without_what_is_wrong_of_it() {
    let port = |name: &str, port| BackendPort { name: name.into(), protocol: Protocol::Tcp, port };
    let told = Backend {
        ready: true,
        serving: true,
        terminating: false,
        hostname: Some("Web 0".into()),
        node: None,
        zone: Some("z".repeat(64)),
        ports: BTreeSet::from([port("http", 80), port("Not A Label", 81), port("dns", 0)]),
    };
    let mut refusals = Vec::new();
    let read = wire::endpoints(&east(), &web(), [(address(1, 1, false), &told)].into_iter(), &mut refusals);
    let fields: Vec<&str> = refusals
        .iter()
        .map(|refusal| match refusal {
            WireRefusal::Backend { field, .. } => *field,
            WireRefusal::Service { .. }
            | WireRefusal::TooManyServices { .. }
            | WireRefusal::TooManyBackends { .. } => panic!("{refusal}"),
        })
        .collect();
    assert_eq!(fields, ["hostname", "zone", "ports[].name", "ports[].port"]);
    let (numbers, members) = read.first_key_value().unwrap();
    assert_eq!((numbers.len(), members.len()), (1, 1));
    let facts = members.values().next().unwrap();
    assert_eq!((facts.hostname.as_ref(), facts.zone.as_ref(), facts.ready), (None, None, true));
}

#[test]
fn more_backends_than_are_taken_are_left_out_by_name_and_always_the_same() {
    let told = Backend {
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
        zone: None,
        ports: BTreeSet::new(),
    };
    let at = |index: usize| IpAddr::from((0x0a01_0000_u32 + u32::try_from(index).unwrap()).to_be_bytes());
    let mut refusals = Vec::new();
    let all = (0..MAX_BACKENDS + 3).map(|index| (at(index), &told));
    let read = wire::endpoints(&east(), &web(), all, &mut refusals);
    assert_eq!(read.values().map(BTreeMap::len).sum::<usize>(), MAX_BACKENDS);
    let [WireRefusal::TooManyBackends { left_out: 3, .. }] = refusals.as_slice() else {
        panic!("{refusals:?}")
    };
}
