//! Sockets: datagrams one by one, connections bounded in number, silence and life.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::metrics::Dropped;
use super::respond::{Transport, respond};
use super::{Metrics, Names};

/// Bytes of a request that are read: a question is less than 300, with all that EDNS can carry still below this.
const MAX_REQUEST: usize = 4_096;
/// Connections at a time, all addresses together: resolvers keep some, and each costs a few kilobytes.
const MAX_CONNECTIONS: usize = 256;
/// A connection may be silent for so long (RFC 7766, section 6.2.3: "a few seconds").
const IDLE: Duration = Duration::from_secs(5);
/// A connection may last so long, however busy: then a resolver opens another, and nobody holds all of them for ever.
const LIFE: Duration = Duration::from_secs(60);
/// After an error of a socket (out of descriptors, most likely).
const REST: Duration = Duration::from_millis(50);
/// Ports that are tried where any will do.
const TRIES: usize = 16;

/// Sockets that are bound.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<(UdpSocket, TcpListener)>,
}

impl Server {
    /// Binds UDP and TCP at each address. Port 0: any, the same for both.
    ///
    /// # Errors
    /// An address cannot be bound; the error names it.
    pub async fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for address in addresses {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("cannot serve DNS at {address}: {error}"))
            };
            sockets.push(pair(*address).await.map_err(named)?);
        }
        Ok(Self { sockets })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// A socket does not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(|(udp, _)| udp.local_addr()).collect()
    }

    /// Serves for ever; dropped, it ends with all connections.
    pub async fn run(self, names: Arc<Names>, metrics: Metrics) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let turn = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (udp, tcp) in self.sockets {
            let shared =
                Shared { names: Arc::clone(&names), metrics: metrics.clone(), turn: Arc::clone(&turn) };
            tasks.spawn(datagrams(udp, shared.clone()));
            tasks.spawn(connections(tcp, Arc::clone(&room), shared));
        }
        while let Some(ended) = tasks.join_next().await {
            tracing::error!(?ended, "A DNS server has ended");
        }
    }
}

async fn pair(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..TRIES {
        let udp = UdpSocket::bind(address).await?;
        let port = udp.local_addr()?.port();
        match TcpListener::bind(SocketAddr::new(address.ip(), port)).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() == 0 => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

#[derive(Clone)]
struct Shared {
    names: Arc<Names>,
    metrics: Metrics,
    turn: Arc<AtomicU64>,
}

/// The turn of a request by its number. Clients ask for A and AAAA in pairs, so numbers of one kind are often all even, and would
/// leave out every other address; multiples of the golden ratio (D. E. Knuth, TAOCP vol. 3, section 6.4) lie evenly.
fn spread(number: u64) -> usize {
    let turn = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    usize::try_from(turn).unwrap_or_default()
}

impl Shared {
    fn answer(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let turn = spread(self.turn.fetch_add(1, Ordering::Relaxed));
        let Some(reply) = respond(request, transport, &self.names, turn) else {
            self.metrics.dropped(Dropped::NotARequest);
            return None;
        };
        self.metrics.answered(transport, reply.code, reply.truncated);
        Some(reply.bytes)
    }
}

async fn datagrams(socket: UdpSocket, shared: Shared) {
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // On Linux also what ICMP says of an earlier answer.
            Err(error) => {
                tracing::debug!(err = %error, "Could not receive a DNS request");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        if let Some(bytes) = shared.answer(&buffer[..length], Transport::Udp)
            && socket.send_to(&bytes, client).await.is_err()
        {
            shared.metrics.dropped(Dropped::Unsent);
        }
    }
}

async fn connections(listener: TcpListener, room: Arc<Semaphore>, shared: Shared) {
    let mut open = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(err = %error, "Could not accept a DNS connection");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            },
            Some(_) = open.join_next() => continue,
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            shared.metrics.dropped(Dropped::Connections);
            continue;
        };
        let shared = shared.clone();
        open.spawn(async move {
            let _place = place;
            if tokio::time::timeout(LIFE, connection(stream, &shared)).await.is_err() {
                shared.metrics.dropped(Dropped::Late);
            }
        });
    }
}

/// Answers requests one after the other until the client ends, is silent, or says what nobody understands.
async fn connection(mut stream: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let request = match tokio::time::timeout(IDLE, message(&mut stream, &mut buffer)).await {
            Ok(Ok(Some(length))) => &buffer[..length],
            Ok(Ok(None)) => return shared.metrics.dropped(Dropped::TooLong),
            Ok(Err(_)) | Err(_) => return,
        };
        let Some(bytes) = shared.answer(request, Transport::Tcp) else { return };
        let Ok(length) = u16::try_from(bytes.len()) else { return };
        // In one piece, as RFC 7766 (section 8) wants it.
        let framed: Vec<u8> = length.to_be_bytes().into_iter().chain(bytes).collect();
        match tokio::time::timeout(IDLE, stream.write_all(&framed)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return shared.metrics.dropped(Dropped::Unsent),
        }
    }
}

/// Reads a message and gives its length; none: it is longer than is read.
async fn message(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let length = usize::from(stream.read_u16().await?);
    let Some(room) = buffer.get_mut(..length) else { return Ok(None) };
    stream.read_exact(room).await?;
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_turn_also_where_only_every_other_request_is_for_it() {
        for step in [1, 2, 3] {
            for addresses in 1..=6_usize {
                let mut turns = vec![0_u32; addresses];
                (0..600).for_each(|number| turns[spread(step * number) % addresses] += 1);
                let even = 600 / u32::try_from(addresses).unwrap();
                assert!(turns.iter().all(|had| had.abs_diff(even) <= even / 4), "{step}: {turns:?}");
            }
        }
    }
}
