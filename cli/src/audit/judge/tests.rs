use super::super::fixture::{NOW, inputs, namespace, of, says, says_of_east};
use super::super::report::{DefaultRule, PairState, PostQuantum};
use super::*;
use mesh_core::evidence::{DestroyedKey, Note, PskState};
use mesh_core::slot::Slot;
use proptest::prelude::*;
use std::collections::BTreeSet;

type Change = fn(&mut Inputs);

/// Codes of what speaks against something or is missing, the verdict, and the controls that do not hold.
fn outcome(change: impl Fn(&mut Inputs)) -> (Vec<String>, Verdict, Vec<(String, Verdict)>) {
    let mut all = inputs(3);
    change(&mut all);
    let report = judge(all);
    let mut codes: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| finding.effect != Effect::Note)
        .map(|finding| finding.code.clone())
        .collect();
    codes.dedup();
    let open = report.controls.iter().filter(|control| control.verdict != Verdict::Holds);
    (codes, report.verdict, open.map(|control| (control.id.clone(), control.verdict)).collect())
}

fn check(what: &str, change: Change, codes: &[&str], verdict: Verdict, controls: &[&str]) {
    let (found, judged, open) = outcome(change);
    assert_eq!(
        (&found[..], judged),
        (&codes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>()[..], verdict),
        "{what}"
    );
    let ids: Vec<&str> = open.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, controls, "{what}");
}

const ALL: [&str; 7] = ["SC-8", "SC-8(1)", "SC-12", "SC-13", "AC-4", "4.2.1", "4.2.1.1"];

#[test]
fn each_fact_has_its_verdict_and_its_controls() {
    use Verdict::{DoesNotHold, Holds, Incomplete};
    let silent: Change = |all| all.nodes.get_mut("node-2").unwrap().answer = Err("no answer in 20 s".into());
    check("healthy", |_| {}, &[], Holds, &[]);
    check("a silent agent", silent, &["node-silent"], Incomplete, &ALL);
    check(
        "no list of nodes",
        |all| all.nodes_unread = Some("forbidden".into()),
        &["nodes-unread"],
        Incomplete,
        &ALL,
    );
    check("no node", |all| all.nodes.clear(), &["no-node"], Incomplete, &ALL);
    check("an agent that starts", |all| of(all, 1).synced = false, &["node-unsynced"], Incomplete, &ALL);
    check(
        "a node without announcement",
        |all| {
            let node = all.nodes.get_mut("node-3").unwrap();
            node.announced = Announced::Missing;
            node.answer = Err("no pod".into());
        },
        &["node-unannounced", "node-silent"],
        DoesNotHold,
        &ALL,
    );
    check(
        "no firewall",
        |all| of(all, 1).guard.firewall = false,
        &["guard-missing"],
        DoesNotHold,
        &["SC-8", "SC-8(1)", "AC-4", "4.2.1"],
    );
    check("old evidence", |all| of(all, 1).at = NOW - 121, &["evidence-stale"], Incomplete, &ALL);
    check(
        "evidence of a clock ahead",
        |all| of(all, 1).at = NOW + 121,
        &["evidence-stale"],
        Incomplete,
        &ALL,
    );
    check("evidence of two minutes ago", |all| of(all, 1).at = NOW - 120, &[], Holds, &[]);
    check(
        "evidence that came long before that of the others",
        |all| {
            of(all, 1).at = NOW - 600;
            all.nodes.get_mut("node-1").unwrap().heard_at = NOW - 600;
        },
        &[],
        Holds,
        &[],
    );
    check(
        "repairs that are due",
        |all| of(all, 1).pending = 1,
        &["not-settled"],
        Incomplete,
        &["SC-8", "SC-8(1)", "4.2.1"],
    );
    check(
        "policy that is not in force",
        |all| of(all, 1).problems.push(Note { code: "policy-not-applied".into(), text: "full".into() }),
        &["policy-not-in-force"],
        DoesNotHold,
        &["AC-4"],
    );
    check(
        "an uplink without programs",
        |all| of(all, 1).problems.push(Note { code: "uplink-without-data-path".into(), text: "eth1".into() }),
        &["data-path-incomplete"],
        DoesNotHold,
        &["SC-8", "SC-8(1)", "AC-4", "4.2.1"],
    );
    check(
        "counters at their end",
        |all| {
            for node in [1, 2] {
                of(all, node).guard.refused.insert("data-path/guard-out".into(), MAX_NUMBER);
            }
        },
        &[],
        Holds,
        &[],
    );
    check(
        "no data path",
        |all| of(all, 1).guard.data_path = DataPath::Failed { reason: "no btf".into() },
        &["data-path-failed"],
        DoesNotHold,
        &["AC-4"],
    );
    check(
        "unread counters",
        |all| of(all, 1).guard.unread.push("map gone".into()),
        &["counters-unread"],
        Incomplete,
        &["SC-8", "SC-8(1)", "4.2.1"],
    );
    check(
        "an old key",
        |all| of(all, 1).slots[1].made_at = Some(NOW - 604_801),
        &["key-over-age"],
        DoesNotHold,
        &["SC-12", "4.2.1"],
    );
    check("a key at its age", |all| of(all, 1).slots[1].made_at = Some(NOW - 604_800), &[], Holds, &[]);
    check(
        "a key of unknown age",
        |all| of(all, 1).slots[1].made_at = None,
        &["key-age-unknown"],
        Incomplete,
        &["SC-12", "4.2.1", "4.2.1.1"],
    );
    check(
        "another mode",
        |all| of(all, 2).settings.rotation.period_seconds = None,
        &["settings-differ"],
        DoesNotHold,
        &["SC-8", "SC-8(1)", "AC-4", "4.2.1"],
    );
    check(
        "an unreadable record",
        |all| {
            of(all, 1).destroyed =
                mesh_core::evidence::Destroyed { unread: Some("line 3".into()), ..Default::default() };
        },
        &["record-unread"],
        Incomplete,
        &["SC-12", "4.2.1"],
    );
    check(
        "a pair without handshake",
        |all| says(all, 1, 2).slots[0].entry.as_mut().unwrap().handshake_at = None,
        &["pair-without-handshake"],
        DoesNotHold,
        &["SC-8", "SC-8(1)", "SC-13", "4.2.1"],
    );
    check(
        "a pair without its pre-shared key",
        |all| says(all, 1, 2).slots[0].psk.state = PskState::Waiting,
        &["psk-missing"],
        DoesNotHold,
        &["SC-12"],
    );
    check(
        "an idle pair",
        |all| says(all, 1, 2).slots[0].entry.as_mut().unwrap().handshake_at = Some(NOW - 5000),
        &[],
        Holds,
        &[],
    );
    check(
        "namespaces unread",
        |all| all.namespaces = Err("forbidden".into()),
        &["namespaces-unread"],
        Incomplete,
        &["AC-4"],
    );
    check(
        "an open namespace",
        |all| all.namespaces = Ok(vec![Namespace { ingress: DefaultRule::default(), ..namespace("shop") }]),
        &["namespace-open"],
        DoesNotHold,
        &["AC-4"],
    );
    check(
        "a namespace that only reports",
        |all| all.namespaces.as_mut().unwrap()[0].audited = true,
        &["namespace-audited"],
        DoesNotHold,
        &["AC-4"],
    );
    check(
        "an exempt namespace",
        |all| {
            let open = DefaultRule::default();
            all.namespaces = Ok(vec![Namespace {
                ingress: open.clone(),
                egress: open,
                exempt: true,
                ..namespace("kube-system")
            }]);
        },
        &[],
        Holds,
        &[],
    );
    check(
        "what is only to be known",
        |all| {
            let node = of(all, 1);
            node.exemptions.world_flows = Some(3);
            node.guard.refused.insert("data-path/guard-out".into(), 4);
            node.problems.push(Note { code: "x".into(), text: "y".into() });
            node.destroyed.last = Some(DestroyedKey {
                time: "t".into(),
                device: "hawser0".into(),
                epoch: mesh_core::announcement::Epoch(1),
                fingerprint: "SHA256:x".into(),
                successor: mesh_core::announcement::Epoch(3),
                overdue: true,
            });
        },
        &[],
        Holds,
        &[],
    );
}

#[test]
fn a_silent_node_is_in_the_report_with_its_reason_and_what_others_say_of_it() {
    let mut all = inputs(3);
    all.nodes.get_mut("node-2").unwrap().answer = Err("no answer in 20 s".into());
    let report = judge(all);
    let node = report.nodes.iter().find(|node| node.name == "node-2").unwrap();
    assert_eq!((node.missing.as_deref(), node.evidence.is_none()), (Some("no answer in 20 s"), true));
    let pair = report.pairs.iter().find(|pair| pair.a == "node-1" && pair.b == "node-2").unwrap();
    assert_eq!((pair.state, pair.a_says.is_some(), pair.b_says.is_none()), (PairState::Unknown, true, true));
    let s = &report.summary;
    assert_eq!((s.nodes, s.nodes_with_evidence, s.pairs, s.pairs_holding, s.pairs_unknown), (3, 2, 3, 1, 2));
}

#[test]
fn every_report_says_that_nothing_is_fips_validated() {
    let report = judge(inputs(1));
    assert!(report.statements.iter().any(|text| text.contains("not FIPS-validated")));
    for control in
        report.controls.iter().filter(|control| ["SC-8(1)", "SC-13", "4.2.1"].contains(&control.id.as_str()))
    {
        assert!(
            control.limits.iter().any(|text| text.contains("SC-13 is supported only where")),
            "{control:?}"
        );
    }
}

#[test]
fn of_many_pairs_only_the_faulty_are_shown_where_that_is_asked_for() {
    let mut all = inputs(4);
    all.shown = Shown::Faulty;
    says(&mut all, 1, 2).sends_by = Some(Slot::One);
    let report = judge(all);
    let shown: Vec<(&str, &str)> =
        report.pairs.iter().map(|pair| (pair.a.as_str(), pair.b.as_str())).collect();
    assert_eq!((shown, report.summary.pairs), (vec![("node-1", "node-2")], 6));
}

#[test]
fn findings_of_one_kind_are_named_up_to_a_number_and_then_counted() {
    let mut all = inputs(1);
    all.namespaces =
        Ok((0..80).map(|n| Namespace { audited: true, ..namespace(&format!("n{n}")) }).collect());
    let report = judge(all);
    let texts: Vec<&str> =
        report.findings.iter().filter(|f| f.code == "namespace-audited").map(|f| f.text.as_str()).collect();
    assert_eq!((texts.len(), texts.last()), (51, Some(&"and 30 more")));
    let control = report.controls.iter().find(|control| control.id == "AC-4").unwrap();
    assert_eq!(control.open["namespace-audited"], 80);
}

#[test]
fn only_nodes_of_pairs_that_disagree_are_asked_again() {
    let mut all = inputs(4);
    assert!(disagreeing(&all).is_empty());
    says(&mut all, 2, 4).sends_by = Some(Slot::One);
    assert_eq!(disagreeing(&all), BTreeSet::from(["node-2".to_owned(), "node-4".to_owned()]));
}

proptest! {
    #[test]
    fn silence_never_makes_a_verdict_better(silent in prop::collection::btree_set(1..=4_u8, 0..4), broken in 1..=4_u8, how in 0..5) {
        let mut all = inputs(4);
        match how {
            0 => of(&mut all, broken).guard.firewall = false,
            1 => of(&mut all, broken).slots[0].device_key = None,
            2 => of(&mut all, broken).announced = false,
            3 => of(&mut all, broken).slots[0].made_at = None,
            _ => {}
        }
        let before = judge(all.clone());
        for node in &silent {
            all.nodes.get_mut(&format!("node-{node}")).unwrap().answer = Err("away".into());
        }
        let after = judge(all);
        // What the broken node would have said may be lost with it; what is left is never called whole.
        prop_assert!(silent.is_empty() || after.verdict != Verdict::Holds);
        prop_assert!(silent.contains(&broken) || after.verdict >= before.verdict);
        for (b, a) in before.controls.iter().zip(&after.controls) {
            prop_assert!(silent.is_empty() || a.verdict != Verdict::Holds, "{}", a.id);
            prop_assert!(silent.contains(&broken) || a.verdict >= b.verdict, "{}", a.id);
        }
    }
}

#[test]
fn who_is_moving_is_asked_again() {
    assert!(disagreeing(&inputs(3)).is_empty());
    let changes: [Change; 3] = [
        |all| of(all, 2).pending = 1,
        |all| of(all, 2).announced = false,
        |all| of(all, 2).slots[0].device_key = None,
    ];
    for change in changes {
        let mut all = inputs(3);
        change(&mut all);
        assert!(disagreeing(&all).contains("node-2"));
    }
}

#[test]
fn host_traffic_that_is_on_is_claimed_for_peers_alone_with_whom_it_is_closed() {
    use mesh_core::host::HostPath;
    for (path, plain) in [
        (HostPath::Plain, true),
        (HostPath::Waiting, true),
        (HostPath::Tunnel, false),
        (HostPath::Dead, false),
        (HostPath::Cut, false),
    ] {
        let mut all = inputs(2);
        for node in [1, 2] {
            of(&mut all, node).settings.host_traffic = true;
            of(&mut all, node).exemptions.host_tcp_ports = [6443].into();
            says(&mut all, node, 3 - node).host_path = path;
        }
        let report = judge(all);
        let told = |code: &str| report.findings.iter().filter(|finding| finding.code == code).count();
        assert_eq!(told("host-traffic-plain"), if plain { 2 } else { 0 }, "{path:?}");
        assert_eq!((told("host-traffic-off"), told("exempt-host-ports")), (0, 2), "{path:?}");
        let limited = report.controls.iter().any(|control| {
            control.limits.iter().any(|limit| limit.contains("unencrypted, though hostTraffic is on"))
        });
        assert_eq!(limited, plain, "{path:?}");
    }
}

#[test]
fn pairs_with_a_joined_cluster_are_judged_by_the_side_that_there_is() {
    use Verdict::{DoesNotHold, Holds, Incomplete};
    const CARRIES: [&str; 4] = ["SC-8", "SC-8(1)", "SC-13", "4.2.1"];
    let healthy: Change = |all| {
        says_of_east(all, 1);
    };
    check("a healthy one", healthy, &[], Holds, &[]);
    check(
        "UDP that does not pass",
        |all| says_of_east(all, 1).slots[0].entry.as_mut().unwrap().handshake_at = None,
        &["pair-without-handshake"],
        DoesNotHold,
        &CARRIES,
    );
    check(
        "one that does not answer one node of two",
        |all| {
            says_of_east(all, 2);
            says_of_east(all, 1).slots[0].entry.as_mut().unwrap().unanswered = Some(15);
        },
        &["pair-unanswered"],
        DoesNotHold,
        &CARRIES,
    );
    check(
        "one that answers nobody: it may be off",
        |all| {
            for node in [1, 2] {
                says_of_east(all, node).slots[0].entry.as_mut().unwrap().unanswered = Some(15);
            }
        },
        &["joined-node-silent"],
        Incomplete,
        &CARRIES,
    );
    check(
        "one that is sent nothing",
        |all| says_of_east(all, 1).sends_by = None,
        &["pair-without-route"],
        DoesNotHold,
        &CARRIES,
    );
    check(
        "one without a pre-shared key",
        |all| says_of_east(all, 1).slots[0].psk.state = PskState::Waiting,
        &["psk-missing"],
        DoesNotHold,
        &["SC-12"],
    );
    check(
        "one with whom nobody talks",
        |all| says_of_east(all, 1).slots[0].entry.as_mut().unwrap().handshake_at = Some(NOW - 5000),
        &[],
        Holds,
        &[],
    );
    check(
        "one that an agent which starts does not know well",
        |all| {
            says_of_east(all, 1).sends_by = None;
            of(all, 1).synced = false;
        },
        &["node-unsynced"],
        Incomplete,
        &ALL,
    );
}

#[test]
fn a_report_says_that_of_pairs_with_joined_clusters_one_side_was_seen() {
    let alone = judge(inputs(2));
    assert!(alone.joined_pairs.is_empty() && !alone.statements.iter().any(|text| text == ONE_SIDE));
    let mut all = inputs(2);
    says_of_east(&mut all, 1);
    says_of_east(&mut all, 2).sends_by = None;
    let report = judge(all.clone());
    assert!(report.statements.iter().any(|text| text == ONE_SIDE), "{:?}", report.statements);
    let sc8 = report.controls.iter().find(|control| control.id == "SC-8").unwrap();
    let limit = "of 2 pairs with nodes of joined clusters this side alone was seen: 1 have";
    assert!(sc8.limits.iter().any(|text| text.starts_with(limit)), "{sc8:?}");
    let (own, joined) = (&report.summary, &report.summary.joined);
    assert_eq!((own.pairs, own.pairs_holding, own.pairs_failing), (1, 1, 0));
    assert_eq!((joined.pairs, joined.holding, joined.failing, joined.post_quantum_holding), (2, 1, 1, 1));
    let pairs: Vec<(&str, &str, PairState, PostQuantum)> = report
        .joined_pairs
        .iter()
        .map(|pair| (pair.node.as_str(), pair.peer.as_str(), pair.state, pair.post_quantum))
        .collect();
    assert_eq!(
        pairs,
        [
            ("node-1", "gw@east", PairState::Holds, PostQuantum::Holds),
            ("node-2", "gw@east", PairState::Fails, PostQuantum::Fails)
        ]
    );
    // Whoever has a fault there is asked again, and is shown where the faulty are.
    assert_eq!(disagreeing(&all), BTreeSet::from(["node-2".to_owned()]));
    all.shown = Shown::Faulty;
    let report = judge(all);
    assert_eq!((report.pairs.len(), report.joined_pairs.len()), (0, 1));
}

#[test]
fn who_writes_no_pair_down_finds_the_same() {
    let mut all = inputs(4);
    says(&mut all, 1, 2).sends_by = Some(Slot::One);
    says_of_east(&mut all, 3).sends_by = None;
    all.nodes.get_mut("node-4").unwrap().answer = Err("away".into());
    let (found, report) = (super::outcome(&all), judge(all));
    assert_eq!((&found.findings, &found.summary), (&report.findings, &report.summary));
    assert!(found.written.pairs.is_empty() && found.written.joined.is_empty());
    assert_eq!((report.pairs.len(), report.joined_pairs.len()), (6, 1));
}

#[test]
fn a_joined_cluster_that_is_not_connected_is_named_with_the_reason() {
    let missing = |clusters: Result<BTreeMap<String, String>, String>| {
        let report = judge(Inputs { clusters, ..inputs(1) });
        assert_eq!(report.verdict, Verdict::Incomplete);
        let missing = report.findings.into_iter().find(|finding| finding.effect == Effect::Missing).unwrap();
        (missing.code, missing.text)
    };
    let (code, text) = missing(Ok(BTreeMap::from([("east".to_owned(), "Refused: no route".to_owned())])));
    assert!(code == "cluster-not-connected" && text.contains("cluster east: Refused: no route"), "{text}");
    let (code, text) = missing(Err("forbidden".to_owned()));
    assert!(code == "clusters-unread" && text.contains("forbidden"), "{text}");
}
