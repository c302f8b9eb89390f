//! What a frame is, and which addresses it shows in clear: pure functions over bytes.
//!
//! The classification fails closed: what is not fully understood is [`Class::Other`].

mod packet;

use ipnet::IpNet;
use packet::{Ether, Ip, be16, ether, ip};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const ETHERTYPE_ARP: u16 = 0x0806;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_ICMPV6: u8 = 58;

/// UDP ports of VXLAN: IANA's and the kernel's default.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];

/// Packets quoted in packets are followed this deep; deeper ones do not occur.
const MAX_DEPTH: usize = 4;

/// What may cross a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// UDP ports of WireGuard, at either end.
    pub wireguard_ports: BTreeSet<u16>,
    /// Addresses and ports of API servers, at either end of a TCP connection.
    pub api_servers: Vec<SocketAddr>,
    /// TCP and UDP of the world outside with a port of a node: what comes to a NodePort, in clear by its nature.
    pub node_ports: Vec<(IpAddr, SocketAddr)>,
    /// Largest UDP payload of one datagram; a larger one is a frame with segmentation offload and must be
    /// made of whole WireGuard data messages.
    pub max_datagram: usize,
    /// Require data messages padded to 16 bytes (WireGuard paper, 5.4.6). Implementations exist that do not.
    pub require_padding: bool,
}

impl Policy {
    /// WireGuard on these ports, and what every link needs: ARP, neighbour discovery, multicast reports and
    /// errors about WireGuard datagrams.
    #[must_use]
    pub fn wireguard(ports: impl IntoIterator<Item = u16>) -> Self {
        Self {
            wireguard_ports: ports.into_iter().collect(),
            api_servers: Vec::new(),
            node_ports: Vec::new(),
            max_datagram: 1500 - 28,
            require_padding: false,
        }
    }

    /// Also TCP with this API server.
    #[must_use]
    pub fn api_server(mut self, server: SocketAddr) -> Self {
        self.api_servers.push(server);
        self
    }

    /// Also what this host outside says to this port of a node, and hears from it.
    #[must_use]
    pub fn node_port(mut self, outside: IpAddr, port: SocketAddr) -> Self {
        self.node_ports.push((outside, port));
        self
    }

    /// Whether the frame may cross.
    #[must_use]
    pub fn allows(&self, frame: &[u8]) -> bool {
        !matches!(self.classify(frame), Class::Other(_))
    }

    /// What the frame is.
    #[must_use]
    pub fn classify(&self, frame: &[u8]) -> Class {
        let Some(ether) = ether(frame) else { return Class::Other(Reason::Malformed) };
        if ether.tagged {
            return Class::Other(Reason::Tagged);
        }
        if ether.kind == ETHERTYPE_ARP {
            return if arp(&ether).is_some() { Class::Arp } else { Class::Other(Reason::Malformed) };
        }
        match ip(ether.kind, ether.payload) {
            Some(packet) if packet.trailing > 0 && frame.len() > 60 => Class::Other(Reason::TrailingBytes),
            Some(packet) => self.classify_ip(&packet),
            None => Class::Other(Reason::NotIp),
        }
    }

    fn classify_ip(&self, packet: &Ip<'_>) -> Class {
        if packet.fragment {
            return Class::Other(Reason::Fragment);
        }
        if self.is_node_port(packet) {
            return Class::NodePort;
        }
        match packet.protocol {
            IPPROTO_UDP => match self.wireguard_messages(packet) {
                Ok(messages) => Class::WireGuard { messages },
                Err(reason) => Class::Other(reason),
            },
            IPPROTO_TCP => match ports(packet) {
                Some((from, to)) => {
                    let ends =
                        [SocketAddr::new(packet.source, from), SocketAddr::new(packet.destination, to)];
                    if ends.iter().any(|e| self.api_servers.contains(e)) {
                        Class::ApiServer
                    } else {
                        Class::Other(Reason::Tcp)
                    }
                }
                None => Class::Other(Reason::Malformed),
            },
            IPPROTO_ICMPV6 if packet.source.is_ipv6() => match packet.payload.first() {
                Some(133..=137) => Class::NeighbourDiscovery,
                Some(130..=132 | 143) => Class::MulticastListener,
                Some(1..=4) => self.classify_error(packet),
                Some(_) => Class::Other(Reason::Icmp),
                None => Class::Other(Reason::Malformed),
            },
            IPPROTO_ICMP if packet.source.is_ipv4() => match packet.payload.first() {
                Some(3 | 4 | 5 | 11 | 12) => self.classify_error(packet),
                Some(_) => Class::Other(Reason::Icmp),
                None => Class::Other(Reason::Malformed),
            },
            other => Class::Other(Reason::Protocol(other)),
        }
    }

    fn is_node_port(&self, packet: &Ip<'_>) -> bool {
        let Some((from, to)) = ports(packet).filter(|_| matches!(packet.protocol, IPPROTO_TCP | IPPROTO_UDP))
        else {
            return false;
        };
        self.node_ports.iter().any(|(outside, port)| {
            let [asks, answers] = [(packet.destination, to), (packet.source, from)]
                .map(|(ip, number)| SocketAddr::new(ip, number) == *port);
            (asks && packet.source == *outside) || (answers && packet.destination == *outside)
        })
    }

    /// An error may cross when it quotes a WireGuard datagram, of which it may show the first bytes only.
    fn classify_error(&self, packet: &Ip<'_>) -> Class {
        let Some(quoted) = quoted(packet) else { return Class::Other(Reason::IcmpError) };
        let about_wireguard = quoted.protocol == IPPROTO_UDP
            && !quoted.fragment
            && ports(&quoted).is_some_and(|(a, b)| self.is_wireguard(a, b))
            && quoted.payload.get(8..12).is_none_or(|p| matches!(p, [1..=4, 0, 0, 0]));
        if about_wireguard { Class::ErrorAboutWireGuard } else { Class::Other(Reason::IcmpError) }
    }

    fn is_wireguard(&self, from: u16, to: u16) -> bool {
        self.wireguard_ports.contains(&from) || self.wireguard_ports.contains(&to)
    }

    fn wireguard_messages(&self, packet: &Ip<'_>) -> Result<usize, Reason> {
        let (from, to) = ports(packet).ok_or(Reason::Malformed)?;
        if !self.is_wireguard(from, to) {
            return Err(Reason::Udp);
        }
        let payload = packet.payload.get(8..).ok_or(Reason::Malformed)?;
        let declared = usize::from(be16(packet.payload, 4).ok_or(Reason::Malformed)?);
        // With segmentation offload the length field may be that of one segment.
        if payload.len() <= self.max_datagram && declared != packet.payload.len() {
            return Err(Reason::Malformed);
        }
        self.messages(payload).ok_or(Reason::NotWireGuard)
    }

    /// Number of WireGuard messages the payload is made of (WireGuard paper, 5.4).
    fn messages(&self, payload: &[u8]) -> Option<usize> {
        if payload.len() <= self.max_datagram && self.is_message(payload) {
            return Some(1);
        }
        // Glued by segmentation offload: equal segments to one receiver, only the last may be shorter.
        let header = payload.get(..8)?;
        (32..=self.max_datagram.min(payload.len()))
            .find(|size| {
                payload
                    .chunks(*size)
                    .all(|m| m.len() >= 32 && m[0] == 4 && self.is_message(m) && m[..8] == *header)
            })
            .map(|size| payload.len().div_ceil(size))
    }

    fn is_message(&self, m: &[u8]) -> bool {
        match m {
            [1, 0, 0, 0, ..] => m.len() == 148,
            [2, 0, 0, 0, ..] => m.len() == 92,
            [3, 0, 0, 0, ..] => m.len() == 64,
            [4, 0, 0, 0, ..] => m.len() >= 32 && (!self.require_padding || m.len().is_multiple_of(16)),
            _ => false,
        }
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// ARP for IPv4.
    Arp,
    /// ICMPv6 router and neighbour solicitation and advertisement, redirect.
    NeighbourDiscovery,
    /// ICMPv6 multicast listener query, report, done.
    MulticastListener,
    /// UDP with a WireGuard port whose payload is WireGuard messages.
    WireGuard {
        /// How many; more than one with segmentation offload.
        messages: usize,
    },
    /// An ICMP error that quotes a WireGuard datagram.
    ErrorAboutWireGuard,
    /// TCP with an API server.
    ApiServer,
    /// The world outside and a node's port: [`Policy::node_ports`].
    NodePort,
    /// Anything else, and anything not understood.
    Other(Reason),
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arp => f.write_str("ARP"),
            Self::NeighbourDiscovery => f.write_str("neighbour discovery"),
            Self::MulticastListener => f.write_str("multicast listener discovery"),
            Self::WireGuard { messages } => write!(f, "WireGuard, {messages} messages"),
            Self::ErrorAboutWireGuard => f.write_str("ICMP error about WireGuard"),
            Self::ApiServer => f.write_str("TCP with an API server"),
            Self::NodePort => f.write_str("the world outside and a node's port"),
            Self::Other(reason) => write!(f, "{reason}"),
        }
    }
}

/// Why a frame is not one of the known classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Shorter than its own headers say.
    Malformed,
    /// With a VLAN tag.
    Tagged,
    /// Neither ARP nor IP.
    NotIp,
    /// Bytes after the IP packet in a frame that needs no padding.
    TrailingBytes,
    /// A fragment: what it carries cannot be told.
    Fragment,
    /// UDP without a WireGuard port.
    Udp,
    /// UDP with a WireGuard port and another payload.
    NotWireGuard,
    /// TCP with somebody else than an API server.
    Tcp,
    /// ICMP that is neither discovery nor an error.
    Icmp,
    /// An ICMP error about something else than WireGuard.
    IcmpError,
    /// Another IP protocol.
    Protocol(u8),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("malformed"),
            Self::Tagged => f.write_str("VLAN tag"),
            Self::NotIp => f.write_str("neither ARP nor IP"),
            Self::TrailingBytes => f.write_str("bytes after the IP packet"),
            Self::Fragment => f.write_str("fragment"),
            Self::Udp => f.write_str("UDP outside WireGuard"),
            Self::NotWireGuard => f.write_str("not WireGuard on a WireGuard port"),
            Self::Tcp => f.write_str("TCP outside WireGuard"),
            Self::Icmp => f.write_str("ICMP outside WireGuard"),
            Self::IcmpError => f.write_str("ICMP error about something else than WireGuard"),
            Self::Protocol(p) => write!(f, "IP protocol {p}"),
        }
    }
}

/// Where a frame shows an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Source of an IP header.
    Source,
    /// Destination of an IP header.
    Destination,
    /// Sender protocol address of ARP.
    ArpSender,
    /// Target protocol address of ARP.
    ArpTarget,
    /// Target of neighbour discovery, or destination of a redirect.
    NeighbourTarget,
}

/// An address seen in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The address.
    pub address: IpAddr,
    /// Where it stands.
    pub place: Place,
    /// 0 in the frame's own headers, 1 in a packet quoted by an ICMP error or carried by a tunnel, and so on.
    pub depth: usize,
}

/// All addresses inside `prefixes` that a frame shows in clear: in IP headers, in packets quoted by ICMP
/// errors or carried by IP-in-IP and VXLAN, in ARP and neighbour discovery.
#[must_use]
pub fn sightings(frame: &[u8], prefixes: &[IpNet]) -> Vec<Sighting> {
    let mut all = Vec::new();
    in_frame(frame, 0, &mut all);
    all.retain(|s| prefixes.iter().any(|p| p.contains(&s.address)));
    all
}

fn in_frame(frame: &[u8], depth: usize, all: &mut Vec<Sighting>) {
    let Some(ether) = ether(frame) else { return };
    if let Some((sender, target)) = arp(&ether) {
        all.push(Sighting { address: sender.into(), place: Place::ArpSender, depth });
        all.push(Sighting { address: target.into(), place: Place::ArpTarget, depth });
    } else if let Some(packet) = ip(ether.kind, ether.payload) {
        in_packet(&packet, depth, all);
    }
}

fn in_packet(packet: &Ip<'_>, depth: usize, all: &mut Vec<Sighting>) {
    all.push(Sighting { address: packet.source, place: Place::Source, depth });
    all.push(Sighting { address: packet.destination, place: Place::Destination, depth });
    if depth >= MAX_DEPTH || (packet.fragment && !packet.first_fragment) {
        return;
    }
    let mut address_at = |at: usize| {
        if let Some(bytes) = packet.payload.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
            let address = Ipv6Addr::from(bytes).into();
            all.push(Sighting { address, place: Place::NeighbourTarget, depth });
        }
    };
    match (packet.protocol, packet.payload.first()) {
        (IPPROTO_ICMPV6, Some(135 | 136)) => address_at(8),
        (IPPROTO_ICMPV6, Some(137)) => [8, 24].into_iter().for_each(address_at),
        (IPPROTO_ICMPV6, Some(1..=4)) | (IPPROTO_ICMP, Some(3 | 4 | 5 | 11 | 12)) => {
            if let Some(quoted) = quoted(packet) {
                in_packet(&quoted, depth + 1, all);
            }
        }
        (IPPROTO_IPIP | IPPROTO_IPV6, _) => {
            if let Some(inner) = packet::ip_by_version(packet.payload) {
                in_packet(&inner, depth + 1, all);
            }
        }
        (IPPROTO_UDP, _) if ports(packet).is_some_and(|(_, to)| VXLAN_PORTS.contains(&to)) => {
            if let Some(inner) = packet.payload.get(16..) {
                in_frame(inner, depth + 1, all);
            }
        }
        _ => {}
    }
}

/// One line about a frame, for errors.
#[must_use]
pub fn summary(frame: &[u8]) -> String {
    let length = frame.len();
    let Some(ether) = ether(frame) else { return format!("{length} bytes without an Ethernet header") };
    if let Some((sender, target)) = arp(&ether) {
        return format!("ARP {sender} asks for or answers {target}, {length} bytes");
    }
    let Some(packet) = ip(ether.kind, ether.payload) else {
        return format!("ethertype {:#06x}, {length} bytes", ether.kind);
    };
    let (source, destination) = (packet.source, packet.destination);
    let name = match packet.protocol {
        IPPROTO_TCP => "TCP",
        IPPROTO_UDP => "UDP",
        IPPROTO_ICMP => "ICMP",
        IPPROTO_ICMPV6 => "ICMPv6",
        other => return format!("{source} > {destination} protocol {other}, {length} bytes"),
    };
    match (packet.protocol, packet.fragment, ports(&packet)) {
        (_, true, _) => format!("{source} > {destination} {name} fragment, {length} bytes"),
        (IPPROTO_TCP | IPPROTO_UDP, _, Some((from, to))) => {
            format!("{source} port {from} > {destination} port {to} {name}, {length} bytes")
        }
        _ => {
            let kind = packet.payload.first().copied().unwrap_or_default();
            format!("{source} > {destination} {name} type {kind}, {length} bytes")
        }
    }
}

/// Sender and target of ARP for IPv4 over Ethernet (RFC 826).
fn arp(ether: &Ether<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let p = ether.payload;
    if ether.kind != ETHERTYPE_ARP || p.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let at = |i: usize| <[u8; 4]>::try_from(p.get(i..i + 4)?).ok().map(Ipv4Addr::from);
    Some((at(14)?, at(24)?))
}

/// The packet an ICMP or ICMPv6 error quotes, cut short as it may be.
fn quoted<'a>(packet: &Ip<'a>) -> Option<Ip<'a>> {
    packet::ip_by_version(packet.payload.get(8..)?)
}

fn ports(packet: &Ip<'_>) -> Option<(u16, u16)> {
    Some((be16(packet.payload, 0)?, be16(packet.payload, 2)?))
}

#[cfg(test)]
mod tests;
