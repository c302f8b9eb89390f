//! The condition `NetworkUnavailable` of the own Node. Cloud providers' controllers set it to True when they register a node, and the
//! scheduler keeps pods away until somebody says False: whose network it is. The agent says so once it can connect pods.
//!
//! It answers a True and says nothing else: a Node without the condition gets none, and an agent that is not ready does not set
//! True (pods that run keep their network then, and a taint would drive some of them away).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mesh_core::name::NodeName;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::cni::Readiness;

/// Its type.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// Between two attempts, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Between two answers: a controller that insists on True (routes of a cloud that it cannot make) is contradicted no faster.
const AGAIN: Duration = Duration::from_secs(30);

/// What is written. The list of conditions is merged by their types, so this touches no other.
fn patch(now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE, "status": "False", "reason": "HawserIsReady",
        "message": "mesh-agent connects pods on this node",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}

/// Says False whenever the own Node says True and the agent is ready. Ends with the agent.
pub async fn keep_false(
    client: Client,
    node: NodeName,
    mut readiness: watch::Receiver<Readiness>,
    mut unavailable: watch::Receiver<bool>,
) {
    let api: Api<Node> = Api::all(client);
    let (mut pause, mut said) = (PAUSE.0, 0_u64);
    loop {
        if unavailable.wait_for(|unavailable| *unavailable).await.is_err()
            || readiness.wait_for(|now| now.obstacles.is_empty()).await.is_err()
        {
            return;
        }
        // While it was waited for the one, the other may have passed.
        if !*unavailable.borrow() {
            continue;
        }
        let written = api
            .patch_status(node.as_str(), &PatchParams::default(), &Patch::Strategic(patch(Timestamp::now())))
            .await;
        match written {
            Ok(_) => {
                said += 1;
                if said == 1 {
                    tracing::info!(node = %node, "Node's condition NetworkUnavailable set to False");
                } else {
                    tracing::warn!(node = %node, times = said, "Node's condition NetworkUnavailable set to False again: \
                        somebody sets it to True; if that is a cloud's route controller, switch its routes off");
                }
                pause = PAUSE.0;
                let next = Instant::now() + AGAIN;
                // Seen to be False, or not seen: asked again no sooner.
                let seen = timeout_at(next, unavailable.wait_for(|unavailable| !*unavailable)).await;
                if seen.map(|seen| seen.is_err()) == Ok(true) {
                    return;
                }
                sleep_until(next).await;
            }
            Err(error) => {
                tracing::warn!(node = %node, err = %error, "Could not set Node's condition NetworkUnavailable to False; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_has_a_time_as_kubernetes_reads_it_and_no_other_condition() {
        let patch = patch("2026-01-02T03:04:05.678Z".parse().unwrap());
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        let read: k8s_openapi::api::core::v1::NodeCondition =
            serde_json::from_value(conditions[0].clone()).unwrap();
        assert_eq!((read.type_.as_str(), read.status.as_str()), (NETWORK_UNAVAILABLE, "False"));
        assert_eq!(conditions[0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
