use std::collections::BTreeMap;

use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::policy::eval::{eval, eval_both};
use crate::policy::model::{Direction, Verdict};

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn a_random_world_survives_being_written_down(facts in facts()) {
        let text = format!("{facts:?}");
        let again = serde_json::from_str::<World>(&text).unwrap().facts().unwrap();
        prop_assert_eq!(again, facts.0);
    }

    #[test]
    fn flows_are_of_one_family_and_bear_ports_where_protocols_have_them(
        (facts, flow) in facts().prop_flat_map(|f| (Just(f.clone()), flow(&f)))
    ) {
        prop_assert_eq!(flow.source.is_ipv4(), flow.destination.is_ipv4());
        prop_assert_eq!(flow.port.is_some(), [6, 17, 132].contains(&flow.protocol));
        let _judged = eval_both(&facts.0, flow);
    }
}

#[test]
fn random_worlds_are_of_all_kinds() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..200 {
        let RandomFacts(facts) = facts().new_tree(&mut runner).unwrap().current();
        let mut owners: BTreeMap<_, u32> = BTreeMap::new();
        let ips = facts.pods.values().map(|p| &p.ips).chain(facts.nodes.values().map(|n| &n.ips));
        ips.flatten().for_each(|ip| *owners.entry(*ip).or_default() += 1);
        let mut note = |what, holds: bool| *seen.entry(what).or_default() += u32::from(holds);
        note("an address that two claim", owners.values().any(|n| *n > 1));
        note(
            "a pod of a namespace that is not known",
            facts.pods.keys().any(|p| !facts.namespaces.contains_key(&p.namespace)),
        );
        note(
            "both kinds of policy",
            !facts.network_policies.is_empty() && !facts.cluster_policies.is_empty(),
        );
        let text = format!("{:?}", RandomFacts(facts.clone()));
        for word in [
            "Pass",
            "Baseline",
            "endPort",
            "except",
            "nodes",
            "domainNames",
            "Ingres\"",
            "accept",
            "Gt",
            "Other",
            "10.1.0.0/33",
        ] {
            note(word, text.contains(word));
        }
        let interesting = Interesting::of(&facts);
        for flow in interesting.flows().step_by(97) {
            for (direction, what) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
                let denied = eval(&facts, flow, direction) == Verdict::Deny;
                note(if denied { "denied" } else { "allowed" }, true);
                note(what, denied);
            }
        }
    }
    for (what, times) in &seen {
        assert!(*times > 0, "{what} never occurs: {seen:?}");
    }
    let (denied, allowed) = (seen["denied"], seen["allowed"]);
    assert!(
        denied * 10 > allowed && allowed * 10 > denied,
        "one verdict is rare: {denied} denied, {allowed} allowed"
    );
    println!("{seen:?}");
}
