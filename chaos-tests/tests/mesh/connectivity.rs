//! `hawser connectivity test` against a lab, by somebody who has the rights of `deploy/cli.yaml` for it: it finds what is well, what
//! policy no longer does and which link is broken; it is gone afterwards however it ends, and touches nothing of others.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::kubelet::Kubelet;
use chaos_tests::objects::apply;
use chaos_tests::{Lab, LabOptions};
use kubeapi::{Patch, User};
use mesh_core::numbers::NAMESPACE;
use netlab::{Output, Process, Signal, eventually};
use serde_json::{Value, json};

use crate::{MESH, options};

const TESTER: &str = "/etc/hawser/tester";
const VIEWER: &str = "/etc/hawser/viewer";
/// Where the command works unless it is told otherwise.
const PLACE: &str = "hawser-connectivity-test";
/// For one run, on a busy machine.
const RUN: Duration = Duration::from_secs(120);

/// A command under way, and the kubelets that serve it.
struct Run<'a> {
    lab: &'a Lab,
    kubelet: Kubelet,
    process: Process,
}

impl<'a> Run<'a> {
    fn start(lab: &'a Lab, kubeconfig: &str, words: &[&str]) -> Result<Self> {
        let program = lab.binaries.hawser()?;
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >/etc/hawser/out 2>/etc/hawser/err", "sh"]).arg(&program);
        command.args(["connectivity", "test", "--kubeconfig", kubeconfig]).args(words);
        command.env("NO_COLOR", "1").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        let process = lab.node(1).namespace.spawn(command, Output::Inherit)?;
        Ok(Self { lab, kubelet: Kubelet::new(PLACE, program), process })
    }

    /// Serves until something is so.
    fn until<T>(&mut self, what: &str, mut seen: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        Ok(eventually(RUN, what, || {
            let text = |error: anyhow::Error| format!("{error:#}");
            self.kubelet.turn(self.lab).map_err(text)?;
            seen(self).map_err(text)?.ok_or_else(|| format!("{} pods", self.kubelet.pods()))
        })?)
    }

    /// Serves until it has ended: exit code, output, errors.
    fn end(&mut self, mut meanwhile: impl FnMut(&Lab) -> Result<()>) -> Result<(i32, String, String)> {
        let status = self.until("the command ends", |run| {
            meanwhile(run.lab)?;
            Ok(run.process.try_wait()?)
        })?;
        let code = status.code().context("ended by a signal")?;
        Ok((code, self.lab.node(1).sh("cat /etc/hawser/out")?, self.lab.node(1).sh("cat /etc/hawser/err")?))
    }

    /// Nothing of a run is left.
    fn gone(&self) -> Result<()> {
        let there = self.lab.api().store().find("namespaces", None, PLACE);
        ensure!(there.is_none() && self.kubelet.pods() == 0, "{there:?}, {} pods", self.kubelet.pods());
        Ok(())
    }
}

/// Runs it to its end.
fn run(
    lab: &Lab,
    words: &[&str],
    meanwhile: impl FnMut(&Lab) -> Result<()>,
) -> Result<(i32, String, String)> {
    let mut run = Run::start(lab, TESTER, words)?;
    let ended = run.end(meanwhile)?;
    run.gone().with_context(|| format!("{ended:?}"))?;
    Ok(ended)
}

fn answered((code, out, err): &(i32, String, String), wanted: i32, words: &[&str]) -> Result<()> {
    let said = format!("{out}{err}");
    let missing: Vec<&&str> = words.iter().filter(|word| !said.contains(**word)).collect();
    ensure!(*code == wanted && missing.is_empty(), "wanted {wanted} and {missing:?}, got {code}: {said}");
    Ok(())
}

/// Everything that is somebody else's, with its version.
fn others(lab: &Lab) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for resource in ["namespaces", "pods", "services", "networkpolicies", "daemonsets", "configmaps"] {
        let objects: Vec<Value> =
            lab.api().store().list(resource, None).map_err(|error| anyhow!("{error}"))?;
        for object in objects {
            let metadata = &object["metadata"];
            all.insert(
                format!("{resource} {}/{}", metadata["namespace"], metadata["name"]),
                metadata["resourceVersion"].clone(),
            );
        }
    }
    Ok(all)
}

#[test]
fn a_test_of_connectivity_passes_fails_as_it_should_and_leaves_nothing() -> Result<()> {
    let options = LabOptions { allocates_services: true, ..options("connectivity", 2) };
    let lab = Lab::up(options)?;
    lab.await_settled(MESH)?;
    let _bystander = lab.add_pod(1, "bystander")?;
    for (path, name) in [(TESTER, "hawser-tester"), (VIEWER, "hawser-viewer")] {
        lab.node(1).write_file(path, &lab.kubeconfig(&User::service_account(NAMESPACE, name)))?;
    }
    let before = others(&lab)?;
    well(&lab)?;
    policy_is_gone(&lab)?;
    a_link_is_cut(&lab)?;
    a_node_is_not_ready(&lab)?;
    interrupted(&lab)?;
    kept(&lab)?;
    ensure!(before == others(&lab)?, "something of others was touched");
    Ok(())
}

fn well(lab: &Lab) -> Result<()> {
    let (code, out, err) = run(lab, &["--throughput-seconds", "0.1", "-o", "json"], |_| Ok(()))?;
    ensure!(code == 0 && err.is_empty(), "{code}: {out}{err}");
    let report: Value = serde_json::from_str(&out)?;
    ensure!(report["verdict"] == "holds" && report["kept"] == false, "{out}");
    ensure!(report["skipped"].to_string().contains("no DNS"), "{out}");
    ensure!(report["nodes"] == json!(["node-1", "node-2"]), "{out}");
    let checks = report["checks"].as_array().context("checks")?;
    // On each node, to each node, in both families; services from each node.
    let kinds = [
        ("oneNode", 4),
        ("acrossNodes", 4),
        ("hostOneNode", 4),
        ("hostAcrossNodes", 4),
        ("service", 4),
        ("name", 2),
        ("policyAllows", 8),
        ("policyDeniesPod", 8),
        ("policyDeniesPort", 8),
        ("policyDeniesEgress", 8),
    ];
    for (kind, count) in kinds {
        let of_kind: Vec<&Value> = checks.iter().filter(|check| check["kind"] == kind).collect();
        ensure!(of_kind.len() == count, "{kind}: {of_kind:#?}");
        for check in of_kind {
            let wanted = if kind == "name" { "skipped" } else { "passed" };
            ensure!(check["outcome"] == wanted, "{check}");
            let measured = &check["measured"];
            let way = !kind.starts_with("policy") && kind != "name";
            let times = |protocol: &str| {
                let times = &measured[protocol];
                let of = |share: &str| times[share].as_u64().unwrap_or(0);
                of("p50Microseconds") > 0 && of("p50Microseconds") <= of("p99Microseconds")
            };
            ensure!(!way || times("tcp") && times("udp"), "{check}");
            ensure!(
                !way || measured["bytesPerSecond"].as_u64().is_some_and(|rate| rate > 100_000),
                "{check}"
            );
        }
    }
    let total: usize = kinds.iter().map(|(_, count)| count).sum();
    ensure!(checks.len() == total, "{out}");
    Ok(())
}

/// Somebody deletes the policies: what they should deny is answered.
fn policy_is_gone(lab: &Lab) -> Result<()> {
    let words = ["--node", "node-1", "--throughput-seconds", "0"];
    let found = run(lab, &words, |lab| {
        let store = lab.api().store();
        let policies: Vec<Value> = store.list("networkpolicies", Some(PLACE))?;
        for policy in policies {
            let name = policy["metadata"]["name"].as_str().unwrap_or_default();
            store.delete_now("networkpolicies", Some(PLACE), name).map_err(|error| anyhow!("{error}"))?;
        }
        Ok(())
    })?;
    let words = [
        "IPv4: TCP, UDP: it was answered, though a NetworkPolicy denies it",
        "dataPath: enforce",
        "only one node is tested",
        "denies sending  mute-0 (node-1)",
        "hawser policy explain hawser-connectivity-test/stranger-0 hawser-connectivity-test/guarded-0",
    ];
    answered(&found, 3, &words)?;
    ensure!(!found.1.contains("across nodes"), "{}", found.1);
    Ok(())
}

/// What goes over the link fails, and nothing else.
fn a_link_is_cut(lab: &Lab) -> Result<()> {
    // Both reach the API server, and not each other.
    let with_hosts = |node| [lab.hosts.as_slice(), &[lab.node(node).port]].concat();
    lab.switch.partition(&[&with_hosts(1), &with_hosts(2)])?;
    let words = ["--throughput-seconds", "0", "--no-host", "--patience", "2", "-o", "json"];
    let found = run(lab, &words, |_| Ok(()));
    lab.switch.heal()?;
    let (code, out, err) = found?;
    ensure!(code == 3 && err.is_empty(), "{code}: {out}{err}");
    let report: Value = serde_json::from_str(&out)?;
    let (mut failed, mut unknown) = (0, 0);
    for check in report["checks"].as_array().context("checks")? {
        let across = check["toNode"].is_string() && check["toNode"] != check["fromNode"];
        let wanted = match check["kind"].as_str() {
            Some("name") => "skipped",
            Some("service") => "failed",
            // Silence, where nobody is heard at all.
            Some("policyDeniesPort" | "policyDeniesEgress") if across => "unknown",
            _ if across => "failed",
            _ => "passed",
        };
        ensure!(check["outcome"] == wanted, "{wanted}: {check}");
        failed += usize::from(wanted == "failed");
        unknown += usize::from(wanted == "unknown");
        if check["kind"] == "acrossNodes" {
            let finding = &check["findings"][0];
            let remedy = finding["remedy"].as_str().unwrap_or_default();
            ensure!(finding["code"] == "silent" && remedy.contains("UDP 51880 and 51881"), "{check}");
        }
        // Which of the two was asked at first is drawn by lot.
        let codes: Vec<&Value> =
            check["findings"].as_array().into_iter().flatten().map(|finding| &finding["code"]).collect();
        let silent = codes.iter().all(|code| **code == "some-silent" || **code == "silent");
        ensure!(check["kind"] != "service" || silent, "{check}");
    }
    ensure!(failed == 16 && unknown == 8, "{failed} failed, {unknown} unknown: {out}");
    Ok(())
}

/// Who cannot be tested is named, and that the other one is well is not all that was asked for.
fn a_node_is_not_ready(lab: &Lab) -> Result<()> {
    let set = |ready: &str| -> Result<()> {
        let conditions = json!([{"type": "Ready", "status": ready, "reason": "Lab",
            "lastHeartbeatTime": null, "lastTransitionTime": null}]);
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        lab.api()
            .store()
            .patch_status("nodes", None, "node-2", &patch)
            .map_err(|error| anyhow!("{error}"))?;
        Ok(())
    };
    set("False")?;
    let found = run(lab, &["--throughput-seconds", "0", "--no-host"], |_| Ok(()));
    set("True")?;
    answered(&found?, 4, &["0 failed, 0 not known", "not tested: node node-2 is not ready", "--nodes"])
}

/// SIGINT in the midst, and rights that are missing.
fn interrupted(lab: &Lab) -> Result<()> {
    let mut run = Run::start(lab, TESTER, &[])?;
    run.until("some pods run", |run| Ok((run.kubelet.pods() >= 3).then_some(())))?;
    run.process.signal(Signal::INT)?;
    let ended = run.end(|_| Ok(()))?;
    answered(&ended, 1, &["interrupted"])?;
    run.gone()?;
    let refused = Run::start(lab, VIEWER, &[])?.end(|_| Ok(()))?;
    answered(&refused, 1, &["you may not create namespaces", "deploy/cli.yaml"])?;
    let nobody = Run::start(lab, TESTER, &["--node", "node-7"])?.end(|_| Ok(()))?;
    answered(&nobody, 1, &["node-7: there is no such node", "kubectl get nodes"])
}

/// What is kept is there, in nobody's way but the next run's, and what is somebody else's is left alone.
fn kept(lab: &Lab) -> Result<()> {
    let words = ["--keep", "--node", "node-2", "--no-host", "--throughput-seconds", "0"];
    let mut run = Run::start(lab, TESTER, &words)?;
    let ended = run.end(|_| Ok(()))?;
    answered(
        &ended,
        0,
        &["Everything is still in namespace", "kubectl delete namespace hawser-connectivity-test"],
    )?;
    let again = Run::start(lab, TESTER, &words)?.end(|_| Ok(()));
    answered(&again?, 1, &["is there already: another run is under way", "--namespace"])?;
    let store = lab.api().store();
    store.delete("namespaces", None, PLACE).map_err(|error| anyhow!("{error}"))?;
    run.until("what was kept is gone", |run| Ok(run.gone().ok()))?;
    apply(lab, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}))?;
    let foreign = Run::start(lab, TESTER, &words)?.end(|_| Ok(()))?;
    answered(&foreign, 1, &["none of this command's"])?;
    ensure!(store.find("namespaces", None, PLACE).is_some(), "somebody else's namespace was deleted");
    store.delete_now("namespaces", None, PLACE).map_err(|error| anyhow!("{error}"))
}
