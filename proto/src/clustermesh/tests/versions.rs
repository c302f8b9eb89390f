//! A later version of the contract, written by hand, against this one: more fields, more kinds, more things to say.

use super::*;

#[derive(Clone, PartialEq, prost::Message)]
struct LaterResponse {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(message, optional, tag = "4")]
    end: Option<LaterEnd>,
    #[prost(message, optional, tag = "3")]
    part: Option<LaterPart>,
    #[prost(message, optional, tag = "99")]
    weather: Option<Mesh>,
    #[prost(uint64, tag = "100")]
    sent_at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LaterPart {
    #[prost(message, repeated, tag = "1")]
    objects: Vec<LaterObject>,
    #[prost(string, tag = "50")]
    comment: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LaterEnd {
    #[prost(message, optional, tag = "1")]
    version: Option<generated::Version>,
    #[prost(message, repeated, tag = "2")]
    counts: Vec<LaterCount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LaterCount {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    objects: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LaterObject {
    #[prost(oneof = "LaterKind", tags = "2, 70")]
    kind: Option<LaterKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum LaterKind {
    #[prost(message, tag = "2")]
    Namespace(LaterNamespace),
    #[prost(message, tag = "70")]
    Mesh(Mesh),
}

#[derive(Clone, PartialEq, prost::Message)]
struct LaterNamespace {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "60")]
    owner: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mesh {
    #[prost(string, tag = "1")]
    name: String,
}

fn read(later: LaterResponse) -> Option<Message> {
    let bytes = later.encode_to_vec();
    Message::read(FollowResponse::decode(bytes.as_slice()).unwrap()).unwrap()
}

fn later() -> LaterResponse {
    LaterResponse { cluster: "east".into(), sent_at: 7, ..LaterResponse::default() }
}

#[test]
fn fields_of_a_later_version_are_left_out_and_its_kinds_told_from_ours() {
    let namespace = LaterNamespace { name: "shop".into(), owner: "a".into() };
    let objects = vec![
        LaterObject { kind: Some(LaterKind::Namespace(namespace)) },
        LaterObject { kind: Some(LaterKind::Mesh(Mesh { name: "m".into() })) },
    ];
    let part = LaterPart { objects, comment: "new".into() };
    let Some(Message::Of(_, Say::SnapshotPart(objects))) =
        read(LaterResponse { part: Some(part), ..later() })
    else {
        panic!("a part")
    };
    let read: Vec<_> = objects.into_iter().map(|object| read_object(object, &NodeNames::default())).collect();
    assert_eq!(
        read,
        [Ok(Object::Namespace("shop".into(), Arc::new(Labels::new()))), Err(Unread::UnknownKind)]
    );
}

#[test]
fn a_snapshot_is_counted_with_the_kinds_of_a_later_version() {
    let count = |kind, objects| LaterCount { kind, objects };
    let end = LaterEnd {
        version: Some(generated::Version { incarnation: 1, sequence: 2, view: 0 }),
        counts: vec![count(2, 1), count(7, 4), count(8, 1)],
    };
    let Some(Message::Of(_, Say::SnapshotEnd { counts, .. })) =
        read(LaterResponse { end: Some(end), ..later() })
    else {
        panic!("an end")
    };
    assert_eq!(counts, Counts { known: BTreeMap::from([(Kind::Namespace, 1)]), others: 5 });
}

#[test]
fn what_only_a_later_version_says_is_left_out() {
    assert_eq!(read(LaterResponse { weather: Some(Mesh { name: "rain".into() }), ..later() }), None);
}

#[test]
fn what_we_say_is_understood_by_a_later_version() {
    let put = |object: &Object| write_object(object, &NodeNames::default());
    let ours = Say::SnapshotPart(vec![put(&Object::Namespace("shop".into(), Arc::new(Labels::new())))]);
    let bytes = FollowResponse::from(Message::Of("east".parse().unwrap(), ours)).encode_to_vec();
    let later = LaterResponse::decode(bytes.as_slice()).unwrap();
    let namespace = LaterNamespace { name: "shop".into(), owner: String::new() };
    let wanted = [LaterObject { kind: Some(LaterKind::Namespace(namespace)) }];
    assert_eq!(later.part.unwrap().objects, wanted);
}
