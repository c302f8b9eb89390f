//! Several views of the joined clusters become one, in any order and however often.
//!
//! Each cluster's state has one writer at a time, and a version names one state. So of two views of a cluster the one with
//! the greater version has all that the other has, and the greater of two is associative, commutative and idempotent.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::ClusterName;
use super::object::ClusterState;

/// Names one state of a cluster. Ordered: by incarnation, then by sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Who wrote it: greater with each new leader of the cluster's `clustermesh`.
    pub incarnation: u64,
    /// Changes so far in this incarnation.
    pub sequence: u64,
}

/// A state and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Names the state.
    pub version: Version,
    /// The state.
    pub state: Arc<ClusterState>,
}

/// Views of many clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrors(BTreeMap<ClusterName, Stamped>);

impl Mirrors {
    /// No cluster.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Takes a view of one cluster if it is newer; true if it was.
    pub fn offer(&mut self, cluster: ClusterName, offered: Stamped) -> bool {
        match self.0.entry(cluster) {
            Entry::Vacant(place) => {
                place.insert(offered);
                true
            }
            Entry::Occupied(mut place) => {
                let newer = offered.version > place.get().version;
                if newer {
                    place.insert(offered);
                }
                newer
            }
        }
    }

    /// Takes all that `other` has newer.
    pub fn merge(&mut self, other: Self) {
        for (cluster, stamped) in other.0 {
            self.offer(cluster, stamped);
        }
    }

    /// The view of one cluster.
    pub fn get(&self, cluster: &ClusterName) -> Option<&Stamped> {
        self.0.get(cluster)
    }

    /// Forgets a cluster: its `ClusterPeer` is gone.
    pub fn remove(&mut self, cluster: &ClusterName) -> Option<Stamped> {
        self.0.remove(cluster)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ClusterName, &Stamped)> {
        self.0.iter()
    }
}
