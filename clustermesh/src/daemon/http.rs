//! `/healthz` and `/readyz` on one address, `/metrics` on another.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Standing;
use super::metrics::Metrics;

/// Both addresses, bound and not served yet.
#[derive(Debug)]
pub struct Listeners {
    health: TcpListener,
    metrics: TcpListener,
}

/// Binds both addresses.
///
/// # Errors
/// An address cannot be bound; says which and what may have it.
pub async fn bind(health: SocketAddr, metrics: SocketAddr) -> std::io::Result<Listeners> {
    let bind = async |address: SocketAddr, what: &str| {
        TcpListener::bind(address).await.map_err(|error| {
            let text = format!(
                "{what} {address}: {error}; another process listens there? Stop it, or set {what} in the configuration"
            );
            std::io::Error::new(error.kind(), text)
        })
    };
    let health = bind(health, "clustermesh.healthAddress").await?;
    Ok(Listeners { health, metrics: bind(metrics, "clustermesh.metricsAddress").await? })
}

/// Serves both until it is dropped.
///
/// # Errors
/// A listener broke.
pub async fn serve(
    listeners: Listeners,
    standing: watch::Receiver<Standing>,
    metrics: Metrics,
) -> std::io::Result<()> {
    let probes =
        Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(standing);
    let insight = Router::new().route("/metrics", get(render)).with_state(metrics);
    let (first, second) = (axum::serve(listeners.health, probes), axum::serve(listeners.metrics, insight));
    tokio::try_join!(first, second).map(|_| ())
}

/// Alive: it answers. A replica that waits is as well as one that leads.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: it leads and serves, so that a Service leads to the leader alone; and not to one in whose place another may lead.
async fn readyz(State(standing): State<watch::Receiver<Standing>>) -> Response {
    let standing = standing.borrow().clone();
    let why = match standing {
        Standing { cut_off: true, .. } => {
            "the Lease hawser-clustermesh could not be renewed while it lasted: another replica may lead; see why the API server does not answer"
                .to_owned()
        }
        Standing { serves: Some(_), .. } => return "ok\n".into_response(),
        Standing { obstacle: Some(obstacle), .. } => obstacle,
        Standing { leads: Some(_), .. } => "leads, and does not know all of its cluster yet".to_owned(),
        Standing { leads: None, .. } => "another replica leads".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response()
}

async fn render(State(metrics): State<Metrics>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, metrics.render()).into_response()
}
