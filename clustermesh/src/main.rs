//! `clustermesh`: one Deployment per cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use clustermesh::daemon::config::{Config, Overrides, listen_address};
use clustermesh::daemon::front::Front;
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::{Settings, Standing, http, run, services};
use clustermesh::{dns, mcs};
use mesh_core::prefix::Family;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Tells other clusters of this one, and this one's agents of all.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, default_value = "/etc/hawser/config.yaml")]
    config: PathBuf,
    /// Kubeconfig; without it, the service account of the pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Who this replica is, in the Lease: the name of its pod.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Where clusters and agents are served; overrides clustermesh.listenAddress of the configuration.
    #[arg(long, value_parser = listen_address)]
    listen_address: Option<SocketAddr>,
    /// Address of /healthz and /readyz; overrides clustermesh.healthAddress.
    #[arg(long, value_parser = listen_address)]
    health_address: Option<SocketAddr>,
    /// Address of /metrics; overrides clustermesh.metricsAddress.
    #[arg(long, value_parser = listen_address)]
    metrics_address: Option<SocketAddr>,
    /// Where names of clusterset.local are served, UDP and TCP; overrides clustermesh.dnsAddress. Neither: nowhere.
    #[arg(long, value_parser = listen_address)]
    dns_address: Option<SocketAddr>,
    /// Addresses of its pod, separated by commas: it says in EndpointSlices where it serves. None: somebody else does.
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// UID of its pod, which owns those EndpointSlices.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// Name of its node, for those EndpointSlices.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log {
        LogForm::Pretty => log.init(),
        LogForm::Json => log.json().flatten_event(true).init(),
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::error!("A TLS provider was installed before ours");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(err = %error, "Could not start");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(serve(arguments));
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
    let overrides = Overrides {
        listen: arguments.listen_address,
        health: arguments.health_address,
        metrics: arguments.metrics_address,
        dns: arguments.dns_address,
    };
    let config = Config::load(&arguments.config, &overrides)?;
    let client = client(arguments.kubeconfig.as_deref()).await?;
    let services = mcs::Settings {
        cluster: config.cluster.clone(),
        families: config.pod_cidrs.iter().map(|cidr| Family::of(cidr.addr())).collect(),
        pod_cidrs: config.pod_cidrs.clone(),
        lease: mcs::LEASE,
    };
    let front = (!arguments.pod_ips.is_empty()).then(|| Front {
        pod: arguments.identity.clone(),
        uid: arguments.pod_uid,
        node: arguments.node_name,
        addresses: arguments.pod_ips,
        grpc: config.listen,
        dns: config.dns,
    });
    let settings = Settings {
        cluster: config.cluster,
        pod_cidrs: config.pod_cidrs,
        listen: config.listen,
        identity: arguments.identity,
        agents: config.agents,
    };
    tracing::info!(cluster = %settings.cluster, version = env!("CARGO_PKG_VERSION"), "Starting");
    let listeners = http::bind(config.health, config.metrics).await?;
    let mut counted = None;
    let metrics = Metrics::beside(|registry| {
        counted = Some((mcs::Metrics::new(registry), dns::Metrics::new(registry)))
    });
    let (mcs_metrics, dns_metrics) = counted.context("metrics")?;
    let names = Arc::new(dns::Names::new());
    let server = match config.dns {
        Some(address) => Some(dns::Server::bind(&[address]).await.context("clustermesh.dnsAddress")?),
        None => None,
    };
    let duty = services::duty(services, Arc::clone(&names), mcs_metrics, settings.identity.clone());
    let (standing_tx, standing) = watch::channel(Standing::default());
    let (stop_tx, stop) = watch::channel(false);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let duties = std::iter::once(duty).chain(front.clone().map(Front::duty)).collect();
    let counted = metrics.clone();
    let daemon = async move {
        run(settings, client.clone(), duties, counted, standing_tx, stop).await;
        if let Some(front) = front {
            front.withdraw(&client).await;
        }
    };
    let answers = async {
        match server {
            Some(server) => server.run(names, dns_metrics).await,
            None => std::future::pending().await,
        }
    };
    let asked = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("Ending");
        stop_tx.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = daemon => Ok(()),
        () = answers => anyhow::bail!("the server of names ended"),
        served = http::serve(listeners, standing, metrics) => served.context("health and metrics"),
        () = asked => Ok(()),
    }
}

async fn client(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<kube::Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(path)
                .with_context(|| format!("kubeconfig {} (--kubeconfig)", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
                .await
                .with_context(|| format!("kubeconfig {}", path.display()))?
        }
        None => kube::Config::incluster()
            .context("no --kubeconfig, and not in a pod with a service account (KUBERNETES_SERVICE_HOST and its token)")?,
    };
    kube::Client::try_from(config).context("no client can be made of the kubeconfig or service account")
}
