//! One datagram to the mesh address of a peer, so that a handshake begins before anybody waits for it.
//!
//! A device that was just keyed has no session, while its peers may still send to the one that died with its former process,
//! for up to 15 s. And of two nodes that meet, one knows the other first: its first initiation comes to somebody who does not
//! know the sender and is dropped, and the next one follows after REKEY_TIMEOUT alone (5 s, WireGuard's protocol 6.4). So
//! whoever learns of a peer begins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::name::NodeName;
use mesh_core::plan::{Desired, Target};
use mesh_core::slot::Slot;

/// The discard port (RFC 863): nobody listens on a mesh address's, and an ICMP error in return is as good.
const DISCARD: u16 = 9;

/// Whom nothing was sent to since they were programmed.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    /// Devices that were keyed, with all their peers.
    pub(super) devices: BTreeSet<Slot>,
    /// Peers that were not there before.
    pub(super) peers: BTreeSet<(Slot, NodeName)>,
}

impl Unheard {
    /// Where to send: a mesh address of each peer that is routed into its slot.
    fn targets(&self, desired: &Desired) -> Vec<IpAddr> {
        let meant = |slot: Slot, node: &NodeName| {
            self.devices.contains(&slot) || self.peers.contains(&(slot, node.clone()))
        };
        let of_slot = |slot: Slot| {
            behind(desired, slot).into_iter().filter(move |(node, _)| meant(slot, node)).map(|(_, ip)| ip)
        };
        Slot::ALL.into_iter().flat_map(of_slot).collect()
    }
}

/// Sends, as far as it can: whatever a pod sends does the same a little later.
pub(super) async fn wake(desired: &Desired, unheard: Unheard) {
    let targets = unheard.targets(desired);
    if targets.is_empty() {
        return;
    }
    let sources = desired.mesh.clone();
    let send = move || {
        for source in sources {
            let Ok(socket) = std::net::UdpSocket::bind((source, 0)) else { continue };
            for target in targets.iter().filter(|target| mesh_core::prefix::same_family(**target, source)) {
                drop(socket.send_to(&[0], (*target, DISCARD)));
            }
        }
    };
    drop(tokio::task::spawn_blocking(send).await);
}

/// Mesh addresses, one per peer, that are routed into a slot.
fn behind(desired: &Desired, slot: Slot) -> BTreeMap<&NodeName, IpAddr> {
    let into = |route: &&mesh_core::plan::Route| {
        route.table == mesh_core::numbers::TABLE_PODS
            && matches!(&route.target, Target::Device { device, .. } if device == slot.device())
    };
    let mut by_peer: BTreeMap<&NodeName, IpAddr> = BTreeMap::new();
    for route in desired.routes.iter().filter(into) {
        let owner = desired.devices.get(&slot).and_then(|device| {
            device.peers.values().find(|peer| peer.allowed.contains(&route.prefix)).map(|peer| &peer.node)
        });
        if let (Some(owner), Some(address)) = (owner, mesh_core::prefix::mesh_address(&route.prefix)) {
            by_peer.entry(owner).or_insert(address);
        }
    }
    by_peer
}
