use crate::support::{LONG, endpoint, node, star, v4, v6};
use netlab::probe::{Canary, EchoServer, Stream, StreamOptions, Transport, ping, tcp, udp};
use netlab::{LabError, Namespace, eventually, veth_pair};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

fn couple() -> (Namespace, Namespace) {
    let (a, b) = (node("a"), node("b"));
    veth_pair(&a, &endpoint(1), &b, &endpoint(2)).unwrap();
    (a, b)
}

fn brief() -> Canary {
    Canary::new("canary").tries(1).deadline(Duration::from_millis(300))
}

#[test]
fn every_probe_gets_its_echo_by_both_families_and_from_a_chosen_source() {
    let (a, b) = couple();
    a.netlink(async |nl| nl.addr_add("eth0", "10.0.0.77/24".parse().unwrap()).await).unwrap();
    for (to, source) in [(v4(2), v4(1)), (v6(2), v6(1)), (v4(2), v4(77))] {
        let canary = Canary::new("canary-1234").source(source);
        let by_tcp = EchoServer::tcp(&b, SocketAddr::new(to, 0)).unwrap();
        let by_udp = EchoServer::udp(&b, SocketAddr::new(to, 0)).unwrap();
        tcp(&a, by_tcp.address(), &canary).unwrap();
        udp(&a, by_udp.address(), &canary).unwrap();
        ping(&a, to, &canary).unwrap();
    }
}

#[test]
fn a_probe_without_an_answer_says_who_asked_whom() {
    let (a, _b) = couple();
    let nobody: IpAddr = "10.0.0.99".parse().unwrap();
    for (name, result) in [
        ("TCP echo", tcp(&a, SocketAddr::new(nobody, 7), &brief().source(v4(1)))),
        ("UDP echo", udp(&a, SocketAddr::new(nobody, 7), &brief().source(v4(1)))),
        ("ICMP echo", ping(&a, nobody, &brief().source(v4(1)))),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(&error, LabError::Probe { probe, .. } if *probe == name), "{error}");
        assert!(error.to_string().contains("from 10.0.0.1 to 10.0.0.99"), "{error}");
    }
}

#[test]
fn a_refused_connection_is_reported_as_refused() {
    let (a, _b) = couple();
    let error = tcp(&a, SocketAddr::new(v4(2), 7), &brief()).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn an_address_that_is_not_ours_cannot_be_the_source() {
    let (a, _b) = couple();
    let error = ping(&a, v4(2), &brief().source("10.9.9.9".parse().unwrap())).unwrap_err();
    assert!(error.to_string().contains("ICMP echo from 10.9.9.9"), "{error}");
}

#[test]
fn streams_over_a_clean_link_lose_nothing() {
    let (a, b) = couple();
    for transport in [Transport::Tcp, Transport::Udp] {
        let options =
            StreamOptions::new(transport, SocketAddr::new(v4(2), 0)).interval(Duration::from_millis(2));
        let stream = Stream::start(&a, &b, &options).unwrap();
        eventually(LONG, "200 records", || match stream.report() {
            r if r.received >= 200 => Ok(()),
            r => Err(r),
        })
        .unwrap();
        let report = stream.stop(LONG);
        assert!(report.sent >= 200 && report.lost == 0 && report.error.is_none(), "{transport:?}: {report}");
        assert_eq!((report.reordered, report.duplicated), (0, 0), "{transport:?}: {report}");
    }
}

#[test]
fn a_cut_shows_as_loss_in_a_udp_stream_and_as_a_gap_in_a_tcp_stream() {
    let (bridge, nodes, ports) = star(2);
    let start = |transport| {
        let options =
            StreamOptions::new(transport, SocketAddr::new(v4(2), 0)).interval(Duration::from_millis(5));
        Stream::start(&nodes[0], &nodes[1], &options).unwrap()
    };
    let (by_tcp, by_udp) = (start(Transport::Tcp), start(Transport::Udp));
    let until = |what: &str, enough: &dyn Fn(&Stream) -> bool, stream: &Stream| {
        eventually(LONG, what, || if enough(stream) { Ok(()) } else { Err(stream.report()) }).unwrap();
    };
    until("records", &|s| s.report().received > 20, &by_udp);
    bridge.cut(ports[0], ports[1]).unwrap();
    until("60 lost records", &|s| s.report().lost > 60, &by_udp);
    bridge.heal_all().unwrap();
    let seen = by_udp.report().received;
    until("records after the cut", &|s| s.report().received > seen + 20, &by_udp);
    let report = by_udp.stop(Duration::from_millis(300));
    assert!(report.lost >= 60 && report.longest_gap >= Duration::from_millis(250), "UDP: {report}");
    let report = by_tcp.stop(LONG);
    assert!(report.lost == 0 && report.error.is_none(), "TCP: {report}");
    assert!(report.longest_gap >= Duration::from_millis(250), "TCP: {report}");
}

#[test]
fn a_stream_whose_server_is_not_reachable_does_not_start() {
    let (a, b) = couple();
    let options = StreamOptions::new(Transport::Tcp, SocketAddr::new(v4(2), 0));
    let wrong = StreamOptions { dial: Some(SocketAddr::new(v4(2), 9)), ..options };
    let error = Stream::start(&a, &b, &wrong).unwrap_err();
    assert!(error.to_string().contains("connect to"), "{error}");
}
