//! Ends and protocols of a flow, as they are asked for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::psk::ClusterName;

/// One end of a flow, and in which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who.
    pub party: Party,
    /// In the cluster of this name; none: the one that is asked.
    pub cluster: Option<ClusterName>,
}

/// Why a text is no end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// Nobody.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// No cluster.
    #[error("{0:?} names no cluster behind its @: lower case letters, digits and -, as in default/web@east")]
    Cluster(String),
    /// An address is of one cluster alone.
    #[error(
        "{0:?}: an address needs no cluster, those of joined clusters are all different: leave the @ away"
    )]
    Address(String),
}

impl FromStr for End {
    type Err = EndError;

    fn from_str(text: &str) -> Result<Self, EndError> {
        let short = || text.chars().take(120).collect::<String>();
        let Some((party, cluster)) = text.rsplit_once('@') else {
            return Ok(Self { party: text.parse()?, cluster: None });
        };
        let party = party.parse()?;
        if matches!(party, Party::Address(_)) {
            return Err(EndError::Address(short()));
        }
        let cluster = cluster.parse().map_err(|_| EndError::Cluster(short()))?;
        Ok(Self { party, cluster: Some(cluster) })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.party)?;
        self.cluster.as_ref().map_or(Ok(()), |cluster| write!(f, "@{cluster}"))
    }
}

/// One end of a flow, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod.
    Pod(ObjectName),
    /// A node.
    Node(String),
    /// Whoever has the address.
    Address(IpAddr),
}

/// Why a text is no end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither NAMESPACE/POD (default/web), nor node:NAME, nor an address")]
pub struct PartyError(String);

impl FromStr for Party {
    type Err = PartyError;

    fn from_str(text: &str) -> Result<Self, PartyError> {
        let wrong = || PartyError(text.chars().take(120).collect());
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
            return Ok(Self::Node(name.to_owned()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace, "-") && is_name(name, "-.") => {
                Ok(Self::Pod(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }))
            }
            _ => Err(wrong()),
        }
    }
}

/// Could this be a name of the API, with these letters besides?
fn is_name(text: &str, besides: &str) -> bool {
    let letter =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || besides.contains(letter);
    !text.is_empty() && text.chars().all(letter)
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "{}/{}", name.namespace, name.name),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A protocol as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With ports.
    Ports(Protocol),
    /// ICMP or ICMPv6.
    Icmp,
    /// By its number.
    Number(u8),
}

/// Why a text is no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of tcp, udp, sctp, icmp and the numbers 0 to 255")]
pub struct TransportError(String);

impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let ports = Protocol::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(text));
        match (ports, text.parse::<u8>()) {
            (Some(protocol), _) => Ok(Self::Ports(protocol)),
            (None, _) if text.eq_ignore_ascii_case("icmp") => Ok(Self::Icmp),
            (None, Ok(number)) => Ok(Protocol::ALL
                .into_iter()
                .find(|known| known.number() == number)
                .map_or(Self::Number(number), Self::Ports)),
            (None, Err(_)) => Err(TransportError(text.chars().take(120).collect())),
        }
    }
}

impl Transport {
    /// Its number in the header of a family (IANA Protocol Numbers).
    pub(super) const fn number(self, v6: bool) -> u8 {
        match self {
            Self::Ports(protocol) => protocol.number(),
            Self::Icmp => {
                if v6 {
                    58
                } else {
                    1
                }
            }
            Self::Number(number) => number,
        }
    }
}
