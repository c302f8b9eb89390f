//! When a peer is to hear from us unasked (sections 6.2, 6.4 and 6.5).

use super::keypairs::Keypair;
use super::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_TIMEOUT};
use crate::clock::Moment;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Handshake,
    Keepalive,
}

/// What was sent and received, as far as something follows from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timers {
    /// Content was received then, and nothing was sent since.
    owes: Option<Moment>,
    /// Content was sent then, and nothing was heard since.
    awaits: Option<Moment>,
    /// Since the last turn.
    sent: bool,
    received: bool,
    /// The present session was received by in its last seconds, and its renewal was asked for.
    late: bool,
}

impl Timers {
    /// A data message was sent, with content or without. An answer is none: what it answers may be recorded.
    pub(super) fn sent(&mut self, content: bool, now: Moment) {
        self.owes = None;
        self.sent = true;
        if content {
            self.awaits.get_or_insert(now);
        }
    }

    /// An initiation was sent.
    pub(super) const fn began(&mut self) {
        self.owes = None;
    }

    /// An authentic message has come. An initiation is none: it may be recorded.
    pub(super) fn received(&mut self, content: bool, now: Moment) {
        self.awaits = None;
        self.received = true;
        if content {
            self.owes.get_or_insert(now);
        }
    }

    /// There is another session to send with.
    pub(super) const fn renewed(&mut self) {
        (self.sent, self.received, self.late) = (false, false, false);
    }

    /// A handshake was tried for long enough; the next packet begins anew.
    pub(super) const fn give_up(&mut self) {
        self.awaits = None;
    }

    /// What is due, which is to be done then: it is said once.
    pub(super) fn due(&mut self, current: Option<&Keypair>, now: Moment) -> Option<Due> {
        let (sent, received) = (std::mem::take(&mut self.sent), std::mem::take(&mut self.received));
        if current.is_some_and(|current| self.is_to_be_renewed(current, sent, received, now)) {
            return Some(Due::Handshake);
        }
        if self.awaits.is_some_and(|since| now.since(since) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT) {
            self.awaits = None;
            return Some(Due::Handshake);
        }
        if self.owes.is_some_and(|since| now.since(since) >= KEEPALIVE_TIMEOUT) {
            self.owes = None;
            return Some(Due::Keepalive);
        }
        None
    }

    fn is_to_be_renewed(&mut self, current: &Keypair, sent: bool, received: bool, now: Moment) -> bool {
        let age = now.since(current.born);
        if sent && current.counter >= REKEY_AFTER_MESSAGES {
            return true;
        }
        // Who answered leaves it to who began.
        if !current.initiator || age >= REJECT_AFTER_TIME {
            return false;
        }
        let late = age >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        if received && late && !self.late {
            self.late = true;
            return true;
        }
        sent && age >= REKEY_AFTER_TIME
    }
}
