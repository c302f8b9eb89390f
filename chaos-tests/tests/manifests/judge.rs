//! An object against Kubernetes' OpenAPI description of its kind, as strictly as `kubectl apply --validate=strict`: unknown fields,
//! types, numbers, quantities, what is required; and against [`rules`](super::rules), which that description leaves out.
//!
//! Of JSON schema's language `cargo xtask openapi` leaves a dozen words, and refuses the rest: small enough to be judged here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::rules;

/// What each release of Kubernetes says: the oldest that Hawser installs on, and the newest that it was run on.
const RELEASES: [&str; 2] = [include_str!("kubernetes/1.32.json"), include_str!("kubernetes/1.36.json")];
const KIND_OF: &str = "x-kubernetes-group-version-kind";

/// The description of one release.
pub(crate) struct Description {
    pub(crate) release: String,
    pub(crate) licence: String,
    /// By the last part of their names, which are unique here.
    definitions: BTreeMap<String, Value>,
}

/// All releases that there are descriptions of.
pub(crate) fn releases() -> Vec<Description> {
    RELEASES.into_iter().map(Description::read).collect()
}

/// The last part of a definition's name, or of a reference to it.
fn last(name: &str) -> &str {
    name.rsplit(['.', '/']).next().unwrap_or(name)
}

impl Description {
    fn read(text: &str) -> Self {
        let read: Value = serde_json::from_str(text).unwrap();
        let all = read["definitions"].as_object().unwrap();
        let definitions: BTreeMap<String, Value> =
            all.iter().map(|(name, schema)| (last(name).to_owned(), schema.clone())).collect();
        assert_eq!(definitions.len(), all.len(), "two definitions with one last name");
        let text = |field: &str| read[field].as_str().unwrap().to_owned();
        Self { release: text("kubernetes"), licence: text("licence"), definitions }
    }

    /// Whether a type has a field.
    pub(crate) fn knows(&self, kind: &str, field: &str) -> bool {
        self.definitions.get(kind).is_some_and(|schema| schema["properties"].get(field).is_some())
    }

    /// Everything that is wrong with an object, each with its place.
    pub(crate) fn faults(&self, object: &Value) -> Vec<String> {
        let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let is = serde_json::json!([{"group": group, "version": version, "kind": kind}]);
        match self.definitions.iter().find(|(_, schema)| schema[KIND_OF] == is) {
            Some((name, schema)) => {
                let mut walk = Walk { definitions: &self.definitions, faults: Vec::new() };
                walk.whole(name, schema, object, "");
                walk.faults
            }
            None => vec![format!("no schema of {kind} ({group}/{version}): xtask::openapi::KINDS")],
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

struct Walk<'a> {
    definitions: &'a BTreeMap<String, Value>,
    faults: Vec<String>,
}

impl<'a> Walk<'a> {
    fn fault(&mut self, place: &str, what: impl std::fmt::Display) {
        self.faults.push(format!("{}: {what}", place.trim_start_matches('.')));
    }

    /// A value of a named type.
    fn whole(&mut self, name: &str, schema: &'a Value, value: &Value, place: &str) {
        let props = |walk: &mut Self, value: &Value, place: &str| {
            walk.whole("JSONSchemaProps", &walk.definitions["JSONSchemaProps"], value, place);
        };
        match name {
            // What a CRD has as a schema is any of these; the description leaves it open.
            "JSONSchemaPropsOrBool" if value.is_boolean() => {}
            "JSONSchemaPropsOrArray" if value.is_array() => {
                for (at, each) in value.as_array().into_iter().flatten().enumerate() {
                    props(self, each, &format!("{place}[{at}]"));
                }
            }
            "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" => props(self, value, place),
            _ => self.schema(name, schema, value, place),
        }
        for rule in rules::of_type(name) {
            if let Err(why) = rule.judge(value) {
                self.fault(place, why);
            }
        }
    }

    /// A value of a schema; `name` is the type that it is, or is a field of.
    fn schema(&mut self, name: &str, schema: &'a Value, value: &Value, place: &str) {
        if let Some(target) = schema["$ref"].as_str().map(last) {
            let definition = &self.definitions[target];
            return self.whole(target, definition, value, place);
        }
        if let Some(format) = schema["format"].as_str()
            && let Err(why) = rules::of_format(format, value)
        {
            return self.fault(place, why);
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64(),
            Some("number") => value.is_number(),
            Some(other) => unreachable!("{place}: the type {other}"),
            None => true,
        };
        if !fits {
            return self.fault(place, format_args!("{value} is no {}", text(schema, "type")));
        }
        match value {
            Value::Object(map) => self.fields(name, schema, map, place),
            Value::Array(all) => {
                for (at, each) in all.iter().enumerate() {
                    self.schema(name, &schema["items"], each, &format!("{place}[{at}]"));
                }
                self.alike(schema, all, place);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn fields(&mut self, name: &str, schema: &'a Value, map: &Map<String, Value>, place: &str) {
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(field) {
                self.fault(place, format_args!("{field} is missing"));
            }
        }
        for (field, value) in map {
            let place = format!("{place}.{field}");
            if let Some(property) = schema["properties"].get(field) {
                self.schema(name, property, value, &place);
                for rule in rules::of_field(name, field) {
                    if let Err(why) = rule.judge(value) {
                        self.fault(&place, why);
                    }
                }
            } else if schema["additionalProperties"].is_object() {
                self.schema(name, &schema["additionalProperties"], value, &place);
            } else if schema["properties"].is_object() {
                self.fault(&place, "there is no such field");
            }
        }
    }

    /// Entries of a set, or with one key, that are there twice: an apply is refused for them.
    fn alike(&mut self, schema: &Value, all: &[Value], place: &str) {
        let key = |entry: &Value| match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Some(entry.to_string()),
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array()?.iter().filter_map(Value::as_str);
                Some(keys.map(|key| format!("{key} {} ", entry[key])).collect())
            }
            _ => None,
        };
        let mut seen = BTreeSet::new();
        for key in all.iter().filter_map(key) {
            if seen.contains(&key) {
                self.fault(place, format_args!("twice: {}", key.trim_end()));
            }
            seen.insert(key);
        }
    }
}
