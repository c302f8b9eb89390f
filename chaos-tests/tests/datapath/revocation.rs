//! Denied means cut: from the API accepting a deny to the last packet of an established flow.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::{Lab, Pod};
use netlab::eventually;
use serde_json::{Value, json};

use crate::support::objects::{
    apply, cluster_policy, delete_cluster_policy, delete_policy, ingress_only, label_pod, network_policy,
    selector,
};
use crate::support::{Ask, Beat, Counts, Times};
use crate::{SOON, lab};

const ROUNDS: usize = 100;
/// Silence that is no pause between two beats of a busy machine.
const SILENCE: Duration = Duration::from_millis(200);
/// The promise for the 99th percentile in a lab of its own.
const PROMISE: Duration = Duration::from_millis(100);

/// A way to deny what was allowed, and to allow it again.
#[derive(Clone, Copy, Debug)]
enum Deny {
    /// A NetworkPolicy that isolates the server.
    Ingress,
    /// An administrator's Deny for what the clients send.
    Admin,
    /// A label that no rule of the server's policy asks for.
    Relabel,
}

impl Deny {
    const ALL: [Self; 3] = [Self::Ingress, Self::Admin, Self::Relabel];

    fn set(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Ingress => apply(lab, &network_policy("cut", ingress_only("server", &[]))),
            Self::Admin => apply(lab, &cluster_policy("cut", admin_deny())),
            Self::Relabel => self.relabel(lab, "no"),
        }
    }

    fn unset(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Ingress => delete_policy(lab, "cut"),
            Self::Admin => delete_cluster_policy(lab, "cut"),
            Self::Relabel => self.relabel(lab, "yes"),
        }
    }

    /// The base policy lets in whom this label allows; it is there in the rounds of this kind alone.
    fn relabel(self, lab: &Lab, value: &str) -> Result<()> {
        ["near", "far"].iter().try_for_each(|name| label_pod(lab, name, &json!({"friend": value})))
    }

    /// What must be there before a round of this kind.
    fn prepare(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Relabel => apply(lab, &network_policy("friends", friends())),
            Self::Ingress | Self::Admin => Ok(()),
        }
    }

    fn clear(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Relabel => delete_policy(lab, "friends"),
            Self::Ingress | Self::Admin => Ok(()),
        }
    }
}

fn friends() -> Value {
    let from = [json!({"podSelector": selector("friend", "yes")})];
    json!({"podSelector": selector("app", "server"), "policyTypes": ["Ingress"], "ingress": [{"from": from}]})
}

fn admin_deny() -> Value {
    json!({
        "tier": "Admin", "priority": 10,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": selector("role", "client")}},
        "egress": [{"action": "Deny", "to": [{"namespaces": {}}]}],
    })
}

/// Flows of both clients over everything; those that are cut for good (TCP) are made anew.
fn beats(clients: [&Pod; 2], server: &Pod, known: Vec<(String, Beat)>) -> Result<Vec<(String, Beat)>> {
    let mut beats: Vec<(String, Beat)> = known.into_iter().filter(|(_, beat)| beat.ask != Ask::Tcp).collect();
    for client in clients {
        let way = if client.node == server.node { "same node" } else { "tunnel" };
        for ip in &server.ips {
            for ask in Ask::ALL {
                let name = format!("{ask:?} {way} v{}", if ip.is_ipv4() { 4 } else { 6 });
                if beats.iter().all(|(other, _)| *other != name) {
                    let beat = Beat::start(ask, &client.namespace, &server.namespace, *ip)?;
                    beats.push((name, beat));
                }
            }
        }
    }
    Ok(beats)
}

/// Waits until every flow beats.
fn beating(beats: &[(String, Beat)]) -> Result<()> {
    let counts: Vec<u64> = beats.iter().map(|(_, beat)| beat.count()).collect();
    eventually(SOON, "every flow beats", || {
        let still = |((name, beat), before): (&(String, Beat), &u64)| {
            (beat.count() < before + 3).then(|| name.clone())
        };
        let silent: Vec<String> = beats.iter().zip(&counts).filter_map(still).collect();
        if silent.is_empty() { Ok(()) } else { Err(silent.join(", ")) }
    })?;
    Ok(())
}

/// Waits until no flow beats; how long after `since` the last packet of each arrived.
fn silent(beats: &[(String, Beat)], since: Instant) -> Result<Vec<Duration>> {
    eventually(SOON, "no flow beats", || {
        let now = Instant::now();
        let loud: Vec<&str> = beats
            .iter()
            .filter(|(_, beat)| beat.last().is_some_and(|last| now - last < SILENCE))
            .map(|(name, _)| name.as_str())
            .collect();
        if loud.is_empty() { Ok(()) } else { Err(loud.join(", ")) }
    })?;
    let after =
        |beat: &Beat| beat.last().map_or(Duration::ZERO, |last| last.saturating_duration_since(since));
    Ok(beats.iter().map(|(_, beat)| after(beat)).collect())
}

#[test]
fn established_flows_end_with_a_deny_and_the_time_it_took_is_printed() -> Result<()> {
    let lab = lab("revoke", 2)?;
    let client = |node, name: &str| {
        let spec = chaos_tests::pod::PodSpec::new(node, name);
        lab.add_pod_of(&spec.label("role", "client").label("friend", "yes"))
    };
    let [near, far] = [client(1, "near")?, client(2, "far")?];
    let server = lab.add_pod(1, "server")?;
    let before = [Counts::of(lab.node(1))?, Counts::of(lab.node(2))?];
    let mut times: BTreeMap<String, Times> = BTreeMap::new();
    let mut all = Times::default();
    let mut flows = Vec::new();
    for round in 0..ROUNDS {
        let deny = Deny::ALL[round % Deny::ALL.len()];
        deny.prepare(&lab)?;
        flows = beats([&near, &far], &server, flows).with_context(|| {
            let counts = lab.nodes.iter().map(Counts::of).collect::<Result<Vec<_>>>();
            format!("round {round}; {counts:?}")
        })?;
        beating(&flows).with_context(|| format!("before {deny:?}, round {round}"))?;
        // Earlier than the API's answer, so that nothing is flattered.
        let accepted = Instant::now();
        deny.set(&lab)?;
        let ends = silent(&flows, accepted).with_context(|| format!("{deny:?}, round {round}"))?;
        for ((name, _), end) in flows.iter().zip(ends) {
            times.entry(name.clone()).or_default().push(end);
            all.push(end);
        }
        deny.unset(&lab)?;
        deny.clear(&lab)?;
        // Datagrams and echoes of the same flows come through again.
        flows.retain(|(_, beat)| beat.ask != Ask::Tcp);
        beating(&flows).with_context(|| format!("after {deny:?}, round {round}"))?;
    }
    drop(flows);
    for (name, times) in &times {
        println!("{name}: {times}");
    }
    println!("from accepted to the last packet, {ROUNDS} rounds: {all}");
    let revoked = |number: usize| -> Result<u64> {
        Counts::of(&lab.nodes[number])?.since(&before[number]).get("revoked")
    };
    println!("revoked: {} on node 1, {} on node 2", revoked(0)?, revoked(1)?);
    ensure!(revoked(0)? > 0 && revoked(1)? > 0, "both nodes have cut flows");
    // Said, not asserted: how busy the machine is decides it.
    let held = if all.quantile(99) < PROMISE { "held" } else { "not held" };
    println!("p99 below {PROMISE:?}: {held}");
    Ok(())
}
