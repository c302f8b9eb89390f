//! Runs test programs and counts what they report.

use std::io::{BufRead as _, BufReader, PipeReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::outcome::{Count, count, finished_test, ignored_tests, not_run};
use crate::run::{Progress, as_root, minutes, show};

/// How often a program that is still running is mentioned.
const REMINDER: Duration = Duration::from_secs(15);

/// How long a program's output may stay open after its end, before that counts as a process left behind.
const GRACE: Duration = Duration::from_secs(3);

/// Lines between the reader and the counter; more would only hide a stall.
const LINES: usize = 256;

/// What came of the tests so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) count: Count,
    /// Names of programs and checks.
    pub(crate) failures: Vec<String>,
    /// Names of tests.
    pub(crate) ignored: Vec<String>,
    /// Names of tests that lacked something of the machine, and what; the harness counted them as passed, we do not.
    pub(crate) not_run: Vec<String>,
}

impl Report {
    /// Adds what came of others.
    pub(crate) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.failures.extend(other.failures);
        self.ignored.extend(other.ignored);
        self.not_run.extend(other.not_run);
    }

    /// A check that is no test program, such as clippy, counts as one test.
    pub(crate) fn check(&mut self, name: &str, result: Result<()>, progress: Progress) {
        match result {
            Ok(()) => {
                self.count.passed += 1;
                progress.say(format_args!("  {name}: passed"));
            }
            Err(error) => {
                self.count.failed += 1;
                progress.say(format_args!("  {name}: FAILED\n{error:#}"));
                self.failures.push(name.to_owned());
            }
        }
    }
}

/// A command under timeout(1), which stays in the foreground so that Ctrl-C reaches the tests and their clean-up.
pub(crate) fn limited(limit: Duration, root: bool) -> Result<Command> {
    let mut command = if root { as_root("timeout")? } else { Command::new("timeout") };
    command.args(["--foreground", "--kill-after=30"]).arg(limit.as_secs().max(1).to_string());
    Ok(command)
}

/// Runs one test program to its end and counts; its output is shown if it fails.
pub(crate) fn run(name: &str, mut command: Command, report: &mut Report, progress: Progress) -> Result<()> {
    let begin = Instant::now();
    let ended = follow(name, &mut command, progress)?;
    let (mut sum, results) = count(&ended.text);
    // Killed or aborted before it could count, or it counted and failed afterwards.
    let failed = !ended.status.success() || ended.left_behind;
    if failed && (results == 0 || sum.failed == 0) {
        sum.failed += 1;
    }
    report.ignored.extend(ignored_tests(&ended.text).map(|test| format!("{name}: {test}")));
    let not_run: Vec<String> = not_run(&ended.text).map(|test| format!("{name}: {test}")).collect();
    sum.passed = sum.passed.saturating_sub(not_run.len() as u64);
    report.not_run.extend(not_run);
    report.count += sum;
    let time = minutes(begin.elapsed());
    if !failed {
        progress.say(format_args!("  {name}: {} passed, {time}", sum.passed));
        return Ok(());
    }
    print!("{}", ended.text);
    let why = match ended.status.code() {
        Some(124 | 137) => "; the limit of all tiers is reached",
        _ if ended.left_behind => "; it left a process behind that holds its output open",
        _ => "",
    };
    progress.say(format_args!(
        "  {name}: {} passed, {} FAILED, {time}: {}{why}",
        sum.passed, sum.failed, ended.status
    ));
    report.failures.push(name.to_owned());
    Ok(())
}

/// A program that has ended.
struct Ended {
    status: ExitStatus,
    text: String,
    left_behind: bool,
}

/// Starts a program, reads what it prints and says so from time to time, until it and its output have ended.
fn follow(name: &str, command: &mut Command, progress: Progress) -> Result<Ended> {
    // Both streams into one pipe, in order.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot clone a pipe")?;
    command.stdout(second).stderr(writer).stdin(Stdio::null());
    let shown = show(command);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    // The command holds the writing ends: without them here, the output ends with the program.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let lines = read_lines(reader);
    let (mut text, mut last_test) = (String::new(), None);
    let (mut done, mut reminded) = (0_u64, Instant::now());
    let mut exit: Option<(ExitStatus, Instant)> = None;
    let left_behind = loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if let Some(test) = finished_test(&line) {
                    done += 1;
                    last_test = Some(test.to_owned());
                }
                text.push_str(&line);
                text.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break false,
        }
        if exit.is_none() {
            let status = child.try_wait().with_context(|| format!("cannot wait for {shown}"))?;
            exit = status.map(|status| (status, Instant::now()));
        }
        if exit.is_some_and(|(_, at)| at.elapsed() > GRACE) {
            break true;
        }
        if reminded.elapsed() >= REMINDER {
            let last = last_test.as_ref().map(|test| format!(", the last {test}")).unwrap_or_default();
            progress.say(format_args!("  {name}: running, {done} tests done{last}"));
            reminded = Instant::now();
        }
    };
    let status = match exit {
        Some((status, _)) => status,
        None => child.wait().with_context(|| format!("cannot wait for {shown}"))?,
    };
    Ok(Ended { status, text, left_behind })
}

/// Reads lines in a thread of its own, which ends with the pipe or with the receiver.
fn read_lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = sync_channel(LINES);
    std::thread::spawn(move || {
        // A pipe that cannot be read any more is one that has ended.
        for line in BufReader::new(reader).split(b'\n').map_while(std::result::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
