//! Exports as clusters tell them to each other, and as they are decided from: [`mesh_core::clusters`] to [`mesh_core::mcs`]
//! and back. Total both ways: what does not fit is refused by name and costs no more than itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::clusters::{
    self, Affinity, Backend, BackendPort, ClusterName, ServiceKind as WireKind, ServicePort, TrafficPolicy,
};
use mesh_core::mcs::{
    DnsLabel, Endpoint, Endpoints, Export, ExportedPort, ExportedService, InternalTrafficPolicy, MAX_PORTS,
    PortName, PortNumber, PortNumbers, ServiceKind, SessionAffinity,
};
use mesh_core::policy::model::{Labels, ObjectName};
use mesh_core::service::model::MAX_AFFINITY;

use super::problem::excerpt;

/// Backends of one service in one cluster: as many as a whole cluster of the size that we measure with has. They are 150
/// slices, and an object a slice is what its API server is asked to keep.
pub const MAX_BACKENDS: usize = 15_000;
/// Services of one cluster, by name: each costs an address of the Service CIDR, and the usual /16 has room for those of six
/// such clusters.
pub const MAX_SERVICES: usize = 10_000;
/// Bytes of a `trafficDistribution` or an `appProtocol`: a qualified name (a DNS subdomain of 253, `/`, 63).
pub const MAX_WORD: usize = 317;
/// Bytes of all exported labels: half a hundred of ordinary ones. The API server has no bound for them but that of a whole
/// object (1.5 MiB in etcd).
pub const MAX_LABELS: usize = 16 * 1024;
/// Bytes of all exported annotations that are read; of these the import takes 128 KiB (`mesh_core::mcs`).
pub const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Bytes of a zone's name: it is a label's value.
const MAX_ZONE: usize = 63;

/// Why something that a cluster tells of an export cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum WireRefusal {
    /// A field of the service; its export does not count.
    #[error(
        "export {}/{} of cluster {cluster} does not count: {field}={value:?} refused: {reason}; correct it there, or bring that cluster's clustermesh to this release", .service.namespace, .service.name
    )]
    Service {
        /// Who tells.
        cluster: ClusterName,
        /// Of what.
        service: ObjectName,
        /// The field.
        field: &'static str,
        /// The beginning of its value.
        value: String,
        /// What is wanted.
        reason: &'static str,
    },
    /// A field of a backend; the backend goes without it.
    #[error(
        "export {}/{} of cluster {cluster}: {field}={value:?} of backend {address} is left out: {reason}", .service.namespace, .service.name
    )]
    Backend {
        /// Who tells.
        cluster: ClusterName,
        /// Of what.
        service: ObjectName,
        /// Which backend.
        address: IpAddr,
        /// The field.
        field: &'static str,
        /// The beginning of its value.
        value: String,
        /// What is wanted.
        reason: &'static str,
    },
    /// More services than are taken.
    #[error(
        "cluster {cluster} exports more than {limit} services: {}/{} and all names after it are left out; export fewer", .first.namespace, .first.name
    )]
    TooManyServices {
        /// Who tells.
        cluster: ClusterName,
        /// The first that is left out.
        first: ObjectName,
        /// How many there may be.
        limit: usize,
    },
    /// More backends than are taken.
    #[error(
        "export {}/{} of cluster {cluster}: {left_out} backends are left out, the greatest addresses: at most {limit} are taken; split the service", .service.namespace, .service.name
    )]
    TooManyBackends {
        /// Who tells.
        cluster: ClusterName,
        /// Of what.
        service: ObjectName,
        /// How many.
        left_out: usize,
        /// How many there may be.
        limit: usize,
    },
}

impl WireRefusal {
    /// A stable word for metrics and Events.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Service { .. } => "ToldExportRefused",
            Self::Backend { .. } => "ToldBackendFieldRefused",
            Self::TooManyServices { .. } => "ToldExportsTooMany",
            Self::TooManyBackends { .. } => "ToldBackendsTooMany",
        }
    }
}

const LABEL: &str = "wanted a DNS label: 1 to 63 of a-z, 0-9 and '-'";

fn bytes(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// A port's name; empty is none.
fn port_name(text: &str) -> Result<PortName, ()> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| ()) }
}

/// What a cluster tells of a service, without its backends.
///
/// # Errors
/// A field that does not fit: the export does not count.
pub fn export(
    cluster: &ClusterName,
    name: &ObjectName,
    told: &clusters::ExportedService,
) -> Result<Export, Box<WireRefusal>> {
    let refuse = |field, value: &str, reason| {
        Box::new(WireRefusal::Service {
            cluster: cluster.clone(),
            service: name.clone(),
            field,
            value: excerpt(value),
            reason,
        })
    };
    let word = |field, text: &Option<String>| match text {
        Some(text) if text.is_empty() || text.len() > MAX_WORD => {
            Err(refuse(field, text, "wanted 1 to 317 characters"))
        }
        Some(_) | None => Ok(text.clone()),
    };
    if told.ports.len() > MAX_PORTS {
        return Err(refuse("ports", &format!("{} ports", told.ports.len()), "wanted at most 99"));
    }
    let mut ports = Vec::new();
    for port in &told.ports {
        let name = port_name(&port.name).map_err(|()| refuse("ports[].name", &port.name, LABEL))?;
        if port.port == 0 {
            return Err(refuse("ports[].port", "0", "wanted 1 to 65535"));
        }
        let app_protocol = word("ports[].appProtocol", &port.app_protocol)?;
        ports.push(ExportedPort { name, protocol: port.protocol, app_protocol, port: port.port });
    }
    let session_affinity = match told.affinity {
        Affinity::None => SessionAffinity::None,
        Affinity::ClientIp { seconds } if (1..=MAX_AFFINITY).contains(&seconds) => {
            SessionAffinity::ClientIp(seconds)
        }
        Affinity::ClientIp { seconds } => {
            return Err(refuse("affinity.seconds", &seconds.to_string(), "wanted 1 to 86400"));
        }
    };
    let unique: BTreeSet<_> = told.families.iter().collect();
    if unique.is_empty() || unique.len() != told.families.len() {
        let families = format!("{:?}", told.families.iter().take(4).collect::<Vec<_>>());
        return Err(refuse("families", &families, "wanted one or both, each once"));
    }
    for (field, map, limit, reason) in [
        ("labels", &told.labels, MAX_LABELS, "wanted at most 16 KiB"),
        ("annotations", &told.annotations, MAX_ANNOTATIONS, "wanted at most 256 KiB"),
    ] {
        let size = bytes(map);
        if size > limit {
            return Err(refuse(field, &format!("{size} bytes"), reason));
        }
    }
    let service = ExportedService {
        kind: ServiceKind::ClusterIp,
        headless: told.kind == WireKind::Headless,
        ports,
        session_affinity,
        internal_traffic_policy: match told.internal_traffic_policy {
            TrafficPolicy::Cluster => InternalTrafficPolicy::Cluster,
            TrafficPolicy::Local => InternalTrafficPolicy::Local,
        },
        traffic_distribution: word("trafficDistribution", &told.traffic_distribution)?,
        families: told.families.clone(),
    };
    Ok(Export {
        uid: String::new(),
        generation: 0,
        created: told.created,
        labels: told.labels.clone(),
        annotations: told.annotations.clone(),
        service: Some(service),
        endpoints: Endpoints::new(),
    })
}

/// What a cluster tells of a service's backends; what is wrong goes into `refusals`.
pub fn endpoints<'a>(
    cluster: &ClusterName,
    name: &ObjectName,
    backends: impl Iterator<Item = (IpAddr, &'a Backend)>,
    refusals: &mut Vec<WireRefusal>,
) -> Endpoints {
    let mut all = Endpoints::new();
    let mut left_out = 0;
    for (index, (address, backend)) in backends.enumerate() {
        if index >= MAX_BACKENDS {
            left_out += 1;
            continue;
        }
        let mut refuse = |field, value: &str, reason| {
            refusals.push(WireRefusal::Backend {
                cluster: cluster.clone(),
                service: name.clone(),
                address,
                field,
                value: excerpt(value),
                reason,
            });
        };
        let mut hostname: Option<DnsLabel> = None;
        if let Some(text) = &backend.hostname {
            match text.parse() {
                Ok(label) => hostname = Some(label),
                Err(_) => refuse("hostname", text, LABEL),
            }
        }
        let mut zone = backend.zone.clone();
        if let Some(text) = zone.take_if(|text| text.is_empty() || text.len() > MAX_ZONE) {
            refuse("zone", &text, "wanted 1 to 63 characters");
        }
        if backend.ports.len() > MAX_PORTS {
            refuse("ports", &format!("{} ports", backend.ports.len()), "at most 99 are taken");
        }
        let mut ports = Vec::new();
        for port in backend.ports.iter().take(MAX_PORTS) {
            match port_name(&port.name) {
                Err(()) => refuse("ports[].name", &port.name, LABEL),
                Ok(_) if port.port == 0 => refuse("ports[].port", "0", "wanted 1 to 65535"),
                Ok(name) => ports.push((name, PortNumber { protocol: port.protocol, number: port.port })),
            }
        }
        let facts = Endpoint {
            ready: backend.ready,
            serving: backend.serving,
            terminating: backend.terminating,
            hostname,
            node: backend.node.as_ref().map(ToString::to_string),
            zone,
        };
        for numbers in groups(ports) {
            all.entry(numbers).or_default().insert(address, facts.clone());
        }
    }
    if left_out > 0 {
        let (cluster, service) = (cluster.clone(), name.clone());
        refusals.push(WireRefusal::TooManyBackends { cluster, service, left_out, limit: MAX_BACKENDS });
    }
    all
}

/// Ports of one address as the ports of slices that it could be in: in each of them a name is once.
fn groups(ports: Vec<(PortName, PortNumber)>) -> Vec<PortNumbers> {
    let mut all = vec![PortNumbers::new()];
    for (name, number) in ports {
        match all.iter_mut().find(|group| !group.contains_key(&name)) {
            Some(group) => drop(group.insert(name, number)),
            None => all.push(PortNumbers::from([(name, number)])),
        }
    }
    all
}

/// What we tell of a service that is validly exported. None: there is no Service.
pub fn tell_service(export: &Export) -> Option<clusters::ExportedService> {
    let service = export.service.as_ref()?;
    let port = |port: &ExportedPort| ServicePort {
        name: port.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        protocol: port.protocol,
        port: port.port,
        app_protocol: port.app_protocol.clone(),
    };
    Some(clusters::ExportedService {
        created: export.created,
        kind: if service.headless { WireKind::Headless } else { WireKind::ClusterSetIp },
        ports: service.ports.iter().map(port).collect(),
        families: service.families.clone(),
        affinity: match service.session_affinity {
            SessionAffinity::None => Affinity::None,
            SessionAffinity::ClientIp(seconds) => Affinity::ClientIp { seconds },
        },
        internal_traffic_policy: match service.internal_traffic_policy {
            InternalTrafficPolicy::Cluster => TrafficPolicy::Cluster,
            InternalTrafficPolicy::Local => TrafficPolicy::Local,
        },
        traffic_distribution: service.traffic_distribution.clone(),
        labels: Labels::clone(&export.labels),
        annotations: export.annotations.clone(),
    })
}

/// What we tell of the endpoints inside `pod_cidrs`, and the addresses outside, which other clusters neither believe nor
/// reach. What several slices say of one address becomes one: the ports of all, and the state that says most for it.
pub fn tell_backends(
    endpoints: &Endpoints,
    pod_cidrs: &[IpNet],
) -> (BTreeMap<IpAddr, Arc<Backend>>, BTreeSet<IpAddr>) {
    let merit = |ready, serving, terminating: bool| (ready, serving, !terminating);
    let mut backends: BTreeMap<IpAddr, Backend> = BTreeMap::new();
    let mut outside = BTreeSet::new();
    for (numbers, members) in endpoints {
        let ports = numbers.iter().map(|(name, at)| BackendPort {
            name: name.as_ref().map(ToString::to_string).unwrap_or_default(),
            protocol: at.protocol,
            port: at.number,
        });
        let ports: BTreeSet<BackendPort> = ports.collect();
        for (address, facts) in members {
            if !pod_cidrs.iter().any(|cidr| cidr.contains(address)) {
                outside.insert(*address);
                continue;
            }
            let told = Backend {
                ready: facts.ready,
                serving: facts.serving,
                terminating: facts.terminating,
                hostname: facts.hostname.as_ref().map(ToString::to_string),
                node: facts.node.as_ref().and_then(|node| node.parse().ok()),
                zone: facts.zone.clone(),
                ports: ports.clone(),
            };
            match backends.get_mut(address) {
                None => drop(backends.insert(*address, told)),
                Some(known) => {
                    let better = merit(told.ready, told.serving, told.terminating)
                        > merit(known.ready, known.serving, known.terminating);
                    let mut all = std::mem::take(&mut known.ports);
                    all.extend(told.ports.iter().cloned());
                    if better {
                        *known = told;
                    }
                    known.ports = all;
                }
            }
        }
    }
    (backends.into_iter().map(|(at, backend)| (at, Arc::new(backend))).collect(), outside)
}
