use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{LabelSet, LabelSetId, RemoteEndpoint, RemoteNode, Signed};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::policy::model::Labels;
use proptest::prelude::*;
use prost::Message as _;
use proto::clustermesh::{MAX_OBJECT, counts, write_change, write_node, write_object};

use super::*;

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn at(incarnation: u64, sequence: u64) -> Version {
    Version { incarnation, sequence }
}

/// Changes from a small alphabet, so that they meet each other.
fn change() -> impl Strategy<Value = Change> {
    let small = 0u8..4;
    (0u8..3, small.clone(), small, any::<bool>()).prop_map(|(kind, which, value, delete)| {
        let object = match kind {
            0 => {
                let set = LabelSet { namespace: format!("ns{value}"), ..LabelSet::default() };
                Object::LabelSet(LabelSetId(which.into()), Arc::new(set))
            }
            1 => {
                let labels = Labels::from([("value".to_owned(), value.to_string())]);
                Object::Namespace(format!("ns{which}").into(), Arc::new(labels))
            }
            _ => endpoint(which, value),
        };
        if delete { Change::Delete(object.key()) } else { Change::Put(object) }
    })
}

fn endpoint(which: u8, labels: u8) -> Object {
    let node: Arc<NodeName> = Arc::new("n1".parse().unwrap());
    Object::Endpoint(
        IpAddr::from([10, 2, 0, which]),
        RemoteEndpoint { node, labels: LabelSetId(labels.into()) },
    )
}

fn node(name: &str) -> Object {
    let slot = |number: u8| SlotAnnouncement {
        epoch: Epoch(1),
        public_key: PublicKey::from_bytes([number; 32]),
        port: 51880,
        draining: false,
    };
    let announcement = Announcement {
        slots: [slot(1), slot(2)],
        endpoints: Vec::new(),
        kem: None,
        kem_required: false,
        host_traffic: false,
    };
    let pod_cidrs = vec!["10.2.0.0/24".parse().unwrap()];
    let node = RemoteNode { uid: "u".into(), created: 1, pod_cidrs, announcement, signed: None };
    Object::Node(Arc::new(name.parse().unwrap()), Arc::new(node))
}

/// A cluster's states, one after the other.
fn history() -> impl Strategy<Value = Vec<(Version, ClusterState)>> {
    prop::collection::vec((change(), any::<bool>()), 1..10).prop_map(|steps| {
        let (mut version, mut state) = (at(1, 0), ClusterState::default());
        let mut history = vec![(version, state.clone())];
        for (change, new_leader) in steps {
            state.apply(change);
            let Version { incarnation, sequence } = version;
            version = if new_leader { at(incarnation + 1, 0) } else { at(incarnation, sequence + 1) };
            history.push((version, state.clone()));
        }
        history
    })
}

fn say(say: Say) -> FollowResponse {
    Message::Of(cluster("east"), say).into()
}

/// A snapshot, one object a message.
fn snapshot((version, state): &(Version, ClusterState)) -> Vec<FollowResponse> {
    let names = NodeNames::default();
    let mut messages = vec![say(Say::SnapshotBegin((*version).into()))];
    let objects = state.keys().filter_map(|key| state.get(&key));
    messages.extend(objects.map(|object| say(Say::SnapshotPart(vec![write_object(&object, &names)]))));
    messages.push(say(Say::SnapshotEnd { version: (*version).into(), counts: counts(state) }));
    messages
}

/// Changes, one a message.
fn changes(from: &(Version, ClusterState), to: &(Version, ClusterState)) -> Vec<FollowResponse> {
    let all: Vec<_> = from.1.changes_to(&to.1);
    let message = |change: Option<&Change>, part: usize, more| {
        let part = u32::try_from(part).unwrap();
        let changes = change.map(|change| write_change(change, &NodeNames::default()));
        say(Say::Changes {
            from: from.0.into(),
            to: to.0.into(),
            changes: changes.into_iter().collect(),
            part,
            more,
        })
    };
    match all.split_last() {
        None => vec![message(None, 0, false)],
        Some((last, before)) => {
            let before = before.iter().enumerate().map(|(part, change)| message(Some(change), part, true));
            before.chain([message(Some(last), all.len() - 1, false)]).collect()
        }
    }
}

/// What happens to a stream.
#[derive(Clone, Debug)]
enum Fate {
    /// All of it arrives.
    Whole,
    /// It is cut after so many messages.
    Cut(prop::sample::Index),
    /// One message is lost.
    Lost(prop::sample::Index),
    /// Two messages are exchanged.
    Swapped(prop::sample::Index),
    /// One message comes a second time.
    Twice(prop::sample::Index),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        2 => Just(Fate::Whole),
        1 => any::<prop::sample::Index>().prop_map(Fate::Cut),
        1 => any::<prop::sample::Index>().prop_map(Fate::Lost),
        1 => any::<prop::sample::Index>().prop_map(Fate::Swapped),
        1 => any::<prop::sample::Index>().prop_map(Fate::Twice),
    ]
}

fn suffer(mut messages: Vec<FollowResponse>, fate: &Fate) -> Vec<FollowResponse> {
    match fate {
        Fate::Whole => {}
        Fate::Cut(at) => messages.truncate(at.index(messages.len())),
        Fate::Lost(at) => drop(messages.remove(at.index(messages.len()))),
        Fate::Swapped(at) => {
            let at = at.index(messages.len());
            let next = (at + 1) % messages.len();
            messages.swap(at, next);
        }
        Fate::Twice(at) => {
            let at = at.index(messages.len());
            messages.insert(at, messages[at].clone());
        }
    }
    messages
}

proptest! {
    /// Whatever happens to streams: what is known is one of the states that there were, under its version, it never goes
    /// back, and who applies what is told has the same.
    #[test]
    fn a_follower_has_a_state_that_there_was_and_tells_all_of_it(
        history in history(),
        streams in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), fate()), 1..12),
    ) {
        let mut session = Session::new(Scope::One(cluster("east")));
        let mut heard = ClusterState::default();
        let mut reached = None;
        for (moment, resume, fate) in &streams {
            let moment = moment.get(&history);
            let known = session.begin().get(&cluster("east")).map(|known| known.version);
            let from = history.iter().find(|(version, _)| Some(*version) == known);
            let messages = match from.filter(|_| *resume) {
                Some(from) => changes(from, moment),
                None => snapshot(moment),
            };
            for message in suffer(messages, fate) {
                let Ok(outcome) = session.hear(message) else { break };
                prop_assert_eq!(&outcome.left_out, &[]);
                for told in outcome.told {
                    let Told::Changed { version, changes, .. } = told else { panic!("{told:?}") };
                    prop_assert!(reached <= Some(version), "{reached:?} {version:?}");
                    reached = Some(version);
                    let touched: BTreeSet<Key> = changes.iter().map(Change::key).collect();
                    prop_assert_eq!(touched.len(), changes.len());
                    for change in changes {
                        prop_assert!(heard.apply(change), "touches what is equal");
                    }
                }
            }
            match session.state(&cluster("east")) {
                None => prop_assert_eq!(reached, None),
                Some((version, state)) => {
                    prop_assert_eq!(Some(version), reached);
                    let (_, wanted) = history.iter().find(|(known, _)| *known == version).unwrap();
                    prop_assert_eq!(state, wanted);
                    prop_assert_eq!(&heard, wanted);
                }
            }
        }
        // A whole snapshot of the last state always leads there.
        session.begin();
        let last = history.last().unwrap();
        for message in snapshot(last) {
            prop_assert!(session.hear(message).is_ok());
        }
        prop_assert_eq!(session.state(&cluster("east")), Some((last.0, &last.1)));
    }
}

fn state(objects: &[Object]) -> ClusterState {
    let mut state = ClusterState::default();
    for object in objects {
        state.apply(Change::Put(object.clone()));
    }
    state
}

fn hear_all(session: &mut Session, messages: Vec<FollowResponse>) -> Result<Vec<Told>, SessionError> {
    let mut told = Vec::new();
    for message in messages {
        told.extend(session.hear(message)?.told);
    }
    Ok(told)
}

fn followed(objects: &[Object]) -> Session {
    let mut session = Session::new(Scope::One(cluster("east")));
    hear_all(&mut session, snapshot(&(at(1, 5), state(objects)))).unwrap();
    session
}

#[test]
fn an_empty_cluster_is_told_and_one_that_is_equal_after_a_new_leader_has_no_changes() {
    let changed = |version, changes| Told::Changed { cluster: cluster("east"), version, changes };
    let mut session = Session::new(Scope::One(cluster("east")));
    let first = hear_all(&mut session, snapshot(&(at(1, 0), ClusterState::default())));
    assert_eq!(first, Ok(vec![changed(at(1, 0), vec![])]));
    let mut session = followed(&[endpoint(1, 1)]);
    let again = hear_all(&mut session, snapshot(&(at(2, 0), state(&[endpoint(1, 1)]))));
    assert_eq!(again, Ok(vec![changed(at(2, 0), vec![])]));
    let bookmark = session.hear(say(Say::Bookmark(at(2, 0).into()))).unwrap();
    assert_eq!(bookmark.told, [Told::Heard { cluster: cluster("east") }]);
}

#[test]
fn what_makes_no_sense_ends_the_stream_and_is_named() {
    let check = |messages: Vec<FollowResponse>, expected: &str| {
        let mut session = followed(&[endpoint(1, 1)]);
        let error = hear_all(&mut session, messages).unwrap_err();
        assert_eq!(format!("{}: {error}", error.reason()), expected);
        assert_eq!(session.state(&cluster("east")), Some((at(1, 5), &state(&[endpoint(1, 1)]))));
    };
    let moment = |version, objects: &[Object]| (version, state(objects));
    let mut truncated = snapshot(&moment(at(1, 6), &[endpoint(1, 1), endpoint(2, 1)]));
    truncated.remove(2);
    check(
        truncated,
        "Truncated: cluster east: a snapshot has 1 objects of kind endpoint, 2 were announced; nothing of it counts",
    );
    check(
        snapshot(&moment(at(1, 4), &[])),
        "WentBack: cluster east: version 1.4 was told though 1.5 is known; refused as a replay; if that cluster's Lease hawser-clustermesh was deleted and its clock set back, delete its ClusterPeer here and create it anew",
    );
    check(
        changes(&moment(at(1, 4), &[]), &moment(at(1, 6), &[])),
        "OtherVersion: cluster east: a change is about version 1.4, which is not what is known; the stream is begun anew",
    );
    check(
        vec![say(Say::Bookmark(at(1, 6).into()))],
        "OtherVersion: cluster east: a bookmark is about version 1.6, which is not what is known; the stream is begun anew",
    );
    check(
        vec![say(Say::SnapshotPart(vec![]))],
        "Unexpected: cluster east: a part of a snapshot came without what goes before it; the stream is begun anew",
    );
    check(
        vec![say(Say::Gone)],
        "Unexpected: cluster east: its own end came without what goes before it; the stream is begun anew",
    );
    check(
        vec![FollowResponse { cluster: "E".into(), say: say(Say::Gone).say }],
        "MessageMalformed: cluster: \"E\" is not a cluster name: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit; correct clusterName in the configuration of the cluster that speaks",
    );
}

#[test]
fn a_cluster_that_speaks_for_another_is_not_heard_and_its_own_facts_are() {
    let mut session = followed(&[]);
    let foreign = Message::Of(cluster("west"), Say::SnapshotBegin(at(1, 0).into())).into();
    let outcome = session.hear(foreign).unwrap();
    assert_eq!((outcome.told, outcome.left_out[0].reason()), (vec![], "ForeignCluster"));
    let to = (at(1, 6), state(&[endpoint(1, 1)]));
    let told = hear_all(&mut session, changes(&(at(1, 5), state(&[])), &to)).unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(session.clusters().collect::<Vec<_>>(), [&cluster("east")]);
}

#[test]
fn an_object_that_cannot_be_read_costs_itself_alone_and_what_was_known_of_it() {
    let mut session = followed(&[endpoint(1, 1), endpoint(2, 1)]);
    let wire = |object: &Object| write_change(&Change::Put(object.clone()), &NodeNames::default());
    // Change { put: Object { endpoint: Endpoint { address: 10.2.0.1, node_name: "n1" } } }, without labels.
    let wrong = [&[0x0a, 12, 0x22, 10, 0x0a, 4, 10, 2, 0, 1, 0x1a, 2][..], b"n1"].concat();
    let wrong = WireChange::decode(wrong.as_slice()).unwrap();
    let message = Say::Changes {
        from: at(1, 5).into(),
        to: at(1, 6).into(),
        changes: vec![wrong, wire(&endpoint(3, 1)), WireChange { what: None }],
        part: 0,
        more: false,
    };
    let outcome = session.hear(say(message)).unwrap();
    let texts: Vec<String> = outcome.left_out.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "cluster east: endpoint 10.2.0.1: labels is missing; refused; upgrade clustermesh of the cluster that tells it",
            "cluster east: tells of a kind of objects that is not known here; upgrade Hawser here to use it",
        ]
    );
    assert_eq!(session.state(&cluster("east")).unwrap().1, &state(&[endpoint(2, 1), endpoint(3, 1)]));
}

#[test]
fn what_is_left_out_is_so_until_its_key_is_read_well_or_a_whole_snapshot_comes_without_it() {
    let mut session = followed(&[endpoint(1, 1), endpoint(2, 1)]);
    let well = |object: Object| write_change(&Change::Put(object), &NodeNames::default());
    // As above: the endpoint 10.2.0.1, without labels.
    let wrong = || {
        let bytes = [&[0x0a, 12, 0x22, 10, 0x0a, 4, 10, 2, 0, 1, 0x1a, 2][..], b"n1"].concat();
        WireChange::decode(bytes.as_slice()).unwrap()
    };
    let unknown = WireChange { what: None };
    let cases = [
        (vec![wrong(), unknown], false, 2),
        (vec![well(endpoint(3, 1))], false, 2),
        (vec![well(endpoint(1, 1))], true, 1),
        (vec![wrong()], false, 2),
        (vec![write_change(&Change::Delete(endpoint(1, 1).key()), &NodeNames::default())], true, 1),
        (vec![well(endpoint(1, 1)), wrong(), well(endpoint(1, 2))], false, 1),
    ];
    for ((changes, mended, missing), sequence) in cases.into_iter().zip(5..) {
        let (from, to) = (at(1, sequence).into(), at(1, sequence + 1).into());
        let outcome = session.hear(say(Say::Changes { from, to, changes, part: 0, more: false })).unwrap();
        assert_eq!((outcome.mended, session.missing(8).len()), (mended, missing), "after {sequence}");
    }
    // What has no key stays until all is told anew, and a snapshot that is cut is none.
    session.hear(say(Say::SnapshotBegin(at(2, 0).into()))).unwrap();
    session.begin();
    assert_eq!(session.missing(8).len(), 1);
    hear_all(&mut session, snapshot(&(at(2, 0), state(&[endpoint(1, 1)])))).unwrap();
    assert_eq!(session.missing(8), [""; 0]);
    // What is of another cluster, until a later stream brings a whole snapshot without it.
    let foreign: FollowResponse = Message::Of(cluster("west"), Say::SnapshotBegin(at(1, 0).into())).into();
    let whole = |sequence| snapshot(&(at(3, sequence), state(&[])));
    session.hear(foreign).unwrap();
    hear_all(&mut session, whole(0)).unwrap();
    assert_eq!(session.missing(8).len(), 1, "the same stream");
    session.begin();
    assert_eq!(session.missing(8).len(), 1, "nothing of the next one yet");
    hear_all(&mut session, whole(1)).unwrap();
    assert_eq!(session.missing(8), [""; 0]);
}

#[test]
fn a_mirror_tells_of_all_and_of_their_end() {
    let mut session = Session::new(Scope::All);
    for name in ["east", "west"] {
        let begin = Message::Of(cluster(name), Say::SnapshotBegin(at(1, 0).into()));
        let end = Message::Of(
            cluster(name),
            Say::SnapshotEnd { version: at(1, 0).into(), counts: Counts::default() },
        );
        assert_eq!(hear_all(&mut session, vec![begin.into(), end.into()]).unwrap().len(), 1);
    }
    assert_eq!(session.hear(Message::Complete.into()).unwrap().told, [Told::Complete]);
    let gone = |session: &mut Session| session.hear(say(Say::Gone)).unwrap().told;
    assert_eq!(gone(&mut session), [Told::Gone { cluster: cluster("east") }]);
    assert_eq!(gone(&mut session), []);
    assert_eq!(session.begin().into_keys().collect::<Vec<_>>(), [cluster("west")]);
}

#[test]
fn a_snapshot_of_the_same_version_in_another_view_is_taken() {
    let mut session = followed(&[endpoint(1, 1), endpoint(2, 1)]);
    let at = At { version: at(1, 5), view: 7 };
    let all = state(&[endpoint(1, 1)]);
    let part = write_object(&endpoint(1, 1), &NodeNames::default());
    let messages = [
        Say::SnapshotBegin(at),
        Say::SnapshotPart(vec![part]),
        Say::SnapshotEnd { version: at, counts: counts(&all) },
    ];
    let told = hear_all(&mut session, messages.map(say).into()).unwrap();
    let gone = vec![Change::Delete(endpoint(2, 1).key())];
    assert_eq!(told, [Told::Changed { cluster: cluster("east"), version: at.version, changes: gone }]);
    assert_eq!(session.begin().get(&cluster("east")), Some(&at));
}

#[test]
fn a_cluster_that_tells_too_much_keeps_what_fits_and_loses_the_rest_by_name() {
    let mut session = Session::new(Scope::One(cluster("east")));
    let names = NodeNames::default();
    let big = |number: u8| {
        let labels = (0..100u8).map(|label| (format!("{label}-{}", "k".repeat(300)), "v".repeat(60)));
        Object::Namespace(format!("n{number}").into(), Arc::new(labels.collect()))
    };
    let fits = MAX_STATE / big(0).size();
    session.hear(say(Say::SnapshotBegin(at(1, 0).into()))).unwrap();
    // The same text a thousand times over, so that the test is quick: sizes are what counts.
    let kept = Kept { bytes: (fits - 1) * big(0).size(), state: ClusterState::default() };
    let mirror = session.clusters.get_mut(&cluster("east")).unwrap();
    let Some(Pending::Snapshot { kept: pending, .. }) = &mut mirror.pending else { panic!("a snapshot") };
    **pending = kept;
    let hear = |session: &mut Session, object: &Object| {
        let left_out =
            session.hear(say(Say::SnapshotPart(vec![write_object(object, &names)]))).unwrap().left_out;
        left_out.iter().map(LeftOut::reason).collect::<Vec<_>>()
    };
    assert_eq!(hear(&mut session, &big(1)), [""; 0]);
    assert_eq!(hear(&mut session, &big(2)), ["TooManyBytes"]);
    // What was there may become another of the same size, and small ones still fit or not by their own size.
    assert_eq!(hear(&mut session, &big(1)), [""; 0]);
    let mut state = ClusterState::default();
    state.apply(Change::Put(big(1)));
    let mut arrived = counts(&state);
    arrived.known.insert(Kind::Namespace, 3);
    let end = session.hear(say(Say::SnapshotEnd { version: at(1, 0).into(), counts: arrived })).unwrap();
    assert_eq!(end.told.len(), 1);
    assert_eq!(session.state(&cluster("east")), Some((at(1, 0), &state)));
    // Later it grows: what it was does not count any more, either.
    let version = (at(1, 0), at(1, 1));
    let grown = Object::Namespace(
        "n1".into(),
        Arc::new((0..250u8).map(|l| (l.to_string(), "v".repeat(60))).collect()),
    );
    session.clusters.get_mut(&cluster("east")).unwrap().kept.bytes =
        MAX_STATE + big(1).size() - grown.size() + 1;
    let changes = Say::Changes {
        from: version.0.into(),
        to: version.1.into(),
        changes: vec![write_change(&Change::Put(grown), &names)],
        part: 0,
        more: false,
    };
    let outcome = session.hear(say(changes)).unwrap();
    assert_eq!(outcome.left_out.iter().map(LeftOut::reason).collect::<Vec<_>>(), ["TooManyBytes"]);
    assert!(session.state(&cluster("east")).unwrap().1.is_empty());
}

#[test]
fn an_object_that_fits_into_no_message_is_left_out_with_what_was_known_under_its_name() {
    let padded = |padding: usize| {
        let Object::Node(name, plain) = node("n1") else { panic!("a node") };
        // Field 1000 of a later version.
        let mut node = write_node(&name, &plain);
        node.extend([0xc2, 0x3e]);
        prost::encode_length_delimiter(padding, &mut node).unwrap();
        node.resize(node.len() + padding, 0);
        let signed = Some(Arc::new(Signed { node, signature: vec![1; 64] }));
        Object::Node(name, Arc::new(RemoteNode { signed, ..RemoteNode::clone(&plain) }))
    };
    let (short, long) = (padded(1), padded(MAX_OBJECT));
    let refused = |outcome: &Outcome| {
        let texts: Vec<String> = outcome.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert_eq!(outcome.left_out[0].reason(), "ObjectMalformed");
        assert!(texts[0].starts_with("cluster east: node n1: the whole has 262"), "{texts:?}");
    };
    let mut session = Session::new(Scope::One(cluster("east")));
    let all = (at(1, 5), state(&[long.clone(), endpoint(1, 1)]));
    let outcomes: Vec<Outcome> =
        snapshot(&all).into_iter().map(|message| session.hear(message).unwrap()).collect();
    refused(&outcomes[1]);
    assert_eq!(session.state(&cluster("east")), Some((at(1, 5), &state(&[endpoint(1, 1)]))));
    // It becomes one that is read, and is too long again: the earlier one does not count any more.
    let (fits, grown) = (state(&[short, endpoint(1, 1)]), state(&[long, endpoint(1, 1)]));
    hear_all(&mut session, changes(&(at(1, 5), state(&[endpoint(1, 1)])), &(at(1, 6), fits.clone())))
        .unwrap();
    assert_eq!(session.state(&cluster("east")), Some((at(1, 6), &fits)));
    for grows in changes(&(at(1, 6), fits), &(at(1, 7), grown)) {
        refused(&session.hear(grows).unwrap());
    }
    assert_eq!(session.state(&cluster("east")), Some((at(1, 7), &state(&[endpoint(1, 1)]))));
}

#[test]
fn too_many_objects_clusters_and_changes_are_refused_by_name() {
    let mut session = Session::new(Scope::All);
    let names = NodeNames::default();
    for number in 0..=MAX_CLUSTERS {
        let message = Message::Of(cluster(&format!("c{number}")), Say::SnapshotBegin(at(1, 0).into()));
        let left_out = session.hear(message.into()).unwrap().left_out;
        let reasons: Vec<_> = left_out.iter().map(LeftOut::reason).collect();
        assert_eq!(reasons, if number < MAX_CLUSTERS { vec![] } else { vec!["TooManyClusters"] });
    }
    let mut session = Session::new(Scope::One(cluster("east")));
    session.hear(say(Say::SnapshotBegin(at(1, 0).into()))).unwrap();
    let limit = most(Kind::Namespace);
    for number in 0..=limit {
        let object = Object::Namespace(format!("n{number}").into(), Arc::default());
        let left_out =
            session.hear(say(Say::SnapshotPart(vec![write_object(&object, &names)]))).unwrap().left_out;
        assert_eq!(left_out.len(), usize::from(number == limit));
        assert!(
            left_out.iter().all(|one| one.reason() == "TooManyObjects" && one.to_string().contains("20000"))
        );
    }
    let mut session = Session::new(Scope::One(cluster("east")));
    snapshot(&(at(1, 0), ClusterState::default())).into_iter().for_each(|m| drop(session.hear(m).unwrap()));
    let delete = write_change(&Change::Delete(Key::Namespace("n".into())), &names);
    let part = |part, changes| Say::Changes {
        from: at(1, 0).into(),
        to: at(1, 1).into(),
        changes,
        part,
        more: true,
    };
    session.hear(say(part(0, vec![delete.clone(); MAX_CHANGES]))).unwrap();
    let error = session.hear(say(part(1, vec![delete]))).unwrap_err();
    assert_eq!(error.reason(), "TooManyChanges");
    assert_eq!(session.state(&cluster("east")).unwrap().0, at(1, 0), "what was known still is");
}

#[test]
fn names_of_nodes_that_are_not_kept_are_not_remembered_either() {
    let mut session = Session::new(Scope::One(cluster("east")));
    session.hear(say(Say::SnapshotBegin(at(1, 0).into()))).unwrap();
    // All the room that there is has gone.
    let mirror = session.clusters.get_mut(&cluster("east")).unwrap();
    let Some(Pending::Snapshot { kept, .. }) = &mut mirror.pending else { panic!("a snapshot") };
    kept.bytes = MAX_STATE;
    let mut names = NodeNames::default();
    let reasons = [node("n1"), endpoint(1, 1)].map(|object| {
        let part = Say::SnapshotPart(vec![write_object(&object, &names)]);
        if let Object::Node(name, _) = &object {
            names.insert(name);
        }
        let left_out = session.hear(say(part)).unwrap().left_out;
        left_out.iter().map(LeftOut::reason).collect::<Vec<_>>()
    });
    // An endpoint by the short name of a node that nobody knows cannot be read.
    assert_eq!(reasons, [["TooManyBytes"], ["ObjectMalformed"]]);
}

#[test]
fn all_clusters_together_have_a_bound_too_that_each_finds_full() {
    let space = |number: u8| {
        let labels = Labels::from([("k".to_owned(), "v".repeat(60))]);
        Object::Namespace(format!("n{number}").into(), Arc::new(labels))
    };
    let fits = 3;
    let mut session = Session::keeping(Scope::All, fits * space(0).size());
    let part = |number| Say::SnapshotPart(vec![write_object(&space(number), &NodeNames::default())]);
    let mut refused = Vec::new();
    for name in ["a", "b"] {
        let mut said = |say| session.hear(Message::Of(cluster(name), say).into()).unwrap();
        said(Say::SnapshotBegin(at(1, 0).into()));
        for number in 0..2 {
            refused.extend(said(part(number)).left_out.iter().map(ToString::to_string));
        }
        let counts = Counts { known: [(Kind::Namespace, 2)].into(), others: 0 };
        said(Say::SnapshotEnd { version: at(1, 0).into(), counts });
    }
    assert_eq!(
        refused,
        [
            "cluster b: namespace n1 would be more than the 4096 MiB of objects that are kept of all clusters; refused; join fewer clusters"
        ]
    );
    // What one gives back, another may have.
    assert_eq!(session.hear(Message::Of(cluster("a"), Say::Gone).into()).unwrap().told.len(), 1);
    let changes = vec![write_change(&Change::Put(space(1)), &NodeNames::default())];
    let (from, to) = (at(1, 0).into(), at(1, 1).into());
    let again = Say::Changes { from, to, changes, part: 0, more: false };
    assert_eq!(session.hear(Message::Of(cluster("b"), again).into()).unwrap().left_out, []);
    assert_eq!(session.objects(), 2);
}
