//! The policies of `deploy/admission.yaml` against D11 written down once more, difference by difference, for random writes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const DEPLOYED: &str = include_str!("../../../../../deploy/admission.yaml");
const UID: &str = "uid-of-n1";

fn deployed() -> Policies {
    let objects: Vec<Value> = serde_saphyr::from_multiple(DEPLOYED).unwrap();
    let mut policies = Policies::default();
    for object in &objects {
        let key = if object["kind"] == "ValidatingAdmissionPolicy" { POLICIES } else { BINDINGS };
        policies.note(key, object["metadata"]["name"].as_str().unwrap(), Some(object)).unwrap();
    }
    assert_eq!((policies.policies.len(), policies.bindings.len()), (3, 3));
    policies
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    /// With claims of (node, UID of the node); `None` if the token lacks them.
    Agent(Option<&'static str>, Option<&'static str>),
    /// Two nodes in one token.
    AgentOfTwo,
    Kubelet(&'static str),
    Admin,
    /// Another ServiceAccount's pod on n1.
    OtherOnN1,
}

const ACTORS: [Actor; 14] = [
    // More than once: what it may not is the longest list.
    Actor::Agent(Some("n1"), Some(UID)),
    Actor::Agent(Some("n1"), Some(UID)),
    Actor::Agent(Some("n1"), Some(UID)),
    Actor::Agent(Some("n1"), None),
    Actor::Agent(Some("n1"), Some("uid-of-an-earlier-n1")),
    Actor::Agent(Some("n2"), Some("uid-of-n2")),
    Actor::Agent(Some("n2"), None),
    Actor::Agent(Some("n2"), Some(UID)),
    Actor::Agent(None, None),
    Actor::AgentOfTwo,
    Actor::Kubelet("n1"),
    Actor::Kubelet("n2"),
    Actor::Admin,
    Actor::OtherOnN1,
];

impl Actor {
    fn user(self) -> User {
        let agent = || User::service_account("hawser-system", "mesh-agent");
        let with = |mut user: User, key: &str, values: &[&str]| {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), values);
            user
        };
        match self {
            Actor::Agent(node, uid) => {
                let user = node.map_or_else(agent, |node| with(agent(), "node-name", &[node]));
                match uid {
                    Some(uid) => with(user, "node-uid", &[uid]),
                    None => user,
                }
            }
            Actor::AgentOfTwo => with(agent(), "node-name", &["n1", "n2"]),
            Actor::Kubelet(node) => User::kubelet(node),
            Actor::Admin => User::admin(),
            Actor::OtherOnN1 => {
                let user = with(User::service_account("kube-system", "other"), "node-name", &["n1"]);
                with(user, "node-uid", &[UID])
            }
        }
    }

    fn is_agent(self) -> bool {
        matches!(self, Actor::Agent(..) | Actor::AgentOfTwo)
    }

    fn is_kubelet(self) -> bool {
        matches!(self, Actor::Kubelet(_))
    }
}

type Map = BTreeMap<&'static str, u8>;

/// What may differ between two states of an object. Numbers stand for values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Shape {
    annotations: Map,
    labels: Map,
    finalizers: Map,
    owners: Map,
    /// Key of a taint to its effect.
    taints: Vec<(&'static str, u8)>,
    /// Other fields of the spec.
    spec: Map,
    conditions: Map,
    /// Other fields of the status.
    status: Map,
    /// An empty map is written instead of being left out.
    empty: bool,
}

impl Shape {
    fn object(&self, kind: &str, node: Option<&str>) -> Value {
        let mut metadata = json!({"name": "n1", "uid": UID});
        let text =
            |map: &Map| json!(map.iter().map(|(k, v)| (*k, v.to_string())).collect::<BTreeMap<_, _>>());
        for (field, map) in [("annotations", &self.annotations), ("labels", &self.labels)] {
            if !map.is_empty() || self.empty {
                metadata[field] = text(map);
            }
        }
        if !self.finalizers.is_empty() {
            metadata["finalizers"] = json!(self.finalizers.keys().collect::<Vec<_>>());
        }
        if !self.owners.is_empty() {
            metadata["ownerReferences"] =
                json!(self.owners.keys().map(|n| json!({"name": n})).collect::<Vec<_>>());
        }
        let mut spec = json!(self.spec);
        if let Some(node) = node {
            spec["nodeName"] = json!(node);
        }
        let mut status = json!(self.status);
        if kind == "Node" {
            if !self.taints.is_empty() {
                let taint = |(key, effect): &(&str, u8)| json!({"key": key, "effect": format!("E{effect}")});
                spec["taints"] = json!(self.taints.iter().map(taint).collect::<Vec<_>>());
            }
            if !self.conditions.is_empty() || self.empty {
                let condition =
                    |(kind, value): (&&str, &u8)| json!({"type": kind, "status": value.to_string()});
                status["conditions"] = json!(self.conditions.iter().map(condition).collect::<Vec<_>>());
            }
        }
        json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status})
    }
}

/// Keys whose values differ.
fn changed(old: &Map, new: &Map) -> Vec<&'static str> {
    old.keys().chain(new.keys()).filter(|k| old.get(*k) != new.get(*k)).copied().collect()
}

const WIREGUARD: &str = "hawser.dev/wireguard";
const OURS: &str = "hawser.dev/agent-not-ready";
const NODE_ANNOTATIONS: [&str; 5] =
    [WIREGUARD, "hawser.dev/rotate", "hawser.dev/endpoint", "hawser.dev.example/x", "example.com/x"];
const POD_ANNOTATIONS: [&str; 4] =
    ["hawser.dev/ips", "hawser.dev/ports", "hawser.dev/other", "example.com/x"];

/// D11 for Node n1.
fn node_allowed(actor: Actor, operation: Operation, old: &Shape, new: &Shape) -> bool {
    let annotations = changed(&old.annotations, &new.annotations);
    let ours = |k: &&str| k.starts_with("hawser.dev/");
    match operation {
        Operation::Delete => !actor.is_agent(),
        Operation::Create | Operation::Update if !actor.is_agent() => {
            let kubelets = actor.is_kubelet() && annotations.iter().any(ours);
            !(kubelets || annotations.contains(&WIREGUARD))
        }
        Operation::Create => false,
        Operation::Update => {
            let own = matches!(actor, Actor::Agent(Some("n1"), None | Some(UID)));
            let others = |c: &Map| {
                c.iter().filter(|(k, _)| **k != "NetworkUnavailable").map(|(k, v)| (*k, *v)).collect::<Map>()
            };
            own && annotations.iter().all(|k| *k == WIREGUARD)
                && old.labels == new.labels
                && old.finalizers == new.finalizers
                && old.owners == new.owners
                && old.spec == new.spec
                && old.status == new.status
                && others(&old.conditions) == others(&new.conditions)
                && new.taints.iter().all(|t| old.taints.contains(t))
                && old.taints.iter().all(|t| t.0 == OURS || new.taints.contains(t))
        }
    }
}

/// D11 for a Pod on `node`.
fn pod_allowed(actor: Actor, operation: Operation, node: Option<&str>, old: &Shape, new: &Shape) -> bool {
    let annotations = changed(&old.annotations, &new.annotations);
    let ours = |k: &&str| ["hawser.dev/ips", "hawser.dev/ports"].contains(k);
    match operation {
        Operation::Delete => !actor.is_agent(),
        Operation::Create | Operation::Update if !actor.is_agent() => !annotations.iter().any(ours),
        Operation::Create => false,
        Operation::Update => {
            let claimed = if let Actor::Agent(claimed, _) = actor { claimed } else { None };
            let rest = |s: &Shape| Shape { annotations: Map::new(), empty: false, ..s.clone() };
            claimed.is_some() && claimed == node && annotations.iter().all(ours) && rest(old) == rest(new)
        }
    }
}

fn map_of(keys: &'static [&'static str]) -> impl Strategy<Value = Map> {
    proptest::collection::btree_map(select(keys), 0_u8..2, 0..=keys.len())
}

fn shape(annotations: &'static [&'static str], node: bool) -> impl Strategy<Value = Shape> {
    let taint = (select(vec![OURS, "example.com/other"]), 0_u8..2);
    let taints = proptest::collection::btree_set(taint, 0..3).prop_map(|set| set.into_iter().collect());
    (
        map_of(annotations),
        map_of(&["zone"]),
        map_of(&["f"]),
        map_of(&["o"]),
        taints,
        map_of(&["unschedulable", "providerID"]),
        map_of(&["NetworkUnavailable", "Ready"]),
        map_of(&["addresses", "phase"]),
        any::<bool>(),
    )
        .prop_map(
            move |(annotations, labels, finalizers, owners, taints, spec, conditions, status, empty)| {
                let mut shape = Shape {
                    annotations,
                    labels,
                    finalizers,
                    owners,
                    taints,
                    spec,
                    conditions,
                    status,
                    empty,
                };
                // A finalizer or an owner is there or not.
                for present in [&mut shape.finalizers, &mut shape.owners] {
                    present.values_mut().for_each(|value| *value = 0);
                }
                if !node {
                    shape.taints.clear();
                    shape.conditions.clear();
                }
                shape
            },
        )
}

/// Takes up to two fields of `other`, so that most writes are small and some are allowed.
fn mixed(old: &Shape, other: &Shape, fields: &[usize]) -> Shape {
    let mut new = old.clone();
    for field in fields {
        let o = other.clone();
        match field {
            0 | 1 => new.annotations = o.annotations,
            // One annotation alone.
            2 | 3 => {
                let Some((key, value)) = o.annotations.into_iter().next() else { continue };
                if new.annotations.remove(key).is_none() {
                    new.annotations.insert(key, value);
                }
            }
            4 => new.labels = o.labels,
            5 => new.finalizers = o.finalizers,
            6 => new.owners = o.owners,
            7 => new.taints = o.taints,
            8 => new.taints.retain(|t| t.0 != OURS),
            9 => new.spec = o.spec,
            10 => new.conditions = o.conditions,
            11 => drop(new.conditions.insert("NetworkUnavailable", 1)),
            12 => new.status = o.status,
            // One value alone.
            13 => new.labels.values_mut().take(1).for_each(|value| *value ^= 1),
            14 => new.spec.values_mut().take(1).for_each(|value| *value ^= 1),
            15 => new.status.values_mut().take(1).for_each(|value| *value ^= 1),
            _ => new.empty = o.empty,
        }
    }
    new
}

const OPERATIONS: [Operation; 4] =
    [Operation::Update, Operation::Update, Operation::Create, Operation::Delete];

/// Runs one write through the policies. `key` is `nodes`, or `pods/status`.
fn judged(
    policies: &Policies,
    actor: Actor,
    operation: Operation,
    key: &'static str,
    old: Value,
    new: Value,
) -> Result<(), Denial> {
    let (old, new) = match operation {
        Operation::Create => (Value::Null, new),
        Operation::Update => (old, new),
        Operation::Delete => (old, Value::Null),
    };
    let (plural, subresource) = key.split_once('/').unwrap_or((key, ""));
    let mut change = Change::update(old, new);
    change.resource = resource(plural);
    change.subresource = subresource;
    change.user = actor.user();
    change.operation = operation;
    policies.judge(&change.request())
}

fn says_what_it_denies(verdict: &Result<(), Denial>) -> bool {
    verdict.as_ref().err().is_none_or(|denial| {
        let message = &denial.message;
        !message.contains("resulted in error") && !message.contains("failed expression")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_write_of_a_node_passes_exactly_when_d11_says_so(
        actor in select(&ACTORS[..]), operation in select(&OPERATIONS[..]),
        old in shape(&NODE_ANNOTATIONS, true), other in shape(&NODE_ANNOTATIONS, true),
        fields in proptest::collection::vec(0_usize..17, 0..3),
    ) {
        thread_local!(static POLICIES: Policies = deployed());
        let new = mixed(&old, &other, &fields);
        let before = if operation == Operation::Create { Shape::default() } else { old.clone() };
        let verdict = POLICIES.with(|p| judged(p, actor, operation, "nodes", old.object("Node", None), new.object("Node", None)));
        prop_assert_eq!(verdict.is_ok(), node_allowed(actor, operation, &before, &new), "{:?}", verdict);
        prop_assert!(says_what_it_denies(&verdict), "{:?}", verdict);
    }

    #[test]
    fn a_write_of_a_pod_passes_exactly_when_d11_says_so(
        actor in select(&ACTORS[..]), operation in select(&OPERATIONS[..]),
        way in select(vec!["pods", "pods/status"]),
        node in select(vec![None, Some("n1"), Some("n1"), Some("n2")]),
        old in shape(&POD_ANNOTATIONS, false), other in shape(&POD_ANNOTATIONS, false),
        fields in proptest::collection::vec(0_usize..17, 0..3),
    ) {
        thread_local!(static POLICIES: Policies = deployed());
        let mut new = mixed(&old, &other, &fields);
        new.conditions.clear();
        let before = if operation == Operation::Create { Shape::default() } else { old.clone() };
        let verdict = POLICIES.with(|p| judged(p, actor, operation, way, old.object("Pod", node), new.object("Pod", node)));
        prop_assert_eq!(verdict.is_ok(), pod_allowed(actor, operation, node, &before, &new), "{:?}", verdict);
        prop_assert!(says_what_it_denies(&verdict), "{:?}", verdict);
    }
}

#[test]
fn who_binds_a_pod_writes_no_annotation_of_ours_with_it() {
    let policies = deployed();
    // The real server's Binding is a kind of its own: only the subresource counts here.
    for (key, subresource) in [("pods", "binding"), ("bindings", "")] {
        for (annotations, passes) in [
            (json!({"hawser.dev/ips": "10.0.0.1"}), false),
            (json!({"hawser.dev/ports": "a"}), false),
            (json!({"example.com/x": "a"}), true),
            (Value::Null, true),
        ] {
            let mut object = json!({"metadata": {"name": "n1"}, "target": {"kind": "Node", "name": "n1"}});
            if !annotations.is_null() {
                object["metadata"]["annotations"] = annotations.clone();
            }
            let mut change = Change::update(Value::Null, object);
            change.resource = Resource { plural: key.to_owned(), ..resource("pods") };
            change.subresource = subresource;
            change.operation = Operation::Create;
            for user in [User::new("system:kube-scheduler", &[]), Actor::Admin.user(), ACTORS[0].user()] {
                change.user = user;
                let verdict = policies.judge(&change.request());
                assert_eq!(verdict.is_ok(), passes, "{key} {subresource} {annotations}: {verdict:?}");
            }
        }
    }
}

#[test]
fn every_way_to_a_pods_or_nodes_metadata_is_judged() {
    let policies = deployed();
    for (key, subresource, field) in [
        ("nodes", "", WIREGUARD),
        ("nodes", "status", WIREGUARD),
        ("pods", "", "hawser.dev/ips"),
        ("pods", "status", "hawser.dev/ips"),
        ("pods", "ephemeralcontainers", "hawser.dev/ports"),
        ("pods", "resize", "hawser.dev/ips"),
    ] {
        let object = |value: &str| json!({"metadata": {"name": "n1", "annotations": {field: value}}, "spec": {}, "status": {}});
        let mut change = Change::update(object("1"), object("2"));
        change.resource = resource(key);
        change.subresource = subresource;
        let denial = policies.judge(&change.request()).unwrap_err();
        assert!(denial.message.contains(field), "{key}/{subresource}: {}", denial.message);
    }
}
