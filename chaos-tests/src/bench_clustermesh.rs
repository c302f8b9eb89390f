//! `cargo xtask bench clustermesh`: what it costs `clustermesh` and one agent to be joined with 10, 50 and 200 clusters, each of
//! 300 nodes and 15,000 endpoints.
//!
//! `clustermesh`, the agent and its tunnels are the real ones, in a lab of one node. The other clusters are
//! [simulated](simulated): real servers with authorities of their own, which tell of nodes and pods that nobody has.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use kubeapi::User;
use mesh_core::numbers::{NAMESPACE, PORT_CLUSTERMESH, PORT_METRICS};
use netlab::{Output, Process, eventually};
use serde_json::{Value, json};
use xtask::bench::Row;

use crate::cluster::{Lab, LabOptions};
use crate::node::http_get;
use crate::usage::{bpf_memory, memory, seconds, until_idle};

pub mod simulated;

use simulated::{Ask, Size};

const BENCH: &str = "clustermesh";
/// Pod CIDRs of the cluster itself, apart from those of the simulated ones.
const CIDRS: [&str; 2] = ["10.224.0.0/11", "fd00:10:244::/48"];
/// Peers that an agent takes at most.
const PEERS: u32 = 4096;
/// For what takes long among so many.
const LONG: Duration = Duration::from_secs(600);
/// Endpoints that change one after the other, and at once. Of the former so many that what idling differs by does not count.
const CHANGES: u32 = 2000;
const BURST: u32 = 5000;
/// Nodes that get other keys one after the other.
const KEYS: u32 = 20;
/// Longer than any pause between two things that are judged.
const SETTLED: Duration = Duration::from_secs(4);
/// For how long both are watched that have nothing to do: an agent looks at everything once a minute.
const QUIET: Duration = Duration::from_secs(60);

/// Measures; `quick` with few small clusters.
///
/// # Errors
/// The lab cannot be made, or something is not told in time.
pub fn run(quick: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    if quick { of(&[2, 5], 30, 1500, say) } else { of(&[10, 50, 200], 300, 15_000, say) }
}

/// The same of as many clusters as we measure with alone.
///
/// # Errors
/// The same.
pub fn largest(say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    of(&[200], 300, 15_000, say)
}

fn of(clusters: &[u32], nodes: u32, pods: u32, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clusters in clusters {
        let size = Size { clusters: *clusters, nodes, pods };
        rows.extend(Bench::up(size, say)?.measure(say)?);
    }
    Ok(rows)
}

/// A lab that is joined with others of a size.
struct Bench {
    size: Size,
    lab: Lab,
    directory: PathBuf,
    _simulated: Process,
    /// CPU seconds a second of both while nothing changes, as it was last.
    idle: (f64, f64),
    rows: Vec<Row>,
}

impl Bench {
    fn up(size: Size, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let Size { clusters, nodes, pods } = size;
        say(&format!("{clusters} clusters of {nodes} nodes and {pods} pods"));
        let mut options = LabOptions::new(netlab::unique_name("joined")).nodes(1);
        options.cluster_cidrs = CIDRS;
        // One look for drift among so many peers would cost more than all that is measured afterwards.
        options.drift_interval = 3600;
        options.end_on_signal = true;
        let mut lab = Lab::up(options)?;
        lab.start_clustermesh()?;
        let directory = lab.dir.path().join("simulated");
        std::fs::create_dir_all(&directory)?;
        let [trust, kubeconfig] = ["trust.pem", "kubeconfig"].map(|name| directory.join(name));
        std::fs::write(&trust, lab.trust_bundle()?)?;
        std::fs::write(&kubeconfig, lab.kubeconfig(&User::service_account(NAMESPACE, "clustermesh")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("simulate-clusters").args(["--own", &lab.cluster_name()]);
        for (option, number) in [("--clusters", clusters), ("--nodes", nodes), ("--pods", pods)] {
            command.arg(option).arg(number.to_string());
        }
        for (option, path) in
            [("--trust", &trust), ("--kubeconfig", &kubeconfig), ("--directory", &directory)]
        {
            command.arg(option).arg(path);
        }
        let log = directory.join("log");
        let simulated =
            lab.control.spawn(command, Output::File(log.clone())).context("simulated clusters")?;
        eventually(LONG, "the simulated clusters serve", || {
            let ended = simulated.try_wait().map_err(|error| format!("{error:#}"))?;
            let text = || std::fs::read_to_string(&log).unwrap_or_default();
            match (ended, directory.join("peers.json").exists()) {
                (None, true) => Ok(()),
                (None, false) => Err("not yet".to_owned()),
                (Some(status), _) => Err(format!("ended with {status}: {}", text())),
            }
        })?;
        Ok(Self { size, lab, directory, _simulated: simulated, idle: (0.0, 0.0), rows: Vec::new() })
    }

    fn add(&mut self, subject: &str, metric: &str, unit: &str, value: f64) {
        let subject = format!("{} clusters: {subject}", self.size.clusters);
        self.rows.extend(Row::of(BENCH, &subject, metric, unit, &[value]));
    }

    fn measure(mut self, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
        say("joining them");
        let begun = Instant::now();
        let peers: Vec<Value> = serde_json::from_slice(&std::fs::read(self.directory.join("peers.json"))?)?;
        for peer in &peers {
            let created: Result<Value, _> = self.lab.api().store().create(peer);
            created.map_err(|error| anyhow!("{}: {error}", peer["metadata"]["name"]))?;
        }
        let all = self.size.clusters * self.size.pods;
        self.wait("clustermesh knows all", |bench| bench.of_daemon(ENDPOINTS_MIRRORED), all)?;
        self.add("join", "until clustermesh knows all endpoints", "s", begun.elapsed().as_secs_f64());
        self.wait("the agent knows all", |bench| bench.of_agent(ENDPOINTS_KNOWN), all)?;
        self.add("join", "until the agent knows all endpoints", "s", begun.elapsed().as_secs_f64());
        let nodes = (self.size.clusters * self.size.nodes).min(PEERS);
        self.wait("the agent has its peers", |bench| bench.of_agent("hawser_joined_nodes "), nodes)?;
        let (daemon, agent) = (self.daemon()?, self.agent()?);
        let spent = (until_idle(daemon)?, until_idle(agent)?);
        self.add("join", "until all is worked off", "s", begun.elapsed().as_secs_f64());
        self.add("join", "CPU of clustermesh", "s", spent.0);
        self.add("join", "CPU of the agent", "s", spent.1);
        self.add("join", "received by the agent, TLS included", "MB", self.received()? / 1e6);
        self.memory("joined")?;

        say("nothing happens for a while");
        let before = self.received()?;
        self.idle = self.idling()?;
        let bytes = (self.received()? - before) / QUIET.as_secs_f64();
        self.add("nothing changes", "CPU of clustermesh", "ms/s", self.idle.0 * 1000.0);
        self.add("nothing changes", "CPU of the agent", "ms/s", self.idle.1 * 1000.0);
        self.add("nothing changes", "received by the agent, TLS included", "B/s", bytes);

        say("endpoints and keys change");
        self.change("one endpoint after the other changes", Ask::Change(CHANGES), CHANGES)?;
        let burst = BURST.min(self.size.pods / 2);
        self.change("endpoints change at once", Ask::Burst(burst), 2 * burst)?;
        self.change("one node after the other gets new keys", Ask::Keys(KEYS), KEYS)?;

        say("policy asks for pods of other clusters");
        let few = json!({"matchLabels": {"app.kubernetes.io/name": "service-0001"}});
        let one_cluster = json!({"matchLabels": {"hawser.dev/cluster": simulated::name(0)}});
        let all_of_one = "policy asks for all pods of one cluster";
        self.asked("policy asks for 50 pods", &one_cluster, &few, 50)?;
        self.asked(all_of_one, &one_cluster, &json!({}), self.size.pods - 50)?;
        self.settle()?;
        self.idle = self.idling()?;
        self.change("the same, and one endpoint after the other changes", Ask::Change(CHANGES), CHANGES)?;
        self.memory(all_of_one)?;

        say("both are killed and come back");
        let idle = until_idle(agent)?;
        self.lab.kill_clustermesh()?;
        let begun = Instant::now();
        self.lab.run_clustermesh()?;
        let again = "clustermesh starts again";
        self.wait("clustermesh knows all again", |bench| bench.of_daemon(ENDPOINTS_MIRRORED), all)?;
        self.add(again, "until it knows all", "s", begun.elapsed().as_secs_f64());
        self.wait("the agent is told", |bench| bench.of_daemon(AGENTS), 1)?;
        until_idle(self.daemon()?)?;
        let spent = until_idle(agent)? - idle;
        self.add(again, "until all is worked off", "s", begun.elapsed().as_secs_f64());
        self.add(again, "CPU of the agent", "s", spent);
        self.add(again, "received by the agent, TLS included", "MB", self.received()? / 1e6);
        self.lab.nodes[0].kill_agent()?;
        let begun = Instant::now();
        self.lab.nodes[0].start_agent()?;
        eventually(LONG, "the agent is ready again", || self.lab.node(1).ready())?;
        self.add("the agent starts again", "until it is ready", "s", begun.elapsed().as_secs_f64());
        self.wait("the agent knows all again", |bench| bench.of_agent(ENDPOINTS_KNOWN), all)?;
        self.add("the agent starts again", "until it knows all", "s", begun.elapsed().as_secs_f64());
        until_idle(self.agent()?)?;
        self.memory("both have started again")?;
        Ok(self.rows)
    }

    /// CPU seconds a second of both, over a while in which nothing is asked.
    fn idling(&self) -> Result<(f64, f64)> {
        let (daemon, agent) = (self.daemon()?, self.agent()?);
        let before = (seconds(daemon)?, seconds(agent)?);
        std::thread::sleep(QUIET);
        let rate = |before: f64, after: f64| (after - before) / QUIET.as_secs_f64();
        Ok((rate(before.0, seconds(daemon)?), rate(before.1, seconds(agent)?)))
    }

    /// Waits until both do no more than while nothing changes. What is told of nodes is judged with pauses, which are no end.
    fn settle(&self) -> Result<()> {
        let (daemon, agent) = (self.daemon()?, self.agent()?);
        let most = |idle: f64| idle * 1.5 + 0.05;
        eventually(LONG, "both are done", || {
            let text = |error: anyhow::Error| format!("{error:#}");
            let before = (seconds(daemon).map_err(text)?, seconds(agent).map_err(text)?);
            std::thread::sleep(SETTLED);
            let rate = |before: f64, after: f64| (after - before) / SETTLED.as_secs_f64();
            let daemon = rate(before.0, seconds(daemon).map_err(text)?);
            let agent = rate(before.1, seconds(agent).map_err(text)?);
            let done = daemon <= most(self.idle.0) && agent <= most(self.idle.1);
            if done { Ok(()) } else { Err(format!("{daemon:.2} and {agent:.2} CPU seconds a second")) }
        })
        .map_err(|error| anyhow!("{error}"))
    }

    /// What it costs that something changes so many times, beyond what both do when nothing does: the mean of a while before and
    /// one after, since it is not always the same. Half of what these two differ by is told beside.
    fn change(&mut self, what: &str, ask: Ask, times: u32) -> Result<()> {
        let (daemon, agent) = (self.daemon()?, self.agent()?);
        let sent = |bench: &Self| bench.of_daemon("hawser_clustermesh_message_bytes_sent_total");
        self.settle()?;
        let earlier = self.idle;
        let before = (seconds(daemon)?, seconds(agent)?, self.received()?, sent(self)?);
        let begun = Instant::now();
        simulated::ask(&self.directory, ask)?;
        self.settle()?;
        // As often as in the while before is done what is done once in it.
        let rest = begun.elapsed().as_secs_f64() % QUIET.as_secs_f64();
        std::thread::sleep(QUIET - Duration::from_secs_f64(rest));
        let passed = begun.elapsed().as_secs_f64();
        let after = (seconds(daemon)?, seconds(agent)?, self.received()?, sent(self)?);
        let later = self.idling()?;
        self.idle = later;
        let each = |before: f64, after: f64| (after - before) / f64::from(times);
        let beyond = |before, after, idle: f64| each(before, after - idle * passed) * 1000.0;
        let of_daemon = beyond(before.0, after.0, f64::midpoint(earlier.0, later.0));
        let of_agent = beyond(before.1, after.1, f64::midpoint(earlier.1, later.1));
        let doubt = each(0.0, (later.1 - earlier.1).abs() / 2.0 * passed) * 1000.0;
        self.add(what, "CPU of clustermesh beyond its idle rate, each", "ms", of_daemon);
        self.add(what, "CPU of the agent beyond its idle rate, each", "ms", of_agent);
        self.add(what, "the same, more or less, as its idle rate differs", "ms", doubt);
        self.add(what, "received by the agent, TLS included, each", "B", each(before.2, after.2));
        self.add(what, "of these messages, each", "B", each(before.3, after.3));
        Ok(())
    }

    /// What it costs that a policy asks for pods, so many of them that none before has asked for.
    fn asked(&mut self, what: &str, namespaces: &Value, pods: &Value, more: u32) -> Result<()> {
        let agent = self.agent()?;
        let before = until_idle(agent)?;
        let known = self.of_agent(ADDRESSES)?;
        let begun = Instant::now();
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("asks-{more}"), "namespace": "default"},
            "spec": {
                "podSelector": {}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"namespaceSelector": namespaces, "podSelector": pods}]}],
            },
        });
        let _: Value = self.lab.api().store().create(&policy).map_err(|error| anyhow!("{error}"))?;
        let to = known + f64::from(more);
        eventually(LONG, what, || {
            let now = self.of_agent(ADDRESSES).map_err(|error| format!("{error:#}"))?;
            if now >= to { Ok(()) } else { Err(format!("{now} of {to}")) }
        })?;
        self.add(what, "until they are in the maps", "s", begun.elapsed().as_secs_f64());
        let spent = until_idle(agent)? - before;
        self.add(what, "CPU of the agent", "s", spent);
        Ok(())
    }

    fn memory(&mut self, when: &str) -> Result<()> {
        let (daemon, agent) = (self.daemon()?, self.agent()?);
        self.add(when, "memory of clustermesh (RSS)", "MB", memory(daemon, "VmRSS:")?);
        self.add(when, "memory of clustermesh, most", "MB", memory(daemon, "VmHWM:")?);
        self.add(when, "memory of the agent (RSS)", "MB", memory(agent, "VmRSS:")?);
        self.add(when, "memory of the agent, most", "MB", memory(agent, "VmHWM:")?);
        self.add(when, "BPF maps of the agent", "MB", bpf_memory(agent)?);
        let addresses = self.of_agent(ADDRESSES)?;
        self.add(when, "addresses in the BPF map", "", addresses);
        Ok(())
    }

    fn wait(&self, what: &str, seen: impl Fn(&Self) -> Result<f64>, wanted: u32) -> Result<()> {
        eventually(LONG, what, || {
            let seen = seen(self).map_err(|error| format!("{error:#}"))?;
            if seen >= f64::from(wanted) { Ok(()) } else { Err(format!("{seen} of {wanted}")) }
        })?;
        Ok(())
    }

    fn daemon(&self) -> Result<i32> {
        Ok(self.lab.clustermesh.as_ref().context("clustermesh runs")?.id())
    }

    fn agent(&self) -> Result<i32> {
        Ok(self.lab.node(1).agent().context("the agent runs")?.id())
    }

    fn of_agent(&self, beginning: &str) -> Result<f64> {
        self.lab.node(1).metric(beginning)
    }

    fn of_daemon(&self, beginning: &str) -> Result<f64> {
        let text = self.lab.control.run(|| http_get(PORT_METRICS, "/metrics"))?;
        let line = text.lines().find(|line| line.starts_with(beginning));
        let value = line.and_then(|line| line.rsplit(' ').next()).map_or(Ok(0.0), str::parse);
        value.with_context(|| beginning.to_owned())
    }

    /// Bytes that the agent has received on its connections to `clustermesh`.
    fn received(&self) -> Result<f64> {
        let port = format!("= :{PORT_CLUSTERMESH}");
        let output = self.lab.node(1).namespace.run(move || {
            Command::new("ss").args(["-tniHO", "state", "established", "dport", &port]).output()
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let bytes = text.split_whitespace().filter_map(|word| word.strip_prefix("bytes_received:"));
        bytes.map(|number| number.parse::<f64>().context("bytes_received of ss")).sum()
    }
}

const ENDPOINTS_MIRRORED: &str = "hawser_clustermesh_objects{kind=\"endpoint\"}";
const ENDPOINTS_KNOWN: &str = "hawser_joined_objects{kind=\"endpoint\"}";
const AGENTS: &str = "hawser_clustermesh_streams{kind=\"agent\"}";
const ADDRESSES: &str = "hawser_policy_size{kind=\"addresses\"}";
