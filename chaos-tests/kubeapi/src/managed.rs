//! `metadata.managedFields`: who owns which field.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fields::{self, FieldSet, Path, leaves};
use crate::schema::Schema;

/// The real server folds the oldest update managers together beyond this number (`DefaultMaxUpdateManagers`).
const MAX_UPDATE_MANAGERS: usize = 10;

/// Who an entry belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    /// Name of the field manager.
    pub(crate) name: String,
    /// By server-side apply, rather than by update or patch.
    pub(crate) apply: bool,
    /// `group/version` through which the fields are owned.
    pub(crate) api_version: String,
    /// `status`, or empty.
    pub(crate) subresource: String,
}

/// One manager's fields and when they last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// RFC 3339, seconds.
    pub(crate) time: String,
    pub(crate) set: FieldSet,
}

/// All managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Managed(pub(crate) BTreeMap<Manager, Entry>);

impl Managed {
    /// Reads `metadata.managedFields`.
    pub(crate) fn of(object: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let entries = object["metadata"]["managedFields"].as_array();
        Self(
            entries
                .into_iter()
                .flatten()
                .map(|e| {
                    let manager = Manager {
                        name: text(&e["manager"]),
                        apply: e["operation"] == "Apply",
                        api_version: text(&e["apiVersion"]),
                        subresource: text(&e["subresource"]),
                    };
                    (manager, Entry { time: text(&e["time"]), set: fields::decode(&e["fieldsV1"]) })
                })
                .collect(),
        )
    }

    /// Writes `metadata.managedFields`.
    pub(crate) fn store(&self, object: &mut Value) {
        let entries: Vec<Value> = self
            .0
            .iter()
            .filter(|(_, entry)| !entry.set.is_empty())
            .map(|(manager, entry)| {
                let mut out = json!({
                    "manager": manager.name,
                    "operation": if manager.apply { "Apply" } else { "Update" },
                    "apiVersion": manager.api_version,
                    "time": entry.time,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": fields::encode(&entry.set),
                });
                if !manager.subresource.is_empty() {
                    out["subresource"] = json!(manager.subresource);
                }
                out
            })
            .collect();
        let Some(metadata) = object["metadata"].as_object_mut() else { return };
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".into(), Value::Array(entries));
        }
    }

    /// Fields that anybody but `manager` owns.
    pub(crate) fn owned_by_others(&self, manager: &Manager) -> FieldSet {
        self.0.iter().filter(|(m, _)| *m != manager).flat_map(|(_, e)| e.set.iter().cloned()).collect()
    }

    /// Books what changed from `old` to `new` on `manager`, an updater: changed and added fields become its own
    /// alone, removed fields nobody's.
    pub(crate) fn update(
        &mut self,
        old: &Value,
        new: &Value,
        schema: Schema<'_>,
        manager: Manager,
        now: &str,
    ) {
        let change = Change::between(old, new, schema);
        if change.written.is_empty() && change.removed.is_empty() {
            return;
        }
        for (other, entry) in &mut self.0 {
            if *other != manager {
                entry.set.retain(|p| !change.written.contains(p));
            }
            entry.set.retain(|p| !change.removed.contains(p));
        }
        self.0.retain(|_, entry| !entry.set.is_empty());
        if !change.written.is_empty() {
            let entry =
                self.0.entry(manager).or_insert_with(|| Entry { time: String::new(), set: FieldSet::new() });
            entry.set.extend(change.written);
            now.clone_into(&mut entry.time);
        }
        self.cap();
    }

    fn cap(&mut self) {
        loop {
            let mut updaters: Vec<(&Manager, &Entry)> =
                self.0.iter().filter(|(m, _)| !m.apply && m.subresource.is_empty()).collect();
            if updaters.len() <= MAX_UPDATE_MANAGERS {
                return;
            }
            updaters.sort_by(|a, b| a.1.time.cmp(&b.1.time));
            let Some(oldest) =
                updaters.iter().map(|(m, _)| (*m).clone()).find(|m| m.name != "ancient-changes")
            else {
                return;
            };
            let Some(entry) = self.0.remove(&oldest) else { return };
            let ancient = Manager { name: "ancient-changes".into(), ..oldest };
            let into = self
                .0
                .entry(ancient)
                .or_insert_with(|| Entry { time: entry.time.clone(), set: FieldSet::new() });
            into.set.extend(entry.set);
            into.time = entry.time;
        }
    }
}

/// What differs between two objects, leaf by leaf.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Leaves that are new or have another value.
    pub(crate) written: FieldSet,
    /// Leaves that are gone.
    pub(crate) removed: FieldSet,
}

impl Change {
    /// Compares two objects of one type.
    pub(crate) fn between(old: &Value, new: &Value, schema: Schema<'_>) -> Self {
        let before = leaves(old, schema);
        let after = leaves(new, schema);
        let written: FieldSet =
            after.iter().filter(|(p, v)| before.get(*p) != Some(v)).map(|(p, _)| p.clone()).collect();
        let removed: FieldSet = before.into_keys().filter(|p: &Path| !after.contains_key(p)).collect();
        Self { written, removed }
    }
}
