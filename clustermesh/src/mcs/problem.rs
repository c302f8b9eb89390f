//! What is wrong with services of several clusters: names the object, the field, the value and the remedy.

use std::net::IpAddr;

use mesh_core::clusters::Refusal;
use mesh_core::mcs::McsProblem;
use mesh_core::policy::model::ObjectName;

use super::kind::Kind;
use super::wire::WireRefusal;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// What was decided of it.
    #[error(transparent)]
    Decided(McsProblem),
    /// What another cluster told cannot be used.
    #[error(transparent)]
    Told(WireRefusal),
    /// What another cluster told is not believed.
    #[error(transparent)]
    Believed(Box<Refusal>),
    /// A field of an object of the own API cannot be read.
    #[error("{kind} {}/{}: {field}={value:?} is not understood, {costs}: {reason}", .name.namespace, .name.name)]
    Unreadable {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: ObjectName,
        /// The field.
        field: &'static str,
        /// The beginning of its value.
        value: String,
        /// What is left out.
        costs: &'static str,
        /// What is wanted.
        reason: &'static str,
    },
    /// Backends that other clusters could not believe, nor reach in the tunnel.
    #[error(
        "ServiceExport {}/{}: {count} endpoints, {first} among them, are not exported: they are outside the pod CIDRs of this cluster ({allowed}); a pod on its node's host network cannot be reached from other clusters, so take its hostNetwork away", .name.namespace, .name.name
    )]
    NotPods {
        /// The export.
        name: ObjectName,
        /// How many.
        count: usize,
        /// One of them.
        first: IpAddr,
        /// The pod CIDRs.
        allowed: String,
    },
    /// Somebody else's ServiceImport has the name.
    #[error(
        "ServiceImport {}/{} is not kept by Hawser (no label app.kubernetes.io/managed-by=clustermesh.hawser.dev) and is left alone: the service is not imported here; delete it, or stop the other implementation of the Multi-Cluster Services API", .name.namespace, .name.name
    )]
    ImportTaken {
        /// Its name.
        name: ObjectName,
    },
    /// Somebody else's EndpointSlice has the name.
    #[error(
        "service {}/{}: EndpointSlice {slice} in its namespace is not kept by Hawser and is left alone: endpoints are missing; delete it", .name.namespace, .name.name
    )]
    SliceTaken {
        /// The service.
        name: ObjectName,
        /// The slice.
        slice: String,
    },
    /// What we write does not stay.
    #[error(
        "service {}/{}: {kind} {object} is written again and again, since somebody undoes it or the API server drops a part of it: the service may not work; find who else writes it (metadata.managedFields), or install the definitions of this release", .name.namespace, .name.name
    )]
    WriteUndone {
        /// The service.
        name: ObjectName,
        /// Of what.
        kind: Kind,
        /// Its name.
        object: String,
    },
    /// The API server refuses what we write.
    #[error(
        "service {}/{}: API server refuses {verb} of {kind} {object}: {reason}; tried again every minute", .name.namespace, .name.name
    )]
    WriteRefused {
        /// The service.
        name: ObjectName,
        /// `creation`, `change`, `status` or `deletion`.
        verb: &'static str,
        /// Of what.
        kind: Kind,
        /// Its name.
        object: String,
        /// As the server says it, the beginning.
        reason: String,
    },
}

impl Problem {
    /// Every code that is not one of [`McsProblem::CODES`], for metrics that show zero before anything went wrong.
    pub const CODES: [&'static str; 11] = [
        "BackendOutside",
        "BackendsNotPods",
        "ImportNameTaken",
        "ObjectUnreadable",
        "SliceNameTaken",
        "ToldBackendFieldRefused",
        "ToldBackendsTooMany",
        "ToldExportRefused",
        "ToldExportsTooMany",
        "WriteRefused",
        "WriteUndone",
    ];

    /// A stable word for metrics, Events and documentation.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Decided(problem) => problem.code(),
            Self::Told(refusal) => refusal.code(),
            Self::Believed(refusal) => refusal.reason(),
            Self::Unreadable { .. } => "ObjectUnreadable",
            Self::NotPods { .. } => "BackendsNotPods",
            Self::ImportTaken { .. } => "ImportNameTaken",
            Self::SliceTaken { .. } => "SliceNameTaken",
            Self::WriteUndone { .. } => "WriteUndone",
            Self::WriteRefused { .. } => "WriteRefused",
        }
    }
}

impl From<McsProblem> for Problem {
    fn from(problem: McsProblem) -> Self {
        Self::Decided(problem)
    }
}

impl From<WireRefusal> for Problem {
    fn from(refusal: WireRefusal) -> Self {
        Self::Told(refusal)
    }
}

/// The beginning of a text that somebody else wrote, safe to print.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
