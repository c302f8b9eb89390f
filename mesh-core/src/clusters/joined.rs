//! What an agent makes of joined clusters: whose pods are guarded, and which of their nodes are peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::object::ClusterState;
use super::peer::ClusterPeer;
use super::refusal::Refusal;
use super::rules::{Borders, Claims, OwnCluster};
use crate::name::NodeName;
use crate::prefix::Nets;
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

/// How far this node reaches into a joined cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The cluster's pod CIDRs.
    pub cidrs: Vec<IpNet>,
    /// Those of its nodes that are peers: a packet to any other address has no way.
    pub peers: Nets,
}

/// The node of the agent that judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its name.
    pub node: NodeName,
    /// Seconds since 1970 at which its Node was created.
    pub created: i64,
    /// Its InternalIPs.
    pub addresses: Vec<IpAddr>,
}

impl Here {
    /// The ClusterPeers without CIDRs that have an address of this node, where it is older: they would cut it off from its own
    /// cluster. An address that comes later into a CIDR is not believed itself (`plan::claims`), or it could unguard a prefix; and no
    /// annotation is an address.
    fn keeps(&self, guarded: &BTreeSet<IpNet>, peers: &[ClusterPeer]) -> (Vec<ClusterPeer>, Vec<Refusal>) {
        let mut refusals = Vec::new();
        let mut kept = peers.to_vec();
        for peer in kept.iter_mut().filter(|peer| self.created < peer.created) {
            let name = peer.name.clone();
            peer.pod_cidrs.retain(|cidr| {
                let mut mine = self.addresses.iter().copied().filter(|_| !guarded.contains(&cidr.trunc()));
                let Some(address) = mine.find(|address| cidr.contains(address)) else { return true };
                let (peer, node) = (name.clone(), self.node.clone());
                refusals.push(Refusal::PeerCidrOfOlderNode { peer, cidr: *cidr, address, node });
                false
            });
        }
        (kept, refusals)
    }
}

impl Joined {
    /// Judges what `states` tell by `peers`, at most [`MAX_NODES`] nodes of it. Only nodes count here; pods are held to what was
    /// accepted of theirs.
    ///
    /// `guarded` is what this agent guards already of joined clusters: no address that comes later into it opens it.
    pub fn judge<'a>(
        own: &OwnCluster,
        here: Option<&Here>,
        guarded: &BTreeSet<IpNet>,
        peers: &[ClusterPeer],
        states: impl IntoIterator<Item = (&'a ClusterName, &'a ClusterState)> + Clone,
    ) -> (Self, Claims, Vec<Refusal>) {
        let (peers, mut refusals) =
            here.map_or_else(|| (peers.to_vec(), Vec::new()), |here| here.keeps(guarded, peers));
        let (borders, refused) = Borders::judge(own, &peers);
        refusals.extend(refused);
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

    /// How far this node reaches into each of them.
    pub fn reach(&self) -> BTreeMap<ClusterName, Reach> {
        let mut nets: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for (name, node) in &self.nodes {
            let of = nets.entry(name.cluster().unwrap_or_default()).or_default();
            of.extend(&node.pod_cidrs);
        }
        let reach = |(cluster, cidrs): (&ClusterName, &Vec<IpNet>)| {
            let peers = nets.get(cluster.as_str()).into_iter().flatten().copied().collect();
            (cluster.clone(), Reach { cidrs: cidrs.clone(), peers })
        };
        self.cidrs.iter().map(reach).collect()
    }

    /// An agent's settings with these clusters in them.
    pub fn settings(&self, settings: &Settings) -> Settings {
        Settings { joined: self.cidrs.clone(), ..settings.clone() }
    }
}

/// Prefixes that ClusterPeers name and have lost, by the cluster that they are said to be of.
pub type Disputed = BTreeMap<ClusterName, Vec<IpNet>>;

/// What of `before` (accepted of clusters, and disputed) their ClusterPeers still name and `now` accepts no longer: an older one, this
/// cluster's own pod CIDRs or its name has come to claim it, too. Its pods may be there all the same, so it stays guarded; but
/// it is nobody's, and whoever was given it is served as if nobody else had asked for it.
///
/// Of clusters in `unread` nobody knows what they name now: all of it stays.
pub fn disputed(
    own: &[IpNet],
    before: (&BTreeMap<ClusterName, Vec<IpNet>>, &Disputed),
    (peers, unread): (&[ClusterPeer], &BTreeSet<ClusterName>),
    now: &Joined,
) -> Disputed {
    let held = |net: &IpNet| own.iter().chain(now.cidrs.values().flatten()).any(|held| held.contains(net));
    let mut disputed = Disputed::new();
    for name in before.0.keys().chain(before.1.keys()) {
        let guarded =
            [before.0.get(name), before.1.get(name)].into_iter().flatten().flatten().map(IpNet::trunc);
        let named = || peers.iter().filter(|peer| peer.name == *name).flat_map(|peer| &peer.pod_cidrs);
        // Of two prefixes that meet, one is in the other.
        let both = |net: IpNet| -> Vec<IpNet> {
            if unread.contains(name) {
                return vec![net];
            }
            let meets = |named: &IpNet| {
                if named.contains(&net) { Some(net) } else { net.contains(named).then(|| named.trunc()) }
            };
            named().filter_map(meets).collect()
        };
        let nets: BTreeSet<IpNet> = guarded.flat_map(both).filter(|net| !held(net)).collect();
        let widest = |net: &&IpNet| !nets.iter().any(|other| other != *net && other.contains(*net));
        let nets: Vec<IpNet> = nets.iter().filter(widest).copied().collect();
        if !nets.is_empty() {
            disputed.insert(name.clone(), nets);
        }
    }
    disputed
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
