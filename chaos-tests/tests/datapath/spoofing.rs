//! A pod with `CAP_NET_RAW` that borrows somebody's address, by IP, ARP and neighbour discovery: nothing gets through.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::raw::frame::{BROADCAST, Link, Mac, tagged};
use chaos_tests::raw::{Ear, Injector};
use chaos_tests::{Lab, Pod};
use netlab::eventually;

use crate::support::{Ask, Counts, Namer, settle};
use crate::{SOON, lab};

const PORT: u16 = 8080;

/// A frame, and what every ear is searched for.
struct Sent {
    what: String,
    frame: Vec<u8>,
    needle: Vec<u8>,
}

/// The pod that cheats.
struct Thief<'a> {
    pod: &'a Pod,
    injector: Injector,
    /// From itself to the host's end.
    link: Link,
}

impl<'a> Thief<'a> {
    fn new(pod: &'a Pod) -> Result<Self> {
        let injector = Injector::new(&pod.namespace, "eth0")?;
        let neighbours = pod.namespace.netlink(async |nl| nl.neighs("eth0").await)?;
        let gateway = neighbours.iter().find_map(|n| n.mac).context("the pod knows its gateway's address")?;
        let link = Link { from: injector.mac, to: gateway.octets() };
        Ok(Self { pod, injector, link })
    }

    /// UDP, TCP and ICMP with this source.
    fn packets(&self, from: IpAddr, to: IpAddr) -> Vec<Sent> {
        let canary: [u8; 16] = rand::random();
        let port: u16 = rand::random_range(20_000..30_000);
        let sequence: u32 = rand::random();
        let (from_at, to_at) = (SocketAddr::new(from, port), SocketAddr::new(to, PORT));
        let segment = [&port.to_be_bytes()[..], &PORT.to_be_bytes(), &sequence.to_be_bytes()].concat();
        let sent = |what: &str, frame, needle: &[u8]| Sent {
            what: format!("{what} as {from} to {to}"),
            frame,
            needle: needle.to_vec(),
        };
        let echoed: [u8; 16] = rand::random();
        vec![
            sent("UDP", self.link.udp(from_at, to_at, &canary), &canary),
            sent("TCP", self.link.tcp(from_at, to_at, 2, sequence), &segment),
            sent("ICMP", self.link.echo(from, to, &echoed), &echoed),
        ]
    }

    fn send(&self, all: &[Sent]) -> Result<()> {
        all.iter().try_for_each(|sent| self.injector.send(&sent.frame).with_context(|| sent.what.clone()))
    }
}

/// Waits until a node has counted exactly these drops since `before`, and nothing else under these words.
fn counted(lab: &Lab, before: &Counts, wanted: &BTreeMap<&str, u64>) -> Result<()> {
    let words = [
        "drop-spoofed-source",
        "drop-spoofed-arp",
        "drop-spoofed-nd",
        "drop-mapped-address",
        "drop-ethertype",
        "drop-malformed",
    ];
    let wanted: Vec<(&str, u64)> = wanted.iter().map(|(word, count)| (*word, *count)).collect();
    eventually(SOON, "the node has counted every frame", || -> Result<(), String> {
        let check = || Counts::of(lab.node(1))?.since(before).exactly(&words, &wanted);
        check().map_err(|error| format!("{error:#}"))
    })?;
    Ok(())
}

/// Fails if any ear heard any of these.
fn unheard(ears: &[&Ear], all: &[Sent]) -> Result<()> {
    for (ear, sent) in ears.iter().flat_map(|ear| all.iter().map(move |sent| (ear, sent))) {
        ensure!(ear.count(&sent.needle) == 0, "{} has heard {}", ear.name(), sent.what);
    }
    Ok(())
}

fn of_family(ips: &[IpAddr], v4: bool) -> Vec<IpAddr> {
    ips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect()
}

/// Everybody whose address could be borrowed.
fn borrowed(lab: &Lab, others: &[&Pod], v4: bool) -> Result<Vec<IpAddr>> {
    let mut all: Vec<IpAddr> = others.iter().flat_map(|pod| pod.ips.iter().copied()).collect();
    for node in &lab.nodes {
        all.extend(node.addresses()?);
    }
    // Both nodes' mesh addresses, addresses of nobody, of the world, and of no use.
    for text in [
        "10.244.1.1",
        "10.244.2.1",
        "10.244.1.200",
        "10.244.2.200",
        "10.244.77.7",
        "192.0.2.253",
        "198.51.100.1",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "fd00:10:244:1::1",
        "fd00:10:244:2::1",
        "fd00:10:244:1::200",
        "fd00:10:244:77::7",
        "2001:db8::fd",
        "2001:db8:ffff::1",
        "::1",
        "::",
        "ff02::1",
        "fe80::bad",
    ] {
        all.push(text.parse()?);
    }
    let mut all = of_family(&all, v4);
    all.sort();
    all.dedup();
    Ok(all)
}

#[test]
fn packets_with_anybody_elses_address_reach_nobody_and_are_counted() -> Result<()> {
    let lab = lab("spoof", 2)?;
    let [thief, neighbour, target] =
        [lab.add_pod(1, "thief")?, lab.add_pod(1, "neighbour")?, lab.add_pod(1, "target")?];
    let remote = lab.add_pod(2, "remote")?;
    let pods = [&neighbour, &target, &remote];
    let mut servers = Vec::new();
    for pod in pods {
        servers.push(Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT)?);
        settle(&thief.namespace, &pod.ips, PORT, true)?;
    }
    // What the node's own stack lets in is heard at its sockets: its links show what is dropped as well.
    let own = lab.node(1).addresses()?;
    servers.push(Namer::new(&lab.node(1).namespace, "node-1", &own, PORT)?);
    let mut ears = Vec::new();
    for namespace in
        [&neighbour.namespace, &target.namespace, &remote.namespace, &lab.node(2).namespace, &lab.world]
    {
        ears.push(Ear::new(namespace)?);
    }
    let all_ears: Vec<&Ear> = ears.iter().collect();
    let cheat = Thief::new(&thief)?;
    let before = Counts::of(lab.node(1))?;
    let (mut sent, mut mapped) = (Vec::new(), Vec::new());
    for v4 in [true, false] {
        let world = if v4 { "192.0.2.253" } else { "2001:db8::fd" }.parse()?;
        let mut targets: Vec<IpAddr> = pods.iter().flat_map(|pod| of_family(&pod.ips, v4)).collect();
        targets.extend(of_family(&own, v4));
        targets.push(world);
        for from in borrowed(&lab, &pods, v4)? {
            sent.extend(targets.iter().flat_map(|to| cheat.packets(from, *to)));
        }
        // An IPv4 address inside IPv6, also its own.
        for ip in thief.ip(true).into_iter().filter(|_| !v4) {
            let IpAddr::V4(ip) = ip else { continue };
            let from = IpAddr::V6(ip.to_ipv6_mapped());
            mapped.extend(targets.iter().flat_map(|to| cheat.packets(from, *to)));
        }
    }
    servers.iter().for_each(Namer::forget);
    cheat.send(&sent)?;
    cheat.send(&mapped)?;
    let wanted = BTreeMap::from([
        ("drop-spoofed-source", u64::try_from(sent.len())?),
        ("drop-mapped-address", u64::try_from(mapped.len())?),
    ]);
    counted(&lab, &before, &wanted)?;
    unheard(&all_ears, &sent)?;
    unheard(&all_ears, &mapped)?;
    for server in &servers {
        ensure!(server.count() == 0, "a server heard {:?}", server.heard());
    }
    let honest = honest_packets_are_heard(&cheat, &[&target, &remote], &ears)?;
    println!(
        "{} packets with {} foreign sources, {} with mapped ones: all counted, none heard; control: {honest} of \
         {honest} heard",
        sent.len(),
        borrowed(&lab, &pods, true)?.len() + borrowed(&lab, &pods, false)?.len(),
        mapped.len()
    );
    Ok(())
}

/// The control: the same frames with the thief's own address are heard, or hearing nothing proves nothing.
fn honest_packets_are_heard(cheat: &Thief<'_>, targets: &[&Pod], ears: &[Ear]) -> Result<usize> {
    let mut heard = 0;
    for target in targets {
        let ear = ears.iter().find(|ear| ear.name() == target.namespace.name()).context("an ear")?;
        for to in &target.ips {
            let own = cheat.pod.ip(to.is_ipv4()).context("an address of its own")?;
            let all = cheat.packets(own, *to);
            cheat.send(&all)?;
            for sent in &all {
                eventually(SOON, &format!("{} hears {}", target.name, sent.what), || {
                    if ear.count(&sent.needle) > 0 { Ok(()) } else { Err("nothing") }
                })?;
                heard += 1;
            }
        }
    }
    Ok(heard)
}

/// ARP messages that claim somebody else's address, or its own with another hardware address.
fn false_arp(cheat: &Thief<'_>, own: Ipv4Addr, others: &[Ipv4Addr]) -> Vec<Vec<u8>> {
    let Link { from: mac, to: gateway } = cheat.link;
    let nobody: Mac = [0; 6];
    let other: Mac = [2, 0, 0, 0, 0xbe, 0xef];
    let wide = Link { from: mac, to: BROADCAST };
    let mut all = Vec::new();
    for ip in others {
        // Asks as somebody else, answers unasked, and announces itself.
        all.push(wide.arp(1, (mac, *ip), (nobody, Ipv4Addr::new(10, 244, 1, 1))));
        all.push(cheat.link.arp(2, (mac, *ip), (gateway, Ipv4Addr::new(10, 244, 1, 1))));
        all.push(wide.arp(2, (mac, *ip), (BROADCAST, *ip)));
    }
    all.push(cheat.link.arp(2, (other, own), (gateway, Ipv4Addr::new(10, 244, 1, 1))));
    all.push(wide.arp(1, (other, own), (nobody, own)));
    all
}

/// Neighbour discovery that claims somebody else's address, or to be a router.
fn false_discovery(cheat: &Thief<'_>, own: Ipv6Addr, others: &[Ipv6Addr]) -> Result<Vec<Vec<u8>>> {
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let gateway: Ipv6Addr = "fd00:10:244:1::1".parse()?;
    let local: Ipv6Addr = "fe80::bad".parse()?;
    let mut all = Vec::new();
    for ip in others {
        // Advertises it from an honest source, as its owner, and asks as its owner.
        all.push(cheat.link.discovery(136, own, all_nodes, *ip));
        all.push(cheat.link.discovery(136, *ip, all_nodes, *ip));
        all.push(cheat.link.discovery(136, local, gateway, *ip));
        all.push(cheat.link.discovery(135, *ip, gateway, gateway));
    }
    for kind in [134, 137] {
        all.push(cheat.link.discovery(kind, local, all_nodes, gateway));
        all.push(cheat.link.discovery(kind, own, all_nodes, gateway));
    }
    // Nobody's advertisement.
    all.push(cheat.link.discovery(136, Ipv6Addr::UNSPECIFIED, all_nodes, own));
    Ok(all)
}

#[test]
fn false_arp_and_neighbour_discovery_change_nothing_and_are_counted() -> Result<()> {
    let lab = lab("arp", 2)?;
    let [thief, neighbour] = [lab.add_pod(1, "thief")?, lab.add_pod(1, "neighbour")?];
    let remote = lab.add_pod(2, "remote")?;
    let server = Namer::new(&neighbour.namespace, "neighbour", &neighbour.ips, PORT)?;
    settle(&thief.namespace, &neighbour.ips, PORT, true)?;
    let cheat = Thief::new(&thief)?;
    let (mut v4, mut v6) = (vec![Ipv4Addr::new(10, 244, 1, 1)], vec!["fd00:10:244:1::1".parse()?]);
    let mut addresses = [neighbour.ips.clone(), remote.ips.clone()].concat();
    for node in &lab.nodes {
        addresses.extend(node.addresses()?);
    }
    for ip in addresses {
        match ip {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    let (Some(IpAddr::V4(own4)), Some(IpAddr::V6(own6))) = (thief.ip(true), thief.ip(false)) else {
        anyhow::bail!("the thief has both families")
    };
    let (arp, discovery) = (false_arp(&cheat, own4, &v4), false_discovery(&cheat, own6, &v6)?);
    let honest = cheat.link.udp(SocketAddr::new(own4.into(), 9), SocketAddr::new(v4[1].into(), 9), b"x");
    let mut lldp = honest.clone();
    lldp[12..14].copy_from_slice(&0x88cc_u16.to_be_bytes());
    let strange = [tagged(&honest, 7), lldp];

    let neighbours = || lab.node(1).sh("ip neigh").map(stable);
    let known = neighbours()?;
    let ear = Ear::new(&neighbour.namespace)?;
    let before = Counts::of(lab.node(1))?;
    for frame in arp.iter().chain(&discovery).chain(&strange) {
        cheat.injector.send(frame)?;
    }
    let wanted = BTreeMap::from([
        ("drop-spoofed-arp", u64::try_from(arp.len())?),
        ("drop-spoofed-nd", u64::try_from(discovery.len())?),
        ("drop-ethertype", u64::try_from(strange.len())?),
    ]);
    counted(&lab, &before, &wanted)?;
    let after = neighbours()?;
    ensure!(known == after, "the node has learnt: {known:?}, then {after:?}");
    ensure!(ear.count(&cheat.link.from) == 0, "the neighbour has heard the thief's hardware address");
    // Everybody is where they were.
    for (name, ips) in [("neighbour", &neighbour.ips)] {
        for ip in ips {
            let answer =
                Ask::Udp.once(&thief.namespace, SocketAddr::new(*ip, PORT), Duration::from_secs(2))?;
            ensure!(answer == name, "{answer} has answered for {name}");
        }
    }
    drop(server);
    honest_questions_are_answered(&lab, &cheat, own4, own6)?;
    println!(
        "{} ARP and {} ND messages, {} of other kinds: all counted, nothing learnt, nothing heard",
        arp.len(),
        discovery.len(),
        strange.len()
    );
    Ok(())
}

/// Neighbours without what ages.
fn stable(text: String) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().filter(|line| line.contains("PERMANENT")).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The control: a pod that asks in its own name is answered, by ARP and by neighbour discovery. For IPv6 the kernel answers for
/// addresses of the link alone, so the gateway's, which is on `lo`, is a permanent neighbour, and the link's own is asked for.
fn honest_questions_are_answered(lab: &Lab, cheat: &Thief<'_>, own4: Ipv4Addr, own6: Ipv6Addr) -> Result<()> {
    let gateway4 = Ipv4Addr::new(10, 244, 1, 1);
    let names = cheat.pod.result["interfaces"].as_array().into_iter().flatten();
    let mut names = names.filter_map(|interface| interface["name"].as_str());
    let veth = names.find(|name| name.starts_with("hw")).context("the host's end")?.to_owned();
    let of_link = lab.node(1).namespace.netlink(async move |nl| nl.addrs(&veth).await)?;
    let mut of_link = of_link.iter().filter_map(|net| match net.addr() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        IpAddr::V6(_) | IpAddr::V4(_) => None,
    });
    let gateway6 = of_link.next().context("the host's end has a link-local address")?;
    let ear = Ear::new(&cheat.pod.namespace)?;
    let wide = Link { from: cheat.link.from, to: BROADCAST };
    let answer4 = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2][..], &cheat.link.to, &gateway4.octets()].concat();
    eventually(SOON, "an honest pod's ARP is answered", || -> Result<(), String> {
        let ask = wide.arp(1, (cheat.link.from, own4), ([0; 6], gateway4));
        cheat.injector.send(&ask).map_err(|error| error.to_string())?;
        if ear.count(&answer4) > 0 { Ok(()) } else { Err("no answer".to_owned()) }
    })?;
    // The pod's own kernel asks, by whatever it sends there.
    let index = cheat.pod.namespace.netlink(async |nl| nl.link("eth0").await)?.index;
    eventually(SOON, "an honest pod's solicitation is answered", || -> Result<(), String> {
        let ask = move || -> std::io::Result<()> {
            let socket = std::net::UdpSocket::bind((own6, 0))?;
            socket.send_to(b"?", std::net::SocketAddrV6::new(gateway6, 9, 0, index)).map(drop)
        };
        cheat.pod.namespace.run(ask).map_err(|error| error.to_string())?;
        let known = cheat.pod.namespace.netlink(async |nl| nl.neighs("eth0").await);
        let known = known.map_err(|error| error.to_string())?;
        let gateway = known.iter().find(|neighbour| neighbour.address == IpAddr::V6(gateway6));
        let mac = gateway.and_then(|neighbour| neighbour.mac).map(|mac| mac.octets());
        if mac == Some(cheat.link.to) { Ok(()) } else { Err(format!("{gateway:?}")) }
    })?;
    Ok(())
}
