//! Names of nodes, and how one cluster calls those of another.

use std::fmt;
use std::str::FromStr;

use crate::psk::{ClusterName, NodeId};

/// Between the name of a node and that of its cluster. In no name of a Kubernetes object.
const AT: char = '@';

/// How this cluster calls a node: an own one by the name of its Node, an RFC 1123 subdomain of at most 253 characters; one
/// of another cluster `NODE@CLUSTER`, which nothing that is read from an own object can be ([`FromStr`] refuses it). Own
/// ones and others so share maps without meeting. The name that all clusters have for it is its [`NodeId`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// Why a text is not the name of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a node name: wanted 1 to 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
)]
pub struct NameError(String);

impl NodeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How the other cluster's node `node` is called here.
    #[must_use]
    pub fn foreign(node: &Self, cluster: &ClusterName) -> Self {
        Self(format!("{}{AT}{cluster}", node.0))
    }

    /// Its cluster, if that is another one.
    pub fn cluster(&self) -> Option<&str> {
        self.0.split_once(AT).map(|(_, cluster)| cluster)
    }

    /// Is it of another cluster?
    pub fn is_foreign(&self) -> bool {
        self.cluster().is_some()
    }

    /// What all clusters call it, seen from the cluster `own`.
    pub fn id(&self, own: &ClusterName) -> NodeId {
        match self.0.split_once(AT).map(|(node, cluster)| (node, cluster.parse())) {
            Some((node, Ok(cluster))) => NodeId { node: Self(node.to_owned()), cluster },
            Some((_, Err(_))) | None => NodeId { node: self.clone(), cluster: own.clone() },
        }
    }

    /// How the cluster `own` calls a node.
    pub fn here(id: &NodeId, own: &ClusterName) -> Self {
        if id.cluster == *own { id.node.clone() } else { Self::foreign(&id.node, &id.cluster) }
    }

    /// Reads a name that one of our own agents wrote, of whatever cluster's node.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &str) -> Result<Self, NameError> {
        let refuse = || NameError(text.chars().take(260).collect());
        match text.split_once(AT) {
            None => text.parse(),
            Some((node, cluster)) => {
                let cluster = cluster.parse().map_err(|_| refuse())?;
                Ok(Self::foreign(&node.parse().map_err(|_| refuse())?, &cluster))
            }
        }
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        let fits = bytes.len() <= 253 && outer(bytes.first()) && outer(bytes.last());
        if fits && bytes.iter().all(|b| inner(*b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.chars().take(260).collect()))
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What our own agents wrote: names of other clusters' nodes, too ([`NodeName::read`]).
impl<'de> serde::Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for NodeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_another_cluster_is_never_taken_for_an_own_one() {
        let (west, east): (ClusterName, ClusterName) = ("west".parse().unwrap(), "east".parse().unwrap());
        let own: NodeName = "gw.example".parse().unwrap();
        let other = NodeName::foreign(&own, &east);
        assert_eq!(other.as_str(), "gw.example@east");
        assert_ne!(own, other);
        assert!("gw.example@east".parse::<NodeName>().is_err(), "no object of the API is called so");
        assert_eq!(NodeName::read("gw.example@east"), Ok(other.clone()));
        for bad in ["@east", "gw@", "gw@e@st", "gw@EAST", "Gw@east", ""] {
            assert!(NodeName::read(bad).is_err(), "{bad}");
        }
        assert_eq!((own.cluster(), other.cluster()), (None, Some("east")));
        // The same node, from both sides.
        assert_eq!(other.id(&west), own.id(&east));
        assert_eq!(NodeName::here(&other.id(&west), &west), other);
        assert_eq!(NodeName::here(&other.id(&west), &east), own);
    }
}
