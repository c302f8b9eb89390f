//! kube's clients as the agent uses them.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event as CoreEvent, Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{reflector, watcher};
use kube::{Client, Discovery, ResourceExt as _};
use serde_json::json;

use crate::support::*;

async fn watched(config: watcher::Config) {
    let server = server().await;
    let client = client(&server).await;
    let nodes: Api<Node> = Api::all(client);
    nodes.create(&PostParams::default(), &node("n1")).await.unwrap();
    let mut events = Box::pin(watcher(nodes.clone(), config));
    assert_eq!(until(&mut events, "init-done").await, ["init", "init-apply n1", "init-done"]);
    nodes.create(&PostParams::default(), &node("n2")).await.unwrap();
    assert_eq!(until(&mut events, "apply n2").await, ["apply n2"]);
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    assert_eq!(until(&mut events, "apply n2").await, ["apply n2"]);
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    assert_eq!(until(&mut events, "delete n1").await, ["delete n1"]);
    server.stop().await;
}

#[tokio::test]
async fn watcher_lists_then_watches() {
    watched(watcher::Config::default()).await;
}

#[tokio::test]
async fn watcher_with_streaming_lists() {
    watched(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn watcher_with_any_semantic() {
    watched(watcher::Config::default().any_semantic()).await;
}

#[tokio::test]
async fn metadata_watcher_sees_metadata_alone() {
    let server = server().await;
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(client(&server).await);
    server.store().create(&pod("p1", "n1")).unwrap();
    let mut events = Box::pin(watcher(pods, watcher::Config::default().fields("spec.nodeName=n1")));
    until(&mut events, "init-done").await;
    server.store().create(&pod("p2", "n2")).unwrap();
    server.store().create(&pod("p3", "n1")).unwrap();
    let watcher::Event::Apply(seen) = next_event(&mut events).await else { panic!() };
    assert_eq!(seen.name_any(), "p3");
    assert_eq!(seen.labels()["app"], "p3");
}

#[tokio::test]
async fn reflector_store_holds_what_the_server_holds() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    for n in 0..30 {
        server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    let (store, writer) = reflector::store();
    let mut stream = Box::pin(reflector(writer, watcher(nodes, watcher::Config::default().page_size(7))));
    until(&mut stream, "init-done").await;
    assert_eq!(store.len(), 30);
    assert!(server.faults().requests(kubeapi::Verb::List, "nodes") >= 5, "the list came in pages");
    for n in 0..15 {
        server.store().delete("nodes", None, &format!("n{n}")).unwrap();
    }
    until(&mut stream, "delete n14").await;
    assert_eq!(store.len(), 15);
}

#[tokio::test]
async fn lists_are_consistent_pages_with_selectors() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    for n in 0..5 {
        server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    let first = nodes.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    server.store().delete("nodes", None, "n4").unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    let second = nodes.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap();
    let names: Vec<_> = second.items.iter().map(|n| n.name_any()).collect();
    assert_eq!(names, ["n2", "n3", "n4"], "the second page shows the version of the first");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let by_field = nodes.list(&ListParams::default().fields("metadata.name=n2")).await.unwrap();
    assert_eq!(by_field.items.len(), 1);
    let by_label = nodes.list(&ListParams::default().labels("zone in (a,b),!gone")).await.unwrap();
    assert_eq!(by_label.items.len(), 4);
    let error = nodes.list(&ListParams::default().fields("spec.nonsense=1")).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 400), "{error}");
}

#[tokio::test]
async fn two_candidates_race_for_a_lease_and_one_loses_with_409() {
    let server = server().await;
    let leases: Api<Lease> = Api::namespaced(client(&server).await, "default");
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"name": "leader"}, "spec": {"holderIdentity": "a"}}))
            .unwrap();
    let created = leases.create(&PostParams::default(), &lease).await.unwrap();
    let again = leases.create(&PostParams::default(), &lease).await.unwrap_err();
    assert!(matches!(again, kube::Error::Api(ref s) if s.is_already_exists()), "{again}");
    let claim = |holder: &str| {
        let mut lease = created.clone();
        lease.spec.as_mut().unwrap().holder_identity = Some(holder.into());
        lease
    };
    let (one, two) = (claim("b"), claim("c"));
    let params = PostParams::default();
    let (one, two) =
        tokio::join!(leases.replace("leader", &params, &one), leases.replace("leader", &params, &two));
    let failures: Vec<_> = [one, two].into_iter().filter_map(Result::err).collect();
    assert_eq!(failures.len(), 1);
    assert!(matches!(&failures[0], kube::Error::Api(s) if s.is_conflict()));
    let mut blind = claim("d");
    blind.metadata.resource_version = None;
    let error = leases.replace("leader", &params, &blind).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 422), "{error}");
}

#[tokio::test]
async fn recorded_events_are_seen_in_both_groups() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&node("n1")).unwrap();
    let recorder =
        Recorder::new(client.clone(), Reporter { controller: "mesh-agent".into(), instance: None });
    let event = Event {
        type_: EventType::Warning,
        reason: "KeyMissing".into(),
        note: Some("no key".into()),
        action: "Plan".into(),
        secondary: None,
    };
    let about = kube::Resource::object_ref(&node("n1"), &());
    recorder.publish(&event, &about).await.unwrap();
    recorder.publish(&event, &about).await.unwrap();
    let core: Api<CoreEvent> = Api::namespaced(client, "default");
    let found = core.list(&ListParams::default().fields("involvedObject.name=n1")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].message.as_deref(), Some("no key"));
    assert_eq!(found.items[0].series.as_ref().unwrap().count, Some(2));
}

#[tokio::test]
async fn discovery_finds_resources_both_ways_and_custom_ones_at_once() {
    let server = server().await;
    let client = client(&server).await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "33");
    server.store().create(&crd()).unwrap();
    let classic = Discovery::new(client.clone()).run().await.unwrap();
    let aggregated = Discovery::new(client.clone()).run_aggregated().await.unwrap();
    for discovery in [classic, aggregated] {
        let group = discovery.get("hawser.dev").unwrap();
        let (resource, capabilities) = group.recommended_kind("ClusterPeer").unwrap();
        assert_eq!(resource.plural, "clusterpeers");
        assert!(capabilities.supports_operation("watch"));
        let core = discovery.groups().find(|g| g.name().is_empty()).unwrap();
        assert!(core.recommended_kind("Node").is_some());
    }
}

pub(crate) fn crd() -> serde_json::Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusterpeers.hawser.dev"},
        "spec": {"group": "hawser.dev", "scope": "Cluster",
            "names": {"plural": "clusterpeers", "kind": "ClusterPeer", "shortNames": ["cpeer"]},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Endpoint", "type": "string", "jsonPath": ".spec.endpoint"}],
                "schema": {"openAPIV3Schema": {"type": "object", "description": "A peer.", "properties": {
                    "spec": {"type": "object", "required": ["endpoint"], "properties": {
                        "endpoint": {"type": "string", "description": "Where the peer listens."},
                        "port": {"type": "integer", "maximum": 65535},
                        "prefixes": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}

#[tokio::test]
async fn custom_resources_are_served_checked_and_go_with_their_definition() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&crd()).unwrap();
    let resource = kube::api::ApiResource {
        group: "hawser.dev".into(),
        version: "v1alpha1".into(),
        api_version: "hawser.dev/v1alpha1".into(),
        kind: "ClusterPeer".into(),
        plural: "clusterpeers".into(),
    };
    let peers: Api<kube::api::DynamicObject> = Api::all_with(client, &resource);
    let peer = kube::api::DynamicObject::new("east", &resource)
        .data(json!({"spec": {"endpoint": "e:1", "port": 70000}, "status": {"ready": true}}));
    let error = peers.create(&PostParams::default(), &peer).await.unwrap_err();
    assert!(error.to_string().contains("spec.port"), "{error}");
    let peer = kube::api::DynamicObject::new("east", &resource)
        .data(json!({"spec": {"endpoint": "e:1"}, "status": {"ready": true}}));
    let created = peers.create(&PostParams::default(), &peer).await.unwrap();
    assert!(created.data.get("status").is_none(), "status is not set at creation");
    assert_eq!(created.metadata.generation, Some(1));
    let status =
        json!({"status": {"ready": true}, "spec": {"endpoint": "evil"}, "metadata": {"labels": {"a": "b"}}});
    let after = peers.patch_status("east", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(after.data["spec"]["endpoint"], "e:1");
    assert_eq!(after.data["status"]["ready"], true);
    assert!(after.metadata.labels.is_none());
    assert_eq!(after.metadata.generation, Some(1));
    let spec = json!({"status": {"ready": false}, "spec": {"endpoint": "e:2"}});
    let after = peers.patch("east", &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    assert_eq!((after.metadata.generation, &after.data["status"]["ready"]), (Some(2), &json!(true)));
    server.store().delete("customresourcedefinitions", None, "clusterpeers.hawser.dev").unwrap();
    let error = peers.get("east").await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 404), "{error}");
}

/// (`apiVersion`, kind, plural, spec) of what policy is decided from.
const POLICIES: [(&str, &str, &str, &str); 2] = [
    (
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "networkpolicies",
        r#"{"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}"#,
    ),
    (
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
        r#"{"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"ofTheFuture": {}}]}]}"#,
    ),
];

#[tokio::test]
async fn policies_of_both_kinds_are_served_with_every_field_as_it_was_written() {
    let server = server().await;
    for (api_version, kind, plural, spec) in POLICIES {
        let (group, version) = api_version.split_once('/').unwrap();
        let resource = kube::api::ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: api_version.into(),
            kind: kind.into(),
            plural: plural.into(),
        };
        let client = client(&server).await;
        let namespaced = kind == "NetworkPolicy";
        let api: Api<kube::api::DynamicObject> = if namespaced {
            Api::namespaced_with(client, "default", &resource)
        } else {
            Api::all_with(client, &resource)
        };
        let spec: serde_json::Value = serde_json::from_str(spec).unwrap();
        let object = kube::api::DynamicObject::new("p", &resource).data(json!({"spec": spec}));
        let created = api.create(&PostParams::default(), &object).await.unwrap();
        assert_eq!(created.data["spec"], spec);
        assert_eq!(created.metadata.generation, Some(1));
        assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
        let ready = json!({"status": {"conditions": [{"type": "Applied", "status": "True"}]}});
        let patched = api.patch_status("p", &PatchParams::default(), &Patch::Merge(ready)).await;
        assert_eq!(patched.is_ok(), !namespaced, "only the cluster's kind has a status");
        api.delete("p", &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_namespace_keeps_the_label_that_names_it() {
    let server = server().await;
    let namespaces: Api<Namespace> = Api::all(client(&server).await);
    let object: Namespace = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
    let created = namespaces.create(&PostParams::default(), &object).await.unwrap();
    let own =
        |n: &Namespace| n.metadata.labels.clone().unwrap_or_default().remove("kubernetes.io/metadata.name");
    assert_eq!(own(&created).as_deref(), Some("x"));
    let without =
        Patch::Merge(json!({"metadata": {"labels": {"kubernetes.io/metadata.name": null, "a": "b"}}}));
    let after = namespaces.patch("x", &PatchParams::default(), &without).await.unwrap();
    assert_eq!(own(&after).as_deref(), Some("x"));
    assert_eq!(own(&namespaces.get("default").await.unwrap()).as_deref(), Some("default"));
}

#[tokio::test]
async fn deletes_keep_their_rules() {
    let server = server().await;
    let client = client(&server).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let made = pods.create(&PostParams::default(), &pod("p1", "n1")).await.unwrap();
    let wrong = DeleteParams::default()
        .preconditions(Preconditions { uid: Some("other".into()), resource_version: None });
    let error = pods.delete("p1", &wrong).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.is_conflict()), "{error}");
    let graceful = pods.delete("p1", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(graceful.metadata.deletion_timestamp.is_some());
    assert_eq!(graceful.metadata.uid, made.metadata.uid);
    pods.delete("p1", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(pods.get_opt("p1").await.unwrap().is_none());

    let mut held = node("n1");
    held.metadata.finalizers = Some(vec!["hawser.dev/hold".into()]);
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &held).await.unwrap();
    assert!(nodes.delete("n1", &DeleteParams::default()).await.unwrap().is_left());
    assert!(nodes.get_opt("n1").await.unwrap().is_some());
    let free = json!({"metadata": {"finalizers": null}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    assert!(nodes.get_opt("n1").await.unwrap().is_none());

    for n in 0..3 {
        server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    nodes
        .delete_collection(&DeleteParams::default(), &ListParams::default().fields("metadata.name!=n1"))
        .await
        .unwrap();
    assert_eq!(nodes.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_namespace_goes_when_its_last_pod_has_gone() {
    let server = server().await;
    let client: Client = client(&server).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    server.store().create(&object).unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "team");
    let mut running = pod("p1", "n1");
    running.metadata.namespace = None;
    pods.create(&PostParams::default(), &running).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    let error = pods.create(&PostParams::default(), &running).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 403), "{error}");
    assert!(pods.get("p1").await.unwrap().metadata.deletion_timestamp.is_some());
    pods.delete("p1", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(namespaces.get_opt("team").await.unwrap().is_none());
    let error = pods.create(&PostParams::default(), &running).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 404), "{error}");
}

#[tokio::test]
async fn fifty_watchers_all_see_one_event_and_the_server_stops_under_them() {
    let server = server().await;
    let client = client(&server).await;
    let nodes: Api<Node> = Api::all(client);
    let mut streams: Vec<_> =
        (0..50).map(|_| Box::pin(watcher(nodes.clone(), watcher::Config::default()))).collect();
    for stream in &mut streams {
        until(stream, "init-done").await;
    }
    server.store().create(&node("n1")).unwrap();
    for stream in &mut streams {
        assert_eq!(until(stream, "apply n1").await, ["apply n1"]);
    }
    drop(streams);
    within("the server's stop", server.stop()).await;
}
