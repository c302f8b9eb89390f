//! The ruleset in the kernel: what nft lists, what packets meet, and what drift does.

#![allow(clippy::unwrap_used, reason = "what is written in a test parses")]

mod nft_lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use mesh_agent::nft::{Difference, HostGuard, Nft, NftError, NftInput, counter, diff, ruleset};
use mesh_core::numbers::MARK_WIREGUARD;
use nft_lab::{Lab, eventually};

/// Node 1 with a pod, its uplink to the world, and a plain veth as slot: what lies behind a slot is WireGuard's matter.
/// The world's namespace also plays node 2 (192.0.2.2), a pod of it in plaintext (10.244.2.7) and an exempt host.
fn lab() -> Lab {
    let lab = Lab::new(&["node", "pod", "world", "mesh"]);
    lab.veth(("node", "hw0123456789abc"), ("pod", "eth0"));
    lab.veth(("node", "eth0"), ("world", "eth0"));
    lab.veth(("node", "hawser0"), ("mesh", "eth0"));
    let address = |role: &str, device: &str, addresses: &[&str]| {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            lab.ip(role, &format!("address add {address} dev {device} {nodad}"));
        }
    };
    address("node", "lo", &["10.244.1.1/32", "fd44:1::1/128", "203.0.113.77/32", "2001:db8:77::1/128"]);
    address("node", "eth0", &["192.0.2.1/24", "2001:db8::1/64"]);
    address("node", "hw0123456789abc", &["169.254.0.1/32", "fe80::1/64"]);
    address("node", "hawser0", &["169.254.9.1/32", "fd99::1/128"]);
    address("pod", "eth0", &["10.244.1.5/32", "fd44:1::5/128"]);
    address("world", "eth0", &["192.0.2.9/24", "2001:db8::9/64", "192.0.2.2/24", "2001:db8::2/64"]);
    address("world", "lo", &["10.244.2.7/32", "fd44:2::7/128", "198.51.100.7/32", "2001:db8:99::7/128"]);
    address("mesh", "lo", &["10.244.3.8/32", "fd44:3::8/128"]);
    for (role, command) in [
        ("node", "route add 10.244.1.5 dev hw0123456789abc"),
        ("node", "route add fd44:1::5 dev hw0123456789abc"),
        ("pod", "route add default dev eth0"),
        ("pod", "route add fe80::1 dev eth0"),
        ("pod", "route add default via fe80::1 dev eth0"),
        ("node", "route add 10.244.2.0/24 via 192.0.2.9"),
        ("node", "route add fd44:2::/64 via 2001:db8::9"),
        ("node", "route add 198.51.100.7 via 192.0.2.9"),
        ("node", "route add 2001:db8:99::7 via 2001:db8::9"),
        ("node", "route add 10.244.3.0/24 dev hawser0"),
        ("node", "route add fd44:3::/64 dev hawser0"),
        ("world", "route add 10.244.1.0/24 via 192.0.2.1"),
        ("world", "route add fd44:1::/64 via 2001:db8::1"),
        ("mesh", "route add default dev eth0"),
        ("mesh", "-6 route add default dev eth0"),
    ] {
        let six = if command.contains("::") { "-6 " } else { "" };
        lab.ip(role, &format!("{six}{command}"));
    }
    for (role, key, value) in [
        ("node", "ipv4/ip_forward", "1"),
        ("node", "ipv6/conf/all/forwarding", "1"),
        ("node", "ipv4/conf/hw0123456789abc/proxy_arp", "1"),
        ("mesh", "ipv4/conf/eth0/proxy_arp", "1"),
        ("mesh", "ipv6/conf/all/proxy_ndp", "1"),
    ] {
        lab.sysctl(role, key, value);
    }
    // The veth that plays a slot needs neighbours, which a WireGuard device does not.
    let mac = mac_of(&lab, "mesh", "eth0");
    lab.ip("node", &format!("neigh add 10.244.3.8 lladdr {mac} dev hawser0"));
    lab.ip("node", &format!("neigh add fd44:3::8 lladdr {mac} dev hawser0"));
    lab
}

fn mac_of(lab: &Lab, role: &str, device: &str) -> String {
    let link = lab.sh(role, &format!("ip -o link show {device}"), "");
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    mac.expect("an Ethernet address").to_owned()
}

fn input() -> NftInput {
    NftInput {
        guarded: vec!["10.244.0.0/16".parse().unwrap(), "fd44::/16".parse().unwrap()],
        own_pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd44:1::/64".parse().unwrap()],
        own_node_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        peer_node_ips: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        mesh: vec!["10.244.1.1".parse().unwrap(), "fd44:1::1".parse().unwrap()],
        non_masquerade: vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:99::/64".parse().unwrap()],
        service_cidrs: vec!["198.51.100.128/25".parse().unwrap(), "2001:db8:99:0:8000::/65".parse().unwrap()],
        translates: true,
        slots: ["hawser0".into(), "hawser1".into()],
        pod_veth_prefix: "hw".into(),
        tunnel_ports: [51880, 51881],
        hosts: HostGuard::default(),
    }
}

/// With what nodes themselves say to each other in the tunnel.
fn closed() -> NftInput {
    let peers = vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()];
    NftInput {
        hosts: HostGuard { closed: peers, sources: Vec::new(), require: true, exempt_tcp: [6443].into() },
        ..input()
    }
}

fn apply(lab: &Lab, nft: &mut Nft) {
    lab.inside("node", || nft.apply(&ruleset(&input()))).expect("the kernel takes the ruleset");
}

fn packets(lab: &Lab, nft: &mut Nft, name: &str) -> u64 {
    lab.inside("node", || nft.counters()).expect("counters").get(name).map_or(0, |counter| counter.packets)
}

/// Sends from `from` until `to` has it (the first packet may wait for a neighbour); the source that it saw.
fn delivered(from: &UdpSocket, to: &UdpSocket, destination: &str) -> IpAddr {
    from.send_to(b"canary", destination.parse::<SocketAddr>().unwrap()).expect("sent");
    let (payload, source) = received(to).unwrap_or_else(|error| panic!("{destination}: {error}"));
    assert_eq!(payload, b"canary");
    source.ip()
}

/// The next datagram; a signal is none.
fn received(socket: &UdpSocket) -> std::io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => {
                let (length, source) = received?;
                buffer.truncate(length);
                return Ok((buffer, source));
            }
        }
    }
}

/// Sends from `from` until the counter `name` says that it was refused, and sees that `to` got nothing.
fn refused(lab: &Lab, nft: &mut Nft, name: &str, from: &UdpSocket, to: &UdpSocket, destination: &str) {
    let destination: SocketAddr = destination.parse().unwrap();
    let before = packets(lab, nft, name);
    eventually(&format!("{name} counts a packet to {destination}"), || {
        // A local packet that a hook drops is an error of the sender (EPERM).
        let _ = from.send_to(b"canary", destination);
        packets(lab, nft, name) > before
    });
    to.set_nonblocking(true).unwrap();
    assert!(to.recv_from(&mut [0; 16]).is_err(), "a packet to {destination} passed");
    to.set_nonblocking(false).unwrap();
}

#[test]
fn nft_lists_every_chain_set_and_comment_and_our_own_reading_finds_no_difference() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    lab.inside("node", || nft.apply(&ruleset(&closed()))).expect("the kernel takes the ruleset");
    let json: serde_json::Value =
        serde_json::from_str(&lab.sh("node", "nft -j list ruleset", "")).expect("nft prints JSON");
    let objects = json["nftables"].as_array().expect("a list");
    let named = |kind: &str| -> Vec<String> {
        let all = objects.iter().filter_map(|object| object.get(kind));
        all.map(|object| object["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let wanted = ruleset(&closed());
    assert_eq!(named("table"), ["hawser"]);
    let mut chains = named("chain");
    chains.sort();
    let all = [
        "refuse_host_in",
        "refuse_host_out",
        "refuse_in",
        "refuse_out",
        "refuse_to_node",
        "refuse_to_service",
        "translate",
    ];
    assert_eq!(chains, all);
    let mut sets = named("set");
    sets.sort();
    let mut wanted_sets: Vec<_> = wanted.sets.iter().map(|set| set.name.clone()).collect();
    wanted_sets.sort();
    assert_eq!(sets, wanted_sets);
    let comments: Vec<_> = objects
        .iter()
        .filter_map(|object| object.get("rule")?["comment"].as_str().map(str::to_owned))
        .collect();
    let wanted_comments: Vec<_> =
        wanted.chains.iter().flat_map(|chain| &chain.rules).map(|rule| rule.comment.clone()).collect();
    assert_eq!(comments, wanted_comments);
    let text = lab.sh("node", "nft list table inet hawser", "");
    for line in [
        "type nat hook postrouting priority srcnat - 5; policy accept;",
        "type filter hook prerouting priority raw; policy accept;",
        "oifname != @slots oifname != \"hw*\" oifname != \"lo\" ip daddr @guarded_v4 ip saddr != @exempt_v4 counter",
        "masquerade fully-random",
        "snat ip to 10.244.1.1",
        "snat ip6 to fd44:1::1",
        "iifname \"hw*\" oifname @slots meta nfproto ipv4 ct original ip daddr @services_v4 counter",
        "meta nfproto ipv6 ct original ip6 daddr @services_v6 counter",
        "meta mark & 0x00004000 == 0x00004000",
        "elements = { 10.244.0.0/16 }",
        "elements = { \"hawser0\",",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let observed = lab.inside("node", || nft.observe()).expect("observed");
    assert_eq!(diff(&wanted, &observed).unwrap(), []);
}

#[test]
fn a_ruleset_written_by_nft_itself_from_our_listing_is_the_same_but_for_our_hashes() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    let text = lab.sh("node", "nft list ruleset", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("flush ruleset\n{text}")).unwrap();
    lab.sh("node", "nft -f", file.path().to_str().unwrap());
    assert_eq!(text, lab.sh("node", "nft list ruleset", ""), "nft understood every expression");
}

#[test]
fn pods_reach_the_world_by_masquerade_and_are_counted() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    for (pod, world, node, port) in [
        ("10.244.1.5:0", "192.0.2.9", "192.0.2.1", 7001),
        ("[fd44:1::5]:0", "[2001:db8::9]", "2001:db8::1", 7001),
    ] {
        let before = packets(&lab, &mut nft, counter::MASQUERADED_TO_WORLD);
        let to = format!("{world}:{port}");
        let (pod, world) = (lab.udp("pod", pod), lab.udp("world", &to));
        assert_eq!(delivered(&pod, &world, &to), node.parse::<IpAddr>().unwrap());
        assert_eq!(packets(&lab, &mut nft, counter::MASQUERADED_TO_WORLD), before + 1);
    }
    assert_eq!(packets(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V4), 0, "the guard sees translated sources");
    assert_eq!(packets(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V6), 0, "the guard sees translated sources");
}

#[test]
fn exempt_destinations_see_the_pods_own_address_in_both_directions() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    for (pod_address, exempt) in
        [("10.244.1.5:7002", "198.51.100.7:7002"), ("[fd44:1::5]:7002", "[2001:db8:99::7]:7002")]
    {
        let (pod, world) = (lab.udp("pod", pod_address), lab.udp("world", exempt));
        let own = pod_address.parse::<SocketAddr>().unwrap().ip();
        assert_eq!(delivered(&pod, &world, exempt), own);
        assert_eq!(delivered(&world, &pod, pod_address), exempt.parse::<SocketAddr>().unwrap().ip());
    }
    assert_eq!(packets(&lab, &mut nft, counter::MASQUERADED_TO_WORLD), 0);
}

#[test]
fn plaintext_with_a_guarded_address_is_refused_out_and_in_and_passes_without_the_guard() {
    let lab = lab();
    let mut nft = Nft::new();
    // (from, its address, to, its address, counter): forwarded, local, in by source and in by destination.
    let cases = [
        ("pod", "10.244.1.5:0", "10.244.2.7:7003", counter::LEAK_REFUSED_OUT_V4),
        ("node", "192.0.2.1:0", "10.244.2.7:7004", counter::LEAK_REFUSED_OUT_V4),
        ("node", "10.244.1.1:0", "10.244.2.7:7005", counter::LEAK_REFUSED_OUT_V4),
        ("pod", "[fd44:1::5]:0", "[fd44:2::7]:7003", counter::LEAK_REFUSED_OUT_V6),
        ("node", "[2001:db8::1]:0", "[fd44:2::7]:7004", counter::LEAK_REFUSED_OUT_V6),
        ("world", "10.244.2.7:0", "10.244.1.5:7006", counter::REFUSED_IN_V4),
        ("world", "192.0.2.9:0", "10.244.1.5:7007", counter::REFUSED_IN_V4),
        ("world", "10.244.2.7:0", "192.0.2.1:7008", counter::REFUSED_IN_V4),
        ("world", "[fd44:2::7]:0", "[fd44:1::5]:7006", counter::REFUSED_IN_V6),
        ("world", "[2001:db8::9]:0", "[fd44:1::5]:7007", counter::REFUSED_IN_V6),
    ];
    for (from, local, remote, name) in cases {
        lab.inside("node", || nft.remove()).expect("removed");
        let to = match remote {
            _ if remote.starts_with("10.244.2.") || remote.starts_with("[fd44:2:") => "world",
            _ if remote.starts_with("192.") => "node",
            _ => "pod",
        };
        let (from, to) = (lab.udp(from, local), lab.udp(to, remote));
        delivered(&from, &to, remote);
        apply(&lab, &mut nft);
        refused(&lab, &mut nft, name, &from, &to, remote);
    }
}

#[test]
fn a_pod_reaches_no_other_node_by_an_uplink_while_nodes_reach_each_other() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    for (pod, node, own) in [
        ("10.244.1.5:0", "192.0.2.2:51880", "192.0.2.1"),
        ("[fd44:1::5]:0", "[2001:db8::2]:51880", "2001:db8::1"),
    ] {
        let peer = lab.udp("world", node);
        let pod = lab.udp("pod", pod);
        refused(&lab, &mut nft, counter::LEAK_REFUSED_TO_NODE, &pod, &peer, node);
        // WireGuard's own way.
        let port = if own.contains(':') { format!("[{own}]:51880") } else { format!("{own}:51880") };
        let tunnel = lab.udp("node", &port);
        assert_eq!(delivered(&tunnel, &peer, node), own.parse::<IpAddr>().unwrap());
        delivered(&peer, &tunnel, &port);
    }
    assert_eq!(packets(&lab, &mut nft, counter::MASQUERADED_TO_WORLD), 0, "dropped before it is translated");
}

#[test]
fn what_pods_send_to_a_services_address_that_is_nobodys_does_not_leave_but_the_nodes_own_does() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    for (pod, service, own) in [
        ("10.244.1.5:0", "198.51.100.200:7013", "192.0.2.1:0"),
        ("[fd44:1::5]:0", "[2001:db8:99:0:8000::7]:7013", "[2001:db8::1]:0"),
    ] {
        let address = service.parse::<SocketAddr>().unwrap().ip();
        let (length, gateway) = if address.is_ipv4() { (32, "192.0.2.9") } else { (128, "2001:db8::9") };
        lab.ip("world", &format!("address add {address}/{length} dev lo"));
        lab.ip("node", &format!("route add {address}/{length} via {gateway}"));
        let (pod, world, node) = (lab.udp("pod", pod), lab.udp("world", service), lab.udp("node", own));
        // Though it is among what is exempt.
        refused(&lab, &mut nft, counter::SERVICE_UNKNOWN, &pod, &world, service);
        delivered(&node, &world, service);
    }
    assert_eq!(packets(&lab, &mut nft, counter::MASQUERADED_TO_WORLD), 0, "dropped before it is translated");
}

#[test]
fn what_somebody_else_translates_into_a_slot_is_refused_where_the_data_path_has_services_and_passes_where_it_has_none()
 {
    let lab = lab();
    let mut nft = Nft::new();
    let proxy = tempfile::NamedTempFile::new().unwrap();
    let rules = "table inet proxy {
        chain prerouting {
            type nat hook prerouting priority dstnat
            ip daddr 198.51.100.200 dnat ip to 10.244.3.8
            ip6 daddr 2001:db8:99:0:8000::7 dnat ip6 to fd44:3::8
        }
    }\n";
    std::fs::write(proxy.path(), rules).unwrap();
    lab.sh("node", "nft -f", proxy.path().to_str().unwrap());
    // So that the node answers for it on the pod's link.
    lab.ip("node", "route add 198.51.100.200 via 192.0.2.9");
    for (pod, service, backend, own) in [
        ("10.244.1.5:0", "198.51.100.200:7014", "10.244.3.8:7014", "10.244.1.5"),
        ("[fd44:1::5]:0", "[2001:db8:99:0:8000::7]:7014", "[fd44:3::8]:7014", "fd44:1::5"),
    ] {
        let (pod, mesh) = (lab.udp("pod", pod), lab.udp("mesh", backend));
        apply(&lab, &mut nft);
        refused(&lab, &mut nft, counter::SERVICE_UNKNOWN, &pod, &mesh, service);
        // Said to the backend itself.
        assert_eq!(delivered(&pod, &mesh, backend), own.parse::<IpAddr>().unwrap());
        let off = ruleset(&NftInput { translates: false, ..input() });
        lab.inside("node", || nft.apply(&off)).expect("the kernel takes the ruleset");
        assert_eq!(delivered(&pod, &mesh, service), own.parse::<IpAddr>().unwrap());
    }
}

fn connect(lab: &Lab, server: (&str, &str), client: (&str, &str)) -> std::io::Result<()> {
    connect_within(lab, server, client, std::time::Duration::from_secs(5))
}

fn connect_within(
    lab: &Lab,
    (server, to): (&str, &str),
    (client, from): (&str, &str),
    patience: std::time::Duration,
) -> std::io::Result<()> {
    use socket2::{Domain, Socket, Type};
    let (to, from): (SocketAddr, SocketAddr) = (to.parse().unwrap(), from.parse().unwrap());
    let _listener = lab.inside(server, || std::net::TcpListener::bind(to))?;
    lab.inside(client, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), patience)
    })
}

#[test]
fn where_hosts_are_in_the_tunnel_nothing_passes_between_them_outside_but_wireguard_discovery_and_exempt_ports()
 {
    let lab = lab();
    let mut nft = Nft::new();
    let own =
        |v4: bool, port: u16| if v4 { format!("192.0.2.1:{port}") } else { format!("[2001:db8::1]:{port}") };
    let other =
        |v4: bool, port: u16| if v4 { format!("192.0.2.2:{port}") } else { format!("[2001:db8::2]:{port}") };
    lab.inside("node", || nft.apply(&ruleset(&closed()))).expect("the kernel takes the ruleset");
    for v4 in [true, false] {
        let (out, back) = if v4 {
            (counter::HOST_REFUSED_OUT_V4, counter::HOST_REFUSED_IN_V4)
        } else {
            (counter::HOST_REFUSED_OUT_V6, counter::HOST_REFUSED_IN_V6)
        };
        let (node, peer) = (lab.udp("node", &own(v4, 7001)), lab.udp("world", &other(v4, 7001)));
        refused(&lab, &mut nft, out, &node, &peer, &other(v4, 7001));
        refused(&lab, &mut nft, back, &peer, &node, &own(v4, 7001));
        // WireGuard, by its mark and its port; neighbours had to be found for it.
        let (tunnel, end) = (lab.udp("node", &own(v4, 51880)), lab.udp("world", &other(v4, 51880)));
        socket2::SockRef::from(&tunnel).set_mark(MARK_WIREGUARD).expect("a mark");
        delivered(&tunnel, &end, &other(v4, 51880));
        delivered(&end, &tunnel, &own(v4, 51880));
        // The API server of a peer, and of this node.
        for (server, client, address) in
            [("world", "node", other(v4, 6443)), ("node", "world", own(v4, 6443))]
        {
            let from = if client == "node" { own(v4, 0) } else { other(v4, 0) };
            connect(&lab, (server, &address), (client, &from))
                .unwrap_or_else(|error| panic!("{client} to {address}: {error}"));
        }
        // A port at which nobody serves but from which a peer, or who forges its address, would like to connect.
        let (server, client) = (own(v4, 7002), other(v4, 6443));
        let before = packets(&lab, &mut nft, back);
        let forged = connect_within(
            &lab,
            ("node", &server),
            ("world", &client),
            std::time::Duration::from_millis(300),
        );
        assert!(
            forged.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut),
            "{client} to {server}"
        );
        assert!(packets(&lab, &mut nft, back) > before, "{back}");
        // From a node that is no peer of this kind.
        let stranger = lab.udp("world", if v4 { "192.0.2.9:0" } else { "[2001:db8::9]:0" });
        delivered(&stranger, &node, &own(v4, 7001));
    }
}

#[test]
fn into_a_slot_strangers_and_marked_packets_take_the_mesh_address_whatever_masquerades_at_100() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    let kube_proxy = "table inet other { chain wish { type filter hook output priority 0; udp dport 7010 meta mark set \
         meta mark | 0x4000; }; chain post { type nat hook postrouting priority 100; meta mark & 0x4000 == 0x4000 \
         masquerade; }; }";
    lab.sh("node", "nft", kube_proxy);
    let cases = [
        ("node", "192.0.2.1:0", "10.244.3.8:7009", "192.0.2.1"),
        ("node", "192.0.2.1:0", "10.244.3.8:7010", "10.244.1.1"),
        ("node", "203.0.113.77:0", "10.244.3.8:7009", "10.244.1.1"),
        ("pod", "10.244.1.5:0", "10.244.3.8:7009", "10.244.1.5"),
        ("node", "[2001:db8::1]:0", "[fd44:3::8]:7009", "2001:db8::1"),
        ("node", "[2001:db8::1]:0", "[fd44:3::8]:7010", "fd44:1::1"),
        ("node", "[2001:db8:77::1]:0", "[fd44:3::8]:7009", "fd44:1::1"),
        ("pod", "[fd44:1::5]:0", "[fd44:3::8]:7009", "fd44:1::5"),
    ];
    for (role, local, remote, seen) in cases {
        let (from, to) = (lab.udp(role, local), lab.udp("mesh", remote));
        assert_eq!(delivered(&from, &to, remote), seen.parse::<IpAddr>().unwrap(), "{local} to {remote}");
    }
    assert_eq!(packets(&lab, &mut nft, counter::SNAT_INTO_MESH), 4);
}

#[test]
fn drift_is_seen_and_repaired_and_counters_go_on_across_repair_flush_and_agent() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    let desired = ruleset(&input());
    let (from, to) = (lab.udp("node", "192.0.2.1:0"), lab.udp("world", "10.244.2.7:7011"));
    let strangers = [
        ("nft delete rule inet hawser refuse_out handle HANDLE", Difference::Rules("refuse_out".into(), 1)),
        (
            "nft replace rule inet hawser refuse_out handle HANDLE accept",
            Difference::Rules("refuse_out".into(), 1),
        ),
        ("nft add rule inet hawser translate accept", Difference::Rules("translate".into(), 8)),
        ("nft insert rule inet hawser refuse_in accept", Difference::Rules("refuse_in".into(), 0)),
        (
            "nft delete element inet hawser guarded_v4 {10.244.0.0/16}",
            Difference::SetElements("guarded_v4".into()),
        ),
        ("nft add element inet hawser exempt_v4 {10.0.0.0/8}", Difference::SetElements("exempt_v4".into())),
        ("nft add element inet hawser slots {eth0}", Difference::SetElements("slots".into())),
        ("nft add table inet hawser {flags dormant;}", Difference::TableFlags),
        ("nft chain inet hawser refuse_in {policy drop;}", Difference::ChainBase("refuse_in".into())),
        ("nft add chain inet hawser extra", Difference::ChainForeign("extra".into())),
        ("nft add set inet hawser extra {type mark;}", Difference::SetForeign("extra".into())),
        ("nft flush chain inet hawser refuse_to_node", Difference::Rules("refuse_to_node".into(), 0)),
        ("nft flush ruleset", Difference::TableMissing),
    ];
    for (command, difference) in strangers {
        refused(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V4, &from, &to, "10.244.2.7:7011");
        let before = packets(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V4);
        let listing = lab.sh("node", "nft -a list chain inet hawser refuse_out", "");
        let rules = listing.lines().filter(|line| line.contains("counter"));
        let handles: Vec<_> = rules.filter_map(|line| line.rsplit("# handle ").next()).collect();
        lab.sh("node", &command.replace("HANDLE", handles[1]), "");
        let found = lab.inside("node", || nft.ensure(&desired)).expect("repaired");
        assert_eq!(found, [difference], "{command}");
        assert_eq!(lab.inside("node", || nft.ensure(&desired)).expect("observed"), [], "after {command}");
        assert!(packets(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V4) >= before, "after {command}");
    }
    let before = packets(&lab, &mut nft, counter::LEAK_REFUSED_OUT_V4);
    let mut successor = Nft::new();
    assert_eq!(lab.inside("node", || successor.ensure(&desired)).expect("observed"), []);
    assert_eq!(packets(&lab, &mut successor, counter::LEAK_REFUSED_OUT_V4), before);
    apply(&lab, &mut successor);
    assert_eq!(packets(&lab, &mut successor, counter::LEAK_REFUSED_OUT_V4), before);
}

#[test]
fn a_refused_message_is_named_and_leaves_the_old_table_in_force() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    let mut broken = ruleset(&input());
    // The kernel has no nat chain before connection tracking.
    let translate = broken.chains.iter_mut().find(|chain| chain.name == "translate").unwrap();
    translate.priority = -400;
    let error = lab.inside("node", || nft.apply(&broken)).expect_err("refused");
    assert!(matches!(error, NftError::Refused { .. }), "{error}");
    assert!(error.to_string().starts_with("nf_tables refused chain hawser/translate: "), "{error}");
    assert_eq!(lab.inside("node", || nft.ensure(&ruleset(&input()))).expect("observed"), []);
}

#[test]
fn five_thousand_peers_of_both_families_are_one_transaction() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    let mut input = input();
    input.peer_node_ips = (0..5000_u32)
        .flat_map(|n| {
            let v6 = u128::from(n) * 2 + (0x2001_0db8_u128 << 96);
            [IpAddr::V4((0xac10_0000 + n * 2).into()), IpAddr::V6(v6.into())]
        })
        .collect();
    let table = ruleset(&input);
    lab.inside("node", || nft.apply(&table)).expect("applied");
    assert_eq!(lab.inside("node", || nft.ensure(&table)).expect("observed"), []);
    let listing = lab.sh("node", "nft list set inet hawser peers_v4", "");
    assert_eq!(listing.matches("172.16.").count() + listing.matches("172.17.").count(), 5000);
}

#[test]
fn one_family_and_empty_lists_are_taken_by_the_kernel_and_read_back() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    let empty = NftInput {
        guarded: Vec::new(),
        own_pod_cidrs: Vec::new(),
        own_node_ips: Vec::new(),
        peer_node_ips: Vec::new(),
        mesh: Vec::new(),
        non_masquerade: Vec::new(),
        service_cidrs: Vec::new(),
        translates: true,
        ..input()
    };
    let of = |six: bool| {
        let nets =
            |nets: Vec<ipnet::IpNet>| nets.into_iter().filter(|net| net.addr().is_ipv6() == six).collect();
        let ips = |ips: Vec<IpAddr>| ips.into_iter().filter(|ip| ip.is_ipv6() == six).collect();
        let all = input();
        NftInput {
            guarded: nets(all.guarded),
            own_pod_cidrs: nets(all.own_pod_cidrs),
            own_node_ips: ips(all.own_node_ips),
            peer_node_ips: ips(all.peer_node_ips),
            mesh: ips(all.mesh),
            non_masquerade: nets(all.non_masquerade),
            service_cidrs: nets(all.service_cidrs),
            translates: true,
            ..input()
        }
    };
    let whole = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    for input in [empty.clone(), of(false), of(true), NftInput { guarded: whole, ..empty }] {
        let table = ruleset(&input);
        lab.inside("node", || nft.apply(&table)).expect("applied");
        assert_eq!(lab.inside("node", || nft.ensure(&table)).expect("observed"), [], "{input:?}");
    }
}

#[test]
fn a_translated_flow_survives_the_switch_of_its_slot() {
    let lab = lab();
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    lab.veth(("node", "hawser1"), ("mesh", "eth1"));
    let mac = mac_of(&lab, "mesh", "eth1");
    for (local, remote, prefix) in [
        ("203.0.113.77:0", "10.244.3.8:7012", "10.244.3.0/24"),
        ("[2001:db8:77::1]:0", "[fd44:3::8]:7012", "fd44:3::/64"),
    ] {
        let (from, to) = (lab.udp("node", local), lab.udp("mesh", remote));
        let seen = |from: &UdpSocket| {
            from.send_to(b"canary", remote.parse::<SocketAddr>().unwrap()).expect("sent");
            received(&to).unwrap_or_else(|error| panic!("{remote}: {error}")).1
        };
        let before = seen(&from);
        let host = remote.parse::<SocketAddr>().unwrap().ip();
        lab.ip("node", &format!("neigh add {host} lladdr {mac} dev hawser1"));
        let six = if prefix.contains("::") { "-6 " } else { "" };
        lab.ip("node", &format!("{six}route replace {prefix} dev hawser1"));
        assert_eq!(seen(&from), before, "same address, same port");
    }
}

#[test]
fn removal_twice_is_no_error() {
    let lab = Lab::new(&["node"]);
    let mut nft = Nft::new();
    apply(&lab, &mut nft);
    lab.inside("node", || nft.remove()).expect("removed");
    lab.inside("node", || nft.remove()).expect("removed again");
    assert_eq!(lab.sh("node", "nft list ruleset", ""), "");
}
