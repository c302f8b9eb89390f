//! From Kubernetes objects to facts. The objects stop here: nothing behind this module knows their types.

use std::net::IpAddr;

use keyring::rotation::REQUEST_MAX;
use kube::api::{Object, ObjectMeta};
use mesh_core::name::NodeName;
use mesh_core::numbers::{ANNOTATION_ENDPOINT, ANNOTATION_ROTATE, ANNOTATION_WIREGUARD};
use mesh_core::policy::model::Labels;
use mesh_core::view::{AnnouncementFact, EndpointFact, MalformedField, NodeFacts};
use serde::{Deserialize, Serialize};

use crate::condition::NETWORK_UNAVAILABLE;

pub mod decode;
pub mod pod;
pub mod ports;

pub use decode::Decoded;
pub use pod::PodMeta;

/// The part of a Node's spec that we read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodeSpec {
    /// `podCIDRs`.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pub pod_cidrs: Option<Vec<String>>,
}

/// The part of a Node's status that we read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodeStatus {
    /// `addresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<NodeAddress>>,
    /// `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<NodeCondition>>,
}

/// One condition of a Node, without its words and times.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeCondition {
    /// `Ready`, `NetworkUnavailable`…
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
}

/// One address of a Node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname`…
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// A Node without the tens of kilobytes that we do not read.
pub type Node = Object<NodeSpec, NodeStatus>;

/// What a Node says: facts for the mesh, and labels for policy and services. They are apart, so that a label that nobody
/// asks for makes no plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSeen {
    /// For the mesh.
    pub facts: NodeFacts,
    /// Its labels.
    pub labels: Labels,
    /// Its ExternalIPs: the mesh has nothing to do with them, policy and services do.
    pub external_ips: Vec<IpAddr>,
    /// Its condition `NetworkUnavailable` is True.
    pub network_unavailable: bool,
}

/// Reads a Node with its labels.
pub fn node_seen(object: &Node) -> Option<(NodeName, NodeSeen)> {
    let (name, mut facts) = node(object)?;
    let external_ips = ips(object, "ExternalIP", &mut facts.malformed);
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut of_network = conditions.filter(|condition| condition.kind == NETWORK_UNAVAILABLE);
    let network_unavailable = of_network.any(|condition| condition.status == "True");
    let labels = object.metadata.labels.clone().unwrap_or_default();
    Some((name, NodeSeen { facts, labels, external_ips, network_unavailable }))
}

/// InternalIPs, and ExternalIPs, of one node that are read: a few for each family. Each of the former becomes routes and allowed
/// IPs on every other node, and a node writes its own status.
const MAX_IPS: usize = 16;
/// Longest piece of a foreign value that is repeated in an error.
const SHOWN: usize = 80;

/// The addresses of a kind.
fn ips(node: &Node, kind: &str, wrong: &mut Vec<MalformedField>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    for address in addresses.into_iter().flatten().filter(|address| address.kind == kind) {
        match address.address.parse::<IpAddr>() {
            Ok(ip) if found.contains(&ip) => {}
            Ok(_) if found.len() >= MAX_IPS => {
                let reason = format!(
                    "a node has at most {MAX_IPS} of type {kind}; this one and those after it are not read"
                );
                wrong.push(malformed("status.addresses", &address.address, &reason));
                break;
            }
            Ok(ip) => found.push(ip),
            Err(_) => wrong.push(malformed("status.addresses", &address.address, "not an address")),
        }
    }
    found
}

/// Reads a Node. None: its name is not one (the API would not allow it).
pub fn node(node: &Node) -> Option<(NodeName, NodeFacts)> {
    let name: NodeName = node.metadata.name.as_deref()?.parse().ok()?;
    let mut facts = NodeFacts { created: created(&node.metadata), ..NodeFacts::default() };
    let pod_cidrs = node.spec.pod_cidrs.iter().flatten();
    for text in pod_cidrs {
        match text.parse::<ipnet::IpNet>() {
            Ok(net) => facts.pod_cidrs.push(net.trunc()),
            Err(_) => facts.malformed.push(malformed("spec.podCIDRs", text, "not a prefix")),
        }
    }
    facts.internal_ips = ips(node, "InternalIP", &mut facts.malformed);
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    // Not False: that is a kubelet's own word, so there is one.
    facts.unheard = conditions.any(|condition| condition.kind == "Ready" && condition.status == "Unknown");
    let annotation = |key: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
    if let Some(text) = annotation(ANNOTATION_ENDPOINT) {
        facts.endpoint = endpoint(text);
    }
    let request = annotation(ANNOTATION_ROTATE);
    facts.rotate = request.map(|text| text[..text.floor_char_boundary(REQUEST_MAX)].to_owned());
    if let Some(text) = annotation(ANNOTATION_WIREGUARD) {
        facts.announcement = match keyring::codec::decode(text) {
            Ok(announcement) => AnnouncementFact::Valid(announcement),
            Err(error) => AnnouncementFact::Malformed { reason: error.to_string() },
        };
    }
    Some((name, facts))
}

fn endpoint(text: &str) -> EndpointFact {
    let mut addresses = Vec::new();
    for part in text.split(',').map(str::trim) {
        match part.parse::<IpAddr>() {
            Ok(address) if mesh_core::prefix::is_unicast(address) => addresses.push(address),
            Ok(_) => {
                return EndpointFact::Malformed {
                    value: shown(text),
                    reason: format!("{part} is not a unicast address"),
                };
            }
            Err(_) => {
                return EndpointFact::Malformed {
                    value: shown(text),
                    reason: format!("{:?} is not an address", shown(part)),
                };
            }
        }
    }
    EndpointFact::Addresses(addresses)
}

fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

fn malformed(field: &str, value: &str, reason: &str) -> MalformedField {
    MalformedField { field: field.to_owned(), value: shown(value), reason: reason.to_owned() }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests;
