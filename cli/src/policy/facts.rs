//! From the API's objects to what policy is decided from, as agents do it:
//!
//! - A pod is known by `hawser.dev/ips`, which its node's agent wrote; its addresses are believed inside the pod CIDR of a
//!   node. Pods in their node's network are that node.
//! - Of two nodes that claim one address or CIDR the older keeps it, then the smaller name.
//! - A node has its InternalIPs outside pod CIDRs and its mesh addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod, Service};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use mesh_core::name::NodeName;
use mesh_core::numbers::{ANNOTATION_IPS, ANNOTATION_POLICY, POLICY_AUDIT};
use mesh_core::policy::model::{
    NamedPort, NamespaceFacts, NodePolicyFacts, ObjectName, PodFacts, PolicyFacts, Protocol,
    is_foreign_namespace,
};
use mesh_core::prefix;
use mesh_core::psk::ClusterName;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::enforcement::{Enforcement, enforcement};
use super::{Addresses, ExplainError, Party};
use crate::agents::Answer;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Objects {
    /// Its name, where it is known.
    pub cluster: Option<ClusterName>,
    /// Pod CIDRs of the cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Nodes.
    pub nodes: Vec<NodeObject>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Namespaces.
    pub namespaces: Vec<PartialObjectMeta<Namespace>>,
    /// Services, to know their addresses.
    pub services: Vec<Service>,
    /// NetworkPolicies.
    pub policies: Vec<DynamicObject>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: Vec<DynamicObject>,
}

/// What policy is decided from, and what else there is to say.
#[derive(Debug, Default)]
pub struct World {
    /// The cluster's name, where it is known.
    pub cluster: Option<ClusterName>,
    /// For policy.
    pub facts: PolicyFacts,
    /// Pod CIDRs of the joined cluster that was read, too.
    pub beyond: Vec<IpNet>,
    /// The node of each pod.
    pub node_of: BTreeMap<ObjectName, String>,
    /// Pods in their node's network.
    pub host_network: BTreeSet<ObjectName>,
    /// Pods that the API has and policy does not know.
    pub unconnected: BTreeSet<ObjectName>,
    /// Addresses of Services, which are nobody's.
    pub services: BTreeMap<IpAddr, String>,
    /// Ports at which every node serves one.
    pub node_ports: BTreeMap<(Protocol, u16), String>,
    /// Whether policy is in force on the nodes whose agents were asked.
    pub enforcement: BTreeMap<String, Enforcement>,
    /// What is not known, and what follows.
    pub doubts: Vec<String>,
}

impl World {
    /// The addresses of a party.
    ///
    /// # Errors
    /// There is none.
    pub fn addresses(&self, party: &Party) -> Result<Addresses, ExplainError> {
        match party {
            Party::Address(address) => match self.services.get(address) {
                Some(service) => Err(ExplainError::Service { address: *address, service: service.clone() }),
                None => Ok(Addresses::from([*address])),
            },
            Party::Node(name) => self.of_node(name),
            Party::Pod(name) if self.host_network.contains(name) => self
                .node_of
                .get(name)
                .map_or_else(|| Err(ExplainError::NoAddress(name.clone())), |node| self.of_node(node)),
            Party::Pod(name) => match self.facts.pods.get(name) {
                Some(pod) => Ok(pod.ips.clone()),
                None if self.unconnected.contains(name) => Err(ExplainError::NoAddress(name.clone())),
                None => Err(ExplainError::NoPod(name.clone())),
            },
        }
    }

    /// The addresses by which a party speaks to a destination: a node has its mesh address towards pods of other nodes.
    ///
    /// # Errors
    /// As [`World::addresses`].
    pub fn sources(&self, party: &Party, destination: IpAddr) -> Result<Addresses, ExplainError> {
        let node = match party {
            Party::Node(name) => Some(name),
            Party::Pod(name) if self.host_network.contains(name) => self.node_of.get(name),
            Party::Pod(_) | Party::Address(_) => None,
        };
        let Some(node) = node.filter(|_| self.is_guarded(destination)) else { return self.addresses(party) };
        let local =
            self.pod_at(&[destination].into()).is_some_and(|pod| self.node_of.get(&pod) == Some(node));
        if local {
            return self.addresses(party);
        }
        let facts = self.facts.nodes.iter().find(|(known, _)| known.as_str() == node);
        let all = facts.into_iter().flat_map(|(_, facts)| &facts.ips);
        Ok(all.filter(|ip| self.is_guarded(**ip)).copied().collect())
    }

    /// The service that a node serves there.
    pub fn node_port(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<&String> {
        let nodes = || self.facts.nodes.values().any(|node| node.ips.contains(&address));
        self.node_ports.get(&(protocol, port)).filter(|_| nodes())
    }

    /// Is it in a pod CIDR of these clusters?
    pub fn is_guarded(&self, address: IpAddr) -> bool {
        self.facts.guarded.iter().chain(&self.beyond).any(|net| net.contains(&address))
    }

    fn of_node(&self, name: &str) -> Result<Addresses, ExplainError> {
        let none = || ExplainError::NoNode(name.to_owned());
        let node = self.facts.nodes.iter().find(|(known, _)| known.as_str() == name).ok_or_else(none)?;
        let addresses: Addresses = node.1.ips.iter().filter(|ip| !self.is_guarded(**ip)).copied().collect();
        if addresses.is_empty() { Err(none()) } else { Ok(addresses) }
    }

    /// The pod of this cluster that has all these addresses.
    pub fn pod_at(&self, addresses: &Addresses) -> Option<ObjectName> {
        let mut own = self.facts.pods.iter().filter(|(name, _)| !is_foreign_namespace(&name.namespace));
        own.find(|(_, pod)| addresses.is_subset(&pod.ips)).map(|(name, _)| name.clone())
    }

    /// Takes in what agents say of policy on their nodes.
    pub fn told(&mut self, answers: &BTreeMap<String, Answer>) {
        for (node, answer) in answers {
            let (enforced, doubt) = enforcement(node, answer);
            self.enforcement.insert(node.clone(), enforced);
            self.doubts.extend(doubt);
        }
    }

    /// Is this an address of the node on which the pod runs?
    pub fn is_own_node(&self, pod: &ObjectName, address: IpAddr) -> bool {
        let node = self.node_of.get(pod);
        let facts = node.and_then(|node| self.facts.nodes.iter().find(|(name, _)| name.as_str() == node));
        facts.is_some_and(|(_, facts)| facts.ips.contains(&address))
    }
}

/// Reads everything.
pub fn world(objects: &Objects) -> World {
    let mut world = World::default();
    world.cluster.clone_from(&objects.cluster);
    world.facts.guarded.clone_from(&objects.pod_cidrs);
    for namespace in &objects.namespaces {
        let audit = namespace.annotations().get(ANNOTATION_POLICY).is_some_and(|value| value == POLICY_AUDIT);
        let facts = NamespaceFacts { labels: namespace.labels().clone(), audit };
        world.facts.namespaces.insert(namespace.name_any(), facts);
    }
    let cidrs = nodes(objects, &mut world);
    for pod in &objects.pods {
        read_pod(pod, &cidrs, &mut world);
    }
    for service in &objects.services {
        let name = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
        for ip in service_addresses(service) {
            world.services.insert(ip, name.clone());
        }
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            let wanted = port.protocol.as_deref().unwrap_or("TCP");
            let protocol = Protocol::ALL.into_iter().find(|known| known.name() == wanted);
            let number = port.node_port.and_then(|port| u16::try_from(port).ok());
            if let (Some(protocol), Some(number)) = (protocol, number) {
                world.node_ports.insert((protocol, number), name.clone());
            }
        }
    }
    policies(objects, &mut world);
    world
}

/// At which agents translate it.
fn service_addresses(service: &Service) -> Addresses {
    let (spec, status) = (service.spec.iter(), service.status.iter());
    let of_spec = spec.flat_map(|spec| {
        let lists = [&spec.cluster_ips, &spec.external_ips].into_iter().flatten().flatten();
        lists.chain(&spec.cluster_ip)
    });
    let ingress = status.filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref()).flatten();
    of_spec
        .chain(ingress.filter_map(|ingress| ingress.ip.as_ref()))
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

/// A Node's pod CIDRs.
pub fn cidrs_of(node: &NodeObject) -> Vec<IpNet> {
    let spec = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    spec.into_iter().flatten().filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.trunc()).collect()
}

/// A Node's InternalIPs.
pub fn internal_ips(node: &NodeObject) -> Vec<IpAddr> {
    ips(node, "InternalIP").collect()
}

fn ips(node: &NodeObject, kind: &str) -> impl Iterator<Item = IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let found = addresses.into_iter().flatten().filter(move |address| address.type_ == kind);
    found.filter_map(|address| address.address.parse().ok())
}

/// Nodes, the oldest first; the CIDRs that they own.
fn nodes(objects: &Objects, world: &mut World) -> Vec<IpNet> {
    let age = |node: &&NodeObject| {
        let created = node.metadata.creation_timestamp.as_ref();
        (created.map_or(i64::MAX, |time| time.0.as_second()), node.name_any())
    };
    let mut nodes: Vec<&NodeObject> = objects.nodes.iter().collect();
    nodes.sort_by_key(age);
    let (mut taken, mut cidrs) = (Addresses::new(), Vec::new());
    for node in nodes {
        let Ok(name) = node.name_any().parse::<NodeName>() else { continue };
        let fits =
            |cidr: &IpNet| prefix::inside(&objects.pod_cidrs, cidr) && prefix::mesh_address(cidr).is_some();
        let own: Vec<IpNet> = cidrs_of(node).into_iter().filter(fits).collect();
        let usable =
            |ip: &IpAddr| prefix::is_unicast(*ip) && !objects.pod_cidrs.iter().any(|net| net.contains(ip));
        let told = ips(node, "InternalIP").chain(ips(node, "ExternalIP")).filter(usable);
        let all = told.chain(own.iter().filter_map(prefix::mesh_address));
        let ips: Addresses = all.filter(|ip| taken.insert(*ip)).collect();
        let labels = node.labels().clone();
        world.facts.nodes.insert(name, NodePolicyFacts { labels, ips });
        cidrs.extend(own);
    }
    cidrs
}

fn read_pod(pod: &Pod, cidrs: &[IpNet], world: &mut World) {
    let name = ObjectName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() };
    let spec = pod.spec.as_ref();
    if let Some(node) = spec.and_then(|spec| spec.node_name.clone()) {
        world.node_of.insert(name.clone(), node);
    }
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        world.host_network.insert(name);
        return;
    }
    let text = pod.annotations().get(ANNOTATION_IPS).map(String::as_str).unwrap_or_default();
    let believed = |ip: &IpAddr| cidrs.iter().any(|net| net.contains(ip));
    let ips: Addresses =
        text.split(',').filter_map(|part| part.trim().parse().ok()).filter(believed).collect();
    if ips.is_empty() {
        world.unconnected.insert(name);
        return;
    }
    let facts = PodFacts { labels: pod.labels().clone(), ips, ports: ports(pod) };
    world.facts.pods.insert(name, facts);
}

/// Ports that the containers name. Of init containers only those run beside the others that are restarted always (KEP-753).
fn ports(pod: &Pod) -> BTreeSet<NamedPort> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let init = spec.init_containers.iter().flatten();
    let beside = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(beside).flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let wanted = port.protocol.as_deref().unwrap_or("TCP");
        Some(NamedPort {
            name: port.name.clone().filter(|name| !name.is_empty())?,
            protocol: Protocol::ALL.into_iter().find(|known| known.name() == wanted)?,
            port: u16::try_from(port.container_port).ok().filter(|port| *port != 0)?,
        })
    });
    named.collect()
}

fn policies(objects: &Objects, world: &mut World) {
    let World { facts, doubts, .. } = world;
    let mut doubt = |kind: &str, name: &str, why: &str| {
        doubts.push(format!(
            "{kind} {name} cannot be read ({why}): agents keep to its former version, or close whom it selects; it is left out here"
        ));
    };
    for object in &objects.policies {
        let name = ObjectName { namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
        match spec(object) {
            Ok(spec) => drop(facts.network_policies.insert(name, spec)),
            Err(why) => doubt("NetworkPolicy", &format!("{}/{}", name.namespace, name.name), &why),
        }
    }
    for object in &objects.cluster_policies {
        match spec(object) {
            Ok(spec) => drop(facts.cluster_policies.insert(object.name_any(), spec)),
            Err(why) => doubt("ClusterNetworkPolicy", &object.name_any(), &why),
        }
    }
}

/// The specification of an object. A field that is null is one that is not there.
fn spec<T: DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let mut spec = object.data.get("spec").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    without_nulls(&mut spec);
    serde_json::from_value(spec).map_err(|error| error.to_string().chars().take(120).collect())
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
