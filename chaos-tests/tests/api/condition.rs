//! `NetworkUnavailable`, as controllers of clouds set it: the agent says False once it is ready, touches no other condition and
//! makes none of its own accord.

use std::time::Duration;

use anyhow::Result;
use chaos_tests::Lab;
use chaos_tests::cluster::node_name;
use netlab::eventually;
use serde_json::{Value, json};

use crate::support::*;

fn conditions(lab: &Lab, node: u8) -> Vec<Value> {
    let object = lab.api().store().find("nodes", None, &node_name(node)).unwrap_or_default();
    object["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

fn condition(lab: &Lab, node: u8) -> Option<Value> {
    conditions(lab, node).into_iter().find(|condition| condition["type"] == "NetworkUnavailable")
}

/// As a cloud's controller does: True beside what the kubelet says.
fn unavailable(lab: &Lab, node: u8) -> Result<()> {
    let mut all = conditions(lab, node);
    all.retain(|condition| condition["type"] != "NetworkUnavailable");
    all.push(json!({
        "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "Node created without a route",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }));
    patch_status(lab, node, &json!({"status": {"conditions": all}}))
}

fn answered(lab: &Lab, node: u8, within: Duration) -> Result<()> {
    eventually(within, "the agent says that there is a network", || match condition(lab, node) {
        Some(now) if now["status"] == "False" && now["reason"] == "HawserIsReady" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    Ok(())
}

#[test]
fn a_clouds_network_unavailable_is_answered_when_the_agent_is_ready_and_no_other_condition_is_touched()
-> Result<()> {
    let mut lab = lab(2)?;
    assert_eq!(condition(&lab, 1), None, "the agent makes no condition of its own accord");
    let ready = conditions(&lab, 1);
    // While the agent runs: a controller comes late.
    unavailable(&lab, 1)?;
    answered(&lab, 1, SOON)?;
    let others: Vec<Value> = conditions(&lab, 1)
        .into_iter()
        .filter(|condition| condition["type"] != "NetworkUnavailable")
        .collect();
    assert_eq!(others, ready);
    assert_eq!(condition(&lab, 2), None, "another Node");
    // While no agent runs, nobody answers; the next one does, when it is ready.
    lab.node_mut(1).stop_agent()?;
    unavailable(&lab, 1)?;
    lab.node_mut(1).start_agent()?;
    answered(&lab, 1, UP)?;
    lab.node(1).ready().map_err(anyhow::Error::msg)?;
    lab.agents_were_refused_nothing()
}
