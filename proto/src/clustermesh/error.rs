//! What cannot be read.

use mesh_core::clusters::Key;
use mesh_core::psk::ClusterNameError;

/// Why a message means nothing: the stream is at its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not the name of a cluster.
    #[error("cluster: {0}; correct clusterName in the configuration of the cluster that speaks")]
    Cluster(#[from] ClusterNameError),
    /// A field that must be there is not.
    #[error("{field} is missing; upgrade clustermesh of the cluster that speaks")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A list is too long.
    #[error("{field} has {found} entries, at most {limit} are read; join fewer clusters")]
    TooMany {
        /// Which.
        field: &'static str,
        /// How many it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
}

/// Why an object is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is of a kind that a later version knows.
    UnknownKind,
    /// Something of it is wrong.
    Refused {
        /// Which object it is, if that much can be read: what was known of it counts no longer.
        key: Option<Key>,
        /// What is wrong.
        error: Box<ObjectError>,
    },
}

/// One object that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} {cause}")]
pub struct ObjectError {
    /// Which object, shortened.
    pub object: String,
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub cause: Cause,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// It is not there.
    #[error("is missing; refused; upgrade clustermesh of the cluster that tells it")]
    Missing,
    /// A number without a meaning here.
    #[error(
        "{found} is not {wanted}; refused; upgrade the older clustermesh of the two, or correct the object in its cluster"
    )]
    Value {
        /// What it is.
        found: i64,
        /// What it may be.
        wanted: &'static str,
    },
    /// Not the message that it should be.
    #[error("is no message of this contract; refused; upgrade the older clustermesh of the two")]
    Undecodable,
    /// A text or bytes of a length that it cannot have.
    #[error("has {found} bytes, wanted {wanted}; refused; shorten it in its cluster")]
    Length {
        /// How many.
        found: usize,
        /// How many there may be.
        wanted: &'static str,
    },
    /// A text that is too long.
    #[error("{value:?} has {found} bytes, at most {limit} are read; refused; shorten it in its cluster")]
    TooLong {
        /// The beginning of it.
        value: String,
        /// How many.
        found: usize,
        /// How many are read.
        limit: usize,
    },
    /// A list that is too long.
    #[error("has {found} entries, at most {limit} are read; refused; give the object fewer in its cluster")]
    TooMany {
        /// How many.
        found: usize,
        /// How many are read.
        limit: usize,
    },
    /// A name that is none.
    #[error("{reason}; refused; correct the name in its cluster")]
    Name {
        /// Value and reason.
        reason: String,
    },
    /// A prefix that is none.
    #[error("{value} is not a prefix; refused; correct it in its cluster")]
    Prefix {
        /// The value.
        value: String,
    },
    /// The short form of a name that no node, or more than one, has.
    #[error("{found:#018x} is not the short form of one node's name; refused until the node is told")]
    ShortName {
        /// The value.
        found: u64,
    },
    /// Two fields that cannot be together.
    #[error("is set without {other}; refused; upgrade clustermesh of the cluster that tells it")]
    Without {
        /// The other field.
        other: &'static str,
    },
}
