//! `/healthz`, `/readyz` on one address; `/metrics`, `/debug/plan`, `/audit`, `/audit/paths` on another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mesh_core::diff::{Observed, Op};
use mesh_core::plan::Desired;
use mesh_core::view::ClusterView;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::cni::Readiness;
use crate::metrics::Metrics;
use crate::paths::Paths;
use crate::plane::PlaneState;

/// What `/debug/plan` shows: nothing secret is in any of it.
#[derive(Debug, serde::Serialize)]
pub struct Snapshot {
    /// What was known.
    pub view: ClusterView,
    /// What shall be.
    pub desired: Desired,
    /// What was.
    pub observed: Observed,
    /// What was left to do.
    pub pending: Vec<Op>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// What else evidence is made from.
    #[serde(skip)]
    pub facts: mesh_core::evidence::Facts,
}

/// What the endpoints read.
#[derive(Clone, Debug)]
pub struct Sources {
    /// When the main loop last turned.
    pub heartbeat: watch::Receiver<Instant>,
    /// Can ADD be served?
    pub readiness: watch::Receiver<Readiness>,
    /// The last plan.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Metrics.
    pub metrics: Metrics,
    /// The data path, whose counters are read when they are asked for.
    pub plane: watch::Receiver<PlaneState>,
    /// Asks the main loop to turn.
    pub nudge: mpsc::Sender<()>,
    /// Where the record of destroyed keys is.
    pub state_dir: PathBuf,
    /// Where the CNI plugin's installer tells what it found.
    pub installed: PathBuf,
    /// What the paths to peers take.
    pub paths: Paths,
}

/// The main loop turns at least every minute; this long without a turn means that it hangs.
const DEAD: Duration = Duration::from_secs(300);

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
    let health = bind(health, "healthAddress").await?;
    Ok(Listeners { health, metrics: bind(metrics, "metricsAddress").await? })
}

/// Serves both addresses until the task is dropped.
///
/// # Errors
/// A listener broke.
pub async fn serve(listeners: Listeners, sources: Sources) -> std::io::Result<()> {
    let probes = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    let insight = Router::new()
        .route("/metrics", get(render))
        .route("/debug/plan", get(plan))
        .route(mesh_core::evidence::PATH, get(audit))
        .route(mesh_core::evidence::TRY_PATHS, get(try_paths));
    let first = axum::serve(listeners.health, probes.with_state(sources.clone()));
    let second = axum::serve(listeners.metrics, insight.with_state(sources));
    tokio::try_join!(first, second).map(|_| ())
}

/// Liveness: does the main loop turn? Never about peers or the API server.
async fn healthz(State(sources): State<Sources>) -> Response {
    let silent = sources.heartbeat.borrow().elapsed();
    if silent < DEAD {
        return "ok\n".into_response();
    }
    let text = format!("main loop has not turned for {} s\n", silent.as_secs());
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

/// Readiness: the predicate of CNI STATUS.
async fn readyz(State(sources): State<Sources>) -> Response {
    let readiness = sources.readiness.borrow().clone();
    let why: Vec<String> = readiness.obstacles.into_iter().chain(readiness.limits).collect();
    if why.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, why.join("\n") + "\n").into_response()
}

async fn render(State(sources): State<Sources>) -> Response {
    let plane = sources.plane.borrow().open().cloned();
    if let Some(plane) = plane {
        let metrics = sources.metrics.clone();
        let read = move || match plane.datapath().counters() {
            Ok(values) => metrics.datapath(&values),
            Err(error) => tracing::warn!(err = %error, "Could not read the data path's counters"),
        };
        drop(tokio::task::spawn_blocking(read).await);
    }
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, sources.metrics.render()).into_response()
}

async fn plan(State(sources): State<Sources>) -> Response {
    let snapshot = sources.snapshot.borrow().clone();
    match snapshot {
        Some(snapshot) => axum::Json(&*snapshot).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no plan yet\n").into_response(),
    }
}

async fn audit(State(sources): State<Sources>) -> Response {
    match crate::evidence::gather(&sources).await {
        Some(evidence) => axum::Json(evidence).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "mesh-agent is starting: nothing has been looked at yet\n")
            .into_response(),
    }
}

/// Has the paths to some peers tried, and answers when that is done.
async fn try_paths(State(sources): State<Sources>) -> Response {
    let snapshot = sources.snapshot.borrow().clone();
    let Some(snapshot) = snapshot else {
        return (StatusCode::SERVICE_UNAVAILABLE, "no plan yet\n").into_response();
    };
    format!("{} peers tried\n", sources.paths.try_some(&snapshot.view.local.name, &snapshot.desired).await)
        .into_response()
}
