//! Bad input to the agent's start: it ends with an error that names the thing and the remedy, and the agent and the
//! data path that run already are not touched.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chaos_tests::{Lab, Node};
use netlab::{ExecOutput, eventually};

use crate::support::*;

/// An agent that does not start ends within this.
const DEADLINE: Duration = Duration::from_secs(20);

/// A start that fails.
struct Case {
    name: &'static str,
    /// Shell lines that make the bad input, in `/run/bad`.
    prepare: &'static str,
    /// Instead of `--config /run/bad/config.yaml --kubeconfig /run/bad/kubeconfig --node-name node-1`.
    arguments: &'static [&'static str],
    /// Exact parts of what it must say.
    says: &'static [&'static str],
}

const USUAL: &[&str] =
    &["--config", "/run/bad/config.yaml", "--kubeconfig", "/run/bad/kubeconfig", "--node-name", "node-1"];
const KUBECONFIG_ALONE: &[&str] = &["--kubeconfig", "/run/bad/kubeconfig", "--node-name", "node-1"];

const fn case(name: &'static str, prepare: &'static str, says: &'static [&'static str]) -> Case {
    Case { name, prepare, arguments: USUAL, says }
}

/// State, sockets and ports of its own, so that only what a case makes wrong is wrong.
const OWN_PLACE: &str = "rm -rf /run/bad; mkdir -m 0700 -p /run/bad; cp /etc/hawser/kubeconfig /run/bad/kubeconfig; \
    printf \"podCIDRs: ['10.244.0.0/16', 'fd00:10:244::/48']\\nstateDir: /run/bad/state\\ncniSocket: /run/bad/cni.sock\\n\
healthAddress: 127.0.0.1:61890\\nmetricsAddress: 127.0.0.1:61891\\n\" > /run/bad/config.yaml; \
    mkdir -m 0700 -p /run/bad/state/keys; cp -p /var/lib/hawser/keys/* /run/bad/state/keys/";

const CASES: &[Case] = &[
    case(
        "no configuration",
        "rm config.yaml",
        &[
            "configuration /run/bad/config.yaml",
            "No such file",
            "mount the ConfigMap hawser-config there or give --config",
        ],
    ),
    case(
        "configuration is a directory",
        "rm config.yaml; mkdir config.yaml",
        &["configuration /run/bad/config.yaml", "directory"],
    ),
    case("not YAML", "printf 'podCIDRs: [' > config.yaml", &["configuration /run/bad/config.yaml"]),
    case("not text", "printf '\\377\\376' > config.yaml", &["configuration /run/bad/config.yaml", "UTF-8"]),
    case(
        "unknown field",
        "printf 'podCidrs: [10.244.0.0/16]\\n' > config.yaml",
        &["configuration /run/bad/config.yaml", "podCidrs", "podCIDRs"],
    ),
    case(
        "no pod CIDRs",
        "printf 'clusterName: c\\n' > config.yaml",
        &["field podCIDRs", "must name the pod CIDRs of the cluster", "--cluster-cidr"],
    ),
    case("empty configuration", ": > config.yaml", &["field podCIDRs", "--cluster-cidr"]),
    case(
        "a pod CIDR that is none",
        "printf 'podCIDRs: [10.244]\\n' > config.yaml",
        &["field podCIDRs", "10.244", "write it as 10.244.0.0/16"],
    ),
    case(
        "everything is pods",
        "printf 'podCIDRs: [0.0.0.0/0]\\n' > config.yaml",
        &["field podCIDRs", "covers every address"],
    ),
    case(
        "pods that run are in no pod CIDR",
        "cp -rp /var/lib/hawser/attachments state/; sed -i 's/10.244.0.0/10.242.0.0/' config.yaml",
        &[
            "configuration /run/bad/config.yaml",
            "field podCIDRs",
            "[10.242.0.0/16, fd00:10:244::/48] does not cover 10.244.1.",
            "of pod default/steady-1-2",
            "name their prefix there",
        ],
    ),
    case(
        "pods that run are in no pod CIDR, and their files are lost",
        "sed -i \"s/, 'fd00:10:244::.48'//\" config.yaml",
        &["field podCIDRs", "[10.244.0.0/16] does not cover fd00:10:244:1::", "of the pod on link hw"],
    ),
    case(
        "exempt pods",
        "printf 'podCIDRs: [10.244.0.0/16]\\nnonMasqueradeCIDRs: [10.0.0.0/8]\\n' > config.yaml",
        &["field nonMasqueradeCIDRs", "10.244.0.0/16", "remove it"],
    ),
    case("MTU", "printf 'mtu: 900\\n' >> config.yaml", &["field mtu", "900", "outside 1280 to 65455"]),
    case(
        "engine",
        "printf 'wireguard: fast\\n' >> config.yaml",
        &["field wireguard", "fast", "none of auto, kernel, userspace"],
    ),
    case(
        "a health address that is none",
        "sed -i 's/127.0.0.1:61890/localhost/' config.yaml",
        &["field healthAddress", "localhost", "127.0.0.1:9000"],
    ),
    case(
        "an API server that is none",
        "printf \"apiServers: ['a b']\\n\" >> config.yaml",
        &["apiServers", "a b", "host:port"],
    ),
    case(
        "no kubeconfig",
        "rm kubeconfig",
        &["kubeconfig /run/bad/kubeconfig", "No such file", "--kubeconfig"],
    ),
    case("kubeconfig not YAML", "printf 'clusters: [' > kubeconfig", &["kubeconfig /run/bad/kubeconfig"]),
    case(
        "kubeconfig without cluster",
        "printf 'apiVersion: v1\\nkind: Config\\n' > kubeconfig",
        &["kubeconfig /run/bad/kubeconfig", "context"],
    ),
    case(
        "authority not base64",
        "sed -i 's/certificate-authority-data: .*/certificate-authority-data: \"%%%\"/' kubeconfig",
        &["kubeconfig /run/bad/kubeconfig", "base64"],
    ),
    case(
        "authority no certificate",
        "sed -i 's/certificate-authority-data: .*/certificate-authority-data: bm9wZQ==/' kubeconfig",
        &["kubeconfig /run/bad/kubeconfig", "certificate-authority"],
    ),
    case(
        "authority file missing",
        "sed -i 's|certificate-authority-data: .*|certificate-authority: /run/bad/ca.pem|' kubeconfig",
        &["kubeconfig /run/bad/kubeconfig", "/run/bad/ca.pem"],
    ),
    Case {
        name: "no name",
        prepare: "true",
        arguments: &["--config", "/run/bad/config.yaml", "--kubeconfig", "/run/bad/kubeconfig"],
        says: &["--node-name <NODE_NAME>"],
    },
    Case {
        name: "a name that is none",
        prepare: "true",
        arguments: &[
            "--config",
            "/run/bad/config.yaml",
            "--kubeconfig",
            "/run/bad/kubeconfig",
            "--node-name",
            "Node_1",
        ],
        says: &["node name (--node-name or NODE_NAME)", "Node_1"],
    },
    Case {
        name: "an empty name",
        prepare: "true",
        arguments: &[
            "--config",
            "/run/bad/config.yaml",
            "--kubeconfig",
            "/run/bad/kubeconfig",
            "--node-name",
            "",
        ],
        says: &["node name (--node-name or NODE_NAME)", "\"\" is not a node name"],
    },
    case(
        "health port taken",
        "sed -i s/61890/51890/ config.yaml",
        &["healthAddress 127.0.0.1:51890", "in use", "another process listens there"],
    ),
    case(
        "metrics port taken",
        "sed -i s/61891/51891/ config.yaml",
        &["metricsAddress 127.0.0.1:51891", "in use", "another process listens there"],
    ),
    case(
        "socket of a live agent",
        "sed -i 's|cniSocket: .*|cniSocket: /run/hawser/cni.sock|' config.yaml",
        &["/run/hawser/cni.sock", "another agent answers on", "stop it first"],
    ),
    case("socket path is a directory", "mkdir cni.sock", &["/run/bad/cni.sock", "Could not listen on"]),
    case("state directory is a file", "rm -r state; : > state", &["/run/bad/state"]),
    case(
        "key directory open to others",
        "chmod 0755 state/keys",
        &["/run/bad/state/keys has mode 0755, wanted 0700", "chmod 700 /run/bad/state/keys"],
    ),
    case(
        "key open to others",
        "chmod 0644 state/keys/slot0.key",
        &[
            "/run/bad/state/keys/slot0.key has mode 0644, wanted 0600",
            "chmod 600 /run/bad/state/keys/slot0.key",
        ],
    ),
    case(
        "half a key",
        "truncate -s 60 state/keys/slot1.key",
        &["/run/bad/state/keys/slot1.key is damaged", "restore it, or move it away"],
    ),
    case(
        "empty key",
        ": > state/keys/slot0.key",
        &["/run/bad/state/keys/slot0.key is damaged: it is empty", "move it away"],
    ),
    case(
        "key is a link",
        "mv state/keys/slot0.key other; ln -s /run/bad/other state/keys/slot0.key",
        &["/run/bad/state/keys/slot0.key is a symbolic link", "move it away"],
    ),
    case(
        "key directory is a link",
        "mv state/keys other; ln -s /run/bad/other state/keys",
        &["/run/bad/state/keys is a symbolic link", "move it away"],
    ),
    case(
        "key of somebody else",
        "chown 1000 state/keys/slot0.key",
        &[
            "/run/bad/state/keys/slot0.key belongs to user 1000, wanted 0",
            "chown 0 /run/bad/state/keys/slot0.key",
        ],
    ),
    case(
        "both keys the same",
        "cp -p state/keys/slot0.key state/keys/slot1.key",
        &["slot0.key and slot1.key in /run/bad/state/keys hold the same key"],
    ),
    case(
        "state of a live agent",
        "sed -i 's|stateDir: .*|stateDir: /var/lib/hawser|' config.yaml",
        &[
            "/var/lib/hawser is in use by another process",
            "only one agent may run on a node",
            "stop the other one",
        ],
    ),
    Case {
        name: "everything of a live agent",
        prepare: "true",
        arguments: KUBECONFIG_ALONE,
        says: &["/var/lib/hawser is in use by another process"],
    },
];

fn shell(node: &Node, script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-euc", script]);
    node.run(command).map(drop)
}

fn agent(lab: &Lab, arguments: &[&str], env: &[(&str, &str)]) -> Result<ExecOutput> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &DEADLINE.as_secs().to_string()]).arg(&lab.binaries.agent);
    command.args(arguments).env("NO_COLOR", "1").env_remove("NODE_NAME").envs(env.iter().copied());
    Ok(lab.node(1).namespace.exec(command, DEADLINE + Duration::from_secs(10))?)
}

#[test]
fn a_start_with_bad_input_ends_with_the_thing_and_the_remedy_and_touches_nothing() -> Result<()> {
    let lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let node = lab.node(1);
    let before = (data_path(node)?, annotation(&lab, 1, "hawser.dev/wireguard"));
    let mut wrong = Vec::new();
    for case in CASES {
        shell(node, OWN_PLACE).context(case.name)?;
        shell(node, &format!("cd /run/bad; {}", case.prepare)).context(case.name)?;
        let output = agent(&lab, case.arguments, &[])?;
        let said = output.stderr_text();
        println!("{}: {}: {}", case.name, output.status, said.lines().last().unwrap_or_default());
        if !matches!(output.status.code(), Some(1 | 2)) {
            wrong.push(format!("{}: ended with {}: {said}", case.name, output.status));
        }
        for word in case.says.iter().filter(|word| !said.contains(**word)) {
            wrong.push(format!("{}: no {word:?} in: {said}", case.name));
        }
        if said.contains("panicked") {
            wrong.push(format!("{}: panicked: {said}", case.name));
        }
        let after = (data_path(node)?, annotation(&lab, 1, "hawser.dev/wireguard"));
        if after != before {
            wrong.push(format!("{}: changed {before:?} to {after:?}", case.name));
        }
    }
    node.ready().map_err(anyhow::Error::msg)?;
    steady.end()?;
    if !wrong.is_empty() {
        bail!("{} of {} cases:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    }
    Ok(())
}

#[test]
fn an_agent_that_finds_links_but_no_files_keeps_the_pods_and_their_addresses() -> Result<()> {
    let mut lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    lab.node_mut(1).kill_agent()?;
    shell(lab.node(1), "rm -r /var/lib/hawser/attachments")?;
    lab.node_mut(1).start_agent()?;
    eventually(SOON, "the agent says what it found", || {
        let log = lab.node(1).log("mesh-agent").map_err(|error| error.to_string())?;
        if log.contains("there is no file for its link") {
            Ok(())
        } else {
            Err("nothing in the log".to_owned())
        }
    })?;
    lab.await_mesh(UP)?;
    // Reaping begins with the agent's life: this ADD is answered after it.
    let taken: Vec<_> = steady.addresses();
    let pod = lab.add_pod(1, "after")?;
    assert!(pod.ips.iter().all(|ip| !taken.contains(ip)), "{:?} of {taken:?} was handed out again", pod.ips);
    pod.remove(&lab)?;
    steady.end()
}

#[test]
fn an_agent_whose_node_object_does_not_exist_says_so_and_waits() -> Result<()> {
    let mut lab = lab(1)?;
    lab.node_mut(1).stop_agent()?;
    lab.api().store().delete_now("nodes", None, "node-1").map_err(|e| anyhow::anyhow!("{e}"))?;
    lab.node_mut(1).start_agent()?;
    eventually(SOON, "it says which object is missing", || match lab.node(1).ready() {
        Err(why) if why.contains("there is no Node object node-1") && why.contains("--node-name") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let host = &lab.node(1).namespace;
    let plugin = chaos_tests::runtime::Runtime::of(host)?.version("1.1.0").status(host);
    let refused = plugin.unwrap_err().to_string();
    assert!(refused.contains("there is no Node object node-1"), "{refused}");
    Ok(())
}
