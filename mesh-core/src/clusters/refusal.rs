//! What is not believed, and why: each names the object, the field, the value and the remedy, and costs no more than that.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::key::PublicKey;
use crate::name::NodeName;
use crate::policy::model::ObjectName;
use crate::psk::{ClusterName, NodeId};
use crate::slot::Slot;

/// Who has what another one claims.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A node of this cluster.
    Own(NodeName),
    /// A node of another one.
    Remote(NodeId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(node) => write!(f, "node {node} of this cluster"),
            Self::Remote(id) => write!(f, "node {id} (older)"),
        }
    }
}

/// One thing that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// A field of a ClusterPeer cannot be read.
    #[error("ClusterPeer {peer}: {field} {value:?} refused: {reason}; correct it")]
    PeerMalformed {
        /// Name of the object, shortened.
        peer: String,
        /// Path of the field.
        field: String,
        /// Its value, shortened.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A ClusterPeer has this cluster's name.
    #[error(
        "ClusterPeer {peer}: metadata.name {peer} is the name of this cluster itself; nothing of it is believed; delete it, or give one of the two clusters another clusterName"
    )]
    PeerIsOurself {
        /// The peer.
        peer: ClusterName,
    },
    /// There are two ClusterPeers of one name.
    #[error(
        "ClusterPeer {peer}: metadata.name {peer} is that of another ClusterPeer, which is kept (older); delete this one"
    )]
    PeerTwice {
        /// The peer.
        peer: ClusterName,
    },
    /// A peer's CIDR has addresses of our pods.
    #[error(
        "ClusterPeer {peer}: spec.podCIDRs {cidr} overlaps pod CIDR {ours} of this cluster; refused; correct it, or give one of the clusters other pod CIDRs"
    )]
    PeerCidrOurs {
        /// The peer.
        peer: ClusterName,
        /// What is refused.
        cidr: IpNet,
        /// What it overlaps.
        ours: IpNet,
    },
    /// A peer's CIDR has an address of one of our nodes.
    #[error(
        "ClusterPeer {peer}: spec.podCIDRs {cidr} contains {address}, an address of node {node} of this cluster; the CIDR is kept and guarded, and nobody talks to the node there; correct one of the two"
    )]
    PeerCidrOfNode {
        /// The peer.
        peer: ClusterName,
        /// What is refused.
        cidr: IpNet,
        /// The address.
        address: IpAddr,
        /// Whose it is.
        node: NodeName,
    },
    /// A peer's CIDR has an address of this agent's own node, which is older.
    #[error(
        "ClusterPeer {peer}: spec.podCIDRs {cidr} contains {address}, an address of node {node} of this cluster, which is older; refused there; correct the ClusterPeer"
    )]
    PeerCidrOfOlderNode {
        /// The peer.
        peer: ClusterName,
        /// What is refused.
        cidr: IpNet,
        /// The address.
        address: IpAddr,
        /// Whose it is.
        node: NodeName,
    },
    /// A peer's CIDR has addresses of another peer.
    #[error(
        "ClusterPeer {peer}: spec.podCIDRs {cidr} overlaps {other} of ClusterPeer {holder}; refused here, kept there (older); correct one of the two"
    )]
    PeerCidrTwice {
        /// The peer that is refused.
        peer: ClusterName,
        /// What is refused.
        cidr: IpNet,
        /// Who keeps it.
        holder: ClusterName,
        /// What it overlaps.
        other: IpNet,
    },
    /// A cluster speaks of another one.
    #[error(
        "cluster {speaker}: tells of cluster {named}; refused: a cluster speaks only for itself; find out who runs clustermesh there"
    )]
    ForeignCluster {
        /// Who was authenticated.
        speaker: ClusterName,
        /// Of whom it speaks.
        named: ClusterName,
    },
    /// There is no ClusterPeer of that name here.
    #[error(
        "cluster {cluster}: no ClusterPeer {cluster} is here; nothing of it is believed; make one: hawser clustermesh join"
    )]
    ClusterUnknown {
        /// The cluster.
        cluster: ClusterName,
    },
    /// A pod CIDR of a node is not its cluster's.
    #[error("node {node}: spec.podCIDRs {cidr} is outside what ClusterPeer {} allows ({allowed}); refused; add it to spec.podCIDRs if it is right", node.cluster)]
    NodeCidrOutside {
        /// The node.
        node: NodeId,
        /// What is refused.
        cidr: IpNet,
        /// What is allowed.
        allowed: String,
    },
    /// No room for a mesh address and a pod.
    #[error(
        "node {node}: spec.podCIDRs {cidr} has no room for the mesh address and a pod; refused; give it /30 or /126 at least"
    )]
    NodeCidrTooSmall {
        /// The node.
        node: NodeId,
        /// What is refused.
        cidr: IpNet,
    },
    /// Two nodes of a cluster claim addresses.
    #[error("node {node}: spec.podCIDRs {cidr} overlaps {other} of node {holder} of the same cluster; refused here, kept there (older); correct it in cluster {}", node.cluster)]
    NodeCidrTwice {
        /// The node that is refused.
        node: NodeId,
        /// What is refused.
        cidr: IpNet,
        /// Who keeps it.
        holder: NodeName,
        /// What it overlaps.
        other: IpNet,
    },
    /// There are too many nodes.
    #[error(
        "node {node}: beyond the {limit} nodes of other clusters that are peers (older ones stay); it is no peer, and its pods cannot be reached; join fewer or smaller clusters"
    )]
    NodeBeyondLimit {
        /// The node that is refused.
        node: NodeId,
        /// How many there may be.
        limit: usize,
    },
    /// Two nodes announce one key.
    #[error(
        "node {node}: announces key {key} for {slot}, which is also a key of {holder}; refused here, kept there; delete the key file of {slot} on the node and restart its agent"
    )]
    NodeKeyTwice {
        /// The node that is refused.
        node: NodeId,
        /// Which of its slots.
        slot: Slot,
        /// The key.
        key: PublicKey,
        /// Who keeps it.
        holder: Holder,
    },
    /// A node is called where no node can be.
    #[error(
        "node {node}: announces the endpoint {address}, where no other host can be reached; not called there; correct annotation hawser.dev/endpoint of the node"
    )]
    NodeEndpointUnusable {
        /// The node.
        node: NodeId,
        /// The endpoint.
        address: IpAddr,
    },
    /// A node is called at an address of a pod.
    #[error(
        "node {node}: announces the endpoint {address}, inside the pod CIDR {cidr} of {cluster}; not called there; correct annotation hawser.dev/endpoint of the node"
    )]
    NodeEndpointInside {
        /// The node.
        node: NodeId,
        /// The endpoint.
        address: IpAddr,
        /// Whose pods are there.
        cidr: IpNet,
        /// Of which cluster.
        cluster: ClusterName,
    },
    /// A node is called at an address of ours.
    #[error(
        "node {node}: announces the endpoint {address}, an address of node {holder} of this cluster; not called there; correct annotation hawser.dev/endpoint of the node"
    )]
    NodeEndpointOurs {
        /// The node.
        node: NodeId,
        /// The endpoint.
        address: IpAddr,
        /// Whose address it is.
        holder: NodeName,
    },
    /// A pod's address without a node.
    #[error(
        "endpoint {address} of cluster {cluster}: its node {node} is not known or has no pod CIDR that is accepted; refused until it has"
    )]
    EndpointWithoutNode {
        /// The cluster.
        cluster: ClusterName,
        /// The address.
        address: IpAddr,
        /// The node.
        node: NodeName,
    },
    /// A pod's address is not its node's.
    #[error(
        "endpoint {address} of cluster {cluster}: outside the pod CIDRs of its node {node}; refused; find out who tells it in cluster {cluster}"
    )]
    EndpointOutside {
        /// The cluster.
        cluster: ClusterName,
        /// The address.
        address: IpAddr,
        /// The node.
        node: NodeName,
    },
    /// A pod that policies ask for, beyond those that are known to them.
    #[error(
        "endpoint {address} of cluster {cluster}: policies ask for more than {limit} pods of joined clusters; no rule accepts this one; narrow their selectors with label hawser.dev/cluster, or use ipBlock"
    )]
    EndpointBeyondLimit {
        /// The cluster.
        cluster: ClusterName,
        /// The address.
        address: IpAddr,
        /// How many are known to policies.
        limit: usize,
    },
    /// A pod whose labels were not told: no policy can judge it.
    #[error("endpoint {address} of cluster {cluster}: label set {labels} was not told; refused until it is")]
    EndpointWithoutLabels {
        /// The cluster.
        cluster: ClusterName,
        /// The address.
        address: IpAddr,
        /// Number of the label set.
        labels: u64,
    },
    /// A backend is not its cluster's.
    #[error("service {}/{} of cluster {cluster}: backend {address} is outside what ClusterPeer {cluster} allows ({allowed}); refused; pods on the host network cannot serve other clusters", service.namespace, service.name)]
    BackendOutside {
        /// The cluster.
        cluster: ClusterName,
        /// The service.
        service: ObjectName,
        /// The address.
        address: IpAddr,
        /// What is allowed.
        allowed: String,
    },
    /// A backend where no node is.
    #[error(
        "service {}/{} of cluster {cluster}: backend {address} is in the pod CIDR of no node of it that is accepted; left out until it is; what is said of its nodes tells why", service.namespace, service.name
    )]
    BackendWithoutNode {
        /// The cluster.
        cluster: ClusterName,
        /// The service.
        service: ObjectName,
        /// The address.
        address: IpAddr,
    },
    /// A backend of nothing.
    #[error("service {}/{} of cluster {cluster}: not exported, yet backend {address} is told; refused until it is", service.namespace, service.name)]
    BackendWithoutService {
        /// The cluster.
        cluster: ClusterName,
        /// The service.
        service: ObjectName,
        /// The address.
        address: IpAddr,
    },
}

impl Refusal {
    /// Is it about a pod CIDR that cannot be read? Which one was meant nobody knows.
    pub fn is_of_pod_cidr(&self) -> bool {
        matches!(self, Self::PeerMalformed { field, .. } if field.starts_with("spec.podCIDRs"))
    }

    /// For conditions and labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::PeerMalformed { .. } => "PeerMalformed",
            Self::PeerIsOurself { .. } => "PeerIsOurself",
            Self::PeerTwice { .. } => "PeerTwice",
            Self::PeerCidrOurs { .. } => "PeerCidrOurs",
            Self::PeerCidrOfNode { .. } => "PeerCidrOfNode",
            Self::PeerCidrOfOlderNode { .. } => "PeerCidrOfOlderNode",
            Self::PeerCidrTwice { .. } => "PeerCidrTwice",
            Self::ForeignCluster { .. } => "ForeignCluster",
            Self::ClusterUnknown { .. } => "ClusterUnknown",
            Self::NodeCidrOutside { .. } => "NodeCidrOutside",
            Self::NodeCidrTooSmall { .. } => "NodeCidrTooSmall",
            Self::NodeCidrTwice { .. } => "NodeCidrTwice",
            Self::NodeBeyondLimit { .. } => "NodeBeyondLimit",
            Self::NodeKeyTwice { .. } => "NodeKeyTwice",
            Self::NodeEndpointUnusable { .. } => "NodeEndpointUnusable",
            Self::NodeEndpointInside { .. } => "NodeEndpointInside",
            Self::NodeEndpointOurs { .. } => "NodeEndpointOurs",
            Self::EndpointWithoutNode { .. } => "EndpointWithoutNode",
            Self::EndpointOutside { .. } => "EndpointOutside",
            Self::EndpointBeyondLimit { .. } => "EndpointBeyondLimit",
            Self::EndpointWithoutLabels { .. } => "EndpointWithoutLabels",
            Self::BackendOutside { .. } => "BackendOutside",
            Self::BackendWithoutNode { .. } => "BackendWithoutNode",
            Self::BackendWithoutService { .. } => "BackendWithoutService",
        }
    }
}
