//! What this node writes to the API: its announcement, and Events about problems.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use mesh_core::announcement::Announcement;
use mesh_core::name::NodeName;
use mesh_core::numbers::ANNOTATION_WIREGUARD;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// An announcement to write. The number grows with each time it has to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Distinguishes writing again from having written.
    pub generation: u64,
    /// What to write.
    pub announcement: Announcement,
}

/// The same announcement written again within this is a quarrel about our annotation.
const QUARREL: Duration = Duration::from_secs(60);
/// Longest pause between two announcements in a quarrel.
const LONGEST_GAP: Duration = Duration::from_secs(30);

/// How long the same announcement waits to be written again, now that it was `since` the last time and had waited `gap`.
///
/// Two agents under one name (or a controller that puts annotations back) would otherwise answer each other as fast as
/// watches run, and every node of the cluster would plan anew each time.
fn gap_after(gap: Duration, since: Option<Duration>) -> Duration {
    match since {
        Some(since) if since < QUARREL => (gap * 2).clamp(Duration::from_secs(1), LONGEST_GAP),
        Some(_) | None => Duration::ZERO,
    }
}

/// How long one request may take: a server that is gone without a word would be waited for for ever.
const ANSWER: Duration = Duration::from_secs(20);

/// An answer of the API server, or that there is none.
///
/// # Errors
/// Those of the server, and that it said nothing for 20 s.
pub(crate) async fn within<T>(asked: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = |_| {
        let text = format!("no answer in {} s", ANSWER.as_secs());
        Err(kube::Error::Service(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()))
    };
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(late)
}

/// Writes the newest wanted announcement until the API takes it; ends with the sender.
pub async fn announce(client: Client, node: NodeName, mut wanted: watch::Receiver<Option<Wanted>>) {
    let api: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    let mut pause = Duration::from_millis(200);
    let (mut gap, mut written) = (Duration::ZERO, None::<(String, Instant)>);
    while wanted.changed().await.is_ok() {
        loop {
            let Some(now) = wanted.borrow_and_update().clone() else { break };
            let text = keyring::codec::encode(&now.announcement);
            let again = written.as_ref().filter(|(before, _)| *before == text).map(|(_, at)| *at);
            if let Some(at) = again
                && let Ok(newer) = tokio::time::timeout_at(at + gap, wanted.changed()).await
            {
                match newer {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            let patch = serde_json::json!({ "metadata": { "annotations": { ANNOTATION_WIREGUARD: text } } });
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let asked = api.patch_metadata(node.as_str(), &parameters, &patch);
            match within(asked).await {
                Ok(_) => {
                    tracing::info!(node = %node, "Announced both slots");
                    pause = Duration::from_millis(200);
                    gap = gap_after(gap, again.map(|before| before.elapsed()));
                    written = Some((text, Instant::now()));
                    break;
                }
                Err(error) => {
                    tracing::warn!(node = %node, err = %error, "Could not write the announcement; trying again");
                    // A newer announcement is not worth waiting for: it is taken at the next turn anyway.
                    drop(tokio::time::timeout(pause, wanted.changed()).await);
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
        }
    }
}

/// An Event to record about this node.
#[derive(Clone, Debug)]
pub struct Notice {
    /// CamelCase word.
    pub reason: String,
    /// One sentence.
    pub note: String,
    /// Something is wrong, rather than right again.
    pub warning: bool,
}

/// Sentences whose series of Events are remembered.
const MAX_RECORDERS: usize = 256;

/// Records notices as Events of the Node. Notices are dropped while the API is away: metrics and logs have them too.
pub async fn record(client: Client, node: NodeName, mut notices: mpsc::Receiver<Notice>) {
    let reporter = Reporter { controller: "hawser.dev/mesh-agent".into(), instance: Some(node.to_string()) };
    // A recorder folds Events of one reason into a series that shows the first one's note, so that the second device
    // or Node with the same problem would not be named: one for each sentence keeps them apart.
    let mut recorders: BTreeMap<String, Recorder> = BTreeMap::new();
    let reference = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_string()),
        // The kubelet's own Events bear the name here too; `kubectl describe node` looks for it.
        uid: Some(node.to_string()),
        ..ObjectReference::default()
    };
    while let Some(notice) = notices.recv().await {
        if recorders.len() >= MAX_RECORDERS {
            recorders.clear();
        }
        let new = || Recorder::new(client.clone(), reporter.clone());
        let recorder = recorders.entry(notice.note.clone()).or_insert_with(new);
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason,
            note: Some(notice.note.chars().take(1000).collect()),
            action: "Reconcile".into(),
            secondary: None,
        };
        let publish = tokio::time::timeout(Duration::from_secs(10), recorder.publish(&event, &reference));
        match publish.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(err = %error, "Could not record an Event"),
            Err(_) => tracing::debug!("Recording an Event took too long"),
        }
    }
}

/// Is it for Events too? Not that another node has no keys yet: every node is told so of every newcomer, which would be
/// as many Events as there are pairs of nodes.
pub fn worth_an_event(notice: &Notice) -> bool {
    !matches!(notice.reason.as_str(), "KeyMissing" | "KeyMissingResolved")
}

/// Notices for what is new in `now` and what is gone since `before`. Keys are sentences, values their words.
pub fn notices(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<Notice> {
    let appeared = now.iter().filter(|(note, _)| !before.contains_key(*note));
    let gone = before.iter().filter(|(note, _)| !now.contains_key(*note));
    let notice = |(note, reason): (&String, &String), warning| Notice {
        reason: if warning { reason.clone() } else { format!("{reason}Resolved") },
        note: note.clone(),
        warning,
    };
    appeared.map(|n| notice(n, true)).chain(gone.map(|n| notice(n, false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_is_no_event_at_every_other_node() {
        let told =
            |reason: &str| worth_an_event(&Notice { reason: reason.into(), note: "n".into(), warning: true });
        assert_eq!(["KeyMissing", "KeyMissingResolved", "KeyDuplicated"].map(told), [false, false, true]);
    }

    #[test]
    fn a_quarrel_about_our_annotation_slows_down_and_is_forgotten() {
        let seconds = Duration::from_secs;
        let mut gap = gap_after(Duration::ZERO, None);
        assert_eq!(gap, Duration::ZERO, "the first");
        let mut gaps = Vec::new();
        for _ in 0..7 {
            gap = gap_after(gap, Some(gap));
            gaps.push(gap.as_secs());
        }
        assert_eq!(gaps, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(gap_after(gap, Some(seconds(59))), seconds(30));
        assert_eq!(gap_after(gap, Some(seconds(60))), Duration::ZERO, "peace");
    }
}
