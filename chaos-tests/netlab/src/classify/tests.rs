use super::{Class, Place, Policy, Reason, sightings, summary};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const NODE_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 7);

fn policy() -> Policy {
    Policy::wireguard([51820]).api_server("192.0.2.9:6443".parse().unwrap())
}

fn eth(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ip4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0];
    p.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    p.extend([0, 0]);
    p.extend(flags.to_be_bytes());
    p.extend([64, protocol, 0, 0]);
    p.extend(source.octets());
    p.extend(destination.octets());
    p.extend(payload);
    p
}

fn ip6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0];
    p.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    p.extend([next, 64]);
    p.extend(source.octets());
    p.extend(destination.octets());
    p.extend(payload);
    p
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = [from.to_be_bytes(), to.to_be_bytes()].concat();
    p.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    p.extend([0, 0]);
    p.extend(payload);
    p
}

fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut m = vec![0xa5; length];
    m[..4].copy_from_slice(&[kind, 0, 0, 0]);
    m
}

fn wireguard(payload: &[u8]) -> Vec<u8> {
    eth(0x0800, &ip4(NODE_A, NODE_B, 17, 0x4000, &udp(51820, 51820, payload)))
}

fn check(frame: &[u8], expect: Class) {
    assert_eq!(policy().classify(frame), expect, "{}", summary(frame));
}

#[test]
fn each_wireguard_message_type_is_known_by_its_length() {
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1312), (4, 57)] {
        check(&wireguard(&message(kind, length)), Class::WireGuard { messages: 1 });
    }
    for (kind, length) in [(1, 147), (2, 93), (3, 63), (4, 31), (0, 148), (5, 64)] {
        check(&wireguard(&message(kind, length)), Class::Other(Reason::NotWireGuard));
    }
}

#[test]
fn padding_is_required_where_the_policy_says_so() {
    let strict = Policy { require_padding: true, ..policy() };
    assert!(strict.allows(&wireguard(&message(4, 1312))));
    assert!(!strict.allows(&wireguard(&message(4, 1313))));
}

#[test]
fn a_reserved_byte_that_is_not_zero_is_not_wireguard() {
    let mut payload = message(4, 64);
    payload[2] = 1;
    check(&wireguard(&payload), Class::Other(Reason::NotWireGuard));
}

#[test]
fn plaintext_on_the_wireguard_port_is_not_wireguard() {
    check(&wireguard(&ip4(POD, POD, 6, 0, b"secret")), Class::Other(Reason::NotWireGuard));
}

#[test]
fn a_frame_with_segmentation_offload_is_as_many_messages_as_were_glued() {
    let glued = [message(4, 1440), message(4, 1440), message(4, 1440), message(4, 64)].concat();
    check(&wireguard(&glued), Class::WireGuard { messages: 4 });
    let mut spoiled = glued.clone();
    spoiled[2880] = 0x45;
    check(&wireguard(&spoiled), Class::Other(Reason::NotWireGuard));
    let mut to_another = glued;
    to_another[1444] ^= 1;
    check(&wireguard(&to_another), Class::Other(Reason::NotWireGuard));
}

#[test]
fn tcp_is_allowed_with_the_api_server_only() {
    let tcp = |to: Ipv4Addr, port: u16| {
        let segment = [40_000_u16.to_be_bytes(), port.to_be_bytes(), [0; 2], [0; 2]].concat();
        eth(0x0800, &ip4(NODE_A, to, 6, 0x4000, &segment))
    };
    check(&tcp(Ipv4Addr::new(192, 0, 2, 9), 6443), Class::ApiServer);
    check(&tcp(Ipv4Addr::new(192, 0, 2, 9), 443), Class::Other(Reason::Tcp));
    check(&tcp(NODE_B, 6443), Class::Other(Reason::Tcp));
}

#[test]
fn the_world_talks_to_the_port_of_a_node_and_to_nothing_else() {
    let world = Ipv4Addr::new(192, 0, 2, 253);
    let policy = policy().node_port(world.into(), SocketAddr::from((NODE_A, 30_090)));
    let frame = |(from, source): (Ipv4Addr, u16), (to, destination): (Ipv4Addr, u16), protocol: u8| {
        let segment = [source.to_be_bytes(), destination.to_be_bytes(), [0, 8], [0; 2]].concat();
        policy.classify(&eth(0x0800, &ip4(from, to, protocol, 0x4000, &segment)))
    };
    for (protocol, refused) in [(6, Reason::Tcp), (17, Reason::Udp)] {
        assert_eq!(frame((world, 40_000), (NODE_A, 30_090), protocol), Class::NodePort);
        assert_eq!(frame((NODE_A, 30_090), (world, 40_000), protocol), Class::NodePort);
        for (from, to) in [
            ((world, 40_000), (NODE_A, 30_091)),
            ((world, 30_090), (NODE_A, 40_000)),
            ((world, 40_000), (NODE_B, 30_090)),
            ((NODE_B, 40_000), (NODE_A, 30_090)),
            ((NODE_A, 30_090), (NODE_B, 40_000)),
        ] {
            assert_eq!(frame(from, to, protocol), Class::Other(refused), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn fragments_tags_and_trailing_bytes_are_not_allowed() {
    let datagram = udp(51820, 51820, &message(4, 64));
    check(&eth(0x0800, &ip4(NODE_A, NODE_B, 17, 0x2000, &datagram)), Class::Other(Reason::Fragment));
    check(&eth(0x0800, &ip4(NODE_A, NODE_B, 17, 0x0005, &datagram)), Class::Other(Reason::Fragment));
    let packet = ip4(NODE_A, NODE_B, 17, 0, &datagram);
    check(&eth(0x8100, &[&[0, 5, 8, 0][..], &packet].concat()), Class::Other(Reason::Tagged));
    check(&eth(0x0800, &[&packet[..], b"tail"].concat()), Class::Other(Reason::TrailingBytes));
}

#[test]
fn arp_and_discovery_are_allowed_and_show_their_targets() {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
    arp.extend(NODE_A.octets());
    arp.extend([0; 6]);
    arp.extend(POD.octets());
    let frame = eth(0x0806, &arp);
    check(&frame, Class::Arp);
    let pods: [IpNet; 2] = ["10.42.0.0/16".parse().unwrap(), "fd42::/16".parse().unwrap()];
    let seen = sightings(&frame, &pods);
    assert_eq!(
        seen.iter().map(|s| (s.address, s.place)).collect::<Vec<_>>(),
        [(POD.into(), Place::ArpTarget)]
    );

    let target: Ipv6Addr = "fd42::7".parse().unwrap();
    let (a, b) = ("fe80::1".parse().unwrap(), "ff02::1:ff00:7".parse().unwrap());
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    let frame = eth(0x86dd, &ip6(a, b, 58, &solicitation));
    check(&frame, Class::NeighbourDiscovery);
    let seen = sightings(&frame, &pods);
    assert_eq!(
        seen.iter().map(|s| (s.address, s.place)).collect::<Vec<_>>(),
        [(target.into(), Place::NeighbourTarget)]
    );

    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0]].concat();
    check(&eth(0x86dd, &ip6(a, b, 0, &report)), Class::MulticastListener);
    check(&eth(0x86dd, &ip6(a, b, 58, &[128, 0, 0, 0])), Class::Other(Reason::Icmp));
}

#[test]
fn an_icmp_error_may_quote_wireguard_and_nothing_else() {
    let error = |quoted: &[u8]| {
        let icmp = [&[3, 4, 0, 0, 0, 0, 5, 0][..], quoted].concat();
        eth(0x0800, &ip4(NODE_B, NODE_A, 1, 0, &icmp))
    };
    let datagram = ip4(NODE_A, NODE_B, 17, 0, &udp(51820, 51820, &message(4, 1000)));
    check(&error(&datagram[..28]), Class::ErrorAboutWireGuard);
    let pod = ip4(POD, NODE_B, 6, 0, &[0; 20]);
    let frame = error(&pod);
    check(&frame, Class::Other(Reason::IcmpError));
    let seen = sightings(&frame, &["10.42.0.0/16".parse().unwrap()]);
    assert_eq!((seen.len(), seen[0].address, seen[0].depth), (1, IpAddr::from(POD), 1));
}

#[test]
fn addresses_inside_tunnels_without_encryption_are_seen() {
    let pods = ["10.42.0.0/16".parse().unwrap()];
    let inner = ip4(POD, POD, 6, 0, &[0; 20]);
    let ipip = eth(0x0800, &ip4(NODE_A, NODE_B, 4, 0, &inner));
    let vxlan = eth(
        0x0800,
        &ip4(NODE_A, NODE_B, 17, 0, &udp(5, 8472, &[&[0; 8][..], &eth(0x0800, &inner)].concat())),
    );
    for frame in [ipip, vxlan] {
        let seen = sightings(&frame, &pods);
        assert_eq!(
            seen.iter().map(|s| (s.place, s.depth)).collect::<Vec<_>>(),
            [(Place::Source, 1), (Place::Destination, 1)]
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = policy().classify(&frame);
        let _ = sightings(&frame, &["0.0.0.0/0".parse().unwrap()]);
        let _ = summary(&frame);
    }

    #[test]
    fn no_mutation_of_an_ip_packet_makes_the_parser_panic(
        at in 0_usize..90, value in any::<u8>(), cut in 0_usize..120, six in any::<bool>(),
    ) {
        let payload = udp(51820, 51820, &message(4, 64));
        let mut frame = if six {
            eth(0x86dd, &ip6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 17, &payload))
        } else {
            wireguard(&message(4, 64))
        };
        frame[at] = value;
        frame.truncate(cut);
        let _ = policy().classify(&frame);
        let _ = sightings(&frame, &["0.0.0.0/0".parse().unwrap()]);
        let _ = summary(&frame);
    }

    #[test]
    fn a_payload_that_starts_like_an_ip_packet_is_never_wireguard(
        version in prop_oneof![Just(0x45_u8), Just(0x60)], rest in proptest::collection::vec(any::<u8>(), 31..1400),
    ) {
        let payload = [&[version][..], &rest].concat();
        prop_assert_eq!(policy().classify(&wireguard(&payload)), Class::Other(Reason::NotWireGuard));
    }
}
