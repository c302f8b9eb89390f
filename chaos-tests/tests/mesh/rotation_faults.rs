//! A rotation while something is wrong: its agent dies, a peer is away or deaf, the network is parted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::Node;
use chaos_tests::cluster::node_name;
use chaos_tests::kube_proxy::kube_proxy;
use chaos_tests::matrix::Party;
use chaos_tests::objects::cluster_ips;
use chaos_tests::witness::{Witness, events, flowing, lossless};
use netlab::eventually;
use netlab::probe::Transport;

use crate::rotation::{
    ROTATED, WORLDS_PORT, all_rotated, announced, by_node_port, everywhere, from_the_world, keys, node_port,
    number, pace, request, rotated, rotating, said,
};
use crate::{none, settled};

/// A library that kills an agent at one of its writes (`fuse.c`), and the file that says at which.
struct Fuse {
    library: PathBuf,
    file: PathBuf,
}

impl Fuse {
    fn new() -> Result<Self> {
        // A place that nodes see.
        let at = |what: &str| {
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{what}-{}", std::process::id()))
        };
        let fuse = Self { library: at("fuse.so"), file: at("fuse") };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mesh/fuse.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&fuse.library).arg(&source);
        let status = compiler.status().context("cc")?;
        ensure!(status.success(), "cc of {}: {status}", source.display());
        fuse.set(0)?;
        Ok(fuse)
    }

    /// The agent dies before this one of its writes; zero: never.
    fn set(&self, left: u32) -> Result<()> {
        Ok(std::fs::write(&self.file, format!("{left:<20}"))?)
    }

    fn left(&self) -> Result<u32> {
        Ok(std::fs::read_to_string(&self.file)?.trim().parse()?)
    }

    fn start_agent(&self, node: &mut Node) -> Result<()> {
        node.start_agent_with(&[("LD_PRELOAD", &self.library), ("HAWSER_FUSE", &self.file)])
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        for file in [&self.library, &self.file] {
            drop(std::fs::remove_file(file));
        }
    }
}

/// Every n-th of the writes is the last one of an agent; all with `HAWSER_EVERY_WRITE=1`.
const EVERY_WRITE: u8 = 29;

#[test]
fn an_agent_that_dies_at_any_of_its_writes_goes_on_with_its_rotation_and_no_packet_is_lost() -> Result<()> {
    let every = u32::from(number("HAWSER_EVERY_WRITE", EVERY_WRITE)?);
    ensure!(every > 0, "HAWSER_EVERY_WRITE=0: every one is 1");
    let mut lab = rotating("dies", 3, 120)?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?.pace(pace(3)?);
    let mut streams = everywhere(&lab, &mut witness, &pods)?;
    node_port(&lab, 40, &pods[2])?;
    streams.extend(by_node_port(&mut witness, &pods[0].namespace, lab.node(2), &pods[2])?);
    kube_proxy(lab.node(2), cluster_ips(41), WORLDS_PORT, &pods[0].ips)?;
    streams.extend(from_the_world(&lab, &mut witness, (lab.node(2), WORLDS_PORT), &pods[0])?);
    let fuse = Fuse::new()?;
    lab.node_mut(2).kill_agent()?;
    fuse.start_agent(lab.node_mut(2))?;
    settled(lab.node(2), 1.0)?;
    flowing(&streams, 20)?;
    let (mut deaths, mut frames) = (0, 0);
    for round in 0..1000 {
        // The others rotate, too: so it dies as one that drains and as one that follows.
        let old = (1..=3).map(|node| keys(lab.node(node))).collect::<Result<Vec<_>>>()?;
        let at = round * every + 1;
        fuse.set(at)?;
        for node in 1..=3 {
            request(&lab, node, &format!("round {round}"))?;
        }
        let mut died = false;
        eventually(ROTATED, "the agent dies, or all have new keys", || {
            let told = |error: anyhow::Error| format!("{error:#}");
            if fuse.left().map_err(told)? == 0 {
                died = true;
                return Ok(());
            }
            (1..=3).zip(&old).try_for_each(|(node, old)| rotated(&lab, node, old))
        })?;
        if died {
            let node = lab.node_mut(2);
            // What is left to do is to reap it.
            node.kill_agent()?;
            fuse.start_agent(node)?;
            deaths += 1;
        }
        let took = all_rotated(&lab, &[1, 2, 3], &old)?;
        println!("round {round}: died at write {at}: {died}; all have new keys after {took:?}");
        // The capture's memory is not for hundreds of rounds.
        frames += witness.clean_so_far(&lab)?;
        if !died {
            break;
        }
    }
    ensure!(deaths >= 3 && frames > 0, "the agent died {deaths} times, {frames} frames were seen");
    flowing(&streams, 50)?;
    let (count, sent) = (streams.len(), streams.iter().map(|stream| stream.report().sent).sum::<u64>());
    let gap = lossless(streams)?;
    frames += witness.clean_so_far(&lab)?;
    println!(
        "{deaths} deaths; {count} streams, {sent} records, 0 lost, longest gap {gap:?}; {frames} frames, none in clear"
    );
    Ok(())
}

#[test]
fn a_node_whose_agent_is_away_is_named_when_the_deadline_comes_and_costs_only_its_own_pair() -> Result<()> {
    const DEADLINE: u32 = 20;
    let mut lab = rotating("absent", 3, DEADLINE)?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&pods[0].namespace, &pods[1].namespace, &pods[1].ips)?;
    streams.extend(witness.streams(&pods[1].namespace, &pods[0].namespace, &pods[0].ips)?);
    streams.extend(witness.streams(&pods[1].namespace, &pods[2].namespace, &pods[2].ips)?);
    // The pair that is going to be cut.
    none(&witness.failures(&Party::pod(&pods[0])?, &Party::pod(&pods[2])?, 3))?;
    flowing(&streams, 20)?;
    lab.node_mut(3).kill_agent()?;
    let old = keys(lab.node(1))?;
    request(&lab, 1, "without node 3")?;
    all_rotated(&lab, &[1], &[old])?;
    let overdue = eventually(Duration::from_secs(20), "an Event names node 3", || {
        let seen = events(&lab, "RotationOverdue").map_err(|error| format!("{error:#}"))?;
        let named = seen.iter().find(|e| e["message"].as_str().unwrap_or_default().contains(&node_name(3)));
        named.cloned().ok_or_else(|| format!("{seen:?}"))
    })?;
    println!("{}", overdue["message"]);
    ensure!(!overdue["message"].as_str().unwrap_or_default().contains(&node_name(2)), "{overdue}");
    flowing(&streams, 50)?;
    lab.node_mut(3).start_agent()?;
    let back = Instant::now();
    for (from, to) in [(0, 2), (2, 0)] {
        for ip in &pods[to].ips {
            let _echo = Party::pod(&pods[to])?;
            eventually(Duration::from_secs(30), "the pair talks again", || {
                witness.knock(&pods[from].namespace, *ip, Duration::from_millis(300))
            })?;
        }
    }
    println!("the pair talks again after {:?}", back.elapsed());
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("the others: 0 lost, longest gap {gap:?}");
    Ok(())
}

#[test]
fn a_node_that_never_confirms_is_named_at_the_deadline_and_costs_only_its_own_pair() -> Result<()> {
    const DEADLINE: u32 = 20;
    let lab = rotating("deaf", 3, DEADLINE)?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?;
    let mut streams = Vec::new();
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
        streams.extend(witness.streams(&pods[from].namespace, &pods[to].namespace, &pods[to].ips)?);
    }
    // The pair that is going to be late: TCP misses nothing all the same.
    let own = [(0, 2), (2, 0)].map(|(from, to): (usize, usize)| {
        witness.stream(Transport::Tcp, &pods[from].namespace, &pods[to].namespace, pods[to].ips[0])
    });
    let own = own.into_iter().collect::<Result<Vec<_>>>()?;
    flowing(&streams, 20)?;
    flowing(&own, 20)?;
    // Its agent lives, and no handshake with node 1 ends on the second slot.
    let from: Vec<String> = lab
        .node(1)
        .addresses()?
        .iter()
        .map(|ip| format!("{} saddr {ip} udp dport 51881 drop", if ip.is_ipv4() { "ip" } else { "ip6" }))
        .collect();
    let table = format!(
        "table inet deaf {{ chain input {{ type filter hook input priority -300;\n{}\n}}\n}}\n",
        from.join("\n")
    );
    lab.node(3).write_file("/run/deaf.nft", &table)?;
    lab.node(3).sh("nft -f /run/deaf.nft")?;
    let old = keys(lab.node(1))?;
    request(&lab, 1, "node 3 does not hear")?;
    let overdue = eventually(ROTATED, "an Event names node 3", || {
        let seen = events(&lab, "RotationOverdue").map_err(|error| format!("{error:#}"))?;
        let named = seen.iter().find(|e| e["message"].as_str().unwrap_or_default().contains(&node_name(3)));
        named.cloned().ok_or_else(|| format!("{seen:?}; {}", said(lab.node(1))))
    })?;
    println!("{}", overdue["message"]);
    ensure!(!overdue["message"].as_str().unwrap_or_default().contains(&node_name(2)), "{overdue}");
    flowing(&streams, 50)?;
    lab.node(3).sh("nft delete table inet deaf")?;
    all_rotated(&lab, &[1], &[old])?;
    flowing(&own, 50)?;
    let late = lossless(own)?;
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!("the late pair by TCP: 0 lost, longest gap {late:?}; the others: 0 lost, longest gap {gap:?}");
    Ok(())
}

#[test]
fn a_rotation_waits_for_the_end_of_a_partition_and_costs_the_others_nothing() -> Result<()> {
    let lab = rotating("parted", 3, 120)?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?;
    let mut streams = witness.streams(&pods[0].namespace, &pods[1].namespace, &pods[1].ips)?;
    streams.extend(witness.streams(&pods[1].namespace, &pods[0].namespace, &pods[0].ips)?);
    // Across it, both ways: what TCP has sent meanwhile comes afterwards.
    let mut across = Vec::new();
    for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        for ip in &pods[to].ips {
            across.push(witness.stream(Transport::Tcp, &pods[from].namespace, &pods[to].namespace, *ip)?);
        }
    }
    flowing(&streams, 20)?;
    flowing(&across, 20)?;
    let old = (1..=3).map(|node| keys(lab.node(node))).collect::<Result<Vec<_>>>()?;
    for node in 1..=3 {
        request(&lab, node, "in the middle of it")?;
    }
    eventually(Duration::from_secs(20), "node 1 drains a slot", || {
        let text = announced(&lab, 1).map_err(|error| format!("{error:#}"))?.to_string();
        if text.contains("\"draining\":true") { Ok(()) } else { Err(text) }
    })?;
    let rest: Vec<_> =
        [lab.node(1).port, lab.node(2).port].into_iter().chain(lab.hosts.iter().copied()).collect();
    lab.switch.partition(&[&[lab.node(3).port], &rest])?;
    // Ten seconds of records: longer than slots take to be left, shorter than the deadline.
    flowing(&streams, 1000)?;
    let unready = (1..=3).filter(|node| rotated(&lab, *node, &old[usize::from(*node) - 1]).is_err()).count();
    ensure!(unready > 0, "everybody has new keys without node 3");
    lab.switch.heal()?;
    let took = all_rotated(&lab, &[1, 2, 3], &old)?;
    println!("{unready} nodes had waited; all have new keys {took:?} after the partition");
    ensure!(events(&lab, "RotationOverdue")?.is_empty(), "a deadline came");
    for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        for ip in &pods[to].ips {
            let _echo = Party::pod(&pods[to])?;
            eventually(Duration::from_secs(30), "pods talk after the partition", || {
                witness.knock(&pods[from].namespace, *ip, Duration::from_millis(300))
            })?;
        }
    }
    flowing(&streams, 50)?;
    flowing(&across, 50)?;
    let sent: u64 = across.iter().map(|stream| stream.report().sent).sum();
    let over = lossless(across)?;
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!(
        "across: {sent} records by TCP, 0 lost, longest gap {over:?}; the others: 0 lost, longest gap {gap:?}"
    );
    Ok(())
}
