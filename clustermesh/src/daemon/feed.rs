//! What one follower is told next, of all clusters that it may hear of. Pure: [`Clusters`] is what there is, a [`Feed`] is
//! how much of it one follower has.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use mesh_core::clusters::{Change, ClusterName, ClusterState, Key, Version};
use mesh_core::ipam::Millis;
use proto::clustermesh::{
    At, FollowResponse, MESSAGE, Message, NodeNames, Say, counts, write_change, write_object,
};

use super::store::{Since, Snapshot, Store};

/// How long a new follower waits, in milliseconds, for clusters that were not reached yet before it is told that it has heard
/// of all: three tries to connect.
pub const PATIENCE: u64 = 30_000;

/// Bytes around each object in a message, at most: its tag and its length.
const FRAMING: usize = 4;

/// All clusters of which anything is served.
#[derive(Debug)]
pub struct Clusters {
    own: ClusterName,
    all: BTreeMap<ClusterName, Entry>,
    /// Which clusters are joined is known.
    listed: bool,
    /// How often it is to be said that who serves is cut off; none: it is not.
    cut_off: Option<u64>,
    /// How many have been joined so far.
    joined: u64,
}

/// A later leader is known than the one that serves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an earlier leader serves here: version {}.{} of cluster {cluster}, and {}.{} is known; ask the next address; if no later one leads, since the Lease hawser-clustermesh was deleted and the clock set back, make the ClusterPeer anew or restart the agent",
    here.incarnation, here.sequence, known.incarnation, known.sequence
)]
pub struct Earlier {
    /// The own cluster.
    pub cluster: ClusterName,
    /// What is served.
    pub here: Version,
    /// What the follower knows.
    pub known: Version,
}

#[derive(Debug)]
struct Entry {
    store: Option<Store>,
    /// How often it was heard.
    heard: u64,
    /// Since when it is joined.
    since: Millis,
    /// Of all that were joined, which: one that was parted with and joined again is another one.
    number: u64,
}

impl Clusters {
    /// The own cluster alone, of which nothing is known yet.
    pub fn new(own: ClusterName, now: Millis) -> Self {
        let entry = Entry { store: None, heard: 0, since: now, number: 0 };
        Self { all: BTreeMap::from([(own.clone(), entry)]), own, listed: false, cut_off: None, joined: 0 }
    }

    /// The own cluster's name.
    pub const fn own(&self) -> &ClusterName {
        &self.own
    }

    /// Which clusters are joined besides the own one. Others are forgotten.
    pub fn join(&mut self, peers: &[ClusterName], now: Millis) {
        let own = &self.own;
        self.all.retain(|name, _| name == own || peers.contains(name));
        for peer in peers {
            self.all.entry(peer.clone()).or_insert_with(|| {
                self.joined += 1;
                Entry { store: None, heard: 0, since: now, number: self.joined }
            });
        }
        self.listed = true;
    }

    /// A cluster moved on, or is seen otherwise. The first version of it is all of its state. True: that is news.
    pub fn changed(&mut self, cluster: &ClusterName, at: At, changes: Vec<Change>) -> bool {
        let Some(entry) = self.all.get_mut(cluster) else { return false };
        if let Some(store) = &mut entry.store {
            if store.at().version == at.version && store.at().view != at.view {
                store.review(at.view, changes);
                return true;
            }
            return store.apply(at, changes);
        }
        let mut state = ClusterState::default();
        for change in changes {
            state.apply(change);
        }
        entry.store = Some(Store::new(at, state));
        true
    }

    /// A cluster was heard, and is what it was. True: it is one of which something is known.
    pub fn heard(&mut self, cluster: &ClusterName) -> bool {
        let known = self.all.get_mut(cluster).filter(|entry| entry.store.is_some());
        known.is_some_and(|entry| {
            entry.heard += 1;
            true
        })
    }

    /// The own cluster moves on. Nothing, before it is known ([`Clusters::changed`]).
    pub fn advance(&mut self, changes: Vec<Change>) -> bool {
        let entry = self.all.get_mut(&self.own);
        entry.and_then(|entry| entry.store.as_mut()).is_some_and(|store| store.advance(changes))
    }

    /// Another may lead, or not: said to everybody each time, as long as it is so.
    pub fn stand(&mut self, cut_off: bool) {
        self.cut_off = cut_off.then(|| self.cut_off.map_or(0, |times| times + 1));
    }

    /// In which incarnation the own cluster is served.
    pub fn leader(&self) -> Option<u64> {
        Some(self.store(&self.own)?.at().version.incarnation)
    }

    /// Whether somebody may be served here who knows this. Of other clusters a later version may be known: it will come here,
    /// too. Of the own one nobody knows a later one but from a later leader.
    ///
    /// # Errors
    /// Such a leader was heard.
    pub fn admit(&self, known: &BTreeMap<ClusterName, At>) -> Result<(), Earlier> {
        let here = self.store(&self.own).map(|store| store.at().version);
        match (here, known.get(&self.own).map(|at| at.version)) {
            (Some(here), Some(known)) if here < known => {
                Err(Earlier { cluster: self.own.clone(), here, known })
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// What is known of a cluster.
    pub fn store(&self, cluster: &ClusterName) -> Option<&Store> {
        self.all.get(cluster)?.store.as_ref()
    }

    /// All clusters that are known of, by name.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        self.all.keys()
    }
}

/// Of whom a follower is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Of the own cluster alone: a peer.
    Own,
    /// Of the joined clusters alone: who imports their services.
    Others,
    /// Of all: own agents.
    All,
}

/// How much one follower has.
#[derive(Debug)]
pub struct Feed {
    reach: Reach,
    has: BTreeMap<ClusterName, Has>,
    complete: bool,
    /// What it was told of who serves.
    cut_off: Option<u64>,
    /// What was begun goes before everything else.
    walk: Option<Walk>,
    /// Of whom it was told last: the next one has its turn, so that none holds up the others.
    last: Option<ClusterName>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Has {
    at: Option<At>,
    /// Value of the counter that it was told of; none: it has just come, and what was heard before counts not for it.
    heard: Option<u64>,
    /// Which one it was told of; none: what it has is of an earlier stream.
    number: Option<u64>,
}

#[derive(Debug)]
enum Walk {
    Snapshot {
        cluster: ClusterName,
        of: Snapshot,
        keys: VecDeque<Key>,
    },
    Changes {
        cluster: ClusterName,
        from: At,
        to: At,
        part: u32,
        changes: VecDeque<Change>,
        names: Arc<NodeNames>,
    },
}

impl Feed {
    /// A follower that has these versions.
    pub fn new(reach: Reach, known: BTreeMap<ClusterName, At>) -> Self {
        let has = known.into_iter().map(|(name, at)| (name, Has { at: Some(at), ..Has::default() }));
        Self { reach, has: has.collect(), complete: false, cut_off: None, walk: None, last: None }
    }

    /// The next message, if there is anything to be said now. Ask again after each change, and when time has passed.
    pub fn next(&mut self, clusters: &Clusters, now: Millis) -> Option<FollowResponse> {
        loop {
            if let Some(message) = self.go_on().or_else(|| self.gone(clusters)) {
                return Some(message.into());
            }
            if std::mem::replace(&mut self.cut_off, clusters.cut_off) != clusters.cut_off
                && clusters.cut_off.is_some()
            {
                return Some(Message::CutOff.into());
            }
            match self.begin(clusters) {
                Begun::Message(message) => return Some(message.into()),
                Begun::Walk => {}
                Begun::Nothing => return self.end(clusters, now).map(Into::into),
            }
        }
    }

    /// The rest of what was begun.
    fn go_on(&mut self) -> Option<Message> {
        match self.walk.take()? {
            Walk::Snapshot { cluster, of, mut keys } => {
                let version = of.at;
                if keys.is_empty() {
                    self.has.entry(cluster.clone()).or_default().at = Some(version);
                    let counts = counts(&of.state);
                    return Some(Message::Of(cluster, Say::SnapshotEnd { version, counts }));
                }
                let part = portion(&mut keys, |key| Some(write_object(&of.state.get(key)?, &of.names)));
                self.walk = Some(Walk::Snapshot { cluster: cluster.clone(), of, keys });
                Some(Message::Of(cluster, Say::SnapshotPart(part)))
            }
            Walk::Changes { cluster, from, to, part, mut changes, names } => {
                let some = portion(&mut changes, |change| Some(write_change(change, &names)));
                let more = !changes.is_empty();
                if more {
                    self.walk = {
                        let (cluster, part) = (cluster.clone(), part + 1);
                        Some(Walk::Changes { cluster, from, to, part, changes, names })
                    };
                } else {
                    self.has.entry(cluster.clone()).or_default().at = Some(to);
                }
                Some(Message::Of(cluster, Say::Changes { from, to, changes: some, part, more }))
            }
        }
    }

    /// A cluster that is joined no longer.
    fn gone(&mut self, clusters: &Clusters) -> Option<Message> {
        if self.reach == Reach::Own {
            // Of others a peer is told nothing, whatever it says that it knows.
            self.has.retain(|name, _| *name == clusters.own);
            return None;
        }
        let gone = |(name, has): &(&ClusterName, &Has)| {
            let another = |entry: &Entry| has.number.is_some_and(|number| number != entry.number);
            clusters.all.get(*name).is_none_or(another) || !self.reach.covers(clusters, name)
        };
        let name = self.has.iter().find(gone).filter(|_| clusters.listed)?.0.clone();
        self.has.remove(&name);
        Some(Message::Of(name, Say::Gone))
    }

    /// The next thing that a follower lacks.
    fn begin(&mut self, clusters: &Clusters) -> Begun {
        let last = self.last.clone();
        let after = (last.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let until = last.iter().flat_map(|last| clusters.all.range(..=last));
        for (name, entry) in clusters.all.range::<ClusterName, _>(after).chain(until) {
            let Some(store) = entry.store.as_ref().filter(|_| self.reach.covers(clusters, name)) else {
                continue;
            };
            let has = self.has.entry(name.clone()).or_default();
            let heard = *has.heard.get_or_insert(entry.heard);
            has.number.get_or_insert(entry.number);
            match store.since(has.at) {
                Since::Changes { from, to, changes, names } => {
                    self.last = Some(name.clone());
                    let changes = changes.into();
                    self.walk =
                        Some(Walk::Changes { cluster: name.clone(), from, to, part: 0, changes, names });
                    return Begun::Walk;
                }
                Since::Snapshot(of) => {
                    self.last = Some(name.clone());
                    let (version, keys) = (of.at, of.state.keys().collect());
                    self.walk = Some(Walk::Snapshot { cluster: name.clone(), of, keys });
                    return Begun::Message(Message::Of(name.clone(), Say::SnapshotBegin(version)));
                }
                Since::Nothing if heard != entry.heard && has.at == Some(store.at()) => {
                    has.heard = Some(entry.heard);
                    self.last = Some(name.clone());
                    return Begun::Message(Message::Of(name.clone(), Say::Bookmark(store.at())));
                }
                Since::Nothing => {}
            }
        }
        Begun::Nothing
    }

    /// Once: there was no more to say.
    fn end(&mut self, clusters: &Clusters, now: Millis) -> Option<Message> {
        let awaited = |(name, entry): (&ClusterName, &Entry)| {
            let missing = entry.store.is_none() && self.reach.covers(clusters, name);
            // The own cluster is known soon, or never served.
            missing && (*name == clusters.own || now.0 < entry.since.0.saturating_add(PATIENCE))
        };
        let unlisted = !clusters.listed && self.reach != Reach::Own;
        if self.complete || unlisted || clusters.all.iter().any(awaited) {
            return None;
        }
        self.complete = true;
        Some(Message::Complete)
    }
}

/// Takes from the front what one message holds: at least one, and no more than fit into [`MESSAGE`] bytes. So no message is longer than
/// the longest object, whatever comes together.
fn portion<T, W: prost::Message>(queue: &mut VecDeque<T>, write: impl Fn(&T) -> Option<W>) -> Vec<W> {
    let (mut portion, mut length) = (Vec::new(), 0);
    while let Some(one) = queue.front() {
        if let Some(written) = write(one) {
            length += written.encoded_len() + FRAMING;
            if length > MESSAGE && !portion.is_empty() {
                break;
            }
            portion.push(written);
        }
        queue.pop_front();
    }
    portion
}

enum Begun {
    Message(Message),
    Walk,
    Nothing,
}

impl Reach {
    fn covers(self, clusters: &Clusters, cluster: &ClusterName) -> bool {
        match self {
            Self::Own => *cluster == clusters.own,
            Self::Others => *cluster != clusters.own,
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests;
