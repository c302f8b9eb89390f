use super::*;
use crate::facts::PodMeta;
use crate::facts::decode::Unreadable;
use mesh_core::view::NodeFacts;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn node(cidr: &str, internal: &str, created: i64) -> Arc<NodeSeen> {
    let facts = NodeFacts {
        created,
        pod_cidrs: vec![cidr.parse().unwrap()],
        internal_ips: vec![ip(internal)],
        ..NodeFacts::default()
    };
    Arc::new(NodeSeen { facts, ..NodeSeen::default() })
}

fn remote(ips: &[&str]) -> Arc<RemotePod> {
    Arc::new(RemotePod { ips: ips.iter().map(|text| ip(text)).collect(), ..RemotePod::default() })
}

fn own(uid: &str, label: &str) -> Arc<OwnPod> {
    Arc::new(OwnPod {
        meta: PodMeta { uid: uid.into(), config_hash: None },
        labels: [("app".to_owned(), label.to_owned())].into(),
        ports: BTreeSet::new(),
        host_ports: BTreeSet::new(),
        host_network: false,
        finished: false,
        announced_ips: None,
        announced_ports: None,
    })
}

fn attached(veth: &str, pod: &str, uid: &str, address: &str) -> Attached {
    Attached {
        veth: veth.into(),
        ifindex: 7,
        pod: Some((name(pod), Some(uid.into()))),
        ips: [ip(address)].into(),
        pod_mac: [2; 6],
        host_mac: [4; 6],
        slow: false,
        host_ports: BTreeSet::new(),
        own: None,
    }
}

fn view() -> View {
    View::new(
        "n1".parse().unwrap(),
        "west".parse().unwrap(),
        vec!["10.0.0.0/8".parse().unwrap()],
        Arc::default(),
    )
}

/// Two nodes, this one with 10.1.0.0/24.
fn with_nodes(view: &mut View) {
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n1".parse().unwrap(), Some(node("10.1.0.0/24", "192.0.2.1", 1)));
    mail.nodes.changes.insert("n2".parse().unwrap(), Some(node("10.2.0.0/24", "192.0.2.2", 2)));
    view.fold(mail, Instant::now());
}

/// What the last of these facts says of a pod: its addresses; none: it is nobody.
fn said(facts: &[Fact], pod: &str) -> Option<Option<Vec<String>>> {
    let of = |fact: &Fact| {
        let Fact::Pod(n, known) = fact else { return None };
        let known = known.as_ref().map(|k| k.ips.iter().map(ToString::to_string).collect());
        (*n == name(pod)).then_some(known)
    };
    facts.iter().rev().find_map(of)
}

fn ips(list: &[&str]) -> Option<Option<Vec<String>>> {
    Some(Some(list.iter().map(|text| (*text).to_owned()).collect()))
}

#[test]
fn addresses_are_believed_inside_the_cidr_of_another_node_alone() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    for (pod, addresses) in [
        ("a/there", &["10.2.0.5"][..]),
        ("a/nowhere", &["10.9.0.5"]),
        ("a/world", &["192.0.2.9"]),
        ("a/here", &["10.1.0.5"]),
        ("a/both", &["10.2.0.6", "10.1.0.6"]),
    ] {
        mail.pods.changes.insert(name(pod), Some(remote(addresses)));
    }
    let facts = view.fold(mail, Instant::now());
    assert_eq!(said(&facts, "a/there"), ips(&["10.2.0.5"]));
    assert_eq!(said(&facts, "a/both"), ips(&["10.2.0.6"]));
    for nobody in ["a/nowhere", "a/world", "a/here"] {
        assert_eq!(said(&facts, nobody), Some(None), "{nobody}");
    }
}

#[test]
fn a_pod_is_believed_when_its_node_comes_and_nobody_when_that_goes() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    mail.pods.changes.insert(name("a/p"), Some(remote(&["10.3.0.5"])));
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), Some(None));
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n3".parse().unwrap(), Some(node("10.3.0.0/24", "192.0.2.3", 3)));
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), ips(&["10.3.0.5"]));
    assert_eq!(view.node_of(ip("10.3.0.77")).map(NodeName::as_str), Some("n3"));
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n3".parse().unwrap(), None);
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), Some(None));
}

#[test]
fn labels_of_a_node_move_no_pod() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    mail.pods.changes.insert(name("a/p"), Some(remote(&["10.2.0.5"])));
    view.fold(mail, Instant::now());
    let mut seen = (*node("10.2.0.0/24", "192.0.2.2", 2)).clone();
    seen.labels.insert("zone".into(), "b".into());
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n2".parse().unwrap(), Some(Arc::new(seen)));
    let facts = view.fold(mail, Instant::now());
    assert_eq!(said(&facts, "a/p"), None);
    assert!(
        matches!(&facts[..], [Fact::Node(_, Some(known))] if known.ips.contains(&ip("10.2.0.1"))),
        "{facts:?}"
    );
}

#[test]
fn own_pods_have_the_addresses_that_are_attached_whatever_their_annotation_says() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    mail.pods.changes.insert(name("a/p"), Some(remote(&["10.2.0.66"])));
    mail.own.changes.insert(name("a/p"), Some(own("u1", "x")));
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), Some(None), "not attached yet");
    let mut facts = Vec::new();
    view.attach(attached("hw1", "a/p", "u1", "10.1.0.5"), &mut facts);
    assert_eq!(said(&facts, "a/p"), ips(&["10.1.0.5"]));
    assert!(facts.contains(&Fact::Subjects([name("a/p")].into())));
    facts.clear();
    assert!(view.detach("hw1", &mut facts).is_some());
    assert_eq!(said(&facts, "a/p"), Some(None));
    assert!(facts.contains(&Fact::Subjects(BTreeSet::new())));
}

#[test]
fn of_two_links_with_one_name_the_pod_that_the_api_has_counts() {
    let mut view = view();
    with_nodes(&mut view);
    let mut facts = Vec::new();
    view.attach(attached("hw1", "a/p", "old", "10.1.0.5"), &mut facts);
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), Some(own("old", "x")));
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), ips(&["10.1.0.5"]));
    // Its successor's ADD comes before its own DEL.
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), Some(own("new", "y")));
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), Some(None), "the old one is nobody now");
    view.attach(attached("hw2", "a/p", "new", "10.1.0.6"), &mut facts);
    assert_eq!(said(&facts, "a/p"), ips(&["10.1.0.6"]));
    view.detach("hw1", &mut facts);
    assert_eq!(said(&facts, "a/p"), ips(&["10.1.0.6"]));
}

#[test]
fn what_the_api_said_to_an_add_counts_more_than_a_watch_that_stands_still() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), Some(own("old", "x")));
    view.fold(mail, Instant::now());
    let mut facts = Vec::new();
    view.attach(
        Attached { own: Some(own("new", "y")), ..attached("hw2", "a/p", "new", "10.1.0.6") },
        &mut facts,
    );
    assert_eq!(said(&facts, "a/p"), ips(&["10.1.0.6"]));
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), None);
    assert_eq!(
        said(&view.fold(mail, Instant::now()), "a/p"),
        ips(&["10.1.0.6"]),
        "the old one's deletion, late"
    );
}

#[test]
fn a_pod_that_an_add_alone_knew_of_does_not_keep_its_name_from_the_next_one_elsewhere() {
    let mut view = view();
    with_nodes(&mut view);
    let asked = |veth: &str, uid: &str, address: &str| Attached {
        own: Some(own(uid, "x")),
        ..attached(veth, "a/p-0", uid, address)
    };
    let elsewhere = |view: &mut View, address: &str| {
        let mut mail = Mail::default();
        mail.pods.changes.insert(name("a/p-0"), Some(remote(&[address])));
        said(&view.fold(mail, Instant::now()), "a/p-0")
    };
    // Taken together: the watch tells of its beginning and its end, then the ADD has it from the API.
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p-0"), None);
    view.fold(mail, Instant::now());
    let mut facts = Vec::new();
    view.attach(asked("hw1", "u1", "10.1.0.5"), &mut facts);
    assert_eq!(said(&facts, "a/p-0"), ips(&["10.1.0.5"]));
    assert_eq!(elsewhere(&mut view, "10.2.0.5"), ips(&["10.1.0.5"]), "it is here until its link is gone");
    facts.clear();
    view.detach("hw1", &mut facts);
    assert_eq!(said(&facts, "a/p-0"), ips(&["10.2.0.5"]));
    assert_eq!(elsewhere(&mut view, "10.2.0.6"), ips(&["10.2.0.6"]));
    // One that the watch knows stays this node's own: what is written at it says nothing.
    view.attach(asked("hw2", "u2", "10.1.0.6"), &mut facts);
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p-0"), Some(own("u2", "x")));
    view.fold(mail, Instant::now());
    view.detach("hw2", &mut facts);
    assert_eq!(elsewhere(&mut view, "10.2.0.7"), Some(None));
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p-0"), None);
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p-0"), ips(&["10.2.0.7"]));
}

#[test]
fn of_two_links_of_an_asked_pod_the_first_that_goes_leaves_the_other_what_it_was() {
    let mut view = view();
    with_nodes(&mut view);
    let mut facts = Vec::new();
    view.attach(attached("hw1", "a/p", "old", "10.1.0.5"), &mut facts);
    let new = Attached { own: Some(own("new", "y")), ..attached("hw2", "a/p", "new", "10.1.0.6") };
    view.attach(new, &mut facts);
    facts.clear();
    view.detach("hw2", &mut facts);
    assert_eq!(said(&facts, "a/p"), Some(None), "the old one is nobody");
    assert!(view.current(&name("a/p")).is_none());
    view.detach("hw1", &mut facts);
    assert_eq!(said(&facts, "a/p"), Some(None));
}

#[test]
fn a_pod_that_was_deleted_by_force_and_still_runs_keeps_what_was_known_of_it() {
    let mut view = view();
    with_nodes(&mut view);
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), Some(own("u", "x")));
    view.fold(mail, Instant::now());
    view.attach(attached("hw1", "a/p", "u", "10.1.0.5"), &mut Vec::new());
    let mut mail = Mail::default();
    mail.own.changes.insert(name("a/p"), None);
    assert_eq!(said(&view.fold(mail, Instant::now()), "a/p"), ips(&["10.1.0.5"]));
}

#[test]
fn a_pod_that_was_looked_up_is_believed_for_a_while_and_the_watch_knows_better() {
    let mut view = view();
    with_nodes(&mut view);
    let begun = Instant::now();
    let find = || {
        let mut mail = Mail::default();
        mail.found.insert(name("a/p"), remote(&["10.2.0.5"]));
        mail
    };
    assert_eq!(said(&view.fold(find(), begun), "a/p"), ips(&["10.2.0.5"]));
    assert_eq!(said(&view.fold(Mail::default(), begun + FOUND), "a/p"), Some(None), "nobody confirmed it");
    let mut mail = find();
    mail.pods.changes.insert(name("a/p"), Some(remote(&["10.2.0.6"])));
    assert_eq!(said(&view.fold(mail, begun), "a/p"), ips(&["10.2.0.6"]));
    let mut mail = Mail::default();
    mail.pods.changes.insert(name("a/p"), None);
    assert_eq!(said(&view.fold(mail, begun), "a/p"), Some(None));
}

#[test]
fn what_cannot_be_read_leaves_its_former_version_in_force_and_is_named() {
    let mut view = view();
    let bad = || {
        Err(Unreadable { reason: "spec: no".into(), instead: Some(Arc::new(NetworkPolicySpec::default())) })
    };
    let with = |decoded| {
        let mut mail = Mail::default();
        mail.policies.changes.insert(name("a/np"), Some(decoded));
        mail
    };
    assert_eq!(view.fold(with(Ok(Arc::default())), Instant::now()).len(), 1);
    assert!(view.fold(with(bad()), Instant::now()).is_empty(), "the former stays");
    let unread: Vec<_> = view.unread().collect();
    assert_eq!((unread[0].kind, unread[0].name.as_str()), ("NetworkPolicy", "np"));
    assert!(unread[0].reason.contains("former version"), "{unread:?}");
    let mut mail = Mail::default();
    mail.policies.changes.insert(name("a/np"), None);
    view.fold(mail, Instant::now());
    assert_eq!(view.unread().count(), 0);
    assert_eq!(view.fold(with(bad()), Instant::now()).len(), 1, "something closed stands in");
}

#[test]
fn the_older_of_two_nodes_keeps_an_address_that_both_claim() {
    let mut view = view();
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n1".parse().unwrap(), Some(node("10.1.0.0/24", "192.0.2.1", 1)));
    mail.nodes.changes.insert("thief".parse().unwrap(), Some(node("10.4.0.0/24", "192.0.2.1", 9)));
    let facts = view.fold(mail, Instant::now());
    let known = |facts: &[Fact], node: &str| {
        facts.iter().rev().find_map(|fact| {
            let Fact::Node(n, Some(known)) = fact else { return None };
            (n.as_str() == node).then(|| known.ips.contains(&ip("192.0.2.1")))
        })
    };
    assert_eq!((known(&facts, "n1"), known(&facts, "thief")), (Some(true), Some(false)));
    let mut mail = Mail::default();
    mail.nodes.changes.insert("n1".parse().unwrap(), None);
    assert_eq!(known(&view.fold(mail, Instant::now()), "thief"), Some(true));
}

#[test]
fn an_attachment_whose_file_was_lost_is_the_pods_at_which_its_addresses_were_written() {
    for (announced, finished, is) in [
        (Some("10.1.0.2"), false, true),
        (Some("10.1.0.3"), false, false),
        (Some("nonsense"), false, false),
        (Some("10.1.0.2"), true, false),
        (None, false, false),
    ] {
        let mut view = view();
        with_nodes(&mut view);
        let lost = Attached { pod: None, ..attached("hw1", "x/a", "u", "10.1.0.2") };
        view.attach(lost, &mut Vec::new());
        let pod =
            OwnPod { announced_ips: announced.map(str::to_owned), finished, ..(*own("u", "web")).clone() };
        let mut mail = Mail::default();
        mail.own.changes.insert(name("x/a"), Some(Arc::new(pod)));
        view.fold(mail, Instant::now());
        assert_eq!(view.current(&name("x/a")).is_some(), is, "{announced:?} {finished}");
    }
}
