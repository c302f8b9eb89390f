//! What is wrong with an export: names the cluster, the object, the field, the value and the remedy, and costs no more.

use std::net::IpAddr;

use crate::policy::model::ObjectName;
use crate::psk::ClusterName;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum McsProblem {
    /// An export of a name that no Service can have.
    #[error(
        "ServiceExport {}/{} of cluster {cluster} refused: both parts must be DNS labels (1 to 63 of a-z, 0-9 and '-'); rename the Service", .name.namespace, .name.name
    )]
    NameMalformed {
        /// Who exports.
        cluster: ClusterName,
        /// Its name.
        name: ObjectName,
    },
    /// A field of the exported Service makes it unusable.
    #[error(
        "ServiceExport {}/{} of cluster {cluster}: {field}={value:?} of its Service refused, the export does not count: {reason}", .name.namespace, .name.name
    )]
    ServiceMalformed {
        /// Who exports.
        cluster: ClusterName,
        /// What.
        name: ObjectName,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what is wanted.
        reason: &'static str,
    },
    /// A label or annotation that cannot be on the import.
    #[error(
        "ServiceExport {}/{} of cluster {cluster}: {field}[{key:?}]={value:?} is left out of the ServiceImport: {reason}", .name.namespace, .name.name
    )]
    LabelRefused {
        /// Who exports.
        cluster: ClusterName,
        /// What.
        name: ObjectName,
        /// `spec.exportedLabels` or `spec.exportedAnnotations`.
        field: &'static str,
        /// The key.
        key: String,
        /// The beginning of the value.
        value: String,
        /// What is wrong and what is wanted.
        reason: &'static str,
    },
    /// An endpoint whose address no packet can go to.
    #[error(
        "service {}/{} of cluster {cluster}: endpoint {address} is left out: not an address of a host that others talk to; correct its EndpointSlice", .name.namespace, .name.name
    )]
    EndpointMalformed {
        /// Whose.
        cluster: ClusterName,
        /// The service.
        name: ObjectName,
        /// The address.
        address: IpAddr,
    },
    /// The union of ports is too large.
    #[error(
        "service {}/{}: {left_out} ports of its exports are left out: an import has at most {limit}; the oldest exports' ports come first; export fewer", .name.namespace, .name.name
    )]
    TooManyPorts {
        /// The service.
        name: ObjectName,
        /// How many.
        left_out: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Somebody else's Service has the name of the derived one.
    #[error(
        "service {}/{}: no ClusterSetIP: the Service {derived} in its namespace was not derived from it; delete or rename {derived}", .name.namespace, .name.name
    )]
    DerivedNameTaken {
        /// The service.
        name: ObjectName,
        /// Name of the derived one.
        derived: String,
    },
    /// This cluster has none of the service's address families.
    #[error(
        "service {}/{}: not imported here: it is exported for {exported} and this cluster has Service CIDRs for {own}; make the exported Service dual-stack", .name.namespace, .name.name
    )]
    FamilyNotSupported {
        /// The service.
        name: ObjectName,
        /// What it has.
        exported: String,
        /// What this cluster has.
        own: String,
    },
    /// Names of a headless service that no DNS message can carry.
    #[error(
        "service {}/{}: {endpoints} ready endpoints of cluster {cluster} have no names of their own: longer than 253 characters; shorten hostname, cluster, service or namespace", .name.namespace, .name.name
    )]
    NameTooLong {
        /// Whose.
        cluster: ClusterName,
        /// The service.
        name: ObjectName,
        /// How many.
        endpoints: usize,
    },
    /// More than fit into a DNS message.
    #[error(
        "service {}/{}: {left_out} ready endpoints are in no DNS answer for the whole service, which has room for {limit}; their own names are answered; split the service if that does not do", .name.namespace, .name.name
    )]
    TooManyNames {
        /// The service.
        name: ObjectName,
        /// How many.
        left_out: usize,
        /// How many there may be.
        limit: usize,
    },
}

impl McsProblem {
    /// Every code, for metrics that show zero before anything went wrong.
    pub const CODES: [&'static str; 9] = [
        "ExportNameMalformed",
        "ExportedServiceMalformed",
        "ExportedLabelRefused",
        "ExportedEndpointMalformed",
        "ImportPortsTooMany",
        "DerivedNameTaken",
        "ImportFamilyNotSupported",
        "EndpointNameTooLong",
        "EndpointNamesTooMany",
    ];

    /// A stable word for metrics, events and documentation.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NameMalformed { .. } => "ExportNameMalformed",
            Self::ServiceMalformed { .. } => "ExportedServiceMalformed",
            Self::LabelRefused { .. } => "ExportedLabelRefused",
            Self::EndpointMalformed { .. } => "ExportedEndpointMalformed",
            Self::TooManyPorts { .. } => "ImportPortsTooMany",
            Self::DerivedNameTaken { .. } => "DerivedNameTaken",
            Self::FamilyNotSupported { .. } => "ImportFamilyNotSupported",
            Self::NameTooLong { .. } => "EndpointNameTooLong",
            Self::TooManyNames { .. } => "EndpointNamesTooMany",
        }
    }

    /// The service that it is about.
    pub const fn name(&self) -> &ObjectName {
        match self {
            Self::NameMalformed { name, .. }
            | Self::ServiceMalformed { name, .. }
            | Self::LabelRefused { name, .. }
            | Self::EndpointMalformed { name, .. }
            | Self::TooManyPorts { name, .. }
            | Self::DerivedNameTaken { name, .. }
            | Self::FamilyNotSupported { name, .. }
            | Self::NameTooLong { name, .. }
            | Self::TooManyNames { name, .. } => name,
        }
    }
}
