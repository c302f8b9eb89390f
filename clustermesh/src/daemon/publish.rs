//! Where everything is brought together that the own cluster tells: from the watches of nodes and pods, and from whoever
//! exports services. Nothing is served before all of them know all.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::clusters::{Change, ClusterState, Key, Version};
use proto::clustermesh::{NodeNames, Unread, read_object, write_object};

use super::authority::Authority;
use super::hub::Hub;
use super::metrics::Metrics;

/// Takes what the own cluster tells. Clones share it.
#[derive(Clone, Debug)]
pub struct Publish(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Hub,
    metrics: Metrics,
    authority: Arc<Authority>,
    incarnation: u64,
    gathered: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    state: ClusterState,
    /// Who does not know all yet; none left: it is served.
    awaited: BTreeSet<&'static str>,
    begun: bool,
}

impl Publish {
    /// For the leader of this incarnation. `awaited`: who must have said that it knows all.
    pub fn new(
        hub: Hub,
        metrics: Metrics,
        authority: Arc<Authority>,
        incarnation: u64,
        awaited: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let gathered = Gathered { awaited: awaited.into_iter().collect(), ..Gathered::default() };
        Self(Arc::new(Inner { hub, metrics, authority, incarnation, gathered: Mutex::new(gathered) }))
    }

    /// Things changed; nodes are signed. What no other cluster would read is refused here, and what was told of it is taken back.
    pub fn changes(&self, changes: Vec<Change>) {
        let changes: Vec<Change> = changes.into_iter().map(|change| self.checked(change)).collect();
        let mut gathered = self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if gathered.begun {
            self.0.hub.advance(changes);
        } else {
            for change in changes {
                gathered.state.apply(change);
            }
        }
    }

    fn checked(&self, change: Change) -> Change {
        let Change::Put(object) = &change else { return change };
        let key = object.key();
        let signed = self.0.authority.sign_change(change).map_err(|error| error.to_string());
        let checked = signed.and_then(|change| match &change {
            Change::Put(object) => readable(object).map(|()| change),
            Change::Delete(_) => Ok(change),
        });
        checked.unwrap_or_else(|why| {
            self.0.metrics.refused("OwnObject");
            tracing::warn!(object = %key, err = why, "Other clusters are not told of an object");
            Change::Delete(key)
        })
    }

    /// `who` knows all of its part now.
    pub fn complete(&self, who: &'static str) {
        let mut gathered = self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.awaited.remove(who);
        if gathered.begun || !gathered.awaited.is_empty() {
            return;
        }
        gathered.begun = true;
        let state = std::mem::take(&mut gathered.state);
        let changes = ClusterState::default().changes_to(&state);
        let own = self.0.hub.read(|clusters| clusters.own().clone());
        let version = Version { incarnation: self.0.incarnation, sequence: 0 };
        self.0.hub.changed(&own, version.into(), changes);
        tracing::info!(cluster = %own, objects = state.len(), incarnation = self.0.incarnation, "The own cluster is served");
    }
}

/// Would another cluster read it?
pub(crate) fn readable(object: &mesh_core::clusters::Object) -> Result<(), String> {
    let names = NodeNames::default();
    match read_object(write_object(object, &names), &names) {
        Ok(read) if read == *object => Ok(()),
        Ok(_) | Err(Unread::UnknownKind) => Err("it cannot be told as it is".to_owned()),
        Err(Unread::Refused { error, .. }) => Err(error.to_string()),
    }
}

/// Changes of different keys in the order in which they are told.
pub(crate) fn in_order(mut changes: Vec<Change>) -> Vec<Change> {
    // Keys are ordered by kind: what is referred to comes first, and goes last.
    changes.sort_by(|a, b| match (a, b) {
        (Change::Put(a), Change::Put(b)) => a.key().cmp(&b.key()),
        (Change::Put(_), Change::Delete(_)) => std::cmp::Ordering::Less,
        (Change::Delete(_), Change::Put(_)) => std::cmp::Ordering::Greater,
        (Change::Delete(a), Change::Delete(b)) => Key::cmp(b, a),
    });
    changes
}
