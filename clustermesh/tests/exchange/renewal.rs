//! Certificates and trust change while streams run.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clustermesh::daemon::authority::{Authority, LEAF};
use clustermesh::daemon::hub::Hub;
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::server::{STUCK, Serving, serve};
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::daemon::tokens::Tokens;
use clustermesh::follow::Target;
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, client_config};
use mesh_core::clusters::{Change, Object, Version};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_certificates_that_are_renewed_in_time_and_end_with_others_and_with_their_trust() {
    let api = Cluster::start("api", 9).await;
    let now = SystemTime::now();
    let (east, west) = (
        Authority::make(&cluster("east"), now).unwrap().0,
        Authority::make(&cluster("west"), now).unwrap().0,
    );
    let own = Arc::new(Credentials::new(east.issue(now).unwrap().key));
    let trust = Arc::new(Trust::default());
    let roots = |authority: &Authority| Roots::parse(authority.pem()).unwrap();
    trust.set([(cluster("west"), roots(&west))].into());
    let hub = Hub::new(cluster("east"));
    let namespace = |name: &str| Change::Put(Object::Namespace(name.into(), Arc::default()));
    hub.changed(&cluster("east"), Version { incarnation: 1, sequence: 0 }.into(), vec![namespace("a")]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let metrics = Metrics::new();
    let serving = Serving {
        hub: hub.clone(),
        trust: Arc::clone(&trust),
        tokens: Tokens::new(api.client.clone(), []),
        tls: server_config(Arc::clone(&trust), Arc::clone(&own)).unwrap(),
        recheck: Duration::from_millis(50),
        stuck: STUCK,
        metrics: metrics.clone(),
    };
    let server = tokio::spawn(serve(listener, serving, stopped));
    let east_roots = roots(&east);
    // West's certificate is soon over.
    let life = Duration::from_secs(5);
    let mine = Arc::new(Credentials::new(west.issue(now - LEAF + life).unwrap().key));
    let trusted = Arc::new(move |_: &_| Some(east_roots.clone()));
    let tls = client_config(cluster("east"), trusted, Some(Arc::clone(&mine) as Arc<_>)).unwrap();
    let target =
        |renewed| Target { addresses: vec![address(at)], tls: Arc::clone(&tls), token: None, renewed };
    let spaces = |peer: &Agent| {
        peer.read(|heard| heard.states.get(&cluster("east")).map_or(0, |s| s.namespaces.len()))
    };
    let peer = Agent::start(target(Some(mine.renewals())), Scope::One(cluster("east")));
    // One that does not care for its certificate.
    let careless = Agent::start(target(None), Scope::One(cluster("east")));
    eventually("two streams", || spaces(&peer) == 1 && spaces(&careless) == 1).await;
    own.renew(east.issue(SystemTime::now()).unwrap().key);
    mine.renew(west.issue(SystemTime::now()).unwrap().key);
    eventually("the stream is begun anew at once", || peer.read(|heard| heard.connected == 2)).await;
    hub.advance(vec![namespace("b")]);
    eventually("and goes on where it was", || spaces(&peer) == 2).await;
    eventually("who shows a certificate that is over is cut, and comes with the new one", || {
        careless.read(|heard| heard.ended == ["RefusedByServer"] && heard.connected == 2)
    })
    .await;
    assert!(SystemTime::now() >= now + life);
    hub.advance(vec![namespace("c")]);
    eventually("all go on", || spaces(&peer) == 3 && spaces(&careless) == 3).await;
    assert_eq!(peer.read(|heard| heard.ended.clone()), ["Renewed"]);
    assert_eq!(metrics.refusals("CertificateExpired"), 1);
    drop(careless);
    // Another authority for west: who has a certificate of the old one is cut, and not let in again.
    let other = Authority::make(&cluster("west"), now).unwrap().0;
    trust.set([(cluster("west"), roots(&other))].into());
    eventually("the stream is cut", || {
        peer.read(|heard| heard.ended.get(1).is_some_and(|why| why == "RefusedByServer"))
    })
    .await;
    hub.advance(vec![namespace("d")]);
    eventually("it is refused", || metrics.refusals("CertificateNotVouched") > 2).await;
    assert_eq!(spaces(&peer), 3);
    mine.renew(other.issue(SystemTime::now()).unwrap().key);
    eventually("with the new authority it is let in", || spaces(&peer) == 4).await;
    // At the end streams are told.
    stop.send_replace(true);
    tokio::time::timeout(DEADLINE, server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_bundle_that_is_spoilt_and_mended_costs_what_was_missed_and_nothing_else() {
    let (east, west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    west.pod(3, "gone");
    mesh(&[&east, &west]);
    let agent = east.agent();
    eventually("joined", || agent.pods("west") == ["10.2.1.2 web", "10.2.1.3 gone"]).await;
    let bundle = west.bundle();
    east.trust("west", "-----BEGIN CERTIFICATE-----");
    eventually("it is said", || east.condition("west", "Accepted").contains("spec.trustBundle")).await;
    eventually("not spoken to", || east.condition("west", "Connected").starts_with("False")).await;
    west.delete_pod(3);
    west.pod(4, "new");
    assert_eq!(agent.pods("west"), ["10.2.1.2 web", "10.2.1.3 gone"], "nothing is forgotten for it");
    east.trust("west", &bundle);
    eventually("what was missed", || agent.pods("west") == ["10.2.1.2 web", "10.2.1.4 new"]).await;
    eventually("joined again", || east.condition("west", "Connected").starts_with("True")).await;
    // An authority that is not west's: its server is looked at again.
    let other = Authority::make(&cluster("west"), SystemTime::now()).unwrap().0;
    east.trust("west", other.pem());
    eventually("another connection", || {
        east.condition("west", "Connected").starts_with("False CertificateNotVouched")
    })
    .await;
    east.trust("west", &bundle);
    eventually("joined a third time", || east.condition("west", "Connected").starts_with("True")).await;
    assert_eq!(agent.pods("west"), ["10.2.1.2 web", "10.2.1.4 new"]);
}
