//! `cargo xtask bench watch`: what one agent's watches cost the API server, among 5,000 nodes and 50,000 pods.
//!
//! The objects are in the embedded API, shaped as kubelets and controllers write them; one real agent starts. Counted are
//! requests, bytes of bodies (JSON, not compressed: agents do not ask for gzip) and lines of watches, and what the agent
//! itself needs. Then single objects change.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use kubeapi::{Patch, Served, Verb};
use serde_json::{Value, json};
use xtask::bench::Row;

use crate::cluster::{Lab, LabOptions};
use crate::pod::NAMESPACE;
use crate::usage::{count, memory, seconds, until_idle};

const BENCH: &str = "watch";
/// Changes of each kind; the mean of them is given.
const CHANGES: u32 = 100;
/// For how long an agent is watched that has nothing to do.
const QUIET: Duration = Duration::from_secs(10);
/// Room for 8,192 nodes' /24.
pub(crate) const CIDRS: [&str; 2] = ["10.224.0.0/11", "fd00:10:244::/48"];

/// Measures; `quick` among a tenth of the objects.
///
/// # Errors
/// The lab cannot be made, or the agent does not become ready.
pub fn run(quick: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let (nodes, pods) = if quick { (500, 5_000) } else { (5_000, 50_000) };
    let mut options = LabOptions::new(netlab::unique_name("watch")).nodes(0);
    options.cluster_cidrs = CIDRS;
    // One look for drift among so many peers would cost more than all that is measured afterwards.
    options.drift_interval = 3600;
    options.end_on_signal = true;
    let mut lab = Lab::up(options)?;
    say(&format!("Writing {nodes} nodes and {pods} pods into the embedded API"));
    for number in 0..nodes {
        create(&lab, &node(number))?;
    }
    for number in 0..pods {
        create(&lab, &pod(number, nodes))?;
    }
    let faults = lab.api().faults();
    faults.reset_counters();
    say("Starting one agent");
    let begun = Instant::now();
    lab.add_node(1)?;
    let pid = lab.node(1).agent().context("the agent runs")?.id();
    netlab::eventually(Duration::from_secs(300), "the agent is ready", || lab.node(1).ready())?;
    let ready = begun.elapsed();
    netlab::eventually(Duration::from_secs(300), "all addresses are in the maps", || {
        let known =
            lab.node(1).metric("hawser_policy_size{kind=\"addresses\"}").map_err(|e| format!("{e:#}"))?;
        let wanted = f64::from(pods);
        if known >= wanted { Ok(()) } else { Err(format!("{known} of {wanted}")) }
    })?;
    let complete = begun.elapsed();
    let served = faults.served();
    let requests: u64 = faults.all_requests().values().sum();
    let mut rows = Vec::new();
    let among = format!("start among {nodes} nodes, {pods} pods");
    let mut add = |subject: &str, metric: &str, unit: &str, value: f64| {
        rows.extend(Row::of(BENCH, subject, metric, unit, &[value]));
    };
    add(&among, "until ready", "s", ready.as_secs_f64());
    add(&among, "until all is in the maps", "s", complete.as_secs_f64());
    add(&among, "requests", "", count(requests));
    add(&among, "bytes of bodies", "MB", count(served.values().map(|one| one.bytes).sum()) / 1e6);
    add(&among, "received on the wire, TLS included", "MB", received(&lab)? / 1e6);
    for ((verb, resource), one) in served.iter().filter(|(_, one)| one.bytes > 10_000) {
        add(&among, &format!("{verb:?} {resource}"), "MB", count(one.bytes) / 1e6);
        add(&among, &format!("{verb:?} {resource}"), "answers or lines", count(one.frames));
    }
    let bytes = |verb, what: &str| served.get(&(verb, what.to_owned())).map_or(0.0, |one| count(one.bytes));
    let per = |what: &str, many: u32| bytes(Verb::List, what) / f64::from(many);
    add(&among, "list: bytes of one node", "B", per("nodes", nodes + 1));
    add(&among, "list: bytes of one pod (metadata)", "B", per("pods", pods));
    let spent = seconds(pid)?;
    add(&among, "CPU of the agent", "s", spent);
    add(&among, "memory of the agent (RSS)", "MB", memory(pid, "VmRSS:")?);
    add(&among, "memory of the agent, most", "MB", memory(pid, "VmHWM:")?);

    say("Nothing happens for a while");
    let before = seconds(pid)?;
    std::thread::sleep(QUIET);
    add(
        "nothing changes",
        "CPU of the agent",
        "ms/s",
        (seconds(pid)? - before) * 1000.0 / QUIET.as_secs_f64(),
    );
    say(&format!("{CHANGES} changes of each kind"));
    for (what, resource, change) in CHANGES_OF {
        faults.reset_counters();
        let before = seconds(pid)?;
        for number in 0..CHANGES {
            change(&lab, number)?;
        }
        netlab::eventually(Duration::from_secs(60), what, || {
            let lines = lines(&faults.served(), resource);
            if lines >= u64::from(CHANGES) { Ok(()) } else { Err(format!("{lines} lines")) }
        })?;
        let last = until_idle(pid)?;
        let served = faults.served();
        let all: u64 = served.values().map(|one| one.bytes).sum();
        add(what, "bytes to each agent", "B", count(all) / f64::from(CHANGES));
        add(what, "lines of watches", "", count(lines(&served, resource)) / f64::from(CHANGES));
        add(what, "CPU of the agent", "ms", (last - before) * 1000.0 / f64::from(CHANGES));
    }
    Ok(rows)
}

type Change = fn(&Lab, u32) -> Result<()>;

/// What changes, of which resource, and how.
const CHANGES_OF: [(&str, &str, Change); 3] = [
    ("a pod's label changes", "pods", |lab, number| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"step": number.to_string()}}}));
        lab.api()
            .store()
            .patch("pods", Some(NAMESPACE), &pod_name(number), &patch)
            .map_err(|e| anyhow!("{e}"))?;
        Ok(())
    }),
    ("a pod's status changes (of another node)", "pods", |lab, number| {
        let patch = Patch::Merge(json!({"status": {"phase": "Running", "message": number.to_string()}}));
        let store = lab.api().store();
        store.patch_status("pods", Some(NAMESPACE), &pod_name(number), &patch).map_err(|e| anyhow!("{e}"))?;
        Ok(())
    }),
    ("a node's status changes (heartbeat)", "nodes", |lab, number| {
        let conditions = conditions(&format!("2026-01-02T00:{:02}:{:02}Z", number / 60, number % 60));
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        let store = lab.api().store();
        store.patch_status("nodes", None, &node_name(number), &patch).map_err(|e| anyhow!("{e}"))?;
        Ok(())
    }),
];

fn lines(served: &BTreeMap<(Verb, String), Served>, resource: &str) -> u64 {
    served.get(&(Verb::Watch, resource.to_owned())).map_or(0, |one| one.frames)
}

pub(crate) fn create(lab: &Lab, object: &Value) -> Result<()> {
    let created: Result<Value, _> = lab.api().store().create(object);
    created.map(drop).map_err(|error| anyhow!("{}: {error}", object["metadata"]["name"]))
}

fn node_name(number: u32) -> String {
    format!("worker-{number:04}.example.internal")
}

fn conditions(at: &str) -> Value {
    let all = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "KubeletReady", "kubelet is posting ready status"),
    ];
    let one = |(kind, reason, message): (&str, &str, &str)| {
        json!({"type": kind, "status": if kind == "Ready" { "True" } else { "False" }, "reason": reason,
            "message": message, "lastHeartbeatTime": at, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    all.map(one).into_iter().collect()
}

/// A key that nobody else has.
fn key(number: u32, slot: u8) -> String {
    let mut bytes = [slot + 1; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A Node as a kubelet with twenty images writes it, with the announcement of an agent.
pub(crate) fn node(number: u32) -> Value {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 10)) + number);
    let v4 = format!("{}/24", Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 224, 0, 0)) + (number << 8)));
    let v6 = format!("fd00:10:244:{:x}::/64", 0x1000 + number);
    let slots = [0, 1].map(
        |slot| json!({"epoch": 1 + slot, "publicKey": key(number, slot), "port": 51880 + u16::from(slot)}),
    );
    let announcement = json!({"v": 1, "slots": slots, "endpoints": [address]}).to_string();
    let images: Vec<Value> = (0..20)
        .map(|image| {
            let name = format!("registry.example.com/team-{image}/service-{image}");
            json!({"names": [format!("{name}@sha256:{:064x}", u128::from(number) << 8 | image), format!("{name}:v1.{image}.0")],
                "sizeBytes": 100_000_000 + image})
        })
        .collect();
    let capacity = json!({"cpu": "16", "memory": "65843052Ki", "pods": "110", "ephemeral-storage": "203056560Ki",
        "hugepages-1Gi": "0", "hugepages-2Mi": "0"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node_name(number),
            "labels": {
                "kubernetes.io/hostname": node_name(number), "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "m5.4xlarge", "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
                "topology.kubernetes.io/region": "region-1",
            },
            "annotations": {
                "hawser.dev/wireguard": announcement, "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"podCIDR": v4, "podCIDRs": [v4, v6], "providerID": format!("example:///zone/i-{number:017x}")},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": node_name(number)}],
            "capacity": capacity, "allocatable": capacity, "images": images,
            "conditions": conditions("2026-01-01T00:00:00Z"),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64", "bootID": format!("{number:032x}"), "machineID": format!("{number:032x}"),
                "systemUUID": format!("{number:032x}"), "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.0-amd64", "kubeProxyVersion": "v1.33.3", "kubeletVersion": "v1.33.3",
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
            },
        },
    })
}

fn pod_name(number: u32) -> String {
    format!("service-{:04}-7d9c5b8f6b-{number:05}", number % 1000)
}

/// A Pod of a Deployment, with what an agent writes at it.
pub(crate) fn pod(number: u32, nodes: u32) -> Value {
    let (node, place) = (number % nodes, number / nodes + 10);
    let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 224, 0, 0)) + (node << 8) + place);
    let app = format!("service-{:04}", number % 1000);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(number), "namespace": NAMESPACE, "generateName": format!("{app}-7d9c5b8f6b-"),
            "labels": {
                "app.kubernetes.io/name": app, "app.kubernetes.io/instance": format!("{app}-production"),
                "app.kubernetes.io/version": "1.24.3", "pod-template-hash": "7d9c5b8f6b",
            },
            "annotations": {
                "hawser.dev/ips": format!("{v4},fd00:10:244:{:x}::{place:x}", 0x1000 + node),
                "checksum/config": format!("{number:064x}"), "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d9c5b8f6b"),
                "uid": format!("00000000-0000-4000-8000-{number:012x}"), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"nodeName": node_name(node), "containers": [{"name": "c", "image": "registry.example.com/app:1.24.3"}]},
    })
}

/// Bytes that the node has received by its uplink.
fn received(lab: &Lab) -> Result<f64> {
    let text = lab.node(1).namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("the node has eth0")?;
    line.split_whitespace().next().unwrap_or_default().parse().context("bytes received by eth0")
}
