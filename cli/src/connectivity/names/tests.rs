use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA};

use super::*;

#[test]
fn the_clusters_domain_is_what_its_search_list_has_behind_svc() {
    let of = |text: &str| parse(text).domain;
    let pod = "search web.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\noptions ndots:5\n";
    let resolver =
        Resolver { servers: vec!["10.96.0.10".parse().unwrap()], domain: Some("cluster.local".into()) };
    assert_eq!(parse(pod), resolver);
    assert_eq!(of("search svc.k8s.example.com."), Some("k8s.example.com".into()));
    for text in ["", "search example.org", "nameserver ::1", "search a.svc. svc.", "search", "nameserver x"] {
        assert_eq!(of(text), None, "{text}");
    }
}

/// Answers one name as `say` says until it is dropped.
fn server(say: impl Fn(RecordType) -> Option<Vec<IpAddr>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let query = asked.queries[0].clone();
            let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
            reply.add_query(query.clone());
            match say(query.query_type()) {
                None => reply.metadata.response_code = ResponseCode::NXDomain,
                Some(ips) => {
                    for ip in ips {
                        let data = match ip {
                            IpAddr::V4(ip) => RData::A(A(ip)),
                            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
                        };
                        reply.add_answer(Record::from_rdata(query.name().clone(), 5, data));
                    }
                }
            }
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    address
}

#[test]
fn a_name_has_to_stand_for_the_services_addresses_in_each_family() {
    let (v4, v6): (IpAddr, IpAddr) = ("10.96.0.4".parse().unwrap(), "fd00::4".parse().unwrap());
    let ask = |server: SocketAddr, ips: &[IpAddr]| {
        // One look each.
        resolve_at(&[server], "servers.n.svc.cluster.local.", &ips.iter().copied().collect(), Instant::now())
    };
    let right = server(move |kind| Some(vec![if kind == RecordType::A { v4 } else { v6 }]));
    assert_eq!(ask(right, &[v4, v6]), Ok(()));
    assert_eq!(ask(right, &[v4]), Ok(()));
    assert_eq!(ask(right, &["10.96.0.5".parse().unwrap()]), Err(Fault::NameWrong));
    assert_eq!(ask(server(|_| None), &[v4]), Err(Fault::NameUnknown));
    assert_eq!(ask(server(|_| Some(Vec::new())), &[v4]), Err(Fault::NameUnknown));
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(ask(silent.local_addr().unwrap(), &[v4]), Err(Fault::NamesSilent));
    // A second server helps where the first is silent.
    let both = [silent.local_addr().unwrap(), right];
    assert_eq!(
        resolve_at(&both, "servers.n.svc.cluster.local.", &BTreeSet::from([v4]), Instant::now()),
        Ok(())
    );
}
