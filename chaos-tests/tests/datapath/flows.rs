//! `hawser flows`, run on the nodes against their agents: what passed, what did not and why, as it happens and afterwards.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::NAMESPACE;
use chaos_tests::{Lab, Pod};
use netlab::{Output, Process, eventually};
use proto::flows::{Body, Direction, Flow, Kind, Line, Verdict};

use crate::support::ask::{connect, echo, greeting};
use crate::support::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, cluster_ips, delete_policy, ingress_only, network_policy,
    service, set_endpoints, with_cluster_ips,
};
use crate::support::{Ask, Namer, settle};
use crate::{SOON, lab};

const PATIENCE: Duration = Duration::from_millis(400);

fn hawser(lab: &Lab, words: &str) -> Result<Command> {
    let mut command = Command::new(lab.binaries.hawser()?);
    command.arg("flows").args(words.split_whitespace());
    Ok(command)
}

fn flow(line: &str) -> Option<Flow> {
    match serde_json::from_str(line).ok()? {
        Line { body: Body::Flow(flow), .. } => Some(*flow),
        Line { body: Body::Lost(_) | Body::Error(_), .. } => None,
    }
}

/// What a node's agent remembers.
fn recent(lab: &Lab, node: u8, words: &str) -> Result<Vec<Flow>> {
    let printed = lab.node(node).run(hawser(lab, &format!("-o json --last 4000 {words}"))?)?;
    printed
        .lines()
        .map(|line| flow(line).with_context(|| format!("a line that is no flow: {line}")))
        .collect()
}

/// Waits for a flow in what follows.
fn await_flow(reader: &Process, what: &str, wanted: impl Fn(&Flow) -> bool) -> Result<Flow> {
    let line = reader.wait_for_line(SOON, what, |line| flow(line).is_some_and(|flow| wanted(&flow)))?;
    flow(&line).context("invariant: it was a flow a moment ago")
}

fn between(flow: &Flow, source: &Pod, destination: &Pod) -> bool {
    let names = |peer: &proto::flows::Peer, pod: &Pod| {
        peer.pod_name.as_deref() == Some(&pod.name) && peer.namespace.as_deref() == Some(NAMESPACE)
    };
    names(&flow.source, source) && names(&flow.destination, destination)
}

#[test]
fn what_passed_what_was_refused_and_what_was_cut_is_told_by_name_and_reason() -> Result<()> {
    let lab = lab("flows", 2)?;
    let [client, server] = [lab.add_pod(1, "client")?, lab.add_pod(1, "server")?];
    let stranger = lab.add_pod(2, "stranger")?;
    let _namer = Namer::new(&server.namespace, "server", &server.ips, BACKEND_PORT)?;
    apply(&lab, &service("web", &with_cluster_ips(50)))?;
    set_endpoints(&lab, "web", &[Endpoint::ready(&server)])?;
    apply(&lab, &network_policy("friends", ingress_only("server", &["client"])))?;
    settle(&client.namespace, &server.ips, BACKEND_PORT, true)?;
    settle(&stranger.namespace, &server.ips, BACKEND_PORT, false)?;

    let follow = |words: &str| -> Result<Process> {
        let command = hawser(&lab, &format!("--follow -o json {words}"))?;
        Ok(lab.node(1).namespace.spawn(command, Output::Lines)?)
    };
    let all = follow("")?;
    let drops = follow("--drop")?;
    let of_client = follow(&format!("--pod {NAMESPACE}/client"))?;
    for ip in cluster_ips(50) {
        let to = SocketAddr::new(ip, SERVICE_PORT);
        // A reader that has just begun may miss the first; so ask until it is told.
        let told = |flow: &Flow| {
            between(flow, &client, &server)
                && flow.kind == Kind::New
                && flow.service.as_ref().is_some_and(|service| service.ip == ip)
        };
        eventually(SOON, "the readers follow", || {
            let asked = Ask::Tcp.once(&client.namespace, to, PATIENCE);
            let heard = |reader: &Process| {
                reader.lines().iter().filter_map(|line| flow(line)).any(|flow| told(&flow))
            };
            if asked.is_ok() && heard(&all) && heard(&of_client) { Ok(()) } else { Err(format!("{asked:?}")) }
        })?;
        let passed = await_flow(&all, "the flow to the service", told)?;
        let service = passed.service.as_ref().context("a service")?;
        ensure!(service.port == SERVICE_PORT && service.name.as_deref() == Some("web"), "{service:?}");
        ensure!(
            passed.destination.port == Some(BACKEND_PORT) && passed.verdict == Verdict::Forwarded,
            "{passed:?}"
        );
    }

    for ip in &server.ips {
        let to = SocketAddr::new(*ip, BACKEND_PORT);
        ensure!(Ask::Tcp.once(&stranger.namespace, to, PATIENCE).is_err(), "the stranger is let in");
        let refused = await_flow(&drops, "the refused flow", |flow| {
            between(flow, &stranger, &server)
                && flow.destination.ip == *ip
                && flow.destination.port == Some(BACKEND_PORT)
        })?;
        ensure!(
            refused.verdict == Verdict::Dropped
                && refused.drop_reason.as_deref() == Some("policy-ingress")
                && refused.traffic_direction == Direction::Ingress
                && refused.interface.is_some(),
            "{refused:?}"
        );
    }

    // What is established and denied afterwards is cut, and that is told.
    let to = SocketAddr::new(server.ips[0], BACKEND_PORT);
    let stream = client.namespace.run(move || connect(to, PATIENCE))?;
    ensure!(greeting(&stream)? == "server");
    apply(&lab, &network_policy("friends", ingress_only("server", &["nobody"])))?;
    eventually(SOON, "the connection is cut", || match echo(&stream, "still there?") {
        Ok(()) => Err("it answers".to_owned()),
        Err(_) => Ok(()),
    })?;
    let cut = await_flow(&drops, "the cut", |flow| {
        // By the first packet after the policy: that may be an answer.
        let [source, destination] = if flow.is_reply { [&server, &client] } else { [&client, &server] };
        between(flow, source, destination) && flow.verdict == Verdict::Revoked && flow.kind == Kind::Revoked
    })?;
    println!("cut: {cut:?}");

    // Afterwards the same is remembered, and filters hold.
    let remembered = recent(&lab, 1, "--drop")?;
    ensure!(!remembered.is_empty() && remembered.iter().all(|flow| flow.verdict != Verdict::Forwarded));
    ensure!(remembered.iter().any(|flow| between(flow, &stranger, &server)), "{remembered:?}");
    ensure!(remembered.contains(&cut), "{remembered:?}");
    let of = recent(&lab, 1, &format!("--pod {NAMESPACE}/client"))?;
    let concerns = |flow: &Flow| {
        [&flow.source, &flow.destination].iter().any(|end| end.pod_name.as_deref() == Some("client"))
    };
    ensure!(!of.is_empty() && of.iter().all(concerns), "{of:?}");
    let text = lab.node(1).run(hawser(&lab, "--drop --last 4000")?)?;
    println!("{}", text.lines().rev().take(4).collect::<Vec<_>>().join("\n"));
    for word in ["default/stranger", "default/server", "policy-ingress", "revoked"] {
        ensure!(text.to_lowercase().contains(word), "{word} is not in:\n{text}");
    }
    delete_policy(&lab, "friends")
}
