//! What is wrong with policies and Services, told where their owners look: Events on the objects, and a condition in the status
//! of a ClusterNetworkPolicy. One agent does it, the holder of the lease ([`crate::lease`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use mesh_core::name::NodeName;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Type of our condition.
const CONDITION: &str = "hawser.dev/Accepted";
/// Who writes it.
const MANAGER: &str = "hawser";
/// Longest message of a condition that we write (the API takes 32,768).
const MAX_MESSAGE: usize = 4_000;
/// Longest note of an Event (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1_000;
/// Objects that Events are written about in one turn, so that a cluster full of wrong objects is no storm; the rest follows.
const EVENTS_A_TURN: usize = 20;
/// Between two turns.
const REST: Duration = Duration::from_secs(2);
/// For one request.
const DEADLINE: Duration = Duration::from_secs(8);

/// An object of the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `NetworkPolicy`, `ClusterNetworkPolicy`, `Service`, `EndpointSlice`, `Pod`, `Node`.
    pub kind: &'static str,
    /// Its namespace; none for what has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// What is wrong with objects, as one node's compilers found it: code and sentence of each thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// By object.
    pub wrong: BTreeMap<Subject, BTreeSet<(String, String)>>,
    /// What this node cannot do; its own Events tell it.
    pub trouble: BTreeSet<(String, String)>,
    /// Every ClusterNetworkPolicy there is.
    pub cluster_policies: BTreeSet<String>,
}

/// What was written, by the agent that leads.
#[derive(Debug, Default)]
struct Written {
    events: BTreeSet<(Subject, String)>,
    conditions: BTreeMap<String, Vec<String>>,
}

/// What is to be written now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    events: Vec<(Subject, String, String)>,
    conditions: Vec<(String, Vec<String>)>,
}

impl Written {
    /// Compares; what is no longer wrong is forgotten, so that it is told again should it come back.
    fn due(&mut self, findings: &Findings) -> Due {
        let all = findings.wrong.iter().flat_map(|(subject, set)| set.iter().map(move |one| (subject, one)));
        let present: BTreeSet<(Subject, String)> =
            all.clone().map(|(subject, (_, text))| (subject.clone(), text.clone())).collect();
        self.events.retain(|event| present.contains(event));
        self.conditions.retain(|name, _| findings.cluster_policies.contains(name));
        let new =
            all.filter(|(subject, (_, text))| !self.events.contains(&((*subject).clone(), text.clone())));
        let events = new.map(|(subject, (code, text))| (subject.clone(), code.clone(), text.clone()));
        let conditions = findings.cluster_policies.iter().filter_map(|name| {
            let texts = texts(findings, name);
            (self.conditions.get(name) != Some(&texts)).then(|| (name.clone(), texts))
        });
        Due { events: events.take(EVENTS_A_TURN).collect(), conditions: conditions.collect() }
    }
}

/// What is wrong with a ClusterNetworkPolicy.
fn texts(findings: &Findings, name: &str) -> Vec<String> {
    let subject = Subject { kind: "ClusterNetworkPolicy", namespace: None, name: name.to_owned() };
    let wrong = findings.wrong.get(&subject);
    wrong.into_iter().flatten().map(|(_, text)| text.clone()).collect()
}

/// Writes for as long as this agent leads; ends with the findings.
pub async fn run(
    client: Client,
    node: NodeName,
    mut findings: watch::Receiver<Arc<Findings>>,
    mut leads: watch::Receiver<bool>,
) {
    let reporter = Reporter { controller: "hawser.dev/mesh-agent".into(), instance: Some(node.to_string()) };
    let mut written = Written::default();
    loop {
        let (leading, now) = (*leads.borrow_and_update(), Arc::clone(&findings.borrow_and_update()));
        let mut all = true;
        if leading {
            let due = written.due(&now);
            all = due.events.len() < EVENTS_A_TURN;
            for (name, texts) in due.conditions {
                match within(condition(&client, &name, &texts)).await {
                    Ok(()) => drop(written.conditions.insert(name, texts)),
                    Err(error) => {
                        all = false;
                        tracing::warn!(
                            policy = name,
                            err = error,
                            "Could not write a ClusterNetworkPolicy's status"
                        );
                    }
                }
            }
            for (subject, code, text) in due.events {
                // Told once, whether it arrives or not: logs and metrics have it.
                if let Err(error) = within(event(&client, &reporter, &subject, &code, &text)).await {
                    tracing::debug!(?subject, err = error, "Could not record an Event");
                }
                written.events.insert((subject, text));
            }
        } else {
            // Another may have written meanwhile: when we lead again, it is looked at anew.
            written = Written::default();
        }
        tokio::time::sleep(REST).await;
        let ended = tokio::select! {
            changed = findings.changed() => changed.is_err(),
            changed = leads.changed() => changed.is_err(),
            () = tokio::time::sleep(REST), if !all => false,
        };
        if ended {
            return;
        }
    }
}

async fn within(work: impl Future<Output = kube::Result<()>>) -> Result<(), String> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", DEADLINE.as_secs())),
    }
}

fn resource(kind: &str) -> ApiResource {
    match kind {
        "ClusterNetworkPolicy" => crate::watch::cluster_policy_resource(),
        "Service" => ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
        "EndpointSlice" => ApiResource::erase::<k8s_openapi::api::discovery::v1::EndpointSlice>(&()),
        "Node" => ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&()),
        "Pod" => ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
        _ => ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&()),
    }
}

async fn event(
    client: &Client,
    reporter: &Reporter,
    subject: &Subject,
    code: &str,
    text: &str,
) -> kube::Result<()> {
    let resource = resource(subject.kind);
    let api: Api<DynamicObject> = match &subject.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    // The UID: `kubectl describe` looks for it.
    let Some(object) = api.get_metadata_opt(&subject.name).await? else { return Ok(()) };
    let reference = ObjectReference {
        api_version: Some(resource.api_version.clone()),
        kind: Some(subject.kind.to_owned()),
        namespace: subject.namespace.clone(),
        name: Some(subject.name.clone()),
        uid: object.metadata.uid,
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: code.to_owned(),
        note: Some(text.chars().take(MAX_NOTE).collect()),
        action: "Compile".into(),
        secondary: None,
    };
    // One recorder for each sentence: it would fold a second problem of one code into the first one's series.
    Recorder::new(client.clone(), reporter.clone()).publish(&event, &reference).await
}

/// Writes our condition into the status of a ClusterNetworkPolicy, unless it says the same already.
async fn condition(client: &Client, name: &str, texts: &[String]) -> kube::Result<()> {
    let resource = crate::watch::cluster_policy_resource();
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let Some(object) = api.get_opt(name).await? else { return Ok(()) };
    let present = object.data["status"]["conditions"].as_array().into_iter().flatten();
    let present = present.into_iter().find(|condition| condition["type"] == CONDITION);
    let now = jiff::Timestamp::now();
    let Some(wanted) = wanted(present, texts, object.metadata.generation, &format!("{now:.0}")) else {
        return Ok(());
    };
    let patch = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": { "name": name },
        "status": { "conditions": [wanted] },
    });
    let params = PatchParams::apply(MANAGER).force();
    api.patch_status(name, &params, &Patch::Apply(&patch)).await.map(|_| ())
}

/// The condition, if it is not there already. The time is that of the last change of `status`.
fn wanted(present: Option<&Value>, texts: &[String], generation: Option<i64>, now: &str) -> Option<Value> {
    let good = texts.is_empty();
    let status = if good { "True" } else { "False" };
    let message = if good { "every field is understood and in force".to_owned() } else { texts.join("; ") };
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    let reason = if good { "Accepted" } else { "Malformed" };
    let same = |field: &str, value: &Value| present.is_some_and(|present| present[field] == *value);
    let all = [
        ("status", json!(status)),
        ("reason", json!(reason)),
        ("message", json!(message)),
        ("observedGeneration", json!(generation)),
    ];
    if all.iter().all(|(field, value)| same(field, value)) {
        return None;
    }
    let since = match present {
        Some(present) if present["status"] == status => present["lastTransitionTime"].clone(),
        Some(_) | None => json!(now),
    };
    Some(json!({
        "type": CONDITION, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": since,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(wrong: &[(&str, &str)], policies: &[&str]) -> Findings {
        let mut findings = Findings::default();
        for (name, text) in wrong {
            let subject = Subject { kind: "ClusterNetworkPolicy", namespace: None, name: (*name).to_owned() };
            findings.wrong.entry(subject).or_default().insert(("Code".into(), (*text).to_owned()));
        }
        findings.cluster_policies = policies.iter().map(|name| (*name).to_owned()).collect();
        findings
    }

    #[test]
    fn what_is_wrong_is_told_once_and_again_only_when_it_came_back() {
        let mut written = Written::default();
        let due = written.due(&findings(&[("p", "bad")], &["p", "q"]));
        assert_eq!(due.events.len(), 1);
        assert_eq!(due.conditions, [("p".to_owned(), vec!["bad".to_owned()]), ("q".to_owned(), vec![])]);
        for (subject, _, text) in due.events {
            written.events.insert((subject, text));
        }
        written.conditions.extend(due.conditions);
        assert_eq!(written.due(&findings(&[("p", "bad")], &["p", "q"])), Due::default());
        let due = written.due(&findings(&[], &["p", "q"]));
        assert_eq!((due.events.len(), due.conditions), (0, vec![("p".to_owned(), vec![])]));
        assert_eq!(written.due(&findings(&[("p", "bad")], &["p"])).events.len(), 1);
    }

    #[test]
    fn a_condition_that_says_the_same_is_not_written_and_keeps_its_time_while_its_status_stays() {
        let first = wanted(None, &[], Some(1), "t1").unwrap();
        assert_eq!(
            (first["status"].as_str(), first["lastTransitionTime"].as_str()),
            (Some("True"), Some("t1"))
        );
        assert_eq!(wanted(Some(&first), &[], Some(1), "t2"), None);
        let newer = wanted(Some(&first), &[], Some(2), "t2").unwrap();
        assert_eq!(newer["lastTransitionTime"], "t1");
        let bad = wanted(Some(&newer), &["spec.tier wrong".to_owned()], Some(3), "t3").unwrap();
        assert_eq!((bad["status"].as_str(), bad["lastTransitionTime"].as_str()), (Some("False"), Some("t3")));
        assert_eq!(bad["message"], "spec.tier wrong");
    }

    #[test]
    fn a_cluster_full_of_wrong_objects_is_told_a_few_at_a_time() {
        let texts: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
        let all: Vec<(&str, &str)> = texts.iter().map(|text| ("p", text.as_str())).collect();
        assert_eq!(Written::default().due(&findings(&all, &[])).events.len(), EVENTS_A_TURN);
    }
}
