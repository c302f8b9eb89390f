//! What clusters export: plain data, already parsed. Who reads objects or the wire makes these, and refuses there what does
//! not fit the types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::policy::model::{Labels, ObjectName, Protocol};
use crate::prefix::Family;
use crate::psk::ClusterName;

/// A DNS label (RFC 1123, section 2.1): name of a port, of a namespace, of a Service, hostname of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsLabel(String);

/// Why a text is not a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a DNS label: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
)]
pub struct DnsLabelError(String);

impl DnsLabel {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Is it a DNS label as Kubernetes writes them, in lower case?
pub(super) fn is_dns_label(text: &str) -> bool {
    let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()].iter().all(|b| b.is_some_and(|b| outer(*b)));
    ends && bytes.len() <= 63 && bytes.iter().all(|b| outer(*b) || *b == b'-')
}

impl FromStr for DnsLabel {
    type Err = DnsLabelError;

    fn from_str(text: &str) -> Result<Self, DnsLabelError> {
        if is_dns_label(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(DnsLabelError(text.chars().take(70).collect()))
        }
    }
}

impl fmt::Display for DnsLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a port of a Service or of a slice; none where it is unnamed, as the only port of a Service may be.
pub type PortName = Option<DnsLabel>;

/// `spec.type` of a Service, and one that its own object betrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// `ClusterIP`, also the headless one.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`: cannot be exported.
    ExternalName,
    /// One that we derived from an import ([`is_ours`](super::is_ours)): cannot be exported, or clusters would import each
    /// other's imports for ever.
    Derived,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionAffinity {
    /// `None`.
    #[default]
    None,
    /// `ClientIP`, for so many seconds: 1 to 86,400, 10,800 where the object says none.
    ClientIp(u32),
}

/// `spec.internalTrafficPolicy` (KEP-2086).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum InternalTrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the client's node alone.
    Local,
}

/// `spec.ports[]` of a Service that is exported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportedPort {
    /// Unique in the Service.
    pub name: PortName,
    /// TCP, UDP or SCTP; unique together with `port`.
    pub protocol: Protocol,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// What clients say, 1 to 65535. The endpoints' own numbers are in [`PortNumbers`].
    pub port: u16,
}

/// The Service behind an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedService {
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIP` is `None`.
    pub headless: bool,
    /// `spec.ports`, in their order. At least one, unless it is headless.
    pub ports: Vec<ExportedPort>,
    /// `spec.sessionAffinity` with its timeout.
    pub session_affinity: SessionAffinity,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// `spec.trafficDistribution` (KEP-4444, KEP-3015): `PreferClose`, `PreferSameZone`, `PreferSameNode`, or what comes.
    pub traffic_distribution: Option<String>,
    /// `spec.ipFamilies`, in their order. At least one.
    pub families: Vec<Family>,
}

/// Where an endpoint's port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortNumber {
    /// Its protocol.
    pub protocol: Protocol,
    /// The number at which the endpoint listens, 1 to 65535.
    pub number: u16,
}

/// `ports` of an EndpointSlice: the numbers by the names of the Service's ports.
pub type PortNumbers = BTreeMap<PortName, PortNumber>;

/// One address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Takes new connections (an absent condition is yes).
    pub ready: bool,
    /// Answers, perhaps while it ends (an absent condition is yes).
    pub serving: bool,
    /// Is ending.
    pub terminating: bool,
    /// `hostname`.
    pub hostname: Option<DnsLabel>,
    /// `nodeName`, in its own cluster.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
}

impl Endpoint {
    /// Which of two descriptions of one address says more for it: greater is better.
    pub(super) fn merit(&self) -> (bool, bool, bool) {
        (self.ready, self.serving, !self.terminating)
    }
}

/// Endpoints of one Service in one cluster, by the ports that they share (that is how slices are made, and it says the
/// ports once), then by address. An address may be in several groups: pods on a host network do that.
pub type Endpoints = BTreeMap<PortNumbers, BTreeMap<IpAddr, Endpoint>>;

/// A ServiceExport and what is behind it, in one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// `metadata.uid`: another one is another object.
    pub uid: String,
    /// `metadata.generation`, for `observedGeneration`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, seconds since 1970. The oldest one settles what is in dispute.
    pub created: i64,
    /// `spec.exportedLabels`.
    pub labels: Labels,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// The Service of the same name. None: it does not exist.
    pub service: Option<ExportedService>,
    /// What its EndpointSlices say, those that we made ourselves left out ([`is_ours`](super::is_ours)).
    pub endpoints: Endpoints,
}

/// Exports of one name, by the cluster that speaks.
pub type Exports = BTreeMap<ClusterName, Export>;

/// The cluster that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub cluster: ClusterName,
    /// Families of its Service CIDRs. At least one.
    pub families: BTreeSet<Family>,
    /// Its exports are served to the other clusters. Until then they are `Pending`.
    pub serving: bool,
    /// Clusters whose lease is over ([`Leases::silent`](super::Leases::silent)): their endpoints do not count, their exports
    /// do, so that no address, port or type changes because a line is cut. Never the own one.
    pub silent: BTreeSet<ClusterName>,
}

/// A Service that has the name of a derived one ([`derived_name`](super::derived_name)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedState {
    /// Value of its label `multicluster.kubernetes.io/service-name`, if [`is_ours`](super::is_ours); none: a stranger's.
    pub of: Option<String>,
    /// `spec.clusterIPs`, in their order; empty before the API server has allocated them.
    pub cluster_ips: Vec<IpAddr>,
}

/// Everything that services of several clusters are decided from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The cluster that decides.
    pub own: Own,
    /// Namespaces that it has, without those that are being deleted.
    pub namespaces: BTreeSet<String>,
    /// Exports by name, then by cluster.
    pub exports: BTreeMap<ObjectName, Exports>,
    /// Its Services with names of derived ones, by their own names.
    pub derived: BTreeMap<ObjectName, DerivedState>,
}
