//! Watches of the own API server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::peers::resource;
use clustermesh::daemon::watch_api::{Seen, watch};
use kube::api::DynamicObject;
use kube::{Api, Client};
use kubeapi::{Fault, Filter, Server, User, Verb};
use serde_json::json;
use tokio::task::JoinHandle;

use super::world::*;

/// Watches ClusterPeers, and notes how many there are each time that all are told.
fn watched(client: Client) -> (Arc<Mutex<Vec<usize>>>, JoinHandle<()>) {
    let told: Arc<Mutex<Vec<usize>>> = Arc::default();
    let noted = Arc::clone(&told);
    let task = tokio::spawn(async move {
        let (kind, metrics) = (resource(), Metrics::new());
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let note = move |seen: Seen<DynamicObject>| {
            if let Seen::All(all) = seen {
                noted.lock().unwrap().push(all.len());
            }
        };
        watch("cluster-peers", api, Some((&client, &kind)), &metrics, note).await;
    });
    (told, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_kind_is_not_installed_is_believed_when_two_sides_say_it() {
    let api = Server::builder().start().await.unwrap();
    let client = client(&api.kubeconfig(&User::admin())).await;
    let (told, task) = watched(client.clone());
    eventually("there are none", || *told.lock().unwrap() == [0]).await;
    task.abort();

    api.store().apply_manifests(CRD).unwrap();
    let spec = json!({"podCIDRs": ["10.2.0.0/16"], "addresses": ["127.0.0.1:1"], "trustBundle": "none"});
    api.store()
        .create(&json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer",
            "metadata": {"name": "west"}, "spec": spec}))
        .unwrap();
    let (told, task) = watched(client);
    eventually("there is one", || *told.lock().unwrap() == [1]).await;
    // The watch ends, and one server of several answers as if it knew nothing of the kind.
    let faults = api.faults();
    let before = faults.requests(Verb::Get, "");
    let status = Fault::Status { code: 404, retry_after: None };
    let fault = faults.inject(Filter::resource("clusterpeers"), status);
    faults.drop_connections();
    eventually("it is asked for again", || faults.hits(fault) > 0).await;
    eventually("so is the list of resources", || faults.requests(Verb::Get, "") > before).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*told.lock().unwrap(), [1], "what was known stays");
    faults.clear();
    eventually("it is listed again", || *told.lock().unwrap() == [1, 1]).await;
    task.abort();
}
