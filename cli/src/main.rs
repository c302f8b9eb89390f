//! `hawser`: the operator's command line.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::flows::{self, FlowArgs};
use cli::keys::{self, KeysCommand};

/// Looks at a Hawser cluster, and has its keys replaced.
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
    /// WireGuard keys of nodes.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// Runs what talks with the API server.
fn with_api(command: &KeysCommand) -> anyhow::Result<()> {
    // Fails only where there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let KeysCommand::Rotate(args) = command;
    Ok(runtime.block_on(keys::rotate(args, &mut io::stdout()))?)
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let stdout = io::stdout();
    let terminal = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let done = match command {
        Command::Flows(args) => {
            flows::run(&args, terminal, &mut stdout.lock(), &mut io::stderr()).map_err(anyhow::Error::from)
        }
        Command::Keys(command) => with_api(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even this fails, the exit code is left.
            let _ = writeln!(io::stderr(), "hawser: {:#}", error);
            ExitCode::FAILURE
        }
    }
}
