//! Reads what came out of a program, with etherparse, and checks every checksum on the way.

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpNumber, LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice,
};
use std::net::IpAddr;

use super::names::name;
use super::packet::{SCTP, crc32c};
use super::text::{flag_words, without_flags};

/// A packet as it came out.
#[derive(Debug)]
pub(crate) struct Seen {
    /// As [`super::text::summary`] has it.
    pub(crate) text: String,
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source_mac: [u8; 6],
    /// TTL or hop limit.
    pub(crate) ttl: u8,
}

/// Reads an Ethernet frame with an IP packet in it. The error says what is wrong with it.
pub(crate) fn frame(bytes: &[u8]) -> Result<Seen, String> {
    let sliced = SlicedPacket::from_ethernet(bytes).map_err(|error| error.to_string())?;
    let ethernet = bytes.get(..14).ok_or("no Ethernet header")?;
    let mac = |at: usize| <[u8; 6]>::try_from(&ethernet[at..at + 6]).expect("invariant: six bytes");
    let net = sliced.net.as_ref().ok_or("neither IPv4 nor IPv6")?;
    let (ttl, ends) = match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            if header.calc_header_checksum() != header.header_checksum {
                return Err("checksum of the IPv4 header".into());
            }
            (header.time_to_live, (IpAddr::from(header.source), IpAddr::from(header.destination)))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            (header.hop_limit, (IpAddr::from(header.source), IpAddr::from(header.destination)))
        }
        NetSlice::Arp(_) => return Err("ARP".into()),
    };
    Ok(Seen { text: text(&sliced, net, ends)?, destination_mac: mac(0), source_mac: mac(6), ttl })
}

fn text(sliced: &SlicedPacket<'_>, net: &NetSlice<'_>, ends: (IpAddr, IpAddr)) -> Result<String, String> {
    let (from, to) = (name(ends.0), name(ends.1));
    let payload = match net {
        NetSlice::Ipv4(ip) => ip.payload(),
        NetSlice::Ipv6(ip) => ip.payload(),
        NetSlice::Arp(_) => return Err("ARP".into()),
    };
    if payload.fragmented && is_later(net) {
        return Ok(format!("piece-{} {from} > {to}", payload.ip_number.0));
    }
    // A piece alone has no checksum to hold it against.
    let checked = |right: bool, what: &str| {
        if right || payload.fragmented { Ok(()) } else { Err(format!("checksum of {what} in {from} > {to}")) }
    };
    // etherparse does not look into a packet that is a piece.
    if payload.fragmented {
        return first_piece(payload.ip_number, payload.payload, &from, &to);
    }
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = match ends {
                (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
                (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets()),
                _ => return Err("two families".into()),
            };
            checked(sum == Ok(tcp.checksum()), "TCP")?;
            let bits = [(tcp.syn(), 2), (tcp.ack(), 16), (tcp.fin(), 1), (tcp.rst(), 4)];
            let flags = bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
            let (sport, dport) = (tcp.source_port(), tcp.destination_port());
            Ok(format!("tcp {from}:{sport} > {to}:{dport}{}", flag_words(flags)))
        }
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = match ends {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), udp.payload())
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), udp.payload())
                }
                _ => return Err("two families".into()),
            };
            checked(header.checksum == 0 || sum == Ok(header.checksum), "UDP")?;
            Ok(format!("udp {from}:{} > {to}:{}", header.source_port, header.destination_port))
        }
        Some(TransportSlice::Icmpv4(icmp)) => icmp4(icmp, &from, &to),
        Some(TransportSlice::Icmpv6(icmp)) => icmp6(icmp, ends, &from, &to),
        Some(TransportSlice::Igmp(_)) | None => other(payload.ip_number, payload.payload, &from, &to),
    }
}

fn is_later(net: &NetSlice<'_>) -> bool {
    match net {
        NetSlice::Ipv4(ip) => ip.header().fragments_offset().value() > 0,
        NetSlice::Ipv6(ip) => ip.extensions().clone().into_iter().any(|extension| {
            matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(piece) if piece.fragment_offset().value() > 0)
        }),
        NetSlice::Arp(_) => false,
    }
}

fn first_piece(number: IpNumber, bytes: &[u8], from: &str, to: &str) -> Result<String, String> {
    let kind = match number {
        IpNumber::TCP => "tcp",
        IpNumber::UDP => "udp",
        _ if number.0 == SCTP => "sctp",
        IpNumber::ICMP | IpNumber::IPV6_ICMP => return Ok(format!("icmp-{} {from} > {to}", bytes[0])),
        _ => return other(number, bytes, from, to),
    };
    let (sport, dport) = ports(bytes).ok_or("a piece without ports")?;
    let flags = if number == IpNumber::TCP { flag_words(bytes[13]) } else { String::new() };
    Ok(format!("{kind} {from}:{sport} > {to}:{dport}{flags}"))
}

fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let two = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    Some((two(0)?, two(2)?))
}

fn other(number: IpNumber, bytes: &[u8], from: &str, to: &str) -> Result<String, String> {
    if number.0 != SCTP {
        return Ok(format!("protocol-{} {from} > {to}", number.0));
    }
    let (sport, dport) = ports(bytes).ok_or("SCTP without ports")?;
    let said = bytes.get(8..12).ok_or("SCTP without a checksum")?.to_vec();
    let mut zeroed = bytes.to_vec();
    zeroed[8..12].fill(0);
    if said != crc32c(&zeroed).to_le_bytes() {
        return Err("checksum of SCTP".into());
    }
    Ok(format!("sctp {from}:{sport} > {to}:{dport}"))
}

fn icmp4(icmp: &Icmpv4Slice<'_>, from: &str, to: &str) -> Result<String, String> {
    let header = icmp.header();
    if header.icmp_type.calc_checksum(icmp.payload()) != header.checksum {
        return Err(format!("checksum of ICMP in {from} > {to}"));
    }
    let (kind, code) = (icmp.type_u8(), icmp.code_u8());
    match kind {
        0 | 8 => Ok(echo(kind == 0, icmp.slice(), from, to)),
        3 | 11 | 12 => error(kind, code, icmp.payload(), from, to),
        _ => Ok(format!("icmp-{kind} {from} > {to}")),
    }
}

fn icmp6(icmp: &Icmpv6Slice<'_>, ends: (IpAddr, IpAddr), from: &str, to: &str) -> Result<String, String> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = ends else { return Err("ICMPv6 over IPv4".into()) };
    if !icmp.is_checksum_valid(src.octets(), dst.octets()) {
        return Err(format!("checksum of ICMPv6 in {from} > {to}"));
    }
    let (kind, code) = (icmp.type_u8(), icmp.code_u8());
    match kind {
        128 | 129 => Ok(echo(kind == 129, icmp.slice(), from, to)),
        1..=4 => error(kind, code, icmp.payload(), from, to),
        _ => Ok(format!("icmp-{kind} {from} > {to}")),
    }
}

fn echo(answer: bool, bytes: &[u8], from: &str, to: &str) -> String {
    let id = u16::from_be_bytes([bytes[4], bytes[5]]);
    format!("{} {from} > {to} id {id}", if answer { "answer" } else { "echo" })
}

/// The packet in an error is cut off: its IP header must be right, the checksum behind it cannot be checked.
fn error(kind: u8, code: u8, quoted: &[u8], from: &str, to: &str) -> Result<String, String> {
    let inner = LaxSlicedPacket::from_ip(quoted).map_err(|error| format!("packet in an error: {error}"))?;
    let (ends, bytes, number) = match &inner.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            if header.calc_header_checksum() != header.header_checksum {
                return Err("checksum of the IPv4 header in an error".into());
            }
            (
                (IpAddr::from(header.source), IpAddr::from(header.destination)),
                ip.payload().payload,
                header.protocol,
            )
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let payload = ip.payload();
            (
                (IpAddr::from(header.source), IpAddr::from(header.destination)),
                payload.payload,
                payload.ip_number,
            )
        }
        _ => return Err("no IP packet in an error".into()),
    };
    let (src, dst) = (name(ends.0), name(ends.1));
    let about = match number {
        IpNumber::TCP | IpNumber::UDP => {
            let (sport, dport) = ports(bytes).ok_or("an error about a packet without ports")?;
            format!("{} {src}:{sport} > {dst}:{dport}", if number == IpNumber::TCP { "tcp" } else { "udp" })
        }
        IpNumber::ICMP | IpNumber::IPV6_ICMP => {
            echo(matches!(bytes[0], 0 | 129), bytes.get(..8).ok_or("an error about a cut echo")?, &src, &dst)
        }
        _ if number.0 == SCTP => {
            let (sport, dport) = ports(bytes).ok_or("an error about a packet without ports")?;
            format!("sctp {src}:{sport} > {dst}:{dport}")
        }
        _ => format!("protocol-{} {src} > {dst}", number.0),
    };
    Ok(format!("error-{kind}-{code} {from} > {to} about {{ {} }}", without_flags(&about)))
}
