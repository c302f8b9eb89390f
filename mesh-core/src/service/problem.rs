//! What is wrong with a service: names the object, the field, the value and the remedy, and costs no more than that.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::policy::model::{ObjectName, Protocol};

/// Who claims an address: a Service, or a pod of this node by its hostPorts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// A Service.
    Service(ObjectName),
    /// A pod of this node.
    Pod(ObjectName),
}

impl Owner {
    /// Namespace and name.
    pub const fn name(&self) -> &ObjectName {
        match self {
            Self::Service(name) | Self::Pod(name) => name,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Service(name) => ("Service", name),
            Self::Pod(name) => ("Pod", name),
        };
        write!(f, "{kind} {}/{}", name.namespace, name.name)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error, Serialize, Deserialize)]
pub enum ServiceProblem {
    /// A field cannot be read or used.
    #[error("{owner}: {field}={value:?} refused: {reason}")]
    FieldMalformed {
        /// The object.
        owner: Owner,
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong, what happens meanwhile and what is wanted.
        reason: &'static str,
    },
    /// A field of one of its slices cannot be read or used.
    #[error("{owner}: EndpointSlice {slice}: {field}={value:?} refused: {reason}")]
    SliceMalformed {
        /// The Service.
        owner: Owner,
        /// Name of the slice.
        slice: String,
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong, what happens meanwhile and what is wanted.
        reason: &'static str,
    },
    /// SCTP's checksum cannot be made anew in the data path, so its ports must not change.
    #[error(
        "{owner}: {field}={port} (SCTP) is not the port of its endpoint {endpoint}; policy sees the address that clients say, and the stack (kube-proxy) translates it; make both ports equal"
    )]
    SctpPortChanged {
        /// The object.
        owner: Owner,
        /// Path of the field.
        field: String,
        /// What clients say.
        port: u16,
        /// The first endpoint that listens elsewhere.
        endpoint: SocketAddr,
    },
    /// Somebody else has that address and port already.
    #[error(
        "{owner}: {field}: {addr} port {port}/{} is refused: it belongs to {holder}; give one of the two another address or port",
        name(*.protocol)
    )]
    Claimed {
        /// The object that is refused.
        owner: Owner,
        /// `spec.clusterIPs`, `status.loadBalancer.ingress`, `spec.externalIPs`, `spec.ports[].nodePort`, `hostPort`.
        field: &'static str,
        /// The address; unspecified for a NodePort.
        addr: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// Who keeps it.
        holder: Owner,
    },
    /// Pods of this node are partly inside the ranges.
    #[error(
        "{owner}: spec.loadBalancerSourceRanges=[{ranges}] holds a part of this node's pod CIDR {cidr} and not all of it; pods of this node are refused at its load balancer's addresses; name whole pod CIDRs"
    )]
    SourceRangesSplit {
        /// The Service.
        owner: Owner,
        /// The ranges.
        ranges: String,
        /// The pod CIDR.
        cidr: String,
    },
    /// There is no room for a table of the wanted size.
    #[error(
        "{owner}: port {port:?}: no room for a table of {wanted} places for {endpoints} endpoints, {given} are given (0: clients are refused; fewer: spread less evenly); raise the limit of places ({limit})"
    )]
    NoPlaces {
        /// The object.
        owner: Owner,
        /// Name of its port.
        port: String,
        /// How many endpoints.
        endpoints: usize,
        /// Places wanted.
        wanted: u32,
        /// Places given.
        given: u32,
        /// How many there are in all.
        limit: u32,
    },
    /// There is no room for all its backends.
    #[error(
        "{owner}: port {port:?}: {missing} of {endpoints} endpoints get no traffic from this node's pods: the table of backends is full; raise its limit ({limit})"
    )]
    NoBackends {
        /// The object.
        owner: Owner,
        /// Name of its port.
        port: String,
        /// How many endpoints.
        endpoints: usize,
        /// How many of them are left out.
        missing: usize,
        /// How many backends there may be in all.
        limit: u32,
    },
    /// There is no room for its address.
    #[error(
        "{owner}: {addr} port {port} is not translated for this node's pods and left to the stack (kube-proxy): the table of frontends is full; raise its limit ({limit})"
    )]
    NoFrontends {
        /// The object.
        owner: Owner,
        /// The address.
        addr: IpAddr,
        /// The port.
        port: u16,
        /// How many frontends there may be in all.
        limit: u32,
    },
}

/// As the API writes it.
const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

impl ServiceProblem {
    /// A stable word for metrics, events and documentation.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::FieldMalformed { .. } => "ServiceFieldMalformed",
            Self::SliceMalformed { .. } => "EndpointSliceMalformed",
            Self::SctpPortChanged { .. } => "SctpPortChanged",
            Self::Claimed { .. } => "ServiceAddressClaimed",
            Self::SourceRangesSplit { .. } => "SourceRangesSplit",
            Self::NoPlaces { .. } => "ServicePlacesFull",
            Self::NoBackends { .. } => "ServiceBackendsFull",
            Self::NoFrontends { .. } => "ServiceFrontendsFull",
        }
    }

    /// Every code, for metrics that show zero before anything went wrong.
    pub const CODES: [&'static str; 8] = [
        "ServiceFieldMalformed",
        "EndpointSliceMalformed",
        "SctpPortChanged",
        "ServiceAddressClaimed",
        "SourceRangesSplit",
        "ServicePlacesFull",
        "ServiceBackendsFull",
        "ServiceFrontendsFull",
    ];

    /// The object that the problem is about.
    pub const fn owner(&self) -> &Owner {
        match self {
            Self::FieldMalformed { owner, .. }
            | Self::SliceMalformed { owner, .. }
            | Self::SctpPortChanged { owner, .. }
            | Self::Claimed { owner, .. }
            | Self::SourceRangesSplit { owner, .. }
            | Self::NoPlaces { owner, .. }
            | Self::NoBackends { owner, .. }
            | Self::NoFrontends { owner, .. } => owner,
        }
    }
}
