//! `hawser`: the operator's command line. Called `kubectl-hawser` it is kubectl's plugin, `kubectl hawser`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cli::audit::{self, AuditArgs};
use cli::clustermesh::{self, ClustermeshCommand};
use cli::completion::{self, CompletionArgs};
use cli::connectivity::{self, ConnectivityCommand};
use cli::doctor::{self, DoctorArgs};
use cli::flows::{self, FlowArgs};
use cli::keys::{self, KeysCommand};
use cli::output::EXIT_CODES;
use cli::plan::{self, PlanArgs};
use cli::policy::{self, PolicyCommand};
use cli::status::{self, StatusArgs};
use cli::sysdump::{self, SysdumpArgs};

/// Looks at a Hawser cluster, proves what it sees, and has its keys replaced.
#[derive(Parser)]
#[command(name = "hawser", version, about, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole mesh at a glance: nodes, versions, keys, peers, what is wrong and who is silent.
    Status(StatusArgs),
    /// What is wrong with hosts, tunnels, prefixes and addresses, each with its remedy.
    Doctor(DoctorArgs),
    /// What happened to flows: new ones, drops with their reason, changed and revoked ones.
    Flows(FlowArgs),
    /// Evidence about encryption, keys and policy, judged and signed.
    Audit(AuditArgs),
    /// Whether pods reach what they should, and nothing else, and how fast.
    #[command(subcommand)]
    Connectivity(ConnectivityCommand),
    /// Network policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// WireGuard keys of nodes.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Other clusters.
    #[command(subcommand)]
    Clustermesh(ClustermeshCommand),
    /// An archive for those who help: objects, evidence, metrics, plans and logs, without secrets.
    Sysdump(SysdumpArgs),
    /// Before installation: what fits into the planned addresses, what overlaps, and how far it grows.
    Plan(PlanArgs),
    /// Completions for a shell.
    Completion(CompletionArgs),
}

/// Runs what talks with the API server.
fn with_api<T, E>(work: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    E: std::fmt::Display + std::fmt::Debug + Send + Sync + 'static,
{
    // Fails only where there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Their errors name their causes themselves.
    runtime.block_on(work).map_err(anyhow::Error::msg)
}

/// The command line, under the name by which it was called.
fn arguments() -> Arguments {
    let called = std::env::args_os().next().unwrap_or_default();
    let mut command = Arguments::command();
    if completion::is_plugin(&called) {
        command = command.bin_name("kubectl hawser");
    }
    let matches = command.get_matches();
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn run(command: &Command, out: &mut (dyn Write + Send), terminal: bool) -> anyhow::Result<u8> {
    match command {
        Command::Status(args) => with_api(status::run(args, out)),
        Command::Doctor(args) => with_api(doctor::run(args, out)),
        Command::Flows(args) => Ok(flows::run(args, terminal, out, &mut io::stderr()).map(|()| 0)?),
        Command::Audit(args) => with_api(audit::run(args, out)),
        Command::Keys(KeysCommand::Rotate(args)) => with_api(keys::rotate(args, out)),
        Command::Connectivity(ConnectivityCommand::Test(args)) => with_api(connectivity::test(args, out)),
        Command::Connectivity(in_pod) => Ok(connectivity::in_pod(in_pod).map(|()| 0)?),
        Command::Policy(PolicyCommand::Explain(args)) => with_api(policy::explain(args, out)),
        Command::Clustermesh(ClustermeshCommand::Join(args)) => with_api(clustermesh::join(args, out)),
        Command::Sysdump(args) => with_api(sysdump::run(args, out)),
        Command::Plan(args) => Ok(plan::run(args, out)?),
        Command::Completion(args) => {
            completion::write(args, &mut Arguments::command(), out)?;
            Ok(0)
        }
    }
}

fn main() -> ExitCode {
    let Arguments { command } = arguments();
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match run(&command, &mut stdout, terminal) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Where even this fails, the exit code is left.
            let _ = writeln!(io::stderr(), "hawser: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
