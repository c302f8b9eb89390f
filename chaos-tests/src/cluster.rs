//! One cluster in namespaces: a switch, an API server on a host of its own, a router to the world, and nodes.
//!
//! ```text
//!   node 1   192.0.2.1, 2001:db8::1  ─┐
//!   node N   192.0.2.N, 2001:db8::N  ─┤ switch ── API   192.0.2.254, 2001:db8::fe  (port 6443)
//!                                     │        └─ world 192.0.2.253, 2001:db8::fd  (everybody's default route)
//!   pods of node N: 10.244.N.0/24, fd00:10:244:N::/64
//! ```
//!
//! Another cluster may be beside it on the same switch ([`Lab::up_beside`]), at another *site* S: its node N is host 100 S + N,
//! its API host 254 - 10 S, its world 253 - 10 S, its pods are in 10.(244 + S).N.0/24.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use kubeapi::{CONNECT, Dialer, Kubelets, Server, User};
use mesh_core::numbers::{NAMESPACE, PORT_CLUSTERMESH};
use netlab::classify::Policy;
use netlab::netlink::Route;
use netlab::{Bridge, Capture, CaptureOptions, Endpoint, LabDir, Namespace, PortId, Process, Wire};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::node::{Node, WgPeer};
use crate::pod::{Pod, PodSpec};

/// Port of the embedded API.
pub const API_PORT: u16 = 6443;

/// Which families the nodes' network has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// Both.
    Dual,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Underlay {
    const fn v4(self) -> bool {
        matches!(self, Self::Dual | Self::V4)
    }

    const fn v6(self) -> bool {
        matches!(self, Self::Dual | Self::V6)
    }
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Its name; its state is in `<root>/<name>`.
    pub name: String,
    /// Nodes to begin with.
    pub nodes: u8,
    /// Families between nodes.
    pub underlay: Underlay,
    /// Length of a node's IPv4 pod CIDR, 17 to 30; a long one makes a small pool, a short one room for few nodes.
    pub pod_prefix: u8,
    /// The userspace wire with this seed instead of the kernel's bridge.
    pub wire: Option<u64>,
    /// Seconds between two looks for drift.
    pub drift_interval: u64,
    /// Where the nodes' disks are; none: in the lab's state directory, which is memory.
    pub disk: Option<std::path::PathBuf>,
    /// The kernel's WireGuard instead of `mesh-tunnel`.
    pub kernel_wireguard: bool,
    /// Whether a port of the machine's 127.0.0.1 leads to the API, for kubectl.
    pub host_api: bool,
    /// Pod CIDRs of the cluster, for more nodes than the usual ones have room for.
    pub cluster_cidrs: [&'static str; 2],
    /// Whether SIGINT, SIGTERM and SIGHUP remove the lab and end this process, from the first thing made on.
    pub end_on_signal: bool,
    /// More lines of every agent's configuration.
    pub config: String,
    /// Whether nodes begin with nothing of ours on them, for scenarios that install it.
    pub bare: bool,
    /// Which of the places on the switch that clusters have: 0, 1 or 2.
    pub site: u8,
    /// Whether the API server allocates cluster IPs, in 10.(96 + site).0.0/16 and fd00:10:(96 + site)::/112.
    pub allocates_services: bool,
}

impl LabOptions {
    /// Three dual-stack nodes on a bridge.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nodes: 3,
            underlay: Underlay::Dual,
            pod_prefix: 24,
            wire: None,
            drift_interval: 60,
            disk: None,
            kernel_wireguard: false,
            host_api: false,
            cluster_cidrs: CIDRS[0],
            end_on_signal: false,
            config: String::new(),
            bare: false,
            site: 0,
            allocates_services: false,
        }
    }

    /// With this many nodes.
    #[must_use]
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }
}

/// The link that everybody is on.
#[derive(Debug)]
pub enum Switch {
    /// At the kernel's speed.
    Bridge(Bridge),
    /// With faults.
    Wire(Wire),
}

impl Switch {
    /// Connects one more device of a namespace.
    ///
    /// # Errors
    /// The device cannot be made.
    pub fn attach(&self, namespace: &Namespace, endpoint: &Endpoint) -> Result<PortId> {
        Ok(match self {
            Self::Bridge(bridge) => bridge.attach(namespace, endpoint)?,
            Self::Wire(wire) => wire.attach(namespace, endpoint)?,
        })
    }

    /// Captures everything that crosses.
    ///
    /// # Errors
    /// No capture socket.
    pub fn capture(&self, options: CaptureOptions) -> Result<Capture> {
        Ok(match self {
            Self::Bridge(bridge) => bridge.capture(options)?,
            Self::Wire(wire) => wire.capture(options)?,
        })
    }

    /// Lets nothing pass between these groups.
    ///
    /// # Errors
    /// The switch refused.
    pub fn partition(&self, groups: &[&[PortId]]) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.partition(groups)?,
            Self::Wire(wire) => wire.partition(groups),
        }
        Ok(())
    }

    /// Ends every partition.
    ///
    /// # Errors
    /// The switch refused.
    pub fn heal(&self) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.heal_all()?,
            Self::Wire(wire) => wire.heal_all(),
        }
        Ok(())
    }
}

/// A running lab. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    /// What it was made from.
    pub options: LabOptions,
    /// Nodes, node 1 first. Before everything below: processes end before what they use.
    pub nodes: Vec<Node>,
    /// A host outside the cluster.
    pub world: Namespace,
    /// `clustermesh` on the control plane's host, if it was started.
    pub(crate) clustermesh: Option<Process>,
    /// The control plane's host.
    pub control: Namespace,
    /// The link; of several clusters, if they are beside each other.
    pub switch: Arc<Switch>,
    /// Ports of the API's host and of the world.
    pub hosts: Vec<PortId>,
    /// Programs under test.
    pub binaries: Binaries,
    /// Where new nodes find the API server instead, and it may be spoken to in clear: at a node of this number, if somebody
    /// serves it there.
    pub front: Option<u8>,
    /// Nodes of joined clusters, which are peers, too.
    pub joined: usize,
    /// Nodes that have another underlay address than their number.
    places: BTreeMap<u8, u8>,
    server: Option<Server>,
    /// Network namespaces of nodes, for port-forwards.
    kubelets: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    runtime: tokio::runtime::Runtime,
    /// Its state directory.
    pub dir: LabDir,
}

/// Number of an address in the underlay: nodes have their own number.
const API_HOST: u8 = 254;
const WORLD_HOST: u8 = 253;
/// The node that may serve the API as well ([`Lab::front`]).
const FIRST_NODE: u8 = 1;
/// Pod CIDRs of the cluster at each site.
const CIDRS: [[&str; 2]; 3] = [
    ["10.244.0.0/16", "fd00:10:244::/48"],
    ["10.245.0.0/16", "fd00:10:245::/48"],
    ["10.246.0.0/16", "fd00:10:246::/48"],
];
/// Nobody has it.
const ABSENT_HOST: u8 = 250;

/// Address of host `number` in each family.
fn underlay(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(192, 0, 2, number), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)))
}

impl Lab {
    /// Brings a lab up: agents run, but the mesh may not be complete yet ([`Lab::await_mesh`]).
    ///
    /// # Errors
    /// Whatever could not be made; what was made is removed.
    pub fn up(options: LabOptions) -> Result<Self> {
        Self::up_on(options, None)
    }

    /// Brings another cluster up beside `other`, on its switch and at the next site. The one that was up first has to outlive
    /// it.
    ///
    /// # Errors
    /// As [`Lab::up`]; there is no next site.
    pub fn up_beside(options: LabOptions, other: &Self) -> Result<Self> {
        let site = other.options.site + 1;
        let cluster_cidrs = *CIDRS.get(usize::from(site)).context("a switch has room for three clusters")?;
        let options = LabOptions { site, cluster_cidrs, ..options };
        Self::up_on(options, Some(Arc::clone(&other.switch)))
    }

    fn up_on(options: LabOptions, switch: Option<Arc<Switch>>) -> Result<Self> {
        install_tls();
        let binaries = Binaries::find()?;
        netlab::reap(LabDir::DEFAULT_ROOT).context("could not remove what a crashed lab left")?;
        let dir = LabDir::create(LabDir::DEFAULT_ROOT, &options.name)?;
        if options.end_on_signal {
            dir.clean_on_signal()?;
        }
        let switch = match (switch, options.wire) {
            (Some(switch), _) => switch,
            (None, None) => Arc::new(Switch::Bridge(Bridge::in_lab("switch", &dir)?)),
            (None, Some(seed)) => Arc::new(Switch::Wire(Wire::new("switch", seed)?)),
        };
        let control = Namespace::net_only("control").lab(&dir).build()?;
        let world = Namespace::net_only("world").lab(&dir).build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut lab = Self {
            nodes: Vec::new(),
            clustermesh: None,
            world,
            control,
            switch,
            hosts: Vec::new(),
            binaries,
            front: None,
            joined: 0,
            places: BTreeMap::new(),
            server: None,
            kubelets: Arc::default(),
            runtime,
            dir,
            options,
        };
        let (api, world) = (lab.at_site(API_HOST), lab.at_site(WORLD_HOST));
        lab.hosts = vec![lab.attach_host(&lab.control, api)?, lab.attach_host(&lab.world, world)?];
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            lab.world.sysctl(key, "1")?;
        }
        lab.start_api()?;
        for number in 1..=lab.options.nodes {
            lab.add_node(number)?;
        }
        Ok(lab)
    }

    /// The number that a host of every site has at this one.
    const fn at_site(&self, host: u8) -> u8 {
        host - 10 * self.options.site
    }

    /// The end of a host on the switch.
    pub(crate) fn endpoint(&self, number: u8) -> Result<Endpoint> {
        let (v4, v6) = underlay(number);
        let mut endpoint = Endpoint::new("eth0");
        if self.options.underlay.v4() {
            endpoint = endpoint.address(IpNet::new(v4.into(), 24)?);
        }
        if self.options.underlay.v6() {
            endpoint = endpoint.address(IpNet::new(v6.into(), 64)?);
        }
        Ok(endpoint)
    }

    fn attach_host(&self, host: &Namespace, number: u8) -> Result<PortId> {
        self.switch.attach(host, &self.endpoint(number)?)
    }

    /// Attaches a node and gives it the default routes that make a leak possible.
    pub(crate) fn attach_node(&self, node: &Namespace, number: u8) -> Result<PortId> {
        let port = self.attach_host(node, self.place_of(number))?;
        let (v4, v6) = underlay(self.at_site(WORLD_HOST));
        let both: [(bool, IpNet, IpAddr); 2] = [
            (self.options.underlay.v4(), "0.0.0.0/0".parse()?, v4.into()),
            (self.options.underlay.v6(), "::/0".parse()?, v6.into()),
        ];
        for (_, to, by) in both.into_iter().filter(|(has, ..)| *has) {
            node.netlink(async move |nl| nl.route_add(&Route::to(to).via(by)).await)?;
        }
        Ok(port)
    }

    fn start_api(&mut self) -> Result<()> {
        let v4_only = self.options.underlay == Underlay::V4;
        let any: IpAddr = if v4_only { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let listener = self.control.run(move || std::net::TcpListener::bind((any, API_PORT)))?;
        listener.set_nonblocking(true)?;
        let (v4, v6) = underlay(self.at_site(API_HOST));
        let state = self.dir.path().join("api");
        std::fs::create_dir_all(&state)?;
        let mut builder = Server::builder()
            .listener(listener)
            .san(&v4.to_string())
            .san(&v6.to_string())
            .san(&underlay(FIRST_NODE).0.to_string())
            .san(&underlay(FIRST_NODE).1.to_string())
            .state_dir(Some(state))
            .dialer(dial_from(self.control.netns_fd().try_clone_to_owned()?))
            .kubelets(kubelets(Arc::clone(&self.kubelets)));
        if self.options.allocates_services {
            let site = 96 + u16::from(self.options.site);
            builder = builder.service_cidrs(vec![
                format!("10.{site}.0.0/16").parse()?,
                format!("fd00:10:{site}::/112").parse()?,
            ]);
        }
        if self.options.host_api {
            builder = builder.listen(SocketAddr::from(([127, 0, 0, 1], 0)));
        }
        let server = self.runtime.block_on(builder.start())?;
        // A restarted API has them already.
        if server.store().get::<Value>("namespaces", None, NAMESPACE).is_err() {
            crate::deploy::apply(server.store())?;
        }
        self.server = Some(server);
        Ok(())
    }

    /// The API server.
    ///
    /// # Panics
    /// While it is stopped by [`Lab::stop_api`].
    pub fn api(&self) -> &Server {
        self.server.as_ref().expect("the API server is running")
    }

    /// Stops the API server, as if its host died.
    pub fn stop_api(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }

    /// Starts it again with its objects and versions.
    ///
    /// # Errors
    /// It could not listen or read its state.
    pub fn restart_api(&mut self) -> Result<()> {
        self.stop_api();
        self.start_api()
    }

    /// URL of the API server as nodes reach it.
    pub fn api_url(&self) -> String {
        let (v4, v6) = underlay(self.front.unwrap_or_else(|| self.at_site(API_HOST)));
        if self.options.underlay.v4() {
            format!("https://{v4}:{API_PORT}")
        } else {
            format!("https://[{v6}]:{API_PORT}")
        }
    }

    /// A kubeconfig for `user`, for programs on the nodes.
    pub fn kubeconfig(&self, user: &User) -> String {
        self.api().kubeconfig_at(user, &self.api_url())
    }

    /// Makes node `number`, its Node object and its processes.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn add_node(&mut self, number: u8) -> Result<()> {
        self.add_node_as(number, |_| {})
    }

    /// [`Lab::add_node`] with changes to its Node object.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn add_node_as(&mut self, number: u8, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.node_object(number);
        change(&mut object);
        let created: Value = self.api().store().create(&object).map_err(|e| anyhow!("{e}"))?;
        let uid = created["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let kubeconfig = self.kubeconfig(&User::agent_of_node(&node_name(number), &uid));
        let node = Node::start(self, number, &kubeconfig)?;
        let namespace = node.namespace.netns_fd().try_clone_to_owned()?;
        self.kubelets.lock().unwrap_or_else(PoisonError::into_inner).insert(node.name.clone(), namespace);
        self.nodes.push(node);
        Ok(())
    }

    /// Puts Hawser onto a node of a bare lab, as onto every node of another.
    ///
    /// # Errors
    /// There is no Node object, or as the node says.
    pub fn install(&mut self, number: u8) -> Result<()> {
        let name = node_name(number);
        let object: Value = self.api().store().get("nodes", None, &name).map_err(|e| anyhow!("{e}"))?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let kubeconfig = self.kubeconfig(&User::agent_of_node(&name, uid));
        let config = crate::node::config(self);
        self.node_mut(number).install(&config, &kubeconfig)
    }

    /// Ends a node and deletes its Node object. Its disk stays, for [`Lab::add_node`] of the same number.
    ///
    /// # Errors
    /// The API refused, or a process would not end.
    pub fn remove_node(&mut self, number: u8) -> Result<()> {
        self.kubelets.lock().unwrap_or_else(PoisonError::into_inner).remove(&node_name(number));
        self.nodes.retain(|node| node.number != number);
        self.api().store().delete_now("nodes", None, &node_name(number)).map_err(|e| anyhow!("{e}"))
    }

    /// Gives node `number` the underlay address of host `host` when it is added next.
    pub fn place(&mut self, number: u8, host: u8) {
        self.places.insert(number, host);
    }

    fn place_of(&self, number: u8) -> u8 {
        self.places.get(&number).copied().unwrap_or(100 * self.options.site + number)
    }

    /// Addresses of node `number` in the underlay, both families.
    pub fn underlay_of(&self, number: u8) -> (Ipv4Addr, Ipv6Addr) {
        underlay(self.place_of(number))
    }

    /// The disk of node `number`: `/var/lib/hawser` there.
    pub fn disk_of(&self, number: u8) -> std::path::PathBuf {
        let root = self.options.disk.as_deref().unwrap_or_else(|| self.dir.path());
        root.join(format!("{}-disk", node_name(number)))
    }

    /// The Node object that [`Lab::add_node`] makes.
    pub fn node_object(&self, number: u8) -> Value {
        let (v4, v6) = self.underlay_of(number);
        let mut addresses = vec![json!({"type": "Hostname", "address": node_name(number)})];
        if self.options.underlay.v4() {
            addresses.push(json!({"type": "InternalIP", "address": v4}));
        }
        if self.options.underlay.v6() {
            addresses.push(json!({"type": "InternalIP", "address": v6}));
        }
        let cidrs = self.pod_cidrs(number);
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node_name(number)},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": addresses, "conditions": [{
                "type": "Ready", "status": "True", "reason": "Lab",
                "lastHeartbeatTime": null, "lastTransitionTime": null,
            }]},
        })
    }

    /// Name of the cluster: `lab`, or `lab-1` at site 1.
    pub fn cluster_name(&self) -> String {
        if self.options.site == 0 { "lab".to_owned() } else { format!("lab-{}", self.options.site) }
    }

    /// Pod CIDRs of node `number`.
    pub fn pod_cidrs(&self, number: u8) -> [String; 2] {
        let length = self.options.pod_prefix;
        // Node 1 of /22 has 10.244.4.0: a CIDR has to begin where its prefix does.
        let third = number << 24_u8.saturating_sub(length);
        let site = 244 + u16::from(self.options.site);
        [format!("10.{site}.{third}.0/{length}"), format!("fd00:10:{site}:{number:x}::/64")]
    }

    /// Pod CIDRs of the cluster.
    pub fn cluster_cidrs(&self) -> Vec<IpNet> {
        self.options.cluster_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
    }

    /// Node `number`.
    ///
    /// # Panics
    /// There is none.
    pub fn node(&self, number: u8) -> &Node {
        self.nodes.iter().find(|node| node.number == number).expect("a node of that number")
    }

    /// Node `number`, to kill and start its processes.
    ///
    /// # Panics
    /// There is none.
    pub fn node_mut(&mut self, number: u8) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.number == number).expect("a node of that number")
    }

    /// Makes a pod through the API, a namespace and the CNI plugin.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn add_pod(&self, node: u8, name: &str) -> Result<Pod> {
        self.add_pod_of(&PodSpec::new(node, name))
    }

    /// [`Lab::add_pod`] with labels, ports and whatever else a pod may have.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn add_pod_of(&self, spec: &PodSpec) -> Result<Pod> {
        Pod::create(self, spec)
    }

    /// Waits until every node is ready and has every other one as a peer on both slots. Handshakes come with traffic.
    ///
    /// # Errors
    /// After `deadline`, with what is missing.
    pub fn await_mesh(&self, deadline: Duration) -> Result<()> {
        Ok(netlab::eventually(deadline, "the mesh is complete", || self.mesh_complete())?)
    }

    /// [`Lab::await_mesh`], and until every pair has agreed on its pre-shared keys and talks by the first slot again: nothing
    /// goes on that was not asked for.
    ///
    /// # Errors
    /// After `deadline`, with what is under way.
    pub fn await_settled(&self, deadline: Duration) -> Result<()> {
        Ok(netlab::eventually(deadline, "the mesh is settled", || {
            self.mesh_complete()?;
            self.nodes.iter().try_for_each(settled)
        })?)
    }

    fn mesh_complete(&self) -> Result<(), String> {
        for node in &self.nodes {
            node.ready()?;
            let peers = node.peers().map_err(|error| format!("{}: {error:#}", node.name))?;
            let expected = self.nodes.len() - 1 + self.joined;
            for device in ["hawser0", "hawser1"] {
                let have = peers.iter().filter(|peer| peer.device == device).count();
                if have != expected {
                    return Err(format!("{} has {have} of {expected} peers on {device}", node.name));
                }
            }
        }
        Ok(())
    }

    /// What may cross the switch: WireGuard, and TLS to the API and to `clustermesh`, of clusters beside this one, too.
    pub fn policy(&self) -> Policy {
        let hosts = (0..).zip(CIDRS).map(|(site, _)| API_HOST - 10 * site).chain(self.front);
        let servers = hosts.flat_map(|host| [API_PORT, PORT_CLUSTERMESH].map(|port| (underlay(host), port)));
        servers.fold(Policy::wireguard([51880, 51881]), |policy, ((v4, v6), port)| {
            policy.api_server(SocketAddr::new(v4.into(), port)).api_server(SocketAddr::new(v6.into(), port))
        })
    }

    /// Addresses of the control plane's host.
    pub fn control_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        underlay(self.at_site(API_HOST))
    }

    /// The world's address of a family.
    pub fn world_address(&self, is_ipv4: bool) -> IpAddr {
        let (v4, v6) = underlay(self.at_site(WORLD_HOST));
        if is_ipv4 { v4.into() } else { v6.into() }
    }

    /// Has the world ask its neighbours for a host that is not there: frames on the switch that anybody may send.
    ///
    /// # Errors
    /// The world cannot send.
    pub fn break_silence(&self) -> Result<()> {
        let (v4, v6) = underlay(ABSENT_HOST);
        let both: [(bool, IpAddr); 2] =
            [(self.options.underlay.v4(), v4.into()), (self.options.underlay.v6(), v6.into())];
        self.world.run(move || {
            both.into_iter().filter(|(has, _)| *has).try_for_each(|(_, absent)| {
                let any: IpAddr = if absent.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                // The discard port; nobody will ever receive it.
                std::net::UdpSocket::bind((any, 0))?.send_to(&[0], (absent, 9)).map(drop)
            })
        })?;
        Ok(())
    }

    /// The state directory's logs, for people.
    pub fn log_path(&self, node: u8, program: &str) -> std::path::PathBuf {
        log_path(self.dir.path(), node, program)
    }
}

/// Does a node want no pre-shared key and no handshake, and send by its first slot alone?
fn settled(node: &Node) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{}: {error:#}", node.name);
    let waiting = node.metric("hawser_preshared_keys{kind=\"waiting\"}").map_err(text)?;
    if waiting != 0.0 {
        let shown = node.sh("wg show all").unwrap_or_default();
        let log = node.log("mesh-agent").unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        return Err(format!(
            "{}: {waiting} pre-shared keys to be agreed; {shown}; newest first: {}",
            node.name,
            last.join(" | ")
        ));
    }
    let provoked = |peer: &WgPeer| peer.keepalive == Some(mesh_core::plan::PROVOKE_KEEPALIVE);
    if let Some(peer) = node.peers().map_err(text)?.iter().find(|peer| provoked(peer)) {
        return Err(format!("{}: a handshake is wanted: {peer:?}", node.name));
    }
    for family in ["-4", "-6"] {
        let routes = node.sh(&format!("ip {family} route show table 51880 dev hawser1")).map_err(text)?;
        if !routes.is_empty() {
            return Err(format!("{}: still by hawser1: {routes}", node.name));
        }
    }
    Ok(())
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nodes.clear();
        self.clustermesh = None;
        self.stop_api();
    }
}

/// Connects from a network namespace.
fn dial_from(namespace: OwnedFd) -> Dialer {
    Arc::new(move |to| dial(namespace.try_clone()?, to))
}

/// Connects in the network namespace of the pod's node: port-forwards are of agents, which have no other.
fn kubelets(nodes: Arc<Mutex<BTreeMap<String, OwnedFd>>>) -> Kubelets {
    Arc::new(move |pod, port| {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let found = nodes.lock().unwrap_or_else(PoisonError::into_inner).get(node).map(OwnedFd::try_clone);
        let namespace = found.ok_or_else(|| std::io::Error::other(format!("there is no node {node:?}")))?;
        dial(namespace?, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    })
}

fn dial(namespace: OwnedFd, to: SocketAddr) -> std::io::Result<TcpStream> {
    // A thread of its own: it does not come back.
    let dial = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&to, CONNECT)
    };
    std::thread::spawn(dial)
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the dialing thread panicked")))
}

/// Where a program of a node writes its log.
pub(crate) fn log_path(dir: &Path, node: u8, program: &str) -> std::path::PathBuf {
    dir.join(format!("{}-{program}.log", node_name(node)))
}

/// Name of node `number`.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// One TLS provider for the whole process; already there is fine.
pub fn install_tls() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
