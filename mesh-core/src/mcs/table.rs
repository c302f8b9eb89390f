//! What is decided, as our own service table takes it ([`crate::service::Compiler`]): the objects that agents would read from
//! the API server. For tests and simulations, which have none.

use super::facts::{InternalTrafficPolicy, SessionAffinity};
use super::plan::DerivedService;
use super::slices::{Slice, SliceEndpoint};
use crate::prefix::Family;
use crate::service::model::{
    ClientIpConfig, Conditions, EndpointFacts, EndpointSliceFacts, Hint, Hints, Meta, ServiceFacts,
    ServicePort, ServiceSpec, SessionAffinityConfig, SlicePort,
};

impl DerivedService {
    /// With these addresses, as the API server allocated them.
    pub fn facts(&self, cluster_ips: &[std::net::IpAddr]) -> ServiceFacts {
        let port = |port: &super::merge::ImportPort| ServicePort {
            name: port.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            protocol: port.protocol.name().to_owned(),
            port: i64::from(port.port),
            node_port: 0,
        };
        let (affinity, timeout_seconds) = match self.session_affinity {
            SessionAffinity::None => ("None", None),
            SessionAffinity::ClientIp(seconds) => ("ClientIP", Some(i64::from(seconds))),
        };
        let internal = match self.internal_traffic_policy {
            InternalTrafficPolicy::Cluster => "Cluster",
            InternalTrafficPolicy::Local => "Local",
        };
        let cluster_ips: Vec<String> = cluster_ips.iter().map(ToString::to_string).collect();
        let spec = ServiceSpec {
            kind: "ClusterIP".to_owned(),
            cluster_ip: cluster_ips.first().cloned().unwrap_or_default(),
            cluster_ips,
            ports: self.ports.iter().map(port).collect(),
            session_affinity: affinity.to_owned(),
            session_affinity_config: SessionAffinityConfig { client_ip: ClientIpConfig { timeout_seconds } },
            internal_traffic_policy: internal.to_owned(),
            ..ServiceSpec::default()
        };
        ServiceFacts { metadata: Meta { labels: self.labels.clone() }, spec, ..ServiceFacts::default() }
    }
}

impl Slice {
    /// As an agent reads it.
    pub fn facts(&self) -> EndpointSliceFacts {
        let port = |port: &super::slices::SlicePort| SlicePort {
            name: port.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            protocol: port.protocol.name().to_owned(),
            port: Some(i64::from(port.port)),
        };
        let address_type = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        EndpointSliceFacts {
            metadata: Meta { labels: self.labels() },
            address_type: address_type.to_owned(),
            ports: self.ports.iter().map(port).collect(),
            endpoints: self.endpoints.iter().map(|(at, endpoint)| told(*at, endpoint)).collect(),
        }
    }
}

fn told(address: std::net::IpAddr, endpoint: &SliceEndpoint) -> EndpointFacts {
    let hint =
        |name: &Option<String>| name.iter().map(|name| Hint { name: name.clone() }).collect::<Vec<_>>();
    EndpointFacts {
        addresses: vec![address.to_string()],
        conditions: Conditions {
            ready: Some(endpoint.ready),
            serving: Some(endpoint.serving),
            terminating: Some(endpoint.terminating),
        },
        node_name: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        hints: Hints { for_zones: hint(&endpoint.for_zone), for_nodes: hint(&endpoint.for_node) },
    }
}
