//! Replacing both keys of a node while its pairs go on talking (design D3).
//!
//! ```text
//!        due, or asked for                         when it has ended
//!   ┌──────┐  (both keys announced)  ┌──────────────┐ ─────────────► ┌──────────────┐
//!   │ idle │ ───────┬──────────────► │ waiting: one │                │ draining one │ silent, or the deadline:
//!   └──────┘        │ a smaller name └──────────────┘        ┌─────► └──────────────┘ new key, record
//!      ▲            │ drains zero                            │              │
//!      │            └────────────────────────────────────────┘ else         │
//!      │                                                                    │ a smaller name
//!      │                             ┌───────────────┐          ┌───────────┤ drains one
//!      │  silent, or the deadline:   │ draining zero │ ◄── else ┼───────────┘
//!      └──────────────────────────── └───────────────┘          ▼
//!         new key, record                    ▲         ┌───────────────┐
//!                                            └──────── │ waiting: zero │
//!                                  when it has ended   └───────────────┘
//! ```
//!
//! Within *draining*:
//!
//! ```text
//!   wanted ──the API shows it──► accepted (the deadline runs) ──silent | deadline──► verdict ──► key replaced
//!                                    ▲          │                                                    │
//!                                    └──────────┘ peers asked                    device has it ──► record, next
//! ```
//!
//! **Order.** Slot one first: nobody talks there, so its key is replaced without moving a pair, and when zero drains
//! its pairs move to a key that is new already. A pair that cannot move holds up zero alone, and then everybody else is on a
//! new key; and the key in use is given up only after peers shook hands with its successor. Both orders move a pair
//! twice. The new key of one and the drain of zero are announced in one write: three per rotation,
//! four where it has to wait in between.
//!
//! **Silent** means: this node's routes lead none of its peers into the slot; the API has shown the drain and the device
//! has received nothing for [`Settings::quiet`]; no peer has shaken hands there within that time (it would be about to
//! move in); and every peer answers by the other slot ([`Proof`]).
//!
//! **Gone** is a peer whose Node has been dead for [`Settings::gone`] by the API's word *and* of which this node itself has
//! heard nothing for [`UNHEARD`] more, though it asked all the time, by whatever way leads there, and tried handshakes on both slots:
//! nobody waits for it. Either alone
//! proves nothing: a kubelet that has stopped leaves the pods of its node talking, and a peer that answers nothing may be cut
//! off for a moment. What comes back reads the new keys as a node does that starts. One that died in the middle of its own rotation is gone for
//! slots that drain, but none is begun any sooner for that (below): it would go on where it was. A rotation that is [`Proof::Silence`]
//! asks nobody, so nobody is gone for it.
//!
//! **A slot is not begun** while a peer of a smaller name is known to drain the other one. Our drain would go before
//! its ([`mesh_core::slot::pair_slot`]) and send the pair back to where it has just left, perhaps when the key there is
//! gone. Towards a greater name ours waits in the middle, and its deadline with it.
//!
//! **Crashes.** What is announced follows from the persisted state and the key files. A slot that was judged silent is
//! judged again after a crash, up to the moment that the device has the new key; from there on nothing is judged. So the
//! new key is staged in a file, then installed in the device, then the file becomes the slot's: a key file that went
//! first would have to be followed by the device after any time, when somebody may have moved in. Any prefix of the
//! effects may have happened. The record may be written twice, never not at all.
//!
//! **The agent** takes a machine's steps first in a turn, then plans and programs, and announces last and only what
//! its devices have: `Machine::draining`, and the keys of the store.
//!
//! What remains: between looking and replacing (milliseconds) a peer can still move in, if it has not heard of the drain
//! for the whole of the quiet time. It is told the new key as all are, and leaves what does not answer within
//! [`mesh_core::pair::PATIENCE`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_core::name::NodeName;
use mesh_core::slot::Slot;

mod effect;
mod facts;
mod schedule;
mod state;

pub use effect::{Destroyed, Effect, Overdue};
pub use facts::{Now, Observed, PeerFacts, Proof, Settings, SlotFacts};
pub use schedule::{due, jitter};
pub use state::{
    Cause, Fingerprint, KeyId, Laggard, REQUEST_MAX, Request, Rotation, Stage, State, StateError, Verdict,
};

/// The slots in the order in which their keys are replaced.
pub const ORDER: [Slot; 2] = [Slot::One, Slot::Zero];

/// Oldest answer on which a slot is judged silent. Fresh, since a peer may move in again after it answered. One to the
/// question that was asked last is fresh for longer, up to [`ANSWER_LATE`]: where steps are slow there is no younger one.
pub const ANSWER_MAX: Duration = Duration::from_secs(3);
/// See [`ANSWER_MAX`].
const ANSWER_LATE: Duration = Duration::from_secs(30);
/// While a slot is not silent for other reasons, its peers are asked no more often than this: it only serves a report.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// When all else is silent they are asked with every step, but for those that have answered since.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// For how long a peer has to leave questions unanswered before it may count as gone: handshakes are begun again every 5 s
/// (WireGuard paper, section 6.1), so six of them were lost in a row, or nobody is there.
pub const UNHEARD: Duration = Duration::from_secs(30);
/// Deadlines for which a node waits, at most, for greater names to end theirs. Among nodes whose drains all end at
/// their deadlines one or two are waited for; one that never ends has no agent any more.
const YIELD_MAX: u32 = 6;
/// Deadlines for which a smaller name's drain keeps ours from beginning: it should have ended in one.
const POLITE_MAX: u32 = 2;

/// The rotation of one node. Equal machines, facts and times give equal steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    state: State,
    memory: Memory,
}

/// What an agent forgets when it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Memory {
    /// Since when the API has shown the drain, by [`Now::uptime`].
    accepted_at: Option<Duration>,
    /// When the drain last waited for a greater name's.
    yielded_at: Option<Duration>,
    /// Since when a smaller name's drain has kept ours from beginning.
    polite_since: Option<Duration>,
    /// When peers were last asked for an answer.
    asked_at: Option<Duration>,
}

/// What a machine does at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The machine afterwards. To be adopted when every effect has been done; where one failed, the old machine stays,
    /// and what was done already is safe to repeat.
    pub next: Machine,
    /// What to do, in this order.
    pub effects: Vec<Effect>,
}

impl Machine {
    /// Goes on from what was persisted.
    pub fn resume(state: State) -> Self {
        Self { state, memory: Memory::default() }
    }

    /// What has to be persisted.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The slot that this node has to announce as draining: with the keys of the store, the whole announcement. It
    /// is to be written after the last step of a turn.
    pub fn draining(&self) -> Option<Slot> {
        let rotation = self.state.rotation.as_ref()?;
        match rotation.stage {
            Stage::Draining { .. } => Some(rotation.slot),
            Stage::Waiting => None,
        }
    }

    /// One step: at every change of the facts, and once a second while a rotation is in progress. Steps are repeated
    /// until one has no effect but [`Effect::Ask`].
    pub fn step(&self, settings: &Settings, observed: &Observed<'_>, now: Now) -> Step {
        let mut turn = Turn {
            settings,
            observed,
            now,
            state: self.state.clone(),
            memory: self.memory.clone(),
            effects: Vec::new(),
        };
        if turn.follow() {
            return Step { next: self.clone(), effects: turn.effects };
        }
        turn.remember();
        match turn.state.rotation.clone() {
            None => turn.idle(),
            Some(Rotation { cause, slot, stage: Stage::Waiting }) => turn.begin(cause, slot),
            Some(Rotation { cause, slot, stage: Stage::Draining { old, verdict } }) => {
                if observed.slot(slot).epoch == old.epoch {
                    turn.draining(cause, slot, old, verdict);
                } else {
                    turn.replaced(cause, slot, old, verdict);
                }
            }
        }
        let Turn { state, memory, mut effects, .. } = turn;
        if state != self.state {
            // Nothing is done before it is known what is being done, but for the record of what was: that comes
            // first, since the state that is persisted next has forgotten it.
            let at = effects.iter().take_while(|effect| matches!(effect, Effect::Destroyed(_))).count();
            effects.insert(at, Effect::Persist);
        }
        Step { next: Self { state, memory }, effects }
    }
}

/// A step in the making.
struct Turn<'a> {
    settings: &'a Settings,
    observed: &'a Observed<'a>,
    now: Now,
    state: State,
    memory: Memory,
    effects: Vec<Effect>,
}

impl Turn<'_> {
    /// A device that runs the staged key already is followed by its file, whatever the state says: else the plan
    /// would give the device the old key again. Says whether there is one.
    fn follow(&mut self) -> bool {
        for slot in Slot::ALL {
            let facts = self.observed.slot(slot);
            if facts.staged.is_some_and(|staged| facts.device == Some(staged)) {
                self.effects.push(Effect::Commit { slot });
            }
        }
        !self.effects.is_empty()
    }

    /// A request that comes during a rotation is done afterwards, even when it is withdrawn.
    fn remember(&mut self) {
        let Some(rotation) = &self.state.rotation else { return };
        let request = Request::of(self.observed.request);
        let served = matches!(&rotation.cause, Cause::Request(served) if Some(served) == request.as_ref());
        if request.is_some() && request != self.state.done && !served {
            self.state.pending = request;
        }
    }

    fn idle(&mut self) {
        let pending = self.state.pending.clone();
        let asked = pending
            .or_else(|| Request::of(self.observed.request))
            .filter(|r| Some(r) != self.state.done.as_ref());
        let due = || due(self.settings, self.observed, self.now).is_some_and(|due| due <= self.now.unix);
        let cause = match asked {
            Some(request) => Cause::Request(request),
            None if due() => Cause::Schedule,
            None if self.observed.successor => Cause::Tunnel,
            None => return,
        };
        if self.observed.synced && self.observed.shows(None) {
            self.begin(cause, ORDER[0]);
        }
    }

    /// Begins to drain a slot, or waits until it can.
    fn begin(&mut self, cause: Cause, slot: Slot) {
        let ready = self.observed.synced && self.usable(slot.other()) && !self.must_wait(slot);
        let stage = if ready { self.drain(slot) } else { Stage::Waiting };
        self.state.rotation = Some(Rotation { cause, slot, stage });
    }

    fn drain(&mut self, slot: Slot) -> Stage {
        self.memory = Memory::default();
        let key = self.observed.slot(slot);
        let old = KeyId { epoch: key.epoch, fingerprint: Fingerprint::of(&key.public) };
        Stage::Draining { old, verdict: None }
    }

    /// Pairs can talk there: its device has the key that peers know or will know.
    fn usable(&self, slot: Slot) -> bool {
        let slot = self.observed.slot(slot);
        slot.device == Some(slot.public)
    }

    /// Does a peer drain the other slot that our drain would overtake?
    fn must_wait(&mut self, slot: Slot) -> bool {
        // Gone or not: it may come back at this moment, and go on with its drain before it hears of ours.
        let overtaken = |peer: &PeerFacts<'_>| peer.drained == Some(slot.other()) && peer.smaller;
        if !self.observed.peers.iter().any(overtaken) {
            self.memory.polite_since = None;
            return false;
        }
        let since = *self.memory.polite_since.get_or_insert(self.now.uptime);
        self.now.uptime.saturating_sub(since) < self.settings.deadline * POLITE_MAX
    }

    /// Is its Node dead by the API's word, for long enough to be looked into?
    fn doubted(&self, peer: &PeerFacts<'_>) -> bool {
        let gone = self.settings.gone;
        !gone.is_zero() && peer.doubted_for.is_some_and(|since| since >= gone)
    }

    /// Nobody has heard of it: neither the cluster nor this node. Handshakes on both slots are tried from the moment on at which it
    /// is doubted, and it may have left questions unanswered for longer than that.
    fn gone(&self, peer: &PeerFacts<'_>) -> bool {
        let tried = |since: Duration| since.saturating_sub(self.settings.gone) >= UNHEARD;
        self.settings.proof == Proof::Answers
            && self.doubted(peer)
            && peer.doubted_for.is_some_and(tried)
            && peer.unheard_for.is_some_and(|since| since >= UNHEARD)
    }

    fn draining(&mut self, cause: Cause, slot: Slot, old: KeyId, before: Option<Verdict>) {
        if !self.observed.shows(Some(slot)) {
            self.memory.accepted_at = None;
            return;
        }
        let accepted_at = *self.memory.accepted_at.get_or_insert(self.now.uptime);
        let (mut left, mut only_answers_lack, mut yields) = (true, true, false);
        let asked = self.memory.asked_at.map_or(Duration::ZERO, |at| self.now.uptime.saturating_sub(at));
        let fresh = asked.clamp(ANSWER_MAX, ANSWER_LATE);
        let there = self.observed.peers.iter().filter(|peer| !self.gone(peer));
        for laggard in there.filter_map(|peer| self.laggard(slot, peer, fresh)) {
            left = false;
            only_answers_lack &= laggard == Laggard::Silent;
            yields |= laggard == Laggard::Yielded;
        }
        if yields {
            self.memory.yielded_at = Some(self.now.uptime);
        }
        // The announcement needs its time to get around, however long the slot has been idle.
        let heard = self.now.uptime.saturating_sub(accepted_at) >= self.settings.quiet;
        let quiet = heard && self.observed.slot(slot).quiet_for >= self.settings.quiet;
        let known = self.observed.synced && self.usable(slot.other());
        let verdict = if !known {
            None
        } else if quiet && left {
            Some(Verdict { gone: self.all_gone(), ..Verdict::default() })
        } else if self.too_late(accepted_at) {
            // Whoever answered when it was last asked is not to be accused.
            let overdue = self.laggards(slot, ASK_EVERY * 2);
            Some(Verdict { overdue, noisy: !quiet, gone: self.all_gone() })
        } else {
            None
        };
        let Some(verdict) = verdict else {
            self.ask(slot, quiet && only_answers_lack);
            return;
        };
        let in_use = verdict.in_use();
        // Nobody asked for new keys here: a tunnel that waits is worth no pair's traffic.
        let kept = in_use && cause == Cause::Tunnel;
        if before.as_ref() != Some(&verdict) && in_use {
            let node = self.observed.node.clone();
            self.effects.push(Effect::Overdue(Overdue { node, slot, verdict: verdict.clone(), kept }));
        }
        if kept {
            self.memory = Memory::default();
            self.state.rotation = None;
            return;
        }
        let replace = [Effect::Stage { slot }, Effect::Install { slot }, Effect::Commit { slot }];
        self.effects.extend(replace);
        let stage = Stage::Draining { old, verdict: Some(verdict) };
        self.state.rotation = Some(Rotation { cause, slot, stage });
    }

    fn too_late(&self, accepted_at: Duration) -> bool {
        let since = |moment: Duration| self.now.uptime.saturating_sub(moment);
        let from = self.memory.yielded_at.unwrap_or(accepted_at).max(accepted_at);
        since(from) >= self.settings.deadline || since(accepted_at) >= self.settings.deadline * YIELD_MAX
    }

    /// Peers that have not been seen to leave a slot, by answers no older than `answer_max`, but for those that are gone.
    fn laggards(&self, slot: Slot, answer_max: Duration) -> BTreeMap<NodeName, Laggard> {
        let named = |peer: &PeerFacts<'_>| {
            self.laggard(slot, peer, answer_max).map(|laggard| (peer.name.clone(), laggard))
        };
        self.observed.peers.iter().filter(|peer| !self.gone(peer)).filter_map(named).collect()
    }

    /// Peers that are not waited for.
    fn all_gone(&self) -> BTreeSet<NodeName> {
        self.observed.peers.iter().filter(|peer| self.gone(peer)).map(|peer| peer.name.clone()).collect()
    }

    fn laggard(&self, slot: Slot, peer: &PeerFacts<'_>, answer_max: Duration) -> Option<Laggard> {
        let other = slot.other();
        if peer.target == slot {
            return Some(Laggard::Yielded);
        }
        if peer.sending != Some(other) {
            return Some(Laggard::Unconfirmed);
        }
        if self.settings.proof == Proof::Answers {
            match peer.answered {
                Some((by, age)) if age <= answer_max && by == other => {}
                Some((by, age)) if age <= answer_max && by == slot => return Some(Laggard::Present),
                Some(_) | None => return Some(Laggard::Silent),
            }
        }
        let knocks = peer.handshake_age[slot.index()].is_some_and(|age| age < self.settings.quiet);
        knocks.then_some(Laggard::Knocking)
    }

    /// Asks those whose answer is missing, as far as they can be asked: by routes that have left the slot. Those that may be
    /// gone are asked by any: an answer by the slot that is to be left is somebody who uses it.
    fn ask(&mut self, slot: Slot, only_answers_lack: bool) {
        let pace = if only_answers_lack { ASK_AGAIN } else { ASK_EVERY };
        let missing = |peer: &PeerFacts<'_>| {
            let doubted = self.doubted(peer);
            let pace = if doubted { ASK_AGAIN } else { pace };
            (peer.sending == Some(slot.other()) || doubted)
                && peer.answered.is_none_or(|(_, age)| age >= pace)
        };
        let peers = self.observed.peers.iter().filter(|peer| missing(peer));
        let peers: Vec<NodeName> = peers.map(|peer| peer.name.clone()).collect();
        if self.settings.proof == Proof::Answers && !peers.is_empty() {
            self.memory.asked_at = Some(self.now.uptime);
            self.effects.push(Effect::Ask { peers });
        }
    }

    /// The key file has a new key.
    fn replaced(&mut self, cause: Cause, slot: Slot, old: KeyId, verdict: Option<Verdict>) {
        let key = self.observed.slot(slot);
        if key.device.is_some_and(|device| device != key.public) {
            // The device still has the old one; the plan says otherwise.
            return;
        }
        self.effects.push(Effect::Destroyed(Destroyed {
            node: self.observed.node.clone(),
            slot,
            old,
            new: KeyId { epoch: key.epoch, fingerprint: Fingerprint::of(&key.public) },
            cause: cause.clone(),
            verdict,
        }));
        self.memory = Memory::default();
        if slot == ORDER[0] {
            self.begin(cause, ORDER[1]);
            return;
        }
        if let Cause::Request(request) = cause {
            self.state.pending = self.state.pending.take().filter(|pending| *pending != request);
            self.state.done = Some(request);
        }
        self.state.rotation = None;
    }
}

#[cfg(test)]
mod tests;
