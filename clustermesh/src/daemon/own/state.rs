//! From what the API server says of this cluster's nodes, pods and namespaces to what is told of them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::announcement::{Announcement, MAX_ENDPOINTS};
use mesh_core::clusters::{
    Change, ClusterName, Key, LabelSet, LabelSetId, Object, OwnCluster, RemoteEndpoint, RemoteNode,
};
use mesh_core::name::NodeName;
use mesh_core::policy::model::{Labels, NamedPort, ObjectName};
use mesh_core::prefix;
use sha2::{Digest as _, Sha256};

use crate::daemon::publish::in_order;

/// What is read of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFact {
    /// `metadata.uid`.
    pub uid: String,
    /// Seconds since 1970.
    pub created: i64,
    /// `spec.podCIDRs` that can be read.
    pub pod_cidrs: Vec<IpNet>,
    /// InternalIPs that can be read.
    pub internal_ips: Vec<IpAddr>,
    /// `hawser.dev/endpoint`, where it can be read: goes before what the node announces.
    pub endpoints: Option<Vec<IpAddr>>,
    /// `hawser.dev/wireguard`, where it can be read. Without it nobody can reach the node's pods.
    pub announcement: Option<Announcement>,
}

/// What is read of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFact {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, as its node's agent wrote them at ADD.
    pub ips: BTreeSet<IpAddr>,
    /// Ports that its containers name.
    pub ports: BTreeSet<NamedPort>,
}

/// This cluster, as it is told.
#[derive(Debug)]
pub struct OwnState {
    cluster: ClusterName,
    /// Pod CIDRs of the cluster, as configured: nothing outside them is told.
    guarded: Vec<IpNet>,
    nodes: BTreeMap<Arc<NodeName>, NodeFact>,
    /// CIDRs of nodes that are told, by their first address; they do not overlap.
    cidrs: BTreeMap<IpAddr, (IpNet, Arc<NodeName>)>,
    pods: BTreeMap<ObjectName, PodFact>,
    claims: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    namespaces: BTreeMap<Arc<str>, Arc<Labels>>,
    sets: LabelSets,
    told_nodes: BTreeMap<Arc<NodeName>, Arc<RemoteNode>>,
    told_endpoints: BTreeMap<IpAddr, RemoteEndpoint>,
}

/// Label sets in use, with how many endpoints have each.
///
/// Their numbers are made of what is in them: a new leader gives the same ones, so that after its first snapshot nothing is
/// different to anybody.
#[derive(Debug, Default)]
struct LabelSets {
    used: BTreeMap<Arc<LabelSet>, (LabelSetId, usize)>,
    by_id: BTreeMap<LabelSetId, Arc<LabelSet>>,
}

impl LabelSets {
    /// One more endpoint has it. True: it is new.
    fn take(&mut self, set: LabelSet) -> (LabelSetId, bool) {
        if let Some((id, users)) = self.used.get_mut(&set) {
            *users += 1;
            return (*id, false);
        }
        let mut id = number(&set);
        while self.by_id.contains_key(&id) {
            id = LabelSetId(id.0.wrapping_add(1));
        }
        let set = Arc::new(set);
        self.by_id.insert(id, Arc::clone(&set));
        self.used.insert(set, (id, 1));
        (id, true)
    }

    /// One endpoint less has it. True: it is not used any more.
    fn give(&mut self, id: LabelSetId) -> bool {
        let Some(set) = self.by_id.get(&id) else { return false };
        let Some((_, users)) = self.used.get_mut(set) else { return false };
        *users -= 1;
        let last = *users == 0;
        if last {
            self.used.remove(set);
            self.by_id.remove(&id);
        }
        last
    }
}

fn number(set: &LabelSet) -> LabelSetId {
    let mut digest = Sha256::new();
    // Each piece with its length, so that no two sets are one text.
    let mut piece = |text: &str| {
        digest.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(text.as_bytes());
    };
    piece(&set.namespace);
    piece(&set.labels.len().to_string());
    for (key, value) in &set.labels {
        piece(key);
        piece(value);
    }
    for port in &set.ports {
        piece(&port.name);
        piece(&format!("{:?}/{}", port.protocol, port.port));
    }
    LabelSetId(digest.finalize().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

impl OwnState {
    /// Nothing yet.
    pub fn new(cluster: ClusterName, guarded: Vec<IpNet>) -> Self {
        Self {
            cluster,
            guarded,
            nodes: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            sets: LabelSets::default(),
            told_nodes: BTreeMap::new(),
            told_endpoints: BTreeMap::new(),
        }
    }

    /// What others may not claim.
    pub fn own(&self) -> OwnCluster {
        let announced =
            self.nodes.iter().filter_map(|(name, node)| Some((name, node.announcement.as_ref()?)));
        let keys = announced.flat_map(|(name, announcement)| {
            announcement.slots.iter().map(|slot| (slot.public_key, NodeName::clone(name)))
        });
        let addresses = self.nodes.iter().flat_map(|(name, node)| {
            let all = node.internal_ips.iter().chain(node.endpoints.iter().flatten());
            all.map(|address| (*address, NodeName::clone(name)))
        });
        OwnCluster {
            name: self.cluster.clone(),
            pod_cidrs: self.guarded.clone(),
            keys: keys.collect(),
            addresses: addresses.collect(),
        }
    }

    /// All nodes there are.
    pub fn all_nodes(&mut self, nodes: BTreeMap<Arc<NodeName>, NodeFact>) -> Vec<Change> {
        self.nodes = nodes;
        self.refresh_nodes()
    }

    /// One node; none: it is gone.
    pub fn node(&mut self, name: Arc<NodeName>, fact: Option<NodeFact>) -> Vec<Change> {
        let before = match fact.clone() {
            Some(fact) => self.nodes.insert(name, fact),
            None => self.nodes.remove(&name),
        };
        // As with every heartbeat in its status.
        if before == fact { Vec::new() } else { self.refresh_nodes() }
    }

    /// All pods there are.
    pub fn all_pods(&mut self, pods: BTreeMap<ObjectName, PodFact>) -> Vec<Change> {
        let mut touched: BTreeSet<IpAddr> = self.claims.keys().copied().collect();
        self.claims.clear();
        for (name, pod) in &pods {
            for address in &pod.ips {
                self.claims.entry(*address).or_default().insert(name.clone());
            }
        }
        self.pods = pods;
        touched.extend(self.claims.keys());
        self.refresh_endpoints(touched)
    }

    /// One pod; none: it is gone.
    pub fn pod(&mut self, name: ObjectName, fact: Option<PodFact>) -> Vec<Change> {
        let before = self.pods.remove(&name);
        if before == fact {
            self.pods.extend(before.map(|pod| (name, pod)));
            return Vec::new();
        }
        let mut touched = BTreeSet::new();
        for address in before.into_iter().flat_map(|pod| pod.ips) {
            touched.insert(address);
            if let Some(claimants) = self.claims.get_mut(&address) {
                claimants.remove(&name);
                if claimants.is_empty() {
                    self.claims.remove(&address);
                }
            }
        }
        if let Some(fact) = fact {
            for address in &fact.ips {
                touched.insert(*address);
                self.claims.entry(*address).or_default().insert(name.clone());
            }
            self.pods.insert(name, fact);
        }
        self.refresh_endpoints(touched)
    }

    /// All namespaces there are.
    pub fn all_namespaces(&mut self, all: BTreeMap<Arc<str>, Arc<Labels>>) -> Vec<Change> {
        let gone = self.namespaces.keys().filter(|name| !all.contains_key(*name));
        let gone: Vec<Change> = gone.map(|name| Change::Delete(Key::Namespace(Arc::clone(name)))).collect();
        let mut changes: Vec<Change> =
            all.into_iter().flat_map(|(name, labels)| self.namespace(name, Some(labels))).collect();
        for change in &gone {
            if let Change::Delete(Key::Namespace(name)) = change {
                self.namespaces.remove(name);
            }
        }
        changes.extend(gone);
        changes
    }

    /// One namespace; none: it is gone.
    pub fn namespace(&mut self, name: Arc<str>, labels: Option<Arc<Labels>>) -> Vec<Change> {
        let before = match labels.clone() {
            Some(labels) => self.namespaces.insert(Arc::clone(&name), labels),
            None => self.namespaces.remove(&name),
        };
        match labels {
            _ if before == labels => Vec::new(),
            Some(labels) => vec![Change::Put(Object::Namespace(name, labels))],
            None => vec![Change::Delete(Key::Namespace(name))],
        }
    }

    /// Nodes as they are told, the older first where they claim the same; then all endpoints, since their nodes may be others.
    fn refresh_nodes(&mut self) -> Vec<Change> {
        let mut by_age: Vec<(&Arc<NodeName>, &NodeFact)> = self.nodes.iter().collect();
        by_age.sort_by_key(|(name, node)| (node.created, Arc::clone(name)));
        let (mut told, mut cidrs) = (BTreeMap::new(), BTreeMap::<IpAddr, (IpNet, Arc<NodeName>)>::new());
        for (name, node) in by_age {
            let Some(announcement) = &node.announcement else { continue };
            let mut accepted = Vec::new();
            for cidr in &node.pod_cidrs {
                let before = cidrs.range(..=cidr.network()).next_back();
                let within = cidrs.range(cidr.network()..=cidr.broadcast()).next();
                let taken =
                    before.into_iter().chain(within).any(|(_, (other, _))| prefix::overlap(other, cidr));
                if prefix::inside(&self.guarded, cidr) && prefix::mesh_address(cidr).is_some() && !taken {
                    cidrs.insert(cidr.network(), (*cidr, Arc::clone(name)));
                    accepted.push(*cidr);
                }
            }
            let mut announcement = announcement.clone();
            let usable = |address: &&IpAddr| prefix::is_unicast(**address);
            if let Some(administered) = &node.endpoints {
                announcement.endpoints =
                    administered.iter().filter(usable).take(MAX_ENDPOINTS).copied().collect();
            } else if announcement.endpoints.is_empty() {
                announcement.endpoints =
                    node.internal_ips.iter().filter(usable).take(MAX_ENDPOINTS).copied().collect();
            }
            let (uid, created) = (node.uid.clone(), node.created);
            told.insert(
                Arc::clone(name),
                Arc::new(RemoteNode { uid, created, pod_cidrs: accepted, announcement, signed: None }),
            );
        }
        self.cidrs = cidrs;
        let news = told.iter().filter(|(name, node)| self.told_nodes.get(*name) != Some(*node));
        let mut changes: Vec<Change> =
            news.map(|(name, node)| Change::Put(Object::Node(Arc::clone(name), Arc::clone(node)))).collect();
        let gone = self.told_nodes.keys().filter(|name| !told.contains_key(*name));
        changes.extend(gone.map(|name| Change::Delete(Key::Node(Arc::clone(name)))));
        self.told_nodes = told;
        let all: BTreeSet<IpAddr> = self.claims.keys().chain(self.told_endpoints.keys()).copied().collect();
        changes.extend(self.refresh_endpoints(all));
        in_order(changes)
    }

    /// Whose an address is, if it is told.
    fn wanted(&self, address: IpAddr) -> Option<(Arc<NodeName>, LabelSet)> {
        // One that two pods claim is nobody's until that is settled, as for our own policy.
        let mut claimants = self.claims.get(&address)?.iter();
        let name = claimants.next().filter(|_| claimants.next().is_none())?;
        let pod = self.pods.get(name)?;
        let (_, (cidr, node)) = self.cidrs.range(..=address).next_back()?;
        if !cidr.contains(&address) || prefix::mesh_address(cidr) == Some(address) {
            return None;
        }
        let (labels, ports) = (pod.labels.clone(), pod.ports.clone());
        Some((Arc::clone(node), LabelSet { namespace: name.namespace.clone(), labels, ports }))
    }

    fn refresh_endpoints(&mut self, touched: BTreeSet<IpAddr>) -> Vec<Change> {
        let (mut changes, mut given) = (Vec::new(), BTreeSet::new());
        for address in touched {
            let before = self.told_endpoints.remove(&address);
            let now = self.wanted(address).map(|(node, set)| {
                let (labels, new) = self.sets.take(set);
                if new && !given.remove(&labels) {
                    let set = Arc::clone(&self.sets.by_id[&labels]);
                    changes.push(Change::Put(Object::LabelSet(labels, set)));
                }
                RemoteEndpoint { node, labels }
            });
            if let Some(before) = &before
                && self.sets.give(before.labels)
            {
                given.insert(before.labels);
            }
            match now {
                Some(now) => {
                    if before.as_ref() != Some(&now) {
                        changes.push(Change::Put(Object::Endpoint(address, now.clone())));
                    }
                    self.told_endpoints.insert(address, now);
                }
                None => changes.extend(before.map(|_| Change::Delete(Key::Endpoint(address)))),
            }
        }
        changes.extend(given.into_iter().map(|id| Change::Delete(Key::LabelSet(id))));
        in_order(changes)
    }
}

#[cfg(test)]
mod tests;
