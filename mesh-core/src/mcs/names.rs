//! What `clusterset.local` answers (KEP-1645, `specification.md`, schema 1.0.0): a question parsed by whoever serves it
//! comes in, an answer as data goes out.
//!
//! | name, beneath `svc.clusterset.local` | records | of |
//! |---|---|---|
//! | `SVC.NS` | A, AAAA: ClusterSetIPs | ClusterSetIP |
//! | `SVC.NS` | A, AAAA: ready endpoints; none ready: NXDOMAIN | headless |
//! | `_PORT._PROTO.SVC.NS` | SRV to `SVC.NS`, the service's port | ClusterSetIP |
//! | `_PORT._PROTO.SVC.NS` | SRV to each ready endpoint's name, at the port where it listens | headless |
//! | `HOST.CLUSTER.SVC.NS` | A, AAAA of ready endpoints; `HOST` is their hostname, else the address with dashes | headless |
//! | `SVC.NS` | SRV: those of all its ports together, as CoreDNS answers (the conformance suite asks it) | both |
//!
//! and `dns-version` TXT `1.0.0`. Ports without a name have no SRV record. `CLUSTER.SVC.NS` has no record of any kind; it is
//! NODATA where names lie beneath it, since NXDOMAIN would deny those, too (RFC 8020). So are `svc`, `NS.svc`, `_PROTO.SVC.NS`.
//! A ClusterSetIP service that has no address yet is NODATA. There are no PTR records: addresses are outside the zone.
//!
//! Who serves it: answer [`Answer::Refused`] with REFUSED, write the name of the answers as it was asked (letters' case is
//! compared by clients that use 0x20), shuffle addresses, set TC where it does not fit, be authoritative (AA).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use super::merge::ImportKind;
use super::plan::{Decision, Import};
use super::problem::McsProblem;
use super::slices::Slice;
use crate::policy::model::{ObjectName, Protocol};
use crate::psk::ClusterName;

/// The zone, without the final dot.
pub const ZONE: &str = "clusterset.local";
/// Version of the schema, in TXT `dns-version`.
pub const SCHEMA_VERSION: &str = "1.0.0";
/// Seconds that answers hold, negative ones too: as long as CoreDNS lets services' names live, so that failover by DNS is
/// as quick as inside a cluster.
pub const TTL: u32 = 5;
/// Seconds that the schema's version holds (the specification's own example).
pub const VERSION_TTL: u32 = 28_800;
/// Records of one kind in an answer, and so addresses of one family of a headless service or of a hostname. 200 SRV records
/// of the longest names are 54,600 bytes, and a message over TCP ends at 65,535. Each endpoint's own name is answered,
/// however many there are.
pub const MAX_NAMED: usize = 200;
/// Addresses beside SRV records: what fits into the usual 1,232 bytes over UDP, roughly; clients ask for the rest.
pub const MAX_ADDITIONAL: usize = 32;
/// Characters of a name (RFC 1035, section 2.3.4: 255 bytes on the wire).
const MAX_NAME: usize = 253;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports (RFC 2782).
    Srv,
    /// Texts.
    Txt,
    /// The zone's own record.
    Soa,
    /// Everything: one kind of what there is (RFC 8482, section 4.1).
    Any,
    /// What the zone never has.
    Other,
}

/// Data of a record. Names are in lower case and end with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A port; priority 0 and weight 100 of all.
    Srv {
        /// Lower is tried first.
        priority: u16,
        /// Share among those of one priority.
        weight: u16,
        /// The port.
        port: u16,
        /// Where.
        target: String,
    },
    /// A text.
    Txt(String),
    /// The zone's own.
    Soa {
        /// Name of its server.
        mname: String,
        /// Mailbox.
        rname: String,
        /// Moves with each change since the start, and wraps.
        serial: u32,
        /// Seconds.
        refresh: u32,
        /// Seconds.
        retry: u32,
        /// Seconds.
        expire: u32,
        /// Seconds that a negative answer holds.
        minimum: u32,
    },
}

/// A record of class IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Whose, in lower case, with a final dot.
    pub name: String,
    /// Seconds.
    pub ttl: u32,
    /// What.
    pub data: Data,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not our zone.
    Refused,
    /// There is no such name, nor one beneath it. The zone's SOA goes into the authority section.
    NxDomain(Record),
    /// The name is there, without such records. The zone's SOA likewise.
    NoData(Record),
    /// Records, at least one.
    Found {
        /// The answer section.
        answers: Vec<Record>,
        /// The additional section.
        additional: Vec<Record>,
    },
}

/// The name of an endpoint within its service.
type Host = (ClusterName, String);

/// Where an SRV record leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Service,
    Host(Host),
}

/// What is known of one service. A headless one without ready endpoints has no entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    addresses: BTreeSet<IpAddr>,
    hosts: BTreeMap<Host, BTreeSet<IpAddr>>,
    /// By name and protocol of the port.
    ports: BTreeMap<PortKey, BTreeSet<(u16, Target)>>,
    /// Of all ports together.
    places: BTreeSet<(u16, Target)>,
}

/// Name and protocol of a port.
type PortKey = (String, Protocol);

/// The ready endpoints of one name of a headless service.
#[derive(Clone, Debug, Default)]
struct Found {
    addresses: BTreeSet<IpAddr>,
    places: BTreeSet<(PortKey, u16)>,
}

/// Addresses of each family in an answer.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    v4: usize,
    v6: usize,
}

impl Room {
    /// Takes all of them, or none if a family would get too many.
    fn take(&mut self, addresses: &BTreeSet<IpAddr>) -> bool {
        let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        let more = Self { v4: self.v4 + v4, v6: self.v6 + addresses.len() - v4 };
        let fits = more.v4 <= MAX_NAMED && more.v6 <= MAX_NAMED;
        if fits {
            *self = more;
        }
        fits
    }
}

/// The first ones of each family, as many as an answer has.
fn bounded(addresses: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    v4.into_iter().take(MAX_NAMED).chain(v6.into_iter().take(MAX_NAMED)).collect()
}

/// The zone.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    services: BTreeMap<ObjectName, Entry>,
    serial: u32,
}

const fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
        Protocol::Sctp => "_sctp",
    }
}

/// The labels that are left of the zone, in lower case; none: not our zone.
fn beneath_zone(labels: &[&[u8]]) -> Option<Vec<String>> {
    let lower = |label: &&[u8]| String::from_utf8(label.to_ascii_lowercase()).unwrap_or_default();
    let mut labels: Vec<String> = labels.iter().map(lower).collect();
    let mut zone = ZONE.split('.').rev();
    zone.all(|label| labels.pop().as_deref() == Some(label)).then_some(labels)
}

fn protocol_of(label: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol_label(*protocol) == label)
}

fn service_name(name: &ObjectName) -> String {
    format!("{}.{}.svc.{ZONE}.", name.name, name.namespace)
}

fn target_name(name: &ObjectName, target: &Target) -> String {
    match target {
        Target::Service => service_name(name),
        Target::Host((cluster, host)) => format!("{host}.{cluster}.{}", service_name(name)),
    }
}

/// Is it longer than a message can carry? The final dot is not counted.
fn is_too_long(name: &ObjectName, host: &Host) -> bool {
    target_name(name, &Target::Host(host.clone())).len() > MAX_NAME + 1
}

/// The label of an endpoint without a hostname.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

impl Zone {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was decided of a service; the default of a decision where there is nothing more of it.
    pub fn set(&mut self, name: &ObjectName, decision: &Decision) -> Vec<McsProblem> {
        let mut problems = Vec::new();
        let entry = decision.import.as_ref().and_then(|import| match import.kind {
            ImportKind::ClusterSetIp => Some(Entry::clusterset_ip(import)),
            ImportKind::Headless => Entry::headless(name, import, decision.slices.values(), &mut problems),
        });
        let changed = match entry {
            Some(entry) => self.services.insert(name.clone(), entry.clone()) != Some(entry),
            None => self.services.remove(name).is_some(),
        };
        if changed {
            self.serial = self.serial.wrapping_add(1);
        }
        problems
    }

    /// The answer to a question of class IN: its labels, the leftmost first, without the root's.
    pub fn answer(&self, labels: &[&[u8]], kind: RecordKind) -> Answer {
        let Some(rest) = beneath_zone(labels) else { return Answer::Refused };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match self.node(&rest) {
            None => Answer::NxDomain(self.soa()),
            Some(records) => self.of_kind(records, kind),
        }
    }

    /// Is the answer about this name one to give while some clusters have not been heard yet? Of a service with ClusterSetIPs
    /// it is, whoever else exports it; endpoints of a headless one, and that there is no such name, are not known so early.
    pub fn is_certain(&self, labels: &[&[u8]]) -> bool {
        let Some(rest) = beneath_zone(labels) else { return true };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] | ["dns-version"] => true,
            [.., service, namespace, "svc"] => {
                let name = ObjectName { namespace: (*namespace).to_owned(), name: (*service).to_owned() };
                let entry = self.services.get(&name);
                let has_ip = entry.is_some_and(|entry| entry.hosts.is_empty() && !entry.addresses.is_empty());
                has_ip && self.node(&rest).is_some()
            }
            _ => false,
        }
    }

    fn soa(&self) -> Record {
        let data = Data::Soa {
            mname: format!("ns.dns.{ZONE}."),
            rname: format!("hostmaster.{ZONE}."),
            serial: self.serial,
            refresh: 7_200,
            retry: 1_800,
            expire: 86_400,
            minimum: TTL,
        };
        Record { name: format!("{ZONE}."), ttl: TTL, data }
    }

    fn of_kind(&self, node: Node, kind: RecordKind) -> Answer {
        let of = |kind| {
            let is = |data: &Data| match data {
                Data::A(_) => kind == RecordKind::A,
                Data::Aaaa(_) => kind == RecordKind::Aaaa,
                Data::Srv { .. } => kind == RecordKind::Srv,
                Data::Txt(_) => kind == RecordKind::Txt,
                Data::Soa { .. } => kind == RecordKind::Soa,
            };
            node.records.iter().filter(|record| is(&record.data)).cloned().collect::<Vec<_>>()
        };
        let all = [RecordKind::A, RecordKind::Aaaa, RecordKind::Srv, RecordKind::Txt, RecordKind::Soa];
        let answers = match kind {
            RecordKind::Any => all.into_iter().map(of).find(|found| !found.is_empty()).unwrap_or_default(),
            RecordKind::A
            | RecordKind::Aaaa
            | RecordKind::Srv
            | RecordKind::Txt
            | RecordKind::Soa
            | RecordKind::Other => of(kind),
        };
        if answers.is_empty() {
            return Answer::NoData(self.soa());
        }
        let ports = answers.iter().any(|record| matches!(record.data, Data::Srv { .. }));
        Answer::Found { answers, additional: if ports { node.targets } else { Vec::new() } }
    }

    /// The name that is left of the zone. None: there is none.
    fn node(&self, labels: &[&str]) -> Option<Node> {
        let empty = Node::default();
        match labels {
            [] => Some(Node::of(vec![self.soa()])),
            ["dns-version"] => {
                let data = Data::Txt(SCHEMA_VERSION.to_owned());
                Some(Node::of(vec![Record { name: format!("dns-version.{ZONE}."), ttl: VERSION_TTL, data }]))
            }
            ["svc"] => (!self.services.is_empty()).then_some(empty),
            [namespace, "svc"] => {
                let first = ObjectName { namespace: (*namespace).to_owned(), name: String::new() };
                let next = self.services.range(first..).next();
                next.filter(|(name, _)| name.namespace == *namespace).map(|_| empty)
            }
            [beneath @ .., service, namespace, "svc"] => {
                let name = ObjectName { namespace: (*namespace).to_owned(), name: (*service).to_owned() };
                let entry = self.services.get(&name)?;
                match beneath {
                    [] => Some(entry.whole(&name)),
                    [label] if label.starts_with('_') => {
                        let protocol = protocol_of(label)?;
                        entry.ports.keys().any(|(_, of)| *of == protocol).then_some(empty)
                    }
                    [label] => {
                        entry.hosts.keys().any(|(cluster, _)| cluster.as_str() == *label).then_some(empty)
                    }
                    [port, protocol] if protocol.starts_with('_') => {
                        let port = port.strip_prefix('_')?.to_owned();
                        let places = entry.ports.get(&(port.clone(), protocol_of(protocol)?))?;
                        let owner = format!("_{port}.{protocol}.{}", service_name(&name));
                        Some(entry.ports_node(&name, &owner, places.iter()))
                    }
                    [host, cluster] => {
                        let key = (cluster.parse().ok()?, (*host).to_owned());
                        let addresses = entry.hosts.get(&key)?;
                        Some(Node::of(addresses_of(&target_name(&name, &Target::Host(key)), addresses)))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// What a name has.
#[derive(Clone, Debug, Default)]
struct Node {
    records: Vec<Record>,
    /// Addresses of the targets of its SRV records.
    targets: Vec<Record>,
}

impl Node {
    const fn of(records: Vec<Record>) -> Self {
        Self { records, targets: Vec::new() }
    }
}

fn addresses_of<'a>(name: &str, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<Record> {
    let data = |address: &IpAddr| match address {
        IpAddr::V4(v4) => Data::A(*v4),
        IpAddr::V6(v6) => Data::Aaaa(*v6),
    };
    let record = |address| Record { name: name.to_owned(), ttl: TTL, data: data(address) };
    addresses.into_iter().map(record).collect()
}

impl Entry {
    fn clusterset_ip(import: &Import) -> Self {
        let mut entry = Self { addresses: import.ips.iter().copied().collect(), ..Self::default() };
        for port in import.ports.iter().filter(|port| !port.unnamed) {
            let Some(name) = &port.name else { continue };
            let places = entry.ports.entry((name.to_string(), port.protocol)).or_default();
            places.insert((port.port, Target::Service));
            entry.places.insert((port.port, Target::Service));
        }
        entry
    }

    fn headless<'a>(
        name: &ObjectName,
        import: &Import,
        slices: impl Iterator<Item = &'a Slice>,
        problems: &mut Vec<McsProblem>,
    ) -> Option<Self> {
        let unnamed: BTreeSet<_> = import.ports.iter().filter(|p| p.unnamed).map(|p| &p.name).collect();
        let mut found: BTreeMap<Host, Found> = BTreeMap::new();
        for slice in slices {
            for (address, endpoint) in slice.endpoints.iter().filter(|(_, endpoint)| endpoint.ready) {
                let hostname = endpoint.hostname.as_ref().map(ToString::to_string);
                let host = (slice.source.clone(), hostname.unwrap_or_else(|| dashed(*address)));
                let one = found.entry(host).or_default();
                one.addresses.insert(*address);
                for port in slice.ports.iter().filter(|port| !unnamed.contains(&port.name)) {
                    let Some(name) = &port.name else { continue };
                    one.places.insert(((name.to_string(), port.protocol), port.port));
                }
            }
        }
        if found.is_empty() {
            return None;
        }
        let mut too_long: BTreeMap<ClusterName, usize> = BTreeMap::new();
        for ((cluster, _), one) in found.iter().filter(|(host, _)| is_too_long(name, host)) {
            *too_long.entry(cluster.clone()).or_default() += one.addresses.len();
        }
        let cut = |(cluster, endpoints)| McsProblem::NameTooLong { cluster, name: name.clone(), endpoints };
        problems.extend(too_long.into_iter().map(cut));
        let all: usize = found.values().map(|one| one.addresses.len()).sum();
        let entry = Self::choose(name, found);
        let left_out = all - entry.addresses.len();
        if left_out > 0 {
            problems.push(McsProblem::TooManyNames { name: name.clone(), left_out, limit: MAX_NAMED });
        }
        Some(entry)
    }

    /// Which endpoints stand for the whole service: by a hash of their names, so that each cluster has its share, that one
    /// endpoint that comes or goes moves no other but one, and that a hostname has its addresses of both families in it or
    /// none. (Nothing says which two addresses without a hostname are one pod's.) Names that no message can carry have
    /// addresses, and neither ports nor records of their own.
    fn choose(name: &ObjectName, found: BTreeMap<Host, Found>) -> Self {
        let mut order: Vec<(Vec<u8>, Host, Found)> = found
            .into_iter()
            .map(|(host, one)| (Sha256::digest(format!("{}.{}", host.1, host.0)).to_vec(), host, one))
            .collect();
        order.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let (mut entry, mut room, mut full) = (Self::default(), Room::default(), false);
        for (_, host, one) in order {
            let addresses = bounded(one.addresses);
            if room.take(&addresses) {
                entry.addresses.extend(&addresses);
            }
            if is_too_long(name, &host) {
                continue;
            }
            // All ports of an endpoint together, or a service's second port would be in no answer for all of them.
            full |= entry.places.len() + one.places.len() > MAX_NAMED;
            for (key, port) in one.places {
                let target = Target::Host(host.clone());
                let places = entry.ports.entry(key).or_default();
                if places.len() < MAX_NAMED {
                    places.insert((port, target.clone()));
                }
                if !full {
                    entry.places.insert((port, target));
                }
            }
            entry.hosts.insert(host, addresses);
        }
        entry
    }

    /// The name of the service itself.
    fn whole(&self, name: &ObjectName) -> Node {
        let owner = service_name(name);
        let mut node = self.ports_node(name, &owner, self.places.iter());
        node.records.extend(addresses_of(&owner, &self.addresses));
        node
    }

    fn ports_node<'a>(
        &self,
        name: &ObjectName,
        owner: &str,
        places: impl Iterator<Item = &'a (u16, Target)>,
    ) -> Node {
        let mut node = Node::default();
        let mut told = BTreeSet::new();
        for (port, target) in places {
            let goes_to = target_name(name, target);
            let data = Data::Srv { priority: 0, weight: 100, port: *port, target: goes_to.clone() };
            node.records.push(Record { name: owner.to_owned(), ttl: TTL, data });
            if told.insert(target) {
                let addresses = match target {
                    Target::Service => Some(&self.addresses),
                    Target::Host(host) => self.hosts.get(host),
                };
                node.targets.extend(addresses_of(&goes_to, addresses.into_iter().flatten()));
            }
        }
        node.targets.truncate(MAX_ADDITIONAL);
        node
    }
}
