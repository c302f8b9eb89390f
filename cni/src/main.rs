//! `hawser-cni`: the CNI plugin, and its own installer.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use cni::cli::{self, Invocation, USAGE};
use cni::environment::Environment;
use cni::install::{Report, install, uninstall};
use cni::plugin;

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
        Invocation::Install(options) => {
            let binary =
                std::fs::read("/proc/self/exe").context("reading this program from /proc/self/exe")?;
            tell(&install(options, &binary)?, "installed")
        }
        Invocation::Uninstall(places) => tell(&uninstall(places)?, "removed"),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("writing to stdout")
}

fn tell(report: &Report, changed: &str) -> anyhow::Result<()> {
    let mut text = String::new();
    for path in &report.changed {
        text.push_str(&format!("{changed}: {}\n", path.display()));
    }
    for path in &report.unchanged {
        text.push_str(&format!("unchanged: {}\n", path.display()));
    }
    for warning in &report.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    say(&text)
}
