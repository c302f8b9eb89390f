//! The mesh of real agents and tunnels: what talks, what breaks, what comes back, and that nothing of it is ever seen in
//! clear. Each test has a lab of its own.
//!
//! `HAWSER_ROTATIONS` is the number of times that every node of `rotation` replaces its keys (2 without; the promise is 10),
//! `HAWSER_ROTATING_NODES` that of its nodes (3 without; the promise is 5). With `HAWSER_KERNEL_WIREGUARD` in the environment
//! they have the kernel's WireGuard.

mod audit;
mod cli;
mod clusters;
mod connectivity;
mod dead_node;
mod drift;
mod host_traffic;
mod membership;
mod processes;
mod psk;
mod retired;
mod rotation;
mod rotation_faults;
mod taken_over;
mod traffic;
mod uninstall;
mod upgrade;
mod weather;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::{Lab, LabOptions, Node};
use netlab::eventually;

/// For a mesh to be complete on a busy machine.
const MESH: Duration = Duration::from_secs(60);

/// A lab whose mesh is complete.
fn lab(options: LabOptions) -> Result<Lab> {
    let lab = Lab::up(options)?;
    lab.await_settled(MESH)?;
    Ok(lab)
}

/// Options of a lab with this many nodes that looks for drift every second.
fn options(name: &str, nodes: u8) -> LabOptions {
    LabOptions { drift_interval: 1, ..LabOptions::new(netlab::unique_name(name)).nodes(nodes) }
}

/// Waits until an agent is ready and has turned this many times more.
fn settled(node: &Node, turns: f64) -> Result<()> {
    eventually(Duration::from_secs(20), "the agent is ready", || node.ready())?;
    turned(node, turns)
}

/// Waits until an agent, ready or not, has turned this many times more.
fn turned(node: &Node, turns: f64) -> Result<()> {
    let count = || node.metric("hawser_reconcile_seconds_count");
    let up = || count().map_err(|error| format!("{error:#}"));
    let wanted = eventually(Duration::from_secs(20), "the agent answers", up)? + turns;
    eventually(Duration::from_secs(20), "the agent turns", || match count() {
        Ok(now) if now >= wanted => Ok(()),
        Ok(now) => Err(format!("{now} of {wanted} turns")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    Ok(())
}

/// Waits until a sample reaches a value.
fn counted(node: &Node, metric: &str, wanted: f64, deadline: Duration) -> Result<f64> {
    let seen = eventually(deadline, &format!("{metric} reaches {wanted}"), || match node.metric(metric) {
        Ok(value) if value >= wanted => Ok(value),
        Ok(value) => Err(value.to_string()),
        Err(error) => Err(format!("{error:#}")),
    });
    seen.with_context(|| {
        let log = node.log("mesh-agent").unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        format!("{} says, newest first: {}", node.name, lines.join("\n"))
    })
}

/// The name of a sample with a `kind`.
fn kind(metric: &str, kind: &str) -> String {
    format!("{metric}{{kind=\"{kind}\"}}")
}

/// Fails with what failed.
fn none(failures: &[String]) -> Result<()> {
    ensure!(failures.is_empty(), "{} failed: {}", failures.len(), failures.join("; "));
    Ok(())
}
