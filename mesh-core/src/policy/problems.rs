//! What is wrong with a policy or an address: names the object, the field, the value and the remedy, and costs no more than
//! that one thing.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::model::ObjectName;

/// A policy of either kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyRef {
    /// A NetworkPolicy.
    Network(ObjectName),
    /// A ClusterNetworkPolicy.
    Cluster(String),
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(f, "NetworkPolicy {}/{}", name.namespace, name.name),
            Self::Cluster(name) => write!(f, "ClusterNetworkPolicy {name}"),
        }
    }
}

/// Values of one selector beyond which it is reported (and obeyed): each change of a pod is held against all of them, and an
/// object with more is usually a list of pods that wants to be a label.
pub const HUGE_SELECTOR: usize = 1_000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error, Serialize, Deserialize)]
pub enum PolicyProblem {
    /// A field of a policy cannot be read or means nothing.
    #[error("{object}: {field}={value:?} {reason}")]
    FieldMalformed {
        /// The object.
        object: PolicyRef,
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong, what happens meanwhile and what is wanted.
        reason: String,
    },
    /// A rule names a port that no container names.
    #[error(
        "{object}: {field}={name:?} ({protocols}): no container of {whose} names such a port, so it matches nothing; correct it or name the port in the pods"
    )]
    PortNameUnknown {
        /// The object.
        object: PolicyRef,
        /// Path of the field.
        field: String,
        /// The port's name.
        name: String,
        /// `TCP`, `UDP`, `SCTP` or `any protocol`.
        protocols: String,
        /// Whose containers were asked.
        whose: String,
    },
    /// Two pods or nodes have the same address.
    #[error(
        "address {address}: claimed by {claimants}; nobody's until that is settled, so no rule allows it; delete the wrong object or correct its address"
    )]
    AddressClaimedTwice {
        /// The address.
        address: IpAddr,
        /// Who claims it, separated by commas.
        claimants: String,
    },
    /// An IPv4 address in the clothes of an IPv6 one.
    #[error("{owner}: address {address} is refused: IPv4-mapped; write it as IPv4")]
    AddressMapped {
        /// The pod or node.
        owner: String,
        /// The address.
        address: IpAddr,
    },
}

impl PolicyProblem {
    /// A stable word for metrics, events and documentation.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::FieldMalformed { .. } => "PolicyFieldMalformed",
            Self::PortNameUnknown { .. } => "PolicyPortNameUnknown",
            Self::AddressClaimedTwice { .. } => "PolicyAddressClaimedTwice",
            Self::AddressMapped { .. } => "PolicyAddressMapped",
        }
    }

    /// Every code, for metrics that show zero before anything went wrong.
    pub const CODES: [&'static str; 4] =
        ["PolicyFieldMalformed", "PolicyPortNameUnknown", "PolicyAddressClaimedTwice", "PolicyAddressMapped"];

    /// The policy that the problem is about; none: it is about an address.
    pub const fn object(&self) -> Option<&PolicyRef> {
        match self {
            Self::FieldMalformed { object, .. } | Self::PortNameUnknown { object, .. } => Some(object),
            Self::AddressClaimedTwice { .. } | Self::AddressMapped { .. } => None,
        }
    }
}
