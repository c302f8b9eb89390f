//! Which namespaces deny by default: pure.
//!
//! A namespace denies a direction by default when a NetworkPolicy selects all its pods, has that direction among its types
//! and no rule for it, and no other that selects all pods has a rule for everything. ClusterNetworkPolicies do not count:
//! their ingress rules cannot name what is outside the cluster, and they never isolate a pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use kube::ResourceExt as _;
use mesh_core::numbers::{ANNOTATION_POLICY, POLICY_AUDIT};

use super::report::{DefaultRule, Namespace};

/// What a policy does to all pods of its namespace in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForAll {
    /// Nothing, or to some pods, or something in between.
    Neither,
    /// It isolates them and allows nothing.
    Denies,
    /// It allows everything.
    Opens,
}

/// Judges all namespaces, given with their annotations.
pub fn judge(
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
    policies: &[NetworkPolicy],
    exempt: &BTreeSet<String>,
) -> Vec<Namespace> {
    let mut by_namespace: BTreeMap<&str, Vec<&NetworkPolicy>> = BTreeMap::new();
    for policy in policies {
        by_namespace
            .entry(policy.metadata.namespace.as_deref().unwrap_or_default())
            .or_default()
            .push(policy);
    }
    let one = |(name, annotations): (&String, &BTreeMap<String, String>)| {
        let own = by_namespace.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        Namespace {
            name: name.clone(),
            ingress: rule(own, ingress),
            egress: rule(own, egress),
            audited: annotations.get(ANNOTATION_POLICY).is_some_and(|value| value == POLICY_AUDIT),
            exempt: exempt.contains(name),
        }
    };
    namespaces.iter().map(one).collect()
}

fn rule(policies: &[&NetworkPolicy], direction: impl Fn(&NetworkPolicySpec) -> ForAll) -> DefaultRule {
    let mut rule = DefaultRule::default();
    for policy in policies {
        let Some(spec) = policy.spec.as_ref().filter(|spec| selects_all(spec)) else { continue };
        match direction(spec) {
            ForAll::Neither => {}
            ForAll::Denies => rule.denied_by.push(policy.name_any()),
            ForAll::Opens => rule.opened_by.push(policy.name_any()),
        }
    }
    rule.denied_by.sort();
    rule.opened_by.sort();
    rule
}

fn selects_all(spec: &NetworkPolicySpec) -> bool {
    spec.pod_selector.as_ref().is_none_or(|selector| {
        selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    })
}

/// Is the direction among the policy's types? Where none are given: ingress always, egress if it has rules.
fn has_type(spec: &NetworkPolicySpec, wanted: &str) -> bool {
    match spec.policy_types.as_ref().filter(|types| !types.is_empty()) {
        Some(types) => types.iter().any(|present| present == wanted),
        None => wanted == "Ingress" || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

fn ingress(spec: &NetworkPolicySpec) -> ForAll {
    let rules = spec.ingress.as_deref().unwrap_or_default();
    let everything = rules.iter().any(|rule| {
        rule.from.as_ref().is_none_or(Vec::is_empty) && rule.ports.as_ref().is_none_or(Vec::is_empty)
    });
    for_all(has_type(spec, "Ingress"), rules.is_empty(), everything)
}

fn egress(spec: &NetworkPolicySpec) -> ForAll {
    let rules = spec.egress.as_deref().unwrap_or_default();
    let everything = rules.iter().any(|rule| {
        rule.to.as_ref().is_none_or(Vec::is_empty) && rule.ports.as_ref().is_none_or(Vec::is_empty)
    });
    for_all(has_type(spec, "Egress"), rules.is_empty(), everything)
}

const fn for_all(has_type: bool, no_rules: bool, everything: bool) -> ForAll {
    match (has_type, no_rules, everything) {
        (true, true, _) => ForAll::Denies,
        (true, false, true) => ForAll::Opens,
        (true, false, false) | (false, ..) => ForAll::Neither,
    }
}

#[cfg(test)]
mod tests;
