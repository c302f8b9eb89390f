//! The main loop: fold what is known into one view, plan, compare with what is, apply, report.
//!
//! One task owns all of it. Everything else sends nudges; a nudge says only that it is worth looking again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyring::LoadedStore;
use mesh_core::announcement::{Announcement, SlotAnnouncement};
use mesh_core::diff::{Endpoints, Mode, Observed, ObservedDevice, SESSION, diff};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::numbers::SLOT_PORTS;
use mesh_core::plan::{Desired, Publication, plan, publication};
use mesh_core::problem::Problem;
use mesh_core::slot::Slot;
use mesh_core::view::{AnnouncementFact, ClusterView, LocalFacts, Settings};
use tokio::sync::{mpsc, watch};

use crate::attachments::Table;
use crate::cni::{Attacher, Readiness};
use crate::condition::Broken;
use crate::config::Config;
use crate::guard::Guard;
use crate::http::Snapshot;
use crate::joined::Joined;
use crate::kernel::{Kernel, KernelError, KernelState};
use crate::letters::{Addresses, Delivery};
use crate::metrics::Metrics;
use crate::names::Register;
use crate::plane::PlaneState;
use crate::publish::{self, Notice, Wanted};
use crate::service_cidrs::ServiceCidrs;
use crate::status::Findings;
use crate::watch::Nodes;
use crate::wireguard::{CallError, Caller, Implementation};

/// Changes that come together are planned together.
const GATHER: Duration = Duration::from_millis(30);
/// After a failure: first and longest pause before the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// An announcement that was asked for and is not shown after this is asked for again: somebody may have changed ours back
/// to what it was before between two looks.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(5);
/// How often lost DELs and vanished pods are looked for.
const REAP: Duration = Duration::from_secs(10);

/// Where the loop's results go.
#[derive(Debug)]
pub struct Outputs {
    /// Can pods be connected?
    pub readiness: watch::Sender<Readiness>,
    /// The last plan.
    pub snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    /// When the loop last turned.
    pub heartbeat: watch::Sender<Instant>,
    /// The announcement to write.
    pub announce: watch::Sender<Option<Wanted>>,
    /// Events to record.
    pub notices: mpsc::Sender<Notice>,
    /// Where letters about pre-shared keys come to, and from whom.
    pub addresses: watch::Sender<Addresses>,
}

/// The loop and what it owns.
#[derive(Debug)]
pub struct Agent {
    /// The configuration.
    pub config: Config,
    /// This node.
    pub node: NodeName,
    /// The kernel.
    pub kernel: Kernel,
    /// The devices.
    pub wireguard: Caller,
    /// The keys.
    pub keys: LoadedStore,
    /// What replaces them.
    pub rotor: Rotor,
    /// Firewall and host environment.
    pub guard: Guard,
    /// The data path.
    pub plane: watch::Receiver<PlaneState>,
    /// Names of links, for who reads flows.
    pub register: Arc<Register>,
    /// What is wrong with policy.
    pub findings: watch::Receiver<Arc<Findings>>,
    /// Attachments, shared with the CNI server.
    pub table: Arc<Mutex<Table>>,
    /// The CNI server's verbs, for lost DELs.
    pub attacher: Arc<Attacher>,
    /// Nodes of the cluster.
    pub nodes: watch::Receiver<Nodes>,
    /// Clusters that are joined to it.
    pub joined: watch::Receiver<Arc<Joined>>,
    /// Where Services have their addresses.
    pub service_cidrs: watch::Receiver<ServiceCidrs>,
    /// Pre-shared keys of the pairs.
    pub psks: Psks,
    /// Which keys peers have replaced.
    pub ledger: Ledger,
    /// Whose host traffic is closed.
    pub closed: Closed,
    /// What peers say about pre-shared keys.
    pub mail: mpsc::Receiver<Delivery>,
    /// Nudges of the kernel.
    pub kernel_changed: mpsc::Receiver<()>,
    /// How often drift is looked for without a nudge.
    pub drift_interval: Duration,
    /// Metrics.
    pub metrics: Metrics,
    /// Results.
    pub outputs: Outputs,
    /// What the loop remembers.
    pub memory: Memory,
}

mod answers;
mod apply;
mod data_path;
mod evidence;
mod hosts;
mod ledger;
mod pairs;
mod psks;
mod rotate;
mod slot_addresses;
mod successor;
mod wake;

pub(crate) use evidence::unix;
pub use hosts::{Closed, load as load_closed};
pub use ledger::Ledger;
pub use psks::Psks;
pub use rotate::Rotor;

/// What the loop remembers between turns: nothing that could not be lost.
#[derive(Debug, Default)]
pub struct Memory {
    set_before: Endpoints,
    applied: Option<Desired>,
    confirmed: Option<Announcement>,
    generation: u64,
    asked_to_write: Option<(AnnouncementFact, Announcement)>,
    asked_at: Option<Instant>,
    missing: BTreeSet<Slot>,
    /// Slots that were keyed and whose peers do not know it yet.
    unheard: wake::Unheard,
    pairs: pairs::Pairs,
    /// Since when a key is being replaced, a pair about to move or to agree on pre-shared keys.
    moving: Option<Instant>,
    notices: BTreeMap<String, String>,
    trouble: BTreeSet<(String, String)>,
    turned: bool,
    /// What rules of hostPorts had counted.
    host_ports: BTreeMap<String, u64>,
    /// Letters that came since the last turn.
    mail: Vec<Delivery>,
    /// When the devices were looked at last, in seconds since 1970.
    observed_at: u64,
    /// What the devices have, by name: before the first snapshot peers keep it.
    device_psks: crate::wireguard::Psks,
    /// Since when peers' keys are seen announced.
    known: evidence::Known,
    /// A new mesh-tunnel that waits for devices.
    succession: successor::Succession,
    /// Peers that could not be programmed in this turn.
    unput: BTreeSet<(Slot, PublicKey)>,
}

/// One turn could not be finished; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    WireGuard(#[from] CallError),
}

impl Agent {
    /// Runs for ever. Cancelling it leaves the data path as it is.
    pub async fn run(mut self) {
        let mut retry = RETRY.0;
        let mut reap = tokio::time::interval(REAP);
        reap.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let begun = Instant::now();
            self.outputs.heartbeat.send_replace(begun);
            let clean = self.turn().await;
            let at = SystemTime::now().duration_since(UNIX_EPOCH).ok().filter(|_| clean);
            self.metrics.reconciled(begun.elapsed(), at);
            // At most half of the time: in a large cluster a turn is long and changes never end.
            let rest = begun.elapsed().max(GATHER);
            let pause = if clean {
                retry = RETRY.0;
                self.drift_interval
            } else {
                let pause = retry;
                retry = (retry * 2).min(RETRY.1);
                pause
            };
            let pause = if self.memory.asked_to_write.is_some() { pause.min(ANNOUNCE_AGAIN) } else { pause };
            let pause = self.memory.moving.map_or(pause, |since| pause.min(rotate::pace(since.elapsed())));
            let pause = self.psks.due().map_or(pause, |due| pause.min(due));
            let asleep = tokio::time::sleep(pause);
            tokio::pin!(asleep);
            loop {
                tokio::select! {
                    () = &mut asleep => break,
                    changed = self.nodes.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    Ok(()) = self.joined.changed() => break,
                    Ok(()) = self.service_cidrs.changed() => break,
                    Ok(()) = self.plane.changed() => break,
                    Ok(()) = self.findings.changed() => {
                        let now = self.findings.borrow().trouble.clone();
                        if std::mem::replace(&mut self.memory.trouble, now.clone()) != now {
                            break;
                        }
                    }
                    Some(letter) = self.mail.recv() => {
                        self.memory.mail.push(letter);
                        break;
                    }
                    nudge = self.kernel_changed.recv() => {
                        if nudge.is_none() {
                            return;
                        }
                        break;
                    }
                    _ = reap.tick() => {
                        self.reap().await;
                        // Somebody's flush of all tables tells nobody; the generation is one small question.
                        if self.guard.changed_by_others().await {
                            break;
                        }
                    }
                }
            }
            tokio::time::sleep(rest).await;
            while self.kernel_changed.try_recv().is_ok() {}
            while let Ok(letter) = self.mail.try_recv() {
                self.memory.mail.push(letter);
            }
        }
    }

    async fn reap(&self) {
        crate::notes::execute(&self.attacher).await;
        if let Err(failure) = self.attacher.reap().await {
            tracing::warn!(err = %failure, "Could not look for vanished pods");
        }
        let (directory, now) = (self.attacher.directory.clone(), crate::cni::now());
        match tokio::task::spawn_blocking(move || directory.forget_rested(now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(err = %error, "Could not forget rested addresses"),
            Err(error) => tracing::warn!(err = %error, "Could not forget rested addresses"),
        }
    }

    /// One turn. False: something failed and is worth another try soon.
    async fn turn(&mut self) -> bool {
        match self.reconcile().await {
            Ok(clean) => clean,
            Err(error) => {
                tracing::error!(err = %error, "Could not reconcile");
                let obstacle = format!("mesh-agent cannot reconcile: {error}");
                self.outputs.readiness.send_modify(|readiness| {
                    if !self.memory.turned {
                        readiness.obstacles = vec![obstacle];
                    }
                });
                false
            }
        }
    }

    async fn reconcile(&mut self) -> Result<bool, TurnError> {
        let mut nodes = self.nodes.borrow_and_update().clone();
        let joined = self.joined.borrow_and_update().clone();
        let service_cidrs = self.service_cidrs.borrow_and_update().clone();
        // Somebody who is not read of yet may have prefixes that are to be guarded.
        nodes.synced &= joined.synced && service_cidrs.synced;
        let (service_cidrs, not_closed) = service_cidrs.judge(&self.config.settings.service_cidrs);
        let settings = Settings { service_cidrs, ..joined.settings(&self.config.settings) };
        let guarded = settings.guarded();
        nodes.nodes.extend(joined.believed.nodes.iter().map(|(name, node)| (name.clone(), node.clone())));
        let mut silent = self.create_devices().await;
        let begun = Instant::now();
        let state = self.kernel.observe().await?;
        let devices = self.devices(&state, &mut silent).await;
        let mut observed = Observed {
            devices,
            mesh: state.mesh(&guarded),
            routes: state.routes.clone(),
            rules: state.rules.clone(),
            links: state.links.keys().cloned().collect(),
        };
        // After looking, never before: what was connected since is then in the plan, though not in what was seen.
        self.memory.pairs.look(&observed, begun);
        let mut view = self.view(nodes, settings, &state, &observed);
        let refused = self.ledger.review(&mut view, &self.psks);
        view.pairs = self.memory.pairs.facts(&view.nodes, &observed, Instant::now());
        let rotated = self.rotate(&mut view, &mut observed, &state).await;
        match &rotated {
            Ok(()) => {}
            Err(error @ rotate::RotateError::HandOver { .. }) => tracing::debug!("{error}"),
            Err(error) => {
                tracing::error!(err = %error, "Could not go on with the rotation of keys; trying again");
            }
        }
        view.pairs = self.memory.pairs.facts(&view.nodes, &observed, Instant::now());
        let mail = std::mem::take(&mut self.memory.mail);
        let kept = self.psks.turn(&mut view, &observed, &self.keys, mail);
        for name in self.rotor.seeks(self.config.rotation.gone) {
            if let Some(pair) = view.pairs.get_mut(name) {
                pair.psk.iter_mut().for_each(|psk| psk.prove = true);
            }
        }
        self.ledger.note(self.psks.at_work());
        let (mut desired, mut problems) = plan(&view);
        // Asked anew each time: it may be a module that comes later.
        if !crate::container::has_ipv6() {
            desired.without_ipv6();
        }
        problems.extend(refused);
        let mode = if view.synced { Mode::Full } else { Mode::AddOnly };
        problems.extend(self.pool(&desired, view.synced));
        problems.extend(self.missing_devices(&observed));

        let remembered = self.keep_closed(&view, &desired).await;
        let mut guard = self.guard.turn(&self.config, &desired, view.synced, &self.metrics).await;
        self.data_path(&desired, view.synced, &mut guard).await;
        problems.extend(
            guard
                .no_data_path
                .iter()
                .map(|why| Problem::DataPathMissing { node: self.node.clone(), reason: why.clone() }),
        );
        self.host_ports(&mut guard).await;
        let ops = diff(&desired, &observed, &self.memory.set_before, mode);
        let repair = self.memory.applied.as_ref() == Some(&desired);
        self.memory.unput.clear();
        let mut clean = self.apply(&desired, &observed, &ops, repair, mode, guard.closed).await;
        self.psks.speak(&desired, &observed, &view, &self.memory.unput);
        let addresses = Addresses { mesh: desired.mesh.clone(), peers: desired.peer_mesh.clone() };
        self.outputs.addresses.send_if_modified(|present| {
            let changed = *present != addresses;
            *present = addresses;
            changed
        });
        clean &= rotated.is_ok() && kept && remembered;
        let moving = self.rotor.turns()
            || !desired.unsettled.is_empty()
            || provoked(&desired)
            || hosts::moving(&desired)
            || self.psks.watches(&view, &observed);
        let since = self.memory.moving.unwrap_or_else(Instant::now);
        self.memory.moving = moving.then_some(since);
        if let Err(error) = self.slot_addresses(&desired, &state, view.synced).await {
            tracing::error!(err = %error, "Could not give the slots their address");
            clean = false;
        }
        if hosts::unknown_to_sockets(&ops)
            && let Err(error) = self.forget_routes().await
        {
            tracing::error!(err = %error, "Could not have sockets look up their routes anew");
            clean = false;
        }
        if clean && view.synced {
            self.memory.applied = Some(desired.clone());
        }
        self.ledger.save().await;
        self.restored(&observed, clean);
        if view.synced {
            wake::wake(&desired, std::mem::take(&mut self.memory.unheard)).await;
        }
        problems.extend(self.announcement(&view, &desired));

        guard.findings.extend(self.psks.findings(&view, &observed));
        guard.findings.extend(joined.findings.iter().cloned());
        guard.findings.extend(not_closed);
        self.report(&problems, &guard.findings);
        self.count_peers(&observed);
        self.metrics.set_psks(self.psks.count(&view, &observed));
        self.metrics.set_host_traffic(desired.host_paths.values());
        self.metrics.set_joined(joined.believed.cidrs.len(), joined.believed.nodes.len());
        self.publish_readiness(&view, &desired, &observed, &guard, &silent, clean);
        let facts = self.evidence((&view, &observed), &desired, &problems, &guard);
        let problems = problems.iter().map(ToString::to_string).collect();
        let snapshot = Snapshot { view, desired, observed, pending: ops, problems, facts };
        self.outputs.snapshot.send_replace(Some(Arc::new(snapshot)));
        self.memory.turned = true;
        Ok(clean && guard.closed && silent.is_empty() && guard.firewall)
    }

    /// Makes the kernel's devices where it is the engine. Why not, where they cannot be made: the rest goes on without them,
    /// above all what closes.
    async fn create_devices(&self) -> Vec<String> {
        let mut failed = Vec::new();
        if self.wireguard.implementation() == Implementation::Kernel {
            for slot in Slot::ALL {
                if let Err(error) = self.kernel.create_wireguard(slot.device()).await {
                    failed.push(format!("{error}; is the module wireguard there?"));
                }
            }
        }
        failed
    }

    /// Both devices, where they exist; why not goes to `silent`, where they exist and do not answer.
    async fn devices(
        &mut self,
        state: &KernelState,
        silent: &mut Vec<String>,
    ) -> BTreeMap<Slot, ObservedDevice> {
        let mut devices = BTreeMap::new();
        self.memory.observed_at = unix();
        self.memory.device_psks = crate::wireguard::Psks::default();
        for slot in Slot::ALL {
            let Some(link) = state.links.get(slot.device()) else { continue };
            let seen =
                self.wireguard.call(slot, move |wireguard| wireguard.observe(slot, SystemTime::now())).await;
            match seen {
                Ok((device, psks)) => {
                    self.memory.device_psks.extend(psks);
                    devices.insert(slot, ObservedDevice { mtu: link.mtu, up: link.up, ..device });
                }
                Err(error) => silent.push(error.to_string()),
            }
        }
        devices
    }

    fn view(
        &self,
        nodes: Nodes,
        settings: Settings,
        state: &KernelState,
        observed: &Observed,
    ) -> ClusterView {
        let own = nodes.nodes.get(&self.node).into_iter().flat_map(|own| own.internal_ips.iter().copied());
        let remembered = self.closed.value.clone();
        let own_ips: BTreeSet<IpAddr> = own.chain(remembered.addresses(&self.node)).collect();
        let holds = |index: u32| {
            state.addresses.iter().any(|(holder, net)| *holder == index && own_ips.contains(&net.addr()))
        };
        let uplinks = state.links.values().filter(|link| holds(link.index));
        let local = LocalFacts {
            name: self.node.clone(),
            cluster: self.config.cluster_name.clone(),
            announcement: announcement(&self.keys, self.rotor.draining(), self.psks.kem()),
            uplink_mtu: uplinks.map(|link| link.mtu).min(),
            host: hosts::state(state, observed, &own_ips, &settings.guarded(), remembered),
        };
        ClusterView {
            settings,
            local,
            nodes: nodes.nodes,
            attachments: self.table.lock().unwrap_or_else(PoisonError::into_inner).addresses(),
            synced: nodes.synced,
            pairs: BTreeMap::new(),
        }
    }

    fn pool(&self, desired: &Desired, synced: bool) -> Vec<Problem> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if synced {
            table.ipam.set_cidrs(&desired.own_pod_cidrs);
        }
        let now = crate::cni::now();
        self.metrics.set_pools(&table.ipam.usage(now));
        table.ipam.problems(now)
    }

    fn missing_devices(&mut self, observed: &Observed) -> Vec<Problem> {
        let gone = |slot: &Slot| !observed.links.contains(slot.device());
        for slot in Slot::ALL.into_iter().filter(gone) {
            if self.memory.missing.insert(slot) && self.memory.turned {
                tracing::warn!(device = %slot, "Device is missing; its peers are unreachable until it is back");
            }
        }
        let problem = |slot: &Slot| Problem::DeviceMissing { node: self.node.clone(), slot: *slot };
        Slot::ALL.iter().filter(|slot| gone(slot)).map(problem).collect()
    }

    /// Devices that were missing and are programmed now.
    fn restored(&mut self, observed: &Observed, clean: bool) {
        let back: Vec<Slot> =
            self.memory.missing.iter().copied().filter(|slot| observed.devices.contains_key(slot)).collect();
        for slot in back.into_iter().filter(|_| clean) {
            self.memory.missing.remove(&slot);
            tracing::info!(device = %slot, "Device is there and programmed");
            self.metrics.tunnel_restored(slot.device());
        }
    }

    /// Writes our annotation where it is not what we want, and says so where somebody changed it.
    fn announcement(&mut self, view: &ClusterView, desired: &Desired) -> Option<Problem> {
        let Some(own) = view.nodes.get(&self.node) else {
            // A Node object that is made anew begins without our annotation, and nobody has overwritten it.
            (self.memory.confirmed, self.memory.asked_to_write) = (None, None);
            return None;
        };
        let wanted = &desired.announcement;
        let judged = publication(wanted, &own.announcement, self.memory.confirmed.as_ref());
        if judged == Publication::Current {
            self.memory.confirmed = Some(wanted.clone());
            self.memory.asked_to_write = None;
            return None;
        }
        let state = (own.announcement.clone(), wanted.clone());
        let fresh = self.memory.asked_to_write.as_ref() != Some(&state);
        if fresh || self.memory.asked_at.is_none_or(|at| at.elapsed() >= ANNOUNCE_AGAIN) {
            self.memory.asked_to_write = Some(state);
            self.memory.asked_at = Some(Instant::now());
            self.memory.generation += 1;
            let generation = self.memory.generation;
            self.outputs.announce.send_replace(Some(Wanted { generation, announcement: wanted.clone() }));
            if fresh && judged == Publication::Overwritten {
                self.metrics.announcement_overwritten();
            }
        }
        let problem = || Problem::AnnouncementOverwritten { node: self.node.clone() };
        (judged == Publication::Overwritten).then(problem)
    }

    fn report(&mut self, problems: &[Problem], findings: &[(String, String)]) {
        self.metrics.set_problems(problems.iter().map(Problem::code));
        self.metrics.set_findings(findings.iter().map(|(code, _)| code.as_str()));
        let problems = problems.iter().map(|p| (p.to_string(), p.code().to_owned()));
        let findings = findings.iter().map(|(code, text)| (text.clone(), camel(code)));
        let now: BTreeMap<String, String> = problems.chain(findings).collect();
        for notice in publish::notices(&self.memory.notices, &now) {
            if notice.warning {
                tracing::warn!(code = notice.reason, "{}", notice.note);
            } else {
                tracing::info!(code = notice.reason, "{}", notice.note);
            }
            // A full queue means that the API is away; logs and metrics have it.
            if publish::worth_an_event(&notice) {
                drop(self.outputs.notices.try_send(notice));
            }
        }
        self.memory.notices = now;
    }

    fn count_peers(&self, observed: &Observed) {
        let peers = || observed.devices.values().flat_map(|device| device.peers.values());
        let alive = peers().filter(|peer| peer.handshake_age.is_some_and(|age| age < SESSION)).count();
        self.metrics.set_peers(alive, peers().count() - alive);
    }

    fn publish_readiness(
        &self,
        view: &ClusterView,
        desired: &Desired,
        observed: &Observed,
        guard: &crate::guard::Turn,
        silent: &[String],
        clean: bool,
    ) {
        let no_tunnel = Slot::ALL.iter().all(|slot| !observed.links.contains(slot.device()));
        let broken = match &guard.no_data_path {
            Some(why) => Some(Broken::DataPath { why: why.clone() }),
            // Who is alone needs none.
            None => (no_tunnel && view.nodes.len() > 1).then_some(Broken::Tunnel),
        };
        let (mesh, home) = (desired.mesh.clone(), desired.home.clone());
        let mut readiness = Readiness { mesh, home, mtu: desired.mtu, broken, ..Readiness::default() };
        if !view.synced {
            readiness.obstacles.push(
                "the list of Nodes has not been read from the API server yet, or not that of ClusterPeers or ServiceCIDRs"
                    .into(),
            );
        } else if !view.nodes.contains_key(&self.node) {
            readiness.obstacles.push(format!(
                "there is no Node object {}; --node-name (NODE_NAME) must be the name under which the kubelet registers",
                self.node
            ));
        } else if desired.mesh.is_empty() {
            readiness.obstacles.push(format!("node {} has no accepted pod CIDR", self.node));
        }
        readiness.obstacles.extend(guard.obstacles.iter().cloned());
        if !clean && !self.memory.turned {
            readiness.obstacles.push("the first reconciliation is not finished; see the log".into());
        }
        for slot in Slot::ALL.iter().filter(|slot| !observed.links.contains(slot.device())) {
            readiness.limits.push(format!("device {slot} is missing; is mesh-tunnel running?"));
        }
        readiness.limits.extend(silent.iter().cloned());
        self.outputs.readiness.send_if_modified(|present| {
            let changed = *present != readiness;
            *present = readiness;
            changed
        });
    }
}

/// Is a handshake wanted where no route leads?
fn provoked(desired: &Desired) -> bool {
    let mut peers = desired.devices.values().flat_map(|device| device.peers.values());
    peers.any(|peer| peer.keepalive == Some(mesh_core::plan::PROVOKE_KEEPALIVE))
}

/// What the keyring says of both slots. Endpoints and host traffic are the plan's.
pub fn announcement(
    keys: &LoadedStore,
    draining: Option<Slot>,
    (kem, kem_required): (Option<[u8; 32]>, bool),
) -> Announcement {
    let slot = |slot: Slot| {
        let key = keys.slot(slot);
        SlotAnnouncement {
            epoch: key.epoch,
            public_key: key.public(),
            port: SLOT_PORTS[slot.index()],
            draining: draining == Some(slot),
        }
    };
    Announcement {
        slots: [slot(Slot::Zero), slot(Slot::One)],
        endpoints: Vec::new(),
        kem,
        kem_required,
        host_traffic: false,
    }
}

/// `forward-chain-drops` to `ForwardChainDrops`, as Events want it.
fn camel(code: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
            .unwrap_or_default()
    };
    code.split('-').map(word).collect()
}
