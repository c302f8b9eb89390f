//! Two versions of the contract against each other. The others are written by hand, byte by byte: one with more fields, kinds
//! and things to say, and one with less.

use std::sync::Arc;
use std::time::SystemTime;

use clustermesh::daemon::authority::Authority;
use clustermesh::tls::{Roots, client_config};
use mesh_core::clusters::{LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode};
use mesh_core::policy::model::Labels;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use proto::clustermesh::{NodeNames, write_object};

use super::raw::{Scripted, ask, connect, credentials, server};
use super::world::*;

/// A field with a message, a text or bytes.
fn field(tag: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(content.len().try_into().unwrap(), &mut bytes);
    [bytes.as_slice(), content].concat()
}

fn number(tag: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(tag, WireType::Varint, &mut bytes);
    encode_varint(number, &mut bytes);
    bytes
}

/// Which version somebody speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Older,
    Later,
}

impl Speaks {
    /// What this version has besides.
    fn more(self) -> Vec<u8> {
        match self {
            Self::Older => Vec::new(),
            Self::Later => [number(100, 7), field(101, b"more"), field(102, &field(1, b"of it"))].concat(),
        }
    }

    fn with(self, parts: &[Vec<u8>]) -> Vec<u8> {
        [parts.concat(), self.more()].concat()
    }

    /// An object as this version writes it: what we write, with more fields.
    fn object(self, object: &Object) -> Vec<u8> {
        let bytes = write_object(object, &NodeNames::default()).encode_to_vec();
        let mut rest = bytes.as_slice();
        let (tag, _) = decode_key(&mut rest).unwrap();
        assert_eq!(decode_varint(&mut rest).unwrap(), u64::try_from(rest.len()).unwrap());
        self.with(&[field(tag, &self.with(&[rest.to_vec()]))])
    }

    fn version(self, sequence: u64) -> Vec<u8> {
        self.with(&[number(1, 1), number(2, sequence)])
    }

    fn say(self, tag: u32, said: &[Vec<u8>]) -> Vec<u8> {
        self.with(&[field(1, b"west"), field(tag, &self.with(said))])
    }
}

const BEGIN: u32 = 2;
const PART: u32 = 3;
const END: u32 = 4;
const CHANGES: u32 = 5;
const BOOKMARK: u32 = 6;

/// Of a kind that only a later version has.
fn mesh_object() -> Vec<u8> {
    field(70, &field(1, b"m"))
}

fn objects() -> [Object; 3] {
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    let set = LabelSet { namespace: "shop".to_owned(), labels, ports: Default::default() };
    let node = RemoteNode {
        uid: "u".to_owned(),
        created: 1,
        pod_cidrs: vec!["10.2.1.0/24".parse().unwrap()],
        announcement: announcement(40),
        signed: None,
    };
    let name = Arc::new("w1".parse().unwrap());
    [
        Object::LabelSet(LabelSetId(1), Arc::new(set)),
        Object::Node(Arc::clone(&name), Arc::new(node)),
        Object::Endpoint([10, 2, 1, 2].into(), RemoteEndpoint { node: name, labels: LabelSetId(1) }),
    ]
}

fn pod(host: u8) -> Object {
    let node = Arc::new("w1".parse().unwrap());
    Object::Endpoint([10, 2, 1, host].into(), RemoteEndpoint { node, labels: LabelSetId(1) })
}

/// A snapshot, and a change after it.
fn script(speaks: Speaks) -> Vec<Vec<u8>> {
    let count = |kind, objects| field(2, &speaks.with(&[number(1, kind), number(2, objects)]));
    let mut parts: Vec<_> = objects().iter().map(|object| field(1, &speaks.object(object))).collect();
    let mut counts = vec![count(1, 1), count(3, 1), count(4, 1)];
    let mut changes = vec![field(3, &speaks.with(&[field(1, &speaks.object(&pod(3)))]))];
    let mut between = Vec::new();
    if speaks == Speaks::Later {
        parts.insert(1, field(1, &mesh_object()));
        counts.extend([count(7, 1), count(8, 0)]);
        // It is put, it is deleted, and something else happens to it.
        changes.extend(
            [field(1, &mesh_object()), field(2, &field(7, b"m")), field(9, b"m")].map(|what| field(3, &what)),
        );
        between.push(speaks.say(99, &[field(1, b"rain")]));
    }
    let mut said = vec![speaks.say(BEGIN, &[field(1, &speaks.version(1))]), speaks.say(PART, &parts)];
    said.push(speaks.say(END, &[vec![field(1, &speaks.version(1))], counts].concat()));
    said.extend(between);
    let ends = vec![field(1, &speaks.version(1)), field(2, &speaks.version(2))];
    said.push(speaks.say(CHANGES, &[ends, changes].concat()));
    said.push(speaks.say(BOOKMARK, &[field(1, &speaks.version(2))]));
    said
}

/// Follows a server that speaks so, by a Session like any other, and gives what is left out: by kind of object, and messages.
async fn followed(speaks: Speaks) -> [u64; 2] {
    let log = Log::from_now();
    let east = Cluster::start("east", 1).await;
    let west = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    // The second time it goes on from where it was.
    let mut again = vec![speaks.say(BOOKMARK, &[field(1, &speaks.version(2))])];
    again.push(b"no message at all".to_vec());
    let mut first = script(speaks);
    first.push(b"no message at all".to_vec());
    let scripted = Scripted::new(vec![first, again]);
    let at = server(credentials(&west, "west"), &east, scripted.clone()).await;
    let agent = east.agent();
    eventually("the own cluster", || agent.pods("east") == ["10.1.1.2 web"]).await;
    east.join("west", &["10.2.0.0/16"], &[at], west.pem());
    eventually("what both know", || agent.pods("west") == ["10.2.1.2 web", "10.2.1.3 web"]).await;
    agent.read(|heard| assert_eq!(heard.states[&cluster("west")].nodes.len(), 1));
    eventually("it is asked again", || scripted.asked().len() > 1).await;
    assert_eq!(scripted.asked()[0], number(1, 1), "revision 1, and nothing known");
    let known = [field(1, b"west"), field(2, &[number(1, 1), number(2, 2)].concat())].concat();
    assert_eq!(scripted.asked()[1], [number(1, 1), field(2, &known)].concat());
    let [kinds, messages] = ["UnknownKind", "UnknownMessage"].map(|reason| {
        let counted = east.metrics.refusals(reason);
        assert!(
            counted == 0 || log.has(&["WARN", "cluster=west", "Left out", reason, "upgrade Hawser here"])
        );
        counted
    });
    if kinds > 0 {
        eventually("the status says so", || {
            let said = east.condition("west", "Problems");
            said.starts_with("True LeftOut") && said.contains("a kind of objects that is not known here")
        })
        .await;
    }
    assert_eq!(east.metrics.refusals("ObjectMalformed") + east.metrics.refusals("Truncated"), 0);
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
    [kinds, messages]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_later_version_what_is_known_arrives_and_the_rest_is_counted() {
    assert_eq!(followed(Speaks::Later).await, [4, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_older_version_everything_arrives() {
    assert_eq!(followed(Speaks::Older).await, [0, 0]);
}

/// What an older version knows of a response: namespaces alone.
#[derive(Clone, PartialEq, prost::Message)]
struct OlderResponse {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(message, optional, tag = "3")]
    part: Option<OlderPart>,
    #[prost(message, optional, tag = "5")]
    changes: Option<OlderChanges>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OlderPart {
    #[prost(message, repeated, tag = "1")]
    objects: Vec<OlderObject>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OlderChanges {
    #[prost(message, repeated, tag = "3")]
    changes: Vec<OlderChange>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OlderChange {
    #[prost(message, optional, tag = "1")]
    put: Option<OlderObject>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OlderObject {
    #[prost(message, optional, tag = "2")]
    namespace: Option<OlderNamespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OlderNamespace {
    #[prost(string, tag = "1")]
    name: String,
}

fn names(objects: Vec<OlderObject>) -> Vec<String> {
    objects.into_iter().filter_map(|object| Some(object.namespace?.name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_both_versions_are_served_and_go_on_where_they_were() {
    let east = Cluster::start("east", 1).await;
    let west = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    east.join("west", &["10.2.0.0/16"], &["127.0.0.1:1".parse().unwrap()], west.pem());
    eventually("joined", || east.condition("west", "Accepted").starts_with("True")).await;
    let roots = Roots::parse(&east.bundle()).unwrap();
    let own = credentials(&west, "west");
    let tls = client_config(cluster("east"), Arc::new(move |_| Some(roots.clone())), Some(own)).unwrap();
    for (speaks, space) in [(Speaks::Older, "older"), (Speaks::Later, "later")] {
        let request = speaks.with(&[number(1, if speaks == Speaks::Older { 0 } else { 9 })]);
        let channel = connect(east.serves(), Arc::clone(&tls)).await.unwrap();
        let mut stream = ask(&channel, request).await.unwrap();
        let (mut heard, mut version) = (Vec::new(), None);
        let snapshot = async {
            while version.is_none() {
                let bytes = stream.message().await.unwrap().unwrap();
                let response = OlderResponse::decode(bytes.as_slice()).unwrap();
                assert_eq!(response.cluster, "east");
                heard.extend(names(response.part.unwrap_or_default().objects));
                version = end_of_snapshot(&bytes);
            }
        };
        tokio::time::timeout(DEADLINE, snapshot).await.unwrap();
        assert!(heard.contains(&"shop".to_owned()), "{heard:?}");
        drop((stream, channel));
        east.create(
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}}),
        );
        // It has that version, and says so in its own words.
        let known = speaks.with(&[field(1, b"east"), field(2, &speaks.with(&[version.unwrap()]))]);
        let channel = connect(east.serves(), Arc::clone(&tls)).await.unwrap();
        let mut stream = ask(&channel, speaks.with(&[field(2, &known)])).await.unwrap();
        let change = async {
            loop {
                let bytes = stream.message().await.unwrap().unwrap();
                assert!(end_of_snapshot(&bytes).is_none(), "no snapshot");
                let response = OlderResponse::decode(bytes.as_slice()).unwrap();
                let changes = response.changes.unwrap_or_default().changes;
                let names = names(changes.into_iter().filter_map(|change| change.put).collect());
                if !names.is_empty() {
                    return names;
                }
            }
        };
        assert_eq!(tokio::time::timeout(DEADLINE, change).await.unwrap(), [space]);
    }
    assert_eq!(east.metrics.refusals("RequestMalformed"), 0);
}

/// The version of the snapshot that ends with this response, as its bytes are.
fn end_of_snapshot(response: &[u8]) -> Option<Vec<u8>> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Response {
        #[prost(message, optional, tag = "4")]
        end: Option<End>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct End {
        #[prost(bytes = "vec", tag = "1")]
        version: Vec<u8>,
    }
    Some(Response::decode(response).unwrap().end?.version)
}
