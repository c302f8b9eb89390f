//! Controls of standards by name, what supports each, and what is not claimed. Titles are those of NIST SP 800-53 revision 5;
//! requirements of PCI DSS version 4 are shortened.

use std::collections::BTreeMap;

use mesh_core::evidence::Configured;
use mesh_core::psk::Mode;

use super::judge::verdict;
use super::pairs::Fault;
use super::report::{Control, Effect, Summary};

/// The one sentence that every report has.
pub const NOT_FIPS: &str = "WireGuard's algorithms (ChaCha20-Poly1305, Curve25519, BLAKE2s) are not FIPS-validated, and no validation is claimed: SC-13 is supported only where FIPS validation is not demanded.";

const NIST: &str = "NIST SP 800-53 rev. 5";
const PCI: &str = "PCI DSS v4";

/// Codes that concern each control.
const CARRIES: [&str; 12] = [
    "cni-unused",
    "cni-unknown",
    "data-path-incomplete",
    "not-settled",
    "guard-missing",
    "node-unannounced",
    "announcement-differs",
    "settings-differ",
    "counters-unread",
    "device-key-differs",
    "stranger",
    "joined-node-silent",
];
const KEYS: [&str; 5] =
    ["device-key-differs", "announcement-differs", "key-over-age", "key-age-unknown", "record-unread"];
const INVENTORY: [&str; 4] =
    ["device-key-differs", "announcement-differs", "key-age-unknown", "node-unannounced"];
const FLOWS: [&str; 11] = [
    "cni-unused",
    "cni-unknown",
    "policy-not-in-force",
    "data-path-incomplete",
    "data-path-off",
    "data-path-failed",
    "namespace-open",
    "namespace-audited",
    "namespaces-unread",
    "guard-missing",
    "settings-differ",
];
/// What is missing everywhere.
const NODES: [&str; 5] = ["nodes-unread", "no-node", "node-silent", "node-unsynced", "evidence-stale"];

const DEFAULT_DENY: &str = "default-deny is counted where a NetworkPolicy selects all pods of a namespace and has no rule; what other policies allow is for their owners to justify. ClusterNetworkPolicies are not looked at: they cannot deny what comes from outside the cluster, and an Accept of their admin tier comes before every NetworkPolicy";
const PREFERRED: &str =
    "post-quantum keys are preferred, not required: a pair talks without one until it is agreed";
const WHOSE_KEYS: &str = "the inventory is that of WireGuard's keys; those of applications and of the Kubernetes API are not in it";
const OPEN_NETWORK: &str = "whether the network between nodes is an open, public one is for the assessor to say; what pods send to the world is not covered";
const ALGORITHMS: &str = "ChaCha20-Poly1305, Curve25519 and BLAKE2s in WireGuard's sessions";
const SAFEGUARD: &str =
    "Strong cryptography and security protocols safeguard PAN during transmission over open, public networks";
const INVENTORY_OF_KEYS: &str =
    "An inventory of trusted keys and certificates used to protect PAN during transmission is maintained";

/// How many findings there are of each code, and what they do.
type Counts = BTreeMap<String, (Effect, u64)>;

/// A control before it is judged.
struct Draft<'a> {
    standard: &'a str,
    id: &'a str,
    title: &'a str,
    /// Codes of findings that concern it.
    codes: Vec<&'static str>,
    evidence: Vec<&'a str>,
    limits: Vec<String>,
}

impl Draft<'_> {
    fn judge(self, counts: &Counts) -> Control {
        let concerns = |code: &str| self.codes.contains(&code) || NODES.contains(&code);
        let concerned =
            counts.iter().filter(|(code, (effect, _))| *effect != Effect::Note && concerns(code.as_str()));
        Control {
            standard: self.standard.to_owned(),
            id: self.id.to_owned(),
            title: self.title.to_owned(),
            verdict: verdict(concerned.clone().map(|(_, (effect, _))| *effect)),
            evidence: self.evidence.iter().map(|text| (*text).to_owned()).collect(),
            open: concerned.map(|(code, (_, count))| (code.clone(), *count)).collect(),
            limits: self.limits,
        }
    }
}

/// All of them.
pub fn controls(summary: &Summary, counts: &Counts, settings: Option<&Configured>) -> Vec<Control> {
    let noted = |code: &str| counts.get(code).map_or(0, |(_, count)| *count);
    let Sentences { pairs, guards, keys, age, quantum, namespaces } = &sentences(summary, settings);
    let (scope, fips) = (scope(summary, noted), vec![NOT_FIPS.to_owned()]);
    let carried = [&Fault::ENCRYPTION[..], &CARRIES].concat();
    let draft =
        |standard, id, title, codes, evidence, limits| Draft { standard, id, title, codes, evidence, limits };
    let drafts = [
        draft(
            NIST,
            "SC-8",
            "Transmission Confidentiality and Integrity",
            carried.clone(),
            vec![pairs, guards],
            scope.clone(),
        ),
        draft(
            NIST,
            "SC-8(1)",
            "Cryptographic Protection",
            carried.clone(),
            vec![pairs, guards],
            [scope.clone(), fips.clone()].concat(),
        ),
        draft(
            NIST,
            "SC-12",
            "Cryptographic Key Establishment and Management",
            [&KEYS[..], &["pair-keys-differ", "pair-device-key", "pair-old-handshake"], &Fault::PSK].concat(),
            vec![keys, age, quantum],
            key_limits(summary, noted("rotation-on-demand"), settings),
        ),
        draft(
            NIST,
            "SC-13",
            "Cryptographic Protection",
            [&Fault::ENCRYPTION[..], &["device-key-differs", "joined-node-silent"]].concat(),
            vec![ALGORITHMS, pairs],
            fips.clone(),
        ),
        draft(
            NIST,
            "AC-4",
            "Information Flow Enforcement",
            FLOWS.to_vec(),
            vec![namespaces],
            flow_limits(summary),
        ),
        draft(
            PCI,
            "4.2.1",
            SAFEGUARD,
            [&carried[..], &KEYS].concat(),
            vec![pairs, age],
            [vec![OPEN_NETWORK.to_owned()], scope, fips].concat(),
        ),
        draft(
            PCI,
            "4.2.1.1",
            INVENTORY_OF_KEYS,
            [&INVENTORY[..], &["pair-keys-differ"]].concat(),
            vec![keys],
            vec![WHOSE_KEYS.to_owned()],
        ),
    ];
    drafts.into_iter().map(|draft| draft.judge(counts)).collect()
}

/// What the numbers say.
struct Sentences {
    pairs: String,
    guards: String,
    keys: String,
    age: String,
    quantum: String,
    namespaces: String,
}

fn sentences(s: &Summary, settings: Option<&Configured>) -> Sentences {
    let refused = s.refused_in_all();
    let period = settings.and_then(|settings| settings.rotation.period_seconds);
    Sentences {
        pairs: format!(
            "{} of {} pairs have a WireGuard session of which both sides say the same, {} more are idle",
            s.pairs_holding, s.pairs, s.pairs_idle
        ),
        guards: format!(
            "guards of {} of {} nodes: {refused} packets refused that would have crossed in clear",
            s.nodes_with_evidence, s.nodes
        ),
        keys: format!(
            "{} keys in force, each with epoch and public key; {} destroyed and recorded",
            s.keys, s.keys_destroyed
        ),
        age: match (s.oldest_key_made_at.map(date), period) {
            (Some(made), Some(period)) => format!(
                "the oldest key was made at {made}; the rotation period is {period} s, {} keys are older",
                s.keys_over_age
            ),
            (Some(made), None) => format!("the oldest key was made at {made}"),
            (None, _) => "no key's age is known".to_owned(),
        },
        quantum: format!(
            "{} of {} pairs use a post-quantum pre-shared key (ML-KEM-768) that both sides have seen at work",
            s.post_quantum_holding, s.pairs
        ),
        namespaces: format!(
            "{} of {} namespaces deny by default in both directions, {} are exempt by the operator",
            s.namespaces_denied, s.namespaces, s.namespaces_exempt
        ),
    }
}

/// Seconds since 1970, for people.
fn date(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map_or_else(|| format!("{seconds} seconds since 1970"), |at| at.to_string())
}

/// What is not shown of flows.
fn flow_limits(summary: &Summary) -> Vec<String> {
    let mut limits = vec![DEFAULT_DENY.to_owned()];
    if summary.namespaces_exempt > 0 {
        let exempt = summary.namespaces_exempt;
        limits.push(format!("{exempt} namespaces are exempt by the operator: nothing is shown for them"));
    }
    limits
}

/// What is not shown of keys.
fn key_limits(summary: &Summary, on_demand: u64, settings: Option<&Configured>) -> Vec<String> {
    let mut limits = Vec::new();
    if on_demand > 0 {
        limits.push(format!(
            "{on_demand} nodes have no rotation period: that keys are replaced in time is not shown for them"
        ));
    }
    if settings.is_some_and(|settings| settings.post_quantum == Mode::Prefer) {
        limits.push(PREFERRED.to_owned());
    }
    let joined = &summary.joined;
    if joined.pairs > 0 {
        limits.push(format!(
            "of {} pairs with nodes of joined clusters {} use a post-quantum pre-shared key, by what this side says",
            joined.pairs, joined.post_quantum_holding
        ));
    }
    limits
}

/// What SC-8 and its like do not cover here.
fn scope(summary: &Summary, noted: impl Fn(&str) -> u64) -> Vec<String> {
    let mut limits = vec!["between nodes of the cluster, for what has a pod at either end".to_owned()];
    let joined = &summary.joined;
    if joined.pairs > 0 {
        limits.push(format!(
            "of {} pairs with nodes of joined clusters this side alone was seen: {} have a WireGuard session by what it says, {} more are idle",
            joined.pairs, joined.holding, joined.idle
        ));
    }
    if noted("host-traffic-off") > 0 {
        limits.push(format!(
            "what nodes send each other themselves is not encrypted ({} nodes)",
            noted("host-traffic-off")
        ));
    }
    if noted("host-traffic-plain") > 0 {
        let nodes = noted("host-traffic-plain");
        limits.push(format!(
            "{nodes} nodes send some others their own traffic unencrypted, though hostTraffic is on"
        ));
    }
    if noted("exempt-host-ports") > 0 {
        limits.push("some TCP ports of nodes stay outside (hostTraffic.exemptTCPPorts)".to_owned());
    }
    if noted("exempt-prefixes") > 0 {
        limits.push(format!("{} nodes exempt prefixes (nonMasqueradeCIDRs)", noted("exempt-prefixes")));
    }
    if summary.world_flows > 0 {
        limits
            .push(format!("{} flows of pods to the world are not encrypted by Hawser", summary.world_flows));
    }
    limits
}
