//! `hawser`: the operator's command line.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::flows::{self, FlowArgs};

/// Looks at a Hawser cluster from one of its nodes.
#[derive(Parser)]
#[command(name = "hawser", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What happened to flows: new ones, drops with their reason, changed and revoked ones.
    Flows(FlowArgs),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let stdout = io::stdout();
    let terminal = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let done = match command {
        Command::Flows(args) => flows::run(&args, terminal, &mut stdout.lock(), &mut io::stderr()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even this fails, the exit code is left.
            let _ = writeln!(io::stderr(), "hawser: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
