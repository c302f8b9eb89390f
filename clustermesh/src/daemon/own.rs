//! The own cluster: watches Nodes, pods' metadata and Namespaces, and publishes what others are told of them.
//! Exported services come from their own module, into the same [`Publish`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::PartialObjectMeta;
use kube::{Api, Client};
use mesh_core::clusters::{ClusterName, OwnCluster};
use mesh_core::name::NodeName;
use mesh_core::numbers::{ANNOTATION_ENDPOINT, ANNOTATION_IPS, ANNOTATION_PORTS, ANNOTATION_WIREGUARD};
use mesh_core::policy::model::{NamedPort, ObjectName, Protocol};
use proto::clustermesh::MAX_NODE_CIDRS;
use tokio::sync::watch as channel;

use super::metrics::Metrics;
use super::publish::Publish;
use super::watch_api::{Seen, watch};

pub mod state;

use state::{NodeFact, OwnState, PodFact};

/// Under this name nodes, pods and namespaces are published.
pub const PART: &str = "nodes and pods";
/// InternalIPs of one node that are read.
const MAX_INTERNAL_IPS: usize = 16;
/// Addresses of one pod that are read: Kubernetes gives one of each family.
const MAX_IPS: usize = 4;
/// Ports of one pod that are read, as agents do.
const MAX_PORTS: usize = 128;

/// Reads a Node. None: its name is not one (the API would not allow it).
pub fn node(node: &Node) -> Option<(Arc<NodeName>, NodeFact)> {
    let meta = &node.metadata;
    let name: NodeName = meta.name.as_deref()?.parse().ok()?;
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key));
    let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    let endpoints = annotation(ANNOTATION_ENDPOINT).and_then(|text| {
        text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<IpAddr>>>()
    });
    let announcement = annotation(ANNOTATION_WIREGUARD).and_then(|text| match keyring::codec::decode(text) {
        Ok(announcement) => Some(announcement),
        Err(error) => {
            tracing::warn!(node = %name, err = %error, "Other clusters are not told of a node: its announcement cannot be read");
            None
        }
    });
    let fact = NodeFact {
        uid: meta.uid.clone().unwrap_or_default(),
        created: meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
        pod_cidrs: cidrs
            .filter_map(|text| text.parse::<IpNet>().ok().map(|net| net.trunc()))
            .take(MAX_NODE_CIDRS)
            .collect(),
        internal_ips: internal.filter_map(|at| at.address.parse().ok()).take(MAX_INTERNAL_IPS).collect(),
        endpoints,
        announcement,
    };
    Some((Arc::new(name), fact))
}

/// Reads a pod's metadata.
pub fn pod(pod: &PartialObjectMeta<Pod>) -> Option<(ObjectName, PodFact)> {
    let meta = &pod.metadata;
    let name = ObjectName { namespace: meta.namespace.clone()?, name: meta.name.clone()? };
    let annotation = |key: &str| {
        meta.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str).unwrap_or_default()
    };
    let ips = annotation(ANNOTATION_IPS).split(',').filter_map(|part| part.trim().parse().ok());
    let ports = annotation(ANNOTATION_PORTS).split(',').filter_map(port).take(MAX_PORTS).collect();
    Some((
        name,
        PodFact { labels: meta.labels.clone().unwrap_or_default(), ips: ips.take(MAX_IPS).collect(), ports },
    ))
}

/// `http=TCP/80`, as agents write it.
fn port(text: &str) -> Option<NamedPort> {
    let (name, rest) = text.trim().split_once('=')?;
    let (kind, port) = rest.split_once('/')?;
    let protocol = match kind {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    (!name.is_empty()).then(|| NamedPort { name: name.to_owned(), protocol, port })
}

/// Watches for ever. `own` hears what others may not claim.
pub async fn run(
    client: Client,
    cluster: ClusterName,
    guarded: Vec<IpNet>,
    publish: Publish,
    own: channel::Sender<Option<OwnCluster>>,
    metrics: Metrics,
) {
    let shared =
        Shared { state: Mutex::new((OwnState::new(cluster, guarded), Complete::default())), publish, own };
    let nodes = watch("nodes", Api::<Node>::all(client.clone()), None, &metrics, |seen| {
        shared.turn(|state, complete| {
            let changes = match seen {
                Seen::All(all) => {
                    complete.nodes = true;
                    state.all_nodes(all.iter().filter_map(node).collect())
                }
                Seen::Put(one) => match node(&one) {
                    Some((name, fact)) => state.node(name, Some(fact)),
                    None => Vec::new(),
                },
                Seen::Gone(one) => match node(&one) {
                    Some((name, _)) => state.node(name, None),
                    None => Vec::new(),
                },
            };
            let now = complete.nodes.then(|| state.own());
            shared.own.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
            changes
        });
    });
    let pods = watch("pods", Api::<PartialObjectMeta<Pod>>::all(client.clone()), None, &metrics, |seen| {
        shared.turn(|state, complete| match seen {
            Seen::All(all) => {
                complete.pods = true;
                state.all_pods(all.iter().filter_map(pod).collect::<BTreeMap<_, _>>())
            }
            Seen::Put(one) => pod(&one).map(|(name, fact)| state.pod(name, Some(fact))).unwrap_or_default(),
            Seen::Gone(one) => pod(&one).map(|(name, _)| state.pod(name, None)).unwrap_or_default(),
        });
    });
    let read = |one: &PartialObjectMeta<Namespace>| {
        let name: Arc<str> = one.metadata.name.as_deref()?.into();
        Some((name, Arc::new(one.metadata.labels.clone().unwrap_or_default())))
    };
    let spaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    let namespaces = watch("namespaces", spaces, None, &metrics, |seen| {
        shared.turn(|state, complete| match seen {
            Seen::All(all) => {
                complete.namespaces = true;
                state.all_namespaces(all.iter().filter_map(read).collect())
            }
            Seen::Put(one) => {
                read(&one).map(|(name, labels)| state.namespace(name, Some(labels))).unwrap_or_default()
            }
            Seen::Gone(one) => read(&one).map(|(name, _)| state.namespace(name, None)).unwrap_or_default(),
        });
    });
    tokio::join!(nodes, pods, namespaces);
}

#[derive(Debug, Default)]
struct Complete {
    nodes: bool,
    pods: bool,
    namespaces: bool,
}

struct Shared {
    state: Mutex<(OwnState, Complete)>,
    publish: Publish,
    own: channel::Sender<Option<OwnCluster>>,
}

impl Shared {
    fn turn(&self, turn: impl FnOnce(&mut OwnState, &mut Complete) -> Vec<mesh_core::clusters::Change>) {
        let mut both = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, complete) = &mut *both;
        let changes = turn(state, complete);
        if !changes.is_empty() {
            self.publish.changes(changes);
        }
        if complete.nodes && complete.pods && complete.namespaces {
            self.publish.complete(PART);
        }
    }
}
