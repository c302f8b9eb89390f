//! The rotation of this node's keys: the facts for [`keyring::rotation`], and what it wants done.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyring::rotation::{Destroyed, Effect, KeyId, Machine, Now, PeerFacts, SlotFacts, State, Verdict};
use keyring::{LoadedStore, StoreError};
use mesh_core::diff::Observed;
use mesh_core::name::NodeName;
use mesh_core::pair;
use mesh_core::plan::{self, DesiredPeer};
use mesh_core::slot::{Slot, drained};
use mesh_core::view::{ClusterView, NodeFacts};

use super::answers::Answers;
use super::pairs::{only_way, ways};
use super::{Agent, announcement};
use crate::kernel::KernelState;
use crate::publish::Notice;
use crate::wireguard::CallError;

/// Pause between two looks when keys have been replaced, or a pair been about to move, for so long: a port that is blocked
/// for ever is not looked at twice a second for ever.
pub(super) fn pace(since: Duration) -> Duration {
    (since / 60).clamp(Duration::from_millis(500), Duration::from_secs(5))
}

/// Steps of one turn. A machine needs three at most; one that wants more is looked at again with the next turn.
const STEPS: usize = 8;

/// What drives the machine.
#[derive(Debug)]
pub struct Rotor {
    machine: Machine,
    started: Instant,
    /// Packets that each slot's device had received, and since when it is so many.
    received: [Option<(u64, Instant)>; 2],
    answers: Answers,
    /// Nodes that the API takes for dead, and since when this agent has known.
    doubted: BTreeMap<NodeName, Instant>,
    /// The key whose end was recorded last.
    recorded: Option<(Slot, KeyId)>,
}

/// Why a step could not be done; the next turn tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum RotateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    WireGuard(#[from] CallError),
    #[error("Could not write the record of destroyed keys {path}: {source}")]
    Record { path: String, source: std::io::Error },
    #[error("{slot} is handed over to another mesh-tunnel")]
    HandOver { slot: Slot },
}

impl Rotor {
    /// Goes on from what the store has.
    ///
    /// # Errors
    /// The file of the state cannot be read.
    pub fn load(keys: &LoadedStore) -> Result<Self, StoreError> {
        let state = match keys.rotation()?.map(|text| State::decode(&text)).transpose() {
            Ok(state) => state.unwrap_or_default(),
            Err(error) => {
                tracing::error!(err = %error, "Could not read where the rotation of keys was");
                State::default()
            }
        };
        let machine = Machine::resume(state);
        let (answers, doubted) = (Answers::default(), BTreeMap::new());
        Ok(Self { machine, started: Instant::now(), received: [None; 2], answers, doubted, recorded: None })
    }

    /// The slot that is to be announced as draining.
    pub fn draining(&self) -> Option<Slot> {
        self.machine.draining()
    }

    /// Are keys being replaced?
    pub(super) const fn turns(&self) -> bool {
        self.machine.state().rotation.is_some()
    }

    /// Peers that leave all questions unanswered, and whose Nodes are dead for long enough that they may be gone: what is left to try is
    /// a handshake on the slot into which no route leads.
    pub(super) fn seeks(&self, gone: Duration) -> impl Iterator<Item = &NodeName> {
        let turns = self.turns() && !gone.is_zero();
        let dead = self.doubted.iter().filter(move |(_, since)| turns && since.elapsed() >= gone);
        dead.map(|(name, _)| name).filter(|name| self.answers.unanswered_for(name).is_some())
    }

    /// Has it anything to do or to decide? Facts about thousands of peers are gathered for that alone.
    fn has_work(&self, agent: &Agent, request: Option<&str>, successor: bool) -> bool {
        let state = self.machine.state();
        let asked = keyring::rotation::Request::of(request);
        self.turns()
            || successor
            || state.pending.is_some()
            || (asked.is_some() && asked != state.done)
            || !agent.config.rotation.period.is_zero()
            || Slot::ALL.into_iter().any(|slot| agent.keys.staged(slot).is_some())
    }

    /// Looks at the counters of the devices and at the Nodes, once for each turn.
    fn listen(&mut self, view: &ClusterView, state: &KernelState, now: Instant) {
        let before = std::mem::take(&mut self.doubted);
        let unheard = view.nodes.iter().filter(|(_, node)| node.unheard).map(|(name, _)| name.clone());
        self.doubted = unheard
            .map(|name| {
                let since = before.get(&name).copied().unwrap_or(now);
                (name, since)
            })
            .collect();
        for slot in Slot::ALL {
            let count = state.links.get(slot.device()).map(|link| link.received);
            let known = &mut self.received[slot.index()];
            match (count, *known) {
                (Some(count), Some((before, _))) if before == count => {}
                (Some(count), _) => *known = Some((count, now)),
                (None, _) => *known = None,
            }
        }
    }
}

impl Agent {
    /// Steps of the rotation, before anything is planned: afterwards the view announces what it wants.
    pub(super) async fn rotate(
        &mut self,
        view: &mut ClusterView,
        observed: &mut Observed,
        state: &KernelState,
    ) -> Result<(), RotateError> {
        self.rotor.listen(view, state, Instant::now());
        let request = view.nodes.get(&self.node).and_then(|own| own.rotate.clone());
        if !self.rotor.has_work(self, request.as_deref(), self.tunnel_waits()) {
            return Ok(());
        }
        for _ in 0..STEPS {
            self.memory.succession.sees(self.rotor.machine.state(), Instant::now());
            let successor = self.tunnel_waits();
            let peers = plan::peers(view);
            let peers: BTreeMap<&NodeName, &NodeFacts> =
                view.nodes.iter().filter(|(name, _)| peers.contains(*name)).collect();
            let step = {
                let facts = self.peer_facts(view, observed, &peers);
                let facts = keyring::rotation::Observed {
                    node: &self.node,
                    slots: Slot::ALL.map(|slot| self.slot_facts(observed, slot)),
                    announced: view.nodes.get(&self.node).and_then(NodeFacts::announced),
                    synced: view.synced,
                    peers: &facts,
                    request: request.as_deref(),
                    successor,
                };
                self.rotor.machine.step(&self.config.rotation, &facts, self.now())
            };
            let mut idle = true;
            for effect in &step.effects {
                idle &= matches!(effect, Effect::Ask { .. });
                self.perform(effect, step.next.state(), view, observed).await?;
            }
            if !self.rotor.turns() {
                self.memory.succession.begun();
            }
            self.rotor.machine = step.next;
            view.local.announcement = announcement(&self.keys, self.rotor.draining(), self.psks.kem());
            if idle {
                break;
            }
        }
        Ok(())
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Now { uptime: self.rotor.started.elapsed(), unix }
    }

    fn slot_facts(&self, observed: &Observed, slot: Slot) -> SlotFacts {
        let key = self.keys.slot(slot);
        SlotFacts {
            epoch: key.epoch,
            public: key.public(),
            made: self.keys.made(slot),
            staged: self.keys.staged(slot).map(keyring::SlotKey::public),
            device: observed.devices.get(&slot).and_then(|device| device.public_key),
            quiet_for: self.rotor.received[slot.index()].map_or(Duration::ZERO, |(_, since)| since.elapsed()),
        }
    }

    fn peer_facts<'a>(
        &self,
        view: &ClusterView,
        observed: &Observed,
        peers: &BTreeMap<&'a NodeName, &'a NodeFacts>,
    ) -> Vec<PeerFacts<'a>> {
        let ways = ways(&observed.routes);
        let facts = |(name, node): (&&'a NodeName, &&'a NodeFacts)| {
            let theirs = node.announced()?;
            let current = view.pairs.get(*name).and_then(|pair| pair.current);
            let age = |slot: Slot| {
                let device = observed.devices.get(&slot)?;
                device.peers.get(&theirs.slot(slot).public_key)?.handshake_age
            };
            let asked = self.rotor.answers.unanswered_for(name);
            let unheard = self.memory.pairs.unheard_for(observed, node, Instant::now());
            Some(PeerFacts {
                name,
                smaller: view.id(name) < view.us(),
                drained: drained(theirs),
                target: pair::target((&view.us(), view.drains()), (&view.id(name), theirs), current),
                sending: only_way(&ways, node),
                answered: self.rotor.answers.of(name),
                handshake_age: Slot::ALL.map(age),
                doubted_for: self.rotor.doubted.get(*name).map(Instant::elapsed),
                unheard_for: asked.zip(unheard).map(|(asked, unheard)| asked.min(unheard)),
            })
        };
        peers.iter().filter_map(facts).collect()
    }

    async fn perform(
        &mut self,
        effect: &Effect,
        next: &State,
        view: &ClusterView,
        observed: &mut Observed,
    ) -> Result<(), RotateError> {
        match effect {
            Effect::Persist => self.keys.save_rotation(&next.encode())?,
            Effect::Overdue(overdue) => {
                tracing::warn!("{overdue}");
                self.notice("RotationOverdue", overdue.to_string(), true);
            }
            Effect::Stage { slot } => {
                let epoch = self.keys.stage(*slot)?.epoch;
                tracing::info!(device = %slot, epoch = epoch.0, "Made the next key");
            }
            Effect::Install { slot } => {
                if self.hands_over(*slot, next) {
                    return Err(RotateError::HandOver { slot: *slot });
                }
                self.install(*slot, observed).await?;
            }
            Effect::Commit { slot } => {
                if let Some(replaced) = self.keys.commit(*slot)?
                    && let Some(error) = replaced.not_wiped
                {
                    tracing::warn!(device = %slot, err = %error, "Could not overwrite the old key's bytes on the disk");
                }
            }
            Effect::Ask { peers } => self.ask(view, peers),
            Effect::Destroyed(destroyed) => self.destroyed(destroyed)?,
        }
        Ok(())
    }

    /// Gives a device its staged key. Its peers stay as they are.
    async fn install(&mut self, slot: Slot, observed: &mut Observed) -> Result<(), RotateError> {
        let Some(staged) = self.keys.staged_shared(slot) else { return Ok(()) };
        let Some(device) = observed.devices.get_mut(&slot) else {
            return Err(CallError::Silent { slot }.into());
        };
        let as_it_is = |peer: &mesh_core::diff::ObservedPeer| DesiredPeer {
            node: self.node.clone(),
            endpoint: peer.endpoint,
            allowed: peer.allowed.clone(),
            keepalive: peer.keepalive,
            // It belonged to the former key.
            psk: None,
        };
        let peers: BTreeMap<_, _> = device.peers.iter().map(|(key, peer)| (*key, as_it_is(peer))).collect();
        let (key, port, public) = (Arc::clone(&staged), device.port, staged.public());
        self.wireguard
            .call(slot, move |wireguard| {
                wireguard.configure(slot, &key.private, port, &peers, &crate::wireguard::Psks::default())
            })
            .await?;
        device.public_key = Some(public);
        self.memory.pairs.rekeyed(slot, public, Instant::now());
        tracing::info!(device = %slot, epoch = staged.epoch.0, "Device has its next key");
        Ok(())
    }

    fn ask(&self, view: &ClusterView, peers: &[NodeName]) {
        let own = view.nodes.get(&self.node).map(|own| own.pod_cidrs.as_slice()).unwrap_or_default();
        let address = |name: &NodeName| {
            let node = view.nodes.get(name)?;
            let addresses = node.pod_cidrs.iter().filter_map(mesh_core::prefix::mesh_address);
            // Answers come to our mesh address of the same family.
            let mut reachable = addresses
                .filter(|address| own.iter().any(|net| mesh_core::prefix::same_family(net.addr(), *address)));
            Some((reachable.next()?, name.clone()))
        };
        self.rotor.answers.ask(peers.iter().filter_map(address).collect());
    }

    /// A key is gone: a line in the record, an Event, the log.
    fn destroyed(&mut self, destroyed: &Destroyed) -> Result<(), RotateError> {
        let told = (destroyed.slot, destroyed.old);
        if self.rotor.recorded.as_ref() == Some(&told) {
            // What comes after it could not be done; the record has it.
            return Ok(());
        }
        let line = record(destroyed, jiff::Timestamp::now());
        let path = self.config.state_dir.join("audit").join("keys.jsonl");
        append(&path, &line)
            .map_err(|source| RotateError::Record { path: path.display().to_string(), source })?;
        self.rotor.recorded = Some(told);
        self.psks.wear();
        let overdue = destroyed.verdict.as_ref().is_some_and(Verdict::in_use);
        self.metrics.key_replaced(overdue);
        let note = format!(
            "node {}: the key of {} with epoch {} ({}) is destroyed; its successor has epoch {} ({})",
            destroyed.node,
            destroyed.slot,
            destroyed.old.epoch.0,
            destroyed.old.fingerprint,
            destroyed.new.epoch.0,
            destroyed.new.fingerprint,
        );
        for gone in destroyed.verdict.iter().flat_map(|verdict| &verdict.gone) {
            tracing::warn!(peer = %gone, device = %destroyed.slot, "A peer was not waited for: its Node is dead, and nothing is \
                heard of it; mend that Node or delete it");
        }
        tracing::info!(record = line.trim_end(), "{note}");
        self.notice("KeyDestroyed", note, false);
        Ok(())
    }

    fn notice(&self, reason: &str, note: String, warning: bool) {
        // A full queue means that the API is away; log and record have it.
        drop(self.outputs.notices.try_send(Notice { reason: reason.to_owned(), note, warning }));
    }
}

/// One line of JSON.
fn record(destroyed: &Destroyed, at: jiff::Timestamp) -> String {
    let Destroyed { node, slot, old, new, cause, verdict } = destroyed;
    let value = serde_json::json!({
        "time": at.to_string(), "event": "KeyDestroyed", "node": node.as_str(), "device": slot.device(),
        "old": old, "new": new, "cause": cause, "verdict": verdict,
    });
    format!("{value}\n")
}

/// Appends, durably. What an earlier try left of a line goes first: whole lines before it would be lost with it.
fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(path)?;
    let whole = whole_lines(&mut file)?;
    if whole < file.metadata()?.len() {
        file.set_len(whole)?;
    }
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
    written.inspect_err(|_| {
        // The first error is the one to report; what stays goes before the next line.
        let _ = file.set_len(whole);
    })
}

/// Bytes up to the end of the last line that ends.
fn whole_lines(file: &mut std::fs::File) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(4096);
        let length = usize::try_from(end - begin).unwrap_or(block.len());
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block[..length])?;
        if let Some(at) = block[..length].iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + u64::try_from(at + 1).unwrap_or(0));
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_no_part_of_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit").join("keys.jsonl");
        append(&path, "one\n").unwrap();
        let long = "x".repeat(9000);
        for torn in ["tw", long.as_str()] {
            let whole = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{whole}{torn}")).unwrap();
            append(&path, "two\n").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}two\n"));
        }
        // Nothing but such a line.
        std::fs::write(&path, "tor").unwrap();
        append(&path, "one\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
    }
}
