//! Who may change what, under the manifests of `deploy/`: asked over HTTP, as agents, kubelets and administrators ask.

use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kubeapi::{Server, User};
use serde_json::{Value, json};

use crate::support::*;

const NAMESPACE: &str = include_str!("../../../../deploy/00-namespace.yaml");
const RBAC: &str = include_str!("../../../../deploy/rbac.yaml");
const ADMISSION: &str = include_str!("../../../../deploy/admission.yaml");

const CLUSTERMESH: &str = include_str!("../../../../deploy/clustermesh/clustermesh.yaml");

/// RBAC as if somebody had granted far too much: what is refused now, the policies alone refuse.
const TOO_MUCH: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: everything}
rules: [{apiGroups: ['*'], resources: ['*', '*/*', '*/status'], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everything}
subjects: [{kind: Group, name: 'system:authenticated'}]
";

/// Two nodes and a pod on each, and one on none.
async fn cluster(rights: &[&str]) -> Server {
    let server = server().await;
    for manifests in [NAMESPACE, RBAC, ADMISSION].iter().chain(rights) {
        server.store().apply_manifests(manifests).unwrap();
    }
    for name in ["n1", "n2"] {
        let mut node = node_json(name);
        node["metadata"]["annotations"] = json!({"hawser.dev/wireguard": "old", "example.com/a": "1"});
        node["spec"]["taints"] = json!([
            {"key": "hawser.dev/agent-not-ready", "effect": "NoExecute"}, {"key": "other", "effect": "NoSchedule"}]);
        let _: Value = server.store().create(&node).unwrap();
    }
    for (name, node) in [("p1", Some("n1")), ("p2", Some("n2")), ("nowhere", None)] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = json!(node);
        }
        let _: Value = server.store().create(&pod).unwrap();
    }
    server
}

fn uid(server: &Server, node: &str) -> String {
    server.store().find("nodes", None, node).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Everybody who asks.
struct Cast {
    agent: Client,
    /// Its token is of an n1 that is no more.
    stale: Client,
    /// Its token is bound to no pod.
    unbound: Client,
    admin: Client,
    kubelet: Client,
    /// A ServiceAccount with every right, whose pod runs on n1.
    account: Client,
}

impl Cast {
    async fn of(server: &Server) -> Self {
        let mut account = User::agent_of_node("n1", &uid(server, "n1"));
        "system:serviceaccount:kube-system:csi".clone_into(&mut account.name);
        Self {
            agent: client_of(server, &User::agent_of_node("n1", &uid(server, "n1"))).await,
            stale: client_of(server, &User::agent_of_node("n1", "gone")).await,
            unbound: client_of(server, &User::service_account("hawser-system", "mesh-agent")).await,
            admin: client_of(server, &User::admin()).await,
            kubelet: client_of(server, &User::kubelet("n1")).await,
            account: client_of(server, &account).await,
        }
    }

    fn client(&self, name: &str) -> &Client {
        match name {
            "agent" => &self.agent,
            "stale" => &self.stale,
            "unbound" => &self.unbound,
            "admin" => &self.admin,
            "kubelet" => &self.kubelet,
            "account" => &self.account,
            other => panic!("nobody is called {other}"),
        }
    }
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    match kind {
        "pods" => {
            let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
            Api::namespaced_with(client.clone(), "default", &resource)
        }
        _ => Api::all_with(client.clone(), &ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&())),
    }
}

/// `nodes n1`, `nodes/status n1`, `pods p1`, or `create pods`, `delete nodes n1`.
async fn ask(client: &Client, what: &str, body: &Value) -> Result<(), kube::Error> {
    let words: Vec<&str> = what.split(' ').collect();
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    match words[..] {
        ["create", kind] => {
            let object: DynamicObject = serde_json::from_value(body.clone()).unwrap();
            let params = PostParams { dry_run: true, ..PostParams::default() };
            api(client, kind).create(&params, &object).await.map(drop)
        }
        ["delete", kind, name] => {
            let params = DeleteParams { dry_run: true, ..DeleteParams::default() };
            api(client, kind).delete(name, &params).await.map(drop)
        }
        [kind, name] => match kind.split_once('/') {
            Some((kind, _)) => {
                api(client, kind).patch_status(name, &params, &Patch::Merge(body)).await.map(drop)
            }
            None => api(client, kind).patch(name, &params, &Patch::Merge(body)).await.map(drop),
        },
        _ => panic!("not understood: {what}"),
    }
}

/// The answer: `None` if it was done, else code and message.
fn refusal(result: Result<(), kube::Error>) -> Option<(u16, String)> {
    match result {
        Ok(()) => None,
        Err(kube::Error::Api(status)) => Some((status.code, status.message.clone())),
        Err(other) => panic!("no answer of the API: {other}"),
    }
}

fn annotation(key: &str, value: &str) -> Value {
    json!({"metadata": {"annotations": {key: value}}})
}

fn removed(key: &str) -> Value {
    json!({"metadata": {"annotations": {key: null}}})
}

fn new_node(annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n3", "annotations": annotations},
        "spec": {"taints": [{"key": "hawser.dev/agent-not-ready", "effect": "NoExecute"}]}})
}

fn new_pod(annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p3", "namespace": "default", "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}})
}

const WIREGUARD: &str = "hawser.dev/wireguard";
/// What is allowed.
const DONE: &str = "";

/// Who × what, with everybody having every right: words of the refusal, or [`DONE`].
fn table() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let ours = || json!([{"key": "other", "effect": "NoSchedule"}]);
    let taints = |list: Value| json!({"spec": {"taints": list}});
    let condition = |kind: &str| json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": kind, "status": "False"}]}});
    let other_condition = || json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    vec![
        // The agent, at its own Node.
        ("agent", "nodes n1", annotation(WIREGUARD, "new"), DONE),
        ("agent", "nodes/status n1", annotation(WIREGUARD, "new"), DONE),
        ("agent", "nodes n1", removed(WIREGUARD), DONE),
        (
            "agent",
            "nodes n1",
            annotation("hawser.dev/rotate", "now"),
            "may not write annotation hawser.dev/rotate of a Node",
        ),
        (
            "agent",
            "nodes n1",
            annotation("hawser.dev/endpoint", "192.0.2.9"),
            "may not write annotation hawser.dev/endpoint",
        ),
        (
            "agent",
            "nodes n1",
            annotation("example.com/a", "2"),
            "may not write annotation example.com/a of a Node",
        ),
        (
            "agent",
            "nodes n1",
            annotation("example.com/b", "2"),
            "may not write annotation example.com/b of a Node",
        ),
        ("agent", "nodes n1", removed("example.com/a"), "may not write annotation example.com/a of a Node"),
        (
            "agent",
            "nodes/status n1",
            annotation("example.com/a", "2"),
            "may not write annotation example.com/a of a Node",
        ),
        (
            "agent",
            "nodes n1",
            json!({"metadata": {"labels": {"zone": "b"}}}),
            "may not change labels of a Node",
        ),
        (
            "agent",
            "nodes n1",
            json!({"metadata": {"labels": {"zone": null}}}),
            "may not change labels of a Node",
        ),
        (
            "agent",
            "nodes n1",
            json!({"metadata": {"labels": {"hawser.dev/x": "b"}}}),
            "may not change labels of a Node",
        ),
        (
            "agent",
            "nodes n1",
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
            "may not change finalizers or owner references of a Node",
        ),
        (
            "agent",
            "nodes n1",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            "may not change finalizers or owner references of a Node",
        ),
        ("agent", "nodes n1", taints(ours()), DONE),
        ("agent", "nodes n1", taints(json!([])), "may only take off hawser.dev/agent-not-ready"),
        ("agent", "nodes n1", taints(Value::Null), "may only take off hawser.dev/agent-not-ready"),
        (
            "agent",
            "nodes n1",
            taints(json!([{"key": "hawser.dev/agent-not-ready", "effect": "NoExecute"}])),
            "may only take off hawser.dev/agent-not-ready",
        ),
        (
            "agent",
            "nodes n1",
            taints(json!([{"key": "other", "effect": "NoSchedule"}, {"key": "new", "effect": "NoSchedule"}])),
            "may only take off hawser.dev/agent-not-ready",
        ),
        (
            "agent",
            "nodes n1",
            taints(
                json!([{"key": "hawser.dev/agent-not-ready", "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]),
            ),
            "may only take off hawser.dev/agent-not-ready",
        ),
        ("agent", "nodes n1", json!({"spec": {"unschedulable": true}}), "may not change the spec of a Node"),
        ("agent", "nodes n1", json!({"spec": {"providerID": "x"}}), "may not change the spec of a Node"),
        ("agent", "nodes/status n1", condition("NetworkUnavailable"), DONE),
        ("agent", "nodes/status n1", condition("Lying"), "may write NetworkUnavailable only"),
        ("agent", "nodes/status n1", other_condition(), "may write NetworkUnavailable only"),
        (
            "agent",
            "nodes/status n1",
            json!({"status": {"conditions": []}}),
            "may write NetworkUnavailable only",
        ),
        (
            "agent",
            "nodes/status n1",
            json!({"status": {"addresses": []}}),
            "may not change the status of a Node",
        ),
        (
            "agent",
            "nodes/status n1",
            json!({"status": {"addresses": null}}),
            "may not change the status of a Node",
        ),
        (
            "agent",
            "nodes/status n1",
            json!({"status": {"capacity": {"pods": "1"}}}),
            "may not change the status of a Node",
        ),
        ("agent", "create nodes", new_node(json!({})), "neither makes nor deletes Nodes"),
        ("agent", "delete nodes n1", json!({}), "neither makes nor deletes Nodes"),
        // At another one.
        ("agent", "nodes n2", annotation(WIREGUARD, "new"), "mesh-agent of node n1 may not change Node n2"),
        (
            "agent",
            "nodes/status n2",
            annotation(WIREGUARD, "new"),
            "mesh-agent of node n1 may not change Node n2",
        ),
        ("agent", "nodes n2", removed(WIREGUARD), "mesh-agent of node n1 may not change Node n2"),
        ("agent", "nodes n2", taints(ours()), "mesh-agent of node n1 may not change Node n2"),
        (
            "agent",
            "nodes/status n2",
            condition("NetworkUnavailable"),
            "mesh-agent of node n1 may not change Node n2",
        ),
        // A change of nothing is refused as well: there is no reason to ask for it.
        ("agent", "nodes n2", json!({"metadata": {}}), "mesh-agent of node n1 may not change Node n2"),
        // With tokens that prove nothing.
        ("stale", "nodes n1", annotation(WIREGUARD, "new"), "is of an earlier Node n1"),
        ("stale", "nodes n1", annotation(WIREGUARD, "new"), "delete the pod of mesh-agent on this node"),
        (
            "unbound",
            "nodes n1",
            annotation(WIREGUARD, "new"),
            "names no node, or several, so Node n1 is not its own",
        ),
        ("unbound", "nodes n2", taints(ours()), "names no node, or several"),
        (
            "unbound",
            "pods p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "whose token names no node, or several,",
        ),
        ("unbound", "pods nowhere", annotation("hawser.dev/ips", "10.0.1.2"), "on no node yet"),
        // Pods.
        ("agent", "pods p1", annotation("hawser.dev/ips", "10.0.1.2"), DONE),
        (
            "agent",
            "pods p1",
            json!({"metadata": {"annotations": {"hawser.dev/ips": "a", "hawser.dev/ports": "b"}}}),
            DONE,
        ),
        // By the status, as agents do it.
        ("agent", "pods/status p1", annotation("hawser.dev/ips", "10.0.1.2"), DONE),
        (
            "agent",
            "pods/status p1",
            json!({"metadata": {"annotations": {"hawser.dev/ips": "a", "hawser.dev/ports": "b"}}}),
            DONE,
        ),
        (
            "agent",
            "pods/status p2",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "mesh-agent of node n1 may not change this Pod, which is on node n2",
        ),
        (
            "agent",
            "pods/status p2",
            json!({"status": {"phase": "Failed"}}),
            "mesh-agent of node n1 may not change this Pod, which is on node n2",
        ),
        ("agent", "pods/status nowhere", annotation("hawser.dev/ips", "10.0.1.2"), "which is on no node yet"),
        (
            "unbound",
            "pods/status p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "whose token names no node, or several,",
        ),
        (
            "agent",
            "pods/status p1",
            annotation("example.com/a", "a"),
            "may not write annotation example.com/a of a Pod",
        ),
        (
            "agent",
            "pods/status p1",
            json!({"metadata": {"labels": {"app": "x"}}}),
            "may not change labels of a Pod",
        ),
        (
            "agent",
            "pods/status p1",
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
            "may not change finalizers or owner references of a Pod",
        ),
        (
            "agent",
            "pods/status p1",
            json!({"metadata": {"annotations": {"hawser.dev/ips": "a"}}, "status": {"phase": "Running"}}),
            "may not change the status of a Pod",
        ),
        ("agent", "pods/status p1", json!({"status": null}), "may not change the status of a Pod"),
        // The server keeps both, whatever is asked.
        ("agent", "pods/status p1", json!({"spec": {"containers": []}}), DONE),
        (
            "agent",
            "pods/status p1",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            DONE,
        ),
        (
            "agent",
            "pods p2",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "mesh-agent of node n1 may not change this Pod, which is on node n2",
        ),
        ("agent", "pods nowhere", annotation("hawser.dev/ips", "10.0.1.2"), "which is on no node yet"),
        (
            "agent",
            "pods p1",
            annotation("hawser.dev/other", "a"),
            "may not write annotation hawser.dev/other of a Pod",
        ),
        (
            "agent",
            "pods p1",
            annotation("example.com/a", "a"),
            "may not write annotation example.com/a of a Pod",
        ),
        ("agent", "pods p1", json!({"metadata": {"labels": {"app": "x"}}}), "may not change labels of a Pod"),
        (
            "agent",
            "pods p1",
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
            "may not change finalizers or owner references of a Pod",
        ),
        ("agent", "pods p1", json!({"spec": {"containers": []}}), "may not change the spec of a Pod"),
        (
            "agent",
            "pods/status p1",
            json!({"status": {"podIP": "10.0.1.9"}}),
            "may not change the status of a Pod",
        ),
        (
            "agent",
            "create pods",
            new_pod(json!({"hawser.dev/ips": "10.0.1.2"})),
            "neither makes nor deletes Pods",
        ),
        ("agent", "delete pods p1", json!({}), "neither makes nor deletes Pods"),
        // Administrators.
        (
            "admin",
            "nodes n1",
            annotation(WIREGUARD, "new"),
            "not by kubernetes-admin; leave it out, set hawser.dev/rotate",
        ),
        (
            "admin",
            "nodes n1",
            removed(WIREGUARD),
            "delete ValidatingAdmissionPolicyBinding hawser-nodes first",
        ),
        (
            "admin",
            "nodes/status n1",
            annotation(WIREGUARD, "new"),
            "written by the mesh-agent of that node alone",
        ),
        (
            "admin",
            "create nodes",
            new_node(json!({"hawser.dev/wireguard": "x"})),
            "written by the mesh-agent of that node alone",
        ),
        ("admin", "create nodes", new_node(json!({"hawser.dev/endpoint": "192.0.2.9"})), DONE),
        ("admin", "nodes n1", annotation("hawser.dev/rotate", "now"), DONE),
        ("admin", "nodes n1", annotation("hawser.dev/endpoint", "192.0.2.9"), DONE),
        (
            "admin",
            "nodes n1",
            json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"taints": [], "unschedulable": true}}),
            DONE,
        ),
        ("admin", "nodes/status n1", other_condition(), DONE),
        ("admin", "delete nodes n1", json!({}), DONE),
        (
            "admin",
            "pods p1",
            annotation("hawser.dev/ips", "10.0.2.2"),
            "hawser.dev/ips on a Pod is written by the mesh-agent of its node alone",
        ),
        (
            "admin",
            "pods/status p1",
            annotation("hawser.dev/ports", "x"),
            "hawser.dev/ports on a Pod is written by",
        ),
        (
            "admin",
            "create pods",
            new_pod(json!({"hawser.dev/ips": "10.0.1.2"})),
            "leave it out (of templates, manifests and backups, too)",
        ),
        ("admin", "create pods", new_pod(json!({"example.com/a": "10.0.1.2"})), DONE),
        ("admin", "delete pods p1", json!({}), DONE),
        // A kubelet, at its own Node, where NodeRestriction would let it write any annotation.
        ("kubelet", "nodes n1", annotation(WIREGUARD, "new"), "not by system:node:n1"),
        ("kubelet", "nodes/status n1", annotation(WIREGUARD, "new"), "not by system:node:n1"),
        (
            "kubelet",
            "nodes n1",
            annotation("hawser.dev/rotate", "now"),
            "hawser.dev/rotate on a Node may not be written by a kubelet",
        ),
        (
            "kubelet",
            "nodes/status n1",
            annotation("hawser.dev/endpoint", "192.0.2.9"),
            "hawser.dev/endpoint on a Node may not be written by a kubelet",
        ),
        ("kubelet", "nodes n1", removed(WIREGUARD), "not by system:node:n1"),
        ("kubelet", "nodes n2", annotation(WIREGUARD, "new"), "not by system:node:n1"),
        (
            "kubelet",
            "create nodes",
            new_node(json!({"hawser.dev/wireguard": "x"})),
            "written by the mesh-agent of that node alone",
        ),
        (
            "kubelet",
            "create nodes",
            new_node(json!({"hawser.dev/endpoint": "x"})),
            "may not be written by a kubelet",
        ),
        ("kubelet", "create nodes", new_node(json!({"example.com/a": "x"})), DONE),
        ("kubelet", "nodes n1", annotation("example.com/a", "2"), DONE),
        ("kubelet", "nodes/status n1", other_condition(), DONE),
        (
            "kubelet",
            "pods p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "written by the mesh-agent of its node alone",
        ),
        (
            "kubelet",
            "create pods",
            new_pod(json!({"hawser.dev/ips": "10.0.1.2"})),
            "written by the mesh-agent of its node alone",
        ),
        ("kubelet", "pods/status p1", json!({"status": {"phase": "Running"}}), DONE),
        (
            "kubelet",
            "pods/status p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "written by the mesh-agent of its node alone",
        ),
        // Somebody else's pod on the same node has the claim of the node, but is no agent.
        ("account", "nodes n1", annotation(WIREGUARD, "new"), "not by system:serviceaccount:kube-system:csi"),
        ("account", "nodes n1", annotation("hawser.dev/endpoint", "192.0.2.9"), DONE),
        (
            "account",
            "pods p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "not by system:serviceaccount:kube-system:csi",
        ),
        (
            "account",
            "pods/status p1",
            annotation("hawser.dev/ips", "10.0.1.2"),
            "not by system:serviceaccount:kube-system:csi",
        ),
        ("account", "nodes n1", json!({"metadata": {"labels": {"zone": "b"}}}), DONE),
    ]
}

#[tokio::test]
async fn everybody_with_every_right_may_do_what_d11_says_and_is_told_why_not() {
    let server = cluster(&[TOO_MUCH]).await;
    let cast = Cast::of(&server).await;
    let mut wrong = Vec::new();
    for (who, what, body, words) in table() {
        let answer = refusal(ask(cast.client(who), what, &body).await);
        let fits = match &answer {
            None => words == DONE,
            Some((code, message)) => {
                let kind = if what.contains("pods") { "hawser-pods" } else { "hawser-nodes" };
                let named =
                    format!("ValidatingAdmissionPolicy '{kind}' with binding '{kind}' denied request: ");
                *code == 422 && words != DONE && message.contains(words) && message.contains(&named)
            }
        };
        if !fits {
            wrong.push(format!("{who} {what} {body}: wanted {words:?}, got {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table().len(), wrong.join("\n"));
}

#[tokio::test]
async fn with_the_rights_of_the_manifests_nobody_may_more_and_the_agent_what_it_needs() {
    let server = cluster(&[]).await;
    let cast = Cast::of(&server).await;
    for (who, what, body, words) in table() {
        let answer = refusal(ask(cast.client(who), what, &body).await);
        assert!(words == DONE || answer.is_some(), "{who} {what} {body} is done");
        let needed = matches!(
            (who, what, &body["metadata"]["annotations"]),
            ("agent", "nodes n1" | "pods p1" | "pods/status p1", Value::Object(_))
        );
        if needed && words == DONE {
            assert_eq!(answer, None, "{what} {body}");
        }
        if who == "account" {
            assert_eq!(answer.map(|(code, _)| code), Some(403), "{what} {body}");
        }
    }
}

#[tokio::test]
async fn a_denial_is_a_status_as_the_real_server_answers() {
    let server = cluster(&[]).await;
    let nodes = api(&client(&server).await, "nodes");
    let error = nodes.patch("n1", &PatchParams::default(), &Patch::Merge(annotation(WIREGUARD, "x"))).await;
    let Err(kube::Error::Api(status)) = error else { panic!("{error:?}") };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(
        status.message.starts_with(
            "nodes \"n1\" is forbidden: ValidatingAdmissionPolicy 'hawser-nodes' with binding 'hawser-nodes' denied request: "
        ),
        "{}",
        status.message
    );
    let details = status.details.as_ref().unwrap();
    assert_eq!((details.kind.as_str(), details.name.as_str()), ("nodes", "n1"));
    let cause = &details.causes[0].message;
    assert!(cause.starts_with("ValidatingAdmissionPolicy 'hawser-nodes'"), "{cause}");
    assert_eq!(
        server.store().find("nodes", None, "n1").unwrap()["metadata"]["annotations"][WIREGUARD],
        "old"
    );
}

#[tokio::test]
async fn server_side_apply_and_json_patches_are_no_way_around() {
    let server = cluster(&[TOO_MUCH]).await;
    let nodes = api(&client_of(&server, &User::kubelet("n1")).await, "nodes");
    let apply = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "annotations": {WIREGUARD: "x"}}});
    let new = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9", "annotations": {WIREGUARD: "x"}}});
    let json: json_patch::Patch = serde_json::from_value(
        json!([{"op": "replace", "path": "/metadata/annotations/hawser.dev~1wireguard", "value": "x"}]),
    )
    .unwrap();
    let forced = PatchParams::apply("me").force();
    for (name, params, patch) in [
        ("n1", &forced, Patch::Apply(apply.clone())),
        ("n9", &forced, Patch::Apply(new)),
        ("n1", &PatchParams::default(), Patch::Json(json)),
        ("n1", &PatchParams::default(), Patch::Strategic(apply)),
    ] {
        let answer = refusal(nodes.patch(name, params, &patch).await.map(drop));
        assert!(
            matches!(&answer, Some((422, message)) if message.contains(WIREGUARD)),
            "{patch:?}: {answer:?}"
        );
    }
    let mut object = nodes.get("n1").await.unwrap();
    object.metadata.annotations = None;
    let answer = refusal(nodes.replace("n1", &PostParams::default(), &object).await.map(drop));
    assert!(matches!(answer, Some((422, _))), "{answer:?}");
}

#[tokio::test]
async fn without_its_binding_a_policy_stops_nobody_and_it_returns_with_it() {
    let server = cluster(&[]).await;
    let admin = client(&server).await;
    let patch = annotation(WIREGUARD, "cleaned");
    assert!(refusal(ask(&admin, "nodes n1", &patch).await).is_some());
    server.store().delete("validatingadmissionpolicybindings", None, "hawser-nodes").unwrap();
    assert_eq!(refusal(ask(&admin, "nodes n1", &patch).await), None);
    server.store().apply_manifests(ADMISSION).unwrap();
    assert!(refusal(ask(&admin, "nodes n1", &patch).await).is_some());
}

#[tokio::test]
async fn policies_hold_after_a_restart_and_after_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Server::builder().state_dir(Some(directory.path().to_owned())).start();
    let server = start().await.unwrap();
    for manifests in [NAMESPACE, RBAC, ADMISSION] {
        server.store().apply_manifests(manifests).unwrap();
    }
    let _: Value = server.store().create(&node_json("n1")).unwrap();
    server.stop().await;
    let server = start().await.unwrap();
    let patch = annotation(WIREGUARD, "x");
    assert!(refusal(ask(&client(&server).await, "nodes n1", &patch).await).is_some(), "after a restart");
    let with = server.store().snapshot();
    for name in ["hawser-nodes", "hawser-pods", "hawser-bindings"] {
        server.store().delete("validatingadmissionpolicybindings", None, name).unwrap();
    }
    let without = server.store().snapshot();
    server.store().restore(&with).unwrap();
    assert!(refusal(ask(&client(&server).await, "nodes n1", &patch).await).is_some(), "restored with them");
    server.store().restore(&without).unwrap();
    assert_eq!(refusal(ask(&client(&server).await, "nodes n1", &patch).await), None, "restored without them");
}

#[tokio::test]
async fn a_policy_that_cannot_be_compiled_is_refused_over_http_with_its_field() {
    let server = server().await;
    let resource =
        ApiResource::erase::<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy>(&());
    let policies: Api<DynamicObject> = Api::all_with(client(&server).await, &resource);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["*"], "resources": ["nodes"]}]}, "validations": [{"expression": "object."}]}}))
    .unwrap();
    let answer = refusal(policies.create(&PostParams::default(), &object).await.map(drop));
    let Some((422, message)) = answer else { panic!("{answer:?}") };
    assert!(
        message.contains("spec.validations[0].expression") && message.contains("compilation failed"),
        "{message}"
    );
}

#[tokio::test]
async fn clustermesh_writes_derived_services_and_their_slices_alone() {
    let server = cluster(&[TOO_MUCH, CLUSTERMESH]).await;
    let clustermesh = client_of(&server, &User::service_account("hawser-system", "clustermesh")).await;
    let admin = client_of(&server, &User::admin()).await;
    let service = |name: &str, label: &str, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"name": name, "namespace": "default", "labels": {"app.kubernetes.io/managed-by": label}}})
    };
    let slice = |of: &str, label: &str| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": {"name": format!("slice-of-{of}"), "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/managed-by": label, "kubernetes.io/service-name": of}}})
    };
    let ours = "clustermesh.hawser.dev";
    let cluster_ip = || json!({"type": "ClusterIP", "ports": [{"port": 80}]});
    let table = [
        (
            service("mcs-a", ours, json!({"type": "NodePort", "ports": [{"port": 80}]})),
            "are of type ClusterIP",
        ),
        (
            service("mcs-a", ours, json!({"type": "ExternalName", "externalName": "x.example"})),
            "are of type ClusterIP",
        ),
        (
            service(
                "mcs-a",
                ours,
                json!({"type": "ClusterIP", "externalIPs": ["192.0.2.7"], "ports": [{"port": 80}]}),
            ),
            "without external addresses",
        ),
        (service("mcs-a", "somebody", cluster_ip()), "only what bears its label"),
        (service("a", ours, cluster_ip()), "derived Services (mcs-...) alone"),
        (service("mcs-a", ours, cluster_ip()), ""),
        (slice("a", ours), "slices of derived Services"),
        (slice("mcs-a", "somebody"), "only what bears its label"),
        (slice("mcs-a", ours), ""),
    ];
    for (object, because) in table {
        let resource = match object["kind"].as_str() {
            Some("Service") => ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
            _ => ApiResource::erase::<k8s_openapi::api::discovery::v1::EndpointSlice>(&()),
        };
        let api =
            |client: &Client| Api::<DynamicObject>::namespaced_with(client.clone(), "default", &resource);
        let wanted: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let said = refusal(api(&clustermesh).create(&PostParams::default(), &wanted).await.map(drop));
        match because {
            "" => assert_eq!(said, None, "{object}"),
            // Others are not asked: what is refused to clustermesh is an administrator's to write.
            _ => {
                assert!(said.as_ref().is_some_and(|(_, text)| text.contains(because)), "{object}: {said:?}");
                api(&admin).create(&PostParams::default(), &wanted).await.unwrap();
                let name = wanted.metadata.name.as_deref().unwrap();
                api(&admin).delete(name, &DeleteParams::default()).await.unwrap();
            }
        }
    }
}

/// Where the leader is found, and nothing else in that name: whoever writes slices of any Service draws its traffic.
#[tokio::test]
async fn clustermesh_says_where_it_leads_and_writes_no_other_slice_of_that_kind() {
    let server = cluster(&[TOO_MUCH, CLUSTERMESH]).await;
    let client = client_of(&server, &User::service_account("hawser-system", "clustermesh")).await;
    let (leader, imported) = ("leader.clustermesh.hawser.dev", "clustermesh.hawser.dev");
    let label = "only what bears its label";
    for (namespace, name, service, managed_by, because) in [
        ("hawser-system", "clustermesh-ipv4", "clustermesh", leader, ""),
        ("hawser-system", "clustermesh-dns-ipv6", "clustermesh-dns", leader, ""),
        ("hawser-system", "clustermesh-ipv6", "kubernetes", leader, "and its own alone"),
        ("hawser-system", "clustermesh-ipv6", "clustermesh", imported, label),
        ("hawser-system", "clustermesh-other", "clustermesh", leader, label),
        ("default", "clustermesh-ipv4", "clustermesh", leader, label),
        ("default", "clustermesh-ipv4", "clustermesh", imported, "and its own alone"),
    ] {
        let api: Api<k8s_openapi::api::discovery::v1::EndpointSlice> =
            Api::namespaced(client.clone(), namespace);
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.1.2.3"]}],
            "metadata": {"name": name, "labels": {
                "endpointslice.kubernetes.io/managed-by": managed_by, "kubernetes.io/service-name": service}}});
        let written = api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&slice)).await;
        let said = refusal(written.map(drop));
        match because {
            "" => assert_eq!(said, None, "{slice}"),
            _ => assert!(said.as_ref().is_some_and(|(_, text)| text.contains(because)), "{slice}: {said:?}"),
        }
    }
}
