//! Who is not whom it says, and who says what it may not: refused, counted, and nothing else is affected.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clustermesh::daemon::authority::{Authority, Leaf};
use clustermesh::daemon::tls::Credentials;
use clustermesh::follow::{AUDIENCE, Target};
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, client_config};
use mesh_core::clusters::{ClusterState, LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode, Version};
use mesh_core::policy::model::Labels;
use prost::Message as _;
use proto::clustermesh::{At, Counts, FollowResponse, Message, NodeNames, Say, counts, write_object};

use super::raw::{Script, Scripted, credentials, server};
use super::world::*;

/// Tries to follow `east` with this certificate or token.
fn intrude(east: &Cluster, leaf: Option<&Leaf>, token: Option<std::path::PathBuf>) -> Agent {
    let roots = Roots::parse(&east.bundle()).unwrap();
    let own = leaf.map(|leaf| Arc::new(Credentials::new(Arc::clone(&leaf.key))) as Arc<_>);
    let tls = client_config(cluster(east.name), Arc::new(move |_| Some(roots.clone())), own).unwrap();
    Agent::start(
        Target { addresses: vec![address(east.line.address)], tls, token, renewed: None },
        Scope::All,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_whom_it_says_is_told_nothing() {
    let log = Log::from_now();
    // Names that no other test has, so that lines of the log are of this one.
    let (lime, plum, pear) =
        (Cluster::start("lime", 1).await, Cluster::start("plum", 2).await, Cluster::start("pear", 3).await);
    lime.join_with(&plum);
    mesh(&[&lime, &pear]);
    let (agent, neighbour) = (lime.agent(), pear.agent());
    eventually("both are joined", || lime.condition("plum", "Accepted").starts_with("True")).await;
    eventually("a healthy one", || {
        agent.pods("pear") == ["10.3.1.2 web"] && neighbour.pods("lime") == ["10.1.1.2 web"]
    })
    .await;
    let made = pear.line.made();
    let now = SystemTime::now();
    let stranger = Authority::make(&cluster("plum"), now).unwrap().0;
    let (of_plum, of_pear) = (plum.authority(), pear.authority());
    let leaf = |authority: &Authority, name: &str, at| authority.issue_for(&cluster(name), at).unwrap();
    let long_ago = now - Duration::from_secs(30 * 3600);
    let wrong_token = lime.token("somebody.else", "mesh-agent");
    let other_account = lime.token(AUDIENCE, "default");
    let (plums, unjoined) = ("cluster plum", "no ClusterPeer fig with a trust bundle is here");
    let cases = [
        ("wrong authority", Some(leaf(&stranger, "plum", now)), None, "CertificateNotVouched", plums),
        ("another's authority", Some(leaf(&of_pear, "plum", now)), None, "CertificateNotVouched", plums),
        ("expired", Some(leaf(&of_plum, "plum", long_ago)), None, "CertificateExpired", plums),
        ("not joined", Some(leaf(&of_plum, "fig", now)), None, "ClusterUnknown", unjoined),
        ("nothing to show", None, None, "NoCredentials", "neither a certificate nor a token"),
        ("for another audience", None, Some(wrong_token), "TokenRefused", "does not confirm the token"),
        ("another account's", None, Some(other_account), "TokenOfAnother", "hawser-system:default is not"),
    ];
    for (what, leaf, token, reason, said) in cases {
        let (before, lines) = (lime.metrics.refusals(reason), log.count(&["WARN", reason, said]));
        let intruder = intrude(&lime, leaf.as_ref(), token);
        eventually(what, || lime.metrics.refusals(reason) > before).await;
        eventually(what, || log.count(&["WARN", reason, said]) > lines).await;
        eventually(what, || intruder.read(|heard| !heard.ended.is_empty())).await;
        intruder.read(|heard| {
            assert_eq!((heard.connected, heard.states.len(), heard.complete), (0, 0, 0), "{what}");
        });
    }
    // A joined cluster hears of lime alone, and an agent of all.
    let peer = intrude(&lime, Some(&leaf(&of_plum, "plum", now)), None);
    eventually("a peer is let in", || peer.pods("lime") == ["10.1.1.2 web"]).await;
    plum.join_with(&lime);
    eventually("an agent hears of it", || agent.pods("plum") == ["10.2.1.2 web"]).await;
    assert_eq!(peer.read(|heard| heard.states.len()), 1);
    // The healthy one went on all the time, in both directions.
    lime.pod(9, "new");
    pear.pod(9, "new");
    eventually("changes of both", || {
        agent.pods("pear").len() == 2 && neighbour.pods("lime") == ["10.1.1.2 web", "10.1.1.9 new"]
    })
    .await;
    assert_eq!(pear.line.made(), made, "by the same streams");
    for one in [&agent, &neighbour] {
        one.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_another_cluster_is_not_followed() {
    let log = Log::from_now();
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
    let address = north.line.address.to_string();
    let said = ["WARN", "its certificate is of cluster north, wanted west", &address];
    eventually("it is logged", || log.has(&said)).await;
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
    // Its own name, and the address ranges of a cluster that is joined under another name.
    east.join("east", &["10.7.0.0/16"], &nowhere, &east.bundle());
    east.join("second", &["10.3.0.0/16"], &[north.line.address], &north.bundle());
    eventually("itself", || {
        east.condition("east", "Accepted")
            .starts_with("False PeerIsOurself ClusterPeer east: metadata.name east")
    })
    .await;
    eventually("one that is joined already", || {
        east.condition("second", "Accepted").starts_with("False PeerCidrTwice ClusterPeer second")
            && east.condition("second", "Connected").starts_with("False CertificateOfAnother")
    })
    .await;
    eventually("counted", || {
        let text = east.metrics.render();
        ["PeerCidrOurs\"} 1", "PeerIsOurself\"} 1", "PeerCidrTwice\"} 2"]
            .iter()
            .all(|part| text.contains(part))
    })
    .await;
    north.pod(9, "new");
    eventually("the real one goes on", || agent.pods("north") == ["10.3.1.2 web", "10.3.1.9 new"]).await;
    assert_eq!(agent.pods("east"), ["10.1.1.2 web"]);
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
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
    // Nor to who comes from the same address, as all do that one node's NodePort leads in.
    let before = east.metrics.refusals("TooManyFromOneAddress");
    let mut shared = Vec::new();
    for _ in 0..64 {
        shared.push(tokio::net::TcpStream::connect(east.serves()).await.unwrap());
    }
    eventually("the oldest give way", || east.metrics.refusals("TooManyFromOneAddress") >= before + 32).await;
    let another = east.agent();
    eventually("the newest is let in", || another.pods("east") == ["10.1.1.2 web"]).await;
    drop((silent, shared));
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
        signed: None,
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
    let log = Log::from_now();
    let (east, north) = (Cluster::start("east", 1).await, Cluster::start("north", 3).await);
    east.join_with(&north);
    north.join_with(&east);
    let agent = east.agent();
    eventually("the good one", || agent.pods("north") == ["10.3.1.2 web"]).await;
    let made = north.line.made();

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
        // With keys of a node of north, and of an own one.
        node("w3", 25, "10.2.3.0/24"),
        node("w4", 9, "10.2.4.0/24"),
    ]);
    bad.extend(snapshot(at(5), &wrong));
    let mut replayed = vec![said(Say::Bookmark(at(5)))];
    replayed.extend(snapshot(at(4), &[labels()]));
    let huge = vec![write_object(&labels(), &NodeNames::default()); 20_000];
    let oversized = vec![said(Say::SnapshotBegin(at(6))), said(Say::SnapshotPart(huge))];
    // It must end by itself for the next one to come: with a message without sense.
    bad.push(said(Say::SnapshotPart(Vec::new())));
    let scripts = [truncated, bad, replayed, oversized, vec![said(Say::Bookmark(at(5)))]];
    let bytes = |script: &Vec<FollowResponse>| script.iter().map(|said| said.encode_to_vec()).collect();
    let scripts: Vec<Script> = scripts.iter().map(bytes).collect();

    let authority = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    let address = server(credentials(&authority, "west"), &east, Scripted::new(scripts)).await;
    east.join("west", &["10.2.0.0/16"], &[address], authority.pem());
    for reason in ["Truncated", "ForeignCluster", "Unexpected", "WentBack", "MessageTooLong"] {
        eventually(reason, || east.metrics.refusals(reason) > 0).await;
        if reason != "ForeignCluster" {
            eventually(reason, || log.has(&["WARN", "Not connected", reason, &address.to_string()])).await;
        }
    }
    let said = ["WARN", "ForeignCluster", "cluster west: tells of cluster north; refused"];
    eventually("it is logged", || log.has(&said)).await;
    eventually("what is its own", || agent.pods("west") == ["10.2.1.7 evil"]).await;
    eventually("facts that are not believed", || {
        let said = east.condition("west", "Problems");
        said.starts_with("True")
            && said
                .contains("spec.podCIDRs 10.3.1.0/24 is outside what ClusterPeer west allows (10.2.0.0/16)")
            && said.contains("cluster west: tells of cluster north; refused")
            && said.contains("node w3 of cluster west: announces key")
            && said.contains("a key of node north-n1 of cluster north (older)")
            && said.contains("node w4 of cluster west: announces key")
            && said.contains("a key of node east-n1 of this cluster")
    })
    .await;
    for reason in ["NodeKeyTwice", "NodeCidrOutside", "EndpointOutside", "EndpointWithoutNode"] {
        eventually(reason, || log.has(&["WARN", "cluster=west", reason, "Not believed"])).await;
    }
    eventually("counted", || {
        let text = east.metrics.render();
        ["NodeCidrOutside\"} 1", "EndpointOutside\"} 2", "EndpointWithoutNode\"} 1", "NodeKeyTwice\"} 2"]
            .iter()
            .all(|part| text.contains(part))
    })
    .await;
    // Nothing else is affected.
    north.pod(5, "new");
    eventually("the good one goes on", || agent.pods("north") == ["10.3.1.2 web", "10.3.1.5 new"]).await;
    assert_eq!(agent.pods("east"), ["10.1.1.2 web"]);
    assert_eq!(north.line.made(), made, "by the same stream");
    agent.read(|heard| {
        assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0));
        assert_eq!(heard.states[&cluster("north")].nodes.len(), 1, "with its keys");
    });
}
