//! The commands that are used when something is wrong, on a cluster in which something is: one node does not report any more, the agent
//! of another hangs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::Lab;
use chaos_tests::cluster::node_name;
use kubeapi::{Patch, Store, User};
use mesh_core::numbers::{NAMESPACE, PORT_METRICS};
use netlab::{Output, Process, Signal};
use serde_json::{Value, json};

use super::{NODES, VIEWER, answered, hawser, with};
use crate::audit::pods_of_agents;
use crate::psk::{all_agreed, started};

const OPERATOR: &str = "/etc/hawser/operator";
/// For what a command does without waiting for who is dead.
const SOON: Duration = Duration::from_secs(45);

/// Node 3 does not report, and its agent is gone; the agent of node 2 takes connections and answers nothing.
fn half_dead(lab: &mut Lab) -> Result<()> {
    lab.node_mut(3).stop_agent()?;
    let conditions = json!([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "lastHeartbeatTime": null, "lastTransitionTime": null}]);
    let store = store(lab);
    let patch = |status: Value| Patch::Merge(json!({"status": status}));
    store
        .patch_status("nodes", None, &node_name(3), &patch(json!({"conditions": conditions})))
        .map_err(|e| anyhow!("{e}"))?;
    store
        .patch_status("pods", Some(NAMESPACE), "mesh-agent-3", &patch(json!({"phase": "Failed"})))
        .map_err(|e| anyhow!("{e}"))?;
    Ok(lab.node(2).agent().context("an agent")?.signal(Signal::STOP)?)
}

/// Starts `hawser` on node 1.
fn spawn(lab: &Lab, words: &[&str]) -> Result<Process> {
    let mut command = Command::new(lab.binaries.hawser()?);
    command.args(words).env("NO_COLOR", "1").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    Ok(lab.node(1).namespace.spawn(command, Output::Lines)?)
}

/// Waits for its end, and for these words in what it has said; its exit code.
fn says(process: &Process, words: &[&str]) -> Result<i32> {
    let status = process.wait(SOON)?;
    for word in words {
        // Its last lines may be read after its end.
        process.wait_for_line(SOON, word, |line| line.contains(word))?;
    }
    status.code().context("it ended by a signal")
}

#[test]
fn on_a_half_dead_cluster_commands_say_what_they_can_and_name_the_rest() -> Result<()> {
    let config = format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\nrotation:\n  quietSeconds: 2\n");
    let mut lab = started("cli-half", 3, 1, &config)?;
    let _pods = [lab.add_pod(1, "web")?, lab.add_pod(3, "db")?];
    all_agreed(&lab, &NODES)?;
    pods_of_agents(&lab)?;
    for (path, name) in [(VIEWER, "hawser-viewer"), (OPERATOR, "hawser-operator")] {
        lab.node(1).write_file(path, &lab.kubeconfig(&User::service_account(NAMESPACE, name)))?;
    }
    half_dead(&mut lab)?;

    // What policy says of two pods is in the API; whether it is in force their nodes' agents know, one of which is gone.
    let explain = ["policy", "explain", "default/web", "default/db", "--port", "80"];
    let wanted = [
        "default/web to default/db: it may pass, as far as is known",
        "node node-3: whether policy is in force there is not known",
        "mesh-agent-3",
    ];
    answered(&with(&lab, VIEWER, &explain)?, 4, &wanted)?;

    sysdump(&lab)?;
    interrupted(&lab)?;
    rotate(&mut lab)
}

fn store(lab: &Lab) -> &Store {
    lab.api().store()
}

fn listed(lab: &Lab, archive: &str) -> Result<String> {
    lab.node(1).sh(&format!("tar -tzf {archive}"))
}

fn index(lab: &Lab, archive: &str) -> Result<Value> {
    let text = lab.node(1).sh(&format!("tar -xzf {archive} -O hawser-sysdump/index.json"))?;
    serde_json::from_str(&text).context(text)
}

fn sysdump(lab: &Lab) -> Result<()> {
    const FILE: &str = "/etc/hawser/half.tar.gz";
    // What a program that was killed has left there.
    lab.node(1).write_file("/etc/hawser/.half.tar.gz.partial", "")?;
    let begun = Instant::now();
    let dump = with(lab, VIEWER, &["sysdump", "--file", FILE])?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    let words = [
        "agents/node-2: ",
        "no answer in 5 s",
        "agents/node-3: ",
        "logs/mesh-agent-3: not asked for: node node-3 is not Ready",
        // No kubelet runs in a lab, so these are asked for in vain.
        "logs/mesh-agent-1/mesh-agent.log: ",
    ];
    answered(&dump, 4, &words)?;
    let files = listed(lab, FILE)?;
    for wanted in ["objects/nodes.json", "objects/hawser-system/leases.json", "agents/node-1/audit.json"] {
        ensure!(files.contains(wanted), "no {wanted}: {files}");
    }
    ensure!(!files.contains("agents/node-2") && !files.contains("agents/node-3"), "{files}");
    ensure!(index(lab, FILE)?["ended"] == "complete");

    const LATE: &str = "/etc/hawser/late.tar.gz";
    let words = ["sysdump", "--file", LATE, "--deadline", "3", "--timeout", "60", "--kubeconfig", VIEWER];
    let begun = Instant::now();
    answered(&hawser(lab, &words)?, 4, &["time was up", "agents/node-2: its answer was not waited for"])?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    ensure!(index(lab, LATE)?["ended"] == "deadline");
    Ok(())
}

/// Ctrl-C keeps what is there.
fn interrupted(lab: &Lab) -> Result<()> {
    const FILE: &str = "/etc/hawser/interrupted.tar.gz";
    let words = ["sysdump", "--file", FILE, "--timeout", "300", "--kubeconfig", VIEWER];
    let dump = spawn(lab, &words)?;
    // All objects are written, and the agent that hangs is waited for.
    netlab::eventually(SOON, "the archive grows", || {
        let there = lab.node(1).sh("stat -c %s /etc/hawser/.interrupted.tar.gz.partial");
        match there.map(|size| size.trim().parse::<u64>()) {
            Ok(Ok(size)) if size > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    dump.signal(Signal::INT)?;
    ensure!(says(&dump, &["it was interrupted"])? == 4, "{:?}", dump.lines());
    let files = listed(lab, FILE)?;
    ensure!(files.contains("objects/nodes.json") && files.contains("index.json"), "{files}");
    let left = lab.node(1).sh("ls -A /etc/hawser")?;
    ensure!(index(lab, FILE)?["ended"] == "interrupted" && !left.contains("partial"), "{left}");
    Ok(())
}

fn rotate(lab: &mut Lab) -> Result<()> {
    let words = |more: &[&'static str]| [&["keys", "rotate", "--kubeconfig", OPERATOR], more].concat();
    let late = hawser(lab, &words(&["--all", "--timeout", "4"]))?;
    let wanted = [
        "warning: node node-3 is not Ready and no pod of mesh-agent runs on node node-3",
        "not done after",
        "node-3: asked; node node-3 is not Ready",
        "node-2: ",
        "RotationOverdue",
    ];
    answered(&late, 4, &wanted)?;
    let (code, json, err) = hawser(lab, &words(&["node-3", "--timeout", "1", "-o", "json"]))?;
    let told: Value = serde_json::from_str(&json).with_context(|| format!("{json}{err}"))?;
    ensure!(
        code == 4 && told["verdict"] == "incomplete" && told["nodes"]["node-3"]["stage"] == "asked",
        "{told}"
    );
    ensure!(told["late"]["node-3"].is_string() && told["warnings"]["node-3"].is_string(), "{told}");

    // A right that is lost while it waits is no reason to wait on; then an API that is.
    let waits = |lab: &Lab, more: &[&'static str]| -> Result<Process> {
        let process = spawn(lab, &words(more))?;
        process.wait_for_line(SOON, "asked", |line| line.contains(": asked ("))?;
        Ok(process)
    };
    let ended = |process: &Process, code: i32, wanted: &[&str]| -> Result<()> {
        ensure!(says(process, wanted)? == code, "{:?}", process.lines());
        Ok(())
    };
    let name = "hawser-operator";
    let binding: Value = store(lab).get("clusterrolebindings", None, name).map_err(|e| anyhow!("{e}"))?;
    let process = waits(lab, &["node-3", "--timeout", "600"])?;
    store(lab).delete_now("clusterrolebindings", None, name).map_err(|e| anyhow!("{e}"))?;
    ended(&process, 4, &["you may not list nodes", "the last look failed"])?;
    let mut binding = binding;
    binding["metadata"] = json!({"name": name});
    let _: Value = store(lab).create(&binding).map_err(|e| anyhow!("{e}"))?;

    // A node that is deleted is not waited for.
    let process = waits(lab, &["node-3", "--timeout", "600"])?;
    store(lab).delete_now("nodes", None, &node_name(3)).map_err(|e| anyhow!("{e}"))?;
    ended(&process, 0, &["node-3: there is no such Node any more"])?;

    let process = waits(lab, &["node-2", "--timeout", "8"])?;
    lab.stop_api();
    ended(
        &process,
        4,
        &["warning: could not list nodes", "does not answer", "the last look failed", "node-2: asked"],
    )
}
