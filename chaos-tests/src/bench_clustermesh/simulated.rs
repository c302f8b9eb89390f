//! Simulated clusters for the bench: many in one process, each with its own authority and its own server, which is that of
//! `clustermesh` itself. What they tell is made up; how it is told is not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use clustermesh::daemon::Standing;
use clustermesh::daemon::authority::Authority;
use clustermesh::daemon::hub::Hub;
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::server::{STUCK, Serving, serve};
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::daemon::tokens::Tokens;
use clustermesh::tls::Roots;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{
    Change, ClusterName, ClusterState, Key, LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode, Version,
};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::policy::model::Labels;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Where its commands are taken, in its directory.
pub const SOCKET: &str = "simulated.sock";
/// Pods of a node at most: its pod CIDR is a /26.
const PODS: u32 = 60;
/// Pods that share one label set, as those of a Deployment do.
const DEPLOYMENT: u32 = 50;
/// Namespaces of each cluster.
const NAMESPACES: u32 = 30;
/// Between two changes: longer than a server gathers them, so that each is told by itself.
const APART: Duration = Duration::from_millis(30);

/// How many of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Clusters.
    pub clusters: u32,
    /// Nodes of each.
    pub nodes: u32,
    /// Pods of each.
    pub pods: u32,
}

/// What is asked of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// As many pods of the first cluster go and come, one after the other.
    Change(u32),
    /// The same, at once.
    Burst(u32),
    /// As many nodes of the first cluster get other keys, one after the other.
    Keys(u32),
}

/// Name of a cluster.
pub fn name(cluster: u32) -> String {
    format!("site-{cluster:03}")
}

/// Pod CIDR of a cluster: a /17 of 10.0.0.0/9, which has room for 256.
fn cidr(cluster: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + (cluster << 15))
}

fn address(cluster: u32, node: u32, pod: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(cidr(cluster).to_bits() + (node << 6) + 2 + pod))
}

/// A key that nobody has.
fn key(cluster: u32, node: u32, slot: u32, turn: u32) -> PublicKey {
    let mut bytes = [9; 32];
    for (place, number) in [cluster, node, slot, turn].into_iter().enumerate() {
        bytes[place * 4..place * 4 + 4].copy_from_slice(&number.to_le_bytes());
    }
    PublicKey::from_bytes(bytes)
}

fn node_name(node: u32) -> NodeName {
    // It is made of letters and digits alone.
    format!("node-{node:05}").parse().unwrap_or_else(|_| unreachable!("a name of a node"))
}

fn node(cluster: u32, node: u32, turn: u32) -> Result<RemoteNode> {
    let slot = |slot: u32, port| SlotAnnouncement {
        epoch: Epoch(u64::from(slot + 2 * turn + 1)),
        public_key: key(cluster, node, slot, turn),
        port,
        draining: false,
    };
    // 100.64.0.0/10: nobody answers there.
    let place = Ipv4Addr::new(100, 64, 0, 0).to_bits() + cluster * 1024 + node;
    let cidr = Ipv4Addr::from_bits(cidr(cluster).to_bits() + (node << 6));
    Ok(RemoteNode {
        uid: format!("{cluster:08x}-0000-4000-8000-{node:012x}"),
        created: i64::from(node),
        pod_cidrs: vec![format!("{cidr}/26").parse()?],
        announcement: Announcement {
            slots: [slot(0, 51880), slot(1, 51881)],
            endpoints: vec![IpAddr::V4(Ipv4Addr::from_bits(place))],
            kem: None,
            kem_required: false,
            host_traffic: false,
        },
        signed: None,
    })
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// Where the pod with this number is, and what it is.
fn endpoint(size: Size, pod: u32) -> (u32, RemoteEndpoint) {
    let host = pod % size.nodes;
    let labels = LabelSetId(u64::from(pod / DEPLOYMENT) + 1);
    (host, RemoteEndpoint { node: Arc::new(node_name(host)), labels })
}

fn pod_address(size: Size, cluster: u32, pod: u32) -> IpAddr {
    address(cluster, pod % size.nodes, pod / size.nodes)
}

/// All that a cluster tells.
fn state(size: Size, cluster: u32) -> Result<ClusterState> {
    let mut state = ClusterState::default();
    let mut put = |object| {
        state.apply(Change::Put(object));
    };
    for number in 0..size.pods.div_ceil(DEPLOYMENT) {
        let app = format!("service-{number:04}");
        let set = LabelSet {
            namespace: format!("team-{:02}", number % NAMESPACES),
            labels: labels(&[
                ("app.kubernetes.io/name", app.clone()),
                ("app.kubernetes.io/instance", format!("{app}-production")),
                ("app.kubernetes.io/version", "1.24.3".to_owned()),
                ("pod-template-hash", "7d9c5b8f6b".to_owned()),
            ]),
            ports: [].into(),
        };
        put(Object::LabelSet(LabelSetId(u64::from(number) + 1), Arc::new(set)));
    }
    for number in 0..NAMESPACES {
        let name = format!("team-{number:02}");
        let labels = labels(&[("kubernetes.io/metadata.name", name.clone())]);
        put(Object::Namespace(name.as_str().into(), Arc::new(labels)));
    }
    for number in 0..size.nodes {
        put(Object::Node(Arc::new(node_name(number)), Arc::new(node(cluster, number, 0)?)));
    }
    for pod in 0..size.pods {
        put(Object::Endpoint(pod_address(size, cluster, pod), endpoint(size, pod).1));
    }
    Ok(state)
}

/// Changes after which `state` is there, as its cluster tells them.
fn all(state: &ClusterState, authority: &Authority) -> Result<Vec<Change>> {
    let changes = ClusterState::default().changes_to(state).into_iter();
    Ok(changes.map(|change| authority.sign_change(change)).collect::<Result<_, _>>()?)
}

/// Serves as all of them until it is killed. Writes their ClusterPeers to `peers.json` in `directory`, and takes [`Ask`]s from
/// [`SOCKET`] there. `trust`: certificates of the cluster `own`, which may follow; `kubeconfig` is never used.
///
/// # Errors
/// It cannot serve.
pub fn run(size: Size, own: &str, trust: &Path, kubeconfig: &Path, directory: &Path) -> Result<()> {
    if size.pods.div_ceil(size.nodes) > PODS || size.nodes > 512 || size.clusters > 256 {
        bail!("{size:?}: at most 256 clusters, 512 nodes of each and {PODS} pods on each");
    }
    crate::cluster::install_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let own: ClusterName = own.parse()?;
    let roots = Roots::parse(&std::fs::read_to_string(trust)?)?;
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    runtime.block_on(async {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let (_stop, stopped) = watch::channel(false);
        let (mut peers, mut hubs) = (Vec::new(), Vec::new());
        for cluster in 0..size.clusters {
            let (hub, authority, peer) = one(size, cluster, (&own, &roots), &client, &stopped).await?;
            hubs.push((hub, authority));
            peers.push(peer);
        }
        let socket = UnixListener::bind(directory.join(SOCKET))?;
        let written = directory.join("peers.json.new");
        std::fs::write(&written, serde_json::to_vec(&peers)?)?;
        std::fs::rename(written, directory.join("peers.json"))?;
        let asked = tokio::task::spawn_blocking(move || {
            let first = hubs.first().context("no cluster")?;
            let mut turn = 0;
            for stream in socket.incoming() {
                let mut stream = stream?;
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line)?;
                turn += 1;
                answer(size, first, serde_json::from_str(&line)?, turn)?;
                writeln!(stream, "done")?;
            }
            Ok::<(), anyhow::Error>(())
        });
        asked.await?
    })
}

/// One cluster and its ClusterPeer.
async fn one(
    size: Size,
    cluster: u32,
    (own, roots): (&ClusterName, &Roots),
    client: &Client,
    stopped: &watch::Receiver<bool>,
) -> Result<(Hub, Authority, Value)> {
    let called: ClusterName = name(cluster).parse()?;
    let (authority, _) = Authority::make(&called, SystemTime::now())?;
    let leaf = authority.issue(SystemTime::now())?;
    let trust = Arc::new(Trust::default());
    trust.set(BTreeMap::from([(own.clone(), roots.clone())]));
    let tls = server_config(Arc::clone(&trust), Arc::new(Credentials::new(Arc::clone(&leaf.key))))?;
    let hub = Hub::new(called.clone());
    let version = Version { incarnation: 1, sequence: 1 };
    hub.join(&[]);
    hub.changed(&called, version.into(), all(&state(size, cluster)?, &authority)?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    let tokens = Tokens::new(client.clone(), std::iter::empty());
    let serving = Serving {
        hub: hub.clone(),
        trust,
        tokens,
        tls,
        recheck: clustermesh::daemon::server::RECHECK,
        stuck: STUCK,
        metrics: Metrics::new(),
    };
    tokio::spawn(serve(listener, serving, stopped.clone()));
    tokio::spawn(hub.clone().beat(watch::channel(Standing::default()).1));
    let peer = json!({
        "apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": called},
        "spec": {
            "podCIDRs": [format!("{}/17", cidr(cluster))],
            "addresses": [address],
            "trustBundle": authority.pem(),
        },
    });
    Ok((hub, authority, peer))
}

fn answer(size: Size, (hub, authority): &(Hub, Authority), ask: Ask, turn: u32) -> Result<()> {
    let pod = |number: u32| {
        // In pairs: one goes, and is there again.
        let number = number / 2 % size.pods;
        (pod_address(size, 0, number), endpoint(size, number).1)
    };
    let change = |number: u32| {
        let (address, endpoint) = pod(number);
        if number.is_multiple_of(2) {
            Change::Delete(Key::Endpoint(address))
        } else {
            Change::Put(Object::Endpoint(address, endpoint))
        }
    };
    match ask {
        Ask::Change(times) => {
            for number in 0..times {
                hub.advance(vec![change(number)]);
                std::thread::sleep(APART);
            }
        }
        Ask::Burst(pods) => {
            for gone in [true, false] {
                let all = (0..pods).map(|number| change(2 * number + u32::from(!gone)));
                hub.advance(all.collect());
                std::thread::sleep(10 * APART);
            }
        }
        Ask::Keys(nodes) => {
            for number in 0..nodes {
                let (called, told) = (node_name(number % size.nodes), node(0, number % size.nodes, turn)?);
                let change = Change::Put(Object::Node(Arc::new(called), Arc::new(told)));
                hub.advance(vec![authority.sign_change(change)?]);
                std::thread::sleep(APART);
            }
        }
    }
    Ok(())
}

/// Asks, and waits until it is done.
///
/// # Errors
/// It does not answer.
pub fn ask(directory: &Path, ask: Ask) -> Result<()> {
    let mut stream = UnixStream::connect(directory.join(SOCKET))?;
    writeln!(stream, "{}", serde_json::to_string(&ask)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    (line.trim() == "done").then_some(()).ok_or_else(|| anyhow!("the simulated clusters did not answer"))
}
