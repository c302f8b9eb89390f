//! Both ends of the protocol with bytes instead of messages, so that they can say anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use clustermesh::daemon::authority::Authority;
use clustermesh::daemon::tls::{Credentials, Trust, server_config};
use clustermesh::tls::Roots;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use hyper_util::rt::TokioIo;
use prost::bytes::{Buf as _, BufMut as _};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::world::*;

const PATH: &str = "/hawser.clustermesh.v1.ClusterMesh/Follow";

/// HTTP/2 window of who asks: the least that there is, so that a server has to wait soon.
const WINDOW: u32 = 65_535;

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// What is said in one stream.
pub(crate) type Script = Vec<Vec<u8>>;

/// Says what it was told to say: in each stream the next script, the last one again and again.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    scripts: Arc<Mutex<Vec<Script>>>,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    pub(crate) fn new(scripts: Vec<Script>) -> Self {
        Self { scripts: Arc::new(Mutex::new(scripts)), asked: Arc::default() }
    }

    /// Requests that came.
    pub(crate) fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().clone()
    }
}

impl NamedService for Scripted {
    const NAME: &'static str = "hawser.clustermesh.v1.ClusterMesh";
}

/// One of its methods: the only one.
struct Follow(Scripted);

impl ServerStreamingService<Vec<u8>> for Follow {
    type Response = Vec<u8>;
    type ResponseStream = BoxStream<'static, Result<Vec<u8>, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        self.0.asked.lock().unwrap().push(request.into_inner());
        let mut scripts = self.0.scripts.lock().unwrap();
        let script = if scripts.len() > 1 { scripts.remove(0) } else { scripts[0].clone() };
        let words = futures::stream::iter(script.into_iter().map(Ok));
        Box::pin(std::future::ready(Ok(Response::new(words.chain(futures::stream::pending()).boxed()))))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Scripted {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = Follow(self.clone());
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw).max_encoding_message_size(usize::MAX);
            Ok(grpc.server_streaming(service, request).await)
        })
    }
}

struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A server that shows this and says what is scripted to who comes from `to`.
pub(crate) async fn server(own: Arc<Credentials>, to: &Cluster, scripted: Scripted) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let trust = Arc::new(Trust::default());
    trust.set([(cluster(to.name), Roots::parse(&to.bundle()).unwrap())].into());
    let acceptor = TlsAcceptor::from(server_config(trust, own).unwrap());
    let incoming = futures::stream::unfold(listener, move |listener| {
        let acceptor = acceptor.clone();
        async move {
            let (tcp, _) = listener.accept().await.ok()?;
            Some((acceptor.accept(tcp).await.map(Io), listener))
        }
    });
    // Whoever is refused by the other side is no end of the server.
    let incoming = incoming.filter(|one| std::future::ready(one.is_ok()));
    tokio::spawn(Server::builder().add_service(scripted).serve_with_incoming(incoming.boxed()));
    address
}

/// The certificate of a leader of `name`, to be shown.
pub(crate) fn credentials(authority: &Authority, name: &str) -> Arc<Credentials> {
    let leaf = authority.issue_for(&cluster(name), std::time::SystemTime::now()).unwrap();
    Arc::new(Credentials::new(leaf.key))
}

/// A connection with TLS, by which requests are made.
pub(crate) async fn connect(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> std::io::Result<Channel> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut io = Some(TokioIo::new(TlsConnector::from(tls).connect(name, tcp).await?));
    let once = tower::service_fn(move |_: http::Uri| {
        std::future::ready(io.take().ok_or_else(|| std::io::Error::other("used")))
    });
    let endpoint = Endpoint::from_static("http://clustermesh.hawser.dev")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    endpoint.connect_with_connector(once).await.map_err(std::io::Error::other)
}

/// Asks to follow, with any bytes.
pub(crate) async fn ask(channel: &Channel, request: Vec<u8>) -> Result<Streaming<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(PATH);
    Ok(grpc.server_streaming(Request::new(request), path, Raw).await?.into_inner())
}
