//! The pre-shared keys of this node's pairs: drives a [`keyring::psk::Pact`] for each with what a turn sees, and carries out
//! what it says. The plan puts keys on slots; what the exchanges want to say is said only when the devices have taken them.
//!
//! A record is kept while its node is gone, or announces other keys or none that can be read: a node that comes back with its
//! keys insists on what both had agreed, and an announcement may have been changed by others for a moment. It goes when
//! another one takes its place, or when this node's own key does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyring::LoadedStore;
use keyring::psk::{
    self, Context, Effect, End, Exchange, Input, KemKey, Letter, Message, MlKem, Mode, NodeId, Pact, Psk,
    PskId, PskStore, Random as _, Record, Sight, Standing, SystemRandom,
};
use mesh_core::diff::Observed;
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::pair;
use mesh_core::plan::{self, Desired};
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
    /// The keys of this node for which the disk was looked through.
    present: Option<[PublicKey; 2]>,
    /// What is on the disk.
    disk: BTreeMap<At, Record>,
    pacts: BTreeMap<NodeName, Pact>,
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
            present: None,
            disk: BTreeMap::new(),
            pacts: BTreeMap::new(),
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
                let name = NodeName::here(&peer.id, &psks.us.cluster);
                psks.disk.insert((name, slot), record.clone());
            }
        }
        Ok(psks)
    }

    /// `kem` and `kemRequired` of the announcement.
    pub(super) fn kem(&self) -> (Option<[u8; 32]>, bool) {
        ((self.mode != Mode::Off).then(|| self.kem.hash()), self.mode == Mode::Require)
    }

    /// A WireGuard key was replaced: another ML-KEM key, as soon as nobody is about to answer to the present one.
    pub(super) fn wear(&mut self) {
        self.worn.get_or_insert_with(Instant::now);
    }

    fn renew(&mut self) {
        let Some(worn) = self.worn else { return };
        if self.machines().any(|(_, machine)| machine.offers()) && worn.elapsed() < WORN {
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
        self.outworn(keys);
        for delivery in mail {
            self.hear(view, observed, delivery);
        }
        let all: Vec<At> = self.machines().map(|(at, _)| at).collect();
        for at in &all {
            let sight = sight(view, observed, &at.0);
            let made = sight.and_then(|sight| self.pacts.get(&at.0)?.handshake(&sight, at.1));
            if let Some(handshake) = made {
                self.handle(view, observed, at, handshake, None);
            }
        }
        // Afterwards, since both slots decide about each.
        self.due = None;
        for at in &all {
            self.handle(view, observed, at, Input::Tick, None);
            let due = sight(view, observed, &at.0)
                .and_then(|sight| self.pacts.get(&at.0)?.due(&sight, at.1, self.started.elapsed()));
            self.due = [self.due, due].into_iter().flatten().min();
        }
        for name in peers {
            let Some((pact, sight)) = self.pacts.get(&name).zip(sight(view, observed, &name)) else {
                continue;
            };
            let wants = pact.wants(&sight, self.nobodys.id());
            wants.complete(view.pairs.entry(name).or_default());
        }
        !self.failed
    }

    /// Every exchange.
    fn machines(&self) -> impl Iterator<Item = (At, &Exchange)> {
        self.pacts
            .iter()
            .flat_map(|(name, pact)| pact.machines().map(|(slot, machine)| ((name.clone(), slot), machine)))
    }

    fn machine(&self, (name, slot): &At) -> Option<&Exchange> {
        self.pacts.get(name)?.machine(*slot)
    }

    /// Machines for the present keys of every pair.
    fn meet(&mut self, view: &ClusterView, peers: &BTreeSet<NodeName>, keys: &LoadedStore) {
        for name in peers {
            self.gone.remove(name);
            let Some(theirs) = view.nodes.get(name).and_then(NodeFacts::announced) else { continue };
            for slot in Slot::ALL {
                let (key, id) = (keys.slot(slot), name.id(&self.us.cluster));
                let own = End { id: self.us.clone(), key: key.public(), epoch: key.epoch };
                let their = theirs.slot(slot);
                let their = End { id, key: their.public_key, epoch: their.epoch };
                // Equal keys are refused elsewhere, with their reason.
                let Ok(context) = Context::new(slot, own, their) else { continue };
                let at = (name.clone(), slot);
                let kept = self.disk.get(&at).cloned();
                let pact =
                    self.pacts.entry(name.clone()).or_insert_with(|| Pact::new(self.us.clone(), self.mode));
                if let Ok(Some(effects)) = pact.meet(context, kept, self.started.elapsed()) {
                    self.trouble.remove(&at);
                    self.begun(&at, &effects);
                }
            }
        }
    }

    /// What is to be installed the plan takes from the exchange's record; it says nothing before it has heard or seen something.
    fn begun(&mut self, at: &At, effects: &[Done]) {
        self.outbox.retain(|(of, ..)| of != at);
        if effects.iter().any(|effect| matches!(effect, Effect::Remove { .. })) {
            self.remove(at);
        }
    }

    /// Puts away the machines of who is no peer at present.
    fn part(&mut self, view: &ClusterView, peers: &BTreeSet<NodeName>) {
        for (name, pact) in &mut self.pacts {
            if !peers.contains(name) {
                pact.part();
            }
        }
        self.trouble.retain(|(name, _), _| peers.contains(name));
        if !view.synced {
            return;
        }
        self.pacts.retain(|name, _| view.nodes.contains_key(name));
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

    /// Removes what belongs to a former key of this node, also of who is gone or cannot be read: nothing is sent by it any more.
    fn outworn(&mut self, keys: &LoadedStore) {
        let present = Slot::ALL.map(|slot| keys.slot(slot).public());
        if self.present == Some(present) {
            return;
        }
        let ours = |record: &Record| {
            let ends = record.context.ends();
            ends.iter().any(|end| end.id == self.us && end.key == present[record.context.slot().index()])
        };
        let old: Vec<At> =
            self.disk.iter().filter(|(_, record)| !ours(record)).map(|(at, _)| at.clone()).collect();
        for at in &old {
            self.remove(at);
        }
        self.present = Some(present);
    }

    /// From the disk. What cannot be removed is tried again when the agent starts, and with the next record in its place.
    fn remove(&mut self, at: &At) {
        let peer = at.0.id(&self.us.cluster);
        self.disk.remove(at);
        if let Err(error) = self.store.remove(&peer, at.1) {
            tracing::error!(peer = %at.0, device = %at.1, err = %error, "Could not remove a pre-shared key");
        }
    }

    fn hear(&mut self, view: &ClusterView, observed: &Observed, Delivery { from, letter, reply }: Delivery) {
        if !view.nodes.contains_key(&from) {
            return;
        }
        let pact = self.pacts.entry(from.clone()).or_insert_with(|| Pact::new(self.us.clone(), self.mode));
        pact.hear(letter.mode);
        let Some(message) = letter.message else { return };
        let at = (from, message.context().slot());
        self.handle(view, observed, &at, Input::Message(message), reply);
    }

    fn handle(
        &mut self,
        view: &ClusterView,
        observed: &Observed,
        at: &At,
        input: Input,
        reply: Option<oneshot::Sender<Letter>>,
    ) {
        let Some(sight) = sight(view, observed, &at.0) else { return };
        let announced = view.nodes.get(&at.0).and_then(NodeFacts::announced).and_then(|theirs| theirs.kem);
        let Some(pact) = self.pacts.get_mut(&at.0).filter(|pact| pact.machine(at.1).is_some()) else {
            return;
        };
        let mut suite = MlKem { own: &self.kem, announced, random: &mut SystemRandom };
        let effects = pact.handle(at.1, input, &sight, self.started.elapsed(), &mut suite);
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
        let Some(peer) = self.machine(at).map(|machine| machine.peer().clone()) else { return };
        // The new one may be there all the same, where the old one's bytes could not be overwritten.
        match self.store.get(&peer, at.1) {
            Ok(Some(record)) => drop(self.disk.insert(at.clone(), record)),
            Ok(None) => drop(self.disk.remove(at)),
            Err(error) => {
                tracing::error!(peer = %at.0, device = %at.1, err = %error, "Could not read a pre-shared key")
            }
        }
        let (kept, now) = (self.disk.get(at).cloned(), self.started.elapsed());
        let again = self.pacts.get_mut(&at.0).map(|pact| pact.again(at.1, kept, now));
        if let Some(Ok(Some(effects))) = again {
            self.begun(at, &effects);
        }
    }

    /// May a handshake, of which no device tells, bring a pair on?
    pub(super) fn watches(&self, view: &ClusterView, observed: &Observed) -> bool {
        let now = self.started.elapsed();
        self.pacts.iter().any(|(name, pact)| {
            sight(view, observed, name).is_some_and(|sight| pact.watches(&sight, now, EAGER))
        })
    }

    /// The secrets of these keys.
    pub(super) fn secrets(&self, node: &NodeName, slot: Slot) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add(Arc::clone(&self.nobodys));
        if let Some(record) = self.machine(&(node.clone(), slot)).and_then(Exchange::record) {
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
        let all = std::mem::take(&mut self.outbox);
        let bare = |at: &At| self.machine(at).is_some_and(|machine| machine.record().is_none());
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
        let sayings = self.sayable(view, observed, unput);
        let ways = if sayings.is_empty() { BTreeMap::new() } else { ways(&desired.mesh, &desired.peer_mesh) };
        for ((name, _), message, reply) in sayings {
            let letter = Letter { mode: self.mode, message: Some(message) };
            if let Some(reply) = reply {
                drop(reply.send(letter));
                continue;
            }
            if let Some(way) = ways.get(&name).copied() {
                self.courier.send(name, way, &letter);
            }
        }
        self.renew();
    }

    /// What is wrong, with a code for each.
    pub(super) fn findings(&self, view: &ClusterView, observed: &Observed) -> Vec<(String, String)> {
        let finding = |code: &str, text: String| (code.to_owned(), text);
        let mut found: Vec<_> =
            self.refused.iter().map(|text| finding("psk-file-refused", text.clone())).collect();
        let now = self.started.elapsed();
        for (name, pact) in &self.pacts {
            let Some(sight) = sight(view, observed, name) else { continue };
            for (slot, machine) in pact.machines() {
                // Who does not talk at all is missed for other reasons.
                let overdue = pact.overdue(&sight, slot, now, OVERDUE).filter(|_| pact.talks(&sight));
                found.extend(overdue.map(|problem| finding("psk-overdue", problem.to_string())));
                let trouble = self.trouble.get(&(name.clone(), slot));
                if let Some(text) = trouble.filter(|_| machine.standing() != Standing::Open) {
                    found.push(finding("psk-trouble", text.clone()));
                }
            }
            let conflict = pact.conflict(&sight);
            found
                .extend(conflict.map(|conflict| finding("post-quantum-mode-conflict", conflict.to_string())));
        }
        found
    }

    /// The pre-shared key that there is with a node for a slot, whichever WireGuard key of theirs it belongs to.
    pub(super) fn agreed(&self, node: &NodeName, slot: Slot) -> Option<PskId> {
        self.disk.get(&(node.clone(), slot)).map(|record| record.id)
    }

    /// Peers' keys at which both sides have seen a pre-shared key at work, and which.
    pub(super) fn at_work(&self) -> impl Iterator<Item = (NodeName, Slot, PublicKey, PskId)> + '_ {
        let open = self.machines().filter(|(_, machine)| machine.standing() == Standing::Open);
        open.filter_map(|((name, slot), machine)| {
            let their = machine.context().ends().iter().find(|end| end.id != self.us)?;
            Some((name, slot, their.key, machine.record()?.id))
        })
    }

    /// How many slots of pairs have a key that both sides have seen at work, and how many are to have one.
    pub(super) fn count(&self, view: &ClusterView, observed: &Observed) -> (usize, usize) {
        let is_open = |machine: &Exchange| machine.standing() == Standing::Open;
        let open = self.machines().filter(|(_, machine)| is_open(machine)).count();
        let waiting = |(name, pact): (&NodeName, &Pact)| {
            let agrees = sight(view, observed, name).is_some_and(|sight| pact.effective(&sight).agrees());
            pact.machines().filter(|(_, machine)| agrees && !is_open(machine)).count()
        };
        (open, self.pacts.iter().map(waiting).sum())
    }
}

/// From which of our mesh addresses to which of theirs letters to each peer go: the first of theirs that is of a family of
/// ours.
fn ways<'a>(
    mesh: &BTreeSet<IpAddr>,
    peers: &'a BTreeMap<IpAddr, NodeName>,
) -> BTreeMap<&'a NodeName, (IpAddr, IpAddr)> {
    let mut ways = BTreeMap::new();
    for (at, name) in peers {
        if let Some(from) = mesh.iter().find(|from| mesh_core::prefix::same_family(**from, *at)) {
            ways.entry(name).or_insert((*from, *at));
        }
    }
    ways
}

/// What a turn sees of the pair with a node.
fn sight(view: &ClusterView, observed: &Observed, name: &NodeName) -> Option<Sight> {
    let theirs = view.nodes.get(name)?.announced()?;
    let facts = view.pairs.get(name).cloned().unwrap_or_default();
    let entry = |slot: Slot| {
        let entry = observed.devices.get(&slot)?.peers.get(&theirs.slot(slot).public_key)?;
        Some(entry.psk)
    };
    Some(Sight {
        mode: theirs.psk_mode(),
        announced: pair::target((&view.us(), view.drains()), (&view.id(name), theirs), facts.current),
        drained: [view.drains().wanted, mesh_core::slot::drained(theirs)],
        current: facts.current,
        links: facts.links,
        entries: Slot::ALL.map(entry),
    })
}

#[cfg(test)]
mod tests;
