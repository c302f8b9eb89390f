//! `clustermesh` started from its Deployment in `deploy/`, as a kubelet would: a pod of the network that Hawser makes, nobody's
//! user, no capability, nothing to write to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use chaos_tests::{Lab, LabOptions, objects};
use netlab::eventually;
use serde_json::{Value, json};
use xtask::values::Values;

use super::deploy::{DaemonPod, Kubelet, capability_sets, manifests};
use super::services::get_path;
use super::{Containerd, IMAGE, LONG, NEEDED, archive};

const NAMESPACE: &str = "hawser-system";

/// `/proc` of the one process of that name below a runtime's control group.
fn process(name: &str, runtime: &Containerd<'_>) -> Result<PathBuf> {
    let entries = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let text = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let mut found = entries.filter(|path| {
        text(path, "comm").trim() == name
            && text(path, "cgroup").contains(runtime.cgroup.trim_start_matches('/'))
    });
    found.next().with_context(|| format!("{name} is no process of node-{}", runtime.node))
}

/// What a kubelet asks, from where it asks.
fn probe(kubelet: &Kubelet<'_>, pod: &DaemonPod, probe: &Value) -> Result<String, String> {
    let port =
        probe["httpGet"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).ok_or("no port")?;
    let path = probe["httpGet"]["path"].as_str().ok_or("no path")?;
    let node = &kubelet.lab.node(kubelet.runtime.node).namespace;
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4()).ok_or("no IPv4 address")?;
    let answer = get_path(node, SocketAddr::new(*ip, port), path).map_err(|error| format!("{error:#}"))?;
    if answer.split(' ').nth(1) == Some("200") { Ok(answer) } else { Err(answer) }
}

#[test]
fn clustermesh_runs_from_its_deployment_without_rights_on_the_node_and_agents_follow_it() -> Result<()> {
    for (program, package) in NEEDED {
        ensure!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
    }
    let work = tempfile::tempdir()?;
    let lab = Lab::up(LabOptions::new(netlab::unique_name("cricm")).nodes(2))?;
    let given = std::env::var_os("HAWSER_IMAGE").map(PathBuf::from);
    let ours = if given.is_some() { vec![] } else { vec![lab.binaries.clustermesh()?] };
    let archive = archive(work.path(), lab.dir.mark(), &ours)?;
    let image = if given.is_some() { Values::default().image.name } else { IMAGE.to_owned() };
    let manifests = manifests(&image)?;
    lab.await_settled(Duration::from_secs(60))?;
    let runtime = Containerd::start(&lab, 1, &archive)?;
    if let Some(file) = &given {
        runtime.import(&std::fs::read(file)?).with_context(|| file.display().to_string())?;
    }
    runtime.await_ready()?;
    let kubelet = Kubelet { lab: &lab, runtime: &runtime, manifests: &manifests, image };
    let template = &kubelet.object("Deployment", "clustermesh")?["spec"]["template"];
    let pod = kubelet.start_pod(template, "clustermesh")?;
    let log = || kubelet.log(&pod, "clustermesh");

    let container = &template["spec"]["containers"][0];
    for name in ["livenessProbe", "readinessProbe"] {
        eventually(LONG, name, || probe(&kubelet, &pod, &container[name])).with_context(log)?;
    }
    // Ready is who waits, too.
    eventually(LONG, "it leads", || {
        let lease: Value = lab
            .api()
            .store()
            .get("leases.coordination.k8s.io", Some(NAMESPACE), "hawser-clustermesh")
            .map_err(|error| error.to_string())?;
        if lease["spec"]["holderIdentity"] == "clustermesh-node-1" { Ok(()) } else { Err(lease.to_string()) }
    })
    .with_context(log)?;

    // What the manifest takes away is really gone.
    let process = process("clustermesh", &runtime)?;
    let status = std::fs::read_to_string(process.join("status"))?;
    let of = |field: &str| -> Vec<&str> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect()
    };
    for user in ["Uid", "Gid"] {
        ensure!(of(user) == ["65532"; 4], "{user}: {:?}", of(user));
    }
    let sets = capability_sets(&status)?;
    ensure!(sets.len() == 5 && sets.iter().all(|(_, bits)| *bits == 0), "{sets:x?}");
    ensure!((of("NoNewPrivs"), of("Seccomp")) == (vec!["1"], vec!["2"]), "{status}");
    let mounts = std::fs::read_to_string(process.join("mountinfo"))?;
    let writable = |at: &str| {
        let line = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).rfind(|line| line[4] == at);
        line.map(|line| line[5].split(',').any(|option| option == "rw"))
    };
    for place in ["/", "/etc/hawser", "/var/run/secrets/kubernetes.io/serviceaccount"] {
        // Where a container's /var/run is a link the mount is where that leads.
        let found = writable(place).or_else(|| writable(place.trim_start_matches("/var")));
        ensure!(found == Some(false), "{place} is writable ({found:?}): {mounts}");
    }

    // Its authority is there, and agents find it by its Service, through the network of pods, of both nodes.
    // It is ready before it has made that.
    eventually(LONG, "its authority is there", || {
        lab.trust_bundle().map(drop).map_err(|error| format!("{error:#}"))
    })
    .with_context(log)?;
    for number in [1, 2] {
        lab.prepare_for_clustermesh(number).with_context(log)?;
    }
    let v4 = pod.ips.iter().find(|ip| ip.is_ipv4()).context("no IPv4 address")?;
    // Before there is another cluster nobody calls.
    objects::apply(
        &lab,
        &json!({
            "apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "elsewhere"},
            "spec": {"podCIDRs": ["10.99.0.0/16"], "addresses": ["192.0.2.99:51893"], "trustBundle": lab.trust_bundle()?},
        }),
    )?;
    for number in [1, 2] {
        eventually(LONG, "the agent follows it", || {
            let said = lab.node(number).log("mesh-agent").map_err(|error| format!("{error:#}"))?;
            let follows =
                |line: &&str| line.contains("Following clustermesh") && line.contains(&v4.to_string());
            let last = || said.lines().rev().take(5).collect::<Vec<_>>().join("\n");
            said.lines().find(follows).map(drop).ok_or_else(last)
        })
        .with_context(log)?;
    }
    // Whoever ends in order takes back where it was found.
    let found = |name: &str| -> Result<usize> {
        let slice: Value = lab
            .api()
            .store()
            .get("endpointslices.discovery.k8s.io", Some(NAMESPACE), name)
            .map_err(|e| anyhow!("{e}"))?;
        Ok(slice["endpoints"].as_array().map_or(0, Vec::len))
    };
    let slices = ["clustermesh-ipv4", "clustermesh-dns-ipv4"];
    let all = |count: usize, what: &str| -> Result<()> {
        for name in slices {
            eventually(LONG, what, || match found(name) {
                Ok(now) if now == count => Ok(()),
                other => Err(format!("{name}: {other:?}")),
            })
            .with_context(log)?;
        }
        Ok(())
    };
    all(1, "it says where it is")?;
    let id = self::process("clustermesh", &runtime)?;
    let id = id.file_name().and_then(|id| id.to_str()).context("a process without a number")?;
    lab.node(1).sh(&format!("kill {id}"))?;
    all(0, "nobody is found there any more")?;
    kubelet.stop(&pod)?;
    ensure!(runtime.attachments().is_empty());
    let mut refusals = lab.api().faults().refusals();
    refusals.retain(|(user, _)| user.ends_with(":clustermesh"));
    ensure!(refusals.is_empty(), "clustermesh was refused: {refusals:?}");
    lab.agents_were_refused_nothing()
}
