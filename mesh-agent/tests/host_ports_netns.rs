//! hostPorts in the kernel: what nft lists, where packets go, beside another's translation, and what pods may not reach.

#![allow(clippy::unwrap_used, reason = "what is written in a test parses")]

mod nft_lab;

use std::net::{SocketAddr, UdpSocket};

use mesh_agent::facts::pod::HostPort;
use mesh_agent::host_ports::{Published, TABLE, counter, ruleset};
use mesh_agent::nft::{Difference, Nft, diff, lacks};
use mesh_core::policy::model::Protocol;
use nft_lab::Lab;

fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> Published {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    Published {
        port: HostPort { protocol, host_port, host_ip, container_port: 7000 },
        ips: vec!["10.244.1.5".parse().unwrap(), "fd44:1::5".parse().unwrap()],
    }
}

fn ports() -> Vec<Published> {
    vec![
        port(Protocol::Udp, None, 8000),
        port(Protocol::Udp, Some("192.0.2.1"), 8001),
        port(Protocol::Udp, Some("2001:db8::1"), 8002),
        port(Protocol::Sctp, Some("0.0.0.0"), 8003),
        port(Protocol::Udp, None, 8004),
    ]
}

/// A node with a pod and the world.
fn lab() -> Lab {
    let lab = Lab::new(&["node", "pod", "world"]);
    lab.veth(("node", "hw0123456789abc"), ("pod", "eth0"));
    lab.veth(("node", "eth0"), ("world", "eth0"));
    for (role, command) in [
        ("node", "address add 10.244.1.1/32 dev lo"),
        ("node", "address add fd44:1::1/128 dev lo nodad"),
        ("node", "address add 192.0.2.1/24 dev eth0"),
        ("node", "address add 2001:db8::1/64 dev eth0 nodad"),
        ("node", "address add fe80::1/64 dev hw0123456789abc nodad"),
        ("pod", "address add 10.244.1.5/32 dev eth0"),
        ("pod", "address add fd44:1::5/128 dev eth0 nodad"),
        ("world", "address add 192.0.2.9/24 dev eth0"),
        ("world", "address add 2001:db8::9/64 dev eth0 nodad"),
        ("node", "route add 10.244.1.5 dev hw0123456789abc"),
        ("node", "-6 route add fd44:1::5 dev hw0123456789abc"),
        ("pod", "route add default dev eth0"),
        ("pod", "-6 route add default via fe80::1 dev eth0"),
    ] {
        lab.ip(role, command);
    }
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/hw0123456789abc/proxy_arp", "1"),
        ("ipv4/conf/hw0123456789abc/route_localnet", "1"),
    ] {
        lab.sysctl("node", key, value);
    }
    lab
}

fn apply(lab: &Lab) -> Nft {
    let mut nft = Nft::of(TABLE);
    lab.inside("node", || nft.apply(&ruleset(&ports(), "hw").unwrap())).expect("the kernel takes it");
    nft
}

/// A question from `from` to `to` and the pod's answer, by the same socket. None: nobody has heard it.
fn asked(from: &UdpSocket, to: &str, pod: &UdpSocket) -> Option<SocketAddr> {
    let to: SocketAddr = to.parse().unwrap();
    from.connect(to).ok()?;
    from.send(b"?").ok()?;
    pod.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let (_, source) = pod.recv_from(&mut [0; 8]).ok()?;
    pod.send_to(b"!", source).unwrap();
    from.recv(&mut [0; 8]).expect("the answer comes from where the question went");
    Some(source)
}

#[test]
fn nft_lists_the_maps_and_our_own_reading_finds_no_difference() {
    let lab = Lab::new(&["node"]);
    let mut nft = apply(&lab);
    let text = lab.sh("node", "nft list table inet hawser_hostports", "");
    for line in [
        "type inet_proto . inet_service : ipv4_addr . inet_service",
        "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
        "192.0.2.1 . udp . 8001 : 10.244.1.5 . 7000",
        "2001:db8::1 . udp . 8002 : fd44:1::5 . 7000",
        "sctp . 8003 : 10.244.1.5 . 7000",
        "type nat hook prerouting priority dstnat + 1; policy accept;",
        "fib daddr type local counter packets 0 bytes 0 dnat ip to ip daddr . meta l4proto . th dport map @at_v4",
        "dnat ip6 to meta l4proto . th dport map @any_v6",
        "iifname \"hw*\" ip daddr @loopback_v4 counter packets 0 bytes 0 drop",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let wanted = ruleset(&ports(), "hw").unwrap();
    let observed = lab.inside("node", || nft.observe()).unwrap();
    assert_eq!(diff(&wanted, &observed).unwrap(), []);
    // Some of it is in it, and something else is not.
    let one = ruleset(&ports()[1..2], "hw").unwrap();
    assert_eq!(lacks(&one, &observed).unwrap(), []);
    let other = ruleset(&[port(Protocol::Tcp, None, 8000)], "hw").unwrap();
    let missing = ["any_v4", "any_v6"].map(|map| Difference::SetElements(map.to_owned()));
    assert_eq!(lacks(&other, &observed).unwrap(), missing);
    let elsewhere = "nft delete element inet hawser_hostports any_v4 { udp . 8000 } ; nft add element inet \
         hawser_hostports any_v4 { udp . 8000 : 10.244.1.6 . 7000 }";
    lab.sh("node", "sh -c", elsewhere);
    let found = lab.inside("node", || nft.ensure(&wanted)).unwrap();
    assert_eq!(found, [Difference::SetElements("any_v4".to_owned())]);
    assert_eq!(lab.inside("node", || nft.ensure(&wanted)).unwrap(), []);
}

#[test]
fn who_comes_from_outside_or_from_the_node_finds_the_pod_where_it_was_published_and_keeps_its_source() {
    let lab = lab();
    let mut nft = apply(&lab);
    // Who stands at -100 comes first, and what it does not want goes on to us.
    let other = "table inet other { chain services { type nat hook prerouting priority dstnat; ip daddr 192.0.2.1 udp dport 8004 \
         dnat ip to 10.244.1.5:7009; }; }";
    lab.sh("node", "nft", other);
    let (four, six, theirs) = (
        lab.udp("pod", "10.244.1.5:7000"),
        lab.udp("pod", "[fd44:1::5]:7000"),
        lab.udp("pod", "10.244.1.5:7009"),
    );
    let source = |text: &str| Some(text.parse::<std::net::IpAddr>().unwrap());
    for (role, local, to, pod, seen) in [
        ("world", "192.0.2.9:0", "192.0.2.1:8000", &four, source("192.0.2.9")),
        ("world", "[2001:db8::9]:0", "[2001:db8::1]:8000", &six, source("2001:db8::9")),
        ("world", "192.0.2.9:0", "192.0.2.1:8001", &four, source("192.0.2.9")),
        ("world", "[2001:db8::9]:0", "[2001:db8::1]:8001", &six, None),
        ("world", "[2001:db8::9]:0", "[2001:db8::1]:8002", &six, source("2001:db8::9")),
        ("world", "192.0.2.9:0", "192.0.2.1:8002", &four, None),
        ("world", "192.0.2.9:0", "192.0.2.1:8003", &four, None),
        ("world", "192.0.2.9:0", "192.0.2.1:8004", &theirs, source("192.0.2.9")),
        ("world", "[2001:db8::9]:0", "[2001:db8::1]:8004", &six, source("2001:db8::9")),
        ("node", "192.0.2.1:0", "192.0.2.1:8000", &four, source("192.0.2.1")),
        ("node", "[2001:db8::1]:0", "[2001:db8::1]:8000", &six, source("2001:db8::1")),
        ("node", "127.0.0.1:0", "127.0.0.1:8000", &four, source("10.244.1.1")),
        ("node", "127.0.0.1:0", "127.0.0.1:8001", &four, None),
        ("node", "[::1]:0", "[::1]:8000", &six, None),
    ] {
        let from = lab.udp(role, local);
        assert_eq!(asked(&from, to, pod).map(|source| source.ip()), seen, "{role} to {to}");
    }
    let counters = lab.inside("node", || nft.counters()).unwrap();
    assert_eq!(counters[counter::HOST_PORT_LOOPBACK].packets, 1);
    assert_eq!(counters[counter::HOST_PORT_LOCAL].packets, 3);
    assert_eq!(counters[counter::HOST_PORT_IN].packets, 5);
}

#[test]
fn a_pod_does_not_reach_the_loopback_though_its_link_routes_it() {
    let lab = lab();
    let secret = lab.udp("node", "127.0.0.1:10250");
    secret.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    lab.ip("pod", "address del 127.0.0.1/8 dev lo");
    lab.ip("pod", "route add 127.0.0.1 dev eth0 src 10.244.1.5");
    lab.sysctl("pod", "ipv4/conf/eth0/route_localnet", "1");
    let pod = lab.udp("pod", "10.244.1.5:0");
    let heard = |text: &[u8]| {
        pod.send_to(text, "127.0.0.1:10250").expect("sent");
        secret.recv_from(&mut [0; 8]).is_ok()
    };
    lab.ip("pod", &format!("neigh replace 127.0.0.1 lladdr {} dev eth0", mac_of(&lab)));
    assert!(heard(b"open"), "without the table it would: the test could see it");
    let mut nft = apply(&lab);
    assert!(!heard(b"shut"));
    assert_eq!(lab.inside("node", || nft.counters()).unwrap()[counter::LOOPBACK_REFUSED].packets, 1);
}

fn mac_of(lab: &Lab) -> String {
    let link = lab.sh("node", "ip -o link show hw0123456789abc", "");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}
