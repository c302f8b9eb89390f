//! Whose an address is: pods and nodes, and the profiles that make many of them one to every selector.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::name::NodeName;
use crate::policy::classes::AtomId;
use crate::policy::model::{Labels, NamedPort, ObjectName};
use crate::policy::problems::PolicyProblem;
use crate::policy::selector::{LabelIndex, NamespaceMatch, PodMatch, Selector, take};

/// Who can have an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Pod(ObjectName),
    Node(NodeName),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {}/{}", name.namespace, name.name),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
}

/// All that selectors can tell about an owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Pod { namespace: String, labels: Labels, ports: BTreeSet<NamedPort> },
    Node { labels: Labels },
}

/// Number of a profile; not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProfileId(u64);

/// Owners that no selector tells apart.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) who: Arc<Who>,
    owners: usize,
    /// Of its owners.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What matches it; none: its namespace is not known, so nobody can say.
    pub(crate) told: Option<Told>,
}

/// What selectors in use say of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// In order.
    pub(crate) atoms: Vec<AtomId>,
    /// Those with a name that is mentioned, in order.
    pub(crate) ports: Vec<NamedPort>,
}

#[derive(Debug)]
pub(crate) struct OwnerRecord {
    pub(crate) profile: ProfileId,
    pub(crate) ips: BTreeSet<IpAddr>,
    /// Refused: IPv4 in IPv6's clothes.
    mapped: BTreeSet<IpAddr>,
}

/// What a change of an owner touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// A profile that was not there before.
    pub(crate) profile: Option<ProfileId>,
    /// Was there a change at all?
    pub(crate) changed: bool,
}

/// All owners, their profiles and their addresses.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    owners: BTreeMap<Arc<Owner>, OwnerRecord>,
    /// Claimants of each address: one, or it is nobody's.
    claims: BTreeMap<IpAddr, Vec<Arc<Owner>>>,
    disputed: BTreeSet<IpAddr>,
    with_mapped: BTreeSet<Arc<Owner>>,
    profiles: BTreeMap<ProfileId, Profile>,
    ids: BTreeMap<Arc<Who>, ProfileId>,
    by_namespace: BTreeMap<String, BTreeSet<ProfileId>>,
    by_label: LabelIndex<ProfileId>,
    by_port_name: BTreeMap<String, BTreeSet<ProfileId>>,
    nodes: BTreeSet<ProfileId>,
    last: u64,
}

impl Owners {
    /// Sets or removes an owner.
    pub(crate) fn set(&mut self, owner: Owner, facts: Option<(Who, BTreeSet<IpAddr>)>) -> Touched {
        let mut touched = Touched::default();
        let Some((who, all)) = facts else {
            self.remove(&owner, &mut touched);
            return touched;
        };
        let is_mapped = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        let (mapped, ips): (BTreeSet<_>, BTreeSet<_>) = all.into_iter().partition(is_mapped);
        if let Some(record) = self.owners.get(&owner)
            && record.ips == ips
            && record.mapped == mapped
            && self.profiles.get(&record.profile).is_some_and(|profile| *profile.who == who)
        {
            return touched;
        }
        self.remove(&owner, &mut touched);
        touched.changed = true;
        let owner = Arc::new(owner);
        let profile = self.enter(who, &ips, &mut touched);
        for ip in &ips {
            touched.addresses.insert(*ip);
            let claimants = self.claims.entry(*ip).or_default();
            claimants.push(Arc::clone(&owner));
            if claimants.len() > 1 {
                self.disputed.insert(*ip);
            }
        }
        if !mapped.is_empty() {
            self.with_mapped.insert(Arc::clone(&owner));
        }
        self.owners.insert(owner, OwnerRecord { profile, ips, mapped });
        touched
    }

    fn remove(&mut self, owner: &Owner, touched: &mut Touched) {
        let Some(record) = self.owners.remove(owner) else { return };
        touched.changed = true;
        self.with_mapped.remove(owner);
        for ip in &record.ips {
            touched.addresses.insert(*ip);
            let Some(claimants) = self.claims.get_mut(ip) else { continue };
            claimants.retain(|claimant| **claimant != *owner);
            if claimants.len() < 2 {
                self.disputed.remove(ip);
            }
            if claimants.is_empty() {
                self.claims.remove(ip);
            }
        }
        self.leave(record.profile, &record.ips);
    }

    fn enter(&mut self, who: Who, ips: &BTreeSet<IpAddr>, touched: &mut Touched) -> ProfileId {
        if let Some(id) = self.ids.get(&who).copied()
            && let Some(profile) = self.profiles.get_mut(&id)
        {
            profile.owners += 1;
            profile.addresses.extend(ips);
            return id;
        }
        self.last += 1;
        let id = ProfileId(self.last);
        match &who {
            Who::Pod { namespace, labels, ports } => {
                self.by_namespace.entry(namespace.clone()).or_default().insert(id);
                self.by_label.insert(labels, id);
                for port in ports {
                    self.by_port_name.entry(port.name.clone()).or_default().insert(id);
                }
            }
            Who::Node { .. } => {
                self.nodes.insert(id);
            }
        }
        let who = Arc::new(who);
        self.ids.insert(Arc::clone(&who), id);
        self.profiles.insert(id, Profile { who, owners: 1, addresses: ips.clone(), told: None });
        touched.profile = Some(id);
        id
    }

    fn leave(&mut self, id: ProfileId, ips: &BTreeSet<IpAddr>) {
        let Some(profile) = self.profiles.get_mut(&id) else { return };
        profile.owners -= 1;
        if profile.owners > 0 {
            // Another of the same profile may claim it, too.
            for ip in ips {
                let claimants = self.claims.get(ip).into_iter().flatten();
                let mut records = claimants.filter_map(|owner| self.owners.get(owner));
                if !records.any(|record| record.profile == id) {
                    profile.addresses.remove(ip);
                }
            }
            return;
        }
        let Some(profile) = self.profiles.remove(&id) else { return };
        self.ids.remove(&profile.who);
        match &*profile.who {
            Who::Pod { namespace, labels, ports } => {
                take(&mut self.by_namespace, namespace, id);
                self.by_label.remove(labels, id);
                for port in ports {
                    take(&mut self.by_port_name, &port.name, id);
                }
            }
            Who::Node { .. } => {
                self.nodes.remove(&id);
            }
        }
    }

    /// Who claims an address.
    pub(crate) fn claimants(&self, address: IpAddr) -> &[Arc<Owner>] {
        self.claims.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn owner(&self, owner: &Owner) -> Option<&OwnerRecord> {
        self.owners.get(owner)
    }

    pub(crate) fn profile(&self, id: ProfileId) -> Option<&Profile> {
        self.profiles.get(&id)
    }

    pub(crate) fn profile_mut(&mut self, id: ProfileId) -> Option<&mut Profile> {
        self.profiles.get_mut(&id)
    }

    /// The profile of an address that one alone claims.
    pub(crate) fn of_address(&self, address: IpAddr) -> Option<(&Owner, &Profile)> {
        let [owner] = self.claimants(address) else { return None };
        let record = self.owners.get(owner)?;
        Some((owner, self.profiles.get(&record.profile)?))
    }

    /// Addresses in a range that anybody claims.
    pub(crate) fn addresses_in(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.claims.range(first..=last).map(|(address, _)| *address)
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = ProfileId> {
        self.by_namespace.get(namespace).into_iter().flatten().copied()
    }

    /// Profiles of pods with a port of this name.
    pub(crate) fn naming(&self, port: &str) -> impl Iterator<Item = ProfileId> {
        self.by_port_name.get(port).into_iter().flatten().copied()
    }

    /// Profiles of nodes that match.
    pub(crate) fn nodes(&self, selector: &Selector) -> Vec<ProfileId> {
        let matches = |id: &ProfileId| match self.profiles.get(id).map(|profile| &*profile.who) {
            Some(Who::Node { labels }) => selector.matches(labels),
            Some(Who::Pod { .. }) | None => false,
        };
        self.nodes.iter().copied().filter(matches).collect()
    }

    /// Profiles of pods that match; `namespace_labels` of one that is known.
    pub(crate) fn pods<'a>(
        &self,
        pods: &PodMatch,
        namespaces: impl Iterator<Item = (&'a String, &'a Labels)>,
        namespace_labels: impl Fn(&str) -> Option<&'a Labels>,
    ) -> Vec<ProfileId> {
        let mut found: Vec<ProfileId> = match (&pods.namespace, self.by_label.candidates(&pods.pods)) {
            (NamespaceMatch::Named(name), _) => self.in_namespace(name).collect(),
            (NamespaceMatch::Selected(_), Some(candidates)) => candidates,
            (NamespaceMatch::Selected(selector), None) => {
                let named = namespaces.filter(|(_, labels)| selector.matches(labels));
                named.flat_map(|(name, _)| self.in_namespace(name)).collect()
            }
        };
        found.retain(|id| match self.profiles.get(id).map(|profile| &*profile.who) {
            Some(Who::Pod { namespace, labels, .. }) => {
                namespace_labels(namespace).is_some_and(|of| pods.matches(namespace, of, labels))
            }
            Some(Who::Node { .. }) | None => false,
        });
        found
    }

    /// What is wrong with addresses.
    pub(crate) fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        for address in &self.disputed {
            let mut names: Vec<_> = self.claimants(*address).iter().map(ToString::to_string).collect();
            names.sort();
            problems
                .push(PolicyProblem::AddressClaimedTwice { address: *address, claimants: names.join(", ") });
        }
        for owner in &self.with_mapped {
            for address in self.owners.get(owner).iter().flat_map(|record| &record.mapped) {
                problems.push(PolicyProblem::AddressMapped { owner: owner.to_string(), address: *address });
            }
        }
        problems
    }
}
