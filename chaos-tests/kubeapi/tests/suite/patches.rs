//! Patches of all types through kube.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PartialObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn patches_of_all_types() {
    let server = server().await;
    let client = client(&server).await;
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &node("n1")).await.unwrap();
    let params = PatchParams::default();
    let merge = Patch::Merge(json!({"metadata": {"labels": {"zone": null, "rack": "1"}}}));
    let n = nodes.patch("n1", &params, &merge).await.unwrap();
    assert_eq!(n.metadata.labels, Some([("rack".into(), "1".into())].into()));
    let operations = json!([{"op": "test", "path": "/metadata/labels/rack", "value": "1"},
        {"op": "replace", "path": "/metadata/labels/rack", "value": "2"}]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(operations.clone()).unwrap());
    let n = nodes.patch("n1", &params, &patch).await.unwrap();
    assert_eq!(n.metadata.labels.unwrap()["rack"], "2");
    let failed = nodes.patch("n1", &params, &patch).await.unwrap_err();
    assert!(matches!(failed, kube::Error::Api(ref s) if s.code == 422), "{failed}");
    let strategic = Patch::Strategic(json!({"status": {"conditions": [
        {"type": "NetworkUnavailable", "status": "False"}], "addresses": [{"type": "Hostname", "address": "n1"}]}}));
    let n = nodes.patch_status("n1", &params, &strategic).await.unwrap();
    let status = n.status.unwrap();
    assert_eq!((status.conditions.unwrap().len(), status.addresses.unwrap().len()), (2, 2));
    let spec = Patch::Merge(json!({"spec": {"unschedulable": true}, "status": {"phase": "x"}}));
    let n = nodes.patch_status("n1", &params, &spec).await.unwrap();
    assert_eq!(n.spec.unwrap().unschedulable, None, "the status subresource leaves the spec");
    let n = nodes.patch("n1", &params, &spec).await.unwrap();
    assert_eq!(n.spec.unwrap().unschedulable, Some(true));
}

/// As the real server's strategy for the status of pods has it.
#[tokio::test]
async fn by_its_status_a_pods_annotations_are_written_and_its_spec_and_owners_are_not() {
    let server = server().await;
    let client = client(&server).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let made = pods.create(&PostParams::default(), &pod("p1", "n1")).await.unwrap();
    let params = PatchParams::default();
    let running = Patch::Merge(json!({"status": {"phase": "Running", "podIP": "10.0.0.2"}}));
    let before = pods.patch_status("p1", &params, &running).await.unwrap();

    let patch = Patch::Merge(json!({
        "metadata": {
            "annotations": {"hawser.dev/ips": "10.0.0.2"}, "finalizers": ["a.b/c"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}],
        },
        "spec": {"nodeName": "n2", "containers": []},
    }));
    // As agents ask: the answer is the whole Pod, of which they read the metadata.
    let by_status: Api<PartialObjectMeta<Pod>> = Api::namespaced(client, "default");
    let written = by_status.patch_status("p1", &params, &patch).await.unwrap();
    assert_eq!(written.metadata.uid, made.metadata.uid);
    let after = pods.get("p1").await.unwrap();
    assert_eq!(after.metadata.annotations.unwrap()["hawser.dev/ips"], "10.0.0.2");
    assert_eq!(after.metadata.finalizers, Some(vec!["a.b/c".to_owned()]));
    assert_eq!(after.metadata.owner_references, None);
    assert_eq!(after.metadata.generation, before.metadata.generation);
    assert_eq!((after.spec, after.status), (before.spec, before.status));

    // Refused as the same is by the Pod itself.
    let code = async |name: &str, metadata: Value| {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let answer = by_status.patch_status(name, &PatchParams::default(), &patch).await;
        let Err(kube::Error::Api(status)) = answer else { panic!("{answer:?}") };
        status.code
    };
    assert_eq!(code("p2", json!({})).await, 404);
    assert_eq!(code("p1", json!({"resourceVersion": "1"})).await, 409);
    assert_eq!(code("p1", json!({"uid": "another"})).await, 409);
}

#[tokio::test]
async fn a_dry_run_shows_and_does_nothing() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    let before = server.store().resource_version();
    let params = PostParams { dry_run: true, field_manager: None };
    nodes.create(&params, &node("n1")).await.unwrap();
    assert!(nodes.get_opt("n1").await.unwrap().is_none());
    assert_eq!(server.store().resource_version(), before);
}

fn owners(node: &Node) -> Vec<(String, String)> {
    let entries = node.metadata.managed_fields.iter().flatten();
    entries.map(|e| (e.manager.clone().unwrap(), e.operation.clone().unwrap())).collect()
}

#[tokio::test]
async fn server_side_apply_owns_conflicts_forces_and_takes_back() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    nodes
        .create(&PostParams { dry_run: false, field_manager: Some("kubelet".into()) }, &node("n1"))
        .await
        .unwrap();
    let annotate = |value: &str| {
        Patch::Apply(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"annotations": {"hawser.dev/wireguard": value}}}))
    };
    let agent = PatchParams::apply("mesh-agent");
    let n = nodes.patch("n1", &agent, &annotate("1")).await.unwrap();
    assert!(owners(&n).contains(&("mesh-agent".into(), "Apply".into())), "{:?}", owners(&n));
    assert!(owners(&n).contains(&("kubelet".into(), "Update".into())));
    let version = n.metadata.resource_version.clone();
    let n = nodes.patch("n1", &agent, &annotate("1")).await.unwrap();
    assert_eq!(n.metadata.resource_version, version, "applying the same again changes nothing");

    let intruder = PatchParams::apply("intruder");
    let error = nodes.patch("n1", &intruder, &annotate("2")).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let details: Value = serde_json::to_value(&status.details).unwrap();
    assert_eq!(details["causes"][0]["field"], ".metadata.annotations.hawser.dev/wireguard");
    nodes.patch("n1", &intruder.clone().force(), &annotate("2")).await.unwrap();
    let error = nodes.patch("n1", &agent, &annotate("1")).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.is_conflict()), "{error}");
    nodes.patch("n1", &agent.clone().force(), &annotate("1")).await.unwrap();

    let nothing = Patch::Apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {}}));
    let n = nodes.patch("n1", &agent, &nothing).await.unwrap();
    assert_eq!(n.metadata.annotations, None);
    assert_eq!(n.metadata.labels.unwrap()["zone"], "a");
    let unnamed = PatchParams::default();
    assert!(nodes.patch("n1", &unnamed, &nothing).await.is_err(), "apply needs a field manager");
}

#[tokio::test]
async fn server_side_apply_creates_and_applies_status_apart() {
    let server = server().await;
    let pods: Api<Pod> = Api::namespaced(client(&server).await, "default");
    let agent = PatchParams::apply("mesh-agent");
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p1"},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}});
    let made = pods.patch("p1", &agent, &Patch::Apply(config)).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let ips = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {},
        "status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}});
    let p = pods.patch_status("p1", &agent, &Patch::Apply(ips)).await.unwrap();
    assert_eq!(p.status.unwrap().pod_ips.unwrap().len(), 2);
    let one = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {},
        "status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}});
    let p = pods.patch_status("p1", &agent, &Patch::Apply(one)).await.unwrap();
    assert_eq!(p.status.unwrap().pod_ips.unwrap().len(), 1);
    assert_eq!(p.spec.unwrap().containers.len(), 1);
}
