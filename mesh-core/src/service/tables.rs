//! What the data path is told: the section "services" of `datapath/src/bpf/abi.h`, in our own types.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::policy::model::Protocol;

/// `HW_FRONT_DROP`: there is no backend because of `internalTrafficPolicy: Local` (or the client is outside
/// `loadBalancerSourceRanges`), so the packet is dropped without a word, as kube-proxy does.
pub const FRONT_DROP: u32 = 1;
/// `HW_FRONT_ADDRESS`: the key has port and protocol 0, and stands for whatever a cluster IP does not serve.
pub const FRONT_ADDRESS: u32 = 2;

/// What a client says: the key of `frontends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FrontendKey {
    /// The service's address. Unspecified: any address of any node, of this family (`0.0.0.0`, mapped in the map to
    /// `::ffff:0.0.0.0`, is every node's IPv4 address; `::` every node's IPv6 address).
    pub addr: IpAddr,
    /// Port; 0 with [`FRONT_ADDRESS`].
    pub port: u16,
    /// Protocol; none, in the map 0, with [`FRONT_ADDRESS`].
    pub protocol: Option<Protocol>,
}

impl FrontendKey {
    /// The key of a NodePort in the family of `like`.
    pub const fn node_port(like: IpAddr, port: u16, protocol: Protocol) -> Self {
        let addr = match like {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { addr, port, protocol: Some(protocol) }
    }

    /// The key that stands for everything a cluster IP does not serve.
    pub const fn address(addr: IpAddr) -> Self {
        Self { addr, port: 0, protocol: None }
    }
}

/// Number of a backend, from 1. A service's port has backends of its own, so that a flow or an affinity never means the
/// same pod behind another service. Not used again while anything remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

/// Number of a service's port, from 1, for affinities; frontends with the same backends share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceNumber(pub u32);

/// Value of `frontends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontend {
    /// First place of its table in `places`; 0 if it has none.
    pub base: u32,
    /// Places of its table; 0: nobody there, refuse or (with [`FRONT_DROP`]) drop.
    pub count: u32,
    /// Its number; 0 with [`FRONT_ADDRESS`] or where nobody is ever to be there.
    pub service: ServiceNumber,
    /// Seconds of session affinity; 0: none.
    pub affinity: u32,
    /// [`FRONT_DROP`], [`FRONT_ADDRESS`].
    pub flags: u32,
}

/// Value of `backends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Where it is.
    pub addr: SocketAddr,
    /// It keeps the flows that it has and gets no new ones.
    pub leaving: bool,
}

/// Everything the maps hold after all deltas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `places`, by the base of a region: one Maglev table each.
    pub tables: BTreeMap<u32, Vec<BackendId>>,
    /// `backends`.
    pub backends: BTreeMap<BackendId, Backend>,
}

/// Places beside each other that change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRun {
    /// The first.
    pub first: u32,
    /// What it and those after it hold.
    pub backends: Vec<BackendId>,
}

/// What changes in the maps.
///
/// **Apply the fields in their order**: a table is written in place where its size stays, so a packet that reads it
/// meanwhile finds a backend of before or of after; both exist, since new ones are written first and old ones deleted last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Number of this commit, for [`super::Compiler::quiesced`].
    pub commit: u64,
    /// 1. New or changed.
    pub backends_set: BTreeMap<BackendId, Backend>,
    /// 2. Changed places.
    pub places: Vec<PlaceRun>,
    /// 3. New or changed.
    pub frontends_set: BTreeMap<FrontendKey, Frontend>,
    /// 4. Gone.
    pub frontends_removed: BTreeSet<FrontendKey>,
    /// 5. Gone: UDP flows to them choose again, TCP connections end by themselves.
    pub backends_removed: BTreeSet<BackendId>,
    /// 6. Gone: their entries in `affinities` may be deleted (nobody uses the number again).
    pub services_removed: BTreeSet<ServiceNumber>,
}

impl Delta {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        self.backends_set.is_empty()
            && self.places.is_empty()
            && self.frontends_set.is_empty()
            && self.frontends_removed.is_empty()
            && self.backends_removed.is_empty()
            && self.services_removed.is_empty()
    }
}

/// Sizes of the maps. What does not fit is a [`super::ServiceProblem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Entries of `frontends`.
    pub frontends: u32,
    /// Entries of `places`; the kernel takes 8 bytes for each.
    pub places: u32,
    /// Entries of `backends`.
    pub backends: u32,
}

impl Default for Limits {
    /// Room for 8,000 ports of services with up to five endpoints, in 32 MiB of places.
    fn default() -> Self {
        Self { frontends: 65_536, places: 1 << 22, backends: 131_072 }
    }
}
