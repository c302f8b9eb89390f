//! What talks to what, and what is refused.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chaos_tests::cluster::Underlay;
use chaos_tests::demo::probe_all;
use chaos_tests::matrix::{Party, canary, verdict};
use chaos_tests::plain::control;
use chaos_tests::witness::Witness;
use chaos_tests::{Lab, LabOptions, Pod};
use netlab::netlink::Route;
use netlab::probe::{Canary, EchoServer};
use netlab::{CaptureOptions, Namespace};

use crate::{counted, kind, lab, none, options};

fn pods(lab: &Lab, each: u8) -> Result<Vec<Pod>> {
    let names = (1..=lab.options.nodes).flat_map(|node| (1..=each).map(move |index| (node, index)));
    names.map(|(node, index)| lab.add_pod(node, &format!("pod-{node}-{index}"))).collect()
}

/// Every pair, with a capture; how many probes and frames.
fn everything(lab: &Lab, pods: &[Pod]) -> Result<(usize, u64)> {
    let capture = lab.switch.capture(CaptureOptions::default())?;
    let probes = probe_all(lab, pods)?;
    let failed: Vec<String> =
        probes.iter().filter(|probe| probe.error.is_some()).map(|probe| format!("{probe:?}")).collect();
    none(&failed)?;
    let verdict = verdict(lab, &capture, &probes)?;
    ensure!(verdict.is_clean(), "{verdict:?}");
    Ok((probes.len(), verdict.frames))
}

#[test]
fn everything_talks_and_only_the_control_is_seen_in_clear() -> Result<()> {
    let lab = lab(options("all", 3))?;
    let pods = pods(&lab, 2)?;
    let (probes, frames) = everything(&lab, &pods)?;
    let (plain, found) = control(&lab)?;
    none(&plain.iter().filter_map(|probe| probe.error.clone()).collect::<Vec<_>>())?;
    let seen = |needle: &str| found.canaries.iter().any(|line| line.contains(needle));
    for probe in &plain {
        let sought = format!("{} to {} {} {}", probe.from, probe.to, probe.protocol, probe.family);
        ensure!(seen(&sought), "the search has not found the canary of {sought}");
    }
    println!(
        "{probes} probes, {frames} frames, none in clear; control: {} of {} found",
        plain.len(),
        plain.len()
    );
    lab.agents_were_refused_nothing()
}

#[test]
fn a_network_of_one_family_between_nodes_carries_both_families_of_pods() -> Result<()> {
    for underlay in [Underlay::V4, Underlay::V6] {
        let lab = lab(LabOptions { underlay, ..options("one", 2) })?;
        let pods = pods(&lab, 1)?;
        ensure!(pods.iter().all(|pod| pod.ips.len() == 2), "pods are dual-stack");
        let (probes, frames) = everything(&lab, &pods)?;
        for peer in lab.nodes.iter().flat_map(|node| node.peers()).flatten() {
            let v4 = !peer.endpoint.starts_with('[');
            ensure!(v4 == (underlay == Underlay::V4), "{underlay:?}: endpoint {}", peer.endpoint);
        }
        println!("{underlay:?}: {probes} probes, {frames} frames, none in clear");
    }
    Ok(())
}

/// The sender's address, as a server outside sees it.
fn seen_by(world: &Namespace, at: IpAddr, pod: &Namespace, payload: Vec<u8>) -> Result<IpAddr> {
    let server = world.run(move || UdpSocket::bind((at, 0)))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let to = server.local_addr()?;
    let wanted = payload.clone();
    pod.run(move || {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        UdpSocket::bind((any, 0))?.send_to(&payload, to)
    })?;
    let mut buffer = [0; 2048];
    let (length, from) = server.recv_from(&mut buffer)?;
    ensure!(buffer[..length] == wanted, "another datagram came");
    Ok(from.ip())
}

#[test]
fn the_world_is_reached_with_the_nodes_address_and_cannot_reach_pods() -> Result<()> {
    let lab = lab(options("world", 2))?;
    let pods = pods(&lab, 1)?;
    let pod = &pods[0];
    let witness = Witness::new(&lab)?;
    let node_addresses = lab.node(1).addresses()?;
    for at in lab.world.netlink(async |nl| nl.addrs("eth0").await)?.iter().map(ipnet::IpNet::addr) {
        if !mesh_core::prefix::is_unicast(at) {
            continue;
        }
        let from = seen_by(&lab.world, at, &pod.namespace, canary())?;
        ensure!(node_addresses.contains(&from), "the world saw {from}, not one of {node_addresses:?}");
        let server = EchoServer::tcp(&lab.world, SocketAddr::new(at, 0))?;
        netlab::probe::tcp(&pod.namespace, server.address(), &Canary::new(canary()))?;
    }
    let masqueraded = kind("hawser_firewall_packets_total", "masqueraded_to_world");
    let flows = counted(lab.node(1), &masqueraded, 4.0, Duration::from_secs(10))?;

    // A stranger who knows where pods are and routes to them through their node.
    let party = Party::pod(pod)?;
    let mut refused = 0.0;
    for ip in &pod.ips {
        let (node, length) = if ip.is_ipv4() {
            (node_addresses.iter().find(|a| a.is_ipv4()), 32)
        } else {
            (node_addresses.iter().find(|a| a.is_ipv6()), 128)
        };
        let (Some(node), to) = (node.copied(), ipnet::IpNet::new(*ip, length)?) else { bail!("no address") };
        lab.world.netlink(async move |nl| nl.route_add(&Route::to(to).via(node)).await)?;
        let canary = Canary::new(canary()).tries(1).deadline(Duration::from_millis(300));
        let at = SocketAddr::new(*ip, chaos_tests::matrix::ECHO_PORT);
        ensure!(netlab::probe::udp(&lab.world, at, &canary).is_err(), "the world reached {at}");
        // The data path's guard is before the firewall's, and counts both families together.
        refused += 1.0;
        let guard = "hawser_datapath_drops_total{reason=\"guard-in\"}";
        counted(lab.node(1), guard, refused, Duration::from_secs(10))?;
    }
    ensure!(party.servers() == 4, "the pod listened all the time");
    // Towards pods only the stranger's own frames; from pods none.
    let seen = witness.capture().addresses_inside(&lab.cluster_cidrs())?;
    let own = |(frame, _): &&(netlab::Frame, _)| frame.port != lab.hosts[1];
    let leaks: Vec<_> = seen.iter().filter(own).map(|(f, _)| netlab::classify::summary(&f.data)).collect();
    none(&leaks)?;
    println!("{flows} flows masqueraded; the world saw the node's address; two strangers refused");
    Ok(())
}

/// An ICMPv6 error that comes while the connecting call holds its socket is reported with the second SYN, a second later.
const PROMPT: Duration = Duration::from_millis(2500);

#[test]
fn addresses_of_nobody_are_refused_by_icmp_and_never_on_the_wire() -> Result<()> {
    let lab = lab(options("nobody", 2))?;
    let pods = pods(&lab, 1)?;
    let mut witness = Witness::new(&lab)?;
    let mut slowest = Duration::ZERO;
    // No node's, this node's, the other node's.
    for text in [
        "10.244.99.1",
        "fd00:10:244:99::1",
        "10.244.1.200",
        "fd00:10:244:1::200",
        "10.244.2.200",
        "fd00:10:244:2::200",
    ] {
        let ip: IpAddr = text.parse()?;
        for from in [&pods[0].namespace, &lab.node(1).namespace] {
            let begun = Instant::now();
            let at = SocketAddr::new(ip, 9);
            // A node without a route is told so by the routing table, a pod by ICMP.
            let Err(error) = from.run(move || TcpStream::connect_timeout(&at, Duration::from_secs(3))) else {
                bail!("somebody answered for {ip}");
            };
            let took = begun.elapsed();
            ensure!(
                matches!(
                    error.kind(),
                    std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable
                ),
                "{ip} from {}: {error} after {took:?}",
                from.name()
            );
            slowest = slowest.max(took);
            ensure!(took < PROMPT, "{ip} from {}: {error} after {took:?}", from.name());
        }
    }
    witness.knock(&pods[0].namespace, "10.244.99.1".parse()?, Duration::from_millis(200)).unwrap_err();
    let frames = witness.clean(&lab)?;
    println!("12 refused, the slowest after {slowest:?}; {frames} frames, none in clear");
    Ok(())
}

/// Sends `bytes` through a connection whose other end sends back their number and sum.
fn transfer(from: &Namespace, to: &Namespace, ip: IpAddr, bytes: usize) -> Result<(Duration, bool)> {
    let listener = to.run(move || TcpListener::bind((ip, 0)))?;
    let at = listener.local_addr()?;
    let data: Vec<u8> = (0..bytes).map(|i| ((i * 2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let expected = data.clone();
    let server = to.thread(move || -> std::io::Result<bool> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut got = Vec::with_capacity(expected.len());
        stream.read_to_end(&mut got)?;
        Ok(got == expected)
    });
    let begun = Instant::now();
    from.run(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(&data)?;
        stream.shutdown(std::net::Shutdown::Write)
    })?;
    let same = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok((begun.elapsed(), same))
}

/// Sends a datagram whose IP packet has `length` bytes, which may not be fragmented on the way: the echo, or the error.
fn datagram(from: &Namespace, to: SocketAddr, length: usize) -> std::io::Result<usize> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    from.run(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send(&vec![0x33; length - headers])?;
        socket.recv(&mut [0; 2048])
    })
}

#[test]
fn packets_of_the_tunnels_size_pass_and_larger_ones_are_told_so() -> Result<()> {
    let lab = lab(options("mtu", 2))?;
    let pods = pods(&lab, 1)?;
    let (a, b) = (&pods[0], &pods[1]);
    let witness = Witness::new(&lab)?;
    let party = Party::pod(b)?;
    for ip in &party.ips {
        let headers = if ip.is_ipv4() { 28 } else { 48 };
        netlab::probe::ping(&a.namespace, *ip, &Canary::new(vec![0x44; 1420 - headers]))?;
    }
    // A pod that believes in more than the tunnel carries.
    let veth = a.result["interfaces"][0]["name"].as_str().unwrap_or_default().to_owned();
    lab.node(1).sh(&format!("ip link set dev {veth} mtu 1500"))?;
    a.namespace.netlink(async |nl| nl.link_mtu("eth0", 1500).await)?;
    for ip in &party.ips {
        let at = SocketAddr::new(*ip, chaos_tests::matrix::ECHO_PORT);
        ensure!(datagram(&a.namespace, at, 1420)? > 1300, "1420 bytes pass");
        match datagram(&a.namespace, at, 1421) {
            Err(error) if error.raw_os_error() == Some(90) => {} // EMSGSIZE
            other => bail!("1421 bytes to {ip}: {other:?}, not the error of the tunnel's size"),
        }
    }
    for ip in &party.ips {
        let (took, same) = transfer(&a.namespace, &b.namespace, *ip, 20 << 20)?;
        ensure!(same, "what came is not what was sent to {ip}");
        println!("20 MiB to {ip} in {took:?}, the same bytes");
    }
    let verdict = witness.verdict(&lab)?;
    ensure!(verdict.is_clean(), "{verdict:?}");
    Ok(())
}
