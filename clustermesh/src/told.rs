//! What a follower of clusters hears.

use mesh_core::clusters::{Change, ClusterName, Version};

/// One thing that is heard of joined clusters. In order, and none is left out: who applies all of them has each cluster's
/// state. Nothing of it is judged yet: that is done by [`mesh_core::clusters::rules`] where it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The state of a cluster changed. After a new snapshot, too, it is the difference alone: what is equal is not touched.
    /// The first one for a cluster is its first complete snapshot, and is told even if it is empty.
    Changed {
        /// Which cluster.
        cluster: ClusterName,
        /// The state that is reached with these changes.
        version: Version,
        /// In order: what is referred to comes before what refers to it, and goes after it.
        changes: Vec<Change>,
    },
    /// The cluster itself was heard a moment ago: its state is up to date, whether or not it changed. Told every few seconds;
    /// absence of it is silence ([`mesh_core::mcs::Leases`]).
    Heard {
        /// Which cluster.
        cluster: ClusterName,
    },
    /// There is no such cluster any more: its ClusterPeer is gone.
    Gone {
        /// Which cluster.
        cluster: ClusterName,
    },
    /// Every cluster that the server knows of has been told once. Again after each new connection.
    Complete,
}
