//! One request and one answer over the agent's unix socket: `hawser-cni` asks, `mesh-agent` answers.
//!
//! A frame is a big-endian `u32` length followed by that many bytes of JSON, at most [`MAX_FRAME`].
//! With ADD and CHECK the plugin passes an open descriptor of the pod's network namespace (`SCM_RIGHTS`) along
//! with the first byte of the frame, so the agent needs neither the runtime's mount namespace nor its PID namespace.
//! Both sides carry [`VERSION`]; an agent that meets a version it does not know answers with code
//! [`code::INCOMPATIBLE`] and names both.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// Where the agent listens.
pub const SOCKET: &str = "/run/hawser/cni.sock";
/// What the plugin's installer tells the agent, in a file of this name beside the socket.
pub use mesh_core::evidence::{
    CNI_FILE as INSTALLED_FILE, CniEvidence as Installed, OTHER_NETWORKS, OtherNetwork,
};

/// Where the plugin leaves a [`Detach`] (one JSON file each, `<veth>.json`) when the agent does not answer a DEL.
pub const PENDING_DELETES: &str = "/var/lib/hawser/pending-deletes";
/// Version of the frames. Raised when an old reader would misunderstand a new writer.
pub const VERSION: u16 = 1;
/// Longest frame in bytes: a GC request of a node with 10,000 attachments is under 1 MiB.
pub const MAX_FRAME: u32 = 4 << 20;

/// Error codes of the CNI specification 1.1.0, section "Error".
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE: u32 = 1;
    /// Unsupported field in the network configuration; the message names key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Bad or missing environment variable; the message names it.
    pub const ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO: u32 = 5;
    /// Content could not be decoded.
    pub const DECODE: u32 = 6;
    /// Invalid network configuration.
    pub const INVALID_CONFIG: u32 = 7;
    /// Invalid network namespace (libcni's constant, not in the specification's table).
    pub const INVALID_NETNS: u32 = 8;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and existing containers may have limited connectivity.
    pub const LIMITED: u32 = 51;
    /// Ours: CHECK found the attachment changed.
    pub const CHECK_FAILED: u32 = 100;
    /// Ours: no address left; the message names node, CIDR and count.
    pub const POOL_EXHAUSTED: u32 = 101;
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the writer.
    pub v: u16,
    /// The verb with its arguments.
    pub verb: Verb,
}

/// The verbs that reach the agent. VERSION never does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Connect a pod. Answered only when address, routes and verdicts are in force.
    Add(Attach),
    /// Disconnect a pod. Always succeeds.
    Del(Detach),
    /// Is the attachment as ADD left it?
    Check(Attach),
    /// Can ADD be served now?
    Status,
    /// Remove every attachment of this network that is not listed.
    Gc(Gc),
}

/// One interface of one sandbox, the key of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl AttachmentId {
    /// Name of the attachment's veth in the host's namespace: `hw` and the first 13 hex digits of
    /// SHA-256("containerID/ifname"). 15 characters, the longest name an interface can have; 52 bits make a
    /// collision among 10,000 attachments of a node less likely than 1 in 80 million.
    pub fn veth(&self) -> String {
        let digest = Sha256::new()
            .chain_update(&self.container_id)
            .chain_update("/")
            .chain_update(&self.ifname)
            .finalize();
        let hex = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = hex.take(13).filter_map(|nibble| char::from_digit(u32::from(nibble), 16));
        "hw".chars().chain(digits).collect()
    }

    /// Name of the attachment's pending-delete note inside [`PENDING_DELETES`]: `<veth>.json`.
    pub fn note_name(&self) -> String {
        format!("{}.json", self.veth())
    }
}

/// The pod behind an attachment, from `CNI_ARGS`. Absent for runtimes that are not Kubernetes'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; old runtimes leave it out. For a static pod it is the configuration hash, not the mirror's UID.
    pub uid: Option<String>,
}

/// ADD and CHECK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attach {
    /// Sandbox and interface.
    pub id: AttachmentId,
    /// Name of the CNI network, from the configuration.
    pub network: String,
    /// `CNI_NETNS` as given, for records and results; the namespace itself comes as a descriptor.
    pub netns: String,
    /// The pod, where the runtime named it.
    pub pod: Option<PodRef>,
    /// Addresses asked for (`ips` capability or `CNI_ARGS` `IP=`), at most one per family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requested_ips: Vec<IpAddr>,
    /// MAC address asked for (`mac` capability or `CNI_ARGS` `MAC=`), lower-case, colon-separated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_mac: Option<String>,
    /// Host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Annotations of the pod (`io.kubernetes.cri.pod-annotations`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_annotations: BTreeMap<String, String>,
    /// CHECK: the addresses that `prevResult` attributes to our interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_ips: Vec<IpAddr>,
    /// CHECK: the routes of `prevResult`; none: an older plugin, which does not tell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_routes: Option<Vec<ExpectedRoute>>,
}

impl Attach {
    /// CHECK: is the pod to have a default route by `gateway`? A later plugin may have taken ours away or led it elsewhere,
    /// and `prevResult` says so. Where it is not told, ADD made one.
    pub fn expects_default(&self, gateway: IpAddr) -> bool {
        let is = |route: &ExpectedRoute| {
            route.dst.prefix_len() == 0
                && route.dst.addr().is_ipv4() == gateway.is_ipv4()
                && route.gw.is_none_or(|gw| gw == gateway)
        };
        self.expected_routes.as_ref().is_none_or(|routes| routes.iter().any(is))
    }
}

/// A route of `prevResult`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedRoute {
    /// Where it leads.
    pub dst: IpNet,
    /// By which gateway; none: that of the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// DEL, also the content of a pending-delete note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detach {
    /// Sandbox and interface.
    pub id: AttachmentId,
    /// Name of the CNI network.
    pub network: String,
}

/// GC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gc {
    /// Name of the CNI network whose attachments are judged.
    pub network: String,
    /// What the runtime still knows; everything else of this network goes.
    pub valid: Vec<AttachmentId>,
}

/// `portMappings`, one entry (CNI CONVENTIONS.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`, lower-case.
    pub protocol: String,
    /// Address of the node to bind to; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// `bandwidth` (CNI CONVENTIONS.md): rates in bit/s, bursts in bit; 0 means not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress_rate: u64,
    /// Towards the pod.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod.
    pub egress_burst: u64,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`] of the writer.
    pub v: u16,
    /// The outcome.
    pub outcome: Outcome,
}

/// Success or a CNI error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// ADD: what was made.
    Attached(Attached),
    /// DEL, CHECK, STATUS, GC.
    Done,
    /// Refused or failed.
    Failed(Failure),
}

/// A CNI error: printed by the plugin as `{cniVersion, code, msg, details}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg} (code {code}){}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct Failure {
    /// See [`code`].
    pub code: u32,
    /// One sentence: object, field, value.
    pub msg: String,
    /// Cause and remedy.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// A failure with its parts.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }
}

/// What ADD made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Name of the veth in the host's namespace.
    pub host_ifname: String,
    /// Its MAC address.
    pub host_mac: String,
    /// MAC address of the interface in the pod.
    pub pod_mac: String,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// One per family.
    pub ips: Vec<AttachedIp>,
}

/// One address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedIp {
    /// `/32` or `/128`.
    pub address: IpNet,
    /// The node's mesh address of that family: gateway of the pod's default route.
    pub gateway: IpAddr,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended inside a frame.
    #[error("frame I/O: {0}")]
    Io(#[from] io::Error),
    /// The announced length is over [`MAX_FRAME`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(u64),
    /// The content is not the JSON expected.
    #[error("frame is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

/// Encodes a frame: length and JSON.
///
/// # Errors
/// [`FrameError::TooLong`] for content over [`MAX_FRAME`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(value)?;
    let length = u32::try_from(body.len()).ok().filter(|l| *l <= MAX_FRAME);
    let length = length.ok_or(FrameError::TooLong(body.len() as u64))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Body length announced by a frame's first four bytes.
///
/// # Errors
/// [`FrameError::TooLong`] over [`MAX_FRAME`].
pub fn body_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header);
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(u64::from(length)));
    }
    usize::try_from(length).map_err(|_| FrameError::TooLong(u64::from(length)))
}

/// Decodes a frame's body.
///
/// # Errors
/// [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Version of a frame's body, whatever else is in it: a reader looks at this first, so that it can name both versions
/// where it does not know the rest.
///
/// # Errors
/// [`FrameError::Json`].
pub fn version(body: &[u8]) -> Result<u16, FrameError> {
    #[derive(Deserialize)]
    struct VersionOnly {
        v: u16,
    }
    decode::<VersionOnly>(body).map(|VersionOnly { v }| v)
}

/// Writes one frame to a blocking stream.
///
/// # Errors
/// As [`encode`], and the stream's.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, value: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(value)?)?;
    Ok(())
}

/// Reads one frame from a blocking stream.
///
/// # Errors
/// The stream's, a length over [`MAX_FRAME`], or JSON that does not fit.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests;
