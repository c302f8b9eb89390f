//! The result of a bench: one list of rows, shown as a table and written as JSON, the same for every bench.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One measured quantity of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the bench, as `cargo xtask bench NAME` takes it.
    pub bench: String,
    /// What was measured, for example `hawser` or `bridge+host-local`.
    pub subject: String,
    /// The quantity, for example `ADD p99`.
    pub metric: String,
    /// Its unit, for example `ms` or `Gbit/s`.
    pub unit: String,
    /// Median of the runs.
    pub median: f64,
    /// Least of the runs.
    pub min: f64,
    /// Greatest of the runs.
    pub max: f64,
    /// How many runs.
    pub runs: usize,
    /// How it stands to another subject of the same runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// A row's values in proportion to those of another subject that was measured in turns with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// The other one.
    pub subject: String,
    /// Ratio of the two medians.
    pub of_medians: f64,
    /// Median of the ratios of each run: what both suffered alike falls out.
    pub paired: f64,
    /// Least of these ratios.
    pub min: f64,
    /// Greatest of these ratios.
    pub max: f64,
}

/// The middle of sorted values.
fn middle(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
}

impl Row {
    /// A row from the value of each run; `None` without runs or with a value that is not finite.
    pub fn of(bench: &str, subject: &str, metric: &str, unit: &str, values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if sorted.iter().any(|value| !value.is_finite()) {
            return None;
        }
        Some(Self {
            bench: bench.to_owned(),
            subject: subject.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            median: middle(&sorted)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            runs: sorted.len(),
            against: None,
        })
    }

    /// Adds how `values`, from which the row was made, stand to those of `subject`, run by run. Nothing is added where a
    /// ratio is not finite, or the two have not the same number of runs.
    #[must_use]
    pub fn against(mut self, subject: &str, values: &[f64], others: &[f64]) -> Self {
        let mut ratios: Vec<f64> = values.iter().zip(others).map(|(value, other)| value / other).collect();
        ratios.sort_by(f64::total_cmp);
        let mut others = others.to_vec();
        others.sort_by(f64::total_cmp);
        let finite = ratios.iter().all(|ratio| ratio.is_finite()) && values.len() == others.len();
        let (Some(paired), Some(other)) = (middle(&ratios), middle(&others)) else { return self };
        if let (true, [min, ..], [.., max]) = (finite, ratios.as_slice(), ratios.as_slice()) {
            let (of_medians, subject) = (self.median / other, subject.to_owned());
            self.against = Some(Against { subject, of_medians, paired, min: *min, max: *max });
        }
        self
    }
}

/// The rows as a table for a terminal, one line each under a head, columns aligned. Ratios have columns where a row has them.
pub fn table(rows: &[Row]) -> String {
    const WORDS: [&str; 4] = ["bench", "subject", "metric", "unit"];
    let mut head = WORDS.to_vec();
    head.extend(["median", "min", "max", "runs"]);
    let with_ratios = rows.iter().any(|row| row.against.is_some());
    if with_ratios {
        head.extend(["against", "of medians", "paired", "min", "max"]);
    }
    let mut lines = vec![head.iter().map(|&name| name.to_owned()).collect::<Vec<String>>()];
    for row in rows {
        let mut line = vec![row.bench.clone(), row.subject.clone(), row.metric.clone(), row.unit.clone()];
        line.extend([row.median, row.min, row.max].map(number));
        line.push(row.runs.to_string());
        if let Some(against) = &row.against {
            line.push(against.subject.clone());
            line.extend([against.of_medians, against.paired, against.min, against.max].map(number));
        }
        lines.push(line);
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for ((cell, name), width) in line.iter().zip(&head).zip(&widths) {
            // Words to the left, numbers to the right.
            let _ = if WORDS.contains(name) || *name == "against" {
                write!(shown, "{cell:<width$}  ")
            } else {
                write!(shown, "{cell:>width$}  ")
            };
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Writes the rows as a JSON list, for `--json FILE`.
///
/// # Errors
/// The file cannot be written; the error names it.
pub fn write_json(rows: &[Row], file: &Path) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    std::fs::write(file, text)
        .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// About four significant digits, never in exponent form.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 1.0 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_of_an_even_number_of_runs_is_between_the_middle_two() {
        let row = Row::of("cni", "hawser", "ADD p50", "ms", &[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((row.median, row.min, row.max, row.runs), (2.5, 1.0, 4.0, 4));
        assert_eq!(Row::of("cni", "hawser", "ADD p50", "ms", &[]), None);
        assert_eq!(Row::of("cni", "hawser", "ADD p50", "ms", &[f64::NAN]), None);
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [
            Row::of("cni", "hawser", "ADD p50", "ms", &[1.25]).unwrap(),
            Row::of("cni", "bridge+host-local", "ADD p99", "ms", &[12345.6]).unwrap(),
        ];
        let text = table(&rows);
        assert_eq!(
            text,
            "bench  subject            metric   unit  median    min    max  runs\n\
             cni    hawser             ADD p50  ms     1.250  1.250  1.250     1\n\
             cni    bridge+host-local  ADD p99  ms     12346  12346  12346     1\n"
        );
    }

    #[test]
    fn ratios_are_those_of_each_run_and_of_the_medians_and_have_columns_of_their_own() {
        let (values, others) = ([2.0, 6.0, 30.0], [1.0, 2.0, 20.0]);
        let row = Row::of("b", "ours", "rate", "1/s", &values).unwrap();
        assert_eq!(row.clone().against("theirs", &values, &others[1..]).against, None);
        let row = row.against("theirs", &values, &others);
        let against = Against { subject: "theirs".into(), of_medians: 3.0, paired: 2.0, min: 1.5, max: 3.0 };
        assert_eq!(row.against, Some(against));
        let alone = Row::of("b", "theirs", "rate", "1/s", &others).unwrap();
        assert_eq!(
            table(&[row, alone]),
            "bench  subject  metric  unit  median    min    max  runs  against  of medians  paired    min    max\n\
             b      ours     rate    1/s    6.000  2.000  30.00     3  theirs        3.000   2.000  1.500  3.000\n\
             b      theirs   rate    1/s    2.000  1.000  20.00     3\n"
        );
    }

    proptest! {
        #[test]
        fn the_median_lies_between_the_extremes_and_json_keeps_the_row(
            values in prop::collection::vec(any::<i32>(), 1..50)
        ) {
            // Eighths are exact in binary and in a few decimals.
            let values: Vec<f64> = values.into_iter().map(|value| f64::from(value) / 8.0).collect();
            let row = Row::of("b", "s", "m", "u", &values).unwrap();
            prop_assert!(row.min <= row.median && row.median <= row.max && row.runs == values.len());
            let text = serde_json::to_string(&[&row]).unwrap();
            prop_assert_eq!(serde_json::from_str::<Vec<Row>>(&text).unwrap(), vec![row]);
        }
    }
}
