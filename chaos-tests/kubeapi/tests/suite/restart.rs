//! Restarts with and without continuity.

use std::net::SocketAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kubeapi::{Server, User, Verb};
use serde_json::json;

use crate::support::*;

async fn start(dir: Option<&Path>, listen: Option<SocketAddr>) -> Server {
    let mut builder = Server::builder().state_dir(dir.map(Path::to_owned));
    if let Some(address) = listen {
        builder = builder.listen(address);
    }
    builder.start().await.unwrap()
}

#[tokio::test]
async fn a_restart_with_its_state_is_not_noticed_by_a_watcher() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(dir.path()), None).await;
    let address = server.addr();
    let client = client(&server).await;
    let nodes: Api<Node> = Api::all(client);
    server.store().create(&node("n1")).unwrap();
    let mut events = Box::pin(watcher(nodes.clone(), watcher::Config::default()).default_backoff());
    until(&mut events, "init-done").await;
    server.store().create(&node("n2")).unwrap();
    until(&mut events, "apply n2").await;
    server.stop().await;
    let server = start(Some(dir.path()), Some(address)).await;
    server.store().create(&node("n3")).unwrap();
    assert_eq!(
        until(&mut events, "apply n3").await,
        ["apply n3"],
        "token, CA, versions and events are the same"
    );
    assert_eq!(server.faults().requests(Verb::List, "nodes"), 0);
    assert_eq!(nodes.list(&ListParams::default()).await.unwrap().items.len(), 3);
}

#[tokio::test]
async fn a_line_that_a_crash_cut_off_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(dir.path()), None).await;
    server.store().create(&node("n1")).unwrap();
    server.stop().await;
    let log = dir.path().join("log.jsonl");
    let mut text = std::fs::read(&log).unwrap();
    text.extend_from_slice(b"{\"rv\":99,\"resour");
    std::fs::write(&log, text).unwrap();
    let server = start(Some(dir.path()), None).await;
    server.store().create(&node("n2")).unwrap();
    server.stop().await;
    let server = start(Some(dir.path()), None).await;
    assert_eq!(server.store().list::<Node>("nodes", None).unwrap().len(), 2);
}

#[tokio::test]
async fn custom_resources_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(dir.path()), None).await;
    server.store().create(&crate::clients::crd()).unwrap();
    let peer = json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "e"},
        "spec": {"endpoint": "e:1"}});
    server.store().create(&peer).unwrap();
    server.stop().await;
    let server = start(Some(dir.path()), None).await;
    assert_eq!(server.store().find("clusterpeers", None, "e").unwrap()["spec"]["endpoint"], "e:1");
}

#[tokio::test]
async fn versions_that_went_back_are_refused_as_too_large() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    server.store().create(&node("n1")).unwrap();
    let past = server.store().snapshot();
    for n in 2..5 {
        server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    let ahead = server.store().resource_version();
    server.store().restore(&past).unwrap();
    let list = nodes.list(&ListParams::default()).await.unwrap();
    assert_eq!(
        (list.items.len(), list.metadata.resource_version),
        (1, Some(past.resource_version().to_string()))
    );
    let request = http::Request::get(format!("/api/v1/nodes?watch=1&resourceVersion={ahead}"))
        .body(Vec::new())
        .unwrap();
    let mut config = config(&server, &User::admin()).await;
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let Err(error) = client.request_stream(request).await else {
        panic!("a version of the future was served")
    };
    assert!(error.to_string().contains("Too large resource version"), "{error}");
}

#[tokio::test]
async fn a_listener_bound_elsewhere_is_served_and_its_address_is_in_the_certificate() {
    let listener = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().listener(listener).start().await.unwrap();
    assert_eq!((server.addr(), server.url()), (address, format!("https://{address}")));
    let nodes: Api<Node> = Api::all(client(&server).await);
    nodes.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_ends_its_connections() {
    let server = server().await;
    let nodes: Api<Node> = Api::all(client(&server).await);
    nodes.list(&ListParams::default()).await.unwrap();
    let address = server.addr();
    drop(server);
    eventually("the listener's end", || std::net::TcpStream::connect(address).is_err()).await;
}
