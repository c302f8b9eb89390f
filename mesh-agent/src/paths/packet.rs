//! The bytes of echoes and of what comes back: pure. Headers are ours, since they have to say that nobody may cut the packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What tells our echoes from everybody else's.
pub(super) const NONCE: usize = 16;
/// Header of an ICMP echo.
const ICMP: usize = 8;
const IPV4: usize = 20;
const IPV6: usize = 40;
const HOPS: u8 = 64;

/// An echo request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Bytes with the IP header.
    pub(super) size: u32,
    pub(super) sequence: u16,
    pub(super) nonce: [u8; NONCE],
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The answer.
    Answer,
    /// Somebody says that the echo to this address is too large, and which MTU is not.
    TooBig {
        /// Where it went.
        to: IpAddr,
        /// The MTU.
        mtu: u32,
    },
}

impl Echo {
    /// The whole packet. Of IPv4 the kernel computes length and checksum of the header (raw(7)).
    pub(super) fn packet(&self) -> Vec<u8> {
        let size = usize::try_from(self.size).unwrap_or(0).clamp(IPV6 + ICMP + NONCE, usize::from(u16::MAX));
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut packet = vec![0x45, 0];
                packet.extend_from_slice(&u16::try_from(size).unwrap_or(u16::MAX).to_be_bytes());
                // Identification, which the kernel chooses, and "don't fragment".
                packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, 1, 0, 0]);
                packet.extend_from_slice(&from.octets());
                packet.extend_from_slice(&to.octets());
                packet.extend(self.message(8, size - IPV4, 0));
                packet
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let length = size - IPV6;
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
                packet.extend_from_slice(&[58, HOPS]);
                packet.extend_from_slice(&from.octets());
                packet.extend_from_slice(&to.octets());
                // The pseudo-header (RFC 8200, section 8.1).
                let pseudo = sum(&packet[8..]) + u32::try_from(length).unwrap_or(0) + 58;
                packet.extend(self.message(128, length, pseudo));
                packet
            }
            // Nothing that could be sent.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
        }
    }

    /// The ICMP message, with its checksum over what `already` sums up, too.
    fn message(&self, kind: u8, length: usize, already: u32) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, self.nonce[0], self.nonce[1]];
        message.extend_from_slice(&self.sequence.to_be_bytes());
        message.extend_from_slice(&self.nonce);
        message.resize(length, 0);
        let checksum = (!fold(sum(&message) + already)).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
        message
    }
}

/// RFC 1071: the words of some bytes.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = ((once & 0xffff) + (once >> 16)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// Understands what a raw ICMP socket hands out: of IPv4 with its header, of IPv6 without. None: it is not about the echoes of this
/// `nonce`, or the answer to another one than that of this `sequence`.
pub(super) fn heard(v4: bool, packet: &[u8], nonce: &[u8; NONCE], sequence: u16) -> Option<Heard> {
    let message = if v4 { behind_header(packet)? } else { packet };
    let (reply, too_big) = if v4 { (0, (3, 4)) } else { (129, (2, 0)) };
    let kind = (*message.first()?, *message.get(1)?);
    if kind == (reply, 0) {
        let ours = message.get(ICMP..ICMP + NONCE)? == nonce && message.get(6..8)? == sequence.to_be_bytes();
        return ours.then_some(Heard::Answer);
    }
    if kind != too_big {
        return None;
    }
    let quoted = message.get(ICMP..)?;
    let (mtu, to, echo) = if v4 {
        let mtu = u32::from(u16::from_be_bytes(message.get(6..8)?.try_into().ok()?));
        let to: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
        (mtu, IpAddr::from(Ipv4Addr::from(to)), behind_header(quoted)?)
    } else {
        let mtu = u32::from_be_bytes(message.get(4..8)?.try_into().ok()?);
        let to: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
        (mtu, IpAddr::from(Ipv6Addr::from(to)), quoted.get(IPV6..)?)
    };
    let request = if v4 { 8 } else { 128 };
    let ours = *echo.first()? == request && echo.get(4..6)? == &nonce[..2];
    ours.then_some(Heard::TooBig { to, mtu })
}

fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0xf) * 4..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(v4: bool, size: u32) -> Echo {
        let [from, to] = if v4 { ["10.1.0.1", "10.2.0.1"] } else { ["fd00:1::1", "fd00:2::1"] };
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Echo { from, to, size, sequence: 7, nonce: [0xa5; NONCE] }
    }

    #[test]
    fn an_echo_has_its_size_may_not_be_cut_and_sums_up_to_nothing() {
        for (v4, header) in [(true, IPV4), (false, IPV6)] {
            for size in [128_u32, 1279, 1280, 1420, 9001] {
                let packet = echo(v4, size).packet();
                assert_eq!(packet.len(), usize::try_from(size).unwrap());
                let mut covered = sum(&packet[header..]);
                if v4 {
                    assert_eq!(packet[6] & 0x40, 0x40, "don't fragment");
                    assert_eq!(u16::from_be_bytes([packet[2], packet[3]]), u16::try_from(size).unwrap());
                } else {
                    covered += sum(&packet[8..IPV6]) + size - 40 + 58;
                }
                assert_eq!(fold(covered), 0xffff, "{v4} {size}");
            }
        }
    }

    #[test]
    fn answers_and_complaints_are_ours_by_nonce_and_sequence_and_no_shorter_bytes_are() {
        for v4 in [true, false] {
            let echo = echo(v4, 1420);
            let (header, packet) = (if v4 { IPV4 } else { IPV6 }, echo.packet());
            let mut message = packet[header..].to_vec();
            let wrapped =
                |message: &[u8]| if v4 { [&[0x45; IPV4], message].concat() } else { message.to_vec() };
            let understood = |message: &[u8], sequence| heard(v4, &wrapped(message), &echo.nonce, sequence);
            assert_eq!(understood(&message, 7), None, "a question is no answer");
            message[0] = if v4 { 0 } else { 129 };
            assert_eq!(understood(&message, 7), Some(Heard::Answer));
            assert_eq!(understood(&message, 8), None, "of an earlier step");
            assert_eq!(heard(v4, &wrapped(&message), &[1; NONCE], 7), None);
            for length in 0..ICMP + NONCE {
                assert_eq!(understood(&message[..length], 7), None);
            }
            // As much of the packet as every router quotes.
            let head = if v4 { [3, 4, 0, 0, 0, 0, 5, 100] } else { [2, 0, 0, 0, 0, 0, 5, 100] };
            let complaint = [&head[..], &packet[..header + ICMP]].concat();
            assert_eq!(understood(&complaint, 9), Some(Heard::TooBig { to: echo.to, mtu: 1380 }));
            assert_eq!(heard(v4, &wrapped(&complaint), &[1; NONCE], 7), None);
            for length in 0..complaint.len() - 2 {
                assert_eq!(understood(&complaint[..length], 7), None, "{length}");
            }
        }
    }
}
