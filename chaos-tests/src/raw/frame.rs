//! Frames as a program with `CAP_NET_RAW` writes them, with right lengths and checksums, whatever they claim.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A hardware address.
pub type Mac = [u8; 6];

/// Ethernet's broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

const ETHERTYPE_IP4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IP6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// What neighbour discovery has to be sent with (RFC 4861), and a usual value besides.
const HOPS: u8 = 255;

/// Who claims to send a frame to whom on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source.
    pub from: Mac,
    /// Destination.
    pub to: Mac,
}

impl Link {
    fn frame(self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&self.to[..], &self.from, &ethertype.to_be_bytes(), payload].concat()
    }

    /// A UDP datagram. Both ends must be of one family.
    pub fn udp(self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        let mut datagram =
            [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
        datagram.extend(payload);
        self.packet(from.ip(), to.ip(), UDP, datagram, 6)
    }

    /// A TCP segment without payload and with these flags (FIN 1, SYN 2, RST 4, ACK 16).
    pub fn tcp(self, from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) -> Vec<u8> {
        let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.packet(from.ip(), to.ip(), TCP, segment, 16)
    }

    /// An echo request.
    pub fn echo(self, from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
        let (protocol, kind) = if from.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        let mut message = vec![kind, 0, 0, 0, 0x77, 0x77, 0, 1];
        message.extend(payload);
        self.packet(from, to, protocol, message, 2)
    }

    /// A message of neighbour discovery about `target`, with the link's source as its hardware address (RFC 4861): 133
    /// router solicitation, 134 router advertisement, 135 neighbour solicitation, 136 neighbour advertisement, 137
    /// redirect.
    pub fn discovery(self, kind: u8, from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        match kind {
            133 => message.extend([0; 4]),
            // A router for half an hour, without prefixes.
            134 => message.extend([[64, 0, 0x07, 0x08], [0; 4], [0; 4]].concat()),
            // Solicited, override.
            136 => message.extend([0x60, 0, 0, 0]),
            _ => message.extend([0; 4]),
        }
        if kind >= 135 {
            message.extend(target.octets());
        }
        if kind == 137 {
            message.extend(to.octets());
        }
        // Option 1: the sender's hardware address; 2: the target's.
        message.extend([if kind == 136 || kind == 137 { 2 } else { 1 }, 1]);
        message.extend(self.from);
        self.packet(from.into(), to.into(), ICMPV6, message, 2)
    }

    /// An ARP message for IPv4 over Ethernet (RFC 826): operation 1 asks, 2 answers.
    pub fn arp(self, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
        let mut message = vec![0, 1, 8, 0, 6, 4];
        message.extend(operation.to_be_bytes());
        for (mac, ip) in [sender, target] {
            message.extend(mac);
            message.extend(ip.octets());
        }
        self.frame(ETHERTYPE_ARP, &message)
    }

    /// A packet of `protocol` whose checksum is at `sum_at`.
    fn packet(self, from: IpAddr, to: IpAddr, protocol: u8, mut body: Vec<u8>, sum_at: usize) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let mut pseudo = Vec::new();
        if protocol != ICMP {
            pseudo = [octets(from), octets(to)].concat();
            pseudo.extend([0, protocol]);
            pseudo.extend(length.to_be_bytes());
        }
        let sum = checksum(&[&pseudo, &body]);
        // Zero means none in UDP (RFC 768).
        let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
        body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        if from.is_ipv4() {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            header.extend([octets(from), octets(to)].concat());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            return self.frame(ETHERTYPE_IP4, &[header, body].concat());
        }
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([protocol, HOPS]);
        header.extend([octets(from), octets(to)].concat());
        self.frame(ETHERTYPE_IP6, &[header, body].concat())
    }
}

/// The same frame with an IEEE 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &ETHERTYPE_VLAN.to_be_bytes(), &vlan.to_be_bytes(), rest].concat()
}

/// The Internet checksum (RFC 1071) of parts that all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { from: [2, 0, 0, 0, 0, 1], to: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn headers_and_pseudo_headers_sum_to_zero() {
        let [a4, b4]: [IpAddr; 2] = ["192.0.2.1", "198.51.100.77"].map(|ip| ip.parse().unwrap());
        let [a6, b6]: [IpAddr; 2] = ["2001:db8::1", "2001:db8:7::ff"].map(|ip| ip.parse().unwrap());
        for (from, to) in [(a4, b4), (a6, b6)] {
            let at = |ip, port| SocketAddr::new(ip, port);
            for (protocol, frame) in [
                (UDP, LINK.udp(at(from, 1000), at(to, 2000), b"odd")),
                (TCP, LINK.tcp(at(from, 1000), at(to, 2000), 2, 77)),
                (if from.is_ipv4() { ICMP } else { ICMPV6 }, LINK.echo(from, to, b"x")),
            ] {
                let (header, body) = frame[14..].split_at(if from.is_ipv4() { 20 } else { 40 });
                if from.is_ipv4() {
                    assert_eq!(checksum(&[header]), 0);
                }
                let mut pseudo = Vec::new();
                if protocol != ICMP {
                    pseudo.extend(if from.is_ipv4() { &header[12..20] } else { &header[8..40] });
                    pseudo.extend([0, protocol]);
                    pseudo.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
                }
                assert_eq!(checksum(&[&pseudo, body]), 0, "protocol {protocol} of {from}");
            }
        }
    }

    #[test]
    fn a_tag_stands_between_addresses_and_type() {
        let plain = LINK.arp(1, (LINK.from, Ipv4Addr::LOCALHOST), ([0; 6], Ipv4Addr::LOCALHOST));
        let frame = tagged(&plain, 5);
        assert_eq!(frame.len(), plain.len() + 4);
        assert_eq!(frame[12..18], [0x81, 0, 0, 5, 8, 6]);
    }
}
