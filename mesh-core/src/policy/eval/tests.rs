use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::policy::fixture::{World, flows};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Row of §2.2.
    row: Option<u32>,
    #[serde(default)]
    says: String,
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    flows: String,
    /// Why no verdict of policy belongs here.
    elsewhere: Option<String>,
}

const NETWORK_POLICY: &str = include_str!("cases/network_policy.yaml");
const CLUSTER_NETWORK_POLICY: &str = include_str!("cases/cluster_network_policy.yaml");
const MALFORMED: &str = include_str!("cases/malformed.yaml");

fn cases(text: &str) -> Vec<Case> {
    // YAML 1.1 takes `y`, which is a name here, for true.
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true }).unwrap()
}

/// Three namespaces of three pods on three nodes, as the head of `network_policy.yaml` says.
fn base() -> World {
    let mut objects = Vec::new();
    for n in 1..=3 {
        objects.push(json!({"kind": "Node", "metadata": {"name": format!("n{n}"), "labels": {"zone": "a"}},
            "spec": {"podCIDRs": [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.77.{n}")},
                {"type": "InternalIP", "address": format!("fd00:77::{n}")}]}}));
    }
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "containerPort": port});
    let ports = [
        json!([port("web", "TCP", 80), port("dns", "UDP", 53), port("sig", "SCTP", 9000)]),
        json!([port("web", "TCP", 8080), port("dns", "UDP", 53)]),
        json!([port("web", "UDP", 80)]),
    ];
    for (namespace, last) in [("x", 11), ("y", 12), ("z", 13)] {
        let labels =
            if namespace == "x" { json!({"ns": "x"}) } else { json!({"ns": namespace, "team": "blue"}) };
        objects.push(json!({"kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
        for (pod, (node, ports)) in ["a", "b", "c"].iter().zip((1..).zip(&ports)) {
            objects.push(json!({"kind": "Pod",
                "metadata": {"name": pod, "namespace": namespace, "labels": {"pod": pod}},
                "spec": {"containers": [{"name": "c", "ports": ports}]},
                "status": {"podIPs": [{"ip": format!("10.244.{node}.{last}")},
                    {"ip": format!("fd00:10:244:{node}::{last}")}]}}));
        }
    }
    World { guarded: ["10.244.0.0/16", "fd00:10:244::/48"].map(|p| p.parse().unwrap()).to_vec(), objects }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            drop(target.as_object_mut().unwrap().remove(field));
        } else {
            merge(&mut target[field], value);
        }
    }
}

fn world(objects: &[Value]) -> World {
    let mut world = base();
    let id =
        |o: &Value| (o["kind"].clone(), o["metadata"]["namespace"].clone(), o["metadata"]["name"].clone());
    for object in objects {
        match world.objects.iter_mut().find(|o| id(o) == id(object)) {
            Some(known) => merge(known, object),
            None => world.objects.push(object.clone()),
        }
    }
    world
}

#[track_caller]
fn check(text: &str) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in cases(text) {
        if case.elsewhere.is_some() {
            continue;
        }
        let facts = world(&case.objects).facts().unwrap();
        assert!(!case.flows.trim().is_empty(), "{}: nothing to judge", case.says);
        for line in case.flows.lines() {
            for (flow, expected) in flows(&facts, line).unwrap() {
                count += 1;
                if eval_both(&facts, flow) != expected {
                    wrong.push(format!("row {:?}, {}: {line} ({flow:?})", case.row, case.says));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} verdicts differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_row_of_the_corner_cases_is_judged_as_it_says() {
    check(NETWORK_POLICY);
}

#[test]
fn every_sentence_about_cluster_network_policy_is_judged_as_it_says() {
    check(CLUSTER_NETWORK_POLICY);
}

#[test]
fn malformed_objects_are_judged_as_the_model_says() {
    check(MALFORMED);
}

#[test]
fn no_row_is_forgotten() {
    let rows: BTreeSet<u32> = cases(NETWORK_POLICY).iter().filter_map(|case| case.row).collect();
    assert_eq!(rows, (1..=47).collect());
}

#[test]
fn audit_is_no_verdict() {
    let mut facts = world(&[json!({"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"},
        "spec": {"podSelector": {}}})])
    .facts()
    .unwrap();
    facts.namespaces.get_mut("x").unwrap().audit = true;
    for (flow, expected) in flows(&facts, "y/a > x/a TCP/80 deny").unwrap() {
        assert_eq!(eval_both(&facts, flow), expected);
    }
}

#[test]
fn a_side_that_is_no_pod_has_no_policy() {
    let facts = world(&[]).facts().unwrap();
    for (flow, _) in
        flows(&facts, "node:n1,203.0.113.7 > 203.0.113.9,node:n2,10.244.1.99 TCP/80 allow").unwrap()
    {
        assert_eq!(eval(&facts, flow, Direction::Ingress), Verdict::Allow);
        assert_eq!(eval(&facts, flow, Direction::Egress), Verdict::Allow);
    }
}
