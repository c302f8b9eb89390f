//! Errors of the API and their `metav1.Status` form.

use std::time::Duration;

use serde_json::{Value, json};

use crate::admission::Reason;

/// One reason why an object is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field, such as `metadata.name`.
    pub field: String,
    /// What is wrong with its value.
    pub message: String,
}

/// One field that a server-side apply may not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyConflict {
    /// The manager that owns the field.
    pub manager: String,
    /// Version through which it owns the field.
    pub api_version: String,
    /// Path of the field, such as `.spec.replicas`.
    pub field: String,
}

/// Why a request was refused. Codes and reasons are those of the real API server
/// (`k8s.io/apimachinery/pkg/api/errors`).
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The object does not exist (404).
    #[error("{resource} \"{name}\" not found")]
    NotFound {
        /// Plural with group, such as `leases.coordination.k8s.io`.
        resource: String,
        /// Name of the object.
        name: String,
    },
    /// No such path or resource (404).
    #[error("the server could not find the requested resource ({path})")]
    NoSuchResource {
        /// The path or resource that was asked for.
        path: String,
    },
    /// The name is taken (409).
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists {
        /// Plural with group.
        resource: String,
        /// Name of the object.
        name: String,
    },
    /// A stale resourceVersion, or a uid that is not the object's (409).
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {message}")]
    Conflict {
        /// Plural with group.
        resource: String,
        /// Name of the object.
        name: String,
        /// What differs.
        message: String,
    },
    /// Server-side apply met fields of other managers (409).
    #[error("Apply failed with {} conflict(s): {}", conflicts.len(), describe_conflicts(conflicts))]
    ApplyConflicts {
        /// The fields, with their owners.
        conflicts: Vec<ApplyConflict>,
    },
    /// The object breaks a rule of its type (422).
    #[error("{kind} \"{name}\" is invalid: {}", describe_causes(causes))]
    Invalid {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// What is wrong.
        causes: Vec<Cause>,
    },
    /// The request makes no sense (400).
    #[error("{message}")]
    BadRequest {
        /// What is wrong with it.
        message: String,
    },
    /// No token, or an unknown one (401).
    #[error("Unauthorized")]
    Unauthorized,
    /// The user may not do this (403).
    #[error("{message}")]
    Forbidden {
        /// Who may not do what.
        message: String,
    },
    /// A ValidatingAdmissionPolicy refuses the request (422, if its validation gives no other reason).
    #[error("{resource} \"{name}\" is forbidden: {message}")]
    Denied {
        /// Plural with group.
        resource: String,
        /// Name of the object.
        name: String,
        /// Policy, binding and what they say.
        message: String,
        /// Decides the code.
        reason: Reason,
    },
    /// The resource has no such verb (405).
    #[error("the server does not allow this method ({method}) on the requested resource")]
    MethodNotAllowed {
        /// HTTP method.
        method: String,
    },
    /// None of the accepted media types can be produced (406).
    #[error("only the following media types are accepted: application/json; asked for {accept}")]
    NotAcceptable {
        /// Value of the Accept header.
        accept: String,
    },
    /// The body's media type cannot be read (415).
    #[error(
        "the body of the request was in an unknown format ({given}) - accepted media types include: {supported}"
    )]
    UnsupportedMediaType {
        /// Value of the Content-Type header.
        given: String,
        /// What this request may carry.
        supported: &'static str,
    },
    /// The body is larger than the limit (413).
    #[error("Request entity too large: limit is {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The resourceVersion or continue token is too old (410).
    #[error("{message}")]
    Expired {
        /// What is too old.
        message: String,
    },
    /// The resourceVersion lies in the future (504).
    #[error("Too large resource version: {requested}, current: {current}")]
    FutureVersion {
        /// What was asked for.
        requested: u64,
        /// The newest version of the server.
        current: u64,
    },
    /// A fault that a test asked for.
    #[error("injected fault: HTTP {code}")]
    Injected {
        /// HTTP status code.
        code: u16,
        /// Value of `Retry-After`, in whole seconds.
        retry_after: Option<Duration>,
    },
    /// What a request was to be handed on to does not answer (503).
    #[error("{message}")]
    Unreachable {
        /// What, and why.
        message: String,
    },
    /// The server failed (500).
    #[error("{message}")]
    Internal {
        /// What failed.
        message: String,
    },
}

fn describe_causes(causes: &[Cause]) -> String {
    causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join(", ")
}

fn describe_conflicts(conflicts: &[ApplyConflict]) -> String {
    conflicts
        .iter()
        .map(|c| format!("conflict with \"{}\" using {}: {}", c.manager, c.api_version, c.field))
        .collect::<Vec<_>>()
        .join(", ")
}

impl ApiError {
    /// A 400 with this message.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::BadRequest { message: message.into() }
    }

    /// A 422 with one cause.
    pub(crate) fn invalid(kind: &str, name: &str, field: &str, message: impl Into<String>) -> Self {
        ApiError::Invalid {
            kind: kind.to_owned(),
            name: name.to_owned(),
            causes: vec![Cause { field: field.to_owned(), message: message.into() }],
        }
    }

    /// HTTP status code.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            ApiError::NotFound { .. } | ApiError::NoSuchResource { .. } => 404,
            ApiError::AlreadyExists { .. } | ApiError::Conflict { .. } | ApiError::ApplyConflicts { .. } => {
                409
            }
            ApiError::Invalid { .. } => 422,
            ApiError::BadRequest { .. } => 400,
            ApiError::Unauthorized => 401,
            ApiError::Forbidden { .. } => 403,
            ApiError::Denied { reason, .. } => reason.code(),
            ApiError::MethodNotAllowed { .. } => 405,
            ApiError::NotAcceptable { .. } => 406,
            ApiError::UnsupportedMediaType { .. } => 415,
            ApiError::TooLarge { .. } => 413,
            ApiError::Expired { .. } => 410,
            ApiError::FutureVersion { .. } => 504,
            ApiError::Injected { code, .. } => *code,
            ApiError::Unreachable { .. } => 503,
            ApiError::Internal { .. } => 500,
        }
    }

    /// The machine-readable reason of the Status.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            ApiError::NotFound { .. } | ApiError::NoSuchResource { .. } => "NotFound",
            ApiError::AlreadyExists { .. } => "AlreadyExists",
            ApiError::Conflict { .. } | ApiError::ApplyConflicts { .. } => "Conflict",
            ApiError::Invalid { .. } => "Invalid",
            ApiError::BadRequest { .. } => "BadRequest",
            ApiError::Unauthorized => "Unauthorized",
            ApiError::Forbidden { .. } => "Forbidden",
            ApiError::Denied { reason, .. } => reason.text(),
            ApiError::MethodNotAllowed { .. } => "MethodNotAllowed",
            ApiError::NotAcceptable { .. } => "NotAcceptable",
            ApiError::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            ApiError::TooLarge { .. } => "RequestEntityTooLarge",
            ApiError::Expired { .. } => "Expired",
            ApiError::FutureVersion { .. } => "Timeout",
            ApiError::Injected { code, .. } => match code {
                401 => "Unauthorized",
                403 => "Forbidden",
                404 => "NotFound",
                409 => "Conflict",
                410 => "Expired",
                429 => "TooManyRequests",
                503 => "ServiceUnavailable",
                504 => "Timeout",
                _ => "InternalError",
            },
            ApiError::Unreachable { .. } => "ServiceUnavailable",
            ApiError::Internal { .. } => "InternalError",
        }
    }

    /// What to send as `Retry-After`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let ApiError::Injected { retry_after, .. } = self {
            return *retry_after;
        }
        matches!(self, ApiError::FutureVersion { .. }).then_some(Duration::from_secs(1))
    }

    /// The error as a `metav1.Status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut details = serde_json::Map::new();
        if let ApiError::NotFound { resource, name }
        | ApiError::AlreadyExists { resource, name }
        | ApiError::Conflict { resource, name, .. }
        | ApiError::Denied { resource, name, .. } = self
        {
            let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
            details.insert("name".into(), json!(name));
            details.insert("kind".into(), json!(plural));
            if !group.is_empty() {
                details.insert("group".into(), json!(group));
            }
        }
        if let ApiError::Invalid { kind, name, causes } = self {
            let causes: Vec<Value> = causes
                .iter()
                .map(|c| json!({"reason": "FieldValueInvalid", "message": c.message, "field": c.field}))
                .collect();
            details.insert("name".into(), json!(name));
            details.insert("kind".into(), json!(kind));
            details.insert("causes".into(), json!(causes));
        }
        if let ApiError::Denied { message, .. } = self {
            details.insert("causes".into(), json!([{"message": message}]));
        }
        if let ApiError::ApplyConflicts { conflicts } = self {
            let causes: Vec<Value> = conflicts
                .iter()
                .map(|c| {
                    json!({"reason": "FieldManagerConflict", "field": c.field,
                        "message": format!("conflict with \"{}\" using {}", c.manager, c.api_version)})
                })
                .collect();
            details.insert("causes".into(), json!(causes));
        }
        if matches!(self, ApiError::FutureVersion { .. }) {
            details.insert(
                "causes".into(),
                json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]),
            );
        }
        if let Some(after) = self.retry_after() {
            details.insert("retryAfterSeconds".into(), json!(after.as_secs()));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(), "code": self.code(),
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}
