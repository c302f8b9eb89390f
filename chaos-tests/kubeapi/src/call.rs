//! What a request carries: parameters, headers, body.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, USER_AGENT};
use serde_json::Value;

use crate::auth::User;
use crate::error::ApiError;
use crate::patch::Patch;
use crate::resource::Resource;
use crate::routes::{flag, parameter};
use crate::store::DeleteOptions;

/// A request whose body has been read.
pub(crate) struct Call {
    pub(crate) user: User,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn header(&self, name: &http::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

pub(crate) fn dry_run(query: &[(String, String)]) -> Result<bool, ApiError> {
    match parameter(query, "dryRun") {
        None => Ok(false),
        Some("All") => Ok(true),
        Some(other) => {
            Err(ApiError::bad_request(format!("dryRun: Unsupported value: \"{other}\": supported: \"All\"")))
        }
    }
}

pub(crate) fn dry_run_in_body(call: &Call) -> Result<bool, ApiError> {
    if call.body.is_empty() {
        return Ok(false);
    }
    Ok(body(call)?["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All")))
}

/// `fieldManager`, else the program's name of the User-Agent, else `unknown`, as on the real server.
pub(crate) fn manager(call: &Call) -> String {
    let agent = call.header(&USER_AGENT).and_then(|a| a.split('/').next()).filter(|a| !a.is_empty());
    parameter(&call.query, "fieldManager").or(agent).unwrap_or("unknown").to_owned()
}

/// The body as JSON; YAML is read where it is announced.
pub(crate) fn body(call: &Call) -> Result<Value, ApiError> {
    let media = media(call);
    match media.as_str() {
        "" | "application/json" => serde_json::from_slice(&call.body)
            .map_err(|e| ApiError::bad_request(format!("the body is not JSON: {e}"))),
        "application/yaml" | "application/apply-patch+yaml" => yaml(&call.body),
        _ => Err(ApiError::UnsupportedMediaType {
            given: media,
            supported: "application/json, application/yaml",
        }),
    }
}

fn media(call: &Call) -> String {
    let value = call.header(&CONTENT_TYPE).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

fn yaml(bytes: &[u8]) -> Result<Value, ApiError> {
    // kube sends JSON as YAML; the YAML reader is for people.
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    serde_saphyr::from_slice(bytes).map_err(|e| ApiError::bad_request(format!("the body is not YAML: {e}")))
}

pub(crate) fn patch_of(call: &Call, resource: &Resource) -> Result<Patch, ApiError> {
    let json = || {
        serde_json::from_slice::<Value>(&call.body)
            .map_err(|e| ApiError::bad_request(format!("the patch is not JSON: {e}")))
    };
    match media(call).as_str() {
        "application/merge-patch+json" => Ok(Patch::Merge(json()?)),
        "application/json-patch+json" => Ok(Patch::Json(json()?)),
        "application/strategic-merge-patch+json" if !resource.custom => Ok(Patch::Strategic(json()?)),
        "application/apply-patch+yaml" => {
            if parameter(&call.query, "fieldManager").is_none() {
                return Err(ApiError::bad_request("fieldManager is required for apply patch"));
            }
            Ok(Patch::Apply { config: yaml(&call.body)?, force: flag(&call.query, "force") })
        }
        other => Err(ApiError::UnsupportedMediaType {
            given: other.to_owned(),
            supported: "application/json-patch+json, application/merge-patch+json, \
                        application/strategic-merge-patch+json (built-in kinds), application/apply-patch+yaml",
        }),
    }
}

pub(crate) fn delete_options(call: &Call) -> Result<DeleteOptions, ApiError> {
    let given = if call.body.is_empty() { Value::Null } else { body(call)? };
    let text = |field: &str| given["preconditions"][field].as_str().map(str::to_owned);
    let query = parameter(&call.query, "gracePeriodSeconds").and_then(|g| g.parse().ok());
    Ok(DeleteOptions {
        grace_seconds: given["gracePeriodSeconds"].as_u64().or(query),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
    })
}
