//! `hawser`: the operator's command line.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::audit::{self, AuditArgs};
use cli::flows::{self, FlowArgs};
use cli::keys::{self, KeysCommand};

/// Looks at a Hawser cluster, proves what it sees, and has its keys replaced.
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
    /// Evidence about encryption, keys and policy, judged and signed.
    Audit(AuditArgs),
    /// WireGuard keys of nodes.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// Runs what talks with the API server.
fn with_api<T, E>(work: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    anyhow::Error: From<E>,
{
    // Fails only where there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work)?)
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let done = match command {
        Command::Flows(args) => {
            let run = flows::run(&args, terminal, &mut stdout.lock(), &mut io::stderr());
            run.map(|()| 0).map_err(anyhow::Error::from)
        }
        // Its errors name their causes themselves.
        Command::Audit(args) => {
            with_api(async { audit::run(&args, &mut stdout).await.map_err(anyhow::Error::msg) })
        }
        Command::Keys(KeysCommand::Rotate(args)) => with_api(keys::rotate(&args, &mut stdout)).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Where even this fails, the exit code is left.
            let _ = writeln!(io::stderr(), "hawser: {:#}", error);
            ExitCode::FAILURE
        }
    }
}
