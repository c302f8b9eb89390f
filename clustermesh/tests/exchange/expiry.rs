//! Certificates that are over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clustermesh::daemon::authority::{Authority, LEAF};
use clustermesh::daemon::tls::Credentials;
use clustermesh::follow::Target;
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, client_config};
use mesh_core::clusters::{ClusterState, Version};
use prost::Message as _;
use proto::clustermesh::{FollowResponse, Message, Say, counts};

use super::raw::{Scripted, server};
use super::world::*;

/// Made so long ago that it was over a minute ago.
fn over(authority: &Authority) -> Arc<Credentials> {
    let then = SystemTime::now() - LEAF - Duration::from_secs(60);
    Arc::new(Credentials::new(authority.issue(then).unwrap().key))
}

fn renew(credentials: &Credentials, authority: &Authority) {
    credentials.renew(authority.issue(SystemTime::now()).unwrap().key);
}

/// Everything that an empty cluster has to say.
fn nothing(name: &str) -> Vec<Vec<u8>> {
    let version = Version { incarnation: 1, sequence: 1 }.into();
    let end = Say::SnapshotEnd { version, counts: counts(&ClusterState::default()) };
    let said = [Say::SnapshotBegin(version), end, Say::Bookmark(version)];
    said.map(|say| FollowResponse::from(Message::Of(cluster(name), say)).encode_to_vec()).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_certificate_is_over_is_refused_named_and_followed_once_it_has_another() {
    let log = Log::from_now();
    let (east, north) = (Cluster::start("east", 1).await, Cluster::start("north", 3).await);
    mesh(&[&east, &north]);
    let agent = east.agent();
    eventually("a healthy one", || agent.pods("north") == ["10.3.1.2 web"]).await;
    let made = north.line.made();
    let elm = Authority::make(&cluster("elm"), SystemTime::now()).unwrap().0;
    let own = over(&elm);
    let scripted = Scripted::new(vec![nothing("elm")]);
    let address = server(Arc::clone(&own), &east, scripted.clone()).await;
    east.join("elm", &["10.2.0.0/16"], &[address], elm.pem());
    let said = "its certificate, of cluster elm, is not valid at this time";
    eventually("the status says so", || {
        let text = east.condition("elm", "Connected");
        text.starts_with("False CertificateExpired")
            && text.contains(said)
            && text.contains(&address.to_string())
    })
    .await;
    eventually("it is tried again and again", || east.metrics.refusals("CertificateExpired") > 1).await;
    assert!(east.metrics.interruptions("CertificateExpired") > 1);
    // Tries are repeated for ever, and not the line.
    assert_eq!(log.count(&["WARN", "Not connected", "CertificateExpired", said, &address.to_string()]), 1);
    assert!(scripted.asked().is_empty(), "it was asked nothing");
    assert_eq!(agent.pods("elm"), ["unknown"]);
    renew(&own, &elm);
    eventually("connected", || east.condition("elm", "Connected").starts_with("True")).await;
    eventually("what it tells arrives", || agent.pods("elm").is_empty()).await;
    north.pod(9, "new");
    eventually("the healthy one", || agent.pods("north").len() == 2).await;
    assert_eq!(north.line.made(), made, "by the same stream");
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_certificate_is_over_is_refused_named_and_let_in_once_it_has_another() {
    let log = Log::from_now();
    let (east, north) = (Cluster::start("east", 1).await, Cluster::start("north", 3).await);
    mesh(&[&east, &north]);
    let neighbour = north.agent();
    eventually("a healthy one", || neighbour.pods("east") == ["10.1.1.2 web"]).await;
    let ash = Authority::make(&cluster("ash"), SystemTime::now()).unwrap().0;
    east.join("ash", &["10.2.0.0/16"], &["127.0.0.1:1".parse().unwrap()], ash.pem());
    eventually("joined", || east.condition("ash", "Accepted").starts_with("True")).await;
    let own = over(&ash);
    let roots = Roots::parse(&east.bundle()).unwrap();
    let trusted = Arc::new(move |_: &_| Some(roots.clone()));
    let tls = client_config(cluster("east"), trusted, Some(Arc::clone(&own) as _)).unwrap();
    let addresses = vec![address(east.line.address)];
    let target = Target { addresses, tls, token: None, renewed: Some(own.renewals()) };
    let follower = Agent::start(target, Scope::One(cluster("east")));
    eventually("refused, and again", || east.metrics.refusals("CertificateExpired") > 1).await;
    let said = ["WARN", "A connection was refused", "CertificateExpired", "of cluster ash, is not valid"];
    eventually("it is logged", || log.has(&said)).await;
    follower.read(|heard| assert_eq!((heard.connected, heard.states.len()), (0, 0)));
    renew(&own, &ash);
    eventually("let in", || follower.pods("east") == ["10.1.1.2 web"]).await;
    east.pod(9, "new");
    eventually("both hear more", || follower.pods("east").len() == 2 && neighbour.pods("east").len() == 2)
        .await;
    neighbour.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
    assert_eq!(follower.read(|heard| heard.connected), 1);
}
