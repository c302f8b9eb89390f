//! The watch protocol itself, line by line.

use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use kubeapi::{Patch, Server};
use serde_json::{Value, json};

use crate::support::*;

/// Lines of a watch at `path`.
pub(crate) async fn lines(client: &kube::Client, path: &str) -> impl AsyncBufRead + Unpin + use<> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    Box::pin(client.request_stream(request).await.unwrap())
}

/// The next line as JSON; `None` at the end of the stream.
pub(crate) async fn line(lines: &mut (impl AsyncBufRead + Unpin)) -> Option<Value> {
    within("the next line of the watch", async {
        let mut text = String::new();
        let read = lines.read_line(&mut text).await.unwrap();
        (read > 0).then(|| serde_json::from_str(&text).unwrap())
    })
    .await
}

fn brief(event: &Value) -> String {
    format!(
        "{} {}",
        event["type"].as_str().unwrap(),
        event["object"]["metadata"]["name"].as_str().unwrap_or("-")
    )
}

#[tokio::test]
async fn an_object_that_ceases_to_match_is_deleted_for_that_watch_and_added_again() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&node("n1")).unwrap();
    let mut watch = lines(&client, "/api/v1/nodes?watch=1&labelSelector=zone%3Da").await;
    assert_eq!(brief(&line(&mut watch).await.unwrap()), "ADDED n1");
    let zone = |z: &str| Patch::Merge(json!({"metadata": {"labels": {"zone": z}}}));
    let moved = server.store().patch("nodes", None, "n1", &zone("b")).unwrap();
    let event = line(&mut watch).await.unwrap();
    assert_eq!(brief(&event), "DELETED n1");
    assert_eq!(event["object"]["metadata"]["labels"]["zone"], "a", "the last state that matched");
    let version = |v: &Value| v["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&event["object"]), version(&moved), "with the version of the change");
    server.store().patch("nodes", None, "n1", &zone("c")).unwrap();
    server.store().patch("nodes", None, "n1", &zone("a")).unwrap();
    assert_eq!(brief(&line(&mut watch).await.unwrap()), "ADDED n1");
    server.store().delete("nodes", None, "n1").unwrap();
    assert_eq!(brief(&line(&mut watch).await.unwrap()), "DELETED n1");
}

#[tokio::test]
async fn a_watch_ends_at_its_limit_with_a_bookmark_of_the_present() {
    let server = server().await;
    let client = client(&server).await;
    let start = server.store().resource_version();
    let path =
        format!("/api/v1/nodes?watch=1&resourceVersion={start}&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut watch = lines(&client, &path).await;
    server
        .store()
        .create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}))
        .unwrap();
    let event = line(&mut watch).await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    let now = server.store().resource_version().to_string();
    assert_eq!(event["object"]["metadata"]["resourceVersion"], now, "an idle watch stays fresh");
    assert_eq!(line(&mut watch).await, None);
}

#[tokio::test]
async fn a_streaming_list_marks_its_end_and_needs_its_match() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&node("n1")).unwrap();
    let base = "/api/v1/nodes?watch=1&sendInitialEvents=true&allowWatchBookmarks=true";
    let mut watch = lines(&client, &format!("{base}&resourceVersionMatch=NotOlderThan")).await;
    assert_eq!(brief(&line(&mut watch).await.unwrap()), "ADDED n1");
    let end = line(&mut watch).await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let request = http::Request::get(base).body(Vec::new()).unwrap();
    assert!(client.request_stream(request).await.is_err());
}

#[tokio::test]
async fn bookmarks_come_while_nothing_happens() {
    let server = Server::builder().bookmark_interval(Duration::from_millis(50)).start().await.unwrap();
    let client = client(&server).await;
    let mut watch = lines(&client, "/api/v1/nodes?watch=1&allowWatchBookmarks=true").await;
    for _ in 0..3 {
        assert_eq!(line(&mut watch).await.unwrap()["type"], "BOOKMARK");
    }
    let mut silent = lines(&client, "/api/v1/nodes?watch=1&timeoutSeconds=1").await;
    assert_eq!(line(&mut silent).await, None, "only those who ask get bookmarks");
}

#[tokio::test]
async fn a_table_watch_sends_a_row_per_event() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&node("n1")).unwrap();
    let request = http::Request::get("/api/v1/nodes?watch=1")
        .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .body(Vec::new())
        .unwrap();
    let mut watch = Box::pin(client.request_stream(request).await.unwrap());
    let event = line(&mut watch).await.unwrap();
    assert_eq!(event["object"]["kind"], "Table");
    assert_eq!(event["object"]["rows"][0]["cells"][1], "Ready");
}

#[tokio::test]
async fn protobuf_first_falls_back_to_json_and_protobuf_alone_is_406() {
    let server = server().await;
    let client = client(&server).await;
    let get =
        |accept: &str| http::Request::get("/api/v1/nodes").header("Accept", accept).body(Vec::new()).unwrap();
    let both = get("application/vnd.kubernetes.protobuf,application/json");
    let list: Value = client.request(both).await.unwrap();
    assert_eq!(list["kind"], "NodeList");
    let error = client.request::<Value>(get("application/vnd.kubernetes.protobuf")).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(ref s) if s.code == 406), "{error}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_others_go_on() {
    let server = server().await;
    let client = client(&server).await;
    server.store().create(&node("n1")).unwrap();
    let start = server.store().resource_version();
    let path = format!("/api/v1/nodes?watch=1&resourceVersion={start}");
    let mut stuck = lines(&client, &path).await;
    // More than sockets, the queue and the ring hold together.
    let filler = "x".repeat(16 * 1024);
    for n in 0..6000 {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"n": format!("{n}{filler}")}}}));
        server.store().patch("nodes", None, "n1", &patch).unwrap();
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut last = Value::Null;
    while let Some(event) = line(&mut stuck).await {
        last = event;
    }
    assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(410)));
    let now = server.store().resource_version();
    let mut other = lines(&client, &format!("/api/v1/nodes?watch=1&resourceVersion={now}")).await;
    server.store().delete("nodes", None, "n1").unwrap();
    assert_eq!(brief(&line(&mut other).await.unwrap()), "DELETED n1");
}
