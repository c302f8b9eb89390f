//! `GET pods/NAME/portforward?ports=PORT`: a port of a pod by WebSocket, as the real server hands it on to the pod's kubelet, which connects
//! inside of the pod (`pkg/kubelet/cri/streaming/portforward/websocket.go`, subprotocol `v4.channel.k8s.io`). Channel 0 has the bytes,
//! channel 1 the kubelet's words where it cannot connect; each begins with the port, little-endian. Not served: several ports in one
//! request, SPDY, base64.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::auth::Attributes;
use crate::error::ApiError;
use crate::http_api::{Answer, Api, answer};
use crate::routes::parameter;
use crate::store::Target;

/// Connects to a port inside of a pod, as its kubelet does. May block.
pub type Kubelets = Arc<dyn Fn(&Value, u16) -> io::Result<TcpStream> + Send + Sync>;

const PROTOCOL: &str = "v4.channel.k8s.io";
/// Channels of the one port.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of a pod that are sent at once.
const PIECE: usize = 16 << 10;

/// Nodes without kubelets.
pub(crate) fn nobody() -> Kubelets {
    Arc::new(|_, _| Err(io::Error::other("no kubelet is there")))
}

/// The key of a request that asks for the one protocol that is served.
fn key(headers: &HeaderMap) -> Result<&HeaderValue, ApiError> {
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let offered = |protocol: &str| text(SEC_WEBSOCKET_PROTOCOL).split(',').any(|one| one.trim() == protocol);
    if !text(UPGRADE).eq_ignore_ascii_case("websocket") || !offered(PROTOCOL) {
        return Err(ApiError::bad_request(format!("only a WebSocket with subprotocol {PROTOCOL} is served")));
    }
    headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))
}

impl Api {
    /// Serves one: the answer switches protocols, and the bytes go on beside.
    pub(crate) fn forward<B>(
        &self,
        request: &mut Request<B>,
        what: &Attributes,
        query: &[(String, String)],
    ) -> Result<Answer, ApiError> {
        let unknown = || ApiError::NoSuchResource { path: what.path.clone() };
        if !what.group.is_empty() || what.resource != "pods" || what.namespace.is_empty() {
            return Err(unknown());
        }
        let pod = self.store.lock().get(&Target::of("pods", &what.namespace, &what.name))?.value.clone();
        let port = parameter(query, "ports").and_then(|port| port.parse::<u16>().ok());
        let port = port.ok_or_else(|| ApiError::bad_request("wanted one port, as ports=NUMBER"))?;
        let accept = derive_accept_key(key(request.headers())?.as_bytes());
        let (upgrade, kubelets) = (hyper::upgrade::on(request), Arc::clone(&self.kubelets));
        let (shutdown, name) = (self.shutdown.clone(), what.name.clone());
        self.tasks.spawn(async move {
            let dialed = tokio::task::spawn_blocking(move || kubelets(&pod, port)).await;
            let dialed = dialed.map_err(io::Error::other).and_then(|dialed| dialed).and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::TcpStream::from_std(stream)
            });
            let dialed = dialed.map_err(|error| {
                format!("error forwarding port {port} to pod {name}: failed to connect to localhost:{port}: {error}")
            });
            let work = async {
                let upgraded = TokioIo::new(upgrade.await?);
                let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
                anyhow::Ok(carry(socket, port, dialed).await?)
            };
            tokio::select! {
                done = work => if let Err(error) = done {
                    tracing::debug!(%error, "a port-forward ended");
                },
                () = shutdown.cancelled() => {}
            }
        });
        let mut switching = answer(StatusCode::SWITCHING_PROTOCOLS, "", Bytes::new());
        let headers = switching.headers_mut();
        headers.clear();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        let accept = accept.parse().map_err(|_| ApiError::bad_request("Sec-WebSocket-Key is none"))?;
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        Ok(switching)
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

/// Until either side ends it.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    port: u16,
    dialed: Result<tokio::net::TcpStream, String>,
) -> Result<(), Error> {
    let (mut sink, mut source) = socket.split();
    for channel in [DATA, ERROR] {
        sink.send(frame(channel, &port.to_le_bytes())).await?;
    }
    let mut stream = match dialed {
        Ok(stream) => stream,
        Err(why) => {
            sink.send(frame(ERROR, why.as_bytes())).await?;
            return sink.send(Message::Close(None)).await;
        }
    };
    let (mut from, mut to) = stream.split();
    let mut buffer = vec![0; PIECE];
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => match read? {
                0 => return sink.send(Message::Close(None)).await,
                length => sink.send(frame(DATA, &buffer[..length])).await?,
            },
            message = source.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) => if let Some((&DATA, bytes)) = bytes.split_first() {
                    to.write_all(bytes).await?;
                },
                Some(Message::Close(_)) | None => return Ok(()),
                Some(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            },
        }
    }
}
