//! `hawser keys rotate`: asks nodes for new WireGuard keys through the API, and shows how far they are. [`track`] decides what there
//! is to say; who is dead, gone or late is named with what keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
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

use crate::agents;
use crate::api::{Access, ApiError, Asked, Cluster, OPERATOR};
use crate::output::{self, EXIT_CODES, Form, Progress, Verdict, duration};
use crate::render::printable;
use crate::status::Known;

mod track;

use track::{Tracker, obstacle, why_late};

/// For each answer of the API.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Pause between two words on a terminal while nothing happens.
const WORD: Duration = Duration::from_secs(15);

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
    /// No node could be asked.
    #[error("none of {count} nodes could be asked: {why}")]
    Nobody {
        /// How many.
        count: usize,
        /// Why the first could not be.
        why: String,
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
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] io::Error),
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
    /// There is no such Node any more.
    Gone,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked",
            Self::Draining => "peers leave a slot",
            Self::Half => "one key replaced",
            Self::Done => "both keys replaced",
            Self::Gone => "there is no such Node any more; it is not waited for",
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

/// A node that is asked: the object that it was then, and what it announced.
#[derive(Clone, Debug)]
struct Before {
    uid: Option<String>,
    announced: Announcement,
}

/// The nodes that were named, each with what it announces. Nothing is asked of any node when one of them cannot be.
fn chosen(args: &RotateArgs, nodes: &[Listed]) -> Result<BTreeMap<String, Before>, KeysError> {
    let before = |node: &Listed| -> Result<Before, KeysError> {
        Ok(Before { uid: node.uid(), announced: announced(node)? })
    };
    if args.all {
        let with_keys = nodes.iter().filter(|node| node.annotations().contains_key(WIREGUARD));
        return with_keys.map(|node| Ok((node.name_any(), before(node)?))).collect();
    }
    let one = |name: &String| {
        let node = nodes.iter().find(|node| node.name_any() == *name);
        let node = node.ok_or_else(|| KeysError::NoNode(name.clone()))?;
        Ok((name.clone(), before(node)?))
    };
    args.nodes.iter().map(one).collect()
}

async fn list(cluster: &Cluster) -> Result<Vec<Listed>, ApiError> {
    cluster.all_metadata::<Node>("nodes").await
}

/// Which nodes the kubelets' reports call not ready.
async fn not_ready(cluster: &Cluster) -> Result<BTreeSet<String>, ApiError> {
    let nodes: Vec<Node> = cluster.all_of_cluster("nodes").await?;
    let dead = nodes.iter().filter(|node| Known::of(node).ready == Some(false));
    Ok(dead.map(|node| node.name_any()).collect())
}

/// Asks a node; false: it is gone.
async fn ask(cluster: &Cluster, node: &str, request: &str) -> Result<bool, ApiError> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let asked = Asked { verb: "patch", resource: "nodes", namespace: None };
    let patch = Patch::Merge(json!({"metadata": {"annotations": {ROTATE: request}}}));
    match cluster.within(asked, api.patch_metadata(node, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(true),
        // It has gone since the nodes were listed.
        Err(ApiError::Absent { .. }) => Ok(false),
        Err(why) => Err(why),
    }
}

/// So often in a row the API server may not serve before nobody else is asked: each of thousands would be waited for.
const IN_VAIN: usize = 3;

/// Asks nodes, one after the other; those that could not be asked, each with the reason. A node that is refused is no reason not to ask
/// the next one.
async fn ask_all(
    nodes: &[&str],
    ask: impl AsyncFn(&str) -> Result<bool, ApiError>,
    mut asked: impl FnMut(&str, Option<&str>) -> io::Result<()>,
) -> io::Result<BTreeMap<String, String>> {
    let (mut unasked, mut in_vain) = (BTreeMap::new(), 0);
    for (at, &node) in nodes.iter().enumerate() {
        let why = match ask(node).await {
            Ok(there) => {
                in_vain = 0;
                if there {
                    asked(node, None)?;
                }
                continue;
            }
            Err(why) => why,
        };
        let away = matches!(
            why,
            ApiError::Unreachable { .. } | ApiError::Silent { .. } | ApiError::Unauthenticated { .. }
        );
        in_vain = if away { in_vain + 1 } else { 0 };
        let why = why.to_string();
        asked(node, Some(&why))?;
        unasked.insert(node.to_owned(), why.clone());
        if in_vain == IN_VAIN {
            let rest = nodes[at + 1..].iter();
            unasked.extend(rest.map(|node| ((*node).to_owned(), format!("not asked any more: {why}"))));
            break;
        }
    }
    Ok(unasked)
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`KeysError`].
pub async fn rotate(args: &RotateArgs, out: &mut (dyn Write + Send)) -> Result<u8, KeysError> {
    let cluster = args.access.cluster(OPERATOR, ANSWER).await?;
    let mut before = chosen(args, &list(&cluster).await?)?;
    let dead = not_ready(&cluster).await?;
    let running =
        agents::pods(&cluster).await.map(|pods| agents::running(&pods)).map_err(|why| why.to_string());
    let request = jiff::Timestamp::now().to_string();
    let (progress, form) = (Progress::on_terminal(), args.output);
    let mut say = |text: &str| match form {
        Form::Text => writeln!(out, "{}", printable(text)),
        Form::Json | Form::Yaml => {
            progress.say(text);
            Ok(())
        }
    };
    let mut warnings = BTreeMap::new();
    for node in before.keys() {
        if let Some(why) = obstacle(node, &dead, running.as_ref().ok()) {
            say(&format!("warning: {why}, so it will not begin before that changes"))?;
            warnings.insert(node.clone(), why);
        }
    }
    if let Err(why) = &running {
        say(&format!("warning: whether agents run on the nodes is not known: {why}"))?;
    }
    let unasked = {
        let names: Vec<&str> = before.keys().map(String::as_str).collect();
        let asking = async |node: &str| ask(&cluster, node, &request).await;
        let told = |node: &str, why: Option<&str>| match why {
            None => say(&format!("{node}: asked ({ROTATE}={request})")),
            Some(why) => say(&format!("warning: {node}: could not be asked: {why}")),
        };
        ask_all(&names, asking, told).await?
    };
    before.retain(|node, _| !unasked.contains_key(node));
    let mut tracker = Tracker::new(before);
    // Why the last look saw nothing.
    let mut blind: Option<String> = None;
    let (begun, limit) = (Instant::now(), Duration::from_secs(args.timeout));
    let mut word = begun;
    loop {
        if args.no_wait || tracker.count() == 0 {
            break;
        }
        let left = limit.saturating_sub(begun.elapsed());
        let looked = tokio::time::timeout(left.max(LOOK), list(&cluster)).await;
        let (text, refused) = match looked {
            Ok(Ok(nodes)) => {
                blind = None;
                tracker.look(&nodes).iter().try_for_each(|line| say(line))?;
                (None, false)
            }
            Ok(Err(why)) => {
                let refused = matches!(why, ApiError::Forbidden { .. } | ApiError::Unauthenticated { .. });
                (Some(why.to_string()), refused)
            }
            Err(_) => {
                (Some(format!("no answer from the API server in {} s", left.max(LOOK).as_secs())), false)
            }
        };
        if let Some(text) = text {
            if blind.as_ref() != Some(&text) {
                say(&format!("warning: {text}; the nodes go on all the same"))?;
            }
            blind = Some(text);
        }
        if refused {
            // Asking again does not help.
            break;
        }
        let late = tracker.late();
        if late.is_empty() || begun.elapsed() >= limit {
            break;
        }
        if word.elapsed() >= WORD {
            word = Instant::now();
            progress.say(&format!(
                "{} of {} nodes done after {} of {}; waiting for {}",
                tracker.count() - late.len(),
                tracker.count(),
                duration(begun.elapsed().as_secs()),
                duration(args.timeout),
                some(&late),
            ));
        }
        tokio::time::sleep(LOOK.min(limit.saturating_sub(begun.elapsed()))).await;
    }
    let late = if args.no_wait { Vec::new() } else { tracker.late() };
    let mut why = BTreeMap::new();
    if !late.is_empty() {
        // As it is now, unless nobody answers: who was dead at the beginning may not be any more.
        let (mut dead, mut running) = (dead, running.ok());
        if blind.is_none() {
            dead = not_ready(&cluster).await.unwrap_or(dead);
            running = agents::pods(&cluster).await.map(|pods| agents::running(&pods)).ok().or(running);
        }
        say(&format!("not done after {}:", duration(begun.elapsed().as_secs())))?;
        for node in &late {
            let text = why_late(node, tracker.stage(node), obstacle(node, &dead, running.as_ref()));
            say(&format!("  {node}: {text}"))?;
            why.insert(node.clone(), text);
        }
    }
    if let Some(blind) = &blind {
        say(&format!("the last look failed, so they may be further than that: {blind}"))?;
    }
    if !unasked.is_empty() {
        let names: Vec<String> = unasked.keys().cloned().collect();
        say(&format!("{} nodes could not be asked: {}", names.len(), some(&names)))?;
    }
    let all = late.is_empty() && unasked.is_empty();
    let verdict = if all { Verdict::Holds } else { Verdict::Incomplete };
    if form != Form::Text {
        let document = json!({
            "request": request, "verdict": verdict, "nodes": tracker.told(), "warnings": warnings, "unasked": unasked, "late": why,
            "lastLook": blind,
        });
        output::write(out, form, &document, String::new)?;
    }
    match unasked.values().next() {
        Some(why) if tracker.count() == 0 => {
            Err(KeysError::Nobody { count: unasked.len(), why: why.clone() })
        }
        Some(_) | None => Ok(verdict.exit_code()),
    }
}

/// Nodes that are named in one line.
const NAMED: usize = 5;

fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
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

    const NODES: Asked = Asked { verb: "patch", resource: "nodes", namespace: None };

    #[tokio::test]
    async fn a_node_that_is_refused_costs_no_other_one_its_turn() {
        let refused = || ApiError::Refused { asked: NODES, why: "the webhook said no".to_owned() };
        let answers = async |node: &str| match node {
            "b" => Err(refused()),
            "gone" => Ok(false),
            _ => Ok(true),
        };
        let mut told = Vec::new();
        let tell = |node: &str, why: Option<&str>| {
            told.push(format!("{node}: {}", why.unwrap_or("asked")));
            Ok(())
        };
        let unasked = ask_all(&["a", "b", "gone", "z"], answers, tell).await.unwrap();
        assert_eq!(told, ["a: asked", "b: could not patch nodes: the webhook said no", "z: asked"]);
        assert_eq!(unasked.into_iter().collect::<Vec<_>>(), [("b".to_owned(), refused().to_string())]);
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_not_waited_for_once_for_each_of_thousands() {
        let tries = std::cell::Cell::new(0);
        let answers = async |node: &str| {
            tries.set(tries.get() + 1);
            if node == "b" {
                return Ok(true);
            }
            Err(ApiError::Silent { asked: NODES, server: "s".to_owned(), after: ANSWER })
        };
        let unasked = ask_all(&["a", "b", "c", "d", "e", "f", "g"], answers, |_, _| Ok(())).await.unwrap();
        assert_eq!(tries.get(), 5);
        assert_eq!(unasked.keys().collect::<Vec<_>>(), ["a", "c", "d", "e", "f", "g"]);
        assert!(unasked["e"].starts_with("could not patch nodes: no answer"), "{unasked:?}");
        assert!(unasked["g"].starts_with("not asked any more: could not patch nodes"), "{unasked:?}");
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
