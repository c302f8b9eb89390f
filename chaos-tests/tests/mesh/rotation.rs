//! Keys are replaced while packets are on their way, and nobody misses one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::kube_proxy::kube_proxy;
use chaos_tests::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, cluster_ips, service, set_endpoints, with_cluster_ips,
};
use chaos_tests::witness::{Witness, drops, events, flowing, lossless, usual_pace};
use chaos_tests::{Lab, LabOptions, Node, Pod};
use kubeapi::{Patch, User};
use netlab::probe::{Stream, Transport};
use netlab::{Namespace, eventually};
use serde_json::{Value, json};

use crate::{lab, options};

/// For all nodes to have new keys, on a busy machine.
pub(super) const ROTATED: Duration = Duration::from_secs(180);

/// A lab whose slots count as left after two silent seconds.
pub(super) fn rotating(name: &str, nodes: u8, deadline: u32) -> Result<Lab> {
    rotating_with(name, nodes, deadline, "")
}

/// [`rotating`], with more lines of configuration.
fn rotating_with(name: &str, nodes: u8, deadline: u32, more: &str) -> Result<Lab> {
    let deadline = deadline * netlab::slowness();
    let quiet = 2 * netlab::slowness();
    let config = format!("rotation:\n  quietSeconds: {quiet}\n  deadlineSeconds: {deadline}\n{more}");
    let kernel_wireguard = std::env::var_os("HAWSER_KERNEL_WIREGUARD").is_some();
    lab(LabOptions { config, drift_interval: 60, kernel_wireguard, ..options(name, nodes) })
}

pub(super) fn number(variable: &str, usual: u8) -> Result<u8> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(usual),
    }
}

/// Public keys of both devices.
pub(super) fn keys(node: &Node) -> Result<[String; 2]> {
    let key = |device: &str| node.sh(&format!("wg show {device} public-key"));
    Ok([key("hawser0")?, key("hawser1")?].map(|text| text.trim().to_owned()))
}

/// Asks a node for new keys.
pub(super) fn request(lab: &Lab, node: u8, value: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"hawser.dev/rotate": value}}}));
    let store = lab.api().store();
    store.patch("nodes", None, &node_name(node), &patch).map(drop).map_err(|error| anyhow!("{error}"))
}

/// What the node's annotation announces.
pub(super) fn announced(lab: &Lab, node: u8) -> Result<Value> {
    let object: Value = lab.api().store().get("nodes", None, &node_name(node)).map_err(|e| anyhow!("{e}"))?;
    let text = object["metadata"]["annotations"]["hawser.dev/wireguard"].as_str().unwrap_or("{}").to_owned();
    Ok(serde_json::from_str(&text)?)
}

/// Neither of these keys is on a device or in an announcement, nothing drains, and everybody sends by the first slot.
pub(super) fn rotated(lab: &Lab, node: u8, old: &[String; 2]) -> Result<(), String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let text = announced(lab, node).map_err(told)?.to_string();
    // The announcement first: it costs nothing to ask for, and this is asked for often.
    if old.iter().any(|key| text.contains(key.as_str())) || text.contains("\"draining\":true") {
        return Err(format!("node {node}: {text}; {}", said(lab.node(node))));
    }
    let new = keys(lab.node(node)).map_err(told)?;
    let routes = lab.node(node).sh("ip route show table 51880").map_err(told)?;
    if old.iter().any(|key| new.contains(key)) || routes.contains("hawser1") {
        return Err(format!("node {node}: {new:?}; routes {routes}; {}", said(lab.node(node))));
    }
    Ok(())
}

/// The last lines of an agent's log.
pub(super) fn said(node: &Node) -> String {
    let log = node.log("mesh-agent").unwrap_or_default();
    log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
}

#[expect(clippy::print_stdout, reason = "what takes minutes says how far it is")]
pub(super) fn all_rotated(lab: &Lab, nodes: &[u8], old: &[[String; 2]]) -> Result<Duration> {
    let begun = Instant::now();
    let mut told = begun;
    let everybody = || nodes.iter().map(|node| slots(lab.node(*node))).collect::<Vec<_>>().join("\n");
    let rotated = eventually(ROTATED, "all nodes have new keys", || {
        let state = nodes.iter().zip(old).try_for_each(|(node, old)| rotated(lab, *node, old));
        if state.is_err() && told.elapsed() > Duration::from_secs(120) {
            told = Instant::now();
            println!("not after {:?}:\n{}", begun.elapsed(), everybody());
        }
        state
    });
    rotated.with_context(everybody)?;
    Ok(begun.elapsed())
}

/// A node's pairs by its own word: the slot that it sends by, and both slots' sessions and pre-shared keys.
fn slots(node: &Node) -> String {
    let text = match node.http(mesh_core::numbers::PORT_METRICS, mesh_core::evidence::PATH) {
        Ok(text) => text,
        Err(error) => return format!("{}: {error:#}", node.name),
    };
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let turns =
        ["sum", "count"].map(|what| node.metric(&format!("hawser_reconcile_seconds_{what}")).unwrap_or(0.0));
    let mut all = format!("{}, {turns:?} seconds of turns and turns", node.name);
    for (peer, pair) in report["peers"].as_object().into_iter().flatten() {
        all += &format!("\n  {peer} sends by {}", pair["sendsBy"]);
        for slot in pair["slots"].as_array().into_iter().flatten() {
            all += &format!("; {slot}");
        }
    }
    all
}

/// Streams both ways between the pods of every pair of nodes, and from every host to the next node's pod.
pub(super) fn everywhere(lab: &Lab, witness: &mut Witness, pods: &[Pod]) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            streams.extend(witness.streams(&from.namespace, &to.namespace, &to.ips)?);
        }
    }
    for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        streams.extend(witness.streams(&lab.node(from.node).namespace, &to.namespace, &to.ips)?);
    }
    Ok(streams)
}

/// Node port of [`node_port`], and of what kube-proxy serves.
const NODE_PORT: u16 = 30_090;
/// What kube-proxy serves beside [`NODE_PORT`].
pub(super) const WORLDS_PORT: u16 = 30_091;

/// A service with a node port and one backend.
pub(super) fn node_port(lab: &Lab, number: u8, backend: &Pod) -> Result<()> {
    let mut spec = with_cluster_ips(number);
    spec["type"] = json!("NodePort");
    let port = |name: &str, protocol: &str| {
        json!({
            "name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": BACKEND_PORT,
            "nodePort": NODE_PORT,
        })
    };
    spec["ports"] = json!([port("tcp", "TCP"), port("udp", "UDP")]);
    apply(lab, &service("ported", &spec))?;
    set_endpoints(lab, "ported", &[Endpoint::ready(backend)])
}

/// Streams to a pod by a node's port, as soon as it is served. `start` has the transport, the node's address and port, and what
/// the backend listens on.
fn by_port(
    node: &Node,
    port: u16,
    backend: &Pod,
    mut start: impl FnMut(Transport, SocketAddr, SocketAddr) -> Result<Stream>,
) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for ip in node.addresses()? {
        let listen =
            SocketAddr::new(backend.ip(ip.is_ipv4()).context("an address of the backend")?, BACKEND_PORT);
        for transport in [Transport::Tcp, Transport::Udp] {
            let what = format!("a stream by port {port} of {ip}");
            streams.push(eventually(Duration::from_secs(20), &what, || {
                start(transport, SocketAddr::new(ip, port), listen).map_err(|error| format!("{error:#}"))
            })?);
        }
    }
    Ok(streams)
}

/// From a pod, whose own node translates.
pub(super) fn by_node_port(
    witness: &mut Witness,
    client: &Namespace,
    node: &Node,
    backend: &Pod,
) -> Result<Vec<Stream>> {
    by_port(node, NODE_PORT, backend, |transport, dial, listen| {
        witness.stream_by(transport, (client, dial), (&backend.namespace, listen))
    })
}

/// From the world outside to a node whose kube-proxy translates both addresses, and into the tunnel from there.
pub(super) fn from_the_world(
    lab: &Lab,
    witness: &mut Witness,
    (node, port): (&Node, u16),
    backend: &Pod,
) -> Result<Vec<Stream>> {
    by_port(node, port, backend, |transport, dial, listen| {
        witness.stream_from_outside(lab, transport, dial, (&backend.namespace, listen))
    })
}

/// Between two records of a stream, such that all of them are as many a second as among three nodes.
pub(super) fn pace(nodes: usize) -> Result<Duration> {
    let streams = |nodes: usize| (nodes * nodes + 2) * 4;
    Ok(usual_pace()?.mul_f64(streams(nodes) as f64 / streams(3) as f64))
}

/// Lines of the record of destroyed keys.
fn records(node: &Node) -> Result<Vec<Value>> {
    let text = node.sh("cat /var/lib/hawser/audit/keys.jsonl")?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn all_nodes_replace_their_keys_at_once_and_again_and_no_packet_is_lost() -> Result<()> {
    let rounds = number("HAWSER_ROTATIONS", 2)?;
    let nodes = number("HAWSER_ROTATING_NODES", 3)?;
    lossless_rotations(&rotating("rotate", nodes, 120)?, rounds)
}

#[test]
fn nodes_that_insist_on_pre_shared_keys_replace_theirs_at_once_and_again_and_no_packet_is_lost() -> Result<()>
{
    lossless_rotations(&rotating_with("insist", 3, 120, "postQuantum:\n  mode: require\n")?, 2)
}

/// Between two records of the streams that are to see short gaps.
const BRISK: Duration = Duration::from_millis(100);

/// All nodes at once, this often, under streams between all of them and from the world.
#[expect(clippy::print_stdout, reason = "what takes minutes says how far it is")]
fn lossless_rotations(lab: &Lab, rounds: u8) -> Result<()> {
    let nodes: Vec<u8> = (1..=u8::try_from(lab.nodes.len())?).collect();
    let pods = nodes.iter().map(|n| lab.add_pod(*n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let slow = pace(nodes.len())?;
    // Where all cannot send often some do, so that a short gap is seen, too.
    let mut witness = Witness::new(lab)?.pace(slow.min(BRISK));
    let mut brisk = Vec::new();
    for ip in pods[1].ips.iter().filter(|_| slow > BRISK) {
        for from in [&pods[0].namespace, &lab.node(1).namespace] {
            brisk.push(witness.stream(Transport::Udp, from, &pods[1].namespace, *ip)?);
        }
    }
    witness = witness.pace(slow);
    let mut streams = everywhere(lab, &mut witness, &pods)?;
    let backend = pods.last().context("a pod")?;
    node_port(lab, 40, backend)?;
    // Of another node than the client's and the backend's.
    streams.extend(by_node_port(&mut witness, &pods[0].namespace, lab.node(2), backend)?);
    kube_proxy(lab.node(2), cluster_ips(41), WORLDS_PORT, &pods[0].ips)?;
    streams.extend(from_the_world(lab, &mut witness, (lab.node(2), WORLDS_PORT), &pods[0])?);
    flowing(&streams, 20)?;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    if rounds == 0 {
        // The control: the same load for half a minute, and nothing happens.
        (0..3).try_for_each(|_| flowing(&streams, 1_000))?;
    }
    for round in 1..=rounds {
        let old = nodes.iter().map(|n| keys(lab.node(*n))).collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            request(lab, *node, &format!("round {round}"))?;
        }
        let took = all_rotated(lab, &nodes, &old)?;
        seen.extend(old.into_iter().flatten());
        println!("round {round}: all have new keys after {took:?}");
    }
    flowing(&streams, 50)?;
    for node in nodes.iter().filter(|_| rounds > 0) {
        let records = records(lab.node(*node))?;
        let early: Vec<_> = records.iter().filter(|line| !line["verdict"]["overdue"].is_null()).collect();
        ensure!(records.len() == 2 * usize::from(rounds) && early.is_empty(), "{records:?}");
        ensure!(
            lab.node(*node).metric("hawser_keys_replaced_total{kind=\"silent\"}")? == f64::from(2 * rounds)
        );
        // The others know nothing of the old keys either.
        let peers = lab.node(*node).peers()?;
        let stale: Vec<_> = peers.iter().filter(|peer| seen.contains(&peer.public_key)).collect();
        ensure!(stale.is_empty(), "old keys at node {node}: {stale:?}");
    }
    let told = events(lab, "KeyDestroyed")?;
    ensure!(told.is_empty() == (rounds == 0), "no Event tells of a destroyed key");
    let count = streams.len() + brisk.len();
    let sent: u64 = streams.iter().chain(&brisk).map(|stream| stream.report().sent).sum();
    let lost =
        || drops(lab.nodes.iter().map(|node| &node.namespace).chain(pods.iter().map(|pod| &pod.namespace)));
    if !brisk.is_empty() {
        let (count, sent) = (brisk.len(), brisk.iter().map(|stream| stream.report().sent).sum::<u64>());
        let gap = lossless(brisk).with_context(lost)?;
        println!("{count} of the streams every {BRISK:?}: {sent} records, longest gap {gap:?}");
    }
    let gap = lossless(streams).with_context(lost)?;
    let frames = witness.clean(lab)?;
    println!(
        "{rounds} rotations of {} nodes: {} keys destroyed; {count} streams, {sent} records, 0 lost, longest gap \
         {gap:?}; {frames} frames, none in clear",
        nodes.len(),
        seen.len()
    );
    Ok(())
}

#[test]
fn keys_that_are_older_than_the_schedule_allows_are_replaced_by_themselves_and_others_stay() -> Result<()> {
    let mut lab = rotating_with("schedule", 2, 120, "  periodSeconds: 604800\n")?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    streams.extend(witness.streams(&b.namespace, &a.namespace, &a.ips)?);
    flowing(&streams, 20)?;
    let old = [keys(lab.node(1))?, keys(lab.node(2))?];
    // Of node 1 both are eight days old, of node 2 a few days.
    for (node, days) in [(1, 8), (2, 4)] {
        let script = format!("touch -d '{days} days ago' /var/lib/hawser/keys/*");
        let node = lab.node_mut(node);
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]);
        node.run(shell)?;
        node.kill_agent()?;
        node.start_agent()?;
    }
    let took = all_rotated(&lab, &[1], &[old[0].clone()])?;
    let records = records(lab.node(1))?;
    ensure!(
        records.len() == 2 && records.iter().all(|line| line["cause"] == "schedule"),
        "the record of destroyed keys: {records:?}"
    );
    ensure!(keys(lab.node(2))? == old[1], "node 2 has new keys, too");
    flowing(&streams, 50)?;
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("by schedule after {took:?}: 0 lost, longest gap {gap:?}");
    Ok(())
}

#[test]
fn an_operator_has_keys_replaced_by_command_and_is_told_when_it_is_done() -> Result<()> {
    let lab = rotating("command", 2, 120)?;
    lab.node(1).write_file("/etc/hawser/admin", &lab.kubeconfig(&User::admin()))?;
    let hawser = |words: &str| -> Result<String> {
        let mut command = Command::new(lab.binaries.hawser()?);
        command.args(["keys", "rotate", "--kubeconfig", "/etc/hawser/admin"]).args(words.split_whitespace());
        lab.node(1).run(command)
    };
    let refused = hawser(&format!("{} nobody", node_name(1))).err().context("an unknown node is refused")?;
    ensure!(format!("{refused:#}").contains("there is no node nobody"), "{refused:#}");
    let old = [keys(lab.node(1))?, keys(lab.node(2))?];
    let told = hawser("--all")?;
    println!("{told}");
    for (node, old) in [1, 2].into_iter().zip(&old) {
        let last = told.lines().rfind(|line| line.starts_with(&format!("{}: ", node_name(node))));
        ensure!(last.is_some_and(|line| line.contains("both keys replaced")), "{told}");
        let new = keys(lab.node(node))?;
        ensure!(!old.iter().any(|key| new.contains(key)), "node {node} has an old key: {old:?}, {new:?}");
    }
    let late = hawser(&format!("{} --timeout 0", node_name(2))).err().context("a node is late in no time")?;
    ensure!(format!("{late:#}").contains(&node_name(2)), "{late:#}");
    lab.agents_were_refused_nothing()
}

#[test]
fn what_kube_proxy_masquerades_for_the_world_survives_the_replacement_of_all_keys() -> Result<()> {
    let lab = rotating("masquerade", 2, 120)?;
    let backend = lab.add_pod(2, "backend")?;
    kube_proxy(lab.node(1), cluster_ips(41), NODE_PORT, &backend.ips)?;
    let mut witness = Witness::new(&lab)?;
    // By the first node, which gives them its own address on its way into the tunnel.
    let streams = from_the_world(&lab, &mut witness, (lab.node(1), NODE_PORT), &backend)?;
    flowing(&streams, 20)?;
    for round in 1..=2 {
        let old = [keys(lab.node(1))?, keys(lab.node(2))?];
        for node in [1, 2] {
            request(&lab, node, &format!("round {round}"))?;
        }
        all_rotated(&lab, &[1, 2], &old)?;
    }
    flowing(&streams, 50)?;
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("{sent} records from outside, 0 lost, longest gap {gap:?}");
    Ok(())
}
