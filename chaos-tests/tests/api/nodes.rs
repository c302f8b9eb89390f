//! Nodes that lie or were tampered with: each costs no more than itself, is named with its field, and heals.

use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use chaos_tests::Lab;
use netlab::eventually;
use serde_json::{Value, json};

use crate::support::*;

const WIREGUARD: &str = "hawser.dev/wireguard";
const ENDPOINT: &str = "hawser.dev/endpoint";

/// A key as annotations write it.
fn key(byte: u8) -> String {
    base64::engine::general_purpose::STANDARD.encode([byte; 32])
}

/// Waits until node 1 has the problem and says so: in its log, its metrics, and an Event of its Node.
fn reported(lab: &Lab, code: &str, node: &str, words: &[&str]) -> Result<()> {
    let line = eventually(SOON, &format!("{code} {words:?} is reported"), || {
        let plan = plan(lab.node(1)).map_err(|error| format!("{error:#}"))?;
        let problems: Vec<String> = plan["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let fits = |text: &&String| {
            text.contains(&format!("node {node}:")) && words.iter().all(|word| text.contains(word))
        };
        problems.iter().find(fits).cloned().ok_or_else(|| format!("{problems:?}"))
    })?;
    eventually(SOON, "the metric shows it", || match problems(lab.node(1), code) {
        Ok(count) if count >= 1.0 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    assert!(lab.node(1).log("mesh-agent")?.contains(&line), "not in the log: {line}");
    if code == "KeyMissing" {
        // Every newcomer would be one at every other node.
        return Ok(());
    }
    evented(lab, code, &line)
}

/// Waits for an Event of that reason with that sentence.
fn evented(lab: &Lab, reason: &str, note: &str) -> Result<()> {
    // Sentences are cut to what an Event can hold.
    let note: String = note.chars().take(200).collect();
    eventually(SOON, &format!("an Event {reason}"), || {
        let events: Vec<Value> =
            lab.api().store().list("events.events.k8s.io", None).map_err(|error| error.to_string())?;
        let reasons = events.iter().filter(|event| event["reason"] == reason);
        let notes: Vec<&str> =
            reasons.filter_map(|event| event["note"].as_str().or(event["message"].as_str())).collect();
        if notes.iter().any(|text| text.contains(&note)) { Ok(()) } else { Err(format!("{notes:?}")) }
    })?;
    Ok(())
}

fn healed(lab: &Lab, code: &str) -> Result<()> {
    eventually(SOON, &format!("{code} is over"), || match problems(lab.node(1), code) {
        Ok(0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.await_peers(1, 2)
}

trait AwaitPeers {
    fn await_peers(&self, node: u8, nodes: usize) -> Result<()>;
}

impl AwaitPeers for Lab {
    /// Waits until a node has both keys of that many nodes as peers.
    fn await_peers(&self, node: u8, nodes: usize) -> Result<()> {
        eventually(SOON, "the peers are complete", || {
            let peers = self.node(node).peers().map_err(|error| format!("{error:#}"))?;
            if peers.len() == nodes * 2 { Ok(()) } else { Err(format!("{} peers", peers.len())) }
        })?;
        Ok(())
    }
}

#[test]
fn an_annotation_or_field_that_cannot_be_costs_its_own_node_alone_and_heals() -> Result<()> {
    let mut lab = lab(3)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    // Its agent would put the annotation right within milliseconds; its tunnel runs on.
    lab.node_mut(3).kill_agent()?;
    let good = annotation(&lab, 3, WIREGUARD).unwrap();
    let of_two: Value = serde_json::from_str(&annotation(&lab, 2, WIREGUARD).unwrap())?;
    let with = |path: &str, value: Value| {
        let mut wrong: Value = serde_json::from_str(&good).unwrap();
        *wrong.pointer_mut(path).unwrap() = value;
        wrong.to_string()
    };
    let malformed = "AnnouncementMalformed";
    let duplicate = of_two["slots"][0]["publicKey"].clone();
    let annotations: Vec<(&str, String, Vec<&str>)> = vec![
        (malformed, "not JSON".into(), vec!["hawser.dev/wireguard", "restart its agent"]),
        (malformed, format!("{{\"x\":\"{}\"}}", "y".repeat(5000)), vec!["hawser.dev/wireguard", "4096"]),
        (malformed, with("/slots/0/publicKey", json!(key(0))), vec!["slots[0].publicKey"]),
        (malformed, with("/slots/1/publicKey", json!(key_of_low_order())), vec!["slots[1].publicKey"]),
        (malformed, with("/slots/0/port", json!(0)), vec!["slots[0].port", "0"]),
        (malformed, with("/slots/1/port", json!(65_536)), vec!["slots[1].port", "65536"]),
        (malformed, with("/slots/0/epoch", json!(-1)), vec!["slots[0].epoch"]),
        (malformed, with("/v", json!(2)), vec!["hawser.dev/wireguard", "v", "2"]),
        (malformed, with("/endpoints", json!(["127.0.0.1"])), vec!["endpoints[0]"]),
        (malformed, with("/slots", json!([])), vec!["slots"]),
        ("KeyDuplicated", with("/slots/0/publicKey", duplicate), vec!["node node-2", "delete the key file"]),
        ("KeyMissing", String::new(), vec!["no annotation hawser.dev/wireguard"]),
    ];
    for (code, text, words) in annotations {
        let value = if text.is_empty() { Value::Null } else { json!(text) };
        annotate(&lab, 3, WIREGUARD, &value)?;
        reported(&lab, code, "node-3", &words)?;
        lab.await_peers(1, 1)?;
        annotate(&lab, 3, WIREGUARD, &json!(good))?;
        healed(&lab, code)?;
    }
    for (text, words) in [
        ("somewhere", vec!["hawser.dev/endpoint", "somewhere", "addresses separated by commas"]),
        ("192.0.2.3:51880", vec!["192.0.2.3:51880"]),
        ("224.0.0.1", vec!["224.0.0.1", "not a unicast address"]),
        ("", vec!["hawser.dev/endpoint"]),
    ] {
        annotate(&lab, 3, ENDPOINT, &json!(text))?;
        reported(&lab, "EndpointMalformed", "node-3", &words)?;
        // The announcement still says where it is.
        lab.await_peers(1, 2)?;
        annotate(&lab, 3, ENDPOINT, &Value::Null)?;
        healed(&lab, "EndpointMalformed")?;
    }
    fields(&lab)?;
    steady.end()
}

/// The wrong CIDRs and addresses of node 3, the youngest.
fn fields(lab: &Lab) -> Result<()> {
    let cidrs = lab.pod_cidrs(3);
    for (code, wrong, words) in [
        ("CidrOutsidePrefixes", "10.99.3.0/24", vec!["10.99.3.0/24", "outside podCIDRs", "10.244.0.0/16"]),
        ("CidrClaimedTwice", "10.244.2.128/25", vec!["10.244.2.128/25", "10.244.2.0/24", "node-2"]),
        ("CidrTooSmall", "10.244.77.0/31", vec!["10.244.77.0/31", "/30"]),
        ("FieldMalformed", "10.244.3.0/33", vec!["spec.podCIDRs", "10.244.3.0/33"]),
    ] {
        remake(lab, 3, &json!({"podCIDR": wrong, "podCIDRs": [wrong, cidrs[1]]}))?;
        reported(lab, code, "node-3", &words)?;
        // Its other CIDR counts, so it stays a peer.
        eventually(SOON, "the peer has lost that prefix alone", || {
            let peers = lab.node(1).peers().map_err(|error| format!("{error:#}"))?;
            let with = |prefix: &str| peers.iter().filter(|peer| peer.allowed_ips.contains(prefix)).count();
            let seen = (with(&cidrs[0]), with(&cidrs[1]), with("10.244.2.0/24"), peers.len());
            if seen == (0, 2, 2, 4) { Ok(()) } else { Err(format!("{seen:?}")) }
        })?;
        remake(lab, 3, &json!({"podCIDR": cidrs[0], "podCIDRs": cidrs}))?;
        healed(lab, code)?;
    }
    for (code, wrong, words) in [
        ("AddressClaimedTwice", "10.244.9.9", vec!["10.244.9.9", "the pods in 10.244.0.0/16"]),
        ("AddressClaimedTwice", "192.0.2.2", vec!["192.0.2.2", "node node-2"]),
        ("AddressUnusable", "127.0.0.1", vec!["127.0.0.1", "not a unicast address"]),
        ("AddressUnusable", "0.0.0.0", vec!["0.0.0.0", "not a unicast address"]),
        ("FieldMalformed", "192.0.2", vec!["status.addresses", "192.0.2"]),
    ] {
        let right = lab.api().store().find("nodes", None, "node-3").unwrap()["status"]["addresses"].clone();
        let mut changed = right.clone();
        changed[1]["address"] = json!(wrong);
        patch_status(lab, 3, &json!({"status": {"addresses": changed}}))?;
        reported(lab, code, "node-3", &words)?;
        let peers = lab.node(1).peers()?;
        let two = peers.iter().filter(|peer| peer.allowed_ips.contains("192.0.2.2/32")).count();
        assert_eq!(two, 2, "node-2 lost its address to {wrong}");
        patch_status(lab, 3, &json!({"status": {"addresses": right}}))?;
        healed(lab, code)?;
    }
    Ok(())
}

/// Deletes a Node object and makes it again with this spec: a Node's pod CIDRs cannot be changed.
fn remake(lab: &Lab, node: u8, spec: &Value) -> Result<()> {
    let (store, name) = (lab.api().store(), chaos_tests::cluster::node_name(node));
    let old = store.find("nodes", None, &name).unwrap();
    store.delete_now("nodes", None, &name).map_err(|e| anyhow::anyhow!("{e}"))?;
    let annotations = old["metadata"]["annotations"].clone();
    let fresh = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": annotations},
        "spec": spec, "status": old["status"],
    });
    store.create(&fresh).map(|_: Value| ()).map_err(|e| anyhow::anyhow!("{e}"))
}

/// A point whose products are all zero (RFC 7748, section 6.1).
fn key_of_low_order() -> String {
    let bytes: [u8; 32] = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ];
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn our_annotation_that_an_administrator_changed_is_written_again_and_reported() -> Result<()> {
    let lab = lab(3)?;
    let steady = Steady::begin(&lab, 1, 3)?;
    let good = annotation(&lab, 2, WIREGUARD).unwrap();
    let mut other: Value = serde_json::from_str(&good)?;
    other["slots"][0]["publicKey"] = json!(key(7));
    let before = lab.node(2).metric("hawser_announcement_overwritten_total")?;
    let wrongs = [json!(other.to_string()), json!("{}"), json!(""), Value::Null, json!(other.to_string())];
    let mut times = 0.0;
    for wrong in wrongs {
        annotate(&lab, 2, WIREGUARD, &wrong)?;
        let again = eventually(SOON, "it is written again", || match annotation(&lab, 2, WIREGUARD) {
            Some(text) if text == good => Ok(std::time::Instant::now()),
            other => Err(format!("{other:?}")),
        })?;
        times += 1.0;
        eventually(SOON, "it is counted", || {
            match lab.node(2).metric("hawser_announcement_overwritten_total") {
                Ok(count) if count >= before + times => Ok(()),
                other => Err(format!("{other:?} of {times}, written again {:?} ago", again.elapsed())),
            }
        })?;
        eventually(SOON, "the others have it back", || {
            let peers = lab.node(1).peers().map_err(|error| format!("{error:#}"))?;
            if peers.len() == 4 { Ok(()) } else { Err(format!("{} peers", peers.len())) }
        })?;
        eventually(SOON, "the problem is over", || match problems(lab.node(2), "AnnouncementOverwritten") {
            Ok(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    let sentence = "annotation hawser.dev/wireguard was overwritten by somebody else";
    assert!(lab.node(2).log("mesh-agent")?.contains(sentence));
    evented(&lab, "AnnouncementOverwritten", sentence)?;
    lab.await_mesh(UP)?;
    steady.end()
}

#[test]
fn somebody_who_overwrites_our_annotation_without_end_does_not_make_us_a_flood() -> Result<()> {
    let lab = lab(2)?;
    let good = annotation(&lab, 2, WIREGUARD).unwrap();
    let faults = lab.api().faults();
    faults.reset_counters();
    let begun = std::time::Instant::now();
    let mut fights = 0_u64;
    while begun.elapsed() < Duration::from_secs(8) {
        annotate(&lab, 2, WIREGUARD, &json!(format!("{{\"fight\":{fights}}}")))?;
        fights += 1;
        // The next blow falls as soon as we have answered the last, or after a moment.
        let answered = || match annotation(&lab, 2, WIREGUARD) {
            Some(text) if text == good => Ok(()),
            _ => Err("not yet"),
        };
        drop(eventually(Duration::from_millis(500), "answered", answered));
    }
    let patches = faults.requests(kubeapi::Verb::Patch, "nodes");
    println!("{fights} blows, {patches} answers in 8 s");
    assert!(patches <= 8, "{patches} answers to {fights} blows in 8 s");
    eventually(FOLLOW, "ours is the last word", || match annotation(&lab, 2, WIREGUARD) {
        Some(text) if text == good => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.await_mesh(UP)
}

#[test]
fn a_node_object_that_is_deleted_and_made_again_brings_its_node_back_with_a_new_pod_of_its_agent()
-> Result<()> {
    let mut lab = lab(3)?;
    let steady = Steady::begin(&lab, 1, 3)?;
    let object = lab.api().store().find("nodes", None, "node-2").unwrap();
    lab.api().store().delete_now("nodes", None, "node-2").map_err(|e| anyhow::anyhow!("{e}"))?;
    lab.await_peers(1, 1)?;
    eventually(SOON, "its agent says what is missing", || match lab.node(2).ready() {
        Err(why) if why.contains("there is no Node object node-2") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let fresh = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "spec": object["spec"], "status": object["status"],
    });
    let _: Value = lab.api().store().create(&fresh).map_err(|e| anyhow::anyhow!("{e}"))?;
    // The token is of the Node that was deleted: its keys are not written on another one, and the log says what helps.
    eventually(SOON, "its agent says why it is refused", || {
        let log = lab.node(2).log("mesh-agent").map_err(|error| error.to_string())?;
        let told = |line: &str| {
            line.contains("is of an earlier Node node-2") && line.contains("delete the pod of mesh-agent")
        };
        if log.lines().any(told) { Ok(()) } else { Err("no word of it".to_owned()) }
    })?;
    assert_eq!(annotation(&lab, 2, WIREGUARD), None, "written with a token of an earlier Node");
    lab.replace_agent_pod(2)?;
    lab.await_mesh(UP)?;
    let overwritten = lab.node(2).metric("hawser_announcement_overwritten_total")?;
    assert_eq!(overwritten, 0.0, "a new Node object is nobody's attack");
    steady.end()
}
