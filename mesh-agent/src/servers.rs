//! API servers: which ones there are, and one client that goes on by the next of them when one does not answer.
//!
//! Those of the configuration come first, then that of the kubeconfig or the service account, then those that the API itself
//! last named (the endpoints of the Service `default/kubernetes`), which are kept in a file: a node that starts while the
//! configured ones are gone, and before anything serves Services, finds the others (design D12).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::client::Body;
use mesh_core::name::NodeName;
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

/// Configured servers in the order in which this node asks them: the given one, but not all nodes begin at the same place.
pub fn in_turn(node: &NodeName, servers: &[String]) -> Vec<String> {
    let mut hasher = DefaultHasher::new();
    node.as_str().hash(&mut hasher);
    let count = u64::try_from(servers.len()).unwrap_or(u64::MAX).max(1);
    let first = usize::try_from(hasher.finish() % count).unwrap_or(0);
    servers.iter().cycle().skip(first).take(servers.len()).cloned().collect()
}

/// One client of several servers, the first of which is asked until it cannot be reached, or fails again and again.
///
/// # Errors
/// There is none.
pub fn client(servers: Vec<(String, Client)>) -> Option<Client> {
    client_of(servers, SILENCE, End::Failed)
}

/// The same of clients that try again by themselves where a server has too much to do: of their silence that may be the reason.
///
/// # Errors
/// There is none.
pub fn patient_client(servers: Vec<(String, Client)>) -> Option<Client> {
    client_of(servers, SILENCE, End::Busy)
}

/// The same, with another [`SILENCE`], and what it means.
fn client_of(servers: Vec<(String, Client)>, silence: Duration, means: End) -> Option<Client> {
    let namespace = servers.first()?.1.default_namespace().to_owned();
    if let [(_, only)] = servers.as_slice() {
        return Some(only.clone());
    }
    let choice = Choice { servers: servers.into(), course: Arc::default(), silence, means };
    Some(Client::new(choice, namespace))
}

/// A server that fails so often in a row is left.
const FAILURES: u32 = 3;
/// A request that was given up by whoever asked, and had no answer for so long, is a failure. The shortest deadline of any is 3 s.
const SILENCE: Duration = Duration::from_millis(2500);
/// After so long by others the first server is tried again, so that nodes do not all end with one when one after the other restarts.
const HOME: Duration = Duration::from_mins(10);

/// Sends to one of several servers.
#[derive(Clone)]
struct Choice {
    servers: Arc<[(String, Client)]>,
    course: Arc<Mutex<Course>>,
    silence: Duration,
    /// What silence means.
    means: End,
}

/// Who is asked.
#[derive(Debug, Default)]
struct Course {
    /// Servers that were left before; it goes round.
    left: usize,
    /// Failures of the present one since it last answered.
    failures: u32,
    /// Since when it is not the first one.
    away: Option<Instant>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    /// There is too much for the server to do, which it can say.
    Busy,
    /// The server says that it, or what is behind it, does not work; or nothing.
    Failed,
    Unreachable,
}

impl End {
    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            500 | 502 | 503 | 504 => Self::Failed,
            429 => Self::Busy,
            _ => Self::Answered,
        }
    }
}

impl Course {
    /// Of how many servers that were left the number says whom to ask now, of so many.
    fn turn(&mut self, servers: usize, now: Instant) -> usize {
        if self.away.is_some_and(|since| now.saturating_duration_since(since) >= HOME) {
            *self = Self { left: self.left.next_multiple_of(servers), ..Self::default() };
        }
        self.left
    }

    /// What became of a request that was sent when so many servers had been left. True: from now on the next one is asked.
    fn hear(&mut self, left: usize, end: End, now: Instant) -> bool {
        // It says nothing of the present server. So of many that failed at once one moves on.
        if left != self.left {
            return false;
        }
        self.failures = match end {
            End::Answered => 0,
            End::Busy => self.failures,
            End::Failed => self.failures + 1,
            End::Unreachable => FAILURES,
        };
        let leaves = self.failures >= FAILURES;
        if leaves {
            *self = Self { left: left.wrapping_add(1), failures: 0, away: self.away.or(Some(now)) };
        }
        leaves
    }
}

/// A request on its way.
struct Asked {
    choice: Choice,
    left: usize,
    since: Instant,
    heard: bool,
}

impl Asked {
    fn new(choice: Choice) -> Self {
        let since = Instant::now();
        let mut course = choice.course.lock().unwrap_or_else(PoisonError::into_inner);
        let left = course.turn(choice.servers.len(), since);
        drop(course);
        Self { choice, left, since, heard: false }
    }

    fn server(&self, after: usize) -> &(String, Client) {
        &self.choice.servers[self.left.wrapping_add(after) % self.choice.servers.len()]
    }

    fn hear(&mut self, end: End, what: &dyn Display) {
        self.heard = true;
        // Whoever asked tries again by himself, and is sent to the next one.
        if self.choice.course.lock().unwrap_or_else(PoisonError::into_inner).hear(
            self.left,
            end,
            Instant::now(),
        ) {
            let (server, next) = (&self.server(0).0, &self.server(1).0);
            let err = if end == End::Failed {
                format!("{FAILURES} failures, at last: {what}")
            } else {
                what.to_string()
            };
            tracing::warn!(server, next, err, "API server does not answer; going on by the next");
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.heard && self.since.elapsed() >= self.choice.silence {
            self.hear(self.choice.means, &"no answer until nobody waited for it any more");
        }
    }
}

impl Service<Request<Body>> for Choice {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let choice = self.clone();
        Box::pin(async move {
            let mut asked = Asked::new(choice);
            let answer = asked.server(0).1.send(request).await;
            match &answer {
                Ok(response) => asked.hear(End::of(response.status()), &response.status()),
                Err(error) => asked.hear(End::Unreachable, error),
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests;
