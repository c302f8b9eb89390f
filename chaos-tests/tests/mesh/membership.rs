//! Nodes come, go, come back as others, and claim what is not theirs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, data_path, difference, events, flowing, lossless};
use chaos_tests::{Lab, Node};
use kubeapi::Patch;
use netlab::eventually;
use serde_json::{Value, json};

use crate::{MESH, kind, lab, none, options, settled};

/// Public keys of both slots.
fn keys(node: &Node) -> Result<Vec<String>> {
    let text = node.sh("wg show all public-key")?;
    Ok(text.lines().filter_map(|line| line.split('\t').nth(1)).map(str::to_owned).collect())
}

fn everybody(lab: &Lab, witness: &mut Witness, pods: &[&chaos_tests::Pod]) -> Result<()> {
    let parties = pods.iter().map(|pod| Party::pod(pod)).collect::<Result<Vec<_>>>()?;
    for (i, from) in parties.iter().enumerate() {
        for (j, to) in parties.iter().enumerate() {
            if i != j {
                none(&witness.failures(from, to, 5))?;
            }
        }
    }
    ensure!(!lab.nodes.is_empty(), "a lab has nodes");
    Ok(())
}

#[test]
fn others_follow_a_node_that_leaves_and_comes_back_with_new_keys_and_address() -> Result<()> {
    let mut lab = lab(options("member", 2))?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    let without: Vec<Vec<String>> = lab.nodes.iter().map(data_path).collect::<Result<_>>()?;

    let begun = Instant::now();
    lab.add_node(3)?;
    lab.await_settled(MESH)?;
    let joined = begun.elapsed();
    let c = lab.add_pod(3, "c")?;
    everybody(&lab, &mut witness, &[&a, &b, &c])?;
    let old_keys = keys(lab.node(3))?;
    ensure!(old_keys.len() == 2, "two slots: {old_keys:?}");

    let begun = Instant::now();
    drop(c);
    lab.remove_node(3)?;
    eventually(Duration::from_secs(10), "the others forget node 3", || {
        for (node, without) in lab.nodes.iter().zip(&without) {
            let now = data_path(node).map_err(|error| format!("{error:#}"))?;
            // The sides' own endpoints may have been learnt meanwhile; nothing may be left or lost.
            let left = difference(without, &now);
            if !left.is_empty() {
                return Err(format!("{}: {}", node.name, left.join("; ")));
            }
        }
        Ok(())
    })?;
    let forgotten = begun.elapsed();

    std::fs::remove_dir_all(lab.disk_of(3)).context("node 3's disk")?;
    lab.place(3, 33);
    let begun = Instant::now();
    lab.add_node(3)?;
    lab.await_settled(MESH)?;
    let back = begun.elapsed();
    let d = lab.add_pod(3, "d")?;
    everybody(&lab, &mut witness, &[&a, &b, &d])?;
    let new_keys = keys(lab.node(3))?;
    ensure!(new_keys.iter().all(|key| !old_keys.contains(key)), "a new disk has new keys");
    for node in &lab.nodes[..2] {
        let peers = node.peers()?;
        ensure!(!peers.iter().any(|peer| old_keys.contains(&peer.public_key)), "{}: an old key", node.name);
        let theirs: Vec<_> = peers.iter().filter(|peer| new_keys.contains(&peer.public_key)).collect();
        ensure!(theirs.len() == 2, "{}: both new keys", node.name);
        ensure!(theirs.iter().all(|p| p.endpoint.starts_with("192.0.2.33:")), "{}: {theirs:?}", node.name);
    }
    let gap = lossless(streams)?;
    let frames = witness.clean(&lab)?;
    println!(
        "joined after {joined:?}, forgotten after {forgotten:?}, back with new keys and address after {back:?}; the \
         others' streams lost 0, longest gap {gap:?}; {frames} frames, none in clear"
    );
    Ok(())
}

#[test]
fn the_administrators_endpoint_leads_to_a_node_whose_own_address_does_not() -> Result<()> {
    let mut lab = lab(options("nat", 2))?;
    let (v4, v6) = lab.underlay_of(3);
    // What the kubelet behind a NAT reports; the world drops it.
    lab.add_node_as(3, |node| {
        node["status"]["addresses"] = json!([
            {"type": "InternalIP", "address": "198.51.100.3"},
            {"type": "InternalIP", "address": "2001:db8:bad::3"},
        ]);
        node["metadata"]["annotations"] = json!({"hawser.dev/endpoint": format!("{v4}, {v6}")});
    })?;
    let mut witness = Witness::new(&lab)?;
    lab.await_settled(MESH)?;
    let pods = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?, lab.add_pod(3, "c")?];
    everybody(&lab, &mut witness, &pods.iter().collect::<Vec<_>>())?;
    for peer in lab.node(3).peers()? {
        ensure!(peer.keepalive == Some(25), "a node behind NAT keeps its mapping alive: {peer:?}");
    }
    let behind = keys(lab.node(3))?;
    for node in &lab.nodes[..2] {
        for peer in node.peers()? {
            ensure!(peer.keepalive.is_none(), "{}: nobody else sends keepalives: {peer:?}", node.name);
            if behind.contains(&peer.public_key) {
                ensure!(peer.endpoint.starts_with(&format!("{v4}:")), "{}: {peer:?}", node.name);
            }
        }
    }
    let frames = witness.clean(&lab)?;
    println!("endpoint {v4} instead of 198.51.100.3, keepalive 25 s; {frames} frames, none in clear");
    Ok(())
}

#[test]
fn who_claims_what_another_node_has_gets_nothing_and_harms_nobody() -> Result<()> {
    let lab = lab(options("claim", 2))?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    streams.extend(witness.streams(&lab.node(1).namespace, &b.namespace, &b.ips)?);
    flowing(&streams, 20)?;
    settled(lab.node(1), 2.0)?;
    let before = data_path(lab.node(1))?;
    let victim: Value = lab.api().store().get("nodes", None, &node_name(2))?;
    let key = victim["metadata"]["annotations"]["hawser.dev/wireguard"].clone();
    ensure!(key.is_string(), "node 2 has announced its keys: {victim}");
    // A name that sorts before the victim's: only age counts. Creation times have whole seconds.
    let created = victim["metadata"]["creationTimestamp"].clone();
    let thief = |name: &str, cidrs: Value, address: &str, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    };
    eventually(Duration::from_secs(5), "a second has passed since node 2 was created", || {
        let probe = thief("clock", json!([]), "192.0.2.99", json!({}));
        let now: Value = lab.api().store().create(&probe).map_err(|error| error.to_string())?;
        lab.api().store().delete_now("nodes", None, "clock").map_err(|error| error.to_string())?;
        let now = now["metadata"]["creationTimestamp"].clone();
        if now == created { Err(now.to_string()) } else { Ok(()) }
    })?;
    let mine = json!(["10.244.50.0/24"]);
    // Keys of its own, to be called at node 2.
    let mut calls: Value = serde_json::from_str(key.as_str().context("node 2 has announced its keys")?)?;
    calls["endpoints"] = json!(["192.0.2.2"]);
    let own =
        ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAk=", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABA="];
    for (slot, key) in own.iter().enumerate() {
        calls["slots"][slot]["publicKey"] = json!(key);
    }
    let thieves = [
        (
            "a-call",
            thief("a-call", mine.clone(), "192.0.2.62", json!({"hawser.dev/wireguard": calls.to_string()})),
            "EndpointOfAnother",
        ),
        (
            "a-cidr",
            thief("a-cidr", json!(["10.244.2.128/25", "fd00:10:244:2::/64"]), "192.0.2.60", json!({})),
            "CidrClaimedTwice",
        ),
        ("a-address", thief("a-address", mine.clone(), "192.0.2.2", json!({})), "AddressClaimedTwice"),
        ("a-key", thief("a-key", mine, "192.0.2.61", json!({"hawser.dev/wireguard": key})), "KeyDuplicated"),
    ];
    for (name, object, code) in thieves {
        let begun = Instant::now();
        let _: Value = lab.api().store().create(&object)?;
        let problem = kind("hawser_problems", code);
        let count = |wanted: bool| {
            eventually(Duration::from_secs(10), &format!("{problem} follows"), || {
                let values: Vec<f64> =
                    lab.nodes.iter().filter_map(|node| node.metric(&problem).ok()).collect();
                let right = values.len() == 2 && values.iter().all(|value| (*value >= 1.0) == wanted);
                if right { Ok(()) } else { Err(format!("{values:?}")) }
            })
        };
        count(true)?;
        let took = begun.elapsed();
        for node in &lab.nodes {
            let log = node.log("mesh-agent")?;
            ensure!(
                log.lines().any(|l| l.contains(name) && l.contains(code)),
                "{}: {code} of {name} is not in the log",
                node.name
            );
        }
        eventually(Duration::from_secs(15), "an Event says so", || {
            let seen = events(&lab, code).map_err(|error| error.to_string())?;
            let names = |e: &Value| e["message"].as_str().unwrap_or_default().contains(name);
            if seen.iter().any(names) { Ok(()) } else { Err(format!("{} of {code}", seen.len())) }
        })?;
        flowing(&streams, 20)?;
        for node in &lab.nodes {
            let peers = node.peers()?;
            let (strangers, others): (Vec<_>, Vec<_>) =
                peers.iter().partition(|peer| own.contains(&peer.public_key.as_str()));
            ensure!(others.len() == 2, "{}: a thief without a key of its own is nobody's peer", node.name);
            ensure!(strangers.len() == if code == "EndpointOfAnother" { 2 } else { 0 }, "{strangers:?}");
            let called = strangers.iter().find(|peer| peer.endpoint.starts_with("192.0.2.2:"));
            ensure!(called.is_none(), "{}: called at the address of node 2: {called:?}", node.name);
        }
        lab.api().store().patch(
            "nodes",
            None,
            name,
            &Patch::Merge(json!({"metadata": {"labels": {"seen": "yes"}}})),
        )?;
        lab.api().store().delete_now("nodes", None, name)?;
        count(false)?;
        println!("{code}: reported by both nodes after {took:?}, gone with its Node");
    }
    settled(lab.node(1), 2.0)?;
    none(&difference(&before, &data_path(lab.node(1))?))?;
    let gap = lossless(streams)?;
    let frames = witness.clean(&lab)?;
    println!("streams of the victim lost 0, longest gap {gap:?}; {frames} frames, none in clear");
    Ok(())
}
