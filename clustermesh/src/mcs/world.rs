//! Everything that is known, folded object by object; and what it makes of one name.
//!
//! Whatever comes marks the names that it concerns; who asks for those ([`World::take_dirty`]) and judges them again
//! ([`World::judge`]) has everything up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::clusters::{Backend, Borders, Change, ClusterName, ExportedService, Key, Object, Refusal};
use mesh_core::ipam::Millis;
use mesh_core::mcs::{
    Decision, DerivedState, Endpoints, Export, Exports, Here, Leases, Own, Status, decide_one, derived_name,
};
use mesh_core::policy::model::ObjectName;
use mesh_core::prefix::Family;

use super::diff::{Hold, Observed};
use super::kind::Kind;
use super::problem::Problem;
use super::seen::{ExportSeen, ImportSeen, Seen, ServiceSeen, SliceSeen, Stamp, Unread};
use super::wire::{self, MAX_BACKENDS, MAX_SERVICES, WireRefusal};
use crate::told::Told;

/// Milliseconds for which a cluster may be silent before its endpoints leave services. Heard every few seconds, it may miss
/// several words and still be there; a client whose backends are gone waits no longer than this for others.
pub const LEASE: u64 = 30_000;
/// Leases for which a peer is awaited that has said nothing yet.
const FIRST_WORD: u64 = 4;
/// Leases after which a peer that has said nothing yet is taken to be gone for good: what others export of a name that it had
/// counts alone from then on.
const GIVEN_UP: u64 = 20;
/// Problems of one name that are kept.
const MAX_PROBLEMS: usize = 16;

/// What an administrator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this cluster.
    pub cluster: ClusterName,
    /// Families of its Service CIDRs; at least one.
    pub families: BTreeSet<Family>,
    /// Its pod CIDRs: what is outside is not exported.
    pub pod_cidrs: Vec<IpNet>,
    /// Milliseconds for which another cluster may be silent; [`LEASE`] is the default.
    pub lease: u64,
}

/// What one cluster has told.
#[derive(Clone, Debug, Default)]
struct Remote {
    services: BTreeMap<Arc<ObjectName>, Arc<ExportedService>>,
    backends: BTreeMap<Arc<ObjectName>, BTreeMap<IpAddr, Arc<Backend>>>,
    /// The first name that is too many.
    limit: Option<Arc<ObjectName>>,
}

impl Remote {
    /// Finds the limit anew; true: it is another one.
    fn measure(&mut self) -> bool {
        let many = self.services.len() > MAX_SERVICES;
        let limit = if many { self.services.keys().nth(MAX_SERVICES).cloned() } else { None };
        std::mem::replace(&mut self.limit, limit) != self.limit
    }

    fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys().chain(self.backends.keys()).map(AsRef::as_ref)
    }

    /// The name that changes with it.
    fn apply(&mut self, change: Change) -> Option<ObjectName> {
        match change {
            Change::Put(Object::Service(name, service)) => {
                let changed = ObjectName::clone(&name);
                self.services.insert(name, service);
                Some(changed)
            }
            Change::Put(Object::Backend(name, address, backend)) => {
                let changed = ObjectName::clone(&name);
                self.backends.entry(name).or_default().insert(address, backend);
                Some(changed)
            }
            Change::Delete(Key::Service(name)) => {
                self.services.remove(&name);
                Some(ObjectName::clone(&name))
            }
            Change::Delete(Key::Backend(name, address)) => {
                let all = self.backends.get_mut(&name)?;
                all.remove(&address);
                if all.is_empty() {
                    self.backends.remove(&name);
                }
                Some(ObjectName::clone(&name))
            }
            Change::Put(
                Object::LabelSet(..) | Object::Namespace(..) | Object::Node(..) | Object::Endpoint(..),
            )
            | Change::Delete(Key::LabelSet(_) | Key::Namespace(_) | Key::Node(_) | Key::Endpoint(_)) => None,
        }
    }
}

type Index = BTreeMap<ObjectName, BTreeSet<String>>;

/// The own API's objects. Those that are not read at all are in no map.
#[derive(Clone, Debug, Default)]
struct Api {
    complete: BTreeSet<Kind>,
    namespaces: BTreeSet<String>,
    exports: BTreeMap<ObjectName, ExportSeen>,
    imports: BTreeMap<ObjectName, ImportSeen>,
    services: BTreeMap<ObjectName, ServiceSeen>,
    slices: BTreeMap<ObjectName, SliceSeen>,
    /// Derived Services by import.
    derived: Index,
    /// Slices by Service, and ours by import.
    of_service: Index,
    of_import: Index,
}

fn unlist(index: &mut Index, name: &ObjectName, one: &str) {
    if let Some(all) = index.get_mut(name) {
        all.remove(one);
        if all.is_empty() {
            index.remove(name);
        }
    }
}

fn beside(name: &ObjectName, other: &str) -> ObjectName {
    ObjectName { namespace: name.namespace.clone(), name: other.to_owned() }
}

/// What a name has come to.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What there should be.
    pub decision: Decision,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// What other clusters may have of it.
    pub told: Option<Telling>,
    /// What must wait.
    pub hold: Hold,
}

/// What is told of an own export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The service.
    pub service: Arc<ExportedService>,
    /// Its backends.
    pub backends: BTreeMap<IpAddr, Arc<Backend>>,
}

/// Everything that is known.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    serving: bool,
    api: Api,
    borders: Option<Arc<Borders>>,
    /// Since when a cluster is a peer.
    peers: BTreeMap<ClusterName, Millis>,
    remote: BTreeMap<ClusterName, Remote>,
    leases: Leases,
    silent: BTreeSet<ClusterName>,
    /// Peers that have told nothing yet, and whose time to do so is not over.
    awaited: BTreeSet<ClusterName>,
    /// Peers that have told nothing for so long that nobody thinks they will.
    given_up: BTreeSet<ClusterName>,
    /// When [`World::tick`] was last.
    looked: Millis,
    dirty: BTreeSet<ObjectName>,
    /// Names that were judged and concerned us.
    judged: BTreeSet<ObjectName>,
}

impl World {
    /// Knows nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            leases: Leases::new(settings.lease),
            settings,
            serving: false,
            api: Api::default(),
            borders: None,
            peers: BTreeMap::new(),
            remote: BTreeMap::new(),
            silent: BTreeSet::new(),
            awaited: BTreeSet::new(),
            given_up: BTreeSet::new(),
            looked: Millis(0),
            dirty: BTreeSet::new(),
            judged: BTreeSet::new(),
        }
    }

    /// Are all kinds of the own API's objects known, and all peers? Before that nothing may be written.
    pub fn is_complete(&self) -> bool {
        self.borders.is_some() && self.api.complete.len() == Kind::ALL.len()
    }

    /// Is there nobody more to wait for before a name that is not known is denied?
    pub fn knows_all_names(&self) -> bool {
        self.is_complete() && self.awaited.is_empty()
    }

    /// Clusters whose endpoints do not count now.
    pub const fn silent(&self) -> &BTreeSet<ClusterName> {
        &self.silent
    }

    /// All objects of a kind are known.
    pub fn complete(&mut self, kind: Kind) {
        if self.api.complete.insert(kind) && self.is_complete() {
            self.all_again();
        }
    }

    /// This cluster's exports are served to others, or not any more.
    pub fn serving(&mut self, serving: bool) {
        if self.serving != serving {
            self.serving = serving;
            self.dirty.extend(self.api.exports.keys().cloned());
        }
    }

    /// Who the peers are and how far each reaches.
    pub fn borders(&mut self, borders: Arc<Borders>, now: Millis) {
        let before = self.borders.replace(borders);
        let Some(borders) = &self.borders else { return };
        if before.as_ref() == Some(borders) {
            return;
        }
        self.peers.retain(|cluster, _| borders.known(cluster).is_ok());
        for cluster in borders.clusters() {
            self.peers.entry(cluster.clone()).or_insert(now);
        }
        self.tick(now);
        self.all_again();
    }

    /// Judges all names again.
    pub fn all_again(&mut self) {
        let remote = self.remote.values().flat_map(Remote::names);
        let own = self.api.exports.keys().chain(self.api.imports.keys());
        let ours = self.api.derived.keys().chain(self.api.of_import.keys());
        self.dirty.extend(remote.chain(own).chain(ours).cloned());
    }

    /// What a cluster told.
    pub fn told(&mut self, told: Told, now: Millis) {
        match told {
            Told::Changed { cluster, changes, .. } => {
                let first = !self.remote.contains_key(&cluster);
                let remote = self.remote.entry(cluster.clone()).or_default();
                self.dirty.extend(changes.into_iter().filter_map(|change| remote.apply(change)));
                if remote.measure() {
                    self.dirty.extend(remote.names().cloned());
                }
                if first {
                    // Its time to be heard begins; what stood in for it does so no more.
                    self.leases.complete(&cluster, now);
                    self.peers.entry(cluster).or_insert(now);
                    self.all_again();
                    self.tick(now);
                }
            }
            Told::Heard { cluster } => {
                // "Up to date" is what the end of a snapshot says, too: so a silent cluster returns whole.
                if self.remote.contains_key(&cluster) {
                    self.leases.complete(&cluster, now);
                    self.tick(now);
                }
            }
            Told::Gone { cluster } => {
                let remote = self.remote.remove(&cluster).unwrap_or_default();
                self.leases.forget(&cluster);
                if self.borders.as_ref().is_none_or(|borders| borders.known(&cluster).is_err()) {
                    self.peers.remove(&cluster);
                }
                self.dirty.extend(remote.names().cloned());
                self.tick(now);
            }
            Told::Complete => {}
        }
    }

    /// Looks at the time: leases end.
    pub fn tick(&mut self, now: Millis) {
        self.looked = now;
        let silent = self.leases.silent(self.remote.keys(), now);
        for cluster in silent.symmetric_difference(&self.silent) {
            self.dirty.extend(self.remote.get(cluster).into_iter().flat_map(Remote::names).cloned());
        }
        self.silent = silent;
        let (mut awaited, mut given_up) = (BTreeSet::new(), BTreeSet::new());
        for (cluster, since) in self.peers.iter().filter(|(cluster, _)| self.is_mute(cluster)) {
            let [end_of_waiting, end_of_hope] = self.ends(*since);
            if now < end_of_waiting {
                awaited.insert(cluster.clone());
            } else if now >= end_of_hope {
                given_up.insert(cluster.clone());
            }
        }
        if (&awaited, &given_up) != (&self.awaited, &self.given_up) {
            (self.awaited, self.given_up) = (awaited, given_up);
            self.all_again();
        }
    }

    /// When a peer that tells nothing is not awaited any more, and when it is given up. Longer than a lease: a new leader hears from
    /// all clusters at once, and 200 of them took 40 s on two cores. What they have in services meanwhile is as the one before it
    /// left it.
    fn ends(&self, since: Millis) -> [Millis; 2] {
        [FIRST_WORD, GIVEN_UP]
            .map(|leases| Millis(since.0.saturating_add(self.settings.lease.saturating_mul(leases))))
    }

    /// A peer that has told nothing.
    fn is_mute(&self, cluster: &ClusterName) -> bool {
        self.peers.contains_key(cluster) && !self.remote.contains_key(cluster)
    }

    /// When [`Self::tick`] has something to do, if nothing comes: after the time at which it was last, which may be over.
    pub fn next_deadline(&self) -> Option<Millis> {
        let now = self.looked;
        let waiting = self.peers.iter().filter(|(cluster, _)| self.is_mute(cluster));
        let waiting = waiting.flat_map(|(_, since)| self.ends(*since)).filter(|end| *end > now);
        waiting.chain(self.leases.next_deadline(now)).min()
    }

    /// An object of the own API is so now; none: it is not there.
    pub fn object(&mut self, kind: Kind, name: &ObjectName, seen: Option<&Seen>) {
        match (kind, seen) {
            (Kind::Namespace, seen) => self.namespace(&name.name, seen.is_some()),
            (Kind::Export, Some(Seen::Export(seen))) => {
                self.api.exports.insert(name.clone(), seen.clone());
                self.dirty.insert(name.clone());
            }
            (Kind::Export, _) => {
                self.api.exports.remove(name);
                self.dirty.insert(name.clone());
            }
            (Kind::Import, Some(Seen::Import(seen))) => {
                self.api.imports.insert(name.clone(), ImportSeen::clone(seen));
                self.dirty.insert(name.clone());
            }
            (Kind::Import, _) => {
                self.api.imports.remove(name);
                self.dirty.insert(name.clone());
            }
            (Kind::Service, Some(Seen::Service(seen))) => self.service(name, Some(ServiceSeen::clone(seen))),
            (Kind::Service, _) => self.service(name, None),
            (Kind::Slice, Some(Seen::Slice(seen))) => self.slice(name, Some(seen.clone())),
            (Kind::Slice, _) => self.slice(name, None),
        }
    }

    fn namespace(&mut self, name: &str, there: bool) {
        let changed = if there {
            self.api.namespaces.insert(name.to_owned())
        } else {
            self.api.namespaces.remove(name)
        };
        if changed {
            let remote = self.remote.values().flat_map(Remote::names);
            let own = self.api.exports.keys().chain(self.api.imports.keys());
            let inside = remote.chain(own).filter(|one| one.namespace == name).cloned();
            self.dirty.extend(inside);
        }
    }

    fn service(&mut self, name: &ObjectName, seen: Option<ServiceSeen>) {
        let before = self.api.services.remove(name);
        for of in [&before, &seen].into_iter().filter_map(|one| one.as_ref()?.of.as_ref()) {
            self.dirty.insert(beside(name, of));
        }
        if let Some(of) = before.as_ref().and_then(|one| one.of.as_ref()) {
            unlist(&mut self.api.derived, &beside(name, of), &name.name);
        }
        if let Some(of) = seen.as_ref().and_then(|one| one.of.as_ref()) {
            self.api.derived.entry(beside(name, of)).or_default().insert(name.name.clone());
        }
        self.dirty.insert(name.clone());
        let says = |one: &ServiceSeen| one.of.as_ref().is_some_and(|of| derived_name(of) == name.name);
        let all_say = [&before, &seen].into_iter().flatten().all(says);
        if !all_say && name.name.starts_with("mcs-") {
            // It may have the name of a derived one: of which, no label says.
            let remote = self.remote.values().flat_map(Remote::names);
            let all = remote.chain(self.api.exports.keys()).filter(|one| one.namespace == name.namespace);
            let of = all.filter(|one| derived_name(&one.name) == name.name).cloned();
            self.dirty.extend(of);
        }
        if let Some(seen) = seen {
            self.api.services.insert(name.clone(), seen);
        }
    }

    fn slice(&mut self, name: &ObjectName, seen: Option<SliceSeen>) {
        let before = self.api.slices.remove(name);
        let owner = |one: &SliceSeen| match (&one.ours, &one.service) {
            (Some(ours), _) => (true, Some(beside(name, &ours.of))),
            (None, service) => (false, service.as_ref().map(|service| beside(name, service))),
        };
        if let Some((ours, Some(of))) = before.as_ref().map(owner) {
            let index = if ours { &mut self.api.of_import } else { &mut self.api.of_service };
            unlist(index, &of, &name.name);
            self.dirty.insert(of);
        }
        if let Some((ours, Some(of))) = seen.as_ref().map(owner) {
            let index = if ours { &mut self.api.of_import } else { &mut self.api.of_service };
            index.entry(of.clone()).or_default().insert(name.name.clone());
            self.dirty.insert(of);
        }
        if let Some(seen) = seen {
            self.api.slices.insert(name.clone(), seen);
        }
    }

    /// A name to judge again. Most Services and slices are nobody's export and are left out; what is gone everywhere is
    /// judged once more, to be forgotten.
    pub fn take_dirty(&mut self) -> Option<ObjectName> {
        loop {
            let name = self.dirty.pop_first()?;
            if self.concerns_us(&name) {
                self.judged.insert(name.clone());
                return Some(name);
            }
            if self.judged.remove(&name) {
                return Some(name);
            }
        }
    }

    /// Is there a name to judge again?
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Imports of ours that there are.
    pub fn imports(&self) -> usize {
        self.api.imports.values().filter(|import| import.ours).count()
    }

    /// What watches have said of an object.
    pub fn stamp(&self, kind: Kind, name: &ObjectName) -> Option<&Stamp> {
        match kind {
            Kind::Namespace => None,
            Kind::Export => self.api.exports.get(name).map(|seen| &seen.stamp),
            Kind::Import => self.api.imports.get(name).map(|seen| &seen.stamp),
            Kind::Service => self.api.services.get(name).map(|seen| &seen.stamp),
            Kind::Slice => self.api.slices.get(name).map(|seen| &seen.stamp),
        }
    }

    /// Judges a name again, though nothing new is known of it.
    pub fn again(&mut self, name: ObjectName) {
        self.dirty.insert(name);
    }

    fn concerns_us(&self, name: &ObjectName) -> bool {
        let told = |remote: &Remote| remote.services.contains_key(name);
        self.api.exports.contains_key(name)
            || self.api.imports.contains_key(name)
            || self.api.derived.contains_key(name)
            || self.api.of_import.contains_key(name)
            || self.remote.values().any(told)
    }

    /// What the API has of a name.
    pub fn observed(&self, name: &ObjectName, decision: &Decision) -> Observed<'_> {
        let (services, slices) = (&self.api.services, &self.api.slices);
        let derived = self.api.derived.get(name).into_iter().flatten();
        let wanted = decision.service.iter().map(|service| &service.name);
        let ours = self.api.of_import.get(name).into_iter().flatten();
        Observed {
            export: self.api.exports.get(name),
            import: self.api.imports.get(name),
            services: derived
                .chain(wanted)
                .filter_map(|one| services.get_key_value(&beside(name, one)))
                .map(|(key, seen)| (key.name.as_str(), seen))
                .collect(),
            slices: ours
                .chain(decision.slices.keys())
                .filter_map(|one| slices.get_key_value(&beside(name, one)))
                .map(|(key, seen)| (key.name.as_str(), seen))
                .collect(),
        }
    }

    /// Decides about a name.
    pub fn judge(&self, name: &ObjectName) -> Judged {
        let mut problems = Vec::new();
        let mut exports = Exports::new();
        if let Some(export) = self.own_export(name, &mut problems) {
            exports.insert(self.settings.cluster.clone(), export);
        }
        for (cluster, remote) in &self.remote {
            if let Some(export) = self.remote_export(name, cluster, remote, &mut problems) {
                exports.insert(cluster.clone(), export);
            }
        }
        let hold = self.stand_ins(name, &mut exports);
        let own = Own {
            cluster: self.settings.cluster.clone(),
            families: self.settings.families.clone(),
            serving: self.serving,
            silent: self.silent.clone(),
        };
        let derived: Option<DerivedState> =
            self.api.services.get(&beside(name, &derived_name(&name.name))).map(ServiceSeen::derived);
        let namespace = self.api.namespaces.contains(&name.namespace);
        let untold = exports.get(&own.cluster).and_then(|export| self.untellable(name, export));
        if let Some(refusal) = &untold {
            problems.push(refusal.clone());
        }
        let why = untold.map(|refusal| format!("{refusal}; other clusters are not told of it"));
        let here = Here { own: &own, namespace, derived: derived.as_ref(), untold: why.as_deref() };
        let (decision, wrong) = decide_one(&here, name, &exports);
        problems.extend(wrong.into_iter().map(Problem::from));
        let told = self.telling(name, &decision, &exports, &mut problems);
        problems.sort();
        problems.dedup();
        problems.truncate(MAX_PROBLEMS);
        Judged { decision, problems, told, hold }
    }

    /// The own export with its Service and that one's endpoints.
    fn own_export(&self, name: &ObjectName, problems: &mut Vec<Problem>) -> Option<Export> {
        let seen = self.api.exports.get(name)?;
        let unread = |unread: &Unread, kind, of: &ObjectName, costs| unread.problem(kind, of, costs);
        let service = match self.api.services.get(name).map(|service| &service.facts) {
            None => None,
            Some(Ok(facts)) => Some(facts.clone()),
            Some(Err(wrong)) => {
                problems.push(unread(wrong, Kind::Service, name, "the Service counts as absent"));
                None
            }
        };
        let mut export = seen.export(service);
        for slice in self.api.of_service.get(name).into_iter().flatten() {
            let key = beside(name, slice);
            let Some(slice) = self.api.slices.get(&key) else { continue };
            let costs = "that port or endpoint is left out";
            problems.extend(slice.unread.iter().map(|wrong| unread(wrong, Kind::Slice, &key, costs)));
            merge_endpoints(&mut export.endpoints, slice);
        }
        Some(export)
    }

    /// What another cluster exports under that name, as far as it is believed.
    fn remote_export(
        &self,
        name: &ObjectName,
        cluster: &ClusterName,
        remote: &Remote,
        problems: &mut Vec<Problem>,
    ) -> Option<Export> {
        let borders = self.borders.as_ref()?;
        let told = remote.services.get(name)?;
        if borders.known(cluster).is_err() || *cluster == self.settings.cluster {
            return None;
        }
        if let Some(first) = remote.limit.as_ref().filter(|first| name >= first) {
            // Said once: all others are after it.
            let (cluster, limit) = (cluster.clone(), MAX_SERVICES);
            let first = ObjectName::clone(first);
            let refusal = WireRefusal::TooManyServices { cluster, first, limit };
            problems.extend((name == remote.limit.as_deref()?).then_some(Problem::Told(refusal)));
            return None;
        }
        let mut export = match wire::export(cluster, name, told) {
            Ok(export) => export,
            Err(refusal) => {
                problems.push(Problem::Told(*refusal));
                return None;
            }
        };
        let allowed = borders.of(cluster).unwrap_or_default();
        let inside = |address: &IpAddr| allowed.iter().any(|cidr| cidr.contains(address));
        let all = remote.backends.get(name);
        let outside = all.into_iter().flat_map(BTreeMap::keys).filter(|address| !inside(address));
        problems.extend(outside.take(MAX_PROBLEMS).map(|address| {
            Problem::Believed(Box::new(Refusal::BackendOutside {
                cluster: cluster.clone(),
                service: name.clone(),
                address: *address,
                allowed: written(allowed),
            }))
        }));
        let believed = all.into_iter().flatten().filter(|(address, _)| inside(address));
        let mut refusals = Vec::new();
        let believed = believed.map(|(address, backend)| (*address, backend.as_ref()));
        export.endpoints = wire::endpoints(cluster, name, believed, &mut refusals);
        refusals.truncate(MAX_PROBLEMS);
        problems.extend(refusals.into_iter().map(Problem::from));
        Some(export)
    }

    /// What the import says stands in for peers that have told nothing yet, without endpoints: so an address, a port or a
    /// type that clients use does not change because this program began a moment before a peer was heard. For one that was given up
    /// it does so only where nobody else exports the name: whoever does may change it.
    fn stand_ins(&self, name: &ObjectName, exports: &mut Exports) -> Hold {
        let mut hold = Hold { guarded: self.awaited.clone(), ..Hold::default() };
        let Some(import) = self.api.imports.get(name).filter(|import| import.ours) else {
            // Nothing says who exports, so nobody knows yet who is in conflict.
            hold.stand_in = !self.awaited.is_empty();
            return hold;
        };
        let sources = self.api.of_import.get(name).into_iter().flatten();
        let sources = sources
            .filter_map(|slice| self.api.slices.get(&beside(name, slice))?.ours.as_ref()?.source.clone());
        let named = import.clusters.iter().filter_map(|cluster| cluster.parse::<ClusterName>().ok());
        let is_missed = |cluster: &ClusterName| {
            self.is_mute(cluster) && (exports.is_empty() || !self.given_up.contains(cluster))
        };
        let missed: Vec<ClusterName> = named.chain(sources).filter(is_missed).collect();
        for cluster in missed {
            hold.stand_in = true;
            match &import.stands_for {
                Some(export) => drop(exports.insert(cluster, export.clone())),
                None => hold.frozen = true,
            }
        }
        hold
    }

    /// Why others would not believe an own export of a Service that is a valid one: it is held to the bounds that they hold us to.
    fn untellable(&self, name: &ObjectName, export: &Export) -> Option<Problem> {
        let own = &self.settings.cluster;
        let service = wire::tell_service(export)?;
        if let Err(refusal) = wire::export(own, name, &service) {
            return Some(Problem::Told(*refusal));
        }
        let object = Object::Service(Arc::new(name.clone()), Arc::new(service));
        let why = crate::daemon::publish::readable(&object).err()?;
        let (cluster, service) = (own.clone(), name.clone());
        let (field, value, reason) =
            ("labels, annotations, ports", why, "wanted less than the contract carries");
        Some(Problem::Told(WireRefusal::Service { cluster, service, field, value, reason }))
    }

    /// What other clusters may have of a name: a valid export, and its pods.
    fn telling(
        &self,
        name: &ObjectName,
        decision: &Decision,
        exports: &Exports,
        problems: &mut Vec<Problem>,
    ) -> Option<Telling> {
        let is_valid = |one: &mesh_core::mcs::Condition| one.kind == "Valid" && one.status == Status::True;
        if !decision.export.iter().any(is_valid) {
            return None;
        }
        let own = &self.settings.cluster;
        let export = exports.get(own)?;
        let service = wire::tell_service(export)?;
        let (mut backends, outside) = wire::tell_backends(&export.endpoints, &self.settings.pod_cidrs);
        if let Some(first) = backends.keys().nth(MAX_BACKENDS).copied() {
            let left_out = backends.split_off(&first).len();
            let (cluster, service, limit) = (own.clone(), name.clone(), MAX_BACKENDS);
            let refusal = WireRefusal::TooManyBackends { cluster, service, left_out, limit };
            problems.push(Problem::Told(refusal));
        }
        if let Some(first) = outside.first() {
            problems.push(Problem::NotPods {
                name: name.clone(),
                count: outside.len(),
                first: *first,
                allowed: written(&self.settings.pod_cidrs),
            });
        }
        Some(Telling { service: Arc::new(service), backends })
    }
}

fn written(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn merge_endpoints(all: &mut Endpoints, slice: &SliceSeen) {
    let group = all.entry(slice.ports.clone()).or_default();
    for (address, facts) in &slice.endpoints {
        let merit = |one: &mesh_core::mcs::Endpoint| (one.ready, one.serving, !one.terminating);
        if group.get(address).is_none_or(|other| merit(facts) > merit(other)) {
            group.insert(*address, facts.clone());
        }
    }
}
