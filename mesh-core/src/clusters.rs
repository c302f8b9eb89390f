//! Clusters that are joined (design D10): what one tells of itself, what is believed of it, and how several views of it
//! become one.
//!
//! A cluster speaks only for itself. What it may say is bounded by the [`ClusterPeer`] that this side's administrator wrote;
//! `clustermesh` and every agent judge each fact by the same [`rules`], so a `clustermesh` that was taken over steers no
//! agent. A fact that is refused costs nothing but itself, and what is local is never overridden.

pub mod joined;
pub mod merge;
pub mod model;
pub mod object;
pub mod peer;
pub mod refusal;
pub mod rules;

pub use crate::psk::ClusterName;
pub use joined::{Disputed, Here, Joined, Reach, disputed};
pub use merge::{Mirrors, Stamped, Version};
pub use model::{
    Affinity, Backend, BackendPort, ExportedService, LabelSet, LabelSetId, RemoteEndpoint, RemoteNode,
    ServiceKind, ServicePort, Signed, TrafficPolicy,
};
pub use object::{Change, ClusterState, Key, Kind, Object};
pub use peer::{ClusterPeer, ClusterPeerSpec, Host, ServerAddress, ServerAddressError, TrustBundle};
pub use refusal::{Holder, Refusal};
pub use rules::{AcceptedNode, Borders, Claims, OwnCluster};

#[cfg(test)]
mod tests;
