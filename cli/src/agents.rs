//! The agents: where each is, and what it answers. Everything has a deadline, and only so many are asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Config, ResourceExt as _};
use mesh_core::evidence::{NodeEvidence, PATH, VERSION};
use mesh_core::numbers::{NAMESPACE, PORT_METRICS};
use serde_json::Value;

use crate::api::{ApiError, Cluster, chain};
use crate::audit::canonical::canonical;
use crate::output;

mod forward;

/// Agents asked at the same time: each answer of a large cluster is about a megabyte.
pub const AT_ONCE: usize = 16;
/// For so long the API server's proxy is waited for alone. A server that a firewall keeps from the port tries for 30 s
/// (`k8s.io/apimachinery/pkg/util/net`, `dialContext` of its transports), which is longer than anybody waits for an answer.
const PROXY_ALONE: Duration = Duration::from_secs(3);
/// The agent of a node that is not Ready is waited for so long at most: of a large outage most never answer.
const NOT_READY: Duration = Duration::from_secs(5);
/// Longest answer, in bytes: evidence about 5,000 peers is about 6 MB.
const ANSWER_MAX: usize = 32 << 20;
/// Why an agent has no answer that was asked.
pub const NOT_WAITED: &str = "its answer was not waited for";
/// By which pods of agents are known.
const LABEL: &str = "app.kubernetes.io/name=mesh-agent";

/// How agents are asked.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Ask this agent directly, in place of the API server's proxy to pods; may be given for each node.
    #[arg(long = "agent", value_name = "[NODE=]http://ADDRESS:PORT")]
    pub agents: Vec<AgentAddress>,
    /// Port of the agents' metrics.
    #[arg(long, default_value_t = PORT_METRICS)]
    pub agent_port: u16,
    /// Seconds for each answer; from nodes that are not Ready at most 5.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
}

impl AgentArgs {
    /// For each answer.
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// An agent's address of which no client can be made.
#[derive(Debug, thiserror::Error)]
#[error("--agent {address}: {why}")]
pub struct AgentError {
    /// Which.
    pub address: String,
    /// Why.
    pub why: String,
}

/// What an agent said, or why it said nothing.
pub type Answer = Result<Box<NodeEvidence>, String>;

/// An answer, and when it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer.
    pub answer: Answer,
    /// In seconds since 1970 by this machine's clock.
    pub at: u64,
}

impl Reply {
    /// One that has just come.
    fn now(answer: Answer) -> Self {
        Self { answer, at: output::now() }
    }
}

/// An agent that is asked directly: `[NODE=]http://ADDRESS:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAddress {
    /// Whose it is; none: it will say.
    pub node: Option<String>,
    /// Where it serves its metrics.
    pub url: http::Uri,
}

/// Why a text is not the address of an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an agent's address: wanted [NODE=]http://ADDRESS:PORT of its metrics, without a path or a password"
)]
pub struct AddressError(String);

impl FromStr for AgentAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.chars().take(120).collect());
        let (node, url) = match text.split_once('=') {
            Some((node, url)) => (Some(node.to_owned()), url),
            None => (None, text),
        };
        let url: http::Uri = url.parse().map_err(|_| wrong())?;
        let plain = url.scheme_str() == Some("http")
            && url.port().is_some()
            && !url.authority().is_some_and(|authority| authority.as_str().contains('@'))
            && url.path() == "/"
            && url.query().is_none();
        let named = node.as_ref().is_none_or(|node| node.parse::<mesh_core::name::NodeName>().is_ok());
        if plain && named { Ok(Self { node, url }) } else { Err(wrong()) }
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.url.authority().map_or("", |authority| authority.as_str()))
    }
}

/// Where the API server hands requests on to a pod's port.
pub fn proxy_path(pod: &str, port: u16, path: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods/http:{pod}:{port}/proxy{path}")
}

/// How an agent is asked.
#[derive(Clone)]
pub struct Way {
    client: Client,
    /// Its pod and port; none: the client's server is the agent.
    pod: Option<(String, u16)>,
    /// A port-forward reached its pod where the API server did not, or sooner: it is asked that way for as long as that answers.
    forwarded: Arc<AtomicBool>,
    /// For messages.
    by: String,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by)
    }
}

impl Way {
    /// By its address.
    ///
    /// # Errors
    /// No client can be made.
    pub fn direct(address: &AgentAddress) -> Result<Self, AgentError> {
        let mut config = Config::new(address.url.clone());
        config.default_retry = false;
        let wrong = |error: kube::Error| AgentError { address: address.to_string(), why: error.to_string() };
        let client = Client::try_from(config).map_err(wrong)?;
        Ok(Self { client, pod: None, forwarded: Arc::default(), by: address.to_string() })
    }

    /// By the API server: its proxy to pods, and where that does not reach the agent, a port-forward. What an agent serves on its
    /// node alone, which is the default, is reached by the second.
    pub fn by_api(client: &Client, pod: &str, port: u16) -> Self {
        let by = format!("pod {NAMESPACE}/{pod}, port {port}, by the API server's proxy");
        Self { client: client.clone(), pod: Some((pod.to_owned(), port)), forwarded: Arc::default(), by }
    }

    /// Asks for its evidence.
    ///
    /// # Errors
    /// There is none: why.
    pub async fn ask(&self, deadline: Duration) -> Answer {
        let bytes = self.get(PATH, deadline).await?;
        parse(&bytes).map_err(|why| format!("{}: {why}", self.by))
    }

    /// Asks for what it has at a path.
    ///
    /// # Errors
    /// There is no answer: why.
    pub async fn get(&self, path: &str, deadline: Duration) -> Result<Vec<u8>, String> {
        self.fetch(path, deadline).await.map_err(|why| format!("{}: {why}", self.by))
    }

    async fn fetch(&self, path: &str, deadline: Duration) -> Result<Vec<u8>, String> {
        let words = |refusal: Refusal| refusal.why;
        let Some((pod, port)) = &self.pod else {
            return within(deadline, deadline, self.send(path)).await.map_err(words);
        };
        if self.forwarded.load(Ordering::Relaxed) {
            let answer = within(deadline, deadline, self.forward(pod, *port, path)).await;
            self.forwarded.store(answer.is_ok(), Ordering::Relaxed);
            return answer.map_err(words);
        }
        let alone = PROXY_ALONE.min(deadline / 4);
        let proxy = proxy_path(pod, *port, path);
        let mut proxied = pin!(within(deadline, deadline, self.send(&proxy)));
        let mut first = match tokio::time::timeout(alone, &mut proxied).await {
            Ok(Err(refusal)) if refusal.unreached => Some(refusal),
            Ok(answer) => return answer.map_err(words),
            Err(_) => None,
        };
        let mut forwarded = pin!(within(deadline - alone, deadline, self.forward(pod, *port, path)));
        let second = loop {
            tokio::select! {
                answer = &mut proxied, if first.is_none() => match answer {
                    Err(refusal) if refusal.unreached => first = Some(refusal),
                    answer => return answer.map_err(words),
                },
                answer = &mut forwarded => match answer {
                    Ok(bytes) => {
                        self.forwarded.store(true, Ordering::Relaxed);
                        return Ok(bytes);
                    }
                    Err(refusal) => break refusal,
                },
            }
        };
        let first = match first {
            Some(refusal) => refusal,
            None => match proxied.await {
                Ok(bytes) => return Ok(bytes),
                Err(refusal) => refusal,
            },
        };
        Err(format!("{}; and by a port-forward: {}", first.why, second.why))
    }

    async fn send(&self, path: &str) -> Result<Vec<u8>, Refusal> {
        let request = http::Request::get(path).body(kube::client::Body::empty()).map_err(Refusal::new)?;
        let answer = self.client.send(request).await.map_err(|error| Refusal::new(chain(&error)))?;
        read(answer).await
    }

    async fn forward(&self, pod: &str, port: u16, path: &str) -> Result<Vec<u8>, Refusal> {
        let (answer, _open) = forward::get(&self.client, pod, port, path).await.map_err(Refusal::new)?;
        read(answer).await
    }
}

/// An answer within what is left of a deadline, or that it took too long.
async fn within<T>(
    left: Duration,
    deadline: Duration,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let late = || Refusal { why: format!("no answer in {} s", deadline.as_secs()), unreached: true };
    tokio::time::timeout(left, answer).await.unwrap_or_else(|_| Err(late()))
}

/// Why there is no answer.
#[derive(Debug)]
struct Refusal {
    why: String,
    /// The API server has tried to reach the pod, in vain.
    unreached: bool,
}

impl Refusal {
    fn new(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), unreached: false }
    }
}

/// What is answered, or what is said in its place.
async fn read<B>(answer: http::Response<B>) -> Result<Vec<u8>, Refusal>
where
    B: http_body_util::BodyExt,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| {
        Refusal::new(format!("its answer breaks off or is longer than {ANSWER_MAX} bytes: {error}"))
    })?;
    let body = body.to_bytes();
    if status.is_success() {
        return Ok(body.to_vec());
    }
    let text = String::from_utf8_lossy(&body);
    // The API server's own words come as an object, those of an agent as text: an agent that says no was reached.
    let said = serde_json::from_str::<Value>(&text).ok().filter(|said| said["kind"] == "Status");
    let words = said.as_ref().map_or(&*text, |said| said["message"].as_str().unwrap_or_default());
    let words: String = words.trim().chars().take(200).collect();
    let (unreached, hint) = match (status.as_u16(), said.is_some()) {
        (403, true) => {
            (false, "; get on pods/proxy must be allowed to you (deploy/cli.yaml, deploy/audit.yaml)")
        }
        (404, true) => (false, "; its pod has gone meanwhile: ask again"),
        (404, false) => (false, "; its agent is older than this program"),
        (502..=504, true) => (true, "; metricsAddress of its agent must be one that the API server reaches"),
        (503, false) => (false, "; its agent runs: ask again in some seconds"),
        // Of who stands between, since no agent says that.
        (502 | 504, false) => (true, ""),
        _ => (false, ""),
    };
    Err(Refusal { why: format!("{status}: {words}{hint}"), unreached })
}

/// Reads an answer; its version first, since another one need not have this one's shape.
fn parse(bytes: &[u8]) -> Result<Box<NodeEvidence>, String> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let wrong = |error: serde_json::Error| {
        format!("its answer is no evidence ({error}); is it the metrics address of mesh-agent?")
    };
    let Version { v } = serde_json::from_slice(bytes).map_err(wrong)?;
    if v != VERSION {
        return Err(format!(
            "it gives evidence of version {v}, this program reads {VERSION}; use the hawser of its release"
        ));
    }
    // A number that no report can hold would cost everybody the report.
    let whole: Value = serde_json::from_slice(bytes).map_err(wrong)?;
    canonical(&whole).map_err(|error| format!("its answer is no evidence: {error}"))?;
    serde_json::from_value(whole).map_err(wrong)
}

/// The nodes and how each is asked.
#[derive(Debug)]
pub struct Targets {
    /// By node.
    pub ways: BTreeMap<String, Way>,
    /// Nodes of the API; none: they were not read.
    pub nodes: Option<BTreeSet<String>>,
    /// Nodes that are not Ready: their agents are asked last, and not waited for as long.
    pub not_ready: BTreeSet<String>,
    /// Agents of which it is not known whose they are.
    pub unnamed: Vec<Way>,
    /// What fits to nothing.
    pub strangers: Vec<String>,
    /// Why there is nobody to be asked for a node.
    pub nobody: String,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            ways: BTreeMap::new(),
            nodes: None,
            not_ready: BTreeSet::new(),
            unnamed: Vec::new(),
            strangers: Vec::new(),
            nobody: "no agent was named for it with --agent".to_owned(),
        }
    }
}

/// What all agents said.
#[derive(Debug, Default)]
pub struct Heard {
    /// By node: of each Node of the API, or of each that answered where the API was not asked.
    pub nodes: BTreeMap<String, Reply>,
    /// Who answers and is nobody's.
    pub strangers: Vec<String>,
}

impl Targets {
    /// Agents that were given by their addresses.
    ///
    /// # Errors
    /// Of one no client can be made.
    pub fn named_by_hand(agents: &[AgentAddress]) -> Result<Self, AgentError> {
        let mut targets = Self::default();
        for address in agents {
            let way = Way::direct(address)?;
            let Some(node) = &address.node else {
                targets.unnamed.push(way);
                continue;
            };
            if targets.ways.insert(node.clone(), way).is_some() {
                targets
                    .strangers
                    .push(format!("--agent is given twice for node {node}; the last one was asked"));
            }
        }
        Ok(targets)
    }

    /// The pods of agents, where none were named by hand: one for each node, of two the one that is not on its way out. Why they
    /// cannot be listed is what their nodes' silence is explained by.
    pub async fn find(&mut self, cluster: &Cluster, port: u16) {
        if !self.ways.is_empty() || !self.unnamed.is_empty() {
            return;
        }
        match pods(cluster).await {
            Ok(pods) => {
                self.nobody =
                    format!("no pod of mesh-agent in {NAMESPACE} is on it; see the DaemonSet mesh-agent");
                let ways = chosen(&pods).into_iter();
                self.ways = ways.map(|(node, pod)| (node, Way::by_api(&cluster.proxy, &pod, port))).collect();
            }
            Err(why) => self.nobody = format!("the pods of mesh-agent could not be listed: {why}"),
        }
    }

    /// How long the agent of a node is waited for.
    fn patience(&self, node: &str, deadline: Duration) -> Duration {
        if self.not_ready.contains(node) { deadline.min(NOT_READY) } else { deadline }
    }

    /// Asks the agents of some nodes, and those of which it is not known whose they are: an answer of each of the nodes, or why there is
    /// none.
    pub async fn of_nodes(&self, nodes: BTreeSet<String>, deadline: Duration) -> BTreeMap<String, Answer> {
        if nodes.is_empty() {
            return BTreeMap::new();
        }
        let named = self.ways.iter().filter(|(node, _)| nodes.contains(*node));
        let named = named.map(|(node, way)| (node.clone(), way.clone(), self.patience(node, deadline)));
        let unnamed = self.unnamed.iter().map(|way| (format!("{way:?}"), way.clone(), deadline));
        let (named, unnamed) = futures::future::join(ask(named.collect()), ask(unnamed.collect())).await;
        let targets = Self { nodes: Some(nodes), nobody: self.nobody.clone(), ..Self::default() };
        let replies = assign(&targets, named, unnamed).nodes.into_iter();
        replies.map(|(node, reply)| (node, reply.answer)).collect()
    }

    /// Agents of known nodes in the order in which they are asked, and how long each is waited for.
    pub fn in_turn(&self, deadline: Duration) -> Vec<(String, Way, Duration)> {
        let all = self.ways.iter();
        let mut all: Vec<(String, Way, Duration)> =
            all.map(|(node, way)| (node.clone(), way.clone(), self.patience(node, deadline))).collect();
        all.sort_by_key(|(node, ..)| self.not_ready.contains(node));
        all
    }

    /// Asks everybody once, and learns whose the agents are that were named without a node.
    pub async fn first_look(&mut self, deadline: Duration) -> Heard {
        self.first_look_until(deadline, std::future::pending()).await
    }

    /// The same, until `stop`: who has not answered by then is not waited for.
    pub async fn first_look_until(&mut self, deadline: Duration, stop: impl Future<Output = ()>) -> Heard {
        let stop = stop.shared();
        let unnamed = self.unnamed.iter().map(|way| (way.clone(), way.clone(), deadline)).collect();
        let named = asking(self.in_turn(deadline)).take_until(stop.clone());
        let mut named: BTreeMap<String, Reply> = named.collect::<Vec<_>>().await.into_iter().collect();
        for node in self.ways.keys() {
            named.entry(node.clone()).or_insert_with(|| Reply::now(Err(NOT_WAITED.to_owned())));
        }
        let mut replies = Vec::new();
        for (way, reply) in asking(unnamed).take_until(stop).collect::<Vec<_>>().await {
            let by = format!("{way:?}");
            if let Ok(evidence) = &reply.answer {
                self.ways.entry(evidence.node.to_string()).or_insert(way);
            }
            replies.push((by, reply));
        }
        assign(self, named.into_iter().collect(), replies)
    }
}

/// The pods of agents.
///
/// # Errors
/// They cannot be listed.
pub async fn pods(cluster: &Cluster) -> Result<Vec<Pod>, ApiError> {
    cluster.all(("pods", Some(NAMESPACE)), Some(LABEL)).await
}

/// Is a pod running, and not on its way out?
fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
}

/// The nodes of those pods that run.
pub fn running(pods: &[Pod]) -> BTreeSet<String> {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    pods.iter().filter(|pod| lives(pod)).filter_map(node).collect()
}

fn chosen(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut by_node: BTreeMap<String, (bool, String)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        let lives = lives(pod);
        let better = by_node.get(&node).is_none_or(|(before, _)| lives && !before);
        if better {
            by_node.insert(node, (lives, pod.name_any()));
        }
    }
    by_node.into_iter().map(|(node, (_, pod))| (node, pod)).collect()
}

/// Asks some agents, each by its way and for as long as is said there.
pub async fn ask<T>(ways: Vec<(T, Way, Duration)>) -> Vec<(T, Reply)> {
    asking(ways).collect().await
}

/// The same; answers as they come.
fn asking<T>(ways: Vec<(T, Way, Duration)>) -> impl futures::Stream<Item = (T, Reply)> {
    futures::stream::iter(ways)
        .map(|(who, way, patience)| async move {
            let answer = way.ask(patience).await;
            (who, Reply::now(answer))
        })
        .buffer_unordered(AT_ONCE)
}

/// Brings answers to their nodes.
fn assign(targets: &Targets, named: Vec<(String, Reply)>, unnamed: Vec<(String, Reply)>) -> Heard {
    let mut strangers = targets.strangers.clone();
    let mut replies: BTreeMap<String, Reply> = BTreeMap::new();
    for (node, Reply { answer, at }) in named {
        let answer = answer.and_then(|evidence| {
            if evidence.node.as_str() == node {
                return Ok(evidence);
            }
            Err(format!("what was asked for it answers as node {}", evidence.node))
        });
        replies.insert(node, Reply { answer, at });
    }
    for (by, Reply { answer, at }) in unnamed {
        match answer {
            Ok(evidence) => {
                let node = evidence.node.to_string();
                if replies.get(&node).is_some_and(|reply| reply.answer.is_ok()) {
                    strangers.push(format!("{by}: answers as node {node}, which has answered already"));
                } else {
                    replies.insert(node, Reply { answer: Ok(evidence), at });
                }
            }
            Err(why) => strangers.push(format!("an agent of no known node is silent: {why}")),
        }
    }
    let mut nodes: BTreeMap<String, Reply> = targets
        .nodes
        .iter()
        .flatten()
        .map(|name| {
            let nobody = || Reply::now(Err(targets.nobody.clone()));
            (name.clone(), replies.remove(name).unwrap_or_else(nobody))
        })
        .collect();
    // With a list of Nodes, an answer of another one is not the cluster's.
    for (name, reply) in replies {
        if targets.nodes.is_none() {
            nodes.insert(name, reply);
        } else {
            strangers
                .push(format!("an agent was asked or answers as node {name}, which the API does not list"));
        }
    }
    Heard { nodes, strangers }
}

#[cfg(test)]
mod tests;
