//! One peer: its session under a lock of its own, its counters beside it.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};

use super::places::{PLACES, Places};
use super::renewal::Renewal;
use super::unix_time;
use crate::counters::Counter;
use crate::keys::PublicKey;

/// Packets that `Tunn` keeps while it has no session.
pub(super) const QUEUE_LIMIT: u64 = 256;
/// The room of a path of which nothing is known.
pub(super) const NO_LIMIT: usize = usize::MAX;
/// How long after an initiation that found no room another is made.
const AGAIN: Duration = Duration::from_millis(500);
/// First byte of a data message.
pub(super) const TYPE_DATA: u8 = 4;

/// A datagram of this length in the scratch buffer, for this endpoint.
pub(super) type Outgoing = (SocketAddr, usize);

pub(super) enum Encapsulated {
    Send(SocketAddr, usize),
    /// Kept until there is a session; perhaps with an initiation to send.
    Queued(Option<Outgoing>),
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
    tunn: Option<Tunn>,
    /// The 24-bit index of `tunn`; without one it means nothing.
    pub(super) index: u32,
    pub(super) endpoint: Option<SocketAddr>,
    /// Those of `tunn`.
    places: Places,
    renewal: Renewal,
    queued: u64,
    keepalive: Duration,
    /// An authenticated packet was sent or received since the last tick.
    pub(super) active: bool,
    /// Our address has changed: the peer should hear from us.
    pub(super) announce: bool,
    /// The last tick that saw an authenticated packet; none makes a keepalive due at once.
    last_active: Option<Instant>,
    /// When an initiation found no room at the socket. `Tunn` believes that it left, and would wait for an answer for five seconds.
    unsent: Option<Instant>,
}

impl Peer {
    pub(super) fn new(id: u64, lane: usize, public_key: PublicKey) -> Self {
        Self {
            id,
            lane,
            public_key,
            inner: Mutex::new(PeerInner {
                tunn: None,
                index: u32::MAX,
                endpoint: None,
                places: Places::default(),
                renewal: Renewal::default(),
                queued: 0,
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
    /// Ends all sessions. The endpoint stays.
    pub(super) fn retire(&mut self) {
        self.tunn = None;
        self.index = u32::MAX;
        self.places = Places::default();
        self.renewal = Renewal::default();
        self.queued = 0;
        self.unsent = None;
    }

    pub(super) fn start(&mut self, tunn: Tunn, index: u32) {
        self.tunn = Some(tunn);
        self.index = index;
        self.last_active = None;
    }

    /// Sets the interval of persistent keepalives; the first one is due at once.
    pub(super) const fn set_keepalive(&mut self, seconds: u16) {
        self.keepalive = Duration::from_secs(seconds as u64);
        self.last_active = None;
    }

    pub(super) fn encapsulate(&mut self, packet: &[u8], scratch: &mut [u8]) -> Encapsulated {
        let Some(tunn) = self.tunn.as_mut() else { return Encapsulated::Dropped(Counter::NoKey) };
        let Some(to) = self.endpoint else { return Encapsulated::Dropped(Counter::NoEndpoint) };
        let start = match tunn.encapsulate(packet, scratch) {
            TunnResult::WriteToNetwork(d) if d.first() == Some(&TYPE_DATA) => {
                self.active = true;
                self.renewal.note_sent();
                return Encapsulated::Send(to, d.len());
            }
            TunnResult::WriteToNetwork(initiation) => Some(initiation.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        };
        // `Tunn` drops silently what does not fit its queue. It cannot be full where it starts a handshake.
        if self.queued >= QUEUE_LIMIT && start.is_none() {
            return Encapsulated::Dropped(Counter::QueueFull);
        }
        self.queued = (self.queued + 1).min(QUEUE_LIMIT);
        Encapsulated::Queued(start.map(|n| (to, self.begun(n, scratch))))
    }

    /// `None` if there is no `Tunn`.
    pub(super) fn decapsulate<'a>(
        &mut self,
        datagram: &[u8],
        scratch: &'a mut [u8],
    ) -> Option<TunnResult<'a>> {
        // An empty datagram means something else to `Tunn`; parsing has excluded it.
        debug_assert!(!datagram.is_empty(), "invariant: datagrams are parsed first");
        Some(self.tunn.as_mut()?.decapsulate(None, datagram, scratch))
    }

    /// Encrypts the next packet that waited for a session.
    pub(super) fn next_queued(&mut self, scratch: &mut [u8]) -> Option<Outgoing> {
        self.queued = self.queued.saturating_sub(1);
        let to = self.endpoint?;
        match self.tunn.as_mut()?.decapsulate(None, &[], scratch) {
            TunnResult::WriteToNetwork(d) if d.first() == Some(&TYPE_DATA) => Some((to, d.len())),
            // The session has ended meanwhile, and the packet waits again.
            TunnResult::WriteToNetwork(initiation) => {
                let n = initiation.len();
                Some((to, self.begun(n, scratch)))
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {
                self.queued = 0;
                None
            }
        }
    }

    /// Answers an initiation; the answer's length. `None` if it is not authentic, or not newer than the last one.
    pub(super) fn answer(&mut self, initiation: &[u8], scratch: &mut [u8]) -> Option<usize> {
        for _ in 0..PLACES {
            if self.places.next_is_free() {
                break;
            }
            // Never sent. If the answer is refused, the timers repeat it as any other: once, since it has moved the index on.
            self.begin(scratch)?;
        }
        match self.decapsulate(initiation, scratch)? {
            TunnResult::WriteToNetwork(answer) => {
                let n = answer.len();
                self.places.made(&scratch[..n]);
                Some(n)
            }
            TunnResult::Err(_)
            | TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// The initiation of ours with this index was answered.
    pub(super) fn answered(&mut self, index: u32) {
        self.unsent = None;
        self.places.answered(index);
        self.renewal = Renewal::begun(Instant::now());
    }

    /// Whether this session, of which data was authentic, perhaps with content, is one that we answered and is confirmed by that.
    pub(super) fn confirm(&mut self, receiver: u32, content: bool) -> bool {
        let confirmed = self.places.heard(receiver);
        if confirmed {
            self.renewal = Renewal::default();
            self.unsent = None;
        }
        if content {
            self.renewal.note_received();
        }
        confirmed
    }

    /// Makes an initiation, whether or not another is under way; its length.
    pub(super) fn begin(&mut self, scratch: &mut [u8]) -> Option<usize> {
        match self.tunn.as_mut()?.format_handshake_initiation(scratch, true) {
            TunnResult::WriteToNetwork(initiation) => {
                self.places.made(initiation);
                Some(initiation.len())
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Takes note of an initiation that `Tunn` has begun with, `scratch[..n]`, and makes it anew while its session would take a
    /// place in use: the peer sends by the session there until it hears of the new one.
    pub(super) fn begun(&mut self, n: usize, scratch: &mut [u8]) -> usize {
        self.places.made(&scratch[..n]);
        let mut len = n;
        for _ in 0..PLACES {
            if self.places.last_is_free() {
                break;
            }
            len = self.begin(scratch).unwrap_or(len);
        }
        len
    }

    pub(super) fn update_timers(&mut self, scratch: &mut [u8]) -> Ticked {
        let Some(tunn) = self.tunn.as_mut() else { return Ticked::default() };
        match tunn.update_timers(scratch) {
            TunnResult::WriteToNetwork(d) => {
                let (data, mut n) = (d.first() == Some(&TYPE_DATA), d.len());
                if data {
                    self.active = true;
                } else {
                    n = self.begun(n, scratch);
                }
                Ticked { send: self.endpoint.map(|to| (to, n)), discarded: 0 }
            }
            // The session has expired, and the queue with it.
            TunnResult::Err(_) => {
                self.unsent = None;
                Ticked { send: None, discarded: std::mem::take(&mut self.queued) }
            }
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Ticked { send: self.renew(scratch), discarded: 0 }
            }
        }
    }

    /// An initiation found no room at the socket.
    pub(super) const fn note_unsent(&mut self, now: Instant) {
        self.unsent = Some(now);
    }

    /// Makes the initiation anew that was not sent, after a while: each costs key exchanges, and a full socket stays full for some time.
    pub(super) fn again(&mut self, now: Instant, scratch: &mut [u8]) -> Option<Outgoing> {
        let since = self.unsent?;
        if now.saturating_duration_since(since) < AGAIN {
            return None;
        }
        self.unsent = None;
        let to = self.endpoint?;
        let n = self.begin(scratch)?;
        Some((to, self.begun(n, scratch)))
    }

    /// Begins a handshake where the session in use wants renewal and none is under way.
    fn renew(&mut self, scratch: &mut [u8]) -> Option<Outgoing> {
        if !self.renewal.is_due(Instant::now()) {
            return None;
        }
        match self.tunn.as_mut()?.format_handshake_initiation(scratch, false) {
            TunnResult::WriteToNetwork(initiation) => {
                let n = self.begun(initiation.len(), scratch);
                self.endpoint.map(|to| (to, n))
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Sends an empty packet, or starts a handshake, when nothing has crossed for the interval. Sends an empty
    /// packet to a peer with a session when our address has changed, so that it follows at once.
    pub(super) fn persistent_keepalive(&mut self, now: Instant, scratch: &mut [u8]) -> Option<Outgoing> {
        if std::mem::take(&mut self.active) {
            self.last_active = Some(now);
        }
        let silent = self.last_active.is_none_or(|t| now.saturating_duration_since(t) >= self.keepalive);
        let due = silent && !self.keepalive.is_zero();
        let announce = std::mem::take(&mut self.announce);
        if !due && !announce {
            return None;
        }
        let (tunn, to) = (self.tunn.as_mut()?, self.endpoint?);
        let session = tunn.time_since_last_handshake().is_some();
        if !due && !session {
            return None;
        }
        self.last_active = Some(now);
        let result = if session {
            tunn.encapsulate(&[], scratch)
        } else {
            tunn.format_handshake_initiation(scratch, false)
        };
        match result {
            TunnResult::WriteToNetwork(d) if session => Some((to, d.len())),
            TunnResult::WriteToNetwork(d) => {
                let n = d.len();
                Some((to, self.begun(n, scratch)))
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }
}
