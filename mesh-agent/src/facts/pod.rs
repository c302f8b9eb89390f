//! Pods: of all, what their metadata says; of this node's, a little more.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Object;
use mesh_core::numbers::{ANNOTATION_IPS, ANNOTATION_PORTS};
use mesh_core::policy::model::{Labels, NamedPort, ObjectName, Protocol};
use serde::{Deserialize, Serialize};

use super::ports;

/// Addresses of one pod that are read: Kubernetes gives one of each family.
const MAX_IPS: usize = 4;
/// hostPorts of one pod that are read; more than a node has pods that want them.
const MAX_HOST_PORTS: usize = 256;

/// Key of a pod.
pub fn name_of(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref().and_then(|all| all.get(key))
}

fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels.clone().unwrap_or_default()
}

/// What any pod's metadata says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemotePod {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, as its node's agent wrote them at ADD. Where they may lie is not checked here.
    pub ips: BTreeSet<IpAddr>,
    /// Ports that its containers name.
    pub ports: BTreeSet<NamedPort>,
}

impl RemotePod {
    /// Reads a pod's metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        let text = annotation(meta, ANNOTATION_IPS).map(String::as_str).unwrap_or_default();
        let ips = text.split(',').filter_map(|part| part.trim().parse().ok());
        let ports = annotation(meta, ANNOTATION_PORTS).map(|text| ports::parse(text)).unwrap_or_default();
        Self { labels: labels(meta), ips: ips.take(MAX_IPS).collect(), ports }
    }
}

/// Keys, values and identity of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodMeta {
    /// `metadata.uid`.
    pub uid: String,
    /// `kubernetes.io/config.hash` of a mirror pod: what the kubelet gives as UID for a static pod.
    pub config_hash: Option<String>,
}

impl PodMeta {
    /// Reads a pod's metadata.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let config_hash = annotation(meta, "kubernetes.io/config.hash").cloned();
        Some(Self { uid: meta.uid.clone()?, config_hash })
    }

    /// Is this the pod that a runtime calls `uid`? Without a UID the name has to do.
    pub fn is(&self, uid: Option<&str>) -> bool {
        uid.is_none_or(|uid| uid == self.uid || self.config_hash.as_deref() == Some(uid))
    }
}

/// The part of a Pod's spec that we read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

/// The part of a container that we read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPort>>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i64,
    host_port: Option<i64>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

/// The part of a Pod's status that we read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct PodStatus {
    phase: Option<String>,
}

/// A Pod without the kilobytes that we do not read.
pub type Pod = Object<PodSpec, PodStatus>;

/// One hostPort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node's port.
    pub host_port: u16,
    /// Only at this address of the node.
    pub host_ip: Option<IpAddr>,
    /// The pod's port.
    pub container_port: u16,
}

impl HostPort {
    /// As a runtime asked for it; none: not with a protocol and ports that there are.
    pub fn mapped(mapping: &proto::cni::PortMapping) -> Option<Self> {
        Some(Self {
            protocol: ports::protocol(&mapping.protocol.to_ascii_uppercase())?,
            host_port: number(mapping.host_port.into())?,
            host_ip: mapping.host_ip,
            container_port: number(mapping.container_port.into())?,
        })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = ports::word(self.protocol);
        match self.host_ip {
            Some(ip) => write!(f, "hostPort {}/{protocol}", SocketAddr::new(ip, self.host_port)),
            None => write!(f, "hostPort {}/{protocol}", self.host_port),
        }
    }
}

/// What is known of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// Who it is.
    pub meta: PodMeta,
    /// Its labels.
    pub labels: Labels,
    /// Ports that its containers name.
    pub ports: BTreeSet<NamedPort>,
    /// Its hostPorts.
    pub host_ports: BTreeSet<HostPort>,
    /// It has no network of its own.
    pub host_network: bool,
    /// It will not run again (`Succeeded`, `Failed`).
    pub finished: bool,
    /// `hawser.dev/ips`, as written.
    pub announced_ips: Option<String>,
    /// `hawser.dev/ports`, as written.
    pub announced_ports: Option<String>,
}

impl OwnPod {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        // Of init containers only those run beside the others that are restarted always (KEP-753).
        let beside = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
        let init = pod.spec.init_containers.iter().flatten().filter(beside);
        let containers = pod.spec.containers.iter().flatten().chain(init);
        let (mut ports, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
        for port in containers.flat_map(|c| c.ports.iter().flatten()) {
            ports.extend(named(port));
            if host_ports.len() < MAX_HOST_PORTS {
                host_ports.extend(host_port(port));
            }
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Self {
            meta: PodMeta::of(meta)?,
            labels: labels(meta),
            ports,
            host_ports,
            host_network: pod.spec.host_network == Some(true),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            announced_ips: annotation(meta, ANNOTATION_IPS).cloned(),
            announced_ports: annotation(meta, ANNOTATION_PORTS).cloned(),
        })
    }
}

fn number(port: i64) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn kind(port: &ContainerPort) -> Option<Protocol> {
    ports::protocol(port.protocol.as_deref().unwrap_or("TCP"))
}

fn named(port: &ContainerPort) -> Option<NamedPort> {
    let name = port.name.clone().filter(|name| !name.is_empty())?;
    Some(NamedPort { name, protocol: kind(port)?, port: number(port.container_port)? })
}

fn host_port(port: &ContainerPort) -> Option<HostPort> {
    let host_ip = match port.host_ip.as_deref().filter(|text| !text.is_empty()) {
        // One that is no address is nobody's: the port is not served.
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    Some(HostPort {
        protocol: kind(port)?,
        host_port: number(port.host_port?)?,
        host_ip,
        container_port: number(port.container_port)?,
    })
}

#[cfg(test)]
mod tests;
