use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use mesh_core::mcs::{
    Endpoint, Export, ExportedPort, ExportedService, Exports, Here, InternalTrafficPolicy, Own, PortNumber,
    ServiceKind, SessionAffinity, decide_one,
};
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;
use proptest::prelude::*;

use super::*;

/// Names with one headless service `etcd` in `db`, of `hosts` endpoints in cluster `east`.
fn too_early(hosts: u16) -> Names {
    let name = ObjectName { namespace: "db".into(), name: "etcd".into() };
    let peer = "peer".parse().ok();
    let service = ExportedService {
        kind: ServiceKind::ClusterIp,
        headless: true,
        ports: vec![ExportedPort { name: peer, protocol: Protocol::Tcp, app_protocol: None, port: 2380 }],
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: None,
        families: vec![Family::V4],
    };
    let endpoint = |host: u16| Endpoint {
        ready: true,
        serving: true,
        terminating: false,
        hostname: format!("etcd-{host}").parse().ok(),
        node: None,
        zone: None,
    };
    let members = (1..=hosts).map(|host| {
        let [high, low] = host.to_be_bytes();
        (IpAddr::from([10, 1, high, low]), endpoint(host))
    });
    let numbers =
        BTreeMap::from([("peer".parse().ok(), PortNumber { protocol: Protocol::Tcp, number: 12_380 })]);
    let export = Export {
        uid: "u".into(),
        generation: 1,
        created: 1,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        service: Some(service),
        endpoints: BTreeMap::from([(numbers, members.collect())]),
    };
    let own = Own {
        cluster: "west".parse().unwrap(),
        families: BTreeSet::from([Family::V4]),
        serving: true,
        silent: BTreeSet::new(),
    };
    let exports = Exports::from([("east".parse().unwrap(), export)]);
    let here = Here { own: &own, namespace: true, derived: None, untold: None };
    let names = Names::new();
    names.set(&name, &decide_one(&here, &name, &exports).0);
    names
}

/// The same, when they are known.
fn names(hosts: u16) -> Names {
    let names = too_early(hosts);
    names.set_complete();
    names
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(names: &Names, message: &Message, transport: Transport) -> (Message, Reply) {
    let reply = respond(&message.to_vec().unwrap(), transport, names, 0).expect("a request");
    let read = Message::from_vec(&reply.bytes).expect("readable");
    assert_eq!(read.metadata.id, message.metadata.id);
    (read, reply)
}

const WHOLE: &str = "etcd.db.svc.clusterset.local.";
const PORT: &str = "_peer._tcp.etcd.db.svc.clusterset.local.";

#[test]
fn names_of_the_zone_are_answered_with_authority_and_all_others_refused() {
    let names = names(2);
    for (name, kind, code, answers, authorities) in [
        (WHOLE, RecordType::A, ResponseCode::NoError, 2, 0),
        (WHOLE, RecordType::AAAA, ResponseCode::NoError, 0, 1),
        (WHOLE, RecordType::MX, ResponseCode::NoError, 0, 1),
        (PORT, RecordType::SRV, ResponseCode::NoError, 2, 0),
        ("etcd-1.east.etcd.db.svc.clusterset.local.", RecordType::A, ResponseCode::NoError, 1, 0),
        ("none.db.svc.clusterset.local.", RecordType::A, ResponseCode::NXDomain, 0, 1),
        ("dns-version.clusterset.local.", RecordType::TXT, ResponseCode::NoError, 1, 0),
        ("clusterset.local.", RecordType::SOA, ResponseCode::NoError, 1, 0),
        ("etcd.db.svc.cluster.local.", RecordType::A, ResponseCode::Refused, 0, 0),
        (".", RecordType::NS, ResponseCode::Refused, 0, 0),
        ("clusterset.local.", RecordType::AXFR, ResponseCode::Refused, 0, 0),
    ] {
        let (read, _) = ask(&names, &question(name, kind), Transport::Udp);
        assert_eq!(read.metadata.response_code, code, "{name} {kind}");
        assert_eq!((read.answers.len(), read.authorities.len()), (answers, authorities), "{name} {kind}");
        assert_eq!(read.metadata.authoritative, code != ResponseCode::Refused, "{name} {kind}");
        assert!(!read.metadata.recursion_available);
        assert_eq!(read.queries.len(), 1, "the question is said again");
    }
}

#[test]
fn targets_of_ports_come_with_their_addresses() {
    let (read, _) = ask(&names(2), &question(PORT, RecordType::SRV), Transport::Udp);
    let RData::SRV(srv) = &read.answers[0].data else { panic!("{read}") };
    assert_eq!((srv.port, srv.target.to_ascii().starts_with("etcd-")), (12_380, true));
    assert!(matches!(read.additionals[0].data, RData::A(_)), "{read}");
}

#[test]
fn the_owner_is_written_as_it_was_asked_for() {
    let (read, _) = ask(&names(1), &question("eTcD.Db.sVc.ClusterSet.LOCAL.", RecordType::A), Transport::Udp);
    assert!(read.answers[0].name.eq_case(&read.queries[0].name), "{read}");
    assert_eq!(read.queries[0].name.to_ascii(), "eTcD.Db.sVc.ClusterSet.LOCAL.");
}

#[test]
fn what_does_not_fit_is_cut_and_comes_whole_over_tcp() {
    let many = names(150);
    let plain = question(WHOLE, RecordType::A);
    let mut large = plain.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4_096).set_dnssec_ok(true);
    large.set_edns(edns);
    for (message, room) in [(&plain, MIN_UDP), (&large, MAX_UDP)] {
        let (read, reply) = ask(&many, message, Transport::Udp);
        assert!(reply.truncated && read.metadata.truncation);
        // A record of an address is at most so long here: one more has no room.
        let (length, record) = (reply.bytes.len(), WHOLE.len() + 1 + 14);
        assert!(length <= usize::from(room) && length + record > usize::from(room), "{length}");
        let addresses: BTreeSet<String> = read.answers.iter().map(|one| one.data.to_string()).collect();
        assert!(addresses.len() >= 10 && addresses.len() == read.answers.len(), "{read}");
        assert!(read.answers.iter().all(|one| matches!(one.data, RData::A(_))), "{read}");
        assert_eq!(read.edns.is_some(), message.edns.is_some());
    }
    let (read, _) = ask(&many, &large, Transport::Udp);
    let edns = read.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (MAX_UDP, true));
    let (read, reply) = ask(&many, &plain, Transport::Tcp);
    assert!(!reply.truncated && !read.metadata.truncation);
    assert_eq!(read.answers.len(), 150);
    // With room for 1,232 bytes 60 addresses fit, and what nobody asked for is left out before anything else is.
    let mut some = question(PORT, RecordType::SRV);
    some.set_edns(large.edns.clone().unwrap());
    let (read, reply) = ask(&names(12), &some, Transport::Udp);
    assert_eq!((read.answers.len(), reply.truncated), (12, false), "{}", reply.bytes.len());
}

#[test]
fn two_hundred_of_the_longest_names_fit_into_a_message_of_tcp() {
    let (read, reply) = ask(&names(2_000), &question(WHOLE, RecordType::SRV), Transport::Tcp);
    assert_eq!((read.answers.len(), reply.truncated), (names::MAX_NAMED, false));
}

#[test]
fn addresses_take_turns() {
    let names = names(3);
    let request = question(WHOLE, RecordType::A).to_vec().unwrap();
    let first = |turn| {
        let reply = respond(&request, Transport::Udp, &names, turn).unwrap();
        Message::from_vec(&reply.bytes).unwrap().answers[0].data.clone()
    };
    let all: BTreeSet<String> = (0..3).map(|turn| first(turn).to_string()).collect();
    assert_eq!(all.len(), 3);
    assert!(all.contains(&Ipv4Addr::new(10, 1, 0, 1).to_string()));
}

#[test]
fn before_all_names_are_known_none_is_denied() {
    let names = too_early(1);
    for (name, code) in [
        (WHOLE, ResponseCode::ServFail),
        ("none.db.svc.clusterset.local.", ResponseCode::ServFail),
        ("example.com.", ResponseCode::Refused),
    ] {
        let (read, _) = ask(&names, &question(name, RecordType::A), Transport::Udp);
        assert_eq!(read.metadata.response_code, code, "{name}");
    }
}

#[test]
fn what_is_no_question_is_told_so() {
    let names = names(1);
    let code = |message: &Message| ask(&names, message, Transport::Udp).1.code;
    let mut update = question(WHOLE, RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&update), Code::NotImp);
    let mut two = question(WHOLE, RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), Code::FormErr);
    assert_eq!(code(&Message::query()), Code::FormErr);
    let mut chaos = question(WHOLE, RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), Code::Refused);
    let mut future = question(WHOLE, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    let (read, reply) = ask(&names, &future, Transport::Udp);
    // 16, which is BADSIG where there is a signature (RFC 6895).
    assert_eq!((reply.code, u16::from(read.metadata.response_code)), (Code::BadVers, 16));
    assert_eq!(read.edns.map(|edns| edns.version()), Some(0));
    let mut answer = question(WHOLE, RecordType::A).to_vec().unwrap();
    answer[2] |= 0x80;
    assert_eq!(respond(&answer, Transport::Udp, &names, 0), None, "an answer is not answered");
    let mut cut = question(WHOLE, RecordType::A).to_vec().unwrap();
    cut.truncate(20);
    let reply = respond(&cut, Transport::Udp, &names, 0).unwrap();
    assert_eq!((reply.code, &reply.bytes[..2]), (Code::FormErr, &cut[..2]));
    let read = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!(read.metadata.response_code, ResponseCode::FormErr);
}

proptest! {
    #[test]
    fn any_bytes_have_at_most_one_answer_that_can_be_read_and_fits(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        turn in any::<usize>(),
    ) {
        let names = names(2);
        if let Some(reply) = respond(&bytes, Transport::Udp, &names, turn) {
            prop_assert!(reply.bytes.len() <= usize::from(MAX_UDP));
            let read = Message::from_vec(&reply.bytes).expect("readable");
            prop_assert_eq!(&reply.bytes[..2], &bytes[..2]);
            prop_assert_eq!(read.metadata.message_type, MessageType::Response);
        }
    }
}
