//! Whose endpoints still count (KEP-1645, "Endpoint TTL"): a cluster that is silent for longer than its lease loses them,
//! and gets them back all at once.
//!
//! ```text
//!                 heard (in time), complete
//!                     ┌───────────┐
//!          complete   │           ▼      lease over
//!  unknown ──────────►└──── heard ──────────────────► silent ──┐ heard: nothing
//!     ▲                      ▲                         │  ▲    │
//!     │ forget               └──────── complete ───────┘  └────┘
//!     └──── from anywhere
//! ```
//!
//! What was known of a silent cluster may be old: one byte of it does not make that true again, only the end of a snapshot
//! or of a resumption ([`Leases::complete`]). So what comes back is what there is, and nothing flaps while a line is bad.

use std::collections::{BTreeMap, BTreeSet};

use crate::ipam::Millis;
use crate::psk::ClusterName;

/// Leases of other clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leases {
    /// Milliseconds.
    length: u64,
    /// When each is over.
    until: BTreeMap<ClusterName, Millis>,
}

impl Leases {
    /// Nobody is known. `length` in milliseconds: how long a cluster may be silent. Whoever serves must say something in a
    /// third of it, so that one lost message costs nothing.
    pub const fn new(length: u64) -> Self {
        Self { length, until: BTreeMap::new() }
    }

    fn end(&self, now: Millis) -> Millis {
        Millis(now.0.saturating_add(self.length))
    }

    /// Something came from the cluster. Prolongs a lease that is not over, and does nothing else. Time never goes back: an
    /// earlier `now` changes nothing.
    pub fn heard(&mut self, cluster: &ClusterName, now: Millis) {
        let end = self.end(now);
        if let Some(until) = self.until.get_mut(cluster)
            && now < *until
        {
            *until = end.max(*until);
        }
    }

    /// All of the cluster's state is known as it is now: the end of a snapshot, or a resumed stream that has caught up.
    pub fn complete(&mut self, cluster: &ClusterName, now: Millis) {
        let end = self.end(now);
        let until = self.until.entry(cluster.clone()).or_insert(end);
        *until = end.max(*until);
    }

    /// The cluster is no peer any more.
    pub fn forget(&mut self, cluster: &ClusterName) {
        self.until.remove(cluster);
    }

    /// Which of these clusters have no lease: silent for too long, or never complete. For [`Own::silent`](super::Own::silent);
    /// leave the own cluster out.
    pub fn silent<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a ClusterName>,
        now: Millis,
    ) -> BTreeSet<ClusterName> {
        let over = |cluster: &&ClusterName| self.until.get(*cluster).is_none_or(|until| *until <= now);
        peers.into_iter().filter(over).cloned().collect()
    }

    /// When the next lease is over, if nothing is heard.
    pub fn next_deadline(&self, now: Millis) -> Option<Millis> {
        self.until.values().filter(|until| **until > now).min().copied()
    }
}

#[cfg(test)]
mod tests;
