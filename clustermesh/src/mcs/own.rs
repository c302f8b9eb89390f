//! What this cluster tells of its exports: the difference to what it has told, backend by backend.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::clusters::{Change, Key, Object};
use mesh_core::policy::model::ObjectName;

use super::world::Telling;

/// What has been told.
#[derive(Debug, Default)]
pub struct Own(BTreeMap<Arc<ObjectName>, Telling>);

impl Own {
    /// Names that are told of.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is nothing told?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A name is told so now; none: it is not exported. A service comes before its backends, and goes after them.
    pub fn set(&mut self, name: &ObjectName, telling: Option<Telling>) -> Vec<Change> {
        let Some(telling) = telling else {
            let Some((name, before)) = self.0.remove_entry(name) else { return Vec::new() };
            let backends = before.backends.into_keys().map(|at| Key::Backend(Arc::clone(&name), at));
            let mut gone: Vec<Change> = backends.map(Change::Delete).collect();
            gone.push(Change::Delete(Key::Service(name)));
            return gone;
        };
        let key =
            self.0.get_key_value(name).map_or_else(|| Arc::new(name.clone()), |(key, _)| Arc::clone(key));
        let before = self.0.get(&key);
        let mut changes = Vec::new();
        if before.is_none_or(|before| before.service != telling.service) {
            let service = Arc::clone(&telling.service);
            changes.push(Change::Put(Object::Service(Arc::clone(&key), service)));
        }
        for (at, backend) in &telling.backends {
            if before.and_then(|before| before.backends.get(at)) != Some(backend) {
                let backend = Arc::clone(backend);
                changes.push(Change::Put(Object::Backend(Arc::clone(&key), *at, backend)));
            }
        }
        let gone = before.into_iter().flat_map(|before| before.backends.keys());
        let gone = gone.filter(|at| !telling.backends.contains_key(*at));
        changes.extend(gone.map(|at| Change::Delete(Key::Backend(Arc::clone(&key), *at))));
        self.0.insert(key, telling);
        changes
    }
}

#[cfg(test)]
mod tests;
