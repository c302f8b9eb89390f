//! The data path of real agents: what is delivered, translated, refused and cut, on which way, in what order, and that
//! nothing of it is ever seen in clear. Each test has a lab of its own.
//!
//! With `HAWSER_KERNEL_WIREGUARD` in the environment nodes have the kernel's WireGuard instead of `mesh-tunnel`;
//! `HAWSER_STREAM_INTERVAL_MS` is the time between records of a stream in `restart` (10 without).
//! `HAWSER_SHORT_LIVED_PODS` is the number of short-lived pods in `races` (200 without; the promise is 1,000).

mod support;

mod delivery;
mod flips;
mod flows;
mod guard;
mod host_ports;
mod nodes;
mod outside;
mod races;
mod restart;
mod reuse;
mod revocation;
mod services;
mod shaping;
mod spoofing;
mod wrong;

use std::time::Duration;

use anyhow::Result;
use chaos_tests::{Lab, LabOptions};

/// For a mesh to be complete on a busy or emulated machine.
const MESH: Duration = Duration::from_secs(120);
/// For a change in the API to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A lab with this many nodes whose mesh is complete.
fn lab(name: &str, nodes: u8) -> Result<Lab> {
    lab_of(LabOptions::new(netlab::unique_name(name)).nodes(nodes))
}

fn lab_of(mut options: LabOptions) -> Result<Lab> {
    options.kernel_wireguard = std::env::var_os("HAWSER_KERNEL_WIREGUARD").is_some();
    let lab = Lab::up(options)?;
    lab.await_settled(MESH)?;
    Ok(lab)
}
