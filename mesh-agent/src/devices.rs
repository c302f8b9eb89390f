//! What each link of the node is to the data path, and which prefixes the guard keeps from uplinks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use datapath::LinkKind;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use mesh_core::slot::Slot;

use crate::cni::is_pod_veth;
use crate::kernel::Link;
use crate::nft::NftInput;
use crate::nft::model::{Family, Ranges};

/// What each link is, by its index: a WireGuard device, the host's end of a pod's, the device that holds first packets;
/// everything else but `lo` and shapers is an uplink, since whatever it leads to, nothing of a pod passes it in clear.
pub fn kinds(links: &BTreeMap<String, Link>) -> BTreeMap<u32, LinkKind> {
    let kind = |name: &str| {
        if name == "lo" {
            None
        } else if Slot::ALL.iter().any(|slot| slot.device() == name) {
            Some(LinkKind::Slot)
        } else if is_pod_veth(name) {
            Some(LinkKind::Pod)
        } else if name == crate::hold::DEVICE {
            Some(LinkKind::Hold)
        } else if crate::shaping::shaped(name).is_some() {
            // It leads nowhere: what comes out of it goes on from the pod's link.
            None
        } else {
            Some(LinkKind::Uplink)
        }
    };
    links.iter().filter_map(|(name, link)| Some((link.index, kind(name)?))).collect()
}

/// What the guard keeps from uplinks: the same as the firewall's.
pub fn guarded(input: &NftInput) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = input.guarded.iter().chain(&input.own_pod_cidrs).map(IpNet::trunc).collect();
    nets.sort();
    nets.dedup();
    IpNet::aggregate(&nets)
}

/// IPv4-mapped addresses (RFC 4291 2.5.5.2).
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// The other ends for which it does not: what an administrator exempts from translation, less what is guarded and less the
/// addresses of nodes. None: more prefixes than `room`; then nothing is exempt.
pub fn exempt(input: &NftInput, room: usize) -> Option<Vec<IpNet>> {
    let mut nets = Vec::new();
    for family in Family::BOTH {
        let nodes: Vec<IpAddr> = input.own_node_ips.iter().chain(&input.peer_node_ips).copied().collect();
        let mut refused =
            Ranges::of_nets(family, &guarded(input)).union(&Ranges::of_addresses(family, &nodes));
        if family == Family::V6 {
            // In the map IPv4 lies in there.
            refused = refused.union(&Ranges::of_nets(family, &[IpNet::V6(MAPPED)]));
        }
        let left = Ranges::of_nets(family, &input.non_masquerade).minus(&refused);
        for (first, last) in left.as_slice() {
            match (family, u32::try_from(*first), u32::try_from(*last)) {
                (Family::V4, Ok(first), Ok(last)) => {
                    nets.extend(Ipv4Subnets::new(first.into(), last.into(), 0).map(IpNet::V4));
                }
                (Family::V4, ..) => {}
                (Family::V6, ..) => {
                    nets.extend(Ipv6Subnets::new((*first).into(), (*last).into(), 0).map(IpNet::V6));
                }
            }
        }
    }
    (nets.len() <= room).then_some(nets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::HostGuard;
    use proptest::prelude::*;

    fn input(guarded: &[&str], nodes: &[&str], exempt: &[&str]) -> NftInput {
        let nets = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        NftInput {
            guarded: nets(guarded),
            own_pod_cidrs: Vec::new(),
            own_node_ips: nodes.iter().map(|text| text.parse().unwrap()).collect(),
            peer_node_ips: Vec::new(),
            mesh: Vec::new(),
            non_masquerade: nets(exempt),
            service_cidrs: Vec::new(),
            translates: true,
            slots: ["a".into(), "b".into()],
            pod_veth_prefix: "hw".into(),
            tunnel_ports: [1, 2],
            hosts: HostGuard::default(),
        }
    }

    #[test]
    fn every_link_that_is_not_ours_has_the_guard() {
        let link = |index| Link { index, mtu: 1500, up: true, mac: Vec::new(), received: 0 };
        let names = [
            "lo",
            "eth0",
            "hawser0",
            "hawser1",
            "hw0123456789abc",
            "hwshort",
            "docker0",
            "hawserh",
            "hs0123456789abc",
            "hs0",
        ];
        let links = names.iter().zip(1..).map(|(name, index)| ((*name).to_owned(), link(index))).collect();
        let kinds = kinds(&links);
        let expect = [
            (2, LinkKind::Uplink),
            (3, LinkKind::Slot),
            (4, LinkKind::Slot),
            (5, LinkKind::Pod),
            (6, LinkKind::Uplink),
            (7, LinkKind::Uplink),
            (8, LinkKind::Hold),
            (10, LinkKind::Uplink),
        ];
        assert_eq!(kinds, expect.into());
    }

    #[test]
    fn nodes_and_pods_inside_an_exempt_prefix_are_not_exempt() {
        let input = input(&["10.244.0.0/16"], &["10.0.0.1"], &["10.0.0.0/8"]);
        let exempt = exempt(&input, 1024).unwrap();
        let is = |ip: &str| exempt.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()));
        assert!(is("10.0.0.2") && is("10.245.0.0") && is("10.0.0.0"));
        assert!(!is("10.0.0.1") && !is("10.244.3.3") && !is("11.0.0.0"));
    }

    #[test]
    fn no_exempt_prefix_of_ipv6_holds_ipv4_as_the_map_has_it() {
        for wide in ["::/0", "::/8", "::ffff:0:0/95"] {
            let exempt = exempt(&input(&["10.244.0.0/16"], &["192.0.2.1"], &[wide]), 1024).unwrap();
            let mapped = |net: &IpNet| net.contains(&IpNet::V6(MAPPED)) || IpNet::V6(MAPPED).contains(net);
            assert!(!exempt.is_empty() && !exempt.iter().any(mapped), "{wide}: {exempt:?}");
        }
    }

    #[test]
    fn without_room_nothing_is_exempt() {
        assert_eq!(exempt(&input(&[], &["10.0.0.77"], &["10.0.0.0/8"]), 3), None);
    }

    proptest! {
        #[test]
        fn the_guard_and_the_firewall_exempt_the_same(
            guarded in proptest::collection::vec((0_u32..64, 27_u8..=32), 0..3),
            nodes in proptest::collection::vec(0_u32..64, 0..6),
            open in proptest::collection::vec((0_u32..64, 26_u8..=32), 0..3),
        ) {
            let ip = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
            let net = |(n, length): &(u32, u8)| IpNet::new(ip(*n), *length).unwrap().trunc();
            let mut input = input(&[], &[], &[]);
            input.guarded = guarded.iter().map(net).collect();
            input.own_node_ips = nodes.iter().map(|n| ip(*n)).collect();
            input.non_masquerade = open.iter().map(net).collect();
            let (kept, free) = (super::guarded(&input), exempt(&input, 1024).unwrap());
            for n in 0..64 {
                let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip(n)));
                prop_assert_eq!(within(&kept), within(&input.guarded));
                let wanted = within(&input.non_masquerade) && !within(&kept) && !input.own_node_ips.contains(&ip(n));
                prop_assert_eq!(within(&free), wanted);
            }
        }
    }
}
