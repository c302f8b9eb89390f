//! The kernel's network objects as tests want to compare them.

use super::{
    TABLE_MAIN, is_up, lookup_action, mac_of, neighbour_address, priority_of, route_address, rule_family,
};
use crate::link::MacAddr;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Whether there is a carrier.
    pub carrier: bool,
    /// Ready for traffic: the kernel has worked off the change of carrier (RFC 2863 `up`, or `unknown`, which
    /// is what devices without a notion of it show).
    pub operational: bool,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Packets received since it was made.
    pub rx_packets: u64,
    /// Packets sent since it was made.
    pub tx_packets: u64,
    /// Bytes received since it was made.
    pub rx_bytes: u64,
    /// Bytes sent since it was made.
    pub tx_bytes: u64,
}

impl Link {
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: message.attributes.iter().find_map(mac_of),
            mtu: 0,
            up: is_up(message),
            carrier: false,
            operational: false,
            controller: None,
            rx_packets: 0,
            tx_packets: 0,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        for attribute in &message.attributes {
            #[allow(
                clippy::wildcard_enum_match_arm,
                reason = "the kernel has more attributes than this type"
            )]
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
                LinkAttribute::OperState(state) => {
                    link.operational = matches!(state, State::Up | State::Unknown);
                }
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Stats64(stats) => {
                    (link.rx_packets, link.tx_packets) = (stats.rx_packets, stats.tx_packets);
                    (link.rx_bytes, link.tx_bytes) = (stats.rx_bytes, stats.tx_bytes);
                }
                _ => {}
            }
        }
        link
    }
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; its family is the route's.
    pub destination: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Output device.
    pub device: Option<String>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Routing table.
    pub table: u32,
    /// Metric; lower wins. The kernel's default is 0 for IPv4 and 1024 for IPv6.
    pub metric: Option<u32>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Take the next hop for reachable on the device, whatever the addresses say.
    pub onlink: bool,
}

impl Route {
    /// A route in the main table without any option.
    #[must_use]
    pub fn to(destination: IpNet) -> Self {
        let none = None;
        Self {
            destination,
            via: none,
            device: None,
            source: none,
            table: TABLE_MAIN,
            metric: None,
            mtu: None,
            onlink: false,
        }
    }

    /// With a next hop.
    #[must_use]
    pub fn via(self, via: IpAddr) -> Self {
        Self { via: Some(via), ..self }
    }

    /// With an output device.
    #[must_use]
    pub fn device(self, device: impl Into<String>) -> Self {
        Self { device: Some(device.into()), ..self }
    }

    /// With a preferred source address.
    #[must_use]
    pub fn source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// In another table.
    #[must_use]
    pub fn table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    pub(super) fn from_message(message: &RouteMessage, links: &[Link]) -> Option<Self> {
        if message.header.kind != RouteType::Unicast {
            return None;
        }
        let any: IpAddr = if message.header.address_family == AddressFamily::Inet6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let mut destination = any;
        let mut route = Self::to(IpNet::from(any)).table(u32::from(message.header.table));
        for attribute in &message.attributes {
            #[allow(
                clippy::wildcard_enum_match_arm,
                reason = "the kernel has more attributes than this type"
            )]
            match attribute {
                RouteAttribute::Destination(ip) => destination = route_address(ip)?,
                RouteAttribute::Gateway(ip) => route.via = route_address(ip),
                RouteAttribute::PrefSource(ip) => route.source = route_address(ip),
                RouteAttribute::Oif(index) => {
                    route.device = links.iter().find(|l| l.index == *index).map(|l| l.name.clone());
                }
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics
                        .iter()
                        .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
                }
                _ => {}
            }
        }
        route.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
        Some(route)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        self.via.iter().try_for_each(|v| write!(f, " via {v}"))?;
        self.device.iter().try_for_each(|d| write!(f, " dev {d}"))?;
        self.source.iter().try_for_each(|s| write!(f, " src {s}"))?;
        write!(f, " table {}", self.table)
    }
}

/// A policy routing rule that looks up a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For IPv6.
    pub v6: bool,
    /// Order; lower is asked first.
    pub priority: u32,
    /// The table it looks up.
    pub table: u32,
    /// Packets with this mark only, under this mask.
    pub mark: Option<(u32, u32)>,
    /// Packets from this prefix only.
    pub from: Option<IpNet>,
    /// Packets to this prefix only.
    pub to: Option<IpNet>,
    /// Packets that came in here only.
    pub input_device: Option<String>,
}

impl Rule {
    /// A rule for all packets of a family.
    #[must_use]
    pub fn new(v6: bool, priority: u32, table: u32) -> Self {
        Self { v6, priority, table, mark: None, from: None, to: None, input_device: None }
    }

    pub(super) fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = rule_family(self);
        message.header.action = lookup_action();
        message.attributes.push(RuleAttribute::Priority(self.priority));
        message.attributes.push(RuleAttribute::Table(self.table));
        if let Some((mark, mask)) = self.mark {
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
        }
        if let Some(from) = self.from {
            message.header.src_len = from.prefix_len();
            message.attributes.push(RuleAttribute::Source(from.addr()));
        }
        if let Some(to) = self.to {
            message.header.dst_len = to.prefix_len();
            message.attributes.push(RuleAttribute::Destination(to.addr()));
        }
        if let Some(device) = &self.input_device {
            message.attributes.push(RuleAttribute::Iifname(device.clone()));
        }
        message
    }

    pub(super) fn from_message(message: &RuleMessage) -> Option<Self> {
        if message.header.action != lookup_action() {
            return None;
        }
        let priority = message.attributes.iter().find_map(priority_of).unwrap_or(0);
        let v6 = message.header.family == AddressFamily::Inet6;
        let mut rule = Self::new(v6, priority, u32::from(message.header.table));
        let (mut mark, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            #[allow(
                clippy::wildcard_enum_match_arm,
                reason = "the kernel has more attributes than this type"
            )]
            match attribute {
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(m) => mark = Some(*m),
                RuleAttribute::FwMask(m) => mask = *m,
                RuleAttribute::Source(ip) => rule.from = IpNet::new(*ip, message.header.src_len).ok(),
                RuleAttribute::Destination(ip) => rule.to = IpNet::new(*ip, message.header.dst_len).ok(),
                RuleAttribute::Iifname(name) => rule.input_device = Some(name.clone()),
                _ => {}
            }
        }
        rule.mark = mark.map(|m| (m, mask));
        Some(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:", if self.v6 { "v6" } else { "v4" }, self.priority)?;
        self.from.iter().try_for_each(|p| write!(f, " from {p}"))?;
        self.to.iter().try_for_each(|p| write!(f, " to {p}"))?;
        self.mark.iter().try_for_each(|(m, k)| write!(f, " fwmark {m:#x}/{k:#x}"))?;
        write!(f, " lookup {}", self.table)
    }
}

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, once it is known.
    pub mac: Option<MacAddr>,
}

impl Neighbour {
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            if let NeighbourAttribute::Destination(ip) = attribute {
                address = neighbour_address(ip);
            }
            if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
                mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(MacAddr::new);
            }
        }
        Some(Self { address: address?, mac })
    }
}
