//! Reads a NetworkPolicy (`standards.md` §2.2). It only allows, so what is malformed allows nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::normal::{Action, NameUse, Peers, Policy, PortMatch, Ports, Rank, Rule, with_foreign_names};
use super::read::{Reader, position};
use crate::policy::classes::{Atom, Block};
use crate::policy::model::{
    Direction, IpBlock, NetworkPolicySpec, ObjectName, PolicyPeer, PolicyPort, PortRef, Protocol,
};
use crate::policy::problems::PolicyRef;
use crate::policy::selector::{NamespaceMatch, PodMatch, Selector};
use crate::policy::tables::index;

/// Prefixes in all ipBlocks of one NetworkPolicy. They take room that all policies of a node share, and an object has room for
/// tens of thousands.
pub(crate) const MAX_PREFIXES: usize = 4096;

const PEER: &str = "this peer matches nothing until it is corrected";
const PORT: &str = "this port matches nothing until it is corrected";

/// Reads it. Never fails: what is wrong is among its problems.
pub(crate) fn read(name: &ObjectName, spec: &NetworkPolicySpec) -> Policy {
    let mut reader = Network {
        reader: Reader::new(PolicyRef::Network(name.clone())),
        namespace: name.namespace.clone(),
        names: Vec::new(),
        prefixes: 0,
    };
    let selected = reader.reader.selector(
        "spec.podSelector",
        &spec.pod_selector,
        "the policy holds for every pod of its namespace until it is corrected",
    );
    let subject = reader.own(selected.unwrap_or_default());
    let isolates = reader.isolates(spec);
    let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports)).enumerate();
    let mut rules = [Vec::new(), Vec::new()];
    for (i, (peers, ports)) in ingress {
        let read = reader.rule(Direction::Ingress, i, peers.as_deref(), ports.as_deref());
        rules[index(Direction::Ingress)].extend(read);
    }
    let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports)).enumerate();
    for (i, (peers, ports)) in egress {
        let read = reader.rule(Direction::Egress, i, peers.as_deref(), ports.as_deref());
        rules[index(Direction::Egress)].extend(read);
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        if !isolates[index(direction)] {
            rules[index(direction)].clear();
            reader.names.retain(|used| used.direction != direction);
        }
    }
    let Network { reader: Reader { object, problems }, names, .. } = reader;
    Policy { object, subject, rank: Rank::Network, isolates, rules, problems, names }
}

struct Network {
    reader: Reader,
    namespace: String,
    names: Vec<NameUse>,
    /// Prefixes of its blocks so far.
    prefixes: usize,
}

impl Network {
    fn own(&self, pods: Selector) -> PodMatch {
        PodMatch { namespace: NamespaceMatch::Named(self.namespace.clone()), pods }
    }

    fn isolates(&mut self, spec: &NetworkPolicySpec) -> [bool; 2] {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.is_empty() {
            return [true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())];
        }
        let mut isolates = [false, false];
        for (i, name) in types.iter().enumerate() {
            match name.as_str() {
                "Ingress" => isolates[index(Direction::Ingress)] = true,
                "Egress" => isolates[index(Direction::Egress)] = true,
                other => self.reader.report(
                    &format!("spec.policyTypes[{i}]"),
                    other,
                    "is neither Ingress nor Egress",
                    "it isolates nothing until it is corrected",
                ),
            }
        }
        isolates
    }

    fn rule(
        &mut self,
        direction: Direction,
        i: usize,
        peers: Option<&[PolicyPeer]>,
        ports: Option<&[PolicyPort]>,
    ) -> Vec<Rule> {
        let (path, list) = match direction {
            Direction::Ingress => (format!("spec.ingress[{i}]"), "from"),
            Direction::Egress => (format!("spec.egress[{i}]"), "to"),
        };
        let mut atoms = BTreeSet::new();
        for (k, peer) in peers.unwrap_or_default().iter().enumerate() {
            atoms.extend(self.peer(&format!("{path}.{list}[{k}]"), peer).map(Arc::new));
        }
        let mut matches = BTreeSet::new();
        for (k, port) in ports.unwrap_or_default().iter().enumerate() {
            matches.extend(self.port(direction, &format!("{path}.ports[{k}]"), port));
        }
        let everybody = peers.is_none_or(<[PolicyPeer]>::is_empty);
        let all = ports.is_none_or(<[PolicyPort]>::is_empty);
        let rule = |peers, ports| Rule { index: position(i), action: Action::Accept, peers, ports };
        let ports = |entries| if all { Ports::All } else { Ports::AnyOf(entries) };
        if everybody {
            return vec![rule(Peers::Everybody, ports(matches))];
        }
        // Names of ports of other clusters' pods go with selectors that can find those.
        let named =
            direction == Direction::Egress && matches.iter().any(|port| matches!(port, PortMatch::Name(..)));
        let (asking, others): (BTreeSet<_>, BTreeSet<_>) =
            atoms.into_iter().partition(|atom| named && atom.asks_for_clusters().is_some());
        if asking.is_empty() {
            return vec![rule(Peers::AnyOf(others), ports(matches))];
        }
        let mut rules = vec![rule(Peers::AnyOf(asking), ports(with_foreign_names(&matches)))];
        if !others.is_empty() {
            rules.push(rule(Peers::AnyOf(others), ports(matches)));
        }
        rules
    }

    fn peer(&mut self, path: &str, peer: &PolicyPeer) -> Option<Atom> {
        if let Some(block) = &peer.ip_block {
            if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
                self.reader.report(path, "ipBlock and a selector", "has an ipBlock beside a selector", PEER);
                return None;
            }
            return self.block(&format!("{path}.ipBlock"), block);
        }
        let pods = match &peer.pod_selector {
            Some(selector) => self.reader.selector(&format!("{path}.podSelector"), selector, PEER)?,
            None if peer.namespace_selector.is_none() => {
                self.reader.report(path, "{}", "has none of podSelector, namespaceSelector, ipBlock", PEER);
                return None;
            }
            None => Selector::default(),
        };
        let Some(namespaces) = &peer.namespace_selector else { return Some(Atom::Pods(self.own(pods))) };
        let namespaces = self.reader.selector(&format!("{path}.namespaceSelector"), namespaces, PEER)?;
        Some(Atom::Pods(PodMatch { namespace: NamespaceMatch::Selected(namespaces), pods }))
    }

    fn block(&mut self, path: &str, block: &IpBlock) -> Option<Atom> {
        let before = self.prefixes;
        self.prefixes += 1 + block.except.len();
        if self.prefixes > MAX_PREFIXES {
            if before <= MAX_PREFIXES {
                let wrong = format!("is beyond the {MAX_PREFIXES} prefixes that one policy may name");
                let then = "this peer and those after it match nothing; name fewer and shorter prefixes";
                self.reader.report(path, &block.cidr, &wrong, then);
            }
            return None;
        }
        let cidr = self.reader.cidr(&format!("{path}.cidr"), &block.cidr, PEER)?;
        let mut except = Vec::new();
        for (k, text) in block.except.iter().enumerate() {
            let field = format!("{path}.except[{k}]");
            let net = self.reader.cidr(&field, text, PEER)?;
            if net.contains(&cidr) {
                let wrong = format!("contains the whole cidr {}", block.cidr);
                self.reader.report(
                    &field,
                    text,
                    &wrong,
                    "this peer matches nothing; it must be a part of cidr",
                );
            } else if !cidr.contains(&net) {
                let wrong = format!("is outside its cidr {}", block.cidr);
                self.reader.report(&field, text, &wrong, "it takes nothing away; it must be a part of cidr");
            }
            except.push(net);
        }
        Some(Atom::Block(Block::new(cidr, &except)))
    }

    fn port(&mut self, direction: Direction, path: &str, port: &PolicyPort) -> Option<PortMatch> {
        let protocol = match &port.protocol {
            Some(text) => self.reader.protocol(&format!("{path}.protocol"), text, PORT)?,
            None => Protocol::Tcp,
        };
        let field = format!("{path}.port");
        let end_field = format!("{path}.endPort");
        match (&port.port, port.end_port) {
            (None, None) => Some(PortMatch::Protocol(protocol)),
            (None, Some(end)) => {
                self.reader.report(&end_field, end, "needs a port as its begin", PORT);
                None
            }
            (Some(PortRef::Name(_)), Some(end)) => {
                self.reader.report(
                    &end_field,
                    end,
                    "cannot end a range that begins with a port's name",
                    PORT,
                );
                None
            }
            (Some(PortRef::Name(name)), None) => {
                let (name, protocol) = (name.clone(), Some(protocol));
                self.names.push(NameUse { direction, field, name: name.clone(), protocol });
                Some(PortMatch::Name(name, protocol))
            }
            (Some(PortRef::Number(number)), end) => {
                let first = self.reader.port(&field, *number, PORT)?;
                let last = end.map_or(Some(first), |end| self.reader.port(&end_field, end, PORT))?;
                if last < first {
                    self.reader.report(&end_field, last, &format!("is below port {first}"), PORT);
                    return None;
                }
                Some(PortMatch::Range(protocol, first, last))
            }
        }
    }
}
