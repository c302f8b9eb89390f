//! The manifests of `deploy/`, and those that the chart gives for every set of values, against Kubernetes' OpenAPI description of
//! its objects and what its API server asks besides, in two releases; and applied to the embedded API.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chaos_tests::deploy::{MANIFESTS, UNINSTALL};
use kubeapi::Server;
use serde_json::{Value, json};
use xtask::deploy::{VALUE_SETS, manifests, parse_values};

mod fit;
mod judge;
mod rules;

/// Kinds that are not Kubernetes' own: prometheus-operator has their schemas.
const OTHERS: [&str; 1] = ["PodMonitor"];
/// Files of `deploy/` that are for other programs: the chart's are rendered here, and kind reads its own.
const NO_MANIFESTS: [&str; 2] = ["chart", "kind"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn parsed(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// Everything that `deploy/` has for each of these, by the name of the file or the values: what is rendered for the defaults is in
/// the files.
fn installations() -> Vec<(String, Vec<Value>)> {
    let files = MANIFESTS.into_iter().chain([UNINSTALL]).flat_map(|(_, text)| parsed(text));
    let mut all = vec![("deploy/".to_owned(), files.collect())];
    for values in VALUE_SETS {
        let rendered = manifests(&deploy().join("chart/hawser"), &parse_values(values).unwrap()).unwrap();
        // What Helm does not render, and installs before.
        let before =
            MANIFESTS.into_iter().filter(|(name, _)| name.starts_with("crds/") || name.starts_with("00-"));
        let before = before.flat_map(|(_, text)| parsed(text));
        all.push((
            values.to_owned(),
            before.chain(rendered.values().flat_map(|text| parsed(text))).collect(),
        ));
    }
    all
}

fn named(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap_or("?"))
}

/// All that is wrong with an object.
fn faults(release: &judge::Description, object: &Value) -> Vec<String> {
    release.faults(object).into_iter().chain(fit::faults(object)).collect()
}

#[test]
fn every_manifest_is_as_kubernetes_describes_it() {
    let releases = judge::releases();
    assert_eq!(releases.iter().map(|r| r.release.as_str()).collect::<Vec<_>>(), ["1.32.0", "1.36.0"]);
    assert!(releases.iter().all(|release| release.licence.starts_with("Apache-2.0")));
    let (mut judged, mut left_out) = (0, BTreeSet::new());
    for (values, objects) in installations() {
        for object in &objects {
            if OTHERS.contains(&object["kind"].as_str().unwrap()) {
                left_out.insert(named(object));
                continue;
            }
            for release in &releases {
                let found = faults(release, object);
                assert_eq!(found, Vec::<String>::new(), "{values}: {}, {}", named(object), release.release);
                judged += 1;
            }
        }
        assert_eq!(fit::missing(&objects), Vec::<String>::new(), "{values}");
    }
    println!("{judged} verdicts; not judged: {left_out:?}");
    assert_eq!(
        left_out,
        BTreeSet::from(["PodMonitor clustermesh".to_owned(), "PodMonitor mesh-agent".to_owned()])
    );
}

#[test]
fn no_file_of_deploy_is_forgotten() {
    let mut found = BTreeSet::new();
    let mut folders = vec![deploy()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(deploy()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !NO_MANIFESTS.contains(&name.as_str()) {
                folders.push(path);
            } else if name.ends_with(".yaml") {
                found.insert(name);
            }
        }
    }
    let known: BTreeSet<String> =
        MANIFESTS.iter().chain([&UNINSTALL]).map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known);
}

/// Each changes one field of an object, and says what has to be found. `null` takes the field away.
#[test]
fn what_a_cluster_would_refuse_is_found() {
    const POD: &str = "/spec/template/spec";
    let broken: Vec<(&str, String, Value, &str)> = vec![
        // Of the description itself: fields, types, numbers, quantities, lists.
        (
            "DaemonSet mesh-agent",
            format!("{POD}/hostNetwrok"),
            json!(true),
            "spec.template.spec.hostNetwrok: there is no such field",
        ),
        ("DaemonSet mesh-agent", format!("{POD}/hostNetwork"), json!("true"), "\"true\" is no boolean"),
        ("DaemonSet mesh-agent", format!("{POD}/containers/0/args"), json!("x"), "\"x\" is no array"),
        ("DaemonSet mesh-agent", format!("{POD}/containers/0/args/0"), json!(1), "args[0]: 1 is no string"),
        ("DaemonSet mesh-agent", format!("{POD}/containers/0/name"), Value::Null, "name is missing"),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/volumes/0/configMap"),
            Value::Null,
            "0 kinds of it instead of one",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/terminationGracePeriodSeconds"),
            json!(1.5),
            "1.5 is no int64",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/livenessProbe/periodSeconds"),
            json!(3_000_000_000_i64),
            "3000000000 is no int32",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/resources/requests/memory"),
            json!("64MB"),
            "\"64MB\" is no quantity",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/env/0/name"),
            json!("RUST_LOG"),
            "env: twice: name \"RUST_LOG\"",
        ),
        ("DaemonSet mesh-agent", "/metadata/labels/x".to_owned(), json!(1), "1 is no string"),
        (
            "DaemonSet mesh-agent",
            "/apiVersion".to_owned(),
            json!("apps/v2"),
            "no schema of DaemonSet (apps/v2)",
        ),
        (
            "CustomResourceDefinition clusterpeers.hawser.dev",
            "/spec/versions/0/schema/openAPIV3Schema/propertys".to_owned(),
            json!({}),
            "propertys: there is no such field",
        ),
        (
            "CustomResourceDefinition clusterpeers.hawser.dev",
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec/type".to_owned(),
            json!("objekt"),
            "\"objekt\" is none of",
        ),
        // Of the API server's own rules.
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/imagePullPolicy"),
            json!("IfAbsent"),
            "\"IfAbsent\" is none of Always, IfNotPresent, Never",
        ),
        ("DaemonSet mesh-agent", format!("{POD}/dnsPolicy"), json!("default"), "\"default\" is none of"),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/tolerations/0/operator"),
            json!("Any"),
            "\"Any\" is none of Exists, Equal",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/volumes/3/hostPath/type"),
            json!("Dir"),
            "\"Dir\" is none of",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/volumes/3/hostPath/path"),
            json!("/var/../etc"),
            "does not match",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/securityContext/seccompProfile/type"),
            json!("Default"),
            "\"Default\" is none of",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/livenessProbe/httpGet/port"),
            json!(70_000),
            "70000 is not within 1 and 65535",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/livenessProbe/tcpSocket"),
            json!({"port": 1}),
            "2 of exec, grpc, httpGet, tcpSocket",
        ),
        ("DaemonSet mesh-agent", format!("{POD}/containers/0/image"), Value::Null, "image is missing"),
        ("DaemonSet mesh-agent", format!("{POD}/nodeSelector/pool"), json!("a \"b\""), "does not match"),
        ("DaemonSet mesh-agent", "/metadata/labels/-x".to_owned(), json!("y"), "\"-x\" does not match"),
        (
            "DaemonSet mesh-agent",
            "/metadata/name".to_owned(),
            json!("Mesh_Agent"),
            "metadata.name: \"Mesh_Agent\" does not match",
        ),
        (
            "DaemonSet mesh-agent",
            "/spec/updateStrategy/rollingUpdate/maxUnavailable".to_owned(),
            json!("110%"),
            "\"110%\" does not match",
        ),
        ("Service clustermesh", "/spec/type".to_owned(), json!("Nodeport"), "\"Nodeport\" is none of"),
        (
            "Service clustermesh",
            "/spec/ports/0/nodePort".to_owned(),
            json!(80),
            "80 is not within 30000 and 32767",
        ),
        (
            "Service clustermesh",
            "/spec/ports/0/protocol".to_owned(),
            json!("tcp"),
            "\"tcp\" is none of TCP, UDP, SCTP",
        ),
        ("ClusterRole hawser-clustermesh", "/rules/0/verbs".to_owned(), json!([]), "nothing is in it"),
        (
            "ClusterRole hawser-clustermesh",
            "/rules/0/resources".to_owned(),
            Value::Null,
            "0 of nonResourceURLs, resources",
        ),
        (
            "RoleBinding hawser-clustermesh",
            "/roleRef/kind".to_owned(),
            json!("Rôle"),
            "\"Rôle\" is none of ClusterRole, Role",
        ),
        (
            "ValidatingAdmissionPolicy hawser-clustermesh",
            "/spec/failurePolicy".to_owned(),
            json!("Deny"),
            "\"Deny\" is none of Fail, Ignore",
        ),
        (
            "ValidatingAdmissionPolicyBinding hawser-clustermesh",
            "/spec/validationActions/0".to_owned(),
            json!("Refuse"),
            "\"Refuse\" is none of",
        ),
        ("ConfigMap hawser-config", "/data/a~1b".to_owned(), json!("x"), "\"a/b\" does not match"),
        // Of what fits together.
        ("DaemonSet mesh-agent", "/metadata/namespace".to_owned(), Value::Null, "DaemonSet is in one"),
        (
            "ClusterRole hawser-clustermesh",
            "/metadata/namespace".to_owned(),
            json!("x"),
            "ClusterRole is in none",
        ),
        (
            "DaemonSet mesh-agent",
            "/spec/selector/matchLabels/x".to_owned(),
            json!("y"),
            "does not match the pods of its own template",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/volumeMounts/0/name"),
            json!("konfig"),
            "the volume konfig is not there",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/1/name"),
            json!("mesh-agent"),
            "two containers are called mesh-agent",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/image"),
            json!("hawser.dev/hawser:latest"),
            "is no certain image",
        ),
        (
            "DaemonSet mesh-agent",
            format!("{POD}/containers/0/resources/limits"),
            json!({"memory": "1Mi"}),
            "more than it may have",
        ),
        (
            "DaemonSet mesh-agent",
            "/spec/updateStrategy/rollingUpdate/maxUnavailable".to_owned(),
            json!(0),
            "lets anything go on",
        ),
        (
            "Deployment clustermesh",
            format!("{POD}/securityContext/runAsUser"),
            json!(0),
            "runAsNonRoot, as user 0",
        ),
        (
            "Deployment clustermesh",
            format!("{POD}/containers/0/livenessProbe/httpGet/port"),
            json!("health"),
            "asks at a port health that is not there",
        ),
        (
            "Service clustermesh-dns",
            "/spec/ports/0/name".to_owned(),
            json!("dns-tcp"),
            "each has a name of its own",
        ),
        (
            "CustomResourceDefinition clusterpeers.hawser.dev",
            "/spec/names/plural".to_owned(),
            json!("peers"),
            "metadata.name is not peers.hawser.dev",
        ),
        (
            "CustomResourceDefinition clusterpeers.hawser.dev",
            "/spec/versions/0/storage".to_owned(),
            json!(false),
            "0 are stored",
        ),
    ];
    let objects = installations().remove(0).1;
    for release in judge::releases() {
        for (name, place, value, wanted) in &broken {
            let mut object = objects.iter().find(|object| named(object) == *name).unwrap().clone();
            set(&mut object, place, value);
            let found = faults(&release, &object);
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{name} {place} = {value}: {found:?}");
        }
    }
    // Between objects.
    for (gone, wanted) in [
        ("ServiceAccount mesh-agent", "DaemonSet mesh-agent: there is no ServiceAccount mesh-agent"),
        ("ConfigMap hawser-config", "Deployment clustermesh: there is no ConfigMap hawser-config"),
        ("Role hawser-clustermesh", "RoleBinding hawser-clustermesh: there is no Role hawser-clustermesh"),
        ("Deployment clustermesh", "Service clustermesh: it selects no pods"),
    ] {
        let rest: Vec<Value> = objects.iter().filter(|object| named(object) != gone).cloned().collect();
        let found = fit::missing(&rest);
        assert!(found.iter().any(|fault| fault == wanted), "without {gone}: {found:?}");
    }
}

/// Sets what is at a pointer, with whatever is missing on the way there; `null` removes it.
fn set(object: &mut Value, place: &str, value: &Value) {
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    if object.pointer(parent).is_none() {
        set(object, parent, &json!({}));
    }
    match object.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => drop(map.remove(&key).unwrap()),
        Value::Object(map) => drop(map.insert(key, value.clone())),
        Value::Array(all) => all[key.parse::<usize>().unwrap()] = value.clone(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            panic!("{place}: {other}")
        }
    }
}

#[test]
fn every_rule_is_about_a_field_that_is_there() {
    for release in judge::releases() {
        for (kind, field, _) in rules::FIELDS {
            assert!(release.knows(kind, field), "{kind}.{field} in {}", release.release);
        }
    }
}

/// As an installation does, and again over the first, as an upgrade does. The embedded API checks names, schemas of CRDs and
/// the expressions of admission policies.
#[test]
fn every_installation_applies_to_the_embedded_api() {
    chaos_tests::cluster::install_tls();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (values, objects) in installations() {
        let start = Server::builder().listen("127.0.0.1:0".parse().unwrap()).start();
        let server = runtime.block_on(start).unwrap();
        let ours: Vec<&Value> =
            objects.iter().filter(|object| !OTHERS.contains(&object["kind"].as_str().unwrap())).collect();
        for round in ["first", "second"] {
            for object in &ours {
                let text = object.to_string();
                let applied = server.store().apply_manifests(&text);
                assert!(applied.is_ok(), "{values}: {} the {round} time: {applied:?}", named(object));
            }
        }
        let refused = server.store().apply_manifests(
            &json!({"apiVersion": "apps/v1", "kind": "DaemonSett",
            "metadata": {"name": "x", "namespace": "hawser-system"}})
            .to_string(),
        );
        assert!(refused.is_err(), "{refused:?}");
        runtime.block_on(server.stop());
    }
}
