//! `hawser doctor` on paths between nodes that take less than the tunnel sends.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::Lab;
use chaos_tests::cluster::Switch;
use kubeapi::User;
use mesh_core::numbers::{NAMESPACE, PORT_METRICS};
use serde_json::Value;

use super::{NODES, VIEWER, answered, document, with};
use crate::audit::pods_of_agents;
use crate::psk::{all_agreed, started};

/// For a round of echoes, which is not repeated at once.
const ROUND: Duration = Duration::from_secs(60);

/// Sets the MTU of the switch's end of a node's cable. What is larger the switch drops, and as a switch it says nothing.
fn narrow(lab: &Lab, node: u8, mtu: u32) -> Result<()> {
    let Switch::Bridge(bridge) = lab.switch.as_ref() else { anyhow::bail!("the switch is a bridge") };
    let mut command = Command::new("ip");
    let port = format!("p{}", lab.node(node).port.index());
    command.args(["link", "set", "dev", &port, "mtu", &mtu.to_string()]);
    let output = bridge.namespace().exec(command, Duration::from_secs(10))?;
    ensure!(output.status.success(), "{}", output.stderr_text());
    Ok(())
}

/// What the check of MTUs says.
fn mtu(document: &Value) -> Result<(String, Vec<Value>)> {
    let checks = document["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == "mtu").context("the check")?;
    let looked = check["looked"].as_str().unwrap_or_default().to_owned();
    Ok((looked, check["findings"].as_array().cloned().unwrap_or_default()))
}

#[test]
fn a_path_narrower_than_the_tunnel_is_found_and_the_mtu_that_it_takes_is_named() -> Result<()> {
    let lab = started("cli-paths", 3, 1, &format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\n"))?;
    all_agreed(&lab, &NODES)?;
    pods_of_agents(&lab)?;
    lab.node(1).write_file(VIEWER, &lab.kubeconfig(&User::service_account(NAMESPACE, "hawser-viewer")))?;
    let (_, json, err) = with(&lab, VIEWER, &["doctor", "-o", "json"])?;
    let whole: Value = serde_json::from_str(&json).with_context(|| format!("{json}{err}"))?;
    let (looked, findings) = mtu(&whole)?;
    ensure!(
        looked.contains("6 of 6 ways between nodes were tried") && findings.is_empty(),
        "{looked} {findings:?}"
    );

    narrow(&lab, 2, 1400)?;
    let found = netlab::eventually(ROUND, "the narrow paths are found", || {
        let found = with(&lab, VIEWER, &["doctor"]).map_err(|error| format!("{error:#}"))?;
        // Both ways of two pairs.
        if found.1.matches("path-narrow ").count() == 4 { Ok(found) } else { Err(found.1) }
    })?;
    println!("{}", found.1);
    let words = [
        "mtu: FAULT",
        "between node-1 and node-2 is narrower",
        "those of 13",
        "let ICMP pass between the nodes",
    ];
    answered(&found, 3, &words)?;
    ensure!(!found.1.contains("between node-1 and node-3"), "{}", found.1);
    let narrow_ways = document(&lab, 3, &["doctor"])?;
    for finding in mtu(&narrow_ways)?.1 {
        // The value that is named does fit: 1404 bytes pass the switch, 80 of which may be WireGuard's.
        let remedy = finding["remedy"].as_str().context("a remedy")?;
        let named = remedy.split("agents to ").nth(1).and_then(|rest| rest.split(' ').next());
        let named: u32 = named.with_context(|| remedy.to_owned())?.parse()?;
        ensure!((1310..=1344).contains(&named), "{remedy}");
    }

    narrow(&lab, 2, 1500)?;
    netlab::eventually(ROUND, "the paths are wide again", || {
        let found = with(&lab, VIEWER, &["doctor"]).map_err(|error| format!("{error:#}"))?;
        if found.1.contains("path-narrow") { Err(found.1) } else { Ok(()) }
    })?;

    // Where the host knows that a path is narrow, so does the tunnel, and tells who sends.
    let (v4, v6) = lab.underlay_of(2);
    lab.node(1).sh(&format!("ip route add {v4}/32 dev eth0 mtu 1400"))?;
    lab.node(1).sh(&format!("ip -6 route add {v6}/128 dev eth0 mtu 1400"))?;
    let told = netlab::eventually(ROUND, "the told path is found", || {
        let found = with(&lab, VIEWER, &["doctor"]).map_err(|error| format!("{error:#}"))?;
        if found.1.contains("path-narrow-told") { Ok(found) } else { Err(found.1) }
    })?;
    println!("{}", told.1);
    answered(
        &told,
        told.0,
        &["between node-1 and node-2", "is told so by ICMP", "set mtu in the configuration"],
    )?;
    ensure!(!told.1.contains("path-narrow "), "{}", told.1);
    lab.agents_were_refused_nothing()
}
