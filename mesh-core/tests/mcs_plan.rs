//! Services of several clusters: what is decided, against a slow oracle, and that all clusters decide alike.

mod mcs_world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mcs_world::{CLUSTERS, cluster, exports, facts, facts_of, label, object, one_port};
use mesh_core::mcs::{
    Condition, Decision, DerivedState, Endpoint, Export, ExportedService, Exports, Facts, Here, ImportKind,
    MAX_ENDPOINTS, MAX_PORTS, McsProblem, Own, Plan, PortName, PortNumber, ServiceKind, SessionAffinity,
    Slice, Status, decide, decide_one, derived_name,
};
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use mesh_core::psk::ClusterName;
use proptest::prelude::*;
use proptest::sample::select;

/// Exports that count, the oldest first.
fn valid(exports: &Exports) -> Vec<(&ClusterName, &Export, &ExportedService)> {
    let mut all: Vec<_> = exports
        .iter()
        .filter_map(|(cluster, export)| Some((cluster, export, export.service.as_ref()?)))
        .filter(|(_, _, service)| !matches!(service.kind, ServiceKind::ExternalName | ServiceKind::Derived))
        .filter(|(_, _, service)| service.headless || !service.ports.is_empty())
        .collect();
    all.sort_by(|a, b| (a.1.created, a.0).cmp(&(b.1.created, b.0)));
    all
}

fn plain(name: &PortName) -> String {
    name.as_ref().map_or_else(|| "unnamed".to_owned(), ToString::to_string)
}

/// Union of ports, unnamed ones as `unnamed`.
fn union(exports: &Exports) -> Vec<(String, Protocol, u16)> {
    let mut found: Vec<(String, Protocol, u16)> = Vec::new();
    for (_, _, service) in valid(exports) {
        for port in &service.ports {
            let taken = found.iter().any(|(name, protocol, number)| {
                *name == plain(&port.name) || (*protocol, *number) == (port.protocol, port.port)
            });
            if !taken {
                found.push((plain(&port.name), port.protocol, port.port));
            }
        }
    }
    found
}

/// Who should be behind which port: port (empty for a headless service's endpoint without ports), cluster, address, number.
type Served = BTreeSet<(String, ClusterName, IpAddr, u16)>;

fn should_serve(facts: &Facts, exports: &Exports, headless: bool, families: &[Family]) -> Served {
    let mut served = Served::new();
    for (cluster, export, service) in valid(exports) {
        if facts.own.silent.contains(cluster) {
            continue;
        }
        for (numbers, members) in &export.endpoints {
            let at = |name: &PortName, protocol| {
                numbers.iter().find(|(n, at)| *n == name && at.protocol == protocol).map(|(_, at)| at.number)
            };
            for address in members.keys().filter(|a| families.contains(&Family::of(**a))) {
                let mut any = false;
                for (name, protocol, number) in union(exports) {
                    let own = service.ports.iter().find(|p| (p.protocol, p.port) == (protocol, number));
                    if let Some(target) = own.and_then(|own| at(&own.name, protocol)) {
                        served.insert((name, cluster.clone(), *address, target));
                        any = true;
                    }
                }
                if headless && !any {
                    served.insert((String::new(), cluster.clone(), *address, 0));
                }
            }
        }
    }
    served
}

fn serves(slices: &BTreeMap<String, Slice>) -> Served {
    let mut served = Served::new();
    for slice in slices.values() {
        for address in slice.endpoints.keys() {
            for port in &slice.ports {
                served.insert((plain(&port.name), slice.source.clone(), *address, port.port));
            }
            if slice.ports.is_empty() {
                served.insert((String::new(), slice.source.clone(), *address, 0));
            }
        }
    }
    served
}

fn condition<'a>(decision: &'a Decision, kind: &str) -> Option<&'a Condition> {
    decision.export.iter().find(|condition| condition.kind == kind)
}

/// The reasons that the API's words say, found one by one.
fn reasons(exports: &Exports) -> Vec<&'static str> {
    let all = valid(exports);
    let differ = |what: &dyn Fn(&Export, &ExportedService) -> String| {
        all.iter().map(|(_, export, service)| what(export, service)).collect::<BTreeSet<_>>().len() > 1
    };
    let mut found = Vec::new();
    let mut check = |reason, is: bool| found.extend(is.then_some(reason));
    check("PortConflict", differ(&|_, s| format!("{:?}", s.ports.iter().collect::<BTreeSet<_>>())));
    check("TypeConflict", differ(&|_, s| s.headless.to_string()));
    let sticky = |s: &ExportedService| s.session_affinity != SessionAffinity::None;
    check("SessionAffinityConflict", differ(&|_, s| sticky(s).to_string()));
    let first = all[0].2;
    let config = |s: &ExportedService| sticky(s) && s.session_affinity != first.session_affinity;
    check("SessionAffinityConfigConflict", sticky(first) && all.iter().any(|(_, _, s)| config(s)));
    check("AnnotationsConflict", differ(&|e, _| format!("{:?}", e.annotations)));
    check("LabelsConflict", differ(&|e, _| format!("{:?}", e.labels)));
    check("InternalTrafficPolicyConflict", differ(&|_, s| format!("{:?}", s.internal_traffic_policy)));
    check("TrafficDistributionConflict", differ(&|_, s| format!("{:?}", s.traffic_distribution)));
    let lacks = |s: &ExportedService| first.families.iter().any(|f| !s.families.contains(f));
    check("IPFamilyConflict", all.iter().any(|(_, _, s)| lacks(s)));
    found
}

fn check_import(
    facts: &Facts,
    name: &ObjectName,
    exports: &Exports,
    got: &Decision,
) -> Result<(), TestCaseError> {
    let all = valid(exports);
    let here = facts.namespaces.contains(&name.namespace);
    let Some((_, oldest, service)) = all.first().filter(|_| here) else {
        prop_assert!(got.import.is_none() && got.service.is_none() && got.slices.is_empty());
        return Ok(());
    };
    let import = got.import.as_ref().expect("an import");
    prop_assert_eq!(import.kind == ImportKind::Headless, service.headless);
    prop_assert_eq!(import.session_affinity, service.session_affinity);
    prop_assert_eq!(&import.traffic_distribution, &service.traffic_distribution);
    prop_assert_eq!(&import.clusters, &all.iter().map(|(c, _, _)| (*c).clone()).collect::<BTreeSet<_>>());
    prop_assert_eq!(import.labels.get("team"), oldest.labels.get("team"));
    prop_assert!(!import.labels.contains_key("hawser.dev/x") && !import.labels.contains_key("not a key"));
    let ports: Vec<_> = import.ports.iter().map(|p| (plain(&p.name), p.protocol, p.port)).collect();
    prop_assert_eq!(&ports, &union(exports));
    prop_assert!(
        ports.len() < 2 || import.ports.iter().all(|p| p.name.is_some()),
        "several ports, all named"
    );
    let state = facts.derived.get(&object(&name.namespace, &derived_name(&name.name)));
    let taken = state.is_some_and(|state| state.of.as_deref() != Some(&name.name));
    let families: BTreeSet<Family> = service.families.iter().copied().collect();
    let mut wanted: Vec<Family> = families.intersection(&facts.own.families).copied().collect();
    let supported = !wanted.is_empty();
    if let Some(ip) =
        state.filter(|_| !taken && !service.headless && supported).and_then(|s| s.cluster_ips.first())
        && !wanted.contains(&Family::of(*ip))
    {
        wanted.push(Family::of(*ip));
    }
    let derived = supported && !taken && !service.headless;
    prop_assert_eq!(got.service.is_some(), derived);
    let ips = state.filter(|_| derived).map(|state| state.cluster_ips.clone()).unwrap_or_default();
    prop_assert_eq!(&import.ips, &ips);
    let ready = match (supported, service.headless || !ips.is_empty()) {
        (false, _) => "IPFamilyNotSupported",
        (true, false) => "Pending",
        (true, true) => "Ready",
    };
    prop_assert_eq!(import.ready.reason.as_str(), ready);
    prop_assert_eq!(import.ready.status == Status::True, ready == "Ready");
    let expected = match derived || service.headless {
        true => should_serve(facts, exports, service.headless, &wanted),
        false => Served::new(),
    };
    prop_assert_eq!(serves(&got.slices), expected);
    Ok(())
}

fn check_status(facts: &Facts, exports: &Exports, got: &Decision) -> Result<(), TestCaseError> {
    let Some(export) = exports.get(&facts.own.cluster) else {
        prop_assert!(got.export.is_empty());
        return Ok(());
    };
    let counts = valid(exports).iter().any(|(cluster, _, _)| **cluster == facts.own.cluster);
    let is = |kind| condition(got, kind).map(|c| (c.status == Status::True, c.reason.clone())).expect(kind);
    let reason = match &export.service {
        None => "NoService",
        Some(_) if counts => "Valid",
        Some(_) => "InvalidServiceType",
    };
    prop_assert_eq!(is("Valid"), (counts, reason.to_owned()));
    let ready = match (counts, facts.own.serving) {
        (false, _) => "Failed",
        (true, false) => "Pending",
        (true, true) => "Ready",
    };
    prop_assert_eq!(is("Ready"), (ready == "Ready", ready.to_owned()));
    let reasons = if counts { reasons(exports) } else { Vec::new() };
    let conflict =
        if reasons.is_empty() { (false, "NoConflicts".to_owned()) } else { (true, reasons.join(",")) };
    prop_assert_eq!(is("Conflict"), conflict);
    prop_assert!(got.export.iter().all(|c| c.observed_generation == Some(export.generation)));
    Ok(())
}

/// What must be equal in every cluster: nodes and hints are for the own one.
fn everywhere(plan: &Plan, name: &ObjectName) -> String {
    let none = Decision::default();
    let decision = plan.services.get(name).unwrap_or(&none);
    let import = decision.import.as_ref().map(|i| {
        (
            i.kind,
            i.ports.clone(),
            i.session_affinity,
            i.internal_traffic_policy,
            i.traffic_distribution.clone(),
            i.clusters.clone(),
            i.labels.clone(),
            i.annotations.clone(),
        )
    });
    let slices: Vec<_> = decision
        .slices
        .iter()
        .map(|(name, s)| (name, &s.source, &s.ports, s.endpoints.keys().collect::<Vec<_>>()))
        .collect();
    format!("{import:?} {slices:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn each_service_is_as_the_oracle_says(facts in facts()) {
        let (plan, _) = decide(&facts);
        for (name, exports) in &facts.exports {
            let none = Decision::default();
            let got = plan.services.get(name).unwrap_or(&none);
            check_import(&facts, name, exports, got)?;
            check_status(&facts, exports, got)?;
        }
        prop_assert!(plan.services.keys().all(|name| facts.exports.contains_key(name)));
    }

    #[test]
    fn all_clusters_find_the_same(facts in facts()) {
        let both: BTreeSet<Family> = Family::BOTH.into();
        let plan_of = |own: &str| {
            let own = Own { cluster: cluster(own), families: both.clone(), ..facts.own.clone() };
            let own = Own { silent: BTreeSet::new(), ..own };
            decide(&Facts { own, derived: BTreeMap::new(), ..facts.clone() }).0
        };
        let plans: Vec<Plan> = CLUSTERS.iter().map(|own| plan_of(own)).collect();
        for name in facts.exports.keys() {
            let seen: BTreeSet<String> = plans.iter().map(|plan| everywhere(plan, name)).collect();
            prop_assert_eq!(seen.len(), 1, "{:#?}", seen);
            let conflicts: BTreeSet<_> = plans
                .iter()
                .filter_map(|plan| condition(plan.services.get(name)?, "Conflict"))
                .filter(|c| c.status == Status::True)
                .map(|c| (c.reason.clone(), c.message.clone()))
                .collect();
            prop_assert!(conflicts.len() <= 1, "{:#?}", conflicts);
        }
    }

    #[test]
    fn one_at_a_time_in_any_order_is_the_same_as_all_at_once(
        facts in facts(),
        order in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut events: Vec<(&ObjectName, &ClusterName, &Export)> = Vec::new();
        for (name, exports) in &facts.exports {
            events.extend(exports.iter().map(|(cluster, export)| (name, cluster, export)));
        }
        let mut known: BTreeMap<ObjectName, Exports> = BTreeMap::new();
        let mut plan = Plan::default();
        for (name, cluster, export) in order.into_iter().filter_map(|i| events.get(i).copied()) {
            let exports = known.entry(name.clone()).or_default();
            exports.insert(cluster.clone(), export.clone());
            let derived = facts.derived.get(&object(&name.namespace, &derived_name(&name.name)));
            let namespace = facts.namespaces.contains(&name.namespace);
            let (decision, _) = decide_one(&Here { own: &facts.own, namespace, derived, untold: None }, name, exports);
            if decision == Decision::default() {
                plan.services.remove(name);
            } else {
                plan.services.insert(name.clone(), decision);
            }
        }
        prop_assert_eq!(plan, decide(&facts).0);
    }

    #[test]
    fn a_cluster_that_exports_nothing_of_a_service_changes_nothing_of_it(facts in facts(), other in exports()) {
        let (before, _) = decide(&facts);
        let mut more = facts.clone();
        let renamed = |(name, export): (ClusterName, Export)| (cluster(&format!("new-{name}")), export);
        let other: Exports = other.into_iter().map(renamed).collect();
        more.exports.insert(object("shop", "unrelated"), other);
        // And one whose export does not count.
        let export = Export {
            uid: String::new(), generation: 1, created: 0, labels: BTreeMap::new(), annotations: BTreeMap::new(),
            service: None, endpoints: BTreeMap::new(),
        };
        for exports in more.exports.values_mut() {
            exports.insert(cluster("new"), export.clone());
        }
        let (mut after, _) = decide(&more);
        after.services.remove(&object("shop", "unrelated"));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_silent_cluster_loses_its_endpoints_and_nothing_else(facts in facts(), silent in select(&CLUSTERS[..])) {
        let (before, _) = decide(&facts);
        let mut cut = facts.clone();
        if cluster(silent) != cut.own.cluster {
            cut.own.silent.insert(cluster(silent));
        }
        let (after, _) = decide(&cut);
        for (name, was) in &before.services {
            let is = &after.services[name];
            prop_assert_eq!((&was.import, &was.service, &was.export), (&is.import, &is.service, &is.export));
            let kept = was.slices.iter().filter(|(_, s)| !cut.own.silent.contains(&s.source));
            let kept: BTreeMap<String, Slice> = kept.map(|(n, s)| (n.clone(), s.clone())).collect();
            prop_assert_eq!(&kept, &is.slices);
        }
    }

    #[test]
    fn one_endpoint_more_or_less_touches_few_slices(
        count in 0..450_usize,
        changes in proptest::collection::vec((0..500_u16, any::<bool>()), 1..20),
    ) {
        let mut large = Large::new(count);
        let mut before = large.slices();
        for (host, ready) in changes {
            large.toggle(host, ready);
            let after = large.slices();
            let addresses: Vec<IpAddr> = after.values().flat_map(|s| s.endpoints.keys().copied()).collect();
            prop_assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "each once");
            prop_assert_eq!(addresses.into_iter().collect::<BTreeSet<_>>(), large.addresses());
            prop_assert!(after.values().all(|s| (1..=MAX_ENDPOINTS).contains(&s.endpoints.len())));
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let touched = names.into_iter().filter(|name| before.get(*name) != after.get(*name)).count();
            prop_assert!((1..=3).contains(&touched), "{} slices of {}", touched, after.len());
            before = after;
        }
    }
}

/// One service of one cluster with many endpoints.
struct Large {
    facts: Facts,
}

fn host(host: u16) -> IpAddr {
    IpAddr::from([10, 9, host.to_be_bytes()[0], host.to_be_bytes()[1]])
}

impl Large {
    fn new(count: usize) -> Self {
        let web = label("web");
        let service = ExportedService {
            kind: ServiceKind::ClusterIp,
            headless: false,
            ports: vec![mesh_core::mcs::ExportedPort {
                name: Some(web.clone()),
                protocol: Protocol::Tcp,
                app_protocol: None,
                port: 80,
            }],
            session_affinity: SessionAffinity::None,
            internal_traffic_policy: mesh_core::mcs::InternalTrafficPolicy::Cluster,
            traffic_distribution: None,
            families: vec![Family::V4],
        };
        let numbers = BTreeMap::from([(Some(web), PortNumber { protocol: Protocol::Tcp, number: 8080 })]);
        let up = |ready| Endpoint {
            ready,
            serving: ready,
            terminating: false,
            hostname: None,
            node: None,
            zone: None,
        };
        let members = (0..u16::try_from(count).expect("as written")).map(|at| (host(at), up(true))).collect();
        let export = Export {
            uid: "u".to_owned(),
            generation: 1,
            created: 5,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            service: Some(service),
            endpoints: BTreeMap::from([(numbers, members)]),
        };
        let exports = BTreeMap::from([(cluster("east"), export)]);
        Self {
            facts: Facts {
                own: Own {
                    cluster: cluster("west"),
                    families: Family::BOTH.into(),
                    serving: true,
                    silent: BTreeSet::new(),
                },
                namespaces: BTreeSet::from(["shop".to_owned()]),
                exports: BTreeMap::from([(object("shop", "web"), exports)]),
                derived: BTreeMap::new(),
            },
        }
    }

    fn members(&mut self) -> &mut BTreeMap<IpAddr, Endpoint> {
        let exports = self.facts.exports.get_mut(&object("shop", "web")).expect("as written");
        exports
            .get_mut(&cluster("east"))
            .expect("as written")
            .endpoints
            .values_mut()
            .next()
            .expect("as written")
    }

    /// Comes, goes, or changes its readiness.
    fn toggle(&mut self, at: u16, ready: bool) {
        let members = self.members();
        match members.remove(&host(at)) {
            Some(was) if ready => {
                members.insert(host(at), Endpoint { ready: !was.ready, ..was });
            }
            Some(_) => {}
            None => {
                let new = Endpoint {
                    ready,
                    serving: true,
                    terminating: false,
                    hostname: None,
                    node: None,
                    zone: None,
                };
                members.insert(host(at), new);
            }
        }
    }

    fn addresses(&mut self) -> BTreeSet<IpAddr> {
        self.members().keys().copied().collect()
    }

    fn slices(&self) -> BTreeMap<String, Slice> {
        decide(&self.facts).0.services[&object("shop", "web")].slices.clone()
    }
}

#[test]
fn a_thousand_endpoints_are_in_well_filled_slices() {
    let slices = Large::new(1_000).slices();
    assert!((10..=20).contains(&slices.len()), "{} slices", slices.len());
}

#[test]
fn the_cluster_ip_stays_while_the_oldest_export_goes() {
    let mut large = Large::new(1);
    let web = object("shop", "web");
    let state = |ips: &[&str]| DerivedState {
        of: Some("web".to_owned()),
        cluster_ips: ips.iter().map(|ip| ip.parse().expect("as written")).collect(),
    };
    large.facts.derived.insert(object("shop", &derived_name("web")), state(&["10.96.0.7"]));
    let exports = large.facts.exports.get_mut(&web).expect("as written");
    let mut younger = exports[&cluster("east")].clone();
    younger.created = 9;
    younger.service.as_mut().expect("as written").families = vec![Family::V6, Family::V4];
    exports.insert(cluster("north"), younger);
    exports.remove(&cluster("east"));
    let (plan, _) = decide(&large.facts);
    let decision = &plan.services[&web];
    assert_eq!(decision.service.as_ref().expect("as written").families, [Family::V4, Family::V6]);
    assert_eq!(
        decision.import.as_ref().expect("as written").ips,
        ["10.96.0.7".parse::<IpAddr>().expect("as written")]
    );
}

/// `shop/web`, exported by `east` and changed, and the words for what is wrong.
fn wrong(change: impl FnOnce(&mut Export)) -> (Decision, Vec<String>) {
    let web = object("shop", "web");
    let (name, mut export) = one_port(cluster("east"), "http", 80);
    change(&mut export);
    let facts = facts_of(&web, [(name, export)]);
    let (plan, problems) = decide(&facts);
    assert!(
        problems.iter().all(|problem| *problem.name() == web && McsProblem::CODES.contains(&problem.code()))
    );
    let words = problems.iter().map(ToString::to_string).collect();
    (plan.services.get(&web).cloned().unwrap_or_default(), words)
}

fn service(export: &mut Export) -> &mut ExportedService {
    export.service.as_mut().expect("as written")
}

/// Spoils an export.
type Change = fn(&mut Export);

#[test]
fn an_export_that_no_api_server_would_take_does_not_count() {
    let cases: [(&str, Change); 5] = [
        ("spec.ports=\"\"", |e| service(e).ports.clear()),
        ("spec.ports[].port=\"0\"", |e| service(e).ports[0].port = 0),
        ("spec.ports=\"two alike\"", |e| {
            let again = service(e).ports[0].clone();
            service(e).ports.push(again);
        }),
        ("spec.ipFamilies=\"\"", |e| service(e).families.clear()),
        ("spec.ipFamilies=\"\"", |e| service(e).families = vec![Family::V4; 3]),
    ];
    for (field, change) in cases {
        let (decision, words) = wrong(change);
        assert_eq!(decision, Decision::default());
        assert!(
            words.len() == 1 && words[0].contains(field) && words[0].contains("cluster east"),
            "{words:?}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_part_costs_that_part() {
    let (decision, words) = wrong(|export| {
        let members = export.endpoints.values_mut().next().expect("as written");
        let endpoint = members.values().next().expect("as written").clone();
        members.insert("127.0.0.1".parse().expect("as written"), endpoint);
    });
    assert!(words.len() == 1 && words[0].contains("127.0.0.1"), "{words:?}");
    assert_eq!(decision.slices.values().map(|s| s.endpoints.len()).sum::<usize>(), 1);

    let (decision, words) = wrong(|export| {
        for (key, value) in
            [("team", "a"), ("team2", "a b"), ("app.kubernetes.io/managed-by", "me"), ("x.hawser.dev/y", "")]
        {
            export.labels.insert(key.to_owned(), value.to_owned());
        }
        export.annotations.insert("large".to_owned(), "x".repeat(200_000));
    });
    let import = decision.import.expect("as written");
    assert_eq!(words.len(), 4, "{words:?}");
    let labels: Vec<_> = import.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["app.kubernetes.io/managed-by=clustermesh.hawser.dev", "team=a"]);
    assert!(import.annotations.is_empty());

    let (decision, words) = wrong(|export| {
        let port = service(export).ports[0].clone();
        let more = (1..=120).map(|i| mesh_core::mcs::ExportedPort {
            name: Some(label(&format!("p{i}"))),
            port: 1_000 + i,
            ..port.clone()
        });
        service(export).ports.extend(more);
    });
    assert_eq!(decision.import.expect("as written").ports.len(), MAX_PORTS);
    assert!(words.len() == 1 && words[0].contains("22 ports"), "{words:?}");
}

#[test]
fn a_name_that_no_service_can_have_is_refused() {
    let name = object("shop", "Web");
    let exports = [one_port(cluster("east"), "http", 80), one_port(cluster("west"), "http", 80)];
    let (plan, problems) = decide(&facts_of(&name, exports));
    let decision = &plan.services[&name];
    assert!(decision.import.is_none() && decision.service.is_none() && decision.slices.is_empty());
    assert_eq!(condition(decision, "Valid").map(|c| c.reason.as_str()), Some("InvalidServiceType"));
    assert_eq!(problems.len(), 2);
}

#[test]
fn names_of_derived_services_are_labels_and_apart() {
    let long = |last: &str| format!("{}{last}", "a".repeat(62));
    let all = ["web", "0", &long("b"), &long("c")].map(derived_name);
    for name in &all {
        let fits =
            name.len() <= 63 && name.starts_with("mcs-") && name.parse::<mesh_core::mcs::DnsLabel>().is_ok();
        assert!(fits, "{name}");
    }
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    // Objects of a running cluster are found by it: it must stay what it is.
    assert_eq!(derived_name("web"), "mcs-web-4b5e57f6eb2f42b9");
}

#[test]
fn slices_bear_the_labels_of_the_api_and_no_node_of_another_cluster() {
    let web = object("shop", "web");
    let mut exports = [one_port(cluster("east"), "http", 80), one_port(cluster("west"), "http", 80)];
    for (_, export) in &mut exports {
        service(export).traffic_distribution = Some("PreferSameNode".to_owned());
    }
    let (plan, _) = decide(&facts_of(&web, exports));
    let slices = &plan.services[&web].slices;
    assert_eq!(slices.len(), 2);
    for slice in slices.values() {
        let own = slice.source == cluster("west");
        let labels = slice.labels();
        let get = |key: &str| labels.get(key).map(String::as_str);
        assert_eq!(get("multicluster.kubernetes.io/service-name"), Some("web"));
        assert_eq!(get("multicluster.kubernetes.io/source-cluster"), Some(slice.source.as_str()));
        assert_eq!(get("endpointslice.kubernetes.io/managed-by"), Some("clustermesh.hawser.dev"));
        assert_eq!(get("kubernetes.io/service-name"), Some(derived_name("web").as_str()));
        assert_eq!(get("hawser.dev/remote").is_some(), !own);
        let endpoint = slice.endpoints.values().next().expect("as written");
        assert_eq!((endpoint.node.is_some(), endpoint.for_node.is_some()), (own, own));
        assert_eq!(endpoint.for_zone.as_deref(), Some("z1"));
    }
}

#[test]
fn a_conflict_says_what_is_used_and_who_disagrees() {
    let web = object("shop", "web");
    let oldest = one_port(cluster("east"), "http", 80);
    let (name, mut younger) = one_port(cluster("west"), "http", 81);
    younger.created += 1;
    service(&mut younger).headless = true;
    let (plan, _) = decide(&facts_of(&web, [oldest, (name, younger)]));
    let conflict = condition(&plan.services[&web], "Conflict").expect("as written");
    assert_eq!(conflict.reason, "PortConflict,TypeConflict");
    assert_eq!(
        conflict.message,
        "conflicting ports: the union is used, in a dispute the oldest export's port, in cluster east; 1/2 clusters \
         disagree: west. conflicting type: using \"ClusterSetIP\" of the oldest export, in cluster east; 1/2 clusters \
         disagree: west."
    );
}

#[test]
fn an_address_that_is_known_twice_is_what_says_more_for_it() {
    // Two pods on one host network: the second group's other port is none of the service's.
    let (decision, words) = wrong(|export| {
        let (numbers, members) = export.endpoints.pop_first().expect("one group");
        let mut more = numbers.clone();
        more.insert(Some(label("other")), PortNumber { protocol: Protocol::Tcp, number: 1 });
        let down =
            |(at, endpoint): (&IpAddr, &Endpoint)| (*at, Endpoint { ready: false, ..endpoint.clone() });
        let ended = members.iter().map(down).collect();
        let (first, second) = if numbers < more { (ended, members) } else { (members, ended) };
        export.endpoints.extend([(numbers, first), (more, second)]);
    });
    assert_eq!(words, Vec::<String>::new());
    let endpoints: Vec<bool> =
        decision.slices.values().flat_map(|s| s.endpoints.values().map(|e| e.ready)).collect();
    assert_eq!(endpoints, [true]);
}
