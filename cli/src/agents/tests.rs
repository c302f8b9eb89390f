use super::*;
use crate::audit::fixture::evidence;
use serde_json::json;

#[test]
fn an_agents_address_is_a_plain_url_with_a_port_and_may_name_its_node() {
    let good = |text: &str| text.parse::<AgentAddress>().unwrap();
    let named = good("node-1=http://192.0.2.1:51891");
    assert_eq!(
        (named.node.as_deref(), named.to_string().as_str()),
        (Some("node-1"), "http://192.0.2.1:51891")
    );
    assert_eq!(good("http://[fd00::1]:51891").to_string(), "http://[fd00::1]:51891");
    assert_eq!(good("http://192.0.2.1:51891/").node, None);
    for wrong in [
        "192.0.2.1:51891",
        "https://192.0.2.1:51891",
        "http://192.0.2.1",
        "http://192.0.2.1:51891/audit",
        "http://192.0.2.1:51891/?a=b",
        "Node_1=http://192.0.2.1:51891",
        "=http://192.0.2.1:51891",
        "",
    ] {
        let error = wrong.parse::<AgentAddress>().expect_err(wrong).to_string();
        assert!(error.contains("wanted [NODE=]http://ADDRESS:PORT"), "{error}");
    }
}

#[test]
fn the_way_through_the_api_server_names_namespace_scheme_pod_and_port() {
    assert_eq!(
        proxy_path("mesh-agent-x7k2p", 51891, "/audit"),
        "/api/v1/namespaces/hawser-system/pods/http:mesh-agent-x7k2p:51891/proxy/audit"
    );
}

fn pod(name: &str, node: Option<&str>, phase: &str, leaving: bool) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
    });
    if leaving {
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-28T10:00:00Z");
    }
    serde_json::from_value(pod).unwrap()
}

#[test]
fn of_two_pods_on_a_node_the_one_that_stays_is_asked() {
    let check = |pods: &[Pod]| {
        let mut found = chosen(pods);
        let mut backwards = pods.to_vec();
        backwards.reverse();
        assert_eq!(chosen(&backwards).get("n").map(|p| p == "old"), found.get("n").map(|p| p == "old"));
        found.remove("n")
    };
    let (old, new) = (pod("old", Some("n"), "Running", true), pod("new", Some("n"), "Running", false));
    assert_eq!(check(&[old.clone(), new]).as_deref(), Some("new"));
    assert_eq!(check(&[old, pod("unscheduled", None, "Pending", false)]).as_deref(), Some("old"));
    assert_eq!(check(&[pod("p", Some("n"), "Pending", false)]).as_deref(), Some("p"));
}

#[test]
fn evidence_of_another_version_is_named_before_its_shape_is_looked_at() {
    let text = serde_json::to_vec(&evidence(1, 2)).unwrap();
    assert_eq!(*parse(&text).unwrap(), evidence(1, 2));
    assert!(parse(b"{\"v\":2}").unwrap_err().contains("version 2"));
    assert!(parse(b"{\"v\":1}").unwrap_err().contains("no evidence"));
    assert!(parse(b"<html>").unwrap_err().contains("is it the metrics address"));
}

fn targets(nodes: &[&str]) -> Targets {
    let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
    Targets { nodes: Some(nodes), nobody: "nobody".to_owned(), ..Targets::default() }
}

/// When everybody answers here.
const AT: u64 = 1_795_860_003;

fn reply(answer: Answer) -> Reply {
    Reply { answer, at: AT }
}

fn answer(node: u8) -> Reply {
    reply(Ok(Box::new(evidence(node, 2))))
}

fn silent(why: &str) -> Reply {
    reply(Err(why.to_owned()))
}

#[test]
fn every_node_of_the_api_has_an_answer_or_a_reason() {
    let named = vec![("node-1".to_owned(), answer(1)), ("node-3".to_owned(), silent("refused"))];
    let Heard { nodes, strangers } =
        assign(&targets(&["node-1", "node-2", "node-3", "node-4"]), named, vec![("x".into(), answer(2))]);
    let words: Vec<(&str, Result<&str, &str>)> = nodes
        .iter()
        .map(|(name, reply)| {
            let answer = reply.answer.as_ref();
            (name.as_str(), answer.map(|e| e.node.as_str()).map_err(String::as_str))
        })
        .collect();
    assert_eq!(
        words,
        [
            ("node-1", Ok("node-1")),
            ("node-2", Ok("node-2")),
            ("node-3", Err("refused")),
            ("node-4", Err("nobody"))
        ]
    );
    assert!(strangers.is_empty());
    // Each is of the moment in which it came, whoever it was asked for.
    assert_eq!(["node-1", "node-2", "node-3"].map(|name| nodes[name].at), [AT; 3]);
}

#[test]
fn the_agent_of_a_node_that_is_not_ready_is_not_waited_for_as_long() {
    let targets = Targets { not_ready: BTreeSet::from(["node-2".to_owned()]), ..Targets::default() };
    let seconds = |node, deadline| targets.patience(node, Duration::from_secs(deadline)).as_secs();
    assert_eq!((seconds("node-1", 20), seconds("node-2", 20), seconds("node-2", 2)), (20, 5, 2));
}

#[test]
fn who_answers_under_another_name_is_no_evidence_and_is_named() {
    let Heard { nodes, strangers } =
        assign(&targets(&["node-1"]), vec![("node-1".into(), answer(2))], vec![("x".into(), answer(2))]);
    assert!(nodes["node-1"].answer.as_ref().unwrap_err().contains("answers as node node-2"));
    assert!(strangers[0].contains("node-2, which the API does not list"), "{strangers:?}");
    // Two that say they are one.
    let twice = vec![("x".into(), answer(1)), ("y".into(), answer(1))];
    let Heard { nodes, strangers } = assign(&targets(&["node-1"]), Vec::new(), twice);
    assert!(nodes["node-1"].answer.is_ok() && strangers[0].contains("has answered already"), "{strangers:?}");
    let Heard { strangers, .. } = assign(&targets(&["node-1"]), Vec::new(), vec![("x".into(), silent("no"))]);
    assert!(strangers[0].contains("silent: no"), "{strangers:?}");
}

#[test]
fn without_the_api_those_who_answer_are_the_nodes() {
    let Heard { nodes, strangers } =
        assign(&Targets::default(), vec![("node-9".into(), silent("away"))], vec![("x".into(), answer(1))]);
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["node-1", "node-9"]);
    assert!(strangers.is_empty());
    // A list that was read and is empty is another thing: nobody who answers is of that cluster.
    let Heard { nodes, strangers } = assign(&targets(&[]), Vec::new(), vec![("x".into(), answer(1))]);
    assert!(nodes.is_empty() && strangers.len() == 1, "{strangers:?}");
}

#[test]
fn an_answer_with_a_number_that_no_report_can_hold_costs_its_agent_alone() {
    let mut whole = serde_json::to_value(evidence(1, 2)).unwrap();
    assert!(parse(whole.to_string().as_bytes()).is_ok());
    for number in [u64::MAX, 1 << 53] {
        whole["pending"] = number.into();
        let why = parse(whole.to_string().as_bytes()).unwrap_err();
        assert!(why.contains(&number.to_string()), "{why}");
    }
}

/// What is made of an answer that is none.
async fn refusal(code: u16, body: &str) -> Refusal {
    let body = http_body_util::Full::new(bytes::Bytes::from(body.to_owned()));
    read(http::Response::builder().status(code).body(body).unwrap()).await.unwrap_err()
}

#[tokio::test]
async fn what_the_api_server_says_of_an_agent_is_told_from_what_the_agent_says() {
    let of_server = |code: u16, message: &str| {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code})
            .to_string()
    };
    // Who was not reached may be by a port-forward; who says no was asked.
    let away = refusal(503, &of_server(503, "error trying to reach service: connection refused")).await;
    assert!(away.unreached && away.why.contains("refused; metricsAddress of its agent"), "{away:?}");
    let starts = refusal(503, "mesh-agent is starting: nothing has been looked at yet\n").await;
    assert!(!starts.unreached && starts.why.contains("yet; its agent runs: ask again"), "{starts:?}");
    let gone = refusal(404, &of_server(404, "pods \"mesh-agent-x\" not found")).await;
    assert!(!gone.unreached && gone.why.contains("not found; its pod has gone"), "{gone:?}");
    let older = refusal(404, "").await;
    assert!(!older.unreached && older.why.contains("its agent is older"), "{older:?}");
    let forbidden = refusal(403, &of_server(403, "pods is forbidden")).await;
    assert!(!forbidden.unreached && forbidden.why.contains("pods/proxy must be allowed"), "{forbidden:?}");
    let between = refusal(504, "<html>").await;
    assert!(between.unreached && between.why.ends_with("<html>"), "{between:?}");
}
