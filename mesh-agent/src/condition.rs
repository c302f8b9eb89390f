//! The condition `NetworkUnavailable` of the own Node. Cloud providers' controllers set it to True when they register a node, and the
//! scheduler keeps pods away until somebody says False: whose network it is. The agent says so once it can connect pods.
//!
//! It says True itself when pods would have no network there for good: there is no data path, or no tunnel to other nodes, for
//! longer than anything that mends itself takes. That is `NoSchedule`: new pods go elsewhere, those that run stay. Whatever else
//! keeps an agent from being ready says nothing of the network, and a Node without the condition gets none from one that is well.

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
use crate::publish::within;

/// Its type.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// Between two attempts, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Between two words: a controller that insists on True (routes of a cloud that it cannot make) is contradicted no faster.
const AGAIN: Duration = Duration::from_secs(30);

/// For how long pods would have no network before the agent says so: a tunnel is replaced in seconds, a data path tried again every ten.
const BROKEN: Duration = Duration::from_secs(120);
/// Longest message of a condition.
const MESSAGE: usize = 1024;

/// Why pods would have no network on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// There is no data path, so no pod can be connected.
    DataPath {
        /// Why.
        why: String,
    },
    /// Neither device of the tunnel is there, so nothing passes to other nodes.
    Tunnel,
}

/// What is said of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Say {
    Available,
    Unavailable(Broken),
}

impl Say {
    /// Status, reason and message.
    fn words(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::Available => ("False", "HawserIsReady", "mesh-agent connects pods on this node".to_owned()),
            Self::Unavailable(Broken::DataPath { why }) => {
                ("True", "DataPathMissing", format!("no pod can be connected, there is no data path: {why}"))
            }
            Self::Unavailable(Broken::Tunnel) => {
                let message = "nothing passes to other nodes: neither hawser0 nor hawser1 is there; see mesh-tunnel on this \
                               node, or the kernel's module wireguard";
                ("True", "TunnelMissing", message.to_owned())
            }
        }
    }
}

/// What is to be said. `unavailable`: the Node says True, whoever it has that from; `broken`: what is, and for how long.
fn decide(unavailable: bool, ready: bool, broken: Option<(&Broken, Duration)>) -> Option<Say> {
    match broken {
        Some((what, since)) if since >= BROKEN && !unavailable => Some(Say::Unavailable(what.clone())),
        None if ready && unavailable => Some(Say::Available),
        Some(_) | None => None,
    }
}

/// What is written. The list of conditions is merged by their types, so this touches no other.
fn patch(say: &Say, now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let (status, reason, message) = say.words();
    let message = &message[..message.floor_char_boundary(MESSAGE)];
    json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}

/// Says what is to be said. Ends with the agent.
pub async fn keep(
    client: Client,
    node: NodeName,
    mut readiness: watch::Receiver<Readiness>,
    mut unavailable: watch::Receiver<bool>,
) {
    let api: Api<Node> = Api::all(client);
    let (mut pause, mut answers) = (PAUSE.0, 0_u64);
    let mut since: Option<Instant> = None;
    loop {
        let (ready, broken) = {
            let now = readiness.borrow_and_update();
            (now.obstacles.is_empty(), now.broken.clone())
        };
        since = broken.as_ref().map(|_| since.unwrap_or_else(Instant::now));
        let known = *unavailable.borrow_and_update();
        let for_so_long = broken.as_ref().zip(since.map(|since| since.elapsed()));
        let Some(say) = decide(known, ready, for_so_long) else {
            let due = since.map(|since| since + BROKEN).filter(|due| *due > Instant::now());
            if !changed(&mut readiness, &mut unavailable, due).await {
                return;
            }
            continue;
        };
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch(&say, Timestamp::now())));
        let written = within(api.patch_status(node.as_str(), &parameters, &patch)).await;
        match written {
            Ok(_) => {
                answers += u64::from(say == Say::Available);
                match &say {
                    Say::Unavailable(_) => {
                        tracing::error!(node = %node, "Node's condition NetworkUnavailable set to True: {}", say.words().2);
                    }
                    Say::Available if answers == 1 => {
                        tracing::info!(node = %node, "Node's condition NetworkUnavailable set to False");
                    }
                    Say::Available => {
                        tracing::warn!(node = %node, times = answers, "Node's condition NetworkUnavailable set to False again: \
                            if somebody else sets it to True, such as a cloud's route controller, switch its routes off");
                    }
                }
                pause = PAUSE.0;
                let (next, wanted) = (Instant::now() + AGAIN, matches!(say, Say::Unavailable(_)));
                // Seen to be so, or not seen: said again no sooner.
                let seen = timeout_at(next, unavailable.wait_for(|unavailable| *unavailable == wanted)).await;
                if seen.map(|seen| seen.is_err()) == Ok(true) {
                    return;
                }
                sleep_until(next).await;
            }
            Err(error) => {
                tracing::warn!(node = %node, err = %error, "Could not set Node's condition NetworkUnavailable; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// Waits for news, or for a moment. False: there will be none any more.
async fn changed(
    readiness: &mut watch::Receiver<Readiness>,
    unavailable: &mut watch::Receiver<bool>,
    due: Option<Instant>,
) -> bool {
    let moment = async {
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        told = readiness.changed() => told.is_ok(),
        told = unavailable.changed() => told.is_ok(),
        () = moment => true,
    }
}

/// Takes back what an agent said of a Node that is to be nobody's: the next network need not know of it.
///
/// # Errors
/// The API refuses.
pub(crate) async fn take_back(api: &Api<Node>, found: &Node) -> kube::Result<()> {
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ours = |reason: &str| ["DataPathMissing", "TunnelMissing"].contains(&reason);
    let mut stale = conditions.filter(|condition| {
        condition.type_ == NETWORK_UNAVAILABLE
            && condition.status == "True"
            && condition.reason.as_deref().is_some_and(ours)
    });
    if stale.next().is_none() {
        return Ok(());
    }
    let mut patch = patch(&Say::Available, Timestamp::now());
    let written = &mut patch["status"]["conditions"][0];
    (written["reason"], written["message"]) =
        (json!("HawserIsRemoved"), json!("Hawser was taken off this node"));
    let name = found.metadata.name.as_deref().unwrap_or_default();
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_has_a_time_as_kubernetes_reads_it_and_no_other_condition() {
        let patch = patch(&Say::Available, "2026-01-02T03:04:05.678Z".parse().unwrap());
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        let read: k8s_openapi::api::core::v1::NodeCondition =
            serde_json::from_value(conditions[0].clone()).unwrap();
        assert_eq!((read.type_.as_str(), read.status.as_str()), (NETWORK_UNAVAILABLE, "False"));
        assert_eq!(conditions[0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn true_is_said_of_what_does_not_mend_itself_and_false_once_pods_can_be_connected() {
        let short = BROKEN - Duration::from_secs(1);
        for broken in [Broken::Tunnel, Broken::DataPath { why: "no BPF file system".into() }] {
            for ready in [true, false] {
                let of = |unavailable, since| decide(unavailable, ready, Some((&broken, since)));
                assert_eq!(of(false, short), None, "it may mend itself");
                assert_eq!(of(false, BROKEN), Some(Say::Unavailable(broken.clone())));
                // Somebody says so already, and nobody contradicts while it is true.
                assert_eq!((of(true, short), of(true, BROKEN)), (None, None));
            }
        }
        assert_eq!(decide(true, true, None), Some(Say::Available));
        // An agent that is not ready for another reason, or one whose Node says nothing wrong.
        for (unavailable, ready) in [(true, false), (false, true), (false, false)] {
            assert_eq!(decide(unavailable, ready, None), None);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_reason_however_long_it_is() {
        let say = |broken| {
            patch(&Say::Unavailable(broken), Timestamp::UNIX_EPOCH)["status"]["conditions"][0].clone()
        };
        let tunnel = say(Broken::Tunnel);
        assert_eq!((&tunnel["status"], &tunnel["reason"]), (&json!("True"), &json!("TunnelMissing")));
        let long = say(Broken::DataPath { why: "ü".repeat(2000) });
        assert_eq!(long["reason"], "DataPathMissing");
        let message = long["message"].as_str().unwrap();
        assert!(message.len() <= MESSAGE && message.starts_with("no pod can be connected"), "{message}");
    }
}
