//! Which nodes, which pods, and who asks whom what: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::question::{Ask, OTHER_PORT, PORT, Question};

/// Nodes of one run at most: everybody asks everybody, and all answers of a pod have to fit into its termination message.
pub const NODES_MAX: usize = 8;
/// Name of the Service in front of all servers.
pub const SERVICE: &str = "servers";

/// What a pod is for. Its name begins with it, and it is its label `hawser.dev/role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Serves everybody.
    Server,
    /// Serves, and policy lets askers to one of its ports, and nobody else.
    Guarded,
    /// Asks.
    Asker,
    /// Asks from its node's network.
    Host,
    /// Asks, and policy does not let it to who is guarded.
    Stranger,
    /// Asks, and policy lets it to nobody.
    Mute,
}

impl Role {
    /// As in names and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Guarded => "guarded",
            Self::Asker => "asker",
            Self::Host => "host",
            Self::Stranger => "stranger",
            Self::Mute => "mute",
        }
    }

    /// The name of the pod on the node of this place.
    pub fn pod(self, place: usize) -> String {
        format!("{}-{place}", self.word())
    }
}

/// What the API says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Whether its kubelet is ready for pods.
    pub ready: bool,
    /// Whether it takes new pods.
    pub schedulable: bool,
    /// Whether it runs Linux.
    pub linux: bool,
    /// Whether an agent has announced its keys there.
    pub in_mesh: bool,
    /// Families of its pod CIDRs, of all of which its pods have addresses.
    pub families: BTreeSet<Family>,
}

impl NodeFacts {
    fn obstacle(&self) -> Option<&'static str> {
        match self {
            Self { linux: false, .. } => Some("does not run Linux"),
            Self { ready: false, .. } => Some("is not ready"),
            Self { schedulable: false, .. } => Some("is cordoned"),
            Self { in_mesh: false, .. } => Some("announces no keys (mesh-agent has not run there)"),
            Self { .. } => None,
        }
    }
}

/// The nodes to test on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Their names.
    pub nodes: Vec<String>,
    /// Where they are fewer than were asked for: those that could not be taken.
    pub unfit: Vec<Unfit>,
}

/// A node that cannot be tested, though it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Its name.
    pub node: String,
    /// Why.
    pub why: &'static str,
}

/// Why there are no nodes to test on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// There is no such node.
    #[error("--node {0}: there is no such node; `kubectl get nodes` has their names")]
    NoNode(String),
    /// It cannot run pods.
    #[error(
        "--node {0}: it {1}, so it is no node to test; choose another one, or see kubectl describe node {0}"
    )]
    Unfit(String, &'static str),
    /// It was given twice.
    #[error("--node {0} is given twice")]
    Twice(String),
    /// There are too many.
    #[error(
        "{0} nodes are too many for one run, {NODES_MAX} can be tested at once; run it again for the others"
    )]
    TooMany(usize),
    /// There is none.
    #[error("no node can run pods: {0}; `kubectl get nodes` and `hawser status` say more")]
    None(String),
}

/// The nodes to test on: those that were named, or the first `count` that can run pods.
///
/// # Errors
/// There are none, or one of those named cannot be used.
pub fn choose(nodes: &[NodeFacts], named: &[String], count: usize) -> Result<Chosen, ChooseError> {
    if named.len() > NODES_MAX {
        return Err(ChooseError::TooMany(named.len()));
    }
    let mut chosen: Vec<String> = Vec::new();
    for name in named {
        let node = nodes.iter().find(|node| node.name == *name);
        let node = node.ok_or_else(|| ChooseError::NoNode(name.clone()))?;
        if let Some(why) = node.obstacle() {
            return Err(ChooseError::Unfit(name.clone(), why));
        }
        if chosen.contains(name) {
            return Err(ChooseError::Twice(name.clone()));
        }
        chosen.push(name.clone());
    }
    let mut unfit: Vec<(String, &'static str)> = Vec::new();
    if named.is_empty() {
        let fit = nodes.iter().filter(|node| node.obstacle().is_none()).map(|node| node.name.clone());
        chosen = fit.collect();
        chosen.sort();
        let wanted = count.min(NODES_MAX);
        if chosen.len() < wanted {
            // Those of other systems never have pods of ours.
            let others = nodes.iter().filter(|node| node.linux);
            unfit = others.filter_map(|node| Some((node.name.clone(), node.obstacle()?))).collect();
            unfit.sort();
        }
        chosen.truncate(wanted);
    }
    if chosen.is_empty() {
        let why = nodes.iter().filter_map(|node| Some(format!("{} {}", node.name, node.obstacle()?)));
        let why: Vec<String> = why.take(5).collect();
        return Err(ChooseError::None(if why.is_empty() { "there is none".into() } else { why.join(", ") }));
    }
    let unfit = unfit.into_iter().map(|(node, why)| Unfit { node, why }).collect();
    Ok(Chosen { nodes: chosen, unfit })
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Pod to pod on one node.
    OneNode,
    /// Pod to pod of another node.
    AcrossNodes,
    /// Pod to the address of a Service.
    Service,
    /// A Service's name.
    Name,
    /// A node to its own pod.
    HostOneNode,
    /// A node to a pod of another one.
    HostAcrossNodes,
    /// Policy lets through what it allows.
    PolicyAllows,
    /// Policy keeps other pods out.
    PolicyDeniesPod,
    /// Policy keeps other ports closed.
    PolicyDeniesPort,
    /// Policy keeps a pod from sending.
    PolicyDeniesEgress,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[expect(missing_docs, reason = "as everybody calls them")]
pub enum Family {
    IPv4,
    IPv6,
}

impl Family {
    /// That of an address.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }

    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// One thing that is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub kind: Kind,
    /// Who asks: place among [`Plan::askers`].
    pub asker: usize,
    /// Whom, by the name of a pod or Service.
    pub to: String,
    /// The node of that pod.
    pub to_node: Option<String>,
    /// By which family.
    pub family: Option<Family>,
    /// What is asked.
    pub questions: Vec<Question>,
    /// A check, by its place, that has to hold if silence shall mean something here.
    pub control: Option<usize>,
}

/// A pod that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// What it is.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
}

/// All that is to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods that ask. Those that measure come first, and run one after the other.
    pub askers: Vec<Asker>,
    /// What is looked at.
    pub checks: Vec<Check>,
    /// What there is not in this cluster, and is not looked at.
    pub skipped: Vec<String>,
    /// What should be there, and cannot be looked at.
    pub lacking: Vec<Lacking>,
}

/// Pods without an address of a family of which their node has a pod CIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The node.
    pub node: String,
    /// The pods.
    pub pods: Vec<String>,
    /// The family.
    pub family: Family,
}

impl Plan {
    /// What a pod asks, check by check.
    pub fn questions(&self, asker: usize) -> Vec<Question> {
        let own = self.checks.iter().filter(|check| check.asker == asker);
        own.flat_map(|check| check.questions.iter().cloned()).collect()
    }
}

/// A pod that serves, and runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

impl Served {
    fn ip(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// What is there to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// The namespace.
    pub namespace: String,
    /// Servers, one on each node.
    pub servers: Vec<Served>,
    /// Guarded ones, in the same order.
    pub guarded: Vec<Served>,
    /// Addresses of the Service in front of the servers.
    pub service: Vec<IpAddr>,
    /// Of which families each node has a pod CIDR.
    pub families: BTreeMap<String, BTreeSet<Family>>,
    /// Whether throughput is measured.
    pub throughput: bool,
    /// Whether pods in their node's network ask, too.
    pub host: bool,
}

/// Makes the plan.
pub fn plan(stage: &Stage) -> Plan {
    let mut plan = Plan::default();
    let nodes = stage.servers.iter().map(|server| server.node.clone()).enumerate();
    for (place, node) in nodes.clone() {
        for role in [Role::Asker, Role::Host].into_iter().filter(|role| stage.host || *role != Role::Host) {
            plan.askers.push(Asker { role, name: role.pod(place), node: node.clone() });
        }
    }
    for (place, node) in nodes.clone() {
        for role in [Role::Stranger, Role::Mute] {
            plan.askers.push(Asker { role, name: role.pod(place), node: node.clone() });
        }
    }
    let families = |here: &Served, there: &Served| {
        let both = [Family::IPv4, Family::IPv6].into_iter();
        both.filter(|family| here.ip(*family).is_some() && there.ip(*family).is_some()).collect::<Vec<_>>()
    };
    for (here_at, here) in stage.servers.iter().enumerate() {
        let asker = |role: Role| {
            let found = plan.askers.iter().position(|asker| asker.name == role.pod(here_at));
            found.unwrap_or(0)
        };
        let [asks, host, stranger, mute] = [Role::Asker, Role::Host, Role::Stranger, Role::Mute].map(asker);
        for (server, guarded) in stage.servers.iter().zip(&stage.guarded) {
            let near = server.node == here.node;
            for family in families(here, server) {
                let way = if near { Kind::OneNode } else { Kind::AcrossNodes };
                let control = Some(plan.checks.len());
                push(&mut plan, way, asks, server, family, open(stage, server, family, PORT), None);
                if stage.host {
                    let way = if near { Kind::HostOneNode } else { Kind::HostAcrossNodes };
                    push(&mut plan, way, host, server, family, open(stage, server, family, PORT), None);
                }
                let questions = both(server, family, [Ask::NoTcp, Ask::NoUdp], PORT);
                push(&mut plan, Kind::PolicyDeniesEgress, mute, server, family, questions, control);
            }
            for family in families(here, guarded) {
                let control = Some(plan.checks.len());
                let questions = both(guarded, family, [Ask::Tcp, Ask::Udp], PORT);
                push(&mut plan, Kind::PolicyAllows, asks, guarded, family, questions, None);
                let questions = both(guarded, family, [Ask::NoTcp, Ask::NoUdp], OTHER_PORT);
                push(&mut plan, Kind::PolicyDeniesPort, asks, guarded, family, questions, control);
                // That this pod reaches anybody at all is asked, too.
                let mut questions = both(guarded, family, [Ask::NoTcp, Ask::NoUdp], PORT);
                questions.extend(both(server, family, [Ask::Tcp], PORT));
                push(&mut plan, Kind::PolicyDeniesPod, stranger, guarded, family, questions, None);
            }
        }
        let all: BTreeSet<String> = stage.servers.iter().map(|server| server.name.clone()).collect();
        let own = stage.service.iter().filter(|ip| here.ip(Family::of(**ip)).is_some());
        for ip in own {
            let asked = |ask| Question::Server { ask, at: SocketAddr::new(*ip, PORT), servers: all.clone() };
            plan.checks.push(Check {
                kind: Kind::Service,
                asker: asks,
                to: SERVICE.to_owned(),
                to_node: None,
                family: Some(Family::of(*ip)),
                questions: measured(stage.throughput).map(asked).collect(),
                control: None,
            });
        }
        plan.checks.push(Check {
            kind: Kind::Name,
            asker: asks,
            to: SERVICE.to_owned(),
            to_node: None,
            family: None,
            questions: vec![Question::Name {
                name: format!("{SERVICE}.{}.svc", stage.namespace),
                ips: stage.service.iter().copied().collect(),
            }],
            control: None,
        });
    }
    if !stage.host {
        plan.skipped.push("from nodes to pods: --no-host".to_owned());
    }
    if stage.servers.len() < 2 {
        plan.skipped.push("from node to node: only one node is tested".to_owned());
    }
    for family in [Family::IPv4, Family::IPv6] {
        let intended = stage.families.values().any(|families| families.contains(&family));
        if !intended && stage.servers.iter().all(|server| server.ip(family).is_none()) {
            plan.skipped.push(format!("{}: pods of this cluster have no such addresses", family.word()));
        }
    }
    plan.lacking = lacking(stage);
    plan
}

/// What the nodes' pod CIDRs promise, and their pods do not have.
fn lacking(stage: &Stage) -> Vec<Lacking> {
    let mut all = Vec::new();
    for (node, families) in &stage.families {
        for family in families {
            let own = stage.servers.iter().chain(&stage.guarded).filter(|pod| pod.node == *node);
            let without = own.filter(|pod| pod.ip(*family).is_none());
            let pods: Vec<String> = without.map(|pod| pod.name.clone()).collect();
            if !pods.is_empty() {
                all.push(Lacking { node: node.clone(), pods, family: *family });
            }
        }
    }
    all
}

fn push(
    plan: &mut Plan,
    kind: Kind,
    asker: usize,
    to: &Served,
    family: Family,
    questions: Vec<Question>,
    control: Option<usize>,
) {
    let (to, to_node) = (to.name.clone(), Some(to.node.clone()));
    plan.checks.push(Check { kind, asker, to, to_node, family: Some(family), questions, control });
}

/// What is measured of a way.
fn measured(throughput: bool) -> impl Iterator<Item = Ask> {
    [Ask::Tcp, Ask::Udp].into_iter().chain(throughput.then_some(Ask::Rate))
}

fn open(stage: &Stage, to: &Served, family: Family, port: u16) -> Vec<Question> {
    measured(stage.throughput).flat_map(|ask| both(to, family, [ask], port)).collect()
}

fn both<const N: usize>(to: &Served, family: Family, asks: [Ask; N], port: u16) -> Vec<Question> {
    let servers = BTreeSet::from([to.name.clone()]);
    let at = to.ip(family).map(|ip| SocketAddr::new(ip, port));
    let one = |ask| at.map(|at| Question::Server { ask, at, servers: servers.clone() });
    asks.into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests;
