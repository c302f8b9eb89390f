//! Watches of the API server. Each feeds a [`Cache`] and says when it changed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ApiResource, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use mesh_core::name::NodeName;
use mesh_core::view::NodeFacts;
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;

use crate::cache::{Cache, Told};
use crate::facts::{self, Node, PodMeta};
use crate::metrics::Metrics;

/// A watch that asked this often in a row for a version that is gone (HTTP 410) is begun anew with a list: kube's
/// watcher relists only on the 410 that comes inside a stream.
const GONE_LIMIT: u32 = 3;

/// Nodes by name, and whether the list was complete.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// Their facts.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// A complete list has been seen.
    pub synced: bool,
}

/// Pods of this node by namespace and name, and whether the list was complete.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Their metadata.
    pub pods: BTreeMap<(String, String), PodMeta>,
    /// A complete list has been seen.
    pub synced: bool,
}

/// Nodes, slimmed while they are decoded.
pub fn nodes_api(client: Client) -> Api<Node> {
    Api::all_with(client, &ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&()))
}

/// Watches all Nodes until the receiver is dropped.
pub async fn nodes(client: Client, tell: channel::Sender<Nodes>, metrics: Metrics) {
    let api = nodes_api(client);
    let again = api.clone();
    let read = |node: &Node| facts::node(node);
    let ask = move |name: NodeName| {
        let api = again.clone();
        async move { api.get_opt(name.as_str()).await }
    };
    let changed = |cache: &Cache<NodeName, NodeFacts>| {
        let nodes = cache.iter().map(|(name, facts)| (name.clone(), facts.clone())).collect();
        tell.send_replace(Nodes { nodes, synced: cache.complete() });
        !tell.is_closed()
    };
    let stream = || kube::runtime::watcher(api.clone(), watcher::Config::default());
    follow("nodes", stream, read, ask, changed, &metrics).await;
}

/// Watches the metadata of this node's pods until the receiver is dropped.
pub async fn pods(client: Client, node: NodeName, tell: channel::Sender<Pods>, metrics: Metrics) {
    type Meta = PartialObjectMeta<k8s_openapi::api::core::v1::Pod>;
    let api: Api<Meta> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let read = |pod: &Meta| {
        let key = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
        Some((key, PodMeta::of(&pod.metadata)?))
    };
    let ask = move |(namespace, name): (String, String)| {
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), &namespace);
        async move { api.get_metadata_opt(&name).await }
    };
    let changed = |cache: &Cache<(String, String), PodMeta>| {
        let pods = cache.iter().map(|(key, pod)| (key.clone(), pod.clone())).collect();
        tell.send_replace(Pods { pods, synced: cache.complete() });
        !tell.is_closed()
    };
    let stream = || kube::runtime::watcher(api.clone(), config.clone());
    follow("pods", stream, read, ask, changed, &metrics).await;
}

/// Follows one watch for ever: through closes, errors, and both forms of 410.
async fn follow<O, K, V, S, F, R>(
    what: &'static str,
    stream: impl Fn() -> S,
    read: impl Fn(&O) -> Option<(K, V)>,
    ask: F,
    changed: impl Fn(&Cache<K, V>) -> bool,
    metrics: &Metrics,
) where
    O: ResourceExt + DeserializeOwned + Clone + Debug + Send + 'static,
    K: Ord + Clone + Debug,
    V: PartialEq,
    S: futures::Stream<Item = watcher::Result<Event<O>>> + Send,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    let mut cache = Cache::default();
    loop {
        let mut gone = 0;
        let mut listed = Vec::new();
        let mut events = std::pin::pin!(stream().default_backoff());
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed.extend(versioned(&object, &read));
                    continue;
                }
                Ok(Event::InitDone) => Some(Told::Relisted(std::mem::take(&mut listed))),
                Ok(Event::Apply(object)) => versioned(&object, &read).map(|(k, v, o)| Told::Applied(k, v, o)),
                Ok(Event::Delete(object)) => versioned(&object, &read).map(|(k, v, _)| Told::Deleted(k, v)),
                Err(error) => {
                    metrics.watch_error(what);
                    tracing::warn!(watch = what, err = %error, "Watch interrupted");
                    let is_gone = matches!(&error,
                        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410);
                    gone = if is_gone { gone + 1 } else { 0 };
                    if gone >= GONE_LIMIT {
                        tracing::warn!(watch = what, "Version is gone, listing anew");
                        break;
                    }
                    continue;
                }
            };
            gone = 0;
            let Some(told) = told else { continue };
            let news = !cache.is_known(&told);
            for key in cache.tell(told) {
                settle(what, &mut cache, key, &read, &ask, metrics).await;
            }
            if news && !changed(&cache) {
                return;
            }
        }
    }
}

/// Asks again for an object about which the API server contradicts itself, until it answers.
async fn settle<O, K, V, F, R>(
    what: &'static str,
    cache: &mut Cache<K, V>,
    key: K,
    read: &impl Fn(&O) -> Option<(K, V)>,
    ask: &F,
    metrics: &Metrics,
) where
    O: ResourceExt,
    K: Ord + Clone + Debug,
    V: PartialEq,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match ask(key.clone()).await {
            Ok(found) => {
                let found = found.as_ref().and_then(|object| versioned(object, read));
                tracing::info!(watch = what, ?key, found = found.is_some(), "Settled a doubtful event");
                cache.settle(key, found.map(|(_, version, value)| (version, value)));
                return;
            }
            Err(error) => {
                metrics.watch_error(what);
                tracing::warn!(watch = what, ?key, err = %error, "Could not read a doubtful object");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
        }
    }
}

fn versioned<O: ResourceExt, K, V>(object: &O, read: &impl Fn(&O) -> Option<(K, V)>) -> Option<(K, u64, V)> {
    // A version that is not a number (the API promises none) counts as newest: then the last word is believed.
    let version = object.resource_version().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
    read(object).map(|(key, value)| (key, version, value))
}
