//! This node's own traffic to other nodes: what the kernel shows of it, and what is kept.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use mesh_core::diff::{Observed, Op};
use mesh_core::host::{Closings, HostPath, HostState, Remembered};
use mesh_core::name::NodeName;
use mesh_core::numbers::{MARK_WIREGUARD, POD_VETH_PREFIX, RULE_HOSTS_END, TABLE_HOSTS, TABLE_PODS};
use mesh_core::plan::{Desired, Route, Rule, Target};
use mesh_core::prefix::Family;
use mesh_core::slot::Slot;
use mesh_core::view::ClusterView;

use super::{Agent, TurnError};
use crate::kept::Kept;
use crate::kernel::KernelState;

/// Other addresses of this node that are looked at. Each is a rule, which every packet asks; more are those of a load balancer
/// that keeps all its services on one link, and nobody talks to a node from them.
const OTHERS: usize = 16;

/// Name of the file in the state directory that tells whose traffic is closed.
const FILE: &str = "host-traffic.json";

/// Whose traffic is closed, kept in a file.
pub type Closed = Kept<Remembered>;

/// Reads the file. Without a good one only the kernel's routes tell.
pub fn load(state_dir: &Path) -> Closed {
    Kept::load(state_dir.join(FILE), "whose host traffic goes through the tunnel")
}

/// What the kernel shows. `own_ips` are this node's InternalIPs, of now and before.
pub(super) fn state(
    state: &KernelState,
    observed: &Observed,
    own_ips: &BTreeSet<IpAddr>,
    guarded: &[IpNet],
    remembered: Remembered,
) -> HostState {
    // One that has no key yet sends nothing; it gets both at once.
    let marked =
        observed.devices.values().all(|device| device.public_key.is_none() || device.mark == MARK_WIREGUARD);
    let hosts = observed.routes.iter().filter(|route| route.table == TABLE_HOSTS);
    let closed = hosts.map(|route| route.prefix.addr()).collect();
    let ours =
        |name: &str| name.starts_with(POD_VETH_PREFIX) || Slot::ALL.iter().any(|slot| slot.device() == name);
    let skipped = |index: u32| state.links.iter().any(|(name, link)| link.index == index && ours(name));
    let other = |address: &IpAddr| {
        address.is_ipv6()
            && mesh_core::prefix::is_unicast(*address)
            && !guarded.iter().any(|cidr| cidr.contains(address))
    };
    let holds = |address: IpAddr| state.addresses.iter().any(|(_, net)| net.addr() == address);
    let addresses = state.addresses.iter().filter(|(index, _)| !skipped(*index)).map(|(_, net)| net.addr());
    let (present, rest): (BTreeSet<IpAddr>, _) = addresses.partition(|address| own_ips.contains(address));
    let mut others: Vec<IpAddr> = rest.into_iter().filter(other).collect();
    others.sort_unstable();
    others.truncate(OTHERS);
    let to_pod = observed.routes.iter().filter(|route| route.table == TABLE_PODS);
    let homes = to_pod.filter_map(|route| match &route.target {
        Target::Device { device, source: Some(source) } if device.starts_with(POD_VETH_PREFIX) => {
            Some(*source)
        }
        Target::Device { .. } | Target::Unreachable => None,
    });
    let homes = Family::BOTH.into_iter().filter_map({
        let all: Vec<IpAddr> = homes.filter(|home| holds(*home)).collect();
        move |family| all.iter().copied().find(|home| Family::of(*home) == family)
    });
    let (others, homes) = (others.into_iter().collect(), homes.collect());
    HostState { marked, closed, remembered, others, present, homes }
}

/// Will the next turn find something else, with nobody to tell of it?
pub(super) fn moving(desired: &Desired) -> bool {
    let routed = desired.routes.iter().filter(|route| route.table == TABLE_HOSTS);
    let refused = |address: IpAddr| desired.closed_hosts.contains(&address);
    let unfinished = routed.map(|route| route.prefix.addr()).any(|address| !refused(address));
    let waits = |path: &HostPath| match path {
        HostPath::Waiting | HostPath::Dead | HostPath::Cut => true,
        HostPath::Plain | HostPath::Tunnel => false,
    };
    unfinished || desired.host_paths.values().any(waits)
}

/// Has a route appeared that sockets do not know, which have looked theirs up before? Those of IPv6 ask again only when the
/// table changes in which they found it; those of IPv4 when any does.
pub(super) fn unknown_to_sockets(ops: &[Op]) -> bool {
    let concerns = |route: &Route| route.table == TABLE_HOSTS && route.prefix.addr().is_ipv6();
    ops.iter().any(|op| matches!(op, Op::PutRoute(route) if concerns(route)))
}

impl Agent {
    /// Keeps what this plan has closed, before anything rests on it. False: it could not be written.
    pub(super) async fn keep_closed(&mut self, view: &ClusterView, desired: &Desired) -> bool {
        let present: BTreeSet<NodeName> = view.nodes.keys().cloned().collect();
        let (closed, synced) = (&desired.closed_by_node, view.synced);
        let facts = Closings { closed, present: &present, synced, now: super::unix() };
        let changed = self.closed.value.update(facts);
        self.closed.touch(changed);
        self.closed.save().await
    }

    /// Makes every socket of IPv6 look up its route anew: the kernel forgets what it remembers when a rule changes (measured on
    /// 6.18). The rule says nothing, and goes at once.
    pub(super) async fn forget_routes(&self) -> Result<(), TurnError> {
        let rule = Rule::new(RULE_HOSTS_END + 1, Family::V6);
        self.kernel.put_rule(&rule).await?;
        Ok(self.kernel.remove_rule(&rule).await?)
    }
}
