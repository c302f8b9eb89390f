//! The server: lets in joined clusters by certificate and own agents by token, and tells each what it may hear.
//!
//! Nobody else is told anything. A peer hears of this cluster alone; who a stream was opened by is looked at again whenever
//! trust changes, and once a minute, so that one that is trusted no longer, or whose certificate is over, is cut.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::FusedFuture as _;
use futures::{FutureExt as _, StreamExt as _};
use mesh_core::clusters::ClusterName;
use prost::Message as _;
use proto::clustermesh::{
    ClusterMesh, ClusterMeshServer, FollowRequest, FollowResponse, INCARNATION, MAX_MESSAGE, MAX_REQUEST,
    begins_snapshot, read_known,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::door::{Arrival, Door, Source, Threshold, Visit, Voice};
use super::feed::{Feed, Reach};
use super::hub::Hub;
use super::metrics::Metrics;
use super::tls::Trust;
use super::tokens::{TokenError, Tokens};
use crate::tls::Impostor;

/// How long a handshake may take: some round trips around the world.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once: each costs some kilobytes and a signature, and who is let in is not known before.
const HANDSHAKES: usize = 512;
/// Of these from one address: a node has one agent, and a cluster comes from a few addresses.
const FROM_ONE: usize = 32;
/// How long a connection may last that nobody was let in by.
const UNKNOWN: Duration = Duration::from_secs(15);
/// Connections at once: agents of 5,000 nodes, 1,024 clusters, and those that a restart leaves for a moment.
const CONNECTIONS: usize = 8192;
/// Connections of one cluster, which has one leader that follows; others are being left by it. Each may hold a state that it
/// takes up slowly, and all together must leave room for everybody else.
pub const FROM_CLUSTER: usize = 8;
/// Connections with tokens of one node, which has one agent: the others are being left by it. A node that was taken over must not
/// have all there are.
pub const FROM_NODE: usize = 8;
/// Streams of one connection: a follower opens one, and a second one is refused with a word.
const STREAMS: u32 = 4;
/// Messages that wait for one follower's connection: enough to fill it, and no backlog.
const AHEAD: usize = 2;
/// How long a message may wait for a follower that takes none: its connection is gone, or it hangs.
pub const STUCK: Duration = Duration::from_secs(60);
/// How often it is looked again whether a follower is still whom it said.
pub const RECHECK: Duration = Duration::from_secs(60);
/// The longest life of an agent's stream; it goes on from where it was with its present token. Tokens live for an hour.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// How often a connection is asked whether its follower is there.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long its answer may take: it waits behind a full window of ours (1 MiB), at 17 kB/s that long.
const ANSWER: Duration = Duration::from_secs(60);
/// HTTP/2 window of a connection in bytes: requests are short.
const WINDOW: u32 = 256 * 1024;
/// How long streams have to end when the server does.
const FAREWELL: Duration = Duration::from_secs(3);
/// Pause after an error of the listener: no descriptor is left, most likely.
const AGAIN: Duration = Duration::from_millis(200);

/// What the server needs.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What is served.
    pub hub: Hub,
    /// Who is joined.
    pub trust: Arc<Trust>,
    /// Who asks for whom a token is.
    pub tokens: Tokens,
    /// TLS ([`super::tls::server_config`]).
    pub tls: Arc<rustls::ServerConfig>,
    /// How often a follower's certificate is looked at again; [`RECHECK`].
    pub recheck: Duration,
    /// How long a message waits for a follower; [`STUCK`].
    pub stuck: Duration,
    /// Counts.
    pub metrics: Metrics,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Caller {
    address: SocketAddr,
    /// The chain that was shown, leaf first, and whose it is.
    certificate: Option<(ClusterName, Arc<[CertificateDer<'static>]>)>,
    /// It asked to be let in.
    asked: Arc<AtomicBool>,
    /// It was let in once.
    admitted: Arc<AtomicBool>,
    /// Its place at the door is kept while it asks.
    voice: Voice,
    /// That of its node, once it was let in by a token: as long as there is the connection.
    node: Arc<OnceLock<Visit<String>>>,
}

/// A connection.
struct Connection {
    io: TlsStream<TcpStream>,
    caller: Caller,
    /// Until when somebody has to be let in; nothing, once that was done.
    unknown: Option<futures::future::Fuse<futures::future::BoxFuture<'static, ()>>>,
    /// That of its cluster, if it showed a certificate.
    _place: Option<Visit<ClusterName>>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.caller.admitted.load(Ordering::Relaxed) {
            self.unknown = None;
        }
        if let Some(patience) = &mut self.unknown
            && (patience.is_terminated() || patience.poll_unpin(context).is_ready())
        {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Serves until `stop` is true (or its sender is gone): then nobody is let in any more, and streams end.
pub async fn serve(listener: TcpListener, serving: Serving, stop: watch::Receiver<bool>) {
    let (let_in, connections) = mpsc::channel(HANDSHAKES);
    // Ends with this, however it ends: or the port would be held for ever, and nobody served at it.
    let mut accepting = tokio::task::JoinSet::new();
    accepting.spawn(accept(listener, serving.clone(), let_in));
    let connections = futures::stream::unfold(connections, async |mut connections| {
        let connection: Connection = connections.recv().await?;
        Some((Ok::<_, std::io::Error>(connection), connections))
    });
    let service = ClusterMeshServer::new(Service { serving, of_nodes: Door::default(), stop: stop.clone() })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut ended = stop.clone();
    let served = Server::builder()
        .max_concurrent_streams(STREAMS)
        .initial_connection_window_size(WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(ANSWER))
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { stopped(&mut ended).await });
    let mut stop = stop;
    let result = tokio::select! {
        result = served => result,
        // Who does not read its end is not waited for.
        () = async { stopped(&mut stop).await; tokio::time::sleep(FAREWELL).await } => Ok(()),
    };
    accepting.shutdown().await;
    if let Err(error) = result {
        tracing::warn!(err = crate::follow::whole(&error), "The server ended");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone cannot say any more that it goes on.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Waits for as long as somebody may stand at the door.
fn patience(arrival: Arrival) -> futures::future::Fuse<futures::future::BoxFuture<'static, ()>> {
    async move { drop(timeout(UNKNOWN, arrival.gives_way()).await) }.boxed().fuse()
}

async fn accept(listener: TcpListener, serving: Serving, let_in: mpsc::Sender<Connection>) {
    let (room, handshakes) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(HANDSHAKES)));
    let (threshold, of_clusters) = (Threshold::default(), Door::default());
    let acceptor = TlsAcceptor::from(Arc::clone(&serving.tls));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (tcp, address) = match listener.accept().await {
            Ok((tcp, address)) => (tcp, SocketAddr::new(address.ip().to_canonical(), address.port())),
            Err(error) => {
                tracing::warn!(err = %error, "Could not accept a connection");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            serving.metrics.refused("TooManyConnections");
            tracing::warn!(%address, limit = CONNECTIONS, "A connection was refused: there are too many");
            continue;
        };
        let Some((arrival, gave_way)) = threshold.enter(Source::of(address.ip(), FROM_ONE)) else {
            serving.metrics.refused("TooManyFromOneAddress");
            tracing::debug!(%address, limit = FROM_ONE, "A connection was refused: its address has enough that ask who they may be");
            continue;
        };
        for _ in 0..gave_way {
            serving.metrics.refused("TooManyFromOneAddress");
            tracing::debug!(%address, limit = FROM_ONE, "An older connection gives way: its address has enough that nobody was let in by");
        }
        let (acceptor, let_in, metrics) = (acceptor.clone(), let_in.clone(), serving.metrics.clone());
        let of_clusters = of_clusters.clone();
        tasks.spawn(async move {
            let _handshake = handshake;
            let shaken = timeout(HANDSHAKE, async {
                tcp.set_nodelay(true)?;
                acceptor.accept(tcp).await
            });
            let shaken = tokio::select! {
                shaken = shaken => shaken,
                () = arrival.gives_way() => return,
            };
            match shaken {
                Ok(Ok(io)) => {
                    let certificate = io.get_ref().1.peer_certificates().map(|chain| {
                        let chain: Vec<_> = chain.iter().map(|one| one.clone().into_owned()).collect();
                        Arc::<[CertificateDer<'static>]>::from(chain)
                    });
                    // It was verified, so it has a name.
                    let certificate = certificate
                        .and_then(|chain| Some((crate::tls::claimed(chain.first()?).ok()?, chain)));
                    let place = match &certificate {
                        None => None,
                        Some((cluster, _)) => match of_clusters.enter([(cluster.clone(), FROM_CLUSTER)]) {
                            Some(place) => Some(place),
                            None => {
                                metrics.refused("TooManyFromOneCluster");
                                tracing::warn!(%address, %cluster, limit = FROM_CLUSTER, "A connection was refused: its cluster has enough");
                                return;
                            }
                        },
                    };
                    let caller = Caller { address, certificate, asked: Arc::default(), admitted: Arc::default(), voice: arrival.voice(), node: Arc::default() };
                    let unknown = Some(patience(arrival));
                    drop(let_in.send(Connection { io, caller, unknown, _place: place, _permit: permit }).await);
                }
                Ok(Err(error)) => {
                    let impostor = Impostor::of(&error);
                    let reason = impostor.map_or("TlsFailed", Impostor::reason);
                    // As text rustls has it for programmers, and without its remedy.
                    let err = impostor.map_or_else(|| error.to_string(), ToString::to_string);
                    metrics.refused(reason);
                    tracing::warn!(%address, reason, err, "A connection was refused");
                }
                Err(_) => {
                    metrics.refused("HandshakeTimeout");
                    tracing::debug!(%address, "A connection was refused: it took too long to say who it is");
                }
            }
        });
    }
}

struct Service {
    serving: Serving,
    of_nodes: Door<String>,
    stop: watch::Receiver<bool>,
}

impl Service {
    /// Who it is, and what it may hear.
    async fn admit(&self, request: &Request<FollowRequest>) -> Result<(Caller, Reach), Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("a connection without a caller"))?;
        if caller.asked.swap(true, Ordering::Relaxed) {
            self.serving.metrics.refused("AskedTwice");
            tracing::debug!(address = %caller.address, "A second request of a connection was refused");
            return Err(Status::resource_exhausted("one request a connection; open another connection"));
        }
        if let Some((cluster, chain)) = &caller.certificate {
            // The ClusterPeer may be gone since the handshake.
            let who = self.serving.trust.who(chain, UnixTime::now());
            who.map_err(|impostor| self.refuse(&caller, impostor.reason(), &impostor))?;
            tracing::info!(%cluster, address = %caller.address, "A cluster follows");
            return Ok((caller, Reach::Own));
        }
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer "));
        let reviewed = match token {
            Some(token) => self.serving.tokens.review(token).await,
            None => Err(TokenError::Absent),
        };
        match reviewed {
            Ok(None) => Ok((caller, Reach::All)),
            Ok(Some(node)) => {
                let Some(place) = self.of_nodes.enter([(node.clone(), FROM_NODE)]) else {
                    self.serving.metrics.refused("TooManyFromOneNode");
                    tracing::warn!(address = %caller.address, %node, limit = FROM_NODE, "A follower was refused: its node has enough connections");
                    return Err(Status::resource_exhausted(
                        "this node has enough connections; end one of them",
                    ));
                };
                // It asks once.
                drop(caller.node.set(place));
                Ok((caller, Reach::All))
            }
            Err(TokenError::Unknown(why)) => {
                tracing::warn!(address = %caller.address, err = why, "A token could not be reviewed");
                Err(Status::unavailable("the token could not be reviewed; try again"))
            }
            Err(error) => Err(self.refuse(&caller, error.reason(), &error)),
        }
    }

    fn refuse(&self, caller: &Caller, reason: &str, error: &dyn std::error::Error) -> Status {
        self.serving.metrics.refused(reason);
        tracing::warn!(address = %caller.address, reason, err = %error, "A follower was refused");
        Status::unauthenticated(error.to_string())
    }
}

type Told = Pin<Box<dyn futures::Stream<Item = Result<FollowResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ClusterMesh for Service {
    type FollowStream = Told;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Told>, Status> {
        let _asks = request.extensions().get::<Caller>().map(|caller| caller.voice.ask());
        let (caller, reach) = self.admit(&request).await?;
        let known = read_known(request.into_inner()).map_err(|error| {
            self.serving.metrics.refused("RequestMalformed");
            tracing::warn!(address = %caller.address, reason = "RequestMalformed", err = %error, "A follower was refused");
            Status::invalid_argument(error.to_string())
        })?;
        let leader = self.serving.hub.read(|clusters| clusters.admit(&known).map(|()| clusters.leader()));
        let leader = leader.map_err(|earlier| {
            self.serving.metrics.refused("EarlierLeader");
            tracing::warn!(address = %caller.address, reason = "EarlierLeader", err = %earlier, "A follower was sent away");
            Status::failed_precondition(earlier.to_string())
        })?;
        caller.admitted.store(true, Ordering::Relaxed);
        let (tell, told) = mpsc::channel(AHEAD);
        let stream = Stream {
            serving: self.serving.clone(),
            caller,
            feed: Feed::new(reach, known),
            reach,
            tell,
            stop: self.stop.clone(),
        };
        tokio::spawn(stream.run());
        let told = futures::stream::unfold(told, async |mut told| Some((told.recv().await?, told)));
        let mut response = Response::new(told.boxed());
        if let Some(leader) = leader {
            response.metadata_mut().insert(INCARNATION, leader.into());
        }
        Ok(response)
    }
}

/// One follower being served.
struct Stream {
    serving: Serving,
    caller: Caller,
    feed: Feed,
    reach: Reach,
    tell: mpsc::Sender<Result<FollowResponse, Status>>,
    stop: watch::Receiver<bool>,
}

impl Stream {
    async fn run(mut self) {
        let _counted = self.serving.metrics.stream(if self.reach == Reach::Own { "peer" } else { "agent" });
        let (hub, tell) = (self.serving.hub.clone(), self.tell.clone());
        let mut changes = hub.changes();
        let mut stop = self.stop.clone();
        let mut trust = self.serving.trust.changes();
        let born = Instant::now();
        let mut recheck = tokio::time::interval(self.serving.recheck);
        let end = loop {
            tokio::select! {
                // First of all whether anything may be said.
                biased;
                () = stopped(&mut stop) => break Status::unavailable("clustermesh ends here; another replica goes on"),
                _ = recheck.tick() => {}
                changed = trust.changed() => if changed.is_err() { break Status::unavailable("clustermesh ends here") },
                () = tell.closed() => return,
                message = hub.await_next(&mut self.feed, &mut changes) => {
                    let length = message.encoded_len();
                    if begins_snapshot(&message) {
                        self.serving.metrics.snapshot();
                    }
                    match timeout(self.serving.stuck, tell.send(Ok(message))).await {
                        Ok(Ok(())) => self.serving.metrics.sent(length),
                        Ok(Err(_)) => return,
                        Err(_) => {
                            self.serving.metrics.refused("FollowerStuck");
                            tracing::warn!(address = %self.caller.address, reason = "FollowerStuck", "A follower takes nothing any more");
                            return;
                        }
                    }
                    continue;
                }
            }
            match &self.caller.certificate {
                Some((_, chain)) => {
                    if let Err(impostor) = self.serving.trust.who(chain, UnixTime::now()) {
                        self.serving.metrics.refused(impostor.reason());
                        tracing::warn!(address = %self.caller.address, err = %impostor, "A follower is trusted no longer");
                        break Status::unauthenticated(impostor.to_string());
                    }
                }
                None if born.elapsed() >= TOKEN_LIFE => {
                    break Status::unauthenticated("the token is an hour old; come again with a new one");
                }
                None => {}
            }
        };
        // Whoever does not read its end finds the connection closed.
        drop(timeout(FAREWELL, tell.send(Err(end))).await);
    }
}
