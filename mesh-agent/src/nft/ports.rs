//! Maps of ports in netlink: their elements, and the rule that translates destinations by one.
//!
//! A key or a value is its fields one after the other, each filled up to 32 bits, as they lie in the registers.

use std::net::{IpAddr, SocketAddr};

use super::encode::{Expr, META_L4PROTO, meta_to, nfproto, payload};
use super::model::{End, Family, Port, PortMap};
use super::sets::{SetShape, TYPE_IP6ADDR, TYPE_IPADDR};
use super::wire::{Attr, nfta};

/// nft's numbers of the other types, and the bits by which it joins the types of a concatenation.
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;

const fn address_type(family: Family) -> u32 {
    match family {
        Family::V4 => TYPE_IPADDR,
        Family::V6 => TYPE_IP6ADDR,
    }
}

pub(super) fn shape(map: &PortMap) -> SetShape {
    const NFT_SET_MAP: u32 = 8;
    let (address, length) = (address_type(map.family()), map.family().bits() / 8);
    let ports = TYPE_INET_PROTOCOL << TYPE_BITS | TYPE_INET_SERVICE;
    let (key_type, key_len) =
        if map.by_address() { (address << (2 * TYPE_BITS) | ports, length + 8) } else { (ports, 8) };
    SetShape {
        flags: NFT_SET_MAP,
        key_type,
        key_len,
        data_type: address << TYPE_BITS | TYPE_INET_SERVICE,
        data_len: length + 4,
    }
}

fn put(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Each key with its value behind it.
pub(super) fn elements(map: &PortMap) -> impl Iterator<Item = Vec<u8>> {
    map.entries().iter().map(|(port, to)| element(port, to))
}

fn element(port: &Port, to: &SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(address) = port.address {
        put(address, &mut bytes);
    }
    bytes.extend([port.protocol, 0, 0, 0]);
    bytes.extend(padded_port(port.port));
    put(to.ip(), &mut bytes);
    bytes.extend(padded_port(to.port()));
    bytes
}

/// The register of 32 bits number `index`, by the name under which the kernel lists it: the first of each four has that of
/// the wide one.
const fn register(index: u32) -> u32 {
    const NFT_REG_1: u32 = 1;
    const NFT_REG32_00: u32 = 8;
    if index.is_multiple_of(4) { NFT_REG_1 + index / 4 } else { NFT_REG32_00 + index }
}

/// Looks the packet's destination up in the map `name`; what is not in it does not match.
pub(super) fn find(map: &PortMap, name: &str) -> Vec<Expr> {
    const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
    /// Of TCP, UDP and SCTP alike.
    const DESTINATION_PORT: u32 = 2;
    let mut out = Vec::new();
    let mut next = 0;
    if map.by_address() {
        out.push(super::encode::address(map.family(), End::Destination));
        next = map.family().bits() / 32;
    }
    out.push(meta_to(META_L4PROTO, register(next)));
    out.push(payload(NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2, register(next + 1)));
    let data = vec![
        Attr::text(nfta::LOOKUP_SET, name),
        Attr::be32(nfta::LOOKUP_SREG, register(0)),
        Attr::be32(nfta::LOOKUP_DREG, register(0)),
        Attr::be32(nfta::LOOKUP_FLAGS, 0),
    ];
    out.push(Expr { name: "lookup", data });
    out
}

/// Translates the destination to what [`find`] has found.
pub(super) fn translate(map: &PortMap) -> Expr {
    const NFT_NAT_DNAT: u32 = 1;
    let data = vec![
        Attr::be32(nfta::NAT_TYPE, NFT_NAT_DNAT),
        Attr::be32(nfta::NAT_FAMILY, u32::from(nfproto(map.family()))),
        Attr::be32(nfta::NAT_REG_ADDR_MIN, register(0)),
        Attr::be32(nfta::NAT_REG_PROTO_MIN, register(map.family().bits() / 32)),
    ];
    Expr { name: "nat", data }
}
