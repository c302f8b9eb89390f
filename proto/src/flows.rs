//! What happened to flows: JSON lines on the agent's unix socket.
//!
//! A reader sends one line, a [`Request`], and reads [`Line`]s: the most recent ones first asked for, oldest first, then
//! (if it follows) each new one as it happens. The agent closes the connection after the last line of a request that does
//! not follow. Filtering happens in the agent ([`Filter::matches`]), so what nobody wants crosses no socket.
//!
//! Nothing is lost silently: where the kernel's ring or a slow reader's queue was full, a [`Lost`] line says how many.
//! Fields are named as Hubble's `flow.proto` names them where both have the same thing. A reader ignores fields that it does
//! not know; [`VERSION`] is raised when an old reader would misunderstand a new writer.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the agent listens.
pub const SOCKET: &str = "/run/hawser/flows.sock";
/// Version of the lines, both ways.
pub const VERSION: u16 = 1;
/// Longest line in bytes, without its newline. A flow with the longest names that Kubernetes allows has under 4 KiB.
pub const MAX_LINE: usize = 64 << 10;

/// The reader's only line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the reader.
    pub v: u16,
    /// Go on after the recent ones.
    #[serde(default)]
    pub follow: bool,
    /// How many of the recent flows that match; the agent's buffer bounds it.
    #[serde(default)]
    pub last: u32,
    /// Which flows.
    #[serde(default)]
    pub filter: Filter,
}

/// Which flows a reader wants. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Only what did not pass: [`Verdict::Dropped`] and [`Verdict::Revoked`].
    #[serde(default)]
    pub drop: bool,
    /// Only flows with one of these pods at either end. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodName>,
}

impl Filter {
    /// Does the reader want this flow?
    pub fn matches(&self, flow: &Flow) -> bool {
        let verdict = !self.drop || matches!(flow.verdict, Verdict::Dropped | Verdict::Revoked);
        let names = |pod: &PodName| [&flow.source, &flow.destination].into_iter().any(|end| end.is_pod(pod));
        verdict && (self.pods.is_empty() || self.pods.iter().any(names))
    }
}

/// `namespace/name` of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A pod's name is written NAMESPACE/NAME.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod {0:?} is not NAMESPACE/NAME; write for example default/{0}")]
pub struct BadPodName(String);

impl FromStr for PodName {
    type Err = BadPodName;

    fn from_str(text: &str) -> Result<PodName, BadPodName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(PodName { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(BadPodName(text.trim_matches('/').to_owned())),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the agent writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`] of the agent.
    pub v: u16,
    /// `{"flow": …}`, `{"lost": …}` or `{"error": …}` beside `v`.
    #[serde(flatten)]
    pub body: Body,
}

impl Line {
    /// A line of this version.
    pub fn new(body: Body) -> Line {
        Line { v: VERSION, body }
    }
}

/// The kinds of lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Something happened to a flow.
    Flow(Box<Flow>),
    /// Here events are missing.
    Lost(Lost),
    /// The request is refused; the agent closes after it.
    Error(Refusal),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong with which field, and the remedy.
    pub message: String,
}

/// Events that this reader does not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When it was noticed.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Name of the agent's Node.
    pub node_name: String,
    /// Where.
    pub source: LostSource,
    /// How many since the last such line with the same source.
    pub num_events_lost: u64,
}

/// Who lost them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostSource {
    /// The kernel's ring was full: all readers miss them.
    Ring,
    /// This reader was too slow.
    Reader,
}

/// Something happened to a flow. Addresses and ports are as the packet has them after translation, so `destination` is the
/// backend of a service, and `service` what the client called it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// When the packet was seen.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Name of the Node that judged.
    pub node_name: String,
    /// What became of the packet.
    pub verdict: Verdict,
    /// What makes it worth a line.
    pub kind: Kind,
    /// Why it was dropped: `enum hw_reason` of the data path in lower case with hyphens, `policy-ingress`. Absent where it
    /// passed. A name and no enum, so that an older reader prints a newer agent's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// Whose policy judged: the destination's ingress or the source's egress.
    pub traffic_direction: Direction,
    /// The packet's sender.
    pub source: Peer,
    /// Whom it is for.
    pub destination: Peer,
    /// IP protocol.
    pub protocol: Protocol,
    /// What the client called a service's backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Of the packet; [`TcpFlags::NONE`] for other protocols.
    #[serde(default, skip_serializing_if = "TcpFlags::is_none")]
    pub tcp_flags: TcpFlags,
    /// Travels against the first packet of its flow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_reply: bool,
    /// The rule that decided, in words: object, field and number. Absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Device on the node: the host's end of the pod's link, a slot or an uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Of the packet in bytes, from its IP header on.
    pub length: u32,
    /// Number of the policy that judged, counted by the node.
    pub epoch: u32,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Passed.
    Forwarded,
    /// Did not, and its flow never did.
    Dropped,
    /// Did not, and its flow did before: cut by a change of policy.
    Revoked,
    /// Policy denies it; its namespace's policy is audited, so it passed.
    Audited,
}

/// What makes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// First packet of a flow.
    New,
    /// A packet that did not pass.
    Drop,
    /// A known flow was judged again, with another verdict that passes.
    Changed,
    /// A known flow was judged again and is cut.
    Revoked,
    /// A packet that policy denies and audit lets pass.
    Audit,
}

/// Direction of the policy that judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The destination's.
    Ingress,
    /// The source's.
    Egress,
}

/// One end of a flow: who has the address, as far as this node knows. At most one of pod, node and world is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Address.
    pub ip: IpAddr,
    /// TCP, UDP or SCTP port; absent for other protocols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Namespace of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Name of the Node whose own address it is (also of pods with `hostNetwork`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `namespace/name` of the service that has this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Outside of every prefix of the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub world: bool,
}

impl Peer {
    /// An address that nobody has told us of.
    pub fn unknown(ip: IpAddr, port: Option<u16>) -> Peer {
        Peer { ip, port, namespace: None, pod_name: None, node_name: None, service_name: None, world: false }
    }

    fn is_pod(&self, pod: &PodName) -> bool {
        self.namespace.as_ref() == Some(&pod.namespace) && self.pod_name.as_ref() == Some(&pod.name)
    }
}

/// A service as a client called it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The address that was called.
    pub ip: IpAddr,
    /// The port that was called.
    pub port: u16,
    /// Namespace of the Service, where the address is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// IP protocol number; written `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or as decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub u8);

const PROTOCOLS: [(u8, &str); 5] = [(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "icmpv6"), (132, "sctp")];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.pad(name),
            None => f.pad(&self.0.to_string()),
        }
    }
}

/// Not the name or number of an IP protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol {0:?} is not tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255")]
pub struct BadProtocol(String);

impl FromStr for Protocol {
    type Err = BadProtocol;

    fn from_str(text: &str) -> Result<Protocol, BadProtocol> {
        match PROTOCOLS.iter().find(|(_, name)| *name == text) {
            Some((number, _)) => Ok(Protocol(*number)),
            None => text.parse().map(Protocol).map_err(|_| BadProtocol(text.to_owned())),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The flags byte of a TCP header (RFC 9293 §3.1); written as a list of names, `["SYN","ACK"]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

/// By bit, the lowest first.
const TCP_FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

impl TcpFlags {
    /// No flag, or no TCP.
    pub const NONE: TcpFlags = TcpFlags(0);

    /// No flag is set.
    pub fn is_none(&self) -> bool {
        *self == TcpFlags::NONE
    }

    /// Names of the flags that are set, the lowest bit first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        TCP_FLAGS.into_iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, name)| name)
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for TcpFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TcpFlags, D::Error> {
        let mut flags = 0;
        for name in Vec::<String>::deserialize(deserializer)? {
            let bit = TCP_FLAGS.iter().position(|known| *known == name);
            flags |= 1 << bit.ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no TCP flag")))?;
        }
        Ok(TcpFlags(flags))
    }
}

/// RFC 3339 with nine digits after the point, in UTC: texts sort as times do.
mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` hands references")]
    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.9}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
