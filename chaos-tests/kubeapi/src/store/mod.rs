//! Objects, their versions, and the events of the recent past.
//!
//! One mutex guards everything: a write is one step, its version is one number for all resources (as an etcd
//! revision), and what a list shows is what a watch from its version continues.

mod compose;
mod direct;
mod event;
mod lifecycle;
mod list;
mod write;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) use event::{Event, EventKind, Stored, frame, partial};
pub(crate) use list::expired_token;
pub(crate) use list::{ListPage, ListQuery};
pub(crate) use write::{DeleteOptions, Deleted, Target, Write};

use crate::admission::{BINDINGS, POLICIES, Policies};
use crate::auth::Admission;
use crate::cluster_ips;
use crate::error::ApiError;
use crate::persist::{Loaded, Log, Record};
use crate::rbac;
use crate::resource::{self, Registry, Resource};
use crate::util::{self, lock};

/// Namespace (empty for cluster scope) and name.
pub(crate) type Key = (String, String);

/// What a running watch may lag behind by before it is closed, even if new watches must be closer.
const LIVE_WATCH_EVENTS: usize = 4096;

/// All objects of one resource.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) objects: BTreeMap<Key, Arc<Stored>>,
    /// Events in order of their versions, bounded.
    ring: VecDeque<Arc<Event>>,
    /// Version of the newest event that has left the ring.
    floor: u64,
    /// Rings at each change; carries the version.
    bell: watch::Sender<u64>,
}

impl Collection {
    fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), ring: VecDeque::new(), floor, bell: watch::Sender::new(floor) }
    }
}

pub(crate) struct State {
    pub(crate) rv: u64,
    /// Moves when the past is replaced, which ends all watches.
    epoch: u64,
    pub(crate) registry: Registry,
    collections: BTreeMap<String, Collection>,
    log: Option<Log>,
    pages: list::Pages,
    window: usize,
    pub(crate) admission: Option<Admission>,
    pub(crate) policies: Policies,
    /// Out of which Services get addresses.
    service_cidrs: Vec<IpNet>,
}

/// The objects of the API, for direct access from tests: the same code path, checks and events as HTTP.
#[derive(Clone)]
pub struct Store(Arc<Mutex<State>>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("resource_version", &self.resource_version()).finish_non_exhaustive()
    }
}

/// All objects at one version, for [`Store::restore`] and for stale reads.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) rv: u64,
    registry: Registry,
    pub(crate) objects: BTreeMap<String, BTreeMap<Key, Arc<Stored>>>,
}

impl Snapshot {
    /// The version at which it was taken.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.rv
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("resource_version", &self.rv).finish_non_exhaustive()
    }
}

/// Where a watch has got to.
#[derive(Debug)]
pub(crate) struct Cursor {
    key: String,
    pub(crate) rv: u64,
    epoch: u64,
    pub(crate) bell: watch::Receiver<u64>,
}

/// What a watch finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// Events to send; may be none. The cursor has moved behind them.
    Events(Vec<Arc<Event>>),
    /// The watcher is too slow: events it needs are gone.
    TooOld,
    /// The past was replaced.
    Closed,
}

impl Store {
    /// A store with what a fresh cluster has, or with what `loaded` brings.
    pub(crate) fn new(
        window: usize,
        loaded: Option<Loaded>,
        log: Option<Log>,
        admission: Option<Admission>,
        service_cidrs: Vec<IpNet>,
    ) -> Result<Self, ApiError> {
        let mut state = State {
            rv: 1,
            epoch: 0,
            registry: Registry::builtin(),
            collections: BTreeMap::new(),
            log: None,
            pages: list::Pages::default(),
            window,
            admission: None,
            policies: Policies::default(),
            service_cidrs,
        };
        if let Some(loaded) = loaded {
            state.load(loaded)?;
        }
        state.log = log;
        let kubernetes = (String::new(), "kubernetes".to_owned());
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            if state.namespace(name).is_none() {
                let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                let target = Target::of("namespaces", "", name);
                state.create(&target, object, &Write::internal())?;
            }
        }
        if !state.service_cidrs.is_empty()
            && state.object("servicecidrs.networking.k8s.io", &kubernetes).is_none()
        {
            let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": state.service_cidrs}});
            let target = Target::of("servicecidrs.networking.k8s.io", "", "kubernetes");
            state.create(&target, object, &Write::internal())?;
        }
        state.admission = admission;
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// The newest version.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.lock().rv
    }

    /// Everything as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot {
            rv: state.rv,
            registry: state.registry.clone(),
            objects: state.collections.iter().map(|(k, c)| (k.clone(), c.objects.clone())).collect(),
        }
    }

    /// Goes back to `snapshot`, as a restore of etcd does: versions go backwards, the past is forgotten and all
    /// watches end.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let mut state = self.lock();
        let objects = snapshot.objects.clone();
        state.replace(snapshot.rv, snapshot.registry.clone(), objects)?;
        Ok(())
    }

    /// Starts a watch of `key` after version `rv`. `Expired` when events since then are gone.
    pub(crate) fn cursor(&self, key: &str, rv: u64) -> Result<Cursor, ApiError> {
        let mut state = self.lock();
        let (current, window) = (state.rv, state.window);
        if rv > current {
            return Err(ApiError::FutureVersion { requested: rv, current });
        }
        let epoch = state.epoch;
        let collection = state.collection(key);
        // The newest event outside the window is the oldest version from which a watch may start.
        let outside = collection.ring.len().checked_sub(window + 1).and_then(|at| collection.ring.get(at));
        let oldest = outside.map_or(collection.floor, |e| e.rv);
        if rv < oldest {
            return Err(ApiError::Expired {
                message: format!("too old resource version: {rv} ({})", oldest + 1),
            });
        }
        Ok(Cursor { key: key.to_owned(), rv, epoch, bell: collection.bell.subscribe() })
    }

    /// At most `max` events after the cursor.
    pub(crate) fn next(&self, cursor: &mut Cursor, max: usize) -> Next {
        let mut state = self.lock();
        if state.epoch != cursor.epoch {
            return Next::Closed;
        }
        let current = state.rv;
        cursor.bell.borrow_and_update();
        let collection = state.collection(&cursor.key);
        if cursor.rv < collection.floor {
            return Next::TooOld;
        }
        let start = collection.ring.partition_point(|e| e.rv <= cursor.rv);
        let events: Vec<_> = collection.ring.iter().skip(start).take(max).cloned().collect();
        cursor.rv = match events.last() {
            Some(last) if events.len() == max => last.rv,
            Some(_) | None => current,
        };
        Next::Events(events)
    }

    /// The last `count` events of `key` up to `rv`: what a replay fault sends again.
    pub(crate) fn recent(&self, key: &str, rv: u64, count: usize) -> Vec<Arc<Event>> {
        let mut state = self.lock();
        let ring = &state.collection(key).ring;
        let end = ring.partition_point(|e| e.rv <= rv);
        ring.iter().take(end).skip(end.saturating_sub(count)).cloned().collect()
    }
}

impl rbac::Roles for State {
    fn role(&self, key: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.object(key, &(namespace.to_owned(), name.to_owned())).map(|stored| &stored.value)
    }

    fn bindings(&self, key: &str, namespace: &str) -> impl Iterator<Item = &Value> {
        let all = self.collections.get(key).into_iter().flat_map(|collection| &collection.objects);
        all.filter(move |((of, _), _)| of == namespace).map(|(_, stored)| &stored.value)
    }
}

impl State {
    pub(crate) fn collection(&mut self, key: &str) -> &mut Collection {
        self.collections.entry(key.to_owned()).or_insert_with(|| Collection::new(0))
    }

    pub(crate) fn object(&self, key: &str, object: &Key) -> Option<&Arc<Stored>> {
        self.collections.get(key)?.objects.get(object)
    }

    /// Gives a Service its addresses; one that had some keeps them.
    pub(crate) fn allocate(
        &self,
        target: &Key,
        resource: &Resource,
        old: &Value,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        if self.service_cidrs.is_empty() || resource.key() != "services" {
            return Ok(());
        }
        for field in ["clusterIP", "clusterIPs"] {
            if object["spec"][field].is_null() && old["spec"][field] != Value::Null {
                object["spec"][field] = old["spec"][field].clone();
            }
        }
        let others = self.collections.get("services").into_iter().flat_map(|all| &all.objects);
        let others = others.filter(|(key, _)| *key != target);
        let taken = others.flat_map(|(_, stored)| cluster_ips::of(&stored.value)).collect();
        cluster_ips::complete(object, &self.service_cidrs, &taken)
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Arc<Stored>> {
        self.object("namespaces", &(String::new(), name.to_owned()))
    }

    fn load(&mut self, loaded: Loaded) -> Result<(), ApiError> {
        self.rv = loaded.rv.max(1);
        for (key, object, value) in loaded.objects {
            let rv = value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(1);
            self.note(&key, &object, Some(&value))?;
            let floor = loaded.rv;
            let collection = self.collections.entry(key).or_insert_with(|| Collection::new(floor));
            collection.objects.insert(object, Arc::new(Stored::new(value, rv)));
        }
        for key in self.registry.all().map(|r| r.key()).collect::<Vec<_>>() {
            let floor = loaded.rv;
            self.collections.entry(key).or_insert_with(|| Collection::new(floor));
        }
        for record in loaded.tail {
            self.note(&record.resource, &record.key, record.object.as_ref())?;
            self.rv = record.rv;
            if let Some((twin, object)) = event::twin(&record.resource, record.object.as_ref()) {
                self.apply(Record { resource: twin.to_owned(), object, ..record.clone() });
            }
            self.apply(record);
        }
        Ok(())
    }

    /// Forgets the past.
    fn replace(
        &mut self,
        rv: u64,
        registry: Registry,
        mut objects: BTreeMap<String, BTreeMap<Key, Arc<Stored>>>,
    ) -> Result<(), ApiError> {
        self.rv = rv;
        self.epoch += 1;
        self.registry = registry;
        self.pages = list::Pages::default();
        self.policies = Policies::default();
        for key in [POLICIES, BINDINGS] {
            for (object, stored) in objects.get(key).into_iter().flatten() {
                self.policies.note(key, &object.1, Some(&stored.value))?;
            }
        }
        let names: BTreeSet<String> = self.collections.keys().chain(objects.keys()).cloned().collect();
        for name in names {
            let collection = self.collection(&name);
            collection.objects = objects.remove(&name).unwrap_or_default();
            collection.ring.clear();
            collection.floor = rv;
            collection.bell.send_replace(rv);
        }
        self.compact_log(true)
    }

    /// Books one change: the log first, so that what a client was told survives a restart.
    fn commit(
        &mut self,
        resource: &Resource,
        key: Key,
        object: Option<Value>,
    ) -> Result<Arc<Stored>, ApiError> {
        let name = resource.key();
        let rv = self.rv + 1;
        self.note(&name, &key, object.as_ref())?;
        let object = object.map(|mut o| {
            o["metadata"]["resourceVersion"] = json!(rv.to_string());
            o
        });
        let twin = event::twin(&name, object.as_ref());
        let record = Record { rv, resource: name, key, object };
        if let Some(log) = &mut self.log {
            log.append(&record).map_err(|e| ApiError::Internal {
                message: format!("could not write the log of the state directory: {e}"),
            })?;
        }
        self.rv = rv;
        if let Some((twin, object)) = twin {
            let twin = Record { rv, resource: twin.to_owned(), key: record.key.clone(), object };
            self.apply(twin);
        }
        let stored = self.apply(record);
        self.compact_log(false)?;
        Ok(stored)
    }

    /// Applies a booked change to the objects and the ring.
    fn apply(&mut self, record: Record) -> Arc<Stored> {
        let window = self.window.max(LIVE_WATCH_EVENTS);
        let collection = self.collection(&record.resource);
        let rv = record.rv;
        let old = collection.objects.get(&record.key).cloned();
        let (kind, stored) = match record.object {
            Some(value) => {
                let stored = Arc::new(Stored::new(value, rv));
                collection.objects.insert(record.key, Arc::clone(&stored));
                (if old.is_some() { EventKind::Modified } else { EventKind::Added }, stored)
            }
            None => {
                collection.objects.remove(&record.key);
                // The last state, with the version of the deletion.
                let mut value = old.as_ref().map_or(Value::Null, |o| o.value.clone());
                if value.is_object() {
                    value["metadata"]["resourceVersion"] = json!(rv.to_string());
                }
                (EventKind::Deleted, Arc::new(Stored::new(value, rv)))
            }
        };
        collection.ring.push_back(Arc::new(Event::new(rv, kind, Arc::clone(&stored), old)));
        while collection.ring.len() > window {
            if let Some(gone) = collection.ring.pop_front() {
                collection.floor = gone.rv;
            }
        }
        collection.bell.send_replace(rv);
        stored
    }

    /// A CRD that comes, changes or goes changes what is served; a policy, what passes.
    fn note(&mut self, resource: &str, key: &Key, object: Option<&Value>) -> Result<(), ApiError> {
        self.policies.note(resource, &key.1, object)?;
        if resource != "customresourcedefinitions.apiextensions.k8s.io" {
            return Ok(());
        }
        match object {
            Some(crd) => self.registry.insert(resource::custom(crd)?),
            None => self.registry.remove(&key.1),
        }
        Ok(())
    }

    fn compact_log(&mut self, force: bool) -> Result<(), ApiError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if !force && !log.is_long() {
            return Ok(());
        }
        let objects = self.collections.iter().flat_map(|(name, c)| {
            c.objects.iter().map(move |(key, stored)| (name.as_str(), key, &stored.value))
        });
        log.snapshot(self.rv, objects).map_err(|e| ApiError::Internal {
            message: format!("could not write the snapshot of the state directory: {e}"),
        })
    }
}

/// The present, as `metav1.Time`.
pub(crate) fn now() -> String {
    util::rfc3339(jiff::Timestamp::now())
}

/// Monotonic time, for the age of list pages.
pub(crate) fn instant() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
