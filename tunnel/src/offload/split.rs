//! Cuts a super-packet of the host into the packets that its kernel would have made of it, and completes checksums.
//!
//! As `tcp_gso_segment`, `udp_gso_segment` and `inet_gso_segment` of Linux do: each segment has the headers of the whole
//! with its own lengths, identification, sequence number and checksums; FIN and PSH only in the last one, CWR only in
//! the first (RFC 3168, section 6.1.2).

use std::ops::Range;

use super::checksum::{Sum, TCP, UDP};
use super::vnet::{Header, Segmentation};
use crate::packet;

/// Most bytes of IP and TCP headers: 40, 60 and what IPv6 extension headers are likely to need.
const MAX_HEADERS: usize = 256;
const ICMPV6: u8 = 58;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// What is to be done with a packet of the host.
#[allow(clippy::large_enum_variant, reason = "on the stack for one packet; a box would be made for each")]
#[derive(Debug)]
pub enum Plan {
    /// It is one packet of so many bytes, complete now.
    Whole(usize),
    /// It is to be cut.
    Segments(Segments),
}

/// The packets of a super-packet, one after the other.
///
/// Each is made within the super-packet's own bytes, its headers over the end of the one before it: so it must be used
/// before the next one is made, and bytes behind it must be left as they are.
#[derive(Debug)]
pub struct Segments {
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// Where TCP's or UDP's header begins.
    transport: usize,
    protocol: u8,
    payload: usize,
    segment: usize,
    made: usize,
}

/// Says what to do with `packet`, of which `header` tells, and completes its checksum if it is one packet.
///
/// `None` if it is not well-formed, or the header asks for what cannot be done with it.
#[must_use]
pub fn plan(header: &Header, packet: &mut [u8]) -> Option<Plan> {
    let ip = packet::parse(packet)?;
    let packet = packet.get_mut(..ip.len)?;
    if header.segmentation == Segmentation::None {
        if let Some((start, offset)) = header.checksum {
            let (start, offset) = (usize::from(start), usize::from(offset));
            if !may_complete(packet, start, offset) {
                return None;
            }
            complete(packet, start, offset)?;
        }
        return Some(Plan::Whole(ip.len));
    }
    let (protocol, transport) = transport_of(packet)?;
    let six = packet.first()? >> 4 == 6;
    match (header.segmentation, protocol) {
        (Segmentation::Tcp4, TCP) if !six => {}
        (Segmentation::Tcp6, TCP) if six => {}
        (Segmentation::Udp, UDP) => {}
        (Segmentation::None | Segmentation::Tcp4 | Segmentation::Tcp6 | Segmentation::Udp, _) => return None,
    }
    if usize::from(header.checksum?.0) != transport || header.segment == 0 {
        return None;
    }
    let headers_len = transport
        + match protocol {
            TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
            _ => 8,
        };
    let least = if protocol == TCP { 20 } else { 8 };
    if headers_len < transport + least || headers_len > packet.len().min(MAX_HEADERS) {
        return None;
    }
    let mut headers = [0; MAX_HEADERS];
    headers[..headers_len].copy_from_slice(&packet[..headers_len]);
    let payload = packet.len() - headers_len;
    if payload.div_ceil(usize::from(header.segment)) > MAX_SEGMENTS {
        return None;
    }
    Some(Plan::Segments(Segments {
        headers,
        headers_len,
        transport,
        protocol,
        payload,
        segment: usize::from(header.segment),
        made: 0,
    }))
}

/// Most packets that one is cut into. The kernel makes no more of one (65,535 bytes of TCP at the least segment that it sends, 48
/// bytes; UDP at most 128); a pod with a packet socket can ask for one of each byte, which would keep all others waiting.
const MAX_SEGMENTS: usize = 2048;

/// Is that the place of a checksum? The header is not the kernel's word alone: a pod with a packet socket says where a checksum
/// belongs, and must not have an address or a port written so after policy has judged them.
fn may_complete(packet: &[u8], start: usize, offset: usize) -> bool {
    let Some((protocol, transport)) = transport_of(packet) else { return false };
    if start == transport {
        return matches!((protocol, offset), (TCP, 16) | (UDP, 6) | (ICMPV6, 2));
    }
    // Of a packet in the packet: behind the headers that were judged.
    start >= transport + if protocol == TCP { 20 } else { 8 }
}

/// Sums what a partial checksum covers into its field.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let covered = packet.get_mut(start..)?;
    let sum = Sum::default().bytes(covered).finish_nonzero();
    covered.get_mut(offset..offset + 2)?.copy_from_slice(&sum);
    Some(())
}

/// Protocol and offset of the transport header of a packet that is no fragment.
fn transport_of(packet: &[u8]) -> Option<(u8, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    if packet.first()? >> 4 == 4 {
        let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
        let header = usize::from(packet[0] & 0x0f) * 4;
        return (fragment == 0).then_some((*packet.get(9)?, header));
    }
    let (mut next, mut at) = (*packet.get(6)?, 40);
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        let extension = packet.get(at..at + 2)?;
        next = extension[0];
        at += (usize::from(extension[1]) + 1) * 8;
    }
    Some((next, at))
}

impl Segments {
    /// How many are still to be made.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.count() - self.made
    }

    const fn count(&self) -> usize {
        let count = self.payload.div_ceil(self.segment);
        if count == 0 { 1 } else { count }
    }

    /// Bytes of the longest one.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.headers_len + self.payload.min(self.segment)
    }

    /// Makes the next one in `packet`, which must be the one that was planned; where it is.
    pub fn next_in(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        let (index, count) = (self.made, self.count());
        if index == count {
            return None;
        }
        self.made += 1;
        let before = index * self.segment;
        let payload = (self.payload - before).min(self.segment);
        let range = before..before + self.headers_len + payload;
        let bytes = packet.get_mut(range.clone())?;
        bytes[..self.headers_len].copy_from_slice(&self.headers[..self.headers_len]);
        self.write_ip(bytes, index);
        let (ip, transport) = bytes.split_at_mut(self.transport);
        let covered = u16::try_from(transport.len()).ok()?;
        let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
        let sum_at = if self.protocol == TCP {
            let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = first.wrapping_add(u32::try_from(before).ok()?);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < count {
                transport[13] &= !(FIN | PSH);
            }
            if index > 0 {
                transport[13] &= !CWR;
            }
            16
        } else {
            transport[4..6].copy_from_slice(&covered.to_be_bytes());
            6
        };
        transport[sum_at..sum_at + 2].fill(0);
        let sum = Sum::default().pseudo(addresses, self.protocol, covered).bytes(transport).finish_nonzero();
        transport[sum_at..sum_at + 2].copy_from_slice(&sum);
        Some(range)
    }

    /// Lengths, identification and header checksum of segment `index`, which `packet` is.
    fn write_ip(&self, packet: &mut [u8], index: usize) {
        let len = packet.len();
        let field = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        if packet[0] >> 4 == 6 {
            packet[4..6].copy_from_slice(&field(len - 40));
            return;
        }
        packet[2..4].copy_from_slice(&field(len));
        let first = u16::from_be_bytes([packet[4], packet[5]]);
        // Modulo 2^16, as the kernel counts.
        let more = u16::try_from(index & 0xffff).unwrap_or_default();
        packet[4..6].copy_from_slice(&first.wrapping_add(more).to_be_bytes());
        let header = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = Sum::default().bytes(&packet[..header.min(self.transport)]).finish();
        packet[10..12].copy_from_slice(&sum);
    }
}

#[cfg(test)]
pub(crate) mod tests;
