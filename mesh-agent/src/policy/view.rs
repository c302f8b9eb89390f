//! What is known of the cluster, folded from changes, and what of it policy is decided from. Nothing is decided here but
//! whom to believe:
//!
//! - A pod's addresses are accepted inside the pod CIDR of some node; inside this node's own CIDRs, and for its own pods, only
//!   as they are attached here.
//! - Of two nodes that claim one address or CIDR the older keeps it (then the smaller name), as in the mesh's plan.
//! - An object that cannot be read leaves its former version in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_core::clusters::Reach;
use mesh_core::name::NodeName;
use mesh_core::numbers::LABEL_CLUSTER;
use mesh_core::policy::model::{
    ClusterNetworkPolicySpec, NamespaceFacts, NetworkPolicySpec, NodePolicyFacts, ObjectName, PodFacts,
};
use mesh_core::prefix;
use mesh_core::psk::ClusterName;
use mesh_core::service::model::{EndpointSliceFacts, HostPortFacts, LABEL_ZONE, OwnNode, ServiceFacts};

use super::Attached;
use super::claims::{Cidrs, Claims};
use super::slices::RemoteSlices;
use crate::facts::pod::{OwnPod, RemotePod};
use crate::facts::{Decoded, NodeSeen};
use crate::watch::mail::Mail;

/// How long a pod that was looked up is believed without a word from the watch: longer than a watch that is interrupted
/// needs to be back, shorter than a quarantined address takes to be somebody else's.
const FOUND: Duration = Duration::from_secs(20);

/// CIDRs that change together, beyond which every pod is looked at again instead of each CIDR's.
const MANY: usize = 64;

/// One change of what policy and services are decided from.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A namespace.
    Namespace(String, Option<NamespaceFacts>),
    /// A node.
    Node(NodeName, Option<NodePolicyFacts>),
    /// A pod with addresses.
    Pod(ObjectName, Option<PodFacts>),
    /// A NetworkPolicy.
    NetworkPolicy(ObjectName, Option<NetworkPolicySpec>),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(String, Option<ClusterNetworkPolicySpec>),
    /// A Service.
    Service(ObjectName, Option<ServiceFacts>),
    /// An EndpointSlice.
    Slice(ObjectName, Option<EndpointSliceFacts>),
    /// Pods of this node whose policy is wanted.
    Subjects(BTreeSet<ObjectName>),
    /// This node, for services.
    OwnNode(OwnNode),
    /// hostPorts of this node's pods.
    HostPorts(BTreeSet<HostPortFacts>),
}

/// An object that cannot be read: kind, name, reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unread {
    /// `NetworkPolicy`, `Service`…
    pub kind: &'static str,
    /// Its namespace; none for what has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Why, and what is in force meanwhile.
    pub reason: String,
}

/// Which complete lists have been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Everything that policy is decided from.
    pub policy: bool,
    /// Services, slices and nodes.
    pub services: bool,
}

/// What is known.
#[derive(Debug)]
pub struct View {
    node: NodeName,
    cluster: ClusterName,
    guarded: Vec<IpNet>,
    nodes: BTreeMap<NodeName, Arc<NodeSeen>>,
    addresses: Claims<IpAddr>,
    cidrs: Cidrs,
    pods: BTreeMap<ObjectName, Arc<RemotePod>>,
    found: BTreeMap<ObjectName, (Arc<RemotePod>, Instant)>,
    own: BTreeMap<ObjectName, Arc<OwnPod>>,
    /// Those of them that an ADD had from the API, and the watch not yet, or no more: it need not tell of their end.
    asked: BTreeSet<ObjectName>,
    attached: BTreeMap<String, (u64, Attached)>,
    attachments_made: u64,
    unread: BTreeMap<(&'static str, Option<String>, String), Unread>,
    believed: Believed,
    remote: RemoteSlices,
    subjects: BTreeSet<ObjectName>,
    host_ports: BTreeSet<HostPortFacts>,
    own_node: Option<OwnNode>,
    synced: Synced,
}

/// Objects of which a version is in force.
#[derive(Debug, Default)]
struct Believed {
    policies: BTreeSet<ObjectName>,
    cluster: BTreeSet<String>,
    services: BTreeSet<ObjectName>,
    slices: BTreeSet<ObjectName>,
}

/// Are these the addresses that were written at the pod?
fn announces(pod: &OwnPod, ips: &BTreeSet<IpAddr>) -> bool {
    let parse = |text: &String| text.split(',').map(|ip| ip.trim().parse().ok()).collect();
    let announced: Option<BTreeSet<IpAddr>> = pod.announced_ips.as_ref().and_then(parse);
    !ips.is_empty() && announced.is_some_and(|announced| announced == *ips)
}

impl View {
    /// Knows nothing yet but how far joined clusters reach, which the agent kept.
    pub fn new(
        node: NodeName,
        cluster: ClusterName,
        guarded: Vec<IpNet>,
        reach: Arc<BTreeMap<ClusterName, Reach>>,
    ) -> Self {
        Self {
            node,
            cluster,
            nodes: BTreeMap::new(),
            addresses: Claims::default(),
            cidrs: Cidrs::default(),
            pods: BTreeMap::new(),
            found: BTreeMap::new(),
            own: BTreeMap::new(),
            asked: BTreeSet::new(),
            attached: BTreeMap::new(),
            attachments_made: 0,
            unread: BTreeMap::new(),
            believed: Believed::default(),
            remote: RemoteSlices::new(guarded.clone(), reach),
            subjects: BTreeSet::new(),
            host_ports: BTreeSet::new(),
            own_node: None,
            synced: Synced::default(),
            guarded,
        }
    }

    /// This node.
    pub const fn node(&self) -> &NodeName {
        &self.node
    }

    /// Which complete lists have been seen.
    pub const fn synced(&self) -> Synced {
        self.synced
    }

    /// Objects that cannot be read.
    pub fn unread(&self) -> impl Iterator<Item = &Unread> {
        self.unread.values()
    }

    /// EndpointSlices with endpoints that are not believed, and a sentence for each.
    pub fn refused_slices(&self) -> impl Iterator<Item = (&ObjectName, &String)> {
        self.remote.refused()
    }

    /// Endpoints of other clusters that are left out since their nodes are no peers of this one.
    pub fn without_way(&self) -> usize {
        self.remote.without_way()
    }

    /// ClusterNetworkPolicies there are, readable or not.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &String> {
        let unread = self.unread.values().filter(|unread| unread.kind == "ClusterNetworkPolicy");
        self.believed.cluster.iter().chain(unread.map(|unread| &unread.name))
    }

    /// Links with the pods on them.
    pub fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.attached.values().map(|(_, attached)| attached)
    }

    /// One link.
    pub fn on(&self, veth: &str) -> Option<&Attached> {
        self.attached.get(veth).map(|(_, attached)| attached)
    }

    /// The node whose CIDR an address lies in.
    pub fn node_of(&self, address: IpAddr) -> Option<&NodeName> {
        self.cidrs.owner(address)
    }

    /// Pod CIDRs with the nodes that own them.
    pub fn cidrs(&self) -> BTreeMap<IpNet, NodeName> {
        self.cidrs.all()
    }

    /// Folds changes in, and says what they change for policy and services.
    pub fn fold(&mut self, mail: Mail, now: Instant) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut touched = BTreeSet::new();
        self.synced = Synced {
            policy: mail.namespaces.synced
                && mail.nodes.synced
                && mail.pods.synced
                && mail.own.synced
                && mail.policies.synced
                && mail.cluster.synced,
            services: mail.nodes.synced && mail.services.synced && mail.slices.synced,
        };
        for (name, namespace) in mail.namespaces.changes {
            let known = namespace.map(|namespace| {
                let mut facts = NamespaceFacts::clone(&namespace);
                // Whatever the object says: it would be taken for another cluster's.
                facts.labels.insert(LABEL_CLUSTER.to_owned(), self.cluster.to_string());
                facts
            });
            facts.push(Fact::Namespace(name, known));
        }
        self.fold_nodes(mail.nodes.changes, &mut touched, &mut facts);
        for (name, pod) in mail.pods.changes {
            self.found.remove(&name);
            match pod {
                Some(pod) => self.pods.insert(name.clone(), pod),
                None => self.pods.remove(&name),
            };
            touched.insert(name);
        }
        for (name, pod) in mail.found {
            // The watch knows better, whatever it says.
            if !self.pods.contains_key(&name) {
                self.found.insert(name.clone(), (pod, now + FOUND));
                touched.insert(name);
            }
        }
        self.expire_found(now, &mut touched);
        for (name, pod) in mail.own.changes {
            self.fold_own(&name, pod);
            touched.insert(name);
        }
        self.fold_objects(
            mail.policies.changes,
            mail.cluster.changes,
            mail.services.changes,
            mail.slices.changes,
            &mut facts,
        );
        if let Some(reach) = mail.foreign.reach.clone() {
            let slices = self.remote.reach(reach).into_iter();
            facts.extend(slices.map(|(name, slice)| Fact::Slice(name, Some(slice))));
        }
        self.settle(&touched, &mut facts);
        facts
    }

    /// A pod was connected, or known to be so after a restart.
    pub fn attach(&mut self, mut attached: Attached, facts: &mut Vec<Fact>) {
        let name = attached.pod.as_ref().map(|(name, _)| name.clone());
        if let Some((name, uid)) = &attached.pod {
            let known = self.own.get(name).filter(|pod| pod.meta.is(uid.as_deref()));
            match (known, &attached.own) {
                (Some(known), _) => attached.own = Some(Arc::clone(known)),
                // The API itself was asked for this pod, after the watch had told of another one of its name or of none.
                (None, Some(asked)) => {
                    self.own.insert(name.clone(), Arc::clone(asked));
                    self.asked.insert(name.clone());
                }
                (None, None) => {}
            }
        }
        self.attachments_made += 1;
        self.attached.insert(attached.veth.clone(), (self.attachments_made, attached));
        self.settle(&name.into_iter().collect(), facts);
    }

    /// A pod's link is gone. Returns what it was.
    pub fn detach(&mut self, veth: &str, facts: &mut Vec<Fact>) -> Option<Attached> {
        let (_, attached) = self.attached.remove(veth)?;
        let name = attached.pod.as_ref().map(|(name, _)| name.clone());
        if let Some(name) = &name {
            let bears = |(_, other): &(u64, Attached)| other.pod.as_ref().is_some_and(|(n, _)| n == name);
            // The watch may have told of its deletion before the ADD did of it. Whoever gets the name next, on another node,
            // would never be believed.
            if !self.attached.values().any(bears) && self.asked.remove(name) {
                self.own.remove(name);
            }
        }
        self.settle(&name.into_iter().collect(), facts);
        Some(attached)
    }

    /// The link on which a pod is, of those that bear its name: the one of the pod that the API has, else the last.
    pub fn current(&self, name: &ObjectName) -> Option<&Attached> {
        let of_name = self.attached.values().filter(|(_, a)| a.pod.as_ref().is_some_and(|(n, _)| n == name));
        let matches = |attached: &Attached| match (self.own.get(name), &attached.pod) {
            (Some(own), Some((_, uid))) => own.meta.is(uid.as_deref()),
            (None, _) | (_, None) => true,
        };
        of_name.filter(|(_, a)| matches(a)).max_by_key(|(order, _)| *order).map(|(_, attached)| attached)
    }

    fn fold_own(&mut self, name: &ObjectName, pod: Option<Arc<OwnPod>>) {
        if let Some(pod) = &pod {
            for (_, attached) in self.attached.values_mut() {
                // Its file was lost: whose it is says what was written at the pod when it was connected.
                if attached.pod.is_none() && !pod.finished && announces(pod, &attached.ips) {
                    attached.pod = Some((name.clone(), Some(pod.meta.uid.clone())));
                }
                let is =
                    attached.pod.as_ref().is_some_and(|(n, uid)| n == name && pod.meta.is(uid.as_deref()));
                if is {
                    attached.own = Some(Arc::clone(pod));
                }
            }
        }
        // From now on the watch tells what becomes of it.
        self.asked.remove(name);
        match pod {
            Some(pod) => self.own.insert(name.clone(), pod),
            None => self.own.remove(name),
        };
    }

    fn expire_found(&mut self, now: Instant, touched: &mut BTreeSet<ObjectName>) {
        self.found.retain(|name, (_, until)| {
            let stays = now < *until;
            if !stays {
                touched.insert(name.clone());
            }
            stays
        });
    }

    fn fold_nodes(
        &mut self,
        changes: BTreeMap<NodeName, Option<Arc<NodeSeen>>>,
        touched: &mut BTreeSet<ObjectName>,
        facts: &mut Vec<Fact>,
    ) {
        if changes.is_empty() {
            return;
        }
        let mut affected: BTreeSet<NodeName> = BTreeSet::new();
        let mut moved: BTreeSet<IpNet> = BTreeSet::new();
        for (name, seen) in changes {
            let claim = |seen: &Arc<NodeSeen>| {
                let created = seen.facts.created;
                (created, addresses(seen, &self.guarded), cidrs(seen, &self.guarded))
            };
            let before = self.nodes.get(&name).map(claim);
            let after = seen.as_ref().map(claim);
            affected.insert(name.clone());
            match seen {
                Some(seen) => self.nodes.insert(name.clone(), seen),
                None => self.nodes.remove(&name),
            };
            if before == after {
                continue;
            }
            if let Some((created, addresses, cidrs)) = before {
                affected.extend(self.addresses.remove(&name, created, &addresses));
                self.cidrs.remove(&name, created, &cidrs);
                moved.extend(cidrs);
            }
            if let Some((created, addresses, cidrs)) = after {
                affected.extend(self.addresses.put(&name, created, &addresses));
                self.cidrs.put(&name, created, &cidrs);
                moved.extend(cidrs);
            }
        }
        for name in affected {
            let known = self.nodes.get(&name).map(|seen| NodePolicyFacts {
                labels: seen.labels.clone(),
                ips: self.addresses.kept(&name, addresses(seen, &self.guarded)),
            });
            facts.push(Fact::Node(name, known));
        }
        // Rare: a node came, went or changed its CIDRs. Of its pods another may be believed now.
        let many = moved.len() > MANY;
        let within = |pod: &RemotePod| pod.ips.iter().any(|ip| moved.iter().any(|net| net.contains(ip)));
        let pods = self.pods.iter().chain(self.found.iter().map(|(name, (pod, _))| (name, pod)));
        if !moved.is_empty() {
            let lost = pods.filter(|(_, pod)| many || within(pod));
            touched.extend(lost.map(|(name, _)| name.clone()));
        }
        self.tell_own_node(facts);
    }

    fn tell_own_node(&mut self, facts: &mut Vec<Fact>) {
        let seen = self.nodes.get(&self.node);
        let own = OwnNode {
            name: Some(self.node.clone()),
            zone: seen.and_then(|seen| seen.labels.get(LABEL_ZONE).cloned()),
            addresses: seen
                .map(|seen| self.addresses.kept(&self.node, addresses(seen, &self.guarded)))
                .unwrap_or_default(),
            pod_cidrs: seen.map(|seen| cidrs(seen, &self.guarded).into_iter().collect()).unwrap_or_default(),
        };
        if self.own_node.as_ref() != Some(&own) {
            self.own_node = Some(own.clone());
            facts.push(Fact::OwnNode(own));
        }
    }

    fn fold_objects(
        &mut self,
        policies: BTreeMap<ObjectName, Option<Decoded<NetworkPolicySpec>>>,
        cluster: BTreeMap<String, Option<Decoded<ClusterNetworkPolicySpec>>>,
        services: BTreeMap<ObjectName, Option<Decoded<ServiceFacts>>>,
        slices: BTreeMap<ObjectName, Option<Decoded<EndpointSliceFacts>>>,
        facts: &mut Vec<Fact>,
    ) {
        let Self { believed, unread, remote, .. } = self;
        let split = |name: &ObjectName| (Some(name.namespace.clone()), name.name.clone());
        let alone = |name: &String| (None, name.clone());
        believe("NetworkPolicy", policies, &mut believed.policies, unread, split, |name, spec| {
            facts.push(Fact::NetworkPolicy(name, spec));
        });
        believe("ClusterNetworkPolicy", cluster, &mut believed.cluster, unread, alone, |name, spec| {
            facts.push(Fact::ClusterPolicy(name, spec));
        });
        believe("Service", services, &mut believed.services, unread, split, |name, service| {
            facts.push(Fact::Service(name, service));
        });
        believe("EndpointSlice", slices, &mut believed.slices, unread, split, |name, slice| {
            let slice = remote.put(&name, slice);
            facts.push(Fact::Slice(name, slice));
        });
    }

    /// Says what is known now of pods that something has changed for.
    fn settle(&mut self, touched: &BTreeSet<ObjectName>, facts: &mut Vec<Fact>) {
        for name in touched {
            let known = self.pod(name);
            facts.push(Fact::Pod(name.clone(), known));
        }
        let links = self.attached.values().filter_map(|(_, attached)| attached.pod.as_ref());
        let names: BTreeSet<&ObjectName> = links.map(|(name, _)| name).collect();
        let (mut subjects, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            let Some(attached) = self.current(name) else { continue };
            subjects.insert(name.clone());
            ports.extend(host_ports(name, attached));
        }
        if subjects != self.subjects {
            self.subjects.clone_from(&subjects);
            facts.push(Fact::Subjects(subjects));
        }
        if ports != self.host_ports {
            self.host_ports.clone_from(&ports);
            facts.push(Fact::HostPorts(ports));
        }
    }

    /// What is believed of a pod; none: nothing that has an address.
    fn pod(&self, name: &ObjectName) -> Option<PodFacts> {
        if let Some(attached) = self.current(name) {
            let own = attached.own.as_ref()?;
            let (labels, ports) = (own.labels.clone(), own.ports.clone());
            return Some(PodFacts { labels, ips: attached.ips.clone(), ports });
        }
        if self.own.contains_key(name) {
            return None;
        }
        let pod = self.pods.get(name).or_else(|| self.found.get(name).map(|(pod, _)| pod))?;
        let elsewhere = |ip: &&IpAddr| self.cidrs.owner(**ip).is_some_and(|owner| *owner != self.node);
        let ips: BTreeSet<IpAddr> = pod.ips.iter().filter(elsewhere).copied().collect();
        let known = PodFacts { labels: pod.labels.clone(), ips, ports: pod.ports.clone() };
        (!known.ips.is_empty()).then_some(known)
    }
}

/// Passes on what can be read; what cannot leaves what was believed before, or stands for something closed.
fn believe<K: Ord + Clone, T: Clone>(
    kind: &'static str,
    changes: BTreeMap<K, Option<Decoded<T>>>,
    believed: &mut BTreeSet<K>,
    unread: &mut BTreeMap<(&'static str, Option<String>, String), Unread>,
    split: impl Fn(&K) -> (Option<String>, String),
    mut tell: impl FnMut(K, Option<T>),
) {
    for (key, change) in changes {
        let (namespace, name) = split(&key);
        let place = (kind, namespace.clone(), name.clone());
        unread.remove(&place);
        match change {
            Some(Ok(value)) => {
                believed.insert(key.clone());
                tell(key, Some((*value).clone()));
            }
            None => {
                believed.remove(&key);
                tell(key, None);
            }
            Some(Err(why)) => {
                let meanwhile = match (&why.instead, believed.contains(&key)) {
                    (_, true) => "its former version stays in force until it is corrected",
                    (Some(_), false) => "whom it selects is closed until it is corrected",
                    (None, false) => "it is ignored until it is corrected",
                };
                let reason = format!("{}; {meanwhile}", why.reason);
                unread.insert(place, Unread { kind, namespace, name, reason });
                if let Some(instead) = why.instead.filter(|_| !believed.contains(&key)) {
                    tell(key, Some((*instead).clone()));
                }
            }
        }
    }
}

/// Pod CIDRs of a node that can be its own.
fn cidrs(seen: &NodeSeen, guarded: &[IpNet]) -> BTreeSet<IpNet> {
    let fits = |cidr: &&IpNet| prefix::inside(guarded, cidr) && prefix::mesh_address(cidr).is_some();
    seen.facts.pod_cidrs.iter().filter(fits).copied().collect()
}

/// InternalIPs, ExternalIPs and mesh addresses of a node.
fn addresses(seen: &NodeSeen, guarded: &[IpNet]) -> BTreeSet<IpAddr> {
    let usable = |ip: &&IpAddr| prefix::is_unicast(**ip) && !guarded.iter().any(|net| net.contains(*ip));
    let told = seen.facts.internal_ips.iter().chain(&seen.external_ips).filter(usable).copied();
    told.chain(cidrs(seen, guarded).iter().filter_map(prefix::mesh_address)).collect()
}

/// What is served for a pod; nothing of our own where another plugin serves, and then what its object says.
fn host_ports(name: &ObjectName, attached: &Attached) -> Vec<HostPortFacts> {
    let own = attached.own.as_ref();
    if own.is_some_and(|own| own.finished) {
        return Vec::new();
    }
    let ports = Some(&attached.host_ports).filter(|served| !served.is_empty());
    let ports = ports.or(own.map(|own| &own.host_ports)).into_iter().flatten();
    let facts = ports.map(|port| HostPortFacts {
        pod: name.clone(),
        protocol: port.protocol,
        host_port: port.host_port,
        host_ip: port.host_ip,
        pod_ips: attached.ips.clone(),
        container_port: port.container_port,
    });
    facts.collect()
}

#[cfg(test)]
mod tests;
