//! Post-quantum pre-shared keys: agreed by every pair for both slots, renewed, and required where an administrator says so.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, drops, events, flowing, lossless};
use chaos_tests::{Lab, LabOptions, Node, Pod};
use kubeapi::Patch;
use netlab::eventually;
use serde_json::{Value, json};

use crate::rotation::{all_rotated, everywhere, keys, request, said};
use crate::{MESH, none, options, settled};

/// For all pairs to have their keys, on a busy machine.
const AGREED: Duration = Duration::from_secs(90);
/// For one datagram.
const SHORT: Duration = Duration::from_millis(300);

/// A lab with lines of configuration. Those of rotations look for drift once a minute: what happens by itself happens at once.
pub(super) fn started(name: &str, nodes: u8, drift_interval: u64, config: &str) -> Result<Lab> {
    let kernel_wireguard = std::env::var_os("HAWSER_KERNEL_WIREGUARD").is_some();
    let options =
        LabOptions { config: config.to_owned(), drift_interval, kernel_wireguard, ..options(name, nodes) };
    let lab = Lab::up(options)?;
    lab.await_mesh(MESH)?;
    Ok(lab)
}

fn shell(node: &Node, script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    node.run(command)
}

/// The pre-shared keys of a device by the public keys of its peers.
pub(super) fn on_device(node: &Node, device: &str) -> Result<BTreeMap<String, String>> {
    let text = node.sh(&format!("wg show {device} preshared-keys"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(a, b)| (a.into(), b.trim().into()))
        .collect())
}

/// The pre-shared keys of all pairs and slots: the same on both sides, never twice, and seen at work.
fn agreed(lab: &Lab, nodes: &[u8]) -> Result<BTreeSet<String>, String> {
    let all = || -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for (slot, device) in ["hawser0", "hawser1"].into_iter().enumerate() {
            for (place, a) in nodes.iter().enumerate() {
                for b in &nodes[place + 1..] {
                    let (a, b) = (lab.node(*a), lab.node(*b));
                    let of = |node: &Node, peer: &Node| -> Result<Option<String>> {
                        Ok(on_device(node, device)?.get(&keys(peer)?[slot]).cloned())
                    };
                    let (here, there) = (of(a, b)?, of(b, a)?);
                    let key = here.clone().filter(|key| key != "(none)" && here == there);
                    let said = || format!("{} says: {}; {} says: {}", a.name, said(a), b.name, said(b));
                    let Some(key) = key else {
                        anyhow::bail!(
                            "{device} of {} and {}: {here:?}, {there:?}; {}",
                            a.name,
                            b.name,
                            said()
                        );
                    };
                    ensure!(found.insert(key), "{device} of {} and {}: a key twice", a.name, b.name);
                }
            }
        }
        for node in nodes {
            let open = lab.node(*node).metric("hawser_preshared_keys{kind=\"open\"}")?;
            ensure!(open == 2.0 * (nodes.len() - 1) as f64, "node {node}: {open} seen at work");
        }
        Ok(found)
    };
    all().map_err(|error| format!("{error:#}"))
}

pub(super) fn all_agreed(lab: &Lab, nodes: &[u8]) -> Result<(BTreeSet<String>, Duration)> {
    let begun = Instant::now();
    let found = eventually(AGREED, "all pairs have their keys", || agreed(lab, nodes))?;
    Ok((found, begun.elapsed()))
}

#[test]
fn every_pair_agrees_on_keys_for_both_slots_and_renews_them_and_no_packet_is_lost() -> Result<()> {
    let nodes = [1, 2, 3];
    let lab = started("psk", 3, 60, "rotation:\n  quietSeconds: 2\n  deadlineSeconds: 120\n")?;
    let pods = nodes.iter().map(|n| lab.add_pod(*n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?;
    let streams = everywhere(&lab, &mut witness, &pods)?;
    let begun = Instant::now();
    let (first, took) = all_agreed(&lab, &nodes)?;
    println!("{} keys agreed after {took:?}", first.len());
    flowing(&streams, 20)?;
    println!("rotation begins {:.1?} after the streams", begun.elapsed());
    let old = nodes.iter().map(|n| keys(lab.node(*n))).collect::<Result<Vec<_>>>()?;
    for node in nodes {
        request(&lab, node, "renew")?;
    }
    let rotated = all_rotated(&lab, &nodes, &old)?;
    let (second, took) = all_agreed(&lab, &nodes)?;
    println!("all WireGuard keys replaced after {rotated:?}, {} keys agreed {took:?} later", second.len());
    ensure!(first.is_disjoint(&second), "a key has outlived the keys that it belonged to");
    flowing(&streams, 50)?;
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let places = lab.nodes.iter().map(|node| &node.namespace).chain(pods.iter().map(|pod| &pod.namespace));
    let gap = lossless(streams).with_context(|| drops(places))?;
    let frames = witness.clean(&lab)?;
    for node in nodes {
        let plan = lab.node(node).http(51891, "/debug/plan")?;
        let log = lab.node(node).log("mesh-agent")?;
        let told = first.iter().chain(&second).find(|key| plan.contains(*key) || log.contains(*key));
        ensure!(told.is_none(), "node {node} tells a secret");
        let files = shell(lab.node(node), "stat -c '%a %n' /var/lib/hawser/psk /var/lib/hawser/psk/*.psk")?;
        let wide: Vec<&str> = files
            .lines()
            .filter(|line| !line.starts_with(['6', '7']) || !line[1..].starts_with("00"))
            .collect();
        ensure!(files.lines().count() == 5 && wide.is_empty(), "{files}");
    }
    println!("{sent} records, 0 lost, longest gap {gap:?}; {frames} frames, none in clear");
    Ok(())
}

#[test]
fn agents_that_are_killed_at_every_change_of_their_keys_files_agree_all_the_same() -> Result<()> {
    let mut lab = started("pskkill", 2, 60, "rotation:\n  quietSeconds: 2\n  deadlineSeconds: 120\n")?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    all_agreed(&lab, &[1, 2])?;
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    streams.extend(witness.streams(&b.namespace, &a.namespace, &a.ips)?);
    flowing(&streams, 20)?;
    let old = [keys(lab.node(1))?, keys(lab.node(2))?];
    request(&lab, 1, "once")?;
    // Everything but the secrets.
    let state = |lab: &Lab, node: u8| {
        shell(lab.node(node), "grep -v ^psk /var/lib/hawser/psk/*.psk").unwrap_or_default()
    };
    let mut states: [BTreeSet<String>; 2] = [BTreeSet::new(), BTreeSet::new()];
    let mut kills = 0;
    eventually(
        Duration::from_secs(180),
        "keys are renewed, agents killed at every change of the files",
        || {
            for node in [1, 2] {
                let now = state(&lab, node);
                let seen = &mut states[usize::from(node) - 1];
                let known = seen.is_empty();
                if seen.insert(now) && !known {
                    kills += 1;
                    let node = lab.node_mut(node);
                    node.kill_agent()
                        .and_then(|()| node.start_agent())
                        .map_err(|error| format!("{error:#}"))?;
                }
            }
            let new = keys(lab.node(1)).map_err(|error| format!("{error:#}"))?;
            if new.iter().any(|key| old[0].contains(key)) {
                return Err(said(lab.node(1)));
            }
            agreed(&lab, &[1, 2]).map(drop)
        },
    )?;
    println!("{kills} agents killed");
    ensure!(kills >= 4, "{states:#?}");
    flowing(&streams, 50)?;
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("0 lost, longest gap {gap:?}");
    Ok(())
}

/// Restarts a node's agent with another mode.
fn set_mode(lab: &mut Lab, node: u8, mode: &str) -> Result<()> {
    let node = lab.node_mut(node);
    node.kill_agent()?;
    shell(node, &format!("sed -i 's/mode: .*/mode: {mode}/' /etc/hawser/config.yaml"))?;
    node.start_agent()?;
    settled(node, 2.0)
}

/// Nothing passes between the two pods, either way.
fn apart(witness: &mut Witness, a: &Pod, b: &Pod) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        for ip in &to.ips {
            ensure!(
                witness.knock(&from.namespace, *ip, SHORT).is_err(),
                "{} has reached {}",
                from.name,
                to.name
            );
        }
    }
    Ok(())
}

#[test]
fn where_keys_are_required_no_pod_is_reached_before_both_sides_have_seen_one_at_work() -> Result<()> {
    let mut lab = started("pskreq", 2, 1, "postQuantum:\n  mode: \"off\"\n")?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let (pa, pb) = (Party::pod(&a)?, Party::pod(&b)?);
    none(&witness.failures(&pa, &pb, 3))?;
    for node in [1, 2] {
        for device in ["hawser0", "hawser1"] {
            let found = on_device(lab.node(node), device)?;
            ensure!(found.values().all(|key| key == "(none)"), "off: {found:?}");
        }
    }

    // One insists, the other takes no part: no pods' traffic, and both nodes are named.
    set_mode(&mut lab, 1, "require")?;
    eventually(Duration::from_secs(20), "an Event tells of the conflict", || {
        let seen = events(&lab, "PostQuantumModeConflict").map_err(|error| format!("{error:#}"))?;
        let text = format!("{seen:?}");
        if text.contains(&node_name(1)) && text.contains(&node_name(2)) { Ok(()) } else { Err(text) }
    })?;
    apart(&mut witness, &a, &b)?;

    // Both would, but cannot agree.
    let block =
        "table inet away { chain in { type filter hook input priority -400; tcp dport 51892 drop; }; }";
    for node in [1, 2] {
        lab.node(node).write_file("/tmp/away.nft", block)?;
        lab.node(node).sh("nft -f /tmp/away.nft")?;
    }
    set_mode(&mut lab, 2, "require")?;
    for _ in 0..3 {
        settled(lab.node(1), 1.0)?;
        apart(&mut witness, &a, &b)?;
    }

    for node in [1, 2] {
        lab.node(node).sh("nft delete table inet away")?;
    }
    let begun = Instant::now();
    eventually(AGREED, "the pods talk", || {
        let failures = witness.failures(&pa, &pb, 1);
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })?;
    let talked = begun.elapsed();
    for node in [1, 2] {
        let sessions = [on_device(lab.node(node), "hawser0")?, on_device(lab.node(node), "hawser1")?];
        ensure!(sessions.iter().any(|keys| keys.values().all(|key| key != "(none)")), "{sessions:?}");
    }
    all_agreed(&lab, &[1, 2])?;
    none(&witness.failures(&pb, &pa, 3))?;
    let frames = witness.clean(&lab)?;
    println!("pods talk {talked:?} after the exchange was let through; {frames} frames, none in clear");
    Ok(())
}

/// Makes a device's only peer anew with this pre-shared key, by `wg` alone: its sessions are over.
fn peer_anew(node: &Node, device: &str, psk: &str) -> Result<()> {
    node.write_file("/tmp/by-hand.psk", psk)?;
    let script = format!(
        "set -e
        peer=$(wg show {device} peers)
        endpoint=$(wg show {device} endpoints | cut -f2)
        allowed=$(wg show {device} allowed-ips | cut -f2 | tr ' ' ,)
        wg set {device} peer \"$peer\" remove
        wg set {device} peer \"$peer\" preshared-key /tmp/by-hand.psk endpoint \"$endpoint\" allowed-ips \"$allowed\""
    );
    shell(node, &script)?;
    Ok(())
}

/// Seconds of Unix time of each device's latest handshake, 0: none since its peer was made.
fn handshakes(node: &Node) -> Result<Vec<u64>> {
    let peers = node.peers()?;
    Ok(peers.iter().map(|peer| peer.latest_handshake).collect())
}

/// Sessions are made with what was agreed: without agents, by `wg` alone, and nothing else differs between the two halves.
#[test]
fn a_key_that_is_changed_by_hand_on_one_side_ends_the_next_handshake() -> Result<()> {
    const OTHER: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const DEVICES: [&str; 2] = ["hawser0", "hawser1"];
    let mut lab = started("pskhand", 2, 1, "")?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let (pa, pb) = (Party::pod(&a)?, Party::pod(&b)?);
    all_agreed(&lab, &[1, 2])?;
    none(&witness.failures(&pa, &pb, 3))?;
    // Who would mend it.
    for node in [1, 2] {
        lab.node_mut(node).stop_agent()?;
    }
    let right = DEVICES.map(|device| on_device(lab.node(2), device));
    let right = right.into_iter().map(|keys| keys?.into_values().next().context("a peer"));
    let right: Vec<String> = right.collect::<Result<_>>()?;
    let set = |lab: &Lab, keys: [&str; 2]| {
        DEVICES.iter().zip(keys).try_for_each(|(device, key)| peer_anew(lab.node(2), device, key))
    };
    let talk = |witness: &mut Witness| {
        eventually(AGREED, "the pods talk", || {
            // From node 2, which has no session and asks for one.
            let failures = [witness.failures(&pb, &pa, 1), witness.failures(&pa, &pb, 1)].concat();
            if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
        })
    };

    set(&lab, [OTHER, OTHER])?;
    // Longer than two tries of a handshake (REKEY_TIMEOUT 5 s).
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        apart(&mut witness, &b, &a)?;
    }
    let none_yet = handshakes(lab.node(2))?;
    ensure!(none_yet.len() == 2 && none_yet.iter().all(|at| *at == 0), "a handshake: {none_yet:?}");
    // The same by hand with the right ones: a handshake, and traffic.
    set(&lab, [&right[0], &right[1]])?;
    talk(&mut witness)?;
    let one = handshakes(lab.node(2))?;
    ensure!(one.iter().any(|at| *at > 0), "no handshake: {one:?}");
    // And agents do so themselves.
    set(&lab, [OTHER, OTHER])?;
    apart(&mut witness, &b, &a)?;
    for node in [1, 2] {
        lab.node_mut(node).start_agent()?;
    }
    talk(&mut witness)?;
    all_agreed(&lab, &[1, 2])?;
    let frames = witness.clean(&lab)?;
    println!(
        "other keys: no handshake in {:?}; the right ones: talked; {frames} frames, none in clear",
        begun.elapsed()
    );
    Ok(())
}

/// What a node announces, as it stands in its annotation.
fn annotation(lab: &Lab, node: u8) -> Result<String> {
    let object: Value = lab.api().store().get("nodes", None, &node_name(node)).map_err(|e| anyhow!("{e}"))?;
    let text = object["metadata"]["annotations"]["hawser.dev/wireguard"].as_str();
    Ok(text.context("an announcement")?.to_owned())
}

#[test]
fn a_false_announcement_costs_a_pair_its_keys_for_no_longer_than_it_stands() -> Result<()> {
    let mut lab = started("pskfalse", 2, 1, "")?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let (before, _) = all_agreed(&lab, &[1, 2])?;
    let mut witness = Witness::new(&lab)?;
    // Somebody writes other epochs into node 2's announcement while its agent is away to correct it.
    lab.node_mut(2).kill_agent()?;
    let text = annotation(&lab, 2)?;
    let mut other: Value = serde_json::from_str(&text)?;
    for slot in [0, 1] {
        other["slots"][slot]["epoch"] =
            json!(other["slots"][slot]["epoch"].as_u64().context("an epoch")? + 10);
    }
    let patch =
        Patch::Merge(json!({"metadata": {"annotations": {"hawser.dev/wireguard": other.to_string()}}}));
    lab.api().store().patch("nodes", None, &node_name(2), &patch).map_err(|error| anyhow!("{error}"))?;
    eventually(Duration::from_secs(20), "node 1 believes it", || {
        let found = on_device(lab.node(1), "hawser0").map_err(|error| format!("{error:#}"))?;
        if found.values().all(|key| key == "(none)") { Ok(()) } else { Err(format!("{found:?}")) }
    })?;
    lab.node_mut(2).start_agent()?;
    let (after, took) = all_agreed(&lab, &[1, 2])?;
    println!("the same keys are at work again after {took:?}");
    ensure!(after == before, "what both had agreed was thrown away");
    for ip in &b.ips {
        let _echo = Party::pod(&b)?;
        eventually(Duration::from_secs(20), "pods talk", || witness.knock(&a.namespace, *ip, SHORT))?;
    }
    witness.clean(&lab)?;
    Ok(())
}
