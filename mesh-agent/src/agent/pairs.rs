//! How this node talks with each of its peers at present: what the choice of a slot is made from.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_core::diff::Observed;
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::numbers::TABLE_PODS;
use mesh_core::pair::{Ear, Link};
use mesh_core::plan::{Route, Target};
use mesh_core::prefix;
use mesh_core::slot::Slot;
use mesh_core::view::{NodeFacts, PairFacts};

/// What is remembered of pairs between turns. Lost with the agent: what it finds then counts as having been so for ever.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// The turn before this one.
    seen: Option<Seen>,
    /// Since when a slot has had its own present key and this peer's; none: since before this agent.
    keyed: BTreeMap<(Slot, PublicKey), (PublicKey, Option<Instant>)>,
    ears: BTreeMap<(Slot, PublicKey), Ear>,
    /// How much had come in from each peer, and when the last of it did, as far as this agent has looked.
    heard: BTreeMap<(Slot, PublicKey), (u64, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    last: Instant,
}

impl Pairs {
    /// Looks at the devices, once for each turn. `now` is the moment at which they were looked at, or later.
    pub(super) fn look(&mut self, observed: &Observed, now: Instant) {
        // What was not there at the last look may have come right after it.
        let appeared = self.seen.map(|seen| seen.last);
        let first = self.seen.map_or(now, |seen| seen.first);
        let (mut keyed, mut ears, mut heard) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (slot, device) in &observed.devices {
            let Some(own) = device.public_key else { continue };
            for (key, peer) in &device.peers {
                let at = (*slot, *key);
                let since = match self.keyed.get(&at) {
                    Some((before, since)) if *before == own => *since,
                    Some(_) | None => appeared,
                };
                keyed.insert(at, (own, since));
                let received = peer.bytes.1;
                let last = match self.heard.get(&at) {
                    // An entry that was made anew begins at zero.
                    Some((before, last)) if *before == received || received == 0 => *last,
                    Some(_) | None => now,
                };
                heard.insert(at, (received, last));
                let ear = self.ears.get(&at).copied().unwrap_or_default();
                ears.insert(at, ear.hear(peer.bytes.0, peer.bytes.1, now.saturating_duration_since(first)));
            }
        }
        *self = Self { seen: Some(Seen { first, last: now }), keyed, ears, heard };
    }

    /// For how long nothing has come in from a node on either slot, handshakes included. None: it is on no device.
    pub(super) fn unheard_for(
        &self,
        observed: &Observed,
        node: &NodeFacts,
        now: Instant,
    ) -> Option<Duration> {
        let announced = node.announced()?;
        let silent = |slot: Slot| {
            let key = announced.slot(slot).public_key;
            let (_, last) = self.heard.get(&(slot, key))?;
            let handshake = observed.devices.get(&slot)?.peers.get(&key)?.handshake_age;
            Some(now.saturating_duration_since(*last).min(handshake.unwrap_or(Duration::MAX)))
        };
        Slot::ALL.into_iter().filter_map(silent).min()
    }

    /// A device was given this key at this moment: no handshake of before was made with it.
    pub(super) fn rekeyed(&mut self, slot: Slot, own: PublicKey, at: Instant) {
        for ((of, _), known) in &mut self.keyed {
            if *of == slot {
                *known = (own, Some(at));
            }
        }
    }

    /// What is known of the pair with each of these nodes.
    pub(super) fn facts(
        &self,
        nodes: &BTreeMap<NodeName, NodeFacts>,
        observed: &Observed,
        now: Instant,
    ) -> BTreeMap<NodeName, PairFacts> {
        let ways = ways(&observed.routes);
        let facts = |(name, node): (&NodeName, &NodeFacts)| {
            let announced = node.announced()?;
            let links =
                Slot::ALL.map(|slot| self.link(observed, slot, &announced.slot(slot).public_key, now));
            Some((name.clone(), PairFacts { current: way(&ways, node), links, ..PairFacts::default() }))
        };
        nodes.iter().filter_map(facts).collect()
    }

    fn link(&self, observed: &Observed, slot: Slot, key: &PublicKey, now: Instant) -> Link {
        let at = (slot, *key);
        let since = self.keyed.get(&at).map(|(_, since)| *since);
        let peer = observed.devices.get(&slot).and_then(|device| device.peers.get(key));
        let elapsed = self.seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen.first));
        Link {
            keys_for: since.map(|since| since.map_or(Duration::MAX, |at| now.saturating_duration_since(at))),
            handshake_age: peer.and_then(|peer| peer.handshake_age),
            unanswered_for: self.ears.get(&at).and_then(|ear| ear.unanswered_for(elapsed)),
            ready: true,
        }
    }
}

/// By which slot each prefix is routed.
pub(super) fn ways<'a>(routes: impl IntoIterator<Item = &'a Route>) -> BTreeMap<IpNet, Slot> {
    let way = |route: &Route| match &route.target {
        Target::Device { device, .. } if route.table == TABLE_PODS => {
            let slot = Slot::ALL.into_iter().find(|slot| slot.device() == device)?;
            Some((route.prefix, slot))
        }
        Target::Device { .. } | Target::Unreachable => None,
    };
    routes.into_iter().filter_map(way).collect()
}

/// By which slot a node is sent to; its first prefix that has a route says so. Where pods wait for a pre-shared key, its mesh
/// address alone is routed.
fn way(ways: &BTreeMap<IpNet, Slot>, node: &NodeFacts) -> Option<Slot> {
    node.pod_cidrs.iter().find_map(|cidr| of(ways, cidr))
}

fn of(ways: &BTreeMap<IpNet, Slot>, cidr: &IpNet) -> Option<Slot> {
    let agents = || ways.get(&prefix::host(prefix::mesh_address(cidr)?));
    ways.get(cidr).or_else(agents).copied()
}

/// By which slot all that is routed to a node goes; none: by none, or by both.
pub(super) fn only_way(ways: &BTreeMap<IpNet, Slot>, node: &NodeFacts) -> Option<Slot> {
    let mut slots = node.pod_cidrs.iter().filter_map(|cidr| of(ways, cidr));
    let first = slots.next()?;
    slots.all(|slot| slot == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
    use mesh_core::diff::{ObservedDevice, ObservedPeer};
    use mesh_core::view::AnnouncementFact;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn seen(own: u8, peer: Option<(u8, u64)>) -> Observed {
        let peer = peer.map(|(byte, age)| {
            let handshake_age = Some(Duration::from_millis(age));
            (key(byte), ObservedPeer { handshake_age, ..ObservedPeer::default() })
        });
        let peers = peer.into_iter().collect();
        let device = ObservedDevice { public_key: Some(key(own)), peers, ..ObservedDevice::default() };
        Observed { devices: BTreeMap::from([(Slot::Zero, device)]), ..Observed::default() }
    }

    #[test]
    fn a_node_is_unheard_since_the_last_byte_or_handshake_on_either_slot() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let slots = [(Slot::Zero, 2), (Slot::One, 3)];
        let slot = |(_, byte): (Slot, u8)| SlotAnnouncement {
            epoch: Epoch(1),
            public_key: key(byte),
            port: 1,
            draining: false,
        };
        let announcement = Announcement {
            slots: slots.map(slot),
            endpoints: vec![],
            kem: None,
            kem_required: false,
            host_traffic: false,
        };
        let node = NodeFacts { announcement: AnnouncementFact::Valid(announcement), ..NodeFacts::default() };
        let seen = |received: [u64; 2], handshake: Option<u64>| {
            let peer = |received| ObservedPeer {
                handshake_age: handshake.map(Duration::from_secs),
                bytes: (7, received),
                ..ObservedPeer::default()
            };
            let device = |(slot, byte): (Slot, u8)| {
                let peers = BTreeMap::from([(key(byte), peer(received[slot.index()]))]);
                (slot, ObservedDevice { public_key: Some(key(1)), peers, ..ObservedDevice::default() })
            };
            Observed { devices: slots.map(device).into(), ..Observed::default() }
        };
        let mut pairs = Pairs::default();
        let mut look = |seconds: u64, received, handshake| {
            let observed = seen(received, handshake);
            pairs.look(&observed, at(seconds));
            pairs.unheard_for(&observed, &node, at(seconds)).map(|time| time.as_secs())
        };
        // What was before the agent nobody knows.
        assert_eq!(look(0, [100, 100], Some(900)), Some(0));
        assert_eq!(look(10, [100, 100], Some(910)), Some(10));
        assert_eq!(look(20, [100, 101], Some(920)), Some(0));
        assert_eq!(look(60, [100, 101], Some(5)), Some(5), "a handshake is a sign of life");
        // Its entries are made anew for another key: that is no news of it.
        assert_eq!(look(70, [0, 0], None), Some(50));
        assert_eq!(look(80, [1, 0], None), Some(0));
        assert_eq!(pairs.unheard_for(&Observed::default(), &node, at(90)), None, "on no device");
    }

    #[test]
    fn a_handshake_counts_when_it_is_younger_than_both_keys_could_be() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut pairs = Pairs::default();
        let confirmed = |pairs: &Pairs, observed: &Observed, peer: u8, millis: u64| {
            pairs.link(observed, Slot::Zero, &key(peer), at(millis)).confirmed()
        };
        // Found at the start: it has been so for ever.
        let found = seen(1, Some((2, 100_000)));
        pairs.look(&found, at(0));
        assert!(confirmed(&pairs, &found, 2, 0));
        // A peer's new key appears between two looks, with a handshake in between.
        let replaced = seen(1, Some((3, 400)));
        pairs.look(&replaced, at(1000));
        assert!(confirmed(&pairs, &replaced, 3, 1000));
        // Our own new key: the entry still shows the handshake of before.
        pairs.rekeyed(Slot::Zero, key(4), at(1500));
        let stale = seen(4, Some((3, 1400)));
        pairs.look(&stale, at(2000));
        assert!(!confirmed(&pairs, &stale, 3, 2000), "made with the old key");
        let fresh = seen(4, Some((3, 300)));
        pairs.look(&fresh, at(3000));
        assert!(confirmed(&pairs, &fresh, 3, 3000));
        assert!(!confirmed(&pairs, &fresh, 9, 3000), "nobody's key");
    }
}
