//! `clusterset.local`, against an oracle that writes down every record of the specification and looks it up.

mod mcs_world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mcs_world::{cluster, facts, label, object};
use mesh_core::mcs::names::{Answer, Data, MAX_NAMED, RecordKind, TTL, ZONE, Zone};
use mesh_core::mcs::{
    Decision, Endpoint, Export, ExportedService, Facts, ImportKind, InternalTrafficPolicy, Own, PortNumber,
    ServiceKind, SessionAffinity, decide,
};
use mesh_core::policy::model::Protocol;
use mesh_core::prefix::Family;
use proptest::prelude::*;
use proptest::sample::select;

/// Every record, as text: name, kind, data.
#[derive(Default, Debug)]
struct Written {
    records: BTreeSet<(String, RecordKind, String)>,
    /// Names that are there, records or not.
    names: BTreeSet<String>,
}

impl Written {
    fn write(&mut self, name: &str, kind: RecordKind, data: String) {
        self.records.insert((name.to_owned(), kind, data));
    }

    fn address(&mut self, name: &str, address: IpAddr) {
        let kind = if address.is_ipv4() { RecordKind::A } else { RecordKind::Aaaa };
        self.write(name, kind, address.to_string());
    }

    /// All of the specification, section by section, from what was decided.
    fn of(facts: &Facts) -> Self {
        let mut all = Self::default();
        all.write("dns-version.clusterset.local", RecordKind::Txt, "1.0.0".to_owned());
        all.write("clusterset.local", RecordKind::Soa, String::new());
        for (name, decision) in &decide(facts).0.services {
            let Some(import) = &decision.import else { continue };
            let service = format!("{}.{}.svc.clusterset.local", name.name, name.namespace);
            if import.kind == ImportKind::ClusterSetIp {
                all.names.insert(service.clone());
                import.ips.iter().for_each(|ip| all.address(&service, *ip));
                for port in import.ports.iter().filter(|port| !port.unnamed) {
                    let proto = port.protocol.name().to_lowercase();
                    let owner = format!("_{}._{proto}.{service}", port.name.as_ref().expect("as written"));
                    let data = format!("{} {service}.", port.port);
                    all.write(&owner, RecordKind::Srv, data.clone());
                    all.write(&service, RecordKind::Srv, data);
                }
                continue;
            }
            for slice in decision.slices.values() {
                for (address, endpoint) in slice.endpoints.iter().filter(|(_, e)| e.ready) {
                    let id = address.to_string().replace(['.', ':'], "-");
                    let host = endpoint.hostname.as_ref().map_or(id, ToString::to_string);
                    let host = format!("{host}.{}.{service}", slice.source);
                    all.address(&service, *address);
                    all.address(&host, *address);
                    for port in &slice.ports {
                        let unnamed = import.ports.iter().any(|p| p.name == port.name && p.unnamed);
                        let Some(port_name) = port.name.as_ref().filter(|_| !unnamed) else { continue };
                        let proto = port.protocol.name().to_lowercase();
                        let data = format!("{} {host}.", port.port);
                        all.write(&format!("_{port_name}._{proto}.{service}"), RecordKind::Srv, data.clone());
                        all.write(&service, RecordKind::Srv, data);
                    }
                }
            }
        }
        all
    }

    /// None: no such name.
    fn look_up(&self, name: &str, kind: RecordKind) -> Option<BTreeSet<String>> {
        let beneath = |other: &str| other == name || other.ends_with(&format!(".{name}"));
        let there = self.records.iter().any(|(other, _, _)| beneath(other));
        let named = self.names.iter().any(|other| beneath(other));
        let found = self.records.iter().filter(|(other, of, _)| other == name && *of == kind);
        (there || named).then(|| found.map(|(_, _, data)| data.clone()).collect())
    }
}

fn text(data: &Data) -> String {
    match data {
        Data::A(v4) => v4.to_string(),
        Data::Aaaa(v6) => v6.to_string(),
        Data::Srv { port, target, .. } => format!("{port} {target}"),
        Data::Txt(text) => text.clone(),
        Data::Soa { .. } => String::new(),
    }
}

fn zone(facts: &Facts) -> Zone {
    let mut zone = Zone::new();
    for (name, decision) in &decide(facts).0.services {
        zone.set(name, decision);
    }
    zone
}

fn ask(zone: &Zone, name: &str, kind: RecordKind) -> Answer {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    zone.answer(&labels, kind)
}

fn found(answer: &Answer) -> Option<BTreeSet<String>> {
    match answer {
        Answer::NxDomain(_) => None,
        Answer::NoData(_) => Some(BTreeSet::new()),
        Answer::Found { answers, .. } => Some(answers.iter().map(|record| text(&record.data)).collect()),
        Answer::Refused => panic!("refused"),
    }
}

const KINDS: [RecordKind; 6] =
    [RecordKind::A, RecordKind::Aaaa, RecordKind::Srv, RecordKind::Txt, RecordKind::Soa, RecordKind::Other];

/// All names that are written, all above them, and some that are nearly there.
fn questions(written: &Written) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = written.records.iter().map(|(name, _, _)| name.clone()).collect();
    all.extend(written.names.iter().cloned());
    for name in all.clone() {
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.').filter(|(_, p)| p.ends_with(ZONE)) {
            all.insert(parent.to_owned());
            rest = parent;
        }
        all.extend([format!("x.{name}"), format!("_x.{name}"), format!("_tcp.{name}")]);
    }
    for name in ["web.shop", "east.web.shop", "web-0.west.api.shop", "_http._tcp.web.bank", "web.nowhere"] {
        all.insert(format!("{name}.svc.{ZONE}"));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_question_is_answered_as_the_specification_says(facts in facts(), shout in any::<bool>()) {
        let written = Written::of(&facts);
        let zone = zone(&facts);
        for name in questions(&written) {
            for kind in KINDS {
                let asked = if shout { name.to_uppercase() } else { name.clone() };
                let answer = ask(&zone, &asked, kind);
                prop_assert_eq!(found(&answer), written.look_up(&name, kind), "{} {:?}", name, kind);
                if let Answer::Found { answers, additional } = answer {
                    let own = format!("{name}.");
                    prop_assert!(answers.iter().all(|record| record.name == own));
                    for record in additional {
                        let owner = record.name.trim_end_matches('.').to_owned();
                        let kind = if matches!(record.data, Data::A(_)) { RecordKind::A } else { RecordKind::Aaaa };
                        let told = written.look_up(&owner, kind).unwrap_or_default();
                        prop_assert!(told.contains(&text(&record.data)));
                    }
                }
            }
            let any = found(&ask(&zone, &name, RecordKind::Any));
            let one_kind = KINDS.iter().map(|kind| written.look_up(&name, *kind));
            prop_assert!(one_kind.clone().any(|of_kind| of_kind == any), "{}: {:?}", name, any);
        }
    }

    #[test]
    fn a_zone_that_lived_is_as_one_made_anew(before in facts(), after in facts()) {
        let mut lived = zone(&before);
        let plan = decide(&after).0;
        for name in before.exports.keys().chain(after.exports.keys()) {
            lived.set(name, plan.services.get(name).unwrap_or(&Decision::default()));
        }
        let fresh = zone(&after);
        for name in questions(&Written::of(&before)).into_iter().chain(questions(&Written::of(&after))) {
            for kind in [RecordKind::A, RecordKind::Aaaa, RecordKind::Srv] {
                prop_assert_eq!(found(&ask(&lived, &name, kind)), found(&ask(&fresh, &name, kind)));
            }
        }
    }

    #[test]
    fn nothing_outside_the_zone_is_answered(
        labels in proptest::collection::vec(
            select(vec!["web", "shop", "svc", "clusterset", "local", "cluster", "", "a.b", "clusterset.local"]), 0..6,
        ),
        kind in select(KINDS.to_vec()),
    ) {
        let bytes: Vec<&[u8]> = labels.iter().map(|label| label.as_bytes()).collect();
        let inside = labels.ends_with(&["clusterset", "local"]);
        prop_assert_eq!(Zone::new().answer(&bytes, kind) != Answer::Refused, inside);
    }
}

/// A headless service of one cluster.
fn headless(hosts: &[(&str, Option<&str>)], cluster_name: &str) -> Facts {
    let service = ExportedService {
        kind: ServiceKind::ClusterIp,
        headless: true,
        ports: vec![mesh_core::mcs::ExportedPort {
            name: Some(label("peer")),
            protocol: Protocol::Tcp,
            app_protocol: None,
            port: 2380,
        }],
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: None,
        families: Family::BOTH.to_vec(),
    };
    let numbers =
        BTreeMap::from([(Some(label("peer")), PortNumber { protocol: Protocol::Tcp, number: 12_380 })]);
    let members = hosts.iter().map(|(address, hostname)| {
        let endpoint = Endpoint {
            ready: true,
            serving: true,
            terminating: false,
            hostname: hostname.map(label),
            node: None,
            zone: None,
        };
        (address.parse::<IpAddr>().expect("as written"), endpoint)
    });
    let export = Export {
        uid: "u".to_owned(),
        generation: 1,
        created: 1,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        service: Some(service),
        endpoints: BTreeMap::from([(numbers, members.collect())]),
    };
    Facts {
        own: Own {
            cluster: cluster("west"),
            families: Family::BOTH.into(),
            serving: true,
            silent: BTreeSet::new(),
        },
        namespaces: BTreeSet::from(["db".to_owned()]),
        exports: BTreeMap::from([(object("db", "etcd"), BTreeMap::from([(cluster(cluster_name), export)]))]),
        derived: BTreeMap::new(),
    }
}

#[test]
fn a_stateful_set_is_found_by_its_ports_and_by_its_pods() {
    let facts =
        headless(&[("10.1.0.1", Some("etcd-0")), ("fd00:1::1", Some("etcd-0")), ("10.1.0.2", None)], "east");
    let zone = zone(&facts);
    let answer = ask(&zone, "_peer._tcp.etcd.db.svc.clusterset.local", RecordKind::Srv);
    let Answer::Found { answers, additional } = answer else { panic!("{answer:?}") };
    let expected = [
        "12380 10-1-0-2.east.etcd.db.svc.clusterset.local.",
        "12380 etcd-0.east.etcd.db.svc.clusterset.local.",
    ];
    assert_eq!(answers.iter().map(|r| text(&r.data)).collect::<Vec<_>>(), expected);
    assert!(answers.iter().all(|record| record.ttl == TTL));
    assert_eq!(additional.len(), 3);
    let pod = ask(&zone, "etcd-0.east.etcd.db.svc.clusterset.local", RecordKind::Aaaa);
    assert_eq!(found(&pod), Some(BTreeSet::from(["fd00:1::1".to_owned()])));
    // The form that is reserved has no records, and denies nothing beneath it.
    let reserved = ask(&zone, "east.etcd.db.svc.clusterset.local", RecordKind::A);
    assert!(matches!(reserved, Answer::NoData(_)), "{reserved:?}");
    let other = ask(&zone, "west.etcd.db.svc.clusterset.local", RecordKind::A);
    assert!(matches!(other, Answer::NxDomain(_)), "{other:?}");
}

#[test]
fn without_ready_endpoints_there_is_no_name() {
    let zone = zone(&headless(&[], "east"));
    let answer = ask(&zone, "etcd.db.svc.clusterset.local", RecordKind::A);
    assert!(matches!(answer, Answer::NxDomain(_)), "{answer:?}");
}

#[test]
fn of_too_many_endpoints_some_stand_for_all_and_each_has_its_name() {
    let addresses: Vec<String> = (0..300).map(|i| format!("10.1.{}.{}", i / 100, i % 100 + 1)).collect();
    let hosts: Vec<(&str, Option<&str>)> = addresses.iter().map(|address| (address.as_str(), None)).collect();
    let facts = headless(&hosts, "east");
    let mut zone = Zone::new();
    let name = object("db", "etcd");
    let problems = zone.set(&name, &decide(&facts).0.services[&name]);
    assert_eq!(problems.iter().map(|p| p.code()).collect::<Vec<_>>(), ["EndpointNamesTooMany"]);
    let whole = found(&ask(&zone, "etcd.db.svc.clusterset.local", RecordKind::A)).expect("as written");
    let ports =
        found(&ask(&zone, "_peer._tcp.etcd.db.svc.clusterset.local", RecordKind::Srv)).expect("as written");
    assert_eq!((whole.len(), ports.len()), (MAX_NAMED, MAX_NAMED));
    for address in &addresses {
        let own = format!("{}.east.etcd.db.svc.clusterset.local", address.replace('.', "-"));
        let answer = found(&ask(&zone, &own, RecordKind::A));
        assert_eq!(answer, Some(BTreeSet::from([address.clone()])));
    }
}

#[test]
fn a_name_that_no_message_can_carry_costs_its_endpoint_that_name_alone() {
    let long = "h".repeat(63);
    let mut facts = headless(&[("10.1.0.1", Some(&long)), ("10.1.0.2", Some("a"))], &"c".repeat(63));
    let exports = facts.exports.remove(&object("db", "etcd")).expect("as written");
    let name = object("db", &"s".repeat(63));
    let long_namespace = object(&"n".repeat(63), &name.name);
    facts.namespaces.insert(long_namespace.namespace.clone());
    facts.exports.insert(long_namespace.clone(), exports);
    let mut zone = Zone::new();
    let problems = zone.set(&long_namespace, &decide(&facts).0.services[&long_namespace]);
    assert_eq!(problems.iter().map(|p| p.code()).collect::<Vec<_>>(), ["EndpointNameTooLong"]);
    let service = format!("{}.{}.svc.{ZONE}", long_namespace.name, long_namespace.namespace);
    let whole = found(&ask(&zone, &service, RecordKind::A)).expect("as written");
    assert_eq!(whole.len(), 2);
    let ports = found(&ask(&zone, &format!("_peer._tcp.{service}"), RecordKind::Srv)).expect("as written");
    assert_eq!(ports.len(), 1);
}

/// The single service of `headless`, asked for under its own name.
fn whole(facts: &Facts, kind: RecordKind) -> BTreeSet<String> {
    found(&ask(&zone(facts), "etcd.db.svc.clusterset.local", kind)).expect("as written")
}

#[test]
fn one_hostname_of_many_addresses_is_bounded_like_the_whole() {
    let addresses: Vec<String> = (0..500).map(|i| format!("10.1.{}.{}", i / 100, i % 100 + 1)).collect();
    let hosts: Vec<(&str, Option<&str>)> = addresses.iter().map(|at| (at.as_str(), Some("all"))).collect();
    let facts = headless(&hosts, "east");
    assert_eq!(whole(&facts, RecordKind::A).len(), MAX_NAMED);
    let own = ask(&zone(&facts), "all.east.etcd.db.svc.clusterset.local", RecordKind::A);
    assert_eq!(found(&own).expect("as written").len(), MAX_NAMED);
}

#[test]
fn a_hostname_is_in_the_answers_of_both_families_or_in_none() {
    let pods: Vec<[String; 3]> = (0..350)
        .map(|i| [format!("10.1.{}.{}", i / 100, i % 100 + 1), format!("fd00:1::{i:x}"), format!("etcd-{i}")])
        .collect();
    let hosts: Vec<(&str, Option<&str>)> = pods
        .iter()
        .flat_map(|[v4, v6, host]| [v4, v6].map(|at| (at.as_str(), Some(host.as_str()))))
        .collect();
    let facts = headless(&hosts, "east");
    let [v4, v6] = [RecordKind::A, RecordKind::Aaaa].map(|kind| whole(&facts, kind));
    assert_eq!((v4.len(), v6.len()), (MAX_NAMED, MAX_NAMED));
    for [one, other, _] in &pods {
        let other: IpAddr = other.parse().expect("as written");
        assert_eq!(v4.contains(one), v6.contains(&other.to_string()), "{one}");
    }
}

#[test]
fn what_fits_in_each_family_is_whole_though_both_together_are_more() {
    let addresses: Vec<String> =
        (1..=150).flat_map(|i| [format!("10.1.0.{i}"), format!("fd00:1::{i:x}")]).collect();
    let hosts: Vec<(&str, Option<&str>)> = addresses.iter().map(|at| (at.as_str(), None)).collect();
    let facts = headless(&hosts, "east");
    assert_eq!([RecordKind::A, RecordKind::Aaaa].map(|kind| whole(&facts, kind).len()), [150, 150]);
}

#[test]
fn no_port_is_lost_where_not_all_endpoints_have_room() {
    let addresses: Vec<String> = (1..=180).map(|i| format!("10.1.0.{i}")).collect();
    let hosts: Vec<(&str, Option<&str>)> = addresses.iter().map(|at| (at.as_str(), None)).collect();
    let mut facts = headless(&hosts, "east");
    for export in facts.exports.values_mut().flat_map(BTreeMap::values_mut) {
        let service = export.service.as_mut().expect("as written");
        let mut client = service.ports[0].clone();
        (client.name, client.port) = (Some(label("client")), 2379);
        service.ports.push(client);
        let (mut numbers, members) = export.endpoints.pop_first().expect("as written");
        numbers.insert(Some(label("client")), PortNumber { protocol: Protocol::Tcp, number: 12_379 });
        export.endpoints.insert(numbers, members);
    }
    let all = whole(&facts, RecordKind::Srv);
    let of = |port: &str| all.iter().filter(|srv| srv.starts_with(port)).count();
    assert_eq!((all.len(), of("12379 "), of("12380 ")), (MAX_NAMED, MAX_NAMED / 2, MAX_NAMED / 2));
    let zone = zone(&facts);
    for port in ["client", "peer"] {
        let answer = ask(&zone, &format!("_{port}._tcp.etcd.db.svc.clusterset.local"), RecordKind::Srv);
        assert_eq!(found(&answer).expect("as written").len(), 180);
    }
}

#[test]
fn names_that_are_too_long_take_no_room_from_others() {
    let long = "h".repeat(63);
    let addresses: Vec<String> = (0..400).map(|i| format!("10.1.{}.{}", i / 200, i % 200 + 1)).collect();
    let hostnames: Vec<Option<String>> =
        (0..400).map(|i| (i < 200).then(|| format!("{}{i:03}", &long[..60]))).collect();
    let hosts: Vec<(&str, Option<&str>)> =
        addresses.iter().zip(&hostnames).map(|(at, host)| (at.as_str(), host.as_deref())).collect();
    let mut facts = headless(&hosts, &"c".repeat(63));
    let exports = facts.exports.remove(&object("db", "etcd")).expect("as written");
    let name = object(&"n".repeat(56), &"s".repeat(56));
    facts.namespaces.insert(name.namespace.clone());
    facts.exports.insert(name.clone(), exports);
    let service = format!("{}.{}.svc.{ZONE}", name.name, name.namespace);
    let zone = zone(&facts);
    let ports = found(&ask(&zone, &format!("_peer._tcp.{service}"), RecordKind::Srv)).expect("as written");
    assert_eq!(ports.len(), MAX_NAMED, "all 200 that have names");
    let v4 = found(&ask(&zone, &service, RecordKind::A)).expect("as written");
    assert_eq!(v4.len(), MAX_NAMED);
    let first_half = addresses[..200].iter().filter(|at| v4.contains(*at)).count();
    assert!((50..=150).contains(&first_half), "{first_half} of those without names: a share, not all");
}
