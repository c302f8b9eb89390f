//! Packets reach the other side: families, integrity, roaming, ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::{Lab, Node, Ns, PORT, Stream, eventually};

/// Bytes that repeat only after a long time, so that a lost, doubled or moved piece shows.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).flatten().take(len).collect()
}

pub(crate) fn tcp_both_ways(client: &Ns, server: &Ns, at: SocketAddr, bytes: usize) {
    let listener = server.within(move || TcpListener::bind(at).unwrap());
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let up = std::thread::spawn(move || writer.write_all(&pattern(bytes, 2)).unwrap());
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        up.join().unwrap();
        assert!(got == pattern(bytes, 1), "bytes to the server differ");
    });
    client.within(move || {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(30)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let up = std::thread::spawn(move || writer.write_all(&pattern(bytes, 1)).unwrap());
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        up.join().unwrap();
        assert!(got == pattern(bytes, 2), "bytes to the client differ");
    });
    serve.join().unwrap();
}

fn check_pair(a: &Node, b: &Node) {
    for (from, to) in [(a, b), (b, a)] {
        from.ns.reaches(&to.inner4());
        from.ns.reaches(&to.inner6());
    }
    for inner in [b.inner4(), b.inner6()] {
        tcp_both_ways(&a.ns, &b.ns, SocketAddr::new(inner.parse().unwrap(), 7000), 8 << 20);
    }
    // Larger than the MTU, so fragments cross too, and exactly the MTU, where there is no room for padding.
    for size in [1392, 1391, 1390, 1376, 6000] {
        a.ns.run(&format!("ping -q -c 1 -W 2 -s {size} {}", b.inner4()));
    }
}

#[test]
fn two_nodes_over_an_ipv4_underlay_carry_both_families_intact() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    check_pair(a, b);
}

#[test]
fn two_nodes_over_an_ipv6_underlay_carry_both_families_intact() {
    let lab = Lab::new(2);
    let (a, b) = lab.two();
    for n in [a, b] {
        n.ns.run("ip -4 addr flush dev u0");
    }
    a.knows(b, Some(b.v6()), "");
    b.knows(a, Some(a.v6()), "");
    check_pair(a, b);
}

#[test]
fn link_local_endpoints_with_a_scope_work() {
    let lab = Lab::new(2);
    let (a, b) = lab.two();
    for n in [a, b] {
        n.ns.run(&format!("ip -6 addr add fe80::{}/64 dev u0 nodad", n.n));
    }
    a.knows(b, Some(format!("[fe80::2%u0]:{PORT}")), "");
    b.knows(a, None, "");
    a.ns.reaches(&b.inner4());
    assert!(b.ns.run("wg show hawser0 endpoints").contains("[fe80::1%u0]:51880"));
}

#[test]
fn a_host_without_ipv6_has_its_tunnels() {
    let mut lab = Lab::bare(&[crate::lab::Program::Ours; 2]);
    for n in &mut lab.nodes {
        std::fs::write(n.ns.proc("root/proc/sys/net/ipv6/conf/all/disable_ipv6"), "").ok();
        n.ns.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1");
        n.ns.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
        n.start();
        n.set(&format!("private_key={}\nlisten_port={PORT}\n", crate::lab::hex(&n.keys.private)));
        n.ns.run(&format!("ip addr add {}/32 dev hawser0", n.inner4()));
        n.ns.run("ip link set hawser0 up");
        n.ns.run("ip route add 10.0.0.0/8 dev hawser0");
    }
    let (a, b) = lab.two();
    a.knows(b, Some(b.v4()), "");
    b.knows(a, Some(a.v4()), "");
    a.ns.reaches(&b.inner4());
}

#[test]
fn three_nodes_form_a_full_mesh() {
    let lab = Lab::new(3);
    for x in &lab.nodes {
        for y in lab.nodes.iter().filter(|y| y.n != x.n) {
            // Mixed underlay: pairs with node 3 use IPv6.
            let endpoint = if x.n == 3 || y.n == 3 { y.v6() } else { y.v4() };
            x.knows(y, Some(endpoint), "");
        }
    }
    for x in &lab.nodes {
        for y in lab.nodes.iter().filter(|y| y.n != x.n) {
            x.ns.reaches(&y.inner4());
            x.ns.reaches(&y.inner6());
        }
    }
}

#[test]
fn the_endpoint_follows_a_peer_whose_address_changes_under_traffic() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let ends = ((&a.ns, a.inner4().parse().unwrap()), (&b.ns, b.inner4().parse().unwrap()));
    let stream = Stream::start(ends.0, ends.1, 200);
    stream.flows(50);
    a.ns.run("ip addr add 192.0.2.101/24 dev u0");
    a.ns.run("ip addr del 192.0.2.1/24 dev u0");
    a.ns.run("ip addr replace 192.0.2.101/24 dev u0");
    eventually("b follows", Duration::from_secs(5), || b.get().contains("endpoint=192.0.2.101:51880"));
    stream.flows(50);
    let (sent, arrived) = stream.finish();
    assert!(arrived * 100 >= sent * 90, "{arrived} of {sent}");
    b.ns.reaches(&a.inner4());
    assert_eq!(b.count("handshakes.completed"), 1, "no new handshake was needed");
}

#[test]
fn a_changed_listen_port_is_followed_by_the_peer_under_traffic() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let ends = ((&a.ns, a.inner4().parse().unwrap()), (&b.ns, b.inner4().parse().unwrap()));
    let stream = Stream::start(ends.0, ends.1, 200);
    stream.flows(50);
    for port in [41000, 41001, 41000] {
        b.set(&format!("listen_port={port}\n"));
        assert!(b.get().contains(&format!("listen_port={port}\n")));
        eventually("a follows", Duration::from_secs(5), || {
            a.get().contains(&format!("endpoint=192.0.2.2:{port}\n"))
        });
        stream.flows(20);
    }
    // Only what is sent before the first packet from the new port is lost: at most a timer tick each.
    let (sent, arrived) = stream.finish();
    assert!(sent - arrived <= 3 * 40, "{arrived} of {sent}");
    assert_eq!(b.count("handshakes.completed"), 1);
}

#[test]
fn a_port_in_use_is_reported_and_the_old_one_stays() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    let taken = b.ns.udp("0.0.0.0:41000".parse().unwrap());
    assert_eq!(b.uapi("set=1\nlisten_port=41000\n"), "errno=-98\n\n");
    a.ns.reaches(&b.inner4());
    drop(taken);
    // A child that another test has just forked may have it for a moment longer.
    eventually("the port is free", Duration::from_secs(5), || {
        b.uapi("set=1\nlisten_port=41000\n") == "errno=0\n\n"
    });
    b.set("listen_port=0\n");
    let port = b.get().lines().find_map(|l| l.strip_prefix("listen_port=").map(str::to_owned)).unwrap();
    assert_ne!(port, "0");
    b.ns.reaches(&a.inner4());
}

#[test]
fn datagrams_carry_the_fwmark_and_a_change_takes_effect() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.run("nft add table inet t");
    a.ns.run("nft add chain inet t out { type filter hook output priority 0 ; }");
    a.ns.run("nft add rule inet t out meta mark 0x20 udp dport 51880 counter");
    a.ns.run("nft add rule inet t out meta mark 0x40 udp dport 51880 counter");
    let packets = || -> Vec<u64> {
        let text = a.ns.run("nft list table inet t");
        let counts = text.split("packets ").skip(1);
        counts.map(|t| t.split_whitespace().next().unwrap().parse().unwrap()).collect()
    };
    a.ns.run("wg set hawser0 fwmark 0x20");
    a.ns.reaches(&b.inner4());
    let first = packets();
    assert!(first[0] > 0 && first[1] == 0, "{first:?}");
    a.ns.run("wg set hawser0 fwmark 0x40");
    a.set("listen_port=41000\n"); // New sockets have the mark, too.
    a.ns.reaches(&b.inner4());
    let second = packets();
    assert!(second[0] == first[0] && second[1] > 0, "{second:?}");
    assert!(a.get().contains("fwmark=64\n"));
}
