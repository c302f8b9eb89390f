//! Two clusters beside each other, joined by their `clustermesh`: pods of one speak to pods of the other through WireGuard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::ask::{Ask, PATIENCE};
use chaos_tests::joined::{NAMES_PORT, join_all, told};
use chaos_tests::matrix::Party;
use chaos_tests::namer::Namer;
use chaos_tests::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, export, imported_address, imported_backends, service,
    set_endpoints,
};
use chaos_tests::witness::{Witness, flowing, lossless};
use chaos_tests::{Lab, LabOptions, Node, Pod};
use ipnet::IpNet;
use kubeapi::User;
use mesh_core::numbers::PORT_CLUSTERMESH;
use netlab::eventually;
use serde_json::{Value, json};

use crate::audit::pods_of_agents_on;
use crate::{MESH, lab, none, options};

/// West with `nodes` nodes, and east beside it, which has to be dropped first.
fn two(name: &str, nodes: u8) -> Result<(Lab, Lab)> {
    let quick = |side: &str| LabOptions {
        config: format!("rotation:\n  quietSeconds: {}\n", 2 * netlab::slowness()),
        ..options(&format!("{name}-{side}"), nodes)
    };
    let mut west = lab(quick("w"))?;
    let mut east = Lab::up_beside(quick("e"), &west)?;
    east.await_mesh(MESH)?;
    west.start_clustermesh()?;
    east.start_clustermesh()?;
    for (lab, name) in [(&west, "west"), (&east, "east")] {
        west.node(1).write_file(&format!("/etc/hawser/{name}"), &lab.kubeconfig(&User::admin()))?;
    }
    let address = |lab: &Lab| format!("{}:{PORT_CLUSTERMESH}", lab.control_addresses().0);
    let mut command = Command::new(west.binaries.hawser()?);
    command.args(["clustermesh", "join", "--kubeconfig", "/etc/hawser/west"]);
    command.args(["--remote-kubeconfig", "/etc/hawser/east"]);
    command.args(["--address", &address(&west), "--remote-address", &address(&east)]).env("NO_COLOR", "1");
    let said = west.node(1).run(command).with_context(|| format!("{}\n{}", told(&west), told(&east)))?;
    ensure!(said.trim() == "Clusters lab and lab-1 are joined and connected.", "{said}");
    (west.joined, east.joined) = (east.nodes.len(), west.nodes.len());
    for lab in [&west, &east] {
        lab.await_mesh(MESH).with_context(|| told(lab))?;
    }
    Ok((west, east))
}

#[test]
fn pods_of_two_clusters_speak_through_wireguard_alone_and_a_restart_of_everything_beside_loses_nothing()
-> Result<()> {
    let (mut west, mut east) = two("joined", 2)?;
    let [a, b] = [west.add_pod(1, "a")?, west.add_pod(2, "b")?];
    let [c, d] = [east.add_pod(1, "c")?, east.add_pod(2, "d")?];
    let mut witness = Witness::new(&west)?;
    let parties = [&a, &b, &c, &d].map(Party::pod);
    let parties = parties.into_iter().collect::<Result<Vec<_>>>()?;
    for (i, from) in parties.iter().enumerate() {
        for (j, to) in parties.iter().enumerate() {
            if i != j {
                none(&witness.failures(from, to, 5))?;
            }
        }
    }
    // Nodes themselves, with remote pods: by their mesh addresses.
    none(&witness.failures(&Party::host(&west, 1)?, &parties[2], 5))?;
    none(&witness.failures(&Party::host(&east, 1)?, &parties[0], 5))?;
    for (lab, other) in [(&west, &east), (&east, &west)] {
        for peer in lab.node(1).peers()? {
            let theirs = |node: &Node| {
                let (v4, v6) = other.underlay_of(node.number);
                [format!("{v4}/32"), format!("{v6}/128")]
            };
            let allowed: Vec<&str> = peer.allowed_ips.split(',').collect();
            let found = other.nodes.iter().flat_map(theirs).find(|host| allowed.contains(&host.as_str()));
            ensure!(found.is_none(), "a remote node's address is allowed: {peer:?}");
        }
    }
    let mut streams = witness.streams(&a.namespace, &c.namespace, &c.ips)?;
    streams.extend(witness.streams(&d.namespace, &b.namespace, &b.ips)?);
    flowing(&streams, 20)?;
    // Nobody tells of the other cluster any more, and an agent that starts knows it nevertheless.
    west.kill_clustermesh()?;
    east.kill_clustermesh()?;
    west.node_mut(1).kill_agent()?;
    west.node_mut(1).start_agent()?;
    eventually(MESH, "the agent that was killed is ready", || west.node(1).ready())?;
    flowing(&streams, 100)?;
    west.await_mesh(MESH)?;
    west.run_clustermesh()?;
    east.run_clustermesh()?;
    flowing(&streams, 100)?;
    // A node that comes while both run.
    let begun = Instant::now();
    east.add_node(3)?;
    east.prepare_for_clustermesh(3)?;
    west.joined += 1;
    west.await_mesh(MESH)?;
    let known = begun.elapsed();
    east.await_mesh(MESH)?;
    let e = east.add_pod(3, "e")?;
    none(&witness.failures(&parties[0], &Party::pod(&e)?, 5))?;
    let gap = lossless(streams)?;
    let frames = witness.clean(&west)?;
    // They part: nothing of the other cluster stays on the wire's side of any node.
    parted(&mut west, &east)?;
    println!(
        "a new node of the other cluster is a peer after {known:?}; streams lost 0, longest gap {gap:?}; {frames} frames, none in clear; parted, nothing of it is left"
    );
    Ok(())
}

/// Deletes the ClusterPeer of `gone`, and sees that no node has a peer, a route or a memory of it any more.
fn parted(lab: &mut Lab, gone: &Lab) -> Result<()> {
    let name = gone.cluster_name().to_owned();
    lab.api().store().delete("clusterpeers", None, &name).map_err(|error| anyhow!("{error}"))?;
    lab.joined = 0;
    let theirs = gone.cluster_cidrs();
    let of_theirs = |text: &str| {
        let words = text.split([' ', ',', '\t', '\n']);
        let mut nets = words.filter_map(|word| {
            word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
        });
        nets.find(|net| theirs.iter().any(|cidr| cidr.contains(net)))
    };
    for node in &lab.nodes {
        eventually(MESH, "nothing of the cluster that is gone is left", || {
            let text = |command| node.sh(command).map_err(|error| format!("{error:#}"));
            for command in
                ["wg show all allowed-ips", "ip route show table all", "ip -6 route show table all"]
            {
                let seen = text(command)?;
                if let Some(net) = of_theirs(&seen) {
                    return Err(format!("{net} in {seen}"));
                }
            }
            let memory = text("cat /var/lib/hawser/joined-clusters.json")?;
            if memory.contains(&name) { Err(memory) } else { Ok(()) }
        })?;
    }
    lab.await_mesh(MESH)
}

#[test]
fn keys_rotate_across_clusters_without_loss_and_pairs_have_post_quantum_keys() -> Result<()> {
    let (mut west, east) = two("joinrot", 2)?;
    let [a, c] = [west.add_pod(1, "a")?, east.add_pod(1, "c")?];
    let mut witness = Witness::new(&west)?;
    west.await_settled(MESH)?;
    east.await_settled(MESH)?;
    let shown = west.node(1).sh("wg show hawser0 preshared-keys")?;
    ensure!(!shown.contains("(none)"), "every pair has a pre-shared key, also across clusters");
    let streams = witness.streams(&a.namespace, &c.namespace, &c.ips)?;
    flowing(&streams, 20)?;
    let keys = |lab: &Lab| lab.node(1).sh("wg show all public-key");
    let before = [keys(&west)?, keys(&east)?];
    // At both ends at once, while west tells nobody and hears of nobody.
    west.kill_clustermesh()?;
    let patch = kubeapi::Patch::Merge(json!({"metadata": {"annotations": {"hawser.dev/rotate": "1"}}}));
    for lab in [&west, &east] {
        let _: Value =
            lab.api().store().patch("nodes", None, "node-1", &patch).map_err(|error| anyhow!("{error}"))?;
    }
    let new = |lab: &Lab, before: &str| -> Result<Vec<String>, String> {
        let now = keys(lab).map_err(|error| format!("{error:#}"))?;
        let new = now.lines().filter(|line| !before.lines().any(|old| old == *line));
        Ok(new.filter_map(|line| Some(line.split('\t').nth(1)?.to_owned())).collect())
    };
    eventually(Duration::from_secs(60), "both ends have a new key", || {
        let both = [new(&west, &before[0])?, new(&east, &before[1])?];
        if both.iter().any(Vec::is_empty) { Err(format!("{both:?}")) } else { Ok(()) }
    })?;
    flowing(&streams, 100)?;
    let known = west.node(1).peers()?;
    let theirs = new(&east, &before[1]).map_err(|error| anyhow!("{error}"))?;
    let told = known.iter().find(|peer| theirs.contains(&peer.public_key));
    ensure!(told.is_none(), "west was told {told:?} by nobody");
    west.run_clustermesh()?;
    for ((lab, other), before) in [(&west, &east), (&east, &west)].into_iter().zip(&before) {
        let what = "both keys of node 1 are new, and the other cluster knows them";
        eventually(Duration::from_secs(180), what, || {
            let now = keys(lab).map_err(|error| format!("{error:#}"))?;
            let old = |text: &str| before.lines().any(|line| line == text);
            if now.lines().any(old) {
                return Err(format!("an old key is there in {}", lab.cluster_name()));
            }
            let peers = other.node(1).peers().map_err(|error| format!("{error:#}"))?;
            let missing = now
                .lines()
                .filter_map(|line| line.split('\t').nth(1))
                .find(|key| !peers.iter().any(|peer| peer.public_key == *key));
            missing.map_or(Ok(()), |key| Err(format!("{} does not know {key}", other.cluster_name())))
        })?;
    }
    let gap = lossless(streams)?;
    let frames = witness.clean(&west)?;
    println!(
        "both keys replaced at both ends, clustermesh of one away meanwhile; 0 lost, longest gap {gap:?}; {frames} frames, none in clear"
    );
    Ok(())
}

#[test]
fn policy_of_the_target_cluster_holds_and_names_pods_of_the_other_by_their_cluster() -> Result<()> {
    let (west, east) = two("joinpol", 1)?;
    let [a, b] = [west.add_pod(1, "a")?, west.add_pod(1, "b")?];
    let c = east.add_pod(1, "c")?;
    let _server = Namer::new(&c.namespace, &c.name, &c.ips, BACKEND_PORT)?;
    let to = SocketAddr::new(c.ip(true).context("an IPv4 address")?, BACKEND_PORT);
    let from = |pod: &Pod| -> Result<bool> { Ok(Ask::Tcp.once(&pod.namespace, to, PATIENCE).is_ok()) };
    ensure!(from(&a)? && from(&b)?, "without a policy everybody may");
    let policy = |name: &str, from: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"podSelector": {}, "ingress": [{"from": from}]},
        })
    };
    // As wide as it looks, it is about the own cluster.
    apply(&east, &policy("own", json!([{"namespaceSelector": {}}])))?;
    eventually(Duration::from_secs(10), "nobody of the other cluster gets in", || {
        match (from(&a), from(&b)) {
            (Ok(false), Ok(false)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    apply(
        &east,
        &policy(
            "west",
            json!([{"namespaceSelector": {"matchLabels": {"hawser.dev/cluster": "lab"}},
        "podSelector": {"matchLabels": {"lab.hawser.dev/pod": "a"}}}]),
        ),
    )?;
    let labels: Value =
        west.api().store().get("pods", Some("default"), "a").map_err(|error| anyhow!("{error}"))?;
    let patch = kubeapi::Patch::Merge(json!({"metadata": {"labels": {"lab.hawser.dev/pod": "a"}}}));
    let _: Value =
        west.api().store().patch("pods", Some("default"), "a", &patch).map_err(|error| anyhow!("{error}"))?;
    let begun = Instant::now();
    eventually(Duration::from_secs(10), "the pod that is named gets in, the other does not", || {
        match (from(&a), from(&b)) {
            (Ok(true), Ok(false)) => Ok(()),
            other => Err(format!("{other:?}; labels {}", labels["metadata"]["labels"])),
        }
    })?;
    println!("a pod of the other cluster was let in {:?} after it got its label", begun.elapsed());
    // What is explained from both clusters' objects is what packets met, and in force as agents say.
    for lab in [&west, &east] {
        pods_of_agents_on(lab, &[1])?;
    }
    let port = BACKEND_PORT.to_string();
    for (pod, wanted, rule) in [
        ("default/a", 0, "NetworkPolicy default/west ingress[0]"),
        ("default/b", 3, "isolate the pod, and no rule allows"),
    ] {
        let words = ["policy", "explain", pod, "default/c@lab-1", "--port", &port];
        let access = ["--kubeconfig", "/etc/hawser/west", "--remote-kubeconfig", "/etc/hawser/east"];
        let (code, out, err) = crate::cli::hawser(&west, &[&words[..], &access].concat())?;
        ensure!(code == wanted && out.contains(rule), "{pod}: {code}: {out}{err}");
    }
    Ok(())
}

/// What a server of names answers (RFC 1035, section 4).
fn asked(from: &netlab::Namespace, server: SocketAddr, name: &str, kind: u16) -> Result<Vec<u8>> {
    let mut question = vec![7, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend([kind.to_be_bytes(), [0, 1]].concat());
    let answer = from.run(move || {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&question, server)?;
        let mut answer = vec![0; 1232];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        std::io::Result::Ok(answer)
    });
    let answer = answer.with_context(|| format!("{name} at {server}"))?;
    ensure!(answer.get(..2) == Some(&[7, 7]) && answer.len() >= 12, "{answer:?}");
    Ok(answer)
}

#[test]
fn what_changes_while_one_of_three_clusters_is_cut_off_is_in_all_of_them_after_the_heal() -> Result<()> {
    let with_services =
        |side: &str| LabOptions { allocates_services: true, ..options(&format!("three-{side}"), 1) };
    let mut west = lab(with_services("w"))?;
    let mut east = Lab::up_beside(with_services("e"), &west)?;
    let mut north = Lab::up_beside(with_services("n"), &east)?;
    join_all(&mut [&mut west, &mut east, &mut north], MESH)?;
    let labs = [&west, &east, &north];
    let [a, b] = [west.add_pod(1, "a")?, west.add_pod(1, "b")?];
    let [c, d] = [east.add_pod(1, "c")?, east.add_pod(1, "d")?];
    let [e, f] = [north.add_pod(1, "e")?, north.add_pod(1, "f")?];
    let _servers = [&a, &b, &c, &d, &e, &f]
        .map(|pod| Namer::new(&pod.namespace, &pod.name, &pod.ips, BACKEND_PORT))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for (lab, pod) in labs.into_iter().zip([&a, &c, &e]) {
        apply(lab, &service("shop", &json!({})))?;
        set_endpoints(lab, "shop", &[Endpoint::ready(pod)])?;
        apply(lab, &export("shop"))?;
    }
    let all_know = |deadline: u64, what: &str, of: [Option<&Pod>; 3], who: &[usize]| {
        eventually(Duration::from_secs(deadline), what, || {
            who.iter().try_for_each(|me| {
                let expected: BTreeMap<String, BTreeSet<String>> = labs
                    .iter()
                    .zip(of)
                    .filter_map(|(lab, pod)| Some((lab, pod?)))
                    .map(|(lab, pod)| {
                        (
                            lab.cluster_name().to_owned(),
                            BTreeSet::from_iter(pod.ip(true).map(|ip| ip.to_string())),
                        )
                    })
                    .collect();
                let found = imported_backends(labs[*me], "shop")?;
                if found == expected {
                    return Ok(());
                }
                Err(format!("cluster {me} knows {found:?}, not {expected:?}; {}", told(labs[*me])))
            })
        })
    };
    all_know(20, "everybody knows all backends", [Some(&a), Some(&c), Some(&e)], &[0, 1, 2])?;

    let mut witness = Witness::new(&west)?;
    let streams = witness.streams(&a.namespace, &c.namespace, &c.ips)?;
    let within = witness.streams(&e.namespace, &f.namespace, &f.ips)?;
    flowing(&streams, 20)?;
    let ports =
        |lab: &Lab| lab.nodes.iter().map(|node| node.port).chain(lab.hosts.clone()).collect::<Vec<_>>();
    let rest = [ports(&west), ports(&east)].concat();
    west.switch.partition(&[&ports(&north), &rest])?;
    // Everywhere something changes, also where nobody can hear of it.
    set_endpoints(&west, "shop", &[Endpoint::ready(&b)])?;
    set_endpoints(&east, "shop", &[Endpoint::ready(&d)])?;
    set_endpoints(&north, "shop", &[Endpoint::ready(&f)])?;
    let g = north.add_pod(1, "g")?;
    all_know(
        10,
        "the two that see each other go on, and know the third as it was",
        [Some(&b), Some(&d), Some(&e)],
        &[0, 1],
    )?;
    let begun = Instant::now();
    all_know(60, "backends of a silent cluster leave with its lease", [Some(&b), Some(&d), None], &[0, 1])?;
    all_know(60, "and those of both others leave the one that is alone", [None, None, Some(&f)], &[2])?;
    let left = begun.elapsed();
    flowing(&streams, 20)?;
    flowing(&within, 20)?;

    west.switch.heal()?;
    let begun = Instant::now();
    all_know(60, "everything is everywhere", [Some(&b), Some(&d), Some(&f)], &[0, 1, 2])?;
    let healed = begun.elapsed();
    // And traffic goes there: from a pod that came meanwhile, to a service whose own backend goes now.
    eventually(Duration::from_secs(20), "all pods talk", || {
        for (from, to) in [(&g, &b), (&g, &d), (&a, &f), (&c, &g)] {
            let at = SocketAddr::new(to.ip(true).ok_or("no address")?, BACKEND_PORT);
            // `g` has no server: who is there refuses.
            match Ask::Tcp.once(&from.namespace, at, PATIENCE) {
                Ok(name) if name == to.name => {}
                Err(error) if to.name == "g" && error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                other => return Err(format!("{} to {}: {other:?}", from.name, to.name)),
            }
        }
        Ok(())
    })?;
    let at =
        SocketAddr::new(imported_address(&north, "shop").map_err(|error| anyhow!("{error}"))?, SERVICE_PORT);
    set_endpoints(&north, "shop", &[])?;
    eventually(
        Duration::from_secs(20),
        "the service of the cluster that was alone moves to the others",
        || match Ask::Tcp.once(&g.namespace, at, PATIENCE) {
            Ok(name) if ["b", "d"].contains(&name.as_str()) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )?;
    let gap = lossless(streams)?.max(lossless(within)?);
    let frames = witness.clean(&west)?;
    // Names, without a resolver between: what CoreDNS would ask.
    let (SocketAddr::V4(service), names) = (at, north.control_addresses().0) else {
        anyhow::bail!("{at} is no IPv4 address");
    };
    let names = SocketAddr::new(names.into(), NAMES_PORT);
    let address = [&[0, 4][..], &service.ip().octets()].concat();
    let found = asked(&g.namespace, names, "shop.default.svc.clusterset.local", 1)?;
    ensure!(found.windows(6).any(|part| part == address), "no {address:?} in {found:?}");
    let found = asked(&g.namespace, names, "_tcp._tcp.shop.default.svc.clusterset.local", 33)?;
    // Priority 0, a weight, the port, and the service's own name.
    let target = [&SERVICE_PORT.to_be_bytes()[..], b"\x04shop\x07default\x03svc"].concat();
    ensure!(found.windows(target.len()).any(|part| part == target), "no {target:?} in {found:?}");
    let found = asked(&g.namespace, names, "nobody.default.svc.clusterset.local", 1)?;
    ensure!(found[3] & 15 == 3, "no NXDOMAIN: {found:?}");
    println!(
        "silent backends left after {left:?}; everything was everywhere {healed:?} after the heal; streams of those who saw each other lost 0, longest gap {gap:?}; {frames} frames, none in clear"
    );
    Ok(())
}
