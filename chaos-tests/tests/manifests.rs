//! The manifests of `deploy/` against Kubernetes' own types (k8s-openapi, which is generated from its OpenAPI description): what a
//! type does not know, or knows as another kind of value, would be refused or silently dropped by a cluster.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;

use chaos_tests::deploy::{MANIFESTS, UNINSTALL};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn objects() -> impl Iterator<Item = (&'static str, Value)> {
    let each = |(name, text): (&'static str, &str)| {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        objects.into_iter().map(move |object| (name, object))
    };
    MANIFESTS.into_iter().chain([UNINSTALL]).flat_map(each)
}

/// What `before` has and `after` has not, or not so.
fn lost(path: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                match after.get(key) {
                    Some(same) => lost(&format!("{path}.{key}"), value, same, out),
                    None => out.push(format!("{path}.{key} is not known")),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (at, (before, after)) in before.iter().zip(after).enumerate() {
                lost(&format!("{path}[{at}]"), before, after, out);
            }
        }
        // JSON has one kind of numbers.
        (Value::Number(before), Value::Number(after)) if before.as_f64() == after.as_f64() => {}
        (before, after) if before != after => out.push(format!("{path}: {before} is read as {after}")),
        _ => {}
    }
}

fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let read: T = match serde_json::from_value(object.clone()) {
        Ok(read) => read,
        Err(error) => return vec![error.to_string()],
    };
    let mut out = Vec::new();
    lost("", object, &serde_json::to_value(read).unwrap(), &mut out);
    out
}

fn faults(object: &Value) -> Vec<String> {
    match object["kind"].as_str().unwrap() {
        "Namespace" => typed::<Namespace>(object),
        "ServiceAccount" => typed::<ServiceAccount>(object),
        "ConfigMap" => typed::<ConfigMap>(object),
        "DaemonSet" => typed::<DaemonSet>(object),
        "ClusterRole" => typed::<ClusterRole>(object),
        "ClusterRoleBinding" => typed::<ClusterRoleBinding>(object),
        "Role" => typed::<Role>(object),
        "RoleBinding" => typed::<RoleBinding>(object),
        "ValidatingAdmissionPolicy" => typed::<ValidatingAdmissionPolicy>(object),
        "ValidatingAdmissionPolicyBinding" => typed::<ValidatingAdmissionPolicyBinding>(object),
        "Deployment" => typed::<Deployment>(object),
        "NetworkPolicy" => typed::<NetworkPolicy>(object),
        "Service" => typed::<Service>(object),
        "CustomResourceDefinition" => typed::<CustomResourceDefinition>(object),
        other => vec![format!("no type for {other} here")],
    }
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    for (name, object) in objects() {
        assert_eq!(faults(&object), Vec::<String>::new(), "{name}, {}", object["metadata"]["name"]);
    }
    // The check finds what is wrong.
    let mut wrong = objects().find(|(_, object)| object["kind"] == "DaemonSet").unwrap().1;
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = Value::Bool(true);
    assert_eq!(faults(&wrong), [".spec.template.spec.hostNetwrok is not known"]);
    wrong["spec"]["template"]["spec"]["containers"][0]["args"] = "x".into();
    assert!(faults(&wrong)[0].contains("invalid type"), "{:?}", faults(&wrong));
}

/// What the API server's validation asks of a DaemonSet and no type says.
#[test]
fn selectors_volumes_and_ports_fit_together() {
    for (name, object) in objects().filter(|(_, object)| object["kind"] == "DaemonSet") {
        let set: DaemonSet = serde_json::from_value(object).unwrap();
        let spec = set.spec.unwrap();
        let labels = spec.template.metadata.unwrap().labels.unwrap();
        for (key, value) in spec.selector.match_labels.unwrap() {
            assert_eq!(labels.get(&key), Some(&value), "{name}: the selector does not match its own pods");
        }
        let surge = spec.update_strategy.unwrap().rolling_update.and_then(|rolling| rolling.max_surge);
        let pod: PodSpec = spec.template.spec.unwrap();
        let volumes: BTreeSet<String> =
            pod.volumes.iter().flatten().map(|volume| volume.name.clone()).collect();
        let mut mounted = BTreeSet::new();
        for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
            let mounts = container.volume_mounts.iter().flatten();
            mounted.extend(mounts.map(|mount| mount.name.clone()));
            if surge.is_some() {
                assert!(container.ports.is_none(), "{name}: two pods of one node cannot have one port");
            }
            assert!(
                container.image.as_ref().is_some_and(|image| image.contains(':')),
                "{name}: an image without tag"
            );
            assert!(!container.image.as_ref().unwrap().ends_with(":latest"), "{name}");
        }
        assert_eq!(volumes, mounted, "{name}: volumes, and those that are mounted");
        assert_eq!(pod.host_network, Some(true), "{name}: before there is a network");
    }
}
