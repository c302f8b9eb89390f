//! Short forms of nodes' names: an endpoint's change is sent to every node of every cluster, and a name may have 253 bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::name::NodeName;
use sha2::{Digest as _, Sha256};

/// Names of the nodes of one cluster, by their short forms.
///
/// A short form depends on nothing but the name, so it outlives streams, restarts and versions. One that two names have is
/// not used.
#[derive(Clone, Debug, Default)]
pub struct NodeNames(BTreeMap<u64, Vec<Arc<NodeName>>>);

fn shorten(name: &NodeName) -> u64 {
    let digest = Sha256::digest(name.as_str().as_bytes());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl NodeNames {
    /// A node is there.
    pub fn insert(&mut self, name: &Arc<NodeName>) {
        let names = self.0.entry(shorten(name)).or_default();
        if !names.contains(name) {
            names.push(Arc::clone(name));
        }
    }

    /// A node is gone.
    pub fn remove(&mut self, name: &NodeName) {
        let short = shorten(name);
        if let Some(names) = self.0.get_mut(&short) {
            names.retain(|known| **known != *name);
            if names.is_empty() {
                self.0.remove(&short);
            }
        }
    }

    /// The short form of a node that is there, and alone with it.
    pub fn short(&self, name: &NodeName) -> Option<u64> {
        let short = shorten(name);
        self.resolve(short).filter(|found| ***found == *name).map(|_| short)
    }

    /// Whose short form it is.
    pub fn resolve(&self, short: u64) -> Option<&Arc<NodeName>> {
        match self.0.get(&short)?.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }
}
