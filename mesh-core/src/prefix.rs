//! Small questions about addresses and prefixes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The host prefix of an address: `/32` or `/128`.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Do the two share an address?
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Is `inner` wholly inside one of `outer`?
pub fn inside(outer: &[IpNet], inner: &IpNet) -> bool {
    outer.iter().any(|o| o.contains(inner))
}

/// Can this be an address of a host that another host talks to?
pub fn is_unicast(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

/// The address of a node in its pod CIDR: the first host address (network address plus one). None where the prefix
/// has no room for it and at least one pod (longer than /30 or /126).
pub fn mesh_address(pod_cidr: &IpNet) -> Option<IpAddr> {
    match pod_cidr {
        IpNet::V4(net) if net.prefix_len() <= 30 => Some(IpAddr::V4((u32::from(net.network()) + 1).into())),
        IpNet::V6(net) if net.prefix_len() <= 126 => Some(IpAddr::V6((u128::from(net.network()) + 1).into())),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// CIDRs in which addresses are looked up: as many steps as there are lengths, however many CIDRs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nets {
    nets: BTreeSet<IpNet>,
    lengths: BTreeSet<u8>,
}

impl Nets {
    /// Is the address in one of them?
    pub fn contain(&self, address: IpAddr) -> bool {
        // A length of the other family may be too long for it.
        let net = |length: &u8| Some(IpNet::new(address, *length).ok()?.trunc());
        self.lengths.iter().filter_map(net).any(|net| self.nets.contains(&net))
    }
}

impl FromIterator<IpNet> for Nets {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let nets: BTreeSet<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
        let lengths = nets.iter().map(IpNet::prefix_len).collect();
        Self { nets, lengths }
    }
}

/// Are the two of one family?
pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
