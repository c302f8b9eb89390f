//! Writes: one name's operations, in order, until one of them fails. What is refused holds up nothing but the deletion of slices whose
//! endpoints would be nowhere then.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use mesh_core::clusters::ClusterName;
use mesh_core::policy::model::ObjectName;
use serde_json::Value;

use super::diff::{Act, Op};
use super::metrics::Metrics;
use super::pace::{Expect, Outcome, Wrote};
use super::problem::{Problem, excerpt};
use super::seen::Stamp;

/// For one request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Who writes, as `metadata.managedFields` says it.
const MANAGER: &str = "clustermesh";

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The service that it was for.
    pub name: ObjectName,
    /// What was written.
    pub wrote: Vec<Wrote>,
    /// How it ended.
    pub outcome: Outcome,
    /// What the server refuses, and why.
    pub refused: Option<Problem>,
}

impl Op {
    /// Tells one content from another, whatever version it is for, and whenever it is written.
    pub fn content(&self) -> u64 {
        let body = match &self.act {
            Act::Create(body) => body.clone(),
            Act::Patch(body) | Act::Status(body) => {
                let mut body = body.clone();
                if let Some(metadata) = body["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
                // It is another one each time that somebody changes a status and we change it back.
                let conditions = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
                for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
                    condition.remove("lastTransitionTime");
                }
                body
            }
            Act::Delete(stamp) => stamp.uid.clone().into(),
        };
        let mut hash = DefaultHasher::new();
        (self.act.verb(), body.to_string()).hash(&mut hash);
        hash.finish()
    }
}

/// What kept a request from being done.
enum Hurdle {
    /// Somebody was faster: what was looked at is not there any more.
    Conflict(String),
    /// The server refuses it for good.
    Refused(String),
    /// No answer, or one that passes.
    Away(String),
}

impl From<kube::Error> for Hurdle {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Away(error.to_string()) };
        match status.code {
            404 | 409 => Self::Conflict(status.message),
            400 | 403 | 405 | 413 | 415 | 422 => Self::Refused(status.message),
            _ => Self::Away(status.message),
        }
    }
}

/// Does what is to be done about a name. Where something new of a cluster's slices is refused, what it would stand for is not deleted,
/// if it is so for the first time: under a quota there may be no room before.
pub(super) async fn write(
    client: Client,
    (name, refused_before): (ObjectName, bool),
    ops: Vec<Op>,
    metrics: Metrics,
) -> Written {
    let mut written = Written { name, wrote: Vec::new(), outcome: Outcome::Done, refused: None };
    // Clusters of whose slices one was refused: what it would have had is in those that go.
    let mut short: BTreeSet<ClusterName> = BTreeSet::new();
    for op in ops {
        let deletes = matches!(op.act, Act::Delete(_));
        if deletes && op.source.as_ref().is_some_and(|source| short.contains(source)) {
            continue;
        }
        let (kind, verb) = (op.kind, op.act.verb());
        let done = tokio::time::timeout(DEADLINE, one(&client, &op)).await;
        let late = || Hurdle::Away(format!("no answer in {} s", DEADLINE.as_secs()));
        match done.unwrap_or_else(|_| Err(late())) {
            Ok(expect) => {
                metrics.wrote(kind, verb);
                let content = op.content();
                written.wrote.push(Wrote { place: (kind, op.object), content, expect });
            }
            Err(Hurdle::Conflict(reason)) => {
                metrics.did_not_write(kind, verb, true);
                tracing::debug!(%kind, object = op.object.name, namespace = op.object.namespace, verb, reason, "Somebody was faster");
                written.outcome = Outcome::Failed;
                return written;
            }
            Err(Hurdle::Away(reason)) => {
                metrics.did_not_write(kind, verb, false);
                tracing::warn!(%kind, object = op.object.name, namespace = op.object.namespace, verb, err = reason, "Could not write, trying again");
                written.outcome = Outcome::Failed;
                return written;
            }
            Err(Hurdle::Refused(reason)) => {
                metrics.did_not_write(kind, verb, false);
                short.extend(op.source.filter(|_| !deletes && !refused_before));
                let reason = reason.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect();
                // What comes after it may be allowed, and other clusters' backends among it.
                let problem = Problem::WriteRefused {
                    name: written.name.clone(),
                    verb,
                    kind,
                    object: excerpt(&op.object.name),
                    reason,
                };
                written.refused.get_or_insert(problem);
                written.outcome = Outcome::Refused;
            }
        }
    }
    written
}

async fn one(client: &Client, op: &Op) -> Result<Expect, Hurdle> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &op.object.namespace, &op.kind.resource());
    let name = op.object.name.as_str();
    let manager = || PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let object = match &op.act {
        Act::Create(body) => {
            let object: DynamicObject = serde_json::from_value(body.clone())
                .map_err(|error| Hurdle::Refused(format!("not an object: {error}")))?;
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            api.create(&params, &object).await?
        }
        Act::Patch(body) => api.patch(name, &manager(), &Patch::Merge(body)).await?,
        Act::Status(body) => api.patch_status(name, &manager(), &Patch::Merge(body)).await?,
        Act::Delete(stamp) => {
            let preconditions =
                Preconditions { uid: Some(stamp.uid.clone()), resource_version: Some(stamp.version.clone()) };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            api.delete(name, &params).await?;
            return Ok(Expect::Gone(stamp.uid.clone()));
        }
    };
    Ok(Expect::Version(Stamp {
        uid: object.metadata.uid.unwrap_or_default(),
        version: object.metadata.resource_version.unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mcs::kind::Kind;

    #[test]
    fn a_status_is_the_same_whenever_it_is_written_and_for_whatever_version() {
        let content = |version: &str, reason: &str, time: &str| {
            let conditions = json!([{ "type": "Ready", "reason": reason, "lastTransitionTime": time }]);
            let act = Act::Status(json!({
                "metadata": { "uid": "u", "resourceVersion": version },
                "status": { "conditions": conditions },
            }));
            let object = ObjectName { namespace: "shop".into(), name: "web".into() };
            Op { kind: Kind::Export, object, act, source: None }.content()
        };
        let first = content("1", "Ready", "2026-01-01T00:00:00Z");
        assert_eq!(content("7", "Ready", "2026-01-01T00:00:02Z"), first);
        assert_ne!(content("1", "Pending", "2026-01-01T00:00:00Z"), first);
    }
}
