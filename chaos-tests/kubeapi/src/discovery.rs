//! What the API serves: classic and aggregated discovery, `/version`, OpenAPI v3.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::resource::{Registry, Resource, api_version};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The release whose behaviour is served, in `/version`.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0+hawser", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2025-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64"})
}

/// Versions of each group, with their resources; core is the empty group.
fn groups(registry: &Registry) -> BTreeMap<String, BTreeMap<String, Vec<&Resource>>> {
    let mut out: BTreeMap<String, BTreeMap<String, Vec<&Resource>>> = BTreeMap::new();
    for resource in registry.all() {
        for version in &resource.versions {
            let versions = out.entry(resource.group.clone()).or_default();
            versions.entry(version.name.clone()).or_default().push(resource);
        }
    }
    out
}

/// Versions of a group in the order of preference of its first resource.
fn ordered(versions: &BTreeMap<String, Vec<&Resource>>) -> Vec<String> {
    let mut names: Vec<String> = versions
        .values()
        .flatten()
        .max_by_key(|r| r.versions.len())
        .map(|r| r.versions.iter().map(|v| v.name.clone()).collect())
        .unwrap_or_default();
    names.extend(versions.keys().filter(|v| !names.contains(v)).cloned().collect::<Vec<_>>());
    names
}

fn group(name: &str, versions: &BTreeMap<String, Vec<&Resource>>) -> Value {
    let versions: Vec<Value> = ordered(versions)
        .iter()
        .map(|v| json!({"groupVersion": api_version(name, v), "version": v}))
        .collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions,
        "preferredVersion": versions[0]})
}

/// `GET /api`.
pub(crate) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `GET /apis`.
pub(crate) fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        groups(registry).iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`.
pub(crate) fn one_group(registry: &Registry, name: &str) -> Result<Value, ApiError> {
    let groups = groups(registry);
    let versions =
        groups.get(name).ok_or_else(|| ApiError::NoSuchResource { path: format!("/apis/{name}") })?;
    Ok(group(name, versions))
}

/// `GET /api/v1` and `GET /apis/<group>/<version>`.
pub(crate) fn resources(registry: &Registry, name: &str, version: &str) -> Result<Value, ApiError> {
    let groups = groups(registry);
    let found = groups.get(name).and_then(|g| g.get(version));
    let found = found.ok_or_else(|| ApiError::NoSuchResource { path: format!("/apis/{name}/{version}") })?;
    let mut out = Vec::new();
    for r in found {
        let mut entry = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced,
            "kind": r.kind, "verbs": VERBS, "storageVersionHash": ""});
        if !r.short_names.is_empty() {
            entry["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        out.push(entry);
        if r.version(version).is_some_and(|v| v.status) {
            out.push(json!({"name": format!("{}/status", r.plural), "singularName": "",
                "namespaced": r.namespaced, "kind": r.kind, "verbs": ["get", "patch", "update"]}));
        }
    }
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(name, version), "resources": out}))
}

/// The form of aggregated discovery that the Accept header asks for first, if any.
pub(crate) fn aggregated_version(accept: Option<&str>) -> Option<&'static str> {
    accept?.split(',').find_map(|range| {
        if !range.contains("as=APIGroupDiscoveryList") || !range.contains("g=apidiscovery.k8s.io") {
            return None;
        }
        let version = range.split(';').find_map(|part| part.trim().strip_prefix("v="));
        match version {
            Some("v2") => Some("v2"),
            Some("v2beta1") => Some("v2beta1"),
            Some(_) | None => None,
        }
    })
}

/// Aggregated discovery of `/api` or `/apis`.
pub(crate) fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups(registry)
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let list: Vec<Value> = ordered(versions)
                .iter()
                .map(|v| {
                    let resources: Vec<Value> =
                        versions[v].iter().map(|r| aggregated_resource(r, v)).collect();
                    json!({"version": v, "freshness": "Current", "resources": resources})
                })
                .collect();
            let mut item = json!({"metadata": {"creationTimestamp": null}, "versions": list});
            if !core {
                item["metadata"]["name"] = json!(name);
            }
            item
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items})
}

fn aggregated_resource(r: &Resource, version: &str) -> Value {
    let kind = json!({"group": r.group, "version": version, "kind": r.kind});
    let mut out = json!({"resource": r.plural, "responseKind": kind, "singularResource": r.singular,
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "verbs": VERBS});
    if !r.short_names.is_empty() {
        out["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        out["categories"] = json!(r.categories);
    }
    if r.version(version).is_some_and(|v| v.status) {
        out["subresources"] = json!([{"subresource": "status", "responseKind": kind,
            "verbs": ["get", "patch", "update"]}]);
    }
    out
}

/// `GET /openapi/v3`.
pub(crate) fn openapi_index(registry: &Registry) -> Value {
    let mut paths = serde_json::Map::new();
    for (name, versions) in groups(registry) {
        for (version, resources) in versions {
            let path =
                if name.is_empty() { format!("api/{version}") } else { format!("apis/{name}/{version}") };
            // Clients cache by this value: it changes with what is served.
            let hash = resources.len();
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/<path>`.
pub(crate) fn openapi(registry: &Registry, name: &str, version: &str) -> Result<Value, ApiError> {
    let groups = groups(registry);
    let resources = groups.get(name).and_then(|g| g.get(version)).ok_or_else(|| {
        ApiError::NoSuchResource { path: format!("/openapi/v3/{}", api_version(name, version)) }
    })?;
    let mut paths = serde_json::Map::new();
    let mut schemas = serde_json::Map::new();
    schemas.insert("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta".into(), object_meta());
    for r in resources {
        let gvk = json!({"group": r.group, "version": version, "kind": r.kind});
        let id = format!("{}.{version}.{}", if r.group.is_empty() { "core" } else { &r.group }, r.kind);
        schemas.insert(id.clone(), schema(r, version, &gvk));
        let root =
            if r.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{name}/{version}") };
        let scope = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", r.plural);
        let operation = |action: &str, media: &[&str]| operation(&gvk, &id, action, media);
        let json = ["application/json"];
        // Without strategic merge: kubectl would take the merge keys of built-in kinds from these schemas, which
        // do not have them, instead of from its own types.
        let patches =
            ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
        paths.insert(
            collection.clone(),
            json!({"get": operation("list", &[]), "post": operation("post", &json),
                "delete": operation("deletecollection", &json)}),
        );
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({"get": operation("get", &[]), "put": operation("put", &json),
                "patch": operation("patch", &patches), "delete": operation("delete", &json)}),
        );
    }
    Ok(json!({"openapi": "3.0.0", "info": {"title": "Hawser lab", "version": "v1.33.0"},
        "paths": paths, "components": {"schemas": schemas}}))
}

fn operation(gvk: &Value, id: &str, action: &str, media: &[&str]) -> Value {
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
        .iter()
        .map(|p| json!({"name": p, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    let reference = json!({"schema": {"$ref": format!("#/components/schemas/{id}")}});
    let mut out = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
        "responses": {"200": {"description": "OK", "content": {"application/json": reference}}}});
    if !media.is_empty() {
        let content: serde_json::Map<String, Value> =
            media.iter().map(|m| ((*m).to_owned(), reference.clone())).collect();
        out["requestBody"] = json!({"content": content});
        out["parameters"] = json!(parameters);
    }
    out
}

fn object_meta() -> Value {
    json!({"type": "object", "description": "ObjectMeta is metadata that all persisted resources must have.",
    "x-kubernetes-preserve-unknown-fields": true,
    "properties": {
        "name": {"type": "string", "description": "Name must be unique within a namespace."},
        "namespace": {"type": "string", "description": "Namespace of the object."},
        "labels": {"type": "object", "additionalProperties": {"type": "string"},
            "description": "Map of string keys and values that can be used to select objects."},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"},
            "description": "Unstructured key value map stored with the object."},
        "resourceVersion": {"type": "string", "description": "Version of the object."},
        "uid": {"type": "string", "description": "Unique in time and space."},
    }})
}

/// The schema of a kind: that of its CRD, or an open one, since the server does not check built-in kinds field
/// by field.
fn schema(r: &Resource, version: &str, gvk: &Value) -> Value {
    let mut out = r.version(version).and_then(|v| v.schema.clone()).unwrap_or_else(|| {
        let open = |what: &str| {
            json!({"type": "object", "description": format!("{what} of the {}.", r.kind),
                "x-kubernetes-preserve-unknown-fields": true})
        };
        let mut properties = json!({"spec": open("Specification")});
        if r.has_status() {
            properties["status"] = open("Status");
        }
        if matches!(r.kind.as_str(), "ConfigMap" | "Secret") {
            let kind = json!({"type": "object", "additionalProperties": {"type": "string"}});
            properties = json!({"data": kind});
        }
        json!({"type": "object", "description": format!("{} of the embedded API.", r.kind),
            "x-kubernetes-preserve-unknown-fields": true, "properties": properties})
    });
    let text = |description: &str| json!({"type": "string", "description": description});
    out["properties"]["apiVersion"] = text("Versioned schema of this representation of an object.");
    out["properties"]["kind"] = text("REST resource this object represents.");
    out["properties"]["metadata"] = json!({"description": "Standard object's metadata.",
        "allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}]});
    out["x-kubernetes-group-version-kind"] = json!([gvk]);
    out
}
