//! Conditions of ServiceExports and ServiceImports (`mcs-api`, `pkg/apis/v1beta1`).
//!
//! `lastTransitionTime` is the writer's: it moves when, and only when, [`Condition::status`] is another one than before.

use super::facts::{Export, Own, ServiceKind};
use super::merge::{Conflict, Merged, Validity, validity};
use crate::prefix::Family;

/// `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// `True`.
    True,
    /// `False`.
    False,
}

impl Status {
    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
        }
    }
}

/// A `metav1.Condition` without its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `type`: `Valid`, `Ready` or `Conflict`.
    pub kind: &'static str,
    /// `status`.
    pub status: Status,
    /// `reason`: words of the API, joined by commas where it is several conflicts.
    pub reason: String,
    /// `message`, at most [`MAX_MESSAGE`] bytes.
    pub message: String,
    /// `observedGeneration` of the object that it is on; none for imports, which are ours.
    pub observed_generation: Option<i64>,
}

/// Bytes of a condition's message that the API takes (`metav1.Condition`, maxLength 32768); the rest is cut.
pub const MAX_MESSAGE: usize = 32_768;

fn condition(kind: &'static str, status: Status, reason: impl Into<String>, message: String) -> Condition {
    let mut message = message;
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Condition { kind, status, reason: reason.into(), message, observed_generation: None }
}

fn families(all: &[Family]) -> String {
    let name = |family: &Family| match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    all.iter().map(name).collect::<Vec<_>>().join(",")
}

/// What the import uses, in words.
fn used(conflict: Conflict, merged: &Merged) -> Option<String> {
    use super::facts::{InternalTrafficPolicy, SessionAffinity};
    let text = match conflict {
        Conflict::Port => return None,
        Conflict::Type => merged.kind.name().to_owned(),
        Conflict::SessionAffinity | Conflict::SessionAffinityConfig => match merged.session_affinity {
            SessionAffinity::None => "None".to_owned(),
            SessionAffinity::ClientIp(seconds) => format!("ClientIP for {seconds} s"),
        },
        Conflict::Annotations => format!("{:?}", merged.annotations.keys().collect::<Vec<_>>()),
        Conflict::Labels => format!("{:?}", merged.labels),
        Conflict::InternalTrafficPolicy => match merged.internal_traffic_policy {
            InternalTrafficPolicy::Cluster => "Cluster".to_owned(),
            InternalTrafficPolicy::Local => "Local".to_owned(),
        },
        Conflict::TrafficDistribution => merged.traffic_distribution.clone().unwrap_or_default(),
        Conflict::IpFamily => families(&merged.families),
    };
    Some(text)
}

fn conflict_message(merged: &Merged) -> String {
    let all = merged.clusters.len();
    let sentence = |(conflict, clusters): (&Conflict, &std::collections::BTreeSet<_>)| {
        let names: Vec<String> = clusters.iter().map(ToString::to_string).collect();
        let (field, oldest) = (conflict.field(), &merged.oldest);
        let taken = used(*conflict, merged).map_or_else(
            || "the union is used, in a dispute the oldest export's port".to_owned(),
            |used| format!("using {used:?} of the oldest export"),
        );
        format!(
            "conflicting {field}: {taken}, in cluster {oldest}; {}/{all} clusters disagree: {}.",
            clusters.len(),
            names.join(", ")
        )
    };
    merged.conflicts.iter().map(sentence).collect::<Vec<_>>().join(" ")
}

/// All conditions of an own ServiceExport, in the order `Valid`, `Ready`, `Conflict`. `merged`: of all exports of the name.
/// `refused`: the name itself cannot be imported, or nobody can be told of the export.
pub(super) fn of_export(
    own: &Own,
    export: &Export,
    merged: Option<&Merged>,
    refused: Option<&str>,
) -> [Condition; 3] {
    let invalid = |reason, message: &str| condition("Valid", Status::False, reason, message.to_owned());
    let wrong_type = "InvalidServiceType";
    let valid = match validity(export) {
        _ if refused.is_some() => invalid(wrong_type, refused.unwrap_or_default()),
        Validity::Valid(_) => {
            condition("Valid", Status::True, "Valid", "the Service can be exported".to_owned())
        }
        Validity::NoService => invalid("NoService", "there is no Service of this name; create it"),
        Validity::InvalidType(ServiceKind::Derived) => {
            invalid(wrong_type, "the Service was itself derived from an import; export the one behind it")
        }
        Validity::InvalidType(_) => invalid(
            wrong_type,
            "a Service of type ExternalName cannot be exported; create one in each cluster",
        ),
        Validity::Malformed(field, value, reason) => {
            invalid(wrong_type, &format!("{field}={value:?} of the Service: {reason}"))
        }
    };
    let ready = match (valid.status, own.serving) {
        (Status::False, _) => {
            condition("Ready", Status::False, "Failed", "not exported: see condition Valid".to_owned())
        }
        (Status::True, false) => {
            let message = "waits until clustermesh serves this cluster's exports".to_owned();
            condition("Ready", Status::False, "Pending", message)
        }
        (Status::True, true) => {
            condition("Ready", Status::True, "Ready", "other clusters may have it".to_owned())
        }
    };
    let disputed = merged.filter(|m| valid.status == Status::True && !m.conflicts.is_empty());
    let conflict = match disputed {
        None => condition("Conflict", Status::False, "NoConflicts", "no export disagrees".to_owned()),
        Some(merged) => {
            let reasons: Vec<&str> = merged.conflicts.keys().map(|c| c.reason()).collect();
            condition("Conflict", Status::True, reasons.join(","), conflict_message(merged))
        }
    };
    [valid, ready, conflict]
        .map(|condition| Condition { observed_generation: Some(export.generation), ..condition })
}

/// The condition of an import.
pub(super) fn of_import(pending: Option<&str>, family_supported: bool) -> Condition {
    match (family_supported, pending) {
        (false, _) => condition(
            "Ready",
            Status::False,
            "IPFamilyNotSupported",
            "this cluster has none of the service's address families".to_owned(),
        ),
        (true, Some(message)) => condition("Ready", Status::False, "Pending", message.to_owned()),
        (true, None) => condition("Ready", Status::True, "Ready", "usable".to_owned()),
    }
}
