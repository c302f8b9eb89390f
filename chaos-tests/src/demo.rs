//! What `make demo` shows: a cluster, every pair talking, and a capture with nothing but WireGuard in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use netlab::CaptureOptions;

use crate::cluster::{Lab, LabOptions};
use crate::joined::join_both;
use crate::matrix::{Party, Probe, Verdict, probe, verdict};
use crate::plain::control;
use crate::pod::Pod;

pub mod clusters;

/// What the demo found.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Seconds until every node had every other as a peer.
    pub seconds_to_mesh: f64,
    /// Peers with their handshakes.
    pub peers: Vec<Peer>,
    /// Every probe.
    pub probes: Vec<Probe>,
    /// What crossed the wire meanwhile.
    pub verdict: Verdict,
    /// The control without a tunnel: probes, and canaries that the same search found.
    pub control_probes: usize,
    /// See above.
    pub control_found: usize,
    /// What nodes counted: plaintext refused.
    pub leaks_refused: BTreeMap<String, f64>,
    /// Two clusters, if there were two.
    pub joined: Option<clusters::Joined>,
}

/// A peer as its node shows it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Whose peer.
    pub node: String,
    /// The device.
    pub device: String,
    /// First letters of the key.
    pub key: String,
    /// Where it is.
    pub endpoint: String,
    /// Its prefixes.
    pub allowed_ips: String,
    /// Seconds since the last handshake; none: never.
    pub handshake_age: Option<u64>,
    /// Bytes received and sent.
    pub bytes: (u64, u64),
}

impl Report {
    /// Did everything hold?
    pub fn holds(&self) -> bool {
        let all_back = self.probes.iter().all(|probe| probe.error.is_none());
        let control_works = self.control_probes > 0 && self.control_found >= self.control_probes;
        let moved = |joined: &clusters::Joined| {
            joined.policy_held && joined.seconds_to_move <= clusters::MOVES.as_secs_f64()
        };
        all_back && self.verdict.is_clean() && control_works && self.joined.as_ref().is_none_or(moved)
    }
}

/// Runs the demo with one cluster or two of them; `say` gets a line at each step.
///
/// # Errors
/// Whatever could not be made. A probe that fails or a canary that is found is no error but in the report.
pub fn run(options: LabOptions, two: bool, pcap: Option<&Path>, say: &mut dyn FnMut(&str)) -> Result<Report> {
    let nodes = options.nodes;
    let wireguard = if options.kernel_wireguard { "the kernel's WireGuard" } else { "mesh-tunnel" };
    say(&format!(
        "Starting {nodes} nodes, each with {wireguard} and mesh-agent, and an embedded Kubernetes API"
    ));
    let begun = Instant::now();
    let options = LabOptions { allocates_services: two, ..options };
    let beside = LabOptions { name: format!("{}-east", options.name), ..options.clone() };
    let mut lab = Lab::up(options)?;
    lab.await_mesh(Duration::from_secs(60))?;
    let seconds_to_mesh = begun.elapsed().as_secs_f64();
    let (east, seconds_to_join) = if two {
        say("Starting another cluster of as many nodes, clustermesh in both, and joining them");
        let mut east = Lab::up_beside(beside, &lab)?;
        east.await_mesh(Duration::from_secs(60))?;
        let begun = Instant::now();
        join_both(&mut lab, &mut east, Duration::from_secs(60))?;
        (Some(east), begun.elapsed().as_secs_f64())
    } else {
        (None, 0.0)
    };
    say(&format!(
        "Mesh complete after {seconds_to_mesh:.1} s; creating two pods a node through the CNI plugin"
    ));
    let mut pods = Vec::new();
    for node in 1..=nodes {
        for index in ["a", "b"] {
            pods.push(lab.add_pod(node, &format!("pod-{node}{index}"))?);
        }
    }
    let mut eastern = Vec::new();
    if let Some(east) = &east {
        for node in 1..=nodes {
            eastern.push(east.add_pod(node, &format!("east-{node}a"))?);
        }
    }
    say(
        "Probing every pair of pods, and nodes with remote pods: TCP, UDP, ICMP, IPv4 and IPv6, each with a canary",
    );
    let capture =
        lab.switch.capture(CaptureOptions { file: pcap.map(Path::to_owned), ..CaptureOptions::default() })?;
    let mut probes = probe_all(&lab, &pods)?;
    if let Some(east) = &east {
        probes.extend(probe_all(east, &eastern)?);
        probes.extend(probe_across(&lab, &pods, &eastern)?);
        probes.extend(probe_across(east, &eastern, &pods)?);
    }
    let joined = match (&east, pods.as_slice(), eastern.as_slice()) {
        (Some(east), [client, .., local], [.., remote]) => {
            say(
                "A service that both clusters export: its local backend fails, and comes back; then a policy of the other cluster",
            );
            Some(clusters::show((&lab, east), (client, local, remote), seconds_to_join)?)
        }
        _ => None,
    };
    let verdict = verdict(&lab, &capture, &probes)?;
    drop(capture);
    say("Control: the same probes between two pods without a tunnel, searched for in the same way");
    let (control_probes, found) = control(&lab)?;
    if let Some(failed) = control_probes.iter().find_map(|probe| probe.error.as_ref()) {
        bail!("the control itself failed: {failed}");
    }
    let report = Report {
        seconds_to_mesh,
        peers: peers(&lab)?,
        probes,
        verdict,
        control_probes: control_probes.len(),
        control_found: found.canaries.len(),
        leaks_refused: refused(&lab)?,
        joined,
    };
    say("Removing pods, nodes and everything else");
    for pod in eastern {
        pod.remove(east.as_ref().unwrap_or(&lab))?;
    }
    for pod in pods {
        pod.remove(&lab)?;
    }
    drop(east);
    drop(lab);
    Ok(report)
}

/// Every pair of pods; every node with every remote pod, both ways.
///
/// # Errors
/// A server could not be started.
pub fn probe_all(lab: &Lab, pods: &[Pod]) -> Result<Vec<Probe>> {
    let parties = pods.iter().map(Party::pod).collect::<Result<Vec<_>>>()?;
    let hosts = lab.nodes.iter().map(|node| Party::host(lab, node.number)).collect::<Result<Vec<_>>>()?;
    let mut probes = Vec::new();
    for (i, from) in parties.iter().enumerate() {
        for (j, to) in parties.iter().enumerate() {
            if i != j {
                probes.extend(probe(from, to));
            }
        }
        for (node, host) in lab.nodes.iter().zip(&hosts) {
            if node.number != pods[i].node {
                probes.extend(probe(from, host));
                probes.extend(probe(host, from));
            }
        }
    }
    Ok(probes)
}

/// Pods and nodes of one cluster with pods of another.
///
/// # Errors
/// A server could not be started.
fn probe_across(lab: &Lab, pods: &[Pod], others: &[Pod]) -> Result<Vec<Probe>> {
    let parties = pods.iter().map(Party::pod).collect::<Result<Vec<_>>>()?;
    let hosts = lab.nodes.iter().map(|node| Party::host(lab, node.number)).collect::<Result<Vec<_>>>()?;
    let others = others.iter().map(Party::pod).collect::<Result<Vec<_>>>()?;
    let mut probes = Vec::new();
    for to in &others {
        for from in parties.iter().chain(&hosts) {
            probes.extend(probe(from, to));
        }
    }
    Ok(probes)
}

fn peers(lab: &Lab) -> Result<Vec<Peer>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut peers = Vec::new();
    for node in &lab.nodes {
        for peer in node.peers()? {
            peers.push(Peer {
                node: node.name.clone(),
                device: peer.device,
                key: peer.public_key.chars().take(8).collect(),
                endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips.replace(',', " "),
                handshake_age: (peer.latest_handshake != 0)
                    .then(|| now.saturating_sub(peer.latest_handshake)),
                bytes: (peer.received, peer.sent),
            });
        }
    }
    Ok(peers)
}

fn refused(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let mut sums = BTreeMap::new();
    for node in &lab.nodes {
        for kind in ["leak_refused_to_node", "leak_refused_out_v4", "leak_refused_out_v6"] {
            let value = node.metric(&format!("hawser_firewall_packets_total{{kind=\"{kind}\"}}"))?;
            *sums.entry(kind.to_owned()).or_default() += value;
        }
    }
    Ok(sums)
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut out = vec![format!(
        "{:<8} {:<8} {:<9} {:<24} {:<10} allowed IPs",
        "node", "device", "peer", "endpoint", "handshake"
    )];
    for peer in &report.peers {
        let age = peer.handshake_age.map_or("-".to_owned(), |age| format!("{age} s ago"));
        let Peer { node, device, key, endpoint, allowed_ips, .. } = peer;
        out.push(format!("{node:<8} {device:<8} {key:<9} {endpoint:<24} {age:<10} {allowed_ips}"));
    }
    let mut counts: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for probe in &report.probes {
        let (good, all) = counts.entry((probe.protocol, probe.family)).or_default();
        *good += usize::from(probe.error.is_none());
        *all += 1;
    }
    out.push(String::new());
    let count = |((protocol, family), (good, all)): (&(&str, &str), &(usize, usize))| {
        format!("{protocol}/{family} {good}/{all}")
    };
    out.push(format!("Echoes that came back: {}", counts.iter().map(count).collect::<Vec<_>>().join(", ")));
    for probe in report.probes.iter().filter(|probe| probe.error.is_some()).take(20) {
        let Probe { from, to, protocol, family, error, .. } = probe;
        out.push(format!(
            "  FAILED {from} -> {to} {protocol} {family}: {}",
            error.as_deref().unwrap_or_default()
        ));
    }
    let verdict = &report.verdict;
    let classes: Vec<String> =
        verdict.classes.iter().map(|(class, count)| format!("{class} {count}")).collect();
    out.push(format!("Frames between nodes: {} ({})", verdict.frames, classes.join(", ")));
    out.push(format!(
        "In clear: {} canaries, {} foreign frames, {} frames with a pod's address",
        verdict.canaries.len(),
        verdict.strangers.len(),
        verdict.pod_addresses.len()
    ));
    let seen = verdict.canaries.iter().chain(&verdict.strangers).chain(&verdict.pod_addresses);
    out.extend(seen.take(20).map(|line| format!("  LEAK {line}")));
    out.push(format!(
        "Control without a tunnel: {} probes, {} sightings of their canaries by the same search",
        report.control_probes, report.control_found
    ));
    let refused: Vec<String> =
        report.leaks_refused.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    out.push(format!("Refused by the guards: {}", refused.join(", ")));
    if let Some(joined) = &report.joined {
        out.push(format!(
            "Two clusters: joined after {:.1} s; service shop of both at {}: {} answers, without it {} after {:.2} s, and {} again after {:.2} s; policy of the other cluster {}",
            joined.seconds_to_join,
            joined.cluster_set_ip,
            joined.local,
            joined.remote,
            joined.seconds_to_move,
            joined.local,
            joined.seconds_to_return,
            if joined.policy_held { "held" } else { "DID NOT HOLD" }
        ));
    }
    out.push(if report.holds() {
        "VERDICT: every probe came back, and nothing of a pod crossed between nodes outside WireGuard"
            .to_owned()
    } else {
        "VERDICT: FAILED".to_owned()
    });
    out.join("\n")
}
