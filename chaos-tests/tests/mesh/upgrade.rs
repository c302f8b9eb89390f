//! A new release goes onto a running cluster: agents first, as their DaemonSet replaces them, then tunnels, a slot at a time.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::witness::{Witness, drops, flowing, lossless};
use chaos_tests::{Lab, LabOptions, Node};
use netlab::eventually;

use crate::rotation::{all_rotated, everywhere, keys, said};
use crate::{kind, lab, options, settled};

/// For both slots of a node to be handed over, on a busy machine.
pub(super) const HANDED_OVER: Duration = Duration::from_secs(120);
const DEVICES: [&str; 2] = ["hawser0", "hawser1"];

/// A lab of two nodes whose slots count as left after one silent second.
fn upgrading(name: &str) -> Result<Lab> {
    upgrading_with(name, 2, "")
}

/// [`upgrading`], with more of `rotation`.
pub(super) fn upgrading_with(name: &str, nodes: u8, more: &str) -> Result<Lab> {
    let (quiet, deadline) = (netlab::slowness(), 120 * netlab::slowness());
    let config = format!("rotation:\n  quietSeconds: {quiet}\n  deadlineSeconds: {deadline}\n{more}");
    lab(LabOptions { config, ..options(name, nodes) })
}

/// Who serves each device.
pub(super) fn serve(node: &Node) -> [Option<i32>; 2] {
    DEVICES.map(|device| node.serves(device).ok())
}

pub(super) fn pid(process: Option<&netlab::Process>) -> Result<i32> {
    process.map(netlab::Process::id).context("a tunnel")
}

/// How often an agent has asked for a device since the lab is up.
fn asked(node: &Node) -> usize {
    node.log("mesh-agent").unwrap_or_default().matches("Handing a silent device over").count()
}

#[test]
fn agents_and_then_tunnels_are_replaced_node_by_node_and_no_packet_is_lost() -> Result<()> {
    let mut lab = upgrading("upgrade")?;
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
        let (first, second) = (pid(node.tunnel())?, pid(node.next_tunnel())?);
        let mut mixed = false;
        eventually(HANDED_OVER, "the new tunnel has both devices", || {
            let serve = serve(node);
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

/// Waits for a device as a new release does, and ends as soon as it is its turn.
const ENDS_WHEN_ITS_TURN: &str = "\
cd /run/wireguard
exec 8>>hawser0.next 9>>hawser1.next
flock -x 8
flock -x 9
while [ -S hawser0.sock ] && [ -S hawser1.sock ]; do sleep 0.05; done
exit 1
";

#[test]
fn a_release_that_ends_and_agents_that_are_killed_amid_a_hand_over_lose_no_packet() -> Result<()> {
    let mut lab = upgrading("badrelease")?;
    let pods = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    let streams = everywhere(&lab, &mut witness, &pods)?;
    flowing(&streams, 20)?;
    let first = pid(lab.node(1).tunnel())?;

    // A release that does not start: nobody waits, and nothing happens.
    let old = keys(lab.node(1))?;
    lab.node_mut(1).start_next_tunnel_as(Command::new("false"))?;
    let status = lab.node(1).next_tunnel().context("it was started")?.wait(Duration::from_secs(10))?;
    ensure!(!status.success());
    settled(lab.node(1), 3.0)?;
    flowing(&streams, 20)?;
    ensure!(serve(lab.node(1)) == [Some(first); 2] && keys(lab.node(1))? == old);

    // One that ends in the midst of it: the old one has its device back, and goes on.
    let mut command = Command::new("sh");
    command.args(["-c", ENDS_WHEN_ITS_TURN]);
    lab.node_mut(1).start_next_tunnel_as(command)?;
    let ended = |node: &Node| match node.next_tunnel().map(netlab::Process::try_wait) {
        Some(Ok(Some(_))) => Ok(()),
        other => Err(format!("{other:?}; {}", said(node))),
    };
    eventually(HANDED_OVER, "it gets its turn", || ended(lab.node(1)))?;
    ensure!(asked(lab.node(1)) > 0, "nobody asked for a device");
    all_rotated(&lab, &[1], &[old])?;
    ensure!(serve(lab.node(1)) == [Some(first); 2], "{:?}, {first}", serve(lab.node(1)));
    flowing(&streams, 20)?;
    println!("a release that ended: the old one has both devices");

    // A good one, and agents that die when a device was asked for and when it has changed hands.
    let before = asked(lab.node(1));
    let old = keys(lab.node(1))?;
    lab.node_mut(1).kill_agent()?;
    lab.node_mut(1).start_next_tunnel()?;
    lab.node_mut(1).start_agent()?;
    let second = pid(lab.node(1).next_tunnel())?;
    eventually(HANDED_OVER, "a device is asked for", || {
        if asked(lab.node(1)) > before { Ok(()) } else { Err(said(lab.node(1))) }
    })?;
    lab.node_mut(1).kill_agent()?;
    // The two go on without an agent.
    eventually(HANDED_OVER, "the device changes hands", || {
        let serve = serve(lab.node(1));
        if serve == [Some(first), Some(second)] || serve == [Some(second), Some(first)] {
            Ok(())
        } else {
            Err(format!("{serve:?}, {first}, {second}"))
        }
    })?;
    flowing(&streams, 50)?;
    lab.node_mut(1).start_agent()?;
    let again = asked(lab.node(1));
    eventually(HANDED_OVER, "the other device is asked for", || {
        if asked(lab.node(1)) > again { Ok(()) } else { Err(said(lab.node(1))) }
    })?;
    lab.node_mut(1).kill_agent()?;
    flowing(&streams, 50)?;
    lab.node_mut(1).start_agent()?;
    eventually(HANDED_OVER, "the new tunnel has both devices", || {
        let serve = serve(lab.node(1));
        if serve == [Some(second); 2] { Ok(()) } else { Err(format!("{serve:?}; {}", said(lab.node(1)))) }
    })?;
    lab.node_mut(1).retire_tunnel()?;
    all_rotated(&lab, &[1], &[old])?;
    flowing(&streams, 20)?;

    let (count, sent) = (streams.len(), streams.iter().map(|stream| stream.report().sent).sum::<u64>());
    let lost =
        || drops(lab.nodes.iter().map(|node| &node.namespace).chain(pods.iter().map(|pod| &pod.namespace)));
    let gap = lossless(streams).with_context(lost)?;
    let frames = witness.clean(&lab)?;
    println!(
        "two bad releases and two agents killed amid a hand-over: {count} streams, {sent} records, 0 lost, longest gap {gap:?}; \
         {frames} frames, none in clear"
    );
    Ok(())
}
