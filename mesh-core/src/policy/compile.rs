//! From the API's objects to the tables of the data path, one change at a time.
//!
//! Facts are told one object at a time; [`Compiler::commit`] does the work that they cause and says what changed. Pods that
//! are alike to every selector (namespace, labels, named ports) are one profile, so that a selector is held against
//! profiles and not against pods.

mod rules;

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::model::{
    ClusterNetworkPolicySpec, NamespaceFacts, NetworkPolicySpec, NodePolicyFacts, ObjectName, PodFacts,
    PolicyFacts,
};
use super::problems::PolicyProblem;
use super::tables::{Delta, State};
use crate::name::NodeName;
pub use rules::RuleRef;

/// The first numbers that a compiler gives out, so that those of an earlier life are not used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstNumbers {
    /// Of a class; at least [`super::tables::ClassId::FIRST`].
    pub class: u32,
    /// Of a table; at least 1.
    pub table: u32,
    /// Of a port function; at least [`super::tables::FnId::FIRST`].
    pub function: u32,
    /// Of a rule; at least 1, below 2³¹.
    pub rule: u32,
}

/// Compiles policy for the pods of one node. Everything is deterministic: the same calls give the same numbers.
#[derive(Debug, Default)]
pub struct Compiler {
    facts: PolicyFacts,
    subjects: BTreeSet<ObjectName>,
    state: State,
}

impl Compiler {
    /// Knows nothing yet but the pod CIDRs of the cluster. Before the first commit no subject has a table.
    pub fn new(guarded: Vec<IpNet>) -> Self {
        Self { facts: PolicyFacts { guarded, ..PolicyFacts::default() }, ..Self::default() }
    }

    /// Gives out no number below these. To be called before the first commit.
    #[must_use]
    pub fn starting_at(self, _first: FirstNumbers) -> Self {
        self
    }

    /// A pod with addresses of its own (also of other nodes), or none: it is gone.
    pub fn set_pod(&mut self, name: ObjectName, facts: Option<PodFacts>) {
        set(&mut self.facts.pods, name, facts);
    }

    /// A namespace, or none: it is gone. Pods of a namespace that is not known are not known either.
    pub fn set_namespace(&mut self, name: String, facts: Option<NamespaceFacts>) {
        set(&mut self.facts.namespaces, name, facts);
    }

    /// A node, or none: it is gone.
    pub fn set_node(&mut self, name: NodeName, facts: Option<NodePolicyFacts>) {
        set(&mut self.facts.nodes, name, facts);
    }

    /// A NetworkPolicy, or none: it is gone.
    pub fn set_network_policy(&mut self, name: ObjectName, spec: Option<NetworkPolicySpec>) {
        set(&mut self.facts.network_policies, name, spec);
    }

    /// A ClusterNetworkPolicy, or none: it is gone.
    pub fn set_cluster_policy(&mut self, name: String, spec: Option<ClusterNetworkPolicySpec>) {
        set(&mut self.facts.cluster_policies, name, spec);
    }

    /// The pods of this node, whose tables are wanted. One that is not known yet has no table until it is.
    pub fn set_subjects(&mut self, subjects: BTreeSet<ObjectName>) {
        self.subjects = subjects;
    }

    /// The last flow with an address that is gone has ended: its class may go, too.
    pub fn forget(&mut self, _address: std::net::IpAddr) {}

    /// Does the work that the calls since the last commit cause, and says what changed.
    pub fn commit(&mut self) -> Delta {
        Delta::default()
    }

    /// What the last commit made.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What is wrong with the facts of the last commit, in order and each once.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        Vec::new()
    }

    /// The rule of a number in a [`super::tables::PortVerdict`].
    pub fn rule(&self, _number: u32) -> Option<&RuleRef> {
        None
    }
}

fn set<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
