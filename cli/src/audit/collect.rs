//! Asks the API and the agents. Everything has a deadline, and only so many are asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Node as NodeObject, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams, ObjectList};
use kube::core::PartialObjectMeta;
use kube::{Client, Config, ResourceExt as _};
use mesh_core::evidence::{NodeEvidence, PATH, VERSION};
use mesh_core::numbers::{ANNOTATION_WIREGUARD, NAMESPACE};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::canonical::canonical;
use super::judge::{Announced, Collected};
use super::namespaces;
use super::report::Namespace;

/// Agents asked at the same time: each answer of a large cluster is about a megabyte.
const AT_ONCE: usize = 16;
/// Longest answer, in bytes: evidence about 5,000 peers is about 6 MB.
const ANSWER_MAX: usize = 32 << 20;
/// Objects in one answer of the API.
const PAGE: u32 = 500;
/// By which pods of agents are known.
const LABEL: &str = "app.kubernetes.io/name=mesh-agent";

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
pub fn proxy_path(pod: &str, port: u16) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods/http:{pod}:{port}/proxy{PATH}")
}

/// How an agent is asked.
#[derive(Clone)]
pub struct Way {
    client: Client,
    path: String,
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
    pub fn direct(address: &AgentAddress) -> Result<Self, String> {
        let mut config = Config::new(address.url.clone());
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        Ok(Self { client, path: PATH.to_owned(), by: address.to_string() })
    }

    /// By the API server.
    pub fn by_api(client: &Client, pod: &str, port: u16) -> Self {
        let by = format!("pod {NAMESPACE}/{pod}, port {port}, by the API server's proxy");
        Self { client: client.clone(), path: proxy_path(pod, port), by }
    }

    /// Asks.
    ///
    /// # Errors
    /// There is no evidence: why.
    pub async fn ask(&self, deadline: Duration) -> Result<Box<NodeEvidence>, String> {
        let by = &self.by;
        match tokio::time::timeout(deadline, self.fetch()).await {
            Ok(Ok(bytes)) => parse(&bytes).map_err(|why| format!("{by}: {why}")),
            Ok(Err(why)) => Err(format!("{by}: {why}")),
            Err(_) => Err(format!("{by}: no answer in {} s", deadline.as_secs())),
        }
    }

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let request =
            http::Request::get(&self.path).body(kube::client::Body::empty()).map_err(|e| e.to_string())?;
        let answer = self.client.send(request).await.map_err(|error| chain(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| {
            format!("its answer breaks off or is longer than {ANSWER_MAX} bytes: {error}")
        })?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let text: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        let hint = match status.as_u16() {
            403 => "; get on pods/proxy must be allowed to you",
            404 => "; its agent is older than hawser audit",
            502..=504 => "; metricsAddress of its agent must be one that the API server reaches",
            _ => "",
        };
        Err(format!("{status}: {text}{hint}"))
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
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
#[derive(Debug, Default)]
pub struct Targets {
    /// By node.
    pub ways: BTreeMap<String, Way>,
    /// Nodes of the API, by what they announce; none: they were not read.
    pub nodes: Option<BTreeMap<String, Announced>>,
    /// Agents of which it is not known whose they are.
    pub unnamed: Vec<Way>,
    /// What fits to nothing.
    pub strangers: Vec<String>,
}

/// Everything that a kind has, page by page.
async fn all<K>(api: &Api<K>, labels: Option<&str>) -> Result<Vec<K>, String>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = labels.map(str::to_owned);
    pages(params, async |params| api.list(params).await).await
}

/// The same without specification and status.
async fn all_metadata<K>(api: &Api<K>) -> Result<Vec<PartialObjectMeta<K>>, String>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    pages(ListParams::default().limit(PAGE), async |params| api.list_metadata(params).await).await
}

/// What `list` gives, until there is no more.
async fn pages<T: Clone>(
    mut params: ListParams,
    list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<T>>,
) -> Result<Vec<T>, String> {
    let mut items = Vec::new();
    loop {
        let page = list(&params).await.map_err(|error| chain(&error))?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// The API's Nodes.
///
/// # Errors
/// They cannot be listed: why.
pub async fn nodes(client: &Client) -> Result<BTreeMap<String, Announced>, String> {
    let nodes = all_metadata(&Api::<NodeObject>::all(client.clone())).await?;
    let announced = |node: &PartialObjectMeta<NodeObject>| match node.annotations().get(ANNOTATION_WIREGUARD)
    {
        None => Announced::Missing,
        Some(text) => match keyring::decode(text) {
            Ok(_) => Announced::Valid,
            Err(error) => Announced::Malformed(error.to_string()),
        },
    };
    Ok(nodes.iter().map(|node| (node.name_any(), announced(node))).collect())
}

/// The pods of agents, one for each node: of two the one that is not on its way out. `proxy` asks them, once.
///
/// # Errors
/// They cannot be listed: why.
pub async fn agents(client: &Client, proxy: &Client, port: u16) -> Result<BTreeMap<String, Way>, String> {
    let pods = all(&Api::<Pod>::namespaced(client.clone(), NAMESPACE), Some(LABEL)).await?;
    Ok(chosen(&pods).into_iter().map(|(node, pod)| (node, Way::by_api(proxy, &pod, port))).collect())
}

fn chosen(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut by_node: BTreeMap<String, (bool, String)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let lives = pod.metadata.deletion_timestamp.is_none() && phase == Some("Running");
        let better = by_node.get(&node).is_none_or(|(before, _)| lives && !before);
        if better {
            by_node.insert(node, (lives, pod.name_any()));
        }
    }
    by_node.into_iter().map(|(node, (_, pod))| (node, pod)).collect()
}

/// Namespaces and what they deny by default.
///
/// # Errors
/// Namespaces or NetworkPolicies cannot be listed: why.
pub async fn namespaces(client: &Client, exempt: &BTreeSet<String>) -> Result<Vec<Namespace>, String> {
    let objects = all_metadata(&Api::<NamespaceObject>::all(client.clone())).await?;
    let policies = all(&Api::<NetworkPolicy>::all(client.clone()), None).await?;
    let objects: BTreeMap<String, BTreeMap<String, String>> =
        objects.into_iter().map(|object| (object.name_any(), object.annotations().clone())).collect();
    Ok(namespaces::judge(&objects, &policies, exempt))
}

/// Asks some agents, each by its way.
pub async fn ask<T: Clone>(
    ways: Vec<(T, Way)>,
    deadline: Duration,
) -> Vec<(T, Result<Box<NodeEvidence>, String>)> {
    futures::stream::iter(ways)
        .map(|(who, way)| async move { (who, way.ask(deadline).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// Brings answers to their nodes.
pub fn assign(
    targets: &Targets,
    named: Vec<(String, Result<Box<NodeEvidence>, String>)>,
    unnamed: Vec<(String, Result<Box<NodeEvidence>, String>)>,
    nobody: &str,
) -> (BTreeMap<String, Collected>, Vec<String>) {
    let mut strangers = targets.strangers.clone();
    let mut answers: BTreeMap<String, Result<Box<NodeEvidence>, String>> = BTreeMap::new();
    for (node, answer) in named {
        let answer = answer.and_then(|evidence| {
            if evidence.node.as_str() == node {
                return Ok(evidence);
            }
            Err(format!("what was asked for it answers as node {}", evidence.node))
        });
        answers.insert(node, answer);
    }
    for (by, answer) in unnamed {
        match answer {
            Ok(evidence) => {
                let node = evidence.node.to_string();
                if answers.get(&node).is_some_and(Result::is_ok) {
                    strangers.push(format!("{by}: answers as node {node}, which has answered already"));
                } else {
                    answers.insert(node, Ok(evidence));
                }
            }
            Err(why) => strangers.push(format!("an agent of no known node is silent: {why}")),
        }
    }
    let mut nodes: BTreeMap<String, Collected> = targets
        .nodes
        .iter()
        .flatten()
        .map(|(name, announced)| {
            let answer = answers.remove(name).unwrap_or_else(|| Err(nobody.to_owned()));
            (name.clone(), Collected { announced: announced.clone(), answer })
        })
        .collect();
    // With a list of Nodes, an answer of another one is not the cluster's.
    for (name, answer) in answers {
        if targets.nodes.is_none() {
            nodes.insert(name, Collected { announced: Announced::Unread, answer });
        } else {
            strangers
                .push(format!("an agent was asked or answers as node {name}, which the API does not list"));
        }
    }
    (nodes, strangers)
}

#[cfg(test)]
mod tests;
