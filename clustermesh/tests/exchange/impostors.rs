//! Who is not whom it says, and who says what it may not: refused, counted, and nothing else is affected.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use clustermesh::daemon::authority::{Authority, Leaf};
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::follow::{AUDIENCE, Target};
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, client_config};
use futures::StreamExt as _;
use mesh_core::clusters::{ClusterState, LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode, Version};
use mesh_core::policy::model::Labels;
use proto::clustermesh::{
    At, ClusterMesh, ClusterMeshServer, Counts, FollowRequest, FollowResponse, Message, NodeNames, Say,
    counts, write_object,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::world::*;

/// Tries to follow `east` with this certificate or token.
fn intrude(east: &Cluster, leaf: Option<&Leaf>, token: Option<std::path::PathBuf>) -> Agent {
    let roots = Roots::parse(&east.bundle()).unwrap();
    let own = leaf.map(|leaf| Arc::new(Credentials::new(Arc::clone(&leaf.key))) as Arc<_>);
    let tls = client_config(cluster("east"), Arc::new(move |_| Some(roots.clone())), own).unwrap();
    Agent::start(
        Target { addresses: vec![address(east.line.address)], tls, token, renewed: None },
        Scope::All,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_whom_it_says_is_told_nothing() {
    let (east, west, north) =
        (Cluster::start("east", 1).await, Cluster::start("west", 2).await, Cluster::start("north", 3).await);
    east.join_with(&west);
    east.join_with(&north);
    eventually("both are joined", || {
        ["west", "north"].iter().all(|name| east.condition(name, "Accepted").starts_with("True"))
    })
    .await;
    let now = SystemTime::now();
    let stranger = Authority::make(&cluster("west"), now).unwrap().0;
    let (of_west, of_north) = (west.authority(), north.authority());
    let leaf = |authority: &Authority, name: &str, at| authority.issue_for(&cluster(name), at).unwrap();
    let long_ago = now - Duration::from_secs(30 * 3600);
    let wrong_token = east.token("somebody.else", "mesh-agent");
    let other_account = east.token(AUDIENCE, "default");
    let cases = [
        ("wrong authority", Some(leaf(&stranger, "west", now)), None, "CertificateNotVouched"),
        ("another cluster's authority", Some(leaf(&of_north, "west", now)), None, "CertificateNotVouched"),
        ("expired", Some(leaf(&of_west, "west", long_ago)), None, "CertificateExpired"),
        ("not joined", Some(leaf(&of_west, "south", now)), None, "ClusterUnknown"),
        ("nothing to show", None, None, "NoCredentials"),
        ("token for another audience", None, Some(wrong_token), "TokenRefused"),
        ("token of another account", None, Some(other_account), "TokenOfAnother"),
    ];
    for (what, leaf, token, reason) in cases {
        let before = east.metrics.refusals(reason);
        let intruder = intrude(&east, leaf.as_ref(), token);
        eventually(what, || east.metrics.refusals(reason) > before).await;
        eventually(what, || intruder.read(|heard| !heard.ended.is_empty())).await;
        intruder.read(|heard| {
            assert_eq!((heard.connected, heard.states.len(), heard.complete), (0, 0, 0), "{what}");
        });
    }
    // A joined cluster hears of east alone, and an agent of all.
    let peer = intrude(&east, Some(&leaf(&of_west, "west", now)), None);
    eventually("a peer is let in", || peer.pods("east") == ["10.1.1.2 web"]).await;
    west.join_with(&east);
    let agent = east.agent();
    eventually("an agent is let in", || agent.pods("west") == ["10.2.1.2 web"]).await;
    assert_eq!(peer.read(|heard| heard.states.len()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_another_cluster_is_not_followed() {
    let (east, west, north) =
        (Cluster::start("east", 1).await, Cluster::start("west", 2).await, Cluster::start("north", 3).await);
    // Where west should be there is north, which is trusted as north; and north is really there.
    east.join("west", &["10.2.0.0/16"], &[north.line.address], &west.bundle());
    east.join_with(&north);
    north.join_with(&east);
    let agent = east.agent();
    eventually("the real one", || agent.pods("north") == ["10.3.1.2 web"]).await;
    eventually("a word in the status", || {
        east.condition("west", "Connected").starts_with("False CertificateOfAnother")
    })
    .await;
    assert!(east.metrics.refusals("CertificateOfAnother") > 0);
    assert_eq!(agent.pods("west"), ["unknown"]);
    // Nor is east's own trust in west lent to others: its bundle vouches for nobody else.
    east.join("south", &["10.4.0.0/16"], &[west.line.address], &west.bundle());
    eventually("another name", || {
        east.condition("south", "Connected").starts_with("False CertificateOfAnother")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_cidrs_of_this_cluster_and_of_an_older_peer_are_refused_in_the_status() {
    let (east, north) = (Cluster::start("east", 1).await, Cluster::start("north", 3).await);
    east.join_with(&north);
    north.join_with(&east);
    let agent = east.agent();
    eventually("the real one", || agent.pods("north") == ["10.3.1.2 web"]).await;
    let nowhere = ["127.0.0.1:1".parse().unwrap()];
    east.join(
        "zest",
        &["10.1.0.0/16", "10.3.0.0/16", "10.9.0.0/16"],
        &nowhere,
        "-----BEGIN CERTIFICATE-----",
    );
    eventually("all are named", || {
        let said = east.condition("zest", "Accepted");
        said.starts_with("False")
            && ["overlaps pod CIDR 10.1.0.0/16 of this cluster", "of ClusterPeer north", "spec.trustBundle"]
                .iter()
                .all(|part| said.contains(part))
    })
    .await;
    assert_eq!(agent.pods("north"), ["10.3.1.2 web"]);
    eventually("counted", || east.metrics.render().contains("facts_refused{kind=\"PeerCidrOurs\"} 1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_closes_the_door_to_nobody_else() {
    let east = Cluster::start("east", 1).await;
    let mut silent = Vec::new();
    // More than the server shakes hands with at once, all from one host that is nobody's.
    for _ in 0..600 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.77:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(east.serves()).await.unwrap());
    }
    eventually("most are sent away", || east.metrics.refusals("TooManyFromOneAddress") >= 500).await;
    let agent = east.agent();
    eventually("an agent is let in", || agent.pods("east") == ["10.1.1.2 web"]).await;
    assert_eq!(east.metrics.refusals("TlsFailed"), 0, "nobody had to be waited for");
    drop(silent);
}

/// Says what it was told to say: to each connection the next script, the last one again and again.
struct Scripted(Mutex<Vec<Vec<FollowResponse>>>);

type Words = Pin<Box<dyn futures::Stream<Item = Result<FollowResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ClusterMesh for Scripted {
    type FollowStream = Words;

    async fn follow(&self, _: Request<FollowRequest>) -> Result<Response<Words>, Status> {
        let mut scripts = self.0.lock().unwrap();
        let script = if scripts.len() > 1 { scripts.remove(0) } else { scripts[0].clone() };
        let words = futures::stream::iter(script.into_iter().map(Ok));
        Ok(Response::new(words.chain(futures::stream::pending()).boxed()))
    }
}

struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A server with a good certificate of `west` and bad intentions.
async fn taken_over(authority: &Authority, east: &Cluster, scripts: Vec<Vec<FollowResponse>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let leaf = authority.issue(SystemTime::now()).unwrap();
    let trust = Arc::new(Trust::default());
    trust.set([(cluster("east"), Roots::parse(&east.bundle()).unwrap())].into());
    let acceptor = TlsAcceptor::from(server_config(trust, Arc::new(Credentials::new(leaf.key))).unwrap());
    let incoming = futures::stream::unfold(listener, move |listener| {
        let acceptor = acceptor.clone();
        async move {
            let (tcp, _) = listener.accept().await.ok()?;
            Some((acceptor.accept(tcp).await.map(Io), listener))
        }
    });
    let server = ClusterMeshServer::new(Scripted(Mutex::new(scripts))).max_encoding_message_size(usize::MAX);
    tokio::spawn(Server::builder().add_service(server).serve_with_incoming(incoming.boxed()));
    address
}

fn at(sequence: u64) -> At {
    Version { incarnation: 1, sequence }.into()
}

fn said(say: Say) -> FollowResponse {
    Message::Of(cluster("west"), say).into()
}

/// A snapshot as it should be.
fn snapshot(version: At, objects: &[Object]) -> Vec<FollowResponse> {
    use mesh_core::clusters::Change;
    let (mut state, names) = (ClusterState::default(), NodeNames::default());
    for object in objects {
        state.apply(Change::Put(object.clone()));
    }
    let part = objects.iter().map(|object| write_object(object, &names)).collect();
    vec![
        said(Say::SnapshotBegin(version)),
        said(Say::SnapshotPart(part)),
        said(Say::SnapshotEnd { version, counts: counts(&state) }),
    ]
}

fn node(name: &str, key: u8, cidr: &str) -> Object {
    let node = RemoteNode {
        uid: "u".to_owned(),
        created: 1,
        pod_cidrs: vec![cidr.parse().unwrap()],
        announcement: announcement(key),
    };
    Object::Node(Arc::new(name.parse().unwrap()), Arc::new(node))
}

fn pod(address: &str, node: &str) -> Object {
    let node = Arc::new(node.parse().unwrap());
    Object::Endpoint(address.parse().unwrap(), RemoteEndpoint { node, labels: LabelSetId(1) })
}

fn labels() -> Object {
    let labels = Labels::from([("app".to_owned(), "evil".to_owned())]);
    let set = LabelSet { namespace: "shop".to_owned(), labels, ports: Default::default() };
    Object::LabelSet(LabelSetId(1), Arc::new(set))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_taken_over_harms_itself_alone() {
    let (east, north) = (Cluster::start("east", 1).await, Cluster::start("north", 3).await);
    east.join_with(&north);
    north.join_with(&east);
    let agent = east.agent();
    eventually("the good one", || agent.pods("north") == ["10.3.1.2 web"]).await;

    let good = [labels(), node("w1", 40, "10.2.1.0/24"), pod("10.2.1.7", "w1")];
    let mut truncated = snapshot(at(5), &good);
    truncated[1] = said(Say::SnapshotPart(Vec::new()));
    let mut bad = vec![
        // For another cluster.
        Message::Of(cluster("north"), Say::SnapshotBegin(at(9))).into(),
        Message::Of(cluster("north"), Say::SnapshotEnd { version: at(9), counts: Counts::default() }).into(),
    ];
    // Another's CIDR, another's pods, and what is its own.
    let mut wrong = good.to_vec();
    wrong.extend([
        node("w2", 41, "10.3.1.0/24"),
        pod("10.3.1.9", "w2"),
        pod("10.3.1.8", "w1"),
        pod("10.1.1.2", "w1"),
    ]);
    bad.extend(snapshot(at(5), &wrong));
    let mut replayed = vec![said(Say::Bookmark(at(5)))];
    replayed.extend(snapshot(at(4), &[labels()]));
    let huge = vec![write_object(&labels(), &NodeNames::default()); 20_000];
    let oversized = vec![said(Say::SnapshotBegin(at(6))), said(Say::SnapshotPart(huge))];
    // It must end by itself for the next one to come: with a message without sense.
    bad.push(said(Say::SnapshotPart(Vec::new())));
    let scripts = vec![truncated, bad, replayed, oversized, vec![said(Say::Bookmark(at(5)))]];

    let authority = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    let address = taken_over(&authority, &east, scripts).await;
    east.join("west", &["10.2.0.0/16"], &[address], authority.pem());
    for reason in ["Truncated", "ForeignCluster", "Unexpected", "WentBack", "MessageTooLong"] {
        eventually(reason, || east.metrics.refusals(reason) > 0).await;
    }
    eventually("what is its own", || agent.pods("west") == ["10.2.1.7 evil"]).await;
    eventually("facts that are not believed", || {
        let said = east.condition("west", "Problems");
        said.starts_with("True")
            && said
                .contains("spec.podCIDRs 10.3.1.0/24 is outside what ClusterPeer west allows (10.2.0.0/16)")
            && said.contains("cluster west: tells of cluster north; refused")
    })
    .await;
    eventually("counted", || {
        let text = east.metrics.render();
        ["NodeCidrOutside\"} 1", "EndpointOutside\"} 2", "EndpointWithoutNode\"} 1"]
            .iter()
            .all(|part| text.contains(part))
    })
    .await;
    // Nothing else is affected.
    north.pod(5, "new");
    eventually("the good one goes on", || agent.pods("north") == ["10.3.1.2 web", "10.3.1.5 new"]).await;
    assert_eq!(agent.pods("east"), ["10.1.1.2 web"]);
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}
