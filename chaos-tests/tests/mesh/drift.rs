//! Somebody takes away what is ours.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::LabOptions;
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, data_path, difference, flowing};
use netlab::eventually;

use crate::{counted, kind, lab, none, options, settled};

/// Seconds between two looks for what the kernel does not tell.
const INTERVAL: u64 = 3;
/// For what is found by looking; a busy machine takes longer.
const BY_INTERVAL: Duration = Duration::from_secs(12);
/// For what the kernel tells: before the next look, mostly.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn what_somebody_takes_away_is_put_back_counted_and_never_a_leak() -> Result<()> {
    let lab = lab(LabOptions { drift_interval: INTERVAL, ..options("drift", 2) })?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let [from, to] = [Party::pod(&a)?, Party::pod(&b)?];
    none(&witness.failures(&from, &to, 3))?;
    let mut always = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    always.extend(witness.streams(&b.namespace, &a.namespace, &a.ips)?);
    let node = lab.node(1);
    settled(node, 2.0)?;
    let before = data_path(node)?;
    let peers = node.peers()?;
    let peer = &peers.iter().find(|peer| peer.device == "hawser0").context("a peer")?.public_key;
    let drift = |op: &str| kind("hawser_drift_repaired_total", op);
    let (told, looked) = (AT_ONCE, BY_INTERVAL);
    let firewall = || "hawser_firewall_repaired_total".to_owned();
    let removals = [
        (told, "ip route del 10.244.2.0/24 table 51880".to_owned(), drift("put_route")),
        (told, "ip -6 route del fd00:10:244:2::/64 table 51880".to_owned(), drift("put_route")),
        (told, "ip route del unreachable 10.244.0.0/16 table 51880".to_owned(), drift("put_route")),
        (told, "ip route del unreachable 10.244.0.0/16 table main".to_owned(), drift("put_route")),
        (told, "ip -6 route del unreachable fd00:10:244::/48 table 51880".to_owned(), drift("put_route")),
        (told, "ip route del 192.0.2.2 dev hawser0 table 51881".to_owned(), drift("put_route")),
        (told, "ip rule del priority 50".to_owned(), drift("put_rule")),
        (told, "ip -6 rule del priority 51".to_owned(), drift("put_rule")),
        (told, "ip addr del 10.244.1.1/32 dev lo".to_owned(), drift("put_mesh_address")),
        (told, "ip link set hawser0 mtu 1300".to_owned(), drift("raise_link")),
        (told, "ip link set hawser0 down".to_owned(), drift("raise_link")),
        (looked, format!("wg set hawser0 peer {peer} remove"), drift("put_peer")),
        (looked, format!("wg set hawser0 peer {peer} allowed-ips 10.244.2.0/25"), drift("put_peer")),
        (looked, "wg set hawser0 listen-port 51999".to_owned(), drift("configure_device")),
        (looked, "nft delete table inet hawser".to_owned(), firewall()),
        (looked, "nft flush chain inet hawser refuse_out".to_owned(), firewall()),
        (
            looked,
            "ip route add 10.244.9.0/24 dev hawser0 proto 202 table 51880".to_owned(),
            drift("remove_route"),
        ),
    ];
    for (deadline, command, metric) in removals {
        let counted_before = node.metric(&metric)?;
        let begun = Instant::now();
        node.sh(&command)?;
        for to in &b.ips {
            // Whatever comes back or not: it must not be seen on the wire.
            drop(witness.knock(&a.namespace, *to, Duration::from_millis(20)));
        }
        eventually(deadline, &format!("{command:?} is repaired"), || {
            let now = data_path(node).map_err(|error| format!("{error:#}"))?;
            let wrong = difference(&before, &now);
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
        })?;
        let took = begun.elapsed();
        let value = counted(node, &metric, counted_before + 1.0, BY_INTERVAL)?;
        for to in &b.ips {
            eventually(BY_INTERVAL, &format!("after {command:?} pods talk again"), || {
                witness.knock(&a.namespace, *to, Duration::from_millis(300))
            })?;
        }
        if deadline == looked {
            // Its pair may just be on its way back: what is broken within that turn would be mended by it, uncounted.
            settled(node, 1.0)?;
        }
        println!("{command}: repaired after {took:?}; {metric} {counted_before} -> {value}");
    }
    none(&[witness.failures(&from, &to, 3), witness.failures(&to, &from, 3)].concat())?;
    ensure!(node.log("mesh-agent")?.contains("Repaired drift"), "the log says so");
    flowing(&always, 20)?;
    let lost: u64 = always.iter().map(|stream| stream.report().lost).sum();
    let sent: u64 = always.iter().map(|stream| stream.report().sent).sum();
    let frames = witness.clean(&lab)?;
    println!("streams beside it: {lost} of {sent} records lost; {frames} frames, none in clear");
    Ok(())
}
