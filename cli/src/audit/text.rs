//! The report for people: what holds, what does not, what is missing; then controls, nodes, pairs and namespaces.

use mesh_core::evidence::{DataPath, NodeEvidence};
use mesh_core::slot::Slot;
use serde_json::Value;

use super::judge::added;
use super::pairs::psk_words;
use super::report::{Effect, JoinedPair, Node, Pair, PairState, PostQuantum, Report, Summary};
use crate::output::{duration, engine, line, section, table};

/// Pairs that are listed though nothing is wrong with them; the document has all.
const PAIRS: usize = 60;

/// The whole text, without its seal.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let cluster = report
        .settings
        .as_ref()
        .map_or_else(String::new, |settings| format!(" of cluster {}", settings.cluster));
    line(&mut out, &format!("Audit{cluster} at {}, by {}", report.generated_at, report.generated_by));
    line(&mut out, &format!("Verdict: {}", report.verdict.words()));
    section(&mut out, "Summary", summary(&report.summary));
    for (title, effect) in
        [("Does not hold", Effect::Against), ("Evidence missing", Effect::Missing), ("To know", Effect::Note)]
    {
        let of_effect = report.findings.iter().filter(|finding| finding.effect == effect);
        let rows: Vec<Vec<String>> =
            of_effect.map(|finding| vec![finding.code.clone(), finding.text.clone()]).collect();
        section(
            &mut out,
            title,
            if rows.is_empty() { vec!["nothing".to_owned()] } else { table(&[], &rows) },
        );
    }
    section(&mut out, "Controls", controls(report));
    section(&mut out, "Modes", modes(report));
    section(&mut out, "Nodes", nodes(report));
    section(&mut out, "Pairs", pairs(report));
    if report.summary.joined.pairs > 0 {
        section(&mut out, "Pairs with nodes of joined clusters, by this side alone", joined_pairs(report));
    }
    section(&mut out, "Namespaces", namespaces(report));
    section(&mut out, "What this does not say", report.statements.clone());
    out
}

/// The seal.
pub fn seal(seal: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let signature = &seal["signature"];
    let signed = if signature.is_null() {
        "unsigned".to_owned()
    } else {
        format!("{} signature by key {}", text(&signature["algorithm"]), text(&signature["publicKey"]))
    };
    section(&mut out, "Seal", vec![format!("SHA-256 {}", text(&seal["sha256"])), signed]);
    out
}

fn summary(s: &Summary) -> Vec<String> {
    let refused = s.refused_in_all();
    let mut lines = vec![
        format!("nodes: {} of {} gave evidence", s.nodes_with_evidence, s.nodes),
        format!(
            "pairs: {} encrypted, {} idle, {} with faults, {} without evidence, of {}",
            s.pairs_holding, s.pairs_idle, s.pairs_failing, s.pairs_unknown, s.pairs
        ),
        format!(
            "post-quantum keys: {} pairs use one, {} should, {} by configuration none",
            s.post_quantum_holding, s.post_quantum_failing, s.post_quantum_off
        ),
        format!(
            "keys: {} in force, {} older than their period, {} destroyed",
            s.keys, s.keys_over_age, s.keys_destroyed
        ),
        format!("refused plaintext: {refused} packets"),
        format!(
            "namespaces: {} of {} deny by default, {} exempt",
            s.namespaces_denied, s.namespaces, s.namespaces_exempt
        ),
    ];
    let j = &s.joined;
    if j.pairs > 0 {
        lines.push(format!(
            "pairs with nodes of joined clusters, by this side alone: {} encrypted, {} idle, {} with faults, {} without evidence, of {}; post-quantum keys: {} use one, {} should, {} by configuration none",
            j.holding,
            j.idle,
            j.failing,
            j.unknown,
            j.pairs,
            j.post_quantum_holding,
            j.post_quantum_failing,
            j.post_quantum_off
        ));
    }
    lines
}

fn controls(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for control in &report.controls {
        lines.push(format!(
            "{} {} {}: {}",
            control.standard,
            control.id,
            control.title,
            control.verdict.words()
        ));
        lines.extend(control.evidence.iter().map(|text| format!("  evidence: {text}")));
        if !control.open.is_empty() {
            let open: Vec<String> =
                control.open.iter().map(|(code, count)| format!("{code} ({count})")).collect();
            lines.push(format!("  open: {}", open.join(", ")));
        }
        lines.extend(control.limits.iter().map(|text| format!("  limit: {text}")));
    }
    lines
}

fn modes(report: &Report) -> Vec<String> {
    let Some(settings) = &report.settings else {
        return vec![
            "not the same on all nodes, or not known: see above, and each node in the document".to_owned(),
        ];
    };
    let rotation = &settings.rotation;
    let period = rotation
        .period_seconds
        .map_or_else(|| "on demand alone".to_owned(), |period| format!("every {}", duration(period)));
    let prefixes = |list: &[ipnet::IpNet]| {
        let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    };
    let host_traffic = match (settings.host_traffic, settings.host_traffic_required) {
        (false, _) => "off",
        (true, false) => "on",
        (true, true) => "required",
    };
    vec![
        format!("the same on all {} nodes that gave evidence", report.summary.nodes_with_evidence),
        format!("postQuantum: {}", settings.post_quantum),
        format!(
            "rotation: {period}, a key goes after {} of silence or at a deadline of {}",
            duration(rotation.quiet_seconds),
            duration(rotation.deadline_seconds)
        ),
        format!("dataPath: {}", if settings.data_path { "enforce" } else { "off" }),
        format!("host traffic through the tunnel: {host_traffic}"),
        format!("podCIDRs: {}", prefixes(&settings.pod_cidrs)),
        format!("nonMasqueradeCIDRs: {}", prefixes(&settings.non_masquerade_cidrs)),
    ]
}

fn nodes(report: &Report) -> Vec<String> {
    let head = [
        "NODE",
        "AGENT",
        "WIREGUARD",
        "DATA PATH",
        "HAWSER0",
        "HAWSER1",
        "DESTROYED",
        "REFUSED",
        "WORLD FLOWS",
    ];
    let row = |node: &Node| match (&node.evidence, &node.missing) {
        (Some(evidence), _) => of_node(&node.name, evidence),
        (None, why) => {
            vec![node.name.clone(), format!("no evidence: {}", why.as_deref().unwrap_or("not asked"))]
        }
    };
    let (heard, silent): (Vec<&Node>, Vec<&Node>) =
        report.nodes.iter().partition(|node| node.evidence.is_some());
    let rows: Vec<Vec<String>> = heard.into_iter().map(row).collect();
    let mut lines = if rows.is_empty() { Vec::new() } else { table(&head, &rows) };
    lines.extend(silent.into_iter().map(|node| row(node).join("  ")));
    lines
}

fn of_node(name: &str, node: &NodeEvidence) -> Vec<String> {
    let key = |slot: Slot| {
        let own = &node.slots[slot.index()];
        let age = own
            .made_at
            .map_or_else(|| "age unknown".to_owned(), |made| duration(node.at.saturating_sub(made)));
        format!("epoch {}, {age}{}", own.epoch.0, if own.draining { ", draining" } else { "" })
    };
    let count = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    vec![
        name.to_owned(),
        node.agent_version.clone(),
        engine(node.wireguard).to_owned(),
        match node.guard.data_path {
            DataPath::Off => "off",
            DataPath::Failed { .. } => "failed",
            DataPath::Open => "enforced",
        }
        .to_owned(),
        key(Slot::Zero),
        key(Slot::One),
        count(node.destroyed.count),
        node.guard.refused.values().copied().fold(0, added).to_string(),
        count(node.exemptions.world_flows),
    ]
}

fn pairs(report: &Report) -> Vec<String> {
    let head =
        ["PAIR", "STATE", "SLOT", "EPOCHS", "KEY AGES", "HANDSHAKE", "PSK", "A RX/TX", "B RX/TX", "IN CLEAR"];
    let at = |name: &str| asked_at(report, name);
    let faulty = |pair: &&Pair| !pair.faults.is_empty() || pair.state == PairState::Unknown;
    let shown = report
        .pairs
        .iter()
        .filter(faulty)
        .chain(report.pairs.iter().filter(|pair| !faulty(pair)).take(PAIRS));
    let rows: Vec<Vec<String>> = shown.map(|pair| of_pair(pair, at(&pair.a), at(&pair.b))).collect();
    with_the_rest(&head, &rows, report.summary.pairs)
}

/// A table of pairs, and how many there are besides.
fn with_the_rest(head: &[&str], rows: &[Vec<String>], all: u64) -> Vec<String> {
    if rows.is_empty() {
        return vec![format!("none with a fault, of {all}")];
    }
    let mut lines = table(head, rows);
    let left = usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(rows.len());
    if left > 0 {
        lines.push(format!("and {left} more without a fault"));
    }
    lines
}

/// When a node was looked at.
fn asked_at(report: &Report, name: &str) -> Option<u64> {
    let node = report.nodes.iter().find(|node| node.name == name)?;
    node.evidence.as_ref().map(|evidence| evidence.at)
}

fn joined_pairs(report: &Report) -> Vec<String> {
    let head = ["PAIR", "STATE", "SLOT", "EPOCHS", "KEY AGE", "HANDSHAKE", "PSK", "RX/TX"];
    let faulty = |pair: &&JoinedPair| !pair.faults.is_empty() || pair.state == PairState::Unknown;
    let all = report.joined_pairs.iter();
    let shown = all.clone().filter(faulty).chain(all.filter(|pair| !faulty(pair)).take(PAIRS));
    let rows: Vec<Vec<String>> = shown.map(|pair| of_joined(pair, asked_at(report, &pair.node))).collect();
    with_the_rest(&head, &rows, report.summary.joined.pairs)
}

fn of_joined(pair: &JoinedPair, at: Option<u64>) -> Vec<String> {
    let none = || "-".to_owned();
    let said = pair.slot.map(|slot| &pair.says.slots[slot.index()]);
    let entry = said.and_then(|said| said.entry.as_ref());
    let handshake = entry.and_then(|entry| Some(at?.saturating_sub(entry.handshake_at?)));
    let psk = match (pair.post_quantum, said) {
        (PostQuantum::Holds, _) => "in use",
        (PostQuantum::Off, _) => "off",
        (PostQuantum::Fails, Some(said)) => psk_words(said.psk.state),
        (PostQuantum::Fails, None) => "fault",
        (PostQuantum::Unknown, _) => "-",
    };
    vec![
        format!("{} - {}", pair.node, pair.peer),
        state(pair.state).to_owned(),
        pair.slot.map_or_else(none, |slot| slot.to_string()),
        pair.key
            .as_ref()
            .zip(said)
            .map_or_else(none, |(key, said)| format!("{}/{}", key.epoch.0, said.epoch.0)),
        pair.key.as_ref().and_then(|key| key.age_seconds).map_or_else(none, duration),
        handshake.map_or_else(none, |age| format!("{} ago", duration(age))),
        psk.to_owned(),
        entry.map_or_else(none, |entry| format!("{}/{}", entry.received, entry.sent)),
    ]
}

const fn state(state: PairState) -> &'static str {
    match state {
        PairState::Holds => "encrypted",
        PairState::Idle => "idle",
        PairState::Fails => "fault",
        PairState::Unknown => "no evidence",
    }
}

fn of_pair(pair: &Pair, a_at: Option<u64>, b_at: Option<u64>) -> Vec<String> {
    let none = || "-".to_owned();
    // Where they do not agree on a slot, the faults say so.
    let slot = pair.slot;
    let of = |says: &Option<mesh_core::evidence::PeerEvidence>| {
        slot.and_then(|slot| says.as_ref().map(|says| says.slots[slot.index()].clone()))
    };
    let (a, b) = (of(&pair.a_says), of(&pair.b_says));
    // What `a` says of `b` has the epoch of `b`.
    let epochs = match (&a, &b) {
        (Some(a), Some(b)) => format!("{}/{}", b.epoch.0, a.epoch.0),
        _ => none(),
    };
    let ages: Vec<String> = pair.keys.iter().map(|key| key.age_seconds.map_or_else(none, duration)).collect();
    // One port after the other would push everything away; the document names them.
    let in_clear = match pair.exempt.as_deref() {
        None => none(),
        Some([]) => "nothing".to_owned(),
        Some([one]) => one.clone(),
        Some(ports) => format!("{} TCP ports of the nodes", ports.len()),
    };
    let age = |at: Option<u64>, slot: &Option<mesh_core::evidence::PeerSlot>| {
        let handshake = slot.as_ref()?.entry.as_ref()?.handshake_at?;
        Some(at?.saturating_sub(handshake))
    };
    let handshake = match (age(a_at, &a), age(b_at, &b)) {
        (Some(a), Some(b)) => format!("{} ago", duration(a.max(b))),
        (Some(_), None) | (None, Some(_)) => "one side alone".to_owned(),
        (None, None) => {
            if slot.is_some() {
                "never".to_owned()
            } else {
                none()
            }
        }
    };
    let psk = match (pair.post_quantum, &a) {
        (PostQuantum::Holds, Some(slot)) => {
            let age =
                slot.psk.recorded_at.zip(a_at).map(|(recorded, at)| duration(at.saturating_sub(recorded)));
            age.map_or_else(|| "in use".to_owned(), |age| format!("in use, {age}"))
        }
        (PostQuantum::Holds, None) => "in use".to_owned(),
        (PostQuantum::Off, _) => "off".to_owned(),
        (PostQuantum::Unknown, _) => none(),
        (PostQuantum::Fails, Some(slot)) => psk_words(slot.psk.state).to_owned(),
        (PostQuantum::Fails, None) => "fault".to_owned(),
    };
    let bytes = |slot: &Option<mesh_core::evidence::PeerSlot>| {
        let entry = slot.as_ref().and_then(|slot| slot.entry.as_ref());
        entry.map_or_else(none, |entry| format!("{}/{}", entry.received, entry.sent))
    };
    vec![
        format!("{} - {}", pair.a, pair.b),
        state(pair.state).to_owned(),
        slot.map_or_else(none, |slot| slot.to_string()),
        epochs,
        if ages.is_empty() { none() } else { ages.join("/") },
        handshake,
        psk,
        bytes(&a),
        bytes(&b),
        in_clear,
    ]
}

fn namespaces(report: &Report) -> Vec<String> {
    let Some(namespaces) = &report.namespaces else { return vec!["not read".to_owned()] };
    let word = |rule: &super::report::DefaultRule| {
        if rule.denies() {
            format!("denied by {}", rule.denied_by.join(", "))
        } else if rule.opened_by.is_empty() {
            "open".to_owned()
        } else {
            format!("opened by {}", rule.opened_by.join(", "))
        }
    };
    let rows: Vec<Vec<String>> = namespaces
        .iter()
        .map(|namespace| {
            let policy = match (namespace.audited, namespace.exempt) {
                (true, _) => "reported only",
                (false, true) => "exempt",
                (false, false) => "enforced",
            };
            vec![namespace.name.clone(), word(&namespace.ingress), word(&namespace.egress), policy.to_owned()]
        })
        .collect();
    table(&["NAMESPACE", "INGRESS", "EGRESS", "POLICY"], &rows)
}

#[cfg(test)]
mod tests;
