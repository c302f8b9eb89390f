//! Follows a server for ever: connects to one of its addresses, goes on from what is known, and tells what is heard.
//!
//! [`Session`] decides what counts; here is what waits: connections, pauses, files. Whoever listens too slowly slows down the
//! server (HTTP/2 flow control), which then sends the latest state of what changed, once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, pending};
use hyper_util::rt::TokioIo;
use mesh_core::clusters::{ClusterName, Host, ServerAddress};
use proto::clustermesh::{
    At, ClusterMeshClient, FollowResponse, INCARNATION, MAX_MESSAGE, MAX_REQUEST, write_known,
};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

use crate::Told;
use crate::session::{LeftOut, Session, SessionError};
use crate::tls::Impostor;

pub mod course;

use course::{Course, End};

/// Room for what was heard and not taken up yet: as many clusters may change at once.
pub const QUEUE: usize = 256;
/// How long it may take to find a name's addresses, and to agree on TLS: some round trips around the world.
const CONNECT: Duration = Duration::from_secs(5);
/// How long each of the addresses may take to accept a connection: its first packet may be lost once.
const ACCEPT: Duration = Duration::from_secs(3);
/// Addresses of a name that are tried.
const ADDRESSES: usize = 4;
/// How long a server may take to begin its answer; it asks its API server who we are.
const ANSWER: Duration = Duration::from_secs(10);
/// A server says something every three seconds; one that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(12);
/// How often a follower of a leader that is cut off asks whether a later one is there: one in the time that a new leader takes to
/// know its cluster.
const ASK: Duration = Duration::from_secs(5);
/// HTTP/2 windows in bytes, of a stream and of a connection: 1 MiB in flight is 80 Mbit/s over 100 ms.
const WINDOW: u32 = 1024 * 1024;
/// A stream with a token goes on with a new one after so long: servers end one whose token is an hour old.
const TOKEN: Duration = Duration::from_secs(50 * 60);
/// Sentences of what is left out of a cluster that are told.
const MISSING: usize = 8;
/// Longest token that is read from a file.
const MAX_TOKEN: usize = 64 * 1024;

/// Where a server is and how it is spoken to.
#[derive(Clone)]
pub struct Target {
    /// Its addresses, best first.
    pub addresses: Vec<ServerAddress>,
    /// Whom it must be, and who we are ([`crate::tls::client_config`], [`crate::tls::agent_config`]).
    pub tls: Arc<rustls::ClientConfig>,
    /// A file with a ServiceAccount's token for audience [`AUDIENCE`], read at each connection.
    pub token: Option<PathBuf>,
    /// Changes when the certificate that we show is renewed: a stream goes on with the new one, before the old one is over.
    pub renewed: Option<watch::Receiver<u64>>,
}

/// Audience of tokens that agents show to their cluster's `clustermesh`.
pub const AUDIENCE: &str = "clustermesh.hawser.dev";

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("addresses", &self.addresses)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let tls = Arc::ptr_eq(&self.tls, &other.tls);
        let renewed = match (&self.renewed, &other.renewed) {
            (Some(one), Some(other)) => one.same_channel(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        tls && renewed && self.addresses == other.addresses && self.token == other.token
    }
}

/// What happened besides what was told.
#[derive(Debug)]
pub enum Event {
    /// A server answers.
    Connected {
        /// Where.
        address: ServerAddress,
    },
    /// It does not, or no longer.
    Ended {
        /// Where; none: no address is known.
        address: Option<ServerAddress>,
        /// Why.
        why: FollowError,
    },
    /// It says something that is not whole yet: more of it follows.
    Speaks,
    /// Something that it said does not count.
    LeftOut(LeftOut),
    /// What does not count at present of all that it has said, the first few: it is less or more than before.
    Missing(Vec<String>),
}

/// Hears of events. Must not block.
pub type Events = Arc<dyn Fn(&Event) + Send + Sync>;

/// Why a server is not followed at the moment.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// Nowhere to go.
    #[error(
        "there is no address to go to: set spec.addresses of the ClusterPeer, or see its condition Accepted for why it is not followed"
    )]
    NoAddress,
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// It is somebody else.
    #[error("refused: {0}")]
    Impostor(Impostor),
    /// TLS failed otherwise; the server may not know us.
    #[error("TLS failed: {0}")]
    Tls(std::io::Error),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The token cannot be read.
    #[error("token {path}: {reason}; mount a projected token for audience clustermesh.hawser.dev there")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// HTTP/2 failed.
    #[error("transport failed: {0}")]
    Transport(String),
    /// The server ended the stream.
    #[error("the server says: {} ({})", .0.message(), .0.code())]
    Status(Status),
    /// It ended without a word.
    #[error("the server ended the stream")]
    Ended,
    /// It said nothing any more.
    #[error("the server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// It said what makes no sense.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The target is another one now.
    #[error("the target has changed")]
    Changed,
    /// What we show of ourselves is soon over, and there is a new one.
    #[error("begun anew with a new certificate or token")]
    Renewed,
    /// The leader is cut off from its API server, and a later one serves elsewhere.
    #[error("a later leader (incarnation {incarnation}) serves at {address}; it is followed instead")]
    Later {
        /// Where.
        address: ServerAddress,
        /// Its incarnation.
        incarnation: u64,
    },
}

impl FollowError {
    /// How a stream ended that lasted so long.
    const fn end(&self, lasted: Duration) -> End {
        match self {
            Self::Changed => End::Moved,
            Self::Renewed => End::Renewed,
            Self::Later { .. } => End::Later,
            Self::Silent(silence) => End::Silent(lasted.saturating_sub(*silence)),
            Self::NoAddress
            | Self::Connect(_)
            | Self::Impostor(_)
            | Self::Tls(_)
            | Self::Timeout(_)
            | Self::Token { .. }
            | Self::Transport(_)
            | Self::Status(_)
            | Self::Ended
            | Self::Session(_) => End::Failed(lasted),
        }
    }

    /// For labels of metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress => "NoAddress",
            Self::Connect(_) => "Unreachable",
            Self::Impostor(impostor) => impostor.reason(),
            Self::Tls(_) => "TlsFailed",
            Self::Timeout(_) => "Timeout",
            Self::Token { .. } => "TokenUnreadable",
            Self::Transport(_) => "TransportFailed",
            Self::Status(status) => match status.code() {
                tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => "RefusedByServer",
                // Of all that a server says only that: it leads no longer, and does not know it.
                tonic::Code::FailedPrecondition => "EarlierLeader",
                tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => "MessageTooLong",
                tonic::Code::Ok
                | tonic::Code::Cancelled
                | tonic::Code::Unknown
                | tonic::Code::InvalidArgument
                | tonic::Code::DeadlineExceeded
                | tonic::Code::NotFound
                | tonic::Code::AlreadyExists
                | tonic::Code::Aborted
                | tonic::Code::Unimplemented
                | tonic::Code::Internal
                | tonic::Code::Unavailable
                | tonic::Code::DataLoss => "StreamFailed",
            },
            Self::Ended => "Ended",
            Self::Silent(_) => "Silent",
            Self::Session(error) => error.reason(),
            Self::Changed => "Changed",
            Self::Renewed => "Renewed",
            Self::Later { .. } => "LaterLeader",
        }
    }
}

fn chance() -> u32 {
    // The keys of the standard library's hash maps are as random as this has to be.
    let number = std::hash::RandomState::new().build_hasher().finish() % 1000;
    u32::try_from(number).unwrap_or(0)
}

/// Follows until nobody listens. The session lives on over all streams, and over changes of the target.
pub async fn follow(
    mut target: watch::Receiver<Target>,
    mut session: Session,
    tell: mpsc::Sender<Told>,
    events: Events,
) {
    let mut course = Course::new();
    // Heard and not taken up yet. The session counts it as known, so no server says it again: it outlives its stream.
    let mut untold = VecDeque::new();
    loop {
        let now = target.borrow_and_update().clone();
        let begun = Instant::now();
        let address = course.begin(now.addresses.len()).and_then(|place| now.addresses.get(place)).cloned();
        let renewal = renewal(&now);
        let stream = async {
            if tell_all(&mut untold, &tell).await.is_err() {
                return Ok(());
            }
            let address = address.clone().ok_or(FollowError::NoAddress)?;
            one_stream(&now, address, &mut course, &mut session, (&mut untold, &tell), &events).await
        };
        let ended = tokio::select! {
            ended = stream => ended,
            () = renewal => Err(FollowError::Renewed),
            () = changed(&mut target) => Err(FollowError::Changed),
            () = tell.closed() => return,
        };
        let Err(why) = ended else { return };
        let end = why.end(begun.elapsed());
        events(&Event::Ended { address, why });
        let pause = course.ended(end, now.addresses.len(), chance());
        if pause.is_zero() {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed(&mut target) => {
                course.ended(End::Moved, 0, 0);
            }
            () = tell.closed() => return,
        }
    }
}

/// Waits until what is shown from now on should be shown anew; for ever, if it needs not.
fn renewal(target: &Target) -> impl Future<Output = ()> + use<> {
    let by_token = target.token.as_ref().map(|_| tokio::time::sleep(TOKEN));
    let renewed = target.renewed.clone().map(|mut renewed| {
        renewed.mark_unchanged();
        renewed
    });
    async move {
        let by_token = async {
            match by_token {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        };
        let by_certificate = async {
            // Whoever renews may have ended: then nothing will be new any more.
            if let Some(mut renewed) = renewed
                && renewed.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = by_token => {}
            () = by_certificate => {}
        }
    }
}

/// Waits for another target; for ever, if there will be none.
async fn changed(target: &mut watch::Receiver<Target>) {
    if target.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tells what waits. Whatever is not taken up when this is dropped goes on waiting.
///
/// # Errors
/// Nobody listens.
async fn tell_all(
    untold: &mut VecDeque<Told>,
    tell: &mpsc::Sender<Told>,
) -> Result<(), mpsc::error::SendError<()>> {
    while !untold.is_empty() {
        let room = tell.reserve().await?;
        if let Some(told) = untold.pop_front() {
            room.send(told);
        }
    }
    Ok(())
}

/// One stream. Ends without an error when nobody listens.
async fn one_stream(
    target: &Target,
    address: ServerAddress,
    course: &mut Course,
    session: &mut Session,
    (untold, tell): (&mut VecDeque<Told>, &mpsc::Sender<Told>),
    events: &Events,
) -> Result<(), FollowError> {
    let (_channel, mut stream, leader) = begin(target, &address, session.begin()).await?;
    events(&Event::Connected { address });
    let mut silent_at = Instant::now() + SILENCE;
    // Whom it asks, while the leader that it follows is cut off; and when the next one.
    let mut asks: Option<BoxFuture<'_, Option<FollowError>>> = None;
    let mut next_ask = Instant::now();
    loop {
        let message = tokio::select! {
            message = timeout_at(silent_at, stream.message()) => message,
            found = async { match &mut asks { Some(asked) => asked.await, None => pending().await } } => {
                asks = None;
                match found {
                    Some(later) => return Err(later),
                    None => continue,
                }
            }
        };
        let message = message.map_err(|_| FollowError::Silent(SILENCE))?;
        silent_at = Instant::now() + SILENCE;
        let message = message.map_err(FollowError::Status)?.ok_or(FollowError::Ended)?;
        let outcome = session.hear(message)?;
        if outcome.cut_off && asks.is_none() && Instant::now() >= next_ask {
            next_ask = Instant::now() + ASK;
            // Agents are led to the leader by its Service; an address of another cluster may be anything's.
            let place = course.ask(target.addresses.len(), target.token.is_none());
            asks = place.and_then(|place| target.addresses.get(place)).map(|address| {
                let known = session.known();
                async move { later(target, address, known, leader).await }.boxed()
            });
        }
        if outcome.told.iter().any(|told| *told != Told::Complete) {
            course.heard();
        } else if outcome.told.is_empty() && !outcome.cut_off {
            events(&Event::Speaks);
        }
        let missing = outcome.mended || !outcome.left_out.is_empty();
        for left_out in outcome.left_out {
            events(&Event::LeftOut(left_out));
        }
        if missing {
            events(&Event::Missing(session.missing(MISSING)));
        }
        untold.extend(outcome.told);
        if tell_all(untold, tell).await.is_err() {
            return Ok(());
        }
    }
}

/// Opens a stream; says which leader serves it, if the server says so.
async fn begin(
    target: &Target,
    address: &ServerAddress,
    known: BTreeMap<ClusterName, At>,
) -> Result<(tonic::transport::Channel, Streaming<FollowResponse>, Option<u64>), FollowError> {
    let mut request = Request::new(write_known(known.iter().map(|(cluster, version)| (cluster, *version))));
    if let Some(path) = &target.token {
        let token =
            read_token(path).await.map_err(|reason| FollowError::Token { path: path.clone(), reason })?;
        request.metadata_mut().insert("authorization", token);
    }
    let io = connect(&target.tls, address).await?;
    timeout(ANSWER, open(io, request)).await.map_err(|_| FollowError::Timeout(ANSWER))?
}

/// Asks whether a later leader than this one serves at an address.
async fn later(
    target: &Target,
    address: &ServerAddress,
    known: BTreeMap<ClusterName, At>,
    leader: Option<u64>,
) -> Option<FollowError> {
    match begin(target, address, known).await {
        Ok((_, _, Some(incarnation))) if leader.is_some_and(|leader| leader < incarnation) => {
            Some(FollowError::Later { address: address.clone(), incarnation })
        }
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%address, err = %error, "No later leader is there");
            None
        }
    }
}

async fn read_token(path: &PathBuf) -> Result<MetadataValue<Ascii>, String> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())?;
    if text.len() > MAX_TOKEN {
        return Err(format!("is longer than {MAX_TOKEN} bytes"));
    }
    // Not with the parser's own words: they could repeat what is in it.
    let value = format!("Bearer {}", text.trim()).parse::<MetadataValue<Ascii>>();
    let mut value = value.map_err(|_| "has bytes that no token has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn connect(
    tls: &Arc<rustls::ClientConfig>,
    address: &ServerAddress,
) -> Result<TlsStream<TcpStream>, FollowError> {
    let tcp = first(found(address).await?, ACCEPT, TcpStream::connect::<SocketAddr>).await?;
    tcp.set_nodelay(true).map_err(FollowError::Connect)?;
    let name = match &address.host {
        Host::Address(ip) => ServerName::IpAddress((*ip).into()),
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|error| FollowError::Connect(std::io::Error::other(error)))?,
    };
    let agreed = timeout(CONNECT, TlsConnector::from(Arc::clone(tls)).connect(name, tcp)).await;
    agreed.map_err(|_| FollowError::Timeout(CONNECT))?.map_err(|error| match Impostor::of(&error) {
        Some(impostor) => FollowError::Impostor(impostor.clone()),
        None => FollowError::Tls(error),
    })
}

/// Where a server is, the first few places.
async fn found(address: &ServerAddress) -> Result<Vec<SocketAddr>, FollowError> {
    let name = match &address.host {
        Host::Address(ip) => return Ok(vec![SocketAddr::new(*ip, address.port)]),
        Host::Name(name) => name.as_str(),
    };
    let found = timeout(CONNECT, lookup_host((name, address.port))).await;
    let found = found.map_err(|_| FollowError::Timeout(CONNECT))?.map_err(FollowError::Connect)?;
    Ok(found.take(ADDRESSES).collect())
}

/// A connection to the first place that accepts one. Each has its own time: where packets to one of them vanish, another may be
/// well.
async fn first<T, F: Future<Output = std::io::Result<T>>>(
    places: Vec<SocketAddr>,
    share: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, FollowError> {
    let nowhere = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    let mut failed = FollowError::Connect(nowhere);
    for place in places {
        failed = match timeout(share, connect(place)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => FollowError::Connect(error),
            Err(_) => FollowError::Timeout(share),
        };
    }
    Err(failed)
}

async fn open(
    io: TlsStream<TcpStream>,
    request: Request<proto::clustermesh::FollowRequest>,
) -> Result<(tonic::transport::Channel, Streaming<FollowResponse>, Option<u64>), FollowError> {
    let transport = |error: tonic::transport::Error| FollowError::Transport(whole(&error));
    // The name stands in no certificate and is looked up nowhere: the connection is there already, and is the only one.
    // No pings: whether the server is there, its messages show, and an answer to a ping waits behind all of a full window.
    let endpoint = Endpoint::from_static("http://clustermesh.hawser.dev")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW);
    let mut io = Some(TokioIo::new(io));
    let once = tower::service_fn(move |_: http::Uri| {
        let io = io.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        std::future::ready(io)
    });
    let channel = endpoint.connect_with_connector(once).await.map_err(transport)?;
    let mut client = ClusterMeshClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_REQUEST);
    let answer = client.follow(request).await.map_err(FollowError::Status)?;
    let leader = answer.metadata().get(INCARNATION).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok((channel, answer.into_inner(), leader))
}

/// An error with its causes: tonic's own says only "transport error".
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hide_the_next_one_of_its_name() {
        let share = Duration::from_millis(50);
        let place = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let places = |last: u16| (1..=last).map(place).collect::<Vec<_>>();
        // The first one never answers, and of the others one is well.
        let answers = |well: u16| {
            move |place: SocketAddr| async move {
                match place.port() {
                    1 => pending().await,
                    port if port == well => Ok(port),
                    _ => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                }
            }
        };
        for well in [2, 3] {
            assert_eq!(first(places(4), share, answers(well)).await.unwrap(), well);
        }
        let refused = first(places(2), share, answers(9)).await;
        assert!(matches!(refused, Err(FollowError::Connect(_))), "{refused:?}");
        let silent = first(places(1), share, answers(9)).await;
        assert!(matches!(silent, Err(FollowError::Timeout(after)) if after == share), "{silent:?}");
        let nowhere = first(Vec::new(), share, answers(9)).await;
        assert!(matches!(nowhere, Err(FollowError::Connect(_))), "{nowhere:?}");
    }

    #[test]
    fn what_was_heard_is_told_though_its_stream_ends_while_nobody_takes_it_up() {
        let of = |number: u64| Told::Changed {
            cluster: "east".parse().unwrap(),
            version: mesh_core::clusters::Version { incarnation: 1, sequence: number },
            changes: Vec::new(),
        };
        let (tell, mut told) = mpsc::channel(1);
        let mut untold: VecDeque<Told> = (0..4).map(of).collect();
        for number in 0..4 {
            let taken_up = tell_all(&mut untold, &tell).now_or_never();
            assert_eq!(taken_up.is_some(), number == 3, "one is taken up at a time");
            assert_eq!(told.try_recv().ok(), Some(of(number)));
        }
        drop(told);
        untold.push_back(of(4));
        assert!(tell_all(&mut untold, &tell).now_or_never().unwrap().is_err(), "nobody listens");
    }
}
