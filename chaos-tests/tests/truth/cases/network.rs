//! NetworkPolicy, in combinations: each part of a policy is here once, with what it means by hand, and each case is made of a
//! few of them.

use serde_json::{Value, json};

use crate::case::{Case, Step};

/// All pods, and those of each namespace.
const ALL: &str = "x/a x/b x/c y/a y/b y/c z/a z/b z/c";
const X: &str = "x/a x/b x/c";
const Y: &str = "y/a y/b y/c";
const BLUE: &str = "y/a y/b y/c z/a z/b z/c";

/// Peers of a rule in namespace x.
pub(super) struct Peers {
    name: &'static str,
    rows: &'static [u32],
    /// `from`, or `to`; empty: absent.
    peers: &'static str,
    /// Whom it means, with `:v4` or `:v6` for one family alone.
    means: &'static str,
}

const PEERS: [Peers; 28] = [
    Peers { name: "everybody, who is not named", rows: &[7], peers: "", means: ALL },
    Peers { name: "everybody, by an empty list", rows: &[7], peers: "[]", means: ALL },
    Peers { name: "pods of the own namespace", rows: &[10, 14], peers: r#"[{"podSelector": {}}]"#, means: X },
    Peers {
        name: "b of the own namespace",
        rows: &[10],
        peers: r#"[{"podSelector": {"matchLabels": {"pod": "b"}}}]"#,
        means: "x/b",
    },
    Peers {
        name: "a namespace by its label",
        rows: &[11, 16],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]"#,
        means: Y,
    },
    Peers {
        name: "two namespaces by their label",
        rows: &[11, 16],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]"#,
        means: BLUE,
    },
    Peers { name: "all namespaces", rows: &[14, 16], peers: r#"[{"namespaceSelector": {}}]"#, means: ALL },
    Peers {
        name: "all pods of a namespace, by both selectors",
        rows: &[12, 14],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"ns": "z"}}, "podSelector": {}}]"#,
        means: "z/a z/b z/c",
    },
    Peers {
        name: "b of two namespaces, by both selectors of one peer",
        rows: &[12],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]"#,
        means: "y/b z/b",
    },
    Peers {
        name: "b or two namespaces, by two peers",
        rows: &[13],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"team": "blue"}}}, {"podSelector": {"matchLabels": {"pod": "b"}}}]"#,
        means: "x/b y/a y/b y/c z/a z/b z/c",
    },
    Peers {
        name: "a namespace by the name that all bear",
        rows: &[17],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "z"}}}]"#,
        means: "z/a z/b z/c",
    },
    Peers {
        name: "all namespaces but one, by the name that all bear",
        rows: &[15, 17],
        peers: r#"[{"namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["y"]}]}}]"#,
        means: "x/a x/b x/c z/a z/b z/c",
    },
    Peers {
        name: "pods In",
        rows: &[15],
        peers: r#"[{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "c", "d"]}]}}]"#,
        means: "x/a x/c",
    },
    Peers {
        name: "pods NotIn",
        rows: &[15],
        peers: r#"[{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a", "d"]}]}}]"#,
        means: "x/b x/c",
    },
    Peers {
        name: "pods NotIn of a label that none has",
        rows: &[15],
        peers: r#"[{"podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}}]"#,
        means: X,
    },
    Peers {
        name: "namespaces where a label Exists",
        rows: &[15, 16],
        peers: r#"[{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}]"#,
        means: BLUE,
    },
    Peers {
        name: "namespaces where a label DoesNotExist",
        rows: &[15, 16],
        peers: r#"[{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}]"#,
        means: X,
    },
    Peers {
        name: "pods and namespaces by expressions, all of which hold",
        rows: &[12, 15],
        peers: r#"[{"namespaceSelector": {"matchLabels": {"team": "blue"},
                "matchExpressions": [{"key": "ns", "operator": "In", "values": ["x", "z"]}]},
            "podSelector": {"matchExpressions": [{"key": "pod", "operator": "Exists"},
                {"key": "pod", "operator": "NotIn", "values": ["b"]}]}}]"#,
        means: "z/a z/c",
    },
    Peers {
        name: "nobody, by a selector that none matches",
        rows: &[10],
        peers: r#"[{"podSelector": {"matchLabels": {"pod": "d"}}}]"#,
        means: "",
    },
    Peers {
        name: "a block of IPv4",
        rows: &[18, 21],
        peers: r#"[{"ipBlock": {"cidr": "10.244.2.0/24"}}]"#,
        means: "x/b:v4 y/b:v4 z/b:v4",
    },
    Peers {
        name: "a block of IPv6",
        rows: &[18, 21],
        peers: r#"[{"ipBlock": {"cidr": "fd00:10:244:3::/64"}}]"#,
        means: "x/c:v6 y/c:v6 z/c:v6",
    },
    Peers {
        name: "every IPv4 address",
        rows: &[18, 21],
        peers: r#"[{"ipBlock": {"cidr": "0.0.0.0/0"}}]"#,
        means: "x/a:v4 x/b:v4 x/c:v4 y/a:v4 y/b:v4 y/c:v4 z/a:v4 z/b:v4 z/c:v4",
    },
    Peers {
        name: "blocks of both families but for a node's pods",
        rows: &[18, 19, 21, 47],
        peers: r#"[{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]}},
            {"ipBlock": {"cidr": "fd00:10:244::/48", "except": ["fd00:10:244:1::/64"]}}]"#,
        means: "x/b x/c y/b y/c z/b z/c",
    },
    Peers {
        name: "one pod by both its addresses",
        rows: &[18, 47],
        peers: r#"[{"ipBlock": {"cidr": "10.244.2.12/32"}}, {"ipBlock": {"cidr": "fd00:10:244:2::12/128"}}]"#,
        means: "y/b",
    },
    Peers {
        name: "two addresses side by side",
        rows: &[18],
        peers: r#"[{"ipBlock": {"cidr": "10.244.1.12/31"}}]"#,
        means: "y/a:v4 z/a:v4",
    },
    Peers {
        name: "a block with several exceptions",
        rows: &[19],
        peers: r#"[{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24", "10.244.3.13/32", "10.244.1.12/31"]}}]"#,
        means: "x/a:v4 x/c:v4 y/c:v4",
    },
    Peers {
        name: "a block, and by another peer who is excepted from it",
        rows: &[13, 19],
        peers: r#"[{"ipBlock": {"cidr": "10.244.2.0/24", "except": ["10.244.2.11/32", "10.244.2.13/32"]}},
            {"podSelector": {"matchLabels": {"pod": "b"}}}]"#,
        means: "x/b y/b:v4",
    },
    Peers {
        name: "two blocks, one in the other's exception",
        rows: &[19],
        peers: r#"[{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/23"]}}, {"ipBlock": {"cidr": "10.244.3.12/32"}}]"#,
        means: "x/a:v4 y/a:v4 z/a:v4 y/c:v4",
    },
];

/// Ports of a rule.
struct Ports {
    name: &'static str,
    rows: &'static [u32],
    /// `ports`; empty: absent.
    ports: &'static str,
    /// Pods by their letter, and what they are open for.
    open: &'static [(&'static str, &'static str)],
    /// And what they are not.
    shut: &'static [(&'static str, &'static str)],
}

const PORTS: [Ports; 16] = [
    Ports {
        name: "all ports",
        rows: &[8],
        ports: "",
        open: &[("abc", "TCP/80,TCP/8080,UDP/80,SCTP/80,ICMP")],
        shut: &[],
    },
    Ports {
        name: "all ports, by an empty list",
        rows: &[8],
        ports: "[]",
        open: &[("abc", "TCP/80,UDP/53,SCTP/9000,ICMP")],
        shut: &[],
    },
    Ports {
        name: "port 80",
        rows: &[22, 24],
        ports: r#"[{"port": 80}]"#,
        open: &[("abc", "TCP/80")],
        shut: &[("abc", "TCP/81,UDP/80,SCTP/80,ICMP")],
    },
    Ports {
        name: "UDP port 81",
        rows: &[24],
        ports: r#"[{"protocol": "UDP", "port": 81}]"#,
        open: &[("abc", "UDP/81")],
        shut: &[("abc", "TCP/81,UDP/80,SCTP/81,ICMP")],
    },
    Ports {
        name: "all of UDP",
        rows: &[23],
        ports: r#"[{"protocol": "UDP"}]"#,
        open: &[("abc", "UDP/53,UDP/80,UDP/81")],
        shut: &[("abc", "TCP/80,SCTP/80,ICMP")],
    },
    Ports {
        name: "SCTP port 80 alone",
        rows: &[28],
        ports: r#"[{"protocol": "SCTP", "port": 80}]"#,
        open: &[("abc", "SCTP/80")],
        shut: &[("abc", "TCP/80,UDP/80,SCTP/81,ICMP")],
    },
    Ports {
        name: "the port named web",
        rows: &[25, 26],
        ports: r#"[{"port": "web"}]"#,
        open: &[("a", "TCP/80"), ("b", "TCP/8080")],
        shut: &[("a", "TCP/8080,UDP/80"), ("b", "TCP/80,UDP/80"), ("c", "TCP/80,TCP/8080,UDP/80")],
    },
    Ports {
        name: "the UDP port named web",
        rows: &[25, 26],
        ports: r#"[{"protocol": "UDP", "port": "web"}]"#,
        open: &[("c", "UDP/80")],
        shut: &[("ab", "UDP/80,TCP/80,TCP/8080"), ("c", "TCP/80")],
    },
    Ports {
        name: "the SCTP port named sig",
        rows: &[25, 26, 28],
        ports: r#"[{"protocol": "SCTP", "port": "sig"}]"#,
        open: &[("a", "SCTP/9000")],
        shut: &[("a", "SCTP/80,TCP/80"), ("bc", "SCTP/9000")],
    },
    Ports {
        name: "the port named web or the UDP port named dns",
        rows: &[9, 25, 26],
        ports: r#"[{"port": "web"}, {"protocol": "UDP", "port": "dns"}]"#,
        open: &[("a", "TCP/80,UDP/53"), ("b", "TCP/8080,UDP/53")],
        shut: &[("a", "TCP/53,TCP/8080"), ("b", "TCP/80,UDP/80"), ("c", "UDP/53,UDP/80,TCP/80")],
    },
    Ports {
        name: "a name that no port has",
        rows: &[25, 26],
        ports: r#"[{"port": "nobodys"}]"#,
        open: &[],
        shut: &[("abc", "TCP/80,TCP/8080,UDP/80,SCTP/80,ICMP")],
    },
    Ports {
        name: "ports 79 to 81",
        rows: &[27],
        ports: r#"[{"port": 79, "endPort": 81}]"#,
        open: &[("abc", "TCP/79,TCP/80,TCP/81")],
        shut: &[("abc", "TCP/78,TCP/82,UDP/80,ICMP")],
    },
    Ports {
        name: "UDP ports 80 to 80",
        rows: &[27],
        ports: r#"[{"protocol": "UDP", "port": 80, "endPort": 80}]"#,
        open: &[("abc", "UDP/80")],
        shut: &[("abc", "UDP/79,UDP/81,TCP/80")],
    },
    Ports {
        name: "ports 1024 to 65535 of TCP and all of SCTP",
        rows: &[9, 23, 27],
        ports: r#"[{"port": 1024, "endPort": 65535}, {"protocol": "SCTP"}]"#,
        open: &[("abc", "TCP/1024,TCP/8080,TCP/65535,SCTP/80,SCTP/9000")],
        shut: &[("abc", "TCP/80,TCP/1023,UDP/8080,ICMP")],
    },
    Ports {
        name: "port 81 or UDP port 80",
        rows: &[9, 24],
        ports: r#"[{"protocol": "TCP", "port": 81}, {"protocol": "UDP", "port": 80}]"#,
        open: &[("abc", "TCP/81,UDP/80")],
        shut: &[("abc", "TCP/80,UDP/81,SCTP/80,ICMP")],
    },
    Ports {
        name: "every transport by name",
        rows: &[9, 23, 28],
        ports: r#"[{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]"#,
        open: &[("abc", "TCP/80,UDP/80,SCTP/80")],
        shut: &[("abc", "ICMP")],
    },
];

/// Which side the policy is on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    In,
    Out,
}

impl Side {
    const BOTH: [Self; 2] = [Self::In, Self::Out];

    const fn kind(self) -> &'static str {
        match self {
            Self::In => "Ingress",
            Self::Out => "Egress",
        }
    }

    const fn rules(self) -> &'static str {
        match self {
            Self::In => "ingress",
            Self::Out => "egress",
        }
    }

    const fn peers(self) -> &'static str {
        match self {
            Self::In => "from",
            Self::Out => "to",
        }
    }

    /// `from` as source for ingress, as destination for egress.
    fn line(self, subject: &str, peer: &str, what: &str, verdict: &str) -> String {
        match self {
            Self::In => format!("{peer} > {subject} {what} {verdict}\n"),
            Self::Out => format!("{subject} > {peer} {what} {verdict}\n"),
        }
    }
}

/// A policy of namespace x.
pub(super) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn case(name: String, rows: &[&[u32]], objects: Vec<Value>, flows: String) -> Case {
    let mut rows = rows.concat();
    rows.sort_unstable();
    rows.dedup();
    let step = Step { objects, flows, ..Step::default() };
    Case { name, rows, short: false, ask: None, steps: vec![step], by_address: false }
}

/// JSON of this file; nothing for what is absent.
fn part(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| serde_json::from_str(text).expect("JSON"))
}

fn rule(side: Side, peers: &Peers, ports: &Ports) -> Value {
    let mut rule = json!({});
    if let Some(peers) = part(peers.peers) {
        rule[side.peers()] = peers;
    }
    if let Some(ports) = part(ports.ports) {
        rule["ports"] = ports;
    }
    rule
}

/// What a rule of every pod of `subjects` means for one of them and each other pod.
fn lines(side: Side, subjects: &str, peers: &Peers, ports: &Ports) -> String {
    let mut lines = String::new();
    for subject in subjects.split_whitespace() {
        for peer in ALL.split_whitespace().filter(|peer| *peer != subject) {
            // The destination's ports count.
            let to = if side == Side::In { subject } else { peer };
            for family in ["v4", "v6"] {
                let end = format!("{peer}:{family}");
                let meant = peers.means.split_whitespace().any(|word| word == peer || word == end);
                let of_pod = |all: &[(&str, &'static str)]| {
                    let letter = to.rsplit('/').next().unwrap_or_default();
                    let mine = all.iter().filter(|(pods, _)| pods.contains(letter));
                    mine.map(|(_, what)| *what).collect::<Vec<_>>()
                };
                let (open, shut) = (of_pod(ports.open), of_pod(ports.shut));
                for what in &open {
                    lines += &side.line(subject, &end, what, if meant { "allow" } else { "deny" });
                }
                for what in &shut {
                    lines += &side.line(subject, &end, what, "deny");
                }
            }
        }
    }
    lines
}

/// Every peer in both directions, each time with two other lists of ports, so that these meet all kinds of peers.
pub(super) fn peers() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut turn = PORTS.iter().cycle();
    for peers in &PEERS {
        for side in Side::BOTH {
            for ports in turn.by_ref().take(2) {
                let spec = json!({"podSelector": {}, "policyTypes": [side.kind()],
                    side.rules(): [rule(side, peers, ports)]});
                let flows = lines(side, X, peers, ports);
                let name = format!("{} {} {}: {}", side.rules(), side.peers(), peers.name, ports.name);
                cases.push(case(name, &[peers.rows, ports.rows], vec![policy("x", "p", &spec)], flows));
            }
        }
        // The next peer meets other ports.
        turn.next();
    }
    cases
}

/// Every list of ports in both directions for one pod, whose peers are everybody.
pub(super) fn ports() -> Vec<Case> {
    let everybody = &PEERS[0];
    let mut cases = Vec::new();
    for ports in &PORTS {
        for side in Side::BOTH {
            let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": [side.kind()],
                side.rules(): [rule(side, everybody, ports)]});
            let mut flows = lines(side, "x/a", everybody, ports);
            flows += &side.line("x/b", "y/a", "TCP/80,UDP/80,SCTP/80,ICMP", "allow");
            let name = format!("{} of one pod: {}", side.rules(), ports.name);
            cases.push(case(name, &[ports.rows, &[1, 2]], vec![policy("x", "p", &spec)], flows));
        }
    }
    cases
}

/// Whom a policy is for, and the pods that this means.
const SUBJECTS: [(&str, &str, &str); 9] = [
    ("every pod", "{}", X),
    ("one pod by its label", r#"{"matchLabels": {"pod": "a"}}"#, "x/a"),
    (
        "pods In",
        r#"{"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]}"#,
        "x/a x/b",
    ),
    (
        "pods NotIn",
        r#"{"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]}"#,
        "x/b x/c",
    ),
    ("pods where a label Exists", r#"{"matchExpressions": [{"key": "pod", "operator": "Exists"}]}"#, X),
    (
        "pods where a label DoesNotExist",
        r#"{"matchExpressions": [{"key": "pod", "operator": "DoesNotExist"}]}"#,
        "",
    ),
    (
        "pods that lack the label of NotIn",
        r#"{"matchExpressions": [{"key": "no", "operator": "NotIn", "values": ["a"]}]}"#,
        X,
    ),
    (
        "pods by a label and two expressions",
        r#"{"matchLabels": {"pod": "b"}, "matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]},
            {"key": "no", "operator": "DoesNotExist"}]}"#,
        "x/b",
    ),
    ("nobody", r#"{"matchLabels": {"pod": "d"}}"#, ""),
];

/// Whom a policy isolates.
pub(super) fn subjects() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, selector, means) in SUBJECTS {
        for side in Side::BOTH {
            let spec = json!({"podSelector": part(selector), "policyTypes": [side.kind()]});
            let mut flows = String::new();
            for pod in X.split_whitespace() {
                let isolated = means.split_whitespace().any(|word| word == pod);
                let verdict = if isolated { "deny" } else { "allow" };
                flows += &side.line(pod, "y/a,z/b,y/c", "TCP/80,UDP/80,SCTP/80,ICMP", verdict);
            }
            flows += "y/a > z/a TCP/80 allow\n";
            let other = if side == Side::In { Side::Out } else { Side::In };
            flows += &other.line("x/a", "y/a", "TCP/80,ICMP", "allow");
            let rows: &[u32] = if side == Side::In { &[1, 2, 5, 15] } else { &[1, 2, 4, 15] };
            cases.push(case(
                format!("{} of {name} is isolated", side.rules()),
                &[rows],
                vec![policy("x", "p", &spec)],
                flows,
            ));
        }
    }
    cases
}

/// `policyTypes` and which rules there are: what x/a then gets from y/a, and what y/a gets from x/a. `80`: that port alone.
const TYPES: [(&str, &str, &str, &str); 20] = [
    ("", "", "none", "all"),
    ("", "in", "80", "all"),
    ("", "out", "none", "80"),
    ("", "in out", "80", "80"),
    ("[]", "", "none", "all"),
    ("[]", "in", "80", "all"),
    ("[]", "out", "none", "80"),
    ("[]", "in out", "80", "80"),
    (r#"["Ingress"]"#, "", "none", "all"),
    (r#"["Ingress"]"#, "in", "80", "all"),
    (r#"["Ingress"]"#, "out", "none", "all"),
    (r#"["Ingress"]"#, "in out", "80", "all"),
    (r#"["Egress"]"#, "", "all", "none"),
    (r#"["Egress"]"#, "in", "all", "none"),
    (r#"["Egress"]"#, "out", "all", "80"),
    (r#"["Egress"]"#, "in out", "all", "80"),
    (r#"["Ingress", "Egress"]"#, "", "none", "none"),
    (r#"["Ingress", "Egress"]"#, "in", "80", "none"),
    (r#"["Ingress", "Egress"]"#, "out", "none", "80"),
    (r#"["Ingress", "Egress"]"#, "in out", "80", "80"),
];

/// What `policyTypes` makes of rules.
pub(super) fn types() -> Vec<Case> {
    let mut cases = Vec::new();
    for (types, rules, ingress, egress) in TYPES {
        let but_c = json!({"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["c"]}]});
        let mut spec = json!({ "podSelector": but_c });
        if let Some(types) = part(types) {
            spec["policyTypes"] = types;
        }
        let mut flows = String::new();
        for (side, word, gets) in [(Side::In, "in", ingress), (Side::Out, "out", egress)] {
            if rules.split_whitespace().any(|rule| rule == word) {
                spec[side.rules()] = json!([{"ports": [{"port": 80}]}]);
            }
            let open = if gets == "none" { "deny" } else { "allow" };
            let rest = if gets == "all" { "allow" } else { "deny" };
            flows += &side.line("x/a,x/b", "y/a,z/c", "TCP/80", open);
            flows += &side.line("x/a,x/b", "y/a,z/c", "TCP/81,UDP/80,SCTP/80,ICMP", rest);
        }
        let types = if types.is_empty() { "absent" } else { types };
        let rules = if rules.is_empty() { "none" } else { rules };
        let name = format!("policyTypes {types} and rules {rules}");
        cases.push(case(name, &[&[3, 4, 5]], vec![policy("x", "p", &spec)], flows));
    }
    cases
}

/// What one side says of the other pod: rules, and whether they let it. None: no policy.
const SAYS: [(&str, Option<&str>, bool); 5] = [
    ("says nothing", None, true),
    ("denies all", Some("[]"), false),
    ("allows all", Some("[{}]"), true),
    (
        "allows the other",
        Some(
            r#"[{"PEERS": [{"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "In", "values": ["x", "y"]}]}}]}]"#,
        ),
        true,
    ),
    (
        "allows somebody else",
        Some(r#"[{"PEERS": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]}]"#),
        false,
    ),
];

/// Egress of the source and ingress of the destination, in all combinations.
pub(super) fn both_sides() -> Vec<Case> {
    let mut cases = Vec::new();
    for (out, egress, goes) in &SAYS {
        for (into, ingress, comes) in &SAYS {
            let mut objects = Vec::new();
            for (side, namespace, rules) in [(Side::Out, "y", egress), (Side::In, "x", ingress)] {
                if let Some(rules) = rules.and_then(|rules| part(&rules.replace("PEERS", side.peers()))) {
                    let spec = json!({"podSelector": {}, "policyTypes": [side.kind()], side.rules(): rules});
                    objects.push(policy(namespace, side.rules(), &spec));
                }
            }
            if objects.is_empty() {
                continue;
            }
            let verdict = if *goes && *comes { "allow" } else { "deny" };
            let flows = format!(
                "y/a,y/b > x/a,x/c TCP/80,UDP/80,SCTP/80,ICMP {verdict}\n\
                 x/a > y/a,y/b TCP/80,UDP/80,SCTP/80,ICMP allow\n"
            );
            let name = format!("the source {out}, the destination {into}");
            cases.push(case(name, &[&[2, 30, 31]], objects, flows));
        }
    }
    cases
}
