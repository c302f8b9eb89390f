//! A cluster's state as a set of objects, each with a key, so that it can be told piece by piece.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Backend, ExportedService, LabelSet, LabelSetId, RemoteEndpoint, RemoteNode};
use crate::name::NodeName;
use crate::policy::model::{Labels, ObjectName};

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Label sets.
    LabelSet,
    /// Namespaces' labels.
    Namespace,
    /// Nodes.
    Node,
    /// Pods' addresses.
    Endpoint,
    /// Exported services.
    Service,
    /// Their backends.
    Backend,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::LabelSet, Self::Namespace, Self::Node, Self::Endpoint, Self::Service, Self::Backend];

    /// For texts and labels of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LabelSet => "label set",
            Self::Namespace => "namespace",
            Self::Node => "node",
            Self::Endpoint => "endpoint",
            Self::Service => "service",
            Self::Backend => "backend",
        }
    }
}

/// Which object of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A label set.
    LabelSet(LabelSetId),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<NodeName>),
    /// A pod's address.
    Endpoint(IpAddr),
    /// An exported service.
    Service(Arc<ObjectName>),
    /// An address behind it.
    Backend(Arc<ObjectName>, IpAddr),
}

impl Key {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::LabelSet(_) => Kind::LabelSet,
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Endpoint(_) => Kind::Endpoint,
            Self::Service(_) => Kind::Service,
            Self::Backend(..) => Kind::Backend,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LabelSet(id) => write!(f, "label set {}", id.0),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Endpoint(address) => write!(f, "endpoint {address}"),
            Self::Service(name) => write!(f, "service {}/{}", name.namespace, name.name),
            Self::Backend(name, address) => {
                write!(f, "backend {address} of service {}/{}", name.namespace, name.name)
            }
        }
    }
}

/// An object with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A label set.
    LabelSet(LabelSetId, Arc<LabelSet>),
    /// A namespace's labels.
    Namespace(Arc<str>, Arc<Labels>),
    /// A node.
    Node(Arc<NodeName>, Arc<RemoteNode>),
    /// A pod's address.
    Endpoint(IpAddr, RemoteEndpoint),
    /// An exported service.
    Service(Arc<ObjectName>, Arc<ExportedService>),
    /// An address behind it.
    Backend(Arc<ObjectName>, IpAddr, Arc<Backend>),
}

impl Object {
    /// Its key.
    pub fn key(&self) -> Key {
        match self {
            Self::LabelSet(id, _) => Key::LabelSet(*id),
            Self::Namespace(name, _) => Key::Namespace(Arc::clone(name)),
            Self::Node(name, _) => Key::Node(Arc::clone(name)),
            Self::Endpoint(address, _) => Key::Endpoint(*address),
            Self::Service(name, _) => Key::Service(Arc::clone(name)),
            Self::Backend(name, address, _) => Key::Backend(Arc::clone(name), *address),
        }
    }

    /// About how many bytes it takes: all its words, and [`Self::EACH`] for each of them and for itself. At least that.
    pub fn size(&self) -> usize {
        let word = |text: &str| text.len() + Self::EACH;
        let labels =
            |labels: &Labels| labels.iter().map(|(key, value)| word(key) + word(value)).sum::<usize>();
        let own = match self {
            Self::LabelSet(_, set) => {
                let ports = set.ports.iter().map(|port| word(&port.name));
                word(&set.namespace) + labels(&set.labels) + ports.sum::<usize>()
            }
            Self::Namespace(name, of) => word(name) + labels(of),
            Self::Node(name, node) => {
                let parts = node.pod_cidrs.len() + node.announcement.endpoints.len();
                // Keys, with the long one of the post-quantum exchange.
                let keys = if node.announcement.kem.is_some() { 1600 } else { 200 };
                let signed = node
                    .signed
                    .as_ref()
                    .map_or(0, |signed| signed.node.len() + signed.signature.len() + 3 * Self::EACH);
                word(name.as_str()) + word(&node.uid) + parts * Self::EACH + keys + signed
            }
            Self::Endpoint(..) => 0,
            Self::Service(name, service) => {
                let ports = service.ports.iter();
                let ports = ports.map(|port| word(&port.name) + port.app_protocol.as_deref().map_or(0, word));
                let words = word(&name.namespace) + word(&name.name);
                words + ports.sum::<usize>() + labels(&service.labels) + labels(&service.annotations)
            }
            Self::Backend(_, _, backend) => {
                let hostname = backend.hostname.as_deref().map_or(0, word);
                hostname + backend.ports.iter().map(|port| word(&port.name)).sum::<usize>()
            }
        };
        own + Self::EACH
    }

    /// Bytes that a part of an object takes besides its words, roughly: a string's or a map's own.
    const EACH: usize = 48;
}

/// One thing that happens to a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is so now.
    Put(Object),
    /// There is no such object any more.
    Delete(Key),
}

impl Change {
    /// Which object it is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}

/// All that a cluster tells of itself. Not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Label sets.
    pub label_sets: BTreeMap<LabelSetId, Arc<LabelSet>>,
    /// Namespaces' labels.
    pub namespaces: BTreeMap<Arc<str>, Arc<Labels>>,
    /// Nodes.
    pub nodes: BTreeMap<Arc<NodeName>, Arc<RemoteNode>>,
    /// Pods' addresses.
    pub endpoints: BTreeMap<IpAddr, RemoteEndpoint>,
    /// Exported services.
    pub services: BTreeMap<Arc<ObjectName>, Arc<ExportedService>>,
    /// What is behind them.
    pub backends: BTreeMap<(Arc<ObjectName>, IpAddr), Arc<Backend>>,
}

impl ClusterState {
    /// Makes a change; false if all was so before.
    pub fn apply(&mut self, change: Change) -> bool {
        fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
            if map.get(&key) == Some(&value) {
                return false;
            }
            map.insert(key, value);
            true
        }
        match change {
            Change::Put(Object::LabelSet(id, set)) => put(&mut self.label_sets, id, set),
            Change::Put(Object::Namespace(name, labels)) => put(&mut self.namespaces, name, labels),
            Change::Put(Object::Node(name, node)) => put(&mut self.nodes, name, node),
            Change::Put(Object::Endpoint(address, mut endpoint)) => {
                // One copy of the name for all pods of a node.
                if let Some((name, _)) = self.nodes.get_key_value(&endpoint.node) {
                    endpoint.node = Arc::clone(name);
                }
                put(&mut self.endpoints, address, endpoint)
            }
            Change::Put(Object::Service(name, service)) => put(&mut self.services, name, service),
            Change::Put(Object::Backend(name, address, backend)) => {
                let name = self.services.get_key_value(&name).map_or(name, |(name, _)| Arc::clone(name));
                put(&mut self.backends, (name, address), backend)
            }
            Change::Delete(Key::LabelSet(id)) => self.label_sets.remove(&id).is_some(),
            Change::Delete(Key::Namespace(name)) => self.namespaces.remove(&name).is_some(),
            Change::Delete(Key::Node(name)) => self.nodes.remove(&name).is_some(),
            Change::Delete(Key::Endpoint(address)) => self.endpoints.remove(&address).is_some(),
            Change::Delete(Key::Service(name)) => self.services.remove(&name).is_some(),
            Change::Delete(Key::Backend(name, address)) => self.backends.remove(&(name, address)).is_some(),
        }
    }

    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<Object> {
        Some(match key {
            Key::LabelSet(id) => Object::LabelSet(*id, Arc::clone(self.label_sets.get(id)?)),
            Key::Namespace(name) => {
                let (name, labels) = self.namespaces.get_key_value(name)?;
                Object::Namespace(Arc::clone(name), Arc::clone(labels))
            }
            Key::Node(name) => {
                let (name, node) = self.nodes.get_key_value(name)?;
                Object::Node(Arc::clone(name), Arc::clone(node))
            }
            Key::Endpoint(address) => Object::Endpoint(*address, self.endpoints.get(address)?.clone()),
            Key::Service(name) => {
                let (name, service) = self.services.get_key_value(name)?;
                Object::Service(Arc::clone(name), Arc::clone(service))
            }
            Key::Backend(name, address) => {
                let backend = self.backends.get(&(Arc::clone(name), *address))?;
                Object::Backend(Arc::clone(name), *address, Arc::clone(backend))
            }
        })
    }

    /// Objects of one kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::LabelSet => self.label_sets.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::Endpoint => self.endpoints.len(),
            Kind::Service => self.services.len(),
            Kind::Backend => self.backends.len(),
        }
    }

    /// Objects of all kinds.
    pub fn len(&self) -> usize {
        Kind::ALL.iter().map(|kind| self.count(*kind)).sum()
    }

    /// Is there nothing?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys, kind by kind: what is referred to comes before what refers to it.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let label_sets = self.label_sets.keys().map(|id| Key::LabelSet(*id));
        let namespaces = self.namespaces.keys().map(|name| Key::Namespace(Arc::clone(name)));
        let nodes = self.nodes.keys().map(|name| Key::Node(Arc::clone(name)));
        let endpoints = self.endpoints.keys().map(|address| Key::Endpoint(*address));
        let services = self.services.keys().map(|name| Key::Service(Arc::clone(name)));
        let backends = self.backends.keys().map(|(name, address)| Key::Backend(Arc::clone(name), *address));
        label_sets.chain(namespaces).chain(nodes).chain(endpoints).chain(services).chain(backends)
    }

    /// What makes `self` into `wanted`: nothing that is equal in both is touched. What is referred to comes before what
    /// refers to it, and goes after it.
    pub fn changes_to(&self, wanted: &Self) -> Vec<Change> {
        let mut gone: Vec<Key> = self.keys().filter(|key| wanted.get(key).is_none()).collect();
        gone.reverse();
        let new = wanted.keys().filter_map(|key| {
            let object = wanted.get(&key)?;
            (self.get(&key).as_ref() != Some(&object)).then_some(Change::Put(object))
        });
        new.chain(gone.into_iter().map(Change::Delete)).collect()
    }
}
