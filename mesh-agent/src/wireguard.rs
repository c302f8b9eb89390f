//! Programs WireGuard through `defguard_wireguard_rs`: the kernel's by netlink, `mesh-tunnel` by its UAPI socket.
//!
//! The calls of [`WireGuard`] block, and a `mesh-tunnel` that is stopped or stuck makes them block for as long as it is:
//! defguard reads until the other side closes. [`Caller`] gives each a thread and a deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use defguard_wireguard_rs::error::WireguardInterfaceError;
use defguard_wireguard_rs::host::Host;
use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::net::IpAddrMask;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{InterfaceConfiguration, Kernel, Userspace, WGApi, WireguardInterfaceApi};
use keyring::PrivateKey;
use keyring::psk::{Psk, PskId};
use mesh_core::diff::{ObservedDevice, ObservedPeer};
use mesh_core::key::PublicKey;
use mesh_core::numbers::MARK_WIREGUARD;
use mesh_core::plan::DesiredPeer;
use mesh_core::slot::Slot;
use zeroize::{Zeroize, Zeroizing};

mod update;
use update::Update;

use crate::single::Single;

/// Pre-shared keys by their names.
#[derive(Clone, Default)]
pub struct Psks(BTreeMap<PskId, Arc<Psk>>);

impl std::fmt::Debug for Psks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Psks {
    /// One more; the name of it.
    pub fn add(&mut self, psk: Arc<Psk>) -> PskId {
        let id = psk.id();
        self.0.entry(id).or_insert(psk);
        id
    }

    /// Those of another one too.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// What a device has of a peer that is to be set.
#[derive(Clone, Copy, Debug)]
pub enum Present<'a> {
    /// No entry.
    Absent,
    /// One that has to be made anew, since its sessions must end.
    Anew,
    /// This one, with the same pre-shared key.
    As(&'a ObservedPeer),
}

/// Which implementation runs the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The kernel's module.
    Kernel,
    /// `mesh-tunnel`.
    Userspace,
}

/// WireGuard refused, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {slot}: {source}{hint}")]
pub struct WireGuardError {
    what: &'static str,
    slot: Slot,
    source: WireguardInterfaceError,
    hint: &'static str,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// WireGuard said so.
    #[error(transparent)]
    Refused(#[from] WireGuardError),
    /// No answer in [`CALL_DEADLINE`], or an earlier call still waits for one.
    #[error("{slot} does not answer: mesh-tunnel is stopped or stuck; restart it")]
    Silent {
        /// The device.
        slot: Slot,
    },
    /// The call panicked.
    #[error("A call to {slot} ended early; this is a bug")]
    Ended {
        /// The device.
        slot: Slot,
    },
}

/// How long one call may take: a device with thousands of peers answers in well under a second.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Calls the devices from async code.
#[derive(Clone, Debug)]
pub struct Caller {
    wireguard: WireGuard,
    /// Slots with a call under way: a stuck one keeps its thread, so there is never a second.
    single: Arc<[Single; 2]>,
}

impl Caller {
    /// For these devices.
    pub fn new(wireguard: WireGuard) -> Self {
        Self { wireguard, single: Arc::default() }
    }

    /// Which implementation it is.
    pub const fn implementation(&self) -> Implementation {
        self.wireguard.implementation()
    }

    /// Runs one call.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<T: Send + 'static>(
        &self,
        slot: Slot,
        work: impl FnOnce(WireGuard) -> Result<T, WireGuardError> + Send + 'static,
    ) -> Result<T, CallError> {
        let Some(inside) = self.single[slot.index()].enter() else {
            return Err(CallError::Silent { slot });
        };
        let wireguard = self.wireguard;
        let (send, receive) = tokio::sync::oneshot::channel();
        // Not from the runtime's pool, which waits for its threads at exit.
        let started = std::thread::Builder::new().name(format!("call-{slot}")).spawn(move || {
            let result = work(wireguard);
            // Who hears the result may call again at once.
            drop(inside);
            drop(send.send(result));
        });
        if started.is_err() {
            return Err(CallError::Ended { slot });
        }
        match tokio::time::timeout(CALL_DEADLINE, receive).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) => Err(CallError::Ended { slot }),
            Err(_) => Err(CallError::Silent { slot }),
        }
    }
}

/// The two devices.
#[derive(Clone, Copy, Debug)]
pub struct WireGuard {
    implementation: Implementation,
}

impl WireGuard {
    /// Devices of this implementation.
    pub const fn new(implementation: Implementation) -> Self {
        Self { implementation }
    }

    /// Which one it is.
    pub const fn implementation(&self) -> Implementation {
        self.implementation
    }

    /// Key, port and peers of a device, and their pre-shared keys. MTU and state are the kernel's to tell and left at their
    /// defaults.
    ///
    /// # Errors
    /// The device is missing or does not answer.
    pub fn observe(&self, slot: Slot, now: SystemTime) -> Result<(ObservedDevice, Psks), WireGuardError> {
        let host = self
            .with(slot, |api| api.read_interface_data())
            .map_err(|source| self.error("Could not read the state", slot, source))?;
        let public_key = host.private_key.as_ref().filter(|key| key.as_slice().iter().any(|b| *b != 0));
        let public_key = public_key.map(|key| PublicKey::from_bytes(key.public_key().as_array()));
        let mut psks = Psks::default();
        let peers = host.peers.values().map(|peer| observed(peer, now, &mut psks)).collect();
        let mark = host.fwmark.unwrap_or(0);
        let device =
            ObservedDevice { public_key, port: host.listen_port, mark, peers, ..ObservedDevice::default() };
        Ok((device, psks))
    }

    /// Sets key, port, mark and all peers at once.
    ///
    /// # Errors
    /// Refused, or the device is missing.
    pub fn configure(
        &self,
        slot: Slot,
        key: &PrivateKey,
        port: u16,
        peers: &BTreeMap<PublicKey, DesiredPeer>,
        psks: &Psks,
    ) -> Result<(), WireGuardError> {
        let peers: Vec<Peer> = peers.iter().map(|(key, peer)| wanted(key, peer, psks)).collect();
        let result = match self.implementation {
            Implementation::Userspace => api::<Userspace>(slot).and_then(|api| {
                let mut host = Host::new(port, Key::new(*key.expose()));
                host.fwmark = Some(MARK_WIREGUARD);
                host.peers = peers.into_iter().map(|peer| (peer.public_key.clone(), peer)).collect();
                Ok(api.write_host(&host)?)
            }),
            Implementation::Kernel => api::<Kernel>(slot).and_then(|api| {
                let mut text = base64_key(key);
                let mut config = InterfaceConfiguration {
                    name: slot.device().to_owned(),
                    prvkey: text.as_str().to_owned(),
                    addresses: Vec::new(),
                    port,
                    peers,
                    mtu: None,
                    fwmark: Some(MARK_WIREGUARD),
                };
                text.zeroize();
                let done = api
                    .configure_interface(&config)
                    .and_then(|()| config.peers.iter().try_for_each(|peer| api.configure_peer(peer)));
                config.prvkey.zeroize();
                done
            }),
        };
        result.map_err(|source| self.error("Could not set key and port", slot, source))
    }

    /// Adds or changes a peer. With `anew` its entry goes first, and with it every session that was made with another
    /// pre-shared key.
    ///
    /// # Errors
    /// Refused, or the device is missing.
    pub fn put_peer(
        &self,
        slot: Slot,
        key: &PublicKey,
        peer: &DesiredPeer,
        psks: &Psks,
        present: Present<'_>,
    ) -> Result<(), WireGuardError> {
        if let (Implementation::Kernel, Present::As(present)) = (self.implementation, present)
            && present.allowed.is_subset(&peer.allowed)
        {
            let more: Vec<_> = peer.allowed.difference(&present.allowed).copied().collect();
            let (endpoint, keepalive) = (peer.endpoint, peer.keepalive.unwrap_or(0));
            let update = Update { device: slot.device(), peer: key, endpoint, keepalive, more: &more };
            let refused = |error: std::io::Error| WireguardInterfaceError::NetlinkError(error.to_string());
            return update
                .send()
                .map_err(|error| self.error("Could not change a peer", slot, refused(error)));
        }
        let peer = wanted(key, peer, psks);
        self.with(slot, |api| {
            if matches!(present, Present::Anew) {
                api.remove_peer(&peer.public_key)?;
            }
            api.configure_peer(&peer)
        })
        .map_err(|source| self.error("Could not set a peer", slot, source))
    }

    /// Removes a peer.
    ///
    /// # Errors
    /// Refused, or the device is missing.
    pub fn remove_peer(&self, slot: Slot, key: &PublicKey) -> Result<(), WireGuardError> {
        let key = Key::new(*key.as_bytes());
        self.with(slot, |api| api.remove_peer(&key))
            .map_err(|source| self.error("Could not remove a peer", slot, source))
    }

    fn with<T>(
        &self,
        slot: Slot,
        act: impl FnOnce(&dyn WireguardInterfaceApi) -> Result<T, WireguardInterfaceError>,
    ) -> Result<T, WireguardInterfaceError> {
        match self.implementation {
            Implementation::Kernel => act(&api::<Kernel>(slot)?),
            Implementation::Userspace => act(&api::<Userspace>(slot)?),
        }
    }

    fn error(&self, what: &'static str, slot: Slot, source: WireguardInterfaceError) -> WireGuardError {
        let hint = match self.implementation {
            Implementation::Kernel => "; is the module wireguard loaded?",
            Implementation::Userspace => "; is mesh-tunnel running?",
        };
        WireGuardError { what, slot, source, hint }
    }
}

fn api<I>(slot: Slot) -> Result<WGApi<I>, WireguardInterfaceError> {
    WGApi::<I>::new(slot.device())
}

fn base64_key(key: &PrivateKey) -> Zeroizing<String> {
    use base64::Engine as _;
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(*key.expose()))
}

/// As WireGuard takes it. Who programs a peer brings its pre-shared key along; without it the peer gets one that nobody has,
/// never none.
fn wanted(key: &PublicKey, peer: &DesiredPeer, psks: &Psks) -> Peer {
    let mut wanted = Peer::new(Key::new(*key.as_bytes()));
    wanted.preshared_key = peer.psk.map(|id| match psks.0.get(&id) {
        Some(psk) => Key::new(*psk.expose()),
        None => Key::generate(),
    });
    wanted.endpoint = peer.endpoint;
    wanted.persistent_keepalive_interval = Some(peer.keepalive.unwrap_or(0));
    wanted.allowed_ips =
        peer.allowed.iter().map(|net| IpAddrMask::new(net.network(), net.prefix_len())).collect();
    wanted
}

fn observed(peer: &Peer, now: SystemTime, psks: &mut Psks) -> (PublicKey, ObservedPeer) {
    // The kernel shows zeros where there is none.
    let psk = peer.preshared_key.as_ref().filter(|key| key.as_slice().iter().any(|byte| *byte != 0));
    let psk = psk.map(|key| Psk::of_device(Zeroizing::new(key.as_array())));
    let psk = psk.map(|psk| psks.add(Arc::new(psk)));

    let net = |mask: &IpAddrMask| ipnet::IpNet::new(mask.address, mask.cidr).ok().map(|net| net.trunc());
    let handshake = peer.last_handshake.filter(|at| *at != SystemTime::UNIX_EPOCH);
    let observed = ObservedPeer {
        endpoint: peer.endpoint.map(unmapped),
        allowed: peer.allowed_ips.iter().filter_map(net).collect(),
        keepalive: peer.persistent_keepalive_interval.filter(|seconds| *seconds != 0),
        // A handshake in the future is a clock that was set back: as good as just now.
        handshake_age: handshake.map(|at| now.duration_since(at).unwrap_or_default()),
        bytes: (peer.tx_bytes, peer.rx_bytes),
        psk,
    };
    (PublicKey::from_bytes(peer.public_key.as_array()), observed)
}

/// `::ffff:192.0.2.1` and `192.0.2.1` are one endpoint.
fn unmapped(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}
