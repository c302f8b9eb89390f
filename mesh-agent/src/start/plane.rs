//! Opens the data path, as soon as the kernel lets us, and starts what lives on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datapath::LinkKind;
use futures::future::BoxFuture;
use ipnet::IpNet;
use mesh_core::clusters::{ClusterName, Reach};
use mesh_core::name::NodeName;
use mesh_core::policy::compile::AskedClusters;
use tokio::sync::{mpsc, watch};

use crate::attachments::Table;
use crate::cni;
use crate::config::{Config, DataPath};
use crate::flows::Board;
use crate::flows::poll::Poll;
use crate::hold::Hold;
use crate::kernel::Kernel;
use crate::metrics::Metrics;
use crate::names::Register;
use crate::plane::{self, Plane, PlaneState};
use crate::podlink::{self, PodLink};
use crate::policy::Attached;
use crate::policy::engine::{Engine, Parts};
use crate::policy::view::View;
use crate::status::Findings;
use crate::supervise;
use crate::watch::mail::Mailbox;

/// Between two tries to open it.
const AGAIN: Duration = Duration::from_secs(10);
/// How often conntrack's dead entries are taken away.
const EXPIRE: Duration = Duration::from_secs(5);
/// How often links are looked at without an event.
const LOOK: Duration = Duration::from_secs(10);
/// After a look, so that a hundred events are not a hundred looks.
const REST: Duration = Duration::from_millis(20);

/// What the data path's tasks share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    /// Which pods of joined clusters policy asks for.
    pub(super) asks: watch::Sender<AskedClusters>,
    /// How far joined clusters reached when this node was last heard of.
    pub(super) reach: Arc<BTreeMap<ClusterName, Reach>>,
    /// What is guarded from the start on.
    pub(super) guarded: Vec<IpNet>,
    pub(super) node: NodeName,
    pub(super) kernel: Kernel,
    pub(super) table: Arc<Mutex<Table>>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) register: Arc<Register>,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Metrics,
}

/// The first try, before anything that carries: the guard is on every link that there is.
pub(super) async fn open(
    config: &Config,
    guarded: &[IpNet],
    kernel: &Kernel,
    register: &Arc<Register>,
) -> PlaneState {
    if config.data_path == DataPath::Off {
        return PlaneState::Off;
    }
    if !config.mounts_bpffs
        && let Err(why) = crate::container::bpffs_is_mounted(&config.bpf_pin_dir)
    {
        tracing::error!(err = why, "There is no data path");
        return PlaneState::Failed(why);
    }
    let (pins, guarded) = (config.bpf_pin_dir.clone(), guarded.to_vec());
    let opened = tokio::task::spawn_blocking(move || Plane::open(&pins, &guarded)).await;
    let opened = opened.map_err(|error| error.to_string()).and_then(|o| o.map_err(|error| error.to_string()));
    let plane = match opened {
        Ok(plane) => plane,
        Err(why) => {
            tracing::error!(err = why, "There is no data path");
            return PlaneState::Failed(why);
        }
    };
    match plane::look(&plane, kernel, register).await {
        Ok(findings) => {
            for (code, text) in findings {
                tracing::error!(code, "{text}");
            }
        }
        Err(error) => tracing::error!(err = %error, "Could not put the guard onto links"),
    }
    PlaneState::Open(plane)
}

/// Opens it if it is not yet, and starts what lives on it. Runs for as long as that does.
pub(super) async fn run(
    shared: Shared,
    state: watch::Sender<PlaneState>,
    links: mpsc::Receiver<()>,
    lookup: mpsc::Sender<std::net::IpAddr>,
    findings: watch::Sender<Arc<Findings>>,
) -> anyhow::Result<()> {
    let plane = loop {
        let now = state.borrow().clone();
        match now {
            PlaneState::Off => std::future::pending().await,
            PlaneState::Open(plane) => break plane,
            PlaneState::Failed(_) => {
                tokio::time::sleep(AGAIN).await;
                let opened = open(&shared.config, &shared.guarded, &shared.kernel, &shared.register).await;
                state.send_replace(opened);
            }
        }
    };
    let policy = engine(&shared, &plane, findings).await?;
    let poll = Poll {
        node: shared.node.to_string(),
        register: Arc::clone(&shared.register),
        board: Arc::clone(&shared.board),
        lookup: lookup.clone(),
        metrics: shared.metrics.clone(),
    };
    let reader = plane.datapath().flow_reader()?;
    let flows = supervise::thread("flows", move || poll.run(reader))?;
    // Lives as long as this task.
    let _hold = hold(&shared, &plane, lookup);
    let expiring = expire(plane.clone(), shared.metrics.clone());
    tokio::select! {
        () = expiring => {}
        () = keep_links(&shared, &plane, links) => {}
        // Maps would keep what was in force for ever, and pods be connected that policy never hears of.
        why = policy => return Err(why),
        why = flows => return Err(why),
    }
    Ok(())
}

/// Takes over what a former agent left, and starts the thread that decides policy. What it returns resolves when that has ended.
async fn engine(
    shared: &Shared,
    plane: &Plane,
    findings: watch::Sender<Arc<Findings>>,
) -> anyhow::Result<BoxFuture<'static, anyhow::Error>> {
    let known = attachments(shared).await?;
    let (pods, worker) = (known.clone(), plane.clone());
    let missing = tokio::task::spawn_blocking(move || worker.reconcile(&pods)).await??;
    let parts = Parts {
        asks: shared.asks.clone(),
        mailbox: Arc::clone(&shared.mailbox),
        plane: plane.clone(),
        view: View::new(
            shared.node.clone(),
            shared.config.cluster_name.clone(),
            shared.config.settings.pod_cidrs.clone(),
            Arc::clone(&shared.reach),
        ),
        register: Arc::clone(&shared.register),
        findings,
        metrics: shared.metrics.clone(),
        known,
        missing,
    };
    let engine = tokio::task::spawn_blocking(move || Engine::new(parts)).await??;
    Ok(supervise::thread("policy", move || engine.run())?)
}

/// The pods that are attached, as the data path has to know them.
async fn attachments(shared: &Shared) -> anyhow::Result<Vec<Attached>> {
    let links = shared.kernel.links().await?;
    // The newest last: of two links of one pod that is the one that counts.
    let all: Vec<_> = {
        let table = shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        let newest_first = table.newest_first().into_iter();
        newest_first.rev().map(|(veth, attachment)| (veth.clone(), attachment.clone())).collect()
    };
    let mut attached = Vec::new();
    for (veth, attachment) in all {
        let Some(link) = shared.kernel.find_in(&links, &veth).await? else { continue };
        let asked = attachment.mac.as_deref().and_then(|text| cni::parse_mac(text).ok());
        let pod = PodLink {
            host_mac: link.mac.try_into().unwrap_or_else(|_| podlink::mac(&veth, "host")),
            pod_mac: asked.unwrap_or_else(|| podlink::mac(&veth, "pod")),
            ifname: attachment.id.ifname.clone(),
            mtu: link.mtu,
            ips: Vec::new(),
            home: Default::default(),
            veth,
        };
        attached.push(cni::attached(&pod, &attachment, None, link.index));
    }
    Ok(attached)
}

/// The device that keeps first packets of peers nobody has told us of.
fn hold(shared: &Shared, plane: &Plane, lookup: mpsc::Sender<std::net::IpAddr>) -> Option<Hold> {
    let (register, metrics) = (Arc::clone(&shared.register), shared.metrics.clone());
    let known = move |address| {
        let known = register.read().is_known(address);
        if !known {
            let _full = lookup.try_send(address);
        }
        known
    };
    let begin = || -> anyhow::Result<Hold> {
        let hold = Hold::start(known, move |tally| metrics.held(tally))?;
        plane.datapath().attach(LinkKind::Hold, hold.index())?;
        plane.datapath().set_hold(Some(hold.index()))?;
        Ok(hold)
    };
    match begin() {
        Ok(hold) => Some(hold),
        Err(error) => {
            tracing::warn!(err = %error, "First packets of unknown peers are dropped instead of held");
            if let Err(error) = plane.datapath().set_hold(None) {
                tracing::warn!(err = %error, "Could not say that nothing is held");
            }
            None
        }
    }
}

async fn expire(plane: Plane, metrics: Metrics) {
    let mut tick = tokio::time::interval(EXPIRE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (plane, metrics) = (plane.clone(), metrics.clone());
        let work = move || match plane.datapath().expire_flows(datapath::now_ns()) {
            Ok(usage) => metrics.conntrack(&usage),
            Err(error) => tracing::warn!(err = %error, "Could not look through conntrack"),
        };
        drop(tokio::task::spawn_blocking(work).await);
    }
}

/// Puts the guard onto links when they come.
async fn keep_links(shared: &Shared, plane: &Plane, mut nudges: mpsc::Receiver<()>) {
    loop {
        if let Err(error) = plane::look(plane, &shared.kernel, &shared.register).await {
            tracing::warn!(err = %error, "Could not look at links");
        }
        tokio::time::sleep(REST).await;
        if let Ok(None) = tokio::time::timeout(LOOK, nudges.recv()).await {
            return;
        }
        while nudges.try_recv().is_ok() {}
    }
}
