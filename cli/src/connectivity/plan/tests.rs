use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::connectivity::question::{Answer, Fault, MESSAGE_MAX, Message, Times, VERSION};

fn node(name: &str, [ready, schedulable, linux]: [bool; 3]) -> NodeFacts {
    NodeFacts { name: name.to_owned(), ready, schedulable, linux, in_mesh: true, families: BTreeSet::new() }
}

fn stage(nodes: usize, families: &[bool]) -> Stage {
    let served = |role: Role, offset: usize| {
        (0..nodes)
            .map(|at| Served {
                name: role.pod(at),
                node: format!("node-{at}"),
                ips: families
                    .iter()
                    .map(
                        |v4| if *v4 { format!("10.0.{at}.{offset}") } else { format!("fd00::{at}:{offset}") },
                    )
                    .map(|ip| ip.parse().unwrap())
                    .collect(),
            })
            .collect()
    };
    let service = families.iter().map(|v4| if *v4 { "10.96.0.9" } else { "fd00:96::9" });
    Stage {
        namespace: "n".into(),
        servers: served(Role::Server, 2),
        guarded: served(Role::Guarded, 3),
        service: service.map(|ip| ip.parse().unwrap()).collect(),
        families: BTreeMap::new(),
        throughput: true,
        host: true,
    }
}

#[test]
fn the_first_nodes_that_can_run_pods_are_taken_or_those_that_are_named() {
    let fit = [true; 3];
    let nodes = [
        node("c", fit),
        node("a", fit),
        node("b", [false, true, true]),
        node("d", [true, false, true]),
        node("w", [true, true, false]),
        NodeFacts { in_mesh: false, ..node("v", fit) },
    ];
    let choose = |named: &[&str], count| {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        choose(&nodes, &named, count).map(|chosen| chosen.nodes).map_err(|error| error.to_string())
    };
    assert_eq!(choose(&[], 1).unwrap(), ["a"]);
    assert_eq!(choose(&[], 8).unwrap(), ["a", "c"]);
    assert_eq!(choose(&["c", "a"], 1).unwrap(), ["c", "a"]);
    for (named, words) in [
        (&["x"][..], "no such node"),
        (&["b"], "is not ready"),
        (&["d"], "is cordoned"),
        (&["w"], "does not run Linux"),
        (&["v"], "announces no keys"),
        (&["a", "a"], "twice"),
        (&["a", "b", "c", "d", "e", "f", "g", "h", "i"], "too many"),
    ] {
        let error = choose(named, 1).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(
        super::choose(&nodes[2..], &[], 2).unwrap_err().to_string().contains("b is not ready, d is cordoned")
    );
    assert!(super::choose(&[], &[], 2).unwrap_err().to_string().contains("there is none"));
}

#[test]
fn where_fewer_nodes_are_fit_than_were_asked_for_the_others_are_named() {
    let fit = [true; 3];
    let nodes = [
        node("d", [true, false, true]),
        node("a", fit),
        node("b", [false, true, true]),
        node("w", [true, true, false]),
        NodeFacts { in_mesh: false, ..node("c", fit) },
    ];
    let unfit = |nodes: &[NodeFacts], named: &[String], count| -> Vec<String> {
        let chosen = choose(nodes, named, count).unwrap();
        chosen.unfit.iter().map(|unfit| format!("{} {}", unfit.node, unfit.why)).collect()
    };
    assert_eq!(
        unfit(&nodes, &[], 2),
        ["b is not ready", "c announces no keys (mesh-agent has not run there)", "d is cordoned"]
    );
    // As many as were asked for, or all that there are.
    assert!(unfit(&nodes, &[], 1).is_empty());
    assert!(unfit(&nodes, &["a".to_owned()], 2).is_empty());
    assert!(unfit(&[node("a", fit), node("w", [true, true, false])], &[], 2).is_empty());
    assert!(unfit(&[node("a", fit)], &[], NODES_MAX).is_empty());
}

#[test]
fn a_family_that_nodes_have_and_pods_do_not_is_not_skipped() {
    let both = BTreeSet::from([Family::IPv4, Family::IPv6]);
    let families: BTreeMap<String, BTreeSet<Family>> =
        (0..2).map(|at| (format!("node-{at}"), both.clone())).collect();
    let of = |stage: Stage| {
        let plan = plan(&Stage { families: families.clone(), ..stage });
        let text = |lacking: &Lacking| {
            format!("{} {} {}", lacking.node, lacking.family.word(), lacking.pods.join(" "))
        };
        (plan.skipped, plan.lacking.iter().map(text).collect::<Vec<String>>())
    };
    assert_eq!(of(stage(2, &[true, false])), (vec![], vec![]));
    let (skipped, lacking) = of(stage(2, &[true]));
    assert!(skipped.is_empty(), "{skipped:?}");
    assert_eq!(lacking, ["node-0 IPv6 server-0 guarded-0", "node-1 IPv6 server-1 guarded-1"]);
    // Not of one pod alone.
    let mut one = stage(2, &[true, false]);
    one.guarded[1].ips.truncate(1);
    assert_eq!(of(one).1, ["node-1 IPv6 guarded-1"]);
    // What did not start is told elsewhere.
    assert!(of(Stage::default()).1.is_empty());
}

#[test]
fn one_node_and_one_family_say_what_is_not_looked_at() {
    let plan = plan(&stage(1, &[true]));
    assert_eq!(
        plan.skipped,
        ["from node to node: only one node is tested", "IPv6: pods of this cluster have no such addresses"]
    );
    assert!(plan.checks.iter().all(|check| check.kind != Kind::AcrossNodes));
    let without = super::plan(&Stage { host: false, ..stage(2, &[true]) });
    assert_eq!(without.skipped[0], "from nodes to pods: --no-host");
    assert!(without.askers.iter().all(|asker| asker.role != Role::Host), "{:?}", without.askers);
}

#[test]
fn the_longest_answers_of_the_largest_run_fit_into_a_termination_message() {
    let plan = plan(&stage(NODES_MAX, &[true, false]));
    let longest = Answer::Times(Times { p50_us: u32::MAX, p99_us: u32::MAX, lost: 200 });
    let rate = Answer::Rate(u64::MAX);
    for at in 0..plan.askers.len() {
        let answers: Vec<Answer> = plan
            .questions(at)
            .iter()
            .map(|question| match question {
                Question::Server { ask: Ask::Rate, .. } => rate,
                Question::Server { ask: Ask::Tcp | Ask::Udp, .. } => longest,
                Question::Server { .. } | Question::Name { .. } => Answer::Fault(Fault::NamesSilent),
            })
            .collect();
        let text = serde_json::to_string(&Message { v: VERSION, answers }).unwrap();
        assert!(text.len() <= MESSAGE_MAX, "{}: {} bytes", plan.askers[at].name, text.len());
    }
}

proptest! {
    /// From every node to every node, in every family that both have: each way once, and each silence with something that shall be
    /// heard beside it.
    #[test]
    fn every_way_is_looked_at_once(nodes in 0..=NODES_MAX, families in prop::sample::subsequence(vec![true, false], 0..=2), throughput: bool, host: bool) {
        let stage = Stage { throughput, host, ..stage(nodes, &families) };
        let plan = plan(&stage);
        let mut seen: BTreeMap<(Kind, String, String, Option<Family>), usize> = BTreeMap::new();
        for check in &plan.checks {
            let asker = &plan.askers[check.asker];
            *seen.entry((check.kind, asker.node.clone(), check.to.clone(), check.family)).or_default() += 1;
            prop_assert!(!check.questions.is_empty());
            let quiet = |question: &Question| matches!(question, Question::Server { ask, .. } if ask.is_quiet());
            if check.questions.iter().any(quiet) {
                let own = check.questions.iter().any(|question| !quiet(question));
                let control = check.control.map(|at| &plan.checks[at]);
                let heard = own || control.is_some_and(|control| {
                    let same = plan.askers[control.asker].node == asker.node;
                    let to = control.to == check.to && control.family == check.family;
                    same && to && !control.questions.iter().any(quiet)
                });
                prop_assert!(heard, "{:?}", check);
            }
            let near = check.to_node.as_ref() == Some(&asker.node);
            prop_assert!(!near || !matches!(check.kind, Kind::AcrossNodes | Kind::HostAcrossNodes));
            prop_assert!(near || !matches!(check.kind, Kind::OneNode | Kind::HostOneNode));
        }
        prop_assert!(seen.values().all(|count| *count == 1));
        let pairs = nodes * nodes * families.len();
        let of = |kinds: &[Kind]| plan.checks.iter().filter(|check| kinds.contains(&check.kind)).count();
        prop_assert_eq!(of(&[Kind::OneNode, Kind::AcrossNodes]), pairs);
        prop_assert_eq!(of(&[Kind::HostOneNode, Kind::HostAcrossNodes]), if host { pairs } else { 0 });
        for kind in [Kind::PolicyAllows, Kind::PolicyDeniesPod, Kind::PolicyDeniesPort, Kind::PolicyDeniesEgress] {
            prop_assert_eq!(of(&[kind]), pairs);
        }
        prop_assert_eq!((of(&[Kind::Service]), of(&[Kind::Name])), (nodes * families.len(), nodes));
    }
}
