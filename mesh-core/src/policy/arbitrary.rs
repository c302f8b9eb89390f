//! Random worlds for property tests (feature `arbitrary`): of the compiler against the oracle, and of the programs
//! against both.
//!
//! Everything comes from small alphabets, so that selectors match, blocks cut through pods and addresses collide. A
//! failing world prints itself as [`World`] in JSON, which a test of fixed cases can read again.

use std::collections::BTreeSet;
use std::fmt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixture::World;
use super::model::{
    ClusterNetworkPolicySpec, NamespaceFacts, NetworkPolicySpec, NodePolicyFacts, ObjectName, PodFacts,
    PolicyFacts,
};
use crate::name::NodeName;

mod objects;
mod policies;
mod probes;

pub use objects::{address, block, labels, namespace, node, pod, selector};
pub use policies::{cluster_policy, network_policy};
pub use probes::{Interesting, flow};

/// Facts that print themselves as API objects in JSON.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RandomFacts(pub PolicyFacts);

impl fmt::Debug for RandomFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = serde_json::to_string(&World::of(&self.0)).map_err(|_| fmt::Error)?;
        f.write_str(&world)
    }
}

/// One thing that happens to the API.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// A pod is created, changed or deleted.
    Pod(ObjectName, Option<PodFacts>),
    /// A namespace.
    Namespace(String, Option<NamespaceFacts>),
    /// A node.
    Node(NodeName, Option<NodePolicyFacts>),
    /// A NetworkPolicy.
    NetworkPolicy(ObjectName, Option<NetworkPolicySpec>),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(String, Option<ClusterNetworkPolicySpec>),
}

impl Change {
    /// What the facts are afterwards.
    pub fn apply(&self, facts: &mut PolicyFacts) {
        fn set<K: Ord + Clone, V: Clone>(
            map: &mut std::collections::BTreeMap<K, V>,
            key: &K,
            value: Option<&V>,
        ) {
            match value {
                Some(value) => drop(map.insert(key.clone(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        match self {
            Self::Pod(name, value) => set(&mut facts.pods, name, value.as_ref()),
            Self::Namespace(name, value) => set(&mut facts.namespaces, name, value.as_ref()),
            Self::Node(name, value) => set(&mut facts.nodes, name, value.as_ref()),
            Self::NetworkPolicy(name, value) => set(&mut facts.network_policies, name, value.as_ref()),
            Self::ClusterPolicy(name, value) => set(&mut facts.cluster_policies, name, value.as_ref()),
        }
    }

    /// The object that is written, or what is deleted.
    fn to_json(&self) -> Value {
        let mut facts = PolicyFacts::default();
        self.apply(&mut facts);
        match (World::of(&facts).objects.pop(), self) {
            (Some(object), _) => object,
            (None, Self::Pod(name, _)) => json!({"delete": "Pod", "name": name}),
            (None, Self::Namespace(name, _)) => json!({"delete": "Namespace", "name": name}),
            (None, Self::Node(name, _)) => json!({"delete": "Node", "name": name.as_str()}),
            (None, Self::NetworkPolicy(name, _)) => json!({"delete": "NetworkPolicy", "name": name}),
            (None, Self::ClusterPolicy(name, _)) => json!({"delete": "ClusterNetworkPolicy", "name": name}),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())
    }
}

/// Namespaces that random worlds know, one of them of another cluster. Pods and policies are in one more, which nobody has told
/// us of.
pub const NAMESPACES: [&str; 4] = ["x", "y", "z", "x@east"];

fn some_namespace() -> impl Strategy<Value = String> {
    prop_oneof![
        40 => prop::sample::select(&NAMESPACES[..]).prop_map(str::to_owned),
        1 => Just("nowhere".to_owned()),
    ]
}

fn object_name(names: &'static [&'static str]) -> impl Strategy<Value = ObjectName> {
    (some_namespace(), prop::sample::select(names))
        .prop_map(|(namespace, name)| ObjectName { namespace, name: name.to_owned() })
}

fn pod_name() -> impl Strategy<Value = ObjectName> {
    object_name(&["a", "b", "c", "d"])
}

fn policy_name() -> impl Strategy<Value = ObjectName> {
    object_name(&["p", "q", "r"])
}

fn node_name() -> impl Strategy<Value = NodeName> {
    prop::sample::select(&["n1", "n2", "n3"][..])
        .prop_map(|name| name.parse().expect("these are names of nodes"))
}

fn cluster_policy_name() -> impl Strategy<Value = String> {
    prop::sample::select(&["c1", "c2", "c3", "c4"][..]).prop_map(str::to_owned)
}

/// A cluster of up to four namespaces, eight pods, three nodes, six NetworkPolicies and four ClusterNetworkPolicies, of
/// all shapes, some malformed, some with addresses that two claim.
pub fn facts() -> impl Strategy<Value = RandomFacts> {
    let guarded = prop_oneof![
        9 => Just(objects::GUARDED.to_vec()),
        1 => prop::sample::subsequence(objects::GUARDED.to_vec(), 0..=objects::GUARDED.len()),
    ];
    let guarded =
        guarded.prop_map(|all| all.iter().map(|p| p.parse().expect("these are prefixes")).collect());
    // Every namespace is there, but for a few.
    let namespaces = prop::collection::vec((namespace(), prop::bool::weighted(0.97)), NAMESPACES.len());
    let namespaces = namespaces.prop_map(|all| {
        let named = NAMESPACES.iter().zip(all).filter(|(_, (_, there))| *there);
        named.map(|(name, (facts, _))| ((*name).to_owned(), objects::named_namespace(name, facts))).collect()
    });
    (
        guarded,
        namespaces,
        prop::collection::btree_map(pod_name(), pod(), 1..=8),
        prop::collection::btree_map(node_name(), node(), 0..=3),
        prop::collection::btree_map(policy_name(), network_policy(), 0..=6),
        prop::collection::btree_map(cluster_policy_name(), cluster_policy(), 0..=4),
    )
        .prop_map(|(guarded, namespaces, pods, nodes, network_policies, cluster_policies)| {
            RandomFacts(PolicyFacts { guarded, namespaces, pods, nodes, network_policies, cluster_policies })
        })
}

/// One change, more often of what exists in [`facts`] than not.
pub fn change() -> impl Strategy<Value = Change> {
    let namespace = (prop::sample::select(&NAMESPACES[..]), prop::option::weighted(0.9, namespace()))
        .prop_map(|(name, facts)| {
            Change::Namespace(name.to_owned(), facts.map(|f| objects::named_namespace(name, f)))
        });
    prop_oneof![
        5 => (pod_name(), prop::option::weighted(0.8, pod())).prop_map(|(n, v)| Change::Pod(n, v)),
        1 => namespace,
        1 => (node_name(), prop::option::weighted(0.8, node())).prop_map(|(n, v)| Change::Node(n, v)),
        3 => (policy_name(), prop::option::weighted(0.7, network_policy()))
            .prop_map(|(n, v)| Change::NetworkPolicy(n, v)),
        2 => (cluster_policy_name(), prop::option::weighted(0.7, cluster_policy()))
            .prop_map(|(n, v)| Change::ClusterPolicy(n, v)),
    ]
}

/// The pods of one node.
pub fn subjects() -> impl Strategy<Value = BTreeSet<ObjectName>> {
    prop::collection::btree_set(pod_name(), 0..=8)
}

#[cfg(test)]
mod tests;
