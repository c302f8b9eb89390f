//! `cargo xtask bench memory`: what an agent that has nothing to do holds, on three nodes and among 1,000 nodes and 10,000 pods.
//!
//! Resident memory has three parts: what only this process has (`RssAnon`), what it has touched of files, its own program above
//! all, which goes under pressure (`RssFile`), and what it shares (`RssShmem`). Goals are for the sum.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::bench::Row;

use crate::bench_watch::{CIDRS, create, node, pod};
use crate::cluster::{Lab, LabOptions};
use crate::node::Node;
use crate::usage::{bpf_memory, memory, until_idle};

const BENCH: &str = "memory";
/// For agents to have nothing more to do.
const UP: Duration = Duration::from_secs(300);
/// Nodes and pods of the large cluster.
const LARGE: (u32, u32) = (1_000, 10_000);

/// Measures.
///
/// # Errors
/// A lab cannot be made, or an agent does not become ready.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    say("Three nodes");
    {
        let mut options = LabOptions::new(netlab::unique_name("memory"));
        options.end_on_signal = true;
        let lab = Lab::up(options)?;
        lab.await_settled(UP)?;
        let nodes: Vec<&Node> = lab.nodes.iter().collect();
        rows.extend(measure("3 nodes", &nodes)?);
    }
    let (nodes, pods) = LARGE;
    say(&format!("Writing {nodes} nodes and {pods} pods into the embedded API"));
    let mut options = LabOptions::new(netlab::unique_name("memory")).nodes(0);
    options.cluster_cidrs = CIDRS;
    options.end_on_signal = true;
    let mut lab = Lab::up(options)?;
    for number in 0..nodes {
        create(&lab, &node(number))?;
    }
    for number in 0..pods {
        create(&lab, &pod(number, nodes))?;
    }
    say("Starting one agent");
    lab.add_node(1)?;
    netlab::eventually(UP, "the agent is ready", || lab.node(1).ready())?;
    netlab::eventually(UP, "all addresses are in the maps", || {
        let known = lab.node(1).metric("hawser_policy_size{kind=\"addresses\"}");
        match known {
            Ok(known) if known >= f64::from(pods) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    rows.extend(measure(&format!("{nodes} nodes, {pods} pods"), &[lab.node(1)])?);
    Ok(rows)
}

/// Of idle agents, and of the tunnels beside them.
fn measure(subject: &str, nodes: &[&Node]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut add = |metric: &str, values: &[f64]| rows.extend(Row::of(BENCH, subject, metric, "MiB", values));
    let agents =
        nodes.iter().map(|node| Ok(node.agent().context("an agent")?.id())).collect::<Result<Vec<i32>>>()?;
    for agent in &agents {
        until_idle(*agent)?;
    }
    let of = |pids: &[i32], line: &str| -> Result<Vec<f64>> {
        // From MB.
        pids.iter().map(|pid| Ok(memory(*pid, line)? * 1e6 / f64::from(1 << 20))).collect()
    };
    for (metric, line) in [
        ("agent, resident", "VmRSS:"),
        ("agent, its own", "RssAnon:"),
        ("agent, of files", "RssFile:"),
        ("agent, most", "VmHWM:"),
    ] {
        add(metric, &of(&agents, line)?);
    }
    let maps = agents
        .iter()
        .map(|pid| Ok(bpf_memory(*pid)? * 1e6 / f64::from(1 << 20)))
        .collect::<Result<Vec<f64>>>()?;
    add("BPF maps", &maps);
    let tunnels = nodes.iter().filter_map(|node| Some(node.tunnel()?.id())).collect::<Vec<i32>>();
    add("tunnel, resident", &of(&tunnels, "VmRSS:")?);
    Ok(rows)
}
