use crate::support::{LONG, SHORT, endpoint, net, node, reaches, star, v4, v6};
use netlab::classify::Policy;
use netlab::{Bridge, CaptureOptions, Endpoint, LabError, unique_name};
use std::net::{SocketAddr, UdpSocket};

#[test]
fn three_nodes_by_bridge_reach_each_other_and_partitions_split_and_heal() {
    let (bridge, nodes, ports) = star(3);
    let check = |expect: &dyn Fn(usize, usize) -> bool, when: &str| {
        for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            for address in [v4(to + 1), v6(to + 1)] {
                let wanted = expect(from, to);
                let wait = if wanted { LONG } else { SHORT };
                assert_eq!(
                    reaches(&nodes[from], &nodes[to], address, b"x", wait),
                    wanted,
                    "{when}: {from} to {to}"
                );
            }
        }
    };
    check(&|_, _| true, "at first");
    bridge.partition(&[&[ports[0]], &[ports[1], ports[2]]]).unwrap();
    check(&|a, b| a != 0 && b != 0, "partition {0} | {1,2}");
    bridge.heal_all().unwrap();
    check(&|_, _| true, "healed");
    bridge.cut(ports[0], ports[1]).unwrap();
    check(&|a, b| (a, b) != (0, 1), "one way");
    bridge.heal(ports[0], ports[1]).unwrap();
    check(&|_, _| true, "healed one way");
}

#[test]
fn a_port_that_is_down_takes_the_carrier_and_up_gives_it_back() {
    let (bridge, nodes, ports) = star(2);
    let carrier = || nodes[1].netlink(async |nl| Ok(nl.link("eth0").await?.carrier)).unwrap();
    assert!(carrier());
    bridge.port_down(ports[1]).unwrap();
    assert!(!carrier());
    assert!(!reaches(&nodes[0], &nodes[1], v4(2), b"x", SHORT));
    bridge.port_up(ports[1]).unwrap();
    let seen = netlab::eventually(LONG, "traffic", || {
        if reaches(&nodes[0], &nodes[1], v4(2), b"x", SHORT) { Ok(()) } else { Err("none") }
    });
    seen.unwrap();
}

#[test]
fn a_port_of_another_switch_is_refused() {
    let (bridge, _nodes, _) = star(1);
    let (_other, _others, ports) = star(3);
    let error = bridge.cut(ports[0], ports[2]).unwrap_err();
    assert!(matches!(error, LabError::NoPort { port: 2, ports: 1, .. }), "{error}");
}

#[test]
fn known_unicast_is_not_flooded_to_the_third_node() {
    let (bridge, nodes, ports) = star(3);
    assert!(reaches(&nodes[0], &nodes[1], v4(2), b"warm", LONG));
    let before = bridge.counters(ports[2]).unwrap();
    for _ in 0..50 {
        assert!(reaches(&nodes[0], &nodes[1], v4(2), b"direct", LONG));
    }
    let after = bridge.counters(ports[2]).unwrap();
    assert!(after.received - before.received < 50, "{before:?} {after:?}");
}

#[test]
fn a_capture_finds_a_canary_sent_in_plaintext_and_says_where() {
    let (bridge, nodes, ports) = star(2);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("capture.pcapng");
    let needles = vec![b"CANARY-7f3a".to_vec()];
    let policy = Some(Policy::wireguard([51820]));
    let options = CaptureOptions { file: Some(file.clone()), needles, policy, ..CaptureOptions::default() };
    let capture = bridge.capture(options).unwrap();
    assert!(reaches(&nodes[0], &nodes[1], v4(2), b"abcCANARY-7f3axyz", LONG));
    let hits = capture.find(b"CANARY-7f3a").unwrap();
    assert_eq!(hits.len(), 1);
    assert_eq!((hits[0].frame.port, hits[0].offset), (ports[0], 14 + 20 + 8 + 3));
    let text = hits[0].to_string();
    assert!(
        text.starts_with("from p0 at byte 45 of 10.0.0.1 port ") && text.contains("> 10.0.0.2 port"),
        "{text}"
    );
    assert_eq!(capture.hits().unwrap(), hits);
    assert_eq!(capture.find(b"CANARY-ffff").unwrap(), []);
    let error = capture.assert_only(&Policy::wireguard([51820])).unwrap_err();
    let LabError::NotAllowed { count: 1, first } = &error else { panic!("{error}") };
    assert!(first.contains("UDP outside WireGuard"), "{first}");
    assert!(capture.verdict().is_err());
    let seen = capture.addresses_inside(&[net("10.0.0.2/32")]).unwrap();
    assert!(seen.iter().any(|(frame, _)| *frame == hits[0].frame));
    let age = hits[0].frame.at.elapsed().unwrap();
    assert!(age < LONG, "{age:?}");
    capture.finish().unwrap();
    let bytes = std::fs::read(file).unwrap();
    assert!(bytes.windows(11).any(|w| w == b"CANARY-7f3a"));
}

#[test]
fn a_capture_without_buffer_reports_its_losses_and_refuses_to_answer() {
    let (bridge, nodes, _) = star(2);
    let capture = bridge.capture(CaptureOptions { buffer: 2048, ..CaptureOptions::default() }).unwrap();
    assert!(reaches(&nodes[0], &nodes[1], v4(2), b"warm", LONG));
    nodes[0].run(|| {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        for _ in 0..5000 {
            // Refused when the answer "port unreachable" came in between.
            let _ = socket.send_to(&[0; 1400], SocketAddr::new(v4(2), 9));
        }
    });
    let health = capture.sync();
    assert!(health.dropped + health.missing > 0, "{health}");
    let error = capture.find(b"x").unwrap_err();
    assert!(matches!(error, LabError::Lossy(_)), "{error}");
}

#[test]
fn a_capture_with_a_full_memory_refuses_to_answer() {
    let (bridge, nodes, _) = star(2);
    let capture = bridge.capture(CaptureOptions { memory: 1000, ..CaptureOptions::default() }).unwrap();
    assert!(reaches(&nodes[0], &nodes[1], v4(2), &[7; 1200], LONG));
    assert!(matches!(capture.frames(), Err(LabError::Lossy(h)) if h.evicted > 0));
}

#[test]
fn ten_thousand_datagrams_are_captured_to_the_last() {
    let (bridge, nodes, ports) = star(2);
    let capture = bridge.capture(CaptureOptions::default()).unwrap();
    let before = bridge.counters(ports[0]).unwrap().sent;
    let inbox = nodes[1].run(|| UdpSocket::bind("10.0.0.2:7000").unwrap());
    assert!(reaches(&nodes[0], &nodes[1], v4(2), b"warm", LONG));
    nodes[0].run(|| {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        for n in 0..10_000_u32 {
            socket.send_to(&[&b"numbered"[..], &n.to_be_bytes()].concat(), "10.0.0.2:7000").unwrap();
        }
    });
    let hits = capture.find(b"numbered").unwrap();
    let sent = bridge.counters(ports[0]).unwrap().sent - before;
    // What the wire counted and the capture found differs by neighbour resolution only.
    assert!(sent >= 10_000 && hits.len() == 10_000, "{} found of {sent}", hits.len());
    drop(inbox);
}

#[test]
fn a_frame_of_segmentation_offload_is_captured_whole() {
    use std::io::{Read, Write};
    let (bridge, nodes, _) = star(2);
    let capture = bridge.capture(CaptureOptions::default()).unwrap();
    let listener = nodes[1].run(|| std::net::TcpListener::bind("10.0.0.2:7001").unwrap());
    let sender = nodes[0].thread(|| {
        let mut stream = std::net::TcpStream::connect("10.0.0.2:7001").unwrap();
        stream.write_all(&vec![0x5a; 4 << 20]).unwrap();
    });
    let mut all = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
    sender.join().unwrap();
    let longest = capture.frames().unwrap().iter().map(|f| f.data.len()).max().unwrap();
    assert!(all.len() == 4 << 20 && longest > 1514, "{longest}");
}

#[test]
fn dropping_a_switch_takes_the_devices_of_its_ports_along() {
    let bridge = Bridge::new(&unique_name("sw")).unwrap();
    let a = node("a");
    bridge.attach(&a, &Endpoint::new("eth0")).unwrap();
    bridge.attach(&a, &endpoint(5).mtu(9000)).unwrap_err();
    drop(bridge);
    netlab::eventually(LONG, "the end of eth0", || {
        let links = a.netlink(async |nl| nl.links().await).unwrap();
        if links.len() == 1 { Ok(()) } else { Err(format!("{links:?}")) }
    })
    .unwrap();
}

#[test]
fn a_node_that_reboots_takes_its_old_port_again_with_its_cuts() {
    let (bridge, mut nodes, ports) = star(2);
    let capture = bridge.capture(CaptureOptions::default()).unwrap();
    bridge.cut(ports[1], ports[0]).unwrap();
    nodes.pop();
    let again = node("again-");
    bridge.reattach(ports[1], &again, &endpoint(2)).unwrap();
    assert!(!reaches(&again, &nodes[0], v4(1), b"x", SHORT), "the cut is gone");
    bridge.heal_all().unwrap();
    let seen = netlab::eventually(LONG, "traffic", || {
        if reaches(&again, &nodes[0], v4(1), b"after-reboot", SHORT) { Ok(()) } else { Err("none") }
    });
    seen.unwrap();
    assert_eq!(capture.find(b"after-reboot").unwrap()[0].frame.port, ports[1]);
}
