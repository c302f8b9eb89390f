//! What becomes of this node's own traffic to other nodes' addresses, collected while a plan is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Route;
use super::claims::Claims;
use crate::host::{self, HostPath};
use crate::name::NodeName;
use crate::problem::Problem;
use crate::slot::Slot;
use crate::view::ClusterView;

/// What becomes of this node's own traffic.
pub(super) struct Hosts<'a> {
    view: &'a ClusterView,
    /// InternalIPs of this node, then its mesh addresses.
    sources: Vec<IpAddr>,
    pub(super) paths: BTreeMap<NodeName, HostPath>,
    /// Addresses to which nothing leaves in plaintext.
    pub(super) closed: BTreeSet<IpAddr>,
    /// The same by node, for who remembers; this node's own, too.
    pub(super) by_node: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(view: &'a ClusterView, sources: Vec<IpAddr>) -> Self {
        let (paths, closed, by_node, routes, problems) = Default::default();
        Self { view, sources, paths, closed, by_node, routes, problems }
    }

    /// `slot`: the one that is sent by; none: the peer has no keys.
    pub(super) fn add(&mut self, node: &NodeName, path: HostPath, addresses: &[IpAddr], slot: Option<Slot>) {
        self.lead(path, addresses, slot);
        if path.closed() {
            // Refused when routes lead there, so that no packet is lost on the way between the two; but at once where that
            // has been so before.
            let state = &self.view.local.host;
            let known = state.remembered.knows(node);
            let refused: BTreeSet<IpAddr> =
                addresses.iter().filter(|address| known || state.closed.contains(address)).copied().collect();
            if known || !refused.is_empty() {
                self.by_node.insert(node.clone(), refused.clone());
            }
            self.closed.extend(refused);
        }
        if matches!(path, HostPath::Dead | HostPath::Cut) {
            self.problems.push(Problem::HostTrafficCut { node: node.clone(), path });
        }
        self.paths.insert(node.clone(), path);
    }

    /// What is remembered and no pair with a way of its own has: addresses of Nodes that are gone or have others now, and those
    /// that another Node claims, too.
    pub(super) fn add_remembered(&mut self, claims: &Claims) {
        let view = self.view;
        let led = |hosts: &Self, node: &NodeName| hosts.paths.get(node).is_some_and(|path| path.closed());
        for (node, address) in view.local.host.remembered.all().filter(|(node, _)| **node != view.local.name)
        {
            let opened = self.paths.get(node).is_some_and(|path| !path.closed());
            // A Node without any has lost them, rather than got others.
            let has = |ips: &[IpAddr]| ips.is_empty() || ips.contains(&address);
            let listed = view.nodes.get(node).is_some_and(|facts| has(&facts.internal_ips));
            let held = match claims.holder(address) {
                Some(holder) if holder == node => continue,
                Some(holder) => *holder == view.local.name || led(self, holder) || !listed,
                None => false,
            };
            if opened || held {
                continue;
            }
            self.lead(HostPath::Cut, &[address], None);
            self.closed.insert(address);
            if listed && let Some(addresses) = self.by_node.get_mut(node) {
                addresses.insert(address);
            }
            // Before the first list of Nodes that is everybody's, and nothing is wrong.
            if view.synced {
                self.problems.push(Problem::HostAddressHeld { node: node.clone(), address });
            }
        }
    }

    fn lead(&mut self, path: HostPath, addresses: &[IpAddr], slot: Option<Slot>) {
        // Into one that marks nothing its own packets would go, too.
        let device = self.view.local.host.marked.then_some(slot.unwrap_or(Slot::Zero).device());
        self.routes.extend(host::routes(path, addresses, device, &self.sources));
    }
}
