//! The engine of one device: peers, sessions and the table, without sockets and threads.
//!
//! Locks, and the order in which one is taken while another is held: `config`, then `registry`, then those of [`lanes`] in
//! their order, then one peer. None is held while a [`Sink`] is called.
//!
//! A packet to send ([`transmit`]): table → peer → cut → [`noise`](crate::noise) → [`Outbox`]. A datagram ([`receive`]): MAC and load
//! check → peer (by static key for an initiation, by receiver index for all else) → `noise` → the inner source must
//! belong to that peer in the table *as it is after decryption* → [`Inbox`]. Both boxes collect what can cross a
//! descriptor in one call, and whoever drives the engine empties them when there is no more to come at once.
//!
//! A peer's lock is held for the packets of one super-packet, or those that came in one call. Whoever drives the engine
//! does both directions of it in one thread, that of the peer's lane ([`lanes`]), so nobody waits for that lock but for requests, timers
//! and handshakes. Boxes are of a lane, and a lane has tables of its own: threads write to no memory that another reads for
//! each packet, but for counters, which are added to once for many. What is given to another lane than the peer's is handled all
//! the same, only slower and without an order to the rest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::clock::Moment;
use crate::counters::{Counter, Counters};
use crate::keys::PublicKey;
use crate::noise::Answer;
use crate::noise::messages::{self, INITIATION, RESPONSE, TYPE_INITIATION, TYPE_RESPONSE};
use crate::offload::vnet;
use crate::path;
use crate::state::State;
use crate::table::{AllowedIps, Owner};

mod configure;
mod consign;
mod identity;
pub mod lanes;
mod load;
mod peer;
mod receive;
mod transmit;

pub use consign::{Consignee, ROOM, Verdict, verdict};
pub use receive::Inbox;
pub use transmit::Outbox;

use identity::{Identity, derive_public};
use lanes::Lanes;
use load::SourceLimiter;
use peer::{NO_LIMIT, Peer, PeerInner};

/// Longest datagram or inner packet.
pub const MAX_PACKET: usize = 65535;
/// Size of the buffers that the engine encrypts and decrypts into: a full packet and WireGuard's 32 bytes.
pub const SCRATCH: usize = MAX_PACKET + 32;

/// Where the engine hands packets to.
pub trait Sink {
    /// Sends a datagram to a peer's endpoint.
    ///
    /// # Errors
    /// Those of the socket; the engine counts them.
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> std::io::Result<()>;
    /// Sends datagrams that lie in a row, each of `segment` bytes but the last, to one endpoint. How many the
    /// underlay took.
    fn send_train(&mut self, to: SocketAddr, datagrams: &[u8], segment: usize) -> usize {
        datagrams.chunks(segment.max(1)).filter(|d| self.send_datagram(to, d).is_ok()).count()
    }
    /// Delivers to the host one packet, or several in one piece of which `header` tells; the bytes are those of all
    /// `pieces`, of which there are at most [`coalesce::MAX_RUN`](crate::offload::coalesce::MAX_RUN).
    ///
    /// # Errors
    /// Those of the TUN device; the engine counts them.
    fn write_tun(&mut self, header: &vnet::Header, pieces: &[&[u8]]) -> std::io::Result<()>;
    /// The present MTU of the TUN device in bytes, if it is to be had: asked when a packet is longer than the last that was
    /// told ([`Engine::set_mtu`]).
    fn tun_mtu(&self) -> Option<usize> {
        None
    }
}

/// The UDP side of the configuration, which the engine does not own.
pub trait Underlay {
    /// Binds a port (0: any) for both families, replacing the present one only on success.
    ///
    /// # Errors
    /// Those of the sockets.
    fn bind(&self, port: u16) -> std::io::Result<()>;
    /// Sets `SO_MARK` on the present and all future sockets.
    ///
    /// # Errors
    /// Those of the sockets.
    fn set_fwmark(&self, fwmark: u32) -> std::io::Result<()>;
    /// The bound port; 0 if none is.
    fn port(&self) -> u16;
    /// The mark.
    fn fwmark(&self) -> u32;
}

impl Owner for Arc<Peer> {
    fn owner_id(&self) -> u64 {
        self.id
    }
}

#[derive(Default)]
struct Registry {
    by_key: HashMap<PublicKey, Arc<Peer>>,
    /// How many peers each lane has.
    loads: Vec<usize>,
}

/// What one thread looks into for each packet, by itself on its lines of memory.
#[repr(align(128))]
struct Lane {
    /// Its peers by the 24-bit index that they have at present.
    by_index: RwLock<HashMap<u32, Arc<Peer>>>,
    /// The device's table, as every lane has it.
    routes: RwLock<AllowedIps<Arc<Peer>>>,
}

/// One WireGuard device.
pub struct Engine {
    counters: Counters,
    mtu: AtomicUsize,
    next_peer_id: AtomicU64,
    config: Mutex<State>,
    identity: RwLock<Option<Arc<Identity>>>,
    registry: RwLock<Registry>,
    /// Whether there is an identity, for who does not need it.
    keyed: AtomicBool,
    count: Lanes,
    /// With more than one there is another in the end, of who reads for all ([`Engine::consignee`]).
    lanes: Box<[Lane]>,
    limiter: SourceLimiter,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// A poisoned lock guards data that is valid between any two statements of ours, so it stays usable: one
/// panicking thread must not stop the others.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(rwlock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    rwlock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(rwlock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    rwlock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// A device without key and peers, which drops everything. It is driven by one thread.
    #[must_use]
    pub fn new(mtu: usize) -> Self {
        Self::with_lanes(mtu, Lanes::ONE)
    }

    /// The same, driven by one thread for each lane.
    #[must_use]
    pub fn with_lanes(mtu: usize, count: Lanes) -> Self {
        let lane = |_| Lane { by_index: RwLock::default(), routes: RwLock::new(AllowedIps::new()) };
        let lanes = if count.is_one() { 1 } else { count.count() + 1 };
        let loads = vec![0; count.count()];
        Self {
            counters: Counters::default(),
            mtu: AtomicUsize::new(mtu),
            next_peer_id: AtomicU64::new(1),
            config: Mutex::new(State::new(derive_public)),
            identity: RwLock::new(None),
            registry: RwLock::new(Registry { by_key: HashMap::new(), loads }),
            keyed: AtomicBool::new(false),
            count,
            lanes: (0..lanes).map(lane).collect(),
            limiter: SourceLimiter::default(),
        }
    }

    /// The device's counters.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many threads drive it.
    #[must_use]
    pub const fn lanes(&self) -> Lanes {
        self.count
    }

    /// The MTU of the interface, as it was last told, in bytes.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Tells the engine the MTU of its TUN device, in bytes; it bounds padding.
    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Checks the MACs of an initiation and, under load, the cookie and the rate of its source.
    fn admit(
        &self,
        identity: &Identity,
        message: &[u8; INITIATION],
        from: SocketAddr,
        now: Moment,
        sink: &mut impl Sink,
    ) -> bool {
        // What does not even know us is no load.
        let loaded = identity.checker.knows_us(message) && self.limiter.is_loaded();
        if !self.knows_us(identity, (message, messages::sender(message)), loaded, from, now, sink) {
            return false;
        }
        let admitted = !loaded || self.limiter.admit(from.ip(), now);
        if !admitted {
            self.counters.add(Counter::RateLimited);
        }
        admitted
    }

    /// Checks the first MAC of a handshake message and, under load, its cookie, which its sender gets if it has none.
    fn knows_us(
        &self,
        identity: &Identity,
        (message, sender): (&[u8], u32),
        loaded: bool,
        from: SocketAddr,
        now: Moment,
        sink: &mut impl Sink,
    ) -> bool {
        if !identity.checker.knows_us(message) {
            self.counters.add(Counter::ReplayOrAuth);
            return false;
        }
        if !loaded || identity.checker.has_cookie(message, from, now) {
            return true;
        }
        self.counters.add(Counter::RateLimited);
        if let Some(cookie) = identity.checker.reply(message, sender, from, now) {
            self.counters.add(Counter::CookieSent);
            if sink.send_datagram(from, &cookie).is_err() {
                self.counters.add(Counter::UdpSend);
            }
        }
        false
    }

    fn handle_response(
        &self,
        peer: &Arc<Peer>,
        response: &[u8; RESPONSE],
        from: SocketAddr,
        now: Moment,
        scratch: &mut [u8],
        sink: &mut impl Sink,
    ) {
        {
            let mut inner = lock(&peer.inner);
            let answer = inner.answered(response, now);
            if answer == Answer::Forged {
                self.limiter.note_forged();
            }
            if answer != Answer::Taken {
                drop(inner);
                return self.counters.add(Counter::ReplayOrAuth);
            }
            self.roam(peer, &mut inner, from);
        }
        peer.add_rx(response.len());
        if self.handshake_done(peer, scratch, now, sink) {
            return;
        }
        // The peer sends by the new session when it has heard of it (section 6.5).
        let empty = lock(&peer.inner).empty(scratch, now);
        if let Some((to, n)) = empty {
            self.send(peer, to, &scratch[..n], now, sink);
        }
    }

    /// Makes the endpoint follow an authenticated packet.
    fn roam(&self, peer: &Peer, inner: &mut PeerInner, from: SocketAddr) {
        inner.active = true;
        if inner.endpoint != Some(from) {
            inner.endpoint = Some(from);
            peer.set_room(NO_LIMIT);
            self.counters.add(Counter::Roamed);
        }
    }

    /// Notes the time of a confirmed handshake and sends what waited for it; whether anything of that has left.
    fn handshake_done(
        &self,
        peer: &Arc<Peer>,
        scratch: &mut [u8],
        now: Moment,
        sink: &mut impl Sink,
    ) -> bool {
        peer.note_handshake();
        self.counters.add(Counter::HandshakeDone);
        tracing::debug!(peer = %peer.public_key, "handshake completed");
        let mut any = false;
        loop {
            let next = lock(&peer.inner).next_queued(scratch, now);
            let Some((to, n)) = next else { return any };
            any |= self.send(peer, to, &scratch[..n], now, sink);
        }
    }

    /// Whether it has left.
    fn send(&self, peer: &Peer, to: SocketAddr, datagram: &[u8], now: Moment, sink: &mut impl Sink) -> bool {
        let counter = match datagram.first() {
            Some(&TYPE_INITIATION) => Counter::InitiationSent,
            Some(&TYPE_RESPONSE) => Counter::ResponseSent,
            _ => Counter::DataSent,
        };
        match sink.send_datagram(to, datagram) {
            Ok(()) => {
                peer.add_tx(datagram.len());
                self.counters.add(counter);
                true
            }
            Err(e) => {
                self.counters.add(Counter::UdpSend);
                if counter == Counter::InitiationSent && e.kind() == std::io::ErrorKind::WouldBlock {
                    lock(&peer.inner).note_unsent(now);
                }
                false
            }
        }
    }

    /// Runs the timers of all peers. Call it every 100 to 250 ms. `scratch` holds [`SCRATCH`] bytes.
    pub fn handle_timers(&self, now: Moment, scratch: &mut [u8], sink: &mut impl Sink) {
        self.limiter.tick(now);
        let peers: Vec<Arc<Peer>> = read(&self.registry).by_key.values().cloned().collect();
        for peer in peers {
            // Three turns: the protocol's timers, the persistent keepalive, and what was not sent.
            let first = lock(&peer.inner).update_timers(now, scratch);
            self.counters.add_many(Counter::HandshakeTimeout, first.discarded);
            if let Some((to, n)) = first.send {
                self.send(&peer, to, &scratch[..n], now, sink);
            }
            let second = lock(&peer.inner).persistent_keepalive(now, scratch);
            if let Some((to, n)) = second {
                self.send(&peer, to, &scratch[..n], now, sink);
            }
            let third = lock(&peer.inner).again(now, scratch);
            if let Some((to, n)) = third {
                self.send(&peer, to, &scratch[..n], now, sink);
            }
        }
    }

    /// Learns how much the paths to peers take: `mtu` says it of an endpoint, in bytes, where it is known. Call it about once
    /// a second. It is not asked of peers that nothing was sent to since.
    pub fn look_at_paths(&self, mut mtu: impl FnMut(SocketAddr) -> Option<usize>) {
        let peers: Vec<Arc<Peer>> = read(&self.registry).by_key.values().cloned().collect();
        for peer in peers.into_iter().filter(|peer| peer.is_to_be_looked_at()) {
            let Some(endpoint) = lock(&peer.inner).endpoint else { continue };
            let known = mtu(endpoint).map(|mtu| path::room(mtu, endpoint));
            // More than the device's own MTU is no limit, and need not be looked at while nothing is sent.
            let room = known.filter(|room| *room < self.mtu.load(Ordering::Relaxed)).unwrap_or(NO_LIMIT);
            if peer.set_room(room) != room {
                tracing::debug!(peer = %peer.public_key, room, "what the path to a peer takes has changed");
            }
        }
    }

    /// The peer that owns an address, for tests and diagnosis.
    #[must_use]
    pub fn owner_of(&self, addr: IpAddr) -> Option<PublicKey> {
        read(&self.lanes[0].routes).lookup(addr).map(|p| p.public_key)
    }
}

#[cfg(test)]
mod tests;
