//! `mesh-agent`: one per node.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use mesh_agent::start::{self, Options};
use mesh_agent::uninstall::{self, Report};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The node agent of Hawser.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// What to do; none: be this node's agent.
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/hawser/config.yaml")]
    config: PathBuf,
    /// Kubeconfig; without it, the service account of the pod.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object; an agent needs it.
    #[arg(long, global = true, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Seconds between two looks for drift that no event told of.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drift_interval: u64,
    /// Where maps and programs are pinned, on a BPF file system; overrides bpfPinDir of the configuration.
    #[arg(long, global = true)]
    bpf_pin_dir: Option<PathBuf>,
    /// Refuse a data path where no BPF file system is mounted, instead of mounting one: in a container it would end with the
    /// container, and every program with it.
    #[arg(long)]
    bpffs_mounted: bool,
    /// Where kernel settings are written: in a container, a mount of the node's /proc/sys/net beneath this directory.
    #[arg(long, global = true, default_value = "/proc/sys", value_name = "DIR")]
    proc_sys: PathBuf,
    /// Form of the log.
    #[arg(long, global = true, value_enum, default_value_t = LogForm::Pretty)]
    log: LogForm,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take everything of Hawser off this node: links, routes, rules, firewall, programs, files, and what the Node object bears.
    /// Refused while an agent or a tunnel runs, or pods are connected. The CNI plugin goes by `hawser-cni uninstall`.
    Uninstall(Uninstall),
}

#[derive(Debug, clap::Args)]
struct Uninstall {
    /// Say what would go, and touch nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove the links of pods that are still connected. They have no network then until they are made anew.
    #[arg(long)]
    cut_pods: bool,
    /// Switch forwarding off again where it was off before Hawser. Whatever rests on it by now is cut.
    #[arg(long)]
    reset_forwarding: bool,
    /// Leave the record of destroyed keys, audit/keys.jsonl in the state directory.
    #[arg(long)]
    keep_audit: bool,
    /// Leave the Node object alone. Without a --node-name it is anyway.
    #[arg(long)]
    local: bool,
    /// Where mesh-tunnel has its sockets.
    #[arg(long, default_value = uninstall::TUNNEL_SOCKETS, value_name = "DIR")]
    tunnel_sockets: PathBuf,
    /// Try again every so many seconds until nothing is left; 0 tries once.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600), value_name = "SECONDS")]
    retry: u64,
    /// When nothing is left, stay until SIGTERM instead of ending.
    #[arg(long)]
    stay: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Nothing below a warning of the crate through which secrets go to the devices, whatever is asked for: at `trace` it prints what it
/// reads of a device, keys included. Not a directive, of which a longer one for a part of it would win.
fn may_be_said(metadata: &tracing::Metadata<'_>) -> bool {
    !metadata.target().starts_with("defguard_wireguard_rs") || *metadata.level() <= tracing::Level::WARN
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log {
        LogForm::Pretty => log.finish().with(filter_fn(may_be_said)).init(),
        LogForm::Json => log.json().flatten_event(true).finish().with(filter_fn(may_be_said)).init(),
    }
    if mesh_agent::container::settings_are_at(arguments.proc_sys.clone()).is_err() {
        tracing::error!("Kernel settings were asked for before it was known where they are");
        return ExitCode::FAILURE;
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::error!("A TLS provider was installed before ours");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(err = %error, "Could not start");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(serve(arguments));
    // Blocking work under way (a UAPI socket that does not answer) must not hold the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(Verb::Uninstall(verb)) = &arguments.verb {
        return take_off(&arguments, verb).await;
    }
    let missing = "node name is missing: give --node-name <NODE_NAME>, or NODE_NAME in the environment";
    let node = arguments.node_name.context(missing)?;
    start::run(Options {
        config: arguments.config,
        kubeconfig: arguments.kubeconfig,
        node,
        bpf_pin_dir: arguments.bpf_pin_dir,
        mounts_bpffs: !arguments.bpffs_mounted,
        drift_interval: Duration::from_secs(arguments.drift_interval),
    })
    .await
}

/// Uninstalls, once or until nothing is left. What was said is said again only when it has changed.
async fn take_off(arguments: &Arguments, verb: &Uninstall) -> anyhow::Result<()> {
    let name = arguments.node_name.as_ref().filter(|_| !verb.local);
    let node = name.map(|name| name.parse()).transpose().context("node name (--node-name or NODE_NAME)")?;
    let options = uninstall::Options {
        config: arguments.config.clone(),
        kubeconfig: arguments.kubeconfig.clone(),
        node,
        bpf_pin_dir: arguments.bpf_pin_dir.clone(),
        tunnel_sockets: verb.tunnel_sockets.clone(),
        cut_pods: verb.cut_pods,
        reset_forwarding: verb.reset_forwarding,
        keep_audit: verb.keep_audit,
        dry_run: verb.dry_run,
    };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    let mut said: Option<Report> = None;
    loop {
        let report = uninstall::run(&options).await?;
        if said.as_ref() != Some(&report) {
            print(&report)?;
        }
        let done = report.is_done();
        if verb.dry_run && report.refused.is_empty() && report.failed.is_empty() {
            return Ok(());
        }
        if done && !verb.stay {
            return Ok(());
        }
        anyhow::ensure!(done || verb.retry > 0, "Hawser is still on this node; see above, then repeat this");
        said = Some(report);
        let pause = async {
            if done {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_secs(verb.retry)).await;
        };
        tokio::select! {
            () = pause => {}
            _ = terminate.recv() => {
                anyhow::ensure!(done, "ended before everything was gone; repeat this");
                return Ok(());
            }
        }
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    use std::io::Write as _;
    write!(std::io::stdout().lock(), "{report}").context("writing to stdout")
}
