//! One question to the data path, and what is expected of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_core::policy::eval::eval;
use mesh_core::policy::model::{Direction, Flow, PolicyFacts, Verdict};

use crate::world::Place;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// A connection to this port.
    Tcp(u16),
    /// A datagram.
    Udp(u16),
    /// An INIT.
    Sctp(u16),
    /// An echo request of the address's family.
    Icmp,
    /// A packet of a protocol without ports.
    Other(u8),
}

impl What {
    /// By the API's word for a protocol.
    pub(crate) fn of(protocol: &str, port: u16) -> Option<Self> {
        match protocol {
            "TCP" => Some(Self::Tcp(port)),
            "UDP" => Some(Self::Udp(port)),
            "SCTP" => Some(Self::Sctp(port)),
            _ => None,
        }
    }

    /// Reads `TCP/80`, `ICMP` or a protocol's number, as the lines of verdicts have it.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let ported = || {
            let (protocol, port) = text.split_once('/')?;
            Self::of(protocol, port.parse().ok()?)
        };
        let what = match text {
            "ICMP" => Some(Self::Icmp),
            _ => text.parse().ok().map(Self::Other).or_else(ported),
        };
        what.with_context(|| format!("{text:?} is none of TCP/PORT, UDP/PORT, SCTP/PORT, ICMP, NUMBER"))
    }

    /// Reads several, with commas.
    pub(crate) fn read_all(text: &str) -> Result<Vec<Self>> {
        text.split(',').map(|word| Self::read(word.trim())).collect()
    }

    /// Of a flow. None: a port that nobody can listen on.
    pub(crate) fn of_flow(flow: &Flow) -> Option<Self> {
        match (flow.protocol, flow.port) {
            (_, Some(0)) => None,
            (6, Some(port)) => Some(Self::Tcp(port)),
            (17, Some(port)) => Some(Self::Udp(port)),
            (132, Some(port)) => Some(Self::Sctp(port)),
            (1 | 58, None) => Some(Self::Icmp),
            (other, _) => Some(Self::Other(other)),
        }
    }

    /// Destination port; 0 where there is none.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Tcp(port) | Self::Udp(port) | Self::Sctp(port) => port,
            Self::Icmp | Self::Other(_) => 0,
        }
    }

    fn with_port(self, port: u16) -> Self {
        match self {
            Self::Tcp(_) => Self::Tcp(port),
            Self::Udp(_) => Self::Udp(port),
            Self::Sctp(_) => Self::Sctp(port),
            Self::Icmp | Self::Other(_) => self,
        }
    }

    fn flow(self, source: IpAddr, destination: IpAddr) -> Flow {
        let (protocol, port) = match self {
            Self::Tcp(port) => (6, Some(port)),
            Self::Udp(port) => (17, Some(port)),
            Self::Sctp(port) => (132, Some(port)),
            Self::Icmp => (if source.is_ipv4() { 1 } else { 58 }, None),
            Self::Other(number) => (number, None),
        };
        Flow { source, destination, protocol, port }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "TCP/{port}"),
            Self::Udp(port) => write!(f, "UDP/{port}"),
            Self::Sctp(port) => write!(f, "SCTP/{port}"),
            Self::Icmp => f.write_str("ICMP"),
            Self::Other(number) => write!(f, "{number}"),
        }
    }
}

/// From one address to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) source: IpAddr,
    /// As the source says it: perhaps a Service's.
    pub(crate) to: IpAddr,
    pub(crate) what: What,
}

/// What a probe should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) allowed: bool,
    /// Who answers if it is.
    pub(crate) by: String,
    /// What policy is asked about, after translation.
    pub(crate) flow: Flow,
    /// The pod's own node speaks: policy is not asked.
    pub(crate) host: bool,
}

/// Everything that expectations are made from.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) facts: &'a PolicyFacts,
    pub(crate) places: &'a BTreeMap<IpAddr, Place>,
    pub(crate) services: &'a BTreeMap<(IpAddr, What), SocketAddr>,
}

impl Known<'_> {
    /// Rows 24 and 36: judged is what the translation of services leaves.
    pub(crate) fn flow(&self, probe: &Probe) -> Flow {
        match self.services.get(&(probe.to, probe.what)) {
            Some(at) => probe.what.with_port(at.port()).flow(probe.source, at.ip()),
            None => probe.what.flow(probe.source, probe.to),
        }
    }

    /// What the oracle says of both sides, but for what it does not know: the pod's own node (row 33), and audit.
    pub(crate) fn expected(&self, probe: &Probe) -> Expected {
        let flow = self.flow(probe);
        let [from, to] = [flow.source, flow.destination].map(|ip| self.places.get(&ip));
        let host = matches!((from, to), (Some(from), Some(to)) if !from.pod && from.node == to.node);
        let stopped = |own: IpAddr, direction| {
            eval(self.facts, flow, direction) == Verdict::Deny && !self.is_audited(own)
        };
        let denied = stopped(flow.source, Direction::Egress) || stopped(flow.destination, Direction::Ingress);
        let by = to.map_or_else(|| WORLD.to_owned(), |place| place.name.clone());
        Expected { allowed: host || !denied, by, flow, host }
    }

    fn is_audited(&self, own: IpAddr) -> bool {
        let owner = self.facts.pods.iter().find(|(_, pod)| pod.ips.contains(&own));
        owner.is_some_and(|(name, _)| self.facts.namespaces.get(&name.namespace).is_some_and(|n| n.audit))
    }
}

/// Name of the host outside the cluster.
pub(crate) const WORLD: &str = "world";
