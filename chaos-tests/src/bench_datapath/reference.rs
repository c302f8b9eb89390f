//! What ours is held against: namespaces that others route between, without a tunnel, bare or with nf_tables.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use ipnet::IpNet;
use netlab::netlink::Route;
use netlab::{Bridge, Endpoint, Namespace, Process, veth_pair};

use super::ours::peer;
use super::rounds::{Path, await_path};
use super::{MTU, PORT, serve};
use crate::cluster::Lab;

/// What a routing namespace does besides.
#[derive(Clone, Copy, Debug)]
pub(super) enum Firewall {
    /// Nothing: no table, no conntrack.
    None,
    /// As policy by iptables is: what belongs to a connection passes; for a new one so many rules are asked one by one, each
    /// for an address and a port; the one after them accepts.
    Rules(u32),
    /// The same addresses and ports in one set.
    Set(u32),
}

/// Two ends and what lies between.
pub(super) struct Reference {
    name: String,
    client: Namespace,
    to: SocketAddr,
    /// Before the namespaces.
    _server: Process,
    _between: (Vec<Namespace>, Option<Bridge>),
    _end: Namespace,
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 2);

fn around(end: Ipv4Addr) -> (IpNet, IpAddr, IpNet) {
    let [a, b, c, _] = end.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    let net = |address: Ipv4Addr| IpNet::new_assert(address.into(), 24);
    (net(end), gateway.into(), net(gateway))
}

/// A namespace behind a router.
fn end(lab: &Lab, name: &str, router: &Namespace, address: Ipv4Addr) -> Result<Namespace> {
    let end = Namespace::net_only(name).lab(&lab.dir).build()?;
    let (own, gateway, net) = around(address);
    let near = Endpoint::new(format!("to-{name}")).address(net).mtu(MTU);
    veth_pair(router, &near, &end, &Endpoint::new("eth0").address(own).mtu(MTU))?;
    let any: IpNet = "0.0.0.0/0".parse()?;
    end.netlink(async move |nl| nl.route_add(&Route::to(any).via(gateway)).await)?;
    Ok(end)
}

fn router(lab: &Lab, name: &str, firewall: Firewall) -> Result<Namespace> {
    let router = Namespace::net_only(name).lab(&lab.dir).build()?;
    router.sysctl("net.ipv4.ip_forward", "1")?;
    let Some(rules) = firewall.ruleset() else { return Ok(router) };
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    let done = router.exec_with_input(command, rules.into_bytes(), Duration::from_secs(60))?;
    if !done.status.success() {
        bail!("nft -f: {}", done.stderr_text());
    }
    Ok(router)
}

impl Firewall {
    fn name(self) -> String {
        match self {
            Self::None => "routed".to_owned(),
            Self::Rules(rules) => format!("nf_tables, {rules} rules"),
            Self::Set(elements) => format!("nf_tables, a set of {elements}"),
        }
    }

    fn ruleset(self) -> Option<String> {
        let mut text = String::from("table inet reference {\n");
        let rules = match self {
            Self::None => return None,
            Self::Rules(count) => (0..count).fold(String::new(), |mut text, number| {
                let (address, port) = peer(number);
                let _ = writeln!(text, "ip saddr {address} tcp dport {port} accept");
                text
            }),
            Self::Set(count) => {
                let all: Vec<String> =
                    (0..count).map(peer).map(|(address, port)| format!("{address} . {port}")).collect();
                let _ = writeln!(
                    text,
                    "set allowed {{ type ipv4_addr . inet_service; elements = {{ {} }} }}",
                    all.join(", ")
                );
                "ip saddr . tcp dport @allowed accept\n".to_owned()
            }
        };
        let _ = write!(
            text,
            "chain forward {{ type filter hook forward priority filter; policy drop;\n\
             ct state established,related accept\n{rules}ip saddr {CLIENT} tcp dport {PORT} accept\n}}\n}}\n"
        );
        Some(text)
    }
}

impl Reference {
    /// Client and server on one node.
    pub(super) fn one_node(lab: &Lab, firewall: Firewall) -> Result<Self> {
        let node = router(lab, "reference", firewall)?;
        let client = end(lab, "client", &node, CLIENT)?;
        let server = end(lab, "server", &node, SERVER)?;
        Self::new(firewall, client, server, (vec![node], None))
    }

    /// Client and server on two nodes on a switch of the same kind as the lab's; the firewall is on both.
    pub(super) fn two_nodes(lab: &Lab, firewall: Firewall, number: usize) -> Result<Self> {
        let switch = Bridge::in_lab(&format!("switch-{number}"), &lab.dir)?;
        let [near, far] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from);
        let mut nodes = Vec::new();
        for (own, other, remote) in [(near, far, SERVER), (far, near, CLIENT)] {
            let node = router(lab, "reference", firewall)?;
            switch.attach(&node, &Endpoint::new("eth0").address(IpNet::new(own.into(), 24)?))?;
            let (net, ..) = around(remote);
            let (net, by) = (net.trunc(), IpAddr::from(other));
            node.netlink(async move |nl| nl.route_add(&Route::to(net).via(by)).await)?;
            nodes.push(node);
        }
        let client = end(lab, "client", &nodes[0], CLIENT)?;
        let server = end(lab, "server", &nodes[1], SERVER)?;
        Self::new(firewall, client, server, (nodes, Some(switch)))
    }

    fn new(
        firewall: Firewall,
        client: Namespace,
        server: Namespace,
        between: (Vec<Namespace>, Option<Bridge>),
    ) -> Result<Self> {
        let to = SocketAddr::new(SERVER.into(), PORT);
        let process = serve(&server, to)?;
        let reference =
            Self { name: firewall.name(), client, to, _server: process, _between: between, _end: server };
        await_path(&reference.way())?;
        Ok(reference)
    }

    pub(super) fn way(&self) -> Path<'_> {
        Path { name: self.name.clone(), from: &self.client, to: self.to }
    }
}
