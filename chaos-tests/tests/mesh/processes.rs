//! The agent or the tunnel dies while packets are on their way.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, data_path, difference, events, flowing, lossless};
use netlab::eventually;

use crate::{counted, kind, lab, none, options, settled, turned};

#[test]
fn an_agent_that_is_killed_or_stopped_is_not_missed_and_its_successor_changes_nothing() -> Result<()> {
    let mut lab = lab(options("agent", 2))?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    settled(lab.node(1), 2.0)?;
    let mut streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    streams.extend(witness.streams(&lab.node(1).namespace, &b.namespace, &b.ips)?);
    streams.extend(witness.streams(&lab.node(2).namespace, &a.namespace, &a.ips)?);
    flowing(&streams, 20)?;
    let before = data_path(lab.node(1))?;
    for killed in [true, false] {
        let node = lab.node_mut(1);
        if killed {
            node.kill_agent()?
        } else {
            node.stop_agent()?
        }
        flowing(&streams, 100)?;
        none(&difference(&before, &data_path(lab.node(1))?))?;
        lab.node_mut(1).start_agent()?;
        settled(lab.node(1), 3.0)?;
        none(&difference(&before, &data_path(lab.node(1))?))?;
        flowing(&streams, 50)?;
    }
    // A successor that cannot reach the API has no list of nodes, and takes nothing away for that.
    let faults = lab.api().faults();
    faults.refuse_connections(true);
    lab.node_mut(1).kill_agent()?;
    lab.node_mut(1).start_agent()?;
    turned(lab.node(1), 3.0)?;
    counted(lab.node(1), "hawser_watch_errors_total", 1.0, Duration::from_secs(20))?;
    none(&difference(&before, &data_path(lab.node(1))?))?;
    flowing(&streams, 50)?;
    faults.refuse_connections(false);
    settled(lab.node(1), 3.0)?;
    none(&difference(&before, &data_path(lab.node(1))?))?;
    let count = streams.len();
    for (index, stream) in streams.iter().enumerate() {
        let report = stream.report();
        if report.longest_gap > Duration::from_millis(200) {
            println!("{} stream: {report}", ["TCP", "UDP"][index % 2]);
        }
    }
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let gap = lossless(streams)?;
    let frames = witness.clean(&lab)?;
    let lines = before.len();
    println!(
        "{count} streams, {sent} records, 0 lost, longest gap {gap:?}; {lines} lines of routes, rules, addresses, \
         firewall and peers unchanged six times; {frames} frames, none in clear"
    );
    Ok(())
}

#[test]
fn without_a_tunnel_nothing_passes_in_clear_and_a_new_one_is_programmed_again() -> Result<()> {
    let mut lab = lab(options("tunnel", 2))?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    {
        let [from, to] = [Party::pod(&a)?, Party::pod(&b)?];
        none(&witness.failures(&from, &to, 3))?;
    }
    let streams = witness.streams(&a.namespace, &b.namespace, &b.ips)?;
    flowing(&streams, 20)?;
    lab.node_mut(1).kill_tunnel()?;
    let at_death: Vec<_> = streams.iter().map(netlab::probe::Stream::report).collect();
    // Whatever still comes was behind the tunnel already.
    let log = || lab.node(1).log("mesh-agent").unwrap_or_default();
    eventually(Duration::from_secs(10), "the agent says so", || {
        if log().contains("Device is missing") { Ok(()) } else { Err("not in its log") }
    })?;
    let short = Duration::from_millis(150);
    let mut targets = b.ips.clone();
    targets.extend(lab.node(2).addresses()?);
    targets.extend(["10.244.77.7".parse::<IpAddr>()?, "fd00:10:244:77::7".parse()?]);
    let mut knocks = 0;
    let parties = [Party::pod(&b)?, Party::host(&lab, 2)?];
    for from in [&a.namespace, &lab.node(1).namespace] {
        for to in &targets {
            // Node to node stays outside the tunnel by design.
            if from.name() == lab.node(1).namespace.name() && lab.node(2).addresses()?.contains(to) {
                continue;
            }
            ensure!(
                witness.knock(from, *to, short).is_err(),
                "{to} answered {} without a tunnel",
                from.name()
            );
            knocks += 1;
        }
    }
    for to in a.ips.iter().copied() {
        ensure!(witness.knock(&b.namespace, to, short).is_err(), "{to} answered without a tunnel");
        knocks += 1;
    }
    drop(parties);
    for (stream, then) in streams.iter().zip(&at_death) {
        let now = stream.report();
        ensure!(now.received <= then.received + 10, "a stream went on without a tunnel: {then}, then {now}");
    }
    drop(streams);
    let outage = witness.clean(&lab)?;

    let begun = Instant::now();
    lab.node_mut(1).start_tunnel()?;
    for device in ["hawser0", "hawser1"] {
        counted(lab.node(1), &kind("hawser_tunnel_restored_total", device), 1.0, Duration::from_secs(15))?;
    }
    let programmed = begun.elapsed();
    let [from, to] = [Party::pod(&a)?, Party::pod(&b)?];
    let mut back = Vec::new();
    for (from, to) in [(&from, &to), (&to, &from)] {
        for ip in &to.ips {
            eventually(Duration::from_secs(20), "a probe comes back", || {
                witness.knock(from.namespace, *ip, Duration::from_millis(200))
            })?;
        }
        back.push(begun.elapsed());
    }
    ensure!(back[1] < Duration::from_secs(10), "probes came back after {back:?} only");
    none(&[witness.failures(&from, &to, 3), witness.failures(&to, &from, 3)].concat())?;
    for reason in ["DeviceMissing", "DeviceMissingResolved"] {
        eventually(Duration::from_secs(15), "the API has the Events", || {
            let seen = events(&lab, reason).map_err(|error| error.to_string())?;
            let both = ["hawser0", "hawser1"].iter().all(|device| {
                seen.iter().any(|e| e["message"].as_str().unwrap_or_default().contains(device))
            });
            if both { Ok(()) } else { Err(format!("{reason}: {seen:?}")) }
        })?;
    }
    ensure!(
        lab.node(1).log("mesh-agent")?.contains("Device is there and programmed"),
        "the agent says nothing"
    );
    let frames = witness.clean(&lab)?;
    println!(
        "{knocks} knocks in vain, {outage} frames until then, none in clear; programmed after {programmed:?}, probes \
         out {:?}, in {:?}; {frames} frames in all, none in clear",
        back[0], back[1]
    );
    Ok(())
}

#[test]
fn a_tunnel_that_hangs_does_not_hang_the_agent_and_goes_on_where_it_was() -> Result<()> {
    let mut options = options("frozen", 2);
    options.drift_interval = 1;
    let lab = lab(options)?;
    let [a, b] = [lab.add_pod(1, "a")?, lab.add_pod(2, "b")?];
    let mut witness = Witness::new(&lab)?;
    settled(lab.node(1), 2.0)?;
    let node = lab.node(1);
    let tunnel = node.tunnel().context("a tunnel")?;
    tunnel.signal(netlab::Signal::STOP)?;
    eventually(Duration::from_secs(20), "the agent says that the tunnel is silent", || match node.ready() {
        Err(why) if why.contains("does not answer") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    node.sh("ip route del unreachable 10.244.0.0/16 table 51880 proto 202")?;
    eventually(Duration::from_secs(30), "the route is put back", || {
        match node.sh("ip route show table 51880") {
            Ok(routes) if routes.contains("unreachable 10.244.0.0/16") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    tunnel.signal(netlab::Signal::CONT)?;
    eventually(Duration::from_secs(30), "the agent is ready again", || node.ready())?;
    let failures = witness.failures(&Party::pod(&a)?, &Party::pod(&b)?, 5);
    ensure!(failures.is_empty(), "{failures:?}");
    witness.clean(&lab)?;
    Ok(())
}

#[test]
fn a_node_is_closed_before_anybody_answers_the_agent() -> Result<()> {
    let mut lab = lab(options("closed", 1))?;
    let node = lab.node_mut(1);
    node.stop_agent()?;
    // As after a reboot, with an API server that is away.
    for undo in [
        "nft delete table inet hawser",
        "ip route flush table 51880",
        "ip route del unreachable 10.244.0.0/16",
        "ip rule del priority 50",
        "ip -6 rule del priority 50",
    ] {
        node.sh(undo)?;
    }
    node.write_file(
        "/etc/hawser/config.yaml",
        "podCIDRs: ['10.244.0.0/16', 'fd00:10:244::/48']\napiServers: ['192.0.2.200:1']\nwireguard: userspace\n",
    )?;
    node.write_file("/etc/hawser/kubeconfig", &node_kubeconfig())?;
    node.start_agent()?;
    let node = lab.node(1);
    eventually(Duration::from_secs(10), "routes, rules and firewall refuse", || -> Result<(), String> {
        let all = ["ip route show table 51880", "ip route show", "ip rule", "ip -6 rule", "nft list tables"]
            .map(|command| node.sh(command).unwrap_or_default());
        let wanted =
            ["unreachable 10.244.0.0/16", "unreachable 10.244.0.0/16", "51880", "51880", "inet hawser"];
        let missing = all.iter().zip(wanted).find(|(shown, wanted)| !shown.contains(*wanted));
        missing.map_or(Ok(()), |(shown, wanted)| Err(format!("no {wanted:?} in {shown:?}")))
    })?;
    Ok(())
}

/// A kubeconfig whose server answers nobody.
fn node_kubeconfig() -> String {
    "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
     clusters: [{name: c, cluster: {server: 'https://192.0.2.201:1'}}]\n\
     users: [{name: u, user: {token: t}}]\n\
     contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        .to_owned()
}
