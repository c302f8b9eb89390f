//! The tables that the compiler makes, read as the data path reads them, against the oracle: in random worlds, after
//! random changes, and in the worlds that have verdicts by hand.
//!
//! `PROPTEST_CASES=20000 cargo test -p mesh-core --test policy_oracle` asks more. A failing world prints itself as API
//! objects in JSON and leaves its seed in `policy_oracle/seeds.txt`; it is kept in `policy_oracle/regressions.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use mesh_core::policy::arbitrary::{Change, Interesting, RandomFacts, change, facts, subjects};
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::eval::eval_pod;
use mesh_core::policy::fixture::World;
use mesh_core::policy::fixture::cases::About;
use mesh_core::policy::model::{
    Direction, Flow, LabelSelector, NamespaceFacts, ObjectName, PodFacts, PolicyFacts, PolicyPeer, Verdict,
    foreign_namespace, is_foreign_namespace,
};
use mesh_core::policy::tables::{State, judge};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseError};

/// A verdict of the tables that is not the oracle's.
struct Difference {
    subject: ObjectName,
    direction: Direction,
    flow: Flow,
    oracle: Verdict,
    tables: Verdict,
    rule: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, direction, flow, oracle, tables, rule } = self;
        let ObjectName { namespace, name } = subject;
        let Flow { source, destination, protocol, port } = flow;
        write!(
            f,
            "{direction:?} of {namespace}/{name}, {source} to {destination}, protocol {protocol}, port {port:?}: \
             the oracle says {oracle:?}, the tables {tables:?} by {rule}"
        )
    }
}

/// A compiler that was told these facts.
fn compiler(facts: &PolicyFacts) -> Compiler {
    let mut compiler = Compiler::new(facts.guarded.clone());
    let PolicyFacts { guarded: _, namespaces, pods, nodes, network_policies, cluster_policies } =
        facts.clone();
    namespaces.into_iter().for_each(|(n, v)| compiler.set_namespace(n, Some(v)));
    pods.into_iter().for_each(|(n, v)| compiler.set_pod(n, Some(v)));
    nodes.into_iter().for_each(|(n, v)| compiler.set_node(n, Some(v)));
    network_policies.into_iter().for_each(|(n, v)| compiler.set_network_policy(n, Some(v)));
    cluster_policies.into_iter().for_each(|(n, v)| compiler.set_cluster_policy(n, Some(v)));
    compiler
}

fn tell(compiler: &mut Compiler, change: Change) {
    match change {
        Change::Pod(name, value) => compiler.set_pod(name, value),
        Change::Namespace(name, value) => compiler.set_namespace(name, value),
        Change::Node(name, value) => compiler.set_node(name, value),
        Change::NetworkPolicy(name, value) => compiler.set_network_policy(name, value),
        Change::ClusterPolicy(name, value) => compiler.set_cluster_policy(name, value),
    }
}

fn flow(own: IpAddr, peer: IpAddr, direction: Direction, transport: (u8, Option<u16>)) -> Flow {
    let (source, destination) = match direction {
        Direction::Ingress => (peer, own),
        Direction::Egress => (own, peer),
    };
    Flow { source, destination, protocol: transport.0, port: transport.1 }
}

/// Asks both about the pods `subjects`, every address that could make a difference and `few` transports with each, other
/// ones each time (0: all). Counts what was asked.
fn differences(
    facts: &PolicyFacts,
    state: &State,
    compiler: &Compiler,
    subjects: &BTreeSet<ObjectName>,
    few: usize,
) -> (u64, Option<Difference>) {
    let interesting = Interesting::of(facts);
    let transports: Vec<_> = interesting.transports.iter().copied().collect();
    let few = if few == 0 { transports.len() } else { few.min(transports.len()) };
    let mut rotation = (0..transports.len()).cycle();
    let mut asked = 0;
    for subject in subjects {
        let Some(pod) = facts.pods.get(subject) else { continue };
        for own in &pod.ips {
            // A pod and itself: its addresses, not one of them, are what the data path compares.
            let others = interesting.addresses.iter().filter(|ip| ip.is_ipv4() == own.is_ipv4());
            for peer in others.filter(|ip| *ip == own || !pod.ips.contains(*ip)) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for transport in rotation.by_ref().take(few).map(|at| transports[at]) {
                        asked += 1;
                        let flow = flow(*own, *peer, direction, transport);
                        let oracle = eval_pod(facts, subject, flow, direction);
                        let (tables, rule) =
                            judge(state, subject, direction, *peer, flow.protocol, flow.port);
                        if oracle != tables {
                            let rule = compiler.rule(rule).map_or("no rule".to_owned(), ToString::to_string);
                            let subject = subject.clone();
                            return (
                                asked,
                                Some(Difference { subject, direction, flow, oracle, tables, rule }),
                            );
                        }
                    }
                }
            }
        }
    }
    (asked, None)
}

fn agree(
    facts: &PolicyFacts,
    state: &State,
    compiler: &Compiler,
    subjects: &BTreeSet<ObjectName>,
) -> Result<(), TestCaseError> {
    match differences(facts, state, compiler, subjects, 9) {
        (_, None) => Ok(()),
        (_, Some(difference)) => Err(TestCaseError::fail(difference.to_string())),
    }
}

/// At least this many cases, more by `PROPTEST_CASES`.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let seeds = FileFailurePersistence::Direct("tests/policy_oracle/seeds.txt");
    ProptestConfig {
        cases: default.cases.max(cases),
        // A world has hundreds of things that can be left out.
        max_shrink_iters: 50_000,
        failure_persistence: Some(Box::new(seeds)),
        ..default
    }
}

/// What happens at one node: changes, then a commit, and pods that are this node's from then on.
#[derive(Clone, Debug)]
struct Turn {
    changes: Vec<Change>,
    subjects: Option<BTreeSet<ObjectName>>,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (prop::collection::vec(change(), 1..=3), prop::option::weighted(0.3, subjects()))
        .prop_map(|(changes, subjects)| Turn { changes, subjects });
    prop::collection::vec(turn, 1..=6)
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn tables_say_what_the_oracle_says(RandomFacts(facts) in facts()) {
        let mut compiler = compiler(&facts);
        let all: BTreeSet<ObjectName> = facts.pods.keys().cloned().collect();
        compiler.set_subjects(all.clone());
        compiler.commit();
        agree(&facts, compiler.state(), &compiler, &all)?;
    }

    #[test]
    fn tables_say_what_the_oracle_says_for_the_pods_of_one_node(
        (RandomFacts(facts), subjects) in (facts(), subjects())
    ) {
        let mut compiler = compiler(&facts);
        compiler.set_subjects(subjects.clone());
        compiler.commit();
        agree(&facts, compiler.state(), &compiler, &subjects)?;
        for stranger in facts.pods.keys().filter(|name| !subjects.contains(*name)) {
            prop_assert!(!compiler.state().subjects.contains_key(stranger), "{stranger:?} is not of this node");
        }
    }

    #[test]
    fn tables_say_what_the_oracle_says_after_every_change(
        (RandomFacts(facts), first, turns) in (facts(), subjects(), turns())
    ) {
        let (mut facts, mut subjects) = (facts, first);
        let mut compiler = compiler(&facts);
        compiler.set_subjects(subjects.clone());
        // What the maps hold: every delta, and nothing else.
        let mut maps = State::default();
        compiler.commit().apply(&mut maps);
        agree(&facts, &maps, &compiler, &subjects)?;
        for turn in turns {
            for change in turn.changes {
                change.apply(&mut facts);
                tell(&mut compiler, change);
            }
            if let Some(chosen) = turn.subjects {
                subjects = chosen;
                compiler.set_subjects(subjects.clone());
            }
            compiler.commit().apply(&mut maps);
            agree(&facts, &maps, &compiler, &subjects)?;
        }
    }
}

/// These facts, joined with a cluster that has a twin of each pod at an address that nobody else has, and in which every policy
/// has a peer there beside its own: pods of the policy's labels where it has any, or of all.
fn joined(mut facts: PolicyFacts, only_accepts: bool) -> PolicyFacts {
    facts.guarded.clear();
    let space = foreign_namespace("x", &"east".parse().expect("a name of a cluster"));
    let labels: BTreeMap<_, _> = [("hawser.dev/cluster".to_owned(), "east".to_owned())].into();
    facts.namespaces.insert(space.clone(), NamespaceFacts { labels: labels.clone(), audit: false });
    facts.pods.retain(|name, _| !is_foreign_namespace(&name.namespace));
    let twins = facts.pods.values().cloned().enumerate().map(|(number, pod)| {
        let host = u8::try_from(number).expect("worlds have few pods");
        let ips = [[10, 99, 7, host].into(), [0xfd99, 0, 0, 0, 0, 0, 0, u16::from(host)].into()].into();
        (ObjectName { namespace: space.clone(), name: format!("twin-{number}") }, PodFacts { ips, ..pod })
    });
    let twins: Vec<_> = twins.collect();
    facts.pods.extend(twins);
    let there = LabelSelector { match_labels: labels, match_expressions: Vec::new() };
    let add = |peers: &mut Option<Vec<PolicyPeer>>| {
        let peers = peers.get_or_insert_default();
        let pods = peers.iter().find_map(|peer| peer.pod_selector.clone());
        peers.push(PolicyPeer {
            pod_selector: pods,
            namespace_selector: Some(there.clone()),
            ip_block: None,
        });
    };
    for spec in facts.network_policies.values_mut() {
        spec.ingress.iter_mut().flatten().for_each(|rule| add(&mut rule.from));
        spec.egress.iter_mut().flatten().for_each(|rule| add(&mut rule.to));
    }
    if only_accepts {
        for spec in facts.cluster_policies.values_mut() {
            spec.ingress.retain(|rule| rule.action == "Accept");
            spec.egress.retain(|rule| rule.action == "Accept");
        }
    }
    facts
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn who_is_not_asked_for_in_another_cluster_need_not_be_told(
        (RandomFacts(facts), only_accepts) in (facts(), prop::bool::weighted(0.8))
    ) {
        let facts = joined(facts, only_accepts);
        let asked = compiler(&facts).asked_clusters().clone();
        let mut told = facts.clone();
        told.pods.retain(|name, pod| {
            let Some(namespace) = facts.namespaces.get(&name.namespace) else { return true };
            !is_foreign_namespace(&name.namespace) || asked.means(&name.namespace, &namespace.labels, &pod.labels)
        });
        prop_assert!(!asked.nobody() || told.pods.keys().all(|name| !is_foreign_namespace(&name.namespace)));
        prop_assert!(!asked.everybody() || told == facts);
        let mut compiler = compiler(&told);
        let own: BTreeSet<ObjectName> =
            facts.pods.keys().filter(|name| !is_foreign_namespace(&name.namespace)).cloned().collect();
        compiler.set_subjects(own.clone());
        compiler.commit();
        agree(&facts, compiler.state(), &compiler, &own)?;
    }
}

/// Everything about every pod, with every transport.
#[track_caller]
fn agree_wholly(facts: &PolicyFacts, says: &str) -> u64 {
    let mut compiler = compiler(facts);
    let all: BTreeSet<ObjectName> = facts.pods.keys().cloned().collect();
    compiler.set_subjects(all.clone());
    compiler.commit();
    let (asked, difference) = differences(facts, compiler.state(), &compiler, &all, 0);
    assert!(difference.is_none(), "{says}: {}", difference.map(|d| d.to_string()).unwrap_or_default());
    asked
}

#[test]
fn tables_say_what_was_written_by_hand() {
    let mut asked = 0;
    for about in About::ALL {
        for case in about.cases() {
            asked += agree_wholly(&case.facts().unwrap(), &case.says);
        }
    }
    println!("{asked} flows in the worlds with verdicts by hand");
    assert!(asked > 100_000);
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Regression {
    says: String,
    world: World,
}

#[test]
fn what_once_differed_differs_no_more() {
    let text = include_str!("policy_oracle/regressions.yaml");
    let options = serde_saphyr::options! { strict_booleans: true };
    let all: Vec<Regression> = serde_saphyr::from_str_with_options(text, options).unwrap();
    for Regression { says, world } in all {
        agree_wholly(&world.facts().unwrap(), &says);
    }
}
