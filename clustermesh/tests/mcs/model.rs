//! The controller's decisions and writes against a model of an API server, with everything that can happen, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use clustermesh::Told;
use clustermesh::mcs::diff::{Act, diff};
use clustermesh::mcs::wire::MAX_SERVICES;
use clustermesh::mcs::world::Judged;
use clustermesh::mcs::{Kind, Settings, World, render};
use mesh_core::clusters::{
    Borders, Change, ClusterName, ClusterPeer, ClusterState, Key, Object, OwnCluster, Version,
};
use mesh_core::ipam::Millis;
use mesh_core::mcs::derived_name;
use mesh_core::policy::model::ObjectName;
use mesh_core::prefix::Family;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::model_api::{ModelApi, is_ours, read};
use crate::wire::{address, backend, service};

const LEASE: u64 = 1_000;
/// For so long a peer is awaited that has told nothing: a new leader hears from hundreds at once.
const FIRST_WORD: u64 = 4 * LEASE;
const PEERS: [&str; 2] = ["east", "north"];
const NAMES: [&str; 2] = ["web", "api"];
const SPACES: [&str; 2] = ["shop", "bank"];

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

pub(crate) fn object(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Peer number n has the pod CIDRs `10.n.0.0/16` and `fd00:n::/32`, this cluster is number 0.
pub(crate) fn borders(peers: &[&str]) -> Arc<Borders> {
    let cidrs = |number: usize| {
        [format!("10.{number}.0.0/16"), format!("fd00:{number}::/32")].map(|c| c.parse().unwrap())
    };
    let own = OwnCluster {
        name: cluster("west"),
        pod_cidrs: cidrs(0).to_vec(),
        keys: BTreeMap::new(),
        addresses: BTreeMap::new(),
    };
    let peer = |(number, name): (usize, &&str)| ClusterPeer {
        name: cluster(name),
        created: 1,
        pod_cidrs: cidrs(number + 1).to_vec(),
        addresses: Vec::new(),
        trust_bundle: None,
    };
    let peers: Vec<ClusterPeer> = peers.iter().enumerate().map(peer).collect();
    Arc::new(Borders::judge(&own, &peers).0)
}

fn settings() -> Settings {
    Settings {
        cluster: cluster("west"),
        families: Family::BOTH.into(),
        pod_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/32".parse().unwrap()],
        lease: LEASE,
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Export(ObjectName, Option<Value>),
    Service(ObjectName, Option<Value>),
    Slice(ObjectName, Option<Value>),
    Namespace(String, bool),
    /// Peer, name, service and backends: all of it, told as a difference.
    Told(
        usize,
        ObjectName,
        Option<(mesh_core::clusters::ExportedService, BTreeMap<IpAddr, mesh_core::clusters::Backend>)>,
    ),
    Heard(usize),
    Gone(usize),
    /// Milliseconds that pass.
    Time(u64),
    Serving(bool),
    /// Somebody else's object of a name that we want.
    Stranger(Kind, ObjectName, bool),
    /// Somebody changes or deletes an object of ours.
    Damage(u8, bool),
    /// All that the controller knew is forgotten; then peers tell again, or only after their time is over.
    Restart(bool),
}

fn name() -> impl Strategy<Value = ObjectName> {
    (select(&SPACES[..]), select(&NAMES[..])).prop_map(|(space, name)| object(space, name))
}

prop_compose! {
    fn own_service()(
        kind in select(vec!["ClusterIP", "ClusterIP", "NodePort", "Headless", "ExternalName"]),
        ports in proptest::sample::subsequence(vec![("http", 80), ("dns", 53), ("", 81)], 1..=2),
        affinity in select(vec!["None", "ClientIP"]),
        distribution in select(vec![None, Some("PreferClose")]),
        families in select(vec![vec!["IPv4"], vec!["IPv4", "IPv6"], vec!["IPv6"]]),
    ) -> Value {
        let named = ports.len() > 1;
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(name, port)| json!({"name": if named && name.is_empty() { "other" } else { name }, "port": port, "protocol": "TCP"}))
            .collect();
        let mut spec = json!({"type": kind, "ports": ports, "sessionAffinity": affinity, "ipFamilies": families,
            "trafficDistribution": distribution, "internalTrafficPolicy": "Cluster"});
        if kind == "Headless" {
            spec["type"] = "ClusterIP".into();
            spec["clusterIP"] = "None".into();
        }
        json!({"metadata": {}, "spec": spec})
    }
}

fn slice_of(service: String, hosts: Vec<(u8, bool)>) -> Value {
    // Host 9 is on its node's network.
    let at = |host: u8| if host == 9 { "192.0.2.9".to_owned() } else { format!("10.0.0.{host}") };
    let endpoints: Vec<Value> = hosts
        .into_iter()
        .map(|(host, ready)| json!({"addresses": [at(host)], "conditions": {"ready": ready}, "nodeName": "n1"}))
        .collect();
    json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 8081, "protocol": "TCP"}],
        "endpoints": endpoints})
}

fn step() -> impl Strategy<Value = Step> {
    let export = (
        name(),
        proptest::option::weighted(0.8, select(vec![json!({}), json!({"exportedLabels": {"team": "a"}})])),
    )
        .prop_map(|(name, spec)| Step::Export(name, spec));
    let own = (name(), proptest::option::weighted(0.9, own_service())).prop_map(|(n, s)| Step::Service(n, s));
    let hosts = vec((select(vec![1, 2, 3, 9_u8]), any::<bool>()), 0..4);
    let slice = (name(), proptest::option::weighted(0.8, hosts)).prop_map(|(of, hosts)| {
        let at = object(&of.namespace, &format!("{}-abc", of.name));
        Step::Slice(at, hosts.map(|hosts| slice_of(of.name.clone(), hosts)))
    });
    let told = (
        0..2_usize,
        name(),
        proptest::option::weighted(0.8, (service(), vec((1..5_u8, any::<bool>(), backend()), 0..4))),
    )
        .prop_map(|(peer, name, some)| {
            let number = u8::try_from(peer).unwrap() + 1;
            let all = some.map(|(service, backends)| {
                let at = |(host, v6, one): (u8, bool, _)| (address(number, host, v6), one);
                (service, backends.into_iter().map(at).collect())
            });
            Step::Told(peer, name, all)
        });
    let kinds = select(vec![Kind::Import, Kind::Service]);
    prop_oneof![
        4 => export,
        4 => own,
        3 => slice,
        1 => (select(&SPACES[..]), prop::bool::weighted(0.7)).prop_map(|(space, there)| Step::Namespace(space.to_owned(), there)),
        8 => told,
        2 => (0..2_usize).prop_map(Step::Heard),
        1 => (0..2_usize).prop_map(Step::Gone),
        2 => select(vec![10, LEASE / 2, LEASE + 1]).prop_map(Step::Time),
        1 => any::<bool>().prop_map(Step::Serving),
        1 => (kinds, name(), any::<bool>()).prop_map(|(kind, name, there)| Step::Stranger(kind, name, there)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(which, delete)| Step::Damage(which, delete)),
        2 => any::<bool>().prop_map(Step::Restart),
    ]
}

struct Lab {
    api: ModelApi,
    world: World,
    now: Millis,
    serving: bool,
    /// What each peer is, as it tells it; none: not told.
    told: BTreeMap<usize, ClusterState>,
}

impl Lab {
    fn new() -> Self {
        let mut api = ModelApi::default();
        for space in SPACES {
            api.put(Kind::Namespace, &object("", space), json!({"metadata": {}}), 0);
        }
        let mut lab =
            Self { api, world: World::new(settings()), now: Millis(1), serving: true, told: BTreeMap::new() };
        lab.begin();
        for peer in 0..PEERS.len() {
            lab.tell(peer, Vec::new());
        }
        lab
    }

    /// A controller that has read all of the API and has heard nobody.
    fn begin(&mut self) {
        self.world = World::new(settings());
        for ((kind, name), object) in &self.api.objects {
            self.world.object(*kind, name, read(*kind, object).as_ref());
        }
        for kind in Kind::ALL {
            self.world.complete(kind);
        }
        self.world.serving(self.serving);
        assert!(!self.world.is_complete());
        self.world.borders(borders(&PEERS), self.now);
        assert!(self.world.is_complete());
    }

    fn tell(&mut self, peer: usize, changes: Vec<Change>) {
        let state = self.told.entry(peer).or_default();
        for change in &changes {
            state.apply(change.clone());
        }
        let told = Told::Changed { cluster: cluster(PEERS[peer]), version: Version::default(), changes };
        self.world.told(told, self.now);
    }

    fn seen(&mut self, kind: Kind, name: &ObjectName) {
        let seen = self.api.objects.get(&(kind, name.clone())).and_then(|object| read(kind, object));
        self.world.object(kind, name, seen.as_ref());
    }

    fn put(&mut self, kind: Kind, name: &ObjectName, object: Option<Value>) {
        match object {
            Some(object) => self.api.put(kind, name, object, 5),
            None => self.api.remove(kind, name),
        }
        self.seen(kind, name);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Export(name, spec) => {
                let object = spec.map(|spec| json!({"metadata": {}, "spec": spec}));
                self.put(Kind::Export, &name, object);
            }
            Step::Service(name, service) => self.put(Kind::Service, &name, service),
            Step::Slice(name, slice) => self.put(Kind::Slice, &name, slice),
            Step::Namespace(name, there) => {
                self.put(Kind::Namespace, &object("", &name), there.then(|| json!({"metadata": {}})));
            }
            Step::Told(peer, name, all) => {
                let name = Arc::new(name);
                let before = self.told.entry(peer).or_default().clone();
                let mut after = before.clone();
                after.services.remove(&name);
                after.backends.retain(|(of, _), _| *of != name);
                if let Some((service, backends)) = all {
                    after.services.insert(Arc::clone(&name), Arc::new(service));
                    let backends = backends.into_iter();
                    after.backends.extend(backends.map(|(at, one)| ((Arc::clone(&name), at), Arc::new(one))));
                }
                self.tell(peer, before.changes_to(&after));
            }
            Step::Heard(peer) => self.world.told(Told::Heard { cluster: cluster(PEERS[peer]) }, self.now),
            Step::Gone(peer) => {
                self.world.told(Told::Gone { cluster: cluster(PEERS[peer]) }, self.now);
                self.told.remove(&peer);
                self.tell(peer, Vec::new());
            }
            Step::Time(passes) => {
                self.now = Millis(self.now.0 + passes);
                self.world.tick(self.now);
            }
            Step::Serving(serving) => {
                self.serving = serving;
                self.world.serving(serving);
            }
            Step::Stranger(kind, name, there) => {
                let name = match kind {
                    Kind::Service => object(&name.namespace, &derived_name(&name.name)),
                    Kind::Namespace | Kind::Export | Kind::Import | Kind::Slice => name,
                };
                let present = self.api.objects.get(&(kind, name.clone()));
                if present.is_some_and(is_ours) {
                    return;
                }
                let body = json!({"metadata": {"labels": {"app": "strange"}},
                    "spec": {"type": if kind == Kind::Service { "ClusterIP" } else { "Headless" }, "ports": []}});
                self.put(kind, &name, there.then_some(body));
            }
            Step::Damage(which, delete) => {
                let ours: Vec<_> = self.api.objects.iter().filter(|(_, object)| is_ours(object)).collect();
                if ours.is_empty() {
                    return;
                }
                let ((kind, name), object) = ours[usize::from(which) % ours.len()];
                let (kind, name, mut object) = (*kind, name.clone(), object.clone());
                match kind {
                    Kind::Slice => object["endpoints"] = json!([]),
                    Kind::Namespace | Kind::Export | Kind::Import | Kind::Service => {
                        object["spec"]["sessionAffinity"] = "ClientIP".into()
                    }
                }
                self.put(kind, &name, (!delete).then_some(object));
            }
            Step::Restart(_) => {}
        }
    }

    /// Writes until there is nothing to write. How much was written.
    fn settle(&mut self) -> usize {
        let (strangers, before) = (self.api.strangers(), self.api.writes);
        let mut judged = 0;
        while let Some(name) = self.world.take_dirty() {
            judged += 1;
            assert!(judged < 500, "it does not come to rest: {name:?}");
            let Judged { decision, hold, .. } = self.world.judge(&name);
            let observed = self.world.observed(&name, &decision);
            let todo = diff(&name, &observed, &decision, &hold, "2026-01-01T00:00:00Z");
            for op in todo.ops {
                self.api.apply(&op);
                self.seen(op.kind, &op.object);
            }
        }
        assert_eq!(self.api.strangers(), strangers, "what is not ours was touched");
        self.api.writes - before
    }

    /// Is all that is ours in the API what is decided, and nothing else?
    fn check(&mut self) {
        let mut wanted: BTreeSet<(Kind, ObjectName)> = BTreeSet::new();
        self.world.all_again();
        let mut names = BTreeSet::new();
        while let Some(name) = self.world.take_dirty() {
            names.insert(name);
        }
        for name in &names {
            let decision = self.world.judge(name).decision;
            let get = |kind, other: &str| self.api.objects.get(&(kind, object(&name.namespace, other)));
            if let Some(export) = get(Kind::Export, &name.name) {
                let all = export["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let said: BTreeSet<String> = all
                    .iter()
                    .map(|one| format!("{}={}:{}", one["type"], one["status"], one["reason"]))
                    .collect();
                let meant = decision.export.iter();
                let meant: BTreeSet<String> = meant
                    .map(|one| format!("{:?}={:?}:{:?}", one.kind, one.status.name(), one.reason))
                    .collect();
                assert_eq!(said, meant, "{name:?}");
            }
            let present = get(Kind::Import, &name.name);
            let Some(import) = decision.import.as_ref().filter(|_| present.is_none_or(is_ours)) else {
                continue;
            };
            let present = present.unwrap_or_else(|| panic!("no import {name:?}"));
            wanted.insert((Kind::Import, name.clone()));
            let Some(clustermesh::mcs::seen::Seen::Import(seen)) = read(Kind::Import, present) else {
                panic!()
            };
            assert_eq!(seen.print, render::import(import).print);
            let clusters: Vec<String> = import.clusters.iter().map(ToString::to_string).collect();
            assert_eq!(seen.clusters, clusters);
            assert_eq!(seen.conditions[0]["reason"], import.ready.reason);
            let uid = present["metadata"]["uid"].as_str().unwrap();
            if let Some(service) = &decision.service {
                let at = object(&name.namespace, &service.name);
                let present = get(Kind::Service, &service.name).unwrap_or_else(|| panic!("no {at:?}"));
                let Some(clustermesh::mcs::seen::Seen::Service(seen)) = read(Kind::Service, present) else {
                    panic!()
                };
                assert_eq!(seen.print, render::service(service, &name.name, uid).print);
                let ips: Vec<String> = import.ips.iter().map(ToString::to_string).collect();
                assert_eq!(
                    present["spec"]["clusterIPs"],
                    json!(ips),
                    "the import has its Service's addresses"
                );
                wanted.insert((Kind::Service, at));
            }
            for (slice, facts) in &decision.slices {
                let at = object(&name.namespace, slice);
                let present = get(Kind::Slice, slice).unwrap_or_else(|| panic!("no {at:?}"));
                let Some(clustermesh::mcs::seen::Seen::Slice(seen)) = read(Kind::Slice, present) else {
                    panic!()
                };
                assert_eq!(seen.ours.unwrap().print, render::slice(facts, uid).print);
                wanted.insert((Kind::Slice, at));
            }
        }
        let ours = self.api.objects.iter().filter(|(_, object)| is_ours(object)).map(|(key, _)| key.clone());
        assert_eq!(ours.collect::<BTreeSet<_>>(), wanted);
        self.world.all_again();
        assert_eq!(self.settle(), 0, "nothing to do the second time");
    }

    /// A controller that begins now writes nothing, whoever has told it something or not.
    fn restart(&mut self, late: bool) {
        let silent: BTreeSet<ClusterName> = self.world.silent().clone();
        self.begin();
        assert_eq!(self.settle(), 0, "written before anybody was heard");
        if late {
            let sources = |api: &ModelApi| {
                let slices =
                    api.objects.iter().filter(|((kind, _), object)| *kind == Kind::Slice && is_ours(object));
                slices
                    .map(|(_, slice)| {
                        slice["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"].clone()
                    })
                    .collect::<Vec<_>>()
            };
            let keep = |api: &ModelApi| {
                let kept = api.objects.iter().filter(|((kind, _), object)| {
                    matches!(kind, Kind::Import | Kind::Service) && is_ours(object)
                });
                kept.map(|(key, object)| (key.clone(), object["spec"].clone())).collect::<BTreeMap<_, _>>()
            };
            let before = keep(&self.api);
            self.now = Millis(self.now.0 + FIRST_WORD);
            self.world.tick(self.now);
            self.settle();
            assert_eq!(
                keep(&self.api),
                before,
                "a peer that was not heard yet costs no address, port or type"
            );
            assert!(sources(&self.api).iter().all(|source| source == "west"), "its endpoints are gone");
        }
        for (peer, state) in self.told.clone() {
            let changes = ClusterState::default().changes_to(&state);
            let told = Told::Changed { cluster: cluster(PEERS[peer]), version: Version::default(), changes };
            self.world.told(told, self.now);
        }
        let written = self.settle();
        if !late && silent.is_empty() {
            assert_eq!(written, 0, "all is as it was");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_api_has_what_is_decided_and_strangers_keep_theirs(steps in vec(step(), 1..24)) {
        let mut lab = Lab::new();
        for step in steps {
            if let Step::Restart(late) = step {
                lab.restart(late);
            }
            lab.take(step);
            lab.settle();
            lab.check();
        }
    }
}

fn told_web(lab: &mut Lab, peer: usize, hosts: std::ops::RangeInclusive<u8>) {
    let told = mesh_core::clusters::ExportedService {
        created: 1,
        kind: mesh_core::clusters::ServiceKind::ClusterSetIp,
        ports: vec![mesh_core::clusters::ServicePort {
            name: "http".into(),
            protocol: mesh_core::policy::model::Protocol::Tcp,
            port: 80,
            app_protocol: None,
        }],
        families: vec![Family::V4],
        affinity: mesh_core::clusters::Affinity::None,
        internal_traffic_policy: mesh_core::clusters::TrafficPolicy::Cluster,
        traffic_distribution: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let port = mesh_core::clusters::BackendPort {
        name: "http".into(),
        protocol: mesh_core::policy::model::Protocol::Tcp,
        port: 8080,
    };
    let one = mesh_core::clusters::Backend {
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
        zone: None,
        ports: BTreeSet::from([port]),
    };
    let number = u8::try_from(peer).unwrap() + 1;
    let name = Arc::new(object("shop", "web"));
    let mut changes = vec![Change::Put(Object::Service(Arc::clone(&name), Arc::new(told)))];
    changes.extend(hosts.map(|host| {
        Change::Put(Object::Backend(Arc::clone(&name), address(number, host, false), Arc::new(one.clone())))
    }));
    lab.tell(peer, changes);
}

#[test]
fn one_backend_that_changes_is_one_slice_written() {
    let mut lab = Lab::new();
    told_web(&mut lab, 0, 1..=50);
    // Pending until the Service has its address, and Ready then.
    assert_eq!(lab.settle(), 6, "import, Service, slice, status, address in the import, status");
    let name = Arc::new(object("shop", "web"));
    lab.tell(0, vec![Change::Delete(Key::Backend(name, address(1, 7, false)))]);
    assert_eq!(lab.settle(), 1);
    lab.check();
}

#[test]
fn what_is_created_waits_for_its_owner_and_what_goes_goes_in_reverse() {
    let mut lab = Lab::new();
    told_web(&mut lab, 0, 1..=2);
    let name = object("shop", "web");
    let ops = |lab: &Lab| {
        let judged = lab.world.judge(&name);
        let observed = lab.world.observed(&name, &judged.decision);
        let todo = diff(&name, &observed, &judged.decision, &judged.hold, "t");
        todo.ops.into_iter().map(|op| (op.kind, matches!(op.act, Act::Delete(_)), op)).collect::<Vec<_>>()
    };
    let kinds = |ops: &[(Kind, bool, clustermesh::mcs::diff::Op)]| {
        ops.iter().map(|(kind, gone, _)| (*kind, *gone)).collect::<Vec<_>>()
    };
    let first = ops(&lab);
    assert_eq!(kinds(&first), [(Kind::Import, false)]);
    for (kind, _, op) in first {
        lab.api.apply(&op);
        lab.seen(kind, &op.object);
    }
    // Status of the import last, for nobody waits for it.
    assert_eq!(kinds(&ops(&lab)), [(Kind::Service, false), (Kind::Slice, false), (Kind::Import, false)]);
    lab.settle();
    let gone = vec![Change::Delete(Key::Service(Arc::new(name.clone())))];
    lab.tell(0, gone);
    assert_eq!(kinds(&ops(&lab)), [(Kind::Slice, true), (Kind::Service, true), (Kind::Import, true)]);
}

#[test]
fn a_silent_cluster_loses_its_endpoints_and_gets_them_back_when_it_is_heard() {
    let mut lab = Lab::new();
    told_web(&mut lab, 0, 1..=2);
    lab.settle();
    let slices = |lab: &Lab| lab.api.objects.keys().filter(|(kind, _)| *kind == Kind::Slice).count();
    assert_eq!(slices(&lab), 1);
    let before = lab.api.objects.get(&(Kind::Import, object("shop", "web"))).unwrap()["spec"].clone();
    lab.take(Step::Time(LEASE - 1));
    assert_eq!((lab.settle(), slices(&lab)), (0, 1));
    assert_eq!(lab.world.next_deadline(), Some(Millis(lab.now.0 + 1)));
    lab.take(Step::Time(1));
    assert_eq!((lab.settle(), slices(&lab)), (1, 0));
    // A difference that was under way is no sign of life.
    told_web(&mut lab, 0, 1..=3);
    assert_eq!((lab.settle(), slices(&lab)), (0, 0));
    let after = &lab.api.objects.get(&(Kind::Import, object("shop", "web"))).unwrap()["spec"];
    assert_eq!(after, &before, "addresses, ports and type stay");
    lab.take(Step::Heard(0));
    assert_eq!((lab.settle(), slices(&lab)), (1, 1));
    lab.check();
}

#[test]
fn backends_outside_a_peers_border_are_named_and_left_out() {
    let mut lab = Lab::new();
    told_web(&mut lab, 0, 1..=1);
    let name = Arc::new(object("shop", "web"));
    let stolen = lab.told[&0].backends.values().next().unwrap().clone();
    lab.tell(0, vec![Change::Put(Object::Backend(name, "10.0.0.1".parse().unwrap(), stolen))]);
    lab.settle();
    let problems = lab.world.judge(&object("shop", "web")).problems;
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems[0].code(), "BackendOutside", "{texts:?}");
    assert!(texts[0].contains("10.0.0.1"), "{texts:?}");
    let slice = lab.api.objects.iter().find(|((kind, _), _)| *kind == Kind::Slice).unwrap().1;
    assert_eq!(slice["endpoints"].as_array().unwrap().len(), 1);
}

#[test]
fn an_export_of_which_nobody_can_be_told_says_so_and_is_no_part_of_the_import() {
    let mut lab = Lab::new();
    let name = object("shop", "web");
    let ports: Vec<Value> = (1..=100).map(|i| json!({"name": format!("p{i}"), "port": i})).collect();
    lab.put(Kind::Service, &name, Some(json!({"metadata": {}, "spec": {"ports": ports}})));
    lab.put(Kind::Export, &name, Some(json!({"metadata": {}, "spec": {}})));
    lab.settle();
    let judged = lab.world.judge(&name);
    let conditions: Vec<String> = judged
        .decision
        .export
        .iter()
        .map(|one| format!("{} {:?} {}: {}", one.kind, one.status, one.reason, one.message))
        .collect();
    assert!(judged.told.is_none() && judged.decision.import.is_none(), "{judged:?}");
    assert!(
        conditions[0].starts_with("Valid False") && conditions[0].contains("at most 99"),
        "{conditions:?}"
    );
    assert!(conditions[1].starts_with("Ready False Failed"), "{conditions:?}");
    assert_eq!(judged.problems.len(), 1, "{:?}", judged.problems);
}

#[test]
fn nothing_is_decided_before_everything_is_known() {
    let mut world = World::new(settings());
    world.borders(borders(&PEERS), Millis(0));
    for kind in Kind::ALL {
        assert!(!world.is_complete() && !world.knows_all_names());
        world.complete(kind);
    }
    assert!(world.is_complete() && !world.knows_all_names(), "peers may still tell");
    world.tick(Millis(FIRST_WORD - 1));
    assert!(!world.knows_all_names(), "longer than a lease: many may tell at once");
    world.tick(Millis(FIRST_WORD));
    assert!(world.knows_all_names(), "whoever told nothing until now is not waited for");
}

#[test]
fn labels_and_annotations_go_with_the_export_that_had_them_and_others_stay() {
    let mut lab = Lab::new();
    let name = object("shop", "web");
    lab.put(
        Kind::Service,
        &name,
        Some(json!({"metadata": {}, "spec": {"ports": [{"name": "http", "port": 80}]}})),
    );
    let export = |lab: &mut Lab, spec: Value| {
        lab.put(Kind::Export, &name, Some(json!({"metadata": {}, "spec": spec})));
        lab.settle();
    };
    export(
        &mut lab,
        json!({"exportedLabels": {"team": "a", "tier": "b"}, "exportedAnnotations": {"note": "c"}}),
    );
    let key = (Kind::Import, name.clone());
    let mut import = lab.api.objects[&key].clone();
    assert_eq!(
        (&import["metadata"]["labels"]["team"], &import["metadata"]["annotations"]["note"]),
        (&"a".into(), &"c".into())
    );
    import["metadata"]["labels"]["theirs"] = "x".into();
    lab.put(Kind::Import, &name, Some(import));
    assert_eq!(lab.settle(), 0, "others' labels are nobody's business");
    export(&mut lab, json!({"exportedLabels": {"tier": "z"}}));
    let metadata = &lab.api.objects[&key]["metadata"];
    let labels = metadata["labels"].as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>();
    assert_eq!(labels, BTreeSet::from(["app.kubernetes.io/managed-by", "theirs", "tier"]));
    assert_eq!((&metadata["labels"]["tier"], &metadata["annotations"]["note"]), (&"z".into(), &Value::Null));
}

#[test]
fn a_service_that_becomes_headless_loses_its_address_and_its_slices_the_name_of_the_derived_one() {
    let mut lab = Lab::new();
    let name = object("shop", "web");
    let service = |ip: Value| json!({"metadata": {}, "spec": {"ports": [{"name": "http", "port": 80}], "clusterIP": ip, "ipFamilies": ["IPv4"]}});
    lab.put(Kind::Service, &name, Some(service(Value::Null)));
    lab.put(Kind::Export, &name, Some(json!({"metadata": {}})));
    lab.put(Kind::Slice, &object("shop", "web-abc"), Some(slice_of("web".into(), vec![(1, true)])));
    lab.settle();
    let labels = |lab: &Lab| {
        let slice =
            lab.api.objects.iter().find(|((kind, _), object)| *kind == Kind::Slice && is_ours(object));
        slice.unwrap().1["metadata"]["labels"].clone()
    };
    assert_eq!(labels(&lab)["kubernetes.io/service-name"], derived_name("web"));
    lab.put(Kind::Service, &name, Some(service("None".into())));
    lab.settle();
    assert_eq!(labels(&lab)["kubernetes.io/service-name"], Value::Null);
    assert_eq!(labels(&lab)["multicluster.kubernetes.io/service-name"], "web");
    let derived = (Kind::Service, object("shop", &derived_name("web")));
    assert!(!lab.api.objects.contains_key(&derived));
    assert_eq!(lab.api.objects[&(Kind::Import, name)]["spec"]["ips"], Value::Null);
    lab.check();
}

#[test]
fn of_too_many_exports_of_one_cluster_the_first_names_are_imported() {
    let mut lab = Lab::new();
    told_web(&mut lab, 0, 1..=1);
    let told = lab.told[&0].services.values().next().unwrap().clone();
    let name = |number: usize| object("shop", &format!("a{number:05}"));
    // With `web`, one more than there may be.
    let many = (0..MAX_SERVICES).map(|number| Object::Service(Arc::new(name(number)), Arc::clone(&told)));
    lab.tell(0, many.map(Change::Put).collect());
    let judge = |lab: &Lab, name: &ObjectName| {
        let judged = lab.world.judge(name);
        let codes: Vec<&str> = judged.problems.iter().map(|problem| problem.code()).collect();
        (judged.decision.import.is_some(), codes)
    };
    assert_eq!(judge(&lab, &name(MAX_SERVICES - 1)), (true, vec![]));
    assert_eq!(judge(&lab, &object("shop", "web")), (false, vec!["ToldExportsTooMany"]));
    // One goes, and there is room.
    while lab.world.take_dirty().is_some() {}
    lab.tell(0, vec![Change::Delete(Key::Service(Arc::new(name(5))))]);
    let mut again = BTreeSet::new();
    again.extend(std::iter::from_fn(|| lab.world.take_dirty()));
    assert!(again.contains(&object("shop", "web")), "it is looked at again");
    assert_eq!(judge(&lab, &object("shop", "web")), (true, vec![]));
}

#[test]
fn two_leases_that_end_a_millisecond_apart_are_both_waited_for() {
    let mut lab = Lab::new();
    lab.take(Step::Time(1));
    lab.take(Step::Heard(1));
    let first = lab.world.next_deadline().unwrap();
    lab.world.tick(first);
    assert_eq!(lab.world.silent().len(), 1);
    // However late it is when that is asked.
    assert_eq!(lab.world.next_deadline(), Some(Millis(first.0 + 1)));
    lab.world.tick(Millis(first.0 + 1));
    assert_eq!(lab.world.silent().len(), 2);
}

#[test]
fn a_cluster_that_is_gone_for_good_holds_up_no_change_of_what_others_export() {
    let mut lab = Lab::new();
    let name = object("shop", "web");
    let service =
        |port: u16| Some(json!({"metadata": {}, "spec": {"ports": [{"name": "http", "port": port}]}}));
    told_web(&mut lab, 0, 1..=1);
    lab.settle();
    // A new leader never hears of it, and this cluster exports the name, too.
    lab.begin();
    (1..PEERS.len()).for_each(|peer| lab.tell(peer, Vec::new()));
    lab.put(Kind::Service, &name, service(8080));
    lab.put(Kind::Export, &name, Some(json!({"metadata": {}, "spec": {}})));
    let begun = lab.now;
    for (leases, port, told) in [(0, 80, false), (4, 80, false), (19, 80, false), (20, 8080, true)] {
        let end = Millis(begun.0 + leases * LEASE);
        while let Some(next) = lab.world.next_deadline().filter(|next| *next <= end) {
            lab.now = next;
            (1..PEERS.len()).for_each(|peer| lab.take(Step::Heard(peer)));
            lab.world.tick(next);
        }
        lab.settle();
        let import = &lab.api.objects[&(Kind::Import, name.clone())];
        assert_eq!(import["spec"]["ports"][0]["port"], port, "after {leases} leases");
        let conditions = &lab.api.objects[&(Kind::Export, name.clone())]["status"]["conditions"];
        assert_eq!(conditions.is_array(), told, "after {leases} leases: {conditions}");
    }
}
