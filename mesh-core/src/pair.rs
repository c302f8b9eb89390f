//! On which slot this node sends to one peer: the slot on which the pair is to talk, as soon as a handshake there
//! is confirmed, and one that works meanwhile.
//!
//! Each side moves its own sending alone; receiving is open on both slots all the time. "Confirmed" means that this
//! side may send *and* the other can open it. WireGuard's "latest handshake" says just that on either side: the
//! initiator has it with the response (the responder is ready then), the responder only with the first packet of
//! the initiator (WireGuard paper, section 5.1: it must not send before). A handshake that was made with a key
//! which has been replaced since says nothing, so it must be younger than both keys.
//!
//! ```text
//!                      peer's key listed, handshake there
//!  (none) ──newcomer──► target ◄───────────────────────── other
//!                         │                                 ▲
//!                         └── unanswered or key gone, and ──┘   a handshake on the target is provoked
//!                             the other one works               all the time, so that the pair comes back
//! ```

use std::time::Duration;

use crate::announcement::Announcement;
use crate::diff::SESSION;
use crate::slot::{Slot, agreed, drained};

/// A slot that was sent to for so long without any answer does not work: WireGuard answers data at the latest after
/// KEEPALIVE_TIMEOUT (10 s) with a keepalive, and an initiation was repeated after REKEY_TIMEOUT (5 s) by then
/// (WireGuard paper, section 6).
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What a message without content adds to a peer's counter of sent bytes (WireGuard paper, section 5.4.6: a header
/// of 16 and a tag of 16): it is itself an answer, so none follows.
const KEEPALIVE_BYTES: u64 = 32;

/// One slot between this node and one peer, as its device shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    /// For how long the device has had both its present key and the peer's present key. None: it has not. Where
    /// the agent found them so when it started: [`Duration::MAX`].
    pub keys_for: Option<Duration>,
    /// Age of the latest handshake with the peer's present key.
    pub handshake_age: Option<Duration>,
    /// For how long what was sent to the peer has not been answered by anything ([`Ear`]). None: nothing is open.
    pub unanswered_for: Option<Duration>,
    /// The pair may use this slot: false while its pre-shared key is still to be agreed.
    pub ready: bool,
}

/// What a [`Link`] can carry now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    /// Nothing before a new handshake, and that is certain: a key is missing or was replaced, or there was none yet.
    Absent,
    /// Nothing before a new handshake: the last one is too old.
    Expired,
    /// It should carry, and does not: nobody answers.
    Deaf,
    /// It carries, both ways.
    Live,
}

impl Link {
    /// May a handshake be made there?
    const fn open(&self) -> bool {
        self.keys_for.is_some() && self.ready
    }

    fn session(&self) -> Session {
        let confirmed = match (self.keys_for, self.handshake_age) {
            (Some(keys), Some(age)) if self.ready && age < keys => age,
            (Some(_) | None, Some(_) | None) => return Session::Absent,
        };
        if self.unanswered_for.is_some_and(|time| time >= PATIENCE) {
            Session::Deaf
        } else if confirmed < SESSION {
            Session::Live
        } else {
            Session::Expired
        }
    }

    /// Known to carry nothing: there is no session, or nobody answers. A session that is only old says nothing, since
    /// whoever sends makes a new one.
    pub fn dead(&self) -> bool {
        matches!(self.session(), Session::Absent | Session::Deaf)
    }

    /// A handshake later than both keys and younger than REJECT_AFTER_TIME (180 s), and nothing speaks against it.
    pub fn confirmed(&self) -> bool {
        self.session() == Session::Live
    }
}

/// What this node does about one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Slot of the routes to the peer.
    pub send: Slot,
    /// A slot on which a handshake is to be provoked, by a datagram or a keepalive sent into that device. It is
    /// asked for again and again until it is there; WireGuard itself begins no more than one in 5 s.
    pub provoke: Option<Slot>,
}

/// Chooses. `current` is the slot of the present routes to the peer, `target` what [`target`] said, `links` the two
/// slots in order.
pub fn choose(current: Option<Slot>, target: Slot, links: &[Link; 2]) -> Choice {
    let other = target.other();
    let (there, here) = (&links[target.index()], &links[other.index()]);
    let (at_target, at_other) = (there.session(), here.session());
    let call = |slot: Slot| links[slot.index()].open().then_some(slot);
    if at_target == Session::Live {
        return Choice { send: target, provoke: None };
    }
    match current {
        // Its key is not known or its pre-shared key not agreed: the other slot, whatever it is worth.
        Some(_) | None if !there.open() && here.open() => {
            Choice { send: other, provoke: (at_other == Session::Absent).then_some(other) }
        }
        None if at_other == Session::Live => Choice { send: other, provoke: call(target) },
        // Without a session anywhere both need a handshake, and on the target both will look for it.
        None => Choice { send: target, provoke: call(target) },
        Some(current) if current == target => match (at_target, at_other) {
            (Session::Absent | Session::Deaf, Session::Live) => Choice { send: other, provoke: call(target) },
            // WireGuard tries the target by itself, since something is sent there. Meanwhile a way out:
            (Session::Deaf, _) => Choice { send: target, provoke: call(other) },
            (Session::Absent, _) => Choice { send: target, provoke: call(target) },
            // Nobody talks. Handshakes for their own sake would cost a large mesh some at every moment.
            (Session::Expired | Session::Live, _) => Choice { send: target, provoke: None },
        },
        Some(_) if !here.open() && there.open() => Choice { send: target, provoke: call(target) },
        // Even without a session: the one that the other side has may be this, and only its first packet was lost.
        Some(_) => Choice { send: other, provoke: call(target) },
    }
}

/// What this node drains: as it means to, and as the API has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Drains {
    /// What its rotation wants to announce.
    pub wanted: Option<Slot>,
    /// What the API last showed of it.
    pub accepted: Option<Slot>,
}

/// The slot on which this node and a peer are to talk.
///
/// By what the API has of both. What this node only means to drain moves nothing, but a pair that is where it would
/// have to go stays: it must not wander onto a slot on the very moment that its drain is announced.
/// Names are such as both sides have for the two, as [`crate::slot::pair_slot`] wants them.
pub fn target<Name: Ord>(me: (&Name, Drains), peer: (&Name, &Announcement), current: Option<Slot>) -> Slot {
    let theirs = (peer.0, drained(peer.1));
    let soon = agreed((me.0, me.1.wanted), theirs);
    if current == Some(soon) { soon } else { agreed((me.0, me.1.accepted), theirs) }
}

/// Listens for answers: fed with a peer's byte counters on one slot, it tells for how long nothing came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ear {
    sent: u64,
    received: u64,
    asked: Option<Duration>,
}

impl Ear {
    /// The counters now, in bytes; `now` is the time since any fixed moment. A lone keepalive asks nothing.
    #[must_use]
    pub fn hear(self, sent: u64, received: u64, now: Duration) -> Self {
        let question = sent.checked_sub(self.sent).is_some_and(|grown| grown > KEEPALIVE_BYTES);
        // A counter that went back belongs to a new peer entry.
        let asked = if received != self.received || sent < self.sent {
            None
        } else {
            self.asked.or_else(|| question.then_some(now))
        };
        Self { sent, received, asked }
    }

    /// [`Link::unanswered_for`].
    pub fn unanswered_for(&self, now: Duration) -> Option<Duration> {
        self.asked.map(|asked| now.saturating_sub(asked))
    }
}

#[cfg(test)]
mod tests;
