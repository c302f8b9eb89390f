//! Reads a ClusterNetworkPolicy (`standards.md` §3). What is malformed in an Accept rule accepts nothing; a Deny or Pass
//! rule with it, and a rule whose action nobody knows, deny everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::normal::{Action, NameUse, Peers, Policy, PortMatch, Ports, Rank, Rule, with_foreign_names};
use super::read::{Reader, position};
use crate::policy::classes::{Atom, Block};
use crate::policy::model::{
    ClusterNetworkPolicySpec, ClusterPeer, ClusterPort, ClusterProtocol, ClusterRule, ClusterSubject,
    Direction, LabelSelector, NamespacedPods, Protocol,
};
use crate::policy::problems::PolicyRef;
use crate::policy::selector::{NamespaceMatch, PodMatch, Selector};
use crate::policy::tables::index;

const SUBJECT: &str = "the policy holds for every pod until it is corrected";
const PEER: &str = "this peer matches nothing until it is corrected";
const PORT: &str = "this entry matches nothing until it is corrected";
const DENIES: &str = "the rule denies everything of everybody until it is corrected";

/// Reads it. Never fails: what is wrong is among its problems.
pub(crate) fn read(name: &str, spec: &ClusterNetworkPolicySpec) -> Policy {
    let mut reader = Cluster { reader: Reader::new(PolicyRef::Cluster(name.to_owned())), names: Vec::new() };
    let rank = reader.rank(name, spec);
    let subject = reader.subject(&spec.subject).unwrap_or_else(PodMatch::everything);
    let mut rules = [Vec::new(), Vec::new()];
    for (direction, list) in [(Direction::Ingress, &spec.ingress), (Direction::Egress, &spec.egress)] {
        for (i, rule) in list.iter().enumerate() {
            reader.rule(direction, i, rule, &mut rules[index(direction)]);
        }
    }
    let Cluster { reader: Reader { object, problems }, names } = reader;
    Policy { object, subject, rank, isolates: [false, false], rules, problems, names }
}

struct Cluster {
    reader: Reader,
    names: Vec<NameUse>,
}

/// One rule while it is read.
struct Open {
    direction: Direction,
    path: String,
    /// What happens meanwhile where a peer or an entry is malformed.
    then: [&'static str; 2],
    /// Peers that are pods.
    pods: BTreeSet<Arc<Atom>>,
    /// Peers that are addresses: a port's name means nothing there.
    addresses: BTreeSet<Arc<Atom>>,
    ports: BTreeSet<PortMatch>,
}

impl Cluster {
    fn rank(&mut self, name: &str, spec: &ClusterNetworkPolicySpec) -> Rank {
        if !(0..=1000).contains(&spec.priority) {
            let then = "it is obeyed as if that were allowed; choose one from there";
            self.reader.report("spec.priority", spec.priority, "is not from 0 to 1000", then);
        }
        match spec.tier.as_str() {
            "Baseline" => Rank::Baseline(spec.priority, name.to_owned()),
            "Admin" => Rank::Admin(spec.priority, name.to_owned()),
            other => {
                let then = "taken for Admin until it is corrected";
                self.reader.report("spec.tier", other, "is neither Admin nor Baseline", then);
                Rank::Admin(spec.priority, name.to_owned())
            }
        }
    }

    fn subject(&mut self, subject: &ClusterSubject) -> Option<PodMatch> {
        match (&subject.namespaces, &subject.pods) {
            (Some(namespaces), None) => self.namespaces("spec.subject.namespaces", namespaces, SUBJECT),
            (None, Some(pods)) => self.pods("spec.subject.pods", pods, SUBJECT),
            (None, None) => {
                self.reader.report("spec.subject", "{}", "has neither namespaces nor pods", SUBJECT);
                None
            }
            (Some(_), Some(_)) => {
                self.reader.report("spec.subject", "namespaces and pods", "has more than one field", SUBJECT);
                None
            }
        }
    }

    fn namespaces(&mut self, path: &str, selector: &LabelSelector, then: &str) -> Option<PodMatch> {
        let selector = self.reader.selector(path, selector, then)?;
        Some(PodMatch { namespace: NamespaceMatch::Selected(selector), pods: Selector::default() })
    }

    fn pods(&mut self, path: &str, selectors: &NamespacedPods, then: &str) -> Option<PodMatch> {
        let namespace = self.reader.selector(
            &format!("{path}.namespaceSelector"),
            &selectors.namespace_selector,
            then,
        )?;
        let pods = self.reader.selector(&format!("{path}.podSelector"), &selectors.pod_selector, then)?;
        Some(PodMatch { namespace: NamespaceMatch::Selected(namespace), pods })
    }

    fn rule(&mut self, direction: Direction, i: usize, rule: &ClusterRule, rules: &mut Vec<Rule>) {
        let (path, list, peers) = match direction {
            Direction::Ingress => (format!("spec.ingress[{i}]"), "from", &rule.from),
            Direction::Egress => (format!("spec.egress[{i}]"), "to", &rule.to),
        };
        let index = position(i);
        let deny_all = Rule { index, action: Action::Deny, peers: Peers::Everybody, ports: Ports::All };
        let (action, then) = match rule.action.as_str() {
            "Accept" => (Action::Accept, [PEER, PORT]),
            "Deny" => (Action::Deny, [DENIES, DENIES]),
            "Pass" => (Action::Pass, [DENIES, DENIES]),
            other => {
                let field = format!("{path}.action");
                self.reader.report(&field, other, "is none of Accept, Deny, Pass", DENIES);
                rules.push(deny_all);
                return;
            }
        };
        let (pods, addresses, ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut open = Open { direction, path, then, pods, addresses, ports };
        let mut sound = true;
        for (k, peer) in peers.iter().enumerate() {
            let path = format!("{}.{list}[{k}]", open.path);
            sound &= self.peer(&mut open, &path, peer).is_some();
        }
        sound &= self.protocols(&mut open, rule.protocols.as_deref()).is_some();
        if !sound && action != Action::Accept {
            rules.push(deny_all);
            return;
        }
        split(open, index, action, rule.protocols.is_none(), rules);
    }

    fn peer(&mut self, open: &mut Open, path: &str, peer: &ClusterPeer) -> Option<()> {
        let then = open.then[0];
        let fields = [
            ("namespaces", peer.namespaces.is_some()),
            ("pods", peer.pods.is_some()),
            ("networks", peer.networks.is_some()),
            ("nodes", peer.nodes.is_some()),
            ("domainNames", peer.domain_names.is_some()),
        ];
        let given: Vec<_> = fields.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        let egress = open.direction == Direction::Egress;
        match (given.as_slice(), peer) {
            (["namespaces"], ClusterPeer { namespaces: Some(selector), .. }) => {
                let pods = self.namespaces(&format!("{path}.namespaces"), selector, then)?;
                open.pods.insert(Arc::new(Atom::Pods(pods)));
            }
            (["pods"], ClusterPeer { pods: Some(selectors), .. }) => {
                let pods = self.pods(&format!("{path}.pods"), selectors, then)?;
                open.pods.insert(Arc::new(Atom::Pods(pods)));
            }
            (["networks"], ClusterPeer { networks: Some(networks), .. }) if egress => {
                open.addresses.extend(self.networks(&format!("{path}.networks"), networks, then)?);
            }
            (["nodes"], ClusterPeer { nodes: Some(selector), .. }) if egress => {
                let nodes = self.reader.selector(&format!("{path}.nodes"), selector, then)?;
                open.addresses.insert(Arc::new(Atom::Nodes(nodes)));
            }
            ([], _) => {
                self.reader.report(path, "{}", "has no field that is known here", then);
                return None;
            }
            ([field @ ("networks" | "nodes")], _) => {
                self.reader.report(path, field, "is a peer of egress rules alone", then);
                return None;
            }
            (["domainNames"], _) => {
                self.reader.report(path, "domainNames", "is a peer that is not known here", then);
                return None;
            }
            (several, _) => {
                self.reader.report(path, several.join(" and "), "has more than one field", then);
                return None;
            }
        }
        Some(())
    }

    fn networks(&mut self, path: &str, networks: &[String], then: &str) -> Option<Vec<Arc<Atom>>> {
        if networks.is_empty() {
            self.reader.report(path, "[]", "needs at least one CIDR", then);
            return None;
        }
        let mut atoms = Some(Vec::new());
        for (k, text) in networks.iter().enumerate() {
            match self.reader.cidr(&format!("{path}[{k}]"), text, then) {
                Some(cidr) => {
                    atoms.iter_mut().for_each(|a| a.push(Arc::new(Atom::Block(Block::new(cidr, &[])))))
                }
                None => atoms = None,
            }
        }
        atoms
    }

    fn protocols(&mut self, open: &mut Open, protocols: Option<&[ClusterProtocol]>) -> Option<()> {
        let Some(protocols) = protocols else { return Some(()) };
        if protocols.is_empty() {
            let field = format!("{}.protocols", open.path);
            self.reader.report(&field, "[]", "needs at least one entry", open.then[1]);
            return None;
        }
        let mut sound = Some(());
        for (k, entry) in protocols.iter().enumerate() {
            let path = format!("{}.protocols[{k}]", open.path);
            match self.entry(open, &path, entry) {
                Some(port) => {
                    open.ports.insert(port);
                }
                None => sound = None,
            }
        }
        sound
    }

    fn entry(&mut self, open: &Open, path: &str, entry: &ClusterProtocol) -> Option<PortMatch> {
        let then = open.then[1];
        let (protocol, field, ports) =
            match (&entry.tcp, &entry.udp, &entry.sctp, &entry.destination_named_port) {
                (Some(ports), None, None, None) => (Protocol::Tcp, "tcp", ports),
                (None, Some(ports), None, None) => (Protocol::Udp, "udp", ports),
                (None, None, Some(ports), None) => (Protocol::Sctp, "sctp", ports),
                (None, None, None, Some(name)) => {
                    let field = format!("{path}.destinationNamedPort");
                    if name.is_empty() {
                        self.reader.report(&field, name, "is no name of a port", then);
                        return None;
                    }
                    let (direction, name) = (open.direction, name.clone());
                    self.names.push(NameUse { direction, field, name: name.clone(), protocol: None });
                    return Some(PortMatch::Name(name, None));
                }
                (None, None, None, None) => {
                    self.reader.report(path, "{}", "has no field that is known here", then);
                    return None;
                }
                _ => {
                    self.reader.report(path, "several protocols", "has more than one field", then);
                    return None;
                }
            };
        let Some(port) = &ports.destination_port else { return Some(PortMatch::Protocol(protocol)) };
        let path = format!("{path}.{field}.destinationPort");
        let (first, last) = self.ports(&path, port, then)?;
        Some(PortMatch::Range(protocol, first, last))
    }

    fn ports(&mut self, path: &str, port: &ClusterPort, then: &str) -> Option<(u16, u16)> {
        match (port.number, &port.range) {
            (Some(number), None) => {
                let number = self.reader.port(&format!("{path}.number"), number, then)?;
                Some((number, number))
            }
            (None, Some(range)) => {
                let start = self.reader.port(&format!("{path}.range.start"), range.start, then)?;
                let end = self.reader.port(&format!("{path}.range.end"), range.end, then)?;
                if start >= end {
                    let wrong = format!("is not above start {start}");
                    self.reader.report(&format!("{path}.range.end"), end, &wrong, then);
                    return None;
                }
                Some((start, end))
            }
            (None, None) => {
                self.reader.report(path, "{}", "has neither number nor range", then);
                None
            }
            (Some(_), Some(_)) => {
                self.reader.report(path, "number and range", "has more than one field", then);
                None
            }
        }
    }
}

/// A rule of its own for peers that are addresses, where a port's name matches nothing.
fn split(open: Open, index: u32, action: Action, all: bool, rules: &mut Vec<Rule>) {
    let ports = |ports| if all { Ports::All } else { Ports::AnyOf(ports) };
    let numbers = open.ports.iter().filter(|port| !matches!(port, PortMatch::Name(..))).cloned().collect();
    if !open.addresses.is_empty() {
        rules.push(Rule { index, action, peers: Peers::AnyOf(open.addresses), ports: ports(numbers) });
    }
    if !open.pods.is_empty() {
        let asks = open.direction == Direction::Egress
            && open.pods.iter().any(|atom| atom.asks_for_clusters().is_some());
        let entries = if asks { with_foreign_names(&open.ports) } else { open.ports };
        rules.push(Rule { index, action, peers: Peers::AnyOf(open.pods), ports: ports(entries) });
    }
}
