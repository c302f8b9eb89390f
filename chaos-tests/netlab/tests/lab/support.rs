//! What several tests need.

use ipnet::IpNet;
use netlab::{Bridge, Endpoint, Namespace, PortId, unique_name};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn node(name: &str) -> Namespace {
    Namespace::net_only(unique_name(name)).build().expect("tests of the laboratory need root")
}

/// `10.0.0.<n>/24` and `fd00::<n>/64`.
pub(crate) fn endpoint(n: usize) -> Endpoint {
    Endpoint::new("eth0").address(net(&format!("10.0.0.{n}/24"))).address(net(&format!("fd00::{n}/64")))
}

pub(crate) fn v4(n: usize) -> IpAddr {
    format!("10.0.0.{n}").parse().unwrap()
}

pub(crate) fn v6(n: usize) -> IpAddr {
    format!("fd00::{n}").parse().unwrap()
}

/// Nodes 1 to `count` on one bridge.
pub(crate) fn star(count: usize) -> (Bridge, Vec<Namespace>, Vec<PortId>) {
    let bridge = Bridge::new(&unique_name("sw")).unwrap();
    let nodes: Vec<Namespace> = (1..=count).map(|n| node(&format!("n{n}-"))).collect();
    let ports = nodes.iter().zip(1..).map(|(node, n)| bridge.attach(node, &endpoint(n)).unwrap()).collect();
    (bridge, nodes, ports)
}

/// Whether one datagram from `from` reaches `to` at `address` within `wait`.
pub(crate) fn reaches(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    payload: &[u8],
    wait: Duration,
) -> bool {
    let inbox = to.run(move || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap());
    inbox.set_read_timeout(Some(wait)).unwrap();
    let target = inbox.local_addr().unwrap();
    let bytes = payload.to_vec();
    from.run(move || {
        let any: IpAddr = if address.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        let outbox = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
        // Refused when an ICMP error came back: not reached, then.
        let _ = outbox.send_to(&bytes, target);
    });
    let mut buffer = vec![0; 65536];
    matches!(inbox.recv_from(&mut buffer), Ok((n, _)) if buffer[..n] == *payload)
}

pub(crate) const SHORT: Duration = Duration::from_millis(300);
pub(crate) const LONG: Duration = Duration::from_secs(10);
