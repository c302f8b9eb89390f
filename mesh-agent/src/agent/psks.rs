//! The pre-shared keys of this node's pairs: drives [`keyring::psk::Exchange`] with what a turn sees, and says what belongs
//! on each slot. The plan puts it there; what the machines want to say is said only when the devices have taken it.
//!
//! A record is kept while its node is gone, or announces other keys or none that can be read: a node that comes back with its
//! keys insists on what both had agreed, and an announcement may have been changed by others for a moment. It goes when
//! another one takes its place, or when this node's own key does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyring::LoadedStore;
use keyring::psk::{
    self, AllowedScope, Carry, Conditions, Context, Effect, Effective, End, Exchange, Input, KemKey, Letter,
    Message, MlKem, Mode, ModeConflict, NodeId, Psk, PskId, PskStore, Random as _, Record, Standing,
    SystemRandom, Verdict,
};
use mesh_core::diff::Observed;
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::pair;
use mesh_core::plan::{self, Desired};
use mesh_core::psk::SlotPsk;
use mesh_core::slot::Slot;
use mesh_core::view::{ClusterView, NodeFacts};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::letters::{Courier, Delivery};
use crate::wireguard::Psks as Secrets;

mod evidence;

/// A key that is missing for so long is reported.
const OVERDUE: Duration = Duration::from_secs(120);
/// Records of nodes that are gone, at most; those that are gone for longest go first.
const KEPT: usize = 10_000;
/// For how long handshakes that a machine waits for are looked for: no device tells of one. A peer that is away for longer costs
/// no more than any other.
const EAGER: Duration = Duration::from_secs(300);
/// How long a worn ML-KEM key waits for answers to it.
const WORN: Duration = Duration::from_secs(60);

type At = (NodeName, Slot);
/// About which key, what, and to which question; none: by itself.
type Saying = (At, Message, Option<oneshot::Sender<Letter>>);
type Done = Effect<Psk, psk::EncapsulationKey, psk::Ciphertext>;

/// What drives the machines.
pub struct Psks {
    us: NodeId,
    mode: Mode,
    store: PskStore,
    kem: KemKey,
    /// Since when a WireGuard key that it has served is replaced.
    worn: Option<Instant>,
    nobodys: Arc<Psk>,
    courier: Courier,
    started: Instant,
    /// What is on the disk.
    disk: BTreeMap<At, Record>,
    machines: BTreeMap<At, Exchange>,
    /// What each peer's last letter said.
    modes: BTreeMap<NodeName, Mode>,
    gone: BTreeMap<NodeName, Instant>,
    /// To be said when what was installed is on its device.
    outbox: Vec<Saying>,
    /// What went wrong, until the key is there.
    trouble: BTreeMap<At, String>,
    refused: Vec<String>,
    due: Option<Duration>,
    /// Something could not be written.
    failed: bool,
}

impl std::fmt::Debug for Psks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Psks").field("us", &self.us).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// One pair as a turn sees it.
struct Pair {
    them: Mode,
    standing: [Standing; 2],
    announced: Slot,
    sending: Slot,
    verdicts: [Verdict; 2],
    carry: [Carry; 2],
}

fn random<const N: usize>() -> anyhow::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom.fill(bytes.as_mut_slice())?;
    Ok(bytes)
}

impl Psks {
    /// Goes on from what the store has.
    ///
    /// # Errors
    /// The directory cannot be read, or there are no random bytes.
    pub fn load(us: NodeId, mode: Mode, store: PskStore, courier: Courier) -> anyhow::Result<Self> {
        let mut psks = Self {
            us,
            mode,
            store,
            kem: KemKey::from_seed(&random()?),
            worn: None,
            nobodys: Arc::new(Psk::placeholder(random()?)),
            courier,
            started: Instant::now(),
            disk: BTreeMap::new(),
            machines: BTreeMap::new(),
            modes: BTreeMap::new(),
            gone: BTreeMap::new(),
            outbox: Vec::new(),
            trouble: BTreeMap::new(),
            refused: Vec::new(),
            due: None,
            failed: false,
        };
        let loaded = psks.store.load()?;
        psks.refused = loaded.refused.iter().map(ToString::to_string).collect();
        let of_us = |record: &Record| record.context.role(&psks.us).is_some();
        let records: Vec<Record> = loaded.records.into_iter().filter(of_us).collect();
        for record in records {
            let slot = record.context.slot();
            if let Some(peer) = record.context.ends().iter().find(|end| end.id != psks.us) {
                psks.disk.insert((peer.id.node.clone(), slot), record.clone());
            }
        }
        Ok(psks)
    }

    /// `kem` of the announcement.
    pub(super) fn kem(&self) -> Option<[u8; 32]> {
        (self.mode != Mode::Off).then(|| self.kem.hash())
    }

    /// A WireGuard key was replaced: another ML-KEM key, as soon as nobody is about to answer to the present one.
    pub(super) fn wear(&mut self) {
        self.worn.get_or_insert_with(Instant::now);
    }

    fn renew(&mut self) {
        let Some(worn) = self.worn else { return };
        if self.machines.values().any(Exchange::offers) && worn.elapsed() < WORN {
            return;
        }
        match random() {
            Ok(seed) => {
                (self.kem, self.worn) = (KemKey::from_seed(&seed), None);
                // To announce it.
                self.due = Some(Duration::ZERO);
            }
            Err(error) => {
                tracing::error!(err = %error, "Could not make another ML-KEM key; the present one stays")
            }
        }
    }

    /// When the next message has to be repeated.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(self.started.elapsed()))
    }

    /// One turn: takes in what came and what is seen, and completes the facts about pairs for the plan. False: something could
    /// not be written.
    pub(super) fn turn(
        &mut self,
        view: &mut ClusterView,
        observed: &Observed,
        keys: &LoadedStore,
        mail: Vec<Delivery>,
    ) -> bool {
        self.failed = false;
        let peers = plan::peers(view);
        self.meet(view, &peers, keys);
        self.part(view, &peers);
        for delivery in mail {
            self.hear(view, delivery);
        }
        let all: Vec<At> = self.machines.keys().cloned().collect();
        for at in &all {
            if let Some(on) = self.handshake(view, observed, at) {
                self.handle(view, at, Input::Handshake { on }, None);
            }
        }
        // Afterwards, since both slots decide about each.
        self.due = None;
        for at in &all {
            self.handle(view, at, Input::Tick, None);
            let due = self.conditions(view, at).and_then(|now| self.machines.get(at)?.due(now));
            self.due = [self.due, due].into_iter().flatten().min();
        }
        for name in peers {
            self.complete(view, observed, &name);
        }
        !self.failed
    }

    /// Machines for the present keys of every pair.
    fn meet(&mut self, view: &ClusterView, peers: &BTreeSet<NodeName>, keys: &LoadedStore) {
        for name in peers {
            self.gone.remove(name);
            let Some(theirs) = view.nodes.get(name).and_then(NodeFacts::announced) else { continue };
            for slot in Slot::ALL {
                let (key, id) =
                    (keys.slot(slot), NodeId { node: name.clone(), cluster: self.us.cluster.clone() });
                let own = End { id: self.us.clone(), key: key.public(), epoch: key.epoch };
                let their = theirs.slot(slot);
                let their = End { id, key: their.public_key, epoch: their.epoch };
                // Equal keys are refused elsewhere, with their reason.
                let Ok(context) = Context::new(slot, own, their) else { continue };
                let at = (name.clone(), slot);
                if self.machines.get(&at).is_some_and(|machine| **machine.context() == context) {
                    continue;
                }
                self.trouble.remove(&at);
                self.begin(&at, Arc::new(context));
            }
        }
    }

    /// A machine with what is on the disk. A record that differs by the peer's key alone stays there: that key may come back.
    fn begin(&mut self, at: &At, context: Arc<Context>) {
        self.outbox.retain(|(of, ..)| of != at);
        let own = |context: &Context| context.ends().iter().find(|end| end.id == self.us).cloned();
        let record = self.disk.get(at).cloned();
        let record =
            record.filter(|record| record.context == context || own(&record.context) != own(&context));
        let started =
            Exchange::start::<psk::EncapsulationKey>(context, &self.us, record, self.started.elapsed());
        let Ok((machine, effects)) = started else { return };
        self.machines.insert(at.clone(), machine);
        // What is to be installed the plan takes from the machine's record; it says nothing before it has heard or seen something.
        if effects.iter().any(|effect| matches!(effect, Effect::Remove { .. })) {
            self.remove(at);
        }
    }

    /// Puts away the machines of who is no peer at present.
    fn part(&mut self, view: &ClusterView, peers: &BTreeSet<NodeName>) {
        let away: Vec<At> = self.machines.keys().filter(|(name, _)| !peers.contains(name)).cloned().collect();
        for at in away {
            self.trouble.remove(&at);
            self.machines.remove(&at);
        }
        if !view.synced {
            return;
        }
        self.modes.retain(|name, _| view.nodes.contains_key(name));
        let left: BTreeSet<NodeName> = self
            .disk
            .keys()
            .map(|(name, _)| name)
            .filter(|name| !view.nodes.contains_key(*name))
            .cloned()
            .collect();
        self.gone.retain(|name, _| left.contains(name));
        for name in &left {
            self.gone.entry(name.clone()).or_insert_with(Instant::now);
        }
        let mut by_time: Vec<(Instant, NodeName)> =
            self.gone.iter().map(|(name, since)| (*since, name.clone())).collect();
        by_time.sort();
        for (_, name) in by_time.iter().take(left.len().saturating_sub(KEPT)) {
            Slot::ALL.into_iter().for_each(|slot| self.remove(&(name.clone(), slot)));
        }
    }

    /// From the disk. What cannot be removed is tried again when the agent starts, and with the next record in its place.
    fn remove(&mut self, at: &At) {
        let peer = NodeId { node: at.0.clone(), cluster: self.us.cluster.clone() };
        self.disk.remove(at);
        if let Err(error) = self.store.remove(&peer, at.1) {
            tracing::error!(peer = %at.0, device = %at.1, err = %error, "Could not remove a pre-shared key");
        }
    }

    fn hear(&mut self, view: &ClusterView, Delivery { from, letter, reply }: Delivery) {
        if !view.nodes.contains_key(&from) {
            return;
        }
        self.modes.insert(from.clone(), letter.mode);
        let Some(message) = letter.message else { return };
        let at = (from, message.context().slot());
        self.handle(view, &at, Input::Message(message), reply);
    }

    /// Has a handshake been made on this slot, with what is on it? An entry is made anew with each other pre-shared key, so
    /// what it shows was made with this one; and with both sides' present keys, if it is younger than they are.
    fn handshake(&self, view: &ClusterView, observed: &Observed, at: &At) -> Option<Option<PskId>> {
        let machine = self.machines.get(at)?;
        if !matches!(machine.standing(), Standing::Untried | Standing::Unproven) {
            return None;
        }
        let key = &view.nodes.get(&at.0)?.announced()?.slot(at.1).public_key;
        let entry = observed.devices.get(&at.1)?.peers.get(key)?;
        let link = &view.pairs.get(&at.0)?.links[at.1.index()];
        let made = link.keys_for.zip(link.handshake_age).is_some_and(|(keys, age)| age < keys);
        made.then_some(entry.psk)
    }

    fn pair(&self, view: &ClusterView, name: &NodeName) -> Option<Pair> {
        let theirs = view.nodes.get(name)?.announced()?;
        let facts = view.pairs.get(name).cloned().unwrap_or_default();
        let announced = pair::target((&view.local.name, view.drains()), (name, theirs), facts.current);
        let said = self.modes.get(name).copied().unwrap_or_default();
        let them = if theirs.kem.is_some() { said } else { Mode::Off };
        let sending = facts.current.unwrap_or(announced);
        let standing = Slot::ALL.map(|slot| {
            self.machines.get(&(name.clone(), slot)).map_or(Standing::Untried, Exchange::standing)
        });
        let verdicts = Slot::ALL.map(|slot| psk::verdict(self.mode, them, slot, sending, standing));
        let carry = Slot::ALL.map(|slot| {
            let link = &facts.links[slot.index()];
            if link.unanswered_for.is_some_and(|time| time >= pair::PATIENCE) {
                Carry::No
            } else {
                verdicts[slot.index()].carry
            }
        });
        Some(Pair { them, standing, announced, sending, verdicts, carry })
    }

    fn conditions(&self, view: &ClusterView, (name, slot): &At) -> Option<Conditions> {
        let pair = self.pair(view, name)?;
        Some(Conditions {
            now: self.started.elapsed(),
            agree: Effective::of(self.mode, pair.them).agrees(),
            idle: psk::may_exchange(*slot, pair.sending, pair.carry),
        })
    }

    fn handle(&mut self, view: &ClusterView, at: &At, input: Input, reply: Option<oneshot::Sender<Letter>>) {
        let Some(conditions) = self.conditions(view, at) else { return };
        let announced = view.nodes.get(&at.0).and_then(NodeFacts::announced).and_then(|theirs| theirs.kem);
        let Some(machine) = self.machines.get_mut(at) else { return };
        let mut suite = MlKem { own: &self.kem, announced, random: &mut SystemRandom };
        let effects = machine.handle(input, conditions, &mut suite);
        self.perform(at, effects, reply);
    }

    fn perform(&mut self, at: &At, effects: Vec<Done>, mut reply: Option<oneshot::Sender<Letter>>) {
        for effect in effects {
            match effect {
                Effect::Persist(record) => match self.store.write(&record) {
                    Ok(()) => {
                        self.disk.insert(at.clone(), record);
                    }
                    Err(error) => {
                        tracing::error!(peer = %at.0, device = %at.1, err = %error, "Could not keep a pre-shared key");
                        self.crash(at);
                        return;
                    }
                },
                // The plan takes it from the record.
                Effect::Install { .. } => {}
                Effect::Remove { .. } => self.remove(at),
                Effect::Send(message) => self.outbox.push((at.clone(), message, reply.take())),
                Effect::Problem(problem) => {
                    tracing::warn!("{problem}");
                    self.trouble.insert(at.clone(), problem.to_string());
                }
            }
        }
        // Whoever asked hears our mode at least.
        if let Some(reply) = reply {
            drop(reply.send(Letter { mode: self.mode, message: None }));
        }
    }

    /// What could not be written is forgotten: the machine begins again with what is on the disk, before anything is planned.
    fn crash(&mut self, at: &At) {
        self.failed = true;
        let Some(machine) = self.machines.remove(at) else { return };
        // The new one may be there all the same, where the old one's bytes could not be overwritten.
        match self.store.get(machine.peer(), at.1) {
            Ok(Some(record)) => drop(self.disk.insert(at.clone(), record)),
            Ok(None) => drop(self.disk.remove(at)),
            Err(error) => {
                tracing::error!(peer = %at.0, device = %at.1, err = %error, "Could not read a pre-shared key")
            }
        }
        self.begin(at, Arc::clone(machine.context()));
    }

    /// What the plan needs to know of a pair.
    fn complete(&self, view: &mut ClusterView, observed: &Observed, name: &NodeName) {
        let Some(pair) = self.pair(view, name) else { return };
        let effective = Effective::of(self.mode, pair.them);
        let keys = view.nodes.get(name).and_then(NodeFacts::announced).map(|theirs| theirs.slots.clone());
        let facts = view.pairs.entry(name.clone()).or_default();
        for slot in Slot::ALL {
            let (verdict, standing) = (pair.verdicts[slot.index()], pair.standing[slot.index()]);
            let machine = self.machines.get(&(name.clone(), slot));
            let agreed = machine.and_then(|machine| machine.record()).map(|record| record.id);
            let id = if verdict.placeholder { Some(self.nobodys.id()) } else { agreed };
            let link = &mut facts.links[slot.index()];
            let entry = keys
                .as_ref()
                .and_then(|keys| observed.devices.get(&slot)?.peers.get(&keys[slot.index()].public_key));
            if entry.is_some_and(|entry| entry.psk != id) {
                // Its entry is about to be made anew.
                link.handshake_age = None;
            }
            // Where nobody sends, nothing would show that it works again.
            let deaf = link.unanswered_for.is_some_and(|time| time >= pair::PATIENCE);
            let lost = agreed.is_some() && deaf && pair.sending != slot;
            facts.psk[slot.index()] = SlotPsk {
                id,
                confined: verdict.accept == AllowedScope::MeshOnly,
                withheld: verdict.scope == AllowedScope::MeshOnly,
                prove: lost || matches!(standing, Standing::Unproven | Standing::Proven),
            };
            // Where the two sides may have different keys nobody may go, except to find out that they have the same.
            facts.links[slot.index()].ready =
                !verdict.placeholder && !matches!(standing, Standing::Answered | Standing::Lost);
        }
        facts.instead = psk::instead(pair.announced, effective, &pair.verdicts);
    }

    /// May a handshake, of which no device tells, bring a pair on?
    pub(super) fn watches(&self, view: &ClusterView) -> bool {
        let now = self.started.elapsed();
        self.machines.iter().any(|(at, machine)| {
            machine.standing() != Standing::Open
                && now.saturating_sub(machine.since()) < EAGER
                && self.conditions(view, at).is_some_and(|conditions| conditions.agree)
        })
    }

    /// The secrets of these keys.
    pub(super) fn secrets(&self, node: &NodeName, slot: Slot) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add(Arc::clone(&self.nobodys));
        if let Some(record) = self.machines.get(&(node.clone(), slot)).and_then(Exchange::record) {
            secrets.add(Arc::clone(&record.psk));
        }
        secrets
    }

    /// What may be said now that devices were programmed. `unput` are peers that could not be. Who has a key says so when its
    /// device has it, too; what is left unsaid is repeated.
    fn sayable(
        &mut self,
        view: &ClusterView,
        observed: &Observed,
        unput: &BTreeSet<(Slot, PublicKey)>,
    ) -> Vec<Saying> {
        let programmed = |(name, slot): &At| {
            let theirs = view.nodes.get(name).and_then(NodeFacts::announced);
            observed.devices.contains_key(slot)
                && theirs.is_some_and(|theirs| !unput.contains(&(*slot, theirs.slot(*slot).public_key)))
        };
        let bare = |at: &At| self.machines.get(at).is_some_and(|machine| machine.record().is_none());
        let all = std::mem::take(&mut self.outbox);
        all.into_iter().filter(|(at, ..)| bare(at) || programmed(at)).collect()
    }

    /// Says what there is to say.
    pub(super) fn speak(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        view: &ClusterView,
        unput: &BTreeSet<(Slot, PublicKey)>,
    ) {
        let mesh: Vec<_> = desired.mesh.iter().copied().collect();
        for ((name, _), message, reply) in self.sayable(view, observed, unput) {
            let letter = Letter { mode: self.mode, message: Some(message) };
            if let Some(reply) = reply {
                drop(reply.send(letter));
                continue;
            }
            let theirs = desired.peer_mesh.iter().filter(|(_, of)| **of == name).map(|(address, _)| *address);
            let ways = theirs.filter_map(|at| {
                let from = mesh.iter().find(|from| mesh_core::prefix::same_family(**from, at))?;
                Some((*from, at))
            });
            if let Some(way) = ways.into_iter().next() {
                self.courier.send(name, way, &letter);
            }
        }
        self.renew();
    }

    /// What is wrong, with a code for each.
    pub(super) fn findings(&self, view: &ClusterView) -> Vec<(String, String)> {
        let finding = |code: &str, text: String| (code.to_owned(), text);
        let mut found: Vec<_> =
            self.refused.iter().map(|text| finding("psk-file-refused", text.clone())).collect();
        for (at, machine) in &self.machines {
            let Some(conditions) = self.conditions(view, at) else { continue };
            // Who does not talk at all is missed for other reasons.
            let talks =
                self.pair(view, &at.0).is_some_and(|pair| pair.carry.iter().any(|c| *c >= Carry::Plain));
            if let Some(problem) = machine.overdue(conditions, OVERDUE).filter(|_| talks) {
                found.push(finding("psk-overdue", problem.to_string()));
            }
            if let Some(text) = self.trouble.get(at).filter(|_| machine.standing() != Standing::Open) {
                found.push(finding("psk-trouble", text.clone()));
            }
        }
        let peers: BTreeSet<&NodeName> = self.machines.keys().map(|(name, _)| name).collect();
        for name in peers {
            let Some(pair) = self.pair(view, name) else { continue };
            let them = NodeId { node: name.clone(), cluster: self.us.cluster.clone() };
            if let Some(conflict) = ModeConflict::of((&self.us, self.mode), (&them, pair.them)) {
                found.push(finding("post-quantum-mode-conflict", conflict.to_string()));
            }
        }
        found
    }

    /// The pre-shared key that there is with a node for a slot, whichever WireGuard key of theirs it belongs to.
    pub(super) fn agreed(&self, node: &NodeName, slot: Slot) -> Option<PskId> {
        self.disk.get(&(node.clone(), slot)).map(|record| record.id)
    }

    /// Peers' keys at which both sides have seen a pre-shared key at work, and which.
    pub(super) fn at_work(&self) -> impl Iterator<Item = (NodeName, Slot, PublicKey, PskId)> + '_ {
        let open = self.machines.iter().filter(|(_, machine)| machine.standing() == Standing::Open);
        open.filter_map(|((name, slot), machine)| {
            let their = machine.context().ends().iter().find(|end| end.id != self.us)?;
            Some((name.clone(), *slot, their.key, machine.record()?.id))
        })
    }

    /// How many slots of pairs have a key that both sides have seen at work, and how many are to have one.
    pub(super) fn count(&self, view: &ClusterView) -> (usize, usize) {
        let agrees = |at: &At| self.conditions(view, at).is_some_and(|conditions| conditions.agree);
        let is_open = |machine: &Exchange| machine.standing() == Standing::Open;
        let open = self.machines.values().filter(|machine| is_open(machine)).count();
        let waiting = self.machines.iter().filter(|(at, machine)| !is_open(machine) && agrees(at)).count();
        (open, waiting)
    }
}

#[cfg(test)]
mod tests;
