//! What a watch has told, guarded against an API server that goes back in time: a list served stale, old events replayed
//! after a reconnect, a store restored from a backup.
//!
//! Whatever would take the cache back (an older version of an object, a list without an object that is known, a deletion
//! older than what is known) is not believed but *doubted*: the caller asks for that one object again, which is a
//! consistent read, and [`Cache::settle`]s it. So nothing is lost to a stale list, and a true restore still wins.

use std::collections::BTreeMap;

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
    /// Would this change nothing that matters: the same object again, as with every heartbeat in a Node's status?
    pub fn is_known(&self, told: &Told<K, V>) -> bool {
        match told {
            Told::Applied(key, version, value) => {
                self.known.get(key).is_some_and(|(known, present)| known <= version && present == value)
            }
            Told::Deleted(..) | Told::Relisted(_) => false,
        }
    }

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

    /// Takes in what was told. Returns the keys to ask for again.
    #[must_use = "the doubts have to be settled"]
    pub fn tell(&mut self, told: Told<K, V>) -> Vec<K> {
        match told {
            Told::Applied(key, version, value) => self.apply(key, version, value).into_iter().collect(),
            Told::Deleted(key, version) => {
                if self.known.get(&key).is_some_and(|(known, _)| version < *known) {
                    return vec![key];
                }
                self.known.remove(&key);
                Vec::new()
            }
            Told::Relisted(list) => {
                let mut doubts: Vec<K> =
                    self.known.keys().filter(|key| !list.iter().any(|(k, ..)| k == *key)).cloned().collect();
                for (key, version, value) in list {
                    doubts.extend(self.apply(key, version, value));
                }
                self.complete = true;
                doubts
            }
        }
    }

    fn apply(&mut self, key: K, version: u64, value: V) -> Option<K> {
        if self.known.get(&key).is_some_and(|(known, _)| version < *known) {
            return Some(key);
        }
        self.known.insert(key, (version, value));
        None
    }

    /// The answer to a doubt, from a consistent read: the object as it is, or that it is gone.
    pub fn settle(&mut self, key: K, found: Option<(u64, V)>) {
        match found {
            Some(found) => {
                self.known.insert(key, found);
            }
            None => {
                self.known.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
