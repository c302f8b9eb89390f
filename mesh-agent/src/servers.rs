//! API servers: which ones there are, and one client that goes on by the next of them when one does not answer.
//!
//! Those of the configuration come first, then that of the kubeconfig or the service account, then those that the API itself
//! last named (the endpoints of the Service `default/kubernetes`), which are kept in a file: a node that starts while the
//! configured ones are gone, and before anything serves Services, finds the others (design D12).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tower_service::Service;

use crate::kept::Kept;

mod connect;
mod limit;

pub use connect::connect;
#[cfg(test)]
pub(crate) use connect::connect_within;

/// Name of the file in the state directory.
const FILE: &str = "api-servers.json";
/// Most servers that are remembered: control planes have three or five.
const MOST: usize = 16;

/// Servers that the API last named, in a file.
#[derive(Debug)]
pub struct Known(Kept<BTreeSet<SocketAddr>>);

impl Known {
    /// Reads the file.
    pub fn load(state_dir: &Path) -> Self {
        Self(Kept::load(state_dir.join(FILE), "which API servers there are"))
    }

    /// The servers.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.0.value.iter().copied()
    }

    /// Keeps others. An empty set says nothing: somebody has told it.
    fn learn(&mut self, servers: BTreeSet<SocketAddr>) {
        if !servers.is_empty() && servers != self.0.value {
            self.0.value = servers;
            self.0.touch(true);
        }
    }
}

/// The servers that slices of a Service name: ready endpoints by the port `port`, or by the only one, at most 16.
pub fn servers_in<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &str,
) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports: Vec<_> = slice.ports.iter().flatten().collect();
        let named = ports.iter().find(|one| one.name.as_deref() == Some(port));
        let only = ports.first().filter(|_| ports.len() == 1);
        let Some(port) = named.or(only).and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        let ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        };
        let addresses = slice.endpoints.iter().filter(ready).flat_map(|endpoint| &endpoint.addresses);
        found.extend(addresses.filter_map(|text| Some(SocketAddr::new(text.parse().ok()?, port))));
    }
    found.into_iter().filter(|server| server.port() != 0).take(MOST).collect()
}

/// Keeps the file as the API tells, until the sender is gone.
pub async fn keep(mut known: Known, mut told: watch::Receiver<BTreeSet<SocketAddr>>) {
    loop {
        known.learn(told.borrow_and_update().clone());
        // What could not be written is tried again with the next news; nothing rests on it before the next start.
        known.0.save().await;
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// One client of several servers, the first of which is asked until it cannot be reached.
///
/// # Errors
/// There is none.
pub fn client(servers: Vec<(String, Client)>) -> Option<Client> {
    let namespace = servers.first()?.1.default_namespace().to_owned();
    if let [(_, only)] = servers.as_slice() {
        return Some(only.clone());
    }
    Some(Client::new(Choice { servers: servers.into(), at: Arc::default() }, namespace))
}

/// Sends to one of several servers.
#[derive(Clone)]
struct Choice {
    servers: Arc<[(String, Client)]>,
    at: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for Choice {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (servers, at) = (Arc::clone(&self.servers), Arc::clone(&self.at));
        Box::pin(async move {
            let place = at.load(Ordering::Relaxed);
            let (name, client) = &servers[place % servers.len()];
            let answer = client.send(request).await;
            if let Err(error) = &answer {
                // Whoever asked tries again by himself, and is sent to the next one. Of many that failed at once one moves on.
                let next = (place + 1) % servers.len();
                if at.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    let next = &servers[next].0;
                    tracing::warn!(server = name, next, err = %error, "API server does not answer; going on by the next");
                }
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests;
