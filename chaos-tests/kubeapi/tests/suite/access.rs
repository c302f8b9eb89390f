//! Who may do what.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kubeapi::{AdmissionRequest, Server, User};
use serde_json::{Value, json};

use crate::support::*;

fn code(error: &kube::Error) -> u16 {
    let kube::Error::Api(status) = error else { panic!("not an answer of the API: {error}") };
    status.code
}

#[tokio::test]
async fn no_token_and_an_unknown_or_revoked_one_are_401() {
    let server = server().await;
    let mut config = config(&server, &User::admin()).await;
    let token = server.tokens().issue(User::admin());
    config.auth_info.token = Some(token.clone().into());
    let good: Api<Node> = Api::all(Client::try_from(config.clone()).unwrap());
    good.list(&ListParams::default()).await.unwrap();
    assert_eq!(server.tokens().revoke(&token).unwrap().name, "kubernetes-admin");
    assert_eq!(code(&good.list(&ListParams::default()).await.unwrap_err()), 401);
    for token in [None, Some("unknown".to_owned())] {
        config.auth_info.token = token.map(Into::into);
        let nodes: Api<Node> = Api::all(Client::try_from(config.clone()).unwrap());
        assert_eq!(code(&nodes.list(&ListParams::default()).await.unwrap_err()), 401);
    }
}

#[tokio::test]
async fn a_token_for_an_audience_is_confirmed_for_that_one_and_opens_nothing_here() {
    let server = server().await;
    let agent = User::service_account("hawser-system", "mesh-agent");
    let token = server.tokens().issue_for("mesh", agent.clone());
    let api: Api<TokenReview> = Api::all(client(&server).await);
    let review = async |token: &str, audience: &str| {
        let spec = TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![audience.into()]) };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let status = api.create(&PostParams::default(), &asked).await.unwrap().status.unwrap();
        (status.authenticated.unwrap_or(false), status.audiences.unwrap_or_default())
    };
    assert_eq!(review(&token, "mesh").await, (true, vec!["mesh".to_owned()]));
    assert_eq!(review(&token, "other").await, (false, vec![]));
    assert_eq!(review("unknown", "mesh").await, (false, vec![]));
    let mut config = config(&server, &User::admin()).await;
    config.auth_info.token = Some(token.clone().into());
    let nodes: Api<Node> = Api::all(Client::try_from(config).unwrap());
    assert_eq!(code(&nodes.list(&ListParams::default()).await.unwrap_err()), 401);
    server.tokens().revoke(&token);
    assert_eq!(review(&token, "mesh").await, (false, vec![]));
}

#[tokio::test]
async fn another_ca_is_not_trusted() {
    let (server, other) = (server().await, server().await);
    let mut config = config(&server, &User::admin()).await;
    config.root_cert = crate::support::config(&other, &User::admin()).await.root_cert;
    let nodes: Api<Node> = Api::all(Client::try_from(config).unwrap());
    let error = nodes.list(&ListParams::default()).await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
}

#[tokio::test]
async fn a_rotated_certificate_is_served_to_new_connections() {
    let server = server().await;
    server.rotate_certificate().unwrap();
    let nodes: Api<Node> = Api::all(client(&server).await);
    nodes.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn an_agent_reads_nodes_and_patches_but_does_not_create_delete_or_read_secrets() {
    let server = server_with_rbac().await;
    server.store().create(&node("n1")).unwrap();
    let agent = client_of(&server, &User::agent_of_node("n1", "uid")).await;
    let nodes: Api<Node> = Api::all(agent.clone());
    let label = Patch::Merge(json!({"metadata": {"annotations": {"hawser.dev/wireguard": "{}"}}}));
    nodes.patch("n1", &PatchParams::default(), &label).await.unwrap();
    assert_eq!(code(&nodes.create(&PostParams::default(), &node("n2")).await.unwrap_err()), 403);
    let error = nodes.delete("n1", &kube::api::DeleteParams::default()).await.unwrap_err();
    assert_eq!(code(&error), 403);
    assert!(error.to_string().contains("cannot delete resource \"nodes\""), "{error}");
    let secrets: Api<Secret> = Api::namespaced(agent, "default");
    assert_eq!(code(&secrets.list(&ListParams::default()).await.unwrap_err()), 403);
}

async fn server_with_rbac() -> Server {
    let server = server().await;
    for manifests in
        [include_str!("../../../../deploy/00-namespace.yaml"), include_str!("../../../../deploy/rbac.yaml")]
    {
        server.store().apply_manifests(manifests).unwrap();
    }
    server
}

/// Verbs that the agent may use on each resource, and no others: (group, resource, namespace, name, verbs).
const OF_THE_AGENT: &[(&str, &str, &str, &str, &[&str])] = &[
    ("", "nodes", "", "", &["get", "list", "watch", "patch"]),
    ("", "nodes/status", "", "", &["patch"]),
    ("", "pods", "default", "", &["get", "list", "watch", "patch"]),
    ("", "pods/status", "default", "", &["patch"]),
    ("", "pods/resize", "default", "", &[]),
    ("", "namespaces", "", "", READ),
    ("", "services", "", "", READ),
    ("discovery.k8s.io", "endpointslices", "", "", READ),
    ("networking.k8s.io", "networkpolicies", "", "", READ),
    ("networking.k8s.io", "networkpolicies/status", "", "", &[]),
    ("networking.k8s.io", "servicecidrs", "", "", READ),
    ("policy.networking.k8s.io", "clusternetworkpolicies", "", "", READ),
    ("policy.networking.k8s.io", "clusternetworkpolicies/status", "", "", &["patch"]),
    ("events.k8s.io", "events", "default", "", &["create", "patch"]),
    ("", "events", "default", "", &[]),
    ("coordination.k8s.io", "leases", "hawser-system", "hawser-status", &["get", "create", "update"]),
    ("coordination.k8s.io", "leases", "hawser-system", "another", &["create"]),
    ("coordination.k8s.io", "leases", "kube-system", "hawser-status", &[]),
    ("", "secrets", "", "", &[]),
    ("", "configmaps", "hawser-system", "", &[]),
    ("", "serviceaccounts/token", "hawser-system", "mesh-agent", &[]),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "", "hawser-nodes", &[]),
];
const READ: &[&str] = &["get", "list", "watch"];
const ALL: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What `kubectl auth can-i` asks.
async fn may(client: &Client, verb: &str, of: (&str, &str, &str, &str)) -> bool {
    let (group, resource, namespace, name) = of;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource,
            "subresource": subresource, "namespace": namespace, "name": name}}});
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(&review).unwrap())
        .unwrap();
    let answer: Value = client.request(request).await.unwrap();
    answer["status"]["allowed"].as_bool().unwrap()
}

#[tokio::test]
async fn an_agent_may_by_the_manifests_what_it_does_and_nothing_else() {
    let server = server_with_rbac().await;
    let agent = client_of(&server, &User::agent_of_node("n1", "uid")).await;
    let other = client_of(&server, &User::service_account("default", "mesh-agent")).await;
    for (group, resource, namespace, name, allowed) in OF_THE_AGENT {
        for verb in ALL {
            let of = (*group, *resource, *namespace, *name);
            assert_eq!(may(&agent, verb, of).await, allowed.contains(&verb), "{verb} {of:?}");
            assert!(!may(&other, verb, of).await, "{verb} {of:?} of another namespace's account");
        }
    }
}

/// The same of the auditor, which reads.
const OF_THE_AUDITOR: &[(&str, &str, &str, &str, &[&str])] = &[
    ("", "nodes", "", "", &["list"]),
    ("", "namespaces", "", "", &["list"]),
    ("networking.k8s.io", "networkpolicies", "", "", &["list"]),
    ("", "pods", "hawser-system", "", &["list"]),
    ("", "pods/proxy", "hawser-system", "http:mesh-agent-x:51891", &["get"]),
    ("", "pods/proxy", "default", "web", &[]),
    ("", "pods/exec", "hawser-system", "mesh-agent-x", &[]),
    ("", "nodes/proxy", "", "n1", &[]),
    ("", "pods", "default", "", &[]),
    ("", "configmaps", "hawser-system", "hawser-audit-key", &["get"]),
    ("", "configmaps", "hawser-system", "another", &[]),
    ("", "secrets", "hawser-system", "hawser-audit-key", &["get"]),
    ("", "secrets", "hawser-system", "another", &[]),
    ("", "secrets", "hawser-system", "", &[]),
    ("", "serviceaccounts/token", "hawser-system", "mesh-agent", &[]),
];

#[tokio::test]
async fn an_auditor_may_by_the_manifests_read_what_it_reports_and_nothing_else() {
    let server = server_with_rbac().await;
    server.store().apply_manifests(include_str!("../../../../deploy/audit.yaml")).unwrap();
    for (kind, namespace, role) in [
        ("ClusterRole", Value::Null, "hawser-auditor"),
        ("Role", json!("hawser-system"), "hawser-auditor"),
        ("Role", json!("hawser-system"), "hawser-audit-signer"),
    ] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"),
            "metadata": {"name": role, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "hawser-auditor", "namespace": "hawser-system"}],
        });
        server.store().create(&binding).unwrap();
    }
    let auditor = client_of(&server, &User::service_account("hawser-system", "hawser-auditor")).await;
    for (group, resource, namespace, name, allowed) in OF_THE_AUDITOR {
        for verb in ALL {
            let of = (*group, *resource, *namespace, *name);
            assert_eq!(may(&auditor, verb, of).await, allowed.contains(&verb), "{verb} {of:?}");
        }
    }
}

#[tokio::test]
async fn a_kubelet_writes_its_own_node_alone() {
    let server = server().await;
    server.store().create(&node("n1")).unwrap();
    server.store().create(&node("n2")).unwrap();
    let nodes: Api<Node> = Api::all(client_of(&server, &User::kubelet("n1")).await);
    let patch = Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    nodes.patch_status("n1", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(code(&nodes.patch_status("n2", &PatchParams::default(), &patch).await.unwrap_err()), 403);
}

/// Claim and object decide, as in a `ValidatingAdmissionPolicy`.
fn own_node_only(request: &AdmissionRequest<'_>) -> Result<(), String> {
    let claim = request.user.and_then(|u| u.extra.get("authentication.kubernetes.io/node-name"));
    match claim.and_then(|c| c.first()) {
        Some(node) if request.new["metadata"]["name"] != node.as_str() => Err("not your node".into()),
        Some(_) | None => Ok(()),
    }
}

#[tokio::test]
async fn admission_denies_with_422_what_authorization_allowed() {
    let server = Server::builder().admission(Arc::new(own_node_only)).start().await.unwrap();
    for manifests in
        [include_str!("../../../../deploy/00-namespace.yaml"), include_str!("../../../../deploy/rbac.yaml")]
    {
        server.store().apply_manifests(manifests).unwrap();
    }
    server.store().create(&node("n1")).unwrap();
    server.store().create(&node("n2")).unwrap();
    let nodes: Api<Node> = Api::all(client_of(&server, &User::agent_of_node("n1", "uid")).await);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
    nodes.patch("n1", &PatchParams::default(), &patch).await.unwrap();
    let error = nodes.patch("n2", &PatchParams::default(), &patch).await.unwrap_err();
    assert_eq!(code(&error), 422);
    assert!(error.to_string().contains("not your node"), "{error}");
}

#[tokio::test]
async fn a_body_above_the_limit_is_413() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    let mut huge = node("n1");
    huge.metadata.annotations = Some([("a".to_owned(), "x".repeat(4 << 20))].into());
    assert_eq!(code(&nodes.create(&PostParams::default(), &huge).await.unwrap_err()), 413);
}

#[tokio::test]
async fn users_can_ask_what_they_may_do() {
    let server = server_with_rbac().await;
    let client = client_of(&server, &User::agent_of_node("n1", "uid")).await;
    for (verb, allowed) in [("patch", true), ("delete", false)] {
        assert_eq!(may(&client, verb, ("", "nodes", "", "")).await, allowed, "{verb}");
    }
}
