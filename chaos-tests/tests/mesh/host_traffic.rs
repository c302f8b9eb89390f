//! What nodes themselves say to each other, through the tunnel where both want it so.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::ask::Ask;
use chaos_tests::cluster::{API_PORT, node_name};
use chaos_tests::kube_proxy::kube_proxy;
use chaos_tests::matrix::Party;
use chaos_tests::namer::Namer;
use chaos_tests::objects::{BACKEND_PORT, cluster_ips};
use chaos_tests::witness::{Witness, drops, events, flowing, lossless};
use chaos_tests::{Lab, LabOptions, Node};
use kubeapi::Patch;
use netlab::probe::Stream;
use netlab::{Namespace, eventually};
use serde_json::{Value, json};

use crate::rotation::{all_rotated, keys, request, said};
use crate::{MESH, counted, kind, options};

/// For a pair to change its way, on a busy machine.
const CHANGED: Duration = Duration::from_secs(60);
const ON: &str = "hostTraffic:\n  mode: on\n";
const PEERS: &str = "hawser_host_traffic_peers";

fn started(name: &str, nodes: u8, config: &str) -> Result<Lab> {
    with_deadline(name, nodes, 120, config)
}

/// A lab in which a slot goes after so many seconds, whoever is still there.
fn with_deadline(name: &str, nodes: u8, deadline: u32, config: &str) -> Result<Lab> {
    let deadline = deadline * netlab::slowness();
    let config = format!("rotation:\n  quietSeconds: 2\n  deadlineSeconds: {deadline}\n{config}");
    let kernel_wireguard = std::env::var_os("HAWSER_KERNEL_WIREGUARD").is_some();
    let lab = Lab::up(LabOptions { config, drift_interval: 60, kernel_wireguard, ..options(name, nodes) })?;
    for node in &lab.nodes {
        strict(node)?;
    }
    lab.await_settled(MESH)?;
    Ok(lab)
}

/// As some distributions have it: what comes in has to have its way back by the same link.
fn strict(node: &Node) -> Result<()> {
    Ok(node.namespace.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?)
}

/// Host traffic as these lines say, as a rollout brings it: a new agent.
fn reconfigure(lab: &mut Lab, number: u8, lines: &str) -> Result<()> {
    replace(lab, number, ON, lines)
}

/// Other lines in place of some.
fn replace(lab: &mut Lab, number: u8, old: &str, new: &str) -> Result<()> {
    let node = lab.node_mut(number);
    let text = node.sh("cat /etc/hawser/config.yaml")?;
    let text = text.replace(old, "") + new;
    node.write_file("/etc/hawser/config.yaml", &text)?;
    node.stop_agent()?;
    node.start_agent()
}

/// Waits until the own traffic of every node goes to this many peers in this way.
fn all(lab: &Lab, way: &str, peers: f64) -> Result<()> {
    for node in &lab.nodes {
        at(node, way, peers)?;
    }
    Ok(())
}

fn at(node: &Node, way: &str, peers: f64) -> Result<()> {
    eventually(CHANGED, &format!("{} has {peers} peers {way}", node.name), || {
        match node.metric(&kind(PEERS, way)) {
            Ok(now) if (now - peers).abs() < 0.5 => Ok(()),
            other => Err(format!("{other:?}; {}", said(node))),
        }
    })?;
    Ok(())
}

/// Both transports, both families, from every node to the next.
fn between_hosts(lab: &Lab, witness: &mut Witness) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for (from, to) in lab.nodes.iter().zip(lab.nodes.iter().cycle().skip(1)) {
        streams.extend(witness.streams(&from.namespace, &to.namespace, &to.addresses()?)?);
    }
    Ok(streams)
}

/// Whether some of what crosses the switch from now on is a stream's content.
fn seen_in_clear(lab: &Lab, witness: &Witness, streams: &[Stream]) -> Result<Vec<String>> {
    witness.capture().clear();
    flowing(streams, 100)?;
    Ok(witness.verdict(lab)?.canaries)
}

#[test]
fn hosts_move_into_the_tunnel_and_out_of_it_under_traffic_and_lose_no_packet() -> Result<()> {
    let mut lab = started("hosts", 3, "")?;
    let mut witness = Witness::new(&lab)?;
    let streams = between_hosts(&lab, &mut witness)?;
    let control = seen_in_clear(&lab, &witness, &streams)?;
    for stream in &streams {
        let to = stream.address().ip().to_string();
        ensure!(control.iter().any(|line| line.contains(&to)), "the search does not see what goes to {to}");
    }
    for number in 1..=3 {
        reconfigure(&mut lab, number, ON)?;
        flowing(&streams, 50)?;
        // Who is first has nobody to talk to so, and every node meanwhile is what it was.
        let on: f64 = (number - 1).into();
        for with in 1..=number {
            at(lab.node(with), "tunnel", on)?;
        }
    }
    all(&lab, "tunnel", 2.0)?;
    let clear = seen_in_clear(&lab, &witness, &streams)?;
    ensure!(clear.is_empty(), "in clear though on: {}", clear.join("; "));
    let frames = witness.clean(&lab)?;

    let old = (1..=3).map(|n| keys(lab.node(n))).collect::<Result<Vec<_>>>()?;
    for node in 1..=3 {
        request(&lab, node, "with host traffic")?;
    }
    let rotated = all_rotated(&lab, &[1, 2, 3], &old)?;
    lab.node_mut(2).kill_agent()?;
    flowing(&streams, 50)?;
    lab.node_mut(2).start_agent()?;
    at(lab.node(2), "tunnel", 2.0)?;
    // What was sent in the tunnel's way is there still: neighbours are asked anew, and answered though rp_filter was strict.
    for node in &lab.nodes {
        node.sh("ip neigh flush dev eth0")?;
    }
    flowing(&streams, 100)?;
    let rotated_frames = witness.clean(&lab)?;

    // Up to what refuses the others' plaintext, and down again, which goes by way of `on`.
    let require = "hostTraffic:\n  mode: require\n";
    for (before, lines) in [(ON, require), (require, ON)] {
        for number in 1..=3 {
            replace(&mut lab, number, before, lines)?;
            at(lab.node(number), "tunnel", 2.0)?;
            flowing(&streams, 50)?;
        }
    }
    witness.clean(&lab)?;

    for number in [2, 1, 3] {
        reconfigure(&mut lab, number, "")?;
        flowing(&streams, 50)?;
    }
    all(&lab, "plain", 2.0)?;
    ensure!(!seen_in_clear(&lab, &witness, &streams)?.is_empty(), "still in the tunnel though off");
    for node in &lab.nodes {
        let left = node.sh("ip rule")? + &node.sh("ip -6 rule")? + &node.sh("nft list table inet hawser")?;
        ensure!(!left.contains("51882") && !left.contains("refuse_host"), "left on {}: {left}", node.name);
    }
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let count = streams.len();
    let gap = lossless(streams)?;
    println!(
        "{count} streams, {sent} records, 0 lost, longest gap {gap:?}; on: {frames} frames, none in clear; keys \
         replaced after {rotated:?} ({rotated_frames} frames, none in clear); off again"
    );
    Ok(())
}

/// One datagram from a node to every address of another one; who answered.
fn knocks(lab: &Lab, witness: &mut Witness, from: u8, to: u8) -> Result<Vec<IpAddr>> {
    let mut answered = Vec::new();
    for ip in lab.node(to).addresses()? {
        if witness.knock(&lab.node(from).namespace, ip, Duration::from_millis(300)).is_ok() {
            answered.push(ip);
        }
    }
    Ok(answered)
}

/// The same both ways between the first two nodes.
fn both(lab: &Lab, witness: &mut Witness) -> Result<Vec<IpAddr>> {
    let _parties = [Party::host(lab, 1)?, Party::host(lab, 2)?];
    Ok([knocks(lab, witness, 1, 2)?, knocks(lab, witness, 2, 1)?].concat())
}

fn node_object(lab: &Lab, node: u8) -> Result<Value> {
    lab.api().store().get("nodes", None, &node_name(node)).map_err(|error| anyhow!("{error}"))
}

/// As a kubelet writes them, or somebody in its place.
fn set_addresses(lab: &Lab, node: u8, addresses: &Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
    let patched = lab.api().store().patch_status("nodes", None, &node_name(node), &patch);
    patched.map(drop).map_err(|error| anyhow!("{error}"))
}

/// Waits until all of them answer.
fn talk(lab: &Lab, witness: &mut Witness) -> Result<()> {
    eventually(CHANGED, "hosts talk again", || {
        let answered = both(lab, witness).map_err(|error| format!("{error:#}"))?;
        if answered.len() == 4 { Ok(()) } else { Err(format!("{answered:?}; {}", said(lab.node(1)))) }
    })?;
    Ok(())
}

#[test]
fn a_pair_that_was_in_the_tunnel_sends_nothing_in_plaintext_whatever_is_taken_away() -> Result<()> {
    let mut lab = started("shut", 2, ON)?;
    all(&lab, "tunnel", 1.0)?;
    let mut witness = Witness::new(&lab)?;
    let answered = both(&lab, &mut witness)?;
    ensure!(answered.len() == 4, "{answered:?}");

    lab.node_mut(1).kill_tunnel()?;
    at(lab.node(1), "cut", 1.0)?;
    let answered = both(&lab, &mut witness)?;
    ensure!(answered.is_empty(), "answered without a tunnel: {answered:?}");
    witness.clean(&lab)?;
    eventually(CHANGED, "the API has the Event", || match events(&lab, "HostTrafficCut") {
        Ok(events) if !events.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.node_mut(1).start_tunnel()?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;

    // Somebody takes the routes and rules away, and no agent is there to put them back.
    let node = lab.node_mut(1);
    node.stop_agent()?;
    for family in ["-4", "-6"] {
        node.sh(&format!("ip {family} rule del priority 53"))?;
        node.sh(&format!("ip {family} route flush table 51882"))?;
    }
    node.sh("ip -4 rule del priority 53")?;
    let party = Party::host(&lab, 2)?;
    let answered = knocks(&lab, &mut witness, 1, 2)?;
    drop(party);
    ensure!(answered.is_empty(), "answered without routes: {answered:?}");
    for family in ["v4", "v6"] {
        let counter = lab.node(1).sh("nft list chain inet hawser refuse_host_out")?;
        let line = counter.lines().find(|line| line.contains(&format!("host_refused_out_{family}")));
        ensure!(line.is_some_and(|line| !line.contains("packets 0 ")), "nothing counted: {counter}");
    }
    witness.clean(&lab)?;
    lab.node_mut(1).start_agent()?;
    all(&lab, "tunnel", 1.0)?;

    // The API loses what it says of a node, and of the other one: neither has anybody said that it is to be in plaintext.
    let before = node_object(&lab, 1)?;
    set_addresses(&lab, 1, &json!([]))?;
    eventually(CHANGED, "the API has the Event", || match events(&lab, "HostAddressHeld") {
        Ok(events) if !events.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    // The other way they may talk: in the tunnel, by the mesh address.
    let party = Party::host(&lab, 1)?;
    let answered = knocks(&lab, &mut witness, 2, 1)?;
    drop(party);
    ensure!(answered.is_empty(), "answered though a Node has lost its addresses: {answered:?}");
    witness.clean(&lab)?;
    set_addresses(&lab, 1, &before["status"]["addresses"])?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;

    let mut gone = node_object(&lab, 1)?;
    lab.api().store().delete("nodes", None, &node_name(1)).map_err(|error| anyhow!("{error}"))?;
    for counted in ["tunnel", "cut", "plain"] {
        at(lab.node(2), counted, 0.0)?;
    }
    let answered = both(&lab, &mut witness)?;
    ensure!(answered.is_empty(), "answered though a Node is gone: {answered:?}");
    // And with nobody who knows it but the file: the agent begins anew, and routes are gone.
    let node = lab.node_mut(2);
    node.stop_agent()?;
    for family in ["-4", "-6"] {
        node.sh(&format!("ip {family} route flush table 51882"))?;
    }
    node.start_agent()?;
    eventually(CHANGED, "its routes are there again", || {
        let routes = lab.node(2).sh("ip route show table 51882").map_err(|error| format!("{error:#}"))?;
        if routes.contains("unreachable") { Ok(()) } else { Err(routes) }
    })?;
    let answered = both(&lab, &mut witness)?;
    ensure!(answered.is_empty(), "answered though a Node is gone: {answered:?}");
    witness.clean(&lab)?;
    // As a kubelet registers it again; the identity of its agent's token is that of the former Node, so it is given back whole.
    gone["metadata"]["resourceVersion"] = Value::Null;
    lab.api().store().create(&gone).map_err(|error| anyhow!("{error}"))?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;

    // A port that is exempt from now on is so before the API server is heard, which may be the one behind it.
    let node = lab.node(1);
    node.write_file("/tmp/away.nft", &format!("table inet away {{ chain out {{ type filter hook output priority 0; tcp dport {API_PORT} drop; }}; }}"))?;
    node.sh("nft -f /tmp/away.nft")?;
    replace(&mut lab, 1, ON, &format!("{ON}  exemptTCPPorts: [{API_PORT}, 7777]\n"))?;
    let chain = eventually(CHANGED, "port 7777 is exempt", || {
        let chain = lab.node(1).sh("nft list chain inet hawser refuse_host_out");
        let chain = chain.map_err(|error| format!("{error:#}"))?;
        if chain.contains("tcp dport 7777") { Ok(chain) } else { Err(chain) }
    })?;
    ensure!(chain.contains("host_refused_out_v4") && chain.contains("host_refused_out_v6"), "{chain}");
    // The firewall comes before the first plan.
    let before_any_list = eventually(CHANGED, "node 1 has a plan", || {
        let plan = lab.node(1).http(mesh_core::numbers::PORT_METRICS, "/debug/plan");
        plan.map_err(|error| format!("{error:#}"))
    })?;
    ensure!(before_any_list.contains("\"synced\":false"), "{before_any_list}");
    lab.node(1).sh("nft delete table inet away")?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;

    // A reboot, as far as the network can tell: no firewall, no routes, no tunnel, new processes.
    let node = lab.node_mut(1);
    node.stop_agent()?;
    node.kill_tunnel()?;
    let wipe = ["ip -4 rule del priority 52", "ip -6 rule del priority 52", "ip -6 rule del priority 53"];
    for words in wipe.into_iter().chain(["ip -4 rule del priority 53", "nft delete table inet hawser"]) {
        // As many as there are.
        while node.sh(words).is_ok() {}
    }
    for family in ["-4", "-6"] {
        node.sh(&format!("ip {family} route flush table 51882"))?;
    }
    node.start_tunnel()?;
    node.start_agent()?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;
    Ok(())
}

#[test]
fn hosts_that_require_pre_shared_keys_talk_with_them_or_not_at_all_and_talk_again() -> Result<()> {
    const REQUIRED: &str = "postQuantum:\n  mode: require\n";
    let mut lab = with_deadline("hostpsk", 2, 20, &format!("{ON}{REQUIRED}"))?;
    all(&lab, "tunnel", 1.0)?;
    let mut witness = Witness::new(&lab)?;
    let streams = between_hosts(&lab, &mut witness)?;
    flowing(&streams, 50)?;
    let old = [keys(lab.node(1))?, keys(lab.node(2))?];
    for node in [1, 2] {
        request(&lab, node, "with pre-shared keys")?;
    }
    let took = all_rotated(&lab, &[1, 2], &old)?;
    flowing(&streams, 50)?;
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let gap = lossless(streams).with_context(|| {
        let counted: Vec<_> = lab.nodes.iter().map(Node::dropped).collect();
        format!("{}; {}", counted.join("; "), drops(lab.nodes.iter().map(|node| &node.namespace)))
    })?;
    let frames = witness.clean(&lab)?;
    println!(
        "keys replaced after {took:?}; {sent} records, 0 lost, longest gap {gap:?}; {frames} frames, none in clear"
    );

    // One of the two takes part no more, and has other keys: the other sends it nothing, and hears it all the same, though it checks
    // strictly where packets come from.
    replace(&mut lab, 2, REQUIRED, "postQuantum:\n  mode: \"off\"\n")?;
    request(&lab, 2, "without pre-shared keys")?;
    at(lab.node(1), "cut", 1.0)?;
    for node in &lab.nodes {
        node.sh("ip neigh flush dev eth0")?;
    }
    let answered = both(&lab, &mut witness)?;
    ensure!(answered.is_empty(), "answered without a pre-shared key: {answered:?}");
    witness.clean(&lab)?;
    replace(&mut lab, 2, "postQuantum:\n  mode: \"off\"\n", REQUIRED)?;
    all(&lab, "tunnel", 1.0)?;
    talk(&lab, &mut witness)?;
    witness.clean(&lab)?;
    Ok(())
}

/// Serves what the API's host serves on a node's own addresses, as the API server of a control plane does.
fn serve_api_on(node: &Namespace, api: SocketAddr) -> Result<()> {
    let listener = node.run(|| TcpListener::bind(("::", API_PORT)))?;
    // Until the test's process ends: a lab's namespaces go with it.
    node.thread(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect_timeout(&api, Duration::from_secs(2)) else { continue };
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                std::thread::spawn(move || relay(from, to));
            }
        }
    });
    Ok(())
}

fn relay(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}

#[test]
fn a_node_port_with_its_backend_on_a_third_nodes_host_network_is_reached_from_nodes_through_the_tunnel()
-> Result<()> {
    const NODE_PORT: u16 = 30_091;
    let lab = started("third", 3, ON)?;
    all(&lab, "tunnel", 2.0)?;
    let backend = lab.node(3).addresses()?;
    let _server = Namer::new(&lab.node(3).namespace, "third", &backend, BACKEND_PORT)?;
    kube_proxy(lab.node(2), cluster_ips(9), NODE_PORT, &backend)?;
    let refused = || lab.node(2).sh("nft list chain inet hawser refuse_host_out");
    let from = &lab.node(1).namespace;
    for ip in lab.node(2).addresses()? {
        for ask in [Ask::Tcp, Ask::Udp] {
            let what = format!("{} is answered over {ask:?} at {ip}", from.name());
            eventually(CHANGED, &what, || {
                match ask.once(from, SocketAddr::new(ip, NODE_PORT), Duration::from_secs(1)) {
                    Ok(name) if name == "third" => Ok(()),
                    other => Err(format!("{other:?}; {:?}", refused())),
                }
            })?;
        }
    }
    let dropped: Vec<String> = refused()?
        .lines()
        .filter(|line| line.contains("drop") && !line.contains("packets 0 "))
        .map(str::to_owned)
        .collect();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(())
}

#[test]
fn nodes_whose_api_server_is_on_a_node_boot_and_recover_with_host_traffic_on() -> Result<()> {
    // No port is exempt but the one that the agent's kubeconfig has.
    let mut lab = started("control", 1, &format!("{ON}  exemptTCPPorts: []\n"))?;
    let api: SocketAddr = lab.api_url().trim_start_matches("https://").parse()?;
    serve_api_on(&lab.node(1).namespace, api)?;
    lab.front = Some(1);
    for number in [2, 3] {
        lab.add_node(number)?;
        strict(lab.node(number))?;
    }
    lab.await_settled(MESH)?;
    all(&lab, "tunnel", 2.0)?;
    let mut witness = Witness::new(&lab)?;
    let streams = between_hosts(&lab, &mut witness)?;
    flowing(&streams, 50)?;
    witness.clean(&lab)?;

    // The tunnel dies under the agent: the API server is still reached.
    let before = lab.node(2).metric("hawser_watch_errors_total")?;
    lab.node_mut(2).kill_tunnel()?;
    at(lab.node(2), "cut", 2.0)?;
    eventually(CHANGED, "node 2 says so to the API", || match events(&lab, "HostTrafficCut") {
        Ok(events) if events.iter().any(|event| event.to_string().contains("node-2")) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(lab.node(2).metric("hawser_watch_errors_total")? <= before, "watches were interrupted");
    // And under an agent that starts without it.
    lab.node_mut(2).kill_agent()?;
    lab.node_mut(2).start_agent()?;
    counted(lab.node(2), &kind(PEERS, "cut"), 2.0, CHANGED)?;
    witness.clean(&lab)?;
    lab.node_mut(2).start_tunnel()?;
    all(&lab, "tunnel", 2.0)?;
    drop(streams);
    let streams = between_hosts(&lab, &mut witness)?;
    flowing(&streams, 50)?;
    let gap = lossless(streams)?;
    let frames = witness.clean(&lab)?;
    println!("{frames} frames, none in clear; longest gap {gap:?} after the tunnel came back");
    Ok(())
}
