//! What several scenarios need: labs, sandboxes that are not connected yet, and everything that an ADD could leave.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chaos_tests::pod::{self, NAMESPACE};
use chaos_tests::runtime::{CniError, Runtime, Sandbox};
use chaos_tests::{Lab, LabOptions};
use netlab::probe::{self, Canary};
use netlab::{Namespace, eventually};
use serde_json::{Value, json};

/// For what takes a second where nothing else runs.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Attachments are files here, addresses at rest too.
pub(crate) const ATTACHMENTS: &str = "/var/lib/hawser/attachments";
/// Where the plugin leaves what the agent could not take.
pub(crate) const NOTES: &str = "/var/lib/hawser/pending-deletes";

/// A lab whose nodes are ready.
pub(crate) fn lab(name: &str, nodes: u8) -> Lab {
    lab_of(LabOptions::new(netlab::unique_name(name)).nodes(nodes))
}

pub(crate) fn lab_of(options: LabOptions) -> Lab {
    let lab = Lab::up(options).unwrap();
    lab.await_settled(Duration::from_secs(60)).unwrap();
    lab
}

/// Starts the agent of a node and waits until it can connect pods.
pub(crate) fn restart(lab: &mut Lab, node: u8) {
    lab.node_mut(node).start_agent().unwrap();
    eventually(LONG, "the agent is ready", || lab.node(node).ready()).unwrap();
}

/// A pod whose sandbox is there but not connected.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: u8,
    pub(crate) sandbox: Sandbox,
    pub(crate) namespace: Namespace,
}

impl Prepared {
    /// With its object in the API.
    pub(crate) fn new(lab: &Lab, node: u8, name: &str) -> Self {
        let uid = pod::create_object(lab, node, name, &json!({})).unwrap();
        Self::of_uid(lab, node, name, &uid)
    }

    /// The sandbox alone.
    pub(crate) fn of_uid(lab: &Lab, node: u8, name: &str, uid: &str) -> Self {
        let host = &lab.node(node).namespace;
        let container_id = netlab::unique_name("c");
        let (namespace, path) = pod::make_namespace(host, &lab.dir, &container_id).unwrap();
        let sandbox = Sandbox::of_pod(&container_id, &path, NAMESPACE, name, uid);
        Self { name: name.to_owned(), uid: uid.to_owned(), node, sandbox, namespace }
    }

    pub(crate) fn add(&self, lab: &Lab) -> Result<Value> {
        let host = &lab.node(self.node).namespace;
        Runtime::of(host)?.add(host, &self.sandbox)
    }

    pub(crate) fn check(&self, lab: &Lab, result: &Value) -> Result<()> {
        let host = &lab.node(self.node).namespace;
        Runtime::of(host)?.check(host, &self.sandbox, result)
    }

    pub(crate) fn del(&self, lab: &Lab, result: Option<&Value>) -> Result<()> {
        let host = &lab.node(self.node).namespace;
        Runtime::of(host)?.del(host, &self.sandbox, result)
    }

    /// Ends the namespace as a runtime does: its pin and whatever else holds it.
    pub(crate) fn vanish(self, lab: &Lab) {
        Namespace::unpin(&lab.node(self.node).namespace, &self.sandbox.netns).unwrap();
        self.namespace.close().unwrap();
    }
}

/// The plugin's refusal, with the time it took.
pub(crate) fn refused<T: std::fmt::Debug>(work: impl FnOnce() -> Result<T>) -> (CniError, Duration) {
    let begun = Instant::now();
    let error = work().expect_err("a refusal");
    let took = begun.elapsed();
    (error.downcast_ref::<CniError>().unwrap_or_else(|| panic!("no CNI error: {error:#}")).clone(), took)
}

/// Do both families of `ips` answer from inside `from`?
pub(crate) fn answers(from: &Namespace, ips: &[IpAddr]) -> Result<()> {
    assert!(!ips.is_empty());
    for ip in ips {
        probe::ping(from, *ip, &Canary::new(b"are you there?".to_vec()).tries(5))
            .with_context(|| format!("ping {ip} from {}", from.name()))?;
    }
    Ok(())
}

/// Everything on a node that an ADD makes: links, routes of all tables, lasting neighbours, files, notes. Freed
/// attachments are left out, as their files have to stay for a while.
pub(crate) fn traces(lab: &Lab, node: u8) -> BTreeSet<String> {
    let node = lab.node(node);
    let mut traces = BTreeSet::new();
    for words in [
        "ip -o link",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 neigh show nud permanent",
        "ip -6 neigh show nud permanent",
        "ip -4 rule",
        "ip -6 rule",
        "find /run/hawser /var/lib/hawser -not -name *.freed",
    ] {
        let text = node.sh(words).unwrap();
        // Flags of a link and lifetimes of a route change by themselves, and link-local addresses come a little later.
        let stable = |line: &str| {
            line.split(" mtu ").next().unwrap_or(line).split(" expires ").next().map(str::to_owned)
        };
        // The device that holds first packets is made anew with each agent.
        let lines = text.lines().filter(|line| !line.contains("fe80::") && !line.contains("hawserh"));
        traces.extend(lines.filter_map(stable).map(|line| format!("{words}: {}", line.trim())));
    }
    traces
}

/// Waits until a node shows exactly `before` again.
pub(crate) fn await_traces(lab: &Lab, node: u8, before: &BTreeSet<String>) {
    let look = || {
        let now = traces(lab, node);
        let left: Vec<&String> = now.difference(before).collect();
        let lost: Vec<&String> = before.difference(&now).collect();
        if left.is_empty() && lost.is_empty() {
            Ok(())
        } else {
            Err(format!("left {left:#?}, lost {lost:#?}"))
        }
    };
    eventually(LONG, "the node is as before", look).unwrap();
}

/// A state of the node's IPv4 pool, as its metric says.
pub(crate) fn pool(lab: &Lab, node: u8, state: &str) -> Result<u64> {
    let [v4, _] = lab.pod_cidrs(node);
    let sample = format!("hawser_pool_addresses{{cidr=\"{v4}\",state=\"{state}\"}}");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of addresses")]
    Ok(lab.node(node).metric(&sample)? as u64)
}

/// Waits until the pool's metric says so.
pub(crate) fn await_pool(lab: &Lab, node: u8, state: &str, wanted: u64) {
    let look = || match pool(lab, node, state) {
        Ok(count) if count == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually(LONG, &format!("the pool has {wanted} {state}"), look).unwrap();
}

/// Host ends of pods' veths on a node.
pub(crate) fn veths(lab: &Lab, node: u8) -> BTreeSet<String> {
    let text = lab.node(node).sh("ip -o link").unwrap();
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    text.lines().filter_map(name).filter(|n| n.len() == 15 && n.starts_with("hw")).collect()
}

/// Files of a directory of a node; none if there is no such directory.
pub(crate) fn files(lab: &Lab, node: u8, directory: &str) -> BTreeSet<String> {
    let directory = directory.to_owned();
    lab.node(node).namespace.run(move || {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    })
}

/// Runs `work` for every number below `count` on `threads` threads.
pub(crate) fn in_parallel<T: Send>(threads: usize, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push(work(number));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}
