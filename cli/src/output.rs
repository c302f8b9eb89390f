//! Forms of output, and what all commands have in common for people: aligned tables, sections, durations.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use mesh_core::evidence::Engine;
use serde::Serialize;

use crate::render::printable;

/// A column that one long cell would push away stays this narrow; the cell is never cut.
const WIDEST: usize = 48;

/// What exit codes mean, for every command.
pub const EXIT_CODES: &str = "Exit codes: 0 it is done, or everything holds; 1 it could not be done; 2 the command line is wrong; \
3 it was looked at, and something does not hold; 4 something is not known, and nothing else speaks against it.";

/// Form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// The same in YAML.
    Yaml,
}

/// What can be said of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// All evidence is there and none speaks against it.
    Holds,
    /// Evidence is missing, and what there is does not speak against it.
    Incomplete,
    /// Some evidence speaks against it: of several verdicts this one counts.
    DoesNotHold,
}

impl Verdict {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Incomplete => "evidence missing",
            Self::DoesNotHold => "does not hold",
        }
    }

    /// Its exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Holds => 0,
            Self::DoesNotHold => 3,
            Self::Incomplete => 4,
        }
    }
}

/// Says on the standard error what takes its time, where somebody sees it.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// Shown on a terminal alone: in a script's log it would be noise.
    pub fn on_terminal() -> Self {
        Self { shown: io::IsTerminal::is_terminal(&io::stderr()) }
    }

    /// One line.
    pub fn say(self, text: &str) {
        if self.shown {
            // Whoever does not take it misses nothing else.
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    }
}

/// Writes a document in its form; `text` makes the one for people.
///
/// # Errors
/// `out` does not take it.
pub fn write(
    out: &mut (dyn Write + Send),
    form: Form,
    document: &impl Serialize,
    text: impl FnOnce() -> String,
) -> io::Result<()> {
    match form {
        Form::Text => out.write_all(text().as_bytes()),
        Form::Json => {
            serde_json::to_writer_pretty(&mut *out, document)?;
            writeln!(out)
        }
        Form::Yaml => {
            // By way of JSON, so that both say the same in the same order.
            let value = serde_json::to_value(document)?;
            let yaml = serde_saphyr::to_string(&value).map_err(io::Error::other)?;
            out.write_all(yaml.trim_end().as_bytes())?;
            writeln!(out)
        }
    }
}

/// One line. What is in it cannot steer the terminal.
pub fn line(out: &mut String, text: &str) {
    out.push_str(printable(text).trim_end());
    out.push('\n');
}

/// A title with lines beneath.
pub fn section(out: &mut String, title: &str, lines: Vec<String>) {
    writeln!(out, "\n{title}").expect("invariant: writing to a string does not fail");
    for text in lines {
        line(out, &format!("  {text}"));
    }
}

/// Aligned columns; the last one is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).filter(|head| !head.is_empty()).chain(rows).collect();
    let columns = all.iter().map(|row| row.len()).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row.iter()) {
            *width = (*width).max(cell.chars().count().min(WIDEST));
        }
    }
    let aligned = |row: &&Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(aligned).collect()
}

/// Seconds in two units at most.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds % 86400 / 3600, seconds % 3600 / 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// Whose WireGuard it is, for people.
pub const fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Kernel => "kernel",
        Engine::Userspace => "userspace",
    }
}

/// A moment in seconds since 1970, as RFC 3339.
pub fn moment(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map_or_else(|| format!("{seconds} seconds since 1970"), |at| at.to_string())
}

/// Seconds since 1970 by this machine's clock.
pub fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let document =
            serde_json::json!({"b": [1, {"x": "yes"}], "a": null, "text": "a: b\n- c", "empty": []});
        let in_form = |form| {
            let mut out = Vec::new();
            write(&mut out, form, &document, || "text\n".to_owned()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(in_form(Form::Text), "text\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&in_form(Form::Json)).unwrap(), document);
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&in_form(Form::Yaml)).unwrap(), document);
    }
}
