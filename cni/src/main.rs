//! `hawser-cni`: the CNI plugin, and its own installer.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cni::cli::{self, Install, Invocation, USAGE};
use cni::environment::Environment;
use cni::install::{InstallError, Report, check, install, tell_agent, uninstall};
use cni::plugin;
use cni::prepare::{Prepared, prepare};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let mut arguments = std::env::args_os().skip(1).peekable();
    // Runtimes pass no arguments, people do.
    if environment.command.is_some() || arguments.peek().is_none() {
        let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
        let succeeded = plugin::call(&environment, io::stdin().lock(), &mut stdout, &mut stderr);
        return if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match cli::parse(arguments).map_err(anyhow::Error::from).and_then(|invocation| serve(&invocation)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "hawser-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(invocation: &Invocation) -> anyhow::Result<()> {
    match invocation {
        Invocation::Help => say(USAGE),
        Invocation::Version => say(concat!("hawser-cni ", env!("CARGO_PKG_VERSION"), "\n")),
        Invocation::Install(options) if options.check => {
            let size = std::fs::metadata("/proc/self/exe").context("looking at this program")?.len();
            let wrong = check(options, size)?;
            anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
            say("runtimes use Hawser\n")
        }
        Invocation::Install(options) => {
            let binary =
                std::fs::read("/proc/self/exe").context("reading this program from /proc/self/exe")?;
            match options.repeat {
                None => tell(&install_and_say(options, &binary)?, "installed"),
                Some(pause) => keep_installed(options, &binary, pause),
            }
        }
        Invocation::Prepare(options) => {
            let done = match prepare(options)? {
                Prepared::AlreadyThere => "unchanged",
                Prepared::Mounted => "mounted",
            };
            say(&format!("{done}: BPF file system {}\n", options.bpffs.display()))
        }
        Invocation::Uninstall(places) => {
            let (report, errors) = uninstall(places);
            tell(&report, "removed")?;
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            anyhow::ensure!(all.is_empty(), "{}", all.join("; "));
            Ok(())
        }
    }
}

/// Installs, and tells the agent how that went.
fn install_and_say(options: &Install, binary: &[u8]) -> Result<Report, InstallError> {
    let outcome = install(options, binary);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let told = tell_agent(options, outcome.as_ref(), now);
    let mut report = outcome?;
    // What was installed works without it.
    report.warnings.extend(told.err().map(|error| error.to_string()));
    Ok(report)
}

/// Installs, and puts right again what others change. What is said once is not repeated.
fn keep_installed(options: &Install, binary: &[u8], pause: Duration) -> anyhow::Result<()> {
    end_at_signals()?;
    let mut said = None;
    loop {
        let outcome = match install_and_say(options, binary) {
            Ok(report) if report.changed.is_empty() && report.removed.is_empty() && said.is_some() => {
                Ok(report.warnings)
            }
            Ok(report) => {
                tell(&Report { warnings: Vec::new(), ..report.clone() }, "installed")?;
                Ok(report.warnings)
            }
            Err(error) => Err(error.to_string()),
        };
        if said.as_ref() != Some(&outcome) {
            match &outcome {
                Ok(warnings) => {
                    warnings.iter().try_for_each(|warning| say(&format!("warning: {warning}\n")))?
                }
                Err(error) => {
                    writeln!(io::stderr().lock(), "hawser-cni: {error}").context("writing to stderr")?
                }
            }
            said = Some(outcome);
        }
        std::thread::sleep(pause);
    }
}

/// Ends this process at SIGTERM or SIGINT: the first process of a container dies of neither by itself.
#[expect(clippy::exit, reason = "files are changed by renames alone, so that there is nothing to finish")]
fn end_at_signals() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("blocking SIGTERM and SIGINT")?;
    let wait = move || {
        if signals.wait().is_ok() {
            std::process::exit(0);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map(drop)
        .context("no thread for signals")
}

fn say(text: &str) -> anyhow::Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("writing to stdout")
}

fn tell(report: &Report, changed: &str) -> anyhow::Result<()> {
    let mut text = String::new();
    for path in &report.changed {
        text.push_str(&format!("{changed}: {}\n", path.display()));
    }
    for path in &report.removed {
        text.push_str(&format!("removed, since it is Hawser's of another name: {}\n", path.display()));
    }
    for path in &report.unchanged {
        text.push_str(&format!("unchanged: {}\n", path.display()));
    }
    for warning in &report.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    say(&text)
}
