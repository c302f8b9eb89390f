//! `mesh-agent`: one per node.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mesh_agent::start::{Options, run};
use tracing_subscriber::EnvFilter;

/// The node agent of Hawser.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, default_value = "/etc/hawser/config.yaml")]
    config: PathBuf,
    /// Kubeconfig; without it, the service account of the pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Seconds between two looks for drift that no event told of.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drift_interval: u64,
    /// Where maps and programs are pinned, on a BPF file system; overrides bpfPinDir of the configuration.
    #[arg(long)]
    bpf_pin_dir: Option<PathBuf>,
    /// Refuse a data path where no BPF file system is mounted, instead of mounting one: in a container it would end with the
    /// container, and every program with it.
    #[arg(long)]
    bpffs_mounted: bool,
    /// Where kernel settings are written: in a container, a mount of the node's /proc/sys/net beneath this directory.
    #[arg(long, default_value = "/proc/sys", value_name = "DIR")]
    proc_sys: PathBuf,
    /// Form of the log.
    #[arg(long, value_enum, default_value_t = LogForm::Pretty)]
    log: LogForm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Nothing below a warning of the crate through which secrets go to the devices.
const SILENT: &str = "defguard_wireguard_rs=warn";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube=warn"))
        // Whatever is asked for: at `trace` it prints what it reads of a device, keys included.
        .add_directive(SILENT.parse().expect("invariant: it is a directive"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log {
        LogForm::Pretty => log.init(),
        LogForm::Json => log.json().flatten_event(true).init(),
    }
    if mesh_agent::container::settings_are_at(arguments.proc_sys).is_err() {
        tracing::error!("Kernel settings were asked for before it was known where they are");
        return ExitCode::FAILURE;
    }
    let options = Options {
        config: arguments.config,
        kubeconfig: arguments.kubeconfig,
        node: arguments.node_name,
        bpf_pin_dir: arguments.bpf_pin_dir,
        mounts_bpffs: !arguments.bpffs_mounted,
        drift_interval: Duration::from_secs(arguments.drift_interval),
    };
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
    let result = runtime.block_on(run(options));
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
