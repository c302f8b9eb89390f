//! What every test needs.

use std::future::Future;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::Event;
use kube::{Client, Config};
use kubeapi::{Server, User};
use serde_json::{Value, json};

/// Longer than anything takes on a loaded machine; a test that waits so long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn server() -> Server {
    Server::builder().start().await.unwrap()
}

pub(crate) async fn config(server: &Server, user: &User) -> Config {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(user)).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

pub(crate) async fn client_of(server: &Server, user: &User) -> Client {
    Client::try_from(config(server, user).await).unwrap()
}

pub(crate) async fn client(server: &Server) -> Client {
    client_of(server, &User::admin()).await
}

pub(crate) fn node(name: &str) -> Node {
    serde_json::from_value(node_json(name)).unwrap()
}

pub(crate) fn node_json(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}},
        "spec": {"podCIDRs": ["10.0.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://1",
                "kernelVersion": "6.1", "kubeProxyVersion": "", "kubeletVersion": "v1.33.0", "machineID": "m",
                "operatingSystem": "linux", "osImage": "Debian", "systemUUID": "s"}}})
}

pub(crate) fn pod(name: &str, node: &str) -> Pod {
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}}))
    .unwrap()
}

/// Waits for `future`, and panics with `what` when it takes too long.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// Polls until `probe` holds.
pub(crate) async fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    within(what, async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The next event of a watcher that is not an error.
pub(crate) async fn next_event<K, S>(stream: &mut S) -> Event<K>
where
    S: Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>> + Unpin,
{
    within("the next event of the watcher", async {
        loop {
            if let Ok(event) = stream.next().await.unwrap() {
                return event;
            }
        }
    })
    .await
}

/// `init`, `init-apply n1`, `init-done`, `apply n1`, `delete n1`.
pub(crate) fn describe<K: kube::ResourceExt>(event: &Event<K>) -> String {
    match event {
        Event::Init => "init".into(),
        Event::InitApply(o) => format!("init-apply {}", o.name_any()),
        Event::InitDone => "init-done".into(),
        Event::Apply(o) => format!("apply {}", o.name_any()),
        Event::Delete(o) => format!("delete {}", o.name_any()),
    }
}

/// Reads events until one is described as `last`; returns them all.
pub(crate) async fn until<K, S>(stream: &mut S, last: &str) -> Vec<String>
where
    K: kube::ResourceExt,
    S: Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>> + Unpin,
{
    let mut seen = Vec::new();
    loop {
        let event = describe(&next_event(stream).await);
        let done = event == last;
        seen.push(event);
        if done {
            return seen;
        }
    }
}
