//! The cases of the Multi-Cluster Services conformance suite that need no traffic, between two clusters that tell each other.
//! East is the older one of two exports, also when both are made in one second.

use std::time::Duration;

use mesh_core::mcs::names::RecordKind;
use serde_json::{Value, json};

use crate::lab::{Lab, Options, Pair, eventually, options};

const LEASE: Duration = Duration::from_secs(60);

async fn pair() -> Pair {
    Pair::new(LEASE).await
}

async fn imported(labs: &[&Lab], name: &str) {
    for lab in labs {
        let ready = |lab: &Lab| {
            lab.condition("serviceimports", name, "Ready") == Some(("True".to_owned(), "Ready".to_owned()))
        };
        eventually("the import is ready", || ready(lab)).await;
    }
}

fn spec(lab: &Lab, name: &str) -> Value {
    lab.import(name).map(|import| import["spec"].clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_cluster_ip_service_is_imported_everywhere_while_it_is_exported_and_no_longer() {
    let pair = pair().await;
    pair.east.service("hello", json!({}));
    pair.east.slice("hello", &[(1, None), (2, None)]);
    // Not exported: nothing anywhere. Another one that is, is imported after it.
    pair.east.service("other", json!({}));
    pair.east.export("other", json!({}));
    imported(&pair.both(), "other").await;
    assert!(pair.both().iter().all(|lab| lab.import("hello").is_none() && lab.derived("hello").is_none()));
    pair.east.export("hello", json!({}));
    imported(&pair.both(), "hello").await;
    eventually("Valid", || pair.east.is("hello", "Valid", "True", "Valid")).await;
    eventually("Ready", || pair.east.is("hello", "Ready", "True", "Ready")).await;
    eventually("no conflict", || pair.east.is("hello", "Conflict", "False", "NoConflicts")).await;
    for lab in pair.both() {
        let spec = spec(lab, "hello");
        assert_eq!(spec["type"], "ClusterSetIP");
        assert_eq!(spec["ports"], json!([{"name": "tcp", "port": 42, "protocol": "TCP"}]));
        let derived = lab.derived("hello").unwrap();
        assert_eq!(spec["ips"], derived["spec"]["clusterIPs"]);
        assert_eq!(lab.import("hello").unwrap()["status"]["clusters"], json!([{"cluster": "east"}]));
        eventually("slices", || lab.slices("hello", "east").len() == 1).await;
        let slice = &lab.slices("hello", "east")[0];
        let labels = &slice["metadata"]["labels"];
        assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "clustermesh.hawser.dev");
        assert_eq!(labels["kubernetes.io/service-name"], derived["metadata"]["name"]);
        assert_eq!(
            slice["metadata"]["ownerReferences"][0]["uid"],
            lab.import("hello").unwrap()["metadata"]["uid"]
        );
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(slice["ports"][0]["port"], 8042);
        let ip = spec["ips"][0].as_str().unwrap().to_owned();
        let name = "hello.demo.svc.clusterset.local";
        eventually("its name", || lab.ask(name, RecordKind::A) == Some(vec![ip.clone()])).await;
        let port = lab.ask("_tcp._tcp.hello.demo.svc.clusterset.local", RecordKind::Srv);
        assert_eq!(port, Some(vec![format!("42 {name}.")]));
        assert_eq!(lab.ask("hello.demo.svc.cluster.local", RecordKind::A), None);
    }
    pair.east.delete("serviceexports", "hello");
    for lab in pair.both() {
        let gone = || lab.import("hello").is_none() && lab.derived("hello").is_none();
        eventually("it goes", || gone() && lab.slices("hello", "east").is_empty()).await;
        eventually("its name goes", || lab.ask("hello.demo.svc.clusterset.local", RecordKind::A).is_none())
            .await;
    }
    assert!(pair.east.find("services", "hello").is_some(), "the exported Service is its owner's");
}

#[tokio::test]
async fn an_import_exists_while_one_cluster_exports() {
    let pair = pair().await;
    for lab in pair.both() {
        lab.service("hello", json!({}));
        lab.export("hello", json!({}));
    }
    let clusters = |lab: &Lab| lab.import("hello").map(|import| import["status"]["clusters"].clone());
    let two = json!([{"cluster": "east"}, {"cluster": "west"}]);
    for lab in pair.both() {
        eventually("both", || clusters(lab) == Some(two.clone())).await;
    }
    imported(&pair.both(), "hello").await;
    let ips = pair.both().map(|lab| spec(lab, "hello")["ips"].clone());
    pair.east.delete("serviceexports", "hello");
    for lab in pair.both() {
        eventually("one", || clusters(lab) == Some(json!([{"cluster": "west"}]))).await;
    }
    assert_eq!(pair.both().map(|lab| spec(lab, "hello")["ips"].clone()), ips, "addresses stay");
    pair.west.delete("serviceexports", "hello");
    for lab in pair.both() {
        eventually("none", || lab.import("hello").is_none()).await;
    }
}

#[tokio::test]
async fn what_the_service_says_is_what_the_import_says() {
    let pair = pair().await;
    pair.east.service(
        "hello",
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 42}},
            "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "tcp", "port": 42, "appProtocol": "kubernetes.io/h2c"}, {"name": "udp", "port": 42, "protocol": "UDP"}]}),
    );
    pair.east.export("hello", json!({}));
    imported(&pair.both(), "hello").await;
    for lab in pair.both() {
        let spec = spec(lab, "hello");
        assert_eq!(spec["sessionAffinity"], "ClientIP");
        assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 42);
        assert_eq!(spec["internalTrafficPolicy"], "Local");
        assert_eq!(spec["trafficDistribution"], "PreferClose");
        assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(spec["ips"].as_array().unwrap().len(), 2, "one of each family, in their order");
        assert!(
            spec["ips"][0].as_str().unwrap().contains('.') && spec["ips"][1].as_str().unwrap().contains(':')
        );
        let ports = json!([{"name": "tcp", "port": 42, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
            {"name": "udp", "port": 42, "protocol": "UDP"}]);
        assert_eq!(spec["ports"], ports);
        let derived = lab.derived("hello").unwrap();
        assert_eq!(derived["spec"]["sessionAffinity"], "ClientIP");
        assert_eq!(derived["spec"]["selector"], Value::Null);
    }
    // What changes there changes everywhere.
    pair.east.patch("services", "hello", json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": null, "trafficDistribution": null}}));
    for lab in pair.both() {
        let none = |spec: &Value| spec["sessionAffinity"] == "None" && spec["trafficDistribution"].is_null();
        eventually("the change", || none(&spec(lab, "hello"))).await;
        let derived = || lab.derived("hello").unwrap()["spec"].clone();
        eventually("the Service", || derived()["sessionAffinityConfig"].is_null()).await;
    }
}

#[tokio::test]
async fn a_service_of_both_families_has_those_that_the_cluster_has_for_services() {
    for (service_cidrs, first) in [(vec!["10.96.0.0/16"], '.'), (vec!["fd00:96::/112", "10.96.0.0/16"], ':')]
    {
        let count = service_cidrs.len();
        let [east, west] = [options("east", &["west"]), options("west", &["east"])];
        let west = Options { service_cidrs, lease: LEASE, ..west };
        let pair = Pair::of(Options { lease: LEASE, ..east }, west).await;
        let both = json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
        pair.east.service("hello", both);
        pair.east.export("hello", json!({}));
        imported(&pair.both(), "hello").await;
        let [of_east, of_west] = pair.both().map(|lab| spec(lab, "hello")["ips"].clone());
        assert_eq!(of_east.as_array().unwrap().len(), 2, "{of_east}");
        assert_eq!(of_west.as_array().unwrap().len(), count, "{of_west}");
        assert!(of_west[0].as_str().unwrap().contains(first), "in that cluster's order: {of_west}");
        pair.east.patch("services", "hello", json!({"spec": {"sessionAffinity": "ClientIP"}}));
        eventually("the change", || spec(&pair.west, "hello")["sessionAffinity"] == "ClientIP").await;
        let derived = || pair.west.derived("hello").unwrap()["spec"].clone();
        eventually("the Service", || derived()["sessionAffinity"] == "ClientIP").await;
        assert_eq!(derived()["clusterIPs"], of_west, "it keeps its addresses");
    }
}

#[tokio::test]
async fn ports_are_united_and_the_oldest_wins_a_dispute() {
    let pair = pair().await;
    pair.east.service("hello", json!({"ports": [{"name": "tcp", "port": 42}]}));
    pair.west
        .service("hello", json!({"ports": [{"name": "tcp", "port": 45}, {"name": "stcp", "port": 142}]}));
    for lab in pair.both() {
        lab.slice("hello", &[(1, None)]);
        lab.export("hello", json!({}));
    }
    let ports = json!([{"name": "tcp", "port": 42, "protocol": "TCP"}, {"name": "stcp", "port": 142, "protocol": "TCP"}]);
    for lab in pair.both() {
        eventually("the union", || spec(lab, "hello")["ports"] == ports).await;
        eventually("the conflict", || lab.is("hello", "Conflict", "True", "PortConflict")).await;
        // Traffic for a port goes only to those that have it.
        eventually("east's slice", || lab.slices("hello", "east").len() == 1).await;
        assert_eq!(lab.slices("hello", "east")[0]["ports"].as_array().unwrap().len(), 1);
        assert!(lab.slices("hello", "west").is_empty(), "its slice has no port of the union");
    }
}

#[tokio::test]
async fn a_headless_service_has_names_and_no_address() {
    let pair = pair().await;
    pair.east.service("hello", json!({"clusterIP": "None"}));
    pair.east.slice("hello", &[(1, Some("hello-0")), (2, None)]);
    pair.east.export("hello", json!({}));
    imported(&pair.both(), "hello").await;
    for lab in pair.both() {
        let spec = spec(lab, "hello");
        assert_eq!((&spec["type"], &spec["ips"]), (&"Headless".into(), &Value::Null));
        assert!(lab.derived("hello").is_none());
        eventually("slices", || lab.slices("hello", "east").len() == 1).await;
        let labels = &lab.slices("hello", "east")[0]["metadata"]["labels"];
        assert_eq!(labels["kubernetes.io/service-name"], Value::Null);
        let whole = "hello.demo.svc.clusterset.local";
        let two = Some(vec!["10.1.0.1".to_owned(), "10.1.0.2".to_owned()]);
        eventually("its names", || lab.ask(whole, RecordKind::A) == two).await;
        let one = lab.ask(&format!("hello-0.east.{whole}"), RecordKind::A);
        assert_eq!(one, Some(vec!["10.1.0.1".to_owned()]));
        let dashed = lab.ask(&format!("10-1-0-2.east.{whole}"), RecordKind::A);
        assert_eq!(dashed, Some(vec!["10.1.0.2".to_owned()]));
        let ports = lab.ask(&format!("_tcp._tcp.{whole}"), RecordKind::Srv).unwrap();
        assert_eq!(ports, [format!("8042 10-1-0-2.east.{whole}."), format!("8042 hello-0.east.{whole}.")]);
        assert_eq!(lab.ask(&format!("east.{whole}"), RecordKind::A), Some(Vec::new()), "no record");
    }
    pair.east.delete("serviceexports", "hello");
    for lab in pair.both() {
        eventually("it goes", || lab.import("hello").is_none() && lab.slices("hello", "east").is_empty())
            .await;
    }
}

#[tokio::test]
async fn what_cannot_be_exported_says_so_and_is_not_imported() {
    let pair = pair().await;
    pair.east.export("late", json!({}));
    eventually("no Service", || pair.east.is("late", "Valid", "False", "NoService")).await;
    pair.east.apply(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere", "namespace": "demo"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}}),
    );
    pair.east.export("elsewhere", json!({}));
    eventually("the type", || pair.east.is("elsewhere", "Valid", "False", "InvalidServiceType")).await;
    assert!(pair.east.is("elsewhere", "Ready", "False", "Failed"));
    pair.east.service("late", json!({}));
    eventually("it came", || pair.east.is("late", "Valid", "True", "Valid")).await;
    imported(&pair.both(), "late").await;
    assert!(pair.both().iter().all(|lab| lab.import("elsewhere").is_none()));
    // A derived Service is no export either, or imports would be imported.
    let derived = mesh_core::mcs::derived_name("late");
    pair.west.export(&derived, json!({}));
    eventually("the type", || pair.west.is(&derived, "Valid", "False", "InvalidServiceType")).await;
    assert!(pair.both().iter().all(|lab| lab.import(&derived).is_none()));
}

#[tokio::test]
async fn of_two_types_the_oldest_wins_and_both_hear_of_it() {
    let pair = pair().await;
    pair.east.service("hello", json!({}));
    pair.east.export("hello", json!({}));
    imported(&pair.both(), "hello").await;
    pair.west.service("hello", json!({"clusterIP": "None"}));
    pair.west.export("hello", json!({}));
    for lab in pair.both() {
        eventually("the conflict", || lab.is("hello", "Conflict", "True", "TypeConflict")).await;
        assert_eq!(spec(lab, "hello")["type"], "ClusterSetIP");
    }
    pair.west.delete("serviceexports", "hello");
    eventually("it is over", || pair.east.is("hello", "Conflict", "False", "NoConflicts")).await;
}

#[tokio::test]
async fn labels_and_annotations_travel_and_their_conflict_is_told() {
    let pair = pair().await;
    pair.east.service("hello", json!({}));
    pair.east.export("hello", json!({"exportedLabels": {"team": "a"}, "exportedAnnotations": {"note": "b"}}));
    imported(&pair.both(), "hello").await;
    pair.west.service("hello", json!({}));
    pair.west.export("hello", json!({"exportedLabels": {"team": "z"}, "exportedAnnotations": {"note": "y"}}));
    for lab in pair.both() {
        let reasons = "AnnotationsConflict,LabelsConflict";
        eventually("the conflict", || lab.is("hello", "Conflict", "True", reasons)).await;
        let metadata = &lab.import("hello").unwrap()["metadata"];
        assert_eq!(
            (&metadata["labels"]["team"], &metadata["annotations"]["note"]),
            (&"a".into(), &"b".into())
        );
    }
}
