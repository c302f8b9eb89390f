//! What this node's pods say of themselves on their objects: `hawser.dev/ips` and `hawser.dev/ports`.
//!
//! ADD writes them before it answers. Here they are kept right afterwards: what DEL leaves behind on a pod that still exists
//! (one that has finished) is taken away, so that its address stops matching policies; what somebody changed is put back.
//! Compared are the pods of the watch with the attachments, so nothing is lost to a restart or a failed request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{PartialObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use mesh_core::numbers::{ANNOTATION_IPS, ANNOTATION_PORTS};
use mesh_core::policy::model::{NamedPort, ObjectName};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::attachments::Table;
use crate::facts::ports;
use crate::watch::Pods;

/// How long a difference has to last: ADD has written before the watch shows it, and a pod that is deleted is gone soon after
/// its DEL. Far below the time for which an address rests.
const SETTLE: Duration = Duration::from_secs(2);
/// After a failure, for each pod.
const AGAIN: Duration = Duration::from_secs(10);
/// For one request.
const DEADLINE: Duration = Duration::from_secs(8);

/// The two annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// `hawser.dev/ips`.
    pub ips: Option<String>,
    /// `hawser.dev/ports`.
    pub ports: Option<String>,
}

impl Announced {
    /// Of a pod with these addresses and ports.
    pub fn of(ips: &[IpAddr], ports: &BTreeSet<NamedPort>) -> Self {
        let text = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Self { ips: (!text.is_empty()).then_some(text), ports: ports::encode(ports) }
    }
}

/// A merge patch that makes the annotations so.
pub fn annotations(wanted: &Announced) -> serde_json::Value {
    serde_json::json!({ "metadata": { "annotations": {
        ANNOTATION_IPS: wanted.ips, ANNOTATION_PORTS: wanted.ports
    } } })
}

/// Writes to a Pod's metadata by way of its status, where webhooks for pods are not asked: one that fails closed and whose own
/// pods wait for this very write would keep every pod from starting.
///
/// # Errors
/// The API refuses, or does not answer.
pub(crate) async fn write(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &serde_json::Value,
) -> kube::Result<PartialObjectMeta<Pod>> {
    // The whole Pod is answered; its metadata alone is read.
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), namespace);
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

/// Pods whose annotations are not what their attachments say, and what would be right. Pods that a request is working on
/// are left to it.
fn differences(pods: &Pods, table: &Table) -> BTreeMap<ObjectName, Difference> {
    let mut differences = BTreeMap::new();
    let attachments = table.newest_first();
    for (name, pod) in pods.pods.iter().filter(|(_, pod)| pods.synced && !pod.host_network) {
        let is = |a: &crate::attachments::Attachment| {
            let known = a.pod.as_ref();
            known.is_some_and(|p| {
                p.namespace == name.namespace && p.name == name.name && pod.meta.is(p.uid.as_deref())
            })
        };
        let of_pod = || attachments.iter().copied().filter(|(_, a)| is(a));
        let seen = Announced { ips: pod.announced_ips.clone(), ports: pod.announced_ports.clone() };
        // Whose file was lost may be this pod.
        let text = seen.ips.as_deref().unwrap_or_default();
        let announced: Vec<IpAddr> = text.split(',').filter_map(|part| part.parse().ok()).collect();
        let orphan = |a: &crate::attachments::Attachment| {
            a.pod.is_none() && a.ips.iter().any(|ip| announced.contains(ip))
        };
        if of_pod().any(|(veth, _)| table.busy.contains(veth)) || table.attachments.values().any(orphan) {
            continue;
        }
        let mut attached = of_pod().map(|(_, a)| Announced::of(&a.ips, &pod.ports));
        // Of two one is a dead sandbox's, and the last ADD has said which: it is not undone for that one.
        if attached.any(|one| one == seen) {
            continue;
        }
        let wanted = of_pod().next().map(|(_, a)| Announced::of(&a.ips, &pod.ports)).unwrap_or_default();
        if seen != wanted {
            let uid = pod.meta.uid.clone();
            differences.insert(name.clone(), Difference { uid, seen, wanted });
        }
    }
    differences
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    uid: String,
    seen: Announced,
    wanted: Announced,
}

/// Keeps annotations right; ends with the watch. `nudged` says that attachments have changed.
pub async fn keep(
    client: Client,
    table: Arc<Mutex<Table>>,
    mut pods: watch::Receiver<Pods>,
    nudged: Arc<tokio::sync::Notify>,
) {
    let mut due: BTreeMap<ObjectName, (Difference, Instant)> = BTreeMap::new();
    loop {
        let found = {
            let pods = pods.borrow_and_update();
            differences(&pods, &table.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let now = Instant::now();
        due.retain(|name, (difference, _)| found.get(name) == Some(difference));
        for (name, difference) in found {
            due.entry(name).or_insert((difference, now + SETTLE));
        }
        for (name, (difference, at)) in due.iter_mut().filter(|(_, (_, at))| *at <= now) {
            *at = now + AGAIN;
            match tokio::time::timeout(DEADLINE, correct(&client, name, difference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(namespace = name.namespace, pod = name.name, err = %error, "Could not correct a pod's annotations");
                }
                Err(_) => {
                    tracing::warn!(
                        namespace = name.namespace,
                        pod = name.name,
                        "Correcting a pod's annotations took too long"
                    );
                }
            }
        }
        let next = due.values().map(|(_, at)| *at).min();
        let asleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = asleep => {}
            () = nudged.notified() => {}
            changed = pods.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Writes the annotations, if the pod is still the one and says what it said.
async fn correct(client: &Client, name: &ObjectName, difference: &Difference) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    let Some(pod) = api.get_metadata_opt(&name.name).await? else { return Ok(()) };
    let meta = pod.metadata;
    let said = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
    let present = Announced { ips: said(ANNOTATION_IPS), ports: said(ANNOTATION_PORTS) };
    if meta.uid.as_ref() != Some(&difference.uid) || present != difference.seen {
        return Ok(());
    }
    let mut patch = annotations(&difference.wanted);
    // Whatever happens to the object meanwhile makes this fail, and the next look decides anew.
    patch["metadata"]["resourceVersion"] = serde_json::json!(meta.resource_version);
    write(client, &name.namespace, &name.name, &patch).await?;
    tracing::info!(
        namespace = name.namespace,
        pod = name.name,
        ips = difference.wanted.ips,
        "Corrected a pod's annotations"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
