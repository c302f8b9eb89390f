//! From facts to tables, one object at a time.
//!
//! What changes marks its owner (a Service, or a pod with hostPorts). [`Compiler::commit`] asks each marked owner anew
//! what it [wants](super::wanted), settles its pools (backends and Maglev table), and then decides for each key that was
//! touched who gets it. So a commit's work is that of the changed objects, however many others there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::claims::Claims;
use super::expand;
use super::model::{EndpointSliceFacts, HostPortFacts, LABEL_SERVICE_NAME, Nodes, OwnNode, ServiceFacts};
use super::pools::{Maps, Pools};
use super::problem::{Owner, ServiceProblem};
use super::tables::{Delta, Frontend, FrontendKey, Limits, State};
use super::wanted::{self, PoolKey, Target, Wanted};
use crate::name::NodeName;
use crate::policy::model::ObjectName;

/// What is in the kernel's maps cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Regions that no allocator of ours makes.
    #[error(
        "frontends: places {base} to {base}+{count} are not a region of their own; delete all frontends and begin with an empty compiler"
    )]
    Region {
        /// Its first place.
        base: u32,
        /// Its length.
        count: u32,
    },
    /// Two services with one number.
    #[error(
        "frontends: service number {number} has two tables; delete all frontends and begin with an empty compiler"
    )]
    Number {
        /// The number.
        number: u32,
    },
    /// The compiler is in use already.
    #[error("the compiler has committed already: adopt first")]
    Late,
}

/// Services of the cluster and hostPorts of this node, compiled.
#[derive(Clone, Debug)]
pub struct Compiler {
    own: OwnNode,
    nodes: Nodes,
    services: BTreeMap<ObjectName, ServiceFacts>,
    slices: BTreeMap<ObjectName, EndpointSliceFacts>,
    /// Names of slices by service; both in the same namespace.
    slices_of: BTreeMap<ObjectName, BTreeSet<String>>,
    host_ports: BTreeMap<ObjectName, BTreeSet<HostPortFacts>>,
    dirty: BTreeSet<Owner>,
    claims: Claims,
    pools: Pools,
    /// Keys that found no room.
    unplaced: BTreeSet<FrontendKey>,
    problems: BTreeMap<Owner, BTreeSet<ServiceProblem>>,
    refused: BTreeMap<FrontendKey, BTreeSet<ServiceProblem>>,
    state: State,
    limits: Limits,
    commits: u64,
    /// Touched by adoption: to be decided in the first commit.
    adopted: BTreeSet<FrontendKey>,
    work: Work,
}

/// What a commit did, for tests and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Owners asked anew.
    pub owners: usize,
    /// Tables built.
    pub tables: usize,
    /// Keys decided.
    pub keys: usize,
}

impl Compiler {
    /// Knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            own: OwnNode::default(),
            nodes: Nodes::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            dirty: BTreeSet::new(),
            claims: Claims::default(),
            pools: Pools::new(limits),
            unplaced: BTreeSet::new(),
            problems: BTreeMap::new(),
            refused: BTreeMap::new(),
            state: State::default(),
            limits,
            commits: 0,
            adopted: BTreeSet::new(),
            work: Work::default(),
        }
    }

    /// Takes over what a former agent left in the maps, so that numbers, affinities and flows stay what they are.
    /// `highest`: no number of a service or a backend that any map still mentions is above it.
    ///
    /// Before the first commit, and that only when all Services and slices are known: it takes away what nobody wants.
    ///
    /// # Errors
    /// What is there is none of ours; the compiler is as before.
    pub fn adopt(&mut self, installed: State, highest: u32) -> Result<(), AdoptError> {
        if self.commits > 0 {
            return Err(AdoptError::Late);
        }
        self.pools = Pools::adopt(&installed, highest, self.limits)?;
        self.adopted = installed.frontends.keys().copied().collect();
        self.state = installed;
        let used: BTreeSet<u32> =
            self.state.frontends.values().filter(|f| f.count > 0).map(|f| f.base).collect();
        self.state.tables.retain(|base, _| used.contains(base));
        Ok(())
    }

    /// This node.
    pub fn set_node(&mut self, own: OwnNode) {
        if self.own != own {
            self.own = own;
            self.dirty.extend(self.services.keys().cloned().map(Owner::Service));
            self.dirty.extend(self.host_ports.keys().cloned().map(Owner::Pod));
        }
    }

    /// InternalIPs of a node, this one or another; none: it is gone.
    pub fn set_addresses(&mut self, node: NodeName, addresses: BTreeSet<IpAddr>) {
        let known = self.nodes.get(&node);
        if known.map_or(addresses.is_empty(), |known| *known == addresses) {
            return;
        }
        match addresses.is_empty() {
            true => self.nodes.remove(&node),
            false => self.nodes.insert(node, addresses),
        };
        let held = self.services.iter().filter(|(_, facts)| expand::held_to_nodes(facts));
        self.dirty.extend(held.map(|(name, _)| Owner::Service(name.clone())));
    }

    /// A Service is there, or gone.
    pub fn set_service(&mut self, name: ObjectName, facts: Option<ServiceFacts>) {
        if self.services.get(&name) == facts.as_ref() {
            return;
        }
        self.dirty.insert(Owner::Service(name.clone()));
        match facts {
            Some(facts) => self.services.insert(name, facts),
            None => self.services.remove(&name),
        };
    }

    /// An EndpointSlice is there, or gone. Its label names its Service, and may change.
    pub fn set_slice(&mut self, name: ObjectName, facts: Option<EndpointSliceFacts>) {
        if self.slices.get(&name) == facts.as_ref() {
            return;
        }
        let service = |facts: &EndpointSliceFacts| {
            let service = facts.metadata.labels.get(LABEL_SERVICE_NAME)?;
            Some(ObjectName { namespace: name.namespace.clone(), name: service.clone() })
        };
        if let Some(service) = self.slices.get(&name).and_then(service) {
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            self.dirty.insert(Owner::Service(service));
        }
        if let Some(service) = facts.as_ref().and_then(service) {
            self.slices_of.entry(service.clone()).or_default().insert(name.name.clone());
            self.dirty.insert(Owner::Service(service));
        }
        match facts {
            Some(facts) => self.slices.insert(name, facts),
            None => self.slices.remove(&name),
        };
    }

    /// All hostPorts of this node's pods.
    pub fn set_host_ports(&mut self, all: BTreeSet<HostPortFacts>) {
        let mut by_pod: BTreeMap<ObjectName, BTreeSet<HostPortFacts>> = BTreeMap::new();
        for facts in all {
            by_pod.entry(facts.pod.clone()).or_default().insert(facts);
        }
        let pods: BTreeSet<ObjectName> = self.host_ports.keys().chain(by_pod.keys()).cloned().collect();
        let changed = pods.into_iter().filter(|pod| self.host_ports.get(pod) != by_pod.get(pod));
        self.dirty.extend(changed.map(Owner::Pod));
        self.host_ports = by_pod;
    }

    /// What changes in the maps by what was set since the last commit. Deltas must be applied in order, each once.
    pub fn commit(&mut self) -> Delta {
        self.commits += 1;
        let mut delta = Delta { commit: self.commits, ..Delta::default() };
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.extend(self.pools.begin());
        let mut touched = std::mem::take(&mut self.adopted);
        touched.append(&mut self.unplaced);
        self.work = Work { owners: dirty.len(), ..Work::default() };
        for owner in dirty {
            let wanted = self.wanted(&owner);
            let mut maps = Maps { state: &mut self.state, delta: &mut delta };
            self.work.tables += self.pools.settle(&owner, wanted.pools, &wanted.claims, &mut maps);
            self.claims.set(&owner, wanted.claims, &mut touched);
            if wanted.problems.is_empty() {
                self.problems.remove(&owner);
            } else {
                self.problems.insert(owner, wanted.problems);
            }
        }
        self.pools.drop_unadopted(&mut Maps { state: &mut self.state, delta: &mut delta });
        self.decide(touched, &mut delta);
        delta
    }

    fn wanted(&self, owner: &Owner) -> Wanted {
        match owner {
            Owner::Service(name) => {
                let Some(facts) = self.services.get(name) else { return Wanted::default() };
                let slices = self.slices_of.get(name).into_iter().flatten().filter_map(|slice| {
                    let key = ObjectName { namespace: name.namespace.clone(), name: slice.clone() };
                    Some((slice.as_str(), self.slices.get(&key)?))
                });
                expand::of_service(owner, facts, slices, &self.own, &self.nodes)
            }
            Owner::Pod(name) => {
                let ports: Vec<&HostPortFacts> = self.host_ports.get(name).into_iter().flatten().collect();
                wanted::of_pod(owner, &ports, &self.own.addresses)
            }
        }
    }

    /// Writes the frontends of these keys: first those that go, then those that change, then those that come, while there
    /// is room (what goes in this commit still takes room in the map while it is applied).
    fn decide(&mut self, touched: BTreeSet<FrontendKey>, delta: &mut Delta) {
        self.work.keys = touched.len();
        let mut coming = Vec::new();
        for key in touched {
            let (front, refused) = self.frontend(&key);
            if refused.is_empty() {
                self.refused.remove(&key);
            } else {
                self.refused.insert(key, refused);
            }
            match (self.state.frontends.get(&key), front) {
                (None, None) => {}
                (Some(_), None) => {
                    self.state.frontends.remove(&key);
                    delta.frontends_removed.insert(key);
                }
                (Some(had), Some(front)) if *had == front => {}
                (Some(_), Some(front)) => {
                    self.state.frontends.insert(key, front);
                    delta.frontends_set.insert(key, front);
                }
                (None, Some(front)) => coming.push((key, front)),
            }
        }
        for (key, front) in coming {
            let used = self.state.frontends.len() + delta.frontends_removed.len();
            if used >= usize::try_from(self.limits.frontends).unwrap_or(usize::MAX) {
                self.no_room(key);
                continue;
            }
            self.state.frontends.insert(key, front);
            delta.frontends_set.insert(key, front);
        }
    }

    fn no_room(&mut self, key: FrontendKey) {
        self.unplaced.insert(key);
        if let Some((owner, _)) = self.claims.winner(&key) {
            let (owner, limit) = (owner.clone(), self.limits.frontends);
            let problem = ServiceProblem::NoFrontends { owner, addr: key.addr, port: key.port, limit };
            self.refused.entry(key).or_default().insert(problem);
        }
    }

    /// Who gets a key, and who is refused.
    fn frontend(&self, key: &FrontendKey) -> (Option<Frontend>, BTreeSet<ServiceProblem>) {
        let refused = self.claims.losers(key);
        let nobody = Frontend { base: 0, count: 0, service: super::ServiceNumber(0), affinity: 0, flags: 0 };
        let Some((owner, claim)) = self.claims.winner(key) else { return (None, refused) };
        let front = match &claim.target {
            Target::Pool(pool) => self.pools.frontend(owner, pool, claim.affinity),
            Target::Nowhere => Some(Frontend { flags: super::tables::FRONT_DROP, ..nobody }),
            Target::Rest { refuse: true } => Some(Frontend { flags: super::tables::FRONT_ADDRESS, ..nobody }),
            Target::Rest { refuse: false } => None,
        };
        (front, refused)
    }

    /// No packet can still look at what the commit of this number took away (an RCU grace period passed after its delta
    /// was applied), nor at what those before it did: their places may be used again.
    pub fn quiesced(&mut self, commit: u64) {
        self.pools.quiesced(commit);
    }

    /// What the maps hold when all deltas are applied.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is wrong.
    pub fn problems(&self) -> BTreeSet<ServiceProblem> {
        let own = self.problems.values().chain(self.refused.values()).flatten().cloned();
        own.chain(self.pools.problems()).collect()
    }

    /// Whose address that is, and the name of its port (empty for [`FrontendKey::address`]); for people who read flows.
    pub fn owner_of(&self, key: &FrontendKey) -> Option<(&Owner, &str)> {
        let (owner, claim) = self.claims.winner(key)?;
        match &claim.target {
            Target::Pool(PoolKey { port, .. }) => Some((owner, port)),
            Target::Nowhere | Target::Rest { .. } => Some((owner, "")),
        }
    }

    /// What the last commit did.
    pub fn work(&self) -> Work {
        self.work
    }
}
