//! What an agent makes of joined clusters: whose pods are guarded, and which of their nodes are peers.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::object::ClusterState;
use super::peer::ClusterPeer;
use super::refusal::Refusal;
use super::rules::{Borders, Claims, OwnCluster};
use crate::name::NodeName;
use crate::psk::{ClusterName, NodeId};
use crate::view::{AnnouncementFact, EndpointFact, NodeFacts, Settings};

/// Most nodes of other clusters that are peers: each costs an entry of two devices, two routes and, with pre-shared keys,
/// an exchange. Of each cluster as many, the oldest first.
pub const MAX_NODES: usize = 4096;

/// What is believed of joined clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Their pod CIDRs.
    pub cidrs: BTreeMap<ClusterName, Vec<IpNet>>,
    /// Their nodes, by what this cluster calls them.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
}

impl Joined {
    /// Judges what `states` tell by `peers`, at most [`MAX_NODES`] nodes of it. Only nodes count here; pods are held to what was
    /// accepted of theirs.
    pub fn judge<'a>(
        own: &OwnCluster,
        peers: &[ClusterPeer],
        states: impl IntoIterator<Item = (&'a ClusterName, &'a ClusterState)> + Clone,
    ) -> (Self, Claims, Vec<Refusal>) {
        let (borders, mut refusals) = Borders::judge(own, peers);
        let (claims, refused) = Claims::judge(own, &borders, states.clone());
        refusals.extend(refused);
        let mut joined = Self::default();
        for (cluster, cidr) in borders.guarded() {
            joined.cidrs.entry(cluster.clone()).or_default().push(cidr);
        }
        let age: BTreeMap<&ClusterName, i64> = peers.iter().map(|peer| (&peer.name, peer.created)).collect();
        let mut ranked = Vec::new();
        for (cluster, state) in states {
            let mut oldest: Vec<_> = state.nodes.iter().map(|(name, told)| (told.created, name)).collect();
            oldest.sort_unstable();
            let accepted = oldest.into_iter().filter_map(|(created, name)| {
                let accepted = claims.of(cluster, name).filter(|accepted| !accepted.pod_cidrs.is_empty())?;
                Some((name.as_ref(), (created, accepted)))
            });
            for (place, (name, accepted)) in accepted.enumerate() {
                // Each cluster has its turn, so that none takes the others' places.
                ranked.push(((place, age.get(cluster), cluster, name), accepted));
            }
        }
        ranked.sort_unstable_by_key(|(rank, _)| *rank);
        for (place, ((.., cluster, name), (created, accepted))) in ranked.into_iter().enumerate() {
            if place < MAX_NODES {
                let facts = NodeFacts {
                    created,
                    pod_cidrs: accepted.pod_cidrs.clone(),
                    announcement: AnnouncementFact::Valid(accepted.announcement.clone()),
                    ..NodeFacts::default()
                };
                joined.nodes.insert(NodeName::foreign(name, cluster), facts);
            } else {
                let node = NodeId { node: name.clone(), cluster: cluster.clone() };
                refusals.push(Refusal::NodeBeyondLimit { node, limit: MAX_NODES });
            }
        }
        (joined, claims, refusals)
    }

    /// An agent's settings with these clusters in them.
    pub fn settings(&self, settings: &Settings) -> Settings {
        Settings { joined: self.cidrs.clone(), ..settings.clone() }
    }
}

impl OwnCluster {
    /// This cluster, from its nodes.
    pub fn of<'a>(
        name: ClusterName,
        pod_cidrs: Vec<IpNet>,
        nodes: impl IntoIterator<Item = (&'a NodeName, &'a NodeFacts)>,
    ) -> Self {
        let mut own = Self { name, pod_cidrs, keys: BTreeMap::new(), addresses: BTreeMap::new() };
        for (node, facts) in nodes {
            let slots = facts.announced().into_iter().flat_map(|announced| &announced.slots);
            own.keys.extend(slots.map(|slot| (slot.public_key, node.clone())));
            let administered = match &facts.endpoint {
                EndpointFact::Addresses(addresses) => addresses.as_slice(),
                EndpointFact::Absent | EndpointFact::Malformed { .. } => &[],
            };
            let addresses = facts.internal_ips.iter().chain(administered);
            own.addresses.extend(addresses.map(|address| (*address, node.clone())));
        }
        own
    }
}
