//! A new release goes onto a running cluster: agents first, as their DaemonSet replaces them, then tunnels, a slot at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::LabOptions;
use chaos_tests::witness::{Witness, drops, flowing, lossless};
use netlab::eventually;

use crate::rotation::{all_rotated, everywhere, keys, said};
use crate::{kind, lab, options, settled};

/// For both slots of a node to be handed over, on a busy machine.
const HANDED_OVER: Duration = Duration::from_secs(120);
const DEVICES: [&str; 2] = ["hawser0", "hawser1"];

#[test]
fn agents_and_then_tunnels_are_replaced_node_by_node_and_no_packet_is_lost() -> Result<()> {
    let quiet = netlab::slowness();
    let config =
        format!("rotation:\n  quietSeconds: {quiet}\n  deadlineSeconds: {}\n", 120 * netlab::slowness());
    let mut lab = lab(LabOptions { config, ..options("upgrade", 2) })?;
    let pods = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let streams = everywhere(&lab, &mut witness, &pods)?;
    flowing(&streams, 20)?;

    for number in [1, 2] {
        lab.node_mut(number).stop_agent()?;
        flowing(&streams, 20)?;
        lab.node_mut(number).start_agent()?;
        settled(lab.node(number), 2.0)?;
        flowing(&streams, 20)?;
    }
    let mut took = Vec::new();
    for number in [1, 2] {
        let begun = Instant::now();
        let old = keys(lab.node(number))?;
        lab.node_mut(number).start_next_tunnel()?;
        let node = lab.node(number);
        let pid = |process: Option<&netlab::Process>| process.map(netlab::Process::id).context("a tunnel");
        let (first, second) = (pid(node.tunnel())?, pid(node.next_tunnel())?);
        let mut mixed = false;
        eventually(HANDED_OVER, "the new tunnel has both devices", || {
            let serve = DEVICES.map(|device| node.serves(device).ok());
            // Slot by slot: the pairs are on the one while the other changes hands.
            mixed |= serve == [Some(first), Some(second)];
            if serve == [Some(second); 2] {
                Ok(())
            } else {
                Err(format!("{serve:?}, {first}; {}", said(node)))
            }
        })?;
        ensure!(mixed, "never one slot with each of both");
        flowing(&streams, 20)?;
        // What its DaemonSet does when the new one is ready.
        lab.node_mut(number).retire_tunnel()?;
        all_rotated(&lab, &[number], &[old])?;
        flowing(&streams, 20)?;
        ensure!(lab.node(number).metric(&kind("hawser_keys_replaced_total", "silent"))? == 2.0);
        took.push(begun.elapsed());
    }
    let (count, sent) = (streams.len(), streams.iter().map(|stream| stream.report().sent).sum::<u64>());
    let lost =
        || drops(lab.nodes.iter().map(|node| &node.namespace).chain(pods.iter().map(|pod| &pod.namespace)));
    let gap = lossless(streams).with_context(lost)?;
    let frames = witness.clean(&lab)?;
    println!(
        "agents and tunnels of 2 nodes replaced: {count} streams, {sent} records, 0 lost, longest gap {gap:?}; tunnels took \
         {took:?}; {frames} frames, none in clear"
    );
    Ok(())
}
