//! Requests change the device while packets flow.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::identity::Identity;
use super::lanes::least_loaded;
use super::peer::{NO_LIMIT, Peer};
use super::{Engine, Registry, Underlay, lock, read, write};
use crate::keys::PublicKey;
use crate::state::{Changes, PeerConfig, RouteOp, State};
use crate::table::AllowedIps;
use crate::uapi::{DeviceView, PeerView, SetRequest, UapiError};

impl Engine {
    /// Applies a `set=1` request as a whole, or not at all.
    ///
    /// # Errors
    /// The port cannot be bound, the mark cannot be set, too many peers, or no randomness.
    pub fn set(&self, request: &SetRequest, underlay: &impl Underlay) -> Result<(), UapiError> {
        let mut config = lock(&self.config);
        config.check(request)?;
        // Proves that random numbers are to be had before anything changes.
        random_u32()?;
        let old_mark = underlay.fwmark();
        if let Some(fwmark) = request.fwmark {
            underlay.set_fwmark(fwmark).map_err(|source| UapiError::Fwmark { fwmark, source })?;
        }
        let unbound = underlay.port() == 0;
        let wanted = match (request.listen_port, &request.private_key) {
            (Some(port), _) if port != underlay.port() || port == 0 => Some(port),
            (None, Some(Some(_))) if unbound => Some(0),
            (Some(_) | None, _) => None,
        };
        if let Some(port) = wanted {
            underlay.bind(port).map_err(|source| {
                if request.fwmark.is_some() && underlay.set_fwmark(old_mark).is_err() {
                    tracing::warn!(fwmark = old_mark, "previous fwmark could not be restored");
                }
                UapiError::Bind { port, source }
            })?;
        }
        if wanted.is_some() && !unbound {
            for peer in read(&self.registry).by_key.values() {
                lock(&peer.inner).announce = true;
            }
        }
        let changes = config.apply(request);
        self.carry_out(&config, &changes)
    }

    fn carry_out(&self, config: &State, changes: &Changes) -> Result<(), UapiError> {
        let identity = if changes.identity {
            let identity = config.private_key().map(|key| Arc::new(Identity::new(key)));
            write(&self.identity).clone_from(&identity);
            self.keyed.store(identity.is_some(), Ordering::Relaxed);
            identity
        } else {
            read(&self.identity).clone()
        };
        let identity = identity.as_deref();
        let mut registry = write(&self.registry);
        let mut gone = Vec::new();
        for key in &changes.removed {
            if let Some(peer) = registry.by_key.remove(key) {
                registry.loads[peer.lane] -= 1;
                self.retire(&peer);
                gone.push(peer);
            }
        }
        for key in &changes.added {
            let id = self.next_peer_id.fetch_add(1, Ordering::Relaxed);
            let lane = least_loaded(&registry.loads);
            registry.loads[lane] += 1;
            registry.by_key.insert(*key, Arc::new(Peer::new(id, lane, *key)));
        }
        let renewed: BTreeSet<PublicKey> = if changes.identity {
            config.peers().keys().copied().collect()
        } else {
            changes.added.union(&changes.rekeyed).copied().collect()
        };
        let mut failure = None;
        for key in &renewed {
            let (Some(peer), Some(c)) = (registry.by_key.get(key), config.peers().get(key)) else { continue };
            self.retire(peer);
            if changes.identity {
                peer.forget_handshake();
            }
            if let Some(identity) = identity
                && let Err(e) = self.begin(peer, c, identity)
            {
                failure = Some(e);
            }
        }
        for (key, endpoint) in &changes.endpoints {
            if let Some(peer) = registry.by_key.get(key) {
                // What is known of the way to where it was stays so if it is still there.
                if lock(&peer.inner).endpoint.replace(*endpoint) != Some(*endpoint) {
                    peer.set_room(NO_LIMIT);
                }
            }
        }
        for key in changes.added.union(&changes.keepalives) {
            if let (Some(peer), Some(c)) = (registry.by_key.get(key), config.peers().get(key)) {
                lock(&peer.inner).set_keepalive(c.persistent_keepalive);
            }
        }
        drop(registry);
        self.reroute(&gone, &changes.routes);
        failure.map_or(Ok(()), Err)
    }

    /// Ends all sessions of a peer.
    fn retire(&self, peer: &Peer) {
        // The table first: its lock is never wanted with a peer's in hand.
        let index = lock(&peer.inner).index;
        write(&self.lanes[peer.lane].by_index).remove(&index);
        lock(&peer.inner).retire();
    }

    /// Gives a peer that has no session a fresh start under a fresh index of its lane.
    fn begin(&self, peer: &Arc<Peer>, c: &PeerConfig, identity: &Identity) -> Result<(), UapiError> {
        let by_index = &self.lanes[peer.lane].by_index;
        // Requests come one by one, so nobody else takes it meanwhile.
        let index = free_index(&read(by_index), |index| self.count.of_index(index) == peer.lane)?;
        if let Some(noise) = identity.noise(&peer.public_key, c.preshared_key.as_ref(), index) {
            lock(&peer.inner).start(noise, index);
            write(by_index).insert(index, Arc::clone(peer));
        } else {
            tracing::warn!(peer = %peer.public_key, "public key is of low order: this peer cannot be talked to");
        }
        Ok(())
    }

    /// Applies table changes in one step that no packet can see half of, whatever its lane.
    fn reroute(&self, gone: &[Arc<Peer>], ops: &[RouteOp]) {
        if gone.is_empty() && ops.is_empty() {
            return;
        }
        let registry = read(&self.registry);
        let mut tables: Vec<_> = self.lanes.iter().map(|lane| write(&lane.routes)).collect();
        for routes in &mut tables {
            reroute(&registry, routes, gone, ops);
        }
    }

    /// The configuration and state as `get=1` shows them.
    #[must_use]
    pub fn view(&self, underlay: &impl Underlay) -> DeviceView {
        let config = lock(&self.config);
        let registry = read(&self.registry);
        let routes = read(&self.lanes[0].routes);
        let peers = config
            .peers()
            .iter()
            .filter_map(|(key, c)| {
                let peer = registry.by_key.get(key)?;
                Some(PeerView {
                    public_key: *key,
                    preshared_key: c.preshared_key.clone(),
                    endpoint: lock(&peer.inner).endpoint,
                    last_handshake: peer.last_handshake(),
                    tx_bytes: peer.tx_bytes(),
                    rx_bytes: peer.rx_bytes(),
                    persistent_keepalive: c.persistent_keepalive,
                    allowed_ips: routes.prefixes_of(peer.id).copied().collect(),
                })
            })
            .collect();
        DeviceView {
            private_key: config.private_key().cloned(),
            listen_port: underlay.port(),
            fwmark: underlay.fwmark(),
            peers,
        }
    }
}

/// Applies changes to one copy of the table.
fn reroute(registry: &Registry, routes: &mut AllowedIps<Arc<Peer>>, gone: &[Arc<Peer>], ops: &[RouteOp]) {
    for peer in gone {
        routes.clear_owner(peer.id);
    }
    for op in ops {
        match op {
            RouteOp::Insert(prefix, key) => match registry.by_key.get(key) {
                Some(peer) => routes.insert(*prefix, Arc::clone(peer)),
                None => routes.remove(*prefix), // Given to a peer that the same request removes.
            },
            RouteOp::Remove(prefix, key) => {
                if let Some(peer) = registry.by_key.get(key) {
                    routes.remove_from(*prefix, peer.id);
                }
            }
            RouteOp::Clear(key) => {
                if let Some(peer) = registry.by_key.get(key) {
                    routes.clear_owner(peer.id);
                }
            }
        }
    }
}

fn random_u32() -> Result<u32, UapiError> {
    getrandom::u32().map_err(|e| UapiError::Random(e.to_string()))
}

/// A random 24-bit index of a lane that no peer has. With at most 65536 peers few of a lane's are taken.
fn free_index(taken: &HashMap<u32, Arc<Peer>>, is_of_lane: impl Fn(u32) -> bool) -> Result<u32, UapiError> {
    loop {
        let index = random_u32()? >> 8;
        if is_of_lane(index) && !taken.contains_key(&index) {
            return Ok(index);
        }
    }
}
