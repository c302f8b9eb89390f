//! Traffic with a recognisable payload, sent from inside a namespace, and answers that are checked.

mod echo;
mod ping;
mod stream;

use crate::error::LabError;
pub use echo::{EchoServer, tcp, udp};
pub use ping::ping;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
pub use stream::{Report, Stream, StreamOptions, Tracker, Transport};

/// What to send and how long to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The bytes to send, which the echo must repeat. At most 1400 for one datagram on any lab link.
    pub payload: Vec<u8>,
    /// Source address; the kernel's choice without.
    pub source: Option<IpAddr>,
    /// For one try.
    pub deadline: Duration,
    /// Tries before giving up. TCP makes one that may last as long as all, as the kernel retries by itself.
    pub tries: u32,
}

impl Canary {
    /// A payload from the kernel's choice of source address, three tries of a second each.
    #[must_use]
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), source: None, deadline: Duration::from_secs(1), tries: 3 }
    }

    /// Sets the source address.
    #[must_use]
    pub fn source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Sets the deadline of one try.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sets the number of tries.
    #[must_use]
    pub fn tries(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    fn local(&self, to: IpAddr) -> SocketAddr {
        SocketAddr::new(self.source.unwrap_or(unspecified(to)), 0)
    }

    fn failure(&self, probe: &'static str, to: impl ToString, what: impl ToString) -> LabError {
        let from = self.source.map_or("any address".to_owned(), |s| s.to_string());
        LabError::Probe { probe, from, to: to.to_string(), what: what.to_string() }
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// One try: what it saw instead of success, or that it saw nothing in time.
async fn within<T>(
    deadline: Duration,
    attempt: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::time::timeout(deadline, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {deadline:?}")))
}
