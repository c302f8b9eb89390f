//! What clusters tell each other: service `hawser.clustermesh.v1.ClusterMesh`, and the one place where its messages become
//! [`mesh_core::clusters`] and the other way round.
//!
//! A reader leaves out what it does not know, fields and kinds alike; a value that it cannot read costs the one object that
//! has it ([`ObjectError`]), a message without sense the stream ([`MessageError`]). Every message, list and text has a bound.

#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
mod generated;

mod error;
mod names;
mod read;
mod write;

use std::collections::BTreeMap;

use mesh_core::clusters::{ClusterName, Kind, Version};

pub use self::error::{Cause, MessageError, ObjectError, Unread};
pub use self::generated::cluster_mesh_client::ClusterMeshClient;
pub use self::generated::cluster_mesh_server::{ClusterMesh, ClusterMeshServer};
pub use self::generated::{Change as WireChange, FollowRequest, FollowResponse, Object as WireObject};
pub use self::names::NodeNames;
pub use self::read::{begins_snapshot, kind_of, read_change, read_known, read_object, read_signed_node};
pub use self::write::{counts, write_change, write_known, write_node, write_object};

/// Revision of the contract that this speaks.
pub const REVISION: u32 = 1;
/// Longest response in bytes. Ours are closed before they have more than [`MESSAGE`] bytes, unless one object alone has more; those
/// of earlier versions have one object more.
pub const MAX_MESSAGE: usize = 512 * 1024;
/// Length in bytes at which a message is closed: some HTTP/2 windows, so that one slow reader holds little.
pub const MESSAGE: usize = 64 * 1024;
/// Longest object in bytes as it is written; one that is longer is refused where it is read, since whoever mirrors it must write it.
/// The API server takes 256 KiB of annotations, and `etcd` 1.5 MiB of all.
pub const MAX_OBJECT: usize = 256 * 1024;
/// Longest request in bytes: [`MAX_CLUSTERS`] with the longest names.
pub const MAX_REQUEST: usize = 128 * 1024;
/// Most clusters of one stream: each has its borders in the data path of every node.
pub const MAX_CLUSTERS: usize = 1024;
/// Most labels or annotations of one object.
pub const MAX_LABELS: usize = 256;
/// Longest key of a label: a prefix of 253 bytes, a slash, a name of 63.
pub const MAX_LABEL_KEY: usize = 317;
/// Longest value of a label.
pub const MAX_LABEL_VALUE: usize = 63;
/// Longest value of an annotation: half of what all together may have on the wire.
pub const MAX_ANNOTATION_VALUE: usize = 128 * 1024;
/// Longest `metadata.uid`: the API server makes UUIDs of 36 bytes.
pub const MAX_UID: usize = 64;
/// Most `spec.podCIDRs` of a node: one for each family, and room to grow.
pub const MAX_NODE_CIDRS: usize = 8;
/// Longest signature of a node: that of an RSA key of 8192 bits.
pub const MAX_SIGNATURE: usize = 1024;
/// Most ports that pods of one label set name: as many as fit the annotation that carries them.
pub const MAX_NAMED_PORTS: usize = 512;
/// Most ports of a service or a backend: as the API server takes of an EndpointSlice.
pub const MAX_PORTS: usize = 100;
/// Longest word that Kubernetes may add a value to (`trafficDistribution`, zones): a label's value.
pub const MAX_WORD: usize = 63;

/// Metadata of a response: the incarnation of the leader that serves.
pub const INCARNATION: &str = "hawser-incarnation";

/// Most bytes of a cluster's objects that are kept ([`mesh_core::clusters::Object::size`]), so that one that never ends takes no
/// more memory than a few times that: 150,000 pods with label sets of their own are a fifth of it.
pub const MAX_STATE: usize = 256 << 20;

/// Most bytes of the objects of all clusters together that one follower keeps: three million pods (200 clusters of 15,000) with
/// label sets of their own are half of it. Who mirrors clusters for others may be taken over, and invent [`MAX_CLUSTERS`].
pub const MAX_STATES: usize = 16 * MAX_STATE;

/// Most objects of a cluster that are kept, by kind: more than Kubernetes promises to work with (5,000 nodes, 150,000 pods,
/// 10,000 services, 10,000 namespaces; two addresses each).
pub const fn most(kind: Kind) -> usize {
    match kind {
        Kind::LabelSet | Kind::Endpoint => 400_000,
        Kind::Namespace | Kind::Node | Kind::Service => 20_000,
        Kind::Backend => 800_000,
    }
}

/// A state of a cluster as one server tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The state.
    pub version: Version,
    /// What of it the server leaves out; 0: nothing. Means nothing but that the same number is the same view.
    pub view: u64,
}

impl From<Version> for At {
    /// All of it.
    fn from(version: Version) -> Self {
        Self { version, view: 0 }
    }
}

/// What a server said, about one cluster or about all.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Of one cluster.
    Of(ClusterName, Say),
    /// Every cluster has been told once.
    Complete,
    /// Another may lead in place of who speaks.
    CutOff,
}

/// What is said of one cluster. Objects are read one by one, by what is known of the cluster's nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Say {
    /// All of its state follows.
    SnapshotBegin(At),
    /// Some of it.
    SnapshotPart(Vec<WireObject>),
    /// That was all.
    SnapshotEnd {
        /// That of the beginning.
        version: At,
        /// How many of each kind.
        counts: Counts,
    },
    /// What leads from one state to another.
    Changes {
        /// From here.
        from: At,
        /// To there.
        to: At,
        /// In order.
        changes: Vec<WireChange>,
        /// Number of this message among those that lead there, from 0.
        part: u32,
        /// More of the same follows.
        more: bool,
    },
    /// It was heard, and this is its state.
    Bookmark(At),
    /// There is no such cluster any more.
    Gone,
}

/// How many objects a snapshot has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of each kind that this version knows; what is not there is none.
    pub known: BTreeMap<Kind, u64>,
    /// Of all others together.
    pub others: u64,
}

#[cfg(test)]
mod tests;
