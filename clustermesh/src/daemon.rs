//! The daemon: serves what its cluster tells, mirrors the clusters that are joined, and tells its own agents of all.
//!
//! ```text
//!  own API server ──► own ──► publish ─┐                         ┌─► server ─► peers (own cluster), agents (all)
//!                     services ────────┴─► hub (stores, feeds) ──┤
//!  other clusters ──► follow ─► judge ─────►                     └─► subscribe ─► who imports services
//! ```
//!
//! Of several replicas one leads ([`lease`]) and does all of it; the others wait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use ipnet::IpNet;
use kube::Client;
use mesh_core::clusters::{Borders, ClusterName};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub mod authority;
pub mod config;
mod door;
pub mod feed;
pub mod front;
pub mod http;
pub mod hub;
pub mod judge;
pub mod lease;
pub mod metrics;
pub mod own;
pub mod peers;
pub mod publish;
pub mod server;
pub mod services;
pub mod store;
pub mod tls;
pub mod tokens;
pub mod watch_api;

use lease::Term;
use metrics::Metrics;
use server::Serving;
use tls::{Credentials, Trust};
use tokens::Tokens;

pub use hub::Hub;
pub use publish::Publish;

/// Pause before something is tried again that keeps the leader from serving.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a leader that ends waits for its streams.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a daemon needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this cluster.
    pub cluster: ClusterName,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Where it serves. With port 0 the kernel chooses ([`Standing::serves`] says what).
    pub listen: SocketAddr,
    /// Who this replica is, in the Lease.
    pub identity: String,
    /// Users whose tokens are let in.
    pub agents: Vec<String>,
}

/// Who does something while this replica leads: a controller, a server of names.
#[derive(Clone)]
pub struct Duty {
    /// For logs.
    pub name: &'static str,
    /// It publishes a part of what the own cluster tells: nothing is served before it has called
    /// [`Publish::complete`] with its name.
    pub publishes: bool,
    /// Does it. Dropped when this replica leads no longer; begun anew when it ends by itself.
    pub run: Arc<dyn Fn(Leading) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl std::fmt::Debug for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Duty").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a duty gets.
#[derive(Clone)]
pub struct Leading {
    /// Name of this cluster.
    pub cluster: ClusterName,
    /// The own API server.
    pub client: Client,
    /// What is known of all clusters; [`Hub::subscribe`] tells of the joined ones.
    pub hub: Hub,
    /// How far each joined cluster reaches; none: that is not known yet.
    pub borders: watch::Receiver<Option<Arc<Borders>>>,
    /// Takes what the own cluster tells.
    pub publish: Publish,
    /// How this replica stands: [`Standing::serves`] is what `serving` means to who exports services.
    pub standing: watch::Receiver<Standing>,
    /// Counts.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Leading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leading").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// How this replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// In which incarnation it leads.
    pub leads: Option<u64>,
    /// Where it serves.
    pub serves: Option<SocketAddr>,
    /// What keeps it from serving.
    pub obstacle: Option<String>,
    /// It leads, and another may ([`lease::Term::cut_off`]): it goes on, and is not ready.
    pub cut_off: bool,
}

/// Runs until `stop` is true: then streams end, the Lease is given back, and this returns.
pub async fn run(
    settings: Settings,
    client: Client,
    duties: Vec<Duty>,
    metrics: Metrics,
    standing: watch::Sender<Standing>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (terms_tx, held) = watch::channel(Term::default());
        let (end_tx, end) = watch::channel(false);
        let election = lease::run(client.clone(), settings.identity.clone(), terms_tx, end);
        let election = tokio::spawn(election);
        let parts = (&settings, &client, duties.as_slice(), &metrics, &standing);
        let stopped = terms(parts, held, &mut stop).await;
        metrics.leads(false);
        standing.send_replace(Standing::default());
        end_tx.send_replace(true);
        drop(election.await);
        if stopped {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

type Parts<'a> = (&'a Settings, &'a Client, &'a [Duty], &'a Metrics, &'a watch::Sender<Standing>);

/// One time of leading after the other. False: it ended by itself, and needs another incarnation.
async fn terms(parts: Parts<'_>, mut held: watch::Receiver<Term>, stop: &mut watch::Receiver<bool>) -> bool {
    let (_, _, _, metrics, standing) = parts;
    loop {
        let Term { incarnation, cut_off } = *held.borrow_and_update();
        metrics.leads(incarnation.is_some());
        standing.send_replace(Standing { leads: incarnation, cut_off, ..Standing::default() });
        let Some(incarnation) = incarnation else {
            tokio::select! {
                changed = held.changed() => if changed.is_err() { return false },
                _ = stop.wait_for(|stop| *stop) => return true,
            }
            continue;
        };
        let (end_tx, end) = watch::channel(false);
        let mut leading = std::pin::pin!(lead(parts, incarnation, end));
        let stopped = loop {
            tokio::select! {
                () = &mut leading => return false,
                changed = held.changed() => {
                    let now = held.borrow_and_update().to_owned();
                    if changed.is_err() || now.incarnation != Some(incarnation) {
                        break false;
                    }
                    standing.send_if_modified(|standing| {
                        std::mem::replace(&mut standing.cut_off, now.cut_off) != now.cut_off
                    });
                }
                _ = stop.wait_for(|stop| *stop) => break true,
            }
        };
        end_tx.send_replace(true);
        // In order: streams end with a word, then everything else.
        drop(tokio::time::timeout(FAREWELL, leading).await);
        if stopped {
            return true;
        }
    }
}

/// One time of leading. Returns when it has ended, which `end` asks for.
async fn lead(parts: Parts<'_>, incarnation: u64, end: watch::Receiver<bool>) {
    let (settings, client, duties, metrics, standing) = parts;
    let obstacle = |text: String| {
        tracing::warn!(err = text, "Cannot serve yet");
        standing.send_modify(|standing| standing.obstacle = Some(text));
    };
    let mut asked = end.clone();
    let ready = async {
        let authority = loop {
            match authority::establish(client, &settings.cluster).await {
                Ok(authority) => break authority,
                Err(error) => obstacle(error.to_string()),
            }
            tokio::time::sleep(AGAIN).await;
        };
        loop {
            match authority.issue(SystemTime::now()) {
                Ok(leaf) => break (authority, leaf),
                Err(error) => obstacle(error.to_string()),
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let (authority, leaf) = tokio::select! {
        ready = ready => ready,
        _ = asked.wait_for(|end| *end) => return,
    };
    let authority = Arc::new(authority);
    let credentials = Arc::new(Credentials::new(Arc::clone(&leaf.key)));
    let trust = Arc::new(Trust::default());
    let tls = match tls::server_config(Arc::clone(&trust), Arc::clone(&credentials)) {
        Ok(tls) => tls,
        Err(error) => {
            obstacle(format!("TLS cannot be set up: {error}"));
            drop(asked.wait_for(|end| *end).await);
            return;
        }
    };
    let hub = Hub::new(settings.cluster.clone());
    let awaited = duties.iter().filter(|duty| duty.publishes).map(|duty| duty.name);
    let publish = Publish::new(
        hub.clone(),
        metrics.clone(),
        Arc::clone(&authority),
        incarnation,
        awaited.chain([own::PART]),
    );
    let (own_tx, own) = watch::channel(None);
    // All of these end with this set.
    let mut tasks = JoinSet::new();
    tasks.spawn(authority::renew(authority, Arc::clone(&credentials), leaf, metrics.clone()));
    tasks.spawn(hub.clone().beat(standing.subscribe()));
    let (cluster, guarded) = (settings.cluster.clone(), settings.pod_cidrs.clone());
    tasks.spawn(own::run(client.clone(), cluster, guarded, publish.clone(), own_tx, metrics.clone()));
    let (borders_tx, borders) = watch::channel(None);
    let parts = peers::Parts {
        client: client.clone(),
        borders: borders_tx,
        credentials,
        trust: Arc::clone(&trust),
        hub: hub.clone(),
        metrics: metrics.clone(),
    };
    tasks.spawn(peers::run(parts, own));
    let leading = Leading {
        cluster: settings.cluster.clone(),
        client: client.clone(),
        hub: hub.clone(),
        borders,
        publish,
        standing: standing.subscribe(),
        metrics: metrics.clone(),
    };
    for duty in duties.iter().cloned() {
        let leading = leading.clone();
        tasks.spawn(async move {
            loop {
                (duty.run)(leading.clone()).await;
                tracing::warn!(duty = duty.name, "A duty ended; it is begun anew");
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    // Who comes before there is anything to tell would wait here instead of at another replica.
    let listener = async {
        let mut changes = hub.changes();
        while hub.read(|clusters| clusters.store(clusters.own()).is_none()) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        loop {
            match TcpListener::bind(settings.listen).await {
                Ok(listener) => break listener,
                Err(error) => {
                    let listen = settings.listen;
                    obstacle(format!(
                        "listenAddress {listen}: {error}; another process listens there? Stop it"
                    ));
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let broken = |ended| tracing::error!(?ended, "A task of the leader ended; it leads anew");
    let listener = tokio::select! {
        listener = listener => listener,
        _ = asked.wait_for(|end| *end) => return,
        ended = tasks.join_next() => return broken(ended),
    };
    let serves = listener.local_addr().ok();
    standing.send_modify(|standing| (standing.serves, standing.obstacle) = (serves, None));
    tracing::info!(cluster = %settings.cluster, address = ?serves, incarnation, "Serving");
    let tokens = Tokens::new(client.clone(), settings.agents.iter().cloned());
    let (recheck, stuck, metrics) = (server::RECHECK, server::STUCK, metrics.clone());
    let serving = Serving { hub, trust, tokens, tls, recheck, stuck, metrics };
    tokio::select! {
        () = server::serve(listener, serving, end) => {}
        ended = tasks.join_next() => broken(ended),
    }
}
