//! A bad network between nodes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chaos_tests::LabOptions;
use chaos_tests::cluster::Switch;
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, flowing};
use netlab::eventually;
use netlab::wire::Faults;

use crate::{lab, none, options};

/// Decides the fate of every frame.
const SEED: u64 = 20_260_901;

#[test]
fn a_lossy_disordered_network_and_a_partition_delay_the_mesh_and_open_nothing() -> Result<()> {
    let lab = lab(LabOptions { wire: Some(SEED), ..options("weather", 3) })?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let Switch::Wire(wire) = &*lab.switch else { bail!("this lab has a wire") };
    let mut witness = Witness::new(&lab)?;
    let faults = Faults {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(3),
        loss: 0.05,
        duplicate: 0.03,
        reorder: 0.05,
        ..Faults::default()
    };
    wire.set_all(&faults);
    let parties = pods.iter().map(Party::pod).collect::<Result<Vec<_>>>()?;
    let mut failed = Vec::new();
    for (i, from) in parties.iter().enumerate() {
        for (_, to) in parties.iter().enumerate().filter(|(j, _)| *j != i) {
            failed.extend(witness.failures(from, to, 10));
        }
    }
    none(&failed)?;
    let lost: u64 = {
        let ports: Vec<_> = lab.nodes.iter().map(|node| node.port).collect();
        let pairs = ports.iter().flat_map(|a| ports.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
        pairs.map(|(a, b)| wire.counters(a, b).map(|c| c.lost)).sum::<Result<_, _>>()?
    };
    ensure!(lost > 0, "the wire lost nothing, so this proves nothing");

    let inside = witness.streams(&pods[0].namespace, &pods[1].namespace, &pods[1].ips)?;
    let across = witness.streams(&pods[0].namespace, &pods[2].namespace, &pods[2].ips)?;
    flowing(&inside, 20)?;
    flowing(&across, 20)?;
    let third = [lab.node(3).port];
    let rest: Vec<_> =
        [lab.node(1).port, lab.node(2).port].into_iter().chain(lab.hosts.iter().copied()).collect();
    lab.switch.partition(&[&third, &rest])?;
    let then: Vec<u64> = across.iter().map(|stream| stream.report().received).collect();
    flowing(&inside, 300)?;
    for (stream, then) in across.iter().zip(then) {
        let now = stream.report();
        ensure!(now.received <= then + 20, "a stream crosses the partition: {now}");
    }
    for ip in &pods[0].ips {
        ensure!(witness.knock(&pods[2].namespace, *ip, Duration::from_millis(300)).is_err(), "a partition");
    }
    let begun = Instant::now();
    lab.switch.heal()?;
    let mut healed = Vec::new();
    for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        for ip in &pods[to].ips {
            eventually(Duration::from_secs(20), "pods talk after the partition", || {
                witness.knock(&pods[from].namespace, *ip, Duration::from_millis(200))
            })?;
        }
        healed.push(begun.elapsed());
    }
    ensure!(healed.iter().all(|took| *took < Duration::from_secs(10)), "healed after {healed:?} only");
    flowing(&across, 20)?;
    let frames = witness.clean(&lab)?;
    println!(
        "seed {SEED}: {lost} frames lost, every probe came back; healed after {:?}; {frames} frames, none in clear",
        healed[3]
    );
    Ok(())
}
