//! One peer: its session under a lock of its own, its counters beside it.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};

use super::unix_time;
use crate::counters::Counter;
use crate::keys::PublicKey;

/// Packets that `Tunn` keeps while it has no session.
pub(super) const QUEUE_LIMIT: u64 = 256;
/// Responses that may wait for their first data packet; `Tunn` keeps eight sessions.
const UNCONFIRMED: usize = 8;
/// Of these, so many at most while a session lives: each answer takes one of `Tunn`'s eight places, and initiations that
/// somebody recorded would push out the session in use.
const ANSWERS: usize = 4;
/// A session is used this long at most (REJECT_AFTER_TIME of the WireGuard paper, section 6.1).
const SESSION: Duration = Duration::from_secs(180);
/// Least time between two initiations for one peer (section 6.1, too).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
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
    pub(super) public_key: PublicKey,
    pub(super) inner: Mutex<PeerInner>,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    /// Nanoseconds since the UNIX epoch; 0 is never.
    last_handshake: AtomicU64,
}

pub(super) struct PeerInner {
    tunn: Option<Tunn>,
    /// The 24-bit index of `tunn`; without one it means nothing.
    pub(super) index: u32,
    pub(super) endpoint: Option<SocketAddr>,
    /// Local indexes of sessions that we answered and that have carried no data yet.
    unconfirmed: [Option<u32>; UNCONFIRMED],
    /// When the last handshake was confirmed.
    confirmed_at: Option<Instant>,
    /// When an initiation was last sent in place of an answer.
    initiated_at: Option<Instant>,
    queued: u64,
    keepalive: Duration,
    /// An authenticated packet was sent or received since the last tick.
    pub(super) active: bool,
    /// Our address has changed: the peer should hear from us.
    pub(super) announce: bool,
    /// The last tick that saw an authenticated packet; none makes a keepalive due at once.
    last_active: Option<Instant>,
}

impl Peer {
    pub(super) const fn new(id: u64, public_key: PublicKey) -> Self {
        Self {
            id,
            public_key,
            inner: Mutex::new(PeerInner {
                tunn: None,
                index: u32::MAX,
                endpoint: None,
                unconfirmed: [None; UNCONFIRMED],
                confirmed_at: None,
                initiated_at: None,
                queued: 0,
                keepalive: Duration::ZERO,
                active: false,
                announce: false,
                last_active: None,
            }),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            last_handshake: AtomicU64::new(0),
        }
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
}

impl PeerInner {
    /// Ends all sessions. The endpoint stays.
    pub(super) fn retire(&mut self) {
        self.tunn = None;
        self.index = u32::MAX;
        self.unconfirmed = [None; UNCONFIRMED];
        self.confirmed_at = None;
        self.initiated_at = None;
        self.queued = 0;
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
                return Encapsulated::Send(to, d.len());
            }
            TunnResult::WriteToNetwork(initiation) => Some((to, initiation.len())),
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
        Encapsulated::Queued(start)
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
            TunnResult::WriteToNetwork(d) => Some((to, d.len())),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {
                self.queued = 0;
                None
            }
        }
    }

    pub(super) fn note_unconfirmed(&mut self, local: Option<u32>) {
        self.unconfirmed.rotate_right(1);
        self.unconfirmed[0] = local;
    }

    /// Whether another initiation may be answered. A peer that really lost its session is not shut out by this: it gets an
    /// initiation of ours instead ([`Self::initiate`]).
    pub(super) fn may_answer(&self, now: Instant) -> bool {
        let lives = self.confirmed_at.is_some_and(|at| now.saturating_duration_since(at) < SESSION);
        !lives || self.unconfirmed.iter().flatten().count() < ANSWERS
    }

    /// Begins a handshake, or repeats the initiation of one that is under way, which may have gone elsewhere; at most once in
    /// [`REKEY_TIMEOUT`]. The peer proves by a response that it is there now, which an initiation does not prove; and a
    /// place among the sessions is taken only then.
    pub(super) fn initiate(&mut self, now: Instant, scratch: &mut [u8]) -> Option<usize> {
        if self.initiated_at.is_some_and(|at| now.saturating_duration_since(at) < REKEY_TIMEOUT) {
            return None;
        }
        match self.tunn.as_mut()?.format_handshake_initiation(scratch, true) {
            TunnResult::WriteToNetwork(initiation) => {
                self.initiated_at = Some(now);
                Some(initiation.len())
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// A handshake was confirmed; what was answered before it is past.
    pub(super) fn confirmed(&mut self, now: Instant) {
        self.confirmed_at = Some(now);
        self.unconfirmed = [None; UNCONFIRMED];
    }

    /// Whether this data packet is the first of a session that we answered.
    pub(super) fn confirm(&mut self, receiver: u32) -> bool {
        let slot = self.unconfirmed.iter_mut().find(|s| **s == Some(receiver));
        slot.is_some_and(|s| s.take().is_some())
    }

    pub(super) fn update_timers(&mut self, scratch: &mut [u8]) -> Ticked {
        let Some(tunn) = self.tunn.as_mut() else { return Ticked::default() };
        match tunn.update_timers(scratch) {
            TunnResult::WriteToNetwork(d) => {
                if d.first() == Some(&TYPE_DATA) {
                    self.active = true;
                }
                Ticked { send: self.endpoint.map(|to| (to, d.len())), discarded: 0 }
            }
            // The session has expired, and the queue with it.
            TunnResult::Err(_) => Ticked { send: None, discarded: std::mem::take(&mut self.queued) },
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Ticked::default()
            }
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
            TunnResult::WriteToNetwork(d) => Some((to, d.len())),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }
}
