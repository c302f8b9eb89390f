use std::net::IpAddr;

use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{
    Affinity, Backend, ExportedService, LabelSet, LabelSetId, Object, RemoteEndpoint, RemoteNode,
    ServiceKind, TrafficPolicy, Version,
};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::policy::model::{Labels, ObjectName};
use prost::Message as _;
use proto::clustermesh::MAX_OBJECT;

use super::*;
use crate::Told;
use crate::session::{Scope, Session};

mod flapping;
mod merge;
mod simulation;

/// Kinds that [`object`] makes.
const KINDS: u8 = 6;

/// One of few objects of a kind, in one of few values: so that they meet each other.
fn object(kind: u8, which: u8, value: u8) -> Object {
    let labels = || Arc::new(Labels::from([("value".to_owned(), value.to_string())]));
    let node: Arc<NodeName> = Arc::new(format!("n{}", which % 3).parse().unwrap());
    let name = Arc::new(ObjectName { namespace: "shop".to_owned(), name: format!("s{}", which % 2) });
    match kind {
        0 => {
            let labels = Labels::clone(&labels());
            let set = LabelSet { namespace: "shop".to_owned(), labels, ..LabelSet::default() };
            Object::LabelSet(LabelSetId(which.into()), Arc::new(set))
        }
        1 => Object::Namespace(format!("ns{which}").into(), labels()),
        2 => {
            let slot = |number: u8| SlotAnnouncement {
                epoch: Epoch(u64::from(value) + 1),
                public_key: PublicKey::from_bytes([number; 32]),
                port: 51880,
                draining: false,
            };
            let announcement = Announcement {
                slots: [slot(2 * which + 1), slot(2 * which + 2)],
                endpoints: Vec::new(),
                kem: None,
                kem_required: false,
                host_traffic: value > 1,
            };
            let pod_cidrs = vec![format!("10.2.{which}.0/24").parse().unwrap()];
            let told = RemoteNode { uid: "u".into(), created: 1, pod_cidrs, announcement, signed: None };
            Object::Node(node, Arc::new(told))
        }
        3 => {
            let address = IpAddr::from([10, 2, which % 3, which]);
            Object::Endpoint(address, RemoteEndpoint { node, labels: LabelSetId(value.into()) })
        }
        4 => {
            let service = ExportedService {
                created: value.into(),
                kind: ServiceKind::ClusterSetIp,
                ports: Vec::new(),
                families: Vec::new(),
                affinity: Affinity::None,
                internal_traffic_policy: TrafficPolicy::Cluster,
                traffic_distribution: None,
                labels: Labels::new(),
                annotations: Labels::new(),
            };
            Object::Service(name, Arc::new(service))
        }
        _ => {
            let backend = Backend {
                ready: value > 0,
                serving: value > 0,
                terminating: value == 0,
                hostname: None,
                node: None,
                zone: None,
                ports: [].into(),
            };
            Object::Backend(name, IpAddr::from([10, 2, which % 3, which]), Arc::new(backend))
        }
    }
}

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn at(incarnation: u64, sequence: u64) -> At {
    Version { incarnation, sequence }.into()
}

fn endpoint(host: u8, labels: u64) -> Object {
    let node: Arc<NodeName> = Arc::new("n1".parse().unwrap());
    Object::Endpoint(IpAddr::from([10, 2, 0, host]), RemoteEndpoint { node, labels: LabelSetId(labels) })
}

fn put(host: u8, labels: u64) -> Change {
    Change::Put(endpoint(host, labels))
}

/// Everything that there is to say now.
fn hear(session: &mut Session, feed: &mut Feed, clusters: &Clusters, now: u64) -> Vec<String> {
    let mut words = Vec::new();
    while let Some(message) = feed.next(clusters, Millis(now)) {
        for told in session.hear(message).unwrap().told {
            words.push(match told {
                Told::Changed { cluster, version, changes } => {
                    format!("{cluster} {}.{} {}", version.incarnation, version.sequence, changes.len())
                }
                Told::Heard { cluster } => format!("{cluster} heard"),
                Told::Gone { cluster } => format!("{cluster} gone"),
                Told::Complete => "complete".to_owned(),
            });
        }
    }
    words
}

#[test]
fn a_follower_is_told_all_once_then_what_changes_and_what_was_heard_since_it_came() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    let (mut session, mut feed) = (Session::new(Scope::All), Feed::new(Reach::All, BTreeMap::new()));
    assert_eq!(
        hear(&mut session, &mut feed, &clusters, 0),
        [""; 0],
        "nothing is known, not even who is joined"
    );
    clusters.join(&[cluster("east")], Millis(0));
    clusters.changed(&cluster("here"), at(1, 0), vec![put(1, 1)]);
    clusters.heard(&cluster("here"));
    assert_eq!(hear(&mut session, &mut feed, &clusters, 0), ["here 1.0 1"], "east may still come");
    clusters.changed(&cluster("east"), at(7, 3), vec![put(1, 1), put(2, 1)]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 1), ["east 7.3 2", "complete"]);
    clusters.heard(&cluster("here"));
    clusters.advance(vec![put(1, 2)]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 2), ["here 1.1 1", "here heard"]);
    clusters.join(&[], Millis(2));
    assert_eq!(hear(&mut session, &mut feed, &clusters, 3), ["east gone"]);
}

#[test]
fn of_a_cluster_that_is_joined_anew_all_is_told_anew_also_to_who_never_saw_it_away() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[cluster("east")], Millis(0));
    clusters.changed(&cluster("here"), at(1, 0), vec![]);
    clusters.changed(&cluster("east"), at(7, 3), vec![put(1, 1), put(2, 1)]);
    let (mut session, mut feed) = (Session::new(Scope::All), Feed::new(Reach::All, BTreeMap::new()));
    hear(&mut session, &mut feed, &clusters, 1);
    clusters.join(&[], Millis(2));
    clusters.join(&[cluster("east")], Millis(2));
    // Its clock was set back.
    clusters.changed(&cluster("east"), at(6, 1), vec![put(3, 1)]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 3), ["east gone", "east 6.1 1"]);
    clusters.changed(&cluster("east"), at(6, 2), vec![put(4, 1)]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 4), ["east 6.2 1"]);
    // A stream that goes on from there asks for no more.
    let mut feed = Feed::new(Reach::All, session.begin());
    assert_eq!(hear(&mut session, &mut feed, &clusters, 5), ["complete"]);
}

#[test]
fn a_cluster_that_is_not_reached_is_not_waited_for_for_ever() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[cluster("east")], Millis(5));
    clusters.changed(&cluster("here"), at(1, 0), vec![]);
    let (mut session, mut feed) = (Session::new(Scope::All), Feed::new(Reach::All, BTreeMap::new()));
    assert_eq!(hear(&mut session, &mut feed, &clusters, 5), ["here 1.0 0"]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 4 + PATIENCE), [""; 0]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 5 + PATIENCE), ["complete"]);
}

#[test]
fn a_cluster_that_changes_all_the_time_holds_up_no_other_and_no_bookmark() {
    let names = ["a", "here", "z"];
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[cluster("a"), cluster("z")], Millis(0));
    for name in names {
        clusters.changed(&cluster(name), at(1, 0), Vec::new());
    }
    let (mut session, mut feed) = (Session::new(Scope::All), Feed::new(Reach::All, BTreeMap::new()));
    assert_eq!(hear(&mut session, &mut feed, &clusters, 0).len(), 4);
    let mut words = Vec::new();
    for sequence in 1..=6 {
        // Before each message there is more of the first one, and everybody is there.
        clusters.changed(&cluster("a"), at(1, sequence), vec![put(1, sequence)]);
        for name in names {
            clusters.heard(&cluster(name));
        }
        let message = feed.next(&clusters, Millis(0)).unwrap();
        words.push(message.cluster.clone());
        session.hear(message).unwrap();
    }
    assert_eq!(words, ["a", "here", "z", "a", "here", "z"]);
}

#[test]
fn a_peer_hears_of_the_own_cluster_alone_whatever_it_says_that_it_knows() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[cluster("east"), cluster("west")], Millis(0));
    clusters.changed(&cluster("here"), at(1, 0), vec![put(1, 1)]);
    clusters.changed(&cluster("west"), at(1, 0), vec![put(2, 1)]);
    let known = BTreeMap::from([(cluster("west"), at(0, 0)), (cluster("north"), at(1, 1))]);
    let mut feed = Feed::new(Reach::Own, known);
    let mut session = Session::new(Scope::One(cluster("here")));
    assert_eq!(hear(&mut session, &mut feed, &clusters, 0), ["here 1.0 1", "complete"]);
    clusters.advance(vec![put(3, 1)]);
    clusters.changed(&cluster("west"), at(1, 1), vec![put(4, 1)]);
    assert_eq!(hear(&mut session, &mut feed, &clusters, 0), ["here 1.1 1"]);
}

#[test]
fn a_lost_stream_goes_on_without_a_snapshot_and_a_long_one_is_cut_into_messages() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[], Millis(0));
    let many = |labels| -> Vec<Change> {
        let places = (0..=255).flat_map(|host| (0..20).map(move |net| (host, net)));
        let put = |(host, net)| {
            let node: Arc<NodeName> = Arc::new("n1".parse().unwrap());
            let endpoint = RemoteEndpoint { node, labels: LabelSetId(labels) };
            Change::Put(Object::Endpoint(IpAddr::from([10, 2, net, host]), endpoint))
        };
        places.map(put).collect()
    };
    clusters.changed(&cluster("here"), at(1, 0), many(1));
    let mut session = Session::new(Scope::All);
    let mut feed = Feed::new(Reach::All, session.begin());
    let mut parts = 0;
    while let Some(message) = feed.next(&clusters, Millis(0)) {
        assert!(message.encoded_len() <= MESSAGE + 100);
        parts += 1;
        session.hear(message).unwrap();
    }
    assert!(parts > 4, "{parts}");
    // All of it changes while the line is cut.
    clusters.advance(many(2));
    let mut feed = Feed::new(Reach::All, session.begin());
    let first = feed.next(&clusters, Millis(0)).unwrap();
    assert!(!proto::clustermesh::begins_snapshot(&first));
    session.hear(first).unwrap();
    let of_old = session.state(&cluster("here")).unwrap().1.endpoints.values();
    assert!(of_old.clone().all(|endpoint| endpoint.labels == LabelSetId(1)), "not before all of it is there");
    assert_eq!(hear(&mut session, &mut feed, &clusters, 0), ["here 1.1 5120", "complete"]);
}

/// A service that is as long as an object may be.
fn longest(which: u8, value: u8) -> Object {
    let Object::Service(_, service) = object(4, which, value) else { panic!("a service") };
    let of = |filling: usize| {
        let annotations = [("a", 100_000), ("b", 100_000), ("c", filling)];
        let annotations = annotations.map(|(key, length)| (key.to_owned(), "v".repeat(length)));
        let service = ExportedService { annotations: annotations.into(), ..ExportedService::clone(&service) };
        let name = ObjectName { namespace: "shop".to_owned(), name: format!("long{which}") };
        Object::Service(Arc::new(name), Arc::new(service))
    };
    let length = |object: &Object| write_object(object, &NodeNames::default()).encoded_len();
    // Lengths of this order are all written in three bytes.
    let made = of(20_000 + MAX_OBJECT - length(&of(20_000)));
    assert_eq!(length(&made), MAX_OBJECT);
    made
}

#[test]
fn no_message_is_longer_than_the_longest_object_whatever_comes_together() {
    let mut clusters = Clusters::new(cluster("here"), Millis(0));
    clusters.join(&[], Millis(0));
    let mut session = Session::new(Scope::All);
    for value in 1..=2 {
        // Before the long ones nearly a message full of short ones, and some after them.
        let short = (0..=255).flat_map(|net| (0..7).map(move |host| (net, host)));
        let short = short.map(|(net, host)| {
            let node: Arc<NodeName> = Arc::new("n1".parse().unwrap());
            let endpoint = RemoteEndpoint { node, labels: LabelSetId(value) };
            Object::Endpoint(IpAddr::from([10, 2, net, host]), endpoint)
        });
        let value = u8::try_from(value).unwrap();
        let long = (0..4).map(|which| longest(which, value));
        let after = (0..6).map(|which| object(5, which, value));
        let changes = short.chain(long).chain(after).map(Change::Put).collect();
        if value == 1 {
            clusters.changed(&cluster("here"), at(1, 0), changes);
        } else {
            clusters.advance(changes);
        }
        let mut feed = Feed::new(Reach::All, session.begin());
        let mut lengths = Vec::new();
        while let Some(message) = feed.next(&clusters, Millis(0)) {
            lengths.push(message.encoded_len());
            assert_eq!(session.hear(message).unwrap().left_out, []);
        }
        assert!(lengths.iter().all(|length| *length <= MAX_OBJECT + 100), "{lengths:?}");
        assert_eq!(lengths.iter().filter(|length| **length > MAX_OBJECT).count(), 4, "{lengths:?}");
        let (here, heard) = (cluster("here"), session.state(&cluster("here")).unwrap().1);
        assert_eq!(Some(heard), clusters.store(&here).map(Store::state));
    }
}
