//! EndpointSlices of imports (KEP-1645, "Using EndpointSlice objects to track endpoints").
//!
//! Which endpoint is in which slice is a function of the endpoints alone: no state to keep, none to read back after a
//! restart, the same on every side. Endpoints of one cluster, family and set of ports are parted by the bits of a hash of
//! their address until at most [`MAX_ENDPOINTS`] are together (an extendible hash, Fagin 1979); the slice is named by those
//! bits. So one endpoint that comes, goes or changes is one slice written, or, where a slice is just full, one replaced by
//! two or two by one. Slices are 50 to 100 % full, but for the last ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::facts::{DnsLabel, Endpoint, Endpoints, PortName};
use super::merge::{ImportKind, ImportPort, Merged, UNNAMED};
use super::objects;
use super::problem::McsProblem;
use crate::policy::model::{Labels, ObjectName, Protocol};
use crate::prefix::{self, Family};
use crate::psk::ClusterName;
use crate::service::model::{LABEL_REMOTE, LABEL_SERVICE_NAME as LABEL_TABLE};

/// Endpoints of a slice: what the endpoint slice controller of Kubernetes puts into one by default, so that no reader is
/// surprised (the API takes 1,000).
pub const MAX_ENDPOINTS: usize = 100;

/// `ports[]` of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// Name of the import's port. An unnamed one of an import with a ClusterSetIP is there twice, once as [`UNNAMED`]: so
    /// nobody is cut when another cluster's port makes a name necessary.
    pub name: PortName,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// The endpoints' number.
    pub port: u16,
}

/// `endpoints[]` of a slice; its address is the key in [`Slice::endpoints`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceEndpoint {
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `hostname`.
    pub hostname: Option<DnsLabel>,
    /// `nodeName`: of own endpoints alone. A remote node may be called like one of ours, and then `internalTrafficPolicy:
    /// Local` would take a remote pod for one of this node.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
    /// `hints.forZones`, at most one.
    pub for_zone: Option<String>,
    /// `hints.forNodes`, at most one: of own endpoints alone.
    pub for_node: Option<String>,
}

/// An EndpointSlice (`discovery.k8s.io/v1`) that we make, in the namespace of its import, which owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Name of the import.
    pub service: String,
    /// Name of the derived Service; none: headless.
    pub derived: Option<String>,
    /// Where its endpoints are.
    pub source: ClusterName,
    /// That is another cluster: proxies of ours prefer own endpoints.
    pub remote: bool,
    /// `addressType`.
    pub family: Family,
    /// `ports`.
    pub ports: Vec<SlicePort>,
    /// `endpoints`, 1 to [`MAX_ENDPOINTS`].
    pub endpoints: BTreeMap<IpAddr, SliceEndpoint>,
}

impl Slice {
    /// Its labels.
    pub fn labels(&self) -> Labels {
        let mut labels = Labels::from([
            (objects::LABEL_SERVICE_NAME.to_owned(), self.service.clone()),
            (objects::LABEL_SOURCE_CLUSTER.to_owned(), self.source.to_string()),
            (objects::LABEL_SLICE_MANAGED_BY.to_owned(), objects::MANAGER.to_owned()),
        ]);
        if let Some(derived) = &self.derived {
            labels.insert(LABEL_TABLE.to_owned(), derived.clone());
        }
        if self.remote {
            labels.insert(LABEL_REMOTE.to_owned(), self.source.to_string());
        }
        labels
    }
}

/// A text that a label's value may be (it is one in hints).
fn label_value(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty() && objects::is_label_value(text))
}

fn endpoint(facts: &Endpoint, own: bool, distribution: Option<&str>) -> SliceEndpoint {
    let node = facts.node.clone().filter(|_| own);
    let zone = label_value(&facts.zone);
    let (by_zone, by_node) = match distribution {
        Some("PreferClose" | "PreferSameZone") => (true, false),
        Some("PreferSameNode") => (true, true),
        Some(_) | None => (false, false),
    };
    SliceEndpoint {
        ready: facts.ready,
        serving: facts.serving,
        terminating: facts.terminating,
        hostname: facts.hostname.clone(),
        for_zone: zone.clone().filter(|_| by_zone),
        for_node: node.clone().filter(|_| by_node),
        node,
        zone,
    }
}

/// Where endpoints with these numbers listen for the import's ports.
fn ports_of(
    merged: &Merged,
    exposed: &BTreeMap<usize, PortName>,
    numbers: &super::facts::PortNumbers,
) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for (index, port) in merged.ports.iter().enumerate() {
        let Some(own_name) = exposed.get(&index) else { continue };
        let Some(at) = numbers.get(own_name).filter(|at| at.protocol == port.protocol && at.number != 0)
        else {
            continue;
        };
        for name in names_of(merged.kind, port) {
            let (protocol, app_protocol) = (port.protocol, port.app_protocol.clone());
            found.push(SlicePort { name, protocol, app_protocol, port: at.number });
        }
    }
    found
}

fn names_of(kind: ImportKind, port: &ImportPort) -> Vec<PortName> {
    match (kind, port.unnamed) {
        (ImportKind::ClusterSetIp, true) => vec![None, UNNAMED.parse().ok()],
        (ImportKind::Headless, _) | (ImportKind::ClusterSetIp, false) => vec![port.name.clone()],
    }
}

/// Slices of one cluster's endpoints, by name.
pub(super) fn of_cluster(
    name: &ObjectName,
    merged: &Merged,
    (cluster, own): (&ClusterName, bool),
    families: &[Family],
    endpoints: &Endpoints,
    problems: &mut Vec<McsProblem>,
) -> BTreeMap<String, Slice> {
    let none = BTreeMap::new();
    let exposed = merged.exposed.get(cluster).unwrap_or(&none);
    let mut groups: BTreeMap<(Family, Vec<SlicePort>), BTreeMap<IpAddr, &Endpoint>> = BTreeMap::new();
    for (numbers, members) in endpoints {
        let ports = ports_of(merged, exposed, numbers);
        if ports.is_empty() && merged.kind == ImportKind::ClusterSetIp {
            continue; // exposes no port of the union
        }
        for (address, facts) in
            members.iter().filter(|(address, _)| families.contains(&Family::of(**address)))
        {
            if !prefix::is_unicast(*address) {
                let (cluster, name) = (cluster.clone(), name.clone());
                problems.push(McsProblem::EndpointMalformed { cluster, name, address: *address });
                continue;
            }
            let group = groups.entry((Family::of(*address), ports.clone())).or_default();
            let better = group.get(address).is_none_or(|other| facts.merit() > other.merit());
            if better {
                group.insert(*address, facts);
            }
        }
    }
    let derived = (merged.kind == ImportKind::ClusterSetIp).then(|| objects::derived_name(&name.name));
    let distribution = merged.traffic_distribution.as_deref();
    let mut slices = BTreeMap::new();
    for ((family, ports), members) in groups {
        let prefix = format!("{}-{}", objects::derived_name(&name.name), group_id(cluster, family, &ports));
        for (bits, members) in pack(members) {
            let told = members.into_iter().map(|(at, facts)| (at, endpoint(facts, own, distribution)));
            let slice = Slice {
                service: name.name.clone(),
                derived: derived.clone(),
                source: cluster.clone(),
                remote: !own,
                family,
                ports: ports.clone(),
                endpoints: told.collect(),
            };
            slices.insert(format!("{prefix}-x{bits}"), slice);
        }
    }
    slices
}

/// 16 hexadecimal digits that tell groups of one import apart.
fn group_id(cluster: &ClusterName, family: Family, ports: &[SlicePort]) -> String {
    let mut hash = Sha256::new();
    hash.update(cluster.as_str());
    hash.update(match family {
        Family::V4 => [0, 4],
        Family::V6 => [0, 6],
    });
    for port in ports {
        let name = port.name.as_ref().map_or("", |name| name.as_str());
        let app = port.app_protocol.as_deref().unwrap_or("");
        hash.update(format!("{name}/{}/{}/{}/{app}\0", port.protocol.number(), port.port, app.len()));
    }
    objects::hex(&hash.finalize(), 8)
}

/// An endpoint with the hash of its address.
type Hashed<T> = (u64, IpAddr, T);

/// Parts them, by the bits of their addresses' hashes.
fn pack<T: Copy>(members: BTreeMap<IpAddr, T>) -> BTreeMap<String, BTreeMap<IpAddr, T>> {
    let mut hashed: Vec<Hashed<T>> = members.into_iter().map(|(at, what)| (hash(at), at, what)).collect();
    hashed.sort_by_key(|(hash, at, _)| (*hash, *at));
    let mut packed = BTreeMap::new();
    split(&hashed, 0, String::new(), &mut packed);
    packed
}

fn split<T: Copy>(
    members: &[Hashed<T>],
    depth: u32,
    bits: String,
    packed: &mut BTreeMap<String, BTreeMap<IpAddr, T>>,
) {
    if members.len() <= MAX_ENDPOINTS {
        if !members.is_empty() {
            packed.insert(bits, members.iter().map(|(_, at, what)| (*at, *what)).collect());
        }
        return;
    }
    if depth == u64::BITS {
        // A hundred equal hashes: nobody finds them, and they would still be served.
        for (index, part) in members.chunks(MAX_ENDPOINTS).enumerate() {
            let mut name = bits.clone();
            let _ = write!(name, "-{index}");
            packed.insert(name, part.iter().map(|(_, at, what)| (*at, *what)).collect());
        }
        return;
    }
    let bit = 1 << (u64::BITS - 1 - depth);
    let (zeros, ones) = members.split_at(members.partition_point(|(hash, _, _)| hash & bit == 0));
    split(zeros, depth + 1, format!("{bits}0"), packed);
    split(ones, depth + 1, format!("{bits}1"), packed);
}

fn hash(address: IpAddr) -> u64 {
    let digest = match address {
        IpAddr::V4(v4) => Sha256::digest(v4.octets()),
        IpAddr::V6(v6) => Sha256::digest(v6.octets()),
    };
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
