//! What the watches and the CNI server have for the thread that decides policy: changes by object, the newest alone.
//!
//! Bounded by the number of objects, however far behind the reader is: a second change of an object takes the place of
//! the first. Everything that waits is taken at once, so that what comes together is decided together.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::name::NodeName;
use mesh_core::policy::model::{ClusterNetworkPolicySpec, NamespaceFacts, NetworkPolicySpec, ObjectName};
use mesh_core::service::model::{EndpointSliceFacts, ServiceFacts};

use crate::cache::Cache;
use crate::facts::pod::{OwnPod, RemotePod};
use crate::facts::{Decoded, NodeSeen};
use crate::joined::Foreign;
use crate::policy::Request;

/// Changes of one kind of object.
#[derive(Debug)]
pub struct Pending<K, V> {
    /// Objects as they are now; none: gone.
    pub changes: BTreeMap<K, Option<V>>,
    /// A complete list has been seen.
    pub synced: bool,
}

impl<K, V> Default for Pending<K, V> {
    fn default() -> Self {
        Self { changes: BTreeMap::new(), synced: false }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Pending<K, V> {
    /// Takes in what changed in a cache.
    pub(super) fn put(&mut self, cache: &Cache<K, V>, keys: &[K]) {
        for key in keys {
            self.changes.insert(key.clone(), cache.get(key).cloned());
        }
        self.synced |= cache.complete();
    }

    fn take(&mut self) -> Self {
        Self { changes: std::mem::take(&mut self.changes), synced: self.synced }
    }
}

/// Everything that waits.
#[derive(Debug, Default)]
pub struct Mail {
    /// Namespaces by name.
    pub namespaces: Pending<String, Arc<NamespaceFacts>>,
    /// Nodes.
    pub nodes: Pending<NodeName, Arc<NodeSeen>>,
    /// Metadata of all pods.
    pub pods: Pending<ObjectName, Arc<RemotePod>>,
    /// This node's pods.
    pub own: Pending<ObjectName, Arc<OwnPod>>,
    /// NetworkPolicies.
    pub policies: Pending<ObjectName, Decoded<NetworkPolicySpec>>,
    /// ClusterNetworkPolicies.
    pub cluster: Pending<String, Decoded<ClusterNetworkPolicySpec>>,
    /// Services.
    pub services: Pending<ObjectName, Decoded<ServiceFacts>>,
    /// EndpointSlices.
    pub slices: Pending<ObjectName, Decoded<EndpointSliceFacts>>,
    /// Pods that were looked up because somebody saw an address that nobody had told of.
    pub found: BTreeMap<ObjectName, Arc<RemotePod>>,
    /// Pods of joined clusters.
    pub foreign: Foreign,
    /// What the CNI server and others want.
    pub requests: Vec<Request>,
    /// When the oldest of the changes came.
    pub since: Option<Instant>,
    rung: bool,
}

/// Where mail waits. Many write, one thread reads.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    bell: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        // Each write is whole; a panic elsewhere has not left half of one.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something in and wakes the reader.
    pub fn post(&self, put: impl FnOnce(&mut Mail)) {
        let mut mail = self.lock();
        put(&mut mail);
        mail.since.get_or_insert_with(Instant::now);
        mail.rung = true;
        self.bell.notify_one();
    }

    /// Everything that waits, at once if there is anything, else after `patience` at the latest.
    pub fn wait(&self, patience: Duration) -> Mail {
        let mail = self.lock();
        let silent = |mail: &mut Mail| !mail.rung;
        let waited = self.bell.wait_timeout_while(mail, patience, silent);
        let mut mail = waited.unwrap_or_else(PoisonError::into_inner).0;
        mail.rung = false;
        Mail {
            namespaces: mail.namespaces.take(),
            nodes: mail.nodes.take(),
            pods: mail.pods.take(),
            own: mail.own.take(),
            policies: mail.policies.take(),
            cluster: mail.cluster.take(),
            services: mail.services.take(),
            slices: mail.slices.take(),
            foreign: mail.foreign.take(),
            found: std::mem::take(&mut mail.found),
            requests: std::mem::take(&mut mail.requests),
            since: mail.since.take(),
            rung: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Told;

    #[test]
    fn only_the_newest_change_of_an_object_waits() {
        let mailbox = Mailbox::default();
        let mut cache = Cache::default();
        let facts = |audit| Arc::new(NamespaceFacts { audit, ..NamespaceFacts::default() });
        for (version, audit) in [(1, true), (2, false)] {
            let keys = cache.tell(Told::Applied("blue".to_owned(), version, facts(audit))).changed;
            mailbox.post(|mail| mail.namespaces.put(&cache, &keys));
        }
        let mail = mailbox.wait(Duration::ZERO);
        assert_eq!(mail.namespaces.changes, BTreeMap::from([("blue".to_owned(), Some(facts(false)))]));
        assert!(!mail.namespaces.synced && mail.since.is_some());
        let keys = cache.tell(Told::Relisted(vec![])).doubts;
        assert!(cache.settle(keys[0].clone(), None));
        mailbox.post(|mail| mail.namespaces.put(&cache, &keys));
        let mail = mailbox.wait(Duration::from_secs(60));
        assert_eq!(mail.namespaces.changes, BTreeMap::from([("blue".to_owned(), None)]));
        assert!(mail.namespaces.synced);
        let mail = mailbox.wait(Duration::ZERO);
        assert!(mail.namespaces.changes.is_empty() && mail.namespaces.synced, "synced stays");
        assert!(mail.since.is_none());
    }

    #[test]
    fn who_waits_is_woken_by_what_is_posted() {
        let mailbox = Arc::new(Mailbox::default());
        let poster = Arc::clone(&mailbox);
        let posting = std::thread::spawn(move || poster.post(|mail| mail.namespaces.synced = true));
        let begun = Instant::now();
        assert!(mailbox.wait(Duration::from_secs(60)).namespaces.synced);
        assert!(begun.elapsed() < Duration::from_secs(30));
        posting.join().unwrap();
    }
}
