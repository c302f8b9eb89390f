//! Which joined clusters are there, by what comes over their lines. Pure.
//!
//! A line may be so full of what a cluster tells that its own word of life comes too late, so whatever it says counts; but not
//! for ever: a snapshot that never ends would keep alive what nobody has confirmed. So between two moments at which all of a
//! cluster's state was known one stream counts, and for [`SPEECH`] leases.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::clusters::ClusterName;
use mesh_core::ipam::Millis;
use mesh_core::mcs::Leases;

use crate::mcs::LEASE;

/// For how many leases a cluster may speak without its state being known as it is: five minutes, in which a line of a megabit
/// carries 37 MB, half a million pods.
pub(crate) const SPEECH: u64 = 10;

/// Of a cluster that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Its own word that its state is what is known.
    Bookmark,
    /// Its state is another one now. While changes fill a line, no other sign comes.
    Changed,
    /// Some of what it says came by the stream with this number, and more follows.
    Speaks(u64),
}

/// What is known of one cluster.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// When all of its state was known last.
    complete: Millis,
    /// The first stream by which it spoke since then.
    stream: Option<u64>,
}

/// Who is there.
#[derive(Debug)]
pub(crate) struct Presence {
    leases: Leases,
    known: BTreeMap<ClusterName, Known>,
}

impl Presence {
    /// Nobody yet.
    pub(crate) const fn new() -> Self {
        Self { leases: Leases::new(LEASE), known: BTreeMap::new() }
    }

    /// A sign of life. True: the cluster counts as being there. One that was silent for too long is there again only when all of
    /// its state is known as it is now.
    pub(crate) fn sign(&mut self, cluster: &ClusterName, sign: Sign, now: Millis) -> bool {
        match sign {
            Sign::Bookmark | Sign::Changed => {
                self.leases.complete(cluster, now);
                self.known.insert(cluster.clone(), Known { complete: now, stream: None });
            }
            Sign::Speaks(stream) => {
                if let Some(known) = self.known.get_mut(cluster)
                    && *known.stream.get_or_insert(stream) == stream
                    && now.0 < known.complete.0.saturating_add(SPEECH * LEASE)
                {
                    self.leases.heard(cluster, now);
                }
            }
        }
        self.there(cluster, now)
    }

    /// Whether a cluster is there.
    pub(crate) fn there(&self, cluster: &ClusterName, now: Millis) -> bool {
        self.leases.silent([cluster], now) == BTreeSet::new()
    }

    /// It is joined no longer.
    pub(crate) fn forget(&mut self, cluster: &ClusterName) {
        self.leases.forget(cluster);
        self.known.remove(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn west() -> ClusterName {
        "west".parse().unwrap()
    }

    /// Speaks every second from then on, by the stream that `stream` names; gives the second at which it was there last.
    fn speaks(presence: &mut Presence, from: u64, stream: impl Fn(u64) -> u64) -> u64 {
        let there = (from..from + 1000).take_while(|second| {
            presence.sign(&west(), Sign::Speaks(stream(*second)), Millis(1000 * second))
        });
        there.last().unwrap_or(from)
    }

    #[test]
    fn a_line_that_is_full_keeps_a_cluster_for_so_many_leases_and_no_longer() {
        let mut presence = Presence::new();
        assert!(!presence.sign(&west(), Sign::Speaks(1), Millis(0)), "nothing is known of it yet");
        assert!(presence.sign(&west(), Sign::Bookmark, Millis(0)));
        let lease = LEASE / 1000;
        assert_eq!(speaks(&mut presence, 1, |_| 1), SPEECH * lease + lease - 2);
        // What it says then does not bring it back, and a bookmark does.
        assert!(!presence.sign(&west(), Sign::Speaks(1), Millis(2_000_000)));
        assert!(presence.sign(&west(), Sign::Changed, Millis(2_000_000)));
    }

    #[test]
    fn snapshots_that_never_end_keep_nobody() {
        let mut presence = Presence::new();
        assert!(presence.sign(&west(), Sign::Bookmark, Millis(0)));
        // Every twenty seconds the stream fails, half-way.
        let last = speaks(&mut presence, 1, |second| second / 20);
        assert!(last < 19 + LEASE / 1000 + 1, "{last}");
        let mut presence = Presence::new();
        presence.sign(&west(), Sign::Bookmark, Millis(0));
        presence.forget(&west());
        assert!(!presence.sign(&west(), Sign::Speaks(1), Millis(1)));
    }
}
