//! Everything the decisions know: one plain value, built by the agent from watches, the keyring and the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::announcement::Announcement;
use crate::host::{HostState, HostTraffic};
use crate::name::NodeName;
use crate::pair::{Drains, Link};
use crate::psk::{ClusterName, NodeId, SlotPsk};
use crate::slot::{Slot, drained};

/// The whole truth at one moment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// What the administrator configured.
    pub settings: Settings,
    /// This node.
    pub local: LocalFacts,
    /// Every Node of the API, this one included, and those of joined clusters ([`NodeName::foreign`]).
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// Pods of this node, by the name of their veth on the host.
    pub attachments: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The first complete list of Nodes has been seen. Before, plans add and never delete.
    pub synced: bool,
    /// How this node and others talk at present. Who is not here is talked to where the pair shall talk.
    #[serde(skip)]
    pub pairs: BTreeMap<NodeName, PairFacts>,
}

/// How this node and another one talk at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairFacts {
    /// Where this node's routes to it lead.
    pub current: Option<Slot>,
    /// Both slots, in order.
    pub links: [Link; 2],
    /// Pre-shared keys of both slots, in order.
    pub psk: [SlotPsk; 2],
    /// The slot on which the pair is to talk, whatever the announcements say: it alone has a pre-shared key.
    pub instead: Option<Slot>,
}

/// What the administrator configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Pod CIDRs of the cluster: nothing inside them ever crosses between nodes in plaintext.
    pub pod_cidrs: Vec<IpNet>,
    /// Pod CIDRs of joined clusters, which overlap neither each other nor ours ([`crate::clusters::Borders`]): the same holds
    /// for them.
    pub joined: BTreeMap<ClusterName, Vec<IpNet>>,
    /// What ClusterPeers name and somebody else has been given since ([`crate::clusters::disputed`]): nobody's, and in plaintext
    /// as little as before.
    pub disputed: Vec<IpNet>,
    /// Destinations to which pods talk with their own address, in plaintext, by the administrator's wish.
    pub non_masquerade: Vec<IpNet>,
    /// Where Services have their addresses: of what pods send there nothing leaves by an uplink.
    pub service_cidrs: Vec<IpNet>,
    /// MTU of the tunnel in bytes; none: the uplink's less [`crate::numbers::OVERHEAD`].
    pub mtu: Option<u32>,
    /// Persistent keepalive towards every peer in seconds; none: 25 where this node seems to be behind NAT, else off.
    pub keepalive: Option<u16>,
    /// Whether nodes' own traffic goes through the tunnel.
    pub host_traffic: HostTraffic,
}

impl Settings {
    /// Pod CIDRs of this cluster and of all that are joined to it, and what is disputed: what is never in plaintext.
    pub fn guarded(&self) -> Vec<IpNet> {
        self.pod_cidrs.iter().chain(self.joined.values().flatten()).chain(&self.disputed).copied().collect()
    }
}

/// What this node knows about itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalFacts {
    /// Name of its Node object.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: ClusterName,
    /// What it announces: keys, epochs and ports from the keyring. The endpoints are decided by the plan.
    pub announcement: Announcement,
    /// MTU of the device that holds its InternalIP, in bytes.
    pub uplink_mtu: Option<u32>,
    /// What the kernel shows of this node's own traffic.
    pub host: HostState,
}

/// What the API says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// Seconds since 1970 at which the Node was created: of two nodes that claim the same thing the older keeps it.
    pub created: i64,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `hawser.dev/endpoint`.
    pub endpoint: EndpointFact,
    /// `hawser.dev/wireguard`.
    pub announcement: AnnouncementFact,
    /// Its condition Ready is Unknown: nobody hears of its kubelet. What it connects may go on all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unheard: bool,
    /// `hawser.dev/rotate`: its owner asks for new keys; two values are two requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<String>,
    /// Fields that could not be read, each refused by itself.
    pub malformed: Vec<MalformedField>,
}

/// `hawser.dev/endpoint` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointFact {
    /// No such annotation.
    #[default]
    Absent,
    /// Addresses, best first; not empty.
    Addresses(Vec<IpAddr>),
    /// Not a list of addresses.
    Malformed {
        /// The annotation, shortened.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// `hawser.dev/wireguard` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AnnouncementFact {
    /// No such annotation: no agent has run there yet.
    #[default]
    Missing,
    /// Refused by the codec.
    Malformed {
        /// Field and value, as the codec names them.
        reason: String,
    },
    /// Decoded, keys checked.
    Valid(Announcement),
}

/// A field of a Node that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MalformedField {
    /// Path of the field.
    pub field: String,
    /// Its value, shortened.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ClusterView {
    /// This node, as all clusters call it.
    pub fn us(&self) -> NodeId {
        self.id(&self.local.name)
    }

    /// A node, as all clusters call it.
    pub fn id(&self, name: &NodeName) -> NodeId {
        name.id(&self.local.cluster)
    }

    /// What this node drains: as it means to, and as the API has it.
    pub fn drains(&self) -> Drains {
        let shown = self.nodes.get(&self.local.name).and_then(NodeFacts::announced);
        Drains { wanted: drained(&self.local.announcement), accepted: shown.and_then(drained) }
    }
}

impl NodeFacts {
    /// The announcement, if there is a valid one.
    pub fn announced(&self) -> Option<&Announcement> {
        match &self.announcement {
            AnnouncementFact::Valid(announcement) => Some(announcement),
            AnnouncementFact::Missing | AnnouncementFact::Malformed { .. } => None,
        }
    }
}
