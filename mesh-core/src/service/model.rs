//! What services are decided from: the API's objects, field by field, as they were written.
//!
//! Nothing is validated here. What is wrong in an object (an address that is none, a protocol nobody knows) stays as it
//! was written, so that it costs no more than itself; the compiler reports it. `null` and an absent field mean the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use crate::name::NodeName;
use crate::policy::model::{Labels, ObjectName, Protocol};

/// Label of a Service (and of its slices) that another proxy serves, whatever its value: left alone.
pub const LABEL_OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a Service that is headless, whatever its value: left alone.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of an EndpointSlice: the name of its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice whose endpoints are in another cluster, whatever its value ([`crate::mcs`]): they get traffic
/// while no own endpoint is ready, and never count as this node's.
pub const LABEL_REMOTE: &str = "hawser.dev/remote";
/// Label of a Node: its zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// This node, as services see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNode {
    /// Its name; none: no endpoint is local.
    pub name: Option<NodeName>,
    /// Value of [`LABEL_ZONE`].
    pub zone: Option<String>,
    /// Where hostPorts are reached: its InternalIPs and mesh addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its pod CIDRs: who its clients are, for `loadBalancerSourceRanges`.
    pub pod_cidrs: Vec<IpNet>,
}

/// InternalIPs of the cluster's nodes, by their names. Of an address that two claim only one has it.
pub type Nodes = BTreeMap<NodeName, BTreeSet<IpAddr>>;

/// One hostPort of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPortFacts {
    /// The pod.
    pub pod: ObjectName,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node's port, not 0.
    pub host_port: u16,
    /// Only at this address of the node; none (or an unspecified one): at all, of both families.
    pub host_ip: Option<IpAddr>,
    /// The pod's addresses.
    pub pod_ips: BTreeSet<IpAddr>,
    /// The pod's port, not 0.
    pub container_port: u16,
}

/// `metadata`, as far as services need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
}

/// A Service (`v1`): the object's JSON can be read into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceFacts {
    /// Its labels.
    pub metadata: Meta,
    /// What is wanted.
    pub spec: ServiceSpec,
    /// Addresses of its load balancer.
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// The first of the next; `None` for a headless service.
    #[serde(rename = "clusterIP", deserialize_with = "null_as_default")]
    pub cluster_ip: String,
    /// At most one of each family.
    #[serde(rename = "clusterIPs", deserialize_with = "null_as_default")]
    pub cluster_ips: Vec<String>,
    /// Addresses that an administrator routes to nodes.
    #[serde(rename = "externalIPs", deserialize_with = "null_as_default")]
    pub external_ips: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ServicePort>,
    /// `None` (also when empty) or `ClientIP`.
    #[serde(deserialize_with = "null_as_default")]
    pub session_affinity: String,
    /// How long `ClientIP` lasts.
    #[serde(deserialize_with = "null_as_default")]
    pub session_affinity_config: SessionAffinityConfig,
    /// `Cluster` (also when empty) or `Local` (KEP-2086).
    #[serde(deserialize_with = "null_as_default")]
    pub internal_traffic_policy: String,
    /// `Cluster` (also when empty) or `Local`. Pods are held to it at the NodePort of another node, which hands on to its own endpoints
    /// alone; not at that of their own node, nor at other addresses, as with kube-proxy.
    #[serde(deserialize_with = "null_as_default")]
    pub external_traffic_policy: String,
    /// For people (KEP-4444): the controller turns it into the hints of slices, and those are what counts.
    #[serde(deserialize_with = "null_as_default")]
    pub traffic_distribution: String,
    /// Who may use the load balancer's addresses; empty: everybody.
    #[serde(deserialize_with = "null_as_default")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// `spec.ports[]`. `targetPort` is not here: slices carry what it resolves to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Unique in the service; may be empty if there is one alone.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `TCP` (also when empty), `UDP`, `SCTP`.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: String,
    /// 1 to 65535.
    #[serde(deserialize_with = "null_as_default")]
    pub port: i64,
    /// 0: none.
    #[serde(deserialize_with = "null_as_default")]
    pub node_port: i64,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP", deserialize_with = "null_as_default")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// Seconds, 1 to 86400; absent: [`DEFAULT_AFFINITY`].
    pub timeout_seconds: Option<i64>,
}

/// Seconds of session affinity when the object says none (`core/v1`, `DefaultClientIPServiceAffinitySeconds`).
pub const DEFAULT_AFFINITY: u32 = 10_800;
/// Most seconds of session affinity that the API takes.
pub const MAX_AFFINITY: u32 = 86_400;

/// `status` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its load balancer.
    #[serde(deserialize_with = "null_as_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Where it is reached.
    #[serde(deserialize_with = "null_as_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// `status.loadBalancer.ingress[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// Empty where only a host name is given.
    #[serde(deserialize_with = "null_as_default")]
    pub ip: String,
    /// `Proxy`: packets must go to the balancer itself (KEP-1860). `VIP`, also when empty: we stand in for it.
    #[serde(deserialize_with = "null_as_default")]
    pub ip_mode: String,
}

/// An EndpointSlice (`discovery.k8s.io/v1`): the object's JSON can be read into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSliceFacts {
    /// Its labels; [`LABEL_SERVICE_NAME`] names its Service.
    pub metadata: Meta,
    /// `IPv4`, `IPv6`; others are not for us.
    #[serde(deserialize_with = "null_as_default")]
    pub address_type: String,
    /// Ports of every endpoint in it.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    #[serde(deserialize_with = "null_as_default")]
    pub endpoints: Vec<EndpointFacts>,
}

/// `ports[]` of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// Name of the Service's port.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `TCP` (also when empty), `UDP`, `SCTP`.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: String,
    /// Port of the backends; absent or 0: the entry means nothing to us.
    pub port: Option<i64>,
}

/// `endpoints[]` of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointFacts {
    /// The first counts; the API says that all are the same endpoint.
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Conditions,
    /// Node that it runs on.
    pub node_name: Option<String>,
    /// Zone that it runs in; hints decide, not this.
    pub zone: Option<String>,
    /// For whom it is meant.
    #[serde(deserialize_with = "null_as_default")]
    pub hints: Hints,
}

/// `endpoints[].conditions` (KEP-1672).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes new connections; absent: yes.
    pub ready: Option<bool>,
    /// Answers, perhaps while it ends; absent: yes.
    pub serving: Option<bool>,
    /// Is ending; absent: no.
    pub terminating: Option<bool>,
}

/// `endpoints[].hints` (KEP-2433, KEP-4444).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    /// Zones.
    #[serde(deserialize_with = "null_as_default")]
    pub for_zones: Vec<Hint>,
    /// Nodes.
    #[serde(deserialize_with = "null_as_default")]
    pub for_nodes: Vec<Hint>,
}

/// One zone or node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
