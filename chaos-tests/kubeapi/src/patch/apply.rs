//! Server-side apply: merge by field ownership.
//!
//! Source: "Server-Side Apply" of the Kubernetes documentation and structured-merge-diff `merge.Updater`.

use serde_json::{Map, Value};

use crate::error::{ApiError, ApplyConflict};
use crate::fields::{self, FieldSet, Path, SERVER_METADATA, Step, leaves, steps};
use crate::managed::{Change, Entry, Managed, Manager};
use crate::schema::{ListKind, Schema};

/// Who applies, and how.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) manager: Manager,
    /// Takes fields over from other managers instead of failing.
    pub(crate) force: bool,
    /// RFC 3339, seconds.
    pub(crate) now: &'a str,
}

/// Merges the configuration `applied` into `live` (null when the object does not exist yet) and returns the new
/// object with its `managedFields`.
pub(crate) fn apply(
    live: &Value,
    applied: &Value,
    schema: Schema<'_>,
    applier: &Applier<'_>,
) -> Result<Value, ApiError> {
    if applied["metadata"]["managedFields"].as_array().is_some_and(|m| !m.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let config = without_server_fields(applied);
    let mut managed = Managed::of(live);
    let mut merged = merge_root(live, &config, schema);
    let own: FieldSet = leaves(&config, schema).into_keys().collect();

    // Fields that this manager applied before and does not apply now go, unless somebody else owns them.
    let before = managed.0.get(&applier.manager).map(|e| e.set.clone()).unwrap_or_default();
    let others = managed.owned_by_others(&applier.manager);
    let held = |path: &[Step]| others.iter().any(|other| other.starts_with(path));
    let dropped: Vec<&Path> = before.iter().filter(|p| !own.contains(*p) && !held(p)).collect();
    for path in &dropped {
        // An item that stays keeps the fields that name it.
        if let [item @ .., Step::Key(key), Step::Field(field)] = path.as_slice() {
            let names = serde_json::from_str::<Map<String, Value>>(key).unwrap_or_default();
            let item: Path = item.iter().cloned().chain([Step::Key(key.clone())]).collect();
            if names.contains_key(field) && !dropped.contains(&&item) {
                continue;
            }
        }
        // Shorter paths come first: an item goes as a whole.
        fields::remove(&mut merged, path);
    }

    let change = Change::between(live, &merged, schema);
    let mut conflicts = Vec::new();
    for (manager, entry) in managed.0.iter_mut().filter(|(m, _)| **m != applier.manager) {
        let taken: Vec<_> = entry.set.intersection(&change.written).cloned().collect();
        if !applier.force {
            conflicts.extend(taken.iter().map(|path| ApplyConflict {
                manager: manager.name.clone(),
                api_version: manager.api_version.clone(),
                field: fields::display(path),
            }));
        }
        entry.set.retain(|p| !change.written.contains(p) && !change.removed.contains(p));
    }
    if !conflicts.is_empty() {
        return Err(ApiError::ApplyConflicts { conflicts });
    }
    let unchanged = managed.0.get(&applier.manager).filter(|e| e.set == own).map(|e| e.time.clone());
    let value_changed = !change.written.is_empty() || !change.removed.is_empty();
    let time = unchanged.filter(|_| !value_changed).unwrap_or_else(|| applier.now.to_owned());
    managed.0.insert(applier.manager.clone(), Entry { time, set: own });
    managed.0.retain(|_, entry| !entry.set.is_empty());
    managed.store(&mut merged);
    Ok(merged)
}

/// What the applier may speak about. `resourceVersion` and `uid` are preconditions, checked elsewhere.
fn without_server_fields(applied: &Value) -> Value {
    let mut config = applied.clone();
    strip_nulls(&mut config);
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in SERVER_METADATA {
            metadata.remove(field);
        }
    }
    config
}

fn strip_nulls(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
        map.values_mut().for_each(strip_nulls);
    } else if let Some(items) = value.as_array_mut() {
        items.iter_mut().for_each(strip_nulls);
    }
}

fn merge_root(live: &Value, config: &Value, schema: Schema<'_>) -> Value {
    let mut out = live.as_object().cloned().unwrap_or_default();
    for (field, value) in config.as_object().into_iter().flatten() {
        let inner = schema.root_field(field);
        let merged = merge(out.get(field), value, inner, schema.list(field));
        out.insert(field.clone(), merged);
    }
    Value::Object(out)
}

fn merge(live: Option<&Value>, applied: &Value, schema: Schema<'_>, list: (ListKind, Schema<'_>)) -> Value {
    if matches!(schema, Schema::Atomic) {
        return applied.clone();
    }
    if let Some(applied) = applied.as_object() {
        return merge_map(live, applied, schema);
    }
    let (kind, item_schema) = list;
    if let (Some(applied_items), Some(live_items)) = (applied.as_array(), live.and_then(Value::as_array))
        && let (Some(applied_steps), Some(live_steps)) =
            (steps(applied_items, &kind), steps(live_items, &kind))
    {
        let mut out = live_items.clone();
        for (step, item) in applied_steps.iter().zip(applied_items) {
            match (live_steps.iter().position(|s| s == step), item.as_object()) {
                (Some(at), Some(fields)) => out[at] = merge_map(live_items.get(at), fields, item_schema),
                (Some(_), None) => {}
                (None, _) => out.push(item.clone()),
            }
        }
        return Value::Array(out);
    }
    applied.clone()
}

fn merge_map(live: Option<&Value>, applied: &Map<String, Value>, schema: Schema<'_>) -> Value {
    let mut out = live.and_then(Value::as_object).cloned().unwrap_or_default();
    for (field, value) in applied {
        let merged = merge(out.get(field), value, schema.field(field), schema.list(field));
        out.insert(field.clone(), merged);
    }
    Value::Object(out)
}
