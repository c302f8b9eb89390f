use expect_test::{Expect, expect};
use proto::flows::{Protocol, TcpFlags};

use super::*;

fn pod(name: &str, port: u16) -> Peer {
    let ip = "10.1.0.5".parse().expect("address");
    Peer {
        namespace: Some("shop".to_owned()),
        pod_name: Some(name.to_owned()),
        ..Peer::unknown(ip, Some(port))
    }
}

fn flow() -> Flow {
    Flow {
        time: "2026-11-23T10:00:00.5Z".parse().expect("time"),
        node_name: "node-a".to_owned(),
        verdict: Verdict::Forwarded,
        kind: Kind::New,
        drop_reason: None,
        traffic_direction: Direction::Egress,
        source: pod("web", 40_000),
        destination: pod("database-with-a-long-name-0", 5432),
        protocol: Protocol(6),
        service: None,
        tcp_flags: TcpFlags(2),
        is_reply: false,
        rule: None,
        interface: None,
        length: 60,
        epoch: 1,
    }
}

fn check(bodies: &[Body], colours: bool, expected: &Expect) {
    let rows: Vec<Row> = bodies.iter().filter_map(row).collect();
    let mut table = Table::new(colours);
    rows.iter().for_each(|row| table.measure(row));
    let lines: Vec<String> = rows.iter().map(|row| table.line(row)).collect();
    expected.assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn all_that_a_flow_says_is_in_its_line() {
    let world = Peer { world: true, ..Peer::unknown("2001:db8::7".parse().expect("address"), Some(443)) };
    let node = Peer {
        node_name: Some("node-b".to_owned()),
        ..Peer::unknown("192.0.2.2".parse().expect("address"), None)
    };
    let unknown = Peer::unknown("10.1.9.9".parse().expect("address"), Some(22));
    let service = Service {
        ip: "10.96.0.7".parse().expect("address"),
        port: 5432,
        namespace: Some("shop".to_owned()),
        name: Some("db".to_owned()),
    };
    let nameless = Service { namespace: None, name: None, ip: "fd00::7".parse().expect("address"), port: 53 };
    let flows = [
        Flow { service: Some(service), ..flow() },
        Flow {
            verdict: Verdict::Dropped,
            kind: Kind::Drop,
            drop_reason: Some("policy-ingress".to_owned()),
            traffic_direction: Direction::Ingress,
            rule: Some("ClusterNetworkPolicy deny-world ingress[2]".to_owned()),
            source: world,
            ..flow()
        },
        Flow {
            verdict: Verdict::Revoked,
            kind: Kind::Revoked,
            drop_reason: Some("revoked".to_owned()),
            source: node,
            protocol: Protocol(1),
            tcp_flags: TcpFlags::NONE,
            is_reply: true,
            ..flow()
        },
        Flow {
            verdict: Verdict::Audited,
            kind: Kind::Changed,
            source: unknown,
            protocol: Protocol(17),
            tcp_flags: TcpFlags::NONE,
            service: Some(nameless),
            interface: Some("hw0123456789abc".to_owned()),
            ..flow()
        },
    ];
    let lost = |source, num_events_lost| {
        Body::Lost(Lost { time: flow().time, node_name: "node-b".to_owned(), source, num_events_lost })
    };
    let mut bodies = flows.map(|flow| Body::Flow(Box::new(flow))).to_vec();
    bodies.extend([lost(LostSource::Ring, 12), lost(LostSource::Reader, 1)]);
    check(
        &bodies,
        false,
        &expect![[r#"
        2026-11-23T10:00:00.500Z  node-a  forwarded  egress   tcp     shop/web:40000             -> shop/database-with-a-long-name-0:5432  for service shop/db:5432, SYN
        2026-11-23T10:00:00.500Z  node-a  dropped    ingress  tcp     [2001:db8::7]:443 (world)  -> shop/database-with-a-long-name-0:5432  policy-ingress, by ClusterNetworkPolicy deny-world ingress[2], SYN
        2026-11-23T10:00:00.500Z  node-a  revoked    egress   icmp    node/node-b                -> shop/database-with-a-long-name-0:5432  revoked, reply
        2026-11-23T10:00:00.500Z  node-a  audited    egress   udp     10.1.9.9:22 (unknown)      -> shop/database-with-a-long-name-0:5432  judged anew, for service [fd00::7]:53, on hw0123456789abc
        2026-11-23T10:00:00.500Z  node-b  lost                                                                                             12 events lost: the kernel's ring was full
        2026-11-23T10:00:00.500Z  node-b  lost                                                                                             1 event lost: this reader was too slow
    "#]],
    );
}

#[test]
fn colours_do_not_move_columns() {
    let dropped = Flow { verdict: Verdict::Dropped, node_name: "a".to_owned(), ..flow() };
    check(
        &[Body::Flow(Box::new(flow())), Body::Flow(Box::new(dropped))],
        true,
        &expect![[r#"
        2026-11-23T10:00:00.500Z  node-a  [32mforwarded[0m  egress   tcp     shop/web:40000  -> shop/database-with-a-long-name-0:5432  SYN
        2026-11-23T10:00:00.500Z  a       [31mdropped  [0m  egress   tcp     shop/web:40000  -> shop/database-with-a-long-name-0:5432  SYN
    "#]],
    );
}

#[test]
fn a_name_cannot_steer_the_terminal() {
    let evil = Flow { node_name: "\x1b[2Jnode".to_owned(), rule: Some("a\nb".to_owned()), ..flow() };
    let row = row(&Body::Flow(Box::new(evil))).expect("row");
    let line = Table::new(false).line(&row);
    assert!(!line.chars().any(char::is_control), "{line:?}");
}

#[test]
fn a_very_long_name_is_not_cut_and_pushes_only_its_own_line() {
    let long = Flow { source: pod(&"x".repeat(200), 1), ..flow() };
    let rows = [flow(), long].map(|flow| row(&Body::Flow(Box::new(flow))).expect("row"));
    let mut table = Table::new(false);
    rows.iter().for_each(|row| table.measure(row));
    assert!(table.line(&rows[1]).contains(&"x".repeat(200)));
    assert!(table.line(&rows[0]).len() < 200);
}
