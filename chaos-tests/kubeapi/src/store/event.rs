//! Objects as they are kept and events as they are sent: each is encoded once and shared by all watchers.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Value, json};

/// One state of one object.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) rv: u64,
    json: OnceLock<Bytes>,
    partial: OnceLock<Bytes>,
}

impl Stored {
    pub(crate) fn new(value: Value, rv: u64) -> Self {
        Self { value, rv, json: OnceLock::new(), partial: OnceLock::new() }
    }

    /// The object as JSON.
    pub(crate) fn json(&self) -> &Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string()))
    }

    /// Its metadata as `PartialObjectMetadata`.
    pub(crate) fn partial(&self) -> &Bytes {
        self.partial.get_or_init(|| Bytes::from(partial(&self.value).to_string()))
    }
}

/// The `PartialObjectMetadata` of an object.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) rv: u64,
    pub(crate) kind: EventKind,
    /// The state after the change; for a deletion the last state with the version of the deletion.
    pub(crate) object: Arc<Stored>,
    /// The state before.
    pub(crate) old: Option<Arc<Stored>>,
    frame: OnceLock<Bytes>,
    partial_frame: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn new(rv: u64, kind: EventKind, object: Arc<Stored>, old: Option<Arc<Stored>>) -> Self {
        Self { rv, kind, object, old, frame: OnceLock::new(), partial_frame: OnceLock::new() }
    }

    /// The line of a watch that sees the event as it is.
    pub(crate) fn frame(&self) -> &Bytes {
        self.frame.get_or_init(|| frame(self.kind.name(), self.object.json()))
    }

    /// The same, with `PartialObjectMetadata`.
    pub(crate) fn partial_frame(&self) -> &Bytes {
        self.partial_frame.get_or_init(|| frame(self.kind.name(), self.object.partial()))
    }
}

/// `{"type":…,"object":…}` and a newline.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

const CORE: &str = "events";
const EVENTS: &str = "events.events.k8s.io";

/// Events exist in two groups with one storage: what is written in one group is seen in the other.
pub(crate) fn twin(resource: &str, object: Option<&Value>) -> Option<(&'static str, Option<Value>)> {
    let (other, api_version, names) = match resource {
        CORE => (EVENTS, "events.k8s.io/v1", CORE_TO_EVENTS),
        EVENTS => (CORE, "v1", EVENTS_TO_CORE),
        _ => return None,
    };
    let object = object.map(|object| {
        let mut out = serde_json::Map::new();
        for (field, value) in object.as_object().into_iter().flatten() {
            let name = names.iter().find(|(from, _)| from == field).map_or(field.as_str(), |(_, to)| *to);
            out.insert(name.to_owned(), value.clone());
        }
        out.insert("apiVersion".into(), json!(api_version));
        let mut out = Value::Object(out);
        if other == CORE {
            core_only(&mut out);
        }
        out
    });
    Some((other, object))
}

/// kubectl sorts and prints events by fields that newer writers leave empty.
fn core_only(event: &mut Value) {
    if event["source"]["component"].as_str().is_none_or(str::is_empty) {
        event["source"] = json!({"component": event["reportingComponent"]});
    }
    let time = event["eventTime"].clone();
    let last = event["series"]["lastObservedTime"].clone();
    for (field, value) in
        [("firstTimestamp", time.clone()), ("lastTimestamp", if last.is_null() { time } else { last })]
    {
        if event[field].is_null() && !value.is_null() {
            // MicroTime to Time.
            let seconds =
                value.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()).map(crate::util::rfc3339);
            event[field] = json!(seconds);
        }
    }
    if event["count"].is_null() {
        event["count"] = event["series"]["count"].as_u64().unwrap_or(1).into();
    }
}

const CORE_TO_EVENTS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

const EVENTS_TO_CORE: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];
