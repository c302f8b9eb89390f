//! Defaults, validation and the life of namespaces: the little that clients of the lab rely on.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{DeleteOptions, State, Target, Write};
use crate::admission;
use crate::error::{ApiError, Cause};
use crate::resource::{self, Resource};

/// Sets what the real server sets at creation. Status is the server's own, except on nodes, whose kubelet
/// registers with it.
pub(crate) fn default_create(resource: &Resource, object: &mut Value) {
    if resource.has_status()
        && resource.kind != "Node"
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    match resource.key().as_str() {
        "namespaces" => {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({"phase": "Active"});
        }
        "pods" => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "nodes" if object["spec"].is_null() => object["spec"] = json!({}),
        "customresourcedefinitions.apiextensions.k8s.io" => {
            let time = super::now();
            let condition = |kind: &str, reason: &str, message: &str| {
                json!({"type": kind, "status": "True", "reason": reason, "message": message,
                    "lastTransitionTime": time})
            };
            let stored = object["spec"]["versions"]
                .as_array()
                .and_then(|v| v.iter().find(|v| v["storage"] == true))
                .map_or(Value::Null, |v| v["name"].clone());
            object["status"] = json!({
                "acceptedNames": object["spec"]["names"],
                "conditions": [
                    condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                    condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
                ],
                "storedVersions": [stored],
            });
        }
        _ => {}
    }
    complete(resource, object);
}

/// Sets defaults that hold after every write.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    match resource.key().as_str() {
        "namespaces" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "nodes" if object["spec"]["podCIDR"].is_null() => {
            let first = object["spec"]["podCIDRs"][0].clone();
            if first.is_string() {
                object["spec"]["podCIDR"] = first;
            }
        }
        "services" => {
            if object["spec"]["type"].is_null() {
                object["spec"]["type"] = json!("ClusterIP");
            }
            for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
                if port["protocol"].is_null() {
                    port["protocol"] = json!("TCP");
                }
            }
        }
        "secrets" if object["type"].is_null() => object["type"] = json!("Opaque"),
        _ => {}
    }
    for path in ["labels", "annotations"] {
        if object["metadata"][path].is_null()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove(path);
        }
    }
}

fn is_dns_subdomain(name: &str) -> bool {
    let label = |l: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        l.bytes().all(|b| plain(b) || b == b'-')
            && l.bytes().next().is_some_and(plain)
            && l.bytes().last().is_some_and(plain)
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Checks an object on its own.
pub(crate) fn validate(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    let mut wrong = |field: &str, message: &str| {
        causes.push(Cause { field: field.to_owned(), message: message.to_owned() });
    };
    // RBAC takes `system:node` and the like.
    if !is_dns_subdomain(name) && resource.group != "rbac.authorization.k8s.io" {
        wrong(
            "metadata.name",
            &format!(
                "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
            ),
        );
    }
    for field in ["labels", "annotations"] {
        match &metadata[field] {
            Value::Null => {}
            Value::Object(map) => {
                if let Some((key, _)) = map.iter().find(|(_, v)| !v.is_string()) {
                    return Err(ApiError::bad_request(format!("metadata.{field}[{key}] must be a string")));
                }
                let bytes: usize = map.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
                if field == "annotations" && bytes > 256 * 1024 {
                    wrong("metadata.annotations", "Too long: may not be more than 262144 bytes");
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(ApiError::bad_request(format!("metadata.{field} must be a map of strings")));
            }
        }
    }
    match &metadata["finalizers"] {
        Value::Null => {}
        Value::Array(list) if list.iter().all(Value::is_string) => {}
        Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            return Err(ApiError::bad_request("metadata.finalizers must be a list of strings"));
        }
    }
    for field in ["spec", "status"] {
        if !resource.custom && !object[field].is_null() && !object[field].is_object() {
            return Err(ApiError::bad_request(format!("{field} must be an object")));
        }
    }
    if !causes.is_empty() {
        return Err(ApiError::Invalid { kind: resource.kind.clone(), name: name.to_owned(), causes });
    }
    if resource.kind == "CustomResourceDefinition" {
        resource::custom(object)?;
    }
    admission::check(&resource.key(), object)?;
    if let Some(schema) = resource.version(&resource.storage_version).and_then(|v| v.schema.as_ref()) {
        let mut causes = Vec::new();
        for (field, value) in object.as_object().into_iter().flatten() {
            if !["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
                structural(&schema["properties"][field], value, field, &mut causes);
            }
        }
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if object.get(field).is_none() {
                causes.push(Cause { field: field.to_owned(), message: "Required value".into() });
            }
        }
        if !causes.is_empty() {
            return Err(ApiError::Invalid { kind: resource.kind.clone(), name: name.to_owned(), causes });
        }
    }
    Ok(())
}

/// Checks types, `required`, `enum` and bounds of a structural schema. CEL rules, patterns and pruning are not served.
fn structural(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut wrong = |message: String| causes.push(Cause { field: path.to_owned(), message });
    if !schema.is_object() || (value.is_null() && schema["nullable"] == true) {
        return;
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some(_) | None => !int_or_string || value.is_string() || value.is_i64(),
    };
    if !fits {
        wrong(format!(
            "Invalid value: must be of type {}",
            schema["type"].as_str().unwrap_or("integer or string")
        ));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        wrong(format!("Unsupported value: {value}: supported values: {}", Value::Array(allowed.clone())));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|m| number < m) {
            wrong(format!(
                "Invalid value: {value}: should be greater than or equal to {}",
                schema["minimum"]
            ));
        }
        if schema["maximum"].as_f64().is_some_and(|m| number > m) {
            wrong(format!("Invalid value: {value}: should be less than or equal to {}", schema["maximum"]));
        }
    }
    let length = value.as_str().map(str::len).or_else(|| value.as_array().map(Vec::len));
    if let Some(length) = length.and_then(|l| u64::try_from(l).ok()) {
        let (min, max) =
            if value.is_string() { ("minLength", "maxLength") } else { ("minItems", "maxItems") };
        if schema[min].as_u64().is_some_and(|m| length < m)
            || schema[max].as_u64().is_some_and(|m| length > m)
        {
            wrong(format!("Invalid value: length {length} is out of bounds"));
        }
    }
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(field).is_none() {
            causes.push(Cause { field: format!("{path}.{field}"), message: "Required value".into() });
        }
    }
    for (field, value) in value.as_object().into_iter().flatten() {
        let inner = schema["properties"].get(field).unwrap_or(&schema["additionalProperties"]);
        structural(inner, value, &format!("{path}.{field}"), causes);
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        structural(&schema["items"], item, &format!("{path}[{at}]"), causes);
    }
}

/// Checks a change: what is immutable once it is set.
pub(crate) fn validate_change(resource: &Resource, old: &Value, new: &Value) -> Result<(), ApiError> {
    let immutable: &[&str] = match resource.key().as_str() {
        "nodes" => &["/spec/podCIDR", "/spec/podCIDRs", "/spec/providerID"],
        "pods" => &["/spec/nodeName", "/spec/hostNetwork"],
        "services" => &["/spec/clusterIP"],
        "customresourcedefinitions.apiextensions.k8s.io" => {
            &["/spec/group", "/spec/names/kind", "/spec/names/plural", "/spec/scope"]
        }
        _ => &[],
    };
    for pointer in immutable {
        if let Some(before) = old.pointer(pointer)
            && new.pointer(pointer) != Some(before)
        {
            return Err(ApiError::invalid(
                &resource.kind,
                old["metadata"]["name"].as_str().unwrap_or_default(),
                pointer.trim_start_matches('/').replace('/', ".").as_str(),
                "Forbidden: field is immutable once set",
            ));
        }
    }
    Ok(())
}

impl State {
    /// Deletes what is in a namespace that terminates. Pods on nodes go when their kubelet is done.
    pub(crate) fn empty_namespace(&mut self, name: &str) -> Result<(), ApiError> {
        let resources: Vec<Arc<Resource>> = self.registry.all().filter(|r| r.namespaced).cloned().collect();
        for resource in resources {
            let key = resource.key();
            let names: Vec<String> = self
                .collection(&key)
                .objects
                .range((name.to_owned(), String::new())..)
                .take_while(|((ns, _), _)| ns == name)
                .map(|((_, object), _)| object.clone())
                .collect();
            for object in names {
                match self.delete(
                    &Target::of(&key, name, &object),
                    &DeleteOptions::default(),
                    &Write::internal(),
                ) {
                    // An event goes together with its twin.
                    Ok(_) | Err(ApiError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.finish_namespace(name)
    }

    /// Removes a terminating namespace once nothing is left in it.
    pub(crate) fn finish_namespace(&mut self, name: &str) -> Result<(), ApiError> {
        let Some(namespace) = self.namespace(name) else { return Ok(()) };
        let metadata = &namespace.value["metadata"];
        let finalizers = metadata["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if metadata["deletionTimestamp"].is_null() || finalizers || !self.is_namespace_empty(name) {
            return Ok(());
        }
        let resource = self.resource("namespaces")?;
        self.remove(&resource, &Target::of("namespaces", "", name)).map(drop)
    }

    fn is_namespace_empty(&self, name: &str) -> bool {
        self.collections.values().all(|c| {
            c.objects.range((name.to_owned(), String::new())..).next().is_none_or(|((ns, _), _)| ns != name)
        })
    }
}
