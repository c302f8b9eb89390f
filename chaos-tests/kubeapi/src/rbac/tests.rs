use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::auth::Verb;

/// Objects by key, namespace and name.
#[derive(Default)]
struct Objects(BTreeMap<(String, String, String), Value>);

impl Objects {
    fn with(mut self, key: &str, namespace: &str, name: &str, object: Value) -> Self {
        self.0.insert((key.into(), namespace.into(), name.into()), object);
        self
    }
}

impl Roles for Objects {
    fn role(&self, key: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.0.get(&(key.into(), namespace.into(), name.into()))
    }

    fn bindings(&self, key: &str, namespace: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |((k, n, _), _)| k == key && n == namespace).map(|(_, object)| object)
    }
}

/// `verb namespace/group/resource/subresource/name`, empty parts as they are.
fn asked(text: &str) -> Attributes {
    let (verb, rest) = text.split_once(' ').unwrap();
    let mut parts = rest.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Attributes {
        verb: serde_json::from_value(json!(verb)).unwrap(),
        namespace: next(),
        group: next(),
        resource: next(),
        subresource: next(),
        name: next(),
        path: String::new(),
    }
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs, "resourceNames": names})
}

fn binding(kind: &str, role: &str, subject: Value) -> Value {
    json!({"roleRef": {"kind": kind, "name": role}, "subjects": [subject]})
}

#[test]
fn rights_are_what_a_rule_names_and_nothing_beside_it() {
    for (rule, allowed, denied) in [
        (
            rule(&[""], &["nodes"], &["get", "patch"], &[]),
            &["get //nodes//n1", "patch //nodes"][..],
            &["update //nodes", "patch //nodes/status", "get /apps/nodes", "get //pods"][..],
        ),
        (
            rule(&[""], &["nodes/status"], &["patch"], &[]),
            &["patch //nodes/status/n1"],
            &["patch //nodes", "patch //nodes/proxy"],
        ),
        (
            rule(&["*"], &["*/status"], &["*"], &[]),
            &["update /apps/daemonsets/status", "deletecollection //nodes/status"],
            &["update //nodes"],
        ),
        (
            rule(&["apps"], &["*"], &["list"], &[]),
            &["list /apps/daemonsets", "list /apps/daemonsets/status", "list default/apps/deployments"],
            &["list //nodes", "get /apps/daemonsets"],
        ),
        (
            rule(&[""], &["nodes"], &["get", "list"], &["n1"]),
            &["get //nodes//n1"],
            &["get //nodes//n2", "list //nodes"],
        ),
    ] {
        let user = User::new("u", &[]);
        let objects = Objects::default().with(CLUSTER_ROLES, "", "r", json!({"rules": [rule]})).with(
            CLUSTER_ROLE_BINDINGS,
            "",
            "b",
            binding("ClusterRole", "r", json!({"kind": "User", "name": "u"})),
        );
        for (asks, expected) in [(allowed, true), (denied, false)] {
            for text in asks {
                assert_eq!(allows(&objects, &user, &asked(text)), expected, "{text} by {rule}");
            }
        }
    }
}

#[test]
fn a_binding_in_a_namespace_grants_there_alone_and_to_its_subjects_alone() {
    let rules = json!({"rules": [rule(&[""], &["pods"], &["get"], &[])]});
    let account = |namespace: &str| json!({"kind": "ServiceAccount", "name": "sa", "namespace": namespace});
    for (kind, subject, user, expected) in [
        ("Role", account("a"), User::service_account("a", "sa"), true),
        // Its own namespace is meant when it names none.
        ("Role", account(""), User::service_account("a", "sa"), true),
        ("Role", account("b"), User::service_account("a", "sa"), false),
        ("Role", account("a"), User::service_account("a", "other"), false),
        ("ClusterRole", account("a"), User::service_account("a", "sa"), true),
        ("ClusterRole", json!({"kind": "Group", "name": "g"}), User::new("u", &["g"]), true),
        ("ClusterRole", json!({"kind": "Group", "name": "g"}), User::new("g", &[]), false),
        ("ClusterRole", json!({"kind": "User", "name": "g"}), User::new("u", &["g"]), false),
        ("Missing", json!({"kind": "User", "name": "u"}), User::new("u", &[]), false),
    ] {
        let objects = Objects::default()
            .with(ROLES, "a", "r", rules.clone())
            .with(CLUSTER_ROLES, "", "r", rules.clone())
            .with(ROLE_BINDINGS, "a", "b", binding(kind, "r", subject.clone()));
        assert_eq!(
            allows(&objects, &user, &asked("get a//pods")),
            expected,
            "{kind} {subject} {}",
            user.name
        );
        for elsewhere in ["get b//pods", "get //pods", "list a//pods"] {
            assert!(!allows(&objects, &user, &asked(elsewhere)), "{elsewhere}: {kind} {subject}");
        }
    }
}

#[test]
fn a_binding_of_the_cluster_takes_no_role_of_a_namespace() {
    let user = User::new("u", &[]);
    let objects = Objects::default()
        .with(ROLES, "", "r", json!({"rules": [rule(&["*"], &["*"], &["*"], &[])]}))
        .with(CLUSTER_ROLE_BINDINGS, "", "b", binding("Role", "r", json!({"kind": "User", "name": "u"})));
    assert!(!allows(&objects, &user, &asked("get //nodes")));
    assert_eq!(asked("get //nodes").verb, Verb::Get);
}
