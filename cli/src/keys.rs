//! `hawser keys rotate`: asks nodes for new WireGuard keys through the API, and shows how far they are.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Node;
use keyring::codec::{self, AnnouncementError};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use mesh_core::announcement::Announcement;
use serde_json::json;

/// Annotation by which a node is asked for new keys; two values are two requests.
const ROTATE: &str = "hawser.dev/rotate";
/// Annotation in which a node announces its keys.
const WIREGUARD: &str = "hawser.dev/wireguard";
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
    /// A kubeconfig; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

/// Why keys were not replaced, or may not be yet.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// No configuration of the API.
    #[error("no way to the API server: {0}; give --kubeconfig")]
    Kubeconfig(String),
    /// The API refused.
    #[error("node {node}: could not set {ROTATE}: {source}; patching Nodes must be allowed to you")]
    Patch {
        /// Which.
        node: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The nodes cannot be listed.
    #[error("could not list Nodes: {0}")]
    List(Box<kube::Error>),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

async fn list(api: &Api<Node>) -> Result<Vec<Listed>, KeysError> {
    Ok(api
        .list_metadata(&ListParams::default())
        .await
        .map_err(|error| KeysError::List(Box::new(error)))?
        .items)
}

/// Runs the command.
///
/// # Errors
/// See [`KeysError`].
pub async fn rotate(args: &RotateArgs, out: &mut (dyn Write + Send)) -> Result<(), KeysError> {
    let api: Api<Node> =
        Api::all(crate::api::client(args.kubeconfig.as_deref()).await.map_err(KeysError::Kubeconfig)?);
    let before = chosen(args, &list(&api).await?)?;
    let request = jiff::Timestamp::now().to_string();
    for node in before.keys() {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {ROTATE: request}}}));
        api.patch_metadata(node, &PatchParams::default(), &patch)
            .await
            .map_err(|source| KeysError::Patch { node: node.clone(), source: Box::new(source) })?;
        writeln!(out, "{node}: asked ({ROTATE}={request})")?;
    }
    if args.no_wait {
        return Ok(());
    }
    let begun = Instant::now();
    let mut told: BTreeMap<String, Stage> = before.keys().map(|node| (node.clone(), Stage::Asked)).collect();
    loop {
        // A request that fails is asked again: the nodes do not wait for this.
        for node in list(&api).await.unwrap_or_default() {
            let (name, Ok(now)) = (node.name_any(), announced(&node)) else { continue };
            let (Some(old), Some(last)) = (before.get(&name), told.get_mut(&name)) else { continue };
            let seen = stage(old, &now);
            if std::mem::replace(last, seen) != seen {
                let epochs =
                    |of: &Announcement| of.slots.each_ref().map(|slot| slot.epoch.0.to_string()).join(", ");
                writeln!(out, "{name}: {seen} (epochs {}, were {})", epochs(&now), epochs(old))?;
            }
        }
        let late: Vec<String> =
            told.iter().filter(|(_, seen)| **seen != Stage::Done).map(|(node, _)| node.clone()).collect();
        if late.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= Duration::from_secs(args.timeout) {
            return Err(KeysError::Late { seconds: args.timeout, nodes: late });
        }
        tokio::time::sleep(LOOK).await;
    }
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
