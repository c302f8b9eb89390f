//! What a write makes of old and new. Pure.

use serde_json::{Map, Value};

use super::DeleteOptions;
use crate::error::ApiError;
use crate::resource::Resource;

/// `generation` counts specs; these kinds have none.
pub(super) fn has_generation(resource: &Resource) -> bool {
    resource.custom
        || matches!(
            resource.kind.as_str(),
            "Pod"
                | "Deployment"
                | "DaemonSet"
                | "NetworkPolicy"
                | "CustomResourceDefinition"
                | "EndpointSlice"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
        )
}

pub(super) fn spec_changed(old: &Value, new: &Value) -> bool {
    let spec = |v: &Value| -> Map<String, Value> {
        let mut fields = v.as_object().cloned().unwrap_or_default();
        for other in ["metadata", "status", "apiVersion", "kind"] {
            fields.remove(other);
        }
        fields
    };
    spec(old) != spec(new)
}

/// Seconds until a deleted object goes. Only pods that run somewhere get any.
pub(super) fn grace(resource: &Resource, pod: &Value, options: &DeleteOptions) -> u64 {
    let done = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let bound = pod["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    if resource.key() != "pods" || done || !bound {
        return 0;
    }
    options
        .grace_seconds
        .or_else(|| pod["metadata"]["deletionGracePeriodSeconds"].as_u64())
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_u64())
        .unwrap_or(30)
}

/// The new object: server-owned metadata stay, and each subresource changes its part alone. As on the real
/// server, writing the status of a built-in kind may change metadata too, of a custom one not.
pub(super) fn compose(
    resource: &Resource,
    old: &Value,
    object: Value,
    subresource: &str,
) -> Result<Value, ApiError> {
    let mut new = object;
    if subresource == "status" {
        let mut kept = old.clone();
        kept["status"] = new["status"].take();
        if kept["status"].is_null()
            && let Some(fields) = kept.as_object_mut()
        {
            fields.remove("status");
        }
        if !resource.custom {
            // Pods keep their owners: old kubelets spoilt them.
            let owners = (resource.kind != "Pod").then_some("ownerReferences");
            for field in ["labels", "annotations", "finalizers"].into_iter().chain(owners) {
                match new["metadata"].get(field) {
                    Some(value) => kept["metadata"][field] = value.clone(),
                    None => drop(kept["metadata"].as_object_mut().and_then(|m| m.remove(field))),
                }
            }
        }
        new = kept;
    } else if resource.has_status() {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => drop(new.as_object_mut().and_then(|f| f.remove("status"))),
        }
    }
    let (Some(fields), Some(before)) = (new["metadata"].as_object_mut(), old["metadata"].as_object()) else {
        return Err(ApiError::bad_request("metadata must be an object"));
    };
    for field in crate::fields::SERVER_METADATA {
        match before.get(field) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    Ok(new)
}

/// Leaves in an applied configuration what its subresource may set.
pub(super) fn restrict(config: &mut Value, resource: &Resource, subresource: &str) {
    let Some(fields) = config.as_object_mut() else { return };
    if subresource == "status" {
        fields.retain(|f, _| ["apiVersion", "kind", "metadata", "status"].contains(&f.as_str()));
        if resource.custom
            && let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.retain(|f, _| ["name", "namespace", "uid", "resourceVersion"].contains(&f.as_str()));
        }
    } else if resource.has_status() {
        fields.remove("status");
    }
}

/// Equal but for the times in `managedFields`.
pub(super) fn same(old: &Value, new: &Value) -> bool {
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return old == new };
    let rest = |m: &Map<String, Value>, n: &Map<String, Value>| {
        m.len() == n.len() && m.iter().all(|(k, v)| k == "metadata" || n.get(k) == Some(v))
    };
    let meta = |v: &Value| {
        let mut fields = v["metadata"].as_object().cloned().unwrap_or_default();
        let managed = fields.remove("managedFields").unwrap_or_default();
        let entries: Vec<Value> = managed
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| {
                let mut e = e.clone();
                if let Some(e) = e.as_object_mut() {
                    e.remove("time");
                }
                e
            })
            .collect();
        (fields, entries)
    };
    rest(a, b) && meta(old) == meta(new)
}
