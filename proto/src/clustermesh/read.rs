//! From the wire to the core.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::announcement::{Announcement, Epoch, MAX_ENDPOINTS, SlotAnnouncement};
use mesh_core::clusters::{
    Affinity, Backend, BackendPort, Change, ClusterName, ExportedService, Key, Kind, LabelSet, LabelSetId,
    Object, RemoteEndpoint, RemoteNode, ServiceKind, ServicePort, Signed, TrafficPolicy, Version,
};
use mesh_core::key::PublicKey;
use mesh_core::mcs::DnsLabel;
use mesh_core::name::NodeName;
use mesh_core::policy::model::{Labels, NamedPort, ObjectName, Protocol};
use mesh_core::prefix::Family;
use prost::Message as _;

use super::generated::{self as wire, backend, change, deleted, endpoint, follow_response, object};
use super::{
    At, Cause, Counts, MAX_ANNOTATION_VALUE, MAX_CLUSTERS, MAX_LABEL_KEY, MAX_LABEL_VALUE, MAX_LABELS,
    MAX_NAMED_PORTS, MAX_NODE_CIDRS, MAX_OBJECT, MAX_PORTS, MAX_SIGNATURE, MAX_UID, MAX_WORD, Message,
    MessageError, NodeNames, ObjectError, Say, Unread,
};

/// Longest piece of a foreign value that is repeated in an error.
const SHOWN: usize = 80;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn version(field: &'static str, version: Option<wire::Version>) -> Result<At, MessageError> {
    let wire::Version { incarnation, sequence, view } = version.ok_or(MessageError::Missing { field })?;
    Ok(At { version: Version { incarnation, sequence }, view })
}

/// Reads a request. Of a cluster that is named twice the last counts.
///
/// # Errors
/// See [`MessageError`].
pub fn read_known(request: wire::FollowRequest) -> Result<BTreeMap<ClusterName, At>, MessageError> {
    let found = request.known.len();
    if found > MAX_CLUSTERS {
        return Err(MessageError::TooMany { field: "known", found, limit: MAX_CLUSTERS });
    }
    let one = |known: wire::Known| Ok((known.cluster.parse()?, version("known.version", known.version)?));
    request.known.into_iter().map(one).collect()
}

impl Message {
    /// Reads a response; none: it says what only a later version understands.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn read(response: wire::FollowResponse) -> Result<Option<Self>, MessageError> {
        let Some(said) = response.say else { return Ok(None) };
        if matches!(said, follow_response::Say::Complete(_)) {
            return Ok(Some(Self::Complete));
        }
        if matches!(said, follow_response::Say::CutOff(_)) {
            return Ok(Some(Self::CutOff));
        }
        Ok(Some(Self::Of(response.cluster.parse()?, say(said)?)))
    }
}

fn say(say: follow_response::Say) -> Result<Say, MessageError> {
    Ok(match say {
        follow_response::Say::SnapshotBegin(begin) => {
            Say::SnapshotBegin(version("snapshot_begin.version", begin.version)?)
        }
        follow_response::Say::SnapshotPart(part) => Say::SnapshotPart(part.objects),
        follow_response::Say::SnapshotEnd(end) => {
            let mut counts = Counts::default();
            for count in end.counts {
                let place = match kind(count.kind) {
                    Some(kind) => counts.known.entry(kind).or_default(),
                    None => &mut counts.others,
                };
                *place = place.saturating_add(count.objects);
            }
            Say::SnapshotEnd { version: version("snapshot_end.version", end.version)?, counts }
        }
        follow_response::Say::Changes(changes) => Say::Changes {
            from: version("changes.from", changes.from)?,
            to: version("changes.to", changes.to)?,
            changes: changes.changes,
            part: changes.part,
            more: changes.more,
        },
        follow_response::Say::Bookmark(bookmark) => {
            Say::Bookmark(version("bookmark.version", bookmark.version)?)
        }
        follow_response::Say::Gone(wire::Gone {}) => Say::Gone,
        // Read before: they are of no cluster.
        follow_response::Say::Complete(wire::Complete {}) | follow_response::Say::CutOff(wire::CutOff {}) => {
            return Err(MessageError::Missing { field: "say" });
        }
    })
}

fn kind(number: i32) -> Option<Kind> {
    match wire::Kind::try_from(number) {
        Ok(wire::Kind::LabelSet) => Some(Kind::LabelSet),
        Ok(wire::Kind::Namespace) => Some(Kind::Namespace),
        Ok(wire::Kind::Node) => Some(Kind::Node),
        Ok(wire::Kind::Endpoint) => Some(Kind::Endpoint),
        Ok(wire::Kind::Service) => Some(Kind::Service),
        Ok(wire::Kind::Backend) => Some(Kind::Backend),
        Ok(wire::Kind::Unspecified) | Err(_) => None,
    }
}

/// A field, or its path and what is wrong with it.
type Field<T> = Result<T, (&'static str, Cause)>;

fn unkeyed(object: &'static str) -> impl FnOnce((&'static str, Cause)) -> Unread {
    move |(field, cause)| Unread::Refused {
        key: None,
        error: Box::new(ObjectError { object: object.to_owned(), field, cause }),
    }
}

fn keyed(key: Key) -> impl FnOnce((&'static str, Cause)) -> Unread {
    move |(field, cause)| {
        let error = Box::new(ObjectError { object: shown(&key.to_string()), field, cause });
        Unread::Refused { key: Some(key), error }
    }
}

/// Reads a change. `names` are those of the cluster's nodes, as far as they are told yet.
///
/// # Errors
/// Of a kind that is not known here, or refused.
pub fn read_change(change: wire::Change, names: &NodeNames) -> Result<Change, Unread> {
    match change.what.ok_or(Unread::UnknownKind)? {
        change::What::Put(object) => read_object(object, names).map(Change::Put),
        change::What::Deleted(deleted) => {
            let key = deleted.key.ok_or(Unread::UnknownKind)?;
            read_deleted(key).map(Change::Delete).map_err(unkeyed("deletion"))
        }
    }
}

fn read_deleted(key: deleted::Key) -> Field<Key> {
    Ok(match key {
        deleted::Key::LabelSet(id) => Key::LabelSet(LabelSetId(id)),
        deleted::Key::Namespace(name) => Key::Namespace(namespace("namespace", name)?.into()),
        deleted::Key::Node(name) => Key::Node(Arc::new(node_name("node", &name)?)),
        deleted::Key::Endpoint(at) => Key::Endpoint(address("endpoint", &at)?),
        deleted::Key::Service(name) => Key::Service(Arc::new(object_name("service", name)?)),
        deleted::Key::Backend(key) => {
            let (name, at) = backend_key(Some(key))?;
            Key::Backend(name, at)
        }
    })
}

/// Reads a node that was kept with its signature.
///
/// # Errors
/// It is refused.
pub fn read_signed_node(signed: Signed) -> Result<Object, Unread> {
    let Signed { node, signature } = signed;
    let kind = Some(object::Kind::SignedNode(wire::SignedNode { node, signature }));
    read_object(wire::Object { kind }, &NodeNames::default())
}

/// Reads an object. `names` are those of the cluster's nodes, as far as they are told yet.
///
/// # Errors
/// Of a kind that is not known here, or refused.
pub fn read_object(object: wire::Object, names: &NodeNames) -> Result<Object, Unread> {
    let found = object.encoded_len();
    let object = read_of_any_length(object, names)?;
    // Who mirrors it would find no room for it in a message, and could tell nothing that comes after it.
    if found > MAX_OBJECT {
        let wrong = ("the whole", Cause::Length { found, wanted: "at most 262144" });
        return Err(keyed(object.key())(wrong));
    }
    Ok(object)
}

fn read_of_any_length(object: wire::Object, names: &NodeNames) -> Result<Object, Unread> {
    Ok(match object.kind.ok_or(Unread::UnknownKind)? {
        object::Kind::LabelSet(set) => {
            let id = set.id.ok_or(("id", Cause::Missing)).map_err(unkeyed("label set"))?;
            let id = LabelSetId(id);
            let set = label_set(set).map_err(keyed(Key::LabelSet(id)))?;
            Object::LabelSet(id, Arc::new(set))
        }
        object::Kind::Namespace(one) => {
            let name: Arc<str> = namespace("name", one.name).map_err(unkeyed("namespace"))?.into();
            let labels = labels(one.labels).map_err(keyed(Key::Namespace(Arc::clone(&name))))?;
            Object::Namespace(name, Arc::new(labels))
        }
        object::Kind::Node(one) => {
            let name = Arc::new(node_name("name", &one.name).map_err(unkeyed("node"))?);
            let node = node(one).map_err(keyed(Key::Node(Arc::clone(&name))))?;
            Object::Node(name, Arc::new(node))
        }
        object::Kind::SignedNode(one) => {
            let inner = wire::Node::decode(one.node.as_slice());
            let inner = inner.map_err(|_| ("node", Cause::Undecodable)).map_err(unkeyed("node"))?;
            let name = Arc::new(node_name("name", &inner.name).map_err(unkeyed("node"))?);
            let node = signed_node(inner, one).map_err(keyed(Key::Node(Arc::clone(&name))))?;
            Object::Node(name, Arc::new(node))
        }
        object::Kind::Endpoint(one) => {
            let at = address("address", &one.address).map_err(unkeyed("endpoint"))?;
            let endpoint = endpoint(one, names).map_err(keyed(Key::Endpoint(at)))?;
            Object::Endpoint(at, endpoint)
        }
        object::Kind::Service(one) => {
            let name = one.name.clone().ok_or(("name", Cause::Missing));
            let name = name.and_then(|name| object_name("name", name)).map_err(unkeyed("service"))?;
            let name = Arc::new(name);
            let service = service(one).map_err(keyed(Key::Service(Arc::clone(&name))))?;
            Object::Service(name, Arc::new(service))
        }
        object::Kind::Backend(one) => {
            let (name, at) = backend_key(one.key.clone()).map_err(unkeyed("backend"))?;
            let backend = backend(one, names).map_err(keyed(Key::Backend(Arc::clone(&name), at)))?;
            Object::Backend(name, at, Arc::new(backend))
        }
    })
}

fn address(field: &'static str, bytes: &[u8]) -> Field<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6)),
        Err(_) if bytes.is_empty() => Err((field, Cause::Missing)),
        Err(_) => Err((field, Cause::Length { found: bytes.len(), wanted: "4 or 16" })),
    }
}

fn fixed<const N: usize>(field: &'static str, bytes: &[u8], wanted: &'static str) -> Field<[u8; N]> {
    bytes.try_into().map_err(|_| (field, Cause::Length { found: bytes.len(), wanted }))
}

fn text(field: &'static str, text: String, limit: usize) -> Field<String> {
    if text.len() <= limit {
        return Ok(text);
    }
    Err((field, Cause::TooLong { value: shown(&text), found: text.len(), limit }))
}

fn few<T>(field: &'static str, list: &[T], limit: usize) -> Field<()> {
    if list.len() <= limit { Ok(()) } else { Err((field, Cause::TooMany { found: list.len(), limit })) }
}

fn named<T: FromStr>(field: &'static str, text: &str) -> Field<T>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Err((field, Cause::Missing));
    }
    text.parse().map_err(|error: T::Err| (field, Cause::Name { reason: error.to_string() }))
}

fn node_name(field: &'static str, text: &str) -> Field<NodeName> {
    named(field, text)
}

fn namespace(field: &'static str, text: String) -> Field<String> {
    named::<DnsLabel>(field, &text).map(|_| text)
}

/// A DNS label, or nothing.
fn port_name(field: &'static str, text: String) -> Field<String> {
    if text.is_empty() { Ok(text) } else { namespace(field, text) }
}

fn object_name(field: &'static str, name: wire::ServiceName) -> Field<ObjectName> {
    let wire::ServiceName { namespace: space, name } = name;
    Ok(ObjectName { namespace: namespace(field, space)?, name: namespace(field, name)? })
}

fn labels(labels: BTreeMap<String, String>) -> Field<Labels> {
    bounded("labels", labels, MAX_LABEL_VALUE)
}

fn bounded(field: &'static str, map: BTreeMap<String, String>, longest: usize) -> Field<Labels> {
    if map.len() > MAX_LABELS {
        return Err((field, Cause::TooMany { found: map.len(), limit: MAX_LABELS }));
    }
    for (key, value) in &map {
        let too_long = [(key, MAX_LABEL_KEY), (value, longest)];
        if let Some((text, limit)) = too_long.into_iter().find(|(text, limit)| text.len() > *limit) {
            return Err((field, Cause::TooLong { value: shown(text), found: text.len(), limit }));
        }
    }
    Ok(map)
}

fn number(field: &'static str, number: u32) -> Field<u16> {
    let fits = u16::try_from(number).ok().filter(|number| *number != 0);
    fits.ok_or((field, Cause::Value { found: number.into(), wanted: "1 to 65535" }))
}

fn protocol(field: &'static str, number: i32) -> Field<Protocol> {
    match wire::Protocol::try_from(number) {
        Ok(wire::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(wire::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(wire::Protocol::Sctp) => Ok(Protocol::Sctp),
        Ok(wire::Protocol::Unspecified) | Err(_) => {
            let wanted = "1 (TCP), 2 (UDP) or 3 (SCTP)";
            Err((field, Cause::Value { found: number.into(), wanted }))
        }
    }
}

fn label_set(set: wire::LabelSet) -> Field<LabelSet> {
    few("ports", &set.ports, MAX_NAMED_PORTS)?;
    let ports = set.ports.into_iter().map(|port| {
        Ok(NamedPort {
            name: namespace("ports.name", port.name)?,
            protocol: protocol("ports.protocol", port.protocol)?,
            port: number("ports.port", port.port)?,
        })
    });
    let ports = ports.collect::<Field<BTreeSet<_>>>()?;
    Ok(LabelSet { namespace: namespace("namespace", set.namespace)?, labels: labels(set.labels)?, ports })
}

fn node(node: wire::Node) -> Field<RemoteNode> {
    few("pod_cidrs", &node.pod_cidrs, MAX_NODE_CIDRS)?;
    few("endpoints", &node.endpoints, MAX_ENDPOINTS)?;
    let pod_cidrs = node.pod_cidrs.into_iter().map(prefix).collect::<Field<_>>()?;
    let endpoints = node.endpoints.iter().map(|at| address("endpoints", at)).collect::<Field<_>>()?;
    let slots: [wire::Slot; 2] = node.slots.try_into().map_err(|slots: Vec<wire::Slot>| {
        let found = i64::try_from(slots.len()).unwrap_or(i64::MAX);
        ("slots", Cause::Value { found, wanted: "2 of them" })
    })?;
    let [zero, one] = slots;
    let kem = node.kem.as_deref().map(|kem| fixed("kem", kem, "32")).transpose()?;
    if node.kem_required && kem.is_none() {
        return Err(("kem_required", Cause::Without { other: "kem" }));
    }
    Ok(RemoteNode {
        uid: text("uid", node.uid, MAX_UID)?,
        created: node.created.ok_or(("created", Cause::Missing))?,
        pod_cidrs,
        announcement: Announcement {
            slots: [slot(zero)?, slot(one)?],
            endpoints,
            kem,
            kem_required: node.kem_required,
            host_traffic: node.host_traffic,
        },
        signed: None,
    })
}

fn signed_node(inner: wire::Node, signed: wire::SignedNode) -> Field<RemoteNode> {
    let wire::SignedNode { node: bytes, signature } = signed;
    if !(1..=MAX_SIGNATURE).contains(&signature.len()) {
        return Err(("signature", Cause::Length { found: signature.len(), wanted: "1 to 1024" }));
    }
    Ok(RemoteNode { signed: Some(Arc::new(Signed { node: bytes, signature })), ..node(inner)? })
}

fn prefix(prefix: wire::Prefix) -> Field<IpNet> {
    let network = address("pod_cidrs.address", &prefix.address)?;
    let net = u8::try_from(prefix.length).ok().and_then(|length| IpNet::new(network, length).ok());
    let whole = net.filter(|net| *net == net.trunc());
    whole.ok_or_else(|| ("pod_cidrs", Cause::Prefix { value: format!("{network}/{}", prefix.length) }))
}

fn slot(slot: wire::Slot) -> Field<SlotAnnouncement> {
    if slot.epoch == 0 {
        return Err(("slots.epoch", Cause::Value { found: 0, wanted: "1 or more" }));
    }
    Ok(SlotAnnouncement {
        epoch: Epoch(slot.epoch),
        public_key: PublicKey::from_bytes(fixed("slots.public_key", &slot.public_key, "32")?),
        port: number("slots.port", slot.port)?,
        draining: slot.draining,
    })
}

fn resolve(short: u64, names: &NodeNames) -> Field<Arc<NodeName>> {
    names.resolve(short).cloned().ok_or(("node_short", Cause::ShortName { found: short }))
}

fn endpoint(endpoint: wire::Endpoint, names: &NodeNames) -> Field<RemoteEndpoint> {
    let node = match endpoint.node.ok_or(("node", Cause::Missing))? {
        endpoint::Node::NodeShort(short) => resolve(short, names)?,
        endpoint::Node::NodeName(name) => Arc::new(node_name("node_name", &name)?),
    };
    let labels = endpoint.labels.ok_or(("labels", Cause::Missing))?;
    Ok(RemoteEndpoint { node, labels: LabelSetId(labels) })
}

fn service(service: wire::Service) -> Field<ExportedService> {
    few("ports", &service.ports, MAX_PORTS)?;
    few("families", &service.families, 2)?;
    let ports = service.ports.into_iter().map(|port| {
        let app_protocol = port.app_protocol.map(|word| text("ports.app_protocol", word, MAX_LABEL_KEY));
        Ok(ServicePort {
            name: port_name("ports.name", port.name)?,
            protocol: protocol("ports.protocol", port.protocol)?,
            port: number("ports.port", port.port)?,
            app_protocol: app_protocol.transpose()?,
        })
    });
    let kind = match wire::ServiceKind::try_from(service.kind) {
        Ok(wire::ServiceKind::ClusterSetIp) => ServiceKind::ClusterSetIp,
        Ok(wire::ServiceKind::Headless) => ServiceKind::Headless,
        Ok(wire::ServiceKind::Unspecified) | Err(_) => {
            let wanted = "1 (ClusterSetIP) or 2 (Headless)";
            return Err(("kind", Cause::Value { found: service.kind.into(), wanted }));
        }
    };
    let affinity = match service.client_ip_seconds {
        0 => Affinity::None,
        seconds @ 1..=86_400 => Affinity::ClientIp { seconds },
        found => {
            let wanted = "0 to 86400";
            return Err(("client_ip_seconds", Cause::Value { found: found.into(), wanted }));
        }
    };
    let policy = service.internal_traffic_policy;
    let internal_traffic_policy = match wire::TrafficPolicy::try_from(policy) {
        Ok(wire::TrafficPolicy::Cluster) => TrafficPolicy::Cluster,
        Ok(wire::TrafficPolicy::Local) => TrafficPolicy::Local,
        Ok(wire::TrafficPolicy::Unspecified) | Err(_) => {
            let wanted = "1 (Cluster) or 2 (Local)";
            return Err(("internal_traffic_policy", Cause::Value { found: policy.into(), wanted }));
        }
    };
    let distribution = service.traffic_distribution;
    let distribution = distribution.map(|word| text("traffic_distribution", word, MAX_WORD)).transpose()?;
    Ok(ExportedService {
        created: service.created.ok_or(("created", Cause::Missing))?,
        kind,
        ports: ports.collect::<Field<_>>()?,
        families: service.families.into_iter().map(family).collect::<Field<_>>()?,
        affinity,
        internal_traffic_policy,
        traffic_distribution: distribution,
        labels: labels(service.labels)?,
        annotations: bounded("annotations", service.annotations, MAX_ANNOTATION_VALUE)?,
    })
}

fn family(number: i32) -> Field<Family> {
    match wire::Family::try_from(number) {
        Ok(wire::Family::Ipv4) => Ok(Family::V4),
        Ok(wire::Family::Ipv6) => Ok(Family::V6),
        Ok(wire::Family::Unspecified) | Err(_) => {
            Err(("families", Cause::Value { found: number.into(), wanted: "1 (IPv4) or 2 (IPv6)" }))
        }
    }
}

fn backend_key(key: Option<wire::BackendKey>) -> Field<(Arc<ObjectName>, IpAddr)> {
    let key = key.ok_or(("key", Cause::Missing))?;
    let name = object_name("key.service", key.service.ok_or(("key.service", Cause::Missing))?)?;
    Ok((Arc::new(name), address("key.address", &key.address)?))
}

fn backend(backend: wire::Backend, names: &NodeNames) -> Field<Backend> {
    few("ports", &backend.ports, MAX_PORTS)?;
    let node = match backend.node {
        None => None,
        Some(backend::Node::NodeShort(short)) => Some(NodeName::clone(&*resolve(short, names)?)),
        Some(backend::Node::NodeName(name)) => Some(node_name("node_name", &name)?),
    };
    let ports = backend.ports.into_iter().map(|port| {
        Ok(BackendPort {
            name: port_name("ports.name", port.name)?,
            protocol: protocol("ports.protocol", port.protocol)?,
            port: number("ports.port", port.port)?,
        })
    });
    Ok(Backend {
        ready: backend.ready,
        serving: backend.serving,
        terminating: backend.terminating,
        hostname: backend.hostname.map(|name| namespace("hostname", name)).transpose()?,
        node,
        zone: backend.zone.map(|zone| text("zone", zone, MAX_WORD)).transpose()?,
        ports: ports.collect::<Field<_>>()?,
    })
}

/// Of what kind an object is; none: of one that is not known here.
pub fn kind_of(object: &wire::Object) -> Option<Kind> {
    Some(match object.kind.as_ref()? {
        object::Kind::LabelSet(_) => Kind::LabelSet,
        object::Kind::Namespace(_) => Kind::Namespace,
        object::Kind::Node(_) | object::Kind::SignedNode(_) => Kind::Node,
        object::Kind::Endpoint(_) => Kind::Endpoint,
        object::Kind::Service(_) => Kind::Service,
        object::Kind::Backend(_) => Kind::Backend,
    })
}

/// Does a snapshot begin with this? For counting them.
pub const fn begins_snapshot(response: &wire::FollowResponse) -> bool {
    matches!(response.say, Some(follow_response::Say::SnapshotBegin(_)))
}
