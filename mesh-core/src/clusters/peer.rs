//! `ClusterPeer` (`hawser.dev/v1alpha1`): what this side's administrator says of another cluster. Its name is the
//! cluster's.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::psk::ClusterName;

/// `spec` of a ClusterPeer, as it was written: the object's JSON can be read into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterPeerSpec {
    /// Pod CIDRs of that cluster: nothing that it says of other addresses is believed.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Where its `clustermesh` is reached, `host:port`, best first.
    pub addresses: Vec<String>,
    /// PEM certificates of the authorities that sign for that cluster, and for no other.
    pub trust_bundle: String,
}

/// Most pod CIDRs of a peer: one per family and room to grow; each is compared with each.
pub const MAX_CIDRS: usize = 32;
/// Most addresses of a peer: one per replica and family.
pub const MAX_ADDRESSES: usize = 16;
/// Longest trust bundle in bytes: some thirty certificates.
pub const MAX_TRUST_BUNDLE: usize = 64 * 1024;
/// Least prefix length of a pod CIDR in either family: the widest private block is a /8 (RFC 1918), and half of RFC 4193's.
pub const MIN_PREFIX: u8 = 8;

/// A parsed ClusterPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPeer {
    /// The cluster's name: that of the object.
    pub name: ClusterName,
    /// Seconds since 1970 at which the ClusterPeer was created: of two that claim the same the older keeps it.
    pub created: i64,
    /// Pod CIDRs that can be read; not yet compared with others'.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses that can be read.
    pub addresses: Vec<ServerAddress>,
    /// None: there is nobody to trust, so nobody is called and nobody is let in.
    pub trust_bundle: Option<TrustBundle>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerAddress {
    /// Its host.
    pub host: Host,
    /// Its TCP port, 1 to 65535.
    pub port: u16,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// By address.
    Address(IpAddr),
    /// By DNS name, lower-case.
    Name(String),
}

/// PEM text with certificates. What is in them is read where TLS is.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle(String);

impl TrustBundle {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} bytes)", self.0.len())
    }
}

/// Why a text is not the address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerAddressError {
    /// No port.
    #[error("wanted host:port, with an IPv6 address in brackets")]
    NoPort,
    /// Not a port.
    #[error("the port is not 1 to 65535")]
    Port,
    /// Not a host.
    #[error("the host is neither an address nor a DNS name")]
    Host,
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, ServerAddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(ServerAddressError::NoPort)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(ServerAddressError::Port)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => Host::Address(IpAddr::V6(inner.parse().map_err(|_| ServerAddressError::Host)?)),
            None if host.contains(':') => return Err(ServerAddressError::NoPort),
            None => match host.parse() {
                Ok(address) => Host::Address(IpAddr::V4(address)),
                Err(_) => Host::Name(dns_name(host).ok_or(ServerAddressError::Host)?),
            },
        };
        Ok(Self { host, port })
    }
}

/// A DNS name (RFC 1123), in lower case. One whose last label is a number is a broken address.
fn dns_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        inner && matches!(bytes.len(), 1..=63) && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-'
    };
    let last = text.rsplit('.').next()?;
    let fits = text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| text.to_ascii_lowercase())
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl ClusterPeer {
    /// Reads an object: each value that cannot be read is refused by itself. None if the name is none.
    pub fn parse(name: &str, created: i64, spec: &ClusterPeerSpec) -> (Option<Self>, Vec<Refusal>) {
        let refuse = |field: String, value: &str, reason: String| Refusal::PeerMalformed {
            peer: excerpt(name),
            field,
            value: excerpt(value),
            reason,
        };
        let mut refusals = Vec::new();
        let cluster = match name.parse::<ClusterName>() {
            Ok(cluster) => cluster,
            Err(error) => {
                return (None, vec![refuse("metadata.name".to_owned(), name, error.to_string())]);
            }
        };
        let mut pod_cidrs = Vec::new();
        for (i, text) in spec.pod_cidrs.iter().enumerate() {
            match cidr(text).and_then(|cidr| room(i, MAX_CIDRS).map(|()| cidr)) {
                Ok(cidr) => pod_cidrs.push(cidr),
                Err(reason) => refusals.push(refuse(format!("spec.podCIDRs[{i}]"), text, reason)),
            }
        }
        let mut addresses = Vec::new();
        for (i, text) in spec.addresses.iter().enumerate() {
            let parsed = text.parse().map_err(|error: ServerAddressError| error.to_string());
            match parsed.and_then(|address: ServerAddress| room(i, MAX_ADDRESSES).map(|()| address)) {
                Ok(address) => addresses.push(address),
                Err(reason) => refusals.push(refuse(format!("spec.addresses[{i}]"), text, reason)),
            }
        }
        let bundle = &spec.trust_bundle;
        let trust_bundle = if bundle.len() > MAX_TRUST_BUNDLE {
            let reason = format!("{} bytes long, at most {MAX_TRUST_BUNDLE} are read", bundle.len());
            refusals.push(refuse("spec.trustBundle".to_owned(), bundle, reason));
            None
        } else if !bundle.contains("-----BEGIN CERTIFICATE-----") {
            let reason = "no PEM certificate in it".to_owned();
            refusals.push(refuse("spec.trustBundle".to_owned(), bundle, reason));
            None
        } else {
            Some(TrustBundle(bundle.clone()))
        };
        (Some(Self { name: cluster, created, pod_cidrs, addresses, trust_bundle }), refusals)
    }
}

fn room(index: usize, limit: usize) -> Result<(), String> {
    if index < limit { Ok(()) } else { Err(format!("at most {limit} are read")) }
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let cidr: IpNet = text.parse().map_err(|_| "not a CIDR".to_owned())?;
    if cidr != cidr.trunc() {
        return Err(format!("bits beyond the prefix are set; write {}", cidr.trunc()));
    }
    if cidr.prefix_len() < MIN_PREFIX {
        return Err(format!("wider than /{MIN_PREFIX}"));
    }
    let special = match cidr {
        IpNet::V4(net) => {
            net.network().is_loopback() || net.network().is_multicast() || net.network().octets()[0] == 0
        }
        IpNet::V6(net) => {
            net.network().is_multicast()
                || (net.network().segments()[0] & 0xffc0) == 0xfe80
                || net.network().segments()[0] == 0
        }
    };
    if special { Err("not addresses that pods can have".to_owned()) } else { Ok(cidr) }
}

/// The beginning of a text that somebody else wrote, safe to print.
fn excerpt(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
