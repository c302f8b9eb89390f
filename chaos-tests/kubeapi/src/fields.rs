//! Paths of an object's fields, sets of them, and their `FieldsV1` form.
//!
//! Source: structured-merge-diff `fieldpath`, "Server-Side Apply" of the Kubernetes documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::schema::{ListKind, Schema};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A field of a map (`f:`).
    Field(String),
    /// An item of a keyed list (`k:`), by the canonical JSON of its keys.
    Key(String),
    /// An item of a set (`v:`), by its JSON.
    Item(String),
}

/// A path from the root of an object.
pub(crate) type Path = Vec<Step>;
/// A set of fields.
pub(crate) type FieldSet = BTreeSet<Path>;

/// Every leaf of `object` that a manager can own, with its value. Items of keyed lists are listed besides
/// their leaves, as null.
pub(crate) fn leaves<'v>(object: &'v Value, schema: Schema<'_>) -> BTreeMap<Path, &'v Value> {
    let mut out = BTreeMap::new();
    if let Some(map) = object.as_object() {
        let mut path = Vec::new();
        for (field, value) in map {
            if field == "apiVersion" || field == "kind" {
                continue;
            }
            path.push(Step::Field(field.clone()));
            if field == "metadata" {
                metadata_leaves(value, &mut path, &mut out);
            } else {
                walk(value, schema.field(field), schema.list(field), &mut path, &mut out);
            }
            path.pop();
        }
    }
    out
}

/// Fields of the metadata that the server owns and no manager does.
pub(crate) const SERVER_METADATA: [&str; 10] = [
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

fn metadata_leaves<'v>(metadata: &'v Value, path: &mut Path, out: &mut BTreeMap<Path, &'v Value>) {
    let schema = Schema::Builtin("ObjectMeta");
    for (field, value) in metadata.as_object().into_iter().flatten() {
        if SERVER_METADATA.contains(&field.as_str()) {
            continue;
        }
        path.push(Step::Field(field.clone()));
        walk(value, schema.field(field), schema.list(field), path, out);
        path.pop();
    }
}

fn walk<'v>(
    value: &'v Value,
    schema: Schema<'_>,
    list: (ListKind, Schema<'_>),
    path: &mut Path,
    out: &mut BTreeMap<Path, &'v Value>,
) {
    if matches!(schema, Schema::Atomic) {
        out.insert(path.clone(), value);
    } else if let Some(map) = value.as_object().filter(|m| !m.is_empty()) {
        for (field, value) in map {
            path.push(Step::Field(field.clone()));
            walk(value, schema.field(field), schema.list(field), path, out);
            path.pop();
        }
    } else if let Some(items) = value.as_array().filter(|i| !i.is_empty()) {
        let (kind, item_schema) = list;
        let Some(steps) = steps(items, &kind) else {
            out.insert(path.clone(), value);
            return;
        };
        for (step, item) in steps.into_iter().zip(items) {
            path.push(step);
            if matches!(kind, ListKind::Map(_)) {
                out.insert(path.clone(), &Value::Null);
                for (field, value) in item.as_object().into_iter().flatten() {
                    path.push(Step::Field(field.clone()));
                    walk(value, item_schema.field(field), item_schema.list(field), path, out);
                    path.pop();
                }
            } else {
                out.insert(path.clone(), item);
            }
            path.pop();
        }
    } else {
        out.insert(path.clone(), value);
    }
}

/// The step to each item, or `None` when the list must be taken as a whole: it is atomic, lacks a key, or holds
/// one key twice (dual-stack nodes have two addresses of type InternalIP).
pub(crate) fn steps(items: &[Value], kind: &ListKind) -> Option<Vec<Step>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let step = match kind {
            ListKind::Atomic => return None,
            ListKind::Set => Step::Item(item.to_string()),
            ListKind::Map(keys) => Step::Key(key_of(item, keys)?),
        };
        if !seen.insert(step.clone()) {
            return None;
        }
        out.push(step);
    }
    Some(out)
}

/// Canonical JSON of the key fields. `protocol` is defaulted by the real server before it gets here.
fn key_of(item: &Value, keys: &[String]) -> Option<String> {
    let fields = item.as_object()?;
    let mut key = Map::new();
    for name in keys {
        let value = match fields.get(name) {
            Some(value) => value.clone(),
            None if name == "protocol" => Value::from("TCP"),
            None => return None,
        };
        key.insert(name.clone(), value);
    }
    Some(Value::Object(key).to_string())
}

/// `.spec.containers[name="a"].image`, as the real server prints paths.
pub(crate) fn display(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Field(field) => {
                let _ = write!(out, ".{field}");
            }
            Step::Key(key) => {
                let parts: Vec<String> = serde_json::from_str::<Map<String, Value>>(key)
                    .unwrap_or_default()
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect();
                let _ = write!(out, "[{}]", parts.join(","));
            }
            Step::Item(item) => {
                let _ = write!(out, "[={item}]");
            }
        }
    }
    out
}

/// The `FieldsV1` form of a set.
pub(crate) fn encode(set: &FieldSet) -> Value {
    let mut root = Map::new();
    for path in set {
        insert(&mut root, path);
    }
    strip_leaf_dots(&mut root);
    Value::Object(root)
}

fn insert(node: &mut Map<String, Value>, path: &[Step]) {
    let Some((first, rest)) = path.split_first() else {
        // "." marks a member that has members beneath it; leaves do without.
        node.insert(".".to_owned(), Value::Object(Map::new()));
        return;
    };
    let name = match first {
        Step::Field(f) => format!("f:{f}"),
        Step::Key(k) => format!("k:{k}"),
        Step::Item(v) => format!("v:{v}"),
    };
    if let Some(child) = node.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut() {
        insert(child, rest);
    }
}

fn strip_leaf_dots(node: &mut Map<String, Value>) {
    for child in node.values_mut() {
        if let Some(map) = child.as_object_mut() {
            if map.len() == 1 && map.contains_key(".") {
                map.clear();
            } else {
                strip_leaf_dots(map);
            }
        }
    }
}

/// Reads a `FieldsV1`. What is not understood is left out.
pub(crate) fn decode(fields: &Value) -> FieldSet {
    let mut out = FieldSet::new();
    decode_into(fields, &mut Vec::new(), &mut out);
    out
}

fn decode_into(node: &Value, path: &mut Path, out: &mut FieldSet) {
    let Some(map) = node.as_object() else { return };
    if map.is_empty() && !path.is_empty() {
        out.insert(path.clone());
    }
    for (name, child) in map {
        if name == "." {
            out.insert(path.clone());
            continue;
        }
        let step = match name.split_once(':') {
            Some(("f", f)) => Step::Field(f.to_owned()),
            Some(("k", k)) => match serde_json::from_str::<Value>(k) {
                Ok(key) => Step::Key(key.to_string()),
                Err(_) => continue,
            },
            Some(("v", v)) => Step::Item(v.to_owned()),
            Some(_) | None => continue,
        };
        path.push(step);
        decode_into(child, path, out);
        path.pop();
    }
}

/// Takes the value at `path` out of `object`; maps that become empty by it go too.
pub(crate) fn remove(object: &mut Value, path: &[Step]) {
    let Some((first, rest)) = path.split_first() else { return };
    match first {
        Step::Field(field) => {
            let Some(map) = object.as_object_mut() else { return };
            if rest.is_empty() {
                map.remove(field);
                return;
            }
            let Some(child) = map.get_mut(field) else { return };
            remove(child, rest);
            let empty =
                child.as_object().is_some_and(Map::is_empty) || child.as_array().is_some_and(Vec::is_empty);
            if empty {
                map.remove(field);
            }
        }
        Step::Key(key) => {
            let Some(items) = object.as_array_mut() else { return };
            let Ok(key) = serde_json::from_str::<Map<String, Value>>(key) else { return };
            let fits = |item: &Value| {
                key.iter().all(|(k, v)| {
                    item.get(k) == Some(v) || (k == "protocol" && item.get(k).is_none() && v == "TCP")
                })
            };
            if rest.is_empty() {
                items.retain(|item| !fits(item));
            } else if let Some(item) = items.iter_mut().find(|item| fits(item)) {
                remove(item, rest);
            }
        }
        Step::Item(json) => {
            if let Some(items) = object.as_array_mut() {
                let gone = serde_json::from_str::<Value>(json).unwrap_or_default();
                items.retain(|item| *item != gone);
            }
        }
    }
}

#[cfg(test)]
mod tests;
