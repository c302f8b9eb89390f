//! The one form that policies of both kinds are read into.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::policy::classes::Atom;
use crate::policy::model::foreign_port;
use crate::policy::model::{Direction, Protocol};
use crate::policy::problems::{PolicyProblem, PolicyRef};
use crate::policy::selector::PodMatch;

/// A policy, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) object: PolicyRef,
    pub(crate) subject: PodMatch,
    pub(crate) rank: Rank,
    /// By direction, as [`crate::policy::tables::index`] counts; a NetworkPolicy's alone.
    pub(crate) isolates: [bool; 2],
    /// By direction, in the order of the object.
    pub(crate) rules: [Vec<Rule>; 2],
    /// What is wrong with it.
    pub(crate) problems: Vec<PolicyProblem>,
    /// Port names that it mentions, for the question whether anybody has them.
    pub(crate) names: Vec<NameUse>,
}

/// Where a policy stands among others: tier, then priority, then name. NetworkPolicies are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Admin(i64, String),
    Network,
    Baseline(i64, String),
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    Accept,
    Deny,
    Pass,
}

/// A rule, or one of two that an object's rule was split into; then both have its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) index: u32,
    pub(crate) action: Action,
    pub(crate) peers: Peers,
    pub(crate) ports: Ports,
}

/// Whom a rule is about. An empty set is nobody, not everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    Everybody,
    AnyOf(BTreeSet<Arc<Atom>>),
}

/// What a rule says of ports. An empty set is none, not all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ports {
    /// Everything of every protocol.
    All,
    AnyOf(BTreeSet<PortMatch>),
}

/// One entry of a rule's ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PortMatch {
    Protocol(Protocol),
    /// First and last.
    Range(Protocol, u16, u16),
    /// A container's name for it; of any protocol where none is given.
    Name(String, Option<Protocol>),
}

/// A port name in a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameUse {
    pub(crate) direction: Direction,
    pub(crate) field: String,
    pub(crate) name: String,
    pub(crate) protocol: Option<Protocol>,
}

impl Policy {
    /// Everything that its rules ask of addresses.
    pub(crate) fn atoms(&self) -> BTreeSet<&Arc<Atom>> {
        let peers = self.rules.iter().flatten().filter_map(|rule| match &rule.peers {
            Peers::AnyOf(atoms) => Some(atoms),
            Peers::Everybody => None,
        });
        peers.flatten().collect()
    }

    /// Selectors by which its rules tell pods of other clusters apart, and whether they do more than accept them.
    pub(crate) fn asks_for_clusters(&self) -> impl Iterator<Item = (&PodMatch, bool)> {
        let peers = self.rules.iter().flatten().filter_map(|rule| match &rule.peers {
            Peers::AnyOf(atoms) => Some((atoms, rule.action != Action::Accept)),
            Peers::Everybody => None,
        });
        peers.flat_map(|(atoms, more)| {
            atoms.iter().filter_map(move |atom| Some((atom.asks_for_clusters()?, more)))
        })
    }

    /// Port names that are resolved in the destination's class: those of egress rules.
    pub(crate) fn egress_names(&self) -> BTreeSet<&str> {
        let ports = self.rules[1].iter().filter_map(|rule| match &rule.ports {
            Ports::AnyOf(ports) => Some(ports),
            Ports::All => None,
        });
        let names = ports.flatten().filter_map(|port| match port {
            PortMatch::Name(name, _) => Some(name.as_str()),
            PortMatch::Protocol(_) | PortMatch::Range(..) => None,
        });
        names.collect()
    }
}

impl Atom {
    /// The selector, if it can mean pods of other clusters.
    pub(crate) fn asks_for_clusters(&self) -> Option<&PodMatch> {
        match self {
            Self::Pods(pods) => pods.asks_for_clusters().then_some(pods),
            Self::Nodes(_) | Self::Block(_) => None,
        }
    }
}

/// The same entries, with their names for ports of other clusters' pods ([`foreign_port`]).
pub(crate) fn with_foreign_names(ports: &BTreeSet<PortMatch>) -> BTreeSet<PortMatch> {
    let foreign = ports.iter().filter_map(|port| match port {
        PortMatch::Name(name, protocol) => Some(PortMatch::Name(foreign_port(name), *protocol)),
        PortMatch::Protocol(_) | PortMatch::Range(..) => None,
    });
    ports.iter().cloned().chain(foreign).collect()
}
