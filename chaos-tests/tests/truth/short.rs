//! Some cases of the truth table (see `main.rs`), for every day; and what can be said of all of them without a lab.

#![expect(clippy::print_stdout, reason = "a case is reported when it is done")]

mod case;
mod cases;
mod ledger;
mod party;
mod probe;
mod run;
mod stage;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use case::{Case, Moment, Step, hand_agrees};
use world::{Key, Objects};

#[test]
fn policy_is_what_the_oracle_says_in_some_cases() -> Result<()> {
    let cases: Vec<Case> = cases::all()?.into_iter().filter(|case| case.short).collect();
    ensure!((20..=40).contains(&cases.len()), "{} cases", cases.len());
    run::run("truths", &cases)
}

/// Rows of the table of corner cases that connectivity can show.
const ROWS: [std::ops::RangeInclusive<u32>; 4] = [1..=28, 29..=36, 38..=41, 44..=45];

#[test]
fn every_row_has_cases_each_has_a_name_of_its_own_and_no_two_are_alike() -> Result<()> {
    let cases = cases::all()?;
    let (mut names, mut bodies, mut rows) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::from([47]));
    let mut alike = Vec::new();
    for case in &cases {
        ensure!(names.insert(&case.name), "two cases {:?}", case.name);
        rows.extend(&case.rows);
        // What is written beside objects does not make a case another one.
        let steps: Vec<_> = case.steps.iter().map(|s| (&s.objects, &s.terminate, &s.delete)).collect();
        let lines = case.steps.iter().map(|s| &s.flows).collect::<Vec<_>>();
        let body = format!("{steps:?} {:?}", if case.by_address { lines } else { Vec::new() });
        if let Some(other) = bodies.insert(body, &case.name) {
            alike.push(format!("{:?} is {other:?} again", case.name));
        }
    }
    ensure!(alike.is_empty(), "{alike:#?}");
    for row in ROWS.into_iter().flatten() {
        ensure!(rows.contains(&row), "no case is about row {row}");
    }
    println!(
        "{} cases, {} of them this table's own, about {} rows",
        cases.len(),
        cases::own()?.len(),
        rows.len()
    );
    Ok(())
}

/// The objects after a step.
fn take(step: &Step, objects: &mut Objects) -> Result<()> {
    step.objects.iter().for_each(|object| objects.apply(object));
    for text in &step.delete {
        let key = Key::read(text)?;
        ensure!(objects.0.remove(&key).is_some(), "{key} is not there to be deleted");
    }
    Ok(())
}

#[test]
fn the_oracle_and_every_verdict_by_hand_agree() -> Result<()> {
    let (mut verdicts, mut denied) = (0, 0);
    let mut addresses = BTreeSet::new();
    for case in cases::all()? {
        let mut objects = Objects::base();
        let mut of_case = 0;
        for (number, step) in (1..).zip(&case.steps) {
            let label = || format!("{:?}, step {number}", case.name);
            for object in step.objects.iter().filter(|object| object["kind"] == "Pod") {
                let new = !objects.0.contains_key(&Key::of(object)) && object["spec"]["hostNetwork"] != true;
                for ip in world::addresses(object).into_iter().filter(|_| new) {
                    // It rests for a while after its pod.
                    ensure!(addresses.insert(ip), "{}: another pod has had {ip}", label());
                }
            }
            take(step, &mut objects).with_context(label)?;
            let moment = Moment::of(&objects).with_context(label)?;
            let known = moment.known();
            for (line, probe, verdict) in step.by_hand(&known, &stage::strangers()).with_context(label)? {
                ensure!(hand_agrees(&case, &known, &probe, verdict), "{}: {line}: {probe:?}", label());
                of_case += 1;
                denied += usize::from(verdict == mesh_core::policy::model::Verdict::Deny);
            }
        }
        ensure!(of_case > 0, "{:?} has no verdict by hand that can be seen", case.name);
        verdicts += of_case;
    }
    println!("{verdicts} verdicts by hand, {denied} of them denials");
    Ok(())
}
