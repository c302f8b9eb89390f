//! Ethernet and IP headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// IPv6 extension headers are followed up to this number; more do not occur outside attacks.
const MAX_EXTENSIONS: usize = 8;

pub(super) struct Ether<'a> {
    pub(super) kind: u16,
    pub(super) tagged: bool,
    pub(super) payload: &'a [u8],
}

pub(super) struct Ip<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The upper protocol, behind the extension headers of IPv6.
    pub(super) protocol: u8,
    pub(super) fragment: bool,
    pub(super) first_fragment: bool,
    pub(super) payload: &'a [u8],
    /// Bytes after the packet's end.
    pub(super) trailing: usize,
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The header behind any VLAN tags.
pub(super) fn ether(frame: &[u8]) -> Option<Ether<'_>> {
    let mut at = 12;
    let mut kind = be16(frame, at)?;
    while ETHERTYPE_VLAN.contains(&kind) {
        at += 4;
        kind = be16(frame, at)?;
    }
    Some(Ether { kind, tagged: at > 12, payload: frame.get(at + 2..)? })
}

pub(super) fn ip(kind: u16, bytes: &[u8]) -> Option<Ip<'_>> {
    match kind {
        ETHERTYPE_IPV4 => ipv4(bytes),
        ETHERTYPE_IPV6 => ipv6(bytes),
        _ => None,
    }
}

pub(super) fn ip_by_version(bytes: &[u8]) -> Option<Ip<'_>> {
    match bytes.first()? >> 4 {
        4 => ipv4(bytes),
        6 => ipv6(bytes),
        _ => None,
    }
}

/// RFC 791. A packet cut short (as quoted by ICMP) is taken as far as it goes.
fn ipv4(bytes: &[u8]) -> Option<Ip<'_>> {
    let first = *bytes.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 || bytes.len() < header {
        return None;
    }
    let at = |i: usize| <[u8; 4]>::try_from(bytes.get(i..i + 4)?).ok().map(Ipv4Addr::from);
    let total = usize::from(be16(bytes, 2)?);
    let end = if total < header { bytes.len() } else { total.min(bytes.len()) };
    let flags = be16(bytes, 6)?;
    let (more, offset) = (flags & 0x2000 != 0, flags & 0x1fff);
    Some(Ip {
        source: at(12)?.into(),
        destination: at(16)?.into(),
        protocol: *bytes.get(9)?,
        fragment: more || offset != 0,
        first_fragment: more && offset == 0,
        payload: &bytes[header..end],
        trailing: bytes.len() - end,
    })
}

/// RFC 8200.
fn ipv6(bytes: &[u8]) -> Option<Ip<'_>> {
    if bytes.len() < 40 || bytes[0] >> 4 != 6 {
        return None;
    }
    let at = |i: usize| <[u8; 16]>::try_from(bytes.get(i..i + 16)?).ok().map(Ipv6Addr::from);
    let length = usize::from(be16(bytes, 4)?);
    let end = if length == 0 { bytes.len() } else { (40 + length).min(bytes.len()) };
    let (mut protocol, mut start, mut fragment, mut first_fragment) = (bytes[6], 40, false, false);
    for _ in 0..MAX_EXTENSIONS {
        let header = &bytes[start..end];
        let size = match protocol {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => (usize::from(*header.get(1)?) + 1) * 8,
            44 => {
                let word = be16(header, 2)?;
                fragment = word & 0xfff9 != 0;
                first_fragment = fragment && word & 0xfff8 == 0;
                8
            }
            _ => break,
        };
        protocol = *header.first()?;
        start = start.checked_add(size).filter(|s| *s <= end)?;
        if fragment && !first_fragment {
            break;
        }
    }
    Some(Ip {
        source: at(8)?.into(),
        destination: at(24)?.into(),
        protocol,
        fragment,
        first_fragment,
        payload: &bytes[start..end],
        trailing: bytes.len() - end,
    })
}
