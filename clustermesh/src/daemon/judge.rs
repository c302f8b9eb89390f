//! What is believed of the joined clusters, and so mirrored, nodes as they were signed. Pure: facts and ClusterPeers go in,
//! changes of what is believed come out.
//!
//! Each change is judged by itself where that is enough; what others depend on (a node, rules) has whole clusters judged
//! anew. Both lead to the same, which a property test holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::clusters::{
    Borders, Change, Claims, ClusterName, ClusterPeer, ClusterState, Key, Object, OwnCluster, Refusal,
    RemoteNode, Version,
};
use mesh_core::name::NodeName;
use proto::clustermesh::At;
use sha2::{Digest as _, Sha256};

/// A fact that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Disbelief {
    /// By the rules of clusters.
    #[error(transparent)]
    Rule(#[from] Refusal),
    /// A node announces what no node can.
    #[error("node {node} of cluster {cluster}: {reason}; refused; restart mesh-agent there")]
    Announcement {
        /// The cluster.
        cluster: ClusterName,
        /// The node.
        node: NodeName,
        /// Field, value and what is wrong.
        reason: String,
    },
}

impl Disbelief {
    /// For conditions and labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Rule(refusal) => refusal.reason(),
            Self::Announcement { .. } => "NodeAnnouncement",
        }
    }
}

/// What is believed of a cluster changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub cluster: ClusterName,
    /// The state that is reached.
    pub at: At,
    /// How.
    pub changes: Vec<Change>,
}

/// What one cluster said, and what is believed of it.
#[derive(Debug, Default)]
struct Party {
    version: Version,
    said: ClusterState,
    believed: ClusterState,
    disbelieved: BTreeMap<Key, BTreeSet<Disbelief>>,
    /// Nodes whose announcements were looked at, with what is wrong with them: a look costs two multiplications on a curve.
    checked: BTreeMap<Arc<NodeName>, (Arc<RemoteNode>, Option<String>)>,
}

/// What came of what was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What is believed otherwise.
    pub moves: Vec<Move>,
    /// How many objects were looked at for what each cluster said: its part of the time.
    pub looked_at: BTreeMap<ClusterName, usize>,
}

/// What of a cluster is to be judged.
#[derive(Debug, Default)]
struct Heard {
    touched: BTreeSet<Key>,
    /// All of it.
    whole: bool,
    /// Nodes of it, and so those of all clusters.
    nodes: bool,
}

/// All that is judged.
#[derive(Debug)]
pub struct Judge {
    own: OwnCluster,
    peers: Vec<ClusterPeer>,
    borders: Borders,
    refused_peers: Vec<Refusal>,
    claims: Claims,
    disbelieved_nodes: BTreeMap<(ClusterName, NodeName), BTreeSet<Disbelief>>,
    parties: BTreeMap<ClusterName, Party>,
    /// What was heard and is not judged yet.
    heard: BTreeMap<ClusterName, Heard>,
}

impl Judge {
    /// For this cluster, with these ClusterPeers.
    pub fn new(own: OwnCluster, peers: Vec<ClusterPeer>) -> Self {
        let (borders, refused_peers) = Borders::judge(&own, &peers);
        Self {
            own,
            peers,
            borders,
            refused_peers,
            claims: Claims::default(),
            disbelieved_nodes: BTreeMap::new(),
            parties: BTreeMap::new(),
            heard: BTreeMap::new(),
        }
    }

    /// Other rules. Clusters that are no peers any more are forgotten.
    pub fn rules(&mut self, own: OwnCluster, peers: Vec<ClusterPeer>) -> Vec<Move> {
        if self.own == own && self.peers == peers {
            return Vec::new();
        }
        (self.own, self.peers) = (own, peers);
        let (borders, refused_peers) = Borders::judge(&self.own, &self.peers);
        let moved = borders != self.borders;
        (self.borders, self.refused_peers) = (borders, refused_peers);
        self.parties.retain(|cluster, _| self.borders.known(cluster).is_ok());
        let others = self.judge_nodes();
        // An own node's new key, which comes often, concerns hardly anybody.
        let concerned: Vec<ClusterName> =
            self.parties.keys().filter(|one| moved || others.contains(*one)).cloned().collect();
        concerned.into_iter().filter_map(|one| self.anew(&one)).collect()
    }

    /// A cluster said something of itself, and that is judged. Nothing, if it is no peer.
    pub fn told(&mut self, cluster: &ClusterName, version: Version, changes: Vec<Change>) -> Vec<Move> {
        self.hear(cluster, version, changes);
        self.settle().moves
    }

    /// A cluster said something of itself, which is judged by the next [`Self::settle`]: of several that say something at once
    /// the nodes of all are judged once.
    pub fn hear(&mut self, cluster: &ClusterName, version: Version, changes: Vec<Change>) {
        if self.borders.speaks(cluster, cluster).is_err() {
            return;
        }
        let party = self.parties.entry(cluster.clone()).or_default();
        party.version = version;
        let heard = self.heard.entry(cluster.clone()).or_default();
        for change in changes {
            let key = change.key();
            heard.nodes |= matches!(key, Key::Node(_));
            heard.whole |= match (&change, &key) {
                (_, Key::Node(_)) | (Change::Delete(_), Key::LabelSet(_) | Key::Service(_)) => true,
                // It may be what a fact that is not believed waits for.
                (Change::Put(_), Key::LabelSet(_) | Key::Service(_)) => !party.disbelieved.is_empty(),
                (_, Key::Namespace(_) | Key::Endpoint(_) | Key::Backend(..)) => false,
            };
            party.said.apply(change);
            if !heard.whole {
                heard.touched.insert(key);
            }
        }
    }

    /// Judges what was heard.
    pub fn settle(&mut self) -> Settled {
        let mut heard = std::mem::take(&mut self.heard);
        let with_nodes: Vec<ClusterName> =
            heard.iter().filter(|(_, heard)| heard.nodes).map(|(cluster, _)| cluster.clone()).collect();
        let others = if with_nodes.is_empty() { BTreeSet::new() } else { self.judge_nodes() };
        let Settled { mut moves, mut looked_at } = Settled::default();
        // What is looked at because nodes have changed, and is of nobody who said something.
        let mut shared = match with_nodes.is_empty() {
            true => 0,
            false => self.parties.values().map(|party| party.said.nodes.len()).sum(),
        };
        for one in self.parties.keys().cloned().collect::<Vec<_>>() {
            let heard = heard.remove(&one);
            let whole = others.contains(&one) || heard.as_ref().is_some_and(|heard| heard.whole);
            let all = self.parties.get(&one).map_or(0, |party| party.said.len());
            let is_heard = heard.is_some();
            let made = match heard {
                Some(heard) if !whole => {
                    looked_at.insert(one.clone(), heard.touched.len());
                    self.one_by_one(&one, heard.touched)
                }
                Some(_) => {
                    looked_at.insert(one.clone(), all);
                    self.anew(&one)
                }
                None if whole => {
                    shared += all;
                    self.anew(&one)
                }
                None => None,
            };
            // The version moves, even if nothing else does.
            let moved = || {
                let at = self.parties.get(&one).filter(|_| is_heard)?.at();
                Some(Move { cluster: one.clone(), at, changes: Vec::new() })
            };
            moves.extend(made.or_else(moved));
        }
        for cluster in &with_nodes {
            *looked_at.entry(cluster.clone()).or_default() += shared / with_nodes.len();
        }
        Settled { moves, looked_at }
    }

    /// Nodes of all clusters. Gives clusters of which something else is believed now.
    fn judge_nodes(&mut self) -> BTreeSet<ClusterName> {
        self.parties.values_mut().for_each(Party::check);
        let sane: BTreeMap<&ClusterName, ClusterState> = self
            .parties
            .iter()
            .map(|(cluster, party)| {
                let sane = party.checked.iter().filter(|(_, (_, wrong))| wrong.is_none());
                let nodes = sane.map(|(name, (node, _))| (Arc::clone(name), Arc::clone(node))).collect();
                (cluster, ClusterState { nodes, ..ClusterState::default() })
            })
            .collect();
        let (claims, refusals) =
            Claims::judge(&self.own, &self.borders, sane.iter().map(|(cluster, state)| (*cluster, state)));
        let mut disbelieved: BTreeMap<(ClusterName, NodeName), BTreeSet<Disbelief>> = BTreeMap::new();
        for refusal in refusals {
            if let Some(id) = node_of(&refusal) {
                disbelieved.entry(id).or_default().insert(refusal.into());
            }
        }
        for (cluster, party) in &self.parties {
            for (name, (_, wrong)) in &party.checked {
                if let Some(reason) = wrong.clone() {
                    let (cluster, node) = (cluster.clone(), NodeName::clone(name));
                    let id = (cluster.clone(), node.clone());
                    let wrong = Disbelief::Announcement { cluster, node, reason };
                    disbelieved.entry(id).or_default().insert(wrong);
                }
            }
        }
        let mut moved: BTreeSet<ClusterName> = claims.differing(&self.claims).cloned().collect();
        let all = disbelieved.iter().chain(&self.disbelieved_nodes);
        let differs = all.filter(|(id, wrong)| {
            disbelieved.get(*id) != Some(*wrong) || self.disbelieved_nodes.get(*id) != Some(*wrong)
        });
        moved.extend(differs.map(|((cluster, _), _)| cluster.clone()));
        (self.claims, self.disbelieved_nodes) = (claims, disbelieved);
        moved
    }

    /// What is believed of one object, and what is wrong with it.
    fn believe(&self, cluster: &ClusterName, key: &Key) -> (Option<Object>, BTreeSet<Disbelief>) {
        let none = BTreeSet::new();
        let Some(said) = self.parties.get(cluster).map(|party| &party.said) else { return (None, none) };
        let Some(object) = said.get(key) else { return (None, none) };
        let verdict = match &object {
            Object::LabelSet(..) | Object::Namespace(..) | Object::Service(..) => Ok(()),
            Object::Node(name, node) => {
                let wrong = self.disbelieved_nodes.get(&(cluster.clone(), NodeName::clone(name)));
                let accepted = self.claims.of(cluster, name).map(|accepted| {
                    let node = RemoteNode {
                        pod_cidrs: accepted.pod_cidrs.clone(),
                        announcement: accepted.announcement.clone(),
                        // What was signed is passed on whole: agents judge it by the same rules.
                        ..RemoteNode::clone(node)
                    };
                    Object::Node(Arc::clone(name), Arc::new(node))
                });
                return (accepted, wrong.cloned().unwrap_or_default());
            }
            Object::Endpoint(address, endpoint) => self.claims.endpoint(cluster, said, *address, endpoint),
            Object::Backend(service, address, _) => self
                .borders
                .backend(cluster, said, service, *address)
                .and_then(|()| self.claims.backend(cluster, service, *address)),
        };
        match verdict {
            Ok(()) => (Some(object), none),
            Err(refusal) => (None, BTreeSet::from([Disbelief::Rule(*refusal)])),
        }
    }

    fn one_by_one(&mut self, cluster: &ClusterName, touched: BTreeSet<Key>) -> Option<Move> {
        let judged: Vec<_> = touched.into_iter().map(|key| (self.believe(cluster, &key), key)).collect();
        let party = self.parties.get_mut(cluster)?;
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for ((object, wrong), key) in judged {
            let before = party.believed.get(&key);
            match object {
                object if object == before => {}
                Some(object) => put.push(Change::Put(object)),
                None => gone.push(Change::Delete(key.clone())),
            }
            if wrong.is_empty() {
                party.disbelieved.remove(&key);
            } else {
                party.disbelieved.insert(key, wrong);
            }
        }
        put.extend(gone.into_iter().rev());
        for change in &put {
            party.believed.apply(change.clone());
        }
        Some(Move { cluster: cluster.clone(), at: party.at(), changes: put })
    }

    /// Judges a cluster as a whole; nothing, if all is as it was.
    fn anew(&mut self, cluster: &ClusterName) -> Option<Move> {
        let party = self.parties.get(cluster)?;
        let before = party.at();
        let keys: BTreeSet<Key> = party.said.keys().chain(party.believed.keys()).collect();
        let gone: Vec<Key> = party.disbelieved.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        let made = self.one_by_one(cluster, keys)?;
        let party = self.parties.get_mut(cluster)?;
        for key in gone {
            party.disbelieved.remove(&key);
        }
        let at = party.at();
        (!made.changes.is_empty() || at != before).then_some(Move { at, ..made })
    }

    /// What was wrong with the ClusterPeers.
    pub fn refused_peers(&self) -> &[Refusal] {
        &self.refused_peers
    }

    /// How far each cluster reaches.
    pub const fn borders(&self) -> &Borders {
        &self.borders
    }

    /// What is not believed of a cluster.
    pub fn disbelieved(&self, cluster: &ClusterName) -> impl Iterator<Item = &Disbelief> {
        self.parties.get(cluster).into_iter().flat_map(|party| party.disbelieved.values().flatten())
    }

    /// What is believed of a cluster.
    pub fn believed(&self, cluster: &ClusterName) -> Option<&ClusterState> {
        self.parties.get(cluster).map(|party| &party.believed)
    }
}

impl Party {
    /// Looks at the announcements that are new.
    fn check(&mut self) {
        self.checked.retain(|name, _| self.said.nodes.contains_key(name));
        for (name, node) in &self.said.nodes {
            if self.checked.get(name).is_none_or(|(known, _)| !Arc::ptr_eq(known, node)) {
                let wrong = keyring::codec::check(&node.announcement).err().map(|error| error.to_string());
                self.checked.insert(Arc::clone(name), (Arc::clone(node), wrong));
            }
        }
    }

    /// The view is made of what is left out, so that the same is the same after a restart.
    fn at(&self) -> At {
        if self.disbelieved.is_empty() {
            return self.version.into();
        }
        let mut digest = Sha256::new();
        for (key, wrong) in &self.disbelieved {
            for one in wrong {
                let text = format!("{key}\n{one}");
                digest.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                digest.update(text);
            }
        }
        let view = digest.finalize().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        At { version: self.version, view: u64::max(view, 1) }
    }
}

/// The node that a refusal is about.
fn node_of(refusal: &Refusal) -> Option<(ClusterName, NodeName)> {
    match refusal {
        Refusal::NodeCidrOutside { node, .. }
        | Refusal::NodeCidrTooSmall { node, .. }
        | Refusal::NodeCidrTwice { node, .. }
        | Refusal::NodeBeyondLimit { node, .. }
        | Refusal::NodeKeyTwice { node, .. }
        | Refusal::NodeEndpointUnusable { node, .. }
        | Refusal::NodeEndpointInside { node, .. }
        | Refusal::NodeEndpointOurs { node, .. } => Some((node.cluster.clone(), node.node.clone())),
        Refusal::PeerMalformed { .. }
        | Refusal::PeerIsOurself { .. }
        | Refusal::PeerTwice { .. }
        | Refusal::PeerCidrOurs { .. }
        | Refusal::PeerCidrOfNode { .. }
        | Refusal::PeerCidrOfOlderNode { .. }
        | Refusal::PeerCidrTwice { .. }
        | Refusal::ForeignCluster { .. }
        | Refusal::ClusterUnknown { .. }
        | Refusal::EndpointWithoutNode { .. }
        | Refusal::EndpointOutside { .. }
        | Refusal::EndpointBeyondLimit { .. }
        | Refusal::EndpointWithoutLabels { .. }
        | Refusal::BackendOutside { .. }
        | Refusal::BackendWithoutNode { .. }
        | Refusal::BackendWithoutService { .. } => None,
    }
}

#[cfg(test)]
mod tests;
