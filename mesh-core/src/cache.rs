//! What a watch has told, guarded against an API server that goes back in time: a list served stale, old events replayed
//! after a reconnect, a store restored from a backup.
//!
//! Whatever would take the cache back (an older version of an object, a list without an object that is known, a deletion
//! older than what is known) is not believed but *doubted*: the caller asks for that one object again, which is a
//! consistent read, and [`Cache::settle`]s it. So nothing is lost to a stale list, and a true restore still wins.

use std::collections::{BTreeMap, BTreeSet};

/// What came from a watch.
#[derive(Clone, Debug)]
pub enum Told<K, V> {
    /// An object is there, in this version.
    Applied(K, u64, V),
    /// An object is gone as of this version.
    Deleted(K, u64),
    /// The complete list.
    Relisted(Vec<(K, u64, V)>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<K> {
    /// Objects that are there, or are as they are, only now, or no longer.
    pub changed: Vec<K>,
    /// Objects to ask for again.
    pub doubts: Vec<K>,
}

impl<K> Default for Outcome<K> {
    fn default() -> Self {
        Self { changed: Vec::new(), doubts: Vec::new() }
    }
}

/// Objects by key, with their versions (`metadata.resourceVersion`, comparable numbers since KEP-5504).
#[derive(Clone, Debug)]
pub struct Cache<K, V> {
    known: BTreeMap<K, (u64, V)>,
    complete: bool,
}

impl<K: Ord + Clone, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), complete: false }
    }
}

impl<K: Ord + Clone, V: PartialEq> Cache<K, V> {
    /// Has a complete list been seen?
    pub const fn complete(&self) -> bool {
        self.complete
    }

    /// The objects.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.known.iter().map(|(key, (_, value))| (key, value))
    }

    /// One object.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key).map(|(_, value)| value)
    }

    /// Takes in what was told. The same object again, as with every heartbeat in a Node's status, changes nothing.
    #[must_use = "the doubts have to be settled"]
    pub fn tell(&mut self, told: Told<K, V>) -> Outcome<K> {
        let mut outcome = Outcome::default();
        match told {
            Told::Applied(key, version, value) => self.apply(key, version, value, &mut outcome),
            Told::Deleted(key, version) => {
                if self.known.get(&key).is_some_and(|(known, _)| version < *known) {
                    outcome.doubts.push(key);
                } else if self.known.remove(&key).is_some() {
                    outcome.changed.push(key);
                }
            }
            Told::Relisted(list) => {
                let listed: BTreeSet<&K> = list.iter().map(|(key, ..)| key).collect();
                outcome.doubts.extend(self.known.keys().filter(|key| !listed.contains(key)).cloned());
                for (key, version, value) in list {
                    self.apply(key, version, value, &mut outcome);
                }
                self.complete = true;
            }
        }
        outcome
    }

    fn apply(&mut self, key: K, version: u64, value: V, outcome: &mut Outcome<K>) {
        match self.known.get_mut(&key) {
            Some((known, _)) if version < *known => outcome.doubts.push(key),
            Some(present) => {
                present.0 = version;
                if present.1 != value {
                    present.1 = value;
                    outcome.changed.push(key);
                }
            }
            None => {
                self.known.insert(key.clone(), (version, value));
                outcome.changed.push(key);
            }
        }
    }

    /// The answer to a doubt, from a consistent read: the object as it is, or that it is gone. True: that is news.
    pub fn settle(&mut self, key: K, found: Option<(u64, V)>) -> bool {
        match found {
            Some((version, value)) => {
                let news = self.get(&key) != Some(&value);
                self.known.insert(key, (version, value));
                news
            }
            None => self.known.remove(&key).is_some(),
        }
    }

    /// There is no such resource any more, as its server says: nothing is known of it, and that is all there is.
    pub fn clear(&mut self) -> Vec<K> {
        self.complete = true;
        std::mem::take(&mut self.known).into_keys().collect()
    }
}

#[cfg(test)]
mod tests;
