//! What is believed of another cluster. Of two that claim the same, the older keeps it; what is ours, nobody can claim.
//!
//! In three steps, so that a change costs no more than what it touches: [`Borders`] from the ClusterPeers, [`Claims`] from
//! the nodes of all clusters, then each endpoint and each backend by itself. None depends on the order in which facts came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{RemoteEndpoint, RemoteNode};
use super::object::ClusterState;
use super::peer::ClusterPeer;
use super::refusal::{Holder, Refusal};
use crate::announcement::Announcement;
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::policy::model::ObjectName;
use crate::prefix::{self, Nets};
use crate::psk::{ClusterName, NodeId};
use crate::slot::Slot;

/// This cluster, as far as others may not claim it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCluster {
    /// Its name.
    pub name: ClusterName,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Keys that its nodes announce.
    pub keys: BTreeMap<PublicKey, NodeName>,
    /// Addresses of its nodes.
    pub addresses: BTreeMap<IpAddr, NodeName>,
}

/// How far each cluster reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borders {
    own: Vec<(IpNet, ClusterName)>,
    peers: BTreeMap<ClusterName, Border>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Border {
    created: i64,
    cidrs: Vec<IpNet>,
}

impl Borders {
    /// Judges all ClusterPeers, in any order.
    pub fn judge(own: &OwnCluster, peers: &[ClusterPeer]) -> (Self, Vec<Refusal>) {
        let mut by_age: Vec<&ClusterPeer> = peers.iter().collect();
        // The last two only so that the order of the input never matters.
        by_age.sort_by_key(|peer| (peer.created, &peer.name, &peer.pod_cidrs, &peer.addresses));
        let own_cidrs = own.pod_cidrs.iter().map(|cidr| (*cidr, own.name.clone())).collect();
        let mut borders = Self { own: own_cidrs, peers: BTreeMap::new() };
        let mut refusals = Vec::new();
        for peer in by_age {
            let name = peer.name.clone();
            if name == own.name {
                refusals.push(Refusal::PeerIsOurself { peer: name });
            } else if borders.peers.contains_key(&name) {
                refusals.push(Refusal::PeerTwice { peer: name });
            } else {
                let cidrs = peer.pod_cidrs.iter().filter_map(|cidr| {
                    let refusal = borders.against(own, &name, *cidr);
                    let accepted = refusal.is_none();
                    // What pods have is guarded whatever a node says that its address is: that one is not believed
                    // (`plan::claims`), or one node could unguard them.
                    let told = refusal.or_else(|| of_node(own, &name, *cidr));
                    refusals.extend(told);
                    accepted.then_some(*cidr)
                });
                let border = Border { created: peer.created, cidrs: cidrs.collect() };
                borders.peers.insert(name, border);
            }
        }
        (borders, refusals)
    }

    /// What speaks against a CIDR of a peer.
    fn against(&self, own: &OwnCluster, peer: &ClusterName, cidr: IpNet) -> Option<Refusal> {
        let peer = peer.clone();
        if let Some(ours) = own.pod_cidrs.iter().find(|ours| prefix::overlap(ours, &cidr)) {
            return Some(Refusal::PeerCidrOurs { peer, cidr, ours: *ours });
        }
        let held =
            self.peers.iter().flat_map(|(name, border)| border.cidrs.iter().map(move |cidr| (name, cidr)));
        let (holder, other) = held.into_iter().find(|(_, other)| prefix::overlap(other, &cidr))?;
        Some(Refusal::PeerCidrTwice { peer, cidr, holder: holder.clone(), other: *other })
    }

    /// The accepted CIDRs of a peer; none if it is not known.
    pub fn of(&self, cluster: &ClusterName) -> Option<&[IpNet]> {
        self.peers.get(cluster).map(|border| border.cidrs.as_slice())
    }

    /// Every accepted CIDR of every peer: what is guarded beside this cluster's own.
    pub fn guarded(&self) -> impl Iterator<Item = (&ClusterName, IpNet)> {
        self.peers.iter().flat_map(|(name, border)| border.cidrs.iter().map(move |cidr| (name, *cidr)))
    }

    /// Every peer, also those of which no CIDR is accepted.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.peers.keys()
    }

    /// May who authenticated as `speaker` tell of `named`? A cluster only of itself.
    ///
    /// # Errors
    /// It speaks of another one, or nobody here knows it.
    pub fn speaks(&self, speaker: &ClusterName, named: &ClusterName) -> Result<(), Box<Refusal>> {
        if speaker != named {
            return Err(Box::new(Refusal::ForeignCluster { speaker: speaker.clone(), named: named.clone() }));
        }
        self.known(named)
    }

    /// Is there a ClusterPeer of that name? What relayed facts of it are held to.
    ///
    /// # Errors
    /// There is none.
    pub fn known(&self, cluster: &ClusterName) -> Result<(), Box<Refusal>> {
        let known = self.peers.contains_key(cluster);
        if known { Ok(()) } else { Err(Box::new(Refusal::ClusterUnknown { cluster: cluster.clone() })) }
    }

    /// May `address` be behind `service`?
    ///
    /// # Errors
    /// It is outside the cluster's pod CIDRs, or the service is not exported.
    pub fn backend(
        &self,
        cluster: &ClusterName,
        state: &ClusterState,
        service: &ObjectName,
        address: IpAddr,
    ) -> Result<(), Box<Refusal>> {
        self.known(cluster)?;
        let allowed = self.of(cluster).unwrap_or_default();
        let (cluster, service) = (cluster.clone(), service.clone());
        if !allowed.iter().any(|cidr| cidr.contains(&address)) {
            return Err(Box::new(Refusal::BackendOutside {
                cluster,
                service,
                address,
                allowed: list(allowed),
            }));
        }
        if !state.services.contains_key(&service) {
            return Err(Box::new(Refusal::BackendWithoutService { cluster, service, address }));
        }
        Ok(())
    }
}

/// Whose pods are where; looked up for each endpoint of each node.
struct Ground<'a> {
    cidrs: BTreeMap<IpNet, &'a ClusterName>,
    lengths: BTreeSet<u8>,
}

impl<'a> Ground<'a> {
    fn of(borders: &'a Borders) -> Self {
        let own = borders.own.iter().map(|(cidr, name)| (cidr.trunc(), name));
        let guarded = borders.guarded().map(|(name, cidr)| (cidr.trunc(), name));
        let cidrs: BTreeMap<IpNet, &ClusterName> = guarded.chain(own).collect();
        let lengths = cidrs.keys().map(IpNet::prefix_len).collect();
        Self { cidrs, lengths }
    }

    /// In whose pod CIDR an address is.
    fn pods(&self, address: IpAddr) -> Option<(IpNet, &'a ClusterName)> {
        self.lengths.iter().find_map(|length| {
            // A length of the other family may be too long for it.
            let cidr = IpNet::new(address, *length).ok()?.trunc();
            self.cidrs.get(&cidr).map(|name| (cidr, *name))
        })
    }
}

/// What is accepted of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedNode {
    /// Its pod CIDRs. Allowed IPs are made of these alone.
    pub pod_cidrs: Vec<IpNet>,
    /// Its keys, with the endpoints at which it may be called.
    pub announcement: Announcement,
}

/// Who has which key and which CIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    nodes: BTreeMap<ClusterName, BTreeMap<NodeName, AcceptedNode>>,
    /// Accepted pod CIDRs of all nodes of a cluster, to look addresses up.
    nets: BTreeMap<ClusterName, Nets>,
}

/// Older ClusterPeer, then its name, older Node, then its name.
type Rank<'a> = (i64, &'a ClusterName, i64, &'a NodeName);

impl Claims {
    /// Judges the nodes of all clusters. A node with a key of another's is refused; one with a CIDR or an endpoint that
    /// it may not have goes without it.
    pub fn judge<'a>(
        own: &OwnCluster,
        borders: &Borders,
        clusters: impl IntoIterator<Item = (&'a ClusterName, &'a ClusterState)>,
    ) -> (Self, Vec<Refusal>) {
        let mut refusals = Vec::new();
        let mut by_age: BTreeMap<Rank<'a>, &RemoteNode> = BTreeMap::new();
        for (cluster, state) in clusters {
            let Some(border) = borders.peers.get(cluster) else {
                refusals.push(Refusal::ClusterUnknown { cluster: cluster.clone() });
                continue;
            };
            let ranked = state
                .nodes
                .iter()
                .map(|(name, node)| ((border.created, cluster, node.created, name.as_ref()), node.as_ref()));
            by_age.extend(ranked);
        }
        let mut claims = Self::default();
        let ground = Ground::of(borders);
        let mut keys: BTreeMap<PublicKey, Id<'_>> = BTreeMap::new();
        // CIDRs of one cluster by their first address: at most one of those before a CIDR can reach into it.
        let mut cidrs: BTreeMap<&ClusterName, BTreeMap<IpAddr, (IpNet, &NodeName)>> = BTreeMap::new();
        for ((_, cluster, _, name), node) in by_age {
            let id = Id { node: name, cluster };
            if let Some(refusal) = key_of_another(own, &keys, id, &node.announcement) {
                refusals.push(refusal);
                continue;
            }
            for slot in Slot::ALL {
                keys.insert(node.announcement.slot(slot).public_key, id);
            }
            let held = cidrs.entry(cluster).or_default();
            let mut accepted =
                AcceptedNode { pod_cidrs: Vec::new(), announcement: node.announcement.clone() };
            for cidr in &node.pod_cidrs {
                match cidr_of_node(borders, held, id, *cidr) {
                    None => {
                        held.insert(cidr.network(), (*cidr, name));
                        accepted.pod_cidrs.push(*cidr);
                    }
                    Some(refusal) => refusals.push(refusal),
                }
            }
            accepted.announcement.endpoints.retain(|address| {
                let refusal = endpoint_of_node(own, &ground, id, *address);
                let keep = refusal.is_none();
                refusals.extend(refusal);
                keep
            });
            claims.nodes.entry(cluster.clone()).or_default().insert(name.clone(), accepted);
        }
        let nets = |(cluster, nodes): (&ClusterName, &BTreeMap<NodeName, AcceptedNode>)| {
            (cluster.clone(), nodes.values().flat_map(|node| node.pod_cidrs.iter().copied()).collect())
        };
        claims.nets = claims.nodes.iter().map(nets).collect();
        (claims, refusals)
    }

    /// What is accepted of a node.
    pub fn of(&self, cluster: &ClusterName, node: &NodeName) -> Option<&AcceptedNode> {
        self.nodes.get(cluster)?.get(node)
    }

    /// Do others accept other nodes, or other pod CIDRs of them? That is what endpoints are held to.
    pub fn have_other_places_than(&self, others: &Self) -> bool {
        !self.places().eq(others.places())
    }

    fn places(&self) -> impl Iterator<Item = (&ClusterName, &NodeName, &[IpNet])> {
        self.iter().map(|(cluster, node, accepted)| (cluster, node, accepted.pod_cidrs.as_slice()))
    }

    /// Clusters of which others accept something else.
    pub fn differing<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a ClusterName> {
        let all: BTreeSet<&ClusterName> = self.nodes.keys().chain(others.nodes.keys()).collect();
        all.into_iter().filter(|cluster| self.nodes.get(*cluster) != others.nodes.get(*cluster))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ClusterName, &NodeName, &AcceptedNode)> {
        self.nodes
            .iter()
            .flat_map(|(cluster, nodes)| nodes.iter().map(move |(name, node)| (cluster, name, node)))
    }

    /// May `address` be behind `service`, as far as nodes are asked? What is on no accepted node cannot be reached.
    ///
    /// # Errors
    /// No accepted node of the cluster has it in its pod CIDRs.
    pub fn backend(
        &self,
        cluster: &ClusterName,
        service: &ObjectName,
        address: IpAddr,
    ) -> Result<(), Box<Refusal>> {
        if self.nets.get(cluster).is_some_and(|nets| nets.contain(address)) {
            return Ok(());
        }
        let (cluster, service) = (cluster.clone(), service.clone());
        Err(Box::new(Refusal::BackendWithoutNode { cluster, service, address }))
    }

    /// Is a pod of `cluster` believed to have `address`?
    ///
    /// # Errors
    /// Its node is not accepted, does not have that address, or its labels are not known.
    pub fn endpoint(
        &self,
        cluster: &ClusterName,
        state: &ClusterState,
        address: IpAddr,
        endpoint: &RemoteEndpoint,
    ) -> Result<(), Box<Refusal>> {
        let names = || (cluster.clone(), NodeName::clone(&endpoint.node));
        let accepted = self.of(cluster, &endpoint.node);
        let cidrs = accepted.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        if cidrs.is_empty() {
            let (cluster, node) = names();
            return Err(Box::new(Refusal::EndpointWithoutNode { cluster, address, node }));
        }
        if !cidrs.iter().any(|cidr| cidr.contains(&address)) {
            let (cluster, node) = names();
            return Err(Box::new(Refusal::EndpointOutside { cluster, address, node }));
        }
        if !state.label_sets.contains_key(&endpoint.labels) {
            let (cluster, labels) = (cluster.clone(), endpoint.labels.0);
            return Err(Box::new(Refusal::EndpointWithoutLabels { cluster, address, labels }));
        }
        Ok(())
    }
}

/// A node, not yet to be named.
#[derive(Clone, Copy)]
struct Id<'a> {
    node: &'a NodeName,
    cluster: &'a ClusterName,
}

impl Id<'_> {
    fn named(self) -> NodeId {
        NodeId { node: self.node.clone(), cluster: self.cluster.clone() }
    }
}

/// An own node whose address lies in a CIDR of a peer.
fn of_node(own: &OwnCluster, peer: &ClusterName, cidr: IpNet) -> Option<Refusal> {
    let mut inside = own.addresses.range(cidr.network()..=cidr.broadcast());
    let (address, node) = inside.find(|(address, _)| cidr.contains(*address))?;
    Some(Refusal::PeerCidrOfNode { peer: peer.clone(), cidr, address: *address, node: node.clone() })
}

fn key_of_another(
    own: &OwnCluster,
    keys: &BTreeMap<PublicKey, Id<'_>>,
    id: Id<'_>,
    announcement: &Announcement,
) -> Option<Refusal> {
    Slot::ALL.into_iter().find_map(|slot| {
        let key = announcement.slot(slot).public_key;
        let ours = own.keys.get(&key).map(|node| Holder::Own(node.clone()));
        let holder = ours.or_else(|| keys.get(&key).map(|holder| Holder::Remote(holder.named())))?;
        Some(Refusal::NodeKeyTwice { node: id.named(), slot, key, holder })
    })
}

fn cidr_of_node(
    borders: &Borders,
    held: &BTreeMap<IpAddr, (IpNet, &NodeName)>,
    id: Id<'_>,
    cidr: IpNet,
) -> Option<Refusal> {
    let allowed = borders.of(id.cluster).unwrap_or_default();
    if !prefix::inside(allowed, &cidr) {
        return Some(Refusal::NodeCidrOutside { node: id.named(), cidr, allowed: list(allowed) });
    }
    if prefix::mesh_address(&cidr).is_none() {
        return Some(Refusal::NodeCidrTooSmall { node: id.named(), cidr });
    }
    let before = held.range(..=cidr.network()).next_back();
    let within = held.range(cidr.network()..=cidr.broadcast()).next();
    let near = before.into_iter().chain(within).map(|(_, holder)| holder);
    let (other, holder) = near.into_iter().find(|(other, _)| prefix::overlap(other, &cidr))?;
    Some(Refusal::NodeCidrTwice { node: id.named(), cidr, holder: (*holder).clone(), other: *other })
}

fn endpoint_of_node(own: &OwnCluster, ground: &Ground<'_>, id: Id<'_>, address: IpAddr) -> Option<Refusal> {
    if !prefix::is_unicast(address) {
        return Some(Refusal::NodeEndpointUnusable { node: id.named(), address });
    }
    if let Some((cidr, cluster)) = ground.pods(address) {
        let cluster = cluster.clone();
        return Some(Refusal::NodeEndpointInside { node: id.named(), address, cidr, cluster });
    }
    let holder = own.addresses.get(&address)?.clone();
    Some(Refusal::NodeEndpointOurs { node: id.named(), address, holder })
}

fn list(cidrs: &[IpNet]) -> String {
    if cidrs.is_empty() {
        return "nothing".to_owned();
    }
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
