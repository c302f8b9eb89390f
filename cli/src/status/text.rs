//! The status for people.

use mesh_core::evidence::{DataPath, PoolEvidence};

use super::{Agent, Node, Peers, Slot, Status};
use crate::audit::report::Finding;
use crate::output::{Verdict, duration, engine, line, section, table};

/// The whole text.
pub(super) fn render(status: &Status) -> String {
    let mut out = String::new();
    let heard = status.nodes.iter().filter(|node| node.agent.is_some()).count();
    let cluster =
        status.settings.as_ref().map_or_else(|| "The mesh".to_owned(), |s| format!("Cluster {}", s.cluster));
    let verdict = match status.verdict {
        Verdict::Holds => "all is well",
        Verdict::Incomplete => "not everything is known",
        Verdict::DoesNotHold => "something is wrong",
    };
    line(&mut out, &format!("{cluster}: {heard} of {} agents answered; {verdict}", status.nodes.len()));
    if let Some(settings) = &status.settings {
        let host_traffic = match (settings.host_traffic, settings.host_traffic_required) {
            (false, _) => "off",
            (true, false) => "on",
            (true, true) => "require",
        };
        line(&mut out, &format!("postQuantum: {}, hostTraffic: {host_traffic}", settings.post_quantum));
    }
    section(&mut out, "Nodes", nodes(&status.nodes));
    for (title, findings) in [("Problems", &status.problems), ("Not known", &status.missing)] {
        if !findings.is_empty() {
            section(&mut out, title, table(&[], &rows(findings)));
        }
    }
    out
}

fn rows(findings: &[Finding]) -> Vec<Vec<String>> {
    findings.iter().map(|finding| vec![finding.code.clone(), finding.text.clone()]).collect()
}

fn nodes(nodes: &[Node]) -> Vec<String> {
    let head = [
        "NODE",
        "READY",
        "KUBELET",
        "AGENT",
        "WIREGUARD",
        "DATA PATH",
        "HAWSER0",
        "HAWSER1",
        "PEERS",
        "OLDEST HANDSHAKE",
        "PODS",
    ];
    let row = |node: &Node| {
        let ready = match node.ready {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        let known =
            [node.name.clone(), ready.to_owned(), node.kubelet.clone().unwrap_or_else(|| "-".to_owned())];
        let agent = node.agent.as_ref().map_or_else(|| vec!["silent".to_owned()], of_agent);
        known.into_iter().chain(agent).collect()
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&head, &rows)
}

fn of_agent(agent: &Agent) -> Vec<String> {
    let slot = |number: usize| agent.slots.get(number).map_or_else(String::new, of_slot);
    let data_path = match (&agent.data_path, agent.obstacles.is_empty()) {
        (DataPath::Failed { .. }, _) => "failed",
        (_, false) => "not ready",
        (DataPath::Off, true) => "off",
        (DataPath::Open, true) => "enforced",
    };
    let oldest = agent.peers.oldest_handshake_seconds;
    vec![
        agent.version.clone(),
        engine(agent.wireguard).to_owned(),
        data_path.to_owned(),
        slot(0),
        slot(1),
        of_peers(agent.peers),
        oldest.map_or_else(|| "-".to_owned(), |age| format!("{} ago", duration(age))),
        of_pools(&agent.pools),
    ]
}

fn of_slot(slot: &Slot) -> String {
    let age = slot.age_seconds.map_or_else(|| "age unknown".to_owned(), duration);
    format!("epoch {}, {age}{}", slot.epoch, if slot.draining { ", draining" } else { "" })
}

fn of_peers(peers: Peers) -> String {
    let Peers { known, talking, idle, silent, .. } = peers;
    let mut text = format!("{talking}/{known}");
    for (count, word) in [(idle, "idle"), (silent, "silent")] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    text
}

/// The pool that is nearest to its end.
fn of_pools(pools: &[PoolEvidence]) -> String {
    let fullest = pools.iter().min_by_key(|pool| pool.capacity.saturating_sub(pool.used + pool.resting));
    fullest.map_or_else(|| "-".to_owned(), |pool| format!("{} of {}", pool.used, pool.capacity))
}
