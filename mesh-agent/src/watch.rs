//! Watches of the API server. Each feeds a [`Cache`](crate::cache::Cache) and says what changed: the whole to the main loop (nodes) and to the CNI
//! server (this node's pods), single objects to the thread that decides policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::runtime::watcher::{self, watcher as begin};
use kube::{Api, Client, ResourceExt};
use mesh_core::name::NodeName;
use mesh_core::numbers::NAMESPACE;
use mesh_core::policy::model::ObjectName;
use mesh_core::view::NodeFacts;
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;

use crate::cache::Cache;
use crate::facts::pod::{OwnPod, Pod, RemotePod, name_of};
use crate::facts::{self, Decoded, Node, NodeSeen, decode};
use crate::joined::{Peer, Peers};
use crate::metrics::Metrics;
use crate::publish::within;
use crate::service_cidrs::{ServiceCidr, ServiceCidrs};

mod follow;
pub mod mail;

use follow::{Ended, follow};
use mail::{Mail, Mailbox, Pending};

/// How long a resource that the server does not have is believed to be missing. Policies of a kind that is installed later
/// are in force that much later.
const ABSENT: Duration = Duration::from_secs(15);

/// The same where a kind comes with a new version of the server alone.
const ABSENT_WITH_SERVER: Duration = Duration::from_secs(300);

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
    /// What is known of them.
    pub pods: BTreeMap<ObjectName, Arc<OwnPod>>,
    /// A complete list has been seen.
    pub synced: bool,
}

/// What every watch needs.
#[derive(Clone)]
pub struct Watching {
    /// The API.
    pub client: Client,
    /// Who decides policy.
    pub mailbox: Arc<Mailbox>,
    /// Counts interruptions.
    pub metrics: Metrics,
}

impl Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watching")
    }
}

/// Nodes, slimmed while they are decoded.
pub fn nodes_api(client: Client) -> Api<Node> {
    Api::all_with(client, &ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&()))
}

/// Watches all Nodes until the receiver is dropped. Of the own one it tells also whether its condition `NetworkUnavailable` is True.
pub async fn nodes(
    watching: Watching,
    tell: channel::Sender<Nodes>,
    (own, unavailable): (NodeName, channel::Sender<bool>),
) {
    let api = nodes_api(watching.client.clone());
    let again = api.clone();
    let ask = move |name: NodeName| {
        let api = again.clone();
        async move { api.get_opt(name.as_str()).await }
    };
    let read = |node: &Node| facts::node_seen(node).map(|(name, seen)| (name, Arc::new(seen)));
    let changed = |cache: &Cache<NodeName, Arc<NodeSeen>>, keys: &[NodeName]| {
        watching.mailbox.post(|mail| mail.nodes.put(cache, keys));
        if keys.contains(&own) {
            let now = cache.get(&own).is_some_and(|seen| seen.network_unavailable);
            unavailable.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
        tell.send_if_modified(|nodes| fold_nodes(nodes, cache, keys));
        !tell.is_closed()
    };
    let stream = || begin(api.clone(), watcher::Config::default());
    forever("nodes", stream, read, ask, changed, &watching.metrics).await;
}

/// True: something that the mesh asks for has changed, and not labels alone.
fn fold_nodes(nodes: &mut Nodes, cache: &Cache<NodeName, Arc<NodeSeen>>, keys: &[NodeName]) -> bool {
    let mut news = nodes.synced != cache.complete();
    nodes.synced = cache.complete();
    for key in keys {
        news |= match cache.get(key) {
            Some(seen) if nodes.nodes.get(key) == Some(&seen.facts) => false,
            Some(seen) => nodes.nodes.insert(key.clone(), seen.facts.clone()) != Some(seen.facts.clone()),
            None => nodes.nodes.remove(key).is_some(),
        };
    }
    news
}

/// Watches this node's pods until the receiver is dropped.
pub async fn own_pods(watching: Watching, node: NodeName, tell: channel::Sender<Pods>) {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let api: Api<Pod> = Api::all_with(watching.client.clone(), &resource);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let client = watching.client.clone();
    let ask = move |key: ObjectName| {
        let api: Api<Pod> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
        async move { api.get_opt(&key.name).await }
    };
    let read = |pod: &Pod| Some((name_of(&pod.metadata)?, Arc::new(OwnPod::of(pod)?)));
    let changed = |cache: &Cache<ObjectName, Arc<OwnPod>>, keys: &[ObjectName]| {
        watching.mailbox.post(|mail| mail.own.put(cache, keys));
        tell.send_modify(|pods| {
            pods.synced = cache.complete();
            for key in keys {
                match cache.get(key) {
                    Some(pod) => pods.pods.insert(key.clone(), Arc::clone(pod)),
                    None => pods.pods.remove(key),
                };
            }
        });
        !tell.is_closed()
    };
    let stream = || begin(api.clone(), config.clone());
    forever("own-pods", stream, read, ask, changed, &watching.metrics).await;
}

type Meta<K> = PartialObjectMeta<K>;

/// Watches the metadata of all pods, for ever.
pub async fn pods(watching: Watching) {
    let api: Api<Meta<k8s_openapi::api::core::v1::Pod>> = Api::all(watching.client.clone());
    let client = watching.client.clone();
    let ask = move |key: ObjectName| {
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), &key.namespace);
        async move { api.get_metadata_opt(&key.name).await }
    };
    let read = |pod: &Meta<_>| Some((name_of(&pod.metadata)?, Arc::new(RemotePod::of(&pod.metadata))));
    let changed = |cache: &Cache<ObjectName, Arc<RemotePod>>, keys: &[ObjectName]| {
        watching.mailbox.post(|mail| mail.pods.put(cache, keys));
        true
    };
    let stream = || begin(api.clone(), watcher::Config::default());
    forever("pods", stream, read, ask, changed, &watching.metrics).await;
}

/// Watches the metadata of Namespaces, for ever.
pub async fn namespaces(watching: Watching) {
    let api: Api<Meta<k8s_openapi::api::core::v1::Namespace>> = Api::all(watching.client.clone());
    let again: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(watching.client.clone());
    let ask = move |name: String| {
        let api = again.clone();
        async move { api.get_metadata_opt(&name).await }
    };
    let read = |namespace: &Meta<_>| {
        let name = namespace.metadata.name.clone()?;
        Some((name, Arc::new(decode::namespace(&namespace.metadata))))
    };
    let changed = |cache: &Cache<String, Arc<_>>, keys: &[String]| {
        watching.mailbox.post(|mail| mail.namespaces.put(cache, keys));
        true
    };
    let stream = || begin(api.clone(), watcher::Config::default());
    forever("namespaces", stream, read, ask, changed, &watching.metrics).await;
}

/// Watches NetworkPolicies, for ever.
pub async fn network_policies(watching: Watching) {
    let resource = ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&());
    dynamic(&watching, "network-policies", &resource, &decode::network_policy, &|mail| &mut mail.policies)
        .await;
}

/// Watches Services, for ever.
pub async fn services(watching: Watching) {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&());
    dynamic(&watching, "services", &resource, &decode::whole, &|mail| &mut mail.services).await;
}

/// Watches EndpointSlices, for ever.
pub async fn endpoint_slices(watching: Watching) {
    let resource = ApiResource::erase::<EndpointSlice>(&());
    dynamic(&watching, "endpoint-slices", &resource, &decode::whole, &|mail| &mut mail.slices).await;
}

/// The Service of the API servers.
pub const API_SERVERS: Servers =
    Servers { watch: "api-servers", namespace: "default", service: "kubernetes", port: "https" };
/// The Service of `clustermesh`.
pub const CLUSTERMESH: Servers =
    Servers { watch: "clustermesh", namespace: NAMESPACE, service: "clustermesh", port: "grpc" };

/// A Service whose endpoints the agent itself speaks to, without any proxy or DNS.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    watch: &'static str,
    namespace: &'static str,
    service: &'static str,
    /// Name of its port.
    port: &'static str,
}

/// Watches the slices of a Service until the receiver is dropped.
pub async fn servers(watching: Watching, of: Servers, tell: channel::Sender<BTreeSet<SocketAddr>>) {
    let api: Api<EndpointSlice> = Api::namespaced(watching.client.clone(), of.namespace);
    let again = api.clone();
    let ask = move |name: String| {
        let api = again.clone();
        async move { api.get_opt(&name).await }
    };
    let read = |slice: &EndpointSlice| Some((slice.metadata.name.clone()?, slice.clone()));
    let changed = |cache: &Cache<String, EndpointSlice>, _: &[String]| {
        if cache.complete() {
            let slices = cache.iter().map(|(_, slice)| slice);
            tell.send_replace(crate::servers::servers_in(slices, of.port));
        }
        !tell.is_closed()
    };
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", of.service));
    let stream = || begin(api.clone(), config.clone());
    forever(of.watch, stream, read, ask, changed, &watching.metrics).await;
}

async fn dynamic<T: PartialEq + Send + Sync>(
    watching: &Watching,
    what: &'static str,
    resource: &ApiResource,
    read: &(impl Fn(&DynamicObject) -> Decoded<T> + Sync),
    place: &(impl Fn(&mut Mail) -> &mut Pending<ObjectName, Decoded<T>> + Sync),
) where
    decode::Unreadable<T>: Clone + PartialEq,
{
    let api: Api<DynamicObject> = Api::all_with(watching.client.clone(), resource);
    let ask = |key: ObjectName| {
        let api: Api<DynamicObject> = Api::namespaced_with(watching.client.clone(), &key.namespace, resource);
        async move { api.get_opt(&key.name).await }
    };
    let read = |object: &DynamicObject| Some((name_of(&object.metadata)?, read(object)));
    let changed = |cache: &Cache<ObjectName, Decoded<T>>, keys: &[ObjectName]| {
        watching.mailbox.post(|mail| place(mail).put(cache, keys));
        true
    };
    let stream = || begin(api.clone(), watcher::Config::default());
    forever(what, stream, read, ask, changed, &watching.metrics).await;
}

/// The resource of ClusterNetworkPolicies.
pub fn cluster_policy_resource() -> ApiResource {
    ApiResource {
        group: "policy.networking.k8s.io".to_owned(),
        version: "v1alpha2".to_owned(),
        api_version: "policy.networking.k8s.io/v1alpha2".to_owned(),
        kind: "ClusterNetworkPolicy".to_owned(),
        plural: "clusternetworkpolicies".to_owned(),
    }
}

/// Watches ClusterNetworkPolicies, for ever.
pub async fn cluster_policies(watching: Watching) {
    let changed = |cache: &Cache<String, Decoded<_>>, keys: &[String]| {
        watching.mailbox.post(|mail| mail.cluster.put(cache, keys));
        true
    };
    let resource = cluster_policy_resource();
    optional((&watching, ABSENT), "cluster-network-policies", &resource, decode::cluster_policy, changed)
        .await;
}

/// The resource of ClusterPeers.
pub fn cluster_peer_resource() -> ApiResource {
    ApiResource {
        group: "hawser.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "hawser.dev/v1alpha1".to_owned(),
        kind: "ClusterPeer".to_owned(),
        plural: "clusterpeers".to_owned(),
    }
}

/// Watches ClusterPeers until the receiver is dropped.
pub async fn cluster_peers(watching: Watching, tell: channel::Sender<Peers>) {
    let changed = |cache: &Cache<String, Peer>, keys: &[String]| {
        tell.send_modify(|peers| {
            peers.synced = cache.complete();
            for key in keys {
                match cache.get(key) {
                    Some(peer) => peers.peers.insert(key.clone(), peer.clone()),
                    None => peers.peers.remove(key),
                };
            }
        });
        !tell.is_closed()
    };
    let resource = cluster_peer_resource();
    optional((&watching, ABSENT), "cluster-peers", &resource, decode::cluster_peer, changed).await;
}

/// The resource of ServiceCIDRs.
pub fn service_cidr_resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::networking::v1::ServiceCIDR>(&())
}

/// Watches ServiceCIDRs until the receiver is dropped. They harden, and are not what the network is made of: an agent whose role is
/// of a time before them goes on without, and says so.
pub async fn service_cidrs(watching: Watching, tell: channel::Sender<ServiceCidrs>) {
    let resource = service_cidr_resource();
    let api: Api<DynamicObject> = Api::all_with(watching.client.clone(), &resource);
    loop {
        match within(api.list_metadata(&ListParams::default().limit(1))).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tell.send_if_modified(|present| {
                    let forbidden = ServiceCidrs { synced: true, forbidden: true, ..ServiceCidrs::default() };
                    std::mem::replace(present, forbidden.clone()) != forbidden
                });
                if tell.is_closed() {
                    return;
                }
                tokio::time::sleep(ABSENT_WITH_SERVER).await;
            }
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => break,
            // Nobody has said yet what is allowed.
            Err(_) if !tell.is_closed() => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(_) => return,
        }
    }
    let changed = |cache: &Cache<String, ServiceCidr>, keys: &[String]| {
        tell.send_if_modified(|present| present.fold(cache, keys));
        !tell.is_closed()
    };
    let again = ABSENT_WITH_SERVER;
    optional((&watching, again), "service-cidrs", &resource, decode::service_cidr, changed).await;
}

/// Watches a kind of which a cluster in which it is not installed has none.
async fn optional<V: Clone + PartialEq>(
    (watching, again_after): (&Watching, Duration),
    what: &'static str,
    resource: &ApiResource,
    read: impl Fn(&DynamicObject) -> V + Copy,
    changed: impl Fn(&Cache<String, V>, &[String]) -> bool + Copy,
) {
    let api: Api<DynamicObject> = Api::all_with(watching.client.clone(), resource);
    let again = api.clone();
    let ask = |name: String| {
        let api = again.clone();
        async move { api.get_opt(&name).await }
    };
    let read = |object: &DynamicObject| Some((object.metadata.name.clone()?, read(object)));
    let stream = || begin(api.clone(), watcher::Config::default());
    let (mut cache, mut missed) = (Cache::default(), false);
    loop {
        let ended = follow(what, &mut cache, stream, read, ask, changed, &watching.metrics).await;
        if ended == Ended::Deaf {
            return;
        }
        // Said by two sides, since it takes all of them out of force: by the resource itself and by the list of resources.
        let is_absent = is_served(&watching.client, resource).await == Some(false);
        if is_absent {
            if !missed {
                tracing::info!(
                    watch = what,
                    "The cluster has no such kind; there are none until it is installed"
                );
            }
            missed = true;
            let gone = cache.clear();
            if !changed(&cache, &gone) {
                return;
            }
        }
        // An agent that starts waits for it.
        tokio::time::sleep(if is_absent { again_after } else { ABSENT }).await;
    }
}

/// Does the server list this resource? None: it does not say.
async fn is_served(client: &Client, resource: &ApiResource) -> Option<bool> {
    match within(client.list_api_group_resources(&resource.api_version)).await {
        Ok(list) => Some(list.resources.iter().any(|one| one.name == resource.plural)),
        Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
        Err(error) => {
            tracing::warn!(resource = resource.plural, err = %error, "Could not ask whether the kind is installed");
            None
        }
    }
}

/// Follows a watch of a resource that every API server has.
async fn forever<O, K, V, S, F, R>(
    what: &'static str,
    stream: impl Fn() -> S,
    read: impl Fn(&O) -> Option<(K, V)>,
    ask: F,
    mut changed: impl FnMut(&Cache<K, V>, &[K]) -> bool,
    metrics: &Metrics,
) where
    O: ResourceExt + DeserializeOwned + Clone + Debug + Send + 'static,
    K: Ord + Clone + Debug,
    V: PartialEq,
    S: futures::Stream<Item = watcher::Result<watcher::Event<O>>> + Send,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    let mut cache = Cache::default();
    loop {
        match follow(what, &mut cache, &stream, &read, &ask, &mut changed, metrics).await {
            Ended::Deaf => return,
            Ended::Absent => {
                metrics.watch_error(what);
                tracing::warn!(
                    watch = what,
                    "API server answers that there is no such resource; trying again"
                );
                tokio::time::sleep(ABSENT).await;
            }
        }
    }
}
