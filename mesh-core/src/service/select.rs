//! Which of its endpoints a service's port uses, as kube-proxy decides it.
//!
//! Under the policy `Cluster`: the ready ones; of those, only the ones meant for this node, if every ready one names
//! nodes and one of them this one; else only those meant for this zone, likewise (KEP-2433, KEP-4444). Nobody ready: those
//! that are ending and still serve (KEP-1669). Under `Local` (KEP-2086): the same among this node's, without hints; at the NodePort of another
//! node, under `externalTrafficPolicy: Local`, among that node's.
//!
//! Endpoints of other clusters come after those of this one, ready ones after ready ones, ending ones after ending ones;
//! hints count among those that are left. They keep their flows when own ones are back. Here we leave kube-proxy's way: it
//! knows no clusters, and spreads over all of them, or by their hints.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::model::{Conditions, EndpointFacts, OwnNode};

/// One endpoint of a port.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) addr: SocketAddr,
    facts: &'a EndpointFacts,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    remote: bool,
}

impl<'a> Candidate<'a> {
    /// `remote`: it is in another cluster.
    pub(super) fn new(addr: SocketAddr, facts: &'a EndpointFacts, own: &OwnNode, remote: bool) -> Self {
        let Conditions { ready, serving, terminating } = facts.conditions;
        let own = own.name.as_ref().map(|name| name.as_str());
        Self {
            addr,
            facts,
            ready: ready.unwrap_or(true),
            serving: serving.unwrap_or(true),
            terminating: terminating.unwrap_or(false),
            local: !remote && own.is_some() && own == facts.node_name.as_deref(),
            remote,
        }
    }

    /// Of two slices that name the same endpoint, as it happens while it moves, the one that says more for it counts; of
    /// equals the first. What this cluster says of an address counts before what another says.
    pub(super) fn better_than(&self, other: &Self) -> bool {
        let merit = |c: &Self| (!c.remote, c.local, c.ready, c.ends_serving());
        merit(self) > merit(other)
    }

    fn ends_serving(&self) -> bool {
        self.serving && self.terminating
    }

    /// It may have flows.
    pub(super) fn alive(&self) -> bool {
        self.ready || self.serving
    }

    /// The node of this cluster on which it is.
    pub(super) fn node(&self) -> Option<&'a str> {
        self.facts.node_name.as_deref().filter(|node| !self.remote && !node.is_empty())
    }

    fn for_node(&self, node: &str) -> bool {
        !node.is_empty() && self.facts.hints.for_nodes.iter().any(|hint| hint.name == node)
    }

    fn for_zone(&self, zone: &str) -> bool {
        !zone.is_empty() && self.facts.hints.for_zones.iter().any(|hint| hint.name == zone)
    }
}

/// What was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// They get new flows.
    pub(super) chosen: BTreeSet<SocketAddr>,
    /// They keep what they have.
    pub(super) leaving: BTreeSet<SocketAddr>,
    /// Nobody was chosen, and there would be somebody elsewhere.
    pub(super) elsewhere: bool,
}

/// Those of this cluster, if there is one.
fn nearest<'c, 'a>(mut of: Vec<&'c Candidate<'a>>) -> Vec<&'c Candidate<'a>> {
    if of.iter().any(|c| !c.remote) {
        of.retain(|c| !c.remote);
    }
    of
}

/// The policy `Cluster`.
pub(super) fn cluster(all: &[Candidate<'_>], own: &OwnNode) -> Choice {
    let ready = nearest(all.iter().filter(|c| c.ready).collect());
    let node = own.name.as_ref().map_or("", |name| name.as_str());
    let zone = own.zone.as_deref().unwrap_or("");
    let hinted = |has: fn(&Candidate<'_>) -> bool| ready.iter().all(|c| has(c));
    let for_node = || ready.iter().filter(|c| c.for_node(node)).map(|c| c.addr).collect::<BTreeSet<_>>();
    let for_zone = || ready.iter().filter(|c| c.for_zone(zone)).map(|c| c.addr).collect::<BTreeSet<_>>();
    let mut chosen = BTreeSet::new();
    if hinted(|c| !c.facts.hints.for_nodes.is_empty()) {
        chosen = for_node();
    }
    if chosen.is_empty() && hinted(|c| !c.facts.hints.for_zones.is_empty()) {
        chosen = for_zone();
    }
    if chosen.is_empty() {
        chosen = ready.iter().map(|c| c.addr).collect();
    }
    if chosen.is_empty() {
        let ending = nearest(all.iter().filter(|c| c.ends_serving()).collect());
        chosen = ending.into_iter().map(|c| c.addr).collect();
    }
    Choice { leaving: leaving(all.iter(), &chosen), chosen, elsewhere: false }
}

/// The policy `Local`.
pub(super) fn local(all: &[Candidate<'_>]) -> Choice {
    among(all, |c| c.local)
}

/// The policy `Local` of another node.
pub(super) fn on_node(all: &[Candidate<'_>], node: &str) -> Choice {
    among(all, |c| c.node() == Some(node))
}

fn among(all: &[Candidate<'_>], has: impl Fn(&Candidate<'_>) -> bool) -> Choice {
    let here = || all.iter().filter(|c| has(c));
    let mut chosen: BTreeSet<SocketAddr> = here().filter(|c| c.ready).map(|c| c.addr).collect();
    if chosen.is_empty() {
        chosen = here().filter(|c| c.ends_serving()).map(|c| c.addr).collect();
    }
    let elsewhere = chosen.is_empty() && all.iter().any(|c| c.ready || c.ends_serving());
    Choice { leaving: leaving(here(), &chosen), chosen, elsewhere }
}

fn leaving<'a>(
    of: impl Iterator<Item = &'a Candidate<'a>>,
    chosen: &BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    of.filter(|c| c.alive() && !chosen.contains(&c.addr)).map(|c| c.addr).collect()
}
