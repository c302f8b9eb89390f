//! WireGuard's protocol for one peer: handshakes (Noise_IKpsk2), sessions, cookies and timers, without sockets and threads.
//!
//! ```text
//!                 handshake ──► keypairs ──► aead (aws-lc-rs)
//!   Noise ──────► cookie        replay
//!                 timers
//! ```
//!
//! Section numbers are those of the WireGuard paper (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel"). Curve, hash and
//! cipher are crates; what is here is their order. boringtun, which ran in this place before, is the tested reference.
//!
//! Time is an argument. Who calls does so with one [`Moment`] for all packets that came together, and [`Noise::tick`] every 100 to 250 ms:
//! no timer is set for a packet.
//!
//! # Beyond the paper
//!
//! * An own handshake that is under way is not given up for one of the peer's: where two begin at once both sessions are made, and none of
//!   them has to wait for the other's next attempt. So no jitter is added to `REKEY_TIMEOUT`, and who has just answered may begin.
//! * The answer to the initiation before the last one is taken, too: a path or a peer may need more than `REKEY_TIMEOUT`.
//! * Answering an initiation, which may be a recorded one, takes nothing from the sessions in use ([`keypairs`]), and is no sign of life.
//! * Timestamps of initiations never go back under one key of ours for as long as it is set, even where the wall clock does.
//! * Keys are wiped when they are replaced, when their session has ended (180 s), and with the peer; what a handshake leaves on the
//!   stack is wiped when it is done (`wiped`).

pub mod aead;
pub mod bulk;
pub mod cookie;
pub mod handshake;
mod hash;
mod keypairs;
pub mod messages;
mod replay;
mod timers;
mod wiped;

pub use wiped::wipe_below;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aead::Key;
use handshake::{Half, Initiated, Own, Parties};
use keypairs::{Keypair, Keypairs};
use messages::{COOKIE, HEADER, OVERHEAD, RESPONSE};
use timers::{Due, Timers};
use wiped::wiped;

use crate::clock::Moment;
use crate::keys::{PresharedKey, PublicKey};

/// Section 6.1, for all of these.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// After so long a session neither sends nor receives, and its keys are wiped.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long a handshake is tried.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// After so long without an answer an initiation is repeated.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Who has received content says so after this time, if he has nothing else to say.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of a session after which it is renewed.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A counter from here on is neither sent nor accepted.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Packets that are kept while there is no session.
pub const QUEUE_LIMIT: usize = 256;
/// A cookie is shown for so long: as long as its maker keeps the secret (section 5.4.7), less what a message takes.
const COOKIE_LIFETIME: Duration = Duration::from_secs(120 - 5);

/// What became of a packet to send; lengths are those of a datagram in the buffer that was given.
#[must_use]
#[derive(Debug)]
pub enum Sent<'a> {
    /// A data message that is not encrypted yet.
    Data(Unsealed<'a>),
    /// It waits for a session.
    Queued {
        /// An initiation to send.
        initiation: Option<usize>,
        /// As many wait as may, and the oldest waits no more.
        pushed_out: bool,
    },
}

/// What became of an answer to an initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a session.
    Taken,
    /// It answers nothing that is under way.
    Stray,
    /// It is not authentic: to find that out took two key exchanges.
    Forged,
}

/// A data message that is to be encrypted before anything else is done with it, when and where suits.
#[must_use]
#[derive(Debug)]
pub struct Unsealed<'a> {
    /// Its length.
    pub len: usize,
    /// Its session's.
    pub key: &'a Arc<Key>,
}

impl Unsealed<'_> {
    /// Encrypts it in the buffer in which it lies; its length.
    pub fn seal(self, out: &mut [u8]) -> usize {
        self.key.seal_message(&mut out[..self.len]);
        self.len
    }
}

/// What became of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes of content.
    Content(usize),
    /// Authentic, and empty.
    Keepalive,
    /// Not authentic, not new, or of a session that there is not.
    Refused,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// A datagram of this length.
    pub send: Option<usize>,
    /// A handshake was tried for long enough.
    pub given_up: bool,
    /// Packets that have waited in vain.
    pub discarded: usize,
}

/// An initiation of ours that is not answered yet.
struct Pending {
    /// In a box, as the one before is: where it is dropped it is wiped, and what is moved is no secret.
    state: Box<Initiated>,
    sent: Moment,
    /// When the first of this attempt was sent.
    begun: Moment,
    attempt: Attempt,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// It is repeated until it is answered.
    Open,
    /// The initiation before was answered. This one's answer is taken, too: many a peer has given up that session for this one's.
    Settled,
    /// The peer has proven a session of its own: an answer comes late.
    Idle,
}

/// All that is known of a peer under one key of ours.
pub struct Noise {
    parties: Box<Parties>,
    /// Upper 24 bits of our indexes: the peer's.
    base: u32,
    /// Lower 8 bits of the index that was taken last.
    last: u8,
    pending: Option<Pending>,
    /// The initiation before that one.
    previous: Option<Box<Initiated>>,
    keypairs: Keypairs,
    timers: Timers,
    /// Of the newest initiation that was answered.
    newest: [u8; 12],
    cookie: Option<([u8; 16], Moment)>,
    /// The first MAC of our last message, to which a cookie belongs.
    last_mac1: Option<[u8; 16]>,
    queue: VecDeque<Vec<u8>>,
}

impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Noise").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Noise {
    /// Nothing but the keys; `None` if the peer's is of low order: the secret shared with it would be known to everybody.
    ///
    /// `index` has 24 bits, by which the peer's messages find it.
    #[must_use]
    pub fn new(own: Arc<Own>, peer: &PublicKey, psk: Option<&PresharedKey>, index: u32) -> Option<Self> {
        let parties = wiped(|| Parties::new(own, peer, psk).map(Box::new))?;
        Some(Self {
            parties,
            base: index << 8,
            last: 0,
            pending: None,
            previous: None,
            keypairs: Keypairs::default(),
            timers: Timers::default(),
            newest: [0; 12],
            cookie: None,
            last_mac1: None,
            queue: VecDeque::new(),
        })
    }

    /// Whether something can be sent at once.
    #[must_use]
    pub fn has_session(&self, now: Moment) -> bool {
        self.keypairs.sends(now)
    }

    /// Makes a message of a packet, with zeros behind it up to `padded` bytes, or keeps it and begins a handshake. `out` takes
    /// `padded` + 32 bytes, and an initiation. Nobody's lock needs to be held while the message is encrypted.
    pub fn send(&mut self, packet: &[u8], padded: usize, out: &mut [u8], now: Moment) -> Sent<'_> {
        if let Some(len) = self.keypairs.sending(now).map(|k| k.lay_out(packet, padded, out)) {
            self.timers.sent(true, now);
            let key = self.keypairs.sending_key().expect("invariant: it has just laid a message out");
            return Sent::Data(Unsealed { len, key });
        }
        let pushed_out = self.queue.len() >= QUEUE_LIMIT && self.queue.pop_front().is_some();
        let len = padded.max(packet.len());
        let mut waits = Vec::with_capacity(len);
        waits.extend_from_slice(packet);
        waits.resize(len, 0);
        self.queue.push_back(waits);
        if let Some(pending) = self.pending.as_mut() {
            // Somebody still asks for it (section 6.4).
            pending.begun = now;
        }
        Sent::Queued { initiation: self.begin_unless_pending(out, now), pushed_out }
    }

    /// Encrypts the next packet that waited, if there is a session.
    pub fn next_queued(&mut self, out: &mut [u8], now: Moment) -> Option<usize> {
        let keypair = self.keypairs.sending(now)?;
        let packet = self.queue.pop_front()?;
        let n = keypair.seal(&packet, packet.len(), out);
        self.timers.sent(true, now);
        Some(n)
    }

    /// Makes an empty data message, if there is a session.
    pub fn keepalive(&mut self, out: &mut [u8], now: Moment) -> Option<usize> {
        let n = self.keypairs.sending(now)?.seal(&[], 0, out);
        self.timers.sent(false, now);
        Some(n)
    }

    /// Makes an initiation, unless one is under way.
    pub fn begin_unless_pending(&mut self, out: &mut [u8], now: Moment) -> Option<usize> {
        if let Some(pending) = &self.pending
            && now.since(pending.sent) < REKEY_TIMEOUT
        {
            // The session that ended the attempt has ended itself, or never sent.
            if let Some(pending) = self.pending.as_mut() {
                pending.attempt = Attempt::Open;
            }
            return None;
        }
        Some(self.begin(out, now))
    }

    /// Makes an initiation, whether or not another is under way; its length.
    pub fn begin(&mut self, out: &mut [u8], now: Moment) -> usize {
        wiped(|| {
            let before = self.pending.take();
            let open = before.as_ref().filter(|before| before.attempt == Attempt::Open);
            let begun = open.map_or(now, |before| before.begun);
            self.previous = before.map(|before| before.state);
            let local = self.take_index();
            let stamp = self.parties.own().stamp(crate::clock::unix_time());
            let (message, state) = self.parties.initiate(local, handshake::timestamp(stamp));
            self.pending = Some(Pending { state, sent: now, begun, attempt: Attempt::Open });
            let message = self.mac(message, now);
            out[..message.len()].copy_from_slice(&message);
            self.timers.began();
            message.len()
        })
    }

    /// The same in place of the last one, which was not sent.
    pub fn begin_anew(&mut self, out: &mut [u8], now: Moment) -> usize {
        let previous = self.previous.take();
        let len = self.begin(out, now);
        self.previous = previous;
        len
    }

    /// Answers an initiation of this peer; the answer's length. `None`: it is not authentic, or not newer than the last one.
    pub fn answer(&mut self, initiation: Half, out: &mut [u8], now: Moment) -> Option<usize> {
        wiped(|| {
            let (timestamp, initiation) = self.parties.authenticate(initiation)?;
            if timestamp <= self.newest {
                return None;
            }
            let local = self.take_index();
            let (message, keys) = self.parties.respond(initiation, local)?;
            let message = self.mac(message, now);
            out[..message.len()].copy_from_slice(&message);
            self.newest = timestamp;
            self.keypairs.answered(Keypair::new(keys, local, false, now));
            Some(message.len())
        })
    }

    /// Takes an answer to an initiation that is under way.
    pub fn answered(&mut self, response: &[u8; RESPONSE], now: Moment) -> Answer {
        // Where the peer has proven a session meanwhile it sends by that one, and has this one behind it.
        let pending = self.pending.as_ref().filter(|pending| pending.attempt != Attempt::Idle);
        let receiver = messages::response_receiver(response);
        let state = pending.map(|pending| &*pending.state).into_iter().chain(self.previous.as_deref());
        let Some(state) = state.filter(|_| pending.is_some()).find(|state| state.local() == receiver) else {
            return Answer::Stray;
        };
        let Some(keys) = wiped(|| self.parties.finish(state, response)) else { return Answer::Forged };
        self.previous = None;
        self.pending = self.pending.take().filter(|pending| pending.state.local() != receiver);
        if let Some(pending) = self.pending.as_mut() {
            pending.attempt = Attempt::Settled;
        }
        self.keypairs.begun(Keypair::new(keys, receiver, true, now));
        self.timers.renewed();
        self.timers.received(false, now);
        Answer::Taken
    }

    /// Takes a cookie for the last message that we sent; whether it was one.
    pub fn take_cookie(&mut self, reply: &[u8; COOKIE], now: Moment) -> bool {
        let opened = self.last_mac1.and_then(|mac1| cookie::open(self.parties.cookie_key(), reply, &mac1));
        let Some(cookie) = opened else { return false };
        self.cookie = Some((cookie, now));
        // One cookie for each message.
        self.last_mac1 = None;
        true
    }

    /// What decrypts messages of the session with this index of ours; [`Noise::is_new`] and [`Noise::note`] belong to it.
    #[must_use]
    pub fn receiving(&mut self, index: u32, now: Moment) -> Option<Arc<Key>> {
        self.keypairs.receiving(index, now).map(|keypair| keypair.receiving_key())
    }

    /// Whether a message of this number is worth being decrypted.
    #[must_use]
    pub fn is_new(&mut self, index: u32, number: u64, now: Moment) -> bool {
        self.keypairs.receiving(index, now).is_some_and(|keypair| keypair.is_new(number))
    }

    /// Notes that a message of this number was authentic; whether it may be used: it is the first, and its session is there still.
    #[must_use]
    pub fn note(&mut self, index: u32, number: u64, content: bool, now: Moment) -> bool {
        let taken = self.keypairs.receiving(index, now).is_some_and(|keypair| keypair.note(number));
        if taken {
            self.timers.received(content, now);
        }
        taken
    }

    /// Decrypts one data message into `out`, which takes as many bytes as the message has.
    pub fn receive(&mut self, message: &[u8], out: &mut [u8], now: Moment) -> Received {
        let (index, number) = (messages::data_receiver(message), messages::counter(message));
        let key = self.receiving(index, now).filter(|_| self.is_new(index, number, now));
        let Some(key) = key else { return Received::Refused };
        let len = message.len() - OVERHEAD;
        if !key.open(number, &[], &message[HEADER..], out) || !self.note(index, number, len > 0, now) {
            return Received::Refused;
        }
        if len == 0 { Received::Keepalive } else { Received::Content(len) }
    }

    /// Whether the session with this index, of which data was authentic, is one that we answered and that is proven by that.
    pub fn confirm(&mut self, index: u32) -> bool {
        let confirmed = self.keypairs.proven(index);
        if confirmed {
            self.timers.renewed();
            if let Some(pending) = self.pending.as_mut() {
                pending.attempt = Attempt::Idle;
            }
        }
        confirmed
    }

    /// Ends what has lasted too long and makes what is due.
    pub fn tick(&mut self, out: &mut [u8], now: Moment) -> Tick {
        self.keypairs.expire(now);
        self.cookie = self.cookie.filter(|(_, at)| now.since(*at) < COOKIE_LIFETIME);
        let due = self.timers.due(self.keypairs.current(), now);
        let mut begins = due == Some(Due::Handshake);
        if let Some(Pending { sent, begun, attempt, .. }) = self.pending {
            let waited = now.since(sent);
            let over = match attempt {
                Attempt::Open => now.since(begun) >= REKEY_ATTEMPT_TIME,
                Attempt::Settled => waited >= 2 * REKEY_TIMEOUT,
                Attempt::Idle => waited >= REKEY_TIMEOUT,
            };
            if over {
                (self.pending, self.previous) = (None, None);
            } else {
                // Of one that is settled the session is there, and may be due.
                begins = waited >= REKEY_TIMEOUT && (begins || attempt == Attempt::Open);
            }
            if over && attempt == Attempt::Open {
                self.timers.give_up();
                return Tick { send: None, given_up: true, discarded: std::mem::take(&mut self.queue).len() };
            }
        }
        let send = if begins {
            Some(self.begin(out, now))
        } else if due == Some(Due::Keepalive) {
            self.keepalive(out, now)
        } else {
            None
        };
        Tick { send, ..Tick::default() }
    }

    /// Puts both MACs behind a handshake message.
    fn mac<const N: usize>(&mut self, mut message: [u8; N], now: Moment) -> [u8; N] {
        let cookie = self.cookie.filter(|(_, at)| now.since(*at) < COOKIE_LIFETIME).map(|(cookie, _)| cookie);
        let mac1 = cookie::write_macs(self.parties.mac1_key(), cookie.as_ref(), &mut message);
        self.last_mac1 = Some(mac1);
        message
    }

    /// An index that neither a session nor a handshake has.
    fn take_index(&mut self) -> u32 {
        loop {
            // Of 256 at most 9 are in use.
            self.last = self.last.wrapping_add(1);
            let index = self.base | u32::from(self.last);
            let pending = self.pending.as_ref().map(|pending| &pending.state);
            let begun = pending.into_iter().chain(&self.previous).any(|state| state.local() == index);
            if !begun && !self.keypairs.has(index) {
                return index;
            }
        }
    }
}

#[cfg(test)]
mod tests;
