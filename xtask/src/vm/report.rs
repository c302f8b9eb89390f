//! What came of all kernels: which steps failed, and a table of them side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::console::{Done, End, remarks, verified};
use super::machine::Ran;
use super::{RESTART_STEP, Series, Step, VERIFIER_STEP};
use crate::outcome;
use crate::run::minutes;

/// What is to be said at the end.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Steps and boots that failed, or were not run.
    pub(super) failed: usize,
    /// For people; the last line, `N passed, N failed`, for machines.
    pub(super) text: String,
}

impl Outcome {
    /// Of the series that were booted, in the same order as `ran`.
    pub(super) fn of(series: &[Series], plan: &[Step], ran: &[Ran]) -> Self {
        let mut failed = ran.iter().filter(|ran| ran.boot.is_none()).count();
        let (mut rows, mut text) = (Vec::new(), String::new());
        rows.push(row("", ran, |ran| format!("Linux {}", ran.release)));
        rows.push(row("boot", ran, |ran| {
            ran.boot.map_or("FAILED".to_owned(), |time| format!("up after {}", minutes(time)))
        }));
        for step in plan {
            let mut cells = vec![step.name.clone()];
            for (series, ran) in series.iter().zip(ran) {
                let done = ran.step(&step.name);
                let cell = done.map_or_else(|| Err("not run".to_owned()), |done| judge(*series, step, done));
                if let Err(fault) = &cell {
                    failed += 1;
                    let output = done.map_or(&ran.between, |done| &done.output);
                    line(
                        &mut text,
                        format_args!("\n---- Linux {}: {}: {fault}\n{output}", ran.release, step.name),
                    );
                }
                cells.push(cell.unwrap_or_else(|fault| fault));
            }
            rows.push(cells);
        }
        rows.push(row("attached by", ran, |ran| attached_by(ran).join(", ")));
        let counts: Vec<BTreeMap<String, u64>> =
            ran.iter().map(|ran| verified(ran.output(VERIFIER_STEP)).into_iter().collect()).collect();
        let programs: BTreeSet<&String> = counts.iter().flat_map(BTreeMap::keys).collect();
        for program in programs {
            let cell = |counts: &BTreeMap<String, u64>| {
                counts.get(program).map_or("-".to_owned(), |count| format!("{count} instructions verified"))
            };
            rows.push(row(&format!("  {program}"), &counts, cell));
        }
        rows.push(row("in all", ran, |ran| minutes(ran.time)));
        line(&mut text, format_args!("\n{}", table(&rows)));
        for ran in ran {
            for remark in ran.done.iter().flat_map(|done| remarks(&done.output)) {
                line(&mut text, format_args!("Linux {}: {remark}", ran.release));
            }
            if failed > 0 {
                line(
                    &mut text,
                    format_args!("Linux {}: its console is in {}", ran.release, ran.log.display()),
                );
            }
        }
        let all = (plan.len() + 1) * ran.len();
        line(&mut text, format_args!("{} passed, {failed} failed", all - failed));
        Self { failed, text }
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("invariant: a String takes everything");
}

/// What to show of a step that passed; else what is wrong with it.
fn judge(series: Series, step: &Step, done: &Done) -> Result<String, String> {
    match done.end {
        End::Passed => {}
        End::Failed(124 | 137) => return Err(format!("FAILED: not done after {}", minutes(step.limit))),
        End::Failed(code) => return Err(format!("FAILED ({code})")),
        End::Cut => return Err("FAILED: the machine stopped".to_owned()),
    }
    let ways = ways(&done.output);
    if step.name == RESTART_STEP && ways != [series.attach()] {
        return Err(format!("FAILED: attached by [{}], wanted {}", ways.join(", "), series.attach()));
    }
    if step.name == VERIFIER_STEP && verified(&done.output).is_empty() {
        return Err("FAILED: no program was counted".to_owned());
    }
    let (count, programs) = outcome::count(&done.output);
    let time = minutes(done.time);
    Ok(if programs == 0 { format!("passed, {time}") } else { format!("{} passed, {time}", count.passed) })
}

/// How programs are on links, as the restart's remarks have it: `node-1: 7 programs by tcx, 0 by clsact`.
fn ways(output: &str) -> Vec<&'static str> {
    let count = |remark: &str, way: &str| {
        let (before, _) = remark.split_once(&format!(" by {way}"))?;
        before.rsplit(' ').find_map(|word| word.parse::<u64>().ok())
    };
    let used = |way| remarks(output).any(|remark| count(remark, way).is_some_and(|count| count > 0));
    ["tcx", "clsact"].into_iter().filter(|way| used(way)).collect()
}

fn attached_by(ran: &Ran) -> Vec<&'static str> {
    ways(ran.output(RESTART_STEP))
}

/// A name, and a cell for each of `all`.
fn row<T>(name: &str, all: &[T], cell: impl Fn(&T) -> String) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(all.iter().map(cell)).collect()
}

/// Columns side by side.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn done(name: &str, end: End, output: &str) -> Done {
        Done { name: name.to_owned(), end, time: Duration::from_secs(7), output: output.to_owned() }
    }

    fn ran(release: &str, done: Vec<Done>) -> Ran {
        Ran {
            release: release.to_owned(),
            boot: Some(Duration::from_secs(3)),
            time: Duration::from_secs(80),
            done,
            between: "the last words".to_owned(),
            log: "console".into(),
        }
    }

    fn plan() -> Vec<Step> {
        [VERIFIER_STEP, "loader", RESTART_STEP].map(|name| Step::new(name, 60, String::new())).into()
    }

    fn restart(tcx: u32, clsact: u32) -> Done {
        let text = format!("test x ... note: node-1: {tcx} programs by tcx, {clsact} by clsact\nok\n");
        done(RESTART_STEP, End::Passed, &text)
    }

    const COUNTS: &str = "from_pod: 17 instructions verified, None bytes\n";
    const RESULT: &str =
        "test result: ok. 31 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";

    #[test]
    fn what_passed_is_a_table() {
        let steps =
            |last| vec![done(VERIFIER_STEP, End::Passed, COUNTS), done("loader", End::Passed, RESULT), last];
        let all = [ran("6.1.9", steps(restart(0, 11))), ran("6.12.9", steps(restart(9, 0)))];
        let outcome = Outcome::of(&Series::ALL, &plan(), &all);
        assert_eq!(outcome.failed, 0, "{}", outcome.text);
        for wanted in [
            "loader                 31 passed, 7s             31 passed, 7s\n",
            "  from_pod             17 instructions verified  17 instructions verified",
            "attached by            clsact                    tcx\n",
            "8 passed, 0 failed",
        ] {
            assert!(outcome.text.contains(wanted), "{wanted}: {}", outcome.text);
        }
    }

    #[test]
    fn what_failed_was_not_run_or_did_something_else_is_named_with_its_output() {
        let one = ran("6.1.9", vec![done(VERIFIER_STEP, End::Passed, "nothing"), restart(2, 3)]);
        let other = ran(
            "6.12.9",
            vec![
                done(VERIFIER_STEP, End::Failed(124), ""),
                done("loader", End::Failed(101), "wrong answer"),
                done(RESTART_STEP, End::Cut, "Kernel panic"),
            ],
        );
        let dead = Ran { boot: None, ..ran("6.12.9", Vec::new()) };
        let outcome = Outcome::of(
            &[Series::Linux6_1, Series::Linux6_12, Series::Linux6_12],
            &plan(),
            &[one, other, dead],
        );
        assert_eq!(outcome.failed, 10, "{}", outcome.text);
        for wanted in [
            "---- Linux 6.1.9: verifier: FAILED: no program was counted",
            "---- Linux 6.1.9: loader: not run\nthe last words",
            "attached by [tcx, clsact], wanted clsact",
            "FAILED: not done after 1m00s",
            "FAILED (101)\nwrong answer",
            "FAILED: the machine stopped\nKernel panic",
            "its console is in console",
            "2 passed, 10 failed",
        ] {
            assert!(outcome.text.contains(wanted), "{wanted}: {}", outcome.text);
        }
    }
}
