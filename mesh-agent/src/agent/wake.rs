//! One datagram to the mesh address of a peer, so that a handshake begins before anybody waits for it.
//!
//! A device that was just keyed has no session, while its peers may still send to the one that died with its former process,
//! for up to 15 s. And of two nodes that meet, one knows the other first: its first initiation comes to somebody who does not
//! know the sender and is dropped, and the next one follows after REKEY_TIMEOUT alone (5 s, WireGuard's protocol 6.4). So
//! whoever learns of a peer begins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
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
        if self.devices.is_empty() && self.peers.is_empty() {
            return Vec::new();
        }
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
    let mut owners: BTreeMap<&IpNet, &NodeName> = BTreeMap::new();
    for peer in desired.devices.get(&slot).into_iter().flat_map(|device| device.peers.values()) {
        for prefix in &peer.allowed {
            owners.entry(prefix).or_insert(&peer.node);
        }
    }
    let mut by_peer: BTreeMap<&NodeName, IpAddr> = BTreeMap::new();
    for route in desired.routes.iter().filter(into) {
        let owner = owners.get(&route.prefix).copied();
        if let (Some(owner), Some(address)) = (owner, mesh_core::prefix::mesh_address(&route.prefix)) {
            by_peer.entry(owner).or_insert(address);
        }
    }
    by_peer
}

#[cfg(test)]
mod tests {
    use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
    use mesh_core::key::PublicKey;
    use mesh_core::numbers::{TABLE_NODES, TABLE_PODS};
    use mesh_core::plan::{DesiredPeer, Route, plan};
    use mesh_core::view::{ClusterView, LocalFacts, Settings};
    use proptest::prelude::*;

    use super::*;

    /// A plan of nobody.
    fn alone() -> Desired {
        let slot = |number: u8| SlotAnnouncement {
            epoch: Epoch(1),
            public_key: PublicKey::from_bytes([200 + number; 32]),
            port: 51880 + u16::from(number),
            draining: false,
        };
        let announcement = Announcement {
            slots: [slot(0), slot(1)],
            endpoints: Vec::new(),
            kem: None,
            kem_required: false,
            host_traffic: false,
        };
        let local = LocalFacts {
            name: "a".parse().unwrap(),
            cluster: "west".parse().unwrap(),
            announcement,
            uplink_mtu: None,
            host: Default::default(),
        };
        let view = ClusterView {
            settings: Settings::default(),
            local,
            nodes: BTreeMap::new(),
            attachments: BTreeMap::new(),
            synced: true,
            pairs: BTreeMap::new(),
        };
        plan(&view).0
    }

    /// Prefixes with a mesh address and without, of both families.
    const PREFIXES: [&str; 5] =
        ["10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/31", "fd01:0:0:1::/64", "192.0.2.2/32"];

    fn prefix(number: usize) -> IpNet {
        PREFIXES[number].parse().unwrap()
    }

    fn name(number: u8) -> NodeName {
        format!("n{number}").parse().unwrap()
    }

    /// Peers with a key, a node and what they may have, for each slot; routes by table, prefix and device.
    fn plans() -> impl Strategy<Value = Desired> {
        let peer = || (0_u8..8, 0_u8..4, prop::collection::btree_set(0..PREFIXES.len(), 0..3));
        let route = (any::<bool>(), 0..PREFIXES.len(), 0_usize..4);
        (
            [prop::collection::vec(peer(), 0..5), prop::collection::vec(peer(), 0..5)],
            prop::collection::vec(route, 0..8),
        )
            .prop_map(|(peers, routes)| {
                let mut desired = alone();
                for (slot, peers) in Slot::ALL.into_iter().zip(peers) {
                    let device = desired.devices.get_mut(&slot).unwrap();
                    device.peers = peers
                        .into_iter()
                        .map(|(key, node, allowed)| {
                            let peer = DesiredPeer {
                                node: name(node),
                                endpoint: None,
                                allowed: allowed.into_iter().map(prefix).collect(),
                                keepalive: None,
                                psk: None,
                            };
                            (PublicKey::from_bytes([key + 1; 32]), peer)
                        })
                        .collect();
                }
                desired.routes = routes
                    .into_iter()
                    .map(|(pods, number, target)| {
                        let devices = ["hawser0", "hawser1", "eth0"];
                        let into =
                            |device: &&str| Target::Device { device: (*device).to_owned(), source: None };
                        Route {
                            table: if pods { TABLE_PODS } else { TABLE_NODES },
                            prefix: prefix(number),
                            target: devices.get(target).map_or(Target::Unreachable, into),
                        }
                    })
                    .collect();
                desired
            })
    }

    /// What [`behind`] finds, by going through all peers for each route.
    fn behind_one_by_one(desired: &Desired, slot: Slot) -> BTreeMap<&NodeName, IpAddr> {
        let mut by_peer = BTreeMap::new();
        for route in &desired.routes {
            let leads = matches!(&route.target, Target::Device { device, .. } if device == slot.device());
            if !leads || route.table != TABLE_PODS {
                continue;
            }
            let owner =
                desired.devices[&slot].peers.values().find(|peer| peer.allowed.contains(&route.prefix));
            if let (Some(owner), Some(address)) = (owner, mesh_core::prefix::mesh_address(&route.prefix)) {
                by_peer.entry(&owner.node).or_insert(address);
            }
        }
        by_peer
    }

    proptest! {
        #[test]
        fn whoever_is_behind_a_slot_is_found_as_by_going_through_all_peers(desired in plans()) {
            for slot in Slot::ALL {
                prop_assert_eq!(behind(&desired, slot), behind_one_by_one(&desired, slot));
            }
        }

        #[test]
        fn who_was_sent_to_before_is_not_sent_to_again(desired in plans()) {
            prop_assert_eq!(Unheard::default().targets(&desired), Vec::<IpAddr>::new());
            let all = Unheard { devices: Slot::ALL.into(), peers: BTreeSet::new() };
            let behind = Slot::ALL.into_iter().flat_map(|slot| behind_one_by_one(&desired, slot).into_values());
            prop_assert_eq!(all.targets(&desired), behind.collect::<Vec<_>>());
        }
    }
}
