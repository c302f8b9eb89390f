//! A pod bears its own addresses, by IP, ARP and neighbour discovery, and nobody else's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::support::bench::{Bench, both, host_mac, one, pod_mac};
use crate::support::kernel::Context;
use crate::support::names::{Family, address};
use crate::support::packet::{Arp, Body, Packet};

#[test]
fn a_pod_that_borrows_an_address_gets_nothing_through() {
    both(|bench| {
        bench.play(
            "
            a | tcp b:40000 > c:80 syn   | drop spoofed-source   # a neighbour's
            a | udp x:40000 > c:80       | drop spoofed-source   # a remote pod's
            a | tcp n1:40000 > b:80 syn  | drop spoofed-source   # its node's
            a | tcp m1:40000 > b:80 syn  | drop spoofed-source
            a | udp w:53 > b:80          | drop spoofed-source   # the world's
            a | udp u:53 > b:80          | drop spoofed-source
            a | echo b > c               | drop spoofed-source
            a | sctp svc:9 > b:80        | drop spoofed-source
            a | protocol-47 b > c        | drop spoofed-source
            a | unreachable b > c about { udp c:53 > b:53 } | drop spoofed-source
            asked nothing
            ",
        );
        assert!(bench.kernel.all::<datapath::abi::Tuple, datapath::abi::Flow>("flows").is_empty());
    });
}

#[test]
fn no_address_at_all_and_addresses_of_groups_are_nobodys_own() {
    let cases = [
        "udp 0.0.0.0:68 > 255.255.255.255:67",
        "udp 224.0.0.1:9 > 10.244.1.11:9",
        "udp 127.0.0.1:9 > 10.244.1.11:9",
    ];
    one(Family::V4, |bench| {
        cases.iter().for_each(|case| bench.play(&format!("a | {case} | drop spoofed-source")))
    });
    let cases =
        ["udp [::]:68 > [ff02::2]:67", "udp [fe80::1]:9 > [ff02::2]:9", "udp [::1]:9 > [fd00:244:1::b]:9"];
    one(Family::V6, |bench| {
        cases.iter().for_each(|case| bench.play(&format!("a | {case} | drop spoofed-source")))
    });
}

#[test]
fn a_pod_says_nothing_to_the_loopback_of_its_node() {
    one(Family::V4, |bench| {
        bench.play(
            "
            a | tcp a:40000 > 127.0.0.1:10250 syn | drop malformed
            a | udp a:40000 > 127.255.255.254:53  | drop malformed
            a | echo a > 127.0.0.1                | drop malformed
            asked nothing
            ",
        );
    });
}

#[test]
fn a_pod_without_an_address_of_a_family_sends_nothing_in_it() {
    for family in [Family::V4, Family::V6] {
        one(family, |bench| {
            let ifindex = bench.device("a");
            let mut endpoint: datapath::abi::Endpoint =
                bench.kernel.get("endpoints", ifindex).expect("an endpoint");
            if family == Family::V4 {
                endpoint.ip4 = datapath::abi::Addr::NONE;
            } else {
                endpoint.ip6 = datapath::abi::Addr::NONE;
            }
            bench.kernel.put("endpoints", ifindex, endpoint);
            bench.play("a | udp a:1000 > b:53 | drop spoofed-source");
            let zero = if family == Family::V4 { "0.0.0.0:1000" } else { "[::]:1000" };
            bench.play(&format!("a | udp {zero} > b:53 | drop spoofed-source"));
        });
    }
}

#[test]
fn an_ipv6_packet_with_a_mapped_address_is_dropped_whatever_it_says() {
    one(Family::V6, |bench| {
        for (place, ends) in [
            ("a", "[::ffff:10.244.1.10]:1000 > [::ffff:10.244.1.11]:53"),
            ("a", "[fd00:244:1::a]:1000 > [::ffff:10.244.1.11]:53"),
            ("a", "[::ffff:10.244.1.10]:1000 > [fd00:244:1::b]:53"),
            ("slot", "[::ffff:10.244.2.10]:1000 > [fd00:244:1::a]:53"),
            ("slot", "[fd00:244:2::a]:1000 > [::ffff:10.244.1.10]:53"),
            ("host > a", "[::ffff:192.0.2.1]:1000 > [fd00:244:1::a]:53"),
            ("uplink > a", "[fd00:244:2::a]:1000 > [::ffff:10.244.1.10]:53"),
        ] {
            bench.play(&format!("{place} | udp {ends} | drop mapped-address"));
        }
        bench.play("a | udp a:53 > b:53 | to b");
        bench.play("a | unreachable a > b about { udp [::ffff:10.244.1.11]:53 > [fd00:244:1::a]:53 } | drop mapped-address");
    });
}

#[test]
fn a_link_without_an_endpoint_carries_nothing_either_way() {
    both(|bench| {
        bench.play(
            "
            unplug a
            a        | tcp a:40000 > b:80 syn  | drop no-endpoint
            host > a | tcp n1:40000 > a:80 syn | drop no-endpoint
            b        | tcp b:40000 > a:80 syn  | drop no-endpoint
            slot     | tcp x:40000 > a:80 syn  | drop no-endpoint
            ",
        );
        assert_eq!(arp(bench, Arp { sender: [10, 244, 1, 10], ..FROM_A }), "drop no-endpoint");
    });
}

const FROM_A: Arp = Arp {
    operation: 1,
    sender_mac: [2, 0, 0, 0, 1, b'a'],
    sender: [10, 244, 1, 10],
    target_mac: [0; 6],
    target: [10, 244, 1, 1],
};

fn arp(bench: &mut Bench, arp: Arp) -> String {
    raw(bench, "from_pod", "a", &arp.frame())
}

fn raw(bench: &mut Bench, program: &str, pod: &str, frame: &[u8]) -> String {
    let context = Context { ifindex: bench.device(pod), ..Context::default() };
    bench.run(program, frame, context).outcome
}

#[test]
fn by_arp_a_pod_speaks_for_its_own_address_alone() {
    assert_eq!(pod_mac("a"), FROM_A.sender_mac);
    let neighbour = [10, 244, 1, 11];
    let cases = [
        ("a request for itself", FROM_A, "stack"),
        ("an answer for itself", Arp { operation: 2, ..FROM_A }, "stack"),
        ("a probe, which claims nothing (RFC 5227)", Arp { sender: [0; 4], ..FROM_A }, "stack"),
        ("an announcement of its own", Arp { target: FROM_A.sender, ..FROM_A }, "stack"),
        ("a neighbour's address", Arp { sender: neighbour, ..FROM_A }, "drop spoofed-arp"),
        ("the gateway's", Arp { operation: 2, sender: [10, 244, 1, 1], ..FROM_A }, "drop spoofed-arp"),
        ("the node's", Arp { operation: 2, sender: [192, 0, 2, 1], ..FROM_A }, "drop spoofed-arp"),
        ("another's hardware address", Arp { sender_mac: pod_mac("b"), ..FROM_A }, "drop spoofed-arp"),
        ("the host's hardware address", Arp { sender_mac: host_mac("a"), ..FROM_A }, "drop spoofed-arp"),
        (
            "another's in a probe",
            Arp { sender: [0; 4], sender_mac: pod_mac("b"), ..FROM_A },
            "drop spoofed-arp",
        ),
    ];
    one(Family::V4, |bench| {
        for (what, said, expected) in cases {
            assert_eq!(arp(bench, said), expected, "{what}");
        }
    });
}

#[test]
fn arp_of_other_hardware_or_cut_off_is_malformed() {
    one(Family::V4, |bench| {
        let whole = FROM_A.frame();
        for length in 14..whole.len() {
            assert_eq!(raw(bench, "from_pod", "a", &whole[..length]), "drop malformed", "{length} bytes");
        }
        for at in [14, 16, 18, 19] {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            assert_eq!(raw(bench, "from_pod", "a", &changed), "drop malformed", "byte {at}");
        }
    });
}

#[test]
fn a_pod_without_an_ipv4_address_speaks_for_none_by_arp() {
    one(Family::V4, |bench| {
        let ifindex = bench.device("a");
        let mut endpoint: datapath::abi::Endpoint =
            bench.kernel.get("endpoints", ifindex).expect("an endpoint");
        endpoint.ip4 = datapath::abi::Addr::NONE;
        bench.kernel.put("endpoints", ifindex, endpoint);
        assert_eq!(arp(bench, FROM_A), "drop spoofed-arp");
        assert_eq!(arp(bench, Arp { sender: [0; 4], ..FROM_A }), "stack");
    });
}

#[test]
fn arp_reaches_a_pod_from_its_own_node_alone() {
    one(Family::V4, |bench| {
        let frame = FROM_A.frame();
        for (from, expected) in [
            (0, "pass"),
            (bench.device("uplink"), "drop spoofed-arp"),
            (bench.device("b"), "drop spoofed-arp"),
        ] {
            let context = Context { ifindex: bench.device("a"), ingress_ifindex: from, mark: 0 };
            assert_eq!(bench.run("to_pod", &frame, context).outcome, expected);
        }
    });
}

#[test]
fn frames_that_are_neither_ip_nor_arp_do_not_leave_a_pod_nor_enter_one() {
    one(Family::V4, |bench| {
        let packet =
            Packet::new(address("a", Family::V4), address("b", Family::V4), Body::Other { protocol: 59 });
        // RARP, VLAN, QinQ, MPLS, PPPoE session, LLDP, a length (802.3).
        for kind in [0x8035_u16, 0x8100, 0x88a8, 0x8847, 0x8864, 0x88cc, 0x0026] {
            let mut frame = packet.frame(pod_mac("a"), host_mac("a"));
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
            assert_eq!(raw(bench, "from_pod", "a", &frame), "drop ethertype", "{kind:#x}");
            assert_eq!(raw(bench, "to_pod", "a", &frame), "drop ethertype", "{kind:#x}");
            let context = Context { ifindex: bench.device("slot"), ..Context::default() };
            assert_eq!(bench.run("from_tunnel", &frame, context).outcome, "drop ethertype", "{kind:#x}");
        }
    });
}

#[test]
fn a_tag_in_front_of_a_packet_does_not_help_a_pod() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:40000 > b:80 syn tag 5          | drop ethertype
            a | tcp a:40000 > b:80 syn stag 5 tag 6   | drop ethertype
            a | tcp b:40000 > c:80 syn tag 0          | drop ethertype
            ",
        );
    });
}

const LINK: &str = "fe80::a";
const GROUP: &str = "ff02::1:ff00:1";

/// Discovery of type `kind` about `target`, and the hop limit that RFC 4861 wants unless it is listener discovery.
fn discovery(kind: u8, from: &str, to: &str, target: &str) -> Packet {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap_or_else(|_| address(text, Family::V6)) };
    let IpAddr::V6(target) = ip(target) else { panic!("{target} is no IPv6 address") };
    let rest = [[0_u8; 4].as_slice(), &target.octets()].concat();
    let listener = (130..=132).contains(&kind) || kind == 143;
    Packet { ttl: if listener { 1 } else { 255 }, ..Packet::new(ip(from), ip(to), Body::Icmp { kind, rest }) }
}

#[test]
fn by_neighbour_discovery_a_pod_asks_and_speaks_for_its_own_addresses_alone() {
    let any = Ipv6Addr::UNSPECIFIED.to_string();
    let cases = [
        ("a solicitation for the gateway", discovery(135, "a", GROUP, "m1"), "stack"),
        ("one from its link-local address", discovery(135, LINK, GROUP, "m1"), "stack"),
        ("is this address free?", discovery(135, &any, GROUP, "a"), "stack"),
        ("a router's solicitation", discovery(133, LINK, "ff02::2", "::"), "stack"),
        ("a report of what it listens to", discovery(143, LINK, "ff02::16", "::"), "stack"),
        ("one from nobody yet", discovery(143, &any, "ff02::16", "::"), "stack"),
        ("an advertisement of its own", discovery(136, "a", "m1", "a"), "stack"),
        ("an advertisement of its link-local address", discovery(136, LINK, "fe80::1", LINK), "stack"),
        ("a neighbour's", discovery(136, "a", "m1", "b"), "drop spoofed-nd"),
        ("the gateway's", discovery(136, "a", "ff02::1", "m1"), "drop spoofed-nd"),
        ("its own, from a neighbour's address", discovery(136, "b", "m1", "a"), "drop spoofed-nd"),
        ("its own, from nobody", discovery(136, &any, "m1", "a"), "drop spoofed-nd"),
        ("a solicitation from a neighbour's", discovery(135, "b", GROUP, "m1"), "drop spoofed-nd"),
        ("a solicitation from the gateway's", discovery(135, "m1", GROUP, "b"), "drop spoofed-nd"),
        ("a router's advertisement", discovery(134, LINK, "ff02::1", "::"), "drop spoofed-nd"),
        ("a redirect", discovery(137, LINK, "a", "b"), "drop spoofed-nd"),
    ];
    one(Family::V6, |bench| {
        for (what, packet, expected) in cases {
            assert_eq!(bench.send("a", &packet).outcome, expected, "{what}");
        }
    });
}

#[test]
fn discovery_is_the_links_and_goes_no_further_than_the_node() {
    let cases = [
        ("to a pod of this node", discovery(135, "a", "b", "b")),
        ("to a remote pod", discovery(136, "a", "x", "a")),
        ("to the world", discovery(135, "a", "w", "w")),
        ("to the world, as a router's solicitation", discovery(133, "a", "w", "::")),
        ("to another node", discovery(133, "a", "n2", "::")),
        ("to a group of the whole site", discovery(143, "a", "ff05::2", "::")),
        ("to nobody", discovery(133, "a", "u", "::")),
        ("to its own service", discovery(133, "a", "svc", "::")),
    ];
    one(Family::V6, |bench| {
        for (what, packet) in cases {
            assert_eq!(bench.send("a", &packet).outcome, "drop spoofed-nd", "{what}");
        }
    });
}

#[test]
fn discovery_in_pieces_is_refused() {
    one(Family::V6, |bench| {
        for packet in [
            discovery(136, "a", "m1", "b"),
            discovery(135, "a", GROUP, "m1"),
            discovery(134, LINK, "ff02::1", "::"),
        ] {
            let piece = crate::support::packet::Fragment { id: 5, from: 0, length: 16, more: true };
            let outcome = bench.send("a", &Packet { fragment: Some(piece), ..packet }).outcome;
            assert!(outcome.starts_with("drop"), "{outcome}");
        }
    });
}

#[test]
fn discovery_reaches_a_pod_from_its_own_node_alone() {
    one(Family::V6, |bench| {
        let packet = discovery(136, "m1", "a", "m1");
        assert_eq!(bench.send("host > a", &packet).outcome, "pass");
        assert_eq!(bench.send("uplink > a", &packet).outcome, "drop spoofed-nd");
        assert_eq!(bench.send("b > a", &packet).outcome, "drop spoofed-nd");
        assert_eq!(bench.send("slot", &packet).outcome, "drop source-local");
        assert_eq!(bench.send("slot", &discovery(136, "x", "a", "x")).outcome, "drop tunnel-foreign");
    });
}

#[test]
fn out_of_the_tunnel_comes_nothing_with_an_address_of_this_node_nor_for_anybody_elsewhere() {
    both(|bench| {
        bench.play(
            "
            slot | udp b:53 > a:53          | drop source-local
            slot | udp n1:53 > a:53         | drop source-local
            slot | udp m1:53 > a:53         | drop source-local
            slot | udp a:53 > a:53          | drop source-local
            slot | udp x:53 > y:53          | drop tunnel-foreign
            slot | udp x:53 > u:53          | drop tunnel-foreign
            slot | udp x:53 > w:53          | drop tunnel-foreign
            slot | udp x:53 > n2:53         | drop tunnel-foreign
            slot | udp x:53 > svc:53        | drop tunnel-foreign
            slot | udp x:53 > n1:53         | pass
            slot | udp n2:53 > m1:53        | pass
            asked nothing
            slot | udp x:53 > a:53          | to a
            ",
        );
    });
    let group = Packet::new(
        address("x", Family::V4),
        Ipv4Addr::new(224, 0, 0, 1).into(),
        Body::Other { protocol: 59 },
    );
    one(Family::V4, |bench| assert_eq!(bench.send("slot", &group).outcome, "drop tunnel-foreign"));
}
