//! From the API's objects to the tables of the data path, one change at a time.
//!
//! Facts are told one object at a time; [`Compiler::commit`] does the work that they cause and says what changed. Pods that
//! are alike to every selector (namespace, labels, named ports) are one *profile*, so that a selector is held against
//! profiles and not against pods. An *atom* is one thing that a rule's peer can ask of an address (a selector, a block);
//! only those of policies that hold for a pod of this node exist. What matches an address is its signature, and
//! addresses of one signature are one class. A pod's policies make a *program*, equal programs share a table, and a table
//! sees of a signature only what its program asks for.
//!
//! ```text
//!  set_pod, set_node ──► owners ─► profiles ─┐                            ┌─► addresses, blocks
//!  set_*_policy ──► read ─► policies ─► atoms ─┴► signatures ─► classes ──┤
//!  set_subjects ──────────► programs ──────────────────────► tables ──────┴─► rows ─► functions
//! ```

mod asked;
mod book;
mod cluster;
mod clusters;
mod commit;
mod network;
mod normal;
mod owners;
mod ports;
mod program;
mod read;
mod regions;
mod rules;
mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::book::Book;
use self::clusters::Asking;
use self::normal::Policy;
use self::owners::{Owner, Owners, Who};
use self::regions::Regions;
use self::rules::Rules;
use self::shelf::Shelf;
use super::classes::{Atoms, Classes};
use super::model::{
    ClusterNetworkPolicySpec, NamedPort, NamespaceFacts, NetworkPolicySpec, NodePolicyFacts, ObjectName,
    PodFacts, foreign_port, is_foreign_namespace,
};
use super::problems::{PolicyProblem, PolicyRef};
use super::selector::PodMatchIndex;
use super::tables::{ClassId, State, TableId};
use crate::name::NodeName;
pub use clusters::AskedClusters;
pub(crate) use program::{Decision, Peer};
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

/// How much the last commit had to do: proportional to what a change affects, never to the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Profiles that were held against all selectors, or against one that came into use or went out of it.
    pub profiles: usize,
    /// Addresses whose class was looked for.
    pub addresses: usize,
    /// Blocks whose class was looked for.
    pub blocks: usize,
    /// Pods of this node whose policies were put together.
    pub subjects: usize,
    /// Classes that were made.
    pub classes: usize,
    /// Tables that were made.
    pub tables: usize,
}

/// Number of a policy as it was read once; not used again.
type PolicyId = u64;

#[derive(Debug)]
struct PolicyRecord {
    policy: Arc<Policy>,
    /// Pods of this node that it holds for.
    subjects: BTreeSet<ObjectName>,
    /// Its atoms are held.
    in_use: bool,
}

#[derive(Debug, Default)]
struct SubjectRecord {
    policies: BTreeSet<PolicyId>,
    table: Option<TableId>,
}

/// Addresses of former pods and nodes that may still have flows.
#[derive(Debug, Default)]
struct Gone {
    classes: BTreeMap<IpAddr, (u64, ClassId)>,
    order: BTreeMap<u64, IpAddr>,
    last: u64,
    /// There were more than [`MAX_GONE`]: whether an address is new cannot be said any more.
    overflowed: bool,
    /// One was taken again since the last commit.
    reused: bool,
}

/// Addresses whose last class is kept after their pod has gone: all of a full node's connections to others, many times.
const MAX_GONE: usize = 65_536;

/// What changed since the last commit.
#[derive(Debug, Default)]
struct Dirty {
    profiles: BTreeSet<owners::ProfileId>,
    addresses: BTreeSet<IpAddr>,
    subjects: BTreeSet<ObjectName>,
    /// New.
    policies: BTreeSet<PolicyId>,
    /// Deleted or replaced.
    retired: BTreeSet<PolicyId>,
}

/// Compiles policy for the pods of one node. Everything is deterministic: the same calls give the same numbers.
#[derive(Debug)]
pub struct Compiler {
    namespaces: BTreeMap<String, NamespaceFacts>,
    owners: Owners,
    policies: BTreeMap<PolicyId, PolicyRecord>,
    current: BTreeMap<PolicyRef, PolicyId>,
    by_subject: PodMatchIndex<PolicyId>,
    last_policy: PolicyId,
    subjects: BTreeMap<ObjectName, SubjectRecord>,
    atoms: Atoms,
    regions: Regions,
    classes: Classes,
    shelf: Shelf,
    rules: Rules,
    gone: Gone,
    dirty: Dirty,
    book: Book,
    work: Work,
    asking: Asking,
}

impl Compiler {
    /// Knows nothing yet but the pod CIDRs of the cluster. Before the first commit no subject has a table.
    pub fn new(guarded: Vec<IpNet>) -> Self {
        Self {
            namespaces: BTreeMap::new(),
            owners: Owners::default(),
            policies: BTreeMap::new(),
            current: BTreeMap::new(),
            by_subject: PodMatchIndex::default(),
            last_policy: 0,
            subjects: BTreeMap::new(),
            atoms: Atoms::default(),
            regions: Regions::new(&guarded),
            classes: Classes::starting_at(0),
            shelf: Shelf::starting_at(0, 0),
            rules: Rules::starting_at(0),
            gone: Gone::default(),
            dirty: Dirty::default(),
            book: Book::default(),
            work: Work::default(),
            asking: Asking::default(),
        }
    }

    /// Gives out no number below these. To be called before the first commit.
    #[must_use]
    pub fn starting_at(self, first: FirstNumbers) -> Self {
        Self {
            classes: Classes::starting_at(first.class),
            shelf: Shelf::starting_at(first.table, first.function),
            rules: Rules::starting_at(first.rule),
            ..self
        }
    }

    /// Other prefixes are guarded ([`super::model::PolicyFacts::guarded`]).
    pub fn set_guarded(&mut self, guarded: &[IpNet]) {
        self.regions.set_guarded(guarded);
    }

    /// Which pods of other clusters policies ask for. Nothing has to be known of the others.
    pub fn asked_clusters(&self) -> &AskedClusters {
        self.asking.asked()
    }

    /// A pod with addresses of its own (also of other nodes), or none: it is gone.
    pub fn set_pod(&mut self, name: ObjectName, facts: Option<PodFacts>) {
        let foreign = is_foreign_namespace(&name.namespace);
        let facts = facts.map(|PodFacts { labels, ips, mut ports }| {
            if foreign {
                ports = ports.into_iter().map(|p| NamedPort { name: foreign_port(&p.name), ..p }).collect();
            }
            (Who::Pod { namespace: name.namespace.clone(), labels, ports }, ips)
        });
        if self.set_owner(Owner::Pod(name.clone()), facts) && self.subjects.contains_key(&name) {
            self.dirty.subjects.insert(name);
        }
    }

    /// A namespace, or none: it is gone. Pods of a namespace that is not known are not known either.
    pub fn set_namespace(&mut self, name: String, facts: Option<NamespaceFacts>) {
        let before = self.namespaces.get(&name);
        if before == facts.as_ref() {
            return;
        }
        if before.map(|n| &n.labels) != facts.as_ref().map(|n| &n.labels) {
            self.dirty.profiles.extend(self.owners.in_namespace(&name));
        }
        self.dirty.subjects.extend(in_namespace(&self.subjects, &name).cloned());
        match facts {
            Some(facts) => self.namespaces.insert(name, facts),
            None => self.namespaces.remove(&name),
        };
    }

    /// A node, or none: it is gone.
    pub fn set_node(&mut self, name: NodeName, facts: Option<NodePolicyFacts>) {
        let facts = facts.map(|NodePolicyFacts { labels, ips }| (Who::Node { labels }, ips));
        self.set_owner(Owner::Node(name), facts);
    }

    /// A NetworkPolicy, or none: it is gone.
    pub fn set_network_policy(&mut self, name: ObjectName, spec: Option<NetworkPolicySpec>) {
        let policy = spec.map(|spec| network::read(&name, &spec));
        self.set_policy(PolicyRef::Network(name), policy);
    }

    /// A ClusterNetworkPolicy, or none: it is gone.
    pub fn set_cluster_policy(&mut self, name: String, spec: Option<ClusterNetworkPolicySpec>) {
        let policy = spec.map(|spec| cluster::read(&name, &spec));
        self.set_policy(PolicyRef::Cluster(name), policy);
    }

    /// The pods of this node, whose tables are wanted. One that is not known yet has no table until it is.
    pub fn set_subjects(&mut self, subjects: BTreeSet<ObjectName>) {
        let now: BTreeSet<_> = self.subjects.keys().cloned().collect();
        self.dirty.subjects.extend(now.symmetric_difference(&subjects).cloned());
        for name in now.difference(&subjects) {
            // What it holds is let go by the commit.
            if let Some(record) = self.subjects.remove(name) {
                self.let_go(name, &record);
            }
        }
        for name in subjects {
            self.subjects.entry(name).or_default();
        }
    }

    /// The last flow with an address that is gone has ended: its class may go, too.
    pub fn forget(&mut self, address: IpAddr) {
        if let Some((order, class)) = self.gone.classes.remove(&address) {
            self.gone.order.remove(&order);
            self.classes.leave(class);
        }
    }

    /// What the last commit made.
    pub const fn state(&self) -> &State {
        &self.book.state
    }

    /// How much the last commit had to do.
    pub const fn work(&self) -> Work {
        self.work
    }

    /// What is wrong with the facts, in order and each once.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems: BTreeSet<_> = self.owners.problems().into_iter().collect();
        for id in self.current.values() {
            let Some(record) = self.policies.get(id) else { continue };
            problems.extend(record.policy.problems.iter().cloned());
            problems.extend(self.unknown_names(&record.policy));
        }
        problems.into_iter().collect()
    }

    /// The rule of a number in a [`super::tables::PortVerdict`]; for a while also of policies that are deleted.
    pub fn rule(&self, number: u32) -> Option<&RuleRef> {
        self.rules.get(number)
    }

    fn set_owner(&mut self, owner: Owner, facts: Option<(Who, BTreeSet<IpAddr>)>) -> bool {
        let touched = self.owners.set(owner, facts);
        self.dirty.addresses.extend(touched.addresses);
        self.dirty.profiles.extend(touched.profile);
        touched.changed
    }

    fn set_policy(&mut self, object: PolicyRef, policy: Option<Policy>) {
        let before = self.current.get(&object).copied();
        if let (Some(old), Some(new)) = (before.and_then(|id| self.policies.get(&id)), &policy)
            && *old.policy == *new
        {
            return;
        }
        if let Some(id) = before {
            if let Some(record) = self.policies.get(&id) {
                self.by_subject.remove(&record.policy.subject, id);
                self.asking.remove(&record.policy);
                self.dirty.subjects.extend(record.subjects.iter().cloned());
            }
            self.dirty.policies.remove(&id);
            self.dirty.retired.insert(id);
            self.current.remove(&object);
        }
        let Some(policy) = policy else {
            self.rules.delete(&object);
            return;
        };
        self.last_policy += 1;
        let id = self.last_policy;
        self.by_subject.insert(&policy.subject, id);
        self.asking.insert(&policy);
        self.current.insert(object, id);
        let record = PolicyRecord { policy: Arc::new(policy), subjects: BTreeSet::new(), in_use: false };
        self.policies.insert(id, record);
        self.dirty.policies.insert(id);
    }
}

impl Gone {
    /// An address lost its owner. Returns the class that is let go for it, if there was no more room.
    fn insert(&mut self, address: IpAddr, class: ClassId) -> Option<ClassId> {
        self.last += 1;
        self.order.insert(self.last, address);
        self.classes.insert(address, (self.last, class));
        if self.classes.len() <= MAX_GONE {
            return None;
        }
        self.overflowed = true;
        let (_, oldest) = self.order.pop_first()?;
        self.classes.remove(&oldest).map(|(_, class)| class)
    }

    /// An address has an owner. Returns the class that it had before.
    fn remove(&mut self, address: IpAddr) -> Option<ClassId> {
        self.reused |= self.overflowed;
        let (order, class) = self.classes.remove(&address)?;
        self.order.remove(&order);
        self.reused = true;
        Some(class)
    }
}

/// Names of one namespace.
fn in_namespace<'a, V>(
    objects: &'a BTreeMap<ObjectName, V>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a ObjectName> {
    let first = ObjectName { namespace: namespace.to_owned(), name: String::new() };
    objects.range(first..).map(|(name, _)| name).take_while(move |name| name.namespace == namespace)
}

#[cfg(test)]
mod tests;
