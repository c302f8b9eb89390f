//! `hawser keys rotate`: asks nodes for new WireGuard keys through the API, and shows how far they are.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Node;
use keyring::codec::{self, AnnouncementError};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use mesh_core::announcement::Announcement;
use mesh_core::numbers::{ANNOTATION_ROTATE as ROTATE, ANNOTATION_WIREGUARD as WIREGUARD};
use serde::Serialize;
use serde_json::json;

use crate::api::{Access, ApiError, Asked, Cluster, OPERATOR};
use crate::output::{self, EXIT_CODES, Form, Progress};

/// For each answer of the API.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Names and annotations of a Node: all that is needed, of thousands.
type Listed = PartialObjectMeta<Node>;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Has nodes replace their WireGuard keys, and with them all pre-shared keys of their pairs. No packet is lost.
    Rotate(RotateArgs),
}

/// Which nodes, and how long to wait.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RotateArgs {
    /// Names of nodes.
    #[arg(required_unless_present = "all")]
    nodes: Vec<String>,
    /// All nodes that announce keys.
    #[arg(long, conflicts_with = "nodes")]
    all: bool,
    /// Return at once: the nodes go on by themselves.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait for all of them.
    #[arg(long, default_value_t = 1800, conflicts_with = "no_wait")]
    timeout: u64,
    #[command(flatten)]
    access: Access,
    /// Form of the output; other than text it comes when all is done.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Why keys were not replaced, or may not be yet.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// One node could not be asked.
    #[error("node {node}: {source}")]
    Patch {
        /// Which.
        node: String,
        /// Why.
        source: Box<ApiError>,
    },
    /// There is no such node.
    #[error("there is no node {0}; `kubectl get nodes` has their names")]
    NoNode(String),
    /// It has no keys.
    #[error("node {0} announces no keys ({WIREGUARD}); is mesh-agent running there?")]
    NoKeys(String),
    /// What it announces cannot be read.
    #[error("node {node}: {WIREGUARD}: {source}")]
    Unreadable {
        /// Which.
        node: String,
        /// Why.
        source: AnnouncementError,
    },
    /// Nodes that are not done.
    #[error("not done after {seconds} s: {}; their agents go on. Events of these nodes say why (reason RotationOverdue)", .nodes.join(", "))]
    Late {
        /// How long it was waited.
        seconds: u64,
        /// Which.
        nodes: Vec<String>,
    },
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// It has neither begun nor finished.
    Asked,
    /// A slot is being left.
    Draining,
    /// One key is replaced.
    Half,
    /// Both keys are, and nothing drains.
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked",
            Self::Draining => "peers leave a slot",
            Self::Half => "one key replaced",
            Self::Done => "both keys replaced",
        })
    }
}

/// How far a node is that announced `before` when it was asked, and announces `now`. A key is another one where its epoch
/// and its bytes are.
pub fn stage(before: &Announcement, now: &Announcement) -> Stage {
    let replaced = before.slots.iter().zip(&now.slots).filter(|(old, new)| {
        new.epoch > old.epoch && !before.slots.iter().any(|old| old.public_key == new.public_key)
    });
    let draining = now.slots.iter().any(|slot| slot.draining);
    match (replaced.count(), draining) {
        (2, false) => Stage::Done,
        (_, true) => Stage::Draining,
        (0, false) => Stage::Asked,
        (_, false) => Stage::Half,
    }
}

/// What a node announces.
fn announced(node: &Listed) -> Result<Announcement, KeysError> {
    let name = node.name_any();
    let text = node.annotations().get(WIREGUARD).ok_or_else(|| KeysError::NoKeys(name.clone()))?;
    codec::decode(text).map_err(|source| KeysError::Unreadable { node: name, source })
}

/// The nodes that were named, each with what it announces. Nothing is asked of any node when one of them cannot be.
fn chosen(args: &RotateArgs, nodes: &[Listed]) -> Result<BTreeMap<String, Announcement>, KeysError> {
    if args.all {
        let with_keys = nodes.iter().filter(|node| node.annotations().contains_key(WIREGUARD));
        return with_keys.map(|node| Ok((node.name_any(), announced(node)?))).collect();
    }
    let one = |name: &String| {
        let node = nodes.iter().find(|node| node.name_any() == *name);
        let node = node.ok_or_else(|| KeysError::NoNode(name.clone()))?;
        Ok((name.clone(), announced(node)?))
    };
    args.nodes.iter().map(one).collect()
}

/// How far a node is, for programs.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    stage: Stage,
    epochs_before: [u64; 2],
    epochs: [u64; 2],
}

fn epochs(of: &Announcement) -> [u64; 2] {
    of.slots.each_ref().map(|slot| slot.epoch.0)
}

async fn list(cluster: &Cluster) -> Result<Vec<Listed>, ApiError> {
    cluster.all_metadata::<Node>("nodes").await
}

/// Asks every node.
async fn ask(
    cluster: &Cluster,
    nodes: &BTreeMap<String, Announcement>,
    request: &str,
    mut say: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), KeysError> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let asked = Asked { verb: "patch", resource: "nodes", namespace: None };
    for node in nodes.keys() {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {ROTATE: request}}}));
        let params = PatchParams::default();
        cluster
            .within(asked, api.patch_metadata(node, &params, &patch))
            .await
            .map_err(|source| KeysError::Patch { node: node.clone(), source: Box::new(source) })?;
        say(&format!("{node}: asked ({ROTATE}={request})"))?;
    }
    Ok(())
}

/// Runs the command.
///
/// # Errors
/// See [`KeysError`].
pub async fn rotate(args: &RotateArgs, out: &mut (dyn Write + Send)) -> Result<(), KeysError> {
    let cluster = args.access.cluster(OPERATOR, ANSWER).await?;
    let before = chosen(args, &list(&cluster).await?)?;
    let request = jiff::Timestamp::now().to_string();
    let progress = Progress::on_terminal();
    let (form, mut late) = (args.output, Vec::new());
    let told = |(node, old): (&String, &Announcement)| {
        let epochs = epochs(old);
        (node.clone(), Told { stage: Stage::Asked, epochs_before: epochs, epochs })
    };
    let mut told: BTreeMap<String, Told> = before.iter().map(told).collect();
    let mut say = |text: &str| match form {
        Form::Text => writeln!(out, "{text}"),
        Form::Json | Form::Yaml => {
            progress.say(text);
            Ok(())
        }
    };
    ask(&cluster, &before, &request, &mut say).await?;
    let begun = Instant::now();
    loop {
        if args.no_wait {
            break;
        }
        // A request that fails is asked again: the nodes do not wait for this.
        for node in list(&cluster).await.unwrap_or_default() {
            let (name, Ok(now)) = (node.name_any(), announced(&node)) else { continue };
            let (Some(old), Some(last)) = (before.get(&name), told.get_mut(&name)) else { continue };
            let seen = stage(old, &now);
            last.epochs = epochs(&now);
            if std::mem::replace(&mut last.stage, seen) != seen {
                let words = |of: [u64; 2]| of.map(|epoch| epoch.to_string()).join(", ");
                let (now, were) = (words(last.epochs), words(last.epochs_before));
                say(&format!("{name}: {seen} (epochs {now}, were {were})"))?;
            }
        }
        let behind = told.iter().filter(|(_, told)| told.stage != Stage::Done);
        late = behind.map(|(node, _)| node.clone()).collect();
        if late.is_empty() || begun.elapsed() >= Duration::from_secs(args.timeout) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if form != Form::Text {
        let document = json!({"request": request, "nodes": told});
        output::write(out, form, &document, String::new)?;
    }
    if late.is_empty() { Ok(()) } else { Err(KeysError::Late { seconds: args.timeout, nodes: late }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::announcement::{Epoch, SlotAnnouncement};
    use mesh_core::key::PublicKey;

    fn announcement(slots: [(u64, u8, bool); 2]) -> Announcement {
        let slot = |(epoch, key, draining)| SlotAnnouncement {
            epoch: Epoch(epoch),
            public_key: PublicKey::from_bytes([key; 32]),
            port: 51880,
            draining,
        };
        Announcement {
            slots: slots.map(slot),
            endpoints: Vec::new(),
            kem: None,
            kem_required: false,
            host_traffic: false,
        }
    }

    #[test]
    fn a_node_is_done_when_both_keys_are_others_and_nothing_drains() {
        let before = announcement([(1, 1, false), (2, 2, false)]);
        let at = |slots| stage(&before, &announcement(slots));
        assert_eq!(at([(1, 1, false), (2, 2, false)]), Stage::Asked);
        assert_eq!(at([(1, 1, false), (2, 2, true)]), Stage::Draining);
        assert_eq!(at([(1, 1, false), (3, 3, false)]), Stage::Half);
        assert_eq!(at([(1, 1, true), (3, 3, false)]), Stage::Draining);
        assert_eq!(at([(4, 4, true), (3, 3, false)]), Stage::Draining);
        assert_eq!(at([(4, 4, false), (3, 3, false)]), Stage::Done);
        // Not a replacement: a key that goes to the other slot, or an epoch without another key.
        assert_eq!(at([(4, 2, false), (3, 1, false)]), Stage::Asked);
        assert_eq!(at([(4, 1, false), (3, 2, false)]), Stage::Asked);
    }
}
