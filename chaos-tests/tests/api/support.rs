//! What the tests of this binary share.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use chaos_tests::cluster::{Lab, LabOptions, node_name};
use chaos_tests::{Node, Pod};
use kubeapi::Patch;
use mesh_core::numbers::PORT_METRICS;
use netlab::probe::{Stream, StreamOptions, Transport};
use serde_json::{Value, json};

/// Within this the mesh of a lab is complete, on a busy machine.
pub(crate) const UP: Duration = Duration::from_secs(60);
/// Within this a change is followed after the last fault: kube's backoff is up to 30 s.
pub(crate) const FOLLOW: Duration = Duration::from_secs(45);
/// Within this a change is followed where nothing is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// A lab whose mesh is complete.
pub(crate) fn lab(nodes: u8) -> Result<Lab> {
    let lab = Lab::up(LabOptions::new(netlab::unique_name("api")).nodes(nodes))?;
    lab.await_settled(UP)?;
    Ok(lab)
}

/// Numbered datagrams between pods of two nodes, both ways and in both families, and an eye on both nodes' peers. To be
/// ended by [`Steady::end`], which fails if a record was lost or a peer was ever gone.
pub(crate) struct Steady {
    streams: Vec<(String, Stream)>,
    eyes: Vec<Eye>,
    pods: Vec<Pod>,
}

impl Steady {
    /// Between pods of `one` and `other`.
    pub(crate) fn begin(lab: &Lab, one: u8, other: u8) -> Result<Self> {
        let pods = vec![
            lab.add_pod(one, &format!("steady-{one}-{other}"))?,
            lab.add_pod(other, &format!("steady-{other}-{one}"))?,
        ];
        let mut streams = Vec::new();
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            for ip in &to.ips {
                for transport in [Transport::Udp, Transport::Tcp] {
                    let options = StreamOptions::new(transport, SocketAddr::new(*ip, 0));
                    let options = options.interval(Duration::from_millis(20));
                    let stream = Stream::start(&from.namespace, &to.namespace, &options)?;
                    streams.push((format!("{} to {ip} {transport:?}", from.name), stream));
                }
            }
        }
        let pairs = [(one, other), (other, one)];
        let eyes = pairs.iter().map(|(at, on)| Eye::open(lab.node(*at), lab.node(*on)));
        Ok(Self { streams, eyes: eyes.collect::<Result<_>>()?, pods })
    }

    /// Addresses of its pods.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.pods.iter().flat_map(|pod| pod.ips.iter().copied()).collect()
    }

    /// Nothing was lost, and both nodes were each other's peer at every look.
    pub(crate) fn end(self) -> Result<()> {
        let mut sent = 0;
        for (name, stream) in self.streams {
            let report = stream.stop(Duration::from_secs(5));
            if report.lost != 0 || report.error.is_some() {
                bail!("{name}: {report}");
            }
            sent += report.sent;
        }
        let looks = self.eyes.into_iter().map(Eye::close).collect::<Result<Vec<_>>>()?;
        println!("lossless: {sent} records; looks at peers: {looks:?}");
        if sent == 0 || looks.contains(&0) {
            bail!("nothing was sent or looked at");
        }
        Ok(())
    }
}

/// Looks at `wg show` all the time: the peers of one node must not go from another's devices.
struct Eye {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64, String>>>,
}

impl Eye {
    fn open(at: &Node, on: &Node) -> Result<Self> {
        let own: BTreeSet<String> = keys_of(on)?;
        let peers = at.peers()?.into_iter().map(|peer| peer.public_key);
        let wanted: BTreeSet<String> = peers.filter(|key| own.contains(key)).collect();
        if wanted.len() != 2 {
            bail!("{} has {} peers of {}", at.name, wanted.len(), on.name);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (told, name) = (Arc::clone(&stop), at.name.clone());
        let look = move || {
            let mut looks = 0;
            while !told.load(Ordering::Relaxed) {
                let output = std::process::Command::new("wg").args(["show", "all", "peers"]).output();
                let text = output.map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&text.stdout).into_owned();
                if let Some(gone) = wanted.iter().find(|key| !text.contains(key.as_str())) {
                    return Err(format!("{name}: peer {gone} is gone at look {looks}; there are: {text}"));
                }
                looks += 1;
                // Not to wait for anything: this is how often is looked.
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(looks)
        };
        Ok(Self { stop, thread: Some(at.namespace.thread(look)) })
    }

    fn close(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("closed twice"))?;
        thread.join().map_err(|_| anyhow!("the eye panicked"))?.map_err(|what| anyhow!(what))
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Public keys of a node's own devices.
pub(crate) fn keys_of(node: &Node) -> Result<BTreeSet<String>> {
    let text = node.sh("wg show all public-key")?;
    Ok(text.lines().filter_map(|line| line.split('\t').nth(1)).map(str::to_owned).collect())
}

/// Merges into a Node's metadata.annotations; null removes.
pub(crate) fn annotate(lab: &Lab, node: u8, key: &str, value: &Value) -> Result<()> {
    patch_node(lab, node, &json!({"metadata": {"annotations": {key: value}}}))
}

/// Merges into a Node, its spec or metadata.
pub(crate) fn patch_node(lab: &Lab, node: u8, change: &Value) -> Result<()> {
    let patch = Patch::Merge(change.clone());
    let store = lab.api().store();
    store.patch("nodes", None, &node_name(node), &patch).map(drop).map_err(|e| anyhow!("{e}"))
}

/// Merges into a Node's status.
pub(crate) fn patch_status(lab: &Lab, node: u8, change: &Value) -> Result<()> {
    let patch = Patch::Merge(change.clone());
    let store = lab.api().store();
    store.patch_status("nodes", None, &node_name(node), &patch).map(drop).map_err(|e| anyhow!("{e}"))
}

/// An annotation as the API has it.
pub(crate) fn annotation(lab: &Lab, node: u8, key: &str) -> Option<String> {
    let object = lab.api().store().find("nodes", None, &node_name(node))?;
    object["metadata"]["annotations"][key].as_str().map(str::to_owned)
}

/// What a node's agent last planned, by `/debug/plan`.
pub(crate) fn plan(node: &Node) -> Result<Value> {
    Ok(serde_json::from_str(&node.http(PORT_METRICS, "/debug/plan")?)?)
}

/// A change that costs nothing and that every agent can be seen to follow: which of its InternalIPs `node` is called by
/// are the same ones, in one of two spellings.
pub(crate) struct Harmless {
    node: u8,
    spelling: bool,
}

impl Harmless {
    pub(crate) const fn of(node: u8) -> Self {
        Self { node, spelling: false }
    }

    fn addresses(&self) -> Vec<String> {
        let (v4, v6) = (format!("192.0.2.{}", self.node), format!("2001:db8::{:x}", self.node));
        if self.spelling { vec![v4] } else { vec![v4, v6] }
    }

    /// Makes it.
    pub(crate) fn make(&mut self, lab: &Lab) -> Result<()> {
        self.spelling = !self.spelling;
        annotate(lab, self.node, "hawser.dev/endpoint", &json!(self.addresses().join(",")))
    }

    /// Has every running agent seen it, and has the node's own announced it?
    pub(crate) fn followed(&self, lab: &Lab) -> Result<(), String> {
        for node in lab.nodes.iter().filter(|node| node.agent().is_some()) {
            let plan = plan(node).map_err(|error| format!("{}: {error:#}", node.name))?;
            let facts = &plan["view"]["nodes"][node_name(self.node)];
            let wanted = json!(self.addresses());
            if facts["endpoint"]["addresses"] != wanted {
                return Err(format!("{} knows {}", node.name, facts["endpoint"]));
            }
            if facts["announcement"]["valid"]["endpoints"] != wanted {
                return Err(format!("{} knows the announcement {}", node.name, facts["announcement"]));
            }
        }
        Ok(())
    }
}

/// How many operations of a kind the node's agent has applied.
pub(crate) fn operations(node: &Node, kind: &str) -> Result<f64> {
    node.metric(&format!("hawser_operations_total{{kind=\"{kind}\"}}"))
}

/// Present problems of a code.
pub(crate) fn problems(node: &Node, code: &str) -> Result<f64> {
    node.metric(&format!("hawser_problems{{kind=\"{code}\"}}"))
}

/// All that an agent could have changed on a node, without counters and clocks.
pub(crate) fn data_path(node: &Node) -> Result<String> {
    let mut text = String::new();
    for command in [
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "ip -br link",
        "nft -s list ruleset",
        "wg show all peers",
        "wg show all allowed-ips",
    ] {
        // Cache entries of learned routes and expiry times come and go by themselves; the device that holds first packets
        // is made anew with each agent.
        let out = node.sh(command)?;
        let passing = |line: &&str| ["cache", "expires", "hawserh"].iter().any(|word| line.contains(word));
        let mut lines: Vec<&str> = out.lines().filter(|line| !passing(line)).collect();
        lines.sort_unstable();
        text.extend(lines.iter().flat_map(|line| [line.trim_end(), "\n"]));
    }
    Ok(text)
}
