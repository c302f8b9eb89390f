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

/// Ready: it serves, or another one leads and it waits. Where the leader is says [`super::front`], not this. Not
/// ready: one in whose place another may lead.
fn readiness(standing: &Standing) -> Result<&'static str, String> {
    match standing {
        Standing { cut_off: true, .. } => Err(
            "the Lease hawser-clustermesh could not be renewed while it lasted: another replica may lead; see why the API server does not answer\n"
                .to_owned(),
        ),
        Standing { serves: Some(_), .. } => Ok("ok\n"),
        Standing { obstacle: Some(obstacle), .. } => Err(format!("{obstacle}\n")),
        Standing { leads: Some(_), .. } => {
            Err("leads, and does not know all of its cluster yet\n".to_owned())
        }
        Standing { leads: None, .. } => Ok("ok: another replica leads, or one is being found\n"),
    }
}

async fn readyz(State(standing): State<watch::Receiver<Standing>>) -> Response {
    match readiness(&standing.borrow()) {
        Ok(text) => text.into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn render(State(metrics): State<Metrics>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a roll-out each new replica waits for a while, and a leader that cannot serve must stop it.
    #[test]
    fn who_waits_is_ready_and_a_leader_only_when_it_serves() {
        let serves = Some("192.0.2.1:51893".parse().unwrap());
        let obstacle = || Some("no Secret".to_owned());
        for (standing, ready) in [
            (Standing::default(), true),
            (Standing { leads: Some(1), ..Standing::default() }, false),
            (Standing { leads: Some(1), serves, ..Standing::default() }, true),
            (Standing { leads: Some(1), serves, cut_off: true, ..Standing::default() }, false),
            (Standing { leads: Some(1), obstacle: obstacle(), ..Standing::default() }, false),
        ] {
            assert_eq!(readiness(&standing).is_ok(), ready, "{standing:?}");
        }
    }
}
