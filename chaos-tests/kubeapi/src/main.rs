//! The embedded Kubernetes API as a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use kubeapi::{Server, User};

/// Serves an embedded Kubernetes API until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "kubeapi", version)]
struct Arguments {
    /// Address to listen on; may be given more than once.
    #[arg(long = "listen", value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: Vec<SocketAddr>,
    /// Name or address to add to the certificate; may be given more than once.
    #[arg(long = "san", value_name = "NAME")]
    san: Vec<String>,
    /// Keep objects, tokens and the CA in this directory.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Write a kubeconfig of an administrator here (mode 0600).
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
    /// Events of each resource that a new watch may start behind.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    event_window: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut builder = Server::builder().event_window(arguments.event_window).state_dir(arguments.state_dir);
    for address in arguments.listen {
        builder = builder.listen(address);
    }
    for name in &arguments.san {
        builder = builder.san(name);
    }
    let server = builder.start().await?;
    if let Some(path) = &arguments.kubeconfig_out {
        write_kubeconfig(path, &server.kubeconfig(&User::admin()))
            .with_context(|| format!("cannot write the kubeconfig to {}", path.display()))?;
    }
    tracing::info!(url = server.url(), "serving");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}

fn write_kubeconfig(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
