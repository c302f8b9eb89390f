//! What a node can prove of its share of the mesh: one versioned report, made by the agent, read by `hawser audit`.
//!
//! Times are seconds since 1970 by the node's clock. Whatever is not known is absent. Nothing secret is in any of it: keys
//! are public ones, pre-shared keys are named ([`PskId`]) and never shown. Numbers are whole and at most [`MAX_NUMBER`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::announcement::Epoch;
use crate::diff::{Observed, ObservedPeer};
use crate::host::HostPath;
use crate::ipam::Usage;
use crate::key::PublicKey;
use crate::leftover;
use crate::name::NodeName;
use crate::pair::Link;
use crate::plan::{self, Desired};
use crate::psk::{Mode, PskId};
use crate::slot::Slot;
use crate::view::{ClusterView, NodeFacts};

mod cni;
mod path;

pub use cni::{CNI_FILE, CniEvidence, OTHER_NETWORKS, OtherNetwork};
pub use path::{PathEvidence, PathResult};

/// Version of the report. Another one where a field changes its meaning or goes; new fields do not change it.
pub const VERSION: u32 = 1;
/// Greatest number in a report, 2^53 - 1: also readers whose only numbers are doubles keep it exact (RFC 7493, section 2.2).
/// Counters that passed it stay there.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;
/// Path at which agents serve it, on the address of their metrics.
pub const PATH: &str = "/audit";
/// Path at which agents, before they answer, try what the paths to some of their peers take ([`PathEvidence`]): those first that were
/// not tried for the longest time.
pub const TRY_PATHS: &str = "/audit/paths";

/// The report of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvidence {
    /// [`VERSION`].
    pub v: u32,
    /// Whose it is.
    pub node: NodeName,
    /// When devices and routes were looked at.
    pub at: u64,
    /// Release of its agent.
    pub agent_version: String,
    /// When its agent started.
    pub agent_started_at: u64,
    /// The agent has read the complete list of Nodes: before, peers may be missing here.
    pub synced: bool,
    /// Operations that the last look called for; they may be done since.
    pub pending: u64,
    /// Whose WireGuard runs the slots.
    pub wireguard: Engine,
    /// What its administrator configured.
    pub settings: Configured,
    /// The API shows what this node announces.
    pub announced: bool,
    /// Its slots, in order.
    pub slots: [OwnSlot; 2],
    /// How it stands with every node whose announcement it accepts.
    pub peers: BTreeMap<NodeName, PeerEvidence>,
    /// What refuses plaintext, and how much it did.
    pub guard: Guard,
    /// What may leave in clear, by intent.
    pub exemptions: Exemptions,
    /// Keys that are gone.
    pub destroyed: Destroyed,
    /// What is wrong at present.
    pub problems: Vec<Note>,
    /// The node itself; none: its agent is of a release that says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostEvidence>,
}

/// The node itself, as far as pods depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEvidence {
    /// Release of its kernel, as `uname -r` has it; none: it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// MTU of the device that holds its InternalIP, in bytes; none: there is no such device.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "uplinkMTU")]
    pub uplink_mtu: Option<u32>,
    /// MTU of the slots and of pods, in bytes.
    #[serde(rename = "tunnelMTU")]
    pub tunnel_mtu: u32,
    /// Addresses for pods, by pod CIDR.
    pub pools: Vec<PoolEvidence>,
    /// Why no pod can be connected; empty: pods can.
    pub obstacles: Vec<String>,
    /// Why pods that run have limited connectivity; empty: they have not.
    pub limits: Vec<String>,
    /// Devices that bear a name of another network's ([`leftover::owner`]), the first [`FOREIGN_LINKS`] of them.
    pub foreign_links: Vec<String>,
    /// Why the last round of echoes to peers ([`PathEvidence`]) came to nothing; none: it did not, or there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_trouble: Option<String>,
    /// What the plugin's installer found; none: it has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniEvidence>,
}

/// How many devices of another network are named: enough to know whose they are, since some have one for each pod.
pub const FOREIGN_LINKS: usize = 16;

/// How full a pod CIDR is. Counts are at most [`MAX_NUMBER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolEvidence {
    /// The pod CIDR.
    pub cidr: IpNet,
    /// Addresses of pods.
    pub used: u64,
    /// Addresses in quarantine.
    pub resting: u64,
    /// Addresses that pods can have.
    pub capacity: u64,
}

/// Whose WireGuard it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The kernel's module.
    #[default]
    Kernel,
    /// `mesh-tunnel`.
    Userspace,
}

/// What an administrator configured, as far as evidence depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configured {
    /// Name of the cluster.
    pub cluster: String,
    /// Pod CIDRs of the cluster.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations to which pods talk with their own address, in clear.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// Post-quantum pre-shared keys.
    pub post_quantum: Mode,
    /// When keys are replaced.
    pub rotation: Rotation,
    /// Whether pods are connected only with policy in the kernel.
    pub data_path: bool,
    /// Whether what nodes send each other themselves goes through the tunnel, too.
    pub host_traffic: bool,
    /// Whether what a peer sends outside the tunnel is refused besides.
    #[serde(default)]
    pub host_traffic_required: bool,
}

/// When and how keys are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// No key gets older, in seconds; none: on demand alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<u64>,
    /// For how long a slot is silent before its key goes, in seconds.
    pub quiet_seconds: u64,
    /// When a key goes whoever uses it, in seconds from its announcement.
    pub deadline_seconds: u64,
    /// Every peer has to answer by the other slot before.
    pub answers: bool,
}

/// A slot of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnSlot {
    /// Its device.
    pub device: String,
    /// Number of its key.
    pub epoch: Epoch,
    /// Its key.
    pub key: PublicKey,
    /// When the key was made: when its file was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<u64>,
    /// It is announced as draining.
    pub draining: bool,
    /// The key that the device uses; none: it has none, or there is no device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_key: Option<PublicKey>,
}

/// How a node stands with another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerEvidence {
    /// Where the kernel's routes to its pods lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends_by: Option<Slot>,
    /// It is about to be sent to by the other slot.
    pub moving: bool,
    /// What its last letter said that it wants of pre-shared keys; none: no letter has come since the agent started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How this node's own traffic to it goes.
    #[serde(default)]
    pub host_path: HostPath,
    /// Whether packets as large as the tunnel's MTU reach it; none: it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathEvidence>,
    /// Both slots, in order.
    pub slots: [PeerSlot; 2],
}

/// One slot towards another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSlot {
    /// The number of the key that it announces.
    pub epoch: Epoch,
    /// That key.
    pub key: PublicKey,
    /// Since when this agent has seen it announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_since: Option<u64>,
    /// Its entry on this node's device; none: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// Its pre-shared key.
    pub psk: PskEvidence,
}

/// An entry of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When the last handshake was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_at: Option<u64>,
    /// That handshake was made with the present keys of both sides, and what is on the slot now.
    pub confirmed: bool,
    /// For how many seconds nothing has come back though something was sent that wants an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<u64>,
    /// Bytes received since the entry was made.
    pub received: u64,
    /// Bytes sent since the entry was made.
    pub sent: u64,
    /// Where its packets come from, or were told to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Name of the pre-shared key that the device has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<PskId>,
}

/// How far the pre-shared key of a pair and slot is, as this side knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PskState {
    /// None, and none is to be agreed.
    #[default]
    Off,
    /// To be agreed.
    Waiting,
    /// To be agreed, and missing for longer than the agent finds right.
    Overdue,
    /// Installed here; no handshake with it seen.
    Installed,
    /// A handshake with it seen here.
    Proven,
    /// Both sides have seen one.
    Open,
    /// Installed here, and the other side says that it does not have it.
    Lost,
}

/// The pre-shared key of a pair and slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PskEvidence {
    /// How far it is.
    pub state: PskState,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<PskId>,
    /// When its file was last written: when it was agreed, or seconds later, when a side was seen to use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<u64>,
}

/// What refuses plaintext.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    /// The nf_tables guard is as the agent wants it.
    pub firewall: bool,
    /// The data path.
    pub data_path: DataPath,
    /// Packets refused since they would have crossed between nodes in clear, by who refused them and why. What an
    /// `unreachable` route refuses the kernel does not count.
    pub refused: BTreeMap<String, u64>,
    /// Packets that the data path dropped for other reasons, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Counters that could not be read, and why.
    pub unread: Vec<String>,
}

/// Where the data path stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum DataPath {
    /// The configuration wants none.
    #[default]
    Off,
    /// It could not be loaded: no pod is connected.
    Failed {
        /// Why.
        reason: String,
    },
    /// It is in the kernel.
    Open,
}

/// What may leave in clear, by intent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exemptions {
    /// Flows of pods to the world that were masqueraded (their first packets are counted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world_flows: Option<u64>,
    /// Packets that passed the data path's guard since the other end is exempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<u64>,
    /// Prefixes that the guards exempt: `nonMasqueradeCIDRs` less pods and nodes.
    pub prefixes: Vec<IpNet>,
    /// TCP ports of nodes with which they talk outside the tunnel, though host traffic is on. Empty where it is off: then all is.
    #[serde(default, rename = "hostTCPPorts")]
    pub host_tcp_ports: BTreeSet<u16>,
}

/// Keys that are gone, from the node's record of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destroyed {
    /// How many are recorded; none: the record cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<DestroyedKey>,
    /// Why the record cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// A key that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestroyedKey {
    /// When, RFC 3339.
    pub time: String,
    /// Device of its slot.
    pub device: String,
    /// Its number.
    pub epoch: Epoch,
    /// SHA-256 of its public half, as OpenSSH writes it.
    pub fingerprint: String,
    /// The number of the key in its place.
    pub successor: Epoch,
    /// The deadline came before everybody had left it.
    pub overdue: bool,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// A word for it.
    pub code: String,
    /// What, where, and the remedy.
    pub text: String,
}

/// What the agent knows besides view, plan and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// When devices and routes were looked at.
    pub at: u64,
    /// Release of the agent.
    pub version: String,
    /// When the agent started.
    pub started_at: u64,
    /// Whose WireGuard it is.
    pub wireguard: Engine,
    /// What was configured.
    pub settings: Configured,
    /// When the keys of both slots were made.
    pub made_at: [Option<u64>; 2],
    /// Since when each peer's present keys are seen announced.
    pub known_since: BTreeMap<NodeName, [u64; 2]>,
    /// Pre-shared keys.
    pub psks: BTreeMap<NodeName, [PskEvidence; 2]>,
    /// What peers' last letters said.
    pub modes: BTreeMap<NodeName, Mode>,
    /// The nf_tables guard is as it is wanted.
    pub firewall: bool,
    /// What its rules have counted, by rule.
    pub firewall_counts: BTreeMap<String, u64>,
    /// Prefixes that the guards exempt.
    pub exempt: Vec<IpNet>,
    /// What is wrong.
    pub problems: Vec<Note>,
    /// How full the pod CIDRs are.
    pub pools: Vec<Usage>,
}

/// What is read when the report is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// [`Guard::data_path`].
    pub data_path: DataPath,
    /// [`Guard::refused`].
    pub refused: BTreeMap<String, u64>,
    /// [`Guard::dropped`].
    pub dropped: BTreeMap<String, u64>,
    /// [`Guard::unread`].
    pub unread: Vec<String>,
    /// [`Exemptions::world_flows`].
    pub world_flows: Option<u64>,
    /// [`Exemptions::passed`].
    pub passed: Option<u64>,
    /// [`HostEvidence::kernel`].
    pub kernel: Option<String>,
    /// [`HostEvidence::obstacles`].
    pub obstacles: Vec<String>,
    /// [`HostEvidence::limits`].
    pub limits: Vec<String>,
    /// [`HostEvidence::cni`].
    pub cni: Option<CniEvidence>,
}

/// Makes the report.
pub fn gather(
    facts: &Facts,
    (view, desired, observed, pending): (&ClusterView, &Desired, &Observed, usize),
    counters: Counters,
    destroyed: Destroyed,
) -> NodeEvidence {
    let shown = view.nodes.get(&view.local.name).and_then(NodeFacts::announced);
    let own = |slot: Slot| {
        let announced = view.local.announcement.slot(slot);
        OwnSlot {
            device: slot.device().to_owned(),
            epoch: Epoch(announced.epoch.0.min(MAX_NUMBER)),
            key: announced.public_key,
            made_at: facts.made_at[slot.index()],
            draining: announced.draining,
            device_key: observed.devices.get(&slot).and_then(|device| device.public_key),
        }
    };
    let peers = plan::peers(view);
    let peers = peers.into_iter().filter_map(|name| {
        let evidence = peer(facts, view, desired, observed, &name)?;
        Some((name, evidence))
    });
    let cut = |counts: BTreeMap<String, u64>| -> BTreeMap<String, u64> {
        counts.into_iter().map(|(name, count)| (name, count.min(MAX_NUMBER))).collect()
    };
    NodeEvidence {
        v: VERSION,
        node: view.local.name.clone(),
        at: facts.at,
        agent_version: facts.version.clone(),
        agent_started_at: facts.started_at,
        synced: view.synced,
        pending: u64::try_from(pending).unwrap_or(MAX_NUMBER),
        wireguard: facts.wireguard,
        settings: facts.settings.clone(),
        announced: shown == Some(&desired.announcement),
        slots: Slot::ALL.map(own),
        peers: peers.collect(),
        guard: Guard {
            firewall: facts.firewall,
            data_path: counters.data_path,
            refused: cut(counters.refused),
            dropped: cut(counters.dropped),
            unread: counters.unread,
        },
        exemptions: Exemptions {
            world_flows: counters.world_flows.map(|count| count.min(MAX_NUMBER)),
            passed: counters.passed.map(|count| count.min(MAX_NUMBER)),
            prefixes: facts.exempt.clone(),
            host_tcp_ports: match &view.settings.host_traffic {
                host if host.on => host.exempt_tcp.clone(),
                _ => BTreeSet::new(),
            },
        },
        destroyed,
        problems: facts.problems.clone(),
        host: Some(HostEvidence {
            kernel: counters.kernel,
            uplink_mtu: view.local.uplink_mtu,
            tunnel_mtu: desired.mtu,
            pools: facts.pools.iter().map(pool).collect(),
            obstacles: counters.obstacles,
            limits: counters.limits,
            foreign_links: foreign_links(observed),
            path_trouble: None,
            cni: counters.cni,
        }),
    }
}

fn pool(usage: &Usage) -> PoolEvidence {
    PoolEvidence {
        cidr: usage.cidr,
        used: usage.used.min(MAX_NUMBER),
        resting: usage.resting.min(MAX_NUMBER),
        capacity: usage.capacity.min(MAX_NUMBER),
    }
}

fn foreign_links(observed: &Observed) -> Vec<String> {
    let foreign = observed.links.iter().filter(|name| leftover::owner(name).is_some());
    foreign.take(FOREIGN_LINKS).cloned().collect()
}

/// How this node stands with one other.
fn peer(
    facts: &Facts,
    view: &ClusterView,
    desired: &Desired,
    observed: &Observed,
    name: &NodeName,
) -> Option<PeerEvidence> {
    let theirs = view.nodes.get(name)?.announced()?;
    let pair = view.pairs.get(name);
    let slot = |slot: Slot| {
        let announced = theirs.slot(slot);
        let seen = observed.devices.get(&slot).and_then(|device| device.peers.get(&announced.public_key));
        let link = pair.map(|pair| pair.links[slot.index()]).unwrap_or_default();
        PeerSlot {
            epoch: Epoch(announced.epoch.0.min(MAX_NUMBER)),
            key: announced.public_key,
            known_since: facts.known_since.get(name).map(|since| since[slot.index()]),
            entry: seen.map(|seen| entry(facts.at, seen, &link)),
            psk: facts.psks.get(name).map(|psks| psks[slot.index()]).unwrap_or_default(),
        }
    };
    Some(PeerEvidence {
        sends_by: pair.and_then(|pair| pair.current),
        moving: desired.unsettled.contains(name),
        mode: facts.modes.get(name).copied(),
        host_path: desired.host_paths.get(name).copied().unwrap_or_default(),
        path: None,
        slots: Slot::ALL.map(slot),
    })
}

fn entry(at: u64, seen: &ObservedPeer, link: &Link) -> Entry {
    Entry {
        handshake_at: seen.handshake_age.map(|age| at.saturating_sub(age.as_secs())),
        confirmed: link.keys_for.zip(link.handshake_age).is_some_and(|(keys, age)| age < keys),
        unanswered: link.unanswered_for.map(|time| time.as_secs()),
        received: seen.bytes.1.min(MAX_NUMBER),
        sent: seen.bytes.0.min(MAX_NUMBER),
        endpoint: seen.endpoint,
        psk: seen.psk,
    }
}

#[cfg(test)]
mod tests;
