//! Listeners, connections, start and stop.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Admission, Authorizer, Tokens, User, default_policy};
use crate::error::ApiError;
use crate::faults::Faults;
use crate::forward::{self, Kubelets};
use crate::http_api::Api;
use crate::persist;
use crate::proxy::{self, Dialer};
use crate::store::Store;
use crate::tls::{self, Authority, Serving, TlsError};
use crate::util::lock;

/// A client that does not finish its handshake or its request head does not hold a connection longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}: {source}; repair or remove it")]
    State {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The stored objects cannot be loaded.
    #[error("cannot load the objects of the state directory: {0}")]
    Load(#[from] ApiError),
}

/// Settings of a [`Server`].
pub struct Builder {
    listen: Vec<SocketAddr>,
    listeners: Vec<std::net::TcpListener>,
    san: Vec<String>,
    event_window: usize,
    state_dir: Option<PathBuf>,
    authorizer: Authorizer,
    admission: Option<Admission>,
    bookmark_interval: Duration,
    dialer: Dialer,
    kubelets: Kubelets,
    service_cidrs: Vec<IpNet>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            listeners: Vec::new(),
            san: Vec::new(),
            event_window: 1000,
            state_dir: None,
            authorizer: Arc::new(default_policy),
            admission: None,
            bookmark_interval: Duration::from_secs(60),
            dialer: proxy::dialer(),
            kubelets: forward::nobody(),
            service_cidrs: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("listen", &self.listen)
            .field("san", &self.san)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Also listens on `address`; without any, on a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen.push(address);
        self
    }

    /// Also serves a listener that is bound already, such as in another network namespace.
    #[must_use]
    pub fn listener(mut self, listener: std::net::TcpListener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Adds a name or an address to the certificate. Those of the listeners and of loopback are in it anyway.
    #[must_use]
    pub fn san(mut self, name: &str) -> Self {
        self.san.push(name.to_owned());
        self
    }

    /// How many of the newest events of each resource a new watch may start behind; an older one gets 410.
    #[must_use]
    pub fn event_window(mut self, events: usize) -> Self {
        self.event_window = events;
        self
    }

    /// Keeps objects, versions, tokens and the CA here across restarts; `None` keeps them in memory.
    #[must_use]
    pub fn state_dir(mut self, dir: Option<PathBuf>) -> Self {
        self.state_dir = dir;
        self
    }

    /// Replaces [`default_policy`]; RBAC objects grant rights besides it.
    #[must_use]
    pub fn authorizer(mut self, authorizer: Authorizer) -> Self {
        self.authorizer = authorizer;
        self
    }

    /// Judges every write, over HTTP and direct, after authorization.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = Some(admission);
        self
    }

    /// How often a watch gets a bookmark (the real server: once a minute).
    #[must_use]
    pub fn bookmark_interval(mut self, interval: Duration) -> Self {
        self.bookmark_interval = interval;
        self
    }

    /// How pods are connected to for their proxy, such as in another network namespace. May block.
    #[must_use]
    pub fn dialer(mut self, dialer: Dialer) -> Self {
        self.dialer = dialer;
        self
    }

    /// How ports of pods are connected to by their kubelets, for port-forwards. May block; without it no node has one.
    #[must_use]
    pub fn kubelets(mut self, kubelets: Kubelets) -> Self {
        self.kubelets = kubelets;
        self
    }

    /// Gives Services cluster IPs out of these, one CIDR for each family, the cluster's first family first. Without any a
    /// Service has what it was written with.
    #[must_use]
    pub fn service_cidrs(mut self, cidrs: Vec<IpNet>) -> Self {
        self.service_cidrs = cidrs;
        self
    }

    /// Starts serving on the current tokio runtime.
    ///
    /// # Errors
    /// When an address, the state directory or TLS cannot be used.
    pub async fn start(self) -> Result<Server, StartError> {
        let listeners = self.bind().await?;
        let state = |source| StartError::State {
            path: self.state_dir.as_ref().map_or_else(String::new, |d| d.display().to_string()),
            source,
        };
        let mut tokens = Tokens::default();
        let (loaded, log) = match &self.state_dir {
            None => (None, None),
            Some(dir) => {
                let (loaded, log) = persist::open(dir).map_err(state)?;
                let file = dir.join("tokens.json");
                if file.exists() {
                    let text = std::fs::read(&file).map_err(state)?;
                    let users = serde_json::from_slice(&text).map_err(|e| state(e.into()))?;
                    tokens.users = Arc::new(std::sync::Mutex::new(users));
                }
                tokens.file = Some(Arc::new(file));
                (Some(loaded), Some(log))
            }
        };
        let authority = Authority::open(self.state_dir.as_deref())?;
        let addresses: Vec<SocketAddr> = listeners.iter().map(|(_, address)| *address).collect();
        let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
        let names = tls::names(&self.san, &ips);
        let serving = Arc::new(Serving(std::sync::Mutex::new(authority.serving(&names)?)));
        let acceptor = TlsAcceptor::from(tls::config(Arc::clone(&serving))?);
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let faults = Faults::default();
        let api = Arc::new(Api {
            store: Store::new(self.event_window, loaded, log, self.admission, self.service_cidrs)?,
            faults: faults.clone(),
            tokens: tokens.clone(),
            authorizer: self.authorizer,
            bookmark_interval: self.bookmark_interval,
            dialer: self.dialer,
            kubelets: self.kubelets,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        for (listener, _) in listeners {
            tasks.spawn(accept(listener, acceptor.clone(), Arc::clone(&api)));
        }
        Ok(Server {
            store: api.store.clone(),
            addresses,
            authority,
            names,
            serving,
            tokens,
            faults,
            shutdown,
            tasks,
        })
    }

    async fn bind(&self) -> Result<Vec<(TcpListener, SocketAddr)>, StartError> {
        let mut out = Vec::new();
        let mut listen = self.listen.clone();
        if listen.is_empty() && self.listeners.is_empty() {
            listen.push(SocketAddr::from(([127, 0, 0, 1], 0)));
        }
        for address in listen {
            let error = |source| StartError::Listen { address: address.to_string(), source };
            let listener = TcpListener::bind(address).await.map_err(error)?;
            let bound = listener.local_addr().map_err(error)?;
            out.push((listener, bound));
        }
        for listener in &self.listeners {
            let error = |source| StartError::Listen { address: format!("{listener:?}"), source };
            let listener = listener.try_clone().map_err(error)?;
            listener.set_nonblocking(true).map_err(error)?;
            let listener = TcpListener::from_std(listener).map_err(error)?;
            let bound = listener.local_addr().map_err(error)?;
            out.push((listener, bound));
        }
        Ok(out)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, api: Arc<Api>) {
    let shutdown = api.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if api.faults.refuses() => {
                // A reset at once is what a client sees where nobody listens, but for the connect itself.
                let _ = stream.set_zero_linger();
            }
            Ok((stream, _)) => {
                api.tasks.spawn(connection(stream, acceptor.clone(), Arc::clone(&api)));
            }
            Err(error) => {
                // Out of descriptors, most likely: others must close before it can go on.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, api: Arc<Api>) {
    let _ = stream.set_nodelay(true);
    let shutdown = api.shutdown.clone();
    let mut cuts = api.faults.cuts();
    let serve = async {
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
            return;
        };
        let service = service_fn(move |request| Arc::clone(&api).serve(request));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended");
        }
    };
    tokio::select! {
        () = serve => {}
        () = shutdown.cancelled() => {}
        _ = cuts.changed() => {}
    }
}

/// A running API. Dropping it ends everything it started.
#[derive(Debug)]
pub struct Server {
    store: Store,
    addresses: Vec<SocketAddr>,
    authority: Authority,
    names: Vec<String>,
    serving: Arc<Serving>,
    tokens: Tokens,
    faults: Faults,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Settings for a new server.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The first address it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addresses.first().copied().expect("invariant: a server has a listener")
    }

    /// All addresses it listens on.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// URL at the first address; loopback stands for the unspecified address.
    #[must_use]
    pub fn url(&self) -> String {
        let mut address = self.addr();
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                IpAddr::from([127, 0, 0, 1])
            } else {
                IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
            });
        }
        format!("https://{address}")
    }

    /// Certificate of the CA, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// A kubeconfig with CA and a new token for `user`.
    #[must_use]
    pub fn kubeconfig(&self, user: &User) -> String {
        self.kubeconfig_at(user, &self.url())
    }

    /// As [`Self::kubeconfig`], for a client that reaches the server at another URL. Its host must be among the
    /// names of the certificate ([`Builder::san`]).
    #[must_use]
    pub fn kubeconfig_at(&self, user: &User, url: &str) -> String {
        let ca = STANDARD.encode(self.ca_pem());
        let token = self.tokens.issue(user.clone());
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster:\n    server: \
             {url}\n    certificate-authority-data: {ca}\nusers:\n- name: user\n  user:\n    token: {token}\n\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: user\n    namespace: default\n"
        )
    }

    /// Tokens and their users.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Direct access to the objects.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Faults and counters.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// New connections get another serving certificate of the same CA.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn rotate_certificate(&self) -> Result<(), TlsError> {
        let fresh = self.authority.serving(&self.names)?;
        *lock(&self.serving.0) = fresh;
        Ok(())
    }

    /// Ends all connections and listeners, and returns when they are gone: the addresses are free then.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
