//! Follows this cluster's `clustermesh`: finds it, knows it by this cluster's own authority, and shows the agent's token.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clustermesh::Told;
use clustermesh::follow::{Event, FollowError, Target};
use clustermesh::quiet::Quiet;
use clustermesh::session::{Scope, Session};
use clustermesh::tls::{Roots, agent_config};
use mesh_core::clusters::{ClusterName, Host, ServerAddress};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Peers;
use crate::metrics::Metrics;

/// How often the file with the authority's certificates is looked at: a mounted ConfigMap follows its object within a minute.
const LOOK: Duration = Duration::from_secs(10);
/// Most bytes of that file; a trust bundle of a ClusterPeer has as many.
const MAX_CA: u64 = 64 * 1024;

/// How `clustermesh` is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where, best first; empty: the ready endpoints of its Service.
    pub addresses: Vec<ServerAddress>,
    /// PEM certificates of this cluster's authority.
    pub ca_file: PathBuf,
    /// The agent's token for it.
    pub token_file: PathBuf,
}

/// Reads the authority's certificates.
fn roots(path: &Path) -> Result<Roots, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_CA {
        return Err(format!("is {length} bytes long, at most {MAX_CA} are read"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Roots::parse(&text).map_err(|error| error.to_string())
}

/// Addresses of its Service's ready endpoints, in order.
fn of_service(found: &BTreeSet<std::net::SocketAddr>) -> Vec<ServerAddress> {
    let one = |at: &std::net::SocketAddr| ServerAddress { host: Host::Address(at.ip()), port: at.port() };
    found.iter().map(one).collect()
}

/// Follows from the first ClusterPeer on, until nobody listens.
pub async fn run(
    cluster: ClusterName,
    settings: Settings,
    mut peers: watch::Receiver<Peers>,
    mut service: watch::Receiver<BTreeSet<std::net::SocketAddr>>,
    tell: mpsc::Sender<Told>,
    metrics: Metrics,
) {
    // A cluster that is joined to nobody has no clustermesh.
    if peers.wait_for(|peers| !peers.peers.is_empty()).await.is_err() {
        return;
    }
    let mut target: Option<watch::Sender<Target>> = None;
    let mut known: Option<Roots> = None;
    let mut complained = false;
    let mut last = Vec::new();
    let mut following = tokio::task::JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            changed = service.changed() => if changed.is_err() { return },
            _ = following.join_next(), if !following.is_empty() => return,
        }
        let addresses = if settings.addresses.is_empty() {
            // The slices may be empty for a moment between two leaders; the one that was there may tell on.
            let ready = of_service(&service.borrow_and_update());
            if !ready.is_empty() {
                last = ready;
            }
            last.clone()
        } else {
            settings.addresses.clone()
        };
        let path = settings.ca_file.clone();
        let read = tokio::task::spawn_blocking(move || roots(&path)).await;
        let found = match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(found) => found,
            Err(reason) => {
                metrics.clustermesh_ended("CaUnreadable");
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        path = %settings.ca_file.display(), reason,
                        "The certificates of this cluster's clustermesh cannot be read, so nobody tells of joined clusters; \
                         mount the ConfigMap hawser-clustermesh-trust there, or set clustermesh.caFile"
                    );
                }
                continue;
            }
        };
        complained = false;
        let same = known.as_ref() == Some(&found);
        let present = target.as_ref().map(|target| target.borrow().clone());
        let tls = match present.as_ref().filter(|_| same) {
            Some(present) => Arc::clone(&present.tls),
            None => match agent_config(cluster.clone(), found.clone()) {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::error!(err = %error, "TLS towards clustermesh cannot be set up");
                    continue;
                }
            },
        };
        known = Some(found);
        let now = Target { addresses, tls, token: Some(settings.token_file.clone()), renewed: None };
        match &target {
            Some(target) => {
                target.send_if_modified(|present| {
                    let news = *present != now;
                    if news {
                        *present = now;
                    }
                    news
                });
            }
            None => {
                let (sender, receiver) = watch::channel(now);
                target = Some(sender);
                let session = Session::new(Scope::All);
                let events = events(metrics.clone());
                following.spawn(clustermesh::follow::follow(receiver, session, tell.clone(), events));
            }
        }
    }
}

fn events(metrics: Metrics) -> clustermesh::follow::Events {
    let (quiet, begun) = (Mutex::new(Quiet::default()), Instant::now());
    Arc::new(move |event| match event {
        Event::Connected { address } => {
            metrics.clustermesh_connected(true);
            tracing::info!(%address, "Following clustermesh");
        }
        // It goes on in a moment, or there will be another reason.
        Event::Ended { why: FollowError::Renewed, .. } => {}
        Event::Ended { why: why @ FollowError::Later { .. }, .. } => {
            metrics.clustermesh_ended(why.reason());
            tracing::warn!("{why}");
        }
        Event::Ended { address, why } => {
            metrics.clustermesh_connected(false);
            metrics.clustermesh_ended(why.reason());
            let address = address.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(address, err = %why, "clustermesh is not followed; what is known of joined clusters stays");
        }
        Event::Speaks | Event::Missing(_) => {}
        Event::LeftOut(what) => {
            metrics.clustermesh_left_out(what.reason());
            let mut quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept_back) = quiet.ask(begun.elapsed()) {
                tracing::warn!(kept_back, "{what}");
            }
        }
    })
}
