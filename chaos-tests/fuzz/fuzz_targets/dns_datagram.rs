//! Any bytes as a datagram to the server of clusterset.local: at most one answer, which can be read, bears the request's
//! number and fits; and never an answer to an answer.
#![no_main]

use std::sync::LazyLock;

use clustermesh::dns::Names;
use clustermesh::dns::respond::{MAX_UDP, Transport, respond};
use hickory_proto::op::{Message, MessageType};
use libfuzzer_sys::fuzz_target;
use mesh_core::mcs::{
    Decision, DnsLabel, Import, ImportKind, ImportPort, InternalTrafficPolicy, SessionAffinity,
};
use mesh_core::policy::model::{ObjectName, Protocol};
use mesh_core::prefix::Family;

/// One service with two addresses and two ports.
static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let port = |name: &str, port| ImportPort {
        name: name.parse::<DnsLabel>().ok(),
        protocol: Protocol::Tcp,
        app_protocol: None,
        port,
        unnamed: false,
    };
    let ready = mesh_core::mcs::Condition {
        kind: "Ready",
        status: mesh_core::mcs::Status::True,
        reason: "Ready".into(),
        message: String::new(),
        observed_generation: None,
    };
    let import = Import {
        labels: Default::default(),
        annotations: Default::default(),
        kind: ImportKind::ClusterSetIp,
        ports: vec![port("http", 80), port("dns", 53)],
        ips: ["10.96.0.9", "fd00:96::9"].map(|ip| ip.parse().expect("as written")).to_vec(),
        families: Family::BOTH.to_vec(),
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: Some(InternalTrafficPolicy::Cluster),
        traffic_distribution: None,
        clusters: Default::default(),
        ready,
    };
    let names = Names::new();
    let name = ObjectName { namespace: "s".into(), name: "w".into() };
    names.set(&name, &Decision { import: Some(import), ..Decision::default() });
    names.set_complete();
    names
});

fuzz_target!(|bytes: &[u8]| {
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = respond(bytes, transport, &NAMES, bytes.len()) else {
            assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0, "a request without an answer");
            continue;
        };
        assert!(transport == Transport::Tcp || reply.bytes.len() <= usize::from(MAX_UDP));
        assert_eq!(reply.bytes[..2], bytes[..2]);
        let read = Message::from_vec(&reply.bytes).expect("an answer that can be read");
        assert_eq!(read.metadata.message_type, MessageType::Response);
    }
});
