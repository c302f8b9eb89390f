//! The addresses of the tests' small cluster, by short names, in both families.
//!
//! `a` to `e` are pods of this node, `x` to `z` of another, `u` nobody's address among the pods', `n1` and `m1` (`n2`, `m2`)
//! a node's own and its mesh address, `w` and `v` are of the world, `svc`, `svc2` and `ext` are services' addresses, `node` stands
//! for any node's in the key of a node port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Name, IPv4, IPv6.
type Row = (&'static str, [u8; 4], [u16; 8]);

const NAMES: &[Row] = &[
    ("a", [10, 244, 1, 10], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0xa]),
    ("b", [10, 244, 1, 11], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0xb]),
    ("c", [10, 244, 1, 12], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0xc]),
    ("d", [10, 244, 1, 13], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0xd]),
    ("e", [10, 244, 1, 14], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0xe]),
    ("x", [10, 244, 2, 10], [0xfd00, 0x244, 2, 0, 0, 0, 0, 0xa]),
    ("y", [10, 244, 2, 11], [0xfd00, 0x244, 2, 0, 0, 0, 0, 0xb]),
    ("z", [10, 244, 2, 12], [0xfd00, 0x244, 2, 0, 0, 0, 0, 0xc]),
    ("u", [10, 244, 3, 99], [0xfd00, 0x244, 3, 0, 0, 0, 0, 0x99]),
    ("n1", [192, 0, 2, 1], [0x2001, 0xdb8, 0, 2, 0, 0, 0, 1]),
    ("n2", [192, 0, 2, 2], [0x2001, 0xdb8, 0, 2, 0, 0, 0, 2]),
    ("m1", [10, 244, 1, 1], [0xfd00, 0x244, 1, 0, 0, 0, 0, 1]),
    ("m2", [10, 244, 2, 1], [0xfd00, 0x244, 2, 0, 0, 0, 0, 1]),
    ("w", [198, 51, 100, 7], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7]),
    ("v", [198, 51, 100, 8], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 8]),
    ("svc", [10, 96, 0, 10], [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10]),
    ("svc2", [10, 96, 0, 11], [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x11]),
    ("node", [0; 4], [0; 8]),
    ("ext", [203, 0, 113, 5], [0x2001, 0xdb8, 0xeeee, 0, 0, 0, 0, 5]),
];

/// Prefixes of the pods and of services, as `guarded` has them.
pub(crate) const GUARDED: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];
/// Pods of the other node.
pub(crate) const REMOTE: [&str; 2] = ["10.244.2.0/24", "fd00:244:2::/64"];

pub(crate) const LOCAL_PODS: [&str; 5] = ["a", "b", "c", "d", "e"];
pub(crate) const REMOTE_PODS: [&str; 3] = ["x", "y", "z"];
/// The node's own addresses.
pub(crate) const OWN: [&str; 2] = ["n1", "m1"];
/// Addresses of nodes.
pub(crate) const NODES: [&str; 4] = ["n1", "m1", "n2", "m2"];

/// The address of a name, or a written one.
pub(crate) fn address(name: &str, family: Family) -> IpAddr {
    if let Ok(ip) = name.parse() {
        return ip;
    }
    let row = NAMES.iter().find(|(known, ..)| *known == name);
    let (_, four, six) = row.unwrap_or_else(|| panic!("the tests' cluster has nobody of the name {name:?}"));
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(*four)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*six)),
    }
}

/// The name of an address, or the address.
pub(crate) fn name(ip: IpAddr) -> String {
    let is = |(_, four, six): &&Row| ip == IpAddr::from(*four) || ip == IpAddr::from(*six);
    NAMES.iter().find(is).map_or_else(|| ip.to_string(), |(name, ..)| (*name).to_owned())
}
