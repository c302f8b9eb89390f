//! The four kinds of patch.

pub(crate) mod apply;
pub(crate) mod strategic;

use serde_json::Value;

use crate::error::ApiError;
use crate::schema::Schema;

/// The real server refuses JSON patches with more operations (`maxJSONPatchOperations`).
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// `copy` can double an object with each operation, so growth is bounded as a request body is.
const MAX_PATCHED_BYTES: usize = 3 * 1024 * 1024;

/// A patch with its media type.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// RFC 7386, `application/merge-patch+json`.
    Merge(Value),
    /// RFC 6902, `application/json-patch+json`.
    Json(Value),
    /// `application/strategic-merge-patch+json`; built-in kinds only.
    Strategic(Value),
    /// Server-side apply, `application/apply-patch+yaml`.
    Apply {
        /// The whole configuration of this manager.
        config: Value,
        /// Takes over fields of other managers.
        force: bool,
    },
}

/// RFC 7386.
pub(crate) fn merge(target: &Value, patch: &Value) -> Value {
    let mut out = target.clone();
    json_patch::merge(&mut out, patch);
    out
}

/// RFC 6902. All operations succeed or none.
pub(crate) fn json(target: &Value, patch: &Value) -> Result<Value, ApiError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| ApiError::bad_request(format!("not a JSON patch: {e}")))?;
    if operations.0.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(ApiError::bad_request(format!(
            "the JSON patch has {} operations, more than {MAX_JSON_PATCH_OPERATIONS}",
            operations.0.len()
        )));
    }
    let mut out = target.clone();
    for operation in operations.0 {
        let copies = matches!(operation, json_patch::PatchOperation::Copy(_));
        json_patch::patch(&mut out, std::slice::from_ref(&operation)).map_err(|e| ApiError::Invalid {
            kind: target["kind"].as_str().unwrap_or_default().to_owned(),
            name: target["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            causes: vec![crate::error::Cause { field: "patch".into(), message: e.to_string() }],
        })?;
        if copies && out.to_string().len() > MAX_PATCHED_BYTES {
            return Err(ApiError::bad_request("the JSON patch copies more than the request limit"));
        }
    }
    Ok(out)
}

/// Strategic merge as the type says.
pub(crate) fn strategic(target: &Value, patch: &Value, schema: Schema<'_>) -> Result<Value, ApiError> {
    strategic::apply(target, patch, schema)
}

#[cfg(test)]
mod tests;
