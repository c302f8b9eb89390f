//! From exports to the table that the data path reads: who gets what a pod sends to a ClusterSetIP.

mod mcs_world;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mcs_world::{cluster, facts, object};
use mesh_core::mcs::{DerivedState, Endpoint, Facts, ImportKind, ServiceKind, decide, derived_name, is_ours};
use mesh_core::policy::model::ObjectName;
use mesh_core::prefix::Family;
use mesh_core::service::model::OwnNode;
use mesh_core::service::{Compiler, FrontendKey, Limits};
use proptest::prelude::*;
use proptest::sample::select;

const IPS: [&str; 2] = ["10.96.0.9", "fd00:96::9"];

fn web() -> ObjectName {
    object("shop", "web")
}

/// The API server has given `shop/web` an address of each family.
fn settled(mut facts: Facts) -> Facts {
    facts.namespaces.insert("shop".to_owned());
    facts.own.families = Family::BOTH.into();
    let cluster_ips = IPS.iter().map(|ip| ip.parse().expect("as written")).collect();
    let state = DerivedState { of: Some("web".to_owned()), cluster_ips };
    facts.derived.insert(object("shop", &derived_name("web")), state);
    // An address that is known twice is what says more for it: left to other tests.
    for export in facts.exports.values_mut().flat_map(|exports| exports.values_mut()) {
        let mut seen = BTreeSet::new();
        for members in export.endpoints.values_mut() {
            members.retain(|address, _| seen.insert(*address));
        }
    }
    facts
}

fn node() -> OwnNode {
    OwnNode {
        name: Some("n1".parse().expect("as written")),
        zone: Some("z1".to_owned()),
        ..OwnNode::default()
    }
}

/// Makes all exports of `shop/web` agree on one port, so that clusters often meet behind it.
fn alike(facts: &mut Facts) {
    for (cluster, export) in facts.exports.get_mut(&web()).into_iter().flatten() {
        let (_, plain) = mcs_world::one_port(cluster.clone(), "http", 80);
        let (Some(is), Some(mut service)) = (&export.service, plain.service) else { continue };
        service.traffic_distribution.clone_from(&is.traffic_distribution);
        service.internal_traffic_policy = is.internal_traffic_policy;
        export.service = Some(service);
    }
}

/// Tells a table everything of `shop/web`, what is gone included.
fn tell(compiler: &mut Compiler, facts: &Facts, told: &mut BTreeSet<String>) {
    let (plan, _) = decide(facts);
    let decision = plan.services.get(&web()).cloned().unwrap_or_default();
    let derived = object("shop", &derived_name("web"));
    let ips: Vec<IpAddr> = IPS.iter().map(|ip| ip.parse().expect("as written")).collect();
    compiler.set_service(derived, decision.service.map(|service| service.facts(&ips)));
    for (name, slice) in &decision.slices {
        assert!(is_ours(&slice.labels()));
        compiler.set_slice(object("shop", name), Some(slice.facts()));
    }
    for name in told.iter().filter(|name| !decision.slices.contains_key(*name)) {
        compiler.set_slice(object("shop", name), None);
    }
    *told = decision.slices.into_keys().collect();
    compiler.commit();
}

fn chosen(compiler: &Compiler, key: &FrontendKey) -> BTreeSet<SocketAddr> {
    let state = compiler.state();
    let Some(front) = state.frontends.get(key).filter(|front| front.count > 0) else {
        return BTreeSet::new();
    };
    state.tables[&front.base].iter().map(|id| state.backends[id].addr).collect()
}

/// One endpoint of a port, as its exporter says it.
struct Known<'a> {
    at: SocketAddr,
    own: bool,
    facts: &'a Endpoint,
}

/// Endpoints behind a port of the ClusterSetIP, read from the exports.
fn known<'a>(
    facts: &'a Facts,
    protocol: mesh_core::policy::model::Protocol,
    port: u16,
    family: Family,
) -> Vec<Known<'a>> {
    let mut found: Vec<Known<'a>> = Vec::new();
    for (cluster, export) in facts.exports.get(&web()).into_iter().flatten() {
        let Some(service) = &export.service else { continue };
        let exported = service.ports.iter().find(|p| (p.protocol, p.port) == (protocol, port));
        let barred = matches!(service.kind, ServiceKind::ExternalName | ServiceKind::Derived);
        let Some(exported) = exported.filter(|_| !barred && !facts.own.silent.contains(cluster)) else {
            continue;
        };
        for (numbers, members) in &export.endpoints {
            let Some(at) = numbers.get(&exported.name).filter(|at| at.protocol == protocol) else { continue };
            for (address, endpoint) in members.iter().filter(|(a, _)| Family::of(**a) == family) {
                let own = *cluster == facts.own.cluster;
                found.push(Known { at: SocketAddr::new(*address, at.number), own, facts: endpoint });
            }
        }
    }
    found
}

/// Local ones first; then by zone or node if the service prefers that; what ends only where nobody is ready.
fn should_be_chosen(all: &[Known<'_>], local: bool, distribution: Option<&str>) -> BTreeSet<SocketAddr> {
    let ending = |e: &Endpoint| e.serving && e.terminating;
    for (ready, own) in [(true, true), (true, false), (false, true), (false, false)] {
        let here = |k: &Known<'_>| k.own && k.facts.node.as_deref() == Some("n1");
        let fits = |k: &&Known<'_>| {
            k.own == own && (if ready { k.facts.ready } else { ending(k.facts) }) && (!local || here(k))
        };
        let level: Vec<&Known<'_>> = all.iter().filter(fits).collect();
        if level.is_empty() {
            continue;
        }
        let addresses = |of: &dyn Fn(&Known<'_>) -> bool| {
            level.iter().filter(|k| of(k)).map(|k| k.at).collect::<BTreeSet<_>>()
        };
        if ready && !local {
            let noded = level.iter().all(|k| k.own && k.facts.node.is_some());
            let node = addresses(&|k| k.facts.node.as_deref() == Some("n1"));
            if distribution == Some("PreferSameNode") && noded && !node.is_empty() {
                return node;
            }
            let zoned = level.iter().all(|k| k.facts.zone.is_some());
            let zone = addresses(&|k| k.facts.zone.as_deref() == Some("z1"));
            if distribution.is_some() && zoned && !zone.is_empty() {
                return zone;
            }
        }
        return addresses(&|_| true);
    }
    BTreeSet::new()
}

/// Everything that the table says of `shop/web` is as the exports want it.
fn agrees(compiler: &Compiler, facts: &Facts) -> Result<(), TestCaseError> {
    let (plan, _) = decide(facts);
    let Some(import) = plan.services.get(&web()).and_then(|decision| decision.import.as_ref()) else {
        prop_assert!(compiler.state().frontends.is_empty());
        return Ok(());
    };
    if import.kind == ImportKind::Headless {
        prop_assert!(compiler.state().frontends.is_empty());
        return Ok(());
    }
    for ip in IPS.iter().map(|ip| ip.parse::<IpAddr>().expect("as written")) {
        let family = Family::of(ip);
        if !plan.services[&web()].service.as_ref().is_some_and(|s| s.families.contains(&family)) {
            continue;
        }
        for port in &import.ports {
            let all = known(facts, port.protocol, port.port, family);
            let local = import.internal_traffic_policy == Some(mesh_core::mcs::InternalTrafficPolicy::Local);
            let expected = should_be_chosen(&all, local, import.traffic_distribution.as_deref());
            let key = FrontendKey { addr: ip, port: port.port, protocol: Some(port.protocol) };
            prop_assert_eq!(chosen(compiler, &key), expected, "{} {}", ip, port.port);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_cluster_set_ip_leads_where_the_exports_say(
        facts in facts(),
        simple in prop::bool::weighted(0.7),
        silent in select(vec!["east", "north", "south", "west"]),
    ) {
        let mut compiler = Compiler::new(Limits { frontends: 256, places: 1 << 12, backends: 256 });
        compiler.set_node(node());
        let mut told = BTreeSet::new();
        let mut facts = settled(facts);
        if simple {
            alike(&mut facts);
        }
        tell(&mut compiler, &facts, &mut told);
        agrees(&compiler, &facts)?;
        // A cluster falls silent, and the table follows.
        if cluster(silent) != facts.own.cluster {
            facts.own.silent.insert(cluster(silent));
        }
        tell(&mut compiler, &facts, &mut told);
        agrees(&compiler, &facts)?;
        // Its own endpoints go: traffic moves to the others.
        let own = facts.own.cluster.clone();
        if let Some(export) = facts.exports.get_mut(&web()).and_then(|exports| exports.get_mut(&own)) {
            export.endpoints.clear();
        }
        tell(&mut compiler, &facts, &mut told);
        agrees(&compiler, &facts)?;
        // Everybody is back.
        facts.own.silent.clear();
        tell(&mut compiler, &facts, &mut told);
        agrees(&compiler, &facts)?;
        prop_assert!(compiler.problems().iter().all(|p| p.code() == "SctpPortChanged"), "{:?}", compiler.problems());
    }
}

/// One write to the API server, as an agent sees it.
type Write = Box<dyn Fn(&mut Compiler)>;

#[test]
fn a_port_without_a_name_serves_on_while_it_gets_one() {
    let large = |port: &str| mcs_world::one_port(cluster("east"), port, 80);
    let mut facts = settled(mcs_world::facts_of(&web(), [large("")]));
    let mut compiler = Compiler::new(Limits::default());
    let mut told = BTreeSet::new();
    tell(&mut compiler, &facts, &mut told);
    let key = FrontendKey {
        addr: IPS[0].parse().expect("as written"),
        port: 80,
        protocol: Some(mesh_core::policy::model::Protocol::Tcp),
    };
    let before = chosen(&compiler, &key);
    assert_eq!(before.len(), 1);
    // Another cluster adds a port. The Service is written first, then the slices, or the other way round.
    let exports = facts.exports.get_mut(&web()).expect("as written");
    let (name, mut export) = mcs_world::one_port(cluster("north"), "metrics", 9090);
    export.created += 1;
    exports.insert(name, export);
    let ips: Vec<IpAddr> = IPS.iter().map(|ip| ip.parse().expect("as written")).collect();
    let decision = decide(&facts).0.services[&web()].clone();
    let service = decision.service.expect("as written");
    assert!(service.ports.iter().all(|port| port.name.is_some()));
    for service_first in [true, false] {
        let mut compiler = compiler.clone();
        let mut steps: Vec<Write> = Vec::new();
        let (service, ips) = (service.clone(), ips.clone());
        let written = move |c: &mut Compiler| {
            c.set_service(object("shop", &derived_name("web")), Some(service.facts(&ips)));
        };
        steps.push(Box::new(written));
        for (name, slice) in decision.slices.clone() {
            steps.push(Box::new(move |c| c.set_slice(object("shop", &name), Some(slice.facts()))));
        }
        if !service_first {
            steps.reverse();
        }
        for step in steps {
            step(&mut compiler);
            compiler.commit();
            assert_eq!(chosen(&compiler, &key), before);
        }
    }
}

#[test]
fn traffic_moves_to_the_other_cluster_when_own_backends_go_and_comes_back() {
    let (east, abroad) = mcs_world::one_port(cluster("east"), "http", 80);
    let (west, mut own) = mcs_world::one_port(cluster("west"), "http", 80);
    let here: IpAddr = "10.4.0.1".parse().expect("an address");
    let mut compiler = Compiler::new(Limits::default());
    let mut told = BTreeSet::new();
    let key = FrontendKey {
        addr: IPS[0].parse().expect("an address"),
        port: 80,
        protocol: Some(mesh_core::policy::model::Protocol::Tcp),
    };
    for (ready, silent, expected) in [
        (true, false, "10.4.0.1:8080"),
        (false, false, "10.1.0.1:8080"),
        (false, true, ""),
        (false, false, "10.1.0.1:8080"),
        (true, true, "10.4.0.1:8080"),
        (true, false, "10.4.0.1:8080"),
    ] {
        for members in own.endpoints.values_mut() {
            let (_, mut endpoint) = members.pop_first().expect("one endpoint");
            (endpoint.ready, endpoint.serving) = (ready, ready);
            members.insert(here, endpoint);
        }
        let exports = [(east.clone(), abroad.clone()), (west.clone(), own.clone())];
        let mut facts = settled(mcs_world::facts_of(&web(), exports));
        facts.own.silent.extend(silent.then(|| east.clone()));
        tell(&mut compiler, &facts, &mut told);
        let chosen: Vec<String> = chosen(&compiler, &key).iter().map(ToString::to_string).collect();
        assert_eq!(chosen.join(" "), expected);
    }
}
