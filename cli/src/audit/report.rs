//! The document: what was found, what follows, and from what.

use std::collections::BTreeMap;

use mesh_core::announcement::Epoch;
use mesh_core::evidence::{Configured, NodeEvidence, Note, PeerEvidence};
use mesh_core::slot::Slot;
use serde::Serialize;

pub use crate::output::Verdict;

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/audit/v1";

/// The whole.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// When, RFC 3339.
    pub generated_at: String,
    /// By which program.
    pub generated_by: String,
    /// What follows from everything below.
    pub verdict: Verdict,
    /// Numbers.
    pub summary: Summary,
    /// What it says about controls of standards.
    pub controls: Vec<Control>,
    /// What speaks against something, what is missing, and what has to be known.
    pub findings: Vec<Finding>,
    /// What no number here says.
    pub statements: Vec<String>,
    /// What the nodes' administrators configured, where all nodes have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Configured>,
    /// Namespaces; none: they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<Namespace>>,
    /// Nodes by name.
    pub nodes: Vec<Node>,
    /// Which pairs are below.
    pub pairs_shown: Shown,
    /// Pairs, each with what both sides say.
    pub pairs: Vec<Pair>,
    /// Pairs with nodes of joined clusters, each with what this side says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joined_pairs: Vec<JoinedPair>,
}

/// Which pairs the document has one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Shown {
    /// All.
    All,
    /// Those with a fault or without evidence; the others are counted.
    Faulty,
}

/// Numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Nodes that there are.
    pub nodes: u64,
    /// Nodes whose agents gave evidence.
    pub nodes_with_evidence: u64,
    /// Pairs of nodes.
    pub pairs: u64,
    /// Pairs of which both sides say the same, with a session.
    pub pairs_holding: u64,
    /// The same without a session now: the last handshake is too old, the next packet makes one.
    pub pairs_idle: u64,
    /// Pairs with a fault.
    pub pairs_failing: u64,
    /// Pairs of which one side or both are silent.
    pub pairs_unknown: u64,
    /// Pairs whose slot in use has a post-quantum pre-shared key that both sides have seen at work.
    pub post_quantum_holding: u64,
    /// Pairs that agree on none.
    pub post_quantum_off: u64,
    /// Pairs that should have one.
    pub post_quantum_failing: u64,
    /// Pairs with nodes of joined clusters, which are in none of the numbers above.
    pub joined: JoinedSummary,
    /// Keys in force.
    pub keys: u64,
    /// When the oldest of them was made, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_key_made_at: Option<u64>,
    /// Keys older than the nodes' rotation period.
    pub keys_over_age: u64,
    /// Keys that were destroyed, as the nodes recorded.
    pub keys_destroyed: u64,
    /// Packets refused since they would have crossed in clear, by reason, over all nodes.
    pub refused: BTreeMap<String, u64>,
    /// Flows of pods to the world.
    pub world_flows: u64,
    /// Namespaces that there are.
    pub namespaces: u64,
    /// Namespaces that deny by default in both directions, and do not only report it.
    pub namespaces_denied: u64,
    /// Namespaces that the operator exempted from that.
    pub namespaces_exempt: u64,
}

/// Numbers of pairs with nodes of joined clusters: what the side says of them that was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinedSummary {
    /// All of them.
    pub pairs: u64,
    /// Pairs with a session.
    pub holding: u64,
    /// The same without a session now.
    pub idle: u64,
    /// Pairs with a fault.
    pub failing: u64,
    /// Pairs of which this side does not know enough yet.
    pub unknown: u64,
    /// Pairs whose slot in use has a post-quantum pre-shared key.
    pub post_quantum_holding: u64,
    /// Pairs that agree on none.
    pub post_quantum_off: u64,
    /// Pairs that should have one.
    pub post_quantum_failing: u64,
}

impl Summary {
    /// Packets that would have crossed in clear, for whatever reason they were refused.
    pub fn refused_in_all(&self) -> u64 {
        self.refused.values().copied().fold(0, super::judge::added)
    }
}

/// A control of a standard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// The standard.
    pub standard: String,
    /// The control in it.
    pub id: String,
    /// Its name there.
    pub title: String,
    /// Whether the evidence supports it now.
    pub verdict: Verdict,
    /// What supports it.
    pub evidence: Vec<String>,
    /// Codes of findings that speak against it or leave it open, with how many of each.
    pub open: BTreeMap<String, u64>,
    /// What is not claimed.
    pub limits: Vec<String>,
}

/// What a finding does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Something does not hold.
    Against,
    /// Evidence is missing.
    Missing,
    /// It has to be known.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it does.
    pub effect: Effect,
    /// A word for it.
    pub code: String,
    /// What, where, and the remedy.
    pub text: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What its agent says of itself; its peers are among the pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Box<NodeEvidence>>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// What may come to its pods.
    pub ingress: DefaultRule,
    /// What may leave them.
    pub egress: DefaultRule,
    /// Denials are reported only, by annotation.
    pub audited: bool,
    /// The operator exempted it.
    pub exempt: bool,
}

/// What holds for pods of a namespace where no rule allows anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultRule {
    /// NetworkPolicies that select all its pods and allow nothing.
    pub denied_by: Vec<String>,
    /// NetworkPolicies that select all its pods and allow everything.
    pub opened_by: Vec<String>,
}

impl DefaultRule {
    /// Denied by default, and not opened again.
    pub fn denies(&self) -> bool {
        !self.denied_by.is_empty() && self.opened_by.is_empty()
    }
}

/// What can be said of a pair. Of one with a node of a joined cluster there is one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PairState {
    /// Both sides say the same, and have a session with the present keys.
    Holds,
    /// Both sides say the same; the last session is over, since nobody talks.
    Idle,
    /// Not so.
    Fails,
    /// One side or both are silent.
    Unknown,
}

/// What can be said of a pair's pre-shared key. Of one with a node of a joined cluster there is one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PostQuantum {
    /// Both sides have seen the same one at work on the slot in use.
    Holds,
    /// They agree on none, by configuration.
    Off,
    /// There should be one.
    Fails,
    /// One side or both are silent.
    Unknown,
}

/// A key that a pair uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PairKey {
    /// Whose.
    pub node: String,
    /// Its number.
    pub epoch: Epoch,
    /// When it was made, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<u64>,
    /// How old it was when its node was asked, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
}

/// A pair of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    /// The smaller name.
    pub a: String,
    /// The greater name.
    pub b: String,
    /// Whether what they send each other is encrypted.
    pub state: PairState,
    /// The slot on which both send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Its pre-shared key.
    pub post_quantum: PostQuantum,
    /// The keys of that slot, of `a` and of `b`.
    pub keys: Vec<PairKey>,
    /// What goes between the two outside the tunnel, by intent; none: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempt: Option<Vec<String>>,
    /// What is wrong.
    pub faults: Vec<Note>,
    /// What `a` says of `b`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a_says: Option<PeerEvidence>,
    /// What `b` says of `a`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b_says: Option<PeerEvidence>,
}

/// A node and one of a joined cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinedPair {
    /// The node.
    pub node: String,
    /// The other one, as `NODE@CLUSTER`.
    pub peer: String,
    /// Whether what they send each other is encrypted, by what the node says.
    pub state: PairState,
    /// The slot on which the node sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Its pre-shared key.
    pub post_quantum: PostQuantum,
    /// The node's key of that slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PairKey>,
    /// What is wrong.
    pub faults: Vec<Note>,
    /// What the node says of the other one.
    pub says: PeerEvidence,
}
