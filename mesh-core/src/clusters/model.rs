//! What a cluster tells of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use crate::announcement::Announcement;
use crate::name::NodeName;
use crate::policy::model::{Labels, NamedPort, Protocol};
use crate::prefix::Family;

/// Number of a label set, given by the cluster that tells it; never given to another set while that cluster's
/// incarnation lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSetId(pub u64);

/// All that policy can tell about a pod but its address and node; the pods of a Deployment share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelSet {
    /// Namespace of the pods.
    pub namespace: String,
    /// Their labels.
    pub labels: Labels,
    /// Ports that their containers name.
    pub ports: BTreeSet<NamedPort>,
}

/// A node of another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// `metadata.uid`: a Node that was deleted and made anew under its name is another.
    pub uid: String,
    /// Seconds since 1970 at which the Node was created: of two nodes of a cluster that claim the same the older keeps it.
    pub created: i64,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its keys by epoch. The endpoints are where it is called: its cluster has put its InternalIPs there if the node
    /// announced none.
    pub announcement: Announcement,
    /// What its cluster signed, of which this was read; a mirror may have left something out. None: nothing, and no agent
    /// believes it.
    pub signed: Option<Arc<Signed>>,
}

/// A node as its cluster told it first, for whoever hears it by way of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Message `hawser.clustermesh.v1.Node`, as it was written: a reader passes on what it does not know.
    pub node: Vec<u8>,
    /// Of one of the cluster's authorities, by the algorithm of its key, in the form of X.509 (RFC 5280).
    pub signature: Vec<u8>,
}

/// An address of a pod of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteEndpoint {
    /// The pod's node.
    pub node: Arc<NodeName>,
    /// Its label set.
    pub labels: LabelSetId,
}

/// `ServiceImport.spec.type` that a service leads to (KEP-1645).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// One address for all backends.
    ClusterSetIp,
    /// The backends' own addresses.
    Headless,
}

/// Session affinity of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Affinity {
    /// Each connection for itself.
    None,
    /// A client keeps its backend.
    ClientIp {
        /// For so many seconds, 1 to 86400.
        seconds: u32,
    },
}

/// `internalTrafficPolicy` of a service (KEP-2086).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficPolicy {
    /// All backends.
    Cluster,
    /// Those of the client's node.
    Local,
}

/// A port of an exported service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Unique in the service; may be empty if there is one alone.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// A service that its cluster exports; its backends are objects of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportedService {
    /// Seconds since 1970 at which the ServiceExport was created: the oldest wins a conflict.
    pub created: i64,
    /// What becomes of it.
    pub kind: ServiceKind,
    /// In the order of the Service.
    pub ports: Vec<ServicePort>,
    /// `ipFamilies`, in the order of the Service; at most two.
    pub families: Vec<Family>,
    /// Session affinity.
    pub affinity: Affinity,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `trafficDistribution`, as it was written: Kubernetes adds values.
    pub traffic_distribution: Option<String>,
    /// `exportedLabels` of the ServiceExport.
    pub labels: Labels,
    /// `exportedAnnotations` of the ServiceExport.
    pub annotations: Labels,
}

/// A port of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendPort {
    /// Name of the service's port.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where the backend listens, 1 to 65535.
    pub port: u16,
}

/// One address behind an exported service: what all EndpointSlices say of it together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Takes new connections.
    pub ready: bool,
    /// Answers, perhaps while it ends.
    pub serving: bool,
    /// Is ending.
    pub terminating: bool,
    /// `hostname`, for names of headless services.
    pub hostname: Option<String>,
    /// The node that it runs on.
    pub node: Option<NodeName>,
    /// The zone that it runs in.
    pub zone: Option<String>,
    /// Its ports.
    pub ports: BTreeSet<BackendPort>,
}
