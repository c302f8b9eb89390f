//! What is wrong with policies, Services and pods, by object.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::policy::problems::{PolicyProblem, PolicyRef};
use mesh_core::service::{Owner, ServiceProblem};

use super::view::View;
use crate::status::{Findings, Subject};

/// Puts it all together.
pub(super) fn gather(
    policy: &[PolicyProblem],
    services: &BTreeSet<ServiceProblem>,
    view: &View,
    trouble: &BTreeSet<(String, String)>,
) -> Findings {
    let mut wrong: BTreeMap<Subject, BTreeSet<(String, String)>> = BTreeMap::new();
    // What is no object's is told where the one agent runs that tells it.
    let nobodys = || Subject { kind: "Node", namespace: None, name: view.node().to_string() };
    let mut add = |subject: Subject, code: &str, text: String| {
        wrong.entry(subject).or_default().insert((code.to_owned(), text));
    };
    for problem in policy {
        match problem.object() {
            Some(object) => add(of_policy(object), problem.code(), problem.to_string()),
            None => add(nobodys(), problem.code(), problem.to_string()),
        }
    }
    for problem in services {
        add(of_owner(problem.owner()), problem.code(), problem.to_string());
    }
    for unread in view.unread() {
        let subject =
            Subject { kind: unread.kind, namespace: unread.namespace.clone(), name: unread.name.clone() };
        let place = match &unread.namespace {
            Some(namespace) => format!("{} {namespace}/{}", unread.kind, unread.name),
            None => format!("{} {}", unread.kind, unread.name),
        };
        add(subject, "ObjectUnreadable", format!("{place}: {}", unread.reason));
    }
    for (name, text) in view.refused_slices() {
        let (namespace, name) = (Some(name.namespace.clone()), name.name.clone());
        add(Subject { kind: "EndpointSlice", namespace, name }, "EndpointOutside", text.clone());
    }
    let cluster_policies = view.cluster_policies().cloned().collect();
    Findings { wrong, trouble: trouble.clone(), cluster_policies }
}

fn of_policy(object: &PolicyRef) -> Subject {
    match object {
        PolicyRef::Network(name) => Subject {
            kind: "NetworkPolicy",
            namespace: Some(name.namespace.clone()),
            name: name.name.clone(),
        },
        PolicyRef::Cluster(name) => {
            Subject { kind: "ClusterNetworkPolicy", namespace: None, name: name.clone() }
        }
    }
}

fn of_owner(owner: &Owner) -> Subject {
    let kind = match owner {
        Owner::Service(_) => "Service",
        Owner::Pod(_) => "Pod",
    };
    let name = owner.name();
    Subject { kind, namespace: Some(name.namespace.clone()), name: name.name.clone() }
}
