//! Conditions of ClusterPeers: `Accepted`, `Connected`, `Problems`.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Link, resource};

/// Who writes them.
const MANAGER: &str = "hawser-clustermesh";
/// Longest message that is written (the schema takes 32,768).
const MAX_MESSAGE: usize = 4000;
/// For one request.
const DEADLINE: Duration = Duration::from_secs(8);
/// Pause after writing, so that a line that comes and goes is no storm of writes.
const REST: Duration = Duration::from_secs(2);
/// Messages alone are written no more often than this: a count in one may be another with each word that a cluster says.
const MESSAGES: Duration = Duration::from_secs(60);

/// How a ClusterPeer stands.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// What is wrong with the object, and the reason's word.
    pub(super) wrong: Vec<(String, &'static str)>,
    pub(super) link: Link,
    /// Facts that are not believed.
    pub(super) problems: usize,
    /// The first of them.
    pub(super) texts: Vec<(String, &'static str)>,
    pub(super) object: DynamicObject,
}

struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn conditions(standing: &Standing) -> [Condition; 3] {
    let texts = |list: &[(String, &'static str)]| {
        list.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("; ")
    };
    let accepted = match standing.wrong.first() {
        None => ("True", "Accepted", "every field is understood and in force".to_owned()),
        Some((_, reason)) => ("False", *reason, texts(&standing.wrong)),
    };
    let connected = match (&standing.link.connected, &standing.link.trouble) {
        (Some(address), _) => ("True", "Connected", format!("following {address}")),
        (None, Some((reason, text))) => ("False", *reason, text.clone()),
        (None, None) => {
            ("Unknown", "NotTried", "not tried yet, or not to be followed; see Accepted".to_owned())
        }
    };
    let left_out: Vec<&str> = standing.link.left_out.iter().map(String::as_str).collect();
    let problems = match (standing.texts.first(), left_out.is_empty()) {
        (None, true) => ("False", "NoProblems", "all that the cluster tells is believed".to_owned()),
        (Some((_, reason)), _) => {
            let all = format!("{} facts are not believed: {}", standing.problems, texts(&standing.texts));
            ("True", *reason, [&[all.as_str()][..], &left_out].concat().join("; "))
        }
        (None, false) => ("True", "LeftOut", left_out.join("; ")),
    };
    let all = [("Accepted", accepted), ("Connected", connected), ("Problems", problems)];
    all.map(|(kind, (status, reason, message))| {
        let message = message.chars().take(MAX_MESSAGE).collect();
        Condition { kind, status, reason, message }
    })
}

/// The conditions as they should be, if they are not so already. Times are those of the last change of each status.
fn wanted(standing: &Standing, now: &str) -> Option<Vec<Value>> {
    let generation = standing.object.metadata.generation;
    let present = standing.object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut differs = false;
    let conditions = conditions(standing).map(|condition| {
        let before = present.iter().find(|one| one["type"] == condition.kind);
        let since = match before {
            Some(before) if before["status"] == condition.status => before["lastTransitionTime"].clone(),
            Some(_) | None => json!(now),
        };
        let wanted = json!({
            "type": condition.kind, "status": condition.status, "reason": condition.reason,
            "message": condition.message, "observedGeneration": generation, "lastTransitionTime": since,
        });
        differs |= before != Some(&wanted);
        wanted
    });
    differs.then(|| conditions.into())
}

/// What was written of a ClusterPeer that was there in this version.
#[derive(Clone, Debug)]
struct Written {
    uid: Option<String>,
    version: Option<String>,
    conditions: Vec<Value>,
    /// When messages alone were written last.
    messages: Option<Instant>,
}

impl Written {
    fn new(standing: &Standing, conditions: Vec<Value>, messages: Option<Instant>) -> Self {
        let metadata = standing.object.metadata.clone();
        Self { uid: metadata.uid, version: metadata.resource_version, conditions, messages }
    }

    /// Nothing else is to be written, and the watch has not brought our own writing yet. An object that has moved on, or was
    /// made anew, shows by itself what stands in it.
    fn stands(&self, standing: &Standing, conditions: &[Value]) -> bool {
        let mut pairs = self.conditions.iter().zip(conditions);
        self.is_of(standing) && pairs.all(|(a, b)| same(a, b) && a["message"] == b["message"])
    }

    /// The watch has brought nothing since.
    fn is_of(&self, standing: &Standing) -> bool {
        let metadata = &standing.object.metadata;
        self.uid == metadata.uid && self.version == metadata.resource_version
    }

    /// Until when messages alone wait.
    fn waits_until(&self) -> Option<Instant> {
        Some(self.messages? + MESSAGES)
    }
}

/// The same but for the message, and the time that goes with the status.
fn same(one: &Value, other: &Value) -> bool {
    ["type", "status", "reason", "observedGeneration"].iter().all(|field| one[*field] == other[*field])
}

/// Is nothing to be written but messages, beside what stands there as far as is known?
fn messages_alone(written: Option<&Written>, standing: &Standing, conditions: &[Value]) -> bool {
    let present = standing.object.data["status"]["conditions"].as_array();
    let ours = written.filter(|written| written.is_of(standing)).map(|written| &written.conditions);
    let present = ours.or(present);
    conditions.iter().all(|one| present.into_iter().flatten().any(|before| same(before, one)))
}

/// Writes for ever what is not written yet; ends with the standings.
pub(super) async fn write(client: Client, mut standings: watch::Receiver<BTreeMap<String, Standing>>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource());
    let mut written: BTreeMap<String, Written> = BTreeMap::new();
    loop {
        let now = standings.borrow_and_update().clone();
        written.retain(|name, _| now.contains_key(name));
        let (mut all, mut later) = (true, None::<Instant>);
        for (name, standing) in now {
            let time = jiff::Timestamp::now();
            let Some(conditions) = wanted(&standing, &format!("{time:.0}")) else { continue };
            let known = written.get(&name);
            if known.is_some_and(|written| written.stands(&standing, &conditions)) {
                continue;
            }
            let (alone, moment) = (messages_alone(known, &standing, &conditions), Instant::now());
            let due = known.and_then(Written::waits_until).filter(|due| alone && *due > moment);
            if let Some(due) = due {
                later = Some(later.map_or(due, |earlier| earlier.min(due)));
                continue;
            }
            let messages = if alone { Some(moment) } else { known.and_then(|known| known.messages) };
            let patch = json!({
                "apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": { "name": name },
                "status": { "conditions": conditions },
            });
            let params = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&patch);
            match tokio::time::timeout(DEADLINE, api.patch_status(&name, &params, &patch)).await {
                Ok(Ok(_)) => drop(written.insert(name, Written::new(&standing, conditions, messages))),
                // Gone meanwhile.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => {
                    all = false;
                    tracing::warn!(peer = name, err = %error, "Could not write a ClusterPeer's status");
                }
                Err(_) => {
                    all = false;
                    tracing::warn!(peer = name, "Could not write a ClusterPeer's status in time");
                }
            }
        }
        tokio::time::sleep(REST).await;
        if !all {
            continue;
        }
        let due = async {
            match later {
                Some(later) => tokio::time::sleep_until(later).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = standings.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(uid: &str, version: &str, conditions: &[Value]) -> Standing {
        let mut object = DynamicObject::new("west", &resource());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.into());
        object.data = json!({ "status": { "conditions": conditions } });
        Standing { wrong: Vec::new(), link: Link::default(), problems: 0, texts: Vec::new(), object }
    }

    #[test]
    fn what_was_written_is_written_again_only_where_it_does_not_stand() {
        let first = standing("a", "5", &[]);
        let conditions = wanted(&first, "2026-01-01T00:00:00Z").unwrap();
        let written = Written::new(&first, conditions.clone(), None);
        for (what, seen, due) in [
            ("the watch is late", standing("a", "5", &[]), false),
            ("it has come", standing("a", "6", &conditions), false),
            ("somebody cleared the status", standing("a", "7", &[]), true),
            ("somebody wrote another", standing("a", "7", &conditions[..1]), true),
            ("it was made anew under its name", standing("b", "8", &[]), true),
        ] {
            let later = wanted(&seen, "2026-01-01T00:01:00Z");
            let now = later.filter(|conditions| !written.stands(&seen, conditions));
            assert_eq!(now.is_some(), due, "{what}");
        }
        let mut refused = first;
        refused.wrong = vec![("no".into(), "No")];
        assert!(!written.stands(&refused, &wanted(&refused, "2026-01-01T00:01:00Z").unwrap()), "other words");
    }

    #[test]
    fn messages_alone_are_told_from_what_is_written_at_once() {
        let mut seen = standing("a", "5", &[]);
        seen.problems = 3;
        seen.texts = vec![("no".into(), "No")];
        let conditions = |standing: &Standing| wanted(standing, "2026-01-01T00:00:00Z").unwrap();
        let first = conditions(&seen);
        assert!(!messages_alone(None, &seen, &first), "nothing is written yet");
        // The watch is late, or has come.
        let written = Written::new(&seen, first.clone(), None);
        let mut come = standing("a", "6", &first);
        (come.problems, come.texts) = (3, seen.texts.clone());
        for mut now in [seen, come] {
            now.problems = 4;
            assert!(messages_alone(Some(&written), &now, &conditions(&now)), "another count");
            now.texts = vec![("no".into(), "Never")];
            assert!(!messages_alone(Some(&written), &now, &conditions(&now)), "another reason");
        }
        assert!(messages_alone(None, &standing("b", "1", &first), &conditions_of(&first, "other words")));
        assert!(!messages_alone(Some(&written), &standing("b", "1", &[]), &first), "it was made anew");
        let moment = Instant::now();
        assert_eq!(written.waits_until(), None, "the first time at once");
        let again = Written { messages: Some(moment), ..written };
        assert_eq!(again.waits_until(), Some(moment + MESSAGES));
    }

    /// The same with another message in the last of them.
    fn conditions_of(conditions: &[Value], message: &str) -> Vec<Value> {
        let mut all = conditions.to_vec();
        if let Some(last) = all.last_mut() {
            last["message"] = message.into();
        }
        all
    }
}
