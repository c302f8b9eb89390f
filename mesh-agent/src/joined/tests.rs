use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use super::*;
use clustermesh::daemon::authority::Authority;
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{Key, LabelSet, LabelSetId, RemoteEndpoint, Version};
use mesh_core::key::PublicKey;
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::model::ObjectName;
use netlab::eventually_async;

fn name(text: &str) -> ClusterName {
    text.parse().expect("a name")
}

fn remote(seed: u8, cidr: &str) -> Arc<RemoteNode> {
    let slot = |n: u8| SlotAnnouncement {
        epoch: Epoch(u64::from(n) + 1),
        public_key: PublicKey::from_bytes([seed.wrapping_mul(2).wrapping_add(n); 32]),
        port: 51880 + u16::from(n),
        draining: false,
    };
    Arc::new(RemoteNode {
        uid: format!("uid-{seed}"),
        created: i64::from(seed),
        pod_cidrs: vec![cidr.parse().expect("a CIDR")],
        announcement: Announcement {
            slots: [slot(0), slot(1)],
            endpoints: vec!["198.51.100.1".parse().expect("an address")],
            kem: None,
            kem_required: false,
            host_traffic: false,
        },
        signed: None,
    })
}

/// An authority that signs for all clusters of these tests but where it says otherwise.
fn authority() -> &'static Authority {
    static MADE: OnceLock<Authority> = OnceLock::new();
    MADE.get_or_init(another_authority)
}

fn another_authority() -> Authority {
    Authority::make(&name("east"), SystemTime::now()).expect("an authority").0
}

/// A node with a signature for a cluster.
fn signed(change: Change, authority: &Authority, cluster: &str) -> Change {
    let Change::Put(Object::Node(called, node)) = &change else { return change };
    let bytes = proto::clustermesh::write_node(called, node);
    let signed = authority.sign_for(&name(cluster), bytes).expect("a signature");
    let node = RemoteNode { signed: Some(Arc::new(signed)), ..RemoteNode::clone(node) };
    Change::Put(Object::Node(Arc::clone(called), Arc::new(node)))
}

fn put(node: &str, seed: u8, cidr: &str) -> Change {
    Change::Put(Object::Node(Arc::new(node.parse().expect("a name")), remote(seed, cidr)))
}

/// What a cluster tells, its nodes signed.
fn told(cluster: &str, changes: Vec<Change>) -> Told {
    let changes = changes.into_iter().map(|change| signed(change, authority(), cluster)).collect();
    told_as_it_is(cluster, changes)
}

fn told_as_it_is(cluster: &str, changes: Vec<Change>) -> Told {
    Told::Changed { cluster: name(cluster), version: Version::default(), changes }
}

fn spec(cidrs: &[&str]) -> Result<ClusterPeerSpec, String> {
    Ok(ClusterPeerSpec {
        pod_cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        addresses: vec!["192.0.2.9:51893".to_owned()],
        trust_bundle: authority().pem().to_owned(),
    })
}

fn peers(synced: bool, peers: &[(&str, Result<ClusterPeerSpec, String>)]) -> Peers {
    let peers = peers.iter().map(|(name, spec)| ((*name).to_owned(), (1, spec.clone()))).collect();
    Peers { peers, synced }
}

fn register(folder: &Path) -> Register {
    register_with(folder, true)
}

fn register_with(folder: &Path, has_ipv6: bool) -> Register {
    Register::load(
        folder,
        ("here".parse().expect("a name"), has_ipv6),
        name("west"),
        vec!["10.1.0.0/16".parse().expect("a CIDR")],
    )
}

fn synced() -> Nodes {
    Nodes { synced: true, ..Nodes::default() }
}

/// Nodes and CIDRs, as one line.
fn shown(believed: &Believed) -> String {
    let nodes: Vec<&str> = believed.nodes.keys().map(NodeName::as_str).collect();
    let cidrs: Vec<String> = believed.cidrs.iter().map(|(name, cidrs)| format!("{name} {cidrs:?}")).collect();
    format!("{} | {}", nodes.join(" "), cidrs.join(" "))
}

#[tokio::test]
async fn an_agent_that_starts_again_goes_on_with_what_it_believed_until_it_hears_of_it() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut first = register(folder.path());
    assert_eq!(shown(first.believed()), " | ");
    first.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    assert!(first.hear(told("east", vec![put("a", 1, "10.2.1.0/24"), put("b", 2, "10.2.2.0/24")])));
    assert_eq!(shown(&decide(&mut first, &synced()).believed), "a@east b@east | east [10.2.0.0/16]");
    assert!(first.save().await);

    let mut second = register(folder.path());
    let kept = "a@east b@east | east [10.2.0.0/16]";
    assert_eq!(shown(second.believed()), kept);
    // Nothing is known yet: neither the own nodes nor all ClusterPeers, nor what `clustermesh` says.
    assert_eq!(shown(&decide(&mut second, &Nodes::default()).believed), kept);
    assert_eq!(shown(&decide(&mut second, &synced()).believed), kept);
    second.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    assert_eq!(shown(&decide(&mut second, &synced()).believed), kept);
    // The first that is told is all there is.
    assert!(second.hear(told("east", vec![put("b", 2, "10.2.2.0/24")])));
    assert_eq!(shown(&decide(&mut second, &synced()).believed), "b@east | east [10.2.0.0/16]");
    assert!(second.hear(told("east", vec![put("c", 3, "10.2.3.0/24")])));
    assert_eq!(shown(&decide(&mut second, &synced()).believed), "b@east c@east | east [10.2.0.0/16]");
}

#[tokio::test]
async fn a_cluster_goes_when_its_cluster_peer_is_gone_and_by_nobody_elses_word() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    assert!(!register.hear(Told::Gone { cluster: name("east") }));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), "a@east | east [10.2.0.0/16]");
    // A list that is not complete says of nobody that he is gone.
    register.peers(peers(false, &[]));
    assert!(register.save().await);
    assert_eq!(shown(&decide(&mut register, &synced()).believed), "a@east | east [10.2.0.0/16]");
    register.peers(peers(true, &[]));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), " | ");
    register.hear(told("east", vec![put("b", 2, "10.2.2.0/24")]));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), " | ", "nobody has joined it");
    assert!(register.save().await);
    assert_eq!(shown(self::register(folder.path()).believed()), " | ");
    // What was told meanwhile is not told again when it is joined.
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), "b@east | east [10.2.0.0/16]");
    // After a word that it is gone what comes is all there is.
    register.hear(Told::Gone { cluster: name("east") });
    register.hear(told("east", vec![put("c", 3, "10.2.3.0/24")]));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), "c@east | east [10.2.0.0/16]");
}

#[tokio::test]
async fn what_cannot_be_read_stays_as_it_was_and_is_told() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16", "10.1.7.0/24"]))]));
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24"), put("z", 2, "10.9.1.0/24")]));
    let joined = decide(&mut register, &synced());
    assert_eq!(shown(&joined.believed), "a@east | east [10.2.0.0/16]");
    let codes: Vec<&str> = joined.findings.iter().map(|(code, _)| code.as_str()).collect();
    assert_eq!(codes, ["joined-cluster-peer-cidr-ours", "joined-cluster-node-cidr-outside"]);
    assert!(register.save().await);
    register.peers(peers(true, &[("east", Err("invalid type: number".to_owned()))]));
    let joined = decide(&mut register, &synced());
    assert_eq!(shown(&joined.believed), "a@east | east [10.2.0.0/16]");
    assert!(joined.findings[0].1.contains("ClusterPeer east: spec"), "{:?}", joined.findings);
}

/// A selector of namespaces of east.
fn east(more: &[(&str, &str)]) -> String {
    let mut all = labels(more);
    all.insert("hawser.dev/cluster".to_owned(), "east".to_owned());
    serde_json::json!({"matchLabels": all}).to_string()
}

/// What policies ask for.
fn asked(policies: Vec<serde_json::Value>) -> AskedClusters {
    let mut compiler = Compiler::new(Vec::new());
    for (number, policy) in policies.into_iter().enumerate() {
        let name = format!("p{number}");
        if policy["subject"].is_null() {
            let name = ObjectName { namespace: "x".to_owned(), name };
            compiler.set_network_policy(name, Some(serde_json::from_value(policy).expect("a policy")));
        } else {
            compiler.set_cluster_policy(name, Some(serde_json::from_value(policy).expect("a policy")));
        }
    }
    compiler.asked_clusters().clone()
}

fn network_policy(namespaces: &[&str]) -> serde_json::Value {
    let from: Vec<_> =
        namespaces.iter().map(|text| serde_json::json!({"namespaceSelector": json(text)})).collect();
    serde_json::json!({"podSelector": {}, "ingress": [{"from": from}]})
}

fn deny(namespaces: &str) -> serde_json::Value {
    let rule = serde_json::json!({"action": "Deny", "from": [{"namespaces": json(namespaces)}]});
    serde_json::json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]})
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

fn asks(namespaces: &[&str]) -> AskedClusters {
    asked(if namespaces.is_empty() { Vec::new() } else { vec![network_policy(namespaces)] })
}

/// What policy was told, as lines.
fn shown_to_policy(told: Option<Foreign>) -> Vec<String> {
    let Some(Foreign { reach, namespaces, pods, complete }) = told else { return Vec::new() };
    let mut lines = vec![format!(
        "{:?}{}",
        reach.iter().flat_map(|all| all.values()).flat_map(|reach| reach.cidrs.clone()).collect::<Vec<_>>(),
        if complete.is_some() { " complete" } else { "" }
    )];
    lines.extend(namespaces.iter().map(|(name, known)| match known {
        Some(facts) => format!("{name} {:?}", facts.labels),
        None => format!("{name} gone"),
    }));
    lines.extend(pods.iter().map(|(name, known)| match known {
        Some(facts) => format!("{}/{} {:?} {:?}", name.namespace, name.name, facts.ips, facts.labels),
        None => format!("{}/{} gone", name.namespace, name.name),
    }));
    lines
}

fn labels(of: &[(&str, &str)]) -> mesh_core::policy::model::Labels {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn label_set(number: u64, namespace: &str, app: &str) -> Change {
    let set = LabelSet { namespace: namespace.to_owned(), labels: labels(&[("app", app)]), ports: [].into() };
    Change::Put(Object::LabelSet(LabelSetId(number), Arc::new(set)))
}

fn pod(node: &str, address: &str, set: u64) -> Change {
    let node = Arc::new(node.parse().expect("a name"));
    Change::Put(Object::Endpoint(
        address.parse().expect("an address"),
        RemoteEndpoint { node, labels: LabelSetId(set) },
    ))
}

/// Decides, and says everything.
#[tokio::test]
async fn a_pod_cidr_that_cannot_be_read_any_more_stays_guarded_until_it_is_corrected() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16", "10.4.0.0/16"]))]));
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    let both = "a@east | east [10.2.0.0/16, 10.4.0.0/16]";
    assert_eq!(shown(&decide(&mut register, &synced()).believed), both);
    assert!(register.save().await);
    for (wrong, kept) in [
        ("10.2.O.0/16", "a@east | east [10.4.0.0/16, 10.2.0.0/16]"),
        ("10.2.0.1/16", "a@east | east [10.4.0.0/16, 10.2.0.0/16]"),
    ] {
        register.peers(peers(true, &[("east", spec(&[wrong, "10.4.0.0/16"]))]));
        let joined = decide(&mut register, &synced());
        assert_eq!(shown(&joined.believed), kept, "{wrong}");
        assert!(
            joined
                .findings
                .iter()
                .any(|(code, text)| code == "joined-cluster-peer-malformed" && text.contains(wrong))
        );
        assert!(register.save().await);
    }
    register.peers(peers(true, &[("east", spec(&["10.4.0.0/16"]))]));
    assert_eq!(shown(&decide(&mut register, &synced()).believed), " | east [10.4.0.0/16]");
}

#[tokio::test]
async fn a_kernel_without_ipv6_joins_what_it_can_have_of_a_cluster_of_both_families() {
    let folder = tempfile::tempdir().expect("a directory");
    let of_both = || {
        let Change::Put(Object::Node(called, node)) = put("a", 1, "10.2.1.0/24") else { panic!("a node") };
        let mut node = RemoteNode::clone(&node);
        node.pod_cidrs.push("fd00:2:1::/64".parse().expect("a CIDR"));
        node.announcement.endpoints.push("2001:db8::1".parse().expect("an address"));
        Change::Put(Object::Node(called, Arc::new(node)))
    };
    for has_ipv6 in [true, false] {
        let mut register = register_with(folder.path(), has_ipv6);
        register.peers(peers(true, &[("east", spec(&["10.2.0.0/16", "fd00:2::/32"]))]));
        register.hear(told("east", vec![of_both()]));
        let joined = decide(&mut register, &synced());
        let cidrs = if has_ipv6 { "[10.2.0.0/16, fd00:2::/32]" } else { "[10.2.0.0/16]" };
        assert_eq!(shown(&joined.believed), format!("a@east | east {cidrs}"));
        assert_eq!(joined.findings, []);
        assert!(register.save().await);
    }
    // A kernel that had it once.
    let mut register = register_with(folder.path(), true);
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16", "fd00:2::/32"]))]));
    register.hear(told("east", vec![of_both()]));
    decide(&mut register, &synced());
    assert!(register.save().await);
    assert_eq!(shown(register_with(folder.path(), false).believed()), "a@east | east [10.2.0.0/16]");
}

#[test]
fn cluster_peers_are_known_when_they_were_judged_beside_all_own_nodes() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    assert!(!decide(&mut register, &Nodes::default()).synced, "nothing guards 10.2.0.0/16 yet");
    let joined = decide(&mut register, &synced());
    assert!(joined.synced && shown(&joined.believed).contains("10.2.0.0/16"));
}

#[tokio::test]
async fn a_prefix_that_an_older_cluster_peer_comes_to_claim_stays_guarded_and_is_nobodys() {
    let folder = tempfile::tempdir().expect("a directory");
    // (created, name, what it says)
    let with = |synced: bool, all: &[(i64, &str, Result<ClusterPeerSpec, String>)]| {
        let peers = all.iter().map(|(created, name, spec)| ((*name).to_owned(), (*created, spec.clone())));
        Peers { peers: peers.collect(), synced }
    };
    let (east, older) = (|| (2, "east", spec(&["10.2.0.0/16"])), || (1, "north", spec(&["10.2.128.0/17"])));
    let state = |register: &mut Register| {
        let joined = decide(register, &synced());
        let codes: Vec<String> = joined.findings.iter().map(|(code, _)| code.clone()).collect();
        let guarded: Vec<String> =
            joined.settings(&Settings::default()).guarded().iter().map(ToString::to_string).collect();
        format!("{} | guarded {} | {}", shown(&joined.believed), guarded.join(" "), codes.join(" "))
    };
    let twice = "joined-cluster-peer-cidr-twice";
    let mut first = register(folder.path());
    first.peers(with(true, &[east()]));
    first.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    assert_eq!(state(&mut first), "a@east | east [10.2.0.0/16] | guarded 10.2.0.0/16 | ");
    first.peers(with(true, &[east(), older()]));
    let outside = "joined-cluster-node-cidr-outside";
    let lost = format!(" | north [10.2.128.0/17] | guarded 10.2.128.0/17 10.2.0.0/16 | {twice} {outside}");
    assert_eq!(state(&mut first), lost);
    assert!(first.save().await);

    // A start goes on from there, whatever is read first, and nobody wins by it.
    let second = || register(folder.path());
    let kept = " | north [10.2.128.0/17] | guarded 10.2.128.0/17 10.2.0.0/16 | ";
    let joined = Joined {
        believed: second().believed().clone(),
        disputed: second().disputed().clone(),
        ..Joined::default()
    };
    assert_eq!(
        joined.settings(&Settings::default()).guarded(),
        ["10.2.128.0/17", "10.2.0.0/16"].map(|net| net.parse().expect("a prefix"))
    );
    for (peers, then) in [
        (with(false, &[]), kept.to_owned()),
        (with(false, &[east()]), format!("{kept}{twice}")),
        (with(false, &[older()]), kept.to_owned()),
        (with(true, &[east(), older()]), format!("{kept}{twice}")),
        // Nobody can read what it says now.
        (
            with(true, &[(2, "east", Err("no".to_owned())), older()]),
            format!("{kept}joined-cluster-peer-malformed"),
        ),
        (
            with(true, &[(2, "east", spec(&["10.2.O.0/16"])), older()]),
            format!("{kept}joined-cluster-peer-malformed"),
        ),
        // It asks for less, for something else, or for nothing any more.
        (
            with(true, &[(2, "east", spec(&["10.2.0.0/17", "10.2.192.0/18"])), older()]),
            format!(
                " | east [10.2.0.0/17] north [10.2.128.0/17] | guarded 10.2.0.0/17 10.2.128.0/17 | {twice}"
            ),
        ),
        (with(true, &[older()]), " | north [10.2.128.0/17] | guarded 10.2.128.0/17 | ".to_owned()),
        // The other has gone.
        (with(true, &[east()]), " | east [10.2.0.0/16] | guarded 10.2.0.0/16 | ".to_owned()),
    ] {
        let mut again = second();
        again.peers(peers);
        assert_eq!(state(&mut again), then);
    }
}

#[tokio::test]
async fn a_prefix_of_which_the_own_cluster_comes_to_claim_a_part_or_the_name_stays_guarded() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut first = register(folder.path());
    first.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    decide(&mut first, &synced());
    assert!(first.save().await);
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    for (called, own, code) in [
        ("west", "10.2.64.0/18", "joined-cluster-peer-cidr-ours"),
        ("east", "10.1.0.0/16", "joined-cluster-peer-is-ourself"),
    ] {
        let here = ("here".parse().expect("a name"), true);
        let mut again = Register::load(folder.path(), here, name(called), vec![net(own)]);
        again.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
        let joined = decide(&mut again, &synced());
        assert_eq!((joined.believed.cidrs.len(), joined.findings[0].0.as_str()), (0, code));
        assert_eq!(joined.settings(&Settings::default()).guarded(), [net("10.2.0.0/16")]);
    }
}

fn decide(register: &mut Register, nodes: &Nodes) -> Joined {
    register.decide(nodes);
    register.joined()
}

#[test]
fn policy_is_told_of_pods_when_it_asks_and_of_those_alone_that_are_believed() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let shop = Change::Put(Object::Namespace(
        "shop".into(),
        Arc::new(labels(&[("tier", "x"), ("hawser.dev/cluster", "west")])),
    ));
    register.hear(told(
        "east",
        vec![
            label_set(1, "shop", "web"),
            shop,
            put("a", 1, "10.2.1.0/24"),
            pod("a", "10.2.1.7", 1),
            pod("a", "10.2.9.9", 1),
            pod("b", "10.2.2.7", 1),
        ],
    ));
    register.hear(Told::Complete);
    decide(&mut register, &synced());
    assert_eq!(
        shown_to_policy(register.for_policy()),
        ["[10.2.0.0/16] complete"],
        "nobody has asked for more"
    );
    assert!(register.ask(asks(&[&east(&[])])));
    assert_eq!(
        shown_to_policy(register.for_policy()),
        [
            "[10.2.0.0/16] complete",
            r#"shop@east {"hawser.dev/cluster": "east", "tier": "x"}"#,
            r#"shop@east/10.2.1.7 {10.2.1.7} {"app": "web"}"#,
        ]
    );
    assert_eq!(shown_to_policy(register.for_policy()), [""; 0], "nothing new");
    let codes: Vec<String> =
        decide(&mut register, &synced()).findings.into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes, ["joined-cluster-endpoint-without-node", "joined-cluster-endpoint-outside"]);

    // Each change for itself.
    register.hear(told(
        "east",
        vec![label_set(2, "shop", "db"), pod("a", "10.2.1.7", 2), pod("a", "10.2.1.8", 1)],
    ));
    assert_eq!(
        shown_to_policy(register.for_policy()),
        [
            "[10.2.0.0/16] complete",
            r#"shop@east/10.2.1.7 {10.2.1.7} {"app": "db"}"#,
            r#"shop@east/10.2.1.8 {10.2.1.8} {"app": "web"}"#,
        ]
    );
    // A node that is believed now brings its pods.
    register.hear(told("east", vec![put("b", 2, "10.2.2.0/24")]));
    decide(&mut register, &synced());
    let told_now = shown_to_policy(register.for_policy());
    assert!(told_now.iter().any(|line| line.starts_with("shop@east/10.2.2.7 {")), "{told_now:?}");
    // Without its ClusterPeer, and when nobody asks any more, all of it goes.
    assert!(register.ask(asks(&[])));
    let gone = shown_to_policy(register.for_policy());
    assert_eq!(gone.iter().filter(|line| line.ends_with(" gone")).count(), 4, "{gone:?}");
    assert!(register.ask(asks(&[&east(&[])])));
    assert_eq!(shown_to_policy(register.for_policy()).len(), 5);
    register.peers(peers(true, &[]));
    decide(&mut register, &synced());
    let gone = shown_to_policy(register.for_policy());
    assert_eq!(gone[0], "[] complete");
    assert_eq!(gone.iter().filter(|line| line.ends_with(" gone")).count(), 4, "{gone:?}");
}

#[test]
fn policies_that_accept_are_told_of_whom_their_selectors_find() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let space = |name: &str, tier: &str| {
        Change::Put(Object::Namespace(name.into(), Arc::new(labels(&[("tier", tier)]))))
    };
    register.hear(told(
        "east",
        vec![
            space("shop", "x"),
            space("bank", "y"),
            label_set(1, "shop", "web"),
            label_set(2, "bank", "web"),
            label_set(3, "nowhere", "web"),
            put("a", 1, "10.2.1.0/24"),
            pod("a", "10.2.1.1", 1),
            pod("a", "10.2.1.2", 2),
            pod("a", "10.2.1.3", 3),
        ],
    ));
    register.hear(Told::Complete);
    decide(&mut register, &synced());
    let pods = |register: &mut Register| -> Vec<String> {
        let lines = shown_to_policy(register.for_policy()).into_iter();
        lines.filter_map(|line| line.split_once("east/10.2.").map(|(_, rest)| rest.to_owned())).collect()
    };
    let of_x = || network_policy(&[&east(&[("tier", "x")])]);
    register.ask(asked(vec![of_x()]));
    assert_eq!(pods(&mut register), [r#"1.1 {10.2.1.1} {"app": "web"}"#]);
    // Another tier of a namespace, and its pods come; back, and they go.
    register.hear(told("east", vec![space("bank", "x")]));
    assert!(pods(&mut register).contains(&r#"1.2 {10.2.1.2} {"app": "web"}"#.to_owned()));
    register.hear(told("east", vec![space("bank", "y")]));
    assert!(pods(&mut register).contains(&"1.2 gone".to_owned()));
    // Another cluster is somebody else, and so is who nobody has told the namespace of.
    let west = r#"{"matchLabels": {"hawser.dev/cluster": "west"}}"#;
    register.ask(asked(vec![network_policy(&[west])]));
    assert_eq!(pods(&mut register), ["1.1 gone"]);
    // Who denies has to know all.
    register.ask(asked(vec![network_policy(&[west]), deny(&east(&[("tier", "x")]))]));
    let all = pods(&mut register);
    assert_eq!(all.iter().map(|line| &line[..3]).collect::<Vec<_>>(), ["1.2", "1.3", "1.1"], "{all:?}");
}

#[test]
fn of_more_pods_than_policy_can_hold_the_others_are_refused_by_name_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.pods.limit = 10;
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let shop = Change::Put(Object::Namespace("shop".into(), Arc::default()));
    let mut all = vec![shop, label_set(1, "shop", "web"), put("a", 1, "10.2.1.0/24")];
    all.extend((1..=12).map(|host| pod("a", &format!("10.2.1.{host}"), 1)));
    register.hear(told("east", all));
    register.ask(asked(vec![network_policy(&[&east(&[])])]));
    decide(&mut register, &synced());
    let pods = |register: &mut Register| shown_to_policy(register.for_policy()).len().saturating_sub(2);
    assert_eq!(pods(&mut register), 10);
    let findings = decide(&mut register, &synced()).findings;
    let refused: Vec<_> = findings.iter().map(|(code, _)| code.as_str()).collect();
    assert_eq!(refused, ["joined-cluster-endpoint-beyond-limit"; 2]);
    assert!(findings[0].1.contains("endpoint 10.2.1.11 of cluster east: policies ask for more than 10 pods"));
    let gone =
        |host: u8| Change::Delete(Key::Endpoint(format!("10.2.1.{host}").parse().expect("an address")));
    register.hear(told("east", vec![gone(1)]));
    assert!(decide(&mut register, &synced()).findings.len() == 2, "not for each that goes");
    register.hear(told("east", vec![gone(2)]));
    register.for_policy();
    assert_eq!(decide(&mut register, &synced()).findings, []);
}

#[test]
fn a_pod_that_is_refused_is_said_when_it_is_told_and_no_longer_when_it_goes() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let shop = Change::Put(Object::Namespace("shop".into(), Arc::default()));
    register.hear(told("east", vec![shop, label_set(1, "shop", "web"), put("a", 1, "10.2.1.0/24")]));
    register.ask(asked(vec![network_policy(&[&east(&[])])]));
    decide(&mut register, &synced());
    register.for_policy();
    assert!(!register.has_unsaid());
    // It changes nothing of the mesh, so nothing is decided.
    let stray = pod("a", "10.2.9.7", 1);
    assert!(!register.hear(told("east", vec![stray.clone()])));
    for _ in 0..2 {
        register.for_policy();
        assert!(register.has_unsaid());
        let codes: Vec<_> = register.joined().findings.into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, ["joined-cluster-endpoint-outside"]);
        assert!(!register.has_unsaid());
        // Told again, it is no news.
        register.hear(told("east", vec![stray.clone()]));
        register.for_policy();
        assert!(!register.has_unsaid());
        register.hear(told("east", vec![Change::Delete(stray.key())]));
        register.for_policy();
        assert!(register.has_unsaid());
        assert_eq!(register.joined().findings, []);
        register.hear(told("east", vec![stray.clone()]));
    }
}

#[test]
fn of_many_refused_pods_the_first_are_said_and_the_others_when_these_are_gone() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let shop = Change::Put(Object::Namespace("shop".into(), Arc::default()));
    let mut all = vec![shop, label_set(1, "shop", "web"), put("a", 1, "10.2.1.0/24")];
    all.extend((1..=40).map(|host| pod("a", &format!("10.2.9.{host}"), 1)));
    register.hear(told("east", all));
    register.ask(asked(vec![network_policy(&[&east(&[])])]));
    decide(&mut register, &synced());
    register.for_policy();
    let said = |register: &mut Register| -> Vec<String> {
        register.joined().findings.into_iter().map(|(code, _)| code).collect()
    };
    let first = said(&mut register);
    assert_eq!(first.len(), SENTENCES + 1);
    assert_eq!(first.last().map(String::as_str), Some("joined-cluster-more"));
    for host in 1..=SENTENCES {
        let address = format!("10.2.9.{host}").parse().expect("an address");
        register.hear(told("east", vec![Change::Delete(Key::Endpoint(address))]));
        register.for_policy();
        assert!(!said(&mut register).is_empty(), "{host} of 40 are gone");
    }
    assert_eq!(said(&mut register), ["joined-cluster-endpoint-outside"; 8]);
}

#[test]
fn an_announcement_that_was_wrong_is_no_finding_once_it_is_right_or_gone() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let good = put("a", 1, "10.2.1.0/24");
    let Change::Put(Object::Node(name, node)) = good.clone() else { panic!("no node") };
    let mut weak = RemoteNode::clone(&node);
    weak.announcement.slots[0].public_key = PublicKey::from_bytes([0; 32]);
    let weak = Change::Put(Object::Node(name, Arc::new(weak)));
    for mended in [good.clone(), Change::Delete(good.key())] {
        register.hear(told("east", vec![good.clone()]));
        assert!(register.hear(told("east", vec![weak.clone()])));
        let codes: Vec<_> =
            decide(&mut register, &synced()).findings.into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, ["joined-cluster-announcement"]);
        assert!(register.hear(told("east", vec![mended])), "to be decided again");
        assert_eq!(decide(&mut register, &synced()).findings, []);
    }
}

#[test]
fn services_of_others_and_pods_cost_the_mesh_no_decision() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    assert!(!register.hear(told("east", vec![])), "nothing was known, and nothing is");
    assert!(!register.hear(told("east", vec![label_set(1, "shop", "web"), pod("a", "10.2.1.7", 1)])));
    assert!(!register.hear(Told::Heard { cluster: name("east") }));
    let service = Arc::new(ObjectName { namespace: "a".into(), name: "s".into() });
    assert!(!register.hear(told("east", vec![Change::Delete(Key::Service(service))])));
    assert!(register.states[&name("east")].services.is_empty());
}

#[test]
fn a_key_that_is_worth_nothing_is_refused_and_the_own_cluster_is_nobody_elses() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    let mut weak = RemoteNode::clone(&remote(1, "10.2.1.0/24"));
    weak.announcement.slots[0].public_key = PublicKey::from_bytes([0; 32]);
    weak.pod_cidrs.clear();
    let name_of = Arc::new("a".parse().expect("a name"));
    assert!(register.hear(told("east", vec![Change::Put(Object::Node(name_of, Arc::new(weak)))])));
    let joined = decide(&mut register, &synced());
    assert_eq!(joined.believed.nodes.values().map(|node| node.pod_cidrs.len()).collect::<Vec<_>>(), [1]);
    assert_eq!(joined.findings[0].0, "joined-cluster-announcement");
    assert!(joined.findings[0].1.contains("node a@east"), "{:?}", joined.findings);
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    assert!(decide(&mut register, &synced()).findings.is_empty());
    assert!(!register.hear(told("west", vec![put("x", 3, "10.1.1.0/24")])));
}

/// Codes and nodes of an agent that has decided.
fn codes_and_nodes(register: &mut Register, nodes: &Nodes) -> (Vec<String>, String) {
    let joined = decide(register, nodes);
    (joined.findings.into_iter().map(|(code, _)| code).collect(), shown(&joined.believed))
}

const NOT_SIGNED: &str = "joined-cluster-node-not-signed";

#[tokio::test]
async fn a_node_that_its_cluster_has_not_signed_is_refused_by_name_and_never_remembered() {
    let one = || put("a", 1, "10.2.1.0/24");
    let wrong = [
        ("nobody has signed it", one()),
        ("another authority has", signed(one(), &another_authority(), "east")),
        ("for another cluster", signed(one(), authority(), "south")),
    ];
    for (what, wrong) in wrong {
        let folder = tempfile::tempdir().expect("a directory");
        let mut register = register(folder.path());
        register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
        // Before it there was a good one, and beside it there is one.
        register.hear(told("east", vec![one(), put("b", 2, "10.2.2.0/24")]));
        assert_eq!(codes_and_nodes(&mut register, &synced()).1, "a@east b@east | east [10.2.0.0/16]");
        assert!(register.save().await);
        assert!(register.hear(told_as_it_is("east", vec![wrong])), "{what}: to be decided");
        let alone = (vec![NOT_SIGNED.to_owned()], "b@east | east [10.2.0.0/16]".to_owned());
        // Nor is it written if that comes first.
        assert!(register.save().await);
        let again = self::register(folder.path());
        assert_eq!(shown(again.believed()), "b@east | east [10.2.0.0/16]", "{what}");
        assert_eq!(codes_and_nodes(&mut register, &synced()), alone, "{what}");
        let text = &register.joined().findings[0].1;
        assert!(text.contains("node a of cluster east") && text.contains("taken over"), "{text}");
        // A word that the cluster is gone makes nothing of what was told before it true.
        register.hear(Told::Gone { cluster: name("east") });
        assert_eq!(codes_and_nodes(&mut register, &synced()), alone, "{what}");
        assert!(register.save().await);
        assert_eq!(shown(self::register(folder.path()).believed()), "b@east | east [10.2.0.0/16]", "{what}");
        register.hear(told("east", vec![one(), put("b", 2, "10.2.2.0/24")]));
        let good = (Vec::new(), "a@east b@east | east [10.2.0.0/16]".to_owned());
        assert_eq!(codes_and_nodes(&mut register, &synced()), good, "{what}");
    }
}

#[tokio::test]
async fn signatures_are_held_to_the_present_trust_bundle_and_after_a_start_to_the_remembered_one() {
    let folder = tempfile::tempdir().expect("a directory");
    let with = |bundle: String| {
        let spec = spec(&["10.2.0.0/16"]).map(|spec| ClusterPeerSpec { trust_bundle: bundle, ..spec });
        peers(true, &[("east", spec)])
    };
    let (no, yes) = (" | east [10.2.0.0/16]", "a@east | east [10.2.0.0/16]");
    let not_signed = vec![NOT_SIGNED.to_owned()];
    let other = another_authority();
    let mut register = register(folder.path());
    // It was told before it was joined, and by another authority than the first bundle has.
    register.hear(told("east", vec![put("a", 1, "10.2.1.0/24")]));
    assert_eq!(codes_and_nodes(&mut register, &synced()), (vec![], " | ".to_owned()));
    register.peers(with(other.pem().to_owned()));
    assert_eq!(codes_and_nodes(&mut register, &synced()), (not_signed.clone(), no.to_owned()));
    register.peers(with(format!("{}{}", other.pem(), authority().pem())));
    assert_eq!(codes_and_nodes(&mut register, &synced()), (vec![], yes.to_owned()));
    // One that cannot be read changes nothing.
    let malformed = vec!["joined-cluster-peer-malformed".to_owned()];
    for broken in ["", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"] {
        register.peers(with(broken.to_owned()));
        assert_eq!(
            codes_and_nodes(&mut register, &synced()),
            (malformed.clone(), yes.to_owned()),
            "{broken:?}"
        );
    }
    assert!(register.save().await);

    // Those of the file are held to a new bundle, too, told of or not; and joined again they are to be told again.
    let mut silent = self::register(folder.path());
    silent.peers(with(other.pem().to_owned()));
    assert_eq!(codes_and_nodes(&mut silent, &synced()), (not_signed.clone(), no.to_owned()));
    let mut again = self::register(folder.path());
    for now in [peers(true, &[]), with(authority().pem().to_owned())] {
        again.peers(now);
        decide(&mut again, &synced());
    }
    assert_eq!(codes_and_nodes(&mut again, &synced()), (vec![], no.to_owned()));

    // ClusterPeers are not read yet; `clustermesh` is faster.
    let mut second = self::register(folder.path());
    assert_eq!(shown(second.believed()), yes);
    second.hear(told("east", vec![put("a", 1, "10.2.1.0/24"), put("b", 2, "10.2.2.0/24")]));
    let both = "a@east b@east | east [10.2.0.0/16]".to_owned();
    assert_eq!(codes_and_nodes(&mut second, &synced()), (vec![], both));
    second.hear(told_as_it_is("east", vec![put("b", 2, "10.2.2.0/24")]));
    assert_eq!(codes_and_nodes(&mut second, &synced()), (not_signed.clone(), yes.to_owned()));
    second.peers(with(other.pem().to_owned()));
    assert_eq!(codes_and_nodes(&mut second, &synced()), (not_signed, no.to_owned()));
}

#[tokio::test]
async fn a_file_that_could_not_be_written_is_written_as_soon_as_it_can_be_whatever_is_told_meanwhile() {
    let folder = tempfile::tempdir().expect("a directory");
    let away = folder.path().join("away");
    let (peers_tx, peers_rx) = watch::channel(Peers::default());
    let (_nodes, nodes) = watch::channel(synced());
    let (tell, told_rx) = mpsc::channel(QUEUE);
    let (_asks, asks) = watch::channel(AskedClusters::default());
    let (joined_tx, joined) = watch::channel(Arc::default());
    let out = (joined_tx, Arc::new(Mailbox::default()));
    let running = tokio::spawn(run(register(&away), peers_rx, nodes, told_rx, asks, out, Metrics::new()));
    peers_tx.send_replace(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    tell.send(told("east", vec![put("a", 1, "10.2.1.0/24")])).await.expect("it listens");
    let deadline = Duration::from_secs(20);
    eventually_async(deadline, "it is believed", || async {
        let shown = shown(&joined.borrow().believed);
        if shown == "a@east | east [10.2.0.0/16]" { Ok(()) } else { Err(shown) }
    })
    .await
    .expect("without a file, too");
    std::fs::create_dir(&away).expect("a directory");
    eventually_async(deadline, "it is written", || async {
        // Beats come all the time.
        tell.send(Told::Heard { cluster: name("east") }).await.expect("it listens");
        let again = shown(register(&away).believed());
        if again == "a@east | east [10.2.0.0/16]" { Ok(()) } else { Err(again) }
    })
    .await
    .expect("what is believed is remembered");
    drop(tell);
    running.await.expect("it ends");
}

#[test]
fn who_has_not_signed_is_said_before_whatever_else_is_refused_and_once_for_each_cluster() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut register = register(folder.path());
    register.peers(peers(true, &[("east", spec(&["10.2.0.0/16"]))]));
    let outside = (1..=40).map(|n| put(&format!("a{n:02}"), n, "10.9.1.0/24"));
    register.hear(told("east", outside.collect()));
    let wrong = (41..=43).map(|n| put(&format!("z{n}"), n, "10.2.3.0/24"));
    register.hear(told_as_it_is("east", wrong.collect()));
    let findings = decide(&mut register, &synced()).findings;
    assert_eq!(findings.iter().filter(|(code, _)| code == NOT_SIGNED).count(), 1);
    assert!(
        findings[0].1.starts_with("node z41 and 2 more of cluster east: no authority"),
        "{:?}",
        findings[0]
    );
    assert_eq!((findings.len(), findings[SENTENCES].0.as_str()), (SENTENCES + 1, "joined-cluster-more"));
    assert!(findings[SENTENCES].1.starts_with("9 more"), "{:?}", findings[SENTENCES]);
}

#[test]
fn a_file_of_a_time_before_signatures_guards_the_prefixes_and_names_no_node() {
    let folder = tempfile::tempdir().expect("a directory");
    let text = r#"{"east":{"podCIDRs":["10.2.0.0/16"],"nodes":{"a":{"uid":"u","created":1,"podCIDRs":["10.2.1.0/24"],"announcement":"x"}}}}"#;
    std::fs::write(folder.path().join(FILE), text).expect("writes");
    assert_eq!(shown(register(folder.path()).believed()), " | east [10.2.0.0/16]");
}
