//! ClusterNetworkPolicy, in combinations: tier, action, direction, peers and protocols, each time above another NetworkPolicy
//! and before or without a rule of less priority that denies all pods.

use serde_json::{Value, json};

use super::network::policy;
use crate::case::{Case, Step};

const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];

struct Peers {
    name: &'static str,
    /// Only in egress rules.
    egress: bool,
    /// `from`, or `to`.
    peers: &'static str,
    /// Pods, with `:v4` or `:v6` for one family alone, nodes and addresses.
    means: &'static str,
    /// A port's name goes with pods alone.
    pods: bool,
}

const PEERS: [Peers; 10] = [
    Peers {
        name: "a namespace",
        egress: false,
        peers: r#"[{"namespaces": {"matchLabels": {"ns": "y"}}}]"#,
        means: "y/a y/b y/c",
        pods: true,
    },
    Peers {
        name: "namespaces by expressions",
        egress: false,
        peers: r#"[{"namespaces": {"matchExpressions": [{"key": "team", "operator": "Exists"},
            {"key": "ns", "operator": "NotIn", "values": ["y"]}]}}]"#,
        means: "z/a z/b z/c",
        pods: true,
    },
    Peers {
        name: "pods by both selectors",
        egress: false,
        peers: r#"[{"pods": {"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"pod": "b"}}}}]"#,
        means: "y/b z/b",
        pods: true,
    },
    Peers {
        name: "a namespace or pods",
        egress: false,
        peers: r#"[{"namespaces": {"matchLabels": {"ns": "z"}}},
            {"pods": {"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchExpressions": [
                {"key": "pod", "operator": "In", "values": ["a", "c"]}]}}}]"#,
        means: "z/a z/b z/c y/a y/c",
        pods: true,
    },
    Peers {
        name: "a network of IPv4",
        egress: true,
        peers: r#"[{"networks": ["10.244.2.0/24"]}]"#,
        means: "y/b:v4 z/b:v4 x/b:v4",
        pods: false,
    },
    Peers {
        name: "networks of both families",
        egress: true,
        peers: r#"[{"networks": ["10.244.3.12/31", "fd00:10:244:3::/64"]}]"#,
        means: "y/c z/c x/c:v6",
        pods: false,
    },
    Peers {
        name: "networks of the world",
        egress: true,
        peers: r#"[{"networks": ["203.0.113.0/24", "2001:db8:1::/48"]}]"#,
        means: "203.0.113.7 2001:db8:1::7",
        pods: false,
    },
    Peers {
        name: "all nodes",
        egress: true,
        peers: r#"[{"nodes": {}}]"#,
        means: "192.0.2.1 192.0.2.2 2001:db8::3",
        pods: false,
    },
    Peers {
        name: "nodes or a namespace",
        egress: true,
        peers: r#"[{"nodes": {"matchLabels": {"zone": "a"}}}, {"namespaces": {"matchLabels": {"ns": "y"}}}]"#,
        means: "192.0.2.1 192.0.2.2 2001:db8::3 y/a y/b y/c",
        pods: false,
    },
    Peers {
        name: "a network or a namespace",
        egress: true,
        peers: r#"[{"networks": ["198.51.100.0/24"]}, {"namespaces": {"matchLabels": {"ns": "z"}}}]"#,
        means: "198.51.100.1 z/a z/b z/c",
        pods: false,
    },
];

struct Protocols {
    name: &'static str,
    /// Empty: absent.
    protocols: &'static str,
    open: &'static [(&'static str, &'static str)],
    shut: &'static [(&'static str, &'static str)],
    named: bool,
}

const PROTOCOLS: [Protocols; 6] = [
    Protocols {
        name: "everything",
        protocols: "",
        open: &[("abc", "TCP/80,UDP/80,SCTP/80,ICMP")],
        shut: &[],
        named: false,
    },
    Protocols {
        name: "TCP port 80",
        protocols: r#"[{"tcp": {"destinationPort": {"number": 80}}}]"#,
        open: &[("abc", "TCP/80")],
        shut: &[("abc", "TCP/81,UDP/80,SCTP/80,ICMP")],
        named: false,
    },
    Protocols {
        name: "UDP ports 80 to 81",
        protocols: r#"[{"udp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}]"#,
        open: &[("abc", "UDP/80,UDP/81")],
        shut: &[("abc", "UDP/79,UDP/82,TCP/80,ICMP")],
        named: false,
    },
    Protocols {
        name: "all of SCTP",
        protocols: r#"[{"sctp": {}}]"#,
        open: &[("abc", "SCTP/80,SCTP/9000")],
        shut: &[("abc", "TCP/80,UDP/80,ICMP")],
        named: false,
    },
    Protocols {
        name: "the port named web",
        protocols: r#"[{"destinationNamedPort": "web"}]"#,
        open: &[("a", "TCP/80"), ("b", "TCP/8080"), ("c", "UDP/80")],
        shut: &[("a", "UDP/80,TCP/8080"), ("b", "TCP/80,UDP/80"), ("c", "TCP/80,TCP/8080")],
        named: true,
    },
    Protocols {
        name: "TCP ports 80 to 81 or UDP port 53",
        protocols: r#"[{"tcp": {"destinationPort": {"range": {"start": 80, "end": 81}}}},
            {"udp": {"destinationPort": {"number": 53}}}]"#,
        open: &[("abc", "TCP/80,TCP/81,UDP/53")],
        shut: &[("abc", "TCP/82,UDP/80,SCTP/80,ICMP")],
        named: false,
    },
];

/// What NetworkPolicy says of pods of x: nothing, no to everybody, yes to everybody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beneath {
    Nothing,
    Isolated,
    Open,
}

impl Beneath {
    const ALL: [Self; 3] = [Self::Nothing, Self::Isolated, Self::Open];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no NetworkPolicy",
            Self::Isolated => "isolation",
            Self::Open => "a NetworkPolicy for everybody",
        }
    }
}

/// By hand, of a pod of x and somebody else. `first`: the first rule's action, if it matches; `second`: a rule that denies all pods
/// follows in the same tier.
fn decide(tier: &str, first: Option<&str>, second: bool, beneath: Beneath) -> bool {
    let of_tier = match first {
        Some("Accept") => Some(true),
        Some("Deny") => Some(false),
        Some(_) => None,
        None => second.then_some(false),
    };
    match (tier, beneath) {
        ("Admin", Beneath::Isolated) => of_tier.unwrap_or(false),
        ("Admin", _) => of_tier.unwrap_or(true),
        (_, Beneath::Isolated) => false,
        (_, Beneath::Open) => true,
        (_, Beneath::Nothing) => of_tier.unwrap_or(true),
    }
}

/// Whom else a pod asks in egress cases.
const BEYOND: [&str; 6] =
    ["192.0.2.1", "192.0.2.2", "2001:db8::3", "203.0.113.7", "198.51.100.1", "2001:db8:1::7"];

fn object(name: &str, tier: &str, priority: u32, direction: &str, rule: &Value) -> Value {
    json!({"kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": {
        "tier": tier, "priority": priority, "subject": {"namespaces": {"matchLabels": {"ns": "x"}}}, direction: [rule]}})
}

/// What surrounds the rule that a case is about.
struct Around<'a> {
    tier: &'a str,
    action: &'a str,
    ingress: bool,
    second: bool,
    beneath: Beneath,
}

fn lines(around: &Around<'_>, peers: &Peers, protocols: &Protocols) -> String {
    let Around { tier, action, ingress, second, beneath } = *around;
    let verdict = |first, pod: bool| {
        if decide(tier, first, second && pod, beneath) { "allow" } else { "deny" }
    };
    let line = |subject: &str, peer: &str, what: &str, verdict: &str| match ingress {
        true => format!("{peer} > {subject} {what} {verdict}\n"),
        false => format!("{subject} > {peer} {what} {verdict}\n"),
    };
    let mut lines = String::new();
    let means: Vec<&str> = peers.means.split_whitespace().collect();
    for subject in ["x/a", "x/b", "x/c"] {
        for peer in PODS.into_iter().filter(|peer| *peer != subject) {
            // The destination's ports count.
            let letter = if ingress { subject } else { peer }.rsplit('/').next().unwrap_or_default();
            let of_pod = |all: &'static [(&'static str, &'static str)]| {
                all.iter().filter(move |(pods, _)| pods.contains(letter)).map(|(_, what)| *what)
            };
            for family in ["v4", "v6"] {
                let end = format!("{peer}:{family}");
                let named = protocols.named && !peers.pods;
                // A port's name goes with no peer that is no pod, but with a namespace beside it.
                let by_name = !named || (peers.peers.contains("namespaces") && !means.contains(&&*end));
                let meant = by_name && (means.contains(&peer) || means.contains(&&*end));
                for what in of_pod(protocols.open) {
                    lines += &line(subject, &end, what, verdict(meant.then_some(action), true));
                }
                for what in of_pod(protocols.shut) {
                    lines += &line(subject, &end, what, verdict(None, true));
                }
            }
        }
        for end in BEYOND.into_iter().filter(|_| !ingress) {
            let meant = means.contains(&end) && !protocols.named;
            let (open, shut) = if protocols.named {
                (&[][..], &[("", "TCP/80")][..])
            } else {
                (protocols.open, protocols.shut)
            };
            for (_, what) in open {
                lines += &line(subject, end, what, verdict(meant.then_some(action), false));
            }
            for (_, what) in shut {
                lines += &line(subject, end, what, verdict(None, false));
            }
        }
    }
    lines
}

/// Tier, action, direction and peers in all combinations; the others in turn.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let (mut protocols, mut beneath) = (PROTOCOLS.iter().cycle(), Beneath::ALL.iter().cycle());
    let mut seconds = [true, false, true, true, false].into_iter().cycle();
    for tier in ["Admin", "Baseline"] {
        for peers in &PEERS {
            for ingress in [true, false].into_iter().filter(|ingress| !(*ingress && peers.egress)) {
                for action in ["Accept", "Deny", "Pass"] {
                    let (Some(protocols), Some(beneath), Some(second)) =
                        (protocols.next(), beneath.next(), seconds.next())
                    else {
                        continue;
                    };
                    let around = Around { tier, action, ingress, second, beneath: *beneath };
                    cases.push(case(&around, peers, protocols));
                }
                // The next one meets others.
                protocols.next();
                if tier == "Admin" {
                    beneath.next();
                }
            }
        }
    }
    cases
}

fn case(around: &Around<'_>, peers: &Peers, protocols: &Protocols) -> Case {
    let Around { tier, action, ingress, second, beneath } = *around;
    let (direction, peer_field, kind) =
        if ingress { ("ingress", "from", "Ingress") } else { ("egress", "to", "Egress") };
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let mut rule = json!({"action": action, peer_field: json(peers.peers)});
    if !protocols.protocols.is_empty() {
        rule["protocols"] = json(protocols.protocols);
    }
    let mut objects = vec![object("first", tier, 10, direction, &rule)];
    if second {
        let deny = json!({"action": "Deny", peer_field: [{"namespaces": {}}]});
        objects.push(object("a-later-one", tier, 20, direction, &deny));
    }
    let rules = match beneath {
        Beneath::Nothing => None,
        Beneath::Isolated => Some(json!([])),
        Beneath::Open => Some(json!([{}])),
    };
    if let Some(rules) = rules {
        let spec = json!({"podSelector": {}, "policyTypes": [kind], direction: rules});
        objects.push(policy("x", "beneath", &spec));
    }
    let before = if second { ", before a Deny of all pods" } else { "" };
    let name = format!(
        "{tier} {action} {direction} {peer_field} {}: {}{before}, with {}",
        peers.name,
        protocols.name,
        beneath.name()
    );
    let flows = lines(around, peers, protocols);
    let step = Step { objects, flows, ..Step::default() };
    Case { name, rows: Vec::new(), short: false, ask: None, steps: vec![step], by_address: false }
}
