//! One peer: its protocol under a lock of its own, its counters beside it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::{Moment, unix_time};
use crate::counters::Counter;
use crate::keys::PublicKey;
use crate::noise::aead::Key;
use crate::noise::handshake::Half;
use crate::noise::messages::{COOKIE, RESPONSE};
use crate::noise::{Answer, Noise, Sent, Unsealed};

/// The room of a path of which nothing is known.
pub(super) const NO_LIMIT: usize = usize::MAX;
/// How long after an initiation that found no room another is made.
const AGAIN: Duration = Duration::from_millis(500);

/// A datagram of this length in the scratch buffer, for this endpoint.
pub(super) type Outgoing = (SocketAddr, usize);

pub(super) enum Encapsulated<'a> {
    /// Not encrypted yet.
    Send(SocketAddr, Unsealed<'a>),
    /// Kept until there is a session; perhaps with an initiation to send, and for one that is kept no more.
    Queued(Option<Outgoing>, Option<Counter>),
    Dropped(Counter),
}

#[derive(Default)]
pub(super) struct Ticked {
    pub(super) send: Option<Outgoing>,
    /// Queued packets that were given up.
    pub(super) discarded: u64,
}

pub(super) struct Peer {
    pub(super) id: u64,
    /// Whose thread carries its packets.
    pub(super) lane: usize,
    pub(super) public_key: PublicKey,
    pub(super) inner: Mutex<PeerInner>,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    /// Nanoseconds since the UNIX epoch; 0 is never.
    last_handshake: AtomicU64,
    /// Bytes of an inner packet that the path to the endpoint takes in one piece.
    room: AtomicUsize,
    /// `tx_bytes` when the path was last looked at.
    looked_at: AtomicU64,
    /// Bytes of its packets that were read and are not encrypted yet.
    pub(super) waiting: Waiting,
}

/// Two threads write to it, so it lies apart from what one of them uses.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Waiting(pub(super) AtomicUsize);

pub(super) struct PeerInner {
    /// `None`: the device has no key, or the peer's is no good.
    noise: Option<Noise>,
    /// The 24-bit index of `noise`; without one it means nothing.
    pub(super) index: u32,
    pub(super) endpoint: Option<SocketAddr>,
    keepalive: Duration,
    /// An authenticated packet was sent or received since the last tick.
    pub(super) active: bool,
    /// Our address has changed: the peer should hear from us.
    pub(super) announce: bool,
    /// The last tick that saw an authenticated packet; none makes a keepalive due at once.
    last_active: Option<Moment>,
    /// When an initiation found no room at the socket. For the protocol it has left, and is waited for during five seconds.
    unsent: Option<Moment>,
}

impl Peer {
    pub(super) fn new(id: u64, lane: usize, public_key: PublicKey) -> Self {
        Self {
            id,
            lane,
            public_key,
            inner: Mutex::new(PeerInner {
                noise: None,
                index: u32::MAX,
                endpoint: None,
                keepalive: Duration::ZERO,
                active: false,
                announce: false,
                last_active: None,
                unsent: None,
            }),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            last_handshake: AtomicU64::new(0),
            room: AtomicUsize::new(NO_LIMIT),
            looked_at: AtomicU64::new(0),
            waiting: Waiting::default(),
        }
    }

    pub(super) fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// What it was before.
    pub(super) fn set_room(&self, room: usize) -> usize {
        self.room.swap(room, Ordering::Relaxed)
    }

    /// Whether the path may matter: something was sent since the last time, or there is a limit that may be gone.
    pub(super) fn is_to_be_looked_at(&self) -> bool {
        let sent = self.tx_bytes();
        self.looked_at.swap(sent, Ordering::Relaxed) != sent || self.room() != NO_LIMIT
    }

    pub(super) fn add_tx(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_rx(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn tx_bytes(&self) -> u64 {
        self.tx_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn rx_bytes(&self) -> u64 {
        self.rx_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn note_handshake(&self) {
        let nanos = u64::try_from(unix_time().as_nanos()).unwrap_or(u64::MAX);
        self.last_handshake.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn last_handshake(&self) -> Duration {
        Duration::from_nanos(self.last_handshake.load(Ordering::Relaxed))
    }

    /// Of the device's present key there was none yet.
    pub(super) fn forget_handshake(&self) {
        self.last_handshake.store(0, Ordering::Relaxed);
    }
}

impl PeerInner {
    /// Ends all sessions, whose keys are wiped. The endpoint stays.
    pub(super) fn retire(&mut self) {
        self.noise = None;
        self.index = u32::MAX;
        self.unsent = None;
    }

    pub(super) fn start(&mut self, noise: Noise, index: u32) {
        self.noise = Some(noise);
        self.index = index;
        self.last_active = None;
    }

    /// Sets the interval of persistent keepalives; the first one is due at once.
    pub(super) const fn set_keepalive(&mut self, seconds: u16) {
        self.keepalive = Duration::from_secs(seconds as u64);
        self.last_active = None;
    }

    /// Makes a message of a packet, padded to so many bytes, or keeps it.
    pub(super) fn encapsulate(
        &mut self,
        packet: &[u8],
        padded: usize,
        out: &mut [u8],
        now: Moment,
    ) -> Encapsulated<'_> {
        let Some(noise) = self.noise.as_mut() else { return Encapsulated::Dropped(Counter::NoKey) };
        let Some(to) = self.endpoint else { return Encapsulated::Dropped(Counter::NoEndpoint) };
        match noise.send(packet, padded, out, now) {
            Sent::Data(message) => {
                self.active = true;
                Encapsulated::Send(to, message)
            }
            Sent::Queued { initiation, pushed_out } => {
                let dropped = pushed_out.then_some(Counter::QueueFull);
                Encapsulated::Queued(initiation.map(|n| (to, n)), dropped)
            }
        }
    }

    /// [`Noise::receiving`].
    pub(super) fn receiving(&mut self, index: u32, now: Moment) -> Option<Arc<Key>> {
        self.noise.as_mut()?.receiving(index, now)
    }

    /// [`Noise::is_new`].
    pub(super) fn is_new(&mut self, index: u32, number: u64, now: Moment) -> bool {
        self.noise.as_mut().is_some_and(|noise| noise.is_new(index, number, now))
    }

    /// [`Noise::note`].
    pub(super) fn note(&mut self, index: u32, number: u64, content: bool, now: Moment) -> bool {
        self.noise.as_mut().is_some_and(|noise| noise.note(index, number, content, now))
    }

    /// Encrypts the next packet that waited for a session.
    pub(super) fn next_queued(&mut self, out: &mut [u8], now: Moment) -> Option<Outgoing> {
        let to = self.endpoint?;
        let n = self.noise.as_mut()?.next_queued(out, now)?;
        self.active = true;
        Some((to, n))
    }

    /// Answers an initiation; the answer's length. `None` if it is not authentic, or not newer than the last one.
    pub(super) fn answer(&mut self, initiation: Half, out: &mut [u8], now: Moment) -> Option<usize> {
        self.noise.as_mut()?.answer(initiation, out, now)
    }

    /// Takes an answer to our initiation.
    pub(super) fn answered(&mut self, response: &[u8; RESPONSE], now: Moment) -> Answer {
        let answer = self.noise.as_mut().map_or(Answer::Stray, |noise| noise.answered(response, now));
        if answer == Answer::Taken {
            self.unsent = None;
        }
        answer
    }

    /// Takes a cookie; whether it belongs to our last message.
    pub(super) fn take_cookie(&mut self, reply: &[u8; COOKIE], now: Moment) -> bool {
        self.noise.as_mut().is_some_and(|noise| noise.take_cookie(reply, now))
    }

    /// Whether this session, of which data was authentic, is one that we answered and is confirmed by that.
    pub(super) fn confirm(&mut self, receiver: u32) -> bool {
        let confirmed = self.noise.as_mut().is_some_and(|noise| noise.confirm(receiver));
        if confirmed {
            self.unsent = None;
        }
        confirmed
    }

    /// Makes an empty message, if there is a session.
    pub(super) fn empty(&mut self, out: &mut [u8], now: Moment) -> Option<Outgoing> {
        let made = (self.endpoint?, self.noise.as_mut()?.keepalive(out, now)?);
        self.active = true;
        Some(made)
    }

    pub(super) fn update_timers(&mut self, now: Moment, out: &mut [u8]) -> Ticked {
        let Some(noise) = self.noise.as_mut() else { return Ticked::default() };
        let tick = noise.tick(out, now);
        if tick.given_up {
            self.unsent = None;
        }
        self.active |= tick.send.is_some();
        Ticked { send: self.endpoint.zip(tick.send), discarded: tick.discarded as u64 }
    }

    /// An initiation found no room at the socket.
    pub(super) const fn note_unsent(&mut self, now: Moment) {
        self.unsent = Some(now);
    }

    /// Makes the initiation anew that was not sent, after a while: each costs key exchanges, and a full socket stays full for some time.
    pub(super) fn again(&mut self, now: Moment, out: &mut [u8]) -> Option<Outgoing> {
        if now.since(self.unsent?) < AGAIN {
            return None;
        }
        self.unsent = None;
        Some((self.endpoint?, self.noise.as_mut()?.begin_anew(out, now)))
    }

    /// Makes an initiation, as the timers would.
    #[cfg(test)]
    pub(super) fn begin(&mut self, out: &mut [u8]) -> Option<usize> {
        Some(self.noise.as_mut()?.begin(out, Moment::now()))
    }

    /// Sends an empty packet, or starts a handshake, when nothing has crossed for the interval. Sends an empty
    /// packet to a peer with a session when our address has changed, so that it follows at once.
    pub(super) fn persistent_keepalive(&mut self, now: Moment, out: &mut [u8]) -> Option<Outgoing> {
        if std::mem::take(&mut self.active) {
            self.last_active = Some(now);
        }
        let silent = self.last_active.is_none_or(|t| now.since(t) >= self.keepalive);
        let due = silent && !self.keepalive.is_zero();
        let announce = std::mem::take(&mut self.announce);
        if !due && !announce {
            return None;
        }
        let (noise, to) = (self.noise.as_mut()?, self.endpoint?);
        let made = match noise.keepalive(out, now) {
            Some(n) => Some(n),
            None if due => noise.begin_unless_pending(out, now),
            None => return None,
        };
        self.last_active = Some(now);
        made.map(|n| (to, n))
    }
}
