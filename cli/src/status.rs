//! `hawser status`: the whole mesh at a glance. What is wrong is decided by the audit's judge ([`crate::audit::judge`]); here
//! it is shown, less what concerns an auditor alone, with what the API knows of the nodes.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::ResourceExt as _;
use mesh_core::evidence::{Configured, DataPath, Engine, NodeEvidence, PoolEvidence};
use serde::Serialize;

use crate::agents::{AgentArgs, AgentError};
use crate::api::{Access, ApiError, OPERATOR};
use crate::audit::collect::{self, Nodes};
use crate::audit::gather;
use crate::audit::judge::{Collected, Inputs, outcome, verdict};
use crate::audit::pairs::SESSION_SECONDS;
use crate::audit::report::{Effect, Finding};
use crate::output::{self, EXIT_CODES, Form, Verdict};

mod text;

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/status/v1";
/// Nodes are asked this often in all when pairs do not agree: less than an audit, since somebody waits.
const LOOKS: usize = 2;
/// Findings that speak against no mesh.
const AUDITORS: [&str; 4] = ["data-path-off", "key-age-unknown", "record-unread", "counters-unread"];

/// Whom to ask.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct StatusArgs {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agents: AgentArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An agent's address cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// The mesh at a glance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`FORMAT`].
    pub format: &'static str,
    /// When, RFC 3339.
    pub generated_at: String,
    /// What follows from problems and missing answers.
    pub verdict: Verdict,
    /// What all nodes that answered have configured; none: they differ, or nobody answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Configured>,
    /// Nodes by name.
    pub nodes: Vec<Node>,
    /// What is wrong.
    pub problems: Vec<Finding>,
    /// What is not known, and why.
    pub missing: Vec<Finding>,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The kubelet says that it is ready; none: nobody says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Release of its kubelet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<String>,
    /// What its agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// Why its agent says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// What an agent says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its release.
    pub version: String,
    /// When it started, in seconds since 1970.
    pub started_at: u64,
    /// Whose WireGuard runs the slots.
    pub wireguard: Engine,
    /// Where policy in the kernel stands.
    pub data_path: DataPath,
    /// Its slots, in order.
    pub slots: Vec<Slot>,
    /// Its peers.
    pub peers: Peers,
    /// Addresses for pods, by pod CIDR.
    pub pools: Vec<PoolEvidence>,
    /// Why no pod can be connected there.
    pub obstacles: Vec<String>,
}

/// A slot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Its device.
    pub device: String,
    /// Number of its key.
    pub epoch: u64,
    /// Age of its key in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Its key is being replaced.
    pub draining: bool,
}

/// Peers of a node, by what the slot that is used towards them says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peers {
    /// All of them.
    pub known: u64,
    /// With a session that is in force.
    pub talking: u64,
    /// With one that was confirmed and is over: nobody had anything to say.
    pub idle: u64,
    /// Without any.
    pub silent: u64,
    /// Age in seconds of the oldest of their last handshakes, the silent ones apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_handshake_seconds: Option<u64>,
}

/// What the API says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Condition `Ready`.
    pub ready: Option<bool>,
    /// Release of its kubelet.
    pub kubelet: Option<String>,
}

impl Known {
    /// Reads a Node.
    pub fn of(node: &NodeObject) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let info = status.and_then(|status| status.node_info.as_ref());
        Self {
            ready: ready.map(|condition| condition.status == "True"),
            kubelet: info.map(|info| info.kubelet_version.clone()).filter(|version| !version.is_empty()),
        }
    }
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`StatusError`].
pub async fn run(args: &StatusArgs, out: &mut (dyn Write + Send)) -> Result<u8, StatusError> {
    let cluster = args.access.cluster(OPERATOR, args.agents.deadline()).await?;
    let nodes: Vec<NodeObject> = cluster.all_of_cluster("nodes").await?;
    let known = nodes.iter().map(|node| (node.name_any(), Known::of(node))).collect();
    let clusters = collect::clusters(&cluster).await.map_err(|why| why.to_string());
    let inputs = gather(&args.agents, Some(&cluster), Ok(Nodes::of(&nodes)), LOOKS).await?;
    let status = status(Inputs { clusters, ..inputs }, &known);
    output::write(out, args.output, &status, || text::render(&status))?;
    Ok(status.verdict.exit_code())
}

/// What was collected, at a glance.
pub fn status(inputs: Inputs, known: &BTreeMap<String, Known>) -> Status {
    let found = outcome(&inputs);
    let node = |(name, collected): (String, Collected)| {
        let known = known.get(&name).cloned().unwrap_or_default();
        let (agent, silent) = match collected.answer {
            Ok(evidence) => (Some(agent(&evidence, peers(&evidence))), None),
            Err(why) => (None, Some(why)),
        };
        Node { name, ready: known.ready, kubelet: known.kubelet, agent, silent }
    };
    // A problem that an agent reports is the auditor's to know, and the operator's to solve.
    let is_problem = |finding: &Finding| finding.effect == Effect::Against || finding.code == "problem";
    let of_mesh = found.findings.into_iter().filter(|finding| !AUDITORS.contains(&finding.code.as_str()));
    let (problems, rest): (Vec<Finding>, Vec<Finding>) = of_mesh.partition(is_problem);
    let problems: Vec<Finding> =
        problems.into_iter().map(|finding| Finding { effect: Effect::Against, ..finding }).collect();
    let missing: Vec<Finding> =
        rest.into_iter().filter(|finding| finding.effect == Effect::Missing).collect();
    Status {
        format: FORMAT,
        generated_at: inputs.generated_at,
        verdict: verdict(problems.iter().chain(&missing).map(|finding| finding.effect)),
        settings: found.settings,
        nodes: inputs.nodes.into_iter().map(node).collect(),
        problems,
        missing,
    }
}

fn agent(evidence: &NodeEvidence, peers: Peers) -> Agent {
    let slot = |slot: &mesh_core::evidence::OwnSlot| Slot {
        device: slot.device.clone(),
        epoch: slot.epoch.0,
        age_seconds: slot.made_at.map(|made| evidence.at.saturating_sub(made)),
        draining: slot.draining,
    };
    let host = evidence.host.clone().unwrap_or_default();
    Agent {
        version: evidence.agent_version.clone(),
        started_at: evidence.agent_started_at,
        wireguard: evidence.wireguard,
        data_path: evidence.guard.data_path.clone(),
        slots: evidence.slots.iter().map(slot).collect(),
        peers,
        pools: host.pools,
        obstacles: host.obstacles,
    }
}

/// Counts the peers of a node.
fn peers(evidence: &NodeEvidence) -> Peers {
    let mut peers = Peers::default();
    for peer in evidence.peers.values() {
        peers.known += 1;
        let entry = peer.sends_by.and_then(|slot| peer.slots[slot.index()].entry.as_ref());
        let at = entry.filter(|entry| entry.confirmed).and_then(|entry| entry.handshake_at);
        let Some(at) = at else {
            peers.silent += 1;
            continue;
        };
        let age = evidence.at.saturating_sub(at);
        if age < SESSION_SECONDS {
            peers.talking += 1;
        } else {
            peers.idle += 1;
        }
        peers.oldest_handshake_seconds = peers.oldest_handshake_seconds.max(Some(age));
    }
    peers
}

#[cfg(test)]
mod tests;
