use std::sync::atomic::{AtomicUsize, Ordering};

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

/// A client of a server on loopback, and the task that serves.
async fn serve(app: axum::Router) -> (Client, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
    let url = format!("http://{address}").parse().expect("a URL");
    let mut config = kube::Config::new(url);
    config.default_retry = false;
    (connect(config).expect("a client"), task)
}

/// The same, of one that answers every request with this word.
async fn server(word: &'static str) -> (Client, tokio::task::JoinHandle<()>) {
    serve(axum::Router::new().fallback(move || async move { word })).await
}

/// Servers called by their words. Each answers with its codes first, and after that with its word.
async fn servers<const N: usize>(all: [(&'static str, &'static [u16]); N]) -> Vec<(String, Client)> {
    let mut servers = Vec::new();
    for (word, codes) in all {
        let asked = Arc::new(AtomicUsize::new(0));
        let app = axum::Router::new().fallback(move || {
            let code = codes.get(asked.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(200);
            async move { (StatusCode::from_u16(code).expect("a code"), word) }
        });
        servers.push((word.to_owned(), serve(app).await.0));
    }
    servers
}

/// The word of who answers, or the code or error.
async fn ask(client: &Client) -> String {
    let request = Request::get("/").body(Vec::new()).expect("a request");
    match client.request_text(request).await {
        Ok(word) => word,
        Err(kube::Error::Api(status)) => status.code.to_string(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn who_loses_his_server_goes_on_by_the_next_and_stays_there() {
    let (a, task_a) = server("a").await;
    let (b, _task_b) = server("b").await;
    let client = client(vec![("a".to_owned(), a), ("b".to_owned(), b)]).expect("there are servers");
    assert_eq!(ask(&client).await, "a");
    assert_eq!(ask(&client).await, "a");
    task_a.abort();
    assert!(task_a.await.is_err());
    // Those on open connections may still be answered; whoever is not is sent to the other one with his next try.
    let mut answers = Vec::new();
    while answers.last().is_none_or(|answer| answer != "b") {
        assert!(answers.len() < 20, "{answers:?}");
        answers.push(ask(&client).await);
    }
    assert!(answers.len() <= 3, "{answers:?}");
    assert_eq!(ask(&client).await, "b");
}

#[tokio::test]
async fn a_server_that_fails_three_times_in_a_row_is_left_and_one_that_works_in_between_is_not() {
    let cases: [(&'static [u16], &str); 6] = [
        (&[503, 503, 503], "503 503 503 b b"),
        (&[500, 502, 504], "500 502 504 b b"),
        (&[503], "503 a a a a"),
        (&[503, 503, 200, 503, 503, 404, 503, 503], "503 503 a 503 503 404 503 503 a"),
        // Too many requests are no failure, and no work either.
        (&[429, 429, 429, 429], "429 429 429 429 a"),
        (&[503, 429, 503, 429, 503], "503 429 503 429 503 b"),
    ];
    for (codes, answers) in cases {
        let client = client(servers([("a", codes), ("b", &[])]).await).expect("there are servers");
        for answer in answers.split(' ') {
            assert_eq!(ask(&client).await, answer, "of {answers}");
        }
    }
}

#[tokio::test]
async fn where_all_fail_it_goes_round_and_of_one_alone_nobody_leaves() {
    let client_of_two =
        client(servers([("a", &[500; 6]), ("b", &[503; 3])]).await).expect("there are servers");
    for answer in "500 500 500 503 503 503 500 500 500 b b".split(' ') {
        assert_eq!(ask(&client_of_two).await, answer);
    }
    let client_of_one = client(servers([("a", &[503; 4])]).await).expect("there is a server");
    for answer in "503 503 503 503 a".split(' ') {
        assert_eq!(ask(&client_of_one).await, answer);
    }
}

#[tokio::test]
async fn a_server_that_is_waited_for_in_vain_three_times_is_left_but_not_one_that_had_no_time() {
    for (silence, is_left) in [(Duration::from_millis(50), true), (Duration::from_secs(3600), false)] {
        let (silent, _task) = serve(axum::Router::new().fallback(std::future::pending::<&'static str>)).await;
        let (b, _task_b) = server("b").await;
        let both = vec![("silent".to_owned(), silent), ("b".to_owned(), b)];
        let client = client_of(both, silence, End::Failed).expect("there are servers");
        for _ in 0..3 {
            let given_up = tokio::time::timeout(Duration::from_secs(1), ask(&client)).await;
            assert!(given_up.is_err(), "{given_up:?}");
        }
        let wait = Duration::from_secs(if is_left { 30 } else { 1 });
        let answer = tokio::time::timeout(wait, ask(&client)).await;
        assert_eq!(answer.ok().as_deref(), is_left.then_some("b"));
    }
}

#[test]
fn nodes_begin_with_different_servers_and_know_all_of_them_in_their_order() {
    let servers = ["a", "b", "c"].map(str::to_owned);
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    for number in 0..300 {
        let node: NodeName = format!("node-{number}").parse().expect("a name");
        let turn = in_turn(&node, &servers);
        assert!(["abc", "bca", "cab"].contains(&turn.concat().as_str()), "{turn:?}");
        assert_eq!(turn, in_turn(&node, &servers), "the same after a restart");
        assert_eq!(in_turn(&node, &servers[..1]), ["a"]);
        assert!(in_turn(&node, &[]).is_empty());
        *first.entry(turn[0].clone()).or_default() += 1;
    }
    assert!(first.len() == 3 && first.values().all(|nodes| *nodes > 60), "{first:?}");
}

#[test]
fn after_ten_minutes_by_another_the_first_server_is_asked_again() {
    let (mut course, start) = (Course::default(), Instant::now());
    let at = |minutes| start + Duration::from_mins(minutes);
    for (left, minute) in [(0, 1), (1, 2)] {
        assert_eq!(course.turn(3, at(minute)), left);
        assert!(course.hear(left, End::Unreachable, at(minute)));
    }
    assert_eq!(course.turn(3, at(10)), 2);
    assert!(!course.hear(2, End::Answered, at(10)));
    assert_eq!(course.turn(3, at(11)), 3, "the first of the next round");
    assert!(!course.hear(3, End::Answered, at(11)));
    assert_eq!(course.turn(3, at(99)), 3);
    assert!(course.hear(3, End::Unreachable, at(100)));
    assert_eq!(course.turn(3, at(100)), 4);
}
