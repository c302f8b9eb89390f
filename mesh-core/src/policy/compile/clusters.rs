//! Which pods of other clusters policies ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::normal::Policy;
use crate::policy::model::Labels;
use crate::policy::selector::PodMatch;

/// Pods of other clusters that policies ask for, by a selector of namespaces that mentions
/// [`LABEL_CLUSTER`](crate::numbers::LABEL_CLUSTER).
///
/// To all policies together, one that none of these selectors finds is the same as an address that nobody has, as long as they
/// only accept. So who is asked may keep silent about it, and about one that is not known yet nothing has to be assumed. Where
/// a rule denies or passes over pods of other clusters, all of them have to be told, as one that is not known could be
/// meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AskedClusters {
    selectors: Arc<BTreeSet<PodMatch>>,
    everybody: bool,
}

impl AskedClusters {
    /// No policy asks for any.
    pub fn nobody(&self) -> bool {
        self.selectors.is_empty()
    }

    /// All have to be told: some rule that denies or passes asks.
    pub const fn everybody(&self) -> bool {
        self.everybody
    }

    /// Has a pod to be told of? Its namespace is called as
    /// [`foreign_namespace`](crate::policy::model::foreign_namespace) does, and has the label of its cluster.
    pub fn means(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        self.everybody || self.selectors.iter().any(|pods| pods.matches(namespace, namespace_labels, labels))
    }
}

/// What each policy asks for, counted.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// How many rules have it, and how many of them do more than accept.
    selectors: BTreeMap<PodMatch, (usize, usize)>,
    asked: AskedClusters,
}

impl Asking {
    pub(super) const fn asked(&self) -> &AskedClusters {
        &self.asked
    }

    pub(super) fn insert(&mut self, policy: &Policy) {
        let mut any = false;
        for (pods, more) in policy.asks_for_clusters() {
            let counts = self.selectors.entry(pods.clone()).or_default();
            counts.0 += 1;
            counts.1 += usize::from(more);
            any = true;
        }
        self.renew(any);
    }

    pub(super) fn remove(&mut self, policy: &Policy) {
        let mut any = false;
        for (pods, more) in policy.asks_for_clusters() {
            let Some(counts) = self.selectors.get_mut(pods) else { continue };
            counts.0 -= 1;
            counts.1 -= usize::from(more);
            if counts.0 == 0 {
                self.selectors.remove(pods);
            }
            any = true;
        }
        self.renew(any);
    }

    fn renew(&mut self, any: bool) {
        if any {
            let everybody = self.selectors.values().any(|(_, more)| *more > 0);
            let selectors = Arc::new(self.selectors.keys().cloned().collect());
            self.asked = AskedClusters { selectors, everybody };
        }
    }
}
