use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use expect_test::expect;
use ipnet::IpNet;
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{
    Affinity, Backend, BackendPort, Change, ExportedService, LabelSet, LabelSetId, Object, RemoteEndpoint,
    RemoteNode, ServiceKind, ServicePort, Signed, TrafficPolicy,
};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::policy::model::{Labels, NamedPort, ObjectName, Protocol};
use mesh_core::prefix::Family;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

mod versions;

fn name(longest: usize) -> impl Strategy<Value = String> {
    prop_oneof![Just("n".repeat(longest)), "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[a-z./-]{1,20}", "[a-z0-9]{0,20}", 0..4)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp][..])
}

fn node_name() -> impl Strategy<Value = Arc<NodeName>> {
    name(253).prop_map(|name| Arc::new(name.parse().unwrap()))
}

fn object_name() -> impl Strategy<Value = Arc<ObjectName>> {
    (name(63), name(63)).prop_map(|(namespace, name)| Arc::new(ObjectName { namespace, name }))
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0u8..=128).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (most + 1)).unwrap().trunc()
    })
}

fn node() -> impl Strategy<Value = RemoteNode> {
    let slot = (1..u64::MAX, any::<[u8; 32]>(), 1..u16::MAX, any::<bool>()).prop_map(
        |(epoch, key, port, draining)| SlotAnnouncement {
            epoch: Epoch(epoch),
            public_key: PublicKey::from_bytes(key),
            port,
            draining,
        },
    );
    let announcement = (
        prop::array::uniform2(slot),
        prop::collection::vec(address(), 0..=4),
        any::<Option<[u8; 32]>>(),
        any::<[bool; 2]>(),
    );
    let announcement = announcement.prop_map(|(slots, endpoints, kem, [required, host_traffic])| {
        let kem_required = required && kem.is_some();
        Announcement { slots, endpoints, kem, kem_required, host_traffic }
    });
    ("[a-f0-9-]{0,36}", any::<i64>(), prop::collection::vec(prefix(), 0..4), announcement).prop_map(
        |(uid, created, pod_cidrs, announcement)| RemoteNode {
            uid,
            created,
            pod_cidrs,
            announcement,
            signed: None,
        },
    )
}

fn signed(name: &NodeName, node: RemoteNode, signature: Vec<u8>) -> RemoteNode {
    let signed = Signed { node: write_node(name, &node), signature };
    RemoteNode { signed: Some(Arc::new(signed)), ..node }
}

fn service() -> impl Strategy<Value = ExportedService> {
    let port_name = prop_oneof![Just(String::new()), name(15)];
    let port = (port_name, protocol(), 1..u16::MAX, any::<bool>()).prop_map(|(name, protocol, port, h2)| {
        let app_protocol = h2.then(|| "kubernetes.io/h2c".to_owned());
        ServicePort { name, protocol, port, app_protocol }
    });
    let families = prop::sample::select(vec![
        vec![],
        vec![Family::V4],
        vec![Family::V6, Family::V4],
        vec![Family::V4, Family::V6],
    ]);
    let flags = any::<[bool; 3]>();
    (any::<i64>(), prop::collection::vec(port, 0..4), families, 0u32..=86_400, flags, labels(), labels())
        .prop_map(
            |(created, ports, families, seconds, [headless, local, distribution], labels, annotations)| {
                ExportedService {
                    created,
                    kind: if headless { ServiceKind::Headless } else { ServiceKind::ClusterSetIp },
                    ports,
                    families,
                    affinity: if seconds == 0 { Affinity::None } else { Affinity::ClientIp { seconds } },
                    internal_traffic_policy: if local {
                        TrafficPolicy::Local
                    } else {
                        TrafficPolicy::Cluster
                    },
                    traffic_distribution: distribution.then(|| "PreferClose".to_owned()),
                    labels,
                    annotations,
                }
            },
        )
}

fn backend() -> impl Strategy<Value = Backend> {
    let port = (name(15), protocol(), 1..u16::MAX).prop_map(|(name, protocol, port)| BackendPort {
        name,
        protocol,
        port,
    });
    let texts =
        (prop::option::of(name(63)), prop::option::of(node_name()), prop::option::of("[a-z0-9-]{1,20}"));
    (any::<[bool; 3]>(), texts, prop::collection::btree_set(port, 0..4)).prop_map(
        |([ready, serving, terminating], (hostname, node, zone), ports)| {
            let node = node.map(|node| NodeName::clone(&node));
            Backend { ready, serving, terminating, hostname, node, zone, ports }
        },
    )
}

fn object() -> impl Strategy<Value = Object> {
    let port = (name(15), protocol(), 1..u16::MAX).prop_map(|(name, protocol, port)| NamedPort {
        name,
        protocol,
        port,
    });
    let set = (name(63), labels(), prop::collection::btree_set(port, 0..4))
        .prop_map(|(namespace, labels, ports)| LabelSet { namespace, labels, ports });
    prop_oneof![
        (any::<u64>(), set).prop_map(|(id, set)| Object::LabelSet(LabelSetId(id), Arc::new(set))),
        (name(63), labels()).prop_map(|(name, labels)| Object::Namespace(name.into(), Arc::new(labels))),
        (node_name(), node(), any::<bool>()).prop_map(|(name, node, is_signed)| {
            let node = if is_signed { signed(&name, node, vec![7; 64]) } else { node };
            Object::Node(name, Arc::new(node))
        }),
        (address(), node_name(), any::<u64>()).prop_map(|(address, node, labels)| {
            Object::Endpoint(address, RemoteEndpoint { node, labels: LabelSetId(labels) })
        }),
        (object_name(), service()).prop_map(|(name, service)| Object::Service(name, Arc::new(service))),
        (object_name(), address(), backend()).prop_map(|(name, address, backend)| Object::Backend(
            name,
            address,
            Arc::new(backend)
        )),
    ]
}

/// The names that an object refers to.
fn names_of(object: &Object) -> NodeNames {
    let mut names = NodeNames::default();
    match object {
        Object::Endpoint(_, endpoint) => names.insert(&endpoint.node),
        Object::Backend(_, _, backend) => {
            backend.node.iter().for_each(|node| names.insert(&Arc::new(node.clone())))
        }
        Object::LabelSet(..) | Object::Namespace(..) | Object::Node(..) | Object::Service(..) => {}
    }
    names
}

fn version() -> impl Strategy<Value = At> {
    any::<[u64; 3]>()
        .prop_map(|[incarnation, sequence, view]| At { version: Version { incarnation, sequence }, view })
}

fn message() -> impl Strategy<Value = Message> {
    let put = |object: &Object| write_object(object, &NodeNames::default());
    let change = |(object, delete): &(Object, bool)| {
        let change = if *delete { Change::Delete(object.key()) } else { Change::Put(object.clone()) };
        write_change(&change, &NodeNames::default())
    };
    let counts = prop::collection::btree_map(prop::sample::select(&Kind::ALL[..]), any::<u64>(), 0..6);
    let say = prop_oneof![
        version().prop_map(Say::SnapshotBegin),
        prop::collection::vec(object(), 0..3)
            .prop_map(move |objects| Say::SnapshotPart(objects.iter().map(put).collect())),
        (version(), counts)
            .prop_map(|(version, known)| Say::SnapshotEnd { version, counts: Counts { known, others: 0 } }),
        (
            version(),
            version(),
            prop::collection::vec((object(), any::<bool>()), 0..3),
            any::<bool>(),
            any::<u32>()
        )
            .prop_map(move |(from, to, changes, more, part)| {
                Say::Changes { from, to, changes: changes.iter().map(change).collect(), part, more }
            }),
        version().prop_map(Say::Bookmark),
        Just(Say::Gone),
    ];
    prop_oneof![
        1 => Just(Message::Complete),
        1 => Just(Message::CutOff),
        9 => (name(63), say).prop_map(|(cluster, say)| Message::Of(cluster.parse().unwrap(), say)),
    ]
}

proptest! {
    #[test]
    fn an_object_that_is_written_is_read_with_and_without_short_names(object in object()) {
        for names in [names_of(&object), NodeNames::default()] {
            let written = write_object(&object, &names).encode_to_vec();
            let read = WireObject::decode(written.as_slice()).unwrap();
            prop_assert_eq!(read_object(read, &names), Ok(object.clone()));
            let deletion = Change::Delete(object.key());
            prop_assert_eq!(read_change(write_change(&deletion, &names), &names), Ok(deletion));
        }
    }

    #[test]
    fn a_message_that_is_written_is_read(message in message()) {
        let written = FollowResponse::from(message.clone()).encode_to_vec();
        let read = FollowResponse::decode(written.as_slice()).unwrap();
        prop_assert_eq!(Message::read(read), Ok(Some(message)));
    }

    #[test]
    fn a_request_that_is_written_is_read(known in prop::collection::btree_map(name(63), version(), 0..5)) {
        let known: BTreeMap<ClusterName, At> =
            known.into_iter().map(|(name, version)| (name.parse().unwrap(), version)).collect();
        let written = write_known(known.iter().map(|(cluster, version)| (cluster, *version))).encode_to_vec();
        prop_assert_eq!(read_known(FollowRequest::decode(written.as_slice()).unwrap()), Ok(known));
    }

    #[test]
    fn any_bytes_are_refused_or_read_alike_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(read) = WireObject::decode(bytes.as_slice())
            && let Ok(object) = read_object(read, &NodeNames::default())
        {
            let names = NodeNames::default();
            prop_assert_eq!(read_object(write_object(&object, &names), &names), Ok(object));
        }
    }
}

/// One endpoint of a cluster, a node and a pod with the longest names and addresses that there are.
#[test]
fn a_change_of_one_endpoint_is_short_whatever_its_names_are() {
    let node: Arc<NodeName> = Arc::new("n".repeat(253).parse().unwrap());
    let mut names = NodeNames::default();
    names.insert(&node);
    let endpoint = RemoteEndpoint { node, labels: LabelSetId(u64::MAX) };
    let put = Change::Put(Object::Endpoint(IpAddr::from([0xfd; 16]), endpoint));
    let version = |sequence| At { version: Version { incarnation: 1_800_000_000, sequence }, view: u64::MAX };
    let say = Say::Changes {
        from: version(u64::MAX - 1),
        to: version(u64::MAX),
        changes: vec![write_change(&put, &names)],
        part: 0,
        more: false,
    };
    let message = Message::Of("c".repeat(63).parse().unwrap(), say);
    let length = FollowResponse::from(message).encoded_len();
    // gRPC's prefix of 5 bytes, HTTP/2's header of 9, TLS's record of 22, IPv6 and TCP with options 72.
    assert_eq!((length, length + 5 + 9 + 22 + 72 < 300), (165, true));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_on_the_wire_stays_as_it_is() {
    let node_name: Arc<NodeName> = Arc::new("n1".parse().unwrap());
    let mut names = NodeNames::default();
    names.insert(&node_name);
    let slot = |epoch: u8| SlotAnnouncement {
        epoch: Epoch(epoch.into()),
        public_key: PublicKey::from_bytes([epoch; 32]),
        port: 51880,
        draining: epoch == 2,
    };
    let service = Arc::new(ObjectName { namespace: "shop".into(), name: "web".into() });
    let label = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    let objects = [
        Object::LabelSet(
            LabelSetId(0x0102_0304_0506_0708),
            Arc::new(LabelSet {
                namespace: "shop".into(),
                labels: label("app", "web"),
                ports: BTreeSet::from([NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }]),
            }),
        ),
        Object::Namespace("shop".into(), Arc::new(label("team", "a"))),
        Object::Node(
            Arc::clone(&node_name),
            Arc::new(RemoteNode {
                uid: "u".into(),
                created: 1_700_000_000,
                pod_cidrs: vec!["10.2.1.0/24".parse().unwrap()],
                announcement: Announcement {
                    slots: [slot(1), slot(2)],
                    endpoints: vec!["192.0.2.1".parse().unwrap()],
                    kem: Some([9; 32]),
                    kem_required: true,
                    host_traffic: true,
                },
                signed: None,
            }),
        ),
        Object::Endpoint(
            "10.2.1.7".parse().unwrap(),
            RemoteEndpoint { node: Arc::clone(&node_name), labels: LabelSetId(7) },
        ),
        Object::Service(
            Arc::clone(&service),
            Arc::new(ExportedService {
                created: 1_700_000_000,
                kind: ServiceKind::ClusterSetIp,
                ports: vec![ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    app_protocol: None,
                }],
                families: vec![Family::V4, Family::V6],
                affinity: Affinity::ClientIp { seconds: 10_800 },
                internal_traffic_policy: TrafficPolicy::Cluster,
                traffic_distribution: Some("PreferClose".into()),
                labels: label("a", "b"),
                annotations: label("c", "d"),
            }),
        ),
        Object::Backend(
            service,
            "10.2.1.7".parse().unwrap(),
            Arc::new(Backend {
                ready: true,
                serving: true,
                terminating: false,
                hostname: Some("web-0".into()),
                node: Some(NodeName::clone(&node_name)),
                zone: Some("z".into()),
                ports: BTreeSet::from([BackendPort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 8080,
                }]),
            }),
        ),
    ];
    let mut text = String::new();
    for object in &objects {
        text += &format!("{}\n", hex(&write_object(object, &names).encode_to_vec()));
        let deletion = write_change(&Change::Delete(object.key()), &names);
        text += &format!("  {}\n", hex(&deletion.encode_to_vec()));
    }
    let at = |sequence| At { version: Version { incarnation: 1, sequence }, view: 5 };
    let known = BTreeMap::from([(Kind::Endpoint, 1)]);
    for say in [
        Say::SnapshotBegin(at(2)),
        Say::SnapshotPart(vec![]),
        Say::SnapshotEnd { version: at(2), counts: Counts { known, others: 0 } },
        Say::Changes { from: at(2), to: at(3), changes: vec![], part: 4, more: true },
        Say::Bookmark(at(3)),
        Say::Gone,
    ] {
        let message = Message::Of("east".parse().unwrap(), say);
        text += &format!("{}\n", hex(&FollowResponse::from(message).encode_to_vec()));
    }
    for message in [Message::Complete, Message::CutOff] {
        text += &format!("{}\n", hex(&FollowResponse::from(message).encode_to_vec()));
    }
    expect![[r#"
        0a27090807060504030201120473686f701a0a0a036170701203776562220a0a046874747010011850
          1209090807060504030201
        12110a0473686f7012090a047465616d120161
          1206120473686f70
        1a99010a026e311201751880e2cfaa0622080a040a02010010182a2808011220010101010101010101010101010101010101010101010101010101010101010118a895032a2a08021220020202020202020202020202020202020202020202020202020202020202020218a8950320013204c00002013a20090909090909090909090909090909090909090909090909090909090909090940014801
          12041a026e31
        22180a040a020107117d26e74cb88b6b67210700000000000000
          120622040a020107
        2a470a0b0a0473686f7012037765621080e2cfaa061801220a0a0468747470100118502a02010230b0543801420b507265666572436c6f73654a060a016112016252060a0163120164
          120d2a0b0a0473686f701203776562
        32390a130a0b0a0473686f70120377656212040a020107100118012a057765622d30317d26e74cb88b6b6742017a4a0b0a0468747470100118903f
          121532130a0b0a0473686f70120377656212040a020107
        0a0465617374120f0a0d08011002190500000000000000
        0a04656173741a00
        0a046561737422150a0d08011002190500000000000000120408041001
        0a04656173742a220a0d08011002190500000000000000120d0801100319050000000000000020012804
        0a0465617374320f0a0d08011003190500000000000000
        0a04656173743a00
        4200
        4a00
    "#]].assert_eq(&text);
}

#[test]
fn an_object_that_lacks_something_is_refused_by_itself_with_field_value_and_remedy() {
    use generated::{self as wire, object::Kind as Wire};
    let check = |kind: Wire, expected: &str| {
        let error = read_object(WireObject { kind: Some(kind) }, &NodeNames::default()).unwrap_err();
        let Unread::Refused { key, error } = error else { panic!("{error:?}") };
        assert_eq!(format!("{}{error}", if key.is_some() { "" } else { "? " }), expected);
    };
    let upgrade = "refused; upgrade clustermesh of the cluster that tells it";
    check(Wire::LabelSet(wire::LabelSet::default()), &format!("? label set: id is missing; {upgrade}"));
    check(
        Wire::LabelSet(wire::LabelSet { id: Some(3), ..Default::default() }),
        &format!("label set 3: namespace is missing; {upgrade}"),
    );
    check(Wire::Endpoint(wire::Endpoint::default()), &format!("? endpoint: address is missing; {upgrade}"));
    let endpoint = |node| wire::Endpoint { address: vec![10, 2, 0, 1], node, labels: None };
    check(Wire::Endpoint(endpoint(None)), &format!("endpoint 10.2.0.1: node is missing; {upgrade}"));
    check(
        Wire::Endpoint(endpoint(Some(wire::endpoint::Node::NodeShort(5)))),
        "endpoint 10.2.0.1: node_short 0x0000000000000005 is not the short form of one node's name; refused until the node is told",
    );
    check(
        Wire::Endpoint(endpoint(Some(wire::endpoint::Node::NodeName("n1".into())))),
        &format!("endpoint 10.2.0.1: labels is missing; {upgrade}"),
    );
    let node = || wire::Node { name: "n1".into(), created: Some(1), ..Default::default() };
    check(
        Wire::Node(node()),
        "node n1: slots 0 is not 2 of them; refused; upgrade the older clustermesh of the two, or correct the object in its cluster",
    );
    let prefix = wire::Prefix { address: vec![10, 2, 0, 1], length: 24 };
    check(
        Wire::Node(wire::Node { pod_cidrs: vec![prefix], ..node() }),
        "node n1: pod_cidrs 10.2.0.1/24 is not a prefix; refused; correct it in its cluster",
    );
    check(
        Wire::Node(wire::Node { endpoints: vec![vec![10, 2, 0, 1]; 5], ..node() }),
        "node n1: endpoints has 5 entries, at most 4 are read; refused; give the object fewer in its cluster",
    );
    let whole = || {
        let slot = wire::Slot { epoch: 1, public_key: vec![1; 32], port: 1, draining: false };
        wire::Node { slots: vec![slot.clone(), slot], ..node() }.encode_to_vec()
    };
    let signed = |node, signature| Wire::SignedNode(wire::SignedNode { node, signature });
    check(
        signed(vec![0xff], vec![1]),
        "? node: node is no message of this contract; refused; upgrade the older clustermesh of the two",
    );
    check(signed(vec![], vec![1]), &format!("? node: name is missing; {upgrade}"));
    for (signature, found) in [(vec![], 0), (vec![1; 1025], 1025)] {
        check(
            signed(whole(), signature),
            &format!(
                "node n1: signature has {found} bytes, wanted 1 to 1024; refused; shorten it in its cluster"
            ),
        );
    }
    let space = |name: &str, value: &str| wire::Namespace {
        name: name.into(),
        labels: Labels::from([("k".to_owned(), value.to_owned())]),
    };
    check(
        Wire::Namespace(space("A", "")),
        "? namespace: name \"A\" is not a DNS label: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit; refused; correct the name in its cluster",
    );
    check(
        Wire::Namespace(space("a", &"v".repeat(64))),
        &format!(
            "namespace a: labels {:?} has 64 bytes, at most 63 are read; refused; shorten it in its cluster",
            "v".repeat(64)
        ),
    );
}

#[test]
fn an_object_is_read_up_to_a_length_that_fits_into_a_message_and_refused_by_name_beyond_it() {
    use generated::{self as wire, object::Kind as Wire};
    const { assert!(MAX_OBJECT == 262_144) };
    let slot = wire::Slot { epoch: 1, public_key: vec![1; 32], port: 1, draining: false };
    let node = wire::Node {
        name: "n1".into(),
        created: Some(1),
        slots: vec![slot.clone(), slot],
        ..Default::default()
    };
    let read = |padding: usize| {
        // Field 1000 of a later version, so many bytes long.
        let mut node = node.encode_to_vec();
        node.extend([0xc2, 0x3e]);
        prost::encode_length_delimiter(padding, &mut node).unwrap();
        node.resize(node.len() + padding, 0);
        let signed = Wire::SignedNode(wire::SignedNode { node, signature: vec![5; 70] });
        let object = WireObject { kind: Some(signed) };
        (object.encoded_len(), read_object(object, &NodeNames::default()))
    };
    // Lengths of this order are all written in three bytes.
    let longest = 200_000 + MAX_OBJECT - read(200_000).0;
    let (length, fits) = read(longest);
    assert_eq!(length, MAX_OBJECT);
    assert!(fits.is_ok(), "{fits:?}");
    let Err(Unread::Refused { key: Some(key), error }) = read(longest + 1).1 else { panic!("refused") };
    assert_eq!(
        format!("{key}: {error}"),
        "node n1: node n1: the whole has 262145 bytes, wanted at most 262144; refused; shorten it in its cluster"
    );
}

#[test]
fn a_short_name_that_two_nodes_have_is_not_used() {
    let name = |text: &str| Arc::new(text.parse::<NodeName>().unwrap());
    let mut names = NodeNames::default();
    names.insert(&name("n1"));
    names.insert(&name("n1"));
    let short = names.short(&name("n1")).unwrap();
    assert_eq!(names.resolve(short), Some(&name("n1")));
    assert_eq!(names.short(&name("n2")), None);
    names.remove(&name("n1"));
    assert_eq!((names.short(&name("n1")), names.resolve(short)), (None, None));
}

#[test]
fn a_request_has_a_bound() {
    let known: Vec<ClusterName> = (0..=MAX_CLUSTERS).map(|n| format!("c{n}").parse().unwrap()).collect();
    let request = write_known(known.iter().map(|cluster| (cluster, At::default())));
    assert!(matches!(read_known(request), Err(MessageError::TooMany { found: 1025, .. })));
    let longest: Vec<ClusterName> = (0..MAX_CLUSTERS).map(|n| format!("{n:063}").parse().unwrap()).collect();
    let most = At { version: Version { incarnation: u64::MAX, sequence: u64::MAX }, view: u64::MAX };
    assert!(write_known(longest.iter().map(|cluster| (cluster, most))).encoded_len() <= MAX_REQUEST);
    const { assert!(MESSAGE + MAX_OBJECT <= MAX_MESSAGE) };
}

#[test]
fn what_was_signed_is_passed_on_with_all_that_this_version_does_not_know() {
    use generated::{self as wire, object::Kind as Wire};
    let slot = wire::Slot { epoch: 1, public_key: vec![1; 32], port: 1, draining: false };
    let node = wire::Node {
        name: "n1".into(),
        created: Some(1),
        slots: vec![slot.clone(), slot],
        ..Default::default()
    };
    // Field 1000 of a later version, and the name once more, of which the last counts.
    let mut bytes = node.encode_to_vec();
    bytes.extend([0xc0, 0x3e, 0x01, 0x0a, 0x02, b'n', b'2']);
    let object = Wire::SignedNode(wire::SignedNode { node: bytes, signature: vec![5; 70] });
    let object = WireObject { kind: Some(object) };
    let read = read_object(object.clone(), &NodeNames::default()).unwrap();
    assert_eq!(read.key().to_string(), "node n2");
    assert_eq!(write_object(&read, &NodeNames::default()), object);
}
