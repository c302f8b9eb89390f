//! The configured state of a device and what a request changes in it. Pure: no sockets, no sessions.
//!
//! [`State::apply`] turns a request into [`Changes`] that the engine carries out. A session is disturbed
//! only where a secret changes: endpoint, keepalive and allowed IPs are changed under it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::uapi::{PeerRequest, PrefixOp, SetRequest, UapiError};

/// Most peers of one device, as in wireguard-go.
pub const MAX_PEERS: usize = 1 << 16;

/// The configuration of one peer, without what its session learns (endpoint, times, bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// Pre-shared key.
    pub preshared_key: Option<PresharedKey>,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive: u16,
}

/// A change of the allowed-IPs table. All of a request are applied in order, as one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOp {
    /// Give the prefix to the peer, whoever had it.
    Insert(IpNet, PublicKey),
    /// Take the prefix from the peer, if it is the peer's.
    Remove(IpNet, PublicKey),
    /// Take all prefixes from the peer.
    Clear(PublicKey),
}

/// What a request changed, for the engine to carry out in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The device has another private key, or none: all sessions end.
    pub identity: bool,
    /// Peers whose sessions end. One may be in `added` again: then it starts afresh.
    pub removed: BTreeSet<PublicKey>,
    /// Peers to create from their configuration.
    pub added: BTreeSet<PublicKey>,
    /// Peers that stay and have another pre-shared key: their sessions end.
    pub rekeyed: BTreeSet<PublicKey>,
    /// Endpoints to set.
    pub endpoints: Vec<(PublicKey, SocketAddr)>,
    /// Peers that stay and have another keepalive interval.
    pub keepalives: BTreeSet<PublicKey>,
    /// Changes of the allowed-IPs table.
    pub routes: Vec<RouteOp>,
}

/// Derives the public key of a private key; passed in, so that this module needs no cryptography.
pub type Derive = fn(&PrivateKey) -> PublicKey;

/// The configuration of a device.
#[derive(Debug)]
pub struct State {
    private_key: Option<PrivateKey>,
    public_key: Option<PublicKey>,
    peers: BTreeMap<PublicKey, PeerConfig>,
    derive: Derive,
}

impl State {
    /// A device without key and peers.
    #[must_use]
    pub const fn new(derive: Derive) -> Self {
        Self { private_key: None, public_key: None, peers: BTreeMap::new(), derive }
    }

    /// The private key.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        self.private_key.as_ref()
    }

    /// The peers, by key.
    #[must_use]
    pub const fn peers(&self) -> &BTreeMap<PublicKey, PeerConfig> {
        &self.peers
    }

    /// Refuses a request that would exceed [`MAX_PEERS`]; counted as if no peer were removed, unless all are.
    ///
    /// # Errors
    /// [`UapiError::TooManyPeers`].
    pub fn check(&self, request: &SetRequest) -> Result<(), UapiError> {
        let mut keys: BTreeSet<PublicKey> =
            request.peers.iter().filter(|p| !p.remove && !p.update_only).map(|p| p.public_key).collect();
        if !request.replace_peers {
            keys.extend(self.peers.keys());
        }
        if keys.len() > MAX_PEERS {
            return Err(UapiError::TooManyPeers { wanted: keys.len(), limit: MAX_PEERS });
        }
        Ok(())
    }

    /// Applies a request that [`State::check`] accepts. It cannot fail.
    pub fn apply(&mut self, request: &SetRequest) -> Changes {
        let mut changes = Changes::default();
        let before = self.touched(request);
        if let Some(key) = &request.private_key
            && *key != self.private_key
        {
            self.private_key.clone_from(key);
            self.public_key = key.as_ref().map(self.derive);
            changes.identity = true;
            if let Some(own) = self.public_key {
                self.remove(own, &mut changes);
            }
        }
        // Peers that `replace_peers` removes unless the request names them again: then their session lives on.
        let mut doomed = BTreeSet::new();
        if request.replace_peers {
            for (key, config) in &mut self.peers {
                doomed.insert(*key);
                *config = PeerConfig::default();
                changes.routes.push(RouteOp::Clear(*key));
            }
        }
        for peer in &request.peers {
            self.apply_peer(peer, &mut doomed, &mut changes);
        }
        for key in doomed {
            self.remove(key, &mut changes);
        }
        for (key, old) in &before {
            let Some(config) = self.peers.get(key) else { continue };
            if changes.added.contains(key) {
                continue;
            }
            if old.preshared_key != config.preshared_key {
                changes.rekeyed.insert(*key);
            }
            if old.persistent_keepalive != config.persistent_keepalive {
                changes.keepalives.insert(*key);
            }
        }
        changes
    }

    /// The peers that a request may change, as they are now. A request for one peer copies one.
    fn touched(&self, request: &SetRequest) -> BTreeMap<PublicKey, PeerConfig> {
        if request.replace_peers {
            return self.peers.clone();
        }
        let keys = request.peers.iter().map(|p| p.public_key);
        keys.filter_map(|k| self.peers.get(&k).map(|c| (k, c.clone()))).collect()
    }

    fn apply_peer(&mut self, peer: &PeerRequest, doomed: &mut BTreeSet<PublicKey>, changes: &mut Changes) {
        let key = peer.public_key;
        if peer.remove {
            doomed.remove(&key);
            self.remove(key, changes);
            return;
        }
        if self.public_key == Some(key) {
            return; // A device is not its own peer; wireguard-go ignores the section, too.
        }
        let present = self.peers.contains_key(&key) && !doomed.contains(&key);
        if peer.update_only && !present {
            return;
        }
        doomed.remove(&key);
        let config = self.peers.entry(key).or_insert_with(|| {
            changes.added.insert(key);
            PeerConfig::default()
        });
        if let Some(psk) = &peer.preshared_key {
            config.preshared_key.clone_from(psk);
        }
        if let Some(seconds) = peer.persistent_keepalive {
            config.persistent_keepalive = seconds;
        }
        if let Some(endpoint) = peer.endpoint {
            changes.endpoints.push((key, endpoint));
        }
        changes.routes.extend(peer.prefixes.iter().map(|op| match *op {
            PrefixOp::Clear => RouteOp::Clear(key),
            PrefixOp::Add(prefix) => RouteOp::Insert(prefix, key),
            PrefixOp::Remove(prefix) => RouteOp::Remove(prefix, key),
        }));
    }

    fn remove(&mut self, key: PublicKey, changes: &mut Changes) {
        if self.peers.remove(&key).is_none() {
            return;
        }
        // A peer that this request created was never seen by the engine.
        if !changes.added.remove(&key) {
            changes.removed.insert(key);
        }
        changes.endpoints.retain(|(k, _)| *k != key);
        changes.routes.push(RouteOp::Clear(key));
    }
}

#[cfg(test)]
mod tests;
