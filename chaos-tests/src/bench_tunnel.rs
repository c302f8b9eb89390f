//! `cargo xtask bench tunnel`: what a userspace WireGuard carries between two nodes, beside others, in turns.
//!
//! A client behind one node speaks to servers behind others; nodes are joined by a veth pair each with an MTU of 1500, and
//! 1420 is left of it. Subjects differ in what joins the nodes: nothing but routes, VXLAN, `mesh-tunnel` (and, to see what
//! offloads bring, with `--offload off`), `boringtun-cli`, `gotatun`, Debian's `wireguard-go` and `nebula`. One that is not
//! installed is named and not run.
//!
//! Both ends of everything share the machine's processors, so throughput says how much a path costs in total. A veth pair
//! carries trains of datagrams uncut, which is kinder to who sends them than a network card without that offload. A round measures
//! every subject once, beginning with another one each time; the ratios of the same round are what to look at.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlab::LabDir;
use xtask::bench::Row;

mod aead;
mod measure;
mod subject;
mod topology;
mod udp;

use measure::{METRICS, Plan, Values};
use subject::{Subject, Technique};
use topology::Topology;

/// Names of the benches.
const BENCH: &str = "tunnel";
const ABLATION: &str = "tunnel-ablation";
/// The subject that the others are held against.
const OURS: Subject = Subject::Ours;
/// Peers of the second part, and who has so many: each is a process and two namespaces.
const MANY: u8 = 20;
const WITH_MANY: [Subject; 7] = [
    Subject::Ours,
    Subject::Without(Technique::Many),
    Subject::Boringtun,
    Subject::Gotatun,
    Subject::WireguardGo,
    Subject::NewWireguardGo,
    Subject::Nebula,
];

const FULL: Plan = Plan {
    rounds: 10,
    bulk: Duration::from_millis(1000),
    exchange: Duration::from_millis(500),
    flood: Duration::from_millis(500),
};
const QUICK: Plan = Plan {
    rounds: 3,
    bulk: Duration::from_millis(400),
    exchange: Duration::from_millis(200),
    flood: Duration::from_millis(200),
};

/// A ratio of medians that the project wants: at least `times` what `other` has, or at most a part of it.
struct Goal {
    metric: &'static str,
    other: Subject,
    /// Ours divided by the other's.
    least: Option<f64>,
    most: Option<f64>,
}

const GOALS: [Goal; 7] = [
    Goal { metric: "TCP, 4 streams", other: Subject::Boringtun, least: Some(9.0), most: None },
    Goal { metric: "TCP, 4 streams", other: Subject::WireguardGo, least: Some(9.0), most: None },
    Goal { metric: "TCP, 4 streams", other: Subject::Gotatun, least: Some(5.0), most: None },
    Goal { metric: "TCP, 4 streams", other: Subject::Nebula, least: Some(4.0), most: None },
    Goal { metric: "CPU per GB, 4 streams", other: Subject::Boringtun, least: None, most: Some(1.0 / 6.0) },
    Goal { metric: "request-response p50", other: Subject::Boringtun, least: None, most: Some(1.0) },
    Goal { metric: "UDP 64 B received", other: Subject::Boringtun, least: Some(1.0), most: None },
];

/// Measures; `quick` in about a minute, with wider spread and one peer alone.
///
/// # Errors
/// A topology cannot be made, or a path is broken.
pub fn run(quick: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let plan = if quick { QUICK } else { FULL };
    let dir = lab_dir()?;
    let (subjects, missing): (Vec<_>, Vec<_>) = Subject::ALL.into_iter().partition(|s| s.missing().is_none());
    let not_run = |say: &mut dyn FnMut(&str)| {
        for subject in &missing {
            say(&format!("NOT RUN: {}: {}", subject.name(), subject.missing().unwrap_or_default()));
        }
    };
    not_run(say);
    let mut rows = aead::rows(plan.rounds)?;
    let counts: &[u8] = if quick { &[1] } else { &[1, MANY] };
    for &peers in counts {
        let subjects: Vec<_> =
            subjects.iter().copied().filter(|s| peers == 1 || WITH_MANY.contains(s)).collect();
        say(&format!("Starting {} subjects with {peers} peers each", subjects.len()));
        let made = subjects.iter().map(|s| Topology::new(&dir, *s, peers)).collect::<Result<Vec<_>>>()?;
        say(&format!(
            "{} rounds of {}",
            plan.rounds,
            subjects.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
        ));
        let values = measure::in_turns(&made, plan)?;
        if peers == 1 {
            goals(&subjects, &values, say);
        }
        rows.extend(rows_of(BENCH, &subjects, &values, peers));
    }
    not_run(say);
    dir.close()?;
    Ok(rows)
}

/// `cargo xtask bench tunnel-ablation`: what each technique of `mesh-tunnel` brings, by leaving out one at a time, and all.
///
/// # Errors
/// As [`run`].
pub fn ablation(quick: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let plan = if quick { QUICK } else { FULL };
    let dir = lab_dir()?;
    let mut subjects = vec![OURS];
    subjects.extend(Technique::ALL.map(Subject::Without));
    subjects.push(Subject::OursPlain);
    if let Some(missing) = OURS.missing() {
        bail!("{missing}");
    }
    let made = subjects.iter().map(|s| Topology::new(&dir, *s, 1)).collect::<Result<Vec<_>>>()?;
    say(&format!(
        "{} rounds of {}",
        plan.rounds,
        subjects.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
    ));
    let values = measure::in_turns(&made, plan)?;
    let rows = rows_of(ABLATION, &subjects, &values, 1);
    dir.close()?;
    Ok(rows)
}

/// A folder for the lab, after what a crashed one left is removed.
fn lab_dir() -> Result<LabDir> {
    netlab::reap(LabDir::DEFAULT_ROOT).context("could not remove what a crashed lab left")?;
    let dir = LabDir::create(LabDir::DEFAULT_ROOT, &netlab::unique_name("bench-tunnel"))?;
    dir.clean_on_signal()?;
    Ok(dir)
}

fn rows_of(bench: &str, subjects: &[Subject], values: &[Values], peers: u8) -> Vec<Row> {
    let ours = subjects.iter().position(|s| *s == OURS).and_then(|at| values.get(at));
    let mut rows = Vec::new();
    for (metric, (name, unit)) in METRICS.into_iter().enumerate() {
        for (subject, values) in subjects.iter().zip(values) {
            let label = format!("{}, {peers} peer{}", subject.name(), if peers == 1 { "" } else { "s" });
            let own = &values[metric];
            let Some(row) = Row::of(bench, &label, name, unit, own) else { continue };
            rows.push(match ours {
                // Of what was lost, which may be nothing, there is no ratio.
                Some(ours) if *subject != OURS && unit != "%" => row.against(OURS.name(), own, &ours[metric]),
                _ => row,
            });
        }
    }
    rows
}

/// Says which goals were met in this run.
fn goals(subjects: &[Subject], values: &[Values], say: &mut dyn FnMut(&str)) {
    let median = |subject: Subject, metric: &str| {
        let at = subjects.iter().position(|s| *s == subject)?;
        let metric = METRICS.iter().position(|m| m.0 == metric)?;
        Row::of(BENCH, subject.name(), "", "", &values[at][metric]).map(|r| r.median)
    };
    for goal in GOALS {
        let (Some(ours), Some(theirs)) = (median(OURS, goal.metric), median(goal.other, goal.metric)) else {
            say(&format!("GOAL not judged, not run: {} against {}", goal.metric, goal.other.name()));
            continue;
        };
        let ratio = ours / theirs;
        let met = goal.least.is_none_or(|least| ratio >= least) && goal.most.is_none_or(|most| ratio <= most);
        let wanted = match (goal.least, goal.most) {
            (Some(least), _) => format!("at least {least:.2}"),
            (None, Some(most)) => format!("at most {most:.2}"),
            (None, None) => String::new(),
        };
        let verdict = if met { "met" } else { "MISSED" };
        say(&format!("GOAL {verdict}: {}: {ratio:.2} of {} ({wanted})", goal.metric, goal.other.name()));
    }
}
