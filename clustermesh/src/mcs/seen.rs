//! Objects of the own API server as they were read, each with what it takes to write it again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use mesh_core::clusters::ClusterName;
use mesh_core::mcs::{
    DerivedState, DnsLabel, Endpoint, Export, ExportedPort, ExportedService, ImportKind,
    InternalTrafficPolicy, LABEL_SERVICE_NAME, LABEL_SOURCE_CLUSTER, PortName, PortNumber, PortNumbers,
    ServiceKind, SessionAffinity, UNNAMED, is_ours,
};
use mesh_core::policy::model::{Labels, ObjectName, Protocol};
use mesh_core::prefix::Family;
use mesh_core::service::model::{DEFAULT_AFFINITY, LABEL_SERVICE_NAME as LABEL_OF_SERVICE};
use serde_json::Value;

use super::kind::Kind;
use super::problem::{Problem, excerpt};
use super::render::{self, Print};

/// Which object in which version: precondition of a write, so that nothing is written over what was not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// A ServiceExport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSeen {
    /// Precondition.
    pub stamp: Stamp,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// `spec.exportedLabels`.
    pub labels: Labels,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
}

impl ExportSeen {
    /// With the Service of its name; its endpoints come from elsewhere.
    pub fn export(&self, service: Option<ExportedService>) -> Export {
        Export {
            uid: self.stamp.uid.clone(),
            generation: self.generation,
            created: self.created,
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            service,
            endpoints: BTreeMap::new(),
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSeen {
    /// Precondition.
    pub stamp: Stamp,
    /// It is being deleted.
    pub deleting: bool,
    /// Of which import it is the derived Service (empty: ours, but nobody knows of which); none: not ours.
    pub of: Option<String>,
    /// What we would have written, as far as it is ours.
    pub print: Print,
    /// `spec.clusterIPs`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// As it can be exported; else what cannot be read of it.
    pub facts: Result<ExportedService, Unread>,
}

impl ServiceSeen {
    /// As it is decided from where it has the name of a derived one.
    pub fn derived(&self) -> DerivedState {
        DerivedState { of: self.of.clone(), cluster_ips: self.cluster_ips.clone() }
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSeen {
    /// Precondition.
    pub stamp: Stamp,
    /// It is ours.
    pub ours: Option<OwnSlice>,
    /// Value of `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// Its ports.
    pub ports: PortNumbers,
    /// Its endpoints; none of ours is read.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// What cannot be read of it, the first ones.
    pub unread: Vec<Unread>,
}

/// An EndpointSlice that we made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnSlice {
    /// Of which import; empty: nobody knows.
    pub of: String,
    /// Where its endpoints are.
    pub source: Option<ClusterName>,
    /// What we would have written.
    pub print: Print,
}

/// A ServiceImport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSeen {
    /// Precondition, and owner of what is made for it.
    pub stamp: Stamp,
    /// It is being deleted.
    pub deleting: bool,
    /// It is ours.
    pub ours: bool,
    /// What we would have written.
    pub print: Print,
    /// Keys of labels and annotations that we wrote.
    pub written: render::Keys,
    /// `status.clusters`, in their order.
    pub clusters: Vec<String>,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
    /// What it says of its service, as an export that nobody told yet.
    pub stands_for: Option<Export>,
}

/// A field that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The field.
    pub field: &'static str,
    /// The beginning of its value.
    pub value: String,
    /// What is wanted.
    pub reason: &'static str,
}

impl Unread {
    fn new(field: &'static str, value: &Value, reason: &'static str) -> Self {
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        Self { field, value: excerpt(&text), reason }
    }

    /// As a problem of an object.
    pub fn problem(&self, kind: Kind, name: &ObjectName, costs: &'static str) -> Problem {
        let (field, value, reason) = (self.field, self.value.clone(), self.reason);
        Problem::Unreadable { kind, name: name.clone(), field, value, costs, reason }
    }
}

/// Any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A Namespace that is not being deleted. (One that is counts as gone.)
    Namespace(Stamp),
    /// A ServiceExport that is not being deleted.
    Export(ExportSeen),
    /// A ServiceImport.
    Import(Box<ImportSeen>),
    /// A Service.
    Service(Box<ServiceSeen>),
    /// An EndpointSlice.
    Slice(SliceSeen),
}

impl Seen {
    /// Its stamp.
    pub const fn stamp(&self) -> &Stamp {
        match self {
            Self::Namespace(stamp) => stamp,
            Self::Export(seen) => &seen.stamp,
            Self::Import(seen) => &seen.stamp,
            Self::Service(seen) => &seen.stamp,
            Self::Slice(seen) => &seen.stamp,
        }
    }

    /// Reads an object. None: for us it is not there (any more).
    pub fn read(kind: Kind, object: &DynamicObject) -> Option<Self> {
        let meta = &object.metadata;
        let deleting = meta.deletion_timestamp.is_some();
        match kind {
            Kind::Namespace => (!deleting).then(|| Self::Namespace(stamp(meta))),
            Kind::Export => (!deleting).then(|| Self::Export(export(meta, &object.data))),
            Kind::Import => Some(Self::Import(Box::new(import(meta, &object.data)))),
            Kind::Service => Some(Self::Service(Box::new(service(meta, &object.data)))),
            Kind::Slice => Some(Self::Slice(slice(meta, &object.data))),
        }
    }
}

/// The key of an object; a cluster-wide one has no namespace.
pub fn name_of(meta: &ObjectMeta) -> Option<ObjectName> {
    let namespace = meta.namespace.clone().unwrap_or_default();
    Some(ObjectName { namespace, name: meta.name.clone()? })
}

fn stamp(meta: &ObjectMeta) -> Stamp {
    Stamp {
        uid: meta.uid.clone().unwrap_or_default(),
        version: meta.resource_version.clone().unwrap_or_default(),
    }
}

fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels.clone().unwrap_or_default()
}

fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    meta.annotations.clone().unwrap_or_default()
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    value.as_object().into_iter().flatten().filter_map(pair).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn export(meta: &ObjectMeta, data: &Value) -> ExportSeen {
    ExportSeen {
        stamp: stamp(meta),
        generation: meta.generation.unwrap_or_default(),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        labels: strings(&data["spec"]["exportedLabels"]),
        annotations: strings(&data["spec"]["exportedAnnotations"]),
        conditions: list(&data["status"]["conditions"]).cloned().collect(),
    }
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn protocol(value: &Value) -> Option<Protocol> {
    match value.as_str() {
        None | Some("") => Some(Protocol::Tcp),
        Some(text) => Protocol::ALL.into_iter().find(|protocol| protocol.name() == text),
    }
}

fn port_name(value: &Value) -> Option<PortName> {
    match value.as_str() {
        None | Some("") => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

const PROTOCOL: &str = "wanted TCP, UDP or SCTP";
const PORT: &str = "wanted 1 to 65535";
const LABEL: &str = "wanted a DNS label: 1 to 63 of a-z, 0-9 and '-'";

fn ports(value: &Value) -> Result<Vec<ExportedPort>, Unread> {
    let port = |port: &Value| {
        Ok(ExportedPort {
            name: port_name(&port["name"])
                .ok_or_else(|| Unread::new("spec.ports[].name", &port["name"], LABEL))?,
            protocol: protocol(&port["protocol"])
                .ok_or_else(|| Unread::new("spec.ports[].protocol", &port["protocol"], PROTOCOL))?,
            app_protocol: text(&port["appProtocol"]),
            port: number(&port["port"])
                .ok_or_else(|| Unread::new("spec.ports[].port", &port["port"], PORT))?,
        })
    };
    list(value).map(port).collect()
}

fn affinity(spec: &Value) -> SessionAffinity {
    match spec["sessionAffinity"].as_str() {
        Some("ClientIP") => {
            let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
            let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
            SessionAffinity::ClientIp(seconds.unwrap_or(DEFAULT_AFFINITY))
        }
        Some(_) | None => SessionAffinity::None,
    }
}

fn internal_traffic_policy(spec: &Value) -> InternalTrafficPolicy {
    match spec["internalTrafficPolicy"].as_str() {
        Some("Local") => InternalTrafficPolicy::Local,
        Some(_) | None => InternalTrafficPolicy::Cluster,
    }
}

fn addresses(value: &Value) -> Vec<IpAddr> {
    list(value).filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn service(meta: &ObjectMeta, data: &Value) -> ServiceSeen {
    let (labels, spec) = (labels(meta), &data["spec"]);
    let ours = is_ours(&labels);
    ServiceSeen {
        stamp: stamp(meta),
        deleting: meta.deletion_timestamp.is_some(),
        of: ours.then(|| labels.get(LABEL_SERVICE_NAME).cloned().unwrap_or_default()),
        print: render::service_print(&labels, &owners(meta), spec),
        cluster_ips: addresses(&spec["clusterIPs"]),
        facts: facts_of_service(spec, ours),
    }
}

fn facts_of_service(spec: &Value, ours: bool) -> Result<ExportedService, Unread> {
    let kind = match spec["type"].as_str() {
        _ if ours => ServiceKind::Derived,
        None | Some("" | "ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(_) => {
            let wanted = "wanted ClusterIP, NodePort, LoadBalancer or ExternalName";
            return Err(Unread::new("spec.type", &spec["type"], wanted));
        }
    };
    let mut families: Vec<Family> =
        list(&spec["ipFamilies"]).filter_map(|name| name.as_str().and_then(family)).collect();
    if families.is_empty() {
        // An API server fills the field in; a Service is then of the families of its addresses.
        families = addresses(&spec["clusterIPs"]).into_iter().map(Family::of).collect();
    }
    Ok(ExportedService {
        kind,
        headless: spec["clusterIP"] == "None",
        ports: ports(&spec["ports"])?,
        session_affinity: affinity(spec),
        internal_traffic_policy: internal_traffic_policy(spec),
        traffic_distribution: text(&spec["trafficDistribution"]),
        families,
    })
}

/// Things that are kept to be told, of each object.
const MAX_UNREAD: usize = 4;

fn slice(meta: &ObjectMeta, data: &Value) -> SliceSeen {
    let labels = labels(meta);
    let mut seen = SliceSeen {
        stamp: stamp(meta),
        ours: None,
        service: labels.get(LABEL_OF_SERVICE).cloned(),
        ports: PortNumbers::new(),
        endpoints: BTreeMap::new(),
        unread: Vec::new(),
    };
    if is_ours(&labels) {
        seen.ours = Some(OwnSlice {
            of: labels.get(LABEL_SERVICE_NAME).cloned().unwrap_or_default(),
            source: labels.get(LABEL_SOURCE_CLUSTER).and_then(|name| name.parse().ok()),
            print: render::slice_print(&labels, &annotations(meta), &owners(meta), data),
        });
        return seen;
    }
    let Some(family) = data["addressType"].as_str().and_then(family) else { return seen };
    for port in list(&data["ports"]) {
        if port["port"].is_null() {
            continue; // "all ports" of whoever made the slice; nobody can be sent there by a number
        }
        match (port_name(&port["name"]), protocol(&port["protocol"]), number(&port["port"])) {
            (Some(name), Some(protocol), Some(number)) => {
                seen.ports.insert(name, PortNumber { protocol, number });
            }
            (None, _, _) => seen.unread.push(Unread::new("ports[].name", &port["name"], LABEL)),
            (_, None, _) => seen.unread.push(Unread::new("ports[].protocol", &port["protocol"], PROTOCOL)),
            (_, _, None) => seen.unread.push(Unread::new("ports[].port", &port["port"], PORT)),
        }
    }
    for endpoint in list(&data["endpoints"]) {
        let first = &endpoint["addresses"][0];
        let address = first.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let Some(address) = address.filter(|address| Family::of(*address) == family) else {
            let wanted = "wanted an address of the slice's addressType";
            seen.unread.push(Unread::new("endpoints[].addresses", first, wanted));
            continue;
        };
        let conditions = &endpoint["conditions"];
        let ready = conditions["ready"].as_bool().unwrap_or(true);
        let facts = Endpoint {
            ready,
            serving: conditions["serving"].as_bool().unwrap_or(ready),
            terminating: conditions["terminating"].as_bool().unwrap_or(false),
            hostname: endpoint["hostname"].as_str().and_then(|name| name.parse().ok()),
            node: text(&endpoint["nodeName"]),
            zone: text(&endpoint["zone"]),
        };
        seen.endpoints.insert(address, facts);
    }
    seen.unread.truncate(MAX_UNREAD);
    seen
}

fn owners(meta: &ObjectMeta) -> Value {
    serde_json::to_value(&meta.owner_references).unwrap_or_default()
}

fn import(meta: &ObjectMeta, data: &Value) -> ImportSeen {
    let (labels, spec) = (labels(meta), &data["spec"]);
    let annotations = annotations(meta);
    let written = render::Keys::read(&annotations);
    let ours = is_ours(&labels);
    ImportSeen {
        stamp: stamp(meta),
        deleting: meta.deletion_timestamp.is_some(),
        ours,
        print: render::import_print(&labels, &annotations, spec),
        clusters: list(&data["status"]["clusters"])
            .filter_map(|one| one["cluster"].as_str().map(ToOwned::to_owned))
            .collect(),
        conditions: list(&data["status"]["conditions"]).cloned().collect(),
        stands_for: if ours { stands_for(&labels, &annotations, &written, data) } else { None },
        written,
    }
}

/// The service that the import was made of, as the export of a cluster that has told nothing yet. It is older than every
/// other one, so what is decided with it is what is there.
fn stands_for(
    labels: &Labels,
    annotations: &BTreeMap<String, String>,
    written: &render::Keys,
    data: &Value,
) -> Option<Export> {
    let spec = &data["spec"];
    if list(&data["status"]["conditions"]).any(|one| one["reason"] == "IPFamilyNotSupported") {
        return None; // it does not say which families the exports have
    }
    let of = |keys: &BTreeSet<String>, map: &BTreeMap<String, String>| {
        map.iter().filter(|(key, _)| keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let headless = spec["type"] == ImportKind::Headless.name();
    let families: Vec<Family> =
        list(&spec["ipFamilies"]).filter_map(|name| name.as_str().and_then(family)).collect();
    let mut ports = ports(&spec["ports"]).ok()?;
    if ports.len() > 1 {
        // What has this name in company had none.
        let unnamed = |name: &DnsLabel| name.as_str() == UNNAMED;
        ports.iter_mut().for_each(|port| drop(port.name.take_if(|name| unnamed(name))));
    }
    let service = ExportedService {
        kind: ServiceKind::ClusterIp,
        headless,
        ports,
        session_affinity: affinity(spec),
        internal_traffic_policy: internal_traffic_policy(spec),
        traffic_distribution: text(&spec["trafficDistribution"]),
        families: if families.is_empty() { Family::BOTH.to_vec() } else { families },
    };
    Some(Export {
        uid: String::new(),
        generation: 0,
        created: i64::MIN,
        labels: of(&written.labels, labels),
        annotations: of(&written.annotations, annotations),
        service: Some(service),
        endpoints: BTreeMap::new(),
    })
}
