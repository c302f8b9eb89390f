//! What becomes of this node's own traffic to other nodes' addresses, collected while a plan is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Route;
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
    pub(super) closed: BTreeSet<IpAddr>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(view: &'a ClusterView, sources: Vec<IpAddr>) -> Self {
        let (paths, closed, routes, problems) = Default::default();
        Self { view, sources, paths, closed, routes, problems }
    }

    /// `slot`: the one that is sent by; none: the peer has no keys.
    pub(super) fn add(&mut self, node: &NodeName, path: HostPath, addresses: &[IpAddr], slot: Option<Slot>) {
        // Into one that marks nothing its own packets would go, too.
        let device = self.view.local.host.marked.then_some(slot.unwrap_or(Slot::Zero).device());
        self.routes.extend(host::routes(path, addresses, device, &self.sources));
        if path.closed() {
            // Refused when routes lead there, so that no packet is lost on the way between the two.
            let there = &self.view.local.host.closed;
            self.closed.extend(addresses.iter().filter(|address| there.contains(address)));
        }
        if matches!(path, HostPath::Dead | HostPath::Cut) {
            self.problems.push(Problem::HostTrafficCut { node: node.clone(), path });
        }
        self.paths.insert(node.clone(), path);
    }
}
