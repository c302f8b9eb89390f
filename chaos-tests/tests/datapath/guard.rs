//! The leak guard: whatever is done to routes, tunnel, agent, peers and uplinks, nothing of a pod is seen in clear, and
//! what was refused is counted, packet by packet, by nf_tables or by the programs on the uplink.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::raw::Ear;
use chaos_tests::witness::Witness;
use chaos_tests::{Lab, LabOptions, Node, Pod};
use ipnet::IpNet;
use netlab::netlink::Route;
use netlab::{CaptureOptions, Endpoint, Namespace, eventually};
use serde_json::{Value, json};

use crate::support::{Ask, Counts, Namer, settle};
use crate::{MESH, SOON, lab_of};

const PORT: u16 = 8080;
/// Datagrams for each sender and target.
const EACH: u64 = 10;
/// Nobody answers; only so long that the machine is not flooded.
const SHORT: Duration = Duration::from_millis(5);
/// A table that somebody else's software made, and the priority of a rule before all of ours.
const FOREIGN: &str = "777";

/// What refused packets: both guards, by direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guards {
    nft_out: u64,
    nft_in: u64,
    ebpf_out: u64,
    ebpf_in: u64,
    /// Neither: to a pod from a link that has no guard yet.
    unguarded: u64,
}

impl Guards {
    fn of(node: &Node) -> Result<Self> {
        let counts = Counts::of(node)?;
        let firewall = |kinds: &[&str]| -> Result<u64> {
            let one = |kind: &&str| node.metric(&format!("hawser_firewall_packets_total{{kind=\"{kind}\"}}"));
            let sum: f64 = kinds.iter().map(one).sum::<Result<f64>>()?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of packets")]
            Ok(sum as u64)
        };
        Ok(Self {
            nft_out: firewall(&["leak_refused_out_v4", "leak_refused_out_v6", "leak_refused_to_node"])?,
            nft_in: firewall(&["refused_in_v4", "refused_in_v6"])?,
            ebpf_out: counts.get("drop-guard-out")?,
            ebpf_in: counts.get("drop-guard-in")?,
            unguarded: counts.get("drop-unguarded")?,
        })
    }

    const fn sum(self) -> u64 {
        self.nft_out + self.nft_in + self.ebpf_out + self.ebpf_in + self.unguarded
    }
}

/// A mesh of two nodes with a pod each that talk.
struct Stage {
    lab: Lab,
    near: Pod,
    far: Pod,
    _server: Namer,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let options = LabOptions { drift_interval: 1, ..LabOptions::new(netlab::unique_name(name)).nodes(2) };
        let lab = lab_of(options)?;
        let [near, far] = [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
        let server = Namer::new(&far.namespace, "far", &far.ips, PORT)?;
        settle(&near.namespace, &far.ips, PORT, true)?;
        Ok(Self { lab, near, far, _server: server })
    }

    fn node(&self) -> &Node {
        self.lab.node(1)
    }

    /// Datagrams from the pod and from the node itself to the far pod; how many were sent.
    fn spray(&self, witness: &mut Witness) -> Result<u64> {
        let mut sent = 0;
        for from in [&self.near.namespace, &self.node().namespace] {
            for to in &self.far.ips {
                for _ in 0..EACH {
                    // The witness remembers each payload and looks for it on the wire.
                    ensure!(witness.knock(from, *to, SHORT).is_err(), "{to} has answered {}", from.name());
                    sent += 1;
                }
            }
        }
        Ok(sent)
    }

    /// Sends, and waits until node 1's guards have counted exactly that more than before.
    fn counted(&self, witness: &mut Witness, before: Guards) -> Result<(u64, Guards)> {
        let sent = self.spray(witness)?;
        let after = counted(self.node(), before, sent)?;
        witness.clean(&self.lab)?;
        Ok((sent, after))
    }

    /// Somebody's rule before ours leads the cluster's pods out of an uplink in clear. Not this node's own: the kernel's check of
    /// the way back would find its pods behind the uplink, and drop their packets before any guard.
    fn lead_astray(&self, device: &str) -> Result<()> {
        let own = self.lab.pod_cidrs(self.node().number);
        for (family, cluster, by, own) in [
            ("-4", "10.244.0.0/16", "192.0.2.253", &own[0]),
            ("-6", "fd00:10:244::/48", "2001:db8::fd", &own[1]),
        ] {
            self.node()
                .sh(&format!("ip {family} route add default via {by} dev {device} table {FOREIGN}"))?;
            self.node().sh(&format!("ip {family} route add throw {own} table {FOREIGN}"))?;
            self.node().sh(&format!("ip {family} rule add priority 10 to {cluster} lookup {FOREIGN}"))?;
        }
        Ok(())
    }

    fn lead_back(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            self.node().sh(&format!("ip {family} rule del priority 10"))?;
            self.node().sh(&format!("ip {family} route flush table {FOREIGN}"))?;
        }
        Ok(())
    }

    /// Everything that leads a pod's packet into the tunnel, or nowhere; not the ways to this node's own pods, without which the
    /// kernel's check of the way back drops what they send.
    fn delete_routes(&self) -> Result<()> {
        for (family, cluster) in [("-4", "10.244.0.0/16"), ("-6", "fd00:10:244::/48")] {
            for undo in [
                "rule del priority 51".to_owned(),
                "route flush table 51880 dev hawser0".to_owned(),
                "route flush table 51880 dev hawser1".to_owned(),
                format!("route del unreachable {cluster} table 51880"),
                "route flush table 51881".to_owned(),
                format!("route del unreachable {cluster}"),
            ] {
                self.node().sh(&format!("ip {family} {undo}"))?;
            }
            let left = self.node().sh(&format!("ip {family} route show table 51880"))?;
            ensure!(left.lines().all(|line| line.contains(" dev hw")), "{left}");
        }
        Ok(())
    }

    fn talks(&self) -> Result<()> {
        settle(&self.near.namespace, &self.far.ips, PORT, true)
    }
}

/// Waits until the guards have counted exactly this many packets more.
fn counted(node: &Node, before: Guards, sent: u64) -> Result<Guards> {
    let what = format!("the guards of {} count {sent} packets", node.name);
    let after = eventually(SOON, &what, || -> Result<Guards, String> {
        let now = Guards::of(node).map_err(|error| format!("{error:#}"))?;
        let seen = now.sum().saturating_sub(before.sum());
        if seen == sent { Ok(now) } else { Err(format!("{seen}: {before:?}, then {now:?}")) }
    })?;
    Ok(after)
}

#[test]
fn what_is_led_past_the_tunnel_is_refused_and_counted_by_either_guard() -> Result<()> {
    let mut stage = Stage::new("astray")?;
    let mut witness = Witness::new(&stage.lab)?;

    let before = Guards::of(stage.node())?;
    stage.lead_astray("eth0")?;
    let (sent, after) = stage.counted(&mut witness, before)?;
    ensure!(after.nft_out - before.nft_out == sent, "nf_tables sees them first: {before:?}, {after:?}");
    println!("a foreign rule, agent alive: {sent} sent, {sent} refused by nf_tables");
    stage.lead_back()?;
    stage.talks()?;

    // No agent, no routes of ours, no firewall: the programs alone.
    stage.lab.node_mut(1).kill_agent()?;
    stage.delete_routes()?;
    stage.node().sh("nft delete table inet hawser")?;
    let sent = stage.spray(&mut witness)?;
    witness.clean(&stage.lab)?;
    stage.lab.node_mut(1).start_agent()?;
    eventually(MESH, "the agent is ready", || stage.node().ready())?;
    let again = Guards::of(stage.node())?;
    ensure!(again.ebpf_out - after.ebpf_out == sent, "{sent} sent; {after:?}, then {again:?}");
    println!("agent killed, routes and firewall deleted: {sent} sent, {sent} refused by the programs");
    stage.talks()?;
    let frames = witness.clean(&stage.lab)?;
    println!("{frames} frames, none in clear");
    Ok(())
}

#[test]
fn without_tunnel_peer_or_agent_nothing_leaves_in_clear_even_where_somebody_leads_it_out() -> Result<()> {
    let mut stage = Stage::new("broken")?;
    let mut witness = Witness::new(&stage.lab)?;

    // Unreachable beneath: nothing comes as far as a guard. Then a foreign rule, and everything does.
    stage.lab.node_mut(1).kill_tunnel()?;
    let refused = |stage: &Stage, witness: &mut Witness, what: &str| -> Result<()> {
        let before = Guards::of(stage.node())?;
        let routed = stage.spray(witness)?;
        let between = counted(stage.node(), before, 0)?;
        stage.lead_astray("eth0")?;
        let (sent, after) = stage.counted(witness, between)?;
        stage.lead_back()?;
        println!("{what}: {routed} refused by routes, {sent} led astray and counted: {between:?}, {after:?}");
        Ok(())
    };
    eventually(SOON, "the tunnel's devices are gone", || match stage.node().sh("ip link show hawser0") {
        Err(_) => Ok(()),
        Ok(shown) => Err(shown),
    })?;
    refused(&stage, &mut witness, "tunnel stopped")?;
    stage.lab.node_mut(1).start_tunnel()?;
    stage.talks()?;

    // The far node leaves the cluster: it goes on sending, and is a stranger from now on.
    let far: Value = stage.lab.api().store().get("nodes", None, &node_name(2))?;
    stage.lab.api().store().delete_now("nodes", None, &node_name(2))?;
    eventually(SOON, "node 1 has no peer", || match stage.node().peers() {
        Ok(peers) if peers.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    refused(&stage, &mut witness, "peer removed")?;
    let frames = witness.clean(&stage.lab)?;
    ensure!(far["metadata"]["name"] == node_name(2), "it was there");
    println!("{frames} frames, none in clear");
    Ok(())
}

#[test]
fn what_pods_send_to_a_service_that_is_nobodys_stays_on_their_node_and_is_counted() -> Result<()> {
    let options = LabOptions {
        drift_interval: 1,
        allocates_services: true,
        ..LabOptions::new(netlab::unique_name("nobodys")).nodes(1)
    };
    let lab = lab_of(options)?;
    let (node, pod) = (lab.node(1), lab.add_pod(1, "pod")?);
    let mut witness = Witness::new(&lab)?;
    let nobodys = ["10.96.7.7", "fd00:10:96::707"].map(|ip| ip.parse::<IpAddr>());
    let refused = || node.metric("hawser_firewall_packets_total{kind=\"service_unknown\"}");
    let mut sent = 0.0;
    for _ in 0..EACH {
        for ip in nobodys.clone() {
            ensure!(witness.knock(&pod.namespace, ip?, SHORT).is_err(), "somebody has answered");
            sent += 1.0;
        }
    }
    eventually(SOON, &format!("{sent} packets are counted"), || match refused() {
        Ok(counted) if counted == sent => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    witness.clean(&lab)?;
    println!(
        "{sent} sent to two addresses of the ServiceCIDR that no Service has: {sent} refused, none on the wire"
    );

    // Another range, while it is there.
    let more = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.98.0.0/16"]}});
    let other = "10.98.0.1".parse::<IpAddr>()?;
    let world = || node.metric("hawser_firewall_packets_total{kind=\"masqueraded_to_world\"}");
    let knock = || {
        let socket = pod.namespace.run(move || -> std::io::Result<()> {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"no canary", SocketAddr::new(other, PORT)).map(drop)
        });
        socket.map_err(|error| format!("{error:#}"))
    };
    let rises = |what: &str, metric: &dyn Fn() -> Result<f64>| -> Result<()> {
        let before = metric()?;
        Ok(eventually(SOON, what, || {
            knock()?;
            match metric() {
                Ok(now) if now > before => Ok(()),
                other => Err(format!("{other:?}, {before} before")),
            }
        })?)
    };
    rises("what is no Service's range is the world's", &world)?;
    lab.api().store().create(&more)?;
    rises("an added range is closed", &refused)?;
    lab.api().store().delete("servicecidrs.networking.k8s.io", None, "more")?;
    rises("a deleted range is the world's again", &world)?;
    Ok(())
}

#[test]
fn an_agent_whose_role_is_of_a_time_before_service_cidrs_goes_on_without_them_and_says_so() -> Result<()> {
    let options =
        LabOptions { allocates_services: true, ..LabOptions::new(netlab::unique_name("oldrole")).nodes(1) };
    let mut lab = lab_of(options)?;
    let finding = |lab: &Lab| lab.node(1).metric("hawser_host_findings{kind=\"service-cidrs-unknown\"}");
    ensure!(finding(&lab).unwrap_or_default() == 0.0, "it reads them by the role of today");
    let roles = "clusterroles.rbac.authorization.k8s.io";
    let mut role: Value = lab.api().store().get(roles, None, "hawser-mesh-agent")?;
    let rules = role["rules"].as_array_mut().context("rules")?;
    let before = rules.len();
    rules.retain(|rule| rule["resources"] != json!(["servicecidrs"]));
    ensure!(rules.len() + 1 == before, "{rules:?}");
    lab.api().store().update(&role)?;
    lab.node_mut(1).kill_agent()?;
    lab.node_mut(1).start_agent()?;
    eventually(MESH, "the agent is ready", || lab.node(1).ready())?;
    lab.add_pod(1, "pod")?;
    eventually(SOON, "it says what is open", || match finding(&lab) {
        Ok(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    Ok(())
}

/// Sends datagrams past every check of the sender's own: from this address, to a pod.
fn intrude(from: &Namespace, source: IpAddr, to: SocketAddr, payload: &[u8]) -> Result<()> {
    let payload = payload.to_vec();
    from.run(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind((source, 0))?;
        (0..EACH).try_for_each(|_| socket.send_to(&payload, to).map(drop))
    })?;
    Ok(())
}

#[test]
fn strangers_and_unknown_nodes_cannot_reach_pods_in_clear_by_any_uplink() -> Result<()> {
    let stage = Stage::new("intrude")?;
    let Stage { lab, near, .. } = &stage;
    let _server = Namer::new(&near.namespace, "near", &near.ips, PORT)?;
    let ear = Ear::new(&near.namespace)?;
    // A node that no API knows, with a pod CIDR of the cluster.
    let unknown: [IpNet; 2] = ["10.244.9.9/32".parse()?, "fd00:10:244:9::9/128".parse()?];
    for address in unknown {
        lab.world.netlink(async move |nl| nl.addr_add("lo", address).await)?;
    }
    let second: [IpNet; 2] = ["192.0.2.101/24".parse()?, "2001:db8::65/64".parse()?];
    let uplink = second.into_iter().fold(Endpoint::new("eth1"), Endpoint::address);
    let mut total = 0;
    for (round, gateways) in
        [lab.node(1).addresses()?, second.map(|net| net.addr()).to_vec()].into_iter().enumerate()
    {
        if round == 1 {
            lab.switch.attach(&lab.node(1).namespace, &uplink)?;
        }
        let canary: [u8; 32] = rand::random();
        let before = Guards::of(lab.node(1))?;
        let mut sent = 0;
        for to in &near.ips {
            let net = IpNet::from(*to);
            let by = gateways.iter().copied().find(|by| by.is_ipv4() == to.is_ipv4()).context("a gateway")?;
            lab.world.netlink(async move |nl| nl.route_replace(&Route::to(net).via(by)).await)?;
            let own = if to.is_ipv4() { "192.0.2.253" } else { "2001:db8::fd" }.parse()?;
            let posing = unknown.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == to.is_ipv4());
            for source in [own, posing.context("an unknown node's pod")?] {
                intrude(&lab.world, source, SocketAddr::new(*to, PORT), &canary)?;
                sent += EACH;
            }
        }
        let after = counted(lab.node(1), before, sent)?;
        ensure!(ear.count(&canary) == 0, "the pod has heard a stranger");
        println!("uplink {round}: {sent} sent, refused: {before:?}, then {after:?}");
        total += sent;
    }
    // What a pod sends to the unknown node's pods goes nowhere, also by the new uplink.
    let mut witness = Witness::new(lab)?;
    let before = Guards::of(lab.node(1))?;
    stage.lead_astray("eth1")?;
    let mut sent = 0;
    for to in unknown {
        for _ in 0..EACH {
            ensure!(witness.knock(&near.namespace, to.addr(), SHORT).is_err(), "{to} has answered");
            sent += 1;
        }
    }
    counted(lab.node(1), before, sent)?;
    stage.lead_back()?;
    witness.clean(lab)?;
    println!("{total} datagrams from strangers refused, {sent} to them");
    Ok(())
}

#[test]
fn a_new_uplink_has_its_guard_before_anybody_can_delete_the_firewall() -> Result<()> {
    let mut stage = Stage::new("uplink")?;
    let second: [IpNet; 2] = ["192.0.2.101/24".parse()?, "2001:db8::65/64".parse()?];
    let uplink = second.into_iter().fold(Endpoint::new("eth1"), Endpoint::address);
    stage.lab.switch.attach(&stage.node().namespace, &uplink)?;
    stage.lead_astray("eth1")?;
    let mut witness = Witness::new(&stage.lab)?;
    let before = Guards::of(stage.node())?;
    let (first, _) = stage.counted(&mut witness, before)?;
    eventually(SOON, "both guards are on the new uplink", || match stage.node().pinned_on("eth1") {
        Ok(pins) if pins.len() == 2 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    stage.lab.node_mut(1).kill_agent()?;
    stage.node().sh("nft delete table inet hawser")?;
    let sent = stage.spray(&mut witness)?;
    witness.clean(&stage.lab)?;
    stage.lab.node_mut(1).start_agent()?;
    eventually(MESH, "the agent is ready", || stage.node().ready())?;
    let after = Guards::of(stage.node())?;
    ensure!(after.ebpf_out - before.ebpf_out == sent, "{sent} sent; {before:?}, then {after:?}");
    stage.lead_back()?;
    stage.talks()?;
    println!("{first} refused at once, {sent} refused by the programs of the new uplink alone");
    Ok(())
}

#[test]
fn the_capture_would_have_found_a_leak() -> Result<()> {
    // The control: without any guard the same datagrams are on the wire, with their canaries.
    let stage = Stage::new("leak")?;
    let capture = stage.lab.switch.capture(CaptureOptions::default())?;
    let canary: [u8; 32] = rand::random();
    for (from, to) in [("192.0.2.253", "192.0.2.1"), ("2001:db8::fd", "2001:db8::1")] {
        let at = SocketAddr::new(to.parse()?, PORT);
        intrude(&stage.lab.world, from.parse()?, at, &canary)?;
    }
    // Nobody listens there: some come back, quoted in ICMP errors.
    let hits = capture.find(&canary)?;
    ensure!(hits.len() as u64 >= 2 * EACH, "{} of {} found", hits.len(), 2 * EACH);
    let answer = Ask::Udp.once(&stage.near.namespace, SocketAddr::new(stage.far.ips[0], PORT), SOON)?;
    ensure!(answer == "far", "{answer}");
    Ok(())
}

#[test]
fn a_silent_switch_is_made_to_speak_before_its_capture_counts_as_clean() -> Result<()> {
    let lab = Lab::up(LabOptions::new(netlab::unique_name("silent")).nodes(0))?;
    let mut witness = Witness::new(&lab)?;
    ensure!(witness.clean(&lab).is_err(), "nobody has sent anything that could be looked for");
    // Not by the switch, which has no node that would speak by itself.
    ensure!(witness.knock(&lab.world, "127.0.0.1".parse()?, SHORT).is_err(), "somebody has answered");
    let frames = witness.clean(&lab)?;
    println!("{frames} frames on a switch without nodes");
    Ok(())
}
