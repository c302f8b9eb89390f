//! Each fault, as kube's watcher and clients meet it.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kubeapi::{Fault, Filter, Server, Verb};
use serde_json::json;

use crate::support::*;
use crate::watches::{line, lines};

struct Bench {
    server: Server,
    nodes: Api<Node>,
}

async fn bench() -> Bench {
    let server = server().await;
    let nodes = Api::all(client(&server).await);
    server.store().create(&node("n1")).unwrap();
    Bench { server, nodes }
}

impl Bench {
    fn lists(&self) -> u64 {
        self.server.faults().requests(Verb::List, "nodes")
    }

    fn watches(&self) -> u64 {
        self.server.faults().requests(Verb::Watch, "nodes")
    }

    fn touch(&self, value: &str) {
        let patch = kubeapi::Patch::Merge(json!({"metadata": {"labels": {"touch": value}}}));
        self.server.store().patch("nodes", None, "n1", &patch).unwrap();
    }
}

#[tokio::test]
async fn a_watch_cut_in_the_middle_of_an_event_resumes_without_a_list() {
    let b = bench().await;
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()).default_backoff());
    until(&mut events, "init-done").await;
    let fault =
        b.server.faults().inject_times(1, Filter::on(Verb::Watch, "nodes"), Fault::DropMidEvent { after: 1 });
    b.touch("1");
    b.touch("2");
    b.server.store().create(&node("n2")).unwrap();
    assert_eq!(until(&mut events, "apply n2").await, ["apply n1", "apply n1", "apply n2"]);
    assert_eq!((b.server.faults().hits(fault), b.lists()), (1, 1));
}

#[tokio::test]
async fn kube_skips_a_truncated_line_in_silence_and_that_event_is_lost() {
    let b = bench().await;
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()).default_backoff());
    until(&mut events, "init-done").await;
    let filter = Filter::on(Verb::Watch, "nodes");
    let fault = b.server.faults().inject_times(1, filter, Fault::TruncateLine { after: 0 });
    b.server.store().create(&node("n2")).unwrap();
    b.server.store().create(&node("n3")).unwrap();
    assert_eq!(until(&mut events, "apply n3").await, ["apply n3"], "callers must guard against a lost n2");
    assert_eq!((b.server.faults().hits(fault), b.lists()), (1, 1));
}

#[tokio::test]
async fn stream_410_makes_the_watcher_list_again() {
    let b = bench().await;
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()).default_backoff());
    until(&mut events, "init-done").await;
    b.server.faults().inject_times(1, Filter::on(Verb::Watch, "nodes"), Fault::GoneStream);
    assert_eq!(until(&mut events, "init-done").await, ["init", "init-apply n1", "init-done"]);
    assert_eq!(b.lists(), 2);
}

#[tokio::test]
async fn http_410_leaves_the_watcher_retrying_the_same_version() {
    let b = bench().await;
    let fault = b.server.faults().inject(Filter::on(Verb::Watch, "nodes"), Fault::GoneHttp);
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()));
    for _ in 0..8 {
        let _ = within("an event or error", events.next()).await;
    }
    assert!(b.server.faults().hits(fault) >= 3);
    assert_eq!(b.lists(), 1, "kube does not list again: callers must guard against this form");
    b.server.faults().clear();
    b.server.store().create(&node("n2")).unwrap();
    assert_eq!(until(&mut events, "apply n2").await.last().unwrap(), "apply n2");
}

#[tokio::test]
async fn a_version_before_the_window_is_410_in_the_stream() {
    let server = Server::builder().event_window(2).start().await.unwrap();
    let client = client(&server).await;
    let start = server.store().resource_version();
    for n in 0..4 {
        server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    let mut watch = lines(&client, &format!("/api/v1/nodes?watch=1&resourceVersion={start}")).await;
    let event = line(&mut watch).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["reason"]), (&json!("ERROR"), &json!("Expired")));
    assert_eq!(line(&mut watch).await, None);
}

#[tokio::test]
async fn a_frozen_watch_is_silent_and_open_until_it_thaws() {
    let b = bench().await;
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()));
    until(&mut events, "init-done").await;
    // The watch is asked for at the next poll: an event shows that it runs.
    b.touch("running");
    until(&mut events, "apply n1").await;
    let fault = b.server.faults().inject(Filter::on(Verb::Watch, "nodes"), Fault::Freeze);
    b.touch("frozen");
    let silent = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    assert!(silent.is_err(), "{silent:?}");
    b.server.faults().remove(fault);
    assert_eq!(until(&mut events, "apply n1").await, ["apply n1"]);
    assert_eq!(b.watches(), 1);
}

#[tokio::test]
async fn a_frozen_list_is_never_answered_and_the_next_one_is() {
    let b = bench().await;
    let fault = b.server.faults().inject_times(1, Filter::on(Verb::List, "nodes"), Fault::Freeze);
    let params = ListParams::default();
    let mut frozen = Box::pin(b.nodes.list(&params));
    let asked = async {
        while b.server.faults().hits(fault) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    tokio::select! {
        answer = &mut frozen => panic!("answered: {answer:?}"),
        () = asked => {}
    }
    drop(frozen);
    assert_eq!(b.nodes.list(&params).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn old_events_are_replayed_with_their_old_versions() {
    let b = bench().await;
    b.touch("1");
    b.touch("2");
    b.server.faults().inject_times(1, Filter::on(Verb::Watch, "nodes"), Fault::Replay { events: 2 });
    let client = client(&b.server).await;
    let now = b.server.store().resource_version();
    let mut watch = lines(&client, &format!("/api/v1/nodes?watch=1&resourceVersion={now}")).await;
    for (touch, rv) in [("1", now - 1), ("2", now)] {
        let event = line(&mut watch).await.unwrap();
        assert_eq!(event["object"]["metadata"]["labels"]["touch"], touch);
        assert_eq!(event["object"]["metadata"]["resourceVersion"], rv.to_string());
    }
}

#[tokio::test]
async fn a_stale_list_and_get_show_the_past_with_its_version() {
    let b = bench().await;
    let past = b.server.store().snapshot();
    b.server.store().create(&node("n2")).unwrap();
    let fault = b.server.faults().inject(Filter::resource("nodes"), Fault::Stale(past.clone()));
    let list = b.nodes.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.iter().map(|n| n.name_any()).collect::<Vec<_>>(), ["n1"]);
    assert_eq!(list.metadata.resource_version, Some(past.resource_version().to_string()));
    assert!(b.nodes.get_opt("n2").await.unwrap().is_none());
    b.server.faults().remove(fault);
    assert!(b.nodes.get_opt("n2").await.unwrap().is_some());
}

#[tokio::test]
async fn injected_statuses_reach_the_client_and_retryable_ones_are_retried() {
    let b = bench().await;
    let on_get = || Filter::on(Verb::Get, "nodes");
    for code in [403, 500] {
        b.server.faults().inject_times(1, on_get(), Fault::Status { code, retry_after: None });
        let error = b.nodes.get("n1").await.unwrap_err();
        assert!(matches!(error, kube::Error::Api(ref s) if s.code == code), "{error}");
    }
    for code in [429, 503] {
        let retry_after = Some(Duration::from_secs(1));
        let fault = b.server.faults().inject_times(1, on_get(), Fault::Status { code, retry_after });
        b.nodes.get("n1").await.unwrap();
        assert_eq!(b.server.faults().hits(fault), 1, "kube tried again by itself");
    }
}

#[tokio::test]
async fn latency_and_filters_meet_only_what_they_say() {
    let b = bench().await;
    let slow = Duration::from_millis(400);
    let filter = Filter { name: Some("n1".into()), ..Filter::on(Verb::Get, "nodes") };
    b.server.faults().inject(filter, Fault::Latency(slow));
    let start = Instant::now();
    b.nodes.get("n1").await.unwrap();
    assert!(start.elapsed() >= slow);
    let someone = Filter::any().of_user("system:node:n9");
    b.server.faults().inject(someone, Fault::Status { code: 500, retry_after: None });
    b.nodes.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_done() {
    let b = bench().await;
    b.server.faults().inject_times(1, Filter::on(Verb::Patch, "nodes"), Fault::ResetAfterWrite);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"lost": "answer"}}}));
    let error = b.nodes.patch("n1", &PatchParams::default(), &patch).await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
    assert_eq!(b.nodes.get("n1").await.unwrap().labels()["lost"], "answer");
    b.server.faults().inject_times(1, Filter::on(Verb::Delete, "nodes"), Fault::Reset);
    assert!(b.nodes.delete("n1", &kube::api::DeleteParams::default()).await.is_err());
    assert!(b.nodes.get_opt("n1").await.unwrap().is_some(), "a reset before the write is not done");
}

#[tokio::test]
async fn refused_connections_end_the_open_ones_and_heal() {
    let b = bench().await;
    let mut events = Box::pin(watcher(b.nodes.clone(), watcher::Config::default()).default_backoff());
    until(&mut events, "init-done").await;
    b.server.faults().refuse_connections(true);
    assert!(b.nodes.get("n1").await.is_err());
    b.server.store().create(&node("n2")).unwrap();
    b.server.faults().refuse_connections(false);
    assert_eq!(until(&mut events, "apply n2").await.last().unwrap(), "apply n2");
}

#[tokio::test]
async fn no_bookmarks_means_none_but_the_end_of_initial_events() {
    let server = Server::builder().bookmark_interval(Duration::from_millis(20)).start().await.unwrap();
    let client = client(&server).await;
    server.faults().inject(Filter::on(Verb::Watch, "nodes"), Fault::NoBookmarks);
    let path = "/api/v1/nodes?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=1\
                &resourceVersionMatch=NotOlderThan";
    let mut watch = lines(&client, path).await;
    assert_eq!(line(&mut watch).await.unwrap()["type"], "BOOKMARK");
    assert_eq!(line(&mut watch).await, None);
}

#[tokio::test]
async fn an_expired_continue_token_makes_the_watcher_begin_its_list_again() {
    let b = bench().await;
    for n in 2..7 {
        b.server.store().create(&node(&format!("n{n}"))).unwrap();
    }
    let fault = b.server.faults().inject_times(1, Filter::on(Verb::List, "nodes"), Fault::ExpireContinue);
    let config = watcher::Config::default().page_size(2);
    let mut events = Box::pin(watcher(b.nodes.clone(), config).default_backoff());
    let seen = until(&mut events, "init-done").await;
    assert_eq!(b.server.faults().hits(fault), 1);
    let begun = seen.iter().rposition(|e| e == "init").unwrap();
    assert_eq!(seen.len() - begun, 8, "{seen:?}");
}
