//! Kubernetes' own description of its objects, cut down to the kinds that `deploy/` has: what a test can carry along.
//!
//! The three forms in which it is to be had give the same: `swagger.json` of Kubernetes (`definitions`), the documents beneath
//! `api/openapi-spec/v3` (`components.schemas`), and JSON schemas made of either (`$defs`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

/// Group, version and kind of everything that the chart and the other manifests of `deploy/` can be.
pub const KINDS: [(&str, &str, &str); 14] = [
    ("", "v1", "ConfigMap"),
    ("", "v1", "Namespace"),
    ("", "v1", "Service"),
    ("", "v1", "ServiceAccount"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "Deployment"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
];

/// What is kept of a schema, apart from schemas inside it: what can refuse a value.
const KEYWORDS: [&str; 8] = [
    "enum",
    "format",
    "maximum",
    "minimum",
    "pattern",
    "required",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
];
/// Says which kind a definition is.
const KIND_OF: &str = "x-kubernetes-group-version-kind";
/// These are written in a different way in each form; the format says all of it.
const BY_FORMAT: [(&str, &str); 2] = [
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "int-or-string"),
];

/// The definitions of `kinds`, and those that they refer to, without descriptions.
///
/// # Errors
/// None of the documents has one of the kinds, or what it refers to.
pub fn trim(documents: &[Value], kinds: &[(&str, &str, &str)]) -> Result<BTreeMap<String, Value>> {
    let mut all: BTreeMap<&str, &Value> = BTreeMap::new();
    for document in documents {
        let places = ["/definitions", "/components/schemas", "/$defs"];
        let found = places.into_iter().find_map(|place| document.pointer(place)?.as_object());
        let found = found.context("neither definitions nor components.schemas nor $defs is in it")?;
        all.extend(found.iter().map(|(name, schema)| (name.as_str(), schema)));
    }
    let mut wanted = Vec::new();
    for (group, version, kind) in kinds {
        let is = json!({"group": group, "version": version, "kind": kind});
        let name = all.iter().find(|(_, schema)| schema[KIND_OF] == json!([is]));
        wanted.push(*name.with_context(|| format!("no schema of {kind} ({group}/{version})"))?.0);
    }
    let mut kept = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        if kept.contains_key(name) {
            continue;
        }
        let schema = all.get(name).with_context(|| format!("no schema of {name}, which others refer to"))?;
        let short = match BY_FORMAT.iter().find(|(known, _)| *known == name) {
            Some((_, format)) => json!({"format": format}),
            None => definition(schema).with_context(|| name.to_owned())?,
        };
        let mut named = BTreeSet::new();
        references(&short, &mut named);
        let next: Vec<&str> = all.keys().copied().filter(|key| named.contains(*key)).collect();
        ensure!(next.len() == named.len(), "{name} refers to what is not there: {named:?}");
        wanted.extend(next);
        kept.insert(name.to_owned(), short);
    }
    Ok(kept)
}

/// A definition: as any schema, with the kind that it is.
fn definition(schema: &Value) -> Result<Value> {
    let mut out = short(schema)?;
    if let (Some(kind), Some(map)) = (schema.get(KIND_OF), out.as_object_mut()) {
        for field in ["apiVersion", "kind"] {
            // Some form lists here what the kind says.
            let properties = map.get_mut("properties").and_then(Value::as_object_mut);
            if let Some(property) = properties.and_then(|all| all.get_mut(field)?.as_object_mut()) {
                property.remove("enum");
            }
        }
        map.insert(KIND_OF.to_owned(), kind.clone());
    }
    Ok(out)
}

/// A schema without what refuses nothing.
fn short(schema: &Value) -> Result<Value> {
    let schema = schema.as_object().context("a schema that is no object")?;
    let inner = schema.get("allOf").and_then(|all| all.as_array()?.first());
    if let Some(target) = inner.unwrap_or(&Value::Null).get("$ref").or_else(|| schema.get("$ref")) {
        let name =
            target.as_str().and_then(|path| path.rsplit('/').next()).context("a $ref that is no text")?;
        return Ok(json!({"$ref": format!("#/definitions/{name}")}));
    }
    let mut out = Map::new();
    for (key, value) in schema {
        let value = match key.as_str() {
            "type" => named_type(value)?,
            "items" => short(value)?,
            "additionalProperties" if value.is_object() => short(value)?,
            "properties" => {
                let each = value.as_object().context("properties")?.iter();
                let each = each.map(|(name, value)| {
                    Ok((name.clone(), short(value).with_context(|| format!("property {name}"))?))
                });
                Value::Object(each.collect::<Result<_>>()?)
            }
            key if KEYWORDS.contains(&key) => value.clone(),
            // Said nowhere else: what they would forbid must not be lost in silence.
            "anyOf" | "oneOf" | "not" | "allOf" => anyhow::bail!("{key} is not understood: {value}"),
            _ => continue,
        };
        out.insert(key.clone(), value);
    }
    Ok(Value::Object(out))
}

/// A type, without the `null` that some form adds to whatever may be left out.
fn named_type(value: &Value) -> Result<Value> {
    let Some(names) = value.as_array() else { return Ok(value.clone()) };
    let mut names = names.iter().filter(|name| *name != "null");
    let name = names.next().context("no type")?;
    ensure!(names.next().is_none(), "several types: {value}");
    Ok(name.clone())
}

fn references(schema: &Value, out: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value.as_str()) {
                    ("$ref", Some(path)) => {
                        out.extend(path.rsplit('/').next().map(str::to_owned));
                    }
                    _ => references(value, out),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|each| references(each, out)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a test carries along: where it is from, under which licence, and a definition a line.
///
/// # Errors
/// Never in practice: text and numbers.
pub fn fixture(
    version: &str,
    sources: &BTreeMap<String, String>,
    definitions: &BTreeMap<String, Value>,
) -> Result<String> {
    let origin = "OpenAPI description of Kubernetes' API, cut down by `cargo xtask openapi`: kinds that deploy/ has, and \
                  what they refer to, without descriptions";
    let licence = "Apache-2.0, Copyright The Kubernetes Authors; see NOTICE beside this file";
    let head = [("origin", json!(origin)), ("licence", json!(licence)), ("kubernetes", json!(version))];
    let mut out = String::from("{\n");
    for (key, value) in head.into_iter().chain([("sha256", json!(sources))]) {
        out.push_str(&format!("\"{key}\": {value},\n"));
    }
    out.push_str("\"definitions\": {\n");
    let lines =
        definitions.iter().map(|(name, schema)| Ok(format!("{}: {schema}", serde_json::to_string(name)?)));
    out.push_str(&lines.collect::<Result<Vec<_>>>()?.join(",\n"));
    out.push_str("\n}\n}\n");
    Ok(out)
}

#[cfg(test)]
mod tests;
