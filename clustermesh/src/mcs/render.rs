//! What is decided, as objects of the API; and what of an object is ours, as a fingerprint of it.
//!
//! An object is written if, and only if, its fingerprint is another one than that of what is wanted. Fields that others
//! set beside ours, and what the API server fills in, are in no fingerprint: they are neither seen nor touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mesh_core::mcs::{
    Condition, DerivedService, Import, ImportPort, InternalTrafficPolicy, LABEL_MANAGED_BY,
    LABEL_SERVICE_NAME, LABEL_SLICE_MANAGED_BY, LABEL_SOURCE_CLUSTER, SessionAffinity, Slice,
};
use mesh_core::policy::model::Labels;
use mesh_core::prefix::Family;
use mesh_core::service::model::{LABEL_REMOTE, LABEL_SERVICE_NAME as LABEL_OF_SERVICE};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::kind::Kind;
use super::seen::Stamp;

/// Annotation of an import: the keys of labels and annotations that were exported, so that they go when the export loses
/// them, and others' stay.
pub const ANNOTATION_EXPORTED: &str = "hawser.dev/exported-keys";

/// Annotation of a slice with hints for nodes. Older API servers drop those hints, so what is read does not tell whether they
/// were written.
pub const ANNOTATION_HINTS: &str = "hawser.dev/hints";
/// Its value.
const HINTS_FOR_NODES: &str = "nodes";

/// Labels of slices that we set.
const SLICE_LABELS: [&str; 5] =
    [LABEL_SERVICE_NAME, LABEL_SOURCE_CLUSTER, LABEL_SLICE_MANAGED_BY, LABEL_OF_SERVICE, LABEL_REMOTE];
/// Labels of derived Services that we set.
const SERVICE_LABELS: [&str; 2] = [LABEL_SERVICE_NAME, LABEL_MANAGED_BY];
/// Fields of a derived Service's `spec` that we set, or want to be unset.
const SERVICE_FIELDS: [&str; 8] = [
    "type",
    "ports",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
];
/// `spec.ipFamilyPolicy` for both families. Which of them the cluster has for Services only its API server knows, pod CIDRs do not
/// say it: named families that it lacks would be refused, with this policy alone it takes those it has.
const BOTH: &str = "PreferDualStack";
/// Fields of their ports.
const SERVICE_PORT_FIELDS: [&str; 4] = ["name", "protocol", "port", "appProtocol"];
/// Fields of a slice, beside its metadata.
const SLICE_FIELDS: [&str; 3] = ["addressType", "ports", "endpoints"];
/// Fields of its endpoints.
const ENDPOINT_FIELDS: [&str; 6] = ["addresses", "conditions", "hostname", "nodeName", "zone", "hints"];
/// Fields of an import's `spec`: all that the API has.
const IMPORT_FIELDS: [&str; 8] = [
    "type",
    "ports",
    "ips",
    "ipFamilies",
    "sessionAffinity",
    "sessionAffinityConfig",
    "internalTrafficPolicy",
    "trafficDistribution",
];

/// A fingerprint: two objects are equal in what is ours if theirs are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Print([u8; 32]);

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, ..] = self.0;
        write!(f, "Print({a:02x}{b:02x}…)")
    }
}

impl Print {
    /// Of any JSON; absent fields, `null`, empty texts, lists and maps are one and the same, as for the API server.
    pub fn of(value: Value) -> Self {
        // Maps of serde_json are ordered, so equal values are equal texts.
        Self(Sha256::digest(tidied(value).to_string()).into())
    }
}

/// Without what means nothing.
fn tidied(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let tidy = map.into_iter().map(|(key, value)| (key, tidied(value)));
            Value::Object(tidy.filter(|(_, value)| !means_nothing(value)).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(tidied).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn means_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn picked(value: &Value, fields: &[&str]) -> Value {
    let pair = |field: &&str| Some(((*field).to_owned(), value.get(*field)?.clone()));
    Value::Object(fields.iter().filter_map(pair).collect())
}

fn each_picked(list: &mut Value, fields: &[&str]) {
    for item in list.as_array_mut().into_iter().flatten() {
        *item = picked(item, fields);
    }
}

fn picked_labels(labels: &Labels, keys: &[&str]) -> Value {
    let pair = |key: &&str| Some(((*key).to_owned(), Value::from(labels.get(*key)?.clone())));
    Value::Object(keys.iter().filter_map(pair).collect())
}

/// The references to imports among an object's owners.
fn imports_among(owners: &Value) -> Value {
    let ours = owners.as_array().into_iter().flatten().filter(|one| one["kind"] == Kind::Import.name());
    ours.map(|one| picked(one, &["uid", "name", "apiVersion"])).collect()
}

/// Keys of labels and annotations of an import that we wrote because they were exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Of labels.
    pub labels: BTreeSet<String>,
    /// Of annotations.
    pub annotations: BTreeSet<String>,
}

impl Keys {
    /// As an import remembers them; none if it does not.
    pub fn read(annotations: &BTreeMap<String, String>) -> Self {
        let text = annotations.get(ANNOTATION_EXPORTED).map(String::as_str).unwrap_or_default();
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let keys = |field: &str| {
            let all = value[field].as_array().into_iter().flatten();
            all.filter_map(|key| key.as_str().map(ToOwned::to_owned)).collect()
        };
        Self { labels: keys("labels"), annotations: keys("annotations") }
    }

    fn of(import: &Import) -> Self {
        let labels = import.labels.keys().filter(|key| *key != LABEL_MANAGED_BY).cloned().collect();
        Self { labels, annotations: import.annotations.keys().cloned().collect() }
    }

    fn written(&self) -> String {
        json!({ "labels": self.labels, "annotations": self.annotations }).to_string()
    }
}

/// The fingerprint of an import.
pub fn import_print(labels: &Labels, annotations: &BTreeMap<String, String>, spec: &Value) -> Print {
    let keys = Keys::read(annotations);
    let pick = |map: &BTreeMap<String, String>, keys: &BTreeSet<String>, more: &str| {
        let mine = map.iter().filter(|(key, _)| keys.contains(*key) || *key == more);
        mine.map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect::<Map<_, _>>()
    };
    Print::of(json!({
        "labels": pick(labels, &keys.labels, LABEL_MANAGED_BY),
        "annotations": pick(annotations, &keys.annotations, ANNOTATION_EXPORTED),
        "spec": picked(spec, &IMPORT_FIELDS),
    }))
}

/// The fingerprint of a derived Service.
pub fn service_print(labels: &Labels, owners: &Value, spec: &Value) -> Print {
    let mut spec = picked(spec, &SERVICE_FIELDS);
    if let Some(ports) = spec.get_mut("ports") {
        each_picked(ports, &SERVICE_PORT_FIELDS);
    }
    if let Some(fields) =
        spec.as_object_mut().filter(|fields| fields.get("ipFamilyPolicy").is_some_and(|it| it == BOTH))
    {
        fields.remove("ipFamilies");
    }
    let labels = picked_labels(labels, &SERVICE_LABELS);
    Print::of(json!({ "labels": labels, "owners": imports_among(owners), "spec": spec }))
}

/// The fingerprint of a slice of ours.
pub fn slice_print(
    labels: &Labels,
    annotations: &BTreeMap<String, String>,
    owners: &Value,
    data: &Value,
) -> Print {
    let mut fields = picked(data, &SLICE_FIELDS);
    if let Some(endpoints) = fields.get_mut("endpoints") {
        each_picked(endpoints, &ENDPOINT_FIELDS);
        for endpoint in endpoints.as_array_mut().into_iter().flatten() {
            if let Some(hints) = endpoint.get_mut("hints").and_then(Value::as_object_mut) {
                hints.remove("forNodes");
            }
        }
    }
    let labels = picked_labels(labels, &SLICE_LABELS);
    let hints = annotations.get(ANNOTATION_HINTS);
    Print::of(json!({ "labels": labels, "hints": hints, "owners": imports_among(owners), "fields": fields }))
}

/// An object as it should be: what is ours of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its kind.
    pub kind: Kind,
    /// Its fingerprint.
    pub print: Print,
    labels: Labels,
    annotations: BTreeMap<String, String>,
    owners: Value,
    /// Everything beside `metadata`. What shall be absent is `null`.
    body: Map<String, Value>,
}

impl Wanted {
    /// The body of a POST.
    pub fn creation(&self, namespace: &str, name: &str) -> Value {
        let mut object = self.body.clone();
        object.insert("apiVersion".into(), self.kind.api_version().into());
        object.insert("kind".into(), self.kind.name().into());
        let metadata = json!({
            "namespace": namespace, "name": name, "labels": self.labels, "annotations": self.annotations,
            "ownerReferences": self.owners,
        });
        object.insert("metadata".into(), metadata);
        without_nulls(Value::Object(object))
    }

    /// The body of a JSON merge patch (RFC 7386) that is refused unless the object is as it was seen. `gone`: keys that we
    /// wrote earlier.
    pub fn patch(&self, stamp: &Stamp, gone: &Keys) -> Value {
        let removed = |keys: &BTreeSet<String>, map: &BTreeMap<String, String>| {
            let absent = keys.iter().filter(|key| !map.contains_key(*key));
            absent.map(|key| (key.clone(), Value::Null)).collect::<Map<_, _>>()
        };
        let fixed: &[&str] = match self.kind {
            Kind::Slice => &SLICE_LABELS,
            Kind::Service => &SERVICE_LABELS,
            Kind::Namespace | Kind::Export | Kind::Import => &[],
        };
        let mut labels = removed(&gone.labels, &self.labels);
        labels.extend(fixed.iter().map(|key| ((*key).to_owned(), Value::Null)));
        labels.extend(texts(&self.labels));
        let mut annotations = removed(&gone.annotations, &self.annotations);
        if self.kind == Kind::Slice {
            annotations.insert(ANNOTATION_HINTS.to_owned(), Value::Null);
        }
        annotations.extend(texts(&self.annotations));
        let mut metadata = json!({ "uid": stamp.uid, "resourceVersion": stamp.version, "labels": labels, "annotations": annotations });
        if !self.owners.is_null() {
            metadata["ownerReferences"] = self.owners.clone();
        }
        let mut body: Map<String, Value> = self.body.clone();
        body.insert("metadata".into(), metadata);
        nulls_only_in_maps(Value::Object(body))
    }
}

fn texts(map: &BTreeMap<String, String>) -> impl Iterator<Item = (String, Value)> {
    map.iter().map(|(key, value)| (key.clone(), Value::from(value.clone())))
}

/// For a whole object: `null` is not everywhere the same as absent.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let some = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(some.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// In a merge patch `null` takes a field away, but lists are put in place as they are.
fn nulls_only_in_maps(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (key, nulls_only_in_maps(value))).collect())
        }
        Value::Array(list) => without_nulls(Value::Array(list)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

const fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn families(all: &[Family]) -> Value {
    all.iter().map(|one| Value::from(family(*one))).collect()
}

fn ports(all: &[ImportPort]) -> Value {
    let port = |port: &ImportPort| {
        let name = port.name.as_ref().map(ToString::to_string);
        json!({ "name": name, "protocol": port.protocol.name(), "port": port.port, "appProtocol": port.app_protocol })
    };
    all.iter().map(port).collect()
}

fn affinity(affinity: SessionAffinity) -> (&'static str, Value) {
    match affinity {
        SessionAffinity::None => ("None", Value::Null),
        SessionAffinity::ClientIp(seconds) => {
            ("ClientIP", json!({ "clientIP": { "timeoutSeconds": seconds } }))
        }
    }
}

const fn internal_traffic_policy(policy: InternalTrafficPolicy) -> &'static str {
    match policy {
        InternalTrafficPolicy::Cluster => "Cluster",
        InternalTrafficPolicy::Local => "Local",
    }
}

/// A ServiceImport.
pub fn import(import: &Import) -> Wanted {
    let (session_affinity, config) = affinity(import.session_affinity);
    let ips: Vec<String> = import.ips.iter().map(ToString::to_string).collect();
    let spec = json!({
        "type": import.kind.name(),
        "ports": ports(&import.ports),
        "ips": if ips.is_empty() { Value::Null } else { json!(ips) },
        "ipFamilies": if import.families.is_empty() { Value::Null } else { families(&import.families) },
        "sessionAffinity": session_affinity,
        "sessionAffinityConfig": config,
        "internalTrafficPolicy": import.internal_traffic_policy.map(internal_traffic_policy),
        "trafficDistribution": import.traffic_distribution,
    });
    let mut annotations = import.annotations.clone();
    annotations.insert(ANNOTATION_EXPORTED.to_owned(), Keys::of(import).written());
    Wanted {
        kind: Kind::Import,
        print: import_print(&import.labels, &annotations, &spec),
        labels: import.labels.clone(),
        annotations,
        owners: Value::Null,
        body: Map::from_iter([("spec".to_owned(), spec)]),
    }
}

/// The import that owns an object, as a reference.
fn owner(name: &str, uid: &str) -> Value {
    let api_version = Kind::Import.api_version();
    json!([{ "apiVersion": api_version, "kind": Kind::Import.name(), "name": name, "uid": uid }])
}

/// A derived Service. `uid`: of the import `name`.
pub fn service(service: &DerivedService, name: &str, uid: &str) -> Wanted {
    let (session_affinity, config) = affinity(service.session_affinity);
    let both = service.families.len() > 1;
    let mut spec = json!({
        "type": "ClusterIP",
        "ports": ports(&service.ports),
        "selector": null,
        "sessionAffinity": session_affinity,
        "sessionAffinityConfig": config,
        "internalTrafficPolicy": internal_traffic_policy(service.internal_traffic_policy),
        "ipFamilyPolicy": if both { BOTH } else { "SingleStack" },
    });
    if !both {
        spec["ipFamilies"] = families(&service.families);
    }
    let owners = owner(name, uid);
    Wanted {
        kind: Kind::Service,
        print: service_print(&service.labels, &owners, &spec),
        labels: service.labels.clone(),
        annotations: BTreeMap::new(),
        owners,
        body: Map::from_iter([("spec".to_owned(), spec)]),
    }
}

/// An EndpointSlice. `uid`: of the import that owns it.
pub fn slice(slice: &Slice, uid: &str) -> Wanted {
    let port = |port: &mesh_core::mcs::SlicePort| {
        // The API server writes an empty name where there is none.
        let name = port.name.as_ref().map(ToString::to_string).unwrap_or_default();
        json!({ "name": name, "protocol": port.protocol.name(), "port": port.port, "appProtocol": port.app_protocol })
    };
    let hint = |name: &Option<String>| name.as_ref().map(|name| json!([{ "name": name }]));
    let endpoints = slice.endpoints.iter().map(|(address, endpoint)| {
        let (zones, nodes) = (hint(&endpoint.for_zone), hint(&endpoint.for_node));
        let hints = if zones.is_none() && nodes.is_none() {
            Value::Null
        } else {
            json!({ "forZones": zones, "forNodes": nodes })
        };
        json!({
            "addresses": [address],
            "conditions": {
                "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating,
            },
            "hostname": endpoint.hostname.as_ref().map(ToString::to_string),
            "nodeName": endpoint.node,
            "zone": endpoint.zone,
            "hints": hints,
        })
    });
    let fields = json!({
        "addressType": family(slice.family),
        "ports": slice.ports.iter().map(port).collect::<Value>(),
        "endpoints": endpoints.collect::<Value>(),
    });
    let (labels, owners) = (slice.labels(), owner(&slice.service, uid));
    let for_nodes = slice.endpoints.values().any(|endpoint| endpoint.for_node.is_some());
    let hints = for_nodes.then(|| (ANNOTATION_HINTS.to_owned(), HINTS_FOR_NODES.to_owned()));
    let annotations: BTreeMap<String, String> = hints.into_iter().collect();
    let print = slice_print(&labels, &annotations, &owners, &fields);
    let Value::Object(body) = fields else { unreachable!("invariant: made as an object") };
    Wanted { kind: Kind::Slice, print, labels, annotations, owners, body }
}

/// `status.conditions` with ours in it; others' types stay as they are. None: nothing changes. `lastTransitionTime` moves
/// with the status, to `now` (RFC 3339).
pub fn conditions(present: &[Value], ours: &[Condition], now: &str) -> Option<Vec<Value>> {
    let mut all: Vec<Value> = present.to_vec();
    let mut changed = false;
    for condition in ours {
        let at = all.iter().position(|one| one["type"] == condition.kind);
        let before = at.and_then(|at| all.get(at));
        let same_status = before.is_some_and(|one| one["status"] == condition.status.name());
        let since = before.filter(|_| same_status).map(|one| one["lastTransitionTime"].clone());
        let mut wanted = json!({
            "type": condition.kind,
            "status": condition.status.name(),
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": since.filter(Value::is_string).unwrap_or_else(|| now.into()),
        });
        if let Some(generation) = condition.observed_generation {
            wanted["observedGeneration"] = generation.into();
        }
        if before == Some(&wanted) {
            continue;
        }
        changed = true;
        match at {
            Some(at) => all[at] = wanted,
            None => all.push(wanted),
        }
    }
    changed.then_some(all)
}
