//! Runs cases and says what differs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_core::numbers::NAMESPACE;
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::model::{Direction, PolicyFacts, Verdict};
use netlab::eventually;

use crate::case::{Case, Moment, Step, hand_agrees};
use crate::probe::{Expected, Known, Probe, What};
use crate::stage::{Patience, Seen, Stage, strangers};
use crate::world::Objects;

/// For a change in the API to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Probes of one step that are shown; the rest is counted.
const SHOWN: usize = 12;

/// Why a case has failed.
#[derive(Debug)]
struct Failed(String);

/// What was asked, and what came of it.
#[derive(Debug, Default)]
struct Tally {
    probes: usize,
    steps: usize,
    by_hand: usize,
    denied: usize,
}

/// Runs all of `cases` in one lab.
///
/// # Panics
/// A case differs; each has said how.
pub(crate) fn run(name: &str, cases: &[Case]) -> Result<()> {
    let begun = Instant::now();
    let wanted = std::env::var("HAWSER_CASES").unwrap_or_default();
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.name.contains(&wanted)).collect();
    ensure!(!chosen.is_empty(), "no case has {wanted:?} (HAWSER_CASES) in its name");
    let mut listen = std::collections::BTreeSet::new();
    for case in &chosen {
        listen.extend(case.ports()?);
    }
    let mut stage = Stage::new(name, listen.into_iter().collect())?;
    println!("lab of three nodes and nine pods: {:.1?}", begun.elapsed());
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for (number, case) in (1..).zip(&chosen) {
        let begun = Instant::now();
        let before = tally.probes;
        let result = run_case(&mut stage, case, &mut tally);
        let (probes, time) = (tally.probes - before, begun.elapsed());
        let word = if result.is_ok() { "ok" } else { "DIFFERS" };
        println!("{number:>3} {word}: {} ({probes} probes, {time:.2?}){}", case.name, rows(&case.rows));
        if let Err(error) = result {
            println!("{error:#}");
            failed.push(case.name.as_str());
        }
    }
    let left_out = cases.len() - chosen.len();
    if left_out > 0 {
        println!("not run: {left_out} cases without {wanted:?} (HAWSER_CASES) in their names");
    }
    println!(
        "{} cases, {} steps, {} probes ({} denied, {} verdicts by hand, {} packets sent again), {} differences, {:.0?}",
        chosen.len(),
        tally.steps,
        tally.probes,
        tally.denied,
        tally.by_hand,
        stage.repeated,
        failed.len(),
        begun.elapsed()
    );
    assert!(failed.is_empty(), "cases that differ: {failed:#?}");
    Ok(())
}

/// As people look for them.
fn rows(rows: &[u32]) -> String {
    match rows {
        [] => String::new(),
        rows => format!(" rows {}", rows.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn run_case(stage: &mut Stage, case: &Case, tally: &mut Tally) -> Result<()> {
    stage.reset().context("could not make the base again")?;
    open(stage)?;
    for (number, step) in (1..).zip(&case.steps) {
        stage.take(step).with_context(|| format!("step {number} {}", step.says))?;
        if let Err(Failed(what)) = run_step(stage, case, step, tally)? {
            anyhow::bail!("step {number} of {}: {}\n{what}", case.steps.len(), step.says);
        }
    }
    Ok(())
}

/// Waits until nothing of the case before is in force.
fn open(stage: &mut Stage) -> Result<()> {
    let moment = Moment::of(&stage.objects)?;
    let known = moment.known();
    let probes = known.matrix(&[What::Udp(80)].into(), &[])?;
    let questions = expect(&known, probes.into_iter().filter(|probe| probe.what == What::Udp(80)));
    eventually(SOON, "everybody reaches everybody", || stage.is_open(&questions))?;
    Ok(())
}

fn expect(known: &Known<'_>, probes: impl IntoIterator<Item = Probe>) -> Vec<(Probe, Expected)> {
    probes.into_iter().map(|probe| (probe, known.expected(&probe))).collect()
}

fn run_step(
    stage: &mut Stage,
    case: &Case,
    step: &Step,
    tally: &mut Tally,
) -> Result<std::result::Result<(), Failed>> {
    // The oracle reads what the API has, not what this test thinks it has written.
    let moment = Moment::of(&Objects::of_api(&stage.lab)?)?;
    same_world(&moment.facts, &stage.objects.facts()?)?;
    let known = moment.known();
    let world = strangers();
    let hand = step.by_hand(&known, &world)?;
    for (line, probe, verdict) in &hand {
        if !hand_agrees(case, &known, probe, *verdict) {
            return Ok(Err(Failed(format!("the oracle says otherwise than the hand: {line}: {probe:?}"))));
        }
    }
    let mut probes = known.matrix(&case.asks()?, &world)?;
    probes.extend(hand.iter().map(|(_, probe, _)| *probe));
    let questions = expect(&known, probes);
    tally.steps += 1;
    tally.probes += questions.len();
    tally.by_hand += hand.len();
    tally.denied += questions.iter().filter(|(_, expected)| !expected.allowed).count();
    let settled = eventually(SOON, "every probe is as expected", || {
        let seen = stage.pass(&questions, Patience::LOOK).map_err(|error| format!("{error:#}"))?;
        let count = differences(&questions, &seen).count();
        if count == 0 { Ok(()) } else { Err(format!("{count} differ")) }
    });
    // Once more, whether it has settled or not: what is said now is what is so.
    let seen = stage.pass(&questions, Patience::HOLD)?;
    let mut what = String::new();
    for (probe, expected, seen) in differences(&questions, &seen).take(SHOWN) {
        writeln!(what, "  {}", describe(&moment.facts, &known, probe, expected, seen))?;
    }
    let count = differences(&questions, &seen).count();
    for probe in stage.late() {
        if !questions.iter().zip(&seen).any(|((asked, _), seen)| *asked == probe && seen.arrived) {
            writeln!(what, "  {probe:?} arrived after it had been taken for denied")?;
        }
    }
    match (settled, what.is_empty()) {
        (Ok(()), true) => return Ok(Ok(())),
        (Ok(()), false) => {
            writeln!(what, "  {count} of {} probes, after all had been as expected once", questions.len())?
        }
        (Err(error), _) => writeln!(what, "  {count} of {} probes; {error}", questions.len())?,
    }
    what.push_str(&objects_of(&stage.objects));
    Ok(Err(Failed(what)))
}

fn differences<'a>(
    questions: &'a [(Probe, Expected)],
    seen: &'a [Seen],
) -> impl Iterator<Item = (&'a Probe, &'a Expected, &'a Seen)> {
    let all = questions.iter().zip(seen);
    all.filter(|((probe, expected), seen)| !seen.is(expected, probe)).map(|((p, e), s)| (p, e, s))
}

/// The API has what was written to it, and nothing else that policy is decided from.
fn same_world(api: &PolicyFacts, written: &PolicyFacts) -> Result<()> {
    ensure!(api.pods == written.pods, "the API has other pods: {:?}", api.pods);
    ensure!(api.nodes == written.nodes, "the API has other nodes: {:?}", api.nodes);
    // Those of the manifests are about our own pods.
    let api_policies = || api.network_policies.iter().filter(|(name, _)| name.namespace != NAMESPACE);
    ensure!(api_policies().eq(&written.network_policies), "the API has other NetworkPolicies");
    ensure!(api.cluster_policies == written.cluster_policies, "the API has other ClusterNetworkPolicies");
    for (name, namespace) in &written.namespaces {
        ensure!(api.namespaces.get(name) == Some(namespace), "the API has another namespace {name}");
    }
    Ok(())
}

/// The probe, and which rule of which object decides by our own tables.
fn describe(
    facts: &PolicyFacts,
    known: &Known<'_>,
    probe: &Probe,
    expected: &Expected,
    seen: &Seen,
) -> String {
    let name = |ip| known.places.get(&ip).map_or("?", |place| &place.name);
    let Probe { source, to, what } = probe;
    let mut text = format!("{} {source} > {} {to} {what}: expected ", name(*source), name(*to));
    text.push_str(if expected.allowed { "an answer" } else { "silence" });
    if expected.host {
        text.push_str(" (from its own node)");
    }
    let saw = match (&seen.answered, seen.arrived) {
        (Some(by), _) => format!(", was answered by {by}"),
        (None, true) => ", arrived without an answer".to_owned(),
        (None, false) => ", silence".to_owned(),
    };
    text.push_str(&saw);
    let mut compiler = compiler(facts);
    compiler.commit();
    let flow = expected.flow;
    for (own, direction) in [(flow.source, Direction::Egress), (flow.destination, Direction::Ingress)] {
        let oracle = match mesh_core::policy::eval::eval(facts, flow, direction) {
            Verdict::Allow => "allows",
            Verdict::Deny => "denies",
        };
        if let Some((subject, _)) = facts.pods.iter().find(|(_, pod)| pod.ips.contains(&own)) {
            let tables = compiler.explain(subject, direction, flow);
            text.push_str(&format!("\n    the oracle {oracle}; the tables: {tables}"));
        }
    }
    text
}

fn compiler(facts: &PolicyFacts) -> Compiler {
    let mut compiler = Compiler::new(facts.guarded.clone());
    let PolicyFacts { guarded: _, namespaces, pods, nodes, network_policies, cluster_policies } =
        facts.clone();
    compiler.set_subjects(pods.keys().cloned().collect());
    namespaces.into_iter().for_each(|(n, v)| compiler.set_namespace(n, Some(v)));
    pods.into_iter().for_each(|(n, v)| compiler.set_pod(n, Some(v)));
    nodes.into_iter().for_each(|(n, v)| compiler.set_node(n, Some(v)));
    network_policies.into_iter().for_each(|(n, v)| compiler.set_network_policy(n, Some(v)));
    cluster_policies.into_iter().for_each(|(n, v)| compiler.set_cluster_policy(n, Some(v)));
    compiler
}

/// What the case has made of the base, one object a line.
fn objects_of(objects: &Objects) -> String {
    let base = Objects::base();
    let changed = objects.0.iter().filter(|(key, object)| base.0.get(*key) != Some(*object));
    changed.map(|(_, object)| format!("  {object}\n")).collect()
}
