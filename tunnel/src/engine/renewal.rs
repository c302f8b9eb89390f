//! When a session that we began is to be renewed.
//!
//! `Tunn` remembers of its last handshake alone whether it began that one, and takes an answer for a handshake: a single
//! initiation that somebody recorded would keep it from renewing the session in use, and its peer is not the one to do so.
//! The session would end under traffic, a moment earlier on one side than on the other.

use std::time::{Duration, Instant};

/// Section 6.1 of the WireGuard paper, for all of these.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of the newest session that both sides have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Renewal {
    /// When we began it; `None` if the peer did, who renews it then.
    since: Option<Instant>,
    sent: bool,
    received: bool,
    /// When its renewal was last asked for.
    asked: Option<Instant>,
}

impl Renewal {
    /// We began a session, and the peer has answered.
    pub(super) fn begun(now: Instant) -> Self {
        Self { since: Some(now), ..Self::default() }
    }

    /// A packet with content was sent, by whatever session.
    pub(super) const fn note_sent(&mut self) {
        self.sent = true;
    }

    /// The same of what was received.
    pub(super) const fn note_received(&mut self) {
        self.received = true;
    }

    /// Whether a handshake is to be begun: after 120 s if something was sent by the session, after 165 s if something was received
    /// (section 6.2), once in five seconds.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let Some(age) = self.since.map(|since| now.saturating_duration_since(since)) else { return false };
        let late = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        let wanted = self.sent && age >= REKEY_AFTER_TIME || self.received && age >= late;
        let asked = self.asked.is_some_and(|at| now.saturating_duration_since(at) < REKEY_TIMEOUT);
        // Of a session that has ended nothing is left to renew.
        let due = wanted && !asked && age < REJECT_AFTER_TIME;
        if due {
            self.asked = Some(now);
        }
        due
    }
}
