//! Who is let in, and takes more than its share.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clustermesh::daemon::authority::Authority;
use clustermesh::daemon::hub::Hub;
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::server::{FROM_CLUSTER, FROM_NODE, RECHECK, STUCK, Serving, serve};
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::daemon::tokens::Tokens;
use clustermesh::tls::{Roots, client_config};
use mesh_core::clusters::{Change, Kind, LabelSet, LabelSetId, Object, RemoteEndpoint, Version};
use mesh_core::policy::model::Labels;
use prost::Message as _;
use proto::clustermesh::{
    At, Counts, FollowResponse, Message, NodeNames, Say, WireObject, write_change, write_known, write_object,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::raw::{Scripted, ask, connect, credentials, server};
use super::world::*;

/// What a leader of `name`, which `to` has joined, shows `to`.
fn tls(to: &Cluster, own: Arc<Credentials>) -> Arc<rustls::ClientConfig> {
    let roots = Roots::parse(&to.bundle()).unwrap();
    client_config(cluster(to.name), Arc::new(move |_| Some(roots.clone())), Some(own)).unwrap()
}

fn nothing_known() -> Vec<u8> {
    write_known([]).encode_to_vec()
}

/// A cluster with a healthy peer and one that is up to something.
async fn beset(name: &'static str) -> (Cluster, Cluster, Agent, Authority) {
    let (east, north) = (Cluster::start(name, 1).await, Cluster::start("north", 3).await);
    mesh(&[&east, &north]);
    let neighbour = north.agent();
    eventually("a healthy one", || neighbour.pods(name) == ["10.1.1.2 web"]).await;
    let west = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    east.join("west", &["10.2.0.0/16"], &["127.0.0.1:1".parse().unwrap()], west.pem());
    eventually("joined", || east.condition("west", "Accepted").starts_with("True")).await;
    (east, north, neighbour, west)
}

async fn unharmed(east: &Cluster, neighbour: &Agent) {
    east.pod(9, "new");
    eventually("the healthy one goes on", || neighbour.pods(east.name).len() == 2).await;
    neighbour.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_sense_is_refused_by_name_and_each_connection_has_one() {
    let log = Log::from_now();
    let (east, _north, neighbour, west) = beset("oak").await;
    let tls = tls(&east, credentials(&west, "west"));
    // FollowRequest { known: [Known { cluster: "E" }] }, and then one whose version is missing.
    let cases = [(b"\x12\x03\x0a\x01E", "is not a cluster name"), (b"\x12\x03\x0a\x01e", "known.version")];
    for (request, said) in cases {
        let channel = connect(east.serves(), Arc::clone(&tls)).await.unwrap();
        let (before, twice) =
            (east.metrics.refusals("RequestMalformed"), east.metrics.refusals("AskedTwice"));
        let status = ask(&channel, request.to_vec()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(said), "{status}");
        assert_eq!(east.metrics.refusals("RequestMalformed"), before + 1);
        assert!(log.has(&["WARN", "A follower was refused", "RequestMalformed", said]));
        // Whoever goes on asking writes no log with it.
        let status = ask(&channel, request.to_vec()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(east.metrics.refusals("RequestMalformed"), before + 1);
        assert_eq!(east.metrics.refusals("AskedTwice"), twice + 1);
    }
    // A second stream of one connection is none, and the first goes on.
    let channel = connect(east.serves(), tls).await.unwrap();
    let mut stream = ask(&channel, nothing_known()).await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(ask(&channel, nothing_known()).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
    let more = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap();
    assert!(more.unwrap().is_some());
    unharmed(&east, &neighbour).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_has_so_many_connections_and_leaves_the_others_to_the_rest() {
    let log = Log::from_now();
    let (east, _north, neighbour, west) = beset("yew").await;
    let tls = tls(&east, credentials(&west, "west"));
    let mut streams = Vec::new();
    for _ in 0..FROM_CLUSTER {
        let channel = connect(east.serves(), Arc::clone(&tls)).await.unwrap();
        streams.push((ask(&channel, nothing_known()).await.unwrap(), channel));
    }
    let refused = || east.metrics.refusals("TooManyFromOneCluster");
    assert_eq!(refused(), 0);
    let one_more = async || {
        let channel = connect(east.serves(), Arc::clone(&tls)).await.ok()?;
        ask(&channel, nothing_known()).await.ok()
    };
    assert!(one_more().await.is_none());
    assert_eq!(refused(), 1);
    let said = ["WARN", "A connection was refused", "cluster=west", "its cluster has enough"];
    eventually("it is logged", || log.has(&said)).await;
    unharmed(&east, &neighbour).await;
    // What it gives back, it may have again.
    streams.pop();
    let again = async {
        while one_more().await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_has_so_many_connections_and_leaves_the_others_to_the_rest() {
    let log = Log::from_now();
    let (east, _north, neighbour, _west) = beset("ivy").await;
    let mut agents = Vec::new();
    let hears = |agent: &Agent| agent.pods("north") == ["10.3.1.2 web"];
    for _ in 0..FROM_NODE {
        let agent = east.agent_with(Some(east.token_of_node("n1")));
        eventually("it is let in", || hears(&agent)).await;
        agents.push(agent);
    }
    let refused = || east.metrics.refusals("TooManyFromOneNode");
    assert_eq!(refused(), 0);
    let one_more = east.agent_with(Some(east.token_of_node("n1")));
    eventually("it is refused", || refused() >= 1).await;
    let said = ["WARN", "A follower was refused", "node=n1", "its node has enough connections"];
    eventually("it is logged", || log.has(&said)).await;
    let another = east.agent_with(Some(east.token_of_node("n2")));
    eventually("another node's is let in", || hears(&another)).await;
    assert!(!hears(&one_more));
    unharmed(&east, &neighbour).await;
    // What it gives back, it may have again.
    agents.pop();
    eventually("it is let in at last", || hears(&one_more)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_broken_off_leaves_its_port_to_the_next_one() {
    let api = Cluster::start("api", 9).await;
    let ash = Authority::make(&cluster("ash"), SystemTime::now()).unwrap().0;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let trust = Arc::new(Trust::default());
    let serving = Serving {
        hub: Hub::new(cluster("ash")),
        trust: Arc::clone(&trust),
        tokens: Tokens::new(api.client.clone(), []),
        tls: server_config(trust, credentials(&ash, "ash")).unwrap(),
        recheck: RECHECK,
        stuck: STUCK,
        metrics: Metrics::new(),
    };
    let mut server = Box::pin(serve(listener, serving, stopped));
    assert!(futures::poll!(&mut server).is_pending(), "it serves");
    assert!(TcpListener::bind(at).await.is_err());
    drop(server);
    let free = async {
        while TcpListener::bind(at).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_a_stream_and_takes_nothing_is_sent_away() {
    let log = Log::from_now();
    let api = Cluster::start("api", 9).await;
    let now = SystemTime::now();
    let (fir, west) =
        (Authority::make(&cluster("fir"), now).unwrap().0, Authority::make(&cluster("west"), now).unwrap().0);
    let trust = Arc::new(Trust::default());
    trust.set([(cluster("west"), Roots::parse(west.pem()).unwrap())].into());
    let hub = Hub::new(cluster("fir"));
    let space = |number: u8, word: &str| {
        let labels = (0..100u8).map(|label| (format!("{label:a>60}"), format!("{word:v>60}")));
        Change::Put(Object::Namespace(format!("n{number}").into(), Arc::new(labels.collect::<Labels>())))
    };
    // More than the windows of HTTP/2 let under way.
    let all = |word: &'static str| -> Vec<Change> { (0..100).map(|number| space(number, word)).collect() };
    hub.changed(&cluster("fir"), Version { incarnation: 1, sequence: 0 }.into(), all("a"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let metrics = Metrics::new();
    let serving = Serving {
        hub: hub.clone(),
        trust: Arc::clone(&trust),
        tokens: Tokens::new(api.client.clone(), []),
        tls: server_config(trust, credentials(&fir, "fir")).unwrap(),
        recheck: RECHECK,
        stuck: Duration::from_secs(5),
        metrics: metrics.clone(),
    };
    tokio::spawn(serve(listener, serving, stopped));
    let roots = Roots::parse(fir.pem()).unwrap();
    let tls = client_config(
        cluster("fir"),
        Arc::new(move |_| Some(roots.clone())),
        Some(credentials(&west, "west")),
    );
    let tls = tls.unwrap();
    let channel = connect(at, Arc::clone(&tls)).await.unwrap();
    let mut stuck = ask(&channel, nothing_known()).await.unwrap();
    // Another one, that takes what it is told.
    let target =
        clustermesh::follow::Target { addresses: vec![address(at)], tls, token: None, renewed: None };
    let healthy = Agent::start(target, clustermesh::session::Scope::One(cluster("fir")));
    let knows = |word: &str| {
        let labels = format!("{word:v>60}");
        healthy.read(|heard| {
            heard.states.get(&cluster("fir")).is_some_and(|state| {
                state.namespaces.len() == 100
                    && state.namespaces.values().all(|space| space.values().all(|value| *value == labels))
            })
        })
    };
    eventually("a healthy one", || knows("a")).await;
    eventually("it is sent away", || metrics.refusals("FollowerStuck") == 1).await;
    eventually("it is logged", || log.has(&["WARN", "A follower takes nothing any more", "FollowerStuck"]))
        .await;
    eventually("nothing is kept for it", || metrics.render().contains("streams{kind=\"peer\"} 1")).await;
    hub.advance(all("b"));
    eventually("the healthy one goes on", || knows("b")).await;
    healthy.read(|heard| assert_eq!((heard.connected, heard.ended.len()), (1, 0)));
    // What was under way is still there to be taken up, and then it is over.
    let rest = async {
        let mut messages = 0;
        while let Ok(Some(_)) = stuck.message().await {
            messages += 1;
        }
        messages
    };
    let messages = tokio::time::timeout(DEADLINE, rest).await.unwrap();
    assert!(messages < 20, "{messages}: less than all");
}

/// What a client said, byte by byte, is said again to the same server, or a part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_played_again_or_cut_short_is_refused() {
    let log = Log::from_now();
    let (east, _north, neighbour, west) = beset("box").await;
    // Somebody in between who hears all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap();
    let serves = east.serves();
    let hearing = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(serves).await.unwrap();
        let ((mut said, mut to_client), (mut answered, mut to_server)) = (client.split(), server.split());
        let (mut recorded, mut buffer) = (Vec::new(), vec![0; 65536]);
        let back = tokio::io::copy(&mut answered, &mut to_client);
        let forth = async {
            while let Ok(length @ 1..) = said.read(&mut buffer).await {
                recorded.extend_from_slice(&buffer[..length]);
                to_server.write_all(&buffer[..length]).await.unwrap();
            }
        };
        tokio::select! {
            _ = back => {}
            () = forth => {}
        }
        recorded
    });
    let channel = connect(between, tls(&east, credentials(&west, "west"))).await.unwrap();
    let mut stream = ask(&channel, nothing_known()).await.unwrap();
    assert!(stream.message().await.unwrap().is_some(), "the original is let in");
    drop((stream, channel));
    let recorded = tokio::time::timeout(DEADLINE, hearing).await.unwrap().unwrap();
    for (what, bytes) in [("again", recorded.as_slice()), ("cut short", &recorded[..100])] {
        let before = east.metrics.refusals("TlsFailed");
        let mut tcp = TcpStream::connect(east.serves()).await.unwrap();
        let from = tcp.local_addr().unwrap().to_string();
        tcp.write_all(bytes).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The server may close before all of it was read.
        drop(tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer)).await.unwrap());
        eventually(what, || east.metrics.refusals("TlsFailed") == before + 1).await;
        eventually(what, || log.has(&["WARN", "A connection was refused", "TlsFailed", &from])).await;
    }
    unharmed(&east, &neighbour).await;
}

/// All that it says is wrong, and each word of it has all of it judged again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_costly_to_judge_keeps_nobody_waiting() {
    const PODS: u32 = 10_000;
    const WORDS: u64 = 3_000;
    // Were there one queue for all, at least what it holds.
    const MEANWHILE: u64 = 48;
    let east = Cluster::start("east", 1).await;
    let north = Cluster::start("north", 3).await;
    mesh(&[&east, &north]);
    let agent = east.agent();
    eventually("a healthy one", || agent.pods("north") == ["10.3.1.2 web"]).await;
    let names = NodeNames::default();
    let set = |number: u64| {
        let set = LabelSet { namespace: format!("n{number}"), ..LabelSet::default() };
        Object::LabelSet(LabelSetId(1), Arc::new(set))
    };
    let pod = |number: u32| {
        let node = Arc::new("nobody".parse().unwrap());
        let address = u32::from(std::net::Ipv4Addr::new(10, 3, 0, 0)) + number;
        let pod = RemoteEndpoint { node, labels: LabelSetId(1) };
        write_object(&Object::Endpoint(std::net::Ipv4Addr::from(address).into(), pod), &names)
    };
    let at = |sequence| At::from(Version { incarnation: 1, sequence });
    let mut said = vec![Say::SnapshotBegin(at(0)), Say::SnapshotPart(vec![write_object(&set(0), &names)])];
    let pods: Vec<WireObject> = (0..PODS).map(pod).collect();
    said.extend(pods.chunks(1000).map(|some| Say::SnapshotPart(some.to_vec())));
    let known = [(Kind::LabelSet, 1), (Kind::Endpoint, PODS.into())].into();
    said.push(Say::SnapshotEnd { version: at(0), counts: Counts { known, others: 0 } });
    said.extend((0..WORDS).map(|number| {
        let changes = vec![write_change(&Change::Put(set(number + 1)), &names)];
        Say::Changes { from: at(number), to: at(number + 1), changes, part: 0, more: false }
    }));
    let bytes = |say| FollowResponse::from(Message::Of(cluster("west"), say)).encode_to_vec();
    let scripted = Scripted::new(vec![said.into_iter().map(bytes).collect()]);
    let west = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    let at = server(credentials(&west, "west"), &east, scripted).await;
    east.join("west", &["10.2.0.0/16"], &[at], west.pem());
    eventually("it is judged", || agent.read(|heard| heard.versions.contains_key(&cluster("west")))).await;
    // Counted in words of the other one, not in seconds: a loaded machine is slow with both.
    let judged = || agent.read(|heard| heard.versions[&cluster("west")].sequence);
    for host in 10..15 {
        let before = judged();
        north.pod(host, "new");
        eventually("a pod of the healthy one", || agent.pods("north").len() == usize::from(host) - 8).await;
        let meanwhile = judged() - before;
        assert!(meanwhile < MEANWHILE, "{meanwhile} words of the other one came first");
    }
    assert!(judged() < WORDS, "it was still being judged");
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}
