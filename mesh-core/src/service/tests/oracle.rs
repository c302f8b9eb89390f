//! Which backends a packet of this node's pods may get: the rules one after the other, read from the objects, slow and
//! obvious. It shares no code with what it judges but the objects' types.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::policy::model::{ObjectName, Protocol};
use crate::service::model::{EndpointFacts, EndpointSliceFacts, HostPortFacts, Nodes, OwnNode, ServiceFacts};

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) own: OwnNode,
    /// InternalIPs of all nodes.
    pub(super) nodes: BTreeSet<IpAddr>,
    /// The same, as far as it is known whose they are.
    pub(super) homes: Nodes,
    pub(super) services: BTreeMap<ObjectName, ServiceFacts>,
    pub(super) slices: BTreeMap<ObjectName, EndpointSliceFacts>,
    pub(super) host_ports: BTreeSet<HostPortFacts>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is left as it is.
    Untouched,
    /// Its sender is told that nobody is there.
    Refused,
    /// It vanishes.
    Dropped,
    /// It goes to one of these, with so many seconds of affinity.
    To(BTreeSet<SocketAddr>, u32),
}

pub(super) fn protocol(text: &str) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|p| format!("{p:?}").to_uppercase() == text || text.is_empty() && *p == Protocol::Tcp)
}

fn served(service: &ServiceFacts) -> bool {
    let spec = &service.spec;
    let labels = &service.metadata.labels;
    !labels.contains_key("service.kubernetes.io/service-proxy-name")
        && !labels.contains_key("service.kubernetes.io/headless")
        && ["", "ClusterIP", "NodePort", "LoadBalancer"].contains(&spec.kind.as_str())
        && spec.cluster_ip != "None"
        && !spec.cluster_ips.contains(&"None".to_owned())
}

fn usable(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|addr| crate::prefix::is_unicast(*addr))
}

fn cluster_ips(service: &ServiceFacts) -> Vec<IpAddr> {
    let spec = &service.spec;
    let texts =
        if spec.cluster_ips.is_empty() { vec![spec.cluster_ip.clone()] } else { spec.cluster_ips.clone() };
    texts.iter().filter_map(|text| usable(text)).collect()
}

/// An endpoint, and whether another cluster has it.
struct Known {
    facts: EndpointFacts,
    abroad: bool,
}

/// A wish for an address and port: strength, object, and what happens if it is granted.
type Wish = ((u8, u8, ObjectName), Answer);

impl World {
    pub(super) fn answer(&self, addr: IpAddr, port: u16, proto: Protocol) -> Answer {
        let services: Vec<_> = self.services.iter().filter(|(_, service)| served(service)).collect();
        let holder = services.iter().find(|(_, service)| cluster_ips(service).contains(&addr));
        let mut wishes: Vec<Wish> = Vec::new();
        for (name, service) in &services {
            wishes.extend(self.wishes(name, service, addr, port, proto));
            wishes.extend(self.node_wish(name, service, addr, port, proto));
        }
        wishes.extend(self.host_port_wishes(addr, port, proto));
        if let Some((holder, _)) = holder {
            wishes.retain(|((kind, _, name), _)| *kind == 0 && name == *holder);
        }
        if let Some(granted) = wishes.into_iter().min_by_key(|(strength, _)| reorder(strength)) {
            return granted.1;
        }
        if self.nodes.contains(&addr) {
            let node_port =
                services.iter().find_map(|(_, service)| self.node_port(service, addr, port, proto));
            return node_port.unwrap_or(Answer::Untouched);
        }
        match holder {
            Some((name, service)) if self.something_is_left_to_the_stack(name, service, addr) => {
                Answer::Untouched
            }
            Some(_) => Answer::Refused,
            None => Answer::Untouched,
        }
    }

    fn wishes(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        addr: IpAddr,
        port: u16,
        proto: Protocol,
    ) -> Vec<Wish> {
        let family = |a: &IpAddr| a.is_ipv4() == addr.is_ipv4();
        if !cluster_ips(service).iter().any(family) {
            return Vec::new();
        }
        let mut wishes = Vec::new();
        for (index, entry) in service.spec.ports.iter().enumerate() {
            let same = i64::from(port) == entry.port && protocol(&entry.protocol) == Some(proto);
            if !same || self.is_repeated(service, index) || self.sctp_moves(name, service, index, addr, port)
            {
                continue;
            }
            let mut wish = |rank, answer| wishes.push(((0, rank, name.clone()), answer));
            if cluster_ips(service).contains(&addr) {
                let local = service.spec.internal_traffic_policy == "Local";
                let scope = if local { Scope::Here } else { Scope::Cluster };
                wish(0, self.behind(name, service, index, addr, scope));
            }
            for ingress in &service.status.load_balancer.ingress {
                if ingress.ip_mode != "Proxy" && usable(&ingress.ip) == Some(addr) {
                    let inside = self.inside_ranges(service, addr);
                    let answer = || self.behind(name, service, index, addr, Scope::Cluster);
                    wish(2, if inside { answer() } else { Answer::Dropped });
                }
            }
            if service.spec.external_ips.iter().any(|ip| usable(ip) == Some(addr)) {
                wish(3, self.behind(name, service, index, addr, Scope::Cluster));
            }
        }
        wishes
    }

    fn host_port_wishes(&self, addr: IpAddr, port: u16, proto: Protocol) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for facts in &self.host_ports {
            let here = match facts.host_ip {
                None => true,
                Some(ip) if ip == IpAddr::from([0, 0, 0, 0]) => addr.is_ipv4(),
                Some(ip) if ip.is_unspecified() => true,
                Some(ip) => ip == addr,
            };
            let pod = facts.pod_ips.iter().find(|ip| ip.is_ipv4() == addr.is_ipv4());
            let moved = proto == Protocol::Sctp && facts.container_port != port;
            if let Some(pod) = pod
                && here
                && !moved
                && (facts.host_port, facts.protocol) == (port, proto)
                && self.own.addresses.contains(&addr)
            {
                let backend = BTreeSet::from([SocketAddr::new(*pod, facts.container_port)]);
                wishes.push(((1, 4, facts.pod.clone()), Answer::To(backend, 0)));
            }
        }
        wishes
    }

    fn node_port(&self, service: &ServiceFacts, addr: IpAddr, port: u16, proto: Protocol) -> Option<Answer> {
        let name =
            self.services.iter().find(|(_, other)| std::ptr::eq(*other, service)).map(|(name, _)| name)?;
        let scope =
            if service.spec.external_traffic_policy == "Local" { Scope::Node("") } else { Scope::Cluster };
        let index = self.node_port_index(name, service, addr, port, proto)?;
        Some(self.behind(name, service, index, addr, scope))
    }

    /// At one node, whose own endpoints alone serve there.
    fn node_wish(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        addr: IpAddr,
        port: u16,
        proto: Protocol,
    ) -> Option<Wish> {
        if service.spec.external_traffic_policy != "Local" {
            return None;
        }
        let index = self.node_port_index(name, service, addr, port, proto)?;
        let scope = if self.own.addresses.contains(&addr) {
            Scope::Cluster
        } else {
            let all = self.endpoints(name, service, index, addr);
            let has = |node: &str| {
                all.values().any(|known| {
                    let conditions = &known.facts.conditions;
                    is_on(known, node)
                        && (conditions.ready != Some(false) || conditions.serving != Some(false))
                })
            };
            let mut at =
                self.homes.iter().filter(|(_, addrs)| addrs.contains(&addr)).map(|(node, _)| node.as_str());
            Scope::Node(at.find(|node| has(node))?)
        };
        Some(((0, 5, name.clone()), self.behind(name, service, index, addr, scope)))
    }

    fn node_port_index(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        addr: IpAddr,
        port: u16,
        proto: Protocol,
    ) -> Option<usize> {
        let typed = ["NodePort", "LoadBalancer"].contains(&service.spec.kind.as_str());
        if !typed || !cluster_ips(service).iter().any(|ip| ip.is_ipv4() == addr.is_ipv4()) {
            return None;
        }
        let mut ports = service.spec.ports.iter().enumerate();
        let (index, _) = ports.find(|(index, entry)| {
            entry.node_port == i64::from(port)
                && (1..=65_535).contains(&entry.port)
                && protocol(&entry.protocol) == Some(proto)
                && !self.is_repeated(service, *index)
                && !self.sctp_moves(name, service, *index, addr, port)
        })?;
        Some(index)
    }

    /// An earlier valid port has its name and protocol.
    fn is_repeated(&self, service: &ServiceFacts, index: usize) -> bool {
        let ports = &service.spec.ports;
        let key = |i: usize| (ports[i].name.clone(), protocol(&ports[i].protocol));
        (0..index).any(|i| key(i) == key(index) && (1..=65_535).contains(&ports[i].port))
    }

    fn something_is_left_to_the_stack(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        addr: IpAddr,
    ) -> bool {
        (0..service.spec.ports.len()).any(|index| {
            let port = service.spec.ports[index].port;
            !self.is_repeated(service, index)
                && u16::try_from(port).is_ok_and(|p| p > 0 && self.sctp_moves(name, service, index, addr, p))
        })
    }

    fn sctp_moves(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        index: usize,
        addr: IpAddr,
        port: u16,
    ) -> bool {
        if protocol(&service.spec.ports[index].protocol) != Some(Protocol::Sctp) {
            return false;
        }
        let endpoints = self.endpoints(name, service, index, addr);
        endpoints.iter().any(|(at, Known { facts, .. })| {
            at.port() != port
                && (facts.conditions.ready != Some(false) || facts.conditions.serving != Some(false))
        })
    }

    /// Endpoints of a port in the family of `addr`.
    fn endpoints(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        index: usize,
        addr: IpAddr,
    ) -> BTreeMap<SocketAddr, Known> {
        let wanted = &service.spec.ports[index];
        let mut found: BTreeMap<SocketAddr, Known> = BTreeMap::new();
        for (slice_name, slice) in &self.slices {
            let labels = &slice.metadata.labels;
            let ours = slice_name.namespace == name.namespace
                && labels.get("kubernetes.io/service-name") == Some(&name.name)
                && !labels.contains_key("service.kubernetes.io/service-proxy-name")
                && !labels.contains_key("service.kubernetes.io/headless")
                && slice.address_type == if addr.is_ipv4() { "IPv4" } else { "IPv6" };
            for port in slice.ports.iter().filter(|_| ours) {
                let number = port.port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
                let same = port.name == wanted.name && protocol(&port.protocol) == protocol(&wanted.protocol);
                let (Some(number), true) = (number, same) else { continue };
                for facts in &slice.endpoints {
                    let ip = facts.addresses.first().and_then(|text| usable(text));
                    let Some(ip) = ip.filter(|ip| ip.is_ipv4() == addr.is_ipv4()) else { continue };
                    let at = SocketAddr::new(ip, number);
                    let known =
                        Known { abroad: labels.contains_key("hawser.dev/remote"), facts: facts.clone() };
                    let merit = |known: &Known| {
                        let facts = &known.facts;
                        (!known.abroad, self.is_here(known), is_ready(facts), is_ending(facts))
                    };
                    if found.get(&at).is_none_or(|other| merit(&known) > merit(other)) {
                        found.insert(at, known);
                    }
                }
            }
        }
        found
    }

    fn is_here(&self, known: &Known) -> bool {
        let node = known.facts.node_name.as_deref();
        !known.abroad && self.own.name.as_ref().is_some_and(|name| node == Some(name.as_str()))
    }

    fn behind(
        &self,
        name: &ObjectName,
        service: &ServiceFacts,
        index: usize,
        addr: IpAddr,
        scope: Scope<'_>,
    ) -> Answer {
        let affinity = match service.spec.session_affinity.as_str() {
            "ClientIP" => match service.spec.session_affinity_config.client_ip.timeout_seconds {
                Some(seconds @ 1..=86_400) => u32::try_from(seconds).unwrap(),
                _ => 10_800,
            },
            _ => 0,
        };
        let all = self.endpoints(name, service, index, addr);
        let here = |known: &Known| match scope {
            Scope::Cluster => true,
            Scope::Here => self.is_here(known),
            Scope::Node(node) => is_on(known, node),
        };
        let local = !matches!(scope, Scope::Cluster);
        // Own ready ones, ready ones abroad, own ending ones, ending ones abroad.
        for (ready, abroad) in [(true, false), (true, true), (false, false), (false, true)] {
            let fits = |known: &Known| {
                let state = if ready { is_ready(&known.facts) } else { is_ending(&known.facts) };
                state && known.abroad == abroad && here(known)
            };
            let found: Vec<_> =
                all.iter().filter(|(_, known)| fits(known)).map(|(at, known)| (at, &known.facts)).collect();
            let found = if ready && !local { self.hinted(found) } else { found };
            if !found.is_empty() {
                return Answer::To(found.into_iter().map(|(at, _)| *at).collect(), affinity);
            }
        }
        let somebody = all.values().any(|known| is_ready(&known.facts) || is_ending(&known.facts));
        if local && somebody { Answer::Dropped } else { Answer::Refused }
    }

    fn hinted<'a>(
        &self,
        ready: Vec<(&'a SocketAddr, &'a EndpointFacts)>,
    ) -> Vec<(&'a SocketAddr, &'a EndpointFacts)> {
        let me = self.own.name.as_ref().map(|name| name.as_str().to_owned()).unwrap_or_default();
        let zone = self.own.zone.clone().unwrap_or_default();
        let nodes =
            |facts: &EndpointFacts| facts.hints.for_nodes.iter().map(|h| h.name.clone()).collect::<Vec<_>>();
        let zones =
            |facts: &EndpointFacts| facts.hints.for_zones.iter().map(|h| h.name.clone()).collect::<Vec<_>>();
        if ready.iter().all(|(_, f)| !nodes(f).is_empty())
            && ready.iter().any(|(_, f)| nodes(f).contains(&me))
        {
            return ready.into_iter().filter(|(_, f)| nodes(f).contains(&me)).collect();
        }
        if ready.iter().all(|(_, f)| !zones(f).is_empty())
            && ready.iter().any(|(_, f)| zones(f).contains(&zone))
        {
            return ready.into_iter().filter(|(_, f)| zones(f).contains(&zone)).collect();
        }
        ready
    }

    fn inside_ranges(&self, service: &ServiceFacts, addr: IpAddr) -> bool {
        let written = &service.spec.load_balancer_source_ranges;
        let read: Vec<IpNet> = written.iter().filter_map(|text| text.trim().parse().ok()).collect();
        let of_family: Vec<_> = read.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4()).collect();
        if of_family.is_empty() {
            return read.len() == written.len();
        }
        let own = self.own.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == addr.is_ipv4());
        own.into_iter().all(|cidr| of_family.iter().any(|range| range.contains(cidr)))
    }
}

/// Among whom.
#[derive(Clone, Copy)]
enum Scope<'a> {
    Cluster,
    Here,
    /// Those on this node; no node has the empty name.
    Node(&'a str),
}

fn is_on(known: &Known, node: &str) -> bool {
    !known.abroad && !node.is_empty() && known.facts.node_name.as_deref() == Some(node)
}

fn is_ready(facts: &EndpointFacts) -> bool {
    facts.conditions.ready != Some(false)
}

fn is_ending(facts: &EndpointFacts) -> bool {
    facts.conditions.serving != Some(false) && facts.conditions.terminating == Some(true)
}

/// Strength first, then services before pods, then the name.
fn reorder((kind, rank, name): &(u8, u8, ObjectName)) -> (u8, u8, ObjectName) {
    (*rank, *kind, name.clone())
}
