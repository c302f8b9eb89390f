//! Both slots' exchanges with one peer, and what follows from them for the plan. Pure: an agent keeps one for each peer, and
//! the models of `tests` run the same.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::pair::{Link, PATIENCE};
use mesh_core::psk::{Ciphertext, Context, Mode, NodeId, PskId, SlotPsk};
use mesh_core::slot::Slot;
use mesh_core::view::PairFacts;

use super::exchange::{Conditions, Effect, Exchange, Input, NotOurs, Record};
use super::problem::PskProblem;
use super::secret::Psk;
use super::standing::{
    AllowedScope, Carry, Effective, ModeConflict, Standing, Verdict, instead, may_exchange, verdict,
};
use super::suite::Suite;

/// What is to be done first where an exchange has begun; none: it goes on.
pub type Met<P, K, C> = Option<Vec<Effect<P, K, C>>>;
type Effects<P, S> = Vec<Effect<P, <S as Suite>::Key, <S as Suite>::Ciphertext>>;

/// What a turn sees of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// The peer's mode by its announcement.
    pub mode: Mode,
    /// The slot that the announcements name: [`mesh_core::pair::target`].
    pub announced: Slot,
    /// The slot that this node drains or means to, and the one that the peer is known to drain.
    pub drained: [Option<Slot>; 2],
    /// Where this node's routes to the peer lead.
    pub current: Option<Slot>,
    /// Both slots.
    pub links: [Link; 2],
    /// The pre-shared key of the peer's entry in each device; none outside: no entry.
    pub entries: [Option<Option<PskId>>; 2],
}

/// What a pact wants of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wants {
    /// What belongs on each slot.
    pub psk: [SlotPsk; 2],
    /// May the pair use the slot?
    pub ready: [bool; 2],
    /// The entry is about to be made anew: what it shows of handshakes is over.
    pub renewed: [bool; 2],
    /// Where to talk whatever the announcements name.
    pub instead: Option<Slot>,
}

impl Wants {
    /// Completes the facts about a pair for the plan.
    pub const fn complete(&self, facts: &mut PairFacts) {
        let mut index = 0;
        while index < 2 {
            facts.psk[index] = self.psk[index];
            facts.links[index].ready = self.ready[index];
            if self.renewed[index] {
                facts.links[index].handshake_age = None;
            }
            index += 1;
        }
        facts.instead = self.instead;
    }
}

/// The exchanges of both slots with one peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pact<P = Psk, C = Ciphertext> {
    us: NodeId,
    mode: Mode,
    /// What the peer's last letter said.
    said: Option<Mode>,
    machines: [Option<Exchange<P, C>>; 2],
}

/// What is known of a pair in a turn.
struct Judged {
    effective: Effective,
    standing: [Standing; 2],
    announced: Slot,
    sending: Slot,
    verdicts: [Verdict; 2],
    carry: [Carry; 2],
}

/// Is nothing answered there?
fn deaf(link: &Link) -> bool {
    link.unanswered_for.is_some_and(|time| time >= PATIENCE)
}

impl<P, C: Clone> Pact<P, C> {
    /// Of this node, with its mode. It does nothing before [`Pact::meet`].
    pub const fn new(us: NodeId, mode: Mode) -> Self {
        Self { us, mode, said: None, machines: [None, None] }
    }

    /// The peer's keys of a slot and ours, and what is on the disk for it. Nothing happens where they are what they were.
    ///
    /// A record that differs by the peer's key alone stays on the disk: that key may come back. One of another own key goes.
    /// What belongs on the device says [`Pact::wants`].
    ///
    /// # Errors
    /// The context is of two other nodes.
    pub fn meet<K>(
        &mut self,
        context: Context,
        kept: Option<Record<P>>,
        now: Duration,
    ) -> Result<Met<P, K, C>, NotOurs> {
        let slot = context.slot();
        if self.machine(slot).is_some_and(|machine| **machine.context() == context) {
            return Ok(None);
        }
        self.begin(Arc::new(context), kept, now).map(Some)
    }

    /// Begins the exchange of a slot again with what is on the disk: an effect has failed.
    ///
    /// # Errors
    /// As [`Pact::meet`].
    pub fn again<K>(
        &mut self,
        slot: Slot,
        kept: Option<Record<P>>,
        now: Duration,
    ) -> Result<Met<P, K, C>, NotOurs> {
        let Some(machine) = &self.machines[slot.index()] else { return Ok(None) };
        let context = Arc::clone(machine.context());
        self.begin(context, kept, now).map(Some)
    }

    fn begin<K>(
        &mut self,
        context: Arc<Context>,
        kept: Option<Record<P>>,
        now: Duration,
    ) -> Result<Vec<Effect<P, K, C>>, NotOurs> {
        let own = |context: &Context| context.ends().iter().find(|end| end.id == self.us).cloned();
        let kept = kept.filter(|kept| kept.context == context || own(&kept.context) != own(&context));
        let slot = context.slot();
        let (machine, effects) = Exchange::start(context, &self.us, kept, now)?;
        self.machines[slot.index()] = Some(machine);
        Ok(effects)
    }

    /// The peer is none at present: its exchanges are put away. What its last letter said is remembered.
    pub fn part(&mut self) {
        self.machines = [None, None];
    }

    /// The exchange of a slot.
    pub const fn machine(&self, slot: Slot) -> Option<&Exchange<P, C>> {
        self.machines[slot.index()].as_ref()
    }

    /// Both exchanges, as far as they have begun.
    pub fn machines(&self) -> impl Iterator<Item = (Slot, &Exchange<P, C>)> {
        Slot::ALL.into_iter().filter_map(|slot| Some((slot, self.machine(slot)?)))
    }

    /// [`Exchange::hurry`].
    pub const fn hurry(&mut self, slot: Slot, now: Duration) {
        if let Some(machine) = &mut self.machines[slot.index()] {
            machine.hurry(now);
        }
    }

    /// What the peer's last letter said.
    pub const fn said(&self) -> Option<Mode> {
        self.said
    }

    /// A letter of the peer said its mode.
    pub const fn hear(&mut self, mode: Mode) {
        self.said = Some(mode);
    }

    /// The peer's mode, as far as this node knows. Whoever insists by either of its words is taken at that one.
    pub fn them(&self, sight: &Sight) -> Mode {
        match sight.mode {
            Mode::Off | Mode::Require => sight.mode,
            Mode::Prefer => self.said.unwrap_or(Mode::Prefer),
        }
    }

    fn judge(&self, sight: &Sight) -> Judged {
        let them = self.them(sight);
        let sending = sight.current.unwrap_or(sight.announced);
        let standing = Slot::ALL.map(|slot| self.machine(slot).map_or(Standing::Untried, Exchange::standing));
        let verdicts = Slot::ALL.map(|slot| verdict(self.mode, them, slot, sending, standing));
        let carry = Slot::ALL.map(|slot| {
            if deaf(&sight.links[slot.index()]) { Carry::No } else { verdicts[slot.index()].carry }
        });
        let effective = Effective::of(self.mode, them);
        Judged { effective, standing, announced: sight.announced, sending, verdicts, carry }
    }

    /// What the exchange of a slot cannot know by itself.
    pub fn conditions(&self, sight: &Sight, slot: Slot, now: Duration) -> Conditions {
        let judged = self.judge(sight);
        Conditions {
            now,
            agree: judged.effective.agrees(),
            idle: may_exchange(slot, judged.sending, judged.carry),
            // Where a drain yields to the peer's the pair is to come here.
            drained: sight.drained[0] == Some(slot) && sight.announced != slot,
        }
    }

    /// Something happened to the exchange of a slot. What to do, in this order; before anything else happens to it.
    pub fn handle<S>(
        &mut self,
        slot: Slot,
        input: Input<S::Key, C>,
        sight: &Sight,
        now: Duration,
        suite: &mut S,
    ) -> Effects<P, S>
    where
        S: Suite<Psk = P, Ciphertext = C>,
    {
        let conditions = self.conditions(sight, slot, now);
        let machine = self.machines[slot.index()].as_mut();
        machine.map_or_else(Vec::new, |machine| machine.handle(input, conditions, suite))
    }

    /// A handshake on a slot of which its exchange has to hear.
    ///
    /// An entry is made anew with each other pre-shared key, so what it shows was made with this one; and with both sides'
    /// present keys, if it is younger than they are.
    pub fn handshake<K>(&self, sight: &Sight, slot: Slot) -> Option<Input<K, C>> {
        let machine = self.machine(slot)?;
        if !matches!(machine.standing(), Standing::Untried | Standing::Unproven) {
            return None;
        }
        let on = sight.entries[slot.index()]?;
        let link = &sight.links[slot.index()];
        let made = link.keys_for.zip(link.handshake_age).is_some_and(|(keys, age)| age < keys);
        made.then_some(Input::Handshake { on })
    }

    /// When the exchange of a slot has to speak next.
    pub fn due(&self, sight: &Sight, slot: Slot, now: Duration) -> Option<Duration> {
        self.machine(slot)?.due(self.conditions(sight, slot, now))
    }

    /// What the plan is to know. `nobodys` names a key that nobody else has.
    pub fn wants(&self, sight: &Sight, nobodys: PskId) -> Wants {
        let judged = self.judge(sight);
        let agreed = Slot::ALL.map(|slot| self.machine(slot)?.record().map(|record| record.id));
        let ids = Slot::ALL.map(|slot| {
            if judged.verdicts[slot.index()].placeholder { Some(nobodys) } else { agreed[slot.index()] }
        });
        let psk = Slot::ALL.map(|slot| {
            let at = slot.index();
            // What is drained is to be silent and has no future, but while it is the only one that can carry pods' packets.
            let other = slot.other().index();
            let needless =
                judged.carry[other] == Carry::Psk && judged.verdicts[other].scope == AllowedScope::All;
            let left = sight.drained.contains(&Some(slot)) && sight.announced != slot && needless;
            // Where nobody sends, nothing would show that it works again.
            let lost = agreed[at].is_some() && deaf(&sight.links[at]) && judged.sending != slot;
            SlotPsk {
                id: ids[at],
                confined: judged.verdicts[at].accept == AllowedScope::MeshOnly,
                withheld: judged.verdicts[at].scope == AllowedScope::MeshOnly,
                prove: !left
                    && (lost || matches!(judged.standing[at], Standing::Unproven | Standing::Proven)),
            }
        });
        // Where the two sides may have different keys nobody may go, except to find out that they have the same.
        let ready = Slot::ALL.map(|slot| {
            let at = slot.index();
            !judged.verdicts[at].placeholder
                && !matches!(judged.standing[at], Standing::Answered | Standing::Lost)
        });
        let renewed =
            Slot::ALL.map(|slot| sight.entries[slot.index()].is_some_and(|entry| entry != ids[slot.index()]));
        let instead = instead(judged.announced, judged.effective, &judged.verdicts);
        Wants { psk, ready, renewed, instead }
    }

    /// May a handshake, of which no device tells, bring the pair on? `eager`: for how long after the beginning of an exchange.
    pub fn watches(&self, sight: &Sight, now: Duration, eager: Duration) -> bool {
        let agrees = self.judge(sight).effective.agrees();
        let young = |machine: &Exchange<P, C>| now.saturating_sub(machine.since()) < eager;
        agrees && self.machines().any(|(_, machine)| machine.standing() != Standing::Open && young(machine))
    }

    /// A key that is missing for too long ([`Exchange::overdue`]).
    pub fn overdue(
        &self,
        sight: &Sight,
        slot: Slot,
        now: Duration,
        patience: Duration,
    ) -> Option<PskProblem> {
        self.machine(slot)?.overdue(self.conditions(sight, slot, now), patience)
    }

    /// Does the pair talk at all? Who does not is missed for other reasons than its keys.
    pub fn talks(&self, sight: &Sight) -> bool {
        self.judge(sight).carry.iter().any(|carry| *carry >= Carry::Plain)
    }

    /// One insists on pre-shared keys and the other takes no part.
    pub fn conflict(&self, sight: &Sight) -> Option<ModeConflict> {
        let peer = self.machines().next()?.1.peer();
        ModeConflict::of((&self.us, self.mode), (peer, self.them(sight)))
    }

    /// What the modes of both amount to.
    pub fn effective(&self, sight: &Sight) -> Effective {
        Effective::of(self.mode, self.them(sight))
    }
}
