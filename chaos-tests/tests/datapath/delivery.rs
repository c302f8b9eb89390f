//! Whichever way a packet comes to a pod, its ingress policy is asked once for its flow, and only there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::PodSpec;
use chaos_tests::{Lab, Node, Pod};
use netlab::{Namespace, eventually};
use serde_json::json;

use crate::lab;
use crate::support::ask::PATIENCE;
use crate::support::objects::{apply, ingress_only, network_policy};
use crate::support::{Ask, Counts, Namer, settle};

const PORT: u16 = 8080;
/// Source ports from here on are not among those that the kernel gives away.
const OWN_PORTS: u16 = 20_000;

/// Everything that says where policy was asked.
const ASKED: [&str; 7] =
    ["egress", "ingress-fast", "ingress-tunnel", "ingress-stack", "ingress-host", "rejudged", "revoked"];

/// A way from a client to a server, and what each node has to count for one flow on it.
struct Way<'a> {
    name: &'static str,
    client: &'a Namespace,
    server: &'a Pod,
    /// The client has a policy of its own to be asked, on its node.
    egress_at: Option<u8>,
    /// Where ingress is asked, and under which word.
    ingress_at: (u8, &'static str),
    allowed: bool,
}

impl Way<'_> {
    fn wanted(&self, node: u8) -> Vec<(&'static str, u64)> {
        let mut wanted = Vec::new();
        if self.egress_at == Some(node) {
            wanted.push(("egress", 1));
        }
        if self.ingress_at.0 == node {
            wanted.push((self.ingress_at.1, 1));
        }
        wanted
    }

    /// One flow, from a port that nobody else uses, and the counts of both nodes.
    fn take(&self, lab: &Lab, ask: Ask, port: u16, ip: IpAddr) -> Result<()> {
        let count = || lab.nodes.iter().map(Counts::of).collect::<Result<Vec<_>>>();
        let before = count()?;
        let answer = ask.once_by(self.client, port, SocketAddr::new(ip, PORT), PATIENCE);
        ensure!(answer.is_ok() == self.allowed, "{answer:?}, though it is allowed: {}", self.allowed);
        if ask != Ask::Icmp && self.allowed {
            ensure!(answer.as_deref().ok() == Some(&*self.server.name), "{answer:?} has answered");
        }
        let exact = || -> Result<()> {
            for ((node, before), after) in lab.nodes.iter().zip(&before).zip(count()?) {
                let since = after.since(before);
                since.exactly(&ASKED, &self.wanted(node.number)).with_context(|| node.name.clone())?;
                self.dropped(node, &since)?;
            }
            Ok(())
        };
        let shown = || exact().map_err(|error| format!("{error:#}"));
        eventually(Duration::from_secs(5), "the counters show this flow alone", shown)?;
        Ok(())
    }

    /// A denied flow of one packet is one drop where its ingress was asked.
    fn dropped(&self, node: &Node, since: &Counts) -> Result<()> {
        let wanted = u64::from(!self.allowed && self.ingress_at.0 == node.number);
        let seen = since.get("drop-policy-ingress")?;
        ensure!(
            seen == wanted,
            "{}: {seen} dropped by ingress policy, expected {wanted}; {since:?}",
            node.name
        );
        Ok(())
    }
}

fn slow(node: u8, name: &str) -> PodSpec {
    // Far more than what is sent: shaped, not slowed down.
    let rate = 1_000_000_000_u64;
    PodSpec::new(node, name)
        .annotation("kubernetes.io/ingress-bandwidth", "1G")
        .runtime_config(json!({"bandwidth": {"ingressRate": rate, "ingressBurst": rate}}))
}

#[test]
fn ingress_policy_is_asked_once_for_each_flow_on_every_way_to_a_pod() -> Result<()> {
    let lab = lab("deliver", 2)?;
    let [near, far, stranger] =
        [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?, lab.add_pod(1, "stranger")?];
    let away = lab.add_pod(2, "away")?;
    let [server, shaped] = [lab.add_pod(1, "server")?, lab.add_pod_of(&slow(1, "shaped"))?];
    let servers = [&server, &shaped]
        .map(|pod| Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for name in ["server", "shaped"] {
        apply(&lab, &network_policy(name, ingress_only(name, &["near", "far"])))?;
    }
    let host = &lab.node(1).namespace;
    let way = |name, client, server, egress_at, ingress_at, allowed| Way {
        name,
        client,
        server,
        egress_at,
        ingress_at,
        allowed,
    };
    let ways = [
        way("same node", &near.namespace, &server, Some(1), (1, "ingress-fast"), true),
        way("same node, denied", &stranger.namespace, &server, Some(1), (1, "ingress-fast"), false),
        way("tunnel", &far.namespace, &server, Some(2), (1, "ingress-tunnel"), true),
        way("tunnel, denied", &away.namespace, &server, Some(2), (1, "ingress-tunnel"), false),
        way("own host", host, &server, None, (1, "ingress-host"), true),
        way("same node, by the stack", &near.namespace, &shaped, Some(1), (1, "ingress-stack"), true),
        way(
            "same node, by the stack, denied",
            &stranger.namespace,
            &shaped,
            Some(1),
            (1, "ingress-stack"),
            false,
        ),
        way("tunnel, by the stack", &far.namespace, &shaped, Some(2), (1, "ingress-stack"), true),
        way("tunnel, by the stack, denied", &away.namespace, &shaped, Some(2), (1, "ingress-stack"), false),
        way("own host, by the stack", host, &shaped, None, (1, "ingress-host"), true),
    ];
    for way in &ways {
        settle(way.client, &way.server.ips, PORT, way.allowed).context(way.name)?;
    }
    let mut flows = 0;
    for way in &ways {
        for ip in &way.server.ips {
            for ask in Ask::ALL {
                flows += 1;
                way.take(&lab, ask, OWN_PORTS + flows, *ip)
                    .with_context(|| format!("{}: {ask:?} to {ip}", way.name))?;
            }
        }
    }
    drop(servers);
    println!("{flows} flows on {} ways: ingress policy asked once for each, where it was to be", ways.len());
    Ok(())
}

#[test]
fn packets_of_a_known_flow_take_the_fast_path_and_ask_nobody() -> Result<()> {
    let lab = lab("known", 2)?;
    let [client, near, far] = [lab.add_pod(1, "client")?, lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
    const ROUNDS: u64 = 50;
    for server in [&near, &far] {
        apply(&lab, &network_policy(&server.name, ingress_only(&server.name, &["client"])))?;
        let _namer = Namer::new(&server.namespace, &server.name, &server.ips, PORT)?;
        settle(&client.namespace, &server.ips, PORT, true)?;
        for ip in &server.ips {
            let at = SocketAddr::new(*ip, PORT);
            let socket = client.namespace.run(move || crate::support::ask::datagrams(at))?;
            crate::support::ask::exchange(&socket, b"first", PATIENCE)?;
            let counts = || Ok::<_, anyhow::Error>([Counts::of(lab.node(1))?, Counts::of(lab.node(2))?]);
            let ask = || -> Result<_> {
                let before = counts()?;
                for round in 0..ROUNDS {
                    let name =
                        crate::support::ask::exchange(&socket, format!("{round}").as_bytes(), PATIENCE)?;
                    ensure!(name == server.name, "{name} has answered");
                }
                Ok(before)
            };
            let mut before = ask()?;
            // Whoever's policy is written anew meanwhile is asked once more, as he must be; then it is counted again, a few times at most.
            for _ in 0..3 {
                let since = counts()?;
                if since
                    .iter()
                    .zip(&before)
                    .all(|(now, then)| now.since(then).exactly(&["rejudged"], &[]).is_ok())
                {
                    break;
                }
                before = ask()?;
            }
            let remote = server.node == 2;
            eventually(
                Duration::from_secs(5),
                "the counters show the exchanges",
                || -> Result<(), String> {
                    let since = |number: u8| -> Result<Counts> {
                        Ok(Counts::of(lab.node(number))?.since(&before[usize::from(number) - 1]))
                    };
                    let check = || -> Result<()> {
                        let (one, two) = (since(1)?, since(2)?);
                        one.exactly(&ASKED, &[])?;
                        two.exactly(&ASKED, &[])?;
                        let peers = if remote { ROUNDS } else { 2 * ROUNDS };
                        one.exactly(
                            &["to-peer", "to-tunnel", "to-stack"],
                            &[("to-peer", peers), ("to-tunnel", if remote { ROUNDS } else { 0 })],
                        )?;
                        let there = if remote { ROUNDS } else { 0 };
                        two.exactly(
                            &["to-peer", "to-tunnel", "to-stack"],
                            &[("to-peer", there), ("to-tunnel", there)],
                        )
                    };
                    check().map_err(|error| format!("{error:#}"))
                },
            )
            .with_context(|| format!("{} at {ip}", server.name))?;
        }
    }
    println!("{} packets of known flows: none by the stack, none asked about", 8 * ROUNDS);
    Ok(())
}
