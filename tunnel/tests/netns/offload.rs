//! Super-packets on the way: intact, and seen by the other side as what the sender's kernel would have made.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::{Lab, Node, Program, Stream, eventually};
use crate::traffic::{pattern, tcp_both_ways};

/// A pair whose sides run these, and know each other.
fn pair(programs: [Program; 2]) -> Lab {
    let lab = Lab::with(&programs);
    let (a, b) = lab.two();
    a.knows(b, Some(b.v4()), "");
    b.knows(a, Some(a.v4()), "");
    a.ns.reaches(&b.inner4());
    lab
}

fn inner(node: &Node, six: bool) -> IpAddr {
    let text = if six { node.inner6() } else { node.inner4() };
    text.parse().unwrap()
}

/// Datagrams of many sizes, and in bulk: one call of the sender makes up to 64 of them (`UDP_SEGMENT`).
fn datagrams(from: &Node, to: &Node, six: bool) {
    let target = SocketAddr::new(inner(to, six), 7100);
    let (sender, receiver) = (from.ns.udp(SocketAddr::new(inner(from, six), 0)), to.ns.udp(target));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // It is read only after all was sent.
    setsockopt(&receiver, sockopt::RcvBufForce, &(8 << 20)).unwrap();
    let mut buffer = vec![0; 70_000];
    let mut expect = |bytes: &[u8]| {
        let n = receiver.recv(&mut buffer).unwrap_or_else(|e| panic!("{} bytes: {e}", bytes.len()));
        assert!(buffer[..n] == *bytes, "{n} bytes arrived, {} were sent", bytes.len());
    };
    let room = if six { 1372 } else { 1392 };
    for len in [0, 1, 2, 3, 15, 16, 17, 1000, 1001, room - 1, room, room + 1, 4000, 9001] {
        let bytes = pattern(len, len as u64);
        sender.send_to(&bytes, target).unwrap();
        expect(&bytes);
    }
    for (segment, len) in [(100, 6400), (101, 6399), (1, 64), (room, room * 40 + 7), (999, 999 * 3)] {
        let bytes = pattern(len, 5);
        setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(segment).unwrap()).unwrap();
        sender.send_to(&bytes, target).unwrap();
        setsockopt(&sender, sockopt::UdpGsoSegment, &0).unwrap();
        bytes.chunks(segment).for_each(&mut expect);
    }
    // Flows that alternate, each with its own order.
    let others: Vec<UdpSocket> = (0..20).map(|_| from.ns.udp(SocketAddr::new(inner(from, six), 0))).collect();
    let mut next = [0u8; 20];
    for round in 0..20u8 {
        for (n, socket) in others.iter().enumerate() {
            socket.send_to(&[round, u8::try_from(n).unwrap(), 7], target).unwrap();
        }
        // A few at a time: wireguard-go drops of more.
        for _ in 0..if round % 4 == 3 { 4 * others.len() } else { 0 } {
            let mut got = [0; 4];
            assert_eq!(receiver.recv(&mut got).unwrap(), 3);
            let next = &mut next[usize::from(got[1])];
            assert_eq!(got[0], *next, "the order within a flow");
            *next += 1;
        }
    }
}

fn check(lab: &Lab) {
    let (a, b) = lab.two();
    for six in [false, true] {
        tcp_both_ways(&a.ns, &b.ns, SocketAddr::new(inner(b, six), 7000), 16 << 20);
        datagrams(a, b, six);
        datagrams(b, a, six);
    }
    for node in [a, b].into_iter().filter(|n| n.program != Program::WireguardGo) {
        for reason in ["malformed", "replay_or_auth", "tun_write", "udp_send", "wrong_source"] {
            assert_eq!(node.count(&format!("drops.{reason}")), 0, "{reason}");
        }
    }
    // No checksum that was vouched for or completed was wrong.
    for node in [a, b] {
        let text = node.ns.run("nstat -asz TcpInCsumErrors UdpInCsumErrors Udp6InCsumErrors");
        let wrong = text.lines().filter(|l| l.contains("Csum") && !l.contains(" 0 ")).count();
        assert_eq!(wrong, 0, "{text}");
    }
}

#[test]
fn with_offload_on_both_sides_everything_arrives_as_it_was_sent() {
    check(&pair([Program::Ours, Program::Ours]));
}

#[test]
fn with_and_without_offload_understand_each_other() {
    check(&pair([Program::Ours, Program::OursPlain]));
}

#[test]
fn without_offload_everything_arrives_as_it_was_sent() {
    check(&pair([Program::OursPlain, Program::OursPlain]));
}

#[test]
fn wireguard_go_gets_and_gives_what_offload_makes_and_takes() {
    check(&pair([Program::Ours, Program::WireguardGo]));
}

#[test]
fn the_host_hands_over_and_takes_super_packets() {
    let lab = pair([Program::Ours, Program::Ours]);
    let (a, b) = lab.two();
    // Packets as the kernel counts them: received by the device, which we wrote, and sent by it, which we read.
    let read = |n: &Node, field: usize| -> u64 {
        let text = n.ns.run("cat /proc/net/dev");
        let line = text.lines().find_map(|l| l.trim().strip_prefix("hawser0:")).unwrap();
        line.split_whitespace().nth(field).unwrap().parse().unwrap()
    };
    let before = (read(a, 9), read(b, 1));
    let sent = a.count("packets.sent");
    tcp_both_ways(&a.ns, &b.ns, SocketAddr::new(inner(b, false), 7000), 16 << 20);
    let (given, taken) = (read(a, 9) - before.0, read(b, 1) - before.1);
    let packets = a.count("packets.sent") - sent;
    assert!(given * 4 < packets, "{given} calls for {packets} packets");
    assert!(taken * 3 < packets, "{taken} calls for {packets} packets");
}

/// Processor time of a process in hundredths of a second.
fn processor(node: &Node) -> u64 {
    let pid = node.process.as_ref().unwrap().0.id();
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn what_a_full_uplink_does_not_take_is_counted_and_what_waits_in_it_arrives() {
    let lab = pair([Program::Ours, Program::Ours]);
    let (a, b) = lab.two();
    // What is sent stays in the queue, and so in the socket's buffer.
    a.ns.run("tc qdisc add dev u0 root tbf rate 2mbit burst 32kb limit 100mb");
    let target = SocketAddr::new(inner(b, false), 7100);
    let (sender, receiver) = (a.ns.udp(SocketAddr::new(inner(a, false), 0)), b.ns.udp(target));
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let packet = pattern(1200, 3);
    eventually("some find no room", Duration::from_secs(20), || {
        for _ in 0..500 {
            sender.send_to(&packet, target).unwrap();
        }
        a.count("drops.udp_send") > 0
    });
    assert!(!a.ns.run("tc -s qdisc show dev u0").contains("backlog 0b"));
    let (before, begun) = (processor(a), std::time::Instant::now());
    let mut buffer = [0; 2000];
    while begun.elapsed() < Duration::from_secs(2) {
        let n = receiver.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..n], packet);
    }
    let used = processor(a) - before;
    assert!(used < 100, "{used} hundredths of a second in two seconds of waiting");
}

#[test]
fn a_path_that_datagrams_are_too_long_for_gets_them_one_by_one() {
    let lab = pair([Program::Ours, Program::Ours]);
    let (a, b) = lab.two();
    let at = SocketAddr::new(inner(b, false), 7000);
    // Datagrams are longer than the path takes: trains are refused, and each is fragmented by itself.
    for n in [a, b] {
        n.ns.run("ip link set u0 mtu 1300");
    }
    tcp_both_ways(&a.ns, &b.ns, at, 2 << 20);
    for n in [a, b] {
        assert_eq!(n.count("drops.udp_send"), 0);
    }
}

#[test]
fn a_device_that_is_down_drops_and_counts_and_carries_on_when_it_is_up() {
    let lab = pair([Program::Ours, Program::Ours]);
    let (a, b) = lab.two();
    b.ns.run("ip link set hawser0 down");
    let socket = a.ns.udp(SocketAddr::new(inner(a, false), 0));
    for _ in 0..10 {
        socket.send_to(b"x", SocketAddr::new(inner(b, false), 9)).unwrap();
    }
    eventually("they are counted", Duration::from_secs(5), || b.count("drops.tun_write") >= 10);
    b.ns.run("ip link set hawser0 up");
    b.ns.run("ip route add 10.0.0.0/8 dev hawser0");
    a.ns.reaches(&b.inner4());
}

#[test]
fn a_side_that_is_killed_under_load_and_comes_back_carries_it_again() {
    let mut lab = pair([Program::Ours, Program::Ours]);
    let ends = (inner(&lab.nodes[0], false), inner(&lab.nodes[1], false));
    let stream = Stream::start((&lab.nodes[0].ns, ends.0), (&lab.nodes[1].ns, ends.1), 1000);
    for _ in 0..3 {
        stream.flows(200);
        lab.nodes[1].kill();
        lab.nodes[1].start();
        let (a, b) = lab.two();
        b.configure();
        b.knows(a, Some(a.v4()), "persistent_keepalive_interval=1\n");
    }
    stream.flows(200);
    let (sent, arrived) = stream.finish();
    assert!(arrived < sent, "while it was dead nothing came through");
    let descriptors = |n: &Node| {
        let pid = n.process.as_ref().unwrap().0.id();
        n.ns.run(&format!("ls /proc/{pid}/fd")).lines().count()
    };
    let (a, b) = lab.two();
    assert!(descriptors(a).abs_diff(descriptors(b)) <= 1, "nothing leaks at the side that stayed");
}
