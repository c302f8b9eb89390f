//! Random clusters, compiled, written by the real transaction into the real maps, and asked of by packets through the real
//! programs: what they say, what the tables say and what the oracle reads in the objects never differ. Needs root.
//!
//! `HAWSER_DIFFERENTIAL_CASES` says how many clusters (1,000: about half a minute). A failing one is printed as API objects, as small
//! as it could be made, and its seed is kept in `regressions.txt` beside this file, to be tried first the next time.

#[path = "../support/mod.rs"]
mod support;

mod node;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;

use datapath::abi::DropReason;
use mesh_core::policy::arbitrary::{Change, Interesting, RandomFacts, change, facts, subjects};
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::eval::eval_pod;
use mesh_core::policy::model::{Direction, Flow, ObjectName, PolicyFacts, Verdict};
use mesh_core::policy::tables::judge;
use node::{Node, Places, Way, later, opening, places};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{FileFailurePersistence, TestCaseResult, TestRunner};
use support::packet::{Body, Packet};

const CASES: &str = "HAWSER_DIFFERENTIAL_CASES";

/// A cluster, what happens to it, and which of its flows are tried after each change.
#[derive(Clone, Debug)]
struct Case {
    facts: RandomFacts,
    subjects: BTreeSet<ObjectName>,
    changes: Vec<Change>,
    picks: Vec<Index>,
}

fn case() -> impl Strategy<Value = Case> {
    let changes = prop::collection::vec(change(), 0..=4);
    let picks = prop::collection::vec(any::<Index>(), 1..=96);
    // Of the pods that there are some, and some that may come.
    (facts(), any::<u8>(), subjects(), changes, picks).prop_map(
        |(facts, local, mut subjects, changes, picks)| {
            let pods = facts.0.pods.keys().enumerate();
            subjects.extend(pods.filter(|(n, _)| local >> n & 1 == 1).map(|(_, name)| name.clone()));
            Case { facts, subjects, changes, picks }
        },
    )
}

/// A flow that was tried, and is tried again after each change.
struct Kept {
    flow: Flow,
    way: Way,
    answer: Way,
    packet: Packet,
    owners: [Owners; 2],
}

/// Pods and nodes that claim an address.
type Owners = BTreeSet<String>;

fn owners(facts: &PolicyFacts, ip: IpAddr) -> Owners {
    let pods = facts.pods.iter().filter(|(_, pod)| pod.ips.contains(&ip));
    let pods = pods.map(|(name, _)| format!("{}/{}", name.namespace, name.name));
    let nodes = facts.nodes.iter().filter(|(_, node)| node.ips.contains(&ip));
    pods.chain(nodes.map(|(name, _)| name.to_string())).collect()
}

/// What has been seen, for a line in the log.
#[derive(Debug, Default)]
struct Tally {
    worlds: u64,
    changes: u64,
    epochs: u64,
    allowed: u64,
    denied: u64,
    again: u64,
}

struct Run<'a> {
    node: &'a mut Node,
    tally: &'a mut Tally,
    facts: PolicyFacts,
    subjects: BTreeSet<ObjectName>,
    compiler: Compiler,
    places: Places,
    kept: Vec<Kept>,
    sport: u16,
}

impl Run<'_> {
    /// Who of the pods of this node has an address.
    fn local(&self, ip: IpAddr) -> Option<(&ObjectName, &'static str)> {
        self.places.iter().find(|(_, place)| place.ips.contains(&ip)).map(|(name, place)| (name, place.link))
    }

    /// What the oracle says of a pod's side; what is denied in an audited namespace passes.
    fn oracle(&self, subject: &ObjectName, flow: Flow, direction: Direction) -> bool {
        let audit = self.facts.namespaces.get(&subject.namespace).is_some_and(|namespace| namespace.audit);
        audit && self.facts.pods.contains_key(subject)
            || eval_pod(&self.facts, subject, flow, direction) == Verdict::Allow
    }

    /// What is wanted of a flow that opens, and that the tables say the same.
    fn wanted(&self, flow: Flow) -> Result<bool, TestCaseError> {
        let mut all = true;
        let ends = [
            (Direction::Egress, flow.source, flow.destination),
            (Direction::Ingress, flow.destination, flow.source),
        ];
        for (direction, own, peer) in ends {
            let Some((subject, _)) = self.local(own) else { continue };
            let says = eval_pod(&self.facts, subject, flow, direction);
            let tables = judge(self.compiler.state(), subject, direction, peer, flow.protocol, flow.port).0;
            prop_assert_eq!(tables, says, "tables and oracle, {:?} of {:?}: {:?}", direction, subject, flow);
            all &= self.oracle(subject, flow, direction);
        }
        Ok(all)
    }

    /// Applies what has changed, tries the flows of before again, and then new ones.
    fn step(&mut self, picks: &[Index], what: &str) -> TestCaseResult {
        let before = std::mem::replace(&mut self.places, places(&self.facts, &self.subjects));
        self.node.place(self.places.clone());
        self.tally.epochs += u64::from(self.node.apply(&mut self.compiler));
        self.again(&before, what)?;
        let interesting: Vec<Flow> =
            Interesting::of(&self.facts).flows().filter(|flow| self.is_seen(*flow)).collect();
        for pick in picks {
            if interesting.is_empty() {
                break;
            }
            self.new_flow(interesting[pick.index(interesting.len())], what)?;
        }
        Ok(())
    }

    /// Does a program of this node see such a flow, and would a pod send it by its link?
    fn is_seen(&self, flow: Flow) -> bool {
        let (from, to) = (self.local(flow.source), self.local(flow.destination));
        let own =
            |name: &ObjectName| self.facts.pods.get(name).map(|pod| pod.ips.contains(&flow.destination));
        from.is_none_or(|(name, _)| own(name) == Some(false)) && (from.is_some() || to.is_some())
    }

    fn new_flow(&mut self, flow: Flow, what: &str) -> TestCaseResult {
        let wanted = self.wanted(flow)?;
        for (way, answer) in self.ways(flow) {
            self.sport = if self.sport == 60_000 { 20_000 } else { self.sport + 1 };
            let packet = opening(flow, self.sport);
            let passed = self.node.send(&way, &packet);
            let maps = || self.node.describe(flow);
            prop_assert!(
                passed == wanted,
                "oracle: {wanted}, programs, {what}: {flow:?} by {way:?}, {}",
                maps()
            );
            *(if passed { &mut self.tally.allowed } else { &mut self.tally.denied }) += 1;
            if matches!(packet.body, Body::Other { .. }) {
                self.node.forget(&packet);
                continue;
            }
            let owners = [flow.source, flow.destination].map(|ip| owners(&self.facts, ip));
            self.kept.push(Kept { flow, way, answer, packet, owners });
        }
        Ok(())
    }

    /// By which programs of this node a flow comes, and its answers.
    fn ways(&self, flow: Flow) -> Vec<(Way, Way)> {
        match (self.local(flow.source), self.local(flow.destination)) {
            (Some((_, from)), Some((_, to))) => vec![(Way::Pod(from), Way::Pod(to))],
            (Some((_, from)), None) => vec![(Way::Pod(from), Way::Tunnel)],
            (None, Some((_, to))) => vec![(Way::Tunnel, Way::Pod(to)), (Way::Stack(to), Way::Pod(to))],
            (None, None) => Vec::new(),
        }
    }

    /// Flows that were tried before are judged by what is said now: those that are denied are cut, others go on.
    fn again(&mut self, before: &Places, what: &str) -> TestCaseResult {
        let unmoved = |ip| {
            let of = |places: &Places| places.values().find(|place| place.ips.contains(&ip)).cloned();
            of(before) == of(&self.places)
        };
        let kept = std::mem::take(&mut self.kept);
        for mut kept in kept {
            let ends = [kept.flow.source, kept.flow.destination];
            let now = ends.map(|ip| owners(&self.facts, ip));
            // Whoever has gone is still judged as what it was; whoever came to another link begins anew.
            let gone = (0..2).any(|end| !kept.owners[end].is_empty() && now[end].is_empty());
            if gone || !ends.iter().all(|ip| unmoved(*ip)) || !self.is_seen(kept.flow) {
                continue;
            }
            let wanted = self.wanted(kept.flow)?;
            let (again, answer) = later(&kept.packet);
            let passed = self.node.send(&kept.way, &again);
            let maps = || self.node.describe(kept.flow);
            let Kept { flow, way, .. } = &kept;
            prop_assert!(
                passed == wanted,
                "oracle: {wanted}, known flow, {what}: {flow:?} by {way:?}, {}",
                maps()
            );
            if passed {
                let answered = self.node.send(&kept.answer, &answer);
                prop_assert!(answered, "answer, {}: {:?} by {:?}", what, kept.flow, kept.answer);
            }
            self.tally.again += 1;
            kept.owners = now;
            self.kept.push(kept);
        }
        Ok(())
    }

    /// Tells the compiler.
    fn tell(&mut self, change: &Change) {
        change.apply(&mut self.facts);
        match change.clone() {
            Change::Pod(name, facts) => self.compiler.set_pod(name, facts),
            Change::Namespace(name, facts) => self.compiler.set_namespace(name, facts),
            Change::Node(name, facts) => self.compiler.set_node(name, facts),
            Change::NetworkPolicy(name, spec) => self.compiler.set_network_policy(name, spec),
            Change::ClusterPolicy(name, spec) => self.compiler.set_cluster_policy(name, spec),
        }
    }
}

fn check(node: &mut Node, tally: &mut Tally, case: &Case) -> TestCaseResult {
    let facts = case.facts.0.clone();
    let compiler = node.begin(&facts, &case.subjects);
    let (subjects, places, kept) = (case.subjects.clone(), Places::new(), Vec::new());
    let mut run = Run { node, tally, facts, subjects, compiler, places, kept, sport: 20_000 };
    run.step(&case.picks, "at first")?;
    for (number, change) in case.changes.iter().enumerate() {
        run.tell(change);
        run.step(&case.picks, &format!("after change {}", number + 1))?;
    }
    tally.worlds += 1;
    tally.changes += u64::try_from(case.changes.len()).expect("few");
    Ok(())
}

#[test]
fn programs_tables_and_oracle_never_differ() {
    let cases = env::var(CASES)
        .ok()
        .map_or(1000, |text| text.parse().expect("HAWSER_DIFFERENTIAL_CASES is a number"));
    let regressions = FileFailurePersistence::Direct("tests/differential/regressions.txt");
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(regressions)),
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    let node = RefCell::new(Node::new());
    let tally = RefCell::new(Tally::default());
    let result = TestRunner::new(config)
        .run(&case(), |case| check(&mut node.borrow_mut(), &mut tally.borrow_mut(), &case));
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{:?}", tally.borrow());
    let drops = node.borrow().drops();
    println!("{drops:?}");
    let by_policy = [
        DropReason::PolicyEgress,
        DropReason::PolicyIngress,
        DropReason::UnknownEgress,
        DropReason::UnknownIngress,
        DropReason::Revoked,
        DropReason::Closed,
    ];
    let others: Vec<_> =
        drops.iter().filter(|(reason, count)| **count > 0 && !by_policy.contains(reason)).collect();
    assert!(others.is_empty(), "policy alone may drop here: {others:?}");
}
