//! Packets that are longer than the path to a peer takes in one piece: who may send them shorter is told to.
//!
//! The kernel learns what a path takes (RFC 1191, RFC 8201): from the MTU of the device, and from routers that say so of our
//! datagrams, which leave with "don't fragment" (IPv4) or cannot be fragmented on the way (IPv6). Sent nevertheless, a datagram
//! would be cut in two by the kernel: twice the packets, and lost where something on the way drops fragments, with nobody who
//! hears of it. So we are a router with a narrow link, for packets that must not be cut themselves. All of it is pure.

use std::net::{IpAddr, SocketAddr};

use crate::offload::checksum::Sum;

/// What WireGuard and UDP add to a packet: 8 (UDP), 16 (header) and 16 (tag).
const ENVELOPE: usize = 8 + 16 + 16;
/// IPv4 senders are told no less: every host takes so much (RFC 791, section 3.1), and Linux believes little less. What is
/// shorter is sent, in fragments where it must be.
const LEAST_V4: usize = 576;
/// The same for IPv6, where every link carries so much, in fragments of its own if need be (RFC 8200, section 5).
const LEAST_V6: usize = 1280;
/// Most bytes of an ICMP error (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const ERROR_V4: usize = 576;
const ERROR_V6: usize = 1280;
const V4: usize = 20;
const V6: usize = 40;
/// Type, code, checksum and four bytes more, of both ICMPs.
const ICMP: usize = 8;
const ICMPV4_PROTOCOL: u8 = 1;
const ICMPV6_PROTOCOL: u8 = 58;
const TTL: u8 = 64;

/// Bytes of an inner packet that go to `endpoint` in one piece, where the path takes `mtu` bytes.
#[must_use]
pub const fn room(mtu: usize, endpoint: SocketAddr) -> usize {
    mtu.saturating_sub(ENVELOPE + if endpoint.is_ipv4() { V4 } else { V6 })
}

/// What the sender of `packet` is told, if it has `len` bytes and `room` is all there is: the bytes that it may send. `None` if
/// it fits, or is sent as it is: its sender allows fragments, could not send it shorter, or is not to be told of it (RFC 1812,
/// section 4.3.2.7; RFC 4443, section 2.4 e). `packet` has at least its header; its length field need not be true.
#[must_use]
pub fn told(packet: &[u8], len: usize, room: usize) -> Option<u16> {
    let four = packet.first()? >> 4 == 4;
    let told = room.max(if four { LEAST_V4 } else { LEAST_V6 });
    if len <= told || !(if four { asks_v4(packet) } else { asks_v6(packet) })? {
        return None;
    }
    // A packet is longer than that, so it is below 65536.
    u16::try_from(told).ok()
}

fn asks_v4(packet: &[u8]) -> Option<bool> {
    let header: &[u8; V4] = packet.first_chunk()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (dont, offset) = (fragment & 0x4000 != 0, fragment & 0x1fff);
    let ends = [12, 16].map(|at| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    let kind = packet.get(usize::from(header[0] & 0x0f) * 4);
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    let error = header[9] == ICMPV4_PROTOCOL && kind.is_none_or(|kind| matches!(kind, 3..=5 | 11 | 12));
    Some(dont && offset == 0 && !error && ends.iter().all(is_one_host))
}

fn asks_v6(packet: &[u8]) -> Option<bool> {
    const FRAGMENT: u8 = 44;
    let header: &[u8; V6] = packet.first_chunk()?;
    let source: &[u8; 16] = header[8..].first_chunk()?;
    // Types below 128 are errors; behind other headers they are not looked for, since an error is at most 1280 bytes.
    let error = header[6] == ICMPV6_PROTOCOL && packet.get(V6).is_none_or(|kind| *kind < 128);
    // Pieces can be made shorter by their sender alone, which hears it of the first one.
    let later = header[6] == FRAGMENT
        && packet.get(V6 + 2..V6 + 4).is_none_or(|o| u16::from_be_bytes([o[0], o[1]]) & 0xfff8 != 0);
    // To a group it is said, too (RFC 4443, section 2.4 e.3).
    Some(!error && !later && is_one_host(&IpAddr::from(*source)))
}

fn is_one_host(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}

/// The ICMP error that tells the sender of `packet` the MTU: destination unreachable, fragmentation needed (type 3, code 4;
/// RFC 792, RFC 1191) or packet too big (type 2; RFC 4443, section 3.2), with the beginning of the packet.
///
/// It comes from where the packet was to go, as those of Linux's tunnels do: an address that the sender's host routes to this
/// device, so that no check of sources refuses it, and that its conversation is about. `None` if it is no packet.
#[must_use]
pub fn error(packet: &[u8], told: u16) -> Option<Vec<u8>> {
    if packet.first()? >> 4 == 4 { error_v4(packet, told) } else { error_v6(packet, told) }
}

fn error_v4(packet: &[u8], told: u16) -> Option<Vec<u8>> {
    let asked: &[u8; V4] = packet.first_chunk()?;
    let quoted = &packet[..packet.len().min(ERROR_V4 - V4 - ICMP)];
    let len = u16::try_from(V4 + ICMP + quoted.len()).ok()?;
    let mut ip = [0; V4];
    ip[0] = 0x45;
    // Of the class of routing messages (RFC 1812, section 4.3.2.5).
    ip[1] = 0xc0;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip[6] = 0x40;
    (ip[8], ip[9]) = (TTL, ICMPV4_PROTOCOL);
    ip[12..16].copy_from_slice(&asked[16..20]);
    ip[16..20].copy_from_slice(&asked[12..16]);
    let sum = Sum::default().bytes(&ip).finish();
    ip[10..12].copy_from_slice(&sum);
    let mut icmp = [3, 4, 0, 0, 0, 0, 0, 0];
    icmp[6..8].copy_from_slice(&told.to_be_bytes());
    let sum = Sum::default().bytes(&icmp).bytes(quoted).finish();
    icmp[2..4].copy_from_slice(&sum);
    Some([&ip[..], &icmp, quoted].concat())
}

fn error_v6(packet: &[u8], told: u16) -> Option<Vec<u8>> {
    let asked: &[u8; V6] = packet.first_chunk()?;
    let quoted = &packet[..packet.len().min(ERROR_V6 - V6 - ICMP)];
    let len = u16::try_from(ICMP + quoted.len()).ok()?;
    let mut ip = [0; V6];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&len.to_be_bytes());
    (ip[6], ip[7]) = (ICMPV6_PROTOCOL, TTL);
    ip[8..24].copy_from_slice(&asked[24..40]);
    ip[24..40].copy_from_slice(&asked[8..24]);
    let mut icmp = [2, 0, 0, 0, 0, 0, 0, 0];
    icmp[6..8].copy_from_slice(&told.to_be_bytes());
    let sum = Sum::default().pseudo(&ip[8..40], ICMPV6_PROTOCOL, len).bytes(&icmp).bytes(quoted).finish();
    icmp[2..4].copy_from_slice(&sum);
    Some([&ip[..], &icmp, quoted].concat())
}

#[cfg(test)]
mod tests;
