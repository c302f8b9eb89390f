//! What one service is when several clusters export it (KEP-1645, "Constraints and Conflict Resolution"): a function of
//! the exports alone, so every cluster finds the same.
//!
//! The oldest export (`creationTimestamp`; of two in one second, the smaller cluster name) settles type, session affinity,
//! policies, families, labels and annotations. Ports are united: the oldest export's in their order, then what each
//! younger one adds. A port whose name is taken, or its protocol and number, adds nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{
    Export, ExportedPort, ExportedService, Exports, InternalTrafficPolicy, PortName, ServiceKind,
    SessionAffinity,
};
use super::objects;
use super::problem::McsProblem;
use crate::policy::model::{Labels, ObjectName, Protocol};
use crate::prefix::Family;
use crate::psk::ClusterName;

/// Ports of an import: with the second name of an unnamed one, as many as a slice has where the API server is older than
/// 1.34 (100, `discovery.k8s.io/v1`).
pub const MAX_PORTS: usize = 99;
/// The name of an unnamed port in company: a Service with several ports must name them all. A port that somebody calls so
/// is taken for the same.
pub const UNNAMED: &str = "unnamed";

/// `spec.type` of a ServiceImport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportKind {
    /// `ClusterSetIP`.
    ClusterSetIp,
    /// `Headless`.
    Headless,
}

impl ImportKind {
    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterSetIp => "ClusterSetIP",
            Self::Headless => "Headless",
        }
    }

    const fn of(service: &ExportedService) -> Self {
        if service.headless { Self::Headless } else { Self::ClusterSetIp }
    }
}

/// A port of an import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImportPort {
    /// Unique. None only where it is the only port.
    pub name: PortName,
    /// TCP, UDP or SCTP; unique together with `port`.
    pub protocol: Protocol,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// What clients say.
    pub port: u16,
    /// Its exporter gave it no name.
    pub unnamed: bool,
}

/// In what exports differ: reasons of the condition `Conflict` (`mcs-api`, `v1beta1`), in the order in which they are said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Their ports are not identical.
    Port,
    /// One is headless, another is not.
    Type,
    /// `sessionAffinity`.
    SessionAffinity,
    /// Both stick to client addresses, not equally long.
    SessionAffinityConfig,
    /// `exportedAnnotations`.
    Annotations,
    /// `exportedLabels`.
    Labels,
    /// `internalTrafficPolicy`.
    InternalTrafficPolicy,
    /// `trafficDistribution`.
    TrafficDistribution,
    /// One lacks a family of the oldest: over that family clients reach a part of the backends.
    IpFamily,
}

impl Conflict {
    /// The reason, as the API writes it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Port => "PortConflict",
            Self::Type => "TypeConflict",
            Self::SessionAffinity => "SessionAffinityConflict",
            Self::SessionAffinityConfig => "SessionAffinityConfigConflict",
            Self::Annotations => "AnnotationsConflict",
            Self::Labels => "LabelsConflict",
            Self::InternalTrafficPolicy => "InternalTrafficPolicyConflict",
            Self::TrafficDistribution => "TrafficDistributionConflict",
            Self::IpFamily => "IPFamilyConflict",
        }
    }

    /// The field, for people.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Port => "ports",
            Self::Type => "type",
            Self::SessionAffinity => "sessionAffinity",
            Self::SessionAffinityConfig => "sessionAffinityConfig",
            Self::Annotations => "exportedAnnotations",
            Self::Labels => "exportedLabels",
            Self::InternalTrafficPolicy => "internalTrafficPolicy",
            Self::TrafficDistribution => "trafficDistribution",
            Self::IpFamily => "ipFamilies",
        }
    }
}

/// One service of the cluster set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Whose export is the oldest.
    pub oldest: ClusterName,
    /// Whose exports make it up.
    pub clusters: BTreeSet<ClusterName>,
    /// `ClusterSetIP` or `Headless`.
    pub kind: ImportKind,
    /// The union of ports, at most [`MAX_PORTS`].
    pub ports: Vec<ImportPort>,
    /// Ports that were left out for want of room.
    pub ports_left_out: usize,
    /// Session affinity.
    pub session_affinity: SessionAffinity,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// `trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// `ipFamilies` of the oldest, in its order.
    pub families: Vec<Family>,
    /// `exportedLabels`, not checked.
    pub labels: Labels,
    /// `exportedAnnotations`, not checked.
    pub annotations: BTreeMap<String, String>,
    /// Who differs from the oldest, in what.
    pub conflicts: BTreeMap<Conflict, BTreeSet<ClusterName>>,
    /// What a cluster calls a port of the union that it exposes, by the port's index in `ports`.
    pub exposed: BTreeMap<ClusterName, BTreeMap<usize, PortName>>,
}

/// May the export be imported?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity<'a> {
    Valid(&'a ExportedService),
    NoService,
    InvalidType(ServiceKind),
    /// No API server takes such a Service: field, value, what is wanted.
    Malformed(&'static str, &'static str, &'static str),
}

pub(super) fn validity(export: &Export) -> Validity<'_> {
    let Some(service) = &export.service else { return Validity::NoService };
    if matches!(service.kind, ServiceKind::ExternalName | ServiceKind::Derived) {
        return Validity::InvalidType(service.kind);
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for port in &service.ports {
        if port.port == 0 {
            return Validity::Malformed("spec.ports[].port", "0", "wanted 1 to 65535");
        }
        if !names.insert(&port.name) || !numbers.insert((port.protocol, port.port)) {
            return Validity::Malformed("spec.ports", "two alike", "wanted one port a name, and a number");
        }
    }
    if service.ports.is_empty() && !service.headless {
        return Validity::Malformed("spec.ports", "", "wanted at least one, since it is not headless");
    }
    if service.families.is_empty() || service.families.len() > 2 {
        return Validity::Malformed("spec.ipFamilies", "", "wanted one or two families");
    }
    Validity::Valid(service)
}

fn same_name(a: &PortName, b: &PortName) -> bool {
    let unnamed = |name: &PortName| name.as_ref().is_none_or(|name| name.as_str() == UNNAMED);
    a == b || unnamed(a) && unnamed(b)
}

/// The exports that count, the oldest first.
fn constituents<'a>(
    name: &ObjectName,
    exports: &'a Exports,
    problems: &mut Vec<McsProblem>,
) -> Vec<(&'a ClusterName, &'a Export, &'a ExportedService)> {
    let mut found = Vec::new();
    for (cluster, export) in exports {
        match validity(export) {
            Validity::Valid(service) => found.push((cluster, export, service)),
            Validity::NoService | Validity::InvalidType(_) => {}
            Validity::Malformed(field, value, reason) => problems.push(McsProblem::ServiceMalformed {
                cluster: cluster.clone(),
                name: name.clone(),
                field,
                value: value.to_owned(),
                reason,
            }),
        }
    }
    found.sort_by_key(|(cluster, export, _)| (export.created, *cluster));
    found
}

/// The union of ports, and how many found no room.
fn union<'a>(services: impl Iterator<Item = &'a ExportedService>) -> (Vec<ImportPort>, usize) {
    let mut ports: Vec<ImportPort> = Vec::new();
    let mut left_out = 0;
    for port in services.flat_map(|service| &service.ports) {
        let number = |other: &ImportPort| (other.protocol, other.port) == (port.protocol, port.port);
        if ports.iter().any(|other| same_name(&other.name, &port.name) || number(other)) {
            continue;
        }
        if ports.len() == MAX_PORTS {
            left_out += 1;
            continue;
        }
        ports.push(ImportPort {
            name: port.name.clone(),
            protocol: port.protocol,
            app_protocol: port.app_protocol.clone().filter(|text| objects::is_qualified_name(text)),
            port: port.port,
            unnamed: port.name.is_none(),
        });
    }
    if ports.len() > 1 {
        for port in ports.iter_mut().filter(|port| port.name.is_none()) {
            port.name = UNNAMED.parse().ok();
        }
    }
    (ports, left_out)
}

/// In what an export differs from the oldest.
fn differences(
    (oldest, first): (&Export, &ExportedService),
    (export, service): (&Export, &ExportedService),
) -> impl Iterator<Item = Conflict> {
    let affinity = |s: &ExportedService| matches!(s.session_affinity, SessionAffinity::ClientIp(_));
    let ports = |s: &ExportedService| s.ports.iter().cloned().collect::<BTreeSet<ExportedPort>>();
    let lacks_family = first.families.iter().any(|family| !service.families.contains(family));
    let sticky = affinity(first) && affinity(service);
    [
        (Conflict::Port, ports(first) != ports(service)),
        (Conflict::Type, first.headless != service.headless),
        (Conflict::SessionAffinity, affinity(first) != affinity(service)),
        (Conflict::SessionAffinityConfig, sticky && first.session_affinity != service.session_affinity),
        (Conflict::Annotations, oldest.annotations != export.annotations),
        (Conflict::Labels, oldest.labels != export.labels),
        (Conflict::InternalTrafficPolicy, first.internal_traffic_policy != service.internal_traffic_policy),
        (Conflict::TrafficDistribution, first.traffic_distribution != service.traffic_distribution),
        (Conflict::IpFamily, lacks_family),
    ]
    .into_iter()
    .filter_map(|(conflict, differs)| differs.then_some(conflict))
}

/// One service of the exports. None: no export counts.
pub fn merge(name: &ObjectName, exports: &Exports, problems: &mut Vec<McsProblem>) -> Option<Merged> {
    let all = constituents(name, exports, problems);
    let (oldest, first, service) = *all.first()?;
    let (ports, ports_left_out) = union(all.iter().map(|(_, _, service)| *service));
    let mut conflicts: BTreeMap<Conflict, BTreeSet<ClusterName>> = BTreeMap::new();
    let mut exposed = BTreeMap::new();
    for (cluster, export, other) in &all {
        for conflict in differences((first, service), (export, other)) {
            conflicts.entry(conflict).or_default().insert((*cluster).clone());
        }
        let names = ports.iter().enumerate().filter_map(|(index, port)| {
            let own =
                other.ports.iter().find(|own| (own.protocol, own.port) == (port.protocol, port.port))?;
            Some((index, own.name.clone()))
        });
        exposed.insert((*cluster).clone(), names.collect());
    }
    Some(Merged {
        oldest: oldest.clone(),
        clusters: all.iter().map(|(cluster, _, _)| (*cluster).clone()).collect(),
        kind: ImportKind::of(service),
        ports,
        ports_left_out,
        session_affinity: service.session_affinity,
        internal_traffic_policy: service.internal_traffic_policy,
        traffic_distribution: service.traffic_distribution.clone(),
        families: service.families.clone(),
        labels: first.labels.clone(),
        annotations: first.annotations.clone(),
        conflicts,
        exposed,
    })
}
