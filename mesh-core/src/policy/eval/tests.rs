use std::collections::BTreeSet;

use super::*;
use crate::policy::fixture::cases::{About, base};
use crate::policy::fixture::{flows, put};

#[track_caller]
fn check(about: About) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in about.cases().iter().filter(|case| case.elsewhere.is_none()) {
        let facts = case.facts().unwrap();
        let judged = case.flows(&facts).unwrap();
        assert!(!judged.is_empty(), "{}: nothing to judge", case.says);
        for (line, flow, expected) in judged {
            count += 1;
            if eval_both(&facts, flow) != expected {
                wrong.push(format!("row {:?}, {}: {line} ({flow:?})", case.row, case.says));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} verdicts differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_row_of_the_corner_cases_is_judged_as_it_says() {
    check(About::NetworkPolicy);
}

#[test]
fn every_sentence_about_cluster_network_policy_is_judged_as_it_says() {
    check(About::ClusterNetworkPolicy);
}

#[test]
fn malformed_objects_are_judged_as_the_model_says() {
    check(About::Malformed);
}

#[test]
fn pods_of_joined_clusters_are_judged_as_their_label_says() {
    check(About::JoinedClusters);
}

#[test]
fn no_row_is_forgotten() {
    let rows: BTreeSet<u32> = About::NetworkPolicy.cases().iter().filter_map(|case| case.row).collect();
    assert_eq!(rows, (1..=47).collect());
}

#[test]
fn audit_is_no_verdict() {
    let mut facts = base().facts().unwrap();
    let deny = serde_json::json!({"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"}});
    put(&mut facts, &deny).unwrap();
    facts.namespaces.get_mut("x").unwrap().audit = true;
    for (flow, expected) in flows(&facts, "y/a > x/a TCP/80 deny").unwrap() {
        assert_eq!(eval_both(&facts, flow), expected);
    }
}

#[test]
fn a_side_that_is_no_pod_has_no_policy() {
    let facts = base().facts().unwrap();
    let line = "node:n1,203.0.113.7 > 203.0.113.9,node:n2,10.244.1.99 TCP/80 allow";
    for (flow, _) in flows(&facts, line).unwrap() {
        assert_eq!(eval(&facts, flow, Direction::Ingress), Verdict::Allow);
        assert_eq!(eval(&facts, flow, Direction::Egress), Verdict::Allow);
    }
}
