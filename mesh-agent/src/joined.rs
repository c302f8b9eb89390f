//! Clusters that are joined to this one (design D10): what their `clustermesh` says through ours, judged by the ClusterPeers
//! that this agent reads itself, for the main loop. Nodes bear signatures of their own cluster, so ours can withhold them and
//! change none.
//!
//! What was believed last is kept in a file. An agent that starts guards those prefixes before anything else, and goes on with
//! those nodes until it hears of them again: neither its restart nor an absence of `clustermesh` takes a peer away.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clustermesh::Told;
use ipnet::IpNet;
use mesh_core::clusters::{
    Change, Claims, ClusterName, ClusterPeer, ClusterPeerSpec, ClusterState, Disputed, Here,
    Joined as Believed, Key, Kind, Object, OwnCluster, Reach, Refusal, RemoteNode, Signed, disputed,
};
use mesh_core::name::NodeName;
use mesh_core::policy::compile::AskedClusters;
use mesh_core::view::Settings;
use proto::clustermesh::read_signed_node;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::kept::Kept;
use crate::metrics::Metrics;
use crate::watch::Nodes;
use crate::watch::mail::Mailbox;

pub mod follow;
mod pods;
mod signatures;

pub use pods::Foreign;
use pods::Pods;
use signatures::Signatures;

/// Name of the file in the state directory.
const FILE: &str = "joined-clusters.json";
/// Pieces of news that may wait; who tells them waits, too.
pub const QUEUE: usize = 64;
/// Sentences that are told of in one turn; more are of the same kind.
const SENTENCES: usize = 32;

/// What the main loop needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// What is believed.
    pub believed: Believed,
    /// What clusters have lost to others since it was guarded ([`clusters::disputed`]).
    pub disputed: Disputed,
    /// Code and sentence of what is not.
    pub findings: Vec<(String, String)>,
    /// All ClusterPeers were read, and judged beside all own nodes. Before, there may be prefixes that nobody guards yet.
    pub synced: bool,
}

impl Joined {
    /// The configuration with the joined clusters in it.
    pub fn settings(&self, settings: &Settings) -> Settings {
        let disputed = self.disputed.values().flatten().copied().collect();
        Settings { disputed, ..self.believed.settings(settings) }
    }
}

/// A ClusterPeer: seconds since 1970 at which it was created, and its `spec`, or why that cannot be read.
pub type Peer = (i64, Result<ClusterPeerSpec, String>);

/// ClusterPeers by name, as they are written, and whether the list was complete.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// The objects.
    pub peers: BTreeMap<String, Peer>,
    /// A complete list has been seen.
    pub synced: bool,
}

/// What was believed last, in a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Memory(BTreeMap<ClusterName, Remembered>);

/// One cluster in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    /// What it has lost to others. No claim of its, or it would win against them after a start.
    #[serde(default, rename = "disputedCIDRs", skip_serializing_if = "Vec::is_empty")]
    disputed: Vec<IpNet>,
    /// Whose signatures count until the ClusterPeers are read.
    #[serde(default)]
    trust_bundle: String,
    nodes: BTreeMap<NodeName, RememberedNode>,
}

/// One node of it: what its cluster signed, so that it can be judged anew. Both in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RememberedNode {
    #[serde(default)]
    node: String,
    #[serde(default)]
    signature: String,
}

impl RememberedNode {
    fn of(node: &RemoteNode) -> Option<Self> {
        let signed = node.signed.as_ref()?;
        Some(Self { node: BASE64.encode(&signed.node), signature: BASE64.encode(&signed.signature) })
    }

    fn read(&self) -> Option<Object> {
        let [node, signature] = [&self.node, &self.signature].map(|text| BASE64.decode(text));
        let object = read_signed_node(Signed { node: node.ok()?, signature: signature.ok()? }).ok()?;
        let Object::Node(_, node) = &object else { return None };
        keyring::codec::check(&node.announcement).ok()?;
        Some(object)
    }
}

/// Folds all that is known of joined clusters. Pure but for its file.
#[derive(Debug)]
pub struct Register {
    own: (ClusterName, Vec<IpNet>),
    /// The node of this agent.
    node: NodeName,
    /// Whether its kernel has IPv6; without, nothing of that family comes from a pod or reaches one.
    has_ipv6: bool,
    file: Kept<Memory>,
    peers: Peers,
    states: BTreeMap<ClusterName, ClusterState>,
    /// Clusters that were told of since the start: of the others the file is believed.
    told: BTreeSet<ClusterName>,
    signatures: Signatures,
    /// All clusters were told of.
    complete: bool,
    /// What was told was judged beside all own nodes.
    judged: bool,
    /// So were all ClusterPeers.
    settled: bool,
    believed: Believed,
    disputed: Disputed,
    claims: Claims,
    pods: Pods,
    /// For policy, until it is taken.
    foreign: Foreign,
    /// What policy was told of last beside: prefixes, and whether that was all.
    standing: (Arc<BTreeMap<ClusterName, Reach>>, Option<AskedClusters>),
    /// Of what is believed.
    reach: Arc<BTreeMap<ClusterName, Reach>>,
    /// Nodes whose announcement cannot be used, the first few.
    unusable: BTreeMap<NodeName, String>,
    /// What is wrong with joined clusters, codes and sentences, and how many more there are; but for pods.
    findings: (Vec<(String, String)>, usize),
    /// Everything is to be told to policy again.
    anew: bool,
}

impl Register {
    /// Reads the file of this node in the cluster with this name and these pod CIDRs.
    pub fn load(
        state_dir: &Path,
        (node, has_ipv6): (NodeName, bool),
        name: ClusterName,
        pod_cidrs: Vec<IpNet>,
    ) -> Self {
        let mut file: Kept<Memory> = Kept::load(state_dir.join(FILE), "which clusters are joined");
        for remembered in file.value.0.values_mut() {
            for cidrs in [&mut remembered.pod_cidrs, &mut remembered.disputed] {
                cidrs.retain(|cidr| has_ipv6 || cidr.addr().is_ipv4());
            }
        }
        let mut states: BTreeMap<ClusterName, ClusterState> = BTreeMap::new();
        let mut believed = Believed::default();
        let mut disputed = Disputed::default();
        let mut signatures = Signatures::default();
        for (cluster, remembered) in &file.value.0 {
            // One that cannot be read is none; the ClusterPeer has it anew.
            drop(signatures.trust(cluster, &remembered.trust_bundle));
            for (of, cidrs) in
                [(&mut believed.cidrs, &remembered.pod_cidrs), (&mut disputed, &remembered.disputed)]
            {
                if !cidrs.is_empty() {
                    of.insert(cluster.clone(), cidrs.clone());
                }
            }
            let state = states.entry(cluster.clone()).or_default();
            for object in remembered.nodes.values().filter_map(RememberedNode::read) {
                state.apply(Change::Put(object));
            }
            signatures.look(cluster, state);
        }
        let mut register = Self {
            own: (name, pod_cidrs),
            node,
            has_ipv6,
            signatures,
            file,
            peers: Peers::default(),
            states,
            told: BTreeSet::new(),
            complete: false,
            judged: false,
            settled: false,
            believed: Believed::default(),
            disputed,
            claims: Claims::default(),
            pods: Pods::default(),
            foreign: Foreign::default(),
            standing: (Arc::default(), None),
            reach: Arc::default(),
            unusable: BTreeMap::new(),
            findings: Default::default(),
            anew: false,
        };
        // Those of the file were judged when they were written, by ClusterPeers that are not read yet.
        let nodes = register.judge(&Nodes::default(), &register.remembered_peers()).0.nodes;
        register.believed = Believed { nodes, ..believed };
        register.reach = Arc::new(register.believed.reach());
        register
    }

    /// What is believed now.
    pub fn believed(&self) -> &Believed {
        &self.believed
    }

    /// What clusters have lost to others since it was guarded.
    pub const fn disputed(&self) -> &Disputed {
        &self.disputed
    }

    /// How far this node reaches into each of them.
    pub fn reach(&self) -> Arc<BTreeMap<ClusterName, Reach>> {
        Arc::clone(&self.reach)
    }

    /// ClusterPeers that say what the file does.
    fn remembered_peers(&self) -> Vec<ClusterPeer> {
        let of = |(place, (name, remembered)): (usize, (&ClusterName, &Remembered))| ClusterPeer {
            name: name.clone(),
            created: i64::try_from(place).unwrap_or(i64::MAX),
            pod_cidrs: remembered.pod_cidrs.clone(),
            addresses: Vec::new(),
            trust_bundle: None,
        };
        self.file.value.0.iter().enumerate().map(of).collect()
    }

    fn judge(&self, nodes: &Nodes, peers: &[ClusterPeer]) -> (Believed, Claims, Vec<Refusal>) {
        let (name, pod_cidrs) = self.own.clone();
        // Of others nothing is believed, and nothing has to be said.
        let known = self.states.iter().filter(|(name, _)| peers.iter().any(|peer| peer.name == **name));
        let signed = |(name, state)| (name, self.without_ipv6(self.signatures.only(name, state)));
        let known: Vec<_> = known.map(signed).collect();
        let known = known.iter().map(|(name, state)| (*name, state.as_ref()));
        let here = nodes.nodes.get(&self.node);
        let here = here.map(|facts| Here {
            node: self.node.clone(),
            created: facts.created,
            addresses: facts.internal_ips.clone(),
        });
        let guarded = self.believed.cidrs.values().chain(self.disputed.values());
        let guarded = guarded.flatten().map(IpNet::trunc).collect();
        Believed::judge(&OwnCluster::of(name, pod_cidrs, &nodes.nodes), here.as_ref(), &guarded, peers, known)
    }

    /// Nodes with what this kernel can have of them.
    fn without_ipv6<'a>(&self, state: Cow<'a, ClusterState>) -> Cow<'a, ClusterState> {
        if self.has_ipv6 {
            return state;
        }
        let of_four = |(name, node): (&Arc<NodeName>, &Arc<RemoteNode>)| {
            let mut node = RemoteNode::clone(node);
            node.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4());
            node.announcement.endpoints.retain(IpAddr::is_ipv4);
            (Arc::clone(name), Arc::new(node))
        };
        Cow::Owned(ClusterState {
            nodes: state.nodes.iter().map(of_four).collect(),
            ..ClusterState::default()
        })
    }

    /// Other ClusterPeers.
    pub fn peers(&mut self, peers: Peers) {
        self.peers = peers;
        if self.peers.synced {
            let joined = |name: &str| self.peers.peers.contains_key(name);
            self.unusable.retain(|node, _| node.cluster().is_some_and(joined));
            // Of one that is joined again later all is told again.
            self.states.retain(|name, _| joined(name.as_str()) || self.told.contains(name));
            self.anew = true;
        }
    }

    /// Which pods of joined clusters policy asks for. True: others than before.
    pub fn ask(&mut self, asked: AskedClusters) -> bool {
        let news = self.pods.ask(asked);
        self.anew |= news;
        news
    }

    /// Something that was told. True: it may change what is believed.
    pub fn hear(&mut self, told: Told) -> bool {
        let (cluster, changes) = match told {
            Told::Changed { cluster, changes, .. } => (cluster, changes),
            Told::Complete => {
                let news = !self.complete;
                self.complete = true;
                return news;
            }
            // Who has gone is said by the API alone ([`Self::peers`]); but what comes next of it is all there is.
            Told::Gone { cluster } => {
                self.told.remove(&cluster);
                if self.peers.synced && !self.peers.peers.contains_key(cluster.as_str()) {
                    self.states.remove(&cluster);
                }
                return false;
            }
            // Whether one is silent concerns services.
            Told::Heard { .. } => return false,
        };
        // Agents are told of their own cluster, too, and know better.
        if cluster == self.own.0 {
            return false;
        }
        // Also what nobody has joined yet: it is not told again when the ClusterPeer comes.
        let first = self.told.insert(cluster.clone());
        let before = if first { self.states.remove(&cluster) } else { None };
        let state = self.states.entry(cluster.clone()).or_default();
        let mut news = before.is_some();
        if first {
            // What was wrong with the former state is told again if it still is.
            let count = self.unusable.len();
            self.unusable.retain(|node, _| node.cluster() != Some(cluster.as_str()));
            news |= self.unusable.len() != count;
        }
        let mut keys = BTreeSet::new();
        for change in changes {
            let key = change.key();
            if let Key::Node(name) = &key {
                let at = NodeName::foreign(name, &cluster);
                news |= self.unusable.remove(&at).is_some();
                // The contract says what keys are made of, not what they are worth.
                if let Change::Put(Object::Node(_, node)) = &change
                    && let Err(error) = keyring::codec::check(&node.announcement)
                {
                    let text =
                        format!("node {at}: its announcement is refused, the former one stays: {error}");
                    news = true;
                    if self.unusable.len() < SENTENCES {
                        self.unusable.insert(at, text);
                    }
                    continue;
                }
            }
            let changed = match key.kind() {
                // They are served by way of the API's own objects.
                Kind::Service | Kind::Backend => false,
                Kind::Node | Kind::LabelSet | Kind::Namespace | Kind::Endpoint => state.apply(change),
            };
            match key.kind() {
                Kind::Node => news |= changed,
                // Numbers of label sets are not used again, so this is a new one, or one of nobody any more.
                Kind::LabelSet | Kind::Service | Kind::Backend => {}
                Kind::Namespace | Kind::Endpoint if changed => drop(keys.insert(key)),
                Kind::Namespace | Kind::Endpoint => {}
            }
        }
        if !self.pods.asked().nobody() && !self.anew && self.believed.cidrs.contains_key(&cluster) {
            self.pods.changed(&cluster, state, &self.claims, &keys, &mut self.foreign);
        }
        self.anew |= first || self.pods.has_room_again();
        news
    }

    /// What policy is to be told; none: nothing new.
    pub fn for_policy(&mut self) -> Option<Foreign> {
        if std::mem::take(&mut self.anew) {
            let known = self.states.iter().filter(|(name, _)| self.believed.cidrs.contains_key(*name));
            self.pods.all(known, &self.claims, &mut self.foreign);
        }
        let reach = Arc::clone(&self.reach);
        // Without a ClusterPeer there is nobody to be told of.
        let complete = self.judged && (self.complete || (self.peers.synced && reach.is_empty()));
        let complete = complete.then(|| self.pods.asked().clone());
        let mut told = std::mem::take(&mut self.foreign);
        let standing = (Arc::clone(&reach), complete.clone());
        if told.namespaces.is_empty() && told.pods.is_empty() && self.standing == standing {
            return None;
        }
        self.standing = standing;
        (told.reach, told.complete) = (Some(reach), complete);
        Some(told)
    }

    /// Judges anew. Before all ClusterPeers are known nothing of what was believed goes.
    pub fn decide(&mut self, nodes: &Nodes) {
        let (mut findings, mut more) = (Vec::new(), 0_usize);
        // Beyond its bound each node of a large clusterset is a refusal.
        let mut tell = |refusal: &Refusal| {
            if findings.len() < SENTENCES {
                findings.push(finding(refusal));
            } else {
                more += 1;
            }
        };
        let remembered = self.remembered_peers();
        let mut peers: Vec<ClusterPeer> = Vec::new();
        let mut unread: BTreeSet<ClusterName> = BTreeSet::new();
        for (name, (created, spec)) in &self.peers.peers {
            let refused = match spec {
                Ok(spec) => {
                    let (mut peer, refused) = ClusterPeer::parse(name, *created, spec);
                    // One that cannot be read may be one that was guarded: it stays so until somebody has corrected it.
                    if let Some(peer) = peer.as_mut().filter(|_| refused.iter().any(Refusal::is_of_pod_cidr))
                    {
                        let before = remembered.iter().filter(|before| before.name == peer.name);
                        let before = before.flat_map(|before| before.pod_cidrs.iter().copied());
                        let lost: Vec<IpNet> = before
                            .filter(|cidr| !peer.pod_cidrs.iter().any(|now| now.contains(cidr)))
                            .collect();
                        peer.pod_cidrs.extend(lost);
                        unread.insert(peer.name.clone());
                    }
                    peers.extend(peer);
                    refused
                }
                Err(reason) => {
                    // What it said before stays in force.
                    peers.extend(remembered.iter().find(|peer| peer.name.as_str() == name).cloned());
                    unread.extend(name.parse());
                    let (field, reason) = ("spec".to_owned(), reason.clone());
                    vec![Refusal::PeerMalformed { peer: name.clone(), field, value: String::new(), reason }]
                }
            };
            refused.iter().for_each(&mut tell);
        }
        if !self.peers.synced {
            let known: BTreeSet<ClusterName> = peers.iter().map(|peer| peer.name.clone()).collect();
            let others = remembered.into_iter().filter(|peer| !known.contains(&peer.name));
            for peer in others {
                unread.insert(peer.name.clone());
                peers.push(peer);
            }
        }
        for refusal in self.look(&peers) {
            tell(&refusal);
        }
        for peer in &mut peers {
            peer.pod_cidrs.retain(|cidr| self.has_ipv6 || cidr.addr().is_ipv4());
        }
        // Nodes of ours that are not known yet could not defend what is theirs.
        if nodes.synced {
            let (believed, claims, refused) = self.judge(nodes, &peers);
            refused.iter().for_each(&mut tell);
            // Of pods on nodes that are believed only now, or no longer.
            self.anew |= claims.have_other_places_than(&self.claims) || !self.judged;
            self.judged = true;
            self.settled |= self.peers.synced;
            let own = &self.own.1;
            self.disputed =
                disputed(own, (&self.believed.cidrs, &self.disputed), (&peers, &unread), &believed);
            (self.believed, self.claims) = (believed, claims);
            let reach = self.believed.reach();
            if reach != *self.reach {
                self.reach = Arc::new(reach);
            }
        }
        for text in self.unusable.values() {
            if findings.len() < SENTENCES {
                findings.push(("joined-cluster-announcement".to_owned(), text.clone()));
            } else {
                more += 1;
            }
        }
        // First of all, and once for each cluster: among thousands that are beyond a bound nobody would see it.
        let mut first: Vec<_> = self.signatures.refused().map(not_signed).collect();
        first.append(&mut findings);
        more += first.len().saturating_sub(SENTENCES);
        first.truncate(SENTENCES);
        let findings = first;
        self.findings = (findings, more);
    }

    /// Looks at signatures that are new. Gives what is wrong with the trust bundles.
    fn look(&mut self, peers: &[ClusterPeer]) -> Vec<Refusal> {
        self.signatures.keep(&peers.iter().map(|peer| &peer.name).collect());
        let mut refusals = Vec::new();
        for ClusterPeer { name, trust_bundle, .. } in peers {
            // Without one the former stays: one that nobody can read was refused before.
            let trusted = trust_bundle.as_ref().map(|bundle| self.signatures.trust(name, bundle.as_str()));
            if let Some(Err(error)) = trusted {
                let (peer, field, value) = (name.to_string(), "spec.trustBundle".to_owned(), String::new());
                let reason = format!("{error}; until then the former one counts");
                refusals.push(Refusal::PeerMalformed { peer, field, value, reason });
            }
            if let Some(state) = self.states.get(name) {
                self.signatures.look(name, state);
            }
        }
        refusals
    }

    /// What was decided, and which of the pods that policy asks for are refused ([`Self::for_policy`]).
    pub fn joined(&mut self) -> Joined {
        let (mut findings, mut more) = self.findings.clone();
        for refusal in self.pods.refused() {
            if findings.len() < SENTENCES {
                findings.push(finding(refusal));
            } else {
                more += 1;
            }
        }
        let others = match (more, self.pods.has_more_refused()) {
            (0, false) => None,
            (0, true) => Some("more pods of joined clusters than these are refused".to_owned()),
            (more, false) => Some(format!("{more} more of joined clusters")),
            (more, true) => {
                Some(format!("{more} more of joined clusters, and more pods than these are refused"))
            }
        };
        findings.extend(others.map(|text| ("joined-cluster-more".to_owned(), text)));
        let (believed, disputed) = (self.believed.clone(), self.disputed.clone());
        Joined { believed, disputed, findings, synced: self.settled }
    }

    /// Are other pods refused than [`Self::joined`] has said?
    pub const fn has_unsaid(&self) -> bool {
        self.pods.has_unsaid()
    }

    /// How many objects are known of all clusters, by kind; only of kinds that are kept.
    pub fn counts(&self) -> [(Kind, usize); 4] {
        [Kind::Node, Kind::LabelSet, Kind::Namespace, Kind::Endpoint]
            .map(|kind| (kind, self.states.values().map(|state| state.count(kind)).sum()))
    }

    /// Writes the file if there is news. False: that failed, and is tried again with the next call.
    pub async fn save(&mut self) -> bool {
        let remembered = |name: &ClusterName| {
            let cidrs = |of: &BTreeMap<ClusterName, Vec<IpNet>>| of.get(name).cloned().unwrap_or_default();
            let nodes = self.states.get(name).into_iter().flat_map(|state| &state.nodes);
            // Of more than these nothing would come of a start: they are beyond the bound, or refused.
            let nodes =
                nodes.filter(|(node, _)| self.believed.nodes.contains_key(&NodeName::foreign(node, name)));
            let nodes = nodes.filter(|(node, told)| self.signatures.signed(name, node, told));
            let nodes =
                nodes.filter_map(|(name, node)| Some((NodeName::clone(name), RememberedNode::of(node)?)));
            let trust_bundle = self.signatures.bundle(name).unwrap_or_default().to_owned();
            let (pod_cidrs, disputed) = (cidrs(&self.believed.cidrs), cidrs(&self.disputed));
            (name.clone(), Remembered { pod_cidrs, disputed, trust_bundle, nodes: nodes.collect() })
        };
        let names = self.believed.cidrs.keys().chain(self.disputed.keys());
        let memory = Memory(names.map(remembered).collect());
        if memory != self.file.value {
            self.file.value = memory;
            self.file.touch(true);
        }
        self.file.save().await
    }
}

/// Its code and its sentence.
fn finding(refusal: &Refusal) -> (String, String) {
    (format!("joined-cluster-{}", kebab(refusal.reason())), refusal.to_string())
}

/// A cluster with nodes that it has not signed, the first of them and their number.
fn not_signed((cluster, node, count): (&ClusterName, &NodeName, usize)) -> (String, String) {
    let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    let text = format!(
        "node {node}{others} of cluster {cluster}: no authority in spec.trustBundle of ClusterPeer {cluster} has signed it as it is told; refused; copy the trust bundle from cluster {cluster} again, or find out who tells it: clustermesh of this cluster may have been taken over"
    );
    ("joined-cluster-node-not-signed".to_owned(), text)
}

/// `NodeKeyTwice` as `node-key-twice`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Folds until a sender is gone.
pub async fn run(
    mut register: Register,
    mut peers: watch::Receiver<Peers>,
    mut nodes: watch::Receiver<Nodes>,
    mut told: mpsc::Receiver<Told>,
    mut asks: watch::Receiver<AskedClusters>,
    (tell, mailbox): (watch::Sender<Arc<Joined>>, Arc<Mailbox>),
    metrics: Metrics,
) {
    // When the file is written again that could not be. What is told meanwhile does not put it off.
    let mut again: Option<tokio::time::Instant> = None;
    loop {
        let due = again.unwrap_or_else(tokio::time::Instant::now);
        let news = tokio::select! {
            changed = peers.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = peers.borrow_and_update().clone();
                register.peers(now);
                true
            }
            changed = nodes.changed() => {
                if changed.is_err() {
                    return;
                }
                true
            }
            changed = asks.changed() => {
                if changed.is_err() {
                    return;
                }
                let asked = asks.borrow_and_update().clone();
                register.ask(asked);
                false
            }
            one = told.recv() => {
                let Some(one) = one else { return };
                let mut news = register.hear(one);
                // A snapshot comes in pieces; each decision goes over all nodes. Who tells without end is not waited for.
                for _ in 0..QUEUE {
                    let Ok(one) = told.try_recv() else { break };
                    news |= register.hear(one);
                }
                news
            }
            () = tokio::time::sleep_until(due), if again.is_some() => true,
        };
        metrics.set_joined_objects(&register.counts());
        if news {
            register.decide(&nodes.borrow_and_update());
            // Before anything rests on it, if it can be: a node that starts again must guard what it has guarded.
            let saved = register.save().await;
            again = (!saved).then(|| tokio::time::Instant::now() + SAVE_AGAIN);
        }
        if let Some(foreign) = register.for_policy() {
            mailbox.post(|mail| mail.foreign.extend(foreign));
        }
        if news || register.has_unsaid() {
            let joined = register.joined();
            tell.send_if_modified(|present| {
                let news = **present != joined;
                if news {
                    *present = Arc::new(joined);
                }
                news
            });
        }
    }
}

/// After a file could not be written.
const SAVE_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests;
