//! A `clustermesh` that was taken over: it has the cluster's own authority, agents let it tell them what it likes, and of nodes
//! nothing is believed that their own cluster has not signed, and nothing outside the ClusterPeers, whoever signed it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use chaos_tests::ask::{Ask, PATIENCE};
use chaos_tests::joined::join_both;
use chaos_tests::namer::Namer;
use chaos_tests::objects::{BACKEND_PORT, apply, network_policy};
use chaos_tests::witness::{Witness, flowing, lossless};
use chaos_tests::{Lab, LabOptions, Node, Pod};
use clustermesh::daemon::Standing;
use clustermesh::daemon::authority::{Authority, CERTIFICATE, KEY, SECRET, establish};
use clustermesh::daemon::hub::{BOOKMARK, Hub};
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::own;
use clustermesh::daemon::own::state::OwnState;
use clustermesh::daemon::server::{RECHECK, STUCK, Serving, serve};
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::daemon::tokens::Tokens;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as NodeObject, Secret};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kubeapi::User;
use mesh_core::clusters::{
    Change, ClusterName, LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode, Version,
};
use mesh_core::numbers::{NAMESPACE, PORT_CLUSTERMESH};
use mesh_core::policy::model::Labels;
use netlab::eventually;
use proto::clustermesh::write_node;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::{MESH, counted, kind, lab, options};

/// Greater than any that a leader makes of its clock.
const INCARNATION: u64 = 1 << 40;

/// What it says of each cluster.
type Said = Vec<(ClusterName, Vec<Change>)>;

/// It, in place of a lab's `clustermesh`, until this is dropped.
struct StandIn {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Serves these clusters with the certificate of the lab's own.
    fn start(lab: &Lab, said: Said) -> Result<Self> {
        let kubeconfig = lab.kubeconfig(&User::service_account(NAMESPACE, "clustermesh"));
        let at = SocketAddr::new(lab.control_addresses().0.into(), PORT_CLUSTERMESH);
        let own: ClusterName = lab.cluster_name().parse()?;
        let (ready, begun) = sync_channel(1);
        let (stop, stopped) = watch::channel(false);
        let thread = lab.control.thread(move || {
            let served = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let served = served.map_err(anyhow::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let (listener, serving) = prepare(&kubeconfig, &own, at, said).await?;
                    let _ = ready.send(Ok(()));
                    serve(listener, serving, stopped).await;
                    Ok(())
                })
            });
            if let Err(error) = served {
                let _ = ready.send(Err(error));
            }
        });
        begun.recv().context("its thread ended")??;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

async fn prepare(
    kubeconfig: &str,
    own: &ClusterName,
    at: SocketAddr,
    said: Said,
) -> Result<(TcpListener, Serving)> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let leaf = establish(&client, own).await?.issue(SystemTime::now())?;
    let trust = Arc::new(Trust::default());
    let tls = server_config(Arc::clone(&trust), Arc::new(Credentials::new(Arc::clone(&leaf.key))))?;
    let hub = Hub::new(own.clone());
    hub.join(&said.iter().map(|(cluster, _)| cluster.clone()).collect::<Vec<_>>());
    let version = Version { incarnation: INCARNATION, sequence: 0 };
    hub.changed(own, version.into(), Vec::new());
    let clusters: Vec<ClusterName> = said.iter().map(|(cluster, _)| cluster.clone()).collect();
    for (cluster, changes) in said {
        hub.changed(&cluster, version.into(), changes);
    }
    tokio::spawn(hub.clone().beat(watch::channel(Standing::default()).1));
    // All of them are alive, it says.
    tokio::spawn({
        let hub = hub.clone();
        async move {
            loop {
                for cluster in &clusters {
                    hub.heard(cluster);
                }
                tokio::time::sleep(BOOKMARK).await;
            }
        }
    });
    let agents = [format!("system:serviceaccount:{NAMESPACE}:mesh-agent")];
    let tokens = Tokens::new(client, agents);
    let (recheck, stuck, metrics) = (RECHECK, STUCK, Metrics::new());
    // The one that was there may hold the port for a moment.
    let begun = Instant::now();
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && begun.elapsed() < MESH => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    Ok((listener, Serving { hub, trust, tokens, tls, recheck, stuck, metrics }))
}

/// What a lab's own `clustermesh` would tell of its nodes.
fn truth(lab: &Lab) -> Result<Vec<Change>> {
    let mut state = OwnState::new(lab.cluster_name().parse()?, lab.cluster_cidrs());
    let list: Vec<Value> = lab
        .nodes
        .iter()
        .map(|node| lab.api().store().get("nodes", None, &node.name).map_err(|error| anyhow!("{error}")))
        .collect::<Result<_>>()?;
    let nodes = list.into_iter().map(serde_json::from_value::<NodeObject>).collect::<Result<Vec<_>, _>>()?;
    Ok(state.all_nodes(nodes.iter().filter_map(own::node).collect()))
}

/// The authority of a lab's cluster.
fn authority(lab: &Lab) -> Result<Authority> {
    let secret = lab.api().store().get("secrets", Some(NAMESPACE), SECRET);
    let secret: Secret = serde_json::from_value(secret.map_err(|error| anyhow!("{error}"))?)?;
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).context("it has no such key");
        Ok::<_, anyhow::Error>(String::from_utf8(bytes?.0.clone())?)
    };
    Ok(Authority::load(&lab.cluster_name().parse()?, text(CERTIFICATE)?, &text(KEY)?)?)
}

/// A node as `like` is, with keys of nobody, or of somebody else; not signed.
fn node(like: &RemoteNode, name: &str, cidr: &str, keys: Option<&RemoteNode>) -> Result<Change> {
    let mut node = RemoteNode { pod_cidrs: vec![cidr.parse()?], created: 1, signed: None, ..like.clone() };
    match keys {
        Some(other) => node.announcement.slots.clone_from(&other.announcement.slots),
        None => {
            for slot in &mut node.announcement.slots {
                slot.public_key = keyring::PrivateKey::generate()?.public();
            }
        }
    }
    Ok(Change::Put(Object::Node(Arc::new(name.parse()?), Arc::new(node))))
}

/// Whom a node's devices send to, and what they let in from whom.
fn tunnels(node: &Node) -> Result<BTreeSet<[String; 4]>> {
    let sorted = |list: &str| {
        let mut parts: Vec<&str> = list.split(',').collect();
        parts.sort_unstable();
        parts.join(",")
    };
    Ok(node
        .peers()?
        .into_iter()
        .map(|peer| [peer.device, peer.public_key, peer.endpoint, sorted(&peer.allowed_ips)])
        .collect())
}

#[test]
fn a_clustermesh_that_was_taken_over_has_nothing_believed_outside_its_cluster_peers() -> Result<()> {
    let quick = |side: &str| LabOptions {
        config: "rotation:\n  quietSeconds: 600\n  deadlineSeconds: 3600\n".to_owned(),
        ..options(&format!("taken-{side}"), 1)
    };
    let mut west = lab(quick("w"))?;
    let mut east = Lab::up_beside(quick("e"), &west)?;
    join_both(&mut west, &mut east, MESH)?;
    west.await_settled(MESH)?;
    // A third one that is joined and of which nothing is told: what is its own is nobody else's.
    let third = json!({
        "apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "north"},
        "spec": {"podCIDRs": ["10.99.0.0/16"], "addresses": ["192.0.2.99:51893"], "trustBundle": east.trust_bundle()?},
    });
    apply(&west, &third)?;
    let [a, b] = [west.add_pod(1, "a")?, west.add_pod(1, "b")?];
    let c = east.add_pod(1, "c")?;
    let _server = Namer::new(&a.namespace, &a.name, &a.ips, BACKEND_PORT)?;
    // Whoever is a pod of east with this label gets in to pod a, and nobody else.
    let from = json!([{"namespaceSelector": {"matchLabels": {"hawser.dev/cluster": east.cluster_name()}},
        "podSelector": {"matchLabels": {"app": "friend"}}}]);
    apply(
        &west,
        &network_policy(
            "friends",
            json!({
                "podSelector": {"matchLabels": {"lab.hawser.dev/pod": "a"}}, "ingress": [{"from": from}],
            }),
        ),
    )?;
    let patch = kubeapi::Patch::Merge(json!({"metadata": {"labels": {"lab.hawser.dev/pod": "a"}}}));
    let _: Value =
        west.api().store().patch("pods", Some("default"), "a", &patch).map_err(|error| anyhow!("{error}"))?;
    let to = SocketAddr::new(a.ip(true).context("an IPv4 address")?, BACKEND_PORT);
    let gets_in = |pod: &Pod| Ask::Tcp.once(&pod.namespace, to, PATIENCE).is_ok();
    eventually(Duration::from_secs(20), "nobody gets in", || {
        if gets_in(&b) || gets_in(&c) { Err("somebody does".to_owned()) } else { Ok(()) }
    })?;
    let mut witness = Witness::new(&west)?;
    let streams = witness.streams(&b.namespace, &c.namespace, &c.ips)?;
    flowing(&streams, 20)?;
    let before = tunnels(west.node(1))?;
    let routes = west.node(1).sh("ip route show table all")?;

    let (of_its_own, of_east) = (authority(&west)?, authority(&east)?);
    let mut said = truth(&east)?;
    let real = said.iter().find_map(|change| match change {
        Change::Put(Object::Node(_, node)) => Some(RemoteNode::clone(node)),
        Change::Put(_) | Change::Delete(_) => None,
    });
    let real = real.context("a node of east")?;
    let ours = truth(&west)?.into_iter().find_map(|change| match change {
        Change::Put(Object::Node(_, node)) => Some(RemoteNode::clone(&node)),
        Change::Put(_) | Change::Delete(_) => None,
    });
    let ours = ours.context("a node of west")?;
    let of_west = ours.pod_cidrs.first().context("a pod CIDR")?.to_string();
    let mut free = free_in(&east, &real)?.map(|net| net.to_string());
    let mut free = || free.next().context("a free /24");
    said.extend([
        node(&real, "outside", "203.0.113.0/24", None)?,
        node(&real, "of-west", &of_west, None)?,
        node(&real, "of-north", "10.99.1.0/24", None)?,
        node(&real, "double", &free()?, Some(&ours))?,
    ]);
    // Not even if east itself said so.
    let mut said = said.into_iter().map(|one| of_east.sign_change(one)).collect::<Result<Vec<_>, _>>()?;
    // Inside the CIDRs, and signed by nobody, or by all that it has; or by east, as one of a cluster with the same authority.
    said.push(node(&real, "unsigned", &free()?, None)?);
    let here = node(&real, "signed-here", &free()?, None)?;
    let Change::Put(Object::Node(name, node_here)) = &here else { anyhow::bail!("no node") };
    let signed = of_its_own.sign_for(&east.cluster_name().parse()?, write_node(name, node_here))?;
    let node_here = RemoteNode { signed: Some(Arc::new(signed)), ..RemoteNode::clone(node_here) };
    said.push(Change::Put(Object::Node(Arc::clone(name), Arc::new(node_here))));
    let of_north = vec![of_east.sign_change(node(&real, "of-east", "10.99.2.0/24", None)?)?];
    let set = LabelSet {
        namespace: "default".to_owned(),
        labels: Labels::from([("app".to_owned(), "friend".to_owned())]),
        ports: BTreeSet::new(),
    };
    said.push(Change::Put(Object::Namespace("default".into(), Arc::default())));
    said.push(Change::Put(Object::LabelSet(LabelSetId(1), Arc::new(set))));
    let place: Arc<mesh_core::name::NodeName> = Arc::new(east.node(1).name.parse()?);
    let friend = |address: IpAddr| {
        Change::Put(Object::Endpoint(
            address,
            RemoteEndpoint { node: Arc::clone(&place), labels: LabelSetId(1) },
        ))
    };
    said.extend([friend(b.ip(true).context("an IPv4 address")?), friend("203.0.113.7".parse()?)]);
    let ghost = vec![node(&real, "ghost", "10.98.1.0/24", None)?];
    west.kill_clustermesh()?;
    let all =
        vec![(east.cluster_name().parse()?, said), ("north".parse()?, of_north), ("ghost".parse()?, ghost)];
    let stand_in = StandIn::start(&west, all)?;

    let agent = west.node(1);
    let problem = |reason: &str| kind("hawser_host_findings", &format!("joined-cluster-{reason}"));
    counted(agent, &problem("node-cidr-outside"), 3.0, MESH)?;
    counted(agent, &problem("node-key-twice"), 1.0, MESH)?;
    counted(agent, &problem("endpoint-outside"), 2.0, MESH)?;
    let log = agent.log("mesh-agent")?;
    let unsigned = format!("node signed-here and 1 more of cluster {}: no authority", east.cluster_name());
    for words in [
        "203.0.113.0/24 is outside",
        "10.99.1.0/24 is outside",
        &format!("{of_west} is outside"),
        &unsigned,
        "node of-east of cluster north: no authority",
    ] {
        ensure!(log.contains(words), "the log of the agent does not say {words:?}");
    }
    ensure!(tunnels(agent)? == before, "the tunnels are others: {:?} was {before:?}", tunnels(agent)?);
    let now = agent.sh("ip route show table all")?;
    ensure!(now == routes, "routes were\n{routes}\nand are\n{now}");
    ensure!(!gets_in(&b) && !gets_in(&c), "a pod of this cluster counts as one of another");
    let gap = lossless(streams)?;
    let frames = witness.clean(&west)?;
    drop(stand_in);
    println!(
        "nine facts that it may not tell were refused and counted; tunnels and routes are what they were; 0 lost, longest gap {gap:?}; {frames} frames, none in clear"
    );
    Ok(())
}

/// Pod CIDRs of a cluster that its only node does not have.
fn free_in(lab: &Lab, node: &RemoteNode) -> Result<impl Iterator<Item = IpNet> + use<>> {
    let four = lab.cluster_cidrs().into_iter().find(|net| matches!(net, IpNet::V4(_)));
    let (subnets, taken) = (four.context("an IPv4 pod CIDR")?.subnets(24)?, node.pod_cidrs.clone());
    Ok(subnets.filter(move |net| taken.iter().all(|taken| !taken.contains(net) && !net.contains(taken))))
}
