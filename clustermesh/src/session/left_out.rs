//! What was said and does not count, and whether that is still so.

use std::collections::BTreeMap;

use mesh_core::clusters::{ClusterName, Key, Kind, Refusal};
use proto::clustermesh::{MAX_CLUSTERS, MAX_STATE, MAX_STATES, ObjectError, Unread};

/// Of how many keys is known that they are left out; of more only that there are some.
const KEYS: usize = 256;
/// Of how many things without a key.
const OTHERS: usize = 8;

/// Something that was said and does not count; everything else does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// An object that cannot be read.
    #[error("cluster {cluster}: {error}")]
    Object {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        error: Box<ObjectError>,
    },
    /// A kind of objects that only a later version knows.
    #[error(
        "cluster {cluster}: tells of a kind of objects that is not known here; upgrade Hawser here to use it"
    )]
    UnknownKind {
        /// Whose.
        cluster: ClusterName,
    },
    /// A message that only a later version understands.
    #[error("a message that is not understood here; upgrade Hawser here to use it")]
    UnknownMessage,
    /// More objects of a kind than are kept.
    #[error(
        "cluster {cluster}: {object} is one more than the {limit} objects of kind {kind:?} that are kept of a cluster; refused; split that cluster"
    )]
    TooMany {
        /// Whose.
        cluster: ClusterName,
        /// Which.
        object: String,
        /// Its kind.
        kind: Kind,
        /// How many are kept.
        limit: usize,
    },
    /// More bytes than are kept.
    #[error(
        "cluster {cluster}: {object} would be more than the {} MiB of objects that are kept of a cluster; refused; split that cluster, or shorten labels and annotations there",
        MAX_STATE >> 20
    )]
    TooMuch {
        /// Whose.
        cluster: ClusterName,
        /// Which.
        object: String,
    },
    /// More bytes than are kept of all clusters together.
    #[error(
        "cluster {cluster}: {object} would be more than the {} MiB of objects that are kept of all clusters; refused; join fewer clusters",
        MAX_STATES >> 20
    )]
    TooMuchOfAll {
        /// Whose.
        cluster: ClusterName,
        /// Which.
        object: String,
    },
    /// It speaks of a cluster of which it may not.
    #[error(transparent)]
    Foreign(Box<Refusal>),
    /// More clusters than are kept.
    #[error(
        "cluster {cluster} is one more than the {MAX_CLUSTERS} that are followed; refused; join fewer clusters"
    )]
    TooManyClusters {
        /// Which.
        cluster: ClusterName,
    },
}

impl LeftOut {
    /// What cannot be read of a cluster, and the key that it is of.
    pub(super) fn unread(cluster: &ClusterName, unread: Unread) -> (Self, Option<Key>) {
        let cluster = cluster.clone();
        match unread {
            Unread::UnknownKind => (Self::UnknownKind { cluster }, None),
            Unread::Refused { key, error } => (Self::Object { cluster, error }, key),
        }
    }

    /// For labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Object { .. } => "ObjectMalformed",
            Self::UnknownKind { .. } => "UnknownKind",
            Self::UnknownMessage => "UnknownMessage",
            Self::TooMany { .. } => "TooManyObjects",
            Self::TooMuch { .. } | Self::TooMuchOfAll { .. } => "TooManyBytes",
            Self::Foreign(refusal) => refusal.reason(),
            Self::TooManyClusters { .. } => "TooManyClusters",
        }
    }
}

/// What is left out of one cluster at present: what has a key until that is read well or deleted, the rest until a whole
/// snapshot comes without it.
#[derive(Debug, Default)]
pub(super) struct Missing {
    keys: BTreeMap<Key, LeftOut>,
    others: Vec<LeftOut>,
    /// There is more.
    more: bool,
}

impl Missing {
    /// Nothing is left out.
    pub(super) const fn new() -> Self {
        Self { keys: BTreeMap::new(), others: Vec::new(), more: false }
    }

    /// This was left out, too.
    pub(super) fn extend(&mut self, with: Self) {
        with.keys.into_iter().for_each(|(key, what)| self.add(Some(key), what));
        with.others.into_iter().for_each(|what| self.add(None, what));
        self.more |= with.more;
    }

    /// This was left out.
    pub(super) fn add(&mut self, key: Option<Key>, what: LeftOut) {
        match key {
            Some(key) if self.keys.len() < KEYS || self.keys.contains_key(&key) => {
                self.keys.insert(key, what);
            }
            None if self.others.contains(&what) => {}
            None if self.others.len() < OTHERS => self.others.push(what),
            Some(_) | None => self.more = true,
        }
    }

    /// What is of this key counts now. True: it did not.
    pub(super) fn mend(&mut self, key: &Key) -> bool {
        self.keys.remove(key).is_some()
    }

    /// Sentences, the first few.
    pub(super) fn texts(&self, most: usize) -> Vec<String> {
        let all = self.others.iter().chain(self.keys.values());
        let mut texts: Vec<String> = all.take(most).map(ToString::to_string).collect();
        if self.more {
            texts.push(format!("more than {KEYS} objects are left out, or were since the last snapshot"));
        }
        texts
    }

    /// Nothing is left out.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.others.is_empty() && !self.more
    }
}
