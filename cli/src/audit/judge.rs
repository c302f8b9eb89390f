//! From what was collected to the report: pure.

use std::collections::BTreeMap;

use mesh_core::evidence::{CniEvidence, Configured, DataPath, MAX_NUMBER, NodeEvidence, OtherNetwork};

use super::controls::controls;
use super::report::{Effect, FORMAT, Finding, Namespace, Node, Report, Shown, Summary, Verdict};

mod walk;

use walk::Written;
pub use walk::disagreeing;

/// Findings of one code that are written out; the rest is counted. Pairs with faults are in the report in any case.
const NAMED: usize = 50;

/// Problems of a node by which policy is not in force there as it is written.
pub(crate) const NOT_IN_FORCE: [&str; 4] =
    ["policy-not-applied", "policy-too-large", "services-not-applied", "pod-without-data-path"];

/// What the API says of a node's announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It was not asked.
    Unread,
    /// There is none.
    Missing,
    /// It cannot be read.
    Malformed(String),
    /// It is there.
    Valid,
}

/// What was collected of one node.
#[derive(Clone, Debug)]
pub struct Collected {
    /// What the API says.
    pub announced: Announced,
    /// What its agent says, or why it says nothing.
    pub answer: Result<Box<NodeEvidence>, String>,
    /// When that came, in seconds since 1970 by this machine's clock: in a large outage minutes before the last one is given up.
    pub heard_at: u64,
}

impl Collected {
    /// Its evidence, if its agent has read the list of Nodes: before, peers may be missing in it.
    fn complete(&self) -> Option<&NodeEvidence> {
        self.answer.as_deref().ok().filter(|evidence| evidence.synced)
    }
}

/// Everything that was collected.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// When, RFC 3339.
    pub generated_at: String,
    /// By which program.
    pub generated_by: String,
    /// The nodes that the API lists, and those whose agents answered.
    pub nodes: BTreeMap<String, Collected>,
    /// Why the API's list of Nodes is not known.
    pub nodes_unread: Option<String>,
    /// Answers that belong to no node, and why.
    pub strangers: Vec<String>,
    /// Why joined clusters are not connected, by their names, or why that is not known. Empty as well where nobody asks for it.
    pub clusters: Result<BTreeMap<String, String>, String>,
    /// Namespaces, or why they are not known.
    pub namespaces: Result<Vec<Namespace>, String>,
    /// Which pairs to show.
    pub shown: Shown,
}

/// What follows from what was collected, without any of it.
#[derive(Debug)]
pub struct Outcome {
    /// Numbers.
    pub summary: Summary,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What all nodes that answered have configured; none: they differ, or nobody answered.
    pub settings: Option<Configured>,
    counts: BTreeMap<String, (Effect, u64)>,
    written: Written,
}

/// Judges, and writes no pair down.
pub fn outcome(inputs: &Inputs) -> Outcome {
    weigh(inputs, None)
}

fn weigh(inputs: &Inputs, shown: Option<Shown>) -> Outcome {
    let mut findings = Findings::default();
    let mut summary = Summary::default();
    of_nodes(inputs, &mut findings, &mut summary);
    let settings = of_settings(inputs, &mut findings);
    let written = walk::of_pairs(inputs, shown, &mut findings, &mut summary);
    of_clusters(inputs, &mut findings);
    of_namespaces(inputs, &mut findings, &mut summary);
    let (counts, findings) = findings.finish();
    Outcome { summary, findings, settings, counts, written }
}

/// Judges, and writes the report.
pub fn judge(inputs: Inputs) -> Report {
    let Outcome { summary, findings, settings, counts, written } = weigh(&inputs, Some(inputs.shown));
    let controls = controls(&summary, &counts, settings.as_ref());
    let one_side = (summary.joined.pairs > 0).then_some(ONE_SIDE);
    let nodes = inputs.nodes.into_iter().map(|(name, collected)| match collected.answer {
        Ok(mut evidence) => {
            evidence.peers.clear();
            Node { name, evidence: Some(evidence), missing: None }
        }
        Err(why) => Node { name, evidence: None, missing: Some(why) },
    });
    Report {
        format: FORMAT.to_owned(),
        generated_at: inputs.generated_at,
        generated_by: inputs.generated_by,
        verdict: verdict(findings.iter().map(|finding| finding.effect)),
        summary,
        controls,
        findings,
        statements: STATEMENTS.into_iter().chain(one_side).map(str::to_owned).collect(),
        settings,
        namespaces: inputs.namespaces.ok(),
        nodes: nodes.collect(),
        pairs_shown: inputs.shown,
        pairs: written.pairs,
        joined_pairs: written.joined,
    }
}

/// What no number says.
pub const STATEMENTS: [&str; 6] = [
    super::controls::NOT_FIPS,
    "The evidence is what the nodes' agents, kernels and the Kubernetes API said when they were asked; it is not continuous, and a node that is not honest is not found by it.",
    "Between nodes, what has a pod at either end is sent through WireGuard or refused. What an unreachable route refuses is not counted; what the guards refuse is.",
    "Between pods of one node nothing is encrypted: it does not leave the node.",
    "What pods exchange with the world is not encrypted by Hawser; its flows are counted. What goes to nonMasqueradeCIDRs leaves in clear by configuration.",
    "The pre-shared keys of pairs come from ML-KEM-768 (FIPS 203) in an implementation that is not FIPS-validated either.",
];

/// The same where clusters are joined.
pub const ONE_SIDE: &str = "Of a pair with a node of a joined cluster this side alone was asked; what the other one has, an audit of that cluster says. Its nodes that are no peers of ours are not counted.";

/// What follows from effects.
pub fn verdict(effects: impl Iterator<Item = Effect>) -> Verdict {
    effects.fold(Verdict::Holds, |so_far, effect| match effect {
        Effect::Note => so_far,
        Effect::Missing => so_far.max(Verdict::Incomplete),
        Effect::Against => Verdict::DoesNotHold,
    })
}

/// Findings by effect and code: the first [`NAMED`] of each, and how many there are.
#[derive(Debug, Default)]
struct Findings(BTreeMap<(Effect, String), (Vec<String>, usize)>);

impl Findings {
    fn push(&mut self, effect: Effect, code: &str, text: String) {
        let (texts, number) = self.0.entry((effect, code.to_owned())).or_default();
        *number += 1;
        if texts.len() < NAMED {
            texts.push(text);
        }
    }

    /// How many there are of each code, and those that are written out.
    fn finish(self) -> (BTreeMap<String, (Effect, u64)>, Vec<Finding>) {
        let (mut counts, mut all) = (BTreeMap::new(), Vec::new());
        for ((effect, code), (texts, number)) in self.0 {
            counts.insert(code.clone(), (effect, count(number)));
            let more = number - texts.len();
            all.extend(texts.into_iter().map(|text| Finding { effect, code: code.clone(), text }));
            if more > 0 {
                all.push(Finding { effect, code: code.clone(), text: format!("and {more} more") });
            }
        }
        (counts, all)
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// What a node's evidence says of itself.
fn of_nodes(inputs: &Inputs, findings: &mut Findings, summary: &mut Summary) {
    if let Some(why) = &inputs.nodes_unread {
        let text = format!("the list of Nodes was not read: {why}; whether every node is below is not known");
        findings.push(Effect::Missing, "nodes-unread", text);
    }
    if inputs.nodes.is_empty() {
        findings.push(Effect::Missing, "no-node", "there is no node to ask".to_owned());
    }
    for why in &inputs.strangers {
        findings.push(Effect::Missing, "stranger", why.clone());
    }
    for (name, collected) in &inputs.nodes {
        summary.nodes += 1;
        match &collected.announced {
            Announced::Valid | Announced::Unread => {}
            Announced::Missing => findings.push(
                Effect::Against,
                "node-unannounced",
                format!("node {name}: announces no keys (hawser.dev/wireguard): no pod reaches it through the tunnel; is mesh-agent running there?"),
            ),
            Announced::Malformed(why) => findings.push(
                Effect::Against,
                "node-unannounced",
                format!("node {name}: annotation hawser.dev/wireguard: {why}; restart its agent, which writes it anew"),
            ),
        }
        match &collected.answer {
            Err(why) => findings.push(Effect::Missing, "node-silent", format!("node {name}: {why}")),
            Ok(evidence) => {
                summary.nodes_with_evidence += 1;
                of_node(name, evidence, collected.heard_at, findings, summary);
            }
        }
    }
    let refused = summary.refused_in_all();
    if refused > 0 {
        let text =
            format!("{refused} packets were refused since they would have crossed between nodes in clear");
        findings.push(Effect::Note, "plaintext-refused", text);
    }
    if summary.world_flows > 0 {
        let text = format!(
            "{} flows of pods to the world were masqueraded; Hawser does not encrypt them",
            summary.world_flows
        );
        findings.push(Effect::Note, "world-traffic", text);
    }
}

/// A sum that still has a canonical form, whatever was added.
pub(super) fn added(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(MAX_NUMBER)
}

/// Evidence may be so far from the moment in which it came, in seconds: that of an agent which cannot look at its kernel any more is
/// of an earlier one. So far may clocks be apart, too.
const STALE_SECONDS: u64 = 120;

/// How far the making of a key may lie ahead, in seconds: clocks are set by a little all the time.
const AHEAD: u64 = 300;

/// How many of its own pauses, and seconds besides, an installer may be silent: it waits for its agent in between.
const INSTALLER: (u64, u64) = (6, 120);

/// Whether runtimes connect new pods by our plugin, as its installer says.
fn plugin(told: Option<&CniEvidence>, now: u64) -> Vec<(Effect, &'static str, String)> {
    use Effect::{Against, Missing, Note};
    let Some(told) = told else {
        let text = "whether runtimes connect pods by Hawser is not known: the installer of its CNI plugin (container cni-installer) has not said; it is of an older release, or does not run";
        return vec![(Missing, "cni-unknown", text.to_owned())];
    };
    let mut found = Vec::new();
    let silent = now.saturating_sub(told.at);
    let (pauses, besides) = INSTALLER;
    if told.every_seconds.is_some_and(|every| silent > every.saturating_mul(pauses).saturating_add(besides)) {
        let text = format!(
            "the installer of its CNI plugin (container cni-installer) has not looked for {silent} s; does it run?"
        );
        found.push((Missing, "cni-stale", text));
    }
    if let Some(why) = &told.trouble {
        found.push((
            Against,
            "cni-not-installed",
            format!("the configuration of its CNI plugin is not in place: {why}"),
        ));
    }
    for OtherNetwork { file, network, first } in &told.others {
        let ours = &told.conf_name;
        found.push(if *first {
            let text = format!(
                "runtimes use {file} ({network}) and not Hawser, since it sorts before {ours} in their CNI directory: new pods are in another network, without Hawser's encryption and policy"
            );
            (Against, "cni-unused", text)
        } else {
            let text = format!(
                "{file} ({network}) lies behind {ours} in the CNI directory: runtimes do not use it while Hawser's is there"
            );
            (Note, "cni-other", text)
        });
    }
    found
}

fn of_node(name: &str, node: &NodeEvidence, now: u64, findings: &mut Findings, summary: &mut Summary) {
    use Effect::{Against, Missing, Note};
    let mut push = |effect, code, text: String| findings.push(effect, code, format!("node {name}: {text}"));
    let apart = now.abs_diff(node.at);
    if apart > STALE_SECONDS {
        push(
            Missing,
            "evidence-stale",
            format!(
                "when it came, its evidence was of a moment {apart} s away from this machine's time; either its agent cannot look at its kernel (see its log), or one of the two clocks is wrong"
            ),
        );
    }
    if node.pending > 0 {
        push(
            Missing,
            "not-settled",
            format!(
                "{} changes of devices, routes or rules were still due when it was asked; ask again, and see the log of its agent if it stays so",
                node.pending
            ),
        );
    }
    if !node.synced {
        push(Missing, "node-unsynced", "its agent has not read the list of Nodes yet; ask again".to_owned());
    }
    if !node.announced {
        push(Against, "announcement-differs", "the API does not show what its agent announces; somebody overwrites hawser.dev/wireguard, or the agent cannot write it".to_owned());
    }
    if !node.guard.firewall {
        push(
            Against,
            "guard-missing",
            "its nf_tables guard (table inet hawser) is not as wanted; see the log of its agent".to_owned(),
        );
    }
    match &node.guard.data_path {
        DataPath::Open => {}
        DataPath::Off if node.settings.data_path => {
            push(Against, "data-path-failed", "its data path is not there".to_owned());
        }
        DataPath::Off => {
            push(
                Against,
                "data-path-off",
                "no policy is enforced: dataPath is off in its configuration".to_owned(),
            );
        }
        DataPath::Failed { reason } => {
            push(Against, "data-path-failed", format!("no policy is enforced: {reason}"))
        }
    }
    for why in &node.guard.unread {
        push(Missing, "counters-unread", why.clone());
    }
    for (effect, code, text) in plugin(node.host.as_ref().and_then(|host| host.cni.as_ref()), now) {
        push(effect, code, text);
    }
    let period = node.settings.rotation.period_seconds;
    for slot in &node.slots {
        summary.keys += 1;
        if slot.device_key != Some(slot.key) {
            push(
                Against,
                "device-key-differs",
                format!("{} does not use the key with epoch {}", slot.device, slot.epoch.0),
            );
        }
        let Some(made) = slot.made_at else {
            push(
                Missing,
                "key-age-unknown",
                format!("when the key of {} was made is not known", slot.device),
            );
            continue;
        };
        if made > now.saturating_add(AHEAD) {
            let (device, ahead) = (&slot.device, made - now);
            push(
                Missing,
                "key-age-unknown",
                format!(
                    "the key of {device} seems to be made {ahead} s from now: the node's clock was ahead then, or is behind now"
                ),
            );
        }
        summary.oldest_key_made_at = Some(summary.oldest_key_made_at.map_or(made, |oldest| oldest.min(made)));
        let age = now.saturating_sub(made);
        if let Some(period) = period.filter(|period| age > *period) {
            summary.keys_over_age += 1;
            let (device, epoch) = (&slot.device, slot.epoch.0);
            push(
                Against,
                "key-over-age",
                format!(
                    "the key of {device} with epoch {epoch} is {age} s old, its rotation period is {period} s; see its Events (RotationOverdue), or run hawser keys rotate {name}"
                ),
            );
        }
    }
    if period.is_none() {
        push(
            Note,
            "rotation-on-demand",
            "keys are replaced on demand alone (rotation.periodSeconds is 0)".to_owned(),
        );
    }
    if node.settings.post_quantum == mesh_core::psk::Mode::Off {
        push(
            Note,
            "post-quantum-off",
            "it agrees on no post-quantum pre-shared keys (postQuantum.mode is off)".to_owned(),
        );
    }
    if !node.settings.host_traffic {
        push(
            Note,
            "host-traffic-off",
            "what it sends to other nodes itself, without a pod at either end, is not encrypted by Hawser"
                .to_owned(),
        );
    }
    if node.settings.host_traffic {
        let plain = node.peers.iter().filter(|(_, peer)| !peer.host_path.closed());
        let plain: Vec<&str> = plain.map(|(name, _)| name.as_str()).collect();
        if !plain.is_empty() {
            let text = format!(
                "what it sends itself to {} is not encrypted by Hawser, though hostTraffic is on: it is off there, or no handshake was seen",
                plain.join(", ")
            );
            push(Note, "host-traffic-plain", text);
        }
        let ports: Vec<String> = node.exemptions.host_tcp_ports.iter().map(u16::to_string).collect();
        let text = format!(
            "TCP ports {} of nodes stay outside the tunnel (hostTraffic.exemptTCPPorts, apiServers)",
            ports.join(", ")
        );
        push(Note, "exempt-host-ports", text);
    }
    if !node.exemptions.prefixes.is_empty() {
        let prefixes: Vec<String> = node.exemptions.prefixes.iter().map(ToString::to_string).collect();
        let text = format!(
            "pods talk in clear to {} (nonMasqueradeCIDRs, less pods and nodes)",
            prefixes.join(", ")
        );
        push(Note, "exempt-prefixes", text);
    }
    match (&node.destroyed.unread, &node.destroyed.last) {
        (Some(why), _) => push(Missing, "record-unread", format!("its record of destroyed keys: {why}")),
        (None, Some(last)) if last.overdue => {
            let text = format!(
                "the key of {} with epoch {} was replaced at the deadline, though not everybody had left it",
                last.device, last.epoch.0
            );
            push(Note, "key-destroyed-overdue", text);
        }
        (None, _) => {}
    }
    for problem in &node.problems {
        let text = format!("{}: {}", problem.code, problem.text);
        match problem.code.as_str() {
            code if NOT_IN_FORCE.contains(&code) => push(Against, "policy-not-in-force", text),
            "uplink-without-data-path" | "slot-without-data-path" | "data-path-links" => {
                push(Against, "data-path-incomplete", text);
            }
            _ => push(Note, "problem", text),
        }
    }
    summary.keys_destroyed = added(summary.keys_destroyed, node.destroyed.count.unwrap_or(0));
    for (reason, packets) in &node.guard.refused {
        let sum = summary.refused.entry(reason.clone()).or_insert(0);
        *sum = added(*sum, *packets);
    }
    summary.world_flows = added(summary.world_flows, node.exemptions.world_flows.unwrap_or(0));
}

/// Do all nodes have the same configuration? Then it is returned.
fn of_settings(inputs: &Inputs, findings: &mut Findings) -> Option<Configured> {
    let all: Vec<(&String, &Configured)> = inputs
        .nodes
        .iter()
        .filter_map(|(name, node)| Some((name, &node.answer.as_ref().ok()?.settings)))
        .collect();
    let (first, rest) = all.split_first()?;
    let mut same = true;
    // What most nodes have would be a guess at what is meant: the first one is only what others are compared with.
    for (name, other) in rest {
        for field in differing(first.1, other) {
            same = false;
            let text = format!(
                "node {name}: its {field} differs from that of node {}; give all agents one configuration",
                first.0
            );
            findings.push(Effect::Against, "settings-differ", text);
        }
    }
    same.then(|| first.1.clone())
}

/// Fields in which two configurations differ.
fn differing(a: &Configured, b: &Configured) -> Vec<&'static str> {
    let Configured {
        cluster,
        pod_cidrs,
        non_masquerade_cidrs,
        post_quantum,
        rotation,
        data_path,
        host_traffic,
        host_traffic_required,
    } = a;
    let fields = [
        ("clusterName", *cluster != b.cluster),
        ("podCIDRs", *pod_cidrs != b.pod_cidrs),
        ("nonMasqueradeCIDRs", *non_masquerade_cidrs != b.non_masquerade_cidrs),
        ("postQuantum", *post_quantum != b.post_quantum),
        ("rotation", *rotation != b.rotation),
        ("dataPath", *data_path != b.data_path),
        (
            "host traffic",
            (*host_traffic, *host_traffic_required) != (b.host_traffic, b.host_traffic_required),
        ),
    ];
    fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Joined clusters that are not connected: what agents know of their nodes is of an earlier time, or nothing.
fn of_clusters(inputs: &Inputs, findings: &mut Findings) {
    match &inputs.clusters {
        Ok(apart) => {
            for (name, why) in apart {
                let text =
                    format!("joined cluster {name}: {why}; what agents know of its nodes is of before");
                findings.push(Effect::Missing, "cluster-not-connected", text);
            }
        }
        Err(why) => {
            let text = format!("whether joined clusters are connected is not known: {why}");
            findings.push(Effect::Missing, "clusters-unread", text);
        }
    }
}

fn of_namespaces(inputs: &Inputs, findings: &mut Findings, summary: &mut Summary) {
    let namespaces = match &inputs.namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => {
            let text = format!("namespaces and their NetworkPolicies were not read: {why}");
            findings.push(Effect::Missing, "namespaces-unread", text);
            return;
        }
    };
    for namespace in namespaces {
        summary.namespaces += 1;
        let name = &namespace.name;
        let denied = namespace.ingress.denies() && namespace.egress.denies() && !namespace.audited;
        if denied {
            summary.namespaces_denied += 1;
        }
        if namespace.exempt {
            summary.namespaces_exempt += 1;
            let text = format!("namespace {name}: exempt from default-deny by --exempt-namespace");
            findings.push(Effect::Note, "namespace-exempt", text);
            continue;
        }
        if namespace.audited {
            let text = format!(
                "namespace {name}: hawser.dev/policy=audit: what policy denies passes and is reported only; remove the annotation"
            );
            findings.push(Effect::Against, "namespace-audited", text);
        }
        for (direction, rule) in [("ingress", &namespace.ingress), ("egress", &namespace.egress)] {
            if rule.denied_by.is_empty() {
                let text = format!(
                    "namespace {name}: {direction} is not denied by default; add a NetworkPolicy that selects all pods and has no {direction} rule"
                );
                findings.push(Effect::Against, "namespace-open", text);
            } else if !rule.opened_by.is_empty() {
                let opened = rule.opened_by.join(", ");
                let text = format!(
                    "namespace {name}: {direction} is denied by default by {}, and opened for everything by {opened}; narrow or remove it",
                    rule.denied_by.join(", ")
                );
                findings.push(Effect::Against, "namespace-open", text);
            }
        }
    }
}

#[cfg(test)]
mod tests;
