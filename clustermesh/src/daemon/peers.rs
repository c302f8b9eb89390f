//! The joined clusters: watches ClusterPeers, follows each cluster that one names, judges what it says, hands what is believed
//! to the [`Hub`], and writes into each ClusterPeer's status how it stands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use mesh_core::clusters::{
    Borders, ClusterName, ClusterPeer, ClusterPeerSpec, Kind, OwnCluster, Refusal, ServerAddress,
};
use mesh_core::ipam::Millis;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::hub::{BOOKMARK, Hub};
use super::judge::{Judge, Move, Settled};
use super::metrics::Metrics;
use super::tls::{Credentials, Trust};
use super::watch_api::{Seen, watch};
use crate::Told;
use crate::follow::{Event, Events, FollowError, Target, follow};
use crate::quiet::Quiet;
use crate::session::{Scope, Session};
use crate::tls::{Roots, client_config};

pub(super) mod presence;
mod status;

use presence::{Presence, Sign};
use status::{Standing, write};

/// What one cluster told and nobody has taken up yet: each may be as much as all that is kept of a cluster.
const WORDS: usize = 1;
/// Most words that are judged together: more would wait for each other, and whoever is trusted no longer is cut after them.
const TOGETHER: usize = 64;
/// No more of them after so many changes,
const CHANGES: usize = 100_000;
/// or so long.
const GATHER: Duration = Duration::from_millis(100);
/// How many times as long as it took to judge what a cluster told is waited before its next word is judged: one that is costly
/// takes a quarter of the time, and the others have the rest.
const REST: u32 = 3;
/// Below this nobody is waited for: a timer is not finer.
const WORTH_A_REST: Duration = Duration::from_millis(1);
/// Pause between two looks at what is to be written into statuses.
const WRITE: Duration = Duration::from_secs(2);
/// Texts of refusals that are kept of a cluster, for its status.
const KEPT: usize = 8;
/// Facts of one cluster that are not believed and stand in the log; metrics count all.
const LOGGED: usize = 64;

/// The resource of ClusterPeers.
pub fn resource() -> ApiResource {
    ApiResource {
        group: "hawser.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "hawser.dev/v1alpha1".to_owned(),
        kind: "ClusterPeer".to_owned(),
        plural: "clusterpeers".to_owned(),
    }
}

/// What the peers need.
#[derive(Clone)]
pub struct Parts {
    /// The own API server.
    pub client: Client,
    /// Who we are to others.
    pub credentials: Arc<Credentials>,
    /// Whom each cluster trusts; is set here.
    pub trust: Arc<Trust>,
    /// Gets what is believed.
    pub hub: Hub,
    /// How far each cluster reaches is told here.
    pub borders: watch::Sender<Option<Arc<Borders>>>,
    /// Counts.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

/// A ClusterPeer as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    name: String,
    peer: Option<ClusterPeer>,
    roots: Option<Roots>,
    wrong: Vec<(String, &'static str)>,
    object: DynamicObject,
}

fn read(object: DynamicObject) -> Read {
    let name = object.metadata.name.clone().unwrap_or_default();
    let created = object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    let spec = serde_json::from_value::<ClusterPeerSpec>(object.data["spec"].clone());
    let (spec, mut wrong) = match spec {
        Ok(spec) => (spec, Vec::new()),
        // The API server's schema lets nothing else in.
        Err(error) => (
            ClusterPeerSpec::default(),
            vec![(format!("ClusterPeer {name}: spec {error}; correct it"), "PeerMalformed")],
        ),
    };
    let (peer, refusals) = ClusterPeer::parse(&name, created, &spec);
    wrong.extend(refusals.iter().map(|refusal| (refusal.to_string(), refusal.reason())));
    let roots =
        peer.as_ref().and_then(|peer| peer.trust_bundle.as_ref()).map(|bundle| Roots::parse(bundle.as_str()));
    let roots = match roots {
        Some(Ok(roots)) => Some(roots),
        Some(Err(error)) => {
            wrong.push((format!("ClusterPeer {name}: spec.trustBundle: {error}"), "TrustBundle"));
            None
        }
        None => None,
    };
    Read { name, peer, roots, wrong, object }
}

/// How a line to a cluster is.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    connected: Option<ServerAddress>,
    trouble: Option<(&'static str, String)>,
    /// What does not count of what it told, the first few.
    left_out: Vec<String>,
    /// Of what was left out, what was logged last.
    said: VecDeque<String>,
    quiet: Quiet,
    /// It said something that is not whole yet, since that was looked at.
    speaks: bool,
    /// Streams so far.
    streams: u64,
}

/// What a cluster told, on its way to the judge, who says how long it took.
struct Word {
    cluster: ClusterName,
    number: u64,
    told: Told,
    judged: oneshot::Sender<Duration>,
}

type Links = Arc<Mutex<BTreeMap<ClusterName, Link>>>;

/// A cluster that is followed.
#[derive(Debug)]
struct Followed {
    target: watch::Sender<Target>,
    /// By which it was trusted when its connection was made.
    roots: Option<Roots>,
    /// Whoever followed it before under its name may have left words in the inbox.
    number: u64,
    /// Of the ClusterPeer: one that was deleted and made anew is followed from the start.
    uid: Option<String>,
    tasks: [AbortHandle; 2],
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Runs for ever. `own`: what others may not claim, once it is known.
pub async fn run(parts: Parts, own: watch::Receiver<Option<OwnCluster>>) {
    let (seen_tx, seen) = watch::channel(None);
    let (client, kind, metrics) = (parts.client.clone(), resource(), parts.metrics.clone());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let watching = watch("cluster-peers", api, Some((&client, &kind)), &metrics, move |event| {
        seen_tx.send_modify(|known: &mut Option<BTreeMap<String, Read>>| match event {
            Seen::All(all) => {
                *known = Some(all.into_iter().map(read).map(|one| (one.name.clone(), one)).collect());
            }
            Seen::Put(one) => {
                let one = read(one);
                known.get_or_insert_default().insert(one.name.clone(), one);
            }
            Seen::Gone(one) => {
                known.get_or_insert_default().remove(one.metadata.name.as_deref().unwrap_or_default());
            }
        });
    });
    tokio::join!(watching, Peers::new(parts).run(own, seen));
}

/// The one task that judges.
struct Peers {
    parts: Parts,
    judge: Option<Judge>,
    followed: BTreeMap<ClusterName, Followed>,
    links: Links,
    dirty: Arc<Notify>,
    told_tx: mpsc::Sender<Word>,
    told: mpsc::Receiver<Word>,
    followers: u64,
    begun: Instant,
    /// Who is there.
    presence: Presence,
    /// When it was last passed on that a cluster is there.
    passed_on: BTreeMap<ClusterName, Instant>,
    reasons: BTreeSet<&'static str>,
    /// What of each is in the log already.
    logged: BTreeMap<ClusterName, BTreeMap<String, &'static str>>,
}

type Seens = watch::Receiver<Option<BTreeMap<String, Read>>>;

impl Peers {
    fn new(parts: Parts) -> Self {
        let (told_tx, told) = mpsc::channel(1);
        Self {
            parts,
            judge: None,
            followed: BTreeMap::new(),
            links: Links::default(),
            dirty: Arc::default(),
            told_tx,
            told,
            followers: 0,
            begun: Instant::now(),
            presence: Presence::new(),
            passed_on: BTreeMap::new(),
            reasons: BTreeSet::new(),
            logged: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut own: watch::Receiver<Option<OwnCluster>>, mut seen: Seens) {
        let (standing_tx, standing) = watch::channel(BTreeMap::new());
        let writer = tokio::spawn(write(self.parts.client.clone(), standing));
        let writer = AbortOnDrop(writer.abort_handle());
        let mut tick = tokio::time::interval(WRITE);
        let dirty = Arc::clone(&self.dirty);
        let mut due = true;
        loop {
            tokio::select! {
                changed = own.changed() => if changed.is_err() { break },
                changed = seen.changed() => if changed.is_err() { break },
                Some(word) = self.told.recv() => {
                    self.words(word).await;
                    due = true;
                    continue;
                }
                () = dirty.notified() => {
                    self.speak();
                    due = true;
                    continue;
                }
                _ = tick.tick() => {
                    // Not before a new ClusterPeer was looked at: what the old one was connected to says nothing of it.
                    if !seen.has_changed().unwrap_or(false) && std::mem::take(&mut due) {
                        let reads = seen.borrow().clone().unwrap_or_default();
                        standing_tx.send_replace(self.standing(&reads));
                        self.count();
                        self.log();
                    }
                    continue;
                }
            }
            let (own, reads) = (own.borrow_and_update().clone(), seen.borrow_and_update().clone());
            if let (Some(own), Some(reads)) = (own, reads) {
                let kept = |read: &Read| {
                    let followed = self.followed.get(&read.peer.as_ref()?.name)?;
                    Some(followed.uid == read.object.metadata.uid)
                };
                let without = reads.iter().filter(|(_, read)| kept(read) != Some(false));
                let without: BTreeMap<_, _> =
                    without.map(|(name, read)| (name.clone(), read.clone())).collect();
                if without.len() < reads.len() {
                    self.rules(own.clone(), &without);
                }
                self.rules(own, &reads);
                due = true;
            }
        }
        drop(writer);
    }

    /// Own nodes or ClusterPeers have changed.
    fn rules(&mut self, own: OwnCluster, reads: &BTreeMap<String, Read>) {
        let peers: Vec<ClusterPeer> = reads.values().filter_map(|read| read.peer.clone()).collect();
        let moves = match &mut self.judge {
            Some(judge) => judge.rules(own, peers),
            None => {
                self.judge = Some(Judge::new(own, peers));
                Vec::new()
            }
        };
        let Some(judge) = &self.judge else { return };
        self.parts.borders.send_replace(Some(Arc::new(judge.borders().clone())));
        let known: BTreeMap<ClusterName, &Read> = reads
            .values()
            .filter_map(|read| Some((read.peer.as_ref()?.name.clone(), read)))
            .filter(|(name, _)| judge.borders().known(name).is_ok())
            .collect();
        // Before anything else: who is trusted no longer is cut.
        let roots = known.iter().filter_map(|(name, read)| Some((name.clone(), read.roots.clone()?)));
        self.parts.trust.set(roots.collect());
        let names: Vec<ClusterName> = known.keys().cloned().collect();
        self.parts.hub.join(&names);
        let gone = self.followed.extract_if(.., |name, _| !known.contains_key(name));
        for (name, _) in gone {
            self.presence.forget(&name);
            self.passed_on.remove(&name);
        }
        self.links.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| known.contains_key(name));
        for (name, read) in known {
            if let Some(peer) = &read.peer {
                self.follow(&name, peer, read);
            }
        }
        self.moved(moves);
    }

    /// Follows a cluster, or lets who follows it know of other addresses and of whom to trust. One that nothing is trusted of
    /// is not spoken to, but what it has said is remembered, so that it goes on from there.
    fn follow(&mut self, name: &ClusterName, peer: &ClusterPeer, read: &Read) {
        let (roots, uid) = (read.roots.as_ref(), read.object.metadata.uid.clone());
        let known = self.followed.get(name);
        if known.is_none() && roots.is_none() {
            return;
        }
        let addresses = if roots.is_some() { peer.addresses.clone() } else { Vec::new() };
        let tls = match known.filter(|followed| followed.roots.as_ref() == roots) {
            Some(followed) => Arc::clone(&followed.target.borrow().tls),
            // Another connection, so that its server is looked at by what is trusted now.
            None => match self.tls(name) {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::error!(cluster = %name, err = %error, "TLS cannot be set up");
                    return;
                }
            },
        };
        let target = Target { addresses, tls, token: None, renewed: Some(self.parts.credentials.renewals()) };
        if let Some(followed) = self.followed.get_mut(name) {
            followed.roots = roots.cloned();
            let moved = *followed.target.borrow() != target;
            if moved {
                // What it was connected to says nothing of what is asked for now.
                self.links
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(name.clone())
                    .or_default()
                    .connected = None;
                followed.target.send_replace(target);
            }
            return;
        }
        let (target, targets) = watch::channel(target);
        let (tell, mut told) = mpsc::channel(WORDS);
        let session = Session::new(Scope::One(name.clone()));
        let following = tokio::spawn(follow(targets, session, tell, self.events(name)));
        self.followers += 1;
        let (cluster, number, inbox) = (name.clone(), self.followers, self.told_tx.clone());
        let carrying = tokio::spawn(async move {
            while let Some(told) = told.recv().await {
                let (judged, spent) = oneshot::channel();
                let word = Word { cluster: cluster.clone(), number, told, judged };
                if inbox.send(word).await.is_err() {
                    return;
                }
                let Ok(spent) = spent.await else { return };
                if spent >= WORTH_A_REST {
                    tokio::time::sleep(spent * REST).await;
                }
            }
        });
        let tasks = [following.abort_handle(), carrying.abort_handle()];
        let followed = Followed { target, roots: roots.cloned(), number, uid, tasks };
        self.followed.insert(name.clone(), followed);
    }

    fn tls(&self, name: &ClusterName) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
        let trust = Arc::clone(&self.parts.trust);
        let trusted = Arc::new(move |asked: &ClusterName| trust.roots(asked));
        client_config(name.clone(), trusted, Some(Arc::clone(&self.parts.credentials) as _))
    }

    fn events(&self, name: &ClusterName) -> Events {
        let (links, dirty) = (Arc::clone(&self.links), Arc::clone(&self.dirty));
        let (metrics, cluster, begun) = (self.parts.metrics.clone(), name.clone(), self.begun);
        Arc::new(move |event| {
            let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
            let link = links.entry(cluster.clone()).or_default();
            match event {
                Event::Connected { address } => {
                    tracing::info!(%cluster, %address, "Connected");
                    (link.connected, link.trouble) = (Some(address.clone()), None);
                    link.streams += 1;
                }
                Event::Ended { why: FollowError::Changed, .. } => link.connected = None,
                // It is connected again in a moment, or there is another reason.
                Event::Ended { why: FollowError::Renewed, .. } => {}
                Event::Ended { why: why @ FollowError::Later { .. }, .. } => {
                    metrics.interrupted(why.reason());
                    tracing::warn!(%cluster, reason = why.reason(), "{why}");
                }
                Event::Ended { address, why } => {
                    let reason = why.reason();
                    metrics.interrupted(reason);
                    if matches!(why, FollowError::Impostor(_) | FollowError::Session(_))
                        || reason == "MessageTooLong"
                    {
                        metrics.refused(reason);
                    }
                    let address = address.as_ref().map(ToString::to_string).unwrap_or_default();
                    let text = format!("{address}: {why}");
                    // Once for each new reason: tries are repeated for ever.
                    if link.trouble.as_ref().is_none_or(|(known, _)| *known != reason) {
                        tracing::warn!(%cluster, reason, "Not connected: {text}");
                    }
                    (link.connected, link.trouble) = (None, Some((reason, text)));
                }
                Event::Speaks => link.speaks = true,
                Event::LeftOut(left_out) => {
                    let text = left_out.to_string();
                    metrics.refused(left_out.reason());
                    if !link.said.contains(&text) {
                        if let Some(kept_back) = link.quiet.ask(begun.elapsed()) {
                            let reason = left_out.reason();
                            tracing::warn!(%cluster, reason, kept_back, "Left out: {text}");
                        }
                        link.said.push_back(text);
                        if link.said.len() > KEPT {
                            link.said.pop_front();
                        }
                    }
                }
                Event::Missing(texts) => link.left_out = texts.clone(),
            }
            dirty.notify_one();
        })
    }

    /// A word, and those that others have for it at the same time: they are judged together, and each pays its part.
    async fn words(&mut self, first: Word) {
        let (mut waiting, mut signs) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        let (begun, mut changes) = (Instant::now(), 0);
        while let Some(Word { cluster, number, told, judged }) = next {
            let begun_it = Instant::now();
            if let Told::Changed { changes: more, .. } = &told {
                changes += more.len();
            }
            if self.followed.get(&cluster).is_some_and(|followed| followed.number == number) {
                signs.extend(self.hear(&cluster, told).map(|sign| (cluster.clone(), sign)));
            }
            waiting.push((cluster, judged, begun_it.elapsed()));
            let enough = waiting.len() >= TOGETHER || changes >= CHANGES || begun.elapsed() >= GATHER;
            next = if enough {
                None
            } else {
                // Whoever waits for the place in the queue takes it.
                tokio::task::yield_now().await;
                self.told.try_recv().ok()
            };
        }
        let begun = Instant::now();
        let Settled { moves, looked_at } = self.judge.as_mut().map(Judge::settle).unwrap_or_default();
        self.moved(moves);
        signs.iter().for_each(|(cluster, sign)| self.alive(cluster, *sign));
        let (took, all) = (begun.elapsed(), looked_at.values().sum::<usize>().max(1));
        for (cluster, judged, heard) in waiting {
            let part = looked_at.get(&cluster).copied().unwrap_or_default();
            if judged.send(heard + part_of(took, part, all)).is_err() {
                tracing::trace!(%cluster, "Nobody waits any more for a word to be judged");
            }
        }
    }

    /// What a cluster told is kept to be judged. Gives what sign of life it is.
    fn hear(&mut self, cluster: &ClusterName, told: Told) -> Option<Sign> {
        let judge = self.judge.as_mut()?;
        match told {
            Told::Changed { cluster: of, version, changes } if of == *cluster => {
                judge.hear(cluster, version, changes);
                Some(Sign::Changed)
            }
            Told::Heard { cluster: of } if of == *cluster => Some(Sign::Bookmark),
            // A session of one cluster tells of no other, and not of its end.
            Told::Changed { .. } | Told::Heard { .. } | Told::Gone { .. } | Told::Complete => None,
        }
    }

    /// A cluster was heard.
    fn alive(&mut self, cluster: &ClusterName, sign: Sign) {
        let now = Millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        let there = self.presence.sign(cluster, sign, now);
        let recent = self.passed_on.get(cluster).is_some_and(|last| last.elapsed() < 2 * BOOKMARK);
        let due = sign == Sign::Bookmark || !recent;
        if due && there && self.parts.hub.heard(cluster) {
            self.passed_on.insert(cluster.clone(), Instant::now());
        }
    }

    /// Looks who says something that is not whole yet.
    fn speak(&mut self) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let speak: Vec<(ClusterName, u64)> = links
            .iter_mut()
            .filter_map(|(name, link)| std::mem::take(&mut link.speaks).then(|| (name.clone(), link.streams)))
            .collect();
        drop(links);
        speak.iter().for_each(|(cluster, stream)| self.alive(cluster, Sign::Speaks(*stream)));
    }

    fn moved(&self, moves: Vec<Move>) {
        for Move { cluster, at, changes } in moves {
            self.parts.hub.changed(&cluster, at, changes);
        }
    }

    /// How each ClusterPeer stands.
    fn standing(&self, reads: &BTreeMap<String, Read>) -> BTreeMap<String, Standing> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = self.judge.iter().flat_map(Judge::refused_peers);
        let mut refused_by: BTreeMap<&str, Vec<(String, &'static str)>> = BTreeMap::new();
        for refusal in refused {
            if let Some(peer) = peer_of(refusal) {
                refused_by.entry(peer.as_str()).or_default().push((refusal.to_string(), refusal.reason()));
            }
        }
        let of = |read: &Read| {
            let mut wrong = read.wrong.clone();
            wrong.extend(refused_by.remove(read.name.as_str()).into_iter().flatten());
            let name = read.peer.as_ref().map(|peer| &peer.name);
            let link = name.and_then(|name| links.get(name)).cloned().unwrap_or_default();
            let disbelieved = name.zip(self.judge.as_ref()).map(|(name, judge)| {
                let all: Vec<_> = judge.disbelieved(name).collect();
                (all.len(), all.iter().take(KEPT).map(|one| (one.to_string(), one.reason())).collect())
            });
            let (problems, texts) = disbelieved.unwrap_or_default();
            Standing { wrong, link, problems, texts, object: read.object.clone() }
        };
        let mut of = of;
        reads.iter().map(|(name, read)| (name.clone(), of(read))).collect()
    }

    /// Logs what is not believed, each once for as long as it is so.
    fn log(&mut self) {
        let Some(judge) = &self.judge else { return };
        let mut now = BTreeMap::new();
        for name in self.followed.keys() {
            let found = judge.disbelieved(name).take(LOGGED);
            let found: BTreeMap<String, &'static str> =
                found.map(|one| (one.to_string(), one.reason())).collect();
            let before = self.logged.get(name);
            for (text, reason) in &found {
                if before.is_none_or(|before| !before.contains_key(text)) {
                    tracing::warn!(cluster = %name, reason, "Not believed: {text}");
                }
            }
            now.insert(name.clone(), found);
        }
        self.logged = now;
    }

    /// Sets gauges.
    fn count(&mut self) {
        let metrics = &self.parts.metrics;
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = links.values().filter(|link| link.connected.is_some()).count();
        metrics.clusters(self.followed.len(), connected);
        let Some(judge) = &self.judge else { return };
        let mut reasons: BTreeMap<&'static str, usize> =
            self.reasons.iter().map(|reason| (*reason, 0)).collect();
        for name in self.followed.keys() {
            for one in judge.disbelieved(name) {
                *reasons.entry(one.reason()).or_default() += 1;
            }
        }
        for refusal in judge.refused_peers() {
            *reasons.entry(refusal.reason()).or_default() += 1;
        }
        for (reason, number) in &reasons {
            metrics.facts_refused(reason, *number);
        }
        for kind in Kind::ALL {
            let believed = self.followed.keys().filter_map(|name| judge.believed(name));
            metrics.objects(kind.name(), believed.map(|state| state.count(kind)).sum());
        }
        self.reasons = reasons.into_keys().collect();
    }
}

/// So much of a time as `part` is of `all`.
fn part_of(time: Duration, part: usize, all: usize) -> Duration {
    let [part, all] = [part, all].map(|count| u128::try_from(count).unwrap_or(u128::MAX));
    let micros = time.as_micros().saturating_mul(part) / all.max(1);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The ClusterPeer that a refusal is about.
fn peer_of(refusal: &Refusal) -> Option<&ClusterName> {
    match refusal {
        Refusal::PeerIsOurself { peer }
        | Refusal::PeerTwice { peer }
        | Refusal::PeerCidrOurs { peer, .. }
        | Refusal::PeerCidrOfNode { peer, .. }
        | Refusal::PeerCidrOfOlderNode { peer, .. }
        | Refusal::PeerCidrTwice { peer, .. } => Some(peer),
        Refusal::PeerMalformed { .. }
        | Refusal::ForeignCluster { .. }
        | Refusal::ClusterUnknown { .. }
        | Refusal::NodeCidrOutside { .. }
        | Refusal::NodeCidrTooSmall { .. }
        | Refusal::NodeCidrTwice { .. }
        | Refusal::NodeBeyondLimit { .. }
        | Refusal::NodeKeyTwice { .. }
        | Refusal::NodeEndpointUnusable { .. }
        | Refusal::NodeEndpointInside { .. }
        | Refusal::NodeEndpointOurs { .. }
        | Refusal::EndpointWithoutNode { .. }
        | Refusal::EndpointOutside { .. }
        | Refusal::EndpointBeyondLimit { .. }
        | Refusal::EndpointWithoutLabels { .. }
        | Refusal::BackendOutside { .. }
        | Refusal::BackendWithoutNode { .. }
        | Refusal::BackendWithoutService { .. } => None,
    }
}
