//! From the core to the wire.

use std::net::IpAddr;

use mesh_core::clusters::{
    Affinity, Backend, Change, ClusterName, ClusterState, ExportedService, Key, Kind, LabelSet, LabelSetId,
    Object, RemoteEndpoint, RemoteNode, ServiceKind, TrafficPolicy, Version,
};
use mesh_core::name::NodeName;
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use prost::Message as _;

use super::generated::{self as wire, backend, change, deleted, endpoint, follow_response, object};
use super::{At, Counts, Message, NodeNames, REVISION, Say};

impl From<Message> for wire::FollowResponse {
    fn from(message: Message) -> Self {
        let (cluster, say) = match message {
            Message::Complete => (String::new(), follow_response::Say::Complete(wire::Complete {})),
            Message::CutOff => (String::new(), follow_response::Say::CutOff(wire::CutOff {})),
            Message::Of(cluster, said) => (cluster.to_string(), say(said)),
        };
        Self { cluster, say: Some(say) }
    }
}

fn say(say: Say) -> follow_response::Say {
    match say {
        Say::SnapshotBegin(at) => {
            follow_response::Say::SnapshotBegin(wire::SnapshotBegin { version: Some(version(at)) })
        }
        Say::SnapshotPart(objects) => follow_response::Say::SnapshotPart(wire::SnapshotPart { objects }),
        Say::SnapshotEnd { version: at, counts } => {
            let known = counts.known.iter();
            let counts =
                known.map(|(kind, objects)| wire::Count { kind: kind_number(*kind), objects: *objects });
            let counts = counts.collect();
            follow_response::Say::SnapshotEnd(wire::SnapshotEnd { version: Some(version(at)), counts })
        }
        Say::Changes { from, to, changes, part, more } => follow_response::Say::Changes(wire::Changes {
            from: Some(version(from)),
            to: Some(version(to)),
            changes,
            part,
            more,
        }),
        Say::Bookmark(at) => follow_response::Say::Bookmark(wire::Bookmark { version: Some(version(at)) }),
        Say::Gone => follow_response::Say::Gone(wire::Gone {}),
    }
}

fn version(at: At) -> wire::Version {
    let At { version: Version { incarnation, sequence }, view } = at;
    wire::Version { incarnation, sequence, view }
}

fn kind_number(kind: Kind) -> i32 {
    let kind = match kind {
        Kind::LabelSet => wire::Kind::LabelSet,
        Kind::Namespace => wire::Kind::Namespace,
        Kind::Node => wire::Kind::Node,
        Kind::Endpoint => wire::Kind::Endpoint,
        Kind::Service => wire::Kind::Service,
        Kind::Backend => wire::Kind::Backend,
    };
    kind.into()
}

/// A request: what the caller has already.
pub fn write_known<'a>(known: impl IntoIterator<Item = (&'a ClusterName, At)>) -> wire::FollowRequest {
    let known = known
        .into_iter()
        .map(|(cluster, at)| wire::Known { cluster: cluster.to_string(), version: Some(version(at)) });
    wire::FollowRequest { revision: REVISION, known: known.collect() }
}

/// How many objects a state has, of each kind that it has any of.
pub fn counts(state: &ClusterState) -> Counts {
    let count = |kind: Kind| (kind, u64::try_from(state.count(kind)).unwrap_or(u64::MAX));
    let known = Kind::ALL.into_iter().map(count).filter(|(_, objects)| *objects > 0).collect();
    Counts { known, others: 0 }
}

/// A change. `names` are those of the nodes in the state that it belongs to.
pub fn write_change(change: &Change, names: &NodeNames) -> wire::Change {
    let what = match change {
        Change::Put(object) => change::What::Put(write_object(object, names)),
        Change::Delete(key) => change::What::Deleted(deleted(key)),
    };
    wire::Change { what: Some(what) }
}

fn deleted(key: &Key) -> wire::Deleted {
    let key = match key {
        Key::LabelSet(id) => deleted::Key::LabelSet(id.0),
        Key::Namespace(name) => deleted::Key::Namespace(name.to_string()),
        Key::Node(name) => deleted::Key::Node(name.to_string()),
        Key::Endpoint(at) => deleted::Key::Endpoint(address(*at)),
        Key::Service(name) => deleted::Key::Service(service_name(name)),
        Key::Backend(name, at) => deleted::Key::Backend(backend_key(name, *at)),
    };
    wire::Deleted { key: Some(key) }
}

/// An object. `names` are those of the nodes in the state that it belongs to.
pub fn write_object(object: &Object, names: &NodeNames) -> wire::Object {
    let kind = match object {
        Object::LabelSet(id, set) => object::Kind::LabelSet(label_set(*id, set)),
        Object::Namespace(name, labels) => {
            object::Kind::Namespace(wire::Namespace { name: name.to_string(), labels: (**labels).clone() })
        }
        Object::Node(name, one) => match &one.signed {
            Some(signed) => object::Kind::SignedNode(wire::SignedNode {
                node: signed.node.clone(),
                signature: signed.signature.clone(),
            }),
            None => object::Kind::Node(node(name, one)),
        },
        Object::Endpoint(at, one) => object::Kind::Endpoint(endpoint(*at, one, names)),
        Object::Service(name, one) => object::Kind::Service(service(name, one)),
        Object::Backend(name, at, one) => object::Kind::Backend(backend(name, *at, one, names)),
    };
    wire::Object { kind: Some(kind) }
}

fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn protocol(protocol: Protocol) -> i32 {
    let protocol = match protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    };
    protocol.into()
}

fn label_set(id: LabelSetId, set: &LabelSet) -> wire::LabelSet {
    let ports = set.ports.iter().map(|port| wire::NamedPort {
        name: port.name.clone(),
        protocol: protocol(port.protocol),
        port: port.port.into(),
    });
    wire::LabelSet {
        id: Some(id.0),
        namespace: set.namespace.clone(),
        labels: set.labels.clone(),
        ports: ports.collect(),
    }
}

/// A node, to be signed ([`mesh_core::clusters::Signed`]).
pub fn write_node(name: &NodeName, one: &RemoteNode) -> Vec<u8> {
    node(name, one).encode_to_vec()
}

fn node(name: &NodeName, node: &RemoteNode) -> wire::Node {
    let cidrs = node.pod_cidrs.iter();
    let pod_cidrs =
        cidrs.map(|cidr| wire::Prefix { address: address(cidr.network()), length: cidr.prefix_len().into() });
    let slots = node.announcement.slots.iter().map(|slot| wire::Slot {
        epoch: slot.epoch.0,
        public_key: slot.public_key.as_bytes().to_vec(),
        port: slot.port.into(),
        draining: slot.draining,
    });
    wire::Node {
        name: name.to_string(),
        uid: node.uid.clone(),
        created: Some(node.created),
        pod_cidrs: pod_cidrs.collect(),
        slots: slots.collect(),
        endpoints: node.announcement.endpoints.iter().map(|at| address(*at)).collect(),
        kem: node.announcement.kem.map(|kem| kem.to_vec()),
        kem_required: node.announcement.kem_required,
        host_traffic: node.announcement.host_traffic,
    }
}

fn endpoint(at: IpAddr, endpoint: &RemoteEndpoint, names: &NodeNames) -> wire::Endpoint {
    let node = match names.short(&endpoint.node) {
        Some(short) => endpoint::Node::NodeShort(short),
        None => endpoint::Node::NodeName(endpoint.node.to_string()),
    };
    wire::Endpoint { address: address(at), node: Some(node), labels: Some(endpoint.labels.0) }
}

fn service_name(name: &ObjectName) -> wire::ServiceName {
    wire::ServiceName { namespace: name.namespace.clone(), name: name.name.clone() }
}

fn service(name: &ObjectName, service: &ExportedService) -> wire::Service {
    let ports = service.ports.iter().map(|port| wire::ServicePort {
        name: port.name.clone(),
        protocol: protocol(port.protocol),
        port: port.port.into(),
        app_protocol: port.app_protocol.clone(),
    });
    let kind = match service.kind {
        ServiceKind::ClusterSetIp => wire::ServiceKind::ClusterSetIp,
        ServiceKind::Headless => wire::ServiceKind::Headless,
    };
    let family = |family: &Family| match family {
        Family::V4 => wire::Family::Ipv4.into(),
        Family::V6 => wire::Family::Ipv6.into(),
    };
    let policy = match service.internal_traffic_policy {
        TrafficPolicy::Cluster => wire::TrafficPolicy::Cluster,
        TrafficPolicy::Local => wire::TrafficPolicy::Local,
    };
    wire::Service {
        name: Some(service_name(name)),
        created: Some(service.created),
        kind: kind.into(),
        ports: ports.collect(),
        families: service.families.iter().map(family).collect(),
        client_ip_seconds: match service.affinity {
            Affinity::None => 0,
            Affinity::ClientIp { seconds } => seconds,
        },
        internal_traffic_policy: policy.into(),
        traffic_distribution: service.traffic_distribution.clone(),
        labels: service.labels.clone(),
        annotations: service.annotations.clone(),
    }
}

fn backend_key(name: &ObjectName, at: IpAddr) -> wire::BackendKey {
    wire::BackendKey { service: Some(service_name(name)), address: address(at) }
}

fn backend(name: &ObjectName, at: IpAddr, backend: &Backend, names: &NodeNames) -> wire::Backend {
    let node = backend.node.as_ref().map(|node| match names.short(node) {
        Some(short) => backend::Node::NodeShort(short),
        None => backend::Node::NodeName(node.to_string()),
    });
    let ports = backend.ports.iter().map(|port| wire::BackendPort {
        name: port.name.clone(),
        protocol: protocol(port.protocol),
        port: port.port.into(),
    });
    wire::Backend {
        key: Some(backend_key(name, at)),
        ready: backend.ready,
        serving: backend.serving,
        terminating: backend.terminating,
        hostname: backend.hostname.clone(),
        node,
        zone: backend.zone.clone(),
        ports: ports.collect(),
    }
}
