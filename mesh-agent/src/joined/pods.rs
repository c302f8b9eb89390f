//! Pods of joined clusters, as policy sees them: those that policies ask for, each address for itself, in a namespace that is
//! called [`foreign_namespace`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::clusters::{Claims, ClusterName, ClusterState, Key, LabelSet, LabelSetId, Reach, Refusal};
use mesh_core::policy::compile::AskedClusters;
use mesh_core::policy::model::{
    NamespaceFacts, ObjectName, PodFacts, foreign_namespace, foreign_namespace_labels,
};

use super::SENTENCES;

/// Pods of joined clusters that policy is told of at most: half of what the data path's map of addresses holds, which has to
/// hold those of the own cluster, too.
const MAX_PODS: usize = 65_536;

/// What policy is told of pods of joined clusters: the newest alone, until it is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foreign {
    /// Pod CIDRs of joined clusters and which nodes of them are peers; none: as they were.
    pub reach: Option<Arc<BTreeMap<ClusterName, Reach>>>,
    /// Namespaces; none: gone.
    pub namespaces: BTreeMap<String, Option<NamespaceFacts>>,
    /// Pods; none: gone.
    pub pods: BTreeMap<ObjectName, Option<PodFacts>>,
    /// For this what is told is all there is; none: nobody knows yet.
    pub complete: Option<AskedClusters>,
}

impl Foreign {
    /// What waits; that it is all there is stays said.
    pub(crate) fn take(&mut self) -> Self {
        let complete = self.complete.clone();
        std::mem::replace(self, Self { complete, ..Self::default() })
    }

    /// Takes in what was told later.
    pub fn extend(&mut self, later: Self) {
        let Self { reach, namespaces, pods, complete } = later;
        self.reach = reach.or(self.reach.take());
        self.namespaces.extend(namespaces);
        self.pods.extend(pods);
        self.complete = complete;
    }
}

/// What was told so far.
#[derive(Debug)]
pub(super) struct Pods {
    /// [`MAX_PODS`]; tests need fewer.
    pub(super) limit: usize,
    asked: AskedClusters,
    /// Where the pod of an address was told to be.
    pods: BTreeMap<ClusterName, BTreeMap<IpAddr, ObjectName>>,
    /// How many these are.
    told: usize,
    /// There was no room for one.
    full: bool,
    /// Those that are not believed, the first few.
    refused: BTreeMap<(ClusterName, IpAddr), Refusal>,
    /// There are more.
    more_refused: bool,
    /// These are others than [`Self::refused`] has said.
    unsaid: bool,
    namespaces: BTreeMap<ClusterName, BTreeSet<String>>,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            limit: MAX_PODS,
            asked: AskedClusters::default(),
            pods: BTreeMap::new(),
            told: 0,
            full: false,
            refused: BTreeMap::new(),
            more_refused: false,
            unsaid: false,
            namespaces: BTreeMap::new(),
        }
    }
}

/// One cluster, while it is gone through.
struct Source<'a> {
    cluster: &'a ClusterName,
    state: &'a ClusterState,
    claims: &'a Claims,
    /// Whether pods with these labels are asked for, as far as that was found out.
    meant: BTreeMap<LabelSetId, bool>,
}

impl Source<'_> {
    fn is_meant(&mut self, asked: &AskedClusters, id: LabelSetId) -> bool {
        if let Some(known) = self.meant.get(&id) {
            return *known;
        }
        let meant =
            asked.everybody() || self.state.label_sets.get(&id).is_some_and(|set| self.finds(asked, set));
        self.meant.insert(id, meant);
        meant
    }

    fn finds(&self, asked: &AskedClusters, set: &LabelSet) -> bool {
        // Of a namespace that is not known nobody can say who finds it.
        self.state.namespaces.get(set.namespace.as_str()).is_some_and(|labels| {
            let namespace = foreign_namespace(&set.namespace, self.cluster);
            asked.means(&namespace, &foreign_namespace_labels(labels, self.cluster), &set.labels)
        })
    }
}

impl Pods {
    /// Whom policy asks for. True: for others than before.
    pub(super) fn ask(&mut self, asked: AskedClusters) -> bool {
        let news = self.asked != asked;
        self.asked = asked;
        news
    }

    /// Whom anybody wants to know of.
    pub(super) const fn asked(&self) -> &AskedClusters {
        &self.asked
    }

    /// Is there room again, for those that policy is told of or for those that are refused, so that everything has to be gone
    /// through? Not for each that goes.
    pub(super) fn has_room_again(&self) -> bool {
        (self.full && self.told < self.limit - self.limit / 10)
            || (self.more_refused && self.refused.len() <= SENTENCES / 2)
    }

    /// What changed with some objects of a cluster.
    pub(super) fn changed(
        &mut self,
        cluster: &ClusterName,
        state: &ClusterState,
        claims: &Claims,
        keys: &BTreeSet<Key>,
        told: &mut Foreign,
    ) {
        let mut source = Source { cluster, state, claims, meant: BTreeMap::new() };
        // Other labels of a namespace: others of its pods are asked for.
        let whole = !self.asked.everybody() && keys.iter().any(|key| matches!(key, Key::Namespace(_)));
        if whole { self.whole(&mut source, told) } else { self.some(&mut source, keys, told) }
    }

    /// Pods that are not believed, the first few, and why.
    pub(super) fn refused(&mut self) -> impl Iterator<Item = &Refusal> {
        self.unsaid = false;
        self.refused.values()
    }

    /// Are more refused than [`Self::refused`] says?
    pub(super) const fn has_more_refused(&self) -> bool {
        self.more_refused
    }

    /// Are other pods refused than was said?
    pub(super) const fn has_unsaid(&self) -> bool {
        self.unsaid
    }

    fn some(&mut self, source: &mut Source<'_>, keys: &BTreeSet<Key>, told: &mut Foreign) {
        for key in keys {
            match key {
                Key::Endpoint(address) => {
                    let refusal = self.pod(source, *address, told);
                    self.refuse(source.cluster, *address, refusal);
                }
                Key::Namespace(name) => self.namespace(source, name, told),
                // Whose pods' labels or places change is told by [`Self::all`].
                Key::LabelSet(_) | Key::Node(_) | Key::Service(_) | Key::Backend(..) => {}
            }
        }
    }

    fn refuse(&mut self, cluster: &ClusterName, address: IpAddr, refusal: Option<Refusal>) {
        if refusal.is_none() && self.refused.is_empty() {
            return;
        }
        let place = (cluster.clone(), address);
        self.unsaid |= match refusal {
            Some(refusal) if self.refused.len() < SENTENCES || self.refused.contains_key(&place) => {
                self.refused.get(&place) != Some(&refusal) && {
                    self.refused.insert(place, refusal);
                    true
                }
            }
            Some(_) => !std::mem::replace(&mut self.more_refused, true),
            None => self.refused.remove(&place).is_some(),
        };
    }

    /// Everything of one cluster.
    fn whole(&mut self, source: &mut Source<'_>, told: &mut Foreign) {
        let (cluster, state) = (source.cluster, source.state);
        let known = self.namespaces.get(cluster).into_iter().flatten().map(|name| name.as_str().into());
        let namespaces = known.chain(state.namespaces.keys().cloned()).map(Key::Namespace);
        let known = self.pods.get(cluster).into_iter().flat_map(BTreeMap::keys).copied();
        let refused = self.refused.keys().filter(|(name, _)| name == cluster).map(|(_, address)| *address);
        let mut keys: BTreeSet<Key> = namespaces.chain(known.chain(refused).map(Key::Endpoint)).collect();
        let asked = &self.asked;
        let meant = state.endpoints.iter().filter(|(_, endpoint)| source.is_meant(asked, endpoint.labels));
        keys.extend(meant.map(|(address, _)| Key::Endpoint(*address)));
        self.some(source, &keys, told);
    }

    /// Everything of these clusters, and that there is no other.
    pub(super) fn all<'a>(
        &mut self,
        states: impl Iterator<Item = (&'a ClusterName, &'a ClusterState)>,
        claims: &Claims,
        told: &mut Foreign,
    ) {
        let (before, unsaid) = (std::mem::take(&mut self.refused), self.unsaid);
        let before = (before, std::mem::take(&mut self.more_refused));
        let nothing = ClusterState::default();
        let states: BTreeMap<&ClusterName, &ClusterState> = states.filter(|_| !self.asked.nobody()).collect();
        self.full = false;
        let known = self.pods.keys().chain(self.namespaces.keys());
        let gone: BTreeSet<ClusterName> = known.filter(|name| !states.contains_key(name)).cloned().collect();
        // First those that go: they make room.
        for (cluster, state) in gone.iter().map(|name| (name, &nothing)).chain(states) {
            let mut source = Source { cluster, state, claims, meant: BTreeMap::new() };
            self.whole(&mut source, told);
        }
        self.unsaid = unsaid || (&self.refused, self.more_refused) != (&before.0, before.1);
    }

    fn namespace(&mut self, source: &Source<'_>, name: &Arc<str>, told: &mut Foreign) {
        let (cluster, state) = (source.cluster, source.state);
        let facts = state
            .namespaces
            .get(name)
            .map(|labels| NamespaceFacts { labels: foreign_namespace_labels(labels, cluster), audit: false });
        let known = self.namespaces.entry(cluster.clone()).or_default();
        if facts.is_some() {
            known.insert(name.to_string());
        } else if !known.remove(name.as_ref()) {
            return;
        }
        told.namespaces.insert(foreign_namespace(name, cluster), facts);
    }

    fn pod(&mut self, source: &mut Source<'_>, address: IpAddr, told: &mut Foreign) -> Option<Refusal> {
        let endpoint = source.state.endpoints.get(&address);
        let endpoint = endpoint.filter(|endpoint| source.is_meant(&self.asked, endpoint.labels));
        let Source { cluster, state, claims, .. } = *source;
        let judged = endpoint.map(|endpoint| claims.endpoint(cluster, state, address, endpoint));
        let set = endpoint.filter(|_| matches!(judged, Some(Ok(()))));
        let set = set.and_then(|endpoint| state.label_sets.get(&endpoint.labels));
        let known = self.pods.entry(cluster.clone()).or_default();
        let full = set.is_some() && self.told >= self.limit && !known.contains_key(&address);
        self.full |= full;
        let set = set.filter(|_| !full);
        let name = set.map(|set| ObjectName {
            namespace: foreign_namespace(&set.namespace, cluster),
            name: address.to_string(),
        });
        let before = match &name {
            Some(name) => known.insert(address, name.clone()),
            None => known.remove(&address),
        };
        self.told = self.told + usize::from(name.is_some()) - usize::from(before.is_some());
        if let Some(before) = before.filter(|before| Some(before) != name.as_ref()) {
            told.pods.insert(before, None);
        }
        if let Some((name, set)) = name.zip(set) {
            let facts =
                PodFacts { labels: set.labels.clone(), ips: [address].into(), ports: set.ports.clone() };
            told.pods.insert(name, Some(facts));
        }
        if full {
            return Some(Refusal::EndpointBeyondLimit {
                cluster: cluster.clone(),
                address,
                limit: self.limit,
            });
        }
        judged.and_then(Result::err).map(|refusal| *refusal)
    }
}
