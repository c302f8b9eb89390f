//! The mesh plan: from what is known to what shall be, for both families and both slots. Planning never fails; what
//! it must refuse becomes a [`Problem`] and costs only that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::announcement::{Announcement, MAX_ENDPOINTS};
use crate::host::{self, HostFacts, HostPath};
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::numbers::{
    MARK_WIREGUARD, METRIC_UNREACHABLE, MIN_MTU, OVERHEAD, RULE_NODES, RULE_PODS, TABLE_NODES, TABLE_PODS,
};
use crate::pair::{self, Choice};
use crate::prefix::{self, Family};
use crate::problem::Problem;
use crate::psk::{PskId, SlotPsk};
use crate::slot::Slot;
use crate::view::{AnnouncementFact, ClusterView, EndpointFact, NodeFacts};

mod claims;
mod hosts;
use claims::Claims;
use hosts::Hosts;

/// The kernel's main routing table.
pub const TABLE_MAIN: u32 = 254;
/// Keepalive of a node that seems to be behind NAT, in seconds (WireGuard's usual number).
pub const NAT_KEEPALIVE: u16 = 25;
/// Keepalive of a peer with whom a handshake is wanted on a slot into which no route leads, in seconds. The first one is
/// sent when it is set, and begins the handshake.
pub const PROVOKE_KEEPALIVE: u16 = 5;

/// How this node shall be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// MTU of slots and pods, in bytes.
    pub mtu: u32,
    /// What this node announces.
    pub announcement: Announcement,
    /// Its two devices.
    pub devices: BTreeMap<Slot, DesiredDevice>,
    /// What is never in plaintext: pod CIDRs of this cluster and of all that are joined to it.
    pub guarded: Vec<IpNet>,
    /// Where Services have their addresses.
    pub service_cidrs: Vec<IpNet>,
    /// Its mesh addresses, on `lo`.
    pub mesh: BTreeSet<IpAddr>,
    /// Its pod CIDRs that were accepted.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Its InternalIPs, at most one of each family, from which it speaks to pods of its cluster.
    pub home: BTreeSet<IpAddr>,
    /// Its InternalIPs that were accepted.
    pub own_node_ips: BTreeSet<IpAddr>,
    /// InternalIPs of every other node, peers or not: pods reach them through the tunnel or not at all.
    pub peer_node_ips: BTreeSet<IpAddr>,
    /// Mesh addresses of peers.
    pub peer_mesh: BTreeMap<IpAddr, NodeName>,
    /// Peers that are sent to by another slot than the pair's, since a handshake there is still missing.
    pub unsettled: BTreeSet<NodeName>,
    /// How this node's own traffic to each other node goes.
    pub host_paths: BTreeMap<NodeName, HostPath>,
    /// Addresses of peers to which this node sends nothing in plaintext but by exempt ports, and the kernel's routes are so
    /// already: what else would leave is refused.
    pub closed_hosts: BTreeSet<IpAddr>,
    /// The same by node, with this node's own; what is to be remembered. Empty where host traffic is not wanted.
    pub closed_by_node: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// Addresses from which this node's own traffic is looked after: its InternalIPs, those that its Node lost included.
    pub host_sources: BTreeSet<IpAddr>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Rules.
    pub rules: BTreeSet<Rule>,
}

impl Desired {
    /// Leaves out what a kernel without IPv6 refuses: no packet of that family comes or leaves there, so nothing is opened by it.
    /// Own pod CIDRs stay, since pods that are to have them cannot be connected, and somebody has to be told.
    pub fn without_ipv6(&mut self) {
        let is_ipv4 = |net: &IpNet| net.addr().is_ipv4();
        self.guarded.retain(is_ipv4);
        self.service_cidrs.retain(is_ipv4);
        for addresses in [
            &mut self.mesh,
            &mut self.home,
            &mut self.own_node_ips,
            &mut self.peer_node_ips,
            &mut self.closed_hosts,
            &mut self.host_sources,
        ] {
            addresses.retain(IpAddr::is_ipv4);
        }
        self.routes.retain(|route| is_ipv4(&route.prefix));
        self.rules.retain(|rule| rule.family == Family::V4);
    }
}

/// One slot's device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredDevice {
    /// Public half of its key.
    pub public_key: PublicKey,
    /// UDP port.
    pub port: u16,
    /// The mark that its packets must bear; none: nobody asks for it.
    pub mark: Option<u32>,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// One peer of a device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredPeer {
    /// Whose key it is.
    pub node: NodeName,
    /// Where it listens; none: it has to call us.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it and goes to it.
    pub allowed: BTreeSet<IpNet>,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
    /// Name of the pre-shared key; none: there is none.
    pub psk: Option<PskId>,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub prefix: IpNet,
    /// Where to.
    pub target: Target,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Out by a device.
    Device {
        /// Its name.
        device: String,
        /// Preferred source of what this node itself sends there.
        source: Option<IpAddr>,
    },
    /// An ICMP error, never the uplink.
    Unreachable,
}

impl Route {
    /// Metric (priority) in the kernel: `unreachable` lies beneath everything else.
    pub const fn metric(&self) -> u32 {
        match self.target {
            Target::Device { .. } => 0,
            Target::Unreachable => METRIC_UNREACHABLE,
        }
    }
}

/// A routing rule of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Priority; less goes first.
    pub priority: u32,
    /// Packets of this family.
    pub family: Family,
    /// Source, or any.
    pub from: Option<IpNet>,
    /// Destination, or any.
    pub to: Option<IpNet>,
    /// TCP with this port alone.
    pub tcp: Option<Port>,
    /// ICMP alone of a type from the first to the second, that this node itself sends.
    pub icmp: Option<[u8; 2]>,
    /// Packets alone whose mark has none of these bits.
    pub unmarked: Option<u32>,
    /// Packets alone that this node itself sends.
    pub local: bool,
    /// Packets alone that come out of this slot.
    pub slot: Option<Slot>,
    /// What then happens.
    pub action: Action,
}

/// A port of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Port {
    /// Of the sender.
    Source(u16),
    /// Of the receiver.
    Destination(u16),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Looks in this table; without a route there the next rule is asked.
    Table(u32),
    /// Goes on at the rule of this priority.
    Goto(u32),
    /// Nothing: the next rule is asked.
    Nothing,
}

impl Rule {
    /// One that matches every packet of a family and does nothing.
    pub const fn new(priority: u32, family: Family) -> Self {
        Self {
            priority,
            family,
            from: None,
            to: None,
            tcp: None,
            icmp: None,
            unmarked: None,
            local: false,
            slot: None,
            action: Action::Nothing,
        }
    }

    /// One that leads to a table.
    pub const fn lookup(priority: u32, family: Family, table: u32) -> Self {
        Self { action: Action::Table(table), ..Self::new(priority, family) }
    }
}

/// What closes, from [`crate::view::Settings::guarded`] alone: it can be in force before anything else is known.
pub fn closing(guarded: &[IpNet]) -> (BTreeSet<Route>, BTreeSet<Rule>) {
    let rule = |cidr: &IpNet| Rule {
        to: Some(*cidr),
        ..Rule::lookup(RULE_PODS, Family::of(cidr.addr()), TABLE_PODS)
    };
    // In the main table too: should the rules be lost, the default route must still not be met.
    let refuse = |cidr: &IpNet| {
        [TABLE_PODS, TABLE_MAIN].map(|table| Route { table, prefix: *cidr, target: Target::Unreachable })
    };
    let families: BTreeSet<Family> = guarded.iter().map(|cidr| Family::of(cidr.addr())).collect();
    let rules = guarded.iter().map(rule).chain(families.into_iter().flat_map(icmp_errors));
    (guarded.iter().flat_map(refuse).collect(), rules.collect())
}

/// An ICMP error quotes what it is about. What comes out of the tunnel for a pod that is not there bears its node's address, so the
/// answer is for that, and goes back by the tunnel or not at all.
fn icmp_errors(family: Family) -> impl Iterator<Item = Rule> {
    // RFC 792: destination unreachable, source quench, redirect; time exceeded, parameter problem. RFC 4443, section 2.1.
    let types: &[[u8; 2]] = match family {
        Family::V4 => &[[3, 5], [11, 12]],
        Family::V6 => &[[1, 4]],
    };
    types
        .iter()
        .map(move |types| Rule { icmp: Some(*types), ..Rule::lookup(RULE_NODES, family, TABLE_NODES) })
}

/// Plans this node.
pub fn plan(view: &ClusterView) -> (Desired, Vec<Problem>) {
    let claims = Claims::judge(view);
    let mut problems = claims.problems.clone();
    let me = &view.local.name;
    let own = claims.of(me);
    let mesh: BTreeSet<IpAddr> = own.cidrs.iter().filter_map(prefix::mesh_address).collect();
    let announcement = announce(view);
    let mtu = mtu(view, &mut problems);

    let mut devices: BTreeMap<Slot, DesiredDevice> = Slot::ALL
        .into_iter()
        .map(|slot| {
            let mine = announcement.slot(slot);
            let mark = view.settings.host_traffic.on.then_some(MARK_WIREGUARD);
            let (public_key, port) = (mine.public_key, mine.port);
            (slot, DesiredDevice { public_key, port, mark, peers: BTreeMap::new() })
        })
        .collect();
    let mut routes = BTreeSet::new();
    let mut peer_node_ips = BTreeSet::new();
    let mut peer_mesh = BTreeMap::new();
    let mut unsettled = BTreeSet::new();
    let keepalive = keepalive(view);
    let host_traffic = &view.settings.host_traffic;
    let mut hosts = Hosts::new(view, own.addresses.iter().chain(&mesh).copied().collect());
    let remembered = &view.local.host.remembered;
    // Its Node may lose them, and what is sent from them is its own nevertheless.
    let host_sources: BTreeSet<IpAddr> =
        own.addresses.iter().copied().chain(remembered.addresses(me)).collect();
    if host_traffic.on {
        hosts.by_node.insert(me.clone(), own.addresses.iter().copied().collect());
    }

    // What a node says to a pod of its cluster comes from the address by which the pod knows it: a socket that is bound to none
    // (a UDP server's) answers from the route's source.
    let present = |address: &&IpAddr| view.local.host.present.contains(address);
    let first = |family| own.addresses.iter().filter(present).copied().find(|own| Family::of(*own) == family);
    let homes: BTreeSet<IpAddr> = if view.nodes.contains_key(me) {
        Family::BOTH.into_iter().filter_map(first).collect()
    } else {
        view.local.host.homes.clone()
    };
    let home = |to: IpAddr| homes.iter().copied().find(|home| prefix::same_family(*home, to));
    let guarded = view.settings.guarded();
    for (name, node) in view.nodes.iter().filter(|(name, _)| *name != me) {
        let claim = claims.of(name);
        let foreign = name.is_foreign();
        for address in &claim.addresses {
            peer_node_ips.insert(*address);
            // Beneath the peer's route, so that neither its absence nor the tunnel's death opens the uplink.
            let target = Target::Unreachable;
            routes.insert(Route { table: TABLE_NODES, prefix: prefix::host(*address), target });
        }
        let theirs = node.announced().filter(|_| claim.keys_accepted);
        let led = |address: &IpAddr| view.local.host.closed.contains(address);
        let announced = theirs.map(|theirs| theirs.host_traffic);
        let mut facts = HostFacts {
            wanted: host_traffic.on,
            announced,
            closed: remembered.knows(name) || claim.addresses.iter().any(led),
            ..HostFacts::default()
        };
        let Some(theirs) = theirs else {
            if !foreign {
                hosts.add(name, host::path(facts), &claim.addresses, None);
            }
            continue;
        };
        let whole: BTreeSet<IpNet> =
            claim.cidrs.iter().copied().chain(claim.addresses.iter().copied().map(prefix::host)).collect();
        let theirs_mesh: BTreeSet<IpAddr> = claim.cidrs.iter().filter_map(prefix::mesh_address).collect();
        // Agents alone, until a pre-shared key is seen to work (D11).
        let confined: BTreeSet<IpNet> = theirs_mesh.iter().copied().map(prefix::host).collect();
        peer_mesh.extend(theirs_mesh.iter().map(|address| (*address, name.clone())));
        let address = endpoint((view, &guarded), &claims, name, theirs, &mut problems);
        let (Choice { send, provoke }, target) = choose(view, name, theirs);
        let pair = view.pairs.get(name);
        let psk = pair.map(|pair| pair.psk).unwrap_or_default();
        facts.able = view.local.host.marked && !psk[send.index()].withheld;
        let link = pair.map(|pair| pair.links[send.index()]).unwrap_or_default();
        (facts.confirmed, facts.dead) = (link.confirmed(), link.dead());
        // What nodes of two clusters say to each other without a pod is theirs: their addresses are in no peer.
        let path = if foreign { HostPath::Plain } else { host::path(facts) };
        if !foreign {
            hosts.add(name, path, &claim.addresses, Some(send));
        }
        if send != target {
            unsettled.insert(name.clone());
        }
        for slot in Slot::ALL {
            let slot_of_peer = theirs.slot(slot);
            let endpoint = address.map(|address| SocketAddr::new(address, slot_of_peer.port));
            let SlotPsk { id, confined: only_agents, prove, withheld } = psk[slot.index()];
            // Where routes lead, whatever is sent does it; but where pods wait, nobody sends.
            let silent = send != slot || withheld;
            // Nobody else may say anything there, and the first word is what tells that it carries.
            let wanted = matches!(path, HostPath::Waiting | HostPath::Dead) && send == slot;
            let called = ((provoke == Some(slot) || prove) && silent || wanted).then_some(PROVOKE_KEEPALIVE);
            let allowed = if only_agents { confined.clone() } else { whole.clone() };
            let keepalive = called.or(keepalive);
            let peer = DesiredPeer { node: name.clone(), endpoint, allowed, keepalive, psk: id };
            if let Some(device) = devices.get_mut(&slot) {
                device.peers.insert(slot_of_peer.public_key, peer);
            }
        }
        let device = send.device();
        let via = |destination: &IpNet, home: Option<IpAddr>| {
            let mesh = mesh.iter().copied().find(|m| prefix::same_family(*m, destination.addr()));
            let target = Target::Device { device: device.to_owned(), source: home.or(mesh) };
            Route { table: TABLE_PODS, prefix: *destination, target }
        };
        let SlotPsk { withheld, confined: only_agents, .. } = psk[send.index()];
        if withheld {
            routes.extend(confined.iter().map(|host| via(host, None)));
            continue;
        }
        // Nodes' addresses are accepted by nodes of their own cluster, once they talk about more than keys.
        let home = |cidr: &IpNet| home(cidr.addr()).filter(|_| !foreign && !only_agents);
        routes.extend(claim.cidrs.iter().map(|cidr| via(cidr, home(cidr))));
        for address in &claim.addresses {
            // No preferred source: this table serves forwarded packets, and what is bound to a pod address already.
            let target = Target::Device { device: device.to_owned(), source: None };
            routes.insert(Route { table: TABLE_NODES, prefix: prefix::host(*address), target });
        }
    }

    let (refusing, mut rules) = closing(&guarded);
    routes.extend(refusing);
    for cidr in &own.cidrs {
        let nodes = Rule::lookup(RULE_NODES, Family::of(cidr.addr()), TABLE_NODES);
        rules.insert(Rule { from: Some(*cidr), ..nodes });
    }
    rules.extend(host::rules(host_traffic, &host_sources, &view.local.host));
    for (veth, addresses) in &view.attachments {
        for address in addresses {
            let target = Target::Device { device: veth.clone(), source: home(*address) };
            routes.insert(Route { table: TABLE_PODS, prefix: prefix::host(*address), target });
            if !own.cidrs.is_empty() && !own.cidrs.iter().any(|cidr| cidr.contains(address)) {
                problems.push(Problem::AttachmentOutsideCidr {
                    node: me.clone(),
                    veth: veth.clone(),
                    address: *address,
                });
            }
        }
    }
    if own.cidrs.is_empty() && view.nodes.get(me).is_some_and(|node| node.pod_cidrs.is_empty()) {
        problems.push(Problem::NoPodCidr { node: me.clone() });
    }

    if host_traffic.on {
        hosts.add_remembered(&claims);
    }
    problems.append(&mut hosts.problems);
    routes.append(&mut hosts.routes);
    problems.sort();
    problems.dedup();
    let desired = Desired {
        mtu,
        announcement,
        devices,
        guarded,
        service_cidrs: view.settings.service_cidrs.clone(),
        mesh,
        home: homes,
        own_pod_cidrs: own.cidrs.clone(),
        own_node_ips: own.addresses.iter().copied().collect(),
        peer_node_ips,
        peer_mesh,
        unsettled,
        host_paths: hosts.paths,
        closed_hosts: hosts.closed,
        closed_by_node: hosts.by_node,
        host_sources,
        routes,
        rules,
    };
    (desired, problems)
}

/// On which slot this node sends to a peer, and on which it shall.
fn choose(view: &ClusterView, name: &NodeName, theirs: &Announcement) -> (Choice, Slot) {
    let pair = view.pairs.get(name).cloned().unwrap_or_default();
    let announced = pair::target((&view.us(), view.drains()), (&view.id(name), theirs), pair.current);
    let target = pair.instead.unwrap_or(announced);
    (pair::choose(pair.current, target, &pair.links), target)
}

/// Everybody whom this node has for a peer: other nodes whose announcement is accepted.
pub fn peers(view: &ClusterView) -> BTreeSet<NodeName> {
    let claims = Claims::judge(view);
    let accepted = |(name, node): &(&NodeName, &NodeFacts)| {
        *name != &view.local.name && claims.of(name).keys_accepted && node.announced().is_some()
    };
    view.nodes.iter().filter(accepted).map(|(name, _)| name.clone()).collect()
}

/// What this node announces: the keyring's slots, and the endpoints that the administrator or the kubelet gave.
fn announce(view: &ClusterView) -> Announcement {
    let mut announcement = view.local.announcement.clone();
    announcement.host_traffic = view.settings.host_traffic.on;
    let own = view.nodes.get(&view.local.name);
    let mut endpoints = match own.map(|node| &node.endpoint) {
        Some(EndpointFact::Addresses(addresses)) => addresses.clone(),
        Some(EndpointFact::Absent | EndpointFact::Malformed { .. }) | None => {
            own.map(|node| node.internal_ips.clone()).unwrap_or_default()
        }
    };
    endpoints.retain(|address| prefix::is_unicast(*address));
    endpoints.truncate(MAX_ENDPOINTS);
    announcement.endpoints = endpoints;
    announcement
}

/// Where to call a peer: the administrator's word, else its announcement, else its InternalIPs; the first that this
/// node's underlay has a family for.
fn endpoint(
    (view, guarded): (&ClusterView, &[IpNet]),
    claims: &Claims,
    name: &NodeName,
    announcement: &Announcement,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let node = view.nodes.get(name)?;
    let candidates = match &node.endpoint {
        EndpointFact::Addresses(addresses) => addresses,
        EndpointFact::Absent | EndpointFact::Malformed { .. } if !announcement.endpoints.is_empty() => {
            &announcement.endpoints
        }
        EndpointFact::Absent | EndpointFact::Malformed { .. } => &node.internal_ips,
    };
    let own = view.nodes.get(&view.local.name).map(|node| node.internal_ips.as_slice()).unwrap_or_default();
    let has = |wanted: IpAddr| own.is_empty() || own.iter().any(|mine| prefix::same_family(*mine, wanted));
    // An endpoint inside the pod CIDRs would send the tunnel into itself.
    let in_pods = |a: IpAddr| prefix::inside(guarded, &prefix::host(a));
    // Nobody is called at another node's address: at best it does not answer. The administrator's word is taken for a port
    // that is forwarded there.
    let administered = matches!(node.endpoint, EndpointFact::Addresses(_));
    let foreign = |address: IpAddr| claims.holder(address).filter(|holder| *holder != name && !administered);
    for address in candidates {
        if let Some(holder) = foreign(*address) {
            let (node, holder) = (name.clone(), holder.clone());
            problems.push(Problem::EndpointOfAnother { node, address: *address, holder });
        }
    }
    let usable = |a: IpAddr| prefix::is_unicast(a) && has(a) && !in_pods(a) && foreign(a).is_none();
    let chosen = candidates.iter().copied().find(|a| usable(*a));
    if chosen.is_none() {
        let families = match (own.iter().any(IpAddr::is_ipv4), own.iter().any(IpAddr::is_ipv6)) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4 only",
            (false, true) => "IPv6 only",
            (false, false) => "no known address",
        };
        let candidates = candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        problems.push(Problem::NoUsableEndpoint { node: name.clone(), candidates, families });
    }
    chosen
}

/// Keepalive towards every peer: as configured, else [`NAT_KEEPALIVE`] where the administrator gave this node an
/// endpoint that is none of its own addresses, which is what NAT looks like.
fn keepalive(view: &ClusterView) -> Option<u16> {
    if let Some(configured) = view.settings.keepalive {
        return (configured != 0).then_some(configured);
    }
    let own = view.nodes.get(&view.local.name)?;
    match &own.endpoint {
        EndpointFact::Addresses(addresses) if addresses.iter().any(|a| !own.internal_ips.contains(a)) => {
            Some(NAT_KEEPALIVE)
        }
        EndpointFact::Addresses(_) | EndpointFact::Absent | EndpointFact::Malformed { .. } => None,
    }
}

/// MTU of the tunnel and of pods.
fn mtu(view: &ClusterView, problems: &mut Vec<Problem>) -> u32 {
    let derived = view.local.uplink_mtu.map(|uplink| uplink.saturating_sub(OVERHEAD));
    // 1500 is the only guess that does not break where nothing is known.
    let mtu = view.settings.mtu.or(derived).unwrap_or(1500 - OVERHEAD);
    if mtu < MIN_MTU {
        problems.push(Problem::MtuTooSmall { node: view.local.name.clone(), mtu });
    }
    mtu.max(MIN_MTU)
}

/// Whether what the API shows of our annotation calls for writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It says what we want.
    Current,
    /// It does not yet.
    Write,
    /// It did, and somebody changed it.
    Overwritten,
}

/// Judges our own annotation. `confirmed` is the announcement that the API was last seen to show as we wrote it.
pub fn publication(
    wanted: &Announcement,
    shown: &AnnouncementFact,
    confirmed: Option<&Announcement>,
) -> Publication {
    match shown {
        AnnouncementFact::Valid(shown) if shown == wanted => Publication::Current,
        AnnouncementFact::Valid(shown) if confirmed.is_some_and(|c| c == shown) => Publication::Write,
        AnnouncementFact::Missing | AnnouncementFact::Malformed { .. } | AnnouncementFact::Valid(_) => {
            if confirmed.is_some() {
                Publication::Overwritten
            } else {
                Publication::Write
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
