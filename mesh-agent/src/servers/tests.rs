use super::*;
use serde_json::json;

fn slice(value: serde_json::Value) -> EndpointSlice {
    serde_json::from_value(value).expect("a slice")
}

fn texts(slices: &[EndpointSlice]) -> Vec<String> {
    servers_in(slices, "https").iter().map(ToString::to_string).collect()
}

#[test]
fn servers_are_what_is_ready_by_the_port_https() {
    let of = |ports, endpoints| slice(json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}));
    let https = json!([{"name": "metrics", "port": 9}, {"name": "https", "port": 6443}]);
    let endpoints = json!([{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
        {"addresses": ["192.0.2.3"], "conditions": {"ready": true}}, {"addresses": ["nobody"]}]);
    assert_eq!(texts(&[of(https.clone(), endpoints.clone())]), ["192.0.2.1:6443", "192.0.2.3:6443"]);
    let only = json!([{"port": 443}]);
    let six =
        slice(json!({"addressType": "IPv6", "ports": only, "endpoints": [{"addresses": ["2001:db8::1"]}]}));
    assert_eq!(texts(&[of(https, endpoints.clone()), six]).len(), 3);
    for odd in [
        json!([]),
        json!(null),
        json!([{"port": 0}]),
        json!([{"port": 70000}]),
        json!([{"port": 1}, {"port": 2}]),
    ] {
        assert!(texts(&[of(odd.clone(), endpoints.clone())]).is_empty(), "{odd}");
    }
}

#[tokio::test]
async fn what_the_api_named_last_is_there_after_a_restart_and_nobody_can_make_it_empty() {
    let folder = tempfile::tempdir().expect("a directory");
    let load = || Known::load(folder.path()).servers().map(|server| server.to_string()).collect::<Vec<_>>();
    assert!(load().is_empty());
    for (told, kept) in
        [("192.0.2.1:6443", "192.0.2.1:6443"), ("", "192.0.2.1:6443"), ("192.0.2.7:1", "192.0.2.7:1")]
    {
        let servers = told.parse().ok().into_iter().collect();
        let (tell, told) = watch::channel(servers);
        drop(tell);
        keep(Known::load(folder.path()), told).await;
        assert_eq!(load(), [kept]);
    }
}

/// A client of a server on loopback that answers every request with this word, and the task that serves.
async fn server(word: &'static str) -> (Client, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let app = axum::Router::new().fallback(move || async move { word });
    let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
    let url = format!("http://{address}").parse().expect("a URL");
    let mut config = kube::Config::new(url);
    config.default_retry = false;
    (connect(config).expect("a client"), task)
}

#[tokio::test]
async fn who_loses_his_server_goes_on_by_the_next_and_stays_there() {
    let (a, task_a) = server("a").await;
    let (b, _task_b) = server("b").await;
    let client = client(vec![("a".to_owned(), a), ("b".to_owned(), b)]).expect("there are servers");
    let ask = || async {
        let request = Request::get("/").body(Vec::new()).expect("a request");
        client.request_text(request).await
    };
    assert_eq!(ask().await.expect("an answer"), "a");
    assert_eq!(ask().await.expect("an answer"), "a");
    task_a.abort();
    assert!(task_a.await.is_err());
    // Those on open connections may still be answered; whoever is not is sent to the other one with his next try.
    let mut answers = Vec::new();
    while answers.last().is_none_or(|answer| answer != "b") {
        assert!(answers.len() < 20, "{answers:?}");
        answers.push(ask().await.unwrap_or_else(|error| error.to_string()));
    }
    assert!(answers.len() <= 3, "{answers:?}");
    assert_eq!(ask().await.expect("an answer"), "b");
}
