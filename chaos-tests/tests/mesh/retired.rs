//! Keys of long ago, announced again by somebody who may write where no admission policy looks.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::witness::{Witness, events, flowing, lossless};
use chaos_tests::{Lab, Node};
use kubeapi::Patch;
use netlab::eventually;
use serde_json::{Value, json};

use crate::psk::all_agreed;
use crate::rotation::{all_rotated, keys, request, rotating, said};
use crate::settled;

const ANNOTATION: &str = "hawser.dev/wireguard";

fn announced(lab: &Lab, node: u8) -> Result<String> {
    let object: Value = lab.api().store().get("nodes", None, &node_name(node)).map_err(|e| anyhow!("{e}"))?;
    Ok(object["metadata"]["annotations"][ANNOTATION].as_str().context("an announcement")?.to_owned())
}

fn slots(announcement: &str) -> Option<Value> {
    Some(serde_json::from_str::<Value>(announcement).ok()?["slots"].clone())
}

/// The keys that a node has for its only peer are these.
fn has(node: &Node, wanted: &[String; 2]) -> Result<()> {
    let peers = node.peers()?;
    let found: Vec<&str> = peers.iter().map(|peer| peer.public_key.as_str()).collect();
    ensure!(
        found.len() == 2 && wanted.iter().all(|key| found.contains(&key.as_str())),
        "{found:?}, not {wanted:?}"
    );
    Ok(())
}

#[test]
fn a_key_of_long_ago_is_refused_and_the_pair_talks_on() -> Result<()> {
    let mut lab = rotating("retired", 2, 120)?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    streams.extend(witness.streams(&b.namespace, &a.namespace, &a.ips)?);
    flowing(&streams, 20)?;
    // The word of a key for the next one is a pre-shared key that was agreed beside it.
    all_agreed(&lab, &[1, 2])?;
    let (old, text) = (keys(lab.node(2))?, announced(&lab, 2)?);
    request(&lab, 2, "once")?;
    all_rotated(&lab, &[2], std::slice::from_ref(&old))?;
    all_agreed(&lab, &[1, 2])?;
    let (new, present) = (keys(lab.node(2))?, announced(&lab, 2)?);
    // Who would put its own announcement back at once is away.
    lab.node_mut(2).kill_agent()?;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {ANNOTATION: text}}}));
    lab.api().store().patch("nodes", None, &node_name(2), &patch).map_err(|error| anyhow!("{error}"))?;
    let refused = |lab: &Lab| -> Result<String, String> {
        let seen = events(lab, "EpochWentBack").map_err(|error| format!("{error:#}"))?;
        let of_node = seen.iter().find(|event| {
            event["note"].as_str().or(event["message"].as_str()).is_some_and(|n| n.contains(&node_name(2)))
        });
        of_node.map(ToString::to_string).ok_or_else(|| format!("{seen:?}; {}", said(lab.node(1))))
    };
    eventually(Duration::from_secs(20), "an Event tells of node 2's replaced keys", || refused(&lab))?;
    has(lab.node(1), &new)?;
    flowing(&streams, 50)?;
    // An agent that starts now has never seen the true announcement, but for its file.
    lab.node_mut(1).kill_agent()?;
    lab.node_mut(1).start_agent()?;
    settled(lab.node(1), 0.0)?;
    has(lab.node(1), &new)?;
    flowing(&streams, 50)?;
    lab.node_mut(2).start_agent()?;
    eventually(Duration::from_secs(20), "node 2 announces its own keys again", || {
        let now = announced(&lab, 2).map_err(|error| format!("{error:#}"))?;
        if slots(&now) == slots(&present) { Ok(()) } else { Err(now) }
    })?;
    settled(lab.node(1), 0.0)?;
    has(lab.node(1), &new)?;
    flowing(&streams, 50)?;
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("0 lost, longest gap {gap:?}");
    Ok(())
}
