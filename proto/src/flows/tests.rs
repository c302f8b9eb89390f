use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn peer(namespace: &str, pod: &str) -> Peer {
    Peer {
        namespace: Some(namespace.to_owned()),
        pod_name: Some(pod.to_owned()),
        ..Peer::unknown("10.1.0.5".parse().expect("address"), Some(80))
    }
}

fn flow(verdict: Verdict) -> Flow {
    Flow {
        time: "2026-11-23T10:00:00.5Z".parse().expect("time"),
        node_name: "node-a".to_owned(),
        verdict,
        kind: Kind::New,
        drop_reason: None,
        traffic_direction: Direction::Ingress,
        source: peer("shop", "web"),
        destination: peer("shop", "db"),
        protocol: Protocol(6),
        service: None,
        tcp_flags: TcpFlags(0x12),
        is_reply: false,
        rule: None,
        interface: None,
        length: 60,
        epoch: 7,
    }
}

#[test]
fn a_line_has_its_version_its_kind_and_nothing_that_is_absent() {
    let line = Line::new(Body::Flow(Box::new(flow(Verdict::Forwarded))));
    let text = serde_json::to_string(&line).expect("json");
    expect![[r#"{"v":1,"flow":{"time":"2026-11-23T10:00:00.500000000Z","node_name":"node-a","verdict":"forwarded","kind":"new","traffic_direction":"ingress","source":{"ip":"10.1.0.5","port":80,"namespace":"shop","pod_name":"web"},"destination":{"ip":"10.1.0.5","port":80,"namespace":"shop","pod_name":"db"},"protocol":"tcp","tcp_flags":["SYN","ACK"],"length":60,"epoch":7}}"#]]
        .assert_eq(&text);
    assert_eq!(serde_json::from_str::<Line>(&text).expect("read back"), line);
}

#[test]
fn a_loss_says_where_and_how_many() {
    let line = Line::new(Body::Lost(Lost {
        time: "2026-11-23T10:00:00Z".parse().expect("time"),
        node_name: "node-a".to_owned(),
        source: LostSource::Reader,
        num_events_lost: 3,
    }));
    let text = serde_json::to_string(&line).expect("json");
    expect![[r#"{"v":1,"lost":{"time":"2026-11-23T10:00:00.000000000Z","node_name":"node-a","source":"reader","num_events_lost":3}}"#]]
        .assert_eq(&text);
    assert_eq!(serde_json::from_str::<Line>(&text).expect("read back"), line);
}

#[test]
fn a_request_may_leave_out_everything_but_its_version() {
    let request: Request = serde_json::from_str(r#"{"v":1,"later":true}"#).expect("request");
    assert_eq!(request, Request { v: 1, follow: false, last: 0, filter: Filter::default() });
}

#[test]
fn a_filter_takes_either_end_and_what_did_not_pass() {
    let pod = |text: &str| text.parse::<PodName>().expect("pod");
    let cases: [(bool, &[&str], Verdict, bool); 9] = [
        (false, &[], Verdict::Forwarded, true),
        (true, &[], Verdict::Forwarded, false),
        (true, &[], Verdict::Audited, false),
        (true, &[], Verdict::Dropped, true),
        (true, &[], Verdict::Revoked, true),
        (false, &["shop/web"], Verdict::Forwarded, true),
        (false, &["other/web", "shop/db"], Verdict::Forwarded, true),
        (false, &["shop/cache"], Verdict::Forwarded, false),
        (true, &["shop/db"], Verdict::Forwarded, false),
    ];
    for (drop, pods, verdict, wanted) in cases {
        let filter = Filter { drop, pods: pods.iter().map(|text| pod(text)).collect() };
        assert_eq!(filter.matches(&flow(verdict)), wanted, "{filter:?} {verdict:?}");
    }
}

#[test]
fn a_pods_name_has_two_parts() {
    for bad in ["", "web", "/web", "shop/", "a/b/c"] {
        let error = bad.parse::<PodName>().expect_err(bad);
        assert!(error.to_string().contains("NAMESPACE/NAME"), "{error}");
    }
    assert_eq!("shop/web".parse::<PodName>().expect("pod").to_string(), "shop/web");
}

proptest! {
    #[test]
    fn every_protocol_and_every_set_of_tcp_flags_is_read_back(number: u8, flags: u8) {
        let protocol = Protocol(number);
        prop_assert_eq!(protocol.to_string().parse::<Protocol>(), Ok(protocol));
        let text = serde_json::to_string(&TcpFlags(flags)).expect("json");
        prop_assert_eq!(serde_json::from_str::<TcpFlags>(&text).expect("read back"), TcpFlags(flags));
    }
}
