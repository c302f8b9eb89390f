//! What policy is decided from: the API's objects, field by field, with *absent* and *empty* kept apart.
//!
//! Nothing is validated here. What is wrong in an object (a CIDR that is none, an operator nobody knows) stays as it was
//! written, so that one wrong peer costs no more than itself; the compiler reports it, and both compiler and oracle treat
//! it as these rules say:
//!
//! - NetworkPolicy only allows: a malformed selector, block or port matches nothing (a malformed `podSelector` of the policy
//!   itself selects every pod of its namespace). An `except` outside its `cidr` takes nothing away; one that is no
//!   CIDR voids its peer. A `protocol` nobody knows matches nothing. An unknown entry of `policyTypes` isolates nothing.
//! - ClusterNetworkPolicy: a malformed peer, port or protocol entry (not exactly one known field, or a bad value in it)
//!   matches nothing in an Accept rule, and turns a Deny or Pass rule with it into "Deny everything of everybody";
//!   an unknown `action` is Deny everything too. A malformed subject selects every pod. An unknown tier is Admin.
//!   `domainNames` is a peer type that we do not know.
//! - A namespace of another cluster is called `NAMESPACE@CLUSTER` ([`foreign_namespace`]), which no object of the own API can
//!   be, and has the label [`LABEL_CLUSTER`](crate::numbers::LABEL_CLUSTER) as every namespace has. A selector of namespaces
//!   that does not mention that label never matches one; a `podSelector` alone means the policy's own namespace, in its own
//!   cluster. No policy is for pods of other clusters: they are judged there. A port's name means a port of such a pod
//!   only where a selector has found the pod: not in rules for everybody, nor for blocks around it. So whoever no
//!   selector can find is no more than an address.
//! - An address that two pods or nodes claim, and one of a pod whose namespace is not known, is *unknown* as
//!   [`PolicyFacts::guarded`] says, wherever it lies; such a pod has no policy of its own either: nothing may pass.
//! - What a Deny says of ports holds for unknown addresses too; a port's name in an unknown destination is any port of
//!   TCP, UDP and SCTP. A Pass is skipped for them. A rule without peers matches nobody, unknown ones included.
//! - An IPv6 block inside `::ffff:0:0/96` is well formed and contains nothing: no packet wears such an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::NodeName;
use crate::psk::ClusterName;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a pod or a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// How the namespace `name` of another cluster is called here.
pub fn foreign_namespace(name: &str, cluster: &ClusterName) -> String {
    format!("{name}@{cluster}")
}

/// The labels by which selectors find it.
pub fn foreign_namespace_labels(labels: &Labels, cluster: &ClusterName) -> Labels {
    let mut labels = labels.clone();
    labels.insert(crate::numbers::LABEL_CLUSTER.to_owned(), cluster.to_string());
    labels
}

/// How the port `name` of a container of another cluster's pod is called where names are looked up, so that only rules whose
/// selector has found the pod find it.
pub(crate) fn foreign_port(name: &str) -> String {
    format!("{name}@")
}

/// Is it the name of a namespace of another cluster?
pub fn is_foreign_namespace(name: &str) -> bool {
    name.contains('@')
}

/// Everything that policy is decided from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFacts {
    /// Pod CIDRs of the cluster: an address inside that belongs to no known pod is *unknown*: it matches no Accept, and
    /// no allowing rule of a NetworkPolicy, whatever its blocks; and it matches every Deny (and Pass of a rule that
    /// would deny further down does not help it: only Accept rules and allowing rules are void for it).
    pub guarded: Vec<IpNet>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, NamespaceFacts>,
    /// Pods with addresses of their own (hostNetwork pods are their node).
    pub pods: BTreeMap<ObjectName, PodFacts>,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, NodePolicyFacts>,
    /// NetworkPolicies.
    pub network_policies: BTreeMap<ObjectName, NetworkPolicySpec>,
    /// ClusterNetworkPolicies by name.
    pub cluster_policies: BTreeMap<String, ClusterNetworkPolicySpec>,
}

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: Labels,
    /// `hawser.dev/policy: audit`: what policy denies to or from its pods is reported and passes.
    pub audit: bool,
}

/// What is known of a pod with addresses of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, both families.
    pub ips: BTreeSet<IpAddr>,
    /// Ports that its containers name.
    pub ports: BTreeSet<NamedPort>,
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// `ports[].name`.
    pub name: String,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// `ports[].containerPort`.
    pub port: u16,
}

/// What policy knows of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePolicyFacts {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses: InternalIPs and mesh addresses.
    pub ips: BTreeSet<IpAddr>,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in an IP header (IANA Protocol Numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `metav1.LabelSelector`. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// All of these.
    pub match_labels: Labels,
    /// And all of these.
    pub match_expressions: Vec<Requirement>,
}

/// `metav1.LabelSelectorRequirement`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn` (both with values), `Exists`, `DoesNotExist` (both without); anything else is malformed.
    pub operator: String,
    /// For `In` and `NotIn`.
    pub values: Vec<String>,
}

/// `spec` of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Which pods of its namespace; absent: all.
    pub pod_selector: LabelSelector,
    /// `Ingress`, `Egress`; absent or empty: Ingress, and Egress if there is an egress rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_types: Option<Vec<String>>,
    /// What may come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What may go out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// `spec.ingress[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// From whom; absent or empty: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<PolicyPeer>>,
    /// To which ports; absent or empty: all, of all protocols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// `spec.egress[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// To whom; absent or empty: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<PolicyPeer>>,
    /// To which ports; absent or empty: all, of all protocols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// `NetworkPolicyPeer`. No field at all is malformed; a block beside a selector too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyPeer {
    /// Pods: of the policy's namespace, or of those that the other selector names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// `IPBlock`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// The block.
    pub cidr: String,
    /// What it does not contain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// `NetworkPolicyPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyPort {
    /// `TCP`, `UDP`, `SCTP`; absent: TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Number or name; absent: all of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,
    /// Last port of a range, inclusive, at most 65535; only with a number that is not above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i64>,
}

/// `IntOrString`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// A number; malformed outside 1 to 65535.
    Number(i64),
    /// The name of a container's port.
    Name(String),
}

/// `spec` of a ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// 0 to 1000, lower is stronger. Of two with the same, the smaller name comes first here.
    pub priority: i64,
    /// Which pods.
    pub subject: ClusterSubject,
    /// In order.
    pub ingress: Vec<ClusterRule>,
    /// In order.
    pub egress: Vec<ClusterRule>,
}

/// `spec.subject`: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSubject {
    /// All pods of these namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// These pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
}

/// `NamespacedPod`: both selectors must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NamespacedPods {
    /// Namespaces.
    pub namespace_selector: LabelSelector,
    /// Pods in them.
    pub pod_selector: LabelSelector,
}

/// A rule of a ClusterNetworkPolicy, of either direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRule {
    /// For people.
    pub name: String,
    /// `Accept`, `Deny`, `Pass`.
    pub action: String,
    /// Peers of an ingress rule. None at all: the rule matches nobody (the API wants at least one).
    pub from: Vec<ClusterPeer>,
    /// Peers of an egress rule.
    pub to: Vec<ClusterPeer>,
    /// Absent: everything of every protocol. Empty: malformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// A peer: exactly one field. `networks`, `nodes` only in egress rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterPeer {
    /// All pods of these namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// These pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
    /// CIDRs, at least one. One that is none makes the peer malformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Addresses of these nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Not known to us: whatever it is, the peer is malformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// An entry of `protocols`: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterProtocolPorts>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterProtocolPorts>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterProtocolPorts>,
    /// A port's name in the destination pod, whatever its protocol; an empty one is malformed. With a `networks` or
    /// `nodes` peer: matches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// Ports of one protocol; without `destinationPort` all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterProtocolPorts {
    /// Which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
}

/// Exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPort {
    /// One port, 1 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    /// A range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// Inclusive; malformed unless 1 <= start < end <= 65535.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    /// First.
    pub start: i64,
    /// Last.
    pub end: i64,
}

/// What a packet that opens a flow asks, addresses as they are after translation of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Number of the protocol in the IP header.
    pub protocol: u8,
    /// Destination port; none where the protocol is not TCP, UDP or SCTP.
    pub port: Option<u16>,
}

/// Which side's policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// That of the destination.
    Ingress,
    /// That of the source.
    Egress,
}

/// What policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}
