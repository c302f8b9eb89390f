//! The ruleset as plain data: what [`super::encode`] turns into netlink and what the tests evaluate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// One nf_tables table of family `inet`, complete: what is not in here is not in the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name of the table.
    pub name: String,
    /// Named sets; rules refer to them by name.
    pub sets: Vec<Set>,
    /// Base chains, in the order in which they are created.
    pub chains: Vec<Chain>,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in the table.
    pub name: String,
    /// What it holds.
    pub elements: Elements,
}

/// The elements of a set, which also give its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// Address ranges of one family (an interval set).
    Addresses(Ranges),
    /// Interface names, each matched exactly.
    Interfaces(BTreeSet<String>),
    /// Where ports of this node lead (a map).
    Ports(PortMap),
}

/// A port of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// At this address alone; none: at every one.
    pub address: Option<IpAddr>,
    /// Number of the transport protocol.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// Where ports of one family lead. All of them are at an address, or none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    family: Family,
    by_address: bool,
    entries: BTreeMap<Port, SocketAddr>,
}

impl PortMap {
    /// Of `ports` those that lead to an address of `family` and name an address of their own, or name none, as `by_address`
    /// says; the others are passed over. Of two for one port the first stays.
    pub fn of(family: Family, by_address: bool, ports: impl IntoIterator<Item = (Port, SocketAddr)>) -> Self {
        let mut entries = BTreeMap::new();
        for (port, to) in ports {
            let fits = port.address.is_none_or(|address| Family::of(address) == family);
            if fits && Family::of(to.ip()) == family && port.address.is_some() == by_address {
                entries.entry(port).or_insert(to);
            }
        }
        Self { family, by_address, entries }
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether the address that a packet goes to is looked up, too.
    #[must_use]
    pub fn by_address(&self) -> bool {
        self.by_address
    }

    /// Each port with what it leads to.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<Port, SocketAddr> {
        &self.entries
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The greatest address, as a number.
    #[must_use]
    pub fn max(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// Sorted, disjoint, non-adjacent inclusive ranges of addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    family: Family,
    ranges: Vec<(u128, u128)>,
}

impl Ranges {
    /// The addresses of `family` that `nets` cover; prefixes of the other family are passed over.
    pub fn of_nets<'a>(family: Family, nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let spans = nets.into_iter().filter(|net| Family::of(net.addr()) == family);
        Self::normal(family, spans.map(|net| (number(net.network()), number(net.broadcast()))).collect())
    }

    /// The single addresses of `family` among `addresses`.
    pub fn of_addresses<'a>(family: Family, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Self {
        let own = addresses.into_iter().filter(|address| Family::of(**address) == family);
        Self::normal(family, own.map(|address| (number(*address), number(*address))).collect())
    }

    fn normal(family: Family, mut spans: Vec<(u128, u128)>) -> Self {
        spans.sort_unstable();
        let mut ranges: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match ranges.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        Self { family, ranges }
    }

    /// Everything in `self` or `other`; both are of the same family.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        debug_assert_eq!(self.family, other.family);
        Self::normal(self.family, self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// Everything in `self` that is not in `other`; both are of the same family.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        debug_assert_eq!(self.family, other.family);
        let mut left = Vec::new();
        for &(first, last) in &self.ranges {
            let mut next = Some(first);
            for &(cut_first, cut_last) in other.ranges.iter().filter(|cut| cut.1 >= first && cut.0 <= last) {
                let Some(at) = next else { break };
                if cut_first > at {
                    left.push((at, cut_first - 1));
                }
                next = cut_last.checked_add(1).filter(|after| *after <= last);
            }
            left.extend(next.map(|at| (at, last)));
        }
        Self::normal(self.family, left)
    }

    /// Whether `address` is in one of the ranges; an address of the other family never is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let at = number(address);
        Family::of(address) == self.family && self.ranges.iter().any(|range| range.0 <= at && at <= range.1)
    }

    /// Whether there is no address in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The ranges, as numbers of the family's width, both ends inclusive.
    #[must_use]
    pub fn as_slice(&self) -> &[(u128, u128)] {
        &self.ranges
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The bytes of the address `number` of `family`, in network order.
pub(crate) fn address_bytes(family: Family, number: u128) -> Vec<u8> {
    match family {
        Family::V4 => {
            let low = u32::try_from(number & u128::from(u32::MAX)).expect("invariant: masked to 32 bits");
            Ipv4Addr::from(low).octets().to_vec()
        }
        Family::V6 => Ipv6Addr::from(number).octets().to_vec(),
    }
}

/// Where a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before the routing decision.
    Prerouting,
    /// To a local socket.
    Input,
    /// Between two interfaces.
    Forward,
    /// From a local socket.
    Output,
    /// Before leaving by an interface, forwarded or local.
    Postrouting,
}

/// Kind of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainType {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection.
    Nat,
}

/// What happens to a packet that no rule of a base chain decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// It goes on to the next chain of the hook.
    Accept,
    /// It is dropped.
    Drop,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in the table.
    pub name: String,
    /// Kind.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Priority at the hook; lower runs first.
    pub priority: i32,
    /// Verdict at the end.
    pub policy: Policy,
    /// Rules, first match decides.
    pub rules: Vec<Rule>,
}

/// A rule: all matches must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, in order.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
    /// Whether it counts; rules with the same comment count into one sum.
    pub counter: bool,
    /// Comment, shown by `nft list`, and the name of the counter. At most 127 bytes.
    pub comment: String,
}

/// Which interface of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The one by which it came in.
    In,
    /// The one by which it leaves.
    Out,
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// An interface name or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceName {
    /// This name and no other.
    Exact(String),
    /// Every name that begins so (`hw*`).
    Prefix(String),
}

/// Whether a match asks for yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Is {
    /// The condition holds.
    Yes,
    /// The condition does not hold.
    No,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The interface has this name.
    Interface(Direction, Is, InterfaceName),
    /// The interface's name is in this set of names.
    InterfaceIn(Direction, Is, String),
    /// The packet is of this family.
    Family(Family),
    /// `mark & mask == value`.
    Mark {
        /// Bits looked at.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// The packet is of this family *and* its address is (not) in this set of addresses.
    AddressIn(Family, End, Is, String),
    /// The transport protocol has this number.
    Protocol(u8),
    /// The transport header has this port (of TCP, UDP or what else has ports there) at this end.
    Port(End, u16),
    /// The TCP segment asks for a connection: SYN without ACK (RFC 9293, 3.1); behind [`Match::Protocol`].
    TcpOpens(Is),
    /// The ICMPv6 type is from the first to the last of these.
    Icmpv6Type(u8, u8),
    /// The destination is an address of this node.
    LocalDestination,
    /// The packet is of this family *and* what its connection was begun to, before any translation, is in this set of addresses.
    BegunTo(Family, String),
    /// The connection tracking state is one of these `NF_CT_STATE` bits (`nf_conntrack_common.h`).
    CtState(u32),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on to the next chain of the hook.
    Accept,
    /// Dropped.
    Drop,
    /// Ends the chain with its policy.
    Return,
    /// Source becomes the address of the outgoing interface, port fully random.
    Masquerade,
    /// Source becomes this address; applies to packets of its family only.
    Snat(IpAddr),
    /// Destination becomes what this map of ports says of the packet's own; a packet of which it says nothing does not match
    /// the rule.
    Dnat(String),
    /// Dropped, and the sender is told by a TCP reset; TCP only.
    RejectReset,
    /// Dropped, and the sender is told by the family's ICMP "port unreachable".
    RejectPort,
}
