use crate::support::{LONG, endpoint, net, node, reaches, v4, v6};
use netlab::classify::Policy;
use netlab::probe::{Canary, EchoServer, ping, tcp};
use netlab::wire::Faults;
use netlab::{CaptureOptions, LabError, Namespace, PortId, Wire, unique_name};
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

fn star(count: usize, seed: u64) -> (Wire, Vec<Namespace>, Vec<PortId>) {
    let wire = Wire::new(unique_name("wire"), seed).unwrap();
    let nodes: Vec<Namespace> = (1..=count).map(|n| node(&format!("w{n}-"))).collect();
    let ports = nodes.iter().zip(1..).map(|(node, n)| wire.attach(node, &endpoint(n)).unwrap()).collect();
    (wire, nodes, ports)
}

/// Sends numbered datagrams from node 0 to node 1 and returns the numbers that arrived, in order.
fn numbers(nodes: &[Namespace], count: u16) -> Vec<u16> {
    let inbox = nodes[1].run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
    // Room for all of them: what the receiver's socket drops is no fault of the wire.
    setsockopt(&inbox, sockopt::RcvBufForce, &(32 << 20)).unwrap();
    inbox.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let to = inbox.local_addr().unwrap();
    let sender = nodes[0].thread(move || {
        let outbox = UdpSocket::bind("10.0.0.1:0").unwrap();
        for n in 0..count {
            outbox.send_to(&n.to_be_bytes(), to).unwrap();
        }
    });
    let mut buffer = [0; 64];
    let next = || inbox.recv_from(&mut buffer).ok().map(|_| u16::from_be_bytes([buffer[0], buffer[1]]));
    let arrived = std::iter::from_fn(next).collect();
    sender.join().unwrap();
    arrived
}

/// Two nodes that know each other's hardware addresses, so that faults meet only what the test sends.
fn resolved(seed: u64) -> (Wire, Vec<Namespace>, Vec<PortId>) {
    let wire = Wire::new(unique_name("wire"), seed).unwrap();
    let nodes = vec![node("r1-"), node("r2-")];
    let ends: Vec<_> =
        (1..=2).map(|n| netlab::Endpoint::new("eth0").address(net(&format!("10.0.0.{n}/24")))).collect();
    for ns in &nodes {
        ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
    }
    let ports: Vec<_> = nodes.iter().zip(&ends).map(|(ns, end)| wire.attach(ns, end).unwrap()).collect();
    for (here, there) in [(0, 1), (1, 0)] {
        let mac = ends[there].mac;
        nodes[here].netlink(async move |nl| nl.neigh_add("eth0", v4(there + 1), mac).await).unwrap();
    }
    (wire, nodes, ports)
}

#[test]
fn three_nodes_by_wire_reach_each_other_by_both_families() {
    let (_wire, nodes, _) = star(3, 1);
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        assert!(reaches(&nodes[from], &nodes[to], v4(to + 1), b"four", LONG), "{from} to {to}");
        assert!(reaches(&nodes[from], &nodes[to], v6(to + 1), b"six", LONG), "{from} to {to}");
    }
}

#[test]
fn tcp_with_a_megabyte_passes_a_wire_with_loss_and_reordering() {
    let (wire, nodes, _) = star(2, 5);
    wire.set_all(&Faults { loss: 0.01, reorder: 0.02, duplicate: 0.01, ..Faults::default() });
    let server = EchoServer::tcp(&nodes[1], SocketAddr::new(v4(2), 0)).unwrap();
    let canary = Canary::new(vec![0x42; 1 << 20]).deadline(Duration::from_secs(60));
    tcp(&nodes[0], server.address(), &canary).unwrap();
}

#[test]
fn ten_percent_loss_is_measured_within_bounds_and_the_same_seed_loses_the_same_datagrams() {
    let run = || {
        let (wire, nodes, ports) = resolved(42);
        wire.set(ports[0], ports[1], Faults { loss: 0.1, ..Faults::default() }).unwrap();
        let arrived = numbers(&nodes, 4000);
        let counters = wire.counters(ports[0], ports[1]).unwrap();
        assert_eq!(counters.offered, 4000, "{counters:?}");
        assert_eq!(counters.lost + counters.delivered, 4000, "{counters:?}");
        arrived
    };
    let first = run();
    assert!((3500..3700).contains(&first.len()), "{} of 4000 arrived", first.len());
    assert_eq!(first, run());
}

#[test]
fn duplicates_and_reordering_are_seen_by_the_receiver_as_often_as_counted() {
    let (wire, nodes, ports) = resolved(7);
    let faults = Faults { duplicate: 0.1, reorder: 0.1, ..Faults::default() };
    wire.set(ports[0], ports[1], faults).unwrap();
    let arrived = numbers(&nodes, 1000);
    let counters = wire.counters(ports[0], ports[1]).unwrap();
    assert!(
        (60..140).contains(&counters.duplicated) && (60..140).contains(&counters.reordered),
        "{counters:?}"
    );
    assert_eq!(arrived.len() as u64, 1000 + counters.duplicated);
    assert!(!arrived.is_sorted());
    let mut different = arrived;
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 1000);
}

#[test]
fn a_delay_each_way_shows_in_the_round_trip_time() {
    let (wire, nodes, ports) = resolved(1);
    let plain = ping(&nodes[0], v4(2), &Canary::new("warm")).unwrap();
    wire.set_both(ports[0], ports[1], &Faults { delay: Duration::from_millis(60), ..Faults::default() })
        .unwrap();
    let delayed = ping(&nodes[0], v4(2), &Canary::new("slow")).unwrap();
    assert!(delayed >= Duration::from_millis(120), "{plain:?} became {delayed:?}");
    assert!(delayed < Duration::from_millis(600), "{delayed:?}");
}

#[test]
fn a_partition_splits_and_heals_from_one_frame_to_the_next() {
    let (wire, nodes, ports) = star(3, 1);
    let once = || Canary::new("x").tries(1).deadline(Duration::from_millis(300));
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2)] {
        ping(&nodes[from], v4(to + 1), &Canary::new("warm")).unwrap();
    }
    wire.partition(&[&[ports[0]], &[ports[1], ports[2]]]);
    ping(&nodes[0], v4(2), &once()).unwrap_err();
    ping(&nodes[2], v4(1), &once()).unwrap_err();
    ping(&nodes[1], v4(3), &Canary::new("x")).unwrap();
    wire.heal_all();
    ping(&nodes[0], v4(2), &Canary::new("x")).unwrap();
    wire.cut(ports[0], ports[1]).unwrap();
    assert!(!reaches(&nodes[0], &nodes[1], v4(2), b"x", Duration::from_millis(300)));
    assert!(reaches(&nodes[1], &nodes[0], v4(1), b"x", LONG), "one way only");
    assert!(wire.counters(ports[0], ports[1]).unwrap().cut > 0);
    wire.heal(ports[0], ports[1]).unwrap();
    ping(&nodes[0], v4(2), &Canary::new("x")).unwrap();
}

#[test]
fn a_black_hole_swallows_large_packets_and_lets_small_ones_through() {
    let (wire, nodes, ports) = resolved(1);
    wire.set(ports[0], ports[1], Faults { black_hole: Some(1280), ..Faults::default() }).unwrap();
    // 20 bytes of IP and 8 of UDP.
    assert!(reaches(&nodes[0], &nodes[1], v4(2), &[1; 1252], LONG));
    assert!(!reaches(&nodes[0], &nodes[1], v4(2), &[1; 1253], Duration::from_millis(300)));
    assert_eq!(wire.counters(ports[0], ports[1]).unwrap().black_holed, 1);
}

#[test]
fn a_bandwidth_limit_holds_over_a_megabit() {
    let (wire, nodes, ports) = resolved(1);
    let queue = Duration::from_secs(5);
    wire.set(ports[0], ports[1], Faults { rate: Some(2_000_000), queue, ..Faults::default() }).unwrap();
    let inbox = nodes[1].run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
    inbox.set_read_timeout(Some(LONG)).unwrap();
    let to = inbox.local_addr().unwrap();
    let began = Instant::now();
    nodes[0].run(move || {
        let outbox = UdpSocket::bind("10.0.0.1:0").unwrap();
        for _ in 0..100 {
            outbox.send_to(&[0; 1208], to).unwrap();
        }
    });
    let mut buffer = [0; 2048];
    (0..100).for_each(|_| _ = inbox.recv_from(&mut buffer).unwrap());
    // 100 frames of 1250 bytes are one megabit.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(499), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_capture_sees_lost_frames_too_and_finds_the_canary_at_once() {
    let (wire, nodes, ports) = resolved(1);
    let capture = wire.capture(CaptureOptions::default()).unwrap();
    wire.cut(ports[0], ports[1]).unwrap();
    for round in 0..50 {
        let needle = format!("CANARY-{round:04}");
        let payload = needle.clone();
        nodes[0].run(move || {
            UdpSocket::bind("10.0.0.1:0").unwrap().send_to(payload.as_bytes(), "10.0.0.2:9").unwrap()
        });
        let hits = capture.find(needle.as_bytes()).unwrap();
        assert_eq!((hits.len(), hits[0].frame.port), (1, ports[0]), "round {round}");
    }
    let error = capture.assert_only(&Policy::wireguard([51820])).unwrap_err();
    assert!(matches!(error, LabError::NotAllowed { count: 50, .. }), "{error}");
    assert_eq!(capture.finish().unwrap().len(), 50);
}

#[test]
fn a_node_that_reboots_takes_its_old_port_again_with_its_faults() {
    let (wire, mut nodes, ports) = star(2, 1);
    ping(&nodes[0], v4(2), &Canary::new("x")).unwrap();
    wire.cut(ports[1], ports[0]).unwrap();
    wire.detach(ports[1]).unwrap();
    nodes.pop();
    let again = node("w2-again-");
    wire.reattach(ports[1], &again, &endpoint(2)).unwrap();
    assert!(!reaches(&again, &nodes[0], v4(1), b"x", Duration::from_millis(300)), "the cut is gone");
    wire.heal_all();
    // The neighbour has a new hardware address; the old one is forgotten after a few unanswered probes.
    ping(&again, v4(1), &Canary::new("x").tries(30)).unwrap();
}

#[test]
fn a_device_deleted_from_its_namespace_does_not_stop_the_others() {
    let (_wire, nodes, _) = star(3, 1);
    nodes[2].netlink(async |nl| nl.link_del("eth0").await).unwrap();
    ping(&nodes[0], v4(2), &Canary::new("x")).unwrap();
}
