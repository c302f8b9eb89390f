//! From operations to the kernel and the devices, in order.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_core::diff::{Mode, Observed, Op};
use mesh_core::key::PublicKey;
use mesh_core::numbers::TABLE_HOSTS;
use mesh_core::plan::{Desired, DesiredPeer, Route, Target};
use mesh_core::slot::Slot;

use super::{Agent, TurnError};
use crate::wireguard::Present;

impl Agent {
    /// Applies operations in order. What carries waits until what refuses is in force, and what refused before stays until
    /// then.
    pub(super) async fn apply(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        ops: &[Op],
        repair: bool,
        mode: Mode,
        mut closed: bool,
    ) -> bool {
        let mut clean = true;
        let mut uncarried = BTreeSet::new();
        for op in ops {
            if !closed && (carries(op) || opens(op)) {
                clean = false;
                self.not_put(op, desired);
                uncarried.extend(host_route(op));
                continue;
            }
            if unsupported(op, &uncarried) {
                clean = false;
                continue;
            }
            let slot = slot_of(op);
            // What follows from a device that was missing is a restoration, not drift.
            let repair = (repair || self.restores(op, observed))
                && slot.is_none_or(|slot| !self.memory.missing.contains(&slot));
            let result = self.one(desired, observed, mode, op).await;
            self.metrics.operation(op.kind(), repair, result.is_err());
            match result {
                Ok(()) if repair => tracing::warn!(op = ?op, "Repaired drift"),
                Ok(()) => tracing::debug!(op = ?op, "Applied"),
                Err(error) => {
                    tracing::error!(op = op.kind(), err = %error, "Could not apply");
                    clean = false;
                    self.not_put(op, desired);
                    uncarried.extend(host_route(op));
                    closed &= !refuses(op);
                }
            }
        }
        clean
    }

    /// Remembers the peers that an operation would have programmed.
    fn not_put(&mut self, op: &Op, desired: &Desired) {
        match op {
            Op::PutPeer { slot, key, .. } => {
                self.memory.unput.insert((*slot, *key));
            }
            Op::Configure { slot, .. } => {
                let peers = desired.devices.get(slot).into_iter().flat_map(|device| device.peers.keys());
                self.memory.unput.extend(peers.map(|key| (*slot, *key)));
            }
            Op::PutRoute(_)
            | Op::RemoveRoute(_)
            | Op::PutRule(_)
            | Op::RemoveRule(_)
            | Op::PutMesh(_)
            | Op::RemoveMesh(_)
            | Op::RaiseLink { .. }
            | Op::RemovePeer { .. } => {}
        }
    }

    /// Puts back a peer as it was applied before, though the plan is another one since: its pair has moved to the other slot.
    fn restores(&self, op: &Op, observed: &Observed) -> bool {
        let Op::PutPeer { slot, key, peer, .. } = op else { return false };
        let before = self.memory.applied.as_ref().and_then(|applied| applied.devices.get(slot));
        let before = before.and_then(|device| device.peers.get(key)).map(|peer| &peer.allowed);
        let now =
            observed.devices.get(slot).and_then(|device| device.peers.get(key)).map(|peer| &peer.allowed);
        before == Some(&peer.allowed) && now != before
    }

    async fn one(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        mode: Mode,
        op: &Op,
    ) -> Result<(), TurnError> {
        match op {
            Op::PutRoute(route) => self.kernel.put_route(route).await?,
            Op::RemoveRoute(route) => self.kernel.remove_route(route).await?,
            Op::PutRule(rule) => self.kernel.put_rule(rule).await?,
            Op::RemoveRule(rule) => self.kernel.remove_rule(rule).await?,
            Op::PutMesh(address) => self.kernel.put_address("lo", *address).await?,
            Op::RemoveMesh(address) => self.kernel.remove_address("lo", *address).await?,
            Op::RaiseLink { slot, mtu } => {
                self.kernel.raise(slot.device(), *mtu).await?;
            }
            Op::Configure { slot, port } => {
                let (slot, port, key) = (*slot, *port, self.keys.shared(*slot));
                let mut peers = desired.devices.get(&slot).map(|d| d.peers.clone()).unwrap_or_default();
                if mode == Mode::AddOnly {
                    peers.extend(self.strangers(observed, slot, &peers));
                }
                for (key, peer) in &peers {
                    self.memory.set_before.extend(peer.endpoint.map(|endpoint| ((slot, *key), endpoint)));
                }
                self.memory.unheard.devices.insert(slot);
                let mut psks = self.memory.device_psks.clone();
                peers.values().for_each(|peer| psks.extend(self.psks.secrets(&peer.node, slot)));
                let work = move |wireguard: crate::wireguard::WireGuard| {
                    wireguard.configure(slot, &key.private, port, &peers, &psks)
                };
                self.wireguard.call(slot, work).await?;
            }
            Op::PutPeer { slot, key, peer, anew } => {
                let (slot, key, mut peer, anew) = (*slot, *key, peer.clone(), *anew);
                self.memory.set_before.extend(peer.endpoint.map(|endpoint| ((slot, key), endpoint)));
                let known = observed.devices.get(&slot).and_then(|device| device.peers.get(&key));
                if anew && peer.endpoint.is_none() {
                    // Where it has roamed to.
                    peer.endpoint = known.and_then(|known| known.endpoint);
                }
                let (node, psks) = (peer.node.clone(), self.psks.secrets(&peer.node, slot));
                let present = known.cloned();
                let known = known.is_some() && !anew;
                let work = move |wireguard: crate::wireguard::WireGuard| {
                    let present = match &present {
                        Some(_) if anew => Present::Anew,
                        Some(present) => Present::As(present),
                        None => Present::Absent,
                    };
                    wireguard.put_peer(slot, &key, &peer, &psks, present)
                };
                self.wireguard.call(slot, work).await?;
                if !known {
                    self.memory.unheard.peers.insert((slot, node));
                }
            }
            Op::RemovePeer { slot, key } => {
                let (slot, key) = (*slot, *key);
                self.memory.set_before.remove(&(slot, key));
                self.wireguard.call(slot, move |wireguard| wireguard.remove_peer(slot, &key)).await?;
            }
        }
        Ok(())
    }

    /// Peers that a device has and the plan does not know, as it has them: keying the device sets all peers at once, and
    /// before the first snapshot none may go.
    fn strangers(
        &self,
        observed: &Observed,
        slot: Slot,
        known: &BTreeMap<PublicKey, DesiredPeer>,
    ) -> BTreeMap<PublicKey, DesiredPeer> {
        let present = observed.devices.get(&slot).into_iter().flat_map(|device| &device.peers);
        let as_it_is = |peer: &mesh_core::diff::ObservedPeer| DesiredPeer {
            node: self.node.clone(),
            endpoint: peer.endpoint,
            allowed: peer.allowed.clone(),
            keepalive: peer.keepalive,
            psk: peer.psk,
        };
        let strange = present.filter(|(key, _)| !known.contains_key(key));
        strange.map(|(key, peer)| (*key, as_it_is(peer))).collect()
    }
}

/// Does the operation let packets through?
fn carries(op: &Op) -> bool {
    match op {
        Op::PutPeer { .. } | Op::Configure { .. } => true,
        Op::PutRoute(route) => route.target != Target::Unreachable,
        Op::RemoveRoute(_)
        | Op::PutRule(_)
        | Op::RemoveRule(_)
        | Op::PutMesh(_)
        | Op::RemoveMesh(_)
        | Op::RaiseLink { .. }
        | Op::RemovePeer { .. } => false,
    }
}

/// Does the operation take away what keeps packets from the uplink?
fn opens(op: &Op) -> bool {
    matches!(op, Op::RemoveRule(_))
        || matches!(op, Op::RemoveRoute(route) if route.target == Target::Unreachable)
}

/// Where this node's own traffic to a peer would be led into a slot.
fn host_route(op: &Op) -> Option<IpNet> {
    let Op::PutRoute(Route { table: TABLE_HOSTS, prefix, target: Target::Device { .. } }) = op else {
        return None;
    };
    Some(*prefix)
}

/// Would it refuse what goes on in plaintext, since its way into the slot could not be made just before?
fn unsupported(op: &Op, uncarried: &BTreeSet<IpNet>) -> bool {
    let Op::PutRoute(Route { table: TABLE_HOSTS, prefix, target: Target::Unreachable }) = op else {
        return false;
    };
    uncarried.contains(prefix)
}

/// Does the operation keep packets from the uplink?
fn refuses(op: &Op) -> bool {
    matches!(op, Op::PutRule(_)) || matches!(op, Op::PutRoute(route) if route.target == Target::Unreachable)
}

fn slot_of(op: &Op) -> Option<Slot> {
    match op {
        Op::Configure { slot, .. }
        | Op::RaiseLink { slot, .. }
        | Op::PutPeer { slot, .. }
        | Op::RemovePeer { slot, .. } => Some(*slot),
        Op::PutRoute(route) => match &route.target {
            Target::Device { device, .. } => Slot::ALL.into_iter().find(|slot| slot.device() == device),
            Target::Unreachable => None,
        },
        Op::RemoveRoute(_) | Op::PutRule(_) | Op::RemoveRule(_) | Op::PutMesh(_) | Op::RemoveMesh(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::numbers::TABLE_NODES;

    use super::*;

    #[test]
    fn only_what_would_lie_beneath_a_way_that_could_not_be_made_is_left_out() {
        let route = |table, address: &str, target| {
            let prefix = address.parse().expect("a prefix");
            Op::PutRoute(Route { table, prefix, target })
        };
        let into = Target::Device { device: "hawser0".to_owned(), source: None };
        let failed: BTreeSet<IpNet> =
            host_route(&route(TABLE_HOSTS, "192.0.2.2/32", into.clone())).into_iter().collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(host_route(&route(TABLE_NODES, "192.0.2.3/32", into.clone())), None);
        let left_out = |table, address, target| unsupported(&route(table, address, target), &failed);
        assert!(left_out(TABLE_HOSTS, "192.0.2.2/32", Target::Unreachable));
        assert!(!left_out(TABLE_HOSTS, "192.0.2.3/32", Target::Unreachable), "another's");
        assert!(!left_out(TABLE_NODES, "192.0.2.2/32", Target::Unreachable), "pods' traffic");
        assert!(!left_out(TABLE_HOSTS, "192.0.2.2/32", into), "the way itself");
    }
}
