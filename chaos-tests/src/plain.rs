//! The control: two pods on two hosts with plain routing, on the same switch as the lab. What is searched for in the
//! lab's frames must be found in theirs, or the search proves nothing.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use netlab::netlink::Route;
use netlab::{Endpoint, Namespace, veth_pair};

use crate::cluster::Lab;
use crate::matrix::{Party, Probe, Verdict, probe, verdict};

/// A host with one pod and no tunnel.
struct Host {
    pod: Namespace,
    ips: Vec<IpAddr>,
    // The way between them; kept for as long as the pod.
    _host: Namespace,
}

/// Probes between two pods without the tunnel; what the same search finds then.
///
/// # Errors
/// Whatever could not be made.
pub fn control(lab: &Lab) -> Result<(Vec<Probe>, Verdict)> {
    let [a, b] = [host(lab, 251)?, host(lab, 252)?];
    let capture = lab.switch.capture(netlab::CaptureOptions::default())?;
    let [from, to] = [("plain-a", &a), ("plain-b", &b)];
    let from = Party::new(from.0, &from.1.pod, from.1.ips.clone())?;
    let to = Party::new(to.0, &to.1.pod, to.1.ips.clone())?;
    let probes = probe(&from, &to);
    let verdict = verdict(lab, &capture, &probes)?;
    Ok((probes, verdict))
}

/// Host `number` with a pod of the cluster's own prefix, routed in clear.
fn host(lab: &Lab, number: u8) -> Result<Host> {
    let host = Namespace::net_only(format!("plain-{number}")).lab(&lab.dir).build()?;
    let pod = Namespace::net_only(format!("plain-pod-{number}")).lab(&lab.dir).build()?;
    lab.attach_node(&host, number)?;
    let other = if number == 251 { 252 } else { 251 };
    let net = |n: u8| -> Result<[IpNet; 2]> {
        Ok([format!("10.244.{n}.0/24").parse()?, format!("fd00:10:244:{n:x}::/64").parse()?])
    };
    let (mut host_end, mut pod_end) = (Endpoint::new("pod0"), Endpoint::new("eth0"));
    let mut ips = Vec::new();
    let mut defaults: Vec<(IpNet, IpAddr)> = Vec::new();
    for own in net(number)? {
        let mut hosts = own.hosts().skip(1);
        let (Some(gateway), Some(address)) = (hosts.next(), hosts.next()) else { continue };
        host_end = host_end.address(IpNet::new(gateway, own.prefix_len())?);
        pod_end = pod_end.address(IpNet::new(address, own.prefix_len())?);
        ips.push(address);
        let any = if own.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        defaults.push((any.parse()?, gateway));
    }
    veth_pair(&host, &host_end, &pod, &pod_end)?;
    for (any, gateway) in defaults {
        pod.netlink(async move |nl| nl.route_add(&Route::to(any).via(gateway)).await)?;
    }
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        host.sysctl(key, "1")?;
    }
    let endpoint = lab.endpoint(other)?;
    for (remote, by) in net(other)?.into_iter().zip(&endpoint.addresses) {
        let by = by.addr();
        host.netlink(async move |nl| nl.route_add(&Route::to(remote).via(by)).await)?;
    }
    Ok(Host { pod, ips, _host: host })
}
