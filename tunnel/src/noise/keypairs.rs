//! The sessions of one peer: one to send with, two that are not proven yet, and some that still receive.
//!
//! ```text
//!   answer to our initiation ──────────────────────────► current ──► older ──► wiped
//!   our answer ──► next ── first data by it ───────────►    │
//!                   └─ our own handshake was quicker ────────────────► older
//! ```
//!
//! An answer makes a session before the initiator has proven that it is there now, so the initiation may be one that somebody
//! recorded. Such a session takes no other's place but that of its like; an honest peer's newest initiation ends that game, since all
//! that were recorded before it have older timestamps.

use std::sync::Arc;

use super::aead::Key;
use super::handshake::Keys;
use super::messages::{HEADER, OVERHEAD, TYPE_DATA};
use super::replay::Window;
use super::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use crate::clock::Moment;

/// Sessions that receive and send no more. Where two handshakes crossed the peer may go on to send with one of them; the others are
/// for what is under way, and for recorded initiations that push them out.
const OLDER: usize = 4;
/// Sessions that we answered and that are not proven: a peer far away repeats its initiation before it has our answer, and goes by the
/// first one then.
const NEXT: usize = 2;

/// One session.
pub(super) struct Keypair {
    keys: Keys,
    local: u32,
    pub(super) initiator: bool,
    pub(super) born: Moment,
    /// Number of the next message.
    pub(super) counter: u64,
    window: Window,
}

impl Keypair {
    pub(super) const fn new(keys: Keys, local: u32, initiator: bool, born: Moment) -> Self {
        Self { keys, local, initiator, born, counter: 0, window: Window::new() }
    }

    fn is_alive(&self, now: Moment) -> bool {
        now.since(self.born) < REJECT_AFTER_TIME
    }

    /// Lays out the next data message in `out`: header, `packet`, zeros up to `padded` bytes, and room for the tag. Its length. It is to
    /// be encrypted once, and sent by nobody before that.
    pub(super) fn lay_out(&mut self, packet: &[u8], padded: usize, out: &mut [u8]) -> usize {
        let out = &mut out[..padded.max(packet.len()) + OVERHEAD];
        out[..4].copy_from_slice(&[TYPE_DATA, 0, 0, 0]);
        out[4..8].copy_from_slice(&self.keys.remote.to_le_bytes());
        out[8..HEADER].copy_from_slice(&self.counter.to_le_bytes());
        out[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        out[HEADER + packet.len()..].fill(0);
        self.counter += 1;
        out.len()
    }

    /// Makes the next data message in `out`; its length.
    pub(super) fn seal(&mut self, packet: &[u8], padded: usize, out: &mut [u8]) -> usize {
        let len = self.lay_out(packet, padded, out);
        self.keys.sending.seal_message(&mut out[..len]);
        len
    }

    /// What decrypts the peer's.
    pub(super) fn receiving_key(&self) -> Arc<Key> {
        Arc::clone(&self.keys.receiving)
    }

    /// Whether a message of this number may be one that has not come yet.
    pub(super) fn is_new(&self, number: u64) -> bool {
        number < REJECT_AFTER_MESSAGES && self.window.is_new(number)
    }

    /// Notes that an authentic message of this number has come; whether it is the first.
    pub(super) fn note(&mut self, number: u64) -> bool {
        let new = self.is_new(number);
        if new {
            self.window.note(number);
        }
        new
    }
}

/// The sessions of one peer.
#[derive(Default)]
pub(super) struct Keypairs {
    current: Option<Box<Keypair>>,
    /// Those that we answered, not proven yet, the last one first.
    next: [Option<Box<Keypair>>; NEXT],
    /// The last one first.
    older: [Option<Box<Keypair>>; OLDER],
}

impl Keypairs {
    /// The one to send with, alive or not.
    pub(super) fn current(&self) -> Option<&Keypair> {
        self.current.as_deref()
    }

    /// Whether there is one to send with.
    pub(super) fn sends(&self, now: Moment) -> bool {
        self.current().is_some_and(|k| k.is_alive(now) && k.counter < REJECT_AFTER_MESSAGES)
    }

    /// The one to send with.
    pub(super) fn sending(&mut self, now: Moment) -> Option<&mut Keypair> {
        self.current.as_deref_mut().filter(|k| k.is_alive(now) && k.counter < REJECT_AFTER_MESSAGES)
    }

    /// What encrypts what was laid out last.
    pub(super) fn sending_key(&self) -> Option<&Arc<Key>> {
        self.current().map(|k| &k.keys.sending)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Option<Box<Keypair>>> {
        [&mut self.current].into_iter().chain(&mut self.next).chain(&mut self.older)
    }

    /// The one with this index of ours.
    pub(super) fn receiving(&mut self, index: u32, now: Moment) -> Option<&mut Keypair> {
        self.all().filter_map(Option::as_deref_mut).find(|k| k.local == index).filter(|k| k.is_alive(now))
    }

    /// Whether one has this index.
    pub(super) fn has(&self, index: u32) -> bool {
        let all = [&self.current].into_iter().chain(&self.next).chain(&self.older);
        all.flatten().any(|k| k.local == index)
    }

    /// A peer has answered us.
    pub(super) fn begun(&mut self, keypair: Keypair) {
        let before = self.current.replace(Box::new(keypair));
        self.retire(before);
        // Where two began at once, the peer sends with one of these.
        self.retire_next();
    }

    /// We have answered a peer.
    pub(super) fn answered(&mut self, keypair: Keypair) {
        self.next.rotate_right(1);
        self.next[0] = Some(Box::new(keypair));
    }

    /// Data of this session was authentic. Whether that was its proof.
    pub(super) fn proven(&mut self, index: u32) -> bool {
        let at = self.next.iter().position(|next| next.as_ref().is_some_and(|next| next.local == index));
        let Some(at) = at else { return false };
        let before = std::mem::replace(&mut self.current, self.next[at].take());
        self.retire(before);
        if at == 0 {
            // The peer has gone on from the other: it may receive, and never be sent with.
            self.retire_next();
        }
        true
    }

    fn retire_next(&mut self) {
        for at in (0..NEXT).rev() {
            let next = self.next[at].take();
            self.retire(next);
        }
    }

    fn retire(&mut self, keypair: Option<Box<Keypair>>) {
        if keypair.is_some() {
            self.older.rotate_right(1);
            self.older[0] = keypair;
        }
    }

    /// Wipes what has ended.
    pub(super) fn expire(&mut self, now: Moment) {
        for place in self.all() {
            place.take_if(|k| !k.is_alive(now));
        }
    }
}
