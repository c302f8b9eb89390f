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
}

impl Row {
    /// A row from the value of each run; `None` without runs or with a value that is not finite.
    pub fn of(bench: &str, subject: &str, metric: &str, unit: &str, values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if sorted.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) };
        Some(Self {
            bench: bench.to_owned(),
            subject: subject.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
            runs: sorted.len(),
        })
    }
}

/// The rows as a table for a terminal, one line each under a head, columns aligned.
pub fn table(rows: &[Row]) -> String {
    let head = ["bench", "subject", "metric", "unit", "median", "min", "max", "runs"].map(str::to_owned);
    let lines: Vec<[String; 8]> = std::iter::once(head)
        .chain(rows.iter().map(|row| {
            [
                row.bench.clone(),
                row.subject.clone(),
                row.metric.clone(),
                row.unit.clone(),
                number(row.median),
                number(row.min),
                number(row.max),
                row.runs.to_string(),
            ]
        }))
        .collect();
    let widths: [usize; 8] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Words to the left, numbers to the right.
            let _ = if column < 4 {
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
