//! `clusterset.local` by DNS (RFC 1035; KEP-1645, `specification.md`): authoritative for that zone, REFUSED for all else.
//! [`mesh_core::mcs::names`] has the answers; hickory reads and writes messages.
//!
//! CoreDNS forwards to it: `clusterset.local { forward . ADDRESS }`. Over UDP an answer that does not fit says so (TC), with as
//! many records as do, and the client asks again over TCP. Before all clusters were heard, names of services with ClusterSetIPs are
//! answered and all others SERVFAIL: a client asks again, and nobody remembers for seconds that a service or an endpoint does not exist.

use std::sync::{PoisonError, RwLock};

use mesh_core::mcs::names::{Answer, RecordKind, Zone};
use mesh_core::mcs::{Decision, McsProblem};
use mesh_core::policy::model::ObjectName;

mod metrics;
pub mod respond;
mod serve;

pub use metrics::{Dropped, Metrics};
pub use serve::Server;

/// The names, as the controller writes and servers read them.
#[derive(Debug, Default)]
pub struct Names(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    zone: Zone,
    complete: bool,
}

impl Names {
    /// Knows nothing, and says so.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was decided of a service ([`Zone::set`]).
    pub fn set(&self, name: &ObjectName, decision: &Decision) -> Vec<McsProblem> {
        // A zone is whole between two calls, so whoever panicked elsewhere has not spoilt it.
        self.0.write().unwrap_or_else(PoisonError::into_inner).zone.set(name, decision)
    }

    /// Nothing is known any more: whoever decided has ended, and what is decided elsewhere is not heard here.
    pub fn forget(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Known::default();
    }

    /// All names are known, from now on.
    pub fn set_complete(&self) {
        if !self.is_complete() {
            self.0.write().unwrap_or_else(PoisonError::into_inner).complete = true;
        }
    }

    /// Are all names known?
    pub fn is_complete(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).complete
    }

    /// The answer to a question of class IN ([`Zone::answer`]). None: it is too early to say.
    pub fn answer(&self, labels: &[&[u8]], kind: RecordKind) -> Option<Answer> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (known.complete || known.zone.is_certain(labels)).then(|| known.zone.answer(labels, kind))
    }
}
