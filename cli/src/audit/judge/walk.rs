//! All pairs: those of the cluster's own nodes, and those with nodes of joined clusters. A thousand nodes are half a million pairs, so
//! each is weighed where it lies, and written down only where it is shown.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::evidence::{NodeEvidence, PeerEvidence};
use mesh_core::name::NodeName;

use super::super::pairs::{self, Judged, SESSION_SECONDS};
use super::super::report::{Effect, JoinedPair, Pair, PairState, PostQuantum, Shown, Summary};
use super::{Announced, Collected, Findings, Inputs};

/// Pairs as the report has them.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Of own nodes.
    pub(super) pairs: Vec<Pair>,
    /// With nodes of joined clusters.
    pub(super) joined: Vec<JoinedPair>,
}

/// All pairs of nodes that take part: those that announce keys, and those whose agents answered. `shown`: which of them are written
/// down; none: none.
pub(super) fn of_pairs(
    inputs: &Inputs,
    shown: Option<Shown>,
    findings: &mut Findings,
    summary: &mut Summary,
) -> Written {
    let takes_part =
        |(_, node): &(&String, &Collected)| node.answer.is_ok() || node.announced == Announced::Valid;
    let nodes: Vec<(&String, &Collected)> = inputs.nodes.iter().filter(takes_part).collect();
    let wanted = |judged: &Judged| match shown {
        None => false,
        Some(Shown::All) => true,
        Some(Shown::Faulty) => !judged.is_sound(),
    };
    let mut written = Written::default();
    let dark = dark(inputs);
    for (peer, asking) in &dark {
        let text = format!(
            "node {peer} of a joined cluster answers none of the {asking} nodes here that speak to it: it is off, or cut off, and from here nobody can say which; look at it there, and delete its Node if it is gone"
        );
        findings.push(Effect::Missing, "joined-node-silent", text);
    }
    for (place, &(name, collected)) in nodes.iter().enumerate() {
        for &(other, of_other) in &nodes[place + 1..] {
            let both = collected.complete().zip(of_other.complete());
            let judged = both.map_or_else(Judged::unknown, |(a, b)| pairs::weigh(a, b));
            tally(&judged, findings, summary);
            if wanted(&judged) {
                written.pairs.push(match both {
                    Some((a, b)) => pairs::written(a, b, &judged),
                    None => half_heard((name, collected), (other, of_other)),
                });
            }
        }
        if let Ok(node) = &collected.answer {
            for (peer, said, judged) in joined(node) {
                let judged = if dark.contains_key(peer) { judged.of_silent() } else { judged };
                tally_joined(&judged, findings, summary);
                if wanted(&judged) {
                    written.joined.push(pairs::written_alone(node, peer, said, &judged));
                }
            }
        }
    }
    let mut idle = |number: u64, what: &str| {
        if number > 0 {
            let text = format!(
                "{number} pairs{what} have had no handshake for {SESSION_SECONDS} s or more: nobody talks there; the next packet makes one"
            );
            findings.push(Effect::Note, "pair-idle", text);
        }
    };
    idle(summary.pairs_idle, "");
    idle(summary.joined.idle, " with nodes of joined clusters");
    written
}

/// Nodes of joined clusters that a node has for peers, what it says of each, and what follows.
fn joined(node: &NodeEvidence) -> impl Iterator<Item = (&NodeName, &PeerEvidence, Judged)> {
    node.peers.iter().filter(|(peer, _)| peer.is_foreign()).map(move |(peer, said)| {
        let judged = if node.synced { pairs::weigh_alone(node, peer, said) } else { Judged::unknown() };
        (peer, said, judged)
    })
}

/// Nodes of joined clusters that answer nobody, and how many speak to them in vain.
fn dark(inputs: &Inputs) -> BTreeMap<NodeName, usize> {
    let (mut dark, mut heard) = (BTreeMap::<NodeName, usize>::new(), BTreeSet::new());
    for node in inputs.nodes.values().filter_map(|node| node.answer.as_deref().ok()) {
        for (peer, _, judged) in joined(node) {
            if judged.is_unanswered() {
                *dark.entry(peer.clone()).or_default() += 1;
            } else if judged.state == PairState::Holds {
                heard.insert(peer);
            }
        }
    }
    dark.retain(|peer, _| !heard.contains(peer));
    dark
}

/// A pair of which too little was heard, with what there is.
fn half_heard((a, of_a): (&str, &Collected), (b, of_b): (&str, &Collected)) -> Pair {
    let says = |by: &Collected, of: &str| {
        let of: NodeName = of.parse().ok()?;
        by.answer.as_ref().ok()?.peers.get(&of).cloned()
    };
    Pair {
        a: a.to_owned(),
        b: b.to_owned(),
        state: PairState::Unknown,
        slot: None,
        post_quantum: PostQuantum::Unknown,
        keys: Vec::new(),
        exempt: None,
        faults: Vec::new(),
        a_says: says(of_a, b),
        b_says: says(of_b, a),
    }
}

/// Nodes that are on their way from one state to another, and nodes of pairs of which the two sides do not agree, or that have a
/// fault: worth a second look, since the two were not asked in one moment.
pub fn disagreeing(inputs: &Inputs) -> BTreeSet<String> {
    let heard: Vec<&NodeEvidence> =
        inputs.nodes.values().filter_map(|node| node.answer.as_deref().ok()).collect();
    let keyless = |node: &NodeEvidence| node.slots.iter().any(|slot| slot.device_key != Some(slot.key));
    let moving = heard.iter().filter(|node| node.pending > 0 || !node.announced || keyless(node));
    let mut found: BTreeSet<String> = moving.map(|node| node.node.to_string()).collect();
    for (place, a) in heard.iter().enumerate() {
        for b in &heard[place + 1..] {
            if !pairs::weigh(a, b).faults.is_empty() {
                found.extend([a, b].map(|node| node.node.to_string()));
            }
        }
        if joined(a).any(|(_, _, judged)| !judged.faults.is_empty()) {
            found.insert(a.node.to_string());
        }
    }
    found
}

fn tally(judged: &Judged, findings: &mut Findings, summary: &mut Summary) {
    summary.pairs += 1;
    *match judged.state {
        PairState::Holds => &mut summary.pairs_holding,
        PairState::Idle => &mut summary.pairs_idle,
        PairState::Fails => &mut summary.pairs_failing,
        PairState::Unknown => &mut summary.pairs_unknown,
    } += 1;
    match judged.post_quantum {
        PostQuantum::Holds => summary.post_quantum_holding += 1,
        PostQuantum::Off => summary.post_quantum_off += 1,
        PostQuantum::Fails => summary.post_quantum_failing += 1,
        PostQuantum::Unknown => {}
    }
    blame(judged, findings);
}

fn tally_joined(judged: &Judged, findings: &mut Findings, summary: &mut Summary) {
    let joined = &mut summary.joined;
    joined.pairs += 1;
    *match judged.state {
        PairState::Holds => &mut joined.holding,
        PairState::Idle => &mut joined.idle,
        PairState::Fails => &mut joined.failing,
        PairState::Unknown => &mut joined.unknown,
    } += 1;
    match judged.post_quantum {
        PostQuantum::Holds => joined.post_quantum_holding += 1,
        PostQuantum::Off => joined.post_quantum_off += 1,
        PostQuantum::Fails => joined.post_quantum_failing += 1,
        PostQuantum::Unknown => {}
    }
    blame(judged, findings);
}

fn blame(judged: &Judged, findings: &mut Findings) {
    for fault in &judged.faults {
        findings.push(Effect::Against, fault.code(), fault.to_string());
    }
}
