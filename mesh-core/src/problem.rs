//! What is wrong and cannot be planned around: each names the object, the field, the value and the remedy, costs
//! no more than that one thing, and becomes a Kubernetes Event, a metric and a log line.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::announcement::Epoch;
use crate::host::HostPath;
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::slot::Slot;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// A node has no announcement.
    #[error(
        "node {node}: no annotation hawser.dev/wireguard; its pods are unreachable until mesh-agent runs there"
    )]
    KeyMissing {
        /// The node.
        node: NodeName,
    },
    /// Two nodes announce the same key.
    #[error(
        "node {node}: announces key {key} for {slot}, which is also a key of node {holder}; refused here, kept there (older); delete the key file of {slot} on {node} and restart its agent"
    )]
    KeyDuplicated {
        /// The node that is refused.
        node: NodeName,
        /// Which of its slots.
        slot: Slot,
        /// The key.
        key: PublicKey,
        /// The node that keeps it.
        holder: NodeName,
    },
    /// A node announces a key that it had replaced.
    #[error(
        "node {node}: annotation hawser.dev/wireguard announces key {key} with epoch {} for {slot}, which the node itself had replaced; refused, the key with epoch {} stays in use; find out who wrote it; if the node's disk was restored, replace its keys: hawser keys rotate {node}", epoch.0, taken.0
    )]
    EpochWentBack {
        /// The node.
        node: NodeName,
        /// Which of its slots.
        slot: Slot,
        /// Number of the key that is announced.
        epoch: Epoch,
        /// That key.
        key: PublicKey,
        /// Number of the key that stays in use.
        taken: Epoch,
    },
    /// A node announces a key with a number that is not greater than that of the key before, and nothing shows who replaced it.
    #[error(
        "node {node}: annotation hawser.dev/wireguard announces key {key} with epoch {} for {slot}, after one with epoch {}; it is taken, since a node that lost its disk looks the same; if nobody reinstalled {node}, one of the two keys is false: find out who wrote it; then replace its keys: hawser keys rotate {node}", epoch.0, before.0
    )]
    EpochFell {
        /// The node.
        node: NodeName,
        /// Which of its slots.
        slot: Slot,
        /// Number of the key that is announced.
        epoch: Epoch,
        /// That key.
        key: PublicKey,
        /// Number of the key before.
        before: Epoch,
    },
    /// A node announces an endpoint that belongs to another one.
    #[error(
        "node {node}: announces the endpoint {address}, an InternalIP of node {holder}; not called there; correct annotation hawser.dev/endpoint or the addresses of {node}"
    )]
    EndpointOfAnother {
        /// The node.
        node: NodeName,
        /// The endpoint.
        address: IpAddr,
        /// Whose address it is.
        holder: NodeName,
    },
    /// An announcement was refused by the codec.
    #[error(
        "node {node}: annotation hawser.dev/wireguard refused: {reason}; restart its agent, which writes it anew"
    )]
    AnnouncementMalformed {
        /// The node.
        node: NodeName,
        /// Field and value.
        reason: String,
    },
    /// `hawser.dev/endpoint` was refused.
    #[error(
        "node {node}: annotation hawser.dev/endpoint={value:?} refused: {reason}; wanted addresses separated by commas"
    )]
    EndpointMalformed {
        /// The node.
        node: NodeName,
        /// The annotation.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Some other field of a Node could not be read.
    #[error("node {node}: {field}={value:?} refused: {reason}")]
    FieldMalformed {
        /// The node.
        node: NodeName,
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// None of the node's endpoints can be reached from here.
    #[error(
        "node {node}: no usable endpoint among [{candidates}] (this node's underlay has {families}); give it an InternalIP of that family or set hawser.dev/endpoint. It can still call us"
    )]
    NoUsableEndpoint {
        /// The node.
        node: NodeName,
        /// What it offers.
        candidates: String,
        /// What this node has.
        families: &'static str,
    },
    /// Two nodes claim the same InternalIP, or one claims an address of pods.
    #[error(
        "node {node}: InternalIP {address} is refused: it belongs to {holder}; correct status.addresses of the wrong one"
    )]
    AddressClaimedTwice {
        /// The node that is refused.
        node: NodeName,
        /// The address.
        address: IpAddr,
        /// Who keeps it.
        holder: String,
    },
    /// The InternalIP cannot be an address of a node.
    #[error("node {node}: InternalIP {address} is refused: not a unicast address that others can reach")]
    AddressUnusable {
        /// The node.
        node: NodeName,
        /// The address.
        address: IpAddr,
    },
    /// Two nodes claim overlapping pod CIDRs.
    #[error(
        "node {node}: pod CIDR {cidr} is refused: it overlaps {other} of node {holder} (older); recreate the Node object of the wrong one"
    )]
    CidrClaimedTwice {
        /// The node that is refused.
        node: NodeName,
        /// Its CIDR.
        cidr: IpNet,
        /// The node that keeps its own.
        holder: NodeName,
        /// That one's CIDR.
        other: IpNet,
    },
    /// A pod CIDR is outside the configured ones.
    #[error(
        "node {node}: pod CIDR {cidr} is refused: outside podCIDRs of the configuration ({configured}); add its prefix there or correct the controller manager's --cluster-cidr"
    )]
    CidrOutsidePrefixes {
        /// The node.
        node: NodeName,
        /// Its CIDR.
        cidr: IpNet,
        /// What is configured.
        configured: String,
    },
    /// A pod CIDR is too small to hold a mesh address and a pod.
    #[error(
        "node {node}: pod CIDR {cidr} is refused: no room for the mesh address and a pod; at least a /30 or /126 is needed"
    )]
    CidrTooSmall {
        /// The node.
        node: NodeName,
        /// Its CIDR.
        cidr: IpNet,
    },
    /// This node has no pod CIDR yet.
    #[error("node {node}: spec.podCIDRs is empty; run the controller manager with --allocate-node-cidrs")]
    NoPodCidr {
        /// The node.
        node: NodeName,
    },
    /// What this node itself sends to another one is refused.
    #[error(
        "node {node}: what this node itself sends to its InternalIPs is refused, exempt TCP ports apart (hostTraffic: on, on both): {}", cut(*path)
    )]
    HostTrafficCut {
        /// The other node.
        node: NodeName,
        /// Why.
        path: HostPath,
    },
    /// What this node itself sends to an address is refused for what it was before.
    #[error(
        "node {node}: what this node itself sends to {address} is refused, exempt TCP ports apart: it was {node}'s while the two talked through the tunnel (hostTraffic: on), and its Node is gone, has others now, or another Node claims it. Set that right; an hour later the address is open"
    )]
    HostAddressHeld {
        /// The node that had it.
        node: NodeName,
        /// The address.
        address: IpAddr,
    },
    /// Somebody else wrote our announcement.
    #[error(
        "node {node}: annotation hawser.dev/wireguard was overwritten by somebody else; written again. Find who has the right to patch nodes"
    )]
    AnnouncementOverwritten {
        /// This node.
        node: NodeName,
    },
    /// The tunnel's MTU is below what IPv6 needs.
    #[error(
        "node {node}: tunnel MTU {mtu} is below 1280, which IPv6 needs; raise the MTU of the uplink or set mtu in the configuration"
    )]
    MtuTooSmall {
        /// This node.
        node: NodeName,
        /// What came out.
        mtu: u32,
    },
    /// A WireGuard device is missing.
    #[error(
        "node {node}: device {slot} is missing, so nothing passes through it; it is programmed again as soon as mesh-tunnel (or the kernel's module) makes it"
    )]
    DeviceMissing {
        /// This node.
        node: NodeName,
        /// The device.
        slot: Slot,
    },
    /// There is no data path on this node.
    #[error(
        "node {node}: there is no data path: {reason}. No pod can be connected until there is one; it is tried again every 10 s"
    )]
    DataPathMissing {
        /// This node.
        node: NodeName,
        /// What is in the way, and the remedy.
        reason: String,
    },
    /// The pool of addresses is nearly used up. The sentence does not count, since a problem is known by its sentence.
    #[error(
        "node {node}: of the {capacity} addresses of {cidr} at least {percent} % are in use or in quarantine; move pods away or give the node a larger pod CIDR", percent = crate::ipam::WARN_PERCENT
    )]
    PoolNearlyFull {
        /// This node.
        node: NodeName,
        /// The pod CIDR.
        cidr: IpNet,
        /// Addresses of pods, quarantine included.
        used: u64,
        /// Addresses that pods can have.
        capacity: u64,
    },
    /// A pod of this node has an address outside its present pod CIDRs.
    #[error(
        "node {node}: attachment {veth} holds {address}, which is outside its pod CIDRs; recreate that pod"
    )]
    AttachmentOutsideCidr {
        /// This node.
        node: NodeName,
        /// The veth.
        veth: String,
        /// The address.
        address: IpAddr,
    },
}

impl Problem {
    /// A stable word for metrics, events and documentation.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "KeyMissing",
            Self::KeyDuplicated { .. } => "KeyDuplicated",
            Self::EpochWentBack { .. } => "EpochWentBack",
            Self::EpochFell { .. } => "EpochFell",
            Self::EndpointOfAnother { .. } => "EndpointOfAnother",
            Self::AnnouncementMalformed { .. } => "AnnouncementMalformed",
            Self::EndpointMalformed { .. } => "EndpointMalformed",
            Self::FieldMalformed { .. } => "FieldMalformed",
            Self::NoUsableEndpoint { .. } => "NoUsableEndpoint",
            Self::AddressClaimedTwice { .. } => "AddressClaimedTwice",
            Self::AddressUnusable { .. } => "AddressUnusable",
            Self::CidrClaimedTwice { .. } => "CidrClaimedTwice",
            Self::CidrOutsidePrefixes { .. } => "CidrOutsidePrefixes",
            Self::CidrTooSmall { .. } => "CidrTooSmall",
            Self::NoPodCidr { .. } => "NoPodCidr",
            Self::AnnouncementOverwritten { .. } => "AnnouncementOverwritten",
            Self::MtuTooSmall { .. } => "MtuTooSmall",
            Self::DeviceMissing { .. } => "DeviceMissing",
            Self::DataPathMissing { .. } => "DataPathMissing",
            Self::PoolNearlyFull { .. } => "PoolNearlyFull",
            Self::AttachmentOutsideCidr { .. } => "AttachmentOutsideCidr",
            Self::HostTrafficCut { .. } => "HostTrafficCut",
            Self::HostAddressHeld { .. } => "HostAddressHeld",
        }
    }

    /// The Node that the problem is about.
    pub const fn node(&self) -> &NodeName {
        match self {
            Self::KeyMissing { node }
            | Self::KeyDuplicated { node, .. }
            | Self::EpochWentBack { node, .. }
            | Self::EpochFell { node, .. }
            | Self::EndpointOfAnother { node, .. }
            | Self::AnnouncementMalformed { node, .. }
            | Self::EndpointMalformed { node, .. }
            | Self::FieldMalformed { node, .. }
            | Self::NoUsableEndpoint { node, .. }
            | Self::AddressClaimedTwice { node, .. }
            | Self::AddressUnusable { node, .. }
            | Self::CidrClaimedTwice { node, .. }
            | Self::CidrOutsidePrefixes { node, .. }
            | Self::CidrTooSmall { node, .. }
            | Self::NoPodCidr { node }
            | Self::AnnouncementOverwritten { node }
            | Self::MtuTooSmall { node, .. }
            | Self::DeviceMissing { node, .. }
            | Self::DataPathMissing { node, .. }
            | Self::PoolNearlyFull { node, .. }
            | Self::AttachmentOutsideCidr { node, .. }
            | Self::HostTrafficCut { node, .. }
            | Self::HostAddressHeld { node, .. } => node,
        }
    }

    /// Every code, for metrics that show zero before anything went wrong.
    pub const CODES: [&'static str; 23] = [
        "KeyMissing",
        "KeyDuplicated",
        "EpochWentBack",
        "EpochFell",
        "EndpointOfAnother",
        "AnnouncementMalformed",
        "EndpointMalformed",
        "FieldMalformed",
        "NoUsableEndpoint",
        "AddressClaimedTwice",
        "AddressUnusable",
        "CidrClaimedTwice",
        "CidrOutsidePrefixes",
        "CidrTooSmall",
        "NoPodCidr",
        "AnnouncementOverwritten",
        "MtuTooSmall",
        "DeviceMissing",
        "DataPathMissing",
        "PoolNearlyFull",
        "AttachmentOutsideCidr",
        "HostTrafficCut",
        "HostAddressHeld",
    ];
}

const fn cut(path: HostPath) -> &'static str {
    match path {
        HostPath::Dead => {
            "nobody answers in the tunnel; look whether mesh-tunnel and mesh-agent run on both, and whether UDP 51880 and 51881 pass"
        }
        HostPath::Plain | HostPath::Waiting | HostPath::Tunnel | HostPath::Cut => {
            "its announcement is missing or refused, or a pre-shared key or the mark of WireGuard's own packets is waited for; see the other problems"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained_to_whoever_installs_with_its_cause_and_its_cure() {
        let guide = include_str!("../../deploy/README.md");
        for code in Problem::CODES {
            let row = guide.lines().find(|line| line.starts_with(&format!("| `{code}` |")));
            let cells =
                row.map(|row| row.trim_matches('|').split('|').filter(|cell| cell.trim().len() > 10).count());
            assert_eq!(cells, Some(3), "{code} in deploy/README.md: {row:?}");
        }
    }
}
