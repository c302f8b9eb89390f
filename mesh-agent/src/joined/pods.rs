//! Pods of joined clusters, as policy sees them, while any policy asks for them: each address for itself, in a namespace that
//! is called [`foreign_namespace`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::clusters::{Claims, ClusterName, ClusterState, Key, Refusal};
use mesh_core::numbers::LABEL_CLUSTER;
use mesh_core::policy::model::{NamespaceFacts, ObjectName, PodFacts, foreign_namespace};

/// What policy is told of pods of joined clusters: the newest alone, until it is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foreign {
    /// Pod CIDRs of joined clusters; none: as they were.
    pub cidrs: Option<BTreeMap<ClusterName, Vec<IpNet>>>,
    /// Namespaces; none: gone.
    pub namespaces: BTreeMap<String, Option<NamespaceFacts>>,
    /// Pods; none: gone.
    pub pods: BTreeMap<ObjectName, Option<PodFacts>>,
    /// What is told is all there is; false: policy does not ask, or nobody knows yet.
    pub complete: bool,
}

impl Foreign {
    /// What waits; that it is all there is stays said.
    pub(crate) fn take(&mut self) -> Self {
        let complete = self.complete;
        Self { complete, ..std::mem::replace(self, Self { complete, ..Self::default() }) }
    }

    /// Takes in what was told later.
    pub fn extend(&mut self, later: Self) {
        let Self { cidrs, namespaces, pods, complete } = later;
        self.cidrs = cidrs.or(self.cidrs.take());
        self.namespaces.extend(namespaces);
        self.pods.extend(pods);
        self.complete = complete;
    }
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Pods {
    asked: bool,
    /// Where the pod of an address was told to be.
    pods: BTreeMap<ClusterName, BTreeMap<IpAddr, ObjectName>>,
    namespaces: BTreeMap<ClusterName, BTreeSet<String>>,
}

impl Pods {
    /// Whether policy asks. True: it begins or ceases to.
    pub(super) const fn ask(&mut self, asked: bool) -> bool {
        let news = self.asked != asked;
        self.asked = asked;
        news
    }

    /// Does anybody want to know?
    pub(super) const fn asked(&self) -> bool {
        self.asked
    }

    /// What changed with some objects of a cluster.
    pub(super) fn changed(
        &mut self,
        cluster: &ClusterName,
        state: &ClusterState,
        claims: &Claims,
        keys: &BTreeSet<Key>,
        told: &mut Foreign,
    ) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for key in keys {
            match key {
                Key::Endpoint(address) => refusals.extend(self.pod(cluster, state, claims, *address, told)),
                Key::Namespace(name) => self.namespace(cluster, state, name, told),
                // Whose pods' labels or places change is told by [`Self::all`].
                Key::LabelSet(_) | Key::Node(_) | Key::Service(_) | Key::Backend(..) => {}
            }
        }
        refusals
    }

    /// Everything of these clusters, and that there is no other.
    pub(super) fn all<'a>(
        &mut self,
        states: impl Iterator<Item = (&'a ClusterName, &'a ClusterState)>,
        claims: &Claims,
        told: &mut Foreign,
    ) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let nothing = ClusterState::default();
        let states: BTreeMap<&ClusterName, &ClusterState> = states.filter(|_| self.asked).collect();
        let known = self.pods.keys().chain(self.namespaces.keys());
        let gone: BTreeSet<ClusterName> = known.filter(|name| !states.contains_key(name)).cloned().collect();
        for (cluster, state) in states.into_iter().chain(gone.iter().map(|name| (name, &nothing))) {
            let namespaces =
                self.namespaces.get(cluster).into_iter().flatten().map(|name| name.as_str().into());
            let keys =
                namespaces.map(Key::Namespace).chain(state.namespaces.keys().cloned().map(Key::Namespace));
            let before = self.pods.get(cluster).into_iter().flatten().map(|(address, _)| *address);
            let addresses = before.chain(state.endpoints.keys().copied()).map(Key::Endpoint);
            let keys: BTreeSet<Key> = keys.chain(addresses).collect();
            refusals.extend(self.changed(cluster, state, claims, &keys, told));
        }
        refusals
    }

    fn namespace(
        &mut self,
        cluster: &ClusterName,
        state: &ClusterState,
        name: &Arc<str>,
        told: &mut Foreign,
    ) {
        let facts = state.namespaces.get(name).map(|labels| {
            let mut labels = labels.as_ref().clone();
            labels.insert(LABEL_CLUSTER.to_owned(), cluster.to_string());
            NamespaceFacts { labels, audit: false }
        });
        let known = self.namespaces.entry(cluster.clone()).or_default();
        if facts.is_some() {
            known.insert(name.to_string());
        } else if !known.remove(name.as_ref()) {
            return;
        }
        told.namespaces.insert(foreign_namespace(name, cluster), facts);
    }

    fn pod(
        &mut self,
        cluster: &ClusterName,
        state: &ClusterState,
        claims: &Claims,
        address: IpAddr,
        told: &mut Foreign,
    ) -> Option<Refusal> {
        let endpoint = state.endpoints.get(&address);
        let judged = endpoint.map(|endpoint| claims.endpoint(cluster, state, address, endpoint));
        let set = endpoint.filter(|_| matches!(judged, Some(Ok(()))));
        let set = set.and_then(|endpoint| state.label_sets.get(&endpoint.labels));
        let known = self.pods.entry(cluster.clone()).or_default();
        let name = set.map(|set| ObjectName {
            namespace: foreign_namespace(&set.namespace, cluster),
            name: address.to_string(),
        });
        let before = match &name {
            Some(name) => known.insert(address, name.clone()),
            None => known.remove(&address),
        };
        if let Some(before) = before.filter(|before| Some(before) != name.as_ref()) {
            told.pods.insert(before, None);
        }
        if let Some((name, set)) = name.zip(set) {
            let facts =
                PodFacts { labels: set.labels.clone(), ips: [address].into(), ports: set.ports.clone() };
            told.pods.insert(name, Some(facts));
        }
        judged.and_then(Result::err).map(|refusal| *refusal)
    }
}
