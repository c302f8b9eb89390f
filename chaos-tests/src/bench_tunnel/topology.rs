//! Nodes, what joins them, and who speaks through it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netlab::netlink::Route;
use netlab::{Endpoint, LabDir, Namespace, Output, Process, veth_pair};

use super::subject::Subject;
use crate::load::{self, Exchange};

/// What a tunnel leaves of the underlay's 1500, for all subjects alike.
const MTU: u32 = 1420;
/// Name of the tunnel's device on every node.
const DEVICE: &str = "hawser0";
const PORT: u16 = 51880;
/// Streams at once, to one peer; to several, one each. A server has one of them.
pub(super) const MANY_STREAMS: u16 = 4;
pub(super) const FIRST_SERVER: u16 = 9000;
/// How long one command may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client behind one node, servers behind `peers` others.
pub(super) struct Topology {
    pub(super) subject: Subject,
    pub(super) client: Namespace,
    /// The namespace of each peer's servers, and its address.
    pub(super) servers: Vec<(Namespace, Ipv4Addr)>,
    /// Of all nodes.
    pub(super) tunnels: Vec<Process>,
    _servers: Vec<Process>,
    _nodes: Vec<Node>,
}

/// A node of number `n`: 0 is the client's.
struct Node {
    n: u8,
    place: Namespace,
    keys: Option<(String, String)>,
}

/// The /24 behind a node.
fn behind(n: u8) -> Result<IpNet> {
    Ok(IpNet::new(Ipv4Addr::new(10, 1, n, 0).into(), 24)?)
}

fn host_of(n: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, n, last)
}

/// The underlay address of the client's node, and of peer `n`, in the link between the two.
const fn underlay(n: u8, client: bool) -> Ipv4Addr {
    Ipv4Addr::new(172, 20, n, if client { 1 } else { 2 })
}

/// The address of a node inside nebula.
const fn overlay(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, n + 1)
}

fn node(dir: &LabDir, n: u8) -> Result<Node> {
    let builder = Namespace::builder(format!("node-{n}")).tmpfs("/run/wireguard");
    let place = builder.lab(dir).build()?;
    place.sysctl("net.ipv4.ip_forward", "1")?;
    Ok(Node { n, place, keys: None })
}

/// Somebody behind a node.
fn end(dir: &LabDir, node: &Node) -> Result<Namespace> {
    let end = Namespace::net_only(format!("end-{}", node.n)).lab(dir).build()?;
    // Linux' default, whatever this machine's is.
    end.sysctl("net.ipv4.tcp_congestion_control", "cubic")?;
    let address = |last| IpNet::new(host_of(node.n, last).into(), 24);
    let near = Endpoint::new("end").address(address(1)?).mtu(MTU);
    veth_pair(&node.place, &near, &end, &Endpoint::new("eth0").address(address(2)?).mtu(MTU))?;
    let gateway: IpAddr = host_of(node.n, 1).into();
    let any: IpNet = "0.0.0.0/0".parse()?;
    end.netlink(async move |nl| nl.route_add(&Route::to(any).via(gateway)).await)?;
    Ok(end)
}

impl Topology {
    /// Makes it, and waits until every server answers.
    pub(super) fn new(dir: &LabDir, subject: Subject, peers: u8) -> Result<Self> {
        let context = || format!("{} with {peers} peers", subject.name());
        Self::make(dir, subject, peers).with_context(context)
    }

    fn make(dir: &LabDir, subject: Subject, peers: u8) -> Result<Self> {
        let mut nodes = (0..=peers).map(|n| node(dir, n)).collect::<Result<Vec<_>>>()?;
        for n in 1..=peers {
            let link = |client: bool| -> Result<Endpoint> {
                let address = IpNet::new(underlay(n, client).into(), 24)?;
                Ok(Endpoint::new(if client { format!("u{n}") } else { "u0".into() }).address(address))
            };
            veth_pair(&nodes[0].place, &link(true)?, &nodes[usize::from(n)].place, &link(false)?)?;
        }
        let client = end(dir, &nodes[0])?;
        let mut tunnels = Vec::new();
        match subject {
            Subject::Routed => {
                for n in 1..=peers {
                    route(&nodes[0], behind(n)?, Some(underlay(n, false)), None)?;
                    route(&nodes[usize::from(n)], behind(0)?, Some(underlay(n, true)), None)?;
                }
            }
            Subject::Vxlan => {
                for n in 1..=peers {
                    vxlan(&nodes[0], n, true)?;
                    vxlan(&nodes[usize::from(n)], n, false)?;
                }
            }
            Subject::Ours
            | Subject::OursPlain
            | Subject::Without(_)
            | Subject::Boringtun
            | Subject::Gotatun
            | Subject::WireguardGo
            | Subject::NewWireguardGo => tunnels = wireguard(subject, &mut nodes)?,
            Subject::Nebula => tunnels = nebula(dir, &nodes)?,
        }
        let ports = FIRST_SERVER..FIRST_SERVER + if peers == 1 { MANY_STREAMS } else { 1 };
        let (mut servers, mut processes) = (Vec::new(), Vec::new());
        for node in &nodes[1..] {
            let place = end(dir, node)?;
            for port in ports.clone() {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["load", "--serve", &format!("{}:{port}", host_of(node.n, 2))]);
                processes.push(place.spawn(command, Output::Null)?);
            }
            servers.push((place, host_of(node.n, 2)));
        }
        let made = Self { subject, client, servers, tunnels, _servers: processes, _nodes: nodes };
        for (_, address) in &made.servers {
            for port in ports.clone() {
                let to = SocketAddr::new((*address).into(), port);
                netlab::eventually(Duration::from_secs(60), &format!("{to} answers"), || {
                    let tried = made.client.run(move || load::measure(Exchange::Rr, to, Duration::ZERO));
                    let said = || made.tunnels.iter().flat_map(Process::lines).collect::<Vec<_>>().join("\n");
                    tried.map(drop).map_err(|error| format!("{error:#}\n{}", said()))
                })?;
            }
        }
        Ok(made)
    }
}

fn route(node: &Node, to: IpNet, via: Option<Ipv4Addr>, device: Option<&str>) -> Result<()> {
    let mut route = Route::to(to);
    if let Some(via) = via {
        route = route.via(via.into());
    }
    if let Some(device) = device {
        route = route.device(device);
    }
    Ok(node.place.netlink(async move |nl| nl.route_add(&route).await)?)
}

/// Runs a command on a node; what it printed.
fn exec(place: &Namespace, line: &str, input: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words);
    let done = place.exec_with_input(command, input.as_bytes().to_vec(), DEADLINE)?;
    if !done.status.success() {
        bail!("{line}: {}", done.stderr_text());
    }
    Ok(done.stdout_text())
}

fn vxlan(node: &Node, n: u8, client: bool) -> Result<()> {
    let (local, remote) = (underlay(n, client), underlay(n, !client));
    let device = format!("vx{n}");
    let line = format!("ip link add {device} type vxlan id {n} dstport 4789 local {local} remote {remote}");
    exec(&node.place, &line, "")?;
    let [own, other] = [client, !client].map(|c| Ipv4Addr::new(172, 21, n, if c { 1 } else { 2 }));
    exec(&node.place, &format!("ip addr add {own}/24 dev {device}"), "")?;
    exec(&node.place, &format!("ip link set {device} mtu {MTU} up"), "")?;
    route(node, behind(if client { n } else { 0 })?, Some(other), None)
}

/// Starts a tunnel on each node, tells it its peers by its socket, and routes into it.
fn wireguard(subject: Subject, nodes: &mut [Node]) -> Result<Vec<Process>> {
    let mut tunnels = Vec::new();
    for node in nodes.iter_mut() {
        let command = subject.wireguard(DEVICE)?.context("invariant: a WireGuard")?;
        tunnels.push(node.place.spawn(command, Output::Lines)?);
        let private = exec(&node.place, "wg genkey", "")?;
        let public = exec(&node.place, "wg pubkey", &private)?;
        node.keys = Some((private, public.trim().to_owned()));
    }
    for node in &*nodes {
        let (private, _) = node.keys.as_ref().context("invariant: keys were made")?;
        let mut line = format!("wg set {DEVICE} listen-port {PORT} private-key /dev/stdin");
        let others = nodes.iter().filter(|other| (other.n == 0) != (node.n == 0));
        for other in others {
            let (_, public) = other.keys.as_ref().context("invariant: keys were made")?;
            let link = node.n.max(other.n);
            let _ = write!(
                line,
                " peer {public} endpoint {}:{PORT} allowed-ips {}",
                underlay(link, other.n == 0),
                behind(other.n)?
            );
        }
        netlab::eventually(DEADLINE, "the tunnel is configured", || {
            exec(&node.place, &line, private).map_err(|error| format!("{error:#}"))
        })?;
        exec(&node.place, &format!("ip link set {DEVICE} mtu {MTU} up"), "")?;
        for other in nodes.iter().filter(|other| (other.n == 0) != (node.n == 0)) {
            route(node, behind(other.n)?, None, Some(DEVICE))?;
        }
    }
    Ok(tunnels)
}

/// Runs a command outside of the namespaces, which have some folders of their own.
fn authority(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().context("an empty command")?).args(words).output()?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Makes an authority, a certificate for each node, and starts them: each knows where the others are.
fn nebula(dir: &LabDir, nodes: &[Node]) -> Result<Vec<Process>> {
    let folder = dir.path().join(netlab::unique_name("nebula"));
    std::fs::create_dir_all(&folder)?;
    let at = |file: &str| folder.join(file).display().to_string();
    let (ca, ca_key) = (at("ca.crt"), at("ca.key"));
    authority(&format!("nebula-cert ca -name bench -out-crt {ca} -out-key {ca_key}"))?;
    let mut tunnels = Vec::new();
    for node in nodes {
        let (crt, key) = (at(&format!("{}.crt", node.n)), at(&format!("{}.key", node.n)));
        let line = format!(
            "nebula-cert sign -ca-crt {ca} -ca-key {ca_key} -name node-{} -ip {}/24 -subnets {} -out-crt {crt} -out-key {key}",
            node.n,
            overlay(node.n),
            behind(node.n)?
        );
        authority(&line)?;
        let mut hosts = String::new();
        let mut routes = String::new();
        for other in nodes.iter().filter(|other| (other.n == 0) != (node.n == 0)) {
            let at = underlay(node.n.max(other.n), other.n == 0);
            let _ = writeln!(hosts, "  \"{}\": [\"{at}:4242\"]", overlay(other.n));
            let _ = writeln!(
                routes,
                "    - {{ route: {}, via: {}, mtu: {MTU} }}",
                behind(other.n)?,
                overlay(other.n)
            );
        }
        let text = format!(
            "pki: {{ ca: {ca}, cert: {crt}, key: {key} }}\nstatic_host_map:\n{hosts}\
             lighthouse: {{ am_lighthouse: false }}\nlisten: {{ host: 0.0.0.0, port: 4242, batch: 64, \
             read_buffer: 8388608, write_buffer: 8388608 }}\ncipher: chachapoly\ntun:\n  dev: {DEVICE}\n  \
             mtu: {MTU}\n  tx_queue: 1000\n  unsafe_routes:\n{routes}firewall:\n  outbound: [{{ port: any, \
             proto: any, host: any }}]\n  inbound: [{{ port: any, proto: any, host: any }}]\n"
        );
        let file: PathBuf = folder.join(format!("{}.yaml", node.n));
        std::fs::write(&file, text)?;
        let mut command = Command::new("nebula");
        command.arg("-config").arg(&file);
        tunnels.push(node.place.spawn(command, Output::Lines)?);
    }
    Ok(tunnels)
}
