//! The machine by which two agents agree on the pre-shared key of one slot. Pure.
//!
//! ```text
//! initiator (smaller name)                           responder
//!
//! Bare ── Offer{round, key} ───────────────────────► Bare
//! Offered                                            Answered: holds the key, in memory alone
//!   ◄─────────────── Answer{round, ciphertext, tag} ──┘
//! the tag fits: persist, install
//! Held ── Confirm{tag} ────────────────────────────► the tag fits: persist, install
//!   ◄──────────────────────────── Confirmed{tag} ──── Held, confirmed
//! Held, confirmed
//! ── a handshake later than the installation, on each side: seen ──
//! Held, seen ── Confirm{tag, seen} ────────────────► peer seen
//! peer seen ◄──────────────── Confirmed{tag, seen} ── Held, seen
//!
//! Ask (responder)       something is missing: the initiator offers, or confirms what it holds
//! Unknown (responder)   the confirmed key is not held and never will be: the initiator drops it and offers anew
//! Withdrawn (initiator) asked about an answer that it has not taken up and never will: the responder forgets it
//! Refused (either)      not now, or not at all, with the reason
//! ```
//!
//! The initiator repeats what is unanswered, the responder asks, both with growing delays; every message may be lost,
//! repeated or late. What is durable is the [`Record`] alone. An effect that fails is a crash: drop the machine and
//! [`Exchange::start`] it again from what is on the disk.
//!
//! Why late messages do no harm: an Answer counts only for the round on offer; Confirm and Confirmed prove one key;
//! Unknown names one proof, Withdrawn one round, and both, once said, stay true; an Offer changes nothing that is
//! installed.

mod types;

use std::sync::Arc;
use std::time::Duration;

use mesh_core::psk::{
    Ciphertext, Context, EncapsulationKey, Message, NodeId, PskId, Refusal, Role, Round, Tag,
};
use mesh_core::slot::Slot;

pub use self::types::{Conditions, Effect, Input, Record};
use super::problem::PskProblem;
use super::secret::{Proof, Psk};
use super::standing::Standing;
use super::suite::{Suite, SuiteError};

/// Delay before the first repetition; it doubles up to [`LAST_DELAY`].
pub(super) const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay between repetitions: a peer that comes back is asked within a minute.
pub(super) const LAST_DELAY: Duration = Duration::from_secs(60);
/// How long the responder waits before it asks by itself: the initiator is usually quicker.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(5);

/// What is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Attempt<P, C> {
    None,
    Offered { round: Round },
    Answered { round: Round, ciphertext: C, psk: Arc<P> },
}

/// The context is of two other nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {0} is at neither end of the context")]
pub struct NotOurs(pub NodeId);

/// The machine of one pair and slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Exchange<P = Psk, C = Ciphertext> {
    context: Arc<Context>,
    role: Role,
    record: Option<Record<P>>,
    attempt: Attempt<P, C>,
    /// The peer lacks the key of the record.
    lost: bool,
    /// A handshake was seen without a key.
    tried: bool,
    refused: Option<Refusal>,
    since: Duration,
    due: Duration,
    tries: u32,
}

/// A machine, and what to do before anything else.
pub type Started<P = Psk, K = EncapsulationKey, C = Ciphertext> = (Exchange<P, C>, Vec<Effect<P, K, C>>);

type Effects<P, S> = Vec<Effect<P, <S as Suite>::Key, <S as Suite>::Ciphertext>>;

impl<P, C: Clone> Exchange<P, C> {
    /// The machine of `us` in `context`, with what is on the disk. A record of another context, whose key is gone, is
    /// removed. The effects put on the slot what is on the disk.
    ///
    /// # Errors
    /// `us` is not in the pair.
    pub fn start<K>(
        context: Arc<Context>,
        us: &NodeId,
        record: Option<Record<P>>,
        now: Duration,
    ) -> Result<Started<P, K, C>, NotOurs> {
        let role = context.role(us).ok_or_else(|| NotOurs(us.clone()))?;
        let found = record.is_some();
        let record = record.filter(|record| record.context == context);
        let due = match role {
            Role::Initiator => now,
            Role::Responder => now + ASK_AFTER,
        };
        let machine = Self {
            context,
            role,
            record,
            attempt: Attempt::None,
            lost: false,
            tried: false,
            refused: None,
            since: now,
            due,
            tries: 0,
        };
        let effects = match &machine.record {
            Some(record) => vec![machine.install(record)],
            None if found => vec![machine.remove()],
            None => Vec::new(),
        };
        Ok((machine, effects))
    }

    /// To whom and what the key belongs.
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The peer.
    pub fn peer(&self) -> &NodeId {
        let other = match self.role {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        &self.context.end(other).id
    }

    /// What is on the disk and on the slot.
    pub const fn record(&self) -> Option<&Record<P>> {
        self.record.as_ref()
    }

    /// How far it is.
    pub const fn standing(&self) -> Standing {
        match (&self.record, &self.attempt) {
            (Some(_), _) if self.lost => Standing::Lost,
            (Some(Record { seen: true, peer_seen: true, .. }), _) => Standing::Open,
            (Some(Record { seen: true, .. }), _) => Standing::Proven,
            (Some(_), _) => Standing::Unproven,
            (None, Attempt::Answered { .. }) => Standing::Answered,
            (None, Attempt::None | Attempt::Offered { .. }) if self.tried => Standing::Plain,
            (None, Attempt::None | Attempt::Offered { .. }) => Standing::Untried,
        }
    }

    /// When it started: time since the moment that [`Conditions::now`] counts from.
    pub const fn since(&self) -> Duration {
        self.since
    }

    /// Is an answer awaited that the present ML-KEM key alone opens?
    pub const fn offers(&self) -> bool {
        matches!(self.attempt, Attempt::Offered { .. })
    }

    /// When to give the next [`Input::Tick`]; none: nothing is to be repeated.
    pub fn due(&self, conditions: Conditions) -> Option<Duration> {
        self.has_to_speak(conditions).then_some(self.due)
    }

    /// Speak at the next tick, with short delays again: the peer has come back.
    pub const fn hurry(&mut self, now: Duration) {
        self.due = now;
        self.tries = 0;
    }

    /// What to report when the key is still missing `patience` after it was due: since the start of the machine,
    /// while conditions allow it.
    pub fn overdue(&self, conditions: Conditions, patience: Duration) -> Option<PskProblem> {
        let waits = self.record.as_ref().is_none_or(|record| !record.confirmed);
        let late = conditions.now.saturating_sub(self.since) >= patience;
        (waits && late && conditions.agree).then(|| PskProblem::Overdue {
            peer: self.peer().clone(),
            slot: self.slot(),
            why: match self.refused {
                Some(refusal) => format!("that node says: {refusal}"),
                None if !conditions.idle => {
                    "the other slot does not work, over which they would agree".to_owned()
                }
                None => format!(
                    "it does not answer on TCP port {} of its mesh address",
                    mesh_core::numbers::PORT_KEY_EXCHANGE
                ),
            },
        })
    }

    /// One step. Cannot fail; see [`Effect`].
    pub fn handle<S>(
        &mut self,
        input: Input<S::Key, C>,
        conditions: Conditions,
        suite: &mut S,
    ) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        match input {
            Input::Tick => self.tick(conditions, suite),
            Input::Handshake { on } => self.handshake(on, conditions, suite),
            Input::Message(message) => {
                if *message.context() == self.context {
                    return self.message(message, conditions, suite);
                }
                match message {
                    Message::Ask { .. } | Message::Offer { .. } | Message::Confirm { .. } => {
                        self.refuse::<S>(Refusal::OtherContext)
                    }
                    Message::Refused { reason, .. } => {
                        self.refused = Some(reason);
                        Vec::new()
                    }
                    Message::Answer { .. }
                    | Message::Confirmed { .. }
                    | Message::Unknown { .. }
                    | Message::Withdrawn { .. } => Vec::new(),
                }
            }
        }
    }

    fn message<S>(
        &mut self,
        message: Message<S::Key, C>,
        conditions: Conditions,
        suite: &mut S,
    ) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        match (self.role, message) {
            (Role::Initiator, Message::Ask { round, .. }) => self.asked(round, conditions, suite),
            (Role::Initiator, Message::Answer { round, ciphertext, tag, .. }) => {
                self.answered(round, &ciphertext, &tag, conditions, suite)
            }
            (Role::Initiator, Message::Confirmed { tag, seen, .. }) => self.confirmed(&tag, seen, suite),
            (Role::Initiator, Message::Unknown { tag, .. }) => self.unknown(tag, conditions, suite),
            (Role::Responder, Message::Offer { round, key, .. }) => {
                self.offered(round, &key, conditions, suite)
            }
            (Role::Responder, Message::Confirm { tag, seen, .. }) => {
                self.confirm(tag, seen, conditions, suite)
            }
            (Role::Responder, Message::Withdrawn { round, .. }) => {
                if matches!(self.attempt, Attempt::Answered { round: answered, .. } if answered == round) {
                    self.attempt = Attempt::None;
                }
                Vec::new()
            }
            (_, Message::Refused { reason, .. }) => {
                self.refused = Some(reason);
                Vec::new()
            }
            (
                Role::Initiator,
                Message::Offer { .. } | Message::Confirm { .. } | Message::Withdrawn { .. },
            )
            | (Role::Responder, Message::Ask { .. }) => self.refuse::<S>(Refusal::Role),
            (
                Role::Responder,
                Message::Answer { .. } | Message::Confirmed { .. } | Message::Unknown { .. },
            ) => Vec::new(),
        }
    }

    // ---- both ----

    /// Is there something that the peer must hear until it answers?
    fn has_to_speak(&self, conditions: Conditions) -> bool {
        match (&self.record, self.role) {
            // Until it hears what became of its answer, it cannot talk on the slot.
            (None, Role::Responder) if matches!(self.attempt, Attempt::Answered { .. }) => true,
            (None, _) => conditions.agree && conditions.idle,
            // The tick drops it as soon as nobody talks on the slot.
            (Some(_), _) if self.lost => conditions.idle,
            (Some(record), Role::Initiator) => !record.confirmed || (record.seen && !record.peer_seen),
            (Some(record), Role::Responder) => record.seen && !record.peer_seen,
        }
    }

    fn tick<S>(&mut self, conditions: Conditions, suite: &mut S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let mut effects = self.drop_lost::<S>(conditions);
        // Without another slot to talk on this one is needed, whatever becomes of the answer: as after a restart.
        if !conditions.idle && matches!(self.attempt, Attempt::Answered { .. }) {
            self.attempt = Attempt::None;
        }
        if !self.has_to_speak(conditions) {
            // What was offered for a slot that is in use now is not taken up any more.
            if matches!(self.attempt, Attempt::Offered { .. }) {
                self.attempt = Attempt::None;
            }
            return effects;
        }
        if conditions.now < self.due {
            return effects;
        }
        self.due = conditions.now + self.delay();
        self.tries = self.tries.saturating_add(1);
        effects.push(match (&self.record, self.role) {
            (_, Role::Responder) => self.ask(),
            (Some(record), Role::Initiator) => self.confirmation(record, conditions, suite),
            (None, Role::Initiator) => self.offer(suite),
        });
        effects
    }

    fn handshake<S>(&mut self, on: Option<PskId>, conditions: Conditions, suite: &S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let Some(record) = &mut self.record else {
            self.tried |= on.is_none();
            return Vec::new();
        };
        if on != Some(record.id) || record.seen {
            return Vec::new();
        }
        record.seen = true;
        // Nobody completes a handshake without the key.
        record.confirmed = true;
        let record = record.clone();
        self.hurry(conditions.now + FIRST_DELAY);
        let mut effects = vec![Effect::Persist(record.clone())];
        match self.role {
            Role::Initiator => effects.push(self.confirmation(&record, conditions, suite)),
            Role::Responder if record.peer_seen => {}
            Role::Responder => effects.push(self.ask()),
        }
        effects
    }

    fn install<K>(&self, record: &Record<P>) -> Effect<P, K, C> {
        Effect::Install { slot: self.slot(), peer: self.peer().clone(), psk: Arc::clone(&record.psk) }
    }

    fn remove<K>(&self) -> Effect<P, K, C> {
        Effect::Remove { slot: self.slot(), peer: self.peer().clone() }
    }

    fn refuse<S>(&self, reason: Refusal) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        vec![Effect::Send(Message::Refused { context: Arc::clone(&self.context), reason })]
    }

    fn slot(&self) -> Slot {
        self.context.slot()
    }

    /// Doubles with every repetition; up to a quarter less, by the keys of the pair, so that a node's peers do not all
    /// speak in the same moment.
    fn delay(&self) -> Duration {
        let whole = FIRST_DELAY.saturating_mul(1 << self.tries.min(6)).min(LAST_DELAY);
        let spread =
            self.context.ends().iter().fold(0, |sum: u8, end| sum.wrapping_add(end.key.as_bytes()[0]));
        whole - whole / 1024 * u32::from(spread)
    }

    fn failed(&self, error: &SuiteError) -> PskProblem {
        let (peer, slot, reason) = (self.peer().clone(), self.slot(), error.to_string());
        match error {
            SuiteError::NotAnnounced | SuiteError::Refused(_) => {
                PskProblem::KeyRefused { peer, slot, reason }
            }
            SuiteError::Random(_) => PskProblem::NoRandom { peer, slot, reason },
        }
    }

    // ---- initiator ----

    fn offer<S>(&mut self, suite: &mut S) -> Effect<P, S::Key, C>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let round = match &self.attempt {
            Attempt::Offered { round } => *round,
            Attempt::None | Attempt::Answered { .. } => match suite.round() {
                Ok(round) => round,
                Err(error) => return Effect::Problem(self.failed(&error)),
            },
        };
        self.attempt = Attempt::Offered { round };
        Effect::Send(Message::Offer { context: Arc::clone(&self.context), round, key: suite.key() })
    }

    fn confirmation<S>(&self, record: &Record<P>, conditions: Conditions, suite: &S) -> Effect<P, S::Key, C>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let tag = suite.tag(&record.psk, &self.context, Proof::Confirm);
        let seen = record.seen && !conditions.drained;
        Effect::Send(Message::Confirm { context: Arc::clone(&self.context), tag, seen })
    }

    fn asked<S>(&mut self, round: Option<Round>, conditions: Conditions, suite: &mut S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let mut effects = self.drop_lost::<S>(conditions);
        match &self.record {
            Some(record) => effects.push(self.confirmation(record, conditions, suite)),
            None if !(conditions.agree && conditions.idle) && round.is_some() => {
                self.attempt = Attempt::None;
                let context = Arc::clone(&self.context);
                effects.extend(round.map(|round| Effect::Send(Message::Withdrawn { context, round })));
            }
            None if !conditions.agree => effects.append(&mut self.refuse::<S>(Refusal::Off)),
            None if !conditions.idle => effects.append(&mut self.refuse::<S>(Refusal::Busy)),
            None => effects.push(self.offer(suite)),
        }
        effects
    }

    fn answered<S>(
        &mut self,
        round: Round,
        ciphertext: &C,
        tag: &Tag,
        conditions: Conditions,
        suite: &S,
    ) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        if !matches!(self.attempt, Attempt::Offered { round: offered } if offered == round) {
            return Vec::new();
        }
        self.attempt = Attempt::None;
        if !conditions.idle || !conditions.agree {
            return Vec::new();
        }
        let psk = suite.decapsulate(&self.context, round, ciphertext);
        if !suite.verify(&psk, &self.context, Proof::Answer, tag) {
            let (peer, slot) = (self.peer().clone(), self.slot());
            return vec![Effect::Problem(PskProblem::WrongProof { peer, slot })];
        }
        let record = Record {
            context: Arc::clone(&self.context),
            id: suite.id(&psk),
            psk: Arc::new(psk),
            confirmed: false,
            seen: false,
            peer_seen: false,
        };
        self.adopt(record.clone(), conditions.now);
        vec![
            Effect::Persist(record.clone()),
            self.install(&record),
            self.confirmation(&record, conditions, suite),
        ]
    }

    fn confirmed<S>(&mut self, tag: &Tag, seen: bool, suite: &S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let Some(record) = &mut self.record else {
            return Vec::new();
        };
        if !suite.verify(&record.psk, &self.context, Proof::Confirmed, tag) {
            return Vec::new();
        }
        let changed = !record.confirmed || (seen && !record.peer_seen);
        record.confirmed = true;
        record.peer_seen |= seen;
        self.refused = None;
        if changed { vec![Effect::Persist(record.clone())] } else { Vec::new() }
    }

    fn unknown<S>(&mut self, tag: Tag, conditions: Conditions, suite: &mut S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let Some(record) = &self.record else {
            return Vec::new();
        };
        if suite.tag(&record.psk, &self.context, Proof::Confirm) != tag {
            return Vec::new();
        }
        let had_it = record.confirmed;
        self.lost = true;
        let mut effects = Vec::new();
        if had_it {
            let (peer, slot) = (self.peer().clone(), self.slot());
            effects.push(Effect::Problem(PskProblem::PeerLost { peer, slot }));
        }
        effects.append(&mut self.drop_lost::<S>(conditions));
        effects
    }

    /// Drops a key that the peer does not have, unless it is in use.
    fn drop_lost<S>(&mut self, conditions: Conditions) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        if !self.lost || !conditions.idle {
            return Vec::new();
        }
        self.lost = false;
        self.tried = false;
        self.record = None;
        self.hurry(conditions.now);
        vec![self.remove()]
    }

    // ---- responder ----

    fn offered<S>(
        &mut self,
        offered: Round,
        key: &S::Key,
        conditions: Conditions,
        suite: &mut S,
    ) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        if !conditions.agree {
            return self.refuse::<S>(Refusal::Off);
        }
        if let Attempt::Answered { round, ciphertext, psk } = &self.attempt
            && *round == offered
        {
            return vec![self.answer(*round, ciphertext, psk, suite)];
        }
        if !conditions.idle {
            return self.refuse::<S>(Refusal::Busy);
        }
        let (ciphertext, psk) = match suite.encapsulate(&self.context, offered, key) {
            Ok((ciphertext, psk)) => (ciphertext, Arc::new(psk)),
            Err(error) => {
                let mut effects = self.refuse::<S>(Refusal::Key);
                effects.push(Effect::Problem(self.failed(&error)));
                return effects;
            }
        };
        let answer = self.answer(offered, &ciphertext, &psk, suite);
        self.attempt = Attempt::Answered { round: offered, ciphertext, psk };
        vec![answer]
    }

    fn ask<K>(&self) -> Effect<P, K, C> {
        let round = match &self.attempt {
            Attempt::Answered { round, .. } => Some(*round),
            Attempt::None | Attempt::Offered { .. } => None,
        };
        Effect::Send(Message::Ask { context: Arc::clone(&self.context), round })
    }

    fn answer<S>(&self, round: Round, ciphertext: &C, psk: &P, suite: &S) -> Effect<P, S::Key, C>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let tag = suite.tag(psk, &self.context, Proof::Answer);
        let ciphertext = ciphertext.clone();
        Effect::Send(Message::Answer { context: Arc::clone(&self.context), round, ciphertext, tag })
    }

    /// Whatever the slot is used for: the initiator has the key, and a slot with different keys works for nobody.
    fn confirm<S>(&mut self, tag: Tag, seen: bool, conditions: Conditions, suite: &S) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let fits = |psk: &P| suite.verify(psk, &self.context, Proof::Confirm, &tag);
        if let Some(record) = self.record.as_ref().filter(|record| fits(&record.psk)) {
            let changed = seen && !record.peer_seen;
            let record = Record { peer_seen: record.peer_seen || seen, ..record.clone() };
            self.record = Some(record.clone());
            let mut effects = if changed { vec![Effect::Persist(record.clone())] } else { Vec::new() };
            effects.push(self.confirmed_message(&record, conditions, suite));
            return effects;
        }
        let psk = match &self.attempt {
            Attempt::Answered { psk, .. } if fits(psk) => Arc::clone(psk),
            Attempt::None | Attempt::Offered { .. } | Attempt::Answered { .. } => {
                return vec![Effect::Send(Message::Unknown { context: Arc::clone(&self.context), tag })];
            }
        };
        let context = Arc::clone(&self.context);
        let id = suite.id(&psk);
        let record = Record { context, psk, id, confirmed: true, seen: false, peer_seen: seen };
        self.adopt(record.clone(), conditions.now);
        let confirmed = self.confirmed_message(&record, conditions, suite);
        vec![Effect::Persist(record.clone()), self.install(&record), confirmed]
    }

    fn confirmed_message<S>(
        &self,
        record: &Record<P>,
        conditions: Conditions,
        suite: &S,
    ) -> Effect<P, S::Key, C>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let tag = suite.tag(&record.psk, &self.context, Proof::Confirmed);
        let seen = record.seen && !conditions.drained;
        Effect::Send(Message::Confirmed { context: Arc::clone(&self.context), tag, seen })
    }

    fn adopt(&mut self, record: Record<P>, now: Duration) {
        self.record = Some(record);
        self.attempt = Attempt::None;
        self.lost = false;
        self.tried = false;
        self.refused = None;
        self.due = now + FIRST_DELAY;
        self.tries = 1;
    }
}

#[cfg(test)]
mod tests;
