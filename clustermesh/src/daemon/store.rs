//! The state of one cluster, and what was changed in it lately, so that a follower that was away gets what it missed. Pure.
//!
//! Each key that was changed is remembered once, with the version of its last change: a follower is told the latest state of
//! a key, however often it changed, and whoever missed more than [`REMEMBERED`] keys gets a snapshot. So what waits for a
//! slow follower is bounded by the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::clusters::{Change, ClusterState, Key, LabelSetId, Version};
use proto::clustermesh::{At, NodeNames};

/// Keys whose last change is remembered: half of the pods of a cluster of 300 nodes, replaced while a line is cut. A hundred
/// bytes each; the snapshot that somebody else gets has forty for each endpoint.
pub const REMEMBERED: usize = 8192;

/// A state with its version, to be read at leisure.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Names the state.
    pub at: At,
    /// The state.
    pub state: Arc<ClusterState>,
    /// Names of its nodes.
    pub names: Arc<NodeNames>,
}

/// What somebody with an earlier version misses.
#[derive(Clone, Debug)]
pub enum Since {
    /// Nothing, or what is known is newer: the store will catch up.
    Nothing,
    /// These changes.
    Changes {
        /// The version that is known.
        from: At,
        /// The version that they lead to.
        to: At,
        /// What is referred to comes before what refers to it, and goes after it.
        changes: Vec<Change>,
        /// Names of the nodes in that version.
        names: Arc<NodeNames>,
    },
    /// More than is remembered.
    Snapshot(Snapshot),
}

/// State of one cluster with its latest changes.
#[derive(Debug)]
pub struct Store {
    at: At,
    state: Arc<ClusterState>,
    names: Arc<NodeNames>,
    /// Keys by the version of their last change, and the other way round.
    log: BTreeSet<(Version, Key)>,
    last: BTreeMap<Key, Version>,
    /// Versions that it had, since nothing is forgotten of what changed. One that it skipped is not among them: what changed
    /// there and back again is not in the log, but in the state of who has that version.
    passed: BTreeSet<At>,
    remembered: usize,
}

impl Store {
    /// A state; nothing of what was before it is known.
    pub fn new(at: At, state: ClusterState) -> Self {
        Self::remembering(at, state, REMEMBERED)
    }

    /// As [`Store::new`], with another bound than [`REMEMBERED`].
    pub fn remembering(at: At, state: ClusterState, remembered: usize) -> Self {
        let mut names = NodeNames::default();
        state.nodes.keys().for_each(|name| names.insert(name));
        Self {
            at,
            state: Arc::new(state),
            names: Arc::new(names),
            log: BTreeSet::new(),
            last: BTreeMap::new(),
            passed: BTreeSet::from([at]),
            remembered,
        }
    }

    /// The present version.
    pub const fn at(&self) -> At {
        self.at
    }

    /// The present state.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// All of it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { at: self.at, state: Arc::clone(&self.state), names: Arc::clone(&self.names) }
    }

    /// Moves on by changes to a later version. An earlier one changes nothing. True: anything changed.
    pub fn apply(&mut self, at: At, changes: Vec<Change>) -> bool {
        let to = at.version;
        if to <= self.at.version {
            return false;
        }
        self.passed.insert(at);
        self.at = at;
        for change in changes {
            let key = change.key();
            if let Key::Node(name) = &key {
                let names = Arc::make_mut(&mut self.names);
                match change {
                    Change::Put(_) => names.insert(name),
                    Change::Delete(_) => names.remove(name),
                }
            }
            if !Arc::make_mut(&mut self.state).apply(change) {
                continue;
            }
            if let Some(before) = self.last.insert(key.clone(), to) {
                self.log.remove(&(before, key.clone()));
            }
            self.log.insert((to, key));
        }
        while self.log.len() > self.remembered {
            let Some((version, key)) = self.log.pop_first() else { break };
            self.last.remove(&key);
            self.passed = self.passed.split_off(&At::from(version));
        }
        while self.passed.len() > self.remembered + 1 {
            self.passed.pop_first();
        }
        true
    }

    /// The same state in another view, by changes: everybody is told all of it again, and finds what is different.
    pub fn review(&mut self, view: u64, changes: Vec<Change>) {
        for change in changes {
            if let Key::Node(name) = change.key() {
                let names = Arc::make_mut(&mut self.names);
                match change {
                    Change::Put(_) => names.insert(&name),
                    Change::Delete(_) => names.remove(&name),
                }
            }
            Arc::make_mut(&mut self.state).apply(change);
        }
        self.at.view = view;
        self.passed = BTreeSet::from([self.at]);
        self.log.clear();
        self.last.clear();
    }

    /// The next version of the same incarnation, for the cluster's own leader.
    pub fn advance(&mut self, changes: Vec<Change>) -> bool {
        let news = changes.iter().any(|change| match change {
            Change::Put(object) => self.state.get(&object.key()).as_ref() != Some(object),
            Change::Delete(key) => self.state.get(key).is_some(),
        });
        let Version { incarnation, sequence } = self.at.version;
        news && self.apply(Version { incarnation, sequence: sequence + 1 }.into(), changes)
    }

    /// What somebody misses who has this version.
    pub fn since(&self, known: Option<At>) -> Since {
        let Some(known) = known else { return Since::Snapshot(self.snapshot()) };
        if known == self.at || known.version > self.at.version {
            return Since::Nothing;
        }
        if !self.passed.contains(&known) {
            return Since::Snapshot(self.snapshot());
        }
        let Version { incarnation, sequence } = known.version;
        let first = (Version { incarnation, sequence: sequence.saturating_add(1) }, Key::LabelSet(LEAST));
        let keys: BTreeSet<&Key> = self.log.range(first..).map(|(_, key)| key).collect();
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for key in keys {
            match self.state.get(key) {
                Some(object) => put.push(Change::Put(object)),
                None => gone.push(Change::Delete(key.clone())),
            }
        }
        put.extend(gone.into_iter().rev());
        Since::Changes { from: known, to: self.at, changes: put, names: Arc::clone(&self.names) }
    }

    /// How many changed keys are remembered.
    pub fn remembers(&self) -> usize {
        self.log.len()
    }
}

/// The least key.
const LEAST: LabelSetId = LabelSetId(0);

#[cfg(test)]
mod tests;
