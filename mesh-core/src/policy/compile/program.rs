//! What a pod's policies say together: the steps of both directions, and what they come to for one peer.

use std::collections::BTreeSet;

use super::normal::{Action, PortMatch, Ports};
use super::ports::{Mark, Outcome, Painting};
use crate::policy::classes::{AtomId, Signature};
use crate::policy::model::{Direction, NamedPort, Protocol};
use crate::policy::tables::{PortVerdict, index};

/// What holds for a pod. Pods with equal programs share a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Program {
    /// As [`index`] counts.
    pub(crate) sides: [Side; 2],
}

/// One direction of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Side {
    /// The first that matches decides.
    pub(crate) admin: Vec<Step>,
    /// If some NetworkPolicy isolates: the number that stands for "and nothing allows".
    pub(crate) isolated: Option<u32>,
    /// Any of these allows.
    pub(crate) allows: Vec<Step>,
    /// The first that matches decides.
    pub(crate) baseline: Vec<Step>,
}

/// A rule whose peers are numbers, and whose port names are resolved if they are the subject's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    pub(crate) rule: u32,
    pub(crate) action: Action,
    /// None: everybody.
    pub(crate) peers: Option<BTreeSet<AtomId>>,
    pub(crate) ports: Ports,
}

/// Whom a step is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer<'a> {
    Unknown,
    Known(&'a Signature),
}

/// What decides about one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// A rule of this number.
    Rule { allow: bool, rule: u32 },
    /// NetworkPolicies isolate the pod, and none allows.
    Isolated { rule: u32 },
    /// No policy says anything.
    Default,
}

impl Step {
    fn concerns(&self, peer: Peer<'_>) -> bool {
        match (peer, &self.peers) {
            // An empty set is nobody, unknown addresses included.
            (Peer::Unknown, peers) => {
                self.action == Action::Deny && peers.as_ref().is_none_or(|peers| !peers.is_empty())
            }
            (Peer::Known(_), None) => true,
            (Peer::Known(signature), Some(peers)) => meets(peers, &signature.atoms),
        }
    }

    fn paint(&self, peer: Peer<'_>, mark: Mark, painting: &mut Painting) {
        let Ports::AnyOf(ports) = &self.ports else { return painting.all(mark) };
        for port in ports {
            let PortMatch::Name(name, protocol) = port else {
                painting.some(port, mark);
                continue;
            };
            for resolved in resolve(name, *protocol, peer) {
                painting.some(&resolved, mark);
            }
        }
    }

    fn matches(&self, peer: Peer<'_>, protocol: u8, port: Option<u16>) -> bool {
        let Ports::AnyOf(ports) = &self.ports else { return self.concerns(peer) };
        let covers = |entry: &PortMatch| match entry {
            PortMatch::Protocol(p) => p.number() == protocol,
            PortMatch::Range(p, first, last) => {
                p.number() == protocol && port.is_some_and(|port| (*first..=*last).contains(&port))
            }
            PortMatch::Name(..) => false,
        };
        self.concerns(peer)
            && ports.iter().any(|entry| match entry {
                PortMatch::Name(name, p) => resolve(name, *p, peer).iter().any(covers),
                PortMatch::Protocol(_) | PortMatch::Range(..) => covers(entry),
            })
    }
}

/// Do an ordered set and an ordered list share a member?
fn meets(peers: &BTreeSet<AtomId>, atoms: &[AtomId]) -> bool {
    if peers.len() < atoms.len() {
        peers.iter().any(|atom| atoms.binary_search(atom).is_ok())
    } else {
        atoms.iter().any(|atom| peers.contains(atom))
    }
}

/// A port's name in the destination: in an unknown one it is any port of any protocol that has ports.
fn resolve(name: &str, protocol: Option<Protocol>, peer: Peer<'_>) -> Vec<PortMatch> {
    match peer {
        Peer::Unknown => Protocol::ALL.into_iter().map(PortMatch::Protocol).collect(),
        Peer::Known(signature) => named(&signature.ports, name, protocol),
    }
}

/// Ports of that name.
pub(crate) fn named<'a>(
    ports: impl IntoIterator<Item = &'a NamedPort>,
    name: &str,
    protocol: Option<Protocol>,
) -> Vec<PortMatch> {
    let fits = |port: &&NamedPort| port.name == name && protocol.is_none_or(|p| p == port.protocol);
    let range = |port: &NamedPort| PortMatch::Range(port.protocol, port.port, port.port);
    ports.into_iter().filter(fits).map(range).collect()
}

impl Side {
    /// What it says of a peer.
    pub(crate) fn outcome(&self, peer: Peer<'_>) -> Outcome {
        let mut painting = Painting::new();
        paint_tier(&self.admin, peer, &mut painting);
        painting.next_tier();
        if let Some(rule) = self.isolated {
            for step in self.allows.iter().filter(|step| step.concerns(peer)) {
                step.paint(peer, Mark::Said(PortVerdict { allow: true, rule: step.rule }), &mut painting);
            }
            return painting.outcome(PortVerdict { allow: false, rule });
        }
        paint_tier(&self.baseline, peer, &mut painting);
        painting.outcome(PortVerdict { allow: true, rule: 0 })
    }

    /// What decides about one flow: the same, step by step.
    pub(crate) fn decide(&self, peer: Peer<'_>, protocol: u8, port: Option<u16>) -> Decision {
        let first = |steps: &[Step]| {
            let step = steps.iter().find(|step| step.matches(peer, protocol, port))?;
            match step.action {
                Action::Accept => Some(Decision::Rule { allow: true, rule: step.rule }),
                Action::Deny => Some(Decision::Rule { allow: false, rule: step.rule }),
                Action::Pass => None,
            }
        };
        if let Some(decision) = first(&self.admin) {
            return decision;
        }
        if let Some(rule) = self.isolated {
            return first(&self.allows).unwrap_or(Decision::Isolated { rule });
        }
        first(&self.baseline).unwrap_or(Decision::Default)
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.admin.iter().chain(&self.allows).chain(&self.baseline)
    }

    /// All atoms that it asks for.
    pub(crate) fn atoms(&self) -> BTreeSet<AtomId> {
        self.steps().filter_map(|step| step.peers.as_ref()).flatten().copied().collect()
    }

    /// All port names that it asks for.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let ports = self.steps().filter_map(|step| match &step.ports {
            Ports::AnyOf(ports) => Some(ports),
            Ports::All => None,
        });
        let names = ports.flatten().filter_map(|port| match port {
            PortMatch::Name(name, _) => Some(name.clone()),
            PortMatch::Protocol(_) | PortMatch::Range(..) => None,
        });
        names.collect()
    }
}

fn paint_tier(steps: &[Step], peer: Peer<'_>, painting: &mut Painting) {
    for step in steps.iter().filter(|step| step.concerns(peer)) {
        let mark = match step.action {
            Action::Accept => Mark::Said(PortVerdict { allow: true, rule: step.rule }),
            Action::Deny => Mark::Said(PortVerdict { allow: false, rule: step.rule }),
            Action::Pass => Mark::Passed,
        };
        step.paint(peer, mark, painting);
    }
}

impl Program {
    pub(crate) const fn side(&self, direction: Direction) -> &Side {
        &self.sides[index(direction)]
    }
}
