//! The machine of a follower: what a server says goes in, what is to be done about it comes out. Pure.
//!
//! ```text
//!                    SnapshotBegin                       SnapshotEnd, all parts there
//!   has a version ────────────────► reads a snapshot ───────────────────────────────┐
//!   or none     ▲ ◄── Changes ───┐          │ another SnapshotBegin: begins anew     │
//!               │     (last part)│          ▼                                        │
//!               │                └── reads changes (more follow)                     │
//!               └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! That is kept for each cluster by itself. A stream that ends, or says what makes no sense ([`SessionError`]), leaves every
//! cluster at the version that it had; the next stream goes on from there. Until a snapshot or a row of changes is whole,
//! nothing of it counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::clusters::{Change, ClusterName, ClusterState, Key, Kind, Object, Refusal, Version};
use proto::clustermesh::{
    At, Counts, FollowResponse, MAX_CLUSTERS, MAX_STATE, MAX_STATES, Message, MessageError, NodeNames, Say,
    Unread, WireChange, WireObject, kind_of, most, read_change, read_object,
};

use crate::Told;

mod left_out;

pub use left_out::LeftOut;
use left_out::Missing;

/// Most changes between two versions that are read before the last of them is there: a server sends a snapshot instead of as
/// many.
pub const MAX_CHANGES: usize = 100_000;

/// Of whom a server may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of this cluster alone: it is what the server was authenticated as.
    One(ClusterName),
    /// Of every other one: it is the own cluster's, which mirrors them. What it says is judged where it is used.
    All,
}

/// What a follower knows, and where it is in the stream.
#[derive(Debug)]
pub struct Session {
    scope: Scope,
    /// Most bytes of all clusters together.
    most: usize,
    clusters: BTreeMap<ClusterName, Mirror>,
    /// What is of no cluster that is kept, of earlier streams and of this one: until a whole snapshot comes in a later one.
    missing: [Missing; 2],
}

#[derive(Debug, Default)]
struct Mirror {
    at: Option<At>,
    kept: Kept,
    names: NodeNames,
    missing: Missing,
    pending: Option<Pending>,
}

#[derive(Debug)]
enum Pending {
    Snapshot {
        version: At,
        kept: Box<Kept>,
        names: NodeNames,
        arrived: Counts,
        missing: Missing,
    },
    Changes {
        from: At,
        to: At,
        parts: u32,
        changes: Vec<Change>,
        bytes: usize,
        names: NodeNames,
        missing: Missing,
    },
}

/// A state, and how much it is.
#[derive(Debug, Default)]
struct Kept {
    state: ClusterState,
    /// Sum of [`Object::size`].
    bytes: usize,
}

impl Kept {
    /// Puts an object, if there is room for it. What was known under its key does not count any more in any case.
    fn put(&mut self, cluster: &ClusterName, object: Object, limit: Limit) -> Result<(), LeftOut> {
        let (key, size) = (object.key(), object.size());
        let known = self.state.get(&key);
        let (kind, most) = (key.kind(), most(key.kind()));
        if known.is_none() && self.state.count(kind) >= most {
            let object = key.to_string();
            return Err(LeftOut::TooMany { cluster: cluster.clone(), object, kind, limit: most });
        }
        let rest = self.bytes.saturating_sub(known.as_ref().map_or(0, Object::size));
        if rest + size > limit.bytes {
            let (cluster, object) = (cluster.clone(), key.to_string());
            self.delete(key);
            return Err(if limit.of_all {
                LeftOut::TooMuchOfAll { cluster, object }
            } else {
                LeftOut::TooMuch { cluster, object }
            });
        }
        self.bytes = rest + size;
        self.state.apply(Change::Put(object));
        Ok(())
    }

    fn delete(&mut self, key: Key) {
        let known = self.state.get(&key).as_ref().map_or(0, Object::size);
        self.bytes = self.bytes.saturating_sub(known);
        self.state.apply(Change::Delete(key));
    }
}

/// How many bytes may be kept of a cluster.
#[derive(Clone, Copy, Debug)]
struct Limit {
    bytes: usize,
    /// It is what the other clusters leave of [`MAX_STATES`].
    of_all: bool,
}

impl Mirror {
    /// Bytes that it takes: what is kept, and what has begun to come.
    fn bytes(&self) -> usize {
        self.kept.bytes + self.pending.as_ref().map_or(0, Pending::bytes)
    }
}

impl Pending {
    fn bytes(&self) -> usize {
        match self {
            Self::Snapshot { kept, .. } => kept.bytes,
            Self::Changes { bytes, .. } => *bytes,
        }
    }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(object) => object.size(),
        Change::Delete(_) => 0,
    }
}

/// What came of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is heard.
    pub told: Vec<Told>,
    /// What was left out, each for itself.
    pub left_out: Vec<LeftOut>,
    /// What is left out is no longer what it was ([`Session::missing`]).
    pub mended: bool,
    /// Another may lead in place of who speaks.
    pub cut_off: bool,
}

/// Why a stream is at its end: whatever comes after it would not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A message without sense.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Something that does not follow what came before.
    #[error("cluster {cluster}: {what} came without what goes before it; the stream is begun anew")]
    Unexpected {
        /// Whose.
        cluster: ClusterName,
        /// What came.
        what: &'static str,
    },
    /// A version before one that is known: old news, or an earlier leader of the cluster's clustermesh.
    #[error(
        "cluster {cluster}: version {}.{} was told though {}.{} is known; refused as a replay; if that cluster's Lease hawser-clustermesh was deleted and its clock set back, delete its ClusterPeer here and create it anew",
        found.incarnation, found.sequence, known.incarnation, known.sequence
    )]
    WentBack {
        /// Whose.
        cluster: ClusterName,
        /// What is known.
        known: Version,
        /// What came.
        found: Version,
    },
    /// Changes of, or a word about, a state that is not known here.
    #[error("cluster {cluster}: {what} is about version {}.{}, which is not what is known; the stream is begun anew", found.incarnation, found.sequence)]
    OtherVersion {
        /// Whose.
        cluster: ClusterName,
        /// What came.
        what: &'static str,
        /// About which version.
        found: Version,
    },
    /// A snapshot that is not whole.
    #[error(
        "cluster {cluster}: a snapshot has {found} objects of kind {kind}, {wanted} were announced; nothing of it counts"
    )]
    Truncated {
        /// Whose.
        cluster: ClusterName,
        /// Of which kind.
        kind: &'static str,
        /// How many came.
        found: u64,
        /// How many there are.
        wanted: u64,
    },
    /// Too much at once.
    #[error(
        "cluster {cluster}: more than {MAX_CHANGES} changes, or {} MiB of them, between two versions; refused; upgrade clustermesh there",
        MAX_STATE >> 20
    )]
    TooManyChanges {
        /// Whose.
        cluster: ClusterName,
    },
}

impl SessionError {
    /// For labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Message(_) => "MessageMalformed",
            Self::Unexpected { .. } => "Unexpected",
            Self::WentBack { .. } => "WentBack",
            Self::OtherVersion { .. } => "OtherVersion",
            Self::Truncated { .. } => "Truncated",
            Self::TooManyChanges { .. } => "TooManyChanges",
        }
    }
}

impl Session {
    /// Knows nothing yet.
    pub const fn new(scope: Scope) -> Self {
        Self::keeping(scope, MAX_STATES)
    }

    /// As [`Session::new`], with another bound than [`MAX_STATES`].
    pub const fn keeping(scope: Scope, most: usize) -> Self {
        Self { scope, most, clusters: BTreeMap::new(), missing: [Missing::new(), Missing::new()] }
    }

    /// What it has, for the next request. A stream that was under way is over: what it had begun is void.
    pub fn begin(&mut self) -> BTreeMap<ClusterName, At> {
        let [earlier, present] = &mut self.missing;
        earlier.extend(std::mem::take(present));
        self.clusters.retain(|_, mirror| {
            mirror.pending = None;
            mirror.at.is_some()
        });
        self.known()
    }

    /// What it has.
    pub fn known(&self) -> BTreeMap<ClusterName, At> {
        self.clusters.iter().filter_map(|(name, mirror)| Some((name.clone(), mirror.at?))).collect()
    }

    /// What is known of a cluster.
    pub fn state(&self, cluster: &ClusterName) -> Option<(Version, &ClusterState)> {
        let mirror = self.clusters.get(cluster)?;
        Some((mirror.at?.version, &mirror.kept.state))
    }

    /// Takes in what a server said.
    ///
    /// # Errors
    /// The stream has to be begun anew; what was known still is.
    pub fn hear(&mut self, response: FollowResponse) -> Result<Outcome, SessionError> {
        let mut outcome = Outcome::default();
        let (cluster, say) = match Message::read(response)? {
            None => {
                return Ok(self.leave_out(LeftOut::UnknownMessage));
            }
            Some(Message::Complete) => {
                outcome.told.push(Told::Complete);
                return Ok(outcome);
            }
            Some(Message::CutOff) => return Ok(Outcome { cut_off: true, ..outcome }),
            Some(Message::Of(cluster, say)) => (cluster, say),
        };
        if let Scope::One(speaker) = &self.scope
            && *speaker != cluster
        {
            let refusal = Refusal::ForeignCluster { speaker: speaker.clone(), named: cluster };
            return Ok(self.leave_out(LeftOut::Foreign(Box::new(refusal))));
        }
        if !self.clusters.contains_key(&cluster) && self.clusters.len() >= MAX_CLUSTERS {
            return Ok(self.leave_out(LeftOut::TooManyClusters { cluster }));
        }
        if let Say::Gone = say {
            if self.scope != Scope::All {
                return Err(SessionError::Unexpected { cluster, what: "its own end" });
            }
            if self.clusters.remove(&cluster).is_some_and(|mirror| mirror.at.is_some()) {
                outcome.told.push(Told::Gone { cluster });
            }
            return Ok(outcome);
        }
        let others = self.clusters.iter().filter(|(name, _)| **name != cluster);
        let rest = self.most.saturating_sub(others.map(|(_, mirror)| mirror.bytes()).sum());
        let limit = Limit { bytes: rest.min(MAX_STATE), of_all: rest < MAX_STATE };
        let mirror = self.clusters.entry(cluster.clone()).or_default();
        let whole = matches!(say, Say::SnapshotEnd { .. });
        Turn { cluster, mirror, limit, outcome: &mut outcome }.say(say)?;
        let [earlier, _] = &mut self.missing;
        if whole && !earlier.is_empty() {
            *earlier = Missing::new();
            outcome.mended = true;
        }
        Ok(outcome)
    }

    fn leave_out(&mut self, what: LeftOut) -> Outcome {
        let [_, present] = &mut self.missing;
        present.add(None, what.clone());
        Outcome { left_out: vec![what], ..Outcome::default() }
    }

    /// What is left out at present, the first few of each cluster.
    pub fn missing(&self, most: usize) -> Vec<String> {
        let of_clusters = self.clusters.values().flat_map(|mirror| {
            let begun = match &mirror.pending {
                Some(Pending::Snapshot { missing, .. }) => missing.texts(most),
                Some(Pending::Changes { .. }) | None => Vec::new(),
            };
            let mut texts = mirror.missing.texts(most);
            texts.extend(begun.into_iter().filter(|text| !texts.contains(text)).collect::<Vec<_>>());
            texts
        });
        let [earlier, present] = &self.missing;
        let mut texts = present.texts(most);
        texts
            .extend(earlier.texts(most).into_iter().filter(|text| !texts.contains(text)).collect::<Vec<_>>());
        texts.into_iter().chain(of_clusters).collect()
    }
}

/// One message about one cluster.
struct Turn<'a> {
    cluster: ClusterName,
    mirror: &'a mut Mirror,
    limit: Limit,
    outcome: &'a mut Outcome,
}

impl Turn<'_> {
    fn say(&mut self, say: Say) -> Result<(), SessionError> {
        match say {
            Say::SnapshotBegin(version) => self.snapshot_begin(version),
            Say::SnapshotPart(objects) => self.snapshot_part(objects),
            Say::SnapshotEnd { version, counts } => self.snapshot_end(version, &counts),
            Say::Changes { from, to, changes, part, more } => self.changes((from, to), changes, (part, more)),
            Say::Bookmark(version) => {
                if self.mirror.at != Some(version) || self.mirror.pending.is_some() {
                    return Err(self.other_version("a bookmark", version));
                }
                self.outcome.told.push(Told::Heard { cluster: self.cluster.clone() });
                Ok(())
            }
            Say::Gone => Ok(()),
        }
    }

    fn unexpected(&self, what: &'static str) -> SessionError {
        SessionError::Unexpected { cluster: self.cluster.clone(), what }
    }

    fn other_version(&self, what: &'static str, found: At) -> SessionError {
        SessionError::OtherVersion { cluster: self.cluster.clone(), what, found: found.version }
    }

    fn snapshot_begin(&mut self, version: At) -> Result<(), SessionError> {
        let known = self.mirror.at.map(|known| known.version);
        if let Some(known) = known.filter(|known| version.version < *known) {
            let found = version.version;
            return Err(SessionError::WentBack { cluster: self.cluster.clone(), known, found });
        }
        self.mirror.pending = Some(Pending::Snapshot {
            version,
            kept: Box::default(),
            names: NodeNames::default(),
            arrived: Counts::default(),
            missing: Missing::default(),
        });
        Ok(())
    }

    fn snapshot_part(&mut self, objects: Vec<WireObject>) -> Result<(), SessionError> {
        let Some(Pending::Snapshot { kept, names, arrived, missing, .. }) = &mut self.mirror.pending else {
            return Err(self.unexpected("a part of a snapshot"));
        };
        for object in objects {
            match kind_of(&object) {
                Some(kind) => *arrived.known.entry(kind).or_default() += 1,
                None => arrived.others += 1,
            }
            let object = match read_object(object, names) {
                Ok(object) => object,
                Err(unread) => {
                    let (left_out, key) = LeftOut::unread(&self.cluster, unread);
                    missing.add(key, left_out.clone());
                    self.outcome.left_out.push(left_out);
                    continue;
                }
            };
            let name = if let Object::Node(name, _) = &object { Some(Arc::clone(name)) } else { None };
            let key = object.key();
            match kept.put(&self.cluster, object, self.limit) {
                // Names of nodes that are not kept would be without number.
                Ok(()) => name.iter().for_each(|name| names.insert(name)),
                Err(refused) => {
                    missing.add(Some(key), refused.clone());
                    self.outcome.left_out.push(refused);
                }
            }
        }
        Ok(())
    }

    fn snapshot_end(&mut self, end: At, counts: &Counts) -> Result<(), SessionError> {
        let Some(Pending::Snapshot { version, kept, names, arrived, missing }) = self.mirror.pending.take()
        else {
            return Err(self.unexpected("the end of a snapshot"));
        };
        if version != end {
            return Err(self.other_version("the end of a snapshot", end));
        }
        let known = Kind::ALL.map(|kind| {
            let count = |counts: &Counts| counts.known.get(&kind).copied().unwrap_or_default();
            (kind.name(), count(&arrived), count(counts))
        });
        let others = [("unknown here", arrived.others, counts.others)];
        let wrong = known.into_iter().chain(others).find(|(_, found, wanted)| found != wanted);
        if let Some((kind, found, wanted)) = wrong {
            return Err(SessionError::Truncated { cluster: self.cluster.clone(), kind, found, wanted });
        }
        let changes = self.mirror.kept.state.changes_to(&kept.state);
        self.mirror.kept = *kept;
        self.mirror.names = names;
        self.outcome.mended |= !self.mirror.missing.is_empty();
        self.mirror.missing = missing;
        self.reached(version, changes);
        Ok(())
    }

    fn changes(
        &mut self,
        (from, to): (At, At),
        wire: Vec<WireChange>,
        (part, more): (u32, bool),
    ) -> Result<(), SessionError> {
        let known = self.mirror.at.ok_or_else(|| self.unexpected("changes"))?;
        let (mut changes, mut bytes, mut names, mut missing) = match self.mirror.pending.take() {
            None if from == known && part == 0 => (Vec::new(), 0, NodeNames::default(), Missing::new()),
            Some(Pending::Changes { from: begun, to: wanted, parts, changes, bytes, names, missing })
                if begun == from && wanted == to && parts == part =>
            {
                (changes, bytes, names, missing)
            }
            None | Some(Pending::Changes { .. }) => return Err(self.other_version("a change", from)),
            Some(Pending::Snapshot { .. }) => return Err(self.unexpected("a change inside a snapshot")),
        };
        if to.version <= known.version {
            let (known, found) = (known.version, to.version);
            return Err(SessionError::WentBack { cluster: self.cluster.clone(), known, found });
        }
        if changes.len() + wire.len() > MAX_CHANGES || bytes > self.limit.bytes {
            return Err(SessionError::TooManyChanges { cluster: self.cluster.clone() });
        }
        for change in wire {
            let change = read_change(change.clone(), &names).or_else(|unread| match unread {
                // Named in an earlier message, or in this one.
                Unread::Refused { .. } => read_change(change, &self.mirror.names),
                Unread::UnknownKind => Err(unread),
            });
            match change {
                Ok(change) => {
                    if let Change::Put(Object::Node(name, _)) = &change {
                        names.insert(name);
                    }
                    missing.mend(&change.key());
                    bytes += size(&change);
                    changes.push(change);
                }
                Err(unread) => {
                    // What was known of an object that cannot be read any more counts no longer.
                    let (left_out, key) = LeftOut::unread(&self.cluster, unread);
                    self.outcome.left_out.push(left_out.clone());
                    changes.extend(key.clone().map(Change::Delete));
                    missing.add(key, left_out);
                }
            }
        }
        if more {
            self.mirror.pending =
                Some(Pending::Changes { from, to, parts: part + 1, changes, bytes, names, missing });
            return Ok(());
        }
        let changes = self.apply(changes);
        self.mirror.missing.extend(missing);
        self.reached(to, changes);
        Ok(())
    }

    /// Applies, and gives what is different now: each object once.
    fn apply(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mirror = &mut *self.mirror;
        let mut before: BTreeMap<Key, Option<Object>> = BTreeMap::new();
        for change in changes {
            let key = change.key();
            before.entry(key.clone()).or_insert_with_key(|key| mirror.kept.state.get(key));
            self.outcome.mended |= mirror.missing.mend(&key);
            match change {
                Change::Put(object) => {
                    if let Err(refused) = mirror.kept.put(&self.cluster, object, self.limit) {
                        mirror.missing.add(Some(key), refused.clone());
                        self.outcome.left_out.push(refused);
                    }
                }
                Change::Delete(key) => mirror.kept.delete(key),
            }
        }
        // Keys are ordered by kind: what is referred to comes first.
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for (key, before) in before {
            let now = mirror.kept.state.get(&key);
            if let Key::Node(name) = &key {
                match now {
                    Some(_) => mirror.names.insert(name),
                    None => mirror.names.remove(name),
                }
            }
            match now {
                now if now == before => {}
                Some(object) => put.push(Change::Put(object)),
                None => gone.push(Change::Delete(key)),
            }
        }
        put.extend(gone.into_iter().rev());
        put
    }

    fn reached(&mut self, at: At, changes: Vec<Change>) {
        let version = at.version;
        if self.mirror.at.is_none_or(|known| known.version != version) || !changes.is_empty() {
            self.outcome.told.push(Told::Changed { cluster: self.cluster.clone(), version, changes });
        }
        self.mirror.at = Some(at);
    }
}

impl Session {
    /// Counts what is kept of all clusters, for metrics and bounds.
    pub fn objects(&self) -> usize {
        self.clusters.values().map(|mirror| mirror.kept.state.len()).sum()
    }

    /// Names of clusters with a state.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.clusters.iter().filter(|(_, mirror)| mirror.at.is_some()).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests;
