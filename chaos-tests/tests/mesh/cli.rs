//! The commands of `hawser` against a lab, as somebody runs them who has the rights that `deploy/cli.yaml` gives: what each says
//! is what API, devices and agents say, and each failure names its remedy.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::{ECHO_PORT, Party, canary};
use chaos_tests::objects::{apply, ingress_only, network_policy};
use chaos_tests::{Lab, Pod};
use kubeapi::User;
use mesh_core::numbers::{NAMESPACE, PORT_METRICS};
use netlab::probe::Canary;
use serde_json::{Value, json};

use crate::audit::{ADMIN, no_secret, pods_of_agents};
use crate::psk::{all_agreed, started};

mod half_dead;
mod paths;

const NODES: [u8; 3] = [1, 2, 3];
const VIEWER: &str = "/etc/hawser/viewer";
const STRANGER: &str = "/etc/hawser/stranger";
/// For a policy to be in force, and for an agent to look again.
const POLICY: Duration = Duration::from_secs(20);
/// For a command that asks twice and waits for a silent agent.
const COMMAND: Duration = Duration::from_secs(60);

/// Runs `hawser` on node 1 under a name: exit code, output, errors.
fn run_as(lab: &Lab, name: Option<&str>, words: &[&str]) -> Result<(i32, String, String)> {
    let program = lab.binaries.hawser()?;
    let mut command = match name {
        // A link, as a plugin of kubectl is installed.
        Some(name) => {
            let mut shell = Command::new("sh");
            let link =
                format!("ln -sf {} /etc/hawser/{name} && exec /etc/hawser/{name} \"$@\"", program.display());
            shell.args(["-c", &link, name]);
            shell
        }
        None => Command::new(program),
    };
    command.args(words).env("NO_COLOR", "1").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    let output = lab.node(1).namespace.exec(command, COMMAND)?;
    let code = output.status.code().with_context(|| format!("{words:?} ended by a signal"))?;
    Ok((code, output.stdout_text(), output.stderr_text()))
}

pub(crate) fn hawser(lab: &Lab, words: &[&str]) -> Result<(i32, String, String)> {
    run_as(lab, None, words)
}

/// The same with a kubeconfig.
fn with(lab: &Lab, kubeconfig: &str, words: &[&str]) -> Result<(i32, String, String)> {
    hawser(lab, &[words, &["--kubeconfig", kubeconfig, "--timeout", "5"]].concat())
}

/// Checks an answer, and shows all of it where it is another one.
fn answered((code, out, err): &(i32, String, String), wanted: i32, words: &[&str]) -> Result<()> {
    let said = format!("{out}{err}");
    let missing: Vec<&&str> = words.iter().filter(|word| !said.contains(**word)).collect();
    ensure!(*code == wanted && missing.is_empty(), "wanted {wanted} and {missing:?}, got {code}: {said}");
    Ok(())
}

/// A document, which has to be the same in both forms but for what passes with time.
fn document(lab: &Lab, wanted: i32, words: &[&str]) -> Result<Value> {
    let (code, json, err) = with(lab, VIEWER, &[words, &["-o", "json"]].concat())?;
    ensure!(code == wanted, "{words:?}: {code}: {json}{err}");
    let (_, yaml, err) = with(lab, VIEWER, &[words, &["-o", "yaml"]].concat())?;
    let parsed: Value = serde_json::from_str(&json).with_context(|| json.clone())?;
    let other: Value = serde_saphyr::from_str(&yaml).with_context(|| format!("{yaml}{err}"))?;
    let members = |value: &Value| value.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>());
    ensure!(members(&parsed) == members(&other), "{json}{yaml}");
    Ok(parsed)
}

/// As agents are installed: their evidence is for their own node, where the API server's proxy does not reach it.
#[test]
fn agents_that_answer_on_their_node_alone_are_asked_by_port_forwards_where_that_is_allowed() -> Result<()> {
    let mut lab = started("forward", 3, 1, "")?;
    all_agreed(&lab, &[1, 2, 3])?;
    pods_of_agents(&lab)?;
    lab.node(1).write_file(ADMIN, &lab.kubeconfig(&User::admin()))?;
    lab.node(1).write_file(VIEWER, &lab.kubeconfig(&User::service_account(NAMESPACE, "hawser-viewer")))?;
    let all = with(&lab, ADMIN, &["status"])?;
    answered(&all, 0, &["3 of 3 agents answered"])?;
    // A firewall that says nothing makes the API server's proxy wait for longer than anybody waits for an answer.
    let silent = "table inet silent { chain in { type filter hook input priority 0; iifname != lo tcp dport 51891 drop; }; }";
    lab.node(2).write_file("/tmp/silent.nft", silent)?;
    lab.node(2).sh("nft -f /tmp/silent.nft")?;
    let all = with(&lab, ADMIN, &["status"])?;
    answered(&all, 0, &["3 of 3 agents answered"])?;
    // Whole documents come through, larger than a piece of a stream.
    let (code, report, err) = with(&lab, ADMIN, &["audit", "--unsigned", "-o", "json"])?;
    let report: Value = serde_json::from_str(&report).with_context(|| format!("{code}: {report}{err}"))?;
    ensure!(report.to_string().contains(&node_name(2)), "{report}");
    // Who may not is told both reasons.
    let viewer = with(&lab, VIEWER, &["status"])?;
    answered(&viewer, 4, &["0 of 3 agents answered", "503", "and by a port-forward: ", "403"])?;
    // The kubelet's words, where nobody listens.
    lab.node_mut(2).stop_agent()?;
    let half = with(&lab, ADMIN, &["status"])?;
    answered(&half, 4, &["2 of 3 agents answered", "failed to connect to localhost", "onnection refused"])?;
    Ok(())
}

#[test]
fn each_command_says_what_the_lab_is_and_what_a_user_lacks() -> Result<()> {
    let mut lab = started("cli", 3, 1, &format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\n"))?;
    let pods = [lab.add_pod(1, "web")?, lab.add_pod(1, "cron")?, lab.add_pod(2, "db")?];
    all_agreed(&lab, &NODES)?;
    pods_of_agents(&lab)?;
    lab.node(1).write_file(ADMIN, &lab.kubeconfig(&User::admin()))?;
    lab.node(1).write_file(VIEWER, &lab.kubeconfig(&User::service_account(NAMESPACE, "hawser-viewer")))?;
    lab.node(1).write_file(STRANGER, &lab.kubeconfig(&User::service_account("default", "stranger")))?;

    status(&lab)?;
    explain(&lab, &pods)?;
    doctor(&lab)?;
    sysdump(&lab)?;
    conduct(&lab)?;
    without_rights_or_a_cluster(&lab)?;

    // An agent that is gone, then all that there is to ask.
    lab.node_mut(3).stop_agent()?;
    let silent = with(&lab, VIEWER, &["status"])?;
    println!("{}", silent.1);
    answered(&silent, 4, &["2 of 3 agents answered", "node-silent", "mesh-agent-3", "503"])?;
    let half = with(&lab, VIEWER, &["doctor"])?;
    answered(
        &half,
        4,
        &["2 of 3 do", "node-silent", "mesh-agent-3", "remedy", "kubectl -n hawser-system get pods"],
    )?;
    lab.stop_api();
    let explain = ["policy", "explain", "default/web", "default/db", "--port", "80"];
    for words in [&["status"][..], &["doctor"], &["sysdump"], &explain] {
        let away = with(&lab, VIEWER, words)?;
        answered(&away, 1, &["could not list nodes", "does not answer", "is it running"])?;
        ensure!(away.1.is_empty(), "{}", away.1);
    }
    for words in ASKING {
        let away = hawser(&lab, &[words, &["--kubeconfig", ADMIN]].concat())?;
        answered(&away, nothing_known(words), &["does not answer"]).with_context(|| format!("{words:?}"))?;
    }
    Ok(())
}

/// Every command that asks an API server.
const ASKING: [&[&str]; 8] = [
    &["status"],
    &["doctor"],
    &["policy", "explain", "default/web", "default/db", "--port", "80"],
    &["sysdump"],
    &["audit", "--unsigned"],
    &["connectivity", "test"],
    &["keys", "rotate", "--all"],
    &["clustermesh", "join", "--remote-kubeconfig", STRANGER],
];

/// How a command ends that learns nothing: a report says what is missing in it.
fn nothing_known(words: &[&str]) -> i32 {
    if words.contains(&"audit") { 4 } else { 1 }
}

/// Whoever has no right, or no cluster, is told so by every command, with the remedy.
fn without_rights_or_a_cluster(lab: &Lab) -> Result<()> {
    for words in ASKING {
        let told = hawser(lab, &[words, &["--kubeconfig", STRANGER]].concat())?;
        answered(&told, nothing_known(words), &["you may not", "deploy/"])
            .with_context(|| format!("{words:?} without rights"))?;
        let told = hawser(lab, words)?;
        answered(&told, 1, &["no way to the API server", "--kubeconfig FILE"])
            .with_context(|| format!("{words:?} without a cluster"))?;
        let told = hawser(lab, &[words, &["--nonsense"]].concat())?;
        answered(&told, 2, &["--nonsense", "Usage: hawser"])?;
    }
    Ok(())
}

/// The mesh at a glance is what devices and the API say.
fn status(lab: &Lab) -> Result<()> {
    let text = with(lab, VIEWER, &["status"])?;
    answered(&text, 0, &["3 of 3 agents answered; all is well", "userspace", "enforced", "2/2"])?;
    let document = document(lab, 0, &["status"])?;
    ensure!(document["verdict"] == "holds" && document["problems"] == serde_json::json!([]), "{document}");
    for node in NODES {
        let said = &document["nodes"][usize::from(node) - 1];
        ensure!(said["name"] == node_name(node) && said["ready"] == true, "{said}");
        let agent = &said["agent"];
        ensure!(agent["peers"]["known"] == 2 && agent["peers"]["silent"] == 0, "{said}");
        ensure!(agent["version"] == env!("CARGO_PKG_VERSION"), "{said}");
        let peers = lab.node(node).peers()?;
        for slot in agent["slots"].as_array().context("slots")? {
            let of_slot = peers.iter().filter(|peer| slot["device"] == peer.device.as_str());
            ensure!(of_slot.count() == 2 && slot["epoch"].is_u64(), "{said}");
        }
        let used = lab.node(node).metric(&format!(
            "hawser_pool_addresses{{cidr=\"{}\",state=\"used\"}}",
            lab.pod_cidrs(node)[0]
        ))?;
        let pool = agent["pools"]
            .as_array()
            .context("pools")?
            .iter()
            .find(|pool| pool["cidr"] == lab.pod_cidrs(node)[0]);
        ensure!(pool.is_some_and(|pool| pool["used"].as_f64() == Some(used)), "{said}: {used}");
    }
    Ok(())
}

/// Policy as it is explained is policy as packets meet it.
fn explain(lab: &Lab, pods: &[Pod; 3]) -> Result<()> {
    let [web, cron, db] = pods;
    apply(lab, &network_policy("db", ingress_only("db", &["web"])))?;
    let _echo = Party::pod(db)?;
    let port = ECHO_PORT.to_string();
    let words =
        |from: &'static str| ["policy", "explain", from, "default/db", "--protocol", "udp", "--port", &port];
    let answers = |from: &Pod, v4: bool| -> Result<bool> {
        let canary = Canary::new(canary()).tries(1).deadline(Duration::from_millis(500));
        let at = SocketAddr::new(db.ip(v4).context("an address")?, ECHO_PORT);
        Ok(netlab::probe::udp(&from.namespace, at, &canary).is_ok())
    };
    netlab::eventually(POLICY, "the policy is in force", || match answers(cron, true) {
        Ok(false) => Ok(()),
        Ok(true) => Err("an answer".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    })?;
    let allowed = with(lab, VIEWER, &words("default/web"))?;
    answered(
        &allowed,
        0,
        &["default/web to default/db: it may pass", "NetworkPolicy default/db ingress[0]"],
    )?;
    let denied = document(lab, 3, &words("default/cron"))?;
    for v4 in [true, false] {
        ensure!(answers(web, v4)? && !answers(cron, v4)?, "packets meet another policy");
        let (from, to) = (cron.ip(v4).context("an address")?, db.ip(v4).context("an address")?);
        let flows = denied["flows"].as_array().context("flows")?;
        let flow =
            flows.iter().find(|flow| flow["flow"]["source"] == from.to_string()).context("its flow")?;
        ensure!(flow["flow"]["destination"] == to.to_string() && flow["passes"] == false, "{flow}");
        ensure!(flow["egress"]["passes"] == true && flow["ingress"]["verdict"] == "Deny", "{flow}");
    }
    answered(&with(lab, VIEWER, &words("default/nobody"))?, 1, &["no pod default/nobody", "kubectl get pods"])
}

/// A device of another network and an API server that is no node are found; the rest is well.
fn doctor(lab: &Lab) -> Result<()> {
    let (v4, _) = lab.underlay_of(1);
    for (name, address) in [("kubernetes", v4.to_string()), ("elsewhere", "198.51.100.9".to_owned())] {
        let endpoints = json!([{"addresses": [address]}]);
        apply(
            lab,
            &json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "endpoints": endpoints, "ports": [],
            }),
        )?;
    }
    let well = document(lab, 0, &["doctor"])?;
    let codes = |document: &Value| -> Vec<String> {
        let checks = document["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let findings = checks.iter().flat_map(|check| check["findings"].as_array().into_iter().flatten());
        findings.map(|finding| finding["code"].as_str().unwrap_or_default().to_owned()).collect()
    };
    ensure!(codes(&well) == ["control-plane-outside", "wireguard-userspace"], "{well}");
    lab.node(2).sh("ip link add flannel.1 type veth peer name stub")?;
    let found = netlab::eventually(POLICY, "the device is found", || {
        let found = with(lab, VIEWER, &["doctor"]).map_err(|error| format!("{error:#}"))?;
        if found.0 == 3 { Ok(found) } else { Err(found.1) }
    })?;
    let words =
        ["leftovers: FAULT", "node node-2: flannel.1 of Flannel", "uninstall it", "198.51.100.9 is no node"];
    answered(&found, 3, &words)?;
    lab.node(2).sh("ip link del flannel.1")?;
    netlab::eventually(POLICY, "the device is gone", || {
        let found = with(lab, VIEWER, &["doctor"]).map_err(|error| format!("{error:#}"))?;
        let links = lab.node(2).sh("ip -br link").unwrap_or_default();
        if found.0 == 0 { Ok(()) } else { Err(format!("{}{links}", found.1)) }
    })?;
    Ok(())
}

/// What is planted as secret is in no file of the archive; what helps is.
fn sysdump(lab: &Lab) -> Result<()> {
    const PLANTED: &str = "plantedSecretOfTheTest0";
    let metadata = |name: &str| {
        json!({"name": name, "namespace": NAMESPACE, "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": format!("{{\"env\":\"{PLANTED}1\"}}"), "note": format!("token={PLANTED}2")}})
    };
    let key = format!("-----BEGIN PRIVATE KEY-----\n{PLANTED}3\n-----END PRIVATE KEY-----");
    let objects = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("planted"), "stringData": {"k": format!("{PLANTED}4")}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("planted"),
            "data": {"config.yaml": format!("clusterName: visible\npassword: {PLANTED}5\n"), "key.pem": key}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata("planted"), "spec": {"nodeName": node_name(1), "hostNetwork": true,
            "containers": [{"name": "c", "args": ["--token", format!("{PLANTED}8"), format!("--api-key={PLANTED}6")], "env": [{"name": "LEVEL", "value": format!("{PLANTED}7")}]}]}}),
    ];
    for object in &objects {
        apply(lab, object)?;
    }
    // An Event about a Node, which has no namespace of its own, and one of somebody else.
    for (name, controller, note) in
        [("ours", "hawser.dev/mesh-agent", "visible note"), ("theirs", "kubelet", "a note of others")]
    {
        apply(
            lab,
            &json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
                "eventTime": "2026-11-30T00:00:00.000000Z", "reportingController": controller, "reportingInstance": node_name(1),
                "action": "Looking", "reason": "Found", "type": "Warning", "note": note,
                "regarding": {"apiVersion": "v1", "kind": "Node", "name": node_name(1)}}),
        )?;
    }
    let dump = with(lab, VIEWER, &["sysdump", "--file", "/etc/hawser/dump.tar.gz"])?;
    // Nobody serves logs here: no kubelet runs.
    answered(&dump, 4, &["dump.tar.gz", "logs/mesh-agent-1/mesh-agent.log", "read it before"])?;
    let again = with(lab, VIEWER, &["sysdump", "--file", "/etc/hawser/dump.tar.gz"])?;
    answered(&again, 1, &["dump.tar.gz", "there is a file of that name", "--file"])?;
    lab.node(1).sh("tar -xzf /etc/hawser/dump.tar.gz -C /etc/hawser")?;
    let files = lab.node(1).sh("find /etc/hawser/hawser-sysdump -type f -size +1c")?;
    for wanted in [
        "index.json",
        "objects/nodes.json",
        "objects/networkpolicies.json",
        "objects/clusterpeers.json",
        "objects/hawser-system/deployments.json",
        "objects/hawser-system/leases.json",
        "objects/events-of-mesh-agent.json",
        "objects/events-of-clustermesh.json",
        "agents/node-3/audit.json",
        "agents/node-3/metrics.txt",
        "agents/node-3/plan.json",
    ] {
        ensure!(files.contains(wanted), "no {wanted}: {files}");
    }
    ensure!(!files.to_lowercase().contains("secret"), "{files}");
    let mut all = String::new();
    for file in files.lines() {
        all.push_str(&lab.node(1).sh(&format!("cat {file}"))?);
    }
    ensure!(
        all.contains("clusterName: visible") && !all.contains(PLANTED),
        "a planted secret, or nothing at all"
    );
    ensure!(
        all.contains("visible note") && !all.contains("a note of others"),
        "Events of all namespaces, and ours alone"
    );
    no_secret(lab, &all)?;
    let token = lab.kubeconfig(&User::service_account(NAMESPACE, "hawser-viewer"));
    let token: Value = serde_saphyr::from_str(&token)?;
    let token = token["users"][0]["user"]["token"].as_str().context("a token")?;
    ensure!(!all.contains(token), "the user's own token");
    // Public keys are there: without them nothing can be told apart.
    for peer in lab.node(1).peers()? {
        ensure!(all.contains(&peer.public_key), "{peer:?}");
    }
    Ok(())
}

/// What all commands have in common.
fn conduct(lab: &Lab) -> Result<()> {
    // Rights, kubeconfigs, contexts, flags.
    answered(
        &with(lab, STRANGER, &["status"])?,
        1,
        &["you may not list nodes", "forbidden", "deploy/cli.yaml"],
    )?;
    answered(
        &hawser(lab, &["keys", "rotate", "--all", "--kubeconfig", VIEWER])?,
        1,
        &["you may not patch nodes", "deploy/cli.yaml"],
    )?;
    answered(
        &hawser(lab, &["status"])?,
        1,
        &["no way to the API server", "--kubeconfig FILE", "KUBECONFIG"],
    )?;
    answered(&hawser(lab, &["status", "--kubeconfig", "/nowhere"])?, 1, &["/nowhere", "--kubeconfig FILE"])?;
    let file: Value = serde_saphyr::from_str(&lab.kubeconfig(&User::admin()))?;
    let context = file["current-context"].as_str().context("a context")?;
    answered(&with(lab, VIEWER, &["status", "--context", context])?, 0, &["all is well"])?;
    answered(&with(lab, VIEWER, &["status", "--context", "mars"])?, 1, &["no context \"mars\"", context])?;
    answered(
        &hawser(lab, &["status", "--outptu", "json"])?,
        2,
        &["--outptu", "--output", "Usage: hawser status"],
    )?;
    let portless = ["policy", "explain", "default/web", "default/db"];
    answered(&with(lab, VIEWER, &portless)?, 1, &["TCP has ports: give --port"])?;

    // Without a cluster.
    let plan = ["plan", "--nodes", "3", "--pod-cidr", &lab.pod_cidrs(1)[0], "--node-mask", "26"];
    answered(&hawser(lab, &plan)?, 3, &["this does not fit", "pods-do-not-fit", "--node-mask 25"])?;
    answered(
        &hawser(lab, &["plan", "--nodes", "3", "--pod-cidr", "10.244.0.0/16"])?,
        0,
        &["this fits", "256"],
    )?;
    for shell in ["bash", "zsh", "fish"] {
        let script = hawser(lab, &["completion", shell])?;
        answered(&script, 0, &["explain", "rotate", "sysdump"])?;
    }
    let (_, script, _) = hawser(lab, &["completion", "bash"])?;
    lab.node(1).write_file("/etc/hawser/completion", &script)?;
    let complete = "set -e; . /etc/hawser/completion; COMP_WORDS=(hawser sta); COMP_CWORD=1; _hawser hawser sta hawser; echo ${COMPREPLY[@]}";
    let mut bash = Command::new("bash");
    bash.args(["-c", complete]);
    ensure!(lab.node(1).run(bash)?.trim() == "status");

    // As kubectl's plugin.
    answered(
        &run_as(lab, Some("kubectl-hawser"), &["--help"])?,
        0,
        &["Usage: kubectl hawser <COMMAND>", "Exit codes"],
    )?;
    answered(&run_as(lab, Some("kubectl-hawser"), &["status", "--no"])?, 2, &["Usage: kubectl hawser status"])
}
