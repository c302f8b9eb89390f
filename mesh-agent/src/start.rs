//! From flags to a running agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use keyring::psk::{NodeId, PskStore};
use keyring::{LoadedStore, Store};
use kube::Client;
use mesh_core::announcement::Epoch;
use mesh_core::ipam::Ipam;
use mesh_core::name::NodeName;
use mesh_core::plan::Target;
use mesh_core::policy::compile::AskedClusters;
use mesh_core::slot::Slot;
use tokio::sync::{mpsc, watch};

use crate::agent::{Agent, Ledger, Memory, Outputs, Psks, Rotor, load_closed};
use crate::attachments::{Directory, Table};
use crate::claim::{Claim, ClaimError};
use crate::cni::{Attacher, Readiness};
use crate::config::{Config, Engine};
use crate::flows::Board;
use crate::guard::Guard;
use crate::host::Host;
use crate::host_ports::HostPorts;
use crate::joined::{self, Joined};
use crate::kernel::Kernel;
use crate::letters::{Addresses, Courier};
use crate::metrics::Metrics;
use crate::names::Register;
use crate::paths::Paths;
use crate::servers::{self, Known};
use crate::service_cidrs::ServiceCidrs;
use crate::status::Findings;
use crate::watch::Watching;
use crate::watch::mail::Mailbox;
use crate::wireguard::{Caller, Implementation, WireGuard};
use crate::{cni, facts, http, monitor, publish, supervise};

mod covered;
mod plane;

/// What the command line gives.
#[derive(Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// A kubeconfig; none: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object.
    pub node: String,
    /// Where maps and programs are pinned; none: as configured.
    pub bpf_pin_dir: Option<PathBuf>,
    /// Whether a BPF file system is mounted where there is none.
    pub mounts_bpffs: bool,
    /// How often drift is looked for without a nudge of the kernel.
    pub drift_interval: Duration,
}

/// Nudges of the kernel that may wait: one would do, since a nudge carries nothing.
const NUDGES: usize = 8;
/// For one API server to answer, before the next is asked.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Events that may wait while the API is slow; more than a node has problems.
const NOTICES: usize = 64;

/// Runs the agent until SIGTERM or SIGINT, which leave the data path running.
///
/// # Errors
/// What keeps it from starting: configuration, keys, sockets.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut config = Config::load(&options.config)?;
    if let Some(directory) = &options.bpf_pin_dir {
        config.bpf_pin_dir.clone_from(directory);
    }
    config.mounts_bpffs = options.mounts_bpffs;
    // Before anything is closed: who takes Hawser off this node opens it at the same time. Without a directory it closes all the same.
    let claim = Claim::take(&config.state_dir);
    if let Err(error @ ClaimError::InUse { .. }) = claim {
        return Err(error.into());
    }
    let known = Known::load(&config.state_dir);
    // Before anything is refused; what is wrong with a kubeconfig is said when it is used.
    if let Some(port) = options.kubeconfig.as_deref().and_then(api_port) {
        config.settings.host_traffic.exempt_tcp.insert(port);
    }
    let node: NodeName = options.node.parse().context("node name (--node-name or NODE_NAME)")?;
    let metrics = Metrics::new();
    let (kernel, netlink) = Kernel::supervised().context("Could not open a netlink socket")?;
    let covered = covered::check(&options.config, &config, &kernel).await;
    if let Ok(Some(refusal)) = &covered {
        bail!("{refusal}");
    }
    let has_ipv6 = crate::container::has_ipv6();
    let joined_register = joined::Register::load(
        &config.state_dir,
        (node.clone(), has_ipv6),
        config.cluster_name.clone(),
        config.settings.pod_cidrs.clone(),
    );
    let (believed, disputed) = (joined_register.believed().clone(), joined_register.disputed().clone());
    let joined = Joined { believed, disputed, ..Joined::default() };
    let guarded = crate::guard::possible(joined.settings(&config.settings).guarded(), has_ipv6);
    let closed = crate::guard::close(&config, &guarded, has_ipv6, &kernel).await;
    closed.context("Could not refuse plaintext of pods")?;
    covered?;
    let register = Arc::new(Register::new(config.settings.pod_cidrs.clone()));
    let opened = plane::open(&config, &guarded, &kernel, &register).await;
    let _claim = claim?;
    let (client, patient) = clients(options.kubeconfig.as_deref(), &config, &known, &node).await?;
    let keys = keys(&config.state_dir, &client, &node).await?;
    let rotor = Rotor::load(&keys)?;
    let wireguard = Caller::new(WireGuard::new(implementation(config.engine).await?));
    tracing::info!(
        node = %node,
        cluster = %config.cluster_name,
        wireguard = ?wireguard.implementation(),
        version = env!("CARGO_PKG_VERSION"),
        "Starting"
    );

    let directory = Directory::open(&config.state_dir.join("attachments"))?;
    let table = Arc::new(Mutex::new(table(&directory, &kernel, &node).await?));
    let mailbox = Arc::new(Mailbox::default());
    let (nodes_tx, nodes) = watch::channel(crate::watch::Nodes::default());
    let (joined_tx, joined) = watch::channel(Arc::new(joined));
    let (peers_tx, peers) = watch::channel(joined::Peers::default());
    let (service_cidrs_tx, service_cidrs) = watch::channel(ServiceCidrs::default());
    let (pods_tx, pods) = watch::channel(crate::watch::Pods::default());
    let starting = Readiness { obstacles: vec!["mesh-agent is starting".into()], ..Readiness::default() };
    let (readiness_tx, readiness) = watch::channel(starting);
    let (snapshot_tx, snapshot) = watch::channel(None);
    let (heartbeat_tx, heartbeat) = watch::channel(Instant::now());
    let (plane_tx, plane_state) = watch::channel(opened);
    let (findings_tx, findings) = watch::channel(Arc::default());
    let (asks_tx, asks) = watch::channel(AskedClusters::default());
    let (links_tx, links) = mpsc::channel(NUDGES);
    let (lookup_tx, unknown) = mpsc::channel(crate::lookup::QUEUE);
    let (leads_tx, leads) = watch::channel(false);
    let (announce_tx, announce) = watch::channel(None);
    let (notices_tx, notices) = mpsc::channel(NOTICES);
    let (nudge, kernel_changed) = mpsc::channel(NUDGES);
    let (post, mail) = mpsc::channel(crate::letters::INBOX);
    let (addresses_tx, addresses) = watch::channel(Addresses::default());
    let psks = psks(&config, &node, Courier::new(post.clone()))?;

    let unannounced = Arc::new(tokio::sync::Notify::new());
    let announced = pods.clone();
    let attacher = Arc::new(Attacher {
        node: node.clone(),
        kernel: kernel.clone(),
        directory,
        table: Arc::clone(&table),
        pods,
        readiness: readiness.clone(),
        plane: plane_state.clone(),
        mailbox: Arc::clone(&mailbox),
        api: cni::Api(patient.clone()),
        metrics: metrics.clone(),
        nudge: nudge.clone(),
        unannounced: Arc::clone(&unannounced),
        host_ports: HostPorts::new(Arc::clone(&table)),
    });
    // Before the socket and everything that changes the node: a second agent ends here at the latest.
    let listeners = http::bind(config.health_address, config.metrics_address).await?;
    let listener = cni::listen(&config.cni_socket)
        .with_context(|| format!("Could not listen on {}", config.cni_socket.display()))?;
    let flows = crate::flows::server::listen(&config.flows_socket)
        .with_context(|| format!("Could not listen on {}", config.flows_socket.display()))?;
    let board = Arc::new(Board::default());
    let sources = http::Sources {
        heartbeat,
        readiness: readiness.clone(),
        snapshot,
        metrics: metrics.clone(),
        plane: plane_state.clone(),
        nudge: nudge.clone(),
        state_dir: config.state_dir.clone(),
        installed: config.cni_socket.with_file_name(proto::cni::INSTALLED_FILE),
        paths: Paths::default(),
    };
    let shared = plane::Shared {
        config: config.clone(),
        asks: asks_tx,
        reach: joined_register.reach(),
        guarded,
        node: node.clone(),
        kernel: kernel.clone(),
        table: Arc::clone(&table),
        mailbox: Arc::clone(&mailbox),
        register: Arc::clone(&register),
        board: Arc::clone(&board),
        metrics: metrics.clone(),
    };
    let cluster_nodes = nodes.clone();
    let (judging, foreign) = (nodes.clone(), Arc::clone(&mailbox));
    let (told_tx, told) = mpsc::channel(joined::QUEUE);
    let agent_table = Arc::clone(&table);
    let agent = Agent {
        node: node.clone(),
        kernel,
        wireguard,
        keys,
        rotor,
        psks,
        ledger: Ledger::load(&config.state_dir),
        closed: load_closed(&config.state_dir),
        mail,
        guard: Guard::new(),
        plane: plane_state,
        register: Arc::clone(&register),
        findings: findings.clone(),
        table,
        attacher: Arc::clone(&attacher),
        nodes,
        joined,
        service_cidrs,
        kernel_changed,
        drift_interval: options.drift_interval,
        metrics: metrics.clone(),
        outputs: Outputs {
            readiness: readiness_tx,
            snapshot: snapshot_tx,
            heartbeat: heartbeat_tx,
            announce: announce_tx,
            notices: notices_tx,
            addresses: addresses_tx,
        },
        memory: Memory::default(),
        config: config.clone(),
    };

    // All of these end only when something is broken for good, so the first end is the agent's.
    let mut tasks = Tasks::new();
    tasks.spawn(named("agent", async move {
        agent.run().await;
        Ok(())
    }));
    let watching =
        Watching { client: client.clone(), mailbox: Arc::clone(&mailbox), metrics: metrics.clone() };
    let (unavailable_tx, unavailable) = watch::channel(false);
    watches(&mut tasks, &watching, &node, (nodes_tx, unavailable_tx), pods_tx);
    tasks.spawn(named("data path", plane::run(shared, plane_tx, links, lookup_tx, findings_tx)));
    let (servers_tx, servers_told) = watch::channel(std::collections::BTreeSet::new());
    tasks.spawn(named("watch of API servers", {
        let watching = watching.clone();
        async move {
            crate::watch::servers(watching, crate::watch::API_SERVERS, servers_tx).await;
            Ok(())
        }
    }));
    tasks.spawn(named("addresses of API servers", async move {
        servers::keep(known, servers_told).await;
        Ok(())
    }));
    let (clustermesh_tx, clustermesh) = watch::channel(std::collections::BTreeSet::new());
    tasks.spawn(named("watch of clustermesh", {
        let watching = watching.clone();
        async move {
            crate::watch::servers(watching, crate::watch::CLUSTERMESH, clustermesh_tx).await;
            Ok(())
        }
    }));
    tasks.spawn(named("what clustermesh tells", {
        let (cluster, settings) = (config.cluster_name.clone(), config.clustermesh.clone());
        let (peers, metrics) = (peers.clone(), metrics.clone());
        async move {
            joined::follow::run(cluster, settings, peers, clustermesh, told_tx, metrics).await;
            Ok(())
        }
    }));
    tasks.spawn(named("watch of cluster peers", {
        let watching = watching.clone();
        async move {
            crate::watch::cluster_peers(watching, peers_tx).await;
            Ok(())
        }
    }));
    tasks.spawn(named("watch of service CIDRs", {
        let watching = watching.clone();
        async move {
            crate::watch::service_cidrs(watching, service_cidrs_tx).await;
            Ok(())
        }
    }));
    let counting = metrics.clone();
    tasks.spawn(named("joined clusters", async move {
        joined::run(joined_register, peers, judging, told, asks, (joined_tx, foreign), counting).await;
        Ok(())
    }));
    told_to_the_cluster(&mut tasks, &client, &node, (cluster_nodes, findings), (leads_tx, leads));
    tasks.spawn(named("look-up of addresses", {
        let (client, node) = (client.clone(), node.clone());
        async move {
            crate::lookup::run(client, node, register, mailbox, unknown).await;
            Ok(())
        }
    }));
    tasks.spawn(named("exchange of pre-shared keys", async move {
        crate::letters::serve(addresses, post).await;
        Ok(())
    }));
    tasks.spawn(named("flows", {
        let node = node.to_string();
        async move {
            crate::flows::server::serve(flows, board, node).await;
            Ok(())
        }
    }));
    tasks.spawn(named("announcer", {
        let (client, node) = (client.clone(), node.clone());
        async move {
            publish::announce(client, node, announce).await;
            Ok(())
        }
    }));
    tasks.spawn(named("start-up taint", {
        let (client, node, readiness) = (client.clone(), node.clone(), readiness.clone());
        async move {
            crate::taint::keep_off(client, node, readiness).await;
            Ok(())
        }
    }));
    tasks.spawn(named("condition NetworkUnavailable", {
        let (client, node, readiness) = (client.clone(), node.clone(), readiness.clone());
        async move {
            crate::condition::keep(client, node, readiness, unavailable).await;
            Ok(())
        }
    }));
    tasks.spawn(named("annotations of pods", {
        let (client, table) = (client.clone(), Arc::clone(&agent_table));
        async move {
            crate::announced::keep(client, table, announced, unannounced).await;
            Ok(())
        }
    }));
    tasks.spawn(named("recorder", async move {
        publish::record(patient, node, notices).await;
        Ok(())
    }));
    tasks.spawn(named("netlink connection", async move {
        Err(supervise::task("the task that reads its socket", netlink).await)
    }));
    tasks.spawn(named("kernel monitor", async move { Ok(monitor::run(nudge, links_tx).await?) }));
    tasks.spawn(named("CNI server", async move {
        cni::serve(listener, attacher).await;
        Ok(())
    }));
    tasks.spawn(named("HTTP server", async move { Ok(http::serve(listeners, sources).await?) }));

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("Terminated; the data path stays as it is"),
        _ = tokio::signal::ctrl_c() => tracing::info!("Interrupted; the data path stays as it is"),
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Ok(()))) | None => bail!("a task of the agent ended"),
        },
    }
    Ok(())
}

/// The lease, and what its holder writes.
fn told_to_the_cluster(
    tasks: &mut Tasks,
    client: &Client,
    node: &NodeName,
    (nodes, findings): (watch::Receiver<crate::watch::Nodes>, watch::Receiver<Arc<Findings>>),
    (leads_tx, leads): (watch::Sender<bool>, watch::Receiver<bool>),
) {
    let (client, node) = (client.clone(), node.clone());
    tasks.spawn(named("lease", {
        let (client, node) = (client.clone(), node.clone());
        async move {
            crate::lease::run(client, node, nodes, leads_tx).await;
            Ok(())
        }
    }));
    tasks.spawn(named("status of policies", async move {
        crate::status::run(client, node, findings, leads).await;
        Ok(())
    }));
}

type Tasks = tokio::task::JoinSet<anyhow::Result<()>>;

/// One task for each watch.
fn watches(
    tasks: &mut Tasks,
    watching: &Watching,
    node: &NodeName,
    (nodes, unavailable): (watch::Sender<crate::watch::Nodes>, watch::Sender<bool>),
    pods: watch::Sender<crate::watch::Pods>,
) {
    use crate::watch as watches;
    let (w, node) = (|| watching.clone(), node.clone());
    let mut spawn = |name, work: BoxFuture<'static, ()>| {
        tasks.spawn(named(name, async move {
            work.await;
            Ok(())
        }));
    };
    spawn("watch of nodes", watches::nodes(w(), nodes, (node.clone(), unavailable)).boxed());
    spawn("watch of this node's pods", watches::own_pods(w(), node, pods).boxed());
    spawn("watch of pods", watches::pods(w()).boxed());
    spawn("watch of namespaces", watches::namespaces(w()).boxed());
    spawn("watch of network policies", watches::network_policies(w()).boxed());
    spawn("watch of cluster network policies", watches::cluster_policies(w()).boxed());
    spawn("watch of services", watches::services(w()).boxed());
    spawn("watch of endpoint slices", watches::endpoint_slices(w()).boxed());
}

async fn named(name: &'static str, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    work.await.with_context(|| format!("{name} failed"))?;
    bail!("{name} ended")
}

/// Port of the API server that a kubeconfig names. An API server may be a node, which must be reached without the tunnel: who has
/// no peers yet learns them there. None where the URL has no port: 443 of all nodes would be too much to leave in plaintext.
fn api_port(path: &Path) -> Option<u16> {
    port_of(&kube::config::Kubeconfig::read_from(path).ok()?)
}

fn port_of(kubeconfig: &kube::config::Kubeconfig) -> Option<u16> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|named| named.name == *current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    let (_, rest) = cluster.server.as_ref()?.split_once("://")?;
    let authority = rest.split('/').next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

/// Two clients of the API servers, beginning with the first that answers, in the order: configuration (by turns, see
/// [`servers::in_turn`]), kubeconfig or service account, what the API last named.
///
/// The first is for those who try again by themselves: kube's own retries of 429, 503 and 504 wait up to minutes without
/// a word, long after the server is back. The second has them, for requests under a deadline of seconds.
pub(crate) async fn clients(
    kubeconfig: Option<&Path>,
    config: &Config,
    known: &Known,
    node: &NodeName,
) -> anyhow::Result<(Client, Client)> {
    let make = |config| {
        // What can be wrong here are the certificates, whose place the error does not know.
        servers::connect(config).with_context(|| match kubeconfig {
            Some(path) => format!(
                "kubeconfig {}: no client can be made of it; see certificate-authority, client-certificate and client-key",
                path.display()
            ),
            None => "service account: no client can be made of its ca.crt and token".to_owned(),
        })
    };
    let both = |chosen: &kube::Config| {
        let mut prompt = chosen.clone();
        prompt.default_retry = false;
        anyhow::Ok((make(prompt)?, make(chosen.clone())?))
    };
    let base = match kubeconfig {
        Some(path) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(path)
                .with_context(|| format!("kubeconfig {} (--kubeconfig)", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
                .await
                .with_context(|| format!("kubeconfig {}", path.display()))?
        }
        None => kube::Config::incluster()
            .context("no --kubeconfig, and not in a pod with a service account (KUBERNETES_SERVICE_HOST and its token)")?,
    };
    if base.root_cert.as_ref().is_some_and(Vec::is_empty) {
        // Nothing would be trusted, and every request fail for a reason that names no file.
        let place = kubeconfig.map_or_else(
            || "service account: ca.crt".to_owned(),
            |path| format!("kubeconfig {}: certificate-authority", path.display()),
        );
        bail!("{place} holds no certificate; wanted PEM of the cluster's CA");
    }
    let mut candidates = vec![base.clone()];
    for (place, server) in servers::in_turn(node, &config.api_servers).iter().enumerate() {
        let url = format!("https://{server}");
        let mut candidate = base.clone();
        candidate.cluster_url =
            url.parse().with_context(|| format!("configuration: apiServers: {server:?} is not host:port"))?;
        candidates.insert(place, candidate);
    }
    for server in known.servers() {
        let mut candidate = base.clone();
        candidate.cluster_url = format!("https://{server}").parse()?;
        let there = candidates.iter().any(|other| other.cluster_url == candidate.cluster_url);
        if !there {
            candidates.push(candidate);
        }
    }
    if let [only] = &candidates[..] {
        return both(only);
    }
    // Who does not answer is left for the next.
    candidates.iter_mut().for_each(|candidate| candidate.connect_timeout = Some(SERVER_TIMEOUT));
    loop {
        for (place, candidate) in candidates.iter().enumerate() {
            let (prompt, _) = both(candidate)?;
            match tokio::time::timeout(SERVER_TIMEOUT, prompt.apiserver_version()).await {
                Ok(Ok(_)) => {
                    candidates.rotate_left(place);
                    let (mut prompt, mut patient) = (Vec::new(), Vec::new());
                    for candidate in &candidates {
                        let (one, other) = both(candidate)?;
                        prompt.push((candidate.cluster_url.to_string(), one));
                        patient.push((candidate.cluster_url.to_string(), other));
                    }
                    return servers::client(prompt)
                        .zip(servers::patient_client(patient))
                        .context("no API server");
                }
                Ok(Err(error)) => {
                    tracing::warn!(url = %candidate.cluster_url, err = %error, "API server does not answer");
                }
                Err(_) => tracing::warn!(url = %candidate.cluster_url, "API server does not answer in 3 s"),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Both keys of this node. New ones get epochs above those that its annotation bears: a node whose disk was wiped must
/// not seem to go back.
async fn keys(state_dir: &Path, client: &Client, node: &NodeName) -> anyhow::Result<LoadedStore> {
    let directory = state_dir.join("keys");
    let store = Store::open(&directory)?;
    let complete = ["slot0.key", "slot1.key"].iter().all(|file| directory.join(file).exists());
    let store = if complete { store } else { store.above(announced_epoch(client, node).await) };
    Ok(tokio::task::spawn_blocking(move || store.load_or_create_all()).await??)
}

/// The pre-shared keys of this node.
fn psks(config: &Config, node: &NodeName, courier: Courier) -> anyhow::Result<Psks> {
    let us = NodeId { node: node.clone(), cluster: config.cluster_name.clone() };
    let store = PskStore::open(&config.state_dir.join("psk"), us.clone())?;
    Psks::load(us, config.post_quantum, store, courier)
}

/// The greatest epoch in our annotation. Waits for the API: without it a new node has nobody to talk to anyway.
async fn announced_epoch(client: &Client, node: &NodeName) -> Epoch {
    let api = crate::watch::nodes_api(client.clone());
    loop {
        match publish::within(api.get_opt(node.as_str())).await {
            Ok(found) => {
                let facts = found.as_ref().and_then(facts::node).map(|(_, facts)| facts);
                let announced = facts.as_ref().and_then(|facts| facts.announced());
                let epochs = announced.into_iter().flat_map(|a| &a.slots).map(|slot| slot.epoch);
                return epochs.max().unwrap_or(Epoch(0));
            }
            Err(error) => {
                tracing::warn!(err = %error, "Waiting for the API server before making keys");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn implementation(engine: Engine) -> anyhow::Result<Implementation> {
    match engine {
        Engine::Kernel => Ok(Implementation::Kernel),
        Engine::Userspace => Ok(Implementation::Userspace),
        // A running mesh-tunnel holds the devices and carries traffic: that is not taken away under it.
        Engine::Auto if tunnel_answers() => Ok(Implementation::Userspace),
        Engine::Auto => {
            let found = tokio::task::spawn_blocking(|| Host::default().kernel_wireguard()).await?;
            Ok(if found? { Implementation::Kernel } else { Implementation::Userspace })
        }
    }
}

/// Does a `mesh-tunnel` serve the first slot?
fn tunnel_answers() -> bool {
    let socket = format!("/var/run/wireguard/{}.sock", Slot::Zero.device());
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// What files and kernel say of attachments and addresses.
async fn table(directory: &Directory, kernel: &Kernel, node: &NodeName) -> anyhow::Result<Table> {
    let reader = directory.clone();
    let loaded = tokio::task::spawn_blocking(move || reader.load()).await??;
    let mut lost: BTreeMap<String, String> = BTreeMap::new();
    for (path, reason) in &loaded.unreadable {
        let veth = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        lost.insert(veth, format!("{}: {reason}", path.display()));
    }
    let state = kernel.observe().await?;
    // A file is written before its link is made and goes after it: a link without one means that the directory was
    // lost or is another one than before. The pods on such links run.
    for veth in state.links.keys().filter(|name| cni::is_pod_veth(name)) {
        if !loaded.attachments.contains_key(veth) {
            lost.entry(veth.clone()).or_insert_with(|| "there is no file for its link".to_owned());
        }
    }
    // The pools come with the first plan; what is taken is known already.
    let mut table = Table::new(Ipam::new(node.clone(), &[]), loaded, cni::now());
    for (veth, reason) in lost {
        let by = |target: &Target| matches!(target, Target::Device { device, .. } if *device == veth);
        let ips: Vec<_> =
            state.routes.iter().filter(|r| by(&r.target)).map(|route| route.prefix.addr()).collect();
        tracing::error!(
            veth, reason, addresses = ?ips,
            "Could not read an attachment; its addresses are taken from the routes. Recreate its pod"
        );
        table.recover(&veth, ips);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_the_current_contexts_api_server_is_found() {
        let of = |current: &str, server: &str| {
            let text = format!(
                "{{current-context: {current}, contexts: [{{name: a, context: {{cluster: ca}}}}, {{name: b, context: {{cluster: cb}}}}], \
                 clusters: [{{name: cb, cluster: {{server: '{server}'}}}}, {{name: ca, cluster: {{server: 'https://x:1'}}}}]}}"
            );
            port_of(&kube::config::Kubeconfig::from_yaml(&text).unwrap())
        };
        assert_eq!(of("b", "https://192.0.2.1:16443"), Some(16443));
        assert_eq!(of("b", "https://[2001:db8::1]:8443/path"), Some(8443));
        assert_eq!(of("a", "https://192.0.2.1:16443"), Some(1));
        assert_eq!(of("b", "https://api.example"), None);
        assert_eq!(of("b", "https://[2001:db8::1]/path:1"), None);
        assert_eq!(of("b", "no url at all"), None);
        assert_eq!(of("c", "https://192.0.2.1:16443"), None);
        assert_eq!(api_port(Path::new("/nowhere/at/all")), None);
    }
}
