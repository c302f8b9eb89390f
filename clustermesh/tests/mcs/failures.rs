//! What goes wrong: silence, restarts, strangers, an API server that fails or lies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clustermesh::Told;
use kubeapi::{Fault, Filter, Verb};
use mesh_core::clusters::{
    Affinity, Backend, BackendPort, Change, ExportedService, Key, Object, ServiceKind, ServicePort,
    TrafficPolicy,
};
use mesh_core::mcs::derived_name;
use mesh_core::mcs::names::RecordKind;
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use serde_json::{Value, json};

use crate::lab::{Lab, Options, Pair, cluster, define, eventually, options};

fn object(namespace: &str, name: &str) -> Arc<ObjectName> {
    Arc::new(ObjectName { namespace: namespace.into(), name: name.into() })
}

fn told(namespace: &str, name: &str, backends: &[&str]) -> Vec<Change> {
    let service = ExportedService {
        created: 1,
        kind: ServiceKind::ClusterSetIp,
        ports: vec![ServicePort {
            name: "tcp".into(),
            protocol: Protocol::Tcp,
            port: 42,
            app_protocol: None,
        }],
        families: vec![Family::V4],
        affinity: Affinity::None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let backend = Arc::new(Backend {
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
        zone: None,
        ports: BTreeSet::from([BackendPort { name: "tcp".into(), protocol: Protocol::Tcp, port: 8042 }]),
    });
    let name = object(namespace, name);
    let put =
        |at: &&str| Object::Backend(Arc::clone(&name), at.parse::<IpAddr>().unwrap(), Arc::clone(&backend));
    let backends: Vec<Change> = backends.iter().map(put).map(Change::Put).collect();
    let mut all = vec![Change::Put(Object::Service(Arc::clone(&name), Arc::new(service)))];
    all.extend(backends);
    all
}

/// West, to whom east has told of `hello` with two backends.
async fn west(options: Options) -> Lab {
    let lab = Lab::new(options).await;
    lab.changed("east", told("demo", "hello", &["10.1.0.1", "10.1.0.2"])).await;
    lab
}

async fn settled(lab: &Lab) {
    let ready =
        || lab.condition("serviceimports", "hello", "Ready").is_some_and(|(status, _)| status == "True");
    eventually("the import", || ready() && lab.slices("hello", "east").len() == 1).await;
}

fn events(lab: &Lab, reason: &str) -> Vec<Value> {
    let all: Vec<Value> = lab.server.store().list("events.events.k8s.io", None).unwrap();
    all.into_iter().filter(|event| event["reason"] == reason).collect()
}

#[tokio::test]
async fn endpoints_of_a_silent_cluster_leave_after_its_lease_and_return_when_it_is_heard() {
    let pair = Pair::new(Duration::from_secs(2)).await;
    pair.east.service("hello", json!({}));
    pair.east.slice("hello", &[(1, None)]);
    pair.east.export("hello", json!({}));
    let name = "hello.demo.svc.clusterset.local";
    settled(&pair.west).await;
    let before = pair.west.import("hello").unwrap();
    let address = pair.west.ask(name, RecordKind::A);
    pair.line(false);
    eventually("they leave", || pair.west.slices("hello", "east").is_empty()).await;
    // What changes meanwhile is heard afterwards.
    pair.east.slice("hello", &[(1, None), (2, None)]);
    let during = pair.west.import("hello").unwrap();
    assert_eq!(during["spec"], before["spec"], "address, ports and type stay");
    assert_eq!(during["status"]["clusters"], before["status"]["clusters"]);
    assert_eq!(pair.west.ask(name, RecordKind::A), address);
    pair.line(true);
    let two = |slices: Vec<Value>| {
        slices.first().is_some_and(|one| one["endpoints"].as_array().is_some_and(|all| all.len() == 2))
    };
    eventually("they return", || two(pair.west.slices("hello", "east"))).await;
    assert_eq!(pair.west.import("hello").unwrap()["metadata"]["uid"], before["metadata"]["uid"]);
}

#[tokio::test]
async fn a_new_controller_writes_nothing_and_takes_nothing_away_from_a_peer_that_it_has_not_heard() {
    let mut lab = west(options("west", &["east", "north"])).await;
    lab.service("own", json!({}));
    lab.slice("own", &[(1, None)]);
    lab.export("own", json!({"exportedLabels": {"team": "a"}}));
    settled(&lab).await;
    eventually("the own one", || {
        lab.is("own", "Ready", "True", "Ready") && lab.slices("own", "west").len() == 1
    })
    .await;
    eventually("its import", || {
        lab.condition("serviceimports", "own", "Ready").is_some_and(|(s, _)| s == "True")
    })
    .await;
    let former = Arc::clone(&lab.names);
    lab.restart().await;
    // What is decided by another leader is not heard here, so nothing is said of it any more.
    assert!(!former.is_complete() && lab.ask_of(&former, "own.demo.svc.clusterset.local").is_none());
    lab.server.faults().reset_counters();
    // A change of its own shows when all else has been looked at: names are judged in order, and this is the last.
    let marker = |lab: &Lab, name: &str| {
        lab.service(name, json!({}));
        lab.export(name, json!({}));
    };
    marker(&lab, "zz-1");
    eventually("the marker", || {
        lab.condition("serviceimports", "zz-1", "Ready").is_some_and(|(s, _)| s == "True")
    })
    .await;
    let of_marker = lab.writes();
    assert_eq!(lab.server.faults().requests(Verb::Delete, "endpointslices"), 0);
    assert_eq!(lab.slices("hello", "east").len(), 1, "east has told nothing yet");
    // Whoever else is not heard, services with ClusterSetIPs are found; what is not known is not denied.
    assert!(!lab.names.is_complete());
    for (name, found) in [("own", true), ("hello", true), ("nobody", false)] {
        let answer = lab.ask_of(&lab.names, &format!("{name}.demo.svc.clusterset.local"));
        assert_eq!(answer.is_some(), found, "{name}: {answer:?}");
    }
    lab.changed("east", told("demo", "hello", &["10.1.0.1", "10.1.0.2"])).await;
    lab.changed("north", Vec::new()).await;
    eventually("all names are known", || lab.names.is_complete()).await;
    // Import, its Service, its status twice, its address; status of the export.
    assert_eq!((of_marker, lab.writes()), (6, 6), "{:?}", lab.server.faults().all_requests());
}

#[tokio::test]
async fn a_service_of_a_namespace_that_is_missing_here_waits_for_it() {
    let lab = west(options("west", &["east"])).await;
    lab.changed("east", told("elsewhere", "hello", &["10.1.0.1"])).await;
    settled(&lab).await;
    let find = |lab: &Lab| lab.server.store().find("serviceimports", Some("elsewhere"), "hello");
    assert!(find(&lab).is_none());
    lab.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}));
    eventually("it is imported", || find(&lab).is_some()).await;
    lab.server.store().delete("namespaces", None, "elsewhere").unwrap();
    eventually("it goes with it", || find(&lab).is_none()).await;
    settled(&lab).await;
}

#[tokio::test]
async fn strangers_keep_what_is_theirs_and_their_owners_hear_why_nothing_comes_of_it() {
    let lab = Lab::new(options("west", &["east"])).await;
    let import = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": "hello", "namespace": "demo"}, "spec": {"type": "ClusterSetIP", "ports": [{"port": 1}]}});
    lab.apply(import);
    let derived = derived_name("other");
    lab.service(&derived, json!({"ports": [{"port": 7}]}));
    let before = [lab.import("hello"), lab.find("services", &derived)];
    lab.changed("east", told("demo", "hello", &["10.1.0.1"])).await;
    lab.changed("east", told("demo", "other", &["10.1.0.1"])).await;
    eventually("the Event on the import", || events(&lab, "ImportNameTaken").len() == 1).await;
    eventually("the Event of the Service", || events(&lab, "DerivedNameTaken").len() == 1).await;
    let regarding = &events(&lab, "ImportNameTaken")[0]["regarding"];
    assert_eq!((&regarding["kind"], &regarding["name"]), (&"ServiceImport".into(), &"hello".into()));
    eventually("pending", || {
        lab.condition("serviceimports", "other", "Ready").is_some_and(|(s, r)| s == "False" && r == "Pending")
    })
    .await;
    assert_eq!([lab.import("hello"), lab.find("services", &derived)], before);
    assert!(lab.slices("hello", "east").is_empty() && lab.slices("other", "east").is_empty());
    assert_eq!(lab.ask("hello.demo.svc.clusterset.local", RecordKind::A), None);
    // They go, and it comes.
    lab.delete("serviceimports", "hello");
    lab.delete("services", &derived);
    settled(&lab).await;
    eventually("the other", || lab.slices("other", "east").len() == 1 && lab.derived("other").is_some())
        .await;
}

#[tokio::test]
async fn what_somebody_takes_away_or_changes_is_put_back() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    let slice = lab.slices("hello", "east")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    lab.delete("endpointslices", &slice);
    eventually("the slice", || lab.slices("hello", "east").len() == 1).await;
    lab.patch(
        "services",
        &derived_name("hello"),
        json!({"spec": {"selector": {"app": "mine"}, "sessionAffinity": "ClientIP"}}),
    );
    let spec = || lab.derived("hello").unwrap()["spec"].clone();
    eventually("the Service", || spec()["selector"].is_null() && spec()["sessionAffinity"] == "None").await;
    lab.delete("serviceimports", "hello");
    eventually("the import", || lab.import("hello").is_some()).await;
    let uid = lab.import("hello").unwrap()["metadata"]["uid"].clone();
    let owner = || lab.slices("hello", "east")[0]["metadata"]["ownerReferences"][0]["uid"].clone();
    eventually("its slices are its own", || owner() == uid).await;
}

#[tokio::test]
async fn many_services_at_once_all_get_their_turn() {
    let lab = Lab::new(options("west", &["east"])).await;
    let names: Vec<String> = (0..60).map(|number| format!("s{number}")).collect();
    let changes = names.iter().flat_map(|name| told("demo", name, &["10.1.0.1"])).collect();
    lab.changed("east", changes).await;
    // Every third goes while others are still being made: there is nothing to do for it when its turn comes.
    let gone = names.iter().step_by(3).map(|name| Change::Delete(Key::Service(object("demo", name))));
    lab.changed("east", gone.collect()).await;
    for (index, name) in names.iter().enumerate() {
        let ready =
            || lab.condition("serviceimports", name, "Ready").is_some_and(|(status, _)| status == "True");
        let done = || {
            if index % 3 == 0 {
                lab.import(name).is_none()
            } else {
                ready() && lab.slices(name, "east").len() == 1
            }
        };
        eventually(name, done).await;
    }
}

#[tokio::test]
async fn a_quarrel_slows_down_and_is_told() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    let derived = derived_name("hello");
    let mut undone = 0;
    eventually("the Event", || {
        if lab.derived("hello").is_some_and(|one| one["spec"]["selector"].is_null()) {
            lab.patch("services", &derived, json!({"spec": {"selector": {"app": "mine"}}}));
            undone += 1;
        }
        events(&lab, "WriteUndone").len() == 1
    })
    .await;
    let note = events(&lab, "WriteUndone")[0]["note"].as_str().unwrap().to_owned();
    assert!(note.contains(&derived) && note.contains("demo/hello"), "{note}");
    assert!((2..=6).contains(&undone), "{undone}: once for nothing, then after 1, 2, 4 s");
    // Others are not held up.
    lab.changed("east", told("demo", "other", &["10.1.0.1"])).await;
    eventually("the other", || lab.slices("other", "east").len() == 1).await;
}

#[tokio::test]
async fn an_api_server_that_fails_is_asked_again_until_all_is_as_it_should_be() {
    let lab = Lab::new(options("west", &["east"])).await;
    let faults = lab.server.faults();
    let unavailable = Fault::Status { code: 503, retry_after: None };
    // Done without an answer; not done; refused for a while.
    faults.inject_times(1, Filter::on(Verb::Create, "serviceimports"), Fault::ResetAfterWrite);
    faults.inject_times(2, Filter::on(Verb::Create, "services"), unavailable);
    faults.inject_times(1, Filter::on(Verb::Create, "endpointslices"), Fault::Reset);
    faults.inject_times(
        1,
        Filter::on(Verb::Patch, "serviceimports/status"),
        Fault::Status { code: 409, retry_after: None },
    );
    faults.inject_times(1, Filter::on(Verb::Watch, "services"), Fault::GoneStream);
    lab.changed("east", told("demo", "hello", &["10.1.0.1"])).await;
    settled(&lab).await;
    let imports: Vec<Value> = lab.server.store().list("serviceimports", None).unwrap();
    assert_eq!(imports.len(), 1);
}

#[tokio::test]
async fn endpoints_stay_in_their_slices_where_those_that_would_replace_them_are_refused() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    let before = lab.slices("hello", "east");
    let faults = lab.server.faults();
    faults.reset_counters();
    let quota = Fault::Status { code: 403, retry_after: None };
    faults.inject(Filter::on(Verb::Create, "endpointslices"), quota);
    // With another port come other slices.
    let mut changes = told("demo", "hello", &["10.1.0.1", "10.1.0.2"]);
    for change in &mut changes {
        if let Change::Put(Object::Backend(_, _, backend)) = change {
            let port = BackendPort { name: "tcp".into(), protocol: Protocol::Tcp, port: 9042 };
            Arc::make_mut(backend).ports = BTreeSet::from([port]);
        }
    }
    lab.changed("east", changes).await;
    eventually("the Event", || events(&lab, "WriteRefused").len() == 1).await;
    assert_eq!(lab.slices("hello", "east"), before, "old ports are better than none");
    assert_eq!(faults.requests(Verb::Delete, "endpointslices"), 0);
}

#[tokio::test]
async fn a_stale_list_takes_nothing_away() {
    let lab = Lab::new(options("west", &["east"])).await;
    lab.service("own", json!({}));
    let past = lab.server.store().snapshot();
    lab.export("own", json!({}));
    eventually("its import", || {
        lab.condition("serviceimports", "own", "Ready").is_some_and(|(s, _)| s == "True")
    })
    .await;
    let uid = lab.import("own").unwrap()["metadata"]["uid"].clone();
    let faults = lab.server.faults();
    // The next list is of the time before the export.
    let id = faults.inject_times(1, Filter::on(Verb::List, "serviceexports"), Fault::Stale(past));
    faults.inject_times(1, Filter::on(Verb::Watch, "serviceexports"), Fault::GoneStream);
    eventually("the stale list", || faults.hits(id) == 1).await;
    eventually("it is asked about", || faults.requests(Verb::Get, "serviceexports") > 0).await;
    lab.service("marker", json!({}));
    lab.export("marker", json!({}));
    eventually("what came later", || {
        lab.condition("serviceimports", "marker", "Ready").is_some_and(|(s, _)| s == "True")
    })
    .await;
    assert_eq!(lab.import("own").unwrap()["metadata"]["uid"], uid);
    assert_eq!(faults.requests(Verb::Delete, "serviceimports"), 0);
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing_and_publishes_all_the_same() {
    let mut lab = west(Options { leads: false, ..options("west", &["east"]) }).await;
    let mut published = lab.published();
    lab.service("own", json!({}));
    lab.slice("own", &[(1, None)]);
    lab.export("own", json!({}));
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let changes = published.recv().await.unwrap();
        kinds.extend(changes.iter().map(|change| change.key().kind().name()));
    }
    assert_eq!(kinds, ["service", "backend"]);
    assert_eq!((lab.writes(), lab.import("hello")), (0, None));
    lab.leads.send_replace(true);
    settled(&lab).await;
}

#[tokio::test]
async fn definitions_may_be_installed_later() {
    let lab = west(Options { definitions: false, ..options("west", &["east"]) }).await;
    eventually("it asks", || {
        lab.server.faults().all_requests().keys().any(|(_, what)| what == "serviceimports")
    })
    .await;
    assert!(!lab.names.is_complete(), "no name is denied");
    define(&lab.server);
    settled(&lab).await;
    eventually("names", || lab.names.is_complete()).await;
}

#[tokio::test]
async fn one_endpoint_is_one_change_and_a_host_network_is_told_to_nobody() {
    let mut lab = Lab::new(options("west", &["east"])).await;
    let mut published = lab.published();
    assert_eq!(published.recv().await, Some(Vec::new()), "all that there is, even if it is nothing");
    lab.service("own", json!({}));
    lab.slice("own", &[(1, None), (2, None)]);
    lab.export("own", json!({}));
    let mut all = Vec::new();
    while all.len() < 3 {
        all.extend(published.recv().await.unwrap());
    }
    lab.slice("own", &[(1, None), (2, None), (3, None)]);
    let changes = published.recv().await.unwrap();
    let [Change::Put(Object::Backend(_, at, _))] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(at.to_string(), "10.2.0.3");
    let mut slice = lab.find("endpointslices", "own-x").unwrap();
    slice["endpoints"] = json!([{"addresses": ["10.2.0.1"]}, {"addresses": ["192.0.2.7"]}]);
    lab.apply(slice);
    let gone: Vec<Key> = published.recv().await.unwrap().iter().map(Change::key).collect();
    let key = |at: &str| Key::Backend(object("demo", "own"), at.parse().unwrap());
    assert_eq!(gone, [key("10.2.0.2"), key("10.2.0.3")], "and nothing of 192.0.2.7");
    eventually("the Event", || events(&lab, "BackendsNotPods").len() == 1).await;
    let note = events(&lab, "BackendsNotPods")[0]["note"].as_str().unwrap().to_owned();
    assert!(note.contains("192.0.2.7") && note.contains("10.2.0.0/16"), "{note}");
}

#[tokio::test]
async fn a_cluster_that_is_gone_takes_its_imports_along() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    lab.gone("east").await;
    eventually("it goes", || lab.import("hello").is_none() && lab.slices("hello", "east").is_empty()).await;
    lab.tell(Told::Heard { cluster: cluster("east") }).await;
    lab.tell(Told::Complete).await;
}

#[tokio::test]
async fn a_peer_that_is_added_makes_no_known_name_unknown() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    let name = "hello.demo.svc.clusterset.local";
    eventually("the name", || lab.ask(name, RecordKind::A).is_some_and(|ips| ips.len() == 1)).await;
    lab.joined(&["east", "north"]);
    // Something that is judged after the peer is known.
    lab.service("own", json!({}));
    lab.export("own", json!({}));
    eventually("the own one", || {
        lab.condition("serviceimports", "own", "Ready").is_some_and(|(s, _)| s == "True")
    })
    .await;
    assert!(lab.names.is_complete());
    assert!(lab.ask(name, RecordKind::A).is_some_and(|ips| ips.len() == 1));
}

#[tokio::test]
async fn a_derived_service_that_lost_its_label_is_made_anew() {
    let lab = west(options("west", &["east"])).await;
    settled(&lab).await;
    let derived = derived_name("hello");
    let label = "multicluster.kubernetes.io/service-name";
    lab.patch("services", &derived, json!({"metadata": {"labels": {label: null}}}));
    let labelled = || lab.derived("hello").is_some_and(|one| one["metadata"]["labels"][label] == "hello");
    eventually("the Service", labelled).await;
    settled(&lab).await;
}

#[tokio::test]
async fn hints_that_an_older_server_drops_are_not_written_for_ever() {
    let lab = Lab::new(options("west", &[])).await;
    lab.service("own", json!({"trafficDistribution": "PreferSameNode"}));
    lab.slice("own", &[(1, None)]);
    let mut slice = lab.find("endpointslices", "own-x").unwrap();
    slice["endpoints"][0]["nodeName"] = "n1".into();
    lab.apply(slice);
    lab.export("own", json!({}));
    let first = |lab: &Lab| lab.slices("own", "west").first().cloned();
    eventually("the slice", || {
        first(&lab).is_some_and(|one| one["endpoints"][0]["hints"]["forNodes"][0]["name"] == "n1")
    })
    .await;
    let name = first(&lab).unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let endpoints = json!([{"addresses": ["10.2.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "n1"}]);
    lab.patch("endpointslices", &name, json!({"endpoints": endpoints}));
    // What is written afterwards shows that the slice was looked at.
    lab.export("zz", json!({}));
    eventually("the marker", || lab.is("zz", "Valid", "False", "NoService")).await;
    assert_eq!(first(&lab).unwrap()["endpoints"], endpoints);
    // Another distribution is written.
    lab.patch("services", "own", json!({"spec": {"trafficDistribution": null}}));
    eventually("no hints", || {
        first(&lab).is_some_and(|one| one["metadata"]["annotations"]["hawser.dev/hints"].is_null())
    })
    .await;
}
