//! The start-up taint `hawser.dev/agent-not-ready`: whoever registers nodes with it keeps pods away from a node until its agent
//! is ready for the first time. The agent takes it off, and does nothing else to taints (`deploy/admission.yaml`).
//!
//! It is taken off when the agent has become ready, not for as long as it is: a taint put on later is somebody's word.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mesh_core::name::NodeName;
use serde_json::json;
use tokio::sync::watch;

use crate::cni::Readiness;
use crate::publish::within;

/// Its key.
pub const TAINT_NOT_READY: &str = "hawser.dev/agent-not-ready";
/// Between two attempts, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is left of a node's taints without ours; `None` if it is not among them.
fn without_ours(taints: &[Taint]) -> Option<Vec<Taint>> {
    let rest: Vec<Taint> = taints.iter().filter(|taint| taint.key != TAINT_NOT_READY).cloned().collect();
    (rest.len() < taints.len()).then_some(rest)
}

/// Takes the taint off whenever the agent becomes ready. Ends with the agent.
pub async fn keep_off(client: Client, node: NodeName, mut readiness: watch::Receiver<Readiness>) {
    let api: Api<Node> = Api::all(client);
    let ready = |readiness: &Readiness| readiness.obstacles.is_empty();
    loop {
        if readiness.wait_for(ready).await.is_err() {
            return;
        }
        take_off(&api, &node).await;
        if readiness.wait_for(|now| !ready(now)).await.is_err() {
            return;
        }
    }
}

/// Tries until the API takes it.
async fn take_off(api: &Api<Node>, node: &NodeName) {
    let mut pause = PAUSE.0;
    loop {
        match once(api, node).await {
            Ok(false) => return,
            Ok(true) => {
                tracing::info!(node = %node, taint = TAINT_NOT_READY, "Took the start-up taint off");
                return;
            }
            // While a node starts, several write to it.
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                tracing::debug!(node = %node, "The Node has changed meanwhile; reading it again");
            }
            Err(error) => {
                tracing::warn!(node = %node, taint = TAINT_NOT_READY, err = %error, "Could not take the start-up taint off; trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// True: it was there and is not any more.
pub(crate) async fn once(api: &Api<Node>, node: &NodeName) -> kube::Result<bool> {
    let Some(found) = within(api.get_opt(node.as_str())).await? else { return Ok(false) };
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let Some(rest) = without_ours(&taints) else { return Ok(false) };
    // A list is replaced whole: the version keeps a taint that came meanwhile.
    let version = found.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": rest}});
    within(api.patch(node.as_str(), &PatchParams::default(), &Patch::Merge(&patch))).await.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
    }

    #[test]
    fn ours_goes_with_every_effect_and_others_stay_as_they_are() {
        let others = [taint("node.kubernetes.io/not-ready", "NoSchedule"), taint("dedicated", "NoExecute")];
        assert_eq!(without_ours(&others), None);
        assert_eq!(without_ours(&[]), None);
        let mut all = others.to_vec();
        all.insert(1, taint(TAINT_NOT_READY, "NoSchedule"));
        all.push(taint(TAINT_NOT_READY, "NoExecute"));
        assert_eq!(without_ours(&all), Some(others.to_vec()));
    }
}
