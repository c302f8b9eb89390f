//! What agents say to each other about pre-shared keys, over gRPC on the mesh addresses: taken in for the main loop, and
//! carried to peers.
//!
//! Who speaks is told by where it comes from: a mesh address crosses the tunnel of its node alone, by WireGuard's allowed IPs,
//! and no uplink, by the guards. What a letter says about its sender is compared with that by the exchange itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use mesh_core::name::NodeName;
use mesh_core::numbers::PORT_KEY_EXCHANGE;
use mesh_core::psk::Letter;
use proto::keys::{ExchangeRequest, ExchangeResponse, MAX_MESSAGE, PairKeys, PairKeysClient, PairKeysServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// Letters that wait for the main loop. More are refused: their senders repeat them.
pub const INBOX: usize = 1024;
/// How long a letter waits for its answer: some turns of the main loop in a large cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may take: both ends are in one mesh.
const CONNECT: Duration = Duration::from_secs(3);
/// Letters under way at once.
const AT_ONCE: usize = 64;
/// Requests of one connection at once. One pair has two slots.
const PER_CONNECTION: usize = 4;
/// Connections of one peer at once. Its agent has one for each letter; but any process in its host network can have its address.
const PER_PEER: usize = 8;
/// Pause before an address that cannot be bound is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where this node listens, and who its peers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Mesh addresses of this node.
    pub mesh: BTreeSet<IpAddr>,
    /// Mesh addresses of its peers.
    pub peers: BTreeMap<IpAddr, NodeName>,
}

/// A letter that came.
#[derive(Debug)]
pub struct Delivery {
    /// Who sent it.
    pub from: NodeName,
    /// What it says.
    pub letter: Letter,
    /// Where its answer goes; none: it is an answer itself.
    pub reply: Option<oneshot::Sender<Letter>>,
}

/// Carries letters to peers.
#[derive(Clone, Debug)]
pub struct Courier {
    inbox: mpsc::Sender<Delivery>,
    permits: Arc<Semaphore>,
}

impl Courier {
    /// Answers go to this inbox.
    pub fn new(inbox: mpsc::Sender<Delivery>) -> Self {
        Self { inbox, permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Sends, from one of our mesh addresses to one of a peer's. What fails is told to nobody: the exchange repeats it.
    pub fn send(&self, to: NodeName, (from, at): (IpAddr, IpAddr), letter: &Letter) {
        let (inbox, permits) = (self.inbox.clone(), Arc::clone(&self.permits));
        let request = ExchangeRequest::from(letter);
        tokio::spawn(async move {
            // Whoever waits this long is repeated by then.
            let Ok(Ok(_permit)) = tokio::time::timeout(PATIENCE, permits.acquire()).await else { return };
            match carry(from, at, request).await {
                Ok(letter) => drop(inbox.send(Delivery { from: to, letter, reply: None }).await),
                Err(why) => {
                    tracing::debug!(peer = %to, why, "A letter about a pre-shared key is not answered")
                }
            }
        });
    }
}

async fn carry(from: IpAddr, at: IpAddr, request: ExchangeRequest) -> Result<Letter, String> {
    let target = format!("http://{}", SocketAddr::new(at, PORT_KEY_EXCHANGE));
    let endpoint = Endpoint::from_shared(target).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT).timeout(PATIENCE).local_address(Some(from));
    let channel = endpoint.connect().await.map_err(|error| whole(&error))?;
    let mut client = PairKeysClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let answer = client.exchange(request).await.map_err(|status| status.to_string())?;
    Letter::try_from(answer.into_inner()).map_err(|error| error.to_string())
}

/// An error with its causes: tonic's own says only "transport error".
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Listens on the mesh addresses, for peers alone. Never ends.
pub async fn serve(mut addresses: watch::Receiver<Addresses>, inbox: mpsc::Sender<Delivery>) {
    let mut listening: BTreeMap<IpAddr, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = addresses.borrow_and_update().mesh.clone();
        listening.retain(|address, task| {
            let stays = wanted.contains(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        while tasks.try_join_next().is_some() {}
        for address in wanted {
            listening
                .entry(address)
                .or_insert_with(|| tasks.spawn(listen(address, addresses.clone(), inbox.clone())));
        }
        tokio::select! {
            changed = addresses.changed() => if changed.is_err() { return },
            // One that ended: its address may have been gone for a moment.
            Some(_) = tasks.join_next() => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn listen(address: IpAddr, peers: watch::Receiver<Addresses>, inbox: mpsc::Sender<Delivery>) {
    let at = SocketAddr::new(address, PORT_KEY_EXCHANGE);
    let listener = match TcpListener::bind(at).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(
                address = %at, err = %error,
                "Could not listen for the exchange of pre-shared keys; trying again. Another process on that port?"
            );
            return;
        }
    };
    let known = peers.clone();
    // Others get no answer at all.
    let incoming = TcpIncoming::from(listener).then(async |connection| {
        if connection.is_err() {
            // No descriptor is left, most likely: the next try would fail at once.
            tokio::time::sleep(AGAIN).await;
        }
        connection
    });
    let mut door = Door::default();
    let incoming = incoming.filter_map(move |connection| {
        let admitted = connection.map(|stream| {
            let from = stream.peer_addr().ok()?.ip();
            let peer = known.borrow().peers.get(&from).cloned()?;
            Some(Visitor { stream, _place: door.admit(peer)? })
        });
        std::future::ready(admitted.transpose())
    });
    let service = PairKeysServer::new(Post { peers, inbox })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let served = Server::builder()
        .timeout(PATIENCE)
        .concurrency_limit_per_connection(PER_CONNECTION)
        .http2_keepalive_interval(Some(PATIENCE))
        .add_service(service)
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        tracing::warn!(address = %at, err = whole(&error), "The exchange of pre-shared keys ended; trying again");
    }
}

/// How many connections each peer has.
#[derive(Default)]
struct Door(BTreeMap<NodeName, Arc<Semaphore>>);

impl Door {
    /// A place for one more; none: it has as many as it may.
    fn admit(&mut self, peer: NodeName) -> Option<OwnedSemaphorePermit> {
        self.0.retain(|_, places| places.available_permits() < PER_PEER);
        let places = self.0.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(PER_PEER)));
        Arc::clone(places).try_acquire_owned().ok()
    }
}

/// A connection that keeps its peer's place.
struct Visitor {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Visitor {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Post {
    peers: watch::Receiver<Addresses>,
    inbox: mpsc::Sender<Delivery>,
}

#[tonic::async_trait]
impl PairKeys for Post {
    async fn exchange(
        &self,
        request: Request<ExchangeRequest>,
    ) -> Result<Response<ExchangeResponse>, Status> {
        let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let peer = from.and_then(|from| self.peers.borrow().peers.get(&from.ip()).cloned());
        let Some(peer) = peer else {
            return Err(Status::permission_denied("not from the mesh address of a peer"));
        };
        let letter = Letter::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (reply, answer) = oneshot::channel();
        let delivery = Delivery { from: peer, letter, reply: Some(reply) };
        self.inbox.try_send(delivery).map_err(|_| Status::resource_exhausted("busy; repeat it later"))?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(letter)) => Ok(Response::new(ExchangeResponse::from(&letter))),
            Ok(Err(_)) | Err(_) => Err(Status::unavailable("not taken up; repeat it later")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_connections_and_others_theirs() {
        let mut door = Door::default();
        let [a, b]: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let mut held: Vec<_> = (0..PER_PEER).map(|_| door.admit(a.clone()).unwrap()).collect();
        assert!(door.admit(a.clone()).is_none());
        held.push(door.admit(b.clone()).unwrap());
        drop(held.remove(0));
        assert!(door.admit(a).is_some());
        drop(held);
        assert!(door.admit(b.clone()).is_some());
        assert_eq!(door.0.keys().collect::<Vec<_>>(), [&b], "who has none is forgotten");
    }
}
